"""Phantoms as a dataset: same seed, same voxels; real names; truth that holds; contrasts that look right."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_ext.__main__ import main
from monai_ext.data.datalist import read_datalist
from monai_ext.data.layouts import index
from monai_ext.data.phantoms.command import Job, make_subject
from monai_ext.data.phantoms.patients import Phantom, make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.data.volumes import Volume, read_volume

pytest.importorskip("nilearn", reason="the phantom extra is not installed")
COARSE = (4.0, 4.0, 4.0)


def phantom(site: str, **options: object) -> Phantom:
    settings: dict = {"index": 0, "spacing": COARSE, **options}
    return make_phantom(SITES[site], **settings)


def command(out: Path, *arguments: str) -> int:
    return main(["phantom", "--out", str(out), "--spacing", "4", *arguments])


def voxels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(path for path in folder.rglob("*.nii.gz"))
    return {path.relative_to(folder).as_posix(): read_volume(path, allow_constant=True).array for path in files}


def at_world(volume: Volume, points: np.ndarray) -> np.ndarray:
    """The nearest voxel's value at world points (..., 3)."""
    back = np.linalg.inv(volume.affine)
    where = np.rint(points @ back[:3, :3].T + back[:3, 3]).astype(int)
    inside = ((where >= 0) & (where < volume.shape)).all(axis=-1)
    values = np.zeros(points.shape[:-1], dtype=np.float32)
    values[inside] = volume.array[tuple(where[inside].T)]
    return values


@pytest.mark.long
def test_the_same_seed_gives_the_same_voxels_however_many_subjects_and_jobs(tmp_path: Path) -> None:
    assert command(tmp_path / "one", "--site", "immune", "--subjects", "1", "--seed", "7") == 0
    assert command(tmp_path / "two", "--site", "immune", "--subjects", "2", "--seed", "7", "--jobs", "2") == 0
    assert command(tmp_path / "other", "--site", "immune", "--subjects", "1", "--seed", "8") == 0
    one, two, other = (voxels(tmp_path / name) for name in ("one", "two", "other"))
    assert one.keys() < two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    assert any(name not in other or not np.array_equal(array, other[name]) for name, array in one.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_files(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        assert command(tmp_path / device, "--site", "immune", "--subjects", "1", "--device", device) == 0
    here, there = (voxels(tmp_path / device) for device in ("cpu", "cuda"))
    assert here.keys() == there.keys()
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, rtol=0, atol=1 + 1e-4 * array.max())  # files hold whole numbers


@pytest.mark.parametrize(
    ("site", "layout", "contrast", "expected"),
    [
        ("healthy", "ixi", "T1", "IXI-T1/IXI001-HH-1000-T1.nii.gz"),
        ("brats", "brats2023", "T1C", "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz"),
        ("glioma", "bids", "T1C", "sub-glioma001/ses-01/anat/sub-glioma001_ses-01_ce-gadolinium_T1w.nii.gz"),
        ("stroke", "bids", "ADC", "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz"),
        ("immune", "folder", "ADC", "immune-001/ADC.nii.gz"),
    ],
)
def test_files_have_real_names_that_the_index_command_finds_again(
    tmp_path: Path, site: str, layout: str, contrast: str, expected: str
) -> None:
    assert command(tmp_path, "--site", site, "--subjects", "1") == 0
    (subject,) = read_datalist(tmp_path / "datalist.json").subjects
    written = {name: path.relative_to(tmp_path).as_posix() for name, path in subject.images.items()}
    if layout == "ixi":
        expected = expected.replace("HH", written["T1"].split("-")[2])  # the field strength's hospital
    if contrast in written:
        assert written[contrast] == expected
    found = index(tmp_path, layout=layout).subjects
    assert [(s.name, dict(s.images), s.label) for s in found] == [(subject.name, dict(subject.images), subject.label)]


@pytest.mark.parametrize(
    ("arguments", "subjects"), [(("--site", "healthy", "--randomize"), 4), (("--site", "immune", "--layout", "ixi"), 1)]
)
def test_ixi_has_a_place_for_the_label_map_of_every_lesion(
    tmp_path: Path, arguments: tuple[str, ...], subjects: int
) -> None:
    assert command(tmp_path, *arguments, "--subjects", str(subjects), "--contrasts", "T1") == 0
    made = {subject.name: subject.label for subject in read_datalist(tmp_path / "datalist.json").subjects}
    lesions = {
        truth["subject"]: truth["lesion"]
        for truth in (json.loads(path.read_text()) for path in (tmp_path / "truth").glob("*.json"))
    }
    assert {name: label is not None for name, label in made.items()} == {
        name: kind != "none" for name, kind in lesions.items()
    }
    assert any(made.values())
    assert {subject.name: subject.label for subject in index(tmp_path, layout="ixi").subjects} == made


def test_a_person_is_in_one_split_and_every_split_is_served(tmp_path: Path) -> None:
    assert command(tmp_path, "--site", "stroke", "--subjects", "6", "--contrasts", "dwi") == 0
    datalist = read_datalist(tmp_path / "datalist.json")
    assert [len(datalist.splits[name]) for name in ("training", "validation", "test")] == [4, 1, 1]
    assert len({subject.subject for subject in datalist.subjects}) == 6


def test_fluid_and_brain_have_the_right_order_in_all_seven_contrasts() -> None:
    every = ("T1", "T2", "PD", "T1C", "FLAIR", "DWI", "ADC")
    made = phantom("healthy", contrasts=every, index=1)
    image = {name: volume.array for name, volume in made.images.items()}
    brain = made.brain.array > 0
    fluid = brain & (image["ADC"] > 0.85 * image["ADC"][brain].max())
    solid = brain & (image["ADC"] < np.percentile(image["ADC"][brain], 50))
    assert fluid.sum() > 30

    def ratio(name: str) -> float:
        return float(image[name][fluid].mean() / image[name][solid].mean())

    assert {name: ratio(name) < 0.6 for name in ("T1", "T1C", "FLAIR", "DWI")} == dict.fromkeys(
        ("T1", "T1C", "FLAIR", "DWI"), True
    )
    assert ratio("T2") > 1.6
    assert ratio("ADC") > 2.5
    assert 0.9 < ratio("PD") < 1.6


def test_an_infarct_is_bright_on_dwi_and_dark_on_adc() -> None:
    made = phantom("stroke", index=4)  # a fresh one
    lesion, brain = made.label.array > 0, made.brain.array > 0
    dwi, adc = made.images["DWI"].array, made.images["ADC"].array
    assert dwi[lesion].mean() > 1.4 * np.median(dwi[brain & ~lesion])
    assert adc[lesion].mean() < 0.75 * np.median(adc[brain & ~lesion])


def test_a_glioma_has_an_enhancing_rim_and_bright_oedema() -> None:
    made = phantom("brats", index=2)
    label, brain = made.label.array, made.brain.array > 0
    white = brain & (made.images["T1"].array > np.percentile(made.images["T1"].array[brain], 70)) & (label == 0)
    ratio = made.images["T1C"].array / np.maximum(made.images["T1"].array, 1)
    assert np.median(ratio[label == 3]) > 1.5 * np.median(ratio[white])
    flair = made.images["FLAIR"].array
    assert flair[label == 2].mean() > 1.25 * flair[white].mean()


def test_plaques_are_bright_on_flair() -> None:
    made = phantom("immune", index=1, contrasts=("T1", "FLAIR"))
    flair, lesion = made.images["FLAIR"].array, made.label.array > 0
    assert flair[lesion].mean() > 1.2 * np.median(flair[(made.brain.array > 0) & ~lesion])


def test_the_offsets_say_where_each_contrast_shows_the_same_tissue() -> None:
    quiet = {"contrasts": ("T1", "T2", "DWI", "ADC"), "spacing": COARSE}
    site = replace(SITES["glioma"], bias=0.0, noise=0.003)
    still = make_phantom(site, index=0, **quiet)
    moved = make_phantom(site, index=0, misalign=(15.0, 12.0), **quiet)
    assert moved.reference == "T1"
    np.testing.assert_array_equal(moved.offsets["T1"], np.eye(4))
    np.testing.assert_allclose(moved.images["T1"].array, still.images["T1"].array, atol=0.01)
    np.testing.assert_array_equal(moved.offsets["ADC"], moved.offsets["DWI"])
    assert not np.allclose(moved.offsets["T2"], moved.offsets["DWI"])
    voxel = np.argwhere(still.brain.array > 0)
    points = voxel @ still.images["T2"].affine[:3, :3].T + still.images["T2"].affine[:3, 3]
    for name in ("T2", "DWI"):
        offset = moved.offsets[name]
        truth = still.images[name].array[tuple(voxel.T)]
        followed = at_world(moved.images[name], points @ offset[:3, :3].T + offset[:3, 3])
        ignored = at_world(moved.images[name], points)
        assert np.corrcoef(truth, followed)[0, 1] > 0.85
        assert np.corrcoef(truth, ignored)[0, 1] < 0.7


def test_the_sidecar_holds_the_offsets_and_what_was_played(tmp_path: Path) -> None:
    arguments = ("--site", "stroke", "--subjects", "1", "--misalign", "8,5")
    assert command(tmp_path, *arguments) == 0
    (path,) = (tmp_path / "truth").glob("*.json")
    truth = json.loads(path.read_text())
    assert truth["reference"] == "DWI"
    assert "RAS mm" in truth["convention"]
    expected = make_phantom(SITES["stroke"], index=0, spacing=COARSE, misalign=(8.0, 5.0)).offsets
    assert {name: np.array(m).tolist() for name, m in truth["offsets"].items()} == {
        name: matrix.tolist() for name, matrix in expected.items()
    }
    assert truth["sequences"]["DWI"]["b"] == 1000
    assert truth["field_tesla"] in (1.5, 3.0)


@pytest.mark.parametrize("index", [0, 1])
def test_the_files_obey_dwi_equals_s0_exp_minus_b_adc_within_noise(tmp_path: Path, index: int) -> None:
    """S0 is the noise-free one; its noise must be the scanner's, not that of two scans divided."""
    job = Job(tmp_path, "glioma", "bids", index, 0, COARSE, ("DWI", "ADC"), (0.0, 0.0), randomize=False)
    subject, _ = make_subject(job)
    dwi, adc = (read_volume(subject.images[name]) for name in ("DWI", "ADC"))
    quiet = make_phantom(replace(SITES["glioma"], noise=0.0), index=index, spacing=COARSE, contrasts=("DWI", "ADC"))
    brain = np.argwhere(quiet.brain.array > 0)
    points = brain @ quiet.brain.affine[:3, :3].T + quiet.brain.affine[:3, 3]
    clean_dwi, clean_adc = (quiet.images[name].array[tuple(brain.T)] for name in ("DWI", "ADC"))
    decay = np.exp(-1e-3 * at_world(adc, points))  # b = 1000 s/mm2, ADC in 1e-6 mm2/s
    s0 = clean_dwi * np.exp(1e-3 * clean_adc)
    sigma = dwi.array[:4].mean() / np.sqrt(np.pi / 2)  # the air's
    apart = (at_world(dwi, points) - s0 * decay)[at_world(adc, points) > 0]
    assert np.sqrt((apart**2).mean()) < 1.1 * sigma


def test_files_are_stored_as_the_site_stores_them(tmp_path: Path) -> None:
    assert command(tmp_path, "--site", "brats", "--subjects", "1") == 0
    files = sorted(tmp_path.glob("BraTS*/*-t*.nii.gz"))
    image = nib.load(files[0])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.get_data_dtype() == np.int16
    assert nib.load(next(tmp_path.glob("BraTS*/*seg.nii.gz"))).get_data_dtype() == np.uint8
    assert files[0].name == "BraTS-GLI-00000-000-t1c.nii.gz"
    stored, rendered = read_volume(files[0]), phantom("brats").images["T1C"]
    some = np.random.default_rng(0).uniform(-50, 50, (500, 3))
    np.testing.assert_allclose(at_world(stored, some), at_world(rendered, some), atol=0.51)


def test_skull_stripped_sites_have_nothing_but_brain_and_others_have_a_scalp() -> None:
    stripped, whole = phantom("brats"), phantom("healthy")
    outside = stripped.images["T1"].array[stripped.brain.array == 0]
    assert not outside.any()
    beyond = whole.images["T1"].array[whole.brain.array == 0]
    assert np.percentile(beyond, 95) > 0.8 * np.median(whole.images["T1"].array[whole.brain.array > 0])


def test_a_thick_slice_is_the_mean_over_its_thickness() -> None:
    site = replace(SITES["brats"], noise=0.0, bias=0.0, level_spread=0.0, extent=(208.0, 208.0, 144.0))
    thin = make_phantom(site, index=0, spacing=(4.0, 4.0, 4.0), contrasts=("T1",))
    thick = make_phantom(site, index=0, spacing=(4.0, 4.0, 12.0), contrasts=("T1",))
    inside = thick.brain.array > 0
    averaged = thin.images["T1"].array.reshape(52, 52, 12, 3).mean(axis=-1)
    full = inside & (thin.brain.array.reshape(52, 52, 12, 3).min(axis=-1) > 0)
    np.testing.assert_allclose(averaged[full], thick.images["T1"].array[full], rtol=2e-2)


def test_randomised_subjects_differ_far_more_than_a_site_does() -> None:
    def facts(*, randomize: bool) -> list[dict]:
        return [dict(phantom("brats", index=n, contrasts=("T1",), randomize=randomize).facts) for n in range(5)]

    def spread(subjects: list[dict]) -> float:
        return float(np.std([np.log(s["tissues"]["gm"]["t1"] / s["tissues"]["wm"]["t1"]) for s in subjects]))

    wide = facts(randomize=True)
    assert spread(wide) > 2 * spread(facts(randomize=False))
    assert len({subject["lesion"] for subject in wide}) >= 3


def test_the_folder_may_be_given_relative_to_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command(Path("../there"), "--subjects", "1", "--contrasts", "T1") == 0
    (subject,) = read_datalist(tmp_path / "there/datalist.json").subjects
    assert subject.images["T1"].parent == tmp_path / "there/IXI-T1"


def test_a_picture_of_the_first_subjects_is_drawn_when_asked_for(tmp_path: Path) -> None:
    arguments = ("--site", "immune", "--subjects", "2", "--montage", str(tmp_path / "look" / "m.png"))
    assert command(tmp_path / "data", *arguments) == 0
    assert (tmp_path / "look" / "m.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--site", "glioma", "--layout", "ixi"), "the layout ixi has no names for T1C, FLAIR, DWI, ADC"),
        (("--site", "stroke", "--layout", "brats2023"), "brats2023 has no names for DWI, ADC"),
        (("--subjects", "0"), "--subjects and --jobs must be at least 1"),
        (("--seed", "-1"), "--seed must be 0 or more"),
        (("--device", "gpu"), "device must be cpu, cuda or cuda:1"),
        (("--device", "cuda:99"), "CUDA devices: try cpu"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert command(tmp_path / "data", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--spacing", "2,2"), "must be one number or three"),
        (("--spacing", "0"), "each of 0.5 to 12 mm"),
        (("--spacing", "wide"), "--spacing takes one number"),
        (("--misalign", "5"), "must be MM,DEG"),
        (("--contrasts", "T1,T9"), "unknown contrast 'T9'"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["phantom", "--out", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


def test_a_folder_that_holds_a_dataset_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "datalist.json").write_text("mine")
    assert command(tmp_path) == 2
    assert "holds a dataset already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["datalist.json"]


def test_what_an_interrupted_run_left_is_not_mixed_with_a_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("--site", "brats", "--subjects", "2", "--contrasts", "T1")
    with monkeypatch.context() as patch:
        patch.setattr("monai_ext.data.phantoms.command.write_datalist", stop)
        with pytest.raises(KeyboardInterrupt):
            command(tmp_path, *arguments)
    left = sorted(tmp_path.rglob("*"))
    assert command(tmp_path, *arguments, "--seed", "1") == 2
    assert "is not empty: remove it or choose another folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == left != []


def test_a_finer_grid_shows_the_same_subject() -> None:
    coarse, fine = (phantom("brats", spacing=(mm,) * 3, contrasts=("T1",)) for mm in (4.0, 2.0))
    points = np.random.default_rng(0).uniform(-60, 60, (4000, 3)) + np.array([0, -17, 10])
    for one, other in ((coarse.brain, fine.brain), (coarse.label, fine.label)):
        first, second = at_world(one, points) > 0, at_world(other, points) > 0
        assert 2 * (first & second).sum() > 0.75 * (first.sum() + second.sum()) > 0

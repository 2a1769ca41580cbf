"""From scans to a network's input, as the training data were made, and back to files on the patient's own grid."""

import errno
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from nibabel.eulerangles import euler2mat
from PIL import Image

from monai_ext.data import gridded
from monai_ext.data.datalist import Datalist, Subject, SubjectError
from monai_ext.data.montage import MARGIN, TITLE
from monai_ext.data.prepare import prepare
from monai_ext.data.presets import PRESETS, Preset
from monai_ext.data.volumes import LPS_TO_RAS, Volume, read_volume, write_volume
from monai_ext.inference import transforms
from monai_ext.inference.maker import Maker
from monai_ext.inference.subjects import AlreadyDone
from monai_ext.inference.transforms import KeepResultsd, PrepareSubjectd, RestoreSubjectd, SaveSyntheticd

SHAPE = (24, 28, 10)
AFFINE = np.array([[-2.0, 0, 0, 23], [0, -2, 0, 27], [0, 0, 3, -13.5], [0, 0, 0, 1]])  # left, posterior, superior


def head(*, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, seed: int = 0) -> Volume:
    """A ball on a zero background, with a bright spot off its middle in all three directions."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    ball = np.linalg.norm(world, axis=-1)
    spot = np.linalg.norm(world - [5, 4, -3], axis=-1)
    level = 100 + 10 * np.random.default_rng(seed).random()
    array = np.where(ball < 13, level * (1.5 - ball / 15) + 80 * np.exp(-((spot / 4) ** 2)), 0)
    return Volume(array.astype(np.float32), affine)


def written(folder: Path, name: str = "ann", **images: Volume) -> Subject:
    images = images or {"T1": head(), "T2": head(seed=1)}
    files = {contrast: folder / name / f"{contrast}.nii.gz" for contrast in images}
    for contrast, volume in images.items():
        files[contrast].parent.mkdir(parents=True, exist_ok=True)
        write_volume(files[contrast], volume)
    return Subject(name, "toy", files)


def maker(preset: Preset | None = None, **changes: Any) -> Maker:
    said: dict[str, Any] = {"bundle": "toy_net", "version": "1.0", "weights": "f" * 64, "preset": preset or Preset()}
    return Maker(**{"sources": ("T1", "T2"), "target": ("PD",), **said, **changes})


def through(subject: Subject, made: Maker, out: Path, *, channel: int = 0, **options: Any) -> dict[str, Any]:
    """The whole way with a network that gives one of the sources back."""
    item = PrepareSubjectd(made)({"subject": subject})
    item["pred"] = torch.stack([item["image"][channel]] * len(made.target))
    return SaveSyntheticd(output_dir=out, **options)(RestoreSubjectd()(item))


# What goes into the network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset",
    [
        *(PRESETS[name] for name in ("native", "brats", "pmm", "hmf-brats")),
        replace(PRESETS["ixi"], crop=(32, 20), reference=("T2", "T1")),
        Preset(spacing=(1.5, 1.5, 2), crop=(60, 60), size=(80, 72), register="rigid", brain_mask="otsu"),
        Preset(brain_mask="{name}/mask.nii.gz"),
    ],
)
def test_the_network_sees_what_prepare_would_have_stored(tmp_path, monkeypatch, preset):
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = euler2mat(0.1, 0, 0.05), (3, -2, 1)
    monkeypatch.setattr(gridded, "register_rigid", lambda *_: moved)
    sagittal = np.array([[0, 0, 2.5, -24], [1.5, 0, 0, -30], [0, 1.5, 0, -24], [0, 0, 0, 1.0]])
    images = {"T1": head(shape=(36, 36, 18)), "T2": head(shape=(40, 32, 20), affine=sagittal, seed=1)}
    if preset.brain_mask == "otsu":  # which needs a brain that is deeper than it peels
        images = {name: Volume(v.array, np.diag([3, 3, 3, 1]) @ v.affine) for name, v in images.items()}
    subject = written(tmp_path, **images)
    write_volume(
        tmp_path / "ann" / "mask.nii.gz", Volume(images["T1"].array > 120, images["T1"].affine), dtype=np.uint8
    )
    (end,) = prepare(Datalist("toy", tmp_path, {"test": [subject]}), tmp_path / "out", preset=preset)
    item = PrepareSubjectd(maker(preset))({"subject": subject, "root": tmp_path})
    assert end.failure is None
    assert item["image"].dtype == torch.float32
    assert item["image"].max() == 1
    read = {contrast: read_volume(tmp_path / "out" / "ann" / f"{contrast}.nii") for contrast in ("T1", "T2")}
    shown = np.array([(stored.array > 0).any((0, 1)) for stored in read.values()])
    for channel, stored in enumerate(read.values()):
        index = (
            np.linalg.inv(item["prepared"].grid.affine) @ stored.affine
        )  # what is seen beyond is the patient's alone
        first = np.rint(index[:3, 3]).astype(int)
        np.testing.assert_allclose(index[:3], np.c_[np.eye(3), first], atol=1e-5)
        seen = item["image"][channel][tuple(slice(a, a + n) for a, n in zip(first, stored.shape, strict=True))]
        rim = (slice(1, -1),) * 3 if preset.spacing != (None,) * 3 else ...  # a larger voxel there is seen for once
        reached = (seen > 0).any(0).any(0).numpy()
        assert reached.sum() > 2
        assert not shown[:, ~reached].all(0).any()  # black is what a source does not reach
        np.testing.assert_allclose(seen[rim], (stored.array * reached)[rim], atol=0.5 / 65535 + 4e-7)  # of float32 sums


def test_channels_follow_the_sources_and_other_files_are_not_opened(tmp_path):
    subject = written(tmp_path, T2=head(seed=1), FLAIR=head(), T1=head())
    subject.images["FLAIR"].write_bytes(b"")
    one, other = (
        PrepareSubjectd(maker(sources=sources))({"subject": subject})["image"]
        for sources in (("T1", "T2"), ("T2", "T1"))
    )
    torch.testing.assert_close(one, other.flip(0))
    with pytest.raises(SubjectError, match="ann: lacks PD, has T2, FLAIR, T1"):
        PrepareSubjectd(maker(sources=("T1", "PD"), target=("DWI",)))({"subject": subject})


def test_sources_that_do_not_meet_are_refused_with_what_to_do(tmp_path):
    away = head(affine=AFFINE)
    subject = written(tmp_path, T1=head(), T2=Volume(away.array, AFFINE + np.array([[0, 0, 0, 500]] + [[0] * 4] * 3)))
    with pytest.raises(SubjectError, match=r"T2 sees 0% of what T1 shows: .* try --register rigid"):
        PrepareSubjectd(maker())({"subject": subject})


# Where the result lies -----------------------------------------------------------------------------------------------


def turned(codes: str) -> np.ndarray:
    """AFFINE's field of view with other axes."""
    return nib.Nifti1Image(np.zeros(SHAPE), AFFINE).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
    ).affine  # fmt: skip


def oblique() -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, :3] = euler2mat(0.3, 0.2, -0.25) @ affine[:3, :3]
    return centred(affine)


def centred(affine: np.ndarray) -> np.ndarray:
    """The same axes with the head in the middle."""
    affine = affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


def save(path: Path, affine: np.ndarray, *, kind: Any = nib.Nifti1Image, **changes: Any) -> None:
    shape = SHAPE if np.argmax(np.abs(affine[:3, 0])) == 0 else (28, 10, 24)
    array = head(shape=shape, affine=affine).array
    image = kind(array, affine)
    for key, value in changes.items():
        if key in ("sform", "qform"):
            getattr(image, f"set_{key}")(None if value is None else affine, code=0 if value is None else value)
        elif key == "slope":
            image = kind(np.rint(array / value[0]).astype(np.int16), affine)
            image.header.set_slope_inter(*value)
        elif key == "swapped":
            image = kind(array, affine, image.header.as_byteswapped(">"))
    nib.save(image, path)


def as_itk(path: Path, affine: np.ndarray) -> None:
    volume = head(affine=affine)
    lps = LPS_TO_RAS @ affine
    image = itk.image_from_array(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / volume.spacing)))
    itk.imwrite(image, str(path))


REFERENCES: dict[str, Any] = {
    "RAS.nii.gz": lambda path: save(path, turned("RAS")),
    "LAS.nii.gz": lambda path: save(path, turned("LAS")),
    "LPS.nii": lambda path: save(path, AFFINE),
    "sagittal-PSR.nii.gz": lambda path: save(path, turned("PSR")),
    "oblique.nii.gz": lambda path: save(path, oblique(), sform=1, qform=1),
    "oblique-qform-only.nii.gz": lambda path: save(path, oblique(), sform=None, qform=2),
    "no-codes.nii.gz": lambda path: save(path, centred(np.diag([-2, 2, 3, 1.0])), sform=None, qform=None),
    "big-endian.nii.gz": lambda path: save(path, AFFINE, swapped=True),
    "scaled.nii.gz": lambda path: save(path, AFFINE, slope=(0.05, 0)),
    "nifti2.nii.gz": lambda path: save(path, oblique() + 1e-9, kind=nib.Nifti2Image),
    "metaimage.mha": lambda path: as_itk(path, oblique()),
    "nrrd.nrrd": lambda path: as_itk(path, AFFINE),
}  # fmt: skip


@pytest.mark.parametrize("crop", [None, (40, 9)])
@pytest.mark.parametrize("name", REFERENCES)
def test_the_result_lies_where_the_reference_lies(tmp_path, name, crop):
    path = tmp_path / name
    REFERENCES[name](path)
    reference = read_volume(path)
    subject = Subject("ann", "toy", {"T1": path, "T2": written(tmp_path, T2=head()).images["T2"]})
    item = through(subject, maker(Preset(crop=crop)), tmp_path / "out")
    out = tmp_path / "out" / "ann" / "PD_synthetic.nii.gz"
    made = nib.load(out)
    assert made.shape == reference.shape
    assert made.get_data_dtype() == np.float32
    if path.name.endswith(("nii", "nii.gz")):
        np.testing.assert_array_equal(made.affine, nib.load(path).affine)
        for code in ("sform_code", "qform_code"):
            assert made.header[code] == nib.load(path).header[code]
    np.testing.assert_allclose(made.affine, reference.affine, atol=1e-5)

    top = item["prepared"].images["T1"]["range"][1]
    expected = np.minimum(reference.array / top, 1)
    voxels = made.get_fdata()
    np.testing.assert_array_equal(voxels.astype(np.float32), item["pred"][0].numpy())
    np.testing.assert_allclose(voxels, expected, atol=1e-6)  # a crop is for training: here nothing is cut off

    if "nifti2" in name:
        return  # which ITK does not read
    ours, theirs = (itk.imread(str(file), itk.F) for file in (out, path))
    for of in ("GetSpacing", "GetOrigin"):
        np.testing.assert_allclose(getattr(ours, of)(), getattr(theirs, of)(), atol=2e-5)
    np.testing.assert_allclose(*(itk.array_from_matrix(image.GetDirection()) for image in (ours, theirs)), atol=1e-6)
    np.testing.assert_allclose(itk.array_from_image(ours).T, voxels, atol=1e-6)


def test_another_spacing_and_size_are_undone(tmp_path):
    subject = written(tmp_path)
    made = maker(Preset(spacing=(1, 1, None), crop=(60, 64), size=(72, 70)))
    item = through(subject, made, tmp_path / "out")
    assert item["prepared_pred"].shape == (1, 72, 70, 10)
    voxels = nib.load(tmp_path / "out" / "ann" / "PD_synthetic.nii.gz").get_fdata()
    expected = np.minimum(head().array / item["prepared"].images["T1"]["range"][1], 1)
    assert 0 <= voxels.min() < voxels.max() <= 1
    assert np.abs(voxels - expected)[expected > 0.8].mean() < 0.03
    spot = np.unravel_index(voxels.argmax(), SHAPE)
    assert (
        np.linalg.norm(apply_affine(AFFINE, spot) - apply_affine(AFFINE, np.unravel_index(expected.argmax(), SHAPE)))
        < 3
    )


def test_what_one_source_shows_lies_on_the_reference_after_registration(tmp_path, monkeypatch):
    """The world of T2 is shifted; its image given back by the network must lie on T1's."""
    shift = np.eye(4)
    shift[:3, 3] = (6, -4, 3)
    monkeypatch.setattr(gridded, "register_rigid", lambda *_: shift)
    subject = written(tmp_path, T1=head(), T2=Volume(head().array, shift @ AFFINE))
    item = through(subject, maker(Preset(register="rigid")), tmp_path / "out", channel=1)
    expected = np.minimum(head().array / item["prepared"].images["T2"]["range"][1], 1)
    np.testing.assert_allclose(item["pred"][0], expected, atol=1e-5)
    sources = json.loads((tmp_path / "out" / "ann" / "PD_synthetic.json").read_text())["sources"]
    assert sources["T2"]["to_source"] == shift.tolist()
    assert sources["T2"]["moved_mm"] == pytest.approx(np.linalg.norm([6, -4, 3]))


# What the files say --------------------------------------------------------------------------------------------------


def test_a_synthetic_t1c_says_that_it_cannot_know_enhancement():
    said = maker().sidecar("T1C")["warning"]
    assert said.startswith(maker().sidecar("PD")["warning"])
    assert said.endswith("enhancement in this T1C is guessed, and where it shows none there may be some.")


def test_a_file_says_that_it_is_synthetic_in_its_header_and_beside_it(tmp_path):
    through(written(tmp_path), maker(), tmp_path / "out")
    folder = tmp_path / "out" / "ann"
    assert sorted(file.name for file in folder.iterdir()) == ["PD_synthetic.json", "PD_synthetic.nii.gz"]
    raw = gzip.decompress((folder / "PD_synthetic.nii.gz").read_bytes())
    words = "SYNTHETIC PD by toy_net 1.0 from T1,T2, weights ffffffffffff"
    assert raw[148:228].rstrip(b"\0").decode() == words  # where any reader finds it
    header = nib.load(folder / "PD_synthetic.nii.gz").header
    assert header["descrip"].item().decode() == words
    assert (header["cal_min"], header["cal_max"]) == (0, 1)
    record = json.loads((folder / "PD_synthetic.json").read_text())
    assert record["synthetic"] is True
    assert "SYNTHETIC" in record["warning"]
    assert "not to be used clinically" in record["warning"]
    assert record["intensities"] == "0 to 1 without a unit; 1 is the 99.5th percentile of PD's foreground"
    assert (record["target"], record["bundle"], record["version"]) == ("PD", "toy_net", "1.0")
    assert (record["subject"], record["reference"], record["weights_sha256"]) == ("ann", "T1", "f" * 64)
    assert {name: source["file"] for name, source in record["sources"].items()} == {
        "T1": "T1.nii.gz",
        "T2": "T2.nii.gz",
    }
    assert {"monai_ext", "torch", "monai"} <= set(record["software"])


def test_every_target_has_its_file(tmp_path):
    through(written(tmp_path), maker(target=("PD", "FLAIR")), tmp_path / "out")
    assert len(list((tmp_path / "out" / "ann").glob("*_synthetic.nii.gz"))) == 2


def test_the_quick_look_shows_sources_and_synthesis(tmp_path):
    through(written(tmp_path), maker(), tmp_path / "out", quick_look=True)
    picture = np.asarray(Image.open(tmp_path / "out" / "ann" / "PD_synthetic.png"), dtype=float)
    height = (picture.shape[0] - 2 * MARGIN) // 3
    rows = [picture[n * (height + MARGIN) :][TITLE:height] for n in range(3)]
    assert min(row.max() for row in rows) > 200
    np.testing.assert_array_equal(rows[0], rows[2])  # the network gave T1 back


def test_what_is_there_is_kept_unless_it_is_to_be_written_over(tmp_path):
    subject, out = written(tmp_path), tmp_path / "out"
    data = {"subject": subject}
    keep = KeepResultsd(maker(), output_dir=out)
    assert keep(data) == data
    through(subject, maker(), out)
    with pytest.raises(AlreadyDone):
        keep(data)
    assert KeepResultsd(maker(), output_dir=out, overwrite=True)(data) == data
    path = out / "ann" / "PD_synthetic.nii.gz"
    for other in (maker(weights="0" * 64), maker(Preset(crop=(9, 9)))):
        with pytest.raises(SubjectError, match=rf"ann: {path}: is there already, .* or overwrite true") as fault:
            KeepResultsd(other, output_dir=out)(data)
        assert not isinstance(fault.value, AlreadyDone)
    write_volume(subject.images["T2"], head(seed=7))
    with pytest.raises(SubjectError, match="is kept: give another output_dir"):
        keep(data)


def test_what_was_left_without_its_sidecar_is_kept_too(tmp_path):
    subject, out = written(tmp_path), tmp_path / "out"
    (out / "ann").mkdir(parents=True)
    (out / "ann" / "PD_synthetic.nii.gz").write_bytes(b"mine")
    with pytest.raises(SubjectError, match="is there already"):
        KeepResultsd(maker(), output_dir=out)({"subject": subject})


def test_of_two_targets_the_one_that_is_lacking_is_made(tmp_path):
    subject, made, out = written(tmp_path), maker(target=("PD", "FLAIR")), tmp_path / "out"
    through(subject, made, out)
    (out / "ann" / "FLAIR_synthetic.nii.gz").unlink()
    KeepResultsd(made, output_dir=out)({"subject": subject})


def test_a_full_disk_leaves_what_was_there_and_no_half_file(tmp_path, monkeypatch):
    subject, out = written(tmp_path), tmp_path / "out"
    through(subject, maker(), out)
    before = {file.name: file.read_bytes() for file in (out / "ann").iterdir()}

    def full(_image: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(transforms.nib, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        through(subject, maker(weights="0" * 64), out, quick_look=True)
    assert {file.name: file.read_bytes() for file in (out / "ann").iterdir()} == before


# Really acquired cases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ms_raw_patient01", "glioma_du7294"])
def test_a_real_case_comes_back_onto_its_own_grid(tmp_path, real_data, case):
    files = {"ms_raw_patient01": ("T1W", "T2W"), "glioma_du7294": ("t1", "t2")}[case]
    paths = [real_data / case / f"{name}.nii.gz" for name in files]
    subject = Subject(case, "real", dict(zip(("T1", "T2"), paths, strict=True)))
    item = through(subject, maker(Preset(crop=(240, 240))), tmp_path)
    made, reference = nib.load(tmp_path / case / "PD_synthetic.nii.gz"), nib.load(paths[0])
    np.testing.assert_array_equal(made.affine, reference.affine)
    expected = (reference.get_fdata() / item["prepared"].images["T1"]["range"][1]).clip(0, 1)
    voxels = made.get_fdata()
    shown = voxels > 0
    assert shown.sum() > 0.8 * (expected > 0.05).sum()
    np.testing.assert_allclose(voxels[shown], expected[shown], atol=1e-4)


def test_a_real_pair_27_mm_apart_is_brought_together(real_data):
    folder = real_data / "epi_flash_pair"
    subject = Subject("pair", "real", {"T1": folder / "flash_t1.nii.gz", "T2": folder / "epi_t2.nii.gz"})
    item = PrepareSubjectd(maker(Preset(register="rigid")))({"subject": subject})
    t1, t2 = item["image"].numpy()
    both = ((t1 > 0.2) & (t2 > 0.2)).sum() / ((t1 > 0.2) | (t2 > 0.2)).sum()
    apart = PrepareSubjectd(maker())({"subject": subject})["image"].numpy()
    before = ((apart[0] > 0.2) & (apart[1] > 0.2)).sum() / ((apart[0] > 0.2) | (apart[1] > 0.2)).sum()
    assert 10 < item["prepared"].images["T2"]["moved_mm"] < 40
    assert both > 0.75 > before

"""A patient's synthesis covers the whole head, at the voxel size that the weights know, and says so.

The network gives its first source back, so what comes out has to be the reference image, wherever the head lies.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from torch import nn

from monai_ext.data import gridded
from monai_ext.data.datalist import Datalist, Subject
from monai_ext.data.masks import foreground
from monai_ext.data.prepare import prepare
from monai_ext.data.presets import PRESETS, Preset
from monai_ext.data.volumes import Volume, read_volume, write_volume
from monai_ext.inference.inferers import AnySourcesInferer, SlicesInferer
from monai_ext.inference.maker import Maker, load_maker
from monai_ext.inference.resolution import Resolution
from monai_ext.inference.transforms import PrepareSubjectd, RestoreSubjectd, SaveSyntheticd
from monai_ext.modalities import make_task
from monai_ext.networks import PMMSynth
from monai_ext.networks.pmm_synth import OneTask
from monai_ext.training.description import prepared_as
from monai_ext.weights import save_weights


def ellipsoid(shape: tuple[int, ...], spacing: tuple[float, ...], centre: tuple[float, ...] = (0, 0, 0)) -> Volume:
    """A smooth head that almost fills the field of view, or one that lies off its middle."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    radii = np.maximum(0.46 * np.array(spacing) * shape - np.abs(centre), spacing)
    distance = np.linalg.norm((world - centre) / radii, axis=-1)
    array = np.where(distance < 1, 600 + 300 * np.cos(5 * distance), 0)
    return Volume(array.astype(np.float32), affine)


def written(folder: Path, **images: Volume) -> Subject:
    files = {contrast: folder / f"{contrast}.nii.gz" for contrast in images}
    folder.mkdir(parents=True, exist_ok=True)
    for contrast, volume in images.items():
        write_volume(files[contrast], volume)
    return Subject("ann", "toy", files)


def made_by(subject: Subject, preset: Preset, out: Path, **changes: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What a network that gives its first source back makes of a patient, and its sidecar."""
    sources = tuple(subject.images)
    maker = Maker("toy_net", "1", "f" * 64, sources, ("PD",), replace(preset, reference=sources), **changes)
    item = PrepareSubjectd(maker)({"subject": subject})
    image = item["image"][None]
    item["pred"] = SlicesInferer(amp=False)(image, lambda x: x[:, :1])[0]
    SaveSyntheticd(output_dir=out)(RestoreSubjectd()(item))
    path = out / subject.name / "PD_synthetic.nii.gz"
    reference = nib.load(subject.images[sources[0]]) if changes == {} else None
    made = nib.load(path)
    if reference is not None:
        assert made.shape == reference.shape
        assert made.affine.tobytes() == reference.affine.tobytes()
    return made.get_fdata(), json.loads(path.with_name("PD_synthetic.json").read_text())


def covered(made: np.ndarray, reference: Volume) -> float:
    """The share of the head in which something was made; cavities that the reference shows as zero are none of it."""
    head = foreground(reference) & (reference.array > 0)
    return float((made[head] > 0).mean())


HEADS = {
    "256 x 256 and weights of 112": ((256, 256, 6), (1.0, 1.0, 3.0), Preset(crop=(112, 112))),
    "348 x 384 and ixi's 256": ((348, 384, 5), (0.65, 0.65, 4.0), PRESETS["ixi"]),
    "wider than pmm's 192": ((220, 230, 6), (1.0, 1.0, 3.0), PRESETS["pmm"]),
    "enlarged": ((250, 200, 5), (1.0, 1.0, 3.0), PRESETS["hmf-brats"]),
    "odd sizes": ((101, 83, 7), (1.3, 1.1, 2.0), Preset(crop=(64, 64))),
    "5 mm slices": ((120, 130, 9), (1.0, 1.0, 5.0), Preset(crop=(64, 64), trained_spacing=(1.0, 1.0, None))),
    "smaller than a divisor": ((7, 5, 6), (9.0, 11.0, 5.0), Preset()),
    "2 mm weights on 0.9 mm": ((180, 200, 6), (0.9, 0.9, 3.0), Preset(trained_spacing=(2.0, 2.0, None))),
    "5 mm weights on 0.9 mm": ((180, 200, 6), (0.9, 0.9, 3.0), Preset(trained_spacing=(5.0, 5.0, None))),
    "1 mm weights on 2 mm": ((80, 90, 6), (2.0, 2.0, 3.0), Preset(crop=(64, 64), trained_spacing=(1.0, 1.0, None))),
    "sagittal slices": ((30, 160, 160), (5.0, 1.0, 1.0), Preset(trained_spacing=(1.0, 1.0, None))),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("off", [False, True], ids=["middle", "aside"])
def test_all_of_the_head_is_made_where_it_is(tmp_path: Path, case: str, off: bool):
    shape, spacing, preset = HEADS[case]
    head = ellipsoid(
        shape, spacing, tuple(0.3 * s * n for s, n in zip(spacing, shape, strict=True)) if off else (0,) * 3
    )
    subject = written(tmp_path, T1=head)
    made, about = made_by(subject, preset, tmp_path / "out")
    assert covered(made, head) >= 0.99
    assert about["coverage"] >= 0.99
    expected = np.minimum(head.array / about["sources"]["T1"]["range"][1], 1)
    step = max((known or 0) / own for known, own in zip(preset.trained_spacing or (0,) * 3, spacing, strict=True))
    inner = expected > 0
    assert np.abs(made - expected)[inner].mean() < (0.1 if step > 3 else 0.05)  # of smooth rings
    if preset.trained_spacing is not None:
        np.testing.assert_allclose(about["grid"]["spacing"][:2], preset.trained_spacing[:2], rtol=0.1)


def test_where_the_voxels_are_alike_they_are_left_alone(tmp_path: Path):
    """Heads differ by more than a tenth: to interpolate would cost sharpness and gain nothing."""
    head = ellipsoid((90, 100, 6), (0.94, 0.94, 3.0))
    made, about = made_by(
        written(tmp_path, T1=head), Preset(crop=(64, 64), trained_spacing=(1.0, 1.0, None)), tmp_path / "out"
    )
    np.testing.assert_allclose(made, np.minimum(head.array / about["sources"]["T1"]["range"][1], 1), atol=1e-6)
    assert about["grid"]["voxel_size"] == "the patient's own, near that of training"


def test_a_finer_output_covers_the_head_too(tmp_path: Path):
    head = ellipsoid((120, 140, 5), (1.0, 1.0, 3.0))
    subject = written(tmp_path, T1=head)
    made, about = made_by(subject, Preset(crop=(64, 64)), tmp_path / "out", resolution=Resolution(2))
    assert made.shape == (240, 280, 5)
    assert covered(made[::2, ::2], head) >= 0.99
    assert about["coverage"] >= 0.99


def test_coverage_counts_what_no_source_sees_as_not_covered(tmp_path: Path):
    head = ellipsoid((60, 60, 20), (3.0, 3.0, 5.0))
    item = PrepareSubjectd(Maker("toy_net", "1", "f" * 64, ("T1",), ("PD",), Preset()))(
        {"subject": written(tmp_path, T1=head)}
    )
    assert item["prepared"].coverage == 1
    grid = gridded.Gridded(written(tmp_path, T1=head), preset=Preset(), root=tmp_path, whole=True)
    assert 0.4 < grid.coverage(np.arange(20) < 10) < 0.6


def test_slices_that_a_source_does_not_reach_are_black_and_told_where_the_network_takes_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    head = ellipsoid((40, 44, 20), (4.0, 4.0, 5.0))
    short = Volume(
        head.array[:, :, 8:], head.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 8], [0, 0, 0, 1]])
    )
    made, about = made_by(written(tmp_path, T1=head, T2=short), Preset(), tmp_path / "out")
    assert not made[:, :, :8].any()
    assert covered(made[:, :, 8:], Volume(head.array[:, :, 8:], head.affine)) > 0.99
    assert 0.5 < about["coverage"] < 0.75
    assert "what T2 does not show is left black" in caplog.text


def test_a_network_of_any_sources_is_told_in_which_slices_each_is():
    network = PMMSynth(modalities=("T1", "T2", "FLAIR"), width=4, personalized=False).eval()
    task = make_task(["T1", "T2"], "FLAIR", modalities=["T1", "T2", "FLAIR"])
    maker = Maker("toy_net", "1", "f" * 64, ("T1", "T2"), ("FLAIR",), Preset(), task=task)
    volume = torch.rand(1, 3, 24, 32, 6, generator=torch.Generator().manual_seed(0))
    volume[:, 2] = 0
    volume[:, 1, ..., :2] = 0
    made = AnySourcesInferer(maker=maker, amp=False)(volume, network)
    for slices, given in ((slice(0, 2), (True, False, False)), (slice(2, 6), (True, True, False))):
        asked = OneTask(network, given=torch.tensor(given), site=None, wanted=torch.tensor([False, False, True]))
        alone = SlicesInferer(amp=False)(volume[..., slices], asked)
        torch.testing.assert_close(made[..., slices], alone)
    assert bool(made[:, 2].any())
    assert not bool(made[:, :2].any())


# Scans on different grids --------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[Volume]:
    calls: list[Volume] = []

    def register(_: Volume, moving: Volume) -> np.ndarray:
        calls.append(moving)
        return np.eye(4)

    monkeypatch.setattr(gridded, "register_rigid", register)
    return calls


def toy_bundle(tmp_path: Path, network: nn.Module, **about: Any) -> Path:
    root = tmp_path / "toy_net"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "1"}))
    save_weights(root / "models" / "model.pt", network, about)
    return root


@pytest.mark.parametrize(
    ("asked", "other", "how"),
    [
        (None, (2.0, 2.0, 4.0), "rigid registration"),
        (None, (2.0, 2.0, 5.0), "its grid"),
        ("none", (2.0, 2.0, 4.0), "its header"),
        ("rigid", (2.0, 2.0, 5.0), "rigid registration"),
    ],
)
def test_what_training_data_needed_not_a_patient_may(tmp_path: Path, registered: list, asked, other, how):
    network = nn.Conv2d(2, 1, 1)
    root = toy_bundle(tmp_path, network, preset=asdict(Preset()))
    subject = written(tmp_path, T1=ellipsoid((40, 40, 12), (2.0, 2.0, 5.0)), T2=ellipsoid((40, 40, 12), other))
    maker = load_maker(
        network, root / "models" / "model.pt", bundle_root=root, task=make_task(["T1", "T2"], "PD"), register=asked
    )
    item = PrepareSubjectd(maker)({"subject": subject})
    assert item["prepared"].images["T2"]["placed_by"] == how
    assert len(registered) == (how == "rigid registration")


def test_what_cannot_be_registered_lies_where_its_header_says_and_is_told(tmp_path: Path, caplog):
    thin = ellipsoid((40, 40, 3), (2.0, 2.0, 4.0))
    subject = written(tmp_path, T1=ellipsoid((40, 40, 12), (2.0, 2.0, 5.0)), T2=thin)
    maker = Maker("toy_net", "1", "f" * 64, ("T1", "T2"), ("PD",), Preset(register="differing"))
    item = PrepareSubjectd(maker)({"subject": subject})
    assert item["prepared"].images["T2"]["placed_by"] == "its header"
    assert "too little to register" in caplog.text


# What weights know ---------------------------------------------------------------------------------------------------


def test_weights_know_the_spacing_that_they_were_trained_at(tmp_path: Path):
    subject = written(tmp_path / "raw", T1=ellipsoid((40, 44, 12), (2.0, 1.5, 5.0)))
    prepare(
        Datalist("toy", tmp_path, {"training": [subject]}),
        tmp_path / "out",
        preset=Preset(crop=(20, 20), size=(40, 40)),
    )
    preset = prepared_as(tmp_path / "out" / "datalist.json")
    assert preset is not None
    assert preset["trained_spacing"] == pytest.approx([1.0, 0.75, 5.0])
    for network, last in ((nn.Conv2d(1, 1, 1), None), (nn.Conv3d(1, 1, 1), 5.0)):
        root = toy_bundle(tmp_path / type(network).__name__, network, preset=preset)
        options: dict[str, Any] = {"bundle_root": root, "task": make_task(["T1"], "PD")}
        for given in (None, "ixi"):  # whichever preset is asked for, they know no other
            maker = load_maker(network, root / "models" / "model.pt", preset=given, **options)
            assert maker.preset.trained_spacing == (1.0, 0.75, last)


def test_weights_that_know_no_spacing_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    network = nn.Conv2d(1, 1, 1)
    root = toy_bundle(tmp_path, network, preset={"crop": [64, 64]})
    load_maker(network, root / "models" / "model.pt", bundle_root=root, task=make_task(["T1"], "PD"))
    assert "do not say at which voxel size" in caplog.text
    _, about = made_by(written(tmp_path, T1=ellipsoid((40, 44, 6), (2.0, 2.0, 5.0))), Preset(), tmp_path / "out")
    assert "do not say" in about["grid"]["voxel_size"]


@pytest.mark.parametrize(
    "value", ["1 mm", (1.0, 1.0), (0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0), (1e-9,) * 3, ("1",) * 3]
)
def test_a_spacing_from_a_file_is_checked(value: Any):
    with pytest.raises(ValueError, match="trained_spacing must be three voxel sizes"):
        Preset(trained_spacing=value)


# Really acquired -----------------------------------------------------------------------------------------------------

REAL = {
    "ms_patient26": ("T1", "T2"), "ms_raw_patient01": ("T1W", "FLAIR"), "ms_raw_patient03_study2": ("study2_T2W",),
    "ms_raw_patient04_study1": ("study1_FLAIR",), "glioma_du7294": ("t1", "fla"), "stroke_isles0001": ("dwi",),
    "mni152_2mm": ("T1",), "epi_flash_pair": ("flash_t1",),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
def test_a_real_head_is_covered(tmp_path: Path, real_data: Path, name: str):
    preset = Preset(crop=(112, 112), trained_spacing=(1.0, 1.0, None))
    for stem in REAL[name]:
        path = real_data / name / f"{stem}.nii.gz"
        made, about = made_by(Subject("ann", "toy", {"T1": path}), preset, tmp_path / stem)
        assert covered(made, read_volume(path)) >= 0.99
        assert about["coverage"] >= 0.99


@pytest.mark.long
def test_every_series_of_a_real_study_is_covered(tmp_path: Path, real_data: Path):
    pytest.importorskip("pydicom")
    from monai_ext.data.dicom import read_series, read_study, sorted_slices

    for number, series in enumerate(read_study(real_data / "dicom_volunteer")):
        volume = read_series(sorted_slices(series))
        subject = written(tmp_path / str(number), T1=volume)
        made, about = made_by(subject, Preset(crop=(112, 112), trained_spacing=(1.0, 1.0, None)), tmp_path / "out")
        assert covered(made, read_volume(subject.images["T1"])) >= 0.99
        assert about["coverage"] >= 0.99

"""Outputs at a resolution that was not acquired: the pixels asked for, where they lie, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from torch.nn.functional import interpolate

from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.presets import Preset
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.inference.inferers import SlicesInferer
from monai_ext.inference.maker import Maker
from monai_ext.inference.resolution import Resolution, prepare_batch
from monai_ext.inference.subjects import collate
from monai_ext.inference.transforms import KeepResultsd, PrepareSubjectd, RestoreSubjectd, SaveSyntheticd

AXIAL = np.array([[-2.0, 0, 0, 23], [0, -2, 0, 27], [0, 0, 3, -13.5], [0, 0, 0, 1]])  # left, posterior, superior
SAGITTAL = np.array([[0, 0, 2.0, -23], [1.5, 0, 0, -20], [0, 2.5, 0, -15], [0, 0, 0, 1]])


def subject(folder: Path, affine: np.ndarray, shape: tuple[int, ...]) -> Subject:
    """A smooth ball, brightest a little off its middle."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    array = 100 * np.exp(-(((world - [3, -2, 1]) / 9) ** 2).sum(-1))
    folder.mkdir()
    write_volume(folder / "T1.nii.gz", Volume(array.astype(np.float32), affine))
    return Subject(folder.name, "toy", {"T1": folder / "T1.nii.gz"})


def enlarge(x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
    return x if output_size is None else interpolate(x, output_size, mode="bicubic")


def synthesised(case: Subject, out: Path, resolution: Resolution, preset: Preset | None = None, **options: Any) -> Path:
    maker = Maker("toy_net", "1.0", "f" * 64, ("T1",), ("PD",), preset or Preset(), resolution)
    item = PrepareSubjectd(maker)(KeepResultsd(maker, output_dir=out)({"subject": case}))
    image, _, *more = prepare_batch(collate([item]))
    keywords = more[1] if more else {}
    item["pred"] = SlicesInferer(amp=False)(image, enlarge, **keywords)[0]
    SaveSyntheticd(output_dir=out, **options)(RestoreSubjectd()(item))
    return out / case.name / "PD_synthetic.nii.gz"


@pytest.mark.parametrize(
    ("affine", "shape", "resolution", "expected", "zooms"),
    [
        (AXIAL, (24, 28, 10), Resolution(2), (48, 56, 10), (1, 1, 3)),
        (AXIAL, (24, 28, 10), Resolution(spacing=0.5), (96, 112, 10), (0.5, 0.5, 3)),
        (AXIAL, (24, 28, 10), Resolution(0.5), (12, 14, 10), (4, 4, 3)),
        (SAGITTAL, (28, 12, 24), Resolution(2), (56, 12, 48), (0.75, 2.5, 1)),
        (SAGITTAL, (28, 12, 24), Resolution(spacing=0.8), (52, 12, 60), (0.8, 2.5, 0.8)),
    ],
)
@pytest.mark.parametrize(
    "preset", [Preset(), Preset(crop=(24, 24), size=(32, 32)), Preset(spacing=(1, 1, None))], ids=("own", "cut", "1mm")
)
def test_it_has_the_pixels_asked_for_and_shows_each_point_where_it_is(
    tmp_path: Path, affine: np.ndarray, shape: tuple, resolution: Resolution, expected: tuple, zooms: tuple, preset
):
    case = subject(tmp_path / "ann", affine, shape)
    made = nib.load(synthesised(case, tmp_path / "out", resolution, preset))
    assert made.shape == expected
    np.testing.assert_allclose(made.header.get_zooms(), zooms, rtol=1e-5)
    assert nib.aff2axcodes(made.affine) == nib.aff2axcodes(affine)
    np.testing.assert_allclose(made.get_qform(), made.affine, atol=1e-4)
    voxels = made.get_fdata()
    world = apply_affine(made.affine, np.argwhere(voxels > 0.3 * voxels.max()))
    weights = voxels[voxels > 0.3 * voxels.max()]
    centre = (world * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(centre, [3, -2, 1], atol=0.5)  # a quarter of a voxel of what was acquired


def test_the_field_of_view_keeps_its_corner(tmp_path: Path):
    case = subject(tmp_path / "ann", AXIAL, (24, 28, 10))
    made = nib.load(synthesised(case, tmp_path / "out", Resolution(2)))
    corner = apply_affine(made.affine, [-0.5, -0.5, -0.5])
    np.testing.assert_allclose(corner, apply_affine(AXIAL, [-0.5, -0.5, -0.5]), atol=1e-5)


def test_its_sidecar_tells_the_resolution_and_another_is_another_result(tmp_path: Path):
    case = subject(tmp_path / "ann", AXIAL, (24, 28, 10))
    path = synthesised(case, tmp_path / "out", Resolution(2), quick_look=True)
    about = json.loads(path.with_name("PD_synthetic.json").read_text())
    assert about["resolution"] == {"scale": 2, "spacing": None}
    assert path.with_name("PD_synthetic.png").stat().st_size > 1000
    with pytest.raises(SubjectError, match="of other weights, options or scans"):
        synthesised(case, tmp_path / "out", Resolution())


def test_a_scale_of_one_is_the_references_own_grid_to_the_bit(tmp_path: Path):
    case = subject(tmp_path / "ann", AXIAL, (24, 28, 10))
    made = nib.load(synthesised(case, tmp_path / "out", Resolution()))
    np.testing.assert_array_equal(made.affine, nib.load(case.images["T1"]).affine)


@pytest.mark.parametrize("resolution", [Resolution(17), Resolution(spacing=0.01)])
def test_an_absurd_resolution_is_the_subjects_fault_and_names_the_limit(tmp_path: Path, resolution: Resolution):
    case = subject(tmp_path / "ann", AXIAL, (24, 28, 10))
    with pytest.raises(SubjectError, match="output_size must be from 1 to 16 times the input's 24 x 28 a side"):
        synthesised(case, tmp_path / "out", resolution)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale must be finite and above 0, got 0"),
        ({"spacing": -1.0}, "spacing must be finite and above 0 mm, got -1"),
        ({"scale": 2, "spacing": 0.5}, "give scale or spacing, got scale=2, spacing=0.5"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(Resolution(), **options)

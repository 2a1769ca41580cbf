"""Masks hold the head or the brain and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.gridded import mask_file
from monai_ext.data.masks import _deeper, _filled, foreground, has_zero_background, otsu, otsu_brain, zero_background
from monai_ext.data.presets import Preset
from monai_ext.data.resampling import resample
from monai_ext.data.volumes import Volume, read_volume

SHAPE = (90, 90, 70)
AFFINE = np.diag([2.5, 2.5, 2.5, 1.0])
PLACES = np.moveaxis(np.indices(SHAPE), 0, -1) * 2.5 - 2.5 * (np.array(SHAPE) - 1) / 2
RADIUS = np.linalg.norm(PLACES / [0.9, 1.1, 0.85], axis=-1)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture
def with_skull() -> Volume:
    """A brain, dark bone around it, bright scalp, and a bridge from brain to scalp like the optic nerves."""
    rng = np.random.default_rng(0)
    array = np.where(RADIUS < 70, 0.6, 0.05) + np.where((RADIUS > 78) & (RADIUS < 86), 0.9, 0.0)
    array[(np.abs(PLACES[..., 0]) < 5) & (np.abs(PLACES[..., 2]) < 5) & (PLACES[..., 1] > 0) & (RADIUS < 80)] = 0.6
    array[RADIUS < 12] = 0.08  # a ventricle
    array[RADIUS > 86] = 0.0
    return Volume((np.abs(array + rng.normal(0, 0.02, SHAPE))).astype(np.float32), AFFINE)


def test_otsu_agrees_with_another_implementation():
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 30, 3000), rng.uniform(70, 100, 2000)]).astype(np.float32)
    kept = values[values <= np.percentile(values, 99.5)]
    ours, theirs = otsu(values), filters.threshold_otsu(kept)
    np.testing.assert_array_equal(values > ours, values > theirs)


def test_the_brain_is_peeled_out_of_its_skull(with_skull):
    brain = otsu_brain(with_skull)
    assert dice(brain, RADIUS < 70) > 0.95
    assert not brain[RADIUS > 80].any()
    assert brain[RADIUS < 12].all()


@pytest.mark.parametrize("shape", [(30, 41, 23), (40, 1, 3), (2, 25, 60)])
def test_depth_and_holes_are_those_of_a_distance_transform_and_of_a_flood(shape):
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.7, 0.99, 0.999):
        mask = rng.random(shape) < share
        mask[0, 0, 0] = False  # else a distance transform knows no outside
        for depth in (8.0, 10.0):
            np.testing.assert_array_equal(_deeper(mask, depth), 2 * ndimage.distance_transform_edt(mask) > depth)
        np.testing.assert_array_equal(_filled(mask), ndimage.binary_fill_holes(mask))
    assert _deeper(np.ones(shape, bool), 8.0).all()


def test_the_foreground_is_the_whole_head(with_skull):
    assert not has_zero_background(with_skull)
    assert dice(foreground(with_skull), RADIUS < 86) > 0.97


def test_a_zero_background_is_taken_as_it_is():
    array = np.where(RADIUS < 70, 0.5, 0).astype(np.float32)
    array[RADIUS < 20] = 0  # a dark ventricle inside
    array[RADIUS < 10] = -0.1  # undershoot
    array[0, 0, 0] = 3  # a speck outside
    volume = Volume(array, AFFINE)
    np.testing.assert_array_equal(zero_background(volume), RADIUS < 70)
    np.testing.assert_array_equal(foreground(volume), RADIUS < 70)


def test_no_zero_background_is_refused_with_what_to_do(with_skull):
    with pytest.raises(ValueError, match=r"0% of the voxels are zero, .*at least 30%: give a mask file, or otsu"):
        zero_background(with_skull)


def test_an_image_without_a_brain_is_refused():
    shell = Volume(np.where((RADIUS > 78) & (RADIUS < 84), 0.9, 0).astype(np.float32), AFFINE)
    with pytest.raises(ValueError, match=r"no brain was found: nothing bright is 8.0 mm deep; give a mask file"):
        otsu_brain(shell)


def test_a_template_is_stripped_as_others_strip_it(real_data):
    datasets = pytest.importorskip("nilearn.datasets")
    t1 = read_volume(real_data / "mni152_2mm" / "T1.nii.gz")
    other = datasets.load_mni152_brain_mask(resolution=2)
    theirs = resample(Volume(other.get_fdata().astype(np.float32), other.affine), t1.shape, t1.affine, order=0)
    assert dice(otsu_brain(t1), theirs.array > 0) > 0.95


@pytest.mark.parametrize(
    "pattern", ["{subject.__class__}.nii", "{name:9999999999}", "{x}", "{0}", "{name", "{}", "{{name}}"]
)
def test_a_pattern_has_names_alone_in_it_and_follows_nothing(pattern: str, tmp_path: Path):
    subject = Subject("ann", "d", {}, session="2")
    with pytest.raises(SubjectError, match=r"brain_mask may have {subject}, {session}, {name} in it, got"):
        mask_file(subject, preset=Preset(brain_mask=pattern), root=tmp_path)
    named = mask_file(subject, preset=Preset(brain_mask="{subject}/{session}-{name}.nii"), root=tmp_path)
    assert named == tmp_path / "ann" / "2-ann_2.nii"

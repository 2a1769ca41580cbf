"""Registration finds offsets that are known, from near and from afar, and always the same."""

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_ext.data import registration
from monai_ext.data.registration import register_rigid
from monai_ext.data.resampling import resample
from monai_ext.data.volumes import Volume, read_volume

SHAPE, SPACING = (48, 56, 44), 3.5


@pytest.fixture(scope="module")
def head() -> Volume:
    """Something with the size and the folds of a brain inside a skull, which no rotation maps to itself."""
    rng = np.random.default_rng(0)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -SPACING * (np.array(SHAPE) - 1) / 2
    world = apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    radius = np.linalg.norm((world - [0, 4, -3]) / [62, 76, 58], axis=-1)
    folds = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    tissue = np.where(folds > 0.3 * folds.std(), 0.9, 0.55)
    tissue[radius > 0.9] = 0.15
    image = np.where(radius < 1, tissue, 0.0) + np.where((radius > 1.05) & (radius < 1.15), 0.8, 0.0)
    return Volume(ndimage.gaussian_filter(image, 0.6).astype(np.float32), affine)


def other_contrast(volume: Volume) -> Volume:
    """Dark where it was bright, as T2 is to T1, with noise."""
    rng = np.random.default_rng(1)
    array = np.interp(volume.array, [0, 0.1, 0.3, 0.6, 0.9], [0, 0.3, 1.0, 0.7, 0.45])
    return Volume((array + rng.normal(0, 0.02, array.shape)).astype(np.float32), volume.affine)


def rigid(*, degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    """The mean over a ball of the brain's size, in mm."""
    ball = np.random.default_rng(2).normal(size=(500, 3))
    ball *= 60 / np.linalg.norm(ball, axis=1, keepdims=True)
    return float(np.linalg.norm(apply_affine(found, ball) - apply_affine(truth, ball), axis=1).mean())


@pytest.mark.parametrize(
    ("degrees", "shift"), [((0, 0, 0), (0, 0, 0)), ((5, -4, 9), (9, -8, 7)), ((-8, 6, 5), (-4, 12, -8))]
)
def test_a_known_offset_is_found_to_half_a_millimetre(head, degrees, shift):
    truth = rigid(degrees=degrees, shift=shift)
    moving = resample(other_contrast(head), SHAPE, head.affine, to_volume=np.linalg.inv(truth))
    assert distance(register_rigid(head, moving), truth) < 0.5


def test_fields_of_view_far_apart_are_brought_together(head):
    truth = rigid(degrees=(4, 3, -5), shift=(400, -300, 250))
    other = other_contrast(head)
    assert distance(register_rigid(head, Volume(other.array, truth @ other.affine)), truth) < 0.5


def test_thick_slices_in_another_plane_are_registered(head):
    truth = rigid(degrees=(3, -2, 4), shift=(5, -6, 3))
    affine = head.affine @ np.array([[0, 0, 2.0, 0.5], [1, 0, 0, 0], [0, -1, 0, SHAPE[2] - 1], [0, 0, 0, 1]])
    moving = resample(other_contrast(head), (SHAPE[1], SHAPE[2], SHAPE[0] // 2), affine, to_volume=np.linalg.inv(truth))
    assert distance(register_rigid(head, moving), truth) < 1.0


def test_the_result_is_rigid_and_the_same_each_time(head):
    moving = other_contrast(Volume(head.array, rigid(degrees=(2, 3, 4), shift=(5, 6, 7)) @ head.affine))
    first, second = (register_rigid(head, moving) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[:3, :3] @ first[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(first[:3, :3]) > 0
    np.testing.assert_array_equal(first[3], [0, 0, 0, 1])


def test_values_below_zero_and_a_few_huge_ones_do_no_harm(head):
    truth = rigid(degrees=(3, 3, -3), shift=(6, 0, -6))
    other = other_contrast(head)
    array = other.array - 0.05
    array[20:22, 20:22, 20:22] = 1000
    assert distance(register_rigid(head, Volume(array, truth @ other.affine)), truth) < 0.5


def test_an_image_of_too_few_slices_is_refused(head):
    with pytest.raises(ValueError, match="covers 168 x 196 x 14 mm, too little to register: 20 mm is the least"):
        register_rigid(head, Volume(head.array[:, :, 20:24], head.affine))


def test_a_search_that_ends_nowhere_is_refused(head, monkeypatch):
    monkeypatch.setattr(registration, "_descend", lambda *_, **__: (np.nan, None))
    with pytest.raises(ValueError, match="not brought to overlap from any start"):
        register_rigid(head, head)


def test_a_phantom_is_registered_to_its_own_truth():
    pytest.importorskip("nilearn")
    from monai_ext.data.phantoms.patients import make_phantom
    from monai_ext.data.phantoms.sites import SITES

    phantom = make_phantom(SITES["healthy"], index=0, contrasts=("T1", "T2"), misalign=(15.0, 12.0))
    found = register_rigid(phantom.images["T1"], phantom.images["T2"])
    brain = apply_affine(phantom.brain.affine, np.argwhere(phantom.brain.array > 0.5))
    apart = apply_affine(found, brain) - apply_affine(phantom.offsets["T2"], brain)
    assert np.linalg.norm(apart, axis=1).mean() < 0.5


def test_a_real_pair_27_mm_apart_agrees_in_both_directions(real_data):
    flash, epi = (read_volume(real_data / "epi_flash_pair" / name) for name in ("flash_t1.nii.gz", "epi_t2.nii.gz"))
    there, back = register_rigid(flash, epi), register_rigid(epi, flash)
    assert distance(there @ back, np.eye(4)) < 0.5
    assert 25 < np.linalg.norm(there[:3, 3]) < 31
    brains = flash.array > 0, resample(epi, flash.shape, flash.affine, to_volume=there).array > 100
    assert 2 * (brains[0] & brains[1]).sum() / (brains[0].sum() + brains[1].sum()) > 0.9

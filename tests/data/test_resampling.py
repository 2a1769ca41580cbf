"""Resampling keeps every structure in its place in the world."""

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from monai_ext.data.resampling import isotropic, resample, share_inside, slice_grid, to_ras
from monai_ext.data.volumes import Volume

AS_IT_IS = (None, None, None)


@pytest.fixture
def volume() -> Volume:
    """Left-posterior-superior voxels of 1 x 1.5 x 3 mm, smooth content."""
    rng = np.random.default_rng(0)
    array = ndimage.gaussian_filter(rng.normal(size=(20, 24, 12)), 2.5).astype(np.float32)
    affine = np.diag([-1.0, -1.5, 3.0, 1.0])
    affine[:3, 3] = [10, 12, -7]
    return Volume(array, affine)


def test_turning_to_ras_moves_no_voxel(volume):
    sagittal = Volume(volume.array.transpose(1, 2, 0), volume.affine[:, [1, 2, 0, 3]])
    for stored in (volume, sagittal):
        ras = to_ras(stored)
        assert np.all(np.diag(ras.affine)[:3] > 0)
        world = apply_affine(ras.affine, (3, 4, 5))
        index = tuple(np.rint(apply_affine(np.linalg.inv(stored.affine), world)).astype(int))
        assert ras.array[3, 4, 5] == stored.array[index]


def test_the_same_grid_returns_the_same_voxels(volume):
    np.testing.assert_array_equal(resample(volume, volume.shape, volume.affine).array, volume.array)


def test_a_shift_by_whole_voxels_interpolates_nothing(volume):
    affine = volume.affine.copy()
    affine[:3, 3] = apply_affine(volume.affine, (2, -3, 1))
    moved = resample(volume, (20, 20, 20), affine).array
    np.testing.assert_array_equal(moved[:18, 3:, :11], volume.array[2:, :17, 1:])
    assert not moved[18:].any()
    assert not moved[:, :3].any()


@pytest.mark.parametrize("order", [1, 3])
def test_axis_by_axis_is_what_scipy_gives(volume, order):
    index = np.diag([0.8, 0.9, 0.5, 1.0])
    index[:3, 3] = [0.3, -0.2, 0.1]
    found = resample(volume, (22, 25, 20), volume.affine @ index, order=order).array
    expected = ndimage.affine_transform(
        volume.array, index[:3, :3], index[:3, 3], output_shape=(22, 25, 20), order=order, mode="nearest"
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


TURN = np.eye(4)
TURN[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]


@pytest.mark.parametrize("order", [0, 1, 3])
def test_what_is_constant_stays_so_over_its_whole_field_of_view(order):
    flat = Volume(np.full((8, 9, 10), 7, dtype=np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))
    fine = flat.affine @ np.diag([1, 1, 0.2, 1])
    fine[2, 3] = -2 - 5  # one slice of 5 mm below the field of view, another above
    found = resample(flat, (8, 9, 60), fine, order=order).array
    np.testing.assert_allclose(found[:, :, 5:55], 7, rtol=1e-5)
    assert not found[:, :, :5].any()
    assert not found[:, :, 55:].any()


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_turned_constant_stays_so_over_its_field_of_view(order):
    flat = Volume(np.full((8, 9, 10), 7, dtype=np.float32), np.diag([1.0, 1.0, 3.0, 1.0]))
    shape = (8, 20, 40)
    affine = np.array([[1, 0, 0, 0], [0, 1, 0, -5], [0, 0, 1, -5], [0, 0, 0, 1.0]])
    found = resample(flat, shape, affine, to_volume=TURN, order=order).array
    index = apply_affine(np.linalg.inv(flat.affine) @ TURN @ affine, np.moveaxis(np.indices(shape), 0, -1))
    beyond = (np.abs(index - (np.array(flat.shape) - 1) / 2) - np.array(flat.shape) / 2).max(axis=-1)
    np.testing.assert_allclose(found[beyond < 0], 7, rtol=1e-4)
    assert not found[beyond > 0.02].any()


def test_a_grid_that_agrees_in_two_corners_only_is_not_the_same_grid():
    """A turn about the diagonal leaves its two ends where they are."""
    cube = Volume(np.random.default_rng(2).normal(size=(9, 9, 9)).astype(np.float32), np.eye(4))
    third = np.eye(4)[[1, 2, 0, 3]]  # a third of a turn: i becomes j, j becomes k, k becomes i
    turned = resample(cube, cube.shape, np.eye(4), to_volume=third).array
    np.testing.assert_allclose(turned, cube.array.transpose(2, 0, 1), atol=1e-4)


def test_there_and_back_through_a_rotation_is_nearly_the_same(volume):
    angle = np.radians(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    there = resample(volume, volume.shape, volume.affine, to_volume=turn)
    back = resample(there, volume.shape, volume.affine, to_volume=np.linalg.inv(turn))
    inner = (slice(6, 14), slice(7, 17), slice(2, 10))
    np.testing.assert_allclose(back.array[inner], volume.array[inner], atol=0.01)


def test_larger_voxels_do_not_alias():
    noise = np.random.default_rng(1).normal(size=(40, 40, 40)).astype(np.float32)
    coarse = isotropic(Volume(noise, np.eye(4)), 4.0)
    assert coarse.shape == (10, 10, 10)
    assert coarse.array[2:-2, 2:-2, 2:-2].std() < 0.3  # picking every fourth voxel would leave it at 1
    np.testing.assert_allclose(coarse.affine[:3, 3], 1.5)


def test_labels_stay_labels(volume):
    label = Volume((volume.array > 0).astype(np.float32) * 4, volume.affine)
    affine = volume.affine.copy()
    affine[:3, 3] += 0.4
    assert set(np.unique(resample(label, volume.shape, affine, order=0).array)) == {0, 4}


def test_the_share_inside_counts_points_in_the_field_of_view(volume):
    points = apply_affine(volume.affine, [(0, 0, 0), (19, 23, 11), (20, 0, 0), (0, 0, -1)])
    assert share_inside(volume, points) == 0.5


def test_a_grid_with_nothing_asked_is_the_reference_s(volume):
    keep = np.ones(volume.shape, dtype=bool)
    shape, affine = slice_grid(volume, spacing=AS_IT_IS, crop=None, size=None, keep=keep)
    assert shape == volume.shape
    np.testing.assert_allclose(affine, volume.affine)


def test_a_crop_is_the_middle_of_the_field_of_view(volume):
    keep = np.zeros(volume.shape, dtype=bool)
    keep[9:12, 10:15] = True
    shape, affine = slice_grid(volume, spacing=AS_IT_IS, crop=(10, 30), size=None, keep=keep)
    assert shape == (10, 30, 12)
    np.testing.assert_allclose(affine[:3, 3], apply_affine(volume.affine, (5, -3, 0)))


def test_a_crop_moves_no_further_than_the_head_needs(volume):
    keep = np.zeros(volume.shape, dtype=bool)
    keep[2:9, 5:20] = True
    _, affine = slice_grid(volume, spacing=AS_IT_IS, crop=(10, 16), size=None, keep=keep)
    np.testing.assert_allclose(affine[:3, 3], apply_affine(volume.affine, (2, 4, 0)))


def test_resizing_keeps_the_field_of_view(volume):
    keep = np.ones(volume.shape, dtype=bool)
    shape, affine = slice_grid(volume, spacing=AS_IT_IS, crop=(20, 24), size=(40, 48), keep=keep)
    assert shape == (40, 48, 12)
    np.testing.assert_allclose(apply_affine(affine, (-0.5,) * 3), apply_affine(volume.affine, (-0.5,) * 3))
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [0.5, 0.75, 3])


def test_a_spacing_is_met_and_the_middle_stays(volume):
    keep = np.ones(volume.shape, dtype=bool)
    shape, affine = slice_grid(volume, spacing=(1.0, 1.0, None), crop=(16, 40), size=None, keep=keep)
    assert shape == (16, 40, 12)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [1, 1, 3])
    middles = [apply_affine(a, (np.array(s) - 1) / 2) for s, a in ((shape, affine), (volume.shape, volume.affine))]
    np.testing.assert_allclose(*middles)


def test_a_crop_at_a_new_spacing_holds_the_whole_head():
    """10 voxels of 1.305 mm just hold 13 of 1 mm, but from no whole number of new voxels on."""
    reference = Volume(np.zeros((40, 40, 4), dtype=np.float32), np.eye(4))
    keep = np.zeros(reference.shape, dtype=bool)
    for first in range(5, 22):
        keep[:] = False
        keep[first : first + 13, 10:20] = True
        _, affine = slice_grid(reference, spacing=(1.305, 1.305, None), crop=(10, 20), size=None, keep=keep)
        edges = apply_affine(np.linalg.inv(affine), [(first - 0.5, 0, 0), (first + 12.5, 0, 0)])[:, 0]
        assert edges[0] >= -0.5 - 1e-6
        assert edges[1] <= 9.5 + 1e-6

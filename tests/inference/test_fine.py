"""Slices across a head are the same however it lies, whatever its units and its scalp."""

import numpy as np
import pytest

from monai_ext.data.phantoms.patients import make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.data.resampling import to_ras
from monai_ext.data.volumes import Volume
from monai_ext.inference.coarse import glance
from monai_ext.inference.fine import CEILING, COUNT, SHAPE, levelled, slices
from monai_ext.inference.recogniser import POSES, UPRIGHT, posed, upright_axes


@pytest.fixture(scope="module")
def head() -> Volume:
    phantom = make_phantom(SITES["healthy"], index=6, spacing=(4.0, 4.0, 4.0), contrasts=("T1",))
    return Volume(to_ras(phantom.images["T1"]).array, np.diag([4.0, 4.0, 4.0, 1.0]))


def test_axes_point_where_the_head_was_turned_to() -> None:
    upright = np.arange(24).reshape(2, 3, 4)
    for pose in range(len(POSES)):
        lying, turn = posed(upright, pose), upright_axes(pose)
        corner = np.where((turn < 0).any(axis=1), np.array(lying.shape) - 1, 0)
        for axis in range(3):
            assert lying[tuple(corner + turn[:, axis])] == upright[tuple(np.eye(3, dtype=int)[axis])]


@pytest.mark.parametrize("pose", [UPRIGHT, 2, 3, 7, 13, 22])
def test_a_turned_head_is_cut_as_an_upright_one(head: Volume, pose: int) -> None:
    upright = slices(head, glance(head), upright_axes(UPRIGHT))
    lying = Volume(np.ascontiguousarray(posed(head.array, pose)), head.affine)
    turned = slices(lying, glance(lying), upright_axes(pose))
    assert upright.shape == (COUNT, *SHAPE)
    assert np.corrcoef(upright.ravel(), turned.ravel())[0, 1] > 0.99


def test_units_and_what_is_round_the_brain_change_nothing_in_it() -> None:
    planes = np.random.default_rng(0).uniform(0.5, 1.5, (COUNT, *SHAPE)).astype(np.float32)
    fat = 900 * planes
    fat[:, :8] = 5000
    assert np.allclose(levelled(fat)[:, 8:], levelled(planes)[:, 8:], atol=1e-5)
    assert levelled(fat).max() <= CEILING
    assert not levelled(np.zeros_like(planes)).any()

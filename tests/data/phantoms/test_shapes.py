"""Heads bend without folding, turn rigidly, and are found again where a pose took them."""

from typing import Any

import numpy as np
import pytest
import torch

from monai_ext.data.phantoms import shapes
from monai_ext.data.phantoms.shapes import LEAST_VOLUME, Mass, Placement, draw_placement, draw_rigid, jacobian, posed


def sampled(placed: Placement, maps: torch.Tensor, **options: Any) -> torch.Tensor:
    """(C, I, J, K)"""
    found = placed.sample([maps[:1], maps[1:]], **options)
    whole = found.whole(found.values)
    assert torch.equal(found.of(whole[0]), found.values[0])
    return whole


EXTENT = np.array([180.0, 210.0, 170.0])


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_no_deformation_folds_however_strong(strength: float) -> None:
    mass = Mass(np.array([30.0, 0.0, 20.0]), 15.0, 5.0)
    for seed in range(3):
        placed = draw_placement(np.random.default_rng(seed), extent=EXTENT, strength=strength, masses=(mass,))
        assert jacobian(np.moveaxis(placed.displacement.numpy(), 0, -1), EXTENT).min() > LEAST_VOLUME


def test_some_heads_are_mirrored_and_sizes_differ_within_their_range() -> None:
    drawn = [draw_placement(np.random.default_rng(seed), extent=EXTENT, scale=(0.9, 1.1)) for seed in range(12)]
    turned = [np.linalg.det(one.linear) for one in drawn]
    assert {float(np.sign(value)) for value in turned} == {-1.0, 1.0}
    assert 0.02 < np.cbrt(np.abs(turned)).std() < 0.12


def test_a_rigid_offset_is_rigid_and_keeps_within_its_limits() -> None:
    rng, centre = np.random.default_rng(0), np.array([0.0, -17.0, 10.0])
    shifts, turns = [], []
    for _ in range(200):
        matrix = draw_rigid(rng, millimetres=15, degrees=12, centre=centre)
        rotation = matrix[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        shifts.append(np.linalg.norm(rotation @ centre + matrix[:3, 3] - centre))
        turns.append(np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
    assert 13 < max(shifts) <= 15
    assert 10 < max(turns) <= 12


def test_a_pose_of_nothing_is_no_pose() -> None:
    rng = np.random.default_rng(0)
    placed = draw_placement(rng, extent=EXTENT, shift=np.array([3.0, -2.0, 1.0]))
    maps = torch.rand(2, 30, 34, 28, generator=torch.Generator().manual_seed(0))
    options: dict = {"centre": np.array([15.0, 17.0, 14.0]), "step": 6.0, "shape": (30, 35, 28), "spacing": 6.0}
    torch.testing.assert_close(
        sampled(placed, maps, pose=np.eye(4), **options), sampled(placed, maps, **options), atol=1e-3, rtol=0
    )
    field = torch.rand(6, 7, 8, generator=torch.Generator().manual_seed(0))
    still, turned = (posed(field, (11, 12, 13), pose=pose, spacing=2.0) for pose in (None, np.eye(4)))
    torch.testing.assert_close(turned, still, atol=1e-4, rtol=0)


def test_what_is_left_out_as_air_is_zero_in_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single voxels and the maps' very corners, each of which eight voxels of a canvas may show."""
    rng = np.random.default_rng(0)
    maps = torch.zeros(3, 30, 34, 28)
    maps[0, 0, 0, 0] = maps[1, -1, -1, -1] = maps[2, 15, 16, 11] = 1.0
    maps[1, 7, 8, 20] = -2.0
    for seed in range(6):
        pose = draw_rigid(rng, millimetres=9, degrees=20, centre=np.zeros(3)) if seed % 2 else None
        placed = draw_placement(rng, extent=EXTENT, turn=20)
        options: dict = {"centre": np.array([15.0, 17.0, 14.0]), "step": 6.0, "shape": (36, 42, 34), "spacing": 6.0}
        found = sampled(placed, maps, pose=pose, **options)
        with monkeypatch.context() as everywhere:
            everywhere.setattr(shapes, "_shown", lambda _, voxels: torch.full(voxels.shape[1:], 255, dtype=torch.uint8))
            assert torch.equal(found, sampled(placed, maps, pose=pose, **options))
        assert 0 < (found != 0).sum() < 60


def test_what_was_at_a_point_is_where_the_pose_takes_it() -> None:
    """Whole voxels and quarter turns, so that nothing is interpolated."""
    still = Placement(torch.zeros(3, 4, 4, 4), np.eye(3), np.zeros(3))
    maps = torch.rand(1, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # x -> y
    pose[:3, 3] = [2.0, 0, -4.0]
    moved = sampled(still, maps, centre=np.full(3, 4.0), step=2.0, shape=(9, 9, 9), spacing=2.0, pose=pose)
    for voxel in ((4, 4, 4), (6, 4, 5), (3, 5, 6)):
        there = pose[:3, :3] @ ((np.array(voxel) - 4) * 2.0) + pose[:3, 3]
        i, j, k = np.rint(there / 2.0 + 4).astype(int)
        assert float(moved[0, i, j, k]) == pytest.approx(float(maps[0][voxel]), abs=1e-5)

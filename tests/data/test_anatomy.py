"""The template, its warps and lesions: fractions that add up, shapes that never fold, labels where they belong."""

import sys

import numpy as np
import pytest
import torch

from monai_ext.data.anatomy import CENTRE, TISSUES, Maps, Template, _template, grid_points, template
from monai_ext.data.lesions import CHANNELS, apply_lesions, label_map, random_lesions
from monai_ext.data.warp import LEAST_VOLUME, jacobian, random_rigid, random_warp

pytest.importorskip("nilearn", reason="the phantom extra is not installed")


@pytest.fixture(scope="module")
def base() -> Template:
    return template(4.0)


def test_without_nilearn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ValueError, match=r"pip install monai-ext\[phantom\]"):
        _template.__wrapped__()


def test_maps_give_their_own_voxels_back_and_lie_between_them() -> None:
    values = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    maps = Maps(values, np.array([-10.0, 5.0, 1.0]), 2.0)
    points = grid_points((3, 4, 5), maps.origin, 2.0)
    np.testing.assert_allclose(maps.at(points), values.numpy(), atol=1e-4)
    middle = maps.at(points[:1, :1, :1] + np.float32([2, 1, 0]))
    assert middle[0, 0, 0, 0] == pytest.approx((20 + 25) / 2, abs=1e-4)


def test_fractions_are_fractions_and_fill_the_brain_once(base: Template) -> None:
    for maps in (base.brain, base.head):
        values = maps.values.numpy()
        assert values.min() >= -1e-5
        assert values.sum(axis=0).max() <= 1 + 1e-4


def test_the_template_has_grey_white_and_fluid_where_anatomy_puts_them(base: Template) -> None:
    points = np.float32([[10, 10, 18], [26, -20, 30], [12, 12, 10], [0, -46, -32]])
    found = base.brain.at(points[:, None, None])[:, :, 0, 0].argmax(axis=0)
    assert [TISSUES[index] for index in found[:3]] == ["csf", "wm", "deep"]  # ventricle, centrum, caudate
    assert TISSUES[found[3]] == "csf"  # the fourth ventricle


@pytest.mark.parametrize("strength", [1.0, 1.3, 4.0])
def test_no_warp_folds_however_strong(base: Template, strength: float) -> None:
    for seed in range(4):
        warp = random_warp(
            np.random.default_rng(seed),
            base,
            strength=strength,
            ventricles=6.0,
            masses=((np.array([30.0, 0.0, 20.0]), 15.0, 5.0),),
        )
        assert jacobian(np.moveaxis(warp.displacement.values.numpy(), 0, -1)).min() > LEAST_VOLUME
        moved = warp(grid_points((40, 48, 40), np.array([-80.0, -112.0, -80.0]), 4.0))
        edges = [np.diff(moved, axis=a)[:39, :39, :39] for a in range(3)]
        volume = np.linalg.det(np.stack([edge[:39, :39, :39] for edge in edges], axis=-1))
        assert (volume * np.sign(np.linalg.det(warp.linear)) > 0).all()


def test_some_heads_are_mirrored_and_sizes_differ(base: Template) -> None:
    linear = [random_warp(np.random.default_rng(seed), base).linear for seed in range(12)]
    signs = {float(np.sign(np.linalg.det(matrix))) for matrix in linear}
    sizes = np.cbrt([abs(np.linalg.det(matrix)) for matrix in linear])
    assert signs == {-1.0, 1.0}
    assert 0.01 < sizes.std() < 0.1


def test_a_rigid_offset_is_rigid_and_keeps_within_its_limits() -> None:
    rng = np.random.default_rng(0)
    shifts, turns = [], []
    for _ in range(200):
        matrix = random_rigid(rng, millimetres=15, degrees=12)
        rotation = matrix[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        shifts.append(np.linalg.norm(rotation @ CENTRE + matrix[:3, 3] - CENTRE))
        turns.append(np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
    assert 13 < max(shifts) <= 15
    assert 10 < max(turns) <= 12


@pytest.mark.parametrize(
    ("kind", "labels"), [("none", set()), ("glioma", {1, 2, 3}), ("stroke", {1}), ("plaques", {1})]
)
def test_each_disease_has_its_labels_and_keeps_the_sum_of_fractions(
    base: Template, kind: str, labels: set[int]
) -> None:
    points = grid_points((45, 54, 42), np.array([-88.0, -124.0, -72.0]), 4.0)
    brain = dict(zip(("csf", "gm", "wm", "deep"), base.brain.at(points), strict=True))
    before = sum(brain.values())
    seen: set[int] = set()
    for seed in range(4):
        tissue = {name: brain.get(name, np.zeros_like(before)).copy() for name in TISSUES}
        lesions = random_lesions(np.random.default_rng(seed), base, kind=kind)
        apply_lesions(tissue, lesions.weights.at(points))
        np.testing.assert_allclose(sum(tissue.values()), before, atol=1e-5)
        assert min(fraction.min() for fraction in tissue.values()) >= -1e-5
        if lesions.labels:
            label = label_map(tissue, lesions)
            assert label.any()
            assert (before[label > 0] > 0.3).all(), "a label outside the brain"
            seen |= set(np.unique(label).tolist()) - {0}
    assert seen == labels


def test_age_adds_white_matter_changes_that_no_label_shows(base: Template) -> None:
    lesions = random_lesions(np.random.default_rng(0), base, kind="stroke", ageing=1.0)
    weights = dict(zip(CHANNELS, lesions.weights.values.numpy(), strict=True))
    assert weights["plaque"].max() > 0.5
    assert dict(lesions.labels) == {"infarct": 1}


def test_an_unknown_disease_is_refused(base: Template) -> None:
    with pytest.raises(ValueError, match="lesions are one of none, glioma, stroke, plaques, got 'abscess'"):
        random_lesions(np.random.default_rng(0), base, kind="abscess")

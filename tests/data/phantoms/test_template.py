"""The template: shares that add up, tissue where anatomy has it, and a word where its maps are not installed."""

import sys

import numpy as np
import pytest
import torch

from monai_ext.data.phantoms.anatomy import BRAIN, CLASSES
from monai_ext.data.phantoms.template import Maps, grid_points, template_anatomy


def test_without_nilearn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ValueError, match=r"pip install monai-ext\[phantom\]"):
        template_anatomy.__wrapped__()


def test_maps_give_their_own_voxels_back_and_lie_between_them() -> None:
    values = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    maps = Maps(values, np.array([-10.0, 5.0, 1.0]), 2.0)
    points = grid_points((3, 4, 5), maps.origin, 2.0)
    np.testing.assert_allclose(maps.at(points), values.numpy(), atol=1e-4)
    middle = maps.at(points[:1, :1, :1] + np.float32([2, 1, 0]))
    assert middle[0, 0, 0, 0] == pytest.approx((20 + 25) / 2, abs=1e-4)


def test_it_has_tissue_where_anatomy_puts_it_and_no_voxel_holds_more_than_itself() -> None:
    pytest.importorskip("nilearn", reason="the phantom extra is not installed")
    anatomy = template_anatomy(2.0)
    shares = anatomy.stored[: len(CLASSES)].float() / 255
    assert float(shares.sum(0).max()) < 1.02
    assert 1200 < float(shares[: len(BRAIN)].sum()) * 8 / 1000 < 2200  # mL
    points = {"ventricle": (10, 10, 18), "wm": (26, -20, 30), "deep": (12, 12, 10), "fat": (0, -119, 10)}  # MNI mm
    first = np.array([-104.0, -138.0, -112.0])  # of the grid, at 1 mm
    for tissue, point in points.items():
        i, j, k = ((np.array(point) - first) // 2).astype(int)
        near = shares[:, i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2].mean(dim=(1, 2, 3))
        assert CLASSES[int(near.argmax())] == tissue

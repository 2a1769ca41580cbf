"""What a scanner does, against images whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_ext.data.phantoms.acquisition import (
    GRID,
    Acquisition,
    Axis,
    Grid,
    apparent_diffusion,
    draw_acquisition,
    draw_stripping,
    gain_field,
    magnitude,
    scan,
    stripped,
)

ONE = Axis(1.0, 1.0)
CLEAN = Acquisition(axes=(ONE, ONE, ONE), noise=0.0, gain=torch.zeros((GRID,) * 3), gamma=1.0, seed=0)
GRID_1 = Grid((20, 24, 30), (1.0, 1.0, 1.0))


def scanned(image: torch.Tensor, acquisition: Acquisition, grid: Grid = GRID_1) -> torch.Tensor:
    return scan(image, acquisition, spacing=1.0, grid=grid, white=1.0)


def bump(shift: float = 0.0) -> torch.Tensor:
    i, j, k = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in GRID_1.shape], indexing="ij")
    return torch.exp(-(i**2 + j**2 + (k - shift) ** 2) / 18)


def test_a_perfect_scanner_gives_the_magnitude() -> None:
    image = torch.randn(GRID_1.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scanned(image, CLEAN), image.abs())


def test_a_thick_slice_is_the_mean_over_its_thickness() -> None:
    thick = replace(CLEAN, axes=(ONE, ONE, Axis(5.0, 5.0)))
    image = torch.rand(GRID_1.shape, generator=torch.Generator().manual_seed(0))
    middles = scanned(image, thick)[:, :, 2::5]  # where a slice's own middle lies
    torch.testing.assert_close(middles, image.reshape(20, 24, 6, 5).mean(dim=-1), atol=1e-5, rtol=0)


def test_an_even_image_stays_even_whatever_the_slices() -> None:
    axes = (Axis(1.7, 1.3), Axis(1.2, 1.2), Axis(6.3, 5.0))
    inner = scanned(torch.full(GRID_1.shape, 3.0), replace(CLEAN, axes=axes))[2:-2, 2:-2, 4:-4]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


@pytest.mark.parametrize("shift", [1.0, 2.6])
def test_a_misregistered_contrast_lies_so_many_millimetres_away(shift: float) -> None:
    moved = scanned(bump(shift), replace(CLEAN, axes=(ONE, ONE, Axis(1.0, 1.0, shift))))
    assert float((moved - bump()).abs().max()) < 0.03
    assert float((bump(shift) - bump()).abs().max()) > 0.1


def test_noise_has_the_known_moments_and_is_the_seeds() -> None:
    air = magnitude(torch.zeros(100, 100, 10), sigma=2.0, seed=1)
    tissue = magnitude(torch.full((100, 100, 10), 100.0), sigma=2.0, seed=1)
    assert float(air.mean()) == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.02)
    assert float(tissue.std()) == pytest.approx(2.0, rel=0.03)
    torch.testing.assert_close(air, magnitude(torch.zeros(100, 100, 10), sigma=2.0, seed=1))
    assert not torch.equal(air, magnitude(torch.zeros(100, 100, 10), sigma=2.0, seed=2))


def test_a_coils_gain_is_smooth_and_flat_controls_are_flat() -> None:
    torch.testing.assert_close(gain_field(torch.full((GRID,) * 3, 0.3), (9, 7, 8)), torch.full((9, 7, 8), 0.3))
    rng = torch.Generator().manual_seed(0)
    field = gain_field(torch.randn((GRID,) * 3, generator=rng), (60, 60, 60))
    assert float(field.diff(n=2, dim=0).abs().max()) < 0.06 * float(field.std())  # kinks of straight lines have 0.3


def test_adc_undoes_the_decay() -> None:
    true = torch.tensor([0.4, 0.8, 1.5, 3.0])
    still = torch.tensor([1.0, 2.0, 0.5, 1.0])
    torch.testing.assert_close(apparent_diffusion(still, still * torch.exp(-true), 1000.0), true)


def test_a_grid_of_thick_voxels_averages_what_was_rendered() -> None:
    grid = Grid((10, 12, 5), (1.0, 1.0, 4.0))
    assert grid.rendered == (10, 12, 20)
    fine = torch.rand(10, 12, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grid.average(fine), fine.reshape(10, 12, 5, 4).mean(dim=-1))


def test_slices_of_every_plane_and_thickness_are_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_acquisition(rng, spacing=(1.0, 1.0, 1.0), noise=0.03, bias=0.1) for _ in range(200)]
    thick = [a for a in drawn if max(axis.width for axis in a.axes) > 2]
    assert {a.plane for a in thick} == {0, 1, 2}
    widths = [max(axis.width for axis in a.axes) for a in drawn]
    assert max(widths) <= 7.0
    assert max(widths) > 5.5
    assert min(widths) < 1.4


def test_a_stripping_mask_follows_the_brain_to_some_millimetres() -> None:
    depth = 10 - torch.linalg.vector_norm(
        torch.stack(torch.meshgrid(*[torch.arange(-16.0, 17.0)] * 3, indexing="ij")), dim=0
    )
    for seed in range(20):
        stripping = draw_stripping(np.random.default_rng(seed), shape=depth.shape, spacing=1.0)
        mask = stripped(depth, stripping)
        assert not mask[depth < -13].any()
        overlap = 2 * (mask & (depth > 0)).sum() / (mask.sum() + (depth > 0).sum())
        assert overlap > 0.5

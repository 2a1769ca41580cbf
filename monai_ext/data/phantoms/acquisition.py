"""What a scanner does to an image: thick slices in any plane, blur, noise, uneven gain; and what people do after it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_ext.data.phantoms.shapes import enlarged, lattice_noise

GRID = 6  # control points of a coil's gain along each axis


@dataclass(frozen=True)
class Axis:
    """How one axis is sampled: mm between samples, mm that each averages over, where it lies in mm, its stretch."""

    spacing: float
    width: float
    shift: float = 0.0
    stretch: float = 1.0


@dataclass(frozen=True)
class Acquisition:
    """One contrast's scan, drawn: `noise` is a share of white matter's signal, `seed` its numbers'."""

    axes: tuple[Axis, Axis, Axis]
    noise: float
    gain: Tensor  # (GRID, GRID, GRID), log
    gamma: float
    seed: int

    @property
    def plane(self) -> int:
        """The axis across the slices."""
        return int(np.argmax([axis.width for axis in self.axes]))


def draw_acquisition(
    rng: np.random.Generator,
    *,
    spacing: Sequence[float],
    noise: float,
    bias: float,
    misregistered: float = 0.0,
    thick: float = 7.0,
    blur: float = 1.3,
    plane: int | None = None,
    gamma: float = 0.1,
) -> Acquisition:
    """Draw how one contrast is scanned, to be written on a grid of `spacing` mm.

    Args:
        rng: of all that is drawn.
        spacing: the grid's voxel along I, J, K in mm; no axis is sampled more finely.
        noise: standard deviation as a share of white matter's signal.
        bias: standard deviation of the logarithm of the coil's gain.
        misregistered: the largest shift in mm of this contrast against the others; where it is not 0, each axis is
            stretched a little, too.
        thick: the thickest slice in mm; 35 in 100 scans are isotropic.
        blur: the largest in-plane voxel in mm, where it is more than the grid's.
        plane: the axis across the slices, 0 to 2, drawn where None.
        gamma: standard deviation of the logarithm of the exponent that the image is shown with.

    Returns:
        What `scan` does.
    """
    across = int(rng.choice(3, p=(0.15, 0.15, 0.7))) if plane is None else plane
    in_plane = float(rng.uniform(0.9, max(blur, 0.95)))
    slices = float(np.exp(rng.uniform(0, np.log(thick)))) if rng.uniform() < 0.65 else in_plane
    gap = float(rng.choice((1.0, 1.0, 1.1, 1.25)))
    direction = rng.standard_normal(3)
    shift = direction / np.linalg.norm(direction) * misregistered * rng.uniform()
    axes = []
    for axis in range(3):
        width = slices if axis == across else in_plane
        width = max(width, spacing[axis])
        stretch = float(np.exp(rng.normal(0, 0.004))) if misregistered else 1.0
        step = width * gap if axis == across and width > 1.5 else width
        axes.append(Axis(step, width, float(shift[axis]), stretch))
    field = torch.from_numpy(bias * rng.standard_normal((GRID,) * 3).astype(np.float32))
    return Acquisition(
        axes=(axes[0], axes[1], axes[2]),
        noise=noise,
        gain=field,
        gamma=float(np.exp(np.clip(rng.normal(0, gamma), -2.5 * gamma, 2.5 * gamma))),
        seed=int(rng.integers(2**62)),
    )


def scan(image: Tensor, acquisition: Acquisition, *, spacing: float, grid: "Grid", white: float) -> Tensor:
    """Give the image as a scanner does: sampled, noisy, uneven, resampled onto `grid`.

    Args:
        image: signed signal (I, J, K) at `spacing` mm.
        acquisition: of `draw_acquisition`; its seed is that of the noise.
        spacing: of the image's voxels in mm, along each axis.
        grid: what comes out is on it.
        white: white matter's signal, which the noise is a share of.

    Returns:
        The magnitude, of the grid's shape, in the image's units.
    """
    samplers = [_sampling(n, spacing, axis) for n, axis in zip(image.shape, acquisition.axes, strict=True)]
    taken = image
    for axis, (sample, _) in enumerate(samplers):
        taken = _along(taken, sample.to(image.device), axis)
    taken = taken * gain_field(acquisition.gain.to(image.device), taken.shape).exp_()
    taken = magnitude(taken, sigma=acquisition.noise * white, seed=acquisition.seed)
    for axis, (_, positions) in enumerate(samplers):
        back = _interpolation(positions, grid.positions(axis), acquisition.axes[axis])
        taken = _along(taken, back.to(image.device), axis)
    return taken


@dataclass(frozen=True)
class Grid:
    """The grid that images are written on: voxels along I, J, K and their size in mm; its middle is the canvas's."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def step(self) -> float:
        """What the anatomy is rendered at."""
        return min(self.spacing)

    @property
    def extent(self) -> NDArray[np.float64]:
        """mm along each axis."""
        return np.array(self.shape) * np.array(self.spacing)

    @property
    def rendered(self) -> tuple[int, ...]:
        """Voxels of `step` that cover it."""
        return tuple(int(np.ceil(length / self.step - 1e-6)) for length in self.extent)

    def positions(self, axis: int) -> NDArray[np.float64]:
        """Give the mm of the voxels' middles from the canvas's middle.

        Args:
            axis: 0 to 2.

        Returns:
            (shape[axis],), rising.
        """
        return _middles(self.shape[axis], self.spacing[axis])

    def average(self, maps: Tensor) -> Tensor:
        """Bring maps from the rendered voxels to the grid's, each the mean over its extent.

        Args:
            maps: (..., I, J, K) at `step` mm, as large as `rendered`.

        Returns:
            (..., *shape); the maps themselves where the voxels are isotropic.
        """
        for axis in range(3):
            if self.spacing[axis] == self.step:
                continue
            places = _middles(maps.shape[axis - 3], self.step)
            mean = _profile(places, self.positions(axis), self.spacing[axis], self.step)
            maps = _along(maps, mean.to(maps.device), axis)
        return maps


def _middles(count: int, spacing: float) -> NDArray[np.float64]:
    return (np.arange(count, dtype=np.float64) - (count - 1) / 2) * np.float64(spacing)


def _profile(places: NDArray[np.float64], wanted: NDArray[np.float64], width: float, step: float) -> Tensor:
    """(wanted, places): the mean of a box of `width` mm, as far as it overlaps each voxel of `step` mm."""
    left = np.maximum(wanted[:, None] - width / 2, places - step / 2)
    right = np.minimum(wanted[:, None] + width / 2, places + step / 2)
    weight = np.clip(right - left, 0, None)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
    return torch.from_numpy(weight.astype(np.float32))


def _sampling(count: int, spacing: float, axis: Axis) -> tuple[Tensor, NDArray[np.float64]]:
    """The matrix from an axis's voxels to the scan's samples, and where these lie in mm."""
    if axis.spacing <= spacing * 1.02:
        return torch.eye(count), _middles(count, spacing)
    samples = max(int(np.floor(count * spacing / axis.spacing)), 2)
    positions = _middles(samples, axis.spacing)
    return _profile(_middles(count, spacing), positions, axis.width, spacing), positions


def _interpolation(samples: NDArray[np.float64], wanted: NDArray[np.float64], axis: Axis) -> Tensor:
    """(wanted, samples): linear interpolation at positions that were shifted and stretched; 0 outside."""
    step = samples[1] - samples[0]
    where = (wanted * axis.stretch + axis.shift - samples[0]) / step
    low = np.floor(where).astype(int)
    share = where - low
    matrix = np.zeros((len(wanted), len(samples)), dtype=np.float32)
    for index, weight in ((low, 1 - share), (low + 1, share)):
        nearest = np.clip(index, 0, len(samples) - 1)
        inside = np.abs(index - nearest) <= 1  # a voxel's half beyond the last sample is that sample's
        np.add.at(matrix, (np.arange(len(wanted)), nearest), np.where(inside, weight, 0).astype(np.float32))
    return torch.from_numpy(matrix)


def _along(maps: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A matrix (out, in) applied along one of the last three axes."""
    if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), device=matrix.device)):
        return maps
    turned = maps.movedim(axis - 3, -2).reshape(-1, maps.shape[axis - 3], _size_of_last(maps, axis))
    out = torch.matmul(matrix, turned)
    shape = list(maps.movedim(axis - 3, -2).shape)
    shape[-2] = matrix.shape[0]
    return out.reshape(shape).movedim(-2, axis - 3)


def _size_of_last(maps: Tensor, axis: int) -> int:
    return maps.movedim(axis - 3, -2).shape[-1]


def gain_field(control: Tensor, shape: Sequence[int]) -> Tensor:
    """Stretch a cubic B-spline through control points over an image.

    Args:
        control: (n, n, n), such as an `Acquisition`'s gain, in logarithms.
        shape: of the image, three numbers.

    Returns:
        A tensor of that shape, on the control points' device.
    """
    for axis, size in enumerate(shape):
        basis = _basis(control.shape[axis], size).to(control.device)
        control = torch.tensordot(basis, control.movedim(axis, 0), dims=1).movedim(0, axis)
    return control


def _basis(count: int, size: int) -> Tensor:
    """(size, count): cubic B-splines whose first and last reach over the ends, rows sum to 1."""
    where = np.linspace(0.5, count - 1.5, size)
    apart = np.abs(where[:, None] - np.arange(count))
    inner = 2 / 3 - apart**2 + apart**3 / 2
    outer = np.clip(2 - apart, 0, None) ** 3 / 6
    weight = np.where(apart < 1, inner, outer)
    return torch.from_numpy((weight / weight.sum(axis=1, keepdims=True)).astype(np.float32))


def magnitude(signal: Tensor, *, sigma: float, seed: int) -> Tensor:
    """Give the magnitude of a signal with Gaussian noise in both receive channels: Rician.

    Args:
        signal: of any shape and sign.
        sigma: the noise's standard deviation in each channel, in the signal's units; 0 or less is no noise.
        seed: of the noise, which is drawn on the CPU, so that it is the same on any device.

    Returns:
        A tensor of the signal's shape, nothing below 0.
    """
    if sigma <= 0:
        return signal.abs()
    generator = torch.Generator().manual_seed(seed)
    real, imaginary = (torch.randn(signal.shape, generator=generator).mul_(sigma).to(signal.device) for _ in range(2))
    return real.add_(signal).square_().add_(imaginary.square_()).sqrt_()


def apparent_diffusion(unweighted: Tensor, weighted: Tensor, b: float) -> Tensor:
    """Compute the ADC from the mono-exponential model, weighted = unweighted exp(-b ADC).

    Args:
        unweighted: signal without diffusion weighting, of any shape; what is below a ten-thousandth of its maximum is
            taken for that.
        weighted: signal with it, of the same shape.
        b: of the weighting, s/mm^2, above 0.

    Returns:
        ADC in 1e-3 mm^2/s, within 0 and 4.5.
    """
    floor = max(1e-6, 1e-4 * float(unweighted.max()))
    ratio = unweighted.clamp(min=floor) / weighted.clamp(min=floor)
    return (1e3 / b * ratio.log()).clamp(0, 4.5)


@dataclass(frozen=True)
class Stripping:
    """A brain mask as tools make it: how many mm its border is grown by, and bumps in mm on a coarse lattice."""

    grown: float
    bumps: Tensor


def draw_stripping(rng: np.random.Generator, *, shape: Sequence[int], spacing: float) -> Stripping:
    """Draw how well a brain was stripped: half of the masks are good to a millimetre, others grown, eroded, bitten
    into.

    Args:
        rng: of all that is drawn.
        shape: of the map that `stripped` will be given, three numbers.
        spacing: of that map's voxels in mm.

    Returns:
        What `stripped` does.
    """
    kind = rng.uniform()
    grown = float(rng.normal(-0.2, 0.8)) if kind < 0.5 else float(rng.uniform(-2.5, 4.0))
    size = 0.6 if kind < 0.8 else 2.5
    bumps = lattice_noise(rng, shape=tuple(shape), fwhm=18 / spacing) * size
    return Stripping(grown, bumps)


def stripped(depth: Tensor, stripping: Stripping) -> Tensor:
    """Make the mask of the brain that a stripping tool would.

    Args:
        depth: mm inside the brain's hull, negative outside, (I, J, K).
        stripping: of `draw_stripping`, for this shape.

    Returns:
        Boolean, (I, J, K): what is kept.
    """
    bumps = enlarged(stripping.bumps.to(depth.device), tuple(depth.shape))
    return depth + stripping.grown + bumps > 0

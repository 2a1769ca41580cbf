"""How far a synthesised image is from the real one: one protocol for every method, over slices, volumes and brains.

The errors agree with scikit-image, and SSIM with its `structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)`, or with its default where a `Protocol` asks for uniform windows. MONAI's metrics give the
same over whole images; they know no mask, and their SSIM convolves with the full 11 x 11 window, which takes five times
as long as two passes of 11.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_ext.evaluation.protocol import K1, K2, OURS, PSNR_LIMIT, SIGMA, Protocol

FIGURES = ("psnr", "ssim", "mae", "nrmse", "nmse")
_BATCH = 4  # slices at a time: what SSIM needs of them stays in the cache


@dataclass(frozen=True)
class VolumeFigures:
    """One volume against the truth. NaN is a figure without meaning.

    Attributes:
        slices: for each of FIGURES, (K,), a value a slice.
        volume: over all voxels, "stripes" with them.
        brain: over the voxels inside the mask, "stripes" with them.
    """

    slices: Mapping[str, Tensor]
    volume: Mapping[str, float]
    brain: Mapping[str, float]


def compare_volumes(
    prediction: Tensor,
    truth: Tensor,
    *,
    mask: Tensor,
    spacing: tuple[float, float, float],
    data_range: float = 1.0,
    protocol: Protocol = OURS,
) -> VolumeFigures:
    """Compare a synthesised volume with the real one: by slice, as a whole, and in the brain.

    Args:
        prediction: (I, J, K), the slices along K.
        truth: (I, J, K).
        mask: (I, J, K), boolean, of the brain.
        spacing: of the voxels in mm.
        data_range: the range that images may have.
        protocol: PSNR's maximum and SSIM's windows.

    Returns:
        Every figure; what each one is stands at `compare_slices` and `stripes`.

    Raises:
        ValueError: shapes that differ, values that are not finite, an empty mask.

    Example:
        >>> truth = torch.rand(16, 16, 3)
        >>> brain = torch.ones(16, 16, 3, dtype=torch.bool)
        >>> figures = compare_volumes(truth + 0.1, truth, mask=brain, spacing=(1.0, 1.0, 1.0))
        >>> round(figures.volume["psnr"], 2), round(figures.brain["mae"], 3), figures.slices["ssim"].shape
        (20.0, 0.1, torch.Size([3]))
    """
    check_pair(prediction, truth, mask=mask, data_range=data_range, dimensions="(I, J, K)", window=protocol.window)
    p, t = prediction.float(), truth.float()
    masks = (None, mask.movedim(-1, 0))
    by_slice, inside = _sums(p.movedim(-1, 0), t.movedim(-1, 0), masks, data_range=data_range, protocol=protocol)
    whole, brain = (
        {name: float(value) for name, value in _figures(_total(sums), data_range, protocol).items()}
        for sums in (by_slice, inside)
    )
    whole["stripes"] = stripes(p, t, spacing=spacing) / data_range
    brain["stripes"] = stripes(p, t, spacing=spacing, mask=mask) / data_range
    return VolumeFigures(slices=_figures(by_slice, data_range, protocol), volume=whole, brain=brain)


def compare_slices(
    prediction: Tensor, truth: Tensor, *, mask: Tensor | None = None, data_range: float = 1.0, protocol: Protocol = OURS
) -> dict[str, Tensor]:
    """Compare synthesised slices with the real ones, each by itself.

    With r the data range, p the prediction, t the truth and n the number of voxels:
    psnr  = 10 log10(r^2 n / sum (p - t)^2), at most 100 dB. r is the range that images may have, not the maximum
            of one image as in FD-GAN's Eq. 6 and PMM-Synth's Eq. 10, which `protocol` may ask for: an image's brightest
            pixel then decides its score.
    ssim  = Wang et al., 2004: Gaussian windows of 11 pixels, sigma 1.5, the mean over those wholly inside the image.
    mae   = sum |p - t| / n
    nrmse = sqrt(sum (p - t)^2 / sum t^2), FD-GAN's Eq. 8; scikit-image's "euclidean"
    nmse  = its square, as in HMF-MambaINR

    Args:
        prediction: (N, H, W).
        truth: (N, H, W).
        mask: (N, H, W), boolean; the figures are over what it marks, where one is given.
        data_range: r.
        protocol: PSNR's maximum and SSIM's windows.

    Returns:
        (N,) for each of FIGURES.

    Raises:
        ValueError: shapes that differ, values that are not finite, an empty mask.
    """
    check_pair(prediction, truth, mask=mask, data_range=data_range, dimensions="(N, H, W)", window=protocol.window)
    (sums,) = _sums(prediction.float(), truth.float(), [mask], data_range=data_range, protocol=protocol)
    return _figures(sums, data_range, protocol)


def ssim_map(prediction: Tensor, truth: Tensor, *, data_range: float = 1.0, protocol: Protocol = OURS) -> Tensor:
    """Compute the similarity in the window round each pixel.

    Args:
        prediction, truth: (..., H, W).
        data_range: the range that images may have.
        protocol: of which windows.

    Returns:
        (..., H - w + 1, W - w + 1), w the window's side.
    """
    images = torch.stack([prediction, truth, prediction * prediction, truth * truth, prediction * truth])
    mean_p, mean_t, mean_pp, mean_tt, mean_pt = _windowed(images, protocol)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    product, squares = mean_p * mean_t, mean_p * mean_p + mean_t * mean_t
    sample = protocol.window**2 / (protocol.window**2 - 1) if protocol.ssim == "uniform" else 1.0
    covariance, variances = sample * (mean_pt - product), sample * (mean_pp + mean_tt - squares)
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def stripes(
    prediction: Tensor, truth: Tensor, *, spacing: tuple[float, float, float], mask: Tensor | None = None
) -> float:
    """Measure how much rougher the error is from slice to slice than in the plane; 0 is best.

    A 2D network places each slice's intensities by itself: its volumes show stripes in the sagittal and coronal
    planes. Of the error e, R(axis, d) is the mean of (e[n - d] - 2 e[n] + e[n + d])^2 / 6, and the excess is R along k
    with d = 1 less the mean of R along i and j, d being as long there as from one slice to the next. Slices that are
    off by independent amounts of standard deviation s have an excess of s^2; error that is smooth, and noise that is
    alike in all directions, have none. The figure is s: the excess' square root, 0 where it is negative, in the
    images' unit.

    Args:
        prediction, truth: (I, J, K), the slices along K.
        spacing: of the voxels in mm.
        mask: (I, J, K), boolean; without it all voxels count.

    Returns:
        s, or NaN where there are too few slices to tell.
    """
    error = prediction - truth
    across = _roughness(error, mask, axis=2, step=1)
    within = [_roughness_at(error, mask, axis=axis, distance=spacing[2] / spacing[axis]) for axis in range(2)]
    return math.sqrt(max(0.0, across - sum(within) / 2)) if all(map(math.isfinite, [across, *within])) else math.nan


def check_pair(
    prediction: Tensor, truth: Tensor, *, mask: Tensor | None, data_range: float, dimensions: str, window: int
) -> None:
    """Refuse what no figure can be told of.

    Args:
        prediction, truth, mask, data_range: as of `compare_volumes`.
        dimensions: in letters, for the message.
        window: the side of SSIM's.

    Raises:
        ValueError: shapes that differ, slices smaller than SSIM's window, values that are not finite, an empty mask.
    """
    if prediction.shape != truth.shape or truth.ndim != 3:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"prediction and truth must have one shape {dimensions}, got {shapes}")
    plane = truth.shape[:2] if dimensions.endswith("K)") else truth.shape[1:]
    if min(plane) < window:
        raise ValueError(f"slices must be at least {window} x {window} pixels, SSIM's window, got {tuple(plane)}")
    if not truth.numel():
        raise ValueError("there must be at least one slice to compare, got none")
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not image.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {image.dtype}: scale it to the data range first")
        if not torch.isfinite(image).all():
            bad = int((~torch.isfinite(image)).sum())
            raise ValueError(f"{name} has {bad} of {image.numel()} voxels that are NaN or infinite")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != truth.shape:
            described = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"mask must be torch.bool of the truth's shape {tuple(truth.shape)}, got {described}")
        if not mask.any():
            raise ValueError("mask is empty: it must mark at least one voxel")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be above 0, got {data_range}")


def _sums(
    prediction: Tensor, truth: Tensor, masks: Sequence[Tensor | None], *, data_range: float, protocol: Protocol
) -> list[dict[str, Tensor]]:
    """(N, H, W), (N, H, W) -> for each mask what all figures are made of, (N,) each; None is the whole image"""
    batches: list[list[Tensor]] = [[] for _ in masks]
    half = protocol.window // 2
    for first in range(0, len(truth), _BATCH):
        batch = slice(first, first + _BATCH)
        p, t = prediction[batch].contiguous(), truth[batch].contiguous()
        error = p - t
        voxels = [error * error, error.abs(), t * t, torch.ones_like(t)]
        windows = [ssim_map(p, t, data_range=data_range, protocol=protocol)]
        windows.append(torch.ones_like(windows[0]))
        for done, mask in zip(batches, masks, strict=True):
            terms, real = [*voxels, *windows], t
            if mask is not None:
                inside = mask[batch]
                centres = inside[:, half:-half, half:-half]
                terms, real = [*(term * inside for term in voxels), *(term * centres for term in windows)], t * inside
            done.append(torch.stack([*(term.sum(dim=(1, 2)) for term in terms), real.amax(dim=(1, 2))]))
    names = ("squared", "absolute", "power", "voxels", "similar", "windows", "peak")
    return [dict(zip(names, torch.cat(done, dim=1).cpu().double(), strict=True)) for done in batches]


def _total(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.max() if name == "peak" else value.sum() for name, value in sums.items()}


def _figures(sums: Mapping[str, Tensor], data_range: float, protocol: Protocol) -> dict[str, Tensor]:
    """Each figure from its sums: 0 / 0, a mask without voxels or a truth without signal, is NaN."""
    mean_squared = sums["squared"] / sums["voxels"]
    peak = torch.as_tensor(data_range, dtype=torch.float64)
    if protocol.peak == "image":
        peak = torch.where(sums["peak"] > 0, sums["peak"], math.nan)
    nmse = torch.where(sums["power"] > 0, sums["squared"] / sums["power"], math.nan)
    return {
        "psnr": (10 * torch.log10(peak**2 / mean_squared)).clamp(max=PSNR_LIMIT),
        "ssim": sums["similar"] / sums["windows"],
        "mae": sums["absolute"] / sums["voxels"],
        "nrmse": nmse.sqrt(),
        "nmse": nmse,
    }


def _windowed(images: Tensor, protocol: Protocol) -> Tensor:
    """(..., H, W) -> (..., H - w + 1, W - w + 1): weighted means, as sums of shifted images, exact and quick"""
    half = protocol.window // 2
    weights = [1.0] * protocol.window
    if protocol.ssim == "gaussian":
        weights = [math.exp(-0.5 * ((step - half) / SIGMA) ** 2) for step in range(protocol.window)]
    weights = [weight / sum(weights) for weight in weights]
    for axis in (-2, -1):
        size = images.shape[axis] - protocol.window + 1
        mean = weights[half] * images.narrow(axis, half, size)
        for step in range(half):
            pair = images.narrow(axis, step, size) + images.narrow(axis, protocol.window - 1 - step, size)
            mean.add_(pair, alpha=weights[step])
        images = mean
    return images


def _roughness_at(error: Tensor, mask: Tensor | None, *, axis: int, distance: float) -> float:
    """At a distance that is no whole number of steps: as a power of the distance, through the two steps next to it."""
    step = max(1, math.floor(distance))
    near, far = (_roughness(error, mask, axis=axis, step=number) for number in (step, step + 1))
    if not near > 0 or not far > 0:  # NaN too
        return near
    power = math.log(far / near) / math.log((step + 1) / step)
    return near * (distance / step) ** power


def _roughness(error: Tensor, mask: Tensor | None, *, axis: int, step: int) -> float:
    """Mean squared second difference / 6, which is the variance of independent values; over triples in the mask."""
    size = error.shape[axis] - 2 * step
    if size < 1:
        return math.nan
    before, middle, after = (error.narrow(axis, first, size) for first in (0, step, 2 * step))
    squared = (before - 2 * middle + after).square()
    if mask is None:
        return float(squared.mean()) / 6
    inside = mask.narrow(axis, 0, size) & mask.narrow(axis, step, size) & mask.narrow(axis, 2 * step, size)
    return float(squared[inside].mean()) / 6  # NaN where no triple is inside

"""Where the head is and where the brain is: plain methods, each one said in a line."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.resampling import isotropic, resample
from monai_ext.data.volumes import Volume

_LEAST_ZERO_SHARE = 0.3  # a skull-stripped image has more, even in a box cut tightly round the brain
_PEELING_SPACING = 2.0  # mm
_PEEL = 8.0  # mm: of 4 and 8 tried on four scans, 8 lost no brain and kept no scalp


def foreground(volume: Volume) -> NDArray[np.bool_]:
    """Mark what is not background: not zero where the background is zero, else above Otsu's threshold; holes filled.

    Args:
        volume: (I, J, K), of any units.

    Returns:
        Boolean, (I, J, K), the largest piece alone.

    Example:
        >>> array = np.zeros((8, 8, 8), np.float32)
        >>> array[2:6, 2:6, 2:6] = 1
        >>> array[3, 3, 3] = 0  # a hole
        >>> int(foreground(Volume(array, np.eye(4))).sum())
        64
    """
    if has_zero_background(volume):
        return zero_background(volume)
    return _solid(volume.array > otsu(volume.array))


def has_zero_background(volume: Volume) -> bool:
    """Say whether so many voxels are exactly zero that somebody set them so.

    Args:
        volume: (I, J, K).

    Returns:
        Whether 30 % of its voxels or more are exactly 0.
    """
    return bool(np.mean(volume.array == 0) >= _LEAST_ZERO_SHARE)


def zero_background(volume: Volume) -> NDArray[np.bool_]:
    """Mark the largest piece that is not zero, holes filled: for images that were skull-stripped already.

    Args:
        volume: (I, J, K), 0 outside of the brain.

    Returns:
        Boolean, (I, J, K).

    Raises:
        ValueError: too few voxels are zero for a background that was cut away.
    """
    if not has_zero_background(volume):
        share = float(np.mean(volume.array == 0))
        raise ValueError(
            f"{share:.0%} of the voxels are zero, where a zero background has at least "
            f"{_LEAST_ZERO_SHARE:.0%}: give a mask file, or otsu where the skull is still there"
        )
    return _solid(volume.array != 0)


def otsu_brain(volume: Volume) -> NDArray[np.bool_]:
    """Mark a brain in its skull: above Otsu's threshold, peeled, the largest piece, grown back, filled.

    Peeling 8 mm off breaks the bridges from brain to scalp. It rests on bone and fluid being darker than
    brain and scalp, as on T1 and FLAIR; the edge is good to some millimetres, so look at the result.

    Args:
        volume: (I, J, K) of a head, of any voxel size.

    Returns:
        Boolean, (I, J, K).

    Raises:
        ValueError: nothing bright is deep enough to be a brain.
    """
    coarse = isotropic(volume, _PEELING_SPACING)
    bright = coarse.array > otsu(coarse.array)
    core = _solid(_deeper(bright, _PEEL))
    if not core.any():
        raise ValueError(f"no brain was found: nothing bright is {_PEEL} mm deep; give a mask file")
    brain = _solid(bright & ~_deeper(~core, _PEEL + _PEELING_SPACING))
    pad = round(2 * _PEEL / _PEELING_SPACING)
    wider = np.pad(brain, pad)  # else what grows to the image's edge would not shrink back from it
    closed = _deeper(~_deeper(~wider, _PEEL), _PEEL)
    brain = _filled(closed[pad:-pad, pad:-pad, pad:-pad])
    fine = resample(Volume(brain.astype(np.float32), coarse.affine), volume.shape, volume.affine, order=1)
    return fine.array > 0.5


def otsu(values: NDArray[np.float32], *, bins: int = 256) -> float:
    """Compute Otsu's threshold: the cut that leaves least variance within its two sides; without the top 0.5 %.

    Args:
        values: of any shape, finite, not all the same.
        bins: of the histogram, from the least value to the percentile 99.5.

    Returns:
        The threshold, in the values' units: what is above it is bright.
    """
    limits = (float(values.min()), float(np.percentile(values, 99.5)))
    counts, edges = np.histogram(values, bins=bins, range=limits)
    middles = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * middles) / np.maximum(below, 1)
    mean_above = np.cumsum((counts * middles)[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(edges[1 + np.argmax(between)])


def _deeper(mask: NDArray[np.bool_], depth: float) -> NDArray[np.bool_]:
    """Which voxels lie more than `depth` mm inside the mask, which goes on beyond the image's edge.

    What a distance transform says, in less time: squares of distances, axis by axis and no further than asked.
    """
    reach = round(depth / _PEELING_SPACING)
    square = np.where(mask, np.uint8(255 - reach**2), np.uint8(0))
    for axis in range(mask.ndim):
        before = np.moveaxis(square.copy(), axis, 0)
        after = np.moveaxis(square, axis, 0)
        for step in range(1, reach + 1):
            np.minimum(after[step:], before[:-step] + step**2, out=after[step:])
            np.minimum(after[:-step], before[step:] + step**2, out=after[:-step])
    return square > reach**2


def _solid(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece, without holes."""
    pieces, count = ndimage.label(mask)
    if count > 1:
        mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return _filled(mask)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without holes: all that is not joined to what lies around the image."""
    around = np.pad(~mask, 1, constant_values=True)
    pieces, _ = ndimage.label(around)
    return (pieces != pieces[0, 0, 0])[1:-1, 1:-1, 1:-1]

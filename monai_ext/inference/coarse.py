"""A scan as a glance sees it: cubes of 4 mm along RAS, in milliseconds, whatever its size and plane."""

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.resampling import resample, to_ras
from monai_ext.data.volumes import Volume

STEP = 4.0  # mm
SIDE = 56  # cubes along each side of what the recogniser sees: 224 mm
TOP = 99.0  # percentile of the foreground that becomes 1
CEILING = 1.6  # brighter than this is clipped
MOST_CUBES = 160  # along a side: 64 cm


@dataclass(frozen=True)
class Glance:
    """`array` (I, J, K) at STEP mm along RAS, the foreground's percentile TOP at 1; `head` what is no background."""

    array: NDArray[np.float32]
    head: NDArray[np.bool_]
    affine: NDArray[np.float64]


def glance(volume: Volume) -> Glance:
    """Average a volume to cubes of STEP mm along RAS: its voxels are averaged first, so that nothing large is
    filtered.

    Args:
        volume: of any size, orientation and units.

    Returns:
        The cubes, from 0 to CEILING, and where the head is among them.

    Raises:
        ValueError: the image shows nothing that stands out, or covers more than any head.

    Example:
        >>> away = np.linalg.norm(np.mgrid[-12:12, -12:12, -12:12] + 0.5, axis=0)
        >>> ball = Volume(np.where(away < 8, 100, 0).astype(np.float32), np.diag([8.0, 8.0, 8.0, 1.0]))
        >>> glance(ball).array.shape, bool(glance(ball).head[24, 24, 24])
        ((48, 48, 48), True)
    """
    extent = np.array(volume.shape) * volume.spacing
    if extent.max() > MOST_CUBES * STEP:
        sides = " x ".join(f"{side:.0f}" for side in extent)
        raise ValueError(f"the image covers {sides} mm, where {MOST_CUBES * STEP:.0f} mm is more than any head")
    small = pooled(to_ras(volume), STEP)
    # Axes may still be turned by up to 45 degrees: the grid stands straight in the world.
    corners = apply_affine(small.affine, [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)] * _last(small))
    low, high = corners.min(axis=0) - small.spacing / 2, corners.max(axis=0) + small.spacing / 2
    shape = np.maximum(np.rint((high - low) / STEP).astype(int), 1)
    affine = np.diag([STEP, STEP, STEP, 1.0])
    affine[:3, 3] = (low + high) / 2 - (shape - 1) * STEP / 2
    array = np.maximum(resample(small, shape.tolist(), affine, order=1).array, 0)
    head = foreground(array)
    if not head.any():
        raise ValueError("nothing in the image stands out from its background")
    return Glance(scaled(array, head), head, affine)


def foreground(array: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark what is brighter than a twelfth of the bright, without specks, holes filled.

    Args:
        array: (I, J, K) cubes, the background at 0 or noise.

    Returns:
        Boolean, (I, J, K), its largest piece; all False where nothing is above 0.
    """
    bright = array[array > 0]
    if not bright.size:
        return np.zeros(array.shape, dtype=bool)
    head = array > max(float(np.percentile(bright, TOP)) / 12, 2.5 * _noise(array))
    pieces, count = ndimage.label(head)
    if count > 1:
        head = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(head, 2), iterations=2))[2:-2, 2:-2, 2:-2]


def scaled(array: NDArray[np.float32], head: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale an image so that the head's percentile TOP becomes 1.

    Args:
        array: (I, J, K), of any units.
        head: boolean, (I, J, K), not empty.

    Returns:
        float32, from 0 to CEILING.
    """
    top = max(float(np.percentile(array[head], TOP)), 1e-9)
    return np.clip(array / top, 0, CEILING).astype(np.float32)


def cube(array: NDArray[np.float32], head: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Cut or pad to the SIDE cubes round the head's middle.

    Args:
        array: (I, J, K).
        head: boolean, (I, J, K), not empty.

    Returns:
        float32 (SIDE, SIDE, SIDE), 0 beyond the array.
    """
    result = np.zeros((SIDE,) * 3, dtype=np.float32)
    into, out = [], []
    for axis, n in enumerate(array.shape):
        filled = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
        start = int(np.rint((filled[0] + filled[-1]) / 2 - (SIDE - 1) / 2))
        first, stop = max(start, 0), min(start + SIDE, n)
        out.append(slice(first, stop))
        into.append(slice(first - start, stop - start))
    result[tuple(into)] = array[tuple(out)]
    return result


def _noise(array: NDArray[np.float32]) -> float:
    """The level of the air, from the grid's corners; 0 where it was set to 0."""
    a, b, c = (max(n // 12, 1) for n in array.shape)
    corners = [array[i, j, k] for i in (slice(a), slice(-a, None)) for j in (slice(b), slice(-b, None))
               for k in (slice(c), slice(-c, None))]  # fmt: skip
    return float(np.median([np.median(corner) for corner in corners]))


def _last(volume: Volume) -> NDArray[np.int_]:
    return np.array(volume.shape) - 1


def pooled(volume: Volume, step: float) -> Volume:
    """Average whole voxels.

    Args:
        volume: of any size.
        step: mm, what their sides come to at most.

    Returns:
        The volume of fewer voxels; axes that are coarser already stay as they are.
    """
    array, affine = volume.array, volume.affine.copy()
    for axis, size in enumerate(volume.spacing):
        count = min(int(step / size + 0.25), array.shape[axis])
        if count < 2:
            continue
        whole = array.shape[axis] // count * count
        starts = np.arange(0, whole, count)
        cut = array.take(range(whole), axis=axis) if whole < array.shape[axis] else array
        array = np.add.reduceat(cut, starts, axis=axis, dtype=np.float32) / count
        affine[:3, 3] += affine[:3, axis] * (count - 1) / 2
        affine[:3, axis] *= count
    return Volume(np.ascontiguousarray(array, dtype=np.float32), affine)

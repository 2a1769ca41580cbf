"""Volumes on other grids: turned to RAS order, and resampled through world space."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.declared import check_count
from monai_ext.data.volumes import Volume

IDENTITY = np.eye(4)
_SAME_VOXEL = 0.01  # voxels: grids nearer than this differ by how their headers round
_FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations


def to_ras(volume: Volume) -> Volume:
    """Swap and flip the axes, nothing interpolated: i then runs to the right, j to the front, k to the top.

    Args:
        volume: of any orientation; axes that are turned by less than 45 degrees stay turned.

    Returns:
        The same voxels in another order, and the affine that keeps each where it was.

    Example:
        >>> leftwards = Volume(np.arange(8.0).reshape(2, 2, 2), np.diag([-1.0, 1.0, 1.0, 1.0]))
        >>> to_ras(leftwards).array[:, 0, 0].tolist(), to_ras(leftwards).affine[0].tolist()
        ([4.0, 0.0], [1.0, 0.0, 0.0, -1.0])
    """
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt("RAS"))
    array = apply_orientation(volume.array, turn)
    return Volume(array, volume.affine @ inv_ornt_aff(turn, volume.shape))


def resample(
    volume: Volume,
    shape: Sequence[int],
    affine: NDArray[np.float64],
    *,
    to_volume: NDArray[np.float64] = IDENTITY,
    order: int = 3,
    touching: bool = False,
) -> Volume:
    """Put a volume on another grid.

    A voxel is a box, not a point: up to half a voxel beyond the outermost centres their values go on. Where the new
    voxels are larger than the old, an image is first smoothed by the Gaussian that makes up the difference in
    resolution.

    Args:
        volume: what is read.
        shape, affine: of the new grid.
        to_volume: 4 x 4, from the grid's world to the volume's, in mm.
        order: the spline's: 3 for images, 0 for labels.
        touching: whether a larger new voxel is outside only where none of it lies within.

    Returns:
        The volume on the grid, 0 outside of the old field of view.

    Example:
        >>> thick = Volume(np.arange(4.0).reshape(1, 1, 4), np.diag([1.0, 1.0, 4.0, 1.0]))
        >>> thin = resample(thick, (1, 1, 5), np.diag([1.0, 1.0, 2.0, 1.0]), order=1)
        >>> thin.array[0, 0].tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    size = tuple(shape)
    check_count("the grid to resample on", size)  # a header may say that voxels are metres wide
    index = np.linalg.inv(volume.affine) @ to_volume @ affine  # index on the grid -> index in the volume
    shift = np.rint(index[:3, 3]).astype(int)
    corners = np.array(list(product(*((0, n - 1) for n in size))))  # between them no voxel is further off
    if np.abs(apply_affine(index, corners) - (corners + shift)).max() < _SAME_VOXEL:
        return Volume(_moved(volume.array, size, shift), affine)
    array = volume.array.astype(np.float32, copy=False)
    steps = np.abs(index[:3, :3]).max(axis=1)  # how many old voxels a new one spans along each old axis
    margins = 0.5 + (np.maximum(steps - 1, 0) / 2 if touching else np.zeros(3))
    if order > 0:
        array = ndimage.gaussian_filter(array, np.sqrt(np.maximum(steps**2 - 1, 0)) / _FWHM)
    linear, offset = index[:3, :3], index[:3, 3]
    if np.abs(linear - np.diag(np.diag(linear))).max() * max(size) < _SAME_VOXEL:
        return Volume(_axis_by_axis(array, size, np.diag(linear), offset, margins, order=order), affine)
    result = ndimage.affine_transform(
        array, linear, offset, output_shape=size, output=np.float32, order=order, mode="nearest"
    )
    for row, first, n, margin in zip(linear, offset, array.shape, margins, strict=True):
        place = sum((step * index for step, index in zip(row, np.ogrid[tuple(map(slice, size))], strict=True)), first)
        result[_outside(place, n, margin)] = 0
    return Volume(result, affine)


def _outside(place: NDArray[np.float64], n: int, margin: float) -> NDArray[np.bool_]:
    """Which indices along an axis of `n` voxels lie more than `margin` beyond its outermost centres."""
    return (place < -margin - _SAME_VOXEL) | (place > n - 1 + margin + _SAME_VOXEL)


def _axis_by_axis(
    array: NDArray[np.float32],
    size: Sequence[int],
    steps: NDArray[np.float64],
    offset: NDArray[np.float64],
    margins: NDArray[np.float64],
    *,
    order: int,
) -> NDArray[np.float32]:
    """What `ndimage.affine_transform` gives without a rotation, ten times faster: a small matrix for each axis."""
    for axis, (new, step, first, margin) in enumerate(zip(size, steps, offset, margins, strict=True)):
        unit = np.eye(array.shape[axis], dtype=np.float32)
        weights = ndimage.affine_transform(
            unit, [step, 1.0], [first, 0.0], output_shape=(new, len(unit)), order=order, mode="nearest"
        )
        weights[_outside(first + step * np.arange(new), len(unit), margin)] = 0
        array = np.moveaxis(np.tensordot(weights, array, axes=(1, axis)), 0, axis)
    return array


def _moved(array: NDArray[Any], size: Sequence[int], shift: NDArray[np.int_]) -> NDArray[Any]:
    """Cropped and padded with zeros, untouched otherwise: `result[x] = array[x + shift]`."""
    result = np.zeros(size, dtype=array.dtype)
    first, stop = np.maximum(shift, 0), np.minimum(shift + size, array.shape)
    if np.all(first < stop):
        into = tuple(slice(a, b) for a, b in zip(first - shift, stop - shift, strict=True))
        result[into] = array[tuple(slice(a, b) for a, b in zip(first, stop, strict=True))]
    return result


def isotropic(volume: Volume, spacing: float) -> Volume:
    """Resample the same field of view in cubes of `spacing` mm, linearly interpolated: a grid to work on.

    Args:
        volume: of any voxel size.
        spacing: mm, above 0.

    Returns:
        At least one cube along each axis, along the volume's own axes.

    Raises:
        ValueError: there would be more voxels than may be.
    """
    step = spacing / volume.spacing
    shape = [max(1, int(np.ceil(size / s))) for size, s in zip(volume.shape, step, strict=True)]
    index = np.diag([*step, 1.0])
    index[:3, 3] = (step - 1) / 2  # the first small voxel's outer corner is the first cube's
    return resample(volume, shape, volume.affine @ index, order=1)


def share_inside(volume: Volume, points: NDArray[np.float64]) -> float:
    """Say which share of some points a volume's field of view holds.

    Args:
        volume: whose field of view.
        points: (n, 3), in the volume's world, in mm.

    Returns:
        0 to 1; a voxel is a box, so what is up to half a voxel beyond the outermost centres is inside.
    """
    index = apply_affine(np.linalg.inv(volume.affine), points)
    return float(np.all((index > -0.5) & (index < np.array(volume.shape) - 0.5), axis=-1).mean())


def slice_grid(
    reference: Volume,
    *,
    spacing: Sequence[float | None],
    crop: Sequence[int] | None,
    size: Sequence[int] | None,
    keep: NDArray[np.bool_],
    whole: bool = False,
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Lay out the grid of the reference's slices at `spacing`, cut to `crop`, then resized to `size`.

    The cut is the middle of the field of view, moved no further than it takes to hold the box round the mask; beyond
    the field it pads.

    Args:
        reference: in RAS order.
        spacing: in mm along i, j, k; None keeps the reference's.
        crop: voxels along i and j; None keeps all.
        size: voxels along i and j after that; None keeps them.
        keep: a mask of the reference's shape, what the cut is to hold.
        whole: nothing is cut off: the same voxels, and as many more of them as hold all of the reference's.

    Returns:
        Shape and affine; all slices are kept.
    """
    old = np.array(reference.shape, dtype=float)
    step = np.array([new / own if new else 1.0 for new, own in zip(spacing, reference.spacing, strict=True)])
    shape = np.maximum(1, np.rint(old / step))
    start = ((old - 1) - (shape - 1) * step) / 2  # the first new voxel's place, in old voxels
    for axis, cut in enumerate(crop or ()):
        filled = np.flatnonzero(keep.any(axis=tuple({0, 1, 2} - {axis})))
        edges = np.array([filled[0] - 0.5, filled[-1] + 0.5])
        low, high = (edges - start[axis]) / step[axis] + 0.5  # now in new voxels, the first one's edge is 0
        first = np.floor((shape[axis] - cut) / 2)
        if high - low <= cut:
            first = np.clip(first, high - cut, low)  # whole numbers, unless the spacing is new
        start[axis] += first * step[axis]
        shape[axis] = cut
    for axis, final in enumerate(size or ()):
        zoom = shape[axis] / final
        start[axis] += step[axis] * (zoom - 1) / 2
        step[axis] *= zoom
        shape[axis] = final
    if whole:  # every old voxel's centre is to lie within a new voxel
        before = np.maximum(0, np.ceil((start - step / 2) / step - _SAME_VOXEL))
        after = np.maximum(0, np.ceil((old - 1 - start) / step - (shape - 0.5) - _SAME_VOXEL))
        start -= before * step
        shape += before + after
    index = np.diag([*step, 1.0])
    index[:3, 3] = start
    i, j, k = (int(n) for n in shape)
    return (i, j, k), reference.affine @ index

"""Volumes on other grids: turned to RAS order, and resampled through world space."""

from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.volumes import Volume

IDENTITY = np.eye(4)
_FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations


def to_ras(volume: Volume) -> Volume:
    """Axes swapped and flipped, nothing interpolated: i runs to the right, j to the front, k to the top."""
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
) -> Volume:
    """`volume` on the grid (shape, affine); `to_volume` maps the grid's world to the volume's, outside is 0.

    `order` is the spline's: 3 for images, 0 for labels. Where the new voxels are larger than the old,
    an image is first smoothed by the Gaussian that makes up the difference in resolution.
    """
    shape = tuple(shape)
    if shape == volume.shape and np.allclose(to_volume @ affine, volume.affine, atol=1e-4):
        return Volume(volume.array, affine)
    index = np.linalg.inv(volume.affine) @ to_volume @ affine  # index on the grid -> index in the volume
    array = volume.array.astype(np.float32, copy=False)
    if order > 0:
        steps = np.abs(index[:3, :3]).max(axis=1)  # how many old voxels a new one spans along each old axis
        array = ndimage.gaussian_filter(array, np.sqrt(np.maximum(steps**2 - 1, 0)) / _FWHM)
    array = ndimage.affine_transform(
        array, index[:3, :3], index[:3, 3], output_shape=shape, output=np.float32, order=order
    )
    return Volume(array, affine)


def isotropic(volume: Volume, spacing: float) -> Volume:
    """The same field of view in cubes of `spacing` mm, linearly interpolated: a grid to work on."""
    step = spacing / volume.spacing
    shape = [max(1, int(np.ceil(size / s))) for size, s in zip(volume.shape, step, strict=True)]
    index = np.diag([*step, 1.0])
    index[:3, 3] = (step - 1) / 2  # the first small voxel's outer corner is the first cube's
    return resample(volume, shape, volume.affine @ index, order=1)


def share_inside(volume: Volume, reference: Volume, *, to_volume: NDArray[np.float64] = IDENTITY) -> float:
    """The share of the reference's field of view that `volume` covers, on a coarse lattice of points."""
    lattice = np.meshgrid(*[np.linspace(0, size - 1, 24) for size in reference.shape], indexing="ij")
    world = apply_affine(to_volume @ reference.affine, np.stack(lattice, axis=-1))
    index = apply_affine(np.linalg.inv(volume.affine), world)
    return float(np.all((index > -0.5) & (index < np.array(volume.shape) - 0.5), axis=-1).mean())

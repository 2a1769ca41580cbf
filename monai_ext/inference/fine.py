"""What a contrast is told by: slices of 2 mm across the brain, which 4 mm would blur into each other."""

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from monai_ext.data.resampling import resample, to_ras
from monai_ext.data.volumes import Volume
from monai_ext.inference.coarse import Glance, pooled

STEP = 2.0  # mm
COUNT = 9
SHAPE = (80, 96)  # to the right, to the front
FIRST = 8  # steps below the top of the head
APART = 6  # steps
INNER = (18, 24)  # steps: half axes of an ellipse that the brain fills in every slice
CEILING = 4.0  # brighter than this is clipped: fluid of T2, scalps


def slices(volume: Volume, glance: Glance, turn: NDArray[np.int_]) -> NDArray[np.float32]:
    """Cut a head across, from its top downwards.

    Args:
        volume: of any size, orientation and units.
        glance: of `volume`.
        turn: (3, 3), of `recogniser.upright_axes`: where the head's right, front and top lie.

    Returns:
        (COUNT, *SHAPE), scaled by `levelled`, 0 beyond the volume.
    """
    filled = [np.flatnonzero(glance.head.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low = apply_affine(glance.affine, [line[0] - 0.5 for line in filled])
    high = apply_affine(glance.affine, [line[-1] + 0.5 for line in filled])
    up = turn[:, 2]
    top = (low + high) / 2 + up * (high - low) / 2
    affine = np.eye(4)
    affine[:3, :3] = STEP * turn * (1, 1, -1)
    affine[:3, 3] = top - affine[:3, :3] @ ((SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2, -FIRST)
    small = pooled(to_ras(volume), STEP)
    planes = resample(small, (*SHAPE, APART * (COUNT - 1) + 1), affine, order=1).array[:, :, ::APART]
    return levelled(np.maximum(planes, 0).transpose(2, 0, 1))


def levelled(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale slices by the brain's middle, so that a scalp's brightness, which differs most, changes nothing.

    Args:
        planes: (N, *SHAPE), of any units, nothing below 0.

    Returns:
        float32 (N, *SHAPE), the median of what is above 0 within INNER at 1, from 0 to CEILING.
    """
    i, j = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    inner = planes[:, (i[:, None] / INNER[0]) ** 2 + (j / INNER[1]) ** 2 < 1]
    bright = inner[inner > 0]
    level = max(float(np.median(bright)), 1e-9) if bright.size else 1.0
    return np.minimum(planes / level, CEILING).astype(np.float32)

"""A head of nested balls, as a label map in FreeSurfer's numbering."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.volumes import Volume, write_volume

SIZE = 132
# The label inside each radius in mm, from without to within.
SHELLS = ((62, 511), (58, 515), (52, 24), (48, 3), (42, 2))


def ball_labels() -> NDArray[np.int32]:
    """Skin, bone, fluid, cortex and white matter, two ventricles, a nucleus on one side: 1 mm, RAS."""
    axes = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing="ij", sparse=True)
    distance = np.sqrt(sum(a**2 for a in axes))
    labels = np.zeros((SIZE,) * 3, dtype=np.int32)
    for radius, label in SHELLS:
        labels[distance < radius] = label
    i, j, k = axes
    labels[((abs(i) - 9) / 6) ** 2 + (j / 18) ** 2 + (k / 9) ** 2 < 1] = 4
    labels[((i - 24) / 7) ** 2 + (j / 9) ** 2 + (k / 9) ** 2 < 1] = 12
    return labels


def write_labels(path: Path, labels: NDArray[np.int32], affine: NDArray[np.float64] | None = None) -> Path:
    write_volume(path, Volume(labels.astype(np.float32), np.eye(4) if affine is None else affine), dtype=np.int16)
    return path

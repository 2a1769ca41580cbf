"""A montage of one prepared subject, made to show a bad alignment: the reference's edges drawn over every contrast."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.montage import montage
from monai_ext.data.volumes import read_volume

VIEW_MM = 1.0  # the pixel of the pictures
SHARPEST = 0.12  # of the foreground's pixels, those with the steepest slope, are drawn as edges


def write_qc(folder: Path, record: dict[str, Any]) -> Path:
    """qc.png: a row a contrast, three planes through the head as they are and under the reference's edges."""
    reference = record["reference"]["contrast"]
    names = [reference, *(name for name in record["images"] if name != reference)]
    mask = read_volume(folder / "mask.nii", allow_constant=True)
    inside = _planes(mask.array, mask.array, mask.spacing)
    edges = None
    rows, titles = [], []
    for name in names:
        planes = _planes(read_volume(folder / f"{name}.nii").array, mask.array, mask.spacing)
        if edges is None:
            edges = [_edges(plane, where > 0.5) for plane, where in zip(planes, inside, strict=True)]
        drawn = [np.where(edge, 1.0, 0.8 * plane) for plane, edge in zip(planes, edges, strict=True)]
        rows.append([*planes, *drawn])
        moved = record["images"][name]["moved_mm"]
        note = f", moved {moved:.1f} mm" if moved > 0 else ""
        titles.append([f"{name}{note}", "", "", f"{name} under the edges of {reference}", "", ""])
    return montage(rows, titles=titles, path=folder / "qc.png")


def _planes(
    array: NDArray[np.float32], mask: NDArray[np.float32], spacing: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """Axial, sagittal and coronal through the mask's middle, front and top upwards, in square pixels."""
    i, j, k = (round(float(middle)) for middle in ndimage.center_of_mass(mask > 0))
    planes = []
    for plane, axes in ((array[:, :, k], (0, 1)), (array[i], (1, 2)), (array[:, j], (0, 2))):
        zoom = spacing[list(axes)] / VIEW_MM
        planes.append(ndimage.zoom(plane, zoom, order=1).T[::-1])
    return planes


def _edges(plane: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The ridges of the steepest slopes: thin lines."""
    slope = ndimage.gaussian_gradient_magnitude(plane, 1.0)
    across = np.maximum(
        np.minimum(slope - np.roll(slope, 1, 0), slope - np.roll(slope, -1, 0)),
        np.minimum(slope - np.roll(slope, 1, 1), slope - np.roll(slope, -1, 1)),
    )
    ridge = (across > 0) & inside
    if not ridge.any():
        return ridge
    count = max(1, round(SHARPEST * np.count_nonzero(inside)))
    steep = np.partition(slope[ridge], -min(count, ridge.sum()))[-min(count, ridge.sum())]
    return ridge & (slope >= steep)

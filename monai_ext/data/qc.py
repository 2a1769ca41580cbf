"""A montage of one prepared subject, made to show a bad alignment: the reference's edges drawn over every contrast."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.montage import montage
from monai_ext.data.volumes import Volume, read_volume

VIEW_MM = 1.0  # the pixel of the pictures
MARGIN_MM = 12.0
SHARPEST = 0.12  # of the foreground's pixels, those with the steepest slope, are drawn as edges


def write_qc(folder: Path, record: dict[str, Any]) -> Path:
    """Write qc.png: a row a contrast, three planes through the head as they are and under the reference's edges.

    A label map has a row of its own: the planes that hold most of it, plain and with its outline.

    Args:
        folder: a prepared subject's.
        record: its sidecar.

    Returns:
        The picture's path.
    """
    reference = record["reference"]["contrast"]
    names = [reference, *(name for name in record["images"] if name != reference)]
    mask = read_volume(folder / "mask.nii", allow_constant=True)
    box = _box(mask)
    images = {name: _cut(read_volume(folder / f"{name}.nii", allow_constant=True), box) for name in names}
    mask = _cut(mask, box)
    middle = [round(float(index)) for index in ndimage.center_of_mass(mask.array)]
    inside = [plane > 0.5 for plane in _planes(mask, middle)]
    edges = [_edges(plane, where) for plane, where in zip(_planes(images[reference], middle), inside, strict=True)]
    rows, titles = [], []
    for name, image in images.items():
        planes = _planes(image, middle)
        rows.append([*planes, *_drawn(planes, edges)])
        moved = record["images"][name]["moved_mm"]
        note = f", moved {moved:.1f} mm" if moved > 0 else ""
        titles.append([f"{name}{note}", "", "", f"{name} under the edges of {reference}", "", ""])
    if (folder / "label.nii").exists():
        label = _cut(read_volume(folder / "label.nii", allow_constant=True), box)
        if label.array.any():
            marked = label.array > 0
            most = [int(np.argmax(marked.sum(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
            name = "FLAIR" if "FLAIR" in images else reference  # where most labels of brains were drawn
            planes, shown = _planes(images[name], most), [plane > 0.5 for plane in _planes(label, most)]
            outlines = [ndimage.binary_dilation(plane) & ~plane for plane in shown]
            rows.append([*planes, *_drawn(planes, outlines)])
            titles.append([name, "", "", f"label on {name}", "", ""])
    return montage(rows, titles=titles, path=folder / "qc.png")


def _box(mask: Volume) -> tuple[slice, ...]:
    """Round the mask, with a margin to show what lies beside it."""
    margin = np.ceil(MARGIN_MM / mask.spacing).astype(int)
    (box,) = ndimage.find_objects((mask.array > 0).astype(int))
    return tuple(slice(max(0, side.start - m), side.stop + m) for side, m in zip(box, margin, strict=True))


def _cut(volume: Volume, box: tuple[slice, ...]) -> Volume:
    return Volume(volume.array[box], volume.affine)  # only spacing matters from here on


def _planes(volume: Volume, at: Sequence[int]) -> list[NDArray[np.float32]]:
    """Axial, sagittal and coronal through the voxel `at`, front and top upwards, in square pixels."""
    i, j, k = at
    array = volume.array
    planes = []
    for plane, axes in ((array[:, :, k], (0, 1)), (array[i], (1, 2)), (array[:, j], (0, 2))):
        zoom = volume.spacing[list(axes)] / VIEW_MM
        planes.append(ndimage.zoom(plane, zoom, order=1).T[::-1])
    return planes


def _drawn(planes: Sequence[NDArray[np.float32]], lines: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.float32]]:
    return [np.where(line, 1.0, 0.8 * plane) for plane, line in zip(planes, lines, strict=True)]


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

"""Prepared files read by slice, from 16-bit uncompressed NIfTI with the axial axis last.

Slice k is one contiguous block of the file: one seek and one read, then it is closed. Faults are ValueErrors that
say what is wrong with the file, for the caller to say whose it is.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

ADVICE = "make it with `python -m monai_ext prepare`"
BLOCK = 16  # slices counted at a time, so that no whole volume is ever held


def read_slices(path: Path | str, first: int, stop: int) -> np.ndarray:
    """Read some axial slices of a prepared file; the rest of it is not read.

    Args:
        path: an uncompressed NIfTI.
        first, stop: the slices [first, stop).

    Returns:
        (slice, i, j) as float32.

    Raises:
        ValueError: the slices are not among the file's, or it is truncated.
    """
    raw, slope, inter = _read_stored(path, first, stop)
    images = raw.transpose(0, 2, 1).astype(np.float32, order="C")
    if slope is not None:
        images *= np.float32(slope)
    if inter:
        images += np.float32(inter)
    return images


def prepared_shape(path: Path, *, image: bool) -> tuple[int, int, int]:
    """Read the shape in a prepared file's header.

    Args:
        path: the file.
        image: whether it is an image, whose voxels are whole numbers scaled to [0, 1], or a mask.

    Returns:
        (I, J, K).

    Raises:
        ValueError: it is not as `prepare` writes them.
    """
    with path.open("rb") as file:
        try:
            header = nib.Nifti1Header.from_fileobj(file)
        except (HeaderDataError, WrapStructError, ValueError) as error:
            raise ValueError(f"is no uncompressed NIfTI; {ADVICE}") from error
    shape = header.get_data_shape()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"has shape {shape}, expected three axes; {ADVICE}")
    axes = "".join(axis or "?" for axis in nib.aff2axcodes(header.get_best_affine()))
    if axes != "RAS":
        raise ValueError(f"has orientation {axes}, expected RAS; {ADVICE}")
    needed = header.get_data_offset() + int(np.prod(shape)) * header.get_data_dtype().itemsize
    size = path.stat().st_size
    if size < needed:
        raise ValueError(f"is truncated: {size} bytes, its header asks for {needed}; {ADVICE}")
    if image and not _within_unit_range(header):
        raise ValueError(f"is not whole numbers scaled to [0, 1]; {ADVICE}")
    return shape


def count_foreground(path: Path, depth: int) -> np.ndarray:
    """Count the voxels that are not zero in each of a file's slices, a few slices in memory at a time.

    Args:
        path: an uncompressed NIfTI that `prepare` wrote, an image or a mask.
        depth: K, how many slices it has.

    Returns:
        (K,), whole numbers.

    Raises:
        ValueError: it has fewer slices, or is truncated.
    """
    counts: list[int] = []
    for first in range(0, depth, BLOCK):
        stored, _, _ = _read_stored(path, first, min(first + BLOCK, depth))
        counts += [int(np.count_nonzero(image)) for image in stored]
    return np.array(counts)


def clear_unseen(content: np.ndarray, path: Path) -> None:
    """Set to 0 the counts of the first and last slices where this file, its field of view too short, has none.

    Args:
        content: (K,), a count a slice, which is changed.
        path: the file.
    """
    filled = np.flatnonzero(content).tolist()
    for numbers in (filled, reversed(filled)):
        for number in numbers:
            stored, _, _ = _read_stored(path, number, number + 1)
            if stored.any():
                break
            content[number] = 0


def _within_unit_range(header: nib.Nifti1Header) -> bool:
    """Whether no voxel can lie outside [0, 1]: images as scanned would train to nothing, in silence."""
    dtype = header.get_data_dtype()
    if dtype.kind != "u":
        return False
    slope, inter = (value or 0.0 for value in header.get_slope_inter())
    return slope > 0 and inter >= 0 and np.iinfo(dtype).max * slope + inter <= 1 + 1e-4


def _read_stored(path: Path | str, first: int, stop: int) -> tuple[np.ndarray, float | None, float | None]:
    """Stored numbers (slice, j, i), NIfTI's own order, with the slope and intercept that they go through."""
    with Path(path).open("rb") as file:
        header = nib.Nifti1Header.from_fileobj(file, check=False)
        width, height, depth = header.get_data_shape()
        if not 0 <= first < stop <= depth:
            raise ValueError(f"slices [{first}, {stop}) are not among its {depth}")
        stored = np.empty((stop - first, height, width), dtype=header.get_data_dtype())
        file.seek(header.get_data_offset() + first * stored[0].nbytes)
        if file.readinto(stored.data) != stored.nbytes:
            raise ValueError("is truncated")
    return stored, *header.get_slope_inter()

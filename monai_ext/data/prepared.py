"""One subject prepared: its contrasts on one grid in [0, 1], a mask, and a sidecar that says how to undo it.

A folder holds <CONTRAST>.nii, mask.nii, label.nii where there is one, prepared.json and, if asked for, qc.png.
Images are uncompressed NIfTI, 16 bits a voxel, axial slices last: slice k is one contiguous block of the file.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_ext import __version__
from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.gridded import PERCENTILE, Gridded, mask_file
from monai_ext.data.presets import Preset
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.files import read_json, write_json

FORMAT = 4  # of the folder: raised whenever the same sources would now give other files
SIDECAR = "prepared.json"
SLOPE = 1 / 65535  # what one step of the stored 16 bits is worth


def prepare_subject(subject: Subject, folder: Path, *, preset: Preset, root: Path) -> dict[str, Any]:
    """Write a subject's prepared folder, whole or not at all.

    Args:
        subject: whose files are read.
        folder: what is written.
        preset: how images become slices.
        root: where the preset's pattern of a mask file begins.

    Returns:
        The sidecar's content.

    Raises:
        SubjectError: a fault of the sources.
    """
    if subject.targets or subject.masks:
        raise SubjectError(subject.name, None, "has targets or masks of its own: it was prepared when it was made")
    identity = _identity(subject, preset=preset, root=root)
    _check_replaceable(subject, folder, preset=preset, root=root)
    gridded = Gridded(subject, preset=preset, root=root)
    grid = gridded.grid
    images: dict[str, dict[str, Any]] = {}
    with _whole_folder(folder) as partial:
        for contrast in subject.images:
            image = gridded.image(contrast)
            write_volume(partial / f"{contrast}.nii", Volume(image.array, grid.affine), dtype=np.uint16, slope=SLOPE)
            images[contrast] = image.record
        write_volume(partial / "mask.nii", Volume(gridded.mask, grid.affine), dtype=np.uint8)
        if subject.label is not None:
            label = gridded.label()
            write_volume(partial / "label.nii", label, dtype=_smallest_integer(label.array))
        record = {
            **identity,
            "software": f"monai_ext {__version__}",
            "reference": _described(grid.stored_shape, grid.stored_affine, contrast=grid.contrast),
            "grid": _described(grid.shape, grid.affine),
            "images": images,
            "mask_kept": gridded.mask_kept,
            "bytes": {file.name: file.stat().st_size for file in sorted(partial.glob("*.nii"))},
        }
        write_json(partial / SIDECAR, record)
    return record


def current_record(subject: Subject, folder: Path, *, preset: Preset, root: Path) -> dict[str, Any] | None:
    """Read the sidecar of `folder` if the same sources and options made it and its files are whole, else None.

    Args:
        subject, folder, preset, root: as of `prepare_subject`.

    Returns:
        The sidecar's content, or None: then the folder is to be made anew.
    """
    try:
        record = read_json(folder / SIDECAR)
        if not _is_record(record, subject):
            return None
        record["parameters"].setdefault("percentile_of", "foreground")  # version 0.1.0 knew nothing else
        whole = all((folder / name).stat().st_size == size for name, size in record["bytes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    identity = json.loads(json.dumps(_identity(subject, preset=preset, root=root)))
    return record if whole and all(record.get(key) == value for key, value in identity.items()) else None


def _is_record(record: Any, subject: Subject) -> bool:
    """Whether a sidecar holds what is read from one, each of its own type: anybody may have changed the file."""

    def are_numbers(values: Any, count: int) -> bool:
        good = isinstance(values, list) and len(values) == count
        return good and all(type(value) in (int, float) and abs(value) < 1e30 for value in values)

    images = record["images"]
    return (
        images.keys() == subject.images.keys()
        and all(
            are_numbers(image["range"], 2)
            and are_numbers([image["seen"], image["moved_mm"]], 2)
            and all(are_numbers(row, 4) for row in image["to_source"])
            for image in images.values()
        )
        and all(
            are_numbers(place["shape"], 3)
            and all(type(size) is int and size > 0 for size in place["shape"])
            and all(are_numbers(row, 4) for row in place["affine"])
            for place in (record["grid"], record["reference"])
        )
        and record["reference"]["contrast"] in subject.images
        and are_numbers([record["mask_kept"]], 1)
        and all(Path(name).name == name and type(size) is int for name, size in record["bytes"].items())
    )


def prepared_subject(subject: Subject, folder: Path) -> Subject:
    """Name the files that `prepare_subject` wrote for a subject; none of them is looked at.

    Args:
        subject: as it was before.
        folder: its prepared folder.

    Returns:
        The same subject, its images and its label now the prepared files.
    """
    images = {contrast: folder / f"{contrast}.nii" for contrast in subject.images}
    return replace(subject, images=images, label=folder / "label.nii" if subject.label else None)


def dataset_of(path: Path, *, key: str) -> Any:
    """Read which dataset a sidecar or a datalist names, None if it is not there or damaged.

    Args:
        path: of the JSON.
        key: under which it says so.

    Returns:
        What stands under the key, of whatever type; None if the file is not there or damaged, or has no such key.
    """
    try:
        return read_json(path)[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def put_back(folder: Path) -> None:
    """Bring back the folder that a kill between the two renames of a replacement left aside: it is the one that
    counts.

    Args:
        folder: of a prepared subject; where it is there, nothing is done.
    """
    old = _aside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _identity(subject: Subject, *, preset: Preset, root: Path) -> dict[str, Any]:
    """What decides the result: two equal ones give equal files. A file counts by name, size and time."""
    files = {**subject.images, "label": subject.label, "mask": mask_file(subject, preset=preset, root=root)}
    sources = {}
    for key, path in files.items():
        if path is None:
            continue
        try:
            stat = path.stat()
        except OSError as error:
            raise SubjectError(subject.name, path, f"cannot be read: {error.strerror}") from error
        name = path.relative_to(root) if path.is_relative_to(root) else path
        sources[key] = {"path": name.as_posix(), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    parameters = asdict(preset)
    del parameters["trained_spacing"]  # which speaks of weights
    return {
        "format": FORMAT,
        "subject": subject.subject,
        "session": subject.session,
        "dataset": subject.dataset,
        "sources": sources,
        "parameters": {**parameters, "percentile": PERCENTILE},
    }


def _check_replaceable(subject: Subject, folder: Path, *, preset: Preset, root: Path) -> None:
    """What is there may go only if it was prepared from this dataset and nothing is read from it."""
    if not folder.exists():
        return
    if not (folder / SIDECAR).exists():
        raise SubjectError(subject.name, folder, f"is there already and holds no {SIDECAR}: choose another --out")
    dataset = dataset_of(folder / SIDECAR, key="dataset")
    if dataset not in (None, subject.dataset):
        reason = f"was prepared from dataset {dataset!r}, not {subject.dataset!r}: choose another --out"
        raise SubjectError(subject.name, folder, reason)
    for source in (*subject.images.values(), subject.label, mask_file(subject, preset=preset, root=root)):
        if source is not None and any(path.is_relative_to(folder.resolve()) for path in (source, source.resolve())):
            raise SubjectError(subject.name, source, "lies in the folder that would be replaced: choose another --out")


def _smallest_integer(array: NDArray[Any]) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if array.max() < 256 else np.uint16


def _described(shape: Sequence[int], affine: NDArray[np.float64], **more: Any) -> dict[str, Any]:
    return {**more, "shape": list(shape), "affine": affine.tolist()}


def _aside(folder: Path) -> Path:
    return folder.with_name(f".replaced-{folder.name}")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to fill: it takes its place if all goes well, and is removed if not."""
    put_back(folder)
    partial, old = folder.with_name(f".preparing-{folder.name}"), _aside(folder)
    for left_by_a_kill in (partial, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            put_back(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""One subject prepared: its contrasts on one grid in [0, 1], a mask, and a sidecar that says how to undo it.

A folder holds <CONTRAST>.nii, mask.nii, label.nii where there is one, prepared.json and, if asked for, qc.png.
Images are uncompressed NIfTI, 16 bits a voxel, axial slices last: slice k is one contiguous block of the file.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from monai_ext import __version__
from monai_ext.data.datalist import Subject, SubjectError, write_json
from monai_ext.data.masks import foreground, otsu_brain, zero_background
from monai_ext.data.presets import Preset
from monai_ext.data.registration import register_rigid
from monai_ext.data.resampling import IDENTITY, resample, share_inside, slice_grid, to_ras
from monai_ext.data.volumes import Volume, read_volume, write_volume

FORMAT = 4  # of the folder: raised whenever the same sources would now give other files
SIDECAR = "prepared.json"
PERCENTILE = 99.5  # of a contrast's foreground, becomes 1
SLOPE = 1 / 65535  # what one step of the stored 16 bits is worth
ANATOMICAL = ("T1", "T2", "PD", "T1C", "FLAIR")  # those that show a skull dark between scalp and brain
LARGEST_LABEL = np.iinfo(np.uint16).max
LEAST_SEEN = 0.05  # of the foreground, by every contrast


def prepare_subject(subject: Subject, folder: Path, *, preset: Preset, root: Path) -> dict[str, Any]:
    """Write `folder`, whole or not at all, and return its sidecar; a fault of the sources is a SubjectError."""
    identity = _identity(subject, preset=preset, root=root)
    _check_replaceable(subject, folder, preset=preset, root=root)
    as_stored = {contrast: _read(subject, path) for contrast, path in subject.images.items()}
    read = {contrast: to_ras(volume) for contrast, volume in as_stored.items()}
    chosen = _reference(subject, preset)
    reference = read[chosen]
    placed = _placed(subject, read, chosen, preset=preset)
    mask = _mask(subject, read, placed, chosen, preset=preset, root=root)
    points = _some_points(reference, mask)
    shape, affine = slice_grid(reference, spacing=preset.spacing, crop=preset.crop, size=preset.size, keep=mask)
    grid_mask = resample(Volume(mask.astype(np.float32), reference.affine), shape, affine, order=1).array > 0.5

    images: dict[str, dict[str, Any]] = {}
    with _whole_folder(folder) as partial:
        for contrast, volume in read.items():
            path = subject.images[contrast]
            there = apply_affine(placed[contrast], points)
            seen = share_inside(volume, there)
            if seen < LEAST_SEEN:
                reason = f"{contrast} sees {seen:.0%} of what {chosen} shows: their fields of view do not overlap"
                raise SubjectError(subject.name, path, f"{reason}; if a header is wrong, try --register rigid")
            image = resample(volume, shape, affine, to_volume=placed[contrast]).array
            signal = image[grid_mask & (image > 0)]
            if not signal.size:
                raise SubjectError(subject.name, path, f"{contrast} is nowhere above zero inside the mask")
            top = float(np.percentile(signal, PERCENTILE))
            scaled = np.clip(image / top, 0, 1)  # interpolation undershoots, and the brightest half percent
            if preset.brain_mask:
                scaled[~grid_mask] = 0
            write_volume(partial / f"{contrast}.nii", Volume(scaled, affine), dtype=np.uint16, slope=SLOPE)
            images[contrast] = {
                "range": [0.0, top],
                "to_source": placed[contrast].tolist(),
                "moved_mm": float(np.linalg.norm(there - points, axis=1).mean()),
                "seen": seen,
            }
        write_volume(partial / "mask.nii", Volume(grid_mask, affine), dtype=np.uint8)
        if subject.label is not None:
            label = _label(subject, read, placed, shape, affine)
            write_volume(partial / "label.nii", label, dtype=_smallest_integer(label.array))
        record = {
            **identity,
            "software": f"monai_ext {__version__}",
            "reference": _described(as_stored[chosen], contrast=chosen),
            "grid": _described(Volume(grid_mask, affine)),
            "images": images,
            "mask_kept": float(_millilitres(grid_mask, affine) / _millilitres(mask, reference.affine)),
            "bytes": {file.name: file.stat().st_size for file in sorted(partial.glob("*.nii"))},
        }
        write_json(partial / SIDECAR, record)
    return record


def current_record(subject: Subject, folder: Path, *, preset: Preset, root: Path) -> dict[str, Any] | None:
    """The sidecar of `folder` if the same sources and options made it and its files are whole, else None."""
    try:
        record = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in record["bytes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    identity = json.loads(json.dumps(_identity(subject, preset=preset, root=root)))
    return record if whole and all(record.get(key) == value for key, value in identity.items()) else None


def prepared_subject(subject: Subject, folder: Path) -> Subject:
    """The same subject, its paths now those of the prepared files."""
    images = {contrast: folder / f"{contrast}.nii" for contrast in subject.images}
    return replace(subject, images=images, label=folder / "label.nii" if subject.label else None)


def mask_file(subject: Subject, *, preset: Preset, root: Path) -> Path | None:
    """The brain mask that the preset's pattern names for this subject, if it is a pattern."""
    if "{" not in preset.brain_mask:
        return None
    names = {"subject": subject.subject, "session": subject.session, "name": subject.name}
    return root / preset.brain_mask.format(**names)


def dataset_of(path: Path, *, key: str) -> Any:
    """The dataset that a sidecar or a datalist names, None if it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def put_back(folder: Path) -> None:
    """If a kill between the two renames of a replacement left the old folder aside, it is the one that counts."""
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
    return {
        "format": FORMAT,
        "subject": subject.subject,
        "session": subject.session,
        "dataset": subject.dataset,
        "sources": sources,
        "parameters": {**asdict(preset), "percentile": PERCENTILE},
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


def _read(subject: Subject, path: Path, *, allow_constant: bool = False) -> Volume:
    try:
        return read_volume(path, allow_constant=allow_constant)
    except OSError as error:
        raise SubjectError(subject.name, path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SubjectError(subject.name, path, str(error).removeprefix(str(path)).lstrip(": ")) from error


def _reference(subject: Subject, preset: Preset) -> str:
    for contrast in preset.reference:
        if contrast in subject.images:
            return contrast
    found, wanted = ", ".join(subject.images), " or ".join(preset.reference)
    raise SubjectError(subject.name, None, f"has {found}, but the grid is to come from {wanted}")


def _placed(
    subject: Subject, read: Mapping[str, Volume], chosen: str, *, preset: Preset
) -> dict[str, NDArray[np.float64]]:
    """For each contrast, the matrix from the reference's world to its own."""
    placed = dict.fromkeys(read, IDENTITY)
    if preset.register != "rigid":
        return placed
    # ADC is computed from DWI: on one grid the two are one scan, and lie on each other as they are
    leader, follower = ("ADC", "DWI") if chosen == "ADC" else ("DWI", "ADC")
    together = leader in read and follower in read and _same_grid(read[leader], read[follower])
    for contrast, volume in read.items():
        if contrast == chosen or (together and contrast == follower):
            continue
        try:
            placed[contrast] = register_rigid(read[chosen], volume)
        except ValueError as error:
            reason = f"cannot be registered: {error}"
            raise SubjectError(subject.name, subject.images[contrast], reason) from error
    if together:
        placed[follower] = placed[leader]
    return placed


def _same_grid(one: Volume, other: Volume) -> bool:
    return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=0.01)


def _mask(
    subject: Subject,
    read: Mapping[str, Volume],
    placed: Mapping[str, NDArray[np.float64]],
    chosen: str,
    *,
    preset: Preset,
    root: Path,
) -> NDArray[np.bool_]:
    """On the reference's voxels: the brain, if it is to be cut out, else the foreground."""
    reference = read[chosen]
    given = mask_file(subject, preset=preset, root=root)
    if given is not None:
        volume = _read(subject, given, allow_constant=True)
        mask = resample(volume, reference.shape, reference.affine, order=0).array > 0
        if not mask.any():
            raise SubjectError(subject.name, given, "the mask marks nothing in the reference's field of view")
        return mask
    method = {"zero": zero_background, "otsu": otsu_brain, "": foreground}[preset.brain_mask]
    try:
        mask = method(reference)
    except ValueError as error:
        raise SubjectError(subject.name, subject.images[chosen], str(error)) from error
    if preset.brain_mask == "otsu":
        # What is dark on one contrast, a tumour's core on T1 say, is bright on another: no brain may be lost.
        for contrast in (name for name in ANATOMICAL if name in read and name != chosen):
            with suppress(ValueError):  # one in which no brain is found adds none
                brain = Volume(otsu_brain(read[contrast]).astype(np.float32), read[contrast].affine)
                seen = resample(brain, reference.shape, reference.affine, to_volume=placed[contrast], order=1)
                mask |= seen.array > 0.5
    return mask


def _some_points(volume: Volume, mask: NDArray[np.bool_], *, about: int = 4000) -> NDArray[np.float64]:
    """World positions of voxels spread evenly over the mask."""
    voxels = np.flatnonzero(mask)
    voxels = voxels[:: max(1, len(voxels) // about)]
    return apply_affine(volume.affine, np.stack(np.unravel_index(voxels, mask.shape), axis=-1))


def _label(
    subject: Subject,
    read: Mapping[str, Volume],
    placed: Mapping[str, NDArray[np.float64]],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
) -> Volume:
    """The label map moved like the contrast whose voxels it shares, which is the one it was drawn on."""
    assert subject.label is not None
    label = to_ras(_read(subject, subject.label, allow_constant=True))
    if np.any(label.array != np.rint(label.array)) or label.array.min() < 0:
        raise SubjectError(subject.name, subject.label, "a label map holds whole numbers from 0 up")
    if label.array.max() > LARGEST_LABEL:
        reason = f"a label map holds numbers up to {LARGEST_LABEL}, got {label.array.max():.0f}: renumber its labels"
        raise SubjectError(subject.name, subject.label, reason)
    drawn_on = [contrast for contrast, volume in read.items() if _same_grid(volume, label)]
    to_volume = placed[drawn_on[0]] if drawn_on else IDENTITY
    return resample(label, shape, affine, to_volume=to_volume, order=0)


def _smallest_integer(array: NDArray[Any]) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if array.max() < 256 else np.uint16


def _described(volume: Volume, **more: Any) -> dict[str, Any]:
    return {**more, "shape": list(volume.shape), "affine": volume.affine.tolist()}


def _millilitres(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> float:
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


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

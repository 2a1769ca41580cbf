"""python -m monai_ext prepare: a datalist's subjects on one grid each, stored so that a slice is read alone."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from monai_ext.data.datalist import (
    SPLITS,
    Datalist,
    Subject,
    SubjectError,
    check_name,
    read_datalist,
    report_failures,
    write_datalist,
)
from monai_ext.data.prepared import current_record, dataset_of, mask_file, prepare_subject, prepared_subject, put_back
from monai_ext.data.presets import LEAST_SPACING, MASKS, OVER, PRESETS, REGISTRATIONS, Preset
from monai_ext.data.qc import write_qc
from monai_ext.data.side_by_side import KILLED, side_by_side
from monai_ext.files import absolute, everybodys
from monai_ext.modalities import canonical


@dataclass(frozen=True)
class Done:
    """What became of one subject.

    Attributes:
        subject: who.
        record: the sidecar, None after a fault.
        unchanged: whether it had been prepared so before.
        failure: what was wrong.
    """

    subject: Subject
    record: dict[str, Any] | None = None
    unchanged: bool = False
    failure: SubjectError | None = None


def prepare_one(subject: Subject, *, out: Path, root: Path, preset: Preset, qc: bool) -> Done:
    """Prepare one subject unless that was done.

    Args:
        subject: who.
        out: where the subject's folder goes.
        root: the datalist's, where a pattern of mask files begins.
        preset: how images become slices.
        qc: whether a picture to look at is made.

    Returns:
        The sidecar, or what is wrong with the subject.

    Raises:
        OSError: `out` cannot be written to, which every subject would meet.
    """
    try:
        check_name(subject.name, key="subject", subject=subject.name)
        folder = out / subject.name
        put_back(folder)
        record = current_record(subject, folder, preset=preset, root=root)
        unchanged = record is not None
        if record is None:
            record = prepare_subject(subject, folder, preset=preset, root=root)
        if qc and not (folder / "qc.png").exists():
            write_qc(folder, record)
    except SubjectError as error:
        return Done(subject, failure=error)
    except Exception as error:  # whatever it is, the others go on without this one
        if isinstance(error, OSError) and everybodys(error, out, own=out / subject.name):
            raise
        reason = f"cannot be prepared: {type(error).__name__}: {' '.join(str(error).split()) or 'no more was said'}"
        return Done(subject, failure=SubjectError(subject.name, None, reason))
    return Done(subject, record=record, unchanged=unchanged)


def prepare(datalist: Datalist, out: Path, *, preset: Preset, jobs: int = 1, qc: bool = False) -> list[Done]:
    """Prepare every subject of a datalist, and write `out`/datalist.json of those that could be prepared.

    Args:
        datalist: whose subjects.
        out: the folder for all of them.
        preset: how images become slices.
        jobs: processes at a time.
        qc: whether a picture of each is made.

    Returns:
        What became of each subject, in the datalist's order.

    Raises:
        ValueError: `out` holds another dataset, or another run is writing there.
        OSError: `out` cannot be written to.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from monai_ext.data.volumes import Volume, write_volume
        >>> root = Path(tempfile.mkdtemp())
        >>> head = np.zeros((16, 20, 8), np.float32)
        >>> head[3:13, 4:16, 1:7] = np.random.default_rng(0).uniform(50, 900, (10, 12, 6))
        >>> write_volume(root / "T1.nii.gz", Volume(head, np.diag([1.0, 1.0, 5.0, 1.0])))
        >>> subject = Subject("IXI012", "ixi", {"T1": root / "T1.nii.gz"})
        >>> datalist = Datalist("ixi", root, {"training": [subject]})
        >>> (done,) = prepare(datalist, root / "prepared", preset=PRESETS["native"])
        >>> done.record["grid"]["shape"], sorted(file.name for file in (root / "prepared" / "IXI012").iterdir())
        ([16, 20, 8], ['T1.nii', 'mask.nii', 'prepared.json'])
    """
    out = absolute(out)
    _check_writable(out)
    dataset = dataset_of(out / "datalist.json", key="name")
    if dataset not in (None, datalist.name):
        raise ValueError(f"{out} holds dataset {dataset!r}, not {datalist.name!r}: choose another --out")
    prepare_subject = partial(prepare_one, out=out, root=datalist.root, preset=preset, qc=qc)
    subjects = datalist.subjects
    ends: dict[str, Done] = {}
    with alone(out), tqdm(total=len(subjects), desc="prepare", unit="subject") as bar:
        for end in _ends(prepare_subject, subjects, jobs=jobs):
            ends[end.subject.name] = end
            bar.update()
    splits = {
        split: [
            prepared_subject(subject, out / subject.name)
            for subject in datalist.splits.get(split, ())
            if ends[subject.name].failure is None
        ]
        for split in SPLITS
    }
    if any(splits.values()):  # else the one that may be there still says what lies there
        write_datalist(out / "datalist.json", Datalist(name=datalist.name, root=out, splits=splits))
    return [ends[subject.name] for subject in subjects]


def _ends(prepare_subject: Any, subjects: Sequence[Subject], *, jobs: int) -> Iterator[Done]:
    if jobs == 1 or len(subjects) < 2:
        yield from map(prepare_subject, subjects)
        return
    # Fresh processes, because ITK's threads do not survive a fork; one thread each, because there are many.
    for library in ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    for subject, done in side_by_side(prepare_subject, subjects, jobs=jobs):
        yield done or Done(subject, failure=SubjectError(subject.name, None, KILLED))


def _check_writable(out: Path) -> None:
    """A place that cannot be written to is found out at once and not a subject at a time."""
    out.mkdir(parents=True, exist_ok=True)
    trial = out / f".trial-{os.getpid()}"
    try:
        trial.write_bytes(b"0")
    finally:
        trial.unlink(missing_ok=True)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Let one run at a time write into `out`, for two would remove each other's half-filled folders.

    A kill frees the lock.

    Args:
        out: the folder, which must be there.

    Yields:
        None, once; the lock lasts as long as the block. Where the system knows no locks, there is none.

    Raises:
        ValueError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which refuses to rename or remove what another process has open
        yield
        return
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ValueError(f"another run is writing into {out}: wait until it is done") from error
    except OSError:  # some network file systems know no locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def summary(ends: Sequence[Done], *, out: Path, qc: bool) -> str:
    """Say what was done: a row a contrast, and one line on all.

    Args:
        ends: of `prepare`.
        out: where it was put.
        qc: whether there are pictures to look at.

    Returns:
        Lines to print; contrasts of failed subjects count in none of the rows.
    """
    records = {end.subject.name: end.record for end in ends if end.record is not None}
    rows = [("contrast", "subjects", "top, median", "seen, least", "moved mm, median", "most")]
    for contrast in dict.fromkeys(name for record in records.values() for name in record["images"]):
        images = {name: r["images"][contrast] for name, r in records.items() if contrast in r["images"]}
        moved = {name: image["moved_mm"] for name, image in images.items()}
        furthest = max(moved, key=lambda name: moved[name])
        rows.append(
            (
                contrast,
                str(len(images)),
                f"{median(image['range'][1] for image in images.values()):.4g}",
                f"{min(image['seen'] for image in images.values()):.0%}",
                f"{median(moved.values()):.1f}",
                f"{moved[furthest]:.1f} ({furthest})" if moved[furthest] else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    unchanged = sum(end.unchanged for end in ends)
    failed = sum(end.failure is not None for end in ends)
    sizes = sorted({tuple(record["grid"]["shape"]) for record in records.values()})
    lines.append(f"{len(ends) - unchanged - failed} prepared, {unchanged} unchanged, {failed} failed in {out}")
    if sizes:
        least, most = (" x ".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        gigabytes = sum(sum(record["bytes"].values()) for record in records.values()) / 1e9
        lines.append(f"grids: {least}{f' to {most}' if most != least else ''}; {gigabytes:.2f} GB")
    cut = {name: 1 - record["mask_kept"] for name, record in records.items() if record["mask_kept"] < 0.99}
    if cut:
        worst = max(cut, key=lambda name: cut[name])
        lines.append(
            f"the size cuts into the foreground of {len(cut)} subjects, most into {worst}'s ({cut[worst]:.0%}): "
            "choose a larger --size or --spacing if it is brain"
        )
    if qc and records:
        lines.append(f"look at {out / next(iter(records)) / 'qc.png'} and the others")
    return "\n".join(lines)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare` to a parser.

    Args:
        parser: of the command; it is told to call `run`.
    """
    sizes = {name: "x".join(map(str, preset.size or preset.crop or ("as it is",))) for name, preset in PRESETS.items()}
    presets = ", ".join(f"{name} {size}" for name, size in sizes.items())
    add = parser.add_argument
    add("--datalist", type=Path, required=True, help="as index or phantom wrote it")
    add("--out", type=Path, required=True, help="the folder for one folder a subject and datalist.json")
    add(
        "--preset",
        choices=PRESETS,
        default="native",
        help=f"a dataset's or paper's way ({presets}); other options change it",
    )
    add("--reference", help="the contrast that gives the grid, T1 say; subjects without it fail")
    add(
        "--spacing",
        type=_spacing,
        metavar="MM[,MM,MM]",
        help="voxel size: one number is for both directions in the slice, whose distance stays; three are along "
        f"i,j,k; 0 leaves one as it is, {LEAST_SPACING} is the least",
    )
    add("--size", type=_size, metavar="N|IxJ", help="cut or pad slices to so many voxels")
    add("--register", choices=REGISTRATIONS, help="rigid: move every contrast onto the reference first")
    add(
        "--brain-mask",
        help="set all else to 0: zero (the reference's zero background), otsu (a simple skull stripping), none, "
        "or a file below the datalist's root with {subject}, {session} or {name} in it",
    )
    add(
        "--percentile-of",
        choices=OVER,
        help="what 1 is the 99.5th percentile of: the foreground, or the whole volume with the air around the head",
    )
    add("--jobs", type=int, default=1, help="subjects at a time, a process each")
    add("--qc", action="store_true", help="a picture a subject that shows the alignment")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare a datalist as the options say.

    Args:
        args: what `configure`'s parser read.

    Returns:
        The exit status: 1 if a subject could not be prepared.

    Raises:
        ValueError: an option that may not be.
    """
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    if absolute(args.datalist) == absolute(args.out / "datalist.json"):
        raise ValueError(f"--out {args.out} is where the datalist lies, which would be overwritten: choose another")
    preset = chosen_preset(args)
    failures: list[SubjectError] = []
    datalist = read_datalist(args.datalist, failures=failures)
    ends = prepare(datalist, args.out, preset=preset, jobs=args.jobs, qc=args.qc)
    print(summary(ends, out=args.out, qc=args.qc))
    total = len(ends) + len(failures)
    failures += [end.failure for end in ends if end.failure is not None]
    return report_failures(failures, total=total, what="prepared")


def chosen_preset(args: argparse.Namespace) -> Preset:
    """Take the preset that the options name, with what they change in it.

    Args:
        args: what `configure`'s parser read; an option that was not typed leaves the preset's own.

    Returns:
        One of PRESETS, changed.

    Raises:
        ValueError: a contrast that is not known, or a --brain-mask that may not be.
    """
    preset = PRESETS[args.preset]
    if args.reference:
        preset = replace(preset, reference=(canonical(args.reference),))
    if args.spacing:
        preset = replace(preset, spacing=args.spacing)
    if args.size:
        preset = replace(preset, crop=args.size, size=None)
    if args.register:
        preset = replace(preset, register=args.register)
    if args.brain_mask:
        preset = replace(preset, brain_mask="" if args.brain_mask == "none" else args.brain_mask)
    if args.percentile_of:
        preset = replace(preset, percentile_of=args.percentile_of)
    mask = preset.brain_mask
    try:
        allowed = not mask or mask in MASKS or mask_file(Subject("s", "d", {}), preset=preset, root=Path()) is not None
    except (KeyError, IndexError, ValueError):
        allowed = False
    if not allowed:
        raise ValueError(
            f"--brain-mask must be none, {', '.join(MASKS)}, or a file with {{subject}}, {{session}} or {{name}} "
            f"in it, got {mask!r}"
        )
    return preset


def _spacing(text: str) -> tuple[float | None, float | None, float | None]:
    try:
        steps = [float(step) for step in text.split(",")]
    except ValueError:
        steps = []
    if len(steps) not in (1, 3) or not all(step == 0 or LEAST_SPACING <= step < 100 for step in steps):
        wanted = f"one size in mm or three with commas, each 0 or from {LEAST_SPACING} to 100"
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    i, j, k = (step or None for step in (steps if len(steps) == 3 else [steps[0], steps[0], 0.0]))
    return i, j, k


def _size(text: str) -> tuple[int, int]:
    try:
        parts = [int(part) for part in text.lower().split("x")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2) or not all(8 <= part <= 4096 for part in parts):
        raise argparse.ArgumentTypeError(f"expected a number of voxels or two with an x, each 8 to 4096, got {text!r}")
    return parts[0], parts[-1]

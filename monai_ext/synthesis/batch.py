"""Many subjects synthesised, one after another or several at once: a fault is one subject's, the others are done."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from monai_ext.data.datalist import Subject, SubjectError, report_failures
from monai_ext.data.side_by_side import KILLED, side_by_side
from monai_ext.files import absolute, everybodys, read_json
from monai_ext.inference.sidecar import sidecar
from monai_ext.inference.subjects import Cases, subject_fault
from monai_ext.synthesis.synthesiser import Synthesiser

End = tuple[list[str], SubjectError | None]  # of a subject: what is to be told of it, or why it was not done
_own: list[Synthesiser] = []  # of a process that `_begin` began


def synthesise_all(
    options: Mapping[str, Any], cases: Cases, targets: Sequence[str] | None, out: Path, *, jobs: int = 1
) -> int:
    """Synthesise for every subject, tell what was made, and in the end who could not be done and why.

    Args:
        options: of `Synthesiser`.
        cases: whom for, and the faults of those that cannot serve.
        targets: contrasts; None is each that is missing and can be made.
        out: where each subject's results become a folder.
        jobs: how many subjects at a time, each in a process of its own, which share this one's threads.

    Returns:
        The exit status: 1 if some subject could not be done.

    Raises:
        ValueError: an option that may not be; or the fault of a subject that is the only one.
        OSError: no subject's file is at fault, such as a full disk.
    """
    out = absolute(out)
    synthesiser = Synthesiser(**options)  # whatever it refuses is refused before anything is begun
    total = len(cases.subjects) + len(cases.failures)
    if total == 1 and cases.subjects:
        (subject,) = cases.subjects
        for line in _write(synthesiser, subject, targets, out):
            print(line, flush=True)
        return 0
    failures = list(cases.failures)
    jobs = min(jobs, len(cases.subjects))
    if jobs > 1:
        ends = _at_once(options, cases.subjects, targets, out, jobs=jobs)
    else:
        ends = (_end(synthesiser, subject, targets, out) for subject in cases.subjects)
    with tqdm(total=len(cases.subjects), desc="subjects", unit="subject") as bar:
        for lines, fault in ends:
            for line in lines:
                bar.write(line)
            failures += [fault] if fault else []
            bar.update()
    return report_failures(failures, total=total, what="synthesised")


def summary(path: Path) -> str:
    """Say in a line what was made, by whom, of what and where it is; from the JSON beside it.

    Args:
        path: of the NIfTI.

    Returns:
        The line.
    """
    record = read_json(sidecar(path))
    sources = record["sources"].items()
    moved = [f"{name} {source['moved_mm']:.1f} mm" for name, source in sources if "registration" in source["placed_by"]]
    how = f", registered to {record['reference']}: {', '.join(moved)}" if moved else ""
    return (
        f"{record['subject']}: {record['target']} by {record['bundle']} {record['version']} "
        f"from {' and '.join(record['sources'])}{how}: {path}"
    )


def _end(synthesiser: Synthesiser, subject: Subject, targets: Sequence[str] | None, out: Path) -> End:
    acquired = [name for name in targets or () if name in subject.images]
    if acquired and len(acquired) == len(targets or ()):
        return [f"{subject.name}: has {' and '.join(acquired)}, so there is nothing to make"], None
    try:
        return _write(synthesiser, subject, targets, out), None
    except Exception as error:  # whatever it is, the others go on without this one
        if type(error) is ValueError:  # its message says all
            return [], SubjectError(subject.name, None, str(error))
        try:
            return [], subject_fault(error, subject)
        except OSError as root:
            if everybodys(root, out, own=out / subject.name):
                raise
            return [], SubjectError(subject.name, None, f"cannot be synthesised: {root}")


def _write(synthesiser: Synthesiser, subject: Subject, targets: Sequence[str] | None, out: Path) -> list[str]:
    """A line on each result, which is told from one that was there."""
    before = {path: path.stat().st_mtime_ns for path in (out / subject.name).glob("*.nii.gz")}
    results = synthesiser.write(subject.images, targets, out, subject=subject.name)
    unchanged = {path for path in results.values() if before.get(path) == path.stat().st_mtime_ns}
    lines = [summary(path) + (" (was there, kept)" if path in unchanged else "") for path in results.values()]
    return lines or [f"{subject.name}: has every contrast that can be made"]


def _at_once(
    options: Mapping[str, Any], subjects: Sequence[Subject], targets: Sequence[str] | None, out: Path, *, jobs: int
) -> Iterator[End]:
    os.environ.setdefault("TQDM_DISABLE", "1")  # in the processes, whose bars would run into each other
    threads = max(1, torch.get_num_threads() // jobs)
    work = partial(_end_here, targets=targets, out=out)
    for subject, end in side_by_side(work, subjects, jobs=jobs, begin=_begin, given=(dict(options), threads)):
        yield end or ([], SubjectError(subject.name, None, KILLED))


def _begin(options: Mapping[str, Any], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that gives the work out
    torch.set_num_threads(threads)
    _own[:] = [Synthesiser(**options)]


def _end_here(subject: Subject, *, targets: Sequence[str] | None, out: Path) -> End:
    return _end(_own[0], subject, targets, out)

"""Who is to be synthesised: one subject's files, a folder or a datalist; and their volumes, one after the other."""

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from monai_ext.data.datalist import SPLITS, Subject, SubjectError, check_name, file_size, read_datalist, report_failures
from monai_ext.data.layouts import DICOM, index, walk
from monai_ext.data.naming import EXTENSIONS, stem
from monai_ext.files import absolute
from monai_ext.modalities import Task, canonical

SYNTHETIC = "_synthetic"  # ends the name of every file that we write, so that it is never taken for an acquired one
WHO = (
    "give exactly one of images ({'T1': 'a.nii.gz', ...}), dataset_dir (a folder of subject folders) and "
    "datalist (a JSON)"
)


@dataclass
class Cases:
    """Subjects that have every source, and the faults of those that were named but cannot serve.

    Attributes:
        subjects: who can serve.
        failures: the others' faults.
        root: where a preset's pattern of mask files begins.
        named: False where nothing says who is meant: that is refused when they are read, not before, for a workflow is
            made and looked at where there are no data too.
    """

    subjects: list[Subject]
    failures: list[SubjectError] = field(default_factory=list)
    root: Path = field(default_factory=Path.cwd)
    named: bool = True


def find_cases(
    *,
    task: Task,
    images: Mapping[str, Path | str] | None = None,
    folder: Path | str | None = None,
    datalist: Path | str | None = None,
    split: str | None = None,
    name: str | None = None,
    only_missing: bool = False,
) -> Cases:
    """Find the subjects of exactly one of `images`, `folder` and `datalist` who have what the task needs.

    One that was acquired with the target is synthesised too, to compare with (nothing acquired is ever written over),
    unless `only_missing`. One that lacks nothing that could be made is told and left.

    Args:
        task: what is made of what.
        images: one subject, contrast -> file. A contrast that the network does not know is refused; in a folder or a
            datalist it is not used.
        folder: a folder a subject, or one subject's files.
        datalist: a JSON that `index` wrote.
        split: of the datalist; without it, all of them count.
        name: of the subject in `images`, whose folder names it otherwise.
        only_missing: leave out who has the target.

    Returns:
        The subjects, and the faults of those who cannot serve.

    Raises:
        ValueError: none or several of the three are given, or what they name is not there.
    """
    for contrast in images or {}:
        if not task.every_source and canonical(contrast) not in task.inputs:
            allowed = ", ".join(task.inputs)
            raise ValueError(f"{canonical(contrast)} is none of the contrasts that these weights know: {allowed}")
    cases = find_subjects(images=images, folder=folder, datalist=datalist, split=split, name=name)
    subjects = []
    for subject in cases.subjects:
        sources, targets = task.of(subject.images)
        has, lacking = ", ".join(subject.images) or "none", task.lacking(subject.images)
        if targets and only_missing and all(contrast in subject.images for contrast in targets):
            print(f"{subject.name}: has {', '.join(targets)}, left out by only_missing")
        elif not targets:
            print(
                f"{subject.name}: has every contrast, so there is nothing to synthesise; name targets to compare with"
            )
        elif lacking:
            reason = f"lacks {' and '.join(lacking)}, has {has}: these weights need {', '.join(task.inputs)}"
            cases.failures.append(SubjectError(subject.name, None, reason))
        elif not sources:
            asked = ", ".join(task.sources or task.inputs)
            reason = f"no contrast is available: has {has}, lacks all that may be a source, {asked}"
            cases.failures.append(SubjectError(subject.name, None, reason))
        else:
            subjects.append(subject)
    return replace(cases, subjects=subjects)


def find_subjects(
    *,
    images: Mapping[str, Path | str] | None = None,
    folder: Path | str | None = None,
    datalist: Path | str | None = None,
    split: str | None = None,
    name: str | None = None,
) -> Cases:
    """Find all of those whom exactly one of `images`, `folder` and `datalist` names, whatever contrasts they have.

    Args:
        images, folder, datalist, split, name: as of `find_cases`.

    Returns:
        The subjects, and the faults of those whose files cannot serve.

    Raises:
        ValueError: several of the three are given, or an option that does not go with the one.
    """
    inputs = {"images": images, "dataset_dir": folder, "datalist": datalist}
    chosen = [key for key, value in inputs.items() if value]
    if len(chosen) > 1:
        raise ValueError(f"{WHO}, got {' and '.join(chosen)}")
    for key, value, needs in (("split", split, "datalist"), ("name", name, "images")):
        if value and chosen != [needs]:
            raise ValueError(f"{key} goes with {needs}, got {key}={value!r} with {chosen[0] if chosen else 'none'}")
    if not chosen:
        return Cases([], named=False)
    if images:
        cases = _of_images(images, name)
    elif folder:
        cases = _of_folder(absolute(Path(folder)))
    else:
        assert datalist
        cases = _of_datalist(absolute(Path(datalist)), split)
    return cases


class AlreadyDone(SubjectError):
    """Not a fault: what is wanted of this subject is there."""


class SubjectVolumes(IterableDataset):
    """Items {"subject": Subject, "root": Path}, through `transform`; a subject's fault is kept, the others go on.

    Read it in the process that calls `finish`: a loader of it has no workers.

    Args:
        data: who is to be read.
        transform: of one item.

    Raises:
        ValueError: when read, if nothing says who is meant.
    """

    def __init__(self, data: Cases | Sequence[Subject], transform: Callable[[dict[str, Any]], Any]) -> None:
        self.cases = data if isinstance(data, Cases) else Cases(list(data))
        self.transform = transform
        self.failures: list[SubjectError] = []
        self.done: list[str] = []
        self.kept: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        if not self.cases.named:
            raise ValueError(f"{WHO}, got none")
        self.failures, self.done, self.kept = list(self.cases.failures), [], []
        for subject in self.cases.subjects:
            try:
                item = self.transform({"subject": subject, "root": self.cases.root})
            except Exception as error:  # MONAI wraps what a transform raises; the others go on
                fault = subject_fault(error, subject)
                if isinstance(fault, AlreadyDone):
                    self.kept.append(subject.name)
                else:
                    self.failures.append(fault)
            else:
                yield item
                self.done.append(subject.name)  # whoever asks for the next one is done with this one

    def finish(self) -> None:
        """Tell what was done and what was not; a run in which anything was not done ends with status 1.

        Raises:
            SystemExit: something could not be done.
        """
        total = len(self.cases.subjects) + len(self.cases.failures)
        remark = f", {len(self.kept)} were there already, of the same weights and scans" if self.kept else ""
        print(f"{len(self.done)} of {total} subjects synthesised{remark}", flush=True)
        status = report_failures(self.failures, total=total, what="synthesised")
        if status:
            sys.exit(status)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of one subject: tensors get a batch dimension, all else is kept as it is in a list of one.

    MONAI takes batches apart by looking into whatever it finds; a numpy array of no dimension, which holds the
    object, is what it hands on untouched. `DataLoader(batch_size=None)` does not serve: it makes no batch dimension,
    which inferers take, and the evaluator takes batches apart before its transforms.

    Args:
        items: one, in a list.

    Returns:
        By key: a tensor (1, ...), or a list of one array of no dimension that holds the object.

    Raises:
        ValueError: not one item.
    """
    (item,) = items
    return {key: value[None] if isinstance(value, torch.Tensor) else [_whole(value)] for key, value in item.items()}


def _whole(value: Any) -> NDArray[Any]:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def subject_fault(error: BaseException, subject: Subject) -> SubjectError:
    """Find what lies behind what MONAI raises, as the subject's fault.

    Args:
        error: what was raised.
        subject: at whose turn.

    Returns:
        A SubjectError that lies behind it, else one that says the first cause's type and words.

    Raises:
        OSError: it is one that no file of the subject's caused, such as a full disk.
    """
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, SubjectError):
            return cause
    root = causes[-1]
    if isinstance(root, OSError):
        raise root
    message = " ".join(str(root).split()) or "no more was said"
    return SubjectError(subject.name, None, f"cannot be prepared: {type(root).__name__}: {message}")


def _of_images(images: Mapping[str, Path | str], name: str | None) -> Cases:
    files: dict[str, Path] = {}
    for contrast, path in images.items():
        if canonical(contrast) in files:
            raise ValueError(f"images names {canonical(contrast)} twice: {', '.join(images)}")
        files[canonical(contrast)] = absolute(Path(path))
    first = next(iter(files.values()))
    subject = Subject(name or first.parent.name or stem(first), first.parent.name, files)
    check_name(subject.subject, key="name" if name else "subject", subject=subject.subject)
    for path in files.values():
        _check_file(path, subject=subject.name)
    return Cases([subject], root=first.parent)


def _check_file(path: Path, *, subject: str) -> None:
    """A path that a person typed: where it is not there, the nearest that is."""
    if not path.exists() and path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SubjectError(subject, path, f"is not there{hint}")
    file_size(path, subject=subject)


def _of_folder(folder: Path) -> Cases:
    if not folder.is_dir():
        raise ValueError(
            f"dataset_dir must be a folder, got {folder}" + ("" if folder.exists() else ": it is not there")
        )
    dicom = [f"*{suffix}" for end in DICOM for suffix in (end, end.upper())]
    ours = [f"*{SYNTHETIC}{end}" for end in EXTENSIONS]
    indexed = index(folder, exclude=[*dicom, *ours])
    if indexed.subjects:
        unread: list[SubjectError] = []
        used = {path.relative_to(folder).parts[0] for case in indexed.subjects for path in case.images.values()}
        for top in dict.fromkeys(
            file.relative_to(folder).parts[0] for file in walk(folder, unread) if file.suffix.lower() in DICOM
        ):
            if top not in used:
                indexed.failures.append(SubjectError(top, folder / top, "holds only DICOM: convert it to NIfTI first"))
    elif not indexed.failures:
        holds = ", ".join(path.name for path in indexed.unused[:4]) or ("DICOM" if _has_dicom(folder) else "nothing")
        raise ValueError(
            f"{folder} holds no image whose name says its contrast (case1/T1.nii.gz, case1_flair.nii.gz), but {holds}; "
            "give images for files with other names"
        )
    failures = [_with_index(fault) for fault in indexed.failures]
    return Cases(indexed.subjects, failures, folder)


def _with_index(fault: SubjectError) -> SubjectError:
    """Where only a person can say which file is which, index takes the answer."""
    if "--choose" not in fault.reason:
        return fault
    how = "python -m monai_ext index takes --choose and writes a datalist to give here"
    return SubjectError(fault.subject, fault.path, f"{fault.reason}\n{how}")


def _has_dicom(folder: Path) -> bool:
    return any(file.suffix.lower() in DICOM for file in walk(folder, []))


def _of_datalist(path: Path, split: str | None) -> Cases:
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, or null for all, got {split!r}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such datalist")
    failures: list[SubjectError] = []
    datalist = read_datalist(path, failures=failures)
    subjects = list(datalist.splits.get(split, ()) if split else datalist.subjects)
    if not subjects and not failures:
        raise ValueError(f"{path} has no subject{f' in its {split} split' if split else ''}")
    return Cases(subjects, failures, datalist.root)

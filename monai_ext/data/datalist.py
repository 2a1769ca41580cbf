"""A datalist: which subjects there are, where each contrast of each lies, and which split each person is in.

The file is JSON: MONAI's split names, a flat dictionary a subject, as MONAI's dictionary transforms take it.

    {"name": "ixi", "root": ".",
     "training": [{"subject": "IXI012", "T1": "IXI-T1/IXI012-HH-1211-T1.nii.gz", "T2": "..."}],
     "validation": [], "test": []}

Paths are relative to `root`, which is relative to the JSON's own folder or absolute. `session`, `label` and
`dataset` (where it is not the datalist's name) are optional; a contrast that a subject lacks is absent.
Phantoms may have `targets`, a contrast's path each, for what is to be made where that is not what was scanned,
and `masks`, the truth: {"brain": path, "lesion": path}.
"""

import os
import re
import stat
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_ext.files import absolute, read_json, write_json
from monai_ext.modalities import MODALITIES

SPLITS = ("training", "validation", "test")
LONGEST_NAME = 180  # bytes in UTF-8 of the 255 that a file's name may have: the rest is for what is added to it
OURS = ("datalist.json", "run.json", "report", "index.html")  # what commands write beside the subjects' folders
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, in any folder of Windows
MASKS = ("brain", "lesion")  # that are known rather than estimated
GROUPS = {"targets": MODALITIES, "masks": MASKS}  # keys of an entry that hold several files
ENTRY_KEYS = ("subject", "session", "dataset", *MODALITIES, "label", *GROUPS)


class SubjectError(ValueError):
    """One subject's fault: a batch command reports it, goes on with the others and exits non-zero.

    Args:
        subject: whose fault it is.
        path: the file that is at fault, None where it is none alone.
        reason: what is wrong with it, and what to do.
    """

    def __init__(self, subject: str, path: Path | None, reason: str) -> None:
        super().__init__(subject, path, reason)  # as three arguments, so that it comes back whole from a worker process
        self.subject, self.path, self.reason = subject, path, reason

    def __str__(self) -> str:
        return ": ".join([self.subject, *([str(self.path)] if self.path else []), self.reason])


@dataclass(frozen=True)
class Subject:
    """One visit of one person: which files there are.

    Attributes:
        subject: the person.
        dataset: whose person it is.
        images: canonical contrast name -> absolute path.
        session: the visit; empty where there is but one.
        label: a map of lesions or tissues, if there is one.
        targets: what a network is to make of a contrast, where that is not the image as scanned.
        masks: the truth of what MASKS name, which phantoms have.
    """

    subject: str
    dataset: str
    images: Mapping[str, Path]
    session: str = ""
    label: Path | None = None
    targets: Mapping[str, Path] = field(default_factory=dict)
    masks: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in a datalist, and the folder that prepared files go to."""
        return f"{self.subject}_{self.session}" if self.session else self.subject


@dataclass(frozen=True)
class Datalist:
    """The subjects of a dataset by split.

    Attributes:
        name: of the dataset.
        root: the folder that the file's paths start from.
        splits: "training", "validation", "test" -> subjects; a split may be absent.
    """

    name: str
    root: Path
    splits: Mapping[str, Sequence[Subject]]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """All of them, training first."""
        return tuple(subject for split in SPLITS for subject in self.splits.get(split, ()))


def read_datalist(path: Path | str, *, failures: list[SubjectError] | None = None) -> Datalist:
    """Read a datalist's JSON, whose form is at the top of this module.

    Args:
        path: of the JSON.
        failures: joined by the subjects' faults, while the others are read; without it the first fault is raised.

    Returns:
        The datalist, its paths absolute.

    Raises:
        ValueError: the file is no datalist, or its root is not there.
        SubjectError: a subject's fault, where `failures` is None: a path that is not there, a person in two splits.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for contrast in ("T1", "T2"):
        ...     _ = (folder / f"{contrast}.nii").write_bytes(b"an image")
        >>> _ = (folder / "datalist.json").write_text(
        ...     '{"name": "ixi", "training": [{"subject": "IXI012", "T1": "T1.nii", "T2": "T2.nii"}]}'
        ... )
        >>> datalist = read_datalist(folder / "datalist.json")
        >>> datalist.name, [(subject.name, list(subject.images)) for subject in datalist.subjects]
        ('ixi', [('IXI012', ['T1', 'T2'])])
    """
    path = absolute(Path(path))
    content = _read_json(path)
    unknown = sorted(set(content) - {"name", "root", *SPLITS})
    if unknown:
        allowed = ", ".join(("name", "root", *SPLITS))
        raise ValueError(f"{path}: unknown key '{_shown(unknown[0])}'; a datalist has {allowed}")
    name, root = content.get("name", path.stem), content.get("root", ".")
    if not _is_text(name) or not _is_text(root):
        raise ValueError(f"{path}: name and root must be text, got '{_shown(name)}' and '{_shown(root)}'")
    folder = absolute(path.parent / root)
    if not folder.is_dir():
        raise ValueError(f"{path}: root {root!r} is not a folder: {folder}; set it to where the images are")

    splits: dict[str, tuple[Subject, ...]] = {}
    split_of: dict[tuple[str, str], str] = {}
    names: set[str] = set()
    for split in SPLITS:
        entries = content.get(split, [])
        if not isinstance(entries, list):
            raise ValueError(f"{path}: {split} must be a list of subjects, got {type(entries).__name__}")
        subjects = []
        for number, entry in enumerate(entries):
            try:
                subject = _subject(entry, where=f"{split}[{number}]", dataset=name, root=folder)
                first = split_of.setdefault((subject.dataset, subject.subject), split)
                if first != split:
                    reason = f"is in {first} and in {split}; all of a person's sessions belong to one split"
                    raise SubjectError(subject.name, path, reason)
                if subject.name in names:
                    raise SubjectError(subject.name, path, "is there twice; give each visit once")
            except SubjectError as fault:
                if failures is None:
                    raise
                failures.append(fault)
            else:
                names.add(subject.name)
                subjects.append(subject)
        splits[split] = tuple(subjects)
    return Datalist(name=name, root=folder, splits=splits)


def write_datalist(path: Path | str, datalist: Datalist) -> None:
    """Write a datalist, whole or not at all, in the order given, with paths relative to its root.

    Args:
        path: of the JSON.
        datalist: what is written.
    """
    path = absolute(Path(path))
    root = absolute(datalist.root)
    # Written relative where one lies in the other, because they are moved together then.
    near = root.is_relative_to(path.parent) or path.parent.is_relative_to(root)
    content: dict[str, Any] = {
        "name": datalist.name,
        "root": Path(os.path.relpath(root, path.parent)).as_posix() if near else root.as_posix(),
    }
    for split in SPLITS:
        content[split] = [_entry(subject, datalist.name, root) for subject in datalist.splits.get(split, ())]
    write_json(path, content)


def report_failures(failures: Sequence[SubjectError], *, total: int, what: str) -> int:
    """Print a table of subject, file and reason on stderr, for a command that did the rest.

    Args:
        failures: the faults; none prints nothing.
        total: how many subjects there were.
        what: was done to the others, such as "prepared".

    Returns:
        The command's exit status: 1 if there are any, else 0.
    """
    if not failures:
        return 0
    rows = [("subject", "file", "reason")]
    rows += [(fault.subject, str(fault.path or "-"), fault.reason) for fault in failures]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    print(f"{len(failures)} of {total} subjects could not be {what}:", file=sys.stderr)
    for subject, file, reason in rows:
        indented = reason.replace("\n", "\n" + " " * (first + second + 6))
        print(f"  {subject:{first}}  {file:{second}}  {indented}", file=sys.stderr)
    return 1


def _read_json(path: Path) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ValueError(f"the key {key!r} is there twice in one place")
            content[key] = value
        return content

    try:
        content = read_json(path, pairs=without_duplicates)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path}: not a datalist: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a datalist is a JSON object, got a {type(content).__name__}")
    return content


def _shown(value: Any) -> str:
    """As it can be printed on one line of any terminal: its beginning, signs that print nothing escaped."""
    text = str(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _is_text(value: Any) -> bool:
    """Text that can be written as UTF-8: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _subject(entry: Any, *, where: str, dataset: str, root: Path) -> Subject:
    if not isinstance(entry, dict):
        raise SubjectError(
            where, None, f"must be an object with a subject and its contrasts, got {_shown(repr(entry))}"
        )
    name = entry.get("subject", where)
    for key, value in entry.items():
        if key not in ENTRY_KEYS:
            raise SubjectError(_shown(name), None, f"unknown key '{_shown(key)}'; known are {', '.join(ENTRY_KEYS)}")
        if key in GROUPS:
            _check_group(value, key=key, subject=_shown(name))
        elif not _is_text(value):
            raise SubjectError(_shown(name), None, f"{key} must be text, got {_shown(repr(value))}")
    if "subject" not in entry:
        raise SubjectError(where, None, "has no key 'subject'")
    for key in ("subject", "session"):
        check_name(entry.get(key, "") if key == "session" else name, key=key, subject=name)
    check_name(Subject(name, "", {}, entry.get("session", "")).name, key="subject and session", subject=name)
    images = {key: _file(entry[key], name, root) for key in MODALITIES if key in entry}
    if not images:
        raise SubjectError(name, None, f"has no image; give at least one of {', '.join(MODALITIES)}")
    return Subject(
        subject=name,
        dataset=entry.get("dataset", dataset),
        images=images,
        session=entry.get("session", ""),
        label=_file(entry["label"], name, root) if "label" in entry else None,
        **{key: {k: _file(path, name, root) for k, path in entry.get(key, {}).items()} for key in GROUPS},
    )


def _check_group(value: Any, *, key: str, subject: str) -> None:
    allowed = GROUPS[key]
    if not isinstance(value, dict) or not all(_is_text(path) for path in value.values()):
        raise SubjectError(subject, None, f"{key} must be an object of one path a name, got {_shown(repr(value))}")
    for name in value:
        if name not in allowed:
            reason = f"{key} has the unknown name '{_shown(name)}'; known are {', '.join(allowed)}"
            raise SubjectError(subject, None, reason)


def check_name(value: str, *, key: str, subject: str) -> None:
    """Refuse a name that cannot be a folder on every system, would leave the output's or would be one of our files.

    Args:
        value: the name. It may be empty for other keys than subject: such a name is not used.
        key: what it names, "subject" or "session" say.
        subject: whose it is, for the message.

    Raises:
        SubjectError: it names the key, the rule and the value.
    """
    wrong = _wrong_in(value, needed=key == "subject")
    if wrong:
        reason = f"{key} must be a folder's plain name, got '{_shown(value)}': {wrong}"
        raise SubjectError(_shown(subject) or "(no name)", None, reason)


def _wrong_in(value: str, *, needed: bool) -> str:
    """What keeps a name from being a folder's, "" if nothing does."""
    kinds = {unicodedata.category(letter) for letter in value}
    size = len(value.encode("utf-8", "surrogatepass"))
    rules = (
        (needed and not value, "it is empty"),
        (any(sign in value for sign in "/\\"), "it has a slash in it"),
        (bool(kinds & {"Cc", "Cs", "Zl", "Zp"}), "it has a control character or half a letter in it"),
        (value.startswith("."), "it begins with a dot, as hidden files and unfinished folders do"),
        (value != value.strip() or value.endswith("."), "it begins or ends with a space, or ends with a dot"),
        (value.lower() in OURS, "a file of ours is called that"),
        (RESERVED.fullmatch(value) is not None, "Windows has a device of that name"),
        (size > LONGEST_NAME, f"it takes {size} bytes, at most {LONGEST_NAME} fit"),
    )
    return next((fault for broken, fault in rules if broken), "")


def _file(relative: str, subject: str, root: Path) -> Path:
    path = absolute(root / relative)
    if not path.is_relative_to(root):
        raise SubjectError(subject, Path(relative), f"climbs out of the datalist's root {root}")
    file_size(path, subject=subject)
    return path


def file_size(path: Path, *, subject: str) -> int:
    """Say how many bytes a file has.

    Args:
        path: of the file; links are followed.
        subject: whose file it is, for the message.

    Returns:
        Bytes, 0 for an empty file.

    Raises:
        SubjectError: it is missing, a link to nowhere or in a circle, a folder, or cannot be read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a ValueError where the path has a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SubjectError(subject, path, f"cannot be read: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SubjectError(subject, path, "is not a file")
    return status.st_size


def _entry(subject: Subject, dataset: str, root: Path) -> dict[str, Any]:
    def relative(path: Path) -> str:
        if not path.is_relative_to(root):
            raise SubjectError(subject.name, path, f"is outside the datalist's root {root}")
        return path.relative_to(root).as_posix()

    entry: dict[str, Any] = {"subject": subject.subject}
    if subject.session:
        entry["session"] = subject.session
    if subject.dataset != dataset:
        entry["dataset"] = subject.dataset
    entry.update({name: relative(subject.images[name]) for name in MODALITIES if name in subject.images})
    if subject.label is not None:
        entry["label"] = relative(subject.label)
    for key, names in GROUPS.items():
        files: Mapping[str, Path] = getattr(subject, key)
        if files:
            entry[key] = {name: relative(files[name]) for name in names if name in files}
    return entry

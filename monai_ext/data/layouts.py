"""python -m monai_ext index: from a dataset's own folders and names to a datalist. No image is opened."""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_ext.data.choosing import KINDS, Choices, matches
from monai_ext.data.datalist import SPLITS, Datalist, Subject, SubjectError, check_name, report_failures, write_datalist
from monai_ext.data.naming import LABEL, LAYOUTS, stem
from monai_ext.data.splits import parse_split, split_subjects
from monai_ext.files import absolute
from monai_ext.modalities import MODALITIES, canonical

SIGNATURES = {
    "ixi": r"IXI\d+-",
    "brats2015": r"VSD\.Brain",
    "brats2020": r"(?i:brats)(17|18|19|20|2021)_",
    "brats2023": r"BraTS-[A-Za-z]+-\d",
    "isles22": r"sub-strokecase",
    "bids": r"sub-",
}
DICOM = (".dcm", ".dicom", ".ima")


@dataclass
class Index:
    """What a dataset's folder holds.

    Attributes:
        layout: how its files are named.
        dataset: its name.
        subjects: every visit that has an image, sorted by name.
        failures: the faults of those that could not be taken.
        unused: images that no contrast took.
        left_out: visit -> why it is not wanted.
    """

    layout: str
    dataset: str
    subjects: list[Subject] = field(default_factory=list)
    failures: list[SubjectError] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Visit:
    """A person's files of one day, by kind, and the folders they were found in."""

    subject: str
    session: str
    files: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    homes: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The visit's name in a datalist, which its folders get."""
        return Subject(self.subject, "", {}, self.session).name

    @property
    def describe(self) -> str:
        """The visit in words, for a message."""
        return f"subject {self.subject!r}" + (f" session {self.session!r}" if self.session else "")

    def check(self) -> None:
        """Refuse names that cannot be folders and files that lie in two folders of one name.

        Raises:
            SubjectError: what is wrong, and what to rename.
        """
        check_name(self.subject, key="subject", subject=self.name)
        check_name(self.session, key="session", subject=self.name)
        check_name(self.name, key="subject and session", subject=self.name)
        if len(self.homes) > 1:
            where = ", ".join(sorted(self.homes))
            reason = f"duplicate: the folders {where} all bear its name"
            raise SubjectError(self.name, None, f"{reason}; rename all but one, or --exclude them")


def detect(files: Sequence[Path]) -> str:
    """Tell the layout that the files' names speak of.

    Args:
        files: all that a dataset's folder holds.

    Returns:
        A layout's name, "folder" where no dataset's names are recognised.

    Raises:
        ValueError: the names are of several datasets.
    """
    counts: Counter[str] = Counter()
    for file in files:
        layouts = (layout for layout, start in SIGNATURES.items() if re.match(start, file.name))
        counts.update([next(layouts, "folder")])
    named = [layout for layout, _ in counts.most_common() if layout != "folder"]
    if len(named) > 1:
        listed = ", ".join(f"{layout} ({counts[layout]} files)" for layout in named)
        raise ValueError(f"the names are of several datasets: {listed}; give --layout, or index one --root each")
    return named[0] if named else "folder"


def index(
    root: Path,
    *,
    layout: str = "auto",
    dataset: str = "",
    choices: Choices | None = None,
    exclude: Sequence[str] = (),
    require: Sequence[str] = (),
) -> Index:
    """Find every visit under `root`, sorted by name; no image is opened.

    Args:
        root: the dataset's folder.
        layout: how its files are named; "auto" tells it from the names.
        dataset: its name; the layout's or the folder's unless given.
        choices: which file is a contrast where several could be.
        exclude: patterns of files to pass over, matched against paths relative to `root`.
        require: contrasts that a wanted visit has.

    Returns:
        The visits, and all that was not taken with the reason.

    Raises:
        ValueError: `root` is no folder, holds several datasets, or a pattern of `choices` fits no file.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1211-T2.nii.gz", "IXI013-HH-1212-T1.nii.gz"):
        ...     _ = (root / name).write_bytes(b"an image")
        >>> found = index(root, require=["T1", "T2"])
        >>> found.layout, [subject.name for subject in found.subjects], list(found.left_out)
        ('ixi', ['IXI012'], ['IXI013'])
    """
    root = absolute(root)
    if not root.is_dir():
        raise ValueError(f"--root must be a folder, got {root}")
    failures: list[SubjectError] = []
    files = [f for f in walk(root, failures) if not any(matches(f, pattern, root) for pattern in exclude)]
    failures += _dicom(files, root)
    images = [file for file in files if stem(file)]
    layout = detect(images) if layout == "auto" else layout
    dataset = dataset or (root.name if layout in {"bids", "folder"} else layout)
    indexed = Index(layout=layout, dataset=dataset, failures=failures)
    visits, indexed.unused = _visits(files, layout, root)
    choices = choices or Choices()
    choices.look_at([visit.files for visit in visits], root=root)

    names: dict[str, Visit] = {}
    for visit in visits:
        every = sorted(path for paths in visit.files.values() for path in paths)
        try:
            if names.setdefault(visit.name, visit) is not visit:
                other = f"{names[visit.name].describe} and {visit.describe}"
                raise SubjectError(visit.name, None, f"{other} make one name; rename one of them")
            visit.check()
            picked = choices.pick(visit.name, visit.files, root=root)
            if not set(picked) - {LABEL} and (picked or layout == "folder"):
                how = f'--choose "T1=*{every[0].name}" says which file is what'
                reason = f"has no image with a contrast's name, only {_some(every, root)}; {how}"
                raise SubjectError(visit.name, None, reason)
        except SubjectError as fault:
            indexed.failures.append(fault)
            continue
        indexed.unused += sorted(set(every) - set(picked.values()))
        label = picked.pop(LABEL, None)
        lacking = [contrast for contrast in require if contrast not in picked]
        if not picked:
            indexed.left_out[visit.name] = "none of " + ", ".join(MODALITIES)
        elif lacking:
            indexed.left_out[visit.name] = "no " + ", ".join(lacking)
        else:
            indexed.subjects.append(Subject(visit.subject, dataset, picked, visit.session, label))
    return indexed


def _visits(files: Sequence[Path], layout: str, root: Path) -> tuple[list[Visit], list[Path]]:
    """The images by person and visit, sorted, and those whose names are not the layout's."""
    visits: dict[tuple[str, str], Visit] = {}
    strange = []
    every = set(files)
    for file in files:
        named = LAYOUTS[layout](file.relative_to(root)) if stem(file) else None
        if named:
            key = (named.subject or root.name, named.session)
            series = named.kind == "DWI" and file.with_name(f"{stem(file)}.bvec") in every  # many directions
            visit = visits.setdefault(key, Visit(*key))
            visit.files["" if series else named.kind].append(file)
            visit.homes.add(named.home)
        elif stem(file):
            strange.append(file)
    return [visits[key] for key in sorted(visits)], strange


def _dicom(files: Sequence[Path], root: Path) -> list[SubjectError]:
    """One fault for each folder of `root` that has DICOM files."""
    dicom = [file for file in files if file.suffix.lower() in DICOM]
    patterns = {root.joinpath(*file.relative_to(root).parts[:-1][:1]): f"*{file.suffix}" for file in dicom}
    how = "is DICOM, which index does not read: convert it to NIfTI first, or pass over it with --exclude"
    return [SubjectError(top.name, top, f'{how} "{pattern}"') for top, pattern in patterns.items()]


def walk(folder: Path, failures: list[SubjectError], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """List files in sorted order, through links to folders; hidden files are passed over.

    Args:
        folder: where to begin.
        failures: joined by a link that leads back up, and by a folder that may not be read.
        above: the folders that led here, for the recursion.

    Yields:
        Each file that is not hidden, by folders and names.
    """
    above = (*above, folder.resolve())
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry
            elif entry.resolve() in above:
                reason = f"is a link that leads back to {entry.resolve()}; remove it"
                failures.append(SubjectError(entry.name, entry, reason))
            else:
                yield from walk(entry, failures, above)
    except OSError as error:
        failures.append(SubjectError(folder.name, folder, f"cannot be read: {error.strerror}"))


def table(datalist: Datalist) -> str:
    """Count the visits, people, and images of each contrast that every split has, as a table to print.

    Args:
        datalist: whose splits are counted; no file is looked at.

    Returns:
        Lines: a heading, a row for each split, and "all".
    """
    kinds = [kind for kind in KINDS if any(_has(subject, kind) for subject in datalist.subjects)]
    rows = [["", "visits", "people", *kinds]]
    for name, subjects in [*((split, datalist.splits[split]) for split in SPLITS), ("all", datalist.subjects)]:
        people = len({subject.subject for subject in subjects})
        counts = [sum(_has(subject, kind) for subject in subjects) for kind in kinds]
        rows.append([name, *map(str, (len(subjects), people, *counts))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _has(subject: Subject, kind: str) -> bool:
    return subject.label is not None if kind == LABEL else kind in subject.images


def _some(paths: Sequence[Path], root: Path) -> str:
    names = [path.relative_to(root).as_posix() for path in paths[:4]]
    return ", ".join(names) + (", ..." if len(paths) > 4 else "")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `index` to a parser.

    Args:
        parser: of the command; it is told to call `run`.
    """
    add = parser.add_argument
    add(
        "--root", type=Path, required=True, help="the dataset's folder; for many people's files in one folder, that one"
    )
    add("--layout", choices=["auto", *LAYOUTS], default="auto", help="how its files are named (default: auto)")
    add("--out", type=Path, default=Path("datalist.json"), help="the datalist to write (default: datalist.json)")
    add("--name", default="", help="the dataset's name (default: the layout's; the folder's for bids and folder)")
    split = "numbers of people (500/37/40), refused where there are fewer, or parts of all of them"
    parts = "(0.7/0.1/0.2 or 70/10/20%%; default: 80/10/10%%)"
    add("--split", default="80/10/10%", help=f"training/validation/test: {split} {parts}")
    add("--seed", type=int, default=0, help="another seed, another split (default: 0)")
    add("--require", nargs="+", default=[], metavar="CONTRAST", help="leave out visits that lack one of these")
    choose = 'which file, where several could be the contrast or the label: "T1=*acq-mprage*"; the first that fits'
    add("--choose", nargs="+", default=[], action="extend", metavar="CONTRAST=PATTERN", help=choose)
    exclude = 'files to pass over: "derivatives/*"'
    add("--exclude", nargs="+", default=[], action="extend", metavar="PATTERN", help=exclude)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the datalist of a folder as the options say.

    Args:
        args: what `configure`'s parser read.

    Returns:
        The exit status: 1 if a visit could not be taken.

    Raises:
        ValueError: an option that may not be, or nothing to index.
    """
    root, split, choices = absolute(args.root), parse_split(args.split), Choices(args.choose)
    indexed = index(
        root,
        layout=args.layout,
        dataset=args.name,
        choices=choices,
        exclude=args.exclude,
        require=[canonical(name) for name in args.require],
    )
    total = len(indexed.subjects) + len(indexed.failures) + len(indexed.left_out)
    status = report_failures(indexed.failures, total=total, what="indexed")
    left_out = [
        f"{len(names)} visits left out, {reason}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for reason in sorted(set(indexed.left_out.values()))
        for names in [[name for name, why in indexed.left_out.items() if why == reason]]
    ]
    if not indexed.subjects:
        unused = [f"images there: {_some(indexed.unused, root)}"] if indexed.unused else []
        raise ValueError("; ".join([f"nothing to index under {root}, read as {indexed.layout}", *left_out, *unused]))

    splits = split_subjects(indexed.subjects, split=split, seed=args.seed)
    datalist = Datalist(name=indexed.dataset, root=root, splits=splits)
    write_datalist(args.out, datalist)
    print(f"{indexed.dataset}: {root}, read as {indexed.layout}\n\n{table(datalist)}\n")
    print(*left_out, sep="\n", end="\n" if left_out else "")
    beyond = len(indexed.subjects) - len(datalist.subjects)
    if beyond:
        print(f"{beyond} visits more than --split {args.split} asks for: in no split")
    if indexed.unused:
        print(f"{len(indexed.unused)} images not used: {_some(indexed.unused, root)}")
    print(f"written: {args.out}")
    return status

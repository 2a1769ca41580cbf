"""Whose data are used: the subjects of one datalist or several that have the contrasts that are wanted."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_ext.data.datalist import Subject, read_datalist
from monai_ext.files import absolute
from monai_ext.modalities import canonical

logger = logging.getLogger(__name__)

Datalists = Path | str | Sequence[Path | str | Sequence[Path | str]]


def named_datalists(datalist: Datalists) -> list[tuple[str, Path]]:
    """List what a config's `datalist` names.

    Args:
        datalist: a path, or a list of paths or of [name, path].

    Returns:
        (name, path) of each; the name is "" where the datalist's own holds.

    Raises:
        ValueError: it has another form, or a file is not there.
    """
    each = [datalist] if isinstance(datalist, str | Path) else list(datalist)
    pairs = [("", entry) if isinstance(entry, str | Path) else tuple(entry) for entry in each]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"datalist must be a path, or a list of paths or of [name, path], got {datalist!r}")
    named = [(str(pair[0]), absolute(Path(pair[1]))) for pair in pairs]
    for name, path in named:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such datalist" + (f", which {name!r} names" if name else ""))
    return named


def select_subjects(
    datalist: Datalists, split: str, contrasts: Sequence[str], *, least: int | None = None, supervised: bool = False
) -> list[Subject]:
    """Take the split's subjects that have enough of the contrasts, of every datalist, each with its dataset's name.

    Args:
        datalist: a path, or a list of paths or of [name, path].
        split: "training", "validation" or "test".
        contrasts: which count, by any of their names.
        least: how many of them a subject must have; all of them if None. Those that have fewer are told in the log.
        supervised: every contrast must be there in some subject, since one that nobody has could not be trained.

    Returns:
        The subjects, in the datalists' order.

    Raises:
        ValueError: nobody has what is wanted, a dataset is named twice, or a contrast is.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for contrast in ("T1", "T2"):
        ...     _ = (folder / f"{contrast}.nii").write_bytes(b"an image")
        >>> _ = (folder / "datalist.json").write_text(
        ...     '{"name": "ixi", "test": [{"subject": "IXI012", "T1": "T1.nii", "T2": "T2.nii"}]}'
        ... )
        >>> [subject.name for subject in select_subjects(folder / "datalist.json", "test", ["t1w", "t2w"])]
        ['IXI012']
    """
    wanted = check_contrasts(contrasts)
    owner: dict[str, Path] = {}
    chosen: list[Subject] = []
    for name, path in named_datalists(datalist):
        subjects = read_datalist(path).splits.get(split, ())
        subjects = [replace(subject, dataset=name) for subject in subjects] if name else list(subjects)
        for dataset in dict.fromkeys(subject.dataset for subject in subjects):
            if dataset in owner:
                raise ValueError(
                    f"dataset {dataset!r} is named twice, by {owner[dataset]} and by {path}: give each a name of its "
                    "own, datalist \"[['one', 'a.json'], ['other', 'b.json']]\", or index them as one"
                )
            owner[dataset] = path
            ours = [subject for subject in subjects if subject.dataset == dataset]
            chosen += _able(ours, wanted, least=least, split=split, path=path)
    if not chosen:
        raise ValueError(f"{datalist}: no subject of its {split} split has {', '.join(wanted)}")
    never = [contrast for contrast in wanted if not any(contrast in subject.images for subject in chosen)]
    if supervised and never:
        trainable = [contrast for contrast in wanted if contrast not in never]
        raise ValueError(
            f"{', '.join(never)} never has ground truth in the {split} split of {', '.join(owner)}, so nothing could "
            f'train it: give data that have it, or --modalities "{trainable}"'
        )
    return chosen


def has_subjects(datalist: Datalists, split: str) -> bool:
    """Say whether a split of any of the datalists has a subject: a validation split need not, and then nothing is
    chosen.

    Training without one keeps the weights of its last epoch.

    Args:
        datalist: as of `select_subjects`.
        split: "training", "validation" or "test".

    Returns:
        Whether there is one, whatever contrasts it has.

    Raises:
        ValueError: a datalist that is not there, or is none.
    """
    return any(read_datalist(path).splits.get(split) for _, path in named_datalists(datalist))


def _able(
    subjects: Sequence[Subject], wanted: Sequence[str], *, least: int | None, split: str, path: Path
) -> list[Subject]:
    """Those of one dataset's subjects that have enough; the others are told."""
    needed = len(wanted) if least is None else least
    able = [subject for subject in subjects if sum(contrast in subject.images for contrast in wanted) >= needed]
    dataset = subjects[0].dataset
    if not able and least is not None:
        raise ValueError(
            f"{path}: no {split} subject of dataset {dataset!r} has two of {', '.join(wanted)}, so there is "
            "nothing to synthesise from another: leave it out, or name its contrasts"
        )
    if len(able) < len(subjects):
        lacking = [subject.name for subject in subjects if subject not in able]
        names = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        many = f"{len(lacking)} of {len(subjects)} {split} subjects of {dataset}"
        logger.warning("%s lack a contrast and are left out: %s", many, names)
    return able


def check_contrasts(contrasts: Sequence[str]) -> list[str]:
    """Give contrasts their one name each.

    Args:
        contrasts: at least two, by any of their names.

    Returns:
        Their names in `MODALITIES`, in the order given.

    Raises:
        ValueError: it is no list, one is there twice, or there is but one.
    """
    if isinstance(contrasts, str):
        raise ValueError(f"modalities must be a list of contrasts such as ['T1', 'T2'], got {contrasts!r}")
    wanted = [canonical(contrast) for contrast in contrasts]
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"each contrast is a source or the target, once, got {', '.join(wanted)}")
    if len(wanted) < 2:
        raise ValueError(f"there must be two contrasts, one to make of the other, got {', '.join(wanted) or 'none'}")
    return wanted


def names_of(data: Sequence[Subject]) -> tuple[str, ...]:
    """List the names of the datasets that the subjects are of, each once, in order of first appearance.

    Args:
        data: of `select_subjects`.

    Returns:
        Names in order of first appearance; () of no subjects.
    """
    return tuple(dict.fromkeys(subject.dataset for subject in data))

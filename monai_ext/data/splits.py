"""Which people train, validate and test: the same on every machine and in any order of the files.

A person's place is a hash of the seed and the name; all of the person's sessions go there.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

from monai_ext.data.datalist import SPLITS, Subject


def parse_split(text: str) -> tuple[float, float, float]:
    """Read training/validation/test: "500/37/40" people, or parts of all of them: "0.7/0.1/0.2", "70/10/20%".

    Args:
        text: three numbers with slashes; a point or a percent sign anywhere makes all of them parts.

    Returns:
        Whole numbers of people, or parts that add up to 1.

    Raises:
        ValueError: another form, or parts that do not add up.

    Example:
        >>> parse_split("500/37/40"), parse_split("70/10/20%")
        ((500, 37, 40), (0.7, 0.1, 0.2))
    """
    form = f"--split must be three counts (500/37/40) or three parts (0.7/0.1/0.2, 70/10/20%), got {text!r}"
    percent, fractional = "%" in text, "." in text
    try:
        numbers = [float(part) for part in text.replace("%", "").split("/")]
    except ValueError:
        raise ValueError(form) from None
    if len(numbers) != len(SPLITS) or not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(form)
    if percent or fractional:
        whole = 100 if percent else 1
        if abs(sum(numbers) - whole) > 1e-6 * whole:
            raise ValueError(f"the parts of --split must add up to {whole}, got {text!r} = {sum(numbers):g}")
        numbers = [number / whole for number in numbers]
    elif not any(numbers):
        raise ValueError(f"--split must ask for at least one person, got {text!r}")
    else:
        numbers = [int(number) for number in numbers]
    training, validation, test = numbers
    return training, validation, test


def split_subjects(subjects: Sequence[Subject], *, split: Sequence[float], seed: int) -> dict[str, tuple[Subject, ...]]:
    """Put every person into a split, with all of the person's sessions.

    Args:
        subjects: of any number of datasets.
        split: counts (ints), which are exact, and whoever is left over is in no split; or parts (floats), which share
            everyone out.
        seed: another one gives another split.

    Returns:
        "training", "validation", "test" -> subjects, sorted by name.

    Raises:
        ValueError: there are fewer people than the counts ask for.

    Example:
        >>> people = [Subject(f"IXI{number:03d}", "ixi", {}) for number in range(10)]
        >>> splits = split_subjects(people, split=parse_split("70/10/20%"), seed=0)
        >>> {name: len(subjects) for name, subjects in splits.items()}
        {'training': 7, 'validation': 1, 'test': 2}
    """
    everyone = {(subject.dataset, subject.subject) for subject in subjects}
    people = sorted(everyone, key=lambda who: (_place(who[1], seed), who))
    counts = [int(number) for number in split]
    if any(isinstance(number, float) for number in split):
        counts = _share(len(people), split)
    elif sum(counts) > len(people):
        fewer = "/".join(str(count) for count in _share(len(people), [n / sum(counts) for n in counts]))
        asked = "/".join(str(count) for count in counts)
        raise ValueError(
            f"--split {asked} asks for {sum(counts)} people, there are {len(people)}; "
            f"in the same proportions that is --split {fewer}"
        )
    ordered = sorted(subjects, key=lambda subject: (subject.dataset, subject.subject, subject.session))
    splits, start = {}, 0
    for name, count in zip(SPLITS, counts, strict=True):
        chosen = set(people[start : start + count])
        splits[name] = tuple(s for s in ordered if (s.dataset, s.subject) in chosen)
        start += count
    return splits


def _place(name: str, seed: int) -> str:
    # Normalised, because one file system spells "é" as one character and another as two.
    text = unicodedata.normalize("NFC", f"{seed}/{name}")
    return hashlib.sha256(text.encode()).hexdigest()


def _share(total: int, parts: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of `parts` that add up to `total`: what rounding down leaves goes to
    the largest remainders, the first of equals first.
    """
    exact = [total * part for part in parts]
    counts = [int(number + 1e-9) for number in exact]
    for index in sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[index] += 1
    return counts

"""Which subjects the report shows, and their images: each method's worst, median and best by PSNR in the brain."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from monai_ext.report.pictures import Stored, error_of, read_stored
from monai_ext.report.runs import Comparison, Run, unharmed

KINDS = ("source", "truth", "synthetic", "error")


class Shown(NamedTuple):
    """One image of a case; `text` is its caption."""

    kind: str
    text: str
    volume: Stored


@dataclass
class ShownCase:
    """A subject and a target, what it is among all ("worst of 20 for X, 24.1 dB"), and the runs that kept it."""

    subject: str
    target: str
    roles: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)  # runs that kept nothing of it


def shown_cases(comparison: Comparison, chosen: Sequence[str] | None = None) -> list[ShownCase]:
    """In the order of targets, then runs; of `chosen` subjects, or of each method's worst, median and best."""
    unknown = [name for name in chosen or () if name not in comparison.every_subject]
    if unknown:
        names = ", ".join(comparison.every_subject[:8])
        raise ValueError(f"--subjects: {', '.join(unknown)} is in none of the comparisons; there are {names}, ...")
    cases: dict[tuple[str, str], ShownCase] = {}
    for target in comparison.targets:
        for run in comparison.runs:
            for subject, role in _roles(comparison, run, target, chosen):
                cases.setdefault((subject, target), ShownCase(subject, target)).roles.append(role)
    for case in cases.values():
        case.runs = [run for run in comparison.runs if run.kept(case.subject, case.target)]
        case.lacking = [run.label for run in comparison.runs if run not in case.runs]
    shown = [case for case in cases.values() if case.runs]
    without = sorted(set(chosen or ()) - {case.subject for case in shown})
    if without:
        raise ValueError(f"--subjects: no run kept volumes of {', '.join(without)}; evaluate with keep 'all'")
    return shown


def _roles(comparison: Comparison, run: Run, target: str, chosen: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Of the subjects whose volumes this run kept, the ones that lie nearest to the three ranks."""
    names = comparison.subjects[target]
    psnr = comparison.values(run, unharmed(target, "brain"), "psnr")
    order = [int(i) for i in np.argsort(psnr, kind="stable")]  # NaN last
    rank = {names[i]: place for place, i in enumerate(order)}
    with_volumes = sorted((name for name in names if run.kept(name, target)), key=rank.__getitem__)
    n = len(names)
    for name in chosen or ():
        if name in rank:
            yield name, _place_in_words(run, rank[name], n, psnr[names.index(name)])
    if chosen is None and with_volumes:
        median = min(with_volumes, key=lambda name: abs(rank[name] - (n - 1) // 2))
        for name in dict.fromkeys((with_volumes[0], median, with_volumes[-1])):
            yield name, _place_in_words(run, rank[name], n, psnr[names.index(name)])


def _place_in_words(run: Run, rank: int, n: int, psnr: float) -> str:
    words = {(n - 1) // 2: "median", 0: "worst", n - 1: "best"}
    place = f"{words.get(rank, f'number {rank + 1} from the worst')} of {n}, " if n > 1 else ""
    return f"{run.label}: {place}{psnr:.2f} dB"


def images_of(case: ShownCase) -> list[Shown]:
    """Sources and truth once, then synthesis and error of each run, the error computed here from the two."""
    images: dict[str, Shown] = {}
    for run in case.runs:
        for contrast in run.about["sources"]:
            path = run.volume(case.subject, contrast)
            if contrast not in images and path.is_file():
                images[contrast] = Shown("source", f"{contrast}, a source", read_stored(path))
    for run in case.runs:
        truth = read_stored(run.volume(case.subject, f"{case.target}_truth"))
        path = run.volume(case.subject, f"{case.target}_synthetic")
        synthetic = read_stored(path)
        images.setdefault("truth", Shown("truth", f"{case.target}, the truth", truth))
        images[f"synthetic {run.label}"] = Shown("synthetic", f"SYNTHETIC {case.target} by {run.label}", synthetic)
        error = error_of(synthetic, truth, path=path)
        images[f"error {run.label}"] = Shown("error", f"Error of {run.label}: |SYNTHETIC − truth|", error)
    return sorted(images.values(), key=lambda shown: KINDS.index(shown.kind) if shown.kind in KINDS[:2] else 2)

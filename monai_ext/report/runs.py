"""What the report reads: run folders, whether they can be compared, and the subjects that they share."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_ext.evaluation.metrics import FIGURES
from monai_ext.evaluation.run_folder import SLICE_COLUMNS, SUBJECT_COLUMNS

METRICS = (*FIGURES, "stripes")
NEEDED = (
    "bundle", "name", "version", "sources", "target", "dataset", "split", "datalist_sha256", "weights", "protocol",
    "perturbations", "software",
)  # fmt: skip
SAME = {"target": "targets", "dataset": "datasets", "split": "splits", "datalist_sha256": "datalists"}


class Key(NamedTuple):
    """Where a figure belongs to, but for its subject and name."""

    perturbation: str
    contrast: str
    level: float
    target: str
    region: str


def unharmed(target: str, region: str) -> Key:
    return Key("none", "", 0.0, target, region)


@dataclass(frozen=True)
class Run:
    """One method's evaluation. `label` is its name, made longer where two runs have the same."""

    folder: Path
    label: str
    about: Mapping[str, Any]
    datasets: Mapping[str, str]  # of each subject
    scores: Mapping[Key, Mapping[str, Mapping[str, float]]]  # key -> subject -> metric
    slices: Mapping[tuple[str, str], int]  # evaluated slices of (subject, target)

    def person(self, subject: str) -> str:
        """Whose visit a subject of the tables is."""
        people = self.about.get("people")
        return str(people.get(subject, subject)) if isinstance(people, dict) else subject

    def volume(self, subject: str, name: str) -> Path:
        return self.folder / "volumes" / subject / f"{name}.nii.gz"

    def kept(self, subject: str, target: str) -> bool:
        return all(self.volume(subject, f"{target}_{kind}").is_file() for kind in ("truth", "synthetic"))


@dataclass(frozen=True)
class Comparison:
    """Runs, the targets that all of them have, and of each target the subjects that all of them have."""

    runs: tuple[Run, ...]
    targets: tuple[str, ...]
    subjects: Mapping[str, tuple[str, ...]]
    remarks: tuple[str, ...]  # what a reader must know about the comparison

    def values(self, run: Run, key: Key, metric: str, subjects: Sequence[str] | None = None) -> NDArray[np.float64]:
        """A figure a common subject; NaN where it has no meaning or the subject was not put to this."""
        scores = run.scores.get(key, {})
        names = self.subjects[key.target] if subjects is None else subjects
        return np.array([scores.get(name, {}).get(metric, math.nan) for name in names])

    def people(self, subjects: Sequence[str]) -> dict[str, list[int]]:
        """Who they are, and which of these subjects are each one's visits."""
        visits: dict[str, list[int]] = {}
        for number, name in enumerate(subjects):
            person = next((run.person(name) for run in self.runs if run.person(name) != name), name)
            visits.setdefault(f"{self.runs[0].datasets.get(name, '')}/{person}", []).append(number)
        return visits

    def means(self, run: Run, key: Key, metric: str, subjects: Sequence[str] | None = None) -> NDArray[np.float64]:
        """A figure a person, the mean over the visits: visits of one person are no independent samples."""
        values = self.values(run, key, metric, subjects)
        names = self.subjects[key.target] if subjects is None else subjects
        return np.array([mean_of(values[visits]) for visits in self.people(names).values()])

    @cached_property
    def perturbations(self) -> list[dict[str, Any]]:
        """Each kind of each contrast that any run has, with all of its levels."""
        merged: dict[tuple[str, str], dict[str, Any]] = {}
        for run in self.runs:
            for entry in run.about["perturbations"]:
                if entry["kind"] != "none":
                    union = merged.setdefault((entry["kind"], entry["contrast"]), {**entry, "levels": []})
                    union["levels"] = sorted({*union["levels"], *map(float, entry["levels"])})
        return list(merged.values())

    @property
    def every_subject(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for target in self.targets for name in self.subjects[target]))


def mean_of(values: NDArray[np.float64]) -> float:
    """The mean of those that are there, NaN of none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan


def read_run(folder: Path) -> Run:
    """A run folder as `monai_ext.evaluation.run_folder` describes it; what is wrong with it is named."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give run folders that evaluations wrote")
    if not (folder / "run.json").is_file():
        what = "is empty" if not any(folder.iterdir()) else "has no run.json"
        raise ValueError(f"{folder} {what}: it is no finished evaluation")
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'run.json'} is no JSON ({error}): evaluate again") from error
    lacking = [key for key in NEEDED if not isinstance(about, dict) or key not in about]
    if lacking:
        raise ValueError(f"{folder / 'run.json'} lacks {', '.join(lacking)}: evaluate again")
    datasets: dict[str, str] = {}
    scores: dict[Key, dict[str, dict[str, float]]] = {}
    path = folder / "subjects.csv"
    for line, row in rows_of(path, SUBJECT_COLUMNS):
        try:
            key = Key(row["perturbation"], row["contrast"], float(row["level"]), row["target"], row["region"])
            figures = {name: float(row[name]) if row[name] else math.nan for name in METRICS}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        datasets[row["subject"]] = row["dataset"]
        if scores.setdefault(key, {}).setdefault(row["subject"], figures) is not figures:
            raise ValueError(f"{path}, line {line}: {row['subject']} is there twice for {', '.join(map(str, key))}")
    slices: dict[tuple[str, str], int] = {}
    for _, row in rows_of(folder / "slices.csv", SLICE_COLUMNS):
        if row["perturbation"] == "none":
            key_ = (row["subject"], row["target"])
            slices[key_] = slices.get(key_, 0) + 1
    return Run(folder, str(about["name"]), about, datasets, scores, slices)


def rows_of(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a table of a run folder.

    Args:
        path: of the CSV.
        columns: that it must have.

    Returns:
        Each row with its line in the file; there is at least one.

    Raises:
        ValueError: there is no such file, a column is lacking, there is no row, or one is cut short.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}: it is no finished evaluation")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in columns if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"{path} lacks the columns {', '.join(lacking)}: evaluate again")
        rows = [(reader.line_num, row) for row in reader]
    if not rows:
        raise ValueError(f"{path} has no rows: nothing was evaluated")
    for line, row in rows:
        if any(row[name] is None for name in columns):
            raise ValueError(f"{path}, line {line} is cut short: evaluate again")
    return rows


def compare(runs: Sequence[Run], *, allow_differences: bool = False) -> Comparison:
    """Refuses what cannot be compared; what can only be compared with care is refused unless it is allowed."""
    folders = [run.folder.resolve() for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"{folder} is given twice: give each run once")
    labelled = _told_apart(runs)
    remarks = []
    differing = _differences(labelled)
    if differing and not allow_differences:
        listed = "\n  ".join(differing)
        raise ValueError(
            f"these runs differ in more than the method:\n  {listed}\ncompare them with --allow-differences"
        )
    remarks += [f"The runs differ in more than the method. {line}" for line in differing]
    targets = [name for name in labelled[0].about["target"] if all(name in run.about["target"] for run in labelled)]
    if not targets:
        raise ValueError("the runs have no target in common: " + "; ".join(_values_of(labelled, "target")))
    subjects = {}
    for target in targets:
        everyone = [set(run.scores.get(unharmed(target, "brain"), ())) for run in labelled]
        common, union = set.intersection(*everyone), set.union(*everyone)
        if not common:
            raise ValueError(f"the runs have no subject in common for {target}: there is nothing to compare")
        subjects[target] = tuple(sorted(common))
        if len(common) < len(union):
            extra = [
                (
                    f"{run.label} alone cannot be compared on {', '.join(sorted(theirs - common))}"
                    if len(theirs - common) <= 5
                    else f"{run.label} has {len(theirs - common)} more"
                )
                for run, theirs in zip(labelled, everyone, strict=True)
                if theirs - common
            ]
            remarks.append(f"{target}: {len(common)} of {len(union)} subjects are in all runs; {'; '.join(extra)}.")
    for run in labelled:
        failed = [fault["subject"] for fault in run.about.get("failed", [])]
        if failed:
            remarks.append(f"{run.label} could not be evaluated on {', '.join(failed)}.")
    comparison = Comparison(tuple(labelled), tuple(targets), subjects, ())
    people = comparison.people(comparison.every_subject)
    visits = len(comparison.every_subject)
    if len(people) < visits:
        remarks.append(
            f"{visits} subjects are visits of {len(people)} people: a person counts once, by the mean over the visits."
        )
    if any("none" in run.about["protocol"].get("brain_mask", ()) for run in labelled):
        remarks.append(
            "Nothing was cut out of the scans: “brain” is all that they show, of heads as scanned skull and scalp too."
        )
    return replace(comparison, remarks=tuple(remarks))


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The same name twice gets the folder's name, and a number where that is the same too."""
    names = [run.label for run in runs]
    longer = [f"{run.label} ({run.folder.name})" if names.count(run.label) > 1 else run.label for run in runs]
    return [
        replace(run, label=f"{label} #{longer[: i + 1].count(label)}" if longer.count(label) > 1 else label)
        for i, (run, label) in enumerate(zip(runs, longer, strict=True))
    ]


def _differences(runs: Sequence[Run]) -> list[str]:
    """What a fair comparison has the same: the data, and the protocol."""
    differences = [
        f"{what.capitalize()}: {'; '.join(_values_of(runs, key))}."
        for key, what in SAME.items()
        if any(run.about[key] != runs[0].about[key] for run in runs)
    ]
    parts = list(dict.fromkeys(key for run in runs for key in run.about["protocol"]))
    odd = [k for k in parts if any(run.about["protocol"].get(k) != runs[0].about["protocol"].get(k) for run in runs)]
    for part in odd:
        values = [f"{run.label} {json.dumps(run.about['protocol'].get(part), sort_keys=True)}" for run in runs]
        differences.append(f"Protocol, {part}: {'; '.join(values)}.")
    return differences


def _values_of(runs: Sequence[Run], key: str) -> list[str]:
    return [f"{run.label} {_short(run.about[key])}" for run in runs]


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    return ", ".join(map(str, value))

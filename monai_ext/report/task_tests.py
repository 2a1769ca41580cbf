"""Tests over tasks: each run that has a matrix against the first that has, task by task and over all tasks at once.

A subject has many tasks, and they are alike: over all of them it counts once, by the mean over its tasks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple, TypeVar

import numpy as np

from monai_ext.evaluation.run_folder import CASE_COLUMNS, CASES, MEASURED
from monai_ext.modalities import MODALITIES
from monai_ext.report.matrix import REGION_WORDS, matrix_of, region_of
from monai_ext.report.runs import Run, mean_of, rows_of
from monai_ext.report.statistics import ALPHA, PairedTest, corrected, least_wilcoxon, paired_test
from monai_ext.report.tables import FEW, LOOKS, better, cannot_tell, cells_of, in_words, narrow, plural

MOST_OPEN = 40  # tasks of a table that is seen without a click
MOST_NAMED = 5  # tasks in a sentence; the table names them all

K = TypeVar("K")


class TaskKey(NamedTuple):
    """A task of a matrix; its sources are in MODALITIES' order, whatever order a run has."""

    dataset: str
    sources: tuple[str, ...]
    target: str

    @property
    def arrow(self) -> str:
        """What is made of what."""
        return f"{', '.join(self.sources)} → {self.target}"


class Judged(NamedTuple):
    """A test after the correction, and what its Wilcoxon would give at best; NaN where there is no test."""

    test: PairedTest
    least: float


Cases = Mapping[TaskKey, Mapping[str, Mapping[str, float]]]  # task -> subject -> figure


@dataclass(frozen=True)
class TaskComparison:
    """A run against the reference.

    Attributes:
        run, reference: their labels.
        subjects: of each task, in the matrix's order, those of the run and those of the reference.
        tests: of each task and figure, run - reference; all of a report are one family for Holm.
        overall: of each figure, of the subjects' means over their tasks; all of a report are another family.
    """

    run: str
    reference: str
    subjects: Mapping[TaskKey, tuple[frozenset[str], frozenset[str]]]
    tests: Mapping[tuple[TaskKey, str], Judged]
    overall: Mapping[str, Judged]


def read_cases(run: Run, region: str) -> Cases:
    """Read what the means of a run's matrix are of.

    Args:
        run: that has a file of cases.
        region: whose figures are wanted.

    Returns:
        The figures of each subject by task; NaN where a figure has no meaning.

    Raises:
        ValueError: a column is lacking, a figure is no number, or a case is there twice; the file and line are named.
    """
    path = run.folder / CASES
    cases: dict[TaskKey, dict[str, dict[str, float]]] = {}
    for line, row in rows_of(path, CASE_COLUMNS):
        if row["region"] != region:
            continue
        try:
            figures = {name: float(row[name]) if row[name] else math.nan for name in MEASURED}
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        if any(map(math.isinf, figures.values())):
            raise ValueError(f"{path}, line {line}: a figure is infinite: evaluate again")
        task, subject = _key(row), row["subject"]
        if cases.setdefault(task, {}).setdefault(subject, figures) is not figures:
            raise ValueError(f"{path}, line {line}: {subject} is there twice for {_named([task])}, {region}")
    return {task: _of_people(run, figures) for task, figures in cases.items()}


def _of_people(run: Run, cases: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """A person's figures are the means over the visits."""
    visits: dict[str, list[Mapping[str, float]]] = {}
    for subject, figures in cases.items():
        visits.setdefault(run.person(subject), []).append(figures)
    return {
        person: {name: mean_of(np.array([one[name] for one in each])) for name in MEASURED}
        for person, each in visits.items()
    }


def compare_tasks(runs: Sequence[Run]) -> list[TaskComparison]:
    """Test every task of runs against the same of the first run, and all tasks together.

    Args:
        runs: that have a matrix and its cases; the first one is the reference, and its region counts.

    Returns:
        One comparison a further run.

    Raises:
        ValueError: a file is not what an evaluation writes.
    """
    region, reference = region_of(runs[0]), runs[0]
    every = [read_cases(run, region) for run in runs]
    measured = [{_key(row) for row in matrix_of(run)} | cases.keys() for run, cases in zip(runs, every, strict=True)]
    tasks = [sorted(theirs | measured[0], key=_place) for theirs in measured]
    tests: dict[tuple[int, TaskKey, str], PairedTest] = {}
    overall: dict[tuple[int, str], PairedTest] = {}
    for number, run in enumerate(runs[1:], start=1):
        for metric in MEASURED:
            for task in tasks[number]:
                pairs = _pairs(every[number], every[0], [task], metric)
                tests[number, task, metric] = _test((run.label, reference.label), region, metric, pairs)
            pairs = _pairs(every[number], every[0], tasks[number], metric)
            overall[number, metric] = _test((run.label, reference.label), region, metric, pairs)
    by_task, at_once = _judged(tests), _judged(overall)
    return [
        TaskComparison(
            run.label,
            reference.label,
            {task: (frozenset(every[i].get(task, ())), frozenset(every[0].get(task, ()))) for task in tasks[i]},
            {(task, metric): by_task[i, task, metric] for task in tasks[i] for metric in MEASURED},
            {metric: at_once[i, metric] for metric in MEASURED},
        )
        for i, run in enumerate(runs[1:], start=1)
    ]


def _key(row: Mapping[str, str]) -> TaskKey:
    return TaskKey(row["dataset"], tuple(sorted(row["sources"].split("+"), key=_contrast)), row["target"])


def _contrast(name: str) -> tuple[int, str]:
    return MODALITIES.index(name) if name in MODALITIES else len(MODALITIES), name


def _place(task: TaskKey) -> tuple[str, int, list[tuple[int, str]], tuple[int, str]]:
    """As the matrix has them."""
    return task.dataset, len(task.sources), [_contrast(name) for name in task.sources], _contrast(task.target)


def _pairs(ours: Cases, theirs: Cases, tasks: Sequence[TaskKey], metric: str) -> list[tuple[float, float]]:
    """Of every subject two means, over those of the tasks that both runs have its figure of."""
    pairs_of: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for task in tasks:
        a, b = ours.get(task, {}), theirs.get(task, {})
        for name in sorted(a.keys() & b.keys()):
            pair = a[name][metric], b[name][metric]
            if not any(map(math.isnan, pair)):
                pairs_of.setdefault((task.dataset, name), []).append(pair)
    means = (np.mean(pairs, axis=0) for pairs in pairs_of.values())
    return [(float(a), float(b)) for a, b in means]


def _test(labels: tuple[str, str], region: str, metric: str, pairs: Sequence[tuple[float, float]]) -> PairedTest:
    ours, theirs = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return paired_test(region, metric, (labels[0], ours), (labels[1], theirs))


def _judged(family: Mapping[K, PairedTest]) -> dict[K, Judged]:
    tests = corrected(list(family.values()))
    return dict(zip(family, map(Judged, tests, least_wilcoxon(tests)), strict=True))


def task_tests(runs: Sequence[Run]) -> str:
    """Draw the comparison of runs by their tasks.

    Args:
        runs: of the report; the first one that has a matrix and its cases is the reference.

    Returns:
        HTML; nothing where fewer than two runs have a matrix.

    Raises:
        ValueError: a file is not what an evaluation writes.
    """
    having = [run for run in runs if matrix_of(run)]
    if len(having) < 2:
        return ""
    whole = [run for run in having if (run.folder / CASES).is_file()]
    remarks = [f"{escape(run.label)} has no matrix of tasks." for run in runs if run not in having]
    remarks += [
        f"{escape(run.label)} has no {CASES}, so its tasks cannot be tested: evaluate it again."
        for run in having
        if run not in whole
    ]
    notes = "".join(f"<p class=small>{line}</p>" for line in remarks)
    if len(whole) < 2:
        return notes
    comparisons = compare_tasks(whole)
    tested = _tested([judged for comparison in comparisons for judged in comparison.tests.values()])
    together = _tested([judged for comparison in comparisons for judged in comparison.overall.values()])
    parts = [_intro(comparisons[0].reference, tested), notes]
    for comparison in comparisons:
        parts += [
            f"<h3>{escape(comparison.run)} against {escape(comparison.reference)}</h3>",
            _findings(comparison, together),
        ]
        parts += [f"<p class=small>{line}</p>" for line in (*_lacking(comparison), *_few(comparison))]
        parts += [_table(comparison, metric, region_of(whole[0]), tested) for metric in MEASURED]
    return "".join(parts)


def _tested(judged: Sequence[Judged]) -> int:
    return sum(not math.isnan(each.test.t) for each in judged)


def _intro(reference: str, tested: int) -> str:
    return (
        f"<p class='soft small'>Each run against the first that has a matrix, {escape(reference)}, on the subjects "
        "that both have; two-sided, over subjects. Over all tasks at once a subject counts once, by the mean over its "
        f"tasks. Holm’s correction is over the {plural(tested, 'comparison')} of single tasks, and over those of all "
        "tasks at once by themselves, for each of the two tests. “Better” and “worse” are said only where both are "
        f"below {ALPHA:g}; every other task is undecided.</p>"
    )


def _findings(comparison: TaskComparison, together: int) -> str:
    """A sentence a figure: over all tasks, and how many tasks are which."""
    lines = []
    for metric in MEASURED:
        name = LOOKS[metric].name.partition(",")[0]
        tests = [judged.test for (_, figure), judged in comparison.tests.items() if figure == metric]
        tests = [test for test in tests if test.difference.n]
        if not tests:
            lines.append(f"{name}: the two runs have no case in common.")
            continue
        test, least = comparison.overall[metric]
        over = f"{plural(len(tests), 'task')} of {plural(test.difference.n, 'subject')}"
        least = 1.0 if math.isnan(least) else least
        verdict = in_words(test, together, least) if better(test) else "there is no difference."
        decided = [better(each) for each in tests if each.significant]
        ours, theirs = decided.count(comparison.run), decided.count(comparison.reference)
        lines.append(
            f"{name} over {over}: {verdict} By task, {escape(comparison.run)} is better in {ours}, worse in {theirs}, "
            f"undecided in {len(tests) - ours - theirs}."
        )
    return f"<ul class=findings>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _lacking(comparison: TaskComparison) -> list[str]:
    """Which tasks a run has no cases of, and which some."""
    lines = []
    for label, side in ((comparison.run, 0), (comparison.reference, 1)):
        none = [task for task, subjects in comparison.subjects.items() if not subjects[side]]
        some = [task for task, names in comparison.subjects.items() if names[side] and names[1 - side] - names[side]]
        if none:
            which = "which is" if len(none) == 1 else "which are"
            count = plural(len(none), "task")
            lines.append(f"{escape(label)} has no cases of {count}, {which} not compared: {escape(_named(none))}.")
        if some:
            lines.append(
                f"{escape(label)} lacks cases of {plural(len(some), 'task')}, compared on the subjects that both runs "
                f"have: {escape(_named(some))}."
            )
    return lines


def _named(tasks: Sequence[TaskKey]) -> str:
    listed = "; ".join(f"{task.dataset}: {task.arrow}" for task in tasks[:MOST_NAMED])
    more = len(tasks) - MOST_NAMED
    return f"{listed}; and {more} more, which the table names" if more > 0 else listed


def _few(comparison: TaskComparison) -> list[str]:
    """What so few subjects cannot tell."""
    by_task = {task: [comparison.tests[task, metric] for metric in MEASURED] for task in comparison.subjects}
    compared = {task: judged for task, judged in by_task.items() if any(each.test.difference.n for each in judged)}
    untested = [task for task, judged in compared.items() if not _tested(judged)]
    tested = {task: judged for task, judged in compared.items() if task not in untested}
    powerless = [judged for judged in tested.values() if not any(each.least < ALPHA for each in judged)]
    lines = []
    if powerless:
        sizes = {each.test.difference.n for judged in powerless for each in judged}
        least = min(each.least for judged in powerless for each in judged if not math.isnan(each.least))
        where = "here" if len(powerless) == len(tested) else f"in {plural(len(powerless), 'task')}"
        subjects = plural(max(sizes), "subject") + (" or fewer" if len(sizes) > 1 else "")
        lines.append(cannot_tell(subjects, least, where))
    if untested:
        has = "has" if len(untested) == 1 else "have"
        lines.append(
            f"{plural(len(untested), 'task')} {has} one subject, which is no test: {escape(_named(untested))}."
        )
    if any(each.test.difference.n < FEW for judged in compared.values() for each in judged):
        lines.append(narrow(f"fewer than {FEW} subjects"))
    return lines


def _table(comparison: TaskComparison, metric: str, region: str, tested: int) -> str:
    """A part a dataset, a row a task, those that cannot be compared too."""
    rows = []
    for dataset in dict.fromkeys(task.dataset for task in comparison.subjects):
        rows.append(f"<tr class=part><th colspan=6 scope=rowgroup>{escape(dataset)}</th></tr>")
        for task, subjects in comparison.subjects.items():
            if task.dataset == dataset:
                test, union = comparison.tests[task, metric].test, len(frozenset.union(*subjects))
                of = f"<span class=ci>of {union}</span>" if test.difference.n < union else ""
                cells = cells_of(test, _why_not(comparison, task, test))
                rows.append(f"<tr><th scope=row>{escape(task.arrow)}</th><td>{test.difference.n}{of}</td>{cells}</tr>")
    look = LOOKS[metric]
    caption = (
        f"{look.heading} in the {REGION_WORDS[region]}, {escape(comparison.run)} − {escape(comparison.reference)}: "
        f"p after Holm's correction over {plural(tested, 'comparison')}; below it p before"
    )
    opened = " open" if len(comparison.subjects) <= MOST_OPEN else ""
    summary = f"{look.name.partition(',')[0]} by task"
    return (
        f"<details{opened}><summary>{summary}</summary><div class=scroll><table class=tests>"
        f"<caption>{caption}</caption><thead><tr><th>Sources → target</th><th>Subjects</th>"
        f"<th>Mean difference</th><th>p, paired t</th><th>p, Wilcoxon</th><th class=left>At {ALPHA:g}</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _why_not(comparison: TaskComparison, task: TaskKey, test: PairedTest) -> str | None:
    """Why there is no test; None where there is one."""
    if test.difference.n > 1:
        return None
    if test.difference.n == 1:
        return "one subject, no test"
    lacking = [
        label
        for label, names in zip((comparison.run, comparison.reference), comparison.subjects[task], strict=True)
        if not names
    ]
    return f"no cases of {' and '.join(lacking)}" if lacking else "no case in common"

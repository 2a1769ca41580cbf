"""The report's tables of figures: means and intervals, paired tests, and a heat map of unlike data."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from monai_ext.evaluation.protocol import REGIONS
from monai_ext.report.charts import key_mark
from monai_ext.report.runs import METRICS, Comparison, Run, unharmed
from monai_ext.report.statistics import (
    ALPHA,
    Interval,
    PairedTest,
    best_of,
    mean_interval,
    paired_tests,
    smallest_wilcoxon,
)


class Look(NamedTuple):
    """How a figure is written."""

    name: str
    digits: int
    higher: bool

    @property
    def heading(self) -> str:
        return f"{self.name} {'↑' if self.higher else '↓'}"


LOOKS = {
    "psnr": Look("PSNR, dB", 2, True),
    "ssim": Look("SSIM", 4, True),
    "mae": Look("MAE", 4, False),
    "nrmse": Look("NRMSE", 4, False),
    "nmse": Look("NMSE", 4, False),
    "stripes": Look("Stripes", 4, False),
}
FEW = 20  # subjects: below that, the percentile bootstrap is too sure
REGION_NAMES = {"slice": "Slices", "volume": "Volume", "brain": "Brain"}


def number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def spread(interval: Interval, digits: int) -> str:
    if math.isnan(interval.low):
        return ""
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def p_value(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def tests_of(comparison: Comparison, target: str) -> list[PairedTest]:
    """Every figure of every region, every pair of methods."""
    values = {}
    for region in REGIONS:
        for metric in METRICS:
            key = unharmed(target, region)
            methods = [(run.label, comparison.means(run, key, metric)) for run in comparison.runs]
            if not all(np.isnan(figures).all() for _, figures in methods):
                values[region, metric] = methods
    return paired_tests(values)


def figures_table(comparison: Comparison, target: str, tests: Sequence[PairedTest]) -> str:
    """A part a region, a row a method, a column a figure."""
    names = [run.label for run in comparison.runs]
    head = "".join(f"<th scope=col>{LOOKS[metric].heading}</th>" for metric in METRICS)
    rows = []
    for region in REGIONS:
        rows.append(f"<tr class=part><th colspan={1 + len(METRICS)} scope=rowgroup>{REGION_NAMES[region]}</th></tr>")
        best = {
            metric: best_of(
                names, [t for t in tests if (t.region, t.metric) == (region, metric)], higher=LOOKS[metric].higher
            )
            for metric in METRICS
        }
        for method, run in enumerate(comparison.runs):
            cells = []
            for metric in METRICS:
                digits = LOOKS[metric].digits
                estimate = mean_interval(comparison.means(run, unharmed(target, region), metric))
                mark = ' class="best"' if best[metric] == run.label else ""
                interval = spread(estimate, digits)
                ci = f"<span class=ci>{interval}</span>" if interval else ""
                cells.append(f"<td><span{mark}>{number(estimate.mean, digits)}</span>{ci}</td>")
            rows.append(f"<tr><th scope=row>{key_mark(method)}{escape(run.label)}</th>{''.join(cells)}</tr>")
    n = len(comparison.people(comparison.subjects[target]))
    caption = f"{escape(target)}, mean over {plural(n, 'subject')}; below it the 95% confidence interval"
    return (
        f'<div class=scroll><table class="wide figures"><caption>{caption}</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def tests_table(tests: Sequence[PairedTest], target: str) -> str:
    rows = []
    for region in REGIONS:
        rows.append(f"<tr class=part><th colspan=6 scope=rowgroup>{REGION_NAMES[region]}</th></tr>")
        for test in (t for t in tests if t.region == region):
            rows.append(
                f"<tr><th scope=row>{LOOKS[test.metric].name}</th>"
                f"<td class=left>{escape(test.first)} − {escape(test.second)}</td>{cells_of(test)}</tr>"
            )
    caption = f"{escape(target)}: p after Holm's correction over {len(tests)} comparisons; below it p before"
    return (
        f"<div class=scroll><table class=tests><caption>{caption}</caption><thead><tr><th>Figure</th>"
        "<th class=left>Difference of</th><th>Mean</th><th>p, paired t</th><th>p, Wilcoxon</th>"
        f"<th class=left>At {ALPHA:g}</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def cells_of(test: PairedTest, verdict: str | None = None) -> str:
    """Write a test's part of a table's row.

    Args:
        test: after the correction.
        verdict: what is said at the end instead of who is better.

    Returns:
        The cells of the difference, of both p values, and of who is better.
    """
    digits, who = LOOKS[test.metric].digits, better(test)
    outcome = f"{who} better" if who and test.significant else "not significant"
    return (
        f"<td>{number(test.difference.mean, digits)}<span class=ci>{spread(test.difference, digits)}</span></td>"
        f"<td>{p_value(test.t_holm)}<span class=ci>{p_value(test.t)}</span></td>"
        f"<td>{p_value(test.wilcoxon_holm)}<span class=ci>{p_value(test.wilcoxon)}</span></td>"
        f"<td class=left>{escape(verdict or outcome)}</td>"
    )


def better(test: PairedTest) -> str | None:
    """The method that the difference favours."""
    mean = test.difference.mean
    if math.isnan(mean) or mean == 0:
        return None
    return test.first if (mean > 0) == LOOKS[test.metric].higher else test.second


def in_words(test: PairedTest, comparisons: int, least: float) -> str:
    """Say a difference in a sentence, of a figure where higher is better.

    Args:
        test: after the correction; its difference favours one of the two.
        comparisons: how many it was corrected for.
        least: below which Wilcoxon's corrected p value cannot come with so many subjects.

    Returns:
        HTML.
    """
    digits, unit = LOOKS[test.metric].digits, " dB" if test.metric == "psnr" else ""
    who = better(test)
    other, sign = (test.second, 1) if who == test.first else (test.first, -1)
    low, high = sorted((sign * test.difference.low, sign * test.difference.high))
    interval = f" ({number(low, digits)} to {number(high, digits)})" if not math.isnan(low) else ""
    far = f"{number(abs(test.difference.mean), digits)}{unit}{interval}"
    sentence = f"{escape(str(who))} is {far} above {escape(other)}; "
    if least >= ALPHA:
        return (
            f"{sentence}<b>with {plural(test.difference.n, 'subject')}, too few to call any difference significant</b>."
        )
    judged = "significant" if test.significant else "<b>not significant</b>"
    after = f"paired t test: {_p(test.t_holm)}, Wilcoxon: {_p(test.wilcoxon_holm)}"
    return (
        f"{sentence}{judged} at {ALPHA:g} after correction for {plural(comparisons, 'comparison')} ({after}; "
        f"uncorrected {_p(test.t)}, {_p(test.wilcoxon)})."
    )


def _p(p: float) -> str:
    return f"p {p_value(p) if p < 0.001 else f'= {p_value(p)}'}".replace(" ", "&nbsp;")


def few_subjects(n: int, comparisons: int) -> str:
    """What so few subjects cannot tell."""
    sentences = []
    if comparisons and smallest_wilcoxon(n) * comparisons >= ALPHA:
        sentences.append(cannot_tell(plural(n, "subject"), min(1.0, smallest_wilcoxon(n) * comparisons)))
    if n < FEW:
        sentences.append(narrow(plural(n, "subject")))
    return " ".join(sentences)


def cannot_tell(subjects: str, least: float, where: str = "here") -> str:
    """Say that so few subjects show nothing.

    Args:
        subjects: how many.
        least: Wilcoxon's p value after the correction, at best.
        where: that is so.

    Returns:
        A sentence.
    """
    return (
        f"With {subjects} Wilcoxon's test cannot give less than {least:.2g} after the correction, "
        f"whatever the methods do: no difference can be called significant {where}."
    )


def narrow(who: str) -> str:
    """Say that intervals over few subjects are too narrow.

    Args:
        who: the few.

    Returns:
        A sentence.
    """
    return f"Bootstrap intervals over {who} are narrower than they should be."


def has_kinds(comparison: Comparison) -> bool:
    """Whether datasets or sources differ, so that a matrix says more than the mean over all."""
    datasets = {run.datasets[name] for run in comparison.runs for name in comparison.every_subject}
    return len(datasets) > 1 or len({tuple(run.about["sources"]) for run in comparison.runs}) > 1


def heat_map(comparison: Comparison, metric: str, *, region: str = "brain") -> str:
    """A row a dataset and target, a column a method with its sources; the deeper, the better in its row."""
    look = LOOKS[metric]
    head = "".join(
        f"<th scope=col>{key_mark(i)}{escape(run.label)}<span class=ci>{escape(sources(run))}</span></th>"
        for i, run in enumerate(comparison.runs)
    )
    rows = []
    for target in comparison.targets:
        datasets = comparison.runs[0].datasets
        for dataset in sorted({datasets[name] for name in comparison.subjects[target]}):
            names = [name for name in comparison.subjects[target] if datasets[name] == dataset]
            intervals = [
                mean_interval(comparison.means(run, unharmed(target, region), metric, names)) for run in comparison.runs
            ]
            shares = shades([interval.mean for interval in intervals], higher=look.higher)
            cells = "".join(
                f'<td style="--share:{share:.0f}%">{number(interval.mean, look.digits)}'
                f"<span class=ci>{spread(interval, look.digits)}</span></td>"
                for interval, share in zip(intervals, shares, strict=True)
            )
            people = plural(len(comparison.people(names)), "subject")
            name = f"{escape(dataset)}, {escape(target)}<span class=ci>{people}</span>"
            rows.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    caption = f"{look.heading} in the {REGION_NAMES[region].lower()}; the deeper the colour, the better in its row"
    return (
        f'<div class=scroll><table class="heat"><caption>{caption}</caption><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def shades(means: Sequence[float], *, higher: bool) -> list[float]:
    """Percent of colour, from the worst of a row to its best; 0 for what has no value."""
    finite = [mean for mean in means if not math.isnan(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    if high == low:
        return [0.0 if math.isnan(mean) else 30.0 for mean in means]
    worst, best = (low, high) if higher else (high, low)
    return [0.0 if math.isnan(mean) else 8 + 47 * (mean - worst) / (best - worst) for mean in means]


def sources(run: Run) -> str:
    return ", ".join(run.about["sources"])


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"

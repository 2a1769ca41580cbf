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
            methods = [(run.label, comparison.values(run, key, metric)) for run in comparison.runs]
            if not all(np.isnan(found).all() for _, found in methods):
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
                found = mean_interval(comparison.values(run, unharmed(target, region), metric))
                mark = ' class="best"' if best[metric] == run.label else ""
                interval = spread(found, digits)
                ci = f"<span class=ci>{interval}</span>" if interval else ""
                cells.append(f"<td><span{mark}>{number(found.mean, digits)}</span>{ci}</td>")
            rows.append(f"<tr><th scope=row>{key_mark(method)}{escape(run.label)}</th>{''.join(cells)}</tr>")
    n = len(comparison.subjects[target])
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
            look = LOOKS[test.metric]
            interval = spread(test.difference, look.digits)
            who = better(test)
            said = f"{escape(who)} better" if who and test.significant else "not significant"
            rows.append(
                f"<tr><th scope=row>{look.name}</th><td class=left>{escape(test.first)} − {escape(test.second)}</td>"
                f"<td>{number(test.difference.mean, look.digits)}<span class=ci>{interval}</span></td>"
                f"<td>{p_value(test.t_holm)}<span class=ci>{p_value(test.t)}</span></td>"
                f"<td>{p_value(test.wilcoxon_holm)}<span class=ci>{p_value(test.wilcoxon)}</span></td>"
                f"<td class=left>{said}</td></tr>"
            )
    caption = f"{escape(target)}: p after Holm's correction over {len(tests)} comparisons; below it p before"
    return (
        f"<div class=scroll><table class=tests><caption>{caption}</caption><thead><tr><th>Figure</th>"
        "<th class=left>Difference of</th><th>Mean</th><th>p, paired t</th><th>p, Wilcoxon</th>"
        f"<th class=left>At {ALPHA:g}</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def better(test: PairedTest) -> str | None:
    """The method that the difference favours."""
    mean = test.difference.mean
    if math.isnan(mean) or mean == 0:
        return None
    return test.first if (mean > 0) == LOOKS[test.metric].higher else test.second


def few_subjects(n: int, comparisons: int) -> str:
    """What so few subjects cannot tell."""
    said = []
    if comparisons and smallest_wilcoxon(n) * comparisons >= ALPHA:
        least = min(1.0, smallest_wilcoxon(n) * comparisons)
        said.append(
            f"With {plural(n, 'subject')} Wilcoxon's test cannot give less than {least:.2g} after the correction, "
            "whatever the methods do: no difference can be called significant here."
        )
    if n < 20:
        said.append(f"Bootstrap intervals over {plural(n, 'subject')} are narrower than they should be.")
    return " ".join(said)


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
            found = [
                mean_interval(comparison.values(run, unharmed(target, region), metric, names))
                for run in comparison.runs
            ]
            shares = shades([interval.mean for interval in found], higher=look.higher)
            cells = "".join(
                f'<td style="--share:{share:.0f}%">{number(interval.mean, look.digits)}'
                f"<span class=ci>{spread(interval, look.digits)}</span></td>"
                for interval, share in zip(found, shares, strict=True)
            )
            name = f"{escape(dataset)}, {escape(target)}<span class=ci>{plural(len(names), 'subject')}</span>"
            rows.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    caption = f"{look.heading} in the {REGION_NAMES[region].lower()}; the deeper the colour, the better in its row"
    return (
        f'<div class=scroll><table class="heat"><caption>{caption}</caption><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def shades(means: Sequence[float], *, higher: bool) -> list[float]:
    """Percent of colour, from the worst of a row to its best; 0 for what has no value."""
    known = [mean for mean in means if not math.isnan(mean)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    if high == low:
        return [0.0 if math.isnan(mean) else 30.0 for mean in means]
    worst, best = (low, high) if higher else (high, low)
    return [0.0 if math.isnan(mean) else 8 + 47 * (mean - worst) / (best - worst) for mean in means]


def sources(run: Run) -> str:
    return ", ".join(run.about["sources"])


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"

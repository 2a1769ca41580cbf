"""How sure a mean over subjects is, and whether two methods differ: bootstrap, paired tests, Holm's correction.

The person is the unit: neither slices of one head nor visits of one person are independent samples.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel, wilcoxon

RESAMPLES, SEED, CONFIDENCE = 10_000, 0, 0.95
ALPHA = 0.05

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean over `n` subjects and where it would lie with other subjects; NaN: too few to say."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same subjects; the difference is first - second, p values are two-sided."""

    region: str
    metric: str
    first: str
    second: str
    difference: Interval
    t: float
    wilcoxon: float
    t_holm: float = math.nan
    wilcoxon_holm: float = math.nan

    @property
    def significant(self) -> bool:
        """By both tests, after the correction."""
        return self.t_holm < ALPHA and self.wilcoxon_holm < ALPHA


def mean_interval(values: Values) -> Interval:
    """The percentile bootstrap over subjects; subjects without a value are left out."""
    finite = values[~np.isnan(values)]
    if len(finite) < 2:
        return Interval(float(finite[0]) if len(finite) else math.nan, math.nan, math.nan, len(finite))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(_shares(len(finite)) @ finite, [tail, 100 - tail])
    return Interval(float(finite.mean()), float(low), float(high), len(finite))


@lru_cache(maxsize=4)
def _shares(n: int) -> Values:
    """(RESAMPLES, n): the share that each of n subjects has in each resample, always the same ones"""
    drawn = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    flat = drawn + n * np.arange(RESAMPLES)[:, None]
    return np.bincount(flat.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n) / n


def paired_test(region: str, metric: str, first: tuple[str, Values], second: tuple[str, Values]) -> PairedTest:
    """The paired t test and Wilcoxon's signed-rank test over the subjects that have both values."""
    (name, a), (other, b) = first, second
    paired = ~(np.isnan(a) | np.isnan(b))
    a, b = a[paired], b[paired]
    difference = mean_interval(a - b)
    t = rank = math.nan
    if len(a) > 1:
        if np.array_equal(a, b):
            t = rank = 1.0
        else:
            with warnings.catch_warnings():  # differences that are all alike, ties: the p values stand
                warnings.simplefilter("ignore", RuntimeWarning)
                warnings.simplefilter("ignore", UserWarning)
                t, rank = float(ttest_rel(a, b).pvalue), float(wilcoxon(a, b).pvalue)
    return PairedTest(region, metric, name, other, difference, t, rank)


def paired_tests(values: Mapping[tuple[str, str], Sequence[tuple[str, Values]]]) -> list[PairedTest]:
    """(region, metric) -> [(method, values)] to every pair of methods; all of them are one family for Holm."""
    return corrected(
        [paired_test(*where, *pair) for where, methods in values.items() for pair in combinations(methods, 2)]
    )


def corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Correct tests by Holm's method, each kind of p value by itself.

    Args:
        tests: all of them are one family.

    Returns:
        The same, in their order, with both corrected p values.
    """
    corrections = zip(tests, holm([test.t for test in tests]), holm([test.wilcoxon for test in tests]), strict=True)
    return [replace(test, t_holm=t, wilcoxon_holm=rank) for test, t, rank in corrections]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm, 1979: the smallest p times m, the next times m - 1, ..., never below the one before; NaN is no test."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def smallest_wilcoxon(n: int) -> float:
    """What Wilcoxon's test gives at best: all n differences have one sign."""
    return min(1.0, 2.0 ** (1 - n))


def least_wilcoxon(tests: Sequence[PairedTest]) -> list[float]:
    """Bound what Wilcoxon's tests give after the correction, however many subjects each one has.

    Args:
        tests: a family, as `corrected` takes it.

    Returns:
        Of each test the corrected p value if all differences of every test had one sign; NaN where there is no test.
    """
    return holm([math.nan if math.isnan(t.wilcoxon) else smallest_wilcoxon(t.difference.n) for t in tests])


def best_of(methods: Sequence[str], tests: Sequence[PairedTest], *, higher: bool) -> str | None:
    """The method that differs significantly, and for the better, from every other one; None if there is no such."""
    for method in methods:
        ours = [test for test in tests if method in (test.first, test.second)]
        if ours and all(
            test.significant and ((test.difference.mean > 0) == (test.first == method)) == higher for test in ours
        ):
            return method
    return None

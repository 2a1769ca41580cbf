"""Means, intervals and tests of the report, against independent computations."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import stdtr
from scipy.stats import bootstrap

from monai_ext.report.statistics import (
    RESAMPLES,
    best_of,
    holm,
    mean_interval,
    paired_test,
    paired_tests,
    smallest_wilcoxon,
)


def two_methods(n: int = 9, gap: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    heads = rng.normal(28, 2, n)  # that a head is hard makes it hard for both
    return heads + rng.normal(gap, 0.5, n), heads + rng.normal(0, 0.5, n)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values, _ = two_methods(15)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    ours = mean_interval(values)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.n == 15
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04)
    assert mean_interval(values) == ours


def test_a_subject_without_a_value_is_left_out_and_one_alone_has_no_interval() -> None:
    values, _ = two_methods()
    assert mean_interval(np.array([*values, math.nan])) == mean_interval(values)
    mean, low, high, n = mean_interval(np.array([math.nan, 3.0]))
    assert (mean, n) == (3.0, 1)
    assert math.isnan(low)
    assert math.isnan(high)
    assert mean_interval(np.array([math.nan])).n == 0


def test_p_values_are_those_of_the_tests_definitions() -> None:
    a, b = two_methods()
    test = paired_test("brain", "psnr", ("A", a), ("B", b))
    d = a - b
    t = d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
    assert test.t == pytest.approx(2 * stdtr(len(d) - 1, -abs(t)))
    ranks = np.argsort(np.argsort(abs(d))) + 1
    sums = [sum(np.array(signs) * ranks) for signs in itertools.product((-1, 1), repeat=len(d))]
    ours = sum(np.sign(d) * ranks)
    assert test.wilcoxon == pytest.approx(np.mean([abs(value) >= abs(ours) for value in sums]))
    assert test.difference.mean == pytest.approx(d.mean())


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        p = rng.random(5) ** 3
        closed = [
            min(
                1.0,
                max(
                    len(family) * min(p[j] for j in family)
                    for size in range(1, 6)
                    for family in itertools.combinations(range(5), size)
                    if i in family
                ),
            )
            for i in range(5)
        ]
        assert holm(p) == pytest.approx(closed)
    assert holm([0.01, math.nan, 0.04])[::2] == pytest.approx([0.02, 0.04])


def test_methods_that_do_not_differ_have_p_1() -> None:
    a, _ = two_methods()
    test = paired_test("brain", "psnr", ("A", a), ("B", a.copy()))
    assert (test.t, test.wilcoxon, test.difference.mean) == (1.0, 1.0, 0.0)


def test_one_subject_is_no_test() -> None:
    test = paired_test("brain", "psnr", ("A", np.array([1.0])), ("B", np.array([2.0])))
    assert math.isnan(test.t)
    assert math.isnan(test.wilcoxon)
    assert not test.significant


def test_the_smallest_wilcoxon_p_is_reached_when_all_subjects_agree() -> None:
    for n in (3, 5, 8):
        a = np.arange(n) + 10.0
        assert paired_test("", "", ("A", a * 2), ("B", a)).wilcoxon == pytest.approx(smallest_wilcoxon(n))


def test_the_best_is_named_only_where_it_differs_from_every_other() -> None:
    a, b = two_methods(20, gap=1.5)
    values = {("brain", "psnr"): [("A", a), ("B", b), ("C", b + 0.01 * np.sin(np.arange(20)))]}
    tests = paired_tests(values)
    assert len(tests) == 3
    assert best_of(["A", "B", "C"], tests, higher=True) == "A"
    assert best_of(["A", "B", "C"], tests, higher=False) is None  # B and C do not differ
    alike = paired_tests({("brain", "psnr"): [("B", b), ("C", b + 0.01 * np.sin(np.arange(20)))]})
    assert best_of(["B", "C"], alike, higher=True) is None
    assert best_of(["A"], [], higher=True) is None


def test_few_subjects_name_no_best_however_far_apart_methods_are() -> None:
    tests = paired_tests({("brain", "psnr"): [("A", np.array([30.0, 31, 33])), ("B", np.array([20.0, 21.1, 22.9]))]})
    assert tests[0].t < 0.05
    assert best_of(["A", "B"], tests, higher=True) is None

"""Intervals, tests and corrections are those of scipy, or of the papers that define them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats

from wnrepro.report import stats
from wnrepro.report.stats import Estimate, binomial, fisher, holm, pitman_morgan, prediction, t_test, tost, welch

A, B = [1.0, 2.0, 4.0, 3.5], [2.0, 2.5, 9.0, 5.0, 6.0]
WELCH = scipy_stats.ttest_ind(A, B, equal_var=False)


def ends(e: Estimate) -> tuple[float, float]:
    return e.low, e.high


@pytest.mark.parametrize(("margin", "sign"), [(0.0, 1), (1.5, 1), (4.0, -1)])
def test_t_test_is_the_one_sample_t_test(margin: float, sign: int) -> None:
    e, whole = t_test("", A, margin=margin, sign=sign), scipy_stats.ttest_1samp(A, margin)
    assert ends(e) == pytest.approx(tuple(whole.confidence_interval(0.95)))
    for p, side in zip((e.p_holds, e.p_fails), ("greater", "less")[::sign], strict=True):
        assert p == pytest.approx(min(1, 2 * scipy_stats.ttest_1samp(A, margin, alternative=side).pvalue))
    assert (e.p_holds <= 0.05) == (e.low > margin if sign > 0 else e.high < margin)


def test_welch_is_simultaneous_over_several_and_a_t_test_of_two_strata() -> None:
    e, three, strata = welch("", A, B), welch("", A, B, 3), t_test("", A, [-value for value in B])
    p = scipy_stats.ttest_ind(A, B, equal_var=False, alternative="less").pvalue
    assert (e.p_holds, three.p_holds) == pytest.approx((2 * p, 6 * p))
    assert ends(e) == pytest.approx(tuple(WELCH.confidence_interval(0.95)))
    assert ends(three) == pytest.approx(tuple(WELCH.confidence_interval(1 - 0.05 / 3)))
    assert 2 * strata.value == pytest.approx(np.mean(A) - np.mean(B))
    assert (2 * strata.low, 2 * strata.high) == pytest.approx(ends(e))


def test_tost_is_two_one_sided_tests() -> None:
    values = [0.02, -0.01, 0.03, 0.0, 0.01]
    e, far = tost("", values, 0.05), tost("", [value + 0.2 for value in values], 0.05)
    tails = [scipy_stats.ttest_1samp(values, 0.05, alternative="less").pvalue]
    tails.append(scipy_stats.ttest_1samp(values, -0.05, alternative="greater").pvalue)
    assert e.p_holds == pytest.approx(max(tails)) and e.margin == (-0.05, 0.05)
    assert ends(e) == pytest.approx(tuple(scipy_stats.ttest_1samp(values, 0).confidence_interval(0.90)))
    assert far.p_fails < 0.001 < 0.99 < far.p_holds
    assert ends(tost("", A, 9.0, B)) == pytest.approx(tuple(WELCH.confidence_interval(0.90)))


def test_prediction_has_the_prediction_interval_of_a_run() -> None:
    values = [8.3, 8.5, 8.45, 8.4, 8.55]
    e, off = prediction("", values, 8.46, 1.0, 4), prediction("", values, 9.9, 1.0, 4)
    half = scipy_stats.t.ppf(1 - 0.05 / 8, 4) * np.std(values, ddof=1) * math.sqrt(1.2)
    assert ends(e) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert e.p_holds < 0.05 < e.p_fails and off.p_fails < 0.05 < off.p_holds


def test_pitman_morgan_is_the_correlation_of_sum_and_difference() -> None:
    rng = np.random.default_rng(3)
    normal = rng.normal(size=8)
    wn = 0.4 * normal + 0.05 * rng.normal(size=8)
    e = pitman_morgan("", list(wn), list(normal))
    correlation = scipy_stats.pearsonr(wn + normal, wn - normal)
    assert correlation.statistic < 0 and e.p_holds == pytest.approx(correlation.pvalue, rel=1e-6)
    assert e.value == pytest.approx(np.std(wn, ddof=1) / np.std(normal, ddof=1))
    assert e.low < e.value < e.high < 1
    at_the_end = pitman_morgan("", list(wn / e.high), list(normal))  # the interval inverts the test
    assert at_the_end.p_holds == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 20), (5, 5), (7, 10)])
def test_binomial_is_the_exact_test(k: int, n: int) -> None:
    e = binomial("", k, n, 1 / 3)
    assert ends(e) == pytest.approx(tuple(scipy_stats.binomtest(k, n).proportion_ci(0.95, "exact")))
    for p, side in ((e.p_holds, "greater"), (e.p_fails, "less")):
        assert p == pytest.approx(min(1, 2 * scipy_stats.binomtest(k, n, 1 / 3, side).pvalue))
    assert binomial("", k, n, 1 / 3, -1).p_holds == e.p_fails


def test_fisher_has_newcombes_interval() -> None:
    e = fisher("", (0, 5), (5, 5))
    assert (e.p_holds, e.p_fails) == (pytest.approx(2 / 252), 1)
    p = scipy_stats.fisher_exact([[3, 7], [8, 2]], "less").pvalue
    assert fisher("", (3, 10), (8, 10)).p_holds == pytest.approx(2 * p)
    # Newcombe (1998), table II, method 10, example (a)
    assert ends(fisher("", (56, 70), (48, 80))) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_holm_adjusts_in_steps_and_looks_are_few() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}) and holm({}) == {}
    assert [stats.look(n) for n in (0, 2, 3, 4, 5, 9, 10, 1000)] == [0, 0, 3, 3, 5, 5, 10, 10]


OF_VALUES: list[Callable[[list[float]], Estimate]] = [
    *(lambda values: t_test("", values), lambda values: t_test("", values, A), lambda values: tost("", values, 1.0)),
    *(lambda values: welch("", values, A), lambda values: prediction("", values, 1.0, 1.0)),
    lambda values: pitman_morgan("", values, values),
]


@stats.quiet
def test_values_that_are_few_or_not_finite_or_too_far_apart_decide_nothing() -> None:
    bad = [[], [1.0], *([*A[:3], one] for one in (math.nan, math.inf, -math.inf))]
    few = [estimate(values) for values in bad for estimate in OF_VALUES]
    few += [binomial("", 0, 0, 0.5), fisher("", (0, 0), (1, 1))]
    tiny, huge = ([size * one for one in (1, 2, 4)] for size in (1e-160, 1e160))
    few += [pitman_morgan("", a, b) for a, b in ((A[:3], tiny), (tiny, huge), (huge, tiny))]  # ratio² overflows
    assert all(e.p_holds == e.p_fails == 1.0 for e in few)


def test_constant_values_decide() -> None:
    assert t_test("", [1.0] * 3).p_holds == t_test("", [-1.0] * 3).p_fails == 0
    assert t_test("", [0.0] * 3).p_holds == 1 and tost("", [0.1] * 3, 0.2).p_holds < 1e-9
    assert tost("", [0.3] * 3, 0.2).p_fails < 1e-9 and welch("", [1.0, 1.0], [3.0, 3.0]).p_holds == 0
    assert stats.welch_t(A, B) == pytest.approx(WELCH.statistic) and math.isnan(stats.welch_t([1.0], B))
    assert stats.welch_t([1.0, 1.0], [0.0, 0.0]) == math.inf and stats.welch_t([0.0, 0.0], [0.0, 0.0]) == 0


def test_interquartile_mean_averages_the_middle_half() -> None:
    value, low, high = stats.interquartile_mean([[0.0, 1.0, 2.0, 100.0], [-50.0, 0.5, 1.5, 3.0]])
    assert value == pytest.approx((0.5 + 1 + 1.5 + 2) / 4) and low < value < high
    assert stats.interquartile_mean([[2.0] * 3, [2.0] * 3]) == (2.0, 2.0, 2.0)
    assert math.isnan(stats.interquartile_mean([[2.0, math.nan]])[0])

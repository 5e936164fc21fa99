"""Intervals, tests and corrections are those of scipy, or of the papers that define them."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from wnrepro.report import stats
from wnrepro.report.stats import beyond, equivalent, holm, less_often, one_more, share, smaller, steadier, stratified

A, B = [1.0, 2.0, 4.0, 3.5], [2.0, 2.5, 9.0, 5.0, 6.0]
RNG = np.random.default_rng(3)


def test_beyond_has_the_t_interval() -> None:
    e = beyond("", [1.0, 2.0, 3.0])  # 2 ± 4.302653 / √3
    assert (e.low, e.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert math.isnan(beyond("", [1.0]).low) and math.isnan(beyond("", [1.0]).high)


@pytest.mark.parametrize(("margin", "sign"), [(0.0, 1), (1.5, 1), (4.0, -1)])
def test_beyond_is_scipys_one_sample_t_test(margin: float, sign: int) -> None:
    ours, theirs = ("greater", "less") if sign > 0 else ("less", "greater")
    e = beyond("", A, margin, sign)
    whole = scipy_stats.ttest_1samp(A, margin)
    assert (e.low, e.high) == pytest.approx(tuple(whole.confidence_interval(0.95)))
    assert e.p_holds == pytest.approx(min(1, 2 * scipy_stats.ttest_1samp(A, margin, alternative=ours).pvalue))
    assert e.p_fails == pytest.approx(min(1, 2 * scipy_stats.ttest_1samp(A, margin, alternative=theirs).pvalue))
    assert (e.p_holds <= 0.05) == (e.low > margin if sign > 0 else e.high < margin)


def test_smaller_is_scipys_welch_test_simultaneous_over_several() -> None:
    e, three = smaller("", A, B), smaller("", A, B, 3)
    test = scipy_stats.ttest_ind(A, B, equal_var=False, alternative="less")
    both = scipy_stats.ttest_ind(A, B, equal_var=False)
    assert e.p_holds == pytest.approx(2 * test.pvalue) and three.p_holds == pytest.approx(6 * test.pvalue)
    assert (e.low, e.high) == pytest.approx(tuple(both.confidence_interval(0.95)))
    assert (three.low, three.high) == pytest.approx(tuple(both.confidence_interval(1 - 0.05 / 3)))


def test_equivalent_is_two_one_sided_tests() -> None:
    values = [0.02, -0.01, 0.03, 0.0, 0.01]
    e = equivalent("", values, 0.05)
    tails = [scipy_stats.ttest_1samp(values, 0.05, alternative="less").pvalue]
    tails.append(scipy_stats.ttest_1samp(values, -0.05, alternative="greater").pvalue)
    assert e.p_holds == pytest.approx(max(tails)) and e.margin == (-0.05, 0.05)
    assert (e.low, e.high) == pytest.approx(tuple(scipy_stats.ttest_1samp(values, 0).confidence_interval(0.90)))
    far = equivalent("", [value + 0.2 for value in values], 0.05)
    assert far.p_holds == 1.0 or far.p_holds > 0.99
    assert far.p_fails < 0.001
    unpaired = equivalent("", A, 9.0, B)
    welch = scipy_stats.ttest_ind(A, B, equal_var=False)
    assert (unpaired.low, unpaired.high) == pytest.approx(tuple(welch.confidence_interval(0.90)))


def test_one_more_is_the_prediction_interval_of_a_run() -> None:
    values = [8.3, 8.5, 8.45, 8.4, 8.55]
    e = one_more("", values, 8.46, 1.0, of=4)
    half = scipy_stats.t.ppf(1 - 0.05 / 8, 4) * np.std(values, ddof=1) * math.sqrt(1.2)
    assert (e.low, e.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert e.p_holds < 0.05 < e.p_fails
    off = one_more("", values, 9.9, 1.0, of=4)
    assert off.p_fails < 0.05 < off.p_holds


def test_steadier_is_pitmans_and_morgans_test() -> None:
    normal = RNG.normal(size=8)
    wn = 0.4 * normal + 0.05 * RNG.normal(size=8)
    e = steadier("", list(wn), list(normal))
    correlation = scipy_stats.pearsonr(wn + normal, wn - normal)
    assert correlation.statistic < 0 and e.p_holds == pytest.approx(correlation.pvalue, rel=1e-6)
    assert e.value == pytest.approx(np.std(wn, ddof=1) / np.std(normal, ddof=1)) and e.low < e.value < e.high < 1
    at_the_end = steadier("", list(wn / e.high), list(normal))  # the interval inverts the test
    assert at_the_end.p_holds == pytest.approx(0.05, rel=1e-6)


def test_steadier_has_the_power_with_five_pairs_that_the_f_test_lacks() -> None:
    pitman = f_test = 0
    for _ in range(400):
        normal = RNG.normal(size=5)
        wn = 0.5 * (0.95 * normal + math.sqrt(1 - 0.95**2) * RNG.normal(size=5))
        pitman += steadier("", list(wn), list(normal)).p_holds <= 0.05
        f_test += np.var(normal, ddof=1) / np.var(wn, ddof=1) > scipy_stats.f.ppf(0.975, 4, 4)
    assert pitman > 260 and f_test < 140


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 20), (5, 5), (7, 10)])
def test_share_is_scipys_exact_interval(k: int, n: int) -> None:
    e = share("", k, n, 1 / 3)
    assert (e.low, e.high) == pytest.approx(tuple(scipy_stats.binomtest(k, n).proportion_ci(0.95, "exact")))
    assert e.p_holds == pytest.approx(min(1, 2 * scipy_stats.binomtest(k, n, 1 / 3, "greater").pvalue))
    assert e.p_fails == pytest.approx(min(1, 2 * scipy_stats.binomtest(k, n, 1 / 3, "less").pvalue))
    assert share("", k, n, 1 / 3, -1).p_holds == e.p_fails


def test_less_often_is_fishers_test_with_newcombes_interval() -> None:
    e = less_often("", (0, 5), (5, 5))
    assert e.p_holds == pytest.approx(2 / 252) and e.p_fails == 1
    table = [[3, 7], [8, 2]]
    assert less_often("", (3, 10), (8, 10)).p_holds == pytest.approx(2 * scipy_stats.fisher_exact(table, "less").pvalue)
    e = less_often("", (56, 70), (48, 80))  # Newcombe (1998), table II, method 10, example (a)
    assert (e.low, e.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_stratified_of_one_stratum_is_the_t_test_and_of_two_is_welchs() -> None:
    assert stratified("", [A], 1.0).p_holds == pytest.approx(beyond("", A, 1.0).p_holds)
    e = stratified("", [A, [-value for value in B]])
    welch = scipy_stats.ttest_ind(A, B, equal_var=False)
    assert 2 * e.value == pytest.approx(np.mean(A) - np.mean(B))
    assert (2 * e.low, 2 * e.high) == pytest.approx(tuple(welch.confidence_interval(0.95)))


def test_holm() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}


def test_above_is_scipys_t() -> None:
    assert stats.above(A, B) == pytest.approx(scipy_stats.ttest_ind(A, B, equal_var=False).statistic)
    assert stats.above([1.0, 1.0], [0.0, 0.0]) == math.inf and stats.above([0.0, 0.0], [0.0, 0.0]) == 0
    assert math.isnan(stats.above([1.0], B))


def test_looks() -> None:
    assert [stats.look(n) for n in (0, 2, 3, 4, 5, 9, 10, 1000)] == [0, 0, 3, 3, 5, 5, 10, 10]


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_few_values_decide_nothing(values: list[float]) -> None:
    for e in (
        beyond("", values),
        equivalent("", values, 1.0),
        smaller("", values, A),
        one_more("", values, 1.0, 1.0),
        steadier("", values, values),
        stratified("", [values, A]),
        share("", 0, 0, 0.5),
        less_often("", (0, 0), (1, 1)),
    ):
        assert e.p_holds == e.p_fails == 1.0 and math.isnan(e.low)


def test_values_that_do_not_vary() -> None:
    assert beyond("", [1.0] * 3).p_holds == 0 and beyond("", [0.0] * 3).p_holds == 1
    assert beyond("", [-1.0] * 3).p_fails == 0
    assert equivalent("", [0.1] * 3, 0.2).p_holds < 1e-9 and equivalent("", [0.3] * 3, 0.2).p_fails < 1e-9
    assert smaller("", [1.0, 1.0], [3.0, 3.0]).p_holds == 0


@stats.quiet
def test_not_finite_values_decide_nothing() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for e in (beyond("", [*A, bad]), equivalent("", [*A, bad], 1.0), smaller("", [*A, bad], B)):
            assert e.p_holds == e.p_fails == 1.0
    tiny, huge = ([size * one for one in (1, 2, 4)] for size in (1e-160, 1e160))
    for e in (steadier("", A[:3], tiny), steadier("", tiny, huge), steadier("", huge, tiny)):
        assert e.p_holds == e.p_fails == 1.0  # the square of the ratio is beyond what a number can hold


def test_interquartile_mean_is_of_the_middle_half_of_all_games_and_seeds() -> None:
    value, low, high = stats.interquartile_mean([[0.0, 1.0, 2.0, 100.0], [-50.0, 0.5, 1.5, 3.0]])
    assert value == pytest.approx((0.5 + 1 + 1.5 + 2) / 4)
    assert low < value < high
    assert stats.interquartile_mean([[2.0] * 3, [2.0] * 3]) == (2.0, 2.0, 2.0)

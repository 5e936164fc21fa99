"""Every rule gives every verdict that it can, on made-up numbers; the published numbers are the paper's."""

import math

import numpy as np
import pytest

from wnrepro import paper
from wnrepro.paper import INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED
from wnrepro.report import verdicts
from wnrepro.report.claims import FINDERS

inf, nan = math.inf, math.nan
GOOD = {
    "wn": [8.4, 8.5, 8.45],
    "normal": [8.4, 8.45, 8.5],
    "bn": [8.0, 8.1, 8.05],
    "wn+mobn": [7.3, 7.35, 7.25],
}


def test_table_2_as_printed() -> None:
    assert paper.TABLE2 == {"wn": 8.46, "normal": 8.43, "bn": 8.05, "wn+mobn": 7.31}
    assert sorted(paper.TABLE2_EARLIER.values()) == [9.08, 9.31, 9.6, 10.41, 11.68]


def test_every_claim_has_a_rule_at_work() -> None:
    assert [claim.id for claim in paper.CLAIMS] == list(FINDERS)
    assert all(claim.claim and claim.where and claim.paper and claim.rule for claim in paper.CLAIMS)


def test_t_interval() -> None:
    low, high = verdicts.t_interval([1.0, 2.0, 3.0])  # 2 ± 4.302653 / √3
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert all(math.isnan(end) for end in verdicts.t_interval([1.0]))


def test_welch_interval_is_scipys() -> None:
    from scipy.stats import ttest_ind

    a, b = [1.0, 2.0, 4.0], [2.0, 2.5, 9.0, 5.0]
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert verdicts.welch_interval(a, b) == pytest.approx((expected.low, expected.high))
    assert verdicts.welch_interval([1.0, 1.0], [3.0, 3.0]) == (-2.0, -2.0)
    assert all(math.isnan(end) for end in verdicts.welch_interval([1.0], [1.0, 2.0]))


@pytest.mark.parametrize(
    ("residuals", "expected"),
    [
        ([[], []], NOT_RUN),
        ([[1e-16, 1e-12], [1e-17]], REPRODUCED),
        ([[1e-16, 1e-9], [1e-17]], NOT_REPRODUCED),
        ([[nan], [1e-17]], NOT_REPRODUCED),
        ([[1e-16], []], INCONCLUSIVE),
    ],
)
def test_identities(residuals: list[list[float]], expected: str) -> None:
    assert verdicts.identities(residuals) == expected


@pytest.mark.parametrize(
    ("means", "variances", "losses", "expected"),
    [
        ([], [], [], NOT_RUN),
        ([1e-5], [0.999, 1.001], [[2.8, 2.8001, 2.8, 2.8]], REPRODUCED),
        ([1e-5], [0.999, 1.001], [], INCONCLUSIVE),
        ([], [], [[2.8, 2.8, 2.8, 2.8]], INCONCLUSIVE),
        ([2e-3], [1.0], [[2.8, 2.8, 2.8, 2.8]], NOT_REPRODUCED),
        ([1e-5], [0.98], [[2.8, 2.8, 2.8, 2.8]], NOT_REPRODUCED),
        ([1e-5], [1.0], [[2.8, 2.9, 2.8, 2.8]], NOT_REPRODUCED),
        ([nan], [1.0], [[2.8, 2.8, 2.8, 2.8]], NOT_REPRODUCED),
    ],
)
def test_same_start(means: list[float], variances: list[float], losses: list[list[float]], expected: str) -> None:
    assert verdicts.same_start(means, variances, losses) == expected


@pytest.mark.parametrize(
    ("errors", "diverged", "expected"),
    [
        ({}, [], NOT_RUN),
        (GOOD, [], REPRODUCED),
        ({**GOOD, "bn": [8.05]}, [], INCONCLUSIVE),  # one seed
        ({**GOOD, "bn": []}, [], INCONCLUSIVE),  # missing
        ({**GOOD, "bn": [7.0, 9.1, 8.05]}, [], INCONCLUSIVE),  # too wide
        ({**GOOD, "bn": [10.2]}, [], NOT_REPRODUCED),  # grossly off
        ({**GOOD, "bn": [9.0, 9.1, 9.05]}, [], NOT_REPRODUCED),  # off
        ({**GOOD, "bn": [7.6, 7.65, 7.62], "wn+mobn": [7.7, 7.75, 7.72]}, [], NOT_REPRODUCED),  # order
        (GOOD, ["wn"], NOT_REPRODUCED),
        ({}, ["wn"], NOT_REPRODUCED),
    ],
)
def test_table2(errors: dict[str, list[float]], diverged: list[str], expected: str) -> None:
    assert verdicts.table2(errors, diverged) == expected


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({"wn": [], "bn": []}, NOT_RUN),
        ({"wn": [0.8], "bn": [0.7]}, REPRODUCED),
        ({"wn": [0.8, 0.9], "bn": [0.7, 0.94]}, REPRODUCED),
        ({"wn": [0.8, 0.97], "bn": [0.7, 0.7]}, INCONCLUSIVE),
        ({"wn": [0.8], "bn": []}, INCONCLUSIVE),
        ({"wn": [0.8], "bn": [1.0]}, NOT_REPRODUCED),
        ({"wn": [inf], "bn": [0.7]}, NOT_REPRODUCED),
        ({"wn": [inf, 0.8], "bn": [0.7, 0.7]}, INCONCLUSIVE),
    ],
)
def test_faster(ratios: dict[str, list[float]], expected: str) -> None:
    assert verdicts.faster(ratios) == expected


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], NOT_RUN),
        ([(0.003, "diverged")], REPRODUCED),
        ([(0.003, "diverged"), (0.003, "diverged"), (0.01, "untrained")], REPRODUCED),
        ([(0.003, "trained")], NOT_REPRODUCED),
        ([(0.003, "unfinished"), (0.01, "trained")], NOT_REPRODUCED),
        ([(0.003, "diverged"), (0.003, "trained")], INCONCLUSIVE),
        ([(0.003, "diverged"), (0.01, "trained")], INCONCLUSIVE),
        ([(0.003, "untrained")], INCONCLUSIVE),
        ([(0.003, "unfinished")], INCONCLUSIVE),
        ([(0.01, "diverged")], INCONCLUSIVE),
    ],
)
def test_divergence(outcomes: list[tuple[float, str]], expected: str) -> None:
    assert verdicts.divergence(outcomes) == expected


SLOW, SAME = (1.10, 1.2, 20), (0.98, 1.01, 20)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], NOT_RUN),
        ([{"bn": SLOW, "wn": SAME}], REPRODUCED),
        ([{"bn": SLOW, "wn": SAME}] * 2, REPRODUCED),
        ([{"bn": SAME, "wn": SAME}], NOT_REPRODUCED),
        ([{"bn": SLOW, "wn": SLOW}], NOT_REPRODUCED),
        ([{"bn": SLOW, "wn": (1.02, 1.04, 20)}], INCONCLUSIVE),
        ([{"bn": SLOW, "wn": (0.98, 1.01, 9)}], INCONCLUSIVE),  # few rounds
        ([{"bn": SLOW}], INCONCLUSIVE),
        ([{"bn": SLOW, "wn": SAME}, {"bn": SAME, "wn": SAME}], INCONCLUSIVE),  # devices disagree
    ],
)
def test_step_time(devices: list[dict[str, tuple[float, float, int]]], expected: str) -> None:
    assert verdicts.step_time(devices) == expected


@pytest.mark.parametrize(
    ("mobn", "bn", "minibatches", "expected"),
    [
        ([], [], 0, NOT_RUN),
        ([(0.1, 0.5)] * 3, [(3.0, 2.0)] * 3, 50, REPRODUCED),
        ([(0.1, 0.5)] * 3, [(3.0, 2.0), (3.0, 2.0), (0.0, 0.0)], 50, REPRODUCED),
        ([(1.5, 1.9)] * 3, [(3.0, 2.0)] * 3, 50, NOT_REPRODUCED),  # mean-only bn not Gaussian
        ([(0.1, 0.5)] * 3, [(0.1, 0.0)] * 3, 50, NOT_REPRODUCED),  # bn no more kurtotic
        ([(0.7, 0.9)] * 3, [(3.0, 2.0)] * 3, 50, INCONCLUSIVE),
        ([(0.1, 0.5)] * 3, [(0.6, 0.4)] * 3, 50, INCONCLUSIVE),  # larger, but not clearly
        ([(0.1, 0.5)] * 3, [(3.0, 2.0)] * 3, 29, INCONCLUSIVE),
        ([(0.1, 0.5)] * 3, [], 50, INCONCLUSIVE),
    ],
)
def test_noise(mobn: list[tuple[float, float]], bn: list[tuple[float, float]], minibatches: int, expected: str) -> None:
    assert verdicts.noise(mobn, bn, minibatches) == expected


STEADY, LOOSE = [-84.0, -84.01, -83.99], [-85.0, -85.3, -84.7]
GOOD_BOUNDS = (STEADY, LOOSE, 400)


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        ([([], [], 0)] * 2, NOT_RUN),
        ([GOOD_BOUNDS] * 2, REPRODUCED),
        ([GOOD_BOUNDS, ([], [], 0)], INCONCLUSIVE),
        ([GOOD_BOUNDS, (STEADY, LOOSE, 99)], INCONCLUSIVE),  # not converged
        ([GOOD_BOUNDS, (STEADY[:2], LOOSE[:2], 400)], INCONCLUSIVE),  # two seeds
        ([GOOD_BOUNDS, ([-84.0, -84.2, -83.8], LOOSE, 400)], INCONCLUSIVE),  # better, no steadier
        ([GOOD_BOUNDS, (STEADY, [-84.0, -84.3, -83.7], 400)], INCONCLUSIVE),  # steadier, no better
        ([GOOD_BOUNDS, (STEADY, STEADY, 400)], INCONCLUSIVE),  # the same
        ([GOOD_BOUNDS, (STEADY, [-83.0, -83.02, -82.98], 400)], NOT_REPRODUCED),  # worse
        ([GOOD_BOUNDS, (STEADY, [-83.0, -83.02, -82.98], 99)], INCONCLUSIVE),
        ([GOOD_BOUNDS, ([-83.0, -83.3, -82.7], [-85.0, -85.01, -84.99], 400)], NOT_REPRODUCED),  # better, less steady
        ([GOOD_BOUNDS, ([*STEADY, -inf], [*LOOSE, -85.0], 400)], NOT_REPRODUCED),  # wn diverges
        ([GOOD_BOUNDS, ([*STEADY, -84.0], [*LOOSE, -inf], 400)], INCONCLUSIVE),  # normal does
        ([GOOD_BOUNDS, ([*STEADY, -inf], [*LOOSE, -inf], 400)], INCONCLUSIVE),
        ([GOOD_BOUNDS, ([*STEADY, nan], [*LOOSE, -85.0], 400)], INCONCLUSIVE),
    ],
)
def test_better_bound(datasets: list[tuple[list[float], list[float], int]], expected: str) -> None:
    assert verdicts.better_bound(datasets) == expected


def test_the_f_test_is_scipys() -> None:
    from scipy.stats import f

    factor = f.ppf(0.95, 2, 2)  # 19
    for share, expected in ((1.01, REPRODUCED), (0.99, INCONCLUSIVE)):
        normal = [-90 + value * math.sqrt(share * factor) for value in (0.1, 0.0, -0.1)]
        assert verdicts.better_bound([([-84.1, -84.0, -83.9], normal, 100)]) == expected


@pytest.mark.parametrize(
    ("bounds", "target", "expected"),
    [
        ([-90.0, -80.0], -95.0, 1.0),  # not before epoch 1
        ([-100.0, -90.0, -80.0], -82.5, 2.75),
        ([-100.0, -90.0, -80.0], -80.0, 3.0),
        ([-100.0, -80.0, -90.0, -70.0], -85.0, 1.75),  # the first time
        ([-100.0, -90.0], -89.0, inf),
        ([], -90.0, inf),
    ],
)
def test_reached(bounds: list[float], target: float, expected: float) -> None:
    assert verdicts.reached(bounds, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([], NOT_RUN),
        ([(71.0, 100), (90.0, 100)], REPRODUCED),
        ([(1.0, 5), (4.5, 5)], REPRODUCED),
        ([(71.0, 100), (90.1, 100)], INCONCLUSIVE),  # too little
        ([(71.0, 100), (100.0, 100)], INCONCLUSIVE),  # no earlier, but reached
        ([(100.0, 100), (100.0, 100)], INCONCLUSIVE),
        ([(71.0, 100), (inf, 100)], INCONCLUSIVE),
        ([(inf, 100), (inf, 100)], NOT_REPRODUCED),
        ([(inf, 100), (inf, 100), (99.0, 100)], INCONCLUSIVE),
        ([(71.0, 100)], INCONCLUSIVE),  # one seed
        ([(inf, 100)], INCONCLUSIVE),
        ([(1.0, 4), (1.0, 4)], INCONCLUSIVE),  # four epochs
        ([(71.0, 100), (1.0, 4)], INCONCLUSIVE),
        ([(71.0, 100), (71.0, 100), (inf, 4)], REPRODUCED),
        ([(nan, 100), (nan, 100)], INCONCLUSIVE),  # both diverge
        ([(71.0, 100), (71.0, 100), (nan, 100)], REPRODUCED),
        ([(inf, 100), (inf, 100), (nan, 100)], NOT_REPRODUCED),
        ([(71.0, 100), (nan, 100)], INCONCLUSIVE),
    ],
)
def test_earlier(seeds: list[tuple[float, int]], expected: str) -> None:
    assert verdicts.earlier(seeds) == expected


def test_others_bounds_of_draw() -> None:
    assert [bound for _, bound in paper.DRAW_MNIST.values()] == [-90.5, -83.0, -80.97]


def test_table_3_as_printed() -> None:
    assert [(game, *scores.values(), paper.TABLE3_MNIH[game]) for game, scores in paper.TABLE3.items()] == [
        ("breakout", 410, 403, 401),
        ("enduro", 1250, 1448, 302),
        ("seaquest", 7188, 7375, 5286),
        ("space_invaders", 1779, 2179, 1975),
    ]
    (c11,) = [claim for claim in paper.CLAIMS if claim.id == "C11"]
    assert c11.paper.endswith("their mean log ratio: +0.09 (×1.09)")


def test_above_is_scipys_t() -> None:
    from scipy.stats import ttest_ind

    a, b = [1.0, 2.0, 4.0], [2.0, 2.5, 9.0, 5.0]
    assert verdicts.above(a, b) == pytest.approx(ttest_ind(a, b, equal_var=False).statistic)
    assert verdicts.above([1.0, 1.0], [0.0, 0.0]) == inf and verdicts.above([0.0, 0.0], [0.0, 0.0]) == 0
    assert math.isnan(verdicts.above([1.0], b))


def test_the_bootstrap_draws_whole_seeds_within_each_game() -> None:
    games = [np.array([[1.0, 10.0], [2.0, 20.0]]), np.array([[5.0, 50.0]])]
    first, second = verdicts.resampled(games)
    assert first.shape == (paper.RESAMPLES, 2, 2) and second.shape == (paper.RESAMPLES, 1, 2)
    assert (first[..., 1] == 10 * first[..., 0]).all() and (second[..., 0] == 5).all()
    assert set(first[..., 0].sum(axis=1)) == {2, 3, 4}
    assert (first == verdicts.resampled(games)[0]).all()


def test_interquartile_mean_is_of_the_middle_half_of_all_games_and_seeds() -> None:
    value, (low, high) = verdicts.interquartile_mean([[0.0, 1.0, 2.0, 100.0], [-50.0, 0.5, 1.5, 3.0]])
    assert value == pytest.approx((0.5 + 1 + 1.5 + 2) / 4)
    assert low < value < high
    assert verdicts.interquartile_mean([[2.0] * 3, [2.0] * 3]) == (2.0, (2.0, 2.0))


BETTER, WORSE = [(50.0, 40.0), (51.0, 41.0), (49.0, 39.0)], [(40.0, 50.0), (41.0, 51.0), (39.0, 49.0)]
MIXED, ALONE = [(50.0, 40.0), (40.0, 50.0), (45.0, 45.0)], [(-inf, 40.0), *BETTER]


@pytest.mark.parametrize(
    ("games", "expected"),
    [
        ([], NOT_RUN),
        ([([], 0)] * 4, NOT_RUN),
        ([(BETTER, 100)] * 4, REPRODUCED),
        ([(BETTER, 100)] * 3 + [(MIXED, 100)], REPRODUCED),  # on average
        ([(MIXED, 100)] * 4, INCONCLUSIVE),
        ([(BETTER, 100)] * 2 + [(WORSE, 100)] * 2, INCONCLUSIVE),
        ([(WORSE, 100)] * 4, NOT_REPRODUCED),
        ([(BETTER, 100)] * 3, INCONCLUSIVE),  # three games
        ([(BETTER, 100)] * 3 + [(BETTER, 99)], INCONCLUSIVE),
        ([(WORSE, 100)] * 3 + [(WORSE, 99)], INCONCLUSIVE),
        ([(BETTER, 100)] * 3 + [(BETTER[:2], 100)], INCONCLUSIVE),  # two seeds
        ([(BETTER, 100)] * 3 + [([(5.0, -1.0), (5.0, 0.0), (5.0, 0.5)], 100)], INCONCLUSIVE),  # no logarithm
        ([(BETTER, 100)] * 3 + [([(5.0, 3.0), (5.0, 0.0), (5.0, 3.0)], 100)], INCONCLUSIVE),  # nor of a resample
        ([(BETTER, 100)] * 3 + [(ALONE, 100)], NOT_REPRODUCED),  # wn diverges
        ([(ALONE, 100)], NOT_REPRODUCED),
        ([(BETTER, 100)] * 3 + [(ALONE, 99)], INCONCLUSIVE),
        ([(BETTER, 100)] * 3 + [([(40.0, -inf), *BETTER], 100)], INCONCLUSIVE),  # normal does
        ([(BETTER, 100)] * 3 + [([(-inf, -inf), *BETTER], 100)], INCONCLUSIVE),
    ],
)
def test_better_scores(games: list[tuple[list[tuple[float, float]], int]], expected: str) -> None:
    assert verdicts.better_scores(games) == expected


def test_the_mean_log_ratio_turns_its_sign_with_the_two() -> None:
    games = [BETTER, MIXED, WORSE[:2]]
    value, (low, high) = verdicts.mean_log_ratio(games)
    assert value == pytest.approx((math.log(50 / 40) + 0 + math.log(40.5 / 50.5)) / 3)
    turned, interval = verdicts.mean_log_ratio([[(b, a) for a, b in game] for game in games])
    assert (turned, *interval) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([], NOT_RUN),
        ([(0.1, True), (0.49, True), (-inf, True)], REPRODUCED),
        ([(0.5, True), (0.9, True), (2.0, True)], NOT_REPRODUCED),
        ([(0.1, True), (0.1, True), (0.5, True)], INCONCLUSIVE),
        ([(0.1, True), (0.1, True), (nan, False)], INCONCLUSIVE),  # two pairs
        ([(0.1, True)] * 3 + [(nan, False)], REPRODUCED),
        ([(nan, False)] * 3, INCONCLUSIVE),
    ],
)
def test_bn_at_64(shares: list[tuple[float, bool]], expected: str) -> None:
    assert verdicts.bn_at_64(shares) == expected


def test_learnt_needs_games_and_standard_errors() -> None:
    random = [-1.0, 1.0] * 15
    error = math.hypot(1, 1) / math.sqrt(29)
    for errors, n, expected in ((2.01, 30, True), (1.99, 30, False), (20.0, 28, False)):
        assert verdicts.learnt([score + errors * error for score in random[:n]], random) == expected
    assert not verdicts.learnt(random, [])


HELPED, HURT, SAME_ERROR = (-83.0, -84.0, 400), (-85.0, -84.0, 400), ([0.01, 0.0, -0.01], 200)


@pytest.mark.parametrize(
    ("cvae", "classification", "expected"),
    [
        ([], [], NOT_RUN),
        ([HELPED, HELPED, HURT], [SAME_ERROR], REPRODUCED),
        ([HELPED, HELPED, HURT, HURT], [SAME_ERROR], INCONCLUSIVE),  # half of them
        ([HELPED, HELPED], [SAME_ERROR], INCONCLUSIVE),
        ([HELPED, HELPED, (-83.0, -84.0, 99)], [SAME_ERROR], INCONCLUSIVE),  # not converged
        ([HURT, HURT, HURT], [SAME_ERROR], NOT_REPRODUCED),
        ([HURT, HURT, (-inf, -84.0, 400)], [], NOT_REPRODUCED),
        ([HELPED, HURT, (-84.0, -inf, 400)], [SAME_ERROR], REPRODUCED),
        ([HELPED] * 3, [], INCONCLUSIVE),
        ([], [SAME_ERROR], INCONCLUSIVE),
        ([HELPED] * 3, [SAME_ERROR, ([0.1, 0.1, 0.11], 200)], REPRODUCED),
        ([HELPED] * 3, [([-0.1, -0.1, -0.11], 200)], NOT_REPRODUCED),  # it helps
        ([HELPED] * 3, [([-0.1, -0.1, -0.11], 99)], INCONCLUSIVE),
        ([HELPED] * 3, [([0.0, 0.01], 200)], INCONCLUSIVE),  # two seeds
        ([HELPED] * 3, [([-0.1, -0.1, nan], 200)], INCONCLUSIVE),
    ],
)
def test_bounded_norm(
    cvae: list[tuple[float, float, int]], classification: list[tuple[list[float], int]], expected: str
) -> None:
    assert verdicts.bounded_norm(cvae, classification) == expected


def test_the_iaf_papers_bounds() -> None:
    assert list(paper.IAF_MNIST.values()) == [
        (-84.08, 0.10),
        (-82.02, 0.08),
        (-81.17, 0.08),
        (-80.93, 0.09),
        (-80.80, 0.07),
    ]
    assert list(paper.IAF_CIFAR10.values()) == [3.28, 3.11]


FLAT = {0.0003: 0.1, 0.001: 0.09, 0.003: 0.1, 0.01: 0.11}
NARROW = {0.0003: 0.1, 0.001: 0.2, 0.003: inf, 0.01: inf}


@pytest.mark.parametrize(
    ("wn", "normal", "expected"),
    [
        ({}, {}, NOT_RUN),
        (FLAT, NARROW, REPRODUCED),
        (NARROW, FLAT, NOT_REPRODUCED),
        (NARROW, NARROW, NOT_REPRODUCED),
        ({rate: 0.89 for rate in FLAT}, {rate: 0.9 for rate in FLAT}, INCONCLUSIVE),  # nothing trains
        (FLAT, FLAT, INCONCLUSIVE),  # the grid is too narrow
        (FLAT, {0.0003: 0.1, 0.001: 0.2}, INCONCLUSIVE),
        (FLAT, {}, INCONCLUSIVE),
    ],
)
def test_robust_rates(wn: dict[float, float], normal: dict[float, float], expected: str) -> None:
    assert verdicts.robust_rates(wn, normal) == expected


def test_a_rate_that_diverged_never_works() -> None:
    assert verdicts.working_rates({0.001: inf, 0.003: inf}) == []
    assert verdicts.working_rates(NARROW) == [0.0003]


@pytest.mark.parametrize(
    ("factors", "early_late", "by_rate", "expected"),
    [
        ([], [], [], NOT_RUN),
        ([1.5] * 10, [(0.3, 0.1)], [[0.2, 0.5]], REPRODUCED),
        ([1.5] * 9 + [0.9], [(0.3, 0.1)], [[0.2, 0.5, 0.9]], REPRODUCED),
        ([0.9] * 10, [(0.3, 0.1)], [[0.2, 0.5]], NOT_REPRODUCED),  # shrunk
        ([1.5] * 10, [(0.1, 0.3)], [[0.2, 0.5]], NOT_REPRODUCED),  # faster and faster
        ([1.5] * 10, [(0.3, 0.1)], [[0.5, 0.2]], NOT_REPRODUCED),  # less at a larger rate
        ([1.5] * 7 + [0.9] * 3, [(0.3, 0.1)], [[0.2, 0.5]], INCONCLUSIVE),
        ([1.5] * 10, [(0.3, 0.1), (0.1, 0.3)], [[0.2, 0.5]], INCONCLUSIVE),
        ([1.5] * 10, [(0.3, 0.1)], [[0.2, 0.1, 0.5]], INCONCLUSIVE),
        ([1.5] * 10, [(0.3, 0.1)], [], INCONCLUSIVE),  # one rate
        ([1.5] * 10, [], [[0.2, 0.5]], INCONCLUSIVE),
    ],
)
def test_growth(
    factors: list[float], early_late: list[tuple[float, float]], by_rate: list[list[float]], expected: str
) -> None:
    assert verdicts.growth(factors, early_late, by_rate) == expected


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({}, NOT_RUN),
        ({"wn, c = 3": [0.01, 0.0, -0.01]}, REPRODUCED),
        ({"wn, c = 3": [0.01]}, INCONCLUSIVE),
        ({"wn, c = 3": [0.1, -0.1]}, INCONCLUSIVE),
        ({"wn, c = 3": [0.2, 0.21, 0.2]}, NOT_REPRODUCED),
        ({"wn, c = 3": [-0.2, -0.21, -0.2]}, NOT_REPRODUCED),
        ({"wn, c = 3": [0.01, 0.0, -0.01], "wn, c = 5": [0.0, inf]}, NOT_REPRODUCED),
    ],
)
def test_exponential_g(differences: dict[str, list[float]], expected: str) -> None:
    assert verdicts.exponential_g(differences, direct=0.4) == expected


def test_exponential_g_where_nothing_trains() -> None:
    assert verdicts.exponential_g({"wn, c = 3": [0.01, 0.0, -0.01]}, direct=0.89) == INCONCLUSIVE

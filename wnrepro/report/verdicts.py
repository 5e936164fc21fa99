"""The rules of `paper.CLAIMS` as functions from measured numbers to a verdict, and the intervals they use.

A part of a claim holds (True), fails (False) or is open (None). C4's errors are per cent, others fractions.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.special import fdtri, stdtrit
from scipy.stats import trim_mean

from wnrepro import paper
from wnrepro.paper import INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED

Interval = tuple[float, float]
quiet = np.errstate(all="ignore")  # of sums that overflow, and of infinities: what comes out is not finite


@quiet
def t_interval(values: Sequence[float]) -> Interval:
    """95 % t-interval of the mean; (nan, nan) for fewer than two values, or where one is not finite."""
    if len(values) < 2:
        return math.nan, math.nan
    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


@quiet
def welch_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Welch's 95 % interval of mean(a) − mean(b); (nan, nan) if either has fewer than two values, or one that is not
    finite.
    """
    if min(len(a), len(b)) < 2:
        return math.nan, math.nan
    difference = float(np.mean(a) - np.mean(b))
    square_a, square_b = float(np.var(a, ddof=1)) / len(a), float(np.var(b, ddof=1)) / len(b)
    square = square_a + square_b
    if square == 0:
        return difference, difference
    freedom = 1 / ((square_a / square) ** 2 / (len(a) - 1) + (square_b / square) ** 2 / (len(b) - 1))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(square)
    return difference - half, difference + half


@quiet
def standard_error(values: Sequence[float]) -> float:
    """Of the mean; nan for fewer than two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@quiet
def above(values: Sequence[float], others: Sequence[float]) -> float:
    """By how many standard errors of the difference mean(values) lies above mean(others); nan where not known."""
    error = math.hypot(standard_error(values), standard_error(others))
    if math.isnan(error):
        return math.nan
    difference = float(np.mean(values)) - float(np.mean(others))
    if error == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


def resampled(strata: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The stratified bootstrap: of each stratum (n, …) its entries drawn anew, (RESAMPLES, n, …); always the same."""
    rng = np.random.default_rng(0)
    return [values[rng.integers(len(values), size=(paper.RESAMPLES, len(values)))] for values in strata]


def middle95(values: np.ndarray) -> Interval:
    """The 2.5 % and 97.5 % quantiles; (nan, nan) if a value is not finite."""
    if not np.isfinite(values).all():
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


@quiet
def interquartile_mean(games: Sequence[Sequence[float]]) -> tuple[float, Interval]:
    """Over games × seeds of scores, a sequence of seeds a game; 95 % interval by `resampled` seeds within each game.

    nan where a score is not finite: it would be trimmed.
    """
    scores = [np.array(game) for game in games]
    if not np.isfinite(np.concatenate(scores)).all():
        return math.nan, (math.nan, math.nan)
    value = float(trim_mean(np.concatenate(scores), 0.25))
    return value, middle95(trim_mean(np.concatenate(resampled(scores), axis=1), 0.25, axis=1))


def inside(interval: Interval, low: float, high: float) -> bool | None:
    """Whether an interval lies within [low, high]: True; wholly outside: False; neither, or unknown: None."""
    if interval[0] >= low and interval[1] <= high:
        return True
    return False if interval[0] > high or interval[1] < low else None


def part(holds: bool, fails: bool) -> bool | None:
    """True, False or, where neither is so, None."""
    return True if holds else False if fails else None


def overall(parts: Sequence[bool | None]) -> str:
    """One failing part refutes a claim, all together make it."""
    if any(part is False for part in parts):
        return NOT_REPRODUCED
    return REPRODUCED if all(parts) else INCONCLUSIVE


def identities(residuals: Sequence[Sequence[float]]) -> str:
    """C1, C2. residuals: of each identity, one number a run."""
    if not any(residuals):
        return NOT_RUN
    if any(not abs(value) <= paper.IDENTITY_LIMIT for values in residuals for value in values):  # nan fails too
        return NOT_REPRODUCED
    return REPRODUCED if all(residuals) else INCONCLUSIVE


@quiet
def spread(losses: Sequence[float]) -> float:
    """How far they lie apart, over their mean; nan where one, or the mean, is not finite."""
    mean = float(np.mean(losses))
    return (max(losses) - min(losses)) / mean if math.isfinite(mean) and mean else math.nan


def same_start(means: Sequence[float], variances: Sequence[float], losses: Sequence[Sequence[float]]) -> str:
    """C3. means, variances: the extremes of every layer and run; losses: the four of a complete seed."""
    if not len(means) and not len(losses):
        return NOT_RUN
    good = (
        all(abs(value) <= paper.INIT_MEAN for value in means)
        and all(abs(value - 1) <= paper.INIT_VARIANCE for value in variances)
        and all(spread(four) <= paper.INIT_LOSS for four in losses)
    )
    if not good:
        return NOT_REPRODUCED
    return REPRODUCED if len(means) and losses else INCONCLUSIVE


def table2(errors: Mapping[str, Sequence[float]], diverged: Sequence[str] = ()) -> str:
    """C4. errors: final test errors (%) by parameterization, one a seed; diverged: those that did."""
    if not any(errors.values()) and not diverged:
        return NOT_RUN
    values = {param: errors.get(param, ()) for param in paper.TABLE2}
    parts: list[bool | None] = [False for _ in diverged]
    for param, published in paper.TABLE2.items():
        if len(values[param]) == 1:
            parts.append(part(holds=False, fails=abs(values[param][0] - published) > paper.ERROR_GROSS))
        else:
            margin = paper.ERROR_MARGIN
            parts.append(inside(t_interval(values[param]), published - margin, published + margin))
    for better, worse in (("wn+mobn", "bn"), ("bn", "wn"), ("bn", "normal")):
        low, high = welch_interval(values[better], values[worse])
        parts.append(part(holds=high < 0, fails=low >= 0))
    difference = welch_interval(values["wn"], values["normal"])
    parts.append(inside(difference, -paper.ERROR_MARGIN, paper.ERROR_MARGIN))
    return overall(parts)


def faster(ratios: Mapping[str, Sequence[float]]) -> str:
    """C5. ratios: of wn and of bn, its mean training error over normal's, one a seed; inf if it diverged."""
    if not any(ratios.values()):
        return NOT_RUN
    parts: list[bool | None] = []
    for param in ("wn", "bn"):
        values = np.array(ratios.get(param, ()))
        some = len(values) > 0
        parts.append(
            part(
                holds=some and bool(np.all(values <= 1 - paper.SPEED_UP)),
                fails=some and bool(np.all(values >= 1)),
            )
        )
    return overall(parts)


def divergence(outcomes: Sequence[tuple[float, str]]) -> str:
    """C6. outcomes of normal from 0.003 up: (rate, "diverged", "trained", "untrained" or "unfinished")."""
    if not outcomes:
        return NOT_RUN
    at = [outcome for rate, outcome in outcomes if rate == paper.DIVERGING_LR]
    trained = any(outcome == "trained" for _, outcome in outcomes)
    if at and all(outcome == "diverged" for outcome in at) and not trained:
        return REPRODUCED
    return NOT_REPRODUCED if trained and "diverged" not in at else INCONCLUSIVE


def step_time(devices: Sequence[Mapping[str, tuple[float, float, int]]]) -> str:
    """C7. For each device: of bn and of wn, the (low, high, rounds) of its step time over normal's."""
    if not devices:
        return NOT_RUN
    verdicts = set()
    for ratios in devices:
        enough = {param: interval[:2] for param, interval in ratios.items() if interval[2] >= paper.BENCH_ROUNDS}
        unknown = (math.nan, math.nan)
        bn_is_slow = inside(enough.get("bn", unknown), paper.NOTICEABLE, math.inf)
        wn_is_fast = inside(enough.get("wn", unknown), 0, paper.NOTICEABLE)
        verdicts.add(overall([bn_is_slow, wn_is_fast]))
    return verdicts.pop() if len(verdicts) == 1 else INCONCLUSIVE


def noise(mobn: Sequence[Interval], bn: Sequence[Interval], minibatches: int) -> str:
    """C8. By layer, at the same seeds and epochs, the excess kurtosis' quartiles over features.

    mobn: (median, upper quartile); bn: (median, lower quartile); minibatches: the fewest of any measurement.
    """
    if not mobn and not bn:
        return NOT_RUN
    if not mobn or len(mobn) != len(bn) or minibatches < paper.NOISE_MINIBATCHES:
        return INCONCLUSIVE
    centre = abs(float(np.median([median for median, _ in mobn])))
    gaussian = part(holds=centre <= paper.GAUSSIAN_KURTOSIS, fails=centre > paper.HEAVY_KURTOSIS)
    clear = np.mean([low > high for (_, high), (_, low) in zip(mobn, bn, strict=True)])
    no_larger = np.mean([b <= a for (a, _), (b, _) in zip(mobn, bn, strict=True)])
    return overall([gaussian, part(holds=bool(clear > 0.5), fails=bool(no_larger >= 0.5))])


def better_bound(datasets: Sequence[tuple[Sequence[float], Sequence[float], int]]) -> str:
    """C9. By data set: final bounds in nats of wn and of normal, by seed (−inf: diverged), and after how many epochs.

    Two parts a data set: better, and steadier over seeds.
    """
    if not any(wn for wn, _, _ in datasets):
        return NOT_RUN
    parts: list[bool | None] = []
    for wn, normal, epochs in datasets:
        if len(wn) < paper.SEEDS or epochs < paper.CONVERGED_EPOCHS:
            parts.append(None)
        elif not np.isfinite([*wn, *normal]).all():
            parts.append(part(holds=False, fails=any(a == -math.inf < b for a, b in zip(wn, normal, strict=True))))
        else:
            low, high = t_interval([a - b for a, b in zip(wn, normal, strict=True)])
            parts.append(part(holds=low > 0, fails=high < 0))
            ours, theirs = float(np.var(wn, ddof=1)), float(np.var(normal, ddof=1))
            factor = float(fdtri(len(wn) - 1, len(wn) - 1, 1 - paper.F_TEST))
            parts.append(part(holds=theirs > factor * ours, fails=ours > factor * theirs))
    return overall(parts)


def reached(bounds: Sequence[float], target: float) -> float:
    """C10. The epoch, linear between two, at which bounds of the epochs 1, 2, … first reach `target`; inf: never.

    nan where the target, or a bound until then, is not finite.
    """
    first = next((row for row, bound in enumerate(bounds) if bound >= target), None)
    if not np.isfinite([target, *bounds[: None if first is None else first + 1]]).all():
        return math.nan
    if not first:
        return math.inf if first is None else 1.0
    before, after = bounds[first - 1], bounds[first]
    return first + (target - before) / (after - before)


def earlier(seeds: Sequence[tuple[float, int]]) -> str:
    """C10. By seed: the epoch at which wn reaches normal's bound of the last epoch that both share, and that epoch.

    inf: not reached by then, or wn diverged; 1: normal diverged; nan: both did.
    """
    if not seeds:
        return NOT_RUN
    known = [(epoch, last) for epoch, last in seeds if last >= paper.SHARED_EPOCHS and not math.isnan(epoch)]
    if len(known) < paper.CURVE_SEEDS:
        return INCONCLUSIVE
    sooner = all(last - epoch >= paper.EARLIER * last for epoch, last in known)
    return overall([part(holds=sooner, fails=all(epoch > last for epoch, last in known))])


@quiet
def mean_log_ratio(games: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, Interval]:
    """C11. The mean over games of log(wn / normal), of means over the seeds' scores of both; its 95 % interval.

    nan where a mean is not above 0, or not finite.
    """

    def statistic(means: Sequence[np.ndarray]) -> np.ndarray:  # (…, 2) a game
        logs = [np.log(mean) for mean in means]
        return np.mean([log[..., 0] - log[..., 1] for log in logs], axis=0)

    scores = [np.array(game, dtype=float) for game in games]
    value = float(statistic([game.mean(axis=0) for game in scores]))
    interval = middle95(statistic([game.mean(axis=1) for game in resampled(scores)]))
    return value if math.isfinite(value) else math.nan, interval


def better_scores(games: Sequence[tuple[Sequence[tuple[float, float]], int]]) -> str:
    """C11. By game: maximum test scores of wn and of normal by seed (−inf: diverged), and over how many epochs."""
    if not any(pairs for pairs, _ in games):
        return NOT_RUN
    parts: list[bool | None] = []
    for pairs, epochs in games:
        enough = len(pairs) >= paper.SEEDS and epochs >= paper.CONVERGED_EPOCHS
        lost = any(wn == -math.inf < normal for wn, normal in pairs)
        parts.append(part(holds=enough and bool(np.isfinite(pairs).all()), fails=enough and lost))
    known = len(parts) == len(paper.TABLE3) and all(parts)
    low, high = mean_log_ratio([pairs for pairs, _ in games])[1] if known else (math.nan, math.nan)
    return overall([*parts, part(holds=low > 0, fails=high < 0)])


def learnt(games: Sequence[float], random: Sequence[float]) -> bool:
    """C12. Whether the scores of test games lie above those of random play."""
    return min(len(games), len(random)) >= paper.LEARNT_GAMES and above(games, random) > paper.LEARNT_ERRORS


def bn_at_64(shares: Sequence[tuple[float, bool]]) -> str:
    """C12. By pair: bn's gain over normal's (−inf: bn diverged; nan: not known), and whether normal has learnt."""
    if not shares:
        return NOT_RUN
    known = [share for share, normal_learnt in shares if normal_learnt]
    if len(known) < paper.FEWEST_PAIRS or any(math.isnan(share) for share in known):
        return INCONCLUSIVE
    fails = [share < paper.BN_FAILS for share in known]
    return overall([part(holds=all(fails), fails=not any(fails))])


def working_rates(errors: Mapping[float, float]) -> list[float]:
    """C13. The learning rates that work, of {rate: final training error, inf if any seed diverged}; none where one of
    the errors is nan.
    """
    if any(math.isnan(error) for error in errors.values()):
        return []
    limit = min(paper.RATE_FACTOR * min(errors.values()) + paper.RATE_MARGIN, paper.UNTRAINED_ERROR)
    return [rate for rate, error in sorted(errors.items()) if error <= limit]


def robust_rates(wn: Mapping[float, float], normal: Mapping[float, float]) -> str:
    """C13. {rate: final training error, inf if any seed diverged} of wn and of normal."""
    if not wn and not normal:
        return NOT_RUN
    shared = wn.keys() & normal.keys()
    if len(shared) < paper.SWEEP_RATES:
        return INCONCLUSIVE
    of_wn = len(working_rates({rate: wn[rate] for rate in shared}))
    of_normal = len(working_rates({rate: normal[rate] for rate in shared}))
    if of_wn == of_normal and of_wn in (0, len(shared)):
        return INCONCLUSIVE
    return REPRODUCED if of_wn > of_normal else NOT_REPRODUCED


def growth(
    factors: Sequence[float], early_late: Sequence[tuple[float, float]], by_rate: Sequence[Sequence[float]]
) -> str:
    """C14. What ‖v‖ did: parts growth, slowing, rates.

    factors: last ‖v‖ over first, one a run and layer; early_late: log growth in the two halves of the epochs
    at a constant rate, one pair a run; by_rate: growth at increasing rates, a sequence a seed and
    parameterization.
    """
    if not factors:
        return NOT_RUN
    share = float(np.mean([factor > 1 for factor in factors]))
    grown = part(holds=share >= paper.GROWN_LAYERS, fails=share < paper.SHRUNK_LAYERS)
    slower = [late < early for early, late in early_late]
    slowing = part(holds=bool(slower) and all(slower), fails=bool(slower) and not any(slower))
    ordered = [all(a < b for a, b in pairwise(rates)) for rates in by_rate]
    reversed_ = [rates[-1] <= rates[0] for rates in by_rate]
    rates = part(holds=bool(ordered) and all(ordered), fails=bool(ordered) and all(reversed_))
    return overall([grown, slowing, rates])


def exponential_g(differences: Mapping[str, Sequence[float]], direct: float) -> str:
    """C15. By variant, the relative differences in test error to direct g, one a seed; inf if it diverged.

    direct: test error of direct g, the largest of those compared with.
    """
    if not any(differences.values()):
        return NOT_RUN
    if direct > paper.UNTRAINED_ERROR:
        return INCONCLUSIVE
    parts: list[bool | None] = []
    for values in differences.values():
        if any(math.isinf(value) for value in values):
            parts.append(False)
        else:
            parts.append(inside(t_interval(values), -paper.G_MARGIN, paper.G_MARGIN))
    return overall(parts)


def bounded_norm(
    cvae: Sequence[tuple[float, float, int]], classification: Sequence[tuple[Sequence[float], int]]
) -> str:
    """C16. What ‖v‖ ≤ a does: part CVAE, part classification.

    cvae: by pair the final bounds in nats with it and without (−inf: diverged), and after how many epochs;
    classification: by variant the differences in test error, one a seed, relative to the error without it
    (not finite: diverged), and after how many epochs.
    """
    if not cvae and not classification:
        return NOT_RUN
    better = [bounded > free for bounded, free, epochs in cvae if epochs >= paper.CONVERGED_EPOCHS]
    enough = len(better) >= paper.FEWEST_PAIRS
    often = enough and sum(better) > paper.MOST_PAIRS * len(better)
    parts = [part(holds=often, fails=enough and not any(better))]
    for differences, epochs in classification or [((), 0)]:
        known = epochs >= paper.CONVERGED_EPOCHS and len(differences) >= paper.SEEDS and np.isfinite(differences).all()
        high = t_interval(differences)[1] if known else math.nan
        parts.append(part(holds=high >= 0, fails=high < 0))
    return overall(parts)

"""Estimates with intervals against a margin, exact tests, Holm's correction.

An estimate holds if p_holds ≤ 0.05, and fails if p_fails ≤ 0.05: its 95 % interval then lies wholly on one side of the
margin. The p-values are two-sided, but that of an equivalence is the larger of its two one-sided ones (TOST): it holds
if its 90 % interval lies within the margins.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import binomtest, bootstrap, hypergeom, trim_mean

LEVEL = 0.05  # two-sided; the intervals are 95 % ones, those of an equivalence 90 %
LOOKS = (3, 5, 10)  # the numbers of seeds at which a claim is judged
RESAMPLES = 10_000  # of the bootstrap over seeds

quiet = np.errstate(all="ignore")  # for those who call these: what overflows, or is not known, comes out not finite


@dataclass(frozen=True)
class Estimate:
    """What is compared, its estimate with an interval, the limits of what matters (`margin`), and two p-values."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p_holds: float = 1.0
    p_fails: float = 1.0
    margin: tuple[float, ...] = ()


def look(n: int) -> int:
    """The largest of `LOOKS` that n seeds reach; 0 below the first."""
    return max((one for one in LOOKS if one <= n), default=0)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; nan for fewer than two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def above(values: Sequence[float], others: Sequence[float]) -> float:
    """By how many standard errors of the difference mean(values) lies above mean(others); nan where not known."""
    e, error, _ = _difference("", values, others)
    return e.value / error if error else math.copysign(math.inf, e.value) if e.value else 0.0


def _p(distance: float, error: float, freedom: float) -> float:
    """Student's two-sided p-value of a distance with this standard error."""
    if not math.isfinite(distance) or math.isnan(error):
        return 1.0
    if error == 0:
        return 0.0 if distance else 1.0
    return 2 * float(stdtr(freedom, -abs(distance) / error))


def _decided(e: Estimate, p: float, holds: bool) -> Estimate:
    """A two-sided p-value is that of the side on which the estimate lies."""
    p = min(p, 1.0)
    return replace(e, p_holds=p, p_fails=1.0) if holds else replace(e, p_holds=1.0, p_fails=p)


def _by_t(e: Estimate, error: float, freedom: float, sign: int, of: int = 1) -> Estimate:
    """Above the margin (sign −1: below it)? Student's t, simultaneous over `of` (Bonferroni). No freedom: `e` as is."""
    if not freedom > 0:
        return e
    half, distance = float(stdtrit(freedom, 1 - LEVEL / 2 / of)) * error, e.value - e.margin[0]
    e = replace(e, low=e.value - half, high=e.value + half)
    return _decided(e, of * _p(distance, error, freedom), sign * distance > 0)


def beyond(name: str, values: Sequence[float], margin: float = 0.0, sign: int = 1) -> Estimate:
    """The mean of differences by seed: above the margin or, with sign −1, below it? A paired t-test."""
    n = len(values)
    e = Estimate(name, float(np.mean(values)) if n else math.nan, n=n, margin=(margin,))
    return _by_t(e, standard_error(values), n - 1, sign)


def _satterthwaite(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The standard error of the sum of the samples' means, and its degrees of freedom; nan if one has one value."""
    squares = np.array([standard_error(sample) ** 2 for sample in samples])
    sizes, whole = np.array([len(sample) - 1 for sample in samples]), float(squares.sum())
    shares = squares / whole if whole else np.ones(len(samples)) / len(samples)
    return math.sqrt(whole), 1 / float((shares**2 / sizes).sum())


def stratified(name: str, strata: Sequence[Sequence[float]], margin: float = 0.0, sign: int = 1) -> Estimate:
    """The mean over strata (games) of the means within each, as `beyond`; Satterthwaite's degrees of freedom."""
    n = min(map(len, strata))
    e = Estimate(name, float(np.mean([np.mean(s) for s in strata])) if n else math.nan, n=n, margin=(margin,))
    error, freedom = _satterthwaite(strata)
    return _by_t(e, error / len(strata), freedom, sign)


def _difference(name: str, a: Sequence[float], b: Sequence[float]) -> tuple[Estimate, float, float]:
    """mean(a) − mean(b) of samples that are not paired, its standard error and Welch's degrees of freedom."""
    n = min(len(a), len(b))
    e = Estimate(name, float(np.mean(a) - np.mean(b)) if n else math.nan, n=n, margin=(0.0,))
    return e, *_satterthwaite([a, b])


def smaller(name: str, a: Sequence[float], b: Sequence[float], of: int = 1) -> Estimate:
    """mean(a) − mean(b) of seeds that are not paired: below 0? Welch's, simultaneous over `of` of them (Bonferroni)."""
    return _by_t(*_difference(name, a, b), -1, of)


def equivalent(name: str, a: Sequence[float], margin: float, b: Sequence[float] | None = None) -> Estimate:
    """Whether the mean of differences by seed (with b: mean(a) − mean(b), unpaired) lies within ±margin: two one-sided
    tests of 5 % (TOST), whose 90 % interval it shows.
    """
    if b is None:
        e, error, freedom = beyond(name, a), standard_error(a), len(a) - 1.0
    else:
        e, error, freedom = _difference(name, a, b)
    e = Estimate(name, e.value, n=e.n, margin=(-margin, margin))
    if not freedom > 0:
        return e
    half, room = float(stdtrit(freedom, 1 - LEVEL)) * error, margin - abs(e.value)
    e = replace(e, low=e.value - half, high=e.value + half)
    return _decided(e, _p(room, error, freedom) / (2 if room > 0 else 1), room > 0)


def one_more(name: str, values: Sequence[float], published: float, margin: float, of: int = 1) -> Estimate:
    """Whether a published single number may be one more run of these, and their mean lies within ±margin of it.

    The interval is the prediction interval of one run, simultaneous over `of` of them. It fails where the number lies
    outside; holds where it lies inside and the mean is equivalent to it (TOST).
    """
    n = len(values)
    e = Estimate(name, float(np.mean(values)) if n else math.nan, n=n, margin=(published,))
    e = _by_t(e, standard_error(values) * math.sqrt(n + 1), n - 1, 0, of)
    same = equivalent(name, [value - published for value in values], margin)
    return replace(e, p_holds=same.p_holds if e.p_fails > LEVEL else 1.0)


def steadier(name: str, a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The ratio of paired samples' standard deviations, a over b: below 1? Pitman's and Morgan's test and interval."""
    n = len(a)
    ratio = np.std(a, ddof=1) / np.std(b, ddof=1) if n > 1 else np.float64(math.nan)
    e = Estimate(name, float(ratio), n=n, margin=(1.0,))
    if n < 3 or not math.isfinite(ratio) or not ratio:
        return e
    rest = max(1 - float(np.corrcoef(a, b)[0, 1]) ** 2, 1e-300)
    t = float((ratio**2 - 1) * math.sqrt(n - 2) / (2 * ratio * math.sqrt(rest)))
    k = 1 + 2 * rest * float(stdtrit(n - 2, 1 - LEVEL / 2)) ** 2 / (n - 2)
    factor = math.sqrt(k + math.sqrt(k**2 - 1))
    return _decided(replace(e, low=float(ratio / factor), high=float(ratio * factor)), _p(t, 1.0, n - 2), t < 0)


def share(name: str, k: int, n: int, limit: float, sign: int = 1) -> Estimate:
    """k of n runs, with Clopper's and Pearson's exact interval: above the limit or, with sign −1, below it?"""
    if not n:
        return Estimate(name, math.nan, margin=(limit,))
    low, high = binomtest(k, n).proportion_ci(1 - LEVEL, "exact")
    tails = [binomtest(k, n, limit, side).pvalue for side in ("greater", "less")]
    ours, theirs = (min(1.0, 2 * float(tail)) for tail in tails[::sign])
    return Estimate(name, k / n, float(low), float(high), n, ours, theirs, (limit,))


def less_often(name: str, ours: tuple[int, int], theirs: tuple[int, int]) -> Estimate:
    """k of n runs of each: our share less theirs, below 0? Fisher's exact test; Newcombe's interval."""
    (k, n), (m, others) = ours, theirs
    if not n or not others:
        return Estimate(name, math.nan, margin=(0.0,))
    tails = hypergeom.cdf([k, m], n + others, k + m, [n, others])
    p_holds, p_fails = (min(1.0, 2 * float(tail)) for tail in tails)
    both = [binomtest(*counts).proportion_ci(1 - LEVEL, "wilson") for counts in (ours, theirs)]
    a, b = k / n, m / others
    low = a - b - math.hypot(a - both[0].low, both[1].high - b)
    high = a - b + math.hypot(both[0].high - a, b - both[1].low)
    return Estimate(name, a - b, low, high, min(n, others), p_holds, p_fails, (0.0,))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values, by name."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def interquartile_mean(games: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Over games × seeds of scores, a sequence of seeds a game, and the ends of its 95 % interval by the bootstrap over
    the seeds within each game, always the same. nan where a score is not finite: it would be trimmed. As rliable's IQM.
    """

    def middle(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis))

    scores = [np.array(game) for game in games]
    if not np.isfinite(np.concatenate(scores)).all():
        return math.nan, math.nan, math.nan
    drawn = bootstrap(scores, middle, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0))
    low, high = map(float, drawn.confidence_interval)
    return float(middle(*scores)), low, high

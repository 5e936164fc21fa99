"""Estimates with intervals against a margin, exact tests, and Holm's correction.

An estimate holds if p_holds ≤ 0.05 and fails if p_fails ≤ 0.05: its 95 % interval then lies wholly on one side of the
margin. The p-values are two-sided. Only p_holds of an equivalence is the larger of two one-sided p-values (TOST): it
holds if its 90 % interval lies within the margins.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import binomtest, bootstrap, hypergeom, trim_mean

LEVEL = 0.05  # two-sided; intervals have 95 %, or 90 % for an equivalence
LOOKS = (3, 5, 10)  # the numbers of seeds at which a claim is judged
RESAMPLES = 10_000  # of the bootstrap over seeds

quiet = np.errstate(all="ignore")  # decorator: overflows and unknown values give non-finite numbers without a warning


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval, the limits of what matters (`margin`) and two p-values."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p_holds: float = 1.0
    p_fails: float = 1.0
    margin: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Contrast:
    """A weighted sum of the means of independent samples: Σ weight · mean."""

    n: int  # values in the smallest sample
    value: float
    error: float
    freedom: float  # Satterthwaite's degrees of freedom

    @staticmethod
    def of(samples: Sequence[Sequence[float]], weights: Sequence[float] = (1.0,)) -> "_Contrast":
        """Compute the contrast of samples, with nan if one has too few values."""
        n = min(map(len, samples))
        value = float(np.dot(weights, [np.mean(sample) for sample in samples])) if n else math.nan
        errors = np.array([weight * standard_error(one) for weight, one in zip(weights, samples, strict=True)])
        error = math.hypot(*errors)
        shares = (errors / error) ** 2 if error else np.full(len(samples), 1 / len(samples))
        freedom = 1 / float((shares**2 / [len(sample) - 1 for sample in samples]).sum())
        return _Contrast(n, value, error, freedom)

    def half(self, level: float) -> float:
        """Return half the width of the two-sided t-interval that misses the truth with probability `level`."""
        return float(stdtrit(self.freedom, 1 - level / 2)) * self.error

    def p(self, distance: float) -> float:
        """Return Student's two-sided p-value of a distance."""
        if not math.isfinite(distance) or math.isnan(self.error + self.freedom):
            return 1.0
        if not self.error:
            return 0.0 if distance else 1.0
        return 2 * float(stdtr(self.freedom, -abs(distance) / self.error))

    def test(self, name: str, margin: float, sign: int, comparisons: int = 1) -> Estimate:
        """Test whether the value lies above the margin (sign −1: below it): t-test with Bonferroni's correction."""
        distance, half = self.value - margin, self.half(LEVEL / comparisons)
        sides = _sides(comparisons * self.p(distance), sign * distance > 0)
        return Estimate(name, self.value, self.value - half, self.value + half, self.n, *sides, (margin,))


def _sides(p: float, holds: bool) -> tuple[float, float]:
    """Return p_holds and p_fails: a two-sided p-value belongs to the side on which the estimate lies."""
    return (min(p, 1.0), 1.0) if holds else (1.0, min(p, 1.0))


def look(n: int) -> int:
    """Return the largest of `LOOKS` that n seeds reach, or 0."""
    return max((one for one in LOOKS if one <= n), default=0)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, or nan for fewer than two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def welch_t(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Welch's t of mean(a) − mean(b), or nan if a sample has too few values."""
    gap = _Contrast.of([a, b], (1, -1))
    return gap.value / gap.error if gap.error else math.copysign(math.inf, gap.value) if gap.value else 0.0


def t_test(name: str, *strata: Sequence[float], margin: float = 0.0, sign: int = 1) -> Estimate:
    """Test whether the mean over strata (games) of the means over seeds lies above the margin (sign −1: below it)."""
    return _Contrast.of(strata, [1 / len(strata)] * len(strata)).test(name, margin, sign)


def welch(name: str, a: Sequence[float], b: Sequence[float], comparisons: int = 1) -> Estimate:
    """Test whether mean(a) − mean(b) of unpaired seeds lies below 0, with Bonferroni's correction."""
    return _Contrast.of([a, b], (1, -1)).test(name, 0.0, -1, comparisons)


def tost(name: str, a: Sequence[float], margin: float, b: Sequence[float] | None = None) -> Estimate:
    """Test by two one-sided tests whether mean(a), or mean(a) − mean(b) of unpaired seeds, lies within ±margin."""
    mean = _Contrast.of([a]) if b is None else _Contrast.of([a, b], (1, -1))
    half, room = mean.half(2 * LEVEL), margin - abs(mean.value)
    p = mean.p(room)
    sides = _sides(p / 2 if room > 0 and p < 1 else p, room > 0)
    return Estimate(name, mean.value, mean.value - half, mean.value + half, mean.n, *sides, (-margin, margin))


def prediction(name: str, values: Sequence[float], published: float, margin: float, comparisons: int = 1) -> Estimate:
    """Test whether a published number can be one further run, and whether the mean of the runs is equivalent to it.

    The interval is the prediction interval of one run, with Bonferroni's correction. The estimate fails if the number
    lies outside. It holds if the number lies inside and the mean lies within ±margin of it (TOST).
    """
    mean = _Contrast.of([values])
    e = replace(mean, error=mean.error * math.sqrt(mean.n + 1)).test(name, published, 0, comparisons)
    same = tost(name, [value - published for value in values], margin)
    return replace(e, p_holds=same.p_holds if e.p_fails > LEVEL else 1.0)


def pitman_morgan(name: str, a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Test whether the ratio of the standard deviations of paired samples, a over b, lies below 1."""
    n = len(a)
    ratio = np.std(a, ddof=1) / np.std(b, ddof=1) if n > 1 else np.float64(math.nan)
    if n < 3 or not math.isfinite(ratio) or not ratio:
        return Estimate(name, float(ratio), n=n, margin=(1.0,))
    rest = max(1 - float(np.corrcoef(a, b)[0, 1]) ** 2, 1e-300)
    t = float((ratio**2 - 1) * math.sqrt(n - 2) / (2 * ratio * math.sqrt(rest)))
    k = 1 + 2 * rest * float(stdtrit(n - 2, 1 - LEVEL / 2)) ** 2 / (n - 2)
    factor = math.sqrt(k + math.sqrt(k**2 - 1))
    sides = _sides(_Contrast(n, t, 1.0, n - 2).p(t), t < 0)
    return Estimate(name, float(ratio), float(ratio / factor), float(ratio * factor), n, *sides, (1.0,))


def binomial(name: str, k: int, n: int, limit: float, sign: int = 1) -> Estimate:
    """Test whether the share k/n lies above the limit (sign −1: below it), with Clopper's and Pearson's interval."""
    if not n:
        return Estimate(name, math.nan, margin=(limit,))
    low, high = binomtest(k, n).proportion_ci(1 - LEVEL, "exact")
    tails = [binomtest(k, n, limit, side).pvalue for side in ("greater", "less")]
    p_holds, p_fails = (min(1.0, 2 * float(tail)) for tail in tails[::sign])
    return Estimate(name, k / n, float(low), float(high), n, p_holds, p_fails, (limit,))


def fisher(name: str, ours: tuple[int, int], theirs: tuple[int, int]) -> Estimate:
    """Test whether the difference of two shares k/n lies below 0, by Fisher's exact test and Newcombe's interval."""
    (k, n), (m, others) = ours, theirs
    if not n or not others:
        return Estimate(name, math.nan, margin=(0.0,))
    p_holds, p_fails = (min(1.0, 2 * float(p)) for p in hypergeom.cdf([k, m], n + others, k + m, [n, others]))
    a, b = k / n, m / others
    ci, other_ci = (binomtest(*counts).proportion_ci(1 - LEVEL, "wilson") for counts in (ours, theirs))
    low = a - b - math.hypot(a - ci.low, other_ci.high - b)
    high = a - b + math.hypot(ci.high - a, b - other_ci.low)
    return Estimate(name, a - b, low, high, min(n, others), p_holds, p_fails, (0.0,))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values by name."""
    names = sorted(p_values, key=p_values.__getitem__)
    scaled = [min(1.0, (len(names) - rank) * p_values[name]) for rank, name in enumerate(names)]
    return dict(zip(names, itertools.accumulate(scaled, max), strict=True))


def interquartile_mean(games: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return rliable's interquartile mean over games × seeds, and its 95 % interval by a bootstrap over seeds.

    The bootstrap has a fixed seed. A non-finite score makes all nan, since trimming would hide it.
    """

    def middle(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis))

    scores = [np.array(game) for game in games]
    if not np.isfinite(np.concatenate(scores)).all():
        return math.nan, math.nan, math.nan
    drawn = bootstrap(scores, middle, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0))
    low, high = map(float, drawn.confidence_interval)
    return float(middle(*scores)), low, high

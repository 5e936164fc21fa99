"""C4 to C8, C13 to C15 and C16b to C19: the classifier of CIFAR-10, and the time of its training step."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from wnrepro import paper
from wnrepro.report.claims.claim import Claim, MarginTest, all_of, any_of, claim
from wnrepro.report.claims.evidence import Evidence, at_look, by_seed, ended, select, shared_epochs
from wnrepro.report.claims.units import DIFFERENCE, NUMBER, PERCENT, POINTS, RATIO, RELATIVE, SHARE
from wnrepro.report.stats import binomial, fisher, look, prediction, tost, welch
from wnrepro.results import Results, Run, Session, sessions
from wnrepro.text import count, plain

LEVEL_MARGIN = 1.0  # C4b: points; table 2 spans 1.15
ALIKE = 0.5  # C4a, C18b: points; the paper's own gaps are 0.4 and 0.7
FASTER = math.log(0.95)  # C5, C18a, C19: the smallest ratio of training errors that matters
NOTICEABLE = 1.03  # C7: a step this much slower is noticeable
SLOW = math.log(NOTICEABLE)
GAUSSIAN_KURTOSIS = 0.5  # C8: still near a Gaussian's 0 (a logistic distribution has 1.2, a Laplace distribution 3)
ENOUGH = 100  # C8: minibatches; one feature's kurtosis then has a standard error of √(24/100) = 0.5
RATES = 3  # C13: fewest learning rates that both have run with
DECIDING = 5  # C6, C13: fewest runs at a rate
SLOW_AND_FAST = (0.0003, 0.003)  # C14: learning rates
G_MARGIN = 0.05  # C15, C16b: of the test error
AVERAGED = 10.0  # C16b: epochs of the Polyak average
CURVES, NO_NUMBER = "curves of training error by epoch", "no number given"

# ------------------------------------------------------------------------------- test error

ERRORS = paper.TABLE2.items()
STEPS = (("wn+mobn", "bn"), ("bn", "wn"), ("bn", "normal"))
TABLE2 = ("table 2", ", ".join(f"{param} {error:.2f} %" for param, error in ERRORS), "test_error")
SIMULTANEOUS: dict[str, Any] = {
    "combine": functools.partial(all_of, simultaneous=True),
    "none": "no run at figure 1's rates",
}


def test_errors(evidence: Evidence, results: Results, *params: str) -> None:
    """Collect the final test errors of these parameterizations at figure 1's rates, in per cent."""
    runs = results.of("cifar").figure1
    for param in params or paper.TABLE2:
        evidence.collect(param, lambda run: 100 * run.final("test_error"), *select(runs, param))


@claim(
    *("C4a", *TABLE2),
    judge=lambda values: [
        *(welch(f"{a} − {b}", values[a], values[b], len(STEPS)) for a, b in STEPS),
        tost("wn − normal", values["wn"], ALIKE, values["normal"]),
    ],
    unit=POINTS,
    **SIMULTANEOUS,
)
def order(evidence: Evidence, results: Results) -> None:
    """Order of table 2's test errors: wn+mobn best, then bn, then wn and normal alike

    Final test errors at figure 1's learning rates. Simultaneous 95 % intervals (Welch, Bonferroni) of wn+mobn − bn,
    bn − wn and bn − normal wholly below 0 (any difference counts), and the 90 % interval of wn − normal (TOST) within
    ±{ALIKE:g} points: reproduced if all hold; not reproduced if one lies wholly above 0, or the 95 % interval of
    wn − normal wholly beyond ±{ALIKE:g} points; else inconclusive. {LOST}
    """
    test_errors(evidence, results)


@claim(
    *("C4b", *TABLE2),
    judge=lambda values: [prediction(param, values[param], e, LEVEL_MARGIN, len(ERRORS)) for param, e in ERRORS],
    unit=PERCENT,
    **SIMULTANEOUS,
)
def level(evidence: Evidence, results: Results) -> None:
    """Level of table 2's test errors

    Final test errors at figure 1's learning rates. Reproduced if, for all four, the paper's single number is compatible
    with one further run of ours (inside the simultaneous 95 % prediction interval of one run) and our mean lies within
    ±{LEVEL_MARGIN:g} point of it (TOST). Not reproduced if a number lies outside that interval. Else inconclusive.
    {LOST}
    """
    test_errors(evidence, results)


# ------------------------------------------------------------------------------- training error


def log_ratio(ours: Run, theirs: Run, part: float = 1.0) -> float:
    """Return the log ratio of two runs' mean training errors, over the first `part` of the epochs that both have."""
    rows = max(1, math.ceil(part * shared_epochs(ours, theirs)))
    means = [float(run.metrics["train_error"].to_numpy(float)[:rows].mean()) for run in (ours, theirs)]
    return math.log(means[0]) - math.log(means[1]) if min(means) > 0 else math.nan


def mean_error(run: Run) -> float:
    """Return the mean training error over the epochs, or infinity for a diverged run."""
    return math.inf if run.diverged else float(run.metrics["train_error"].to_numpy(float).mean())


def faster(id: str, ours: str, theirs: str = "normal") -> Claim:
    @claim(id, "figure 1; §5.1", CURVES, "figure1", MarginTest(-1, FASTER), ours=ours, theirs=theirs)
    def collect(evidence: Evidence, results: Results) -> None:
        """{ours} trains faster than {theirs}

        Ratio of the training errors' means over the epochs, {ours} over {theirs}, each at its best of §5.1's learning
        rates. Rates count that both have run with the most seeds; the best is chosen on the first seed, which is left
        out where there are more. {LOST}
        """
        runs, both = results.of("cifar").standard, {}
        for rate in paper.LEARNING_RATES:
            pairs = by_seed(*select(runs, ours, theirs, lr=rate))
            both[rate] = ended([pair for pair in pairs if all(run.epoch for run in pair)])
        if most := max(map(len, both.values())):
            rates = [rate for rate, pairs in both.items() if pairs and look(len(pairs)) == look(most)]
            chosen = [min(rates, key=lambda rate: mean_error(both[rate][0][i])) for i in (0, 1)]
            sides = [[pair[i] for pair in both[chosen[i]]][min(1, most - 1) :] for i in (0, 1)]
            evidence.collect("", log_ratio, *sides)
            evidence.remarks.append(f"{ours} at lr {chosen[0]:g}, {theirs} at lr {chosen[1]:g}")

    return collect


wn_is_faster, bn_is_faster = faster("C5a", "wn"), faster("C5b", "bn")


@claim("C18a", "§5.1; figure 1", "faster progress per epoch in the beginning", "figure1", MarginTest(-1, FASTER))
def bn_is_ahead_early(evidence: Evidence, results: Results) -> None:
    """bn is ahead of wn early in training

    Ratio of the training errors' means over the first tenth of the epochs, bn over wn, at figure 1's rates. {LOST}
    """
    evidence.collect("", functools.partial(log_ratio, part=0.1), *select(results.of("cifar").figure1, "bn", "wn"))


PAIRS = (("bn", "wn"), ("wn+mobn", "wn"), ("wn+mobn", "bn"))
GAPS = [MarginTest(0, ALIKE, f"{a} − {b}", POINTS) for a, b in PAIRS]


@claim("C18b", "§5.1; figure 1", CURVES, "figure1", *GAPS, none="no seed has runs of two of them")
def alike_at_the_end(evidence: Evidence, results: Results) -> None:
    """wn, bn and wn+mobn end at a similar training error

    Differences in final training error, in points, at figure 1's rates. {LOST}
    """
    for test, pair in zip(GAPS, PAIRS, strict=True):
        runs = select(results.of("cifar").figure1, *pair)
        evidence.collect(test.name, lambda x, y: 100 * (x.final("train_error") - y.final("train_error")), *runs)


# ------------------------------------------------------------------------------- learning rates


def failed(run: Run, limit: float) -> bool:
    return run.diverged or not run.final("train_error") <= limit


@claim(
    *("C6", "figure 1, caption", f"{paper.DIVERGING_LR:g} leads to divergence", "learning_rates"),
    judge=lambda values: [binomial("", values[""][0], values[""][1], 1 / 3)],
    unit=SHARE,
    none=f"no run of normal at {paper.DIVERGING_LR:g} has ended",
    seeds=DECIDING,
)
def diverging(evidence: Evidence, results: Results) -> None:
    """normal diverges at learning rate {paper.DIVERGING_LR:g}

    Share of normal's runs there that diverge, or end above a training error of 50 %, with its exact 95 % interval,
    ≥ {DECIDING} runs: reproduced if wholly above one third, not reproduced if wholly below, else inconclusive.
    """
    (runs,) = select(results.of("cifar").standard, "normal", lr=paper.DIVERGING_LR)
    if over := at_look([run for run in runs if run.over]):
        evidence.use(*over)
        evidence.values[""] = sum(failed(run, 0.5) for run in over), len(over)
        if finals := [100 * run.final("train_error") for run in over if run.done]:
            evidence.remarks.append(
                f"the others end at a mean training error of {plain(float(np.mean(finals)), unit=' %')}"
            )


def wider_range(id: str, ours: str, theirs: str) -> Claim:
    @claim(
        *(id, "§6.2", NO_NUMBER, "learning_rates"),
        judge=lambda values: [fisher(name, *counts) for name, counts in values.items()],
        combine=any_of,
        unit=DIFFERENCE,
        none=f"both have ended at fewer than {RATES} learning rates",
        seeds=DECIDING,
        a=ours,
        b=theirs,
    )
    def collect(evidence: Evidence, results: Results) -> None:
        """{a} works over a wider range of learning rates than {b}

        A run fails if it diverges, or ends with a training error more than 5 points above the lowest mean of either. At
        each of §5.1's learning rates that both have run with the most seeds (≥ {RATES} rates, ≥ {DECIDING} runs of
        each): the share that fails, {a} − {b}, by Fisher's exact test with Bonferroni over the rates. Reproduced if {a}
        fails less often at one of them and more often at none; not reproduced if it fails more often at one and less
        often at none; else, a tie too, inconclusive. Shown: Newcombe's 95 % interval of each difference.
        """
        over = [run for run in results.of("cifar").standard if run.over]
        grid = {rate: list(map(at_look, select(over, ours, theirs, lr=rate))) for rate in paper.LEARNING_RATES}
        fewest = {rate: min(map(len, both)) for rate, both in grid.items()}
        rates = [rate for rate, n in fewest.items() if n and n >= look(max(fewest.values()))]
        if len(rates) < RATES:
            return
        finals = [[run.final("train_error") for run in runs if run.done] for rate in rates for runs in grid[rate]]
        limit = min((float(np.mean(errors)) for errors in finals if errors), default=1.0) + 0.05
        for rate in rates:
            evidence.count_failures(f"lr {rate:g}", lambda run: failed(run, limit), *grid[rate])
        counts = [[f"{k}/{n}" for k, n in some] for some in zip(*evidence.values.values(), strict=True)]
        at = ", ".join(f"{rate:g}" for rate in rates)
        evidence.remarks.append(f"failed at lr {at}: {ours} {', '.join(counts[0])}, {theirs} {', '.join(counts[1])}")

    return collect


wn_has_a_wider_range = wider_range("C13", "wn", "normal")

# ------------------------------------------------------------------------------- time of a step


def step_time(id: str, ours: str, theirs: str, where: str, printed: str, said: str, test: MarginTest) -> Claim:
    names = [f"{param} / normal" for param in (ours, theirs) if param != "normal"]

    def log_time(session: Session) -> float:
        logs = [math.log(session.ratios[name].median) for name in names]
        return logs[0] - sum(logs[1:])

    @claim(id, where, printed, "step_time", test, a=ours, b=theirs, said=said, none="bench/ has no step times of cifar")
    def collect(evidence: Evidence, results: Results) -> None:
        """{said}

        Ratio of the step times, {a} over {b}, a number a session (one `wnrepro bench` at the paper's settings: the
        median of its paired rounds) in place of a seed. Judged on one device, torch version and precision of your
        own results, a GPU before a CPU, the one with the most sessions; the others are named.
        """
        every = sessions(results, "cifar").items()
        timed = {key: [one for one in some if one.ratios.keys() >= {*names}] for key, some in every}
        timed = {key: some for key, some in timed.items() if some}
        if timed:
            best = max(timed, key=lambda key: ("thread" not in key[0], len(timed[key]), key))
            judged = at_look(timed.pop(best))
            evidence.use(*judged)
            evidence.values[""] = [log_time(one) for one in judged]
            evidence.basis, evidence.devices = count(len(judged), "session"), (" with torch ".join(best),)
            for key, some in list(timed.items())[:10]:
                ratio = RATIO.number(float(np.mean([log_time(one) for one in some])))
                evidence.remarks.append(f"on {' with torch '.join(key if key[1] != best[1] else key[:1])}: {ratio}")

    return collect


bn_is_slower = step_time(*("C7a", "bn", "normal", "§5.1", "+16 %", "bn makes a step slower"), MarginTest(1, SLOW))
wn_is_not_slower = step_time(
    *("C7b", "wn", "normal", "§5.1", "not noticeable", "wn does not make a step noticeably slower"),
    MarginTest(-1, SLOW),
)
mobn_is_cheaper = step_time(
    *("C17", "wn+mobn", "bn", "§4", "less overhead; no number given", "Mean-only bn costs less a step than bn"),
    MarginTest(-1, math.log(0.99)),
)

# ------------------------------------------------------------------------------- noise

NOISE = f"At figure 1's rates, ≥ {ENOUGH} minibatches; median over features and layers, mean over the epochs measured."
UNMEASURED = {"none": "no run has measured the statistics of enough minibatches"}
GAUSSIAN, KURTOTIC = (MarginTest(sign, GAUSSIAN_KURTOSIS, unit=NUMBER) for sign in (0, 1))


def middle(run: Run, column: str) -> float:
    """Return the mean over the measured epochs of the median over layers, or nan if a number is not finite."""
    finite = np.isfinite(run.noise[column]).all()
    return float(run.noise.groupby("epoch")[column].median().mean()) if finite else math.nan


def log_size(run: Run) -> float:
    size = middle(run, "noise_size")
    return math.log(size) if size > 0 else math.nan


def measured(results: Results, *params: str) -> list[list[Run]]:
    """Return the runs at figure 1's rates that measured the noise on enough minibatches."""
    runs = [run for run in results.of("cifar").figure1 if run.noise["kurtosis_mean"].notna().any()]
    return select((run for run in runs if run.noise["minibatches"].min() >= ENOUGH), *params)


@claim("C8a", "§4; §5.1", NO_NUMBER, "noise_kurtosis", GAUSSIAN, **UNMEASURED)
def gaussian_noise(evidence: Evidence, results: Results) -> None:
    """The noise that mean-only bn adds is close to Gaussian

    Excess kurtosis over minibatches of a pre-activation's minibatch mean, under wn+mobn, bias-corrected. {NOISE} {LOST}
    """
    evidence.collect("", lambda run: middle(run, "kurtosis_mean"), *measured(results, "wn+mobn"))


@claim("C8b", "§4; §5.1", NO_NUMBER, "noise_kurtosis", KURTOTIC, **UNMEASURED)
def kurtotic_noise(evidence: Evidence, results: Results) -> None:
    """bn's noise has a much higher kurtosis than that of mean-only bn

    Excess kurtosis over minibatches of bn's 1/σ_B less that of wn+mobn's μ_B, bias-corrected; much: by more than what
    C8a still calls Gaussian. {NOISE} {LOST}
    """
    pair = measured(results, "bn", "wn+mobn")
    evidence.collect("", lambda bn, mobn: middle(bn, "kurtosis_inverse_std") - middle(mobn, "kurtosis_mean"), *pair)


@claim("C8c", "§4", NO_NUMBER, "noise_kurtosis", MarginTest(-1, FASTER), **UNMEASURED)
def less_noise(evidence: Evidence, results: Results) -> None:
    """Mean-only bn adds less noise than bn

    Ratio of the noise's root mean square in the normalized pre-activations, wn+mobn over bn. {NOISE} {LOST}
    """
    evidence.collect("", lambda mobn, bn: log_size(mobn) - log_size(bn), *measured(results, "wn+mobn", "bn"))


# ------------------------------------------------------------------------------- ‖v‖ and g

GROWTH, SLOWING, BY_RATE = (
    MarginTest(1, math.log(1.01), "growth"),
    MarginTest(-1, 0, "later less earlier growth", RELATIVE),
    MarginTest(1, math.log(1.01), "‖v‖ at the larger rate over that at the smaller"),
)
EXPONENTIAL = {c: MarginTest(0, G_MARGIN, f"c = {c}", RELATIVE) for c in (1, 3, 5)}
NO_BETTER, NO_FASTER = (
    MarginTest(1, -G_MARGIN, unit=RELATIVE),
    MarginTest(1, FASTER),
)


def log_norms(run: Run) -> np.ndarray:
    """Return by epoch, from 0, the mean over layers of log(‖v‖ / ‖v‖ at the start)."""
    norms = run.layers.pivot(index="epoch", columns="layer", values="v_norm_mean").to_numpy(float)
    return np.asarray(np.log(norms / norms[0]).mean(axis=1))


def slowing(run: Run) -> float:
    """Return the relative growth of ‖v‖ in the later half of the epochs at a constant rate less the earlier half's."""
    norms = np.exp(log_norms(run))
    half = min(len(norms) - 1, run.decay_from) // 2
    return float(norms[2 * half] - 2 * norms[half] + norms[0])


@claim("C14", "§6.2", NO_NUMBER, "norm_growth", GROWTH, SLOWING, BY_RATE, none="no ‖v‖ logged")
def growing(evidence: Evidence, results: Results) -> None:
    """‖v‖ grows during training, more at a larger learning rate, and its growth slows down

    Of wn without a bound, geometric means over layers: ‖v‖ at the end over its start, at lr {SLOW_AND_FAST[1]:g}; what
    it grows in the later half of the epochs at a constant rate less what it grows in the earlier half, over its start
    (linear growth, under which ‖Δv‖/‖v‖ falls too, is no slowing); and ‖v‖ at the end at lr {SLOW_AND_FAST[1]:g} over
    that at lr {SLOW_AND_FAST[0]:g}. {LOST}
    """
    runs = [run for run in results.of("cifar").standard if run.diverged or run.layers["epoch"].nunique() > 1]
    low, high = (select(runs, "wn", lr=rate)[0] for rate in SLOW_AND_FAST)
    evidence.collect(GROWTH.name, lambda run: float(log_norms(run)[-1]), high)
    diverged = evidence.diverged[:]  # the other two tests use the same runs
    evidence.collect(SLOWING.name, slowing, high)
    evidence.collect(BY_RATE.name, lambda fast, slow: float(log_norms(fast)[-1] - log_norms(slow)[-1]), high, low)
    evidence.diverged = diverged


def relative_error(ours: Run, theirs: Run) -> float:
    """Return the difference of the final test errors over theirs."""
    return ours.final("test_error") / (theirs.final("test_error") or math.nan) - 1


@claim("C15", "§6.1", NO_NUMBER, "variants", *EXPONENTIAL.values(), none="no pair of runs with exp(c·s) and direct g")
def exponential_g(evidence: Evidence, results: Results) -> None:
    """g = exp(c·s), c from 1 to 5, is neither better nor worse at test than direct g

    Relative difference in final test error of wn to direct g, at figure 1's rate. {LOST}
    """
    runs = results.of("cifar").at_rate("g_exp")
    for c, test in EXPONENTIAL.items():
        pair = [select(runs, "wn", g_exp=factor)[0] for factor in (c, None)]
        evidence.collect(test.name, relative_error, *pair, name=test.name)


def collect_bounded(evidence: Evidence, results: Results, number: Callable[..., float], epochs: float | None) -> None:
    """Compare wn with and without ‖v‖ ≤ a, averaged over these epochs. Diverged bounded runs are only remarks."""
    runs = results.of("cifar").at_rate("v_norm_max", "polyak_epochs")
    pair = [select(runs, "wn", polyak_epochs=epochs, v_norm_max=bound)[0] for bound in (paper.V_NORM_MAX, None)]
    evidence.collect("", number, *pair, name=f"wn with ‖v‖ ≤ {paper.V_NORM_MAX:g}")
    evidence.remarks += map(SHARE.words, evidence.diverged)
    evidence.diverged = []


@claim(
    *("C16b", "§6.2", "no improvement; no number given", "variants", MarginTest(1, -G_MARGIN, unit=RELATIVE)),
    none="no pair of averaged runs with and without the bound",
)
def bounded_error(evidence: Evidence, results: Results) -> None:
    """Bounding ‖v‖ ≤ {paper.V_NORM_MAX:g} with Polyak averaging does not improve classification

    Relative difference in final test error, wn with the bound to wn without, both averaged over {AVERAGED:g} epochs, at
    figure 1's rate. Pairs of which one diverges are left out. The claim leaves out reinforcement learning, of which the
    paper says the same.
    """
    collect_bounded(evidence, results, relative_error, AVERAGED)


@claim(
    *("C19", "§6.2", "no noticeable improvement of convergence speed", "variants", MarginTest(1, FASTER)),
    none="no pair of runs with and without the bound",
)
def bounded_speed(evidence: Evidence, results: Results) -> None:
    """Bounding ‖v‖ does not speed up convergence

    Ratio of the training errors' means over the epochs, wn with ‖v‖ ≤ {paper.V_NORM_MAX:g} over wn without, at figure
    1's rate. Pairs of which one diverges are left out.
    """
    collect_bounded(evidence, results, log_ratio, None)

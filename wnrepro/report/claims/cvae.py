"""C9 and C16a: the convolutional VAEs of MNIST and CIFAR-10."""

import math

import numpy as np

from wnrepro import paper
from wnrepro.report.claims.claim import BITS, NATS, Evidence, Test, Unit, Values, any_of, claim, of, plain, shared
from wnrepro.report.stats import steadier
from wnrepro.results import Results, Run

BETTER, BITS_SAVED = 0.1, 0.005  # nats (MNIST), bits per dimension (CIFAR-10): the smallest differences that matter
PAIRS = 5  # C9b: with 5 pairs its power is that of the F test with 15 to 127 seeds
CORRELATION = 0.95  # of the bounds of wn and normal over seeds, for C9b's power


def bounds(*pair: Run) -> list[float]:
    """The test bounds of the averaged parameters at the last epoch of both: in nats; CIFAR-10: −bits per dimension."""
    column, sign = ("test_bound_nats", 1) if pair[0].dataset == "mnist" else ("test_bits_per_dim", -1)
    return [sign * float(run.metrics[column].iloc[shared(*pair) - 1]) for run in pair]


def gain(ours: Run, theirs: Run) -> float:
    first, second = bounds(ours, theirs)
    return first - second


@claim(
    *("C9a", "figure 2; §5.2", "curves of the test bound by epoch", "figure2"),
    Test(1, BETTER, 0.5, 0, 0.15, "mnist", NATS),
    Test(1, BITS_SAVED, 0.03, 0, 0.01, "cifar10", BITS),
)
def better(results: Results) -> Evidence:
    """CVAE: wn converges to a better bound than normal

    Test bound of the averaged parameters after the scale's epochs, wn − normal; of CIFAR-10 the bits saved. {LOST}
    """
    evidence = Evidence()
    for dataset in paper.FIGURE2:
        runs = results.of("cvae", dataset).at_rate()
        evidence.compare(dataset, of(runs, "wn"), of(runs, "normal"), gain, f"{dataset}: wn")
    return evidence


def steady_world(rng: np.random.Generator, n: int, true: bool) -> Values:
    normal = rng.normal(size=n)
    wn = CORRELATION * normal + math.sqrt(1 - CORRELATION**2) * rng.normal(size=n)
    return {"": ((0.5 if true else 1.0) * wn, normal)}


@claim(
    *("C9b", "figure 2; §5.2", "standard error bars over seeds", "figure2"),
    judge=lambda values: [steadier("", *values[""])],
    unit=Unit(2, "", sign=False),
    seeds=PAIRS,
    world=steady_world,
    assumed=f"wn's standard deviation is half of normal's, correlation {CORRELATION:g}",
    null="the same standard deviation",
)
def steady(results: Results) -> Evidence:
    """CVAE: wn has a lower variance over seeds than normal, on MNIST

    Ratio of the standard deviations over seeds of the final test bound, wn over normal, paired by seed, with Pitman's
    and Morgan's 95 % interval (which takes the bounds for normally distributed over seeds), ≥ {PAIRS} seeds: reproduced
    if wholly below 1 (any difference counts), not reproduced if wholly above, else inconclusive. {LOST}
    """
    evidence, runs = Evidence(), results.of("cvae", "mnist").at_rate()
    if pairs := evidence.pairs(of(runs, "wn"), of(runs, "normal")):
        both = [bounds(*pair) for pair in pairs]
        evidence.finite(float(np.sum(both)), *(run for pair in pairs for run in pair))
        evidence.values[""] = wn, normal = [tuple(one) for one in zip(*both, strict=True)]
        spreads = [plain(float(np.std(one, ddof=1))) if len(pairs) > 1 else "–" for one in (wn, normal)]
        evidence.said.append(f"standard deviation {spreads[0]} against {spreads[1]} nats")
    return evidence


HELPED = Test(1, BETTER, 0.5, 0, 0.15, "mnist", NATS), Test(1, BITS_SAVED, 0.03, 0, 0.01, "cifar10", BITS)


@claim(
    "C16a", "§6.2", "no number given", "variants", *HELPED, combine=any_of, none="no pair with and without the bound"
)
def bounded(results: Results) -> Evidence:
    """Bounding ‖v‖ ≤ {paper.V_NORM_MAX:g} with Polyak averaging often helps the CVAE

    Test bound after the scale's epochs of wn with the bound less wn without; of CIFAR-10 the bits saved. {LOST}
    """
    evidence = Evidence()
    for dataset in paper.FIGURE2:
        runs = of(results.of("cvae", dataset).at_rate("v_norm_max"), "wn")
        ours = [run for run in runs if run.settings.get("v_norm_max") == paper.V_NORM_MAX]
        free = [run for run in runs if run.settings.get("v_norm_max") is None]
        evidence.compare(dataset, ours, free, gain, f"{dataset}: wn with ‖v‖ ≤ {paper.V_NORM_MAX:g}")
    return evidence

"""C9 and C16a: the convolutional VAEs of MNIST and CIFAR-10."""

import operator

import numpy as np

from wnrepro import paper
from wnrepro.report.claims.claim import MarginTest, any_of, claim
from wnrepro.report.claims.evidence import Evidence, select, shared_epochs
from wnrepro.report.claims.units import BITS, FACTOR, NATS
from wnrepro.report.stats import pitman_morgan
from wnrepro.results import Results, Run
from wnrepro.text import plain

BETTER, BITS_SAVED = 0.1, 0.005  # nats (MNIST), bits per dimension (CIFAR-10): the smallest differences that matter
GAINS = MarginTest(1, BETTER, "mnist", NATS), MarginTest(1, BITS_SAVED, "cifar10", BITS)
PAIRS = 5  # C9b: 5 pairs have the power of the F test with 15 to 127 seeds


def bounds(*pair: Run) -> list[float]:
    """Return both runs' test bounds at their last common epoch, in nats or, for CIFAR-10, −bits per dimension."""
    column, sign = ("test_bits_per_dim", -1) if pair[0].dataset == "cifar10" else ("test_bound_nats", 1)
    return [sign * float(run.metrics[column].iloc[shared_epochs(*pair) - 1]) for run in pair]


def gain(ours: Run, theirs: Run) -> float:
    return operator.sub(*bounds(ours, theirs))


@claim("C9a", "figure 2; §5.2", "curves of the test bound by epoch", "figure2", *GAINS)
def better(evidence: Evidence, results: Results) -> None:
    """CVAE: wn converges to a better bound than normal

    Test bound of the averaged parameters after the scale's epochs, wn − normal; of CIFAR-10 the bits saved. {LOST}
    """
    for dataset in paper.FIGURE2:
        pair = select(results.of("cvae", dataset).at_rate(), "wn", "normal")
        evidence.collect(dataset, gain, *pair, name=f"{dataset}: wn")


@claim(
    *("C9b", "figure 2; §5.2", "standard error bars over seeds", "figure2"),
    judge=lambda values: [pitman_morgan("", *values[""])],
    unit=FACTOR,
    seeds=PAIRS,
    fewest=2,
)
def steady(evidence: Evidence, results: Results) -> None:
    """CVAE: wn has a lower variance over seeds than normal, on MNIST

    Ratio of the standard deviations over seeds of the final test bound, wn over normal, paired by seed, with Pitman's
    and Morgan's 95 % interval (which takes the bounds for normally distributed over seeds), ≥ {PAIRS} seeds: reproduced
    if wholly below 1 (any difference counts), not reproduced if wholly above, else inconclusive. {LOST}
    """
    if pairs := evidence.pairs(*select(results.of("cvae", "mnist").at_rate(), "wn", "normal")):
        evidence.values[""] = both = [*zip(*(bounds(*pair) for pair in pairs), strict=True)]
        evidence.finite(float(np.sum(both)), *(run for pair in pairs for run in pair))
        spreads = [plain(float(np.std(one, ddof=1))) if len(pairs) > 1 else "–" for one in both]
        evidence.remarks.append(f"standard deviations: wn {spreads[0]}, normal {spreads[1]} nats")


@claim(
    "C16a",
    "§6.2",
    "no number given",
    "variants",
    *GAINS,
    combine=any_of,
    none="no pair of runs with and without the bound",
)
def bounded(evidence: Evidence, results: Results) -> None:
    """Bounding ‖v‖ ≤ {paper.V_NORM_MAX:g} with Polyak averaging often helps the CVAE

    Test bound after the scale's epochs of wn with the bound less wn without; of CIFAR-10 the bits saved. {LOST}
    """
    for dataset in paper.FIGURE2:
        runs = results.of("cvae", dataset).at_rate("v_norm_max")
        pair = [select(runs, "wn", v_norm_max=bound)[0] for bound in (paper.V_NORM_MAX, None)]
        evidence.collect(dataset, gain, *pair, name=f"{dataset}: wn with ‖v‖ ≤ {paper.V_NORM_MAX:g}")

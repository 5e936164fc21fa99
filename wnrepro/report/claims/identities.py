"""C1 to C3: that the code does what the paper defines. Checks of the implementation, at every scale."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wnrepro.report.claims.claim import Evidence, Unit, Values, claim, count, plain
from wnrepro.report.stats import Estimate, quiet
from wnrepro.results import Results
from wnrepro.settings import PARAMS

IDENTITY_LIMIT = 1e-10  # relative residual in float64, whose rounding is about 1e-16 an operation
INIT_MEAN = 1e-3  # |mean| of a pre-activation over the init batch, in its standard deviations
INIT_VARIANCE = 1e-2  # |variance − 1|
INIT_LOSS = 1e-3  # spread of the four initial losses of a start over their mean


def rounded_up(value: float) -> str:
    """`2.3e-16`: two digits, rounded up."""
    if not math.isfinite(value) or value <= 0:
        return plain(value, "g")
    power = math.floor(math.log10(value))
    return f"{math.ceil(round(value / 10.0**power * 10, 6)) / 10:.1f}e{power:+03d}"


@dataclass(frozen=True)
class Bound(Unit):
    """Of checks: the largest value."""

    def words(self, e: Estimate) -> str:
        return f"{e.name} ≤ {rounded_up(e.value)} (n = {e.n})" if e.n else f"{e.name} not measured"


CHECK: dict[str, Any] = {"unit": Bound(), "check": True}


def at_most(name: str, values: Iterable[float], limit: float) -> Estimate:
    """Whether the largest of the distinct values lies at or below a limit; nothing measured decides nothing."""
    distinct = set(values)
    if not distinct:
        return Estimate(name, math.nan)
    largest = float(np.max(list(distinct)))  # nan where one is
    good = largest <= limit
    return Estimate(name, largest, n=len(distinct), p_holds=0.0 if good else 1.0, p_fails=1.0 if good else 0.0)


def facts(results: Results, *names: str) -> Evidence:
    """These numbers of run.json, of every run."""
    evidence = Evidence()
    for run in results.runs:
        for name in names:
            if name in run.facts:
                evidence.values.setdefault(name, []).append(evidence.finite(abs(run.facts[name]), run))
                evidence.use(run)
    return evidence


def residuals(*names: str) -> dict[str, Any]:
    """What the claim that these residuals are rounding alone has."""
    judge = lambda values: [at_most(name, values.get(name, ()), IDENTITY_LIMIT) for name in names]  # noqa: E731
    return {**CHECK, "judge": judge, "none": "no residual measured"}


@quiet
def spread(losses: Sequence[float]) -> float:
    """How far they lie apart, over their mean; nan where one, or the mean, is not finite."""
    mean = float(np.mean(losses))
    return (max(losses) - min(losses)) / mean if math.isfinite(mean) and mean else math.nan


def same_start(values: Values) -> list[Estimate]:
    return [
        at_most("|mean|", values.get("mean", ()), INIT_MEAN),
        at_most("|variance − 1|", [abs(value - 1) for value in values.get("variance", ())], INIT_VARIANCE),
        at_most("spread of the four initial losses over their mean", values["losses"], INIT_LOSS),
    ]


@claim("C1", "§2, §2.1, eq. 2 and 3; §6.2", "an identity", "", **residuals("eq3_residual", "v_dot_grad_v"))
def gradients(results: Results) -> Evidence:
    """wn splits a weight's norm from its direction; its gradients are eq. 3, and v·∇v L = 0

    Largest relative residual of both identities over the runs, in float64: reproduced if ≤ {IDENTITY_LIMIT:g}, else not
    reproduced; inconclusive if only one was measured. n: distinct residuals.
    """
    return facts(results, "eq3_residual", "v_dot_grad_v")


@claim("C2", "§2.2", "an identity", "", **residuals("wn_is_bn_residual"))
def wn_is_bn(results: Results) -> Evidence:
    """For a single layer on whitened input, wn and bn are the same function

    Largest relative residual between a layer of wn and a layer of bn over the runs, in float64: reproduced if ≤
    {IDENTITY_LIMIT:g}, else not reproduced. n: distinct residuals.
    """
    return facts(results, "wn_is_bn_residual")


@claim(
    *("C3", "§3, eq. 4 and 5; §5.1", "mean 0, variance 1, identical starts", "init"),
    **CHECK,
    judge=same_start,
    none="no init measured",
)
def starts(results: Results) -> Evidence:
    """The data-dependent init gives every pre-activation mean 0 and variance 1, and all four parameterizations start as
    the same function

    Reproduced if in every layer of every run |mean| ≤ {INIT_MEAN:g} and |variance − 1| ≤ {INIT_VARIANCE:g} on the init
    batch, and the four initial losses of a start (experiment, data set, seed, kind of device) agree to {INIT_LOSS:g} of
    their mean. Not reproduced if any of these fails. Inconclusive while no start has all four.
    """
    evidence = Evidence()
    begun: dict[tuple[str, str | None, int, str], dict[str, list[float]]] = {}
    for part in results.parts.values():
        for run in (run for run in part.in_precision if len(run.init)):
            for name, columns in (("mean", ["mean_abs_max"]), ("variance", ["variance_min", "variance_max"])):
                values = run.init[columns].to_numpy(float).ravel()
                evidence.values.setdefault(name, []).extend(values)
                evidence.finite(float(values.sum()), run)
            evidence.use(run)
        for run in (run for run in part.standard if "init_loss" in run.facts):
            device = str(run.record.get("device")).split(":")[0]  # a seed draws other numbers on a GPU
            start = begun.setdefault((run.experiment, run.dataset, run.seed, device), {})
            start.setdefault(run.param, []).append(evidence.finite(run.facts["init_loss"], run))
            evidence.use(run)
    complete = [list(itertools.chain(*start.values())) for start in begun.values() if len(start) == len(PARAMS)]
    evidence.values["losses"] = [spread(losses) for losses in complete]
    if variances := evidence.values.get("variance"):
        ends = " to ".join(plain(value, ".4f") for value in (np.min(variances), np.max(variances)))
        evidence.said.append(f"variance {ends} in {count(len(evidence.used), 'run')}")
    return evidence if evidence.used else Evidence()

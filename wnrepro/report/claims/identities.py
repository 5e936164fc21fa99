"""C1 to C3: checks, at every scale, that the implementation does what the paper defines."""

import decimal
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wnrepro.report.claims.claim import claim
from wnrepro.report.claims.evidence import Evidence
from wnrepro.report.claims.units import Unit
from wnrepro.report.stats import Estimate
from wnrepro.results import Results, Run
from wnrepro.settings import PARAMS
from wnrepro.text import count, plain

IDENTITY_LIMIT = 1e-10  # relative residual in float64, whose rounding is about 1e-16 per operation
INIT_MEAN = 1e-3  # |mean| of a pre-activation over the init batch, in its standard deviations
INIT_VARIANCE = 1e-2  # |variance − 1|
INIT_LOSS = 1e-3  # spread of the four initial losses of a start over their mean
ROUNDED_UP = decimal.Context(prec=2, rounding=decimal.ROUND_UP)
MEAN, VARIANCE, LOSSES = "|mean|", "|variance − 1|", "relative spread of the four initial losses"
# Numbers of run.json, and what they are.
RESIDUALS = {"eq3_residual": "residual of eq. 3", "v_dot_grad_v": "residual of v·∇v L"}
BN_RESIDUAL = {"wn_is_bn_residual": "residual of wn − bn"}


class UpperBound(Unit):
    """The unit of checks: the largest value, rounded up."""

    def number(self, value: float) -> str:
        """Format a value, rounded up, such as `2.3e-16`."""
        if not math.isfinite(value) or not value:
            return plain(value, "g")
        return f"{float(ROUNDED_UP.create_decimal(repr(value))):.1e}"

    def words(self, e: Estimate) -> str:
        return f"{e.name} ≤ {self.number(e.value)} (n = {e.n})" if e.n else f"{e.name}: not measured"


def at_most(name: str, values: Iterable[float], limit: float) -> Estimate:
    """Test whether the largest of the distinct values is at most a limit. Without values nothing holds or fails."""
    distinct = {abs(value) for value in values}
    largest = float(np.max([*distinct])) if distinct else math.nan  # nan if any value is
    good = largest <= limit
    return Estimate(name, largest, n=len(distinct), p_holds=float(not good), p_fails=float(good or not distinct))


def check(none: str, limits: dict[str, float]) -> dict[str, Any]:
    """Return the fields of a check that the numbers of these names are at most their limits."""
    judge = lambda values: [at_most(name, values[name], limit) for name, limit in limits.items()]  # noqa: E731
    return {"judge": judge, "unit": UpperBound(), "check": True, "none": none}


def collect_facts(evidence: Evidence, results: Results, names: Mapping[str, str]) -> None:
    """Collect these numbers of run.json of every run, under their names in the report."""
    for run in results.runs:
        for name, said in names.items():
            if name in run.facts:
                evidence.values[said].append(evidence.finite(abs(run.facts[name]), run))
                evidence.use(run)


@claim(
    *("C1", "§2, §2.1, eq. 2 and 3; §6.2", "an identity", ""),
    **check("no residual measured", dict.fromkeys(RESIDUALS.values(), IDENTITY_LIMIT)),
)
def gradients(evidence: Evidence, results: Results) -> None:
    """wn splits a weight's norm from its direction; its gradients are eq. 3, and v·∇v L = 0

    Largest relative residual of both identities over the runs, in float64: reproduced if ≤ {IDENTITY_LIMIT:g}, else not
    reproduced; inconclusive if only one was measured. n: distinct residuals.
    """
    collect_facts(evidence, results, RESIDUALS)


@claim(
    "C2",
    "§2.2",
    "an identity",
    "",
    **check("no residual measured", dict.fromkeys(BN_RESIDUAL.values(), IDENTITY_LIMIT)),
)
def wn_is_bn(evidence: Evidence, results: Results) -> None:
    """For a single layer on whitened input, wn and bn are the same function

    Largest relative residual between a layer of wn and a layer of bn over the runs, in float64: reproduced if ≤
    {IDENTITY_LIMIT:g}, else not reproduced. n: distinct residuals.
    """
    collect_facts(evidence, results, BN_RESIDUAL)


def starts(part: Results) -> list[list[Run]]:
    """Group the standard runs with an initial loss by seed and kind of device: GPUs draw other random numbers."""
    found: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in (run for run in part.standard if "init_loss" in run.facts):
        found[run.seed, run.record.device.split(":")[0]].append(run)
    return [*found.values()]


def init_losses(part: Results) -> list[float]:
    """Return the spread of the initial losses over their mean, for every start with all four parameterizations."""
    complete = [runs for runs in starts(part) if {run.param for run in runs} == {*PARAMS}]
    losses = [[run.facts["init_loss"] for run in runs] for runs in complete]
    return [float(np.ptp(some) / np.mean(some)) for some in losses]


@claim(
    *("C3", "§3, eq. 4 and 5; §5.1", "mean 0, variance 1, identical starts", "init"),
    **check("no init measured", {MEAN: INIT_MEAN, VARIANCE: INIT_VARIANCE, LOSSES: INIT_LOSS}),
)
def same_start(evidence: Evidence, results: Results) -> None:
    """The data-dependent init gives every pre-activation mean 0 and variance 1, and all four parameterizations start as
    the same function

    Reproduced if in every layer of every run |mean| ≤ {INIT_MEAN:g} and |variance − 1| ≤ {INIT_VARIANCE:g} on the init
    batch, and the four initial losses of a start (experiment, data set, seed, kind of device) agree to {INIT_LOSS:g} of
    their mean. Not reproduced if any of these fails. Inconclusive while no start has all four.
    """
    losses: list[float] = []
    variances: list[float] = []
    for part in results.parts.values():
        for run in (run for run in part.in_precision if len(run.init)):
            means, ends = run.init["mean_abs_max"].tolist(), run.init[["variance_min", "variance_max"]].to_numpy(float)
            evidence.finite(sum(means) + float(ends.sum()), run)
            evidence.values[MEAN] += means
            variances += ends.ravel().tolist()
            evidence.use(run)
        for run in (run for start in starts(part) for run in start):
            evidence.finite(run.facts["init_loss"], run)
            evidence.use(run)
        losses += init_losses(part)
    if evidence.used:
        evidence.values |= {VARIANCE: [abs(variance - 1) for variance in variances], LOSSES: losses}
    if variances:
        low, high = (plain(float(end), ".4f") for end in (np.min(variances), np.max(variances)))
        evidence.remarks.append(f"variance {low} to {high} in {count(len(evidence.used), 'run')}")

"""C10: DRAW, for both interpretations of the initial g."""

import math
from collections.abc import Sequence

import numpy as np

from wnrepro.report.claims.claim import Claim, MarginTest, claim
from wnrepro.report.claims.evidence import Evidence, by_seed, select, shared_epochs
from wnrepro.results import Results, Run
from wnrepro.text import count, plain

EARLIER = 0.1  # the smallest share of epochs saved that matters
TEST = MarginTest(-1, math.log(1 - EARLIER))


def reached(bounds: Sequence[float], target: float) -> float:
    """Return the epoch, from 1 and interpolated linearly, at which the bounds first reach `target`; inf if never."""
    first = next((row for row, bound in enumerate(bounds) if bound >= target), None)
    if not first:
        return math.inf if first is None else 1.0
    before, after = bounds[first - 1], bounds[first]
    return first + (target - before) / (after - before)


def epochs_needed(ours: Run, theirs: Run) -> list[float]:
    """Return the epochs at which both runs reach `theirs`' last common bound, or nan if a bound is not finite."""
    bounds = [run.metrics["test_bound_nats"].to_numpy(float)[: shared_epochs(ours, theirs)] for run in (ours, theirs)]
    finite = np.isfinite(bounds).all()
    return [reached(list(one), float(bounds[1][-1])) if finite else math.nan for one in bounds]


def log_epochs(ours: Run, theirs: Run) -> float:
    """Return the log ratio of the epochs needed. A run that never reaches the bound counts as if at the last epoch."""
    a, b = (min(epoch, shared_epochs(ours, theirs)) for epoch in epochs_needed(ours, theirs))
    return math.log(a / b)


def faster(id: str, g_start: float | None, start: str) -> Claim:
    @claim(id, "figure 3; §5.3", "curves of the test bound by epoch", "figure3", TEST, start=start)
    def collect(evidence: Evidence, results: Results) -> None:
        """DRAW: wn converges faster than normal, with normal's learning rate and initialization: {start} at the start

        Ratio of the epochs needed, wn over normal, until normal's test bound after the scale's epochs is first reached,
        interpolated linearly between epochs; where wn never reaches it, as if it did at the last. {LOST}
        """
        runs = results.of("draw").at_rate("g_start")
        pair = *select(runs, "wn", g_start=g_start), *select(runs, "normal", g_start=None)
        evidence.collect("", log_epochs, *pair)
        both = by_seed(*([run for run in side if run.name in evidence.used and not run.diverged] for side in pair))
        if never := sum(math.isinf(epochs_needed(*two)[0]) for two in both):
            evidence.remarks.append(f"wn does not reach normal's bound in {never} of {count(len(both), 'seed')}")
        for name, side in zip(("wn", "normal"), pair, strict=True):
            finals = [plain(run.final("test_bound_nats")) for run in side if run.name in evidence.used]
            evidence.remarks += [f"{name} ends at {', '.join(finals)} nats"] if finals else []

    return collect


wn_as_normal, wn_at_1 = faster("C10a", None, "g = ‖v‖"), faster("C10b", 1.0, "g = 1")

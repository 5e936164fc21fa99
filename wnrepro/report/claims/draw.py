"""C10: DRAW, for both readings of where g begins."""

import math
from collections.abc import Sequence

import numpy as np

from wnrepro.report.claims.claim import Claim, Test, claim
from wnrepro.report.claims.evidence import Evidence, by_seed, of, shared
from wnrepro.results import Results, Run
from wnrepro.text import count, plain

EARLIER = 0.1  # of the epochs: the smallest gain that matters


def reached(bounds: Sequence[float], target: float) -> float:
    """The epoch, linear between two, at which bounds of the epochs 1, 2, … first reach `target`; inf: never."""
    first = next((row for row, bound in enumerate(bounds) if bound >= target), None)
    if not first:
        return math.inf if first is None else 1.0
    before, after = bounds[first - 1], bounds[first]
    return first + (target - before) / (after - before)


def epochs_needed(ours: Run, theirs: Run) -> list[float]:
    """Of both, the epoch at which it first reaches the other's bound at the last epoch of both; nan: not finite."""
    epochs = shared(ours, theirs)
    bounds = [run.metrics["test_bound_nats"].to_numpy(float)[:epochs] for run in (ours, theirs)]
    known = np.isfinite(bounds).all()
    return [reached(list(of), float(bounds[1][-1])) if known else math.nan for of in bounds]


def log_epochs(ours: Run, theirs: Run) -> float:
    """log of the ratio of the epochs until the other's bound at the last epoch of both; at the latest, that epoch."""
    a, b = (min(epoch, shared(ours, theirs)) for epoch in epochs_needed(ours, theirs))
    return math.log(a / b)


TEST = Test(-1, math.log(1 - EARLIER), math.log(0.7), 0, 0.1)


def faster(id: str, g_start: float | None, start: str) -> Claim:
    @claim(id, "figure 3; §5.3", "curves of the test bound by epoch", "figure3", TEST, start=start)
    def collect(evidence: Evidence, results: Results) -> None:
        """DRAW: wn converges faster than normal, with normal's learning rate and initialization: {start} at the start

        Ratio of the epochs needed, wn over normal, until normal's test bound after the scale's epochs is first reached,
        interpolated linearly between epochs; where wn never reaches it, as if it did at the last. {LOST}
        """
        runs = results.of("draw").at_rate("g_start")
        pair = of(runs, "wn", g_start=g_start), of(runs, "normal", g_start=None)
        evidence.collect("", log_epochs, *pair)
        trained = ([run for run in runs if run.name in evidence.used and not run.diverged] for runs in pair)
        both = by_seed(*trained)
        never = sum(math.isinf(epochs_needed(*two)[0]) for two in both)
        evidence.said += [f"wn does not reach normal's bound in {never} of {count(len(both), 'seed')}"] if never else []
        for name, some in zip(("wn", "normal"), pair, strict=True):
            finals = [plain(run.final("test_bound_nats")) for run in some if run.name in evidence.used]
            evidence.said += [f"{name} ends at {', '.join(finals)} nats"] if finals else []

    return collect


wn_as_normal, wn_at_1 = faster("C10a", None, "g = ‖v‖"), faster("C10b", 1.0, "g = 1")

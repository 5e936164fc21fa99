"""What the claims still need for a verdict: runs of the grid, and the hours that these take."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.claim import SCALE
from wnrepro.reproduce.costs import processor
from wnrepro.reproduce.grid import Planned, commands, expand
from wnrepro.reproduce.plan import estimates
from wnrepro.results import Results
from wnrepro.text import count


def missing(results: Results) -> Iterator[dict[str, Any]]:
    """Yield a row for each empirical claim that lacks runs for its first verdict, if the scale has verdicts.

    The hours are those of one run after another, alone on the device of most runs here: see `plan.estimates`.
    """
    if results.scale != SCALE or not results.runs:
        return
    found, command = {run.name: run for run in results.runs}, commands(SCALE)
    (device, _), *_ = Counter(run.device for run in results.runs).most_common()
    judged = findings(results)
    grid = [in_judged_precision(run, results) for run in expand(SCALE)]
    costs = estimates(grid, results.folder, device, by_bench=True)
    for claim in CLAIMS:
        own = [
            (found.get(run.name), run, cost)
            for run, cost in zip(grid, costs, strict=True)
            if claim.id in run.serves and run.settings.seed <= claim.seeds
        ]
        left = [(run, planned, cost) for run, planned, cost in own if not (run and run.over)]
        sessions = judged[claim.id].estimates[0].n if not own and judged[claim.id].estimates else 0
        if claim.check or not (left if own else sessions < claim.seeds):
            continue
        hours = [
            cost.seconds and cost.seconds * (1 - (run.epoch if run else 0) / planned.settings.epochs) / 3600
            for run, planned, cost in left
        ]
        yield {
            "id": claim.id,
            "needs": count(claim.seeds, "seed" if own else "session"),
            "runs": len(own) or claim.seeds,
            "finished": len(own) - len(left) if own else sessions,
            "begun": "; ".join(f"{run.name}, epoch {run.epoch} of {run.epochs}" for run, *_ in left if run) or "–",
            "hours": None if None in hours or not own else sum(hours),
            "device": processor(device),
            "command": command[claim.id],
        }


def in_judged_precision(run: Planned, results: Results) -> Planned:
    """Return the run in the precision in which its experiment is judged."""
    part = results.parts.get(f"{run.experiment} {run.part}".rstrip())
    precision = part.precision if part else run.settings.precision
    return dataclasses.replace(run, settings=dataclasses.replace(run.settings, precision=precision))

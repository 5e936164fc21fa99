"""Computes wnrepro/report/claims/power.csv: how often each claim's rule reproduces it, by simulation. Minutes.

For n = 3, 5 and 10 seeds: where the paper is true and where there is no effect, as the claim itself assumes them; the
smallest difference seen; and the seeds for a power of 80 %.
"""

import csv
from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.claim import Claim
from wnrepro.report.claims.power import MOST_SEEDS, TABLE
from wnrepro.report.stats import LEVEL, LOOKS, quiet

TRIES = 4000
ENOUGH = 0.8


@quiet
def verdicts(claim: Claim, n: int, true: bool, tries: int = TRIES, seed: int = 0) -> tuple[float, float]:
    """The shares of the tries in which n seeds of a made-up world reproduce the claim, and refute it."""
    assert claim.world is not None
    rng, counts = np.random.default_rng(seed), np.zeros(2)
    for _ in range(tries if n >= claim.seeds else 0):
        holds, fails = claim.combine(claim.judge(claim.world(rng, n, true)))
        counts += (holds <= LEVEL < fails, fails <= LEVEL)
    reproduced, refuted = (counts / tries).tolist()
    return reproduced, refuted


@quiet
def seen(claim: Claim, n: int, tries: int = 200) -> str:
    """The half-width of the interval and what a power of 80 % adds to it, of every part."""
    assert claim.world is not None
    rng, more = np.random.default_rng(1), 1 + float(stdtrit(n - 1, ENOUGH) / stdtrit(n - 1, 1 - LEVEL / 2))
    widths: dict[str, list[float]] = {}
    for _ in range(tries):
        for e in claim.judge(claim.world(rng, n, True)):
            widths.setdefault(e.name, []).append((e.high - e.low) / 2)
    half = {name: more * float(np.nanmean(some)) for name, some in widths.items()}
    return "; ".join(f"{name} {claim.unit_of(name).number(w).lstrip('+')}".strip() for name, w in half.items())


def rows(claim: Claim) -> Iterator[list[object]]:
    """claim, n, true, null, difference, seeds80."""
    needed = range(claim.seeds, MOST_SEEDS + 1)
    seeds80 = next((n for n in needed if verdicts(claim, n, True, TRIES // 4)[0] >= ENOUGH), "")
    for n in LOOKS:
        shares = [f"{verdicts(claim, n, true)[0]:.3f}" for true in (True, False)]
        yield [claim.id, n, *shares, seen(claim, n), seeds80]


if __name__ == "__main__":
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["claim", "n", "true", "null", "difference", "seeds80"])
        for one in CLAIMS:
            writer.writerows(rows(one) if one.world else ())

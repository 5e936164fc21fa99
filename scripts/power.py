"""Computes wnrepro/report/claims/power.csv: how often each claim's rule reproduces and refutes it, by simulation.

For n = 3, 5 and 10 seeds: where the paper is true and where there is no effect, as the claim itself assumes them; the
true value with a power of 80 %; and the first of these n with such a power. Before Holm's correction. Takes minutes.
"""

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np

from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.claim import POWER, Claim, Power
from wnrepro.report.stats import LEVEL, LOOKS, quiet

TRIES = 4000
ENOUGH = 0.8
STEPS, MOST = 7, 4.0  # of the search for the smallest effect, in units of the assumed one


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


def between(true: Any, null: Any, effect: float) -> Any:
    """The same made-up numbers with a share of the assumed effect."""
    if isinstance(true, tuple):
        return tuple(between(one, other, effect) for one, other in zip(true, null, strict=True))
    return null + effect * (true - null)


@quiet
def seen(claim: Claim, n: int, tries: int = TRIES // 8) -> str:
    """The true value that is reproduced 80 % of the time, in words; empty for claims on counts of runs."""
    assert claim.world is not None
    if n < claim.seeds or claim.id in ("C6", "C13"):
        return ""

    def reproduced(effect: float) -> float:
        found = 0
        for seed in range(tries):  # the same noise in both worlds
            true, null = (claim.world(np.random.default_rng(seed), n, holds) for holds in (True, False))
            holds, fails = claim.combine(claim.judge({name: between(true[name], null[name], effect) for name in true}))
            found += holds <= LEVEL < fails
        return found / tries

    low, high = 0.0, MOST if not any(test.sign == 0 for test in claim.tests) else 1.0
    if reproduced(high) < ENOUGH:
        return ""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reproduced(middle) >= ENOUGH else (middle, high)
    of_part = [(test.name, test.number(test.null + high * (test.true - test.null))) for test in claim.tests]
    words = dict.fromkeys(number for _, number in of_part) if len({x for _, x in of_part}) == 1 else ()
    parts = words or (f"{name} {number}".strip() for name, number in of_part)
    return "; ".join(parts) or f"{high:.0%} of what is assumed".replace("%", " %")


def rows(claim: Claim) -> Iterator[list[object]]:
    """A claim's rows of power.csv: its id and the fields of `Power`."""
    shares = {(n, true): verdicts(claim, n, true) for n in LOOKS for true in (True, False)}
    seeds80 = next((n for n in LOOKS if shares[n, True][0] >= ENOUGH), "")
    for n in LOOKS:
        yield [
            claim.id,
            n,
            *(f"{one:.3f}" for true in (True, False) for one in shares[n, true]),
            seen(claim, n),
            seeds80,
        ]


@quiet
def ever(claim: Claim, tries: int = TRIES) -> float:
    """Without an effect: the share of the tries in which one of the looks at the same growing seeds reproduces it.

    Of claims on numbers by seed alone, not on counts.
    """
    assert claim.world is not None
    rng, found = np.random.default_rng(2), 0
    for _ in range(tries):
        whole = claim.world(rng, LOOKS[-1], False)
        looks = ({name: np.asarray(of)[..., :n] for name, of in whole.items()} for n in LOOKS if n >= claim.seeds)
        found += any(holds <= LEVEL < fails for holds, fails in (claim.combine(claim.judge(of)) for of in looks))
    return found / tries


if __name__ == "__main__":
    with POWER.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("claim", *Power._fields))
        for one in CLAIMS:
            writer.writerows(rows(one) if one.world else ())

"""Computes wnrepro/report/claims/power.csv: how often each claim's rule reproduces and refutes it, by simulation.

For n = 3, 5 and 10 seeds it holds the shares if the paper is true and if there is no effect, as assumed here, and the
true value with a power of 80 %. It also holds the first n with such a power. All are before Holm's correction. Takes
minutes.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wnrepro import paper
from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.cifar import ALIKE, FASTER, G_MARGIN, GAUSSIAN_KURTOSIS, LEVEL_MARGIN, SLOW
from wnrepro.report.claims.claim import POWER, Claim, Power, by_part
from wnrepro.report.claims.dqn import TWO_GAMES
from wnrepro.report.stats import LEVEL, LOOKS, quiet

TRIES = 4000
ENOUGH = 0.8
STEPS, MOST = 7, 4.0  # steps and largest effect of the search, in units of the assumed effect
CORRELATION = 0.95  # of the bounds of wn and normal over seeds, in C9b
ERRORS = paper.TABLE2.items()
LOGS = {game: math.log(scores["wn"] / scores["normal"]) for game, scores in paper.TABLE3.items()}

# For claims on differences by seed: mean with the effect, mean without it, standard deviation over seeds. They have the
# estimate's unit, or are logarithms if the unit is. Each test of the claim has one triple.
DIFFERENCES: dict[str, list[tuple[float, float, float]]] = {
    "C5a": [(math.log(0.85), 0, 0.03)],
    "C5b": [(math.log(0.85), 0, 0.03)],
    "C7a": [(math.log(1.16), 0, 0.015)],
    "C7b": [(0, SLOW, 0.015)],
    "C8a": [(0, GAUSSIAN_KURTOSIS, 0.1)],
    "C8b": [(2, 0, 0.4)],
    "C8c": [(math.log(0.7), 0, 0.1)],
    "C9a": [(0.5, 0, 0.15), (0.03, 0, 0.01)],
    "C10a": [(math.log(0.7), 0, 0.1)],
    "C10b": [(math.log(0.7), 0, 0.1)],
    "C14": [(0.3, 0, 0.05), (-0.2, 0, 0.05), (0.3, 0, 0.05)],
    "C15": [(0, G_MARGIN, 0.04)] * 3,
    "C16a": [(0.5, 0, 0.15), (0.03, 0, 0.01)],
    "C16b": [(0, -G_MARGIN, 0.04)],
    "C17": [(math.log(1.03 / 1.16), 0, 0.015)],
    "C18a": [(math.log(0.8), 0, 0.05)],
    "C18b": [(0, ALIKE, 0.1)] * 3,
    "C19": [(0, FASTER, 0.03)],
}


@dataclass(frozen=True)
class Scenario:
    """The assumptions for a claim: simulated numbers of n seeds with or without the effect, and both in words."""

    simulate: Callable[[np.random.Generator, int, bool], Mapping[str, Any]]
    assumed: str
    without: str


def spreads(rng: np.random.Generator, n: int, true: bool) -> dict[str, Any]:
    """Simulate the numbers of C9b."""
    normal = rng.normal(size=n)
    wn = CORRELATION * normal + math.sqrt(1 - CORRELATION**2) * rng.normal(size=n)
    return {"": ((0.5 if true else 1.0) * wn, normal)}


def failures(rng: np.random.Generator, n: int, true: bool) -> dict[str, Any]:
    """Simulate the counts of C13."""
    wn, normal = (0.02, 0.02, 0.02, 0.5), (0.02, 0.02, 0.95, 0.95)  # shares that fail, by rate
    by_rate = zip(paper.LEARNING_RATES, wn, normal if true else wn, strict=True)
    return {f"lr {rate:g}": tuple((int(rng.binomial(n, p)), n) for p in shares) for rate, *shares in by_rate}


def differences(claim: Claim) -> Scenario:
    effects, nulls, deviations = zip(*DIFFERENCES[claim.id], strict=True)

    def simulate(rng: np.random.Generator, n: int, true: bool) -> Mapping[str, Any]:
        means = zip(claim.tests, effects if true else nulls, deviations, strict=True)
        return {test.name: rng.normal(mean, deviation, n) for test, mean, deviation in means}

    def words(values: tuple[float, ...]) -> str:
        return by_part(claim.tests, [test.number(value) for test, value in zip(claim.tests, values, strict=True)])

    assumed = f"{words(effects)}; standard deviation over seeds {words(deviations).replace('+', '')}"
    return Scenario(simulate, assumed, words(nulls))


ASSUMED = "table 2's errors, standard deviation over seeds 0.2 points"
SCENARIOS = {
    "C4a": Scenario(
        lambda rng, n, true: {param: rng.normal(error if true else 8.06, 0.2, n) for param, error in ERRORS},
        ASSUMED,
        "all four 8.06 %",
    ),
    "C4b": Scenario(
        lambda rng, n, true: {param: rng.normal(e if true else e + LEVEL_MARGIN, 0.2, n) for param, e in ERRORS},
        ASSUMED,
        "all four 1 point higher",
    ),
    "C6": Scenario(
        lambda rng, n, true: {"": (int(rng.binomial(n, 0.95 if true else 0.05)), n)},
        "95 % of the runs diverge",
        "5 % do",
    ),
    "C9b": Scenario(
        spreads,
        f"wn's standard deviation is half of normal's, correlation {CORRELATION:g}",
        "the same standard deviation",
    ),
    "C11": Scenario(
        lambda rng, n, true: {game: rng.normal(log if true else 0, 0.25, n) for game, log in LOGS.items()},
        "table 3's ratios, standard deviation over seeds of their logarithms 0.25",
        "ratios of 1",
    ),
    "C12": Scenario(
        lambda rng, n, true: {game: rng.normal(0.05 if true else 0.9, 0.2, n) for game in TWO_GAMES},
        "two games; bn gains 5 % of normal's gain, standard deviation over seeds 20 %",
        "bn gains 90 %",
    ),
    "C13": Scenario(
        failures,
        "four rates; normal fails at two of them in 95 % of its runs, wn in 2 and 50 %",
        "both fail alike",
    ),
} | {claim.id: differences(claim) for claim in CLAIMS if claim.id in DIFFERENCES}


@quiet
def verdicts(claim: Claim, n: int, true: bool, tries: int = TRIES, seed: int = 0) -> tuple[float, float]:
    """Return the shares of the tries in which n simulated seeds reproduce the claim, and refute it."""
    rng, counts = np.random.default_rng(seed), np.zeros(2)
    for _ in range(tries if n >= claim.seeds else 0):
        holds, fails = claim.combine(claim.judge(SCENARIOS[claim.id].simulate(rng, n, true)))
        counts += (holds <= LEVEL < fails, fails <= LEVEL)
    reproduced, refuted = (counts / tries).tolist()
    return reproduced, refuted


def between(true: Any, null: Any, effect: float) -> Any:
    """Return the same simulated numbers with a share of the assumed effect."""
    if isinstance(true, tuple):
        return tuple(between(one, other, effect) for one, other in zip(true, null, strict=True))
    return null + effect * (true - null)


@quiet
def seen(claim: Claim, n: int, tries: int = TRIES // 8) -> str:
    """Return the true value that is reproduced 80 % of the time, in words; empty for claims on counts of runs."""
    if n < claim.seeds or claim.id in ("C6", "C13"):
        return ""

    def reproduced(effect: float) -> float:
        found = 0
        for seed in range(tries):  # the same noise in both
            true, null = (
                SCENARIOS[claim.id].simulate(np.random.default_rng(seed), n, holds) for holds in (True, False)
            )
            holds, fails = claim.combine(claim.judge({name: between(true[name], null[name], effect) for name in true}))
            found += holds <= LEVEL < fails
        return found / tries

    low, high = 0.0, MOST if not any(test.sign == 0 for test in claim.tests) else 1.0
    if reproduced(high) < ENOUGH:
        return ""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reproduced(middle) >= ENOUGH else (middle, high)
    assumed = zip(claim.tests, DIFFERENCES.get(claim.id, ()), strict=True)
    by_test = [(test.name, test.number(null + high * (true - null))) for test, (true, null, _) in assumed]
    values = dict.fromkeys(number for _, number in by_test) if len({value for _, value in by_test}) == 1 else ()
    parts = values or (f"{name} {number}".strip() for name, number in by_test)
    return "; ".join(parts) or f"{high:.0%} of what is assumed".replace("%", " %")


def rows(claim: Claim) -> Iterator[list[object]]:
    """Yield a claim's rows of power.csv: its id and the fields of `Power`."""
    shares = {(n, true): verdicts(claim, n, true) for n in LOOKS for true in (True, False)}
    seeds80, scenario = next((n for n in LOOKS if shares[n, True][0] >= ENOUGH), ""), SCENARIOS[claim.id]
    for n in LOOKS:
        numbers = [f"{one:.3f}" for true in (True, False) for one in shares[n, true]]
        yield [claim.id, n, *numbers, seen(claim, n), seeds80, scenario.assumed, scenario.without]


@quiet
def ever(claim: Claim, tries: int = TRIES) -> float:
    """Return the share of the tries without an effect in which one of the looks at growing seeds reproduces the claim.

    For claims on numbers by seed, not on counts.
    """
    rng, found = np.random.default_rng(2), 0
    for _ in range(tries):
        whole = SCENARIOS[claim.id].simulate(rng, LOOKS[-1], False)
        looks = ({name: np.asarray(of)[..., :n] for name, of in whole.items()} for n in LOOKS if n >= claim.seeds)
        found += any(holds <= LEVEL < fails for holds, fails in (claim.combine(claim.judge(of)) for of in looks))
    return found / tries


if __name__ == "__main__":
    with POWER.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("claim", *Power._fields))
        for one in CLAIMS:
            writer.writerows(rows(one) if one.id in SCENARIOS else ())

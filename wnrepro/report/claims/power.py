"""The power of every empirical claim's rule: power.csv, which `scripts/power.py` computes by simulation."""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

from wnrepro.report.stats import look

TABLE = Path(__file__).with_name("power.csv")
MOST_SEEDS = 40


@dataclass(frozen=True)
class Power:
    """Of n seeds: P(reproduced | the paper is true), P(reproduced | no effect), the smallest difference that they see
    80 % of the time, in words, and the seeds that the rule needs for 80 % (None: more than `MOST_SEEDS`).
    """

    n: int
    true: float
    null: float
    difference: str
    seeds80: int | None

    def words(self, assumed: str, null: str) -> str:
        needed = self.seeds80 or f"more than {MOST_SEEDS}"
        return (
            f"{self.n} seeds see a difference of {self.difference}. P(reproduced), before Holm's correction, is "
            f"{self.true:.0%} if the paper is true ({assumed}), {self.null:.0%} without the effect ({null}). "
            f"80 % need {needed} seeds."
        )


@functools.cache
def table() -> dict[tuple[str, int], Power]:
    """power.csv, by claim and n."""
    with TABLE.open(newline="") as file:
        return {
            (claim, int(n)): Power(int(n), float(true), float(null), difference, int(seeds80) if seeds80 else None)
            for claim, n, true, null, difference, seeds80 in list(csv.reader(file))[1:]
        }


def power(claim_id: str, n: int) -> Power | None:
    """At the last look that n seeds reach; None: below the first, or of an implementation check."""
    return table().get((claim_id, look(n)))

"""The power of every empirical claim's rule: power.csv, which `scripts/power.py` computes by simulation."""

import functools
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from wnrepro.report.stats import LOOKS, look

TABLE = Path(__file__).with_name("power.csv")


class Power(NamedTuple):
    """Of n seeds, before Holm's correction: P(reproduced) and P(not reproduced) where the paper is true, and without
    the effect. difference: the true value with P(reproduced) = 80 %, in words (empty: none, or not known); seeds80: the
    first of `LOOKS` with a power of 80 % (None: none of them).
    """

    n: int
    true: float
    true_refuted: float
    null: float
    null_refuted: float
    difference: str
    seeds80: int | None

    def words(self, assumed: str, null: str) -> str:
        sees = f"It is 80 % at {self.difference}. " if self.difference else ""
        needed = f"{self.seeds80} seeds reach 80 %" if self.seeds80 else f"{LOOKS[-1]} seeds do not reach 80 %"
        return (
            f"With {self.n} seeds P(reproduced) is {100 * self.true:.0f} % if the paper is true ({assumed}) and "
            f"{100 * self.null:.1f} % without the effect ({null}). {sees}{needed}. Before Holm's correction."
        )


COLUMNS = ("claim", *Power._fields)


@functools.cache
def table() -> dict[tuple[str, int], Power]:
    """power.csv, by claim and n."""
    rows = pd.read_csv(TABLE, keep_default_na=False, dtype={"seeds80": str}).itertuples(index=False)
    return {(claim, n): Power._make((n, *others, int(seeds80 or 0) or None)) for claim, n, *others, seeds80 in rows}


def power(claim_id: str, n: int) -> Power | None:
    """At the last look that n seeds reach; None: below the first, or of an implementation check."""
    return table().get((claim_id, look(n)))

"""Units in which a claim's estimates are written."""

import math
from dataclasses import dataclass

from wnrepro.report.stats import Estimate
from wnrepro.text import interval, plain


@dataclass(frozen=True)
class Unit:
    """The form of a number. log: whether it is the logarithm of a ratio, written as a relative difference."""

    digits: int = 2
    suffix: str = ""
    factor: float = 1
    sign: bool = True
    log: bool = False

    def shown(self, value: float) -> float:
        return math.expm1(min(value, 700)) if self.log else value

    def number(self, value: float) -> str:
        """Format a value, such as `+0.40 points`."""
        return plain(self.factor * self.shown(value), f"{'+' if self.sign else ''}.{self.digits}f", self.suffix)

    def words(self, e: Estimate) -> str:
        """Format an estimate, such as `bn − wn −0.40 points [−0.61, −0.19] (n = 5)`."""
        if not e.n:
            return f"{e.name}: no estimate" if e.name else "no estimate"
        ends = interval(self.shown(e.low), self.shown(e.high), self.digits, self.factor, self.sign)
        return " ".join(filter(None, (e.name, self.number(e.value), ends, f"(n = {e.n})")))


RATIO = Unit(1, " %", 100, log=True)
RELATIVE = Unit(1, " %", 100)
SHARE, DIFFERENCE = Unit(0, " %", 100, sign=False), Unit(0, " %", 100)
POINTS = Unit(2, " points")
NUMBER, PERCENT, FACTOR = Unit(), Unit(2, " %", sign=False), Unit(2, sign=False)
NATS, BITS = Unit(2, " nats"), Unit(3, " bits per dimension")

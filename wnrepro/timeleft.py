"""How long a run still takes, as its bar, its lines and the grid's board say it. Imports no torch."""

from bisect import bisect_right
from collections import deque
from statistics import median_low

RECENT = 5  # epochs, by the median of which the next ones are judged
SETTLED_SECONDS = 10.0  # of training before its speed is taken for that of the first epoch


def duration(seconds: float | None) -> str:
    """`45 s`, `2.5 min`, `12 min`, `3.4 h`, `12 days`; a dash where it is not known."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 570 else 0}f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


class TimeLeft:
    """Told by a process where its run is, it says how long the run still takes; `now` is any clock in seconds.

    An epoch to come will take as long as those just behind: with their tests and checkpoints, so that one which
    something else has slowed down does not count. Of the process's first epoch only the speed of the latter half of
    its ticks and what came after them do: before them it loads, initializes, compiles, and fills a replay.
    """

    def __init__(self, epochs: int, reached: int, now: float) -> None:
        """epochs: of the run, `reached` of them before this process began."""
        self.epochs, self.reached, self.since = epochs, reached, now
        self.whole = False  # whether this process has been through an epoch
        self.ticks: list[tuple[float, float]] = []  # until then: the share of the epoch, and the clock
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of each epoch

    def tick(self, epochs: float, now: float) -> None:
        """So many epochs are behind the run, with the share of the one under way."""
        share = epochs - self.reached
        if not self.whole and (not self.ticks or share > self.ticks[-1][0]):
            self.ticks.append((share, now))

    def epoch(self, epoch: int, now: float) -> float:
        """An epoch is over; the seconds that it took, with all that came before it where no tick tells them apart."""
        took, counts = (now - self.since) / (epoch - self.reached), self.whole
        if not self.whole and self.ticks:
            (share, clock), speed = self.ticks[-1], self.speed()
            if speed is not None:
                took, counts = speed * share + now - clock, True
            elif share < 1:
                took, counts = (now - clock) / (1 - share), True
        if counts:
            self.recent.append(took)
        self.ticks.clear()
        self.whole, self.reached, self.since = True, epoch, now
        return took

    def speed(self) -> float | None:
        """Seconds that the first epoch's training takes, by the latter half of its ticks; None: too few of them."""
        if len(self.ticks) < 2:
            return None
        (begin, _), (share, clock) = self.ticks[0], self.ticks[-1]
        middle, passed = self.ticks[bisect_right(self.ticks, ((begin + share) / 2, clock)) - 1]
        return (clock - passed) / (share - middle)

    def seconds(self, now: float) -> float | None:
        """What is left of the run; None: that cannot be told yet."""
        each = median_low(self.recent) if self.recent else None
        spent = now - self.since
        if not self.whole and self.ticks:
            share, clock = self.ticks[-1]
            if clock - self.ticks[0][1] >= SETTLED_SECONDS:
                each = self.speed()
                spent = share * (each or 0.0) + now - clock
        return None if each is None else max(each * (self.epochs - self.reached) - min(spent, each), 0.0)

"""The display of a running experiment: a live bar on a terminal, plain lines elsewhere; and the time left."""

import re
import time
from bisect import bisect_right
from collections import deque
from statistics import median_low

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from wnrepro.events import Epoch, Note, Progress

NAME_WIDTH = 20
RECENT = 5  # epochs whose median time predicts the next ones
SETTLED_SECONDS = 10.0  # of training, before its speed predicts the first epoch's time

SHOWN = re.compile(r"(train|test)_.*(?<!_raw)|episodes|mean_q|loss|epsilon")  # columns of metrics.csv to show


def describe(epoch: Epoch) -> str:
    """Format an epoch's row as text."""
    parts = []
    for name in filter(SHOWN.fullmatch, epoch.metrics):
        value = epoch.metrics[name]
        parts.append(f"{name.replace('_', ' ')} {f'{value:.2%}' if name.endswith('_error') else f'{value:.5g}'}")
    return ", ".join(parts)


def brief(epoch: Epoch) -> str:
    """Format the first test and the first training figure of an epoch: `test 8.3% train 1.2%`."""
    parts = []
    for kind in ("test", "train"):
        for name in [name for name in epoch.metrics if name.startswith(kind)][:1]:
            parts.append(f"{kind} {epoch.metrics[name]:{'.1%' if name.endswith('_error') else '.4g'}}")
    return " ".join(parts)


def short(name: str) -> str:
    """Return a run's name without its scale and experiment, cut to fit beside a bar."""
    variant = name.rsplit("/", 1)[-1]
    return variant if len(variant) <= NAME_WIDTH else variant[: NAME_WIDTH - 1] + "…"


def duration(seconds: float | None) -> str:
    """Format seconds as `45 s`, `2.5 min`, `12 min`, `3.4 h`, `12 days`, or as a dash if unknown."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 570 else 0}f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


class TimeLeft:
    """An estimate of a run's time left, from its process's progress. `now` is any clock in seconds.

    Each future epoch is expected to take the median time of the recent ones, with their tests and checkpoints. Of the
    process's first epoch, only the speed in the latter half of the ticks and the time after them count. Before, the
    process loads, initializes, compiles, and fills a replay.
    """

    def __init__(self, epochs: int, reached: int, now: float) -> None:
        """Start the estimate for a process that resumes a run of `epochs` epochs after `reached` of them."""
        self.epochs, self.reached, self.since = epochs, reached, now
        self.first = True  # whether this is the process's first epoch
        self.ticks: list[tuple[float, float]] = []  # in the first epoch: the completed share and the clock
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of the latest epochs

    def tick(self, epochs: float, now: float) -> None:
        """Update the number of completed epochs, with the share of the current one."""
        share = epochs - self.reached
        if self.first and (not self.ticks or share > self.ticks[-1][0]):
            self.ticks.append((share, now))

    def epoch(self, epoch: int, now: float) -> float:
        """End an epoch and return its seconds. Without ticks they include the time before its training."""
        seconds, known = now - self.since, not self.first
        if self.ticks:
            share, clock = self.ticks[-1]
            if len(self.ticks) > 1:
                seconds, known = self.speed() * share + now - clock, True
            elif share < 1:
                seconds, known = (now - clock) / (1 - share), True
        if known:
            self.recent.append(seconds)
        self.ticks.clear()
        self.first, self.reached, self.since = False, epoch, now
        return seconds

    def speed(self) -> float:
        """Return the first epoch's training seconds, from the latter half of its ticks (at least two)."""
        (begin, _), (share, clock) = self.ticks[0], self.ticks[-1]
        middle, passed = self.ticks[bisect_right(self.ticks, ((begin + share) / 2, clock)) - 1]
        return (clock - passed) / (share - middle)

    def seconds(self, now: float) -> float | None:
        """Return the seconds left of the run, or None if they are not known yet."""
        each = median_low(self.recent) if self.recent else None
        spent = now - self.since
        if self.ticks and self.ticks[-1][1] - self.ticks[0][1] >= SETTLED_SECONDS:
            share, clock = self.ticks[-1]
            each = self.speed()
            spent = share * each + now - clock
        return None if each is None else max(each * (self.epochs - self.reached) - min(spent, each), 0.0)


class Pace(bars.ProgressColumn):
    """A column with the training speed and the run's time left, or finally the process's total time."""

    def __init__(self, show: "Show") -> None:
        super().__init__()
        self.show = show

    def render(self, task: bars.Task) -> Text:
        speed, left = task.finished_speed or task.speed, self.show.seconds_left()
        parts = [f"{speed:.0f} {self.show.unit}/s"] if speed else []
        if task.finished and not left:
            parts.append(duration(task.elapsed))
        elif left is not None:
            parts.append(f"{duration(left)} left")
        return Text("  ".join(parts))


class Show:
    """A display of a run's events: a context manager to call with every event. `unit`: what Progress counts."""

    def __init__(self, console: Console, name: str, epochs: int, quiet: bool, unit: str = "images") -> None:
        self.console, self.name, self.epochs, self.quiet, self.unit = console, name, epochs, quiet, unit
        self.bar = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=12),
            bars.TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            Pace(self),
            bars.TextColumn("{task.fields[last]}", markup=False),
            console=console,
            get_time=time.monotonic,
            disable=quiet or not console.is_terminal,
        )
        self.task: bars.TaskID | None = None
        self.time_left: TimeLeft | None = None

    def __enter__(self) -> "Show":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: Progress | Epoch | Note) -> None:
        if isinstance(event, Note):
            self.line(event.text)
            return
        now = time.monotonic()
        if self.time_left is None:
            self.time_left = TimeLeft(self.epochs, event.epoch - 1, now)
        if isinstance(event, Progress):
            self.time_left.tick(event.epoch - 1 + event.done / event.total, now)
            self.move(event)
            return
        self.time_left.epoch(event.epoch, now)
        if self.task is not None:
            self.bar.update(self.task, last=brief(event))
        if not self.console.is_terminal:
            left = self.seconds_left() if event.epoch < self.epochs and not event.diverged else None
            ahead = "" if left is None else f", {duration(left)} left"
            seconds = f"{event.metrics['seconds']:.1f} s{ahead}"
            self.line(f"epoch {event.epoch}/{self.epochs}  {describe(event)}  {seconds}")

    def seconds_left(self) -> float | None:
        """Return the seconds left of the run, or None if they are not known yet."""
        return None if self.time_left is None else self.time_left.seconds(time.monotonic())

    def line(self, text: str) -> None:
        """Print a line about the run, above the bar if there is one."""
        if not self.quiet:
            self.console.print(f"{self.name}  {text}", markup=False, highlight=False, soft_wrap=True)

    def move(self, event: Progress) -> None:
        """Move the bar, which begins where the run resumes."""
        done = (event.epoch - 1) * event.total + event.done
        if self.task is None:
            total = self.epochs * event.total
            self.task = self.bar.add_task(short(self.name), total=total, completed=done, epoch=0, last="")
        self.bar.update(self.task, completed=done, epoch=event.epoch)

"""What a person sees of a running experiment: a live bar on a terminal, plain lines elsewhere; and the time left."""

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
RECENT = 5  # epochs, by the median of which the next ones are judged
SETTLED_SECONDS = 10.0  # of training before its speed is taken for that of the first epoch

SHOWN = re.compile(r"(train|test)_.*(?<!_raw)|mean_q|loss|epsilon")  # columns of metrics.csv


def describe(epoch: Epoch, most: int | None = None) -> str:
    """Write an epoch's row in words, with at most this number of its first columns."""
    parts = []
    for name in filter(SHOWN.fullmatch, epoch.metrics):
        value = epoch.metrics[name]
        parts.append(f"{name.replace('_', ' ')} {f'{value:.2%}' if name.endswith('_error') else f'{value:.5g}'}")
    return ", ".join(parts[:most])


def short(name: str) -> str:
    """Return a run's name without its scale and experiment, cut to fit beside a bar."""
    variant = name.rsplit("/", 1)[-1]
    return variant if len(variant) <= NAME_WIDTH else variant[: NAME_WIDTH - 1] + "…"


def duration(seconds: float | None) -> str:
    """Write `45 s`, `2.5 min`, `12 min`, `3.4 h`, `12 days`; a dash where it is not known."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 570 else 0}f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


class TimeLeft:
    """Tells from a process's progress how long its run still takes; `now` is any clock in seconds.

    An epoch to come takes as long as the median of those just behind, with their tests and checkpoints. Of the
    process's first epoch only the speed of the latter half of its ticks and what came after them count: before them it
    loads, initializes, compiles, and fills a replay.
    """

    def __init__(self, epochs: int, reached: int, now: float) -> None:
        """epochs: of the run, `reached` of them before this process began."""
        self.epochs, self.reached, self.since = epochs, reached, now
        self.first = True  # whether this is the process's first epoch
        self.ticks: list[tuple[float, float]] = []  # of the first epoch: the share that is done, and the clock
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of each epoch

    def tick(self, epochs: float, now: float) -> None:
        """Take in how many epochs are done, with the share of the current one."""
        share = epochs - self.reached
        if self.first and (not self.ticks or share > self.ticks[-1][0]):
            self.ticks.append((share, now))

    def epoch(self, epoch: int, now: float) -> float:
        """Take in the end of an epoch; return its seconds, with those before its training if no ticks tell them."""
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
        """Return the seconds that the first epoch's training takes, by the latter half of its two or more ticks."""
        (begin, _), (share, clock) = self.ticks[0], self.ticks[-1]
        middle, passed = self.ticks[bisect_right(self.ticks, ((begin + share) / 2, clock)) - 1]
        return (clock - passed) / (share - middle)

    def seconds(self, now: float) -> float | None:
        """Return what is left of the run; None where that cannot be told yet."""
        each = median_low(self.recent) if self.recent else None
        spent = now - self.since
        if self.ticks and self.ticks[-1][1] - self.ticks[0][1] >= SETTLED_SECONDS:
            share, clock = self.ticks[-1]
            each = self.speed()
            spent = share * each + now - clock
        return None if each is None else max(each * (self.epochs - self.reached) - min(spent, each), 0.0)


class Pace(bars.ProgressColumn):
    """The speed of training and the time left of the run; at its end, the time that this process took."""

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
    """Shows a run's events; use as a context manager and call with every event. `unit`: of what a Progress counts."""

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
            self.bar.update(self.task, last=describe(event, 2))
        if not self.console.is_terminal:
            left = self.seconds_left() if event.epoch < self.epochs and not event.diverged else None
            ahead = "" if left is None else f", {duration(left)} left"
            seconds = f"{event.metrics['seconds']:.1f} s{ahead}"
            self.line(f"epoch {event.epoch}/{self.epochs}  {describe(event)}  {seconds}")

    def seconds_left(self) -> float | None:
        """Return the time left of the run; None where that cannot be told yet."""
        return None if self.time_left is None else self.time_left.seconds(time.monotonic())

    def line(self, text: str) -> None:
        """Print a line about the run, above the bar where there is one."""
        if not self.quiet:
            self.console.print(f"{self.name}  {text}", markup=False, highlight=False, soft_wrap=True)

    def move(self, event: Progress) -> None:
        """Move the bar; it begins where the run resumes."""
        done = (event.epoch - 1) * event.total + event.done
        if self.task is None:
            total = self.epochs * event.total
            self.task = self.bar.add_task(short(self.name), total=total, completed=done, epoch=0, last="")
        self.bar.update(self.task, completed=done, epoch=event.epoch)

"""The display of a running experiment: a row an epoch, below it a live bar on a terminal; and the time left."""

import os
import re
import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from statistics import median_low

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from wnrepro.events import Epoch, News, Note, Progress, Start
from wnrepro.text import printable

CELL = 7  # characters, the least width of a column
RECENT = 5  # epochs whose median time predicts the next ones
SETTLED_SECONDS = 10.0  # of training, before its speed predicts the first epoch's time

shown = re.compile(r"(train|test)_.*(?<!_raw)|episodes|mean_q|loss|epsilon").fullmatch  # of metrics.csv's columns


def open_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that redraws lines only on a terminal that can, whatever FORCE_COLOR says of a file or pipe."""
    stream = sys.stderr if stderr else sys.stdout
    dumb = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
    return Console(stderr=stderr, quiet=quiet, force_terminal=stream is not None and stream.isatty() and not dumb)


def figure(name: str, value: float) -> str:
    """Format a value of metrics.csv, with a true minus sign."""
    return f"{value:{'.2%' if name.endswith('_error') else '.5g'}}".replace("-", "−")


def brief(metrics: Mapping[str, float]) -> str:
    """Format the first test and the first training figure of an epoch: `test 8.3% train 1.2%`."""
    parts = []
    for kind in ("test", "train"):
        for name in [name for name in metrics if name.startswith(kind)][:1]:
            form = ".1%" if name.endswith("_error") else ".4g" if abs(metrics[name]) < 10_000 else ".0f"
            parts.append(f"{kind} {metrics[name]:{form}}")
    return " ".join(parts).replace("-", "−")


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
        self.resumed, self.began = reached, now
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

    def start(self) -> float:
        """Return the process's seconds outside its completed epochs, of which some have a known time."""
        return max(self.since - self.began - (self.reached - self.resumed) * median_low(self.recent), 0.0)

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
    """A column with the training speed and the run's time left."""

    def __init__(self, show: "Show") -> None:
        super().__init__()
        self.show = show

    def render(self, task: bars.Task) -> Text:
        speed, left = task.finished_speed or task.speed, self.show.seconds_left()
        parts = [f"{speed:.0f} {self.show.unit}/s"] if speed and task.total else []
        parts += [] if left is None else [f"{duration(left)} left"]
        return Text("  ".join(parts))


class Show:
    """A display of a run's events: a context manager to call with every event.

    title, folder: of the run. unit: what Progress counts.
    """

    def __init__(
        self, console: Console, title: str, folder: str, epochs: int, quiet: bool, unit: str = "images"
    ) -> None:
        self.console, self.title, self.folder, self.epochs = console, title, folder, epochs
        self.quiet, self.unit = quiet, unit
        self.bar = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=12),
            bars.TextColumn("{task.fields[epoch]}", markup=False),
            Pace(self),
            console=console,
            get_time=time.monotonic,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.bar.add_task("loading", total=None, epoch="")
        self.columns: list[str] = []  # of the epochs' rows
        self.time_left: TimeLeft | None = None

    def __enter__(self) -> "Show":
        self.line(self.title)
        self.line(f"  folder  {self.folder}")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: News) -> None:
        now = time.monotonic()
        if isinstance(event, Note):
            self.line(event.text)
        elif isinstance(event, Start):
            self.head(event)
            self.bar.update(self.task, description="training")
        elif isinstance(event, Progress):
            self.left(event, now).tick(event.epoch - 1 + event.done / event.total, now)
            self.move(event)
        else:
            self.left(event, now).epoch(event.epoch, now)
            self.row(event)

    def left(self, event: Progress | Epoch, now: float) -> TimeLeft:
        """Return the estimate of the time left, which begins with the first event of training."""
        if self.time_left is None:
            self.time_left = TimeLeft(self.epochs, event.epoch - 1, now)
        return self.time_left

    def seconds_left(self) -> float | None:
        """Return the seconds left of the run, or None if they are not known yet."""
        return None if self.time_left is None else self.time_left.seconds(time.monotonic())

    def line(self, text: str) -> None:
        """Print a line about the run, above the bar if there is one."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def head(self, start: Start) -> None:
        """Print the device, the data, the model's size, and how many epochs there are or which are done."""
        facts = start.record["facts"]
        lines = {"device": start.record["device_name"], "data": facts.get("data")}
        lines["model"] = f"{facts['parameters']:,} parameters".replace(",", " ") if "parameters" in facts else None
        resumed = start.reached or start.record.get("resumed")
        lines["epochs"] = f"{self.epochs}" + (f", resumes in epoch {start.reached + 1}" if resumed else "")
        for name, text in lines.items():
            if text:
                self.line(f"  {name:<6}  {printable(str(text), 200)}")

    def row(self, epoch: Epoch) -> None:
        """Print an epoch's row, before the first one the columns' names. On a terminal only as many as fit."""
        values = {name.replace("_", " "): figure(name, epoch.metrics[name]) for name in epoch.metrics if shown(name)}
        ends = {"time": f"{epoch.metrics['seconds']:.1f} s"}
        if not self.console.is_terminal:  # else the bar has it
            left = self.seconds_left() if epoch.epoch < self.epochs and not epoch.diverged else None
            ends["left"] = "" if left is None else duration(left)
        first = f"epoch {epoch.epoch:>{len(str(self.epochs))}}/{self.epochs}"
        if not self.columns:
            names, seen = list(values), self.console.is_terminal or self.console.file.isatty()  # else it is a file
            while seen and len(names) > 1 and self.width(first, [*names, *ends]) > self.console.width:
                names.pop()
            self.columns = [*names, *ends]
            self.line(" " * len(first) + "".join(f"  {name:>{CELL}}" for name in self.columns))
        values |= ends
        self.line((first + "".join(f"  {values[name]:>{max(CELL, len(name))}}" for name in self.columns)).rstrip())

    @staticmethod
    def width(first: str, columns: list[str]) -> int:
        """Return the characters of a row."""
        return len(first) + sum(2 + max(CELL, len(name)) for name in columns)

    def move(self, event: Progress) -> None:
        """Move the bar, which begins where the run resumes."""
        done, total = (event.epoch - 1) * event.total + event.done, self.epochs * event.total
        if self.bar.tasks[0].total is None:
            self.bar.reset(self.task, total=total, completed=done)
        self.bar.update(self.task, completed=done, epoch=f"epoch {event.epoch}/{self.epochs}")

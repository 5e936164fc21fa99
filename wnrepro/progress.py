"""What a person sees of a running experiment: a live bar on a terminal, plain lines elsewhere."""

import math
import time

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from wnrepro.events import Epoch, Note, Progress
from wnrepro.timeleft import TimeLeft, duration

NAME_WIDTH = 20


def describe(epoch: Epoch) -> str:
    """An epoch's row in words: errors in per cent, losses and bounds in nats, scores in the game's points."""
    parts = []
    for name, value in epoch.metrics.items():
        if name.endswith("_error"):
            parts.append(f"{name.replace('_', ' ')} {value:.2%}")
        elif name.endswith("_loss"):
            parts.append(f"{name.replace('_', ' ')} {value:.4g}")
        elif name.endswith("_bound_nats"):
            parts.append(f"{name.removesuffix('_nats').replace('_', ' ')} {value:.2f} nats")
        elif name == "test_bits_per_dim":
            parts.append(f"{value:.3f} bits/dim")
        elif name == "test_score":
            most, games = epoch.metrics["test_score_max"], epoch.metrics["episodes"]
            parts.append(f"test score {value:.1f} (max {most:.0f}, {games} games)")
        elif name == "mean_q":
            parts.append(f"mean Q {value:.3g}")
        elif name == "loss":
            parts.append(f"loss {value:.3g}")
        elif name == "epsilon":
            parts.append(f"ε {value:.2f}")
    return ", ".join(parts)


def brief(epoch: Epoch) -> str:
    """The same for the end of a bar."""
    parts = []
    for name, value in epoch.metrics.items():
        if name.endswith("_error"):
            parts.append(f"{name.removesuffix('_error')} {value:.1%}")
        elif name.endswith("_bound_nats"):
            parts.append(f"{name.removesuffix('_bound_nats')} {value:.1f} nats")
        elif name == "test_score":
            parts.append(f"score {value:.1f}")
    return " ".join(parts)


def short(name: str) -> str:
    """A run's name without its scale and experiment, cut to fit beside a bar."""
    variant = name.rsplit("/", 1)[-1]
    return variant if len(variant) <= NAME_WIDTH else variant[: NAME_WIDTH - 1] + "…"


class Left(ProgressColumn):
    """The time that is left of the run; at its end, the time that this process was at it."""

    def __init__(self, show: "Show") -> None:
        super().__init__()
        self.show = show

    def render(self, task: Task) -> Text:
        left = self.show.seconds_left()
        if task.finished and not left:
            return Text(duration(task.elapsed))
        return Text("" if left is None else f"{duration(left)} left")


class Show:
    """Shows a run's events; use as a context manager and call with every event. `unit`: of what a Progress counts."""

    def __init__(self, console: Console, name: str, epochs: int, quiet: bool, unit: str = "images") -> None:
        self.console, self.name, self.epochs, self.quiet = console, name, epochs, quiet
        self.lines = not quiet and not console.is_terminal
        self.bar = rich.progress.Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            TextColumn("{task.fields[speed]:.0f} " + unit + "/s"),
            Left(self),
            TextColumn("{task.fields[last]}", markup=False),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.time_left: TimeLeft | None = None
        self.mark: tuple[float, float] = (math.inf, 0.0)  # done and clock at the epoch's first tick

    def __enter__(self) -> "Show":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: Progress | Epoch | Note) -> None:
        if isinstance(event, Note):
            if not self.quiet:
                self.line(event.text)
            return
        now = time.monotonic()
        if self.time_left is None:
            self.time_left = TimeLeft(self.epochs, event.epoch - 1, now)
        if isinstance(event, Progress):
            self.time_left.tick(event.epoch - 1 + event.done / event.total, now)
            self.tick(event, now)
            return
        self.time_left.epoch(event.epoch, now)
        if self.task is not None:
            self.bar.update(self.task, last=brief(event))
        if self.lines:
            seconds = event.metrics["seconds"]
            left = self.seconds_left() if event.epoch < self.epochs and not event.diverged else None
            ahead = "" if left is None else f", {duration(left)} left"
            self.line(f"epoch {event.epoch}/{self.epochs}  {describe(event)}  {seconds:.1f} s{ahead}")

    def seconds_left(self) -> float | None:
        """Of the run; None where that cannot be told yet."""
        return None if self.time_left is None else self.time_left.seconds(time.monotonic())

    def line(self, text: str) -> None:
        """Print a line about the run, above the bar where there is one."""
        self.console.print(f"{self.name}  {text}", markup=False, highlight=False, soft_wrap=True)

    def tick(self, event: Progress, clock: float) -> None:
        """Move the bar; it starts where the run goes on."""
        done = (event.epoch - 1) * event.total + event.done
        if self.task is None:
            self.task = self.bar.add_task(
                short(self.name), total=self.epochs * event.total, completed=done, epoch=event.epoch, speed=0.0, last=""
            )
        if event.done <= self.mark[0]:  # a new epoch
            self.mark = (event.done, clock)
        speed = (event.done - self.mark[0]) / max(clock - self.mark[1], 1e-9)
        self.bar.update(self.task, completed=done, epoch=event.epoch, speed=speed)

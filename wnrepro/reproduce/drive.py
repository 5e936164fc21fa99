"""Takes the grid's runs to their ends: starts what fits, retries what fails, and waits for what others are at.

Imports no torch.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wnrepro.reproduce.plan import OVER, Line, state
from wnrepro.reproduce.work import Event, Job

MEMORY_EACH = 4 * 2**30  # bytes a run is given on a CPU where nothing says otherwise
TRIES = 3  # of a run, without an epoch between them
RETRY_SECONDS = 2.0
HELD_SECONDS = 5.0  # between two looks at a run that another process has


class Engine(Protocol):
    """Runs by name; `jobs` is how many it takes at a time, `threads` what each computes with."""

    jobs: int
    threads: int
    memory_bytes: int | None  # of all its runs together; None: not bounded

    def start(self, name: str, job: Job) -> None: ...
    def events(self, timeout: float) -> list[tuple[str, Event]]: ...
    def stop(self) -> None: ...


@dataclass
class Task:
    """A run on its way. state: waiting, running, held (by another process), done, diverged, failed."""

    line: Line
    state: str = "waiting"
    epochs: float = 0.0  # behind it, with the share of the one under way
    text: str = ""
    traceback: str = ""
    tries: int = 0  # since the last new epoch
    reached: int = 0  # whole epochs
    not_before: float = 0.0  # on the clock of time.monotonic, as `began`
    began: tuple[float, float] = (0.0, 0.0)  # when this process of it did, and at which epoch

    def __post_init__(self) -> None:
        self.epochs = float(self.line.state.epoch)
        if self.line.over:
            self.state = self.line.state.name

    @property
    def name(self) -> str:
        return f"{self.line.there.name}/{self.line.there.folder.name}"

    @property
    def over(self) -> bool:
        return self.state in (*OVER, "failed")

    @property
    def seconds_left(self) -> float | None:
        """Of computing: at the speed of its process or, before that can be told, as estimated; None: not known."""
        if self.over:
            return 0.0
        clock, epochs = self.began
        if self.state == "running" and self.epochs > epochs:
            return (time.monotonic() - clock) / (self.epochs - epochs) * (self.line.run.settings.epochs - self.epochs)
        return self.line.seconds_left


def drive(
    tasks: Sequence[Task], engine: Engine, results: Path, data_dir: Path | None, show: Callable[[Task, str], None]
) -> None:
    """Take these runs to their ends, in this order as far as the engine has room.

    `show` sees a task whenever there is news of it, and of what kind: start, progress, epoch, retry, held or end.
    A run whose process fails or is lost goes on from its checkpoint, TRIES times in a row without a new epoch.
    Whatever ends this ends the engine's processes too.
    """
    by_name = {task.name: task for task in tasks}
    try:
        while not all(task.over for task in tasks):
            for task in tasks:
                if task.state in ("waiting", "held") and fits(task, tasks, engine):
                    begin(task, engine, results, data_dir, show)
            for name, event in engine.events(timeout=0.2):
                hear(by_name[name], event, show)
    finally:
        engine.stop()


def fits(task: Task, tasks: Iterable[Task], engine: Engine) -> bool:
    """Whether a run may start now: it is time, a place is free, and so is the memory it is known, or given, to need."""
    running = [other for other in tasks if other.state == "running"]
    if time.monotonic() < task.not_before or len(running) >= engine.jobs:
        return False
    needed = sum(one.line.estimate.memory_bytes or MEMORY_EACH for one in (task, *running))
    return not running or engine.memory_bytes is None or needed <= engine.memory_bytes


def begin(task: Task, engine: Engine, results: Path, data_dir: Path | None, show: Callable[[Task, str], None]) -> None:
    """Start a run, unless another process is at it, or has ended it."""
    run, there = task.line.run, task.line.there
    now = state(there)
    if now.name in OVER:
        end(task, now.name, show)
    elif now.name == "running":
        hold(task, show)
    else:
        job = Job(
            run.experiment,
            run.scale,
            there.config["settings"],
            str(results.absolute()),
            str(data_dir.absolute()) if data_dir else None,
            "",  # the engine's choice
            engine.threads,
        )
        engine.start(task.name, job)
        task.state, task.epochs, task.reached = "running", now.epoch, now.epoch
        task.tries += 1
        task.began = time.monotonic(), float(now.epoch)
        show(task, "start")


def hear(task: Task, event: Event, show: Callable[[Task, str], None]) -> None:
    """Take in what a run's process says."""
    if event.outcome in OVER:
        task.epochs, task.text = event.epochs, event.text or task.text
        end(task, event.outcome, show)
    elif event.outcome == "held":
        hold(task, show)
    elif event.outcome:
        task.text, task.traceback = event.text, event.traceback
        if event.outcome == "refused" or task.tries >= TRIES:
            end(task, "failed", show)
        else:
            task.state, task.not_before = "waiting", time.monotonic() + RETRY_SECONDS
            show(task, "retry")
    else:
        task.epochs, task.text = event.epochs, event.text
        if int(event.epochs) > task.reached:
            task.reached, task.tries = int(event.epochs), 0
        show(task, "epoch" if event.epochs == task.reached else "progress")


def hold(task: Task, show: Callable[[Task, str], None]) -> None:
    """Come back to a run later, as another process is at it."""
    again = task.state == "held"
    task.state, task.tries, task.not_before = "held", 0, time.monotonic() + HELD_SECONDS
    if not again:
        show(task, "held")


def end(task: Task, outcome: str, show: Callable[[Task, str], None]) -> None:
    task.state = outcome
    show(task, "end")

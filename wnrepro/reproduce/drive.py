"""Takes the grid's runs to their ends: starts what fits, retries what fails, and waits for what others are at.

Within a budget of time it starts no run whose next epoch would not end in it. Imports no torch.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wnrepro.errors import UserError
from wnrepro.reproduce.plan import Line, cost, state, work
from wnrepro.reproduce.work import Event, Job
from wnrepro.runs.directory import FINISHED
from wnrepro.settings import about
from wnrepro.timeleft import TimeLeft

MEMORY_EACH = 4 * 2**30  # bytes a run is given on a CPU where nothing says otherwise
TRIES = 3  # of a run, without an epoch between them
RETRY_SECONDS = 2.0
HELD_SECONDS = 5.0  # between two looks at a run that another process has
LOADING_SECONDS = 5.0  # of a process until it trains, where none has been seen


def seconds_of(budget: str) -> float:
    """The seconds of `90s`, `25m`, `8h`, `1h30m`. Raises UserError where it is nothing of that kind."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", budget, re.ASCII)
    hours, minutes, seconds = (int(number or 0) for number in found.groups()) if found else (0, 0, 0)
    if not 0 < hours + minutes + seconds < 10**9:
        raise UserError(f"--budget {budget}: is no time; give one such as 90s, 25m, 8h or 1h30m")
    return 3600.0 * hours + 60 * minutes + seconds


class Engine(Protocol):
    """Runs by name."""

    side_by_side: dict[str, int]  # how many it takes at a time, by experiment
    threads: int  # with which each computes
    memory_bytes: int | None  # of all its runs together; None: not bounded
    stop_seconds: float  # that `stop`, and what comes after it, may take

    def room(self, experiment: str) -> bool: ...
    def start(self, name: str, job: Job) -> None: ...
    def events(self, timeout: float) -> list[tuple[str, Event]]: ...
    def end(self, name: str, /) -> None: ...
    def stop(self) -> None: ...


@dataclass
class Task:
    """A run on its way. state: waiting, running, held (by another process), stopped (for the budget), done, diverged,
    failed.
    """

    line: Line
    state: str = "waiting"
    epochs: float = 0.0  # behind it, with the share of the one under way
    text: str = ""
    traceback: str = ""
    tries: int = 0  # since the last new epoch
    graphs: bool = True  # whether its steps may be CUDA graphs: until one could not be captured, which ends its process
    reached: int = 0  # whole epochs
    not_before: float = 0.0  # on the clock of time.monotonic, as `began`
    began: float = 0.0  # when this process of it did
    time_left: TimeLeft | None = None  # by what this process of it says; None: nothing yet

    def __post_init__(self) -> None:
        self.epochs = float(self.line.state.epoch)
        if self.line.over:
            self.state = self.line.state.name

    @property
    def name(self) -> str:
        return f"{self.line.there.name}/{self.line.there.folder.name}"

    @property
    def over(self) -> bool:
        return self.state in (*FINISHED, "failed")

    @property
    def seconds_left(self) -> float | None:
        """Of computing: by its process or, before that can tell, as estimated; None: not known."""
        if self.over:
            return 0.0
        if self.state == "running" and self.time_left:
            seconds = self.time_left.seconds(time.monotonic())
            if seconds is not None:
                return seconds
        whole = self.line.estimate.seconds
        return None if whole is None else whole * (1 - self.epochs / self.line.run.settings.epochs)


class Pace:
    """How slow the processes of this command have been at their slowest."""

    def __init__(self) -> None:
        self.loading: dict[str, float] = {}  # seconds until there is news of a process, by experiment
        self.unit: dict[tuple[Any, ...], float] = {}  # seconds of an example (an agent step), by what it depends on

    def hear(self, task: Task, event: Event) -> float | None:
        """Take the time of what a run's process says; the seconds of the epoch, where it says that one is over."""
        now, run, seconds = time.monotonic(), task.line.run, None
        if task.time_left is None:
            self.loading[run.experiment] = max(self.loading.get(run.experiment, 0.0), now - task.began)
            task.time_left = TimeLeft(run.settings.epochs, task.reached, task.began)
        if int(event.epochs) > task.reached:
            seconds = task.time_left.epoch(int(event.epochs), now)
            like = run.experiment, *cost(run.settings)
            unit = seconds * run.settings.epochs / work(run.settings)
            self.unit[like] = max(self.unit.get(like, 0.0), unit)
        else:
            task.time_left.tick(event.epochs, now)
        return seconds

    def needed(self, line: Line) -> float:
        """Seconds until the next checkpoint of a run that starts now; 0 where nothing is known of it."""
        run = line.run
        unit = self.unit.get((run.experiment, *cost(run.settings)))
        whole = line.estimate.seconds if unit is None else unit * work(run.settings)
        loading = self.loading.get(run.experiment, 0.0 if whole is None else LOADING_SECONDS)
        return loading + (whole or 0.0) / run.settings.epochs


def drive(
    tasks: Sequence[Task],
    engine: Engine,
    results: Path,
    data_dir: Path | None,
    show: Callable[[Task, str], None],
    deadline: float = math.inf,
) -> None:
    """Take these runs to their ends, in this order as far as the engine has room.

    `show` sees a task whenever there is news of it, and of what kind: start, progress, epoch, retry, held, stop or end.
    A run whose process fails or is lost goes on from its checkpoint, TRIES times in a row without a new epoch; one of
    which a step could not be captured goes on without CUDA graphs.
    Whatever ends this ends the engine's processes too.

    deadline: on the clock of time.monotonic, when all of them have to have ended. A run starts where its next
    checkpoint can be there by then, as far as that can be told; it is stopped after the last one that can, so that its
    place serves another.
    """
    by_name, pace, until = {task.name: task for task in tasks}, Pace(), deadline - engine.stop_seconds

    def in_time(task: Task) -> bool:
        return task.state in ("waiting", "held") and time.monotonic() + pace.needed(task.line) <= until

    try:
        while time.monotonic() < until and any(task.state == "running" or in_time(task) for task in tasks):
            for task in tasks:
                if in_time(task) and fits(task, tasks, engine):
                    begin(task, engine, results, data_dir, show)
            for name, event in engine.events(timeout=0.2):
                task = by_name[name]
                if task.state != "running":  # the last words of one that was stopped
                    continue
                seconds = None if event.outcome else pace.hear(task, event)
                hear(task, event, show)
                more = event.epochs < task.line.run.settings.epochs
                if seconds is not None and more and time.monotonic() + seconds > until:
                    engine.end(name)
                    task.state = "stopped"
                    show(task, "stop")
    finally:
        engine.stop()


def fits(task: Task, tasks: Iterable[Task], engine: Engine) -> bool:
    """Whether a run may start now: it is time, a place is free, and so is the memory it is known, or given, to need."""
    running = [other for other in tasks if other.state == "running"]
    if time.monotonic() < task.not_before or not engine.room(task.line.run.experiment):
        return False
    needed = sum(one.line.estimate.memory_bytes or MEMORY_EACH for one in (task, *running))
    return not running or engine.memory_bytes is None or needed <= engine.memory_bytes


def begin(task: Task, engine: Engine, results: Path, data_dir: Path | None, show: Callable[[Task, str], None]) -> None:
    """Start a run, unless another process is at it, or has ended it."""
    run, there = task.line.run, task.line.there
    now = state(there)
    if now.name in FINISHED:
        end(task, now.name, show)
    elif now.name == "running":
        hold(task, show)
    else:
        source = about(run.settings.param).source
        job = Job(
            run.experiment,
            run.scale,
            there.config["settings"],
            str(results.absolute()),
            str(data_dir.absolute()) if data_dir else None,
            "",  # the engine's choice
            engine.threads,
            task.graphs,
            dataclasses.asdict(source) if source else None,
        )
        engine.start(task.name, job)
        task.state, task.epochs, task.reached = "running", now.epoch, now.epoch
        task.tries += 1
        task.began, task.time_left = time.monotonic(), None
        show(task, "start")


def hear(task: Task, event: Event, show: Callable[[Task, str], None]) -> None:
    """Take in what a run's process says."""
    if event.outcome in FINISHED:
        task.epochs, task.text = event.epochs, event.text or task.text
        end(task, event.outcome, show)
    elif event.outcome == "held":
        hold(task, show)
    elif event.outcome:
        task.text, task.traceback = event.text, event.traceback
        if event.outcome == "uncaptured" and task.graphs:
            task.graphs, task.tries = False, 0
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

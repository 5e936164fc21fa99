"""The scheduler of the grid's runs: it starts runs that fit, retries failed runs, and waits for other processes' runs.

It starts no run whose next epoch would end after the time budget. This module does not import torch.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnrepro import signals
from wnrepro.errors import UserError
from wnrepro.progress import TimeLeft
from wnrepro.reproduce.costs import Speeds, cost
from wnrepro.reproduce.plan import Task, state
from wnrepro.reproduce.work import Event, Job
from wnrepro.runs.directory import FINISHED
from wnrepro.runs.outcome import last_figures
from wnrepro.settings import about

if TYPE_CHECKING:
    from wnrepro.reproduce.engines import Engine

MEMORY_EACH = 4 * 2**30  # bytes that a run on a CPU is assumed to need if there is no estimate
TRIES = 3  # of a run, without a new epoch between them
RETRY_SECONDS = 2.0
HELD_SECONDS = 5.0  # between two checks of a run that another process executes
CHECKPOINT_SECONDS = 10.0  # for the checkpoints of all runs after a signal that ends the command
LOADING_SECONDS = 5.0  # from a process's start to its first event, if none has been measured

Show = Callable[[Task, str], None]  # receives a task and its news: start, progress, epoch, retry, held, stop or end


def seconds_of(budget: str) -> float:
    """Return the seconds of `90s`, `25m`, `8h` or `1h30m`. Raises UserError for other text."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", budget, re.ASCII)
    hours, minutes, seconds = (int(number or 0) for number in found.groups()) if found else (0, 0, 0)
    if not 0 < hours + minutes + seconds < 10**9:
        raise UserError(f"--budget {budget}: is not a time; use a form like 90s, 25m, 8h or 1h30m")
    return 3600.0 * hours + 60 * minutes + seconds


def drive(
    tasks: Sequence[Task],
    engine: "Engine",
    results: Path,
    data_dir: Path | None,
    show: Show,
    deadline: float = math.inf,
    **of_jobs: Any,
) -> None:
    """Execute these runs, in this order as far as the engine has room.

    A run whose process fails or is lost resumes from its checkpoint, until TRIES starts in a row gave no new epoch. If
    a step could not be captured, the run resumes without CUDA graphs. The engine's processes always end with this call;
    after an interruption, they first write checkpoints.

    deadline: the time, on time.monotonic's clock, when all runs must have ended. A run starts if its next checkpoint is
    expected before then, or its speed is unknown. When its next epoch is not, it writes a checkpoint, stops, and frees
    its place. of_jobs: further fields of every Job.
    """
    Driver(tasks, engine, results, data_dir, show, deadline - engine.stop_seconds, of_jobs).run()


class Driver:
    """The state of `drive`, the longest times that this command's processes have taken, and their speeds."""

    def __init__(
        self,
        tasks: Sequence[Task],
        engine: "Engine",
        results: Path,
        data_dir: Path | None,
        show: Show,
        until: float,
        of_jobs: Mapping[str, Any],
    ) -> None:
        self.tasks, self.engine, self.show, self.until = {task.name: task for task in tasks}, engine, show, until
        self.results, self.data_dir, self.of_jobs = results.absolute(), data_dir and data_dir.absolute(), of_jobs
        self.loading: dict[str, float] = {}  # seconds until a process's first event, by experiment
        self.example: dict[tuple[Any, ...], float] = {}  # seconds of an example or agent step, by `cost`
        self.speeds, self.starts = Speeds(), Speeds()  # of epochs and of starts, beside their estimates
        self.pausing: set[str] = set()  # runs that write their last checkpoint within the budget

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                if signals.checkpoint_wanted():
                    self.engine.save()
                if not any(task.state == "running" or self.in_time(task) for task in self.tasks.values()):
                    return
                for task in self.tasks.values():
                    if self.in_time(task) and self.fits(task):
                        self.begin(task)
                timeout = 0.2
                while received := self.engine.event(timeout):
                    name, event = received
                    self.handle_event(self.tasks[name], event)
                    timeout = 0
                    if event.outcome:  # its place is free
                        break
        except KeyboardInterrupt:
            self.engine.stop(CHECKPOINT_SECONDS)
            raise
        finally:
            self.engine.stop()

    def in_time(self, task: Task) -> bool:
        """Test whether a run could start now and write a checkpoint in time. Unknown times count as 0."""
        if task.state not in ("waiting", "held"):
            return False
        settings, example = task.run.settings, self.example.get(cost(task.run))
        known = not task.estimate.shipped or self.speeds.recent  # another machine's speed is none
        whole = (task.estimate.seconds or 0.0) * task.pace if known else 0.0
        epoch = whole / settings.epochs if example is None else example * settings.epoch_size
        loading = self.loading.get(task.run.experiment, LOADING_SECONDS if epoch else 0.0)
        return time.monotonic() + loading + epoch <= self.until

    def fits(self, task: Task) -> bool:
        """Test whether a task need not wait, and the engine has a place and enough memory for it."""
        if time.monotonic() < task.not_before or self.engine.place(task.run.experiment) is None:
            return False
        running = [other for other in self.tasks.values() if other.state == "running"]
        needed = sum(one.estimate.memory_bytes or MEMORY_EACH for one in (task, *running))
        return not running or self.engine.memory_bytes is None or needed <= self.engine.memory_bytes

    def begin(self, task: Task) -> None:
        """Start a run, unless another process executes it or has finished it."""
        found = state(task.directory)
        if found.name in FINISHED:
            task.epochs, task.text = float(found.epoch), last_figures(task.directory.folder)
            self.set_state(task, found.name, "end")
        elif found.name == "odd":
            task.text = found.message
            self.set_state(task, "failed", "end")
        elif found.name == "running":
            self.hold(task)
        else:
            source = about(task.run.settings.param).source
            one = {"graphs": task.graphs, "source": source, **self.of_jobs}
            job = Job(task.run, self.results, self.data_dir, self.engine.threads, **one)
            task.epochs, task.tries = float(found.epoch), task.tries + 1
            task.furthest = max(task.furthest, found.epoch)
            task.began, task.time_left = time.monotonic(), None
            self.engine.start(task.name, job)
            self.set_state(task, "running", "start")

    def handle_event(self, task: Task, event: Event) -> None:
        """Update a task by an event of its run, and stop the run if its next epoch would not end in time."""
        if event.outcome:
            self.handle_outcome(task, event)
            return
        now, run, reached = time.monotonic(), task.run, task.reached
        if task.time_left is None:
            self.loading[run.experiment] = max(self.loading.get(run.experiment, 0.0), now - task.began)
            task.time_left = TimeLeft(run.settings.epochs, reached, task.began)
        task.epochs, task.text = event.epochs, event.text or task.text
        if task.reached == reached:
            task.time_left.tick(event.epochs, now)
            self.show(task, "progress")
            return
        if task.reached > task.furthest:  # else it repeats epochs that a process that died had not saved
            task.tries, task.furthest = 0, task.reached
        seconds = task.time_left.epoch(task.reached, now)
        self.example[cost(run)] = max(self.example.get(cost(run), 0.0), seconds / run.settings.epoch_size)
        self.learn(task)
        self.show(task, "epoch")
        if task.reached < run.settings.epochs and now + seconds > self.until and task.name not in self.pausing:
            self.pausing.add(task.name)
            self.engine.pause(task.name)

    def learn(self, task: Task) -> None:
        """Update the estimates of all runs by the epoch that a run has just completed."""
        run, pace = task.run, task.time_left
        if pace is None or not pace.recent:
            return
        if task.estimate.seconds is None:
            whole = pace.recent[-1] / run.settings.epoch_size
            for other in self.tasks.values():
                if other.estimate.seconds is None and cost(other.run) == cost(run):
                    size = other.run.settings.epochs * other.run.settings.epoch_size
                    other.estimate = other.estimate._replace(seconds=whole * size, source="this command")
        self.speeds.add(run, pace.recent[-1] * run.settings.epochs / (task.estimate.seconds or math.inf))
        if len(pace.recent) == 2 and task.estimate.start:
            self.starts.add(run, pace.start() / task.estimate.start)
        for other in self.tasks.values():
            other.pace = self.speeds.ratio(other.run)
            other.start_pace = self.starts.ratio(other.run, other.pace)

    def handle_outcome(self, task: Task, event: Event) -> None:
        """Update a task whose run's process has ended or did not start."""
        if event.outcome == "held":
            self.hold(task)
            return
        if event.outcome == "lost" and task.name in self.pausing:
            self.set_state(task, "stopped", "stop")
            return
        task.text, task.traceback = event.text or task.text, event.traceback
        if event.outcome in FINISHED:
            task.epochs = event.epochs
            self.set_state(task, event.outcome, "end")
            return
        if event.outcome == "uncaptured" and task.graphs:
            task.graphs, task.tries = False, 0
        if event.outcome == "refused" or task.tries >= TRIES:
            self.set_state(task, "failed", "end")
        else:
            task.epochs = float(state(task.directory).epoch)  # without those that it had not saved
            task.not_before = time.monotonic() + RETRY_SECONDS
            self.set_state(task, "waiting", "retry")

    def hold(self, task: Task) -> None:
        """Wait before the next check of a run that another process executes."""
        task.tries, task.not_before = 0, time.monotonic() + HELD_SECONDS
        if task.state != "held":
            self.set_state(task, "held", "held")

    def set_state(self, task: Task, state: str, news: str) -> None:
        task.state = state
        self.show(task, news)

"""The state of the grid's runs, and estimates of what the remaining ones need. This module does not import torch."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from wnrepro.errors import UserError
from wnrepro.machine import processor_name
from wnrepro.progress import TimeLeft
from wnrepro.records import Benchmark, RunConfig, RunRecord, StepTimes, read_model
from wnrepro.reproduce.costs import Speeds, cost, prior, processor, together
from wnrepro.reproduce.grid import Planned, seeds
from wnrepro.runs.directory import FINISHED, PUBLISHED, RunDirectory
from wnrepro.runs.outcome import last_figures
from wnrepro.settings import PRECISIONS, scale_settings, settings_from
from wnrepro.text import json_text, printable

if TYPE_CHECKING:
    from wnrepro.report.claims.claim import Power

# done, diverged, failed: as in run.json. running: a process holds the lock. stopped: no process does, and the run can
# resume from its last checkpoint. missing: there is no run.json. odd: the folder has other settings, or damaged files.
STATES = ("done", "diverged", "running", "stopped", "failed", "missing", "odd")

LONGEST_SECONDS = 1e6  # plausible limit for an example
MOST_ON_A_GPU = 100  # runs
NEARLY_BEST = 0.95  # of the highest number of steps per second
CONTEXT_BYTES = 10**9  # GPU memory of a process besides its tensors


class State(NamedTuple):
    """A run's state on disk: one of STATES, the completed epochs, and run.json's message or what is odd."""

    name: str
    epoch: int = 0
    message: str = ""


def state(directory: RunDirectory) -> State:
    """Read the state of a run."""
    try:
        record = directory.record()
    except UserError as error:
        return State("odd", 0, str(error))
    if record is None:
        return State("running" if directory.locked() else "missing")
    status, epoch = record["status"], record["epoch"]
    if not 0 <= epoch <= directory.epochs:
        path = directory.folder / "run.json"
        return State("odd", 0, f"{path}: its epoch is not in the range of the run; fix it, or start again with --fresh")
    if status in FINISHED:
        return State(status, epoch)
    if directory.locked():
        return State("running", epoch)
    message = printable(str(record.get("message") or ""), 2000)
    return State("failed" if status == "failed" else "stopped", epoch, message)


class Estimate(NamedTuple):
    """The time and memory of a whole run on this device (None: unknown), and the source of the estimate.

    seconds: of all its epochs; start: those that its process needs besides; shipped: whether they are not from here.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    source: str = ""
    start: float = 0.0
    shipped: bool = False


UNKNOWN = Estimate()


@dataclass
class Task:
    """A run of the grid: its state on disk, its estimate, and its progress while `drive` works on it.

    state: waiting, running, held (by another process), stopped (by the budget), done, diverged, failed.
    """

    run: Planned
    directory: RunDirectory
    found: State
    estimate: Estimate = UNKNOWN
    state: str = "waiting"
    epochs: float = 0.0  # completed, with the share of the current one
    text: str = ""
    traceback: str = ""
    tries: int = 0  # since the last new epoch
    furthest: int = 0  # the most epochs that any process has completed, saved or not
    graphs: bool = True  # whether its steps may be CUDA graphs; False after a failed capture
    not_before: float = 0.0  # on time.monotonic's clock, like `began`
    began: float = 0.0  # the start of its current process
    time_left: TimeLeft | None = None  # of its current process
    pace: float = 1.0  # of the estimated time of its epochs, by the epochs of all runs of this command
    start_pace: float = 1.0  # of the estimated time of its start

    def __post_init__(self) -> None:
        self.epochs = float(self.found.epoch)
        if self.found.name in FINISHED:
            self.state = self.found.name
        elif self.found.name == "odd":
            self.state, self.text = "failed", self.found.message
        if self.found.epoch:
            self.text = last_figures(self.directory.folder)

    @property
    def name(self) -> str:
        return f"{self.directory.name}/{self.directory.folder.name}"

    @property
    def reached(self) -> int:
        """The number of completed epochs."""
        return int(self.epochs)

    @property
    def over(self) -> bool:
        return self.state in (*FINISHED, "failed")

    @property
    def seconds_left(self) -> float | None:
        """Seconds of computing left, measured by its process or else estimated. None: unknown."""
        if self.over:
            return 0.0
        if self.state == "running" and self.time_left:
            seconds = self.time_left.seconds(time.monotonic())
            if seconds is not None:
                return seconds
        if self.estimate.seconds is None:
            return None
        start = self.estimate.start * self.start_pace
        if self.state == "running":
            start = 0.0 if self.time_left else max(start - (time.monotonic() - self.began), 0.0)
        return self.estimate.seconds * self.pace * (1 - self.epochs / self.run.settings.epochs) + start


def plan(results: Path, runs: Sequence[Planned]) -> list[Task]:
    """Return the tasks of these runs, with their states on disk but no estimates."""
    directories = [run.directory(results) for run in runs]
    return [Task(run, one, state(one)) for run, one in zip(runs, directories, strict=True)]


# ------------------------------------------------------------------------------- estimates


class Measured(NamedTuple):
    """The measured time and memory of a run, or of training steps that `bench` timed."""

    run: Planned
    device: str
    seconds: float  # per example or agent step
    memory_bytes: int | None
    source: str  # "run" or "bench"


Model = TypeVar("Model", RunRecord, Benchmark)


def files(results: Path, pattern: str, model: type[Model], device: str) -> Iterator[tuple[Path, Model]]:
    """Yield the JSON files from this processor or GPU, the published ones first, except damaged ones."""
    for path in (*sorted((results / PUBLISHED).glob(pattern)), *sorted(results.glob(pattern))):
        with contextlib.suppress(UserError):
            content, _ = read_model(path, model)
            if processor(content.device_name) == processor(device):
                yield path, content


def measured(results: Path, device: str) -> list[Measured]:
    """Return the measurements of the runs and benchmarks in `results` on this processor or GPU."""
    found = []
    for path, record in files(results, "*/*/*/seed-*/run.json", RunRecord, device):
        with contextlib.suppress(UserError):
            config, _ = read_model(path.with_name("config.json"), RunConfig)
            settings = settings_from(config.experiment, config.settings.model_dump())
            run = Planned(config.experiment, config.scale, settings)
            alone = all(start.together == 1 for start in (record, *record.resumed))
            if record.seconds and record.epoch > 0 and alone:
                seconds = record.seconds / (record.epoch * settings.epoch_size)
                found.append(Measured(run, record.device_name, seconds, record.peak_memory_bytes, "run"))
    for _, bench in files(results, "bench/*.json", Benchmark, device):
        for experiment, figures in bench.experiments.items():
            with contextlib.suppress(UserError):
                found += benchmarked(experiment, figures)
    return [one for one in found if 0 < one.seconds <= LONGEST_SECONDS]


def benchmarked(experiment: str, figures: StepTimes) -> list[Measured]:
    """Return `bench`'s measurements at the paper's settings. For dqn, the memory includes the full replay."""
    found = []
    for name, times in figures.seconds.items():
        param, _, precision = name.partition(" ")  # other entries are `plain wn` and `wn, learning`
        precision = precision or PRECISIONS[0]
        if precision not in PRECISIONS:
            continue
        settings = scale_settings(experiment, "paper", param, precision=precision)
        peak = figures.memory.get(name)
        if replay := figures.replay_memory:  # valid only for a replay on the same device
            peak = replay.peak_bytes if replay.on == figures.device else None
        seconds = median(times) / settings.step_size
        found.append(Measured(Planned(experiment, "paper", settings), figures.device_name, seconds, peak, "bench"))
    return found


def estimate(run: Planned, device: str, known: Sequence[Measured]) -> Estimate:
    """Estimate a run from the most similar measurements with the same model, minibatch and precision.

    The same parameterization counts most, then the same number of threads, then a run rather than a benchmark. The
    time is their median. The memory is the maximum over measurements at the same scale.
    """
    same = [one for one in known if cost(one.run) == cost(run)]

    def likeness(one: Measured) -> tuple[bool, bool, bool]:
        return one.run.settings.param == run.settings.param, one.device == device, one.source == "run"

    if not same:
        return Estimate()
    best = max(map(likeness, same))
    nearest = [one for one in same if likeness(one) == best]
    seconds = median(one.seconds for one in nearest) * run.settings.epochs * run.settings.epoch_size
    memory = [one for one in same if one.run.scale == run.scale and one.memory_bytes]
    memory = [one for one in memory if one.run.settings.param == run.settings.param] or memory
    kind = nearest[0].source
    source = f"{len(nearest)} {kind}{'s' if kind == 'run' and len(nearest) > 1 else ''}"
    return Estimate(seconds, max((one.memory_bytes or 0 for one in memory), default=0) or None, source)


def from_prior(run: Planned, device: str, here: Speeds) -> Estimate:
    """Estimate a run from the shipped costs, by the speed of this device beside them if it is another."""
    found = prior(run, device)
    if found is None:
        return UNKNOWN
    ratio = 1.0 if processor(found.device) == processor(device) else here.ratio(run)
    seconds = ratio * found.example * run.settings.epochs * run.settings.epoch_size
    source = f"shipped, {processor(found.device)}{'' if ratio == 1 else f' × {ratio:.2g}'}"
    return Estimate(seconds, None, source, ratio * found.start, shipped=True)


def estimates(runs: Sequence[Planned], results: Path, device: str, by_bench: bool = False) -> list[Estimate]:
    """Estimate runs on this device (a `device_name` as in run.json), from what was measured on it, or as shipped.

    by_bench: leave out its runs, which may have shared it with other work.
    """
    known, here, found = measured(results, device), Speeds(), []
    known = [one for one in known if one.source == "bench" or not by_bench]
    for one in known:
        if expected := prior(one.run, device):
            here.add(one.run, one.seconds / expected.example)
    for run in runs:
        own, shipped = estimate(run, device, known), from_prior(run, device, here)
        found.append(shipped if own.seconds is None else own._replace(start=shipped.start))
    return found


def estimate_all(tasks: Sequence[Task], results: Path, device: str) -> None:
    """Estimate each task's run on this device."""
    for task, one in zip(tasks, estimates([task.run for task in tasks], results, device), strict=True):
        task.estimate = one


def expected(runs: Sequence[Planned], results: Path, device: str | None = None) -> Estimate:
    """Estimate these runs, one after another, before anything ran. device: by default one thread of this processor."""
    found = estimates(runs, results, device or f"{processor_name()}, 1 thread")
    seconds = [one.seconds + one.start for one in found if one.seconds is not None]
    sources = "; ".join(dict.fromkeys(one.source for one in found if one.source))
    return Estimate(sum(seconds) if len(seconds) == len(runs) else None, source=sources)


def packing(tasks: Sequence[Task], results: Path, device: str, memory_bytes: int) -> dict[str, int]:
    """Return how many runs of each experiment should share a GPU of this memory; 1 if `bench` has not measured it.

    This is the smallest number of runs whose total speed in `bench` is at least NEARLY_BEST of the highest one. It is
    reduced if the estimated memory of the runs exceeds the GPU's.
    """
    left = [task for task in tasks if not task.over]
    shared = {task.run.experiment: 1 for task in left}
    for _, bench in files(results, "bench/*.json", Benchmark, device):
        for experiment in shared.keys() & bench.experiments.keys():
            measured = bench.experiments[experiment].side_by_side.items()
            if rates := {runs: rate for runs, rate in measured if 1 <= runs <= MOST_ON_A_GPU}:
                enough = NEARLY_BEST * max(rates.values())
                shared[experiment] = min(runs for runs, rate in rates.items() if rate >= enough)
    for task in left:
        if task.estimate.memory_bytes:
            room = memory_bytes // (task.estimate.memory_bytes + CONTEXT_BYTES)
            shared[task.run.experiment] = max(1, min(shared[task.run.experiment], room))
    return shared


# ------------------------------------------------------------------------------- the whole grid


class Promise(NamedTuple):
    """A claim, the number of seeds that the grid gives it, and their power."""

    claim: str
    seeds: int
    power: "Power"


def promises(tasks: Sequence[Task], scale: str) -> list[Promise]:
    """Return the empirical claims that these runs serve, with their power. Only scale paper has claims."""
    if scale != "paper":
        return []
    from wnrepro.report.claims import CLAIMS

    serves, counts = {name for task in tasks for name in task.run.serves}, seeds(scale)
    served = [claim for claim in CLAIMS if claim.id in serves]
    return [Promise(claim.id, counts[claim.id], found) for claim in served if (found := claim.power(counts[claim.id]))]


class Left(NamedTuple):
    """The time until a grid's last run ends (None: no run's is known), and the number of runs that it counts."""

    seconds: float | None
    runs: int


def time_left(tasks: Sequence[Task], side_by_side: Mapping[str, int]) -> Left:
    """Return the time left of a grid with this number of parallel runs of each experiment."""
    order = sorted((task for task in tasks if not task.over), key=lambda task: task.state != "running")
    known = [(task.run.experiment, seconds) for task in order if (seconds := task.seconds_left) is not None]
    return Left(together(known, side_by_side) if known or not order else None, len(known))


def totals(tasks: Sequence[Task], side_by_side: Mapping[str, int]) -> dict[str, Any]:
    """Return the number of runs by state, the hours left of runs with a known time, and the largest memory."""
    left = [task for task in tasks if not task.over]
    known = [seconds for task in left if (seconds := task.seconds_left) is not None]
    return {
        "runs": len(tasks),
        **{name: sum(task.found.name == name for task in tasks) for name in STATES},
        "hours_left": round(sum(known) / 3600, 3),
        "hours_left_side_by_side": round((time_left(tasks, side_by_side).seconds or 0.0) / 3600, 3),
        "hours_left_known_for": len(known),
        "side_by_side": {task.run.experiment: side_by_side.get(task.run.experiment, 1) for task in left},
        "memory_bytes_most": max((task.estimate.memory_bytes or 0 for task in left), default=0) or None,
    }


def as_json(
    tasks: Sequence[Task], promised: Sequence[Promise], side_by_side: Mapping[str, int], scale: str, **more: Any
) -> str:
    """Return the plan as JSON, with the entries `more` beside its totals."""
    rows = [
        {
            "run": str(task.directory.folder),
            "experiment": task.run.experiment,
            "serves": list(task.run.serves),
            "state": task.found.name,
            "epoch": task.found.epoch,
            "epochs": task.run.settings.epochs,
            "message": task.found.message,
            "seconds_left": task.seconds_left,
            "memory_bytes": task.estimate.memory_bytes,
            "estimated_from": task.estimate.source,
        }
        for task in tasks
    ]
    claims = [
        {
            "claim": claim,
            "seeds": number,
            "look": power.n,
            "smallest_difference": power.difference,
            "reproduced_if_the_paper_is_true": power.true,
            "reproduced_if_there_is_no_effect": power.null,
            "seeds_for_80_percent": power.seeds80,
        }
        for claim, number, power in promised
    ]
    content = {"scale": scale, **more, **totals(tasks, side_by_side), "claims": claims, "grid": rows}
    return json_text(content)

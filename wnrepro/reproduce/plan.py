"""What of the grid is done, what is left, and what that takes here. Imports no torch."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from wnrepro.errors import UserError
from wnrepro.progress import TimeLeft
from wnrepro.reproduce.grid import Planned, seeds
from wnrepro.runs.directory import FINISHED, PUBLISHED, RunDirectory, read_json
from wnrepro.settings import PRECISIONS, SETTINGS, scale_settings, settings_from
from wnrepro.text import printable

if TYPE_CHECKING:
    from wnrepro.report.claims.claim import Power

# done, diverged, failed: as run.json says. running: a process holds the directory; stopped: none does, and it resumes
# from its last epoch; missing: nothing is there.
STATES = ("done", "diverged", "running", "stopped", "failed", "missing")

DAMAGED = (UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what such a file leads to
LONGEST_SECONDS = 1e6  # that an example can take
NEARLY_BEST = 0.95  # of the most steps a second
CONTEXT_BYTES = 10**9  # that a process takes of a GPU besides its tensors


class State(NamedTuple):
    """What a run's directory says: one of STATES, the epochs done, and run.json's message."""

    name: str
    epoch: int = 0
    message: str = ""


def state(there: RunDirectory) -> State:
    """Read the state of a run. Raises UserError where its directory has other settings or damaged files."""
    record = there.record()
    if record is None:
        return State("running" if there.locked() else "missing")
    status, epoch = record["status"], record["epoch"]
    if not 0 <= epoch <= there.epochs:
        raise UserError(f"{there.folder / 'run.json'}: its epoch is none of the run's; mend it, or start with --fresh")
    if status in FINISHED:
        return State(status, epoch)
    if there.locked():
        return State("running", epoch)
    message = printable(str(record.get("message") or ""), 2000)
    return State("failed" if status == "failed" else "stopped", epoch, message)


class Estimate(NamedTuple):
    """What a whole run takes on this device (None: not known), and what this was taken from."""

    seconds: float | None = None
    memory_bytes: int | None = None
    source: str = ""


UNKNOWN = Estimate()


@dataclass
class Task:
    """A run of the grid: what is on disk, what it takes here, and how it goes while `drive` works on it.

    state: waiting, running, held (by another process), stopped (for the budget), done, diverged, failed.
    """

    run: Planned
    there: RunDirectory
    found: State
    estimate: Estimate = UNKNOWN
    state: str = "waiting"
    epochs: float = 0.0  # completed, with the share of the current one
    text: str = ""
    traceback: str = ""
    tries: int = 0  # since the last new epoch
    graphs: bool = True  # whether its steps may be CUDA graphs: until one could not be captured
    not_before: float = 0.0  # on the clock of time.monotonic, as `began`
    began: float = 0.0  # when its current process did
    time_left: TimeLeft | None = None  # of its current process

    def __post_init__(self) -> None:
        self.epochs = float(self.found.epoch)
        if self.found.name in FINISHED:
            self.state = self.found.name

    @property
    def name(self) -> str:
        return f"{self.there.name}/{self.there.folder.name}"

    @property
    def reached(self) -> int:
        """Completed epochs."""
        return int(self.epochs)

    @property
    def over(self) -> bool:
        return self.state in (*FINISHED, "failed")

    @property
    def seconds_left(self) -> float | None:
        """Seconds of computing left: by its process or, before that can tell, as estimated; None: not known."""
        if self.over:
            return 0.0
        if self.state == "running" and self.time_left:
            seconds = self.time_left.seconds(time.monotonic())
            if seconds is not None:
                return seconds
        whole = self.estimate.seconds
        return None if whole is None else whole * (1 - self.epochs / self.run.settings.epochs)


def plan(results: Path, runs: Sequence[Planned]) -> list[Task]:
    """Return what is on disk of these runs, without estimates. Raises UserError as `state`."""
    there = [run.directory(results) for run in runs]
    return [Task(run, one, state(one)) for run, one in zip(runs, there, strict=True)]


# ------------------------------------------------------------------------------- estimates


def cost(run: Planned) -> tuple[Any, ...]:
    """Return what the time of an example (of dqn: an agent step) depends on, besides the parameterization."""
    return run.experiment, *(getattr(run.settings, name) for name in run.settings.cost)


class Measured(NamedTuple):
    """What a run, or training steps that `bench` timed, took."""

    run: Planned
    device: str
    seconds: float  # an example, or an agent step
    memory_bytes: int | None
    source: str  # "run" or "bench"


def files(results: Path, pattern: str, device: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the published JSON files of this processor or GPU and then one's own; damaged ones are passed over."""
    for path in (*sorted((results / PUBLISHED).glob(pattern)), *sorted(results.glob(pattern))):
        with contextlib.suppress(*DAMAGED):
            content = read_json(path) or {}
            if processor(content["device_name"]) == processor(device):
                yield path, content


def processor(device_name: str) -> str:
    """Return the device without the number of its threads."""
    return device_name.rsplit(", ", 1)[0]


def measured(results: Path, device: str) -> list[Measured]:
    """Return what the runs and benchmarks in `results`, one's own and published, took on this processor or GPU."""
    found = []
    for path, record in files(results, "*/*/*/seed-*/run.json", device):
        with contextlib.suppress(*DAMAGED):
            config = read_json(path.with_name("config.json")) or {}
            run = Planned(
                config["experiment"], config["scale"], settings_from(config["experiment"], config["settings"])
            )
            seconds = record["seconds"] / (record["epoch"] * run.settings.epoch_size)
            found.append(Measured(run, record["device_name"], seconds, record["peak_memory_bytes"], "run"))
    for _, bench in files(results, "bench/*.json", device):
        for experiment in SETTINGS.keys() & bench.keys():
            with contextlib.suppress(*DAMAGED):
                found += benchmarked(experiment, bench["device_name"], bench[experiment])
    return [one for one in found if believable(one)]


def believable(one: Measured) -> bool:
    """Return whether a time and a memory can be such."""
    memory = one.memory_bytes
    return 0 < one.seconds <= LONGEST_SECONDS and (memory is None or (type(memory) is int and 0 <= memory <= 2**53))


def benchmarked(experiment: str, device: str, figures: dict[str, Any]) -> list[Measured]:
    """Return the training steps that `bench` timed, at the paper's settings; dqn's memory is with the full replay."""
    found, memory = [], figures.get("memory", {})
    for name, times in figures["seconds"].items():
        param, _, precision = name.partition(" ")  # other entries are `plain wn` and `wn, learning`
        precision = precision or PRECISIONS[0]
        if precision not in PRECISIONS:
            continue
        settings = scale_settings(experiment, "paper", param, precision=precision)
        peak = memory.get(name)
        if replay := figures.get("replay_memory"):  # on another device it says nothing of this one
            peak = replay["peak_bytes"] if replay["on"] == figures["device"] else None
        seconds = median(times) / settings.step_size
        found.append(Measured(Planned(experiment, "paper", settings), device, seconds, peak, "bench"))
    return found


def estimate(run: Planned, device: str, known: Sequence[Measured]) -> Estimate:
    """Estimate a run from what is most alike among those of the same model, minibatch and precision.

    A parameterization counts for more than the number of threads, that for more than a run before a benchmark, and
    memory is only known from the same scale. Times are medians, memory the most.
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


def estimate_all(tasks: Sequence[Task], results: Path, device: str) -> None:
    """Estimate what each run takes on this device (as in run.json's `device_name`)."""
    known = measured(results, device)
    for task in tasks:
        task.estimate = estimate(task.run, device, known)


def packing(tasks: Sequence[Task], results: Path, device: str, memory_bytes: int) -> dict[str, int]:
    """Return how many runs of each experiment share a GPU of so much memory, by their estimates; 1 where nothing tells.

    As many as took the most training steps a second together by `bench`, the fewest within NEARLY_BEST of that, as far
    as the memory that a run is known to need allows.
    """
    left = [task for task in tasks if not task.over]
    shared = {task.run.experiment: 1 for task in left}
    for _, bench in files(results, "bench/*.json", device):
        for experiment in shared.keys() & bench.keys():
            with contextlib.suppress(*DAMAGED):
                rates = {int(runs): float(rate) for runs, rate in bench[experiment]["side_by_side"].items()}
                enough = NEARLY_BEST * max(rates.values())
                shared[experiment] = max(1, min(runs for runs, rate in rates.items() if rate >= enough))
    for task in left:
        if task.estimate.memory_bytes:
            room = memory_bytes // (task.estimate.memory_bytes + CONTEXT_BYTES)
            shared[task.run.experiment] = max(1, min(shared[task.run.experiment], room))
    return shared


# ------------------------------------------------------------------------------- the whole


class Promise(NamedTuple):
    """A claim, the seeds that the grid gives it, and their power."""

    claim: str
    seeds: int
    power: "Power"


def promises(tasks: Sequence[Task], scale: str) -> list[Promise]:
    """Return those of the empirical claims that these runs serve; only scale paper has claims."""
    if scale != "paper":
        return []
    from wnrepro.report.claims import CLAIMS

    serves, there = {name for task in tasks for name in task.run.serves}, seeds(scale)
    served = [claim for claim in CLAIMS if claim.id in serves]
    return [Promise(claim.id, there[claim.id], found) for claim in served if (found := claim.power(there[claim.id]))]


def hours_together(left: Sequence[tuple[str, float]], side_by_side: Mapping[str, int]) -> float:
    """Return the hours of runs, given as experiment and seconds, with this number of each experiment side by side."""
    return sum(seconds / min(side_by_side.get(experiment, 1), len(left)) for experiment, seconds in left) / 3600


def totals(tasks: Sequence[Task], side_by_side: Mapping[str, int]) -> dict[str, Any]:
    """Count the runs by state, the hours left of those whose time is known, and the largest memory of a run."""
    left = [task for task in tasks if not task.over]
    known = [(task.run.experiment, task.seconds_left) for task in left if task.seconds_left is not None]
    return {
        "runs": len(tasks),
        **{name: sum(task.found.name == name for task in tasks) for name in STATES},
        "hours_left": round(sum(seconds for _, seconds in known) / 3600, 3),
        "hours_left_side_by_side": round(hours_together(known, side_by_side), 3),
        "hours_left_known_for": len(known),
        "side_by_side": {task.run.experiment: side_by_side.get(task.run.experiment, 1) for task in left},
        "memory_bytes_most": max((task.estimate.memory_bytes or 0 for task in left), default=0) or None,
    }


def as_json(
    tasks: Sequence[Task], promised: Sequence[Promise], side_by_side: Mapping[str, int], scale: str, **more: Any
) -> str:
    """Return the plan for a script, with more beside its sums."""
    rows = [
        {
            "run": str(task.there.folder),
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
    return json.dumps(content, indent=2)

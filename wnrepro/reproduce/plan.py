"""What of the grid is done, how it stands with the rest, and what that will take here. Imports no torch."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from wnrepro.errors import UserError
from wnrepro.reproduce.grid import Planned, seeds
from wnrepro.runs.directory import FINISHED, PUBLISHED, RunDirectory, read_json
from wnrepro.settings import (
    NAME,
    PRECISIONS,
    SETTINGS,
    Settings,
    printable,
    scale_settings,
    settings_from,
)

if TYPE_CHECKING:
    from wnrepro.report.claims.claim import Power

Promise: TypeAlias = "tuple[str, int, Power]"  # a claim, the seeds that the grid gives it, their power

# done, diverged, failed: as run.json says. running: a process holds the directory; stopped: none does, and it goes on
# from its last epoch; missing: nothing is there.
STATES = ("done", "diverged", "running", "stopped", "failed", "missing")

# What a file that is not as this version writes it leads to, and how much is read of files that may be anyone's.
NONSENSE = (UserError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
MOST_FILES = 10_000
LONGEST_SECONDS = 1e6  # of an example
MOST_TOGETHER = 1000

NEARLY_BEST = 0.95  # of the most steps a second
CONTEXT_BYTES = 10**9  # that a process takes of a GPU besides what its tensors do


@dataclass(frozen=True)
class State:
    """How it stands with a run: one of STATES, the epochs behind it, and run.json's message."""

    name: str
    epoch: int = 0
    message: str = ""


def state(there: RunDirectory) -> State:
    """Raises UserError where the directory holds a run with other settings, or a file that cannot be read."""
    record = there.record()
    if record is None:
        return State("running" if there.locked() else "missing")
    status, epoch = record.get("status"), record.get("epoch", 0)
    if type(epoch) is not int or not 0 <= epoch <= there.epochs:
        raise UserError(f"{there.folder / 'run.json'}: its epoch is none of the run's; mend it, or start with --fresh")
    if status in FINISHED:
        return State(status, epoch)
    if there.locked():
        return State("running", epoch)
    return State(
        "failed" if status == "failed" else "stopped", epoch, printable(str(record.get("message") or ""), 2000)
    )


@dataclass(frozen=True)
class Estimate:
    """What a whole run takes on this device: seconds and bytes (None: not known), and what they were taken from."""

    seconds: float | None
    memory_bytes: int | None
    source: str


def processor(device_name: str) -> str:
    """The device without the number of its threads."""
    return device_name.rsplit(", ", 1)[0]


def work(settings: Settings) -> int:
    """Examples (of dqn: agent steps) that a run trains on, each as often as it does."""
    return settings.epochs * settings.epoch_size


def cost(settings: Settings) -> tuple[Any, ...]:
    """The values of the settings that determine the time of an example."""
    return tuple(getattr(settings, name) for name in settings.cost)


@dataclass(frozen=True)
class Measured:
    """What was measured of a run, or by `bench` of training steps."""

    experiment: str
    scale: str
    settings: Settings
    device: str
    seconds: float  # an example, or an agent step
    memory_bytes: int | None
    source: str  # "run" or "bench"


def measured(results: Path, device: str) -> list[Measured]:
    """What the runs and benchmarks in `results`, one's own and published, say of this processor, or GPU.

    Damaged files are passed over.
    """
    found = []
    for path in files(results, "*/*/*/seed-*/run.json"):
        with contextlib.suppress(*NONSENSE):
            record, config = read_json(path) or {}, read_json(path.with_name("config.json")) or {}
            if processor(record["device_name"]) == processor(device):
                settings = settings_from(config["experiment"], config["settings"])
                seconds = record["seconds"] / (work(settings) * record["epoch"] / settings.epochs)
                about = (record["device_name"], seconds, record["peak_memory_bytes"], "run")
                found.append(Measured(config["experiment"], config["scale"], settings, *about))
    for name, experiment, figures in benches(results, device):
        with contextlib.suppress(*NONSENSE):
            found += benchmarked(experiment, name, figures)
    return [one for one in found if believable(one)]


def files(results: Path, pattern: str) -> list[Path]:
    """The files of this pattern, the published ones and then one's own."""
    tops = (results / PUBLISHED, results)
    return [path for top in tops for path in sorted(itertools.islice(top.glob(pattern), MOST_FILES))]


def believable(one: Measured) -> bool:
    """Whether a time and a memory can be such."""
    memory = one.memory_bytes
    return 0 < one.seconds <= LONGEST_SECONDS and (memory is None or (type(memory) is int and 0 <= memory <= 2**53))


def benches(results: Path, device: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What `bench` measured on this processor, or GPU: device, experiment, figures; damaged files are passed over."""
    for path in files(results, "bench/*.json"):
        with contextlib.suppress(*NONSENSE):
            bench = read_json(path) or {}
            if processor(bench["device_name"]) == processor(device):
                for experiment in SETTINGS.keys() & bench.keys():
                    yield bench["device_name"], experiment, bench[experiment]


def benchmarked(experiment: str, device: str, figures: dict[str, Any]) -> list[Measured]:
    """The training steps that `bench` timed, at the paper's settings; dqn's memory is that with the full replay."""
    found, memory, replay = [], figures.get("memory", {}), figures.get("replay_memory", {})
    for name in figures["seconds"]:
        param, _, precision = name.partition(" ")  # other entries are `plain wn` and `wn, learning`
        precision = precision or PRECISIONS[0]
        if NAME.fullmatch(param) and precision in PRECISIONS:
            settings = scale_settings(experiment, "paper", param, precision=precision)
            seconds, peak = median(figures["seconds"][name]) / settings.step_size, memory.get(name)
            if "replay_memory" in figures:  # where the replay is on another device it says nothing of this one
                peak = replay.get("peak_bytes") if replay.get("on") == figures.get("device") else None
            found.append(Measured(experiment, "paper", settings, device, seconds, peak, "bench"))
    return found


def estimate(run: Planned, device: str, known: Iterable[Measured]) -> Estimate:
    """From what is most alike among runs and benchmarks of the same model, minibatch and precision on this device.

    A parameterization counts for more than the number of threads, that for more than a run before a benchmark, and
    memory is only known from the same scale. Times are medians, memory the most.
    """
    same = [one for one in known if one.experiment == run.experiment and cost(one.settings) == cost(run.settings)]

    def likeness(one: Measured) -> tuple[bool, bool, bool]:
        return one.settings.param == run.settings.param, one.device == device, one.source == "run"

    best = max(map(likeness, same), default=None)
    nearest = [one for one in same if likeness(one) == best]
    seconds = median(one.seconds for one in nearest) * work(run.settings) if nearest else None
    memory = [one for one in same if one.scale == run.scale and one.memory_bytes]
    memory = [one for one in memory if one.settings.param == run.settings.param] or memory
    source = ", ".join(
        f"{count} {kind}{'s' if count > 1 and kind == 'run' else ''}"
        for kind in ("run", "bench")
        if (count := sum(one.source == kind for one in nearest))
    )
    return Estimate(seconds, max((one.memory_bytes or 0 for one in memory), default=0) or None, source)


@dataclass(frozen=True)
class Line:
    """A run of the grid: how it stands with it, and what the whole of it takes here."""

    run: Planned
    there: RunDirectory
    state: State
    estimate: Estimate

    @property
    def over(self) -> bool:
        return self.state.name in FINISHED

    @property
    def seconds_left(self) -> float | None:
        """What is left to compute; None: not known."""
        if self.over:
            return 0.0
        left = 1 - self.state.epoch / self.run.settings.epochs
        return None if self.estimate.seconds is None else self.estimate.seconds * left


UNKNOWN = Estimate(None, None, "")


def plan(results: Path, runs: Sequence[Planned]) -> list[Line]:
    """How it stands with these runs; nothing is estimated yet. Raises UserError as `state`."""
    there = [run.directory(results) for run in runs]
    return [Line(run, one, state(one), UNKNOWN) for run, one in zip(runs, there, strict=True)]


def estimated(lines: Sequence[Line], results: Path, device: str) -> list[Line]:
    """The plan with what each run takes on this device (as in run.json's `device_name`)."""
    known = measured(results, device)
    return [dataclasses.replace(line, estimate=estimate(line.run, device, known)) for line in lines]


def packing(lines: Sequence[Line], results: Path, device: str, memory_bytes: int) -> dict[str, int]:
    """How many runs of each experiment share a GPU of so much memory, by the estimated plan; 1 where nothing tells.

    As many as took the most training steps a second together by `bench`, the fewest within NEARLY_BEST of that, as far
    as the memory that a run is known to need allows.
    """
    shared = {line.run.experiment: 1 for line in lines if not line.over}
    for _, experiment, figures in benches(results, device):
        with contextlib.suppress(*NONSENSE):
            rates = {int(runs): float(rate) for runs, rate in figures["side_by_side"].items()}
            if experiment in shared and all(1 <= runs <= MOST_TOGETHER for runs in rates):
                enough = NEARLY_BEST * max(rates.values())
                shared[experiment] = min(runs for runs, rate in rates.items() if rate >= enough)
    for line in lines:
        if not line.over and line.estimate.memory_bytes:
            room = memory_bytes // (line.estimate.memory_bytes + CONTEXT_BYTES)
            shared[line.run.experiment] = max(1, min(shared[line.run.experiment], room))
    return shared


def promises(lines: Sequence[Line], scale: str) -> list[Promise]:
    """Of the empirical claims that these runs serve; none but at scale paper, where alone claims are judged."""
    if scale != "paper":
        return []
    from wnrepro.report.claims import CLAIMS

    serves, there = {name for line in lines for name in line.run.serves}, seeds(scale)
    served = [claim for claim in CLAIMS if claim.id in serves]
    return [(claim.id, there[claim.id], found) for claim in served if (found := claim.power(there[claim.id]))]


def hours_together(left: Sequence[tuple[str, float]], side_by_side: Mapping[str, int]) -> float:
    """Of runs by experiment and seconds, so many of each experiment side by side, as far as there are so many."""
    return sum(seconds / min(side_by_side.get(experiment, 1), len(left)) for experiment, seconds in left) / 3600


def totals(lines: Sequence[Line], side_by_side: Mapping[str, int]) -> dict[str, Any]:
    """Of a plan: runs by state, hours left by those whose time is known, and the largest memory of a run.

    side_by_side: how many runs of an experiment are computed at a time.
    """
    left = [line for line in lines if not line.over]
    known = [(line.run.experiment, line.seconds_left) for line in left if line.seconds_left is not None]
    return {
        "runs": len(lines),
        **{name: sum(line.state.name == name for line in lines) for name in STATES},
        "hours_left": round(sum(seconds for _, seconds in known) / 3600, 3),
        "hours_left_side_by_side": round(hours_together(known, side_by_side), 3),
        "hours_left_known_for": len(known),
        "side_by_side": {line.run.experiment: side_by_side.get(line.run.experiment, 1) for line in left},
        "memory_bytes_most": max((line.estimate.memory_bytes or 0 for line in left), default=0) or None,
    }


def as_json(
    lines: Sequence[Line], promised: Sequence[Promise], side_by_side: Mapping[str, int], scale: str, **more: Any
) -> str:
    """The plan for a script, with more beside its sums."""
    rows = [
        {
            "run": str(line.there.folder),
            "experiment": line.run.experiment,
            "serves": list(line.run.serves),
            "state": line.state.name,
            "epoch": line.state.epoch,
            "epochs": line.run.settings.epochs,
            "message": line.state.message,
            "seconds_left": line.seconds_left,
            "memory_bytes": line.estimate.memory_bytes,
            "estimated_from": line.estimate.source,
        }
        for line in lines
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
    content = {"scale": scale, **more, **totals(lines, side_by_side), "claims": claims, "grid": rows}
    return json.dumps(content, indent=2)

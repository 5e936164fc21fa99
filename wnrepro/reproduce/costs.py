"""What runs cost: the shipped measurements, this machine's speed beside them, and the time of runs side by side.

wnrepro.tools.costs makes costs.csv. This module does not import torch.
"""

import csv
import functools
import heapq
import json
import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from wnrepro.reproduce.grid import Planned

COSTS = Path(__file__).with_name("costs.csv")
COLUMNS = ("experiment", "param", "start", "example", "epochs", "device", "torch", "commit", "settings")
RECENT = 12  # epochs whose median tells the speed
OLD = 2 * RECENT  # epochs of other models after which a model's ratio is old
ALIKE = 1.3  # ratios of models on a machine differ by this factor
CPU = re.compile(r", \d+ threads?$")  # the end of a processor's `device_name`


def processor(device_name: str) -> str:
    """Return the device's name without the number of threads."""
    return device_name.rsplit(", ", 1)[0]


def cost(run: Planned) -> tuple[Any, ...]:
    """Return the settings, except param, that determine the time of an example (of dqn: an agent step)."""
    return run.experiment, *(getattr(run.settings, name) for name in run.settings.cost)


class Cost(NamedTuple):
    """A row of costs.csv: the seconds of a process's start and of an example, with its tests and checkpoints."""

    experiment: str
    param: str
    start: float
    example: float
    device: str
    settings: dict[str, Any]  # those of `cost`


@functools.cache
def costs() -> tuple[Cost, ...]:
    """Read costs.csv."""
    with COSTS.open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    return tuple(
        Cost(row["experiment"], row["param"], float(row["start"]), float(row["example"]), row["device"], settings)
        for row in rows
        for found in [json.loads(row["settings"])]
        for settings in [{name: tuple(one) if isinstance(one, list) else one for name, one in found.items()}]
    )


def prior(run: Planned, device: str) -> Cost | None:
    """Return the shipped cost of the same model on the most similar device of the same kind (a processor or a GPU).

    Then the precision counts most, then the processor or GPU, then the parameterization; wn stands for others.
    """

    def likeness(one: Cost) -> tuple[bool, ...]:
        settings, param = run.settings, run.settings.param
        return (
            one.settings["precision"] == settings.precision,
            processor(one.device) == processor(device),
            one.param == param,
            one.param == "wn",
        )

    def of_model(one: Cost) -> bool:
        same = (getattr(run.settings, name) == value for name, value in one.settings.items() if name != "precision")
        return one.experiment == run.experiment and all(same) and bool(CPU.search(one.device)) == on_cpu

    on_cpu = bool(CPU.search(device))
    return max(filter(of_model, costs()), key=likeness, default=None)


class Speeds:
    """Ratios of measured to expected seconds: those of the latest epochs of a model, an experiment, and all runs."""

    def __init__(self) -> None:
        self.recent: dict[Any, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.latest: dict[Any, int] = {}  # the number of ratios when the latest of each came
        self.count = 0

    @staticmethod
    def keys(run: Planned) -> tuple[Any, ...]:
        return cost(run), run.experiment, None

    def add(self, run: Planned, ratio: float) -> None:
        """Add a run's ratio."""
        self.count += 1
        for key in self.keys(run):
            self.recent[key].append(ratio)
            self.latest[key] = self.count

    def ratio(self, run: Planned, default: float = 1.0) -> float:
        """Return the median ratio of the run's model, or else of its experiment, or else of all runs.

        An old ratio may differ from the latest ones of all runs by ALIKE at most: beyond, it tells that other processes
        have come or gone since.
        """
        for key in self.keys(run):
            if key in self.recent:
                ratio, now = median(self.recent[key]), median(self.recent[None])
                old = self.count - self.latest[key] > OLD
                return min(max(ratio, now / ALIKE), now * ALIKE) if old else ratio
        return default


def together(left: Sequence[tuple[str, float]], side_by_side: Mapping[str, int]) -> float:
    """Return the seconds until runs (experiment, seconds) have ended that start in this order as places get free.

    side_by_side: how many runs of each experiment fill all places; default: 1.
    """
    shares = {experiment: Fraction(1, max(1, side_by_side.get(experiment, 1))) for experiment, _ in left}
    waiting, running, clock, room = list(left), list[tuple[float, Fraction]](), 0.0, Fraction(1)
    while waiting or running:
        place = 0
        while room and place < len(waiting):
            experiment, seconds = waiting[place]
            if shares[experiment] <= room:
                room -= shares[experiment]
                heapq.heappush(running, (clock + seconds, shares[experiment]))
                del waiting[place]
            else:
                place += 1
        clock, freed = heapq.heappop(running)
        room += freed
    return clock

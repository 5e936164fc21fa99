"""What a claim collects from the runs: numbers by seed, and remarks."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wnrepro.report.stats import Estimate, binomial, look
from wnrepro.results import Run, Session
from wnrepro.text import count

DIVERGED = 0.2  # a share of diverged runs that refutes a claim about them


def select(runs: Iterable[Run], *params: str, **settings: Any) -> list[list[Run]]:
    """Return the runs of each parameterization with these settings, sorted by seed."""
    runs = sorted((run for run in runs if settings.items() <= run.settings.items()), key=lambda run: run.seed)
    return [[run for run in runs if run.param == param] for param in params]


def by_seed(*groups: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Return one run of each group, for every seed that all groups have."""
    found = [{run.seed: run for run in runs} for runs in groups]
    return [tuple(runs[seed] for runs in found) for seed in sorted(set.intersection(*map(set, found)))]


def ended(pairs: Sequence[tuple[Run, ...]]) -> list[tuple[Run, ...]]:
    """Return the pairs whose runs ended or, if there is none, the pairs whose runs have epochs."""
    over = [pair for pair in pairs if all(run.over for run in pair)]
    return over or [pair for pair in pairs if all(run.epoch for run in pair)]


def at_look(values: Sequence[Any]) -> list[Any]:
    """Return the values of the first seeds up to the last look, or all values before the first look."""
    return list(values[: look(len(values)) or None])


def shared_epochs(*runs: Run) -> int:
    """Return the number of epochs that all runs have logged."""
    return min(run.epoch for run in runs)


@dataclass
class Evidence:
    """What a claim has collected: numbers by part, the runs behind them, and remarks."""

    values: defaultdict[str, Any] = field(default_factory=lambda: defaultdict(list))
    used: dict[str, Run | Session] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    diverged: list[Estimate] = field(default_factory=list)  # shares of diverged runs
    non_finite: list[str] = field(default_factory=list)  # names of the runs
    basis: str = ""  # replaces the numbers of seeds and runs
    devices: tuple[str, ...] = ()

    def use(self, *runs: Run | Session) -> None:
        self.used |= {run.name: run for run in runs}

    def finite(self, value: float, *runs: Run) -> float:
        """Return the value, and record the runs if it is not finite."""
        if not math.isfinite(value):
            self.non_finite.append(" or ".join(run.name for run in runs))
        return value

    def count_failures(self, name: str, fails: Callable[[Run], bool], *groups: Sequence[Run]) -> None:
        """Count the failures among the runs of each group as the part `name`, unless a group is empty."""
        if all(groups):
            self.use(*itertools.chain(*groups))
            self.values[name] = [(sum(map(fails, runs)), len(runs)) for runs in groups]

    def pairs(self, *groups: Iterable[Run], name: str = "") -> list[tuple[Run, ...]] | None:
        """Return the runs, or pairs, by seed up to the last look without diverged ones; None if no seed has them.

        Records the share of diverged runs in the first group.
        """
        if not (begun := at_look(ended(by_seed(*groups)))):
            return None
        self.use(*itertools.chain(*begun))
        if lost := sum(first.diverged for first, *_ in begun):
            self.diverged.append(binomial(f"{name or begun[0][0].param} diverged", lost, len(begun), DIVERGED, -1))
        if lost := sum(run.diverged for _, *others in begun for run in others):
            self.remarks.append(f"{begun[0][1].param} diverged in {count(lost, 'seed')}")
        return [pair for pair in begun if not any(run.diverged for run in pair)]

    def collect(self, part: str, number: Callable[..., float], *groups: Iterable[Run], name: str = "") -> None:
        """Collect a number of every run, or pair, by seed. name: of the first group's runs."""
        if (pairs := self.pairs(*groups, name=name)) is not None:
            self.values[part] = [self.finite(number(*runs), *runs) for runs in pairs]

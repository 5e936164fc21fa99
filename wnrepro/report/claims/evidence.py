"""What a claim collects from the runs: numbers by seed, and what is said beside them."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wnrepro.report.stats import Estimate, look, share
from wnrepro.results import Run, Session
from wnrepro.text import count

DIVERGED = 0.2  # a share of diverged runs that refutes what a claim says of them


def of(runs: Iterable[Run], param: str, **settings: Any) -> list[Run]:
    """Those of a parameterization that have these settings, by seed."""
    wanted = {"param": param, **settings}
    return sorted((run for run in runs if wanted.items() <= run.settings.items()), key=lambda run: run.seed)


def by_seed(*several: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Of every seed that all have: a run of each."""
    found = [{run.seed: run for run in runs} for runs in several]
    return [tuple(runs[seed] for runs in found) for seed in sorted(set.intersection(*map(set, found)))]


def ended(groups: Sequence[tuple[Run, ...]]) -> list[tuple[Run, ...]]:
    """Those of which all runs ended or, where there is none, those under way."""
    over = [group for group in groups if all(run.over for run in group)]
    return over or [group for group in groups if all(run.epoch for run in group)]


def at_look(values: Sequence[Any]) -> list[Any]:
    """As many of these, by seed, as the last look has; all below the first look."""
    return list(values[: look(len(values)) or None])


def shared(*runs: Run) -> int:
    """The epochs that all of these have logged."""
    return min(run.epoch for run in runs)


@dataclass
class Evidence:
    """What a claim has collected: numbers by part, the runs behind them, and what is said beside the estimates."""

    values: defaultdict[str, Any] = field(default_factory=lambda: defaultdict(list))
    used: dict[str, Run | Session] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    lost: list[Estimate] = field(default_factory=list)  # shares of diverged runs
    missing: list[str] = field(default_factory=list)  # numbers that are not finite
    basis: str = ""  # in place of seeds and runs
    devices: tuple[str, ...] = ()

    def use(self, *runs: Run | Session) -> None:
        self.used |= {run.name: run for run in runs}

    def finite(self, value: float, *runs: Run) -> float:
        """The value; it is noted where it is not finite."""
        if not math.isfinite(value):
            self.missing.append(" or ".join(run.name for run in runs))
        return value

    def failures(self, name: str, fails: Callable[[Run], bool], *several: Sequence[Run]) -> None:
        """How many of the runs of each fail, of how many, as the part `name`; nothing where one has none."""
        if all(several):
            self.use(*itertools.chain(*several))
            self.values[name] = [(sum(map(fails, runs)), len(runs)) for runs in several]

    def kept(self, *several: Iterable[Run], named: str = "") -> list[tuple[Run, ...]] | None:
        """The runs, or pairs, of the first seeds, up to the last look: those that `ended`; None where there is none.
        What diverged is left out; the first ones' diverged runs become a share.
        """
        if not (begun := at_look(ended(by_seed(*several)))):
            return None
        self.use(*itertools.chain(*begun))
        if diverged := sum(first.diverged for first, *_ in begun):
            self.lost.append(share(f"{named or begun[0][0].param} diverged", diverged, len(begun), DIVERGED, -1))
        if diverged := sum(run.diverged for _, *others in begun for run in others):
            self.said.append(f"{begun[0][1].param} diverged in {count(diverged, 'seed')}")
        return [group for group in begun if not any(run.diverged for run in group)]

    def collect(self, name: str, number: Callable[..., float], *several: Iterable[Run], named: str = "") -> None:
        """A number of every run, or pair, by seed, as the part `name`; nothing where there is none."""
        if (kept := self.kept(*several, named=named)) is not None:
            self.values[name] = [self.finite(number(*runs), *runs) for runs in kept]

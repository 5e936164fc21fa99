"""The runs of two results folders in pairs, and what differs in each pair."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from wnrepro.report.claims.evidence import shared_epochs
from wnrepro.report.tables import FINALS
from wnrepro.results import CHOICES, Results, Run
from wnrepro.text import count

Changes = dict[str, str]  # by name: `2.13.0 → 2.15.0`


class Pair(NamedTuple):
    """Two runs, and how many epochs both have. first: of these, the first whose numbers differ; 0: none does."""

    ours: Run
    theirs: Run
    epochs: int
    first: int
    recorded: Changes
    settings: Changes

    @property
    def exact(self) -> bool:
        return self.epochs > 0 and not self.first

    @property
    def finals(self) -> dict[str, tuple[float, float]]:
        """Those of `FINALS` that the runs have, after the last epoch that both have."""
        names = [name for name in FINALS if self.epochs and name in self.ours.metrics]
        columns = {
            name: [run.metrics[name].iloc[self.epochs - 1] for run in (self.ours, self.theirs)] for name in names
        }
        return {name: (float(ours), float(theirs)) for name, (ours, theirs) in columns.items()}

    @property
    def less(self) -> dict[str, float]:
        """Theirs less ours."""
        return {name: theirs - ours for name, (ours, theirs) in self.finals.items()}


def changes(ours: dict[str, Any], theirs: dict[str, Any]) -> Changes:
    """What differs."""
    values = {name: (ours.get(name, "not set"), theirs.get(name, "not set")) for name in ours | theirs}
    texts = {name: [one if isinstance(one, str) else json.dumps(one) for one in two] for name, two in values.items()}
    return {name: " → ".join(texts[name]) for name, (one, other) in values.items() if one != other}


def told(found: Changes) -> str:
    """`commit 0123456 → 89abcde; torch 2.13.0 → 2.15.0`."""
    return "; ".join(f"{name} {change}" for name, change in found.items())


def counted(found: Iterable[Changes]) -> str:
    """`commit (3 runs), torch (1 run)`."""
    return ", ".join(f"{name} ({count(n, 'run')})" for name, n in Counter(itertools.chain(*found)).items())


def judged(ours: Results, theirs: Results) -> Changes:
    """What the runs that are judged differ in, of what both have runs of."""
    names = [name for name in ours.parts if name in theirs.parts]
    choices = [(name, setting) for name in names for setting in CHOICES]
    values = (
        {f"{setting} of {name}": getattr(of.parts[name], setting) for name, setting in choices} for of in (ours, theirs)
    )
    return changes(*values)


def _recorded(run: Run) -> dict[str, str]:
    commit = run.commit[:7] + (f", dirty, of {run.created}" if run.dirty else "")  # two of these need not be the same
    about = {"commit": commit, "device": run.device, "torch": run.torch, "data": str(run.data) or "not said"}
    return about | {"state": run.state}


def _pair(ours: Run, theirs: Run) -> Pair:
    epochs = shared_epochs(ours, theirs)
    one, other = (run.metrics[:epochs].drop(columns="seconds") for run in (ours, theirs))
    equal = ((one == other) | (one.isna() & other.isna())).all(axis="columns").tolist()
    first = equal.index(False) + 1 if False in equal else 0
    recorded, settings = changes(_recorded(ours), _recorded(theirs)), changes(ours.settings, theirs.settings)
    settings.pop("checkpoint_replay", None)  # changes no number
    return Pair(ours, theirs, epochs, first, recorded, settings)


def paired(ours: list[Run], theirs: list[Run]) -> tuple[list[Pair], list[Pair], list[Run], list[Run]]:
    """Pairs of the same settings and seed; of the others, pairs of the same model and seed, the fewest other settings
    first, in which each run is once at most; and what is left of ours and of theirs.
    """
    partners = {run.alike: run for run in theirs}
    same = [_pair(run, partners.pop(run.alike)) for run in ours if run.alike in partners]
    met = {pair.ours.alike for pair in same}
    left, right = [run for run in ours if run.alike not in met], list(partners.values())
    alike = [two for two in itertools.product(left, right) if _model(two[0]) == _model(two[1])]
    near: dict[str, Pair] = {}
    for one, other in sorted(alike, key=lambda two: len(changes(two[0].settings, two[1].settings))):
        if not {one.alike, other.alike} & met:
            near[one.alike] = _pair(one, other)
            met |= {one.alike, other.alike}
    ours_alone, theirs_alone = ([run for run in runs if run.alike not in met] for runs in (left, right))
    return same, [near[run.alike] for run in left if run.alike in near], ours_alone, theirs_alone


def _model(run: Run) -> tuple[Any, ...]:
    return run.experiment, run.dataset, run.param, run.seed

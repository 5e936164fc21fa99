"""Compares two results folders. Arrows point from ours to theirs; differences are theirs minus ours."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.claim import SCALE
from wnrepro.report.claims.evidence import shared_epochs
from wnrepro.report.declared import column
from wnrepro.report.tables import Row, Table, last_numbers, numbers_text, table
from wnrepro.results import CHOICES, Results, Run, problems
from wnrepro.text import count

Changes = dict[str, str]  # by name: `2.13.0 → 2.15.0`


class Comparison(NamedTuple):
    """The comparison of two folders at one scale. tables: only those with rows."""

    scale: str
    ours: str
    theirs: str
    summary: list[str]
    tables: list[Table]


class Pair(NamedTuple):
    """Two compared runs. epochs: how many both have. first: the first of them whose numbers differ, or 0.

    finals: both runs' numbers after the last common epoch, by column.
    """

    ours: Run
    theirs: Run
    epochs: int
    first: int
    recorded: Changes
    settings: Changes
    finals: dict[str, tuple[float, float]]

    @property
    def exact(self) -> bool:
        """Whether both agree bit for bit in all common epochs."""
        return self.epochs > 0 and not self.first

    @property
    def differences(self) -> dict[str, float]:
        """Theirs minus ours, by column."""
        return {name: theirs - ours for name, (ours, theirs) in self.finals.items()}


def compare_runs(ours: Run, theirs: Run) -> Pair:
    """Compare two runs."""
    epochs = shared_epochs(ours, theirs)
    one, other = (run.metrics[:epochs].drop(columns="seconds") for run in (ours, theirs))
    equal = ((one == other) | (one.isna() & other.isna())).all(axis="columns").tolist()
    first = equal.index(False) + 1 if False in equal else 0
    finals = {name: (float(one[name].iloc[-1]), float(other[name].iloc[-1])) for name in last_numbers(ours) if epochs}
    settings = changes(ours.settings, theirs.settings)
    settings.pop("checkpoint_replay", None)  # changes no number
    return Pair(ours, theirs, epochs, first, changes(_recorded(ours), _recorded(theirs)), settings, finals)


def changes(ours: dict[str, Any], theirs: dict[str, Any]) -> Changes:
    """Return the entries that differ."""
    values = {name: [of.get(name, "not set") for of in (ours, theirs)] for name in ours | theirs}
    texts = {name: [one if isinstance(one, str) else json.dumps(one) for one in two] for name, two in values.items()}
    return {name: " → ".join(texts[name]) for name, (one, other) in values.items() if one != other}


def joined(found: Changes) -> str:
    """Format changes, such as `commit 0123456 → 89abcde; torch 2.13.0 → 2.15.0`."""
    return "; ".join(f"{name} {change}" for name, change in found.items())


def counted(found: Iterable[Changes]) -> str:
    """Count changes, such as `commit (3 runs), torch (1 run)`."""
    return ", ".join(f"{name} ({count(n, 'run')})" for name, n in Counter(itertools.chain(*found)).items())


def _recorded(run: Run) -> dict[str, str]:
    commit = run.commit[:7] + (f", dirty, of {run.created}" if run.dirty else "")  # two dirty trees may differ
    about = {"commit": commit, "device": run.device, "torch": run.torch, "data": str(run.data) or "not said"}
    return about | {"state": run.state}


def paired(ours: Iterable[Run], theirs: Iterable[Run]) -> tuple[list[Pair], list[Pair], list[Run], list[Run]]:
    """Pair runs of the same settings and seed, then runs of the same model and seed by the fewest different settings.

    Returns both kinds of pairs, then the unpaired runs of ours and of theirs.
    """
    left, right = ({run.alike: run for run in runs} for runs in (ours, theirs))
    both = [compare_runs(left.pop(alike), right.pop(alike)) for alike in [*left] if alike in right]
    every = [two for two in itertools.product(left.values(), right.values()) if _model(two[0]) == _model(two[1])]
    near = {}
    for one, other in sorted(every, key=lambda two: len(changes(two[0].settings, two[1].settings))):
        if one.alike in left and other.alike in right:
            near[one.name] = compare_runs(left.pop(one.alike), right.pop(other.alike))
    return both, [near[run.name] for run in ours if run.name in near], [*left.values()], [*right.values()]


def _model(run: Run) -> tuple[Any, ...]:
    return run.experiment, run.dataset, run.param, run.seed


def compare(ours: Results, theirs: Results) -> Comparison:
    """Compare the runs and verdicts of two folders at one scale."""
    both, near, *alone = paired(ours.runs, theirs.runs)
    verdicts, said = _verdicts(ours, theirs)
    summary = [*_of_both(both)]
    if near:
        names = counted(pair.settings for pair in near)
        summary.append(f"{_some(near, 'has', 'have')} a partner of the same model that differs in a setting: {names}.")
    for of, runs in zip((ours, theirs), alone, strict=True):
        summary += [f"{_some(runs, 'is', 'are')} in {of.folder} alone."] if runs else []
        if found := [*of.odd, *problems(of)]:
            names = f"wnrepro report --check --results {of.folder} names them"
            said.append(f"{count(len(found), 'problem')} with the files of {of.folder}: {names}.")
    made = {
        "verdicts": verdicts,
        "both": [_row(pair) for pair in sorted(both, key=lambda pair: pair.exact)],
        "near": [_row(pair) for pair in near],
        "alone": [_alone(name, run) for name, runs in zip(("ours", "theirs"), alone, strict=True) for run in runs],
    }
    tables = [table(name, rows) for name, rows in made.items() if rows]
    return Comparison(ours.scale, str(ours.folder), str(theirs.folder), summary + said, tables)


def _verdicts(ours: Results, theirs: Results) -> tuple[list[Row], list[str]]:
    """Return a row per claim whose verdict or numbers differ, and summary sentences."""
    rows, changed, found = [], [], (findings(ours), findings(theirs))
    for claim in CLAIMS:
        one, other = (of[claim.id] for of in found)
        verdict = " → ".join(dict.fromkeys((one.verdict, other.verdict)))
        changed += [f"{claim.id}, {verdict}"] if one.verdict != other.verdict else []
        if (one.verdict, one.measured) != (other.verdict, other.measured):
            row = {"id": claim.id, "claim": claim.claim, "verdict": verdict}
            rows.append(row | {"ours": one.measured, "theirs": other.measured})
    said = [f"{count(len(changed), 'verdict')} changed: {'; '.join(changed)}."] if changed else []
    same, others = len(CLAIMS) - len(changed), len(rows) - len(changed)
    said.append(f"{count(same, 'verdict')} did not change, {others} of them with other numbers.")
    said += ["No empirical claim has a verdict at this scale."] if ours.scale != SCALE else []
    parts = [of.papers.parts for of in (ours, theirs)]
    names = [(name, choice) for name in parts[0] if name in parts[1] for choice in CHOICES]
    judged = changes(*({f"{choice} of {name}": getattr(of[name], choice) for name, choice in names} for of in parts))
    said += [f"Other runs are judged: {joined(judged)}."] if judged else []
    return rows, said


def _of_both(pairs: list[Pair]) -> Iterator[str]:
    exact, other = [pair for pair in pairs if pair.exact], [pair for pair in pairs if pair.first]
    said = f"{_some(pairs, 'is', 'are')} in both" + (f", {len(exact)} of them bit for bit" if pairs else "")
    if other:
        first = sorted({pair.first for pair in other})
        some = f"{len(other)} differ{'s' * (len(other) == 1)}{', the earliest' * (len(first) > 1)}"
        said += f"; {some} from epoch {first[0]} on"
    yield f"{said}."
    if recorded := counted(pair.recorded for pair in pairs):
        yield f"What else differs between them: {recorded}."
    if unexplained := [pair for pair in other if not pair.recorded.keys() - {"state"}]:
        yield f"{_some(unexplained, 'differs', 'differ')} though the files name the same commit, device, torch, data."
    largest = []
    for name in dict.fromkeys(name for pair in other for name in pair.differences):
        if finite := [pair for pair in other if math.isfinite(pair.differences.get(name, math.nan))]:
            most = max(finite, key=lambda pair: abs(pair.differences[name]))
            difference = column(name).format_difference(most.differences[name])
            largest.append(f"{difference} ({most.ours.name}, epoch {most.epochs})")
    if largest:
        yield f"Largest differences: {'; '.join(largest)}."


def _some(found: Sequence[object], one: str, several: str) -> str:
    return f"{count(len(found), 'run')} {one if len(found) == 1 else several}"


def _row(pair: Pair) -> Row:
    agree = "bit for bit" if pair.exact else f"differ from epoch {pair.first} on" if pair.first else "no epoch in both"
    less = ", ".join(column(name).format_difference(value) for name, value in pair.differences.items()) or "–"
    ours, theirs = (numbers_text({name: two[place] for name, two in pair.finals.items()}) for place in (0, 1))
    row = _about(pair.ours) | {"settings": joined(pair.settings), "recorded": joined(pair.recorded), "numbers": agree}
    less = "none" if pair.exact else less
    return row | {"epochs": pair.epochs, "ours": ours, "theirs": theirs, "difference": less}


def _about(run: Run) -> Row:
    return {"experiment": run.experiment, "variant": run.variant, "seed": run.seed}


def _alone(folder: str, run: Run) -> Row:
    last = numbers_text(last_numbers(run) if run.epoch else {})
    return _about(run) | {"folder": folder, "state": run.state, "last": last}

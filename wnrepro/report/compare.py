"""Two results folders side by side. An arrow leads from ours to theirs, and a difference is theirs less ours."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.claim import SCALE
from wnrepro.report.pairs import Pair, counted, judged, paired, told
from wnrepro.report.tables import DIFFERENCES, FINALS, NO_VERDICT, Cell, Table, cells, table
from wnrepro.results import Results, Run, problems
from wnrepro.text import count

NOTES = {
    "Verdicts": "By the rules of this version. A claim that is not listed has the same verdict and numbers in both.",
    "Runs in both": "Runs of the same settings and seed. Bit for bit: in all epochs that both have, every column of "
    "metrics.csv but seconds is the same. Ours and theirs: after the last of these epochs.",
    "Runs of the same model that differ in a setting": "Of the other runs, each beside the one of the same model and "
    "seed with the fewest other settings. Ours and theirs: after the last epoch that both have.",
    "Runs in one alone": "The other folder has no further run of the same model and seed.",
}


class Comparison(NamedTuple):
    """What is said of a scale; ours, theirs: the folders; sections: by heading, without those that would be empty."""

    scale: str
    ours: str
    theirs: str
    summary: list[str]
    sections: dict[str, list[Table]]


def compare(ours: Results, theirs: Results) -> Comparison:
    """The runs and verdicts of one scale in two folders."""
    both, near, *alone = paired([*ours.runs], [*theirs.runs])
    verdicts, said = _verdicts(ours, theirs)
    summary = [*_of_both(both)]
    if near:
        names = counted(pair.settings for pair in near)
        summary.append(f"{_some(near, 'has', 'have')} a partner of the same model that differs in a setting: {names}.")
    for of, runs in zip((ours, theirs), alone, strict=True):
        summary += [f"{_some(runs, 'is', 'are')} in {of.folder} alone."] if runs else []
        if found := problems(of):
            names = f"wnrepro report --check --results {of.folder} names them"
            said.append(f"{count(len(found), 'problem')} with the files of {of.folder}: {names}.")
    summary += said
    rest = [_alone(name, run) for name, runs in zip(("ours", "theirs"), alone, strict=True) for run in runs]
    rows = [_row(pair) for pair in sorted(both, key=lambda pair: pair.exact)]
    made = zip(NOTES.items(), (verdicts, rows, [*map(_row, near)], rest), strict=True)
    sections = {heading: [table(rows, note)] for (heading, note), rows in made if rows}
    return Comparison(ours.scale, str(ours.folder), str(theirs.folder), summary, sections)


def _verdicts(ours: Results, theirs: Results) -> tuple[list[list[Cell]], list[str]]:
    """A row of every claim that has another verdict or other numbers, and the sentences."""
    rows, changed, found = [], [], (findings(ours), findings(theirs))
    for claim in CLAIMS:
        one, other = (of[claim.id] for of in found)
        verdict = " → ".join(dict.fromkeys((one.verdict, other.verdict)))
        if one.verdict != other.verdict:
            changed.append(f"{claim.id}, {verdict}")
        if (one.verdict, one.measured) != (other.verdict, other.measured):
            row = cells(id=claim.id, claim=claim.claim, verdict=verdict)
            rows.append([*row, Cell("", one.measured, "Ours"), Cell("", other.measured, "Theirs")])
    said = [f"{count(len(changed), 'verdict')} changed: {'; '.join(changed)}."] if changed else []
    same, others = len(CLAIMS) - len(changed), len(rows) - len(changed)
    said.append(f"{count(same, 'verdict')} did not change, {others} of them with other numbers.")
    said += [NO_VERDICT.strip()] if ours.scale != SCALE else []
    said += [f"Other runs are judged: {told(change)}."] if (change := judged(ours.papers, theirs.papers)) else []
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
    for name in FINALS:
        if less := [pair for pair in other if math.isfinite(pair.less.get(name, math.nan))]:
            most = max(less, key=lambda pair: abs(pair.less[name]))
            largest.append(f"{DIFFERENCES[name](most.less[name])} ({most.ours.name}, epoch {most.epochs})")
    if largest:
        yield f"Largest differences: {'; '.join(largest)}."


def _some(found: Sequence[object], one: str, several: str) -> str:
    return f"{count(len(found), 'run')} {one if len(found) == 1 else several}"


def _numbers(values: dict[str, float], words: Mapping[str, Callable[[float], str]] = FINALS) -> str:
    return ", ".join(words[name](value) for name, value in values.items()) or "–"


def _row(pair: Pair) -> list[Cell]:
    agree = "bit for bit" if pair.exact else f"differ from epoch {pair.first} on" if pair.first else "no epoch in both"
    ours, theirs = ({name: two[place] for name, two in pair.finals.items()} for place in (0, 1))
    return [
        *_model(pair.ours),
        Cell("settings", told(pair.settings), "Settings") if pair.settings else Cell("numbers", agree, "Numbers"),
        *cells(epochs=pair.epochs, ours=_numbers(ours), theirs=_numbers(theirs)),
        Cell("difference", "none" if pair.exact else _numbers(pair.less, DIFFERENCES), "Theirs − ours"),
        Cell("recorded", told(pair.recorded), "What else differs"),
    ]


def _alone(folder: str, run: Run) -> list[Cell]:
    last = {name: run.final(name) for name in FINALS if run.epoch and name in run.metrics}
    return [Cell("folder", folder, "In"), *_model(run), *cells(state=run.state), Cell("", _numbers(last), "Last epoch")]


def _model(run: Run) -> list[Cell]:
    return cells(experiment=run.experiment, variant=run.variant, seed=run.seed)

"""What the report says, for `markdown` and `page` to lay out; a table has its numbers and their words in one place.

A table's function has as docstring the paragraph above it. In tables/*.csv errors are fractions, bounds in nats per
image. Text that may come out of a run's files stands only in cells, `Judged` and `Report.problems`, as it is: the
layouts escape it. In all other text, which is the program's, `code` is marked by backticks.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wnrepro import paper
from wnrepro.reading import whose
from wnrepro.report import figures, stats
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.beyond import comparisons
from wnrepro.report.claims.claim import COMMON, VERDICTS, Claim, Finding
from wnrepro.report.claims.dqn import max_score
from wnrepro.results import Results, Run, counted, longest, problems, random_scores, scale_defaults, step_works
from wnrepro.settings import PARAMS, SETTINGS, scale_settings
from wnrepro.text import NOT_FINITE, count, interval, listed, plain, score

HEADINGS = {"n": "n", "torch": "torch", "git": "Commit", "hash": "Settings' hash", "lr": "Learning rate", "param": ""}
HEADINGS |= {"default": "Paper's scale", "runs": "These runs", "help": "Meaning"}  # else a name as `Other settings`
NO_VERDICT = " No empirical claim has a verdict at this scale."
CLAIM = "id claim where paper measured n devices verdict p power warnings after_the_fact rule rule_version rule_hash"
WARNING = {
    "quick": "Scale `quick`: sample data and small models test the code; the numbers mean nothing beside the paper's.",
    "short": "Scale `short`: the paper's data, but fewer epochs, and fewer images or a smaller model where the table "
    "of settings says so. The final numbers are not comparable with the paper's.",
}
BOUND = "Final test bound (reconstruction − KL ≤ log p(x)), nats per image: larger is better; mean of n finished seeds."


class Cell(NamedTuple):
    """A value, the names of its column in the CSV and on the page (empty: it has none there), the words for it.

    A name that begins with @ is of `Table.about` alone.
    """

    name: str
    value: Any
    heading: str = ""
    words: Callable[[Any], str] = str


class Table(NamedTuple):
    """What the page shows, the CSV's rows by column, the paragraph before the table and its title.

    about: of every row, its experiment and parameterization where it has one. folded: closed on the page.
    """

    headings: list[str]
    texts: list[list[str]]
    values: list[dict[str, Any]]
    note: str
    title: str
    about: list[dict[str, str]]
    folded: bool


def table(rows: Sequence[list[Cell]], note: str = "", title: str = "", folded: bool = False) -> Table:
    """A table of rows, the longest of which has all columns; a text is empty where a row says nothing."""
    every = [cell.heading for cell in max(rows, key=len) if cell.heading]
    headings = sorted(every, key=lambda heading: {"Not finished, or not finite": 1, "Data": 2}.get(heading, 0))
    shown = [{cell.heading: cell.words(cell.value) for cell in row} for row in rows]
    texts = [[row.get(heading, "") for heading in headings] for row in shown]
    values = [{cell.name: cell.value for cell in row if cell.name.strip("@") == cell.name != ""} for row in rows]
    named = [[(cell.name.strip("@"), str(cell.value)) for cell in row] for row in rows]
    about = [{name: value for name, value in row if name in ("experiment", "param")} for row in named]
    return Table(headings, texts, list(filter(None, values)), note, title, about, folded)


class Used(NamedTuple):
    """A run, or session of a benchmark, behind a claim. row: its number in the table of runs; 0: it is in none."""

    name: str
    row: int
    commit: str
    state: str


class Judged(NamedTuple):
    """A claim with its finding. details: by name, some are empty; figure: its name, or empty; parts: the estimates."""

    claim: Claim
    finding: Finding
    details: dict[str, str]
    figure: str
    parts: list[list[str]]
    runs: list[Used]
    params: list[str]  # that it speaks of
    command: str


class Section(NamedTuple):
    """A part of the report: a paragraph, and what follows from the runs of an experiment ("": of several)."""

    title: str
    experiment: str
    about: list[str]
    figures: list[str]
    claims: list[Judged]
    tables: list[Table]


class Report(NamedTuple):
    """All that both layouts show."""

    scale: str
    warnings: list[str]
    problems: list[str]  # files that do not fit together
    runs: str
    basis: str  # of the verdicts
    claims: dict[str, tuple[dict[str, int], list[Judged]]]  # by number in words: how many have a verdict, and these
    figures: dict[str, Drawn]
    sections: list[Section]
    params: dict[str, str]  # labels

    @property
    def verdicts(self) -> dict[str, str]:
        """Those that claims have."""
        return {verdict: verdict for verdicts, _ in self.claims.values() for verdict in verdicts}

    @property
    def experiments(self) -> dict[str, str]:
        return {section.experiment: section.title for section in self.sections if section.experiment}


def report(
    results: Results,
    found: Mapping[str, Finding],
    built: Mapping[str, list[Table]],
    drawn: Mapping[str, Drawn],
    commands: Mapping[str, str],
) -> Report:
    """The report on `results`, with the tables of `build` and the figures of `draw`. commands: by claim, what computes
    the runs that it needs.
    """
    rows = {run.name: i for i, run in enumerate(results.runs, start=1)}
    judged = [_judged(claim, found[claim.id], results.scale, rows, drawn, commands) for claim in CLAIMS]
    claims = {}
    for noun, check in (("implementation check", True), ("empirical claim", False)):
        some = [one for one in judged if one.claim.check == check]
        verdicts = [one.finding.verdict for one in some]
        claims[count(len(some), noun)] = ({one: verdicts.count(one) for one in VERDICTS if one in verdicts}, some)
    sections = []
    for part in SECTIONS:
        own = [one for one in judged if _section(one.claim) == part.title]
        figures = [name for name in part.figures if name in drawn]
        tables = [table for make in part.makes for table in built[make.__name__]]
        here = _here(results, part.experiment) if part.experiment else []
        if own or figures or tables:
            sections.append(Section(part.title, part.experiment, [part.about, *here], figures, own, tables))
    done, diverged = sum(run.done for run in results.runs), sum(run.diverged for run in results.runs)
    precisions = ", ".join(
        f"{part.precision} ({name})" for name, part in (results.papers.parts or results.parts).items()
    )
    return Report(
        scale=results.scale,
        warnings=[text + NO_VERDICT for scale, text in WARNING.items() if scale == results.scale]
        + ([". ".join(results.notes)] if results.notes else []),
        problems=problems(results),
        runs=f"{count(len(results.runs), 'run')}, {done} done, {diverged} diverged, "
        f"{len(results.runs) - done - diverged} incomplete.",
        basis=f"Scale `{results.scale}` ({'' if results.scale == 'paper' else 'not '}the paper's setting), precision "
        f"{precisions}. {COMMON} A rule that is younger than a run it judges is marked: rule after the fact.",
        claims=claims,
        figures=dict(drawn),
        sections=sections,
        params=results.labels,
    )


def _judged(
    claim: Claim,
    finding: Finding,
    scale: str,
    rows: Mapping[str, int],
    drawn: Mapping[str, Drawn],
    commands: Mapping[str, str],
) -> Judged:
    fixed = claim.fixed
    version = f"version {fixed.version}, commit {fixed.commit} of {fixed.date}" if fixed.commit else "not committed"
    details = {
        "Paper": f"{claim.paper} ({claim.where})",
        "Measured": finding.measured,
        "On": f"scale {scale}; {finding.n}; {finding.devices}",
        "Rule": f"{claim.rule} (Rule {version}, hash {claim.hash}.)",
        "Power": finding.power,
        "Warnings": " ".join(finding.warnings),
    }
    parts = []
    for e in finding.estimates:
        unit = claim.unit_of(e)
        ends = interval(unit.shown(e.low), unit.shown(e.high), unit.digits, unit.factor, unit.sign) or "–"
        p = "–" if claim.check else f"{min(e.p_holds, e.p_fails):.2g}"
        parts.append([e.name or claim.id, unit.number(e.value) if e.n else "–", ends, str(e.n), p])
    used = [
        Used(one.name, rows.get(one.name, 0), one.commit, one.state if isinstance(one, Run) else "")
        for one in finding.used
    ]
    said = f"{claim.claim} {claim.rule} {' '.join(e.name for e in finding.estimates)}".replace("ean-only", "wn+mobn")
    params = [param for param in PARAMS if re.search(rf"(?<![\w+]){re.escape(param)}(?![\w+])", said)]
    figure = claim.figure if claim.figure in drawn else ""
    return Judged(claim, finding, details, figure, parts, used, params or [*PARAMS], commands.get(claim.id, ""))


def _section(claim: Claim) -> str:
    """The title of the section that has a claim."""
    if claim.figure == "step_time":
        return STEP_TIME
    module = claim.collect.__module__.rpartition(".")[2]
    return next((part.title for part in SECTIONS if part.experiment == module), CHECKS)


def _here(results: Results, experiment: str) -> list[str]:
    """What runs of an experiment there are, and in which settings their scale differs from the paper's."""
    counts: list[str] = []
    differences: dict[str, list[str]] = {}
    for name, part in results.parts.items():
        if part.runs[0].experiment == experiment:
            ours, papers = part.defaults, scale_defaults(experiment, "paper", part.runs[0].dataset)
            changed = [key for key in ours if ours[key] != papers[key]]
            said = [f"{key.replace('_', ' ')} {ours[key]} (paper: {papers[key]})" for key in changed]
            counts.append(f"{name}, {count(len(part.runs), 'run')}, {sum(run.done for run in part.runs)} finished")
            differences.setdefault(listed(said, most=4), []).append(name)
    scale = f"Scale `{results.scale}` differs from the paper's"
    several = len(differences) > 1
    said = [f"{scale}{f' for {listed(of)}' * several}: {words}." for words, of in differences.items() if words]
    return [" ".join([f"Here: {'; '.join(counts)}.", *said])] if counts else []


@stats.quiet
def build(results: Results, found: dict[str, Finding]) -> dict[str, list[Table]]:
    """The tables by the name of their CSV; of settings, one an experiment and data set, or game."""
    built = {"claims": [table(list(claims(found)))]}
    words = {"bound": BOUND} | scale_defaults("cvae", results.scale, "mnist")
    for make in (make for part in SECTIONS for make in part.makes):
        rows, note = list(make(results)), " ".join((make.__doc__ or "").format(**words).split())
        if make in (table2, bounds, draw_bounds, table3):
            rows = list(_beside(rows, make(results.published) if results.published else ()))
            note += f" At scale `{results.scale}` ours cannot be compared with the others." * (results.scale != "paper")
        parts = itertools.groupby(rows, key=lambda row: row[0].value if make is settings else "")
        title, folded = TITLES.get(make.__name__, ""), make in (variants, step_time, floors, settings, runs)
        built[make.__name__] = [
            table(list(some), note, f"{title}: {part}" if part else title, folded) for part, some in parts
        ]
    return built


def _beside(ours: Iterable[list[Cell]], published: Iterable[list[Cell]]) -> Iterator[list[Cell]]:
    """Our rows, and below each that of the same kind of the published runs, which is on the page alone."""
    theirs = [row for row in published if any(cell.name == "n" and cell.value for cell in row)]
    for row in ours:
        yield row
        for other in theirs:
            if all(cell in row for cell in other if cell.name in ("game", "variant", "param", "lr", "other_settings")):
                texts = {cell.heading: cell.words(cell.value) for cell in other}
                whose = [Cell("@param", cell.value) for cell in other if cell.name == "param"]
                yield others(texts | {"Model": f"{texts['Model']}, {figures.PUBLISHED}"}) + whose


def others(texts: dict[str, str]) -> list[Cell]:
    """A row that is on the page alone, by heading."""
    return [Cell("", text, heading) for heading, text in texts.items()]


def cells(**values: Any) -> list[Cell]:
    """Columns that are shown as they are, by name."""
    headings = {name: name.replace("_", " ").capitalize() for name in values} | HEADINGS
    return [Cell(name, value, headings[name]) for name, value in values.items()]


def claims(found: dict[str, Finding]) -> Iterator[list[Cell]]:
    """One row per claim, in the CSV alone. p: two-sided, that it is reproduced, before Holm's correction."""
    for claim in CLAIMS:
        finding = found[claim.id]
        row = vars(claim) | vars(finding) | {"warnings": " ".join(finding.warnings), "rule_hash": claim.hash}
        row |= {"p": finding.p_holds if finding.estimates else None, "rule_version": claim.fixed.version}
        yield [Cell(name, row[name]) for name in CLAIM.split()]


def form(spec: str, factor: float = 1, after: str = "", before: str = "") -> Callable[[float | None], str]:
    """The words for a number, times a factor, with what stands around it; for none, a dash."""
    return lambda value: "–" if value is None else before + plain(factor * value, spec) + after


PERCENT, HUNDREDTHS, THOUSANDTHS = form(".2f", 100), form(".2f"), form(".3f")
FINALS = {  # columns of metrics.csv, and the words for their last epoch
    "train_error": form(".2f", 100, " %", "training "),
    "test_error": form(".2f", 100, " %", "test "),
    "test_bound_nats": form(".2f", 1, " nats", "test bound "),
    "test_bits_per_dim": form(".3f", 1, " bits per dim."),
    "test_score": form(".1f", before="test score "),
}
DIFFERENCES = {  # of `FINALS`, the words for them
    "train_error": form("+.3g", 100, " points", "training "),
    "test_error": form("+.3g", 100, " points", "test "),
    "test_bound_nats": form("+.3g", 1, " nats", "test bound "),
    "test_bits_per_dim": form("+.3g", 1, " bits per dim."),
    "test_score": form("+.3g", before="test score "),
}


def mean(values: Sequence[float]) -> float | None:
    """None of no values; not finite where one of them, or their sum, is not."""
    return float(np.mean(values)) if len(values) else None


def final(runs: Iterable[Run], column: str) -> list[float]:
    """The last epoch's value of the runs that have this column."""
    return [run.final(column) for run in runs if column in run.metrics]


def changes(run: Run, *left_out: str) -> str:
    return listed((f"{name} = {value}" for name, value in run.changed.items() if name not in left_out))


def grouped(runs: Iterable[Run], kind: Callable[[Run], Any] = lambda run: run.variant) -> Iterator[list[list[Run]]]:
    """The runs of every kind, and the finished ones of these."""
    kinds: dict[Any, list[Run]] = {}
    for run in runs:
        kinds.setdefault(kind(run), []).append(run)
    yield from ([some, [run for run in some if run.done]] for some in kinds.values())


def limits(name: str, low: float, high: float, digits: int, factor: float = 1) -> list[Cell]:
    """An interval: exact in the CSV, rounded outward on the page."""
    words = interval(low, high, digits, factor) or "–"
    return [Cell(f"{name}low", low), Cell(f"{name}high", high), Cell("", words, "95 % interval")]


def estimate(name: str, heading: str, values: list[float], digits: int = 2, factor: float = 1) -> list[Cell]:
    """A mean over seeds and its interval."""
    middle = Cell(f"{name}_mean", mean(values), heading, form(f".{digits}f", factor))
    e = stats.t_test(name, values)
    return [middle, *limits(f"{name}_", e.low, e.high, digits, factor)]


def unfinished(runs: Iterable[Run]) -> Cell:
    """The runs that no mean can rest on: how far they got, or which of their numbers are not finite."""
    said = []
    for run in runs:
        used: Any = run.metrics.filter([*FINALS, "kl_nats", "reconstruction_nats"]).to_dict("list")
        used |= {"log_likelihood_nats": run.facts.get("log_likelihood_nats", 0.0), "a game's score": run.games["score"]}
        lost = ", ".join(name for name, values in used.items() if not np.isfinite(values).all())
        if lost or not run.done:
            said.append(f"seed {run.seed}: " + (f"{lost} {NOT_FINITE}" if run.done else run.state))
    return Cell("unfinished", listed(said, "; "), "Not finished, or not finite")


def table2(results: Results) -> Iterator[list[Cell]]:
    """Test error after the last epoch, at figure 1's learning rates; mean and t-interval of the n finished seeds."""
    cifar = results.of("cifar")
    own = {run.param: run.own_lr for run in cifar.runs}  # empty for the paper's
    for param in sorted(paper.TABLE2.keys() | own, key=[*paper.TABLE2, *results.labels].index) if own else ():
        runs, seeds = [run for run in cifar.figure1 if run.param == param], []
        for run in runs:
            error = PERCENT(run.final("test_error")) if run.epoch else "–"
            seeds.append(f"seed {run.seed}: {error}" + f" ({run.state})" * (not run.done))
        done, published = [run for run in runs if run.done], paper.TABLE2.get(param)
        yield [
            *cells(model=paper.TABLE2_NAMES.get(param, results.labels[param]), param=param),
            *estimate("test_error", "Ours", final(done, "test_error"), factor=100),
            Cell("n", len(done), "n"),
            Cell("paper_test_error", published and round(published / 100, 6), "Paper", PERCENT),
            *cells(lr=own.get(param) or scale_settings("cifar", "paper", param).lr),
            Cell("seeds", listed(seeds, "; ") or "not run", "Every seed"),
        ]
    for model, earlier in paper.TABLE2_EARLIER.items() if cifar.runs else ():
        yield others({"Model": model, "Paper": plain(earlier)})


def variants(results: Results) -> Iterator[list[Cell]]:
    """Errors after the last epoch (%), mean over the n finished seeds."""
    for runs, done in grouped(results.of("cifar").runs):
        yield [
            *cells(variant=runs[0].variant, param=runs[0].param, lr=runs[0].lr),
            *cells(other_settings=changes(runs[0]), n=len(done)),
            Cell("train_error_mean", mean(final(done, "train_error")), "Training error", PERCENT),
            *estimate("test_error", "Test error", final(done, "test_error"), factor=100),
            unfinished(runs),
        ]


def bounds(results: Results) -> Iterator[list[Cell]]:
    """{bound} Parameters: Polyak-averaged. log p(x): a tighter bound, of the runs with the most importance samples, K.
    The paper prints no number; the IAF paper's rows (Kingma et al., 2016) are of converged models of the same kind, on
    another binarization (worth 1 to 2 nats). Our posterior of MNIST is IAF of depth {iaf_depth}, width {iaf_width}.
    """
    for dataset in paper.FIGURE2:
        for runs, done in grouped(results.of("cvae", dataset).runs):
            facts = [run.facts for run in done if "log_likelihood_nats" in run.facts]
            samples = max((one.get("importance_samples", 0) for one in facts), default=0)
            log_p = [one["log_likelihood_nats"] for one in facts if samples == one.get("importance_samples")]
            rest = f" (K = {samples:.0f}, n = {len(log_p)})"
            yield [
                Cell("dataset", dataset, "Data set"),
                *_final_bound(runs, done),
                Cell("test_bits_per_dim_mean", mean(final(done, "test_bits_per_dim")), "Bits per dim.", THOUSANDTHS),
                Cell("log_likelihood_nats_mean", mean(log_p), "log p(x)", form(".2f", after=rest)),
                Cell("importance_samples", int(samples)),
                Cell("log_likelihood_n", len(log_p)),
            ]
    for model, (bound, of) in paper.IAF_MNIST.items() if "cvae mnist" in results.parts else ():
        yield others({"Data set": "mnist", "Model": f"IAF paper: {model}", "Test bound": f"{plain(bound)} ± {of:.2f}"})
    for model, bits in paper.IAF_CIFAR10.items() if "cvae cifar10" in results.parts else ():
        yield others({"Data set": "cifar10", "Model": f"IAF paper: {model}", "Bits per dim.": plain(bits)})


def draw_bounds(results: Results) -> Iterator[list[Cell]]:
    """{bound} KL: of all time steps. The paper prints no number; the rows below ours are of the code that it starts
    from (its issue 4) and of DRAW's own paper. Another binarization is worth 1 to 2 nats.
    """
    draw = results.of("draw")
    yield from itertools.starmap(_final_bound, grouped(draw.runs))
    for model, (epochs, bound) in paper.DRAW_MNIST.items() if draw.runs else ():
        yield others({"Model": model, "Epochs": epochs, "Test bound": plain(bound, "g")})


def _final_bound(runs: list[Run], done: list[Run]) -> list[Cell]:
    """Of a variant's runs: final bound and its parts over the finished seeds, and the state of the others."""
    return [
        *cells(data=listed(sorted({str(run.data) for run in runs}), "; ")),
        Cell("variant", runs[0].variant, "Model"),
        *(Cell(name, getattr(runs[0], name)) for name in ("param", "lr")),
        *cells(other_settings=changes(runs[0]), epochs=runs[0].epochs, n=len(done)),
        *estimate("test_bound_nats", "Test bound", final(done, "test_bound_nats")),
        Cell("kl_nats_mean", mean(final(done, "kl_nats")), "KL", HUNDREDTHS),
        Cell("reconstruction_nats_mean", mean(final(done, "reconstruction_nats")), "Reconstruction", HUNDREDTHS),
        unfinished(runs),
    ]


def table3(results: Results) -> Iterator[list[Cell]]:
    """Ours: the mean score of an epoch's full test games, its maximum over the epochs that all n seeds have, mean over
    these seeds (the finished or, without one, those on the way). A maximum of noisy means is biased upwards, more so
    with more epochs and fewer games. Last of these epochs, random play: mean over all games ± its standard error; above
    it: the difference in standard errors of the difference. The paper's runs have 50 million agent steps.
    """
    for game, published in paper.TABLE3.items():
        for some, _ in grouped(results.of("dqn", game).runs, lambda run: (run.param, run.lr, changes(run, "epochs"))):
            of_kind = longest(some)
            runs = counted(of_kind)
            epochs = min((run.epoch for run in runs), default=0)
            steps = min((int(run.metrics["agent_steps"].iloc[epochs - 1]) for run in runs if epochs), default=0)
            last, random = [score for run in runs for score in run.scores(epochs)], random_scores(of_kind)
            above = stats.welch_t(last, random) if min(len(last), len(random)) > 1 else None
            theirs = published | {"mnih": paper.TABLE3_MNIH[game]}
            yield [
                Cell("game", game, "Game", paper.game_name),
                Cell("param", some[0].param, "Model"),
                *estimate("max_score", "Ours", [max_score(run, epochs) for run in runs], digits=1),
                *cells(n=len(runs)),
                *(Cell(f"paper_{name}", score) for name, score in theirs.items()),
                Cell("", " / ".join(map(str, theirs.values())), "Paper: normal / wn / Mnih et al."),
                *cells(lr=some[0].lr, other_settings=changes(some[0], "epochs"), epochs=epochs),
                Cell("agent_steps", steps, "Agent steps", lambda steps: f"{steps:,}".replace(",", " ")),
                Cell("", steps, "% of the paper's", form(".3g", 100 / paper.AGENT_STEPS)),
                *_games("last", "Last epoch", last),
                *_games("random", "Random play", random),
                Cell("last_above_random", above, "Above it (s.e.)", form(".1f")),
                unfinished(of_kind),
            ]


def _games(name: str, heading: str, scores: list[float]) -> list[Cell]:
    """The mean score of games, its standard error and their number: `1.5 ± 0.2 (30 games)`."""
    error = stats.standard_error(scores)
    more = f" ± {score(error) if len(scores) > 1 else '–'} ({count(len(scores), 'game')})"
    middle = Cell(f"{name}_score_mean", mean(scores), heading, form(".1f", after=more))
    return [middle, Cell(f"{name}_score_error", error), Cell(f"{name}_games", len(scores))]


def interquartile_means(results: Results) -> Iterator[list[Cell]]:
    """Interquartile mean over games × seeds of (maximum test score − random play) / (Mnih et al. − random play), at the
    scale's settings but any number of epochs and table 3's learning rates; interval by bootstrap over a game's seeds.
    """
    for param in results.labels:
        scores: dict[str, list[float]] = {}
        epochs = []
        for game, mnih in paper.TABLE3_MNIH.items():
            runs = counted(run for run in results.of("dqn", game).figure4 if run.param == param)
            chance = mean(random_scores(runs))
            if len(runs) >= stats.LOOKS[0] and chance is not None:
                epochs.append(min(run.epoch for run in runs))
                scores[game] = [np.divide(max_score(run, epochs[-1]) - chance, mnih - chance) for run in runs]
        if len(scores) > 1:
            middle, low, high = stats.interquartile_mean(list(scores.values()))
            yield [
                Cell("param", param, "Model"),
                Cell("interquartile_mean", middle, "Interquartile mean", THOUSANDTHS),
                *limits("", low, high, 3),
                Cell("games", ", ".join(scores), "Games", paper.game_name),
                *cells(n=sum(map(len, scores.values())), epochs=min(epochs)),
            ]


def step_time(results: Results) -> Iterator[list[Cell]]:
    """Ratios of step times, paired within rounds; cvae: of MNIST. The paper, of cifar: bn 16 % slower, wn hardly."""
    for experiment, bench in itertools.product(SETTINGS, results.bench.values()):
        for name, ratio in bench.get(experiment, {"ratios": {}})["ratios"].items():
            yield [
                *cells(experiment=experiment, device=bench["device_name"], ratio=name),
                Cell("median", ratio["median"], "Median", THOUSANDTHS),
                *limits("", ratio["low"], ratio["high"], 3),
                Cell("n", ratio["n"], "n"),
            ]


def beyond(results: Results) -> Iterator[list[Cell]]:
    """Comparisons of the parameterizations that are not the paper's with wn and normal, ours less or over theirs. They
    are no claims of the paper: neither Holm's correction nor the counts of verdicts have them. Their rules are those of
    the claims: the same estimators, margins and numbers of seeds (C4a, C5, C6, C7, C9a, C10, C11 and C13), and a result
    at the paper's scale alone. `better` or `worse`: the 95 % interval lies wholly beyond the margin on that side; where
    more than a fifth of the runs diverge: worse. `no difference`: the 90 % interval lies within the margins (TOST).
    `Epochs to the other's test bound` has no number where ours never reaches it. Learning rates are those of the class.
    """
    for ours, theirs, rule, finding in comparisons(results):
        e, unit = finding.estimates[0], rule.unit
        margins = sorted({margin for one in finding.estimates if one.name == e.name for margin in one.margin})
        value, low, high = (unit.factor * unit.shown(one) for one in (e.value, e.low, e.high))
        yield [
            *cells(parameterization=results.labels[ours]),
            Cell("param", ours, "Name"),
            *cells(what=f"{rule.claim} {e.name}".strip(), against=theirs),
            Cell("estimate", value),
            Cell("", unit.number(e.value) if e.n else "–", "Estimate"),
            Cell("unit", unit.suffix.strip()),
            *limits("", low, high, unit.digits),
            *cells(n=e.n, fewest_seeds=rule.seeds),
            *cells(margins=", ".join(unit.number(margin) if margin else "0" for margin in margins)),
            *cells(result=finding.verdict, remarks=finding.measured),
        ]


def floors(results: Results) -> Iterator[list[Cell]]:
    """Floor: the FLOPs of a step's matrix products and convolutions at the speed that one large matrix product reached
    in the same rounds and precision. Distance: how many times its floor the median step takes. % of bytes/s: the speed
    at which the step's operations, each by itself, read and write, beside that of a large copy; near 100 %, memory is
    what limits the step. dqn: an update alone.
    """
    for experiment, bench in itertools.product(SETTINGS, results.bench.values()):
        memory = bench.get(experiment, {}).get("memory")
        for name, work in step_works(bench, experiment).items():
            yield [
                *cells(experiment=experiment, device=bench["device_name"], contender=name),
                Cell("seconds", work["floor_seconds"] * work["distance"], "Step (ms)", form(".4g", 1e3)),
                Cell("flops", work["flops"], "GFLOP", form(".4g", 1e-9)),
                Cell("bytes", work["bytes"], "GB", form(".3g", 1e-9)),
                Cell("floor_seconds", work["floor_seconds"], "Floor (ms)", form(".4g", 1e3)),
                Cell("distance", work["distance"], "Distance", HUNDREDTHS),
                Cell("flops_share", work["flops_share"], "% of FLOP/s", form(".1f", 100)),
                Cell("bytes_share", work["bytes_share"], "% of bytes/s", form(".1f", 100)),
                Cell("memory_bytes", memory[whose(name)], "Largest memory (GB)", form(".2f", 1e-9)),
            ]


def settings(results: Results) -> Iterator[list[Cell]]:
    """One row per setting of every experiment (and data set or game): the paper's value and those of the runs."""
    for part, of_part in results.parts.items():
        experiment, used = of_part.runs[0].experiment, [run.settings for run in of_part.runs]
        told = {entry.name: entry.metadata for entry in dataclasses.fields(SETTINGS[experiment])}
        defaults = scale_defaults(experiment, "paper", of_part.runs[0].dataset)
        defaults |= {"init": SETTINGS[experiment].init_default} if "init" in defaults else {}
        for name in dict.fromkeys(itertools.chain(told, *used)):
            values = [defaults.get(name, ""), *(settings[name] for settings in used if name in settings)]
            default, *texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
            entry = told.get(name, {"help": "not a setting of this version", "source": ""})
            yield [
                Cell("experiment", part),
                *cells(setting=name, default=default, runs=listed(texts)),
                *cells(help=entry["help"], source=entry["source"]),
            ]


def runs(results: Results) -> Iterator[list[Cell]]:
    """One row per run: how it ended, with which of its experiment's final numbers, where, on which code."""
    shown = [name for name in FINALS if any(name in run.metrics for run in results.runs)]
    for run in results.runs:
        last = {name: run.final(name) for name in FINALS if name in run.metrics}
        words = ", ".join(FINALS[name](value) for name, value in last.items())
        commit = run.commit[:7] + ", dirty" * run.dirty
        yield [
            Cell("", run.name.replace("/", " "), "Run"),
            *(Cell(name, value) for name, value in (("experiment", run.experiment), ("variant", run.variant))),
            *(Cell(name, value) for name, value in (("param", run.param), ("seed", run.seed))),
            Cell("status", run.status, "Status", lambda status: "incomplete" if status == "running" else status),
            Cell("epoch", run.epoch, "Epoch", f"{{}} of {run.epochs}".format),
            Cell("epochs", run.epochs),
            *(Cell(name, last.get(name)) for name in shown),
            Cell("", words if run.epoch else "–", "Last epoch"),
            Cell("seconds", run.record.seconds, "Seconds", form(".0f")),
            Cell("peak_memory_bytes", run.record.peak_memory_bytes),
            *cells(device=run.device, git=commit, torch=run.torch, hash=run.config.hash),
            *cells(resumed=len(run.record.resumed), message=run.record.message),
        ]


TITLES = {
    "table2": "Table 2: test error on CIFAR-10 (%)",
    "variants": "Every variant of the classifier",
    "bounds": "Final test bounds of the VAEs",
    "draw_bounds": "Final test bounds of DRAW",
    "table3": "Table 3: maximum test score",
    "interquartile_means": "Interquartile means over the games",
    "step_time": "Step times",
    "floors": "Distance from the floor",
    "beyond": "Comparisons",
    "settings": "Settings",
    "runs": "Runs",
}
STEP_TIME, CHECKS = "Step time", "Checks of the implementation"


class Part(NamedTuple):
    """What a section of the report is made of."""

    title: str
    about: str
    figures: Sequence[str] = ()
    makes: Sequence[Callable[[Results], Iterator[list[Cell]]]] = ()
    experiment: str = ""


SECTIONS = (
    Part(
        "CIFAR-10 classifier",
        "The paper trains a convolutional network on whitened CIFAR-10 images for "
        f"{paper.EPOCHS} epochs, without augmentation (§5.1). It reports that wn and bn train faster than the normal "
        "parameterization, that wn alone ends no better than it, and that wn+mobn has the lowest test error of all.",
        ("figure1", "test_error", "norm_growth", "noise_kurtosis", "variants", "learning_rates"),
        (table2, variants),
        "cifar",
    ),
    Part(
        "Convolutional VAEs",
        "The paper trains variational auto-encoders with convolutions on MNIST and CIFAR-10 (§5.2). It compares wn "
        "with the normal parameterization alone: wn reaches a better bound, and varies less from seed to seed.",
        ("figure2", "bound_raw"),
        (bounds,),
        "cvae",
    ),
    Part(
        "DRAW",
        "DRAW is a recurrent auto-encoder that reads and writes an image through a moving window, step by step. The "
        "paper trains it on MNIST (§5.3) and reports that wn speeds it up, with the learning rate and the "
        "initialization of the normal parameterization. It does not say where g begins: both readings are here.",
        ("figure3", "kl_steps"),
        (draw_bounds,),
        "draw",
    ),
    Part(
        "DQN",
        "The paper trains deep Q-networks on four Atari games, one run each (§5.4). It reports higher maximum scores "
        "under wn in three of the four, and that bn does not work with its small minibatches.",
        ("figure4", "mean_q"),
        (table3, interquartile_means),
        "dqn",
    ),
    Part(
        STEP_TIME,
        "bn has to read every activation of a layer twice; wn computes on the weights alone. The paper reports that a "
        "step of the classifier takes about 16 % longer under bn, and hardly longer under wn (§5.1).",
        ("step_time",),
        (step_time, floors),
    ),
    Part(
        CHECKS,
        "These checks are of this code, at every scale: that wn has the paper's gradients, that wn and bn agree for "
        "one layer on whitened input, and that the data-dependent init does what it promises.",
        ("init",),
    ),
    Part("Beyond the paper", "Parameterizations that the paper does not have.", (), (beyond,)),
    Part("Settings and runs", "Every setting with its source, and every run.", (), (settings, runs)),
)

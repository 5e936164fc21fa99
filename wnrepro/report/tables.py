"""What the report says, for `markdown` and `page` to lay out; a table has its numbers and their words in one place.

In tables/*.csv errors are fractions, bounds are in nats per image. Text that may come out of a run's files stands only
in cells, `Judged`, `Report.notes` and `Report.problems`, as it is: the layouts escape it. In all other text, which is
the program's, `code` is marked by backticks.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from wnrepro import paper
from wnrepro.report import figures, stats
from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.claim import NOT_FINITE, VERDICTS, Claim, Finding, count, interval, nats, plain, score
from wnrepro.report.claims.dqn import max_score
from wnrepro.results import (
    Results,
    Run,
    counted,
    longest,
    problems,
    random_scores,
    scale_defaults,
    step_ratios,
    step_works,
    whose,
)
from wnrepro.settings import FIGURE_LR, NORMAL_INIT, PARAMS, SETTINGS

MOST = 20  # of a list in one cell
IDENTITY = {"dataset", "game", "variant", "param", "lr", "other_settings"}  # columns that tell a table's rows apart
UNFINISHED = "Not finished, or not finite"
LAST = (UNFINISHED, "Data")  # headings
NO_VERDICT = " No empirical claim has a verdict at this scale."
WARNING = {
    "quick": "Scale `quick`: the data is bundled sample data and the models are small. These numbers mean nothing "
    "beside the paper's; they show that the code runs." + NO_VERDICT,
    "short": "Scale `short`: the paper's data, but fewer epochs, and fewer images or a smaller model where the table "
    "of settings says so. The final numbers are not comparable with the paper's." + NO_VERDICT,
}


@dataclass(frozen=True)
class Cell:
    """A value (None: there is none, a dash on the page), its words, and the names of its column.

    name: in the CSV, heading: on the page; the column is not there where it is empty.
    """

    name: str
    value: Any
    heading: str = ""
    words: Callable[[Any], str] = str

    @property
    def text(self) -> str:
        return "–" if self.value is None else self.words(self.value)


@dataclass(frozen=True)
class Table:
    """Rows, the paragraphs before them, the title of a folded one."""

    rows: list[list[Cell]]
    notes: tuple[str, ...] = ()
    title: str = ""
    sortable: bool = False

    @property
    def headings(self) -> list[str]:
        every = [cell.heading for cell in max(self.rows, key=len) if cell.heading]
        return [*(name for name in every if name not in LAST), *(name for name in LAST if name in every)]

    @property
    def texts(self) -> list[list[str]]:
        """Those of every row under the headings, empty where a row says nothing."""
        headings, rows = self.headings, ({cell.heading: cell.text for cell in row} for row in self.rows)
        return [[row.get(heading, "") for heading in headings] for row in rows]

    @property
    def values(self) -> list[dict[str, Any]]:
        """The CSV's rows, by column."""
        rows = ({cell.name: cell.value for cell in row if cell.name} for row in self.rows)
        return [row for row in rows if row]


class Judged(NamedTuple):
    """A claim, what the runs say of it, all details by name (some are empty), its figure (empty: it has none)."""

    claim: Claim
    finding: Finding
    details: dict[str, str]
    figure: str

    @property
    def link(self) -> str:
        """The words that lead to the figure: `figure 1`, `learning rates`."""
        return self.figure.replace("_", " ").replace("figure", "figure ")


def verdicts(judged: Iterable[Judged]) -> dict[str, int]:
    """How many have each verdict that one has."""
    found = Counter(one.finding.verdict for one in judged)
    return {verdict: found[verdict] for verdict in VERDICTS if verdict in found}


class Report(NamedTuple):
    """All that both layouts show."""

    scale: str
    warning: str  # of the scale; empty: none
    notes: Sequence[str]  # further warnings
    problems: list[str]  # files that do not fit together
    runs: str
    basis: str  # of the verdicts
    claims: dict[str, list[Judged]]  # those that are counted together, by their number in words
    sections: dict[str, tuple[dict[str, str], list[Table]]]  # by heading: the figures' captions, by name, and tables


def report(results: Results, found: dict[str, Finding], built: dict[str, list[Table]], drawn: Iterable[str]) -> Report:
    """The report on `results`, with the tables of `build` and the figures that are `drawn`."""
    done, diverged = sum(run.done for run in results.runs), sum(run.diverged for run in results.runs)
    incomplete = len(results.runs) - done - diverged
    setting = "the paper's setting" if results.scale == "paper" else "not the paper's setting"
    precisions = ", ".join(f"{part.precision} ({name})" for name, part in results.parts.items())
    captions = {name: figures.caption(name, results) for name in drawn}
    sections = {}
    for heading, (names, makes) in SECTIONS.items():
        shown = {name: captions[name] for name in names if name in captions}
        sections[heading] = (shown, [table for make in makes for table in built[make.__name__]])
    judged = [_judged(claim, found[claim.id], results.scale, captions) for claim in CLAIMS]
    checks, empirical = ([one for one in judged if one.claim.check == check] for check in (True, False))
    return Report(
        scale=results.scale,
        warning=WARNING.get(results.scale, ""),
        notes=results.notes,
        problems=problems(results),
        runs=f"{count(len(results.runs), 'run')}, {done} done, {diverged} diverged, {incomplete} incomplete.",
        basis=f"Judged on the runs at scale `{results.scale}` ({setting}), with all other settings at the scale's "
        f"defaults where the rule names no other, and precision {precisions}. A rule that is younger than a run it "
        "judges is marked: rule after the fact. An empirical claim that needs a number which is not finite is "
        "inconclusive.",
        claims={
            count(len(checks), "implementation check"): checks,
            count(len(empirical), "empirical claim"): empirical,
        },
        sections={heading: shown for heading, shown in sections.items() if any(shown)},
    )


def _judged(claim: Claim, finding: Finding, scale: str, drawn: Container[str]) -> Judged:
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
    return Judged(claim, finding, details, claim.figure if claim.figure in drawn else "")


def build(results: Results, found: dict[str, Finding]) -> dict[str, list[Table]]:
    """The tables by the name of their CSV; of settings, one an experiment and data set, or game."""
    tables = {name: make(results) for name, make in TABLES.items()}
    if shown := results.published:
        for make in (table2, bounds, draw_bounds, table3):
            tables[make.__name__] = [_beside(*both) for both in zip(make(results), make(shown), strict=True)]
    return {"claims": [claims(found)]} | {name: [one for one in some if one.rows] for name, some in tables.items()}


def _beside(ours: Table, published: Table) -> Table:
    """Our rows, and below each that of the same kind of the published runs, which is on the page alone."""

    def kind(row: list[Cell]) -> str:
        return str([cell.value for cell in row if cell.name in IDENTITY])

    theirs = {kind(row): row for row in published.rows if any(cell.name == "n" and cell.value for cell in row)}
    rows = []
    for row in ours.rows:
        rows.append(row)
        if other := theirs.get(kind(row)):
            texts = {cell.heading: cell.text for cell in other}
            texts["Model"] += f", {figures.PUBLISHED}"
            rows.append([Cell("", text, heading) for heading, text in texts.items()])
    return replace(ours, rows=rows)


def claims(found: dict[str, Finding]) -> Table:
    """A row a claim, in the CSV alone. p: two-sided, that it is reproduced, before Holm's correction."""
    rows = []
    for claim, finding in ((claim, found[claim.id]) for claim in CLAIMS):
        row = {name: getattr(claim, name) for name in ("id", "claim", "where", "paper")}
        row |= {name: getattr(finding, name) for name in ("measured", "n", "devices", "verdict")}
        row["p"] = finding.p_holds if finding.estimates else None
        row |= {"power": finding.power, "warnings": " ".join(finding.warnings)}
        row |= {"after_the_fact": finding.after_the_fact, "rule": claim.rule}
        row |= {"rule_version": claim.fixed.version, "rule_hash": claim.hash}
        rows.append([Cell(name, value) for name, value in row.items()])
    return Table(rows)


def form(spec: str, factor: float = 1, more: str = "") -> Callable[[float], str]:
    """The words for a number, times a factor, and more after it."""
    return lambda value: plain(factor * value, spec) + more


PERCENT, THOUSANDTHS = form(".2f", 100), form(".3f")
of_agent_steps = form(".3g", 100 / paper.AGENT_STEPS)


@stats.quiet
def mean(values: Sequence[float]) -> float | None:
    """None of no values; not finite where one of them, or their sum, is not."""
    return float(np.mean(values)) if len(values) else None


def final(runs: Iterable[Run], column: str) -> list[float]:
    """The last epoch's value of the runs that have this column."""
    return [run.final(column) for run in runs if column in run.metrics]


def listed(texts: Iterable[str], separator: str = "; ") -> str:
    """The first of these texts, and how many more there are."""
    every = list(texts)
    more = [f"and {len(every) - MOST} more"] if len(every) > MOST else []
    return separator.join(every[:MOST] + more)


def changes(run: Run, *left_out: str) -> str:
    return listed((f"{name} = {value}" for name, value in run.changed.items() if name not in left_out), ", ")


def by_variant(results: Results) -> Iterator[tuple[list[Run], list[Run]]]:
    """The runs of every variant, and the finished ones of these."""
    for variant in dict.fromkeys(run.variant for run in results.runs):
        runs = [run for run in results.runs if run.variant == variant]
        yield runs, [run for run in runs if run.done]


def limits(name: str, low: float, high: float, digits: int, factor: float = 1) -> list[Cell]:
    """An interval: exact in the CSV, rounded outward on the page."""
    words = interval(low, high, digits, factor) or None
    return [Cell(f"{name}low", low), Cell(f"{name}high", high), Cell("", words, "95 % interval")]


def estimate(name: str, heading: str, values: list[float], digits: int = 2, factor: float = 1) -> list[Cell]:
    """A mean over seeds and its interval."""
    words = form(f".{digits}f", factor)
    return [
        Cell(f"{name}_mean", mean(values), heading, words),
        *limits(f"{name}_", *stats.t_interval(values), digits, factor),
    ]


def unfinished(
    runs: list[Run], *columns: str, epochs: int | None = None, facts: Sequence[str] = (), games: Sequence[int] = ()
) -> Cell:
    """The runs that no mean can rest on: how far they got, or which of these columns (of the first so many epochs, or
    the last), facts, and scores of the games of these epochs, is not finite.
    """
    said = []
    for run in runs:
        rows = slice(-1, None) if epochs is None else slice(epochs)
        values = {column: run.metrics[column].to_numpy(float)[rows] for column in columns if column in run.metrics}
        lost = [column for column, some in values.items() if not np.isfinite(some).all()]
        lost += [fact for fact in facts if not math.isfinite(run.facts.get(fact, 0.0))]
        lost += ["a game's score"] * (not np.isfinite([score for epoch in games for score in run.scores(epoch)]).all())
        if not run.done:
            said.append(f"seed {run.seed}: {run.state}")
        elif lost:
            said.append(f"seed {run.seed}: {', '.join(lost)} {NOT_FINITE}")
    return Cell("unfinished", listed(said), UNFINISHED)


def incomparable(results: Results, ours: str = "rows", theirs: str = "them") -> str:
    said = f" At scale `{results.scale}` our {ours} cannot be compared with {theirs}."
    return said if results.scale != "paper" else ""


def table2(results: Results) -> list[Table]:
    """A row a parameterization, in table 2's order."""
    note = (
        "Test error after the last epoch, at figure 1's learning rates. n: finished seeds, which the mean "
        "and the t-interval rest on; a run that is not finished stands with its epoch."
    )
    cifar, rows = results.of("cifar"), []
    for model, error in paper.TABLE2_EARLIER.items() if cifar.runs else ():
        rows.append([Cell("", model, "Model"), Cell("", plain(error), "Paper")])
    for param, published in paper.TABLE2.items() if cifar.runs else ():
        runs = [run for run in cifar.figure1 if run.param == param]
        done = [run for run in runs if run.done]
        row = [
            Cell("model", paper.TABLE2_NAMES[param], "Model"),
            Cell("param", param),
            Cell("lr", FIGURE_LR[param], "Learning rate", form("g")),
            Cell("paper_test_error", round(published / 100, 6), "Paper", PERCENT),
            *estimate("test_error", "Ours", final(done, "test_error"), factor=100),
            Cell("n", len(done), "n"),
            Cell("seeds", listed(map(_seed, runs)) or "not run", "Every seed"),
        ]
        rows.append(row)
    return [Table(rows, (note + incomparable(results, "column", "the paper's"),))]


def _seed(run: Run) -> str:
    """`seed 1: 8.41`, with the state of a run that is not done."""
    error = f"seed {run.seed}: {PERCENT(run.final('test_error')) if run.epoch else '–'}"
    return error if run.done else f"{error} ({run.state})"


def variants(results: Results) -> list[Table]:
    """A row a variant of cifar."""
    rows = [
        [
            Cell("variant", runs[0].variant, "Variant"),
            Cell("param", runs[0].param),
            Cell("lr", runs[0].lr, "Learning rate", form("g")),
            Cell("other_settings", changes(runs[0]), "Other settings"),
            Cell("n", len(done), "n"),
            Cell("train_error_mean", mean(final(done, "train_error")), "Training error", PERCENT),
            *estimate("test_error", "Test error", final(done, "test_error"), factor=100),
            unfinished(runs, "train_error", "test_error"),
        ]
        for runs, done in by_variant(results.of("cifar"))
    ]
    return [Table(rows, ("Errors after the last epoch (%), mean over the n finished seeds.",))]


def bounds(results: Results) -> list[Table]:
    """A row a variant of cvae. log p(x): of the runs with the most importance samples, whose number has a column."""
    what = (
        "Test bound of the Polyak-averaged parameters after the last epoch, in nats per image (a lower bound on "
        "log p(x): larger is better; bits per dimension: smaller is better), mean over the n finished seeds. "
        "log p(x): estimated with K importance samples, a tighter lower bound."
    )
    note = (
        "The Weight Normalization paper prints figure 2 alone. The IAF paper's rows (Kingma et al., 2016) are the "
        "bounds of converged models of the same kind, on its own binarization of MNIST; another binarization moves the "
        "bound by 1 to 2 nats."
    )
    rows = []
    parts = {dataset: results.of("cvae", dataset) for dataset in paper.FIGURE2}
    for dataset, part in parts.items():
        for runs, done in by_variant(part):
            estimated = [run for run in done if run.facts.get("importance_samples", 0) > 0]
            samples = max((k for run in estimated if math.isfinite(k := run.facts["importance_samples"])), default=0)
            estimated = [run for run in estimated if run.facts["importance_samples"] == samples]
            log_p = [run.facts["log_likelihood_nats"] for run in estimated if "log_likelihood_nats" in run.facts]
            of = f" (K = {samples:.0f}, n = {len(log_p)})"
            row = [
                Cell("dataset", dataset, "Data set"),
                *_final_bound(runs, done),
                Cell("test_bits_per_dim_mean", mean(final(done, "test_bits_per_dim")), "Bits per dim.", THOUSANDTHS),
                Cell("log_likelihood_nats_mean", mean(log_p), "log p(x)", form(".2f", more=of)),
                Cell("importance_samples", int(samples)),
                Cell("log_likelihood_n", len(log_p)),
            ]
            rows.append(row)
    if parts["mnist"].runs:
        depth, width = (parts["mnist"].defaults[name] for name in ("iaf_depth", "iaf_width"))
        note += f" Our posterior of MNIST is IAF of depth {depth}, width {width}."
        for model, (bound, spread) in paper.IAF_MNIST.items():
            rows.append(_iaf("mnist", model, "Test bound", f"{nats(bound)} ± {spread:.2f}"))
    for model, bits in paper.IAF_CIFAR10.items() if parts["cifar10"].runs else ():
        rows.append(_iaf("cifar10", model, "Bits per dim.", nats(bits)))
    return [Table(rows, (what, note + incomparable(results)))]


def _iaf(dataset: str, model: str, heading: str, bound: str) -> list[Cell]:
    return [Cell("", dataset, "Data set"), Cell("", f"IAF paper: {model}", "Model"), Cell("", bound, heading)]


def draw_bounds(results: Results) -> list[Table]:
    """A row a variant of draw."""
    what = (
        "Test bound after the last epoch, in nats per image (a lower bound on log p(x): larger is better), mean over "
        "the n finished seeds: the reconstruction's log-likelihood less the KL of all time steps."
    )
    note = (
        "The Weight Normalization paper prints figure 3 alone. The rows below ours are others' bounds: of the code "
        "that it starts from, as told in that code's issue 4, and of DRAW's own paper; another binarization moves the "
        "bound by 1 to 2 nats."
    )
    rows = [_final_bound(runs, done) for runs, done in by_variant(results.of("draw"))]
    for model, (epochs, bound) in paper.DRAW_MNIST.items() if rows else ():
        rows.append([Cell("", model, "Model"), Cell("", epochs, "Epochs"), Cell("", bound, "Test bound", form("g"))])
    return [Table(rows, (what, note + incomparable(results)))]


def _final_bound(runs: list[Run], done: list[Run]) -> list[Cell]:
    """Of a variant's runs: final bound and its parts over the finished seeds, and the state of the others."""
    needed = ("test_bound_nats", "kl_nats", "reconstruction_nats", "test_bits_per_dim")
    data = sorted({str((run.record.get("facts") or {}).get("data", "")) for run in runs})
    return [
        Cell("data", listed(data), "Data"),
        Cell("variant", runs[0].variant, "Model"),
        Cell("param", runs[0].param),
        Cell("lr", runs[0].lr),
        Cell("other_settings", changes(runs[0]), "Other settings"),
        Cell("epochs", runs[0].epochs, "Epochs"),
        Cell("n", len(done), "n"),
        *estimate("test_bound_nats", "Test bound", final(done, "test_bound_nats")),
        Cell("kl_nats_mean", mean(final(done, "kl_nats")), "KL", nats),
        Cell("reconstruction_nats_mean", mean(final(done, "reconstruction_nats")), "Reconstruction", nats),
        unfinished(runs, *needed, facts=("importance_samples", "log_likelihood_nats")),
    ]


def table3(results: Results) -> list[Table]:
    """A row a game and variant of dqn, any number of epochs, over the `counted` runs.

    max_score: by seed, over the epochs that all of them have; the last of these is last_…'s, whose games are the
    sample, as random play's are.
    """
    rows = []
    for game, published in paper.TABLE3.items():
        kinds: dict[tuple[str, float, str], list[Run]] = {}
        for run in results.of("dqn", game).runs:
            kinds.setdefault((run.param, run.lr, changes(run, "epochs")), []).append(run)
        for (param, lr, changed), some in kinds.items():
            of_kind = list(longest(some))
            runs = counted(of_kind)
            epochs = min((run.epoch for run in runs), default=0)
            steps = min((int(run.metrics["agent_steps"].iloc[epochs - 1]) for run in runs), default=0)
            last = [score for run in runs for score in run.scores(epochs)]
            random = random_scores(of_kind)
            theirs = (published["normal"], published["wn"], paper.TABLE3_MNIH[game])
            row = [
                Cell("game", game, "Game", paper.game_name),
                Cell("param", param, "Model"),
                Cell("lr", lr, "Learning rate", form("g")),
                Cell("other_settings", changed, "Other settings"),
                *map(Cell, ("paper_normal", "paper_wn", "paper_mnih"), theirs),
                Cell("", " / ".join(map(str, theirs)), "Paper: normal / wn / Mnih et al."),
                *estimate("max_score", "Ours", [max_score(run, epochs) for run in runs], digits=1),
                Cell("n", len(runs), "n"),
                Cell("epochs", epochs, "Epochs"),
                Cell("agent_steps", steps, "Agent steps", lambda steps: f"{steps:,}".replace(",", " ")),
                Cell("", steps, "% of the paper's", of_agent_steps),
                *_games("last", "Last epoch", last),
                *_games("random", "Random play", random),
                Cell("last_above_random", stats.above(last, random), "Above it (s.e.)", _errors),
                unfinished(of_kind, "test_score", epochs=epochs, games=(0, epochs)),
            ]
            rows.append(row)
    table = Table(rows)
    begun = [row["agent_steps"] for row in table.values if row["n"]] or [0]
    share = " to ".join(dict.fromkeys(map(of_agent_steps, (min(begun), max(begun)))))
    note = (
        f"These runs have {share} % of the agent steps of the paper's, which are {paper.AGENT_STEPS / 1e6:g} million. "
        "Ours: the mean score of an epoch's full test games, its maximum over the epochs, mean over n seeds (the "
        "finished ones or, where there is none, those on the way), over the epochs that all of them have. A maximum "
        "over epochs of noisy means is biased upwards, the more so the more epochs and the fewer test games there are. "
        "Last epoch and random play: mean over all games of these seeds ± its standard error; above it: the difference "
        "in standard errors of the difference."
    )
    return [replace(table, notes=(note + incomparable(results, "scores", "the paper's"),))]


def _games(name: str, heading: str, scores: list[float]) -> list[Cell]:
    """The mean score of games, its standard error and their number: `1.5 ± 0.2 (30 games)`."""
    error = stats.standard_error(scores)
    more = f" ± {score(error) if len(scores) > 1 else '–'} ({count(len(scores), 'game')})"
    return [
        Cell(f"{name}_score_mean", mean(scores), heading, form(".1f", more=more)),
        Cell(f"{name}_score_error", error),
        Cell(f"{name}_games", len(scores)),
    ]


def _errors(value: float) -> str:
    """A number of standard errors, which may be infinite; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{value:.1f}".replace("-", "−")


def interquartile_means(results: Results) -> list[Table]:
    """A row a parameterization of dqn at the scale's settings, if enough seeds of two games count."""
    note = (
        "Interquartile mean, over games × seeds, of (maximum test score − random play) / (Mnih et al. − random play), "
        "at the scale's settings but any number of epochs and at table 3's learning rates; 95 % interval by bootstrap "
        "over the seeds within each game."
    )
    rows = []
    for param in PARAMS:
        scores: dict[str, list[float]] = {}
        epochs = []
        for game, mnih in paper.TABLE3_MNIH.items():
            runs = counted(run for run in results.of("dqn", game).figure4 if run.param == param)
            chance = mean(random_scores(runs))
            if len(runs) >= stats.LOOKS[0] and chance is not None:
                epochs.append(min(run.epoch for run in runs))
                scores[game] = [(max_score(run, epochs[-1]) - chance) / (mnih - chance or math.nan) for run in runs]
        if len(scores) > 1:
            middle, (low, high) = stats.interquartile_mean(list(scores.values()))
            row = [
                Cell("param", param, "Model"),
                Cell("interquartile_mean", middle, "Interquartile mean", THOUSANDTHS),
                *limits("", low, high, 3),
                Cell("games", ", ".join(scores), "Games", _game_names),
                Cell("n", sum(map(len, scores.values())), "n"),
                Cell("epochs", min(epochs), "Epochs"),
            ]
            rows.append(row)
    return [Table(rows, (note,))]


def _game_names(games: str) -> str:
    return ", ".join(map(paper.game_name, games.split(", ")))


def step_time(results: Results) -> list[Table]:
    """A row an experiment, device and ratio of step times: median and 95 % interval over paired rounds."""
    note = (
        "Ratios of step times, paired within rounds; cvae: of MNIST. The paper, of cifar: bn about "
        f"{100 * (paper.BN_STEP_TIME - 1):.0f} % slower than normal, wn not noticeably."
    )
    rows = [
        [
            Cell("experiment", experiment, "Experiment"),
            Cell("device", bench["device_name"], "Device"),
            Cell("ratio", name, "Ratio"),
            Cell("median", ratio["median"], "Median", THOUSANDTHS),
            *limits("", ratio["low"], ratio["high"], 3),
            Cell("n", ratio["n"], "n"),
        ]
        for experiment in SETTINGS
        for bench in results.bench.values()
        for name, ratio in step_ratios(bench, experiment).items()
    ]
    return [Table(rows, (note,))]


def floors(results: Results) -> list[Table]:
    """A row an experiment, device and contender: its step's floor, distance from it, shares of the ceilings."""
    note = (
        "A training step's floor is the FLOPs of its matrix products and convolutions at the speed that one large "
        "matrix product reached in the same rounds and precision; the distance, how many times its floor the median "
        "step takes. Beside it, the share of the speed of a large copy at which the step's operations read and write, "
        "each by itself: near 100 %, memory is what limits it. dqn: an update alone."
    )
    rows = [
        [
            Cell("experiment", experiment, "Experiment"),
            Cell("device", bench["device_name"], "Device"),
            Cell("contender", name, "Contender"),
            Cell("seconds", work["floor_seconds"] * work["distance"], "Step (ms)", form(".4g", 1e3)),
            Cell("flops", work["flops"], "GFLOP", form(".4g", 1e-9)),
            Cell("bytes", work["bytes"], "GB", form(".3g", 1e-9)),
            Cell("floor_seconds", work["floor_seconds"], "Floor (ms)", form(".4g", 1e3)),
            Cell("distance", work["distance"], "Distance", form(".2f")),
            Cell("flops_share", work["flops_share"], "% of FLOP/s", form(".1f", 100)),
            Cell("bytes_share", work["bytes_share"], "% of bytes/s", form(".1f", 100)),
            Cell("memory_bytes", memory[whose(name)], "Largest memory (GB)", form(".2f", 1e-9)),
        ]
        for experiment in SETTINGS
        for bench in results.bench.values()
        for memory in [bench.get(experiment, {}).get("memory")]
        for name, work in step_works(bench, experiment).items()
    ]
    return [Table(rows, (note,))]


def settings(results: Results) -> list[Table]:
    """A table an experiment (and data set or game): a row a setting, the paper's value and those of the runs."""
    tables = []
    for part, of_part in results.parts.items():
        first, used = of_part.runs[0], [run.settings for run in of_part.runs]
        entries = {entry.name: entry for entry in dataclasses.fields(SETTINGS[first.experiment])}
        defaults = scale_defaults(first.experiment, "paper", first.dataset)
        if first.experiment in NORMAL_INIT:
            defaults["init"] = NORMAL_INIT[first.experiment]
        rows = []
        for name in dict.fromkeys([*entries, *(name for settings in used for name in settings)]):
            values = dict.fromkeys(_value(settings[name]) for settings in used if name in settings)
            told = (
                entries[name].metadata if name in entries else {"help": "not a setting of this version", "source": ""}
            )
            row = [
                Cell("experiment", part),
                Cell("setting", name, "Setting"),
                Cell("default", _value(defaults.get(name, "")), "Paper's scale"),
                Cell("runs", listed(values, ", "), "These runs"),
                Cell("help", told["help"], "Meaning"),
                Cell("source", told["source"], "Source"),
            ]
            rows.append(row)
        tables.append(Table(rows, title=part))
    return tables


def _value(value: Any) -> str:
    """A setting's value as config.json has it."""
    return value if isinstance(value, str) else json.dumps(value)


def runs(results: Results) -> list[Table]:
    """A row a run: how it ended, with which of its experiment's final numbers, where, on which code."""
    rows = []
    finals = ("train_error", "test_error", "test_bound_nats", "test_bits_per_dim", "test_score")
    shown = [name for name in finals if any(name in run.metrics for run in results.runs)]
    for run in results.runs:
        commit = run.commit[:7]
        row = [
            Cell("experiment", run.experiment, "Experiment"),
            Cell("variant", run.variant, "Variant"),
            Cell("seed", run.seed, "Seed"),
            Cell("status", run.status, "Status", lambda status: "incomplete" if status == "running" else status),
            Cell("epoch", run.epoch),
            Cell("epochs", run.epochs),
            Cell("", f"{run.epoch} of {run.epochs}", "Epoch"),
            *(Cell(name, run.final(name) if name in run.metrics else math.nan) for name in shown),
            Cell("", _final(run) if run.epoch else "–", "Last epoch"),
            Cell("seconds", run.record.get("seconds"), "Seconds", "{:.0f}".format),
            Cell("peak_memory_bytes", run.record.get("peak_memory_bytes")),
            Cell("device", run.device, "Device"),
            Cell("git", f"{commit}, dirty" if run.dirty else commit, "Commit"),
            Cell("torch", run.torch, "torch"),
            Cell("hash", run.config["hash"], "Settings' hash"),
            Cell("resumed", len(run.record.get("resumed") or []), "Resumed"),
            Cell("message", str(run.record.get("message") or ""), "Message"),
        ]
        rows.append(row)
    return [Table(rows, sortable=True)]


def _final(run: Run) -> str:
    """A run's final numbers in words, those that its experiment has."""
    if run.experiment == "cifar":
        return f"training {PERCENT(run.final('train_error'))} %, test {PERCENT(run.final('test_error'))} %"
    if run.experiment == "dqn":
        return f"test score {score(run.final('test_score'))}"
    bits = final([run], "test_bits_per_dim")
    in_bits = f", {THOUSANDTHS(bits[0])} bits per dim." if bits and math.isfinite(bits[0]) else ""
    return f"test bound {nats(run.final('test_bound_nats'))} nats{in_bits}"


# By heading: the figures and the tables.
SECTIONS: dict[str, tuple[Sequence[str], Sequence[Callable[[Results], list[Table]]]]] = {
    "Table 2: test error on CIFAR-10 (%)": ([], [table2]),
    "Figure 1: error by epoch": (["figure1", "test_error"], []),
    "Learning rates": (["learning_rates"], []),
    "Growth of ‖v‖": (["norm_growth"], []),
    "Normalization noise": (["noise_kurtosis"], []),
    "The data-dependent init": (["init"], []),
    "Exponential g and bounded ‖v‖": (["variants"], []),
    "Every variant of the CIFAR-10 classifier": ([], [variants]),
    "Figure 2: convolutional VAEs": (["figure2", "bound_raw"], [bounds]),
    "Figure 3: DRAW": (["figure3", "kl_steps"], [draw_bounds]),
    "Table 3: maximum test score": ([], [table3, interquartile_means]),
    "Figure 4: DQN": (["figure4", "mean_q"], []),
    "Step time": (["step_time"], [step_time]),
    "Distance from the floor": ([], [floors]),
    "Settings": ([], [settings]),
    "Runs": ([], [runs]),
}
TABLES = {make.__name__: make for _, makes in SECTIONS.values() for make in makes}

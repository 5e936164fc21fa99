"""Builds the content of the report: its tables, the claims with their findings, and the sections.

In tables/*.csv, errors are fractions and bounds are in nats per image. Text from a run's files occurs only in tables'
rows, `Judged`, `Report.problems` and `Report.left_out`. The layouts escape it. All other text is the program's own, and
its backticks mark `code`.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wnrepro import paper
from wnrepro.records import StepTimes, contender
from wnrepro.report import declared, stats
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.beyond import comparisons
from wnrepro.report.claims.claim import COMMON, SCALE, VERDICTS, Claim, Finding
from wnrepro.report.claims.dqn import max_score
from wnrepro.report.figures import PUBLISHED
from wnrepro.report.missing import missing
from wnrepro.results import Results, Run, counted, longest, problems, random_scores, scale_defaults
from wnrepro.settings import PARAMS, PRECISIONS, SETTINGS, scale_settings
from wnrepro.text import NOT_FINITE, count, interval, listed, plain, score

Row = dict[str, Any]  # by column; a row that only the page shows has its texts by heading in "@texts"
LAST = {"Not finished, or not finite": 1, "Data": 2}  # columns that come last
SAME = ("game", "variant", "param", "lr", "other_settings")  # columns that are equal in rows of the same kind


class Table(NamedTuple):
    """A table: the texts of the page, and the rows of the CSV.

    about: the experiment and the parameterization of each row, if it has one.
    """

    headings: list[str]
    texts: list[list[str]]
    values: list[Row]
    note: str
    title: str
    about: list[dict[str, str]]
    folded: bool


def table(name: str, rows: Iterable[Row], note: str = "", more: str = "") -> Table:
    """Build the table that report.toml declares under this name. note: replaces its text. more: extends its title."""
    about, rows = declared.TABLES[name], list(rows)
    columns = sorted(named(name), key=lambda one: LAST.get(one[1], 0))
    return Table(
        headings=[heading for _, heading, *_ in columns],
        texts=[[cell_text(row, *column) for column in columns] for row in rows],
        values=[_values(row, about) for row in rows if "@texts" not in row],
        note=note or about.text,
        title=f"{about.title}: {more}" if more else about.title,
        about=[{key: str(row[key]) for key in ("experiment", "param") if key in row} for row in rows],
        folded=about.folded,
    )


def _values(row: Row, about: declared.About) -> Row:
    found: Row = {}
    for name, *_ in about.columns:
        found |= row[name] if name[0] == "*" else {} if name[0] == "@" else {name: row[name]}
    return found


def cell_text(row: Row, name: str, heading: str, form: str = "") -> str:
    """Format the cell of a row in a column."""
    if "@texts" in row:
        return str(row["@texts"].get(heading, ""))
    value, (factor, _, spec) = row[name], form.rpartition("*")
    if value is None:
        return "–"
    if form == "name":
        return paper.game_name(value)
    if form == "thousands":
        return f"{value:,}".replace(",", " ")
    if form and name.endswith("low"):
        return interval(value, row[f"{name[:-3]}high"], int(spec[1]), float(factor or 1)) or "–"
    return plain(float(factor or 1) * value, spec) if form else str(value)


class Judged(NamedTuple):
    """A claim with its finding. details: by name, possibly empty. figure: its name or "". parts: the estimates."""

    claim: Claim
    finding: Finding
    details: dict[str, str]
    figure: str
    parts: list[list[str]]
    params: list[str]  # that the claim mentions
    command: str


class Section(NamedTuple):
    """A section of the report. experiment: "" if it covers several."""

    title: str
    experiment: str
    about: list[str]
    figures: list[str]
    claims: list[Judged]
    tables: list[Table]


class Report(NamedTuple):
    """Everything that the layouts show."""

    results: Results
    warnings: list[str]
    problems: list[str]  # inconsistent files
    left_out: list[str]  # what cannot be read
    runs: str
    basis: str  # of the verdicts
    claims: dict[str, tuple[dict[str, int], list[Judged]]]  # by heading: number of claims by verdict; claims
    figures: dict[str, Drawn]
    tables: dict[str, list[Table]]
    sections: list[Section]
    place: str = "."  # of the runs, from the page

    @property
    def rows(self) -> dict[str, int]:
        """The row of each run in the table of runs."""
        return {run.name: i for i, run in enumerate(self.results.runs, start=1)}

    @property
    def filters(self) -> list[tuple[str, str, dict[str, str]]]:
        """The filters of the page: name, label and values."""
        verdicts = {verdict: verdict for counts, _ in self.claims.values() for verdict in counts}
        experiments = {section.experiment: section.title for section in self.sections if section.experiment}
        by_param = ("param", "Parameterization", self.results.labels)
        return [("verdict", "Verdict", verdicts), ("experiment", "Experiment", experiments), by_param]


def report(
    results: Results, found: Mapping[str, Finding], drawn: Mapping[str, Drawn], commands: Mapping[str, str]
) -> Report:
    """Build the report with the figures of `draw`. commands: by claim, the command that computes its runs."""
    built = build(results, found)
    judged = [_judged(claim, found[claim.id], results.scale, drawn, commands) for claim in CLAIMS]
    claims = {}
    for noun, check in (("implementation check", True), ("empirical claim", False)):
        some = [one for one in judged if one.claim.check == check]
        verdicts = [one.finding.verdict for one in some]
        claims[count(len(some), noun)] = ({one: verdicts.count(one) for one in VERDICTS if one in verdicts}, some)
    sections = []
    for about in declared.sections():
        own = [one for one in judged if section_of(one.claim) == about.title]
        figures = [name for name in about.figures if name in drawn]
        tables = [table for name in about.tables for table in built[name]]
        texts = [about.text.format(paper=paper), *_summary(results, about.experiment)]
        if own or figures or tables:
            sections.append(Section(about.title, about.experiment, texts, figures, own, tables))
    other = "" if results.scale == SCALE else ", not the paper's,"
    done, diverged = sum(run.done for run in results.runs), sum(run.diverged for run in results.runs)
    parts = results.papers.parts or results.parts
    names = {one: [name for name, part in parts.items() if part.precision == one] for one in PRECISIONS}
    used = {one: f"{one} ({listed(some)})" for one, some in names.items() if some}
    precisions = " and ".join(used if len(used) == 1 else used.values())
    return Report(
        results,
        warnings=[
            *declared.CONTENT["warnings"].get(results.scale, ()),
            *results.notes,
        ],
        problems=problems(results),
        left_out=results.left_out,
        runs=f"{count(len(results.runs), 'run')}: {done} done, {diverged} diverged, "
        f"{len(results.runs) - done - diverged} incomplete.",
        basis=f"These runs have scale `{results.scale}`{other} and precision "
        f'{precisions}. {COMMON} "Rule after the fact" marks a rule that was fixed after a run that it judges.',
        claims=claims,
        figures=dict(drawn),
        tables=built,
        sections=sections,
    )


def _judged(
    claim: Claim, finding: Finding, scale: str, drawn: Mapping[str, Drawn], commands: Mapping[str, str]
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
        parts.append([e.name or claim.id, unit.number(e.value) if e.n >= claim.fewest else "–", ends, str(e.n), p])
    said = f"{claim.claim} {claim.rule} {' '.join(e.name for e in finding.estimates)}".replace("ean-only", "wn+mobn")
    params = [param for param in PARAMS if re.search(rf"(?<![\w+]){re.escape(param)}(?![\w+])", said)]
    figure = claim.figure if claim.figure in drawn else ""
    return Judged(claim, finding, details, figure, parts, params or [*PARAMS], commands.get(claim.id, ""))


def section_of(claim: Claim) -> str:
    """Return the title of a claim's section, by its experiment, else by its figure."""
    module = claim.collect.__module__.rpartition(".")[2]
    place = module if module in SETTINGS and claim.figure != "step_time" else claim.figure or "init"
    return next(one.title for one in declared.sections() if place in (one.experiment, *one.figures))


def _summary(results: Results, experiment: str) -> list[str]:
    """Count the runs of an experiment, and list the settings in which the scale differs from the paper's."""
    parts = {name: part for name, part in results.parts.items() if part.runs[0].experiment == experiment}
    counts = [
        f"{count(len(part.runs), 'run')} of {name}, {sum(run.done for run in part.runs)} finished"
        for name, part in parts.items()
    ]
    return [" ".join([f"Here: {'; '.join(counts)}.", *differences(results, experiment, 4)])] if counts else []


def differences(results: Results, experiment: str, most: int) -> list[str]:
    """List by data set or game the settings in which the scale differs from the paper's: `most` of them."""
    found: dict[str, list[str]] = {}
    for name, part in results.parts.items():
        if part.runs[0].experiment == experiment:
            ours, papers = part.defaults, scale_defaults(experiment, "paper", part.runs[0].dataset)
            changed = [key for key in ours if ours[key] != papers[key]]
            said = [f"{key.replace('_', ' ')} {ours[key]} (paper: {papers[key]})" for key in changed]
            rest = [f"and {count(len(said) - most, 'other setting')}"] * (len(said) > most)
            found.setdefault(", ".join([*said[:most], *rest]), []).append(name)
    scale, several = f"At scale `{results.scale}`", len(found) > 1
    return [f"{scale}{f', {listed(of)}' * several}: {words}." for words, of in found.items() if words]


@stats.quiet
def build(results: Results, found: Mapping[str, Finding]) -> dict[str, list[Table]]:
    """Build the tables by the name of their CSV. The settings have one per experiment and data set or game."""
    built = {"claims": [table("claims", claims(found))]}
    said = scale_defaults("cvae", results.scale, "mnist")
    for name in (name for section in declared.sections() for name in section.tables):
        make: Callable[[Results], Iterator[Row]] = MAKERS.get(name) or functools.partial(final_numbers, name)
        kind = name if name in MAKERS else "other"
        rows, note = list(make(results)), declared.TABLES[kind].text.format(**said)
        if declared.TABLES[kind].beside:
            rows = list(_beside(kind, rows, make(results.published) if results.published else ()))
            note += f" At scale `{results.scale}` our numbers cannot be compared with the others." * (
                results.scale != "paper"
            )
        parts = itertools.groupby(rows, key=lambda row: row["experiment"] if make is settings else "")
        built[name] = [table(kind, some, note, part) for part, some in parts]
    return built


def _beside(name: str, ours: Iterable[Row], published: Iterable[Row]) -> Iterator[Row]:
    """Yield our rows, each followed by the published runs' row of the same kind, which only the page shows."""
    theirs = [row for row in published if row.get("n")]
    for row in ours:
        yield row
        for other in theirs:
            if all(row.get(key) == other.get(key) for key in SAME):
                texts = {heading: cell_text(other, of, heading, *form) for of, heading, *form in named(name)}
                yield {"param": other["param"], "@texts": texts | {"Model": f"{texts['Model']}, {PUBLISHED}"}}


def named(name: str) -> list[list[str]]:
    """Return the columns of a table that the page shows."""
    return [one for one in declared.TABLES[name].columns if len(one) > 1]


def claims(found: Mapping[str, Finding]) -> Iterator[Row]:
    """Yield a row per claim for the CSV. p: two-sided, of being reproduced, before Holm's correction."""
    for claim in CLAIMS:
        finding = found[claim.id]
        row = vars(claim) | vars(finding) | {"warnings": " ".join(finding.warnings), "rule_hash": claim.hash}
        yield row | {"p": finding.p_holds if finding.estimates else None, "rule_version": claim.fixed.version}


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None without values."""
    return float(np.mean(values)) if len(values) else None


def final(runs: Iterable[Run], column: str) -> list[float]:
    """Return the last epoch's value of the runs that have this column."""
    return [run.final(column) for run in runs if column in run.metrics]


def last_numbers(run: Run) -> dict[str, float]:
    """Return the final numbers of a run by column."""
    return {name: run.final(name) for name in declared.finals(run)}


def numbers_text(numbers: Mapping[str, float]) -> str:
    """Format final numbers, or a dash if there are none."""
    return ", ".join(declared.column(name).format_final(value) for name, value in numbers.items()) or "–"


def changes(run: Run, *left_out: str) -> str:
    """List a run's settings that differ from the scale's."""
    return listed((f"{name} = {value}" for name, value in run.changed.items() if name not in left_out))


def grouped(runs: Iterable[Run], kind: Callable[[Run], Any] = lambda run: run.variant) -> Iterator[list[list[Run]]]:
    """Yield the runs of each kind, and the finished ones among them."""
    kinds: dict[Any, list[Run]] = {}
    for run in runs:
        kinds.setdefault(kind(run), []).append(run)
    yield from ([some, [run for run in some if run.done]] for some in kinds.values())


def estimate(name: str, values: list[float]) -> Row:
    """Return the columns of a mean over seeds and its interval."""
    e = stats.t_test(name, values)
    return {f"{name}mean": mean(values), f"{name}low": e.low, f"{name}high": e.high}


def variant(runs: list[Run], done: list[Run]) -> Row:
    """Return the columns that all tables of variants share."""
    run = runs[0]
    about = {"variant": run.variant, "param": run.param, "lr": run.lr, "other_settings": changes(run)}
    return about | {"epochs": run.epochs, "n": len(done), "unfinished": unfinished(runs)}


def unfinished(runs: Iterable[Run]) -> str:
    """List the runs that are left out of means, with their state or their numbers that are not finite."""
    said = []
    for run in runs:
        numbers = [*last_numbers(run), "kl_nats", "reconstruction_nats"]
        used: Any = run.metrics.filter(numbers).to_dict("list")
        used |= {"log_likelihood_nats": run.facts.get("log_likelihood_nats", 0.0), "a game's score": run.games["score"]}
        lost = ", ".join(name for name, values in used.items() if not np.isfinite(values).all())
        if lost or not run.done:
            said.append(f"seed {run.seed}: " + (f"{lost} {NOT_FINITE}" if run.done else run.state))
    return listed(said, "; ")


def table2(results: Results) -> Iterator[Row]:
    """Yield the classifier's test errors and the paper's."""
    cifar = results.of("cifar")
    own = {run.param: run.own_lr for run in cifar.runs}  # None for the paper's
    for param in sorted(paper.TABLE2.keys() | own, key=[*paper.TABLE2, *results.labels].index) if own else ():
        runs, seeds = [run for run in cifar.figure1 if run.param == param], []
        for run in runs:
            error = plain(100 * run.final("test_error")) if run.epoch else "–"
            seeds.append(f"seed {run.seed}: {error}" + f" ({run.state})" * (not run.done))
        done, published = [run for run in runs if run.done], paper.TABLE2.get(param)
        yield estimate("test_error_", final(done, "test_error")) | {
            "model": paper.TABLE2_NAMES.get(param, results.labels[param]),
            "param": param,
            "n": len(done),
            "paper_test_error": published and round(published / 100, 6),
            "lr": own.get(param) or scale_settings("cifar", "paper", param).lr,
            "seeds": listed(seeds, "; ") or "not run",
        }
    for model, earlier in paper.TABLE2_EARLIER.items() if cifar.runs else ():
        yield {"@texts": {"Model": model, "Paper": plain(earlier)}}


def variants(results: Results) -> Iterator[Row]:
    """Yield the errors of every variant of the classifier."""
    for runs, done in grouped(results.of("cifar").runs):
        errors = estimate("test_error_", final(done, "test_error"))
        yield variant(runs, done) | errors | {"train_error_mean": mean(final(done, "train_error"))}


def bounds(results: Results) -> Iterator[Row]:
    """Yield the final bounds of the VAEs."""
    for dataset in paper.FIGURE2:
        for runs, done in grouped(results.of("cvae", dataset).runs):
            facts = [run.facts for run in done if "log_likelihood_nats" in run.facts]
            samples = max((one.get("importance_samples", 0) for one in facts), default=0)
            log_p = [one["log_likelihood_nats"] for one in facts if samples == one.get("importance_samples")]
            yield _final_bound(runs, done) | {
                "dataset": dataset,
                "test_bits_per_dim_mean": mean(final(done, "test_bits_per_dim")),
                "log_likelihood_nats_mean": mean(log_p),
                "@log_likelihood": f"{plain(float(np.mean(log_p)))} (K = {samples:.0f}, n = {len(log_p)})"
                if log_p
                else "–",
                "importance_samples": int(samples),
                "log_likelihood_n": len(log_p),
            }
    for model, (bound, of) in paper.IAF_MNIST.items() if "cvae mnist" in results.parts else ():
        texts = {"Data set": "mnist", "Model": f"IAF paper: {model}", "Test bound": f"{plain(bound)} ± {of:.2f}"}
        yield {"@texts": texts}
    for model, bits in paper.IAF_CIFAR10.items() if "cvae cifar10" in results.parts else ():
        yield {"@texts": {"Data set": "cifar10", "Model": f"IAF paper: {model}", "Bits per dim.": plain(bits)}}


def draw_bounds(results: Results) -> Iterator[Row]:
    """Yield the final bounds of DRAW."""
    draw = results.of("draw")
    yield from itertools.starmap(_final_bound, grouped(draw.runs))
    for model, (epochs, bound) in paper.DRAW_MNIST.items() if draw.runs else ():
        yield {"@texts": {"Model": model, "Epochs": epochs, "Test bound": plain(bound, "g")}}


def _final_bound(runs: list[Run], done: list[Run]) -> Row:
    """Return a variant's final bound and its terms, over the finished seeds."""
    means = {f"{name}_mean": mean(final(done, name)) for name in ("kl_nats", "reconstruction_nats")}
    data = {"data": listed(sorted({str(run.data) for run in runs}), "; ")}
    return variant(runs, done) | estimate("test_bound_nats_", final(done, "test_bound_nats")) | means | data


def table3(results: Results) -> Iterator[Row]:
    """Yield the maximum test scores by game, with the paper's scores and random play's."""
    for game, published in paper.TABLE3.items():
        for some, _ in grouped(results.of("dqn", game).runs, lambda run: (run.param, run.lr, changes(run, "epochs"))):
            of_kind = longest(some)
            runs = counted(of_kind)
            epochs = min((run.epoch for run in runs), default=0)
            steps = min((int(run.metrics["agent_steps"].iloc[epochs - 1]) for run in runs if epochs), default=0)
            last, random = [score for run in runs for score in run.scores(epochs)], random_scores(of_kind)
            theirs = published | {"mnih": paper.TABLE3_MNIH[game]}
            row = estimate("max_score_", [max_score(run, epochs) for run in runs])
            row |= {f"paper_{name}": score for name, score in theirs.items()}
            row |= _games("last", last) | _games("random", random)
            yield row | {
                "game": game,
                "param": some[0].param,
                "n": len(runs),
                "@paper": " / ".join(map(str, theirs.values())),
                "lr": some[0].lr,
                "other_settings": changes(some[0], "epochs"),
                "epochs": epochs,
                "agent_steps": steps,
                "@share": steps * (100 / paper.AGENT_STEPS),
                "last_above_random": stats.welch_t(last, random) if min(len(last), len(random)) > 1 else None,
                "unfinished": unfinished(of_kind),
            }


def _games(name: str, scores: list[float]) -> Row:
    """Return the columns of a mean score over games with its text, such as `1.5 ± 0.2 (30 games)`."""
    middle, error = mean(scores), stats.standard_error(scores)
    more = f" ± {score(error) if len(scores) > 1 else '–'} ({count(len(scores), 'game')})"
    row = {f"{name}_score_mean": middle, f"{name}_score_error": error, f"{name}_games": len(scores)}
    return row | {f"@{name}": "–" if middle is None else score(middle) + more}


def interquartile_means(results: Results) -> Iterator[Row]:
    """Yield the interquartile means over games and seeds."""
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
            row = {"param": param, "interquartile_mean": middle, "low": low, "high": high, "games": ", ".join(scores)}
            yield row | {"n": sum(map(len, scores.values())), "epochs": min(epochs)}


def _benches(results: Results) -> Iterator[tuple[Row, StepTimes]]:
    """Yield the benchmarks of each experiment with their experiment and device."""
    for experiment, bench in itertools.product(SETTINGS, results.bench.values()):
        if experiment in bench:
            yield {"experiment": experiment, "device": bench[experiment].device_name}, bench[experiment]


def step_time(results: Results) -> Iterator[Row]:
    """Yield the ratios of step times."""
    for about, bench in _benches(results):
        for name, ratio in bench.ratios.items():
            yield ratio.model_dump() | about | {"ratio": name}


def floors(results: Results) -> Iterator[Row]:
    """Yield the distance of step times from their lower bound."""
    for about, bench in _benches(results):
        for name, work in bench.work.items():
            more = {"seconds": work.floor_seconds * work.distance, "memory_bytes": bench.memory[contender(name)]}
            yield work.model_dump() | about | {"contender": name} | more


def beyond(results: Results) -> Iterator[Row]:
    """Yield comparisons of other parameterizations with wn and normal."""
    for ours, theirs, rule, finding in comparisons(results):
        e, unit = finding.estimates[0], rule.unit
        margins = sorted({margin for one in finding.estimates if one.name == e.name for margin in one.margin})
        value, low, high = (unit.factor * unit.shown(one) for one in (e.value, e.low, e.high))
        yield {
            "parameterization": results.labels[ours],
            "param": ours,
            "what": f"{rule.claim} {e.name}".strip(),
            "against": theirs,
            "estimate": value,
            "@estimate": unit.number(e.value) if e.n else "–",
            "unit": unit.suffix.strip(),
            "low": low,
            "high": high,
            "@interval": interval(low, high, unit.digits) or "–",
            "n": e.n,
            "fewest_seeds": rule.seeds,
            "margins": ", ".join(unit.number(margin) if margin else "0" for margin in margins),
            "result": finding.verdict,
            "remarks": finding.measured,
        }


def settings(results: Results) -> Iterator[Row]:
    """Yield a row per setting of each part, with the values of the paper and of the runs."""
    for part, of_part in results.parts.items():
        experiment, used = of_part.runs[0].experiment, [run.settings for run in of_part.runs]
        metadata = {entry.name: entry.metadata for entry in dataclasses.fields(SETTINGS[experiment])}
        defaults = scale_defaults(experiment, "paper", of_part.runs[0].dataset)
        defaults |= {"init": SETTINGS[experiment].init_default} if "init" in defaults else {}
        for name in dict.fromkeys(itertools.chain(metadata, *used)):
            values = [defaults.get(name, ""), *(settings[name] for settings in used if name in settings)]
            default, *texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
            entry = metadata.get(name, {"help": "not a setting of this version", "source": ""})
            about = {"experiment": part, "setting": name, "help": entry["help"], "source": entry["source"]}
            yield about | {"default": default, "runs": listed(texts)}


def runs(results: Results) -> Iterator[Row]:
    """Yield a row per run: its end, final numbers, device and code."""
    shown = dict.fromkeys(name for run in results.runs for name in last_numbers(run))
    for run in results.runs:
        last = last_numbers(run)
        yield {
            "@run": run.name.replace("/", " "),
            **{name: getattr(run, name) for name in ("experiment", "variant", "param", "seed", "status", "epoch")},
            **{name: getattr(run, name) for name in ("epochs", "device", "torch")},
            "@status": "incomplete" if run.status == "running" else run.status,
            "@epoch": f"{run.epoch} of {run.epochs}",
            "*finals": shown | last,
            "@last": numbers_text(last if run.epoch else {}),
            "seconds": run.record.seconds,
            "peak_memory_bytes": run.record.peak_memory_bytes,
            "git": run.commit[:7] + ", dirty" * run.dirty,
            "hash": run.config.hash,
            "resumed": len(run.record.resumed),
            "message": run.record.message,
        }


def final_numbers(experiment: str, results: Results) -> Iterator[Row]:
    """Yield the main metric by variant, for an experiment without tables in report.toml."""
    for runs, done in grouped(run for run in results.runs if run.experiment == experiment):
        name = declared.model_of(runs[0]).result
        yield variant(runs, done) | {"experiment": experiment, "metric": name} | estimate("", final(done, name))


MAKERS = {
    make.__name__: make
    for make in (table2, variants, bounds, draw_bounds, table3, interquartile_means, step_time, floors, missing, beyond)
} | {"settings": settings, "runs": runs}

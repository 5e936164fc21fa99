"""The runs of a scale, results/<scale>/<experiment>/<variant>/seed-<n>/, and the benchmarks of results/bench/, as data.

A run still in progress, or one that was killed, is read as far as it got. Errors name the file, or the folder under
another run's name: a copy is no further seed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wnrepro import settings
from wnrepro.errors import UserError
from wnrepro.reading import Benchmark, Provenance, RunConfig, RunRecord, StepTimes, naming, read_json, read_table
from wnrepro.runs.directory import FINISHED, PUBLISHED, read_text, sealed, variant
from wnrepro.settings import NAME, PARAMS, PRECISIONS, SCALE_NAMES, SETTINGS, config_hash, printable

LONGEST_LABEL = 60  # of a parameterization
CHOICES = {"precision": PRECISIONS, "binarization": ("larochelle", "seeded")}  # one is judged: the first with runs
# The settings in which the variants of an experiment differ by design, or that change no number.
FREE = ("param", "lr", "seed", "checkpoint_replay")

# The columns of the tables besides metrics.csv.
LAYERS = ("epoch", "layer", "v_norm_mean", "v_norm_min", "v_norm_max", "g_mean", "g_min", "g_max")
INIT = ("epoch", "layer", "mean_abs_max", "variance_min", "variance_max")
QUARTILES = ("excess_kurtosis_q25", "excess_kurtosis_median", "excess_kurtosis_q75")
NOISE = ("epoch", "layer", *(QUARTILES[place] for place in (1, 0, 2)), "minibatches")
NOISE_LATER = ("kurtosis_mean", "kurtosis_std", "kurtosis_inverse_std", "noise_size")  # earlier files lack them
KL_STEPS = ("epoch", "time_step", "kl_nats")
GAME_SCORES = ("epoch", "game", "score")
TABLES = ("metrics", "layers", "init", "noise", "kl_steps", "games")
OVER_NORMAL = " / normal"  # the end of a ratio's name in a benchmark


class Measured:
    """What was measured somewhere by some code, as its `record` says."""

    record: Provenance
    commit = property(lambda self: self.record.git.commit)
    torch = property(lambda self: self.record.versions.torch)
    created = property(lambda self: self.record.created)
    dirty = property(lambda self: self.record.git.dirty)  # whether its code was not committed
    device = property(lambda self: self.record.device_name)


@dataclass(frozen=True)
class Session(Measured):
    """The ratios of an experiment's step times in one benchmark, and what a claim asks of a `Run`."""

    name: str  # bench/<file name without .json>
    record: StepTimes
    over, data, dataset, seed = True, "", None, None
    ratios = property(lambda self: {name: ratio.model_dump() for name, ratio in self.record.ratios.items()})
    precision = property(lambda self: self.record.precision)


@dataclass(frozen=True)
class Run(Measured):
    """One run directory. metrics has a row per epoch, the other tables one per epoch and layer, time step, …"""

    path: Path
    name: str  # <experiment>/<variant>/seed-<n>
    config: RunConfig
    record: RunRecord
    metrics: pd.DataFrame
    layers: pd.DataFrame
    init: pd.DataFrame
    noise: pd.DataFrame
    kl_steps: pd.DataFrame  # of draw: mean KL on the test images
    games: pd.DataFrame  # of dqn: the score of every test game; of epoch 0: of random play
    sealed: bool  # whether run.json is as it was written
    digest: str  # the hash of the settings in config.json

    experiment = property(lambda self: self.config.experiment)
    param = property(lambda self: self.config.settings.param)
    lr = property(lambda self: self.config.settings.lr)
    seed = property(lambda self: self.config.settings.seed)
    epochs = property(lambda self: self.config.settings.epochs)  # planned
    precision = property(lambda self: self.settings["precision"])
    binarization = property(lambda self: self.settings["binarization"] if "binarization" in self.defaults else None)
    data = property(lambda self: self.record.facts.data)
    status = property(lambda self: self.record.status)
    done = property(lambda self: self.status == "done")
    diverged = property(lambda self: self.status == "diverged")
    over = property(lambda self: self.diverged or (self.done and self.epoch == self.epochs))  # nothing left to train
    epoch = property(lambda self: len(self.metrics))  # logged
    variant = property(lambda self: self.path.parent.name)
    dataset = property(lambda self: _part(self.config))  # or game, where the experiment has a model for each
    dirty = property(lambda self: any(one.git.dirty for one in (self.record, *self.record.resumed)))

    @property
    def own_lr(self) -> float | None:
        """The default learning rate of a parameterization that is not the paper's."""
        return self.config.parameterization.lr if self.config.parameterization else None

    @property
    def label(self) -> str:
        """The parameterization's label; `Results.labels` distinguishes equal ones."""
        if self.param in PARAMS:
            return settings.ABOUT[self.param].label
        label = self.config.parameterization.label if self.config.parameterization else ""
        return printable(" ".join(label.split()), LONGEST_LABEL) or str(self.param)

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The scale's settings of its parameterization."""
        found = scale_defaults(self.experiment, self.config.scale, self.dataset, self.param)
        return found | ({"lr": self.own_lr} if self.own_lr else {})

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All settings; those that its version lacked are at their defaults."""
        return self.defaults | self.config.settings.model_dump()

    @functools.cached_property
    def alike(self) -> str:
        """Equal for runs of the same experiment, settings and seed, whichever settings their versions lacked."""
        values = {name: float(value) if isinstance(value, int) else value for name, value in self.settings.items()}
        return json.dumps([self.experiment, values | {"checkpoint_replay": None}], sort_keys=True)

    @functools.cached_property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the scale's, except `FREE`."""
        fixed = {name: value for name, value in self.settings.items() if name not in FREE}
        return {name: value for name, value in fixed.items() if self.defaults.get(name, self) != value}

    @property
    def decay_from(self) -> int:
        """Epochs at a constant learning rate (of cifar)."""
        return min(self.settings["decay_from"], self.epochs)

    @property
    def state(self) -> str:
        """`done`, or how far it got."""
        so_far = f"epoch {self.epoch} of {self.epochs}"
        return {"done": "done", "running": so_far}.get(self.status, f"{self.status}, {so_far}")

    @property
    def facts(self) -> dict[str, float]:
        """The numbers among run.json's facts."""
        return {name: float(value) for name, value in self.record.facts if isinstance(value, int | float)}

    def final(self, column: str) -> float:
        """The last epoch's value; nan before the first epoch."""
        return float(self.metrics[column].iloc[-1]) if self.epoch else math.nan

    def scores(self, epoch: int) -> list[float]:
        """Of dqn: the scores of an epoch's test games; of epoch 0: of uniformly random play."""
        return self.games.loc[self.games["epoch"] == epoch, "score"].tolist()


@dataclass(frozen=True)
class Results:
    """All runs of a scale, by experiment, parameterization, learning rate, variant and seed, and the step times.

    What it says of settings is meant of the runs of one experiment and data set, or game: see `of` and `parts`.
    """

    folder: Path
    scale: str
    runs: tuple[Run, ...]
    bench: dict[str, dict[str, Any]] = field(default_factory=dict)  # by file name without .json
    asked: str | None = None  # the precision to judge
    published: "Results | None" = None  # the runs that the repository shows at this scale
    labels: dict[str, str] = field(default_factory=dict)  # by parameterization: the paper's, then the others by name

    @functools.cached_property
    def papers(self) -> "Results":
        """Those of the paper's parameterizations alone: what its claims are judged on."""
        return dataclasses.replace(self, runs=tuple(run for run in self.runs if run.param in PARAMS))

    def of(self, experiment: str, dataset: str | None = None) -> "Results":
        """Those of an experiment alone, and of one data set, or game, where it has a model for each."""
        runs = tuple(run for run in self.runs if (run.experiment, run.dataset) == (experiment, dataset))
        shown = self.published and self.published.of(experiment, dataset)
        return dataclasses.replace(self, runs=runs, published=shown)

    @functools.cached_property
    def parts(self) -> "dict[str, Results]":
        """The results of every experiment and data set, or game, that has runs, by name: `cifar`, `cvae mnist`, …"""
        found = {" ".join(filter(None, key)): self.of(*key) for key in settings.models()}
        return {name: part for name, part in found.items() if part.runs}

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The scale's settings."""
        return scale_defaults(self.runs[0].experiment, self.scale, self.runs[0].dataset)

    @functools.cached_property
    def precision(self) -> str:
        """That in which the claims are judged: the one asked for or, without one, the first in a fixed order in which
        two parameterizations have runs (else: one has). The order: what the experiment has on a GPU, where one ran
        there; then the most exact. Parameterizations that are not the paper's count where it has no runs.
        """
        runs = self.papers.runs or self.runs
        params: dict[str, set[str]] = defaultdict(set)
        for run in runs:
            params[run.precision].add(run.param)
        on_gpu = {run.experiment for run in runs if run.record.device.startswith("cuda")}
        order = [*(SETTINGS[experiment].gpu_precision for experiment in on_gpu), *PRECISIONS]
        several = [one for one in order if len(params[one]) > 1]
        return self.asked or next((one for one in (*several, *order) if params[one]), PRECISIONS[0])

    @functools.cached_property
    def binarization(self) -> str | None:
        """That of the runs that are judged: Larochelle's where it has any. Runs of the two are never compared."""
        of = [[run for run in runs if run.precision == self.precision] for runs in (self.papers.runs, self.runs)]
        return _first("binarization", of[0] or of[1])

    @functools.cached_property
    def in_precision(self) -> tuple[Run, ...]:
        """The runs that are judged: those in `precision`, and of `binarization`."""
        judged = (self.precision, self.binarization)
        return tuple(run for run in self.runs if (run.precision, run.binarization) == judged)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each part that has runs in a precision, or of a binarization, which is not judged."""
        found = []
        for (name, part), (setting, choices) in itertools.product(self.parts.items(), CHOICES.items()):
            counts, judged = Counter(getattr(run, setting) for run in part.runs), getattr(part, setting)
            others = [one for one in choices if one in counts and one != judged]
            if judged and others:
                used = " and ".join(f"{one} ({counts[one]})" for one in choices if one in counts)
                hint = f"; --precision {' or '.join(others)} judges the others" if setting == "precision" else ""
                found.append(f"{name} has runs of {setting} {used}; judged: {judged}{hint}")
        return tuple(found)

    @functools.cached_property
    def standard(self) -> tuple[Run, ...]:
        """The runs at the scale's settings but for param, lr and seed, of those that are judged."""
        return self.changing()

    def changing(self, *names: str) -> tuple[Run, ...]:
        """The judged runs that differ from the scale's settings in none but these, param, lr and seed."""
        return tuple(run for run in self.in_precision if not run.changed.keys() - {*CHOICES, *names})

    @functools.cached_property
    def figure1(self) -> tuple[Run, ...]:
        """Of cifar: the standard runs at figure 1's learning rates."""
        return tuple(run for run in self.standard if run.lr == run.defaults["lr"])

    def others(self, name: str) -> dict[Any, tuple[Run, ...]]:
        """By the value of a setting that differs from the scale's: the runs that are as `figure2`'s in all else."""
        runs = [run for run in self.at_rate("epochs", name) if name in run.changed]
        values = sorted({run.settings[name] for run in runs})
        return {value: longest(run for run in runs if run.settings[name] == value) for value in values}

    @property
    def figure2(self) -> tuple[Run, ...]:
        """Of a data set of cvae: the runs at the scale's settings but for param, seed and epochs; `longest`."""
        return longest(self.at_rate("epochs"))

    figure3 = figure4 = figure2  # of draw, and of a game of dqn: likewise, with table 3's learning rates

    def at_rate(self, *names: str) -> list[Run]:
        """Those `changing` these that have the scale's learning rate, or their parameterization's."""
        return [run for run in self.changing(*names) if run.lr == run.defaults["lr"]]


def _first(setting: str, runs: Iterable[Run]) -> str | None:
    used = {getattr(run, setting) for run in runs}
    return next((choice for choice in CHOICES[setting] if choice in used), None)


def longest(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Of the runs of each parameterization, learning rate and seed, the one that got furthest."""
    runs = sorted(runs, key=_order)
    best = {(run.param, run.lr, run.seed): run for run in sorted(runs, key=lambda run: (run.epoch, run.epochs))}
    return tuple(run for run in runs if best[run.param, run.lr, run.seed] is run)


def counted(runs: Iterable[Run]) -> list[Run]:
    """Those that a mean over seeds rests on: the finished ones or, where there is none, those on the way."""
    runs = list(runs)
    return [run for run in runs if run.done] or [run for run in runs if run.epoch and not run.diverged]


def random_scores(runs: Iterable[Run]) -> list[float]:
    """Of a game of dqn: the scores of random play, of one run a seed: its others have played the same games."""
    by_seed = {run.seed: scores for run in runs if (scores := run.scores(0))}
    return [score for scores in by_seed.values() for score in scores]


def scale_defaults(experiment: str, scale: str, dataset: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The settings of an experiment (and data set or game) at a scale, as JSON has them (a tuple is a list).

    param: with the parameterization's defaults.
    """
    cls = SETTINGS[experiment]
    defaults = {entry.name: entry.default for entry in dataclasses.fields(cls)}
    defaults |= cls.scale_changes(scale, dataset, param)
    return json.loads(json.dumps(defaults | ({cls.part: dataset} if cls.part and dataset else {})))


# ------------------------------------------------------------------------------- reading


def scales_with_runs(results: Path) -> list[str]:
    """The scales that have a run directory, largest first. Raises UserError if `results` is no readable folder."""
    return [scale for scale in SCALE_NAMES if _run_folders(results, scale)]


def load(results: Path, scale: str, precision: str | None = None) -> Results:
    """Read everything of one scale. Raises UserError if there is nothing, or a file is malformed.

    precision: the one to judge; see `Results.precision`.
    """
    folders = _run_folders(results, scale)
    if not folders:
        raise UserError(
            f"{results / scale} holds no runs (no <experiment>/<variant>/seed-<n>/config.json): train some "
            f"first, for example `wnrepro cifar --param wn --scale {scale}`, or name the folder with --results."
        )
    runs = sorted((_run(results / scale, folder) for folder in folders), key=_order)
    alike: dict[str, Run] = {}
    for run in runs:
        if (twin := alike.setdefault(run.alike, run)) is not run:
            raise UserError(f"{run.path} has the settings and the seed of {twin.path}: remove one of the two.")
    shown = results / PUBLISHED
    published = load(shown, scale, precision) if shown.is_dir() and _run_folders(shown, scale) else None
    bench = _benchmarks(results)
    labels = _labels([*(published.runs if published else ()), *runs], bench)
    return Results(results, scale, tuple(runs), bench, precision, published, labels)


def read_run(folder: Path) -> Run:
    """The run in this directory. Raises UserError if there is none, or a file is malformed."""
    with contextlib.suppress(OSError, RuntimeError):  # a circular link
        folder = folder.resolve()
    if len(folder.parents) < 3 or not os.path.lexists(folder / "config.json"):
        raise UserError(f"{folder}: holds no run (no config.json); give a directory …/<variant>/seed-<n>")
    return _run(folder.parents[2], folder)


def _labels(runs: Iterable[Run], bench: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The label of the paper's and every other parameterization with runs or step times; shared ones with the name."""
    timed = {name for one in bench.values() for part in one.keys() & SETTINGS for name in one[part]["ratios"]}
    names = (name.removesuffix(OVER_NORMAL) for name in timed if name.endswith(OVER_NORMAL))
    found = {name: name for name in names if NAME.fullmatch(name)} | {run.param: run.label for run in runs}
    found |= {param: settings.ABOUT[param].label for param in PARAMS}
    shared = Counter(found.values())
    return {
        param: f"{found[param]} ({param})" if shared[found[param]] > 1 and param not in PARAMS else found[param]
        for param in sorted(found, key=_papers_first)
    }


def _papers_first(param: str) -> tuple[int, str]:
    return (PARAMS.index(param) if param in PARAMS else len(PARAMS)), param


def _order(run: Run) -> tuple[int, tuple[int, str], float, str, int]:
    model = list(settings.models()).index((run.experiment, run.dataset))
    return model, _papers_first(run.param), run.lr, run.variant, run.seed


def _run_folders(results: Path, scale: str) -> list[Path]:
    try:
        if not results.is_dir():
            raise UserError(f"{results} is no folder: name the one that holds the runs with --results.")
        next(results.iterdir(), None)
        return sorted(config.parent for config in (results / scale).glob("*/*/seed-*/config.json"))
    except OSError as error:
        raise UserError(f"{results} cannot be read ({error.strerror}): check its permissions.") from error


def _run(top: Path, folder: Path) -> Run:
    name, path = folder.relative_to(top).as_posix(), folder / "config.json"
    config, raw_config = read_json(path, RunConfig)
    with naming(path):
        place = _place(config, name)
    if place != f"{top.name}/{name}":
        raise UserError(
            f"{printable(str(path))}: its folder is a copy, or was renamed, for its settings and seed are those of "
            f"{printable(place, 200)}; move it there, or remove it."
        )
    record, raw = RunRecord(status="running", epoch=0), dict[str, Any]()
    if os.path.lexists(folder / "run.json"):
        record, raw = read_json(folder / "run.json", RunRecord)
    cls = SETTINGS[config.experiment]
    columns = tuple(cls.models[_part(config)].metrics)
    steps = config.settings.model_dump().get("time_steps", 0) if "time_steps" in cls.__dataclass_fields__ else 0
    return Run(
        folder,
        name,
        config,
        record,
        read_epochs(folder / "metrics.csv", columns, 1),
        read_epochs(folder / "layers.csv", LAYERS, 0),
        read_layers(folder / "init.csv", INIT),
        read_layers(folder / "noise.csv", NOISE, *NOISE_LATER),
        read_epochs(folder / "kl_steps.csv", KL_STEPS, 1, steps),
        read_table(folder / "games.csv", GAME_SCORES),
        sealed(raw),
        config_hash(**raw_config),
    )


def _part(config: RunConfig) -> Any:
    return config.settings.model_dump().get(SETTINGS[config.experiment].part or "")


def _place(config: RunConfig, name: str) -> str:
    """The folder of a run with these settings: <scale>/<experiment>/<variant>/seed-<n>. Raises ValueError for bad ones.

    Settings that this version lacks are appended if `name` has them: their defaults are not known.
    """
    if config.experiment not in SETTINGS:
        raise ValueError(f"`experiment` is none of {', '.join(SETTINGS)}")
    cls, given = SETTINGS[config.experiment], config.settings.model_dump()
    if (part := given.get(cls.part or "")) not in list(cls.models):
        raise ValueError(f"`{cls.part}` is none of {', '.join(map(str, cls.models))}")
    values = scale_defaults(config.experiment, config.scale, part, config.settings.param)
    further = [f"_{entry}-{value}" for entry, value in given.items() if entry not in values]
    try:
        known = {entry: given[entry] for entry in values.keys() & given}
        changed = settings.settings_from(config.experiment, values | known)
    except UserError as error:
        raise ValueError(str(error)) from error
    entry = config.parameterization
    if entry and not config.settings.param.endswith(f"-{entry.sha256[:8]}"):
        raise ValueError(f"`parameterization` is not that of {config.settings.param}")
    end = "".join(text for text in further if text in name)
    folder = f"{variant(config.experiment, config.scale, changed)}{end}/seed-{config.settings.seed}"
    return f"{config.scale}/{config.experiment}/{folder}"


def read_layers(path: Path, columns: tuple[str, ...], *later: str) -> pd.DataFrame:
    """A table with every layer at most once an epoch and each median between its quartiles."""
    table = read_table(path, columns, *later)
    with naming(path):
        if table.duplicated(["epoch", "layer"]).any():
            raise ValueError("a layer stands twice in an epoch")
        if "minibatches" in columns and (np.diff(table[[*QUARTILES]]) < 0).any():
            raise ValueError("a median lies outside its quartiles")
    return table


def read_epochs(path: Path, columns: tuple[str, ...], first: int, steps: int = 0) -> pd.DataFrame:
    """A table up to its last complete epoch. Each has the layers of the first, or this many time steps, or one row."""
    table = read_table(path, columns)
    key = columns[1] if columns[1] in ("layer", "time_step") else "epoch"
    keys = {epoch: rows.tolist() for epoch, rows in table.groupby("epoch", sort=False)[key]}
    last = first + len(keys) - 1
    every = [*range(1, steps + 1)] or keys.get(first, [])
    with naming(path):
        if list(keys) != list(range(first, last + 1)):
            raise ValueError(f"its epochs are not {first}, {first + 1}, {first + 2}, …")
        for epoch, rows in keys.items():
            expected = [epoch] if key == "epoch" else every[: len(rows)] if epoch == last else every
            if rows != expected or len(set(rows)) < len(rows):
                raise ValueError(f"an epoch has not every {key} once, in the order of the others")
    return table[table["epoch"] != last] if keys and key != "epoch" and len(keys[last]) < len(every) else table


# ------------------------------------------------------------------------------- checking


def check(results: Path, scale: str) -> list[str]:
    """The problems of runs whose files do not fit together, one sentence each. Raises as `load`."""
    return problems(load(results, scale))


def problems(results: Results) -> list[str]:
    """The problems that `check` finds."""
    return [f"{run.name}: {problem}." for run in results.runs for problem in _problems(run)]


def _problems(run: Run) -> Iterator[str]:
    recorded = printable(run.config.hash, 100)
    if recorded != run.digest:
        yield f"config.json's hash is {recorded}, its settings have {run.digest}"
    if not run.sealed:
        yield "run.json is not as it was written"
    if (other := run.record.config_hash or run.config.hash) != run.config.hash:
        yield f"run.json was written for the settings {printable(other, 100)}, config.json holds {recorded}"
    # Runs of earlier versions have the checksum of metrics.csv alone.
    sha256 = {"metrics.csv": run.record.metrics_sha256} | run.record.tables_sha256
    for name in (f"{table}.csv" for table in TABLES if run.status in FINISHED and f"{table}.csv" in sha256):
        with contextlib.suppress(FileNotFoundError):
            if sha256[name] == hashlib.sha256(read_text(run.path / name).encode()).hexdigest():
                continue
        yield f"{name} is not the one that run.json has the sha256 of"
    behind = 1 if run.status == "running" else 0  # killed between the two files
    if abs(run.epoch - run.record.epoch) > behind:
        yield f"metrics.csv has {run.epoch} epochs, run.json {run.record.epoch}"
    if run.done and run.epoch != run.epochs:
        yield f"done, with {run.epoch} of {run.epochs} epochs"
    games = Counter(run.games["epoch"])
    for epoch, episodes in zip(run.metrics["epoch"], run.metrics.get("episodes", ()), strict=False):
        if games[epoch] != episodes and epoch <= run.epoch - behind:
            yield f"games.csv has {games[epoch]} games of epoch {epoch}, metrics.csv {episodes}"


# ------------------------------------------------------------------------------- benchmarks


def _benchmarks(results: Path) -> dict[str, dict[str, Any]]:
    """The files of results/bench that have ratios of an experiment's step times: device_name, and by experiment."""
    found: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for path in sorted((results / "bench").glob("*.json")):
        if not path.name.isprintable():
            raise UserError(f"{printable(str(path))}: no benchmark has such a name; give it another.")
        bench, raw = read_json(path, Benchmark)
        if (other := names.setdefault(json.dumps(raw, sort_keys=True), path.name)) != path.name and bench.experiments:
            raise UserError(f"{path} and {other} are the same session: remove one of them.")
        if bench.experiments:
            found[path.stem] = {"device_name": bench.device_name} | bench.model_dump()["experiments"]
    return found


def step_works(bench: dict[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """What an experiment's training steps need and achieve, by contender; none if that was not measured."""
    return bench[experiment]["work"] if experiment in bench else {}


def sessions(results: Results, experiment: str) -> dict[tuple[str, str], list[Session]]:
    """The sessions of an experiment, oldest first, by device, and version of torch and precision."""
    every = [
        Session(f"bench/{name}", StepTimes(**bench[experiment] | {"device_name": bench["device_name"]}))
        for name, bench in results.bench.items()
        if experiment in bench
    ]
    found = defaultdict(list)
    for one in sorted(every, key=lambda one: one.created):
        found[one.device, f"{one.torch}, {one.precision}"].append(one)
    return dict(found)

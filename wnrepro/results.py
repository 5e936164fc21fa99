"""The runs of a scale, results/<scale>/<experiment>/<variant>/seed-<n>/, and the benchmarks of results/bench/, as data.

A running or killed run is read up to its last complete epoch. Errors name the file. A folder with another run's name is
an error too, since a copy is no further seed.
"""

import contextlib
import dataclasses
import functools
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
from wnrepro.reading import read_table
from wnrepro.records import Benchmark, Provenance, RunConfig, RunRecord, StepTimes, naming, read_model
from wnrepro.runs.directory import FINISHED, PUBLISHED, WEIGHTS, check_place, file_sha256, sealed, variant
from wnrepro.settings import NAME, PARAMS, PRECISIONS, SCALE_NAMES, SETTINGS, config_hash
from wnrepro.text import count, listed, printable

MOST_PROBLEMS = 100  # in a report
LONGEST_LABEL = 60  # characters of a parameterization's label
CHOICES = {"precision": PRECISIONS, "binarization": ("larochelle", "seeded")}  # one is judged: the first with runs
# Settings in which the variants of an experiment differ by design, or that change no number.
FREE = ("param", "lr", "seed", "checkpoint_replay")

# The columns of the tables besides metrics.csv.
LAYERS = ("epoch", "layer", "v_norm_mean", "v_norm_min", "v_norm_max", "g_mean", "g_min", "g_max")
INIT = ("epoch", "layer", "mean_abs_max", "variance_min", "variance_max")
QUARTILES = ("excess_kurtosis_q25", "excess_kurtosis_median", "excess_kurtosis_q75")
NOISE = ("epoch", "layer", *(QUARTILES[place] for place in (1, 0, 2)), "minibatches")
NOISE_LATER = ("kurtosis_mean", "kurtosis_std", "kurtosis_inverse_std", "noise_size")  # earlier files lack them
KL_STEPS = ("epoch", "time_step", "kl_nats")
GAME_SCORES = ("epoch", "game", "score")
TABLES = ("metrics", "layers", "init", "noise", "kl_steps", "games", "steps")
OVER_NORMAL = " / normal"  # end of a ratio's name in a benchmark


class Measured:
    """A measurement, with its device and code in `record`."""

    record: Provenance
    commit = property(lambda self: self.record.git.commit)
    torch = property(lambda self: self.record.versions.torch)
    created = property(lambda self: self.record.created)
    dirty = property(lambda self: self.record.git.dirty)  # whether its code was not committed
    device = property(lambda self: self.record.device_name)


@dataclass(frozen=True)
class Session(Measured):
    """The ratios of an experiment's step times in one benchmark, with the attributes of `Run` that claims use."""

    name: str  # bench/<file name without .json>
    record: StepTimes
    over, data, dataset, seed = True, "", None, None
    ratios = property(lambda self: self.record.ratios)
    precision = property(lambda self: self.record.precision)


@dataclass(frozen=True)
class Run(Measured):
    """One run directory. metrics has a row per epoch. Other tables have one per epoch and layer, time step or game."""

    path: Path
    name: str  # <experiment>/<variant>/seed-<n>
    config: RunConfig
    record: RunRecord
    metrics: pd.DataFrame
    layers: pd.DataFrame
    init: pd.DataFrame
    noise: pd.DataFrame
    kl_steps: pd.DataFrame  # draw only: mean KL on the test images
    games: pd.DataFrame  # dqn only: the score of every test game; epoch 0: random play
    sealed: bool  # whether run.json is unchanged
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
    dataset = property(lambda self: _part(self.config))  # or game, if the experiment has a model for each
    dirty = property(lambda self: any(one.git.dirty for one in (self.record, *self.record.resumed)))

    @property
    def own_lr(self) -> float | None:
        """The default learning rate of a parameterization that is not the paper's."""
        return self.config.parameterization.lr if self.config.parameterization else None

    @property
    def label(self) -> str:
        """The parameterization's label. `Results.labels` distinguishes equal ones."""
        if self.param in PARAMS:
            return settings.ABOUT[self.param].label
        label = self.config.parameterization.label if self.config.parameterization else ""
        return printable(" ".join(label.split()), LONGEST_LABEL) or str(self.param)

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The scale's settings for its parameterization."""
        found = scale_defaults(self.experiment, self.config.scale, self.dataset, self.param)
        return found | ({"lr": self.own_lr} if self.own_lr else {})

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All settings. Settings that its version lacked have their fields' defaults."""
        return settings.filled(self.experiment, self.config.settings.model_dump())

    @functools.cached_property
    def alike(self) -> str:
        """A key that is equal for runs of the same experiment, settings and seed, even of different versions."""
        values = {name: float(value) if isinstance(value, int) else value for name, value in self.settings.items()}
        return json.dumps([self.experiment, values | {"checkpoint_replay": None}], sort_keys=True)

    @functools.cached_property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the scale's, except `FREE`."""
        fixed = {name: value for name, value in self.settings.items() if name not in FREE}
        return {name: value for name, value in fixed.items() if self.defaults.get(name, self) != value}

    @property
    def decay_from(self) -> int:
        """The number of epochs at a constant learning rate (cifar only)."""
        return min(self.settings["decay_from"], self.epochs)

    @property
    def state(self) -> str:
        """`done`, or the status and the last epoch."""
        so_far = f"epoch {self.epoch} of {self.epochs}"
        return {"done": "done", "running": so_far}.get(self.status, f"{self.status}, {so_far}")

    @property
    def facts(self) -> dict[str, float]:
        """The numbers among run.json's facts. null is one that was not finite."""
        found = {name: math.nan for name, value in (self.record.facts.model_extra or {}).items() if value is None}
        return found | {name: float(value) for name, value in self.record.facts if isinstance(value, int | float)}

    def final(self, column: str) -> float:
        """Return the last epoch's value, or nan before the first epoch."""
        return float(self.metrics[column].iloc[-1]) if self.epoch else math.nan

    def scores(self, epoch: int) -> list[float]:
        """Return the scores of an epoch's test games (dqn only). Epoch 0 has the scores of uniformly random play."""
        return self.games.loc[self.games["epoch"] == epoch, "score"].tolist()


@dataclass(frozen=True)
class Results:
    """All runs of a scale, by experiment, parameterization, learning rate, variant and seed, and the step times.

    Its statements on settings hold for the runs of one experiment and data set or game: see `of` and `parts`.
    """

    folder: Path
    scale: str
    runs: tuple[Run, ...]
    bench: dict[str, dict[str, StepTimes]] = field(default_factory=dict)  # by file name without .json, and experiment
    asked: str | None = None  # the precision to judge
    published: "Results | None" = None  # the runs in this repository at this scale
    labels: dict[str, str] = field(default_factory=dict)  # by parameterization: the paper's, then the others by name
    unknown: tuple[str, ...] = ()  # experiments with runs that are left out, since nothing has registered them
    odd: tuple[str, ...] = ()  # a sentence for each run or benchmark that is left out, since it cannot be read

    @functools.cached_property
    def papers(self) -> "Results":
        """The results of only the paper's parameterizations, on which its claims are judged."""
        return dataclasses.replace(self, runs=tuple(run for run in self.runs if run.param in PARAMS))

    def of(self, experiment: str, dataset: str | None = None) -> "Results":
        """Return the results of one experiment and, if it has a model for each, of one data set or game."""
        runs = tuple(run for run in self.runs if (run.experiment, run.dataset) == (experiment, dataset))
        shown = self.published and self.published.of(experiment, dataset)
        return dataclasses.replace(self, runs=runs, published=shown)

    @functools.cached_property
    def parts(self) -> "dict[str, Results]":
        """The results of every experiment and data set or game with runs, by name: `cifar`, `cvae mnist`, …"""
        found = {" ".join(filter(None, key)): self.of(*key) for key in settings.models()}
        return {name: part for name, part in found.items() if part.runs}

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The scale's settings."""
        return scale_defaults(self.runs[0].experiment, self.scale, self.runs[0].dataset)

    @functools.cached_property
    def precision(self) -> str:
        """The judged precision: the requested one, or the first with runs of two parameterizations, else of one.

        The order begins with the experiment's precision on a GPU if a run used one, and continues with the most exact.
        Other parameterizations than the paper's count only if the paper's have no runs.
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
        """The binarization of the judged runs: Larochelle's if it has any. Runs of the two are never compared."""
        of = [[run for run in runs if run.precision == self.precision] for runs in (self.papers.runs, self.runs)]
        return _first("binarization", of[0] or of[1])

    @functools.cached_property
    def in_precision(self) -> tuple[Run, ...]:
        """The judged runs, which have `precision` and `binarization`."""
        judged = (self.precision, self.binarization)
        return tuple(run for run in self.runs if (run.precision, run.binarization) == judged)

    @property
    def left_out(self) -> list[str]:
        """A sentence for everything that is left out, and why."""
        names = printable(listed(self.unknown), 200)
        found = [f"Runs of {names}: no experiment of this name is registered."] if self.unknown else []
        return _most([*found, *self.odd, *(self.published.odd if self.published else ())])

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each pair of a judged precision or binarization and another that is not judged."""
        found = []
        for setting, choices in CHOICES.items():
            for judged, other in itertools.permutations(choices, 2):
                of = {name: part for name, part in self.parts.items() if getattr(part, setting) == judged}
                counts = {
                    name: n
                    for name, part in of.items()
                    if (n := sum(getattr(run, setting) == other for run in part.runs))
                }
                if counts:
                    left_out = ", ".join(f"{name} {n}" for name, n in counts.items())
                    hint = f" To judge those, use `--precision {other}`." if setting == "precision" else ""
                    runs = count(sum(counts.values()), "run")
                    also = f"leaves out {runs} of {setting} {other} ({left_out}).{hint}"
                    found.append(f"The report judges {setting} {judged} and {also}")
        return tuple(found)

    @functools.cached_property
    def standard(self) -> tuple[Run, ...]:
        """The judged runs at the scale's settings, except for param, lr and seed."""
        return self.changing()

    def changing(self, *names: str) -> tuple[Run, ...]:
        """Return the judged runs that differ from the scale's settings only in these, param, lr and seed."""
        return tuple(run for run in self.in_precision if not run.changed.keys() - {*CHOICES, *names})

    @functools.cached_property
    def figure1(self) -> tuple[Run, ...]:
        """The standard runs at figure 1's learning rates (cifar only)."""
        return tuple(run for run in self.standard if run.lr == run.defaults["lr"])

    def others(self, name: str) -> dict[Any, tuple[Run, ...]]:
        """Return by changed value of a setting the runs that otherwise meet the conditions of `figure2`."""
        runs = [run for run in self.at_rate("epochs", name) if name in run.changed]
        values = sorted({run.settings[name] for run in runs})
        return {value: longest(run for run in runs if run.settings[name] == value) for value in values}

    @property
    def figure2(self) -> tuple[Run, ...]:
        """The `longest` runs at the scale's settings, except for param, seed and epochs (a data set of cvae)."""
        return longest(self.at_rate("epochs"))

    figure3 = figure4 = figure2  # likewise of draw, and of a game of dqn at table 3's learning rates

    def at_rate(self, *names: str) -> list[Run]:
        """Return the runs `changing` these settings, at the learning rate of the scale or the parameterization."""
        return [run for run in self.changing(*names) if run.lr == run.defaults["lr"]]


def _first(setting: str, runs: Iterable[Run]) -> str | None:
    used = {getattr(run, setting) for run in runs}
    return next((choice for choice in CHOICES[setting] if choice in used), None)


def longest(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the run with the most epochs of each parameterization, learning rate and seed."""
    runs = sorted(runs, key=_order)
    best = {(run.param, run.lr, run.seed): run for run in sorted(runs, key=lambda run: (run.epoch, run.epochs))}
    return tuple(run for run in runs if best[run.param, run.lr, run.seed] is run)


def counted(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that a mean over seeds uses: the finished ones or, without any, those in progress."""
    runs = list(runs)
    return [run for run in runs if run.done] or [run for run in runs if run.epoch and not run.diverged]


def random_scores(runs: Iterable[Run]) -> list[float]:
    """Return the scores of random play (dqn) of one run per seed: runs of the same seed play the same games."""
    by_seed = {run.seed: scores for run in runs if (scores := run.scores(0))}
    return [score for scores in by_seed.values() for score in scores]


def scale_defaults(experiment: str, scale: str, dataset: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return the settings of an experiment (and data set or game) at a scale as JSON values (a tuple is a list).

    param: includes the defaults of this parameterization.
    """
    cls = SETTINGS[experiment]
    defaults = {entry.name: entry.default for entry in dataclasses.fields(cls)}
    defaults |= cls.scale_changes(scale, dataset, param)
    return json.loads(json.dumps(defaults | ({cls.part: dataset} if cls.part and dataset else {})))


# ------------------------------------------------------------------------------- reading


def scales_with_runs(results: Path) -> list[str]:
    """Return the scales with a run directory, largest first. Raises UserError if `results` is no readable folder."""
    return [scale for scale in SCALE_NAMES if _run_folders(results, scale)]


def load(results: Path, scale: str, precision: str | None = None) -> Results:
    """Read everything of one scale, except malformed runs and benchmarks. Raises UserError if no run is left.

    precision: of the judged runs; see `Results.precision`.
    """
    runs, odd = _runs(results, scale)
    if not runs:
        raise UserError(
            "\n".join(_most(odd))
            or f"{results / scale}: has no runs (no <experiment>/<variant>/seed-<n>/config.json); train a run, for "
            f"example with `wnrepro cifar --param wn --scale {scale}`, or set --results to the folder of the runs"
        )
    bench, odd_bench = _benchmarks(results)
    shown, published = results / PUBLISHED, None
    try:
        published = load(shown, scale, precision) if shown.is_dir() and _run_folders(shown, scale) else None
    except UserError as error:
        odd += str(error).splitlines()
    labels = _labels([*(published.runs if published else ()), *runs], bench)
    unknown = tuple(dict.fromkeys(folder.parts[-3] for folder in _run_folders(results, scale, known=False)))
    return Results(results, scale, tuple(runs), bench, precision, published, labels, unknown, (*odd, *odd_bench))


def _runs(results: Path, scale: str) -> tuple[list[Run], list[str]]:
    """Return the readable runs of a scale in order, and a sentence for each other one. Of two alike, one is read."""
    runs, odd = [], []
    for folder in _run_folders(results, scale):
        try:
            check_place(results, folder)
            runs.append(_run(results / scale, folder))
        except UserError as error:
            odd.append(str(error))
    alike: dict[str, Run] = {}
    for run in sorted(runs, key=_order):
        if (twin := alike.setdefault(run.alike, run)) is not run:
            odd.append(f"{run.path}: has the same settings and seed as {twin.path}; remove one of the two")
    return list(alike.values()), [*dict.fromkeys(map(printable, odd))]  # a link is named once


def read_run(folder: Path) -> Run:
    """Read the run in this directory. Raises UserError if there is none, or a file is malformed."""
    with contextlib.suppress(OSError, RuntimeError):  # a circular link
        folder = folder.resolve()
    if len(folder.parents) < 3 or not os.path.lexists(folder / "config.json"):
        raise UserError(f"{folder}: has no run (no config.json); use a folder …/<variant>/seed-<n>")
    return _run(folder.parents[2], folder)


def _labels(runs: Iterable[Run], bench: dict[str, dict[str, StepTimes]]) -> dict[str, str]:
    """Return the labels of the paper's parameterizations and of those with runs or step times, made unique."""
    timed = {name for one in bench.values() for part in one.values() for name in part.ratios}
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


def _run_folders(results: Path, scale: str, known: bool = True) -> list[Path]:
    """Return the runs of the registered experiments or, unless `known`, those of others."""
    try:
        if not results.is_dir():
            raise UserError(f"{results}: is not a folder; set --results to the folder of the runs")
        next(results.iterdir(), None)
        names = SETTINGS.keys() if known else {path.name for path in (results / scale).glob("*")} - SETTINGS.keys()
        folders = (folder for name in names for folder in (results / scale / name).glob("*/seed-*"))
        return sorted(folder for folder in folders if os.path.lexists(folder / "config.json"))
    except OSError as error:
        raise UserError(f"{results}: cannot be read ({error.strerror}); check its permissions") from error


def _run(top: Path, folder: Path) -> Run:
    name, path = folder.relative_to(top).as_posix(), folder / "config.json"
    config, raw_config = read_model(path, RunConfig)
    with naming(path):
        place = _place(config, name)
    if place != f"{top.name}/{name}":
        raise UserError(
            f"{printable(str(path))}: its folder is a copy or was renamed, because its settings and seed are those of "
            f"{printable(place, 200)}; move it there, or remove it"
        )
    record, raw = RunRecord(status="running", epoch=0), dict[str, Any]()
    if os.path.lexists(folder / "run.json"):
        record, raw = read_model(folder / "run.json", RunRecord)
    cls = SETTINGS[config.experiment]
    columns = tuple(cls.models[_part(config)].metrics)
    steps = getattr(config.settings, "time_steps", 0) if "time_steps" in cls.__dataclass_fields__ else 0
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
    return getattr(config.settings, SETTINGS[config.experiment].part or "", None)


def _place(config: RunConfig, name: str) -> str:
    """Return the folder of a run with these settings: <scale>/<experiment>/<variant>/seed-<n>.

    Settings that this version lacks are appended if `name` has them, since their defaults are not known. Raises
    ValueError for invalid settings.
    """
    if config.experiment not in SETTINGS:
        raise ValueError(f"`experiment` must be one of {', '.join(SETTINGS)}")
    cls, given = SETTINGS[config.experiment], settings.filled(config.experiment, config.settings.model_dump())
    if given.get(cls.part or "") not in list(cls.models):
        raise ValueError(f"`{cls.part}` must be one of {', '.join(map(str, cls.models))}")
    names = {entry.name for entry in dataclasses.fields(cls)}
    further = [f"_{entry}-{value}" for entry, value in given.items() if entry not in names]
    try:
        changed = settings.settings_from(config.experiment, {entry: given[entry] for entry in names})
    except UserError as error:
        raise ValueError(str(error)) from error
    entry = config.parameterization
    if entry and not config.settings.param.endswith(f"-{entry.sha256[:8]}"):
        raise ValueError(f"`parameterization` does not belong to {config.settings.param}")
    end = "".join(text for text in further if text in name)
    folder = f"{variant(config.experiment, config.scale, changed)}{end}/seed-{config.settings.seed}"
    return f"{config.scale}/{config.experiment}/{folder}"


def read_layers(path: Path, columns: tuple[str, ...], *later: str) -> pd.DataFrame:
    """Read a table in which every layer occurs at most once per epoch and each median lies between its quartiles."""
    table = read_table(path, columns, *later)
    with naming(path):
        if table.duplicated(["epoch", "layer"]).any():
            raise ValueError("it has a layer twice in an epoch")
        if "minibatches" in columns and (np.diff(table[[*QUARTILES]]) < 0).any():
            raise ValueError("it has a median outside its quartiles")
    return table


def read_epochs(path: Path, columns: tuple[str, ...], first: int, steps: int = 0) -> pd.DataFrame:
    """Read a table up to its last complete epoch. Each has the layers of the first, `steps` time steps or one row."""
    table = read_table(path, columns)
    key = columns[1] if columns[1] in ("layer", "time_step") else "epoch"
    epochs, rows = table["epoch"].tolist(), table[key].tolist()
    size = steps or (max(1, epochs.count(first)) if key == "layer" else 1)  # rows of an epoch
    with naming(path):
        if len({*rows[:size]}) < len(rows[:size]):
            raise ValueError(f"it has a {key} twice in an epoch")
        for place, (epoch, row) in enumerate(zip(epochs, rows, strict=True)):
            if epoch != first + place // size:
                raise ValueError(f"its epochs must be {first}, {first + 1}, {first + 2}, … with equal numbers of rows")
            if row != {"epoch": epoch, "time_step": place % size + 1, "layer": rows[place % size]}[key]:
                raise ValueError(f"an epoch does not have every {key} once, in the order of the other epochs")
    return table[: len(table) // size * size]


# ------------------------------------------------------------------------------- checking


def check(results: Path, scale: str) -> list[str]:
    """Return a sentence for each malformed file, and for each inconsistency among the files of a run."""
    runs, odd = _runs(results, scale)
    return _most([*odd, *_benchmarks(results)[1], *_inconsistent(runs)])


def problems(results: Results) -> list[str]:
    """Return a sentence for each inconsistency among the files of a run that is read, at most MOST_PROBLEMS."""
    return _most(_inconsistent(results.runs))


def _inconsistent(runs: Iterable[Run]) -> list[str]:
    return [f"{run.name}: {problem}." for run in runs for problem in _problems(run)]


def _most(found: list[str]) -> list[str]:
    more = len(found) - MOST_PROBLEMS
    return found if more <= 0 else [*found[:MOST_PROBLEMS], f"And {count(more, 'more problem')}."]


def _problems(run: Run) -> Iterator[str]:
    recorded = printable(run.config.hash, 100)
    if recorded != run.digest:
        yield f"the hash in config.json is {recorded}, but its settings have the hash {run.digest}"
    if not run.sealed:
        yield "run.json was changed after it was written"
    if (other := run.record.config_hash or run.config.hash) != run.config.hash:
        yield f"run.json belongs to the settings {printable(other, 100)}, but config.json has {recorded}"
    # Runs of earlier versions have only the checksum of metrics.csv.
    sha256 = {"metrics.csv": run.record.metrics_sha256} | run.record.tables_sha256
    for name in (f"{table}.csv" for table in TABLES if run.status in FINISHED and f"{table}.csv" in sha256):
        if sha256[name] != file_sha256(run.path / name):
            yield f"{name} does not have the sha256 in run.json"
    if file_sha256(run.path / WEIGHTS) != run.record.weights_sha256:
        yield f"{WEIGHTS} does not have the sha256 in run.json"
    behind = 1 if run.status == "running" else 0  # perhaps killed between writing both files
    if abs(run.epoch - run.record.epoch) > behind:
        yield f"metrics.csv has {count(run.epoch, 'epoch')}, but run.json {run.record.epoch}"
    if run.done and run.epoch != run.epochs:
        yield f"its status is done, but it has {run.epoch} of {count(run.epochs, 'epoch')}"
    games = Counter(run.games["epoch"])
    for epoch, episodes in zip(run.metrics["epoch"], run.metrics.get("episodes", ()), strict=False):
        if games[epoch] != episodes and epoch <= run.epoch - behind:
            yield f"games.csv has {count(games[epoch], 'game')} of epoch {epoch}, but metrics.csv {episodes}"


# ------------------------------------------------------------------------------- benchmarks


def _benchmarks(results: Path) -> tuple[dict[str, dict[str, StepTimes]], list[str]]:
    """Read the files of results/bench with ratios of step times. Returns also a sentence for each unreadable one."""
    found: dict[str, dict[str, StepTimes]] = {}
    odd: list[str] = []
    names: dict[str, str] = {}
    for path in sorted((results / "bench").glob("*.json")):
        try:
            if not path.name.isprintable():
                raise UserError(f"{printable(str(path))}: is not a valid name of a benchmark; rename it")
            bench, raw = read_model(path, Benchmark)
            other = names.setdefault(json.dumps(raw, sort_keys=True), path.name)
            if other != path.name and bench.experiments:
                raise UserError(f"{path}: is the same session as {other}; remove one of the two")
            if bench.experiments:
                found[path.stem] = bench.experiments
        except UserError as error:
            odd.append(printable(str(error)))
    return found, odd


def sessions(results: Results, experiment: str) -> dict[tuple[str, str], list[Session]]:
    """Return the sessions of an experiment, oldest first, by device and by torch version with precision."""
    every = [Session(f"bench/{name}", one[experiment]) for name, one in results.bench.items() if experiment in one]
    found = defaultdict(list)
    for one in sorted(every, key=lambda one: one.created):
        found[one.device, f"{one.torch}, {one.precision}"].append(one)
    return dict(found)

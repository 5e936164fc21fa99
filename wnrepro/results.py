"""The runs of a scale, results/<scale>/<experiment>/<variant>/seed-<n>/, and the benchmarks of results/bench/.

A run still under way, or one that was killed, is read as far as it got. What makes no sense is the user's to mend, and
the error names it: a file, or a folder with another run's name, for a copy is no further seed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wnrepro import settings
from wnrepro.errors import UserError
from wnrepro.reading import clean, expect, naming, read_json, read_table
from wnrepro.runs.directory import FINISHED, PUBLISHED, read_text, sealed, variant
from wnrepro.settings import NAME, PARAMS, PRECISIONS, SCALE_NAMES, SETTINGS, config_hash, printable

MOST_RUNS, MOST_BENCHES, MOST_PROBLEMS = 1000, 200, 100
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
WORK = ("flops", "bytes", "floor_seconds", "distance", "flops_share", "bytes_share")

# What the JSON files hold; see `expect`.
ABOUT: dict[str, Any] = {"created?": str, "versions?": {"torch?": str}, "git?": {"commit?": str, "dirty?": bool}}
CONFIG = {"experiment": tuple(SETTINGS), "scale": SCALE_NAMES, "hash": str}
CONFIG["settings"] = {"param": NAME, "lr": float, "seed": int, "epochs": int}
CONFIG["parameterization?"] = {"class": str, "label": str, "lr?": float, "sha256": re.compile("[0-9a-f]{64}")}
RECORD = ABOUT | {"status": ("running", "done", "diverged", "failed"), "epoch": int, "resumed?": [ABOUT]}
RECORD |= dict.fromkeys(("message?", "device?", "device_name?", "config_hash?", "metrics_sha256?"), str)
RECORD |= {"seconds?": float, "peak_memory_bytes?": float, "facts?": {"importance_samples?": float}}
RECORD |= {"tables_sha256?": {}}
RATIO = {"median": float, "low": float, "high": float, "n": int}
BENCH = ABOUT | {"precision?": PRECISIONS, "ratios": {"*": RATIO}, "memory?": {}}
BENCH |= {"work?": {"*": dict.fromkeys(WORK, float)}}


def _entry(where: str, *keys: str, otherwise: Any = None) -> Any:
    """A property of a run: what this part of it has under these keys, and `otherwise` where it has nothing."""

    def find(run: "Run") -> Any:
        found = functools.reduce(lambda value, key: (value or {}).get(key), keys, getattr(run, where))
        return otherwise if found is None else found

    return property(find)


class Provenance:
    """Where and by which code something was measured, as its `record` says."""

    record: dict[str, Any]
    commit = _entry("record", "git", "commit", otherwise="unknown")
    torch = _entry("record", "versions", "torch", otherwise="unknown")
    created = _entry("record", "created", otherwise="")
    dirty = _entry("record", "git", "dirty", otherwise=False)  # whether its code was not committed
    device = _entry("record", "device_name", otherwise="unknown device")


@dataclass(frozen=True)
class Session(Provenance):
    """The ratios of an experiment's step times in one benchmark, and what a claim asks of a `Run`."""

    name: str  # bench/<file name without .json>
    record: dict[str, Any]
    over, data, dataset, seed = True, "", None, None
    ratios = _entry("record", "ratios")
    precision = _entry("record", "precision", otherwise=PRECISIONS[0])


@dataclass(frozen=True)
class Run(Provenance):
    """One run directory. Of its tables, metrics has a row an epoch, the others one an epoch and layer, time step, …"""

    path: Path
    name: str  # <experiment>/<variant>/seed-<n>
    config: dict[str, Any]
    record: dict[str, Any]  # run.json
    metrics: pd.DataFrame
    layers: pd.DataFrame
    init: pd.DataFrame
    noise: pd.DataFrame
    kl_steps: pd.DataFrame  # of draw: mean KL on the test images
    games: pd.DataFrame  # of dqn: the score of every test game; of epoch 0: of random play
    sealed: bool  # whether run.json is as it was written

    experiment = _entry("config", "experiment")
    param = _entry("config", "settings", "param")
    lr = _entry("config", "settings", "lr")
    seed = _entry("config", "settings", "seed")
    epochs = _entry("config", "settings", "epochs")  # that it is meant to run
    precision = _entry("settings", "precision")
    binarization = property(lambda run: run.settings["binarization"] if "binarization" in run.defaults else None)
    data = _entry("record", "facts", "data", otherwise="")
    status = _entry("record", "status")
    done = property(lambda run: run.status == "done")
    diverged = property(lambda run: run.status == "diverged")
    over = property(lambda run: run.diverged or (run.done and run.epoch == run.epochs))  # its whole length
    epoch = property(lambda run: len(run.metrics))  # that it has logged
    variant = property(lambda run: run.path.parent.name)
    dataset = property(lambda run: _part(run.config))  # or game, where the experiment has a model for each
    own_lr = _entry("config", "parameterization", "lr")  # of a parameterization that is not the paper's

    @property
    def label(self) -> str:
        """Its parameterization's; `Results.labels` tells those that are alike apart."""
        if self.param in PARAMS:
            return settings.ABOUT[self.param].label
        said = (self.config.get("parameterization") or {}).get("label", "")
        return printable(" ".join(said.split()), LONGEST_LABEL) or str(self.param)

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The scale's settings of its parameterization."""
        found = scale_defaults(self.experiment, self.config["scale"], self.dataset, self.param)
        return found | ({"lr": self.own_lr} if self.own_lr else {})

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All settings: those that its version did not have are at their defaults."""
        return self.defaults | self.config["settings"]

    @functools.cached_property
    def alike(self) -> str:
        """The same for runs of the same experiment, settings and seed, whichever settings their versions lacked."""
        values = {name: float(value) if isinstance(value, int) else value for name, value in self.settings.items()}
        return json.dumps([self.experiment, values | {"checkpoint_replay": None}], sort_keys=True)

    @functools.cached_property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the scale's, besides those that are `FREE`."""
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
    def dirty(self) -> bool:
        """Whether it was started, or resumed, with code that was not committed."""
        starts = [self.record, *(self.record.get("resumed") or [])]
        return any((start.get("git") or {}).get("dirty") for start in starts)

    @property
    def facts(self) -> dict[str, float]:
        """The numbers among run.json's facts."""
        facts = self.record.get("facts") or {}
        return {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}

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
        on_gpu = {run.experiment for run in runs if str(run.record.get("device")).startswith("cuda")}
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
    """The scales that have a run directory, largest first. UserError if `results` is no readable folder."""
    return [scale for scale in SCALE_NAMES if _run_folders(results, scale)]


def load(results: Path, scale: str, precision: str | None = None) -> Results:
    """Read everything of one scale. UserError if there is nothing, or a file cannot be is_record.

    precision: that in which the claims are judged; see `Results.precision`.
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
        twin = alike.setdefault(run.alike, run)
        if twin is not run:
            raise UserError(f"{run.path} has the settings and the seed of {twin.path}: remove one of the two.")
    shown = results / PUBLISHED
    published = load(shown, scale, precision) if shown.is_dir() and _run_folders(shown, scale) else None
    bench = _bench(results)
    labels = _labels([*(published.runs if published else ()), *runs], bench)
    return Results(results, scale, tuple(runs), bench, precision, published, labels)


def read_run(folder: Path) -> Run:
    """The run that lives in this directory. UserError if there is none, or a file cannot be is_record."""
    with contextlib.suppress(OSError, RuntimeError):  # a link in a circle is no directory
        folder = folder.resolve()
    if len(folder.parents) < 3 or not os.path.lexists(folder / "config.json"):
        raise UserError(f"{folder}: holds no run (no config.json); give a directory …/<variant>/seed-<n>")
    return _run(folder.parents[2], folder)


def _labels(runs: Iterable[Run], bench: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The label of every parameterization with runs or step times, and of the paper's; with its name where it shares
    the label.
    """
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
        configs = (results / scale).glob("*/*/seed-*/config.json")
        folders = sorted(config.parent for config in itertools.islice(configs, MOST_RUNS + 1))
    except OSError as error:
        raise UserError(f"{results} cannot be read ({error.strerror}): check its permissions.") from error
    if len(folders) > MOST_RUNS:
        raise UserError(f"{results / scale} holds more than {MOST_RUNS} runs: move some of them to another folder.")
    return folders


def _run(top: Path, folder: Path) -> Run:
    name, path = folder.relative_to(top).as_posix(), folder / "config.json"
    if not name.isprintable():
        raise UserError(f"{printable(str(folder))}: no run has such a name; move it out of the results.")
    config = clean(read_json(path, CONFIG))
    with naming(path):
        place = _place(config, name)
    if place != f"{top.name}/{name}":
        raise UserError(
            f"{path}: its folder is a copy, or was renamed, for its settings and seed are those of "
            f"{printable(place, 200)}; move it there, or remove it."
        )
    raw = {"status": "running", "epoch": 0}  # what run.json would say if there were one
    if os.path.lexists(folder / "run.json"):
        raw = read_json(folder / "run.json", RECORD)
    cls = SETTINGS[config["experiment"]]
    metrics = _whole_epochs(folder / "metrics.csv", tuple(cls.models[_part(config)].metrics), 1)
    steps = config["settings"].get("time_steps", 0) if "time_steps" in cls.__dataclass_fields__ else 0
    return Run(
        folder,
        name,
        config,
        clean(raw),
        metrics,
        _whole_epochs(folder / "layers.csv", LAYERS, 0),
        _by_layer(folder / "init.csv", INIT),
        _by_layer(folder / "noise.csv", NOISE, *NOISE_LATER),
        _whole_epochs(folder / "kl_steps.csv", KL_STEPS, 1, steps),
        read_table(folder / "games.csv", GAME_SCORES),
        sealed(raw),
    )


def _part(config: dict[str, Any]) -> str | None:
    return config["settings"].get(SETTINGS[config["experiment"]].part)


def _place(config: dict[str, Any], name: str) -> str:
    """Where a run with these settings has to be: <scale>/<experiment>/<variant>/seed-<n>. ValueError for what is none.

    Settings that this version does not have follow where `name` has them: their defaults are not known.
    """
    experiment, scale, given = (config[entry] for entry in ("experiment", "scale", "settings"))
    expect(_part(config), tuple(SETTINGS[experiment].models), SETTINGS[experiment].part or "")
    values = scale_defaults(experiment, scale, _part(config), given["param"])
    further = [f"_{entry}-{value}" for entry, value in given.items() if entry not in values]
    try:
        known = settings.settings_from(experiment, values | {entry: given[entry] for entry in values.keys() & given})
    except UserError as error:
        raise ValueError(str(error)) from error
    of_others = config.get("parameterization") or {}
    if of_others and not given["param"].endswith(f"-{of_others['sha256'][:8]}"):
        raise ValueError(f"`parameterization` is not that of {given['param']}")
    for lr in (given["lr"], of_others.get("lr")):
        if lr is not None and lr < 1e-30:
            raise ValueError(f"no learning rate: {lr}")
    end = "".join(text for text in further if text in name)
    return f"{scale}/{experiment}/{variant(experiment, scale, known)}{end}/seed-{given['seed']}"


def _by_layer(path: Path, columns: tuple[str, ...], *later: str) -> pd.DataFrame:
    """A table with every layer at most once an epoch, and each median between its quartiles."""
    table = read_table(path, columns, *later)
    with naming(path):
        if len(set(zip(table["epoch"], table["layer"], strict=True))) < len(table):
            raise ValueError("a layer stands twice in an epoch")
        if "minibatches" in columns and (np.diff(table[[*QUARTILES]]) < 0).any():
            raise ValueError("a median lies outside its quartiles")
    return table


def _whole_epochs(path: Path, columns: tuple[str, ...], first: int, steps: int = 0) -> pd.DataFrame:
    """A table up to its last whole epoch. UserError unless each has this many steps, or the layers of the first."""
    table = read_table(path, columns)
    epochs, keys = (table[name].to_numpy() for name in columns[:2])
    rows = np.arange(len(table))
    wanted = rows % max(steps, 1) + 1  # time steps
    if columns[1] == "layer":
        layers = list(dict.fromkeys(keys[epochs == first]))
        steps, wanted = len(layers), np.resize(np.array(layers, object), len(table))
    steps = max(steps, 1)
    with naming(path):
        if (epochs != first + rows // steps).any():
            raise ValueError(f"its epochs are not {first}, {first + 1}, {first + 2}, … of the same number of rows")
        if columns[1] in ("layer", "time_step") and (keys != wanted).any():
            raise ValueError(f"an epoch has not every {columns[1]} once, in the order of the others")
    return table[: len(table) // steps * steps] if len(table) % steps else table


# ------------------------------------------------------------------------------- checking


def check(results: Path, scale: str) -> list[str]:
    """The problems of runs whose files do not fit together, one sentence each. UserError as `load`."""
    return problems(load(results, scale))


def problems(results: Results) -> list[str]:
    """Those of `check`; at most `MOST_PROBLEMS`."""
    found = [f"{run.name}: {problem}." for run in results.runs for problem in _problems(run)]
    more = len(found) - MOST_PROBLEMS
    return found if more <= 0 else [*found[:MOST_PROBLEMS], f"And {more} more of the kind."]


def _problems(run: Run) -> Iterator[str]:
    digest = config_hash(**run.config)
    said = printable(run.config["hash"], 100)
    if said != digest:
        yield f"config.json's hash is {said}, its settings have {digest}"
    if not run.sealed:
        yield "run.json is not as it was written"
    if (of := run.record.get("config_hash", said)) != said:
        yield f"run.json was written for the settings {printable(str(of), 100)}, config.json holds {said}"
    # Runs of earlier versions have the checksum of metrics.csv alone.
    wanted = {"metrics.csv": run.record.get("metrics_sha256")} | (run.record.get("tables_sha256") or {})
    for name in (f"{table}.csv" for table in TABLES if run.status in FINISHED and f"{table}.csv" in wanted):
        with contextlib.suppress(FileNotFoundError):
            if wanted[name] == hashlib.sha256(read_text(run.path / name).encode()).hexdigest():
                continue
        yield f"{name} is not the one that run.json has the sha256 of"
    behind = 1 if run.status == "running" else 0  # killed between the two files
    if abs(run.epoch - run.record["epoch"]) > behind:
        yield f"metrics.csv has {run.epoch} epochs, run.json {run.record['epoch']}"
    if run.done and run.epoch != run.epochs:
        yield f"done, with {run.epoch} of {run.epochs} epochs"
    games = Counter(run.games["epoch"])
    for epoch, episodes in zip(run.metrics["epoch"], run.metrics.get("episodes", ()), strict=False):
        if games[epoch] != episodes and epoch <= run.epoch - behind:
            yield f"games.csv has {games[epoch]} games of epoch {epoch}, metrics.csv {episodes}"


# ------------------------------------------------------------------------------- benchmarks


def _bench(results: Path) -> dict[str, dict[str, Any]]:
    """The files of results/bench that have ratios of an experiment's step times."""
    paths = sorted(itertools.islice((results / "bench").glob("*.json"), MOST_BENCHES + 1))
    if len(paths) > MOST_BENCHES:
        raise UserError(f"{results / 'bench'} holds more than {MOST_BENCHES} benchmarks: move some of them elsewhere.")
    found = {path.stem: bench for path in paths if (bench := _one_bench(path)).keys() & SETTINGS}
    names = {json.dumps(bench, sort_keys=True): name for name, bench in found.items()}
    for name, bench in found.items():
        if (other := names[json.dumps(bench, sort_keys=True)]) != name:
            raise UserError(
                f"{results / 'bench' / name}.json and {other}.json are the same session: remove one of them."
            )
    return found


def _one_bench(path: Path) -> dict[str, Any]:
    if not path.name.isprintable():
        raise UserError(f"{printable(str(path))}: no benchmark has such a name; give it another.")
    bench = clean(read_json(path, {f"{experiment}?": BENCH for experiment in SETTINGS}))
    bench = {name: value for name, value in bench.items() if value is not None}
    with naming(path):
        for experiment in bench.keys() & SETTINGS:
            expect(bench, {"device_name": str})
            for name, ratio in bench[experiment]["ratios"].items():
                if not 0 < ratio["low"] <= ratio["median"] <= ratio["high"]:
                    raise ValueError(
                        f"the median of `{name}` lies outside its interval, or the interval is not above 0"
                    )
            memory = {whose(name): int for name in step_works(bench, experiment)}
            expect(bench[experiment], {"memory": memory} if memory else {})
    return bench


def whose(entry: str) -> str:
    """The contender that a figure of a benchmark is of: `wn` of `wn, learning`."""
    return entry.split(", ")[0]


def step_works(bench: dict[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """What an experiment's training steps need and achieve, by contender; none where that was not measured."""
    return bench[experiment].get("work") or {} if experiment in bench else {}


def sessions(results: Results, experiment: str) -> dict[tuple[str, str], list[Session]]:
    """Those of an experiment, oldest first, by the device, and the version of torch and precision."""
    every = [
        Session(f"bench/{name}", bench[experiment] | {"device_name": bench["device_name"]})
        for name, bench in results.bench.items()
        if experiment in bench
    ]
    found = defaultdict(list)
    for one in sorted(every, key=lambda one: one.created):
        found[one.device, f"{one.torch}, {one.precision}"].append(one)
    return dict(found)

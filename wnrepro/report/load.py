"""Reads the runs of a scale, results/<scale>/<experiment>/<variant>/seed-<n>/, and results/bench/.

A run still under way, or one that was killed, is read as far as it got; a file that makes no sense is the
user's to mend, and the error names it.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from wnrepro.errors import UserError
from wnrepro.settings import (
    DEFAULT_LR,
    FIGURE_LR,
    GAMES,
    PARAMS,
    PRECISIONS,
    SCALE_NAMES,
    SETTINGS,
    config_hash,
    scale_changes,
)

STATUSES = ("running", "done", "diverged", "failed")
BOUNDS = (
    "epoch",
    "seconds",
    "train_bound_nats",
    "test_bound_nats",
    "test_bound_nats_raw",
    "kl_nats",
    "reconstruction_nats",
)
SCORES = (
    "epoch",
    "agent_steps",
    "updates",
    "seconds",
    "episodes",
    "test_score",
    "test_score_max",
    "mean_q",
    "loss",
    "epsilon",
)
# The columns of metrics.csv, by experiment and, where it has a model for each, data set or game.
METRICS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("cifar", None): ("epoch", "seconds", "train_error", "test_error", "train_loss", "test_loss", "lr"),
    ("cvae", "mnist"): BOUNDS,
    ("cvae", "cifar10"): (*BOUNDS, "test_bits_per_dim"),
    ("draw", None): (
        "epoch",
        "seconds",
        "train_bound_nats",
        "test_bound_nats",
        "reconstruction_nats",
        "kl_nats",
        "gradient_norm",
    ),
    **{("dqn", game): SCORES for game in GAMES},
}
PART = {"cvae": "dataset", "dqn": "game"}  # the setting that names the data set or game
LAYERS = ("epoch", "layer", "v_norm_mean", "v_norm_min", "v_norm_max", "g_mean", "g_min", "g_max")
INIT = ("epoch", "layer", "mean_abs_max", "variance_min", "variance_max")
NOISE = (
    "epoch",
    "layer",
    "excess_kurtosis_median",
    "excess_kurtosis_q25",
    "excess_kurtosis_q75",
    "minibatches",
)
KL_STEPS = ("epoch", "time_step", "kl_nats")
GAME_SCORES = ("epoch", "game", "score")
WORK = ("flops", "bytes", "floor_seconds", "distance", "flops_share", "bytes_share")
# The settings that every variant of an experiment has of its own, or that change no number.
FREE = ("param", "lr", "seed", "checkpoint_replay")


@dataclass(frozen=True)
class Run:
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

    @property
    def settings(self) -> dict[str, Any]:
        return self.config["settings"]

    @property
    def experiment(self) -> str:
        return self.config["experiment"]

    @property
    def dataset(self) -> str | None:
        """The data set, or game, where the experiment has a model for each: such runs are experiments of their own."""
        return self.settings[PART[self.experiment]] if self.experiment in PART else None

    @property
    def variant(self) -> str:
        return self.path.parent.name

    @property
    def param(self) -> str:
        return self.settings["param"]

    @property
    def lr(self) -> float:
        return self.settings["lr"]

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def epochs(self) -> int:
        """Epochs it is meant to run."""
        return self.settings["epochs"]

    @property
    def decay_from(self) -> int:
        """Epochs at a constant learning rate (of cifar)."""
        return min(self.settings["decay_from"], self.epochs)

    @property
    def epoch(self) -> int:
        """Epochs it has logged."""
        return len(self.metrics)

    @property
    def done(self) -> bool:
        return self.record["status"] == "done"

    @property
    def diverged(self) -> bool:
        return self.record["status"] == "diverged"

    @property
    def state(self) -> str:
        """`done`, or how far it got."""
        if self.done:
            return "done"
        so_far = f"epoch {self.epoch} of {self.epochs}"
        return so_far if self.record["status"] == "running" else f"{self.record['status']}, {so_far}"

    @property
    def device(self) -> str:
        return str(self.record.get("device_name") or self.record.get("device") or "unknown device")

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

    def max_score(self, epochs: int) -> float:
        """Of dqn: the largest mean test score of the first so many epochs."""
        return float(self.metrics["test_score"].iloc[:epochs].max())

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the scale's, besides those that are `FREE`."""
        defaults = scale_defaults(self.experiment, self.config["scale"], self.dataset)
        return {
            name: value
            for name, value in self.settings.items()
            if name not in FREE and (name not in defaults or value != defaults[name])
        }


@dataclass(frozen=True)
class Results:
    """All runs of a scale, by experiment, parameterization, learning rate, variant and seed, and the step times.

    What it says of settings is meant of the runs of one experiment and data set, or game: see `of` and `parts`.
    """

    folder: Path
    scale: str
    runs: tuple[Run, ...]
    bench: dict[str, dict[str, Any]] = field(default_factory=dict)  # by file name without .json

    def of(self, experiment: str, dataset: str | None = None) -> "Results":
        """Those of an experiment alone, and of one data set, or game, where it has a model for each."""
        runs = tuple(run for run in self.runs if (run.experiment, run.dataset) == (experiment, dataset))
        return dataclasses.replace(self, runs=runs)

    @property
    def parts(self) -> "dict[str, Results]":
        """The results of every experiment and data set, or game, that has runs, by name: `cifar`, `cvae mnist`, …"""
        found = {" ".join(filter(None, key)): self.of(*key) for key in METRICS}
        return {name: part for name, part in found.items() if part.runs}

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The scale's settings."""
        return scale_defaults(self.runs[0].experiment, self.scale, self.runs[0].dataset)

    @functools.cached_property
    def precision(self) -> str:
        """That of most runs (a tie: the more exact). The claims are judged in it."""
        used = [run.settings.get("precision", PRECISIONS[0]) for run in self.runs]
        return max(PRECISIONS, key=used.count)

    @functools.cached_property
    def standard(self) -> tuple[Run, ...]:
        """The runs at the scale's settings but for param, lr and seed, in `precision`."""
        return self.changing()

    @functools.cached_property
    def in_precision(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.settings.get("precision", PRECISIONS[0]) == self.precision)

    def changing(self, *names: str) -> tuple[Run, ...]:
        """The runs in `precision` that differ from the scale's settings in none but these, param, lr and seed."""
        return tuple(run for run in self.in_precision if not run.changed.keys() - {"precision", *names})

    @functools.cached_property
    def figure1(self) -> tuple[Run, ...]:
        """Of cifar: the standard runs at figure 1's learning rates."""
        return tuple(run for run in self.standard if run.lr == FIGURE_LR[run.param])

    def others(self, name: str) -> dict[Any, tuple[Run, ...]]:
        """By the value of a setting that differs from the scale's: the runs that are as `figure2`'s in all else."""
        runs = [run for run in self.changing("epochs", name) if self._at_its_rate(run) and name in run.changed]
        values = sorted({run.settings[name] for run in runs})
        return {value: longest(run for run in runs if run.settings[name] == value) for value in values}

    @functools.cached_property
    def figure2(self) -> tuple[Run, ...]:
        """Of a data set of cvae: the runs at the scale's settings but for param, seed and epochs; `longest`."""
        return longest(run for run in self.changing("epochs") if self._at_its_rate(run))

    @functools.cached_property
    def figure3(self) -> tuple[Run, ...]:
        """Of draw: the runs as `figure2` chooses them."""
        return self.figure2

    @functools.cached_property
    def figure4(self) -> tuple[Run, ...]:
        """Of a game of dqn: the runs as `figure2` chooses them, at table 3's learning rates."""
        return self.figure2

    def _at_its_rate(self, run: Run) -> bool:
        """Whether it has the scale's learning rate, or its parameterization's."""
        return run.lr == DEFAULT_LR.get(run.experiment, {}).get(run.param, self.defaults["lr"])


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


def scale_defaults(experiment: str, scale: str, dataset: str | None = None) -> dict[str, Any]:
    """The settings of an experiment (and data set or game) at a scale, as JSON has them (a tuple is a list)."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(SETTINGS[experiment])}
    defaults |= scale_changes(experiment, scale, dataset)
    return json.loads(json.dumps(defaults | ({PART[experiment]: dataset} if dataset else {})))


def scales_with_runs(results: Path) -> list[str]:
    """The scales that have a run directory, largest first. UserError if `results` is no readable folder."""
    return [scale for scale in SCALE_NAMES if _run_folders(results, scale)]


def load(results: Path, scale: str) -> Results:
    """Read everything of one scale. UserError if there is nothing, or a file cannot be understood."""
    folders = _run_folders(results, scale)
    if not folders:
        raise UserError(
            f"{results / scale} holds no runs (no <experiment>/<variant>/seed-<n>/config.json): train some "
            f"first, for example `wnrepro cifar --scale {scale}`, or name the folder with --results."
        )
    runs = sorted((_run(results / scale, folder) for folder in folders), key=_order)
    return Results(results, scale, tuple(runs), _bench(results))


def check(results: Path, scale: str) -> list[str]:
    """The problems of runs whose files do not fit together, one sentence each. UserError as `load`."""
    problems = []
    for run in load(results, scale).runs:
        digest = config_hash(*(run.config[key] for key in ("experiment", "scale", "settings")))
        if run.config["hash"] != digest:
            problems.append(f"{run.name}: config.json's hash is {run.config['hash']}, its settings have {digest}.")
        if run.record.get("config_hash", run.config["hash"]) != run.config["hash"]:
            problems.append(
                f"{run.name}: run.json was written for the settings {run.record['config_hash']}, config.json "
                f"holds {run.config['hash']}."
            )
        metrics = run.path / "metrics.csv"
        if run.done or run.diverged:
            actual = hashlib.sha256(metrics.read_bytes()).hexdigest() if metrics.exists() else "of no file"
            if run.record.get("metrics_sha256") != actual:
                problems.append(f"{run.name}: metrics.csv is not the one that run.json has the sha256 of.")
        behind = 1 if run.record["status"] == "running" else 0  # killed between the two files
        if abs(run.epoch - run.record["epoch"]) > behind:
            problems.append(f"{run.name}: metrics.csv has {run.epoch} epochs, run.json {run.record['epoch']}.")
        if run.done and run.epoch != run.epochs:
            problems.append(f"{run.name}: done, with {run.epoch} of {run.epochs} epochs.")
        if run.experiment == "dqn":
            games = run.games["epoch"].value_counts().to_dict()
            for epoch, episodes in zip(run.metrics["epoch"], run.metrics["episodes"], strict=True):
                rows = games.get(epoch, 0)
                if rows != episodes and epoch <= run.epoch - behind:
                    problems.append(
                        f"{run.name}: games.csv has {rows} games of epoch {epoch}, metrics.csv {episodes:g}."
                    )
    return problems


def _order(run: Run) -> tuple[int, int, float, str, int]:
    model = list(METRICS).index((run.experiment, run.dataset))
    return model, PARAMS.index(run.param), run.lr, run.variant, run.seed


def _run_folders(results: Path, scale: str) -> list[Path]:
    try:
        if not results.is_dir():
            raise UserError(f"{results} is no folder: name the one that holds the runs with --results.")
        next(results.iterdir(), None)
        return sorted(config.parent for config in (results / scale).glob("*/*/seed-*/config.json"))
    except OSError as error:
        raise UserError(f"{results} cannot be read ({error.strerror}): check its permissions.") from error


def _malformed(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is malformed ({what}): restore it from version control, or move its folder out of the results."
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    except UnicodeDecodeError as error:
        raise _malformed(path, "it is no UTF-8 text") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could not be written out again
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _malformed(path, "no JSON object")
    return value


def _expect(path: Path, value: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    for name, kind in types.items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            raise _malformed(path, f"`{name}` is missing or of the wrong kind")


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV of numbers, but for `layer`; empty if there is no file. A last line cut short is left out."""
    text = _text(path) if path.exists() else ""
    try:
        header, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [list(columns)]
        if wrong := [name for name in columns if header.count(name) != 1]:
            raise ValueError(f"not one column {wrong[0]}")
        for line, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise ValueError(f"line {line} has not the header's {len(header)} fields")
        table = pd.DataFrame(rows, columns=header)[list(columns)]
        for name in columns:
            if name != "layer":
                table[name] = table[name].astype(int if name in ("epoch", "time_step", "game") else float)
    except (ValueError, OverflowError, csv.Error) as error:
        raise _malformed(path, str(error)) from error
    return table


def _run(top: Path, folder: Path) -> Run:
    path = folder / "config.json"
    config = _json(path)
    _expect(path, config, experiment=str, scale=str, settings=dict, hash=str)
    experiment, settings = config["experiment"], config["settings"]
    if experiment not in SETTINGS:
        raise _malformed(path, f"no experiment of this version: {experiment}")
    _expect(path, settings, param=str, lr=(int, float), seed=int, epochs=int)
    if settings["param"] not in PARAMS:
        raise _malformed(path, f"no parameterization: {settings['param']}")
    above_0 = ["lr", "epochs"]
    if experiment == "cifar":
        _expect(path, settings, decay_from=int)
        above_0.append("decay_from")
    if experiment == "draw":
        _expect(path, settings, time_steps=int)
        above_0.append("time_steps")
    if experiment == "dqn":
        _expect(path, settings, actors=int, batch_size=int)
    if not all(settings[name] > 0 for name in above_0):
        raise _malformed(path, f"{', '.join(above_0)} must be above 0")
    for name in ("g_exp", "v_norm_max"):
        if not isinstance(settings.get(name), int | float | None):
            raise _malformed(path, f"`{name}` is no number")
    dataset = None
    if experiment in PART:
        _expect(path, settings, **{PART[experiment]: str})
        dataset = settings[PART[experiment]]
    if (experiment, dataset) not in METRICS:
        raise _malformed(path, f"no {PART[experiment]} of {experiment}: {dataset}")
    place = (top.name, folder.parts[-3], folder.parts[-1])
    if place != (config["scale"], experiment, f"seed-{settings['seed']}"):
        raise _malformed(path, "it belongs to another scale, experiment or seed than its folder")

    path = folder / "run.json"
    record = _json(path) if path.exists() else {"status": "running", "epoch": 0}
    _expect(path, record, status=str, epoch=int)
    if record["status"] not in STATUSES:
        raise _malformed(path, f"no status: {record['status']}")
    for name in ("facts", "git", "versions"):
        if not isinstance(record.get(name) or {}, dict):
            raise _malformed(path, f"`{name}` is no object")

    path = folder / "metrics.csv"
    metrics = _table(path, METRICS[experiment, dataset])
    if list(metrics["epoch"]) != list(range(1, len(metrics) + 1)):
        raise _malformed(path, "its epochs are not 1, 2, 3, …")
    errors = metrics.filter(items=["train_error", "test_error"])
    if ((errors < 0) | (errors > 1)).any(axis=None):
        raise _malformed(path, "an error is no fraction from 0 to 1")
    return Run(
        folder,
        folder.relative_to(top).as_posix(),
        config,
        record,
        metrics,
        _layers(folder / "layers.csv"),
        _table(folder / "init.csv", INIT),
        _table(folder / "noise.csv", NOISE),
        _kl_steps(folder / "kl_steps.csv", settings.get("time_steps", 1)),
        _table(folder / "games.csv", GAME_SCORES),
    )


def _layers(path: Path) -> pd.DataFrame:
    """layers.csv up to its last whole epoch."""
    table = _table(path, LAYERS)
    sizes = table.groupby("epoch").size()
    if list(sizes.index) != list(range(len(sizes))) or table.duplicated(["epoch", "layer"]).any():
        raise _malformed(path, "its epochs are not 0, 1, 2, … with every layer once")
    return table[table["epoch"].map(sizes) == sizes.max()] if len(sizes) else table


def _kl_steps(path: Path, time_steps: int) -> pd.DataFrame:
    """kl_steps.csv up to its last whole epoch."""
    table = _table(path, KL_STEPS)
    expected = [(1 + row // time_steps, 1 + row % time_steps) for row in range(len(table))]
    if list(zip(table["epoch"], table["time_step"], strict=True)) != expected:
        raise _malformed(path, f"its rows are not the time steps 1 to {time_steps} of the epochs 1, 2, 3, …")
    return table[: len(table) // time_steps * time_steps]


def _bench(results: Path) -> dict[str, dict[str, Any]]:
    """The files of results/bench that have ratios of an experiment's step times."""
    found = {}
    for path in sorted((results / "bench").glob("*.json")):
        bench = _json(path)
        for experiment in [name for name in SETTINGS if name in bench]:
            _expect(path, bench, **{"device_name": str, experiment: dict})
            _expect(path, bench[experiment], ratios=dict)
            for name, ratio in bench[experiment]["ratios"].items():
                if not isinstance(ratio, dict):
                    raise _malformed(path, f"the ratio `{name}` is no object")
                _expect(path, ratio, median=(int, float), low=(int, float), high=(int, float), n=int)
            for name, work in bench[experiment].get("work", {}).items():
                if not isinstance(work, dict):
                    raise _malformed(path, f"the work of `{name}` is no object")
                _expect(path, work, **dict.fromkeys(WORK, (int, float)))
                _expect(path, bench[experiment], memory=dict)
                _expect(path, bench[experiment]["memory"], **{whose(name): int})
            found[path.stem] = bench
    return found


def whose(entry: str) -> str:
    """The contender that a figure of a benchmark is of: `wn` of `wn, learning`."""
    return entry.split(", ")[0]


def step_works(bench: dict[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """What an experiment's training steps need and achieve, by contender; none where that was not measured."""
    return bench[experiment].get("work", {}) if experiment in bench else {}


def step_ratios(bench: dict[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """An experiment's ratios of step times, by name; none where it was not timed."""
    return bench[experiment]["ratios"] if experiment in bench else {}

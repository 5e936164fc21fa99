"""Reads the runs of a scale, results/<scale>/<experiment>/<variant>/seed-<n>/, and results/bench/.

A run still under way, or one that was killed, is read as far as it got; a file that makes no sense is the
user's to mend, and the error names it. The files may be anyone's: what is accepted here is of the right kind, finite
where a figure needs that, and no larger than the report can show; a text of run.json or of a benchmark is one line.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from wnrepro.errors import UserError
from wnrepro.rundir import read_text, sealed
from wnrepro.settings import (
    FIGURE_LR,
    GAMES,
    PARAMS,
    PRECISIONS,
    SCALE_NAMES,
    SETTINGS,
    config_hash,
    printable,
    scale_changes,
)
from wnrepro.settings import check as check_setting

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
TABLES = ("metrics", "layers", "init", "noise", "kl_steps", "games")
# Far more than the paper's longest runs have, and no more than a report is written of in tens of seconds.
MOST_RUNS, MOST_BENCHES = 1000, 50  # of a scale
MOST_JSON, MOST_CSV = 2**22, 2**24  # letters
MOST_COLUMNS, MOST_ROWS, MOST_EPOCHS, MOST_LAYERS, MOST_STEPS = 100, 10**6, 10_000, 1000, 10_000
MOST_LAYERS_SHOWN = 100  # at the axis of a figure
MOST_PROBLEMS = 100
MOST_SETTINGS = 200
SMALLEST_RATE = 1e-30
DEEPEST, LONGEST_NAME, LONGEST_TEXT = 8, 100, 2000  # of JSON
LARGEST, LARGEST_WHOLE = 1e40, 2**53  # numbers: float32 ends at 3.4e38
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
    sealed: bool  # whether run.json is as it was written

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

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the scale's, besides those that are `FREE`."""
        defaults = scale_defaults(self.experiment, self.config["scale"], self.dataset, self.param)
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
        return run.lr == scale_defaults(run.experiment, self.scale, run.dataset, run.param)["lr"]


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
    defaults = {entry.name: entry.default for entry in dataclasses.fields(SETTINGS[experiment])}
    defaults |= scale_changes(experiment, scale, dataset, param)
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
            f"first, for example `wnrepro cifar --param wn --scale {scale}`, or name the folder with --results."
        )
    runs = sorted((_run(results / scale, folder) for folder in folders), key=_order)
    return Results(results, scale, tuple(runs), _bench(results))


def check(results: Path, scale: str) -> list[str]:
    """The problems of runs whose files do not fit together, one sentence each. UserError as `load`."""
    return problems(load(results, scale))


def problems(results: Results) -> list[str]:
    """Those of `check`, the first so many."""
    found = [problem for run in results.runs for problem in _problems(run)]
    more = len(found) - MOST_PROBLEMS
    return found if more <= 0 else [*found[:MOST_PROBLEMS], f"And {more} more of the kind."]


def _problems(run: Run) -> Iterator[str]:
    digest = config_hash(*(run.config[key] for key in ("experiment", "scale", "settings")))
    if run.config["hash"] != digest:
        yield f"{run.name}: config.json's hash is {printable(run.config['hash'], 100)}, its settings have {digest}."
    if not run.sealed:
        yield f"{run.name}: run.json is not as it was written."
    if run.record.get("config_hash", run.config["hash"]) != run.config["hash"]:
        yield (
            f"{run.name}: run.json was written for the settings {run.record['config_hash']}, config.json "
            f"holds {printable(run.config['hash'], 100)}."
        )
    if run.done or run.diverged:
        # Runs of earlier versions have the checksum of metrics.csv alone.
        wanted = {"metrics.csv": run.record.get("metrics_sha256")} | (run.record.get("tables_sha256") or {})
        for name in (f"{table}.csv" for table in TABLES if f"{table}.csv" in wanted):
            with contextlib.suppress(FileNotFoundError):
                if wanted[name] == hashlib.sha256(read_text(run.path / name).encode()).hexdigest():
                    continue
            yield f"{run.name}: {name} is not the one that run.json has the sha256 of."
    behind = 1 if run.record["status"] == "running" else 0  # killed between the two files
    if abs(run.epoch - run.record["epoch"]) > behind:
        yield f"{run.name}: metrics.csv has {run.epoch} epochs, run.json {run.record['epoch']}."
    if run.done and run.epoch != run.epochs:
        yield f"{run.name}: done, with {run.epoch} of {run.epochs} epochs."
    if run.experiment == "dqn":
        games = run.games["epoch"].value_counts().to_dict()
        for epoch, episodes in zip(run.metrics["epoch"], run.metrics["episodes"], strict=True):
            rows = games.get(epoch, 0)
            if rows != episodes and epoch <= run.epoch - behind:
                yield f"{run.name}: games.csv has {rows} games of epoch {epoch}, metrics.csv {episodes:g}."


def _order(run: Run) -> tuple[int, int, float, str, int]:
    model = list(METRICS).index((run.experiment, run.dataset))
    return model, PARAMS.index(run.param), run.lr, run.variant, run.seed


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


def _malformed(path: Path, what: str) -> UserError:
    return UserError(
        f"{printable(str(path))} is malformed ({printable(what, 200)}): restore it from version control, or move its "
        "folder out of the results."
    )


def _text(path: Path, most: int) -> str:
    """Raises FileNotFoundError."""
    text = read_text(path)
    if len(text) > most:
        raise _malformed(path, f"more than {most >> 20} MiB")
    return text


def _json(path: Path) -> dict[str, Any]:
    """A JSON object as it is; what it holds is neither nested deeply nor a number beyond all bounds."""
    try:
        value = json.loads(_text(path, MOST_JSON))
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could not be written out again
        _clean(value)
    except FileNotFoundError as error:
        raise _malformed(path, "a link to nowhere") from error
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _malformed(path, "no JSON object")
    return value


def _clean(value: Any, depth: int = DEEPEST) -> Any:
    """A copy of what JSON holds, its texts printable and cut. Raises ValueError for what no run writes."""
    if isinstance(value, dict | list) and not depth:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {printable(name, LONGEST_NAME): _clean(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one, depth - 1) for one in value]
    if isinstance(value, int | float) and not _bounded(value):
        raise ValueError("a number beyond all bounds")
    return printable(value, LONGEST_TEXT) if isinstance(value, str) else value


def _bounded(value: float) -> bool:
    """Whether a number is within the bounds of its kind; infinity and nan are no numbers."""
    if isinstance(value, int):
        return abs(value) <= LARGEST_WHOLE
    return not LARGEST < abs(value) < math.inf


def _expect(path: Path, value: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    for name, kind in types.items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            raise _malformed(path, f"`{name}` is missing or of the wrong kind")


def _expect_none_or(path: Path, value: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    _expect(path, value, **{name: kind for name, kind in types.items() if value.get(name) is not None})


def _expect_finite(path: Path, value: dict[str, Any], *names: str) -> None:
    """Numbers that are not below 0."""
    _expect(path, value, **dict.fromkeys(names, (int, float)))
    for name in names:
        if not 0 <= value[name] < math.inf:
            raise _malformed(path, f"`{name}` is no number from 0 on")


def _table(path: Path, columns: tuple[str, ...], most: int = MOST_ROWS) -> pd.DataFrame:
    """A CSV of numbers, but for `layer`; empty if there is no file. A last line cut short is left out."""
    try:
        text = _text(path, MOST_CSV)
    except FileNotFoundError:
        text = ""
    try:
        lines = csv.reader(text[: text.rfind("\n") + 1].splitlines())
        header = next(lines, list(columns))
        if len(header) > MOST_COLUMNS:
            raise ValueError(f"more than {MOST_COLUMNS} columns")
        if wrong := [name for name in columns if header.count(name) != 1]:
            raise ValueError(f"not one column {wrong[0]}")
        places = [header.index(name) for name in columns]
        rows: list[list[str]] = []
        for line, row in enumerate(lines, start=2):
            if len(row) != len(header):
                raise ValueError(f"line {line} has not the header's {len(header)} fields")
            if len(rows) == most:
                raise ValueError(f"more than {most} rows")
            rows.append([row[place] for place in places])
        table = pd.DataFrame(rows, columns=list(columns))
        for name in columns:
            if name == "layer":
                _layer_names(list(table[name].unique()))
            else:
                whole = name in ("epoch", "time_step", "game")
                table[name] = table[name].astype(int if whole else float)
                size = table[name].abs()
                if ((size > (LARGEST_WHOLE if whole else LARGEST)) & (size < math.inf)).any():
                    raise ValueError(f"{name}: a number beyond all bounds")
    except (ValueError, OverflowError, csv.Error) as error:
        raise _malformed(path, str(error)) from error
    return table


def _layer_names(names: Sequence[str]) -> None:
    """Raises ValueError unless they can stand at a figure's axis."""
    if len(names) > MOST_LAYERS:
        raise ValueError(f"more than {MOST_LAYERS} layers")
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"no layer's name: {name[:LONGEST_NAME]!r}")


def _run(top: Path, folder: Path) -> Run:
    if not str(folder.relative_to(top)).isprintable():
        raise UserError(f"{printable(str(folder))}: no run has such a name; move it out of the results.")
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
    _check_settings(path, experiment, settings)
    place = (top.name, folder.parts[-3], folder.parts[-1])
    if place != (config["scale"], experiment, f"seed-{settings['seed']}"):
        raise _malformed(path, "it belongs to another scale, experiment or seed than its folder")

    record, is_sealed = _record(folder / "run.json")
    return Run(
        folder,
        folder.relative_to(top).as_posix(),
        config,
        record,
        _metrics(folder / "metrics.csv", METRICS[experiment, dataset]),
        _layers(folder / "layers.csv"),
        _by_layer(folder / "init.csv", INIT),
        _noise(folder / "noise.csv"),
        _kl_steps(folder / "kl_steps.csv", settings.get("time_steps", 1)),
        _table(folder / "games.csv", GAME_SCORES),
        is_sealed,
    )


def _check_settings(path: Path, experiment: str, settings: dict[str, Any]) -> None:
    """Raise UserError for a setting that this version has and whose value it would refuse, or a monstrous other one."""
    fields = {entry.name: entry for entry in dataclasses.fields(SETTINGS[experiment])}
    if len(settings) > MOST_SETTINGS:
        raise _malformed(path, f"more than {MOST_SETTINGS} settings")
    for name, value in settings.items():
        if name in fields:
            try:
                check_setting(fields[name], tuple(value) if isinstance(value, list) else value)
            except UserError as error:
                raise _malformed(path, str(error)) from error
        else:
            several = value if isinstance(value, list) else [value]
            if _clean({name: value}) != {name: value} or any(isinstance(one, dict | list) for one in several):
                raise _malformed(path, f"no setting: {name}")
    if not SMALLEST_RATE <= settings["lr"] <= 1 / SMALLEST_RATE:
        raise _malformed(path, f"no learning rate: {settings['lr']}")


def _record(path: Path) -> tuple[dict[str, Any], bool]:
    """run.json, cleaned, and whether it is as it was written; of a run that has none yet: what it would say."""
    if not os.path.lexists(path):
        return {"status": "running", "epoch": 0}, True
    raw = _json(path)
    record = _clean(raw)
    _expect(path, record, status=str, epoch=int)
    if record["status"] not in STATUSES:
        raise _malformed(path, f"no status: {record['status']}")
    for name in ("facts", "git", "versions", "tables_sha256"):
        if not isinstance(record.get(name) or {}, dict):
            raise _malformed(path, f"`{name}` is no object")
    texts = dict.fromkeys(("message", "device", "device_name", "config_hash", "metrics_sha256"), str)
    _expect_none_or(path, record, resumed=list, **texts)
    facts = record.get("facts") or {}
    for values, name in ((record, "seconds"), (record, "peak_memory_bytes"), (facts, "importance_samples")):
        if values.get(name) is not None:
            _expect_finite(path, values, name)
    return record, sealed(raw)


def _metrics(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    metrics = _table(path, columns, MOST_EPOCHS)
    if list(metrics["epoch"]) != list(range(1, len(metrics) + 1)):
        raise _malformed(path, "its epochs are not 1, 2, 3, …")
    errors = metrics.filter(items=["train_error", "test_error"])
    if ((errors < 0) | (errors > 1)).any(axis=None):
        raise _malformed(path, "an error is no fraction from 0 to 1")
    counts = metrics.filter(items=["agent_steps", "episodes"])
    if not ((counts >= 0) & (counts <= LARGEST_WHOLE)).all(axis=None):
        raise _malformed(path, "a number of agent steps or episodes is none")
    return metrics


def _by_layer(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table with every layer once an epoch."""
    table = _table(path, columns, MOST_EPOCHS)
    if table.duplicated(["epoch", "layer"]).any():
        raise _malformed(path, "a layer stands twice in an epoch")
    return table


def _noise(path: Path) -> pd.DataFrame:
    table = _by_layer(path, NOISE)
    low, middle, high = (table[f"excess_kurtosis_{name}"] for name in ("q25", "median", "q75"))
    if (low > middle).any() or (middle > high).any():
        raise _malformed(path, "a median lies outside its quartiles")
    if not ((table["minibatches"] >= 1) & (table["minibatches"] <= LARGEST_WHOLE)).all():
        raise _malformed(path, "a number of minibatches is none")
    if table["layer"].nunique() > MOST_LAYERS_SHOWN:
        raise _malformed(path, f"more than {MOST_LAYERS_SHOWN} layers")
    return table


def _layers(path: Path) -> pd.DataFrame:
    """layers.csv up to its last whole epoch."""
    table = _table(path, LAYERS)
    sizes = table.groupby("epoch").size()
    count = sizes.get(0, 0)
    whole = table[table["epoch"].map(sizes) == count] if len(sizes) else table
    last_may_lack = sizes[:-1] == count  # of all others
    if (
        list(sizes.index) != list(range(len(sizes)))
        or len(sizes) > MOST_EPOCHS
        or table.duplicated(["epoch", "layer"]).any()
        or not last_may_lack.all()
        or (len(sizes) and sizes.iloc[-1] > count)
        or whole["layer"].nunique() != count
    ):
        raise _malformed(path, "its epochs are not 0, 1, 2, … with every layer once")
    return whole


def _kl_steps(path: Path, time_steps: int) -> pd.DataFrame:
    """kl_steps.csv up to its last whole epoch."""
    table = _table(path, KL_STEPS)
    if time_steps > MOST_STEPS and len(table):
        raise _malformed(path, f"more than {MOST_STEPS} time steps")
    expected = [(1 + row // time_steps, 1 + row % time_steps) for row in range(len(table))]
    if list(zip(table["epoch"], table["time_step"], strict=True)) != expected:
        raise _malformed(path, f"its rows are not the time steps 1 to {time_steps} of the epochs 1, 2, 3, …")
    return table[: len(table) // time_steps * time_steps]


def _bench(results: Path) -> dict[str, dict[str, Any]]:
    """The files of results/bench that have ratios of an experiment's step times."""
    paths = sorted(itertools.islice((results / "bench").glob("*.json"), MOST_BENCHES + 1))
    if len(paths) > MOST_BENCHES:
        raise UserError(f"{results / 'bench'} holds more than {MOST_BENCHES} benchmarks: move some of them elsewhere.")
    return {path.stem: bench for path in paths if (bench := _one_bench(path))}


def _one_bench(path: Path) -> dict[str, Any] | None:
    """A file of results/bench; None where it has no ratios of an experiment's step times."""
    bench: dict[str, Any] = _clean(_json(path))
    experiments = [name for name in SETTINGS if name in bench]
    for experiment in experiments:
        _expect(path, bench, **{"device_name": str, experiment: dict})
        _expect(path, bench[experiment], ratios=dict)
        _expect_none_or(path, bench[experiment], work=dict)
        for name, ratio in bench[experiment]["ratios"].items():
            if not isinstance(ratio, dict):
                raise _malformed(path, f"the ratio `{name}` is no object")
            _expect_finite(path, ratio, "median", "low", "high")
            _expect(path, ratio, n=int)
            if not ratio["low"] <= ratio["median"] <= ratio["high"]:
                raise _malformed(path, f"the median of `{name}` lies outside its interval")
        for name, work in (bench[experiment].get("work") or {}).items():
            if not isinstance(work, dict):
                raise _malformed(path, f"the work of `{name}` is no object")
            _expect_finite(path, work, *WORK)
            _expect(path, bench[experiment], memory=dict)
            _expect(path, bench[experiment]["memory"], **{whose(name): int})
    return bench if experiments else None


def whose(entry: str) -> str:
    """The contender that a figure of a benchmark is of: `wn` of `wn, learning`."""
    return entry.split(", ")[0]


def step_works(bench: dict[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """What an experiment's training steps need and achieve, by contender; none where that was not measured."""
    return bench[experiment].get("work") or {} if experiment in bench else {}


def step_ratios(bench: dict[str, Any], experiment: str) -> dict[str, dict[str, Any]]:
    """An experiment's ratios of step times, by name; none where it was not timed."""
    return bench[experiment]["ratios"] if experiment in bench else {}

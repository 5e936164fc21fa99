"""What several test modules share: tiny data and settings, and made-up runs and benchmarks."""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import heapq
import itertools
import json
import math
import random
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from markdown_it import MarkdownIt
from PIL import Image

from wnrepro import cli, paper
from wnrepro.data import files
from wnrepro.data.images import Images, Pixels
from wnrepro.events import Epoch, Note
from wnrepro.reproduce.engines import Engine
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.work import Event, Job
from wnrepro.results import load, scale_defaults
from wnrepro.runs.directory import RunDirectory, variant
from wnrepro.runs.run import Run
from wnrepro.settings import GAMES, PARAMS, SETTINGS, Settings, config_hash, scale_settings

if TYPE_CHECKING:
    from wnrepro.report.claims.claim import Finding
    from wnrepro.report.serve import Server
Hold = Callable[[RunDirectory], "subprocess.Popen[bytes]"]  # the types of fixtures of conftest.py
Times = Callable[[int, int], int]
Count = Callable[[str], None]
# Text that must show as text, as HTML, Markdown and LaTeX.
HOSTILE = (
    """<script>window.pwned=1</script> "><img src=x onerror="window.pwned=2"> </td></table><b>&amp;</b> """
    """{{ 7 * 7 }} {% raw %} **bold** `code` [link](javascript:window.pwned=3) | ]]> $\\frac$ <!-- """
)
# What GitHub would make a link or an image of, too; no space at its end, and a name of a folder once it has no slash.
ADDRESSES = (
    """![i](http://evil.example/i.png) [l](//evil.example) [r][r] <http://evil.example> http://evil.example """
    """www.evil.example a@evil.example <a href=javascript:window.pwned=4>x</a> <javascript:alert(1)> &lt;img&gt; _e_"""
)
ESCAPES = "\x1b[31mred\x1b]0;title\x07 \x00 \u202eturned \u2028 two\nlines"
SHOWN = r"\x1b[31mred\x1b]0;title\x07 \x00 \u202eturned   two lines"  # ESCAPES, as text

LAYERS = [f"conv{i}" for i in range(1, 10)] + ["dense"]
SPEED = {"normal": 0.16, "bn": 0.42, "wn": 0.36, "wn+mobn": 0.38}
COMMIT = {"commit": "0123456789abcdef" * 2 + "01234567", "dirty": False}
# Columns of noise.csv: the excess kurtosis of a minibatch's statistics, and the size of the noise.
NOISE = {
    "bn": {"kurtosis_mean": -0.1, "kurtosis_std": 0.9, "kurtosis_inverse_std": 1.5, "noise_size": 0.3},
    "wn+mobn": {"kurtosis_mean": -0.1, "kurtosis_std": math.nan, "kurtosis_inverse_std": math.nan, "noise_size": 0.2},
}
# The entries of config.json of parameterizations that are not the paper's; another name has none.
OTHERS: dict[str, dict[str, Any]] = {
    "CentredWN-3fa9c1d2": {"class": "CentredWN", "label": "centred weight norm.", "lr": 0.001},
    "Scaled-0123abcd": {"class": "Scaled", "label": "scaled", "lr": None},
}
for _name, _entry in OTHERS.items():
    _entry["sha256"] = 8 * _name[-8:]


# ------------------------------------------------------------------------------- tiny data and settings


def parse_command(line: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of a command line's commands, and what its options and arguments were parsed to."""
    first, *words = shlex.split(line)
    assert first == "wnrepro"
    found, context, names = typer.main.get_command(cli.app), None, ()
    while hasattr(found, "commands"):
        context = found.make_context(found.name, words, parent=context)
        name, found, words = found.resolve_command(context, words)
        names = (*names, name)
    return names, found.make_context(names[-1], words, parent=context).params


def make_images() -> Images:
    """200 training and 100 test images of noise around a colour that tells their class."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, 32, 32, generator=draw)
    y = torch.randint(10, (300,), generator=draw)
    x += torch.randn(10, 3, 1, 1, generator=draw)[y]
    return Images(x[:200], y[:200], x[200:], y[200:], "random images")


def make_pixels(dataset: str) -> Pixels:
    """200 training and 100 test images for the auto-encoders: smooth blobs, binary or in colour."""
    shape = (1, 7, 7) if dataset == "mnist" else (3, 8, 8)
    grey = torch.rand(300, *shape, generator=torch.Generator().manual_seed(0))
    grey = torch.nn.functional.interpolate(grey, scale_factor=4, mode="bilinear")
    x = (grey > 0.6 if dataset == "mnist" else 255 * grey).to(torch.uint8)
    return Pixels(x[:200], x[200:], f"random blobs for {dataset}")


FEW: dict[str, Any] = {"epochs": 4, "train_examples": 200, "test_examples": 100, "batch_size": 20}
CVAE = FEW | {"init_examples": 60, "latents": 3, "iaf_width": 6}
TINY: dict[str, dict[str, Any]] = {
    "cifar": FEW | {"width": 4, "init_examples": 100, "noise_epochs": (2,), "noise_minibatches": 5, "decay_from": 2},
    "cvae mnist": CVAE | {"dataset": "mnist", "maps": (2, 4, 4), "depths": (1, 1, 1), "hidden": 12},
    "cvae cifar10": CVAE | {"dataset": "cifar10", "maps": (6,)},
    "draw": FEW | {"time_steps": 3, "units": 8, "latents": 3},
    "dqn": {"game": "breakout", "epochs": 2, "epoch_steps": 120, "test_steps": 20, "test_games": 2, "batch_size": 8}
    | {"replay_steps": 400, "replay_start": 100, "target_every": 10, "epsilon_steps": 100, "epsilon_test": 0.5}
    | {"maps": (2, 4, 4), "hidden": 16, "held_out": 20, "init_examples": 40},
}


def tiny_settings(model: str, param: str = "wn", **changes: object) -> Any:
    """Settings of an experiment whose epochs take a moment. model: `cifar`, `cvae mnist`, …"""
    return scale_settings(model.split()[0], "quick", param, **(TINY[model] | changes))


tiny_cifar, tiny_draw, tiny_dqn = (functools.partial(tiny_settings, model) for model in ("cifar", "draw", "dqn"))


def tiny_cvae(param: str = "wn", dataset: str = "mnist", **changes: object) -> Any:
    return tiny_settings(f"cvae {dataset}", param, **changes)


def tiny_run(
    model: str, param: str = "wn", device: str = "cpu", **changes: Any
) -> tuple[str, Settings, Callable[[], Any]]:
    """The name of an experiment, its tiny settings, and its constructor."""
    from wnrepro.experiments import experiment_class

    experiment, _, dataset = model.partition(" ")
    settings = tiny_settings(model, param, **changes)
    data = [] if experiment == "dqn" else [make_images() if experiment == "cifar" else make_pixels(dataset or "mnist")]
    return experiment, settings, lambda: experiment_class(experiment)(settings, *data, torch.device(device))


class Walk:
    """An experiment without a model: a random walk that uses every global generator, and may diverge."""

    device = torch.device("cpu")
    within, saves_within_epochs = None, False
    log_steps: int | None = None

    def __init__(self, epochs: int = 4, diverges: int = 0) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.epochs, self.diverges, self.epoch, self.place = epochs, diverges, 0, 0.0
        self.facts: dict[str, Any] = {"steps": 0}

    def train(self) -> Iterator[Epoch | Note]:
        yield Note(f"from {self.epoch}")
        while self.epoch < self.epochs:
            self.epoch += 1
            self.place += torch.randn(()).item() + random.gauss(0, 1) + np.random.randn()  # which keep one for later
            rows = [{"epoch": self.epoch, "half": half, "place": self.place / half} for half in (1, 2)]
            if self.epoch == 1:  # the state before training, as in layers.csv
                rows.insert(0, {"epoch": 0, "half": 1, "place": 0.0})
            diverged = "walked away" if self.epoch == self.diverges else ""
            metrics = {"epoch": self.epoch, "seconds": 0.1, "place": self.place}
            yield Epoch(self.epoch, metrics, {"halves": rows}, diverged)
            if diverged:
                return

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.place = state["epoch"], state["place"]


def walk_run(results: Path, seed: int = 1, epochs: int = 4) -> Run:
    """A run for a `Walk`, under the name of an auto-encoder's."""
    return Run(results, "cvae", "quick", tiny_cvae(epochs=epochs, seed=seed))


def stop_walk(run: Run, after: int, epochs: int = 4) -> Run:
    """The run of a `Walk`, killed after this number of epochs."""

    class Kill(BaseException):
        pass

    def show(event: object) -> None:
        if getattr(event, "epoch", 0) == after:
            raise Kill

    with run, pytest.raises(Kill):
        run.execute(lambda: Walk(epochs), show)
    return run


def without_seconds(path: Path) -> list[dict[str, str]]:
    """The rows of a table without the column `seconds`."""
    return [row | {"seconds": ""} for row in csv.DictReader(path.read_text().splitlines())]


def same_tables(found: Path, expected: Path) -> None:
    """Check that a run's tables are those of another, but for the column `seconds`."""
    tables = {path.name for path in expected.glob("*.csv")}
    assert {path.name for path in found.glob("*.csv")} == tables >= {"metrics.csv", "layers.csv"}
    assert all(without_seconds(found / name) == without_seconds(expected / name) for name in tables)


@contextlib.contextmanager
def running(results: Path, told: list[str]) -> Iterator["Server"]:
    """The server of a folder's page of scale short."""
    from wnrepro.report import live_page
    from wnrepro.report.serve import Server

    server = Server(results, "short", lambda version: live_page(version, results, "short"), warn=told.append)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def train_on(results: Path) -> None:
    """One more epoch of `make_run(results, status="running", logged=2)`."""
    newer = make_run(results / "newer", status="running", logged=3)
    for name in ("metrics.csv", "layers.csv", "run.json"):
        (newer / name).replace(results / "short" / "cifar" / "wn_lr0.003" / "seed-1" / name)


def small_data(monkeypatch: pytest.MonkeyPatch, dataset: str, root: Path | None = None) -> dict[str, bytes]:
    """Small files of a data set by path, written under root; their checksums replace the official ones.

    MNIST's images are 0, 255 and 64 throughout, in thirds; binarized MNIST's are noise, CIFAR-10's are no images.
    """
    contents: dict[str, bytes] = {}
    rng = np.random.default_rng(1)
    if dataset == "cifar10":
        contents = {path: path.encode() for path in files.DATASETS["cifar10"]}
    elif dataset == "binarized_mnist":
        for part, count in {"train": 5, "valid": 3, "test": 4}.items():
            lines = [" ".join(map(str, row)) + "\n" for row in rng.integers(2, size=(count, 784))]
            contents[f"binarized_mnist/binarized_mnist_{part}.amat"] = "".join(lines).encode()
    else:
        for half, count in {"train": 6, "t10k": 3}.items():
            images, labels = (f"MNIST/raw/{half}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
            grey = np.array([0, 255, 64], np.uint8).repeat(count // 3 * 28 * 28).tobytes()
            contents[images] = np.array((0x0803, count, 28, 28), ">u4").tobytes() + grey
            contents[labels] = np.array((0x0801, count), ">u4").tobytes() + bytes(count)
    checksums = {path: f"sha256:{hashlib.sha256(content).hexdigest()}" for path, content in contents.items()}
    monkeypatch.setitem(files.DATASETS, dataset, checksums)
    for path, content in contents.items() if root else ():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return contents


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------- the benchmark


def timed_small(experiment: str) -> Settings:
    """Settings of a benchmark whose steps take milliseconds."""
    dqn: dict[str, Any] = {"game": "breakout", "replay_start": 100, "replay_steps": 100, "test_games": 1}
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "cifar": ("paper", {"width": 4, "batch_size": 20, "init_examples": 100}),
        "cvae": ("quick", {"batch_size": 20, "init_examples": 100}),
        "draw": ("quick", {"batch_size": 10, "time_steps": 3, "units": 8, "latents": 3}),
        "dqn": ("quick", dqn | {"epsilon_test": 1.0, "epsilon_steps": 1}),
    }
    scale, changes = settings[experiment]
    return scale_settings(experiment, scale, "wn", **changes)


class InProcess:
    """A contender of the benchmark without its process."""

    def __init__(self, prepare: Any, settings: Settings, device: torch.device, threads: int) -> None:
        self.settings, self.device, self.memory_bytes = settings, device, 10**9
        self.steps, self.facts = prepare(settings, device)
        self.parts = list(self.steps)
        self.process = MagicMock()

    def wait(self, seconds: float | None = None) -> bool:
        return True

    def ask(self, part: str, at_least: float = 0.0, threads: int | None = None) -> None:
        began = time.perf_counter()
        self.steps[part]()
        self.seconds = time.perf_counter() - began

    def answer(self) -> float:
        return self.seconds

    def end(self) -> None:
        pass

    def leave(self, *_: object) -> None:
        pass


# ------------------------------------------------------------------------------- made-up runs


def set_scale_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale short as the made-up runs have it, whatever the real one is."""
    cifar = {"epochs": 8, "decay_from": 4, "noise_epochs": (1, 8), "noise_minibatches": 50}
    of_cifar10 = SETTINGS["cvae"].part_scales["cifar10"]
    monkeypatch.setitem(of_cifar10, "short", of_cifar10["paper"] | {"epochs": 6, "train_examples": 5000, "maps": (32,)})
    for experiment, short in {
        "cifar": cifar | {"train_examples": 5000, "test_examples": 2000},
        "cvae": {"epochs": 120},
        "draw": {"epochs": 10, "time_steps": 4},
        "dqn": {"epochs": 4, "epoch_steps": 1000},
    }.items():
        monkeypatch.setitem(SETTINGS[experiment].scales, "short", short)


def leave_unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, for print and for the page, but not turned into images: each is its own file and panel."""
    from wnrepro.report import canvas

    monkeypatch.setattr(canvas.Sheet, "files", lambda sheet: {"sheet": sheet, "pdf": b""})
    monkeypatch.setattr(canvas.Sheet, "panels", lambda sheet, prefix, caption: [sheet])
    monkeypatch.setattr(canvas, "key_svg", lambda key, prefix: "")


class MadeUp:
    """The directory of a made-up run, with its config.json; `tables` and `record` make the rest.

    how: `seed`, `scale`, `status`, `logged` epochs, `facts` and `record` to add to run.json, and settings that are not
    the scale's; those that this version does not have follow in the directory's name.
    """

    def __init__(self, results: Path, experiment: str, part: str | None, param: str, **how: Any) -> None:
        default = {"seed": 1, "scale": "short", "status": "done", "logged": None, "facts": None, "record": None}
        self.seed, scale, self.status, logged, self.facts, self.changes = (how.pop(n, v) for n, v in default.items())
        given = {name: value for name, value in how.items() if value is not None}
        self.settings = scale_defaults(experiment, scale, part, param) | {"param": param, "seed": self.seed, **given}
        self.config: dict[str, Any] = {"experiment": experiment, "scale": scale, "settings": self.settings}
        self.config |= {"parameterization": OTHERS[param]} if param in OTHERS else {}
        self.config["hash"] = config_hash(**self.config)
        cls: Any = SETTINGS[experiment]
        self.columns = cls.models[part].metrics
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()}
        further = plain.keys() - {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in plain.items() if name not in further}
        parts = [variant(experiment, scale, cls(**known)), *(f"{n}-{self.settings[n]}" for n in plain if n in further)]
        self.folder = results / scale / experiment / "_".join(parts) / f"seed-{self.seed}"
        self.folder.mkdir(parents=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        self.last: int = self.settings["epochs"]
        self.logged: int = self.last if logged is None else logged
        self.epochs = range(1, self.logged + 1)

    def table(self, name: str, columns: Iterable[str], rows: list[list[Any]]) -> None:
        with (self.folder / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    def tables(self, rows: list[list[Any]], lost: Iterable[object] = (), at: int = 2) -> None:
        """metrics.csv, whose last row has `lost` from a column on where the run diverged; layers.csv and init.csv."""
        for column, value in enumerate(lost if rows and self.status == "diverged" else (), at):
            rows[-1][column] = value
        self.table("metrics.csv", self.columns, rows)
        growth = 0.02 + 30 * self.settings["lr"]
        layers = [
            [epoch, name, norm, 0.9 * norm, 1.1 * norm, 1.0, 0.5, 1.5]
            for epoch in range(1 if self.config["experiment"] == "dqn" else self.logged + 1)
            for i, name in enumerate(LAYERS)
            for norm in [(1 + i / 10) * (1 + growth * (1 + i / 10) * math.sqrt(epoch))]
        ]
        columns = ("epoch", "layer", "v_norm_mean", "v_norm_min", "v_norm_max", "g_mean", "g_min", "g_max")
        self.table("layers.csv", columns, layers)
        if self.config["experiment"] != "draw":
            init = [[0, name, 1e-6, 0.9999, 1.0001] for name in LAYERS]
            self.table("init.csv", ("epoch", "layer", "mean_abs_max", "variance_min", "variance_max"), init)

    def end(self, **facts: Any) -> Path:
        """run.json, with these facts; the directory."""
        residuals = {"eq3_residual": 1e-16, "v_dot_grad_v": 2e-17, "wn_is_bn_residual": 1e-15}
        record = {"status": self.status, "message": "", "epoch": self.logged, "epochs": self.last, "resumed": []}
        record |= {"config_hash": self.config["hash"], "created": "2027-01-01T00:00:00Z", "device": "cpu"}
        record |= {"seconds": 101.5 * self.logged, "device_name": "AMD EPYC, 2 threads", "git": COMMIT}
        record |= {"facts": {"parameters": 1405546, **residuals, **facts, **(self.facts or {})}}
        record |= {"versions": {"torch": "2.13.0"}}
        record["metrics_sha256"] = hashlib.sha256((self.folder / "metrics.csv").read_bytes()).hexdigest()
        (self.folder / "run.json").write_text(json.dumps(record | (self.changes or {})))
        return self.folder


def make_run(
    results: Path, param: str = "wn", speed: float | None = None, test_error: float | None = None, **how: Any
) -> Path:
    """A run of the classifier: errors fall from 0.9 at `speed` an epoch. how: also `noise`, columns of noise.csv."""
    further = NOISE.get(param, {}) | how.pop("noise", {})
    made = MadeUp(results, "cifar", None, param, **({"lr": OTHERS.get(param, {}).get("lr")} | how))
    speed = (SPEED.get(param, 0.4) if speed is None else speed) * (1 + 0.01 * made.seed)
    rows: list[list[Any]] = []
    for epoch in made.epochs:
        error = max(0.9 * math.exp(-speed * epoch), 0.001 * (1 + 200 * speed / epoch))
        last = test_error if epoch == made.last and test_error is not None else min(0.9, error + 0.07)
        rows.append([epoch, 101.5, error, last, 2 * error, 2 * last, made.settings["lr"]])
    made.tables(rows, [0.9, 0.9, "nan", "inf"])
    if further:
        middle, slope, minibatches = 2.0 if param == "bn" else -0.1, param == "bn", made.settings["noise_minibatches"]
        rows = [
            [epoch, name, middle + 0.1 * i * slope, middle - 0.3, middle + 0.4 + 0.1 * i, minibatches]
            + [value + 0.01 * i for value in further.values()]
            for epoch in made.settings["noise_epochs"]
            if epoch <= made.logged
            for i, name in enumerate(LAYERS)
        ]
        columns = ("epoch", "layer", *(f"excess_kurtosis_{of}" for of in ("median", "q25", "q75")), "minibatches")
        made.table("noise.csv", [*columns, *further], rows)
    return made.end(init_loss=2.81 + 1e-6 * made.seed)


def make_vae(results: Path, param: str = "wn", dataset: str = "mnist", bound: float = -84.0, **how: Any) -> Path:
    """A run of a VAE: the bound rises from far below to `bound` at its last epoch; raw stays 1 nat below."""
    made = MadeUp(results, "cvae", dataset, param, **how)
    rows: list[list[Any]] = []
    for epoch in made.epochs:
        test = bound - 400 * (math.exp(-epoch) - math.exp(-made.last)) - 10 * (1 / epoch - 1 / made.last)
        rows.append([epoch, 7.5, test + 0.5, test, test - 1, 25.0, test + 25.0])
        rows[-1] += [-test / (3072 * math.log(2))] if dataset == "cifar10" else []
    made.tables(rows, ["nan", "-inf", "nan", "inf", "nan", "inf"][: len(made.columns) - 2])
    return made.end(data="binarized by Larochelle", init_loss=543.2 + 1e-5 * made.seed)


def make_draw(
    results: Path, param: str = "wn", bound: float = -80.0, speed: float = 1.0, kl: float = 8.0, **how: Any
) -> Path:
    """A run of DRAW: its bound after n epochs is `bound` − 120 / (speed · n), its KL at step t kl / t + n."""
    made = MadeUp(results, "draw", None, param, **how)
    bounds = {epoch: bound - 120 / (speed * epoch) for epoch in made.epochs}
    made.tables([[n, 60.5, test + 0.5, test, test + 20, 20.0, 3.5] for n, test in bounds.items()], 5 * ["nan"])
    steps = range(1, made.settings["time_steps"] + 1)
    kls = [[epoch, step, kl / step + epoch] for epoch in made.epochs for step in steps]
    made.table("kl_steps.csv", ("epoch", "time_step", "kl_nats"), kls)
    return made.end(data="binarized by Larochelle", start_bound_nats=-543.5)


def make_dqn(
    results: Path, param: str = "wn", game: str = "breakout", best: float = 50.0, episodes: int = 50, **how: Any
) -> Path:
    """A run of DQN: from 10 its test score rises to `best` in the last epoch but one, and ends halfway.

    The games of a test lie 7 above and below it by turns: the mean of 50 has a standard error of 1.
    """
    made = MadeUp(results, "dqn", game, param, **how)
    rows: list[list[Any]] = []
    scores, steps = [10.0], made.settings["epoch_steps"]
    for epoch in made.epochs:
        share = epoch / (made.last - 1) if epoch < made.last else 0.5
        scores.append(score := 10 + (best - 10) * share)
        rows.append([epoch, epoch * steps, epoch * steps // 4, 9.5, episodes, score, score + 7, share, 0.1, 0.5])
    made.tables(rows, ["inf", "nan"], at=7)
    every = [[n, game, score + 7 * (-1) ** game] for n, score in enumerate(scores) for game in range(1, episodes + 1)]
    made.table("games.csv", ("epoch", "game", "score"), every)
    return made.end(agent="sequential")


def make_bench(results: Path, bn: float = 1.08, wn: float = 1.0, name: str = "cpu", **how: str) -> None:
    """A file of a bench session. how: `torch`, `created` and `device`, by default another for each file."""
    medians = {"bn / normal": bn, "wn / normal": wn, "wn+mobn / normal": 1.03, "wn / plain wn": 0.7}
    ratios = {key: {"median": m, "low": m - 0.01, "high": m + 0.01, "n": 20} for key, m in medians.items()}
    about = {"created": how.get("created", "2027-01-01T00:00:00Z"), "git": COMMIT, "rounds": 20}
    about |= {"versions": {"torch": how.get("torch", "2.13.0")}}
    of_cvae = about | {"ratios": {"bn / normal": ratios["bn / normal"]}}
    bench = {"device_name": how.get("device", f"AMD EPYC ({name})"), "cifar": about | {"ratios": ratios}}
    (results / "bench").mkdir(parents=True, exist_ok=True)
    (results / "bench" / f"{name}.json").write_text(json.dumps(bench | {"cvae": of_cvae, "draw": of_cvae}))


def add_work(results: Path) -> Path:
    """What a step needs, and its ceilings, to the benchmarks of `make_bench`: of cifar and dqn alone."""
    path = results / "bench" / "cpu.json"
    bench = json.loads(path.read_text())
    work = {"flops": 239e9, "bytes": 2e9, "floor_seconds": 1.25, "distance": 1.6, "flops_share": 0.625}
    work |= {"bytes_share": 0.091, "flops_per_second": 1.2e11, "bytes_per_second": 1e9}
    bench["cifar"] |= {"work": {"wn": work, "plain wn": work | {"distance": 2.0}}}
    bench["cifar"] |= {"memory": {"wn": 1_540_000_000, "plain wn": 2_000_000_000}}
    bench["dqn"] = {"ratios": {}, "work": {"wn, learning": work}, "memory": {"wn": 500_000_000, "bn": 1}}
    path.write_text(json.dumps(bench))
    return path


OFFSETS = ((1, 0.0), (2, 0.1), (3, -0.1))  # of the results of three seeds


def make_all(results: Path, scale: str = "short", seeds: tuple[int, ...] = (1,)) -> None:
    """All four at figure 1's rates, a sweep of wn and normal, c = 3, a diverged run and a bench."""
    for seed in seeds:
        for param in PARAMS:
            error = paper.TABLE2[param] / 100 + 0.0005 * (seed - 2)
            make_run(results, param, seed=seed, scale=scale, test_error=error)
    for lr in (0.0003, 0.001, 0.01):
        make_run(results, "wn", lr=lr, scale=scale, speed=0.34)
    make_run(results, "normal", lr=0.001, scale=scale, speed=0.12)
    make_run(results, "normal", lr=0.003, scale=scale, status="diverged", logged=2)
    make_run(results, "normal", lr=0.01, scale=scale, status="diverged", logged=1)
    make_run(results, "wn", scale=scale, g_exp=3.0)
    make_bench(results)


def make_vaes(results: Path, scale: str = "short") -> None:
    """Both data sets, three seeds of wn and normal, one of bn and wn+mobn; one diverges, one is under way."""
    for dataset, middle in (("mnist", -84.0), ("cifar10", -9000.0)):
        for seed, offset in OFFSETS:
            make_vae(results, "wn", dataset, seed=seed, scale=scale, bound=middle + offset)
            make_vae(results, "normal", dataset, seed=seed, scale=scale, bound=middle - 2 + 12 * offset)
        make_vae(results, "bn", dataset, scale=scale, status="running", logged=3, bound=middle - 1)
        make_vae(results, "wn+mobn", dataset, scale=scale, status="diverged", logged=4, bound=middle - 3)


def make_draws(results: Path, scale: str = "short") -> None:
    """Three seeds of wn and normal, bn that fails to learn in two, a diverged wn+mobn."""
    for seed, offset in OFFSETS:
        make_draw(results, "wn", seed=seed, scale=scale, bound=-80 + offset, speed=1.25)
        make_draw(results, "normal", seed=seed, scale=scale, bound=-80 + offset)
    for seed in (1, 2):
        make_draw(results, "bn", seed=seed, scale=scale, bound=-200.0, kl=800.0)
    make_draw(results, "wn+mobn", scale=scale, status="diverged", logged=4)


def make_dqns(results: Path, games: tuple[str, ...] = GAMES, scale: str = "short") -> None:
    """Three seeds of wn and normal, wn 25 % better; bn under way, a diverged wn+mobn."""
    for game in games:
        for seed, offset in OFFSETS:
            make_dqn(results, "wn", game, seed=seed, scale=scale, best=50 + 10 * offset)
            make_dqn(results, "normal", game, seed=seed, scale=scale, best=40 + 10 * offset)
        make_dqn(results, "bn", game, scale=scale, status="running", logged=2, best=12)
        make_dqn(results, "wn+mobn", game, scale=scale, status="diverged", logged=3, best=1e6)


def make_everything(results: Path) -> None:
    """Runs of every experiment, with all that a report has words for: other starts, agents and parameterizations, runs
    that are published, diverged or under way, numbers that are not finite, and a benchmark with floors.
    """
    make_all(results, seeds=(1, 2))
    make_vaes(results)
    make_draws(results)
    make_draw(results, bound=-81.0, g_start=1.0)
    make_draw(results, epochs=3, seed=4, status="running", logged=2)
    make_dqns(results, ("breakout", "seaquest"))
    make_dqn(results, best=90.0, actors=8)
    makers: list[Callable[..., Path]] = [make_run, make_vae, make_draw, make_dqn]
    for make in makers:
        make(results, next(iter(OTHERS)), lr=0.001)
    lost = make_draw(results, "bn", seed=3, bound=-190.0)
    edit(lost / "metrics.csv", "10,60.5,-201.5,-202.0", "10,60.5,-201.5,nan")
    facts = {"log_likelihood_nats": -80.25, "importance_samples": 128}
    make_vae(results, seed=4, facts=facts, record={"device_name": "NVIDIA H200", "device": "cuda"})
    edit(results / "short/draw/normal_lr0.0003/seed-3/run.json", "2027-01-01", "2026-01-01")  # before the claim's rule
    for seed in (1, 2):
        make_run(results / "published", seed=seed, test_error=0.1)
        make_draw(results / "published", seed=seed, bound=-90.0)
        make_vae(results / "published", seed=seed, bound=-85.0)
        make_dqn(results / "published", seed=seed, best=40.0)
    make_draw(results / "published", "wn+mobn", bound=-70.0)  # nothing of ours to stand beside
    add_work(results)


def make_media(results: Path) -> None:
    """An image of every kind in the first run of each experiment that has it."""
    kinds = {"cvae": ["samples.png", "reconstructions.png"], "draw": ["drawing.gif"], "dqn": ["game.gif"]}
    for experiment, names in kinds.items():
        run = min((results / "short" / experiment).glob("*/seed-1"))
        for name in names:
            Image.new("L", (28, 28)).save(run / name)


def make_hostile(results: Path) -> None:
    """Runs whose files say `HOSTILE`, `ADDRESSES` and `ESCAPES` wherever they may hold a text."""
    record: dict[str, Any] = {"message": HOSTILE, "device_name": HOSTILE, "versions": {"torch": HOSTILE}}
    record |= {"git": {"commit": HOSTILE[:7], "dirty": True}}
    record |= {"config_hash": HOSTILE}  # does not fit: a problem, which the top of the page names
    facts: dict[str, Any] = {HOSTILE: 1.5, "data": HOSTILE, "note": HOSTILE}
    name = HOSTILE.replace("/", "")
    run = make_run(results, status="failed", logged=2, record=record, facts=facts, data=name)
    config = json.loads((run / "config.json").read_text())
    config["settings"] |= {HOSTILE[:80]: HOSTILE, "old": [HOSTILE, 1]}
    (run / "config.json").write_text(json.dumps(config | {"hash": ADDRESSES}))
    for param in ("bn", "wn+mobn"):
        about = {"message": ADDRESSES, "device_name": ADDRESSES, "device": ADDRESSES}
        edit(make_run(results, param, record=about) / "noise.csv", "conv1", "<b>[l](//x.y)</b>")
    escapes = {"message": ESCAPES, "device_name": ESCAPES, "config_hash": ESCAPES}
    make_run(results, "normal", record=escapes, data=ADDRESSES.replace("/", ""))
    for param, label in zip(OTHERS, ("<script>window.pwned=5</script>", "|`rm`$\\frac{\x1b[31m"), strict=True):
        edit(make_run(results, param) / "config.json", json.dumps(OTHERS[param]["label"]), json.dumps(label))
    make_vae(results, facts={"data": ADDRESSES, "importance_samples": 5, "log_likelihood_nats": -80.0})
    make_bench(results)
    path = results / "bench" / "cpu.json"
    bench = json.loads(path.read_text()) | {"device_name": HOSTILE}
    bench["cifar"]["ratios"][ADDRESSES] = bench["cifar"]["ratios"]["bn / normal"]
    path.write_text(json.dumps(bench))
    path.rename(path.with_name(f"{ADDRESSES.replace('/', '')}.json"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_column(path: Path, column: str, value: Any) -> None:
    """Replaces a column of a CSV table."""
    pd.read_csv(path).assign(**{column: value}).to_csv(path, index=False, na_rep="nan")


# ------------------------------------------------------------------------------- reports and claims

DIVERGED: dict[str, Any] = {"status": "diverged", "logged": 1}


def wobble(seed: int) -> float:
    """A number about 0 for every seed, always the same."""
    return float(np.random.default_rng(seed).normal())


def about(middle: float, spread: float, shift: int = 0) -> Callable[[int], float]:
    """A number about `middle` for every seed, always the same."""
    return lambda seed: middle + spread * wobble(seed + shift)


def make_seeds(results: Path, make: Callable[..., Any], seeds: Iterable[int], *sides: dict[str, Any]) -> None:
    """For every seed a made-up run of scale paper of each side; a value may be a function of the seed."""
    for seed in seeds:
        for side in sides:
            values = {name: value(seed) if callable(value) else value for name, value in side.items()}
            make(results, seed=seed, **({"scale": "paper"} | values))


def find(results: Path, claim: str, scale: str = "paper") -> "Finding":
    """The finding of a claim."""
    from wnrepro.report.claims import findings

    return findings(load(results, scale))[claim]


def report_text(results: Path, scale: str = "short") -> str:
    """report.md, newly written."""
    from wnrepro.report import write_report

    return write_report(results, scale)[0].read_text()


class Parsed(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown_by_github(source: str) -> Parsed:
    """Markdown as GitHub renders it: it allows HTML. No letter steers a terminal, nothing becomes a link by itself."""
    assert all(letter.isprintable() or letter == "\n" for letter in source)
    assert not re.search(r"://|(?<!\w)www\.|@(?!&NoBreak;)", source)
    return Parsed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(source))


# ------------------------------------------------------------------------------- the grid of runs


HERE = "A processor, 2 threads"


def quick_run(experiment: str = "cifar", param: str = "wn", **changes: Any) -> Planned:
    """A run of the grid at scale quick."""
    return Planned(experiment, "quick", scale_settings(experiment, "quick", param, **changes), ("C3",))


def tiny_grid() -> list[Planned]:
    """Runs of a few seconds; none of cifar, whose images take each process longer to whiten than all its epochs."""
    return [
        Planned("draw", "quick", tiny_draw("wn+mobn", epochs=30, lr=0.01)),
        Planned("cvae", "quick", tiny_cvae("wn", epochs=16, polyak_epochs=2.0)),
        Planned("dqn", "quick", tiny_dqn("wn", epochs=8, epoch_steps=60, checkpoint_replay=True)),
        Planned("cvae", "quick", tiny_cvae("bn", "cifar10", epochs=12, polyak_epochs=2.0)),
    ]


def put_run(results: Path, run: Planned, status: str = "done", epoch: int | None = None, **changes: Any) -> Path:
    """Make a run's config.json and run.json as a process leaves them; the directory."""
    there, epochs = run.directory(results), run.settings.epochs
    there.folder.mkdir(parents=True, exist_ok=True)
    record = {"status": status, "message": "", "epoch": epochs if epoch is None else epoch, "epochs": epochs}
    record |= {"device_name": HERE, "seconds": 60.0, "peak_memory_bytes": 10**9}
    record |= {"config_hash": there.config["hash"], "resumed": [], "facts": {}}
    (there.folder / "config.json").write_text(json.dumps(there.config))
    (there.folder / "run.json").write_text(json.dumps(record | changes))
    return there.folder


Lives = dict[str, list[list[float | str]]]


class FakeEngine(Engine):
    """An engine on a simulated clock, by name of its runs: their lives, and the seconds of each of their epochs.

    A life is a list of epochs reached and an outcome at its end; a run has another at every start.
    """

    stop_seconds = 2.0

    def __init__(
        self,
        results: Path,
        lives: Lives,
        jobs: int = 1,
        memory: int | None = None,
        seconds: Any = (),
        loading: float = 0,
        unsaved: Collection[int] = (),
    ) -> None:
        super().__init__(["cpu"], jobs, 1, memory_bytes=memory)
        self.results, self.lives, self.seconds, self.loading = results, lives, dict(seconds), loading
        self.unsaved = unsaved  # epochs that are not written to disk
        self.clock, self.stopped = 0.0, False
        self.living: dict[str, tuple[Job, list[float | str]]] = {}
        self.due: list[tuple[float, int, str]] = []
        self.turns = itertools.count()
        self.started: list[str] = []
        self.graphs: dict[str, list[bool]] = {}
        self.together: list[set[str]] = []
        self.saved: dict[str, list[float]] = {}  # when each checkpoint was written
        self.ended: dict[str, float] = {}

    def place(self, experiment: str) -> str | None:
        return "cpu" if len(self.living) < self.jobs else None

    def start(self, name: str, job: Job) -> None:
        assert name not in self.living
        self.living[name] = job, list(self.lives[name].pop(0))
        self.started.append(name)
        self.graphs.setdefault(name, []).append(job.graphs)
        self.together.append(set(self.living))
        self.later(name, self.loading)

    def later(self, name: str, seconds: float) -> None:
        heapq.heappush(self.due, (self.clock + seconds, next(self.turns), name))

    def event(self, timeout: float) -> tuple[str, Event] | None:
        if not self.due or self.due[0][0] > self.clock + timeout:
            self.clock += timeout
            return None
        self.clock, _, name = heapq.heappop(self.due)
        job, life = self.living[name]
        now = life.pop(0)
        if isinstance(now, str):
            del self.living[name]
            if now in ("done", "diverged"):
                put_run(self.results, job.run, now)
            return name, Event(job.run.settings.epochs, f"it is {now}", now)
        if now == int(now) and now and now not in self.unsaved:
            put_run(self.results, job.run, "running", epoch=int(now))
            self.saved.setdefault(name, []).append(self.clock)
        self.later(name, 0.0 if isinstance(life[0], str) else self.seconds.get(name, 0.0))
        return name, Event(now, f"epoch {now}")

    def pause(self, name: str) -> None:
        self.ended[name] = self.clock
        self.living[name] = self.living[name][0], ["lost"]
        self.due = [one for one in self.due if one[2] != name]
        self.later(name, 0.0)

    def end(self, *names: str) -> None:
        for name in names:
            del self.living[name]
            self.ended[name] = self.clock
            self.due = [one for one in self.due if one[2] != name]

    def stop(self, seconds: float = 0.0) -> None:
        self.stopped = True

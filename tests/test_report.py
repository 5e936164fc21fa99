"""The report on made-up runs: files, verdicts on what they hold, escaping, errors and tampering."""

import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.report import check, figures, scales_with_runs, write_report
from wnrepro.report.claims import FINDERS, findings
from wnrepro.report.figures import COLOURS, LINES
from wnrepro.report.load import METRICS, load, scale_defaults
from wnrepro.report.markdown import escape
from wnrepro.settings import DQN_LR, FIGURE_LR, GAMES, PARAMS, SCALES

LAYERS = [f"conv{i}" for i in range(1, 10)] + ["dense"]
SPEED = {"normal": 0.16, "bn": 0.42, "wn": 0.36, "wn+mobn": 0.38}
FINAL = {"normal": 8.43, "bn": 8.05, "wn": 8.46, "wn+mobn": 7.31}


def set_scale_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale short as these tests count on it, whatever the real one is."""
    short = {"epochs": 8, "decay_from": 4, "noise_epochs": (1, 8), "noise_minibatches": 50}
    monkeypatch.setitem(SCALES["cifar"], "short", short | {"train_examples": 5000, "test_examples": 2000})
    of_cifar10 = SCALES["cvae"]["paper"]["cifar10"] | {"epochs": 6, "train_examples": 5000, "maps": (32,)}
    monkeypatch.setitem(SCALES["cvae"], "short", {"mnist": {"epochs": 120}, "cifar10": of_cifar10})
    monkeypatch.setitem(SCALES["draw"], "short", {"epochs": 10, "time_steps": 4})
    monkeypatch.setitem(SCALES["dqn"], "short", {"epochs": 4, "epoch_steps": 1000})


@pytest.fixture(autouse=True)
def made_up_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    set_scale_short(monkeypatch)


def write_csv(path: Path, columns: str, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns.split(","), *rows])


def make_run(
    results: Path,
    param: str = "wn",
    lr: float | None = None,
    seed: int = 1,
    scale: str = "short",
    status: str = "done",
    logged: int | None = None,
    speed: float | None = None,
    test_error: float | None = None,
    facts: dict[str, float] | None = None,
    record: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A made-up run directory: errors fall from 0.9 at `speed` an epoch; `logged` epochs of it are there."""
    lr = FIGURE_LR[param] if lr is None else lr
    settings = {**scale_defaults("cifar", scale, None, param), "param": param, "lr": lr, "seed": seed, **changed}
    variant = "_".join([f"{param}_lr{lr}", *(f"{name}-{value}" for name, value in changed.items())])
    folder = results / scale / "cifar" / variant / f"seed-{seed}"
    config = make_config(folder, "cifar", scale, settings)
    epochs = settings["epochs"]
    logged = epochs if logged is None else logged
    speed = (SPEED[param] if speed is None else speed) * (1 + 0.01 * seed)
    rows: list[list[Any]] = []
    for epoch in range(1, logged + 1):
        error = max(0.9 * math.exp(-speed * epoch), 0.001 * (1 + 200 * speed / epoch))
        last = test_error if epoch == epochs and test_error is not None else min(0.9, error + 0.07)
        rows.append([epoch, 101.5, error, last, 2 * error, 2 * last, lr])
    if status == "diverged" and rows:
        rows[-1][2:6] = [0.9, 0.9, "nan", "inf"]
    write_csv(folder / "metrics.csv", "epoch,seconds,train_error,test_error,train_loss,test_loss,lr", rows)

    make_layers(folder, lr, logged)
    make_init(folder)
    if param in ("bn", "wn+mobn"):
        middle = {"bn": 2.0, "wn+mobn": -0.1}[param]
        noise = [
            [epoch, name, middle + 0.1 * i * (param == "bn"), middle - 0.3, middle + 0.4 + 0.1 * i, 50]
            for epoch in settings["noise_epochs"]
            if epoch <= logged
            for i, name in enumerate(LAYERS)
        ]
        columns = "epoch,layer,excess_kurtosis_median,excess_kurtosis_q25,excess_kurtosis_q75,minibatches"
        write_csv(folder / "noise.csv", columns, noise)
    facts = {"init_loss": 2.81 + 1e-6 * seed, **(facts or {})}
    make_record(folder, config, status, logged, facts, record)
    return folder


def make_vae(
    results: Path,
    param: str = "wn",
    dataset: str = "mnist",
    lr: float = 0.002,
    seed: int = 1,
    scale: str = "short",
    status: str = "done",
    logged: int | None = None,
    bound: float = -84.0,
    facts: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A made-up run of a VAE: the bound rises from far below to `bound` at its last epoch; raw stays 1 nat below."""
    settings = {**scale_defaults("cvae", scale, dataset, param), "param": param, "lr": lr, "seed": seed, **changed}
    variant = "_".join([dataset, f"{param}_lr{lr}", *(f"{name}-{value}" for name, value in changed.items())])
    folder = results / scale / "cvae" / variant / f"seed-{seed}"
    config = make_config(folder, "cvae", scale, settings)
    epochs = settings["epochs"]
    logged = epochs if logged is None else logged
    rows: list[list[Any]] = []
    for epoch in range(1, logged + 1):
        test = bound - 400 * (math.exp(-epoch) - math.exp(-epochs)) - 10 * (1 / epoch - 1 / epochs)
        rows.append([epoch, 7.5, test + 0.5, test, test - 1, 25.0, test + 25.0])
        if dataset == "cifar10":
            rows[-1].append(-test / (3072 * math.log(2)))
    if status == "diverged" and rows:
        rows[-1][2:] = ["nan", "-inf", "nan", "inf", "nan", "inf"][: len(rows[-1]) - 2]
    write_csv(folder / "metrics.csv", ",".join(METRICS["cvae", dataset]), rows)
    make_layers(folder, lr, logged)
    make_init(folder)
    facts = {"data": "binarized by Larochelle", "init_loss": 543.2 + 1e-5 * seed, **(facts or {})}
    make_record(folder, config, status, logged, facts, record)
    return folder


def make_draw(
    results: Path,
    param: str = "wn",
    lr: float = 0.0003,
    seed: int = 1,
    scale: str = "short",
    status: str = "done",
    logged: int | None = None,
    bound: float = -80.0,
    speed: float = 1.0,
    kl: float = 8.0,
    **changed: Any,
) -> Path:
    """A made-up run of DRAW: its bound after n epochs is `bound` − 120 / (speed · n), its KL at step t kl / t + n."""
    settings = {**scale_defaults("draw", scale, None, param), "param": param, "lr": lr, "seed": seed, **changed}
    variant = "_".join([f"{param}_lr{lr}", *(f"{name}-{value}" for name, value in changed.items())])
    folder = results / scale / "draw" / variant / f"seed-{seed}"
    config = make_config(folder, "draw", scale, settings)
    logged = settings["epochs"] if logged is None else logged
    rows: list[list[Any]] = []
    for epoch in range(1, logged + 1):
        test = bound - 120 / (speed * epoch)
        rows.append([epoch, 60.5, test + 0.5, test, test + 20, 20.0, 3.5])
    if status == "diverged" and rows:
        rows[-1][2:] = ["nan"] * 5
    write_csv(folder / "metrics.csv", ",".join(METRICS["draw", None]), rows)
    steps = range(1, settings["time_steps"] + 1)
    kls = [[epoch, step, kl / step + epoch] for epoch in range(1, logged + 1) for step in steps]
    write_csv(folder / "kl_steps.csv", "epoch,time_step,kl_nats", kls)
    make_layers(folder, lr, logged)
    facts = {"data": "binarized by Larochelle", "start_bound_nats": -543.5}
    make_record(folder, config, status, logged, facts, None)
    return folder


def make_dqn(
    results: Path,
    param: str = "wn",
    game: str = "breakout",
    lr: float | None = None,
    seed: int = 1,
    scale: str = "short",
    status: str = "done",
    logged: int | None = None,
    best: float = 50.0,
    chance: float = 10.0,
    episodes: int = 50,
    **changed: Any,
) -> Path:
    """A made-up run of DQN: from `chance` its test score rises to `best` in the last epoch but one, and ends halfway.

    The games of a test lie 7 above and below it by turns, those of random play about `chance`: 50 have a standard
    error of 1.
    """
    lr = DQN_LR[param] if lr is None else lr
    settings = {**scale_defaults("dqn", scale, game, param), "param": param, "lr": lr, "seed": seed, **changed}
    variant = "_".join([game, f"{param}_lr{lr}", *(f"{name}-{value}" for name, value in changed.items())])
    folder = results / scale / "dqn" / variant / f"seed-{seed}"
    config = make_config(folder, "dqn", scale, settings)
    epochs, steps = settings["epochs"], settings["epoch_steps"]
    logged = epochs if logged is None else logged
    rows: list[list[Any]] = []
    scores = [chance]
    for epoch in range(1, logged + 1):
        share = epoch / (epochs - 1) if epoch < epochs else 0.5
        scores.append(chance + (best - chance) * share)
        rows.append(
            [epoch, epoch * steps, epoch * steps // 4, 9.5, episodes, scores[-1], scores[-1] + 7, share, 0.1, 0.5]
        )
    if status == "diverged" and rows:
        rows[-1][7:9] = ["inf", "nan"]
    write_csv(folder / "metrics.csv", ",".join(METRICS["dqn", game]), rows)
    every = [[n, game, score + 7 * (-1) ** game] for n, score in enumerate(scores) for game in range(1, episodes + 1)]
    write_csv(folder / "games.csv", "epoch,game,score", every)
    make_layers(folder, lr, 0)
    make_init(folder)
    make_record(folder, config, status, logged, {"agent": "sequential"}, None)
    return folder


def make_config(folder: Path, experiment: str, scale: str, settings: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"experiment": experiment, "scale": scale, "settings": settings}
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    config["hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return config


def make_layers(folder: Path, lr: float, logged: int) -> None:
    growth = 0.02 + 30 * lr
    norms = [
        [epoch, name, norm, 0.9 * norm, 1.1 * norm, 1.0, 0.5, 1.5]
        for epoch in range(logged + 1)
        for i, name in enumerate(LAYERS)
        for norm in [(1 + i / 10) * (1 + growth * (1 + i / 10) * math.sqrt(epoch))]
    ]
    write_csv(
        folder / "layers.csv",
        "epoch,layer,v_norm_mean,v_norm_min,v_norm_max,g_mean,g_min,g_max",
        norms,
    )


def make_init(folder: Path) -> None:
    init = [[0, name, 1e-6, 0.9999, 1.0001] for name in LAYERS]
    write_csv(folder / "init.csv", "epoch,layer,mean_abs_max,variance_min,variance_max", init)


def make_record(
    folder: Path,
    config: dict[str, Any],
    status: str,
    logged: int,
    facts: dict[str, Any],
    record: dict[str, Any] | None,
) -> None:
    residuals = {"eq3_residual": 1e-16, "v_dot_grad_v": 2e-17, "wn_is_bn_residual": 1e-15}
    run = {
        "status": status,
        "message": "",
        "epoch": logged,
        "epochs": config["settings"]["epochs"],
        "config_hash": config["hash"],
        "seconds": 101.5 * logged,
        "device": "cpu",
        "device_name": "AMD EPYC, 2 threads",
        "git": {"commit": "0123456789abcdef" * 2 + "01234567", "dirty": False},
        "versions": {"torch": "2.13.0"},
        "facts": {"parameters": 1405546, **residuals, **facts},
        "resumed": [],
        "metrics_sha256": hashlib.sha256((folder / "metrics.csv").read_bytes()).hexdigest(),
        **(record or {}),
    }
    (folder / "run.json").write_text(json.dumps(run))


def make_bench(results: Path, bn: float = 1.08, wn: float = 1.0, name: str = "cpu") -> None:
    ratios = {
        f"{param} / normal": {"median": middle, "low": middle - 0.01, "high": middle + 0.01, "n": 20}
        for param, middle in (("bn", bn), ("wn", wn), ("wn+mobn", 1.03))
    }
    ratios["wn / plain wn"] = {"median": 0.7, "low": 0.69, "high": 0.71, "n": 20}
    (results / "bench").mkdir(parents=True, exist_ok=True)
    of_cifar, of_cvae = (
        {"rounds": 20, "ratios": ratios},
        {"rounds": 20, "ratios": {"bn / normal": ratios["bn / normal"]}},
    )
    bench = {"device_name": f"AMD EPYC ({name})", "cifar": of_cifar, "cvae": of_cvae, "draw": of_cvae}
    (results / "bench" / f"{name}.json").write_text(json.dumps(bench))


def make_all(results: Path, scale: str = "short", seeds: tuple[int, ...] = (1,)) -> None:
    """All four at figure 1's rates, a sweep of wn and normal, c = 3, a diverged run and a bench."""
    for seed in seeds:
        for param in PARAMS:
            error = FINAL[param] / 100 + 0.0005 * (seed - 2)
            make_run(results, param, seed=seed, scale=scale, test_error=error)
    for lr in (0.0003, 0.001, 0.01):
        make_run(results, "wn", lr=lr, scale=scale, speed=0.34)
    make_run(results, "normal", lr=0.001, scale=scale, speed=0.12)
    make_run(results, "normal", lr=0.003, scale=scale, status="diverged", logged=2)
    make_run(results, "normal", lr=0.01, scale=scale, status="diverged", logged=1)
    make_run(results, "wn", scale=scale, g_exp=3.0)
    make_bench(results)


def make_vaes(results: Path, scale: str = "short", datasets: tuple[str, ...] = ("mnist", "cifar10")) -> None:
    """Both data sets, three seeds of wn and normal, one of bn and wn+mobn; one diverges, one is under way."""
    for dataset in datasets:
        middle = -84.0 if dataset == "mnist" else -9000.0
        for seed, offset in ((1, 0.0), (2, 0.1), (3, -0.1)):
            make_vae(results, "wn", dataset, seed=seed, scale=scale, bound=middle + offset)
            make_vae(results, "normal", dataset, seed=seed, scale=scale, bound=middle - 2 + 12 * offset)
        make_vae(results, "bn", dataset, scale=scale, status="running", logged=3, bound=middle - 1)
        make_vae(results, "wn+mobn", dataset, scale=scale, status="diverged", logged=4, bound=middle - 3)


def make_draws(results: Path, scale: str = "short") -> None:
    """Three seeds of wn and normal, bn that fails to learn in two, a diverged wn+mobn."""
    for seed, offset in ((1, 0.0), (2, 0.1), (3, -0.1)):
        make_draw(results, "wn", seed=seed, scale=scale, bound=-80 + offset, speed=1.25)
        make_draw(results, "normal", seed=seed, scale=scale, bound=-80 + offset)
    for seed in (1, 2):
        make_draw(results, "bn", seed=seed, scale=scale, bound=-200.0, kl=800.0)
    make_draw(results, "wn+mobn", scale=scale, status="diverged", logged=4)


def make_dqns(results: Path, games: tuple[str, ...] = GAMES, scale: str = "short", **how: Any) -> None:
    """Three seeds of wn and normal, wn 25 % better; bn under way, a diverged wn+mobn."""
    for game in games:
        for seed, offset in ((1, 0.0), (2, 1.0), (3, -1.0)):
            make_dqn(results, "wn", game, seed=seed, scale=scale, best=50 + offset, **how)
            make_dqn(results, "normal", game, seed=seed, scale=scale, best=40 + offset, **how)
        make_dqn(results, "bn", game, scale=scale, status="running", logged=2, best=12, **how)
        make_dqn(results, "wn+mobn", game, scale=scale, status="diverged", logged=3, best=1e6, **how)


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, for the tests that read report.md only."""
    monkeypatch.setattr(figures, "draw", lambda results: {})


def verdict(results: Path, claim: str, scale: str = "short") -> str:
    return FINDERS[claim](load(results, scale)).verdict


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report_text(results: Path, scale: str = "short") -> str:
    """report.md, newly written."""
    return write_report(results, scale)[0].read_text()


def report_twice(results: Path) -> tuple[str, dict[str, bytes]]:
    """The report, which the second time is the same to the byte, and all files then there."""
    text = report_text(results)
    first = snapshot(results)
    write_report(results, "short")
    assert snapshot(results) == first
    return text, first


# The whole report


def test_report_has_everything_and_is_the_same_twice(tmp_path: Path) -> None:
    make_all(tmp_path)
    paths = write_report(tmp_path, "short")
    first = snapshot(tmp_path)
    assert paths == [tmp_path / "short" / name for name in ("report.md", "report.html")]
    assert write_report(tmp_path, "short") == paths
    assert snapshot(tmp_path) == first
    text = paths[0].read_text()
    names = ("figure1", "test_error", "learning_rates", "norm_growth", "noise_kurtosis", "init", "variants")
    for name in (*names, "step_time"):
        assert f"figures/{name}.png" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
        assert len(first[f"short/figures/{name}.png"]) < 200_000
        assert b"<svg" in first[f"short/figures/{name}.svg"]
    tables = {path.name for path in (tmp_path / "short" / "tables").iterdir()}
    assert tables == {f"{n}.csv" for n in ("claims", "table2", "variants", "step_time", "settings", "runs")}
    for claim in paper.CLAIMS:
        assert f"| {claim.id} |" in text
    assert "not comparable with the paper's" in text
    assert "not the paper's setting" in text
    assert "diverged, epoch 2 of 8" in text
    assert "| weight norm. + mean-only b.n. | 0.003 | 7.31 | 7.26 | – | 1 | seed 1: 7.26 |" in text
    assert "Maxout" in text
    assert "0123456" in text and "AMD EPYC, 2 threads" in text
    assert "Adam's learning rate" in text
    assert text.count("do not trust") == 0


def test_report_of_what_is_there_so_far(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", status="running", logged=3)
    fresh = make_run(tmp_path, "bn", status="running", logged=0)
    (fresh / "metrics.csv").unlink()
    (fresh / "run.json").unlink()
    text = report_text(tmp_path)
    assert "seed 1: 37.24 (epoch 3 of 8)" in text
    assert "seed 1: – (epoch 0 of 8)" in text
    assert "2 runs, 0 done, 0 diverged, 2 incomplete" in text
    assert check(tmp_path, "short") == []
    assert not (tmp_path / "short" / "figures" / "step_time.png").exists()


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=3)
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,101.5,0.2")
    with (folder / "layers.csv").open("a") as file:
        file.write("4,conv1,1.5,1.0,2.0,1.0,0.5,1.5\n4,conv2,1.")
    (run,) = load(tmp_path, "short").runs
    assert run.epoch == 3
    assert run.layers["epoch"].max() == 3


def test_a_figure_of_an_earlier_report_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    files = [tmp_path / "short" / "figures" / f"step_time.{suffix}" for suffix in ("png", "svg")]
    monkeypatch.setattr(figures, "draw", lambda results: {"step_time": {"png": b"1", "svg": b"2"}})
    write_report(tmp_path, "short")
    assert [file.read_bytes() for file in files] == [b"1", b"2"]
    monkeypatch.setattr(figures, "draw", lambda results: {})
    write_report(tmp_path, "short")
    assert not any(file.exists() for file in files)


def test_report_of_the_vaes_alone_is_the_same_twice(tmp_path: Path) -> None:
    make_vaes(tmp_path)
    text, first = report_twice(tmp_path)
    assert {file.stem for file in (tmp_path / "short" / "figures").iterdir()} == {"figure2", "bound_raw", "init"}
    for name in ("figure2", "bound_raw"):
        assert f"figures/{name}.png" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
    tables = {file.name for file in (tmp_path / "short" / "tables").iterdir()}
    assert tables == {"claims.csv", "bounds.csv", "settings.csv", "runs.csv"}
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[1:] == [
        "## Claims",
        "## The data-dependent init",
        "## Figure 2: convolutional VAEs",
        "## Settings",
        "### cvae mnist",
        "### cvae cifar10",
        "## Runs",
    ]
    assert "fp32 (cvae mnist), fp32 (cvae cifar10)" in text
    # −84 ± 4.3027 · 0.1 / √3
    assert "| mnist | mnist_wn_lr0.002 |  | 120 | 3 | −84.00 | −84.25 to −83.75 | – | 25.00 | – |" in text
    assert "| mnist | mnist_bn_lr0.002 |  | 120 | 0 | – | – | – | – | – | seed 1: epoch 3 of 120 |" in text
    assert (
        "| mnist | mnist_wn+mobn_lr0.002 |  | 120 | 0 | – | – | – | – | – | seed 1: diverged, epoch 4 of 120 |" in text
    )
    assert "| −9000.00 | −9000.25 to −8999.75 | 4.227 |" in text
    assert "| mnist | IAF paper: diagonal Gaussian |  |  |  | −84.08 ± 0.10 |" in text
    assert "| cifar10 | IAF paper: its best model |  |  |  |  |  | 3.11 |" in text
    assert "Our posterior of MNIST is IAF of depth 2, width 320. At scale `short` our rows cannot be" in text
    assert "| cvae | cifar10_wn_lr0.002 | 1 | done | 6 of 6 | test bound −9000.00 nats, 4.227 bits per dim. |" in text
    assert "nan" not in text and "inf " not in text
    assert check(tmp_path, "short") == []


def test_report_of_draw_alone_is_the_same_twice(tmp_path: Path) -> None:
    make_draws(tmp_path)
    make_draw(tmp_path, epochs=3, seed=4, status="running", logged=2)
    make_bench(tmp_path)
    text, first = report_twice(tmp_path)
    assert {file.stem for file in (tmp_path / "short" / "figures").iterdir()} == {"figure3", "kl_steps", "step_time"}
    for name in ("figure3", "kl_steps"):
        assert f"](figures/{name}.png)\n\n*DRAW's " in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
    tables = {file.name for file in (tmp_path / "short" / "tables").iterdir()}
    assert tables == {"claims.csv", "draw_bounds.csv", "step_time.csv", "settings.csv", "runs.csv"}
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Claims", "## Figure 3: DRAW", "## Step time", "## Settings", "### draw", "## Runs"]
    c10 = next(line for line in text.splitlines() if line.startswith("| C10 |"))
    assert "| **reproduced** | scale short; 3 seeds, 6 runs; AMD EPYC, 2 threads |" in c10
    assert "[figure 3](figures/figure3.png)" in c10
    # −89.6 ± 4.3027 · 0.1 / √3
    assert "| wn_lr0.0003 |  | 10 | 3 | −89.60 | −89.85 to −89.35 | 20.00 | −69.60 |  | binarized by Lar" in text
    assert "| bn_lr0.0003 |  | 10 | 2 | −212.00 | −212.00 to −212.00 | 20.00 | −192.00 |  |" in text
    assert "| wn+mobn_lr0.0003 |  | 10 | 0 | – | – | – | – | seed 1: diverged, epoch 4 of 10 |" in text
    assert "| wn_lr0.0003_epochs-3 | epochs = 3 | 3 | 0 | – | – | – | – | seed 4: epoch 2 of 3 |" in text
    assert "| jbornschein/draw, a user's run |  | 100 |  | −90.5 |" in text
    assert "| Gregor et al. (2015) |  |  |  | −80.97 |" in text
    assert "At scale `short` our rows cannot be compared with them" in text
    assert "| draw | wn_lr0.0003 | 1 | done | 10 of 10 | test bound −89.60 nats |" in text
    assert "| draw | AMD EPYC (cpu) | bn / normal | 1.080 | 1.070 to 1.090 | 20 |" in text
    assert "| time_steps | 64 | 4 |" in text
    assert "nan" not in text and "inf " not in text
    assert check(tmp_path, "short") == []


def test_report_of_dqn_alone_is_the_same_twice(tmp_path: Path) -> None:
    make_dqns(tmp_path, ("breakout", "space_invaders"))
    make_dqn(tmp_path, "wn", best=90.0, actors=8)
    make_dqn(tmp_path, "wn", seed=4, status="running", logged=1, best=500.0, checkpoint_replay=True)
    make_bench(tmp_path)
    text, first = report_twice(tmp_path)
    drawn = {file.stem for file in (tmp_path / "short" / "figures").iterdir()}
    assert drawn == {"figure4", "mean_q", "init", "step_time"}
    for name in ("figure4", "mean_q"):
        assert f"](figures/{name}.png)\n\n*" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
    tables = {file.name for file in (tmp_path / "short" / "tables").iterdir()}
    names = ("claims", "table3", "interquartile_means", "step_time", "settings", "runs")
    assert tables == {f"{name}.csv" for name in names}
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[1:] == [
        "## Claims",
        "## The data-dependent init",
        "## Table 3: maximum test score",
        "## Figure 4: DQN",
        "## Step time",
        "## Settings",
        "### dqn breakout",
        "### dqn space_invaders",
        "## Runs",
    ]
    assert "These runs have 0.004 to 0.008 % of the agent steps of the paper's, which are 50 million." in text
    # 50 ± 4.3027 · 1 / √3; 20 / √(7² + 7²) · √149 but for the seeds' spread
    start = "| Breakout | wn | 0.0003 |  | 410 / 403 / 401 | 50.0 | 47.5 to 52.5 | 3 | 4 | 4 000 | 0.008 |"
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    assert row == f"{start} 30.0 ± 0.6 (150 games) | 10.0 ± 0.5 (200 games) | 26.3 | seed 4: epoch 1 of 4 |"
    assert "| Breakout | wn | 0.0003 | actors = 8 | 410 / 403 / 401 | 90.0 | – | 1 | 4 |" in text
    running = "| Space Invaders | bn | 0.0003 |  | 1779 / 2179 / 1975 | 11.3 | – | 1 | 2 | 2 000 | 0.004 |"
    assert f"{running} 11.3 ± 1.0 (50 games) | 10.0 ± 1.0 (50 games) | 0.9 | seed 1: epoch 2 of 4 |" in text
    lost = "| – | – | 0 | 0 | 0 | 0 | – | 10.0 ± 1.0 (50 games) | – | seed 1: diverged, epoch 3 of 4 |"
    assert f"| Space Invaders | wn+mobn | 0.0003 |  | 1779 / 2179 / 1975 {lost}" in text
    # Three seeds of both games: 40/391, 41/391, 39/391, 40/1965, … without the highest and the lowest
    middle = (39 / 391 + 40 / 391 + 41 / 1965 + 40 / 1965) / 4
    assert f"| wn | {middle:.3f} |" in text and "| 6 | Breakout, Space Invaders | 4 |" in text
    assert "| bn | 0." not in text[: text.index("## Figure 4")].rpartition("Interquartile mean, ")[2]
    assert "At scale `short` our scores cannot be compared with the paper's" in text
    assert "| dqn | breakout_wn_lr0.0003 | 1 | done | 4 of 4 | test score 30.0 |" in text
    assert "| game | breakout | breakout |" in text and "| game | space_invaders | space_invaders |" in text
    assert "nan" not in text and "inf " not in text
    assert check(tmp_path, "short") == []


@pytest.mark.usefixtures("text_only")
def test_report_of_both_experiments(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_vae(tmp_path)
    make_bench(tmp_path)
    text = report_text(tmp_path)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[1:] == [
        "## Claims",
        "## Table 2: test error on CIFAR-10 (%)",
        "## Every variant of the CIFAR-10 classifier",
        "## Figure 2: convolutional VAEs",
        "## Step time",
        "## Settings",
        "### cifar",
        "### cvae mnist",
        "## Runs",
    ]
    assert "| cvae | AMD EPYC (cpu) | bn / normal | 1.080 | 1.070 to 1.090 | 20 |" in text
    assert "IAF paper: its best model" not in text  # no CIFAR-10 runs
    assert "| dataset | mnist | mnist |" in text
    # A data set is no setting of its own: nothing has changed.
    assert all(not run.changed for run in load(tmp_path, "short").runs)
    # Tables of what is gone go with it.
    (tmp_path / "short" / "cvae").rename(tmp_path / "moved")
    assert "VAEs" not in report_text(tmp_path)
    assert not (tmp_path / "short" / "tables" / "bounds.csv").exists()


def test_figures_of_the_vaes(tmp_path: Path) -> None:
    make_vaes(tmp_path)
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.figure2(load(tmp_path, "short"))
        assert figure is not None
        mnist, cifar10 = figure.axes
        assert [axes.get_title() for axes in figure.axes] == ["MNIST", "CIFAR-10"]
        low, high = mnist.get_ylim()
        assert -100 < low < -84 < high < -80  # the epochs that are far below are cut off
        assert cifar10.yaxis_inverted() and "bits per dim." in cifar10.get_ylabel()
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "normal (n = 3, 3)",
            "batch norm. (n = 0, 0)",
            "weight norm. (n = 3, 3)",
            "weight norm. + mean-only b.n. (n = 0, 0)",
            "diverged",
            "not finished",
        ]
        for dataset, title in (("mnist", "MNIST"), ("cifar10", "CIFAR-10")):
            make_vaes(tmp_path / dataset, datasets=(dataset,))
            alone = figures.figure2(load(tmp_path / dataset, "short"))
            assert alone is not None
            assert [axes.get_title() for axes in alone.axes] == [title]
        raw = figures.bound_raw(load(tmp_path, "short").of("cvae", "mnist"))
        assert raw is not None
        assert len(raw.axes[0].lines) == 4
    make_vae(tmp_path, scale="quick")
    figure = figures.figure2(load(tmp_path, "quick"))
    assert figure is not None
    assert figure.axes[0].get_title() == "bundled images in place of MNIST"


def test_figures_of_diverged_and_hardly_begun_vaes(tmp_path: Path) -> None:
    folder = make_vae(tmp_path, status="diverged", logged=3, bound=-1e6)
    edit(folder / "metrics.csv", "nan,-inf,nan,inf,nan", "nan,nan,nan,nan,nan")
    assert set(figures.draw(load(tmp_path, "short"))) == {"figure2", "init"}
    make_vae(tmp_path, "normal", status="running", logged=0)
    make_vae(tmp_path, "bn", status="running", logged=1)
    assert set(figures.draw(load(tmp_path, "short"))) == {"figure2", "init"}
    for seed in (2, 3):  # one epoch of both is lost
        path = make_vae(tmp_path, seed=seed) / "metrics.csv"
        lines = path.read_text().splitlines()
        lines[5] = "5,7.5,nan,nan,inf,1,1"
        path.write_text("\n".join(lines) + "\n")
    assert set(figures.draw(load(tmp_path, "short"))) == {"figure2", "bound_raw", "init"}


def test_figures_of_draw(tmp_path: Path) -> None:
    make_draws(tmp_path)
    make_draw(tmp_path, "wn", seed=4, epochs=5, kl=4.0)
    with matplotlib.rc_context(figures.STYLE):
        results = load(tmp_path, "short").of("draw")
        figure = figures.figure3(results)
        assert figure is not None
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        assert -150 < low < -140.1 and -89.5 < high < -85  # from normal's second epoch on; not bn's −212
        assert axes.get_title() == "MNIST" and axes.get_ylabel() == "test bound (nats)"
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "normal (n = 3)",
            "batch norm. (n = 2)",
            "weight norm. (n = 4)",
            "weight norm. + mean-only b.n. (n = 0)",
            "diverged",
            "ends below",
        ]
        steps = figures.kl_steps(results)
        assert steps is not None
        (axes,) = steps.axes
        assert axes.get_title() == "MNIST"
        (mean,) = [line for line in axes.lines if line.get_label() == "weight norm., epoch 5 and 10 (n = 4)"]
        assert list(mean.get_xdata()) == [1, 2, 3, 4]
        assert list(mean.get_ydata()) == pytest.approx([7 / step + 8.75 for step in (1, 2, 3, 4)])
        assert axes.get_ylim()[1] == pytest.approx(1.06 * 2 * 18)  # not bn's 810

        make_draw(tmp_path, "wn+mobn", seed=2, bound=-70.0)  # better than what the paper shows
        best = figures.figure3(load(tmp_path, "short").of("draw"))
        assert best is not None
        assert best.axes[0].get_ylim()[0] == low and best.axes[0].get_ylim()[1] > -82


def test_figures_of_draw_show_another_start_beside_the_standard_runs(tmp_path: Path) -> None:
    make_draw(tmp_path, "normal", bound=-80.0)
    make_draw(tmp_path, "wn", bound=-85.0)
    for seed in (1, 2):
        make_draw(tmp_path, "wn", seed=seed, bound=-60.0, g_start=1.0)
    results = load(tmp_path, "short")
    found = findings(results)["C10"]
    assert found.n == "1 seed, 2 runs"  # judged without them
    assert found.measured.count("outside the rule, with g = 1 at the start, seed 1: reaches normal's") == 1
    with matplotlib.rc_context(figures.STYLE):
        for figure in (figures.figure3(results.of("draw")), figures.kl_steps(results.of("draw"))):
            assert figure is not None
            labels = [text.get_text() for text in figure.legends[0].get_texts()]
            assert len(labels) == 3 and "g = 1 at the start" in labels[2] and labels[2].endswith("(n = 2)")
            (axes,) = figure.axes
            dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
            assert len(dotted) >= 2 and max(max(line.get_ydata()) for line in dotted) < axes.get_ylim()[1]


def test_figures_of_a_draw_whose_test_has_no_number(tmp_path: Path) -> None:
    folder = make_draw(tmp_path, "bn")
    edit(folder / "kl_steps.csv", "10,1,18.0", "10,1,inf")
    edit(folder / "kl_steps.csv", "10,2,14.0", "10,2,nan")
    edit(folder / "metrics.csv", "10,60.5,-91.5,-92.0", "10,60.5,-91.5,nan")
    make_draw(tmp_path, "wn", status="running", logged=0)
    make_draw(tmp_path, "normal", status="diverged", logged=1)
    assert set(figures.draw(load(tmp_path, "short"))) == {"figure3", "kl_steps"}


def test_figures_of_dqn(tmp_path: Path) -> None:
    make_dqns(tmp_path, ("breakout", "seaquest", "space_invaders"))
    for seed in (1, 2):
        make_dqn(tmp_path, "wn", "seaquest", seed=seed, best=90.0, actors=8)
    with matplotlib.rc_context(figures.STYLE):
        results = load(tmp_path, "short")
        figure = figures.games(results, "test_score", "test score")
        assert figure is not None
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert [axes.get_title() for axes in shown] == ["Space Invaders", "Breakout", "Seaquest"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "normal (n = 3, 3, 3)",
            "batch norm. (n = 0, 0, 0)",
            "weight norm. (n = 3, 3, 3)",
            "weight norm. + mean-only b.n. (n = 0, 0, 0)",
            "diverged",
            "not finished",
            "weight norm., 8 games in lock-step (n = 2)",
            "random play",
        ]
        for axes, highest in zip(shown, (51, 51, 90), strict=True):
            low, high = axes.get_ylim()
            assert low < 10 and highest < high < 1.1 * highest  # not the diverged run's million
            (chance,) = [line for line in axes.lines if set(line.get_ydata()) == {10.0}]
            assert chance.get_linestyle() == "--"
            assert axes.xaxis.get_major_formatter()(3000) == "3"
            means = [line for line in axes.lines if list(line.get_ydata()) == pytest.approx([70 / 3, 110 / 3, 50, 30])]
            assert means and list(means[-1].get_xdata()) == [1000, 2000, 3000, 4000]
        q = figures.games(results, "mean_q", "mean Q value")
        assert q is not None
        assert "random play" not in [text.get_text() for text in q.legends[0].get_texts()]
        assert q.axes[0].get_ylim()[1] < 1.1


def test_figures_of_diverged_and_hardly_begun_dqns(tmp_path: Path) -> None:
    make_dqn(tmp_path, status="running", logged=0)
    assert set(figures.draw(load(tmp_path, "short"))) == {"init"}
    make_dqn(tmp_path, "normal", status="diverged", logged=1)
    assert set(figures.draw(load(tmp_path, "short"))) == {"figure4", "init"}  # its mean Q value has no number
    make_dqn(tmp_path, "normal", "enduro", actors=4, epoch_steps=10**6)  # two settings changed: in no figure
    folder = make_dqn(tmp_path, "bn", "enduro", actors=4, epochs=3)
    (folder / "games.csv").unlink()
    assert set(figures.draw(load(tmp_path, "short"))) == {"figure4", "mean_q", "init"}


def test_figure_of_the_init(tmp_path: Path) -> None:
    make_vae(tmp_path)
    folder = make_run(tmp_path, "bn")
    edit(folder / "init.csv", "0,conv1,1e-06,0.9999,1.0001", "0,conv1,0.002,0.9,1.05")
    edit(folder / "init.csv", "0,conv2,1e-06,0.9999,1.0001", "0,conv2,0.0,1.0,1.0")
    figure = figures.init(load(tmp_path, "short"))
    assert figure is not None
    drawn = []
    for axes, limit in zip(figure.axes, (paper.INIT_MEAN, paper.INIT_VARIANCE), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["cifar", "cvae mnist"]
        *dots, rule = axes.lines
        assert list(rule.get_ydata()) == [limit, limit] and rule.get_linestyle() == "--"
        assert [round(float(np.mean(line.get_xdata())), 6) for line in dots] == [0, 1]  # a run at its experiment
        drawn.append([list(line.get_ydata()) for line in dots])
    means, variances = drawn
    assert means[0][:3] == [0.002, 1e-9, 1e-6] and variances[0][:3] == pytest.approx([0.1, 1e-9, 1e-4])
    assert variances[1] == pytest.approx([1e-4] * 10)


def test_figure_of_variants_pairs_runs_as_the_claims_do(tmp_path: Path) -> None:
    make_run(tmp_path, test_error=0.5)
    assert figures.variants(load(tmp_path, "short")) is None  # nothing to compare
    for seed, error in ((1, 0.1), (2, 0.11)):
        make_run(tmp_path / "runs", seed=seed, test_error=0.1)
        make_run(tmp_path / "runs", seed=seed, test_error=error, g_exp=3.0)
        make_vae(tmp_path / "runs", seed=seed)
        make_vae(tmp_path / "runs", seed=seed, bound=-83.5 - seed, v_norm_max=0.25)
    make_run(tmp_path / "runs", seed=3, test_error=0.2, g_exp=3.0)  # no partner
    make_run(tmp_path / "runs", status="diverged", logged=2, g_exp=1.0)
    make_run(tmp_path / "runs", test_error=0.08, v_norm_max=0.25, polyak_epochs=10.0)
    results = load(tmp_path / "runs", "short")
    figure = figures.variants(results)
    assert figure is not None
    errors, bounds = figure.axes
    labels = ["wn, c = 1 (n = 1)", "wn, c = 3 (n = 2)", "wn, averaged, ‖v‖ ≤ 0.25 (n = 1)"]
    assert [label.get_text() for label in errors.get_yticklabels()] == labels
    assert [label.get_text() for label in bounds.get_yticklabels()] == ["wn, ‖v‖ ≤ 0.25 (n = 2)"]

    def dots(axes: Axes, marker: str) -> list[tuple[float, float]]:
        lines = [line for line in axes.lines if line.get_marker() == marker]
        return [(round(float(x), 6), float(y)) for line in lines for x, y in line.get_xydata()]

    assert dots(errors, "o") == [(0, 1), (0.1, 1), (-0.2, 2)] and dots(errors, "|") == [(0.05, 1), (-0.2, 2)]
    assert dots(errors, "x") == [(1, 0)]
    assert dots(bounds, "o") == [(-0.5, 0), (-1.5, 0)] and dots(bounds, "|") == [(-1, 0)]
    assert "wn, c = 3: +5.0 %" in findings(results)["C15"].measured  # the same numbers
    assert "better in 0 of 2 pairs" in findings(results)["C16"].measured


@pytest.mark.usefixtures("text_only")
def test_quick_is_marked_and_paper_is_not(tmp_path: Path) -> None:
    make_run(tmp_path, scale="quick")
    make_run(tmp_path, scale="paper")
    assert scales_with_runs(tmp_path) == ["paper", "quick"]
    assert "mean nothing beside the paper's" in report_text(tmp_path, "quick")
    text = report_text(tmp_path, "paper")
    assert "mean nothing" not in text and "(the paper's setting)" in text


@pytest.mark.usefixtures("text_only")
def test_table2_gives_mean_interval_and_every_seed(tmp_path: Path) -> None:
    for seed, error in ((1, 0.08), (2, 0.09), (3, 0.10)):
        make_run(tmp_path, "bn", seed=seed, scale="paper", test_error=error)
    make_run(tmp_path, "bn", seed=4, scale="paper", status="running", logged=3)
    text = report_text(tmp_path, "paper")
    # 9 ± 4.3027 · 1 / √3
    assert "| 8.05 | 9.00 | 6.52 to 11.48 | 3 | seed 1: 8.00; seed 2: 9.00; seed 3: 10.00; seed 4:" in text
    assert "(epoch 3 of 200)" in text


@pytest.mark.usefixtures("text_only")
def test_runs_with_other_settings_stay_out_of_the_claims(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", width=8, test_error=0.5)
    make_run(tmp_path, "wn", test_error=0.25)
    text = report_text(tmp_path)
    assert "| 8.46 | 25.00 | – | 1 | seed 1: 25.00 |" in text
    assert "| wn_lr0.003_width-8 | 0.003 | width = 8 | 1 |" in text


def test_the_precision_of_most_runs_is_judged(tmp_path: Path) -> None:
    make_run(tmp_path, "wn")
    for param in ("wn", "bn"):
        make_run(tmp_path, param, precision="bf16")
    make_vae(tmp_path, precision="tf32")
    results = load(tmp_path, "short").of("cifar")
    assert results.precision == "bf16"
    assert load(tmp_path, "short").of("cvae", "mnist").precision == "tf32"
    assert {run.variant for run in results.standard} == {
        "wn_lr0.003_precision-bf16",
        "bn_lr0.003_precision-bf16",
    }


@pytest.mark.usefixtures("text_only")
def test_text_of_run_files_is_escaped(tmp_path: Path) -> None:
    message = "a|b\nc<img src=x>\\|`d`\ud7ff"
    make_run(tmp_path, status="failed", logged=1, record={"message": message, "device_name": "<b>|x"})
    text = report_text(tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| cifar | wn_lr0.003 | 1 | failed"))
    assert r"a\|b c&lt;img src=x&gt;\\\|\`d\`" in row
    assert "<img" not in text and "<b>" not in text
    header = next(line for line in text.splitlines() if line.startswith("| Experiment | Variant | Seed"))
    assert row.replace(r"\|", "").count("|") == header.count("|")


def test_escape() -> None:
    assert escape("a*b [x](y) & \t z") == r"a\*b \[x\](y) &amp; z"


def test_one_colour_and_line_a_parameterization() -> None:
    assert set(COLOURS) == set(LINES) == set(PARAMS)
    assert len(set(COLOURS.values())) == len(PARAMS)


def test_no_torch() -> None:
    code = "import sys, wnrepro.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# Mistakes


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    for call in (
        lambda path: write_report(path, "short"),
        lambda path: check(path, "short"),
        scales_with_runs,
    ):
        with pytest.raises(UserError, match="is no folder"):
            call(tmp_path / "absent")
    (tmp_path / "a file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        write_report(tmp_path / "a file", "short")
    assert scales_with_runs(tmp_path) == []
    with pytest.raises(UserError, match="holds no runs"):
        write_report(tmp_path, "short")
    assert not (tmp_path / "short").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"experiment": "cifar", "scale": "short", "hash": "0"}'),
        ("config.json", '{"experiment": "other", "scale": "short", "hash": "0", "settings": {}}'),
        ("run.json", '{"status": "fine", "epoch": 1}'),
        ("run.json", '{"status": "done"}'),
        ("run.json", '{"status": "done", "epoch": 8, "message": "\\ud800"}'),
        ("metrics.csv", "epoch,train_error\n1,0.5\n"),
        ("metrics.csv", "epoch,seconds,train_error,test_error,train_loss,test_loss,lr\n1,2,x,0.5,1,1,1\n"),
        ("metrics.csv", "epoch,seconds,train_error,test_error,train_loss,test_loss,lr\n1,2,50,50,1,1,1\n"),
        ("metrics.csv", "epoch,seconds,train_error,test_error,train_loss,test_loss,lr\n2,2,0.5,0.5,1,1,1\n"),
        ("metrics.csv", "epoch,seconds,train_error,test_error,train_loss,test_loss,lr\n1,2,0.5\n"),
        ("layers.csv", "epoch,layer\n0,conv1\n"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_run(tmp_path)
    (folder / name).write_text(content)
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as error:
        write_report(tmp_path, "short")
    assert str(folder / name) in str(error.value)
    assert "restore it" in str(error.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "epoch,seconds,train_bound_nats\n1,7.5,-90\n"),
        ("metrics.csv", ",".join(METRICS["cvae", "mnist"]) + "\n1,7.5,-90,x,-90,1,1\n"),
        ("metrics.csv", ",".join(METRICS["cvae", "mnist"]) + "\n2,7.5,-90,-90,-90,1,1\n"),
        ("metrics.csv", ",".join(METRICS["cvae", "mnist"]) + "\n1,7.5,-90,-90\n"),
    ],
)
def test_a_malformed_file_of_a_vae_is_named(tmp_path: Path, name: str, content: str) -> None:
    make_run(tmp_path)
    folder = make_vae(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(UserError) as error:
        load(tmp_path, "short")
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", "epoch,seconds,train_bound_nats\n1,7.5,-90\n", "not one column test_bound_nats"),
        ("kl_steps.csv", "epoch,time_step\n1,1\n", "not one column kl_nats"),
        ("kl_steps.csv", "epoch,time_step,kl_nats\n1,1,x\n", "could not convert"),
        ("kl_steps.csv", "epoch,time_step,kl_nats\n1,1,2\n1,3,2\n", "not the time steps 1 to 4"),
        ("kl_steps.csv", "epoch,time_step,kl_nats\n2,1,2\n", "epochs 1, 2, 3, …"),
    ],
)
def test_a_malformed_file_of_draw_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = make_draw(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path, "short")
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("metrics.csv", "test_score,", "score,", "not one column test_score"),
        ("games.csv", "1,1,", "1,x,", "invalid literal"),
        ("config.json", '"game": "breakout"', '"game": "pong"', "no game of dqn: pong"),
        ("config.json", '"game": "breakout"', '"game": null', "`game` is missing"),
        ("config.json", '"batch_size": 64', '"batch_size": "64"', "`batch_size` is missing or of the wrong kind"),
    ],
)
def test_a_malformed_file_of_dqn_is_named(tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    folder = make_dqn(tmp_path)
    edit(folder / name, old, new)
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path, "short")
    assert str(folder / name) in str(error.value)


def test_an_epoch_of_kl_steps_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = make_draw(tmp_path, status="running", logged=3)
    with (folder / "kl_steps.csv").open("a") as file:
        file.write("4,1,9.0\n4,2,5.")
    (run,) = load(tmp_path, "short").runs
    assert len(run.kl_steps) == 3 * 4 and run.kl_steps["epoch"].max() == 3


def test_a_draw_needs_its_number_of_time_steps(tmp_path: Path) -> None:
    folder = make_draw(tmp_path)
    edit(folder / "config.json", '"time_steps": 4', '"time_steps": 0')
    with pytest.raises(UserError, match=r"config\.json is malformed \(lr, epochs, time_steps must be above 0\)"):
        load(tmp_path, "short")


def test_a_vae_of_cifar10_needs_its_bits(tmp_path: Path) -> None:
    folder = make_vae(tmp_path, dataset="cifar10")
    edit(folder / "metrics.csv", "test_bits_per_dim", "bits")
    with pytest.raises(UserError, match=r"metrics\.csv is malformed \(not one column test_bits_per_dim\)"):
        load(tmp_path, "short")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"dataset": "mnist"', '"dataset": "svhn"', "no dataset of cvae: svhn"),
        ('"dataset": "mnist"', '"dataset": null', "`dataset` is missing"),
        ('"epochs": 120', '"epochs": 0', "lr, epochs must be above 0"),
        ('"v_norm_max": null', '"v_norm_max": "x"', "`v_norm_max` is no number"),
    ],
)
def test_settings_that_no_vae_has(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = make_vae(tmp_path)
    edit(folder / "config.json", old, new)
    with pytest.raises(UserError, match=f"config.json is malformed .{said}"):
        load(tmp_path, "short")


@pytest.mark.usefixtures("text_only")
def test_text_of_a_vaes_files_is_escaped(tmp_path: Path) -> None:
    make_vae(tmp_path, facts={"data": "<img src=x>|`d`", "log_likelihood_nats": -80.25, "importance_samples": 128})
    make_vae(tmp_path, seed=2, facts={"log_likelihood_nats": -70.0, "importance_samples": 5})
    text = report_text(tmp_path)
    assert "<img" not in text
    assert r"| 25.00 | −80.25 (K = 128, n = 1) |  | &lt;img src=x&gt;\|\`d\`; binarized by Larochelle |" in text


def test_files_that_are_no_text_or_in_the_wrong_place(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "init.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"init\.csv.*UTF-8"):
        load(tmp_path, "short")
    folder.rename(folder.with_name("seed-2"))
    with pytest.raises(UserError, match=r"config\.json .*another scale, experiment or seed"):
        load(tmp_path, "short")


def add_work(results: Path, name: str = "cpu") -> Path:
    """What a step needs, and its ceilings, to the benchmarks of `make_bench`: of cifar and dqn alone."""
    path = results / "bench" / f"{name}.json"
    bench = json.loads(path.read_text())
    work = {"flops": 239e9, "bytes": 2e9, "floor_seconds": 1.25, "distance": 1.6, "flops_share": 0.625}
    work |= {"bytes_share": 0.091, "flops_per_second": 1.2e11, "bytes_per_second": 1e9}
    bench["cifar"] |= {"work": {"wn": work, "plain wn": work | {"distance": 2.0}}}
    bench["cifar"] |= {"memory": {"wn": 1_540_000_000, "plain wn": 2_000_000_000}}
    bench["dqn"] = {"ratios": {}, "work": {"wn, learning": work}, "memory": {"wn": 500_000_000, "bn": 1}}
    path.write_text(json.dumps(bench))
    return path


@pytest.mark.usefixtures("text_only")
def test_the_distance_from_the_floor_of_benches_that_tell_it(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path)
    make_bench(tmp_path, name="old")
    old = json.loads((tmp_path / "bench" / "old.json").read_text())
    old["dqn"] = {"ratios": {}, "memory": {"replay_steps": 10, "peak_bytes": 9}}
    (tmp_path / "bench" / "old.json").write_text(json.dumps(old))
    assert "Distance from the floor" not in report_text(tmp_path)
    path = add_work(tmp_path)
    text = report_text(tmp_path)
    section = text[text.index("## Distance from the floor") : text.index("## Settings")]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    whose, numbers = "| cifar | AMD EPYC (cpu) |", "239 | 62.5 | 2 | 9.1"
    assert rows == [
        f"{whose} wn | 2000 | 1250 | 1.60 | {numbers} | 1.54 |",
        f"{whose} plain wn | 2500 | 1250 | 2.00 | {numbers} | 2.00 |",
        f"| dqn | AMD EPYC (cpu) | wn, learning | 2000 | 1250 | 1.60 | {numbers} | 0.50 |",
    ]
    page = (tmp_path / "short" / "report.html").read_text()
    assert "Distance from the floor" in page and "<td>wn, learning</td>" in page
    whole = path.read_text()
    for old, new in (('"floor_seconds"', '"floor"'), ('"wn": 1540000000', '"wn": null')):
        edit(path, old, new)
        with pytest.raises(UserError, match=r"cpu\.json"):
            load(tmp_path, "short")
        path.write_text(whole)


def test_a_malformed_bench_is_named(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path)
    path = tmp_path / "bench" / "cpu.json"
    path.write_text(path.read_text().replace('"low"', '"lowest"'))
    with pytest.raises(UserError, match=r"cpu\.json"):
        write_report(tmp_path, "short")


# check


def test_check_finds_nothing_in_good_runs(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, "normal", lr=0.003, status="diverged", logged=2)
    make_run(tmp_path, "bn", status="running", logged=2, record={"epoch": 1, "metrics_sha256": None})
    assert check(tmp_path, "short") == []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.usefixtures("text_only")
def test_check_finds_each_kind_of_tampering(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    edit(folder / "config.json", '"batch_size": 100', '"batch_size": 50')
    (problem,) = check(tmp_path, "short")
    assert "cifar/wn_lr0.003/seed-1: config.json's hash" in problem
    assert f"- {problem}" in report_text(tmp_path)
    edit(folder / "config.json", '"batch_size": 50', '"batch_size": 100')

    edit(folder / "run.json", '"config_hash": "', '"config_hash": "f')
    (problem,) = check(tmp_path, "short")
    assert "run.json was written for the settings" in problem
    edit(folder / "run.json", '"config_hash": "f', '"config_hash": "')

    edit(folder / "metrics.csv", "\n3,101.5,", "\n3,101.6,")
    (problem,) = check(tmp_path, "short")
    assert "sha256" in problem
    edit(folder / "metrics.csv", "\n3,101.6,", "\n3,101.5,")

    edit(folder / "run.json", '"epoch": 8', '"epoch": 7')
    (problem,) = check(tmp_path, "short")
    assert "metrics.csv has 8 epochs, run.json 7" in problem
    edit(folder / "run.json", '"epoch": 7', '"epoch": 8')

    (folder / "metrics.csv").unlink()
    assert len(check(tmp_path, "short")) == 3  # sha256, run.json's epoch, done too early


def test_check_counts_the_games_of_a_dqn(tmp_path: Path) -> None:
    folder = make_dqn(tmp_path, episodes=2)
    edit(folder / "games.csv", "2,1,", "3,3,")
    first, second = check(tmp_path, "short")
    assert first.endswith("games.csv has 1 games of epoch 2, metrics.csv 2.")
    assert second.endswith("games.csv has 3 games of epoch 3, metrics.csv 2.")
    folder = make_dqn(tmp_path, seed=2, episodes=2, status="running", logged=2)
    games = (folder / "games.csv").read_text()
    (folder / "games.csv").write_text(games[:-2])  # killed between the two files
    assert len(check(tmp_path, "short")) == 2
    edit(folder / "games.csv", "1,2,", "0,3,")
    assert "seed-2: games.csv has 1 games of epoch 1" in check(tmp_path, "short")[2]


# Verdicts on runs


def test_verdicts_on_a_good_reproduction(tmp_path: Path) -> None:
    make_all(tmp_path, "paper", seeds=(1, 2, 3))
    found = findings(load(tmp_path, "paper"))
    assert {claim: finding.verdict for claim, finding in found.items()} == {
        **dict.fromkeys(("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C13", "C14"), paper.REPRODUCED),
        "C15": paper.INCONCLUSIVE,
        **dict.fromkeys(("C9", "C10", "C11", "C12", "C16"), paper.NOT_RUN),
    }
    assert found["C4"].n == "3 seeds, 12 runs"
    assert found["C7"].n == "20 paired rounds"
    assert found["C5"].devices == "AMD EPYC, 2 threads"


def test_verdicts_on_next_to_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=0)
    for name in ("run.json", "metrics.csv", "layers.csv", "init.csv"):
        (folder / name).unlink()
    assert {finding.verdict for finding in findings(load(tmp_path, "short")).values()} == {paper.NOT_RUN}


def test_c1_takes_the_worst_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, seed=2, facts={"v_dot_grad_v": 1e-8})
    assert verdict(tmp_path, "C1") == paper.NOT_REPRODUCED
    assert verdict(tmp_path, "C2") == paper.REPRODUCED


def test_c3_needs_all_four_of_a_seed(tmp_path: Path) -> None:
    for param in PARAMS[:3]:
        make_run(tmp_path, param)
    make_run(tmp_path, "wn+mobn", seed=2)
    assert verdict(tmp_path, "C3") == paper.INCONCLUSIVE
    make_run(tmp_path, "wn+mobn", facts={"init_loss": 2.9})
    assert verdict(tmp_path, "C3") == paper.NOT_REPRODUCED


def test_c3_compares_within_an_experiment_and_data_set(tmp_path: Path) -> None:
    for param in PARAMS:
        make_run(tmp_path, param)
    make_vae(tmp_path)
    make_vae(tmp_path, dataset="cifar10", facts={"init_loss": 9000.0})
    assert verdict(tmp_path, "C3") == paper.REPRODUCED
    for param in ("normal", "bn", "wn+mobn"):
        make_vae(tmp_path, param)
    finding = FINDERS["C3"](load(tmp_path, "short"))
    assert finding.verdict == paper.REPRODUCED
    assert "(2 starts)" in finding.measured
    make_vae(tmp_path, seed=2)
    for param in ("normal", "bn", "wn+mobn"):
        make_vae(tmp_path, param, seed=2, facts={"init_loss": 550.0})
    assert verdict(tmp_path, "C3") == paper.NOT_REPRODUCED


def test_c3_of_dqn_is_its_init_alone(tmp_path: Path) -> None:
    for param in PARAMS:
        make_dqn(tmp_path, param)
    assert verdict(tmp_path, "C3") == paper.INCONCLUSIVE  # no initial losses
    for param in PARAMS:
        make_run(tmp_path, param)
    assert verdict(tmp_path, "C3") == paper.REPRODUCED
    edit(make_dqn(tmp_path, "wn", "enduro") / "init.csv", "0.9999", "0.9")
    assert verdict(tmp_path, "C3") == paper.NOT_REPRODUCED


def test_c3_reads_the_init_of_every_run(tmp_path: Path) -> None:
    for param in PARAMS:
        make_run(tmp_path, param)
    folder = make_vae(tmp_path, v_norm_max=0.25)
    edit(folder / "init.csv", "0.9999", "0.9")
    assert verdict(tmp_path, "C3") == paper.NOT_REPRODUCED


def test_c4_is_of_the_paper_scale_only(tmp_path: Path) -> None:
    for scale in ("short", "paper"):
        make_run(tmp_path, scale=scale, test_error=0.0846)
    assert verdict(tmp_path, "C4", "short") == paper.NOT_RUN
    assert verdict(tmp_path, "C4", "paper") == paper.INCONCLUSIVE
    make_run(tmp_path, "bn", scale="paper", status="diverged", logged=9)
    assert verdict(tmp_path, "C4", "paper") == paper.NOT_REPRODUCED


def test_c5_compares_with_the_fastest_normal(tmp_path: Path) -> None:
    for param in ("normal", "wn", "bn"):
        make_run(tmp_path, param)
    assert verdict(tmp_path, "C5") == paper.REPRODUCED
    make_run(tmp_path, "normal", lr=0.001, speed=0.8)
    assert verdict(tmp_path, "C5") == paper.NOT_REPRODUCED


def test_c5_uses_the_epochs_that_both_have(tmp_path: Path) -> None:
    make_run(tmp_path, "normal")
    make_run(tmp_path, "bn")
    make_run(tmp_path, "wn", status="running", logged=4)
    finding = FINDERS["C5"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "only 4 shared epochs" in finding.measured
    make_run(tmp_path, "wn", lr=0.01, status="diverged", logged=1)
    assert verdict(tmp_path, "C5") == paper.NOT_REPRODUCED


def test_c6_reads_the_end_of_the_run(tmp_path: Path) -> None:
    make_run(tmp_path, "normal")
    assert verdict(tmp_path, "C6") == paper.NOT_RUN
    make_run(tmp_path, "normal", lr=0.003, status="running", logged=7)
    assert verdict(tmp_path, "C6") == paper.INCONCLUSIVE
    make_run(tmp_path, "normal", lr=0.003, seed=2)
    assert verdict(tmp_path, "C6") == paper.NOT_REPRODUCED


def test_c8_pairs_seeds_and_epochs(tmp_path: Path) -> None:
    make_run(tmp_path, "bn")
    assert verdict(tmp_path, "C8") == paper.INCONCLUSIVE
    make_run(tmp_path, "wn+mobn", seed=2)
    assert verdict(tmp_path, "C8") == paper.INCONCLUSIVE
    make_run(tmp_path, "wn+mobn")
    finding = FINDERS["C8"](load(tmp_path, "short"))
    assert finding.verdict == paper.REPRODUCED
    assert "in 20 of 20 layers × measurements (epochs 1, 8; 50 minibatches)" in finding.measured
    assert finding.n == "1 seed, 2 runs"


def test_c14_with_one_rate_is_inconclusive(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert verdict(tmp_path, "C14") == paper.INCONCLUSIVE
    make_run(tmp_path, lr=0.01)
    assert verdict(tmp_path, "C14") == paper.REPRODUCED


def test_c15_pairs_by_seed(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path, seed=seed, test_error=0.4)
        make_run(tmp_path, seed=seed, g_exp=3.0, test_error=0.401 + 0.001 * seed)
    assert verdict(tmp_path, "C15") == paper.REPRODUCED
    make_run(tmp_path, g_exp=1.0, status="diverged", logged=1)
    assert verdict(tmp_path, "C15") == paper.NOT_REPRODUCED


def make_pairs(results: Path, wn: list[float], normal: list[float], dataset: str = "mnist", **how: Any) -> None:
    for seed, (ours, theirs) in enumerate(zip(wn, normal, strict=True), start=1):
        make_vae(results, "wn", dataset, seed=seed, bound=ours, **how)
        make_vae(results, "normal", dataset, seed=seed, bound=theirs, **how)


def test_c9_reproduced_needs_both_data_sets(tmp_path: Path) -> None:
    steady = [-85.0, -84.99, -85.01]
    make_pairs(tmp_path, steady, [-86.0, -85.8, -86.2])
    finding = FINDERS["C9"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert finding.measured == (
        "final test bound, wn − normal, nats: mnist: +1.00 [+0.53, +1.47], standard deviation 0.01 against 0.20 "
        "(3 seeds, 120 epochs; scale paper has 400); cifar10: no seed with both"
    )
    make_pairs(tmp_path, steady, [-86.0, -85.8, -86.2], "cifar10", epochs=120)
    assert verdict(tmp_path, "C9") == paper.REPRODUCED


def test_c9_without_convergence_is_inconclusive(tmp_path: Path) -> None:
    for dataset in paper.FIGURE2:
        make_pairs(tmp_path, [-86.0, -85.0, -87.0], [-84.0, -84.01, -83.99], dataset, epochs=99)
    finding = FINDERS["C9"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "99 epochs" in finding.measured and finding.measured.count("not converged") == 2


def test_c9_worse_or_with_two_seeds(tmp_path: Path) -> None:
    make_pairs(tmp_path, [-86.0, -86.1], [-84.0, -84.1])
    assert verdict(tmp_path, "C9") == paper.INCONCLUSIVE
    make_vae(tmp_path, "wn", seed=3, bound=-86.2)
    assert verdict(tmp_path, "C9") == paper.INCONCLUSIVE
    make_vae(tmp_path, "normal", seed=3, bound=-84.1)
    assert verdict(tmp_path, "C9") == paper.NOT_REPRODUCED


def test_c9_compares_at_the_last_epoch_that_three_seeds_share(tmp_path: Path) -> None:
    make_pairs(tmp_path, [-84.0, -84.2, -84.1], [-85.0, -85.1, -85.2])
    make_vae(tmp_path, "wn", seed=4, status="running", logged=5)  # begun, and far below
    make_vae(tmp_path, "normal", seed=4, bound=-85.1)
    make_vae(tmp_path, "wn", seed=1, logged=20, epochs=20, bound=-70.0)  # an earlier, shorter run
    finding = FINDERS["C9"](load(tmp_path, "short"))
    assert "(3 seeds, 120 epochs;" in finding.measured
    assert finding.n == "3 seeds, 6 runs"


def test_c9_of_other_rates_or_settings_is_not_run(tmp_path: Path) -> None:
    make_pairs(tmp_path, [-84.0], [-85.0], lr=0.001)
    make_pairs(tmp_path, [-84.0], [-85.0], iaf_depth=0)
    make_vae(tmp_path, "wn")
    make_vae(tmp_path, "normal", status="running", logged=0)
    make_run(tmp_path, "wn")
    make_run(tmp_path, "normal")
    assert verdict(tmp_path, "C9") == paper.NOT_RUN


def test_c9_never_averages_a_diverged_run(tmp_path: Path) -> None:
    make_pairs(tmp_path, [-84.0, -84.2], [-85.0, -85.1])
    make_vae(tmp_path, "wn", seed=3)
    make_vae(tmp_path, "normal", seed=3, status="diverged", logged=2)
    finding = FINDERS["C9"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "−84.00 against diverged" in finding.measured
    make_vae(tmp_path, "wn", seed=4, status="diverged", logged=2)
    make_vae(tmp_path, "normal", seed=4)
    finding = FINDERS["C9"](load(tmp_path, "short"))
    assert finding.verdict == paper.NOT_REPRODUCED
    assert "diverged against −84.00" in finding.measured


def test_c10_reproduced_in_every_seed(tmp_path: Path) -> None:
    make_draws(tmp_path)
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert finding.verdict == paper.REPRODUCED
    assert finding.measured == (
        "test bound of wn, "
        "seed 1: reaches normal's −92.00 nats of epoch 10 at epoch 8.0 (2.0 epochs, 20.0 % earlier); "
        "seed 2: reaches normal's −91.90 nats of epoch 10 at epoch 8.0 (2.0 epochs, 20.0 % earlier); "
        "seed 3: reaches normal's −92.10 nats of epoch 10 at epoch 8.0 (2.0 epochs, 20.0 % earlier)"
    )
    assert (finding.n, finding.devices) == ("3 seeds, 6 runs", "AMD EPYC, 2 threads")
    make_draw(tmp_path, "wn", seed=4, speed=1.05)
    make_draw(tmp_path, "normal", seed=4)
    assert verdict(tmp_path, "C10") == paper.INCONCLUSIVE  # too little in one of four


def test_c10_not_reproduced_where_wn_never_gets_there(tmp_path: Path) -> None:
    make_draw(tmp_path, "normal")
    make_draw(tmp_path, "wn", speed=0.8)
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE  # one seed
    assert finding.measured == "test bound of wn, seed 1: not reached: −95.00 against −92.00 of epoch 10"
    make_draw(tmp_path, "normal", seed=2)
    make_draw(tmp_path, "wn", seed=2, speed=2.0, status="diverged", logged=9)  # after it had got there
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert finding.verdict == paper.NOT_REPRODUCED
    assert "seed 2: not reached: diverged against −92.00 of epoch 10" in finding.measured


def test_c10_of_runs_that_diverge(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_draw(tmp_path, "wn", seed=seed, status="diverged", logged=3)
        make_draw(tmp_path, "normal", seed=seed, status="diverged", logged=2)
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert (finding.verdict, finding.n) == (paper.INCONCLUSIVE, "0 seeds, 0 runs")
    assert finding.measured == "test bound of wn, seed 1: both diverged; seed 2: both diverged"
    for seed in (3, 4):
        make_draw(tmp_path, "wn", seed=seed, speed=0.5)
        make_draw(tmp_path, "normal", seed=seed, status="diverged", logged=2)
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert (finding.verdict, finding.n) == (paper.REPRODUCED, "2 seeds, 4 runs")
    assert "seed 4: normal diverged" in finding.measured


def test_c10_compares_over_the_epochs_that_both_share(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_draw(tmp_path, "normal", seed=seed, epochs=20)
        make_draw(tmp_path, "wn", seed=seed, speed=1.25, status="running", logged=4)
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "seed 2: only 4 shared epochs" in finding.measured
    for seed in (1, 2):
        make_draw(tmp_path, "wn", seed=seed, speed=1.25, epochs=30, status="running", logged=5)
    finding = FINDERS["C10"](load(tmp_path, "short"))
    assert finding.verdict == paper.REPRODUCED
    assert "−104.00 nats of epoch 5 at epoch 4.0 (1.0 epochs, 20.0 % earlier)" in finding.measured
    for seed in (1, 2):  # what wn reaches later is no matter
        make_draw(tmp_path / "later", "normal", seed=seed, status="running", logged=5)
        make_draw(tmp_path / "later", "wn", seed=seed, speed=0.8)
    finding = FINDERS["C10"](load(tmp_path / "later", "short"))
    assert finding.verdict == paper.NOT_REPRODUCED
    assert "not reached: −110.00 against −104.00 of epoch 5" in finding.measured


def test_c10_of_other_rates_or_settings_is_not_run(tmp_path: Path) -> None:
    for param in ("wn", "normal"):
        make_draw(tmp_path, param, lr=0.001)
        make_draw(tmp_path, param, time_steps=8)
    make_draw(tmp_path, "wn")
    make_draw(tmp_path, "normal", seed=2)
    make_pairs(tmp_path, [-84.0], [-85.0])
    assert verdict(tmp_path, "C10") == paper.NOT_RUN


def test_c11_of_four_games(tmp_path: Path) -> None:
    make_dqns(tmp_path, GAMES[:3], epochs=100, episodes=2)
    for seed in (1, 2, 3):
        make_dqn(tmp_path, "wn", GAMES[3], seed=seed, best=30.0, epochs=100, episodes=2)
        make_dqn(tmp_path, "normal", GAMES[3], seed=seed, best=60.0, epochs=100, episodes=2, lr=0.0003)
    finding = FINDERS["C11"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert finding.measured == (
        "maximum test score, wn / normal: Breakout 50.0 / 40.0 (3 seeds, 100 epochs); Enduro 50.0 / 40.0 (3 seeds, 100 "
        "epochs); Seaquest 50.0 / 40.0 (3 seeds, 100 epochs); mean log ratio +0.22 [+0.22, +0.23] (×1.25, 3 games)"
    )
    for seed in (1, 2, 3):
        make_dqn(tmp_path, "normal", GAMES[3], seed=seed, best=30.0, epochs=100, episodes=2)
    finding = FINDERS["C11"](load(tmp_path, "short"))
    assert (finding.verdict, finding.n) == (paper.REPRODUCED, "3 seeds, 24 runs")
    assert "mean log ratio +0.17 [+0.17, +0.17] (×1.18, 4 games)" in finding.measured


def test_c11_compares_over_the_epochs_that_three_seeds_share(tmp_path: Path) -> None:
    make_dqns(tmp_path, epochs=200, episodes=2)
    make_dqn(tmp_path, "wn", seed=4, status="running", logged=1, epochs=200, episodes=2)
    make_dqn(tmp_path, "normal", seed=4, epochs=200, episodes=2)
    assert verdict(tmp_path, "C11") == paper.REPRODUCED
    for seed in (1, 2, 3):  # the paper's own settings, but only half way
        make_dqn(tmp_path / "begun", "wn", seed=seed, status="running", logged=99, epochs=201, episodes=2, best=50.0)
        make_dqn(tmp_path / "begun", "normal", seed=seed, epochs=101, episodes=2, best=50.0)
    finding = FINDERS["C11"](load(tmp_path / "begun", "short"))
    assert "Breakout 29.8 / 49.6 (3 seeds, 99 epochs)" in finding.measured


def test_c11_of_diverged_and_lock_step_runs(tmp_path: Path) -> None:
    make_dqns(tmp_path / "8", epochs=100, episodes=2, actors=8)
    finding = FINDERS["C11"](load(tmp_path / "8", "short"))
    assert (finding.verdict, finding.n) == (paper.NOT_RUN, "0 seeds, 0 runs")
    assert "outside the rule: Breakout 50.0 / 40.0 (3 seeds, 100 epochs) by 8 games in lock-step" in finding.measured
    make_dqns(tmp_path, GAMES[1:], epochs=100, episodes=2)
    for seed in (1, 2, 3):
        make_dqn(tmp_path, "wn", seed=seed, status="diverged" if seed == 3 else "done", epochs=100, episodes=2)
        make_dqn(tmp_path, "normal", seed=seed, epochs=100, episodes=2)
    finding = FINDERS["C11"](load(tmp_path, "short"))
    assert finding.verdict == paper.NOT_REPRODUCED
    assert "Breakout diverged / 50.0" in finding.measured and "log ratio" not in finding.measured


def make_bn(results: Path, seeds: int, best: float, normal: float = 50.0, **how: Any) -> None:
    for seed in range(1, seeds + 1):
        make_dqn(results, "bn", seed=seed, best=best, **how)
        make_dqn(results, "normal", seed=seed, best=normal, **how)


def test_c12_judges_the_pairs_in_which_normal_has_learnt(tmp_path: Path) -> None:
    make_bn(tmp_path, 2, best=29.0)
    finding = FINDERS["C12"](load(tmp_path, "short"))
    assert (finding.verdict, finding.n) == (paper.INCONCLUSIVE, "2 seeds, 4 runs")
    assert finding.measured == (
        "gain over random play, bn / normal: Breakout, seed 1: 19.0 / 40.0 (4 epochs); "
        "Breakout, seed 2: 19.0 / 40.0 (4 epochs)"
    )
    make_dqn(tmp_path, "bn", "enduro", best=14.0)
    make_dqn(tmp_path, "normal", "enduro", best=14.0)  # 2 above random play's mean at the end, of 1.4 · 1
    finding = FINDERS["C12"](load(tmp_path, "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "Enduro, seed 1: 4.0 / 4.0 (4 epochs), normal has not learnt" in finding.measured
    make_dqn(tmp_path, "bn", "seaquest", status="diverged", logged=1, best=1e6)
    make_dqn(tmp_path, "normal", "seaquest")
    finding = FINDERS["C12"](load(tmp_path, "short"))
    assert finding.verdict == paper.REPRODUCED
    assert "Seaquest, seed 1: diverged / 40.0 (4 epochs)" in finding.measured


def test_c12_not_reproduced_where_bn_works_at_minibatch_64(tmp_path: Path) -> None:
    make_bn(tmp_path, 3, best=30.0)
    assert verdict(tmp_path, "C12") == paper.NOT_REPRODUCED
    make_bn(tmp_path / "few", 3, best=30.0, episodes=28)
    assert verdict(tmp_path / "few", "C12") == paper.INCONCLUSIVE


def test_c12_only_names_larger_minibatches(tmp_path: Path) -> None:
    make_bn(tmp_path / "other", 3, best=30.0, scale="quick")
    assert verdict(tmp_path / "other", "C12", "quick") == paper.NOT_RUN
    make_bn(tmp_path, 3, best=11.0)
    make_dqn(tmp_path, "bn", best=45.0, batch_size=1024)
    finding = FINDERS["C12"](load(tmp_path, "short"))
    assert (finding.verdict, finding.n) == (paper.REPRODUCED, "3 seeds, 6 runs")
    assert finding.measured.endswith(
        "outside the rule: with minibatches of 1024, Breakout, seed 1: 35.0 / 40.0 (4 epochs)"
    )


def make_bounded(results: Path, bounds: list[float], **how: Any) -> None:
    """Seeds without a bound on ‖v‖ that end at −84 nats, and with it at these."""
    for seed, bound in enumerate(bounds, start=1):
        make_vae(results, seed=seed, **how)
        make_vae(results, seed=seed, bound=bound, v_norm_max=0.25, **how)


def make_bounded_classifiers(results: Path, errors: list[float], **changed: Any) -> None:
    for seed, error in enumerate(errors, start=1):
        make_run(results, seed=seed, scale="paper", test_error=0.08)
        make_run(results, seed=seed, scale="paper", test_error=error, v_norm_max=0.25, **changed)


def test_c16_of_both_parts(tmp_path: Path) -> None:
    make_bounded(tmp_path, [-83.5, -83.6, -84.5], scale="paper")
    finding = FINDERS["C16"](load(tmp_path, "paper"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "better in 2 of 3 pairs: mnist, wn, lr 0.002, seed 1: −83.50 against −84.00 (400 epochs)" in finding.measured
    make_bounded_classifiers(tmp_path, [0.08, 0.081, 0.079], polyak_epochs=10.0)
    finding = FINDERS["C16"](load(tmp_path, "paper"))
    assert finding.verdict == paper.REPRODUCED
    assert "cifar, wn, averaged: test error +0.0 % [−3.1 %, +3.1 %] (n = 3, 200 epochs)" in finding.measured


def test_c16_fails_where_it_helps_the_classifier(tmp_path: Path) -> None:
    make_bounded_classifiers(tmp_path, [0.070, 0.071, 0.069])
    assert verdict(tmp_path, "C16", "paper") == paper.NOT_REPRODUCED


def test_c16_fails_where_it_never_helps_the_vae(tmp_path: Path) -> None:
    make_bounded(tmp_path, [-84.5, -84.6])
    assert verdict(tmp_path, "C16") == paper.INCONCLUSIVE
    make_vae(tmp_path, "wn+mobn")
    make_vae(tmp_path, "wn+mobn", status="diverged", logged=2, v_norm_max=0.25)
    assert verdict(tmp_path, "C16") == paper.NOT_REPRODUCED


def test_c16_counts_converged_pairs_of_the_papers_bound_alone(tmp_path: Path) -> None:
    make_vae(tmp_path)
    make_vae(tmp_path, v_norm_max=0.5)
    make_vae(tmp_path, "normal")
    make_vae(tmp_path, "normal", v_norm_max=0.25)
    make_vae(tmp_path, v_norm_max=0.25, iaf_depth=0)
    make_vae(tmp_path, v_norm_max=0.25, seed=2)  # no partner
    assert verdict(tmp_path, "C16") == paper.NOT_RUN
    make_bounded(tmp_path / "brief", [-84.5] * 4, epochs=99)
    make_run(tmp_path / "brief")
    make_run(tmp_path / "brief", v_norm_max=0.25, test_error=0.01)
    finding = FINDERS["C16"](load(tmp_path / "brief", "short"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "better in 0 of 4 pairs" in finding.measured and "(n = 1, 8 epochs)" in finding.measured


def test_c16_leaves_a_diverged_classifier_open(tmp_path: Path) -> None:
    make_bounded_classifiers(tmp_path, [0.070, 0.071, 0.069])
    make_run(tmp_path, seed=4, scale="paper", test_error=0.08)
    make_run(tmp_path, seed=4, scale="paper", status="diverged", logged=3, v_norm_max=0.25)
    finding = FINDERS["C16"](load(tmp_path, "paper"))
    assert finding.verdict == paper.INCONCLUSIVE
    assert "test error diverged in a seed (n = 4" in finding.measured


def test_c7_is_of_cifar_alone(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path, bn=1.0)
    assert verdict(tmp_path, "C7") == paper.NOT_REPRODUCED
    path = tmp_path / "bench" / "cpu.json"
    bench = json.loads(path.read_text())
    path.write_text(json.dumps({name: bench[name] for name in ("device_name", "cvae")}))
    assert verdict(tmp_path, "C7") == paper.NOT_RUN
    assert set(load(tmp_path, "short").bench) == {"cpu"}
    edit(path, '"median"', '"middle"')
    with pytest.raises(UserError, match=r"cpu\.json"):
        load(tmp_path, "short")

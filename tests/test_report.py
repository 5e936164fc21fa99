"""The report on made-up runs: files, verdicts on what they hold, escaping, errors and tampering."""

import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.report import check, figures, scales_with_runs, write_report
from wnrepro.report.claims import FINDERS, findings
from wnrepro.report.figures import COLOURS, LINES
from wnrepro.report.load import load, scale_defaults
from wnrepro.report.tables import escape
from wnrepro.settings import FIGURE_LR, PARAMS, SCALES

LAYERS = [f"conv{i}" for i in range(1, 10)] + ["dense"]
SPEED = {"normal": 0.16, "bn": 0.42, "wn": 0.36, "wn+mobn": 0.38}
FINAL = {"normal": 8.43, "bn": 8.05, "wn": 8.46, "wn+mobn": 7.31}


@pytest.fixture(autouse=True)
def made_up_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale short as these tests count on it, whatever the real one is."""
    short = {"epochs": 8, "decay_from": 4, "noise_epochs": (1, 8), "noise_minibatches": 50}
    monkeypatch.setitem(SCALES["cifar"], "short", short | {"train_examples": 5000, "test_examples": 2000})


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
    settings = {**scale_defaults("cifar", scale), "param": param, "lr": lr, "seed": seed, **changed}
    config: dict[str, Any] = {"experiment": "cifar", "scale": scale, "settings": settings}
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    config["hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    variant = "_".join([f"{param}_lr{lr}", *(f"{name}-{value}" for name, value in changed.items())])
    folder = results / scale / "cifar" / variant / f"seed-{seed}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))

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
    init = [[0, name, 1e-6, 0.9999, 1.0001] for name in LAYERS]
    write_csv(folder / "init.csv", "epoch,layer,mean_abs_max,variance_min,variance_max", init)
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
    residuals = {"eq3_residual": 1e-16, "v_dot_grad_v": 2e-17, "wn_is_bn_residual": 1e-15}
    run = {
        "status": status,
        "message": "",
        "epoch": logged,
        "epochs": epochs,
        "config_hash": config["hash"],
        "seconds": 101.5 * logged,
        "device": "cpu",
        "device_name": "AMD EPYC, 2 threads",
        "git": {"commit": "0123456789abcdef" * 2 + "01234567", "dirty": False},
        "versions": {"torch": "2.13.0"},
        "facts": {"parameters": 1405546, "init_loss": 2.81 + 1e-6 * seed, **residuals, **(facts or {})},
        "resumed": [],
        "metrics_sha256": hashlib.sha256((folder / "metrics.csv").read_bytes()).hexdigest(),
        **(record or {}),
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def make_bench(results: Path, bn: float = 1.08, wn: float = 1.0, name: str = "cpu") -> None:
    ratios = {
        f"{param} / normal": {"median": middle, "low": middle - 0.01, "high": middle + 0.01, "n": 20}
        for param, middle in (("bn", bn), ("wn", wn), ("wn+mobn", 1.03))
    }
    ratios["wn / plain wn"] = {"median": 0.7, "low": 0.69, "high": 0.71, "n": 20}
    (results / "bench").mkdir(parents=True, exist_ok=True)
    bench = {"device_name": f"AMD EPYC ({name})", "cifar": {"rounds": 20, "ratios": ratios}}
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


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, for the tests that read report.md only."""
    monkeypatch.setattr(figures, "draw", lambda results: {})


def verdict(results: Path, claim: str, scale: str = "short") -> str:
    return FINDERS[claim](load(results, scale)).verdict


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The whole report


def test_report_has_everything_and_is_the_same_twice(tmp_path: Path) -> None:
    make_all(tmp_path)
    path = write_report(tmp_path, "short")
    first = snapshot(tmp_path)
    assert path == tmp_path / "short" / "report.md"
    assert write_report(tmp_path, "short") == path
    assert snapshot(tmp_path) == first
    text = path.read_text()
    for name in ("figure1", "test_error", "learning_rates", "norm_growth", "noise_kurtosis", "step_time"):
        assert f"figures/{name}.png" in text
        assert first[f"short/figures/{name}.png"].startswith(b"\x89PNG")
        assert len(first[f"short/figures/{name}.png"]) < 200_000
        assert b"<svg" in first[f"short/figures/{name}.svg"]
    tables = {name.removeprefix("short/tables/") for name in first if name.startswith("short/tables/")}
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
    text = write_report(tmp_path, "short").read_text()
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


@pytest.mark.usefixtures("text_only")
def test_quick_is_marked_and_paper_is_not(tmp_path: Path) -> None:
    make_run(tmp_path, scale="quick")
    make_run(tmp_path, scale="paper")
    assert scales_with_runs(tmp_path) == ["paper", "quick"]
    assert "mean nothing beside the paper's" in write_report(tmp_path, "quick").read_text()
    text = write_report(tmp_path, "paper").read_text()
    assert "mean nothing" not in text and "(the paper's setting)" in text


@pytest.mark.usefixtures("text_only")
def test_table2_gives_mean_interval_and_every_seed(tmp_path: Path) -> None:
    for seed, error in ((1, 0.08), (2, 0.09), (3, 0.10)):
        make_run(tmp_path, "bn", seed=seed, scale="paper", test_error=error)
    make_run(tmp_path, "bn", seed=4, scale="paper", status="running", logged=3)
    text = write_report(tmp_path, "paper").read_text()
    # 9 ± 4.3027 · 1 / √3
    assert "| 8.05 | 9.00 | 6.52 to 11.48 | 3 | seed 1: 8.00; seed 2: 9.00; seed 3: 10.00; seed 4:" in text
    assert "(epoch 3 of 200)" in text


@pytest.mark.usefixtures("text_only")
def test_runs_with_other_settings_stay_out_of_the_claims(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", width=8, test_error=0.5)
    make_run(tmp_path, "wn", test_error=0.25)
    text = write_report(tmp_path, "short").read_text()
    assert "| 8.46 | 25.00 | – | 1 | seed 1: 25.00 |" in text
    assert "| wn_lr0.003_width-8 | 0.003 | width = 8 | 1 |" in text


def test_the_precision_of_most_runs_is_judged(tmp_path: Path) -> None:
    make_run(tmp_path, "wn")
    for param in ("wn", "bn"):
        make_run(tmp_path, param, precision="bf16")
    results = load(tmp_path, "short")
    assert results.precision == "bf16"
    assert {run.variant for run in results.standard} == {
        "wn_lr0.003_precision-bf16",
        "bn_lr0.003_precision-bf16",
    }


@pytest.mark.usefixtures("text_only")
def test_text_of_run_files_is_escaped(tmp_path: Path) -> None:
    message = "a|b\nc<img src=x>\\|`d`\ud7ff"
    make_run(tmp_path, status="failed", logged=1, record={"message": message, "device_name": "<b>|x"})
    text = write_report(tmp_path, "short").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| wn_lr0.003 | 1 | failed"))
    assert r"a\|b c&lt;img src=x&gt;\\\|\`d\`" in row
    assert "<img" not in text and "<b>" not in text
    header = next(line for line in text.splitlines() if line.startswith("| Variant | Seed"))
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


def test_files_that_are_no_text_or_in_the_wrong_place(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "init.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"init\.csv .*UTF-8"):
        load(tmp_path, "short")
    folder.rename(folder.with_name("seed-2"))
    with pytest.raises(UserError, match=r"config\.json .*another scale, experiment or seed"):
        load(tmp_path, "short")


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
    assert f"- {problem}" in write_report(tmp_path, "short").read_text()
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


# Verdicts on runs


def test_verdicts_on_a_good_reproduction(tmp_path: Path) -> None:
    make_all(tmp_path, "paper", seeds=(1, 2, 3))
    found = findings(load(tmp_path, "paper"))
    assert {claim: finding.verdict for claim, finding in found.items()} == {
        **dict.fromkeys(("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C13", "C14"), paper.REPRODUCED),
        "C15": paper.INCONCLUSIVE,
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

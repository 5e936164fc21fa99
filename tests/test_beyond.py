"""Parameterizations that are not the paper's: in every figure and table, beside wn and normal, in no claim."""

import csv
import json
import math
import re
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import (
    OTHERS,
    edit,
    leave_unrendered,
    made_up_scale,  # noqa: F401
    make_all,
    make_bench,
    make_dqn,
    make_dqns,
    make_draw,
    make_draws,
    make_run,
    make_vae,
    make_vaes,
    report_text,
    text_only,  # noqa: F401
)
from scipy import stats

from wnrepro.report import canvas, figures, rules
from wnrepro.report.canvas import Sheet
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.beyond import BETTER, SAME, WORSE
from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_TESTABLE
from wnrepro.results import load
from wnrepro.settings import SETTINGS

CENTRED, SCALED = OTHERS
LABEL = "centred weight norm."
KURTOSIS = {"kurtosis_mean": 0.3, "kurtosis_std": 0.1, "kurtosis_inverse_std": 0.2, "noise_size": 0.3}


def make_papers(results: Path, scale: str = "short") -> None:
    make_all(results, scale)
    make_vaes(results, scale)
    make_draws(results, scale)
    make_dqns(results, ("breakout", "seaquest"), scale)


def make_others(results: Path, scale: str = "short") -> None:
    """Runs of two, one of which has no entry in its config.json, of every experiment; one is in bf16, one diverges."""
    for param in (CENTRED, "ws"):
        for seed in (1, 2, 3):
            make_run(results, param, seed=seed, scale=scale, noise=KURTOSIS, facts={"eq3_residual": 1.0})
            make_vae(results, param, lr=0.001 if param == CENTRED else 0.002, seed=seed, scale=scale)
            make_draw(results, param, lr=0.001 if param == CENTRED else 0.0003, seed=seed, scale=scale)
            for game in ("breakout", "seaquest"):
                make_dqn(results, param, game, lr=0.001 if param == CENTRED else None, seed=seed, scale=scale)
        for lr in (0.0003, 0.003, 0.01):
            make_run(results, param, lr=lr, seed=4, scale=scale, facts={"init_loss": 9.0})
        make_run(results, param, seed=5, scale=scale, precision="bf16", record={"device": "cuda"})
    make_run(results, "ws", lr=0.1, scale=scale, status="diverged", logged=1)
    add_ratio(results, "cpu", CENTRED, 1.05)


def add_ratio(results: Path, name: str, param: str, median: float) -> None:
    path = results / "bench" / f"{name}.json"
    bench = json.loads(path.read_text())
    bench["cifar"]["ratios"][f"{param} / normal"] = {"median": median, "low": 1.0, "high": 2.0, "n": 20}
    path.write_text(json.dumps(bench))


def rows_of(results: Path, scale: str, name: str) -> list[dict[str, str]]:
    with (results / scale / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def texts(sheet: Sheet | None) -> str:
    """All that a figure's legend and axes name."""
    assert sheet is not None
    said = [key.label for key in sheet.keys]
    return "\n".join(said + [tick.get_text() for axes in sheet.axes for tick in axes.get_yticklabels()])


def test_they_are_in_every_figure_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_papers(tmp_path)
    before = load(tmp_path, "short")
    leave_unrendered(monkeypatch)
    drawn = figures.draw(before, findings(before))
    old = {name: one.files["sheet"] for name, one in drawn.items()}
    make_others(tmp_path)
    read = load(tmp_path, "short")
    redrawn = figures.draw(read, findings(read))
    new = {name: one.files["sheet"] for name, one in redrawn.items()}
    assert old.keys() == new.keys() == figures.CAPTIONS.keys()
    for name, figure in new.items():
        assert LABEL not in texts(old[name]) and LABEL not in drawn[name].caption
        assert texts(redrawn[name].panels[0]).startswith("\n".join(key[0] for key in redrawn[name].keys))
        assert (LABEL in texts(figure)) == (name != "variants"), name
        assert ("ws" in texts(figure).replace("news", "")) == (name not in ("variants", "step_time")), name
    assert [axes.get_ylim() for axes in old["figure2"].axes[:2]] == [
        axes.get_ylim() for axes in new["figure2"].axes[:2]
    ]
    assert "not judged: others' μ" in texts(new["noise_kurtosis"]) not in texts(old["noise_kurtosis"])
    assert new["figure2"].axes[2].get_title() == "MNIST: less normal"
    assert " The y axis fits the paper's parameterizations." in redrawn["figure1"].caption
    assert "y axis fits" not in drawn["figure1"].caption
    for name in ("overview", "figure1", "learning_rates", "noise_kurtosis", "figure2", "figure3", "figure4"):
        assert f"{LABEL} " in redrawn[name].caption, name  # with its number at the end
    monkeypatch.setattr(figures, "draw", lambda *given: {})
    text = report_text(tmp_path)
    tables = ("table2", "variants", "bounds", "draw_bounds", "table3", "interquartile_means", "runs", "beyond")
    for name in tables:
        found = (tmp_path / "short/tables" / f"{name}.csv").read_text()
        assert CENTRED in found and re.search(r"(\b|_)ws(\b|_)", found), name
    assert f"{CENTRED} / normal" in (tmp_path / "short/tables/step_time.csv").read_text()
    assert f"| {LABEL} | 10.44 | \\[10.16, 10.72\\] | 3 | – | 0.001 | " in text
    assert "| ws | 10.39 | \\[10.16, 10.62\\] | 4 | – | 0.003 | " in text
    assert {row["result"] for row in rows_of(tmp_path, "short", "beyond")} == {NOT_TESTABLE}


@pytest.mark.usefixtures("text_only")
@pytest.mark.parametrize("scale", ["short", "paper"])
def test_no_claim_changes(tmp_path: Path, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for experiment in SETTINGS.values():
        monkeypatch.setitem(experiment.scales, "paper", experiment.scales["short"])

    def claims() -> tuple[str, bytes, list[str]]:
        text = report_text(tmp_path, scale)
        said = text[text.index("## Claims") : re.search(r"\n## (?!Claims)", text).start()]
        return said, (tmp_path / scale / "tables/claims.csv").read_bytes(), rules(tmp_path, scale)

    make_papers(tmp_path, scale)
    before = claims()
    assert "Beyond the paper" not in (tmp_path / scale / "report.md").read_text()
    make_others(tmp_path, scale)
    assert claims() == before
    assert "## Beyond the paper" in (tmp_path / scale / "report.md").read_text()


@pytest.fixture
def small_paper_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    for experiment in SETTINGS.values():
        monkeypatch.setitem(experiment.scales, "paper", experiment.scales["short"])


def compared(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the comparisons with wn and normal at scale paper, by what is compared."""
    report_text(results, "paper")
    return {(row["what"], row["against"]): row for row in rows_of(results, "paper", "beyond")}


@pytest.mark.usefixtures("text_only", "small_paper_scale")
def test_the_comparisons_are_those_of_a_plain_computation(tmp_path: Path) -> None:
    how: dict[str, Any] = {"scale": "paper"}
    ours, theirs = [0.070, 0.071, 0.073, 0.074, 0.0725], [0.081, 0.084, 0.0825, 0.083, 0.082]
    bounds, games = [-83.0, -83.2, -83.1, -82.9, -83.05], [60.0, 66.0, 63.0]
    for seed, (a, b, bound) in enumerate(zip(ours, theirs, bounds, strict=True), start=1):
        for rate in (0.0003, 0.001, 0.003, 0.01):
            lost = {"status": "diverged", "logged": 1} if rate == 0.01 else {}
            make_run(tmp_path, SCALED, lr=rate, seed=seed, speed=0.5 + 0.01 * seed, test_error=a, **how)
            make_run(tmp_path, "wn", lr=rate, seed=seed, test_error=b, **how, **lost)
        make_vae(tmp_path, SCALED, seed=seed, bound=bound, **how)
        make_vae(tmp_path, "wn", seed=seed, bound=-84.0 + 0.01 * seed, **how)
        make_draw(tmp_path, SCALED, seed=seed, bound=-80.0 - 0.001 * seed, **how)
        make_draw(tmp_path, "wn", seed=seed, bound=-80.0, **how)
    for seed, best in enumerate(games, start=1):
        make_dqn(tmp_path, SCALED, seed=seed, best=best, **how)
        make_dqn(tmp_path, "wn", seed=seed, best=50.0, **how)
    for i, median in enumerate((1.10, 1.12, 1.11)):
        make_bench(tmp_path, wn=1.0, name=f"s{i}", device="NVIDIA H200", created=f"2026-11-2{i}")
        add_ratio(tmp_path, f"s{i}", SCALED, median)
    found = compared(tmp_path)
    assert {against for _, against in found} == {"wn", "normal"}  # the step alone has normal

    def row(what: str, against: str = "wn") -> dict[str, Any]:
        (name,) = [key for key in found if key[0].startswith(what) and key[1] == against]
        return found[name]

    def says(what: str, value: float, low: float, high: float, n: int, result: str, against: str = "wn") -> None:
        one = row(what, against)
        assert (one["param"], one["parameterization"], int(one["n"]), one["result"]) == (SCALED, "scaled", n, result)
        assert [float(one[name]) for name in ("estimate", "low", "high")] == pytest.approx([value, low, high], rel=1e-6)

    def by_seed(values: Any) -> tuple[float, float, float]:
        values = np.asarray(values)
        return float(values.mean()), *stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))

    welch = stats.ttest_ind(100 * np.array(ours), 100 * np.array(theirs), equal_var=False)
    gap = 100 * (np.mean(ours) - np.mean(theirs))
    says("better: final test error, cifar", gap, *welch.confidence_interval(0.95), 5, BETTER)
    assert row("better: final test error")["margins"] == "−0.50 points, 0, +0.50 points"

    tables = {
        (param, seed): pd.read_csv(next(tmp_path.glob(f"paper/cifar/{param}_lr0.003/seed-{seed}/metrics.csv")))
        for param in (SCALED, "wn")
        for seed in range(1, 6)
    }
    means = {key: table["train_error"].mean() for key, table in tables.items()}
    # The best rate of both is the first, for they are alike but for that which diverges; seed 1 chose it.
    logs = [math.log(means[SCALED, seed] / means["wn", seed]) for seed in range(2, 6)][:3]
    says("faster: mean training error", *(100 * np.expm1(by_seed(logs))), 3, BETTER)
    assert row("faster: mean training error")["unit"] == "%"

    gains = [bound - (-84.0 + 0.01 * seed) for seed, bound in enumerate(bounds, start=1)]
    says("better: final test bound, cvae mnist", *by_seed(gains), 5, BETTER)
    says("better: final test bound, draw", *by_seed([-0.001 * seed for seed in range(1, 6)]), 5, SAME)
    says("better: log ratio of maximum scores, dqn", *by_seed(np.log(np.array(games) / 50)), 3, BETTER)
    assert row("better: log ratio")["margins"] == "0"
    for against in ("wn", "normal"):
        costs = 100 * np.expm1(by_seed(np.log([1.10, 1.12, 1.11])))
        says("cost of a step: time, cifar", *costs, 3, WORSE, against)
    wider = row("wider learning rates")
    assert wider["what"].endswith("cifar, lr 0.01") and float(wider["estimate"]) == -100 and wider["result"] == BETTER
    assert "lr 0.01: 0 of 5 and 5 of 5 fail (Scaled-0123abcd, wn)" in wider["remarks"]
    steady = row("steadier: share that fails, cifar")
    assert (float(steady["estimate"]), steady["fewest_seeds"], steady["result"]) == (0, "5", INCONCLUSIVE)


@pytest.mark.usefixtures("text_only", "small_paper_scale")
def test_one_that_diverges_is_worse_and_two_seeds_decide_nothing(tmp_path: Path) -> None:
    for seed in range(1, 6):
        lost: dict[str, Any] = {"status": "diverged", "logged": 1}
        make_draw(tmp_path, SCALED, seed=seed, scale="paper", **lost)
        make_draw(tmp_path, "wn", seed=seed, scale="paper")
        if seed < 3:
            make_run(tmp_path, "ws", seed=seed, scale="paper", test_error=0.01)
            make_run(tmp_path, "wn", seed=seed, scale="paper", test_error=0.09, **(lost if seed == 2 else {}))
    found = compared(tmp_path)
    bound = found["better: final test bound, draw", "wn"]
    assert bound["result"] == WORSE and bound["remarks"] == f"{SCALED} diverged 100 % [47, 100] (n = 5)"
    assert found["steadier: share that fails, draw", "wn"]["result"] == WORSE
    assert found["better: final test error, cifar", "wn"]["result"] == INCONCLUSIVE


@pytest.mark.parametrize(
    "label",
    ["<script>alert(1)</script>|`rm`$\\frac{", "_hidden", "\u202eevil\x1b[31m\n# Heading", "重み" * 5000, "$^$"],
)
@pytest.mark.usefixtures("text_only")
def test_a_hostile_label_is_text(tmp_path: Path, label: str) -> None:
    folder = make_run(tmp_path, CENTRED)
    edit(folder / "config.json", json.dumps(LABEL), json.dumps(label))
    make_run(tmp_path)
    read = load(tmp_path, "short")
    shown = read.labels[CENTRED]
    assert shown.isprintable() and len(shown) <= 60
    figure = figures.curves("figure1", read)
    assert f"{shown.lstrip('_')}, lr 0.001 (n = 1)" in texts(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # as `draw`
        whole = figures.curves("figure1", read, split=True)
        assert whole is not None
        (panel,), keys = whole.panels("p", shown), [canvas.key_svg(key, "k") for key in whole.keys]
    assert "<script" not in panel + "".join(keys) and " on" not in re.sub(r'"[^"]*"|>[^<]*<', "", panel)
    root = ET.fromstring(panel)
    assert root.attrib["aria-label"] == shown.replace("`", "")
    names = {element.attrib["data-name"] for element in root.iter() if "data-name" in element.attrib}
    assert names == {f"cifar/{CENTRED}_lr0.001/seed-1", "cifar/wn_lr0.003/seed-1"}
    text = report_text(tmp_path)
    page = (tmp_path / "short/report.html").read_text()
    assert "<script>a" not in text + page and "\u202e" not in text + page and "\n# Heading" not in text
    rows = [line for line in text[text.index("## Beyond") :].splitlines() if line.startswith("| ")][:3]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert CENTRED in rows[2] and len(set(bars)) == 1


def test_a_folder_of_them_alone(tmp_path: Path) -> None:
    make_run(tmp_path, "ws", noise=KURTOSIS)
    make_run(tmp_path, CENTRED, precision="bf16")
    make_vae(tmp_path, "ws")
    text = report_text(tmp_path)
    assert "\n3 runs, 3 done" in text and "fp32 (cifar), fp32 (cvae mnist)" in text
    assert {claim.verdict for claim in findings(load(tmp_path, "short")).values()} == {"not run"}
    assert "Beyond the paper" not in text and f"| {LABEL} | – | – | 0 | – | 0.001 |" in text
    assert re.search(r"\| ws \| [\d.]+ \| – \| 1 \| – \| 0.003 \|", text) and len(CLAIMS) == 28
    drawn = {path.stem for path in (tmp_path / "short/figures").iterdir()}
    assert {"overview", "figure1", "noise_kurtosis", "figure2", "init"} <= drawn

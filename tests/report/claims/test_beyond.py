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
    DIVERGED,
    OTHERS,
    edit,
    leave_unrendered,
    make_all,
    make_bench,
    make_dqn,
    make_dqns,
    make_draw,
    make_draws,
    make_run,
    make_seeds,
    make_vae,
    make_vaes,
    report_text,
    set_scale_short,
)
from scipy import stats

from wnrepro.report import canvas, figures, rules
from wnrepro.report.claims import findings
from wnrepro.report.claims.beyond import BETTER, SAME, WORSE
from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_TESTABLE
from wnrepro.results import load
from wnrepro.settings import SETTINGS

CENTRED, SCALED = OTHERS
LABEL = "centred weight norm."
KURTOSIS = {"kurtosis_mean": 0.3, "kurtosis_std": 0.1, "kurtosis_inverse_std": 0.2, "noise_size": 0.3}


@pytest.fixture(autouse=True)
def same_scales(small_paper_scale: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale paper is that of the made-up runs of scale short."""
    set_scale_short(monkeypatch)
    for scales in (*(one.scales for one in SETTINGS.values()), *SETTINGS["cvae"].part_scales.values()):
        monkeypatch.setitem(scales, "paper", scales["short"])


def make_papers(results: Path, scale: str = "short") -> None:
    make_all(results, scale)
    make_vaes(results, scale)
    make_draws(results, scale)
    make_dqns(results, ("breakout", "seaquest"), scale)


def make_others(results: Path, scale: str = "short") -> None:
    """Runs of two, one of which has no entry in its config.json, of every experiment; one is in bf16, one diverges."""
    for param in (CENTRED, "ws"):
        side: dict[str, Any] = {"param": param, "scale": scale} | ({"lr": 0.001} if param == CENTRED else {})
        make_seeds(results, make_run, (1, 2, 3), side | {"lr": None, "noise": KURTOSIS, "facts": {"eq3_residual": 1.0}})
        make_seeds(results, make_vae, (1, 2, 3), side)
        make_seeds(results, make_draw, (1, 2, 3), side)
        make_seeds(results, make_dqn, (1, 2, 3), *(side | {"game": game} for game in ("breakout", "seaquest")))
        rates = [side | {"lr": lr, "facts": {"init_loss": 9.0}} for lr in (0.0003, 0.003, 0.01)]
        make_seeds(results, make_run, [4], *rates)
        make_run(results, param, seed=5, scale=scale, precision="bf16", record={"device": "cuda"})
    make_run(results, "ws", lr=0.1, scale=scale, **DIVERGED)
    add_ratio(results, "cpu", CENTRED, 1.05)


def add_ratio(results: Path, name: str, param: str, median: float) -> None:
    path = results / "bench" / f"{name}.json"
    bench = json.loads(path.read_text())
    bench["cifar"]["ratios"][f"{param} / normal"] = {"median": median, "low": 1.0, "high": 2.0, "n": 20}
    path.write_text(json.dumps(bench))


def names_of(sheet: Any) -> str:
    """All names in a figure's legend and axes."""
    ticks = [tick.get_text() for axes in sheet.axes for tick in axes.get_yticklabels()]
    return "\n".join([key.label for key in sheet.keys] + ticks)


@pytest.mark.slow
def test_they_are_in_every_figure_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_unrendered(monkeypatch)
    make_papers(tmp_path)
    before = load(tmp_path, "short")
    old = figures.draw(before, findings(before))
    make_others(tmp_path)
    read = load(tmp_path, "short")
    new = figures.draw(read, findings(read))
    assert old.keys() == new.keys()
    for name, figure in new.items():
        shown = names_of(figure.files["sheet"])
        assert LABEL not in names_of(old[name].files["sheet"]) + old[name].caption
        assert (LABEL in shown) == (name != "variants"), name
        assert ("ws" in shown.replace("news", "")) == (name not in ("variants", "step_time")), name
    monkeypatch.setattr(figures, "draw", lambda *given: {})
    text = report_text(tmp_path)
    tables = ("table2", "variants", "bounds", "draw_bounds", "table3", "interquartile_means", "runs", "beyond")
    for name in tables:
        table = (tmp_path / "short/tables" / f"{name}.csv").read_text()
        assert CENTRED in table, name
        assert re.search(r"(\b|_)ws(\b|_)", table), name
    assert f"{CENTRED} / normal" in (tmp_path / "short/tables/step_time.csv").read_text()
    assert f"| {LABEL} | 10.44 | \\[10.16, 10.72\\] | 3 | – | 0.001 | " in text
    assert set(pd.read_csv(tmp_path / "short/tables/beyond.csv")["result"]) == {NOT_TESTABLE}


@pytest.mark.slow
@pytest.mark.usefixtures("text_only")
def test_no_claim_changes(tmp_path: Path) -> None:
    def claims() -> tuple[str, bytes, list[str]]:
        text = report_text(tmp_path, "paper")
        section = re.search(r"## Claims.*?\n## (?!Claims)", text, re.DOTALL)
        assert section
        return section[0], (tmp_path / "paper/tables/claims.csv").read_bytes(), rules(tmp_path, "paper")

    make_papers(tmp_path, "paper")
    before = claims()
    assert "Beyond the paper" not in (tmp_path / "paper/report.md").read_text()
    make_others(tmp_path, "paper")
    assert claims() == before and "## Beyond the paper" in (tmp_path / "paper/report.md").read_text()


def compared(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the comparisons with wn and normal at scale paper, by what is compared."""
    report_text(results, "paper")
    with (results / "paper/tables/beyond.csv").open(newline="") as file:
        return {(row["what"], row["against"]): row for row in csv.DictReader(file)}


@pytest.mark.usefixtures("text_only")
def test_comparisons_are_those_of_a_plain_computation(tmp_path: Path) -> None:
    ours, theirs = [0.070, 0.071, 0.073, 0.074, 0.0725], [0.081, 0.084, 0.0825, 0.083, 0.082]
    bounds, games = [-83.0, -83.2, -83.1, -82.9, -83.05], [60.0, 66.0, 63.0]
    seeds, rates = range(1, 6), (0.0003, 0.001, 0.003, 0.01)
    scaled = {"param": SCALED, "speed": lambda s: 0.5 + 0.01 * s, "test_error": lambda s: ours[s - 1]}
    wn = {"param": "wn", "test_error": lambda s: theirs[s - 1]}
    make_seeds(tmp_path, make_run, seeds, *(scaled | {"lr": lr} for lr in rates))
    make_seeds(tmp_path, make_run, seeds, *(wn | {"lr": lr} | (DIVERGED if lr == 0.01 else {}) for lr in rates))
    for make, mine, other in (
        (make_vae, lambda s: bounds[s - 1], lambda s: -84.0 + 0.01 * s),
        (make_draw, lambda s: -80.0 - 0.001 * s, -80.0),
    ):
        make_seeds(tmp_path, make, seeds, {"param": SCALED, "bound": mine}, {"param": "wn", "bound": other})
    sides = {"param": SCALED, "best": lambda s: games[s - 1]}, {"param": "wn", "best": 50.0}
    make_seeds(tmp_path, make_dqn, (1, 2, 3), *sides)
    for i, median in enumerate((1.10, 1.12, 1.11)):
        make_bench(tmp_path, wn=1.0, name=f"s{i}", device="NVIDIA H200", created=f"2026-11-2{i}")
        add_ratio(tmp_path, f"s{i}", SCALED, median)
    found = compared(tmp_path)
    assert {against for _, against in found} == {"wn", "normal"}  # the step alone has normal

    def row(what: str, against: str = "wn") -> dict[str, Any]:
        (name,) = [key for key in found if key[0].startswith(what) and key[1] == against]
        return found[name]

    def by_seed(values: Any) -> tuple[float, ...]:
        values = np.asarray(values)
        return values.mean(), *stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))

    means = {
        (param, seed): pd.read_csv(tmp_path / f"paper/cifar/{param}_lr0.003/seed-{seed}/metrics.csv")[
            "train_error"
        ].mean()
        for param in (SCALED, "wn")
        for seed in seeds
    }
    # The best rate of both is the first, for they are alike but for that which diverges; seed 1 chose it.
    logs = [math.log(means[SCALED, seed] / means["wn", seed]) for seed in (2, 3, 4)]
    gap = 100 * (np.mean(ours) - np.mean(theirs))
    welch = stats.ttest_ind(100 * np.array(ours), 100 * np.array(theirs), equal_var=False)
    gains = [bound - (-84.0 + 0.01 * seed) for seed, bound in zip(seeds, bounds, strict=True)]
    costs = 100 * np.expm1(by_seed(np.log([1.10, 1.12, 1.11])))
    for what, against, numbers, n, result in (
        ("better: final test error, cifar", "wn", (gap, *welch.confidence_interval(0.95)), 5, BETTER),
        ("faster: mean training error", "wn", 100 * np.expm1(by_seed(logs)), 3, BETTER),
        ("better: final test bound, cvae mnist", "wn", by_seed(gains), 5, BETTER),
        ("better: final test bound, draw", "wn", by_seed([-0.001 * seed for seed in seeds]), 5, SAME),
        ("better: log ratio of maximum scores, dqn", "wn", by_seed(np.log(np.array(games) / 50)), 3, BETTER),
        ("cost of a step: time, cifar", "wn", costs, 3, WORSE),
        ("cost of a step: time, cifar", "normal", costs, 3, WORSE),
    ):
        one = row(what, against)
        assert (one["param"], one["parameterization"], int(one["n"]), one["result"]) == (SCALED, "scaled", n, result)
        assert [float(one[name]) for name in ("estimate", "low", "high")] == pytest.approx(list(numbers), rel=1e-6)
    assert row("better: final test error")["margins"] == "−0.50 points, 0, +0.50 points"
    wider = row("wider learning rates")
    assert (wider["what"].endswith("cifar, lr 0.01"), float(wider["estimate"]), wider["result"]) == (True, -100, BETTER)
    assert f"lr 0.01: 0 of 5 and 5 of 5 fail ({SCALED}, wn)" in wider["remarks"]
    steady = row("steadier: share that fails, cifar")
    assert (float(steady["estimate"]), steady["fewest_seeds"], steady["result"]) == (0, "5", INCONCLUSIVE)


@pytest.mark.usefixtures("text_only")
def test_divergence_is_worse_and_two_seeds_decide_nothing(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_draw, range(1, 6), {"param": SCALED} | DIVERGED, {"param": "wn"})
    make_seeds(tmp_path, make_run, (1, 2), {"param": "ws", "test_error": 0.01})
    make_seeds(tmp_path, make_run, (1, 2), {"param": "wn", "status": lambda s: "diverged" if s == 2 else "done"})
    found = compared(tmp_path)
    bound = found["better: final test bound, draw", "wn"]
    assert (bound["result"], bound["remarks"]) == (WORSE, f"{SCALED} diverged 100 % [47, 100] (n = 5)")
    assert found["steadier: share that fails, draw", "wn"]["result"] == WORSE
    assert found["better: final test error, cifar", "wn"]["result"] == INCONCLUSIVE


@pytest.mark.parametrize(
    "label",
    ["<script>alert(1)</script>|`rm`$\\frac{", "_hidden", "\u202eevil\x1b[31m\n# Heading", "重み" * 5000, "$^$"],
)
@pytest.mark.usefixtures("text_only")
def test_a_hostile_label_is_text(tmp_path: Path, label: str) -> None:
    edit(make_run(tmp_path, CENTRED) / "config.json", json.dumps(LABEL), json.dumps(label))
    make_run(tmp_path)
    read = load(tmp_path, "short")
    shown = read.labels[CENTRED]
    assert shown.isprintable() and len(shown) <= 60
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # as `draw`
        whole = figures.curves("figure1", read, split=True)
        assert whole is not None
        (panel,), keys = whole.panels("p", shown), [canvas.key_svg(key, "k") for key in whole.keys]
    assert f"{shown.lstrip('_')}, lr 0.001 (n = 1)" in names_of(whole)
    assert "<script" not in panel + "".join(keys)
    assert " on" not in re.sub(r'"[^"]*"|>[^<]*<', "", panel)
    assert ET.fromstring(panel).attrib["aria-label"] == shown.replace("`", "")
    text = report_text(tmp_path)
    page = (tmp_path / "short/report.html").read_text()
    assert not any(bad in text + page for bad in ("<script>a", "\u202e"))
    assert "\n# Heading" not in text
    rows = [line for line in text[text.index("## Beyond") :].splitlines() if line.startswith("| ")][:3]
    assert CENTRED in rows[2]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.usefixtures("text_only")
def test_a_folder_of_them_alone_has_a_report(tmp_path: Path) -> None:
    make_run(tmp_path, "ws", noise=KURTOSIS)
    make_run(tmp_path, CENTRED, precision="bf16")
    make_vae(tmp_path, "ws")
    text = report_text(tmp_path)
    assert {finding.verdict for finding in findings(load(tmp_path, "short")).values()} == {"not run"}
    assert "Beyond the paper" not in text and f"| {LABEL} | – | – | 0 | – | 0.001 |" in text
    assert re.search(r"\| ws \| [\d.]+ \| – \| 1 \| – \| 0.003 \|", text)

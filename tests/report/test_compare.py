"""Two results folders side by side: what is found to differ, what is said of it, and what is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import (
    ADDRESSES,
    COMMIT,
    ESCAPES,
    HOSTILE,
    SHOWN,
    edit,
    make_dqn,
    make_draw,
    make_run,
    make_seeds,
    make_vae,
    shown_by_github,
    snapshot,
)
from typer.testing import CliRunner

from wnrepro import cli
from wnrepro.report.compare import Comparison, compare
from wnrepro.results import load

pytestmark = pytest.mark.usefixtures("made_up_scale")
BOTH, NEAR, ALONE = "Runs in both", "Runs of the same model that differ in a setting", "Runs in one alone"
CIFAR = Path("short", "cifar", "wn_lr0.003", "seed-1")
Two = tuple[Path, Path]


@pytest.fixture
def two(tmp_path: Path, made_up_scale: None) -> Two:
    """Two folders with the same runs."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_seeds(ours, make_run, (1, 2), {"scale": "short", "test_error": 0.08})
    make_run(ours, "normal", lr=0.01, status="diverged", logged=2)
    make_draw(ours)
    shutil.copytree(ours, theirs)
    return ours, theirs


def compared(two: Two, scale: str = "short") -> Comparison:
    return compare(*(load(folder, scale) for folder in two))


def rows(comparison: Comparison, heading: str) -> list[dict[str, str]]:
    (table,) = [table for table in comparison.tables if table.title == heading]
    return [dict(zip(table.headings, texts, strict=True)) for texts in table.texts]


def change_epochs(folder: Path, column: str, value: Callable[[int, float], float]) -> None:
    """Other numbers in a column of metrics.csv, by epoch."""
    path = folder / "metrics.csv"
    header, *lines = [line.split(",") for line in path.read_text().splitlines()]
    place = header.index(column)
    for epoch, line in enumerate(lines, start=1):
        line[place] = str(value(epoch, float(line[place])))
    path.write_text("".join(f"{','.join(line)}\n" for line in [header, *lines]))


def test_equal_folders(two: Two) -> None:
    change_epochs(two[1] / CIFAR, "seconds", lambda *_: 1.0)  # no difference
    config = json.loads((two[1] / CIFAR / "config.json").read_text())
    del config["settings"]["polyak_epochs"]  # as a version had it that lacked the setting
    (two[1] / CIFAR / "config.json").write_text(json.dumps(config))
    found = compared(two)
    assert found.summary[0] == "4 runs are in both, 4 of them bit for bit."
    assert [table.title for table in found.tables] == [BOTH]
    for row in rows(found, BOTH):
        assert row["Numbers"] == "bit for bit" and row["Ours"] == row["Theirs"] and row["What else differs"] == ""
        assert row["Theirs − ours"] == "none"


def test_what_differs_is_named(two: Two) -> None:
    for old, new in (("AMD EPYC, 2 threads", "NVIDIA H200"), ("2.13.0", "2.15.0"), (COMMIT["commit"], "f" * 40)):
        edit(two[1] / CIFAR / "run.json", old, new)
    for name in ("ours", "theirs"):  # two commits with changes need not be the same
        git = {"git": COMMIT | {"dirty": True}, "created": f"2027 {name}"}
        make_run(two[name == "theirs"], "bn", record=git)
    change_epochs(two[1] / CIFAR, "test_error", lambda epoch, value: value + 0.01 * (epoch >= 2))
    change_epochs(two[1] / CIFAR.with_name("seed-2"), "test_error", lambda epoch, value: value + 0.01 * (epoch >= 5))
    found = compared(two)
    assert "2 differ, the earliest from epoch 2 on." in found.summary[0]
    assert "1 run differs though the files name the same commit, device, torch, data." in found.summary
    one, other = rows(found, BOTH)[:2]  # before those that agree
    assert (one["Numbers"], other["Numbers"]) == ("differ from epoch 2 on", "differ from epoch 5 on")
    assert one["Ours"].endswith("test 8.00 %") and one["Theirs"].endswith("test 9.00 %")
    assert one["Theirs − ours"] == "training +0 points, test +1 points"
    said = {row["What else differs"] for row in rows(found, BOTH)} - {""}
    assert said == {
        "commit 0123456 → fffffff; device AMD EPYC, 2 threads → NVIDIA H200; torch 2.13.0 → 2.15.0",
        "commit 0123456, dirty, of 2027 ours → 0123456, dirty, of 2027 theirs",
    }


def test_runs_are_compared_as_far_as_they_go_and_in_their_unit(tmp_path: Path) -> None:
    ours, theirs = two = tmp_path / "ours", tmp_path / "theirs"
    makers: list[Callable[..., Path]] = [make_run, make_vae, make_draw, make_dqn]
    for make in makers:
        make(ours)
    make_draw(theirs, status="running", logged=3)
    make_dqn(theirs, status="failed", logged=0)
    change_epochs(make_run(theirs), "test_error", lambda *_: float("nan"))
    change_epochs(make_vae(theirs), "test_bound_nats", lambda _, value: value - 0.5)
    said = {row["Experiment"]: row for row in rows(compared(two), BOTH)}
    assert (said["draw"]["Epochs"], said["draw"]["Numbers"]) == ("3", "bit for bit")
    assert said["draw"]["What else differs"] == "state done → epoch 3 of 10"
    assert [said["dqn"][name] for name in ("Epochs", "Numbers", "Ours")] == ["0", "no epoch in both", "–"]
    assert said["cifar"]["Theirs − ours"] == "training +0 points, test not finite"
    assert said["cvae"]["Theirs − ours"] == "test bound −0.5 nats"


def test_another_setting_pairs_the_nearest(tmp_path: Path) -> None:
    ours, theirs = two = tmp_path / "ours", tmp_path / "theirs"
    for folder, runs in ((ours, [(6, None), (7, 1.0)]), (theirs, [(7, 2.0), (4, 2.0)])):
        for epochs, g_exp in runs:
            make_run(folder, epochs=epochs, g_exp=g_exp)
    make_run(ours, "bn")
    make_run(theirs, "bn", seed=2)
    found = compared(two)
    assert [(row["Variant"], row["Settings"], row["Epochs"]) for row in rows(found, NEAR)] == [
        ("wn_lr0.003_epochs-6", "epochs 6 → 4; g_exp null → 2.0", "4"),
        ("wn_lr0.003_epochs-7_g_exp-1.0", "g_exp 1.0 → 2.0", "7"),
    ]
    assert [(row["In"], row["Seed"]) for row in rows(found, ALONE)] == [("ours", "1"), ("theirs", "2")]
    assert {f"1 run is in {folder} alone." for folder in two} <= set(found.summary)


def test_other_judged_runs_verdicts_and_files_that_do_not_fit_are_named(two: Two) -> None:
    for folder, loss in zip(two, (2.8, 2.9), strict=True):
        for param in ("wn", "bn", "normal", "wn+mobn"):
            make_run(folder, param, seed=3, facts={"init_loss": loss if param == "bn" else 2.8})
    found = compared(two)
    (row,) = [row for row in rows(found, "Verdicts") if "→" in row["Verdict"]]
    assert (row["Id"], row["Verdict"]) == ("C3", "reproduced → not reproduced") and row["Ours"] != row["Theirs"]
    assert any(sentence.endswith("changed: C3, reproduced → not reproduced.") for sentence in found.summary)
    shutil.rmtree(two[1] / "short" / "cifar")
    edit(make_run(two[1], precision="bf16") / "run.json", '"epoch": 8', '"epoch": 7')
    summary = compared(two).summary
    assert "Other runs are judged: precision of cifar fp32 → bf16." in summary
    assert summary[-1].startswith(f"1 problem with the files of {two[1]}: ")


@pytest.mark.parametrize("text", [HOSTILE, ADDRESSES, ESCAPES])
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / ADDRESSES.replace("/", "")
    git = {"commit": text[:7], "dirty": True}
    record = {"device_name": text, "versions": {"torch": text}, "git": git, "created": text, "config_hash": text}
    plain = "" if text == ESCAPES else text.replace("/", "")
    more: dict[str, Any]
    for folder, more in ((ours, {}), (theirs, {"record": record, "facts": {"data": text}})):
        change_epochs(make_run(folder, data=plain, **more), "lr", lambda _, value, more=more: value + len(more))
        make_run(folder, "bn", data=plain, g_exp=1.0 + len(more), **more)
    make_run(ours, "normal", data=plain)
    there = snapshot(theirs)
    words = ["report", "--results", str(ours), "--compare", str(theirs), "--scale", "short"]
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)
    assert snapshot(theirs) == there
    parsed = shown_by_github((ours / "short" / "comparison.md").read_text())
    own = {"h1", "h2", "p", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in parsed.tags} <= own
    assert " ".join((SHOWN if text == ESCAPES else text.strip().replace("@", "@\u2060")).split()) in parsed.text

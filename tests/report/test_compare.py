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
    make_vae,
    shown_by_github,
    snapshot,
)
from typer.testing import CliRunner

from wnrepro import cli
from wnrepro.report import write_comparison
from wnrepro.report.compare import Comparison, compare
from wnrepro.results import load
from wnrepro.settings import SETTINGS

pytestmark = pytest.mark.usefixtures("made_up_scale")
BOTH, NEAR, ALONE = "Runs in both", "Runs of the same model that differ in a setting", "Runs in one alone"
CIFAR = Path("short", "cifar", "wn_lr0.003", "seed-1")
Two = tuple[Path, Path]


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
    n = len(load(two[0], "short").runs)
    assert found.summary[0] == f"{n} runs are in both, {n} of them bit for bit."
    assert (found.scale, found.ours, found.theirs) == ("short", *map(str, two))
    assert [table.title for table in found.tables] == [BOTH]
    for row in rows(found, BOTH):
        assert row["Numbers"] == "bit for bit" and row["Ours"] == row["Theirs"] and row["What else differs"] == ""
        assert row["Theirs − ours"] == "none"


def test_what_else_differs_is_named(two: Two) -> None:
    edit(two[1] / CIFAR / "run.json", "AMD EPYC, 2 threads", "NVIDIA H200")
    edit(two[1] / CIFAR / "run.json", "2.13.0", "2.15.0")
    edit(two[1] / CIFAR / "run.json", COMMIT["commit"], "f" * 40)
    (row,) = [row for row in rows(compared(two), BOTH) if row["What else differs"]]
    said = "commit 0123456 → fffffff; device AMD EPYC, 2 threads → NVIDIA H200; torch 2.13.0 → 2.15.0"
    assert row["What else differs"] == said
    for name in ("ours", "theirs"):  # two commits with changes need not be the same
        git = {"git": COMMIT | {"dirty": True}, "created": f"2027 {name}"}
        make_run(two[name == "theirs"], "bn", record=git)
    said = "commit 0123456, dirty, of 2027 ours → 0123456, dirty, of 2027 theirs"
    assert said in [row["What else differs"] for row in rows(compared(two), BOTH)]


def test_other_numbers_from_an_epoch_on(two: Two) -> None:
    for seed, first in ((1, 2), (2, 5)):
        folder = two[1] / CIFAR.with_name(f"seed-{seed}")
        change_epochs(folder, "test_error", lambda epoch, value, first=first: value + 0.01 * (epoch >= first))
    edit(two[1] / CIFAR.with_name("seed-2") / "run.json", "AMD EPYC", "Intel")
    found = compared(two)
    assert "2 differ, the earliest from epoch 2 on." in found.summary[0]
    assert "1 run differs though the files name the same commit, device, torch, data." in found.summary
    one, other = rows(found, BOTH)[:2]  # before those that agree
    assert (one["Numbers"], other["Numbers"]) == ("differ from epoch 2 on", "differ from epoch 5 on")
    assert one["Ours"].endswith("test 8.00 %") and one["Theirs"].endswith("test 9.00 %")
    assert one["Theirs − ours"] == "training +0 points, test +1 points"


@pytest.mark.parametrize(
    ("make", "column", "less"),
    [
        (make_draw, "test_bound_nats", "test bound −0.5 nats"),
        (make_dqn, "test_score", "test score −0.5"),
        (make_vae, "test_bound_nats", "test bound −0.5 nats"),
    ],
)
def test_differences_have_their_unit(tmp_path: Path, make: Any, column: str, less: str) -> None:
    ours, theirs = make(tmp_path / "ours"), make(tmp_path / "theirs")
    change_epochs(theirs, column, lambda _, value: value - 0.5)
    found = compared((tmp_path / "ours", tmp_path / "theirs"))
    assert rows(found, BOTH)[0]["Theirs − ours"] == less
    assert ours.relative_to(tmp_path / "ours" / "short").as_posix() in found.summary[-3] + found.summary[-4]


def test_what_is_unfinished_or_not_finite_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    ours, theirs = two = tmp_path / "ours", tmp_path / "theirs"
    for folder, how in ((ours, {}), (theirs, {"status": "running", "logged": 3})):
        make_draw(folder, **how)
    for folder, how in ((ours, {}), (theirs, {"status": "failed", "logged": 0})):
        make_dqn(folder, **how)
    make_run(ours)
    change_epochs(make_run(theirs), "test_error", lambda *_: float("nan"))
    found = compared(two)
    said = {row["Experiment"]: row for row in rows(found, BOTH)}
    assert (said["draw"]["Epochs"], said["draw"]["Numbers"]) == ("3", "bit for bit")
    assert said["draw"]["What else differs"] == "state done → epoch 3 of 10"
    assert [said["dqn"][name] for name in ("Epochs", "Numbers", "Ours", "Theirs − ours")] == [
        "0",
        "no epoch in both",
        "–",
        "–",
    ]
    assert said["cifar"]["Theirs − ours"] == "training +0 points, test not finite"
    assert not any("not finite" in sentence for sentence in found.summary)


def test_another_setting_pairs_the_nearest(tmp_path: Path) -> None:
    ours, theirs = two = tmp_path / "ours", tmp_path / "theirs"
    make_run(ours, epochs=6)
    make_run(ours, epochs=7, g_exp=1.0)
    make_run(theirs, epochs=7, g_exp=2.0)
    make_run(theirs, epochs=4, g_exp=2.0)
    make_run(ours, "bn")
    make_run(theirs, "bn", seed=2)
    make_vae(ours, dataset="mnist")
    make_vae(theirs, dataset="cifar10")
    found = compared(two)
    assert [(row["Variant"], row["Settings"], row["Epochs"]) for row in rows(found, NEAR)] == [
        ("wn_lr0.003_epochs-6", "epochs 6 → 4; g_exp null → 2.0", "4"),
        ("wn_lr0.003_epochs-7_g_exp-1.0", "g_exp 1.0 → 2.0", "7"),
    ]
    alone = [(row["In"], row["Experiment"], row["Seed"]) for row in rows(found, ALONE)]
    assert alone == [("ours", "cifar", "1"), ("ours", "cvae", "1"), ("theirs", "cifar", "2"), ("theirs", "cvae", "1")]
    assert {f"2 runs are in {folder} alone." for folder in two} <= set(found.summary)


def test_other_judged_runs_and_files_that_do_not_fit_are_named(two: Two) -> None:
    shutil.rmtree(two[1] / "short" / "cifar")
    edit(make_run(two[1], precision="bf16") / "run.json", '"epoch": 8', '"epoch": 7')
    summary = compared(two).summary
    assert "Other runs are judged: precision of cifar fp32 → bf16." in summary
    assert summary[-1].startswith(f"1 problem with the files of {two[1]}: ")


def test_changed_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = {"epochs": 20, "decay_from": 10, "noise_epochs": (20,), "noise_minibatches": 200}
    monkeypatch.setitem(SETTINGS["cifar"].scales, "paper", cifar)
    ours, theirs = two = tmp_path / "ours", tmp_path / "theirs"
    for seed in (1, 2, 3):
        for folder, better in ((ours, 0.0), (theirs, 0.01)):
            make_run(folder, "normal", seed=seed, scale="paper", test_error=0.08 + 0.0001 * seed)
            make_run(folder, "wn", seed=seed, scale="paper", test_error=0.08 - better)
            make_run(folder, "bn", seed=seed, scale="paper", test_error=0.06)
            make_run(folder, "wn+mobn", seed=seed, scale="paper", test_error=0.04)
    found = compared(two, "paper")
    table = {row["Id"]: row for row in rows(found, "Verdicts")}
    changed = [f"{name}, {row['Verdict']}" for name, row in table.items() if "→" in row["Verdict"]]
    assert "C4a, reproduced → not reproduced" in changed
    assert any(sentence.endswith(f"changed: {'; '.join(changed)}.") for sentence in found.summary)
    assert "wn − normal −1.02 points [" in table["C4a"]["Theirs"] and table["C4a"]["Ours"] != table["C4a"]["Theirs"]


def test_the_same_bytes_twice_and_nothing_into_the_other_folder(two: Two) -> None:
    ours, theirs = two
    make_run(theirs, g_exp=2.0)
    change_epochs(theirs / CIFAR, "test_error", lambda _, value: value / 2)
    there, here = snapshot(theirs), snapshot(ours)
    summary, path = write_comparison(ours, theirs, "short")
    written = snapshot(ours)
    assert written.keys() - here.keys() == {"short/comparison.md", "short/comparison.html"}
    assert write_comparison(ours, theirs, "short") == (summary, path)
    assert snapshot(ours) == written and snapshot(theirs) == there
    tags = [tag for tag, _ in shown_by_github(path.with_suffix(".md").read_text()).tags]
    assert tags.count("table") == tags.count("h2") == 3


@pytest.mark.parametrize("text", [HOSTILE, ADDRESSES, ESCAPES])
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / ADDRESSES.replace("/", "")
    git = {"commit": text[:7], "dirty": True}
    record = {"device_name": text, "versions": {"torch": text}, "git": git, "created": text, "config_hash": text}
    plain = "" if text == ESCAPES else text.replace("/", "")
    for folder, more in ((ours, {}), (theirs, {"record": record, "facts": {"data": text}})):
        change_epochs(make_run(folder, data=plain, **more), "lr", lambda _, value, more=more: value + len(more))
        make_run(folder, "bn", data=plain, g_exp=1.0 + len(more), **more)
    make_run(ours, "normal", data=plain)
    words = ["report", "--results", str(ours), "--compare", str(theirs), "--scale", "short"]
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)
    parsed = shown_by_github((ours / "short" / "comparison.md").read_text())
    own = {"h1", "h2", "p", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in parsed.tags} <= own
    assert " ".join((SHOWN if text == ESCAPES else text.strip().replace("@", "@\u2060")).split()) in parsed.text

"""Two results folders side by side: what is found to differ, what is said of it, and what is written."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import COMMIT, edit, made_up_scale, make_dqn, make_draw, make_run, make_vae, snapshot
from markdown_it import MarkdownIt
from test_page import ADDRESSES, ESCAPES, HOSTILE, SHOWN, Parsed

from wnrepro.errors import UserError
from wnrepro.report import write_comparison
from wnrepro.report.compare import Comparison, compare
from wnrepro.results import load
from wnrepro.settings import SETTINGS

made_up_scale = made_up_scale  # a fixture
BOTH, NEAR, ALONE = "Runs in both", "Runs of the same model that differ in a setting", "Runs in one alone"
Two = tuple[Path, Path]


@pytest.fixture
def two(tmp_path: Path) -> Two:
    """Two folders with the same runs of every experiment."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for seed in (1, 2):
        make_run(ours, seed=seed, test_error=0.08)
    make_run(ours, "normal", lr=0.01, status="diverged", logged=2)
    make_vae(ours, dataset="cifar10")
    make_draw(ours)
    make_dqn(ours)
    shutil.copytree(ours, theirs)
    return ours, theirs


def compared(two: Two, scale: str = "short") -> Comparison:
    return compare(*(load(folder, scale) for folder in two))


def rows(comparison: Comparison, heading: str) -> list[dict[str, str]]:
    (table,) = comparison.sections[heading]
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
    found = compared(two)
    assert found.summary == [
        "6 runs are in both, 6 of them bit for bit.",
        "28 verdicts did not change, 0 of them with other numbers.",
        "No empirical claim has a verdict at this scale.",
    ]
    assert (found.scale, found.ours, found.theirs) == ("short", *map(str, two))
    assert list(found.sections) == [BOTH]
    for row in rows(found, BOTH):
        assert row["Numbers"] == "bit for bit" and row["Ours"] == row["Theirs"] and row["What else differs"] == ""
        assert row["Theirs − ours"] == "none"


def test_seconds_are_no_difference_but_another_machine_is_named(two: Two) -> None:
    _, theirs = two
    there = theirs / "short" / "cifar" / "wn_lr0.003" / "seed-1"
    change_epochs(there, "seconds", lambda *_: 1.0)
    shutil.rmtree(theirs / "short" / "cvae")
    make_vae(theirs, dataset="cifar10", facts={"data": "other"}, record={"git": COMMIT | {"commit": "f" * 40}})
    record = there / "run.json"
    edit(record, "AMD EPYC, 2 threads", "NVIDIA H200")
    edit(record, "2.13.0", "2.15.0")
    found = compared(two)
    assert found.summary[:2] == [
        "6 runs are in both, 6 of them bit for bit.",
        "What else differs between them: device (1 run), torch (1 run), commit (1 run), data (1 run).",
    ]
    said = {row["Variant"]: row["What else differs"] for row in rows(found, BOTH) if row["Seed"] == "1"}
    assert said["wn_lr0.003"] == "device AMD EPYC, 2 threads → NVIDIA H200; torch 2.13.0 → 2.15.0"
    assert said["cifar10_wn_lr0.002"] == "commit 0123456 → fffffff; data binarized by Larochelle → other"


def test_dirty_code_is_not_taken_for_the_same(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        make_run(tmp_path / name, record={"git": COMMIT | {"dirty": True}, "created": f"2027 {name}"})
    (row,) = rows(compared((tmp_path / "ours", tmp_path / "theirs")), BOTH)
    assert row["What else differs"] == "commit 0123456, dirty, of 2027 ours → 0123456, dirty, of 2027 theirs"


def test_other_numbers_from_an_epoch_on(two: Two) -> None:
    for seed, first in ((1, 2), (2, 5)):
        folder = two[1] / "short" / "cifar" / "wn_lr0.003" / f"seed-{seed}"
        change_epochs(folder, "test_error", lambda epoch, value, first=first: value + 0.01 * (epoch >= first))
    edit(two[1] / "short" / "cifar" / "wn_lr0.003" / "seed-2" / "run.json", "AMD EPYC", "Intel")
    found = compared(two)
    assert found.summary[0] == "6 runs are in both, 4 of them bit for bit; 2 differ, the earliest from epoch 2 on."
    assert found.summary[2] == "1 run differs though the files name the same commit, device, torch, data."
    assert found.summary[3] == (
        "Largest differences: training +0 points (cifar/wn_lr0.003/seed-1, epoch 8); "
        "test +1 points (cifar/wn_lr0.003/seed-1, epoch 8)."
    )
    one, other = rows(found, BOTH)[:2]  # before those that agree
    assert (one["Numbers"], other["Numbers"]) == ("differ from epoch 2 on", "differ from epoch 5 on")
    assert one["Ours"].endswith("test 8.00 %") and one["Theirs"].endswith("test 9.00 %")
    assert one["Theirs − ours"] == "training +0 points, test +1 points"


@pytest.mark.parametrize(
    ("make", "name", "column", "less"),
    [
        (make_draw, "draw/wn_lr0.0003", "test_bound_nats", "test bound −0.5 nats"),
        (make_dqn, "dqn/breakout_wn_lr0.0003", "test_score", "test score −0.5"),
    ],
)
def test_differences_have_their_unit(tmp_path: Path, make: Any, name: str, column: str, less: str) -> None:
    for folder in ("ours", "theirs"):
        make(tmp_path / folder)
    (path,) = (tmp_path / "theirs").rglob("seed-1")
    change_epochs(path, column, lambda _, value: value - 0.5)
    found = compared((tmp_path / "ours", tmp_path / "theirs"))
    (row,) = rows(found, BOTH)
    assert row["Theirs − ours"] == less and f"{name}/seed-1" in " ".join(found.summary)
    assert found.summary[0] == "1 run is in both, 0 of them bit for bit; 1 differs from epoch 1 on."


def test_what_is_unfinished_is_compared_as_far_as_both_have_got(two: Two) -> None:
    _, theirs = two
    shutil.rmtree(theirs / "short" / "draw")
    make_draw(theirs, status="running", logged=3)
    shutil.rmtree(theirs / "short" / "dqn")
    make_dqn(theirs, status="failed", logged=0)
    found = compared(two)
    assert found.summary[0] == "6 runs are in both, 5 of them bit for bit."
    assert found.summary[1] == "What else differs between them: state (2 runs)."
    draw, dqn = (row for row in rows(found, BOTH)[::-1] if row["What else differs"])
    assert (draw["Epochs"], draw["Numbers"]) == ("3", "bit for bit") and draw["Ours"] == "test bound −120.00 nats"
    assert draw["What else differs"] == "state done → epoch 3 of 10"
    assert (dqn["Epochs"], dqn["Numbers"], dqn["Ours"], dqn["Theirs − ours"]) == ("0", "no epoch in both", "–", "–")


def test_a_number_that_is_not_finite(two: Two) -> None:
    change_epochs(two[1] / "short" / "cifar" / "wn_lr0.003" / "seed-1", "test_error", lambda *_: float("nan"))
    found = compared(two)
    assert rows(found, BOTH)[0]["Theirs − ours"] == "training +0 points, test not finite points"
    assert not any("test not finite" in sentence for sentence in found.summary if sentence.startswith("Largest"))


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
    assert found.summary[:2] == [
        "0 runs are in both.",
        "2 runs have a partner of the same model that differs in a setting: epochs (1 run), g_exp (2 runs).",
    ]
    assert [(row["Variant"], row["Settings"], row["Epochs"]) for row in rows(found, NEAR)] == [
        ("wn_lr0.003_epochs-6", "epochs 6 → 4; g_exp null → 2.0", "4"),
        ("wn_lr0.003_epochs-7_g_exp-1.0", "g_exp 1.0 → 2.0", "7"),
    ]
    alone = [(row["In"], row["Experiment"], row["Seed"]) for row in rows(found, ALONE)]
    assert alone == [("ours", "cifar", "1"), ("ours", "cvae", "1"), ("theirs", "cifar", "2"), ("theirs", "cvae", "1")]
    assert {f"2 runs are in {folder} alone." for folder in two} <= set(found.summary)


def test_a_run_of_a_version_that_lacked_a_setting_is_the_same(two: Two) -> None:
    path = two[1] / "short" / "cifar" / "wn_lr0.003" / "seed-1" / "config.json"
    config = json.loads(path.read_text())
    del config["settings"]["polyak_epochs"]
    path.write_text(json.dumps(config | {"hash": "0123456789abcdef"}))
    assert compared(two).summary[0] == "6 runs are in both, 6 of them bit for bit."


def test_runs_that_are_judged_in_another_precision_are_named(two: Two) -> None:
    shutil.rmtree(two[1] / "short" / "cifar")
    make_run(two[1], precision="bf16")
    assert "Other runs are judged: precision of cifar fp32 → bf16." in compared(two).summary


def test_files_that_do_not_fit_are_named(two: Two) -> None:
    edit(two[1] / "short" / "cifar" / "wn_lr0.003" / "seed-1" / "run.json", '"epoch": 8', '"epoch": 7')
    folder = two[1]
    told = f"1 problem with the files of {folder}: wnrepro report --check --results {folder} names them."
    assert compared(two).summary[-1] == told


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
    (said,) = (sentence for sentence in found.summary if "changed" in sentence)
    table = {row["Id"]: row for row in rows(found, "Verdicts")}
    changed = {name: row["Verdict"] for name, row in table.items() if "→" in row["Verdict"]}
    assert "C4a" in changed and changed["C4a"] == "reproduced → not reproduced"
    listed = "; ".join(f"{name}, {verdict}" for name, verdict in changed.items())
    assert said == f"{len(changed)} verdict{'s' * (len(changed) > 1)} changed: {listed}."
    assert "wn − normal −1.02 points [" in table["C4a"]["Theirs"] and table["C4a"]["Ours"] != table["C4a"]["Theirs"]
    rest = f"{28 - len(changed)} verdicts did not change, {len(table) - len(changed)} of them with other numbers."
    assert rest in found.summary


# ------------------------------------------------------------------------------- what is written


def test_the_same_bytes_twice_and_nothing_into_the_other_folder(two: Two) -> None:
    ours, theirs = two
    make_run(theirs, g_exp=2.0)
    shutil.rmtree(theirs / "short" / "draw")
    change_epochs(theirs / "short" / "cifar" / "wn_lr0.003" / "seed-1", "test_error", lambda _, value: value / 2)
    there, here = snapshot(theirs), snapshot(ours)
    summary, path = write_comparison(ours, theirs, "short")
    written = snapshot(ours)
    assert path == ours / "short" / "comparison.html"
    assert written.keys() - here.keys() == {"short/comparison.md", "short/comparison.html"}
    assert write_comparison(ours, theirs, "short") == (summary, path)
    assert snapshot(ours) == written and snapshot(theirs) == there
    text = path.with_suffix(".md").read_text()
    assert f"Ours: {ours}. Theirs: {theirs}." in text.replace("\\", "")
    assert all(f"\n## {heading}\n" in text for heading in ("Verdicts", BOTH, ALONE))
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert rendered.count("<table>") == rendered.count("<h2>") == 3


def test_it_is_not_written_through_a_link_out_of_the_results(two: Two, tmp_path: Path) -> None:
    (two[0] / "short").rename(tmp_path / "short")
    (two[0] / "short").symlink_to(tmp_path / "short")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"leads out of .*: move that link away"):
        write_comparison(*two, "short")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("text", [HOSTILE, ADDRESSES, ESCAPES])
def test_hostile_text_stays_text(run: Any, tmp_path: Path, text: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / ADDRESSES.replace("/", "")
    git = {"commit": text[:7], "dirty": True}
    record = {"device_name": text, "versions": {"torch": text}, "git": git, "created": text, "config_hash": text}
    plain = "" if text == ESCAPES else text.replace("/", "")
    for folder, more in ((ours, {}), (theirs, {"record": record, "facts": {"data": text}})):
        change_epochs(make_run(folder, data=plain, **more), "lr", lambda _, value, more=more: value + len(more))
        make_run(folder, "bn", data=plain, g_exp=1.0 + len(more), **more)
    make_run(ours, "normal", data=plain)
    code, printed, error = run("report", "--results", ours, "--compare", theirs, "--scale", "short")
    assert (code, error) == (0, "") and all(letter.isprintable() or letter == "\n" for letter in printed)
    source = (ours / "short" / "comparison.md").read_text()
    assert all(letter.isprintable() or letter == "\n" for letter in source)
    assert not re.search(r"://|(?<!\w)www\.|@(?!&NoBreak;)", source)
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(source)
    own = {"h1", "h2", "p", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in Parsed(rendered).tags} <= own
    shown = " ".join((SHOWN if text == ESCAPES else text.strip().replace("@", "@\u2060")).split())
    assert html.escape(shown, quote=False).replace('"', "&quot;") in re.sub("<[^>]*>", "", rendered)


# ------------------------------------------------------------------------------- the command


def test_the_command_compares_every_scale_that_both_have(run: Any, two: Two) -> None:
    ours, theirs = two
    for folder in two:
        make_run(folder, scale="quick")
    make_run(ours, scale="paper", logged=1, status="running")
    code, printed, error = run("report", "--results", ours, "--compare", theirs)
    assert (code, error) == (0, "")
    paths = [ours / scale / "comparison.html" for scale in ("short", "quick")]
    assert [line for line in printed.splitlines() if line.endswith(".html")] == [str(path) for path in paths]
    assert printed.startswith("scale short\n6 runs are in both, 6 of them bit for bit.\n")
    assert "\nscale quick\n1 run is in both, 1 of them bit for bit.\n" in printed
    assert not list(ours.rglob("report.md")) and not (ours / "paper" / "comparison.html").exists()
    code, printed, error = run("report", "--results", ours, "--compare", theirs, "--scale", "paper")
    assert (
        code == 2 and error == f"wnrepro: --compare {theirs}: holds no runs at scale paper; give a folder that does\n"
    )


def test_own_runs_beside_the_published_and_the_other_way_round(run: Any, two: Two) -> None:
    ours, theirs = two
    shutil.copytree(ours / "short", theirs / "published" / "short")
    before = snapshot(theirs / "short")
    code, printed, _ = run("report", "--results", theirs, "--compare", theirs / "published")
    assert code == 0 and printed.endswith(f"{theirs / 'short' / 'comparison.html'}\n")
    assert snapshot(theirs / "short").keys() - before.keys() == {"comparison.md", "comparison.html"}
    code, printed, _ = run("report", "--results", theirs, "--published", "--compare", ours)
    assert code == 0 and printed.endswith(f"{theirs / 'published' / 'short' / 'comparison.html'}\n")
    for other in (theirs / "published", theirs / "published" / ".." / "published"):
        code, printed, error = run("report", "--results", theirs, "--published", "--compare", other)
        assert (code, printed) == (2, "") and "has the same files as" in error


def test_a_link_to_the_other_folders_runs_is_refused(run: Any, two: Two) -> None:
    ours, theirs = two
    shutil.rmtree(theirs / "short")
    (theirs / "short").symlink_to(ours / "short")
    before = snapshot(ours)
    code, _, error = run("report", "--results", ours, "--compare", theirs)
    assert code == 2 and "has the same files as" in error and snapshot(ours) == before

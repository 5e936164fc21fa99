"""Two results folders side by side; golden_comparison.md says what differs, `--write-golden` writes it anew."""

import json
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

pytestmark = pytest.mark.usefixtures("made_up_scale")
GOLDEN = Path(__file__).with_name("golden_comparison.md")


def change_epochs(folder: Path, column: str, value: Callable[[int, float], float]) -> None:
    """Other numbers in a column of metrics.csv, by epoch."""
    path = folder / "metrics.csv"
    header, *lines = [line.split(",") for line in path.read_text().splitlines()]
    place = header.index(column)
    for epoch, line in enumerate(lines, start=1):
        line[place] = str(value(epoch, float(line[place])))
    path.write_text("".join(f"{','.join(line)}\n" for line in [header, *lines]))


def make_two(ours: Path, theirs: Path) -> None:
    """Runs that are equal, differ in their numbers, device, code, state or settings, or are in one folder alone."""
    other = {"device_name": "NVIDIA H200", "git": COMMIT | {"commit": "f" * 40}, "versions": {"torch": "2.15.0"}}
    for folder, loss, more in ((ours, {}, {}), (theirs, {"init_loss": 2.9}, other)):
        make_run(folder)
        make_run(folder, seed=2, record=more)
        record = {"git": COMMIT | {"dirty": True}, "created": f"2027 {folder.name}"}
        make_run(folder, seed=3, record=record, test_error=0.08)
        for param in ("bn", "normal", "wn+mobn"):  # of which C3's verdict changes
            make_run(folder, param, facts=loss if param == "bn" else {})
    config = json.loads((theirs / "short/cifar/wn_lr0.003/seed-1/config.json").read_text())
    del config["settings"]["polyak_epochs"]  # as a version had it that lacked the setting
    (theirs / "short/cifar/wn_lr0.003/seed-1/config.json").write_text(json.dumps(config))
    change_epochs(theirs / "short/cifar/wn_lr0.003/seed-1", "seconds", lambda *_: 1.0)  # no difference
    change_epochs(theirs / "short/cifar/wn_lr0.003/seed-2", "test_error", lambda n, value: value + 0.01 * (n >= 2))
    change_epochs(theirs / "short/cifar/wn_lr0.003/seed-3", "test_error", lambda n, value: value + 0.01 * (n >= 5))
    change_epochs(theirs / "short/cifar/normal_lr0.0003/seed-1", "test_error", lambda *_: float("nan"))
    make_draw(ours)
    make_draw(theirs, status="running", logged=3)
    make_dqn(ours)
    make_dqn(theirs, status="failed", logged=0)
    make_vae(ours, precision="tf32")
    make_vae(theirs, precision="bf16")  # other runs are judged
    make_vae(ours, dataset="cifar10")
    change_epochs(make_vae(theirs, dataset="cifar10"), "test_bound_nats", lambda _, value: value - 0.5)
    for folder, runs in ((ours, [(6, None), (7, 1.0)]), (theirs, [(7, 2.0), (4, 2.0)])):
        for epochs, g_exp in runs:  # each has its nearest
            make_run(folder, epochs=epochs, g_exp=g_exp)
    make_run(ours, "bn", seed=8)
    edit(make_run(theirs, "bn", seed=9) / "run.json", '"epoch": 8', '"epoch": 7')  # does not fit


def test_comparison_is_the_golden_one(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_two(ours, theirs)
    there, here = snapshot(theirs), snapshot(ours)
    summary, path = write_comparison(ours, theirs, "short")
    written = snapshot(ours)
    assert written.keys() - here.keys() == {"short/comparison.md", "short/comparison.html"}
    assert write_comparison(ours, theirs, "short") == (summary, path)
    assert snapshot(ours) == written and snapshot(theirs) == there
    text = path.with_suffix(".md").read_text().replace(str(tmp_path), "…")
    if pytestconfig.getoption("--write-golden"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert write_comparison(ours, ours, "short")[0][0] == "13 runs are in both, 13 of them bit for bit."


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
    words = ["report", "--results", str(ours), "--compare", str(theirs), "--scale", "short"]
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stderr) == (0, "")
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)
    parsed = shown_by_github((ours / "short" / "comparison.md").read_text())
    own = {"h1", "h2", "p", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in parsed.tags} <= own
    assert " ".join((SHOWN if text == ESCAPES else text.strip().replace("@", "@\u2060")).split()) in parsed.text

"""The plan: what of the grid is done, what its runs take, how many share a GPU, what its claims can come to."""

import dataclasses
import io
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from factories import HERE, Hold, put_run, quick_run
from rich.console import Console

from wnrepro.report.claims.claim import Claim, Power
from wnrepro.report.stats import look
from wnrepro.reproduce.board import print_plan, summary
from wnrepro.reproduce.grid import Planned, planned
from wnrepro.reproduce.plan import (
    CONTEXT_BYTES,
    UNKNOWN,
    Estimate,
    Measured,
    Task,
    as_json,
    estimate,
    estimate_all,
    measured,
    packing,
    plan,
    promises,
    totals,
)
from wnrepro.results import load
from wnrepro.runs.directory import PUBLISHED
from wnrepro.runs.run import open_run
from wnrepro.settings import SETTINGS, CifarSettings, config_hash, setting

DQN = planned("paper", ["dqn"])[0]
DQN_SECONDS = 0.2 / 4 * 200 * 250_000  # at 0.2 s a training step


def put_bench(results: Path, name: str = "one", device: str = HERE, **figures: Any) -> None:
    path = results / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {experiment: one and {"ratios": {}} | one for experiment, one in figures.items()}
    path.write_text(json.dumps({"device_name": device, **entries}))


def estimated(results: Path, *runs: Planned, device: str = HERE) -> list[Task]:
    tasks = plan(results, runs)
    estimate_all(tasks, results, device)
    return tasks


def test_plan_shows_the_state_of_every_run(tmp_path: Path, hold: Hold) -> None:
    epochs = {"missing": 0, "stopped": 3, "failed": 2, "done": 10, "diverged": 4, "running": 5}
    runs = {name: quick_run(seed=seed) for seed, name in enumerate([*epochs, "starting"])}
    for name in [*epochs][1:]:
        status = "running" if name == "stopped" else name
        put_run(tmp_path, runs[name], status, epoch=epochs[name], message="MemoryError: no more")
    holder = hold(runs["running"].directory(tmp_path))
    hold(runs["starting"].directory(tmp_path))  # before its first file
    found = [task.found for task in plan(tmp_path, [*runs.values()])]
    assert [(state.name, state.epoch) for state in found] == [*epochs.items(), ("running", 0)]
    assert found[2].message == "MemoryError: no more"
    holder.kill()
    holder.wait()
    assert plan(tmp_path, [runs["running"]])[0].found.name == "stopped"  # a dead process holds nothing


def test_an_odd_run_is_planned_beside_the_others(tmp_path: Path) -> None:
    runs = [quick_run(seed=seed) for seed in range(1, 6)]
    folders = [put_run(tmp_path, one) for one in runs]
    (folders[0] / "config.json").write_text((folders[1] / "config.json").read_text())
    (folders[1] / "run.json").write_text("{")
    content = json.loads((folders[2] / "run.json").read_text())
    (folders[2] / "run.json").write_text(json.dumps(content | {"epoch": 11}))
    folders[3].rename(tmp_path / "elsewhere")
    folders[3].symlink_to(tmp_path / "elsewhere")
    tasks = estimated(tmp_path, *runs, quick_run(seed=6))
    assert [task.found.name for task in tasks] == ["odd"] * 4 + ["done", "missing"]
    assert [task.state for task in tasks] == ["failed"] * 4 + ["done", "waiting"]
    places = [folders[0] / "config.json", folders[1] / "run.json", folders[2] / "run.json", folders[3]]
    assert all(task.text.startswith(f"{place}: ") for task, place in zip(tasks, places, strict=False))
    assert totals(tasks, {})["odd"] == 4 and tasks[0].seconds_left == 0


def test_a_run_without_a_later_setting_is_done(tmp_path: Path) -> None:
    settings = dict((run := quick_run()).directory(tmp_path).config["settings"])
    for name, state in (("input_noise", "done"), ("width", "odd")):  # quick has the field's input_noise, another width
        earlier = {other: value for other, value in settings.items() if other != name}
        digest = config_hash("cifar", "quick", earlier)
        folder = put_run(tmp_path, run, config_hash=digest)
        config = {"experiment": "cifar", "scale": "quick", "settings": earlier, "hash": digest}
        (folder / "config.json").write_text(json.dumps(config))
        (task,) = plan(tmp_path, [run])
        assert (task.found.name, task.directory.config["hash"] == digest) == (state, state == "done")


def test_a_setting_added_to_the_code_leaves_earlier_runs_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_run(tmp_path, quick_run())
    before, digest = (folder / "config.json").read_text(), quick_run().directory(tmp_path).config["hash"]
    field: Any = ("cutout", int, setting(0, "pixels left out", "our choice", least=0))
    later = dataclasses.make_dataclass("Later", [field], bases=(CifarSettings,), frozen=True)
    monkeypatch.setitem(SETTINGS, "cifar", later)
    (task, other) = plan(tmp_path, [quick_run(), quick_run(cutout=8)])
    assert (task.found.name, other.found.name) == ("done", "missing")
    assert task.directory.config["hash"] == digest and (folder / "config.json").read_text() == before
    opened = open_run(folder)
    assert (opened.settings, opened.config["hash"]) == (quick_run().settings, digest)
    assert [run.settings["cutout"] for run in load(tmp_path, "quick").runs] == [0]
    monkeypatch.setitem(later.scales, "quick", later.scales["quick"] | {"cutout": 8})  # another run
    (task,) = plan(tmp_path, [quick_run()])
    assert task.found.name == "odd" and "(cutout)" in task.text


def test_estimate_is_from_what_is_most_alike() -> None:
    kinds = itertools.product(("normal", "wn"), ("A processor, 9 threads", HERE), ("bench", "run"))  # the best at last
    known = [
        Measured(quick_run(param=param), device, float(number), number, source)
        for number, (param, device, source) in enumerate(kinds, start=1)
    ]
    for most in range(len(known), 0, -1):
        found = estimate(quick_run(seed=9), HERE, random.sample(known[:most], most))
        assert (found.seconds, found.source) == (most * 10 * 1500, f"1 {known[most - 1].source}")
    assert estimate(quick_run(), HERE, known).memory_bytes == 8
    for other in (quick_run(width=32), quick_run(batch_size=50), quick_run(precision="bf16"), quick_run("draw")):
        assert estimate(other, HERE, known) == UNKNOWN


@pytest.fixture
def nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnrepro.reproduce.costs.costs", tuple)


@pytest.mark.usefixtures("nothing_shipped")
def test_estimates_are_from_runs_and_benchmarks_of_this_processor(tmp_path: Path) -> None:
    put_run(tmp_path, quick_run(), seconds=150.0, peak_memory_bytes=3 * 10**9)  # 0.01 s an example
    for place, seed in ((tmp_path, 2), (tmp_path / PUBLISHED, 7)):
        put_run(place, quick_run(seed=seed), "running", epoch=5, seconds=75.0)
    put_run(tmp_path, quick_run(seed=8), "failed", epoch=0, seconds=0.0)
    put_run(tmp_path, quick_run("draw", seed=3), device_name="Another processor, 2 threads")
    put_run(tmp_path, quick_run(seed=6), seconds="long")
    put_run(tmp_path, quick_run(seed=10), device_name=None)
    (put_run(tmp_path, quick_run(seed=4)) / "run.json").write_text("{")
    (put_run(tmp_path, quick_run(seed=5)) / "config.json").write_text("[]")
    times: dict[str, Any] = {"normal": [0.1, 9.0, 0.2], "wn": [0.1], "plain wn": [5.0], "wn, learning": [7.0]}
    figures = {"seconds": times, "device": "cpu", "replay_memory": {"on": "cpu", "peak_bytes": 7}}
    put_bench(tmp_path, "one", "A processor, 4 threads", dqn=figures)
    put_bench(tmp_path, "other", "Another processor, 4 threads", dqn=figures)
    put_bench(tmp_path, "third", dqn={"seconds": {"wn": "slow"}}, cifar=None)
    (tmp_path / "bench/damaged.json").write_text("nothing")
    assert Counter(one.source for one in measured(tmp_path, HERE)) == {"run": 3, "bench": 2}
    assert {one.memory_bytes for one in measured(tmp_path, HERE) if one.source == "bench"} == {7}  # the whole replay's

    runs = [quick_run(seed=2), quick_run(train_examples=3000, seed=2), quick_run("draw"), DQN]
    tasks = estimated(tmp_path, *runs)
    assert [task.estimate.source for task in tasks] == ["3 runs", "3 runs", "", "1 bench"]
    assert [task.estimate.seconds for task in tasks] == pytest.approx([150.0, 300.0, None, DQN_SECONDS])
    assert [task.seconds_left for task in tasks] == pytest.approx([75.0, 300.0, None, DQN_SECONDS])
    assert [task.estimate.memory_bytes for task in tasks] == [3 * 10**9, 3 * 10**9, None, 7]
    assert {task.estimate for task in estimated(tmp_path, *runs, device="A third one, 2 threads")} == {UNKNOWN}


@pytest.mark.usefixtures("nothing_shipped")
def test_totals_sum_the_rows(tmp_path: Path) -> None:
    put_run(tmp_path, quick_run(), peak_memory_bytes=3 * 10**9)
    put_run(tmp_path, quick_run(seed=2), "running", epoch=5, seconds=30.0)
    put_bench(tmp_path, dqn={"seconds": {"normal": [0.2]}})
    tasks = estimated(tmp_path, *(quick_run(seed=seed) for seed in (1, 2, 3)), quick_run("draw"), DQN)
    together = {"cifar": 2, "draw": 2, "dqn": 8}
    sums, content = totals(tasks, together), json.loads(as_json(tasks, [], together, "quick"))
    assert content | sums == content and content["scale"] == "quick"
    assert [sums[name] for name in ("runs", "done", "stopped", "missing")] == [5, 1, 1, 3]
    assert [row["seconds_left"] for row in content["grid"]] == [0, 30, 60, None, DQN_SECONDS]
    assert (sums["hours_left_known_for"], sums["side_by_side"]) == (3, together)
    hours = [(90 + DQN_SECONDS) / 3600, (30 + DQN_SECONDS) / 3600]  # DQN's begins when the first of two ends
    assert [sums["hours_left"], sums["hours_left_side_by_side"]] == pytest.approx(hours, abs=1e-3)
    text = summary(tasks, together)
    assert all(part in text for part in ("1 done, 1 stopped, 3 missing", "2 to 8", "3 of 4", "3.0 GB"))


def test_as_many_runs_share_a_gpu_as_were_fastest_together_and_fit_its_memory(tmp_path: Path) -> None:
    draw = {"side_by_side": {"1": 10, "2": 19, "4": 30, "8": 30.5}}
    figures = {"cifar": {"side_by_side": {"1": 90, "2": 94, "4": 93}}, "draw": draw, "dqn": {"side_by_side": {}}}
    put_bench(tmp_path, "one", "A GPU", cvae={"seconds": {}}, **figures)
    put_bench(tmp_path, "other", "Another GPU", cvae=draw)
    put_bench(tmp_path, "third", "A GPU", cvae={"side_by_side": "many"})
    put_bench(
        tmp_path / PUBLISHED, "one", "A GPU", cvae={"side_by_side": {"1": 1, "2": 2}}, draw={"side_by_side": {"1": 9}}
    )
    tasks = plan(tmp_path, planned("quick"))
    assert packing(tasks, tmp_path, "A GPU", 10**10) == {"cifar": 1, "cvae": 2, "draw": 4, "dqn": 1}
    tasks = [task for task in tasks if task.run.experiment == "draw"]
    tasks[1].estimate = Estimate(memory_bytes=10**9)
    each = 10**9 + CONTEXT_BYTES
    shared = [packing(tasks, tmp_path, "A GPU", size)["draw"] for size in (9 * each, 4 * each, 4 * each - 1, each, 1)]
    assert shared == [4, 4, 3, 1, 1]


def test_plan_promises_the_power_of_the_claims_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def power(claim: Claim, n: int) -> Power | None:
        return None if claim.id == "C3" else Power(look(n), 0.805, 0.01, 0.0213, 0.2, "0.4 [points]", 8)

    monkeypatch.setattr(Claim, "power", power)
    tasks = plan(tmp_path, planned("paper", ["draw", "cvae"]))
    promised = promises(tasks, "paper")
    found = [(claim, number, power.n) for claim, number, power in promised]
    assert found == [("C9a", 3, 3), ("C9b", 5, 5), ("C10a", 5, 5), ("C10b", 5, 5), ("C16a", 3, 3)]
    print_plan(Console(file=(text := io.StringIO())), tasks, promised, {})
    assert re.search(r"C10b +5 +5 +80 % +2 % +0.4 \[points\] +8\n", text.getvalue())
    rows = json.loads(as_json(tasks, promised, {}, "paper"))["claims"]
    assert [*rows[3].values()] == ["C10b", 5, 5, "0.4 [points]", 0.805, 0.0213, 8]
    assert promises(plan(tmp_path, planned("quick", ["draw"])), "quick") == []  # no claim is judged there

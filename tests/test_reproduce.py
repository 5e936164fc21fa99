"""The grid of the paper's runs: what it holds, what is left of it, and doing it, with kills -9 for real."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import small_data, tiny_cvae, tiny_dqn, tiny_draw, without_seconds
from rich.console import Console

from wnrepro import cli, mps, paper, preflight
from wnrepro.cuda_graphs import CaptureError
from wnrepro.errors import UserError
from wnrepro.experiments import experiment_class
from wnrepro.experiments.draw import Draw
from wnrepro.report.claims import CLAIMS, dqn
from wnrepro.report.claims.claim import Claim, Power
from wnrepro.report.stats import LOOKS, look
from wnrepro.reproduce import command, engines, work
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce.board import Board, print_plan, summary
from wnrepro.reproduce.drive import TRIES, Task, drive, seconds_of
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.grid import Planned, left_out, planned, seeds
from wnrepro.reproduce.plan import (
    CONTEXT_BYTES,
    Estimate,
    Line,
    Measured,
    as_json,
    estimate,
    estimated,
    measured,
    packing,
    plan,
    promises,
    totals,
)
from wnrepro.reproduce.work import Event, Job
from wnrepro.runs.directory import PUBLISHED, write_json
from wnrepro.runs.run import Run
from wnrepro.settings import GAMES, PARAMS, SCALE_NAMES, SETTINGS, Settings, scale_settings, settings_from

CPU = torch.device("cpu")
HERE = "A processor, 2 threads"
each_scale = pytest.mark.parametrize("scale", SCALE_NAMES)


def whole(scale: str) -> list[Planned]:
    return planned(scale, ())


def quick(experiment: str = "cifar", param: str = "wn", **changes: Any) -> Planned:
    return Planned(experiment, "quick", scale_settings(experiment, "quick", param, **changes), ("C3",))


def put(results: Path, one: Planned, status: str = "done", epoch: int | None = None, **changes: Any) -> Path:
    """Make a run's directory by hand, as a process leaves it; the directory."""
    there, epochs = one.directory(results), one.settings.epochs
    there.folder.mkdir(parents=True, exist_ok=True)
    record = {"status": status, "message": "", "epoch": epochs if epoch is None else epoch, "epochs": epochs}
    record |= {"device_name": HERE, "seconds": 60.0, "peak_memory_bytes": 10**9}
    record |= {"config_hash": there.config["hash"], "resumed": [], "facts": {}}
    write_json(there.folder / "config.json", there.config)
    write_json(there.folder / "run.json", record | changes)
    return there.folder


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """hold(folder) → another process, which holds the run's directory until it is killed."""
    processes = []

    def start(folder: Path) -> subprocess.Popen:
        code = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n"
        command = [sys.executable, "-c", code + "    time.sleep(600)", folder / "lock"]
        folder.mkdir(parents=True, exist_ok=True)
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        processes[-1].stdout.readline()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------------------- the grid


@each_scale
def test_the_grid_has_every_run_once_and_a_directory_for_each(tmp_path, scale):
    runs = whole(scale)
    assert len({(one.experiment, one.settings) for one in runs}) == len(runs)
    assert len({one.directory(tmp_path).folder for one in runs}) == len(runs)
    for one in runs:
        assert settings_from(one.experiment, one.directory(tmp_path).config["settings"]) == one.settings
        if scale == "quick":
            experiment_class(one.experiment).check(one.settings, None, CPU)
    for experiment in SETTINGS:
        assert planned(scale, [experiment]) == [one for one in runs if one.experiment == experiment]


@each_scale
def test_the_grid_has_what_the_claims_are_judged_by(scale):
    runs = whole(scale)

    def seeds_of(experiment: str, **values: object) -> set[int]:
        """Seeds of the runs at the scale's defaults besides these values."""
        default = scale_settings(experiment, scale, **values)
        same = [dataclasses.replace(default, seed=one.settings.seed) == one.settings for one in runs]
        return {one.settings.seed for one, here in zip(runs, same, strict=True) if here}

    for param in PARAMS:  # a start of all four, as C3 needs
        assert 1 in seeds_of("cifar", param=param) and 1 in seeds_of("draw", param=param)
        assert all(1 in seeds_of("cvae", param=param, dataset=dataset) for dataset in paper.FIGURE2)
        if scale != "short":
            assert 1 in seeds_of("dqn", param=param, game=paper.FIGURE4)
    for param, lr in itertools.product(("normal", "wn"), paper.LEARNING_RATES):  # C6, C13, C14
        assert 1 in seeds_of("cifar", param=param, lr=lr)
    for exponent in (1.0, 3.0, 5.0):  # C15, beside direct g
        assert seeds_of("cifar", param="wn", g_exp=exponent) == seeds_of("cifar", param="wn")
    for experiment in ("cifar", "cvae"):  # C16
        assert seeds_of(experiment, param="wn", v_norm_max=0.25)
    for one in runs:  # what differs by one setting stands beside a run without it
        for name in ("g_exp", "v_norm_max", "g_start"):
            if getattr(one.settings, name, None) is not None:
                plain = dataclasses.replace(one.settings, **{name: None})
                assert any(other.settings == plain for other in runs)
    assert len(seeds_of("draw", param="wn") & seeds_of("draw", param="normal")) >= (2 if scale != "quick" else 1)
    if scale == "paper":
        ten, five, three = set(range(1, 11)), set(range(1, 6)), {1, 2, 3}
        for param in PARAMS:  # C4, C8, C18
            assert seeds_of("cifar", param=param) == ten
        for param, lr in itertools.product(("normal", "wn"), paper.LEARNING_RATES):  # C5a, C13, C14
            assert seeds_of("cifar", param=param, lr=lr) == ten
        assert all(three <= seeds_of("cifar", param="bn", lr=lr) for lr in paper.LEARNING_RATES)  # C5b
        assert seeds_of("cifar", param="normal", lr=paper.DIVERGING_LR) == ten  # C6
        for param in ("normal", "wn"):
            assert seeds_of("cvae", param=param) == seeds_of("draw", param=param) == five  # C9, C10
            assert seeds_of("cvae", param=param, dataset="cifar10") == three
            assert all(seeds_of("dqn", param=param, game=game) == three for game in GAMES)  # C11
        assert seeds_of("draw", param="wn", g_start=1.0) == five
        for bound in (None, 0.25):  # C16, C19
            assert seeds_of("cifar", param="wn", polyak_epochs=10.0, v_norm_max=bound) == ten
            assert five <= seeds_of("cifar", param="wn", v_norm_max=bound)
            assert seeds_of("cvae", param="wn", v_norm_max=bound) == five
            assert seeds_of("cvae", param="wn", dataset="cifar10", v_norm_max=bound) == three
        for game, lr in itertools.product(("breakout", "space_invaders"), dqn.RATES):  # C12
            assert seeds_of("dqn", param="bn", game=game, lr=lr) == three
        assert seeds_of("dqn", param="bn", game="breakout", batch_size=512) == {1}


@each_scale
def test_what_a_run_serves_exists(scale):
    served = set(itertools.chain.from_iterable(one.serves for one in whole(scale)))
    others = {name for name in served if not re.fullmatch(r"C\d+[a-z]?", name)}
    assert others <= {"table 2", "table 3", *(f"figure {number}" for number in range(1, 5))} | {
        "normal by the paper's text",
        "bn with a large minibatch",
    }
    unserved = {claim.id for claim in CLAIMS} - served
    assert served - others <= {claim.id for claim in CLAIMS} and seeds(scale).keys() == served - others
    if scale == "paper":  # identities and step times, of which every run, or `bench`, tells
        assert unserved == {"C1", "C2", "C7a", "C7b", "C17"}
        assert all(number in LOOKS for claim, number in seeds(scale).items() if claim != "C3")


def test_normal_by_the_papers_text_stands_at_rates_where_the_authors_is():
    for scale, rates in (("paper", paper.LEARNING_RATES), ("short", (0.0003, 0.003)), ("quick", ())):
        runs = [one for one in planned(scale, ["cifar"]) if one.serves == ("normal by the paper's text",)]
        assert [one.settings.lr for one in runs] == list(rates)
        for one in runs:
            assert (one.settings.param, one.settings.init) == ("normal", "folded")
            assert dataclasses.replace(one.settings, init="authors") in [other.settings for other in whole(scale)]
    assert [len(whole(scale)) for scale in SCALE_NAMES] == [271, 41, 32]  # README.md says so


@pytest.mark.parametrize(
    ("words", "there", "out"),
    [
        ("", "cifar cvae:mnist cvae:cifar10 draw dqn:breakout dqn:space_invaders", []),
        ("cifar cvae mnist", "cifar cvae:mnist", ["cvae cifar10", "draw", "dqn"]),
        ("mnist", "cvae:mnist", ["cifar", "cvae cifar10", "draw", "dqn"]),
        ("cifar10 cvae mnist", "cvae:mnist cvae:cifar10", ["cifar", "draw", "dqn"]),
        ("dqn mnist", "cvae:mnist dqn:breakout dqn:space_invaders", ["cifar", "cvae cifar10", "draw"]),
        ("breakout draw cvae", "cvae:mnist cvae:cifar10 draw dqn:breakout", ["cifar", "dqn space_invaders"]),
    ],
)
def test_words_are_experiments_or_parts_of_them(words, there, out):
    runs = planned("short", words.split())
    kinds = {f"{one.experiment}:{one.part}".rstrip(":") for one in runs}
    assert (kinds, left_out("short", runs)) == (set(there.split()), out)
    assert runs == [one for one in whole("short") if f"{one.experiment}:{one.part}".rstrip(":") in kinds]


def test_a_word_that_names_nothing_of_the_scale_is_refused_with_those_that_do():
    known = "cifar, cvae, draw, dqn, mnist, cifar10, breakout, space_invaders"
    for word in ("chess", "enduro", "Cifar", ""):
        with pytest.raises(UserError, match=f"^reproduce {word}: unknown at scale short; give some of {known}, or "):
            planned("short", ["cifar", word])
    assert planned("paper", ["enduro"])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("C10", {"C10a", "C10b"}),
        ("C10b", {"C10b"}),
        ("figure1 C16a", {"figure 1", "C16a"}),
        ("C12 table2", {"C12", "table 2"}),
    ],
)
def test_words_are_claims_tables_and_figures(words, wanted):
    runs = planned("paper", words.split())
    assert runs == [one for one in whole("paper") if wanted & set(one.serves)] != []
    assert planned("paper", ["mnist", *words.split()]) == [
        one for one in whole("paper") if wanted & set(one.serves) or one.part == "mnist"
    ]


def test_what_is_left_out_of_an_experiment_is_named():
    assert left_out("paper", planned("paper", ["C10", "cvae"])) == ["cifar", "some of draw", "dqn"]
    assert left_out("short", planned("short", ["C16a"])) == [
        *("cifar", "cvae cifar10", "some of cvae mnist", "draw", "dqn")
    ]


def test_changes_are_settings_of_all_runs():
    assert {one.settings.precision for one in planned("quick", list(SETTINGS), precision="bf16")} == {"bf16"}
    with pytest.raises(UserError, match="--precision fp8: unknown"):
        planned("quick", ["draw"], precision="fp8")


# ------------------------------------------------------------------------------- the plan


def test_a_plan_knows_how_it_stands_with_every_run(tmp_path, hold):
    names = ["missing", "stopped", "failed", "done", "diverged", "running", "starting"]
    runs = [quick(seed=seed) for seed in range(len(names))]
    by_name = dict(zip(names, runs, strict=True))
    put(tmp_path, by_name["stopped"], "running", epoch=3)
    put(tmp_path, by_name["failed"], "failed", epoch=2, message="MemoryError: no more")
    put(tmp_path, by_name["done"])
    put(tmp_path, by_name["diverged"], "diverged", epoch=4)
    holder = hold(put(tmp_path, by_name["running"], "running", epoch=5))
    hold(by_name["starting"].directory(tmp_path).folder)  # before its first file
    states = [line.state for line in plan(tmp_path, runs)]
    assert [state.name for state in states] == [*names[:-1], "running"]
    assert [state.epoch for state in states] == [0, 3, 2, 10, 4, 5, 0]
    assert states[2].message == "MemoryError: no more"
    holder.kill()
    holder.wait()
    assert plan(tmp_path, [by_name["running"]])[0].state.name == "stopped"  # a dead process holds nothing
    config = by_name["done"].directory(tmp_path).folder / "config.json"
    config.write_text(config.read_text().replace('"hash": "', '"hash": "other'))
    with pytest.raises(UserError, match="damaged, its hash is not that of its settings"):
        plan(tmp_path, runs)


def test_an_estimate_is_from_what_is_most_alike():
    wanted, known = quick(seed=9), []
    for number, (param, device, source) in enumerate(
        itertools.product(("normal", "wn"), ("A processor, 9 threads", HERE), ("bench", "run")), start=1
    ):  # from the least alike to the most
        about = ("cifar", "quick", quick(param=param).settings, device, float(number), number, source)
        known.append(Measured(*about))
    for most in range(len(known), 0, -1):
        found = estimate(wanted, HERE, random.sample(known[:most], most))
        assert found.seconds == most * 10 * 1500 and found.source == f"1 {known[most - 1].source}"
    of_wn = [one for one in known if one.settings.param == "wn"]
    assert estimate(wanted, HERE, known).memory_bytes == max(one.memory_bytes for one in of_wn)
    others = [quick(width=32), quick(batch_size=50), quick(precision="bf16"), quick("draw")]
    assert all(estimate(other, HERE, known) == Estimate(None, None, "") for other in others)


def test_a_plan_estimates_from_runs_and_benchmarks_of_this_processor(tmp_path):
    half, large = quick(seed=2), quick(train_examples=3000, seed=2)
    runs = [half, large, quick("draw"), *planned("paper", ["dqn"])[:1]]
    put(tmp_path, quick(), seconds=150.0, peak_memory_bytes=3 * 10**9)  # 0.01 s an example
    put(tmp_path, quick(seed=7), "running", epoch=5, seconds=75.0)
    put(tmp_path, quick(seed=8), "failed", epoch=0, seconds=0.0)
    put(tmp_path, half, "running", epoch=5, seconds=75.0)
    put(tmp_path, quick("draw", seed=3), device_name="Another processor, 2 threads")
    (put(tmp_path, quick(seed=4)) / "run.json").write_text("{")
    (put(tmp_path, quick(seed=5)) / "config.json").write_text("[]")
    put(tmp_path, quick(seed=6), seconds="long")
    put(tmp_path, quick(seed=10), device_name=None)
    seconds = {"normal": [0.1, 9.0, 0.2], "wn": [0.1]}
    figures = {"seconds": seconds, "device": "cpu", "replay_memory": {"on": "cpu", "peak_bytes": 7}}
    bench = {"device_name": "A processor, 4 threads", "dqn": figures}
    (tmp_path / "bench").mkdir()
    write_json(tmp_path / "bench/one.json", bench)
    write_json(tmp_path / "bench/other.json", bench | {"device_name": "Another processor, 4 threads"})
    write_json(tmp_path / "bench/third.json", bench | {"dqn": {"seconds": {"wn": "slow"}}, "cifar": None})
    (tmp_path / "bench/damaged.json").write_text("nothing")
    assert Counter(one.source for one in measured(tmp_path, HERE)) == {"run": 3, "bench": 2}

    lines = estimated(plan(tmp_path, runs), tmp_path, HERE)
    assert [line.estimate.source for line in lines] == ["3 runs", "3 runs", "", "1 bench"]
    assert [line.seconds_left for line in lines] == pytest.approx([75.0, 300.0, None, 0.2 / 4 * 200 * 250_000])
    assert [line.estimate.memory_bytes for line in lines] == [3 * 10**9, 3 * 10**9, None, 7]
    assert lines[3].run.settings.param == "normal" and median(seconds["normal"]) == 0.2
    elsewhere = estimated(plan(tmp_path, runs), tmp_path, "A third processor, 2 threads")
    assert {line.estimate for line in elsewhere} == {Estimate(None, None, "")}

    done = estimated(plan(tmp_path, [quick(), *runs]), tmp_path, HERE)
    two = dict.fromkeys(SETTINGS, 2)
    sums, content = totals(done, two), json.loads(as_json(done, [], two, "quick"))
    assert {name: content[name] for name in sums} == sums and content["scale"] == "quick"
    assert (sums["runs"], sums["done"], sums["stopped"], sums["missing"]) == (5, 1, 1, 3)
    known = [row["seconds_left"] for row in content["grid"] if row["seconds_left"] is not None]
    assert len(known) == 1 + sums["hours_left_known_for"] == 4 and known[0] == 0
    assert sums["hours_left"] == pytest.approx(sum(known) / 3600, abs=1e-3)
    assert sums["side_by_side"] == {"cifar": 2, "draw": 2, "dqn": 2}
    *_, dqn = known
    mixed = totals(done, two | {"dqn": 8})
    assert mixed["hours_left_side_by_side"] == pytest.approx((sum(known) - dqn) / 2 / 3600 + dqn / 3 / 3600, abs=1e-3)
    assert "with 2 to 8 side by side" in summary(done, two | {"dqn": 8})
    text = summary(done, two)
    assert text.startswith("5 runs: 1 done, 1 stopped, 3 missing. Left: about ")
    assert "with 2 side by side for the 3 of 4 runs of which it can be told" in text and "3.0 GB of memory" in text


def test_a_plan_estimates_from_published_runs_and_benchmarks_too(tmp_path):
    published, line = tmp_path / PUBLISHED, plan(tmp_path, [quick(seed=2)])
    put(published, quick(), seconds=150.0)
    (published / "bench").mkdir()
    write_json(published / "bench/gpu.json", {"device_name": HERE, "cifar": {"side_by_side": {"1": 10, "2": 20}}})
    (there,) = estimated(line, tmp_path, HERE)
    assert (there.state.name, there.estimate.source, there.seconds_left) == ("missing", "1 run", 150.0)
    assert packing(line, tmp_path, HERE, 10**12) == {"cifar": 2}
    (tmp_path / "bench").mkdir()
    write_json(tmp_path / "bench/gpu.json", {"device_name": HERE, "cifar": {"side_by_side": {"1": 10, "2": 10}}})
    assert packing(line, tmp_path, HERE, 10**12) == {"cifar": 1}  # one's own counts for more
    put(tmp_path, quick(seed=3), seconds=50.0)
    assert estimated(line, tmp_path, HERE)[0].seconds_left == 100.0  # the median of both


def test_a_plan_says_what_its_claims_can_come_to(run, tmp_path, monkeypatch):
    asked = []

    def power(claim: Claim, n: int) -> Power | None:
        asked.append((claim.id, n))
        seeds80 = None if claim.id == "C10b" else 8
        return None if claim.id == "C3" else Power(look(n), 0.805, 0.01, 0.0213, 0.2, "0.4 [points]", seeds80)

    monkeypatch.setattr(Claim, "power", power)
    promised = promises(plan(tmp_path, planned("paper", ["draw", "cvae"])), "paper")
    assert [(claim, number, power.n) for claim, number, power in promised] == [
        *(("C9a", 3, 3), ("C9b", 5, 5), ("C10a", 5, 5), ("C10b", 5, 5), ("C16a", 3, 3))
    ]
    assert ("C3", 1) in asked
    words = ["reproduce", "C10b", "--plan", "--results", tmp_path, "--device", "cpu"]
    code, printed, error = run(*words)
    assert (code, error) == (0, "") and "80 % at a true value of" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("C10")]
    assert rows == [
        ["C10a", "5", "5", "80", "%", "2", "%", "0.4", "[points]", "8"],
        ["C10b", "5", "5", "80", "%", "2", "%", "0.4", "[points]", "–"],
    ]
    assert json.loads(run(*words, "--json")[1])["claims"][1] == {
        "claim": "C10b",
        "seeds": 5,
        "look": 5,
        "smallest_difference": "0.4 [points]",
        "reproduced_if_the_paper_is_true": 0.805,
        "reproduced_if_there_is_no_effect": 0.0213,
        "seeds_for_80_percent": None,
    }
    code, printed, _ = run("reproduce", "draw", "--scale", "quick", "--plan", "--results", tmp_path)
    assert code == 0 and "smallest difference" not in printed  # no claim is judged there


def test_published_runs_are_nobodys_own(run, tmp_path, monkeypatch):
    """On a fresh clone: nothing is done, what trains goes elsewhere, and nothing removes what is published."""
    published = tmp_path / PUBLISHED
    runs = whole("short")
    folders = [put(published, one) for one in runs]
    before = {path: path.read_bytes() for path in published.rglob("*.json")}
    content = json.loads(run("reproduce", "--scale", "short", "--plan", "--json", "--results", tmp_path)[1])
    assert {row["state"] for row in content["grid"]} == {"missing"} and len(content["grid"]) == len(runs)

    trained = []
    monkeypatch.setattr(Run, "execute", lambda self, *_: trained.append(self.folder) or {"status": "done"})
    words = ["cifar", "--param", "wn", "--scale", "short", "--device", "cpu", "--results", tmp_path]
    monkeypatch.setattr("wnrepro.experiments.cifar.Cifar.check", lambda *_: None)
    for more in ((), ("--fresh",), ("--fresh", "--yes")):
        assert run(*words, *more)[0] == (0 if "--yes" in more or not more else 2)
    own = tmp_path / folders[2].relative_to(published)
    assert trained == [own, own]
    assert {path: path.read_bytes() for path in published.rglob("*.json")} == before


def test_as_many_runs_share_a_gpu_as_were_fastest_together_and_fit_its_memory(tmp_path):
    lines = plan(tmp_path, whole("quick"))
    (tmp_path / "bench").mkdir()
    bench = {"device_name": "A GPU", "cvae": {"seconds": {}}, "dqn": {"side_by_side": "many"}}
    bench |= {"cifar": {"side_by_side": {"1": 90, "2": 94, "4": 93}}}
    bench |= {"draw": {"side_by_side": {"1": 10, "2": 19, "4": 30, "8": 30.5}}}
    write_json(tmp_path / "bench/a-gpu.json", bench)
    write_json(tmp_path / "bench/other.json", bench | {"device_name": "Another GPU", "cvae": bench["draw"]})
    (tmp_path / "bench/damaged.json").write_text("nothing")
    assert packing(lines, tmp_path, "A GPU", 10**10) == {"cifar": 1, "cvae": 1, "draw": 4, "dqn": 1}

    def shared(memory: int) -> int:
        of_draw = [line for line in lines if line.run.experiment == "draw"]
        of_draw[1] = dataclasses.replace(of_draw[1], estimate=Estimate(None, 10**9, ""))
        return packing(of_draw, tmp_path, "A GPU", memory)["draw"]

    each = 10**9 + CONTEXT_BYTES
    assert [shared(size) for size in (9 * each, 4 * each, 4 * each - 1, each, 1)] == [4, 4, 3, 1, 1]


def test_the_memory_of_a_benchmark_is_its_contenders_and_dqns_that_with_the_whole_replay(tmp_path):
    figures = {"seconds": {"wn": [1.0]}, "memory": {"wn": 5}, "replay_memory": {"on": "cpu", "peak_bytes": 7}}
    (tmp_path / "bench").mkdir()
    for device, memory in (("cpu", {5, 7}), ("cuda", {5, None})):
        known = figures | {"device": device}
        write_json(tmp_path / "bench/one.json", {"device_name": HERE, "dqn": known, "draw": known})
        assert {one.memory_bytes for one in measured(tmp_path, HERE)} == memory


# ------------------------------------------------------------------------------- the driver


class MadeUp:
    """An engine whose runs live as told: by name a list of lives, each a list of epochs reached and an outcome."""

    threads = 1
    stop_seconds = 0.0

    def __init__(self, results: Path, lives: dict[str, list[list[float | str]]], jobs: int, memory: int | None = None):
        self.results, self.lives, self.memory_bytes = results, lives, memory
        self.side_by_side = dict.fromkeys(SETTINGS, jobs)
        self.runs: dict[str, Planned] = {}
        self.started: list[str] = []
        self.graphs: dict[str, list[bool]] = {}
        self.together: list[set[str]] = []
        self.living: dict[str, list[float | str]] = {}
        self.stopped = False

    def room(self, experiment: str) -> bool:
        return len(self.living) < self.side_by_side[experiment]

    def start(self, name: str, job: Job) -> None:
        assert name not in self.living
        settings = settings_from(job.experiment, job.settings)
        self.runs[name] = Planned(job.experiment, job.scale, settings, ())
        self.living[name] = list(self.lives[name].pop(0))
        self.started.append(name)
        self.graphs.setdefault(name, []).append(job.graphs)
        self.together.append(set(self.living))

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        told = []
        for name, life in list(self.living.items()):
            now = life.pop(0)
            if isinstance(now, str):
                del self.living[name]
                if now in ("done", "diverged"):
                    put(self.results, self.runs[name], now)
                told.append((name, Event(text=f"it is {now}", outcome=now)))
            else:
                if now == int(now):
                    put(self.results, self.runs[name], "running", epoch=int(now))
                told.append((name, Event(now, f"epoch {now}")))
        return told

    def end(self, name: str, /) -> None:
        del self.living[name]

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def at_once(monkeypatch):
    """The driver waits for nothing."""
    monkeypatch.setattr(driving, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(driving, "HELD_SECONDS", 0.0)


def tasks_of(results: Path, runs: list[Planned], memory: list[int | None] | None = None) -> list[Task]:
    lines = plan(results, runs)
    sizes = memory or [None] * len(runs)
    return [
        Task(dataclasses.replace(line, estimate=Estimate(None, size, "")))
        for line, size in zip(lines, sizes, strict=True)
    ]


def test_runs_start_in_the_grids_order_as_far_as_there_is_room(tmp_path, at_once):
    runs = [quick(seed=seed) for seed in range(7)]
    put(tmp_path, runs[2])
    tasks, news = tasks_of(tmp_path, runs), []
    lengths = [3, 1, 0, 4, 2, 1, 5]
    lives = {task.name: [[*range(1, n + 1), "done"]] for task, n in zip(tasks, lengths, strict=True)}
    engine = MadeUp(tmp_path, lives, jobs=2)
    drive(tasks, engine, tmp_path, None, lambda task, kind: news.append((task.name, kind)))
    names = [task.name for task in tasks]
    assert engine.started == names[:2] + names[3:] and engine.stopped
    assert max(map(len, engine.together)) == 2 and {task.state for task in tasks} == {"done"}
    for name, length in zip(names, lengths, strict=True):
        kinds = ["start", *["epoch"] * length, "end"] if name != names[2] else []
        assert [kind for of, kind in news if of == name] == kinds


def test_runs_side_by_side_fit_the_memory_and_one_too_large_runs_alone(tmp_path, at_once):
    gigabyte = 2**30
    sizes = [5 * gigabyte, None, 3 * gigabyte, 20 * gigabyte, gigabyte, None]
    tasks = tasks_of(tmp_path, [quick(seed=seed) for seed in range(6)], sizes)
    needed = {task.name: size or 4 * gigabyte for task, size in zip(tasks, sizes, strict=True)}
    engine = MadeUp(tmp_path, {name: [[1, 2, "done"]] for name in needed}, jobs=3, memory=8 * gigabyte)
    drive(tasks, engine, tmp_path, None, lambda *_: None)
    for names in engine.together:
        assert len(names) == 1 or sum(needed[name] for name in names) <= engine.memory_bytes
    assert max(map(len, engine.together)) >= 2 and {task.state for task in tasks} == {"done"}


@pytest.mark.parametrize(
    ("lives", "starts", "state"),
    [
        ([["diverged"]], 1, "diverged"),
        ([["refused"]], 1, "failed"),
        ([["lost"], ["failed"], ["done"]], 3, "done"),
        ([["lost"], ["failed"], ["lost"], ["done"]], TRIES, "failed"),
        ([[0.5, "lost"], [0.9, "lost"], [0.9, "lost"], ["done"]], TRIES, "failed"),
        ([["lost"], ["lost"], [1, "lost"], ["lost"], ["lost"], [2, 3, "failed"], ["done"]], 7, "done"),
        ([[1, 2, "lost"], ["failed"], ["failed"], [2, "failed"], ["done"]], 1 + TRIES, "failed"),
        ([["held"]] * 5 + [["lost"], ["held"], ["lost"], ["lost"], ["done"]], 10, "done"),
        ([["lost"], ["lost"], ["uncaptured"], ["lost"], ["failed"], ["done"]], 6, "done"),
        ([["uncaptured"]] * 10, 1 + TRIES, "failed"),
    ],
)
def test_a_run_is_tried_again_as_long_as_it_gets_on(tmp_path, at_once, lives, starts, state):
    tasks, news = tasks_of(tmp_path, [quick(seed=seed) for seed in range(3)]), []
    names = [task.name for task in tasks]
    engine = MadeUp(tmp_path, {names[0]: [*lives], **{name: [[1, 2, "done"]] for name in names[1:]}}, jobs=1)
    drive(tasks, engine, tmp_path, None, lambda task, kind: news.append((task.name, kind)))
    assert (engine.started.count(names[0]), tasks[0].state) == (starts, state)
    assert [task.state for task in tasks[1:]] == ["done", "done"]  # nothing stops the others
    if state == "failed":
        assert tasks[0].text.startswith("it is ") and news[-1] == (names[2], "end")


def test_a_run_goes_on_without_graphs_once_one_could_not_be_captured(tmp_path, at_once):
    tasks, text = tasks_of(tmp_path, [quick(seed=1), quick(seed=2)]), io.StringIO()
    lives = [["lost"], [1, "uncaptured"], [2, "lost"], ["done"]]
    engine = MadeUp(tmp_path, {tasks[0].name: lives, tasks[1].name: [["failed"], ["done"]]}, jobs=2)
    with Board(Console(file=text), tasks, {}, quiet=False) as board:
        drive(tasks, engine, tmp_path, None, board.show)
    assert engine.graphs == {tasks[0].name: [True, True, False, False], tasks[1].name: [True, True]}
    assert "it is uncaptured; goes on from epoch 1 of 10 without CUDA graphs (try 1)\n" in text.getvalue()
    assert "it is failed; goes on from epoch 0 of 10 (try 2)\n" in text.getvalue()


def test_a_run_that_another_process_has_is_left_to_it(tmp_path, at_once, hold):
    runs = [quick(seed=1), quick(seed=2), quick(seed=3)]
    holders = [hold(put(tmp_path, one, "running", epoch=1)) for one in runs[:2]]
    tasks, news, looks = tasks_of(tmp_path, runs), [], []
    engine = MadeUp(tmp_path, {tasks[1].name: [[2, "done"]], tasks[2].name: [["done"]]}, jobs=1)
    tell = engine.events

    def events(timeout: float) -> list[tuple[str, Event]]:
        looks.append([task.state for task in tasks])
        if len(looks) == 4:  # one ends its run, the other dies
            put(tmp_path, runs[0])
            for holder in holders:
                holder.kill()
                holder.wait()
        return tell(timeout)

    engine.events = events  # type: ignore[method-assign]
    drive(tasks, engine, tmp_path, None, lambda task, kind: news.append((task.name, kind)))
    assert looks[3] == ["held", "held", "done"]
    assert engine.started == [tasks[2].name, tasks[1].name] and {task.state for task in tasks} == {"done"}
    assert news.count((tasks[0].name, "held")) == news.count((tasks[1].name, "held")) == 1


def test_whatever_ends_the_driver_ends_its_processes(tmp_path, at_once):
    tasks = tasks_of(tmp_path, [quick()])
    engine = MadeUp(tmp_path, {tasks[0].name: [[1, 2, "done"]]}, jobs=1)

    def show(_: Task, kind: str) -> None:
        if kind == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tasks, engine, tmp_path, None, show)
    assert engine.stopped


# ------------------------------------------------------------------------------- a budget of time


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("8h", 28800), ("1h30m", 5400)])
def test_a_budget_is_read_as_a_time(text, seconds):
    assert seconds_of(text) == seconds


class Timed(MadeUp):
    """An engine on a clock of its own: each run loads, and takes its seconds for every epoch."""

    stop_seconds = 2.0
    loading = 3.0

    def __init__(self, results: Path, epoch_seconds: dict[str, float], jobs: int) -> None:
        super().__init__(results, {name: [[]] for name in epoch_seconds}, jobs)
        self.epoch_seconds, self.clock = epoch_seconds, 0.0
        self.due: dict[str, tuple[float, Event]] = {}
        self.begun: dict[str, float] = {}
        self.saved: dict[str, list[float]] = {}  # when each checkpoint was written
        self.ended: dict[str, float] = {}

    def start(self, name: str, job: Job) -> None:
        super().start(name, job)
        self.begun[name] = self.clock
        self.due[name] = self.clock + self.loading, Event()

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        until = self.clock + timeout
        name = min(self.due, key=lambda name: self.due[name][0], default=None)
        if name is None or self.due[name][0] > until:
            self.clock = until
            return []
        self.clock, event = self.due[name]
        if event.outcome:
            super().end(name)
            put(self.results, self.runs[name])
            del self.due[name]
        else:
            if event.epochs:
                self.saved.setdefault(name, []).append(self.clock)
                put(self.results, self.runs[name], "running", epoch=int(event.epochs))
            over = event.epochs == self.runs[name].settings.epochs
            later = Event(event.epochs, outcome="done") if over else Event(event.epochs + 1)
            self.due[name] = self.clock + (0.0 if over else self.epoch_seconds[name]), later
        return [(name, event)]

    def end(self, name: str, /) -> None:
        super().end(name)
        self.ended[name] = self.clock
        del self.due[name]

    def stop(self) -> None:
        self.stopped = True
        self.left_running = set(self.due)


def timed(results: Path, monkeypatch, runs: list[Planned], seconds: list[float], known: list[float | None], jobs: int):
    """An engine on whose clock these runs take so many seconds an epoch, and tasks that are estimated at `known`."""
    tasks = [
        Task(dataclasses.replace(line, estimate=Estimate(each and each * line.run.settings.epochs, None, "")))
        for line, each in zip(plan(results, runs), known, strict=True)
    ]
    engine = Timed(results, {task.name: each for task, each in zip(tasks, seconds, strict=True)}, jobs)
    monkeypatch.setattr(driving, "time", SimpleNamespace(monotonic=lambda: engine.clock))
    return engine, tasks


def test_within_a_budget_nothing_starts_that_cannot_write_a_checkpoint_and_what_goes_on_ends_after_one(
    tmp_path, monkeypatch
):
    """Where every estimate is right: of random grids, whose runs are all of another size."""
    dice, kinds = random.Random(1), Counter[str]()
    runs = [quick(width=width) for width in range(8, 16)]
    for number in range(30):
        seconds = [dice.uniform(0.5, 60) for _ in runs]
        engine, tasks = timed(tmp_path / str(number), monkeypatch, runs, seconds, list(seconds), jobs=2)
        deadline = dice.uniform(20, 200)
        until = deadline - engine.stop_seconds
        drive(tasks, engine, engine.results, None, lambda *_: None, deadline)
        assert engine.stopped and not engine.left_running and engine.clock <= until + 0.2
        for task in tasks:
            kinds[task.state] += 1
            each, saved = engine.epoch_seconds[task.name], engine.saved.get(task.name, [])
            assert bool(saved) == (task.name in engine.started) and all(clock <= until for clock in saved)
            if task.state == "stopped":
                assert engine.ended[task.name] == saved[-1] and saved[-1] + each > until
            if task.state == "waiting":  # not even now
                loading = Timed.loading if engine.saved else driving.LOADING_SECONDS
                assert task.name not in engine.started and engine.clock + loading + each > until
    assert kinds["stopped"] > 20 and kinds["waiting"] > 20 and kinds["done"] > 5


def test_what_this_command_has_seen_counts_before_an_estimate(tmp_path, monkeypatch):
    like, unlike = [quick(seed=seed) for seed in (1, 2, 3)], quick(width=32)
    engine, tasks = timed(tmp_path, monkeypatch, [*like, unlike], [40, 40, 40, 500], [1, 1, 1, None], jobs=1)
    drive(tasks, engine, tmp_path, None, lambda *_: None, deadline=3 + 40 * 2 + 30)
    assert engine.started == [tasks[0].name, tasks[3].name]  # a time that nobody knows may be a short one
    assert len(engine.saved[tasks[0].name]) == 2 and engine.ended[tasks[0].name] == pytest.approx(83)
    assert [task.state for task in tasks] == ["stopped", "waiting", "waiting", "running"]
    assert engine.left_running == {tasks[3].name} and 111 <= engine.clock < 111.5


def test_a_spent_budget_is_exit_code_0_and_says_what_is_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "Local", lambda *_: engine)
    for more in ([], ["--json"]):
        engine = MadeUp(tmp_path, {}, jobs=1)
        engine.stop_seconds = 10_000.0
        words = ["reproduce", "draw", "--scale", "quick", "--device", "cpu", "--results", tmp_path, "--budget", "1h30m"]
        code, printed, error = run(*words, *more)
        assert (code, error, engine.started, engine.stopped) == (0, "", [], True)
        if more:
            content = json.loads(printed)
            assert (content["budget_seconds"], content["budget_spent"], content["missing"]) == (5400, True, 5)
            assert content["left_out"] == ["cifar", "cvae", "dqn"]
        else:
            assert (
                printed.startswith("left out: cifar, cvae, dqn\n5 runs: 5 missing.")
                and "\nThe budget of 1h30m is spent: no further" in printed
            )


# ------------------------------------------------------------------------------- GPUs


class NoProcess:
    """Stands for a run's process, which tells of progress at once, or when told to, and ends when told to."""

    at_once = True

    def __init__(self, job: Job) -> None:
        self.job, self.gets_on, self.over = job, threading.Event(), threading.Event()
        self.process = SimpleNamespace(kill=self.end)

    def events(self) -> Iterator[Event]:
        if not self.at_once:
            self.gets_on.wait()
        if not self.over.is_set():
            yield Event(0.1)
        self.over.wait()
        yield Event(outcome="done")

    def end(self) -> None:
        self.over.set()
        self.gets_on.set()


def wait_until(so: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_runs_share_gpus_by_what_each_takes_of_one(monkeypatch):
    monkeypatch.setattr(engines, "Process", NoProcess)
    dice, fullest = random.Random(1), Counter[str]()
    per_gpu = {"cifar": 1, "cvae": 2, "draw": 3, "dqn": 4}
    for jobs in (None, 5):
        engine = Local(["cuda:0", "cuda:1"], jobs, per_gpu)
        assert engine.side_by_side == {name: min(jobs or 8, 2 * count) for name, count in per_gpu.items()}
        for number in range(200):
            experiment = dice.choice(list(per_gpu))
            if engine.room(experiment):
                engine.start(f"{experiment} {number}", Job(experiment, "quick", {}, "", None, "", 1))
                while engine.silent:
                    time.sleep(0.001)
            elif engine.running:
                engine.end(dice.choice(list(engine.running)))
            there = [one.process.job for one in engine.running.values()]
            for device in ("cuda:0", "cuda:1"):
                shares = [1 / per_gpu[job.experiment] for job in there if job.device == device]
                assert sum(shares) < 1 + 1e-9
                fullest[device] = max(fullest[device], len(shares))
            assert len(there) <= (jobs or 8)
            room = [1 - sum(1 / per_gpu[job.experiment] for job in there if job.device == d) for d in engine.devices]
            for name, count in per_gpu.items():
                assert engine.room(name) == (max(room) > 1 / count - 1e-9 and len(there) < engine.jobs)
        engine.stop()
        assert not engine.running
    assert min(fullest.values()) >= 3


def test_a_run_on_a_gpu_starts_when_the_one_before_it_has_told_of_progress(monkeypatch):
    """As long as it has not, cuDNN may be trying out convolutions there."""
    monkeypatch.setattr(engines, "Process", NoProcess)
    monkeypatch.setattr(NoProcess, "at_once", False)
    engine, job = Local(["cuda:0", "cuda:1"], None, {"draw": 4}), Job("draw", "quick", {}, "", None, "", 1)
    for name in ("first", "second"):
        assert engine.room("draw")
        engine.start(name, job)
    assert not engine.room("draw")
    processes = {name: one.process for name, one in engine.running.items()}
    assert [process.job.device for process in processes.values()] == ["cuda:0", "cuda:1"]
    processes["second"].gets_on.set()
    wait_until(lambda: engine.room("draw"))
    engine.start("third", job)
    assert engine.running["third"].device == "cuda:1" and not engine.room("draw")
    engine.end("first")  # without a word of progress
    assert engine.room("draw")
    engine.stop()
    assert not engine.running and not engine.silent

    engine = Local(["cpu"], 3, {})
    for number in range(3):
        assert engine.room("draw")
        engine.start(str(number), job)
    engine.stop()


@pytest.fixture
def gpus(tmp_path, monkeypatch) -> Path:
    """Two GPUs, as far as a plan looks at them, of which four runs of draw at a time make the most; the results."""
    monkeypatch.setattr(engines, "devices", lambda _: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(engines, "gpu_memory", lambda _: 80 * 10**9)
    monkeypatch.setattr("wnrepro.device.choose_device", torch.device)
    monkeypatch.setattr("wnrepro.runs.provenance.device_name", lambda *_: "A GPU")
    monkeypatch.setattr(mps, "STANDARD", tmp_path / "none")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    results = tmp_path / "results"
    (results / "bench").mkdir(parents=True)
    bench = {"device_name": "A GPU", "draw": {"side_by_side": {"1": 10, "2": 19, "4": 30}}}
    write_json(results / "bench/a-gpu.json", bench)
    return results


def test_the_plan_for_gpus_says_how_many_runs_are_side_by_side(run, gpus, monkeypatch):
    words = ["reproduce", "cifar", "draw", "--plan", "--json", "--scale", "quick", "--results", gpus]
    for without, more, expected in [
        ("", [], {"cifar": 2, "draw": 8}),
        ("", ["--jobs", 5], {"cifar": 2, "draw": 5}),
        ("", ["--jobs-per-gpu", 3], {"cifar": 6, "draw": 6}),
        ("", ["--jobs-per-gpu", 3, "--jobs", 4], {"cifar": 4, "draw": 4}),
        ("no MPS", [], {"cifar": 2, "draw": 2}),
        ("no MPS", ["--jobs-per-gpu", 3], {"cifar": 6, "draw": 6}),
    ]:
        monkeypatch.setattr(mps, "missing", lambda without=without: without)
        code, printed, error = run(*words, *more)
        assert (code, error, json.loads(printed)["side_by_side"]) == (0, "", expected)


# ------------------------------------------------------------------------------- MPS


@pytest.fixture
def control(tmp_path, monkeypatch) -> Callable[..., Callable[[], list[str]]]:
    """control(code=0) → what was asked of a made-up nvidia-cuda-mps-control, whose start ends with this code."""
    log = tmp_path / "control.log"

    def put_on_the_path(code: int = 0) -> Callable[[], list[str]]:
        script = tmp_path / "bin" / mps.PROGRAM
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\n[ "$1" = -d ] && asked=start || asked=$(cat)\n'
            f'echo "$asked $CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY ${{CUDA_VISIBLE_DEVICES-all}}" >> {log}\n'
            f'[ "$asked" = quit ] || exit {code}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        return lambda: log.read_text().splitlines() if log.exists() else []

    monkeypatch.setattr(mps, "PROBE", "")  # there is no GPU that it could use
    monkeypatch.setattr(mps, "STANDARD", tmp_path / "none")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return put_on_the_path


def test_mps_is_started_for_the_processes_within_and_ended_whatever_happens(control, monkeypatch):
    asked, said = control(), []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    for number, error in enumerate((None, ZeroDivisionError, KeyboardInterrupt)):
        before = dict(os.environ)
        with (
            contextlib.suppress(ZeroDivisionError, KeyboardInterrupt),
            mps.mps(["cuda:0", "cuda:1"], said.append) as on,
        ):
            child = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
            theirs = json.loads(subprocess.run(child, capture_output=True, check=True).stdout)
            folder = theirs["CUDA_MPS_PIPE_DIRECTORY"]
            assert on and Path(folder).is_dir() and theirs["CUDA_MPS_LOG_DIRECTORY"] == folder
            assert theirs["CUDA_VISIBLE_DEVICES"] == "0,1"  # which the daemon calls 2 and 5 by these numbers
            assert asked()[2 * number :] == [f"start {folder} {folder} 2,5"]
            if error:
                raise error
        assert asked()[2 * number + 1 :] == [f"quit {folder} {folder} 2,5"] and not Path(folder).exists()
        assert os.environ == before
    assert said == [f"MPS: {mps.PROGRAM} started, processes share a GPU"] * 3


def test_mps_ends_with_its_starter_even_by_kill_9(control):
    asked = control()
    code = "import sys, time\nfrom wnrepro import mps\nmps.PROBE = ''\nmps.STANDARD = mps.Path('/none')\n"
    code += "with mps.mps(['cuda']) as on:\n    print(on, flush=True)\n    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        process.kill()
    wait_until(lambda: len(asked()) == 2)
    assert [line.split()[0] for line in asked()] == ["start", "quit"]
    wait_until(lambda: not Path(asked()[1].split()[1]).exists())


@pytest.mark.parametrize(("code", "probe", "why"), [(1, "", "does not start"), (0, "1 / 0", "serves no process")])
def test_mps_that_does_not_work_is_as_none(control, monkeypatch, code, probe, why):
    asked, said, before = control(code), [], dict(os.environ)
    monkeypatch.setattr(mps, "PROBE", probe)
    with mps.mps(["cuda:0"], said.append) as on:
        assert not on and os.environ == before
    assert said == [f"no MPS, {mps.PROGRAM} {why}: processes on one GPU take turns"]
    assert [line.split()[0] for line in asked()] == ["start", "quit"]  # in case it is there all the same


def test_mps_that_is_running_is_used_and_left_running(control, tmp_path, monkeypatch):
    asked, said = control(), []
    with mps.mps(["cpu"], said.append) as on:
        assert not on and not said
    (tmp_path / "control").touch()
    for socket, folder in ((tmp_path / "control", ""), (tmp_path / "none", "/somewhere")):
        monkeypatch.setattr(mps, "STANDARD", socket)
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", folder)
        with mps.mps(["cuda:0"], said.append) as on:
            assert on
    assert said == ["MPS: the daemon that is running lets processes share a GPU"] * 2 and not asked()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_reproduce_starts_mps_where_runs_share_a_gpu(run, gpus, control, monkeypatch, error):
    seen = []

    def drive(tasks: list[Task], engine: Local, *_: object) -> None:
        seen.append((engine.side_by_side["draw"], os.environ.get("CUDA_MPS_PIPE_DIRECTORY")))
        if error:
            raise error

    monkeypatch.setattr(command, "check_all", lambda *_: None)
    monkeypatch.setattr("wnrepro.reproduce.command.drive", drive)
    monkeypatch.setenv(
        "PATH", os.pathsep.join(p for p in os.environ["PATH"].split(":") if not Path(p, mps.PROGRAM).exists())
    )
    words = ["reproduce", "draw", "--scale", "quick", "--results", gpus]
    code, printed, _ = run(*words)
    assert code == (130 if error else 0) and seen == [(2, None)]
    assert (
        f"no MPS, {mps.PROGRAM} is not on the PATH: processes on one GPU take turns\nOne run a GPU at a time; "
        in printed
    )
    _, printed, _ = run(*words, "--jobs-per-gpu", 3)
    assert seen.pop() == (6, None) and "take turns\n" in printed and "One run a GPU" not in printed

    asked = control()
    assert run(*words, "--plan")[0] == 0 and not asked()
    code, printed, _ = run(*words)
    assert code == (130 if error else 0) and f"MPS: {mps.PROGRAM} started, processes share a GPU\n" in printed
    assert seen.pop()[0] == 8 and [line.split()[0] for line in asked()] == ["start", "quit"]
    run(*words, "--jobs", 2)  # each has a GPU of its own
    run(*words, "--jobs-per-gpu", 1)
    assert len(asked()) == 2 and {where for _, where in seen} == {None}


# ------------------------------------------------------------------------------- its processes


def job_of(one: Planned, results: Path, **changes: Any) -> Job:
    settings = one.directory(results).config["settings"]
    return dataclasses.replace(Job(one.experiment, one.scale, settings, str(results), None, "cpu", 1), **changes)


def test_a_process_tells_how_its_run_goes_and_ends(tmp_path, monkeypatch, hold):
    monkeypatch.setattr(work, "TICK_SECONDS", -1.0)
    one, told = Planned("draw", "quick", tiny_draw(), ()), []
    folder = one.directory(tmp_path).folder

    def send(event: Event) -> None:
        told.append(event)
        record = json.loads((folder / "run.json").read_text())
        assert int(event.epochs) == record["epoch"]  # an epoch is told of when it is on disk, not before

    work.work(job_of(one, tmp_path), send)
    assert [event.epochs for event in told] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4]
    assert [event.outcome for event in told] == [""] * 8 + ["done"] and "nats" in told[-1].text
    work.work(job_of(one, tmp_path), send)
    assert told[9:] == [Event(4, "", "done")]  # what is done is not done again

    ends: list[Event] = []
    hold(folder)
    again = dataclasses.replace(one, settings=dataclasses.replace(one.settings, seed=2))
    monkeypatch.setattr(Draw, "step", lambda *_: 1 / 0)
    work.work(job_of(again, tmp_path), ends.append)
    put(tmp_path, one, "running", epoch=1)
    work.work(job_of(one, tmp_path), ends.append)
    work.work(job_of(one, tmp_path, device="tpu"), ends.append)
    assert [event.outcome for event in ends] == ["failed", "held", "refused"]
    assert ends[0].text.startswith("ZeroDivisionError") and "Traceback" in ends[0].traceback
    assert "--device tpu" in ends[2].text
    assert [line.state.name for line in plan(tmp_path, [again])] == ["failed"]


def test_a_process_tells_that_a_graph_could_not_be_captured_and_the_next_makes_none(tmp_path, monkeypatch):
    one, ends, started = Planned("draw", "quick", tiny_draw(), ()), [], []

    def step(*_: object) -> None:
        raise CaptureError("not permitted")

    monkeypatch.setattr(Draw, "step", step)
    work.work(job_of(one, tmp_path), ends.append)
    assert (ends[0].outcome, ends[0].text) == ("uncaptured", "CaptureError: not permitted")
    assert ends[0].traceback.startswith("Traceback") and work.event_from(work.as_line(ends[0])) == ends[0]

    def popen(_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        started.append(env.get("WNREPRO_GRAPHS"))
        return SimpleNamespace(stdin=io.BytesIO())

    monkeypatch.setattr(work.subprocess, "Popen", popen)
    for graphs in (True, False):
        job = job_of(one, tmp_path, graphs=graphs)
        work.Process(job).printed.close()
        assert work.job_from(work.as_line(job)) == job
    assert started == [os.environ.get("WNREPRO_GRAPHS"), "0"]


def tiny_grid() -> list[Planned]:
    """Runs of a few seconds. None of cifar: whitening its images takes each process longer than all its epochs."""
    return [
        Planned("draw", "quick", tiny_draw("wn+mobn", epochs=30, lr=0.01), ()),
        Planned("cvae", "quick", tiny_cvae("wn", epochs=16, polyak_epochs=2.0), ()),
        Planned("dqn", "quick", tiny_dqn("wn", epochs=8, epoch_steps=60, checkpoint_replay=True), ()),
        Planned("cvae", "quick", tiny_cvae("bn", "cifar10", epochs=12, polyak_epochs=2.0), ()),
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The results of the tiny grid, made one run after the other in this process."""
    results, ends = tmp_path_factory.mktemp("undisturbed"), []
    for one in tiny_grid():
        work.work(job_of(one, results), ends.append)
    assert [event.outcome for event in ends if event.outcome] == ["done"] * len(tiny_grid())
    return results


def same_tables(found: Path, expected: Path) -> None:
    """Check that a run's tables are those of another, but for what the clock says."""
    tables = {path.name for path in expected.glob("*.csv")}
    assert {path.name for path in found.glob("*.csv")} == tables > {"metrics.csv", "layers.csv"}
    assert without_seconds(found / "metrics.csv") == without_seconds(expected / "metrics.csv")
    for name in tables - {"metrics.csv"}:
        assert (found / name).read_bytes() == (expected / name).read_bytes()


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_reproduce import tiny_grid
from wnrepro.reproduce import drive
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.plan import plan
drive.RETRY_SECONDS, drive.HELD_SECONDS = 0.0, 0.2
results = Path(sys.argv[1])
tasks = [drive.Task(line) for line in plan(results, tiny_grid())]
drive.drive(tasks, Local(["cpu"], 2, {}), results, None, lambda task, news: print(task.name, news, flush=True))
"""


def processes() -> dict[int, tuple[int, str]]:
    """The parent and the start time of every living process, by its id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        if words[0] not in "ZX":
            found[int(path.parent.name)] = int(words[1]), words[19]
    return found


def workers(driver: int) -> dict[int, str]:
    """Start times of a driver's work processes, by their ids."""
    found = {}
    for number, (parent, started) in processes().items():
        try:
            mine = parent == driver and b"wnrepro.reproduce.work" in Path(f"/proc/{number}/cmdline").read_bytes()
        except OSError:
            continue
        if mine:
            found[number] = started
    return found


def living(there: dict[int, str]) -> set[int]:
    now = processes()
    return {number for number, started in there.items() if number in now and now[number][1] == started}


def gone(there: dict[int, str], seconds: float = 20.0) -> bool:
    """Whether these processes end within so many seconds."""
    end = time.monotonic() + seconds
    while living(there) and time.monotonic() < end:
        time.sleep(0.05)
    return not living(there)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")
KILLS = 20


@needs_proc
def test_twenty_kills_9_change_no_row_and_leave_no_process(tmp_path, undisturbed):
    """Of a grid with two runs at a time; its driver too is killed, and started again."""
    runs = tiny_grid()
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments, kills, resumed = random.Random(seed), Counter[str](), []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for folder in itertools.count():
        results = tmp_path / f"killed-{folder}"
        command = [sys.executable, "-c", DRIVER, results, Path(__file__).parent]
        while any(not line.over for line in plan(results, runs)):
            with (
                (tmp_path / "errors").open("w+") as errors,
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as driver,
            ):
                there: dict[int, str] = {}
                while kills.total() < KILLS:
                    epochs = (line for line in driver.stdout if line.endswith(" epoch\n"))
                    if not list(itertools.islice(epochs, moments.randint(1, 5))):
                        break  # the driver has come to its end
                    time.sleep(moments.uniform(0.0, 0.4))
                    there = workers(driver.pid)
                    chosen = moments.choice([driver.pid, *there, *there])
                    if chosen not in processes():
                        continue
                    os.kill(chosen, signal.SIGKILL)
                    kills["driver" if chosen == driver.pid else "worker"] += 1
                    if chosen == driver.pid:
                        assert driver.wait() == -signal.SIGKILL
                        break
                driver.stdout.read()
                driver.wait()
                errors.seek(0)
                assert driver.returncode in (0, -signal.SIGKILL), errors.read()
                assert gone(there)
        for one in runs:
            killed, serial = one.directory(results).folder, one.directory(undisturbed).folder
            record, expected = (json.loads((path / "run.json").read_text()) for path in (killed, serial))
            resumed += [entry["from_epoch"] for entry in record["resumed"]]
            assert record["status"] == expected["status"] == "done" and record["facts"] == expected["facts"]
            same_tables(killed, serial)
        if kills.total() >= KILLS:
            break
    print(f"{dict(kills)} kills, {folder + 1} grids, gone on from epochs {resumed}")
    assert kills["driver"] and kills["worker"] and sum(map(bool, resumed)) >= KILLS // 4


COMMAND = """
import json, sys
from wnrepro.cli import main
from wnrepro.reproduce import grid
from wnrepro.settings import settings_from
runs = [grid.Planned(name, "quick", settings_from(name, each), ()) for name, each in json.loads(sys.argv.pop(1))]
grid.planned = lambda *_: runs
main()
"""


def test_real_runs_end_within_a_budget_and_go_on_as_if_nothing_had_happened(tmp_path, undisturbed):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = json.dumps([(one.experiment, one.directory(tmp_path).config["settings"]) for one in tiny_grid()])
    command = [sys.executable, "-c", COMMAND, runs, "reproduce", "--scale", "quick", "--jobs", "1"]
    command += ["--device", "cpu", "--results", tmp_path]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import wnrepro.runs.run, wnrepro.experiments.draw"], check=True)
    budget = math.ceil(Local.stop_seconds + 2 + 4 * (time.monotonic() - began))  # enough for some, and not for all

    began = time.monotonic()
    done = subprocess.run([*command, "--budget", f"{budget}s"], capture_output=True, text=True, env=environment)
    assert time.monotonic() - began < budget and (done.returncode, done.stderr) == (0, "")
    assert f"\nThe budget of {budget}s is spent: " in done.stdout
    states = [line.state.name for line in plan(tmp_path, tiny_grid())]
    assert states[0] != "missing" and states[-1] == "missing" and "running" not in states
    assert all(f"{states.count(name)} {name}" in done.stdout for name in states)

    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "4 runs: 4 done." in done.stdout
    for one in tiny_grid():
        same_tables(one.directory(tmp_path).folder, one.directory(undisturbed).folder)


@needs_proc
def test_ctrl_c_ends_the_grid_in_a_sentence(tmp_path):
    command = [Path(sys.executable).with_name("wnrepro"), "reproduce", "draw", "--scale", "quick", "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--device", "cpu", "--results", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout.readline() == "left out: cifar, cvae, dqn\n"
        assert "begins" in process.stdout.readline() and "begins" in process.stdout.readline()
        there = workers(process.pid)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and len(there) == 2 and gone(there)
    assert error == "wnrepro: interrupted; the same command again continues each run from its last epoch\n"


# ------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("chess", "reproduce chess: unknown at scale paper; give some of cifar, cvae, draw, dqn, mnist, cifar10, "),
        (
            "enduro --scale short",
            "reproduce enduro: unknown at scale short; give some of cifar, cvae, draw, dqn, mnist, ",
        ),
        ("--address host:1", "--address: needs --engine ray"),
        ("--bring-back", "--bring-back: needs --engine ray"),
        ("--precision tf32 --scale quick --device cpu", "--precision tf32: only a GPU has it"),
        ("--device tpu", "--device tpu: no such device"),
        ("draw --scale short --data-dir {tmp}", "binarized_mnist is not complete in {tmp}"),
        ("--results {tmp}/file", "--results {tmp}/file: is a file; give a folder"),
        ("--budget soon", "--budget soon: is no time; give one such as 90s, 25m, 8h or 1h30m"),
        ("--budget 30", "--budget 30: is no time"),
        ("--budget 30m1h", "--budget 30m1h: is no time"),
        ("--budget 0h0m", "--budget 0h0m: is no time"),
        ("--budget 25m --plan", "--budget: --plan starts nothing; leave out one of the two"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, words, says):
    (tmp_path / "file").write_text("text")
    words = words.format(tmp=tmp_path).split()
    code, printed, error = run("reproduce", *words, *([] if "--results" in words else ["--results", tmp_path / "no"]))
    assert (code, printed) == (2, "") and "Traceback" not in error
    assert error.startswith("wnrepro: ") and says.format(tmp=tmp_path) in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@each_scale
def test_a_plan_for_a_script_is_the_whole_grid(run, tmp_path, monkeypatch, scale):
    monkeypatch.setenv("WNREPRO_DATA", "/no/data")
    put(tmp_path, whole(scale)[0])
    before = sorted(tmp_path.rglob("*"))
    code, printed, error = run("reproduce", "--scale", scale, "--plan", "--json", "--results", tmp_path)
    content = json.loads(printed)
    assert (code, error, content["scale"]) == (0, "", scale)
    expected = [str(one.directory(tmp_path).folder) for one in whole(scale)]
    assert [row["run"] for row in content["grid"]] == expected
    assert [row["state"] for row in content["grid"]] == ["done"] + ["missing"] * (len(expected) - 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_grid_that_is_done_needs_no_torch(tmp_path):
    for one in itertools.chain.from_iterable(map(whole, SCALE_NAMES)):
        put(tmp_path, one)
    code = (
        "import itertools, sys\nfrom wnrepro.cli import main\n"
        f"for scale, more in itertools.product({SCALE_NAMES!r}, ([], ['--plan'], ['--plan', '--json'])):\n"
        f"    sys.argv = ['wnrepro', 'reproduce', '--scale', scale, '--results', {str(tmp_path)!r}, *more]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    environment = os.environ | {"WNREPRO_DATA": "/no/data"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for scale in SCALE_NAMES:
        number = len(whole(scale))
        assert done.stdout.count(f"{number} runs: {number} done.") == 2


def test_each_file_of_the_data_is_read_once_for_all_runs(tmp_path, monkeypatch):
    small_data(monkeypatch, "binarized_mnist", tmp_path)
    read, digest = Counter(), hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.update([file.name]) or digest(file, kind))
    runs = planned("short", ["draw", "mnist"])
    assert len(runs) > 10
    command.check_all(runs, tmp_path, "cpu")
    assert sorted(read.values()) == [1, 1, 1]


def test_what_is_left_out_is_said(run, tmp_path):
    words = ["reproduce", "cifar", "cvae", "mnist", "--scale", "quick", "--plan", "--results", tmp_path]
    code, printed, _ = run(*words)
    assert code == 0 and printed.startswith("left out: cvae cifar10, draw, dqn\n")
    content = json.loads(run(*words, "--json")[1])
    assert content["left_out"] == ["cvae cifar10", "draw", "dqn"] and content["runs"] == len(
        planned("quick", words[1:4])
    )
    code, printed, _ = run("reproduce", "--scale", "quick", "--plan", "--results", tmp_path)
    assert code == 0 and "left out" not in printed
    assert (
        json.loads(run("reproduce", "--scale", "quick", "--plan", "--json", "--results", tmp_path)[1])["left_out"] == []
    )


@pytest.mark.parametrize(
    ("words", "gpu"),
    [
        ([], {name: cls.gpu_precision for name, cls in SETTINGS.items()}),
        (["--precision", "fp32"], dict.fromkeys(SETTINGS, "fp32")),
        (["--device", "cpu"], dict.fromkeys(SETTINGS, "fp32")),
    ],
)
def test_on_a_gpu_the_precision_is_that_in_which_each_experiment_is_judged(
    run, gpus, tmp_path, monkeypatch, words, gpu
):
    monkeypatch.setattr(mps, "missing", lambda: "")
    monkeypatch.setattr("wnrepro.device.choose_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(engines, "devices", lambda name: [name if name == "cpu" else "cuda:0"])
    (tmp_path / "nvidia0").touch()
    command, alone = ["reproduce", "--scale", "quick", "--plan", "--json", "--results", gpus, *words], []

    def folders() -> list[str]:
        return [row["run"] for row in json.loads(run(*command)[1])["grid"]]

    def run_all(cls: type[Settings], settings: list[Any], _: object) -> int:
        alone.extend(str(Planned(cls.name, "quick", each, ()).directory(gpus).folder) for each in settings)
        return 0

    monkeypatch.setattr(preflight, "GPU_FILES", (str(tmp_path / "nvidia[1-9]"),))
    on_cpu = [
        str(one.directory(gpus).folder) for one in planned("quick", (), precision=gpu["cifar"] if words else "fp32")
    ]
    assert folders() == on_cpu

    monkeypatch.setattr(preflight, "GPU_FILES", (str(tmp_path / "nvidia[0-9]"),))
    expected = []
    for one in whole("quick"):
        settings = dataclasses.replace(one.settings, precision=gpu[one.experiment])
        expected.append(str(dataclasses.replace(one, settings=settings).directory(gpus).folder))
    assert folders() == expected and (expected == on_cpu) == bool(words)
    assert any("precision-bf16" in folder for folder in expected) != bool(words)

    monkeypatch.setattr(cli, "run_all", run_all)  # the commands of one run take the same directories
    for experiment in SETTINGS:
        run(experiment, "--param", "all", "--scale", "quick", "--results", gpus, *words)
    assert set(alone) <= set(expected) and len(alone) == 16


@pytest.mark.parametrize(
    ("device", "nodes", "precision"), [("auto", "cuda", "bf16"), ("auto", "cpu", "fp32"), ("cuda", "", "bf16")]
)
def test_on_a_cluster_the_precision_is_that_of_its_nodes(run, tmp_path, monkeypatch, device, nodes, precision):
    asked = []

    def cluster(_: object, device: str, *__: object) -> SimpleNamespace:
        asked.append(device)
        stop = lambda: asked.append("stop")  # noqa: E731
        return SimpleNamespace(device=nodes, side_by_side={"cifar": 7}, threads=1, stop=stop)

    monkeypatch.setattr("wnrepro.reproduce.cluster.Cluster", cluster)
    words = ["reproduce", "cifar", "--scale", "quick", "--plan", "--json", "--results", tmp_path, "--engine", "ray"]
    code, printed, error = run(*words, "--device", device)
    content = json.loads(printed)
    assert (code, error) == (0, "") and asked == (["auto", "stop"] if nodes else [])
    assert all(("precision-bf16" in row["run"]) == (precision == "bf16") for row in content["grid"])


def test_a_failed_run_is_exit_code_1_and_the_others_are_done(run, tmp_path, monkeypatch, at_once):
    runs = planned("quick", ["draw"])
    names = [task.name for task in tasks_of(tmp_path, runs)]
    lives = {name: [["done"]] for name in names} | {names[1]: [["failed"]] * TRIES}
    monkeypatch.setattr(engines, "Local", lambda *_: MadeUp(tmp_path, lives, jobs=2))
    code, printed, error = run("reproduce", "draw", "--scale", "quick", "--device", "cpu", "--results", tmp_path)
    assert code == 1 and error == f"{tmp_path / names[1]}: failed, it is failed\n"
    assert printed.count("  done") == len(names) - 1 and printed.count("goes on from epoch 0 of 8 (try ") == TRIES - 1
    code, printed, _ = run("reproduce", "draw", "--scale", "quick", "--plan", "--json", "--results", tmp_path)
    assert Counter(row["state"] for row in json.loads(printed)["grid"]) == {"done": len(names) - 1, "missing": 1}


# ------------------------------------------------------------------------------- what a person sees


def test_elsewhere_than_on_a_terminal_news_are_plain_lines(tmp_path):
    task, text = tasks_of(tmp_path, [quick(seed=2)])[0], io.StringIO()
    with Board(Console(file=text, width=40), [task], {}, quiet=False) as board:
        for state, words, news in [
            ("running", "", "start"),
            ("running", "[red]", "progress"),
            ("waiting", "its process [was] killed", "retry"),
            ("stopped", "", "stop"),
            ("done", "test 50.0%", "end"),
        ]:
            task.state, task.text = state, words
            board.show(task, news)
    name = "quick/cifar/wn_lr0.003/seed-2"
    assert text.getvalue() == (
        f"0/1  {name}  begins\n"
        f"0/1  {name}  its process [was] killed; goes on from epoch 0 of 10 (try 1)\n"
        f"0/1  {name}  stopped after epoch 0 of 10: another one would not fit the budget\n"
        f"1/1  {name}  done, test 50.0%\n"
    )


def test_the_table_fits_the_terminal_and_tells_what_it_leaves_out(tmp_path):
    tasks = tasks_of(tmp_path, whole("paper")[:100])
    states = ["done"] * 70 + ["diverged"] * 4 + ["waiting"] * 18 + ["stopped"] * 2 + ["failed"] * 2
    states += ["held"] + ["running"] * 3
    for task, state in zip(tasks, states, strict=True):
        task.state = state
    for width, height in ((80, 20), (200, 20), (80, 6)):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
        lines = [
            "".join(part.text for part in line)
            for line in console.render_lines(Board(console, tasks, {"cifar": 4}, quiet=False).picture())
        ]
        assert len(lines) <= height
        assert "running" in lines[1] and "3 running" in " ".join(lines[-2:])
        left_out = sum(map(int, re.findall(r"(\d+) \w", next(line for line in lines if line.startswith("and ")))))
        assert left_out == 100 - sum(bool(re.search(r"\d+/\d+", line)) for line in lines)


def test_a_plan_in_print_names_every_run(tmp_path):
    lines: list[Line] = plan(tmp_path, whole("short"))
    text = io.StringIO()
    print_plan(Console(file=text, width=250), lines, [], {})
    assert all(f"{line.there.name}/{line.there.folder.name}" in text.getvalue() for line in lines)
    assert text.getvalue().endswith(f"{len(lines)} runs: {len(lines)} missing. Time left: not known.\n")

"""`wnrepro reproduce`: mistakes, plans, devices, budget, failures; and what is shown of a grid on its way."""

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from factories import FakeEngine, put_run

from wnrepro import machine, mps
from wnrepro.reproduce import command, engines
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce.engines import Engine, Local
from wnrepro.reproduce.grid import planned
from wnrepro.reproduce.plan import Task, plan
from wnrepro.runs.directory import PUBLISHED
from wnrepro.settings import SETTINGS

Command = Callable[..., tuple[int, str, str]]
DRAW = ("reproduce", "draw", "--scale", "quick")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("chess", "chess"),
        ("enduro --scale short", "enduro"),
        ("--scale large", "--scale"),
        ("--engine slurm", "--engine"),
        ("--address host:1", "--address"),
        ("--bring-back", "--bring-back"),
        ("--precision fp8", "--precision"),
        ("--precision tf32 --scale quick --device cpu", "--precision tf32"),
        ("--device tpu", "--device tpu"),
        ("C15 --param bn", "--param bn"),
        ("draw --scale short --data-dir {tmp}", "{tmp}"),
        ("--results {tmp}/file", "--results {tmp}/file"),
        ("--budget 30", "--budget 30"),
        ("--budget 25m --plan", "--budget"),
    ],
)
def test_mistake_is_reported_and_writes_nothing(run: Command, tmp_path: Path, words: str, names: str) -> None:
    (tmp_path / "file").touch()
    given = words.format(tmp=tmp_path).split()
    code, out, error = run("reproduce", *given, *([] if "--results" in given else ["--results", tmp_path / "no"]))
    assert (code, out, "Traceback" in error) == (2, "", False)
    assert names.format(tmp=tmp_path) in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_plan_names_every_run_and_what_is_left_out_and_writes_nothing(run: Command, tmp_path: Path) -> None:
    words = ["reproduce", "cifar", "cvae", "mnist", "--scale", "quick", "--plan", "--results", str(tmp_path)]
    runs = planned("quick", words[1:4])
    put_run(tmp_path, runs[0])
    put_run(tmp_path / PUBLISHED, runs[1])  # is nobody's own
    before = sorted(tmp_path.rglob("*"))
    code, out, error = run(*words)
    assert (code, error) == (0, "") and out.splitlines()[0].endswith(": cvae cifar10, draw, dqn")
    assert all(task.name in out for task in plan(tmp_path, runs))
    content = json.loads(run(*words, "--json")[1])
    assert (content["scale"], content["left_out"]) == ("quick", ["cvae cifar10", "draw", "dqn"])
    assert [row["run"] for row in content["grid"]] == [str(one.directory(tmp_path).folder) for one in runs]
    assert [row["state"] for row in content["grid"]] == ["done"] + ["missing"] * (len(runs) - 1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("more", [[], ["--plan", "--json"]])
def test_a_grid_that_is_done_needs_no_torch(tmp_path: Path, more: list[str]) -> None:
    for one in planned("quick"):
        put_run(tmp_path, one)
    words = ["-m", "wnrepro", "reproduce", "--scale", "quick", "--results", str(tmp_path), *more]
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True)
    assert done.returncode == 0 and not re.search(r"\| +(torch|ray)$", done.stderr, re.MULTILINE)


# ------------------------------------------------------------------------------- devices


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two GPUs, as far as a plan looks at them, of which four runs of draw at a time make the most; the results."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "GPU_FILES", (str(tmp_path / "nvidia[0-9]"),))
    monkeypatch.setattr(engines, "devices", lambda name: ["cuda:0", "cuda:1"] if name == "auto" else [name])
    monkeypatch.setattr(engines, "gpu_memory", lambda _: 80 * 10**9)
    monkeypatch.setattr("wnrepro.device.choose_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(engines, "device_name", lambda *_: "A GPU")
    monkeypatch.setattr(mps, "STANDARD", tmp_path / "none")
    monkeypatch.setattr(mps, "missing", lambda: "")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    results = tmp_path / "results"
    (results / "bench").mkdir(parents=True)
    bench = {"device_name": "A GPU", "draw": {"ratios": {}, "side_by_side": {"1": 10, "2": 19, "4": 30}}}
    (results / "bench/a-gpu.json").write_text(json.dumps(bench))
    return results


@pytest.mark.parametrize(
    ("there", "more", "cifar", "draw", "asked"),
    [
        (True, "", 2, 8, True),
        (True, "--jobs 5", 2, 5, True),
        (True, "--jobs 2", 2, 2, False),  # each has a separate GPU
        (True, "--jobs-per-gpu 1", 2, 2, False),
        (True, "--jobs-per-gpu 3 --jobs 4", 4, 4, True),
        (False, "", 2, 2, True),
        (False, "--jobs-per-gpu 3", 6, 6, True),
    ],
)
def test_runs_share_gpus_as_planned_by_an_mps_that_is_stopped_again(
    run: Command,
    gpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    more: str,
    cifar: int,
    draw: int,
    asked: bool,
) -> None:
    told = list[object]()

    def drive(tasks: list[Task], engine: Local, *_: object) -> None:
        told.append((engine.side_by_side["cifar"], engine.side_by_side["draw"]))
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def shared(*_: object) -> Iterator[bool]:
        told.append("start")
        try:
            yield there
        finally:
            told.append("stop")

    monkeypatch.setattr(mps, "missing", lambda: "" if there else "no MPS")
    monkeypatch.setattr(mps, "mps", shared)
    monkeypatch.setattr(command, "check_all", lambda *_: None)
    monkeypatch.setattr(command, "drive", drive)
    words = ["reproduce", "cifar", "draw", "--scale", "quick", "--results", gpus, *more.split()]
    code, out, error = run(*words, "--plan", "--json")
    assert (code, error, told, json.loads(out)["side_by_side"]) == (0, "", [], {"cifar": cifar, "draw": draw})
    assert run(*words)[0] == 130
    assert told == (["start", (cifar, draw), "stop"] if asked else [(cifar, draw)])


@pytest.mark.parametrize(("words", "precision"), [("", None), ("--precision fp32", "fp32"), ("--device cpu", "fp32")])
def test_on_a_gpu_the_precision_is_that_in_which_each_experiment_is_judged(
    run: Command, gpus: Path, monkeypatch: pytest.MonkeyPatch, words: str, precision: str | None
) -> None:
    runs = [
        one
        for name in SETTINGS
        for one in planned("quick", [name], precision=precision or SETTINGS[name].gpu_precision)
    ]
    expected = {str(one.directory(gpus).folder) for one in runs}
    command_words = ["reproduce", "--scale", "quick", "--plan", "--json", "--results", gpus, *words.split()]
    assert {row["run"] for row in json.loads(run(*command_words)[1])["grid"]} == expected


@pytest.mark.parametrize(
    ("device", "nodes", "precision"), [("auto", "cuda", "bf16"), ("auto", "cpu", "fp32"), ("cuda", "", "bf16")]
)
def test_cluster_runs_have_the_precision_of_the_nodes(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, nodes: str, precision: str
) -> None:
    stopped = []
    monkeypatch.setattr(Engine, "stop", lambda engine: stopped.append(engine.devices[0]))
    monkeypatch.setattr("wnrepro.reproduce.cluster.Cluster", lambda *_: Engine([nodes], 7, 1))
    words = ["reproduce", "cifar", "--scale", "quick", "--plan", "--json", "--results", tmp_path, "--engine", "ray"]
    code, out, error = run(*words, "--device", device)
    assert (code, error, stopped) == (0, "", [nodes] if nodes else [])
    assert {"precision-bf16" in row["run"] for row in json.loads(out)["grid"]} == {precision == "bf16"}


# ------------------------------------------------------------------------------- computing


def test_a_spent_budget_is_exit_code_0(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(tmp_path, {})
    engine.stop_seconds = 10_000.0
    monkeypatch.setattr(engines, "Local", lambda *_: engine)
    words = [*DRAW, "--device", "cpu", "--results", tmp_path, "--budget", "1h30m"]
    code, out, error = run(*words)
    assert (code, error, engine.started, engine.stopped) == (0, "", [], True)
    assert "5 missing" in out and "budget of 1h30m" in out
    content = json.loads(run(*words, "--json")[1])
    assert (content["budget_seconds"], content["budget_spent"], content["missing"]) == (5400, True, 5)


def test_a_failed_run_is_exit_code_1(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "RETRY_SECONDS", 0.0)
    names = [task.name for task in plan(tmp_path, planned("quick", ["draw"]))]
    lives: dict[str, list[list[float | str]]] = {name: [["done"]] for name in names}
    engine = FakeEngine(tmp_path, lives | {names[1]: [["failed"]] * driving.TRIES}, jobs=2)
    monkeypatch.setattr(engines, "Local", lambda *_: engine)
    code, out, error = run(*DRAW, "--device", "cpu", "--results", tmp_path)
    assert (code, error) == (1, f"{tmp_path / names[1]}: failed, it is failed\n")
    assert (out.count("  done"), out.count("it is failed; resumes")) == (len(names) - 1, driving.TRIES - 1)
    rows = json.loads(run(*DRAW, "--plan", "--json", "--results", tmp_path)[1])["grid"]
    assert Counter(row["state"] for row in rows) == {"done": len(names) - 1, "missing": 1}

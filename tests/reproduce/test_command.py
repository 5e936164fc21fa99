"""`wnrepro reproduce`: mistakes, plans, devices, budget, failures; and what is shown of a grid on its way."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from factories import FakeEngine, put_run, quick_run
from rich.console import Console

from wnrepro import cli, mps, preflight
from wnrepro.reproduce import command, engines
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce.board import Board
from wnrepro.reproduce.engines import Engine, Local
from wnrepro.reproduce.grid import Planned, planned
from wnrepro.reproduce.plan import Task, plan
from wnrepro.runs.directory import PUBLISHED
from wnrepro.runs.run import Run
from wnrepro.settings import SETTINGS, Settings

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
def test_a_mistake_is_told_and_writes_nothing(run: Command, tmp_path: Path, words: str, names: str) -> None:
    (tmp_path / "file").touch()
    given = words.format(tmp=tmp_path).split()
    code, out, error = run("reproduce", *given, *([] if "--results" in given else ["--results", tmp_path / "no"]))
    assert (code, out, "Traceback" in error) == (2, "", False)
    assert names.format(tmp=tmp_path) in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------- the plan


def test_a_plan_names_every_run_and_what_is_left_out_and_writes_nothing(run: Command, tmp_path: Path) -> None:
    words = ["reproduce", "cifar", "cvae", "mnist", "--scale", "quick", "--plan", "--results", str(tmp_path)]
    runs = planned("quick", words[1:4])
    put_run(tmp_path, runs[0])
    before = sorted(tmp_path.rglob("*"))
    code, out, error = run(*words)
    assert (code, error, out.splitlines()[0]) == (0, "", "left out: cvae cifar10, draw, dqn")
    assert all(task.name in out for task in plan(tmp_path, runs))
    content = json.loads(run(*words, "--json")[1])
    assert (content["scale"], content["left_out"]) == ("quick", ["cvae cifar10", "draw", "dqn"])
    assert [row["run"] for row in content["grid"]] == [str(one.directory(tmp_path).folder) for one in runs]
    assert [row["state"] for row in content["grid"]] == ["done"] + ["missing"] * (len(runs) - 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_grid_that_is_done_needs_no_torch(tmp_path: Path) -> None:
    runs = planned("quick")
    for one in runs:
        put_run(tmp_path, one)
    code = (
        "import sys\nfrom wnrepro.cli import main\n"
        "for more in ([], ['--plan'], ['--plan', '--json']):\n"
        f"    sys.argv = ['wnrepro', 'reproduce', '--scale', 'quick', '--results', {str(tmp_path)!r}, *more]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{len(runs)} runs: {len(runs)} done.") == 2


def test_published_runs_are_nobodys_own(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fresh clone: nothing is done, what trains goes elsewhere, and nothing removes what is published."""
    published = tmp_path / PUBLISHED
    folders = [put_run(published, one) for one in planned("short")]
    before = {path: path.read_bytes() for path in published.rglob("*.json")}
    content = json.loads(run("reproduce", "--scale", "short", "--plan", "--json", "--results", tmp_path)[1])
    assert Counter(row["state"] for row in content["grid"]) == {"missing": len(folders)}

    trained: list[Path] = []

    def execute(self: Run, *_: object) -> dict[str, str]:
        trained.append(self.folder)
        return {"status": "done"}

    monkeypatch.setattr(Run, "execute", execute)
    monkeypatch.setattr("wnrepro.experiments.cifar.Cifar.check", lambda *_: None)
    words = ["cifar", "--param", "wn", "--scale", "short", "--device", "cpu", "--results", tmp_path]
    assert [run(*words, *more)[0] for more in ((), ("--fresh",), ("--fresh", "--yes"))] == [0, 2, 0]
    assert trained == [tmp_path / folders[2].relative_to(published)] * 2
    assert {path: path.read_bytes() for path in published.rglob("*.json")} == before


# ------------------------------------------------------------------------------- devices


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two GPUs, as far as a plan looks at them, of which four runs of draw at a time make the most; the results."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(preflight, "GPU_FILES", (str(tmp_path / "nvidia[0-9]"),))
    monkeypatch.setattr(engines, "devices", lambda name: ["cuda:0", "cuda:1"] if name == "auto" else [name])
    monkeypatch.setattr(engines, "gpu_memory", lambda _: 80 * 10**9)
    monkeypatch.setattr("wnrepro.device.choose_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr("wnrepro.runs.provenance.device_name", lambda *_: "A GPU")
    monkeypatch.setattr(mps, "STANDARD", tmp_path / "none")
    monkeypatch.setattr(mps, "missing", lambda: "")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    results = tmp_path / "results"
    (results / "bench").mkdir(parents=True)
    bench = {"device_name": "A GPU", "draw": {"side_by_side": {"1": 10, "2": 19, "4": 30}}}
    (results / "bench/a-gpu.json").write_text(json.dumps(bench))
    return results


@pytest.mark.parametrize(
    ("without", "more", "expected"),
    [
        ("", "", {"cifar": 2, "draw": 8}),
        ("", "--jobs 5", {"cifar": 2, "draw": 5}),
        ("", "--jobs-per-gpu 3", {"cifar": 6, "draw": 6}),
        ("", "--jobs-per-gpu 3 --jobs 4", {"cifar": 4, "draw": 4}),
        ("no MPS", "", {"cifar": 2, "draw": 2}),
        ("no MPS", "--jobs-per-gpu 3", {"cifar": 6, "draw": 6}),
    ],
)
def test_the_plan_for_gpus_says_how_many_runs_are_side_by_side(
    run: Command, gpus: Path, monkeypatch: pytest.MonkeyPatch, without: str, more: str, expected: dict[str, int]
) -> None:
    monkeypatch.setattr(mps, "missing", lambda: without)
    words = ["reproduce", "cifar", "draw", "--plan", "--json", "--scale", "quick", "--results", gpus, *more.split()]
    code, out, error = run(*words)
    assert (code, error, json.loads(out)["side_by_side"]) == (0, "", expected)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_mps_is_started_where_runs_share_a_gpu(
    run: Command, gpus: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    seen: list[int] = []
    asked: list[str] = []

    def drive(tasks: list[Task], engine: Local, *_: object) -> None:
        seen.append(engine.side_by_side["draw"])
        if error:
            raise error

    @contextlib.contextmanager
    def shared(*_: object) -> Iterator[bool]:
        asked.append("start")
        try:
            yield "no MPS" not in asked
        finally:
            asked.append("stop")

    monkeypatch.setattr(command, "check_all", lambda *_: None)
    monkeypatch.setattr(command, "drive", drive)
    monkeypatch.setattr(mps, "mps", shared)
    words = [*DRAW, "--results", gpus]
    assert run(*words)[0] == (130 if error else 0)
    run(*words, "--plan")
    run(*words, "--jobs", 2)  # each has a separate GPU
    run(*words, "--jobs-per-gpu", 1)
    assert (seen, asked) == ([8, 2, 2], ["start", "stop"])
    asked[:] = ["no MPS"]
    run(*words)
    run(*words, "--jobs-per-gpu", 3)
    assert (seen[3:], asked.count("stop")) == ([2, 6], 2)


@pytest.mark.parametrize(
    ("words", "precisions"),
    [
        ("", {name: cls.gpu_precision for name, cls in SETTINGS.items()}),
        ("--precision fp32", dict.fromkeys(SETTINGS, "fp32")),
        ("--device cpu", dict.fromkeys(SETTINGS, "fp32")),
    ],
)
def test_on_a_gpu_the_precision_is_that_in_which_each_experiment_is_judged(
    run: Command, gpus: Path, monkeypatch: pytest.MonkeyPatch, words: str, precisions: dict[str, str]
) -> None:
    command_words = ["reproduce", "--scale", "quick", "--plan", "--json", "--results", gpus, *words.split()]
    expected = {
        str(run.directory(gpus).folder)
        for name in SETTINGS
        for run in planned("quick", [name], precision=precisions[name])
    }
    assert {row["run"] for row in json.loads(run(*command_words)[1])["grid"]} == expected

    alone: set[str] = set()

    def run_all(cls: type[Settings], settings: list[Settings], _: object) -> int:
        alone.update(str(Planned(cls.name, "quick", one).directory(gpus).folder) for one in settings)
        return 0

    monkeypatch.setattr(cli, "run_all", run_all)  # the commands of one run take the same directories
    for experiment in SETTINGS:
        run(experiment, "--param", "all", "--scale", "quick", "--results", gpus, *words.split())
    assert (len(alone), alone <= expected) == (16, True)


@pytest.mark.parametrize(
    ("device", "nodes", "precision"), [("auto", "cuda", "bf16"), ("auto", "cpu", "fp32"), ("cuda", "", "bf16")]
)
def test_on_a_cluster_the_precision_is_that_of_its_nodes(
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


def fake_local(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> None:
    monkeypatch.setattr(engines, "Local", lambda *_: engine)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_spent_budget_is_exit_code_0_and_says_so(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    engine = FakeEngine(tmp_path, {})
    engine.stop_seconds = 10_000.0
    fake_local(monkeypatch, engine)
    code, out, error = run(*DRAW, "--device", "cpu", "--results", tmp_path, "--budget", "1h30m", *more)
    assert (code, error, engine.started, engine.stopped) == (0, "", [], True)
    if more:
        content = json.loads(out)
        assert (content["budget_seconds"], content["budget_spent"], content["missing"]) == (5400, True, 5)
        assert content["left_out"] == ["cifar", "cvae", "dqn"]
    else:
        assert "5 missing" in out
        assert "budget of 1h30m" in out


def test_a_failed_run_is_exit_code_1_and_the_others_are_done(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "RETRY_SECONDS", 0.0)
    names = [task.name for task in plan(tmp_path, planned("quick", ["draw"]))]
    lives: dict[str, list[list[float | str]]] = {name: [["done"]] for name in names}
    fake_local(monkeypatch, FakeEngine(tmp_path, lives | {names[1]: [["failed"]] * driving.TRIES}, jobs=2))
    code, out, error = run(*DRAW, "--device", "cpu", "--results", tmp_path)
    assert (code, error) == (1, f"{tmp_path / names[1]}: failed, it is failed\n")
    assert out.count("  done") == len(names) - 1
    assert out.count("it is failed; resumes") == driving.TRIES - 1
    rows = json.loads(run(*DRAW, "--plan", "--json", "--results", tmp_path)[1])["grid"]
    assert Counter(row["state"] for row in rows) == {"done": len(names) - 1, "missing": 1}


# ------------------------------------------------------------------------------- what a person sees


def test_elsewhere_than_on_a_terminal_news_are_plain_lines(tmp_path: Path) -> None:
    (task,), text = plan(tmp_path, [quick_run(seed=2)]), io.StringIO()
    states = {"start": "running", "progress": "running", "retry": "waiting", "stop": "stopped", "end": "done"}
    with Board(Console(file=text, width=40), [task], {}, quiet=False) as board:
        for news, task.state in states.items():
            task.text = f"[red] {news}"
            board.show(task, news)
    lines = text.getvalue().splitlines()
    assert [line.split(f"  {task.name}  ")[0] for line in lines] == ["0/1", "0/1", "0/1", "1/1"]
    assert "[red] retry" in lines[1]
    assert "[red] end" in lines[3]


@pytest.mark.parametrize(("width", "height"), [(80, 20), (200, 20), (80, 6)])
def test_the_table_fits_the_terminal_and_counts_what_it_leaves_out(tmp_path: Path, width: int, height: int) -> None:
    tasks = plan(tmp_path, planned("paper")[:100])
    states = ["done"] * 70 + ["diverged"] * 4 + ["waiting"] * 18 + ["stopped"] * 2 + ["failed"] * 2
    for task, state in zip(tasks, [*states, "held", *["running"] * 3], strict=True):
        task.state = state
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
    picture = Board(console, tasks, {"cifar": 4}, quiet=False).picture()
    lines = ["".join(part.text for part in line) for line in console.render_lines(picture)]
    assert len(lines) <= height
    assert "running" in lines[1]
    assert "3 running" in " ".join(lines[-2:])
    left_out = sum(map(int, re.findall(r"(\d+) \w", next(line for line in lines if line.startswith("and ")))))
    assert left_out == 100 - sum(bool(re.search(r"\d+/\d+", line)) for line in lines)

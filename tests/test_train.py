"""`--seeds`: several seeds of an experiment side by side, on a CPU in processes and on a GPU in one."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import FakeEngine, Hold, put_run, same_tables

from wnrepro import signals, train
from wnrepro.experiments.draw import Draw
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.plan import plan
from wnrepro.runs.directory import RunDirectory
from wnrepro.settings import scale_settings

Command = Callable[..., tuple[int, str, str]]

SMALL = ["--scale", "quick", "--device", "cpu", "--train-examples", "200", "--test-examples", "100"]
DRAW = ["draw", *SMALL, "--param", "wn", "--batch-size", "20", "--time-steps", "3", "--units", "8", "--latents", "3"]
LONG = ["draw", *SMALL[:4], "--param", "wn", "--epochs", "4000"]  # an epoch takes seconds
CVAE = ["cvae", "--param", "wn", *SMALL, "--batch-size", "20", "--epochs", "1", "--init-examples", "60"]
CVAE += ["--maps", "2", "--maps", "2", "--maps", "2", "--hidden", "8", "--iaf-width", "4"]
WORDS = [*DRAW, "--epochs", "2", "--log-steps", "3"]


def folders(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.rglob("config.json"))


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())  # type: ignore[no-any-return]


def start(results: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wnrepro", *words, "--results", str(results)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of seeds 1 to 3, trained one after another in this process with one thread."""
    from wnrepro import cli

    results, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for seed in ("1", "2", "3"):
            cli.app([*WORDS, "--seed", seed, "--results", str(results), "--quiet"], standalone_mode=False)
    finally:
        torch.set_num_threads(threads)
    return results


# ------------------------------------------------------------------------------- with real processes


def test_seeds_in_company_have_the_rows_of_seeds_alone(run: Command, tmp_path: Path, alone: Path) -> None:
    code, printed, error = run(*WORDS, "--seeds", "1-3", "--results", tmp_path)
    assert (code, error) == (0, "") and "3 seeds" in printed
    assert len(folders(tmp_path)) == 3
    for folder in folders(tmp_path):
        same_tables(folder, alone / folder.relative_to(tmp_path))
        assert (folder / "steps.csv").read_text().count("\n") == 1 + 2 * 10 // 3
    before = [record_in(folder) for folder in folders(tmp_path)]
    code, printed, error = run(*WORDS, "--seeds", "1-3", "--results", tmp_path, "--json")  # finished runs are skipped
    assert (code, error) == (0, "")
    assert [(Path(one["run"]).name, one["status"]) for one in json.loads(printed)] == [
        (f"seed-{seed}", "done") for seed in (1, 2, 3)
    ]
    assert [record_in(folder) for folder in folders(tmp_path)] == before


def test_fresh_clears_all_runs_and_continues_no_shorter_one(run: Command, tmp_path: Path, hold: Hold) -> None:
    short, long = ([*DRAW, "--results", str(tmp_path), "--seeds", "1,2", "--epochs", n] for n in ("1", "2"))
    assert run(*short, "--quiet") == run(*long, "--quiet") == (0, "", "")
    runs = [folder for folder in folders(tmp_path) if "epochs-2" in str(folder)]
    assert [record_in(folder)["continued"]["epoch"] for folder in runs] == [1, 1]
    assert run(*long, "--fresh")[0] == 2
    settings = scale_settings("draw", "quick", "wn", **{**tiny_changes(), "epochs": 2, "seed": 2})
    holder = hold(RunDirectory(tmp_path, "draw", "quick", settings))
    code, printed, error = run(*long, "--fresh", "--yes")
    assert (code, printed, "seed-2" in error) == (2, "", True) and record_in(runs[0])["status"] == "done"
    holder.kill()
    holder.wait()
    assert run(*long, "--fresh", "--yes", "--quiet") == (0, "", "")
    assert [record_in(folder).get("continued") for folder in runs] == [None, None]


def tiny_changes() -> dict[str, Any]:
    return {"train_examples": 200, "test_examples": 100, "batch_size": 20, "time_steps": 3, "units": 8, "latents": 3}


def test_a_failed_run_stops_no_other(run: Command, tmp_path: Path) -> None:
    settings = scale_settings("draw", "quick", "wn", **{**tiny_changes(), "epochs": 2, "seed": 2})
    folder = put_run(tmp_path, Planned("draw", "quick", settings), "running", epoch=1)  # it has no checkpoint
    code, printed, error = run(*WORDS, "--seeds", "1-3", "--results", tmp_path)
    assert (code, error.count("\n"), str(folder) in error) == (1, 1, True)
    assert "2 seeds" in printed and "seed 2 failed" in printed
    assert [record_in(one)["status"] for one in folders(tmp_path)] == ["done", "running", "done"]


def test_seeds_start_from_the_weights_of_a_run(run: Command, tmp_path: Path, alone: Path) -> None:
    source = folders(alone)[0]
    words = [*DRAW, "--epochs", "1", "--init-from", str(source), "--results", str(tmp_path)]
    assert run(*words, "--seeds", "1,2", "--quiet") == (0, "", "")
    assert ["init_from" in record_in(folder)["facts"] for folder in folders(tmp_path)] == [True, True]


def test_changed_tables_are_restored_and_log_p_is_estimated(run: Command, tmp_path: Path) -> None:
    words = [*CVAE, "--results", str(tmp_path), "--seeds", "1-2"]
    assert run(*words, "--quiet") == (0, "", "")
    metrics = folders(tmp_path)[0] / "metrics.csv"
    text = metrics.read_text()
    metrics.write_text(text.replace("1,", "7,", 1))
    code, _, error = run(*words, "--importance-samples", 2)
    assert (code, "metrics.csv" in error, metrics.read_text()) == (0, True, text)
    assert all(record_in(folder)["facts"]["importance_samples"] == 2 for folder in folders(tmp_path))


@pytest.mark.slow
def test_a_killed_program_resumes_all_seeds_without_a_change(run: Command, tmp_path: Path) -> None:
    results, whole, words = tmp_path / "killed", tmp_path / "whole", [*DRAW, "--epochs", "20"]
    with start(results, *words, "--seeds", "1-2") as process:
        deadline = time.monotonic() + 120
        while not any(record_in(path.parent)["epoch"] for path in results.rglob("run.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.communicate()
    time.sleep(1)  # for the end of its processes
    assert any(1 <= record_in(folder)["epoch"] < 20 for folder in folders(results))
    assert run(*words, "--seeds", "1-2", "--results", results, "--quiet") == (0, "", "")
    assert any(record_in(folder)["resumed"] for folder in folders(results))
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "wnrepro", *words, "--seed", seed, "--results", str(whole), "--quiet"]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    assert len(folders(whole)) == 2
    for folder in folders(whole):
        same_tables(results / folder.relative_to(whole), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_every_seed_write_a_checkpoint(tmp_path: Path, number: int, code: int) -> None:
    abreast = min(2, train.processes().jobs)  # 1 on a machine with little memory
    with start(tmp_path, *LONG, "--seeds", "1-2") as process:
        assert process.stdout is not None and "starts" in process.stdout.readline()
        deadline = time.monotonic() + 120
        while len(asked := [*tmp_path.rglob("checkpoint.pt")]) < abreast and time.monotonic() < deadline:
            time.sleep(1)
            process.send_signal(signal.SIGUSR1)
        sent = time.time()
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error.count("\n"), len(asked)) == (code, 1, abreast)
    assert all(path.stat().st_mtime >= sent for path in asked)


# ------------------------------------------------------------------------------- with simulated processes


def test_a_diverged_seed_is_named_and_a_failed_one_is_exit_code_1(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "RETRY_SECONDS", 0.0)
    planned = [Planned("draw", "quick", scale_settings("draw", "quick", "wn", seed=seed)) for seed in range(1, 6)]
    tasks = plan(tmp_path, planned)
    ends = dict(zip([task.name for task in tasks], ["done", "diverged", "lost", "done", "failed"], strict=True))
    lives: dict[str, list[list[float | str]]] = {
        name: [[end]] * driving.TRIES if end == "failed" else [[end], ["done"]] for name, end in ends.items()
    }
    for task, bound in zip(tasks, (-80, -90, -81, -82, -1), strict=True):
        task.directory.folder.mkdir(parents=True)
        (task.directory.folder / "metrics.csv").write_text(f"epoch,test_bound_nats\n1,{bound}\n")
    engine = FakeEngine(tmp_path, lives, jobs=2)
    monkeypatch.setattr(train, "processes", lambda: engine)
    words = ["draw", "--param", "wn", "--scale", "quick", "--device", "cpu", "--results", tmp_path, "--seeds", "1-5"]
    code, printed, error = run(*words)
    assert (code, error.count("\n")) == (1, 1)
    (line,) = [line for line in printed.splitlines() if "±" in line]
    assert "−81.0 ± 1.0 nats" in line and "3 seeds" in line and "seed 2 diverged, seed 5 failed" in line
    assert engine.started.count(tasks[2].name) == 2  # it was lost once
    engine.lives[tasks[4].name] = [["done"]]
    code, printed, _ = run(*words, "--json")
    assert code == 0 and [one["status"] for one in json.loads(printed)] == ["done", "diverged", "done", "done", "done"]


def test_the_announced_time_is_that_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wnrepro.options import RunOptions
    from wnrepro.settings import DrawSettings

    said: list[float] = []
    monkeypatch.setattr(train, "announce", lambda _, seconds, __: said.append(seconds))
    planned = [scale_settings("draw", "paper", "wn", seed=seed) for seed in range(1, 5)]
    for jobs in (1, 2):
        train.announce_time(DrawSettings, planned, RunOptions(results=tmp_path), "cpu", jobs)
    assert said[1] == pytest.approx(said[0] / 2)


# ------------------------------------------------------------------------------- on a GPU, as far as a CPU shows it


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that passes for a GPU."""
    monkeypatch.setattr(train, "device_type", lambda *_: "cuda")


@pytest.mark.usefixtures("gpu")
def test_seeds_in_one_process_have_the_rows_of_seeds_alone(run: Command, tmp_path: Path, alone: Path) -> None:
    code, printed, error = run(*WORDS, "--seeds", "1-3", "--results", tmp_path)
    assert (code, error.replace("loading torch…\n", "")) == (0, "") and "3 seeds" in printed
    for folder in folders(tmp_path):
        same_tables(folder, alone / folder.relative_to(tmp_path))


@pytest.mark.usefixtures("gpu")
def test_a_failure_in_one_process_stops_no_other_run(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Draw.step

    def fails(self: Draw, index: Any) -> Any:
        if self.settings.seed == 2:
            raise ZeroDivisionError("by nothing")
        return step(self, index)

    monkeypatch.setattr(Draw, "step", fails)
    words = [*DRAW, "--epochs", "1", "--seeds", "1-3", "--results", str(tmp_path), "--json"]
    code, printed, error = run(*words)
    assert (code, error.count("\n"), "by nothing" in error) == (1, 1, True)
    assert [one["status"] for one in json.loads(printed)] == ["done", "failed", "done"]
    monkeypatch.setattr(Draw, "step", step)
    for more, resumes in ([], [0, 1, 0]), (["--fresh", "--yes"], [0, 0, 0]):
        assert run(*words, *more)[0] == 0
        assert [len(record_in(folder)["resumed"]) for folder in folders(tmp_path)] == resumes


@pytest.mark.usefixtures("gpu")
def test_a_signal_lets_every_run_of_one_process_write_a_checkpoint(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Path
) -> None:
    step, calls = Draw.step, itertools.count()

    def interrupts(self: Draw, index: Any) -> Any:
        if next(calls) == 3 * 14:  # within the second epoch
            signals.receive(signal.SIGTERM, None)  # as the handler in the main thread does
        return step(self, index)

    monkeypatch.setattr(Draw, "step", interrupts)
    words = [*WORDS, "--seeds", "1-3", "--results", str(tmp_path)]
    code, printed, error = run(*words, "--quiet")
    assert (code, printed, error.count("\n")) == (143, "", 1)
    paths = [*tmp_path.rglob("checkpoint.pt")]
    assert len(paths) == 3 and all("within" in torch.load(path)["experiment"] for path in paths)
    assert run(*words, "--quiet") == (0, "", "")
    for folder in folders(tmp_path):
        same_tables(folder, alone / folder.relative_to(tmp_path))

"""Runs in separate processes: what each tells, how it ends; grids of them that are killed, stopped or shared."""

import contextlib
import itertools
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import put_run, same_tables, tiny_cvae, tiny_dqn, tiny_draw, tiny_grid

from wnrepro.cuda_graphs import CaptureError
from wnrepro.experiments.draw import Draw
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce import work
from wnrepro.reproduce.drive import drive
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.plan import Task, plan
from wnrepro.reproduce.work import Event, Job, Process
from wnrepro.settings import PARAMS, Settings

Check = Callable[[Path, list[Planned]], None]

# The driver of a grid; its argument: results, --jobs and runs, pickled.
DRIVER = """
import pickle, sys
from wnrepro.reproduce import drive
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.plan import plan
drive.RETRY_SECONDS, drive.HELD_SECONDS = 0.0, 0.2
results, jobs, runs = pickle.loads(bytes.fromhex(sys.argv[1]))
tasks = plan(results, runs)
drive.drive(tasks, Local(["cpu"], jobs, {}), results, None, lambda task, news: print(task.name, news, flush=True))
sys.exit(any(task.state != "done" for task in tasks))
"""
# The command, with other runs as its grid.
COMMAND = """
import pickle, sys
from wnrepro.reproduce import grid
runs = pickle.loads(bytes.fromhex(sys.argv.pop(1)))
grid.planned = lambda *_, **__: runs
from wnrepro.cli import main
main()
"""


def job_of(run: Planned, results: Path, **changes: object) -> Job:
    return Job(run, results, None, 1, **{"device": "cpu", **changes})  # type: ignore[arg-type]


def compute(run: Planned, results: Path, **changes: object) -> list[Event]:
    """Compute a run in this process; its events."""
    told: list[Event] = []
    work.work(job_of(run, results, **changes), told.append)
    return told


def start(script: str, given: object, *words: object) -> subprocess.Popen[str]:
    """Start a separate process with this script; `given` is pickled."""
    command = [sys.executable, "-c", script, pickle.dumps(given).hex(), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, list[Planned]], None]:
    """check(results, runs): that these runs have the tables of undisturbed ones, computed in this process."""
    alone = tmp_path_factory.mktemp("undisturbed")

    def compare(results: Path, runs: list[Planned]) -> None:
        for run in runs:
            assert compute(run, alone)[-1].outcome == "done"
            same_tables(run.directory(results).folder, run.directory(alone).folder)

    return compare


# ------------------------------------------------------------------------------- one run


def test_a_process_tells_how_its_run_goes_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(work, "PROGRESS_SECONDS", -1.0)
    run, told = Planned("draw", "quick", tiny_draw()), list[Event]()
    folder = run.directory(tmp_path).folder

    def send(event: Event) -> None:
        told.append(event)
        assert int(event.epochs) == json.loads((folder / "run.json").read_text())["epoch"]  # it is on disk before

    work.work(job_of(run, tmp_path), send)
    assert [event.epochs for event in told] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4]
    assert [event.outcome for event in told] == [""] * 8 + ["done"]
    assert compute(run, tmp_path) == [Event(4, "", "done")]  # what is done is not done again
    hold(folder)
    put_run(tmp_path, run, "running", epoch=1)
    assert [event.outcome for event in compute(run, tmp_path)] == ["held"]
    (refused,) = compute(run, tmp_path, device="tpu")
    assert refused.outcome == "refused"
    assert "--device tpu" in refused.text


@pytest.mark.parametrize(
    ("error", "outcome"), [(ZeroDivisionError("by zero"), "failed"), (CaptureError("not permitted"), "uncaptured")]
)
def test_a_process_tells_why_its_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(Draw, "step", step)
    run = Planned("draw", "quick", tiny_draw())
    (event,) = compute(run, tmp_path)
    assert (event.outcome, event.text) == (outcome, f"{type(error).__name__}: {error}")
    assert event.traceback.startswith("Traceback")
    assert plan(tmp_path, [run])[0].found.name == "failed"


def test_a_process_ends_when_its_driver_does_and_tells_how_it_was_killed(tmp_path: Path) -> None:
    run = Planned("draw", "quick", tiny_draw(epochs=1000))
    orphan, killed = (Process(job_of(run, tmp_path)) for _ in range(2))
    orphan.connection.close()  # as where the driver is killed
    assert orphan.process.wait(60) == work.ORPHANED
    orphan.printed.close()
    killed.kill()
    (event,) = killed.events()
    assert event.outcome == "lost"
    assert "signal 9" in event.text


@pytest.mark.parametrize(("graphs", "variable"), [(True, "1"), (False, "0")])
def test_a_process_without_graphs_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool, variable: str
) -> None:
    monkeypatch.setenv("WNREPRO_GRAPHS", "1")
    command, popen = [sys.executable, "-c", "import os, sys; sys.exit(os.environ['WNREPRO_GRAPHS'])"], subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda _, **how: popen(command, **how))
    (event,) = Process(job_of(tiny_grid()[0], tmp_path, graphs=graphs)).events()
    assert (event.outcome, event.traceback) == ("lost", f"{variable}\n")


# ------------------------------------------------------------------------------- grids of them


def test_a_grid_whose_worker_is_killed_and_that_is_interrupted_changes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Check
) -> None:
    monkeypatch.setattr(driving, "RETRY_SECONDS", 0.0)
    run = Planned("draw", "quick", tiny_draw("wn+mobn", epochs=40))
    engines, news = [Local(["cpu"], 2, {}) for _ in range(2)], list[str]()

    def show(task: Task, kind: str) -> None:
        news.append(kind)
        if news.count("epoch") == 2 and "retry" not in news:
            engines[0].running[task.name].worker.kill()
        if kind == "epoch" and "retry" in news and len(engines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(plan(tmp_path, [run]), engines[0], tmp_path, None, show)
    assert not engines.pop(0).running
    (stopped,) = plan(tmp_path, [run])
    assert stopped.found.name == "stopped"  # nobody holds it
    assert stopped.reached > 2
    drive([stopped], engines[0], tmp_path, None, show)
    check(tmp_path, [run])


def living() -> dict[int, int]:
    """The parent of every living process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = path.read_text().rsplit(")", 1)[1].split()
            if state not in "ZX":
                found[int(path.parent.name)] = int(parent)
    return found


def workers(driver: int) -> list[int]:
    return [process for process, parent in living().items() if parent == driver]


def gone(processes: list[int], seconds: float = 20.0) -> bool:
    """Whether these processes, whose driver has died, end within this number of seconds."""
    end = time.monotonic() + seconds
    while (left := {*processes} & living().keys()) and time.monotonic() < end:
        time.sleep(0.05)
    return not left


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")


@needs_proc
@pytest.mark.slow
def test_kills_of_workers_and_drivers_change_no_row_and_leave_no_process(
    tmp_path: Path, check: Check, times: Callable[[int, int], int]
) -> None:
    """Of a grid with two runs at a time, by SIGKILL at random moments; the driver is started again."""
    runs, kills, resumed = tiny_grid(), Counter[str](), list[int]()
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    while any(task.state == "waiting" for task in plan(tmp_path, runs)):
        with start(DRIVER, (tmp_path, 2, runs)) as driver:
            assert driver.stdout is not None
            there: list[int] = []
            while kills.total() < times(6, 20):
                epochs = (line for line in driver.stdout if line.endswith(" epoch\n"))
                if not list(itertools.islice(epochs, moments.randint(1, 5))):
                    break  # the driver has come to its end
                time.sleep(moments.uniform(0.0, 0.4))
                there = workers(driver.pid)
                chosen = driver.pid if kills.total() % 3 == 2 else moments.choice([driver.pid, *there])
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(chosen, signal.SIGKILL)
                kills["driver" if chosen == driver.pid else "worker"] += 1
                if chosen == driver.pid:
                    break
            _, error = driver.communicate()
            assert driver.returncode in (0, -signal.SIGKILL), error
            assert gone(there)
    for run in runs:
        record = run.directory(tmp_path).record() or {}
        resumed += [entry["from_epoch"] for entry in record["resumed"]]
    print(f"{dict(kills)} kills, resumed from epochs {resumed}")
    assert (len(kills), any(resumed)) == (2, True)  # kinds of kills
    check(tmp_path, runs)


@pytest.mark.slow
def test_real_runs_end_within_a_budget_and_resume_without_a_change(tmp_path: Path, check: Check) -> None:
    words = ["reproduce", "--scale", "quick", "--jobs", 1, "--device", "cpu", "--results", tmp_path]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import wnrepro.runs.run, wnrepro.experiments.draw"], check=True)
    budget = math.ceil(Local.stop_seconds + 2 + 4 * (time.monotonic() - began))  # enough for some, and not for all
    began = time.monotonic()
    out, error = start(COMMAND, tiny_grid(), *words, "--budget", f"{budget}s").communicate()
    assert (time.monotonic() - began < budget, f"{budget}s" in out, error) == (True, True, "")
    states = [task.found.name for task in plan(tmp_path, tiny_grid())]
    assert (states[0] != "missing", states[-1], "running" in states) == (True, "missing", False)
    with start(COMMAND, tiny_grid(), *words) as again:
        again.communicate()
    assert again.returncode == 0
    check(tmp_path, tiny_grid())


@needs_proc
@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers(tmp_path: Path) -> None:
    words = ["reproduce", "--scale", "quick", "--jobs", 2, "--device", "cpu", "--results", tmp_path]
    with start(COMMAND, tiny_grid(), *words) as process:
        assert process.stdout is not None
        assert sum("begins" in process.stdout.readline() for _ in range(3)) == 2
        there = workers(process.pid)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, len(there), gone(there), error.count("\n")) == (130, 2, True, 1)


def eight() -> list[Planned]:
    """Runs of a moment, of which cvae's and dqn's have other last bits with two threads than with one."""
    settings: list[Settings] = [tiny_dqn("wn", epochs=1), *(tiny_cvae(param, epochs=2) for param in PARAMS)]
    settings += [tiny_cvae("wn", "cifar10", epochs=2), tiny_draw("normal", epochs=2), tiny_cvae("wn", epochs=2, seed=2)]
    return [Planned(one.name, "quick", one) for one in settings]


@pytest.mark.slow
@pytest.mark.parametrize(("drivers", "jobs"), [(1, 1), (1, 8), (2, 2)])
def test_drivers_and_processes_share_a_grid_and_their_number_changes_no_row(
    tmp_path: Path, check: Check, times: Callable[[int, int], int], drivers: int, jobs: int
) -> None:
    runs = eight()[: times(3, 8)]
    processes = [start(DRIVER, (tmp_path, jobs, runs)) for _ in range(drivers)]
    told = [process.communicate() for process in processes]
    assert {error for _, error in told} == {""}
    assert {process.returncode for process in processes} == {0}
    computed = [{line for line in out.splitlines() if line.endswith(" epoch")} for out, _ in told]
    assert sum(map(len, computed)) == len(set.union(*computed)) == len(runs)  # each by one of them
    check(tmp_path, runs)

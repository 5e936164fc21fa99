"""Runs in separate processes: what each tells, how it ends; grids of them that are killed, stopped or shared."""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import Count, Hold, Times, put_run, same_tables, tiny_cifar, tiny_cvae, tiny_dqn, tiny_draw, tiny_grid

from wnrepro.cuda_graphs import CaptureError
from wnrepro.experiments.draw import Draw
from wnrepro.reproduce import work
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.plan import plan
from wnrepro.reproduce.work import Event, Job, Process
from wnrepro.settings import PARAMS

Check = Callable[[Path, list[Planned]], None]

# The command, with other runs as its grid.
COMMAND = """
import pickle, sys
from wnrepro.reproduce import drive, grid
runs = pickle.loads(bytes.fromhex(sys.argv.pop(1)))
grid.planned = lambda *_, **__: runs
drive.RETRY_SECONDS, drive.HELD_SECONDS = 0.0, 0.2
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


def start(runs: list[Planned], results: Path, *words: object) -> subprocess.Popen[str]:
    """Start the command in a separate process."""
    given = ["reproduce", "--scale", "quick", "--device", "cpu", "--results", results, *words]
    command = [sys.executable, "-c", COMMAND, pickle.dumps(runs).hex(), *map(str, given)]
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


def test_process_reports_the_progress_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold) -> None:
    monkeypatch.setattr(work, "PROGRESS_SECONDS", -1.0)
    monkeypatch.setattr("wnrepro.runs.run.SAVE_SHARE", 1e-12)  # without `each_epoch` only the first and the last
    run, told = Planned("draw", "quick", tiny_draw(epochs=2)), list[Event]()
    there = run.directory(tmp_path)

    def send(event: Event) -> None:
        told.append(event)
        assert int(event.epochs) == json.loads((there.folder / "run.json").read_text())["epoch"]  # on disk before

    work.work(job_of(run, tmp_path, each_epoch=True), send)
    assert [(event.epochs, event.outcome) for event in told] == [(0.5, ""), (1, ""), (1.5, ""), (2, ""), (2, "done")]
    assert compute(run, tmp_path) == [Event(2, "", "done")]  # what is done is not done again
    hold(there)
    put_run(tmp_path, run, "running", epoch=1)
    assert [event.outcome for event in compute(run, tmp_path)] == ["held"]
    (refused,) = compute(run, tmp_path, device="tpu")
    assert refused.outcome == "refused" and "--device tpu" in refused.text


@pytest.mark.parametrize(
    ("error", "outcome"), [(ZeroDivisionError("by zero"), "failed"), (CaptureError("not permitted"), "uncaptured")]
)
def test_a_failed_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str) -> None:
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(Draw, "step", step)
    run = Planned("draw", "quick", tiny_draw())
    (event,) = compute(run, tmp_path)
    assert (event.outcome, event.text) == (outcome, f"{type(error).__name__}: {error}")
    assert event.traceback.startswith("Traceback")
    assert plan(tmp_path, [run])[0].found.name == "failed"


@pytest.mark.parametrize("forks", [False, True])
def test_process_ends_with_its_driver_and_reports_a_kill(tmp_path: Path, forks: bool) -> None:
    run = Planned("draw", "quick", tiny_draw(epochs=1000))
    orphan, killed = (Process(job_of(run, tmp_path), forks) for _ in range(2))
    orphan.connection.close()  # as where the driver is killed
    assert orphan.process.wait(60) == work.ORPHANED
    orphan.printed.close()
    killed.kill()
    *_, event = killed.events()
    assert event.outcome == "lost" and "signal 9" in event.text


@pytest.mark.slow
def test_ended_process_first_writes_a_checkpoint(tmp_path: Path) -> None:
    """With all epochs so far, though it saves only the first of such short ones."""
    run = Planned("draw", "quick", tiny_draw(epochs=1000, time_steps=40))
    process, there = Process(job_of(run, tmp_path)), run.directory(tmp_path)
    events = process.events()
    reached = next(int(event.epochs) for event in events if event.epochs >= 4)
    process.end()
    *_, event = events
    assert event.outcome == "lost" and "code 143" in event.text
    checkpoint = torch.load(there.folder / "checkpoint.pt")
    within = checkpoint["experiment"].get("within")  # None if the signal came at the end of an epoch
    assert within is None or 0 < within["logged"].shape[1] <= 10
    assert checkpoint["epoch"] == (there.record() or {})["epoch"] == rows(tmp_path) - 1 >= reached


@pytest.mark.parametrize(("graphs", "variable"), [(True, "1"), (False, "0")])
def test_graphs_and_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool, variable: str) -> None:
    monkeypatch.setenv("WNREPRO_GRAPHS", "1")
    command, popen = [sys.executable, "-c", "import os, sys; sys.exit(os.environ['WNREPRO_GRAPHS'])"], subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda _, **how: popen(command, **how))
    (event,) = Process(job_of(tiny_grid()[0], tmp_path, graphs=graphs)).events()
    assert (event.outcome, event.traceback) == ("lost", f"{variable}\n")


def test_forked_processes_compute_what_new_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNREPRO_GRAPHS", "1")
    for run in (Planned("draw", "quick", tiny_draw(seed=seed)) for seed in (1, 2)):
        for forks in (False, True):
            *_, last = Process(job_of(run, tmp_path / str(forks)), forks).events()
            assert last.outcome == "done"
        same_tables(run.directory(tmp_path / "True").folder, run.directory(tmp_path / "False").folder)


@pytest.mark.slow
def test_a_forked_process_compiles(tmp_path: Path) -> None:
    """A run with enough epochs is compiled, as in a new process; else its rows would differ in their last digits."""
    run = Planned("draw", "quick", tiny_draw(epochs=10_000))
    process = Process(job_of(run, tmp_path), forks=True)
    events = process.events()
    assert next(events).epochs > 0
    process.kill()
    assert [event.outcome for event in events][-1] == "lost"
    assert (run.directory(tmp_path).record() or {})["facts"]["compiled"] is True


# A program with an experiment in its main file, as examples/char_lstm.py.
MAIN = """
import sys
from dataclasses import dataclass
from pathlib import Path
from factories import tiny_draw
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.work import Job, Process
from wnrepro.settings import DrawSettings, register

@register
@dataclass(frozen=True)
class OwnSettings(DrawSettings):
    name = "own"

if __name__ == "__main__":
    run = Planned("own", "quick", OwnSettings(**vars(tiny_draw(epochs=1))))
    *_, last = Process(Job(run, Path(sys.argv[1]), None, 1, "cpu"), bool(sys.argv[2])).events()
    print(last.outcome, last.text, last.traceback)
"""


@pytest.mark.slow
@pytest.mark.parametrize("forks", ["", "forks"])
def test_an_experiment_of_the_main_file_is_known_to_its_processes(tmp_path: Path, forks: str) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path), forks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("done"), done.stdout + done.stderr


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")


def say_last_words() -> None:
    """As a process's last act: its group, its environment, its output, and the threads of the one it forked from."""
    threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
    print(os.getpgrp() == os.getpid(), threads, os.environ["OMP_NUM_THREADS"], flush=True)
    print(os.environ["WNREPRO_GRAPHS"], "torch" in sys.modules, "_dynamo" in str(sys.modules), file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)


class Last:
    """Unpickled in a forked process, it says its last words there instead of a run."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return say_last_words, ()


@needs_proc
def test_a_forked_process_has_a_session_and_its_environment_from_one_without_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNREPRO_GRAPHS", "1")
    job = dataclasses.replace(job_of(tiny_grid()[0], tmp_path, graphs=False), source=Last())  # type: ignore[arg-type]
    (event,) = Process(job, forks=True).events()
    assert event.outcome == "lost" and "signal 9" in event.text
    assert event.traceback.split() == ["True", "1", "1", "0", "True", "True"]


# ------------------------------------------------------------------------------- grids of them


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def workers(driver: int) -> list[int]:
    """The processes of its runs: they fork from its children."""
    return [worker for child in children(driver) for worker in children(child)]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone(processes: list[int]) -> bool:
    """Whether these processes, whose driver has died, end soon."""
    end = time.monotonic() + 20
    while any(map(lives, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(lives, processes))


def rows(results: Path) -> int:
    """Of all runs' metrics.csv."""
    return sum(path.read_text().count("\n") for path in results.rglob("metrics.csv"))


def copy_of(source: Path, target: Path) -> None:
    """Copy a folder whose files change and vanish meanwhile."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        try:
            shutil.copyfile(path, target / path.name)
        except FileNotFoundError:
            assert path.suffix == ".part", path


@needs_proc
@pytest.mark.slow
def test_kills_and_copies_change_no_row_and_leave_no_process(
    tmp_path: Path, check: Check, times: Times, count: Count
) -> None:
    """By SIGKILL at random moments, with a copy of each run before one of them; the command is given again."""
    cifar = Planned("cifar", "quick", tiny_cifar("wn+mobn", epochs=12))  # each start takes long to load its images
    runs, results, copies = tiny_grid() + [cifar] * times(0, 1), tmp_path / "results", tmp_path / "copies"
    moments, kills, copied = random.Random(), Counter[str](), list[Planned]()
    while any(task.state == "waiting" for task in plan(results, runs)):
        with start(runs, results, "--jobs", 2) as driver:
            there: list[int] = []
            while kills.total() < times(6, 40) and driver.poll() is None:
                until = rows(results) + moments.randint(1, 4)
                while rows(results) < until and driver.poll() is None:
                    time.sleep(0.02)
                time.sleep(moments.uniform(0.0, 0.4))
                there = workers(driver.pid)
                for run in runs:
                    source = run.directory(results).folder
                    if run not in copied and (source / "checkpoint.pt").exists():
                        copied.append(run)
                        copy_of(source, run.directory(copies).folder)
                chosen = driver.pid if kills.total() % 3 == 2 else moments.choice([driver.pid, *there])
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(chosen, signal.SIGKILL)
                kills["driver" if chosen == driver.pid else "worker"] += 1
                if chosen == driver.pid:
                    break
            _, error = driver.communicate()
            assert driver.returncode in (0, -signal.SIGKILL), error
            assert gone(there)
    check(results, runs)
    for run in copied:
        compute(run, copies)
    check(copies, copied)
    records = [run.directory(results).record() or {} for run in runs]
    assert kills["driver"] and copied and any(entry["from_epoch"] for one in records for entry in one["resumed"])
    count(f"{dict(kills)} kills and {len(copied)} copies: all runs end with undisturbed rows")


@pytest.mark.slow
def test_real_runs_end_within_a_budget_and_resume_without_a_change(tmp_path: Path, check: Check) -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import wnrepro.runs.run, wnrepro.experiments.draw"], check=True)
    budget = math.ceil(Local.stop_seconds + 2 + 4 * (time.monotonic() - began))  # enough for some, and not for all
    began = time.monotonic()
    out, error = start(tiny_grid(), tmp_path, "--jobs", 1, "--budget", f"{budget}s").communicate()
    assert (time.monotonic() - began < budget, f"{budget}s" in out, error) == (True, True, "")
    states = [task.found.name for task in plan(tmp_path, tiny_grid())]
    assert (states[0] != "missing", states[-1], "running" in states) == (True, "missing", False)
    with start(tiny_grid(), tmp_path, "--jobs", 1) as again:
        again.communicate()
    assert again.returncode == 0
    check(tmp_path, tiny_grid())


@needs_proc
@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers(tmp_path: Path) -> None:
    with start(tiny_grid(), tmp_path, "--jobs", 2) as process:
        assert process.stdout is not None
        assert sum("starts" in process.stdout.readline() for _ in range(3)) == 2
        there = workers(process.pid)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, len(there), gone(there), error.count("\n")) == (130, 2, True, 1)


def descendants(process: int) -> list[int]:
    own = children(process)
    return [*own, *(further for child in own for further in descendants(child))]


@needs_proc
@pytest.mark.slow
def test_preempted_grid_continues_within_its_epochs(tmp_path: Path, check: Check) -> None:
    """SIGTERM to every process at once, as from Slurm."""
    runs = [Planned("draw", "quick", tiny_draw(param, epochs=2, train_examples=2000)) for param in ("wn", "normal")]
    folders = [run.directory(tmp_path).folder for run in runs]
    with start(runs, tmp_path, "--jobs", 2) as process:
        while not all((folder / "run.json").exists() for folder in folders):
            time.sleep(0.01)
        time.sleep(0.3)
        there = [process.pid, *descendants(process.pid)]
        for one in there:
            os.kill(one, signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, gone(there), error.count("\n")) == (143, True, 1)
    assert any("within" in torch.load(path)["experiment"] for path in tmp_path.rglob("checkpoint.pt"))
    with start(runs, tmp_path, "--jobs", 2) as again:
        again.communicate()
    assert again.returncode == 0
    assert all((run.directory(tmp_path).record() or {})["resumed"] for run in runs)
    check(tmp_path, runs)


@pytest.mark.slow
@pytest.mark.parametrize(("drivers", "jobs"), [(1, 1), (1, 8), (4, 2)])
def test_drivers_share_a_grid_without_a_change(
    tmp_path: Path, check: Check, times: Times, drivers: int, jobs: int
) -> None:
    """Of cvae and dqn, which have other last bits with two threads than with one."""
    settings = [tiny_dqn("wn", epochs=1), *(tiny_cvae(param, epochs=2) for param in PARAMS), tiny_draw(epochs=2)]
    runs = [Planned(one.name, "quick", one) for one in settings[: times(3, 6)]]
    processes = [start(runs, tmp_path, "--jobs", jobs) for _ in range(drivers)]
    told = [process.communicate() for process in processes]
    assert {error for _, error in told} == {""} and not any(process.returncode for process in processes)
    assert all((run.directory(tmp_path).record() or {})["resumed"] == [] for run in runs)  # each is one process's
    check(tmp_path, runs)

"""Where runs are placed: shares of GPUs, one start at a time on each, threads."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from factories import quick_run

from wnrepro.errors import UserError
from wnrepro.reproduce import engines
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.work import Event, Job

GPUS = ["cuda:0", "cuda:1"]


class FakeProcess:
    """Stands for a run's process, which tells of progress at once, or when told to, and ends when told to."""

    at_once, saved = True, False

    def __init__(self, job: Job, forks: bool = False) -> None:
        self.progress, self.over = threading.Event(), threading.Event()

    def events(self) -> Iterator[Event]:
        if not self.at_once:
            self.progress.wait()
        if not self.over.is_set():
            yield Event(0.1)
        self.over.wait()
        yield Event(outcome="done")

    def kill(self) -> None:
        self.over.set()
        self.progress.set()

    end = kill

    def save(self) -> None:
        self.saved = True


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Process", FakeProcess)


def start(engine: Local, *names: str, heard: bool = True) -> None:
    """Start runs, named for their experiments, and wait until they have told of progress."""
    for name in names:
        engine.start(name, Job(quick_run(name.split()[0]), Path("results"), None, 1))
    end = time.monotonic() + 10
    while heard and not all(engine.running[name].has_reported for name in names):
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("jobs", [None, 5])
def test_runs_share_gpus_by_what_each_takes_of_one(jobs: int | None) -> None:
    dice, fullest = random.Random(1), Counter[str]()
    per_gpu = {"cifar": 1, "cvae": 2, "draw": 3, "dqn": 4}
    engine = Local(GPUS, jobs, per_gpu)
    assert engine.side_by_side == {name: min(jobs or 8, 2 * count) for name, count in per_gpu.items()}
    for number in range(200):
        experiment = dice.choice(list(per_gpu))
        if engine.place(experiment):
            start(engine, f"{experiment} {number}")
        elif engine.running:
            engine.end(dice.choice(list(engine.running)))
        used = dict.fromkeys(GPUS, 0.0)
        for name, run in engine.running.items():
            used[run.device] += 1 / per_gpu[name.split()[0]]
        for device in GPUS:
            assert used[device] < 1 + 1e-9
            fullest[device] = max(fullest[device], sum(run.device == device for run in engine.running.values()))
        for name, count in per_gpu.items():
            room = min(used.values()) + 1 / count < 1 + 1e-9 and len(engine.running) < (jobs or 8)
            assert bool(engine.place(name)) == room
    engine.stop()
    assert not engine.running and min(fullest.values()) >= (3 if jobs is None else 2)


def test_gpu_run_starts_after_progress_of_the_previous_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProcess, "at_once", False)
    engine = Local(GPUS, None, {"draw": 4})
    start(engine, "draw 1", "draw 2", heard=False)
    assert [run.device for run in engine.running.values()] == GPUS
    assert engine.place("draw") is None
    engine.end("draw 1")  # without a word of progress
    assert engine.place("draw") == "cuda:0"
    engine.stop()


def test_events_of_a_run_that_was_ended_are_dropped() -> None:
    engine = Local(["cpu"], 3, {})
    start(engine, "draw 1", "draw 2", "draw 3")  # on a CPU none waits for another
    assert engine.place("draw") is None
    engine.end("draw 1")
    start(engine, "draw 1")
    told = [engine.event(0.01) for _ in range(5)]
    assert Counter(one[0] for one in told if one) == {"draw 1": 1, "draw 2": 1, "draw 3": 1}
    assert not any(one[1].outcome for one in told if one)
    engine.running["draw 2"].worker.kill()
    assert (engine.event(10), engine.place("draw")) == (("draw 2", Event(outcome="done")), "cpu")  # its place is free
    assert engine.event(0.01) is None
    engine.stop()


def test_an_error_of_a_worker_ends_its_run_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: FakeProcess) -> Iterator[Event]:
        raise PermissionError("of a file")
        yield

    monkeypatch.setattr(FakeProcess, "events", fails)
    engine = Local(["cpu"], 1, {})
    start(engine, "draw", heard=False)
    received = engine.event(10)
    assert received and received[1].outcome == "failed" and "of a file" in received[1].text
    assert engine.place("draw") == "cpu"
    engine.stop()


WRONG = ("0", "-1", "two", "1e3", "9" * 5000, "²")


@pytest.mark.parametrize(("given", "threads"), [("", 1), ("3", 3), ("2,4", 2), *((text, None) for text in WRONG)])
def test_threads_on_a_cpu_are_omp_num_threads(monkeypatch: pytest.MonkeyPatch, given: str, threads: int | None) -> None:
    monkeypatch.setattr(engines, "cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with nullcontext() if threads else pytest.raises(UserError, match="OMP_NUM_THREADS"):
        assert {Local(["cpu"], jobs, {}).threads for jobs in (None, 1, 8)} == {threads}

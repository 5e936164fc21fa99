"""The driver, with engines whose runs live as scripted on a simulated clock: order, retries, memory, budget."""

import gc
import io
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import FakeEngine, Hold, Times, put_run, quick_run
from rich.console import Console

from wnrepro.errors import UserError
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce import plan as planning
from wnrepro.reproduce.board import Board
from wnrepro.reproduce.drive import LOADING_SECONDS, TRIES, drive, seconds_of
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.plan import Estimate, Task, plan
from wnrepro.reproduce.work import Event

GIGABYTE = 2**30
Life = list[float | str]
Drive = Callable[..., None]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Drive:
    """go(tasks, engine, show, deadline): drive them by the engine's clock."""

    def by_its_clock(tasks: list[Task], engine: FakeEngine, show: Any = lambda *_: None, *deadline: float) -> None:
        for module in (driving, planning):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: engine.clock))
        drive(tasks, engine, engine.results, None, show, *deadline)

    return by_its_clock


def seeds(number: int, **changes: Any) -> list[Planned]:
    return [quick_run(seed=seed, **changes) for seed in range(1, number + 1)]


def epoch_by_epoch(
    results: Path, runs: list[Planned], seconds: list[float], known: list[float | None], **how: Any
) -> tuple[list[Task], FakeEngine]:
    """Tasks that are estimated at `known` seconds for an epoch, and an engine that takes `seconds`."""
    tasks = plan(results, runs)
    for task, each in zip(tasks, known, strict=True):
        task.estimate = Estimate(each and each * task.run.settings.epochs)
    lives: dict[str, list[Life]] = {task.name: [[*range(task.run.settings.epochs + 1), "done"]] for task in tasks}
    times = {task.name: each for task, each in zip(tasks, seconds, strict=True)}
    return tasks, FakeEngine(results, lives, seconds=times, **{"jobs": 2, **how})


def test_runs_start_in_the_grids_order_as_far_as_there_is_room(tmp_path: Path, go: Drive) -> None:
    runs, lengths, news = seeds(7), [3, 1, 0, 4, 2, 1, 5], list[tuple[str, str]]()
    put_run(tmp_path, runs[2])
    tasks = plan(tmp_path, runs)
    lives: dict[str, list[Life]] = {
        task.name: [[*range(1, length + 1), "done"]] for task, length in zip(tasks, lengths, strict=True)
    }
    engine = FakeEngine(tmp_path, lives, jobs=2)
    go(tasks, engine, lambda task, kind: news.append((task.name, kind)))
    assert (engine.started, engine.stopped) == ([*lives][:2] + [*lives][3:], True)
    assert (max(map(len, engine.together)), {task.state for task in tasks}) == (2, {"done"})
    for name, length in zip(lives, lengths, strict=True):
        kinds = ["start", *["epoch"] * length, "end"] if length else []
        assert [kind for of, kind in news if of == name] == kinds


def test_runs_side_by_side_fit_the_memory_and_one_too_large_runs_alone(tmp_path: Path, go: Drive) -> None:
    tasks = plan(tmp_path, seeds(6))
    for task, size in zip(tasks, [5, None, 3, 20, 1, None], strict=True):
        task.estimate = Estimate(memory_bytes=size and size * GIGABYTE)
    needed = {task.name: task.estimate.memory_bytes or 4 * GIGABYTE for task in tasks}
    engine = FakeEngine(tmp_path, {name: [[1, 2, "done"]] for name in needed}, jobs=3, memory=8 * GIGABYTE)
    go(tasks, engine)
    assert all(len(names) == 1 or sum(needed[name] for name in names) <= 8 * GIGABYTE for names in engine.together)
    assert (max(map(len, engine.together)), {task.state for task in tasks}) == (3, {"done"})


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
        ([["lost"], ["lost"], [1, "uncaptured"], ["lost"], ["failed"], ["done"]], 6, "done"),
        ([["uncaptured"]] * 10, 1 + TRIES, "failed"),
    ],
)
def test_which_runs_are_tried_again(tmp_path: Path, go: Drive, lives: list[Life], starts: int, state: str) -> None:
    (first, *others), text = plan(tmp_path, seeds(3)), io.StringIO()
    engine = FakeEngine(tmp_path, {first.name: [*lives], **{task.name: [[1, 2, "done"]] for task in others}})
    with Board(Console(file=text), [first, *others], {}, quiet=False) as board:
        go([first, *others], engine, board.show)
    assert (engine.started.count(first.name), first.state) == (starts, state)
    assert [task.state for task in others] == ["done", "done"]  # nothing stops the others
    ends = [life[-1] for life in lives]
    captured = ends.index("uncaptured") + 1 if "uncaptured" in ends else starts
    assert engine.graphs[first.name] == [True] * captured + [False] * (starts - captured)
    assert ("without CUDA graphs (try 1)" in text.getvalue()) == (captured < starts)


def test_a_run_that_repeats_unsaved_epochs_makes_no_progress(tmp_path: Path, go: Drive) -> None:
    """An epoch counts once, or a run that fails at the same place each time would start again without an end."""
    (task,), reached = plan(tmp_path, seeds(1)), list[int]()
    again: Life = [2, 3, "failed"]
    lives: list[Life] = [[1, 2, 3, "failed"], *(list(again) for _ in range(9))]
    engine = FakeEngine(tmp_path, {task.name: lives}, unsaved={2, 3})
    go([task], engine, lambda task, news: reached.append(task.reached) if news == "retry" else None)
    assert (len(engine.started), task.state, reached) == (1 + TRIES, "failed", [1] * TRIES)


def test_a_run_that_another_process_holds_is_left_to_it(
    tmp_path: Path, go: Drive, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    runs, held = seeds(3), Counter[str]()
    for run in runs[:2]:
        put_run(tmp_path, run, "running", epoch=1)
    holders = [hold(run.directory(tmp_path)) for run in runs[:2]]
    tasks = plan(tmp_path, runs)
    engine = FakeEngine(tmp_path, {tasks[1].name: [[2, "done"]], tasks[2].name: [["done"]]})
    tell = engine.event

    def event(timeout: float) -> tuple[str, Event] | None:
        if [task.state for task in tasks] == ["held", "held", "done"] and holders:  # one ends its run, the other dies
            put_run(tmp_path, runs[0])
            while holders:
                holders[-1].kill()
                holders.pop().wait()
        return tell(timeout)

    monkeypatch.setattr(engine, "event", event)
    go(tasks, engine, lambda task, kind: held.update([task.name] * (kind == "held")))
    assert (engine.started, {task.state for task in tasks}) == ([tasks[2].name, tasks[1].name], {"done"})
    assert held == {tasks[0].name: 1, tasks[1].name: 1}


def test_whatever_ends_the_driver_stops_the_engine(tmp_path: Path, go: Drive) -> None:
    tasks = plan(tmp_path, seeds(1))
    engine = FakeEngine(tmp_path, {tasks[0].name: [[1, 2, "done"]]})

    def show(_: Task, kind: str) -> None:
        if kind == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tasks, engine, show)
    assert engine.stopped


# ------------------------------------------------------------------------------- a budget of time


def test_budget_is_a_time_or_refused() -> None:
    assert [seconds_of(text) for text in ("90s", "25m", "8h", "1h30m")] == [90, 1500, 28800, 5400]
    for text in ("soon", "30", "30m1h", "0h0m", "1d", "99999999999h", "", "１h"):
        with pytest.raises(UserError, match=f"^--budget {text}: "):
            seconds_of(text)


def test_within_a_budget_runs_start_and_stop_where_a_checkpoint_fits(tmp_path: Path, go: Drive) -> None:
    """Where every estimate is right: of random grids, whose runs are all of another size."""
    dice, kinds, loading = random.Random(1), Counter[str](), 3.0
    runs = [quick_run(width=width) for width in range(8, 16)]
    for number in range(20):
        seconds, deadline = [dice.uniform(0.5, 60) for _ in runs], dice.uniform(20, 200)
        tasks, engine = epoch_by_epoch(tmp_path / str(number), runs, seconds, [*seconds], loading=loading)
        until = deadline - engine.stop_seconds

        def show(task: Task, news: str, seconds: dict[str, float] = engine.seconds) -> None:
            if news == "epoch":  # the time left is not that of loading
                assert task.seconds_left == pytest.approx(seconds[task.name] * (10 - task.reached))

        go(tasks, engine, show, deadline)
        assert (engine.stopped, engine.living, engine.clock <= until + 0.2) == (True, {}, True)
        kinds.update(task.state for task in tasks)
        for task in tasks:
            each, saved = engine.seconds[task.name], engine.saved.get(task.name, [])
            assert bool(saved) == (task.name in engine.started) and max(saved, default=0) <= until
            if task.state == "stopped":
                assert engine.ended[task.name] == saved[-1] > until - each
            if task.state == "waiting":  # not even now
                assert engine.clock + (loading if engine.saved else LOADING_SECONDS) + each > until
    assert min(kinds[state] for state in ("stopped", "waiting", "done")) > 3


def test_times_of_this_command_count_before_an_estimate(tmp_path: Path, go: Drive) -> None:
    runs = [*seeds(3), quick_run(width=32)]
    tasks, engine = epoch_by_epoch(tmp_path, runs, [40, 40, 40, 500], [1, 1, 1, None], jobs=1, loading=3.0)
    go(tasks, engine, lambda *_: None, 3 + 40 * 2 + 30)
    assert engine.started == [tasks[0].name, tasks[3].name]  # a time that nobody knows may be a short one
    assert engine.ended == {tasks[0].name: pytest.approx(83)}
    assert [task.state for task in tasks] == ["stopped", "waiting", "waiting", "running"]
    assert 111 <= engine.clock < 111.5


def test_driver_keeps_nothing_of_its_events(tmp_path: Path, go: Drive, times: Times) -> None:
    parts = times(500, 50_000)
    tasks, sizes = plan(tmp_path, seeds(1, epochs=5)), list[int]()
    life: Life = [part / parts for part in range(5 * parts + 1)]

    def show(task: Task, news: str) -> None:
        if news == "epoch":
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    go(tasks, FakeEngine(tmp_path, {tasks[0].name: [[*life, "done"]]}), show)
    tracemalloc.stop()
    assert sizes[3] <= sizes[1] + 20_000  # those of the first epoch are kept until its end

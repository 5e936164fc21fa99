"""Runs that train together in one process: each has the rows that it has alone, whatever happens to the others."""

import contextlib
import functools
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import same_tables, tiny_run
from graph_factories import FAST, MODELS, Recording, captures_of, make, measure

from wnrepro import signals, train
from wnrepro.cuda_graphs import PLAIN_CALLS, Captured, capture_failed
from wnrepro.events import Epoch, Note, Progress
from wnrepro.lockstep import Lockstep, Member
from wnrepro.options import RunOptions
from wnrepro.progress import open_console
from wnrepro.runs import provenance
from wnrepro.runs.directory import RunDirectory
from wnrepro.runs.run import Run
from wnrepro.settings import PARAMS, DrawSettings

CPU = torch.device("cpu")
SEEDS = (1, 2, 7)
Load = Callable[[], Any]


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares three processes for every run."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})


def runs(folder: Path, model: str, param: str, **changes: Any) -> list[tuple[Run, Load]]:
    """A run of each seed, and its constructor."""
    if model == "dqn":
        changes = {"checkpoint_replay": True, "epoch_steps": 60} | changes
    made = [tiny_run(model, param, seed=seed, **({"epochs": 2} | changes)) for seed in SEEDS]
    return [(Run(folder, experiment, "quick", settings), load) for experiment, settings, load in made]


def task(run: Run, load: Load, show: Callable[[object], None] = lambda _: None) -> Callable[[], str]:
    def execute() -> str:
        with run:
            return str(run.execute(load, show)["status"])

    return execute


def quiet(_: object) -> None: ...


def running() -> list[threading.Thread]:
    """The runs' threads that have not ended."""
    return [thread for thread in threading.enumerate() if isinstance(thread, Member)]


def train_alone(folder: Path, model: str, param: str) -> list[Run]:
    for run, load in (found := runs(folder, model, param)):
        task(run, load)()
    return [run for run, _ in found]


def same_run(found: Run, expected: Run) -> None:
    """Check tables and weights, bit for bit."""
    same_tables(found.folder, expected.folder)
    for mine, other in zip(
        found.newest()["experiment"]["net"].items(), expected.newest()["experiment"]["net"].items(), strict=True
    ):
        assert mine[0] == other[0] and torch.equal(mine[1], other[1])


@pytest.mark.parametrize(
    ("model", "param"),
    [
        pytest.param(model, param, marks=[pytest.mark.slow] * (FAST.get(model, "wn") != param))
        for model in MODELS
        for param in PARAMS
    ],
)
def test_runs_together_have_the_rows_that_they_have_alone(tmp_path: Path, model: str, param: str) -> None:
    """Their weights too, bit for bit; and they differ from each other. The caller's random numbers stay."""
    together = runs(tmp_path / "together", model, param)
    state = torch.get_rng_state()
    results = Lockstep(CPU).run([task(run, load) for run, load in together])
    assert [result.result() for result in results] == ["done"] * len(SEEDS)
    assert torch.equal(torch.get_rng_state(), state)
    alone = train_alone(tmp_path / "alone", model, param)
    for (run, _), expected in zip(together, alone, strict=True):
        same_run(run, expected)
    assert len({(run.folder / "metrics.csv").read_text() for run in alone}) == len(SEEDS)


def test_a_run_that_ends_or_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    together = runs(tmp_path / "together", "draw", "wn")

    def failing() -> Any:
        made = together[1][1]()
        step, made.captured_step.function = made.captured_step.function, lambda index: step(index[: fail(made)])
        return made

    def fail(made: Any) -> int:
        if made.epoch == 2:
            raise RuntimeError("broken")
        return 20

    shorter, settings, load = tiny_run("draw", epochs=1, seed=3)
    more = [(together[1][0], failing), (Run(tmp_path / "together", shorter, "quick", settings), load), together[2]]
    results = Lockstep(CPU).run([task(run, load) for run, load in (together[0], *more)])
    assert [result.exception() is None for result in results] == [True, False, True, True]
    assert str(results[1].exception()) == "broken" and (together[1][0].record() or {})["status"] == "failed"
    alone = train_alone(tmp_path / "alone", "draw", "wn")
    same_run(together[0][0], alone[0])
    same_run(together[2][0], alone[2])
    assert Lockstep(CPU).run([task(*together[1])])[0].result() == "done"  # it resumes
    same_run(together[1][0], alone[1])


@pytest.mark.parametrize("model", ["cvae mnist", pytest.param("dqn", marks=pytest.mark.slow)])
def test_a_signal_stops_all_and_they_resume(tmp_path: Path, model: str) -> None:
    """Within the first epoch and then within the second; dqn at their ends, after the first with the last run ahead."""
    together = runs(tmp_path / "together", model, "wn", epochs=2)

    asked: list[int] = []
    tries: list[None] = []

    def stopping(event: object) -> None:
        if isinstance(event, Epoch if model == "dqn" else Progress) and event.epoch == len(tries) and not asked:
            asked.append(event.epoch)
            signal.raise_signal(signal.SIGTERM)

    with signals.handled():
        for shows in ([stopping, quiet, quiet], [quiet, quiet, stopping]):
            tries.append(asked.clear())
            tasks = [task(run, load, show) for (run, load), show in zip(together, shows, strict=True)]
            with pytest.raises(signals.Pause), signals.deferred():
                Lockstep(CPU).run(tasks)
    assert not running()
    results = Lockstep(CPU).run([task(run, load) for run, load in together[::-1]])
    assert [result.result() for result in results] == ["done"] * len(SEEDS)
    for (run, _), expected in zip(together, train_alone(tmp_path / "alone", model, "wn"), strict=True):
        same_tables(run.folder, expected.folder)


def test_a_checkpoint_on_request_is_of_every_run(tmp_path: Path) -> None:
    together = runs(tmp_path, "draw", "wn")
    told: list[Note] = []

    def ask(event: object) -> None:
        if isinstance(event, Progress) and event.epoch == 2 and not told:
            signal.raise_signal(signal.SIGUSR1)
        if isinstance(event, Note):
            told.append(event)

    with signals.handled():
        Lockstep(CPU).run([task(run, load, ask) for run, load in together])
    assert len(told) == len(SEEDS)


def test_an_interruption_abandons_all(tmp_path: Path) -> None:
    """A second signal, for example. No thread stays, and the runs resume where their own checkpoints are."""
    together, alone = runs(tmp_path / "together", "draw", "wn"), train_alone(tmp_path / "alone", "draw", "wn")
    state = torch.get_rng_state()

    def interrupted(event: object) -> None:
        if isinstance(event, Progress) and event.epoch == 2:  # more than once
            signal.raise_signal(signal.SIGINT)

    with signals.handled(), pytest.raises(signals.Interruption), signals.deferred():
        Lockstep(CPU).run([task(run, load, interrupted) for run, load in together])
    assert not running() and torch.equal(torch.get_rng_state(), state)
    results = Lockstep(CPU).run([task(run, load) for run, load in together])
    assert [result.result() for result in results] == ["done"] * len(SEEDS)
    for (run, _), expected in zip(together, alone, strict=True):
        same_run(run, expected)


@pytest.mark.parametrize("waits", [1, 2, 3])
def test_an_interruption_when_a_turn_ends_abandons_all(waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run says once that it waits; an interrupted wait for it has already heard that."""
    count = itertools.count(1)

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            returned = super().wait(timeout)
            if next(count) == waits:
                raise KeyboardInterrupt
            return returned

    def start(member: Member[Any]) -> None:
        member.back = Interrupted()
        threading.Thread.start(member)

    monkeypatch.setattr(Member, "start", start)
    captured = Captured(lambda x: (x + 1,), CPU)
    with pytest.raises(KeyboardInterrupt):
        Lockstep(CPU).run([lambda: [captured(torch.ones(2)) for _ in range(3)]] * 2)
    assert not running()


def test_a_signal_reaches_the_command_before_the_next_run_loads() -> None:
    loaded: list[int] = []

    def begin() -> None:
        loaded.append(1)
        signal.raise_signal(signal.SIGTERM)
        Captured(lambda: (), CPU)()

    with signals.handled(), pytest.raises(signals.Pause), signals.deferred():
        Lockstep(CPU).run([begin, begin])
    assert loaded == [1]


def test_the_command_trains_a_settings_seeds_in_waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot start fails alone. Those that are done are skipped."""
    monkeypatch.setattr(train, "AT_A_TIME", 2)
    waves: list[int] = []
    execute = Lockstep.run

    def counted(self: Lockstep, tasks: Any) -> Any:
        waves.append(len(tasks))
        return execute(self, tasks)

    monkeypatch.setattr(Lockstep, "run", counted)
    planned = [tiny_run("draw", param, epochs=1, seed=seed)[1] for param in ("wn", "normal") for seed in SEEDS]
    options = RunOptions("quick", seeds="1,2,7", results=tmp_path, device="cpu", quiet=True)

    def statuses() -> list[str]:
        records = train.train_together(DrawSettings, planned, options, open_console(quiet=True), print)
        return [record["status"] for record in records]

    with RunDirectory(tmp_path, "draw", "quick", planned[1]):
        assert statuses() == ["done", "failed", "done", "done", "done", "done"]
    assert waves == [2, 1, 2, 1]
    assert statuses() == ["done"] * 6 and waves[4:] == [1]
    together = [RunDirectory(tmp_path, "draw", "quick", one).record() or {} for one in planned[:3]]
    assert [record.get("together", 1) for record in together] == [2, 1, 1]


# ------------------------------------------------------------------------------- joint graphs


@pytest.fixture
def recorded_together(recorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for joint graphs, whose branches draw their own runs' random numbers, as registered generators do."""
    graphs: list[Recording] = []
    capture = torch.cuda.graph

    @contextlib.contextmanager
    def remembered(graph: Recording, stream: Any) -> Iterator[None]:
        graphs[:] = [graph]
        with capture(graph, stream):
            yield
        graphs.clear()

    @contextlib.contextmanager
    def computing(member: Member[Any]) -> Iterator[None]:
        within = contextlib.ExitStack()
        if not graphs:  # a call that is not captured, or a lone run's graph
            with member.generators(), torch.set_grad_enabled(member.grad):
                yield
            return

        def enter() -> tuple[()]:
            within.enter_context(member.generators())
            return ()

        def leave() -> tuple[()]:
            within.close()
            return ()

        enter()
        graphs[0].calls.append((enter, (), {}, []))
        with torch.set_grad_enabled(member.grad):
            yield
        leave()
        graphs[0].calls.append((leave, (), {}, []))

    monkeypatch.setattr(torch.cuda, "graph", remembered)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(Member, "computing", computing)


class Counted(Lockstep):
    """Remembers how many branches its graphs had."""

    def forget(self) -> None:
        self.branches = {*getattr(self, "branches", ()), *map(len, self.graphs)}
        super().forget()


@pytest.mark.parametrize(
    ("model", "param"),
    [
        pytest.param(model, param, marks=[pytest.mark.slow] * (FAST.get(model) != param))
        for model in MODELS
        for param in PARAMS
    ],
)
def test_joint_graphs_compute_what_the_runs_compute_alone(recorded_together: None, model: str, param: str) -> None:
    """One run has an epoch less than the others, which continue without it."""

    def load(seed: int, captures: bool) -> Any:
        made = make(model, param, seed=seed)
        for one in captures_of(made):
            one.captures = captures
        return made

    epochs = dict(zip(SEEDS, (2, 1, 2), strict=True))
    together = Counted(CPU)
    found = together.run([lambda seed=seed: measure(load(seed, True), epochs[seed]) for seed in SEEDS])
    for seed, result in zip(SEEDS, found, strict=True):
        torch.manual_seed(0)
        np.testing.assert_allclose(result.result(), measure(load(seed, False), epochs[seed]), rtol=1e-6, atol=1e-6)
    assert together.branches == ({2} if model == "dqn" else {2, 3})  # dqn's first epoch has no update


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("model", MODELS)
def test_runs_together_on_a_gpu_compute_what_they_compute_alone(
    model: str, param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over at least 100 updates."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def train_one(seed: int) -> list[list[float]]:
        return measure(make(model, param, "cuda", seed=seed), 10)

    found = Lockstep(torch.device("cuda")).run([functools.partial(train_one, seed) for seed in SEEDS])
    for seed, result in zip(SEEDS, found, strict=True):
        np.testing.assert_allclose(result.result(), train_one(seed), rtol=1e-5, atol=1e-5)


def test_a_failed_capture_ends_all(recorded_together: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("would have to wait")

    def compute() -> None:
        captured = Captured(lambda x: (2 * x,), CPU)
        captured.captures = True
        for k in range(PLAIN_CALLS + 1):
            if k == PLAIN_CALLS:
                monkeypatch.setattr(torch.cuda, "graph", fail)
            captured(torch.ones(2))

    for result in Lockstep(CPU).run([compute, compute]):
        assert capture_failed(result.exception())

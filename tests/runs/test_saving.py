"""When a run saves: after epochs that take long enough, and wherever something would be lost otherwise."""

import csv
import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import Walk, same_tables, tiny_run, walk_run

from wnrepro import results, signals
from wnrepro.events import Epoch, Note, Progress
from wnrepro.runs import checkpoint, directory, provenance, run
from wnrepro.runs.run import Run, Tables

EPOCHS = 30
SELDOM = 1e-12  # a share of the time for which only the first save is short enough


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares three processes for every run."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first epoch of a start is saved after it, and what has to be."""
    monkeypatch.setattr(run, "SAVE_SHARE", SELDOM)


class Steps(Walk):
    """A walk with a state before the step of each epoch, too."""

    saves_within_epochs = True

    def train(self) -> Iterator[Any]:
        events = super().train()
        yield next(events)
        while self.epoch < self.epochs:
            self.within = True  # type: ignore[assignment]
            yield Progress(self.epoch + 1, 1, 2)
            event = next(events)
            self.within = None
            yield event
            if event.diverged:  # type: ignore[union-attr]
                return


def tables(there: Run) -> dict[str, str]:
    return {path.stem: path.read_text() for path in there.folder.glob("*.csv")}


def saved(there: Run) -> int:
    """The number of saved epochs, on which the checkpoint, run.json and the tables agree."""
    record, state = there.record(), checkpoint.load_checkpoint(there.folder / "checkpoint.pt", there.config["hash"])
    assert record is not None and state is not None
    rows = list(csv.DictReader(io.StringIO(tables(there).get("metrics", ""))))
    assert state["tables"] == tables(there) and record["epoch"] == state["epoch"] == len(rows)
    assert record["seconds"] == pytest.approx(sum(float(row["seconds"]) for row in rows), abs=1e-3)
    return int(record["epoch"])


@pytest.mark.parametrize(("epoch", "save", "share"), [(1.0, 0.19, 0.02), (0.3, 0.5, 0.1), (20.0, 0.2, 0.02)])
def test_saves_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: float, save: float, share: float
) -> None:
    """By a clock on which epochs and saves have these lengths."""
    clock, saves, states = 0.0, 0, list[int]()

    class Timed(Walk):
        saves_within_epochs = True

        def train(self) -> Iterator[Any]:
            nonlocal clock
            for event in super().train():
                clock += epoch * isinstance(event, Epoch)
                yield event

    def save_slowly(*given: Any) -> None:
        nonlocal clock, saves
        clock, saves = clock + save, saves + 1
        checkpoint.save_checkpoint(*given)

    monkeypatch.setattr(run, "SAVE_SHARE", share)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(run, "save_checkpoint", save_slowly)
    with walk_run(tmp_path, epochs=EPOCHS) as there:
        there.execute(
            lambda: Timed(EPOCHS), lambda event: states.append(saved(there)) if type(event) is Epoch else None
        )
        assert saved(there) == EPOCHS
    every = max(1, -int(-save / share // epoch))  # the epochs that take as long as a save may
    assert states == [1 + (number - 1) // every * every for number in range(1, EPOCHS + 1)]
    assert saves <= 2 + (EPOCHS - 1) / every and (saves - 2) * save <= share * clock * (1 + epoch)


def test_a_run_that_saves_after_each_epoch_on_request(tmp_path: Path, seldom: None) -> None:
    states: list[tuple[int, int]] = []

    def show(event: Any) -> None:
        if isinstance(event, Epoch):
            states.append((saved(there), event.epoch))

    with walk_run(tmp_path / "each", epochs=5) as there:
        there.execute(lambda: Steps(5), show, each_epoch=True)
    assert states == [(epoch, epoch) for epoch in range(1, 6)]
    states.clear()
    with walk_run(tmp_path / "within", epochs=5) as there:  # a signal would lose an epoch that is not saved
        there.execute(lambda: Walk(5), show)
    assert states == [(epoch, epoch) for epoch in range(1, 6)]
    states.clear()
    with walk_run(tmp_path / "seldom", epochs=5) as there:
        there.execute(lambda: Steps(5), show)
    assert states == [(1, epoch) for epoch in range(1, 6)] and saved(there) == 5


@pytest.mark.parametrize("diverges", [0, 3])
def test_a_kill_at_any_write_of_seldom_saves_changes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seldom: None, diverges: int
) -> None:
    """Tables are written with several epochs at once."""
    with walk_run(tmp_path / "whole") as whole:
        whole.execute(lambda: Walk(4, diverges))
    write, stop, killed, reached = directory.write_atomic, 0, True, set[int]()
    while killed:
        stop, count = stop + 1, 0

        def kill(*given: Any, **keep: Any) -> None:
            nonlocal count
            count += 1
            if count == stop:  # noqa: B023
                raise SystemExit
            write(*given, **keep)

        with monkeypatch.context() as patch, walk_run(tmp_path / str(stop)) as made:
            for module in (checkpoint, directory, run):
                patch.setattr(module, "write_atomic", kill)
            try:
                made.execute(lambda: Steps(4, diverges))
                killed = False
            except SystemExit:
                pass
        with made:
            reached |= {entry["from_epoch"] for entry in made.execute(lambda: Steps(4, diverges))["resumed"]}
        assert saved(made) == (diverges or 4) and tables(made) == tables(whole)
        assert not list(made.folder.glob(".*"))
    assert stop > 10 and reached == {0, 1, diverges or 4}


class Kill(BaseException):
    """The end of a process, after which nothing of it runs."""


def stop_by(kind: str) -> None:
    if kind == "error":
        raise ValueError("no more")
    if kind == "kill":
        raise Kill
    signal.raise_signal({"end": signal.SIGTERM, "save": signal.SIGUSR1}[kind])


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    ("kind", "left", "raised"),
    [("error", 3, ValueError), ("end", 3, signals.Pause), ("save", 3, None), ("kill", 1, Kill)],
)
def test_what_stops_a_run_saves_all_completed_epochs_if_it_can(
    tmp_path: Path, seldom: None, kind: str, left: int, raised: type[BaseException] | None, within: bool
) -> None:
    """After epoch 3 of 6, or within epoch 4, whose state is complete only for a signal."""
    told: list[Any] = []

    def show(event: Any) -> None:
        told.append(event)
        there_now = isinstance(event, Progress) if within else isinstance(event, Epoch)
        if there_now and event.epoch == 3 + within and len(told) < 20:
            stop_by(kind)
        if kind == "save" and isinstance(event, Note) and "checkpoint" in event.text:
            raise Kill

    left = 1 if within and kind == "error" else left
    with walk_run(tmp_path / "whole", epochs=6) as whole:
        whole.execute(lambda: Walk(6))
    with walk_run(tmp_path / "stopped", epochs=6) as stopped:
        with signals.handled(), pytest.raises(raised or Kill):
            stopped.execute(lambda: Steps(6), show)
        found = stopped.record() or {}
        assert saved(stopped) == (4 if kind == "save" and within else left)
        assert found["status"] == ("failed" if kind == "error" else "running")
        record = stopped.execute(lambda: Steps(6))
        assert record["resumed"][0]["from_epoch"] == found["epoch"]
    assert tables(stopped) == tables(whole)


@pytest.mark.parametrize("kind", ["end", "kill"])
def test_an_experiment_stopped_among_unsaved_epochs_ends_with_the_same_rows(
    tmp_path: Path, seldom: None, kind: str
) -> None:
    experiment, settings, load = tiny_run("draw", epochs=4)
    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        expected = whole.execute(load, log_steps=4)

    def stopped_at(update: int) -> Callable[[], Any]:
        def make() -> Any:
            made = load()
            step = made.captured_step

            def stepped(*inputs: Any) -> Any:
                if made.epoch == 4 and len(made.within.logged) + 1 == update:
                    stop_by(kind)
                return step(*inputs)

            made.captured_step = stepped
            return made

        return make

    with Run(tmp_path / "stopped", experiment, "quick", settings) as stopped, signals.handled():
        with pytest.raises((signals.Pause, Kill)):
            stopped.execute(stopped_at(7), log_steps=4)
        assert saved(stopped) == {"end": 3, "kill": 1}[kind]
        torch.manual_seed(123)
        record = stopped.execute(load, log_steps=4)
    assert record["facts"] == expected["facts"]
    same_tables(stopped.folder, whole.folder)
    assert results.check(tmp_path / "stopped", "quick") == []


def test_a_table_is_written_only_if_it_has_new_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(path: Path, content: bytes) -> None:
        written.append(path.name)
        directory.write_atomic(path, content)

    monkeypatch.setattr(run, "write_atomic", write)
    made = Tables(tmp_path, {})
    made.add(Epoch(1, {"epoch": 1, "seconds": 0.5}, {"init": [{"epoch": 0, "x": 1}], "none": []}))
    assert (written, made.seconds()) == ([], 0)
    made.write()
    made.add(Epoch(2, {"epoch": 2, "seconds": 0.25}))
    made.write()
    made.write()
    assert (sorted(written), made.seconds()) == (["init.csv", "metrics.csv", "metrics.csv"], 0.75)
    again = Tables(tmp_path, json.loads(json.dumps(made.text)))
    assert (again.restore(), again.seconds()) == ([], 0.75)
    again.write()
    assert len(written) == 3


@pytest.mark.usefixtures("seldom")
def test_an_epoch_whose_rows_cannot_be_added_is_computed_again(tmp_path: Path) -> None:
    """The state after it is saved nowhere without its rows."""

    class Odd(Steps):
        def train(self) -> Iterator[Any]:
            for event in super().train():
                if isinstance(event, Epoch):
                    event.tables["own"] = [{"epoch": event.epoch} | ({"surprise": 1} if event.epoch == 3 else {})]
                yield event

    with walk_run(tmp_path) as there:
        with pytest.raises(ValueError, match="surprise"):
            there.execute(lambda: Odd(there.epochs))
        content = there.newest()
        assert content["epoch"] == content["experiment"]["epoch"] == len(content["tables"]["metrics"].splitlines()) - 1
        there.execute(lambda: Steps(there.epochs))
        assert [row["epoch"] for row in csv.DictReader(io.StringIO(tables(there)["metrics"]))] == ["1", "2", "3", "4"]

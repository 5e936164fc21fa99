"""Signals: what each does to a command, and that a run which they stop or save ends with undisturbed rows."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from factories import same_tables, snapshot, tiny_run

from wnrepro import results, signals
from wnrepro.errors import DiskError
from wnrepro.events import Note
from wnrepro.runs import provenance
from wnrepro.runs.checkpoint import save_checkpoint
from wnrepro.runs.run import Run

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
UPDATES = 10  # of an epoch of the tiny runs


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares three processes for every run."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})


def signalled(load: Callable[[], Any], *numbers: int, update: int = 0) -> Callable[[], Any]:
    """A constructor of an experiment that these signals reach at an update, or in the test of its next epoch."""

    def make() -> Any:
        made = load()
        step, evaluate = made.captured_step, made.evaluate

        def raise_at(condition: bool) -> None:
            for number in numbers if condition else ():
                signal.raise_signal(number)

        def stepped(*inputs: Any) -> Any:
            raise_at((made.epoch - 1) * UPDATES + len(made.within.logged) + 1 == update)
            return step(*inputs)

        def evaluated() -> Any:
            raise_at(not update)
            return evaluate()

        made.captured_step, made.evaluate = stepped, evaluated
        return made

    return make


@pytest.mark.parametrize(
    ("model", "param"),
    [
        *(("cifar", "wn+mobn"), ("cvae mnist", "wn"), ("draw", "bn")),
        pytest.param("cvae cifar10", "normal", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_within_epochs_ends_with_the_same_rows(tmp_path: Path, model: str, param: str) -> None:
    """At the first, a middle and the last update of an epoch, and while it is tested."""
    experiment, settings, load = tiny_run(model, param, epochs=2)
    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        expected = whole.execute(load, log_steps=4)
    with Run(tmp_path / "stopped", experiment, "quick", settings) as stopped, signals.handled():
        for update in (1, 7, 10, 0, 13, 20):
            torch.manual_seed(123)
            with pytest.raises(signals.Pause) as raised:
                stopped.execute(signalled(load, signal.SIGTERM, update=update), log_steps=4)
            assert signals.exit_code(raised.value) == 143 and not list(stopped.folder.glob(".*"))
        record = stopped.execute(load, log_steps=4)
    assert [entry["from_epoch"] for entry in record["resumed"]] == [0, 0, 0, 0, 1, 1]
    same_tables(stopped.folder, whole.folder)
    assert record["facts"] == expected["facts"] and record["seconds"] > 0
    assert results.check(tmp_path / "stopped", "quick") == []


def test_a_checkpoint_on_request_is_where_a_killed_run_continues(tmp_path: Path) -> None:
    experiment, settings, load = tiny_run("draw", epochs=2)
    told: list[Any] = []

    def kill(event: object) -> None:
        told.append(event)
        if not isinstance(event, Note) and any(isinstance(one, Note) for one in told):
            raise SystemExit  # the first event after the checkpoint

    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        whole.execute(load)
    with Run(tmp_path / "killed", experiment, "quick", settings) as killed, signals.handled():
        with pytest.raises(SystemExit):
            killed.execute(signalled(load, signal.SIGUSR1, update=13), kill)
        assert [event.text for event in told if isinstance(event, Note)] == [
            "wrote a checkpoint in epoch 2, after 60 of 200"
        ]
        made = load()
        killed.restore(made)
        assert made.within is not None and (made.epoch, len(made.within.logged)) == (1, 3)
        assert made.state_dict()["within"]["epoch"] == 1  # if a signal comes before the next minibatch
        killed.execute(load)
    same_tables(killed.folder, whole.folder)


def test_a_second_signal_ends_a_run_at_once(tmp_path: Path) -> None:
    experiment, settings, load = tiny_run("draw", epochs=2)
    with Run(tmp_path, experiment, "quick", settings) as run, signals.handled():
        with pytest.raises(signals.Interruption) as raised:
            run.execute(signalled(load, signal.SIGINT, signal.SIGHUP, update=13))
        made = load()
        run.restore(made)
    assert signals.exit_code(raised.value) == 129 and (made.epoch, made.within) == (1, None)


def test_a_signal_ends_a_run_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, settings, load = tiny_run("draw", epochs=2)
    with Run(tmp_path, experiment, "quick", settings) as run, signals.handled():
        monkeypatch.setattr("wnrepro.runs.run.save_checkpoint", Mock(side_effect=DiskError("full")))
        with pytest.raises(signals.Pause):
            run.execute(signalled(load, signal.SIGTERM, update=3))
        assert (run.record() or {})["status"] == "running"


def test_only_the_first_signal_counts_where_another_process_may_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a grid's run that hears of a preemption from Slurm and from its driver, also while it writes."""
    experiment, settings, load = tiny_run("draw", epochs=2)

    def signalled_save(*given: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save_checkpoint(*given)

    with Run(tmp_path, experiment, "quick", settings) as run, signals.handled(once=True):
        monkeypatch.setattr("wnrepro.runs.run.save_checkpoint", signalled_save)
        with pytest.raises(signals.Pause):
            run.execute(signalled(load, signal.SIGTERM, signal.SIGTERM, update=3))
        made = load()
        run.restore(made)
    assert made.within is not None and len(made.within.logged) == 3
    with signals.handled(), pytest.raises(signals.Interruption):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_dqn_keeps_the_checkpoint_of_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnrepro.experiments.dqn.PROGRESS_EVERY", 20)
    experiment, settings, load = tiny_run("dqn", epochs=2, checkpoint_replay=True)
    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        whole.execute(load, log_steps=4)
    rows = [line.split(",") for line in (whole.folder / "steps.csv").read_text().splitlines()]
    assert rows[0] == ["epoch", "update", "loss"] and [int(row[1]) for row in rows[1:]] == [*range(4, 36, 4)]

    def end(event: object) -> None:
        if getattr(event, "epoch", 0) == 2:
            signal.raise_signal(signal.SIGTERM)

    with Run(tmp_path / "stopped", experiment, "quick", settings) as stopped, signals.handled():
        with pytest.raises(signals.Interruption):
            stopped.execute(load, end, log_steps=4)
        before = snapshot(stopped.folder)["checkpoint.pt"]
        signal.raise_signal(signal.SIGUSR1)
        told: list[Any] = []
        record = stopped.execute(load, told.append, log_steps=4)
    assert before and record["resumed"][0]["from_epoch"] == 1 and any(isinstance(event, Note) for event in told)
    same_tables(stopped.folder, whole.folder)


# ------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(("number", "code"), ENDS.items())
def test_a_signal_ends_an_experiments_command(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    from wnrepro.experiments.draw import Draw

    _, _, load = tiny_run("draw", epochs=2)
    monkeypatch.setattr(Draw, "load", lambda settings, *_: signalled(load, number, update=3)())
    words = ("draw", "--param", "wn", "--scale", "quick", "--epochs", 2, "--device", "cpu", "--results", tmp_path)
    found, printed, error = run(*words, "--param", "normal", "--log-steps", 5)
    assert (found, error.count("\n")) == (code, 1) and "draw/wn_lr" in error and "epoch 1" not in printed
    assert len([*tmp_path.rglob("checkpoint.pt")]) == 1 == len([*tmp_path.rglob("run.json")])
    monkeypatch.setattr(Draw, "load", lambda settings, *_: load())
    assert run(*words, "--log-steps", 5)[0] == 0
    (steps,) = tmp_path.rglob("steps.csv")
    lines = steps.read_text().splitlines()
    assert lines[0] == "epoch,update,bound_nats" and [line.rsplit(",", 1)[0] for line in lines[1:]] == [
        "1,5",
        "1,10",
        "2,15",
        "2,20",
    ]


@pytest.mark.parametrize(("number", "code"), ENDS.items())
def test_a_signal_ends_any_other_command(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setattr("wnrepro.data.files.status", lambda _: signal.raise_signal(number))
    before = signal.getsignal(number)
    found, printed, error = run("data", "status", "--data-dir", tmp_path)
    assert (found, printed, error.strip().count("\n")) == (code, "", 0) and "wnrepro: " in error
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

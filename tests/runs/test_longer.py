"""A run that continues a finished one of fewer epochs, and one that starts from another's weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Walk, same_tables, snapshot, tiny_cifar, tiny_run, tiny_settings, walk_run

from wnrepro import results
from wnrepro.errors import UserError
from wnrepro.events import Note
from wnrepro.runs import provenance, warm_start
from wnrepro.runs.run import Run, open_run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares three processes for every run."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": "c" * 40, "dirty": False})


def trained(folder: Path, model: str, param: str, epochs: int, **changes: Any) -> tuple[Run, dict[str, Any], list[Any]]:
    """A run of this many epochs, the content of its run.json, and what it showed."""
    experiment, settings, load = tiny_run(model, param, epochs=epochs, **changes)
    shown: list[Any] = []
    with Run(folder, experiment, "quick", settings) as run:
        record = run.execute(load, shown.append)
    return run, record, [event.text for event in shown if isinstance(event, Note)]


# ------------------------------------------------------------------------------- longer training


@pytest.mark.parametrize(
    ("model", "param"),
    [
        *(("cifar", "bn"), ("cvae mnist", "wn+mobn"), ("draw", "wn")),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("cvae cifar10", "bn"), ("dqn", "wn"))),
    ],
)
def test_longer_run_is_bit_for_bit_an_uninterrupted_one(tmp_path: Path, model: str, param: str) -> None:
    changes = {"epoch_steps": 60, "checkpoint_replay": True} if model == "dqn" else {}
    shorter, first, notes = trained(tmp_path / "own", model, param, 1, **changes)
    before = snapshot(shorter.folder)
    assert notes == []
    longer, record, notes = trained(tmp_path / "own", model, param, 2, **changes)
    whole, expected, _ = trained(tmp_path / "whole", model, param, 2, **changes)
    assert longer.folder.name == whole.folder.name and len(notes) >= 1 and str(shorter.folder) in notes[0]
    same_tables(longer.folder, whole.folder)
    assert record["facts"] == expected["facts"] and (record["status"], record["epoch"]) == ("done", 2)
    assert record["continued"] == {
        "run": f"{shorter.name}/seed-1",
        "epoch": 1,
        "config_hash": first["config_hash"],
        "commit": "c" * 40,
    }
    assert [entry["from_epoch"] for entry in record["resumed"]] == [1] and "damaged" not in record["resumed"][0]
    assert snapshot(shorter.folder) == before and results.check(tmp_path / "own", "quick") == []


def test_the_longest_run_is_continued_unless_it_is_unfinished_or_different(tmp_path: Path) -> None:
    for epochs, seed in ((1, 1), (2, 1), (3, 2)):
        with walk_run(tmp_path, seed, epochs) as run:
            run.execute(lambda epochs=epochs: Walk(epochs))  # type: ignore[misc]
    with walk_run(tmp_path, 1, 3) as run, pytest.raises(KeyboardInterrupt):
        run.execute(lambda: Walk(3), interrupt)
    with walk_run(tmp_path) as run:
        record = run.execute(Walk)
    assert record["continued"]["epoch"] == 2
    with walk_run(tmp_path) as run:
        run.clear()  # --fresh
        assert "continued" not in run.execute(Walk)


def interrupt(event: object) -> None:
    if getattr(event, "epoch", 0) == 3:
        raise KeyboardInterrupt


def test_run_with_an_earlier_decay_or_without_its_checkpoint_starts_anew(tmp_path: Path) -> None:
    trained(tmp_path, "cifar", "wn", 3)  # its rate falls from epoch 3 on
    _, record, notes = trained(tmp_path, "cifar", "wn", 4)
    assert "continued" not in record and len(notes) == 1 and "learning rate" in notes[0]
    shorter, _, _ = trained(tmp_path / "gone", "cvae mnist", "wn", 1)
    (shorter.folder / "checkpoint.pt").unlink()
    _, record, notes = trained(tmp_path / "gone", "cvae mnist", "wn", 2)
    assert "continued" not in record and len(notes) == 1 and "checkpoint.pt" in notes[0]
    published = tmp_path / "third/published"
    shorter, _, _ = trained(published, "cvae mnist", "wn", 1)
    (shorter.folder / "checkpoint.pt").unlink()
    _, record, notes = trained(tmp_path / "third", "cvae mnist", "wn", 2)
    assert "continued" not in record and len(notes) == 1 and str(published) in notes[0]


def test_run_that_was_not_compiled_begins_no_compiled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the steps of few epochs are not worth compiling, and compiled ones round differently."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    for compiled_from, epochs, continued in ((10**9, 1, False), (0, 2, False), (0, 3, True)):
        monkeypatch.setattr("wnrepro.experiments.draw.COMPILED_FROM", compiled_from)
        _, record, notes = trained(tmp_path, "draw", "wn", epochs)
        assert (record["facts"]["compiled"], "continued" in record) == (not compiled_from, continued)
        assert len(notes) == (epochs > 1)


@pytest.mark.parametrize(("shorter", "longer", "decay_from", "good"), [(100, 200, 100, True), (101, 200, 100, False)])
def test_classifier_continues_runs_that_end_before_the_decay(
    shorter: int, longer: int, decay_from: int, good: bool
) -> None:
    settings = [tiny_cifar(epochs=epochs, decay_from=decay_from) for epochs in (shorter, longer)]
    assert (settings[1].continues(settings[0]) == "") is good
    assert all(tiny_settings(name, epochs=3).continues(tiny_settings(name, epochs=2)) == "" for name in ("draw", "dqn"))


def test_kill_while_it_begins_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wnrepro.runs import checkpoint, directory, run

    write = directory.write_atomic
    with walk_run(tmp_path / "whole") as whole:
        whole.execute(Walk)
    for stop in range(1, 8):
        folder, count = tmp_path / str(stop), 0
        with walk_run(folder, 1, 2) as shorter:
            shorter.execute(lambda: Walk(2))

        def kill(path: Path, content: bytes, keep: Path | None = None) -> None:
            nonlocal count
            count += 1
            if count == stop:  # noqa: B023
                raise SystemExit
            write(path, content, keep)

        with monkeypatch.context() as patch:
            for module in (checkpoint, directory, run):
                patch.setattr(module, "write_atomic", kill)
            with walk_run(folder) as longer, pytest.raises(SystemExit):
                longer.execute(Walk)
        with walk_run(folder) as longer:
            record = longer.execute(Walk)
        assert record["continued"]["epoch"] == 2
        assert all(
            (longer.folder / name).read_text() == (whole.folder / name).read_text()
            for name in ("metrics.csv", "halves.csv")
        )


# ------------------------------------------------------------------------------- warm starts


@pytest.mark.parametrize("model", ["cifar", "cvae mnist", "draw", pytest.param("dqn", marks=pytest.mark.slow)])
def test_warm_start_takes_the_weights_of_tests_without_an_init(tmp_path: Path, model: str) -> None:
    source, _, _ = trained(tmp_path, model, "wn+mobn", 1)
    name = warm_start.add(source.folder)
    assert name == warm_start.add(source.folder) and len(name) == 16
    _, settings, load = tiny_run(model, "wn+mobn", epochs=1, init_from=name)
    warm_start.check(type(settings), [settings])
    next(load().train())
    weights = warm_start.source(name).weights
    first = {name: value.clone() for name, value in weights.items()}
    fresh = load()
    fresh.begin()
    if model == "dqn":
        fresh.held_out = fresh.random_states(40)
    assert not fresh.start()["init"]
    state = fresh.net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in first.items())
    run, record, _ = trained(tmp_path, model, "wn+mobn", 1, init_from=name)
    assert f"init_from-{name}" in run.folder.parent.name and not (run.folder / "init.csv").exists()
    assert record["facts"]["init_from"] == f"{source.name}/seed-1, epoch 1" and "init_loss" not in record["facts"]
    assert all(torch.equal(weights[key], value) for key, value in first.items()), "training leaves them alone"
    found = results.load(tmp_path, "quick")
    assert results.check(tmp_path, "quick") == []
    (part,) = found.parts.values()
    assert [one.changed.get("init_from") for one in part.runs if "init_from" in one.path.parent.name] == [name]
    assert run.folder not in [one.path for one in (*part.standard, *part.changing("epochs"), *part.figure2)]


def test_warm_start_by_command(tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _, _ = trained(tmp_path, "cvae mnist", "wn", 1)
    settings = source.settings
    words: list[object] = ["cvae", "--param", "wn", "--scale", "quick", "--epochs", 1, "--results", tmp_path]
    for name in ("train_examples", "test_examples", "batch_size", "init_examples", "latents", "iaf_width", "hidden"):
        words += [f"--{name.replace('_', '-')}", getattr(settings, name)]
    words += [word for name in ("maps", "depths") for value in getattr(settings, name) for word in (f"--{name}", value)]
    assert run(*words, "--init-from", source.folder, "--quiet") == (0, "", "")
    name = warm_start.add(source.folder)
    (made,) = source.folder.parents[1].glob("*init_from*/seed-1")
    assert made.parent.name.endswith(f"_init_from-{name}")
    assert open_run(made).finished() == "done"
    for wrong in (tmp_path, tmp_path / "none", made.parent):
        assert run(*words, "--init-from", wrong)[0] == 2
    assert run(*words, "--init-from", source.folder, "--latents", 4)[0] == 2
    assert run("draw", "--param", "wn", "--scale", "quick", "--init-from", source.folder)[0] == 2
    assert run(*words[:2], "normal", *words[3:], "--init-from", source.folder)[0] == 2
    (source.folder / "checkpoint.pt").unlink()
    before = snapshot(tmp_path)
    assert run(*words, "--init-from", source.folder)[0] == 2 and snapshot(tmp_path) == before


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ffff"):
        trained(tmp_path, "cvae mnist", "wn", 1, init_from=16 * "f")
    for wrong in ("../../elsewhere", "F" * 16, ""):
        with pytest.raises(UserError, match="init-from"):
            tiny_settings("draw", init_from=wrong)

"""A run's tables, record and resume; what is added to a finished run; opening one by its folder."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Walk, tiny_run, walk_run, without_seconds

from wnrepro import results
from wnrepro.errors import UserError
from wnrepro.events import Epoch, Note
from wnrepro.runs import checkpoint, directory, provenance, run
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import PARAMS, SETTINGS, config_hash, scale_settings


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares three processes for every run."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})


def tables(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {path.name: path.read_text() for path in folder.glob("*.csv")}
    return found | {"metrics.csv": without_seconds(folder / "metrics.csv")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    """A finished run of a `Walk`."""
    with walk_run(tmp_path / "results") as made:
        made.execute(Walk)
    return made


def test_run_writes_its_directory(tmp_path: Path) -> None:
    shown: list[Any] = []
    with walk_run(tmp_path) as made:
        record = made.execute(Walk, shown.append)
    assert shown[0] == Note("from 0") and [event.epoch for event in shown[1:]] == [1, 2, 3, 4]
    assert (record["status"], record["epoch"], record["resumed"]) == ("done", 4, [])
    config = json.loads((made.folder / "config.json").read_text())
    assert config["settings"]["param"] == "wn" and config["hash"] == record["config_hash"]
    assert record == json.loads((made.folder / "run.json").read_text())
    assert record["seconds"] == pytest.approx(0.4) and record["peak_memory_bytes"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert made.finished() == "done" and not list(made.folder.glob(".*.part"))
    before = contents(made.folder)
    with made:
        assert made.execute(Walk)["status"] == "done"
    assert contents(made.folder) == before


@pytest.mark.parametrize("diverges", [0, 3])
def test_kill_at_any_write_leaves_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverges: int
) -> None:
    """The process ends before or within the n-th write, for every n; then the same command again."""
    with walk_run(tmp_path / "whole") as whole:
        expected = whole.execute(lambda: Walk(4, diverges))
    write, stop, killed = directory.write_atomic, 0, True
    while killed:
        stop += 1
        for half_written in (False, True):
            made, count = walk_run(tmp_path / f"{stop}{half_written}"), 0

            def kill(path: Path, content: bytes, keep: Path | None = None) -> None:
                nonlocal count
                count += 1
                if count == stop:  # noqa: B023
                    if half_written:  # noqa: B023
                        path.with_name(f".{path.name}.0.part").write_bytes(content[: len(content) // 2])
                    raise SystemExit
                write(path, content, keep)

            with monkeypatch.context() as patch:
                for module in (checkpoint, directory, run):
                    patch.setattr(module, "write_atomic", kill)
                try:
                    with made:
                        made.execute(lambda: Walk(4, diverges))
                    killed = False
                except SystemExit:
                    pass
            with made:
                record = made.execute(lambda: Walk(4, diverges))
            assert tables(made.folder) == tables(whole.folder)
            assert {name: record[name] for name in ("status", "epoch", "tables_sha256")}.items() <= expected.items()
            assert not list(made.folder.glob(".*"))
    assert stop > 15


@pytest.mark.parametrize(
    ("model", "param"),
    [
        *(("cifar", "wn+mobn"), ("cvae mnist", "wn"), ("draw", "wn+mobn")),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("cvae cifar10", "bn"), ("dqn", "bn"))),
    ],
)
def test_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, model: str, param: str) -> None:
    """Bit for bit; and the report reads it."""
    changes = {"epoch_steps": 60, "checkpoint_replay": True} if model == "dqn" else {}
    experiment, settings, load = tiny_run(model, param, epochs=2, **changes)
    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        whole.execute(load)

    def interrupt(event: object) -> None:
        if isinstance(event, Epoch):
            raise KeyboardInterrupt

    with Run(tmp_path / "resumed", experiment, "quick", settings) as resumed:
        with pytest.raises(KeyboardInterrupt):
            resumed.execute(load, interrupt)
        torch.manual_seed(123)
        record = resumed.execute(load)
    assert [entry["from_epoch"] for entry in record["resumed"]] == [1]
    assert tables(resumed.folder) == tables(whole.folder)
    assert record["facts"] == whole.record()["facts"] and record["facts"]["eq3_residual"] < 1e-12  # type: ignore[index]
    (read,) = results.load(tmp_path / "resumed", "quick").runs
    columns = SETTINGS[experiment].models[read.dataset].metrics
    assert read.over and list(read.metrics.columns) == list(columns)
    assert results.check(tmp_path / "resumed", "quick") == []


def test_failure_is_recorded_and_tried_again(tmp_path: Path) -> None:
    made = walk_run(tmp_path)

    def stop(event: object) -> None:
        if isinstance(event, Epoch) and event.epoch == 2:
            raise OSError("no power")

    with made, pytest.raises(OSError, match="no power"):
        made.execute(Walk, stop)
    record = made.record()
    assert record is not None and (record["status"], record["message"]) == ("failed", "OSError: no power")
    with made:
        record = made.execute(Walk)
    assert (record["status"], record["message"]) == ("done", "")
    assert [entry["from_epoch"] for entry in record["resumed"]] == [2]


# ------------------------------------------------------------------------------- finished runs


def test_added_facts_change_nothing_else(finished: Run) -> None:
    before, record = contents(finished.folder), finished.record()
    assert record is not None
    with finished:
        result = finished.add_facts(Walk, lambda walk: {"log_likelihood_nats": -walk.place, "importance_samples": 3})
        place = float((finished.folder / "metrics.csv").read_text().split(",")[-1])
        facts = {"steps": 0, "log_likelihood_nats": -place, "importance_samples": 3}
        assert result == finished.record() == record | {"facts": facts, "sha256": result["sha256"]}
        after = contents(finished.folder)
        assert {name for name in before if before[name] != after[name]} == {"run.json"}
        assert before.keys() == after.keys()
        finished.add_facts(Walk, lambda _: {"importance_samples": 5})
    assert finished.record()["facts"] == facts | {"importance_samples": 5}  # type: ignore[index]


def test_failed_measurement_changes_nothing(finished: Run) -> None:
    before = contents(finished.folder)

    def fail(_: Walk) -> dict[str, Any]:
        raise MemoryError("no more")

    with finished, pytest.raises(MemoryError, match="no more"):
        finished.add_facts(Walk, fail)
    assert contents(finished.folder) == before


@pytest.mark.parametrize("kind", ["missing", "damaged", "of another run"])
def test_restore_needs_the_newest_checkpoint(finished: Run, kind: str) -> None:
    walk, path = Walk(), finished.folder / "checkpoint.pt"
    finished.restore(walk)
    assert walk.epoch == 4
    if kind == "missing":
        path.unlink()
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        checkpoint.save_checkpoint(finished.folder, {"config_hash": "other"})
    before, walk = contents(finished.folder), Walk()
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        finished.restore(walk)
    with finished, pytest.raises(UserError, match=r"checkpoint\.pt"):
        finished.add_facts(lambda: walk, lambda _: {"importance_samples": 1})
    assert walk.epoch == 0 and contents(finished.folder) == before


def test_config_without_a_later_setting_has_its_default(finished: Run) -> None:
    earlier, config = dict(finished.config["settings"]), directory.config("cvae", "quick", finished.settings)
    assert earlier.pop("v_norm_max") is None
    digest = config_hash("cvae", "quick", earlier)
    (finished.folder / "config.json").write_text(json.dumps(config | {"settings": earlier, "hash": digest}))
    record = finished.record
    content = json.loads((finished.folder / "run.json").read_text()) | {"config_hash": digest}
    finished.write_record(content)
    assert record() == content and walk_run(finished.folder.parents[3]).finished() == "done"
    other = Run(finished.folder.parents[3], "cvae", "quick", dataclasses.replace(finished.settings, v_norm_max=0.5))
    other.folder = finished.folder
    with pytest.raises(UserError, match=r"of a run with other settings \(v_norm_max\)"):
        other.finished()


# ------------------------------------------------------------------------------- open_run


@pytest.mark.parametrize(
    ("inside", "words"),
    [("", "{0}"), ("", "results/{1}"), ("{0}", "."), ("{0}", "../{2}"), ("results", "cvae/../{1}/")],
)
def test_open_run_takes_any_path_of_the_folder(
    finished: Run, monkeypatch: pytest.MonkeyPatch, inside: str, words: str
) -> None:
    top = finished.folder.parents[4]
    names = (finished.folder, finished.folder.relative_to(top / "results"), finished.folder.name)
    monkeypatch.chdir(top / inside.format(*names))
    if inside == "results":
        (Path("cvae")).mkdir()
    opened = open_run(Path(words.format(*names)))
    assert (opened.folder, opened.name, opened.settings) == (finished.folder, finished.name, finished.settings)
    assert opened.finished() == "done"


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        ("cvae", {"dataset": "cifar10"}),
        ("cvae", {"depths": (3, 1, 1), "v_norm_max": 5.0, "seed": 4}),
        ("draw", {"attention": False}),
        ("dqn", {"game": "seaquest", "checkpoint_replay": True}),
    ],
)
@pytest.mark.parametrize("scale", ["paper", "short", "quick"])
def test_open_run_restores_settings_of_every_type(
    tmp_path: Path, scale: str, experiment: str, changes: dict[str, Any]
) -> None:
    for param in PARAMS:
        settings = scale_settings(experiment, scale, param, **changes)
        made = Run(tmp_path, experiment, scale, settings)
        made.folder.mkdir(parents=True)
        directory.write_json(made.folder / "config.json", made.config)
        assert open_run(made.folder).settings == settings and open_run(made.folder).finished() is None


def test_folder_without_a_run_is_refused(tmp_path: Path, finished: Run) -> None:
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "none", tmp_path, finished.folder.parent, finished.folder / "run.json"):
        with pytest.raises(UserError, match=rf"^{folder}: holds no run"):
            open_run(folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [
        *("", "\x00", "[]", "{}", '{"name": "another project\'s", "version": 2}'),
        '{"experiment": "chess", "scale": "quick", "settings": {"param": "wn"}}',
        '{"experiment": "cvae", "scale": "large", "settings": {"param": "wn"}}',
        '{"experiment": "cvae", "scale": "quick", "settings": {}}',
        '{"experiment": "cvae", "scale": "quick", "settings": null}',
        '{"experiment": "cvae", "scale": "quick", "settings": []}',
        '{"experiment": "cvae", "scale": "quick", "settings": {"param": "wn", "lr": "fast"}}',
        '{"experiment": "cvae", "scale": "quick", "settings": {"param": "half"}}',
    ],
)
def test_foreign_config_is_refused_by_name(finished: Run, content: str) -> None:
    path = finished.folder / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"^{path}: [^\n]+$"):
        open_run(finished.folder)


@pytest.mark.parametrize("changed", ["momentum", "free_bits"])
def test_settings_of_another_version_are_named(finished: Run, changed: str) -> None:
    path = finished.folder / "config.json"
    config = json.loads(path.read_text())
    if config["settings"].pop(changed, None) is None:
        config["settings"][changed] = 0.9
    config["hash"] = config_hash("cvae", "quick", config["settings"])
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"{path}.*{changed}"):
        open_run(finished.folder)


@pytest.mark.parametrize("new", ["{variant}/seed-2", "mine/seed-1"])
def test_moved_run_is_told_where_it_belongs(finished: Run, new: str) -> None:
    folder = finished.folder.parents[1] / new.format(variant=finished.folder.parent.name)
    folder.parent.mkdir(exist_ok=True)
    finished.folder.rename(folder)
    with pytest.raises(UserError, match=rf"^{folder}: its settings belong to {finished.folder}; move it there$"):
        open_run(folder)


def test_results_may_be_moved_as_a_whole(finished: Run, tmp_path: Path) -> None:
    shutil.move(tmp_path / "results", tmp_path / "archive/of/results")
    folder = tmp_path / "archive/of/results" / finished.folder.relative_to(tmp_path / "results")
    assert open_run(folder).finished() == "done"

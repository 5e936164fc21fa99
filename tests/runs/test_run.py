"""A run's tables, record and resume; what is added to a finished run; opening one by its folder."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Walk, snapshot, tiny_run, walk_run, without_seconds

from wnrepro import records, results
from wnrepro.errors import UserError
from wnrepro.events import Epoch, Note
from wnrepro.runs import checkpoint, directory, provenance, run
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import SETTINGS, config_hash


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares three processes for every run."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})


def tables(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {path.name: path.read_text() for path in folder.glob("*.csv")}
    return found | {"metrics.csv": without_seconds(folder / "metrics.csv")}


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    """A finished run of a `Walk`."""
    with walk_run(tmp_path / "results") as made:
        made.execute(Walk)
    return made


@pytest.mark.parametrize("diverges", [0, 3])
def test_kill_at_any_write_changes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverges: int) -> None:
    """The process ends before or within the n-th write, for every n; then the same command again."""
    shown: list[Any] = []
    with walk_run(tmp_path / "whole") as whole:
        expected = whole.execute(lambda: Walk(4, diverges), shown.append)
        assert whole.execute(Walk, shown.append) == expected == json.loads((whole.folder / "run.json").read_text())
    assert shown.pop(0).reached == 0
    assert [getattr(event, "epoch", event) for event in shown] == [Note("from 0"), *range(1, 1 + (diverges or 4))]
    assert expected["seconds"] == pytest.approx(0.1 * (diverges or 4)) and expected["peak_memory_bytes"] > 0
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
def test_failed_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path: Path, model: str, param: str) -> None:
    changes = {"epoch_steps": 60, "checkpoint_replay": True} if model == "dqn" else {}
    experiment, settings, load = tiny_run(model, param, epochs=2, **changes)
    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        expected = whole.execute(load)

    def fail(event: object) -> None:
        if isinstance(event, Epoch):
            raise OSError("no power at \udcff")  # a path that is no UTF-8

    with Run(tmp_path / "resumed", experiment, "quick", settings) as resumed:
        with pytest.raises(OSError, match="no power"):
            resumed.execute(load, fail)
        record = resumed.record() or {}
        assert (record["status"], record["message"]) == ("failed", "OSError: no power at \udcff")
        torch.manual_seed(123)
        record = resumed.execute(load)
    assert (record["message"], [entry["from_epoch"] for entry in record["resumed"]]) == ("", [1])
    assert tables(resumed.folder) == tables(whole.folder)
    assert record["facts"] == expected["facts"] and record["facts"]["eq3_residual"] < 1e-12
    (read,) = results.load(tmp_path / "resumed", "quick").runs
    assert read.over and list(read.metrics.columns) == list(SETTINGS[experiment].models[read.dataset].metrics)
    assert results.check(tmp_path / "resumed", "quick") == []


# ------------------------------------------------------------------------------- finished runs


def test_added_facts_change_nothing_else(finished: Run) -> None:
    def fail(_: Walk) -> dict[str, Any]:
        raise MemoryError("no more")

    before, record = snapshot(finished.folder), finished.record()
    assert record is not None
    with finished:
        with pytest.raises(MemoryError, match="no more"):
            finished.add_facts(Walk, fail)
        result = finished.add_facts(Walk, lambda walk: {"log_likelihood_nats": -walk.place, "importance_samples": 3})
    place = float((finished.folder / "metrics.csv").read_text().split(",")[-1])
    facts = {"steps": 0, "log_likelihood_nats": -place, "importance_samples": 3}
    assert result == finished.record() == record | {"facts": facts, "sha256": result["sha256"]}
    after = snapshot(finished.folder)
    assert before.keys() == after.keys() and {n for n in before if before[n] != after[n]} <= {"run.json", "lock"}


@pytest.mark.parametrize("kind", ["missing", "damaged", "of another run"])
def test_facts_are_of_the_newest_checkpoint_or_refused(finished: Run, kind: str) -> None:
    walk, path = Walk(), finished.folder / "checkpoint.pt"
    checkpoint.save_checkpoint(finished.folder, {"config_hash": "other"})  # the good one becomes the previous one
    if kind == "missing":
        path.unlink()
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    before = snapshot(finished.folder) | {"lock": b""}
    with finished, pytest.raises(UserError, match=r"checkpoint\.pt"):
        finished.add_facts(lambda: walk, lambda _: {"importance_samples": 1})
    assert walk.epoch == 0 and snapshot(finished.folder) | {"lock": b""} == before


def test_config_without_a_later_setting_has_its_default(finished: Run) -> None:
    earlier, results = dict(finished.config["settings"]), finished.folder.parents[3]
    assert earlier.pop("v_norm_max") is None
    digest = config_hash("cvae", "quick", earlier)
    (finished.folder / "config.json").write_text(json.dumps(finished.config | {"settings": earlier, "hash": digest}))
    content = json.loads((finished.folder / "run.json").read_text()) | {"config_hash": digest}
    finished.write_record(content)
    assert finished.record() == finished.record() == content == open_run(finished.folder).record()
    assert walk_run(results).finished() == "done"
    other = Run(results, "cvae", "quick", dataclasses.replace(finished.settings, v_norm_max=0.5))
    other.folder = finished.folder
    with pytest.raises(UserError, match=r"\(v_norm_max\)"):
        other.finished()


def test_tables_of_a_finished_run_are_restored_from_its_checkpoint(finished: Run) -> None:
    before, own = snapshot(finished.folder), finished.folder / "own.csv"
    own.write_text("mine")
    assert finished.repair() == []
    (finished.folder / "metrics.csv").write_bytes(b"\xef\xbb\xbf" + before["metrics.csv"])
    (finished.folder / "halves.csv").unlink()
    assert len(finished.repair()) == 2 and snapshot(finished.folder) | {"lock": b""} == before | {
        "lock": b"",
        "own.csv": b"mine",
    }
    (finished.folder / "checkpoint.pt").unlink()
    (finished.folder / "halves.csv").write_bytes(b"")
    after = snapshot(finished.folder) | {"lock": b""}
    (sentence,) = finished.repair()
    assert str(finished.folder / "halves.csv") in sentence and snapshot(finished.folder) | {"lock": b""} == after


# ------------------------------------------------------------------------------- open_run


def test_folder_without_a_run_is_refused(tmp_path: Path, finished: Run) -> None:
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "none", tmp_path, finished.folder.parent, finished.folder / "run.json"):
        with pytest.raises(UserError, match=rf"^{folder}: "):
            open_run(folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x00", b"\xff", b"[]", b"{}", b"[" * 100_000, b" " * 2**20 + b"{}"),
        b'{"name": "another project\'s", "version": 2}',
        b'{"experiment": "chess", "scale": "quick", "settings": {"param": "wn"}}',
        b'{"experiment": "cvae", "scale": "large", "settings": {"param": "wn"}}',
        *(b'{"experiment": "cvae", "scale": "quick", "settings": %b}' % one for one in (b"{}", b"null", b"[]")),
        b'{"experiment": "cvae", "scale": "quick", "settings": {"param": "wn", "lr": "fast"}}',
        b'{"experiment": "cvae", "scale": "quick", "settings": {"param": "half"}}',
    ],
)
def test_foreign_config_is_refused_by_name(finished: Run, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(records, "LARGEST_FILE", 2**20)
    path = finished.folder / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: [^\n]+$"):
        open_run(finished.folder)


def test_settings_of_another_version_are_named(finished: Run) -> None:
    settings = finished.config["settings"] | {"momentum": 0.9}
    config = finished.config | {"settings": settings, "hash": config_hash("cvae", "quick", settings)}
    (finished.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"{finished.folder}/config.json.*momentum"):
        open_run(finished.folder)


def test_run_without_a_later_setting_opens_and_keeps_its_hash(finished: Run) -> None:
    settings = dict(finished.config["settings"])
    assert settings.pop("free_bits") == 0.0
    config = finished.config | {"settings": settings, "hash": config_hash("cvae", "quick", settings)}
    (finished.folder / "config.json").write_text(json.dumps(config))
    opened = open_run(finished.folder)
    assert (opened.config, opened.settings) == (config, finished.settings)


def test_moved_run_error_names_its_folder(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(tmp_path / "results", tmp_path / "archive/of/results")
    there = tmp_path / "archive/of/results" / finished.folder.relative_to(tmp_path / "results")
    monkeypatch.chdir(there)
    for words in (there, ".", "../seed-1/"):
        opened = open_run(Path(words))
        assert (opened.folder, opened.name, opened.finished()) == (there, finished.name, "done")
    for folder in (there.parent / "seed-2", there.parents[1] / "mine/seed-1"):
        shutil.copytree(there, folder)
        with pytest.raises(UserError, match=rf"^{folder}: its settings belong to {there}; move it there$"):
            open_run(folder)

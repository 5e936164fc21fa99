"""Checkpoints: which are refused, and what a run does without a good one."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Walk, stop_walk, walk_run

from wnrepro.errors import UserError
from wnrepro.runs import provenance
from wnrepro.runs.checkpoint import CHECKPOINTS, DamagedError, add_checksum, load_checkpoint, save_checkpoint
from wnrepro.runs.run import Run


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with two of its four epochs behind it."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})
    return stop_walk(walk_run(tmp_path / "results"), 2)


def newest(made: Run) -> Any:
    return load_checkpoint(made.folder / CHECKPOINTS[0], made.config["hash"])


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


def test_checkpoint_is_plain_and_cannot_run_code(stopped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.load(stopped.folder / CHECKPOINTS[0], weights_only=True)["epoch"] == 2
    monkeypatch.chdir(tmp_path)
    save_checkpoint(stopped.folder, newest(stopped) | {"experiment": Evil()})
    with pytest.raises(DamagedError, match="UnpicklingError"):
        newest(stopped)
    assert not Path("evil").exists()


def test_compressed_checkpoint_is_not_expanded(stopped: Run) -> None:
    packed, path = io.BytesIO(), stopped.folder / CHECKPOINTS[0]
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    add_checksum(packed)
    path.write_bytes(packed.getvalue())
    with pytest.raises(DamagedError, match="compressed"):
        newest(stopped)


@pytest.mark.parametrize(
    "changes", [{"experiment": {"place": 1.0}}, {"tables": {"../metrics": "x"}}, {"record": "{}"}, {"rng": {}}]
)
def test_checkpoint_of_another_version_is_refused(stopped: Run, changes: dict[str, Any]) -> None:
    save_checkpoint(stopped.folder, newest(stopped) | changes)
    (stopped.folder / CHECKPOINTS[1]).unlink()
    with stopped, pytest.raises(UserError, match=str(stopped.folder)):
        stopped.execute(Walk)


@pytest.mark.parametrize("name", ["checkpoint.pt", "run.json"])
def test_files_of_another_run_are_never_mixed_in(stopped: Run, tmp_path: Path, name: str) -> None:
    other = stop_walk(walk_run(tmp_path / "other", seed=2), 3)
    shutil.copyfile(other.folder / name, stopped.folder / name)
    (stopped.folder / CHECKPOINTS[1]).unlink()
    with stopped, pytest.raises(UserError, match=rf"{stopped.folder / name}: belongs to a run"):
        stopped.execute(Walk)


@pytest.mark.parametrize("empty", [True, False])
def test_run_without_a_good_checkpoint_does_not_start_over_by_itself(stopped: Run, empty: bool) -> None:
    before = (stopped.folder / "metrics.csv").read_bytes()
    for name in CHECKPOINTS:
        (stopped.folder / name).write_bytes(b"") if empty else (stopped.folder / name).unlink()
    for _ in range(2):
        with stopped, pytest.raises(UserError, match="--fresh"):
            stopped.execute(Walk)
        (stopped.folder / "run.json").unlink(missing_ok=True)
    assert (stopped.folder / "metrics.csv").read_bytes() == before
    with stopped:
        stopped.clear()
        assert stopped.execute(Walk)["status"] == "done"

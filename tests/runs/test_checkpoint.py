"""Checkpoints: what they hold, which are refused, and what a run does with damaged ones."""

import io
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import Walk, walk_run

from wnrepro.errors import UserError
from wnrepro.runs import provenance
from wnrepro.runs.checkpoint import (
    CHECKPOINTS,
    DamagedError,
    add_checksum,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from wnrepro.runs.run import Run


class Stop(BaseException):
    """A kill, in this process."""


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with two of its four epochs behind it."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})

    def show(event: object) -> None:
        if getattr(event, "epoch", 0) == 2:
            raise Stop

    with walk_run(tmp_path / "results") as made, pytest.raises(Stop):
        made.execute(Walk, show)
    return made


def newest(made: Run) -> Any:
    return load_checkpoint(made.folder / CHECKPOINTS[0], made.config["hash"])


def test_generators_resume() -> None:
    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.gauss(0, 1)

    draw()
    state = rng_state()
    first = draw()
    set_rng_state(state)
    assert draw() == first


def test_checkpoint_is_a_plain_one_of_torch(stopped: Run) -> None:
    state = torch.load(stopped.folder / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 2 and state["tables"]["metrics"].count("\n") == 3


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


def test_checkpoint_cannot_run_code(stopped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(stopped.folder, newest(stopped) | {"experiment": Evil()})
    with pytest.raises(DamagedError, match="UnpicklingError"):
        newest(stopped)
    assert not Path("evil").exists()


def test_compressed_checkpoint_is_not_expanded(stopped: Run) -> None:
    packed, path = io.BytesIO(), stopped.folder / "checkpoint.pt"
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
    with stopped, pytest.raises(UserError, match=r"not fit this version|not of this version"):
        stopped.execute(Walk)


@pytest.mark.parametrize("name", ["checkpoint.pt", "run.json"])
def test_files_of_another_run_are_never_mixed_in(stopped: Run, tmp_path: Path, name: str) -> None:
    with walk_run(tmp_path / "other", seed=2) as other:
        other.execute(Walk)
    shutil.copyfile(other.folder / name, stopped.folder / name)
    (stopped.folder / CHECKPOINTS[1]).unlink()
    with stopped, pytest.raises(UserError, match=rf"{stopped.folder / name}: of a run with other settings"):
        stopped.execute(Walk)


@pytest.mark.parametrize("empty", [True, False])
def test_run_without_a_good_checkpoint_does_not_start_over_by_itself(stopped: Run, empty: bool) -> None:
    before = (stopped.folder / "metrics.csv").read_bytes()
    for name in CHECKPOINTS:
        (stopped.folder / name).write_bytes(b"") if empty else (stopped.folder / name).unlink()
    with stopped, pytest.raises(UserError, match="start over with --fresh"):
        stopped.execute(Walk)
    (stopped.folder / "run.json").unlink()
    with stopped, pytest.raises(UserError, match="start over with --fresh"):
        stopped.execute(Walk)
    assert (stopped.folder / "metrics.csv").read_bytes() == before
    with stopped:
        stopped.clear()
        assert stopped.execute(Walk)["status"] == "done"

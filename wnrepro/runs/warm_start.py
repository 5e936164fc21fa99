"""Warm starts: the weights of a trained run in place of an init."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wnrepro.errors import UserError
from wnrepro.runs.checkpoint import CHECKPOINTS, load_checkpoint, load_weights, tested_weights
from wnrepro.runs.directory import WEIGHTS
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import Settings
from wnrepro.text import listed

FREE = {"batch_size", "precision", "update_every", "actors"}  # of `Settings.cost`: no shape depends on them


@dataclass(frozen=True)
class Source:
    """A trained run and the weights that its tests use."""

    run: Run
    epoch: int
    weights: dict[str, Tensor]


SOURCES: dict[str, Source] = {}  # by `digest`


def add(folder: Path) -> str:
    """Load a run's weights for `source`, and return their digest. Raises UserError if there are none."""
    run = open_run(folder)
    if run.finished() == "diverged":
        raise UserError(f"--init-from {folder}: the run diverged; use another run")
    if (state := run.stored(load_checkpoint, CHECKPOINTS[0])) is not None:
        weights = tested_weights(state["experiment"])
    elif (state := run.stored(load_weights, WEIGHTS)) is not None:
        weights = state["weights"]
    else:
        raise UserError(f"--init-from {folder}: has neither {CHECKPOINTS[0]} nor {WEIGHTS}; use another run")
    name = digest(weights)
    SOURCES[name] = Source(run, state["epoch"], weights)
    return name


def digest(weights: dict[str, Tensor]) -> str:
    """Return the first 16 hex digits of the sha256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def check(cls: type[Settings], planned: Iterable[Settings]) -> None:
    """Raise UserError if the weights of a run's source are of another model."""
    names = sorted({*cls.cost, "param", "g_exp", *([cls.part] if cls.part else [])} - FREE)
    for settings in planned:
        source = SOURCES[getattr(settings, "init_from", "")].run
        if source.experiment != cls.name:
            raise UserError(f"--init-from {source.folder}: is a run of {source.experiment}; use a run of {cls.name}")
        found = [name for name in names if getattr(settings, name, None) != getattr(source.settings, name, None)]
        if found:
            raise UserError(f"--init-from {source.folder}: has a different {listed(found)}; use a run with the same")


def source(name: str) -> Source:
    """Return the source with this digest. Raises UserError unless `add` has loaded it."""
    if name not in SOURCES:
        raise UserError(f"--init-from: the weights {name} are not loaded; add --init-from with the folder of their run")
    return SOURCES[name]

"""The events of a run: what an experiment's `train()` yields, and the start of training."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Start:
    """The start of training: the epochs that a resumed run has completed, else 0, and the content of run.json."""

    reached: int
    record: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """The progress within an epoch: `done` of `total` examples."""

    epoch: int
    done: int
    total: int


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch: its row of metrics.csv and the rows of other tables, by table.

    diverged: how training diverged, which ends the run; empty if it did not.
    """

    epoch: int
    metrics: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class Note:
    """A message for the user that no table contains."""

    text: str


News = Start | Progress | Epoch | Note  # of a run, for its display

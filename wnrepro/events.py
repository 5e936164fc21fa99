"""What an experiment's `train()` yields."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Progress within an epoch: `done` of `total` examples."""

    epoch: int
    done: int
    total: int


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch: its row of metrics.csv and, by name, the rows of other tables.

    diverged: empty, or a sentence on how training diverged, which ends the run.
    """

    epoch: int
    metrics: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence for the person who watches the run; no table holds it."""

    text: str

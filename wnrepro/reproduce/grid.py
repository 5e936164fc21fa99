"""Every run that the paper needs, as data, by scale. Imports no torch.

A row is every combination of its values, the first named varying slowest; what it does not name has the scale's
default. Rows stand in the order in which their runs are worth most; a run that two rows name stands at its first.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.rundir import RunDirectory
from wnrepro.settings import GAMES, PARAMS, SETTINGS, Settings, scale_settings

BOTH = ("normal", "wn")
PARTS = {"cvae": "dataset", "dqn": "game"}  # the setting whose values name a part of an experiment's runs


@dataclass(frozen=True)
class Row:
    """Some runs of one experiment, and the tables, figures and claims that need them."""

    experiment: str
    serves: str
    values: dict[str, Sequence[Any]]


def row(experiment: str, serves: str, **values: Sequence[Any]) -> Row:
    return Row(experiment, serves, values)


TABLE2 = "table 2, figure 1, C3 to C6, C8, C14"
FIGURE2 = "figure 2, C3, C9"
FIGURE3 = "figure 3, C10"
TABLE3 = "table 3, figure 4, C11, C12"
C10_START = "C10, g = 1 at the start"
BY_THE_TEXT = "normal by the paper's text"
RATES, EXPONENTS, BOUND = paper.LEARNING_RATES, (1.0, 3.0, 5.0), (paper.V_NORM_MAX,)
MORE = (2, 3)  # seeds

GRID: dict[str, tuple[Row, ...]] = {
    "paper": (
        row("cifar", TABLE2, param=PARAMS),
        row("draw", FIGURE3, param=BOTH),
        row("cvae", FIGURE2, dataset=paper.FIGURE2, param=BOTH),
        row("dqn", TABLE3, game=GAMES, param=BOTH),
        row("cifar", "C6, C13, C14", lr=RATES, param=PARAMS),
        row("cifar", BY_THE_TEXT, lr=RATES, init=("folded",), param=("normal",)),
        row("draw", C10_START, param=("wn",), g_start=(1.0,)),
        row("cvae", FIGURE2, dataset=paper.FIGURE2, param=("bn", "wn+mobn")),
        row("draw", FIGURE3, param=("bn", "wn+mobn")),
        row("dqn", TABLE3, game=GAMES, param=("bn", "wn+mobn")),
        row("cifar", TABLE2, seed=MORE, param=PARAMS),
        row("draw", FIGURE3, seed=MORE, param=BOTH),
        row("cvae", FIGURE2, seed=MORE, dataset=paper.FIGURE2, param=BOTH),
        row("cifar", "C15", seed=(1, *MORE), param=("wn",), g_exp=EXPONENTS),
        row("cifar", "C16", seed=(1, *MORE), param=("wn", "wn+mobn"), v_norm_max=BOUND),
        row("cvae", "C16", seed=(1, *MORE), dataset=paper.FIGURE2, param=("wn",), v_norm_max=BOUND),
        row("draw", C10_START, seed=MORE, param=("wn",), g_start=(1.0,)),
        row("dqn", TABLE3, seed=MORE, game=GAMES, param=BOTH),
    ),
    "short": (
        row("cifar", TABLE2, param=PARAMS),
        row("draw", FIGURE3, param=BOTH),
        row("cvae", FIGURE2, dataset=paper.FIGURE2, param=BOTH),
        row("dqn", TABLE3, game=("breakout", "space_invaders"), param=BOTH),
        row("cifar", "C6, C13, C14", lr=RATES, param=BOTH),
        row("cifar", BY_THE_TEXT, lr=(0.0003, 0.003), init=("folded",), param=("normal",)),
        row("cifar", "C15", param=("wn",), g_exp=EXPONENTS),
        row("cifar", "C16", param=("wn",), v_norm_max=BOUND),
        row("draw", FIGURE3, seed=(2,), param=BOTH),
        row("cvae", FIGURE2, seed=MORE, dataset=("mnist",), param=BOTH),
        row("cvae", FIGURE2, dataset=paper.FIGURE2, param=("bn", "wn+mobn")),
        row("draw", C10_START, param=("wn",), g_start=(1.0,)),
        row("draw", FIGURE3, param=("bn", "wn+mobn")),
        row("dqn", TABLE3, game=("breakout",), param=("bn",)),
        row("cvae", "C16", dataset=("mnist",), param=("wn",), v_norm_max=BOUND),
    ),
    "quick": (
        row("cifar", TABLE2, param=PARAMS),
        row("cvae", FIGURE2, dataset=paper.FIGURE2, param=PARAMS),
        row("draw", FIGURE3, param=PARAMS),
        row("dqn", TABLE3, game=(paper.FIGURE4,), param=PARAMS),
        row("cifar", "C6, C13, C14", lr=RATES, param=BOTH),
        row("cifar", "C15", param=("wn",), g_exp=EXPONENTS),
        row("cifar", "C16", param=("wn",), v_norm_max=BOUND),
        row("cvae", "C16", dataset=("mnist",), param=("wn",), v_norm_max=BOUND),
        row("draw", C10_START, param=("wn",), g_start=(1.0,)),
    ),
}


@dataclass(frozen=True)
class Planned:
    """A run of the grid, and what it is for."""

    experiment: str
    scale: str
    settings: Settings
    serves: tuple[str, ...]

    @property
    def part(self) -> str:
        """The data set of cvae, or the game of dqn."""
        return str(getattr(self.settings, PARTS[self.experiment])) if self.experiment in PARTS else ""

    def directory(self, results: Path) -> RunDirectory:
        return RunDirectory(results, self.experiment, self.scale, self.settings)


def planned(scale: str, words: Sequence[str], **changes: Any) -> list[Planned]:
    """The grid's runs that these words name, without any all, each once, in its order; `changes` are settings of them.

    A word is an experiment, or a part of one, which then stands for no more than the parts that are named. Raises
    UserError for another one, and as `scale_settings`.
    """
    serves: dict[tuple[str, Settings], list[str]] = {}
    for one in GRID[scale]:
        for each in itertools.product(*one.values.values()):
            values = dict(zip(one.values, each, strict=True)) | changes
            settings = scale_settings(one.experiment, scale, **values)
            serves.setdefault((one.experiment, settings), []).append(one.serves)
    runs = [Planned(experiment, scale, settings, tuple(names)) for (experiment, settings), names in serves.items()]
    known = dict.fromkeys([*SETTINGS, *(run.part for run in runs if run.part)])
    for word in words:
        if word not in known:
            raise UserError(f"reproduce {word}: unknown at scale {scale}; give some of {', '.join(known)}")
    in_parts = {run.experiment for run in runs if run.part in words}
    whole = set(words) - in_parts if words else set(SETTINGS)
    return [run for run in runs if run.experiment in whole or run.part in words]


def left_out(scale: str, runs: Sequence[Planned]) -> list[str]:
    """What of the scale's grid is not among these runs: `draw`, or `cvae cifar10`."""
    everything, there, names = planned(scale, ()), {(run.experiment, run.part) for run in runs}, []
    for experiment in SETTINGS:
        parts = dict.fromkeys(run.part for run in everything if run.experiment == experiment)
        missing = [part for part in parts if (experiment, part) not in there]
        names += [experiment] if len(missing) == len(parts) else [f"{experiment} {part}" for part in missing]
    return names

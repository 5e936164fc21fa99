"""The runs that the paper needs, as data, by scale. This module does not import torch.

A row stands for every combination of its values, the first of which varies slowest. Other settings have the scale's
defaults. The most valuable rows come first. A run in two rows takes its place from the first one.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.runs.directory import RunDirectory
from wnrepro.settings import GAMES, PARAMS, SETTINGS, Settings, scale_settings

BOTH = ("normal", "wn")
CLAIM = re.compile(r"C\d+[a-z]?")


class Row(NamedTuple):
    """Some runs of one experiment, and the tables, figures and claims that need them."""

    experiment: str
    serves: tuple[str, ...]
    values: dict[str, Sequence[Any]]


def row(experiment: str, serves: str, **values: Sequence[Any]) -> Row:
    return Row(experiment, tuple(serves.split(", ")), values)


TO_3, TO_5, TO_10 = (2, 3), (4, 5), (6, 7, 8, 9, 10)  # seeds: claims are judged only at 3, 5 and 10 seeds

TABLE2 = "table 2, figure 1, C3, C4a, C4b, C8a, C8b, C8c, C18a, C18b"  # at figure 1's learning rates
SWEEP = "C5a, C6, C13, C14"
FIGURE2 = "figure 2, C3, C9a"
FIGURE2_MNIST = f"{FIGURE2}, C9b"
FIGURE3 = "figure 3, C10a, C10b"
TABLE3 = "table 3, figure 4, C11, C12"
BY_THE_TEXT = "normal by the paper's text"
RATES, GAMES_OF_C12, RATES_OF_C12 = paper.LEARNING_RATES, ("breakout", "space_invaders"), (0.0001, 0.0003, 0.001, 0.003)
# A variant's values; None: the run without the variant, as the baseline.
G_EXP, V_NORM_MAX, POLYAK_EPOCHS = (None, 1.0, 3.0, 5.0), (None, paper.V_NORM_MAX), (10.0,)

GRID: dict[str, tuple[Row, ...]] = {
    "paper": (
        row("cifar", TABLE2, param=PARAMS),
        row("draw", FIGURE3, param=BOTH),
        row("cvae", FIGURE2_MNIST, param=BOTH),
        row("cvae", FIGURE2, dataset=("cifar10",), param=BOTH),
        row("dqn", TABLE3, game=GAMES, param=BOTH),
        row("cifar", f"{SWEEP}, C5b", lr=RATES, param=BOTH),
        row("cifar", "C5b", lr=RATES, param=("bn",)),
        row("cifar", "C14", lr=RATES, param=("wn+mobn",)),
        row("cifar", BY_THE_TEXT, lr=RATES, init=("folded",), param=("normal",)),
        row("draw", "figure 3, C10b", param=("wn",), g_start=(1.0,)),
        row("cifar", "C15", param=("wn",), g_exp=G_EXP),
        row("cifar", "C16b", param=("wn",), polyak_epochs=POLYAK_EPOCHS, v_norm_max=V_NORM_MAX),
        row("cifar", "C19", param=("wn",), v_norm_max=V_NORM_MAX),
        row("cvae", "C16a", dataset=paper.FIGURE2, param=("wn",), v_norm_max=V_NORM_MAX),
        row("dqn", "C12", game=GAMES_OF_C12, param=("bn",), lr=RATES_OF_C12),
        row("cvae", "figure 2, C3", dataset=paper.FIGURE2, param=("bn", "wn+mobn")),
        row("draw", "figure 3", param=("bn", "wn+mobn")),
        # More seeds, the cheapest first.
        row("cifar", TABLE2, seed=TO_3, param=PARAMS),
        row("cifar", f"{SWEEP}, C5b", seed=TO_3, lr=RATES, param=BOTH),
        row("cifar", "C5b", seed=TO_3, lr=RATES, param=("bn",)),
        row("cifar", "C15", seed=TO_3, param=("wn",), g_exp=G_EXP),
        row("cifar", "C16b", seed=TO_3, param=("wn",), polyak_epochs=POLYAK_EPOCHS, v_norm_max=V_NORM_MAX),
        row("cifar", "C19", seed=TO_3, param=("wn",), v_norm_max=V_NORM_MAX),
        row("cifar", TABLE2, seed=TO_5, param=PARAMS),
        row("cifar", SWEEP, seed=TO_5, lr=RATES, param=BOTH),
        row("cifar", "C15", seed=TO_5, param=("wn",), g_exp=G_EXP),
        row("cifar", "C16b", seed=TO_5, param=("wn",), polyak_epochs=POLYAK_EPOCHS, v_norm_max=V_NORM_MAX),
        row("cifar", "C19", seed=TO_5, param=("wn",), v_norm_max=V_NORM_MAX),
        row("cifar", TABLE2, seed=TO_10, param=PARAMS),
        row("cifar", SWEEP, seed=TO_10, lr=RATES, param=BOTH),
        row("cifar", "C15", seed=TO_10, param=("wn",), g_exp=G_EXP),
        row("cifar", "C16b", seed=TO_10, param=("wn",), polyak_epochs=POLYAK_EPOCHS, v_norm_max=V_NORM_MAX),
        row("draw", FIGURE3, seed=(*TO_3, *TO_5), param=BOTH),
        row("draw", "figure 3, C10b", seed=(*TO_3, *TO_5), param=("wn",), g_start=(1.0,)),
        row("cvae", FIGURE2_MNIST, seed=(*TO_3, *TO_5), param=BOTH),
        row("cvae", "C16a", seed=(*TO_3, *TO_5), param=("wn",), v_norm_max=V_NORM_MAX),
        row("cvae", FIGURE2, seed=TO_3, dataset=("cifar10",), param=BOTH),
        row("cvae", "C16a", seed=TO_3, dataset=("cifar10",), param=("wn",), v_norm_max=V_NORM_MAX),
        row("dqn", TABLE3, seed=TO_3, game=GAMES, param=BOTH),
        row("dqn", "C12", seed=TO_3, game=GAMES_OF_C12, param=("bn",), lr=RATES_OF_C12),
        row("dqn", "bn with a large minibatch", game=("breakout",), param=("bn",), batch_size=(512,)),
        row("dqn", "table 3, figure 4, C3", game=GAMES, param=("bn", "wn+mobn")),
    ),
    "short": (
        row("cifar", TABLE2, param=PARAMS),
        row("draw", FIGURE3, param=BOTH),
        row("cvae", FIGURE2_MNIST, param=BOTH),
        row("cvae", FIGURE2, dataset=("cifar10",), param=BOTH),
        row("dqn", TABLE3, game=GAMES_OF_C12, param=BOTH),
        row("cifar", SWEEP, lr=RATES, param=BOTH),
        row("cifar", BY_THE_TEXT, lr=(0.0003, 0.003), init=("folded",), param=("normal",)),
        row("cifar", "C15", param=("wn",), g_exp=G_EXP),
        row("cifar", "C19", param=("wn",), v_norm_max=V_NORM_MAX),
        row("draw", FIGURE3, seed=(2,), param=BOTH),
        row("cvae", FIGURE2_MNIST, seed=TO_3, param=BOTH),
        row("cvae", "figure 2, C3", dataset=paper.FIGURE2, param=("bn", "wn+mobn")),
        row("draw", "figure 3, C10b", param=("wn",), g_start=(1.0,)),
        row("draw", "figure 3", param=("bn", "wn+mobn")),
        row("dqn", "table 3, figure 4, C12", game=("breakout",), param=("bn",)),
        row("cvae", "C16a", param=("wn",), v_norm_max=V_NORM_MAX),
    ),
    "quick": (
        row("cifar", TABLE2, param=PARAMS),
        row("cvae", FIGURE2_MNIST, param=PARAMS),
        row("cvae", FIGURE2, dataset=("cifar10",), param=PARAMS),
        row("draw", FIGURE3, param=PARAMS),
        row("dqn", f"{TABLE3}, C3", game=(paper.FIGURE4,), param=PARAMS),
        row("cifar", SWEEP, lr=RATES, param=BOTH),
        row("cifar", "C15", param=("wn",), g_exp=G_EXP),
        row("cifar", "C19", param=("wn",), v_norm_max=V_NORM_MAX),
        row("cvae", "C16a", param=("wn",), v_norm_max=V_NORM_MAX),
        row("draw", "figure 3, C10b", param=("wn",), g_start=(1.0,)),
    ),
}


@dataclass(frozen=True)
class Planned:
    """A run of the grid, and the tables, figures and claims that need it."""

    experiment: str
    scale: str
    settings: Settings
    serves: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The data set of cvae or the game of dqn, else empty."""
        return str(getattr(self.settings, self.settings.part)) if self.settings.part else ""

    @property
    def name(self) -> str:
        """<experiment>/<variant>/seed-<n>, as in `results.Run`"""
        return str(self.directory(Path()).folder.relative_to(self.scale))

    @property
    def names(self) -> set[str]:
        """The words that select the run: `cvae`, `mnist`, `figure2`, `C9` or `C9a`."""
        forms = {form for name in self.serves for form in (name.replace(" ", ""), name.rstrip("abc"))}
        return forms | {self.experiment, self.part} - {""}

    def directory(self, results: Path) -> RunDirectory:
        return RunDirectory(results, self.experiment, self.scale, self.settings)


def planned(scale: str, words: Sequence[str] = (), params: Sequence[str] = PARAMS, **changes: Any) -> list[Planned]:
    """Return the grid's runs that match any of these words (without words: all), each once, in the grid's order.

    A word is a table, figure, claim, experiment, or a part of an experiment. If parts of an experiment are named, its
    own name is ignored. A custom parameterization has the runs of wn without variants of its settings, and serves no
    claim. changes: settings of all runs. Raises UserError for an unknown word, if no run is left, and as
    `scale_settings`.
    """
    paper_runs = expand(scale)
    for word in words:
        if not any(word in run.names for run in paper_runs):
            known = dict.fromkeys([*SETTINGS, *(run.part for run in paper_runs if run.part)])
            raise UserError(
                f"reproduce {word}: unknown at scale {scale}; use some of {', '.join(known)}, or a claim, table or "
                "figure such as C10, table2 or figure1"
            )
    runs = expand(scale, params, **changes)
    chosen = set(words) - {run.experiment for run in runs if run.part in words}
    runs = [run for run in runs if not words or chosen & run.names]
    if not runs:
        raise UserError(f"reproduce --param {','.join(params)}: no run of {' '.join(words)} has it; name an experiment")
    return runs


def expand(scale: str, params: Sequence[str] = PARAMS, **changes: Any) -> list[Planned]:
    """Return all runs of a scale with these parameterizations."""
    serves: dict[tuple[str, Settings], dict[str, None]] = {}
    own = [param for param in params if param not in PARAMS]
    for row in GRID[scale]:
        with_params = [param for param in row.values["param"] if param in params]
        if "wn" in row.values["param"] and row.values.keys() <= {"param", "lr", "seed", SETTINGS[row.experiment].part}:
            with_params += own
        for each in itertools.product(*(row.values | {"param": with_params}).values()):
            values = dict(zip(row.values, each, strict=True)) | changes
            names = [name for name in row.serves if values["param"] in PARAMS or not CLAIM.fullmatch(name)]
            settings = scale_settings(row.experiment, scale, **values)
            serves.setdefault((row.experiment, settings), {}).update(dict.fromkeys(names))
    return [Planned(experiment, scale, settings, tuple(names)) for (experiment, settings), names in serves.items()]


def seeds(scale: str) -> dict[str, int]:
    """Return the number of seeds that the grid gives each claim, the lowest over its data sets or games."""
    found: dict[str, dict[str, set[int]]] = {}
    for run in expand(scale):
        for name in filter(CLAIM.fullmatch, run.serves):
            found.setdefault(name, {}).setdefault(run.part, set()).add(run.settings.seed)
    return {claim: min(map(len, parts.values())) for claim, parts in found.items()}


def commands(scale: str) -> dict[str, str]:
    """Return the command that computes each claim's runs or step times, at scale paper if this scale has none."""
    found = {claim: f"wnrepro reproduce {claim} --scale {of}" for of in ("paper", scale) for claim in seeds(of)}
    timed = dict.fromkeys(("C7a", "C7b", "C17"), "wnrepro bench cifar")
    return found | timed | dict.fromkeys(("C1", "C2"), f"wnrepro reproduce cifar --scale {scale}")


def left_out(scale: str, runs: Sequence[Planned], params: Sequence[str] = PARAMS) -> list[str]:
    """Return the parts of the scale's grid that these runs lack: `draw`, `cvae cifar10` or `some of cifar`."""
    grid, there = (Counter((run.experiment, run.part) for run in some) for some in (expand(scale, params), runs))
    names: list[str] = []
    for experiment in SETTINGS:
        parts = [key for key in grid if key[0] == experiment]
        missing = [key for key in parts if not there[key]]
        names += [experiment] if parts and missing == parts else map(" ".join, missing)
        names += [f"some of {' '.join(key)}".rstrip() for key in parts if 0 < there[key] < grid[key]]
    return names

"""Every run that the paper needs, as data, by scale. Imports no torch.

A row is every combination of its values, the first named varying slowest; what it does not name has the scale's
default. Rows stand in the order in which their runs are worth most; a run that two rows name stands at its first.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.runs.directory import RunDirectory
from wnrepro.settings import GAMES, PARAMS, SETTINGS, Settings, scale_settings

BOTH = ("normal", "wn")
CLAIM = re.compile(r"C\d+[a-z]?")


@dataclass(frozen=True)
class Row:
    """Some runs of one experiment, and the tables, figures and claims that need them."""

    experiment: str
    serves: tuple[str, ...]
    values: dict[str, Sequence[Any]]

    @property
    def for_all(self) -> bool:
        """Whether it has weight normalization in settings that every parameterization can have."""
        allowed = {"param", "lr", "seed", SETTINGS[self.experiment].part}
        return "wn" in self.values["param"] and not self.values.keys() - allowed


def row(experiment: str, serves: str, **values: Sequence[Any]) -> Row:
    return Row(experiment, tuple(serves.split(", ")), values)


TO_3, TO_5, TO_10 = (2, 3), (4, 5), (6, 7, 8, 9, 10)  # seeds: claims are judged at 3, 5 and 10 of them alone

TABLE2 = "table 2, figure 1, C3, C4a, C4b, C8a, C8b, C8c, C18a, C18b"  # at figure 1's learning rates
SWEEP = "C5a, C6, C13, C14"
FIGURE2 = "figure 2, C3, C9a"
FIGURE2_MNIST = f"{FIGURE2}, C9b"
FIGURE3 = "figure 3, C10a, C10b"
TABLE3 = "table 3, figure 4, C11, C12"
BY_THE_TEXT = "normal by the paper's text"
RATES, GAMES_OF_C12, RATES_OF_C12 = paper.LEARNING_RATES, ("breakout", "space_invaders"), (0.0001, 0.0003, 0.001, 0.003)
# A variant's values; None: without it, the run that the variants are compared with.
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
    """A run of the grid, and what it is for."""

    experiment: str
    scale: str
    settings: Settings
    serves: tuple[str, ...]

    @property
    def part(self) -> str:
        """The data set of cvae, or the game of dqn."""
        return str(getattr(self.settings, self.settings.part)) if self.settings.part else ""

    def named(self, word: str) -> bool:
        """Whether a word is the run's part, or what it serves: `mnist`, `figure2`, `C9` or `C9a`."""
        names = {form for name in self.serves for form in (name.replace(" ", ""), name.rstrip("abc"))}
        return word in names | {self.part} - {""}

    def directory(self, results: Path) -> RunDirectory:
        return RunDirectory(results, self.experiment, self.scale, self.settings)


def planned(scale: str, words: Sequence[str], params: Sequence[str] = PARAMS, **changes: Any) -> list[Planned]:
    """The grid's runs that these words name, without any all, each once, in its order; `changes` are settings of them.

    A word is a table, figure or claim, an experiment, or a part of one, which then stands for no more than the parts
    that are named. params: the parameterizations; one that is not the paper's has the runs of wn, but for the variants
    of its settings, and serves no claim. Raises UserError for another word, where nothing is left, and as
    `scale_settings`.
    """
    runs = _runs(scale, words, params, **changes)
    if not runs:
        _runs(scale, words)  # for a word that is none
        raise UserError(
            f"reproduce --param {','.join(params)}: nothing of {' '.join(words)} has it; name an experiment"
        )
    return runs


def _runs(scale: str, words: Sequence[str], params: Sequence[str] = PARAMS, **changes: Any) -> list[Planned]:
    """Those of `planned`."""
    serves: dict[tuple[str, Settings], dict[str, None]] = {}
    for one in GRID[scale]:
        own = [param for param in params if param not in PARAMS and one.for_all]
        those = [param for param in one.values["param"] if param in params]
        for each in itertools.product(*(one.values | {"param": [*those, *own]}).values()):
            values = dict(zip(one.values, each, strict=True)) | changes
            names = [name for name in one.serves if values["param"] in PARAMS or not CLAIM.fullmatch(name)]
            settings = scale_settings(one.experiment, scale, **values)
            serves.setdefault((one.experiment, settings), {}).update(dict.fromkeys(names))
    runs = [Planned(experiment, scale, settings, tuple(names)) for (experiment, settings), names in serves.items()]
    for word in words:
        if word not in SETTINGS and not any(run.named(word) for run in runs) and {*PARAMS} <= {*params}:
            known = ", ".join(dict.fromkeys([*SETTINGS, *(run.part for run in runs if run.part)]))
            raise UserError(
                f"reproduce {word}: unknown at scale {scale}; give some of {known}, or what runs of it serve, such as "
                "table2, figure1, C10"
            )
    in_parts = {run.experiment for run in runs if run.part in words}
    whole = set(words) - in_parts if words else set(SETTINGS)
    return [run for run in runs if run.experiment in whole or any(map(run.named, words))]


def seeds(scale: str) -> dict[str, int]:
    """The number of seeds that a scale's grid gives each claim; of several data sets or games, the fewest of one."""
    found: dict[str, dict[str, set[int]]] = {}
    for run in planned(scale, ()):
        for name in run.serves:
            if CLAIM.fullmatch(name):
                found.setdefault(name, {}).setdefault(run.part, set()).add(run.settings.seed)
    return {claim: min(map(len, parts.values())) for claim, parts in found.items()}


def commands(scale: str) -> dict[str, str]:
    """By claim, the command that computes the runs, or step times, that it needs: at this scale or, where its grid has
    none of them, at the paper's.
    """
    there, papers = (
        {claim: f"wnrepro reproduce {claim} --scale {of}" for claim in seeds(of)} for of in (scale, "paper")
    )
    timed = dict.fromkeys(("C7a", "C7b", "C17"), "wnrepro bench cifar")
    return papers | there | timed | dict.fromkeys(("C1", "C2"), f"wnrepro reproduce cifar --scale {scale}")


def left_out(scale: str, runs: Sequence[Planned], params: Sequence[str] = PARAMS) -> list[str]:
    """What of the scale's grid is not among these runs: `draw`, `cvae cifar10`, or `some of cifar`."""
    every = planned(scale, (), params)
    everything, there = (Counter((run.experiment, run.part) for run in some) for some in (every, runs))
    names = []
    for experiment in SETTINGS:
        parts = [part for name, part in everything if name == experiment]
        missing = [part for part in parts if not there[experiment, part]]
        names += [experiment] * bool(parts) if missing == parts else [f"{experiment} {part}" for part in missing]
        fewer = [part for part in parts if 0 < there[experiment, part] < everything[experiment, part]]
        names += [f"some of {experiment} {part}".rstrip() for part in fewer]
    return names

"""Trains with one of the authors' choices that the package does not offer, to measure what the deviation changes.

    python -m wnrepro.tools.deviations NAME [FOLDER, by default results/published/deviations]

FOLDER/NAME gets the run's tables, config.json and run.json; these name the settings, and the commit names the change.
"""

import contextlib
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from wnrepro.cli import app
from wnrepro.data import whitening
from wnrepro.data.whitening import Zca
from wnrepro.experiments.atari import STACK, History
from wnrepro.experiments.dqn import Dqn


class BlocksAdam(torch.optim.Adam):
    """Adam as in Blocks: lr·√(1 − β2ᵗ)/(1 − β1ᵗ)·m/(√v + ε), with ε = 10⁻⁸ added before the bias correction."""

    updates = 0

    def step(self, closure: Any = None) -> Any:
        self.updates += 1
        for group in self.param_groups:
            group["eps"] = 1e-8 / math.sqrt(1 - group["betas"][1] ** self.updates)
        return super().step(closure)


def whitening_in_float32(x: Tensor, epsilon: float, device: str) -> Zca:
    """Fit the whitening as the authors do: covariance and singular values in float32, by numpy."""
    pixels = (x.flatten(1).numpy().astype(np.float32) - np.float32(127.5)) / np.float32(128)
    mean = pixels.mean(0)
    pixels -= mean
    vectors, values, _ = np.linalg.svd(pixels.T @ pixels / np.float32(len(pixels)))
    matrix = (vectors / np.sqrt(values + np.float32(epsilon))) @ vectors.T
    return Zca(*(torch.from_numpy(part).to(device, torch.float64) for part in (mean, matrix)))


@contextlib.contextmanager
def random_first_actions() -> Iterator[None]:
    """Play the first four actions of a life at random in training, as deep_q_rl does."""
    act, add, restart = Dqn.act, History.add, History.restart

    class Stacks(np.ndarray):
        """States (N, 4, 84, 84), with the number of screens of each game's life."""

        screens: Any

    def add_screens(self: Any, frames: Any) -> None:
        screens = getattr(self.stacks, "screens", 0) + np.ones(len(frames), np.int64)
        add(self, frames)
        self.stacks = self.stacks.view(Stacks)
        self.stacks.screens = screens

    def restart_screens(self: Any, which: Any) -> None:
        restart(self, which)
        self.stacks.screens[which] = 0

    def act_at_random(self: Any, states: Any, epsilon: float, rng: np.random.Generator) -> Any:
        actions = act(self, states, epsilon, rng)
        if rng is self.rng:
            first = states.screens <= STACK
            actions[first] = rng.integers(self.actions, size=first.sum())
        return actions

    with (
        patch.object(Dqn, "act", act_at_random),
        patch.object(History, "add", add_screens),
        patch.object(History, "restart", restart_screens),
    ):
        yield


DRAW, DQN = "draw --param {} --epochs 2", "dqn --game breakout --param wn --epochs 1"
DEVIATIONS: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    "draw_blocks_epsilon": (DRAW.format("normal"), lambda: patch.object(torch.optim, "Adam", BlocksAdam)),
    "cifar_float32_whitening": (
        "cifar --param wn+mobn",
        lambda: patch.object(whitening, "fit_cached", whitening_in_float32),
    ),
    "dqn_random_first_actions": (DQN, random_first_actions),
    "dqn_target_every_2000": (f"{DQN} --target-every 2000", contextlib.nullcontext),  # four times that of `short`
}


def main(name: str, folder: Path) -> None:
    command, change = DEVIATIONS[name]
    with tempfile.TemporaryDirectory() as results, change():
        options = ["--scale", "short", "--precision", "fp32", "--device", "cpu", "--yes", "--results", results]
        app([*command.split(), *options], standalone_mode=False)
        run = next(Path(results).glob("*/*/*/*/run.json")).parent
        shutil.copytree(run, folder / name, ignore=shutil.ignore_patterns("*.pt", "lock*"), dirs_exist_ok=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in DEVIATIONS:
        sys.exit(f"{__doc__}\nNAME: {', '.join(DEVIATIONS)}")
    main(sys.argv[1], Path(*sys.argv[2:3] or ["results/published/deviations"]))

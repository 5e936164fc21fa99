"""Training steps of this package's experiments, for timing."""

from typing import Any

import numpy as np
import torch

from wnrepro.bench.counting import WHOLE, Step, Steps, repeat
from wnrepro.experiments import experiment_class
from wnrepro.settings import SETTINGS, DqnSettings, Settings, scale_settings

EMULATION, ACTING, LEARNING = "emulation", "acting", "learning"
AGENT_STEPS = 40  # DQN agent steps in one timing
# DQN: a small replay filled by random play, and the final ε. Others: enough epochs for compiled steps, as at `paper`.
CHANGES: dict[str, dict[str, Any]] = {
    "cifar": {"epochs": 1000},
    "cvae": {"epochs": 1000},
    "dqn": {"game": "breakout", "replay_steps": 5000, "replay_start": 5000, "epsilon_steps": 1},
}


def timed_settings(experiment: str, device: torch.device) -> Settings:
    """Return the paper's settings with CHANGES, in the precision that claims use on this device."""
    judged_in = {"precision": SETTINGS[experiment].gpu_precision} if device.type == "cuda" else {}
    return scale_settings(experiment, "paper", "wn", **CHANGES.get(experiment, {}), **judged_in)


def our_training(settings: Settings, device: torch.device) -> tuple[Any, Step]:
    """Return an experiment that trains on random data (DQN: on a replay of random play), and its training step."""
    experiment = experiment_class(settings.name).on_noise(settings, device)
    return experiment, experiment.train_once


def our_steps(settings: Settings, device: torch.device) -> Steps:
    """Return the experiment's training step. For DQN, return AGENT_STEPS agent steps of `play`, and their parts."""
    experiment, step = our_training(settings, device)
    if not isinstance(settings, DqnSettings):
        return Steps({WHOLE: step}, step)
    rng, state = np.random.default_rng(0), experiment.held_out[:1].numpy()
    updates = AGENT_STEPS // settings.update_every

    def play() -> None:
        for _ in experiment.play(AGENT_STEPS, learn=True):
            pass

    def act() -> None:
        experiment.captured_sync()
        for _ in range(settings.update_every):
            experiment.act(state, 0.0, rng)

    parts = {
        WHOLE: play,
        EMULATION: repeat(lambda: experiment.training.step(rng.integers(experiment.actions, size=1)), AGENT_STEPS),
        ACTING: repeat(act, updates),
        LEARNING: repeat(step, updates),
    }
    return Steps(parts, step, updates)

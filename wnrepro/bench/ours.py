"""Training steps of this package's experiments, ready to be timed."""

from typing import Any

import numpy as np
import torch

from wnrepro.bench.counting import WHOLE, Step, Steps, repeat
from wnrepro.data.images import Images, Pixels
from wnrepro.experiments import experiment_class
from wnrepro.experiments.cifar import CLASSES
from wnrepro.experiments.cvae import PIXEL_VALUES, LadderVae, MnistVae
from wnrepro.settings import SETTINGS, CifarSettings, DqnSettings, Settings, scale_settings

EMULATION, ACTING, LEARNING = "emulation", "acting", "learning"
AGENT_STEPS = 40  # of DQN, in one timing
# DQN: a small replay, full of random play, and ε at its end. cifar: long enough for its layers to be compiled.
CHANGES: dict[str, dict[str, Any]] = {
    "cifar": {"epochs": 1000},
    "dqn": {"game": "breakout", "replay_steps": 5000, "replay_start": 5000, "epsilon_steps": 1},
}


def timed_settings(experiment: str, device: torch.device) -> Settings:
    """The paper's settings, with CHANGES, in the precision in which the experiment is judged on this device."""
    judged_in = {"precision": SETTINGS[experiment].gpu_precision} if device.type == "cuda" else {}
    return scale_settings(experiment, "paper", "wn", **CHANGES.get(experiment, {}), **judged_in)


def random_images(settings: CifarSettings, device: torch.device) -> Images:
    """Twenty minibatches of noise: a step takes as long on them as on photographs."""
    torch.manual_seed(0)
    count = 20 * settings.batch_size
    x, y = torch.randn(count, 3, 32, 32, device=device), torch.randint(CLASSES, (count,), device=device)
    return Images(x, y, x[:0], y[:0], "random")


def random_pixels(settings: Settings) -> Pixels:
    """Twenty minibatches of noise, black and white or in colour."""
    torch.manual_seed(0)
    colour = getattr(settings, "dataset", "mnist") == "cifar10"
    shape, values = (LadderVae.shape, PIXEL_VALUES) if colour else (MnistVae.shape, 2)
    x = torch.randint(values, (20 * max(settings.batch_size, 25), *shape), dtype=torch.uint8)
    return Pixels(x, x[:0], "random")


def our_training(settings: Settings, device: torch.device) -> tuple[Any, Step]:
    """An experiment ready to train, on noise or, of DQN, with a replay full of random play; its training step."""
    if isinstance(settings, DqnSettings):
        return our_agent(settings, device)
    images = random_images(settings, device) if isinstance(settings, CifarSettings) else random_pixels(settings)
    experiment = experiment_class(settings.name)(settings, images, device)
    if hasattr(experiment, "initialize"):
        experiment.initialize(torch.arange(experiment.settings.init_examples, device=device))
    experiment.net.train()

    def step() -> object:
        index = torch.randperm(len(experiment.train_x), generator=experiment.order)[: settings.batch_size]
        return experiment.captured_step(index.to(device))[0]

    return experiment, step


def our_agent(settings: DqnSettings, device: torch.device) -> tuple[Any, Step]:
    agent = experiment_class("dqn")(settings, device)
    agent.held_out = agent.random_states(settings.init_examples)
    agent.initialize(agent.held_out)
    for _ in agent.play(settings.replay_start, learn=False):
        pass
    agent.agent_steps = settings.replay_start

    def update() -> object:
        agent.agent_steps += settings.update_every  # `play` counts by it which updates are due
        return agent.update()

    return agent, update


def our_steps(settings: Settings, device: torch.device) -> Steps:
    """A step of the experiment; of DQN AGENT_STEPS agent steps of its own `play`, and their parts."""
    experiment, step = our_training(settings, device)
    if not isinstance(settings, DqnSettings):
        return Steps({WHOLE: step}, step)
    rng, state = np.random.default_rng(0), experiment.held_out[:1].numpy()
    updates = AGENT_STEPS // settings.update_every

    def play() -> None:
        for _ in experiment.play(AGENT_STEPS, learn=True):
            pass

    def act() -> None:
        experiment.captured_renewal()
        for _ in range(settings.update_every):
            experiment.act(state, 0.0, rng)

    parts = {
        WHOLE: play,
        EMULATION: repeat(lambda: experiment.training.step(rng.integers(experiment.actions, size=1)), AGENT_STEPS),
        ACTING: repeat(act, updates),
        LEARNING: repeat(step, updates),
    }
    return Steps(parts, step, updates)

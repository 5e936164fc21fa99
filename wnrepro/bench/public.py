"""Public programs, timed beside our steps if they are installed: their training loops, with our sizes and optimizer.

Both apply torch's weight_norm, because their step is compared with wn's. These differences remain:

- Stable-Baselines3's DQN ends an episode when a life is lost, presses FIRE at the start of a game, clips the norm of
  gradients, and stores whole states.
- pythae's VAE_IAF has no context in its autoregressive steps, and ReLU in them instead of ELU. Its loss takes
  probabilities, not logits. Our averaged parameters are a callback of its trainer.
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wnrepro.bench.counting import WHOLE, Steps, repeat
from wnrepro.bench.ours import AGENT_STEPS, LEARNING
from wnrepro.bench.plain import to_torch_layers
from wnrepro.data.images import random_pixels
from wnrepro.experiments.vae import HIDDEN_LAYERS, STATISTICS, MnistVae
from wnrepro.settings import CvaeSettings, DqnSettings


def normalize(net: nn.Module) -> nn.Module:
    """Apply torch's weight_norm to all convolutions and dense layers."""
    for layer in list(net.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight_norm(layer)
    return net


def stable_baselines3_dqn(settings: DqnSettings, device: torch.device) -> Steps:
    """Return AGENT_STEPS agent steps of Stable-Baselines3's DQN with their updates, and the updates alone."""
    import stable_baselines3 as sb3
    from ale_py import ALEInterface, LoggerMode
    from stable_baselines3.common.callbacks import CallbackList
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack
    from stable_baselines3.dqn.policies import CnnPolicy

    s = settings
    assert s.maps == (32, 64, 64)  # those of its network

    class Policy(CnnPolicy):
        def make_q_net(self) -> Any:
            return normalize(super().make_q_net())

    ALEInterface.setLoggerMode(LoggerMode.Error)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints if ALE_ROMS_DIR is set
        games = VecFrameStack(make_atari_env(f"{s.game.title().replace('_', '')}NoFrameskip-v4", seed=s.seed), 4)
    agent = sb3.DQN(
        Policy,
        games,
        learning_rate=s.lr,
        buffer_size=s.replay_steps,
        learning_starts=s.replay_start,
        batch_size=s.batch_size,
        gamma=s.discount,
        train_freq=s.update_every,
        target_update_interval=s.target_every * s.update_every,
        exploration_initial_eps=s.epsilon_last,
        exploration_final_eps=s.epsilon_last,
        policy_kwargs={
            "features_extractor_kwargs": {"features_dim": s.hidden},
            "optimizer_class": torch.optim.Adamax,
            "optimizer_kwargs": {"betas": (s.beta1, 0.999)},
        },
        seed=s.seed,
        device=device,
    )
    agent.learn(s.replay_start)  # it plays at random and does not learn yet
    callback = CallbackList([])
    callback.init_callback(agent)

    def learn() -> Any:
        agent.train(1, s.batch_size)
        return agent.logger.name_to_value["train/loss"]

    def play() -> None:  # the loop of its `learn`
        agent.collect_rollouts(agent.env, callback, agent.train_freq, agent.replay_buffer, None, s.replay_start)
        learn()

    updates = AGENT_STEPS // s.update_every
    return Steps({WHOLE: repeat(play, updates), LEARNING: repeat(learn, updates)}, learn, updates)


def pythae_cvae(settings: CvaeSettings, device: torch.device) -> Steps:
    """Return a training step of pythae's VAE_IAF, with the networks of our plain loop."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE_IAF, VAE_IAF_Config
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    s = settings
    torch.manual_seed(s.seed)
    net = to_torch_layers(MnistVae(s))

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.context, self.statistics = net.encoder, net.statistics

        def forward(self, x: Tensor) -> Any:
            mean, log_std = (STATISTICS * self.statistics(self.context(x))).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=2 * log_std)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.logits = net.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.logits(z)))

    config = VAE_IAF_Config(
        input_dim=MnistVae.shape,
        latent_dim=s.latents,
        reconstruction_loss="bce",
        n_made_blocks=s.iaf_depth,
        n_hidden_in_made=HIDDEN_LAYERS,
        hidden_size=s.iaf_width,
    )
    model = VAE_IAF(config, Encoder(), Decoder())
    normalize(model.iaf_flow)
    model.to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn())

    class Average(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            average.update_parameters(model)

    images = random_pixels(s).train_x.float()
    options = {"per_device_train_batch_size": s.batch_size, "optimizer_cls": "Adamax", "learning_rate": s.lr}
    options |= {"seed": s.seed, "no_cuda": device.type != "cuda"}
    logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)
    trainer = BaseTrainer(model, BaseDataset(images, torch.zeros(len(images))), None, BaseTrainerConfig(**options))
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([Average()], model)  # without its progress bar
    trainer.train_loader = OneByOne(trainer.train_loader)

    def step() -> Any:
        return trainer.train_step(1)

    return Steps({WHOLE: step}, step)


class OneByOne:
    """A data loader that gives one of its minibatches each time, so that an epoch of it is one step."""

    def __init__(self, loader: Any) -> None:
        self.dataset, self.batches = loader.dataset, self._endless(loader)

    @staticmethod
    def _endless(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield next(self.batches)


# By experiment: contender, the module to import, the package to install, its step.
PUBLIC: dict[str, tuple[str, str, str, Callable[[Any, torch.device], Steps]]] = {
    "cvae": ("pythae", "pythae", "pythae>=0.1.2", pythae_cvae),
    "dqn": ("stable-baselines3", "stable_baselines3", "stable-baselines3>=2.9", stable_baselines3_dqn),
}


def public_steps(experiment: str) -> dict[str, Callable[[Any, torch.device], Steps]]:
    """Return the installed public programs that can be timed beside the experiment."""
    if experiment not in PUBLIC or missing(experiment):
        return {}
    name, _, _, make = PUBLIC[experiment]
    return {name: make}


def missing(experiment: str) -> str:
    """Return a sentence on the experiment's public program if it is not installed, else an empty string."""
    if experiment not in PUBLIC:
        return ""
    name, module, package, _ = PUBLIC[experiment]
    if importlib.util.find_spec(module) is not None:
        return ""
    return f"{experiment} is not compared with {name}, which is not installed (pip install '{package}' adds it)"

"""Step times, side by side: the parameterizations and a plain PyTorch loop, interleaved in one run.

Every contender lives in a process of its own, so that neither memory nor threads of one help or hinder another.
One round times one training step of each, one at a time and in a new random order; a ratio is paired within the
round. These machines are noisy: what counts is the median ratio, its interval and n.

Every round also times a large matrix product in each precision and a copy, of a process of their own: the device's
ceilings. A step's floor is its FLOPs at the speed of that product.

DQN's step is `update_every` agent steps and their update, timed AGENT_STEPS agent steps at a time; of wn its parts are
timed too: the emulation alone, acting, learning. Its floor is that of learning.
"""

import contextlib
import copy
import dataclasses
import datetime
import functools
import importlib.util
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import quantile_test
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from wnrepro.atari import NO_OPS, STACK, Replay, check_rom
from wnrepro.atari import SIZE as SCREEN_SIZE
from wnrepro.compiling import Compilation, judged, relative_error
from wnrepro.cuda_graphs import Captured
from wnrepro.custom import use
from wnrepro.data.images import Images, Pixels
from wnrepro.device import autocast, available_memory, cores, set_precision
from wnrepro.errors import UserError
from wnrepro.experiments.cifar import CLASSES, DROPOUT, SLOPE, Cifar
from wnrepro.experiments.cvae import (
    AUTOREGRESSIVE,
    PIXEL_VALUES,
    RESIDUAL,
    STATISTICS,
    Cvae,
    LadderVae,
    Made,
    MnistVae,
    autoregress,
    log_normal,
    sample_normal,
)
from wnrepro.experiments.dqn import KERNELS, STRIDES, WHITE, Dqn, replay_device
from wnrepro.experiments.draw import BANK_TOLERANCE, SIZE, WINDOW, Draw
from wnrepro.mps import mps
from wnrepro.runs.directory import now, read_json, write_json
from wnrepro.runs.provenance import peak_memory_bytes, provenance
from wnrepro.settings import (
    PARAMS,
    PRECISIONS,
    SETTINGS,
    CifarSettings,
    CvaeSettings,
    DqnSettings,
    DrawSettings,
    Settings,
    Source,
    about,
    scale_settings,
)

WARM_UP_STEPS = {"cpu": 1, "cuda": 5}  # after the one that is counted; a GPU's first steps are not yet a graph
PLAIN = "plain wn"
BASE = PARAMS[0]  # whose steps the others' are set against
WHOLE, EMULATION, ACTING, LEARNING = "end to end", "emulation", "acting", "learning"
COUNTED = "counted"  # the step whose FLOPs and bytes are counted, where that is not the whole
CEILINGS, PRODUCT, COPY = "ceilings", "product", "copy"
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns
COPIED_BYTES = 2**29  # more than the caches hold
SIDE_SECONDS = 10.0  # for which processes step side by side
MOST_ON_A_GPU = 8  # of those
CONTEXT_BYTES = 10**9  # of a GPU's memory, for what a process takes there besides its tensors
AGENT_STEPS = 40  # of DQN, in one timing
FULL_REPLAY = DqnSettings.replay_steps
SPARE_BYTES = 2 * 10**9  # of memory, for what a run of DQN takes besides its replay
STEPS_TOGETHER = {"cpu": 1, "cuda": 20}  # between two waits for the device: what a step costs in training
# DQN: a small replay, full of random play, and ε at its end. cifar: long enough for its layers to be compiled.
CHANGES: dict[str, dict[str, Any]] = {
    "cifar": {"epochs": 1000},
    "dqn": {"game": "breakout", "replay_steps": 5000, "replay_start": 5000, "epsilon_steps": 1},
}


def fast_precisions(device: torch.device) -> list[str]:
    """Those in which the device multiplies by instructions of its own."""
    if device.type == "cuda":
        return list(PRECISIONS)
    return ["fp32", "bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["fp32"]


Step = Callable[[], object]
Steps = dict[str, Step]  # by what of a training step they are: WHOLE, or a part, or COUNTED
Entrants = dict[str, tuple[Callable[..., Steps], Settings]]  # by name: what makes a contender's steps, and of what


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


def random_pixels(settings: CvaeSettings | DrawSettings) -> Pixels:
    """Twenty minibatches of noise, black and white or in colour."""
    torch.manual_seed(0)
    colour = isinstance(settings, CvaeSettings) and settings.dataset == "cifar10"
    shape, values = (LadderVae.shape, PIXEL_VALUES) if colour else (MnistVae.shape, 2)
    x = torch.randint(values, (20 * max(settings.batch_size, 25), *shape), dtype=torch.uint8)
    return Pixels(x, x[:0], "random")


def endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from loader


def plain_steps(settings: Settings, device: torch.device) -> Steps:
    """A step of the loop that most people write: torch's layers, weight_norm, optimizer and DataLoader."""
    if isinstance(settings, DqnSettings):
        return plain_dqn(settings, device)
    if isinstance(settings, CifarSettings):
        return {WHOLE: plain_cifar(settings, device)}
    if isinstance(settings, CvaeSettings):
        return {WHOLE: plain_cvae(settings, device)}
    assert isinstance(settings, DrawSettings)
    return {WHOLE: plain_draw(settings, device)}


def plain_cifar(settings: CifarSettings, device: torch.device) -> Step:
    stages: list[nn.Module] = []
    channels, n = 3, settings.width
    shapes = [(n, 3, 1)] * 3 + [(2 * n, 3, 1)] * 3 + [(2 * n, 3, 0)] + [(2 * n, 1, 0)] * 2
    for number, (maps, kernel, padding) in enumerate(shapes):
        stages += [weight_norm(nn.Conv2d(channels, maps, kernel, padding=padding)), nn.LeakyReLU(SLOPE)]
        if number in (2, 5):
            stages += [nn.MaxPool2d(2), nn.Dropout(DROPOUT)]
        channels = maps
    stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), weight_norm(nn.Linear(channels, CLASSES))]
    net = nn.Sequential(*stages).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    images = random_images(settings, torch.device("cpu"))
    dataset = TensorDataset(images.train_x, images.train_y)
    batches = endless(DataLoader(dataset, settings.batch_size, shuffle=True))

    def step() -> object:
        x, y = (part.to(device) for part in next(batches))
        with autocast(settings.precision, device):
            logits = net(x + settings.input_noise * torch.randn_like(x))
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


class PlainResidual(nn.Module):
    """A residual unit as most people write it."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv2d(maps, maps, 3, padding=1))
        self.conv2 = weight_norm(nn.Conv2d(maps, maps, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.conv2(F.elu(self.conv1(F.elu(x))))


class PlainMade(nn.Module):
    """The autoregressive network in torch's layers, its weights masked at every step."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.masks = [layer.mask for layer in (*made.layers, made.out)]
        self.layers = nn.ModuleList(weight_norm(nn.Linear(mask.shape[1], mask.shape[0])) for mask in self.masks)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cat([z, context], 1)
        for number, (layer, mask) in enumerate(zip(self.layers, self.masks, strict=True)):
            w: Any = layer.weight
            h = F.linear(F.elu(h) if number else h, w * mask, layer.bias)  # type: ignore[arg-type]
        m, s = (AUTOREGRESSIVE * h).chunk(2, 1)
        return m, s


class PlainVae(nn.Module):
    """MNIST's model in torch's layers; see `MnistVae`."""

    def __init__(self, settings: CvaeSettings) -> None:
        super().__init__()
        (a, b, c), hidden, latents = settings.maps, settings.hidden or 0, settings.latents
        first, second, third = settings.depths

        def down(inputs: int, maps: int) -> list[nn.Module]:
            return [nn.ELU(), weight_norm(nn.Conv2d(inputs, maps, 3, stride=2, padding=1))]

        def up(inputs: int, maps: int) -> list[nn.Module]:
            conv = nn.ConvTranspose2d(inputs, maps, 3, stride=2, padding=1, output_padding=1)
            return [nn.ELU(), weight_norm(conv, dim=1)]

        def units(maps: int, count: int) -> list[nn.Module]:
            return [PlainResidual(maps) for _ in range(count)]

        self.encoder = nn.Sequential(
            *(weight_norm(nn.Conv2d(1, a, 3, padding=1)), *units(a, first)),
            *(*down(a, b), *units(b, second), *down(b, c), *units(c, third)),
            *(nn.ELU(), nn.Flatten(), weight_norm(nn.Linear(c * 49, hidden)), nn.ELU()),
        )
        self.statistics = weight_norm(nn.Linear(hidden, 2 * latents))
        self.steps = nn.ModuleList(
            PlainMade(Made(latents, hidden, settings.iaf_width, "normal", reverse=k % 2 == 1))
            for k in range(settings.iaf_depth)
        )
        self.decoder = nn.Sequential(
            *(weight_norm(nn.Linear(latents, hidden)), nn.ELU(), weight_norm(nn.Linear(hidden, c * 49))),
            *(nn.Unflatten(1, (c, 7, 7)), *units(c, third), *up(c, b), *units(b, second)),
            *(*up(b, a), *units(a, first), nn.ELU(), weight_norm(nn.Conv2d(a, 1, 3, padding=1))),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        context = self.encoder(x)
        mean, log_std = (STATISTICS * self.statistics(context)).float().chunk(2, 1)
        z, log_q = autoregress(self.steps, *sample_normal(mean, log_std), context)
        logits = self.decoder(z).float()
        loss = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        return -loss, log_q - log_normal(z)


def plain_cvae(settings: CvaeSettings, device: torch.device) -> Step:
    torch.manual_seed(settings.seed)
    net = PlainVae(settings).to(device)
    optimizer = torch.optim.Adamax(net.parameters(), lr=settings.lr)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn())
    dataset = TensorDataset(random_pixels(settings).train_x.float())
    batches = endless(DataLoader(dataset, settings.batch_size, shuffle=True))

    def step() -> object:
        (x,) = next(batches)
        with autocast(settings.precision, device):
            log_p_x, kl = net(x.to(device))
        loss = kl.sum(1).mean() - log_p_x.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(net)
        return loss.detach()

    return step


class PlainAttention(nn.Module):
    """The window that h (B, units) asks for: filter banks F_y, F_x (B, count, SIZE) and γ (B, 1, 1)."""

    offsets: Tensor
    pixels: Tensor

    def __init__(self, units: int, count: int) -> None:
        super().__init__()
        self.window = nn.Linear(units, WINDOW)
        self.spread = (SIZE - 1) / (count - 1)
        self.register_buffer("offsets", torch.arange(count) - (count - 1) / 2)
        self.register_buffer("pixels", torch.arange(float(SIZE)))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, x, log_delta, log_variance, log_gamma = self.window(h).float().unsqueeze(2).split(1, 1)
        steps = self.spread * torch.exp(log_delta) * self.offsets
        f_y, f_x = (self.bank((c + 1) / 2 * SIZE + steps, torch.exp(log_variance)) for c in (y, x))
        return f_y, f_x, torch.exp(log_gamma)

    def bank(self, centres: Tensor, variance: Tensor) -> Tensor:
        """Normalized Gaussians (B, count, SIZE) at these centres (B, 1, count)."""
        bank = torch.exp(-((self.pixels - centres.transpose(1, 2)) ** 2) / (2 * variance))
        return bank / (bank.sum(2, keepdim=True) + BANK_TOLERANCE)


class PlainDraw(nn.Module):
    """DRAW in torch's layers, the weights normalized at every time step; see `DrawNet`."""

    def __init__(self, settings: DrawSettings) -> None:
        super().__init__()
        s = settings
        assert s.attention
        self.units, self.time_steps, self.write_window = s.units, s.time_steps, s.write_window
        self.encoder = nn.LSTMCell(2 * s.read_window**2 + s.units, s.units)
        self.statistics = nn.Linear(s.units, 2 * s.latents)
        self.decoder = nn.LSTMCell(s.latents, s.units)
        self.read_at = PlainAttention(s.units, s.read_window)
        self.write_at = PlainAttention(s.units, s.write_window)
        self.patch = nn.Linear(s.units, s.write_window**2)
        for layer in list(self.modules()):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                if name.startswith("weight"):
                    nn.init.normal_(parameter, std=s.weight_std)
                    weight_norm(layer, name)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x.squeeze(1)
        canvas = torch.zeros_like(x)
        h_enc = c_enc = h_dec = c_dec = x.new_zeros(len(x), self.units)
        kl = []
        for t in range(self.time_steps):
            f_y, f_x, gamma = self.read_at(h_dec)
            glimpses = [
                (gamma * torch.bmm(torch.bmm(f_y, image), f_x.transpose(1, 2))).flatten(1)
                for image in (x, x - torch.sigmoid(canvas))
            ]
            h_enc, c_enc = self.encoder(torch.cat([*glimpses, h_dec], 1), (h_enc, c_enc))
            mean, log_std = self.statistics(h_enc).float().chunk(2, 1)
            z = mean + torch.exp(log_std) * (torch.randn_like(mean) if noise is None else noise[t])
            kl.append((0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std).sum(1))
            h_dec, c_dec = self.decoder(z, (h_dec, c_dec))
            patch = self.patch(h_dec).view(-1, self.write_window, self.write_window)
            f_y, f_x, gamma = self.write_at(h_dec)
            canvas = canvas + torch.bmm(torch.bmm(f_y.transpose(1, 2), patch), f_x) / gamma
        loss = F.binary_cross_entropy_with_logits(canvas, x, reduction="none").sum((1, 2))
        return -loss, torch.stack(kl)


def plain_draw(settings: DrawSettings, device: torch.device) -> Step:
    torch.manual_seed(settings.seed)
    net = PlainDraw(settings).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    dataset = TensorDataset(random_pixels(settings).train_x.float())
    batches = endless(DataLoader(dataset, settings.batch_size, shuffle=True))

    def step() -> object:
        (x,) = next(batches)
        with autocast(settings.precision, device):
            log_p_x, kl = net(x.to(device))
        loss = kl.sum(0).mean() - log_p_x.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.gradient_norm_max)
        optimizer.step()
        return loss.detach()

    return step


class PlainDqn:
    """The agent as CleanRL's dqn_atari has it: gymnasium's wrappers, a replay of whole states, torch's layers.

    A lost life is terminal and the game goes on; `AtariPreprocessing`'s own option would begin a new one.
    """

    def __init__(self, settings: DqnSettings, device: torch.device) -> None:
        s = self.settings = settings
        self.device = device
        torch.manual_seed(s.seed)
        self.rng = np.random.default_rng(s.seed)
        import gymnasium
        from ale_py import ALEInterface, LoggerMode
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        ALEInterface.setLoggerMode(LoggerMode.Error)
        name = f"ALE/{s.game.title().replace('_', '')}-v5"
        game: Any = gymnasium.make(name, frameskip=1, repeat_action_probability=0.0, full_action_space=False)
        game = AtariPreprocessing(game, noop_max=NO_OPS, frame_skip=4, screen_size=SCREEN_SIZE, grayscale_obs=True)
        self.env = FrameStackObservation(game, STACK)
        self.state, info = self.env.reset(seed=s.seed)
        self.lives = info["lives"]
        self.actions = int(game.action_space.n)

        stages: list[nn.Module] = []
        sizes, size = (STACK, *s.maps), SCREEN_SIZE
        for k, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
            stages += [weight_norm(nn.Conv2d(sizes[k], sizes[k + 1], kernel, stride)), nn.ReLU()]
            size = (size - kernel) // stride + 1
        stages += [nn.Flatten(), weight_norm(nn.Linear(s.maps[2] * size * size, s.hidden)), nn.ReLU()]
        self.net = nn.Sequential(*stages, weight_norm(nn.Linear(s.hidden, self.actions))).to(device)
        self.target = copy.deepcopy(self.net)
        self.optimizer = torch.optim.Adamax(self.net.parameters(), lr=s.lr, betas=(s.beta1, 0.999))

        shape, count = (STACK, SCREEN_SIZE, SCREEN_SIZE), s.replay_steps
        self.replay: tuple[np.ndarray, ...] = (
            np.zeros((count, *shape), np.uint8),
            np.zeros(count, np.int64),  # actions
            np.zeros(count, np.float32),  # rewards
            np.zeros((count, *shape), np.uint8),  # the next states
            np.zeros(count, np.bool_),  # whether terminal
        )
        self.agent_steps = self.updates = 0

    def step(self, action: int) -> tuple[Any, ...]:
        """Play an action; the transition, in the replay's order."""
        following, reward, over, too_long, info = self.env.step(action)
        transition = self.state, action, np.sign(float(reward)), following, over or info["lives"] < self.lives
        if over or too_long:
            following, info = self.env.reset()
        self.state, self.lives = following, info["lives"]
        return transition

    def remember(self, transition: tuple[Any, ...]) -> None:
        for ring, value in zip(self.replay, transition, strict=True):
            ring[self.agent_steps % len(ring)] = value
        self.agent_steps += 1

    def sample(self) -> tuple[np.ndarray, ...]:
        stored = min(self.agent_steps, self.settings.replay_steps)
        index = self.rng.integers(stored, size=self.settings.batch_size)
        return tuple(ring[index] for ring in self.replay)

    @torch.no_grad()
    def act(self, epsilon: float) -> int:
        """An ε-greedy action in the present state."""
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.actions))
        return int(self.net(torch.from_numpy(self.state).to(self.device)[None] / WHITE).argmax(1))

    def update(self) -> Tensor:
        s = self.settings
        batch = (torch.from_numpy(part).to(self.device) for part in self.sample())
        states, actions, rewards, next_states, terminals = batch
        with autocast(s.precision, self.device):
            with torch.no_grad():
                value = self.target(next_states / WHITE).max(1).values
            q = self.net(states / WHITE).gather(1, actions[:, None]).squeeze(1)
        loss = F.smooth_l1_loss(q.float(), rewards + s.discount * value.float() * ~terminals, reduction="sum")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % s.target_every == 0:
            self.target.load_state_dict(self.net.state_dict())
        return loss.detach()


def plain_dqn(settings: DqnSettings, device: torch.device) -> Steps:
    s, agent = settings, PlainDqn(settings, device)
    for _ in range(s.replay_start):
        agent.remember(agent.step(agent.act(1.0)))

    def play() -> None:
        for _ in range(AGENT_STEPS):
            agent.remember(agent.step(agent.act(s.epsilon_last)))
            if agent.agent_steps % s.update_every == 0:
                agent.update()

    def emulate() -> None:
        for _ in range(AGENT_STEPS):
            agent.step(agent.act(1.0))

    def act() -> None:
        for _ in range(AGENT_STEPS):
            agent.act(0.0)

    def learn() -> object:
        return [agent.update() for _ in range(AGENT_STEPS // s.update_every)][-1]

    return {COUNTED: agent.update, WHOLE: play, EMULATION: emulate, ACTING: act, LEARNING: learn}


def our_training(settings: Settings, device: torch.device) -> tuple[Any, Step]:
    """An experiment ready to train, on noise or, of DQN, with a replay full of random play; its training step."""
    if isinstance(settings, DqnSettings):
        agent = Dqn(settings, device)
        agent.held_out = agent.random_states(settings.init_examples)
        agent.initialize(agent.held_out)
        for _ in agent.play(settings.replay_start, learn=False):
            pass
        agent.agent_steps = settings.replay_start

        def update() -> object:
            agent.agent_steps += settings.update_every  # `play` counts by it which updates are due
            return agent.update()

        return agent, update
    experiment: Cifar | Cvae | Draw
    if isinstance(settings, CifarSettings):
        experiment = Cifar(settings, random_images(settings, device), device)
    elif isinstance(settings, DrawSettings):
        experiment = Draw(settings, random_pixels(settings), device)
    else:
        assert isinstance(settings, CvaeSettings)
        experiment = Cvae(settings, random_pixels(settings), device)
    if not isinstance(experiment, Draw):
        experiment.initialize(torch.arange(experiment.settings.init_examples, device=device))
    experiment.net.train()

    def step() -> object:
        index = torch.randperm(len(experiment.train_x), generator=experiment.order)[: settings.batch_size]
        return experiment.captured_step(index.to(device))[0]

    return experiment, step


def our_steps(settings: Settings, device: torch.device, parts: bool = True) -> Steps:
    """A step of the experiment; of DQN its own `play`, of AGENT_STEPS at a time, and its parts, unless left out."""
    experiment, step = our_training(settings, device)
    if not isinstance(settings, DqnSettings):
        return {WHOLE: step}
    rng, state = np.random.default_rng(0), experiment.held_out[:1].numpy()
    updates = AGENT_STEPS // settings.update_every

    def play() -> None:
        for _ in experiment.play(AGENT_STEPS, learn=True):
            pass

    def emulate() -> None:
        for _ in range(AGENT_STEPS):
            experiment.training.step(rng.integers(experiment.actions, size=1))

    def act() -> None:
        for _ in range(updates):
            experiment.captured_renewal()
            for _ in range(settings.update_every):
                experiment.act(state, 0.0, rng)

    def learn() -> object:
        return [step() for _ in range(updates)][-1]

    return {COUNTED: step, WHOLE: play, **({EMULATION: emulate, ACTING: act, LEARNING: learn} if parts else {})}


def ceilings(settings: Settings, device: torch.device, size: int, copied_bytes: int) -> Steps:
    """A product of size × size matrices in the settings' precision and, unless of no bytes, a copy."""
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    product = torch.empty_like(a)
    steps: Steps = {PRODUCT: lambda: torch.mm(a, b, out=product)}
    if copied_bytes:
        source = torch.ones(copied_bytes // 4, device=device)
        steps[COPY] = functools.partial(torch.empty_like(source).copy_, source)
    return steps


class Traffic(TorchDispatchMode):
    """Counts the `bytes` that torch's operations read and write, each by itself.

    An operation reads its tensors and writes its results; what it changes in place it reads and writes, unless it
    overwrites it. A view moves nothing, a broadcast dimension counts once, and of what it picks rows from an
    operation reads as much as it picks. What a kernel fetches twice, or finds in a cache, is not seen.
    """

    OVERWRITE = ("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_")
    PICK = ("index", "index_select", "gather")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results, schema = func(*args, **(kwargs or {})), func._schema
        name = schema.name.removeprefix("aten::")
        aliases = {argument.name: argument.alias_info for argument in schema.arguments}
        is_view = any(alias and not alias.is_write for alias in aliases.values())
        if is_view or name == "_unsafe_view" or name.startswith(("empty", "new_empty")):
            return results
        given = dict(zip(aliases, args, strict=False)) | (kwargs or {})
        written = {key: value for key, value in given.items() if (alias := aliases[key]) and alias.is_write}
        if name.endswith("_like") or name.startswith("new_"):
            given = {}  # they read its shape alone
        elif name in self.PICK:
            given["self"] = results
        elif name in self.OVERWRITE or "out" in written:
            given = {key: value for key, value in given.items() if key not in written}
        returned = results if len(schema.returns) > 1 else (results,)
        made = [value for value, kind in zip(returned, schema.returns, strict=False) if not kind.alias_info]
        self.bytes += sum(map(nbytes, tree_leaves((given, written, made))))
        return results


def nbytes(value: object) -> int:
    """Of a tensor's elements, those of a broadcast dimension counted once; 0 of anything else."""
    if not isinstance(value, Tensor):
        return 0
    sizes = (size for size, stride in zip(value.shape, value.stride(), strict=True) if stride)
    return math.prod(sizes) * value.itemsize


def work(step: Step) -> dict[str, int]:
    """FLOPs of a step's matrix products and convolutions, and bytes of all its operations."""
    in_place = {torch.ops.aten.addmm_: lambda _sum, a, b, **_: 2 * math.prod(a) * b[1]}  # not in torch's table
    with FlopCounterMode(display=False, custom_mapping=in_place) as flops, Traffic() as traffic:
        step()
    return {"flops": flops.get_total_flops(), "bytes": traffic.bytes}


def contend(
    pipe: Connection,
    make: Callable[[Any, torch.device], Steps],
    settings: Settings,
    device: torch.device,
    threads: int,
    source: Source | None,
) -> None:
    """What a contender's process does: count, warm up, say what it counted and can time.

    Then it times what the pipe names, for as long as it says, and tells its largest memory so far; until None.
    """
    torch.set_num_threads(threads)
    set_precision(settings.precision, device)
    if source is not None:
        use(source, tried=True)
    steps = make(settings, device)
    counted = steps.pop(COUNTED, steps.get(WHOLE))
    with torch.compiler.set_stance("force_eager"):  # compiled operations could not be counted
        needs = work(counted) if counted else {}
    for step in steps.values():
        for _ in range(WARM_UP_STEPS[device.type]):
            timed(step, device)
    pipe.send((list(steps), needs))
    while asked := pipe.recv():
        part, at_least = asked
        pipe.send((timed(steps[part], device, at_least), peak_memory_bytes(device)))


@dataclasses.dataclass
class Contender:
    """A contender's process, seen from the one that asks."""

    pipe: Connection
    parts: list[str]
    work: dict[str, int]  # of a step
    memory_bytes: int = 0

    def ask(self, part: str, at_least: float = 0.0) -> None:
        self.pipe.send((part, at_least))

    def answer(self) -> float:
        """Seconds a step, of what was asked for."""
        seconds, self.memory_bytes = self.pipe.recv()
        return float(seconds)


@contextlib.contextmanager
def contenders(
    entrants: Entrants, device: torch.device, threads: int, show: Callable[[str], None]
) -> Iterator[dict[str, Contender]]:
    """A process for each entrant, warm; they end with the context."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as ending:
        started = {}
        for name, (make, settings) in entrants.items():
            show(f"warming up {name}")
            pipe, there = context.Pipe()
            about_it = (settings, device, threads, about(settings.param).source)
            process = context.Process(target=contend, args=(there, make, *about_it), daemon=True)
            process.start()
            there.close()
            ending.callback(process.join)
            ending.callback(pipe.send, None)
            started[name] = Contender(pipe, *pipe.recv())
        yield started


def timed(step: Step, device: torch.device, at_least: float = 0.0) -> float:
    """Seconds of a step, the device's work included: on average over STEPS_TOGETHER, or as many as take `at_least`."""
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < at_least:
        for _ in range(STEPS_TOGETHER[device.type]):
            step()
        count += STEPS_TOGETHER[device.type]
        wait()
    return (time.perf_counter() - began) / count


def middle(values: np.ndarray) -> dict[str, float]:
    """Median with its 95 % interval (order statistics; the extremes where n is small)."""
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    low, high = (
        float(np.nan_to_num(x, nan=edge)) for x, edge in zip(interval, (values.min(), values.max()), strict=True)
    )
    return {"median": float(np.median(values)), "low": low, "high": high, "n": len(values)}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Of the paired ratios."""
    return middle(np.array(over) / np.array(under))


def check(experiment: str) -> None:
    """Raise UserError where the experiment's plain loop cannot be made."""
    if experiment != "dqn":
        return
    if importlib.util.find_spec("cv2") is None:
        raise UserError(
            "bench dqn: the plain loop's AtariPreprocessing needs OpenCV, which is not installed; "
            "run `pip install opencv-python-headless`"
        )
    check_rom(CHANGES["dqn"]["game"])


def measure(
    device: torch.device,
    precisions: list[str],
    rounds: int,
    settings: Settings,
    show: Callable[[str], None],
    params: Sequence[str] = PARAMS,
) -> dict[str, Any]:
    """Time `rounds` steps of each contender; `show` gets a word on where it is. Of DQN, the replay's memory too.

    The parameterizations `params`, and those of the settings and of BASE, are timed in the settings' precision, or the
    first (in the order of PRECISIONS) where that is not among these; that of the settings and the plain loop in each.
    """
    params = list(dict.fromkeys([BASE, *params, settings.param]))
    precisions = [precision for precision in PRECISIONS if precision in precisions]
    of_four = settings.precision if settings.precision in precisions else precisions[0]
    labels = {precision: "" if precision == "fp32" else f" {precision}" for precision in precisions}
    entrants: Entrants = {}
    for precision in precisions:
        for param in params if precision == of_four else (settings.param,):
            changed = dataclasses.replace(settings, param=param, precision=precision)
            make = functools.partial(our_steps, parts=param == settings.param)
            entrants[param + labels[precision]] = make, changed
        changed = dataclasses.replace(settings, precision=precision)
        entrants[PLAIN + labels[precision]] = plain_steps, changed
        copied = COPIED_BYTES if precision == precisions[0] else 0
        make = functools.partial(ceilings, size=PRODUCT_SIZE[device.type], copied_bytes=copied)
        entrants[f"{CEILINGS} {precision}"] = make, changed
    if isinstance(settings, DqnSettings):
        size, unit, steps_timed = settings.update_every, "agent steps", AGENT_STEPS // settings.update_every
        step = f"{size} agent steps and their update, or one part of that alone"
    else:
        size, unit, steps_timed, step = settings.batch_size, "images", 1, "an update"
    threads = torch.get_num_threads()
    with contenders(entrants, device, threads, show) as those:
        seconds: dict[tuple[str, str], list[float]] = {(name, part): [] for name in those for part in those[name].parts}
        order, entries = np.random.default_rng(0), list(seconds)
        for number in range(rounds):
            show(f"round {number + 1} of {rounds}")
            for k in order.permutation(len(entries)):
                name, part = entries[k]
                those[name].ask(part)
                seconds[name, part].append(those[name].answer())
    limits = {
        "flops_per_second": {
            precision: middle(
                2 * PRODUCT_SIZE[device.type] ** 3 / np.array(seconds[f"{CEILINGS} {precision}", PRODUCT])
            )
            for precision in precisions
        },
        "bytes_per_second": middle(2 * COPIED_BYTES / np.array(seconds[f"{CEILINGS} {precisions[0]}", COPY])),
    }
    times: dict[str, list[float]] = {}
    works: dict[str, dict[str, float]] = {}
    memory_bytes: dict[str, int] = {}
    for (name, part), values in seconds.items():
        if part in (PRODUCT, COPY):
            continue
        entry, contender = name if part == WHOLE else f"{name}, {part}", those[name]
        times[entry], memory_bytes[name] = [value / steps_timed for value in values], contender.memory_bytes
        if part == (LEARNING if isinstance(settings, DqnSettings) else WHOLE):
            works[entry] = against(limits, entrants[name][1].precision, contender.work, float(np.median(times[entry])))
    pairs = [(PLAIN, f"{settings.param}{label}") for label in labels.values()]
    ratios = {f"{a} / {b}": ratio(times[a], times[b]) for a, b in pairs if a in times and b in times}
    label = labels[of_four]
    for param in params[1:]:
        ratios[f"{param} / {BASE}"] = ratio(times[param + label], times[BASE + label])
    timed_one = settings.param + label
    rates = side_by_side(entrants[timed_one][1], device, memory_bytes[timed_one], show)
    figures = {
        "rounds": rounds,
        "precision": of_four,
        "batch_size": settings.batch_size,
        "step": step,
        "seconds": times,
        "unit": unit,
        "per_second": {entry: middle(size / np.array(values)) for entry, values in times.items()},
        "ratios": ratios,
        "ceilings": limits,
        "work": works,
        "memory": memory_bytes,
        "side_by_side": {count: steps_timed * rate for count, rate in rates.items()},
    }
    if isinstance(settings, DqnSettings):
        show("filling the whole replay")
        figures["replay_memory"] = memory(settings, device)
    return figures


def against(limits: dict[str, Any], precision: str, needs: dict[str, int], seconds: float) -> dict[str, float]:
    """What a step of so many seconds needs and achieves, and how far that is from the device's ceilings.

    Its floor is its FLOPs at the speed of the large product; the distance is how many times the floor it takes.
    """
    flops_limit = limits["flops_per_second"][precision]["median"]
    flops_per_second, bytes_per_second = needs["flops"] / seconds, needs["bytes"] / seconds
    return {
        **needs,
        "floor_seconds": needs["flops"] / flops_limit,
        "distance": flops_limit / flops_per_second,
        "flops_per_second": flops_per_second,
        "flops_share": flops_per_second / flops_limit,
        "bytes_per_second": bytes_per_second,
        "bytes_share": bytes_per_second / limits["bytes_per_second"]["median"],
    }


def side_by_side(
    settings: Settings, device: torch.device, memory_bytes: int, show: Callable[[str], None]
) -> dict[str, float]:
    """Steps a second of 1, 2, 4, … processes together, by their number, as far as processors and memory go.

    On a CPU they share the threads, on a GPU they compute at the same time where MPS is; `memory_bytes` is what one
    needs.
    """
    threads = torch.get_num_threads()
    most, free = threads, available_memory()
    if device.type == "cuda":
        most, free = MOST_ON_A_GPU, torch.cuda.mem_get_info(device)[0]
        memory_bytes += CONTEXT_BYTES
    rates: dict[str, float] = {}
    count = 1
    with mps([str(device)], show):
        while count <= most and (free is None or count * memory_bytes <= free):
            entrants: Entrants = {f"{k + 1} of {count} side by side": (our_steps, settings) for k in range(count)}
            with contenders(entrants, device, max(threads // count, 1), show) as those:
                show(f"{count} side by side")
                for contender in those.values():
                    contender.ask(WHOLE, SIDE_SECONDS)
                rates[str(count)] = sum(1 / contender.answer() for contender in those.values())
            count *= 2
    return rates


def memory(settings: DqnSettings, device: torch.device) -> dict[str, Any]:
    """The largest memory of a process that trains with the full replay, in bytes, or why that was left out."""
    needed, there = Replay.nbytes_needed(FULL_REPLAY) + SPARE_BYTES, available_memory()
    on = replay_device(FULL_REPLAY, device).type
    if on == "cpu" and there is not None and there < needed:
        why = f"{there / 1e9:.1f} GB of memory are free, it needs {needed / 1e9:.1f} GB"
        return {"replay_steps": FULL_REPLAY, "left_out": why}
    full = dataclasses.replace(settings, replay_steps=FULL_REPLAY, epochs=1, epoch_steps=AGENT_STEPS, test_steps=1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        peak = process.submit(train_with_full_replay, full, device).result()
    return {"replay_steps": FULL_REPLAY, "on": on, "peak_bytes": peak}


def train_with_full_replay(settings: DqnSettings, device: torch.device) -> int:
    """Fill the replay with one screen, train to the last epoch; the largest memory in bytes where the replay is."""
    experiment = Dqn(settings, device)
    screens, nothing = experiment.training.frames, np.zeros(settings.actors)
    for _ in range(experiment.replay.slots):
        experiment.replay.append(screens, nothing, nothing, nothing)
    experiment.agent_steps = settings.replay_start
    for _ in experiment.train():
        pass
    return peak_memory_bytes(experiment.replay.screens.device)


# ------------------------------------------------------------------------------- smoke

SMOKE_MODELS: tuple[tuple[str, dict[str, str]], ...] = (  # those that take longest to compile first
    ("cifar", {}),
    ("draw", {}),
    ("cvae", {"dataset": "mnist"}),
    ("cvae", {"dataset": "cifar10"}),
    ("dqn", {}),
)
SMOKE_TOGETHER = 10  # processes at most, for their memory
SMOKE_SECONDS = 300.0  # that a process may take
SMOKE_STEPS = 8  # plain ones, and as many of which PLAIN_CALLS are plain and the others a graph
SMOKE_LR = 0.01  # of the paper's: the first steps of some would otherwise throw rounding about
SMOKE_TOLERANCE = 0.2  # of what any parameter or running average has moved: a step that is wrong moves it otherwise


def smoke_settings(experiment: str, param: str, device: torch.device, **part: str) -> Settings:
    """The paper's settings in a GPU's precision; on a CPU those of scale quick."""
    if device.type == "cpu":
        small = {"replay_start": 200, "replay_steps": 200} if experiment == "dqn" else {}
        return scale_settings(experiment, "quick", param, **part, **small)
    changes = CHANGES.get(experiment, {}) | {"precision": SETTINGS[experiment].gpu_precision} | part
    settings = scale_settings(experiment, "paper", param, **changes)
    return dataclasses.replace(settings, lr=SMOKE_LR * settings.lr)


def recompiled(experiment: Any) -> Compilation:
    """The compilation once more, of the network as it trains: what was compiled must still serve, and be right."""
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            return judged(experiment.compilation.function, experiment.gradients, experiment.settings.precision)
    except RuntimeError as error:
        return Compilation(refused=f"the network trains otherwise ({' '.join(str(error).split())[:200]})")


def smoke_one(pipe: Connection, settings: Settings, device: torch.device, source: Source | None = None) -> None:
    """A process: tells whether captured steps are plain ones and compiled gradients right; then times when asked."""
    torch.set_num_threads(1)
    if source is not None:
        use(source, tried=True)
    set_precision(settings.precision, device)
    experiment, step = our_training(settings, device)
    compilation = getattr(experiment, "compilation", Compilation())
    if compilation.function:
        compilation = recompiled(experiment)
    captures = [one for one in vars(experiment).values() if isinstance(one, Captured)]
    start, captured = copy.deepcopy(experiment.state_dict()), any(one.captures for one in captures)
    moved = []
    for graphs in (False, captured):
        experiment.load_state_dict(copy.deepcopy(start))
        before = [value.clone() for value in experiment.net.state_dict().values()]
        for one in captures:
            one.captures = graphs
        torch.manual_seed(1)
        for _ in range(SMOKE_STEPS):
            step()
        after = experiment.net.state_dict().values()
        moved.append([new - old for new, old in zip(after, before, strict=True)])
    found: dict[str, Any] = {
        "captured": relative_error(moved[1], moved[0]) if captured else None,
        "compiled": compilation.error if compilation.function or compilation.refused else None,
        "refused": compilation.refused or ("" if captured else "nothing captured"),
    }
    pipe.send(found)
    pipe.recv()
    seconds = timed(step, device, at_least=0.5)
    pipe.send({"seconds": seconds, "memory_bytes": peak_memory_bytes(device)})


def smoke(
    experiments: Collection[str], device: torch.device, show: Callable[[str], None], params: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Of each model and parameterization: how far captured steps and compiled gradients are from the plain ones
    (relative; None: there are none), whether that is `good`, `seconds` a step and memory. A model of which nothing was
    captured is not good.

    As many processes side by side as there are processors; their steps are timed one after the other.
    """
    cases = [(name, part, param) for name, part in SMOKE_MODELS if name in experiments for param in params or PARAMS]
    rows: list[dict[str, Any]] = []
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in each of the processes
    context, together = multiprocessing.get_context("spawn"), min(cores(), SMOKE_TOGETHER)
    for first in range(0, len(cases), together):
        wave = []
        for name, part, param in cases[first : first + together]:
            pipe, there = context.Pipe()
            settings = smoke_settings(name, param, device, **part)
            process = context.Process(
                target=smoke_one, args=(there, settings, device, about(param).source), daemon=True
            )
            process.start()
            there.close()
            row: dict[str, Any] = {"model": " ".join([name, *part.values()]), "param": param}
            wave.append((row | {"precision": settings.precision}, pipe, process))
        for row, pipe, _ in wave:
            show(f"checking {row['model']} {row['param']}")
            row.update(answer(pipe))
        for row, pipe, process in wave:
            show(f"timing {row['model']} {row['param']}")
            with contextlib.suppress(OSError):
                pipe.send(None)
            row.update(answer(pipe))
            right = "seconds" in row and not row["refused"] and row["captured"] <= SMOKE_TOLERANCE
            rows.append(row | {"good": right})
            process.kill()
            process.join()
    return rows


def answer(pipe: Connection) -> dict[str, Any]:
    """What a process says; nothing where it has died, and said why on standard error, or is silent for too long."""
    try:
        said: dict[str, Any] = pipe.recv() if pipe.poll(SMOKE_SECONDS) else {}
    except (EOFError, OSError):
        said = {}
    return said


def smoke_table(rows: list[dict[str, Any]]) -> str:
    """The rows in lines of text."""

    def share(row: dict[str, Any], name: str) -> str:
        return "-" if row.get(name) is None else f"{row[name]:.1e}"

    lines = [
        "model         param    precision  captured  compiled  ms a step  memory  (differences from plain: relative)"
    ]
    for row in rows:
        cost = f"{1000 * row['seconds']:9.3f} {row['memory_bytes'] / 1e9:7.2f}" if "seconds" in row else f"{'died':>17}"
        verdict = "good" if row["good"] else f"BAD {row.get('refused', '')}"
        lines.append(
            f"{row['model']:<13} {row['param']:<8} {row['precision']:<9} {share(row, 'captured'):>9} "
            f"{share(row, 'compiled'):>9} {cost}  {verdict}"
        )
    return "\n".join(lines)


def store(
    results: Path, experiment: str, figures: dict[str, Any], device: torch.device, path: Path | None = None
) -> Path:
    """Put an experiment's figures, with their provenance, into the session's file; returns its path.

    path: that file; without one it is new, results/bench/<device>_<time>.json.
    """
    about = {"created": now(), **provenance(device)}
    name = about["device_name"]
    if path is None:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        at = datetime.datetime.now(datetime.UTC)
        path = results / "bench" / f"{slug}_{at:%Y-%m-%dT%H-%M-%S-%f}Z.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {"device_name": name}
    else:
        stored = read_json(path) or {}
    write_json(path, stored | {experiment: about | figures})
    return path


def table(figures: dict[str, Any]) -> str:
    """The figures in lines of text."""
    of = f"(median, 95 % interval, n = {figures['rounds']})"
    width = max(map(len, [*figures["seconds"], *figures["ratios"]]))
    lines = [f"median seconds a step ({figures['step']}), and {figures['unit']}/s {of}"]
    for name, seconds in figures["seconds"].items():
        rate = figures["per_second"][name]
        speed = f"{rate['median']:8.1f}  [{rate['low']:.1f}, {rate['high']:.1f}]"
        lines.append(f"  {name:<{width}} {float(np.median(seconds)):8.4f} s {speed} {figures['unit']}/s")
    lines.append(f"ratios of step times, paired within a round {of}")
    for name, r in figures["ratios"].items():
        lines.append(f"  {name:<{width}} {r['median']:.3f}  [{r['low']:.3f}, {r['high']:.3f}]")
    limits = figures["ceilings"]
    speeds = [f"{limit['median'] / 1e9:.4g} GFLOP/s {name}" for name, limit in limits["flops_per_second"].items()]
    speeds.append(f"{limits['bytes_per_second']['median'] / 1e9:.4g} GB/s")
    lines += [
        f"ceilings, by a large matrix product and a copy: {', '.join(speeds)}",
        "a step's floor (its FLOPs at the speed of that product), the median step over it, shares of the ceilings",
    ]
    for name, w in figures["work"].items():
        lines.append(
            f"  {name:<{width}} {w['floor_seconds']:8.4f} s {w['distance']:6.2f} × "
            f"{100 * w['flops_share']:5.1f} % of FLOP/s ({w['flops'] / 1e9:.4g} GFLOP) "
            f"{100 * w['bytes_share']:5.1f} % of bytes/s ({w['bytes'] / 1e9:.3g} GB)"
        )
    lines.append("largest memory of a process")
    lines += [f"  {name:<{width}} {peak / 1e9:.2f} GB" for name, peak in figures["memory"].items()]
    lines.append("steps a second of processes of wn side by side")
    lines += [f"  {count:<{width}} {rate:.4g}" for count, rate in figures["side_by_side"].items()]
    if "replay_memory" in figures:
        full = figures["replay_memory"]
        peak = f"{full['peak_bytes'] / 1e9:.2f} GB" if "peak_bytes" in full else f"left out: {full['left_out']}"
        lines.append(f"largest memory of training with a full replay of {full['replay_steps']} steps: {peak}")
    return "\n".join(lines)

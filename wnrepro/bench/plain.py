"""Plain PyTorch training loops, as most people write them, to compare the experiments' step times with."""

import contextlib
import copy
import importlib.util
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from wnrepro.bench.counting import WHOLE, Step, Steps, repeat
from wnrepro.bench.ours import ACTING, AGENT_STEPS, CHANGES, EMULATION, LEARNING
from wnrepro.data.images import random_images, random_pixels
from wnrepro.device import autocast
from wnrepro.errors import UserError
from wnrepro.experiments.atari import NO_OPS, STACK
from wnrepro.experiments.atari import SIZE as SCREEN_SIZE
from wnrepro.experiments.checks import check_rom
from wnrepro.experiments.cifar import CLASSES, DROPOUT, SLOPE
from wnrepro.experiments.dqn import DqnNet
from wnrepro.experiments.draw import BANK_TOLERANCE, SIZE, WINDOW
from wnrepro.experiments.vae import MnistVae
from wnrepro.parameterization import fold, layers
from wnrepro.settings import CifarSettings, CvaeSettings, DqnSettings, DrawSettings, Settings


def image_step(
    settings: Settings,
    device: torch.device,
    images: TensorDataset,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Step:
    """Return a training step on minibatches of images. It calls `before` and `after` around the optimizer's step."""

    def endless() -> Iterator[list[Tensor]]:
        loader = DataLoader(images, settings.batch_size, shuffle=True)
        while True:
            yield from loader

    batches = endless()

    def step() -> object:
        batch = [part.to(device) for part in next(batches)]
        with autocast(settings.precision, device):
            value = loss(*batch)
        optimizer.zero_grad()
        value.backward()
        before()
        optimizer.step()
        after()
        return value.detach()

    return step


def plain_cifar(settings: CifarSettings, device: torch.device) -> Steps:
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
    images = random_images(settings)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = net(x + settings.input_noise * torch.randn_like(x))
        return F.cross_entropy(logits.float(), y)

    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    step = image_step(settings, device, TensorDataset(images.train_x, images.train_y), loss, optimizer)
    return Steps({WHOLE: step}, step)


class Masked(nn.Module):
    """A torch parametrization that keeps the masked elements of a weight at 0."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def to_torch_layers(net: nn.Module) -> Any:
    """Copy the network to torch layers with torch's weight_norm, which normalizes at every use."""
    plain = fold(net)
    for name, ours in layers(net):
        layer = plain.get_submodule(name)
        weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
        if ours.mask is not None:
            register_parametrization(layer, "weight", Masked(ours.mask))
    return plain


def plain_cvae(settings: CvaeSettings, device: torch.device) -> Steps:
    torch.manual_seed(settings.seed)
    net = to_torch_layers(MnistVae(settings)).to(device)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn())

    def loss(x: Tensor) -> Tensor:
        log_p_x, kl = net(x)
        return kl.sum(1).mean() - log_p_x.mean()

    step = image_step(
        *(settings, device, TensorDataset(random_pixels(settings).train_x.float()), loss),
        optimizer=torch.optim.Adamax(net.parameters(), lr=settings.lr),
        after=lambda: average.update_parameters(net),
    )
    return Steps({WHOLE: step}, step)


class PlainAttention(nn.Module):
    """The attention window for h (B, units): filter banks F_y, F_x (B, count, SIZE) and γ (B, 1, 1)."""

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
        """Compute normalized Gaussians (B, count, SIZE) at the centres (B, 1, count)."""
        bank = torch.exp(-((self.pixels - centres.transpose(1, 2)) ** 2) / (2 * variance))
        return bank / (bank.sum(2, keepdim=True) + BANK_TOLERANCE)


class PlainDraw(nn.Module):
    """DRAW in torch layers, which normalize the weights at every time step; see `DrawNet`."""

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
        """Compute log p(x|z) (B,) and KL (T, B) for one sample z per image, drawn from noise (T, B, latents)."""
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


def plain_draw(settings: DrawSettings, device: torch.device) -> Steps:
    torch.manual_seed(settings.seed)
    net = PlainDraw(settings).to(device)

    def loss(x: Tensor) -> Tensor:
        log_p_x, kl = net(x)
        return kl.sum(0).mean() - log_p_x.mean()

    step = image_step(
        *(settings, device, TensorDataset(random_pixels(settings).train_x.float()), loss),
        optimizer=torch.optim.Adam(net.parameters(), lr=settings.lr),
        before=lambda: nn.utils.clip_grad_norm_(net.parameters(), settings.gradient_norm_max),
    )
    return Steps({WHOLE: step}, step)


class PlainDqn:
    """The agent of CleanRL's dqn_atari: gymnasium's wrappers, a replay of whole states, torch layers.

    A lost life is terminal, but the game continues; the option of `AtariPreprocessing` would begin a new game.
    """

    def __init__(self, settings: DqnSettings, device: torch.device) -> None:
        import gymnasium
        from ale_py import ALEInterface, LoggerMode
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        s = self.settings = settings
        self.device = device
        torch.manual_seed(s.seed)
        self.rng = np.random.default_rng(s.seed)
        ALEInterface.setLoggerMode(LoggerMode.Error)
        name = f"ALE/{s.game.title().replace('_', '')}-v5"
        with contextlib.redirect_stdout(io.StringIO()):  # it prints if ALE_ROMS_DIR is set
            game: Any = gymnasium.make(name, frameskip=1, repeat_action_probability=0.0, full_action_space=False)
            game = AtariPreprocessing(game, noop_max=NO_OPS, frame_skip=4, screen_size=SCREEN_SIZE, grayscale_obs=True)
            self.env = FrameStackObservation(game, STACK)
            self.state, info = self.env.reset(seed=s.seed)
        self.lives = info["lives"]
        self.actions = int(game.action_space.n)

        self.net = to_torch_layers(DqnNet(s, self.actions)).to(device)
        self.target = copy.deepcopy(self.net)
        self.optimizer = torch.optim.Adamax(self.net.parameters(), lr=s.lr, betas=(s.beta1, 0.999))

        shape, count = (STACK, SCREEN_SIZE, SCREEN_SIZE), s.replay_steps
        self.replay: tuple[np.ndarray, ...] = (
            np.zeros((count, *shape), np.uint8),
            np.zeros(count, np.int64),  # actions
            np.zeros(count, np.float32),  # rewards
            np.zeros((count, *shape), np.uint8),  # the next states
            np.zeros(count, np.bool_),  # terminal
        )
        self.agent_steps = self.updates = 0

    def step(self, action: int) -> tuple[Any, ...]:
        """Play an action and return the transition, in the order of the replay's arrays."""
        following, reward, over, too_long, info = self.env.step(action)
        transition = self.state, action, np.sign(float(reward)), following, over or info["lives"] < self.lives
        if over or too_long:
            following, info = self.env.reset()
        self.state, self.lives = following, info["lives"]
        return transition

    def play(self, epsilon: float) -> None:
        """Play an ε-greedy action and store the transition."""
        for ring, value in zip(self.replay, self.step(self.act(epsilon)), strict=True):
            ring[self.agent_steps % len(ring)] = value
        self.agent_steps += 1

    def sample(self) -> tuple[np.ndarray, ...]:
        stored = min(self.agent_steps, self.settings.replay_steps)
        index = self.rng.integers(stored, size=self.settings.batch_size)
        return tuple(ring[index] for ring in self.replay)

    @torch.no_grad()
    def act(self, epsilon: float) -> int:
        """Choose an ε-greedy action for the current state."""
        if self.rng.random() < epsilon:
            return int(self.rng.integers(self.actions))
        return int(self.net(torch.from_numpy(self.state).to(self.device)[None]).argmax(1))

    def update(self) -> Tensor:
        s = self.settings
        batch = (torch.from_numpy(part).to(self.device) for part in self.sample())
        states, actions, rewards, next_states, terminals = batch
        with autocast(s.precision, self.device):
            with torch.no_grad():
                value = self.target(next_states).max(1).values
            q = self.net(states).gather(1, actions[:, None]).squeeze(1)
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
        agent.play(1.0)

    def play() -> None:
        for _ in range(AGENT_STEPS):
            agent.play(s.epsilon_last)
            if agent.agent_steps % s.update_every == 0:
                agent.update()

    updates = AGENT_STEPS // s.update_every
    parts = {
        WHOLE: play,
        EMULATION: repeat(lambda: agent.step(agent.act(1.0)), AGENT_STEPS),
        ACTING: repeat(lambda: agent.act(0.0), AGENT_STEPS),
        LEARNING: repeat(agent.update, updates),
    }
    return Steps(parts, agent.update, updates)


PLAIN: dict[str, Callable[[Any, torch.device], Steps]] = {
    "cifar": plain_cifar,
    "cvae": plain_cvae,
    "draw": plain_draw,
    "dqn": plain_dqn,
}


def plain_steps(settings: Settings, device: torch.device) -> Steps:
    """Return a training step of the plain loop."""
    return PLAIN[settings.name](settings, device)


def check_plain(experiment: str) -> None:
    """Raise UserError if the experiment has no plain loop, or if a package for it is missing."""
    if experiment not in PLAIN:
        raise UserError(f"bench {experiment}: has no plain loop to compare with; use one of {', '.join(PLAIN)}")
    if experiment == "dqn":
        if importlib.util.find_spec("cv2") is None:
            raise UserError(
                "bench dqn: the plain loop's AtariPreprocessing needs OpenCV, which is not installed; "
                "run `pip install opencv-python-headless`"
            )
        check_rom(CHANGES["dqn"]["game"])

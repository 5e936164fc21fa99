"""The variational auto-encoders of MNIST and CIFAR-10 (§5.2): distributions, autoregressive steps, models.

Where the paper is silent: openai/iaf, the "manuscript in preparation" that it names.
Shapes: B examples, L latent units (MNIST) or maps (CIFAR-10), H×W pixels. All terms of the bound are in nats.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from wnrepro.parameterization import Conv2d, ConvTranspose2d, Linear, MaskedConv2d
from wnrepro.parameterization.layer import V_STD
from wnrepro.settings import CvaeSettings

RESIDUAL = 0.1  # of a residual unit's branch, authors' code
AUTOREGRESSIVE = 0.1  # of the autoregressive steps' m and s, authors' code
STATISTICS = 0.1  # of the means and log standard deviations, see Deviations
HIDDEN_LAYERS = 2  # of an autoregressive network
PIXEL_VALUES = 256


# ------------------------------------------------------------------------------- distributions


def log_normal(z: Tensor, mean: Tensor | float = 0.0, log_std: Tensor | float = 0.0) -> Tensor:
    """Elementwise log N(z; mean, exp(log_std)²)."""
    precision = torch.exp(-log_std) if isinstance(log_std, Tensor) else math.exp(-log_std)
    return -0.5 * (math.log(2 * math.pi) + ((z - mean) * precision).square()) - log_std


def sample_normal(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ N(mean, exp(log_std)²) and its elementwise log density."""
    noise = torch.randn_like(mean)
    return mean + torch.exp(log_std) * noise, -0.5 * (math.log(2 * math.pi) + noise.square()) - log_std


def log_discretized_logistic(
    x: Shaped[Tensor, "*#pixels"], mean: Float[Tensor, "*#pixels"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, "..."]:
    """Elementwise log probability of the pixel values x in 0..255 for a logistic distribution in 0..1.

    Value k stands for the interval from k/256 to (k+1)/256; 0 and 255 have the tails too, so that the probabilities
    sum to 1. σ(b) − σ(a) = σ(b)·σ(−a)·(1 − exp(a − b)) keeps its digits where both are near 0 or 1.
    """
    scale = torch.exp(log_scale)
    low = (x / PIXEL_VALUES - mean) / scale
    width = 1 / (PIXEL_VALUES * scale)
    first, last = x == 0, x == PIXEL_VALUES - 1
    below_top = F.logsigmoid(low + width).masked_fill(last, 0)
    above_bottom = F.logsigmoid(-low).masked_fill(first, 0)
    return below_top + above_bottom + torch.log(-torch.expm1(-width)).masked_fill(first | last, 0)


# ------------------------------------------------------------------------------- autoregressive steps


def ranks(units: int, latents: int) -> Int[Tensor, " units"]:
    """The ranks 0..latents − 1, spread evenly over the units."""
    return torch.arange(units) * latents // units


class Made(nn.Module):
    """Masked autoencoder: m and s of an inverse autoregressive step, from z and a context.

    m_i and s_i see z_j only for j before i (after it, where `reverse`), and all of the context. A hidden unit of
    rank r sees the z before r, so that every unit sees at least the context and no row of weights is empty.
    """

    def __init__(self, latents: int, context: int, width: int, param: str, reverse: bool, **options: Any) -> None:
        super().__init__()
        order = torch.arange(latents).flip(0) if reverse else torch.arange(latents)
        hidden = ranks(width, latents)
        sees_z = (order < hidden[:, None]).float()
        sees_hidden = (hidden <= hidden[:, None]).float()
        out = (hidden <= order[:, None]).float().repeat(2, 1)
        first = torch.cat([sees_z, torch.ones(width, context)], 1)
        self.layers = nn.ModuleList([Linear(latents + context, width, param, mask=first, **options)])
        self.layers += [Linear(width, width, param, mask=sees_hidden, **options) for _ in range(HIDDEN_LAYERS - 1)]
        self.out = Linear(width, 2 * latents, param, mask=out, **options)

    def forward(
        self, z: Float[Tensor, "B L"], context: Float[Tensor, "B context"]
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        h = torch.cat([z, context], 1)
        for layer in self.layers:
            h = F.elu(layer(h))
        m, s = (AUTOREGRESSIVE * self.out(h)).chunk(2, 1)
        return m, s


def causal_mask(
    unit_ranks: Int[Tensor, " units"], input_ranks: Int[Tensor, " inputs"], kernel: int, strict: bool
) -> Float[Tensor, "units inputs kernel kernel"]:
    """The mask by which a map sees the earlier pixels in raster order of every input map, and of the same pixel the
    maps of lower rank; of the same rank too unless `strict`.
    """
    mask = torch.ones(len(unit_ranks), len(input_ranks), kernel, kernel)
    middle = kernel // 2
    mask[:, :, middle + 1 :] = 0
    mask[:, :, middle, middle + 1 :] = 0
    before = input_ranks < unit_ranks[:, None] if strict else input_ranks <= unit_ranks[:, None]
    mask[:, :, middle, middle] = before.float()
    return mask


class ConvMade(nn.Module):
    """Masked autoencoder of maps: autoregressive over pixels in raster order, and over maps within a pixel.

    The context is added to the first layer's output, as in the authors' code.
    """

    def __init__(self, latents: int, width: int, param: str, **options: Any) -> None:
        super().__init__()
        z, hidden = torch.arange(latents), ranks(width, latents)
        masks = [causal_mask(hidden, z, 3, strict=False)]
        masks += [causal_mask(hidden, hidden, 3, strict=False)] * (HIDDEN_LAYERS - 1)
        out = causal_mask(z.repeat(2), hidden, 3, strict=True)
        self.layers = nn.ModuleList(
            MaskedConv2d(mask.shape[1], width, 3, param, mask, padding=1, **options) for mask in masks
        )
        self.out = MaskedConv2d(width, 2 * latents, 3, param, out, padding=1, **options)

    def forward(
        self, z: Float[Tensor, "B L H W"], context: Float[Tensor, "B width H W"]
    ) -> tuple[Float[Tensor, "B L H W"], Float[Tensor, "B L H W"]]:
        first, *rest = self.layers
        h = F.elu(first(z) + context)
        for layer in rest:
            h = F.elu(layer(h))
        m, s = (AUTOREGRESSIVE * self.out(h)).chunk(2, 1)
        return m, s


def autoregress(steps: Iterable[nn.Module], z: Tensor, log_q: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Apply z ← (z − m)/exp(s) step by step; log q grows by s, each latent's part of the log-determinant."""
    for step in steps:
        m, s = step(z, context)
        z, log_q = (z - m) * torch.exp(-s), log_q + s
    return z, log_q


# ------------------------------------------------------------------------------- models


class Residual(nn.Module):
    """x + 0.1·conv(ELU(conv(ELU(x)))) by 3×3 convolutions."""

    def __init__(self, maps: int, param: str, **options: Any) -> None:
        super().__init__()
        self.conv1 = Conv2d(maps, maps, 3, param, padding=1, **options)
        self.conv2 = Conv2d(maps, maps, 3, param, padding=1, **options)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        branch: Tensor = self.conv2(F.elu(self.conv1(F.elu(x)), inplace=True))
        return torch.add(x, branch, alpha=RESIDUAL)


class MnistVae(nn.Module):
    """MNIST's model: images of 0 and 1 to log p(x|z) and KL of one sample z each.

    The KL is log q(z|x) − log p(z) of the sample, by latent unit; its mean over samples is the divergence.
    """

    shape = (1, 28, 28)
    guess_nats = 784 * math.log(2)

    def __init__(self, settings: CvaeSettings) -> None:
        super().__init__()
        s, param = settings, settings.param
        options: dict[str, Any] = {"g_exp": s.g_exp, "init": s.init}
        assert s.hidden is not None
        self.latents = s.latents

        def units(sequence: int) -> list[nn.Module]:
            return [Residual(s.maps[sequence], param, **options) for _ in range(s.depths[sequence])]

        top = s.maps[2] * 7 * 7
        self.encoder = nn.Sequential(
            Conv2d(1, s.maps[0], 3, param, padding=1, **options),
            *units(0),
            nn.ELU(inplace=True),
            Conv2d(s.maps[0], s.maps[1], 3, param, stride=2, padding=1, **options),
            *units(1),
            nn.ELU(inplace=True),
            Conv2d(s.maps[1], s.maps[2], 3, param, stride=2, padding=1, **options),
            *units(2),
            nn.ELU(inplace=True),
            nn.Flatten(),
            Linear(top, s.hidden, param, **options),
            nn.ELU(inplace=True),
        )
        self.statistics = Linear(s.hidden, 2 * s.latents, param, **options)
        self.steps = nn.ModuleList(
            Made(s.latents, s.hidden, s.iaf_width, param, reverse=k % 2 == 1, **options) for k in range(s.iaf_depth)
        )
        upsampling: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1, **options}
        self.decoder = nn.Sequential(
            Linear(s.latents, s.hidden, param, **options),
            nn.ELU(inplace=True),
            Linear(s.hidden, top, param, **options),
            nn.Unflatten(1, (s.maps[2], 7, 7)),
            *units(2),
            nn.ELU(inplace=True),
            ConvTranspose2d(s.maps[2], s.maps[1], 3, param, **upsampling),
            *units(1),
            nn.ELU(inplace=True),
            ConvTranspose2d(s.maps[1], s.maps[0], 3, param, **upsampling),
            *units(0),
            nn.ELU(inplace=True),
            Conv2d(s.maps[0], 1, 3, param, padding=1, **options),
        )

    def encode(self, x: Float[Tensor, "B 1 28 28"]) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """z of the posterior of x, and its log q(z|x) by unit."""
        context = self.encoder(x)
        mean, log_std = (STATISTICS * self.statistics(context)).float().chunk(2, 1)
        return autoregress(self.steps, *sample_normal(mean, log_std), context)

    def forward(self, x: Shaped[Tensor, "B 1 28 28"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B L"]]:
        x = x.to(torch.float32, memory_format=torch.channels_last)  # whose strides one map alone leaves open
        z, log_q = self.encode(x)
        logits = self.decoder(z).float()
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        return log_p_x, log_q - log_normal(z)

    def sample(self, count: int) -> Float[Tensor, "count 1 28 28"]:
        """The pixels' probabilities for z of the prior."""
        z = torch.randn(count, self.latents, device=next(self.parameters()).device)
        return torch.sigmoid(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The pixels' probabilities for one z of the posterior of each x."""
        return torch.sigmoid(self.decoder(self.encode(x.float())[0]))

    def show(self, x: Tensor) -> Tensor:
        """The images with values in 0..1."""
        return x.float()


class LadderUnit(nn.Module):
    """One residual unit with stochastic maps: a bottom-up and a top-down part (authors' `down_iaf2_nl`).

    Its posterior's mean and log standard deviation are the sums of both parts'. `halve`: the resolution is halved on
    the way up and doubled on the way down.
    """

    def __init__(self, settings: CvaeSettings, halve: bool, **options: Any) -> None:
        super().__init__()
        s, param, n, latents = settings, settings.param, settings.maps[0], settings.latents
        self.halve = halve
        context = s.iaf_width if s.iaf_depth else 0
        self.up_sizes = [n, latents, latents, context]
        self.down_sizes = [n, latents, latents, latents, latents, context]
        self.up1 = Conv2d(n, sum(self.up_sizes), 3, param, stride=2 if halve else 1, padding=1, **options)
        self.up2 = Conv2d(n, n, 3, param, padding=1, **options)
        self.down1 = Conv2d(n, sum(self.down_sizes), 3, param, padding=1, **options)
        self.down2 = Conv2d(n + latents, 4 * n if halve else n, 3, param, padding=1, **options)
        self.steps = nn.ModuleList(ConvMade(latents, s.iaf_width, param, **options) for _ in range(s.iaf_depth))

    def up(self, h: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The maps for the unit above, and this unit's part of the posterior: mean, log std, context."""
        own, mean, log_std, context = self.up1(F.elu(h)).split(self.up_sizes, 1)
        if self.halve:
            h = F.avg_pool2d(h, 2)
        return h + RESIDUAL * self.up2(F.elu(own)), (STATISTICS * mean, STATISTICS * log_std, context)

    def down(self, h: Tensor, posterior: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Tensor, Tensor | None]:
        """The maps for the unit below, and the KL (B, L) summed over pixels.

        Without a bottom-up part z is drawn from the prior, and there is no KL.
        """
        own, prior_mean, prior_log_std, mean, log_std, context = self.down1(F.elu(h)).split(self.down_sizes, 1)
        prior = STATISTICS * prior_mean, STATISTICS * prior_log_std
        kl = None
        if posterior is None:
            z, _ = sample_normal(*prior)
        else:
            up_mean, up_log_std, up_context = posterior
            z, log_q = sample_normal(up_mean + STATISTICS * mean, up_log_std + STATISTICS * log_std)
            z, log_q = autoregress(self.steps, z, log_q, up_context + context)
            kl = (log_q - log_normal(z, *prior)).float().sum((2, 3))
        branch = self.down2(F.elu(torch.cat([own, z], 1)))
        if self.halve:
            h, branch = F.interpolate(h, scale_factor=2), F.pixel_shuffle(branch, 2)
        return h + RESIDUAL * branch, kl


class LadderVae(nn.Module):
    """CIFAR-10's model: images of 0..255 to log p(x|z) and KL of one sample z each.

    A ladder of residual units with several stochastic layers (openai/iaf, `cvae1`).
    """

    shape = (3, 32, 32)
    guess_nats = 3072 * math.log(PIXEL_VALUES)

    def __init__(self, settings: CvaeSettings) -> None:
        super().__init__()
        s, param, n = settings, settings.param, settings.maps[0]
        options: dict[str, Any] = {"g_exp": s.g_exp, "init": s.init}
        self.first = Conv2d(3, n, 5, param, stride=2, padding=2, **options)
        self.units: Any = nn.ModuleList(
            LadderUnit(s, halve=level > 0 and number == 0, **options)
            for level, depth in enumerate(s.depths)
            for number in range(depth)
        )
        self.last = Conv2d(n, 3 * 4, 5, param, padding=2, **options)
        self.top = nn.Parameter(torch.randn(n) * V_STD)  # what the uppermost unit starts from, at every pixel
        self.top_size = 16 >> (len(s.depths) - 1)
        self.log_scale = nn.Parameter(torch.zeros(()))  # of the logistic distribution, one for all

    def encode(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """From the bottom up: each unit's part of its posterior."""
        posteriors = []
        h = self.first(self.show(x) - 0.5)
        for unit in self.units:
            h, posterior = unit.up(h)
            posteriors.append(posterior)
        return posteriors

    def forward(self, x: Shaped[Tensor, "B 3 32 32"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B units_times_L"]]:
        mean, kl = self.descend(len(x), self.encode(x))
        log_p_x = log_discretized_logistic(x.float(), mean, self.log_scale).sum((1, 2, 3))
        return log_p_x, torch.cat(kl, 1)

    def descend(self, count: int, posteriors: list[Any]) -> tuple[Tensor, list[Any]]:
        """From the top down: the pixels' means (count, 3, 32, 32) in 0..1, and the units' KL from the top on."""
        h = self.top.view(1, -1, 1, 1).expand(count, -1, self.top_size, self.top_size)
        kls = []
        for unit, posterior in zip(reversed(self.units), reversed(posteriors), strict=True):
            h, kl = unit.down(h, posterior)
            kls.append(kl)
        mean = RESIDUAL * F.pixel_shuffle(self.last(F.elu(h)), 2).float() + 0.5
        return mean.clamp(0.5 / PIXEL_VALUES, 1 - 0.5 / PIXEL_VALUES), kls

    def sample(self, count: int) -> Float[Tensor, "count 3 32 32"]:
        """The pixels' means in 0..1 for z of the prior."""
        return self.descend(count, [None] * len(self.units))[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The pixels' means in 0..1 for one z of the posterior of each x."""
        return self.descend(len(x), self.encode(x))[0]

    def show(self, x: Tensor) -> Tensor:
        """The images with values in 0..1."""
        return (x + 0.5) / PIXEL_VALUES

"""The variational autoencoders of MNIST and CIFAR-10 (§5.2): distributions, autoregressive steps, models.

Details not in the paper follow openai/iaf, the code of its "manuscript in preparation".
Shapes: B examples, L latent units (MNIST) or maps (CIFAR-10), H×W pixels. All terms of the bound are in nats.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from wnrepro.device import image_format
from wnrepro.parameterization import Conv2d, ConvTranspose2d, Linear, MaskedConv2d, fold
from wnrepro.parameterization.layer import V_STD
from wnrepro.settings import CvaeSettings

RESIDUAL = 0.1  # factor of a residual unit's branch, authors' code
AUTOREGRESSIVE = 0.1  # factor of the autoregressive steps' m and s, authors' code
STATISTICS = 0.1  # factor of the means and log standard deviations, see Deviations
HIDDEN_LAYERS = 2  # hidden layers of an autoregressive network
PIXEL_VALUES = 256


# ------------------------------------------------------------------------------- distributions


def log_normal(
    z: Float[Tensor, "*B"], mean: Float[Tensor, "*B"] | float = 0.0, log_std: Float[Tensor, "*B"] | float = 0.0
) -> Float[Tensor, "*B"]:
    """Compute log N(z; mean, exp(log_std)²) by element."""
    precision = torch.exp(-log_std) if isinstance(log_std, Tensor) else math.exp(-log_std)
    return -0.5 * (math.log(2 * math.pi) + ((z - mean) * precision).square()) - log_std


def sample_normal(
    mean: Float[Tensor, "*B"], log_std: Float[Tensor, "*B"], noise: Float[Tensor, "*B"] | None = None
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Sample z ~ N(mean, exp(log_std)²), and return it and its log density by element. noise: N(0, 1), or drawn."""
    noise = torch.randn_like(mean) if noise is None else noise
    return mean + torch.exp(log_std) * noise, -0.5 * (math.log(2 * math.pi) + noise.square()) - log_std


def log_discretized_logistic(
    x: Shaped[Tensor, "*#pixels"], mean: Float[Tensor, "*#pixels"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, "..."]:
    """Compute the log probability of pixel values x in 0..255, by element, for a logistic distribution in 0..1.

    Value k is the interval from k/256 to (k+1)/256. 0 and 255 include the tails, so that the probabilities sum to 1.
    σ(b) − σ(a) = σ(b)·σ(−a)·(1 − exp(a − b)) stays accurate if both are near 0 or 1.
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
    """Assign the ranks 0..latents − 1 evenly to the units."""
    return torch.arange(units) * latents // units


class Made(nn.Module):
    """Masked autoencoder: m and s of an inverse autoregressive step, from z and a context.

    m_i and s_i depend on the context and on z_j for j < i (with `reverse`, j > i). A hidden unit of rank r depends on
    the context and on z before r. Every unit depends at least on the context, so that no row of weights is empty.
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
        h = torch.cat([z.to(context.dtype), context], 1)
        for layer in self.layers:
            h = F.elu(layer(h))
        m, s = (AUTOREGRESSIVE * self.out(h).to(z.dtype)).chunk(2, 1)
        return m, s


def causal_mask(
    unit_ranks: Int[Tensor, " units"], input_ranks: Int[Tensor, " inputs"], kernel: int, strict: bool
) -> Float[Tensor, "units inputs kernel kernel"]:
    """Make the mask of a convolution that is causal in raster order and, within a pixel, in rank.

    A map depends on the earlier pixels of all input maps, and at the same pixel on input maps of lower or, unless
    `strict`, equal rank.
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

    The context is added to the output of the first layer (authors' code).
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


def autoregress(
    steps: Iterable[nn.Module], z: Float[Tensor, "*B"], log_q: Float[Tensor, "*B"], context: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Apply z ← (z − m)/exp(s) for each step, and add s, the log-determinant by latent, to log q."""
    for step in steps:
        m, s = step(z, context)
        z, log_q = (z - m) * torch.exp(-s), log_q + s
    return z, log_q


# ------------------------------------------------------------------------------- models


class Residual(nn.Module):
    """Residual unit x + 0.1·conv(ELU(conv(ELU(x)))) with 3×3 convolutions."""

    def __init__(self, maps: int, param: str, **options: Any) -> None:
        super().__init__()
        self.conv1 = Conv2d(maps, maps, 3, param, padding=1, **options)
        self.conv2 = Conv2d(maps, maps, 3, param, padding=1, **options)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        branch: Tensor = self.conv2(F.elu(self.conv1(F.elu(x)), inplace=True))
        return torch.add(x, branch, alpha=RESIDUAL)


class MnistVae(nn.Module):
    """MNIST's model: from images of 0 and 1 to log p(x|z) and KL for one sample z per image.

    The KL is log q(z|x) − log p(z) of the sample, by latent unit; its expectation is the divergence.
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

    def encode(self, x: Float[Tensor, "B 1 28 28"], noise: Tensor) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
        """Sample z from the posterior of x, and return it and log q(z|x) by unit. noise: `noise` of x."""
        context = self.encoder(x)
        mean, log_std = (STATISTICS * self.statistics(context)).float().chunk(2, 1)
        return autoregress(self.steps, *sample_normal(mean, log_std, noise), context)

    def noise(self, x: Tensor) -> Float[Tensor, "B L"]:
        """Draw the noise of z for images x, outside `terms`, so that compiled terms have the same."""
        return torch.randn(len(x), self.latents, device=x.device)

    def forward(
        self, x: Shaped[Tensor, "B 1 28 28"], terms: Callable[..., Any] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B L"]]:
        """Compute log p(x|z) and KL. terms: the compiled method `terms`, for training."""
        x = x.to(torch.float32, memory_format=image_format(x.device))  # one map does not determine the strides
        log_p_x, kl = (terms or self.terms)(x, self.noise(x))
        return log_p_x, kl

    def terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log p(x|z) and KL by this noise."""
        z, log_q = self.encode(x, noise)
        logits = self.decoder(z).float()
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        return log_p_x, log_q - log_normal(z)

    def sample(self, count: int) -> Float[Tensor, "count 1 28 28"]:
        """Compute the pixels' probabilities for z from the prior."""
        return self.generate(torch.randn(count, self.latents, device=next(self.parameters()).device))

    @property
    def noise_size(self) -> int:
        """The number of N(0, 1) values from which an image is generated."""
        return self.latents

    def generate(self, z: Float[Tensor, "B L"]) -> Float[Tensor, "B 1 28 28"]:
        """Compute the pixels' probabilities for these z."""
        return torch.sigmoid(self.decoder(z))

    def generator(self) -> nn.Module:
        """Return `generate` as plain layers."""
        return nn.Sequential(fold(self.decoder), nn.Sigmoid())

    def reconstruct(self, x: Shaped[Tensor, "B 1 28 28"]) -> Float[Tensor, "B 1 28 28"]:
        """Compute the pixels' probabilities for one z from the posterior of each x."""
        return torch.sigmoid(self.decoder(self.encode(x.float(), self.noise(x))[0]))

    def show(self, x: Tensor) -> Tensor:
        """Convert images to values in 0..1."""
        return x.float()


class LadderUnit(nn.Module):
    """Residual unit with stochastic maps, a bottom-up part and a top-down part (authors' `down_iaf2_nl`).

    The posterior's mean and log standard deviation are sums over both parts. `halve`: halve the resolution in the
    bottom-up part and double it in the top-down part.
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

    def up(self, h: Float[Tensor, "B C H W"]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Compute the maps for the unit above, and the bottom-up part of the posterior: mean, log std, context."""
        own, mean, log_std, context = self.up1(F.elu(h)).split(self.up_sizes, 1)
        if self.halve:
            h = F.avg_pool2d(h, 2)
        return h + RESIDUAL * self.up2(F.elu(own)), (STATISTICS * mean, STATISTICS * log_std, context)

    def down(
        self, h: Tensor, posterior: tuple[Tensor, Tensor, Tensor] | None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the maps for the unit below, and the KL (B, L) summed over pixels.

        Without a posterior, z is drawn from the prior, by the noise if there is any, and there is no KL.
        """
        own, prior_mean, prior_log_std, mean, log_std, context = self.down1(F.elu(h)).split(self.down_sizes, 1)
        prior = STATISTICS * prior_mean, STATISTICS * prior_log_std
        kl = None
        if noise is not None:
            z = prior[0] + torch.exp(prior[1]) * noise
        elif posterior is None:
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
    """CIFAR-10's model: from images in 0..255 to log p(x|z) and KL for one sample z per image.

    It is a ladder of residual units with several stochastic layers (openai/iaf, `cvae1`).
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
        self.top = nn.Parameter(torch.randn(n) * V_STD)  # input of the uppermost unit at every pixel
        self.top_size = 16 >> (len(s.depths) - 1)
        self.log_scale = nn.Parameter(torch.zeros(()))  # of the logistic distribution of all pixels

    def encode(self, x: Shaped[Tensor, "B 3 32 32"]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Run the bottom-up pass, and return each unit's part of its posterior."""
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

    def descend(
        self, count: int, posteriors: list[Any], noise: Sequence[Tensor | None] = ()
    ) -> tuple[Tensor, list[Any]]:
        """Run the top-down pass; return the pixels' means (count, 3, 32, 32) in 0..1 and the units' KL, top first."""
        h = self.top.view(1, -1, 1, 1).expand(count, -1, self.top_size, self.top_size)
        kls = []
        noise = noise or [None] * len(posteriors)  # top first
        for unit, posterior, of_unit in zip(reversed(self.units), reversed(posteriors), noise, strict=True):
            h, kl = unit.down(h, posterior, of_unit)
            kls.append(kl)
        mean = RESIDUAL * F.pixel_shuffle(self.last(F.elu(h)), 2).float() + 0.5
        return mean.clamp(0.5 / PIXEL_VALUES, 1 - 0.5 / PIXEL_VALUES), kls

    def sample(self, count: int) -> Float[Tensor, "count 3 32 32"]:
        """Compute the pixels' means in 0..1 for z from the prior."""
        return self.descend(count, [None] * len(self.units))[0]

    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Return the shapes (L, H, W) of the units' latent maps, top first."""
        shapes, size = [], self.top_size
        for unit in reversed(self.units):
            shapes.append((unit.down_sizes[1], size, size))
            size *= 2 if unit.halve else 1
        return shapes

    @property
    def noise_size(self) -> int:
        """The number of N(0, 1) values from which an image is generated."""
        return sum(map(math.prod, self.noise_shapes()))

    def generate(self, noise: Float[Tensor, "B N"]) -> Float[Tensor, "B 3 32 32"]:
        """Compute the pixels' means in 0..1 for z from the prior, by this noise."""
        shapes = self.noise_shapes()
        parts = noise.split([*map(math.prod, shapes)], 1)
        maps = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return self.descend(noise.shape[0], [None] * len(self.units), maps)[0]

    def generator(self) -> nn.Module:
        """Return `generate` as plain layers."""
        return LadderGenerator(self)

    def reconstruct(self, x: Shaped[Tensor, "B 3 32 32"]) -> Float[Tensor, "B 3 32 32"]:
        """Compute the pixels' means in 0..1 for one z from the posterior of each x."""
        return self.descend(len(x), self.encode(x))[0]

    def show(self, x: Tensor) -> Tensor:
        """Convert images to values in 0..1."""
        return (x + 0.5) / PIXEL_VALUES


class LadderGenerator(nn.Module):
    """`LadderVae.generate` as plain layers, without those that only encode."""

    def __init__(self, net: LadderVae) -> None:
        super().__init__()
        plain: Any = fold(net)
        del plain.first, plain.log_scale
        for unit in plain.units:
            del unit.up1, unit.up2, unit.steps
        self.net = plain

    def forward(self, noise: Float[Tensor, "B N"]) -> Float[Tensor, "B 3 32 32"]:
        images: Tensor = self.net.generate(noise)
        return images

"""Every experiment's training steps, in float64, against steps written from the formulas alone.

The formulas are those of the paper (eq. 2, 4 to 6), of the codes it names and of Gregor et al. (2015). Of the project
the reference takes its tensors' names and shapes, no more: it draws the start anew from the seed, and differentiates a
separate forward pass by autograd. Compared are the init pass and, at each of two steps, the loss, every gradient and
then every parameter, frozen scale and running average. B examples, C units of a layer.
"""

import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import make_images, make_pixels, tiny_cvae, tiny_dqn, tiny_draw
from layer_factories import adam, adamax
from torch import Tensor, nn

from wnrepro.experiments import dqn, draw
from wnrepro.experiments.cifar import Cifar
from wnrepro.experiments.cvae import Cvae
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.draw import Draw
from wnrepro.settings import CifarSettings

CPU = torch.device("cpu")
NORMALS = [{"param": "normal", "init": init} for init in ("authors", "folded")]
OTHERS = [{"param": param} for param in ("bn", "wn", "wn+mobn")]
MORE = {"param": "wn+mobn", "g_exp": 3.0, "v_norm_max": 0.25}  # §6.1, §6.2


def each(*cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("changes", cases, ids=lambda case: " ".join(map(str, case.values())))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    return x * (torch.rand(x.shape) < 1 - p) / (1 - p) if training else x


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The experiments' casts go to float64 too; noise and masks are drawn in the order of their indices."""
    importlib.import_module("torch._dynamo")  # which keeps tables of torch's own functions, before they are patched
    to, wider = torch.Tensor.to, lambda kind: torch.float64 if kind is torch.float32 else kind
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: to(x, *map(wider, a), **k))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape))
    monkeypatch.setattr(F, "dropout", dropout)  # or masks by themselves:
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda x, p: x.copy_(torch.rand(x.shape) < p))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded(seed: int, function: Callable[..., Any], *arguments: Any) -> Any:
    torch.manual_seed(seed)
    return function(*arguments)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], least: float = 0.0) -> None:
    """Equal to 1e-9 of each tensor's largest element, which is at least so large."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        largest = expected.abs().max().item()
        assert ours[name].shape == expected.shape and ours[name].dtype == torch.float64 and largest >= least, name
        assert (ours[name] - expected).abs().max().item() <= 1e-9 * largest + 1e-13, name


class Reference:
    """A net's tensors by their names in the project, what the parameterizations make of them, and their updates."""

    def __init__(self, net: nn.Module, settings: Any, update: Callable[..., Tensor], std: float = 0.05) -> None:
        self.s, self.update, self.step, self.training, self.initializing = settings, update, 0, True, True
        self.frozen = settings.param == "normal" and getattr(settings, "init", "folded") == "authors"
        self.values: dict[str, Tensor] = {}
        self.memory: dict[str, list[Tensor]] = {}
        self.units: dict[str, int] = {}  # v's output dimension
        torch.manual_seed(settings.seed)
        for name, p in net.named_parameters():
            if name.endswith(".v"):
                glorot = math.sqrt(2 / ((p.shape[0] + p.shape[1]) * math.prod(p.shape[2:])))
                self.values[name] = torch.randn(p.shape) * (glorot if self.frozen else std)

    def param(self, name: str) -> str:
        """In DRAW only an LSTM's input-to-hidden product has batch statistics."""
        plain = hasattr(self.s, "time_steps") and not name.endswith(".input")
        return {"bn": "normal", "wn+mobn": "wn"}.get(self.s.param, self.s.param) if plain else self.s.param

    def length(self, name: str, v: Tensor) -> Tensor:
        return (v**2).sum([d for d in range(v.ndim) if d != self.units.get(name, 0)], keepdim=True).sqrt()

    def layer(
        self, name: str, x: Tensor, op: Any = F.linear, unit: int = 0, mask: Tensor | float = 1.0, time: Any = ...
    ) -> Tensor:
        """Eq. 2 and 6, or in the init pass eq. 4 and 5; `op` makes the weighted sum of x (B, inputs, …)."""
        param, c, self.units[f"{name}.v"] = self.param(name), getattr(self.s, "g_exp", None), unit
        v = self.values[f"{name}.v"] * mask
        norm = self.length(f"{name}.v", v)
        t = op(x, v / norm)  # (B, C, …), of unit vectors
        batch, shape, count = [0, *range(2, t.ndim)], (-1, *[1] * (t.ndim - 2)), t[:, 0].numel()
        size = norm.view(shape)
        if self.initializing:
            mean = t.mean(batch).view(shape)
            sigma = ((t - mean) ** 2).mean(batch).sqrt().view(shape)
            new = {"v": v, "b": -mean / sigma if param in ("normal", "wn") else 0 * mean}
            if param == "normal":
                scale = 1 / (size * sigma)
                new |= {"scale": scale} if self.frozen else {"v": v * scale.view_as(norm), "scale": 0 * scale + 1}
            elif param == "bn":  # g/√(σ² + ε) is 1/σ, as in the others
                mean, var = size * mean, (size * sigma) ** 2
                new |= {"gain": (1 + 1e-6 / var).sqrt(), "running_mean": mean, "running_var": var * count / (count - 1)}
            else:
                new |= {"gain": 1 / sigma} | ({"running_mean": mean / sigma} if param == "wn+mobn" else {})
            if c and "gain" in new:
                new["gain"] = new["gain"].log() / c
            self.values |= {f"{name}.{key}": new[key] if key == "v" else new[key].flatten() for key in new}
            return (t - t.mean(batch).view(shape)) / sigma
        b, gain, scale = (self.values.get(f"{name}.{key}", size).view(shape) for key in ("b", "gain", "scale"))
        g = torch.exp(c * gain) if c else gain
        t = t * {"normal": scale * size, "bn": size}.get(param, g)
        if param in ("bn", "wn+mobn"):
            mean = t.mean(batch).view(shape)
            var = ((t - mean) ** 2).mean(batch).view(shape)
            for key, now in (("running_mean", mean), ("running_var", var * count / (count - 1))):
                if self.training and f"{name}.{key}" in self.values:
                    averages = self.values[f"{name}.{key}"] = self.values[f"{name}.{key}"].clone()
                    averages[time] = 0.9 * averages[time] + 0.1 * now.detach().flatten()
            if not self.training:
                mean, var = (self.values.get(f"{name}.running_{key}", size).view(shape) for key in ("mean", "var"))
            t = g * (t - mean) / (var + 1e-6).sqrt() if param == "bn" else t - mean
        return t + b

    def learnt(self) -> list[str]:
        return [name for name in self.values if not name.endswith((".scale", ".running_mean", ".running_var"))]

    def begin(self) -> None:
        """What is learnt has gradients from now on; ‖v‖ is within its bound."""
        self.initializing = False
        for name in self.learnt():
            value = self.values[name].detach()
            if getattr(self.s, "v_norm_max", None) and name.endswith(".v"):
                norm = self.length(name, value)
                value = torch.where(norm > self.s.v_norm_max, value * self.s.v_norm_max / norm, value)
            self.values[name] = value.requires_grad_()

    def descend(self, net: nn.Module, loss: Tensor, lr: float, beta1: float, largest: float = math.inf) -> Tensor:
        """One update, compared with the net's; returns the gradients' total norm, then scaled down to `largest`."""
        names = self.learnt()
        all_of_them = torch.autograd.grad(loss, [self.values[name] for name in names], allow_unused=True)
        gradients = {name: grad for name, grad in zip(names, all_of_them, strict=True) if grad is not None}
        norm = torch.cat([grad.flatten() for grad in gradients.values()]).norm()
        self.step += 1
        for name, grad in gradients.items():
            grad *= min(1, largest / (norm + 1e-6))  # torch adds 1e-6
            memory = self.memory.setdefault(name, [0 * grad, 0 * grad])
            p = self.update(self.values[name].detach(), grad, memory, self.step, lr, beta1)
            rounding = (grad != 0) & (grad.abs() < 1e-12 * grad.abs().max())  # a 0 that Adamax makes a step of
            self.values[name] = torch.where(rounding, net.get_parameter(name).detach(), p)
        self.begin()
        same({name: p.grad for name, p in net.named_parameters() if p.grad is not None}, gradients, least=1e-8)
        same(net.state_dict(), self.values)
        return norm


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


def blocks(x: Tensor) -> Tensor:
    """2 × 2 pixels: (B, C, H, W) → (B, C, H/2, 2, W/2, 2)."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Σ x·log p + (1 − x)·log(1 − p) of each example."""
    return (x * logits - torch.log1p(logits.exp())).flatten(1).sum(1)


def log_normal(z: Tensor, mean: Any = 0.0, log_std: Any = 0.0) -> Tensor:
    return -0.5 * math.log(2 * math.pi) - log_std - (z - mean) ** 2 / (2 * torch.as_tensor(log_std).exp() ** 2)


padded, padded2 = (functools.partial(F.conv2d, padding=size) for size in (1, 2))
halving, halving2 = (functools.partial(F.conv2d, padding=size, stride=2) for size in (1, 2))
doubling = functools.partial(F.conv_transpose2d, padding=1, stride=2, output_padding=1)


# ------------------------------------------------------------------------------- CIFAR-10 (table 1)


def cifar_loss(net: Reference, x: Tensor, y: Tensor) -> Tensor:
    x = x + 0.15 * torch.randn(x.shape)
    for k in range(1, 10):
        x = net.layer(f"conv{k}", x, padded if k < 7 else F.conv2d)
        x = torch.where(x > 0, x, 0.1 * x)
        x = dropout(blocks(x).amax((3, 5)), 0.5, True) if k in (3, 6) else x
    logits = net.layer("dense", x.mean((2, 3)))
    return (logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]).mean()


@each(*NORMALS, *OTHERS, MORE)
def test_cifar(tiny: Callable[..., CifarSettings], changes: Any) -> None:
    images, s = make_images(), tiny(epochs=200, decay_from=100, polyak_epochs=0.5, **changes)
    made = Cifar(s, images, CPU)
    net, past = Reference(made.net, s, functools.partial(adam, True)), []
    seeded(7, made.initialize, torch.arange(60))
    loss = seeded(7, cifar_loss, net, images.train_x[:60], images.train_y[:60])
    assert made.facts["init_loss"] == pytest.approx(loss.item(), rel=1e-9)
    net.begin()
    for made.epoch, lr, beta1 in ((0, s.lr, 0.9), (150, s.lr / 2, 0.5)):  # lr·min(2 − epoch/100, 1)
        index = torch.arange(20) + made.epoch
        made.schedule()
        ours, _ = seeded(made.epoch, made.step, index)
        loss = seeded(made.epoch, cifar_loss, net, images.train_x[index], images.train_y[index])
        assert ours.item() == pytest.approx(loss.item(), rel=1e-9)
        net.descend(made.net, loss, lr, beta1)
        past.append(net.values.copy())
    assert made.average is not None
    same(made.average.module.state_dict(), averaged(*past))


def averaged(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """After two updates the Polyak average over 5, half of an epoch: their weights are 1 − 1/5 and 1."""
    d = 1 - 1 / 5
    return {name: (d * first[name] + second[name]) / (1 + d) for name in first}


# ------------------------------------------------------------------------------- auto-encoders


def residual(net: Reference, name: str, x: Tensor) -> Tensor:
    return x + 0.1 * net.layer(f"{name}.conv2", elu(net.layer(f"{name}.conv1", elu(x), padded)), padded)


def made_masks(latents: int, width: int, reverse: bool, context: int) -> list[Tensor]:
    """A hidden unit of rank r sees the z before r and all of the context; m_i and s_i, the ranks up to z_i's place."""
    place, rank = list(range(latents))[:: -1 if reverse else 1], [k * latents // width for k in range(width)]
    first = [[p < r for p in place] + [True] * context for r in rank]
    second, last = ([[q <= r for q in rank] for r in units] for units in (rank, 2 * place))
    return [torch.tensor(mask).double() for mask in (first, second, last)]


def conv_made_masks(latents: int, width: int) -> list[Tensor]:
    """A map sees the pixels before it in raster order, and at its pixel the maps of no higher (m, s: lower) rank."""
    z, rank, three = list(range(latents)), [k * latents // width for k in range(width)], range(3)

    def mask(units: list[int], inputs: list[int], own: int) -> Tensor:
        rows = [[[[(y, x, q + own) <= (1, 1, r) for x in three] for y in three] for q in inputs] for r in units]
        return torch.tensor(rows).double()

    return [mask(rank, z, 0), mask(rank, rank, 0), mask(2 * z, rank, 1)]


def posterior(net: Reference, name: str, mean: Tensor, log_std: Tensor, context: Tensor, masks: Any) -> Any:
    """z and log q by a normal distribution and steps z ← (z − m)/exp(s), m and s being 0.1 times a network's."""
    z = mean + log_std.exp() * torch.randn(mean.shape)
    log_q = log_normal(z, mean, log_std)
    for k, (first, second, last) in enumerate(masks):
        flat = z.ndim == 2
        x, op = (torch.cat([z, context], 1), F.linear) if flat else (z, padded)
        h = net.layer(f"{name}.{k}.layers.0", x, op, mask=first)
        h = net.layer(f"{name}.{k}.layers.1", elu(h if flat else h + context), op, mask=second)
        m, s = (0.1 * net.layer(f"{name}.{k}.out", elu(h), op, mask=last)).chunk(2, 1)
        z, log_q = (z - m) / s.exp(), log_q + s
    return z, log_q


def mnist_terms(net: Reference, x: Tensor) -> tuple[Tensor, Tensor]:
    h, s = x, net.s
    for k, op in ((0, padded), (3, halving), (6, halving)):
        h = elu(residual(net, f"encoder.{k + 1}", net.layer(f"encoder.{k}", h, op)))
    context = elu(net.layer("encoder.10", h.flatten(1)))
    mean, log_std = (0.1 * net.layer("statistics", context)).chunk(2, 1)
    masks = [made_masks(s.latents, s.iaf_width, k % 2 == 1, s.hidden) for k in range(s.iaf_depth)]
    z, log_q = posterior(net, "steps", mean, log_std, context, masks)
    h = net.layer("decoder.2", elu(net.layer("decoder.0", z))).view(-1, s.maps[2], 7, 7)
    for k, op, unit in ((6, doubling, 1), (9, doubling, 1), (12, padded, 0)):
        h = net.layer(f"decoder.{k}", elu(residual(net, f"decoder.{k - 2}", h)), op, unit)
    return log_bernoulli(x, h), log_q - log_normal(z)


def ladder_terms(net: Reference, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two levels of one unit: the second halves the resolution on the way up and doubles it on the way down."""
    s, n, of_up, kls = net.s, net.s.maps[0], [], []
    h = net.layer("first", (x + 0.5) / 256 - 0.5, halving2)
    for k, op in ((0, padded), (1, halving)):
        own, *rest = net.layer(f"units.{k}.up1", elu(h), op).split([n, s.latents, s.latents, s.iaf_width], 1)
        of_up.append(rest)
        h = (blocks(h).mean((3, 5)) if k else h) + 0.1 * net.layer(f"units.{k}.up2", elu(own), padded)
    h = net.values["top"].view(1, n, 1, 1).expand(len(x), n, 8, 8)
    for k in (1, 0):
        statistics = net.layer(f"units.{k}.down1", elu(h), padded).split([n, *4 * [s.latents], s.iaf_width], 1)
        own, prior_mean, prior_log_std, *rest = statistics
        mean, log_std, context = (a + b for a, b in zip(rest, of_up[k], strict=True))
        masks = [conv_made_masks(s.latents, s.iaf_width)]
        z, log_q = posterior(net, f"units.{k}.steps", 0.1 * mean, 0.1 * log_std, context, masks)
        kls.append((log_q - log_normal(z, 0.1 * prior_mean, 0.1 * prior_log_std)).sum((2, 3)))
        branch = net.layer(f"units.{k}.down2", elu(torch.cat([own, z], 1)), padded)
        if k:
            h, branch = h.repeat_interleave(2, 2).repeat_interleave(2, 3), F.pixel_shuffle(branch, 2)
        h = h + 0.1 * branch
    mean = (0.1 * F.pixel_shuffle(net.layer("last", elu(h), padded2), 2) + 0.5).clamp(1 / 512, 511 / 512)
    below, up_to = (torch.sigmoid(((x + k) / 256 - mean) / net.values["log_scale"].exp()) for k in (0, 1))
    probability = torch.where(x == 255, 1.0, up_to) - torch.where(x == 0, 0.0, below)
    return probability.log().flatten(1).sum(1), torch.cat(kls, 1)


def cvae_step(net: Reference, x: Tensor) -> tuple[Tensor, Tensor]:
    """The minibatch's mean bound, and the loss, in which each latent's mean KL counts at least `free_bits`."""
    log_p_x, kl = (mnist_terms if net.s.dataset == "mnist" else ladder_terms)(net, x)
    kl, least = kl.mean(0), net.s.free_bits
    assert not least or kl.min() < least < kl.max(), "some are free, some are not"
    counted = torch.where(kl > least, kl, least) if least else kl
    return log_p_x.mean() - kl.sum(), counted.sum() - log_p_x.mean()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@each(*NORMALS, *OTHERS, MORE)
def test_cvae(dataset: str, changes: Any) -> None:
    small = {"mnist": {"iaf_depth": 2}, "cifar10": {"maps": (4,), "free_bits": 4.0}}[dataset]
    pixels, s = make_pixels(dataset), tiny_cvae(dataset=dataset, polyak_epochs=0.5, iaf_width=5, **small | changes)
    if dataset == "cifar10":
        pixels.train_x[:, :, :2], pixels.train_x[:, :, -2:] = 0, 255  # the pixel values that have tails
    made = Cvae(s, pixels, CPU)
    net, x, past = Reference(made.net, s, adamax), pixels.train_x.double(), []
    if dataset == "cifar10":
        net.values |= {"top": 0.05 * torch.randn(s.maps[0]), "log_scale": torch.zeros(())}
    seeded(7, made.initialize, torch.arange(60))
    assert made.facts["init_loss"] == pytest.approx(seeded(7, cvae_step, net, x[:60])[1].item(), rel=1e-9)
    net.begin()
    for step in (1, 2):
        index = torch.arange(20) + 20 * step
        (ours,) = seeded(step, made.step, index)
        bound, loss = seeded(step, cvae_step, net, x[index])
        assert ours.item() == pytest.approx(bound.item(), rel=1e-9)
        net.descend(made.net, loss, s.lr, 0.9)
        past.append(net.values.copy())
    same(made.average.module.state_dict(), averaged(*past))


# ------------------------------------------------------------------------------- DRAW


def filters(window: Tensor, count: int) -> list[Tensor]:
    """Of a window (B, 5): F_y, F_x (B, count, 28) and γ (B, 1, 1), by Gregor et al., eq. 19 to 26.

    With the named code a centre is (g̃ + 1)/2·28 on pixels 0..27, and y comes before x.
    """
    y, x, log_delta, log_variance, log_gamma = window.T.unsqueeze(2)
    place, banks = torch.arange(1, count + 1) - count / 2 - 0.5, []
    for centre in (y, x):
        mu = (centre + 1) / 2 * 28 + place * 27 / (count - 1) * log_delta.exp()
        bank = torch.exp(-((torch.arange(28) - mu.unsqueeze(2)) ** 2) / (2 * log_variance.exp().unsqueeze(2)))
        banks.append(bank / (bank.sum(2, keepdim=True) + 1e-4))
    return [*banks, log_gamma.exp().unsqueeze(2)]


def draw_loss(net: Reference, x: Tensor) -> Tensor:
    """Gregor et al., eq. 3 to 12, 27 and 29."""
    s, noise, n = net.s, torch.randn(net.s.time_steps, len(x), net.s.latents), net.s.write_window

    def lstm(name: str, x: Tensor, h: Tensor, c: Tensor, time: int) -> tuple[Tensor, Tensor]:
        t = net.layer(f"{name}.input", x, time=time) + net.layer(f"{name}.recurrent", h)
        i, f, g, o = t.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    h_enc = c_enc = h_dec = c_dec = torch.zeros(len(x), s.units)
    canvas, kl, heads = 0 * x, 0, net.layer("heads", h_dec)
    for time in range(s.time_steps):
        seen = [image.flatten(1) for image in (x, x - torch.sigmoid(canvas))]
        if s.attention:
            f_y, f_x, gamma = filters(heads[:, -5:], s.read_window)
            seen = [(gamma * (f_y @ image.view_as(x) @ f_x.mT)).flatten(1) for image in seen]
        h_enc, c_enc = lstm("encoder", torch.cat([*seen, h_dec], 1), h_enc, c_enc, time)
        mean, log_std = net.layer("statistics", h_enc).chunk(2, 1)
        kl = kl + 0.5 * (mean**2 + log_std.exp() ** 2 - 2 * log_std - 1).sum(1)
        h_dec, c_dec = lstm("decoder", mean + log_std.exp() * noise[time], h_dec, c_dec, time)
        heads = net.layer("heads", h_dec)
        if s.attention:
            f_y, f_x, gamma = filters(heads[:, -10:-5], n)
            canvas = canvas + f_y.mT @ heads[:, :-10].view(-1, n, n) @ f_x / gamma
        else:
            canvas = canvas + heads.view_as(canvas)
    return (kl - log_bernoulli(x, canvas)).mean()


@each({"param": "normal"}, *OTHERS, {"param": "wn", "g_start": 0.5}, {"param": "bn", "attention": False})
def test_draw(monkeypatch: pytest.MonkeyPatch, changes: Any) -> None:
    """From larger weights than the paper's, so that nothing hides; the gradient is clipped."""
    monkeypatch.setattr(draw, "LEAST_VALUE", 1e-300)  # its real value moves gradients by up to 1e-8 of the largest
    s, pixels = tiny_draw(time_steps=2, weight_std=0.5, gradient_norm_max=0.5, **changes), make_pixels("mnist")
    made = Draw(s, pixels, CPU)
    net, x = Reference(made.net, s, functools.partial(adam, False), s.weight_std), pixels.train_x[:, 0].double()
    for name, v in [(name.removesuffix(".v"), v) for name, v in net.values.items()]:
        param, nothing, averages = net.param(name), torch.zeros(len(v)), torch.zeros(2, len(v))
        gain = nothing + 0.1 if param == "bn" else nothing + s.g_start if s.g_start else (v**2).sum(1).sqrt()
        new = {"b": nothing} | ({"scale": nothing + 1} if param == "normal" else {"gain": gain})
        new |= {"running_mean": averages} if param in ("bn", "wn+mobn") else {}
        net.values |= {f"{name}.{key}": value for key, value in new.items()}
        net.values |= {f"{name}.running_var": averages + 1} if param == "bn" else {}
    net.begin()
    for step in (1, 2):
        index = torch.arange(20) + 20 * step
        ours = [value.item() for value in seeded(step, made.step, index)]
        loss = seeded(step, draw_loss, net, x[index])
        norm = net.descend(made.net, loss, s.lr, 0.9, s.gradient_norm_max)
        assert ours == pytest.approx([-loss.item(), norm.item()], rel=1e-9) and norm > s.gradient_norm_max


# ------------------------------------------------------------------------------- DQN


class Steps:
    """Steps of a game that never was, and the states (4, 84, 84) seen in them."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.screens = (256 * rng.random((count, 1, 1)) * rng.random((count, 84, 84))).astype(np.uint8)
        self.actions, self.rewards = rng.integers(4, size=count), rng.integers(-3, 4, size=count)
        self.terminals = rng.random(count) < 0.2

    def state(self, number: int) -> Tensor:
        """The last four screens, zeros for those before the episode."""
        began = max((k + 1 for k in range(number) if self.terminals[k]), default=0)
        screens = [self.screens[k] * (k >= began) for k in range(number - 3, number + 1)]
        return torch.from_numpy(np.stack(screens))


def q_values(net: Reference, states: Tensor) -> Tensor:
    x = states / 255.0
    for k, stride in enumerate((4, 2, 1)):
        x = net.layer(f"convs.{k}", x, functools.partial(F.conv2d, stride=stride)).clamp(min=0)
    return net.layer("out", net.layer("hidden", x.flatten(1)).clamp(min=0))


def dqn_loss(net: Reference, steps: Steps, numbers: list[int]) -> Tensor:
    """Σ of ½δ² where |δ| ≤ 1 and |δ| − ½ beyond, rewards clipped; the target network is this one in evaluation."""
    target = copy.copy(net)
    target.training, target.values = False, net.values.copy()
    q = q_values(net, torch.stack([steps.state(number) for number in numbers]))
    errors = []
    for values, number in zip(q, numbers, strict=True):
        goal = float(np.sign(steps.rewards[number]))
        if not steps.terminals[number]:
            goal += 0.99 * q_values(target, steps.state(number + 1)[None]).max().item()
        errors.append((goal - values[steps.actions[number]]).abs())
    assert min(errors) < 1 < max(errors) and len(set(steps.terminals[numbers])) == 2
    return torch.stack([error**2 / 2 if error <= 1 else error - 0.5 for error in errors]).sum()


@each(*NORMALS, *OTHERS, {"param": "normal", "init": "deep_q_rl"}, {"param": "wn+mobn", "g_exp": 3.0})
def test_dqn(monkeypatch: pytest.MonkeyPatch, changes: Any) -> None:
    """No emulator plays; the last screens of the states that the net is given tell which steps its minibatch has."""
    monkeypatch.setattr(dqn, "Games", lambda *_: SimpleNamespace(actions=4))
    s, steps, seen = tiny_dqn(target_every=1, batch_size=16, **changes), Steps(60), []
    made = Dqn(s, CPU)
    net, states = Reference(made.net, s, adamax), torch.stack([steps.state(k) for k in range(40)])
    if s.init == "deep_q_rl":  # He's uniform distribution; neither an init pass nor a scale
        for name, v in list(net.values.items()):
            net.values[name] = torch.empty_like(v).uniform_(-1, 1) * (3 / v[0].numel()) ** 0.5
            fill = {"b": torch.full((len(v),), 0.1), "scale": torch.ones(len(v))}
            net.values |= {f"{name.removesuffix('.v')}.{key}": value for key, value in fill.items()}
    else:
        q_values(net, states)
    made.initialize(states)
    for k in range(60):
        made.replay.append(*(of[k : k + 1] for of in (steps.screens, steps.actions, steps.rewards, steps.terminals)))
    made.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    net.begin()
    for _ in (1, 2):
        ours, states = made.update().item(), seen.pop()
        numbers = [int((steps.screens == state[3].numpy()).all((1, 2)).argmax()) for state in states]
        assert not seen and all(map(torch.equal, states, map(steps.state, numbers)))
        loss = dqn_loss(net, steps, numbers)
        assert ours == pytest.approx(loss.item(), rel=1e-9)
        net.descend(made.net, loss, s.lr, 0.5)

"""Repeats published runs in plain PyTorch, written from the paper and the docs, to look for bugs of ours.

    python -m wnrepro.tools.crosscheck draw results/published/short/draw/wn_lr0.0003/seed-1
    python -m wnrepro.tools.crosscheck cifar results/published/short/cifar/wn+mobn_lr0.003/seed-1
    python -m wnrepro.tools.crosscheck cvae results/published/short/cvae/mnist_wn_lr0.002/seed-1
    python -m wnrepro.tools.crosscheck --compare        # a Markdown table of each finished cross-check

A cross-check takes the settings of the run's config.json. It writes config.json, run.json and, after every epoch,
metrics.csv into --out, or else into results/published/crosscheck. It reads the data's files itself, below --data-dir or
WNREPRO_DATA.
Of the package it uses only `PlainDraw`, which is DRAW in torch's layers, the mask of weights beside it, and what names
machine and commit in run.json.

Where the docs are silent, a cross-check does as follows. The classifier's init pass has noise and dropout, its running
means have the momentum 0.9, and its training error is that of the minibatches, before each update. The VAE's layers are
those that a run's layers.csv names, its dense layer of 450 units ends in an ELU, its flow's networks have ELUs too, and
its KL is that of the sampled z.
"""

import argparse
import copy
import csv
import itertools
import json
import math
import os
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from wnrepro.bench.plain import Masked, PlainDraw
from wnrepro.runs.provenance import provenance
from wnrepro.text import count

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results" / "published" / "crosscheck"
TEST_SEED = 0  # of the noise of every test
TEST_BATCH = 500
COMMON: dict[str, tuple[Any, ...]] = {"precision": ("fp32",), "g_exp": (None,), "v_norm_max": (None,)}
DIGITS: dict[str, tuple[Any, ...]] = {"param": ("wn",), "data": ("real",), "binarization": ("larochelle",)}
SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {  # the values of settings that have a cross-check
    "cifar": {**COMMON, "param": ("wn", "wn+mobn"), "dataset": ("cifar10",), "polyak_epochs": (None,)},
    "cvae": {**COMMON, **DIGITS, "dataset": ("mnist",), "free_bits": (0.0,)},
    "draw": {**COMMON, **DIGITS, "attention": (True,)},
}
Row = dict[str, float]
Bound = Callable[[Tensor], tuple[Tensor, Tensor]]  # log p(x|z) and KL, each (B,), in nats


def minibatches(s: Any, *tensors: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    """Return the minibatches of an epoch, in a new random order each time."""
    return DataLoader(TensorDataset(*tensors), s.batch_size, shuffle=True)


def normalized(layer: Any, mask: Tensor | None = None) -> Any:
    """Give a layer torch's weight_norm and v ~ N(0, 0.05²), with 0 for v and w where the mask is 0."""
    weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    v = layer.parametrizations.weight.original1
    nn.init.normal_(v, std=0.05)
    if mask is not None:
        v.data *= mask
        parametrize.register_parametrization(layer, "weight", Masked(mask))
    return layer


@torch.no_grad()
def initialize(net: nn.Module, x: Tensor) -> None:
    """Set g and b from one forward pass, such that the outputs of each layer have mean 0 and variance 1 (§3)."""

    def normalize(layer: Any, _: Any, t: Tensor) -> Tensor:
        """Set g and b from t = v·x/‖v‖ (B, units, ...), and return the layer's new output."""
        shape, others = (-1, *[1] * (t.ndim - 2)), [0, *range(2, t.ndim)]
        mean, std = t.mean(others), t.std(others, correction=0)
        g = layer.parametrizations.weight.original0
        g.copy_((1 / std).view_as(g))
        if layer.bias is None:  # `MeanOnly` follows
            return t / std.view(shape)
        layer.bias.copy_(-mean / std)
        return (t - mean.view(shape)) / std.view(shape)

    layers: list[Any] = [
        layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    for layer in layers:
        nn.init.ones_(layer.parametrizations.weight.original0)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    hooks = [layer.register_forward_hook(normalize) for layer in layers]
    net(x)
    for hook in hooks:
        hook.remove()


def cifar10(data: Path, s: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return whitened training images (N, 3, 32, 32) with their classes (N,), and the same of the test."""

    def read(name: str) -> tuple[Tensor, Tensor]:
        batch = pickle.loads((data / "cifar-10-batches-py" / name).read_bytes(), encoding="bytes")
        return torch.from_numpy(batch[b"data"]), torch.tensor(batch[b"labels"])

    parts = [read(f"data_batch_{number}") for number in range(1, 6)]
    mean, matrix = zca([images for images, _ in parts], s.zca_epsilon)

    def whitened(images: Tensor) -> Tensor:
        return ((scaled(images) - mean) @ matrix).float().view(-1, 3, 32, 32)

    images, classes = (torch.cat(part)[: s.train_examples] for part in zip(*parts, strict=True))
    test_images, test_classes = (part[: s.test_examples] for part in read("test_batch"))
    return whitened(images), classes, whitened(test_images), test_classes


def scaled(images: Tensor) -> Tensor:
    return (images.double() - 127.5) / 128


def zca(parts: list[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Compute the mean (D,) and the whitening matrix (D, D) in float64 of images in bytes, in parts (N, D)."""
    images = sum(map(len, parts))
    mean = torch.stack([scaled(part).sum(0) for part in parts]).sum(0) / images
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in parts:
        centred = scaled(part) - mean
        covariance += centred.T @ centred / images
    values, vectors = torch.linalg.eigh(covariance)
    return mean, vectors * (values + epsilon).rsqrt() @ vectors.T


class MeanOnly(nn.Module):
    """Mean-only batch normalization (eq. 6) of t (B, units, ...): t − μ[t] + b. In tests μ is the running mean."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))
        self.mean: Tensor | None = None  # at first that of the init pass

    def forward(self, t: Tensor) -> Tensor:
        mean = t.mean([0, *range(2, t.ndim)]) if self.training or self.mean is None else self.mean
        if self.training:
            new = mean.detach()
            self.mean = new if self.mean is None else 0.9 * self.mean + 0.1 * new
        return t + (self.bias - mean).view(-1, *[1] * (t.ndim - 2))


class Noise(nn.Module):
    """Gaussian noise, in training only."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x) if self.training else x


def classifier(s: Any) -> nn.Sequential:
    """Build the network of table 1, from whitened images (B, 3, 32, 32) to logits (B, 10)."""
    mean_only = s.param == "wn+mobn"

    def unit(layer: nn.Module, units: int) -> list[nn.Module]:
        return [normalized(layer), MeanOnly(units)] if mean_only else [normalized(layer)]

    def conv(inputs: int, maps: int, kernel: int = 3, padding: int = 0) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, maps, kernel, padding=padding, bias=not mean_only)
        return [*unit(layer, maps), nn.LeakyReLU(0.1)]

    n, m = s.width, 2 * s.width
    first = [*conv(3, n, padding=1), *conv(n, n, padding=1), *conv(n, n, padding=1)]
    second = [*conv(n, m, padding=1), *conv(m, m, padding=1), *conv(m, m, padding=1)]
    third = [*conv(m, m), *conv(m, m, 1), *conv(m, m, 1)]
    pools = [[nn.MaxPool2d(2), nn.Dropout(0.5)] for _ in range(2)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *unit(nn.Linear(m, 10, bias=not mean_only), 10)]
    return nn.Sequential(Noise(s.input_noise), *first, *pools[0], *second, *pools[1], *third, *ends)


class Adam:
    """The authors' Adam, which has ε inside the square root."""

    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        self.moments = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.updates = 0

    @torch.no_grad()
    def step(self, lr: float, beta1: float, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.updates += 1
        for p, first, second in self.moments:
            assert p.grad is not None
            first.lerp_(p.grad, 1 - beta1)
            second.lerp_(p.grad**2, 1 - beta2)
            mean, square = first / (1 - beta1**self.updates), second / (1 - beta2**self.updates)
            p.sub_(lr * mean / (square + epsilon).sqrt())
            p.grad = None


def cifar(s: Any, data: Path) -> Iterator[Row]:
    """Train the classifier under wn or wn+mobn."""
    images, classes, test_images, test_classes = cifar10(data, s)
    net = classifier(s)
    initialize(net, images[torch.randperm(len(images))[: s.init_examples]])
    optimizer = Adam(net.parameters())
    for epoch in itertools.count():
        late = epoch >= s.decay_from
        wrong, losses = 0, []
        net.train()
        for x, y in minibatches(s, images, classes):
            logits = net(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step(s.lr * min(2 - epoch / s.decay_from, 1), beta1=0.5 if late else 0.9)
            wrong += int((logits.argmax(1) != y).sum())
            losses.append(loss.item())
        error, test_loss = classified(net, test_images, test_classes)
        row = {"train_error": wrong / len(classes), "test_error": error}
        row |= {"train_loss": float(np.mean(losses)), "test_loss": test_loss}
        if s.param == "wn+mobn":
            row["test_error_fresh_means"], _ = classified(fresh_means(net, images), test_images, test_classes)
        yield row


@torch.no_grad()
def classified(net: nn.Module, images: Tensor, classes: Tensor) -> tuple[float, float]:
    """Return the share of images that the network classifies wrongly, and its mean cross-entropy in nats."""
    net.eval()
    logits = torch.cat([net(x) for x in images.split(TEST_BATCH)])
    return (logits.argmax(1) != classes).double().mean().item(), F.cross_entropy(logits, classes).item()


@torch.no_grad()
def fresh_means(net: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of the network whose running means are those of its present weights, over training minibatches."""
    fresh = copy.deepcopy(net).train()
    layers = [layer for layer in fresh.modules() if isinstance(layer, MeanOnly)]
    means = []
    with torch.random.fork_rng():
        for x in images.split(TEST_BATCH):
            for layer in layers:
                layer.mean = None
            fresh(x)
            means.append([layer.mean for layer in layers])
    for layer, found in zip(layers, zip(*means, strict=True), strict=True):
        layer.mean = torch.stack(found).mean(0)
    return fresh


def binarized_mnist(data: Path, s: Any) -> tuple[Tensor, Tensor]:
    """Read Larochelle's training and test images (N, 1, 28, 28) of 0 and 1; the validation images train too, last."""

    def read(part: str) -> Tensor:
        path = data / "binarized_mnist" / f"binarized_mnist_{part}.amat"
        return torch.from_numpy(np.loadtxt(path, np.float32)).view(-1, 1, 28, 28)

    return torch.cat([read("train"), read("valid")])[: s.train_examples], read("test")[: s.test_examples]


@torch.no_grad()
def tested(bound: Bound, images: Tensor) -> Row:
    """Return the mean bound and its two parts in nats, with one z per image, of the same noise at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(TEST_SEED)
        parts = [bound(x) for x in images.split(TEST_BATCH)]
    log_p_x, kl = (torch.cat(part).double().mean().item() for part in zip(*parts, strict=True))
    return {"test_bound_nats": log_p_x - kl, "kl_nats": kl, "reconstruction_nats": log_p_x}


def draw(s: Any, data: Path) -> Iterator[Row]:
    """Train DRAW under wn."""
    train, test = binarized_mnist(data, s)
    net = PlainDraw(s)
    if s.g_start is not None:  # else torch's weight_norm starts from g = ‖v‖
        for name, parameter in net.named_parameters():
            if name.endswith("original0"):
                nn.init.constant_(parameter, s.g_start)
    optimizer = torch.optim.Adam(net.parameters(), s.lr)

    def bound(x: Tensor) -> tuple[Tensor, Tensor]:
        with parametrize.cached():
            log_p_x, kl = net(x)
        return log_p_x, kl.sum(0)

    while True:
        bounds = []
        for (x,) in minibatches(s, train):
            log_p_x, kl = bound(x)
            loss = (kl - log_p_x).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), s.gradient_norm_max)
            optimizer.step()
            bounds.append(-loss.item())
        yield {"train_bound_nats": float(np.mean(bounds)), **tested(bound, test)}


def conv3(inputs: int, maps: int, stride: int = 1) -> Any:
    return normalized(nn.Conv2d(inputs, maps, 3, stride, padding=1))


def up(inputs: int, maps: int) -> Any:
    return normalized(nn.ConvTranspose2d(inputs, maps, 3, 2, padding=1, output_padding=1))


class Residual(nn.Module):
    """x + 0.1·conv(ELU(conv(ELU(x)))) for x (B, maps, H, W)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.ELU(), conv3(maps, maps), nn.ELU(), conv3(maps, maps))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.branch(x)


class FlowStep(nn.Module):
    """A step of inverse autoregressive flow on z (B, latents), given the encoder's output (B, hidden).

    A hidden unit of rank r sees the latents before r. The outputs m and s of latent r see the hidden units up to r.
    """

    def __init__(self, s: Any, reverse: bool) -> None:
        super().__init__()
        latents, units = torch.arange(s.latents), torch.arange(s.iaf_width) * s.latents // s.iaf_width
        if reverse:
            latents = latents.flip(0)
        inputs = torch.cat([latents, torch.full((s.hidden,), -1)])  # every unit sees the encoder's output
        masks = inputs < units[:, None], units <= units[:, None], units <= latents.repeat(2)[:, None]
        layers = [normalized(nn.Linear(mask.shape[1], mask.shape[0]), mask) for mask in masks]
        self.net = nn.Sequential(layers[0], nn.ELU(), layers[1], nn.ELU(), layers[2])

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next z, and by how much the logarithm (B,) of its density grows."""
        m, s = (0.1 * self.net(torch.cat([z, context], 1))).chunk(2, 1)
        return (z - m) / s.exp(), s.sum(1)


class Vae(nn.Module):
    """The VAE of MNIST, with residual units: log p(x|z) and KL, each (B,) in nats, of x (B, 1, 28, 28)."""

    def __init__(self, s: Any) -> None:
        super().__init__()
        a, b, c = s.maps
        runs = [[Residual(maps) for _ in range(depth)] for maps, depth in zip(s.maps, s.depths, strict=True)]
        self.encoder = nn.Sequential(
            *(conv3(1, a), *runs[0], nn.ELU(), conv3(a, b, stride=2)),
            *(*runs[1], nn.ELU(), conv3(b, c, stride=2)),
            *(*runs[2], nn.ELU(), nn.Flatten(), normalized(nn.Linear(c * 7 * 7, s.hidden)), nn.ELU()),
        )
        self.statistics = normalized(nn.Linear(s.hidden, 2 * s.latents))
        self.steps = nn.ModuleList(FlowStep(s, reverse=number % 2 == 1) for number in range(s.iaf_depth))
        runs = [[Residual(maps) for _ in range(depth)] for maps, depth in zip(s.maps, s.depths, strict=True)]
        self.decoder = nn.Sequential(
            *(normalized(nn.Linear(s.latents, s.hidden)), nn.ELU()),
            *(normalized(nn.Linear(s.hidden, c * 7 * 7)), nn.Unflatten(1, (c, 7, 7)), *runs[2], nn.ELU(), up(c, b)),
            *(*runs[1], nn.ELU(), up(b, a), *runs[0], nn.ELU(), conv3(a, 1)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        context = self.encoder(x)
        mean, log_std = (0.1 * self.statistics(context)).chunk(2, 1)
        noise = torch.randn_like(mean)
        z = mean + log_std.exp() * noise
        log_q = -(noise**2 / 2 + log_std).sum(1)  # without the constant, which is also that of log p(z)
        for step in self.steps:
            z, growth = step(z, context)
            log_q = log_q + growth
        log_p_x = -F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum((1, 2, 3))
        return log_p_x, log_q + (z**2).sum(1) / 2


def polyak(net: nn.Module, updates: float) -> AveragedModel:
    """Make an exponential moving average over about `updates` updates, with bias correction."""
    d = 1 - 1 / updates
    return AveragedModel(net, avg_fn=lambda old, new, n: old + (new - old) * (1 - d) / (1 - d ** (int(n) + 1)))


def adamax(net: nn.Module, lr: float) -> tuple[torch.optim.Adamax, torch.optim.lr_scheduler.LambdaLR]:
    """Make torch's Adamax, and a schedule by update that cancels its bias correction."""
    optimizer = torch.optim.Adamax(net.parameters(), lr)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda updates: 1 - 0.9 ** (updates + 1))


def cvae(s: Any, data: Path) -> Iterator[Row]:
    """Train MNIST's VAE under wn."""
    train, test = binarized_mnist(data, s)
    net = Vae(s)
    initialize(net, train[torch.randperm(len(train))[: s.init_examples]])
    average = polyak(net, s.polyak_epochs * math.ceil(len(train) / s.batch_size))
    optimizer, uncorrected = adamax(net, s.lr)
    while True:
        bounds = []
        for (x,) in minibatches(s, train):
            log_p_x, kl = net(x)
            loss = (kl - log_p_x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            uncorrected.step()
            average.update_parameters(net)
            bounds.append(-loss.item())
        raw, averaged = tested(net, test), tested(average, test)
        yield {
            "train_bound_nats": float(np.mean(bounds)),
            "test_bound_nats": averaged.pop("test_bound_nats"),
            "test_bound_nats_raw": raw["test_bound_nats"],
            **averaged,
        }


LOOPS: dict[str, Callable[[Any, Path], Iterator[Row]]] = {"cifar": cifar, "cvae": cvae, "draw": draw}


def crosscheck(experiment: str, run: Path, data: Path, out: Path, epochs: int | None, seed: int) -> None:
    """Train as a published run, and write config.json, run.json and, after every epoch, metrics.csv."""
    config = json.loads((run / "config.json").read_text())
    settings = config["settings"] | {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    if config["experiment"] != experiment:
        raise SystemExit(f"{run}: is a run of {config['experiment']}")
    for name, values in SUPPORTED[experiment].items():
        if settings.get(name, values[0]) not in values:
            raise SystemExit(f"{run}: has no cross-check, because of {name} = {settings[name]}")
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.csv").unlink(missing_ok=True)
    run = run.resolve()
    record = {
        "status": "running",
        "experiment": experiment,
        "run": str(run.relative_to(ROOT) if run.is_relative_to(ROOT) else run),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": 0.0,
        **provenance(torch.device("cpu")),
    }
    written = {"experiment": experiment, "settings": settings}
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    (out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    rows: list[Row] = []
    loop = LOOPS[experiment](SimpleNamespace(**settings), data)
    for epoch in range(1, settings["epochs"] + 1):
        began = time.monotonic()
        row = next(loop)
        rows.append({"epoch": epoch, "seconds": round(time.monotonic() - began, 3), **row})
        print(*(f"{name} {value:.6g}" for name, value in rows[-1].items()), sep="  ", flush=True)
        with (out / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        record["seconds"] = round(sum(one["seconds"] for one in rows), 3)
        record["status"] = "done" if epoch == settings["epochs"] else "running"
        (out / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def table(path: Path) -> list[Row]:
    """Read a metrics.csv."""
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def compare(folder: Path) -> str:
    """Return a Markdown table for each finished cross-check below a folder.

    The standard error of a difference is s·√(1 + 1/n), with the standard deviation s of our n seeds. The binomial one
    is that of two test errors p and q on independent images: √((p·(1 − p) + q·(1 − q))/images).
    """
    lines = []
    for path in sorted(folder.glob("*/run.json")):
        record = json.loads(path.read_text())
        if record["status"] != "done":
            continue
        ours = [
            table(metrics)
            for metrics in sorted((ROOT / record["run"]).parent.glob("seed-*/metrics.csv"))
            if json.loads(metrics.with_name("run.json").read_text())["status"] == "done"
        ]
        if not ours:
            continue
        settings = json.loads(path.with_name("config.json").read_text())["settings"]
        images, n = settings["test_examples"], len(ours)
        lines += [
            f"### {path.parent.name}",
            "",
            f"n = {n}: {count(n, 'published seed')} of ours, one of the cross-check."
            + (" One seed has no standard deviation." if n == 1 else ""),
            "",
            "| metric | epoch | ours | cross-check | difference | in standard errors | binomial standard error |",
            "|---|---|---|---|---|---|---|",
        ]
        theirs = table(path.with_name("metrics.csv"))
        for name in [name for name in theirs[0] if name in ours[0][0] and name not in ("epoch", "seconds")]:
            for epoch, (row, *rows) in enumerate(zip(theirs, *ours, strict=False), 1):
                lines.append(compared(name, epoch, [one[name] for one in rows], row[name], images))
        lines.append("")
    return "\n".join(lines)


def compared(name: str, epoch: int, ours: list[float], theirs: float, images: int) -> str:
    """Return a row of the table; `images` is the number of test images."""
    n = len(ours)
    mean = statistics.mean(ours)
    errors = "–" if len({*ours}) == 1 else f"{(theirs - mean) / (statistics.stdev(ours) * math.sqrt(1 + 1 / n)):+.2f}"
    variance = (mean * (1 - mean) + theirs * (1 - theirs)) / images
    binomial = f"{math.sqrt(variance):.4f}" if name == "test_error" else "–"
    cells = [name, str(epoch), f"{mean:.4f}", f"{theirs:.4f}", f"{theirs - mean:+.4f}", errors, binomial]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=[*LOOPS])
    parser.add_argument("run", nargs="?", type=Path, help="the folder seed-N of a published run")
    parser.add_argument(
        "--compare", action="store_true", help="print the tables of the finished cross-checks below --out"
    )
    parser.add_argument("--epochs", type=int, help="default: the run's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("WNREPRO_DATA", "~/.cache/wnrepro"))
    given = parser.parse_args()
    if given.compare:
        print(compare(given.out or FOLDER) or parser.error(f"{given.out or FOLDER}: has no finished cross-check"))
        return
    if given.run is None or not (given.run / "config.json").is_file():
        parser.error("name an experiment and the folder of a run, or --compare")
    out = given.out or FOLDER / f"{given.experiment}_{given.run.resolve().parent.name}"
    data = given.data_dir.expanduser()
    if not data.is_dir():
        parser.error(f"--data-dir {data}: is no folder; see docs/data.md")
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)  # for speed: DRAW's filters have many values below 1e-38
    crosscheck(given.experiment, given.run, data, out, given.epochs, given.seed)


if __name__ == "__main__":
    main()

"""Step times, side by side: the four parameterizations and a plain PyTorch loop, interleaved in one run.

Every contender lives in a process of its own, so that neither memory nor threads of one help or hinder another.
One round times one training step of each, one at a time and in a new random order; a ratio is paired within the
round. These machines are noisy: what counts is the median ratio, its interval and n.
"""

import dataclasses
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
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
from torch.utils.data import DataLoader, TensorDataset

from wnrepro.data import Images, Pixels
from wnrepro.experiments.cifar import CLASSES, DROPOUT, SLOPE, Cifar
from wnrepro.experiments.cvae import Cvae, MnistVae
from wnrepro.parameterization import fold
from wnrepro.runs import now, provenance, read_json, write_json
from wnrepro.settings import PARAMS, CifarSettings, CvaeSettings, Settings
from wnrepro.training import autocast

WARM_UP_STEPS = 2
PLAIN = "plain wn"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 by instructions of its own."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


Step = Callable[[], object]


def random_images(settings: CifarSettings, device: torch.device) -> Images:
    """Twenty minibatches of noise: a step takes as long on them as on photographs."""
    torch.manual_seed(0)
    count = 20 * settings.batch_size
    x, y = torch.randn(count, 3, 32, 32, device=device), torch.randint(CLASSES, (count,), device=device)
    return Images(x, y, x[:0], y[:0], "random")


def random_pixels(settings: CvaeSettings) -> Pixels:
    """Twenty minibatches of black and white noise."""
    torch.manual_seed(0)
    x = torch.randint(2, (20 * settings.batch_size, *MnistVae.shape), dtype=torch.uint8)
    return Pixels(x, x[:0], "random")


def endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from loader


def plain_step(settings: Settings, device: torch.device) -> Step:
    """One step of the loop that most people write: torch's layers, weight_norm, optimizer and DataLoader, contiguous.

    The VAE's masks are not kept up there, which saves the plain loop some work.
    """
    return plain_cifar(settings, device) if isinstance(settings, CifarSettings) else plain_cvae(settings, device)


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


def plain_cvae(settings: CvaeSettings, device: torch.device) -> Step:
    torch.manual_seed(settings.seed)
    net = fold(MnistVae(dataclasses.replace(settings, param="normal"))).to(device)  # the same model in torch's layers
    for module in list(net.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            weight_norm(module, dim=1 if isinstance(module, nn.ConvTranspose2d) else 0)
    optimizer = torch.optim.Adamax(net.parameters(), lr=settings.lr)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn())
    dataset = TensorDataset(random_pixels(settings).train_x)
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


def our_step(settings: Settings, device: torch.device) -> Step:
    """One step of the experiment."""
    experiment: Cifar | Cvae
    if isinstance(settings, CifarSettings):
        experiment = Cifar(settings, random_images(settings, device), device)
    else:
        experiment = Cvae(settings, random_pixels(settings), device)
    experiment.initialize(torch.arange(settings.init_examples, device=device))
    experiment.net.train()

    def step() -> object:
        index = torch.randperm(len(experiment.train_x), generator=experiment.order)[: settings.batch_size]
        result = experiment.step(index.to(device))
        return result[0] if isinstance(result, tuple) else result

    return step


def contender(
    pipe: Connection,
    make: Callable[[Any, torch.device], Step],
    settings: Settings,
    device: torch.device,
) -> None:
    """What a contender's process does: warm up, then time a step at every word from the pipe, until False."""
    step = make(settings, device)
    for _ in range(WARM_UP_STEPS):
        timed(step, device)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(timed(step, device))


def timed(step: Step, device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median of the paired ratios with its 95 % interval (order statistics; the extremes where n is small)."""
    ratios = np.array(over) / np.array(under)
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    low, high = (
        float(np.nan_to_num(x, nan=edge)) for x, edge in zip(interval, (ratios.min(), ratios.max()), strict=True)
    )
    return {"median": float(np.median(ratios)), "low": low, "high": high, "n": len(ratios)}


def measure(
    device: torch.device,
    precisions: list[str],
    rounds: int,
    settings: Settings,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Time `rounds` steps of each contender; `show` gets a word on where it is."""
    entrants: dict[str, tuple[Callable[..., Step], Settings]] = {}
    for precision in precisions:
        label = "" if precision == "fp32" else f" {precision}"
        for param in PARAMS:
            changed = dataclasses.replace(settings, param=param, precision=precision)
            entrants[param + label] = our_step, changed
        entrants[PLAIN + label] = plain_step, dataclasses.replace(settings, precision=precision)
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    context = multiprocessing.get_context("spawn")
    with ExitStack() as ending:
        pipes: dict[str, Connection] = {}
        for name, (make, changed) in entrants.items():
            show(f"warming up {name}")
            pipes[name], there = context.Pipe()
            process = context.Process(target=contender, args=(there, make, changed, device), daemon=True)
            process.start()
            there.close()
            ending.callback(process.join)
            ending.callback(pipes[name].send, False)
            pipes[name].recv()
        order = np.random.default_rng(0)
        for number in range(rounds):
            show(f"round {number + 1} of {rounds}")
            for name in order.permutation(list(entrants)):
                pipes[name].send(True)
                seconds[name].append(pipes[name].recv())
    pairs = [(PLAIN, "wn"), ("bn", "normal"), ("wn", "normal"), ("wn+mobn", "normal")]
    pairs += [(PLAIN, f"wn {precision}") for precision in precisions if precision != "fp32"]
    ratios = {f"{a} / {b}": ratio(seconds[a], seconds[b]) for a, b in pairs if a in seconds and b in seconds}
    return {"rounds": rounds, "batch_size": settings.batch_size, "seconds": seconds, "ratios": ratios}


def store(results: Path, experiment: str, figures: dict[str, Any], device: torch.device) -> Path:
    """Put an experiment's figures, with their provenance, into results/bench/<device>.json."""
    about = provenance(device)
    slug = re.sub(r"[^a-z0-9]+", "-", about["device_name"].lower()).strip("-")
    path = results / "bench" / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = (read_json(path) or {}) | {"device_name": about["device_name"]}
    write_json(path, stored | {experiment: {"created": now(), **about, **figures}})
    return path


def table(figures: dict[str, Any]) -> str:
    """The figures in lines of text."""
    lines = ["seconds a step (median) and images/s"]
    for name, seconds in figures["seconds"].items():
        median = float(np.median(seconds))
        lines.append(f"  {name:<16} {median:8.4f} s  {figures['batch_size'] / median:8.1f} images/s")
    lines.append(f"ratios of step times, paired within a round (median, 95 % interval, n = {figures['rounds']})")
    for name, r in figures["ratios"].items():
        lines.append(f"  {name:<26} {r['median']:.3f}  [{r['low']:.3f}, {r['high']:.3f}]")
    return "\n".join(lines)

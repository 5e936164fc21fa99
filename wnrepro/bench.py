"""Step times, side by side: the four parameterizations and a plain PyTorch loop, interleaved in one run.

One round times one training step of every contender, in a new random order; a ratio is paired within the round.
These machines are noisy: what counts is the median ratio, its interval and n.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import quantile_test
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from wnrepro.data import Images
from wnrepro.experiments.cifar import CLASSES, DROPOUT, SLOPE, Cifar
from wnrepro.runs import now, provenance, read_json, write_json
from wnrepro.settings import PARAMS, scale_settings

WARM_UP_STEPS = 2


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 by instructions of its own."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def plain_cifar(images: Images, device: torch.device, precision: str, batch_size: int) -> Callable[[], object]:
    """One step of the loop that most people write: torch's weight_norm, DataLoader, contiguous layout, torch's Adam."""
    stages: list[nn.Module] = []
    channels = 3
    for number, (maps, kernel, padding) in enumerate(
        [(96, 3, 1)] * 3 + [(192, 3, 1)] * 3 + [(192, 3, 0)] + [(192, 1, 0)] * 2
    ):
        stages += [weight_norm(nn.Conv2d(channels, maps, kernel, padding=padding)), nn.LeakyReLU(SLOPE)]
        if number in (2, 5):
            stages += [nn.MaxPool2d(2), nn.Dropout(DROPOUT)]
        channels = maps
    stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), weight_norm(nn.Linear(channels, CLASSES))]
    net = nn.Sequential(*stages).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    loader = DataLoader(TensorDataset(images.train_x, images.train_y), batch_size, shuffle=True)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    endless = batches()

    def step() -> object:
        x, y = (part.to(device) for part in next(endless))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = net(x + 0.15 * torch.randn_like(x))
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def our_cifar(param: str, images: Images, device: torch.device, precision: str) -> Callable[[], object]:
    """One step of the experiment at the paper's settings."""
    experiment = Cifar(scale_settings("cifar", "paper", param, precision=precision), images, device)
    experiment.initialize(torch.arange(500, device=device))
    experiment.net.train()
    draw = torch.Generator().manual_seed(0)

    def step() -> object:
        index = torch.randperm(len(images.train_x), generator=draw)[:100].to(device)
        return experiment.step(index)[0]

    return step


def timed(step: Callable[[], object], device: torch.device) -> float:
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


def cifar(device: torch.device, precisions: list[str], rounds: int, show: Callable[[int], None]) -> dict[str, Any]:
    """Time `rounds` steps of each contender on random images; `show` gets the number of each round done."""
    torch.manual_seed(0)
    x, y = torch.randn(2000, 3, 32, 32), torch.randint(CLASSES, (2000,))
    images = Images(x, y, x[:0], y[:0], "random")
    placed = Images(x.to(device), y.to(device), x[:0], y[:0], "random")
    steps: dict[str, Callable[[], object]] = {}
    for precision in precisions:
        label = "" if precision == "fp32" else f" {precision}"
        steps |= {param + label: our_cifar(param, placed, device, precision) for param in PARAMS}
        steps[f"plain wn{label}"] = plain_cifar(images, device, precision, batch_size=100)
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = np.random.default_rng(0)
    for number in range(rounds):
        for name in order.permutation(list(steps)):
            seconds[name].append(timed(steps[name], device))
        show(number + 1)
    pairs = [("plain wn", "wn"), ("bn", "normal"), ("wn", "normal"), ("wn+mobn", "normal")]
    if "bf16" in precisions:
        pairs += [("plain wn", "wn bf16"), ("plain wn bf16", "wn bf16")]
    ratios = {f"{a} / {b}": ratio(seconds[a], seconds[b]) for a, b in pairs if a in seconds and b in seconds}
    return {"rounds": rounds, "batch_size": 100, "seconds": seconds, "ratios": ratios}


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

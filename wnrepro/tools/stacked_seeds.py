"""Compares n seeds as one program with stacked parameters to a lone run: seconds on a CPU, kernels and bytes.

    python -m wnrepro.tools.stacked_seeds cvae 5 2,4,8 1

The networks have the paper's size and the parameterization wn. Stacked, each parameter is the concatenation of those of
n seeds, a dense layer is a batched product, and a convolution has n groups. Lone and stacked steps take turns at
random. Prints medians over the rounds, per step and seed. With one thread (the last argument) times are the
processor's, which other processes disturb less. A CUDA graph with a branch a run has the kernels and bytes of lone
runs. Kernels are torch's operations without views. Steps are not compiled.
"""

import copy
import functools
import random
import statistics
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wnrepro.bench.counting import Step, count_work
from wnrepro.bench.ours import our_training
from wnrepro.experiments.atari import Batch
from wnrepro.experiments.loop import minibatch
from wnrepro.optim import PolyakAverage
from wnrepro.parameterization import fold, layers
from wnrepro.settings import scale_settings

CHANGES: dict[str, dict[str, Any]] = {
    "cvae": {"dataset": "mnist"},
    "draw": {"epochs": 1},
    "dqn": {"game": "breakout", "replay_steps": 1000, "replay_start": 1000, "epsilon_steps": 1},
}


class Stacked(TorchFunctionMode):
    """Computes layers of n networks. Maps are side by side, (B, n·C, H, W); dense values are in turn, (n·B, U)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, n = dict(kwargs or {}), self.n
        if function is F.linear:
            x, w, b = (*args, None)[:3]
            rows = x.view(n, -1, w.shape[1]) if x.shape[1] == w.shape[1] else x.view(len(x), n, -1).transpose(0, 1)
            w = w.view(n, -1, w.shape[1]).transpose(1, 2)
            return (torch.bmm(rows, w) if b is None else torch.baddbmm(b.view(n, 1, -1), rows, w)).flatten(0, 1)
        if function in (F.conv2d, F.conv_transpose2d):
            x, w, b, *rest = (*args, None)[: max(3, len(args))]
            geometry = kwargs | dict(zip(("stride", "padding", "dilation"), rest, strict=False))
            w = w if function is F.conv2d else torch.cat(w.chunk(n, 1))
            return function(x, w, b, **geometry | {"groups": n})
        if function is Tensor.unflatten:  # from dense layers to maps
            return torch.cat(function(*args, **kwargs).chunk(n), 1)
        if function is torch.randn and len(args) == 2:  # a VAE's noise, drawn for the images' first dimension
            args = (n * args[0], args[1])
        return function(*args, **kwargs)


def stack(nets: list[Any]) -> Any:
    """Return a copy of the first network with the parameters and buffers of all, concatenated by output unit."""
    stacked = copy.deepcopy(nets[0])
    twins = [dict(layers(net)) for net in nets]
    for name, layer in layers(stacked):
        for key, value in [*layer.named_parameters(), *layer.named_buffers()]:
            dim = layer.unit_dim if value.ndim == layer.v.ndim else -1
            joined = torch.cat([getattr(twin[name], key).detach() for twin in twins], dim)
            setattr(layer, key, nn.Parameter(joined) if isinstance(value, nn.Parameter) else joined)
        layer.units *= len(nets)
    return stacked


def stacked_loss(runs: list[Any], net: Any, target: Any) -> Tensor:
    """Compute the sum of the runs' losses, each on its own minibatch. Use it within `Stacked`; target: DQN's."""
    first, n = runs[0], len(runs)
    size, name = first.settings.batch_size, first.settings.name
    if name == "dqn":
        samples = [Batch.unpack(run.replay.sample(size, run.rng)) for run in runs]
        screens = [run.replay.gather_screens(sample.rows) for run, sample in zip(runs, samples, strict=True)]
        states, next_states = (torch.cat([own[:, part] for own in screens], 1) for part in (slice(4), slice(1, 5)))
        _, actions, rewards, terminals = (torch.cat(parts) for parts in zip(*samples, strict=True))
        with torch.no_grad():
            value = target(next_states).max(1).values.masked_fill(terminals, 0)
        q = net(states).gather(1, actions[:, None]).squeeze(1)
        return F.huber_loss(q, rewards + first.settings.discount * value, reduction="sum")
    drawn = [(run, torch.randperm(len(run.train_x), generator=run.order)[:size]) for run in runs]
    if name == "draw":
        x = torch.cat([run.train_x[index] for run, index in drawn])
        log_p_x, kl = net(x, torch.randn(first.settings.time_steps, len(x), first.settings.latents))
        return n * (kl.sum(0).mean() - log_p_x.mean())
    x = torch.cat([minibatch(run.train_x, index) for run, index in drawn], 1)
    if name == "cifar":
        y = torch.cat([run.train_y[index] for run, index in drawn])
        return F.cross_entropy(net(x), y, reduction="sum") / size
    log_p_x, kl = net(x)
    return n * kl.mean(0).sum() - log_p_x.mean()


def stacked_step(runs: list[Any]) -> Step:
    """Return the training step of the stacked network of these runs."""
    first, net = runs[0], stack([run.net for run in runs])
    name, lr = first.settings.name, first.settings.lr
    target = fold(net) if name == "dqn" else None
    make: Any = functools.partial(torch.optim.Adam, fused=True) if name == "draw" else type(first.optimizer)
    optimizer = make(net.parameters(), lr)
    average = PolyakAverage(net, 1000) if first.average else None

    def step() -> None:
        with Stacked(len(runs)):
            loss = stacked_loss(runs, net, target)
        optimizer.zero_grad()
        loss.backward()
        if name == "draw":  # by all networks' norm; that of each costs the same
            nn.utils.clip_grad_norm_(net.parameters(), first.settings.gradient_norm_max)
        optimizer.step()
        if average is not None:
            average.update_parameters(net)

    return step


def main(experiment: str, rounds: int, counts: list[int], threads: int) -> None:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    changes, device = CHANGES.get(experiment, {}), torch.device("cpu")
    all_settings = [scale_settings(experiment, "paper", "wn", seed=seed, **changes) for seed in range(max(counts))]
    runs = [our_training(settings, device) for settings in all_settings]
    steps = {"alone": (1, runs[0][1])}
    steps |= {f"stacked, n = {n}": (n, stacked_step([run for run, _ in runs[:n]])) for n in counts}
    work, seconds = {}, {name: list[float]() for name in steps}
    for name, (n, step) in steps.items():
        step()
        work[name] = {key: value / n for key, value in count_work(step).items()}
    for _ in range(rounds):
        for name, (n, step) in random.sample(list(steps.items()), len(steps)):
            began = clock()
            step()
            seconds[name].append((clock() - began) / n)
    print(f"{experiment}, {threads} threads, {rounds} rounds; per step and seed: seconds, over alone, kernels, MB")
    for name, own in seconds.items():
        ratio = statistics.median(one / alone for one, alone in zip(own, seconds["alone"], strict=True))
        kernels, moved = work[name]["kernels"], work[name]["bytes"] / 1e6
        print(f"  {name:15}{statistics.median(own):9.4f}{ratio:8.2f}{kernels:9.0f}{moved:9.1f}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")], int(sys.argv[4]))

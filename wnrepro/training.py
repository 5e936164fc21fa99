"""What the experiments' training loops share: what `train()` yields, optimizers, Polyak average, compute device.

The authors' Adam differs from torch's: ε = 1e-8 stands inside the square root; their Adamax has no bias correction.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wnrepro.errors import UserError


@dataclass(frozen=True)
class Tick:
    """Progress inside an epoch: `done` of `total` examples."""

    epoch: int
    done: int
    total: int


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: the row of metrics.csv, and the rows of further tables by name.

    `diverged` is empty, or the sentence that says how training diverged; the run then ends here.
    """

    epoch: int
    metrics: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence for whoever watches the run, which no table holds."""

    text: str


class MomentOptimizer(torch.optim.Optimizer):
    """What Adam and Adamax share: two moments a parameter, and a `step` that hands them to `update`."""

    moments: tuple[str, str]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {name: torch.zeros_like(p) for name in self.moments}
            first, second = ([self.state[p][name] for p in params] for name in self.moments)
            self.update(group, params, [p.grad for p in params if p.grad is not None], first, second)
        return loss

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
    ) -> None:
        """Change the group's parameters and moments in place."""
        raise TypeError(f"{type(self).__name__} is no optimizer by itself: use Adam or Adamax")


class Adam(MomentOptimizer):
    """Adam with ε inside the root (authors' code): p ← p − lr·m̂/√(v̂ + ε).

    The bias corrections 1 − β1ᵗ, 1 − β2ᵗ use the β of the step, also after β1 has changed.
    """

    moments = ("m", "v")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "step": 0})

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
    ) -> None:
        group["step"] += 1
        beta1, beta2 = group["beta1"], group["beta2"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        root = torch._foreach_div(second, 1 - beta2 ** group["step"])
        torch._foreach_add_(root, group["epsilon"])
        torch._foreach_sqrt_(root)
        torch._foreach_addcdiv_(params, first, root, -group["lr"] / (1 - beta1 ** group["step"]))


class Adamax(MomentOptimizer):
    """Adamax without bias correction (authors' code): m ← β1·m + (1−β1)·∇, u ← max(β2·u, |∇| + ε), p ← p − lr·m/u.

    torch's divides lr by 1 − β1ᵗ.
    """

    moments = ("m", "u")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon})

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
    ) -> None:
        torch._foreach_lerp_(first, grads, 1 - group["beta1"])
        size = torch._foreach_abs(grads)
        torch._foreach_add_(size, group["epsilon"])
        torch._foreach_mul_(second, group["beta2"])
        torch._foreach_maximum_(second, size)
        torch._foreach_addcdiv_(params, first, second, -group["lr"])


def polyak_average(model: nn.Module, updates: float) -> AveragedModel:
    """The exponential moving average of a model's parameters and buffers over about so many updates (§5.2).

    Call its `update_parameters(model)` after each update. It is bias-corrected: the weight of the newest parameters
    is (1 − d)/(1 − dᵗ) at update t, d = 1 − 1/updates, so that the first weights count for no more than the others.
    """
    decay = 1 - 1 / max(updates, 1)

    def average(averages: Any, current: Any, averaged: Tensor | int) -> None:
        torch._foreach_lerp_(averages, current, (1 - decay) / (1 - decay ** (int(averaged) + 1)))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def choose_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`. Raises UserError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: no such device; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch sees no GPU here; `wnrepro doctor` says why, or use cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device


@contextlib.contextmanager
def random_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators at `seed`; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def set_precision(precision: str, device: torch.device) -> None:
    """Let matrix products run in tf32 or not. Raises UserError for tf32 on a CPU.

    bf16 is the experiments' own affair: see `autocast`, and `recurrence.Unrolled`.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32: only a GPU has it; on a CPU use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def keep_memory() -> None:
    """Let this process keep the memory that it frees, instead of getting it anew from the system at every step.

    glibc maps every tensor over 32 MiB afresh and unmaps it when freed, so that each step touches its pages for the
    first time; LOG.md says what that costs. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of single blocks
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: no giving back


def available_memory() -> int | None:
    """Bytes that the system could still give (Linux), or None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: bf16 matrix products where `precision` says so."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()

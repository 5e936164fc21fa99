"""What the experiments' training loops share: what `train()` yields, optimizers, Polyak average, compute device.

The authors' Adam differs from torch's: ε = 1e-8 stands inside the square root; their Adamax has no bias correction.
"""

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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

    The bias corrections 1 − β1ᵗ, 1 − β2ᵗ use the β of the step, also after β1 has changed. lr, β1 and the step count
    of a group are tensors () on the parameters' device, so that a captured step heeds their changes: `set_rates`.
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
        self.onto_the_device()

    def onto_the_device(self) -> None:
        """Make the groups' lr, β1 and step count tensors there, in float64."""
        for group in self.param_groups:
            device = group["params"][0].device
            for name in ("lr", "beta1", "step"):
                group[name] = torch.as_tensor(group[name], dtype=torch.float64).to(device, copy=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        self.onto_the_device()

    def set_rates(self, lr: float, beta1: float) -> None:
        """From the next step on."""
        for group in self.param_groups:
            group["lr"].fill_(lr)
            group["beta1"].fill_(beta1)

    def update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
    ) -> None:
        lr, beta1, beta2, step = (group[name] for name in ("lr", "beta1", "beta2", "step"))
        step += 1
        dtype = params[0].dtype
        torch._foreach_mul_(first, beta1.to(dtype))
        torch._foreach_add_(first, torch._foreach_mul(grads, (1 - beta1).to(dtype)))
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        root = torch._foreach_div(second, (1 - beta2**step).to(dtype))
        torch._foreach_add_(root, group["epsilon"])
        torch._foreach_sqrt_(root)
        torch._foreach_mul_(root, ((1 - beta1**step) / lr).to(dtype))
        torch._foreach_addcdiv_(params, first, root, -1)


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


class PolyakAverage(AveragedModel):
    """The exponential moving average of a model's parameters and buffers over about so many updates (§5.2).

    It is bias-corrected: the weight of the newest parameters is (1 − d)/(1 − dᵗ) at update t, d = 1 − 1/updates, so
    that the first weights count for no more than the others. The count stays on the device, which never waits. What no
    state dict holds, as masks, is constant and left alone. What a module calls `not_averaged` is the newest.
    """

    def __init__(self, model: nn.Module, updates: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = 1 - 1 / max(updates, 1)
        self.n_averaged: Tensor = self.n_averaged.to(next(model.parameters()).device)
        own = [(name, getattr(module, "not_averaged", ())) for name, module in model.named_modules()]
        self.copied = [".".join(filter(None, (name, buffer))) for name, buffers in own for buffer in buffers]
        self.averaged = [name for name in model.state_dict() if name not in self.copied]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model as it is after an update."""
        self.n_averaged += 1
        weight = (1 - self.decay) / (1 - self.decay ** self.n_averaged.double())
        states = [one.state_dict(keep_vars=True) for one in (self.module, model)]
        averages, current = ([state[name] for name in self.averaged] for state in states)
        torch._foreach_mul_(averages, (1 - weight).to(averages[0].dtype))
        torch._foreach_add_(averages, torch._foreach_mul(current, weight.to(averages[0].dtype)))
        for name in self.copied:
            states[0][name].copy_(states[1][name])


@dataclass(frozen=True)
class Compilation:
    """What came of compiling: the function, or None where the plain one has to do, and then the reason.

    error: how far the compiled function's gradients are from those of fp32, see GRADIENT_TOLERANCE.
    """

    function: Callable[..., Any] | None = None
    refused: str = ""
    error: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {"compiled": self.function is not None, **({"not_compiled": self.refused} if self.refused else {})}

    @property
    def notes(self) -> list[Note]:
        """For whoever watches the run."""
        return [Note(f"trains without torch.compile: {self.refused}")] if self.refused else []


# How far a compiled function's gradients, and buffers, may be from the plain ones of fp32: the norm of the difference
# over the norm, of any one. A wrong derivative is off by the whole. Where the terms of a gradient nearly cancel, its
# norm is small beside rounding: each may be off by PLAIN_ERRORS times what the plain one of its precision is.
GRADIENT_TOLERANCE = {"fp32": 1e-3, "tf32": 0.05, "bf16": 0.25}
PLAIN_ERRORS = 2.0


def gradients_of(net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> list[Tensor]:
    """Those of a loss by the network's parameters, and its buffers after that; all is left as it was."""
    before = [buffer.clone() for buffer in net.buffers()]
    with random_generators(0, device):
        gradients = torch.autograd.grad(loss(), list(net.parameters()))
    after = [buffer.clone() for buffer in net.buffers()]
    for buffer, value in zip(net.buffers(), before, strict=True):
        buffer.data.copy_(value)
    return [*gradients, *after]


def compiled(
    function: Callable[..., Any], gradients: Callable[[Callable[..., Any] | None, str], list[Tensor]], precision: str
) -> Compilation:
    """torch.compile of a function, if it works (it needs a C++ compiler, on a GPU Triton) and its gradients are right.

    gradients: `gradients_of` one training step with the function given in the place of `function`, or with that, in the
    precision given.
    """
    torch.compiler.reset()  # it keeps eight versions of a function, of all runs of a process together
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of CUDA on a machine without a GPU
    try:
        return judged(torch.compile(function), gradients, precision)
    except RuntimeError as error:
        return Compilation(refused=f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    finally:
        if torch.cuda.is_initialized():  # a step in fp32 takes more memory than those to come
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def judged(
    faster: Callable[..., Any], gradients: Callable[[Callable[..., Any] | None, str], list[Tensor]], precision: str
) -> Compilation:
    """The compiled function with its gradients' error, or why it is refused: they are wrong; see `compiled`."""
    exact, tolerance = gradients(None, "fp32"), GRADIENT_TOLERANCE[precision]
    plain = gradients(None, precision)
    norms = [
        torch.maximum(norm(right), PLAIN_ERRORS / tolerance * norm(rounded - right))
        for rounded, right in zip(plain, exact, strict=True)
    ]
    worst = relative_error(gradients(faster, precision), exact, norms)
    if not worst <= tolerance:
        return Compilation(refused=f"its gradients differ from the plain ones by {100 * worst:.3g} %", error=worst)
    return Compilation(faster, error=worst)


def norm(x: Tensor) -> Tensor:
    """The 2-norm of all values (), in float64."""
    result: Tensor = torch.linalg.vector_norm(x.double())
    return result


def relative_error(found: Iterable[Tensor], expected: Sequence[Tensor], norms: Iterable[Tensor] | None = None) -> float:
    """The norm of the difference over the norm of what is expected, or these norms: the largest, nan where one is."""
    errors = [0.0]
    for one, wanted, over in zip(found, expected, norms or map(norm, expected), strict=True):
        if not torch.equal(one, wanted):
            errors.append((norm(one - wanted) / over).item())
    return torch.tensor(errors, dtype=torch.float64).max().item()  # Python's max can lose nan


CONVOLUTIONS_TRIED = 4  # of each kind: the first ones are by cuDNN's own estimate the fastest
PLAIN_CALLS = 3  # before a function is captured: what is made once, and what is tried out, happens then


class CaptureError(RuntimeError):
    """A step that could not be captured; the process that tried can do nothing more on its GPU."""


def capture_failed(error: BaseException | None) -> bool:
    """Whether a CaptureError is the error, or lies behind it: what is tidied up after it may fail too."""
    return error is not None and (isinstance(error, CaptureError) or capture_failed(error.__context__))


def graphs_allowed() -> bool:
    """Whether steps may be captured: not where the environment has WNREPRO_GRAPHS=0."""
    return os.environ.get("WNREPRO_GRAPHS") != "0"


class Captured:
    """A function of tensors that a GPU repeats as one CUDA graph; on a CPU it is the function.

    Its first PLAIN_CALLS calls are plain ones; the next is captured, and from then on replayed, with the inputs copied
    into those of the capture. Each set of input shapes has a graph of its own. The function may not wait for the
    device nor depend on anything of the host's that changes from call to call: that it reads from tensors, which stay
    in place. Random numbers are those of plain calls. An output stands until the next call. Raises CaptureError.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self.function, self.captures = function, device.type == "cuda" and graphs_allowed()
        self.graphs: dict[tuple[torch.Size, ...], Graph] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self.captures:
            return self.function(*inputs)
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = Graph()
        return self.graphs[shapes].run(self.function, inputs)


class Graph:
    """One of `Captured`."""

    def __init__(self) -> None:
        self.calls, self.captured = 0, False
        self.stream = torch.cuda.Stream()  # of the plain calls and of the capture: autograd remembers it
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def run(self, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.calls <= PLAIN_CALLS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if not self.captured:
            self.inputs = tuple(x.clone() for x in inputs)
            try:
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self.outputs = function(*self.inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise CaptureError(f"a step cannot be captured as a CUDA graph ({error})") from error
            self.captured = True
        for mine, theirs in zip(self.inputs, inputs, strict=True):
            mine.copy_(theirs)
        self.graph.replay()
        return self.outputs


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
            last = torch.cuda.device_count() - 1
            raise UserError(f"--device {name}: there is no such GPU; give one of cuda:0 to cuda:{last}")
    return device


@contextlib.contextmanager
def random_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators at `seed`; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def set_precision(precision: str, device: torch.device) -> None:
    """Let matrix products run in tf32 or not, on this GPU, by the fastest way. Raises UserError for tf32 on a CPU.

    bf16 is the experiments' own affair: see `autocast`, and `recurrence.Unrolled`.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32: only a GPU has it; give fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # of which streams and graphs are
    if device.type == "cuda":  # shapes recur: let cuDNN try its convolutions out; another process may choose others
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, CONVOLUTIONS_TRIED


def keep_memory() -> None:
    """Let this process keep the memory that it frees, instead of getting it anew from the system at every step.

    glibc maps every tensor over 32 MiB afresh and unmaps it when freed, so that each step touches its pages for the
    first time; LOG.md says what that costs. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of single blocks
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: no giving back


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

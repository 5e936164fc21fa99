"""torch.compile of a part of a model, used only if its gradients equal the plain gradients."""

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from wnrepro.cuda_graphs import here
from wnrepro.device import float64_device, random_generators
from wnrepro.events import Note

# Largest relative error of a compiled function's gradients and buffers against the plain ones in fp32: the norm of the
# difference over the norm. A wrong derivative has an error of about 1. If the terms of a gradient nearly cancel, its
# norm is small compared with rounding. An error of PLAIN_ERRORS times that of the plain function is therefore allowed.
GRADIENT_TOLERANCE = {"fp32": 1e-3, "tf32": 0.05, "bf16": 0.25}
PLAIN_ERRORS = 2.0

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # the folder of compiled code; default: a temporary one

# Computes `gradients_of` a training step in a precision, by the given function or, if it is None, by the plain one.
Gradients: TypeAlias = Callable[[Callable[..., Any] | None, str], list[Tensor]]


@dataclass
class Compilation:
    """The result of compiling: the compiled function, or None and the reason for its refusal.

    error: the relative error of the compiled function's gradients, see GRADIENT_TOLERANCE.
    A function that fails later becomes the plain one, and the reason is set then.
    """

    function: Callable[..., Any] | None = None
    refused: str = ""
    error: float | None = None

    def faster(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function. Where the compiled function fails, this and all later calls are plain."""
        compiled = torch.compile(plain)

        def call(*inputs: Any) -> Any:
            if not self.refused:
                try:
                    return compiled(*inputs)
                except Exception as error:
                    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                        raise  # the capture is lost
                    self.refused = failure(error)
            return plain(*inputs)

        return call

    @property
    def facts(self) -> dict[str, Any]:
        """The facts for run.json."""
        if self.refused:
            return {"compiled": False, "not_compiled": self.refused}
        return {"compiled": self.function is not None}

    @property
    def notes(self) -> list[Note]:
        """The messages for the user."""
        return [Note(f"trains without torch.compile: {self.refused}")] if self.refused else []


@functools.cache
def cache_fault() -> str:
    """Return why the folder of compiled code cannot be created, or "". Call it before an optimizer is made.

    Every optimizer imports torch's compiler, which creates the folder. If it cannot, an existing folder replaces it,
    and nothing is compiled.
    """
    try:
        os.makedirs(os.environ.get(CACHE) or tempfile.gettempdir(), exist_ok=True)
    except OSError as error:
        os.environ[CACHE] = os.sep
        return failure(error)
    return ""


def gradients_of(net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> list[Tensor]:
    """Compute the loss's gradients by the network's parameters, and its buffers afterwards, without changing it."""
    before = [buffer.clone() for buffer in net.buffers()]
    try:
        with random_generators(0, device):
            gradients = torch.autograd.grad(loss(), list(net.parameters()))
        return [*gradients, *(buffer.clone() for buffer in net.buffers())]
    finally:
        for buffer, value in zip(net.buffers(), before, strict=True):
            buffer.data.copy_(value)


def compiled(function: Callable[..., Any], gradients: Gradients, precision: str) -> Compilation:
    """Compile a function by torch.compile, or refuse it if compiling fails or its gradients are wrong.

    Compiling needs a C++ compiler, a folder for its cache and, on a GPU, Triton.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of CUDA on a machine without a GPU
    if fault := cache_fault():
        return Compilation(refused=fault)
    result = Compilation()
    try:
        if not here.meet:  # else another run may have compiled the same code
            torch.compiler.reset()  # torch keeps at most eight compiled versions of a function in a process
        checked = check_gradients(result.faster(function), gradients, precision)
        result.error, result.refused = checked.error, result.refused or checked.refused
        result.function = None if result.refused else checked.function
    except Exception as error:  # torch's compiler raises errors of any kind
        result.refused = failure(error)
    finally:
        if torch.cuda.is_initialized():  # the step in fp32 took more memory than training steps will
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return result


def failure(error: Exception) -> str:
    """Return the reason for a refusal after this error."""
    return f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def check_gradients(faster: Callable[..., Any], gradients: Gradients, precision: str) -> Compilation:
    """Return the compiled function and the error of its gradients, or refuse it if the error is too large."""
    exact, plain, tolerance = gradients(None, "fp32"), gradients(None, precision), GRADIENT_TOLERANCE[precision]
    norms = [
        torch.maximum(norm(right), PLAIN_ERRORS / tolerance * norm(rounded - right))
        for rounded, right in zip(plain, exact, strict=True)
    ]
    worst = relative_error(gradients(faster, precision), exact, norms)
    if not worst <= tolerance:
        return Compilation(refused=f"its gradients differ from the plain ones by {100 * worst:.3g} %", error=worst)
    return Compilation(faster, error=worst)


def norm(x: Tensor) -> Tensor:
    """Compute the 2-norm of all elements (), in float64."""
    result: Tensor = torch.linalg.vector_norm(x.to(float64_device(x.device)).double())
    return result


def relative_error(found: Iterable[Tensor], expected: Sequence[Tensor], norms: Iterable[Tensor] | None = None) -> float:
    """Return the largest norm of a difference over the expected tensor's norm, or over `norms`; nan if one is nan."""
    errors = [0.0]
    for tensor, target, over in zip(found, expected, norms or map(norm, expected), strict=True):
        if not torch.equal(tensor, target):
            errors.append((norm(tensor - target) / over).item())
    return torch.tensor(errors, dtype=torch.float64).max().item()  # Python's max can lose nan

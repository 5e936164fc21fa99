"""torch.compile of a part of a model, used only if its gradients equal the plain gradients."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from wnrepro.device import random_generators
from wnrepro.events import Note

# Largest relative error of a compiled function's gradients and buffers against the plain ones in fp32: the norm of the
# difference over the norm. A wrong derivative has an error of about 1. If the terms of a gradient nearly cancel, its
# norm is small compared with rounding. An error of PLAIN_ERRORS times that of the plain function is therefore allowed.
GRADIENT_TOLERANCE = {"fp32": 1e-3, "tf32": 0.05, "bf16": 0.25}
PLAIN_ERRORS = 2.0

# Computes `gradients_of` a training step in a precision, by the given function or, if it is None, by the plain one.
Gradients: TypeAlias = Callable[[Callable[..., Any] | None, str], list[Tensor]]


@dataclass(frozen=True)
class Compilation:
    """The result of compiling: the compiled function, or None and the reason for its refusal.

    error: the relative error of the compiled function's gradients, see GRADIENT_TOLERANCE.
    """

    function: Callable[..., Any] | None = None
    refused: str = ""
    error: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The facts for run.json."""
        return {"compiled": self.function is not None, **({"not_compiled": self.refused} if self.refused else {})}

    @property
    def notes(self) -> list[Note]:
        """The messages for the user."""
        return [Note(f"trains without torch.compile: {self.refused}")] if self.refused else []


def gradients_of(net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> list[Tensor]:
    """Compute the loss's gradients by the network's parameters, and its buffers afterwards, without changing it."""
    before = [buffer.clone() for buffer in net.buffers()]
    with random_generators(0, device):
        gradients = torch.autograd.grad(loss(), list(net.parameters()))
    after = [buffer.clone() for buffer in net.buffers()]
    for buffer, value in zip(net.buffers(), before, strict=True):
        buffer.data.copy_(value)
    return [*gradients, *after]


def compiled(function: Callable[..., Any], gradients: Gradients, precision: str) -> Compilation:
    """Compile a function by torch.compile, or refuse it if compiling fails or its gradients are wrong.

    Compiling needs a C++ compiler and, on a GPU, Triton.
    """
    torch.compiler.reset()  # torch keeps at most eight compiled versions of a function in a process
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of CUDA on a machine without a GPU
    try:
        return check_gradients(torch.compile(function), gradients, precision)
    except RuntimeError as error:
        return Compilation(refused=f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    finally:
        if torch.cuda.is_initialized():  # the step in fp32 took more memory than training steps will
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


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
    result: Tensor = torch.linalg.vector_norm(x.double())
    return result


def relative_error(found: Iterable[Tensor], expected: Sequence[Tensor], norms: Iterable[Tensor] | None = None) -> float:
    """Return the largest norm of a difference over the expected tensor's norm, or over `norms`; nan if one is nan."""
    errors = [0.0]
    for tensor, target, over in zip(found, expected, norms or map(norm, expected), strict=True):
        if not torch.equal(tensor, target):
            errors.append((norm(tensor - target) / over).item())
    return torch.tensor(errors, dtype=torch.float64).max().item()  # Python's max can lose nan

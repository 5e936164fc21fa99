"""torch.compile of a part of a model, used only where its gradients are the plain ones."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from wnrepro.device import random_generators
from wnrepro.events import Note

# Largest relative error of any gradient or buffer of a compiled function against the plain ones in fp32, as the norm of
# the difference over the norm. A wrong derivative is off by about 1. Where the terms of a gradient nearly cancel, its
# norm is small beside rounding, so each may also be off by PLAIN_ERRORS times the plain one's error in its precision.
GRADIENT_TOLERANCE = {"fp32": 1e-3, "tf32": 0.05, "bf16": 0.25}
PLAIN_ERRORS = 2.0

# `gradients_of` one training step in a precision, with this function in place of the plain one, or with the plain one.
Gradients: TypeAlias = Callable[[Callable[..., Any] | None, str], list[Tensor]]


@dataclass(frozen=True)
class Compilation:
    """The outcome of compiling: the function, or None and why the plain one is used.

    error: of the compiled function's gradients, see GRADIENT_TOLERANCE.
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
        """For the person who watches the run."""
        return [Note(f"trains without torch.compile: {self.refused}")] if self.refused else []


def gradients_of(net: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> list[Tensor]:
    """The gradients of a loss by the network's parameters, and its buffers afterwards; changes nothing."""
    before = [buffer.clone() for buffer in net.buffers()]
    with random_generators(0, device):
        gradients = torch.autograd.grad(loss(), list(net.parameters()))
    after = [buffer.clone() for buffer in net.buffers()]
    for buffer, value in zip(net.buffers(), before, strict=True):
        buffer.data.copy_(value)
    return [*gradients, *after]


def compiled(function: Callable[..., Any], gradients: Gradients, precision: str) -> Compilation:
    """torch.compile of a function, where it works and its gradients are right.

    It needs a C++ compiler and, on a GPU, Triton.
    """
    torch.compiler.reset()  # a process keeps eight compiled versions of a function, over all of its runs
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of CUDA on a machine without a GPU
    try:
        return judged(torch.compile(function), gradients, precision)
    except RuntimeError as error:
        return Compilation(refused=f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    finally:
        if torch.cuda.is_initialized():  # a step in fp32 takes more memory than those to come
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def judged(faster: Callable[..., Any], gradients: Gradients, precision: str) -> Compilation:
    """The compiled function with the error of its gradients, or refused because of that error."""
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
    """The 2-norm of all elements (), in float64."""
    result: Tensor = torch.linalg.vector_norm(x.double())
    return result


def relative_error(found: Iterable[Tensor], expected: Sequence[Tensor], norms: Iterable[Tensor] | None = None) -> float:
    """The largest norm of a difference over the expected tensor's norm, or over these norms; nan where one is nan."""
    errors = [0.0]
    for tensor, target, over in zip(found, expected, norms or map(norm, expected), strict=True):
        if not torch.equal(tensor, target):
            errors.append((norm(tensor - target) / over).item())
    return torch.tensor(errors, dtype=torch.float64).max().item()  # Python's max can lose nan

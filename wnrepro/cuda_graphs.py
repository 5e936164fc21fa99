"""Training steps as CUDA graphs."""

import os
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

PLAIN_CALLS = 3  # before a function is captured: it makes what it makes once, and cuDNN tries its convolutions out

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]


class CaptureError(RuntimeError):
    """A step could not be captured; the process that tried can do nothing more on its GPU."""


def capture_failed(error: BaseException | None) -> bool:
    """Whether the error is a CaptureError, or followed from one: tidying up after it may fail too."""
    return error is not None and (isinstance(error, CaptureError) or capture_failed(error.__context__))


def graphs_allowed() -> bool:
    """Whether steps may be captured: not where the environment has WNREPRO_GRAPHS=0."""
    return os.environ.get("WNREPRO_GRAPHS") != "0"


class Captured:
    """A function of tensors that a GPU repeats as a CUDA graph; on a CPU the plain function.

    The first PLAIN_CALLS calls are plain; the next one is captured and, like all later ones, replayed with its inputs
    copied into those of the capture. Each set of input shapes has its own graph. The function may neither wait for the
    device nor depend on host values that change from call to call: it reads these from tensors, which stay in place.
    Random numbers are those of plain calls. An output is valid until the next call. Raises CaptureError.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
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
    """A CUDA graph of a function for one set of input shapes."""

    def __init__(self) -> None:
        self.calls, self.captured = 0, False
        self.stream = torch.cuda.Stream()  # of the plain calls and of the capture: autograd remembers it
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def run(self, function: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the function, capture it, or replay it."""
        self.calls += 1
        if self.calls <= PLAIN_CALLS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if not self.captured:
            self.capture(function, inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.outputs

    def capture(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        """Capture a call. Raises CaptureError."""
        self.inputs = tuple(x.clone() for x in inputs)
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.outputs = function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(f"a step cannot be captured as a CUDA graph ({error})") from error
        self.captured = True

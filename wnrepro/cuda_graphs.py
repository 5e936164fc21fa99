"""Training steps as CUDA graphs."""

import os
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

PLAIN_CALLS = 3  # before a capture: the function allocates its lasting tensors, and cuDNN selects its algorithms

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]


class CaptureError(RuntimeError):
    """A step could not be captured, after which the process can no longer use its GPU."""


def capture_failed(error: BaseException | None) -> bool:
    """Test whether the error is a CaptureError or was raised while one was handled, for example by cleanup."""
    return error is not None and (isinstance(error, CaptureError) or capture_failed(error.__context__))


def graphs_allowed() -> bool:
    """Test whether steps may be captured: the environment variable WNREPRO_GRAPHS is not 0."""
    return os.environ.get("WNREPRO_GRAPHS") != "0"


class Captured:
    """A function of tensors that a GPU replays as a CUDA graph. On a CPU it is the plain function.

    The first PLAIN_CALLS calls are plain; the next call is captured. It and all later calls copy their inputs to the
    graph's inputs and replay the graph. Each set of input shapes has its own graph. The function may neither wait for
    the device nor use host values that change between calls; it must read such values from tensors that stay in place.
    Random numbers equal those of plain calls. An output is valid until the next call. Raises CaptureError.
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
        self.stream = torch.cuda.Stream()  # for plain calls and capture alike, since autograd remembers the stream
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

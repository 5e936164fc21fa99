"""Training steps as CUDA graphs, each with a branch for every run that trains in this process."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

PLAIN_CALLS = 3  # before a capture: the function allocates its lasting tensors, and cuDNN selects its algorithms

Tensors: TypeAlias = tuple[Tensor, ...]
Function: TypeAlias = Callable[..., Tensors]


class CaptureError(RuntimeError):
    """A step could not be captured, after which the process can no longer use its GPU."""


def capture_failed(error: BaseException | None) -> bool:
    """Test whether the error is a CaptureError or was raised while one was handled, for example by cleanup."""
    return error is not None and (isinstance(error, CaptureError) or capture_failed(error.__context__))


def graphs_allowed() -> bool:
    """Test whether steps may be captured: the environment variable WNREPRO_GRAPHS is not 0."""
    return os.environ.get("WNREPRO_GRAPHS") != "0"


class Here(threading.local):
    """What computes this thread's calls of captured functions, if it is one of several runs; see `lockstep`.

    together: the number of these runs.
    """

    meet: "Callable[[Captured, Tensors], Tensors] | None" = None
    together = 1

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream of this thread's captured functions. torch has 32, so that more would not be different ones."""
        return torch.cuda.Stream()


here = Here()


class Captured:
    """A function of tensors that a GPU replays as a CUDA graph. On a CPU it is the plain function.

    The first PLAIN_CALLS calls are plain; the next call is captured. It and all later calls copy their inputs to the
    graph's inputs and replay the graph. Each set of input shapes has its own graph. The function may neither wait for
    the device nor use host values that change between calls; it must read such values from tensors that stay in place.
    Random numbers equal those of plain calls. An output is valid until the next call. Raises CaptureError.

    together: the runs of a `Lockstep` call this function at the same time, so that their calls can be one graph.
    """

    def __init__(self, function: Function, device: torch.device, together: bool = True) -> None:
        self.function, self.captures = function, device.type == "cuda" and graphs_allowed()
        self.together = together
        self.stream: torch.cuda.Stream | None = None  # of the first call's thread
        self.graphs: dict[tuple[torch.Size, ...], Branch] = {}

    def __call__(self, *inputs: Tensor) -> Tensors:
        if self.captures:
            self.stream = self.stream or here.stream
        if self.together and here.meet:
            return here.meet(self, inputs)
        return self.call(inputs)

    def call(self, inputs: Tensors) -> Tensors:
        """Compute the function for this run alone."""
        if not self.captures:
            return self.function(*inputs)
        branch = self.branch(inputs)
        if not branch.ready:
            return branch.plain(inputs)
        if branch.graph is None:
            branch.graph = Graph([branch], [inputs])
        return branch.graph.replay([inputs])[0]

    def branch(self, inputs: Tensors) -> "Branch":
        """Return the branch for inputs of these shapes."""
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.graphs:
            assert self.stream is not None
            self.graphs[shapes] = Branch(self.function, self.stream)
        return self.graphs[shapes]


class Branch:
    """A function for one set of input shapes, as a part of a graph.

    Plain calls and the capture use the same stream, since autograd remembers it.
    """

    def __init__(self, function: Function, stream: torch.cuda.Stream) -> None:
        self.function, self.calls, self.stream = function, 0, stream
        self.graph: Graph | None = None  # with this branch alone

    @property
    def ready(self) -> bool:
        """Whether the next call can be captured."""
        return self.calls >= PLAIN_CALLS

    def plain(self, inputs: Tensors) -> Tensors:
        """Call the function."""
        self.calls += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs


Context: TypeAlias = contextlib.AbstractContextManager[object]


class Graph:
    """A CUDA graph that computes several branches at the same time: one stream forks into theirs and joins them."""

    def __init__(
        self,
        branches: Sequence[Branch],
        inputs: Sequence[Tensors],
        contexts: Sequence[Context] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        """Capture a call of each branch, within its context. Raises CaptureError.

        generators: the generators whose states the contexts make the global one's.
        """
        self.graph = torch.cuda.CUDAGraph()
        self.inputs = [tuple(x.clone() for x in given) for given in inputs]
        self.outputs: list[Tensors] = []
        first, *others = (branch.stream for branch in branches)
        try:
            for generator in generators:
                self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph, stream=first):
                for stream in others:
                    stream.wait_stream(first)
                for branch, own, context in zip(
                    branches, self.inputs, contexts or [contextlib.nullcontext()] * len(branches), strict=True
                ):
                    with context, torch.cuda.stream(branch.stream):
                        self.outputs.append(branch.function(*own))
                for stream in others:
                    first.wait_stream(stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(f"a step cannot be captured as a CUDA graph ({error})") from error

    def replay(self, inputs: Sequence[Tensors]) -> list[Tensors]:
        """Compute every branch on its inputs, and return their outputs, which are valid until the next call."""
        for own, given in zip(self.inputs, inputs, strict=True):
            for mine, value in zip(own, given, strict=True):
                mine.copy_(value)
        self.graph.replay()
        return self.outputs

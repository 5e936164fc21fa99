"""Stand-ins for a GPU's graphs, which record operators on the CPU, and the experiments whose steps they record."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from factories import tiny_run
from layer_factories import Calls
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wnrepro.cuda_graphs import Captured, here
from wnrepro.events import Epoch
from wnrepro.parameterization import norm

aten = torch.ops.aten
# The value of a tensor, an index of unknown length, a tensor of the host's numbers.
REFUSED = (aten._local_scalar_dense.default, aten.nonzero.default, aten.lift_fresh.default)


class Recording(Calls):
    """Runs operators, and replays them into the same tensors; what the host decides or reads is not among them."""

    new = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in REFUSED, f"{func}: host and device would have to wait for each other"
        return super().__torch_dispatch__(func, types, args, kwargs)

    @torch.no_grad()
    def replay(self) -> None:
        if self.new:  # a real capture runs nothing; this one has run the operators once
            self.new = False
            return
        for func, args, kwargs, outputs in self.calls:
            given = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            for mine, again in zip(outputs, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(mine, Tensor) and mine.data_ptr() not in given:
                    mine.copy_(again)


def record_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set stand-ins for torch's graphs, so that steps are recorded on the CPU."""

    class Stream:
        def wait_stream(self, _: Any) -> None: ...

    used: list[Any] = []

    @contextlib.contextmanager
    def plain_calls(stream: Any) -> Iterator[None]:
        used.append(stream)
        yield

    @contextlib.contextmanager
    def capture(graph: Recording, stream: Any) -> Iterator[None]:
        assert any(one is stream for one in used)  # autograd remembers it
        with graph:
            yield
        graph.new = True

    monkeypatch.setattr(norm, "values_are_at_hand", lambda x: False)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setitem(vars(here), "stream", Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", plain_calls)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", capture)


MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw", "dqn")


def make(model: str, param: str, device: str = "cpu", **given: Any) -> Any:
    changes: dict[str, Any] = {"checkpoint_replay": True, "epoch_steps": 60} if model == "dqn" else {}
    if model == "cifar":
        changes = {"noise_epochs": (), "v_norm_max": 2.0 if param == "wn" else None}
    return tiny_run(model, param, device, **changes, **given)[2]()


def captures_of(made: Any) -> list[Captured]:
    found = [value for name, value in vars(made).items() if name.startswith("captured_")]
    return [one for value in found for one in (value.values() if isinstance(value, dict) else [value])]


def measure(made: Any, epochs: int) -> list[list[float]]:
    """The losses and test results of this many epochs; lr and β1 of the classifier change in the third."""
    made.settings = dataclasses.replace(made.settings, epochs=made.epoch + epochs)
    found = [event for event in made.train() if isinstance(event, Epoch)]
    assert not any(event.diverged for event in found)
    return [[value for name, value in event.metrics.items() if name != "seconds"] for event in found]


FAST = {"cifar": "wn+mobn", "draw": "wn+mobn"}

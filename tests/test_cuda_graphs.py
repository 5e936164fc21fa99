"""Captured steps against plain ones: on a GPU as CUDA graphs; on a CPU by a stand-in that replays operators."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from factories import tiny_run
from layer_factories import Calls
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wnrepro.compiling import GRADIENT_TOLERANCE, compiled
from wnrepro.cuda_graphs import PLAIN_CALLS, Captured, CaptureError, graphs_allowed
from wnrepro.events import Epoch
from wnrepro.experiments import cifar, draw, experiment_class
from wnrepro.runs.checkpoint import rng_state, set_rng_state
from wnrepro.settings import PARAMS

CPU = torch.device("cpu")
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


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for torch's graphs, so that steps are recorded on the CPU."""

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

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", plain_calls)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", capture)


def test_function_is_captured_once_for_each_set_of_shapes(recorded: None) -> None:
    """After its plain calls, and not on a CPU; its inputs are copied, its own tensors stay."""
    calls, total = [], torch.zeros(())

    def add(x: Tensor) -> tuple[Tensor]:
        calls.append(len(x))
        total.add_(x.sum())
        return (2 * x,)

    plain, captured = Captured(add, CPU), Captured(add, CPU)
    captured.captures = True
    for function, expected in ((plain, 10), (captured, 2 * (PLAIN_CALLS + 1))):
        calls.clear()
        total.zero_()
        for k in range(5):
            for x in (torch.full((3,), float(k)), torch.full((2,), -1.0)):
                assert torch.equal(function(x)[0], 2 * x)
        assert len(calls) == expected
        assert total == 3 * 10 - 2 * 5


@pytest.mark.parametrize("factor", [lambda x: x.sum().item(), lambda x: torch.tensor(2.0), None])
def test_step_that_cannot_be_captured_raises(
    recorded: None, factor: Callable[[Tensor], Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a value or copies a number, which the stand-in refuses; or torch fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("would have to wait")

    captured = Captured(lambda x: (x * factor(x) if factor else x,), CPU)
    captured.captures = True
    for _ in range(PLAIN_CALLS):
        captured(torch.ones(2))
    if not factor:
        monkeypatch.setattr(torch.cuda, "graph", fail)
    with pytest.raises(AssertionError if factor else CaptureError, match="would have to wait"):
        captured(torch.ones(2))


def test_graphs_are_switched_off_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, captures in ((None, True), ("0", False)):
        if given:
            monkeypatch.setenv("WNREPRO_GRAPHS", given)
        assert Captured(lambda: (), torch.device("cuda")).captures == graphs_allowed() == captures


MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw", "dqn")


def make(model: str, param: str, device: str = "cpu") -> Any:
    changes: dict[str, Any] = {"checkpoint_replay": True, "epoch_steps": 60} if model == "dqn" else {}
    if model == "cifar":
        changes = {"noise_epochs": (), "v_norm_max": 2.0 if param == "wn" else None}
    return tiny_run(model, param, device, **changes)[2]()


def captures_of(made: Any) -> list[Captured]:
    found = [value for name, value in vars(made).items() if name.startswith("captured_")]
    return [one for value in found for one in (value.values() if isinstance(value, dict) else [value])]


def measure(made: Any, epochs: int) -> list[list[float]]:
    """The losses and test results of this many epochs; lr and β1 of the classifier change in the third."""
    made.settings = dataclasses.replace(made.settings, epochs=made.epoch + epochs)
    found = [event for event in made.train() if isinstance(event, Epoch)]
    assert not any(event.diverged for event in found)
    return [[value for name, value in event.metrics.items() if name != "seconds"] for event in found]


def compare(construct: Callable[[], Any], captures: Callable[[Any], None], epochs: int, tolerance: float) -> None:
    """Compare 2·epochs, and those resumed from a checkpoint."""
    torch.manual_seed(0)
    plain, captured, resumed = (construct() for _ in range(3))
    for one in captures_of(plain):
        one.captures = False
    for made in (captured, resumed):
        captures(made)
    begun, found = [], []
    for made in (plain, captured):
        torch.manual_seed(1)
        begun.append(measure(made, epochs))
        state, rng = copy.deepcopy(made.state_dict()), rng_state()
        found.append(measure(made, epochs))
    np.testing.assert_allclose(begun[1] + found[1], begun[0] + found[0], rtol=tolerance, atol=tolerance)
    resumed.load_state_dict(state)
    set_rng_state(rng)
    np.testing.assert_allclose(measure(resumed, epochs), found[1], rtol=tolerance, atol=tolerance)
    assert all(len(one.graphs) >= 1 for one in captures_of(captured))


def compiles(test: Any) -> Any:
    """Ignore torch's warnings, which as errors would make compiling fail, so that plain steps would be tested."""
    for message in ("The .grad attribute of a Tensor that is not a leaf", "TensorFloat32 tensor cores"):
        test = pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")(test)
    return pytest.mark.usefixtures("unchecked")(test)


@compiles
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("name", [*MODELS, "cifar compiled", "draw compiled"])
def test_captured_steps_match_plain_ones(name: str, param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, faster, _ = name.partition(" compiled")
    for module in (cifar, draw) if faster else ():
        monkeypatch.setattr(module, "COMPILED_FROM", 0)

    def construct() -> Any:
        made = make(model, param, "cuda")
        assert not faster or made.compilation.function, made.compilation.refused
        return made

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    compare(construct, lambda made: None, 5, 1e-3)


FAST = {"cifar": "wn+mobn", "draw": "wn+mobn"}


@pytest.mark.parametrize(
    ("name", "param"),
    [
        pytest.param(name, param, marks=[pytest.mark.slow] * (FAST.get(name) != param))
        for name in MODELS
        for param in PARAMS
    ],
)
def test_recorded_steps_match_plain_ones(recorded: None, name: str, param: str) -> None:
    def capture(made: Any) -> None:
        for one in captures_of(made):
            one.captures = True

    compare(lambda: make(name, param), capture, 2 if name == "cifar" else 1, 1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_step_uses_fast_kernels(name: str) -> None:
    """Optimizer and average use few kernels, over lists of tensors of equal layout; no gradient is an index_put."""
    experiment, settings, _ = tiny_run(name, "bn", **({} if name == "dqn" else {"train_examples": 400}))
    made = experiment_class(experiment).on_noise(settings, CPU)
    made.train_once()
    recording = Calls()

    def record(*inputs: Tensor) -> tuple[Tensor, ...]:
        with recording:
            return made.step(*inputs)

    made.captured_step = record
    made.train_once()
    used = [func.overloadpacket for func, *_ in recording.calls]
    assert not {aten.index_put, aten._index_put_impl_}.intersection(used)
    of_lists = [args for func, args, *_ in recording.calls if "_foreach_" in func.name()]
    assert len(of_lists) >= (2 if name == "draw" else 4)  # torch's fused Adam is one operation
    for args in of_lists:
        first, *others = (part for part in args if isinstance(part, list | tuple) and isinstance(part[0], Tensor))
        for other in others:
            assert [(x.dtype, x.shape) for x in other] == [(x.dtype, x.shape) for x in first]
            assert all(x.squeeze().stride() == y.squeeze().stride() for x, y in zip(other, first, strict=True))


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("name", ["cifar", "draw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps_have_the_right_gradients(name: str, precision: str) -> None:
    """Under the parameterization with the most operations."""
    made = make(name, "wn+mobn")
    function = made.net.layers if name == "cifar" else made.net.time_step
    outcome = compiled(function, made.gradients, precision)
    assert outcome.function
    assert 0 < (outcome.error or 0) < GRADIENT_TOLERANCE[precision]

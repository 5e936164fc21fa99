"""Captured steps against plain ones: on a GPU as CUDA graphs; on a CPU by a stand-in that replays operators."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from factories import tiny_run
from graph_factories import FAST, MODELS, captures_of, make, measure
from layer_factories import Calls
from torch import Tensor

from wnrepro.compiling import GRADIENT_TOLERANCE, compiled
from wnrepro.cuda_graphs import PLAIN_CALLS, Captured, CaptureError, graphs_allowed
from wnrepro.experiments import cifar, cvae, draw, experiment_class
from wnrepro.runs.checkpoint import rng_state, set_rng_state
from wnrepro.settings import PARAMS
from wnrepro.tools.kernels import COMPILED

CPU = torch.device("cpu")
aten = torch.ops.aten
COMPILED_MODELS = [model for model in MODELS if model != "cvae cifar10" and model.split()[0] in COMPILED]


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
@pytest.mark.parametrize("name", [*MODELS, *(f"{name} compiled" for name in COMPILED_MODELS)])
def test_captured_steps_match_plain_ones(name: str, param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, faster, _ = name.partition(" compiled")
    for module in (cifar, cvae, draw) if faster else ():
        monkeypatch.setattr(module, "COMPILED_FROM", 0)

    def construct() -> Any:
        made = make(model, param, "cuda")
        assert not faster or made.compilation.function, made.compilation.refused
        return made

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    compare(construct, lambda made: None, 5, 1e-3)


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
@pytest.mark.parametrize("name", COMPILED_MODELS)
@pytest.mark.parametrize(("param", "precision"), [*((param, "fp32") for param in PARAMS), ("wn+mobn", "bf16")])
def test_compiled_steps_have_the_right_gradients(name: str, param: str, precision: str) -> None:
    """After the init pass, in bf16 under the parameterization with the most operations.

    Before it, the small network's signals vanish with depth, and their means are rounding errors.
    """
    made = make(name, param).ready()
    function = getattr(made.net, COMPILED[name.split()[0]])
    outcome = compiled(function, made.gradients, precision)
    assert outcome.function
    assert 0 < (outcome.error or 0) < GRADIENT_TOLERANCE[precision]

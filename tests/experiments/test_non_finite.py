"""A number that is not finite, or overflows, in training: it ends the run as diverged, or is in metrics.csv."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from factories import tiny_run
from torch import Tensor

from wnrepro.events import Epoch
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.measurements import layer_rows
from wnrepro.settings import PARAMS

UPDATES = {"dqn": 5}  # of an epoch; the others have ten
MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw", "dqn")


def make(model: str, param: str, epochs: int = 1) -> Any:
    few = {"noise_epochs": (1,), "decay_from": 1} if model == "cifar" else {}
    return tiny_run(model, param, epochs=epochs, **few)[2]()


def put(tensor: Tensor, value: float) -> Tensor:
    """Set the tensor's first element, in place."""
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = value
    return tensor


def train(experiment: Any, place: str, value: float, at: int, chosen: float) -> tuple[list[dict[str, Any]], str]:
    """Train with one value set in update `at`: rows of metrics.csv, and how it diverged.

    place: loss, gradient or parameter; chosen: which parameter, as a fraction of their number.
    """
    # The topmost unit's upward branch leads nowhere, as in the authors' code: it has no gradient.
    parameters = [p for name, p in experiment.net.named_parameters() if not name.startswith("units.1.up2.")]
    p, number = parameters[int(chosen * len(parameters))], 0
    if isinstance(experiment, Dqn) and place != "parameter":
        experiment.test = lambda epsilon: [{"epoch": 1, "game": 1, "score": 3.0}]  # games take the most time

    def output(_net: Any, _inputs: Any, outputs: Any) -> Any:
        nonlocal number
        number += experiment.net.training and torch.is_grad_enabled()
        if number != at or not torch.is_grad_enabled():
            return None
        return tuple(each * value for each in outputs) if isinstance(outputs, tuple) else outputs * value

    def gradient(grad: Tensor) -> Tensor:
        nonlocal number
        number += 1
        return put(grad.clone(), value) if number == at else grad

    def update(*_: Any) -> None:
        nonlocal number
        number += 1
        if number == at:
            put(p, value)

    if place == "loss":
        experiment.net.register_forward_hook(output)
    elif place == "gradient":
        p.register_hook(gradient)
    else:
        experiment.optimizer.register_step_post_hook(update)
    epochs = [event for event in experiment.train() if isinstance(event, Epoch)]
    assert number >= at
    return [epoch.metrics for epoch in epochs], epochs[-1].diverged


def finite(rows: list[dict[str, Any]]) -> bool:
    return all(math.isfinite(value) for row in rows for value in row.values())


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state dict."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list):
        for each in state.values() if isinstance(state, dict) else state:
            yield from tensors(each)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["loss", "gradient", "parameter"])
@pytest.mark.parametrize("model", MODELS)
def test_non_finite_value_is_not_averaged_away(
    model: str, place: str, times: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    draw, diverged = random.Random(f"{model} {place}"), 0
    for _ in range(times(1, 60)):
        value, param = draw.choice([math.nan, math.inf, -math.inf]), draw.choice(PARAMS)
        at, chosen = draw.choice([1, 3, UPDATES.get(model, 10)]), draw.random()
        rows, how = train(make(model, param), place, value, at, chosen)
        assert how or not finite(rows), (param, value, at, chosen)
        diverged += bool(how)
    count(f"{model}, {place} not finite: {diverged} runs diverged, the others have it in metrics.csv")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_overflow_is_noticed_or_left_no_trace(
    model: str, times: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    draw, diverged = random.Random(model), 0
    for number in range(times(1 if model == "dqn" else 2, 60)):
        place, value = ("gradient", "parameter")[number % 2], draw.choice([1e20, 1e21, 1e30, 3e38])
        experiment, at = make(model, draw.choice(PARAMS)), draw.choice([1, 3, UPDATES.get(model, 10)])
        rows, how = train(experiment, place, value, at, draw.random())
        state = [each for each in tensors(experiment.state_dict()) if each.is_floating_point()]
        norms = [row["v_norm_max"] for row in layer_rows(experiment.net, 1)]
        harmless = all(each.isfinite().all() for each in state) and max(norms) < math.inf
        assert how or not finite(rows) or harmless, (place, value, at)
        diverged += bool(how)
    count(f"{model}, overflow: {diverged} runs diverged")


@pytest.mark.parametrize("model", ["cifar", "cvae mnist", "draw", pytest.param("dqn", marks=pytest.mark.slow)])
def test_norm_that_overflows_ends_a_run(model: str) -> None:
    """A weight g·v/‖v‖ would be 0, and no loss would tell."""
    experiment = make(model, "wn", epochs=2)
    names = [name for name, _ in experiment.net.named_parameters()]
    first = next(place for place, name in enumerate(names) if name.endswith(".v"))
    rows, diverged = train(experiment, "parameter", 1e20, UPDATES.get(model, 10), (first + 0.5) / len(names))
    assert len(rows) == 1 and diverged


def test_gradient_whose_square_overflows_ends_a_run() -> None:
    """Adam would no longer move that parameter, and no loss would tell."""
    rows, diverged = train(make("cifar", "wn", epochs=2), "gradient", 1e21, 3, 0.0)
    assert len(rows) == 1 and finite(rows) and "conv1.v" in diverged

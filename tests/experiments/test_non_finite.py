"""A number that is not finite, or overflows, in training: it ends the run as diverged, or is in metrics.csv."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import tiny_run
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wnrepro.events import Epoch
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.measurements import layer_rows
from wnrepro.settings import PARAMS

UPDATES = {"dqn": 5}  # of an epoch; the others have ten
MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw", "dqn")


def make(model: str, param: str, epochs: int = 1) -> Any:
    few = {"noise_epochs": (1,), "decay_from": 1} if model == "cifar" else {}
    return tiny_run(model, param, epochs=epochs, **few)[2]()


def train(experiment: Any, place: str, value: float, at: int, chosen: float) -> tuple[bool, str]:
    """Train with one value set in update `at`: whether metrics.csv is finite, and how it diverged.

    place: loss, gradient or parameter; chosen: which parameter, as a fraction of their number.
    """
    # The topmost unit's upward branch leads nowhere, as in the authors' code: it has no gradient.
    parameters = [p for name, p in experiment.net.named_parameters() if not name.startswith("units.1.up2.")]
    p, number = parameters[int(chosen * len(parameters))], 0
    if isinstance(experiment, Dqn) and place != "parameter":
        experiment.test = lambda epsilon: [{"epoch": 1, "game": 1, "score": 3.0}]  # games take the most time

    def is_due(counts: bool = True) -> bool:
        nonlocal number
        number += counts
        return counts and number == at

    def output(_net: Any, _inputs: Any, outputs: Any) -> Any:
        if not is_due(experiment.net.training and torch.is_grad_enabled()):
            return None
        return tuple(each * value for each in outputs) if isinstance(outputs, tuple) else outputs * value

    def put(tensor: Tensor) -> Tensor:
        with torch.no_grad():
            tensor[(0,) * tensor.ndim] = value
        return tensor

    if place == "loss":
        experiment.net.register_forward_hook(output)
    elif place == "gradient":
        p.register_hook(lambda grad: put(grad.clone()) if is_due() else grad)
    else:
        experiment.optimizer.register_step_post_hook(lambda *_: put(p) if is_due() else None)
    epochs = [event for event in experiment.train() if isinstance(event, Epoch)]
    assert number >= at
    return all(math.isfinite(one) for epoch in epochs for one in epoch.metrics.values()), epochs[-1].diverged


@pytest.mark.slow
@pytest.mark.parametrize("what", ["loss", "gradient", "parameter", "overflow"])
@pytest.mark.parametrize("model", MODELS)
def test_value_is_noticed_or_left_no_trace(
    model: str, what: str, times: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    """One that is not finite is always noticed."""
    draw, diverged = random.Random(f"{model} {what}"), 0
    for number in range(times(1, 60)):
        overflow = what == "overflow"
        place = ("gradient", "parameter")[number % 2] if overflow else what
        value = draw.choice([1e20, 1e21, 1e30, 3e38] if overflow else [math.nan, math.inf, -math.inf])
        experiment, at = make(model, draw.choice(PARAMS)), draw.choice([1, 3, UPDATES.get(model, 10)])
        finite, how = train(experiment, place, value, at, draw.random())
        state = [each for each in tree_leaves(experiment.state_dict()) if isinstance(each, Tensor)]
        norms = [row["v_norm_max"] for row in layer_rows(experiment.net, 1)]
        harmless = overflow and all(each.isfinite().all() for each in state) and max(norms) < math.inf
        assert how or not finite or harmless, (place, value, at)
        diverged += bool(how)
    count(f"{model}, {what}: {diverged} runs diverged, the others have it in metrics.csv or stayed finite")


@pytest.mark.parametrize("model", ["cifar", "cvae mnist", "draw", pytest.param("dqn", marks=pytest.mark.slow)])
def test_norm_that_overflows_ends_a_run(model: str) -> None:
    """A weight g·v/‖v‖ would be 0, and no loss would tell."""
    experiment = make(model, "wn", epochs=2)
    names = [name for name, _ in experiment.net.named_parameters()]
    first = next(place for place, name in enumerate(names) if name.endswith(".v"))
    assert train(experiment, "parameter", 1e20, UPDATES.get(model, 10), (first + 0.5) / len(names))[1]
    assert experiment.epoch == 1


def test_gradient_whose_square_overflows_ends_a_run() -> None:
    """Adam would no longer move that parameter, and no loss would tell."""
    experiment = make("cifar", "wn", epochs=2)
    finite, diverged = train(experiment, "gradient", 1e21, 3, 0.0)
    assert finite and "conv1.v" in diverged and experiment.epoch == 1

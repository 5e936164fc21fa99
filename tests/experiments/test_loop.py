"""The training loop of every experiment: rows, progress, seeds, resume, divergence."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import make_images, make_pixels, tiny_cvae, tiny_dqn, tiny_draw

from wnrepro.events import Epoch, Progress
from wnrepro.experiments import experiment_class
from wnrepro.experiments.loop import Experiment
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS

CPU = torch.device("cpu")
MODELS = ("cifar", "mnist", "cifar10", "draw")
Make = Callable[..., Experiment[Any]]


@pytest.fixture
def make(tiny: Callable[..., Any]) -> Make:
    """make(model, param, **settings): an experiment whose epochs take a moment."""

    def experiment(model: str, param: str = "wn", **changes: object) -> Experiment[Any]:
        if model == "dqn":
            return experiment_class("dqn")(tiny_dqn(param, **changes), CPU)
        if model == "cifar":
            return experiment_class("cifar")(tiny(param, **changes), make_images(), CPU)
        if model == "draw":
            return experiment_class("draw")(tiny_draw(param, **changes), make_pixels("mnist"), CPU)
        return experiment_class("cvae")(tiny_cvae(param, model, **changes), make_pixels(model), CPU)

    return experiment


def epochs(experiment: Experiment[Any]) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def rows(events: list[Epoch]) -> list[str]:
    """All tables without times; as text, in which nan equals nan."""
    return [repr([event.metrics | {"seconds": 0}, event.tables]) for event in events]


@pytest.mark.parametrize("model", [*MODELS, "dqn"])
def test_rows_are_as_declared(make: Make, model: str) -> None:
    experiment = make(model, epochs=2)
    columns = list(experiment.settings.models[experiment.part].metrics)
    names = [name for name, _ in layers(experiment.net)]
    for number, event in enumerate(epochs(experiment), start=1):
        assert list(event.metrics) == columns
        assert event.metrics["epoch"] == event.epoch == number
        assert event.metrics["seconds"] > 0
        since = range(number - 1 if number == 1 else number, number + 1)
        assert [(row["epoch"], row["layer"]) for row in event.tables["layers"]] == [
            (e, n) for e in since for n in names
        ]
    assert experiment.facts["eq3_residual"] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"),
    [*((model, {}) for model in MODELS), ("cifar", {"polyak_epochs": 2.0}), ("draw", {"attention": False})],
)
@pytest.mark.parametrize("param", PARAMS)
def test_resume_equals_an_uninterrupted_run(make: Make, model: str, param: str, changes: dict[str, Any]) -> None:
    changes = {"epochs": 3, **({"lr": 0.01} if model == "draw" else {}), **changes}
    expected = epochs(make(model, param, **changes))
    first = make(model, param, **changes)
    next(event for event in first.train() if isinstance(event, Epoch) and event.epoch == 2)
    state, rng = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    second = make(model, param, **changes)
    second.load_state_dict(state)
    torch.set_rng_state(rng)
    assert rows(epochs(second)) == rows(expected[2:])
    assert second.facts == first.facts
    column = next(name for name in expected[0].metrics if name.startswith("train_"))
    change = expected[-1].metrics[column] - expected[0].metrics[column]
    assert change < 0 if model == "cifar" else change > 0, "it learns"


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, "dqn"])
def test_seed_repeats_and_seeds_differ(make: Make, model: str) -> None:
    one, again, other = (rows(epochs(make(model, epochs=1, seed=seed))) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("model", [*MODELS, "dqn"])
def test_divergence_ends_training(make: Make, model: str) -> None:
    lr = {"dqn": 1e6, "cifar": 30.0}.get(model, 100.0)
    (event,) = epochs(make(model, "normal", lr=lr, epochs=3))
    assert event.diverged and event.metrics["epoch"] == 1


@pytest.mark.parametrize("model", ["cifar", "mnist", "cifar10"])
def test_all_parameterizations_start_as_the_same_function(make: Make, model: str) -> None:
    losses = []
    for param in PARAMS:
        experiment = make(model, param)
        for row in experiment.initialize(torch.arange(60)):
            assert row["mean_abs_max"] < 1e-3
            assert row["variance_min"] == pytest.approx(1, abs=1e-2) == row["variance_max"]
        losses.append(experiment.facts["init_loss"])
    assert max(losses) == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_progress_counts_the_images_of_full_minibatches(make: Make, model: str) -> None:
    events = [event for event in make(model, epochs=1, batch_size=15).train() if isinstance(event, Progress)]
    assert [(event.epoch, event.done, event.total) for event in events] == [(1, 75, 195), (1, 150, 195)]

"""The training loop of every experiment: rows, progress, seeds, resume, divergence."""

from typing import Any

import pytest
import torch
from factories import tiny_run

from wnrepro.events import Epoch, Progress
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS

MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw")
each_model = pytest.mark.parametrize("model", [*MODELS, "dqn"])


def make(model: str, param: str = "wn", **changes: object) -> Any:
    return tiny_run(model, param, **changes)[2]()


def epochs(experiment: Any) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def rows(events: list[Epoch]) -> list[str]:
    """All tables without times; as text, in which nan equals nan."""
    return [repr([event.metrics | {"seconds": 0}, event.tables]) for event in events]


@each_model
def test_rows_and_progress_are_as_declared(model: str) -> None:
    """Progress counts the images of full minibatches."""
    experiment = make(model, epochs=2, **({} if model == "dqn" else {"batch_size": 15}))
    columns = list(experiment.settings.models[experiment.part].metrics)
    names, events = [name for name, _ in layers(experiment.net)], list(experiment.train())
    for number, event in enumerate((event for event in events if isinstance(event, Epoch)), start=1):
        assert list(event.metrics) == columns
        assert event.metrics["epoch"] == event.epoch == number
        assert event.metrics["seconds"] > 0
        since = range(number - 1 if number == 1 else number, number + 1)
        found = [(row["epoch"], row["layer"]) for row in event.tables["layers"]]
        assert found == [(epoch, name) for epoch in since for name in names]
    assert experiment.facts["eq3_residual"] < 1e-12
    ticks = [(event.epoch, event.done, event.total) for event in events if isinstance(event, Progress)]
    if model == "dqn":
        assert all(0 < done <= total == 120 for _, done, total in ticks)
    else:
        assert ticks == [(epoch, done, 195) for epoch in (1, 2) for done in (75, 150)]


@pytest.mark.slow
@each_model
def test_seed_repeats_and_seeds_differ(model: str) -> None:
    one, again, other = (rows(epochs(make(model, epochs=1, seed=seed))) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.slow
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("model", MODELS)
def test_training_improves_the_objective(model: str, param: str) -> None:
    first, _, last = epochs(make(model, param, epochs=3, **({"lr": 0.01} if model == "draw" else {})))
    column = next(name for name in first.metrics if name.startswith("train_"))
    change = last.metrics[column] - first.metrics[column]
    assert change < 0 if model == "cifar" else change > 0


@each_model
def test_divergence_ends_training(model: str) -> None:
    lr = {"dqn": 1e6, "cifar": 30.0}.get(model, 100.0)
    (event,) = epochs(make(model, "normal", lr=lr, epochs=3))
    assert event.diverged and event.metrics["epoch"] == 1


@pytest.mark.parametrize("model", ["cifar", "cvae mnist", "cvae cifar10"])
def test_all_parameterizations_start_as_the_same_function(model: str) -> None:
    losses = []
    for param in PARAMS:
        experiment = make(model, param)
        for row in experiment.initialize(torch.arange(60)):
            assert row["mean_abs_max"] < 1e-3
            assert row["variance_min"] == pytest.approx(1, abs=1e-2) == row["variance_max"]
        losses.append(experiment.facts["init_loss"])
    assert max(losses) == pytest.approx(min(losses), rel=1e-3)

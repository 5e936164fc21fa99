"""The CIFAR-10 experiment: model, metrics, noise, average, compiled layers."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import tiny_run
from scipy.stats import kurtosis

from wnrepro.compiling import Compilation
from wnrepro.data.images import Images
from wnrepro.events import Epoch
from wnrepro.experiments.cifar import Net, noise, raw_moments
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS, scale_settings


def make(param: str = "wn", **changes: Any) -> Any:
    return tiny_run("cifar", param, **changes)[2]()


def epochs(experiment: Any) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def rows(found: list[Epoch]) -> list[dict]:
    """The metrics without their times."""
    return [{k: v for k, v in epoch.metrics.items() if k != "seconds"} for epoch in found]


def test_network_is_table_1() -> None:
    net, shapes = Net(scale_settings("cifar", "paper", "wn")).eval(), []
    for _, layer in layers(net):
        layer.register_forward_hook(lambda _l, _x, y: shapes.append(tuple(y.shape[1:])))
    net(torch.randn(2, 3, 32, 32))
    assert shapes == [*3 * [(96, 32, 32)], *3 * [(192, 16, 16)], *3 * [(192, 6, 6)], (10,)]
    weights = 3 * 9 * 96 + 2 * 9 * 96 * 96 + 9 * 96 * 192 + 3 * 9 * 192 * 192 + 2 * 192 * 192 + 192 * 10
    assert sum(p.numel() for p in net.parameters()) == weights + 2 * (3 * 96 + 6 * 192 + 10)  # a g and a b each


def test_metrics_are_of_the_whole_epoch_and_of_all_test_images(images: Images) -> None:
    experiment, steps = make(epochs=1, noise_epochs=()), []
    step = experiment.captured_step

    def noted(index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        steps.append((index.tolist(), *(value.item() for value in step(index))))
        return tuple(map(torch.tensor, steps[-1][1:]))

    experiment.captured_step = noted
    (row,) = rows(epochs(experiment))
    seen, losses, errors = zip(*steps, strict=True)
    assert sorted(itertools.chain(*seen)) == list(range(200))
    assert row["train_loss"] == pytest.approx(np.mean(losses)) and row["train_error"] == sum(errors) / 200
    with torch.no_grad():
        logits = experiment.net.eval()(images.test_x)
    assert row["test_loss"] == pytest.approx(F.cross_entropy(logits, images.test_y).item(), rel=1e-4)
    assert row["test_error"] == pytest.approx((logits.argmax(1) != images.test_y).double().mean().item())


@pytest.mark.parametrize("variance_too", [True, False])
def test_noise_equals_a_computation_over_every_example(variance_too: bool) -> None:
    """Its kurtosis is not that of the statistics, which is corrected for its bias: each image has a contrast."""
    draw = np.random.default_rng(0)
    contrast = np.exp(0.5 * draw.standard_normal((40, 25, 1, 1)))  # 40 minibatches of 25, 3 features of 4 pixels
    t = contrast * draw.standard_t(8, size=(40, 25, 3, 4)) * [[1.0], [2.0], [0.5]] + [[0.0], [3.0], [-1.0]]
    mean, std = t.mean((1, 3), keepdims=True), t.std((1, 3), keepdims=True)
    all_mean, all_std = t.mean((0, 1, 3), keepdims=True), t.std((0, 1, 3), keepdims=True)
    of_each = (t - mean) / std - (t - all_mean) / all_std if variance_too else (0 * t + all_mean - mean) / all_std
    by_feature = np.moveaxis(of_each, 2, -1).reshape(-1, 3)
    statistics = {"mean": mean, "std": std, "inverse_std": 1 / std}
    expected = {"excess_kurtosis": kurtosis(by_feature, axis=0)}
    for name, values in statistics.items():
        figure = kurtosis(values[:, 0, :, 0], axis=0, bias=False)
        expected[f"kurtosis_{name}"] = figure if variance_too or name == "mean" else np.full(3, np.nan)
    expected["noise_size"] = np.sqrt((by_feature**2).mean(0))
    figures = noise(torch.stack([raw_moments(torch.from_numpy(batch)) for batch in t]), variance_too)
    assert list(figures) == list(expected)
    for name, found in figures.items():
        assert found.numpy() == pytest.approx(expected[name], rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_measuring_the_noise_changes_nothing_and_training_does_not_diverge(param: str) -> None:
    """The first steps at lr 0.003 have losses far above guessing; that alone is no divergence."""
    found = epochs(make(param, epochs=2, noise_epochs=(2,)))
    assert rows(found) == rows(epochs(make(param, epochs=2, noise_epochs=())))
    assert [event.diverged for event in found] == ["", ""]
    assert "noise" not in found[0].tables and len(found[1].tables["noise"]) == 10
    for row in found[1].tables["noise"]:
        assert row["minibatches"] == 5 and 0 < row["noise_size"] < 1 and math.isfinite(row["kurtosis_mean"])
        assert math.isfinite(row["kurtosis_std"]) == math.isfinite(row["kurtosis_inverse_std"]) == (param == "bn")


@pytest.mark.slow
@pytest.mark.parametrize("param", PARAMS)
def test_evaluation_uses_the_average_of_the_parameters(param: str) -> None:
    plain = make(param, epochs=2)
    other = rows(epochs(plain))
    averaged = make(param, epochs=2, polyak_epochs=0.5)
    found = rows(epochs(averaged))
    assert "average" not in plain.state_dict()
    plain.net.load_state_dict(averaged.average.module.state_dict())
    assert (found[-1]["test_error"], found[-1]["test_loss"]) == pytest.approx(plain.test())
    assert found[-1]["test_loss"] != pytest.approx(other[-1]["test_loss"], rel=1e-4)
    for one, another in zip(found, other, strict=True):
        assert one | {"test_error": 0, "test_loss": 0} == another | {"test_error": 0, "test_loss": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("param", PARAMS)
def test_compiled_layers_train_after_the_init_pass_and_measurements(param: str) -> None:
    """Only steps run them, without being compiled anew; the init pass and the noise are of the plain network."""
    calls = 0

    def backend(graph: Any, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            nonlocal calls
            calls += 1
            return graph.forward(*inputs)

        return run

    torch.compiler.reset()
    plain, fast = make(param), make(param)
    function = torch.compile(fast.net.layers, backend=backend)
    fast.compilation = Compilation(function)
    assert all(map(torch.equal, fast.gradients(function, "fp32"), plain.gradients(None, "fp32"))) and calls == 1
    told = []
    for made in (plain, fast):
        torch.manual_seed(0)
        made.initialize(torch.arange(100))
        made.net.train()
        told.append([torch.stack(made.step(torch.arange(20 * k, 20 * k + 20))) for k in range(3)])
    assert calls == 4 and all(map(torch.equal, *told))
    if param in ("bn", "wn+mobn"):
        assert repr(fast.noise_rows()) == repr(plain.noise_rows())
    with torch.compiler.set_stance("fail_on_recompile"):
        fast.step(torch.arange(20))
    assert fast.test() != plain.test() and calls == 5

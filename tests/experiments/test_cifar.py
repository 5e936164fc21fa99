"""The CIFAR-10 experiment against plain references: model, optimizer, schedule, init, noise."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kurtosis

from wnrepro.compiling import Compilation
from wnrepro.data.images import Images
from wnrepro.events import Epoch
from wnrepro.experiments.cifar import Cifar, Net, excess_kurtosis, noise, raw_moments
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS, CifarSettings, scale_settings

CPU = torch.device("cpu")


def epochs(experiment: Cifar) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def rows(experiment: Cifar) -> list[dict]:
    """The metrics without their times."""
    return [{k: v for k, v in epoch.metrics.items() if k != "seconds"} for epoch in epochs(experiment)]


def test_the_network_is_table_1() -> None:
    net = Net(scale_settings("cifar", "paper", "wn")).eval()
    shapes = {}
    for name, layer in layers(net):
        layer.register_forward_hook(lambda _l, _x, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
    net(torch.randn(2, 3, 32, 32))
    assert list(shapes.values()) == [
        *3 * [(96, 32, 32)],
        *3 * [(192, 16, 16)],
        *3 * [(192, 6, 6)],
        (10,),
    ]
    weights = 3 * 9 * 96 + 2 * 9 * 96 * 96 + 9 * 96 * 192 + 3 * 9 * 192 * 192 + 2 * 192 * 192 + 192 * 10
    units = 3 * 96 + 6 * 192 + 10
    assert sum(p.numel() for p in net.parameters()) == weights + 2 * units  # a g and a b each
    assert all(abs(layer.v.std().item() - 0.05) < 0.005 for _, layer in layers(net))


def test_metrics_are_of_the_whole_epoch_and_of_all_test_images(
    images: Images, tiny: Callable[..., CifarSettings]
) -> None:
    experiment, steps = Cifar(tiny("wn", epochs=1), images, CPU), []
    step = experiment.captured_step

    def noted(index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        steps.append((index.tolist(), *(value.item() for value in step(index))))
        return tuple(map(torch.tensor, steps[-1][1:]))

    experiment.captured_step = noted
    (row,) = rows(experiment)
    seen, losses, errors = zip(*steps, strict=True)
    assert sorted(itertools.chain(*seen)) == list(range(200))
    assert row["train_loss"] == pytest.approx(np.mean(losses)) and row["train_error"] == sum(errors) / 200
    with torch.no_grad():
        logits = experiment.net.eval()(images.test_x)
    assert row["test_loss"] == pytest.approx(F.cross_entropy(logits, images.test_y).item(), rel=1e-4)
    assert row["test_error"] == pytest.approx((logits.argmax(1) != images.test_y).double().mean().item())


def test_the_schedule_is_the_authors(images: Images, tiny: Callable[..., CifarSettings]) -> None:
    experiment = Cifar(tiny("wn", epochs=200, decay_from=100), images, CPU)
    for epoch in range(200):
        experiment.epoch = epoch
        experiment.schedule()
        group = experiment.optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(0.003 * min(2.0 - epoch / 100.0, 1.0))
        assert group["beta1"] == (0.9 if epoch < 100 else 0.5)
        assert (group["beta2"], group["epsilon"]) == (0.999, 1e-8)


@pytest.mark.slow
def test_measuring_the_noise_changes_nothing(images: Images, tiny: Callable[..., CifarSettings]) -> None:
    with_noise = epochs(Cifar(tiny("bn", noise_epochs=(1, 2)), images, CPU))
    without = epochs(Cifar(tiny("bn", noise_epochs=()), images, CPU))
    assert [e.metrics | {"seconds": 0} for e in with_noise] == [e.metrics | {"seconds": 0} for e in without]
    assert len(with_noise[0].tables["noise"]) == 10 and "noise" not in without[0].tables


def moments(t: np.ndarray) -> torch.Tensor:
    """`raw_moments` of the K minibatches of t (K, B, C, …)."""
    return torch.stack([raw_moments(torch.from_numpy(batch)) for batch in t])


@pytest.mark.parametrize("variance_too", [True, False])
def test_the_noise_is_that_of_every_example(variance_too: Any) -> None:
    draw = np.random.default_rng(0)
    t = draw.standard_t(8, size=(40, 25, 3)) * [1.0, 2.0, 0.5] + [
        0.0,
        3.0,
        -1.0,
    ]  # 40 minibatches of 25, 3 features
    mean, std = t.mean(1, keepdims=True), t.std(1, keepdims=True)
    all_mean, all_std = t.mean((0, 1)), t.std((0, 1))
    of_each = (t - mean) / std - (t - all_mean) / all_std if variance_too else (0 * t + all_mean - mean) / all_std
    expected = {
        "excess_kurtosis": kurtosis(of_each.reshape(-1, 3), axis=0),
        "kurtosis_mean": kurtosis(mean[:, 0], axis=0, bias=False),
        "kurtosis_std": kurtosis(std[:, 0], axis=0, bias=False),
        "kurtosis_inverse_std": kurtosis(1 / std[:, 0], axis=0, bias=False),
        "noise_size": np.sqrt((of_each**2).mean((0, 1))),
    }
    if not variance_too:
        expected |= {name: np.full(3, np.nan) for name in ("kurtosis_std", "kurtosis_inverse_std")}
    figures = noise(moments(t), variance_too)
    assert list(figures) == list(expected)
    for name, values in figures.items():
        assert values.numpy() == pytest.approx(expected[name], rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize("count", [4, 5, 30, 200])
def test_excess_kurtosis_is_corrected_for_its_bias(count: Any) -> None:
    values = np.random.default_rng(count).exponential(size=(count, 3)) + 5
    found = excess_kurtosis(torch.from_numpy(values)).numpy()
    assert found == pytest.approx(kurtosis(values, axis=0, bias=False), rel=1e-9)


def test_the_kurtosis_of_the_statistics_is_not_that_of_the_images() -> None:
    """Gaussian pixels with a contrast for each image: bn's noise has heavy tails, its statistics have not."""
    draw = np.random.default_rng(0)
    contrast = np.exp(0.5 * draw.standard_normal((200, 25, 1, 1)))
    t = contrast * draw.standard_normal((200, 25, 3, 16))  # 200 minibatches of 25 images, 3 features of 16 pixels
    figures = {name: values.numpy() for name, values in noise(moments(t), variance_too=True).items()}
    assert np.median(figures["excess_kurtosis"]) > 10
    std = t.std((1, 3))
    for name, values in {"mean": t.mean((1, 3)), "std": std, "inverse_std": 1 / std}.items():
        assert figures[f"kurtosis_{name}"] == pytest.approx(kurtosis(values, axis=0, bias=False), rel=1e-6)
        assert abs(np.median(figures[f"kurtosis_{name}"])) < 1


@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_the_noise_of_a_run(images: Images, tiny: Callable[..., CifarSettings], param: str) -> None:
    (table,) = (epoch.tables["noise"] for epoch in epochs(Cifar(tiny(param, epochs=2), images, CPU))[1:])
    for row in table:
        assert row["minibatches"] == 5 and 0 < row["noise_size"] < 1 and math.isfinite(row["kurtosis_mean"])
        assert math.isfinite(row["kurtosis_std"]) == math.isfinite(row["kurtosis_inverse_std"]) == (param == "bn")


@pytest.mark.slow
@pytest.mark.parametrize("param", PARAMS)
def test_evaluation_uses_the_average_of_the_parameters(
    images: Images, tiny: Callable[..., CifarSettings], param: str
) -> None:
    """Of all steps: their weights fall by 1 − 1/5 from each to the one before, 5 being half of an epoch."""
    settings = tiny(param, epochs=2, polyak_epochs=0.5)
    experiment, past = Cifar(settings, images, CPU), []
    step = experiment.captured_step

    def recorded(index: Any) -> Any:
        outputs = step(index)
        past.append(copy.deepcopy(experiment.net.state_dict()))
        return outputs

    experiment.captured_step = recorded
    found = rows(experiment)
    weights = [0.8**age for age in reversed(range(len(past)))]
    plain = Cifar(tiny(param, epochs=2), images, CPU)
    unaveraged = rows(plain)
    assert len(past) == 20 and "average" not in plain.state_dict()
    means = {name: sum(w * one[name] for w, one in zip(weights, past, strict=True)) / sum(weights) for name in past[0]}
    for ours, net in ((found, means), (unaveraged, past[-1])):
        plain.net.load_state_dict(net)
        error, loss = plain.test()
        assert ours[-1]["test_error"] == pytest.approx(error, abs=0.011)  # one image may lie at the border
        assert ours[-1]["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert found[-1]["test_loss"] != pytest.approx(unaveraged[-1]["test_loss"], rel=1e-3)
    for averaged, other in zip(found, unaveraged, strict=True):
        assert {**averaged, "test_error": 0, "test_loss": 0} == {**other, "test_error": 0, "test_loss": 0}


def test_a_run_that_does_not_diverge_is_not_called_so(images: Images, tiny: Callable[..., CifarSettings]) -> None:
    """The first steps at lr 0.003 have losses far above guessing; that alone is no divergence."""
    events = epochs(Cifar(tiny("wn", lr=0.01), images, CPU))
    assert [event.diverged for event in events] == 4 * [""]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("param", PARAMS)
def test_compiled_layers_train_after_the_init_pass_and_measurements(
    images: Images, tiny: Callable[..., CifarSettings], param: str
) -> None:
    """Only steps run them, without being compiled anew; the init pass and the noise are of the plain network."""
    calls = 0

    def backend(graph: Any, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            nonlocal calls
            calls += 1
            return graph.forward(*inputs)

        return run

    torch.compiler.reset()
    plain, fast = (Cifar(tiny(param), images, CPU) for _ in range(2))
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

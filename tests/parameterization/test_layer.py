"""Layers: g, masks, and the data-dependent init of eq. 4 and 5."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_factories import (
    CAUSAL,
    EVERY_INIT,
    KINDS,
    WITH_G,
    close,
    each_kind,
    every_init,
    features_last,
    make,
    mixed_model,
    plain_sum,
    units,
)
from torch import Tensor, nn

from wnrepro.parameterization import (
    ConstantFeatureError,
    Linear,
    Parameterized,
    bound_v_norm,
    data_dependent_init,
    layers,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_v_starts_with_the_standard_deviation_asked_for() -> None:
    assert Linear(400, 100, "wn").v.std().item() == pytest.approx(0.05, rel=0.02)
    assert Linear(400, 100, "wn", v_std=0.01).v.std().item() == pytest.approx(0.01, rel=0.02)


@each_kind
def test_the_authors_normal_starts_with_glorots_standard_deviation(kind: str) -> None:
    """In the directions of the other parameterizations, so that the init pass makes it the same function."""
    build, shape = KINDS[kind]
    layers, x = {}, torch.randn(shape)
    for init in ("authors", "folded"):
        torch.manual_seed(3)
        layers[init] = build("normal", init=init)
    frozen, folded = layers["authors"], layers["folded"]
    first, second, *kernel = folded.v.shape
    close(frozen.v / (2 / ((first + second) * math.prod(kernel))) ** 0.5, folded.v / 0.05)
    for layer in layers.values():
        data_dependent_init(layer, x)
    close(frozen(x), folded(x))


@each_kind
@pytest.mark.parametrize("param", WITH_G)
def test_g_as_exponential(kind: str, param: str) -> None:
    """§6.1: g = exp(c·s), the same start, and ∇_s = c·g·∇_g."""
    c = 3.0
    torch.manual_seed(5)
    direct = KINDS[kind][0](param)
    torch.manual_seed(5)
    layer = KINDS[kind][0](param, g_exp=c)
    x = torch.randn(KINDS[kind][1])
    close(layer.g, torch.exp(3 * layer.gain))
    close(layer.g, direct.g)
    y = layer(x)
    close(y, direct(x))
    weights = torch.randn_like(y)
    for each in (layer, direct):
        (each(x) * weights).sum().backward()
    assert layer.gain.grad is not None and direct.gain.grad is not None
    assert direct.gain.grad.abs().max() > 1e-3
    close(layer.gain.grad, c * direct.g * direct.gain.grad)
    layer.set_g(torch.tensor([0.5, 1.0, 2.0, 7.0]))
    close(layer.g, torch.tensor([0.5, 1.0, 2.0, 7.0]))
    close(layer.gain[2].exp(), torch.tensor(2.0).pow(1 / 3))


def test_masked_weights_are_never_there() -> None:
    """Neither in w nor in ‖v‖ nor in the gradient, also where v has been written to from outside."""
    layer, x = make("masked", "wn")
    y, gone = layer(x), CAUSAL == 0
    with torch.no_grad():
        layer.v[gone] = 7.0
    close(layer(x), y)
    assert (layer.w()[gone] == 0).all()
    close(layer.v_norm(), (layer.v * CAUSAL).flatten(1).square().sum(1).sqrt())
    v = layer.v.detach().clone()
    bound_v_norm(layer, layer.v_norm().max().item() * 1.01)
    assert torch.equal(layer.v, v)
    assert "mask" not in layer.state_dict()  # it is the layer's definition, no state
    layer(x).sum().backward()
    assert layer.v.grad is not None and (layer.v.grad[gone] == 0).all()
    close(layer(x)[..., :1, :1].flatten(1), layer.b.expand(len(x), -1))  # the first pixel has no past


def pre_activations(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """The output of every parameterized layer's first call while `run` runs, as (examples, features)."""
    seen: dict[str, Tensor] = {}

    names = {layer: name for name, layer in layers(model)}

    def keep(layer: Parameterized, _inputs: Any, y: Tensor) -> None:
        seen.setdefault(names[layer], features_last(layer, y.detach()))

    hooks = [layer.register_forward_hook(keep) for layer in names]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@every_init
def test_eq4_every_pre_activation_is_standardized(param: str, options: dict[str, Any]) -> None:
    """By the init pass itself, and by the ordinary training pass after it, noise and dropout the same."""
    model = mixed_model(param, **options)
    x = torch.randn(20, 2, 6, 6) + 0.3
    outputs: list[Tensor] = []

    def init_pass() -> None:
        torch.manual_seed(9)
        outputs.append(data_dependent_init(model, x))

    def training_pass() -> None:
        torch.manual_seed(9)
        outputs.append(model(x))

    for run in (init_pass, training_pass):
        seen = pre_activations(model, run)
        assert list(seen) == ["1", "2.2", "3.body.layer", "4.2"]
        for y in seen.values():
            close(y.mean(0), torch.zeros(y.shape[1]))
            close(y.var(0, unbiased=False), torch.ones(y.shape[1]))
    close(outputs[1], outputs[0])


@each_kind
@pytest.mark.parametrize("param", ["normal", "wn"])
def test_eq5_sets_g_and_b(kind: str, param: str) -> None:
    layer, x = make(kind, param, init="authors")
    v = layer.v.detach().clone()
    data_dependent_init(layer, x)
    assert torch.equal(layer.v, v)
    w = torch.stack([row / row.square().sum().sqrt() for row in units(v, layer)])
    if kind == "transposed":
        w = w.view(4, 3, 3, 3).transpose(0, 1)
    t = features_last(layer, plain_sum(layer, x, w.reshape(v.shape)))
    std = (t - t.mean(0)).square().mean(0).sqrt()
    close(layer.g, 1 / std)
    close(layer.b, -t.mean(0) / std)


@pytest.mark.parametrize("random", [True, False])
def test_all_are_the_same_function_on_the_init_batch(random: bool) -> None:
    x = torch.randn(20, 2, 6, 6) + 0.3
    outputs, in_evaluation = {}, {}
    for param, options in EVERY_INIT:
        model = mixed_model(param, random, **options)
        torch.manual_seed(4)
        data_dependent_init(model, x)
        torch.manual_seed(4)
        outputs[f"{param} {options}"] = model(x)
        in_evaluation[f"{param} {options}"] = model.eval()(x)
    reference = outputs["wn {}"]
    assert reference.std() > 0.5
    for name, y in outputs.items():
        close(y, reference, 1e-10)
        if random:
            continue
        if name.startswith("bn"):  # its running variance is the unbiased one
            close(in_evaluation[name], reference, 0.05)
        else:
            close(in_evaluation[name], reference, 1e-10)


@each_kind
def test_bn_in_evaluation_after_init_differs_by_the_unbiased_variance(kind: str) -> None:
    layer, x = make(kind, "bn")
    data_dependent_init(layer, x)
    n = features_last(layer, layer(x)).shape[0]
    t = features_last(layer, plain_sum(layer, x, layer.v))
    close(layer.running_mean, t.mean(0))
    close(layer.running_var, t.var(0, unbiased=True))
    variance = t.var(0, unbiased=False)
    factor = ((variance + 1e-6) / (variance * n / (n - 1) + 1e-6)).sqrt()
    close(features_last(layer, layer.eval()(x)), (t - t.mean(0)) / variance.sqrt() * factor)


def test_init_does_not_depend_on_the_scale_of_its_input() -> None:
    layer, x = make("conv", "wn")
    y = data_dependent_init(layer, x)
    for factor in (1e-30, 1e30):
        close(data_dependent_init(layer, x * factor), y)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_noise_is_no_variance(value: float, dtype: torch.dtype) -> None:
    """A batch of the same example over and over, at the size of the paper's layers."""
    layer = Linear(1728, 20, "wn").to(dtype)
    example = value * torch.rand(1728, dtype=dtype)
    with pytest.raises(ConstantFeatureError, match="20 features of layer 'Linear'"):
        layer.initializing = True
        layer(example.expand(500, -1) + 0)


def test_small_variance_beside_a_large_mean_is_variance() -> None:
    layer = Linear(3, 4, "wn")
    x = 1e3 + 1e-6 * torch.randn(50, 3)
    y = data_dependent_init(layer, x)
    close(y.var(0, unbiased=False), torch.ones(4), 1e-6)
    close(layer(x), y, 1e-4)

"""Layers: v, g, masks, and the init of a layer by eq. 5."""

import math

import pytest
import torch
from layer_factories import CAUSAL, KINDS, WITH_G, close, each_kind, features_last, make, plain_sum, units

from wnrepro.parameterization import ConstantFeatureError, Linear, bound_v_norm, data_dependent_init

pytestmark = pytest.mark.usefixtures("float64")


def test_v_starts_with_its_standard_deviation() -> None:
    assert Linear(400, 100, "wn").v.std().item() == pytest.approx(0.05, rel=0.02)
    assert Linear(400, 100, "wn", v_std=0.01).v.std().item() == pytest.approx(0.01, rel=0.02)


@each_kind
def test_authors_normal_starts_with_glorots_standard_deviation(kind: str) -> None:
    """In the directions of the other parameterizations, so that the init pass makes it the same function."""
    build, shape = KINDS[kind]
    made, x = {}, torch.randn(shape)
    for init in ("authors", "folded"):
        torch.manual_seed(3)
        made[init] = build("normal", init=init)
    first, second, *kernel = made["folded"].v.shape
    glorot = (2 / ((first + second) * math.prod(kernel))) ** 0.5
    close(made["authors"].v / glorot, made["folded"].v / 0.05)
    for layer in made.values():
        data_dependent_init(layer, x)
    close(made["authors"](x), made["folded"](x))


@each_kind
@pytest.mark.parametrize("param", WITH_G)
def test_g_as_exponential(kind: str, param: str) -> None:
    """§6.1: g = exp(c·s), the same start, and ∇_s = c·g·∇_g."""
    build, shape = KINDS[kind]
    torch.manual_seed(5)
    direct = build(param)
    torch.manual_seed(5)
    layer = build(param, g_exp=3.0)
    close(layer.g, torch.exp(3 * layer.gain))
    close(layer.g, direct.g)
    x = torch.randn(shape)
    y = layer(x)
    close(y, direct(x))
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (direct(x) * weights).sum().backward()
    assert layer.gain.grad is not None
    assert direct.gain.grad is not None
    assert direct.gain.grad.abs().max() > 1e-3
    close(layer.gain.grad, 3 * direct.g * direct.gain.grad)
    layer.set_g(torch.tensor([0.5, 1.0, 2.0, 7.0]))
    close(layer.g, torch.tensor([0.5, 1.0, 2.0, 7.0]))


def test_masked_weights_do_not_exist() -> None:
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
    assert "mask" not in layer.state_dict()
    layer(x).sum().backward()
    assert layer.v.grad is not None
    assert (layer.v.grad[gone] == 0).all()
    close(layer(x)[..., :1, :1].flatten(1), layer.b.expand(len(x), -1))  # the first pixel has no past


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
    close(layer.g, 1 / t.std(0, correction=0))
    close(layer.b, -t.mean(0) / t.std(0, correction=0))


@each_kind
def test_init_sets_the_running_averages_of_bn(kind: str) -> None:
    """To the batch's mean and unbiased variance."""
    layer, x = make(kind, "bn")
    data_dependent_init(layer, x)
    t = features_last(layer, plain_sum(layer, x, layer.v))
    close(layer.running_mean, t.mean(0))
    close(layer.running_var, t.var(0))
    factor = ((t.var(0, correction=0) + 1e-6) / (t.var(0) + 1e-6)).sqrt()
    close(features_last(layer, layer.eval()(x)), (t - t.mean(0)) / t.std(0, correction=0) * factor)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_init_does_not_depend_on_the_scale_of_its_input(factor: float) -> None:
    layer, x = make("conv", "wn")
    y = data_dependent_init(layer, x)
    close(data_dependent_init(layer, x * factor), y)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_noise_is_no_variance(value: float, dtype: torch.dtype) -> None:
    """A batch of one repeated example, at the size of the paper's layers."""
    layer = Linear(1728, 20, "wn").to(dtype)
    example = value * torch.rand(1728, dtype=dtype)
    with pytest.raises(ConstantFeatureError, match="20 features"):
        data_dependent_init(layer, example.expand(500, -1) + 0)


def test_small_variance_beside_a_large_mean_is_variance() -> None:
    layer = Linear(3, 4, "wn")
    y = data_dependent_init(layer, 1e3 + 1e-6 * torch.randn(50, 3))
    close(y.var(0, unbiased=False), torch.ones(4), 1e-6)

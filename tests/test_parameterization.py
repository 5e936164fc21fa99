"""The parameterizations against closed forms, plain references and torch's own layers, in float64."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as torch_weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from wnrepro.parameterization import (
    ConstantFeatureError,
    Conv2d,
    ConvTranspose2d,
    Linear,
    LSTMCell,
    MaskedConv2d,
    Parameterized,
    bound_v_norm,
    data_dependent_init,
    fold,
    layers,
    weight_norm,
)
from wnrepro.parameterization.layer import MOMENTUM
from wnrepro.parameterization.norm import BN_EPSILON, name_of, unit_norm
from wnrepro.settings import PARAMS

WITH_G = ("bn", "wn", "wn+mobn")
CAUSAL = torch.ones(4, 3, 3, 3)
CAUSAL[:, :, 1, 1:] = 0
CAUSAL[:, :, 2:] = 0

# One of each layer, under any parameterization, and the shape of its input: all have 3 inputs and 4 units.
KINDS: dict[str, tuple[Callable[..., Parameterized], tuple[int, ...]]] = {
    "linear": (lambda param, **o: Linear(3, 4, param, **o), (9, 3)),
    "linear over time": (lambda param, **o: Linear(3, 4, param, **o), (5, 6, 3)),
    "conv": (lambda param, **o: Conv2d(3, 4, 3, param, stride=2, padding=1, **o), (4, 3, 6, 6)),
    "masked": (lambda param, **o: MaskedConv2d(3, 4, 3, param, CAUSAL.clone(), padding=1, **o), (4, 3, 5, 5)),
    "transposed": (
        lambda param, **o: ConvTranspose2d(3, 4, 3, param, stride=2, padding=1, output_padding=1, **o),
        (4, 3, 4, 4),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_param = pytest.mark.parametrize("param", PARAMS)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Everything in float64, from the same seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def units(v: Tensor, layer: Parameterized) -> list[Tensor]:
    """The flat weight vector of each output unit: dimension 1 of a transposed convolution, else 0."""
    dim = 1 if isinstance(layer, ConvTranspose2d) else 0
    return [row.flatten() for row in v.unbind(dim)]


def plain_sum(layer: Parameterized, x: Tensor, w: Tensor) -> Tensor:
    """w·x through torch's functions, with the hyperparameters that KINDS gives."""
    if isinstance(layer, Linear):
        return x @ w.T
    if isinstance(layer, ConvTranspose2d):
        return F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1)
    return F.conv2d(x, w, stride=1 if isinstance(layer, MaskedConv2d) else 2, padding=1)


def features_last(layer: Parameterized, t: Tensor) -> Tensor:
    """t as (examples, features)."""
    return (t if isinstance(layer, Linear) else t.movedim(1, -1)).flatten(0, -2)


def make(kind: str, param: str, **options: Any) -> tuple[Parameterized, Tensor]:
    """A layer with random v, g and b, and an input."""
    build, shape = KINDS[kind]
    layer = build(param, **options)
    with torch.no_grad():
        layer.b.normal_()
        if param != "normal":
            layer.gain.normal_()
    return layer, torch.randn(shape)


class Noise(nn.Module):
    """Gaussian noise in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.15 * torch.randn_like(x) if self.training else x


class Residual(nn.Module):
    """x + layer(φ(x)), a module that is no Sequential."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"layer": layer})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body["layer"](F.elu(x))


def mixed_model(param: str, random: bool = True, **options: Any) -> nn.Sequential:
    """Every kind of layer in a nested tree, from the same seed whatever `param` is. x: (B, 2, 6, 6)."""
    torch.manual_seed(1)
    return nn.Sequential(
        Noise() if random else nn.Identity(),
        Conv2d(2, 3, 3, param, stride=2, **options),
        nn.Sequential(
            nn.LeakyReLU(0.1),
            nn.Dropout(0.5 if random else 0.0),
            ConvTranspose2d(3, 3, 2, param, stride=2, **options),
        ),
        Residual(MaskedConv2d(3, 3, 3, param, CAUSAL[:3].clone(), padding=1, **options)),
        nn.Sequential(nn.LeakyReLU(0.1), nn.Flatten(), Linear(48, 5, param, **options)),
    )


def initialized(param: str, random: bool = False, **options: Any) -> tuple[nn.Sequential, Tensor]:
    """A mixed model after its init pass, and the init batch."""
    model = mixed_model(param, random, **options)
    x = torch.randn(20, 2, 6, 6) + 0.3
    data_dependent_init(model, x)
    return model, x


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


# --- eq. 2, 3, 7 -----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("param", ["wn", "wn+mobn"])
def test_eq2_weight(kind: str, param: str) -> None:
    layer, _ = make(kind, param)
    w = layer.w()
    assert w.shape == layer.v.shape
    for w_unit, v_unit, g in zip(units(w, layer), units(layer.v, layer), layer.g, strict=True):
        close(w_unit, g * v_unit / torch.sqrt((v_unit * v_unit).sum()))
        close((w_unit**2).sum().sqrt(), g.abs())  # g is the length of w


@each_kind
@each_param
def test_output_is_the_table_of_the_module(kind: str, param: str) -> None:
    """t + b, g·(t − μ)/√(σ² + ε) + b or t − μ + b, from the plain weighted sum, in training mode."""
    layer, x = make(kind, param)
    t = features_last(layer, plain_sum(layer, x, layer.w()))
    y = t + layer.b
    if param == "bn":
        y = layer.g * (t - t.mean(0)) / (t.var(0, unbiased=False) + 1e-6).sqrt() + layer.b
    elif param == "wn+mobn":
        y = t - t.mean(0) + layer.b
    close(features_last(layer, layer(x)), y)


@each_kind
def test_eq3_gradients(kind: str) -> None:
    layer, x = make(kind, "wn")
    w = layer.w()
    w.retain_grad()
    y = layer(x, w)
    (torch.randn_like(y) * torch.tanh(y)).sum().backward()
    assert w.grad is not None and layer.v.grad is not None and layer.gain.grad is not None
    exists = CAUSAL if kind == "masked" else torch.ones_like(w)
    rows = [units(each, layer) for each in (layer.v.detach(), w.grad * exists, layer.v.grad)]
    for v, grad_w, grad_v, g, grad_g in zip(*rows, layer.g.detach(), layer.gain.grad, strict=True):
        norm = (v * v).sum().sqrt()
        close(grad_g, (grad_w @ v) / norm)
        close(grad_v, g / norm * grad_w - g * grad_g / norm**2 * v)
        projection = torch.eye(len(v)) - torch.outer(v, v) / norm**2
        close(grad_v, g / norm * projection @ grad_w)
        assert abs(v @ grad_v) < 1e-13 * norm * (grad_v @ grad_v).sqrt()
        assert (grad_v @ grad_v).sqrt() > 1e-3  # so that the line above says something


@given(
    shape=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    unit_dim=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_eq3_gradients_of_any_shape(shape: list[int], unit_dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    v, g = torch.randn(shape, requires_grad=True), torch.randn(shape[unit_dim], requires_grad=True)
    grad_w = torch.randn(shape)
    grad_v, grad_g = torch.autograd.grad(weight_norm(v, g, unit_dim), (v, g), grad_w)
    for i in range(shape[unit_dim]):
        v_i, grad_w_i = v.detach().select(unit_dim, i), grad_w.select(unit_dim, i)
        norm, along = v_i.square().sum().sqrt(), (grad_w_i * v_i).sum()
        close(grad_g[i], along / norm)
        expected = g[i].detach() / norm * grad_w_i - g[i].detach() * grad_g[i] / norm**2 * v_i
        close(grad_v.select(unit_dim, i), expected)
        scale = grad_w_i.square().sum().sqrt() * g[i].detach().abs()
        assert abs((grad_v.select(unit_dim, i) * v_i).sum()) <= 1e-13 * scale


@given(k=st.floats(1e-3, 1e3), unit_dim=st.integers(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_weight_norm_ignores_the_length_of_v(k: float, unit_dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    v, g = torch.randn(3, 4, 2), torch.randn((3, 4)[unit_dim])
    close(weight_norm(k * v, g, unit_dim), weight_norm(v, g, unit_dim))
    close(weight_norm(-k * v, g, unit_dim), -weight_norm(v, g, unit_dim))


@each_kind
def test_eq7_mean_only_centres_the_gradient(kind: str) -> None:
    layer, x = make(kind, "wn+mobn")
    seen: list[Tensor] = []
    layer.t.register_forward_hook(lambda _layer, _x, t: seen.append(t))
    y = layer(x)
    grad_t, grad_y = torch.autograd.grad((torch.randn_like(y) * torch.tanh(y)).sum(), [seen[0], y])
    grad_t, grad_y = features_last(layer, grad_t), features_last(layer, grad_y)
    close(grad_t, grad_y - grad_y.mean(0))
    assert grad_y.mean(0).abs().max() > 1e-2  # so that the centring is seen


def test_v_grows_as_pythagoras_says_under_sgd() -> None:
    """§6.2: Δv is orthogonal to v, so ‖v + Δv‖² = ‖v‖² + ‖Δv‖², step after step."""
    layer, x = make("conv", "wn")
    optimizer = torch.optim.SGD([layer.v], lr=0.1)
    for _ in range(5):
        before, norm = layer.v.detach().clone(), layer.v_norm().detach()
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        step = unit_norm(layer.v.detach() - before, 0).flatten()
        close(layer.v_norm().square(), norm.square() + step.square())
        assert (layer.v_norm() > norm).all()


@pytest.mark.parametrize("whitened", [True, False])
def test_wn_is_bn_for_one_layer_on_whitened_input(whitened: bool) -> None:
    """§2.2, for any v, g and b; bn's ε, which the paper's formula leaves out, is put into its g."""
    x = torch.randn(50, 6) @ torch.randn(6, 6) + 1
    if whitened:
        x = x - x.mean(0)
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        x = x @ vectors / values.sqrt()
    for _ in range(5):
        wn, bn = Linear(6, 4, "wn"), Linear(6, 4, "bn")
        v, g, b = torch.randn(4, 6), torch.randn(4), torch.randn(4)
        with torch.no_grad():
            for layer, gain in ((wn, g), (bn, g * (1 + BN_EPSILON / v.square().sum(1)).sqrt())):
                layer.v.copy_(v), layer.gain.copy_(gain), layer.b.copy_(b)
        if whitened:
            close(wn(x), bn(x), 1e-10)
        else:
            assert (wn(x) - bn(x)).abs().max() > 0.1


# --- a layer as it starts, and g --------------------------------------------------------------------


@each_kind
def test_fresh_wn_is_the_same_function_as_fresh_normal(kind: str) -> None:
    build, shape = KINDS[kind]
    torch.manual_seed(3)
    normal = build("normal")
    torch.manual_seed(3)
    wn = build("wn")
    x = torch.randn(shape)
    assert torch.equal(wn.v, normal.v)
    close(wn.g, torch.stack([v.square().sum().sqrt() for v in units(normal.v, normal)]))
    close(wn(x), normal(x))
    close(normal.g, wn.g)  # `normal` has no g: it reports ‖w‖


def test_v_starts_with_the_standard_deviation_asked_for() -> None:
    assert Linear(400, 100, "wn").v.std().item() == pytest.approx(0.05, rel=0.02)
    assert Linear(400, 100, "wn", v_std=0.01).v.std().item() == pytest.approx(0.01, rel=0.02)


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


@each_kind
@pytest.mark.parametrize("param", ["normal", "wn", "wn+mobn"])
def test_bound_on_the_norm_of_v(kind: str, param: str) -> None:
    """§6.2: ‖v‖ ≤ a; rows inside keep every bit; under wn the function stays."""
    layer, x = make(kind, param)
    a = layer.v_norm().detach().sort().values[1:3].mean().item()  # two rows inside, two outside
    before, y, inside = layer.v.detach().clone(), layer(x), layer.v_norm() <= a
    assert inside.sum() == 2
    bound_v_norm(nn.Sequential(layer), a)
    for v_before, v, norm, kept in zip(
        units(before, layer), units(layer.v, layer), layer.v_norm(), inside, strict=True
    ):
        assert norm <= a * (1 + 1e-15)
        if kept:
            assert torch.equal(v, v_before)
        else:
            close(v, a * v_before / v_before.square().sum().sqrt())
    if param == "normal":
        assert not torch.allclose(layer(x), y)
    else:
        close(layer(x), y)


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


def test_unknown_parameterization() -> None:
    with pytest.raises(ValueError, match=r"'weightnorm' is none of normal, bn, wn, wn\+mobn"):
        Linear(2, 2, "weightnorm")


# --- data-dependent init, eq. 4 and 5 ----------------------------------------------------------------

EVERY_INIT = [
    *((param, {}) for param in PARAMS),
    ("normal", {"init": "authors"}),
    *((param, {"g_exp": 3.0}) for param in WITH_G),
]
every_init = pytest.mark.parametrize(("param", "options"), EVERY_INIT, ids=str)


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


def test_init_leaves_the_mode_and_the_gradients_alone() -> None:
    model, x = mixed_model("wn").eval(), torch.randn(20, 2, 6, 6)
    torch.manual_seed(2)
    y = data_dependent_init(model, x)
    assert not any(module.training for module in model.modules())
    assert not y.requires_grad and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.manual_seed(2)
    close(model.train()(x), y)  # the pass itself ran in training mode


@each_param
def test_constant_features_are_named_and_counted(param: str) -> None:
    model = mixed_model(param, random=False)
    last = model[4][2]
    with torch.no_grad():
        last.v[1:3] = 0
        last.v[1:3, 0] = 1
    model[4][1].register_forward_hook(lambda _m, _x, y: torch.cat([torch.ones(len(y), 1), y[:, 1:]], 1))
    with pytest.raises(ConstantFeatureError, match=r"2 features of layer '4\.2' do not vary .*batch") as raised:
        data_dependent_init(model, torch.randn(20, 2, 6, 6))
    assert raised.value.layer is last and raised.value.features == 2


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


class Unused(nn.Module):
    """Two layers, of which the forward pass takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare, self.other = (Linear(3, 3, "wn") for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_layers_that_the_pass_does_not_reach_are_named() -> None:
    model = Unused()
    with pytest.raises(ValueError, match=r"did not reach spare, other$"):
        data_dependent_init(model, torch.randn(8, 3))
    assert not any(layer.initializing for _, layer in layers(model))


@each_param
def test_a_layer_called_twice_is_set_by_its_first_call(param: str) -> None:
    layer, x = make("linear", param)
    layer = Linear(3, 3, param)
    alone = copy.deepcopy(layer)
    y = data_dependent_init(nn.Sequential(layer, nn.Tanh(), layer), x)
    close(data_dependent_init(alone, x), layer(x))
    close(alone(torch.tanh(alone(x))), y)


@pytest.mark.parametrize("how", ["constant", "crash"])
def test_a_failed_init_leaves_no_layer_initializing(how: str) -> None:
    model = mixed_model("wn", random=False).eval()
    x = torch.randn(20, 2, 6, 6)
    if how == "constant":
        x = torch.zeros_like(x)
    else:
        model[3].register_forward_pre_hook(lambda _module, _x: 1 / 0)
    with pytest.raises(ConstantFeatureError if how == "constant" else ZeroDivisionError):
        data_dependent_init(model, x)
    named = dict(layers(model))
    assert len(named) == 4 and not any(layer.initializing for layer in named.values())
    assert not model.training
    g = named["4.2"].g.clone()
    named["4.2"](torch.randn(5, 48))
    assert torch.equal(named["4.2"].g, g)  # an ordinary pass


# --- agreement over 100 optimizer steps ------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.03, momentum=0.5),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def train(
    forward: Callable[[Tensor], Tensor],
    params: Any,
    optimizer: str,
    x_shape: tuple[int, ...],
    steps: int = 100,
) -> list[float]:
    """The losses of training towards a fixed nonlinear target, one fresh minibatch a step."""
    draw = torch.Generator().manual_seed(7)
    update, losses = OPTIMIZERS[optimizer](list(params)), []
    for _ in range(steps):
        x = torch.randn(x_shape, generator=draw) + 0.5
        y = forward(x)
        target = torch.sin(3 * x).flatten(1).sum(1).view(-1, *[1] * (y.ndim - 1))
        loss = (torch.tanh(y) - target).square().mean()
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert losses[-1] != losses[0]
    return losses


def torch_layer(kind: str, bias: bool = True) -> nn.Module:
    """The plain torch layer of KINDS."""
    if kind == "linear":
        return nn.Linear(3, 4, bias=bias)
    if kind == "conv":
        return nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias)
    return nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, bias=bias)


@each_optimizer
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_wn_agrees_with_torch_weight_norm(kind: str, optimizer: str) -> None:
    layer, _ = make(kind, "wn")
    plain = torch_weight_norm(torch_layer(kind), dim=1 if kind == "transposed" else 0)
    original = plain.parametrizations.weight
    with torch.no_grad():
        original.original0.copy_(layer.g.view_as(original.original0))
        original.original1.copy_(layer.v)
        plain.bias.copy_(layer.b)
    shape = KINDS[kind][1]
    ours = train(layer, layer.parameters(), optimizer, shape)
    theirs = train(plain, plain.parameters(), optimizer, shape)
    assert ours == pytest.approx(theirs, rel=1e-10)
    close(layer.v, original.original1, 1e-9)
    close(layer.g, original.original0.flatten(), 1e-9)
    close(layer.b, plain.bias, 1e-9)


@each_optimizer
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_bn_agrees_with_torch_batch_norm(kind: str, optimizer: str) -> None:
    layer, x = make(kind, "bn")
    norm = (nn.BatchNorm1d if kind == "linear" else nn.BatchNorm2d)(4, eps=1e-6, momentum=0.1)
    plain = nn.Sequential(torch_layer(kind, bias=False), norm)
    with torch.no_grad():
        plain[0].weight.copy_(layer.v), norm.weight.copy_(layer.g), norm.bias.copy_(layer.b)
    shape = KINDS[kind][1]
    ours = train(layer, layer.parameters(), optimizer, shape)
    theirs = train(plain, plain.parameters(), optimizer, shape)
    assert ours == pytest.approx(theirs, rel=1e-9)
    close(layer.v, plain[0].weight, 1e-8)
    close(layer.g, norm.weight, 1e-8)
    close(layer.b, norm.bias, 1e-8)
    close(layer.running_mean, norm.running_mean, 1e-8)
    close(layer.running_var, norm.running_var, 1e-8)
    close(layer.eval()(x), plain.eval()(x), 1e-8)


@each_optimizer
@pytest.mark.parametrize("kind", ["linear", "linear over time", "conv", "masked", "transposed"])
def test_wn_mobn_agrees_with_a_plain_reference(kind: str, optimizer: str) -> None:
    layer, x = make(kind, "wn+mobn")
    v, g, b = (p.detach().clone().requires_grad_() for p in (layer.v, layer.gain, layer.b))
    running = torch.zeros(4)

    def reference(x: Tensor, training: bool = True) -> Tensor:
        nonlocal running
        rows = torch.stack(units(v * CAUSAL if kind == "masked" else v, layer))
        rows = g[:, None] * rows / rows.square().sum(1, keepdim=True).sqrt()
        w = rows.view(4, 3, 3, 3).transpose(0, 1) if kind == "transposed" else rows.view(v.shape)
        t = plain_sum(layer, x, w)
        mean = features_last(layer, t).mean(0) if training else running
        running = 0.9 * running + 0.1 * mean.detach() if training else running
        y = t.movedim(-1 if kind.startswith("linear") else 1, -1) - mean + b
        return y if kind.startswith("linear") else y.movedim(-1, 1)

    shape = KINDS[kind][1]
    ours = train(layer, layer.parameters(), optimizer, shape)
    theirs = train(reference, (v, g, b), optimizer, shape)
    assert ours == pytest.approx(theirs, rel=1e-9)
    close(layer.v, v, 1e-8)
    close(layer.g, g, 1e-8)
    close(layer.b, b, 1e-8)
    close(layer.running_mean, running, 1e-8)
    close(layer.eval()(x), reference(x, training=False), 1e-8)


@each_optimizer
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_normal_in_the_authors_reading(kind: str, optimizer: str) -> None:
    """w = scale·v with the scale of the init pass, constant."""
    layer, x = make(kind, "normal", init="authors")
    data_dependent_init(layer, x)
    scale = layer.scale.clone()
    assert (scale - 1).abs().min() > 0.1
    v, b = layer.v.detach().clone().requires_grad_(), layer.b.detach().clone().requires_grad_()
    factors = scale.view((1, -1, 1, 1) if kind == "transposed" else (-1,) + (1,) * (v.ndim - 1))

    def reference(x: Tensor) -> Tensor:
        return plain_sum(layer, x, factors * v) + (b if kind == "linear" else b[:, None, None])

    shape = KINDS[kind][1]
    assert train(layer, layer.parameters(), optimizer, shape) == pytest.approx(
        train(reference, (v, b), optimizer, shape), rel=1e-10
    )
    close(layer.v, v, 1e-9)
    close(layer.b, b, 1e-9)
    assert torch.equal(layer.scale, scale)


@each_optimizer
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_normal_in_the_papers_reading(kind: str, optimizer: str) -> None:
    """The init's scale is folded into w once; from there on it is a plain torch layer."""
    layer, x = make(kind, "normal", init="folded")
    data_dependent_init(layer, x)
    assert torch.equal(layer.scale, torch.ones(4))
    plain = torch_layer(kind)
    with torch.no_grad():
        plain.weight.copy_(layer.v), plain.bias.copy_(layer.b)
    shape = KINDS[kind][1]
    assert train(layer, layer.parameters(), optimizer, shape) == pytest.approx(
        train(plain, plain.parameters(), optimizer, shape), rel=1e-10
    )
    close(layer.v, plain.weight, 1e-9)
    close(layer.b, plain.bias, 1e-9)


@each_kind
def test_the_two_readings_of_normal_differ_by_the_scale_of_the_gradient(kind: str) -> None:
    frozen, x = make(kind, "normal", init="authors")
    folded = copy.deepcopy(frozen)
    folded.init = "folded"
    for layer in (frozen, folded):
        data_dependent_init(layer, x)
        torch.tanh(layer(x)).square().sum().backward()
    close(frozen(x), folded(x))
    assert frozen.v.grad is not None and folded.v.grad is not None
    for grad, other, scale in zip(
        units(frozen.v.grad, frozen), units(folded.v.grad, folded), frozen.scale, strict=True
    ):
        close(grad, scale * other, 1e-10)
        assert abs(scale - 1) > 0.1


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


def test_mean_only_batch_normalization_costs_four_passes_in_the_precision_of_t() -> None:
    """In bf16: a mean and a sum over the batch, and two differences; nothing of t's size in fp32."""
    sizes: list[tuple[str, torch.dtype]] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if any(isinstance(x, Tensor) and x.shape == t.shape for x in (*args, result)):
                sizes.append((func.name().split("::")[1].split(".")[0], getattr(result, "dtype", None)))
            return result

    torch.set_default_dtype(torch.float32)
    layer = Conv2d(3, 4, 3, "wn+mobn")
    t = torch.randn(8, 4, 6, 6).bfloat16().requires_grad_()
    with Sizes():
        y = layer.norm.output(layer, t, ...)
        y.backward(torch.ones_like(y))
    views = {"detach", "view", "alias", "ones_like"}
    passes = [name for name, _ in sizes if name not in views]
    assert passes == ["mean", "add", "sum", "sub"]
    assert {dtype for name, dtype in sizes if name in ("add", "sub")} == {torch.bfloat16}
    assert t.grad is not None and t.grad.float().mean((0, 2, 3)).abs().max() < 1e-2


def test_mean_only_running_mean() -> None:
    """0.9 of the old and 0.1 of the minibatch's, in training alone; evaluation uses it."""
    layer, x = make("conv", "wn+mobn")
    expected = torch.zeros(4)
    for step in range(3):
        t = plain_sum(layer, x + step, layer.w())
        layer(x + step)
        expected = 0.9 * expected + 0.1 * t.mean((0, 2, 3))
        close(layer.running_mean, expected)
    layer.eval()
    y = layer(x)
    close(layer.running_mean, expected)
    close(y, plain_sum(layer, x, layer.w()) + (layer.b - expected)[:, None, None])
    assert MOMENTUM == 0.1


# --- LSTM -------------------------------------------------------------------------------------------


def unroll(cell: Callable[..., tuple[Tensor, Tensor]], x: Tensor, units: int = 4, **weights: Any) -> Tensor:
    """h of every time step, x (T, B, inputs) → (T, B, units)."""
    state = (torch.zeros(x.shape[1], units), torch.zeros(x.shape[1], units))
    outputs = []
    for x_t in x:
        state = cell(x_t, state, **weights)
        outputs.append(state[0])
    return torch.stack(outputs)


@each_param
def test_lstm_folds_to_torch_lstm_cell(param: str) -> None:
    """The same function over several time steps, so the gates' order and the states are torch's."""
    cell = LSTMCell(3, 4, param, v_std=0.5)
    with torch.no_grad():
        for _, layer in layers(cell):
            layer.b.normal_()
    x = torch.randn(6, 5, 3)
    unroll(cell, x)  # moves the running averages
    cell.eval()
    plain = cell.fold()
    assert type(plain) is nn.LSTMCell and not plain.training
    y = unroll(cell, x)
    assert y.std() > 0.05
    close(unroll(plain, x), y)
    _, c = cell(x[0], (y[0], y[1]))
    close(plain(x[0], (y[0], y[1]))[1], c)


@each_param
def test_lstm_weights_computed_once_give_the_same_gradients(param: str) -> None:
    cell, x = LSTMCell(3, 4, param, v_std=0.5), torch.randn(6, 5, 3)
    other = copy.deepcopy(cell)
    target = torch.randn(6, 5, 4)
    for each, once in ((cell, {}), (other, {"weights": other.unrolled()})):
        y = unroll(each, x, **once)
        (y * target).sum().backward()
    close(unroll(other, x, weights=other.unrolled()), unroll(cell, x))
    for (name, p), q in zip(cell.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        close(q.grad, p.grad)


def test_lstm_has_batch_statistics_on_the_input_product_alone() -> None:
    for param, recurrent in {"normal": "normal", "bn": "normal", "wn": "wn", "wn+mobn": "wn"}.items():
        cell = LSTMCell(3, 4, param, g_exp=3.0)
        assert (name_of(cell.input.norm), name_of(cell.recurrent.norm)) == (param, recurrent)
        assert cell.input.v.shape == (16, 3) and cell.recurrent.v.shape == (16, 4)


@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_every_time_step_has_running_averages_of_its_own(param: str) -> None:
    """Those of a layer that sees this time step alone; evaluation uses them, and no plain layer can stand for all."""
    layer, alone = Linear(3, 4, param, time_steps=2), [Linear(3, 4, param) for _ in range(2)]
    for each in alone:
        each.load_state_dict(layer.state_dict() | {n: b[0].clone() for n, b in layer.named_buffers()})
    for _ in range(3):
        for time, each in enumerate(alone):
            x = torch.randn(9, 3) + time
            close(layer(x, layer.w(), time), each(x))
    assert (layer.running_mean[0] - layer.running_mean[1]).abs().min() > 1e-3
    x = torch.randn(9, 3)
    layer.eval()
    for time, each in enumerate(alone):
        for name, buffer in each.named_buffers():
            close(layer.get_buffer(name)[time], buffer)
        close(layer(x, None, time), each.eval()(x))
    with pytest.raises(ValueError, match="every time step has its own running averages"):
        fold(layer)


def test_fresh_lstm_under_wn_is_the_fresh_normal_one() -> None:
    cells = []
    for param in ("normal", "wn"):
        torch.manual_seed(8)
        cells.append(LSTMCell(3, 4, param, v_std=0.5))
    x = torch.randn(6, 5, 3)
    close(unroll(cells[1], x), unroll(cells[0], x))


# --- copies, files, torch.func, torch.compile, folding ------------------------------------------------


@every_init
def test_deepcopy_is_independent(param: str, options: dict[str, Any]) -> None:
    model, x = initialized(param, **options)
    twin = copy.deepcopy(model)
    close(twin(x), model(x), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(x + 1).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(p, before[name]) for name, p in twin.named_parameters())


@every_init
def test_state_dict_and_pickle_restore_the_function(param: str, options: dict[str, Any]) -> None:
    model, x = initialized(param, **options)
    model(x * 2)  # moves the running averages
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = mixed_model(param, random=False, **options)
    with torch.no_grad():
        for p in fresh.parameters():
            p.add_(1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    unpickled = pickle.loads(pickle.dumps(model))
    in_evaluation, in_training = model.eval()(x), model.train()(x)
    for each in (fresh, unpickled):
        assert torch.equal(each.eval()(x), in_evaluation)
        assert torch.equal(each.train()(x), in_training)


@each_param
def test_torch_func(param: str) -> None:
    """functional_call and grad: the gradient and the new running averages of the ordinary way."""
    model, x = initialized(param)
    reference = copy.deepcopy(model)
    reference(x + 1).square().sum().backward()

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        buffers = {name: value.clone() for name, value in buffers.items()}
        return torch.func.functional_call(model, (params, buffers), (x + 1,)).square().sum(), buffers

    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    grads, buffers = torch.func.grad(loss, has_aux=True)(params, buffers)
    for name, p in reference.named_parameters():
        assert p.grad is not None
        close(grads[name], p.grad, 1e-9)
    for name, value in reference.named_buffers():
        close(buffers[name], value)


@pytest.mark.parametrize("param", ["normal", "wn"])
def test_gradients_of_each_example_by_vmap(param: str) -> None:
    model, x = initialized(param, g_exp=2.0)
    x = x[:3]

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (x[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), x)
    for i in range(3):
        model.zero_grad()
        model(x[i : i + 1]).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            close(grads[name][i], p.grad, 1e-9)


def assert_compiled_is_eager(model: nn.Module, x: Tensor, backend: str) -> None:
    """Outputs, gradients and running averages in training, outputs in evaluation."""
    torch.compiler.reset()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for inputs in (x, x + 1):
        y, expected = compiled(inputs), eager(inputs)
        close(y, expected, 1e-9)
        y.square().sum().backward()
        expected.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        close(p.grad, q.grad, 1e-9)
    for p, q in zip(model.buffers(), eager.buffers(), strict=True):
        close(p, q, 1e-9)
    model.eval(), eager.eval()
    close(compiled(x), eager(x), 1e-9)


@pytest.mark.usefixtures("unchecked")
def test_compiled_for_real() -> None:
    """All four parameterizations and both forms of g in one model, through the default backend."""
    model = nn.Sequential(
        Conv2d(2, 3, 3, "bn", g_exp=3.0),
        nn.LeakyReLU(0.1),
        Conv2d(3, 3, 3, "wn+mobn"),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        Linear(12, 4, "wn", g_exp=3.0),
        nn.ELU(),
        Linear(4, 2, "normal"),
    )
    x = torch.randn(5, 2, 6, 6)
    data_dependent_init(model, x)
    assert_compiled_is_eager(model, x, "inductor")


@pytest.mark.usefixtures("unchecked")
def test_compiled_without_graph_breaks() -> None:
    """Every kind of layer, with weight normalization and batch statistics both."""
    model, x = initialized("wn+mobn")
    assert_compiled_is_eager(model, x, "aot_eager")


@pytest.mark.usefixtures("unchecked")
def test_compiled_lstm() -> None:
    """The unrolled recurrence with weights computed once, in one graph."""

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = LSTMCell(3, 4, "wn+mobn", v_std=0.5)

        def forward(self, x: Tensor) -> Tensor:
            return unroll(self.cell, x, weights=self.cell.unrolled())

    assert_compiled_is_eager(Unrolled(), torch.randn(3, 5, 3), "aot_eager")


@every_init
def test_fold(param: str, options: dict[str, Any]) -> None:
    """Plain torch layers of the same function in evaluation; the original is left as it was."""
    model, x = initialized(param, random=True, **options)
    model(2 * x)  # moves the running averages off the init batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    plain = fold(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not list(layers(plain)) and len(list(layers(model))) == 4
    kinds = [type(module) for module in plain.modules() if hasattr(module, "weight")]
    assert kinds == [nn.Conv2d, nn.ConvTranspose2d, nn.Conv2d, nn.Linear]
    assert plain.training
    close(plain.eval()(x), model.eval()(x), 1e-10)
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@each_kind
@each_param
def test_fold_of_a_single_layer(kind: str, param: str) -> None:
    layer, x = make(kind, param)
    layer(x)
    plain = fold(layer.eval())
    assert type(plain) in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d) and not plain.training
    assert plain.weight.requires_grad and plain.weight.is_leaf
    close(plain(x), layer(x))


def test_fold_finds_lstms_and_layers_used_twice() -> None:
    layer = Linear(3, 3, "wn")
    plain = fold(nn.Sequential(layer, nn.Tanh(), layer))
    assert [type(module) for module in plain] == [nn.Linear, nn.Tanh, nn.Linear]
    x = torch.randn(4, 3)
    close(plain(x), layer(torch.tanh(layer(x))))
    assert type(fold(nn.ModuleList([LSTMCell(2, 3, "wn")]))[0]) is nn.LSTMCell


@each_param
def test_bf16_autocast_stays_near_fp32(param: str) -> None:
    torch.set_default_dtype(torch.float32)
    model, x = initialized(param)
    reference = copy.deepcopy(model)
    target = torch.randn(20, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    expected = reference(x)
    assert (y.float() - expected).norm() < 0.02 * expected.norm()
    (y.float() * target).sum().backward()
    (expected * target).sum().backward()
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and p.grad.dtype == torch.float32, name
        assert (p.grad - q.grad).norm() < 0.1 * q.grad.norm() + 0.1, name
    for p, q in zip(model.buffers(), reference.buffers(), strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.02)

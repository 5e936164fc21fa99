"""The paper's parameterizations against closed forms, plain references and torch's own layers."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_factories import CAUSAL, KINDS, close, each_kind, features_last, make, plain_sum, units
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wnrepro.parameterization import Conv2d, Linear, data_dependent_init, weight_norm
from wnrepro.parameterization.norm import BN_EPSILON, unit_norm

pytestmark = pytest.mark.usefixtures("float64")


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
        assert (grad_v @ grad_v).sqrt() > 1e-3


@given(
    shape=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    unit_dim=st.integers(0, 1),
    seed=st.integers(0, 2**31),
    k=st.floats(1e-3, 1e3),
)
def test_eq3_gradients_of_any_shape(shape: list[int], unit_dim: int, seed: int, k: float) -> None:
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
    assert grad_y.mean(0).abs().max() > 1e-2


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
        layer: Any
        v, g, b = torch.randn(4, 6), torch.randn(4), torch.randn(4)
        with torch.no_grad():
            for layer, gain in ((wn, g), (bn, g * (1 + BN_EPSILON / v.square().sum(1)).sqrt())):
                for target, value in ((layer.v, v), (layer.gain, gain), (layer.b, b)):
                    target.copy_(value)
        if whitened:
            close(wn(x), bn(x), 1e-10)
        else:
            assert (wn(x) - bn(x)).abs().max() > 0.1


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


def test_unknown_parameterization() -> None:
    with pytest.raises(ValueError, match="weightnorm"):
        Linear(2, 2, "weightnorm")


def train(forward: Callable[[Tensor], Tensor], params: Iterable[Tensor], x_shape: tuple[int, ...]) -> list[float]:
    """100 losses of Adam towards a fixed nonlinear target, with a new minibatch at each step."""
    generator, losses = torch.Generator().manual_seed(7), []
    optimizer = torch.optim.Adam(params, lr=0.01)
    for _ in range(100):
        x = torch.randn(x_shape, generator=generator) + 0.5
        y = forward(x)
        target = torch.sin(3 * x).flatten(1).sum(1).view(-1, *[1] * (y.ndim - 1))
        loss = (torch.tanh(y) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@each_kind
@pytest.mark.parametrize(
    ("param", "options"),
    [("wn", {}), ("bn", {}), ("wn+mobn", {}), ("normal", {"init": "authors"}), ("normal", {"init": "folded"})],
    ids=str,
)
def test_training_matches_a_plain_reference(kind: str, param: str, options: dict[str, Any]) -> None:
    """Losses of 100 steps, parameters and running averages after them, and the output in evaluation."""
    layer, x = make(kind, param, **options)
    scale = torch.ones(4)
    if param == "normal":
        data_dependent_init(layer, x)
        scale = layer.scale.clone()
        assert ((scale - 1).abs().min() > 0.1) == (options["init"] == "authors")
    params = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    unit_shape = [4 if d == layer.unit_dim else 1 for d in range(layer.v.ndim)]
    mean, var = torch.zeros(4), torch.ones(4)

    def reference(x: Tensor, training: bool = True) -> Tensor:
        nonlocal mean, var
        v, b, g = params["v"], params["b"], params.get("gain", scale)
        v = v * CAUSAL if kind == "masked" else v
        norm = torch.stack([row.square().sum().sqrt() for row in units(v, layer)])
        factor = {"wn": g / norm, "wn+mobn": g / norm, "bn": torch.ones(4), "normal": g}[param]
        t = plain_sum(layer, x, v * factor.view(unit_shape)).movedim(layer.feature_dim, -1)
        rows = t.flatten(0, -2)
        of_batch = (rows.mean(0), rows.var(0, correction=0)) if training else (mean, var)
        if training:
            mean, var = 0.9 * mean + 0.1 * rows.mean(0).detach(), 0.9 * var + 0.1 * rows.var(0).detach()
        if param == "bn":
            t = g * (t - of_batch[0]) / (of_batch[1] + BN_EPSILON).sqrt()
        elif param == "wn+mobn":
            t = t - of_batch[0]
        return (t + b).movedim(-1, layer.feature_dim)

    expected = train(reference, params.values(), x.shape)
    assert train(layer, layer.parameters(), x.shape) == pytest.approx(expected, rel=1e-9)
    for name, p in layer.named_parameters():
        close(p, params[name], 1e-8)
    for name in layer.norm.batch_statistics:
        close(getattr(layer, f"running_{name}"), {"mean": mean, "var": var}[name], 1e-8)
    close(layer.eval()(x), reference(x, training=False), 1e-8)


def test_mean_only_batch_normalization_has_four_passes_in_the_precision_of_t() -> None:
    """In bf16: a mean and a sum over the batch, and two differences; nothing of t's size in fp32."""
    sizes: list[tuple[str, torch.dtype | None]] = []

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

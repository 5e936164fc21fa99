"""The parameterizations themselves against closed forms."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_factories import Calls, close
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from wnrepro.parameterization import Conv2d, Linear, weight_norm

pytestmark = pytest.mark.usefixtures("float64")


@given(
    shape=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    unit_dim=st.integers(0, 1),
    seed=st.integers(0, 2**31),
    k=st.floats(1e-3, 1e3),
)
def test_weight_is_eq2_and_its_gradients_are_eq3(shape: list[int], unit_dim: int, seed: int, k: float) -> None:
    """Also by finite differences; ∇_v is orthogonal to v; the size of v has no effect."""
    torch.manual_seed(seed)
    v, g = torch.randn(shape, requires_grad=True), torch.randn(shape[unit_dim], requires_grad=True)
    w, grad_w = weight_norm(v, g, unit_dim), torch.randn(shape)
    grad_v, grad_g = torch.autograd.grad(w, (v, g), grad_w)
    parts = (each.detach().movedim(unit_dim, 0).flatten(1) for each in (v, w, grad_w, grad_v))
    for v_i, w_i, grad_w_i, grad_v_i, g_i, grad_g_i in zip(*parts, g.detach(), grad_g, strict=True):
        norm = (v_i @ v_i).sqrt()
        close(w_i, g_i * v_i / norm)
        close(grad_g_i, grad_w_i @ v_i / norm)
        close(grad_v_i, g_i / norm * grad_w_i - g_i * grad_g_i / norm**2 * v_i)
        assert abs(grad_v_i @ v_i) <= 1e-13 * grad_w_i.square().sum().sqrt() * g_i.abs()
    close(weight_norm(-k * v, g, unit_dim), -w)
    assert torch.autograd.gradcheck(lambda v, g: weight_norm(v, g, unit_dim), (v, g), fast_mode=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap calls torch's kernel once per model
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 2)])
@pytest.mark.parametrize("unit_dim", [0, 1])
def test_unit_without_direction_has_no_weight_and_no_gradient(shape: tuple[int, ...], unit_dim: int) -> None:
    """Alone and as one of several stacked models; the other units are not affected."""
    v, g = torch.randn(shape, requires_grad=True), torch.randn(shape[unit_dim], requires_grad=True)
    whole = weight_norm(v, g, unit_dim).select(unit_dim, 1)
    v.data.select(unit_dim, 0).zero_()
    w = weight_norm(v, g, unit_dim)
    grad_v, grad_g = torch.autograd.grad(w.square().sum(), (v, g))
    assert not w.select(unit_dim, 0).any() and not grad_v.select(unit_dim, 0).any() and grad_g[0] == 0
    assert torch.equal(w.select(unit_dim, 1), whole) and grad_g[1] != 0
    stacked = torch.func.vmap(lambda v, g: weight_norm(v, g, unit_dim))(torch.stack([v, v]), torch.stack([g, -g]))
    close(stacked, torch.stack([w, -w]))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", [torch.jit.trace, lambda f, given: make_fx(f)(*given)])
def test_trace_serves_units_without_direction(trace: Any) -> None:
    v, g = torch.randn(3, 5), torch.randn(3)
    traced = trace(lambda v, g: weight_norm(v, g), (v, g))
    v[0] = 0
    assert torch.equal(traced(v, g), weight_norm(v, g)) and not traced(v, g)[0].any()


def test_tensors_without_values_have_weights() -> None:
    with FakeTensorMode():
        layer = Linear(5, 3, "wn")
        y = layer(torch.randn(2, 5))
        y.sum().backward()
    assert y.shape == (2, 3) and layer.v.grad is not None and layer.v.grad.shape == layer.v.shape


def test_unknown_parameterization_is_refused() -> None:
    with pytest.raises(ValueError, match="weightnorm"):
        Linear(2, 2, "weightnorm")


def test_mean_only_batch_normalization_has_four_passes_in_the_precision_of_t() -> None:
    """In bf16: a mean and a sum over the batch, and two differences; nothing of t's size in fp32."""
    torch.set_default_dtype(torch.float32)
    layer, t = Conv2d(3, 4, 3, "wn+mobn"), torch.randn(8, 4, 6, 6).bfloat16().requires_grad_()
    with Calls() as calls:
        y = layer.norm.output(layer, t, ...)
        y.backward(torch.ones_like(y))
    passes = []
    for func, args, _, results in calls.calls:
        name = func.name().split("::")[1].split(".")[0]
        of_its_size = any(isinstance(x, Tensor) and x.shape == t.shape for x in (*args, *results))
        if of_its_size and name not in ("detach", "view", "alias", "ones_like"):
            passes.append((name, results[0].dtype))
    assert [name for name, _ in passes] == ["mean", "add", "sum", "sub"]
    assert {dtype for name, dtype in passes if name in ("add", "sub")} == {torch.bfloat16}

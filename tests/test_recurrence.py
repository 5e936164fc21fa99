"""What runs at every time step: against autograd's own loop, in float64."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from wnrepro.parameterization.recurrence import Unrolled, lstm_step, product


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("bias", [True, False])
def test_products_over_time_have_autograds_gradients(bias: bool) -> None:
    v, x, b = leaves((4, 3), (5, 2, 3), (4,))
    outcomes = []
    for unrolled in (True, False):
        w = v.tanh()
        weight = Unrolled(w)
        h = torch.zeros(2, 4, dtype=torch.float64)
        for x_t in x:
            y = (
                product(x_t, weight, b if bias else None)
                if unrolled
                else nn.functional.linear(x_t, w, b if bias else None)
            )
            h = torch.sin(h + y)
        outcomes.append([h, *torch.autograd.grad(h.square().sum(), [v, x, b] if bias else [v, x])])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_lstm_steps_are_torchs_cell_with_its_gradients() -> None:
    x, w, r, b, c = leaves((6, 5, 3), (16, 3), (16, 4), (16,), (5, 4))
    outcomes = []
    for unrolled in (True, False):
        h, state = torch.zeros(5, 4, dtype=torch.float64), c
        weights = Unrolled(w), Unrolled(r)
        total = torch.zeros((), dtype=torch.float64)
        for x_t in x:
            if unrolled:
                h, state = lstm_step(product(x_t, weights[0], None), h, state, weights[1], b)
            else:
                h, state = torch._VF.lstm_cell(x_t, (h, state), w, r, b, torch.zeros_like(b))
            total = total + (h * state.sin()).sum()
        outcomes.append([h, state, *torch.autograd.grad(total, [x, w, r, b, c])])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_pass_is_freed_without_the_garbage_collector() -> None:
    """Else nodes of autograd of plain calls would live on into the capture of a CUDA graph."""
    v, x = leaves((4, 3), (2, 3))
    gc.disable()
    try:
        weight = Unrolled(v)
        product(x, weight, None).square().sum().backward()
        node, gathered = weakref.ref(weight), weakref.ref(weight.gradient)
        del weight
        assert node() is None and gathered() is None
    finally:
        gc.enable()


def test_a_second_backward_starts_from_no_gradient() -> None:
    v, x = leaves((4, 3), (2, 3))
    y = product(x, Unrolled(v), None).square().sum()
    gradients = [torch.autograd.grad(y, v, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*gradients) and gradients[0].any()


def test_bf16_products_are_near_those_of_fp32_and_give_fp32_gradients() -> None:
    v, x, b = (leaf.detach().float().requires_grad_() for leaf in leaves((16, 8), (3, 5, 8), (16,)))
    outcomes = []
    for dtype in (torch.bfloat16, None):
        weight = Unrolled(v, dtype)
        y = torch.stack([product(x_t, weight, b) for x_t in x])
        outcomes.append([y, *torch.autograd.grad(y.sin().sum(), [v, x, b])])
    for low, full in zip(*outcomes, strict=True):
        assert low.dtype == torch.float32
        assert 0 < (low - full).norm() < 0.02 * full.norm()

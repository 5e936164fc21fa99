"""The authors' Adam and Adamax, and the Polyak average, against plain references in float64."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from layer_factories import adam, adamax
from torch import Tensor, nn

from wnrepro.optim import Adam, Adamax, PolyakAverage
from wnrepro.parameterization import Conv2d, data_dependent_init

SHAPES = ((4, 3), (5,), ())
Array = np.ndarray[Any, Any]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def schedule(step: int) -> tuple[float, float]:
    """lr and β1 of a step counted from 1: constant and 0.9, then falling to 0 and 0.5."""
    return (0.01, 0.9) if step <= 50 else (0.01 * (100 - step) / 50, 0.5)


def make_params(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def make_grads(size: float = 1.0) -> list[list[Tensor]]:
    """Gradients of about this size of 100 steps, by step and parameter."""
    generator = torch.Generator().manual_seed(2)
    return [[size * torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(100)]


def descend(params: list[nn.Parameter], optimizer: Any, grads: list[list[Tensor]], first: int = 1) -> None:
    """Take a step with each of these gradients, from step `first` of the schedule on."""
    for step, now in enumerate(grads, start=first):
        lr, beta1 = schedule(step)
        if isinstance(optimizer, Adam):
            optimizer.set_rates(lr, beta1)
        else:
            optimizer.param_groups[0] |= {"lr": lr, "beta1": beta1}
        for p, grad in zip(params, now, strict=True):
            p.grad = grad.to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize(
    ("optimizer", "reference", "size"),
    [
        *((Adam, functools.partial(adam, True), size) for size in (1.0, 1e-4, 1e-6)),  # far above, at and below √ε
        *((Adamax, adamax, size) for size in (1.0, 1e-8)),  # far above and at ε
    ],
)
def test_steps_match_plain_reference(optimizer: Any, reference: Callable[..., Tensor], size: float) -> None:
    """Over 100 steps, β1 and lr changing midway."""
    params, before, grads = make_params(), make_params(), make_grads(size)
    descend(params, optimizer(params, lr=0.01), grads)
    for i, (p, start) in enumerate(zip(params, before, strict=True)):
        expected, memory = start.detach(), [torch.zeros_like(start), torch.zeros_like(start)]
        for step, of_step in enumerate(grads, start=1):
            expected = reference(expected, of_step[i], memory, step, *schedule(step))
        moved = (expected - start).abs().max().item()
        assert moved > 1e-4
        assert (p - expected).abs().max().item() < 1e-11 * moved + 1e-15


@pytest.mark.parametrize("kind", [Adam, Adamax])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_optimizer_resumes_from_file_bit_for_bit(kind: Any, dtype: torch.dtype) -> None:
    grads, whole, first = make_grads(), make_params(dtype), make_params(dtype)
    descend(whole, kind(whole, lr=0.01), grads)
    optimizer = kind(first, lr=0.01)
    descend(first, optimizer, grads[:60])
    loaded = through_a_file({"params": first, "optimizer": optimizer.state_dict()})
    second = [nn.Parameter(p.detach().clone()) for p in loaded["params"]]
    optimizer = kind(second, lr=9.0, beta1=0.1, beta2=0.2, epsilon=1.0)
    optimizer.load_state_dict(loaded["optimizer"])
    descend(second, optimizer, grads[60:], first=61)
    for p, q, r in zip(second, whole, first, strict=True):
        assert torch.equal(p, q) and p.dtype == dtype
        assert not torch.equal(p, r)


@pytest.mark.parametrize(("kind", "steps"), [(Adam, (-0.1, -0.2 / 2)), (Adamax, (-0.1 * 0.1, -0.2 * 0.1 / 4))])
def test_groups_have_their_own_settings_and_a_gradient_of_0_or_none_moves_nothing(
    kind: Any, steps: tuple[float, float]
) -> None:
    a, b, without, zero = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(4))
    optimizer = kind([{"params": [a, without, zero]}, {"params": [b], "lr": 0.2, "epsilon": 3.0}], lr=0.1)
    optimizer.step()
    assert not optimizer.state
    a.grad, b.grad, zero.grad = torch.ones_like(a), torch.ones_like(b), torch.zeros_like(zero)
    optimizer.step()
    assert [a[0].item(), b[0].item()] == pytest.approx(steps, rel=1e-7)
    assert not without.any() and without not in optimizer.state
    assert not zero.any()  # 0/ε, not 0/0


class Walk(nn.Module):
    """A parameter and a buffer with random values at each `step`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((4, 3), 1e6, dtype=torch.float64))
        self.register_buffer("running", torch.full((5,), -1e6, dtype=torch.float64))

    @torch.no_grad()
    def step(self, generator: torch.Generator) -> list[Array]:
        for value in self.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
        return [value.numpy().copy() for value in self.state_dict().values()]


def averages(average: nn.Module) -> list[Array]:
    return [value.numpy() for name, value in average.state_dict().items() if name != "n_averaged"]


def closed_form(history: list[list[Array]], decay: float) -> list[Array]:
    """Σᵢ dᵗ⁻ⁱ·(1 − d)·wᵢ / (1 − dᵗ) of w₁ … wₜ."""
    t = len(history)
    weights = [decay ** (t - i) * (1 - decay) / (1 - decay**t) for i in range(1, t + 1)]
    return [sum(weight * w for weight, w in zip(weights, kind, strict=True)) for kind in zip(*history, strict=True)]


@pytest.mark.parametrize("updates", [0.1, 1, 2, 7.5, 6000])
def test_polyak_average_is_its_closed_form_and_resumes_bit_for_bit(updates: float) -> None:
    """Of parameters and buffers, at each update; the values before the first one have no influence."""
    model, generator, history = Walk(), torch.Generator().manual_seed(3), []
    average, resumed = PolyakAverage(model, updates), PolyakAverage(Walk(), updates)
    for t in range(40):
        history.append(model.step(generator))
        average.update_parameters(model)
        for found, expected in zip(averages(average), closed_form(history, 1 - 1 / max(updates, 1)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
        if t > 13:
            resumed.update_parameters(model)
            assert all(map(np.array_equal, averages(resumed), averages(average)))
        elif t == 13:
            resumed.load_state_dict(through_a_file(average.state_dict()))


def test_running_statistics_are_averaged_and_the_mask_stays() -> None:
    """A bn layer in float32 and channels_last; the model itself does not change."""
    torch.manual_seed(0)
    mask = torch.ones(4, 3, 3, 3)
    mask[:, :, 2] = 0
    layer: Any = Conv2d(3, 4, 3, "bn", mask=mask).to(memory_format=torch.channels_last)
    average: Any = PolyakAverage(layer, 3)
    data_dependent_init(layer, torch.randn(8, 3, 6, 6))
    history = []
    for t in range(6):
        layer(torch.randn(8, 3, 6, 6) * (t + 1) + t)
        average.update_parameters(layer)
        history.append([value.numpy().copy() for value in layer.state_dict().values()])
    assert {"running_mean", "running_var"} < set(layer.state_dict())
    for found, expected in zip(averages(average), closed_form(history, 2 / 3), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(average.module.mask, mask)
    assert all(map(np.array_equal, layer.state_dict().values(), history[-1]))

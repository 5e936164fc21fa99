"""The auto-encoders' autoregressive masks, log-determinant and likelihoods."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wnrepro.experiments.vae import (
    ConvMade,
    Made,
    autoregress,
    log_discretized_logistic,
    log_normal,
    sample_normal,
)
from wnrepro.parameterization import layers


def randomized(module: nn.Module) -> nn.Module:
    """float64 and, so that nothing hides, weights well away from their start."""
    module.double()
    for _, layer in layers(module):
        nn.init.normal_(layer.v, std=0.5)
        nn.init.normal_(layer.b, std=0.5)
    return module


# ------------------------------------------------------------------------------- autoregressive steps


@pytest.mark.parametrize("param", ["normal", "wn"])
@pytest.mark.parametrize(("latents", "width", "reverse"), [(1, 3, False), (5, 5, False), (6, 13, True), (7, 4, True)])
def test_made_sees_only_what_comes_before(param: str, latents: Any, width: Any, reverse: Any) -> None:
    torch.manual_seed(0)
    made = randomized(Made(latents, 3, width, param, reverse))
    z, context = torch.randn(1, latents, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    order = list(range(latents))[:: -1 if reverse else 1]
    for part in (0, 1):
        jacobian = torch.autograd.functional.jacobian(lambda z, part=part: made(z, context)[part][0], z)[:, 0]
        jacobian = jacobian[order][:, order]
        assert torch.equal(jacobian, jacobian.tril(-1)), "an output sees itself or what comes after it"
        if width >= latents:
            below = torch.ones_like(jacobian).tril(-1).bool()
            assert (jacobian[below] != 0).all(), "an output does not see all that comes before it"
        by_context = torch.autograd.functional.jacobian(lambda c, part=part: made(z, c)[part][0], context)
        assert (by_context.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("latents", "width"), [(2, 4), (3, 7), (4, 2)])
def test_convolutional_made_sees_only_pixels_before_and_maps_before(latents: Any, width: Any) -> None:
    torch.manual_seed(0)
    made = randomized(ConvMade(latents, width, "wn"))
    z = torch.randn(1, latents, 4, 3, dtype=torch.float64)
    context = torch.randn(1, width, 4, 3, dtype=torch.float64)
    size = z.numel()

    def raster(t: Tensor) -> Tensor:
        return t.movedim(1, -1).flatten()  # pixels in raster order, maps within

    for part in (0, 1):

        def f(flat: Tensor, part: int = part) -> Tensor:
            return raster(made(flat.view(1, 4, 3, latents).movedim(-1, 1), context)[part])

        jacobian = torch.autograd.functional.jacobian(f, raster(z))
        assert jacobian.shape == (size, size)
        assert torch.equal(jacobian, jacobian.tril(-1))
        if width >= latents:
            own = torch.arange(size)
            for i, j in [(latents * 4 + 1, latents * 4), (latents * 4, latents * 3 + 1), (latents * 4, latents)]:
                assert jacobian[own[i], own[j]] != 0


@pytest.mark.parametrize("convolutional", [False, True])
def test_the_log_determinant_is_the_sum_that_the_bound_uses(convolutional: Any) -> None:
    torch.manual_seed(0)
    if convolutional:
        steps = nn.ModuleList(ConvMade(3, 6, "wn") for _ in range(2))
        z, context = torch.randn(1, 3, 3, 4, dtype=torch.float64), torch.randn(1, 6, 3, 4, dtype=torch.float64)
    else:
        steps = nn.ModuleList(Made(6, 4, 12, "wn", reverse=k % 2 == 1) for k in range(3))
        z, context = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    for step in steps:
        randomized(step)
        nn.init.constant_(step.out.gain, 3.0)

    def f(z: Tensor) -> Tensor:
        return autoregress(steps, z, torch.zeros_like(z), context)[0]

    _, log_q = autoregress(steps, z, torch.zeros_like(z), context)
    jacobian = torch.autograd.functional.jacobian(f, z).reshape(z.numel(), z.numel())
    assert log_q.sum().item() == pytest.approx(-torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-10)
    assert abs(log_q.sum().item()) > 0.1


# ------------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("mean", [1 / 512, 0.3, 0.5, 1 - 1 / 512])
@pytest.mark.parametrize("log_scale", [-9.0, -4.0, 0.0, 2.0])
def test_the_discretized_logistic_sums_to_one(mean: Any, log_scale: Any) -> None:
    values = torch.arange(256)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        logs = log_discretized_logistic(
            values.to(dtype), torch.tensor(mean, dtype=dtype), torch.tensor(log_scale, dtype=dtype)
        )
        assert torch.logsumexp(logs, 0).item() == pytest.approx(0, abs=tolerance)
        assert logs.isfinite().all()


def test_the_discretized_logistic_is_a_difference_of_sigmoids() -> None:
    x = torch.arange(1, 255, dtype=torch.float64)
    mean, log_scale = torch.tensor(0.4, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    low, high = ((x + k) / 256 - mean for k in (0, 1))
    expected = (torch.sigmoid(high / log_scale.exp()) - torch.sigmoid(low / log_scale.exp())).log()
    assert torch.allclose(log_discretized_logistic(x, mean, log_scale), expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_discretized_logistic_are_finite_at_its_ends() -> None:
    mean = torch.tensor([1 / 512, 0.5, 1 - 1 / 512]).repeat(256, 1).requires_grad_()
    log_scale = torch.tensor(-8.0, requires_grad=True)
    log_discretized_logistic(torch.arange(256.0)[:, None], mean, log_scale).sum().backward()
    assert mean.grad is not None and mean.grad.isfinite().all() and log_scale.grad.isfinite()


def test_normal_densities_are_torchs() -> None:
    z, mean, log_std = torch.randn(3, 50, dtype=torch.float64).unbind()
    normal = torch.distributions.Normal(mean, log_std.exp())
    assert torch.allclose(log_normal(z, mean, log_std), normal.log_prob(z))
    sample, log_q = sample_normal(mean, log_std)
    assert torch.allclose(log_q, normal.log_prob(sample))

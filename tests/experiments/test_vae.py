"""The auto-encoders' autoregressive masks, log-determinant and likelihoods."""

import pytest
import torch
from torch import nn

from wnrepro.experiments.vae import ConvMade, Made, autoregress, log_discretized_logistic
from wnrepro.parameterization import layers


@pytest.mark.parametrize("convolutional", [False, True])
def test_log_determinant_is_the_sum_that_the_bound_uses(convolutional: bool) -> None:
    """Which holds only if no output sees itself or what comes after it."""
    torch.manual_seed(0)
    if convolutional:
        steps = nn.ModuleList(ConvMade(3, 6, "wn") for _ in range(2))
        z, context = torch.randn(1, 3, 3, 4, dtype=torch.float64), torch.randn(1, 6, 3, 4, dtype=torch.float64)
    else:
        steps = nn.ModuleList(Made(6, 4, 12, "wn", reverse=k % 2 == 1) for k in range(3))
        z, context = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    for _, layer in layers(steps.double()):  # so that nothing hides, well away from their start
        nn.init.normal_(layer.v, std=0.5)
        nn.init.normal_(layer.b, std=0.5)
    for step in steps:
        nn.init.constant_(step.out.gain, 3.0)
    _, log_q = autoregress(steps, z, torch.zeros_like(z), context)
    jacobian = torch.autograd.functional.jacobian(lambda z: autoregress(steps, z, 0 * z, context)[0], z)
    log_det = torch.linalg.slogdet(jacobian.reshape(z.numel(), z.numel())).logabsdet.item()
    assert log_q.sum().item() == pytest.approx(-log_det, rel=1e-10)
    assert abs(log_det) > 0.1


@pytest.mark.parametrize("log_scale", [-9.0, -4.0, 0.0, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_discretized_logistic_sums_to_one_and_has_finite_gradients(
    log_scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    means = torch.tensor([1 / 512, 0.3, 0.5, 1 - 1 / 512], dtype=dtype, requires_grad=True)
    scale = torch.tensor(log_scale, dtype=dtype, requires_grad=True)
    logs = log_discretized_logistic(torch.arange(256, dtype=dtype)[:, None], means.expand(256, -1), scale)
    assert torch.logsumexp(logs, 0).tolist() == pytest.approx([0] * 4, abs=tolerance)
    assert logs.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(logs.sum(), (means, scale)))

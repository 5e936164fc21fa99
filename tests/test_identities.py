"""The recorded identities hold to rounding, and each figure would show it if one did not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wnrepro.experiments import measurements as identities
from wnrepro.parameterization import BatchNorm, MeanOnly, Parameterized, norm, weight_norm

NAMES = ("eq3_residual", "v_dot_grad_v", "eq7_residual", "wn_is_bn_residual")


@pytest.mark.parametrize("seed", range(5))
def test_every_identity_holds_to_rounding(seed: int) -> None:
    residuals = identities.identity_residuals(seed)
    assert tuple(residuals) == NAMES
    for name, value in residuals.items():
        assert type(value) is float and 0 <= value < 1e-12, name


def test_the_residuals_are_of_float64_whatever_the_default() -> None:
    assert torch.get_default_dtype() == torch.float32
    assert max(identities.identity_residuals().values()) < 1e-12 < torch.finfo(torch.float32).eps


def test_residual_is_relative_to_the_largest_value() -> None:
    a, b = torch.tensor([1.0, -5.0, 2.0]), torch.tensor([1.0, -4.0, 2.5])
    assert identities.residual(a, b) == 0.25
    assert identities.residual(1e9 * a, 1e9 * b) == 0.25
    assert identities.residual(b, b) == 0


def test_eq3_gradients_by_finite_differences() -> None:
    """∇_g and ∇_v of L(w) = Σ c·sin(w), by central differences of eq. 2 written out."""
    draw = torch.Generator().manual_seed(1)
    v, g, c = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((3, 4), (3,), (3, 4)))

    def weight(v: Tensor, g: Tensor) -> Tensor:
        return torch.stack([g[i] * v[i] / (v[i] @ v[i]).sqrt() for i in range(3)])

    def difference(of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        result, h = torch.empty_like(at), 1e-5
        for index in range(at.numel()):
            step = torch.zeros_like(at)
            step.view(-1)[index] = h
            change = (c * torch.sin(of(at + step))).sum() - (c * torch.sin(of(at - step))).sum()
            result.view(-1)[index] = change / (2 * h)
        return result

    grad_g, grad_v = identities.eq3_gradients(v, g, c * torch.cos(weight(v, g)))
    torch.testing.assert_close(grad_g, difference(lambda g: weight(v, g), g), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(grad_v, difference(lambda v: weight(v, g), v), rtol=1e-7, atol=1e-8)


def only_moved(name: str) -> None:
    """The figure called `name` is now far from 0, and the others are not."""
    for other, value in identities.identity_residuals().items():
        assert (value > 1e-3) == (other == name), (other, value)


def test_a_wrong_sign_in_eq3_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = identities.eq3_gradients

    def wrong(v: Tensor, g: Tensor, grad_w: Tensor) -> tuple[Tensor, Tensor]:
        grad_g, grad_v = right(v, g, grad_w)
        along = (g * grad_g / v.norm(dim=1) ** 2)[:, None] * v
        return grad_g, grad_v + 2 * along

    monkeypatch.setattr(identities, "eq3_gradients", wrong)
    only_moved("eq3_residual")


def test_a_norm_without_its_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ‖v‖ as a constant, the gradient has a part along v: eq. 3 and v·∇_v L = 0 both fail."""

    def detached(v: Tensor, g: Tensor) -> Tensor:
        return v * (g / v.detach().norm(dim=1))[:, None]

    monkeypatch.setattr(identities, "weight_norm", detached)
    residuals = identities.identity_residuals()
    assert residuals["eq3_residual"] > 1e-3 and residuals["v_dot_grad_v"] > 1e-3
    assert residuals["eq7_residual"] < 1e-12 and residuals["wn_is_bn_residual"] < 1e-12


def test_a_mean_without_its_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def detached(_norm: MeanOnly, layer: Parameterized, t: Tensor, time: object) -> Tensor:
        return t - t.detach().mean(0) + layer.b

    monkeypatch.setattr(MeanOnly, "output", detached)
    only_moved("eq7_residual")


def test_unwhitened_input_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centred input whose covariance is no multiple of the identity: wn is not bn there."""
    monkeypatch.setattr(torch.linalg, "qr", lambda x: (x / x.norm(), x))
    only_moved("wn_is_bn_residual")


def test_a_wrong_variance_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the layer that trains: by N − 1, as torch's default."""
    right = BatchNorm.output

    def unbiased(norm: BatchNorm, layer: Parameterized, t: Tensor, time: object) -> Tensor:
        return right(norm, layer, t, ...) * ((len(t) - 1) / len(t)) ** 0.5

    monkeypatch.setattr(BatchNorm, "output", unbiased)
    only_moved("wn_is_bn_residual")


def test_a_wrong_parameterization_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """w = g·v, without the norm."""
    for module in (identities, norm):
        monkeypatch.setattr(module, "weight_norm", lambda v, g, unit_dim=0: weight_norm(v, g * v.norm(dim=1)))
    residuals = identities.identity_residuals()
    assert min(residuals[name] for name in ("eq3_residual", "v_dot_grad_v", "wn_is_bn_residual")) > 1e-3

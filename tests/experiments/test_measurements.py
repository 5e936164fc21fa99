"""The rows of init.csv and layers.csv against direct computation, and the random numbers that measuring them takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro.experiments import measurements
from wnrepro.experiments.measurements import eq3_gradients, identity_residuals, layer_rows, measured_init, residual
from wnrepro.parameterization import (
    BatchNorm,
    Conv2d,
    ConvTranspose2d,
    Linear,
    MaskedConv2d,
    MeanOnly,
    Parameterized,
    bound_v_norm,
    data_dependent_init,
    norm,
    weight_norm,
)
from wnrepro.settings import PARAMS


class Noisy(nn.Module):
    """Noise on the input, a convolution, dropout, a dense layer: (B, 2, 5, 5) → (B, 3)."""

    def __init__(self, param: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = Conv2d(2, 4, 3, param)
        self.dense = Linear(4 * 9, 3, param)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x + torch.randn_like(x))
        return self.dense(F.dropout(F.elu(h), 0.3, self.training).flatten(1))


def batch() -> Tensor:
    return 2 + torch.randn(12, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def expected_row(name: str, t: Tensor) -> dict[str, Any]:
    """t (B, C, …): a layer's pre-activations."""
    t = t.double().transpose(0, 1).flatten(1)
    return {
        "epoch": 0,
        "layer": name,
        "mean_abs_max": pytest.approx(t.mean(1).abs().max().item(), rel=1e-4, abs=1e-6),
        "variance_min": pytest.approx(((t - t.mean(1, keepdim=True)) ** 2).mean(1).min().item(), rel=1e-5),
        "variance_max": pytest.approx(((t - t.mean(1, keepdim=True)) ** 2).mean(1).max().item(), rel=1e-5),
    }


@pytest.mark.parametrize("param", PARAMS)
def test_the_init_gives_every_layer_mean_0_and_variance_1(param: str) -> None:
    """Also of a small batch, and for all its noise: the pass that measures sees the very noise of the init's."""
    model = Noisy(param)
    output, rows = measured_init(model, batch())
    assert [row["layer"] for row in rows] == ["conv", "dense"]
    for row in rows:
        assert row["mean_abs_max"] < 1e-5
        assert row["variance_min"] == pytest.approx(1, abs=1e-4) and row["variance_max"] == pytest.approx(1, abs=1e-4)
    assert output.shape == (12, 3) and output.var(0, correction=0).tolist() == pytest.approx([1] * 3, abs=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("bound", [None, 0.1])
def test_the_rows_are_what_a_pass_by_hand_gives(bound: float | None) -> None:
    """With a bound on ‖v‖ `normal` is another function, so that means and variances are far from 0 and 1."""
    model, x = Noisy("normal"), batch()
    torch.manual_seed(3)
    output, rows = measured_init(model, x, bound)

    torch.manual_seed(3)
    plain: Any = model
    h = F.conv2d(x + torch.randn_like(x), plain.conv.v * plain.conv.scale.view(-1, 1, 1, 1), plain.conv.b)
    t = F.dropout(F.elu(h), 0.3).flatten(1) @ (plain.dense.v * plain.dense.scale[:, None]).T + plain.dense.b
    assert rows == [expected_row("conv", h), expected_row("dense", t)]
    torch.testing.assert_close(output, t)
    if bound is not None:
        assert rows[0]["variance_max"] < 0.9 and rows[0]["mean_abs_max"] > 0.1


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("bound", [None, 0.1])
def test_it_is_the_data_dependent_init_and_one_pass_of_the_generators(param: str, bound: float | None) -> None:
    measured, plain, x = Noisy(param), Noisy(param), batch()
    torch.manual_seed(4)
    measured_init(measured, x, bound)
    after = torch.get_rng_state()

    torch.manual_seed(4)
    data_dependent_init(plain, x)
    assert torch.equal(after, torch.get_rng_state())
    if bound is not None:
        bound_v_norm(plain, bound)
    for (name, found), expected in zip(measured.state_dict().items(), plain.state_dict().values(), strict=True):
        if name.split(".")[-1] not in ("running_mean", "running_var"):
            assert torch.equal(found, expected), name
        elif bound is None:  # the second pass's batch is the first's, so that its statistics are too
            torch.testing.assert_close(found, expected)


class Several(nn.Module):
    """Layers of every kind, whose v are far from their start."""

    def __init__(self, param: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(6)
        mask = torch.ones(4, 2, 3, 3)
        mask[:2, :, 1:] = 0
        self.dense = Linear(5, 3, param, **options)
        self.inner = nn.Sequential(nn.ELU(), ConvTranspose2d(3, 4, 2, param, **options))
        self.masked = MaskedConv2d(2, 4, 3, param, mask, **options)
        for layer in (self.dense, self.inner[1], self.masked):
            nn.init.normal_(layer.v)
            if param == "normal":
                layer.scale.uniform_(0.5, 2)
            else:
                nn.init.uniform_(layer.gain, 0.5, 2)


@pytest.mark.parametrize(
    ("param", "g_exp"), [("normal", None), ("bn", None), ("wn", None), ("wn+mobn", None), ("wn", 3.0)]
)
def test_layer_rows(param: str, g_exp: float | None) -> None:
    model: Any = Several(param, g_exp=g_exp)
    rows = layer_rows(model, 7)
    masked_v = model.masked.v * model.masked.mask
    units = {  # v by unit, (C, rest)
        "dense": model.dense.v,
        "inner.1": model.inner[1].v.transpose(0, 1).flatten(1),
        "masked": masked_v.flatten(1),
    }
    assert [row["layer"] for row in rows] == list(units)
    for row, layer in zip(rows, (model.dense, model.inner[1], model.masked), strict=True):
        norms = [sum(x**2 for x in unit) ** 0.5 for unit in units[row["layer"]].tolist()]
        if param == "normal":
            g = [norm * scale for norm, scale in zip(norms, layer.scale.tolist(), strict=True)]
        else:
            g = layer.gain.tolist() if g_exp is None else torch.exp(g_exp * layer.gain).tolist()
        expected = {"epoch": 7, "layer": row["layer"]}
        for label, values in (("v_norm", norms), ("g", g)):
            expected |= {f"{label}_mean": sum(values) / len(values)}
            expected |= {f"{label}_min": min(values), f"{label}_max": max(values)}
        assert list(row) == list(expected), "the columns of layers.csv"
        assert row == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in expected.items()}


# ------------------------------------------------------------------------------- identities

NAMES = ("eq3_residual", "v_dot_grad_v", "eq7_residual", "wn_is_bn_residual")


@pytest.mark.parametrize("seed", range(5))
def test_every_identity_holds_to_rounding(seed: int) -> None:
    residuals = identity_residuals(seed)
    assert tuple(residuals) == NAMES
    for name, value in residuals.items():
        assert type(value) is float and 0 <= value < 1e-12, name


def test_residual_is_relative_to_the_largest_value() -> None:
    a, b = torch.tensor([1.0, -5.0, 2.0]), torch.tensor([1.0, -4.0, 2.5])
    assert residual(a, b) == 0.25
    assert residual(1e9 * a, 1e9 * b) == 0.25
    assert residual(b, b) == 0


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

    grad_g, grad_v = eq3_gradients(v, g, c * torch.cos(weight(v, g)))
    torch.testing.assert_close(grad_g, difference(lambda g: weight(v, g), g), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(grad_v, difference(lambda v: weight(v, g), v), rtol=1e-7, atol=1e-8)


def only_moved(name: str) -> None:
    """The figure called `name` is now far from 0, and the others are not."""
    for other, value in identity_residuals().items():
        assert (value > 1e-3) == (other == name), (other, value)


def test_a_wrong_sign_in_eq3_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = eq3_gradients

    def wrong(v: Tensor, g: Tensor, grad_w: Tensor) -> tuple[Tensor, Tensor]:
        grad_g, grad_v = right(v, g, grad_w)
        along = (g * grad_g / v.norm(dim=1) ** 2)[:, None] * v
        return grad_g, grad_v + 2 * along

    monkeypatch.setattr(measurements, "eq3_gradients", wrong)
    only_moved("eq3_residual")


def test_a_norm_without_its_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ‖v‖ as a constant, the gradient has a part along v: eq. 3 and v·∇_v L = 0 both fail."""

    def detached(v: Tensor, g: Tensor) -> Tensor:
        return v * (g / v.detach().norm(dim=1))[:, None]

    monkeypatch.setattr(measurements, "weight_norm", detached)
    residuals = identity_residuals()
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
    for module in (measurements, norm):
        monkeypatch.setattr(module, "weight_norm", lambda v, g, unit_dim=0: weight_norm(v, g * v.norm(dim=1)))
    residuals = identity_residuals()
    assert min(residuals[name] for name in ("eq3_residual", "v_dot_grad_v", "wn_is_bn_residual")) > 1e-3

"""The rows of init.csv and layers.csv against direct computation, and the random numbers that measuring them takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro.experiments.measurements import layer_rows, measured_init
from wnrepro.parameterization import Conv2d, ConvTranspose2d, Linear, MaskedConv2d, bound_v_norm, data_dependent_init
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


@pytest.mark.parametrize("param", PARAMS)
def test_the_bound_holds_and_changes_no_function_of_wn(param: str) -> None:
    free, bounded, loose, x = Noisy(param), Noisy(param), Noisy(param), batch()
    torch.manual_seed(5)
    measured_init(free, x)
    torch.manual_seed(5)
    _, rows = measured_init(bounded, x, 0.1)
    for layer, unbounded in ((bounded.conv, free.conv), (bounded.dense, free.dense)):
        norms = layer.v.detach().flatten(1).norm(dim=1)
        assert (unbounded.v.detach().flatten(1).norm(dim=1) > 0.1).all()
        assert norms.tolist() == pytest.approx([0.1] * len(norms), rel=1e-5)
    if param in ("wn", "wn+mobn"):
        torch.testing.assert_close(bounded.conv.w(), free.conv.w())
        assert all(row["variance_min"] == pytest.approx(1, abs=1e-4) for row in rows)
    torch.manual_seed(5)
    measured_init(loose, x, 1000.0)
    assert torch.equal(loose.conv.v, free.conv.v)


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

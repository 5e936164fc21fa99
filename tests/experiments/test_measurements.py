"""The rows of init.csv and layers.csv against direct computation, and the identities, which notice mistakes."""

import math
from typing import Any

import pytest
import torch
from layer_factories import mixed_model
from torch import Tensor, nn

from wnrepro.experiments import measurements
from wnrepro.experiments.measurements import (
    eq3_gradients,
    first_non_finite,
    identity_residuals,
    layer_rows,
    measured_init,
)
from wnrepro.parameterization import (
    BatchNorm,
    MeanOnly,
    bound_v_norm,
    data_dependent_init,
    layers,
    norm,
)
from wnrepro.settings import PARAMS
from wnrepro.tools.epoch_ends import Waits

WHAT = ("mean", "min", "max")


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("bound", [None, 0.1])
def test_measured_init_is_the_init_and_one_pass_of_the_generators(param: str, bound: float | None) -> None:
    """Its rows are of the last pass, which sees the very noise of the init's."""
    measured, plain = mixed_model(param, 0.5), mixed_model(param, 0.5)
    x = 2 + torch.randn(12, 2, 6, 6)
    outputs: dict[str, Tensor] = {}
    for name, layer in layers(measured):
        layer.register_forward_hook(lambda _layer, _x, y, name=name: outputs.update({name: y.detach().double()}))
    torch.manual_seed(4)
    y, rows = measured_init(measured, x, bound)
    after = torch.get_rng_state()
    for row, (name, t) in zip(rows, outputs.items(), strict=True):
        variance, mean = torch.var_mean(t.transpose(0, 1).flatten(1), 1, correction=0)
        expected = {"epoch": 0, "layer": name, "mean_abs_max": pytest.approx(mean.abs().max().item(), abs=1e-6)}
        for which, value in (("min", variance.min()), ("max", variance.max())):
            expected |= {f"variance_{which}": pytest.approx(value.item(), rel=1e-4)}
        assert row == expected
        if bound is None or param == "wn":
            assert row["mean_abs_max"] < 1e-5 and row["variance_min"] == pytest.approx(1, abs=1e-4)
    assert torch.equal(y.double(), t)

    torch.manual_seed(4)
    data_dependent_init(plain, x)
    assert torch.equal(after, torch.get_rng_state())
    if bound is not None:
        bound_v_norm(plain, bound)
    for (name, found), value in zip(measured.state_dict().items(), plain.state_dict().values(), strict=True):
        if name.split(".")[-1] not in ("running_mean", "running_var"):
            assert torch.equal(found, value), name
        elif bound is None:  # the second pass's batch is the first's, so that its statistics are too
            torch.testing.assert_close(found, value)


@pytest.mark.parametrize(("param", "g_exp"), [*((param, None) for param in PARAMS), ("wn", 3.0)])
def test_layer_rows_are_of_each_units_norm_and_g(param: str, g_exp: float | None) -> None:
    model = mixed_model(param, g_exp=g_exp)
    for _, layer in layers(model):
        nn.init.normal_(layer.v)
        nn.init.uniform_(layer.scale if param == "normal" else layer.gain, 0.5, 2)
    for row, (name, layer) in zip(layer_rows(model, 7), layers(model), strict=True):
        by_unit = layer.masked(layer.v).movedim(layer.unit_dim, 0).flatten(1)
        norms = by_unit.square().sum(1).sqrt()
        learnt = layer.scale * norms if param == "normal" else layer.gain
        g = learnt if g_exp is None else torch.exp(g_exp * learnt)
        expected = [each for values in (norms, g) for each in (values.mean(), values.min(), values.max())]
        assert list(row) == ["epoch", "layer", *(f"{of}_{what}" for of in ("v_norm", "g") for what in WHAT)]
        assert list(row.values()) == [7, name, *(pytest.approx(value.item(), rel=1e-5) for value in expected)]


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float64, torch.float32, torch.bfloat16)])
def test_layer_rows_are_to_the_last_digit_those_of_each_layer(dtypes: tuple[torch.dtype, ...]) -> None:
    model = mixed_model("wn")
    for (_, layer), dtype in zip(layers(model), dtypes * 9, strict=False):
        layer.to(dtype)
    with Waits() as waits:
        rows = layer_rows(model, 1)
    assert waits.number == 1
    for row, (_, layer) in zip(rows, layers(model), strict=True):
        for label, values in (("v_norm", layer.v_norm().detach()), ("g", layer.g.detach())):
            assert [row[f"{label}_{name}"] for name in WHAT] == [getattr(values, name)().item() for name in WHAT]


def test_first_value_that_is_not_finite_is_named_and_all_finite_ones_are_read_at_once() -> None:
    """Of tensors of every kind: the largest that are finite, integers, empty ones, one number."""
    model = mixed_model("bn")
    model.register_buffer("largest", torch.full((3,), torch.finfo(torch.float64).max, dtype=torch.float64))
    model.register_buffer("short", torch.full((2,), -torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16))
    model.register_buffer("pairs", torch.ones(2, dtype=torch.complex64))
    model.register_buffer("steps", torch.tensor(2**40))
    model.register_buffer("nothing", torch.empty(0, 3))
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    rows = layer_rows(model, 1)
    with Waits() as waits:
        assert first_non_finite(model, optimizer, rows) == ""
    assert waits.number == 1
    of_p = {p: name for name, p in model.named_parameters()}
    parts = [(f"{name} is", tensor) for name, tensor in model.state_dict().items()]
    parts += [
        (f"a moment of {of_p[p]}'s gradient is", m) for p, state in optimizer.state.items() for m in state.values()
    ]
    parts = [(start, tensor) for start, tensor in parts if tensor.numel() and tensor.dtype != torch.int64]
    assert len(parts) > 30
    for number, (start, tensor) in enumerate(reversed(parts)):
        with torch.no_grad():
            tensor.view(-1)[-1] = (math.nan, math.inf, -math.inf)[number % 3]
        assert first_non_finite(model, optimizer, rows) == f"{start} not finite"  # the first of those that are not
    fine = mixed_model("bn")
    rows = layer_rows(fine, 1)
    rows[1]["g_max"] = math.inf
    found = first_non_finite(fine, torch.optim.SGD(fine.parameters()), rows)
    assert rows[1]["layer"] in found and rows[0]["layer"] not in found


# ------------------------------------------------------------------------------- identities

NAMES = ("eq3_residual", "v_dot_grad_v", "eq7_residual", "wn_is_bn_residual")


@pytest.mark.parametrize("seed", range(5))
def test_every_identity_holds_to_rounding(seed: int) -> None:
    residuals = identity_residuals(seed)
    assert tuple(residuals) == NAMES
    assert all(type(value) is float and 0 <= value < 1e-12 for value in residuals.values())


def wrong_sign(v: Tensor, g: Tensor, grad_w: Tensor) -> tuple[Tensor, Tensor]:
    grad_g, grad_v = eq3_gradients(v, g, grad_w)
    return grad_g, grad_v + 2 * (g * grad_g / v.norm(dim=1) ** 2)[:, None] * v


def mean_without_gradient(_norm: Any, layer: Any, t: Tensor, time: object) -> Tensor:
    return t - t.detach().mean(0) + layer.b


def wrong_variance(norm: Any, layer: Any, t: Tensor, time: object, right: Any = BatchNorm.output) -> Tensor:
    return right(norm, layer, t, ...) * ((len(t) - 1) / len(t)) ** 0.5


@pytest.mark.parametrize(
    ("place", "name", "wrong", "moved"),
    [
        (measurements, "eq3_gradients", wrong_sign, NAMES[:1]),
        (measurements, "weight_norm", lambda v, g: v * (g / v.detach().norm(dim=1))[:, None], NAMES[:2]),
        (measurements, "weight_norm", lambda v, g: v * g[:, None], NAMES[:2]),
        (norm, "weight_norm", lambda v, g, unit_dim: v * g[:, None], NAMES[3:]),
        (MeanOnly, "output", mean_without_gradient, NAMES[2:3]),
        (torch.linalg, "qr", lambda x: (x / x.norm(), x), NAMES[3:]),  # no whitening
        (BatchNorm, "output", wrong_variance, NAMES[3:]),
    ],
)
def test_mistake_moves_the_identities_that_it_breaks(
    place: Any, name: str, wrong: Any, moved: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, wrong)
    assert tuple(name for name, value in identity_residuals().items() if value > 1e-3) == moved

"""Parameterized layers and models that several test modules share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro.parameterization import (
    Conv2d,
    ConvTranspose2d,
    Linear,
    MaskedConv2d,
    Parameterized,
    data_dependent_init,
)
from wnrepro.settings import PARAMS

WITH_G = ("bn", "wn", "wn+mobn")
CAUSAL = torch.ones(4, 3, 3, 3)
CAUSAL[:, :, 1, 1:] = 0
CAUSAL[:, :, 2:] = 0


# One of each layer, under any parameterization, and the shape of its input: all have 3 inputs and 4 units.
KINDS: dict[str, tuple[Callable[..., Parameterized], tuple[int, ...]]] = {
    "linear": (lambda param, **o: Linear(3, 4, param, **o), (9, 3)),
    "linear over time": (lambda param, **o: Linear(3, 4, param, **o), (5, 6, 3)),
    "conv": (lambda param, **o: Conv2d(3, 4, 3, param, stride=2, padding=1, **o), (4, 3, 6, 6)),
    "masked": (lambda param, **o: MaskedConv2d(3, 4, 3, param, CAUSAL.clone(), padding=1, **o), (4, 3, 5, 5)),
    "transposed": (
        lambda param, **o: ConvTranspose2d(3, 4, 3, param, stride=2, padding=1, output_padding=1, **o),
        (4, 3, 4, 4),
    ),
}


EVERY_INIT: list[tuple[str, dict[str, Any]]] = [
    *((param, {}) for param in PARAMS),
    ("normal", {"init": "authors"}),
    *((param, {"g_exp": 3.0}) for param in WITH_G),
]


each_kind = pytest.mark.parametrize("kind", KINDS)


each_param = pytest.mark.parametrize("param", PARAMS)


every_init = pytest.mark.parametrize(("param", "options"), EVERY_INIT, ids=str)


def close(actual: Tensor | None, expected: Tensor | None, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def units(v: Tensor, layer: Parameterized) -> list[Tensor]:
    """The flat weight vector of each output unit."""
    dim = 1 if isinstance(layer, ConvTranspose2d) else 0
    return [row.flatten() for row in v.unbind(dim)]


def plain_sum(layer: Parameterized, x: Tensor, w: Tensor) -> Tensor:
    """w·x through torch's functions, with the hyperparameters that KINDS gives."""
    if isinstance(layer, Linear):
        return x @ w.T
    if isinstance(layer, ConvTranspose2d):
        return F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1)
    return F.conv2d(x, w, stride=1 if isinstance(layer, MaskedConv2d) else 2, padding=1)


def features_last(layer: Parameterized, t: Tensor) -> Tensor:
    """t as (examples, features)."""
    return (t if isinstance(layer, Linear) else t.movedim(1, -1)).flatten(0, -2)


def make(kind: str, param: str, **options: Any) -> tuple[Any, Tensor]:
    """A layer with random v, g and b, and an input."""
    build, shape = KINDS[kind]
    layer: Any = build(param, **options)
    with torch.no_grad():
        layer.b.normal_()
        if param != "normal":
            layer.gain.normal_()
    return layer, torch.randn(shape)


class Noise(nn.Module):
    """Gaussian noise in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.15 * torch.randn_like(x) if self.training else x


class Residual(nn.Module):
    """x + layer(φ(x)), a module that is no Sequential."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"layer": layer})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body["layer"](F.elu(x))


def mixed_model(param: str, random: bool = True, **options: Any) -> Any:
    """Every kind of layer in a nested tree, from the same seed whatever `param` is. x: (B, 2, 6, 6)."""
    torch.manual_seed(1)
    return nn.Sequential(
        Noise() if random else nn.Identity(),
        Conv2d(2, 3, 3, param, stride=2, **options),
        nn.Sequential(
            nn.LeakyReLU(0.1),
            nn.Dropout(0.5 if random else 0.0),
            ConvTranspose2d(3, 3, 2, param, stride=2, **options),
        ),
        Residual(MaskedConv2d(3, 3, 3, param, CAUSAL[:3].clone(), padding=1, **options)),
        nn.Sequential(nn.LeakyReLU(0.1), nn.Flatten(), Linear(48, 5, param, **options)),
    )


def initialized(param: str, random: bool = False, **options: Any) -> tuple[Any, Tensor]:
    """A mixed model after its init pass, and the init batch."""
    model = mixed_model(param, random, **options)
    x = torch.randn(20, 2, 6, 6) + 0.3
    data_dependent_init(model, x)
    return model, x

"""Parameterized layers and models, and plain optimizers, that several test modules share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from wnrepro.parameterization import Conv2d, ConvTranspose2d, Linear, MaskedConv2d, Parameterized
from wnrepro.settings import PARAMS

CAUSAL = torch.ones(4, 3, 3, 3)
CAUSAL[:, :, 1, 1:] = 0
CAUSAL[:, :, 2:] = 0

# One of each layer, under any parameterization, and the shape of its input: all have 3 inputs and 4 units.
KINDS: dict[str, tuple[Callable[..., Parameterized], tuple[int, ...]]] = {
    "linear": (lambda param, **o: Linear(3, 4, param, **o), (9, 3)),
    "linear over time": (lambda param, **o: Linear(3, 4, param, **o), (5, 6, 3)),
    "conv": (lambda param, **o: Conv2d(3, 4, 3, param, stride=2, padding=1, **o), (4, 3, 6, 6)),
    "masked": (lambda param, **o: MaskedConv2d(3, 4, 3, param, CAUSAL.clone(), padding=1, **o), (4, 3, 5, 5)),
    "transposed": (lambda param, **o: ConvTranspose2d(3, 4, 3, param, stride=2, padding=1, **o), (4, 3, 4, 4)),
}
EVERY_INIT: list[tuple[str, dict[str, Any]]] = [
    *((param, {}) for param in PARAMS),
    ("normal", {"init": "authors"}),
    *((param, {"g_exp": 3.0}) for param in ("bn", "wn", "wn+mobn")),
]

each_kind = pytest.mark.parametrize("kind", KINDS)
each_param = pytest.mark.parametrize("param", PARAMS)
every_init = pytest.mark.parametrize(("param", "options"), EVERY_INIT, ids=str)


def close(actual: Tensor | None, expected: Tensor | None, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def features_last(layer: nn.Module, t: Tensor) -> Tensor:
    """t as (examples, features)."""
    return (t if isinstance(layer, Linear | nn.Linear) else t.movedim(1, -1)).flatten(0, -2)


def make(kind: str, param: str, **options: Any) -> tuple[Any, Tensor]:
    """A layer with random v, g and b, and an input."""
    build, shape = KINDS[kind]
    layer: Any = build(param, **options)
    with torch.no_grad():
        layer.b.normal_()
        if param != "normal":
            layer.gain.normal_()
    return layer, torch.randn(shape)


class Calls(TorchDispatchMode):
    """Records the operators called: function, arguments, keywords, and the results as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        call = (func, args, kwargs or {}, tree_leaves(result))
        self.calls.append(tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, call))
        return result


def mixed_model(param: str, dropout: float = 0.0, **options: Any) -> Any:
    """Every kind of layer in a nested tree, from the same seed whatever `param` is. x: (B, 2, 6, 6)."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Sequential(Conv2d(2, 3, 3, param, stride=2, **options), nn.LeakyReLU(0.1)),
        nn.Sequential(nn.Dropout(dropout), ConvTranspose2d(3, 3, 2, param, stride=2, **options)),
        MaskedConv2d(3, 3, 3, param, CAUSAL[:3].clone(), padding=1, **options),
        nn.Sequential(nn.LeakyReLU(0.1), nn.Flatten(), Linear(48, 5, param, **options)),
    )


def adam(inside: bool, p: Tensor, grad: Tensor, memory: list[Tensor], step: int, lr: float, beta1: float) -> Tensor:
    """ε = 1e-8 inside the root or outside; the bias corrections are by the β1 of the step."""
    m, v = memory[:] = beta1 * memory[0] + (1 - beta1) * grad, 0.999 * memory[1] + 0.001 * grad**2
    m, v = m / (1 - beta1**step), v / (1 - 0.999**step)
    return p - lr * m / ((v + 1e-8).sqrt() if inside else v.sqrt() + 1e-8)


def adamax(p: Tensor, grad: Tensor, memory: list[Tensor], _: int, lr: float, beta1: float) -> Tensor:
    """Without bias correction."""
    m, u = memory[:] = beta1 * memory[0] + (1 - beta1) * grad, torch.maximum(0.999 * memory[1], grad.abs() + 1e-8)
    return p - lr * m / u

"""The trial of a custom parameterization before a run: which rule it breaks, and how to correct it."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wnrepro.parameterization.layer import (
    ConstantFeatureError,
    Conv2d,
    ConvTranspose2d,
    Linear,
    MaskedConv2d,
    Parameterized,
    layers,
    moments,
)
from wnrepro.parameterization.lstm import LSTMCell
from wnrepro.parameterization.models import data_dependent_init, fold, updated
from wnrepro.parameterization.norm import Param, parameterization

MEAN, VARIANCE = 1e-3, 1e-2  # largest deviations from 0 and 1 after the init
STEPS = 3
CAUSAL = torch.ones(6, 4, 3, 3)
CAUSAL[:, :, 1, 2:] = 0
CAUSAL[:, :, 2:] = 0

KINDS: dict[str, tuple[Callable[[Param], Parameterized], tuple[int, ...]]] = {
    "Linear": (lambda param: Linear(4, 6, param), (16, 4)),
    "Conv2d": (lambda param: Conv2d(4, 6, 3, param, padding=1), (8, 4, 6, 6)),
    "MaskedConv2d": (lambda param: MaskedConv2d(4, 6, 3, param, CAUSAL, padding=1), (8, 4, 6, 6)),
    "ConvTranspose2d": (lambda param: ConvTranspose2d(4, 6, 3, param, stride=2, padding=1), (8, 4, 6, 6)),
}


class RefusedError(ValueError):
    """A parameterization cannot be trained; the message says why, and what to do."""


def trial(param: Param) -> None:
    """Raise RefusedError, or the parameterization's own error, unless all kinds of layers start, train and fold."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        made = {kind: make(param) for kind, (make, _) in KINDS.items()}
        if not any(type(layer.norm) is type(parameterization(param)) for layer in made.values()):
            raise RefusedError("it applies to no layer; let `applies` return True for some")
        for kind, layer in made.items():
            state = dict(vars(layer.norm))
            _try_layer(kind, layer, torch.randn(KINDS[kind][1]) + 0.5)
            _require(
                vars(layer.norm) == state,
                kind,
                "the parameterization changes itself",
                "keep its state in buffers of the layer",
            )
        _try_cell(LSTMCell(4, 3, param, time_steps=STEPS), torch.randn(STEPS, 8, 4))


def _require(holds: object, kind: str, otherwise: str, todo: str) -> None:
    if not holds:
        raise RefusedError(f"in a layer {kind}: {otherwise}; {todo}")


def _try_layer(kind: str, layer: Parameterized, x: Tensor) -> None:
    w = layer.w()
    kept = {name for name, _ in layer.named_buffers()} <= {"mask", *layer.state_dict()}
    _require(kept, kind, "a buffer is missing from checkpoints", "register it as persistent")
    same = torch.equal(w.nan_to_num(), layer.w().nan_to_num())
    _require(same, kind, "w changes from call to call", "change state only in `updated`")
    shapes = f"w has the shape {tuple(w.shape)}, v {tuple(layer.v.shape)}"
    _require(w.shape == layer.v.shape, kind, shapes, "return the shape of v")
    y = layer(x)
    _require(
        y.shape == layer.weighted_sum(x, w, None).shape,
        kind,
        "the output does not have the shape of t",
        "return the shape of t",
    )
    _require(y.isfinite().all(), kind, "the output is not finite", "fix this")
    (y * torch.randn_like(y)).sum().backward()
    _require_gradients(kind, layer)
    try:
        data_dependent_init(layer, x)
    except ConstantFeatureError as error:
        text = f"{error.features} of {layer.units} features do not vary after the init"
        raise RefusedError(f"in a layer {kind}: {text}; exclude such layers in `applies`") from error
    mean, std = moments(layer(x).detach(), layer.feature_dim)
    largest, least, most = mean.abs().max(), std.min() ** 2, std.max() ** 2
    text = f"the init leaves |mean| {largest:.2g} and variances from {least:.2g} to {most:.2g}, not 0 and 1"
    standardized = largest <= MEAN and max(1 - least, most - 1) <= VARIANCE
    _require(standardized, kind, text, "let g scale what `normalize` returns (after = True)")
    with torch.no_grad():
        for p in layer.parameters():
            assert p.grad is not None
            p.sub_(0.01 * p.grad)
    updated(layer)
    copied = copy.deepcopy(layer).eval()
    first, second = copied(x), copied(x)
    _require(first.isfinite().all(), kind, "the output is not finite in evaluation", "fix this")
    _require(torch.equal(first, second), kind, "evaluation changes the layer", "change state only in `updated`")
    close = torch.allclose(fold(copied)(x), first, rtol=1e-3, atol=1e-3)
    todo = "set affine = False, or override `in_evaluation`"
    _require(close, kind, "the output in evaluation is not a·t + c, with one a and one c per unit", todo)


def _try_cell(cell: LSTMCell, x: Tensor) -> None:
    state, weights = (x.new_zeros(8, 3), x.new_zeros(8, 3)), cell.unrolled()
    for time, x_t in enumerate(x):
        state = cell(x_t, state, weights, time)
    (state[0] * torch.randn_like(state[0])).sum().backward()
    _require_gradients("LSTMCell", cell)


def _require_gradients(kind: str, module: nn.Module) -> None:
    for prefix, layer in layers(module):
        for name, p in layer.named_parameters():
            shown = f"{prefix}.{'g' if name == 'gain' else name}".lstrip(".")
            todo = "use g, or set learns_g = False" if name == "gain" else "make w and the output functions of it"
            _require(p.grad is not None, kind, f"{shown} has no gradient", todo)
            _require(
                p.grad is not None and p.grad.isfinite().all(),
                kind,
                f"the gradient of {shown} is not finite",
                "fix this",
            )

"""Trying a parameterization out, before anything is computed with it: what it may not do, and how to mend that."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

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

MEAN, VARIANCE = 1e-3, 1e-2  # of the outputs after the init, from 0 and 1, at most
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


class Refused(ValueError):
    """A parameterization is none that could be trained; the message says why, and what to do."""


def trial(param: Param) -> None:
    """Raise Refused, or what the parameterization raises, unless every kind of layer starts, trains and folds."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        made = {kind: make(param) for kind, (make, _) in KINDS.items()}
        own, state = type(parameterization(param)), {kind: dict(vars(layer.norm)) for kind, layer in made.items()}
        if not any(type(layer.norm) is own for layer in made.values()):
            raise Refused("it applies to no layer; let `applies` return True for some")
        for kind, layer in made.items():
            _layer(kind, layer, torch.randn(KINDS[kind][1]) + 0.5)
            _refuse(vars(layer.norm) == state[kind], kind, "it changes itself", "keep state in buffers of the layer")
        _cell(LSTMCell(4, 3, param, time_steps=STEPS), torch.randn(STEPS, 8, 4))


def _refuse(unless: object, kind: str, what: str, todo: str) -> None:
    if not unless:
        raise Refused(f"in a layer {kind} {what}; {todo}")


def _layer(kind: str, layer: Parameterized, x: Tensor) -> None:
    w = layer.w()
    kept = {name for name, _ in layer.named_buffers()} <= {"mask", *layer.state_dict()}
    _refuse(kept, kind, "there is a buffer that no checkpoint has", "register it as persistent")
    same = torch.equal(w.nan_to_num(), layer.w().nan_to_num())
    _refuse(same, kind, "w changes from call to call", "let state move in `updated` alone")
    _refuse(w.shape == layer.v.shape, kind, f"w has the shape {tuple(w.shape)}, v {tuple(layer.v.shape)}", "keep v's")
    expected = layer.weighted_sum(x, w, None).shape
    y = layer(x)
    _refuse(y.shape == expected, kind, "the output has not the shape of t", "keep t's")
    _refuse(y.isfinite().all(), kind, "the output is not finite", "mend that")
    (y * torch.randn_like(y)).sum().backward()
    _gradients(kind, layer)
    try:
        data_dependent_init(layer, x)
    except ConstantFeatureError as error:
        text = f"{error.features} of {layer.units} features do not vary after the init"
        raise Refused(f"in a layer {kind} {text}; leave such layers out by `applies`") from error
    y = layer(x)
    mean, std = moments(y.detach(), layer.feature_dim)
    _refuse(
        mean.abs().max() <= MEAN and (std.square() - 1).abs().max() <= VARIANCE,
        kind,
        f"the init leaves |mean| {mean.abs().max():.2g} and variances from {std.min() ** 2:.2g} to "
        f"{std.max() ** 2:.2g}, not 0 and 1",
        "let g scale what `normalize` returns (after = True)",
    )
    with torch.no_grad():
        for p in layer.parameters():
            assert p.grad is not None
            p.sub_(0.01 * p.grad)
    updated(layer)
    copied = copy.deepcopy(layer).eval()
    first, second = copied(x), copied(x)
    _refuse(first.isfinite().all(), kind, "the output is not finite in evaluation", "mend that")
    _refuse(torch.equal(first, second), kind, "evaluation changes the layer", "let state move in `updated` alone")
    close = torch.allclose(fold(copied)(x), first, rtol=1e-3, atol=1e-3)
    todo = "set affine = False, or override `in_evaluation`"
    _refuse(close, kind, "the output in evaluation is not a·t + c with a and c of each unit", todo)


def _cell(cell: LSTMCell, x: Tensor) -> None:
    state, weights = (x.new_zeros(8, 3), x.new_zeros(8, 3)), cell.unrolled()
    for time, x_t in enumerate(x):
        state = cell(x_t, state, weights, time)
    (state[0] * torch.randn_like(state[0])).sum().backward()
    _gradients("LSTMCell", cell)


def _gradients(kind: str, module: torch.nn.Module) -> None:
    names = {f"{name}.".lstrip("."): layer for name, layer in layers(module)}
    for prefix, layer in names.items():
        for name, p in layer.named_parameters():
            todo = "use g, or set learns_g = False" if name == "gain" else "make w and the output functions of it"
            what = f"{prefix}{'g' if name == 'gain' else name} has no gradient"
            _refuse(p.grad is not None, kind, what, todo)
            assert p.grad is not None
            _refuse(p.grad.isfinite().all(), kind, f"the gradient of {prefix}{name} is not finite", "mend that")

"""Operations on all parameterized layers of a model: the data-dependent init, bounds on v, folding."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from wnrepro.parameterization.layer import ConstantFeatureError, Parameterized, layers
from wnrepro.parameterization.lstm import LSTM, LSTMCell
from wnrepro.parameterization.norm import unit_norm


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any) -> Any:
    """Set every g and b from one forward pass of `model(*inputs)` and return its output (§3, eq. 4, 5).

    The pass runs in training mode, with noise and dropout, as in the authors' code. A layer is initialized by
    its first call. Recurrent cells keep their initial g and b (§3). With a process group, the statistics are over the
    batches of all processes, which must have equal sizes. Raises ConstantFeatureError, which names the layer, if a
    feature is constant, and ValueError, which names the layers, if the pass does not reach some.
    """
    was_training = model.training
    cells = {layer for cell in model.modules() if isinstance(cell, LSTMCell) for _, layer in layers(cell)}
    named = {name: layer for name, layer in layers(model) if layer not in cells}
    for layer in named.values():
        layer.initializing = True
    model.train()
    try:
        output = model(*inputs)
        missed = [name for name, layer in named.items() if layer.initializing]
    except ConstantFeatureError as error:
        culprit = next(name for name, layer in named.items() if layer is error.layer)
        raise ConstantFeatureError(error.layer, error.features, culprit) from None
    finally:
        for layer in named.values():
            layer.initializing = False
        model.train(was_training)
    if missed:
        raise ValueError(f"data-dependent init: the forward pass did not reach {', '.join(missed)}")
    return output


@torch.no_grad()
def bound_v_norm(model: nn.Module, a: float) -> None:
    """Scale every v with ‖v‖ > a down to ‖v‖ = a (§6.2). With `wn` the function stays the same."""
    for _, layer in layers(model):
        layer.v.mul_((a / unit_norm(layer.masked(layer.v), layer.unit_dim)).clamp_(max=1))


@torch.no_grad()
def updated(model: nn.Module) -> None:
    """Let parameterizations update their buffers; call it after each optimizer step."""
    for _, layer in layers(model):
        layer.norm.updated(layer)


def fold(model: nn.Module) -> nn.Module:
    """Copy the model to plain torch layers that are the same function in evaluation, for inference.

    Layers, LSTM cells and LSTMs whose output is not affine in t are copied unchanged, in evaluation mode.
    """
    return copy.deepcopy(model, {id(layer): layer.fold() for layer in foldable(model)})


@torch.no_grad()
def refold(model: nn.Module, plain: nn.Module) -> None:
    """Update `plain`, an earlier `fold` of the model, to the current weights. LSTMs and LSTM cells are not updated."""
    for name, layer in layers(model):
        target: Any = plain.get_submodule(name)
        if isinstance(target, Parameterized):
            target.load_state_dict(layer.state_dict())
            continue
        w, b = layer.folded()
        target.weight.copy_(w)
        if b is not None:
            target.bias.copy_(b)


def foldable(model: nn.Module) -> Iterator[Parameterized | LSTMCell | LSTM]:
    """Yield the outermost modules of the model that fold to a torch layer."""
    if isinstance(model, Parameterized | LSTMCell | LSTM):
        yield model
    else:
        for child in model.children():
            yield from foldable(child)

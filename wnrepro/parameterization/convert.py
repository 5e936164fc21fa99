"""Conversion of a model's torch layers, and the data-dependent init of models with torch's weight norm."""

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized

from wnrepro.parameterization import layer as ours
from wnrepro.parameterization.layer import ConstantFeatureError, is_constant, layers, moments, over_processes
from wnrepro.parameterization.lstm import LSTM, LSTMCell
from wnrepro.parameterization.norm import CLASSES, Param, Parameterization, along, parameterization, unit_norm
from wnrepro.parameterization.trial import trial

Skip: TypeAlias = Collection[str] | Callable[[str, nn.Module], bool]

TORCH_PART = re.compile(r"((?:.*\.)?)(?:weight_|parametrizations\.weight\.original)([gv01])")  # a weight norm's tensor
KINDS: dict[type[nn.Module], Any] = {
    **{nn.Linear: ours.Linear, nn.LSTMCell: LSTMCell, nn.LSTM: LSTM},
    **{nn.Conv1d: ours.Conv1d, nn.Conv2d: ours.Conv2d, nn.Conv3d: ours.Conv3d},
    **{getattr(nn, kind.__name__): kind for kind in (ours.ConvTranspose1d, ours.ConvTranspose2d, ours.ConvTranspose3d)},
}
TORCH_LAYERS: tuple[type[nn.Module], ...] = tuple(KINDS)
# The names of sizes and options of the classes in KINDS, by torch class.
SIGNATURES: dict[type[nn.Module], tuple[tuple[str, ...], tuple[str, ...]]] = {
    nn.Linear: (("in_features", "out_features"), ()),
    _ConvNd: (
        ("in_channels", "out_channels", "kernel_size"),
        ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding"),
    ),
    nn.LSTMCell: (("input_size", "hidden_size"), ()),
    nn.LSTM: (("input_size", "hidden_size"), ("num_layers", "batch_first", "dropout", "bidirectional")),
}


def convert(
    model: nn.Module,
    param: Param = "wn",
    *,
    skip: Skip = (),
    remove_batch_norm: bool = False,
    g_exp: float | None = None,
) -> nn.Module:
    """Return a copy of a model in which every torch layer of KINDS has the parameterization.

    v is the layer's weight and b its bias; type, device, strides, frozen parameters and the training mode are kept.
    With `normal` and `wn` the copy is the same function. With `bn` and `wn+mobn` it is the same in evaluation, with
    running averages of 0 and 1. In training both use batch statistics, so call `data_dependent_init` next. With a
    custom class, its `start` decides. The recurrent product of an LSTM cell, and all products of an LSTM, have the
    parameterization `elsewhere(param)`.

    param: `normal`, `bn`, `wn`, `wn+mobn`, or a custom class.
    skip: names of modules to keep, with their submodules, or a function of name and module.
    remove_batch_norm: replace the model's batch normalization layers with nn.Identity, and add a bias of 0 to converted
        layers without one. This changes the function, so call `data_dependent_init` next.
    g_exp: c of g = exp(c·s), where s is learnt instead of g; None to learn g.

    A module that is used twice is converted once. nn.Embedding and subclasses, such as the projections of
    nn.MultiheadAttention, are not converted. Raises ValueError, which names the layer, if one cannot be converted, and
    if there is no module with a name in `skip`. Raises `trial.RefusedError`, a ValueError, for a custom class that
    cannot be trained.
    """
    norm = parameterization(param)
    if type(norm) not in CLASSES.values():
        trial(norm)
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    skipped = _modules_to_skip(names, skip)
    owners = Counter(id(p) for module in names for p in module._parameters.values() if p is not None)
    memo: dict[int, Any] = {}
    for module in names:
        if module in skipped:
            continue
        if remove_batch_norm and isinstance(module, _BatchNorm):
            memo[id(module)] = nn.Identity().train(module.training)
        elif isinstance(module, TORCH_LAYERS) and (why := _refusal(module, owners)):
            raise ValueError(f"convert: layer {names[module][0] or type(module).__name__!r} {why}, or skip it")
        elif type(module) in KINDS:
            memo[id(module)] = _convert_layer(module, norm, remove_batch_norm, g_exp)
    return copy.deepcopy(model, memo)


def _modules_to_skip(names: Mapping[nn.Module, list[str]], skip: Skip) -> set[nn.Module]:
    """Return the modules to keep, with their submodules."""
    named = {name: module for module, its_names in names.items() for name in its_names}
    if not callable(skip) and (isinstance(skip, str) or not named.keys() >= set(skip)):
        raise ValueError(f"convert: skip must be a list of names of modules; {skip!r} has another name")
    chosen = [module for name, module in named.items() if (skip(name, module) if callable(skip) else name in skip)]
    return {inner for module in chosen for inner in module.modules()}


def _refusal(module: nn.Module, owners: Counter[int]) -> str:
    """Return why a layer of KINDS or a subclass cannot be converted, and what to do. Empty if there is no problem."""
    if isinstance(module, LazyModuleMixin):
        return "has no weight yet: call the model once first"
    exact = type(module) in KINDS
    hooked = any(value for name, value in vars(module).items() if name.endswith("_hooks"))
    if is_parametrized(module) or (exact and hooked):
        return "has hooks or a parametrization of torch: remove these first"
    if exact and any(owners[id(p)] > 1 for p in module._parameters.values()):
        return "shares a parameter with another module: give each its own"
    if type(module) is nn.LSTM and module.proj_size:
        return "has a proj_size, which wnrepro's LSTM does not support: build it without"
    return ""


@torch.no_grad()
def _convert_layer(module: Any, norm: Parameterization, bias: bool, g_exp: float | None) -> nn.Module:
    """Convert a layer; bias: add a bias if it has none."""
    weights = [p for name, p in module.named_parameters() if name.startswith("weight")]
    biases = [p for name, p in module.named_parameters() if name.startswith("bias")]
    v: list[Any] = [p.clone() for p in weights]  # clones keep the strides
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        pairs = list(zip(v[::2], v[1::2], strict=True))
        v = [pairs] if isinstance(module, nn.LSTM) else pairs
    elif isinstance(module, _ConvTransposeNd) and module.groups > 1:
        v = [torch.cat(v[0].chunk(module.groups), 1)]
    sizes, options = next(names for kind, names in SIGNATURES.items() if isinstance(module, kind))
    given: dict[str, Any] = {name: getattr(module, name) for name in options}
    given |= {"v": v[0], "bias": bias or bool(biases), "g_exp": g_exp}
    new: nn.Module = KINDS[type(module)](*(getattr(module, name) for name in sizes), norm, **given)
    for (_, layer), weight, b in zip(layers(new), weights, biases or [None] * len(weights), strict=True):
        for p in layer.parameters():
            p.requires_grad_(weight.requires_grad)  # g is frozen if the weight is
        if layer.b is not None and b is not None:
            layer.b.copy_(b).requires_grad_(b.requires_grad)
    return new.train(module.training)


@torch.no_grad()
def init_torch_weight_norm(model: nn.Module, *inputs: Any) -> Any:
    """Initialize a model with torch's weight norm (either interface) from data, and return its output.

    One forward pass of `model(*inputs)`, in training mode, sets g (`original0` or `weight_g`) and the bias of each
    nn.Linear, convolution and transposed convolution with weight norm, in the order of their calls. Its outputs then
    have mean 0 and variance 1 on this batch; without a bias, only variance 1. A layer is initialized by its first call.
    With a process group, the statistics are over the batches of all processes, which must have equal sizes.

    Raises ValueError if a layer does not have one g per output unit (transposed convolutions need `dim=1` and one
    group, the others `dim=0`), or if the pass does not reach it. Raises ConstantFeatureError if a feature is constant.
    """
    waiting = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd) and (g := _torch_g(module)) is not None:
            unit_dim, units = _units(module)
            if g.ndim <= unit_dim or not g.numel() == g.shape[unit_dim] == units:
                raise ValueError(
                    f"init: weight norm of layer {name!r} does not have one g per unit; use dim={unit_dim}"
                )
            waiting[module] = name

    def standardize(module: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        name = waiting.pop(module, None)
        g = _torch_g(module)
        if name is None or g is None:
            return None
        feature_dim = -1 if isinstance(module, nn.Linear) else 1
        mean, std = moments(y, feature_dim)
        largest = over_processes(args[0].abs().amax().float(), dist.ReduceOp.MAX)
        constant = is_constant(y, largest * unit_norm(module.weight, _units(module)[0]).flatten(), mean, std)
        if constant.any():
            raise ConstantFeatureError(module, int(constant.sum()), name)
        g.div_(std.view_as(g))
        if module.bias is None:
            return y / along(std, y, feature_dim).to(y.dtype)
        module.bias.sub_(mean).div_(std)
        return (y - along(mean, y, feature_dim).to(y.dtype)) / along(std, y, feature_dim).to(y.dtype)

    was_training = model.training
    hooks = [module.register_forward_hook(standardize) for module in waiting]
    model.train()
    try:
        output = model(*inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if waiting:
        raise ValueError(f"init: the forward pass did not reach {', '.join(waiting.values())}")
    return output


def _units(module: Any) -> tuple[int, int]:
    """Return the output dimension of a torch layer's weight, and its number of output units."""
    if isinstance(module, nn.Linear):
        return 0, module.out_features
    return int(isinstance(module, _ConvTransposeNd)), module.out_channels


def _torch_g(module: nn.Module) -> Tensor | None:
    """Return g of torch's weight norm (either interface) on `weight`, or None."""
    if is_parametrized(module, "weight"):
        chain: Any = module.parametrizations["weight"]  # type: ignore[index]
        return chain.original0 if isinstance(chain[0], _WeightNorm) else None
    return module._parameters.get("weight_g")


def from_torch_weight_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a model with torch's weight norm (either interface) to one of `convert(model, "wn")`.

    Transposed convolutions must have `dim=1` and one group, other layers `dim=0`. Other keys stay.
    """
    parts = {key: match.groups() for key in state_dict if (match := TORCH_PART.fullmatch(key))}
    names = {key: prefix + ("gain" if part in "g0" else "v") for key, (prefix, part) in parts.items()}
    names |= {f"{prefix}bias": f"{prefix}b" for prefix, _ in parts.values()}
    gains = {key for key, (_, part) in parts.items() if part in "g0"}
    return {names.get(key, key): value.flatten() if key in gains else value for key, value in state_dict.items()}

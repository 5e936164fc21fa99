"""A stand-in for Apple's GPU: tensors of the CPU that say they are on `mps`, and refuse what it cannot do."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

MPS, CPU = torch.device("mps"), torch.device("cpu")
MOVES = (Tensor.to, Tensor.cpu)
ANY_DEVICE = ("copy_", "__get__", "__set__", "_has_compatible_shallow_copy_type")  # may have tensors of two devices


class OnMps(Tensor):
    """A tensor on the stand-in."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnMps":
        copied: Any = self.detach().clone().requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = copied
        return copied


def is_mps(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "mps"


class AppleGpu(TorchFunctionMode):
    """Makes tensors on `mps` as `OnMps`. It refuses float64 there, and a tensor of the CPU beside its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._nn._parse_to:
            return func(*args, **kwargs)
        given = tree_leaves((args, kwargs))
        tensors = [one for one in given if isinstance(one, Tensor)]
        asked = [one for one in given if isinstance(one, torch.device)]
        there = any(isinstance(one, OnMps) for one in tensors) or any(map(is_mps, asked))
        if func in MOVES:
            there = is_mps(asked[0]) if asked else there and func is not Tensor.cpu
        else:
            self.check(getattr(func, "__name__", ""), tensors)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*tree_map(bare, args), **tree_map(bare, kwargs))
            if func in MOVES and result is args[0] and there != isinstance(result, OnMps):
                result = result.clone()
        return tree_map(lambda one: place(func, one), result) if there else result

    def check(self, name: str, tensors: list[Tensor]) -> None:
        """Refuse tensors of two devices, but for numbers as tensors ()."""
        there = {isinstance(one, OnMps) for one in tensors if one.ndim}
        if name not in ANY_DEVICE and len(there) > 1:
            raise RuntimeError(f"{name}: tensors on mps and on the CPU")
        if name == "numpy" and True in there:
            raise TypeError("numpy: a tensor on mps")


def bare(value: Any) -> Any:
    return CPU if is_mps(value) else value


def place(func: Any, result: Any) -> Any:
    """Put a result on the stand-in."""
    if isinstance(result, Tensor):
        if result.dtype == torch.float64:
            raise TypeError(f"{func}: float64 on mps")
        if type(result) is Tensor:
            result.__class__ = OnMps
    return result

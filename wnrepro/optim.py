"""The authors' Adam and Adamax, which differ from torch's, and the Polyak average of parameters."""

import abc
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wnrepro.device import float64_device

Tensors: TypeAlias = list[Tensor]


class MomentOptimizer(torch.optim.Optimizer, abc.ABC):
    """An optimizer that keeps two moments of each parameter."""

    moments: tuple[str, str]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {name: torch.zeros_like(p) for name in self.moments}
            first, second = ([self.state[p][name] for p in params] for name in self.moments)
            self.update(group, params, [p.grad for p in params], first, second)

    @abc.abstractmethod
    def update(self, group: dict[str, Any], params: Tensors, grads: Tensors, first: Tensors, second: Tensors) -> None:
        """Change the group's parameters and moments in place."""


class Adam(MomentOptimizer):
    """Adam with ε inside the root (authors' code): p ← p − lr·m̂/√(v̂ + ε).

    The bias corrections 1 − β1ᵗ and 1 − β2ᵗ always use the current β1 and β2. A group's lr, β1 and step count are
    tensors () on the parameters' device, so that a captured step sees their changes; see `set_rates`.
    """

    moments = ("m", "v")

    def __init__(
        self, params: Iterable[Any], lr: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "step": 0})
        self.rates_to_device()

    def rates_to_device(self) -> None:
        """Make each group's lr, β1 and step count float64 tensors on its parameters' device, if it has float64."""
        for group in self.param_groups:
            device = float64_device(group["params"][0].device)
            for name in ("lr", "beta1", "step"):
                group[name] = torch.as_tensor(group[name], dtype=torch.float64).to(device, copy=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.rates_to_device()

    def set_rates(self, lr: float, beta1: float) -> None:
        """Set lr and β1 for the next steps."""
        for group in self.param_groups:
            group["lr"].fill_(lr)
            group["beta1"].fill_(beta1)

    def update(self, group: dict[str, Any], params: Tensors, grads: Tensors, first: Tensors, second: Tensors) -> None:
        lr, beta1, beta2, step = (group[name] for name in ("lr", "beta1", "beta2", "step"))
        step += 1
        dtype = params[0].dtype
        torch._foreach_mul_(first, beta1.to(dtype))
        torch._foreach_add_(first, torch._foreach_mul(grads, (1 - beta1).to(dtype)))
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        root = torch._foreach_div(second, (1 - beta2**step).to(dtype))
        torch._foreach_add_(root, group["epsilon"])
        torch._foreach_sqrt_(root)
        torch._foreach_mul_(root, ((1 - beta1**step) / lr).to(dtype))
        torch._foreach_addcdiv_(params, first, root, -1)


class Adamax(MomentOptimizer):
    """Adamax without bias correction (authors' code): m ← β1·m + (1−β1)·∇, u ← max(β2·u, |∇| + ε), p ← p − lr·m/u.

    torch's Adamax divides lr by 1 − β1ᵗ.
    """

    moments = ("m", "u")

    def __init__(
        self, params: Iterable[Any], lr: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon})

    def update(self, group: dict[str, Any], params: Tensors, grads: Tensors, first: Tensors, second: Tensors) -> None:
        torch._foreach_lerp_(first, grads, 1 - group["beta1"])
        size = torch._foreach_abs(grads)
        torch._foreach_add_(size, group["epsilon"])
        torch._foreach_mul_(second, group["beta2"])
        torch._foreach_maximum_(second, size)
        torch._foreach_addcdiv_(params, first, second, -group["lr"])


class PolyakAverage(AveragedModel):
    """The exponential moving average of a model's parameters and buffers over about `updates` updates (§5.2).

    It is bias-corrected: at update t the newest parameters have the weight (1 − d)/(1 − dᵗ) with d = 1 − 1/updates, so
    that the first parameters do not dominate. The count t stays on the device, so that no step waits for it. Buffers
    that a module names in `not_averaged` are copied. Buffers outside the state dict, such as masks, are constants.
    """

    def __init__(self, model: nn.Module, updates: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = 1 - 1 / max(updates, 1)
        self.n_averaged: Tensor = self.n_averaged.to(float64_device(next(model.parameters()).device))
        self.copied = [
            f"{prefix}.{buffer}".lstrip(".")
            for prefix, module in model.named_modules()
            for buffer in getattr(module, "not_averaged", ())
        ]
        self.averaged = [name for name in model.state_dict() if name not in self.copied]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the model's current parameters to the average; call it after each update."""
        self.n_averaged += 1
        weight = (1 - self.decay) / (1 - self.decay ** self.n_averaged.double())
        states = [one.state_dict(keep_vars=True) for one in (self.module, model)]
        averages, current = ([state[name] for name in self.averaged] for state in states)
        torch._foreach_mul_(averages, (1 - weight).to(averages[0].dtype))
        torch._foreach_add_(averages, torch._foreach_mul(current, weight.to(averages[0].dtype)))
        for name in self.copied:
            states[0][name].copy_(states[1][name])

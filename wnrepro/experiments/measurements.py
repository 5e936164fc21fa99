"""Measurements of every experiment's model: the init pass (C3), ‖v‖ and g (C14), the identities (C1, C2).

An identity's figure is a relative residual in float64; if the identity holds, it is only rounding error.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from wnrepro.device import kept_generators
from wnrepro.parameterization import Linear, bound_v_norm, data_dependent_init, layers, weight_norm

EXAMPLES, INPUTS, UNITS = 64, 12, 5  # sizes of the layer for the identities
LAYER_COLUMNS = [f"{label}_{statistic}" for label in ("v_norm", "g") for statistic in ("mean", "min", "max")]
LARGE = 1e6  # factor of v for wn ≡ bn, at which the ε of batch normalization is below rounding


@torch.no_grad()
def measured_init(model: nn.Module, x: Tensor, v_norm_max: float | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """Run the data-dependent init on the batch x, and then the same pass again to measure the result.

    Returns the second pass's output and the rows of init.csv: for each layer, the largest |mean| and the smallest and
    largest variance of its units' pre-activations. Both passes use the same random numbers, consumed only once.
    """
    with kept_generators(x.device):
        data_dependent_init(model, x)
    if v_norm_max is not None:
        bound_v_norm(model, v_norm_max)
    rows: list[dict[str, Any]] = []

    def record(name: str, output: Tensor) -> None:
        dims = [d for d in range(output.ndim) if d != 1]
        variance = output.var(dims, correction=0)
        row = {"epoch": 0, "layer": name, "mean_abs_max": output.mean(dims).abs().max().item()}
        rows.append(row | {"variance_min": variance.min().item(), "variance_max": variance.max().item()})

    hooks = [
        layer.register_forward_hook(lambda _layer, _x, output, name=name: record(name, output))
        for name, layer in layers(model)
    ]
    output = model.train()(x)
    for hook in hooks:
        hook.remove()
    return output, rows


@torch.no_grad()
def layer_rows(model: nn.Module, epoch: int) -> list[dict[str, Any]]:
    """Compute the rows of layers.csv: mean, minimum and maximum over units of every layer's ‖v‖ and g.

    It waits once for the device.
    """
    rows, values = [], list[Tensor]()
    for name, layer in layers(model):
        rows.append({"epoch": epoch, "layer": name})
        for units in (layer.v_norm(), layer.g):
            values += units.mean(), units.min(), units.max()
    numbers = iter(torch.stack(values).tolist() if values else ())
    for row in rows:
        row |= {column: next(numbers) for column in LAYER_COLUMNS}
    return rows


@torch.no_grad()
def first_non_finite(model: nn.Module, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]]) -> str:
    """Name the first parameter, buffer, gradient moment, ‖v‖ or g that is not finite; return "" if all are finite.

    rows: `layer_rows` of the model. The loss does not always show this: a unit whose ‖v‖ overflows has the weight 0,
    and Adam no longer changes a parameter whose squared gradient has overflowed. It waits once for the device if all
    are finite.
    """
    named = {f"{name} is not finite": [tensor] for name, tensor in model.state_dict().items()}
    for name, p in model.named_parameters():
        named[f"a moment of {name}'s gradient is not finite"] = [*optimizer.state.get(p, {}).values()]
    tensors = [tensor for some in named.values() for tensor in some if tensor.numel()]
    inexact = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    if not get_total_norm(inexact, math.inf).isfinite():
        for sentence, some in named.items():
            if not all(tensor.isfinite().all() for tensor in some):
                return sentence
    for row in rows:
        if not all(map(math.isfinite, list(row.values())[2:])):
            return f"‖v‖ or g of {row['layer']} is not finite"
    return ""


# ------------------------------------------------------------------------------- identities


def residual(a: Tensor, b: Tensor) -> float:
    """Compute max|a − b| / max|b|."""
    return float((a - b).abs().max() / b.abs().max())


def eq3_gradients(
    v: Float[Tensor, "C k"], g: Float[Tensor, " C"], grad_w: Float[Tensor, "C k"]
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C k"]]:
    """Compute ∇_g L and ∇_v L in closed form (eq. 3) from ∇_w L."""
    norm = v.norm(dim=1)
    grad_g = (grad_w * v).sum(1) / norm
    grad_v = (g / norm)[:, None] * grad_w - (g * grad_g / norm**2)[:, None] * v
    return grad_g, grad_v


@torch.enable_grad()
def identity_residuals(seed: int = 0) -> dict[str, float]:
    """Compute the residuals of eq. 3, v·∇_v L = 0, eq. 7, and wn ≡ bn for one layer on whitened input (§2.2)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    v, g, x, target = normal(UNITS, INPUTS), normal(UNITS), normal(EXAMPLES, INPUTS), normal(EXAMPLES, UNITS)

    v.requires_grad_(), g.requires_grad_()
    w = weight_norm(v, g)
    w.retain_grad()
    (torch.tanh(x @ w.T) - target).square().sum().backward()
    assert v.grad is not None and g.grad is not None and w.grad is not None
    grad_g, grad_v = eq3_gradients(v.detach(), g.detach(), w.grad)
    along_v = (v.grad * v.detach()).sum(1) / (v.grad.norm(dim=1) * v.detach().norm(dim=1))

    with torch.random.fork_rng(devices=[]):
        centred, by_bn, by_wn = (Linear(INPUTS, UNITS, param).double() for param in ("wn+mobn", "bn", "wn"))
    with torch.no_grad():
        centred.v.copy_(normal(UNITS, INPUTS))
    sums: list[Tensor] = []
    hook = centred.t.register_forward_hook(lambda _module, _inputs, t: sums.append(t))
    y = centred(x)
    hook.remove()
    grad_t, grad_y = torch.autograd.grad((torch.tanh(y) - target).square().sum(), [sums[0], y])

    # §2.2: if a layer's input is whitened over the batch, σ[v·x] equals ‖v‖.
    white, _ = torch.linalg.qr(x - x.mean(0))
    white = white * EXAMPLES**0.5
    with torch.no_grad():
        for layer in (by_bn, by_wn):
            layer.v.copy_(LARGE * v)
            layer.set_g(g)
    return {
        "eq3_residual": max(residual(g.grad, grad_g), residual(v.grad, grad_v)),
        "v_dot_grad_v": float(along_v.abs().max()),
        "eq7_residual": residual(grad_t, grad_y - grad_y.mean(0)),
        "wn_is_bn_residual": residual(by_wn(white).detach(), by_bn(white).detach()),
    }

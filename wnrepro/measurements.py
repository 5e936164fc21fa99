"""What the experiments log of their parameterized layers: what the init pass achieved (C3), ‖v‖ and g (C14).

And whether training has left the finite numbers.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wnrepro.parameterization import bound_v_norm, data_dependent_init, layers


@torch.no_grad()
def measured_init(model: nn.Module, x: Tensor, v_norm_max: float | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """The data-dependent init on the batch x; then the same pass again, to measure what it achieved.

    Returns the second pass's output and the rows of init.csv: by layer the largest |mean| and the smallest and
    largest variance of its units' pre-activations. The second pass sees the same random numbers as the first, and
    leaves the generators where one pass does.
    """
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        data_dependent_init(model, x)
    if v_norm_max is not None:
        bound_v_norm(model, v_norm_max)
    rows: list[dict[str, Any]] = []

    def record(name: str, output: Tensor) -> None:
        dims = [d for d in range(output.ndim) if d != 1]
        variance = output.var(dims, correction=0)
        rows.append(
            {
                "epoch": 0,
                "layer": name,
                "mean_abs_max": output.mean(dims).abs().max().item(),
                "variance_min": variance.min().item(),
                "variance_max": variance.max().item(),
            }
        )

    hooks = [
        layer.register_forward_hook(lambda _layer, _x, output, name=name: record(name, output))
        for name, layer in layers(model)
    ]
    model.train()
    output = model(x)
    for hook in hooks:
        hook.remove()
    return output, rows


def layer_rows(model: nn.Module, epoch: int) -> list[dict[str, Any]]:
    """The rows of layers.csv: ‖v‖ and g of every layer, as mean, smallest and largest over its units."""
    rows = []
    for name, layer in layers(model):
        row: dict[str, Any] = {"epoch": epoch, "layer": name}
        for label, values in (("v_norm", layer.v_norm().detach()), ("g", layer.g.detach())):
            row |= {
                f"{label}_mean": values.mean().item(),
                f"{label}_min": values.min().item(),
                f"{label}_max": values.max().item(),
            }
        rows.append(row)
    return rows


def overflow(model: nn.Module, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]]) -> str:
    """The first parameter, buffer, moment of a gradient, ‖v‖ or g that is not finite, in words; empty: all are.

    rows: `layer_rows` of the model as it is. A loss need not tell: a unit whose ‖v‖ overflows has the weight 0, and
    Adam moves no parameter any more of which a gradient's square has overflowed.
    """

    def values() -> Iterator[tuple[str, bool]]:
        for name, tensor in model.state_dict().items():
            yield name, bool(tensor.isfinite().all())
        for name, p in model.named_parameters():
            for moment in optimizer.state.get(p, {}).values():
                yield f"a moment of {name}'s gradient", bool(moment.isfinite().all())
        for row in rows:
            yield f"‖v‖ or g of {row['layer']}", all(map(math.isfinite, list(row.values())[2:]))

    return next((f"{name} is not finite" for name, finite in values() if not finite), "")

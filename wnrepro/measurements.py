"""What the experiments log of their parameterized layers: what the init pass achieved (C3), ‖v‖ and g (C14)."""

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

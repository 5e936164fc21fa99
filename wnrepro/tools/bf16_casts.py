"""Counts what a training step in bf16 does at the paper's settings on the CPU: casts, changes of layout, bytes.

    python -m wnrepro.tools.bf16_casts draw wn

The step is not compiled. Prints the explicit casts, the operations on tensors of both precisions, which cast inside,
the copies that only change the layout, and the operations that move the most bytes. Prints too the share of the
convolutions' multiplications that have under 32 input or 16 output maps, which do not fill a tile of AMX.
"""

import math
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wnrepro.bench.counting import Traffic
from wnrepro.bench.ours import CHANGES, our_training
from wnrepro.settings import scale_settings

CASTS, MIXED, LAYOUTS = "casts", "operations on both precisions", "changes of layout"
FURTHER: dict[str, dict[str, Any]] = {"cvae": {"dataset": "mnist"}, "draw": {"epochs": 1}, "cifar": {"epochs": 1}}
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
TILE = 32, 16  # input and output maps
SHOWN = 20


class Census(Traffic):
    """A counter of operations and bytes by kind: CASTS, MIXED, LAYOUTS, and by name and types.

    multiplied: of forward convolutions, by whether they fill a tile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.moved, self.multiplied = Counter[str](), Counter[str](), Counter[bool]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernels, moved = self.kernels, self.bytes
        results = super().__torch_dispatch__(func, types, args, kwargs)
        if self.kernels == kernels:
            return results
        name = func._schema.name.removeprefix("aten::")
        inputs, outputs = tensors((args, kwargs)), tensors(args[0] if results is None else results)
        kinds = [f"{name}: {dtypes(inputs)} to {dtypes(outputs)}"]
        if name in ("_to_copy", "copy_", "clone"):
            kinds += [CASTS] if inputs[-1].dtype != outputs[0].dtype else [LAYOUTS]
        elif len({x.dtype for x in inputs if x.is_floating_point() and x.ndim}) > 1:
            kinds += [MIXED]
        for kind in kinds:
            self.counts[kind] += 1
            self.moved[kind] += self.bytes - moved
        if name == "convolution":
            w, transposed = inputs[1], args[6]
            maps = w.shape[:2] if transposed else (w.shape[1], w.shape[0])
            size = inputs[0] if transposed else outputs[0]
            fills = all(count >= least for count, least in zip(maps, TILE, strict=True))
            self.multiplied[fills] += math.prod(w.shape) * len(size) * math.prod(size.shape[2:])
        return results


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def dtypes(values: list[Tensor]) -> str:
    return "+".join(sorted({SHORT.get(x.dtype, str(x.dtype).removeprefix("torch.")) for x in values}))


def main(experiment: str, param: str) -> None:
    changes = CHANGES.get(experiment, {}) | FURTHER.get(experiment, {}) | {"precision": "bf16"}
    _, step = our_training(scale_settings(experiment, "paper", param, **changes), torch.device("cpu"))
    step()  # the first one also makes the optimizer's state
    with Census() as census:
        step()
    print(f"{experiment} {param}: {census.kernels} operations, {census.bytes / 1e6:.1f} MB")
    for kind in (CASTS, MIXED, LAYOUTS):
        print(f"  {kind}: {census.counts[kind]}, {census.moved.pop(kind, 0) / 1e6:.1f} MB")
    if total := sum(census.multiplied.values()):
        print(f"  multiplications in convolutions that do not fill a tile: {census.multiplied[False] / total:.1%}")
    for kind, moved in census.moved.most_common(SHOWN):
        print(f"  {moved / 1e6:8.1f} MB {census.counts[kind]:5} {kind}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

"""The floating-point operations, bytes and kernels of a training step, and the device's limits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from wnrepro.settings import Settings

Step = Callable[[], object]
WHOLE = "end to end"
PRODUCT, COPY = "product", "copy"
PRODUCT_SIZE = {"cpu": 2048, "mps": 4096, "cuda": 8192}  # rows and columns
COPIED_BYTES = 2**29  # larger than the caches


@dataclass
class Steps:
    """The steps of a contender to time: the training step, WHOLE, and parts of it.

    counted: the update whose FLOPs and bytes are counted; updates: the number of updates in one timing.
    """

    timed: dict[str, Step]
    counted: Step | None = None
    updates: int = 1


def repeat(step: Step, times: int) -> Step:
    """Return a step that calls `step` several times and returns the last result."""
    return lambda: [step() for _ in range(times)][-1]


def ceilings(settings: Settings, device: torch.device) -> Steps:
    """Return the steps that measure the device's limits: a large matrix product in the settings' precision, a copy."""
    size = PRODUCT_SIZE[device.type]
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    product, source = torch.empty_like(a), torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return Steps({PRODUCT: lambda: torch.mm(a, b, out=product), COPY: lambda: target.copy_(source)})


def count_work(step: Step) -> dict[str, int]:
    """Count the FLOPs of a step's matrix products and convolutions, and the bytes and number of its operations."""
    in_place = {torch.ops.aten.addmm_: lambda _sum, a, b, **_: 2 * math.prod(a) * b[1]}  # missing in torch's table
    with FlopCounterMode(display=False, custom_mapping=in_place) as flops, Traffic() as traffic:
        step()
    return {"flops": flops.get_total_flops(), "bytes": traffic.bytes, "kernels": traffic.kernels}


class Traffic(TorchDispatchMode):
    """A counter of torch's operations, `kernels`, and of the `bytes` that they read and write.

    An operation reads its inputs and writes its results. A tensor changed in place counts as read and written; an
    overwritten one only as written. A view moves nothing, and a broadcast dimension counts once. An operation that
    picks rows reads only these rows. The count ignores caches and kernels that read their inputs twice. Views and
    empty tensors are not kernels. A GPU may run an operation as several kernels, for example a convolution's gradient.
    """

    OVERWRITE = ("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_")
    PICK = ("index", "index_select", "gather")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        results, name = func(*args, **given), func._schema.name.removeprefix("aten::")
        if func.is_view or name == "_unsafe_view" or name.startswith(("empty", "new_empty")):
            return results
        self.kernels += 1
        given.pop("out", None)
        shape_alone = name.endswith("_like") or name.startswith("new_")
        read = tree_leaves((args[shape_alone or name in self.OVERWRITE + self.PICK :], given))
        written = tree_leaves(args[0] if results is None else results)
        self.bytes += sum(map(nbytes, read + written * (2 if name in self.PICK else 1)))
        return results


def nbytes(value: object) -> int:
    """Return the bytes of a tensor, where a broadcast dimension counts once. Return 0 for other objects."""
    if not isinstance(value, Tensor):
        return 0
    sizes = (size for size, stride in zip(value.shape, value.stride(), strict=True) if stride)
    return math.prod(sizes) * value.itemsize

"""Counts the kernels and bytes of a training step at the paper's settings on the CPU, as `bench` times it.

    python -m wnrepro.tools.kernels cvae normal,bn,wn,wn+mobn [mnist]

Prints each parameterization's counts, plain and compiled, and the processor time and gradients' error of compiling.
Kernels are torch's operations without views and, if compiled, the kernels that torch.compile generates for a CPU. A
generated kernel reads and writes each of its tensors once.
"""

import re
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor.async_compile import AsyncCompile

from wnrepro.bench.counting import Traffic, nbytes
from wnrepro.bench.ours import our_training
from wnrepro.compiling import compiled
from wnrepro.settings import SETTINGS, scale_settings

COMPILED = {"cifar": "layers", "cvae": "terms", "draw": "time_step"}  # the network's methods
ARGUMENT = re.compile(r"\b(in_out|in|out)_ptr\d+\b")


class CompiledTraffic(Traffic):
    """A counter that includes generated kernels, if they are loaded by `counting`."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


counters: list[CompiledTraffic] = []
load = AsyncCompile.cpp_pybinding


def counting(compiler: Any, argtypes: list[str], source: str) -> Callable[..., Any]:
    """Load a generated kernel, and return it as a function that adds its calls to all `counters`."""
    kernel = load(compiler, argtypes, source)
    names = ARGUMENT.findall(source[: source.index("{", source.index("kernel("))])
    times = [2 if name == "in_out" else 1 for name in names]

    def call(*inputs: Any) -> Any:
        for counter in counters:
            counter.kernels += 1
            counter.bytes += sum(n * nbytes(x) for n, x in zip(times, inputs, strict=False))  # then sizes follow
        return kernel(*inputs)

    return call


def count(step: Callable[[], object]) -> str:
    """Count a step."""
    counter = CompiledTraffic()
    counters.append(counter)
    try:
        with counter:
            step()
    finally:
        counters.remove(counter)
    return f"{counter.kernels} kernels, {counter.bytes / 1e6:.1f} MB"


def main(experiment: str, params: list[str], part: str | None) -> None:
    changes = {str(SETTINGS[experiment].part): part} if part else {}
    torch._inductor.config.compile_threads = 1  # a kernel is loaded before `load` returns
    with patch.object(AsyncCompile, "cpp_pybinding", counting):
        for param in params:
            settings = scale_settings(experiment, "paper", param, **changes, epochs=1)
            trained, step = our_training(settings, torch.device("cpu"))
            print(f"{experiment} {param}, plain: {count(step)}", flush=True)
            began = time.process_time()
            made = compiled(getattr(trained.net, COMPILED[experiment]), trained.gradients, settings.precision)
            seconds = time.process_time() - began
            print(f"    compiling: {seconds:.0f} s, error of the gradients {made.error}, {made.refused}", flush=True)
            trained.compilation = made
            if experiment == "draw":
                trained.net.compiled = made.function
            step()  # compiles what the network's training mode needs
            print(f"    compiled: {count(step)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2].split(","), sys.argv[3] if len(sys.argv) == 4 else None)

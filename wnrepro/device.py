"""The compute device: which one, its precision, memory, cores and random generators."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from wnrepro.errors import UserError

CONVOLUTIONS_TRIED = 4  # of each kind: the fastest ones by cuDNN's own estimate


def choose_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`. Raises UserError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: no such device; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch sees no GPU here; `wnrepro doctor` says why, or use cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise UserError(f"--device {name}: there is no such GPU; give one of cuda:0 to cuda:{last}")
    return device


def set_precision(precision: str, device: torch.device) -> None:
    """Allow tf32 in matrix products on a GPU, or not, and select the GPU. Raises UserError for tf32 on a CPU.

    bf16 is up to the experiments: see `autocast`.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32: only a GPU has it; give fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # streams and graphs belong to the current one
    if device.type == "cuda":  # shapes recur: let cuDNN try its convolutions out; another process may choose others
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, CONVOLUTIONS_TRIED


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: matrix products in bf16 if `precision` is bf16."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def random_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within the block and restore them after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def keep_memory() -> None:
    """Keep freed memory in this process, instead of returning it to the system and asking for it at every step.

    glibc maps every tensor over 32 MiB afresh and unmaps it when freed, so that each step touches its pages for the
    first time; docs/log.md gives the cost. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: map no single blocks
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: return none


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that the system could still give (Linux), or None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None

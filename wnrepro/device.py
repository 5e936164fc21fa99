"""The compute device: its selection, precision, memory and random generators."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import torch

from wnrepro.errors import UserError
from wnrepro.machine import check_device_name, check_precision

CONVOLUTIONS_TRIED = 4  # algorithms that cuDNN tries for each convolution, the best by its estimate


def choose_device(name: str) -> torch.device:
    """Return the device named `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises UserError if it does not exist.

    `auto` is never Apple's GPU, on which nothing was tried.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device_name(name)
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Apple GPU; use auto or cpu")
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch finds no GPU; use cpu, or see `wnrepro doctor`")
        if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise UserError(f"--device {name}: there is no such GPU; use cuda:0 to cuda:{last}")
    return torch.device(name)


def set_precision(precision: str, device: torch.device) -> None:
    """Allow or forbid tf32 in matrix products, and select the GPU. Raises UserError if the device lacks the precision.

    The experiments use bf16 through `autocast`.
    """
    check_precision(precision, device.type)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # streams and graphs belong to the current GPU
    if device.type == "cuda":  # shapes recur, so let cuDNN measure its algorithms; processes may choose differently
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, CONVOLUTIONS_TRIED


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a forward pass, with matrix products in bf16 if `precision` is bf16."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def float64_device(device: torch.device) -> torch.device:
    """Return where to compute this device's float64 values: Apple's GPU has none, so on the CPU for it."""
    return torch.device("cpu") if device.type == "mps" else device


def image_format(device: torch.device) -> torch.memory_format:
    """Return the memory format of images and weights: channels_last, the fastest, but for Apple's GPU.

    There the gradient of batch normalization is wrong in channels_last (pytorch issue 175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


@contextlib.contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators after the block."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        yield


@contextlib.contextmanager
def random_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within the block and restore them after it."""
    with kept_generators(device):
        torch.manual_seed(seed)
        yield


def keep_memory() -> None:
    """Keep freed memory in this process instead of returning it to the system.

    By default glibc maps every tensor over 32 MiB newly and unmaps it when it is freed, which causes page faults at
    each step; docs/log/optimizations.md gives the cost. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: map no blocks separately
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: return none

"""This machine without torch: its devices by name, processors and memory."""

import contextlib
import glob
import os
import platform
import re
from pathlib import Path

from wnrepro.errors import UserError
from wnrepro.text import count, printable

CPUINFO = Path("/proc/cpuinfo")  # Linux only
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # of x86 processors with instructions for bf16
GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")  # one exists if Linux or WSL has a GPU


def check_device_name(name: str) -> None:
    """Raise UserError unless this is `auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:(0|[1-9]\d{0,3}))?", name, re.ASCII):
        raise UserError(f"--device {printable(name, 60)}: unknown; use auto, cpu, cuda, cuda:N or mps")


def may_be_gpu(device: str) -> bool:
    """Test whether the device of this name may be a GPU; only torch knows whether it can use it.

    Raises UserError for a wrong name, and for a GPU that this machine does not have.
    """
    check_device_name(device)
    if device == "mps" and platform.system() != "Darwin":
        raise UserError("--device mps: exists only on a Mac; use auto or cpu")
    there = any(map(glob.glob, GPU_FILES))
    if device.startswith("cuda") and not there:
        raise UserError(f"--device {device}: this machine has no GPU; use cpu, or see `wnrepro doctor`")
    return device == "mps" or (device != "cpu" and there)


def check_precision(precision: str, device: str) -> None:
    """Raise UserError if the device lacks the precision: only CUDA has tf32, and Apple's GPU only fp32."""
    if precision != "fp32" and device == "mps":
        raise UserError(f"--precision {precision}: mps has only fp32; use fp32")
    if precision == "tf32" and not device.startswith("cuda"):
        raise UserError("--precision tf32: needs an NVIDIA GPU; use fp32 or bf16")


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Return the name of this machine's processor."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = CPUINFO.read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return name


def processor(threads: int) -> str:
    """Return the processor's name and a number of threads: a CPU's name in run.json and in estimates."""
    return f"{processor_name()}, {count(threads, 'thread')}"


def has_bf16() -> bool:
    """Test whether this machine's processor has instructions for bf16, as far as is known: on Linux."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not BF16_FLAGS.isdisjoint(flags)


def available_memory() -> int | None:
    """Return the bytes of memory that are available (Linux), or None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None

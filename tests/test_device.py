"""The compute device and its precision; memory that is kept."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from wnrepro.device import autocast, choose_device, set_precision
from wnrepro.errors import UserError


@pytest.fixture(autouse=True)
def _restore_tf32() -> Iterator[None]:
    flags: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [flag.allow_tf32 for flag in flags]
    yield
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [(0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda"), (2, "cuda:1", "cuda:1"), (2, "cpu", "cpu")],
)
def test_devices_that_are_there(gpus: int, name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, gpus)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "name"),
    [
        *((0, name) for name in ("cuda", "cuda:0", "cuda:3")),
        *((2, name) for name in ("cuda:2", "gpu", "", "cuda:", "cuda:-1", "cuda:x", "meta", "mps", "CPU", "0")),
    ],
)
def test_other_devices_are_refused(gpus: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, gpus)
    with pytest.raises(UserError, match=f"--device {name}: "):
        choose_device(name)


def test_tf32_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match="--precision tf32"):
        set_precision("tf32", torch.device("cpu"))


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_precision_switches_tf32(precision: str, allowed: bool) -> None:
    """Of matrix products and of cuDNN's convolutions, whose own default is on."""
    for before in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
        set_precision(precision, torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast(precision: str, dtype: torch.dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(precision, torch.device("cpu")):
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


PAGE_FAULTS = """
import resource, torch
from wnrepro.device import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(2**24).fill_(0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
keep_memory()
for _ in range(4):
    faults()
print(given_back, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is for glibc's allocator")
def test_kept_memory_is_not_mapped_again() -> None:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100
    assert kept < given_back / 10

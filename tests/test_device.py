"""The compute device and its precision; memory that is kept."""

import functools
import platform
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from wnrepro.device import choose_device, set_precision
from wnrepro.errors import UserError


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        *((0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda"), (2, "cuda:1", "cuda:1"), (2, "cpu", "cpu")),
        *((0, name, None) for name in ("cuda", "cuda:3")),
        *((2, name, None) for name in ("cuda:2", "gpu", "", "cuda:", "cuda:-1", "cuda:x", "meta", "mps", "CPU", "0")),
    ],
)
def test_device_is_one_that_is_there(
    gpus: int, name: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    refused: AbstractContextManager[object] = pytest.raises(UserError, match=f"--device {name}: ")
    with nullcontext() if expected else refused:
        assert choose_device(name) == torch.device(expected or "meta")


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_precision_switches_tf32(precision: str, allowed: bool, request: pytest.FixtureRequest) -> None:
    """Of matrix products and of cuDNN's convolutions, whose own default is on. A CPU has none."""
    flags: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    for flag in flags:
        request.addfinalizer(functools.partial(setattr, flag, "allow_tf32", flag.allow_tf32))
    for before in (True, False):
        for flag in flags:
            flag.allow_tf32 = before
        set_precision(precision, torch.device("cuda"))
        assert [flag.allow_tf32 for flag in flags] == [allowed, allowed]
    refused: AbstractContextManager[object] = pytest.raises(UserError, match="--precision tf32")
    with refused if allowed else nullcontext():
        set_precision(precision, torch.device("cpu"))


PAGE_FAULTS = """
import resource, torch
from wnrepro.device import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(2**24).fill_(0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults(), faults(), keep_memory(), *(faults() for _ in range(5))]
print(found[1], found[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is for glibc's allocator")
def test_kept_memory_is_not_mapped_again() -> None:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100
    assert kept < given_back / 10

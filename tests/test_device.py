"""The compute device and its precision; memory that is kept."""

import functools
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from factories import tiny_run
from mps_factories import MPS, AppleGpu

from wnrepro.device import choose_device, set_precision
from wnrepro.doctor import gpu
from wnrepro.errors import UserError
from wnrepro.events import Epoch
from wnrepro.experiments import cifar, cvae, dqn, loop, vae


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        *((0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda"), (2, "cuda:1", "cuda:1"), (2, "cpu", "cpu")),
        *((0, name, None) for name in ("cuda", "cuda:3")),
        *((2, name, None) for name in ("cuda:2", "gpu", "", "cuda:", "cuda:-1", "cuda:x", "meta", "CPU", "0")),
        *((2, name, None) for name in ("mps", "mps:0", "mps:1", "MPS")),
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


def test_apple_gpu_is_used_only_if_asked_for_and_for_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_device(name).type for name in ("auto", "mps")] == ["cpu", "mps"]
    set_precision("fp32", MPS)
    for precision in ("tf32", "bf16"):
        with pytest.raises(UserError, match=f"--precision {precision}"):
            set_precision(precision, MPS)
    assert gpu().state == "note"


@pytest.fixture
def apple_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in for Apple's GPU; the calls that read and set its generator."""
    calls: list[str] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda _: calls.append("get") or torch.zeros(1))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda _, __: calls.append("set"))
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with AppleGpu():
        yield calls
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize(
    ("model", "param"),
    [
        ("draw", "wn+mobn"),
        *(
            pytest.param(model, param, marks=pytest.mark.slow)
            for model, param in [("cifar", "bn"), ("cvae mnist", "wn"), ("cvae cifar10", "wn+mobn"), ("dqn", "bn")]
        ),
    ],
)
def test_apple_gpu_trains_without_float64(
    model: str, param: str, apple_gpu: list[str], unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each experiment has a CPU's numbers, but for rounding, on tensors that are all on one device.

    The CPU's images have the same memory format, in whose order noise and dropout are drawn.
    """
    for module in (cifar, cvae, dqn, loop, vae):
        monkeypatch.setattr(module, "image_format", lambda _: torch.contiguous_format)
    found = []
    for device in ("cpu", "mps"):
        made = tiny_run(model, param, device, epochs=2)[2]()
        found.append([event.metrics | {"seconds": 0.0} for event in made.train() if isinstance(event, Epoch)])
        assert {p.device.type for p in made.net.parameters()} == {device}
        assert bool(apple_gpu) == (device == "mps")
    for there, here in zip(found[1], found[0], strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4, nan_ok=True)
    assert apple_gpu.count("get") == apple_gpu.count("set")


def test_stand_in_for_apple_gpu_refuses_what_it_cannot_do(apple_gpu: list[str]) -> None:
    there, here = torch.ones(2, device=MPS), torch.ones(2)
    assert (there + torch.tensor(1.0)).device == MPS and there.cpu().device == torch.device("cpu")
    for refused in (lambda: there + here, lambda: there.numpy(), lambda: there.double()):
        with pytest.raises((RuntimeError, TypeError), match="mps"):
            refused()

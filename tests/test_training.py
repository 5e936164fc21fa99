"""The authors' Adam against a plain reference over 100 steps; the compute device and its precision."""

import io
import math
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wnrepro.errors import UserError
from wnrepro.training import Adam, autocast, choose_device, set_precision


@pytest.fixture(autouse=True)
def tf32_as_it_was() -> Iterator[None]:
    flags = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [flag.allow_tf32 for flag in flags]
    yield
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


# --- Adam -------------------------------------------------------------------------------------------

SHAPES = ((4, 3), (5,), ())


def schedule(step: int) -> tuple[float, float]:
    """lr and β1 of a step counted from 1: constant and 0.9, then falling to 0 and 0.5."""
    return (0.01, 0.9) if step <= 50 else (0.01 * (100 - step) / 50, 0.5)


def plain_adam(
    p: np.ndarray[Any, Any], grads: list[np.ndarray[Any, Any]], epsilon: float = 1e-8
) -> np.ndarray[Any, Any]:
    """The authors' Adam, one line of maths a line."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step, grad in enumerate(grads, start=1):
        lr, beta1 = schedule(step)
        m = beta1 * m + (1 - beta1) * grad
        v = 0.999 * v + (1 - 0.999) * grad**2
        m_hat = m / (1 - beta1**step)
        v_hat = v / (1 - 0.999**step)
        p = p - lr * m_hat / np.sqrt(v_hat + epsilon)
    return p


def start(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype)) for shape in SHAPES]


def gradients(size: float = 1.0, steps: int = 100) -> list[list[Tensor]]:
    """Gradients per step and parameter, about `size` large."""
    draw = torch.Generator().manual_seed(2)
    return [[size * torch.randn(s, generator=draw, dtype=torch.float64) for s in SHAPES] for _ in range(steps)]


def descend(
    params: list[nn.Parameter], optimizer: torch.optim.Optimizer, grads: list[list[Tensor]], first: int = 1
) -> None:
    """Give the optimizer these gradients, from step `first` of the schedule on."""
    for step, now in enumerate(grads, start=first):
        lr, beta1 = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if "betas" in group:
                group["betas"] = (beta1, 0.999)
            else:
                group["beta1"] = beta1
        for p, grad in zip(params, now, strict=True):
            p.grad = grad.to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-6])
def test_adam_against_the_plain_reference(size: float) -> None:
    """100 steps, β1 and lr changing midway, with gradients far above, at and below √ε = 1e-4."""
    params, grads = start(), gradients(size)
    before = [p.detach().clone() for p in params]
    descend(params, Adam(params, lr=0.01), grads)
    for i, (p, p_before) in enumerate(zip(params, before, strict=True)):
        expected = plain_adam(p_before.numpy(), [step[i].numpy() for step in grads])
        moved = np.abs(expected - p_before.numpy()).max()
        assert moved > 1e-4
        assert np.abs(p.detach().numpy() - expected).max() < 1e-12 * moved + 1e-15


def test_the_first_step_in_numbers() -> None:
    """m̂ = grad and v̂ = grad² after one step, so p moves by lr·grad/√(grad² + ε)."""
    for grad in (3.0, -1e-4, 1e-6):
        p = nn.Parameter(torch.zeros((), dtype=torch.float64))
        p.grad = torch.tensor(grad, dtype=torch.float64)
        Adam([p], lr=0.1).step()
        assert p.item() == pytest.approx(-0.1 * grad / math.sqrt(grad**2 + 1e-8), rel=1e-9)


@pytest.mark.parametrize(("size", "same"), [(100.0, True), (1e-6, False)])
def test_adam_is_torch_adam_for_large_gradients_alone(size: float, same: bool) -> None:
    """ε inside the root is about 1e-4 outside it: for tiny gradients the steps are some 100 times smaller."""
    ours, theirs, before = start(), start(), start()
    grads = gradients(size)
    descend(ours, Adam(ours, lr=0.01), grads)
    descend(theirs, torch.optim.Adam(theirs, lr=0.01), grads)
    for p, q, r in zip(ours, theirs, before, strict=True):
        if same:
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
        else:
            assert 50 < ((q - r).norm() / (p - r).norm()).item() < 150


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adam_continues_from_a_file_bit_for_bit(dtype: torch.dtype) -> None:
    grads = gradients()
    whole = start(dtype)
    descend(whole, Adam(whole, lr=0.01), grads)

    first = start(dtype)
    optimizer = Adam(first, lr=0.01)
    descend(first, optimizer, grads[:60])
    file = io.BytesIO()
    torch.save({"params": first, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = [nn.Parameter(torch.empty_like(p)) for p in first]
    with torch.no_grad():
        for p, q in zip(second, loaded["params"], strict=True):
            p.copy_(q)
    optimizer = Adam(second, lr=9.0, beta1=0.1, beta2=0.2, epsilon=1.0)
    optimizer.load_state_dict(loaded["optimizer"])
    assert optimizer.param_groups[0]["step"] == 60
    descend(second, optimizer, grads[60:], first=61)
    for p, q, r in zip(second, whole, first, strict=True):
        assert torch.equal(p, q) and p.dtype == dtype
        assert not torch.equal(p, r)


def test_adam_leaves_parameters_without_a_gradient_alone() -> None:
    params, before = start(), start()
    optimizer = Adam(params, lr=0.01)
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 0
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1
    assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [True, False, True]


def test_adam_groups_and_settings() -> None:
    """Each group with its own settings; the defaults are the authors'."""
    a, b = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = Adam([{"params": [a]}, {"params": [b], "lr": 0.2, "epsilon": 3.0}], lr=0.1)  # type: ignore[list-item]
    assert {k: optimizer.param_groups[0][k] for k in ("lr", "beta1", "beta2", "epsilon")} == {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
    }
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    assert a[0].item() == pytest.approx(-0.1, rel=1e-7)
    assert b[0].item() == pytest.approx(-0.1, rel=1e-9)  # 0.2/√(1 + 3)


def test_adam_takes_a_closure() -> None:
    p = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = Adam([p], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p**2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert p.item() == pytest.approx(1.9, rel=1e-7)


# --- device and precision ---------------------------------------------------------------------------


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 0)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(UserError, match=rf"^--device {name}: torch sees no GPU here; .*cpu$"):
            choose_device(name)


def test_devices_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"^--device cuda:2: there are 2 GPUs, counted from 0$"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "nonsense", "", "cuda:", "cuda:-1", "cuda:x", "meta", "mps", "CPU", "0"])
def test_names_that_are_no_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=rf"^--device {name}: no such device; give auto, cpu, cuda or cuda:N$"):
        choose_device(name)


def test_tf32_is_a_gpus() -> None:
    with pytest.raises(UserError, match=r"^--precision tf32: only a GPU has it; on a CPU use fp32 or bf16$"):
        set_precision("tf32", torch.device("cpu"))


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_precision_switches_tf32(precision: str, allowed: bool) -> None:
    """Both of matrix products and of cuDNN's convolutions, whose own default is on."""
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


FAULTS = """
import resource, torch
from wnrepro.training import keep_memory

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is for glibc's allocator")
def test_kept_memory_is_not_mapped_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100 and kept < given_back / 10

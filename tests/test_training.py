"""The authors' Adam and Adamax against plain references; the Polyak average; the compute device and its precision."""

import io
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wnrepro.compiling import compiled, gradients_of
from wnrepro.cuda_graphs import Captured, graphs_allowed
from wnrepro.device import autocast, choose_device, set_precision
from wnrepro.errors import UserError
from wnrepro.optim import Adam, Adamax, PolyakAverage
from wnrepro.parameterization import Conv2d, data_dependent_init


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
        if isinstance(optimizer, Adam):
            optimizer.set_rates(lr, beta1)
        else:
            optimizer.param_groups[0] |= {"lr": lr, "beta1": beta1, "betas": (beta1, 0.999)}
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


# --- Adamax -----------------------------------------------------------------------------------------


def plain_adamax(
    p: np.ndarray[Any, Any], grads: list[np.ndarray[Any, Any]], epsilon: float = 1e-8
) -> np.ndarray[Any, Any]:
    """The authors' Adamax, one line of maths a line."""
    m, u = np.zeros_like(p), np.zeros_like(p)
    for step, grad in enumerate(grads, start=1):
        lr, beta1 = schedule(step)
        m = beta1 * m + (1 - beta1) * grad
        u = np.maximum(0.999 * u, np.abs(grad) + epsilon)
        p = p - lr * m / u
    return p


@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_adamax_against_the_plain_reference(size: float) -> None:
    """50 steps with gradients far above ε = 1e-8 and about as large; then 50 of a falling lr and β1 = 0.5."""
    params, grads = start(), gradients(size)
    before = [p.detach().clone() for p in params]
    optimizer = Adamax(params, lr=0.01)
    for steps in (50, 100):
        descend(params, optimizer, grads[steps - 50 : steps], first=steps - 49)
        for i, (p, p_before) in enumerate(zip(params, before, strict=True)):
            expected = plain_adamax(p_before.numpy(), [step[i].numpy() for step in grads[:steps]])
            moved = np.abs(expected - p_before.numpy()).max()
            assert moved > 1e-4
            assert np.abs(p.detach().numpy() - expected).max() < 1e-12 * moved + 1e-15


def test_the_first_steps_of_adamax_in_numbers() -> None:
    """Of a constant gradient far above ε the first step is (1 − β1)·lr, the t-th (1 − β1ᵗ)·lr: no bias correction."""
    p = nn.Parameter(torch.zeros((), dtype=torch.float64))
    p.grad = torch.tensor(-3.0, dtype=torch.float64)
    optimizer = Adamax([p], lr=0.1)
    place = 0.0
    for step in range(1, 6):
        optimizer.step()
        place += 0.1 * (1 - 0.9**step)
        assert p.item() == pytest.approx(place, rel=1e-8)


def test_adamax_is_torchs_without_its_bias_correction() -> None:
    ours, theirs, before = start(), start(), start()
    own, torchs = Adamax(ours, lr=0.01), torch.optim.Adamax(theirs, lr=0.01)
    for step, now in enumerate(gradients(steps=50), start=1):
        for p, q, grad in zip(ours, theirs, now, strict=True):
            p.grad, q.grad = grad.clone(), grad.clone()
        own.step()
        torchs.param_groups[0]["lr"] = 0.01 * (1 - 0.9**step)
        torchs.step()
    for p, q, r in zip(ours, theirs, before, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert (p - r).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adamax_continues_from_a_file_bit_for_bit(dtype: torch.dtype) -> None:
    grads = gradients()
    whole = start(dtype)
    descend(whole, Adamax(whole, lr=0.01), grads)

    first = start(dtype)
    optimizer = Adamax(first, lr=0.01)
    descend(first, optimizer, grads[:60])
    file = io.BytesIO()
    torch.save({"params": first, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = [nn.Parameter(p.detach().clone()) for p in loaded["params"]]
    optimizer = Adamax(second, lr=9.0, beta1=0.1, beta2=0.2, epsilon=1.0)
    optimizer.load_state_dict(loaded["optimizer"])
    descend(second, optimizer, grads[60:], first=61)
    for p, q, r in zip(second, whole, first, strict=True):
        assert torch.equal(p, q) and p.dtype == dtype
        assert not torch.equal(p, r)


def test_adamax_leaves_parameters_without_a_gradient_alone() -> None:
    params, before = start(), start()
    optimizer = Adamax(params, lr=0.01)
    optimizer.step()
    assert not optimizer.state
    params[1].grad = torch.ones_like(params[1])
    params[2].grad = torch.zeros_like(params[2])  # a gradient of 0 is one: 0/ε, and not 0/0
    optimizer.step()
    assert set(optimizer.state) == {params[1], params[2]}
    assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [True, False, True]


def test_adamax_groups_and_settings() -> None:
    """Each group with its own settings; the defaults are the authors'."""
    a, b = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = Adamax([{"params": [a]}, {"params": [b], "lr": 0.2, "epsilon": 3.0}], lr=0.1)  # type: ignore[list-item]
    settings = {k: optimizer.param_groups[0][k] for k in ("lr", "beta1", "beta2", "epsilon")}
    assert settings == {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    assert a[0].item() == pytest.approx(-0.1 * 0.1, rel=1e-7)
    assert b[0].item() == pytest.approx(-0.2 * 0.1 / 4, rel=1e-9)


# --- Polyak average ---------------------------------------------------------------------------------


class Walk(nn.Module):
    """A parameter and a buffer of two shapes that go where `step` says."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((4, 3), 1e6, dtype=torch.float64))
        self.register_buffer("running", torch.full((5,), -1e6, dtype=torch.float64))

    @torch.no_grad()
    def step(self, draw: torch.Generator) -> list[np.ndarray[Any, Any]]:
        for value in self.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=draw, dtype=torch.float64))
        return [value.numpy().copy() for value in self.state_dict().values()]


def averages(average: nn.Module) -> list[np.ndarray[Any, Any]]:
    return [value.numpy() for name, value in average.state_dict().items() if name != "n_averaged"]


def closed_form(history: list[list[np.ndarray[Any, Any]]], decay: float) -> list[np.ndarray[Any, Any]]:
    """Σᵢ dᵗ⁻ⁱ·(1 − d)·wᵢ / (1 − dᵗ) of the w₁ … wₜ."""
    t = len(history)
    weights = [decay ** (t - i) * (1 - decay) / (1 - decay**t) for i in range(1, t + 1)]
    assert sum(weights) == pytest.approx(1)
    return [sum(weight * w for weight, w in zip(weights, kind, strict=True)) for kind in zip(*history, strict=True)]


@pytest.mark.parametrize("updates", [1, 2, 7.5, 30, 6000])
def test_the_polyak_average_is_its_closed_form(updates: float) -> None:
    """At each of 60 updates, of parameters and buffers; what the model was before the first has no influence."""
    model, draw = Walk(), torch.Generator().manual_seed(3)
    average = PolyakAverage(model, updates)
    history = []
    for t in range(1, 61):
        history.append(model.step(draw))
        average.update_parameters(model)
        for found, expected in zip(averages(average), closed_form(history, 1 - 1 / updates), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
            if t == 1:
                assert (np.abs(found) < 10).all() and np.array_equal(found, expected)


def test_the_first_average_is_the_first_weights() -> None:
    for updates in (0.1, 1, 1000):
        model = Walk()
        average = PolyakAverage(model, updates)
        (w, running) = model.step(torch.Generator().manual_seed(4))
        average.update_parameters(model)
        assert np.array_equal(average.module.w.detach(), w) and np.array_equal(average.module.running, running)


def test_the_polyak_average_of_a_long_run_forgets() -> None:
    """Weights that change once, u updates before the end, have left e⁻¹ of the old ones in an average over u."""
    model, updates = Walk(), 50
    average = PolyakAverage(model, updates)
    for t in range(1000):
        with torch.no_grad():
            model.w.fill_(1.0 if t < 1000 - updates else 0.0)
        average.update_parameters(model)
    assert average.module.w[0, 0].item() == pytest.approx((1 - 1 / updates) ** updates, rel=1e-6)


def test_running_statistics_are_averaged_and_the_mask_stays() -> None:
    """A bn layer's running mean and variance, in float32 and channels_last; the model itself is left as it is."""
    torch.manual_seed(0)
    mask = torch.ones(4, 3, 3, 3)
    mask[:, :, 2] = 0
    layer: Any = Conv2d(3, 4, 3, "bn", mask=mask).to(memory_format=torch.channels_last)
    average = PolyakAverage(layer, 3)
    data_dependent_init(layer, torch.randn(8, 3, 6, 6))
    history = []
    for t in range(6):
        layer(torch.randn(8, 3, 6, 6) * (t + 1) + t)
        average.update_parameters(layer)
        history.append([value.numpy().copy() for value in layer.state_dict().values()])
    assert {"running_mean", "running_var", "v", "b", "gain"} == set(layer.state_dict())
    names = [name.removeprefix("module.") for name in average.state_dict() if name != "n_averaged"]
    for name, found, expected, last in zip(
        names, averages(average), closed_form(history, 2 / 3), history[-1], strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert name not in ("running_mean", "running_var") or not np.allclose(found, last, rtol=0.01)
    assert torch.equal(average.module.mask, mask)
    assert all(
        np.array_equal(value, last) for value, last in zip(layer.state_dict().values(), history[-1], strict=True)
    )


def test_the_polyak_average_continues_from_a_file_bit_for_bit() -> None:
    def averaged(model: Walk, average: Any, draw: torch.Generator, count: int) -> list[np.ndarray[Any, Any]]:
        for _ in range(count):
            model.step(draw)
            average.update_parameters(model)
        return averages(average)

    model, draw = Walk(), torch.Generator().manual_seed(5)
    whole = averaged(model, PolyakAverage(model, 8), draw, 30)

    draw.manual_seed(5)
    first = PolyakAverage(model, 8)
    averaged(model, first, draw, 13)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = PolyakAverage(Walk(), 8)
    second.load_state_dict(torch.load(file, weights_only=True))
    for found, expected in zip(averaged(model, second, draw, 17), whole, strict=True):
        assert np.array_equal(found, expected)


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
    with pytest.raises(UserError, match=r"^--device cuda:2: there is no such GPU; give one of cuda:0 to cuda:1$"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "nonsense", "", "cuda:", "cuda:-1", "cuda:x", "meta", "mps", "CPU", "0"])
def test_names_that_are_no_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=rf"^--device {name}: no such device; give auto, cpu, cuda or cuda:N$"):
        choose_device(name)


def test_tf32_is_a_gpus() -> None:
    with pytest.raises(UserError, match=r"^--precision tf32: only a GPU has it; give fp32 or bf16$"):
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


COMPILE = """
import torch
from wnrepro.compiling import compiled
x = torch.arange(3.0, requires_grad=True)
outcome = compiled(torch.cos, lambda f, _: list(torch.autograd.grad((f or torch.cos)(x).sum(), x)), "fp32")
print(outcome.facts, outcome.function is None, len(outcome.notes))
"""


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path) -> None:
    for compiler, expected in (
        ("no-such-compiler", r"{'compiled': False, 'not_compiled': .it fails \(.*\).} True 1\n"),
        ("", r"{'compiled': True} False 0\n"),
    ):
        there = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} | ({"CXX": compiler} if compiler else {})
        run = subprocess.run([sys.executable, "-c", COMPILE], env=os.environ | there, capture_output=True, text=True)
        assert re.fullmatch(expected, run.stdout), run.stdout + run.stderr


@pytest.mark.parametrize(
    ("precision", "off", "refused"), [("fp32", 0.01, True), ("bf16", 0.1, False), ("bf16", 1.0, True)]
)
def test_a_function_is_not_compiled_where_its_gradients_differ(
    monkeypatch: pytest.MonkeyPatch, precision: str, off: float, refused: bool
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: "faster")
    plain = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    outcome = compiled(torch.cos, lambda f, _: [plain[0] * (1 + off), plain[1]] if f else plain, precision)
    assert outcome.function == (None if refused else "faster")
    assert outcome.refused == (f"its gradients differ from the plain ones by {100 * off:g} %" if refused else "")
    wrong = compiled(torch.cos, lambda f, _: [plain[0], plain[1] + 1] if f else plain, precision)
    assert wrong.function is None  # a gradient where there is none
    for at in (0, 1):
        not_finite = compiled(
            torch.cos,
            lambda f, _, at=at: [p + math.nan * (i == at) for i, p in enumerate(plain)] if f else plain,
            precision,
        )
        assert not_finite.function is None and math.isnan(not_finite.error or 0)


@pytest.mark.parametrize(("plain", "faster", "right"), [(3.0, 5.9, True), (3.0, 6.1, False), (0.0, 0.3, False)])
def test_a_gradient_that_nearly_cancels_may_be_off_by_its_rounding(
    monkeypatch: pytest.MonkeyPatch, plain: float, faster: float, right: bool
) -> None:
    """The gradient is 1; plain steps in bf16 and compiled ones are off by as much as given."""
    monkeypatch.setattr(torch, "compile", lambda function: function)

    def gradients(function: Any, precision: str) -> list[Tensor]:
        return [torch.tensor([1.0 + (faster if function else plain if precision == "bf16" else 0.0)])]

    done = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: done.append(name))
    outcome = compiled(torch.cos, gradients, "bf16")
    assert bool(outcome.function) == right
    assert done == ["empty_cache", "reset_peak_memory_stats"]  # packing goes by the memory of training


def test_looking_at_gradients_changes_nothing() -> None:
    torch.manual_seed(1)
    layer = Conv2d(3, 4, 3, "bn")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    generator = torch.get_rng_state()

    def loss() -> Tensor:
        return layer(torch.randn(8, 3, 6, 6)).square().sum()

    first, second = (gradients_of(layer, loss, torch.device("cpu")) for _ in range(2))
    assert all(map(torch.equal, first, second)) and all(p.grad is None for p in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


# --- graphs -----------------------------------------------------------------------------------------


def test_graphs_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert graphs_allowed() and Captured(lambda: (), gpu).captures
    monkeypatch.setenv("WNREPRO_GRAPHS", "0")
    assert not graphs_allowed() and not Captured(lambda: (), gpu).captures


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory is for glibc's allocator")
def test_kept_memory_is_not_mapped_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100 and kept < given_back / 10

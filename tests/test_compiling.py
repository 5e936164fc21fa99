"""Compiled functions: refused where compiling fails or gradients differ."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wnrepro.compiling import compiled, gradients_of
from wnrepro.parameterization import Conv2d

COMPILE = """
import torch
from wnrepro.compiling import compiled
x = torch.arange(3.0, requires_grad=True)
outcome = compiled(torch.cos, lambda f, _: list(torch.autograd.grad((f or torch.cos)(x).sum(), x)), "fp32")
print(outcome.facts, outcome.function is None, len(outcome.notes))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("no-such-compiler", r"{'compiled': False, 'not_compiled': .it fails \(.*\).} True 1\n"),
        ("", r"{'compiled': True} False 0\n"),
    ],
)
def test_function_is_plain_without_a_compiler(compiler: str, expected: str, tmp_path: Path) -> None:
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} | ({"CXX": compiler} if compiler else {})
    run = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert re.fullmatch(expected, run.stdout), run.stdout + run.stderr


@pytest.mark.parametrize(
    ("precision", "errors", "refused"),
    [
        ("fp32", (0.0005, 0.0), False),
        ("fp32", (0.01, 0.0), True),
        ("bf16", (0.1, 0.0), False),
        ("bf16", (1.0, 0.0), True),
        ("fp32", (0.0, 1.0), True),  # a gradient where there is none
        ("fp32", (math.nan, 0.0), True),
        ("fp32", (0.0, math.nan), True),
    ],
)
def test_function_is_refused_if_its_gradients_differ(
    precision: str, errors: tuple[float, float], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: "faster")
    plain = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    faster = [plain[0] * (1 + errors[0]), plain[1] + errors[1]]
    outcome = compiled(torch.cos, lambda f, _: faster if f else plain, precision)
    assert outcome.function == (None if refused else "faster")
    assert bool(outcome.refused) == refused


@pytest.mark.parametrize(("plain", "faster", "right"), [(3.0, 5.9, True), (3.0, 6.1, False), (0.0, 0.3, False)])
def test_gradient_that_nearly_cancels_may_have_rounding_errors(
    plain: float, faster: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is 1; plain and compiled steps in bf16 are off by the given errors."""
    freed = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: freed.append(name))

    def gradients(function: Any, precision: str) -> list[Tensor]:
        return [torch.tensor([1.0 + (faster if function else plain if precision == "bf16" else 0.0)])]

    assert bool(compiled(torch.cos, gradients, "bf16").function) == right
    assert freed == ["empty_cache", "reset_peak_memory_stats"]  # the number of jobs depends on training's memory


def test_gradients_of_changes_nothing() -> None:
    torch.manual_seed(1)
    layer = Conv2d(3, 4, 3, "bn")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    generator = torch.get_rng_state()

    def loss() -> Tensor:
        return layer(torch.randn(8, 3, 6, 6)).square().sum()

    first, second = (gradients_of(layer, loss, torch.device("cpu")) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert all(p.grad is None for p in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)

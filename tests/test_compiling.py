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
    ("precision", "exact", "plain", "faster", "right"),
    [
        ("fp32", 5.0, 0.0, 0.0025, True),
        ("fp32", 5.0, 0.0, 0.05, False),
        ("bf16", 5.0, 0.0, 0.5, True),
        ("bf16", 5.0, 0.0, 5.0, False),
        ("fp32", 0.0, 0.0, 1.0, False),  # a gradient where there is none
        *(("fp32", exact, 0.0, math.nan, False) for exact in (5.0, 0.0)),
        ("bf16", 1.0, 3.0, 5.9, True),  # one that nearly cancels may have rounding errors, as the plain one has
        ("bf16", 1.0, 3.0, 6.1, False),
    ],
)
def test_function_is_refused_if_its_gradients_differ(
    precision: str, exact: float, plain: float, faster: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """plain, faster: the error of the gradient of plain steps, in bf16, and of compiled ones."""
    freed = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: freed.append(name))

    def gradients(function: Any, precision: str) -> list[Tensor]:
        error = faster if function else plain if precision == "bf16" else 0.0
        return [torch.tensor([exact + error]), torch.ones(2)]

    outcome = compiled(torch.cos, gradients, precision)
    assert (outcome.function, bool(outcome.refused)) == (torch.cos if right else None, not right)
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

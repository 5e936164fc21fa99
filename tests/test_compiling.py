"""Compiled functions: refused where compiling fails or gradients differ."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import same_tables, tiny_run
from torch import Tensor

from wnrepro.compiling import compiled, gradients_of
from wnrepro.events import Epoch, Note
from wnrepro.experiments import draw
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


TRAIN = """
import sys
from wnrepro.experiments import draw
draw.COMPILED_FROM = int(sys.argv.pop(1))
from wnrepro.cli import main
main()
"""
QUICK = "draw --param bn --scale quick --epochs 1 --train-examples 100 --test-examples 100 --time-steps 2 --device cpu"


def train(results: Path, compiled_from: int, **environment: str) -> Path:
    """Train DRAW in another process with this environment, and return the run's folder."""
    command = [sys.executable, "-c", TRAIN, str(compiled_from), *QUICK.split(), "--results", str(results)]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (folder,) = results.glob("quick/draw/*/seed-1")
    return folder


@pytest.mark.slow
def test_run_that_cannot_be_compiled_has_the_rows_of_plain_steps(tmp_path: Path) -> None:
    """Without a folder for compiled code, which every optimizer needs; with the compiler or its path missing."""
    plain = train(tmp_path / "plain", 10**9)
    faults = {"TORCHINDUCTOR_CACHE_DIR": "/proc/nope", "CXX": "/nope", "PATH": str(tmp_path)}
    for name, value in faults.items():
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache-{name}")} | {name: value}
        found = train(tmp_path / name, 0, **environment)
        same_tables(found, plain)
        facts = json.loads((found / "run.json").read_text())["facts"]
        assert facts["compiled"] is False and facts["not_compiled"]


class BrokenError(Exception):
    """An error that only a compiler raises."""


def test_function_that_fails_later_becomes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first epoch: the rows are those of plain steps, and a note and a fact say so."""
    calls = []

    def breaks(function: Any) -> Any:
        def call(*inputs: Any) -> Any:
            calls.append(inputs)
            if len(calls) > 5:
                raise BrokenError("no kernel")
            return function(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", breaks)
    found = []
    for compiled_from in (10**9, 0):
        monkeypatch.setattr(draw, "COMPILED_FROM", compiled_from)
        made = tiny_run("draw", "bn", epochs=1)[2]()
        events = [event for event in made.train() if isinstance(event, Epoch | Note)]
        found.append([event.metrics | {"seconds": 0} for event in events if isinstance(event, Epoch)])
    assert found[0] == found[1] and len(calls) == 6
    assert made.facts["compiled"] is False and "BrokenError" in made.facts["not_compiled"]
    assert [type(event) for event in events] == [Note, Epoch]


def test_error_of_the_compiler_leaves_running_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any kind, in the gradient too: after the forward pass has changed running averages."""

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, d_x: Tensor) -> Tensor:  # type: ignore[override]
            raise BrokenError

    layer = Conv2d(3, 4, 3, "bn")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    monkeypatch.setattr(torch, "compile", lambda function: function)

    def gradients(function: Any, precision: str) -> list[Tensor]:
        loss = lambda: (Breaks.apply if function else torch.clone)(layer(torch.ones(2, 3, 6, 6))).sum()  # noqa: E731
        return gradients_of(layer, loss, torch.device("cpu"))

    outcome = compiled(torch.cos, gradients, "fp32")
    assert outcome.function is None and "BrokenError" in outcome.refused
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


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
    assert (outcome.function is not None, bool(outcome.refused)) == (right, not right)
    if outcome.function:
        assert outcome.function(torch.ones(())) == torch.ones(()).cos()
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

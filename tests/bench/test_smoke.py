"""The check of captured and compiled steps, by stand-ins for a GPU's graphs; its verdicts and its command."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import InProcess, timed_small

from wnrepro import cuda_graphs
from wnrepro.bench import ours, smoke
from wnrepro.compiling import Compilation
from wnrepro.cuda_graphs import Branch
from wnrepro.lockstep import Lockstep

CPU = torch.device("cpu")


@pytest.mark.slow
def test_processes_tell_of_each_model_what_holds() -> None:
    """On a CPU nothing is captured, so that nothing is good."""
    rows = smoke.smoke(["cifar", "cvae"], CPU, print, ["wn"])
    assert [(row["model"], row["captured"], row["compiled"], row["good"]) for row in rows] == [
        ("cifar", None, None, False),
        ("cvae mnist", None, None, False),
        ("cvae cifar10", None, None, False),
    ]
    assert all(row["seconds"] > 0 and 1e8 < row["memory_bytes"] < 1e10 for row in rows)


RIGHT = {"captured": 0.01, "together": 0.01, "compiled": 1e-4, "refused": ""}


@pytest.mark.parametrize(
    ("facts", "good"),
    [
        (RIGHT, True),
        (RIGHT | {"captured": 0.3}, False),
        (RIGHT | {"together": 0.3}, False),
        (RIGHT | {"captured": math.nan, "compiled": None}, False),
        (RIGHT | {"compiled": 0.9, "refused": "its gradients differ"}, False),
        ("dies at once", False),
        ("dies later", False),
        ("silent", False),
    ],
)
def test_model_is_good_where_what_was_captured_and_compiled_is_right(
    monkeypatch: pytest.MonkeyPatch, facts: Any, good: bool
) -> None:
    class Stub(InProcess):
        def wait(self, seconds: float | None = None) -> bool:
            if facts == "dies at once":
                raise EOFError
            return bool(facts != "silent")

        def answer(self) -> float:
            if facts == "dies later":
                raise EOFError
            return 1.0

    stated = facts if isinstance(facts, dict) else RIGHT
    monkeypatch.setattr(smoke, "compare", lambda *_: ({} if facts in ("silent", "dies at once") else STEPS, stated))
    monkeypatch.setattr(smoke, "Contender", Stub)
    (row,) = smoke.smoke(["draw"], CPU, print, ["wn"])
    assert row["good"] is good
    line = smoke.table([row]).splitlines()[1]
    assert ("BAD" in line) == (not good) and line.split()[:3] == ["draw", "wn", "fp32"]


STEPS: dict[str, Callable[[], object]] = {"end to end": lambda: None}


@pytest.mark.parametrize("wrong", ["", "captured", "together", "compiled", "gradients"])
def test_captured_and_compiled_steps_are_compared_with_plain_ones(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """By a stand-in for a graph that forgets the updates it was to repeat, and a function that is not compiled."""
    made, step = ours.our_training(timed_small("draw"), CPU)
    made.captured_step.captures = True
    if wrong == "compiled":  # a function that would have to be compiled anew
        made.compilation = Compilation(torch.compile(made.net.time_step, backend="eager"))
    if wrong == "gradients":
        gradients, made.compilation = made.gradients, Compilation(made.net.time_step)
        monkeypatch.setattr(
            made, "gradients", lambda f, precision: [(2 if f else 1) * one for one in gradients(f, precision)]
        )

    nothing = torch.zeros(()), torch.zeros(())

    class Stub:
        def __init__(self, branches: Any, _: Any) -> None:
            (self.branch,) = branches

        def replay(self, inputs: Any) -> Any:
            return [nothing if wrong == "captured" else self.branch.function(*inputs[0])]

    def compute(_: Any, members: Any) -> None:
        for member in members if wrong == "together" else ():
            member.outputs = nothing

    def plain(self: Branch, inputs: Any) -> Any:
        self.calls += 1
        return self.function(*inputs)

    monkeypatch.setitem(vars(cuda_graphs.here), "stream", object())
    monkeypatch.setattr(Branch, "plain", plain)
    monkeypatch.setattr(cuda_graphs, "Graph", Stub)
    monkeypatch.setattr(Lockstep, "compute", compute)
    others = [(made, step), ours.our_training(timed_small("draw"), CPU)]
    monkeypatch.setattr(smoke, "our_training", lambda *_: others.pop(0))
    _, found = smoke.compare(timed_small("draw"), CPU)
    assert (found["captured"] > smoke.TOLERANCE) == (wrong == "captured")
    assert wrong == "captured" or (found["together"] > smoke.TOLERANCE) == (wrong == "together")
    assert bool(found["refused"]) == (wrong in ("compiled", "gradients"))
    assert wrong != "gradients" or "100 %" in found["refused"]
    assert wrong or found["captured"] == found["together"] == 0


@pytest.mark.parametrize("good", [True, False])
def test_command_exits_with_1_unless_all_is_good(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    row = {"model": "draw", "param": "wn", "precision": "fp32", "good": good} | RIGHT
    monkeypatch.setattr(smoke, "smoke", lambda *_: [row])
    code, printed, _ = run("bench", "draw", "--smoke")
    assert code == (0 if good else 1) and "draw" in printed

"""A quick check for a GPU: for every model, captured and compiled training steps must equal plain ones.

Captured steps must do so alone and in a graph with another run's.
"""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from wnrepro.bench.counting import WHOLE, Step
from wnrepro.bench.ours import CHANGES, our_training
from wnrepro.bench.timing import Contender, Show
from wnrepro.compiling import Compilation, check_gradients, relative_error
from wnrepro.cuda_graphs import Captured
from wnrepro.experiments.checks import check_rom
from wnrepro.lockstep import Lockstep
from wnrepro.machine import cores
from wnrepro.settings import PARAMS, SETTINGS, Settings, scale_settings

TOGETHER = 10  # largest number of processes at a time; their memory is the limit
PREPARE_SECONDS = 300.0  # longest time that a process may take to prepare
STEPS = 8  # first all plain; then PLAIN_CALLS plain steps, and the rest by a graph
LR_FACTOR = 0.01  # times the paper's learning rate, at which the first steps of some models amplify rounding
TOLERANCE = 0.2  # largest relative error of the change of all parameters and running averages


def models(experiments: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the experiment and the part's setting of every model. Of dqn, yield only the benchmark's game."""
    for name in experiments:
        setting = SETTINGS[name].part
        for part in SETTINGS[name].models:
            if setting is None or part is None:
                yield name, {}
            elif part == CHANGES.get(name, {}).get(setting, part):
                yield name, {setting: part}


def smoke_settings(experiment: str, param: str, device: torch.device, **part: str) -> Settings:
    """Return the paper's settings in the GPU's default precision. Without CUDA, return the settings of scale quick."""
    if device.type != "cuda":
        small = {"replay_start": 200, "replay_steps": 200} if experiment == "dqn" else {}
        return scale_settings(experiment, "quick", param, **part, **small)
    changes = CHANGES.get(experiment, {}) | {"precision": SETTINGS[experiment].gpu_precision} | part
    settings = scale_settings(experiment, "paper", param, **changes)
    return dataclasses.replace(settings, lr=LR_FACTOR * settings.lr)


def check_again(experiment: Any) -> Compilation:
    """Check the compiled function again with the network in training mode, without recompilation."""
    compilation: Compilation = experiment.compilation
    assert compilation.function
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            again = check_gradients(compilation.function, experiment.gradients, experiment.settings.precision)
    except Exception as error:
        return Compilation(
            refused=f"the compiled function fails in training mode ({' '.join(str(error).split())[:200]})"
        )
    return compilation if compilation.refused else again


def train(experiment: Any, start: dict[str, Any], captures: bool) -> list[torch.Tensor]:
    """Train STEPS steps from this state, and return the changes of all parameters and buffers. captures: use graphs."""
    experiment.load_state_dict(copy.deepcopy(start))
    before = [value.clone() for value in experiment.net.state_dict().values()]
    for one in vars(experiment).values():
        if isinstance(one, Captured):
            one.captures = captures
    torch.manual_seed(1)
    for _ in range(STEPS):
        experiment.train_once()
    return [new - old for new, old in zip(experiment.net.state_dict().values(), before, strict=True)]


def compare(settings: Settings, device: torch.device) -> tuple[dict[str, Step], dict[str, Any]]:
    """Prepare a contender: return its step and the relative errors of captured steps and compiled gradients.

    `together` is that of captured steps beside those of another seed, against those alone.
    """
    experiment, step = our_training(settings, device)
    compilation = getattr(experiment, "compilation", None) or Compilation()
    if compilation.function:
        compilation = check_again(experiment)
    start, captured = copy.deepcopy(experiment.state_dict()), experiment.captured_step.captures
    other, _ = our_training(dataclasses.replace(settings, seed=settings.seed + 1), device)
    plain, alone = (train(experiment, start, captures) for captures in (False, captured))
    others = copy.deepcopy(other.state_dict())
    together, _ = Lockstep(device).run(
        [lambda: train(experiment, start, captured), lambda: train(other, others, captured)]
    )
    return {WHOLE: step}, {
        "captured": relative_error(alone, plain) if captured else None,
        "together": relative_error(together.result(), alone),
        "compiled": compilation.error if compilation.function or compilation.refused else None,
        "refused": compilation.refused or ("" if captured else "nothing captured"),
    }


def smoke(
    experiments: Collection[str], device: torch.device, show: Show, params: Sequence[str] = PARAMS
) -> list[dict[str, Any]]:
    """Check each model with each parameterization and return a row for each.

    A row has the relative errors of `compare`, whether they are `good`, `seconds` per step, and memory. A model without
    captured steps is not good. One process per processor runs at a time; their steps are timed one after another.
    """
    if "dqn" in experiments:
        check_rom(CHANGES["dqn"]["game"])
    cases = [(name, part, param) for name, part in models(experiments) for param in params]
    rows: list[dict[str, Any]] = []
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # per process
    together = min(cores(), TOGETHER)
    for first in range(0, len(cases), together):
        wave = []
        for name, part, param in cases[first : first + together]:
            settings = smoke_settings(name, param, device, **part)
            row: dict[str, Any] = {"model": " ".join([name, *part.values()]), "param": param}
            wave.append((row | {"precision": settings.precision}, Contender(compare, settings, device, threads=1)))
        for row, contender in wave:
            show(f"checking {row['model']} {row['param']}")
            with contextlib.suppress(EOFError, OSError):  # the process died and printed the reason
                if contender.wait(PREPARE_SECONDS):
                    row |= contender.facts
        for row, contender in wave:
            show(f"timing {row['model']} {row['param']}")
            with contextlib.suppress(EOFError, OSError):
                if contender.parts:
                    contender.ask(WHOLE, 0.5)
                    row |= {"seconds": contender.answer(), "memory_bytes": contender.memory_bytes}
            good = "seconds" in row and not row["refused"]
            good = good and all(row[name] <= TOLERANCE for name in ("captured", "together"))
            rows.append(row | {"good": good})
            contender.process.kill()
            contender.process.join()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a text table."""
    columns = [
        "model",
        "param",
        "precision",
        "captured",
        "together",
        "compiled",
        "seconds",
        "memory_bytes",
        "good",
        "refused",
    ]
    frame = pd.DataFrame(rows, columns=columns).replace({"good": {True: "good", False: "BAD"}})
    return frame.to_string(index=False, float_format="{:.3g}".format, na_rep="-")

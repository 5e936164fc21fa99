"""Compares the training-step times of two checkouts of this repository, which alternate in random order.

    python -m wnrepro.tools.step_times draw 24 OLD NEW normal,bn,wn,wn+mobn

Each checkout and parameterization has a process, at the paper's settings on the CPU with two threads. The ratios are
paired within rounds. Prints their median with a 95 % interval by order statistics.
"""

import math
import random
import statistics
import subprocess
import sys

STEPS = """
import sys, time, torch
sys.path.insert(0, ".")
from wnrepro.bench.ours import CHANGES, our_training
from wnrepro.settings import scale_settings

torch.set_num_threads(2)
settings = scale_settings(sys.argv[1], "paper", sys.argv[2], **CHANGES.get(sys.argv[1], {}))
_, step = our_training(settings, torch.device("cpu"))
step(), step()
print("ready", flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began, flush=True)
"""


def answer(process: subprocess.Popen[str], question: str = "") -> str:
    """Send a text to a process, and return the next line that it prints."""
    assert process.stdin and process.stdout
    process.stdin.write(question)
    process.stdin.flush()
    return process.stdout.readline()


def main(experiment: str, rounds: int, old: str, new: str, params: list[str]) -> None:
    processes: dict[tuple[str, str], subprocess.Popen[str]] = {}
    for tree in (old, new):
        for param in params:
            command, pipe = [sys.executable, "-c", STEPS, experiment, param], subprocess.PIPE
            processes[tree, param] = subprocess.Popen(command, cwd=tree, stdin=pipe, stdout=pipe, text=True)
            assert answer(processes[tree, param]) == "ready\n"
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in processes}
    for _ in range(rounds):
        for key in random.sample(list(processes), len(processes)):
            seconds[key].append(float(answer(processes[key], "\n")))
    for param in params:
        before, after = seconds[old, param], seconds[new, param]
        ratios = sorted(b / a for a, b in zip(before, after, strict=True))
        end = max(0, math.floor(rounds / 2 - 0.98 * math.sqrt(rounds)))
        print(
            f"{experiment} {param}: {statistics.median(before):.3f} s, {statistics.median(after):.3f} s, new over old"
        )
        print(f"    {statistics.median(ratios):.3f} [{ratios[end]:.3f}, {ratios[-1 - end]:.3f}]")
    for process in processes.values():
        process.communicate()


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5].split(","))

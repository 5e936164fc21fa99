"""Compares the training-step times of two checkouts of this repository, which alternate in random order.

    python scripts/step_times.py draw 24 OLD NEW normal,bn,wn,wn+mobn

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

experiment, rounds, old, new, params = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
processes = {}
for tree in (old, new):
    for param in params.split(","):
        command, pipe = [sys.executable, "-c", STEPS, experiment, param], subprocess.PIPE
        processes[tree, param] = subprocess.Popen(command, cwd=tree, stdin=pipe, stdout=pipe, text=True)
        assert processes[tree, param].stdout.readline() == "ready\n"
seconds = {key: [] for key in processes}
for _ in range(rounds):
    for key in random.sample(list(processes), len(processes)):
        processes[key].stdin.write("\n")
        processes[key].stdin.flush()
        seconds[key].append(float(processes[key].stdout.readline()))
for param in params.split(","):
    before, after = seconds[old, param], seconds[new, param]
    ratios = sorted(b / a for a, b in zip(before, after, strict=True))
    end = max(0, math.floor(rounds / 2 - 0.98 * math.sqrt(rounds)))
    words = f"{statistics.median(before):.3f} s, {statistics.median(after):.3f} s, new over old"
    print(f"{experiment} {param}: {words} {statistics.median(ratios):.3f} [{ratios[end]:.3f}, {ratios[-1 - end]:.3f}]")
for process in processes.values():
    process.stdin.close()

"""Compares the training-step times of checkouts of this repository, which alternate in random order.

    python -m wnrepro.tools.step_times draw 24 normal,bn,wn,wn+mobn OLD NEW OLD:plain --threads 2

Each checkout and parameterization has a process, at the paper's settings on the CPU. The ratios to the first checkout
are paired within rounds. Prints their median with a 95 % interval by order statistics. With one thread, times are the
processor's, which other processes disturb less. `:plain` after a checkout: its steps are not compiled. --part: a data
set or game.
"""

import argparse
import math
import random
import statistics
import subprocess
import sys

STEPS = """
import sys, time, torch
sys.path.insert(0, ".")
from wnrepro.bench.ours import CHANGES, our_training
from wnrepro.settings import SETTINGS, scale_settings

experiment, param, plain, threads, part = sys.argv[1:]
torch.set_num_threads(int(threads))
changes = CHANGES.get(experiment, {}) | ({SETTINGS[experiment].part: part} if part else {})
torch.compiler.set_stance("force_eager" if plain else "default")
_, step = our_training(scale_settings(experiment, "paper", param, **changes), torch.device("cpu"))
step(), step()
clock = time.process_time if threads == "1" else time.perf_counter
print("ready", flush=True)
for _ in sys.stdin:
    began = clock()
    step()
    print(clock() - began, flush=True)
"""


def answer(process: subprocess.Popen[str], question: str = "") -> str:
    """Send a text to a process, and return the next line that it prints."""
    assert process.stdin and process.stdout
    process.stdin.write(question)
    process.stdin.flush()
    return process.stdout.readline()


def main(experiment: str, rounds: int, params: list[str], trees: list[str], options: list[str]) -> None:
    processes: dict[tuple[str, str], subprocess.Popen[str]] = {}
    for tree in trees:
        for param in params:
            (folder, _, plain), pipe = tree.partition(":"), subprocess.PIPE
            command = [sys.executable, "-c", STEPS, experiment, param, plain, *options]
            processes[tree, param] = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True)
    for process in processes.values():
        assert answer(process) == "ready\n"
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in processes}
    for _ in range(rounds):
        for key in random.sample(list(processes), len(processes)):
            seconds[key].append(float(answer(processes[key], "\n")))
    end = max(0, math.floor(rounds / 2 - 0.98 * math.sqrt(rounds)))
    for param in params:
        before = seconds[trees[0], param]
        print(f"{experiment} {param}: {trees[0]} {statistics.median(before):.4f} s")
        for tree in trees[1:]:
            after = seconds[tree, param]
            ratios = sorted(b / a for a, b in zip(before, after, strict=True))
            interval = f"{statistics.median(ratios):.3f} [{ratios[end]:.3f}, {ratios[-1 - end]:.3f}]"
            print(f"    {tree} {statistics.median(after):.4f} s, ratio {interval}", flush=True)
    for process in processes.values():
        process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("rounds", type=int)
    parser.add_argument("params", type=lambda names: names.split(","))
    parser.add_argument("trees", nargs="+")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--part", default="")
    given = parser.parse_args()
    main(given.experiment, given.rounds, given.params, given.trees, [given.threads, given.part])

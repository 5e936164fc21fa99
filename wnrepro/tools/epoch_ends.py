"""Measures the work around an epoch: its checks, its measurements, and saving it.

    python -m wnrepro.tools.epoch_ends                     # every model at the paper's settings, on a CPU
    python -m wnrepro.tools.epoch_ends --device cuda cifar draw
    python -m wnrepro.tools.epoch_ends --folder DIR        # on the file system of this folder

For each model, a network that has trained one step on random data is saved, checked and measured 10 times. Prints the
medians in milliseconds; on a CPU, those of the checks and measurements are of processor time with one thread. `waits`
counts how often a value goes from the device to Python: on a GPU each time waits for all work before it.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from wnrepro.bench.ours import CHANGES, our_training
from wnrepro.device import choose_device
from wnrepro.events import Epoch
from wnrepro.experiments.measurements import first_non_finite, layer_rows
from wnrepro.runs.run import Run, Tables, Training
from wnrepro.settings import scale_settings

FEW = {"init_examples": 32}  # for the init, which is not measured
MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cifar", FEW),
    ("cvae", {"dataset": "mnist", **FEW}),
    ("cvae", {"dataset": "cifar10", **FEW}),
    ("draw", {}),
    ("dqn", {}),
)
TIMES = 10
WAITING = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy")  # the methods that read a value


class Waits(TorchFunctionMode):
    """Counts the calls that read a tensor's value."""

    number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += getattr(func, "__name__", "") in WAITING
        return func(*args, **(kwargs or {}))


def measured(work: Callable[[], object], device: torch.device, computes: bool = True) -> tuple[float, int]:
    """Return the median milliseconds of some work, and how often it waits for the device.

    computes: take processor time on a CPU.
    """
    clock = time.process_time if computes and device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(TIMES):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = clock()
        work()
        seconds.append(clock() - began)
    with Waits() as waits:
        work()
    return 1000 * statistics.median(seconds), waits.number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("words", nargs="*", help="experiments or data sets of cvae")
    given = parser.parse_args()
    device = choose_device(given.device)
    torch.set_num_threads(1)
    print(f"{'model':14} {'MB':>5} {'save':>8} {'check':>8} {'waits':>5} {'layers':>8} {'waits':>5}")
    for name, changes in MODELS:
        if given.words and not {name, changes.get("dataset")} & {*given.words}:
            continue
        settings = scale_settings(name, "paper", "wn", **CHANGES.get(name, {}), **changes)
        experiment, step = our_training(settings, device)
        step()
        with tempfile.TemporaryDirectory(dir=given.folder) as folder, Run(Path(folder), name, "paper", settings) as run:
            training = Training(run, experiment, Tables(run.folder, {}), run.new_record(None, experiment, 0, []))
            rows, numbers = layer_rows(experiment.net, 1), itertools.count(1)

            def save(training: Any = training, rows: Any = rows, numbers: Any = numbers) -> None:
                epoch = next(numbers)
                training.tables.add(Epoch(epoch, {"epoch": epoch, "seconds": 1.0}, {"layers": rows}))
                training.epoch = epoch
                training.save()

            saving, _ = measured(save, device, computes=False)
            size = (run.folder / "checkpoint.pt").stat().st_size / 1e6
        checks = measured(lambda: first_non_finite(experiment.net, experiment.optimizer, rows), device)  # noqa: B023
        layers = measured(lambda: layer_rows(experiment.net, 1), device)  # noqa: B023
        model = " ".join([name, changes.get("dataset", "")])
        print(
            f"{model:14} {size:5.1f} {saving:8.2f} {checks[0]:8.2f} {checks[1]:5} {layers[0]:8.2f} {layers[1]:5}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""A long run: nothing but its tables grows."""

import gc
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from factories import Count, Times, tiny_run

from wnrepro.events import Epoch
from wnrepro.runs.run import Run
from wnrepro.settings import SETTINGS, Settings

SPARE, WARMING_UP = 3 * 2**20, 16 * 2**20  # bytes that an allocator keeps: over a long run, in its first epochs
COPIES = 9  # of the tables' text in memory, at most: itself and the next, as bytes, pickled, in a buffer, written


def small(experiment: str, epochs: int) -> tuple[str, Settings, Callable[[], Any]]:
    few: dict[str, Any] = {"epochs": epochs, "train_examples": 100, "test_examples": 100, "batch_size": 50}
    if experiment == "cifar":
        few |= {"width": 2, "init_examples": 50, "decay_from": epochs // 2, "noise_minibatches": 4}
        few |= {"noise_epochs": tuple(range(1, epochs, max(1, epochs // 20)))}
    if experiment == "dqn":
        few = {"epochs": epochs, "epoch_steps": 20, "replay_steps": 200, "test_steps": 1, "test_games": 1}
        few |= {"epsilon_test": 0.9}
    param = "wn+mobn" if experiment == "cifar" else "wn"
    return tiny_run("cvae mnist" if experiment == "cvae" else experiment, param, **few)


def live(folder: Path, experiment: str, epochs: int, leaks: bool) -> None:
    """Execute a run in a separate process, and writes its resources after each epoch as a line of JSON."""
    torch.set_num_threads(1)
    _, settings, load = small(experiment, epochs)
    kept: list[Any] = []
    run = Run(folder, experiment, "quick", settings)

    def measure(event: object) -> None:
        if isinstance(event, Epoch):
            if leaks:
                kept.append((torch.zeros(8), b"x" * 10**7))
            places = {"descriptors": "/proc/self/fd", "threads": "/proc/self/task", "files": run.folder}
            found: dict[str, int] = {name: len(os.listdir(place)) for name, place in places.items()}
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found["bytes"] = pages * os.sysconf("SC_PAGESIZE")
            if event.epoch % max(2, epochs // 20) == 0:
                gc.collect()
                objects = gc.get_objects()
                found["tensors"] = sum(issubclass(type(one), torch.Tensor) for one in objects)
                found["objects"] = len(objects)
            print(json.dumps(found), file=lines, flush=True)

    gc.freeze()  # ignores what exists before the run
    with (folder / "lines.jsonl").open("w") as lines, run:
        run.execute(load, measure, each_epoch=True)


def growth(folder: Path, experiment: str, epochs: int, leaks: bool = False) -> dict[str, int]:
    """Measure what grows from the second quarter of a run's epochs to the last, beyond its tables, by kind."""
    process = multiprocessing.get_context("forkserver").Process(target=live, args=(folder, experiment, epochs, leaks))
    process.start()
    process.join()
    assert process.exitcode == 0
    lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    assert len(lines) == epochs
    before, after = lines[epochs // 4 : epochs // 2], lines[-(epochs // 4) :]
    tables = sum(path.stat().st_size for path in folder.rglob("*.csv"))
    size = median(one["bytes"] for one in after) - median(one["bytes"] for one in before)
    grown = {"bytes": int(size - COPIES * tables / 2 - (SPARE if epochs > 100 else WARMING_UP))}
    for name in ("descriptors", "threads", "files", "tensors", "objects"):
        first, last = (max(one.get(name, 0) for one in part) for part in (before, after))
        grown[name] = last - first - 5 * (name == "objects")
    return {name: more for name, more in grown.items() if more > 0}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SETTINGS)
def test_long_run_grows_by_no_more_than_its_tables(tmp_path: Path, experiment: str, times: Times, count: Count) -> None:
    epochs = times(12, 1000)
    assert growth(tmp_path, experiment, epochs) == {}
    count(f"{experiment}: nothing has grown in {epochs} epochs")


@pytest.mark.slow
def test_leak_is_found(tmp_path: Path) -> None:
    """A tensor and ten megabytes kept in each epoch."""
    assert growth(tmp_path, "draw", 12, leaks=True).keys() >= {"tensors", "bytes"}

"""A long life: 1000 epochs (--soak) of each experiment's real runs, and nothing grows; the time left, as it is said."""

import gc
import io
import json
import multiprocessing
import os
import time
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from factories import make_images, make_pixels, tiny_cvae, tiny_dqn, tiny_draw
from rich.console import Console
from test_reproduce import quick, timed

from wnrepro.events import Epoch, Note, Progress
from wnrepro.experiments import experiment_class
from wnrepro.progress import Show
from wnrepro.reproduce.drive import Task, drive
from wnrepro.reproduce.work import Event
from wnrepro.runs.run import Run
from wnrepro.settings import SETTINGS, scale_settings

CPU = torch.device("cpu")
SPARE, WARMING_UP = 3 * 2**20, 16 * 2**20  # bytes that an allocator keeps: over a long run, in its first epochs
# Of the tables' text, at most: itself and longer by an epoch, as bytes, pickled, in a growing buffer, written.
COPIES = 9

server = multiprocessing.get_context("forkserver")  # each run in a process of its own, which torch is loaded for once
server.set_forkserver_preload([__name__, *(f"wnrepro.experiments.{name}" for name in SETTINGS)])


def live(folder: Path, experiment: str, scale: str, epochs: int, leaks: bool) -> None:
    """The process: executes a run, and writes a line of JSON at its start and at every event into lines.jsonl."""
    torch.set_num_threads(1)
    kind, kept = experiment_class(experiment), []
    few: dict[str, Any] = {"epochs": epochs, "train_examples": 100, "test_examples": 100, "batch_size": 50}
    if scale != "tiny":
        settings = scale_settings(experiment, scale, "wn", epochs=epochs)
    elif experiment == "cifar":
        few |= {"width": 2, "init_examples": 50, "decay_from": epochs // 2, "noise_minibatches": 4}
        few |= {"noise_epochs": tuple(range(1, epochs, max(1, epochs // 20)))}
        settings = scale_settings("cifar", "quick", "wn+mobn", **few)
    elif experiment == "dqn":
        few = {
            "epochs": epochs,
            "epoch_steps": 20,
            "replay_steps": 200,
            "test_steps": 1,
            "test_games": 1,
            "epsilon_test": 0.9,
        }
        settings = tiny_dqn(**few)
    else:
        settings = {"cvae": tiny_cvae, "draw": tiny_draw}[experiment](**few)

    def load() -> Any:
        if scale != "tiny" or experiment == "dqn":
            return kind.load(settings, None, CPU)
        return kind(settings, make_images() if experiment == "cifar" else make_pixels("mnist"), CPU)

    def say(event: Progress | Epoch | Note | None = None) -> None:
        line: dict[str, Any] = {"clock": time.monotonic(), "left": None, "epoch": None}
        if event is not None:
            shown(event)
            line["left"] = shown.seconds_left()
        if isinstance(event, Epoch):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            line |= {"epoch": event.epoch, "bytes": pages * os.sysconf("SC_PAGESIZE")}
            there = {"descriptors": "/proc/self/fd", "threads": "/proc/self/task", "files": run.folder}
            line |= {name: len(os.listdir(place)) for name, place in there.items()}
            if leaks:
                kept.append((torch.zeros(8), b"x" * 10**7))
            if event.epoch % max(2, epochs // 20) == 0:
                gc.collect()
                found = gc.get_objects()
                line |= {"objects": len(found), "tensors": sum(issubclass(type(one), torch.Tensor) for one in found)}
        print(json.dumps(line), file=lines, flush=True)

    run = Run(folder, experiment, "quick", settings)
    shown = Show(Console(file=io.StringIO()), run.name, epochs, quiet=True)
    gc.freeze()  # what is there before the run is not counted
    with (folder / "lines.jsonl").open("w") as lines, run, shown:
        say()
        run.execute(load, say)


def lived(
    folder: Path, experiment: str, scale: str, epochs: int, leaks: bool = False
) -> tuple[list[dict[str, Any]], Path]:
    """What a run said of itself, and its directory."""
    process = server.Process(target=live, args=(folder, experiment, scale, epochs, leaks))
    process.start()
    process.join()
    assert process.exitcode == 0
    (record,) = folder.rglob("run.json")
    assert json.loads(record.read_text())["epoch"] == epochs
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()], record.parent


# ------------------------------------------------------------------------------- memory


def table_bytes(folder: Path, share: float) -> int:
    """What so large a share of a run's rows takes in memory, while they are written and put into a checkpoint."""
    return int(COPIES * share * sum(path.stat().st_size for path in folder.glob("*.csv")))


def grown(epochs: list[dict[str, Any]], folder: Path) -> dict[str, int]:
    """By how much more than its tables a run has grown from the second quarter of its epochs to the last, by kind."""
    quarter, spare = len(epochs) // 4, SPARE if len(epochs) > 100 else WARMING_UP
    before, after = epochs[quarter : 2 * quarter], epochs[-quarter:]
    size = median(one["bytes"] for one in after) - median(one["bytes"] for one in before)
    growth = {"bytes": max(0, int(size) - table_bytes(folder, 1 / 2) - spare)}
    for name, more in (("descriptors", 0), ("threads", 0), ("files", 0), ("tensors", 0), ("objects", 5)):
        most = [max(one.get(name, 0) for one in part) for part in (before, after)]
        growth[name] = max(0, most[1] - most[0] - more)
    return {name: more for name, more in growth.items() if more}


@pytest.mark.parametrize("experiment", ["cifar", "cvae", "draw", "dqn"])
def test_a_long_run_grows_by_no_more_than_its_tables(tmp_path, times, count, experiment):
    lines, folder = lived(tmp_path, experiment, "tiny", times(12, 1000))
    epochs = [line for line in lines if line["epoch"]]
    tenth, last = len(epochs) // 10, epochs[-1]
    sizes = ", ".join(f"{one['bytes'] / 1e6:.1f}" for one in (epochs[tenth - 1], epochs[5 * tenth - 1], last))
    tables = sum(path.stat().st_size for path in folder.glob("*.csv")) / 1e6
    count(
        f"{experiment}: {sizes} MB after epochs {tenth}, {5 * tenth}, {len(epochs)}, {tables:.1f} MB of tables; "
        f"{last['tensors']} tensors, {last['objects']} objects"
    )
    assert grown(epochs, folder) == {}


def test_what_leaks_is_told_from_what_does_not(tmp_path):
    """A tensor and ten megabytes an epoch, kept: the criterion of the test above sees both."""
    lines, folder = lived(tmp_path, "draw", "tiny", 12, leaks=True)
    growth = grown([line for line in lines if line["epoch"]], folder)
    assert growth.keys() >= {"tensors", "bytes"}


def test_the_driver_of_a_grid_keeps_nothing_of_its_events(tmp_path, monkeypatch, times, count):
    each, runs = times(2000, 50_000), [quick(seed=seed, epochs=5) for seed in (1, 2)]
    engine, tasks = timed(tmp_path, monkeypatch, runs, [1.0, 1.0], [None, None], jobs=2)
    epochs, sizes = engine.events, []

    def events(timeout: float) -> list[tuple[str, Event]]:
        told = epochs(timeout)
        for name, event in list(told):
            if not event.outcome and event.epochs < 5:
                told += [(name, Event(event.epochs + (part + 0.5) / each)) for part in range(each)]
        return told

    def show(task: Task, news: str) -> None:
        if news == "epoch" and task.reached:
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])

    engine.events = events  # type: ignore[method-assign]
    tracemalloc.start()
    drive(tasks, engine, tmp_path, None, show)
    tracemalloc.stop()
    second, fourth = (
        max(sizes[2:4]),
        max(sizes[6:8]),
    )  # epochs: the events of the first are kept until its end
    count(f"driver: {second / 1e6:.3f} MB before {4 * each} events, {fourth / 1e6:.3f} MB after them")
    assert len(sizes) == 10 and fourth <= second + 20_000


# ------------------------------------------------------------------------------- the time left


def test_the_boards_time_left_is_not_that_of_loading(tmp_path, monkeypatch):
    """Two runs of 20 epochs of 2 s, one of them with a wrong estimate, each after 30 s of loading."""
    runs = [quick(seed=seed, epochs=20) for seed in (1, 2)]
    engine, tasks = timed(tmp_path, monkeypatch, runs, [2.0, 2.0], [None, 3.0], jobs=2)
    engine.loading, said = 30.0, []
    assert [task.seconds_left for task in tasks] == [None, 60.0]

    def show(task: Task, news: str) -> None:
        if news == "epoch" and task.reached:
            said.append((task.seconds_left, 2.0 * (20 - task.reached)))

    drive(tasks, engine, tmp_path, None, show)
    assert len(said) == 20 + 20 and all(seconds == pytest.approx(true) for seconds, true in said)


@pytest.mark.parametrize("experiment", ["cifar", "cvae", "draw", "dqn"])
def test_the_time_left_is_within_a_fifth_after_a_tenth_of_a_run(tmp_path, pytestconfig, count, experiment):
    """Of the quick scale's runs, with twenty epochs, on a machine that does nothing else."""
    if not pytestconfig.getoption("--soak"):
        pytest.skip("a real run's time: --soak")
    lines, _ = lived(tmp_path, experiment, "quick", 20)
    begin, end, off = lines[0]["clock"], lines[-1]["clock"], []
    for line in (one for one in lines if one["epoch"] in range(2, 20, 2)):
        said, true = line["left"], end - line["clock"]
        off.append(said / true - 1)
        if len(off) == 1:
            first = f"of {end - begin:.1f} s; after a tenth {said:.1f} s said, {true:.1f} s true"
    count(f"time left of {experiment}: {first}; off by {', '.join(f'{100 * one:+.0f}' for one in off)} % at each tenth")
    assert len(off) == 9 and abs(off[0]) <= 0.2

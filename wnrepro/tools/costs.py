"""Measures what the grid's runs cost, and writes wnrepro/reproduce/costs.csv, the prior of the time left.

    python -m wnrepro.tools.costs                            # each model of each scale, each parameterization, on a CPU
    python -m wnrepro.tools.costs --device cuda              # on a GPU
    python -m wnrepro.tools.costs --scale quick cvae draw    # some of them
    python -m wnrepro.tools.costs --runs results/quick       # from the runs of a whole grid, on an idle machine

Without --runs, each run has few epochs, at the scales paper and short with few examples, in a process as `reproduce`
starts it, with one thread. On a CPU the times are processor seconds, which other processes disturb less. `example` is
the shortest epoch after the first, with its test and checkpoint, divided by its examples (of dqn: agent steps), and
`start` all else of the process. With --runs, `example` is the lower quartile over the epochs of the model's runs, and
`start` the experiment's median time from the end of a run to the first epoch of the next, with what that takes longer
than the others.
New rows replace those of the same device.
"""

import argparse
import bisect
import csv
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from wnrepro.device import choose_device
from wnrepro.records import RunConfig, RunRecord, read_model
from wnrepro.reproduce.costs import COLUMNS, COSTS, cost, processor
from wnrepro.reproduce.grid import Planned, expand
from wnrepro.reproduce.work import Job, Process
from wnrepro.runs.provenance import provenance
from wnrepro.settings import PARAMS, SCALE_NAMES, SETTINGS, settings_from

EPOCHS = 3
# Small epochs, with about as many test examples for a training example as at the scale paper.
SMALL: dict[str, dict[str, Any]] = {
    "cifar": {"train_examples": 200, "test_examples": 40, "init_examples": 100, "noise_epochs": ()},
    "cvae mnist": {"train_examples": 600, "test_examples": 100, "init_examples": 100},
    "cvae cifar10": {"train_examples": 48, "test_examples": 10, "init_examples": 32},
    "draw": {"train_examples": 600, "test_examples": 100},
    "dqn": {"epoch_steps": 500, "test_steps": 250, "replay_steps": 2000, "replay_start": 600, "held_out": 100},
}
LARGER, KEPT = 20, ("init_examples", "noise_epochs")  # on a GPU, LARGER multiplies all settings but KEPT
Row = dict[str, Any]


def models(scale: str, words: list[str], params: list[str], device: str) -> list[Planned]:
    """Return a run of each model of a scale under each of these parameterizations."""
    found: dict[Any, Planned] = {}
    for run in expand(scale, params):
        settings = run.settings
        small = {} if scale == "quick" else SMALL.get(f"{run.experiment} {run.part}", SMALL.get(run.experiment, {}))
        if device != "cpu":
            settings = dataclasses.replace(settings, precision=SETTINGS[run.experiment].gpu_precision)
            small = {name: value if name in KEPT else LARGER * value for name, value in small.items()}
        settings = dataclasses.replace(settings, epochs=EPOCHS, **small)
        if not words or run.names & {*words}:
            one = dataclasses.replace(run, settings=settings)
            found.setdefault((cost(one), settings.param), one)
    return [*found.values()]


def measure(run: Planned, device: str) -> tuple[float, float]:
    """Return the seconds of a process's start and of an example."""
    began, clocks = time.monotonic(), [0.0]
    with tempfile.TemporaryDirectory() as folder:
        for event in Process(Job(run, Path(folder), None, 1, device)).events():
            clock = event.processor if device == "cpu" else time.monotonic() - began
            if event.outcome not in ("", "done", "diverged"):
                raise SystemExit(f"{run.experiment} {run.settings}: {event.text}\n{event.traceback}")
            if event.outcome or event.epochs == len(clocks):
                clocks.append(clock)
    epochs = [after - before for before, after in itertools.pairwise(clocks[1:-1])]
    return max(clocks[-1] - min(epochs) * (len(epochs) + 1), 0.0), min(epochs) / run.settings.epoch_size


def measured(scales: list[str], words: list[str], params: list[str], device: str) -> Iterator[Row]:
    """Measure each model once, and yield its row."""
    about, done = provenance(choose_device(device)), set()
    for scale in scales:
        for run in models(scale, words, params, device):
            if (key := (cost(run), run.settings.param)) not in done:
                done.add(key)
                start, example = measure(run, device)
                versions = about["versions"]["torch"], about["git"]["commit"]
                yield row(run, start, example, EPOCHS - 1, about["device_name"], *versions)


def from_runs(folder: Path) -> Iterator[Row]:
    """Yield a row for each model and parameterization of the done runs with one thread and more than two epochs."""
    runs: dict[Any, list[tuple[Planned, RunRecord, list[float]]]] = {}
    for path in folder.glob("*/*/seed-*/run.json"):
        record, config = read_model(path, RunRecord)[0], read_model(path.with_name("config.json"), RunConfig)[0]
        settings = settings_from(config.experiment, config.settings.model_dump())
        with path.with_name("metrics.csv").open(newline="") as file:
            seconds = [float(one["seconds"]) for one in csv.DictReader(file)]
        alone = record.device_name.endswith(", 1 thread")
        if alone and record.status == "done" and not record.resumed and len(seconds) > 2:
            run = Planned(config.experiment, config.scale, settings)
            runs.setdefault((cost(run), settings.param), []).append((run, record, seconds))
    ends = sorted(when(record.updated) for some in runs.values() for _, record, _ in some)
    starts: dict[str, list[float]] = {}
    later = {key: [second for *_, seconds in some for second in seconds[1:]] for key, some in runs.items()}
    epochs = {key: quantiles(seconds)[0] for key, seconds in later.items()}
    for key, some in runs.items():
        for run, record, seconds in some:
            if place := bisect.bisect(ends, when(record.created)):
                gap = when(record.created) - ends[place - 1]
                starts.setdefault(run.experiment, []).append(gap + max(seconds[0] - epochs[key], 0.0))
    for key, some in runs.items():
        run, record, _ = some[0]
        start, example = median(starts.get(run.experiment, [0.0])), epochs[key] / run.settings.epoch_size
        yield row(run, start, example, len(later[key]), record.device_name, record.versions.torch, record.git.commit)


def when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def row(run: Planned, start: float, example: float, epochs: int, device_name: str, torch: str, commit: str) -> Row:
    """Return a row of costs.csv."""
    settings = json.dumps({name: getattr(run.settings, name) for name in run.settings.cost})
    values = (run.experiment, run.settings.param, f"{start:.1f}", f"{example:.3g}", epochs, device_name)
    return dict(zip(COLUMNS, (*values, torch, commit[:12], settings), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", choices=SCALE_NAMES)
    parser.add_argument("--param", action="append", choices=PARAMS)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path, default=COSTS)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    rows: dict[tuple[str, ...], Row] = {}

    def add(one: Row) -> None:
        rows[processor(one["device"]), one["experiment"], one["settings"], one["param"]] = one

    if given.out.exists():
        with given.out.open(newline="") as file:
            for one in csv.DictReader(file):
                add(one)
    scales = [given.scale] if given.scale else [*reversed(SCALE_NAMES)]
    made = (
        from_runs(given.runs) if given.runs else measured(scales, given.words, given.param or [*PARAMS], given.device)
    )
    for one in made:
        print(*one.values(), flush=True)
        add(one)
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[key] for key in sorted(rows))


if __name__ == "__main__":
    main()

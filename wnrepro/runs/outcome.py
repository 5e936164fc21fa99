"""A run's results in words, read from its tables. This module does not import torch."""

import contextlib
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from wnrepro.errors import UserError
from wnrepro.progress import brief, duration
from wnrepro.records import read_text
from wnrepro.runs.directory import RunDirectory
from wnrepro.settings import Model, Settings
from wnrepro.text import count, listed, plain


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the complete rows of a run's metrics.csv; none if it is missing or no table of numbers."""
    with contextlib.suppress(OSError, UserError, ValueError, TypeError, csv.Error):
        text = read_text(folder / "metrics.csv")
        lines = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        return [{name: float(value) for name, value in row.items()} for row in lines]
    return []


def last_figures(folder: Path) -> str:
    """Format the last epoch's first figures as the display of the grid does; empty if there is none."""
    return brief(last[-1]) if (last := rows(folder)) else ""


def result(run: RunDirectory, record: dict[str, Any]) -> str:
    """Return the run's result, number of epochs and time in words; empty if there is none."""
    model, found = model_of(run.settings), rows(run.folder)
    if (value := result_value(model, found)) is None:
        return ""
    time = f"after {count(len(found), 'epoch')}, {duration(record.get('seconds'))} of training"
    return f"{in_words(model, value)} {time}"


def over_seeds(runs: Sequence[RunDirectory], statuses: Sequence[str]) -> list[str]:
    """Return a line for each setting of which several seeds are done: the mean and standard deviation of their results.

    It names the seeds that have another status.
    """
    groups: dict[str, list[tuple[RunDirectory, str]]] = {}
    for run, status in zip(runs, statuses, strict=True):
        groups.setdefault(run.name, []).append((run, status))
    lines = []
    for name, group in groups.items():
        model = model_of(group[0][0].settings)
        found = [result_value(model, rows(run.folder)) for run, status in group if status == "done"]
        values = [value for value in found if value is not None]
        if len(values) > 1:
            spread = stdev(values) if all(map(math.isfinite, values)) else math.nan
            words = in_words(model, fmean(values), spread)
            others = [f"seed {run.settings.seed} {status}" for run, status in group if status != "done"]
            of = "; ".join(filter(None, [f"mean ± standard deviation of {len(values)} seeds", listed(others)]))
            lines.append(f"{name}: {words} ({of})")
    return lines


def model_of(settings: Settings) -> Model:
    """Return the model that a run with these settings trains."""
    return settings.models[getattr(settings, settings.part) if settings.part else None]


def result_value(model: Model, rows: Sequence[dict[str, float]]) -> float | None:
    """Return the result in a run's rows of metrics.csv: of the last epoch, or of the best one. None: there is none."""
    values = [row[model.result] for row in rows if model.result in row]
    return None if not values else max(values) if model.best else values[-1]


def in_words(model: Model, value: float, spread: float | None = None) -> str:
    """Return a result with its name and unit: `test error 8.30 %`.

    spread: its standard deviation, if it has one, which is given with two digits: `test bound −82.10 ± 0.13 nats`.
    """
    name, unit = model.result_label.split(",")[0].partition(" (")[0], model.metrics.get(model.result, "")
    form, factor = (".2f", 100) if unit == "fraction" else (".5g", 1)
    if spread and factor == 1 and math.isfinite(spread):
        form = f".{max(0, 1 - math.floor(math.log10(spread)))}f"
    unit = "" if name.startswith("bits") and unit == "bits" else "%" if unit == "fraction" else unit
    figures = [plain(factor * one, form) for one in (value, spread) if one is not None]
    return f"{name} {' ± '.join(figures)} {unit}".rstrip()

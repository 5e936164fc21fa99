"""A run's results in words, read from its tables. This module does not import torch."""

import contextlib
import csv
from pathlib import Path
from typing import Any

from wnrepro.errors import UserError
from wnrepro.progress import brief, duration
from wnrepro.records import read_text
from wnrepro.runs.directory import RunDirectory
from wnrepro.text import count, plain


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
    found, settings = rows(run.folder), run.settings
    model = settings.models[getattr(settings, settings.part) if settings.part else None]
    values = [row[model.result] for row in found if model.result in row]
    if not values:
        return ""
    name, unit = model.result_label.split(",")[0].partition(" (")[0], model.metrics.get(model.result, "")
    value = max(values) if model.best else values[-1]
    text = plain(100 * value, ".2f", " %") if unit == "fraction" else plain(value, ".5g", f" {unit}".rstrip())
    text = text.removesuffix(" bits") if name.startswith("bits") else text
    return f"{name} {text} after {count(len(found), 'epoch')}, {duration(record.get('seconds'))} of training"

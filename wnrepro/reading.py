"""Readers of JSON and CSV files that may be anyone's: what they accept is of the right kind, finite where it has to be,
no larger than a report can show, and each of its texts one printable line.
"""

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wnrepro.errors import UserError
from wnrepro.runs.directory import read_text
from wnrepro.settings import printable

DEEPEST, LONGEST_NAME, LONGEST_TEXT = 8, 100, 2000  # of JSON
LARGEST, LARGEST_WHOLE = 1e40, 2**53  # numbers: float32 ends at 3.4e38
MOST_ROWS, MOST_LAYERS = 10**6, 1000  # of a table
NAMES = {"layer"}  # columns of text
# Columns of whole numbers, and their bounds; then those of others, besides which they may also not be finite.
WHOLE = {"epoch": (0, 10_000), "time_step": (1, 10_000), "game": (0, LARGEST_WHOLE), "minibatches": (1, LARGEST_WHOLE)}
WHOLE |= dict.fromkeys(("agent_steps", "episodes"), (0, LARGEST_WHOLE))
SHARES = {"train_error", "test_error"}  # fractions from 0 to 1, or nan


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an error in a file's content into a UserError that names the file."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{printable(str(path))} is malformed ({printable(str(error), 200)}): restore it from version control, or "
            "move its folder out of the results."
        ) from error


def read_json(path: Path, rule: Any) -> dict[str, Any]:
    """A JSON object that is as the rule says; see `expect`. `clean` makes its texts printable."""
    with naming(path):
        try:
            value: dict[str, Any] = json.loads(read_text(path))
        except FileNotFoundError as error:
            raise ValueError("a link to nowhere") from error
        expect(clean(value), rule)
    return value


def clean(value: Any, depth: int = DEEPEST) -> Any:
    """A copy of what JSON holds, its texts printable and cut. Raises ValueError for what no run writes."""
    if isinstance(value, dict | list) and not depth:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {printable(name, LONGEST_NAME): clean(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list):
        return [clean(one, depth - 1) for one in value]
    most = LARGEST_WHOLE if isinstance(value, int) else LARGEST
    if isinstance(value, int | float) and most < abs(value) < math.inf:
        raise ValueError("a number beyond all bounds")
    return printable(value, LONGEST_TEXT) if isinstance(value, str) else value


def expect(value: Any, rule: Any, name: str = "its content") -> None:
    """Raise ValueError unless a value of JSON is as the rule says: of a type (float: a finite number from 0 on), one of
    a tuple's, a text that matches a pattern, a list in which each is as the rule in `[rule]` says, or an object whose
    entries are as those of a dict say (`name?`: it may be missing or null; `*`: every entry).
    """
    if isinstance(rule, list | dict):
        fits = isinstance(value, type(rule))
    elif isinstance(rule, tuple):
        fits = value in rule
    elif isinstance(rule, re.Pattern):
        fits = isinstance(value, str) and rule.fullmatch(value) is not None
    else:
        fits = type(value) in (int, float) and 0 <= value < math.inf if rule is float else type(value) is rule
    if not fits:
        raise ValueError(f"`{name}` is missing or of the wrong kind")
    if isinstance(rule, list):
        value, rule = {f"{name} {n}": one for n, one in enumerate(value)}, {"*": rule[0]}
    for key, inner in rule.items() if isinstance(rule, dict) else ():
        for entry in value if key == "*" else [key.removesuffix("?")]:
            if key in ("*", entry) or value.get(entry) is not None:
                expect(value.get(entry), inner, entry)


def read_table(path: Path, columns: tuple[str, ...], *later: str) -> pd.DataFrame:
    """These columns of a CSV file: text (`NAMES`), whole numbers (`WHOLE`) or floats. No file: no rows; a last line cut
    short is left out. later: columns that files of earlier versions lack; there they are nan.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return _empty(columns + later)
    header, *rows = [line.split(",") for line in text[: text.rfind("\n") + 1].splitlines()] or [[*columns]]
    found: dict[str, Any] = {}
    with naming(path):
        if wrong := [place for place, row in enumerate(rows, start=2) if len(row) != len(header)]:
            raise ValueError(f"line {wrong[0]} has not the header's {len(header)} fields")
        if len(rows) > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows")
        for name in columns + later:
            if name in later and name not in header:
                found[name] = np.full(len(rows), math.nan)
                continue
            if header.count(name) != 1:
                raise ValueError(f"not one column {name}")
            place = header.index(name)
            found[name] = _column(name, [row[place] for row in rows])
    return pd.DataFrame(found)


@functools.cache
def _empty(columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame({name: _column(name, []) for name in columns})


def _column(name: str, texts: list[str]) -> list[str] | np.ndarray:
    """The values of a column. ValueError where they are none."""
    if name in NAMES:
        shown = {one: printable(one, LONGEST_NAME) for one in set(texts)}
        if len(shown) > MOST_LAYERS:
            raise ValueError(f"more than {MOST_LAYERS} layers")
        return [shown[one] for one in texts]
    values = np.array([*map(int, texts)], np.int64) if name in WHOLE else np.array([*map(float, texts)], float)
    low, high = WHOLE.get(name, (0, 1) if name in SHARES else (-LARGEST, LARGEST))
    outside = (values < low) | (values > high)
    if (outside if name in SHARES else outside & np.isfinite(values)).any():
        raise ValueError(f"{name}: a number outside {low:g} to {high:g}")
    return values

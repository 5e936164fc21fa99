"""Reads untrusted CSV files. Their content becomes typed and bounded, with texts of one printable line."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wnrepro.records import LARGEST, LARGEST_INT, LONGEST_NAME, naming, read_text
from wnrepro.text import printable

MOST_LAYERS = 1000
# The integer columns of tables with their bounds. Other columns than `layer` are floats, perhaps not finite.
INTEGERS = {"epoch": (0, 10_000), "time_step": (1, 10_000), "minibatches": (1, LARGEST_INT)}
INTEGERS |= dict.fromkeys(("game", "agent_steps", "episodes", "update"), (0, LARGEST_INT))
FRACTIONS = ("train_error", "test_error")  # in 0..1, or nan


def read_table(path: Path, columns: tuple[str, ...], *later: str) -> pd.DataFrame:
    """Read these columns of a CSV file, without an incomplete last line. A missing file has no rows.

    later: columns that files of earlier versions lack, and that are then nan.
    """
    every = [*columns, *later]
    try:
        text = read_text(path)
    except FileNotFoundError:
        text = ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    header = lines[0].split(",") if lines else every
    found: dict[str, Any] = {}
    with naming(path):
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark, which a spreadsheet may have added")
        for number, line in enumerate(lines, 1):
            if line.count(",") != len(header) - 1:
                raise ValueError(f"line {number} does not have the {len(header)} fields of the header")
        for name in every:
            if header.count(name) != 1 and not (name in later and name not in header):
                raise ValueError(f"it must have one column {name}")
        # Python parses the numbers below: some versions of pandas' reader round them.
        texts = pd.DataFrame(columns=every, dtype=object)
        if lines:
            content = io.StringIO("\n".join(lines))
            texts = pd.read_csv(content, dtype=object, na_filter=False, quoting=csv.QUOTE_NONE)
        for name in every:
            column = texts[name].to_numpy() if name in texts else np.full(len(texts), "nan")
            if name == "layer":
                found[name] = pd.Series([printable(text, LONGEST_NAME) for text in column], dtype=str)
                if found[name].nunique() > MOST_LAYERS:
                    raise ValueError(f"it has more than {MOST_LAYERS} layers")
                continue
            values = found[name] = column.astype(np.int64 if name in INTEGERS else np.float64)
            low, high = INTEGERS.get(name, (0, 1) if name in FRACTIONS else (-LARGEST, LARGEST))
            outside = (values < low) | (values > high)
            if (outside & (np.isfinite(values) | (name in FRACTIONS))).any():
                raise ValueError(f"{name} has a number outside {low:g} to {high:g}")
    return pd.DataFrame(found)

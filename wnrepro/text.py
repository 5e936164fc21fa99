"""Formats numbers, intervals and lists for reports, and makes foreign text safe to print."""

import functools
import json
import math
from collections.abc import Iterable
from typing import Any

NOT_FINITE = "not finite"


def count(number: int, noun: str) -> str:
    """Return a number and its noun: `1 seed`, `2 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plain(value: float, form: str = ".2f", unit: str = "") -> str:
    """Format a number with a true minus sign; `not finite` for nan and infinity."""
    return f"{value:{form}}".replace("-", "−") + unit if math.isfinite(value) else NOT_FINITE


score = functools.partial(plain, form=".1f")  # of a game


def interval(low: float, high: float, digits: int, factor: float = 1, sign: bool = False) -> str:
    """Format an interval, rounded outward: `[+1.38, +4.45]`; empty if an end is not finite."""
    scale, form = 10.0**digits, f"{'+' if sign else ''}.{digits}f"
    ends = [end * factor * scale for end in (low, high)]
    if not all(map(math.isfinite, ends)):
        return ""
    whole = math.floor(round(ends[0], 6)), math.ceil(round(ends[1], 6))
    return "[{}, {}]".format(*(plain(end / scale + 0.0, form) for end in whole))


def listed(texts: Iterable[str], separator: str = ", ", most: int = 20) -> str:
    """Join the first distinct texts, and say how many more there are."""
    every = list(dict.fromkeys(texts))
    return separator.join([*every[:most], *([f"and {len(every) - most} more"] if len(every) > most else [])])


named = functools.partial(listed, most=3)  # for a sentence


def printable(text: str, most: int | None = None) -> str:
    """Return the text as one line of at most `most` characters, with control and bidirectional characters escaped."""
    text = text if most is None or len(text) <= most else f"{text[: most - 1]}…"
    if not text.isprintable():
        letters = (" " if letter.isspace() else letter for letter in text)
        text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in letters)
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def finite(value: Any) -> Any:
    """Copy a JSON value with null for numbers that are not finite, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """Return a value as JSON, indented; see `finite`."""
    return json.dumps(finite(value), indent=2, allow_nan=False)

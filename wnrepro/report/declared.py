"""Declares columns, figures, tables and sections of the report. report.toml holds the paper's."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnrepro import paper
from wnrepro.results import Run
from wnrepro.settings import PARAMS, SETTINGS, Model, models
from wnrepro.text import plain

CONTENT: dict[str, Any] = tomllib.loads(Path(__file__).with_name("report.toml").read_text("utf-8"))
PERCENT = " %"  # as a unit


@dataclass(frozen=True)
class Column:
    """How the numbers of a column are formatted and drawn."""

    label: str  # of an axis
    numbers: tuple[float, int, str] = (1, 3, "")  # factor, digits and unit
    final: tuple[str, int, str] = ("", 3, "")  # of the last epoch, in tables: prefix, digits and unit
    fits: tuple[str, ...] = PARAMS  # the y axis fits these parameterizations
    fits_from: float = 0  # from this fraction of the epochs on
    best: str = "max"  # and the "max" or "min" of all
    from_zero: bool = False
    inverted: bool = False

    def format(self, value: float, more: int = 0) -> str:
        """Format a number for a figure, with `more` further digits."""
        factor, digits, unit = self.numbers
        return plain(factor * value, f".{digits + more}f", unit)

    def format_final(self, value: float, form: str = "", points: str = PERCENT) -> str:
        """Format the last epoch's number for a table. points: replaces the unit per cent."""
        before, digits, unit = self.final
        unit = points if unit == PERCENT else unit
        return before + plain(self.numbers[0] * value, form or f".{digits}f", unit)

    def format_difference(self, value: float) -> str:
        """Format a difference of two final numbers."""
        return self.format_final(value, "+.3g", " points")


@dataclass(frozen=True)
class About:
    """A figure, a table or a section. The fields have the names of report.toml."""

    title: str = ""
    text: str = ""  # a caption, or the paragraph at the top
    experiment: str = ""  # of a section; empty if it covers several
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    dark: bool = False  # whether a figure has a dark variant
    column: str = ""  # empty: each part's main metric
    others: tuple[str, str] = ("", "")  # a setting whose other values are drawn too, and its words in the legend
    folded: bool = False  # collapsed on the page
    beside: bool = False  # whether it also shows the published runs
    columns: tuple[list[str], ...] = ()  # of a table: name, heading and form


def _make(kind: Any, fields: dict[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


COLUMNS: dict[str, Column] = {name: _make(Column, fields) for name, fields in CONTENT["columns"].items()}
FIGURES: dict[str, About] = {name: _make(About, fields) for name, fields in CONTENT["figures"].items()}
TABLES: dict[str, About] = {name: _make(About, fields) for name, fields in CONTENT["tables"].items()}
SECTIONS: list[About] = [_make(About, fields) for fields in CONTENT["sections"]]


def column(name: str) -> Column:
    """Return the description of a column, derived from the declared unit if report.toml has none."""
    name = name.removesuffix("_raw")
    unit = next((f" {one.metrics[name]}" for one in models().values() if one.metrics.get(name)), "")
    label = name.replace("_", " ")
    return COLUMNS.get(name) or Column(label, (1, 2, unit), (f"{label} ", 3, unit))


def model_of(run: Run) -> Model:
    """Return the declaration of a run's model."""
    return SETTINGS[run.experiment].models[run.dataset]


def finals(run: Run) -> list[str]:
    """Return the columns of a run whose final numbers appear in tables."""
    final = {name for name, fields in CONTENT["columns"].items() if "final" in fields} | {model_of(run).result}
    return [name for name in map(str, run.metrics) if name in final]


def sections() -> list[About]:
    """Return all sections. An experiment without one in report.toml gets a figure and a table under its name."""
    others = [name for name in SETTINGS if name not in {section.experiment for section in SECTIONS}]
    own = [
        About(_title(name), (SETTINGS[name].__doc__ or name).splitlines()[0], name, (name,), (name,)) for name in others
    ]
    place = next(i for i, section in enumerate(SECTIONS) if not section.experiment)
    return [*SECTIONS[:place], *own, *SECTIONS[place:]]


def _title(experiment: str) -> str:
    cls = SETTINGS[experiment]
    return cls.models[None].title if None in cls.models else experiment


def figures(parts: Iterable[str] = ()) -> dict[str, About]:
    """Return the figures by name. parts: the experiments, data sets and games with runs."""
    others = [one.experiment for one in sections() if one.experiment in one.figures]
    own = {name: tuple(part for part in parts if part.split()[0] == name) for name in others}
    return FIGURES | {name: About(text="The main result by epoch.", parts=own[name]) for name in others}


def panel_title(part: str) -> str:
    """Return the title of a part's panel in a figure of its experiment."""
    return str(CONTENT["panels"].get(part, paper.game_name(part.partition(" ")[2])))

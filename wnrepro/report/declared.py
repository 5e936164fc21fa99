"""What report.toml says of columns, figures, tables and sections, and what follows for other experiments."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wnrepro import paper
from wnrepro.results import Run
from wnrepro.settings import PARAMS, SETTINGS, Model, models
from wnrepro.text import plain

TOLD: dict[str, Any] = tomllib.loads(Path(__file__).with_name("report.toml").read_text("utf-8"))
PERCENT = " %"  # as a unit


@dataclass(frozen=True)
class Column:
    """How the numbers of a column are written and drawn."""

    label: str  # of an axis
    numbers: tuple[float, int, str] = (1, 3, "")  # factor, digits and unit
    final: tuple[str, int, str] = ("", 3, "")  # of the last epoch, in tables: words before it, digits and unit
    fits: tuple[str, ...] = PARAMS  # the y axis fits these,
    fits_from: float = 0  # from this part of the epochs on,
    best: str = "max"  # and of all others this end
    from_zero: bool = False
    inverted: bool = False

    def write(self, value: float, more: int = 0) -> str:
        """A number in a figure, with more digits."""
        factor, digits, unit = self.numbers
        return plain(factor * value, f".{digits + more}f", unit)

    def last(self, value: float, form: str = "", points: str = PERCENT) -> str:
        """The last epoch's number in a table."""
        before, digits, unit = self.final
        unit = points if unit == PERCENT else unit
        return before + plain(self.numbers[0] * value, form or f".{digits}f", unit)

    def less(self, value: float) -> str:
        """A difference of two such numbers."""
        return self.last(value, "+.3g", " points")


@dataclass(frozen=True)
class About:
    """What is said of a figure, a table or a section; see report.toml."""

    title: str = ""
    text: str = ""  # a caption, or the paragraph at the top
    experiment: str = ""  # of a section; empty: of several
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    column: str = ""  # empty: each part's main metric
    others: tuple[str, str] = ("", "")  # a setting whose other values are drawn too, and its words in the legend
    folded: bool = False  # closed on the page
    beside: bool = False  # with the published runs' rows
    columns: tuple[list[str], ...] = ()  # of a table: name, heading and form


def _made(kind: Any, told: dict[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})


COLUMNS: dict[str, Column] = {name: _made(Column, told) for name, told in TOLD["columns"].items()}
FIGURES: dict[str, About] = {name: _made(About, told) for name, told in TOLD["figures"].items()}
TABLES: dict[str, About] = {name: _made(About, told) for name, told in TOLD["tables"].items()}
SECTIONS: list[About] = [_made(About, told) for told in TOLD["sections"]]


def column(name: str) -> Column:
    """Of a column by its name, also of one that report.toml does not have."""
    name = name.removesuffix("_raw")
    unit = next((f" {one.metrics[name]}" for one in models().values() if one.metrics.get(name)), "")
    label = name.replace("_", " ")
    return COLUMNS.get(name) or Column(label, (1, 2, unit), (f"{label} ", 3, unit))


def model_of(run: Run) -> Model:
    """What the settings of a run's experiment say of its model."""
    return SETTINGS[run.experiment].models[run.dataset]


def finals(run: Run) -> list[str]:
    """The columns of a run whose last number tables show."""
    final = {name for name, told in TOLD["columns"].items() if "final" in told} | {model_of(run).result}
    return [name for name in map(str, run.metrics) if name in final]


def sections() -> list[About]:
    """The sections of the report; an experiment without one gets a figure and a table, named for it."""
    others = [name for name in SETTINGS if name not in {section.experiment for section in SECTIONS}]
    abouts = {name: (SETTINGS[name].__doc__ or name).strip().splitlines()[0] for name in others}
    own = [About(name, text, name, (name,), (name,)) for name, text in abouts.items()]
    place = next(i for i, section in enumerate(SECTIONS) if not section.experiment)
    return [*SECTIONS[:place], *own, *SECTIONS[place:]]


def figures(parts: Iterable[str] = ()) -> dict[str, About]:
    """The figures by name. parts: the experiments, data sets and games that have runs."""
    others = [one.experiment for one in sections() if one.experiment in one.figures]
    own = {name: tuple(part for part in parts if part.split()[0] == name) for name in others}
    return FIGURES | {name: About(text="The main result by epoch.", parts=own[name]) for name in others}


def panel_title(part: str) -> str:
    """The title of a part's panel in a figure of its experiment."""
    return str(TOLD["panels"].get(part, paper.game_name(part.partition(" ")[2])))

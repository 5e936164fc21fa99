"""Lays out figures as sheets of panels: one canvas for print, or one canvas per panel for the page.

Print files are PNG and PDF. The page gets SVG: text stays text, colours are the page's variables, and every mark names
its run. No pyplot is used, so that no global state changes.
"""

import io
import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.ticker import FuncFormatter
from PIL import Image

from wnrepro.settings import ABOUT, PARAMS
from wnrepro.text import count


class Look(NamedTuple):
    """The style in which a parameterization is drawn. label: plain text."""

    place: int  # position among all parameterizations
    param: str
    label: str
    colour: str
    line: Any
    marker: str


STYLES: list[tuple[str, Any, str]] = [  # the paper's in their order; the others cycle through the rest
    ("#000000", (0, (5, 1.5)), "s"),
    ("#D55E00", (0, (1, 1)), "^"),
    ("#0072B2", "solid", "o"),
    ("#009E73", (0, (6, 1.5, 1, 1.5)), "D"),
    ("#CC79A7", (0, (9, 2)), "P"),
    ("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "d"),
    ("#882255", (0, (2, 2)), "p"),
    ("#999933", (0, (9, 2, 3, 2)), "<"),
    ("#332288", (0, (4, 1, 1, 1, 1, 1, 1, 1)), "h"),
    ("#56B4E9", (0, (6, 4)), "8"),
]


def looks(labels: Mapping[str, str]) -> dict[str, Look]:
    """Return the style of each parameterization, without leading underscores in labels: matplotlib hides those."""
    styles = itertools.chain(STYLES, itertools.cycle(STYLES[len(PARAMS) :]))
    named = [(param, label.lstrip("_") or param) for param, label in labels.items()]
    return {param: Look(i, param, label, *next(styles)) for i, (param, label) in enumerate(named)}


LOOKS = looks({param: ABOUT[param].label for param in PARAMS})
STYLE = Path(__file__).with_name("figures.mplstyle")
# The style of printed papers. The fonts of STYLE and of the page have the same width.
PRINT = matplotlib.rc_params_from_file(STYLE.with_stem("print"), use_default_template=False)
AXIS, GREY, GRID, PAPER = "#333333", "#777777", "#dddddd", "#ffffff"  # the same as in figures.mplstyle
ENDS = {"png": ".png", "dark": "_dark.png", "pdf": ".pdf", "svg": ".svg"}  # of file names; SVG: of an earlier version
NIGHT = (13, 17, 23)  # GitHub's dark background
RULE: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "zorder": 0}  # style of reference lines
DASHES: dict[str, Any] = {**RULE, "linestyle": (0, (2, 2))}
SIGN: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.2, "linestyle": "none"}
SIGNS: dict[Any, str] = {  # meaning by marker
    "x": "diverged",
    ">": "not finished",
    "v": "ends below",
    "*": "the paper's value",
    CARETLEFT: "the interval continues",
    CARETRIGHT: "the interval continues",
}
VARIABLES = {colour.lower(): f"var(--k{i})" for i, (colour, _, _) in enumerate(STYLES)}
VARIABLES |= {AXIS: "var(--axis)", GREY: "var(--rule)", GRID: "var(--grid)", PAPER: "var(--raised)"}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_NAMED = 20  # largest number of entries of an axis or a legend
MANY = 100  # lines or points; more are drawn as pixels without names, or thinned out
COLUMN, PAGE = 3.3, 6.8  # widths in inches in a two-column paper
WIDTH, HEIGHT, NARROW = 3.2, 2.05, 0.8  # inches of a panel on the page; factor for three or more panels


class Mark(NamedTuple):
    """A drawn artist and its description. points: data coordinates with a text each."""

    artist: Artist
    group: str
    param: str
    seed: bool  # whether it is a single run drawn beside a mean
    name: str  # of the run
    points: Sequence[tuple[float, float, str]] = ()


class Key(NamedTuple):
    """An entry of a legend. group: of the marks that it describes; empty for signs and reference lines."""

    label: str
    line: Line2D
    group: str = ""


class Drawn(NamedTuple):
    """A figure. files: by a key of `ENDS`. panels: for the page. keys: label, SVG and group of legend entries."""

    caption: str
    files: dict[str, bytes]
    panels: list[str]
    keys: list[tuple[str, str, str]]
    seeds: bool  # whether it has single runs beside means


class Sheet:
    """The panels of a figure by title, its legend and the sentences of its caption."""

    def __init__(self, titles: Sequence[str], split: bool = False, columns: int = 0, heights: Sequence[float] = ()):
        """Create the canvases. split: one per panel. columns: 0: as many as fit. heights: of the rows, in inches."""
        columns = columns or (2 if len(titles) == 4 else min(len(titles), 3))
        rows: Any = [[*titles[i : i + columns]] for i in range(0, len(titles), columns)]
        rows[-1] += rows[-1][-1:] * (columns - len(rows[-1]))  # the last panel fills the row
        heights = heights or [1.9] * len(rows)
        self.split, self.width = split, COLUMN if columns == len(titles) == 1 else PAGE
        self.keys: list[Key] = []
        self.marks: dict[str, Mark] = {}
        self.sentences: list[str] = []
        if split:
            part = NARROW if len(titles) > 2 else 1
            tall = heights if columns == 1 else [part * HEIGHT - 0.5] * len(titles)
            sizes = [(part * WIDTH, height + 0.5) for height in tall]
            self.figures = [Figure(figsize=size, dpi=72, layout="constrained") for size in sizes]
            self.places = {title: of.add_subplot() for title, of in zip(titles, self.figures, strict=True)}
        else:
            self.figures = [Figure(figsize=(self.width, 0.5 + sum(heights)), layout="constrained")]
            self.places = self.figures[0].subplot_mosaic(rows, height_ratios=heights)

    @property
    def axes(self) -> list[Axes]:
        """The axes of all panels."""
        return [*self.places.values()]

    def mark(self, drawn: Any, *about: Any, **more: Any) -> None:
        """Describe an artist, or each artist of a container, by a `Mark`. The first artist gets the points."""
        for artist in drawn.get_children() if isinstance(drawn, Container) else [drawn]:
            artist.set_gid(f"mark-{len(self.marks)}")
            self.marks[str(artist.get_gid())] = Mark(artist, *about, **more)
            more.pop("points", None)

    def same_limits(self, axis: str) -> None:
        """Give all panels common limits of the x or y axis."""
        ends = [getattr(axes, f"get_{axis}lim")() for axes in self.axes]
        for axes in self.axes:
            getattr(axes, f"set_{axis}lim")(min(map(min, ends)), max(map(max, ends)))

    def legend(self, lines: Mapping[str, tuple[dict[str, Any], str]] | None = None, gaps: int = 0) -> "Sheet":
        """Add a legend of lines (by label: style, group), labelled artists and signs, and return the sheet."""
        shown = [Key(label, Line2D([], [], **style), group) for label, (style, group) in (lines or {}).items()]
        handles = {str(one.get_label()): one for axes in self.axes for one in axes.get_legend_handles_labels()[0]}
        for label, handle in handles.items():
            mark = self.marks.get(str(handle.get_gid()))
            shown.append(Key(label, _line(handle), mark.group if mark else ""))
        markers = {line.get_marker() for axes in self.axes for line in axes.lines}
        grey: dict[str, Any] = {"color": GREY}
        meanings = {SIGNS[sign]: sign for sign in SIGNS if sign in markers}
        signs = [Key(label, Line2D([], [], marker=sign, **grey, **SIGN)) for label, sign in meanings.items()]
        signs += [Key(f"gaps: not finite in {count(gaps, 'run')}", _blank())] if gaps else []
        left_out = len(shown) - MOST_NAMED
        more = [Key(f"and {left_out} more", _blank())] if left_out > 0 else []
        self.keys = [*shown[:MOST_NAMED], *more, *signs]
        if not self.split and self.keys:
            for key in self.keys:
                key.line.set_label(key.label)
            longest = max(len(key.label) for key in self.keys)
            columns = max(1, min(3, len(self.keys), int(self.width / (0.45 + 0.052 * longest))))
            (figure,) = self.figures
            figure.set_figheight(figure.get_figheight() + 0.15 * -(-len(self.keys) // columns))
            legend = figure.legend(handles=[key.line for key in self.keys], loc="outside lower center", ncols=columns)
            for text in legend.get_texts():
                text.set_parse_math(False)
        return self

    def files(self) -> dict[str, bytes]:
        """Render for print, by kind. The same figure always gives the same bytes."""
        png = _rendered(self.figures[0], "png", "Software")
        self.figures[0].set_layout_engine("none")  # keeps the layout
        return {"png": png, "pdf": _rendered(self.figures[0], "pdf", "CreationDate", "Creator", "Producer")}

    def panels(self, prefix: str, caption: str) -> list[str]:
        """Render an SVG element per panel for the page, labelled by the caption. Its ids begin with `prefix`."""
        said = [f"{title}. {caption}" if title else caption for title in self.places]
        every = enumerate(zip(said, self.figures, strict=True))
        return [svg(figure, f"{prefix}-{i}", label.replace("`", ""), self.marks) for i, (label, figure) in every]


def _blank() -> Line2D:
    return Line2D([], [], linestyle="none")


def _line(handle: Any) -> Line2D:
    """Return a line in the style of a legend handle."""
    line = Line2D([], [], **DASHES)
    if isinstance(handle, Line2D):
        line.update_from(handle)
        line.set(clip_on=False, clip_path=None, transform=None, gid=None)
    return line


def ticks(factor: float = 1, unit: str = "", form: str = "g") -> FuncFormatter:
    """Return a formatter of axis numbers, scaled by `factor`, with true minus signs."""
    return FuncFormatter(lambda value, _: f"{factor * value:{form if value else 'g'}}{unit}".replace("-", "−"))


def powers() -> FuncFormatter:
    """Return a formatter of powers of ten, such as `10⁻³`, without mathtext."""
    return FuncFormatter(lambda value, _: "10" + f"{math.log10(value):.0f}".translate(RAISED))


def _rendered(figure: Figure, suffix: str, *left_out: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=72 if suffix == "svg" else 300, metadata=dict.fromkeys(left_out))
    return buffer.getvalue()


def dark(png: bytes) -> bytes:
    """Return an image for a dark page: every colour keeps its hue, light becomes dark, and white becomes `NIGHT`."""
    with Image.open(io.BytesIO(png)) as image:
        light = np.asarray(image.convert("RGB")) / 255
    inverted = light + 1 - light.max(axis=2, keepdims=True) - light.min(axis=2, keepdims=True)
    colours = np.array(NIGHT) + (255 - np.array(NIGHT)) * inverted
    buffer = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(buffer, "PNG", dpi=(300, 300))
    return buffer.getvalue()


def key_svg(key: Key, prefix: str) -> str:
    """Render the line and the marker of a legend entry as SVG."""
    figure = Figure(figsize=(0.42, 0.14), dpi=72)
    line = _line(key.line)
    line.set(data=([0.04, 0.5, 0.96], [0.5] * 3), transform=figure.transFigure, markevery=[1], rasterized=False)
    figure.add_artist(line)
    return svg(figure, prefix, "", {})


def svg(figure: Figure, prefix: str, label: str, marks: Mapping[str, Mark]) -> str:
    """Render a figure as an SVG element without style or script, in the page's font. Its ids begin with `prefix`.

    label: the text for screen readers; empty for an ornament.
    """
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    root = ET.fromstring(_rendered(figure, "svg", "Date", "Creator"))
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag, element.tail = element.tag.rpartition("}")[2], None
        element.text = element.text if element.tag in ("text", "tspan") else None
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        style = dict(re.findall(r"([\w-]+): *([^;]+)", attributes.pop("style", "")))
        attributes |= {of: VARIABLES.get(value.lower(), value) for of, value in style.items() if of[:4] != "font"}
        if size := re.search(r"[\d.]+(?=px)", style.get("font") or style.get("font-size", "")):
            attributes["font-size"] = size[0]
        name = attributes.pop("id", "")
        if name in marks:
            attributes |= _mark_attributes(marks[name], float(figure.get_figheight() * 72))
        elif name and element.tag != "g":
            attributes["id"] = f"{prefix}-{name}"
        for name in {"href", "clip-path"} & attributes.keys():
            attributes[name] = attributes[name].replace("#", f"#{prefix}-")
        for name in {"d", "x", "y", "x1", "x2", "y1", "y2", "transform"} & attributes.keys():
            attributes[name] = re.sub(r"-?\d+\.\d+(e-?\d+)?", _rounded, " ".join(attributes[name].split()))
        element.attrib = attributes
    for name in ("width", "height", "version"):
        del root.attrib[name]
    root.attrib |= {"aria-label": label, "tabindex": "0", "role": "img"} if label else {"aria-hidden": "true"}
    return ET.tostring(root, encoding="unicode")


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _mark_attributes(mark: Mark, height: float) -> dict[str, str]:
    """Return the SVG attributes of a mark: its group, and its points in panel coordinates with their texts."""
    about = {"class": "mark seed" if mark.seed else "mark", "data-group": mark.group, "data-param": mark.param}
    known = [point for point in mark.points if np.isfinite(point[:2]).all()]
    if not known:
        return about
    places = mark.artist.get_transform().transform([point[:2] for point in known])
    at = " ".join(f"{x:.1f} {height - y:.1f}" for x, y in places)
    words = "|".join(point[2].replace("|", "¦") for point in known)
    return about | {"data-name": mark.name, "data-at": at, "data-words": words}

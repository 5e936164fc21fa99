"""Renders the report: page.md.jinja as Markdown, page.html.jinja with its macros, style and script as an HTML page."""

import base64
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from wnrepro.records import Ratio, read_bytes
from wnrepro.report.declared import FIGURES
from wnrepro.report.tables import Report
from wnrepro.results import Results
from wnrepro.text import interval, plain, printable

NUMBER = re.compile(r"[+−-]?\d[\d ]*(\.\d+)?(e[+−-]?\d+)?( of \d+| ± \d+(\.\d+)?)?")
NONE = ("", "–", "not finite")  # texts that a column of numbers may contain
SHORT = 114  # characters, with the separators
LARGEST = 2_900_000  # bytes of a page with media
# Files of `sample` and `watch`, the most informative first: by name, MIME type, first bytes and caption.
MEDIA = {
    "drawing.gif": ("image/gif", b"GIF8", "digits as they are drawn, the write window in red"),
    "game.gif": ("image/gif", b"GIF8", "a whole game of the trained agent"),
    "samples.png": ("image/png", b"\x89PNG", "samples of the trained model"),
    "reconstructions.png": ("image/png", b"\x89PNG", "test images, each beside its reconstruction"),
}


class Medium(NamedTuple):
    """An image of a trained model, with its content as a data URI."""

    experiment: str
    run: str
    caption: str
    uri: str


def media(results: Results) -> list[Medium]:
    """Return the first image of each kind, experiment, data set or game, and parameterization."""
    found: dict[tuple[Any, ...], Medium] = {}
    for name, run in itertools.product(MEDIA, results.runs):
        path, key = run.path / name, (name, run.experiment, run.dataset, run.param)
        within = os.path.dirname(os.path.realpath(path)) == os.path.realpath(run.path)  # no link out of the folder
        if key not in found and path.is_file() and within and path.stat().st_size < LARGEST:
            kind, start, caption = MEDIA[name]
            if (content := read_bytes(path)).startswith(start):
                uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
                of = f"{run.dataset or run.experiment}, {results.labels[run.param]}, after epoch {run.epoch}"
                found[key] = Medium(run.experiment, run.name, f"{of}: {caption}", uri)
    return [*found.values()]


def page(report: Report, live: str = "") -> str:
    """Render the page, with as many media as `LARGEST` allows.

    The page loads nothing, and only its own style and script have an effect. live: the version of a page that asks its
    server for newer ones; empty for a file.
    """
    text = render("page.html.jinja", report=report, media=(), live=live)
    room, fit = LARGEST - len(text.encode()), []
    for one in media(report.results):
        if (size := len(one.uri) + 1000) < room:
            room -= size
            fit.append(one)
    return render("page.html.jinja", report=report, media=fit, live=live) if fit else text


def _digest(name: str) -> str:
    """Return the hash of the page's style or script for its content security policy."""
    return base64.b64encode(hashlib.sha256(render(name).encode()).digest()).decode()


def render(template: str, **values: Any) -> str:
    """Render a template of this folder, with escapes for names that are no UTF-8. HTML templates escape all texts."""
    text = _templates().get_template(template).render(**values)
    return text.encode(errors="backslashreplace").decode()


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        use.__name__: use for use in (anchor, figure_name, literal, marked, numeric, plain, short, within)
    }
    environment.filters |= {"digest": _digest, "quoted": quote, "own": Markup}
    return environment


def figure_name(name: str) -> str:
    """Return the title of a figure: `figure1` → `Figure 1`, `kl_steps` → `KL by time step`."""
    title = FIGURES[name].title if name in FIGURES else ""
    return title or name.replace("_", " ").replace("figure", "figure ").capitalize()


def literal(text: str) -> str:
    """Escape a text for a Markdown table, so that it shows unchanged and no part of it becomes a link."""
    text = printable(" ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"[\\`*\[\]|~$]", r"\\\g<0>", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)
    text = re.sub(r"(?i)(?<=www)\.", "&#46;", text).replace("://", "&#58;//")
    return text.replace("@", "@&NoBreak;")  # zero width; only this keeps a mail address from becoming a link


def marked(text: str) -> list[tuple[bool, str]]:
    """Split a text at backticks into pieces, each with whether it is code."""
    return [(i % 2 == 1, piece) for i, piece in enumerate(text.split("`")) if piece]


def short(measured: str) -> str:
    """Shorten a finding to its first clauses, without parentheses."""
    clauses = re.sub(r" \([^()]*\)", "", measured).split("; ")
    ends = itertools.accumulate(len(clause) + 2 for clause in clauses)
    kept = [clause for clause, end in zip(clauses, ends, strict=True) if end <= SHORT] or clauses[:1]
    return "; ".join(kept + ["…"] * (len(kept) < len(clauses)))


def anchor(heading: str) -> str:
    """Return the anchor of a heading: `Table 2: test error` → `table-2-test-error`."""
    return "-".join(re.findall(r"\w+", heading.lower()))


def within(ratio: Ratio, digits: int) -> str:
    """Format a ratio with its interval: `1.11 [0.97, 1.18]`."""
    return f"{plain(ratio.median, f'.{digits}f')} {interval(ratio.low, ratio.high, digits)}"


def numeric(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Test for each column whether it holds only numbers: it is then aligned right and sorted by number."""
    columns = ([text for text in column if text not in NONE] for column in zip(*rows, strict=True))
    return [bool(texts) and all(map(NUMBER.fullmatch, texts)) for texts in columns]

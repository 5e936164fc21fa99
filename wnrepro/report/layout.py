"""Lays the report out: page.md.jinja as Markdown, page.html.jinja, page.css and page.js as one HTML page."""

import base64
import functools
import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from wnrepro.report.tables import Report
from wnrepro.settings import printable

NUMBER = re.compile(r"[+−-]?\d[\d ]*(\.\d+)?(e[+−-]?\d+)?( of \d+)?")
SHORT = 114  # characters, with the separators


def markdown(report: Report) -> str:
    """The report as Markdown; it names the figures as figures/*.png and *.svg."""
    return _templates().get_template("page.md.jinja").render(report=report)


def page(report: Report, images: dict[str, bytes]) -> str:
    """The page, with every figure's SVG inline. It loads nothing, and only its own style and script have an effect."""
    sources = {name: _templates().get_template(f"page.{name}").render().encode() for name in ("css", "js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text).digest()).decode() for name, text in sources.items()}
    uris = {name: f"data:image/svg+xml,{quote(svg, safe=' !$()*+,-./:;=?@[]^_{|}~')}" for name, svg in images.items()}
    return _templates().get_template("page.html.jinja").render(report=report, images=uris, hashes=hashes)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name == "page.html.jinja",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {use.__name__: use for use in (anchor, literal, marked, numeric, short)}
    return environment


def literal(text: str) -> str:
    """Any text as Markdown that shows just this text in a table cell: nothing becomes a link, not even an address."""
    text = printable(" ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*[]|~$":
        text = text.replace(mark, f"\\{mark}")
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)
    text = re.sub(r"(?i)(?<=www)\.", "&#46;", text).replace("://", "&#58;//")
    return text.replace("@", "@&NoBreak;")  # of zero width: nothing else keeps an address of mail from being a link


def marked(text: str) -> list[tuple[bool, str]]:
    """Text in pieces: whether a piece is code, which backticks mark, and the piece."""
    return [(i % 2 == 1, piece) for i, piece in enumerate(text.split("`")) if piece]


def short(measured: str) -> str:
    """A finding's numbers without what stands in parentheses, cut after its first clauses."""
    clauses = re.sub(r" \([^()]*\)", "", measured).split("; ")
    ends = itertools.accumulate(len(clause) + 2 for clause in clauses)
    kept = [clause for clause, end in zip(clauses, ends, strict=True) if end <= SHORT] or clauses[:1]
    return "; ".join(kept + ["…"] * (len(kept) < len(clauses)))


def anchor(heading: str) -> str:
    """`Table 2: test error` → `table-2-test-error`."""
    return "-".join(re.findall(r"\w+", heading.lower()))


def numeric(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Of every column whether it holds numbers alone, and some: it stands to the right, and sorts as numbers."""
    columns = ([text for text in column if text not in ("", "–")] for column in zip(*rows, strict=True))
    return [bool(texts) and all(map(NUMBER.fullmatch, texts)) for texts in columns]

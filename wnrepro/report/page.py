"""The report as one HTML page that needs nothing beside it, by page.html.jinja, page.css and page.js."""

import base64
import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2

from wnrepro.report.tables import Report

NUMBER = re.compile(r"[+−-]?\d[\d ]*(\.\d+)?(e[+−-]?\d+)?( of \d+)?")
SHORT = 114  # characters, with the separators


def page(report: Report, images: dict[str, bytes]) -> str:
    """The page, with every figure's SVG inline. It loads nothing, and only its own style and script have an effect."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {use.__name__: use for use in (anchor, marked, numeric, short)}
    sources = {name: environment.get_template(f"page.{name}").render().encode() for name in ("css", "js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text).digest()).decode() for name, text in sources.items()}
    uris = {name: f"data:image/svg+xml,{quote(svg, safe=' !$()*+,-./:;=?@[]^_{|}~')}" for name, svg in images.items()}
    return environment.get_template("page.html.jinja").render(report=report, images=uris, hashes=hashes)


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

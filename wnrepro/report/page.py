"""The report as one HTML page that needs nothing beside it, by page.html.jinja, page.css and page.js."""

import base64
import hashlib
import re
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd

from wnrepro.report.sections import Report

NONE = ("", "–")  # cells without a value
NUMBER = re.compile(r"[+−-]?\d[\d ]*(\.\d+)?(e[+−-]?\d+)?( of \d+)?")
SHORT = 110  # characters


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
    environment.filters |= {"marked": marked, "short": short, "anchor": anchor, "numeric": numeric}
    hashes = {name: _sha256(environment.get_template(f"page.{name}").render()) for name in ("css", "js")}
    return environment.get_template("page.html.jinja").render(
        report=report,
        blocks=[(type(block).__name__, block) for block in report.body],
        images={name: _data_uri(svg) for name, svg in images.items()},
        hashes=hashes,
    )


def marked(text: str) -> list[tuple[bool, str]]:
    """Text in pieces: whether a piece is code, which backticks mark, and the piece."""
    return [(i % 2 == 1, piece) for i, piece in enumerate(text.split("`")) if piece]


def short(measured: str) -> str:
    """A finding's numbers without what stands in parentheses, cut after its first clauses."""
    clauses = re.sub(r" \([^()]*\)", "", measured).split("; ")
    kept = clauses[0]
    for clause in clauses[1:]:
        if len(kept) + len(clause) > SHORT:
            return f"{kept}; …"
        kept = f"{kept}; {clause}"
    return kept


def anchor(heading: str) -> str:
    """`Table 2: test error` → `table-2-test-error`."""
    return "-".join(re.findall(r"\w+", heading.lower()))


def numeric(cells: pd.DataFrame) -> list[str]:
    """The columns that hold numbers alone, and some: they stand to the right, and sort as numbers."""
    texts = {str(name): [text for cell in cells[name] if (text := str(cell)) not in NONE] for name in cells.columns}
    return [name for name, values in texts.items() if values and all(map(NUMBER.fullmatch, values))]


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml,{quote(svg, safe=' !$()*+,-./:;=?@[]^_{|}~')}"

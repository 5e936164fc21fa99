"""Renders the report as LaTeX files to \\input into a paper. They need booktabs, graphicx and adjustbox."""

import math
import re
import textwrap
from typing import Any

from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Claim, Finding
from wnrepro.report.declared import FIGURES, TABLES
from wnrepro.report.layout import numeric, render
from wnrepro.report.tables import Report, Table
from wnrepro.report.tex import prose, tex

LEFT_OUT = ("floors", "settings", "runs")  # tables that are not exported
NOTES = ("Other settings", "Every seed", "Not finished, or not finite", "Remarks", "Data")  # columns of long text
ROWS, LINES, LONG = 60, 3, 400  # most of a table; most of a cell; most characters of a note or a problem


def latex(report: Report) -> dict[str, bytes]:
    """Return the content of all files by path. Empty content deletes the file of an earlier export."""
    names = [name for name in {**TABLES, **report.tables} if name not in (*LEFT_OUT, "claims")]
    tables = {name: report.tables[name][0] for name in names if report.tables.get(name)}
    values: dict[str, Any] = {"report": report, "tables": tables, "tex": tex, "prose": prose, "long": LONG}
    texts = {f"{name}.tex": render(f"{name}.tex.jinja", **values, on=_on) for name in ("report", "claims", "figures")}
    for name in names:
        of = laid_out(tables[name]) if name in tables else {}
        texts[f"tables/{name}.tex"] = render("table.tex.jinja", name=name, **values, **of) if of else ""
    images = {name: one.files["pdf"] for name, one in report.figures.items()}
    images = {f"figures/{name}.pdf": images.get(name, b"") for name in {**FIGURES, **images}}
    return {name: text.encode() for name, text in texts.items()} | images


def _on(claim: Claim, finding: Finding, scale: str) -> str:
    """Describe the evidence behind a claim's verdict: scale, seeds, levels of the intervals and p-values."""
    levels = sorted({90 if len(e.margin) > 1 else 95 for e in finding.estimates if math.isfinite(e.high - e.low)})
    kinds = [f"{level} % interval{' of an equivalence' * (level < 95)}" for level in levels]
    on = [f"scale {scale}", finding.n, *kinds]
    if not claim.check and finding.verdict in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE):
        on.append(f"p = {min(finding.p_holds, finding.p_fails):.2g}")
        on += [f"after Holm's correction {finding.holm:.2g}"] * (finding.verdict == INCONCLUSIVE)  # else in `measured`
    return "; ".join([*on, *["rule after the fact"] * finding.after_the_fact])


def laid_out(table: Table) -> dict[str, Any]:
    """Return a table's caption, rows (the headings first) and notes, without its empty columns.

    The columns of `NOTES` become numbered notes below the table.
    """
    below = [i for i, heading in enumerate(table.headings) if heading in NOTES]
    shown = [i for i, _ in enumerate(table.headings) if i not in below and any(row[i] for row in table.texts)]
    wide = 18 if len(shown) > 10 else 44  # characters
    plain = [[re.sub(r" ± .*|^over |^\[|, \S*\]$", "", row[i]) for i in shown] for row in table.texts]
    sides = ["r" if right else "l" for right in numeric([*plain, ["0"] * len(shown)])]  # dashes: right
    rows = [[_cell(table.headings[i], 16, "[b]", side) for i, side in zip(shown, sides, strict=True)]]
    notes: dict[str, int] = {}
    for row in table.texts[:ROWS]:
        said = [f"{table.headings[i]}: {row[i]}" for i in below if row[i]]
        marks = ", ".join(map(str, sorted(notes.setdefault(text, len(notes) + 1) for text in said)))
        first, *others = (_cell(row[i], wide, "[t]", "l") for i in shown)
        rows.append([first + rf"\textsuperscript{{{marks}}}" * bool(said), *others])
    paper = re.fullmatch(r"Table( \d): (.)(.*)", table.title)
    title = f"{paper[2].upper()}{paper[3]} (the paper's table{paper[1]})" if paper else table.title
    caption = prose(f"{title}. {table.note}".removeprefix(". "))
    more = max(0, len(table.texts) - ROWS)
    return {"caption": caption, "sides": "".join(sides), "rows": rows, "notes": list(notes), "more": more}


def _cell(text: str, wide: int, place: str, side: str) -> str:
    """Wrap a text into at most `LINES` lines, cut with `…`. A number stays with the word behind it."""
    whole_numbers = re.sub(r"(?<=\d) (?=\w)", "\xa0", text)
    parts = textwrap.wrap(whole_numbers, wide, max_lines=LINES, placeholder=" …")
    whole = r" \\ ".join(map(tex, parts))
    return whole if len(parts) < 2 else rf"\begin{{tabular}}{place}{{@{{}}{side}@{{}}}}{whole}\end{{tabular}}"

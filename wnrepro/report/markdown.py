"""The report as Markdown, with its figures beside it."""

import re
from collections.abc import Sequence

from wnrepro.paper import CLAIMS
from wnrepro.report.sections import Block, Heading, Image, Judged, Paragraph, Report, Table
from wnrepro.settings import printable


def escape(text: str) -> str:
    """Any text as Markdown that shows just this text, in one table cell.

    No part of it becomes a link, also where GitHub makes one of a bare address.
    """
    text = printable(" ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*[]|~$":
        text = text.replace(mark, f"\\{mark}")
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)
    text = re.sub(r"(?i)(?<=www)\.", "&#46;", text).replace("://", "&#58;//")
    return text.replace("@", "@&NoBreak;")  # of zero width: nothing else keeps an address of mail from being a link


def markdown(report: Report) -> str:
    """The whole report; it names the figures as figures/*.png and *.svg."""
    parts = [f"# Weight normalization: report at scale `{report.scale}`"]
    if report.warning:
        parts.append(f"**{report.warning}**")
    if report.problems:
        parts.append("**Files that do not fit together; do not trust these runs:**")
        parts.append("\n".join(f"- {escape(problem)}" for problem in report.problems))
    verdicts = ", ".join(f"{times} {verdict}" for verdict, times in report.verdicts.items())
    parts.append(f"{len(CLAIMS)} claims: {verdicts}. {report.runs}")
    parts += ["## Claims", report.basis, _claims(report.claims)]
    return "\n\n".join([*parts, *map(_block, report.body)]) + "\n"


def _claims(claims: Sequence[Judged]) -> str:
    rows = [
        [
            judged.claim.id,
            f"{escape(judged.claim.claim)} ({escape(judged.claim.where)})",
            escape(judged.claim.paper),
            escape(judged.finding.measured),
            f"**{judged.finding.verdict}**",
            escape(judged.on),
            escape(judged.claim.rule),
            f"[{judged.figure_title}](figures/{judged.figure}.png)" if judged.figure else "no figure",
        ]
        for judged in claims
    ]
    return _table(["", "Claim", "Paper", "Measured", "Verdict", "On", "Rule", "Figure"], rows)


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Image(name, caption):
            return f"![{caption}](figures/{name}.png)\n\n*{caption}* ([SVG](figures/{name}.svg))"
        case Table(cells, title):
            rows = [[escape(str(cell)) for cell in row] for row in cells.itertuples(index=False)]
            return (f"### {title}\n\n" if title else "") + _table(list(cells.columns), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))

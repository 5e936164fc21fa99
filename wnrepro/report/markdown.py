"""The report as Markdown, with its figures beside it."""

import itertools
import re
from collections.abc import Iterable, Sequence

from wnrepro.report.claims.claim import Claim, Finding
from wnrepro.report.tables import Report
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
    parts = [f"# Weight normalization: report at scale `{report.scale}`", *(f"**{text}**" for text in report.warnings)]
    if report.problems:
        parts.append("**Files that do not fit together; do not trust these runs:**")
        parts.append("\n".join(f"- {escape(problem)}" for problem in report.problems))
    for title, (verdicts, _) in report.claims.items():
        parts.append(f"{title}: {', '.join(f'{times} {verdict}' for verdict, times in verdicts.items())}.")
    parts += [report.runs, "## Claims", report.basis]
    for title, (_, judged) in report.claims.items():
        header = ["", "Claim", "Verdict", *judged[0][2], "Figure"]
        parts += [f"### {title}", _table(header, itertools.starmap(_judged, judged))]
    for heading, (captions, tables) in report.sections.items():
        parts.append(f"## {heading}")
        for name, caption in captions.items():
            parts.append(f"![{caption}](figures/{name}.png)\n\n*{caption}* ([SVG](figures/{name}.svg))")
        for table in tables:
            texts = ([escape(text) for text in row] for row in table.texts)
            parts += [f"### {table.title}" if table.title else table.note, _table(table.headings, texts)]
    return "\n\n".join(parts) + "\n"


def _judged(claim: Claim, finding: Finding, details: dict[str, str], figure: str) -> list[str]:
    verdict = f"**{finding.verdict}**" + ", rule after the fact" * finding.after_the_fact
    link = f"[{figure.replace('_', ' ').replace('figure', 'figure ')}](figures/{figure}.png)" if figure else "no figure"
    return [claim.id, escape(claim.claim), verdict, *map(escape, details.values()), link]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))

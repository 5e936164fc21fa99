"""The report as Markdown, with its figures beside it."""

import re
from collections.abc import Iterable, Sequence

from wnrepro.report.tables import Judged, Report, verdicts
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
    parts += [f"**{report.warning}**"] * bool(report.warning)
    parts += [f"**{escape(note)}**" for note in report.notes]
    if report.problems:
        parts.append("**Files that do not fit together; do not trust these runs:**")
        parts.append("\n".join(f"- {escape(problem)}" for problem in report.problems))
    for title, judged in report.claims.items():
        parts.append(f"{title}: {', '.join(f'{times} {verdict}' for verdict, times in verdicts(judged).items())}.")
    parts += [report.runs, "## Claims", report.basis]
    for title, judged in report.claims.items():
        header = ["", "Claim", "Verdict", *judged[0].details, "Figure"]
        parts += [f"### {title}", _table(header, map(_judged, judged))]
    for heading, (captions, tables) in report.sections.items():
        parts.append(f"## {heading}")
        for name, caption in captions.items():
            parts.append(f"![{caption}](figures/{name}.png)\n\n*{caption}* ([SVG](figures/{name}.svg))")
        for table in tables:
            texts = ([escape(text) for text in row] for row in table.texts)
            parts += [*([f"### {table.title}"] if table.title else []), *table.notes, _table(table.headings, texts)]
    return "\n\n".join(parts) + "\n"


def _judged(judged: Judged) -> list[str]:
    verdict = f"**{judged.finding.verdict}**" + ", rule after the fact" * judged.finding.after_the_fact
    figure = f"[{judged.link}](figures/{judged.figure}.png)" if judged.figure else "no figure"
    return [judged.claim.id, escape(judged.claim.claim), verdict, *map(escape, judged.details.values()), figure]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))

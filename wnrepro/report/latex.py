"""Lays the report out as a folder of LaTeX, to \\input into a paper: it needs booktabs, graphicx and adjustbox."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED, Claim, Finding
from wnrepro.report.figures import CAPTIONS
from wnrepro.report.layout import numeric
from wnrepro.report.tables import Report, Table
from wnrepro.report.tex import prose, tex

TABLES = ("table2", "variants", "bounds", "draw_bounds", "table3", "interquartile_means", "step_time", "beyond")
NOTES = ("Other settings", "Every seed", "Not finished, or not finite", "Remarks", "Data")  # columns that stand below
ROWS, LINES, LONG = 60, 3, 400  # of a table; of a cell; characters of a note
HEAD = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage[margin=25mm]{geometry}
\usepackage[export]{adjustbox}
\usepackage{lmodern,booktabs,graphicx,hyperref}
\begin{document}\sloppy"""


def latex(report: Report, built: Mapping[str, Sequence[Table]], pdfs: Mapping[str, bytes]) -> dict[str, bytes]:
    """All files by path; empty: one that an earlier export has left goes. built: of `build`; pdfs: figures by name."""
    texts = {f"tables/{n}.tex": _table(n, built[n][0]) if built.get(n) else "" for n in TABLES}
    lines = [HEAD, rf"\section*{{Weight normalization: report at scale \texttt{{{report.scale}}}}}"]
    said = [prose(text) for text in report.warnings] + [f"Do not trust: {tex(text, LONG)}" for text in report.problems]
    lines += [*(rf"\par\medskip\noindent {text}" for text in said), r"\section{Claims}\input{claims}"]
    lines += [r"\clearpage\section{Tables}", *(rf"\input{{{name[:-4]}}}" for name in texts if texts[name])]
    captions = {name: one.caption for name, one in report.figures.items()}
    texts["figures.tex"] = "\n".join(_figure(*one) for one in captions.items())
    lines += [r"\clearpage\section{Figures}\input{figures}"] * bool(captions)
    texts |= {"report.tex": "\n".join([*lines, "\\end{document}\n"]), "claims.tex": ""}
    for title, (verdicts, some) in report.claims.items():
        counted = ", ".join(f"{times} {verdict}" for verdict, times in verdicts.items())
        sentences = "".join(_sentence(claim, finding, report.scale) for claim, finding, *_ in some)
        texts["claims.tex"] += f"\\paragraph{{{title}: {counted}.}}\n"
        texts["claims.tex"] += f"\\begin{{description}}\n{sentences}\\end{{description}}\n"
    images = {f"figures/{name}.pdf": pdfs.get(name, b"") for name in CAPTIONS}
    return {name: text.encode() for name, text in texts.items()} | images


def _sentence(claim: Claim, finding: Finding, scale: str) -> str:
    """What was found of a claim, and on how much; intervals stand in brackets."""
    levels = sorted({90 if len(e.margin) > 1 else 95 for e in finding.estimates if math.isfinite(e.high - e.low)})
    kinds = [f"{level} % interval{' of an equivalence' * (level < 95)}" for level in levels]
    on = [f"scale {scale}", finding.n, *kinds]
    if not claim.check and finding.verdict in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE):
        on.append(f"p = {min(finding.p_holds, finding.p_fails):.2g}")
        on += [f"after Holm's correction {finding.holm:.2g}"] * (finding.verdict == INCONCLUSIVE)  # else in `measured`
    on += ["rule after the fact"] * finding.after_the_fact
    verdict = rf"{'was' if finding.verdict == NOT_RUN else 'is'} \emph{{{finding.verdict}}} ({tex('; '.join(on))})"
    of = f"\\item[{claim.id}] {prose(claim.claim)} (our wording of the paper's {tex(claim.where)}): this"
    return f"{of} {verdict}: {tex(finding.measured)}.\n"


def _figure(name: str, caption: str) -> str:
    return rf"""\begin{{figure}}[htbp]
\centering\includegraphics[max width=\linewidth,max height=0.75\textheight]{{figures/{name}.pdf}}
\caption{{{tex(caption)}}}\label{{fig:{name}}}
\end{{figure}}
"""


def _table(name: str, table: Table) -> str:
    """A table without its empty columns; those of `NOTES` stand below it, and a row names them by number."""
    below = [i for i, of in enumerate(table.headings) if of in NOTES]
    shown = [i for i, _ in enumerate(table.headings) if i not in below and any(row[i] for row in table.texts)]
    wide = 18 if len(shown) > 10 else 44  # characters
    plain = [[re.sub(r" ± .*|^over |^\[|, \S*\]$", "", row[i]) for i in shown] for row in table.texts]
    sides = ["r" if right else "l" for right in numeric([*plain, ["0"] * len(shown)])]  # of dashes alone: to the right
    notes: dict[str, int] = {}
    rows = [[_cell(table.headings[i], 16, "[b]", side) for i, side in zip(shown, sides, strict=True)]]
    for row in table.texts[:ROWS]:
        said = [f"{table.headings[i]}: {row[i]}" for i in below if row[i]]
        marks = ", ".join(map(str, sorted(notes.setdefault(text, len(notes) + 1) for text in said)))
        first, *others = (_cell(row[i], wide, "[t]", "l") for i in shown)
        rows.append([first + rf"\textsuperscript{{{marks}}}" * bool(said), *others])
    head, *lines = (" & ".join(row) + r" \\" for row in rows)
    small = [rf"\textsuperscript{{{i}}}{tex(text, LONG)}" for text, i in notes.items()]
    small += [f"{len(table.texts) - ROWS} more rows are left out."] * (len(table.texts) > ROWS)
    paper = re.fullmatch(r"Table( \d): (.)(.*)", table.title)
    title = f"{paper[2].upper()}{paper[3]} (the paper's table{paper[1]})" if paper else table.title
    caption = prose(f"{title}. {table.note}".removeprefix(". "))
    return "\n".join(
        [
            r"\begin{table}[htbp]\centering\setlength\tabcolsep{4pt}",
            rf"\caption{{{caption}}}\label{{tab:{name}}}",
            r"\par\medskip\begin{adjustbox}{max totalsize={\linewidth}{0.7\textheight}}",
            rf"\begin{{tabular}}{{@{{}}{''.join(sides)}@{{}}}}",
            *(r"\toprule", head, r"\midrule", *lines, r"\bottomrule"),
            r"\end{tabular}\end{adjustbox}\par\medskip",
            *([r"\parbox{\linewidth}{\footnotesize\raggedright", "\\quad\n".join(small) + "}"] if small else ()),
            "\\end{table}\n",
        ]
    )


def _cell(text: str, wide: int, place: str, side: str) -> str:
    """A text in at most `LINES` lines, in which a number and the word behind it stay together; … where it is cut."""
    whole_numbers = re.sub(r"(?<=\d) (?=\w)", "\xa0", text)
    parts = textwrap.wrap(whole_numbers, wide, max_lines=LINES, placeholder=" …")
    whole = r" \\ ".join(map(tex, parts))
    return whole if len(parts) < 2 else rf"\begin{{tabular}}{place}{{@{{}}{side}@{{}}}}{whole}\end{{tabular}}"

"""The report, computed from the files in results/ alone. It never imports torch."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from wnrepro.errors import DiskError, UserError
from wnrepro.report import canvas, compare, declared, figures, tables
from wnrepro.report.claims import CLAIMS, findings, rules
from wnrepro.report.claims.claim import Claim, Finding
from wnrepro.report.latex import latex
from wnrepro.report.layout import page, render
from wnrepro.results import check, load, scales_with_runs
from wnrepro.runs.directory import write_atomic

__all__ = ["check", "live_page", "rules", "scales_with_runs", "verdicts", "write_comparison", "write_report"]


def write_report(
    results: Path,
    scale: str,
    precision: str | None = None,
    commands: Mapping[str, str] | None = None,
    export: bool = False,
    out: Path | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write report.md, report.html, tables/*.csv and figures/*.{png,pdf} into <out>/<scale>/, by default of `results`.

    Returns the paths of the first two. Reads and draws everything before it writes the first file. precision: of the
    judged runs; None: `load` chooses. commands: by claim, the command that computes its runs. export: also write
    latex/, and return its report.tex. warn: called with a sentence for everything that is left out. Raises UserError if
    no run can be read or a link leads out of the folder, and DiskError if it is not writable.
    """
    out = out or results
    place = quote(os.fsencode(os.path.relpath(os.path.realpath(results / scale), os.path.realpath(out / scale))))
    report = _report(results, scale, precision, commands)._replace(place=place)
    for sentence in report.left_out:
        warn(f"left out: {sentence}")
    files: dict[str, bytes] = {}  # empty content deletes the file of an earlier report
    for name, some in report.tables.items():
        rows = [row for table in some for row in table.values]
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n") if rows else ""
        files[f"tables/{name}.csv"] = text.encode()
    for name in {**declared.FIGURES, **report.figures}:
        drawn = report.figures[name].files if name in report.figures else {}
        files |= {f"figures/{name}{end}": drawn.get(kind, b"") for kind, end in canvas.ENDS.items()}
    files |= {"report.md": render("page.md.jinja", report=report).encode(), "report.html": page(report).encode()}
    files |= {f"latex/{name}": content for name, content in (latex(report) if export else {}).items()}
    _write(out, scale, files)
    return [out / scale / name for name in ("report.md", "report.html", *["latex/report.tex"] * export)]


def verdicts(results: Path, scale: str, precision: str | None = None) -> list[tuple[Claim, Finding]]:
    """Return every claim with its finding. Raises UserError as `write_report` does."""
    found = findings(load(results, scale, precision))
    return [(claim, found[claim.id]) for claim in CLAIMS]


def live_page(
    version: str, results: Path, scale: str, precision: str | None = None, commands: Mapping[str, str] | None = None
) -> str:
    """Render the page, which asks its server for newer versions. Raises UserError as `write_report` does."""
    return page(_report(results, scale, precision, commands, printed=False), version)


def _report(
    results: Path, scale: str, precision: str | None, commands: Mapping[str, str] | None, printed: bool = True
) -> tables.Report:
    read = load(results, scale, precision)
    found = findings(read)
    return tables.report(read, found, figures.draw(read, found, printed), commands or {})


def write_comparison(
    results: Path, other: Path, scale: str, precision: str | None = None, out: Path | None = None
) -> tuple[list[str], Path]:
    """Write <out>/<scale>/comparison.{md,html}, by default of `results`, which compares the runs of two folders.

    Returns its summary and the page's path. precision and errors: see `write_report`. Writes nothing into `other`.
    """
    compared = compare.compare(load(results, scale, precision), load(other, scale, precision))
    names, out = ("comparison.md", "comparison.html"), out or results
    _write(out, scale, {name: render(f"{name}.jinja", comparison=compared).encode() for name in names})
    return compared.summary, out / scale / names[1]


def _write(results: Path, scale: str, files: Mapping[str, bytes]) -> None:
    """Write files into results/<scale>/, and delete files without content.

    Raises UserError if a link leads out of the results folder, and DiskError if writing fails.
    """
    folder, top = results / scale, os.path.realpath(results)
    for place in sorted({(folder / name).parent for name in files}):
        if os.path.commonpath([top, os.path.realpath(place)]) != top:
            raise UserError(f"{place}: is a link out of {results}, and no report is written there; remove the link")
    try:
        for name, content in files.items():
            path = folder / name
            if content:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"The report cannot be written to {folder} ({error.strerror}): make it writable.") from error

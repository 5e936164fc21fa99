"""The report: a pure function of the files in results/. Never imports torch."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from wnrepro.errors import DiskError, UserError
from wnrepro.report import compare, figures, tables
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import findings, rules
from wnrepro.report.latex import latex
from wnrepro.report.layout import hashes, markdown, media, page, render
from wnrepro.results import Results, check, load, scales_with_runs
from wnrepro.runs.directory import write_atomic

__all__ = ["check", "live_page", "rules", "scales_with_runs", "write_comparison", "write_report"]
COMPARISON = ("comparison.md", "comparison.html")


def write_report(
    results: Path,
    scale: str,
    precision: str | None = None,
    commands: Mapping[str, str] | None = None,
    export: bool = False,
) -> list[Path]:
    """Write report.md, report.html, tables/*.csv and figures/*.{png,pdf} into results/<scale>/; returns the first two.

    precision: of the runs that are judged; None: `load` chooses. commands: by claim, what computes its runs. export:
    latex/ too, and returns its report.tex. Everything is read and drawn before the first file is written. UserError
    if there are no runs, a file is malformed or a link leads out of `results`; DiskError if the folder cannot be
    written to.
    """
    folder = results / scale
    read, built, drawn, whole = _whole(results, scale, precision, commands)
    inner = ("", "tables", "figures", *(("latex", "latex/tables", "latex/figures") if export else ()))
    _stay_within(results, *(folder / name for name in inner))
    files: dict[Path, bytes] = {}  # empty: one that an earlier report has left goes
    for name, some in built.items():
        rows = [row for table in some for row in table.values]
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n") if rows else ""
        files[folder / "tables" / f"{name}.csv"] = text.encode()
    for name, suffix in itertools.product(figures.CAPTIONS, ("png", "pdf", "svg")):
        files[folder / "figures" / f"{name}.{suffix}"] = drawn[name].files.get(suffix, b"") if name in drawn else b""
    reports = [folder / "report.md", folder / "report.html"]
    files |= zip(reports, (markdown(whole).encode(), page(whole, media(read)).encode()), strict=True)
    if export:
        pdfs = {name: one.files["pdf"] for name, one in drawn.items()}
        files |= {folder / "latex" / name: content for name, content in latex(whole, built, pdfs).items()}
        reports.append(folder / "latex" / "report.tex")
    _write(folder, files)
    return reports


def live_page(
    version: str, results: Path, scale: str, precision: str | None = None, commands: Mapping[str, str] | None = None
) -> str:
    """The page as a server shows it, which asks for newer versions; nothing is written. UserError as `write_report`."""
    read, _, _, whole = _whole(results, scale, precision, commands, printed=False)
    return page(whole, media(read), live=version)


def _whole(
    results: Path, scale: str, precision: str | None, commands: Mapping[str, str] | None, printed: bool = True
) -> tuple[Results, dict[str, list[tables.Table]], dict[str, Drawn], tables.Report]:
    """What was read, its tables and figures, and the report."""
    read = load(results, scale, precision)
    found = findings(read)
    built, drawn = tables.build(read, found), figures.draw(read, found, printed)
    return read, built, drawn, tables.report(read, found, built, drawn, commands or {})


def write_comparison(results: Path, other: Path, scale: str, precision: str | None = None) -> tuple[list[str], Path]:
    """Write results/<scale>/comparison.{md,html}, of the runs of two folders; returns its summary and the page's path.

    precision and errors: as of `write_report`. Nothing is written into `other`.
    """
    compared = compare.compare(load(results, scale, precision), load(other, scale, precision))
    _stay_within(results, results / scale)
    texts = {name: render(f"{name}.jinja", comparison=compared, hashes=hashes()) for name in COMPARISON}
    _write(results / scale, {results / scale / name: text.encode() for name, text in texts.items()})
    return compared.summary, results / scale / COMPARISON[-1]


def _stay_within(results: Path, *places: Path) -> None:
    """UserError where one of these, in a foreign results folder, is a link that leads out of it."""
    top = os.path.realpath(results)
    for place in places:
        if os.path.commonpath([top, os.path.realpath(place)]) != top:
            raise UserError(f"{place} leads out of {results}, where nothing is written: move that link away.")


def _write(folder: Path, files: dict[Path, bytes]) -> None:
    """Write the report's files; one without content goes. DiskError where that fails."""
    try:
        for path, content in files.items():
            if content:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"The report cannot be written to {folder} ({error.strerror}): make it writable.") from error

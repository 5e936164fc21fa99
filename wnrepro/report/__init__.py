"""The report: a pure function of the files in results/. Never imports torch."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from wnrepro.errors import DiskError, UserError
from wnrepro.report import figures, tables
from wnrepro.report.claims import findings, rules
from wnrepro.report.layout import markdown, media, page
from wnrepro.results import check, load, scales_with_runs
from wnrepro.rundir import write_whole

__all__ = ["check", "rules", "scales_with_runs", "write_report"]


def write_report(
    results: Path, scale: str, precision: str | None = None, commands: Mapping[str, str] | None = None
) -> list[Path]:
    """Write report.md, report.html, tables/*.csv and figures/*.{png,pdf} into results/<scale>/; returns the first two.

    precision: of the runs that are judged; None: `load` chooses. commands: by claim, what computes its runs. Everything
    is read and drawn before the first file is written. UserError if there are no runs, a file is malformed or a link
    leads out of `results`; DiskError if the folder cannot be written to.
    """
    read = load(results, scale, precision)
    folder = results / scale
    top = os.path.realpath(results)
    for place in (folder, folder / "tables", folder / "figures"):  # in a foreign results folder it may be a link
        if os.path.commonpath([top, os.path.realpath(place)]) != top:
            raise UserError(f"{place} leads out of {results}, where nothing is written: move that link away.")
    found = findings(read)
    built, drawn = tables.build(read, found), figures.draw(read, found)
    whole = tables.report(read, found, built, drawn, commands or {})
    files: dict[Path, bytes] = {}  # empty: one that an earlier report has left goes
    for name, some in built.items():
        rows = [row for table in some for row in table.values]
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n") if rows else ""
        files[folder / "tables" / f"{name}.csv"] = text.encode()
    for name, suffix in itertools.product(figures.CAPTIONS, ("png", "pdf", "svg")):
        files[folder / "figures" / f"{name}.{suffix}"] = drawn[name].files.get(suffix, b"") if name in drawn else b""
    reports = [folder / "report.md", folder / "report.html"]
    files |= zip(reports, (markdown(whole).encode(), page(whole, media(read)).encode()), strict=True)
    try:
        for path, content in files.items():
            if content:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, content)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"The report cannot be written to {folder} ({error.strerror}): make it writable.") from error
    return reports

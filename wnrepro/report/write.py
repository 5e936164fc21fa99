"""Writes results/<scale>/report.md and report.html, tables and figures: a pure function of the run files."""

import os
from pathlib import Path

from wnrepro.errors import DiskError, UserError
from wnrepro.report import figures, tables
from wnrepro.report.claims import findings
from wnrepro.report.load import load, problems
from wnrepro.report.markdown import markdown
from wnrepro.report.page import page
from wnrepro.report.sections import CAPTIONS, report
from wnrepro.rundir import write_whole


def write_report(results: Path, scale: str) -> list[Path]:
    """Write report.md, report.html, tables/*.csv and figures/*.{png,svg} into results/<scale>/; returns the first two.

    Everything is read and drawn before the first file is written. UserError if there are no runs, a file is malformed
    or a link leads out of `results`; DiskError if the folder cannot be written to.
    """
    read = load(results, scale)
    _stays_inside(results, *(results / scale / name for name in ("", "tables", "figures")))
    found = findings(read)
    frames = {
        "claims": tables.claims(found),
        "table2": tables.table2(read),
        "variants": tables.variants(read),
        "bounds": tables.bounds(read),
        "draw_bounds": tables.draw_bounds(read),
        "table3": tables.table3(read),
        "interquartile_means": tables.interquartile_means(read),
        "step_time": tables.step_time(read),
        "floors": tables.floors(read),
        "settings": tables.settings(read),
        "runs": tables.provenance(read),
    }
    drawn = figures.draw(read)
    whole = report(read, found, frames, list(drawn), problems(read))
    images = {name: formats["svg"] for name, formats in drawn.items()}
    folder = results / scale
    reports = {folder / "report.md": markdown(whole), folder / "report.html": page(whole, images)}
    try:
        for name, frame in frames.items():
            path = folder / "tables" / f"{name}.csv"
            if len(frame):
                _write(path, frame.to_csv(index=False, lineterminator="\n").encode())
            else:
                path.unlink(missing_ok=True)  # of an earlier report
        for name, formats in drawn.items():
            for suffix, image in formats.items():
                _write(folder / "figures" / f"{name}.{suffix}", image)
        for name in CAPTIONS.keys() - drawn.keys():  # of an earlier report
            for suffix in ("png", "svg"):
                (folder / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
        for path, text in reports.items():
            _write(path, text.encode())
    except OSError as error:
        raise DiskError(f"The report cannot be written to {folder} ({error.strerror}): make it writable.") from error
    return list(reports)


def _stays_inside(results: Path, *folders: Path) -> None:
    """Raise UserError where one of these folders is elsewhere: in a foreign results folder it may be a link."""
    top = os.path.realpath(results)
    for folder in folders:
        if os.path.commonpath([top, os.path.realpath(folder)]) != top:
            raise UserError(f"{folder} leads out of {results}, where nothing is written: move that link away.")


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in a folder that may have to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)

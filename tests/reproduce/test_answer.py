"""The end of `reproduce`: the verdicts on the claims that its words name, their number, and the page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import make_draw, make_run
from rich.console import Console

from wnrepro.report.claims import findings
from wnrepro.reproduce.answer import answer
from wnrepro.results import load


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for param in ("normal", "wn"):
        make_draw(tmp_path, param, scale="short")
    make_run(tmp_path, "wn", scale="short")
    return tmp_path


def said(results: Path, words: list[str], write: bool) -> list[str]:
    lines: list[str] = []
    answer(Console(quiet=True), results, "short", words, None, write, lines.append)
    return lines


@pytest.mark.parametrize(
    ("words", "claims", "files"),
    [
        (["C10"], ["C10a", "C10b"], []),
        (["C10a"], ["C10a"], []),
        (["figure3"], ["C10a", "C10b"], []),  # no figure is drawn
        (["table2"], ["C4a", "C4b"], ["tables/table2.csv"]),
        (["draw"], [], []),
        ([], [], []),
    ],
)
def test_named_claims_have_their_verdict_and_all_are_counted(
    results: Path, text_only: None, words: list[str], claims: list[str], files: list[str]
) -> None:
    found, page = findings(load(results, "short")), results / "short/report.html"
    *lines, counts = (line for line in said(results, words, False) if not line.startswith("see "))
    assert [line.split()[0] for line in lines] == claims
    assert all(f"{name}  {found[name].verdict}" in line for name, line in zip(claims, lines, strict=True))
    sums: dict[str, int] = {}
    for part in counts.replace(";", ",").replace(":", ",").split(", "):
        number, _, verdict = part.partition(" ")
        sums[verdict] = sums.get(verdict, 0) + int(number)
    assert sums.pop("checks") + sums.pop("claims") == len(found) == sum(sums.values())
    assert sums == {verdict: [one.verdict for one in found.values()].count(verdict) for verdict in sums}
    opened = [line.removeprefix("see ") for line in said(results, words, False) if line.startswith("see ")]
    assert opened == [*(str(results / "short" / name) for name in files), str(page)] and page.exists()


def test_the_page_is_written_if_something_is_new_or_it_is_missing(results: Path, text_only: None) -> None:
    page, later = results / "short/report.html", 4e9
    said(results, [], False)
    os.utime(page, (later, later))
    said(results, [], False)
    assert page.stat().st_mtime == later
    said(results, [], True)
    assert page.stat().st_mtime < later
    os.utime(page, (1, 1))  # its runs are newer
    said(results, [], False)
    assert page.stat().st_mtime > 1


def test_without_runs_there_is_no_answer_and_no_torch(tmp_path: Path) -> None:
    assert said(tmp_path, ["C10"], True) == [] and not list(tmp_path.iterdir())
    code = "import sys, wnrepro.reproduce.answer, wnrepro.report\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

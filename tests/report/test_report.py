"""The whole report on made-up runs: every word of report.md, the other files, and what it refuses to write.

golden.md is report.md of `factories.make_everything`: `pytest tests/report/test_report.py --write-golden` writes it.
"""

import functools
import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from factories import make_run, make_vae, report_text, snapshot

from wnrepro.errors import UserError
from wnrepro.report import check, write_comparison, write_report
from wnrepro.report.canvas import Drawn
from wnrepro.report.layout import literal
from wnrepro.reproduce.grid import commands
from wnrepro.results import load

pytestmark = pytest.mark.usefixtures("made_up_scale")
GOLDEN = Path(__file__).with_name("golden.md")
PUBLISHED = Path(__file__).parents[2] / "results" / "published"


@pytest.mark.usefixtures("not_rendered")
def test_report_is_the_golden_one(everything: Path, request: pytest.FixtureRequest) -> None:
    paths = write_report(everything, "short", commands=commands("short"), export=True)
    assert [path.name for path in paths] == ["report.md", "report.html", "report.tex"]
    text = paths[0].read_text()
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert "nan" not in text and "inf " not in text
    assert len(check(everything, "short")) == 1 and "do not trust them" in text  # of the file that was edited
    names = {path.stem for path in (everything / "short" / "tables").iterdir()}
    assert names >= {"claims", "table2", "bounds", "draw_bounds", "table3", "step_time", "floors", "settings", "runs"}
    assert "published in this repository" in text and ", rule after the fact |" in text
    assert '<span class="badge rule-after-the-fact">' in paths[1].read_text()
    assert "published in" not in (everything / "short" / "tables" / "table2.csv").read_text()


def test_files_of_an_earlier_report_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "short"
    make_run(tmp_path)
    make_vae(tmp_path)
    own = [folder / name for name in ("figures/mine.svg", "latex/tables/mine.tex", "tables/mine.csv")]
    drawn = {"step_time": Drawn("A caption.", {"png": b"1", "pdf": b"2"}, [], [], False)}
    monkeypatch.setattr("wnrepro.report.figures.draw", lambda *given: drawn)
    write_report(tmp_path, "short", export=True)
    (folder / "figures" / "figure1.svg").write_text("<svg></svg>")  # of an earlier version
    for path in own:
        path.write_text("mine")
    gone = [folder / name for name in ("figures/step_time.png", "latex/figures/step_time.pdf", "tables/bounds.csv")]
    gone += [folder / "figures" / "figure1.svg", folder / "latex" / "tables" / "bounds.tex"]
    assert all(path.exists() for path in gone)
    monkeypatch.setattr("wnrepro.report.figures.draw", lambda *given: {})
    (folder / "cvae").rename(tmp_path / "moved")
    write_report(tmp_path, "short", export=True)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in own)


@pytest.mark.usefixtures("text_only")
@pytest.mark.parametrize("name", [".", "figures", "tables", "latex", "latex/tables", "latex/figures", "comparison"])
def test_nothing_is_written_through_a_link_out_of_the_results(tmp_path: Path, name: str) -> None:
    results, outside = tmp_path / "results", tmp_path / "outside"
    make_run(results)
    link = results / "short" / name.replace("comparison", ".")
    if link.is_dir():
        link.rename(outside)
    outside.mkdir(exist_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    before = snapshot(tmp_path)
    write: Any = write_comparison if name == "comparison" else functools.partial(write_report, export=True)
    with pytest.raises(UserError, match="link"):
        write(results, *[results] * (name == "comparison"), "short")
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("text_only")
def test_runs_that_are_not_judged_are_warned_of(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, precision="bf16")
    (note,) = load(tmp_path, "short").notes
    text = report_text(tmp_path)
    assert text.index(f"**{note}**") < text.index("## Claims") and "precision fp32." in text
    page = (tmp_path / "short" / "report.html").read_text()
    assert page.index(f"<p>{html.escape(note.partition('`')[0])}<code>") < page.index('<dl class="counts">')
    assert "precision bf16." in write_report(tmp_path, "short", precision="bf16")[0].read_text()


@pytest.mark.usefixtures("not_rendered")
def test_report_elsewhere_links_the_runs_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    results, out, told = tmp_path / "not UTF-8: \udcff" / "results", tmp_path / "out", list[str]()
    folder = make_run(results, seed=1)
    (make_run(results, "bn", seed=2) / "metrics.csv").write_text("\ufeffepoch\n")
    before = snapshot(results)
    own = {claim: f"{command} --results {results}" for claim, command in commands("short").items()}
    paths = write_report(results, "short", commands=own, out=out, warn=told.append)
    assert [path.parent for path in paths] == [out / "short"] * 2 and snapshot(results) == before
    assert len(told) == 1 and "bn_lr0.003/seed-2/metrics.csv" in told[0]
    text, page = (path.read_text() for path in paths)
    (sentence,) = load(results, "short").left_out
    assert text.index(f"- {literal(sentence)}\n") < text.index("## Claims") and html.escape(sentence) in page
    links = {unquote(link, errors="surrogateescape") for link in re.findall(r'href="(\.[^"]*/config\.json)"', page)}
    assert links and {(out / "short" / link).resolve() for link in links} == {folder / "config.json"}
    write_comparison(results, results, "short", out=out)
    assert snapshot(results) == before and (out / "short" / "comparison.html").is_file()


def test_published_reports_show_what_is_there() -> None:
    found = []
    for path in PUBLISHED.glob("*/report.md"):
        linked = set(re.findall(r"\]\((figures/[^)]+)\)", path.read_text()))
        there = {f"figures/{one.name}" for one in (path.parent / "figures").iterdir()}
        dark = {name for name in there if name.endswith("_dark.png")}  # of README and docs/results.md
        assert linked == there - dark and {name.replace("_dark", "") for name in dark} <= linked
        found.append((len(linked) > 10, len(dark)))
    assert (True, 5) in found

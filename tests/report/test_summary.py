"""The results of README.md and docs/: those committed are those of results/published, and made-up ones."""

import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from factories import (
    about,
    make_bench,
    make_dqn,
    make_draw,
    make_media,
    make_run,
    make_seeds,
    make_vae,
    make_vaes,
    snapshot,
)
from PIL import Image

from wnrepro.report import measured
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.claim import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    NOT_YET,
    REPRODUCED,
    VERDICTS,
)
from wnrepro.report.summary import END, START, Summary

TOP = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


def test_the_committed_results_are_those_of_the_published_runs() -> None:
    texts = Summary(TOP / "results" / "published", TOP).texts()
    assert {"README.md", "results.md", "performance.md", "draw.md"} <= {path.name for path in texts}
    for path, text in texts.items():
        assert path.read_text() == text, f"{path} is stale: run `make docs`"


@pytest.fixture
def clone(tmp_path: Path, made_up_scale: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A README with markers beside published runs, some with images; figures are an image of a pixel.

    No other page has a template.
    """
    monkeypatch.setattr(measured, "PAGES", tmp_path / "pages")
    published = tmp_path / "results" / "published"
    make_run(published)
    make_run(published, "normal", status="diverged", logged=2, lr=0.003)
    make_vaes(published)
    make_draw(published, g_start=1.0)
    make_dqn(published)
    make_media(published)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "evidence.md").touch()  # to which docs/results.md links
    (tmp_path / "README.md").write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe end.\n")
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    files = {"png": pixel.getvalue(), "dark": pixel.getvalue(), "pdf": b"%PDF-"}
    drawn = {name: Drawn("A caption.", files, [], [], False) for name in ("overview", "figure1", "figure2")}
    monkeypatch.setattr("wnrepro.report.figures.draw", lambda *given: drawn)
    return tmp_path


def test_readme_and_page_are_written(clone: Path, run: Run) -> None:
    options = ("report", "--published", "--readme", "--results", clone / "results")
    code, out, _ = run(*options)
    readme, page = clone / "README.md", clone / "docs" / "results.md"
    assert code == 0 and out.splitlines()[-2:] == [str(readme), str(page)]
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{START}\nAll 3 implementation checks pass.")
    assert text.endswith(f"{END}\n\nThe end.\n") and "old" not in text and "overview_dark.png" in text
    for path in (readme, page):
        links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', path.read_text())
        for link in (one or other for one, other in links):
            name, _, anchor = link.partition("#")
            assert (path.parent / name).exists()
            assert f'<a id="{anchor}">' in page.read_text() or not anchor
    assert all(f'<a id="{claim.id.lower()}"></a>**{claim.id}** ' in page.read_text() for claim in CLAIMS)
    assert (
        "wnrepro draw --param wn --g-start 1 --scale short\nwnrepro sample results/short/draw/wn_" in page.read_text()
    )
    before = snapshot(clone)
    assert run(*options)[0] == 0 and snapshot(clone) == before


@pytest.mark.parametrize("text", ["# No marker\n", f"{END}\n{START}\n", f"{START}\n", f"{START}\n{END}\n" * 2, None])
def test_without_markers_nothing_is_written(clone: Path, run: Run, text: str | None) -> None:
    (clone / "README.md").unlink() if text is None else (clone / "README.md").write_text(text)
    before = snapshot(clone)
    code, out, err = run("report", "--published", "--readme", "--results", clone / "results")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and snapshot(clone) == before


@pytest.mark.parametrize(
    "options",
    [[], ["--published", "--check"], ["--published", "--out", "there"], ["--published", "--scale", "short"]],
)
def test_readme_is_of_the_published_runs_as_a_whole(clone: Path, run: Run, options: list[str]) -> None:
    before = snapshot(clone)
    code, _, err = run("report", "--readme", *options, "--results", clone / "results")
    assert (code, len(err.splitlines())) == (2, 1) and "--readme" in err and snapshot(clone) == before


def given(results: Path, verdicts: dict[str, int], checks: dict[str, int] | None = None) -> Summary:
    """A summary of claims and checks with these numbers of verdicts."""
    made = Summary(results, results.parent)
    left = {False: Counter(verdicts), True: Counter(checks or {REPRODUCED: 3})}
    for id, one in made.found.items():
        verdict = next(iter(left[one.claim.check].elements()))
        left[one.claim.check][verdict] -= 1
        made.found[id] = one._replace(finding=replace(one.finding, verdict=verdict))
    return made


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ({REPRODUCED: 25}, "Of the paper's 25 claims, 25 are reproduced."),
        (
            {REPRODUCED: 1, NOT_REPRODUCED: 2, INCONCLUSIVE: 1, NOT_YET: 1, NOT_TESTABLE: 1, NOT_RUN: 19},
            "Of the paper's 25 claims, 1 is reproduced, 2 are not reproduced, 1 is inconclusive, "
            "1 has unfinished runs, 1 is not testable at scale `short` and 19 have not been run.",
        ),
        ({NOT_RUN: 25}, "None of the paper's 25 claims has a verdict yet: 25 have not been run."),
        (
            {NOT_YET: 24, NOT_RUN: 1},
            "None of the paper's 25 claims has a verdict yet: 24 have unfinished runs and 1 has not been run.",
        ),
    ],
)
def test_counts_read_well(clone: Path, verdicts: dict[str, int], sentence: str) -> None:
    made = given(clone / "results" / "published", verdicts)
    assert made.counts() == f"All 3 implementation checks pass. {sentence}"
    assert made.counts() in made.block() and made.counts() in made.page()


def test_checks_may_fail(clone: Path) -> None:
    checks = {REPRODUCED: 1, NOT_REPRODUCED: 1, INCONCLUSIVE: 1}
    made = given(clone / "results" / "published", {NOT_RUN: 25}, checks)
    assert made.counts().startswith("Of the 3 implementation checks, 1 passes, 1 fails and 1 is inconclusive. None of")
    assert "|1 pass, 1 fail, 1 inconclusive|" in made.block()


def test_every_verdict_has_its_cell(clone: Path) -> None:
    made = Summary(clone / "results" / "published", clone)
    cells = {}
    for verdict in VERDICTS:
        finding = replace(made.found["C5a"].finding, verdict=verdict, after_the_fact=True, holm=0.2)
        made.found["C5a"] = made.found["C5a"]._replace(finding=finding)
        (row,) = [line for line in made.page().splitlines() if 'id="c5a"' in line]
        cells[verdict] = row.strip("|").split("|")[-1]
    assert cells == {
        REPRODUCED: "reproduced, rule after the fact, not after Holm's correction",
        NOT_REPRODUCED: "not reproduced, rule after the fact, not after Holm's correction",
        INCONCLUSIVE: "inconclusive, rule after the fact",
        NOT_YET: "not testable yet",
        NOT_TESTABLE: "not testable",
        NOT_RUN: "not run",
    }


def test_the_paper_s_scale_comes_first_where_it_has_runs(clone: Path) -> None:
    published = clone / "results" / "published"
    sides = [{"param": "wn", "speed": about(1.6, 0.02)}, {"param": "normal"}]
    make_seeds(published, make_draw, (1, 2, 3), *sides)
    made = Summary(published, clone)
    found = made.found["C10a"]
    assert (found.scale, found.finding.verdict, made.found["C9a"].scale) == ("paper", REPRODUCED, "short")
    rows = {row.split("]")[0]: row for row in made.block().splitlines() if row.startswith("|[")}
    assert rows["|[C10a"].endswith("|3|reproduced|") and "(scale short)" not in rows["|[C10a"]
    assert "(scale short)" in rows["|[C9a"] and rows["|[C9a"].endswith("|not testable|")
    assert "1 is reproduced" in made.counts() and "not testable at scale `short`" in made.counts()


def test_numbers_are_short(clone: Path) -> None:
    published = clone / "results" / "published"
    for seed in (1, 2):
        make_run(published, "normal", seed=seed)
        make_bench(published, name=f"b{seed}", device="AMD EPYC" + ", 2 threads" * (seed > 1))
    make_vae(published, "wn", "cifar10", seed=4, bound=-9000.0)
    made = Summary(published, clone)
    cells = {row.ids[0]: (row.ours, row.n) for row in map(made._row, [[id] for id in made.found])}
    assert cells["C7b"] == ("step time +0.0 %; on AMD EPYC, 2 threads: +0.0 %", "1 session")
    assert cells["C6"] == ("diverged 100 % [2, 100]", "1") and cells["C8a"] == ("–", "0")
    assert re.fullmatch(r"mnist \+\d.*\]; cifar10 .*\]", cells["C9a"][0]) and cells["C9a"][1] == "3"

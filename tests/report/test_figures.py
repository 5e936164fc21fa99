"""The report's figures, of made-up runs: what they draw, within which limits; golden.md has what they say of it.

golden_figures.txt describes those of `factories.make_everything`: `--write-golden` writes it anew.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from factories import edit, make_dqn, make_draw, make_run, make_vae
from matplotlib.markers import CARETLEFT, CARETRIGHT

from wnrepro.report import declared, figures
from wnrepro.report.canvas import STYLE, Sheet
from wnrepro.report.claims import findings
from wnrepro.results import Results, load

pytestmark = pytest.mark.usefixtures("made_up_scale")
GOLDEN = Path(__file__).with_name("golden_figures.txt")


@pytest.fixture(autouse=True)
def styled() -> Iterator[None]:
    with matplotlib.rc_context(fname=STYLE):
        yield


def sheet_of(name: str, results: Path | Results, scale: str = "short") -> Sheet:
    read = load(results, scale) if isinstance(results, Path) else results
    sheet = figures.sheets(name, read, {})
    assert sheet is not None
    return sheet


def drawn(results: Path) -> set[str]:
    """The figures that there are."""
    read = load(results, "short")
    return {name for name in declared.FIGURES if figures.sheets(name, read, findings(read), split=True)}


def legend(sheet: Sheet) -> list[str]:
    """The legend's entries, which in print are those of the page."""
    labels = [key.label for key in sheet.keys]
    assert [text.get_text() for legend in sheet.figures[0].legends for text in legend.get_texts()] == labels
    return labels


def described(name: str, sheet: Sheet) -> Iterator[str]:
    """A figure in lines of text: its legend and, of every panel, what is drawn, from where to where."""
    yield f"{name}: {'; '.join(legend(sheet))}"
    for title, axes in sheet.places.items():
        limits = " to ".join(f"({x:.4g}, {y:.4g})" for x, y in zip(axes.get_xlim(), axes.get_ylim(), strict=True))
        yield f"  {axes.get_title() or title!r}, {axes.get_xlabel()!r}, {axes.get_ylabel()!r}, {limits}"
        for line in axes.lines:
            style = f"{line.get_color()} {line.get_marker()} {line.get_markerfacecolor()} {line.get_linestyle()}"
            ends = " to ".join(f"({x:.4g}, {y:.4g})" for x, y in np.asarray(line.get_xydata(), float)[[0, -1]])
            yield f"    {style} {line.get_linewidth()} {line.get_alpha()}: {len(line.get_xdata())} points, {ends}"
        for of in axes.collections:
            yield f"    {type(of).__name__}: {len(of.get_paths())}"


def test_figures_are_the_golden_ones(read: Results, request: pytest.FixtureRequest) -> None:
    sheets = {name: figures.sheets(name, read, findings(read)) for name in declared.FIGURES}
    lines = [line.rstrip() for name, sheet in sheets.items() if sheet for line in described(name, sheet)]
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text("\n".join(lines))
    assert lines == GOLDEN.read_text().splitlines() and all(sheets.values())


def test_figures_of_diverged_and_hardly_begun_runs(tmp_path: Path) -> None:
    folder = make_vae(tmp_path, status="diverged", logged=3, bound=-1e6)
    edit(folder / "metrics.csv", "nan,-inf,nan,inf,nan", "nan,nan,nan,nan,nan")
    make_vae(tmp_path, "normal", status="running", logged=0)
    make_vae(tmp_path, "bn", status="running", logged=1)
    assert drawn(tmp_path) == {"figure2", "init"}
    for seed in (2, 3):  # one epoch of both is lost
        path = make_vae(tmp_path, seed=seed) / "metrics.csv"
        path.write_text(re.sub(r"\n5,[^\n]*", "\n5,7.5,nan,nan,inf,1,1", path.read_text()))
    assert drawn(tmp_path) == {"overview", "figure2", "bound_raw", "init"}
    assert legend(sheet_of("bound_raw", tmp_path))[-1] == "gaps: not finite in 2 runs"
    games = tmp_path / "games"
    make_dqn(games, status="running", logged=0)
    make_dqn(games, "normal", status="diverged", logged=1)
    make_dqn(games, "normal", "enduro", actors=4, epoch_steps=10**6)  # two settings changed: in no figure
    assert drawn(games) == {"figure4", "init"}  # its mean Q value has no number
    (make_dqn(games, "bn", "enduro", actors=4, epochs=3) / "games.csv").unlink()
    assert drawn(games) == {"figure4", "mean_q", "init"}
    draws = tmp_path / "draws"
    folder = make_draw(draws, "bn")
    edit(folder / "kl_steps.csv", "10,1,18.0", "10,1,inf")
    edit(folder / "kl_steps.csv", "10,2,14.0", "10,2,nan")
    make_draw(draws, "wn", status="running", logged=0)
    make_draw(draws, "normal", status="diverged", logged=1)
    assert drawn(draws) == {"overview", "figure3", "kl_steps"}


def test_many_variants_make_no_long_texts(tmp_path: Path) -> None:
    for i in range(25):
        make_draw(tmp_path, g_start=0.5 + i / 100)
        make_run(tmp_path, lr=0.001 + i / 10_000, epochs=8)
    read = load(tmp_path, "short")
    sheet = sheet_of("figure3", read)
    assert legend(sheet)[-1] == "and 5 more" and len(set(sheet.sentences[-1].split(", "))) <= 22
    assert len(sheet_of("learning_rates", read).axes[0].get_xticks()) <= 9


def test_an_interval_of_two_runs_is_cut_with_arrows(tmp_path: Path) -> None:
    for seed, bound in ((1, -157.0), (2, -173.0)):
        make_draw(tmp_path, "normal", seed=seed, bound=bound)
    make_draw(tmp_path, "wn", bound=-130.0)
    sheet = sheet_of("overview", tmp_path)
    arrows = [line for line in sheet.axes[0].lines if line.get_marker() in (CARETLEFT, CARETRIGHT)]
    ends = [float(np.asarray(line.get_xdata())[0]) for line in arrows]
    assert tuple(sorted(ends)) == sheet.axes[0].get_xlim() and ends[1] - ends[0] < 100
    assert legend(sheet) == ["the interval continues"]

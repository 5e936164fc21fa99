"""The report's figures, of made-up runs: what they draw, within which limits; golden.md has what they say of it.

golden_figures.txt describes those of `factories.make_everything`: `--write-golden` writes it anew.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from factories import edit, make_dqn, make_draw, make_run, make_vae
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from wnrepro import paper
from wnrepro.report import declared, figures
from wnrepro.report.canvas import LOOKS, STYLE, Sheet
from wnrepro.report.claims import findings
from wnrepro.report.claims.claim import Finding
from wnrepro.report.claims.identities import INIT_MEAN, INIT_VARIANCE
from wnrepro.report.stats import Estimate
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
    if not sheet.split:
        printed = [text.get_text() for legend in sheet.figures[0].legends for text in legend.get_texts()]
        assert printed == labels
    return labels


def only(sheet: Sheet) -> Axes:
    (axes,) = sheet.axes
    return axes


def is_curve(line: Line2D) -> bool:
    """It is no sign, rule or end of an error bar."""
    return len(line.get_xdata()) > 2 and line.get_linestyle() != "None"


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


def test_what_is_said_is_where_the_thick_lines_end(read: Results) -> None:
    ends = 0
    for name in (name for name, about in declared.FIGURES.items() if about.parts and name != "kl_steps"):
        sheet = sheet_of(name, read)
        for title, axes in sheet.places.items():
            names = {"CIFAR-10": "test_bits_per_dim", "MNIST: wn − normal": "difference"}
            part = next(part for part in declared.FIGURES[name].parts if part in read.parts)
            result = declared.model_of(read.parts[part].runs[0]).result
            column = declared.column(names.get(title, declared.FIGURES[name].column or result))
            for line in axes.lines:
                if is_curve(line) and line.get_linewidth() >= 1.2 and str(line.get_gid()) in sheet.marks:
                    end = np.asarray(line.get_ydata())[-1]
                    assert not math.isfinite(end) or column.format(float(end)) in sheet.sentences[-1], (name, title)
                    ends += 1
    assert ends > 30


def test_test_errors_of_the_paper_are_marks(tmp_path: Path) -> None:
    for param in ("wn", "wn+mobn"):
        make_run(tmp_path, param, scale="paper", test_error=0.08)
    sheet = sheet_of("test_error", tmp_path, "paper")
    stars = [line for line in only(sheet).lines if line.get_marker() == "*"]
    assert [(*map(float, (*star.get_xdata(), *star.get_ydata())), star.get_color()) for star in stars] == [
        (200, paper.TABLE2[param] / 100, LOOKS[param].colour) for param in ("wn", "wn+mobn")
    ]
    assert only(sheet).get_ylim()[0] < 0.0731 and "the paper's value" in legend(sheet)


def test_the_axis_of_a_bound_fits_normal_and_wn(tmp_path: Path) -> None:
    make_vae(tmp_path, "wn", bound=-84.0)
    make_vae(tmp_path, "normal", bound=-84.2)
    limits = sheet_of("figure2", tmp_path).axes[0].get_ylim()
    make_vae(tmp_path, "bn", bound=-150.0)
    sheet = sheet_of("figure2", tmp_path)
    assert sheet.axes[0].get_ylim() == limits and "ends below" in legend(sheet)
    (mark,) = [line for line in sheet.axes[0].lines if line.get_marker() == "v"]
    assert (mark.get_color(), float(mark.get_ydata()[0])) == (LOOKS["bn"].colour, limits[0])
    assert "The y axis fits epoch 7 and later of normal and weight normalization." in sheet.sentences


def test_figures_of_diverged_and_hardly_begun_runs(tmp_path: Path) -> None:
    folder = make_vae(tmp_path, status="diverged", logged=3, bound=-1e6)
    edit(folder / "metrics.csv", "nan,-inf,nan,inf,nan", "nan,nan,nan,nan,nan")
    make_vae(tmp_path, "normal", status="running", logged=0)
    make_vae(tmp_path, "bn", status="running", logged=1)
    assert drawn(tmp_path) == {"figure2", "init"}
    for seed in (2, 3):  # one epoch of both is lost
        path = make_vae(tmp_path, seed=seed) / "metrics.csv"
        lines = path.read_text().splitlines()
        lines[5] = "5,7.5,nan,nan,inf,1,1"
        path.write_text("\n".join(lines) + "\n")
    assert drawn(tmp_path) == {"overview", "figure2", "bound_raw", "init"}
    assert legend(sheet_of("bound_raw", tmp_path))[-1] == "gaps: not finite in 2 runs"
    games = tmp_path / "games"
    make_dqn(games, status="running", logged=0)
    make_dqn(games, "normal", status="diverged", logged=1)
    make_dqn(games, "normal", "enduro", actors=4, epoch_steps=10**6)  # two settings changed: in no figure
    assert drawn(games) == {"figure4", "init"}  # its mean Q value has no number
    (make_dqn(games, "bn", "enduro", actors=4, epochs=3) / "games.csv").unlink()
    assert drawn(games) == {"figure4", "mean_q", "init"}


def test_numbers_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    folder = make_draw(tmp_path, "bn")
    edit(folder / "kl_steps.csv", "10,1,18.0", "10,1,inf")
    edit(folder / "kl_steps.csv", "10,2,14.0", "10,2,nan")
    edit(folder / "metrics.csv", "10,60.5,-91.5,-92.0", "10,60.5,-91.5,nan")
    make_draw(tmp_path, "wn", status="running", logged=0)
    make_draw(tmp_path, "normal", status="diverged", logged=1)
    assert drawn(tmp_path) == {"overview", "figure3", "kl_steps"}
    assert legend(sheet_of("figure3", tmp_path))[-1] == "gaps: not finite in 2 runs"


def dots(axes: Axes) -> dict[tuple[str, int], float]:
    """Of the figure of the init: what it shows by parameterization and row."""
    lines = [line for line in axes.lines if line.get_linestyle() == "None"]
    found = [(line.get_color(), round(y), x) for line in lines for x, y in np.asarray(line.get_xydata()) if x == x]
    names = {look.colour: param for param, look in LOOKS.items()}
    return {(names[colour], row): float(x) for colour, row, x in found}


def test_figure_of_the_init(tmp_path: Path) -> None:
    make_vae(tmp_path)
    folder = make_run(tmp_path, "bn")
    edit(folder / "init.csv", "0,conv1,1e-06,0.9999,1.0001", "0,conv1,0.002,0.9,1.05")
    for seed, better in ((2, 0.0), (3, 1e-5)):
        path = make_run(tmp_path, "wn", seed=seed) / "init.csv"
        path.write_text(path.read_text().replace("1e-06,0.9999,1.0001", f"{better},1.0,1.0"))
    sheet = sheet_of("init", tmp_path)
    means, variances = sheet.axes
    for axes, limit in zip(sheet.axes, (INIT_MEAN, INIT_VARIANCE), strict=True):
        assert axes.get_ylim() == (1.5, -0.5) and axes.get_xscale() == "log"
        assert list(axes.lines[-1].get_xdata()) == [limit, limit]
        (beyond,) = axes.patches  # grey, as far as the axis goes
        assert (beyond.get_x(), beyond.get_x() + beyond.get_width()) == pytest.approx((limit, axes.get_xlim()[1]))
    assert [label.get_text() for label in means.get_yticklabels()] == ["cifar", "cvae mnist"]
    assert dots(means) == {("bn", 0): 0.002, ("wn", 0): 1e-5, ("wn", 1): 1e-6}  # the worst layer of the worst run
    assert dots(variances) == pytest.approx({("bn", 0): 0.1, ("wn", 0): 1e-9, ("wn", 1): 1e-4})  # 0 is at 1e-9
    edit(folder / "init.csv", "0,conv3,1e-06", "0,conv3,nan")
    spoilt = sheet_of("init", tmp_path)
    assert dots(spoilt.axes[0]) == {("wn", 0): 1e-5, ("wn", 1): 1e-6}
    assert legend(spoilt)[-1] == "gaps: not finite in 1 run" and spoilt.sentences[0] == "Largest |mean|: 1.0e−05."


def test_figure_of_variants_shows_the_intervals_that_decide() -> None:
    assert figures.variants({}) is None and figures.variants({"C15": Finding("not run", "")}) is None
    found: dict[str, list[Any]] = {
        "C15": [
            Estimate("c = 1", 0.01, -0.02, 0.04, 5, margin=(-0.05, 0.05)),
            Estimate("c = 3", math.nan, n=1),
            Estimate("c = 5 diverged", 0.5, 0.1, 0.9, 2),
        ],
        "C16b": [Estimate("", -0.01, -0.03, 0.01, 3, margin=(0.0,))],
    }
    sheet = figures.variants({claim: Finding("inconclusive", "", estimates=tuple(of)) for claim, of in found.items()})
    assert sheet is not None
    errors, bounded = sheet.axes
    assert [label.get_text() for label in errors.get_yticklabels()] == ["c = 1 (n = 5)", "c = 3 (n = 1, not finite)"]
    assert [label.get_text() for label in bounded.get_yticklabels()] == ["(n = 3)"]
    points = [line.get_xydata()[0].tolist() for line in errors.lines if line.get_marker() == "o"]
    assert points[0] == [0.01, 0] and math.isnan(points[1][0])
    bars, *margins = [of.get_segments() for of in errors.collections if len(of.get_segments())]
    assert np.ravel(bars[0]).tolist() == pytest.approx([-0.02, 0, 0.04, 0])
    assert {float(segment[0][0]) for of in margins for segment in of} == {-0.05, 0.05}
    assert errors.xaxis.get_major_formatter()(-0.05) == "−5 %"


def test_the_overview_has_every_result_with_its_interval(tmp_path: Path) -> None:
    for param, ends in {"wn": [-80.0, -81.0, -85.0], "normal": [-90.0]}.items():
        for seed, bound in enumerate(ends, start=1):
            make_draw(tmp_path, param, seed=seed, bound=bound)
    make_draw(tmp_path, "bn", status="running", logged=3)
    make_draw(tmp_path, "wn+mobn", status="diverged", logged=3)
    make_dqn(tmp_path, "wn", "breakout", best=70.0)
    sheet = sheet_of("overview", tmp_path)
    draw, dqn = sheet.axes
    assert [axes.get_title() for axes in sheet.axes] == ["DRAW", "DQN, Breakout"]
    assert [label.get_text() for label in draw.get_yticklabels()] == ["normal (n = 1)", "wn (n = 3)"]
    runs = [run for run in load(tmp_path, "short").of("draw").runs if run.param == "wn"]
    values = [run.metrics["test_bound_nats"].iloc[-1] for run in runs]
    middle, reach = np.mean(values), 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)
    (bar,) = [segment for of in draw.collections for segment in of.get_segments()]  # a single run has no interval
    assert bar == pytest.approx(np.array([[middle - reach, 1], [middle + reach, 1]]))
    seeds = [mark for mark in sheet.marks.values() if mark.seed]
    assert [mark.name for mark in seeds] == [f"draw/wn_lr0.0003/seed-{seed}" for seed in (1, 2, 3)]
    assert sorted(mark.points[0][:2] for mark in seeds) == [(pytest.approx(value), 1) for value in sorted(values)]
    assert [line.get_xydata()[0].tolist() for line in dqn.lines] == [[70.0, 0.0]]  # its best epoch, not its last


def test_many_variants_make_no_long_texts(tmp_path: Path) -> None:
    for i in range(25):
        make_draw(tmp_path, g_start=0.5 + i / 100)
        make_run(tmp_path, lr=0.001 + i / 10_000, epochs=8)
    read = load(tmp_path, "short")
    sheet = sheet_of("figure3", read)
    assert legend(sheet)[-1] == "and 5 more" and len(set(sheet.sentences[-1].split(", "))) <= 22
    assert len(sheet_of("learning_rates", read).axes[0].get_xticks()) <= 9

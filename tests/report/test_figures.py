"""The report's figures, of made-up runs: what they draw, within which limits; golden.md has what they say of it."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from factories import edit, make_bench, make_dqn, make_dqns, make_draw, make_draws, make_run, make_vae, make_vaes
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from wnrepro import paper
from wnrepro.report import declared, figures
from wnrepro.report.canvas import GREY, LOOKS, STYLE, Sheet
from wnrepro.report.claims import findings
from wnrepro.report.claims.claim import Finding
from wnrepro.report.claims.identities import INIT_LOSS, INIT_MEAN, INIT_VARIANCE
from wnrepro.report.stats import Estimate
from wnrepro.results import Results, load

pytestmark = pytest.mark.usefixtures("made_up_scale")


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
                    assert not math.isfinite(end) or column.write(float(end)) in sheet.said[-1], (name, title)
                    ends += 1
    assert ends > 30


def test_figures_of_the_classifier(read: Results) -> None:
    error = sheet_of("figure1", read)
    assert legend(error)[:2] == ["normal, lr 0.0003 (n = 2)", "batch norm., lr 0.003 (n = 2)"]
    assert only(error).yaxis.get_major_formatter()(0.001) == "0.1 %"
    assert "from epoch 4 on the learning rate falls" in legend(error)
    tests = sheet_of("test_error", read)
    values = [run.metrics["test_error"].iloc[4:] for run in read.of("cifar").figure1]
    low, high = only(tests).get_ylim()
    assert low < min(map(min, values)) and max(map(max, values)) < high < 0.5  # the later half: no longer 0.9
    assert "the paper's value" not in legend(tests)
    growth = sheet_of("norm_growth", read)
    thick = [line for line in only(growth).lines if line.get_linewidth() == 1.8 and len(line.get_ydata()) == 9]
    assert len(thick) == 6 and all(line.get_ydata()[0] == 1 for line in thick)
    faintest, *_, fullest = sorted(line.get_alpha() for line in thick)
    assert 0.2 < faintest < 0.5 and fullest == 1


def test_test_errors_of_the_paper_are_marks(tmp_path: Path) -> None:
    for param in ("wn", "wn+mobn"):
        make_run(tmp_path, param, scale="paper", test_error=0.08)
    sheet = sheet_of("test_error", tmp_path, "paper")
    stars = [line for line in only(sheet).lines if line.get_marker() == "*"]
    assert [(*map(float, (*star.get_xdata(), *star.get_ydata())), star.get_color()) for star in stars] == [
        (200, paper.TABLE2[param] / 100, LOOKS[param].colour) for param in ("wn", "wn+mobn")
    ]
    assert only(sheet).get_ylim()[0] < 0.0731 and "the paper's value" in legend(sheet)


@pytest.mark.parametrize(("epochs", "marker"), [(9, "o"), (10, "")])
def test_curves_of_few_points_have_markers(tmp_path: Path, epochs: int, marker: str) -> None:
    make_vae(tmp_path, epochs=epochs)
    assert {line.get_marker() for line in only(sheet_of("bound_raw", tmp_path)).lines} == {marker}


def test_figures_of_the_vaes(tmp_path: Path) -> None:
    make_vaes(tmp_path)
    sheet = sheet_of("figure2", tmp_path)
    mnist, cifar10, below = sheet.axes
    assert [axes.get_title() for axes in sheet.axes] == ["MNIST", "CIFAR-10", "MNIST: wn − normal"]
    low, high = mnist.get_ylim()
    assert -100 < low < -84 < high < -80  # the epochs that are far below are cut off
    assert cifar10.yaxis_inverted() and "bits per dim" in cifar10.get_ylabel()
    assert legend(sheet) == [
        *("normal (n = 3 each)", "batch norm.", "weight norm. (n = 3 each)", "weight norm., less normal (n = 3)"),
        *("weight norm. + mean-only b.n.", "diverged", "not finished"),
    ]
    *thin, mean = [line.get_ydata() for line in below.lines if len(line.get_xdata()) == 120]
    assert [float(line[-1]) for line in thin] == pytest.approx([2, 2 - 1.1, 2 + 1.1]) and mean[-1] == pytest.approx(2)
    assert below.get_ylim()[0] <= 0 and any(set(line.get_ydata()) == {0} for line in below.lines)
    assert len(only(sheet_of("bound_raw", tmp_path)).lines) == 4
    make_vae(tmp_path, scale="quick")
    assert only(sheet_of("figure2", tmp_path, "quick")).get_title() == "bundled images in place of MNIST"


def test_the_axis_of_a_bound_fits_normal_and_wn(tmp_path: Path) -> None:
    make_vae(tmp_path, "wn", bound=-84.0)
    make_vae(tmp_path, "normal", bound=-84.2)
    limits = sheet_of("figure2", tmp_path).axes[0].get_ylim()
    make_vae(tmp_path, "bn", bound=-150.0)
    sheet = sheet_of("figure2", tmp_path)
    assert sheet.axes[0].get_ylim() == limits and "ends below" in legend(sheet)
    (mark,) = [line for line in sheet.axes[0].lines if line.get_marker() == "v"]
    assert (mark.get_color(), float(mark.get_ydata()[0])) == (LOOKS["bn"].colour, limits[0])
    assert "The y axis fits epoch 7 and later of normal and weight normalization." in sheet.said


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


def test_figures_of_draw(tmp_path: Path) -> None:
    make_draws(tmp_path)
    make_draw(tmp_path, "wn", seed=4, epochs=5, kl=4.0)
    for seed in (1, 2):
        make_draw(tmp_path, "wn", seed=seed, bound=-87.0, g_start=1.0)
    sheet = sheet_of("figure3", tmp_path)
    low, high = only(sheet).get_ylim()
    assert -151 < low < -140.1 and -89.5 < high < -85  # from normal's second epoch on; not bn's −212
    names = ["normal (n = 3)", "batch norm. (n = 2)", "weight norm. (n = 4)"]
    assert legend(sheet)[:4] == [*names, "weight norm., g = 1 at the start (n = 2)"]
    assert [line.get_linestyle() for line in only(sheet).lines].count(":") == 3
    steps = sheet_of("kl_steps", tmp_path)
    assert "weight norm. (n = 4)" in legend(steps) and only(steps).get_xlabel() == "time step, after epoch 5 or 10"
    ends = pytest.approx([15.75, 12.25, 11.0833, 10.5], abs=1e-3)
    means = [line for line in only(steps).lines if list(line.get_ydata()) == ends]
    assert [list(line.get_xdata()) for line in means] == [[1, 2, 3, 4]]
    assert 18 < only(steps).get_ylim()[1] < 20  # not bn's 810
    make_draw(tmp_path, "wn+mobn", seed=2, bound=-70.0)  # better than what the paper shows
    best = only(sheet_of("figure3", tmp_path))
    assert low - 1 < best.get_ylim()[0] <= low and best.get_ylim()[1] > -82


def test_numbers_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    folder = make_draw(tmp_path, "bn")
    edit(folder / "kl_steps.csv", "10,1,18.0", "10,1,inf")
    edit(folder / "kl_steps.csv", "10,2,14.0", "10,2,nan")
    edit(folder / "metrics.csv", "10,60.5,-91.5,-92.0", "10,60.5,-91.5,nan")
    make_draw(tmp_path, "wn", status="running", logged=0)
    make_draw(tmp_path, "normal", status="diverged", logged=1)
    assert drawn(tmp_path) == {"overview", "figure3", "kl_steps"}
    assert legend(sheet_of("figure3", tmp_path))[-1] == "gaps: not finite in 2 runs"


def test_figures_of_dqn(tmp_path: Path) -> None:
    make_dqns(tmp_path, ("breakout", "seaquest", "space_invaders"))
    for seed in (1, 2):
        make_dqn(tmp_path, "wn", "seaquest", seed=seed, best=90.0, actors=8)
    make_dqn(tmp_path, "bn", "breakout", seed=2)
    sheet = sheet_of("figure4", tmp_path)
    assert [axes.get_title() for axes in sheet.axes] == ["Space Invaders", "Breakout", "Seaquest"]
    assert legend(sheet) == [
        *("normal (n = 3 each)", "batch norm. (n = 1 Breakout)", "weight norm. (n = 3 each)"),
        *("weight norm., 8 games in lock-step (n = 2)", "weight norm. + mean-only b.n.", "random play"),
        *("diverged", "not finished"),
    ]
    for axes, highest in zip(sheet.axes, (51, 51, 90), strict=True):
        low, high = axes.get_ylim()
        assert low < 10 and highest < high < 1.1 * highest  # not the diverged run's million
        assert any(list(line.get_ydata()) == [10.0, 10.0] and line.get_linestyle() == "--" for line in axes.lines)
        assert axes.xaxis.get_major_formatter()(3000) == "3 k" and axes.get_xlabel() == "agent steps"
        means = [line for line in axes.lines if list(line.get_ydata()) == pytest.approx([70 / 3, 110 / 3, 50, 30])]
        assert means and list(means[-1].get_xdata()) == [1000, 2000, 3000, 4000]
    assert "random play" not in legend(sheet_of("mean_q", tmp_path))


def dots(axes: Axes) -> dict[tuple[str, int], float]:
    """Of the figure of the init: what it shows by parameterization and row."""
    lines = [line for line in axes.lines if line.get_linestyle() == "None"]
    found = [(line.get_color(), round(y), x) for line in lines for x, y in line.get_xydata() if x == x]
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
    assert legend(spoilt)[-1] == "gaps: not finite in 1 run" and spoilt.said[0] == "Largest |mean|: 1.0e−05."


def test_figure_of_the_init_shows_how_far_the_losses_of_a_start_lie_apart(tmp_path: Path) -> None:
    for param, loss in {"normal": 2.0, "bn": 2.0, "wn": 2.0, "wn+mobn": 2.001}.items():
        make_run(tmp_path, param, facts={"init_loss": loss})
        make_run(tmp_path, param, seed=2, facts={"init_loss": 2.0})
        make_vae(tmp_path, param)
    sheet = sheet_of("init", tmp_path)
    (points, rule) = sheet.axes[2].lines
    assert points.get_xydata() == pytest.approx(np.array([[0.0005, 0], [1e-9, 1]]), rel=1e-3)  # the larger of two
    assert rule.get_xdata()[0] == INIT_LOSS and points.get_color() == GREY and legend(sheet)[-1] == "all four"


def test_the_noise_that_is_judged_is_hollow(tmp_path: Path) -> None:
    for param in ("bn", "wn+mobn"):
        make_run(tmp_path, param)
    sheet = sheet_of("noise_kurtosis", tmp_path)
    hollow = [line for line in sheet.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [round(float(line.get_ydata()[0]), 6) for line in hollow] == [1.5, -0.1]
    assert [axes.get_title() for axes in sheet.axes] == ["after epoch 1", "after epoch 8"]


def test_runs_that_diverged_stand_above_the_others(read: Results) -> None:
    sheet = sheet_of("learning_rates", read)
    (lost,) = [mark for mark in sheet.marks.values() if mark.points and "diverged" in mark.points[0][2]][:1]
    assert [words for _, _, words in lost.points] == ["lr 0.003, seed 1, diverged", "lr 0.01, seed 1, diverged"]
    assert {y for _, y, _ in lost.points} == {1.03}  # of the height of the axes


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


def test_step_times_by_device_and_version(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path, bn=1.1, name="a", device="GPU")
    make_bench(tmp_path, bn=1.2, name="b", device="GPU")
    make_bench(tmp_path, bn=1.3, name="c", device="GPU" * 99, torch="2.14.0")
    sheet = sheet_of("step_time", tmp_path)
    titles = [axes.get_title(loc="right") for axes in sheet.axes]
    assert titles[0] == "cifar (2 sessions), GPU, torch 2.13.0, fp32" and len(titles) == 6
    assert max(map(len, titles)) == 90 and "the paper's value" in legend(sheet)
    bn = [line for line in sheet.axes[0].lines if line.get_color() == LOOKS["bn"].colour and line.get_marker() == "^"]
    assert [float(line.get_xdata()[0]) for line in bn] == pytest.approx([0.1, 0.2])


def test_published_runs_are_drawn_beside_yours(tmp_path: Path) -> None:
    for results in (tmp_path / "mine", tmp_path / "theirs"):
        make_vae(results, "wn", bound=-84.0)
    make_vae(tmp_path / "theirs", "wn", seed=2, bound=-85.0)
    make_vae(tmp_path / "theirs", "bn", seed=2, bound=-86.0)
    make_vae(tmp_path / "theirs", "normal", status="running", logged=3)
    make_draw(tmp_path / "theirs")  # of what you have no run of
    mine, theirs = load(tmp_path / "mine", "short"), load(tmp_path / "theirs", "short")
    sheet = sheet_of("figure2", dataclasses.replace(mine, published=theirs))
    names = [f"{name}, published in this repository" for name in ("batch norm.", "weight norm.")]
    assert legend(sheet) == ["weight norm. (n = 1)", f"{names[0]} (n = 1)", f"{names[1]} (n = 2)"]
    others, line = [line for line in only(sheet).lines if line.get_linestyle() == "-."]
    assert line.get_color() == LOOKS["wn"].colour and line.get_ydata()[-1] == pytest.approx(-84.5)
    assert others.get_color() == LOOKS["bn"].colour and others.get_ydata()[-1] == pytest.approx(-86.0)
    for key, one in zip(sheet.keys[1:], (others, line), strict=True):
        assert key.line.get_linestyle() == "-." and key.line.get_color() == one.get_color()
        assert key.group == sheet.marks[str(one.get_gid())].group
    assert figures.sheets("figure3", dataclasses.replace(mine, published=theirs), {}) is None


def test_a_single_run_is_one_line_and_several_have_a_mean(tmp_path: Path) -> None:
    widths = []
    make_run(tmp_path, status="running", logged=4)
    for seed in (2, 3):
        make_run(tmp_path, seed=seed)
        sheet = sheet_of("figure1", tmp_path)
        widths.append(sorted(line.get_linewidth() for line in only(sheet).lines if is_curve(line)))
    assert widths == [[0.7, 1.8], [0.7, 0.7, 0.7, 1.8]]


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
    assert legend(sheet)[-1] == "and 5 more" and len(set(sheet.said[-1].split(", "))) <= 22
    assert len(sheet_of("learning_rates", read).axes[0].get_xticks()) <= 9

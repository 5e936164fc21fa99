"""The report's figures, of made-up runs: what they draw, within which limits, and what their captions say of it."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from factories import (
    edit,
    made_up_scale,  # noqa: F401
    make_all,
    make_bench,
    make_dqn,
    make_dqns,
    make_draw,
    make_draws,
    make_run,
    make_vae,
    make_vaes,
    not_rendered,  # noqa: F401
)
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from wnrepro import paper
from wnrepro.report import figures
from wnrepro.report.canvas import GREY, LOOKS, SIGNS, STYLE, Sheet
from wnrepro.report.claims import findings
from wnrepro.report.claims.claim import Finding
from wnrepro.report.claims.identities import INIT_LOSS, INIT_MEAN, INIT_VARIANCE
from wnrepro.report.figures import curves
from wnrepro.report.stats import Estimate
from wnrepro.results import Results, Run, load
from wnrepro.settings import PARAMS


@pytest.fixture(autouse=True)
def styled() -> Callable[[], None]:
    with matplotlib.rc_context(fname=STYLE):
        yield


def legend(sheet: Sheet | None) -> list[str]:
    """The legend's entries, which in print are those of the page."""
    assert sheet is not None
    labels = [key.label for key in sheet.keys]
    if not sheet.split:
        printed = [text.get_text() for legend in sheet.figures[0].legends for text in legend.get_texts()]
        assert printed == labels
    return labels


def caption(name: str, sheet: Sheet | None) -> str:
    assert sheet is not None
    return " ".join([figures.CAPTIONS[name], *sheet.said])


def only(sheet: Sheet | None) -> Axes:
    assert sheet is not None
    (axes,) = sheet.axes
    return axes


def test_one_colour_line_and_marker_a_parameterization() -> None:
    assert list(LOOKS) == list(PARAMS)
    assert [look[3:] for look in LOOKS.values()] == [
        ("#000000", (0, (5, 1.5)), "s"),
        ("#D55E00", (0, (1, 1)), "^"),
        ("#0072B2", "solid", "o"),
        ("#009E73", (0, (6, 1.5, 1, 1.5)), "D"),
    ]
    others = [f"x{i}" for i in range(13)]
    every = figures.looks({name: "same" for name in (*PARAMS, *others)})
    assert [every[param][3:] for param in PARAMS] == [look[3:] for look in LOOKS.values()]
    assert [look.place for look in every.values()] == list(range(17))
    for of in zip(*(every[name][3:] for name in (*PARAMS, *others[:6])), strict=True):
        assert len(set(of)) == 10 and not {*of} & SIGNS.keys()
    assert every["x6"][3:] == every["x12"][3:] == every["x0"][3:]


def test_files_are_the_same_twice(tmp_path: Path) -> None:
    make_draw(tmp_path)
    results = load(tmp_path, "short")
    first = figures.draw(results, {})
    assert set(first) == {"overview", "figure3", "kl_steps"} and first == figures.draw(results, {})
    for name, one in first.items():
        assert set(one.files) == {"png", "pdf"} and one.files["pdf"].startswith(b"%PDF-")
        assert one.files["png"].startswith(b"\x89PNG") and max(map(len, one.files.values())) < 200_000
        assert len(one.panels) == 1 and one.panels[0].startswith("<svg ") and one.panels[0].endswith("</svg>")
        assert [key[0] for key in one.keys] == (["weight norm. (n = 1)"] if name != "overview" else [])
        assert all(key[1].startswith("<svg ") for key in one.keys)
        assert not one.seeds  # a single run is one line
    assert figures.draw(results, {}, printed=False) == {name: one._replace(files={}) for name, one in first.items()}


@pytest.mark.usefixtures("not_rendered")
def test_figures_of_the_classifier(tmp_path: Path) -> None:
    make_all(tmp_path)
    results = load(tmp_path, "short")
    drawn = {
        "overview",
        "figure1",
        "test_error",
        "learning_rates",
        "norm_growth",
        "noise_kurtosis",
        "init",
        "step_time",
    }
    assert set(figures.draw(results, {})) == drawn and drawn <= figures.CAPTIONS.keys()
    errors = curves("figure1", results)
    error = only(errors)
    assert legend(errors)[:2] == ["normal, lr 0.0003 (n = 1)", "batch norm., lr 0.003 (n = 1)"]
    assert "the paper: 200 epochs" in caption("figure1", errors) and error.yaxis.get_major_formatter()(0.001) == "0.1 %"
    assert "from epoch 4 on the learning rate falls" in legend(errors)
    tests = curves("test_error", results)
    late = only(tests)
    values = [run.metrics["test_error"].iloc[4:] for run in results.of("cifar").figure1]
    low, high = late.get_ylim()
    assert low < min(map(min, values)) and max(map(max, values)) < high < 0.5  # the later half: no longer 0.9
    assert "The y axis fits epoch 5 and later." in caption("test_error", tests) and "y axis" not in caption(
        "figure1", errors
    )
    assert "the paper's value" not in legend(tests)
    growth = curves("norm_growth", results)
    assert legend(growth)[:2] == ["weight norm., lr 0.0003 (n = 1)", "weight norm., lr 0.001 (n = 1)"]
    lines = [line for line in only(growth).lines if len(line.get_ydata()) == 9]
    assert len(lines) == 5 and all(line.get_ydata()[0] == 1 for line in lines)  # a single run is drawn once
    faintest, *_, fullest = sorted(line.get_alpha() for line in lines if line.get_linewidth() == 1.8)
    assert 0.2 < faintest < 0.5 and fullest == 1


def test_test_errors_of_the_paper_are_marks(tmp_path: Path) -> None:
    for param in ("wn", "wn+mobn"):
        make_run(tmp_path, param, scale="paper", test_error=0.08)
    figure = curves("test_error", load(tmp_path, "paper"))
    axes = only(figure)
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [(*map(float, (*star.get_xdata(), *star.get_ydata())), star.get_color()) for star in stars] == [
        (200, paper.TABLE2[param] / 100, LOOKS[param].colour) for param in ("wn", "wn+mobn")
    ]
    assert all(star.get_markerfacecolor() == "none" for star in stars)
    assert axes.get_ylim()[0] < 0.0731 and "the paper's value" in legend(figure)


def test_curves_of_few_points_have_markers(tmp_path: Path) -> None:
    make_vae(tmp_path, epochs=9)
    assert {line.get_marker() for line in only(curves("bound_raw", load(tmp_path, "short"))).lines} == {"o"}
    make_vae(tmp_path / "more", epochs=10)
    more = only(curves("bound_raw", load(tmp_path / "more", "short"))).lines
    assert {line.get_marker() for line in more} == {""}


def test_figures_of_the_vaes(tmp_path: Path) -> None:
    make_vaes(tmp_path)
    results = load(tmp_path, "short")
    figure = curves("figure2", results)
    mnist, cifar10, below = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["MNIST", "CIFAR-10", "MNIST: wn − normal"]
    low, high = mnist.get_ylim()
    assert -100 < low < -84 < high < -80  # the epochs that are far below are cut off
    assert cifar10.yaxis_inverted() and "bits per dim" in cifar10.get_ylabel()
    assert legend(figure) == [
        "normal (n = 3 each)",
        "batch norm.",
        "weight norm. (n = 3 each)",
        "weight norm., less normal (n = 3)",
        "weight norm. + mean-only b.n.",
        "diverged",
        "not finished",
    ]
    assert "The y axis fits epoch 2 or 7 and later of normal and weight normalization." in caption("figure2", figure)
    *thin, mean = [line.get_ydata() for line in below.lines if len(line.get_xdata()) == 120]
    assert [float(line[-1]) for line in thin] == pytest.approx([2, 2 - 1.1, 2 + 1.1]) and mean[-1] == pytest.approx(2)
    assert below.get_ylim()[0] <= 0 and any(set(line.get_ydata()) == {0} for line in below.lines)
    raw = curves("bound_raw", results)
    assert len(only(raw).lines) == 4 and legend(raw)[2] == "weight norm., averaged (n = 3)"
    alone = load(tmp_path, "short").of("cvae", "cifar10")
    assert only(curves("figure2", alone)).get_title() == "CIFAR-10"
    make_vae(tmp_path, scale="quick")
    assert only(curves("figure2", load(tmp_path, "quick"))).get_title() == "bundled images in place of MNIST"


def test_the_axis_of_a_bound_fits_normal_and_wn(tmp_path: Path) -> None:
    make_vae(tmp_path, "wn", bound=-84.0)
    make_vae(tmp_path, "normal", bound=-84.2)
    results = load(tmp_path, "short")
    alone = curves("figure2", results)
    limits = only_first(alone).get_ylim()
    assert "The y axis fits epoch 7 and later." in caption("figure2", alone)  # normal and wn are all there is
    make_vae(tmp_path, "bn", bound=-150.0)
    results = load(tmp_path, "short")
    figure = curves("figure2", results)
    axes = only_first(figure)
    assert axes.get_ylim() == limits and "ends below" in legend(figure)
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert (mark.get_color(), float(mark.get_ydata()[0])) == (LOOKS["bn"].colour, limits[0])
    assert "The y axis fits epoch 7 and later of normal and weight normalization." in caption("figure2", figure)


def only_first(figure: Sheet | None) -> Axes:
    assert figure is not None
    return figure.axes[0]


@pytest.mark.usefixtures("not_rendered")
def test_figures_of_diverged_and_hardly_begun_vaes(tmp_path: Path) -> None:
    folder = make_vae(tmp_path, status="diverged", logged=3, bound=-1e6)
    edit(folder / "metrics.csv", "nan,-inf,nan,inf,nan", "nan,nan,nan,nan,nan")
    assert set(figures.draw(load(tmp_path, "short"), {})) == {"figure2", "init"}
    make_vae(tmp_path, "normal", status="running", logged=0)
    make_vae(tmp_path, "bn", status="running", logged=1)
    assert set(figures.draw(load(tmp_path, "short"), {})) == {"figure2", "init"}
    for seed in (2, 3):  # one epoch of both is lost
        path = make_vae(tmp_path, seed=seed) / "metrics.csv"
        lines = path.read_text().splitlines()
        lines[5] = "5,7.5,nan,nan,inf,1,1"
        path.write_text("\n".join(lines) + "\n")
    results = load(tmp_path, "short")
    assert set(figures.draw(results, {})) == {"overview", "figure2", "bound_raw", "init"}
    assert legend(curves("bound_raw", results))[-1] == "gaps: not finite in 2 runs"


def test_figures_of_draw(tmp_path: Path) -> None:
    make_draws(tmp_path)
    make_draw(tmp_path, "wn", seed=4, epochs=5, kl=4.0)
    results = load(tmp_path, "short")
    figure = curves("figure3", results)
    axes = only(figure)
    low, high = axes.get_ylim()
    assert -150 < low < -140.1 and -89.5 < high < -85  # from normal's second epoch on; not bn's −212
    assert axes.get_title() == "MNIST" and axes.get_ylabel() == "test bound (nats)"
    assert legend(figure) == [
        "normal (n = 3)",
        "batch norm. (n = 2)",
        "weight norm. (n = 4)",
        "weight norm. + mean-only b.n.",
        "diverged",
        "ends below",
    ]
    steps = curves("kl_steps", results)
    assert "weight norm. (n = 4)" in legend(steps) and only(steps).get_xlabel() == "time step, after epoch 5 or 10"
    means = [
        line
        for line in only(steps).lines
        if list(line.get_ydata()) == pytest.approx([15.75, 12.25, 11.0833, 10.5], abs=1e-3)
    ]
    assert [list(line.get_xdata()) for line in means] == [[1, 2, 3, 4]]
    assert 18 < only(steps).get_ylim()[1] < 20  # not bn's 810

    make_draw(tmp_path, "wn+mobn", seed=2, bound=-70.0)  # better than what the paper shows
    best = only(curves("figure3", load(tmp_path, "short")))
    assert low - 1 < best.get_ylim()[0] <= low and best.get_ylim()[1] > -82


def test_figures_of_draw_show_another_start_beside_the_standard_runs(tmp_path: Path) -> None:
    make_draw(tmp_path, "normal", bound=-80.0)
    make_draw(tmp_path, "wn", bound=-85.0)
    alone = legend(curves("figure3", load(tmp_path, "short")))
    for seed in (1, 2):
        make_draw(tmp_path, "wn", seed=seed, bound=-60.0, g_start=1.0)
    results = load(tmp_path, "short")
    assert alone == ["normal (n = 1)", "weight norm. (n = 1)"]
    for name in ("figure3", "kl_steps"):
        figure = curves(name, results)
        labels = legend(figure)
        assert len(labels) == 3 and "g = 1 at the start" in labels[2] and labels[2].endswith("(n = 2)")
        dotted = [line for line in only(figure).lines if line.get_linestyle() == ":"]
        assert len(dotted) >= 2 and max(max(line.get_ydata()) for line in dotted) < only(figure).get_ylim()[1]


@pytest.mark.usefixtures("not_rendered")
def test_figures_of_a_draw_whose_test_has_no_number(tmp_path: Path) -> None:
    folder = make_draw(tmp_path, "bn")
    edit(folder / "kl_steps.csv", "10,1,18.0", "10,1,inf")
    edit(folder / "kl_steps.csv", "10,2,14.0", "10,2,nan")
    edit(folder / "metrics.csv", "10,60.5,-91.5,-92.0", "10,60.5,-91.5,nan")
    make_draw(tmp_path, "wn", status="running", logged=0)
    make_draw(tmp_path, "normal", status="diverged", logged=1)
    results = load(tmp_path, "short")
    assert set(figures.draw(results, {})) == {"overview", "figure3", "kl_steps"}
    assert legend(curves("figure3", results))[-1] == "gaps: not finite in 2 runs"
    assert "n = " not in legend(curves("kl_steps", load(tmp_path, "short").of("draw")))[-1]


def test_figures_of_dqn(tmp_path: Path) -> None:
    make_dqns(tmp_path, ("breakout", "seaquest", "space_invaders"))
    for seed in (1, 2):
        make_dqn(tmp_path, "wn", "seaquest", seed=seed, best=90.0, actors=8)
    make_dqn(tmp_path, "bn", "breakout", seed=2)
    results = load(tmp_path, "short")
    figure = curves("figure4", results)
    assert [axes.get_title() for axes in figure.axes] == ["Space Invaders", "Breakout", "Seaquest"]
    assert legend(figure) == [
        "normal (n = 3 each)",
        "batch norm. (n = 1 Breakout)",
        "weight norm. (n = 3 each)",
        "weight norm., 8 games in lock-step (n = 2)",
        "weight norm. + mean-only b.n.",
        "random play",
        "diverged",
        "not finished",
    ]
    for axes, highest in zip(figure.axes, (51, 51, 90), strict=True):
        low, high = axes.get_ylim()
        assert low < 10 and highest < high < 1.1 * highest  # not the diverged run's million
        assert any(list(line.get_ydata()) == [10.0, 10.0] and line.get_linestyle() == "--" for line in axes.lines)
        assert axes.xaxis.get_major_formatter()(3000) == "3 k" and axes.get_xlabel() == "agent steps"
        means = [line for line in axes.lines if list(line.get_ydata()) == pytest.approx([70 / 3, 110 / 3, 50, 30])]
        assert means and list(means[-1].get_xdata()) == [1000, 2000, 3000, 4000]
    q = curves("mean_q", results)
    assert "random play" not in legend(q) and only_first(q).get_ylim()[1] < 1.1


@pytest.mark.usefixtures("not_rendered")
def test_figures_of_diverged_and_hardly_begun_dqns(tmp_path: Path) -> None:
    make_dqn(tmp_path, status="running", logged=0)
    assert set(figures.draw(load(tmp_path, "short"), {})) == {"init"}
    make_dqn(tmp_path, "normal", status="diverged", logged=1)
    assert set(figures.draw(load(tmp_path, "short"), {})) == {"figure4", "init"}  # its mean Q value has no number
    make_dqn(tmp_path, "normal", "enduro", actors=4, epoch_steps=10**6)  # two settings changed: in no figure
    folder = make_dqn(tmp_path, "bn", "enduro", actors=4, epochs=3)
    (folder / "games.csv").unlink()
    assert set(figures.draw(load(tmp_path, "short"), {})) == {"figure4", "mean_q", "init"}


def test_figure_of_the_init(tmp_path: Path) -> None:
    make_vae(tmp_path)
    folder = make_run(tmp_path, "bn")
    edit(folder / "init.csv", "0,conv1,1e-06,0.9999,1.0001", "0,conv1,0.002,0.9,1.05")
    edit(folder / "init.csv", "0,conv2,1e-06,0.9999,1.0001", "0,conv2,0.0,1.0,1.0")
    for seed, better in ((2, 0.0), (3, 1e-5)):
        path = make_run(tmp_path, "wn", seed=seed) / "init.csv"
        path.write_text(path.read_text().replace("1e-06,0.9999,1.0001", f"{better},1.0,1.0"))
    sheet = figures.init(load(tmp_path, "short"))
    means, variances = sheet.axes
    for axes, limit in zip(sheet.axes, (INIT_MEAN, INIT_VARIANCE), strict=True):
        assert axes.get_ylim() == (1.5, -0.5) and axes.get_xscale() == "log"
        rule = axes.lines[-1]
        assert list(rule.get_xdata()) == [limit, limit] and rule.get_linestyle() == "--"
        (beyond,) = axes.patches  # grey, as far as the axis goes
        assert (beyond.get_x(), beyond.get_x() + beyond.get_width()) == pytest.approx((limit, axes.get_xlim()[1]))
        assert matplotlib.colors.to_hex(beyond.get_facecolor()) == "#dddddd"
    assert [label.get_text() for label in means.get_yticklabels()] == ["cifar", "cvae mnist"]
    assert [label.get_text() for label in variances.get_yticklabels()] == ["", ""]  # the left ones are of all
    assert means.xaxis.get_major_formatter()(1e-6) == "10⁻⁶"

    def dots(axes: Axes) -> dict[tuple[str, int], float]:
        lines = [line for line in axes.lines if line.get_linestyle() == "None"]
        found = [(line.get_color(), round(y), x) for line in lines for x, y in line.get_xydata() if x == x]
        names = {look.colour: param for param, look in LOOKS.items()}
        return {(names[colour], row): float(x) for colour, row, x in found}

    assert dots(means) == {("bn", 0): 0.002, ("wn", 0): 1e-5, ("wn", 1): 1e-6}  # the worst layer of the worst run
    assert dots(variances) == pytest.approx({("bn", 0): 0.1, ("wn", 0): 1e-9, ("wn", 1): 1e-4})  # 0 is at 1e-9
    assert sheet.said == ["Largest |mean|: 2.0e−03.", "Largest |variance − 1|: 1.0e−01."]
    assert legend(sheet) == ["batch norm.", "weight norm.", "limit of the rule"]
    words = [point[2] for mark in sheet.marks.values() if mark.artist.axes is means for point in mark.points]
    assert words == [
        "cifar, bn: 2.0e−03 (n = 1)",
        "cifar, wn: 1.0e−05 (n = 2)",
        "cvae mnist, wn: 1.0e−06 (n = 1)",
    ]
    edit(folder / "init.csv", "0,conv3,1e-06", "0,conv3,nan")
    spoilt = figures.init(load(tmp_path, "short"))
    assert dots(spoilt.axes[0]) == {("wn", 0): 1e-5, ("wn", 1): 1e-6}
    assert legend(spoilt)[-1] == "gaps: not finite in 1 run" and spoilt.said[0] == "Largest |mean|: 1.0e−05."


def test_figure_of_the_init_shows_how_far_the_losses_of_a_start_lie_apart(tmp_path: Path) -> None:
    losses = {"normal": 2.0, "bn": 2.0, "wn": 2.0, "wn+mobn": 2.001}
    for param, loss in losses.items():
        make_run(tmp_path, param, facts={"init_loss": loss})
        make_run(tmp_path, param, seed=2, facts={"init_loss": 2.0})
        make_vae(tmp_path, param)
    sheet = figures.init(load(tmp_path, "short"))
    assert [axes.get_title() for axes in sheet.axes][2] == "spread of the initial losses"
    (dots, rule) = sheet.axes[2].lines
    assert dots.get_xydata() == pytest.approx(np.array([[0.0005, 0], [1e-9, 1]]), rel=1e-3)  # the larger of two starts
    assert rule.get_xdata()[0] == INIT_LOSS and dots.get_color() == GREY and legend(sheet)[-1] == "all four"
    assert sheet.said[2] == "Largest spread of the initial losses: 5.0e−04."


def test_the_noise_that_is_judged_is_hollow(tmp_path: Path) -> None:
    for param in ("bn", "wn+mobn"):
        make_run(tmp_path, param)
    figure = figures.noise_kurtosis(load(tmp_path, "short"))
    assert legend(figure)[-1] == "judged: bn's 1/σ, mean-only's μ"
    hollow = [line for line in only_first(figure).lines if line.get_markerfacecolor() == "white"]
    assert [round(float(line.get_ydata()[0]), 6) for line in hollow] == [1.5, -0.1]
    assert [axes.get_title() for axes in figure.axes] == ["after epoch 1", "after epoch 8"]


def test_figure_of_variants_shows_the_intervals_that_decide() -> None:
    assert figures.variants({}) is None and figures.variants({"C15": Finding("not run", "")}) is None
    found = {
        "C15": [
            Estimate("c = 1", 0.01, -0.02, 0.04, 5, margin=(-0.05, 0.05)),
            Estimate("c = 3", math.nan, n=1),
            Estimate("c = 5", 0.03, n=1, margin=(-0.05, 0.05)),
            Estimate("c = 5 diverged", 0.5, 0.1, 0.9, 2),
        ],
        "C16b": [Estimate("", -0.01, -0.03, 0.01, 3, margin=(0.0,))],
    }
    figure = figures.variants({claim: Finding("inconclusive", "", estimates=tuple(of)) for claim, of in found.items()})
    assert figure is not None
    errors, bounded = figure.axes
    labels = [label.get_text() for label in errors.get_yticklabels()]
    assert labels == ["c = 1 (n = 5)", "c = 3 (n = 1, not finite)", "c = 5 (n = 1)"]
    assert [label.get_text() for label in bounded.get_yticklabels()] == ["(n = 3)"]
    points = [line.get_xydata()[0].tolist() for line in errors.lines if line.get_marker() == "o"]
    assert points[0] == [0.01, 0] and points[2] == [0.03, 2] and math.isnan(points[1][0])
    bars, *margins = [of.get_segments() for of in errors.collections if len(of.get_segments())]
    assert np.ravel(bars[0]).tolist() == pytest.approx([-0.02, 0, 0.04, 0])
    assert {float(segment[0][0]) for of in margins for segment in of} == {-0.05, 0.05}
    assert errors.xaxis.get_major_formatter()(-0.05) == "−5 %"
    assert figure.said == [
        "C15, g = exp(c·s): relative test error: c = 1 (n = 5) +1.0 % [−2.0, +4.0], c = 5 (n = 1) +3.0 %.",
        "C16, CIFAR-10, ‖v‖ ≤ 0.25: relative test error: (n = 3) −1.0 % [−3.0, +1.0].",
    ]


def test_step_times_by_device_and_version(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path, bn=1.1, name="a", device="GPU")
    make_bench(tmp_path, bn=1.2, name="b", device="GPU")
    make_bench(tmp_path, bn=1.3, name="c", device="GPU" * 99, torch="2.14.0")
    figure = figures.step_time(load(tmp_path, "short"))
    assert figure is not None
    titles = [axes.get_title(loc="right") for axes in figure.axes]
    assert titles[0] == "cifar (2 sessions), GPU, torch 2.13.0, fp32"
    assert len(titles) == 6 and max(map(len, titles)) == 90
    sessions = [
        line for line in figure.axes[0].lines if line.get_color() == LOOKS["bn"].colour and line.get_marker() == "^"
    ]
    assert [float(line.get_xdata()[0]) for line in sessions] == pytest.approx([0.1, 0.2])
    assert "the paper's value" in legend(figure)
    ticks = figure.axes[-1].xaxis.get_major_formatter()
    assert [ticks(value) for value in (-0.1, 0, 0.1)] == ["−10 %", "0 %", "+10 %"]


def published(ours: Results, theirs: Results) -> Results:
    return dataclasses.replace(ours, published=theirs)


def test_published_runs_are_drawn_beside_yours(tmp_path: Path) -> None:
    for results in (tmp_path / "mine", tmp_path / "published"):
        make_vae(results, "wn", bound=-84.0)
    make_vae(tmp_path / "published", "wn", seed=2, bound=-85.0)
    make_vae(tmp_path / "published", "bn", seed=2, bound=-86.0)
    make_vae(tmp_path / "published", "normal", status="running", logged=3)
    mine, theirs = load(tmp_path / "mine", "short"), load(tmp_path / "published", "short")
    figure = curves("figure2", published(mine, theirs))
    assert figures.PUBLISHED == "published in this repository"
    assert legend(figure) == [
        "weight norm. (n = 1)",
        "batch norm., published in this repository (n = 1)",
        "weight norm., published in this repository (n = 2)",
    ]
    others, line = [line for line in only(figure).lines if line.get_linestyle() == "-."]
    assert line.get_color() == LOOKS["wn"].colour and line.get_ydata()[-1] == pytest.approx(-84.5)
    assert others.get_color() == LOOKS["bn"].colour and others.get_ydata()[-1] == pytest.approx(-86.0)
    for key, one in zip(figure.keys[1:], (others, line), strict=True):
        assert key.line.get_linestyle() == "-." and key.line.get_color() == one.get_color()
        assert key.group == figure.marks[str(one.get_gid())].group
    assert "weight norm. −84.0 nats, batch norm. (published in this repository) −86.0 nats, " in figure.said[-1]
    assert legend(curves("figure2", mine)) == ["weight norm. (n = 1)"]
    make_run(tmp_path / "mine", epochs=8)
    make_run(tmp_path / "published", seed=2)
    mine, theirs = load(tmp_path / "mine", "short"), load(tmp_path / "published", "short")
    assert legend(curves("figure1", published(mine, theirs)))[:2] == [
        "weight norm., lr 0.003 (n = 1)",
        "weight norm., lr 0.003, published in this repository (n = 1)",
    ]
    make_draw(tmp_path / "published")
    theirs = load(tmp_path / "published", "short")
    assert curves("figure3", published(mine, theirs)) is None  # of what you have no run of


def test_captions_name_nothing_that_is_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=3, status="running", logged=2)
    make_run(tmp_path, status="running", logged=2)
    running = curves("figure1", load(tmp_path, "short"))
    text = caption("figure1", running)
    assert text.startswith("Training error by epoch") and text.endswith(" One line per run.") and "mean" not in text
    make_run(tmp_path, seed=2)
    one = curves("figure1", load(tmp_path, "short"))
    assert " One line per run. At the end: " in caption("figure1", one) and "mean" not in caption("figure1", one)
    widths = [line.get_linewidth() for line in only(one).lines if _is_curve(line)]
    assert widths == [1.8]  # the finished one, once
    make_run(tmp_path, seed=3)
    more = curves("figure1", load(tmp_path, "short"))
    assert " Thin, every seed; thick, the mean of the finished ones (n); shaded, its standard error." in caption(
        "figure1", more
    )
    assert "One line per run" not in caption("figure1", more)
    widths = [line.get_linewidth() for line in only(more).lines if _is_curve(line)]
    assert sorted(widths) == [0.7, 0.7, 1.8]
    assert all(text.endswith(".") for text in figures.CAPTIONS.values())


def _is_curve(line: Line2D) -> bool:
    """It is no sign, rule or end of an error bar."""
    return len(line.get_xdata()) > 2 and line.get_linestyle() != "None"


def minus(number: str) -> str:
    return number.replace("-", "−")


def final(runs: Iterable[Run], column: str) -> float:
    return float(np.mean([run.metrics[column].iloc[-1] for run in runs]))


def test_captions_say_the_numbers_at_the_end(tmp_path: Path) -> None:
    make_all(tmp_path, seeds=(1, 2))
    make_vaes(tmp_path)
    make_draws(tmp_path)
    make_draw(tmp_path, "wn", bound=-81.0, g_start=1.0)
    make_dqns(tmp_path, ("breakout", "seaquest"))
    results = load(tmp_path, "short")
    found = findings(results)
    sheets = {name: figures.sheets(name, results, found) for name in figures.CAPTIONS}
    assert all(sheets.values())
    done = [run for run in results.runs if run.done and not {"g_start", "g_exp"} & run.changed.keys()]
    label = {param: look.label for param, look in LOOKS.items()}

    def rated(param: str, lr: float, column: str) -> str:
        runs = [run for run in done if (run.experiment, run.param, run.lr) == ("cifar", param, lr)]
        return f"{100 * final(runs, column):.1f}"

    def of(*kind: object) -> list[Run]:
        """The finished runs of an experiment, data set or game, and parameterization."""
        return [run for run in done if [*kind] == [run.experiment, run.dataset, run.param]]

    def ends(dataset: str | None, experiment: str, column: str, form: str, unit: str) -> str:
        said = {param: of(experiment, dataset, param) for param in PARAMS}
        return ", ".join(
            f"{label[param]} {minus(format(final(runs, column), form))}{unit}" for param, runs in said.items() if runs
        )

    rates = [("normal", 0.0003), ("bn", 0.003), ("wn", 0.003), ("wn+mobn", 0.003)]
    for name, column in (("figure1", "train_error"), ("test_error", "test_error")):
        said = [f"{label[param]} (lr {lr:g}) {rated(param, lr, column)} %" for param, lr in rates]
        assert sheets[name].said[-1] == f"At the end: {', '.join(said)}."
    growth = {}
    for run in done:
        if run.param == "wn" and run.experiment == "cifar":
            norms = np.log(run.layers.pivot(index="epoch", columns="layer", values="v_norm_mean"))
            growth.setdefault(run.lr, []).append(float(np.exp((norms.iloc[-1] - norms.iloc[0]).mean())))
    said = ", ".join(f"weight norm. (lr {lr:g}) {np.mean(growth[lr]):.3f}" for lr in (0.0003, 0.001, 0.003, 0.01))
    assert f"At the end: {said}, " in sheets["norm_growth"].said[-1]

    mnist = ends("mnist", "cvae", "test_bound_nats", ".1f", " nats")
    cifar10 = ends("cifar10", "cvae", "test_bits_per_dim", ".2f", " bits")
    less = final(of("cvae", "mnist", "wn"), "test_bound_nats") - final(of("cvae", "mnist", "normal"), "test_bound_nats")
    assert sheets["figure2"].said[-1] == (
        f"At the end: MNIST: {mnist}; CIFAR-10: {cifar10}; MNIST: wn − normal: weight norm. {less:.2f} nats."
    )
    raw = {param: final(of("cvae", "mnist", param), "test_bound_nats_raw") for param in ("normal", "wn")}
    said = sheets["bound_raw"].said[-1]
    assert all(minus(f"{label[param]} (raw) {value:.1f} nats") in said for param, value in raw.items())
    draw = ends(None, "draw", "test_bound_nats", ".1f", " nats")
    (other,) = [run for run in results.runs if "g_start" in run.changed]
    other_end = minus(f"weight norm. (g = 1 at the start) {final([other], 'test_bound_nats'):.1f} nats")
    assert sheets["figure3"].said[-1] == f"At the end: MNIST: {draw}, {other_end}."
    for name, column, form in (("figure4", "test_score", ".1f"), ("mean_q", "mean_q", ".2f")):
        games = "; ".join(f"{g.capitalize()}: {ends(g, 'dqn', column, form, '')}" for g in ("breakout", "seaquest"))
        assert sheets[name].said[-1] == f"At the end: {games}."

    cifar = [f"{param} (n = 2) {rated(param, lr, 'test_error')}" for param, lr in rates]
    scores = {
        param: np.mean([run.metrics["test_score"].max() for run in of("dqn", "breakout", param)])
        for param in ("normal", "wn")
    }
    assert sheets["overview"].said[0] == f"CIFAR-10 classifier: {', '.join(cifar)}."
    assert sheets["overview"].said[4] == (
        f"DQN, Breakout: normal (n = 3) {scores['normal']:.1f}, wn (n = 3) {scores['wn']:.1f}."
    )
    assert minus(f"wn, g = 1 (n = 1) {final([other], 'test_bound_nats'):.1f}.") in sheets["overview"].said[3]
    best = min((float(rated("wn", lr, "test_error")), lr) for lr in (0.0003, 0.001, 0.003, 0.01))
    assert f"weight norm. {best[0]:.1f} % at {best[1]:g}" in sheets["learning_rates"].said[0]
    noise = np.median([run.noise["excess_kurtosis_median"] for run in of("cifar", None, "bn")])
    assert f"batch norm. {noise:.2f}," in sheets["noise_kurtosis"].said[0]
    ratio = "bn +8.0 % [+7.0, +9.0], wn +0.0 % [−1.0, +1.0], wn+mobn +3.0 % [+2.0, +4.0]"  # as `make_bench` has them
    assert sheets["step_time"].said == [f"cifar (1 session), AMD EPYC (cpu), torch 2.13.0, fp32: {ratio}."]

    drawn = 0
    for name in figures.CURVES.keys() - {"kl_steps"}:  # what is said is where the thick lines end
        for title, axes in sheets[name].places.items():
            column = {"CIFAR-10": "test_bits_per_dim", "MNIST: wn − normal": "difference"}.get(title)
            factor, digits, unit = figures.COLUMNS[column or figures.CURVES[name][1]][-1]
            for line in axes.lines:
                if _is_curve(line) and line.get_linewidth() >= 1.2 and str(line.get_gid()) in sheets[name].marks:
                    assert minus(f"{factor * line.get_ydata()[-1]:.{digits}f}{unit}") in sheets[name].said[-1], name
                    drawn += 1
    assert drawn == 34


def test_the_overview_has_every_result_with_its_interval(tmp_path: Path) -> None:
    bounds = {"wn": [-80.0, -81.0, -85.0], "normal": [-90.0]}
    for param, ends in bounds.items():
        for seed, bound in enumerate(ends, start=1):
            make_draw(tmp_path, param, seed=seed, bound=bound)
    make_draw(tmp_path, "bn", status="running", logged=3)
    make_draw(tmp_path, "wn+mobn", status="diverged", logged=3)
    make_dqn(tmp_path, "wn", "breakout", best=70.0)
    sheet = figures.overview(load(tmp_path, "short"))
    draw, dqn = sheet.axes
    assert [axes.get_title() for axes in sheet.axes] == ["DRAW", "DQN, Breakout"] and sheet.width == 6.8
    assert [label.get_text() for label in draw.get_yticklabels()] == ["normal (n = 1)", "wn (n = 3)"]
    runs = [run for run in load(tmp_path, "short").of("draw").runs if run.param == "wn"]
    values = [run.metrics["test_bound_nats"].iloc[-1] for run in runs]
    middle, reach = np.mean(values), 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)
    (bar,) = [segment for of in draw.collections for segment in of.get_segments()]  # a single run has no interval
    assert bar == pytest.approx(np.array([[middle - reach, 1], [middle + reach, 1]]))
    means = [
        line.get_xydata()[0].tolist() for line in draw.lines if line.get_markersize() == 4 and line.get_marker() != "|"
    ]
    assert means == [[pytest.approx(-102.0), 0], [pytest.approx(middle), 1]]
    dots = [line.get_xydata()[0].tolist() for line in draw.lines if line.get_markersize() == 2.5]
    assert sorted(dots) == [[pytest.approx(value), 1] for value in sorted(values)]
    seeds = [mark for mark in sheet.marks.values() if mark.seed]
    assert [mark.name for mark in seeds] == [f"draw/wn_lr0.0003/seed-{seed}" for seed in (1, 2, 3)]
    assert [line.get_xydata()[0].tolist() for line in dqn.lines] == [[70.0, 0.0]]  # its best epoch, not its last
    make_draw(tmp_path / "none", status="running", logged=3)
    assert figures.overview(load(tmp_path / "none", "short")) is None


@pytest.mark.usefixtures("not_rendered")
def test_many_runs_make_no_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MANY", 4)
    for seed in range(1, 6):
        make_draw(tmp_path, seed=seed)
    for i in range(30):
        make_draw(tmp_path, g_start=0.5 + i / 100)
        make_run(tmp_path, lr=0.001 + i / 10_000, epochs=8)
    results = load(tmp_path, "short")
    figure = curves("figure3", results)
    assert legend(figure)[0] == "weight norm. (n = 5)" and legend(figure)[-1] == "and 11 more"
    alike = [line for line in only(figure).lines if line.get_linestyle() == "-" and line.get_linewidth() == 0.7]
    assert [line.get_rasterized() for line in alike] == [True] * 5  # many lines are no paths in an SVG
    assert all(not figure.marks[str(line.get_gid())].points for line in alike)
    assert len(set(figure.said[-1].split(", "))) <= 22  # what is said at the end
    rates = figures.learning_rates(results)
    assert rates is not None and len(rates.axes[0].get_xticks()) <= 9
    assert legend(curves("norm_growth", results))[-1] == "and 10 more"

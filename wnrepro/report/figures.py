"""Draws the figures of the report, each parameterization in one style, in colours of Okabe and Ito and of Paul Tol.

Each figure's function returns a `Sheet`, or None without data. split: one canvas per panel, for the page. A non-finite
value leaves a gap in its curve and in the mean over seeds. The legend counts the runs with gaps.
"""

import math
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

from wnrepro import paper
from wnrepro.report import canvas, declared
from wnrepro.report.canvas import LOOKS, RULE, SIGN, Look, Sheet, looks, ticks
from wnrepro.report.claims.cifar import NOTICEABLE, log_norms
from wnrepro.report.claims.claim import Finding
from wnrepro.report.claims.dqn import max_score
from wnrepro.report.claims.identities import INIT_LOSS, INIT_MEAN, INIT_VARIANCE, init_losses
from wnrepro.report.stats import Estimate, t_test
from wnrepro.results import OVER_NORMAL, QUARTILES, Results, Run, random_scores, sessions
from wnrepro.settings import PARAMS, SETTINGS, Model
from wnrepro.text import count, interval, listed, plain

FEW_POINTS = 10  # curves of fewer points have markers
COMPARED = ("normal", "wn")  # in the paper's figures 2 and 3
GROWING = ("wn", "wn+mobn")  # parameterizations with a meaningful ‖v‖
FITS = {COMPARED: "normal and weight normalization", PARAMS: "the paper's parameterizations"}
JUDGED = {"bn": "kurtosis_inverse_std", "wn+mobn": "kurtosis_mean"}  # columns of noise.csv that C8 judges
NOT_JUDGED = "kurtosis_mean"  # column of other parameterizations
PUBLISHED = "published in this repository"
PUBLISHED_STYLE: dict[str, Any] = {"linestyle": "-.", "linewidth": 1}  # of published runs


@dataclass(frozen=True)
class Curve:
    """A run's numbers by epoch, agent step or time step."""

    run: Run
    look: Look
    y: pd.Series  # its name is the column
    words: str  # what distinguishes it from others of its parameterization
    style: dict[str, Any]
    done: bool
    diverged: bool
    thin: bool = True  # whether single runs are drawn beside the mean of the finished ones

    group = property(lambda one: f"{one.run.param} {one.words}")  # of curves with one style
    label = property(lambda one: f"{one.look.label}, {one.words}".removesuffix(", "))
    column = property(lambda one: declared.column(one.y.name))


Groups = dict[str, list[Curve]]


@np.errstate(all="ignore")
def draw(results: Results, found: Mapping[str, Finding], printed: bool = True) -> dict[str, canvas.Drawn]:
    """Draw the figures that have data, by name. found: findings by claim. printed: also render files for print."""
    drawn = {}
    for name, about in declared.figures(results.parts).items():
        with warnings.catch_warnings(), matplotlib.rc_context(fname=canvas.STYLE):
            warnings.filterwarnings("ignore", "Glyph ")  # missing glyphs of a label or device name
            if (sheet := sheets(name, results, found, split=True)) is None:
                continue
            caption = " ".join([about.text.format(paper=paper), *sheet.sentences])
            panels = sheet.panels(name, caption)
            keys = [(key.label, canvas.key_svg(key, f"{name}-key-{i}"), key.group) for i, key in enumerate(sheet.keys)]
            with matplotlib.rc_context(canvas.PRINT):
                whole = sheets(name, results, found) if printed else None
                files = whole.files() if whole else {}
                if about.dark and "png" in files:
                    files["dark"] = canvas.dark(files["png"])
            seeds = {mark.seed for mark in sheet.marks.values()} == {True, False}
            drawn[name] = canvas.Drawn(caption, files, panels, keys, seeds)
    return drawn


def sheets(name: str, results: Results, found: Mapping[str, Finding], split: bool = False) -> Sheet | None:
    """Draw a figure by name, for print or split for the page."""
    if name == "variants":
        return variants(found, split)
    others = (overview, learning_rates, noise_kurtosis, init, step_time)
    make: Callable[..., Sheet | None] | None = next((one for one in others if one.__name__ == name), None)
    return make(results, split) if make else curves(name, results, split)


# ------------------------------------------------------------------------------- curves


def _panels(name: str, results: Results) -> tuple[dict[str, Groups], int]:
    """Return the curves of each panel, and the number of runs with gaps."""
    about, panels, gaps = declared.figures(results.parts)[name], {}, set()
    look, (setting, legend) = looks(results.labels), about.others
    for part in about.parts:
        if (of := results.parts.get(part)) is None:
            continue
        column = about.column or declared.model_of(of.runs[0]).result
        runs, *published = (some.figure1 if part == "cifar" else some.figure2 for some in (of, of.published) if some)
        if name == "norm_growth":
            free = [run for run in of.standard if _included(GROWING, run) and not run.diverged and len(run.layers)]
            rates = sorted({run.lr for run in free if run.epoch}, reverse=True)
            own = [_curve(look, run, column, alpha=0.75 ** rates.index(run.lr)) for run in free if run.epoch]
        elif name == "bound_raw":
            done, faint = (
                [run for run in runs if run.done and _included(COMPARED, run)],
                {"linewidth": 1.2, "alpha": 0.45},
            )
            own = [_curve(look, run, column, "averaged", False) for run in done]
            own += [_curve(look, run, f"{column}_raw", "raw", False, **faint) for run in done]
        else:
            own = [_curve(look, run, column) for run in runs]
            for value, others in of.others(setting).items() if setting else ():
                own += [_curve(look, run, column, legend.format(value), linestyle=":") for run in others]
            done = [run for some in published for run in some if run.done]
            own += [_curve(look, run, column, PUBLISHED, False, **PUBLISHED_STYLE) for run in done]
        panels[declared.panel_title(part)] = own
        # A diverged run with any finite number has a mark at its end, which is enough.
        known = [(one, np.isfinite(one.y)) for one in own if len(one.y)]
        gaps |= {one.run.path for one, finite in known if not (finite.any() if one.diverged else finite.all())}
    if name == "figure2" and "MNIST" in panels:
        less = _differences(panels["MNIST"])
        title = "wn − normal" if {one.run.param for one in less} <= {*COMPARED} else "less normal"
        panels[f"MNIST: {title}"] = less
    shown = {title: _grouped(one for one in of if np.isfinite(one.y).any()) for title, of in panels.items()}
    return {title: of for title, of in shown.items() if any(PUBLISHED not in group for group in of)}, len(gaps)


def _grouped(curves: Iterable[Curve]) -> Groups:
    """Group curves of the same style in the order of the legend, with published runs last."""
    groups: Groups = defaultdict(list)
    for one in sorted(curves, key=lambda one: (PUBLISHED in one.words, one.look.place, one.words)):
        groups[one.group].append(one)
    return groups


def _included(papers: Iterable[str], run: Run) -> bool:
    """Test whether a figure includes a run: its parameterization is in `papers`, or is not the paper's."""
    return run.param in papers or run.param not in PARAMS


def _curve(look: Mapping[str, Look], run: Run, column: str, words: str = "", thin: bool = True, **style: Any) -> Curve:
    """Make the curve of a column. For cifar, its words begin with the learning rate."""
    table, over = run.metrics, SETTINGS[run.experiment].step_column
    if column == "growth":
        table = run.layers.drop_duplicates("epoch").assign(growth=np.exp(log_norms(run)))
    if column == "kl_nats":  # only the last epoch of a finished run
        table, over = run.kl_steps[run.kl_steps["epoch"] == (run.epoch if run.done else -1)], "time_step"
    if run.experiment == "cifar":
        words = f"lr {run.lr:g}, {words}".removesuffix(", ")
    line = {"color": look[run.param].colour, "linestyle": look[run.param].line, "linewidth": 1.8}
    y = pd.Series(table[column].to_numpy(float), table[over], name=column)
    return Curve(run, look[run.param], y, words, line | style, run.done, run.diverged, thin)


def _differences(curves: Sequence[Curve]) -> list[Curve]:
    """Subtract normal's curve of the same seed from the curves of wn and others. It is done if both runs are."""
    normal = {one.run.seed: one for one in curves if one.group == "normal "}
    found = []
    for ours in curves:
        if ours.words or ours.run.param in {*PARAMS} - {"wn"} or ours.run.seed not in normal:
            continue
        theirs = normal[ours.run.seed]
        y = (ours.y - theirs.y)[: min(len(ours.y), len(theirs.y))].rename("difference")
        of = theirs if ours.done else ours
        found.append(replace(ours, y=y, words="less normal", done=of.done, diverged=of.diverged))
    return found


def curves(name: str, results: Results, split: bool = False) -> Sheet | None:
    """Draw curves by epoch, agent step or time step."""
    panels, gaps = _panels(name, results)
    if not panels:
        return None
    sheet = Sheet(list(panels), split)
    every = {title: [one for some in groups.values() for one in some] for title, groups in panels.items()}
    fits = {title: _set_up(sheet.places[title], title, of, results.scale) for title, of in every.items()}
    for title, groups in panels.items():
        for some in groups.values():
            _draw(sheet, sheet.places[title], some)
        sheet.places[title].set_xlim(0)
    seeds = [sum(one.thin and one.done for one in some) for groups in panels.values() for some in groups.values()]
    sides = {(one.column.fits, one.run.param in one.column.fits) for of in every.values() for one in of}
    words = next((words for params, words in FITS.items() if {(params, True), (params, False)} <= sides), "")
    epochs = f"epoch {' or '.join(map(str, sorted({*fits.values()} - {0})))} and later" if any(fits.values()) else ""
    if max(seeds) > 1:
        sheet.sentences.append(
            "A thin line is a seed, a thick line the mean of the n finished ones, and the shade its standard error."
        )
    elif any(one.thin for of in every.values() for one in of):
        sheet.sentences.append("Each line is a run.")
    if epochs or words:
        sheet.sentences.append(f"The y axis fits {' of '.join(filter(None, (epochs, words)))}.")
    ends = [
        ": ".join(filter(None, (title, listed(said)))) for title, of in panels.items() if (said := _ends(title, of))
    ]
    sheet.sentences += [f"Final values: {'; '.join(ends)}."] if ends and name != "kl_steps" else []
    return sheet.legend(_entries(panels), gaps)


def _ends(title: str, groups: Groups) -> list[str]:
    """Format the mean end of the finished runs of each group, such as `normal −100.9 nats`."""
    ys = [one.y for some in groups.values() for one in some if len(one.y)]
    last, over = max(y.index[-1] for y in ys), str(ys[0].index.name).replace("_", " ").removesuffix("s")
    said = []
    for first, *others in groups.values():
        ys = [one.y for one in (first, *others) if one.done and len(one.y)]
        if ys:
            own = max(y.index[-1] for y in ys)
            mean = float(np.mean([y.iloc[-1] for y in ys if y.index[-1] == own]))
            words = f" ({first.words})" if first.words and ": " not in title else ""
            earlier = f" at {over} {own}" if own < last else ""
            said.append(f"{first.look.label}{words} {first.column.format(mean)}{earlier}")
    return said


def _entries(panels: Mapping[str, Groups]) -> dict[str, tuple[dict[str, Any], str]]:
    """Return the legend's entries: `weight norm., lr 0.003 (n = 3)`. n: finished runs, by panel if it differs."""
    found = {}
    for group, (first, *_) in _grouped(one for of in panels.values() for some in of.values() for one in some).items():
        finished = {title: sum(one.done for one in of[group]) for title, of in panels.items() if group in of}
        n = ", ".join(f"{n} {title}" for title, n in finished.items() if n)
        if n and len(set(finished.values())) == 1:
            n = f"{max(finished.values())}{' each' if len(finished) > 1 else ''}"
        found[first.label + (f" (n = {n})" if n else "")] = first.style, group
    return found


def _draw(sheet: Sheet, axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw a group within the limits of the axes: each seed (thin), the mean of the finished ones, its standard error.

    Curves of few points have markers. A sign marks the end of a diverged or unfinished run, or of one below the axes.
    """
    first, look, param = curves[0], curves[0].look, curves[0].run.param
    line = first.style | {"marker": look.marker if all(len(one.y) < FEW_POINTS for one in curves) else ""}
    bottom, (low, high) = axes.get_ylim()[0], sorted(axes.get_ylim())
    done, many = [one for one in curves if one.done], len(curves) > canvas.MANY
    for one in curves if first.thin else ():
        single = one.done and len(done) == 1  # its curve is the mean
        faint = line | {"linewidth": 0.7, "alpha": 0.5 * line.get("alpha", 1)}
        for drawn in [] if single else axes.plot(one.y.index, one.y, markersize=2.5, rasterized=many, **faint):
            points = [] if many else _points(one.column, one.y, low, high)
            sheet.mark(drawn, one.group, param, bool(done), one.run.name, points=points)
        end = np.flatnonzero(np.isfinite(one.y))[-1]
        place = np.clip(one.y.iloc[end], low, high)
        below = place == bottom != one.y.iloc[end]
        if sign := "x" if one.diverged else ">" if not one.done else "v" if below else "":
            others = {line.get_color() for line in axes.lines if line.get_marker() == sign == "v"} - {look.colour}
            x = one.y.index[end] * (1 - 0.05 * len(others))  # so that none hides another
            (end_,) = axes.plot(x, place, marker=sign, color=look.colour, clip_on=False, **SIGN)
            sheet.mark(end_, one.group, param, False, one.run.name)
    if done:
        values = pd.DataFrame([one.y.reset_index(drop=True) for one in done])  # shorter ones end with nan
        longest = max((one.y for one in done), key=len)
        mean = pd.Series(values.mean(skipna=False).to_numpy(), longest.index, name=longest.name)
        (thick,) = axes.plot(mean.index, mean, markersize=3, **line)
        name = done[0].run.name if len(done) == 1 else f"{first.label}, mean of {len(done)} runs"
        sheet.mark(thick, first.group, param, False, name, points=_points(first.column, mean, low, high))
        if first.thin and len(done) > 1:
            ends = [mean + sign * values.sem(skipna=False).to_numpy() for sign in (-1, 1)]
            band = axes.fill_between(mean.index, *ends, color=look.colour, alpha=0.15, linewidth=0)
            sheet.mark(band, first.group, param, False, name)


def _points(column: declared.Column, y: pd.Series, low: float, high: float) -> list[tuple[float, float, str]]:
    """Return the points of a curve within the limits with their texts, thinned to what a panel can show."""
    word = str(y.index.name).replace("_", " ")
    shown = y[(y >= low) & (y <= high)]
    some = shown.iloc[:: max(1, math.ceil(len(shown) / canvas.MANY))].astype(float)
    xs = some.index.to_numpy(float)
    return [(x, y, f"{word} {x:g}: {column.format(y, 1)}") for x, y in zip(xs, some, strict=True)]


def _set_up(axes: Axes, title: str, curves: Sequence[Curve], scale: str) -> int:
    """Set title, labels and limits of a panel, and draw its reference lines.

    Returns the first epoch that the y axis fits, or 0 for all: early values may lie far off. Diverged runs set no limit
    unless all diverged.
    """
    run, name, column = curves[0].run, str(curves[0].y.name), curves[0].column
    also = [0.0] if column.from_zero else []
    if also:
        axes.axhline(0, **RULE)
    if name == "test_score" and (random := random_scores(one.run for one in curves)):
        also = [float(np.mean(random))]
        axes.axhline(also[0], **canvas.DASHES, label="random play")
    if name == "test_error" and scale == "paper" and run.experiment == "cifar":
        for param in sorted({one.run.param for one in curves} & paper.TABLE2.keys()):
            also.append(paper.TABLE2[param] / 100)
            axes.plot(run.epochs, also[-1], marker="*", color=LOOKS[param].colour, clip_on=False, zorder=5, **SIGN)
    trained = [one for one in curves if not one.diverged] or curves
    compared = [one for one in trained if one.run.param in column.fits] or trained
    every, ours = (pd.concat([one.y[np.isfinite(one.y)] for one in some]) for some in (trained, compared))
    first = min(max(2, 1 + int(column.fits_from * ours.index.max())), ours.index.max()) if column.fits_from else 0
    best = getattr(every[every.index >= first], column.best)()
    values = [*ours[ours.index >= first], best, *filter(math.isfinite, also)]
    low, high = float(min(values)), float(max(values))
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    axes.set_ylim(0 if 0 <= low < room else low - room, high + room)
    if name == "train_error" and 0 < ours.min() < 0.05:
        axes.set(yscale="log", ylim=(0.8 * ours.min(), 2 * ours.max()))
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
    if column.inverted:
        axes.invert_yaxis()
    below = str(curves[0].y.index.name).replace("_", " ")
    if below == "epoch" and "train_examples" in run.settings:
        unit = SETTINGS[run.experiment].unit
        below += f" ({run.settings['train_examples']:,} training {unit} each)".replace(",", "\u2009")
    if below == "time step":
        below += f", after epoch {' or '.join(map(str, sorted({one.run.epoch for one in curves})[:3]))}"
    if column.numbers[2] == " %":
        axes.yaxis.set_major_formatter(ticks(100, " %"))
    if column.numbers[2] == " %" and run.settings.get("decay_from", run.epochs) < run.epochs:
        axes.axvline(run.decay_from, **canvas.DASHES, label=f"from epoch {run.decay_from} on the learning rate falls")
    if title and any(one.run.settings.get("data") == "bundled" for one in curves):
        title = f"bundled images in place of {title}"
    axes.set(title=title, ylabel=column.label, xlabel=below)
    axes.locator_params(axis="x", integer=True, nbins=6, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter(EngFormatter())
    return int(first)


# ------------------------------------------------------------------------------- dots


def _dots(sheet: Sheet, axes: Axes, styles: Mapping[str, Look], table: pd.DataFrame, column: str, **style: Any) -> None:
    """Draw a dot per row at its `x` and `column`, in the style of its `param`. Its `words` describe it."""
    for param, look in styles.items():
        if (of := table[table["param"] == param]).empty:
            continue
        drawn: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 3.5, "linestyle": "none"}
        (dots,) = axes.plot(of["x"], of[column], **drawn | {"label": look.label} | style)
        sheet.mark(dots, param, param, False, look.label, points=[*zip(of["x"], of[column], of["words"], strict=True)])


def learning_rates(results: Results, split: bool = False) -> Sheet | None:
    """Draw the final errors by learning rate (C13), with a dot per seed and diverged runs above."""
    runs = [run for run in results.of("cifar").standard if run.diverged or run.done]
    if not runs:
        return None
    look, panels = looks(results.labels), ["train_error", "test_error"]
    finals = [(run.param, run.lr, run.diverged, *map(run.final, panels)) for run in runs]
    table = pd.DataFrame(finals, columns=["param", "lr", "diverged", *panels])
    table["x"] = table["lr"] * 1.06 ** (table["param"].map([*look].index) % len(canvas.STYLES) - 1.5)
    table["words"] = [f"lr {run.lr:g}, seed {run.seed}" + ", diverged" * run.diverged for run in runs]
    done, lost = table[~table["diverged"]], table[table["diverged"]].assign(above=1.03)
    sheet = Sheet(panels, split)
    for column, axes in sheet.places.items():
        said = [
            f"{words}: {declared.column(column).format(value, 1)}" for words, value in done[["words", column]].values
        ]
        _dots(sheet, axes, look, done.assign(words=said), column, clip_on=False)
        for param in (param for param in look if (done["param"] == param).any()):
            means = done[done["param"] == param].groupby("x")[column].mean(skipna=False)
            line: dict[str, Any] = {"color": look[param].colour, "linestyle": look[param].line}
            sheet.mark(axes.plot(means.index, means, **line)[0], param, param, False, "")
        above = {"transform": axes.get_xaxis_transform(), "clip_on": False, "label": ""}
        _dots(sheet, axes, look, lost, "above", marker="x", **above, **SIGN)
        label = f"final {declared.column(column).label}"
        axes.set(xscale="log", xlabel="learning rate", ylabel=label, ylim=(0, None))
        rates = FixedLocator(sorted(table["lr"].unique()), nbins=8)
        axes.xaxis.set(major_locator=rates, minor_locator=NullLocator(), major_formatter=ticks())
        axes.yaxis.set_major_formatter(ticks(100, " %"))
    means = done.groupby(["param", "lr"])["test_error"].mean(skipna=False)
    best = [(param, means[param].idxmin()) for param in look if param in means and np.isfinite(means[param]).any()]
    ns, lost_ns = (Counter(zip(some["param"], some["lr"], strict=True)) for some in (done, lost))
    ends = [
        f"{look[one[0]].label} {plain(100 * means[one], '.1f', ' %')} at {one[1]:g} (n = {ns[one]}"
        + (f", {lost_ns[one]} diverged)" if lost_ns[one] else ")")
        for one in best
    ]
    sheet.sentences = [f"Lowest mean test error: {listed(ends)}."] if ends else []
    return sheet.legend(gaps=int(done[panels].isna().any(axis=1).sum()))


def noise_kurtosis(results: Results, split: bool = False) -> Sheet | None:
    """Draw the noise's excess kurtosis by layer and epoch (C8): quartiles over features. Hollow dots are judged."""
    runs = [run for run in results.of("cifar").figure1 if len(run.noise) and _included(JUDGED, run)]
    if not runs:
        return None
    look = looks(results.labels)
    table = pd.concat(
        run.noise.assign(param=run.param, run=i, judged=run.noise[JUDGED.get(run.param, NOT_JUDGED)])
        for i, run in enumerate(runs)
    ).replace([math.inf, -math.inf], math.nan)
    places, layers = pd.factorize(table["layer"])
    table["x"] = places + 0.6 * ((table["run"] + 0.5) / len(runs) - 0.5)
    low, median, high = QUARTILES
    epochs = {f"after epoch {epoch}": epoch for epoch in (table["epoch"].min(), table["epoch"].max())}
    sheet = Sheet(list(epochs), split)
    for title, axes in sheet.places.items():
        of = table[table["epoch"] == epochs[title]]
        for param in of["param"].unique():
            some = of[of["param"] == param]
            bars = axes.vlines(some["x"], some[low], some[high], look[param].colour, linewidth=0.8)
            sheet.mark(bars, param, param, False, "")
        known = of.dropna(subset="judged")
        papers, hollow = known["param"].isin(JUDGED), {"markerfacecolor": "white"}
        for rows, column, style in (
            (of, median, {}),
            (known[papers], "judged", {"label": "judged: bn's 1/σ, mean-only's μ", **hollow}),
            (known[~papers], "judged", {"label": "not judged: others' μ", **hollow}),
        ):
            words = [f"{layer}: {plain(value)}" for layer, value in zip(rows["layer"], rows[column], strict=True)]
            _dots(sheet, axes, look, rows.assign(words=words), column, **style)
        axes.axhline(0, **RULE)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(ticks())
        axes.set(title=title, ylabel="excess kurtosis of the noise\n(0: Gaussian)")
        axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    sheet.same_limits("y")
    medians = table.groupby("param")[median].median()
    ends = [f"{look[param].label} {plain(medians[param])}" for param in look if param in medians]
    sheet.sentences = [f"Median over layers and epochs: {listed(ends)}."]
    measured = table.groupby("run")["judged"].transform("count") > 0
    sheet.sentences += [] if measured.any() else ["These runs did not measure the statistics that C8 is judged on."]
    lost = table[[*QUARTILES]].isna().any(axis=1) | (table["judged"].isna() & measured)
    return sheet.legend(gaps=table["run"][lost].nunique())


def init(results: Results, split: bool = False) -> Sheet | None:
    """Draw the largest |mean| and |variance − 1| over layers on the init batch, and the spread of losses (C3)."""
    look, limits, gaps = looks(results.labels), (INIT_MEAN, INIT_VARIANCE, INIT_LOSS), set()
    dots = []
    for name, part in results.parts.items():
        for run in (run for run in part.in_precision if len(run.init)):
            ends = run.init[["mean_abs_max", "variance_min", "variance_max"]].to_numpy(float)
            dots.append((0, name, run.param, float(ends[:, 0].max())))
            dots.append((1, name, run.param, float(np.abs(ends[:, 1:] - 1).max())))
            gaps |= {run.path} if not np.isfinite(ends).all() else set()
        dots += [(2, name, "normal", spread) for spread in init_losses(part.papers)]
    if not dots:
        return None
    every = pd.DataFrame(dots, columns=["panel", "part", "param", "x"])
    table = every.groupby(["panel", "part", "param"], sort=False)["x"].agg(["max", "count"]).reset_index()
    names: list[str] = [*dict.fromkeys(map(str, table["part"]))]
    titles = ["largest |mean|", "largest |variance − 1|", "spread of the initial losses"][: table["panel"].max() + 1]
    sheet, all_four = (
        Sheet(titles, split, heights=[0.7 + 0.22 * len(names)]),
        {"label": "all four", "color": canvas.GREY},
    )
    for i, (title, axes) in enumerate(sheet.places.items()):
        of = table[table["panel"] == i]
        of = of.assign(x=of["max"].clip(lower=1e-9), y=of["part"].map(names.index) + 0.0)
        if i < 2:
            of["y"] += (of["param"].map([*look].index) % 4 - 1.5) * 0.18
        rows = zip(of["part"], of["param"], of["max"], of["count"], strict=True)
        of["words"] = [f"{part}, {param}: {plain(value, '.1e')} (n = {n})" for part, param, value, n in rows]
        _dots(sheet, axes, look, of, "y", **(all_four if i == 2 else {}))
        axes.axvline(limits[i], **canvas.DASHES | {"zorder": 2}, label="limit of the rule")
        axes.axvspan(limits[i], 8 * limits[i], color=canvas.GRID, linewidth=0, zorder=0)
        axes.set(xscale="log", xlim=(None, 8 * limits[i]), ylim=(len(names) - 0.5, -0.5), title=title)
        axes.set_yticks(range(len(names)), names if split or not i else [""] * len(names), parse_math=False)
        axes.xaxis.set(
            major_locator=LogLocator(numticks=4), minor_locator=NullLocator(), major_formatter=canvas.powers()
        )
        sheet.sentences.append(
            f"{title.replace('spread', 'largest spread').capitalize()}: {plain(of['max'].max(), '.1e')}."
        )
    return sheet.legend(gaps=len(gaps))


# ------------------------------------------------------------------------------- rows with intervals


class Row(NamedTuple):
    """A labelled row of estimates with intervals and margins; dots: the values of single runs by name."""

    label: str
    look: Look
    estimates: Sequence[Estimate]
    dots: Mapping[str, float] = {}


def _rows(sheet: Sheet, axes: Axes, rows: Sequence[Row], words: Callable[[Estimate], str]) -> None:
    """Draw rows from top to bottom. words: formats an estimate."""
    for y, row in enumerate(rows):
        style: dict[str, Any] = {"color": row.look.colour, "marker": row.look.marker}
        for name, value in [*row.dots.items()][: canvas.MANY] if len(row.dots) > 1 else ():
            (dot,) = axes.plot(value, y, markersize=2.5, alpha=0.5, **style)
            sheet.mark(dot, "", row.look.param, True, name, points=[(value, y, words(Estimate("", value)))])
        places = y + np.linspace(-0.3, 0.3, len(row.estimates) + 2)[1:-1]
        for place, e in zip(places, row.estimates, strict=True):
            ends = [[e.value - e.low], [e.high - e.value]] if math.isfinite(e.high - e.low) else None
            bar = axes.errorbar(e.value, place, xerr=ends, capsize=2, elinewidth=1.2, markersize=4, **style)
            sheet.mark(bar, "", row.look.param, False, row.label, points=[(e.value, place, words(e))])
            if e.margin:
                axes.vlines(e.margin, y - 0.5, y + 0.5, **canvas.DASHES, label="limit of the rule")
    axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _fit(axes: Axes, rows: Sequence[Row]) -> None:
    """Let the x axis fit the runs and the intervals of three and more; an arrow marks where one of two continues."""
    ends = [end for row in rows if len(row.dots) > 2 for e in row.estimates for end in (e.low, e.high)]
    known = [value for value in [*ends, *(dot for row in rows for dot in row.dots.values())] if math.isfinite(value)]
    room = 0.12 * (max(known, default=0.0) - min(known, default=0.0))
    for y, row in enumerate(rows):
        for e in row.estimates if room and len(row.dots) == 2 else ():
            low, high = min(known) - room, max(known) + room
            for end, sign in [*[(low, CARETLEFT)] * (e.low < low), *[(high, CARETRIGHT)] * (e.high > high)]:
                axes.plot(end, y, marker=sign, color=row.look.colour, **SIGN)
                axes.set_xlim(low, high)


def overview(results: Results, split: bool = False) -> Sheet | None:
    """Draw the final results by parameterization with 95 % t-intervals, a panel per experiment and data set or game."""
    panels, gaps = {}, 0
    for part, of in results.parts.items():
        model = declared.model_of(of.runs[0])
        rows, lost = _final_rows(of, model, looks(results.labels), part == "cifar")
        gaps += lost
        if rows:
            bundled = ", bundled images" * ("bundled" in (of.defaults.get("data"), of.defaults.get("dataset")))
            panels[model.title + bundled] = rows, model
    if not panels:
        return None
    heights = [0.75 + 0.14 * max(len(rows) for rows, _ in panels.values())] * -(-len(panels) // 2)
    sheet = Sheet(list(panels), split, min(2, len(panels)), heights)
    for title, (rows, model) in panels.items():
        digits = declared.column(model.result).numbers[1]

        def words(e: Estimate, more: int = digits + 1) -> str:
            return f"{plain(e.value, f'.{more}f')} {interval(e.low, e.high, more)}".strip()

        axes, label = sheet.places[title], model.result_label
        _rows(sheet, axes, rows, words)
        _fit(axes, rows)
        axes.set(xlabel=label.replace(", ", "\n") if split else label, title=title)
        axes.xaxis.set_major_formatter(ticks())
        axes.locator_params(axis="x", nbins=3 if split else 5)
        best = [f"{row.label} {plain(row.estimates[0].value, f'.{digits}f')}" for row in rows]
        sheet.sentences.append(f"{title}: {listed(best)}.")
    return sheet.legend(gaps=gaps)


def _final_rows(of: Results, model: Model, look: Mapping[str, Look], at_rate: bool) -> tuple[list[Row], int]:
    """Return a row per parameterization and initial g over its finished runs, and the number of non-finite results."""
    factor, rows, gaps = declared.column(model.result).numbers[0], [], 0
    several = {"": [*(of.figure1 if at_rate else of.figure2)]}
    several |= {f", g = {g:g}": [*more] for g, more in of.others("g_start").items()}
    last = max((run.epoch for runs in several.values() for run in runs if run.done), default=0)
    for words, runs in several.items():
        for param in look:
            some = [run for run in runs if run.param == param and run.done]
            some = [run for run in some if run.epoch == max(run.epoch for run in some)]
            values = [max_score(run, run.epoch) if model.best else run.final(model.result) for run in some]
            gaps += sum(not math.isfinite(value) for value in values)
            if values := [factor * value for value in values]:
                earlier = f", {count(some[0].epoch, 'epoch')}" if some[0].epoch < last else ""
                label = f"{param if param in PARAMS else look[param].label}{words} (n = {len(values)}{earlier})"
                dots = dict(zip((run.name for run in some), values, strict=True))
                rows.append(Row(label, look[param], [replace(t_test("", values), margin=())], dots))
    return rows, gaps


def variants(found: Mapping[str, Finding], split: bool = False) -> Sheet | None:
    """Draw the estimates and intervals of C15 and C16, a panel per claim."""
    bounded = f"‖v‖ ≤ {paper.V_NORM_MAX:g}"
    titles = {
        "C15": "C15, g = exp(c·s): relative test error",
        "C16a": f"C16, VAEs, {bounded}: test bound (nats)",
        "C16b": f"C16, CIFAR-10, {bounded}: relative test error",
    }
    panels = defaultdict(list)
    for claim in titles.keys() & found.keys():
        for e in found[claim].estimates:
            if e.n and not e.name.endswith(" diverged"):  # shares have another unit
                label = f"{e.name} (n = {e.n}{'' if math.isfinite(e.value) else ', not finite'})".strip()
                panels[titles[claim]].append(Row(label, LOOKS["wn"], [e]))
    return _intervals({title: panels[title] for title in titles.values() if title in panels}, split)


def step_time(results: Results, split: bool = False) -> Sheet | None:
    """Draw step times over normal's by experiment, device and version (C7). A star marks the paper's 16 %."""
    panels, limit = {}, (NOTICEABLE - 1,)
    for experiment, (device, torch), timed in [(e, *of) for e in SETTINGS for of in sessions(results, e).items()]:
        rows = []
        for param, look in [*looks(results.labels).items()][1:]:
            some = [ratio for one in timed if (ratio := one.ratios.get(f"{param}{OVER_NORMAL}"))]
            margin = limit if experiment == "cifar" else ()  # C7's
            ends = [Estimate("", r.median - 1, r.low - 1, r.high - 1, margin=margin) for r in some]
            rows += [Row(param if param in PARAMS else look.label, look, ends)] if ends or param in PARAMS else []
        if any(row.estimates for row in rows):
            panels[f"{experiment} ({count(len(timed), 'session')}), {device}, torch {torch}"] = rows
    return _intervals(panels, split, "step time over normal's: median, 95 % interval")


def _intervals(panels: Mapping[str, Sequence[Row]], split: bool, label: str = "") -> Sheet | None:
    """Draw panels of rows around 0. label: of a shared x axis."""
    panels = {title: rows[: canvas.MOST_NAMED] for title, rows in list(panels.items())[: canvas.MOST_NAMED]}
    if not panels:
        return None
    sheet = Sheet(list(panels), split, 1, [0.5 + 0.2 * len(rows) for rows in panels.values()])
    for title, axes in sheet.places.items():
        digits, factor, unit = (2, 1, " nats") if "nats" in title else (1, 100, " %")

        def words(e: Estimate, digits: int = digits, factor: float = factor, unit: str = unit) -> str:
            ends = interval(e.low, e.high, digits, factor, sign=True)
            return f"{plain(factor * e.value, f'+.{digits}f', unit)} {ends}".strip()

        _rows(sheet, axes, panels[title], words)
        if title.startswith("cifar"):
            axes.plot(paper.BN_STEP_TIME - 1, 0, marker="*", color=LOOKS["bn"].colour, **SIGN)
        axes.axvline(0, **RULE)
        axes.set_title(textwrap.fill(title[:90], 38 if split else 90), loc="right", parse_math=False)
        axes.tick_params(labelbottom=split or not label or axes is sheet.axes[-1])
        axes.xaxis.set_major_formatter(ticks(factor, unit * (factor > 1), "+g"))
        said = [f"{row.label} {words(e)}" for row in panels[title] for e in row.estimates if math.isfinite(e.value)]
        sheet.sentences += [f"{title}: {listed(said)}."] if said and (not label or title.startswith("cifar")) else []
    if label:
        sheet.same_limits("x")
        for axes in sheet.axes if split else sheet.axes[-1:]:
            axes.set_xlabel(label)
    return sheet.legend()

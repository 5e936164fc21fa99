"""The report's figures. One look a parameterization everywhere, in the colours of Okabe and Ito and of Paul Tol.

Each function returns None where there is nothing to draw. Objects only, no pyplot: nothing global is changed.
A value that is not finite leaves a gap, in the mean over seeds too; the legend says in how many runs.
"""

import functools
import io
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from wnrepro import paper
from wnrepro.report.claims.cifar import NOTICEABLE, log_norms
from wnrepro.report.claims.claim import Finding
from wnrepro.report.claims.identities import INIT_MEAN, INIT_VARIANCE
from wnrepro.report.stats import Estimate
from wnrepro.results import OVER_NORMAL, QUARTILES, Results, Run, random_scores, sessions
from wnrepro.settings import ABOUT, GAMES, PARAMS, SETTINGS
from wnrepro.words import count


class Look(NamedTuple):
    """How a parameterization is drawn; its label is plain text."""

    place: int  # among them all
    label: str
    colour: str
    line: Any
    marker: str


STYLES: list[tuple[str, Any, str]] = [  # the paper's in their order, then the others', again and again
    ("#000000", (0, (5, 1.5)), "s"),
    ("#D55E00", (0, (1, 1)), "^"),
    ("#0072B2", "solid", "o"),
    ("#009E73", (0, (6, 1.5, 1, 1.5)), "D"),
    ("#CC79A7", (0, (9, 2)), "P"),
    ("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "d"),
    ("#882255", (0, (2, 2)), "p"),
    ("#999933", (0, (9, 2, 3, 2)), "<"),
    ("#332288", (0, (4, 1, 1, 1, 1, 1, 1, 1)), "h"),
    ("#56B4E9", (0, (6, 4)), "8"),
]


def looks(labels: Mapping[str, str]) -> dict[str, Look]:
    """By parameterization. An axis leaves out a label that begins with an underscore."""
    styles = itertools.chain(STYLES, itertools.cycle(STYLES[len(PARAMS) :]))
    named = [(param, label.lstrip("_") or param) for param, label in labels.items()]
    return {param: Look(i, label, *next(styles)) for i, (param, label) in enumerate(named)}


LOOKS = looks({param: ABOUT[param].label for param in PARAMS})
STYLE = Path(__file__).with_name("figures.mplstyle")
RULE: dict[str, Any] = {"color": "#777777", "linewidth": 0.8, "zorder": 0}  # of lines that are no data
DASHES: dict[str, Any] = {**RULE, "linestyle": (0, (2, 2))}
SIGN: dict[str, Any] = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.5, "linestyle": "none"}
SIGNS = {"x": "diverged", ">": "not finished", "v": "ends below", "*": "the paper's value"}  # by marker
MOST_NAMED = 20  # entries of an axis or a legend
MANY = 100  # lines or dots: more are pixels in an SVG
FEW_POINTS = 10  # a curve of fewer has markers
COMPARED = ("normal", "wn")  # by the paper, in figures 2 and 3
GROWING = ("wn", "wn+mobn")  # whose ‖v‖ means something
FITS = {COMPARED: "normal and weight normalization", PARAMS: "the paper's parameterizations"}
JUDGED = {"bn": "kurtosis_inverse_std", "wn+mobn": "kurtosis_mean"}  # columns of noise.csv, by C8
NOT_JUDGED = "kurtosis_mean"  # of others
PUBLISHED = "published in this repository"
THEIRS: dict[str, Any] = {"linestyle": "-.", "linewidth": 1}  # what is published

# The figures of curves: experiment and data set, or game, of every panel by its title; column; a setting whose other
# values are drawn too, dotted.
Panels = dict[str, tuple[str, str | None]]
CIFAR: Panels = {"": ("cifar", None)}
MNIST: Panels = {"MNIST": ("cvae", "mnist")}
DRAW: Panels = {"MNIST": ("draw", None)}
DQN: Panels = {paper.game_name(name): ("dqn", name) for name in sorted(GAMES, key=lambda name: name != paper.FIGURE4)}
CURVES = {
    "figure1": (CIFAR, "train_error", ""),
    "test_error": (CIFAR, "test_error", ""),
    "norm_growth": (CIFAR, "growth", ""),
    "figure2": (MNIST | {"CIFAR-10": ("cvae", "cifar10")}, "test_bound_nats", ""),
    "bound_raw": (MNIST, "test_bound_nats", ""),
    "figure3": (DRAW, "test_bound_nats", "g_start"),
    "kl_steps": (DRAW, "kl_nats", "g_start"),
    "figure4": (DQN, "test_score", "actors"),
    "mean_q": (DQN, "mean_q", "actors"),
}
OTHERS = {"g_start": "g = {:g} at the start", "actors": "{} games in lock-step"}  # in the legend
# A column's label; whose values the y axis fits, from which part of the epochs on; the end at which it fits all others.
COLUMNS: dict[str, tuple[str, tuple[str, ...], float, Callable[..., float]]] = {
    "train_error": ("training error", PARAMS, 0, max),
    "test_error": ("test error", PARAMS, 0.5, min),
    "growth": ("‖v‖ / ‖v‖ after the init\n(geometric mean over layers)", PARAMS, 0, max),
    "test_bound_nats": ("test bound (nats)", COMPARED, 0.05, max),
    "test_bits_per_dim": ("test bound, axis inverted\n(bits per dimension)", COMPARED, 0.05, min),
    "difference": ("nats", PARAMS, 0.05, max),
    "kl_nats": ("KL on the test images (nats)", COMPARED, 0, min),
    "test_score": ("test score", PARAMS, 0, max),
    "mean_q": ("mean Q value", PARAMS, 0, max),
}
FROM_ZERO = ("train_error", "kl_nats", "difference")
CAPTIONS = {  # what is true of every such figure; `caption` says the rest
    "figure1": "Training error by epoch at figure 1's learning rates (the paper: "
    f"{paper.EPOCHS} epochs of 50 000 images, the rate falls from {paper.DECAY_FROM} on).",
    "test_error": "Test error by epoch (C4), same runs.",
    "learning_rates": "Final errors by learning rate (C6, C13): a dot a seed, lines through the means.",
    "norm_growth": "Growth of ‖v‖ by epoch (C14), fainter at smaller learning rates.",
    "noise_kurtosis": "Excess kurtosis of the noise by layer (C8): median and quartiles over features.",
    "init": "What the data-dependent init achieves (C3): a dot a run and layer, first to last; zero stands at 10⁻⁹.",
    "variants": "The mean differences over n pairs of runs (C15, C16), and the intervals that decide.",
    "figure2": "Test bound by epoch (C9), of the Polyak-averaged parameters; higher is better.",
    "bound_raw": "MNIST's test bound, mean of the finished seeds: averaged parameters, and the raw ones (faint).",
    "figure3": "DRAW's test bound by epoch (C10); higher is better.",
    "kl_steps": "DRAW's KL of every time step, mean over the test images, after the last epoch of the finished runs.",
    "figure4": "DQN's mean score of full test games after every epoch (C11, C12).",
    "mean_q": "Mean over held-out states of random play of the largest Q value (rewards clipped to ±1), same runs.",
    "step_time": "Step time over that of the normal parameterization (C7: of cifar) in every session of a benchmark.",
}


@dataclass(frozen=True)
class Curve:
    """A run's numbers by epoch, agent step or time step."""

    run: Run
    look: Look
    y: pd.Series  # named for its column
    group: tuple[str, str]  # parameterization, and what else sets apart those drawn alike
    style: dict[str, Any]
    thin: bool = True  # whether every run is drawn, beside the mean of the finished ones

    @property
    def gap(self) -> bool:
        """Whether a number is missing. Where one that diverged has any, the mark of its end says enough."""
        known = np.isfinite([*self.y, *(self.run.scores(0) if self.y.name == "test_score" else [])])
        return len(known) > 0 and not (known.any() if self.run.diverged else known.all())


def render(figure: Figure) -> dict[str, bytes]:
    """The figure's files by suffix, the same bytes for the same figure."""
    files = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return files


@np.errstate(all="ignore")
def draw(results: Results, found: Mapping[str, Finding]) -> dict[str, dict[str, bytes]]:
    """The figures that there is data for: {name: {"png": bytes, "svg": bytes}}. found: the findings by claim."""
    with matplotlib.rc_context(fname=STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # of a label, or a device's name
        figures = {name: curves(name, results) for name in CURVES} | {"variants": variants(found)}
        figures |= {one.__name__: one(results) for one in (learning_rates, noise_kurtosis, init, step_time)}
        return {name: render(figure) for name in CAPTIONS if (figure := figures[name]) is not None}


@np.errstate(all="ignore")
def caption(name: str, results: Results) -> str:
    """What a figure of `draw` shows, as it is drawn: the program's own text, `code` in backticks."""
    panels = _panels(name, results)[0] if name in CURVES else {}
    thin = [(title, one) for title, some in panels.items() for one in some if one.thin]
    most = max(Counter((title, one.group) for title, one in thin if one.run.done).values(), default=0)
    drawn = [(COLUMNS[str(some[0].y.name)][1], one.run.param) for some in panels.values() for one in some]
    sides = {(params, param in params) for params, param in drawn}
    fits = next((words for params, words in FITS.items() if {(params, True), (params, False)} <= sides), "")
    said = {
        CAPTIONS[name]: True,
        "Thin, every seed.": thin,
        f"Thick, the mean of the finished ones (n){' and its standard error' if most > 1 else ''}.": most,
        f"The y axis fits {fits}.": fits,
    }
    return " ".join(sentence for sentence, true in said.items() if true)


def _panels(name: str, results: Results) -> tuple[dict[str, list[Curve]], int]:
    """What a figure of curves draws, by panel: the curves with a number; and the number of runs with gaps."""
    parts, column, setting = CURVES[name]
    curve = functools.partial(_curve, looks(results.labels))
    panels, gaps = {}, set()
    for title, part in parts.items():
        of, kind = results.of(*part), "test_bits_per_dim" if title == "CIFAR-10" else column
        runs, *published = (some.figure1 if parts is CIFAR else some.figure2 for some in (of, of.published) if some)
        if name == "norm_growth":
            free = [run for run in of.standard if _shows(GROWING, run) and not run.diverged and run.epoch]
            rates = sorted({run.lr for run in free}, reverse=True)
            curves = [curve(run, kind, alpha=0.75 ** rates.index(run.lr)) for run in free if len(run.layers)]
        elif name == "bound_raw":
            done = [run for run in runs if run.done and _shows(COMPARED, run)]
            curves = [curve(run, kind, "averaged", False) for run in done]
            curves += [curve(run, f"{kind}_raw", "raw", False, linewidth=1.2, alpha=0.45) for run in done]
        else:
            curves = [curve(run, kind) for run in runs]
            for value, others in of.others(setting).items() if setting else ():
                curves += [curve(run, kind, OTHERS[setting].format(value), linestyle=":") for run in others]
            done = [run for some in published for run in some if run.done]
            curves += [curve(run, kind, PUBLISHED, False, **THEIRS) for run in done]
        panels[title] = curves
        gaps |= {one.run.path for one in curves if one.gap}
    if name == "figure2":
        less = _differences(panels["MNIST"])
        title = "weight norm. − normal" if {one.run.param for one in less} <= {*COMPARED} else "less normal"
        panels[f"MNIST: {title}, by seed"] = less
    shown = {title: [one for one in curves if np.isfinite(one.y).any()] for title, curves in panels.items()}
    return {title: of for title, of in shown.items() if any(PUBLISHED not in one.group[1] for one in of)}, len(gaps)


def _shows(papers: Iterable[str], run: Run) -> bool:
    """Whether a figure of these of the paper's parameterizations has the run: it has all others too."""
    return run.param in papers or run.param not in PARAMS


def _curve(look: Mapping[str, Look], run: Run, column: str, words: str = "", thin: bool = True, **style: Any) -> Curve:
    """A column of a run; of cifar the words begin with the learning rate."""
    table, over = run.metrics, "agent_steps" if run.experiment == "dqn" else "epoch"
    if column == "growth":
        table = run.layers.drop_duplicates("epoch").assign(growth=np.exp(log_norms(run)))
    if column == "kl_nats":  # at the end of a finished run
        table, over = run.kl_steps[run.kl_steps["epoch"] == (run.epoch if run.done else -1)], "time_step"
    if run.experiment == "cifar":
        words = f"lr {run.lr:g}, {words}".removesuffix(", ")
    line = {"color": look[run.param].colour, "linestyle": look[run.param].line, "linewidth": 1.8}
    y = pd.Series(table[column].to_numpy(float), table[over], name=column)
    return Curve(run, look[run.param], y, (run.param, words), line | style, thin)


def _differences(curves: Sequence[Curve]) -> list[Curve]:
    """wn's, or another's, less normal's of the same seed, over the epochs of both; done where both are."""
    base, wn = ((param, "") for param in COMPARED)
    normal = {one.run.seed: one for one in curves if one.group == base}
    found = []
    own = [one for one in curves if one.group == wn or (one.run.param not in PARAMS and not one.group[1])]
    for ours in [one for one in own if one.run.seed in normal]:
        theirs = normal[ours.run.seed]
        y = (ours.y - theirs.y)[: min(len(ours.y), len(theirs.y))].rename("difference")
        record = theirs.run.record if ours.run.done else ours.run.record
        found.append(replace(ours, run=replace(ours.run, record=record), y=y, group=(ours.group[0], "less normal")))
    return found


def curves(name: str, results: Results) -> Figure | None:
    """A figure of curves, two panels a row."""
    panels, gaps = _panels(name, results)
    if not panels:
        return None
    figure, places = _figure(list(panels))
    for title, curves in panels.items():
        _set_up(places[title], title, curves, results.scale)
        for group in dict.fromkeys(one.group for one in curves):
            _draw(places[title], [one for one in curves if one.group == group])
        places[title].set_xlim(0)
    return _legend(figure, _entries(panels), gaps)


def _entries(panels: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """Of a legend, with styles: `weight norm., lr 0.003 (n = 3)`, n being the finished runs, by panel if it differs."""
    first = {one.group: one for curves in panels.values() for one in reversed(curves)}
    found: dict[str, Any] = {}
    for param, words in sorted(first, key=lambda of: (PUBLISHED in of[1], first[of].look.place, of[1])):
        of = {title: [one for one in curves if one.group == (param, words)] for title, curves in panels.items()}
        finished = {title: sum(one.run.done for one in alike) for title, alike in of.items() if alike}
        n = ", ".join(f"{n} {title}" for title, n in finished.items() if n)
        if n and len(set(finished.values())) == 1:
            n = f"{max(finished.values())}{' each' if len(finished) > 1 else ''}"
        label = f"{first[param, words].look.label}, {words}".removesuffix(", ") + (f" (n = {n})" if n else "")
        found |= {PUBLISHED: THEIRS} if PUBLISHED in words else {label: first[param, words].style}
    return found


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    """Those of a group, within the limits of the axes: every seed (thin), the mean of the finished ones and its
    standard error. Markers where there are few points; a mark where a run did not finish or ends below the axes.
    """
    look, thin = curves[0].look, curves[0].thin
    line = curves[0].style | {"marker": look.marker if all(len(one.y) < FEW_POINTS for one in curves) else ""}
    bottom, (low, high) = axes.get_ylim()[0], sorted(axes.get_ylim())
    for one in curves if thin else ():
        faint = line | {"linewidth": 0.8, "alpha": 0.5 * line.get("alpha", 1)}
        axes.plot(one.y.index, one.y, markersize=3, rasterized=len(curves) > MANY, **faint)
        end = np.flatnonzero(np.isfinite(one.y))[-1]
        place = np.clip(one.y.iloc[end], low, high)
        below = place == bottom != one.y.iloc[end]
        if sign := "x" if one.run.diverged else ">" if not one.run.done else "v" if below else "":
            axes.plot(one.y.index[end], place, marker=sign, color=look.colour, clip_on=False, **SIGN)
    if done := [one.y for one in curves if one.run.done]:
        values = pd.DataFrame([y.reset_index(drop=True) for y in done])  # a shorter one has no numbers at the end
        every = max(1, values.shape[1] // 10)
        bars: dict[str, Any] = {"errorevery": (look.place % 4 * every // 4, every), "elinewidth": 1, "capsize": 2}
        error = values.sem(skipna=False) if thin and len(done) > 1 else None
        axes.errorbar(max(done, key=len).index, values.mean(skipna=False), error, markersize=4, **bars, **line)


def _set_up(axes: Axes, title: str, curves: Sequence[Curve], scale: str) -> None:
    """Title, labels and limits of a panel, and what it shows beside the curves.

    The first epochs lie so far off that the rest would be a line; a diverged run sets no limit unless all diverged.
    """
    run, column, over = curves[0].run, str(curves[0].y.name), str(curves[0].y.index.name)
    label, params, share, best = COLUMNS[column]
    also = [0.0] if column in FROM_ZERO else []
    if also:
        axes.axhline(0, **RULE)
    if column == "test_score" and (random := random_scores(one.run for one in curves)):
        also = [float(np.mean(random))]
        axes.axhline(also[0], **DASHES, label="random play")
    if column == "test_error" and scale == "paper":
        for param in sorted({one.run.param for one in curves} & paper.TABLE2.keys()):
            also.append(paper.TABLE2[param] / 100)
            axes.plot(run.epochs, also[-1], marker="*", color=LOOKS[param].colour, clip_on=False, zorder=5, **SIGN)
    trained = [one for one in curves if not one.run.diverged] or curves
    compared = [one for one in trained if one.run.param in params] or trained
    every, ours = (pd.concat([one.y[np.isfinite(one.y)] for one in some]) for some in (trained, compared))
    first = min(max(2, 1 + int(share * ours.index.max())), ours.index.max()) if share else 0
    values = [*ours[ours.index >= first], best(every[every.index >= first]), *filter(math.isfinite, also)]
    low, high = float(min(values)), float(max(values))
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    axes.set_ylim(0 if 0 <= low < room else low - room, high + room)
    if column == "train_error" and 0 < ours.min() < 0.05:
        axes.set(yscale="log", ylim=(0.8 * ours.min(), 2 * ours.max()))
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
    if column == "test_bits_per_dim":
        axes.invert_yaxis()
    below = over.replace("_", " ")
    if over == "epoch":
        below += f" ({run.settings['train_examples']:,} training images each)".replace(",", "\u2009")
    if over == "time_step":
        below += f", after epoch {' or '.join(map(str, sorted({one.run.epoch for one in curves})[:3]))}"
    if column in ("train_error", "test_error"):
        axes.yaxis.set_major_formatter(_ticks(100, " %"))
        if run.decay_from < run.epochs:
            axes.axvline(run.decay_from, **DASHES, label=f"from epoch {run.decay_from} on the learning rate falls")
    if title and any(one.run.settings.get("data") == "bundled" for one in curves):
        title = f"bundled images in place of {title}"
    axes.set(title=title, ylabel=label, xlabel=below + (f"\ny axis: fits epoch {first} and later" if first else ""))
    axes.locator_params(axis="x", integer=True, nbins=6, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter(EngFormatter())


def _ticks(factor: float = 1, unit: str = "", form: str = "g") -> FuncFormatter:
    """Numbers at an axis, with true minus signs."""
    return FuncFormatter(lambda value, _: f"{factor * value:{form if value else 'g'}}{unit}".replace("-", "−"))


def _legend(figure: Figure, lines: Mapping[str, Any] | None = None, gaps: int = 0) -> Figure:
    """It with a legend of lines by their labels, what the axes label, and signs, in two columns where they fit."""
    shown = [*(lines or {}).items()]
    if len(shown) > MOST_NAMED:
        shown[MOST_NAMED:] = [(f"and {len(shown) - MOST_NAMED} more", {"linestyle": "none"})]
    labelled = {key.get_label(): key for axes in figure.axes for key in axes.get_legend_handles_labels()[0]}
    markers = {line.get_marker() for axes in figure.axes for line in axes.lines}
    after = [(SIGNS[sign], SIGN | {"marker": sign}) for sign in SIGNS if sign in markers]
    if len(labelled) > MOST_NAMED:
        after.append((f"and {len(labelled) - MOST_NAMED} more", {"linestyle": "none"}))
    if gaps:
        after.append((f"gaps: not finite in {count(gaps, 'run')}", {"linestyle": "none"}))
    keys = [Line2D([], [], label=label, **{"color": "#555555", **style}) for label, style in shown + after]
    handles: list[Any] = [*keys[: len(shown)], *list(labelled.values())[:MOST_NAMED], *keys[len(shown) :]]
    columns = 2 if sum(sorted(len(handle.get_label()) for handle in handles)[-2:]) < 90 else 1
    figure.set_figheight(figure.get_figheight() + 0.17 * len(handles) / columns)
    for text in figure.legend(handles=handles, loc="outside upper center", ncols=columns).get_texts():
        text.set_parse_math(False)
    return figure


def _figure(titles: list[str], columns: int = 2, heights: Sequence[float] = (), **share: Any) -> Any:
    """A figure and its axes by title; the last one is wide where a place would be empty. share: sharex, sharey."""
    places = [*titles, *titles[-1:] * (-len(titles) % columns)]
    rows: Any = [places[i : i + columns] for i in range(0, len(places), columns)]
    heights = heights or [2.4] * len(rows)
    figure = Figure(figsize=(6.2, 0.7 + sum(heights)), layout="constrained")
    return figure, figure.subplot_mosaic(rows, height_ratios=heights, **share)


def _dots(axes: Axes, of_all: Mapping[str, Look], table: pd.DataFrame, column: str, **style: Any) -> None:
    """A dot a row, at its `x`, in the look of its `param`."""
    for param, look in of_all.items():
        if (of := table[table["param"] == param]).empty:
            continue
        drawn: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 4, "linestyle": "none"}
        axes.plot(of["x"], of[column], **drawn | {"label": look.label, "rasterized": len(of) > MANY} | style)


def learning_rates(results: Results) -> Figure | None:
    """C13: the final errors by learning rate, every seed a dot; the runs that diverged above."""
    runs = [run for run in results.of("cifar").standard if run.diverged or run.done]
    if not runs:
        return None
    panels = ["train_error", "test_error"]
    finals = [(run.param, run.lr, run.diverged, *map(run.final, panels)) for run in runs]
    table = pd.DataFrame(finals, columns=["param", "lr", "diverged", *panels])
    look = looks(results.labels)
    table["x"] = table["lr"] * 1.06 ** (table["param"].map([*look].index) % len(STYLES) - 1.5)
    done, lost = table[~table["diverged"]], table[table["diverged"]].assign(above=1.03)
    figure, places = _figure(panels)
    for column, axes in places.items():
        _dots(axes, look, done, column)
        for param, means in done.groupby(["param", "x"])[column].mean(skipna=False).groupby("param"):
            line: dict[str, Any] = {"color": look[param].colour, "linestyle": look[param].line}
            axes.plot(means.index.get_level_values("x"), means, **line)
        above = {"transform": axes.get_xaxis_transform(), "clip_on": False, "label": ""}
        _dots(axes, look, lost, "above", marker="x", **above, **SIGN)
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"final {COLUMNS[column][0]}", ylim=(0, None))
        rates = FixedLocator(sorted(table["lr"].unique()), nbins=8)
        axes.xaxis.set(major_locator=rates, minor_locator=NullLocator(), major_formatter=_ticks())
        axes.yaxis.set_major_formatter(_ticks(100, " %"))
    return _legend(figure, gaps=int(done[panels].isna().any(axis=1).sum()))


def noise_kurtosis(results: Results) -> Figure | None:
    """C8: excess kurtosis of the noise by layer, a panel an epoch: quartiles over features; hollow, what is judged."""
    runs = [run for run in results.of("cifar").figure1 if len(run.noise) and _shows(JUDGED, run)]
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
    figure, panels = _figure(list(epochs), sharey=True)
    for title, axes in panels.items():
        of = table[table["epoch"] == epochs[title]]
        colours = [look[param].colour for param in of["param"]]
        axes.vlines(of["x"], of[low], of[high], colors=colours, linewidth=1, rasterized=len(of) > MANY)
        _dots(axes, look, of, median)
        hollow, known = {"markerfacecolor": "white"}, of.dropna(subset="judged")
        papers = known["param"].isin(JUDGED)
        _dots(axes, look, known[papers], "judged", label="judged: bn's 1/σ, mean-only's μ", **hollow)
        _dots(axes, look, known[~papers], "judged", label="not judged: others' μ", **hollow)
        axes.axhline(0, **RULE)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(_ticks())
        axes.set(title=title, ylabel="excess kurtosis of the noise\n(0: Gaussian)")
        axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    measured = table.groupby("run")["judged"].transform("count") > 0
    lost = table[[*QUARTILES]].isna().any(axis=1) | (table["judged"].isna() & measured)
    return _legend(figure, gaps=table["run"][lost].nunique())


def init(results: Results) -> Figure | None:
    """C3: each layer's largest |mean| and |variance − 1| over the init batch, by experiment and data set, or game."""
    runs = [(name, run) for name, part in results.parts.items() for run in part.in_precision if len(run.init)]
    if not runs:
        return None
    tables = [run.init.assign(part=name, param=run.param, run=run.name) for name, run in runs]
    table = pd.concat(tables).replace([math.inf, -math.inf], math.nan)
    places, names = pd.factorize(table["part"])
    table["x"] = places + np.concatenate([np.linspace(-0.35, 0.35, len(one)) for one in tables])
    far = table[["variance_min", "variance_max"]].sub(1).abs().max(axis=1, skipna=False)
    shown = {"largest |mean|": (table["mean_abs_max"], INIT_MEAN), "largest |variance − 1|": (far, INIT_VARIANCE)}
    figure, panels = _figure(list(shown))
    for (label, (values, limit)), axes in zip(shown.items(), panels.values(), strict=True):
        _dots(axes, looks(results.labels), table.assign(y=values.clip(lower=1e-9)), "y", markersize=2.5)
        axes.axhline(limit, **DASHES, label="limit of the rule")
        axes.set(yscale="log", ylabel=label)
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    return _legend(figure, gaps=table["run"][table.isna().any(axis=1)].nunique())


def variants(found: Mapping[str, Finding]) -> Figure | None:
    """C15 and C16: the estimates with the intervals that decide, a panel a claim."""
    bounded = f"‖v‖ ≤ {paper.V_NORM_MAX:g}"
    titles = {
        "C15": "C15, CIFAR-10, g = exp(c·s): relative test error (lower is better)",
        "C16a": f"C16, VAEs, {bounded}: test bound in nats (higher is better)",
        "C16b": f"C16, CIFAR-10, {bounded}: relative test error (lower is better)",
    }
    panels: dict[str, list[tuple[str, Look, list[Estimate]]]] = {}
    for claim, title in titles.items():
        for e in found[claim].estimates if claim in found else ():
            if e.n and not e.name.endswith(" diverged"):  # whose shares have another unit
                label = f"{e.name} (n = {e.n}{'' if math.isfinite(e.value) else ', not finite'})".strip()
                panels.setdefault(title, []).append((label, LOOKS["wn"], [e]))
    return _intervals(panels)


def step_time(results: Results) -> Figure | None:
    """C7: step time over normal's by experiment, device and version, every session; the paper's 16 % as a star."""
    panels, limit = {}, (NOTICEABLE - 1,)
    for experiment, (device, torch), timed in [(e, *of) for e in SETTINGS for of in sessions(results, e).items()]:
        rows = []
        for param, look in [*looks(results.labels).items()][1:]:
            some = [ratio for one in timed if (ratio := one.ratios.get(f"{param}{OVER_NORMAL}"))]
            ends = [Estimate("", r["median"] - 1, r["low"] - 1, r["high"] - 1, margin=limit) for r in some]
            rows += [(look.label, look, ends)] if ends or param in PARAMS else []
        if any(ends for _, _, ends in rows):
            panels[f"{experiment} ({count(len(timed), 'session')}), {device}, torch {torch}"] = rows
    return _intervals(panels, "step time over normal's: median, 95 % interval")


def _intervals(panels: Mapping[str, Sequence[tuple[str, Look, Sequence[Estimate]]]], label: str = "") -> Figure | None:
    """Panels of rows: label, look and estimates, with intervals and margins. label: of a shared x axis."""
    panels = {title: rows[:MOST_NAMED] for title, rows in list(panels.items())[:MOST_NAMED]}
    if not panels:
        return None
    heights = [0.6 + 0.3 * len(rows) for rows in panels.values()]
    figure, places = _figure(list(panels), 1, heights, sharex=bool(label))
    for title, axes in places.items():
        for y, (_, look, estimates) in enumerate(panels[title]):
            for place, e in zip(y + np.linspace(-0.3, 0.3, len(estimates) + 2)[1:-1], estimates, strict=True):
                ends = [[e.value - e.low], [e.high - e.value]] if math.isfinite(e.low + e.high) else None
                drawn: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 5}
                axes.errorbar(e.value, place, xerr=ends, capsize=3, **drawn)
                if e.margin:
                    axes.vlines(e.margin, y - 0.5, y + 0.5, **DASHES, label="limit of the rule")
        if title.startswith("cifar"):
            axes.plot(paper.BN_STEP_TIME - 1, 0, marker="*", color=LOOKS["bn"].colour, **SIGN)
        axes.axvline(0, **RULE)
        axes.set_yticks(range(len(panels[title])), [row[0] for row in panels[title]], parse_math=False)
        axes.set_ylim(len(panels[title]) - 0.5, -0.5)
        axes.set_title(title[:90], loc="right", fontsize=8, parse_math=False)
        axes.xaxis.set_major_formatter(_ticks(form="+g") if "nats" in title else _ticks(100, " %", "+g"))
    axes.set_xlabel(label)
    return _legend(figure)

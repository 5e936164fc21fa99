"""The report's figures. One look a parameterization everywhere, in the colours of Okabe and Ito and of Paul Tol.

Each function returns None where there is nothing to draw, else a `Sheet`; split: for the page. A value that is not
finite leaves a gap, in the mean over seeds too; the legend says in how many runs.
"""

import functools
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

from wnrepro import paper
from wnrepro.report.canvas import (
    DASHES,
    GREY,
    LOOKS,
    MANY,
    MOST_NAMED,
    PRINT,
    RULE,
    SIGN,
    STYLE,
    STYLES,
    Drawn,
    Look,
    Sheet,
    key_svg,
    looks,
    powers,
    ticks,
)
from wnrepro.report.claims.cifar import NOTICEABLE, log_norms
from wnrepro.report.claims.claim import Finding
from wnrepro.report.claims.dqn import max_score
from wnrepro.report.claims.identities import INIT_LOSS, INIT_MEAN, INIT_VARIANCE, init_losses
from wnrepro.report.stats import Estimate, t_test
from wnrepro.results import OVER_NORMAL, QUARTILES, Results, Run, random_scores, sessions
from wnrepro.settings import GAMES, PARAMS, SETTINGS
from wnrepro.text import count, interval, listed, plain

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
# A column's label; whose values the y axis fits, from which part of the epochs on; the end at which it fits all others;
# how its numbers are written: factor, digits and unit.
COLUMNS: dict[str, tuple[str, tuple[str, ...], float, Callable[..., float], tuple[float, int, str]]] = {
    "train_error": ("training error", PARAMS, 0, max, (100, 1, " %")),
    "test_error": ("test error", PARAMS, 0.5, min, (100, 1, " %")),
    "growth": ("‖v‖ / ‖v‖ after the init\n(geometric mean over layers)", PARAMS, 0, max, (1, 3, "")),
    "test_bound_nats": ("test bound (nats)", COMPARED, 0.05, max, (1, 1, " nats")),
    "test_bits_per_dim": ("test bound, axis inverted\n(bits per dimension)", COMPARED, 0.05, min, (1, 2, " bits")),
    "difference": ("difference (nats)", PARAMS, 0.05, max, (1, 2, " nats")),
    "kl_nats": ("KL on the test images (nats)", COMPARED, 0, min, (1, 2, " nats")),
    "test_score": ("test score", PARAMS, 0, max, (1, 1, "")),
    "mean_q": ("mean Q value", PARAMS, 0, max, (1, 2, "")),
}
FROM_ZERO = ("train_error", "kl_nats", "difference")
CAPTIONS = {  # what is true of every such figure; the sheet says the rest
    "overview": "The last epoch of every experiment: one dot per finished run; of several, their mean with "
    "its 95 % t-interval.",
    "figure1": "Training error by epoch at figure 1's learning rates (the paper: "
    f"{paper.EPOCHS} epochs of 50 000 images, the rate falls from {paper.DECAY_FROM} on).",
    "test_error": "Test error by epoch (C4), same runs.",
    "learning_rates": "Final errors by learning rate (C6, C13): one dot per seed, lines through the means.",
    "norm_growth": "Growth of ‖v‖ by epoch (C14), fainter at smaller learning rates.",
    "noise_kurtosis": "Excess kurtosis of the noise by layer (C8): median and quartiles over features.",
    "init": "What the data-dependent init achieves (C3): the worst layer of the worst run, and how far the four "
    "initial losses of a start lie apart. Left of the limit, the check passes; zero stands at 10⁻⁹.",
    "variants": "The mean differences over n pairs of runs (C15, C16), and the intervals that decide.",
    "figure2": "Test bound by epoch (C9), of the Polyak-averaged parameters; higher is better.",
    "bound_raw": "MNIST's test bound, mean of the finished seeds: averaged parameters, and the raw ones (faint).",
    "figure3": "DRAW's test bound by epoch (C10); higher is better.",
    "kl_steps": "DRAW's KL of every time step, mean over the test images, after the last epoch of the finished runs.",
    "figure4": "DQN's mean score of full test games after every epoch (C11, C12).",
    "mean_q": "Mean over held-out states of random play of the largest Q value (rewards clipped to ±1), same runs.",
    "step_time": "Step time over that of the normal parameterization (C7: of cifar) in every session of a benchmark.",
}


NAMES = {
    "overview": "Final results",
    "norm_growth": "Growth of ‖v‖",
    "noise_kurtosis": "Normalization noise",
    "init": "Data-dependent init",
    "bound_raw": "Averaged and raw parameters",
    "kl_steps": "KL by time step",
    "mean_q": "Mean Q value",
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


@np.errstate(all="ignore")
def draw(results: Results, found: Mapping[str, Finding], printed: bool = True) -> dict[str, Drawn]:
    """The figures that there is data for, by name. found: the findings by claim. printed: with files for print."""
    drawn = {}
    for name in CAPTIONS:
        with warnings.catch_warnings(), matplotlib.rc_context(fname=STYLE):
            warnings.filterwarnings("ignore", "Glyph ")  # of a label, or a device's name
            if (sheet := sheets(name, results, found, split=True)) is None:
                continue
            caption, marks = " ".join([CAPTIONS[name], *sheet.said]), sheet.marks.values()
            panels = sheet.panels(name, caption)
            keys = [(key.label, key_svg(key, f"{name}-key-{i}"), key.group) for i, key in enumerate(sheet.keys)]
            with matplotlib.rc_context(PRINT):
                whole = sheets(name, results, found) if printed else None
                files = whole.files() if whole else {}
            seeds = {mark.seed for mark in marks} == {True, False}
            drawn[name] = Drawn(caption, files, panels, keys, seeds)
    return drawn


def sheets(name: str, results: Results, found: Mapping[str, Finding], split: bool = False) -> Sheet | None:
    """A figure, for print or split for the page."""
    if name in CURVES:
        return curves(name, results, split)
    if name == "variants":
        return variants(found, split)
    others = (overview, learning_rates, noise_kurtosis, init, step_time)
    return next(one for one in others if one.__name__ == name)(results, split)


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
        title = "wn − normal" if {one.run.param for one in less} <= {*COMPARED} else "less normal"
        panels[f"MNIST: {title}"] = less
    shown = {title: [one for one in curves if np.isfinite(one.y).any()] for title, curves in panels.items()}
    return {title: of for title, of in shown.items() if any(PUBLISHED not in one.group[1] for one in of)}, len(gaps)


def _shows(papers: Iterable[str], run: Run) -> bool:
    """Whether a figure of these of the paper's parameterizations has the run: it has all others too."""
    return run.param in papers or run.param not in PARAMS


def _curve(look: Mapping[str, Look], run: Run, column: str, words: str = "", thin: bool = True, **style: Any) -> Curve:
    """A column of a run; of cifar the words begin with the learning rate."""
    table, over = run.metrics, SETTINGS[run.experiment].step_column
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


def curves(name: str, results: Results, split: bool = False) -> Sheet | None:
    """A figure of curves by epoch, agent step or time step."""
    panels, gaps = _panels(name, results)
    if not panels:
        return None
    sheet = Sheet(list(panels), split)
    fits = {title: _set_up(sheet.places[title], title, of, results.scale) for title, of in panels.items()}
    for title, of in panels.items():
        for group in dict.fromkeys(one.group for one in of):
            _draw(sheet, sheet.places[title], [one for one in of if one.group == group])
        sheet.places[title].set_xlim(0)
    every = [(title, one) for title, of in panels.items() for one in of]
    most = max(Counter((title, one.group) for title, one in every if one.thin and one.run.done).values(), default=0)
    sides = {(COLUMNS[_column(one)][1], one.run.param in COLUMNS[_column(one)][1]) for _, one in every}
    words = next((words for params, words in FITS.items() if {(params, True), (params, False)} <= sides), "")
    epochs = f"epoch {' or '.join(map(str, sorted({*fits.values()} - {0})))} and later" if any(fits.values()) else ""
    said = {
        "Thin, every seed; thick, the mean of the finished ones (n); shaded, its standard error.": most > 1,
        "One line per run.": most < 2 and any(one.thin for _, one in every),
        f"The y axis fits {' of '.join(filter(None, (epochs, words)))}.": epochs or words,
        _ends(panels): name != "kl_steps",
    }
    sheet.said = [sentence for sentence, true in said.items() if sentence and true]
    return sheet.legend(_entries(panels), gaps)


def _ends(panels: Mapping[str, Sequence[Curve]]) -> str:
    """`At the end: MNIST: normal −100.9 nats, …`, means of the finished runs."""
    said = []
    for title, of in panels.items():
        factor, digits, unit = COLUMNS[_column(of[0])][-1]
        over = str(of[0].y.index.name).replace("_", " ").removesuffix("s")
        ends = []
        for group in sorted({one.group for one in of}, key=lambda group: _place(of, group)):
            alike = [one for one in of if one.group == group and one.run.done and len(one.y)]
            if alike:
                last = max(one.y.index[-1] for one in alike)
                alike = [one for one in alike if one.y.index[-1] == last]
                mean = float(np.mean([one.y.iloc[-1] for one in alike]))
                words = f" ({group[1]})" if group[1] and title.partition(": ")[0] == title else ""
                earlier = f" at {over} {last}" if last < max(one.y.index[-1] for one in of if len(one.y)) else ""
                ends.append(f"{alike[0].look.label}{words} {plain(factor * mean, f'.{digits}f', unit)}{earlier}")
        if ends:
            said.append(f"{title}: {listed(ends)}" if title else listed(ends))
    return f"At the end: {'; '.join(said)}." if said else ""


def _column(curve: Curve) -> str:
    return str(curve.y.name).removesuffix("_raw")


def _place(curves: Sequence[Curve], group: tuple[str, str]) -> tuple[Any, ...]:
    """Where a group stands in a legend: what is published last."""
    return PUBLISHED in group[1], next(one.look.place for one in curves if one.group == group), group[1]


def _label(look: Look, words: str) -> str:
    return f"{look.label}, {words}".removesuffix(", ")


def _entries(panels: Mapping[str, Sequence[Curve]]) -> dict[str, tuple[dict[str, Any], str]]:
    """Of a legend: `weight norm., lr 0.003 (n = 3)`, n being the finished runs, by panel if it differs."""
    every = [one for curves in panels.values() for one in curves]
    first = {one.group: one for one in reversed(every)}
    found = {}
    for group in sorted(first, key=lambda group: _place(every, group)):
        of = {title: [one for one in curves if one.group == group] for title, curves in panels.items()}
        finished = {title: sum(one.run.done for one in alike) for title, alike in of.items() if alike}
        n = ", ".join(f"{n} {title}" for title, n in finished.items() if n)
        if n and len(set(finished.values())) == 1:
            n = f"{max(finished.values())}{' each' if len(finished) > 1 else ''}"
        label = _label(first[group].look, group[1]) + (f" (n = {n})" if n else "")
        found[label] = first[group].style, " ".join(group)
    return found


def _draw(sheet: Sheet, axes: Axes, curves: Sequence[Curve]) -> None:
    """Those of a group, within the limits of the axes: every seed (thin), the mean of the finished ones and its
    standard error. Markers where there are few points; a mark where a run did not finish or ends below the axes.
    """
    look, thin, group = curves[0].look, curves[0].thin, " ".join(curves[0].group)
    param = curves[0].run.param
    line = curves[0].style | {"marker": look.marker if all(len(one.y) < FEW_POINTS for one in curves) else ""}
    bottom, (low, high) = axes.get_ylim()[0], sorted(axes.get_ylim())
    done, many = [one.y for one in curves if one.run.done], len(curves) > MANY
    for one in curves if thin else ():
        single = one.run.done and len(done) == 1  # it is the mean
        faint = line | {"linewidth": 0.7, "alpha": 0.5 * line.get("alpha", 1)}
        for drawn in [] if single else axes.plot(one.y.index, one.y, markersize=2.5, rasterized=many, **faint):
            sheet.mark(drawn, group, param, bool(done), one.run.name, points=[] if many else _points(one.y, low, high))
        end = np.flatnonzero(np.isfinite(one.y))[-1]
        place = np.clip(one.y.iloc[end], low, high)
        below = place == bottom != one.y.iloc[end]
        if sign := "x" if one.run.diverged else ">" if not one.run.done else "v" if below else "":
            (end_,) = axes.plot(one.y.index[end], place, marker=sign, color=look.colour, clip_on=False, **SIGN)
            sheet.mark(end_, group, param, False, one.run.name)
    if done:
        values = pd.DataFrame([y.reset_index(drop=True) for y in done])  # a shorter one has no numbers at the end
        mean = pd.Series(values.mean(skipna=False).to_numpy(), max(done, key=len).index, name=done[0].name)
        (thick,) = axes.plot(mean.index, mean, markersize=3, **line)
        name = f"{_label(look, curves[0].group[1])}, mean of {len(done)} runs"
        name = next(one.run.name for one in curves if one.run.done) if len(done) == 1 else name
        sheet.mark(thick, group, param, False, name, points=_points(mean, low, high))
        if thin and len(done) > 1:
            ends = [mean + sign * values.sem(skipna=False).to_numpy() for sign in (-1, 1)]
            band = axes.fill_between(mean.index, *ends, color=look.colour, alpha=0.15, linewidth=0)
            sheet.mark(band, group, param, False, name)


def _points(y: pd.Series, low: float, high: float) -> list[tuple[float, float, str]]:
    """What is said of a curve's points within the limits, at most as many as a panel can tell apart."""
    factor, digits, unit = COLUMNS[str(y.name).removesuffix("_raw")][-1]
    word = str(y.index.name).replace("_", " ")
    shown = y[(y >= low) & (y <= high)]
    some = shown.iloc[:: max(1, math.ceil(len(shown) / MANY))]
    return [
        (x, value, f"{word} {x:g}: {plain(factor * value, f'.{digits + 1}f', unit)}")
        for x, value in zip(some.index.to_numpy(float), some.to_numpy(float), strict=True)
    ]


def _set_up(axes: Axes, title: str, curves: Sequence[Curve], scale: str) -> int:
    """Title, labels and limits of a panel, and what it shows beside the curves; the epoch from which on the y axis fits
    them, or 0: the first epochs lie so far off that the rest would be a line. A diverged run sets no limit unless all
    diverged.
    """
    run, column, over = curves[0].run, str(curves[0].y.name), str(curves[0].y.index.name)
    label, params, share, best, _ = COLUMNS[column]
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
        axes.yaxis.set_major_formatter(ticks(100, " %"))
        if run.decay_from < run.epochs:
            axes.axvline(run.decay_from, **DASHES, label=f"from epoch {run.decay_from} on the learning rate falls")
    if title and any(one.run.settings.get("data") == "bundled" for one in curves):
        title = f"bundled images in place of {title}"
    axes.set(title=title, ylabel=label, xlabel=below)
    axes.locator_params(axis="x", integer=True, nbins=6, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter(EngFormatter())
    return int(first)


def _dots(sheet: Sheet, axes: Axes, of_all: Mapping[str, Look], table: pd.DataFrame, column: str, **style: Any) -> None:
    """A dot a row, at its `x`, in the look of its `param`; a row's `run` and `words` say what it is."""
    for param, look in of_all.items():
        if (of := table[table["param"] == param]).empty:
            continue
        drawn: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 3.5, "linestyle": "none"}
        many = len(of) > 5 * MANY
        (dots,) = axes.plot(of["x"], of[column], **drawn | {"label": look.label, "rasterized": many} | style)
        points = [] if many else [*zip(of["x"], of[column], of["words"], strict=True)]
        sheet.mark(dots, param, param, False, look.label, points=points)


def learning_rates(results: Results, split: bool = False) -> Sheet | None:
    """C13: the final errors by learning rate, every seed a dot; the runs that diverged above."""
    runs = [run for run in results.of("cifar").standard if run.diverged or run.done]
    if not runs:
        return None
    panels = ["train_error", "test_error"]
    finals = [(run.param, run.lr, run.diverged, run.seed, *map(run.final, panels)) for run in runs]
    table = pd.DataFrame(finals, columns=["param", "lr", "diverged", "seed", *panels])
    look = looks(results.labels)
    table["x"] = table["lr"] * 1.06 ** (table["param"].map([*look].index) % len(STYLES) - 1.5)
    table["words"] = [f"lr {run.lr:g}, seed {run.seed}" + ", diverged" * run.diverged for run in runs]
    done, lost = table[~table["diverged"]], table[table["diverged"]].assign(above=1.03)
    sheet = Sheet(panels, split)
    for column, axes in sheet.places.items():
        said = [
            f"{words}: {plain(100 * value, '.2f', ' %')}"
            for words, value in zip(done["words"], done[column], strict=True)
        ]
        _dots(sheet, axes, look, done.assign(words=said), column, clip_on=False)
        for param in (param for param in look if (done["param"] == param).any()):
            means = done[done["param"] == param].groupby("x")[column].mean(skipna=False)
            line: dict[str, Any] = {"color": look[param].colour, "linestyle": look[param].line}
            sheet.mark(axes.plot(means.index, means, **line)[0], param, param, False, "")
        above = {"transform": axes.get_xaxis_transform(), "clip_on": False, "label": ""}
        _dots(sheet, axes, look, lost, "above", marker="x", **above, **SIGN)
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"final {COLUMNS[column][0]}", ylim=(0, None))
        rates = FixedLocator(sorted(table["lr"].unique()), nbins=8)
        axes.xaxis.set(major_locator=rates, minor_locator=NullLocator(), major_formatter=ticks())
        axes.yaxis.set_major_formatter(ticks(100, " %"))
    means = done.groupby(["param", "lr"])["test_error"].mean(skipna=False)
    best = [(means[param].idxmin(), param) for param in look if param in means and np.isfinite(means[param]).any()]
    ns, lost_ns = done.groupby(["param", "lr"]).size(), lost.groupby(["param", "lr"]).size()
    ends = [
        f"{look[param].label} {plain(100 * means[param, lr], '.1f', ' %')} at {lr:g} (n = {ns[param, lr]}"
        + (f", {lost_ns[param, lr]} diverged)" if (param, lr) in lost_ns else ")")
        for lr, param in best
    ]
    sheet.said = [f"Lowest mean test error: {listed(ends)}."] if ends else []
    return sheet.legend(gaps=int(done[panels].isna().any(axis=1).sum()))


def noise_kurtosis(results: Results, split: bool = False) -> Sheet | None:
    """C8: excess kurtosis of the noise by layer, one panel per epoch: quartiles over features; hollow: judged."""
    runs = [run for run in results.of("cifar").figure1 if len(run.noise) and _shows(JUDGED, run)]
    if not runs:
        return None
    look = looks(results.labels)
    table = pd.concat(
        run.noise.assign(param=run.param, run=i, name=run.name, judged=run.noise[JUDGED.get(run.param, NOT_JUDGED)])
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
            some, pixels = of[of["param"] == param], len(of) > 5 * MANY
            bars = axes.vlines(some["x"], some[low], some[high], look[param].colour, linewidth=0.8, rasterized=pixels)
            sheet.mark(bars, param, param, False, "")
        words = [f"{layer}: {plain(value)}" for layer, value in zip(of["layer"], of[median], strict=True)]
        _dots(sheet, axes, look, of.assign(words=words), median)
        hollow, known = {"markerfacecolor": "white"}, of.dropna(subset="judged")
        papers = known["param"].isin(JUDGED)
        judged = [f"{layer}: {plain(value)}" for layer, value in zip(known["layer"], known["judged"], strict=True)]
        known = known.assign(words=judged)
        _dots(sheet, axes, look, known[papers], "judged", label="judged: bn's 1/σ, mean-only's μ", **hollow)
        _dots(sheet, axes, look, known[~papers], "judged", label="not judged: others' μ", **hollow)
        axes.axhline(0, **RULE)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(ticks())
        axes.set(title=title, ylabel="excess kurtosis of the noise\n(0: Gaussian)")
        axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    sheet.same_limits("y")
    medians = table.groupby("param")[median].median()
    ends = [f"{look[param].label} {plain(medians[param])}" for param in look if param in medians]
    sheet.said = [f"Median over layers and epochs: {listed(ends)}."]
    measured = table.groupby("run")["judged"].transform("count") > 0
    sheet.said += [] if measured.any() else ["The statistics that C8 is judged on were not measured in these runs."]
    lost = table[[*QUARTILES]].isna().any(axis=1) | (table["judged"].isna() & measured)
    return sheet.legend(gaps=table["run"][lost].nunique())


Rows = list[tuple[str, Look, list[Estimate]]]  # label, look, estimates with intervals and margins


def init(results: Results, split: bool = False) -> Sheet | None:
    """C3: the largest |mean| and |variance − 1| of any layer of any run over the init batch, and the spread of the
    initial losses, by experiment and data set, or game.
    """
    look, limits, gaps = looks(results.labels), (INIT_MEAN, INIT_VARIANCE, INIT_LOSS), set()
    dots = []
    for name, part in results.parts.items():
        for run in (run for run in part.in_precision if len(run.init)):
            ends = run.init[["mean_abs_max", "variance_min", "variance_max"]].to_numpy(float)
            dots += [
                (0, name, run.param, float(ends[:, 0].max())),
                (1, name, run.param, float(np.abs(ends[:, 1:] - 1).max())),
            ]
            gaps |= {run.path} if not np.isfinite(ends).all() else set()
        dots += [(2, name, "normal", spread) for spread in init_losses(part.papers)]
    if not dots:
        return None
    every = pd.DataFrame(dots, columns=["panel", "part", "param", "x"])
    table = every.groupby(["panel", "part", "param"], sort=False)["x"].agg(["max", "count"]).reset_index()
    names: list[str] = [*dict.fromkeys(map(str, table["part"]))]
    titles = ["largest |mean|", "largest |variance − 1|", "spread of the initial losses"][: table["panel"].max() + 1]
    sheet, all_four = Sheet(titles, split, heights=[0.7 + 0.22 * len(names)]), {"label": "all four", "color": GREY}
    for i, (title, axes) in enumerate(sheet.places.items()):
        of = table[table["panel"] == i]
        of = of.assign(x=of["max"].clip(lower=1e-9), y=of["part"].map(names.index) + 0.0)
        if i < 2:
            of["y"] += (of["param"].map([*look].index) % 4 - 1.5) * 0.18
        of["words"] = [
            f"{part}, {param}: {plain(value, '.1e')} (n = {n})"
            for part, param, value, n in zip(of["part"], of["param"], of["max"], of["count"], strict=True)
        ]
        _dots(sheet, axes, look, of, "y", **(all_four if i == 2 else {}))
        axes.axvline(limits[i], **DASHES | {"zorder": 2}, label="limit of the rule")
        axes.axvspan(limits[i], 8 * limits[i], color="#dddddd", linewidth=0, zorder=0)
        axes.set(xscale="log", xlim=(None, 8 * limits[i]), ylim=(len(names) - 0.5, -0.5), title=title)
        axes.set_yticks(range(len(names)), names if split or not i else [""] * len(names), parse_math=False)
        axes.xaxis.set(major_locator=LogLocator(numticks=4), minor_locator=NullLocator(), major_formatter=powers())
        sheet.said.append(f"{title.replace('spread', 'largest spread').capitalize()}: {plain(of['max'].max(), '.1e')}.")
    return sheet.legend(gaps=len(gaps))


def overview(results: Results, split: bool = False) -> Sheet | None:
    """The final result of every experiment and data set, or game, by parameterization, with 95 % t-intervals."""
    look, panels, gaps = looks(results.labels), {}, 0
    for part, of in results.parts.items():
        model = SETTINGS[of.runs[0].experiment].models[of.runs[0].dataset]
        title, column, label = model.title, model.result, model.result_label
        title += ", bundled images" * ("bundled" in (of.defaults.get("data"), of.defaults.get("dataset")))
        factor, digits, _ = COLUMNS[column][-1] if column in COLUMNS else (1, 3, "")
        several = {"": [*(of.figure1 if part == "cifar" else of.figure2)]}
        several |= {f", g = {g:g}": [*more] for g, more in of.others("g_start").items()}
        rows: Rows = []
        last = max((run.epoch for runs in several.values() for run in runs if run.done), default=0)
        for words, runs in several.items():
            for param in look:
                some = [run for run in runs if run.param == param and run.done]
                some = [run for run in some if run.epoch == max(run.epoch for run in some)]
                values = [max_score(run, run.epoch) if model.best else run.final(column) for run in some]
                gaps += sum(not math.isfinite(value) for value in values)
                if values := [factor * value for value in values]:
                    earlier = f", {count(some[0].epoch, 'epoch')}" if some[0].epoch < last else ""
                    name = f"{param if param in PARAMS else look[param].label}{words} (n = {len(values)}{earlier})"
                    dots = [Estimate(run.name, value) for run, value in zip(some, values, strict=True)]
                    rows.append((name, look[param], [t_test("", values), *dots]))
        if rows:
            panels[title] = rows, label, digits
    if not panels:
        return None
    sheet = Sheet(
        list(panels),
        split,
        min(2, len(panels)),
        [0.75 + 0.14 * max(len(rows) for rows, *_ in panels.values())] * -(-len(panels) // 2),
    )
    for title, (rows, label, digits) in panels.items():
        axes = sheet.places[title]
        for y, (name, style, (mean, *dots)) in enumerate(rows):
            drawn: dict[str, Any] = {"color": style.colour, "marker": style.marker}
            for dot in dots[:MANY] if len(dots) > 1 else ():
                (one,) = axes.plot(dot.value, y, markersize=2.5, alpha=0.5, **drawn)
                sheet.mark(
                    one, "", style.param, True, dot.name, points=[(dot.value, y, plain(dot.value, f".{digits + 1}f"))]
                )
            ends = [[mean.value - mean.low], [mean.high - mean.value]] if math.isfinite(mean.low + mean.high) else None
            bar = axes.errorbar(mean.value, y, xerr=ends, capsize=2, markersize=4, elinewidth=1.2, **drawn)
            words = f"{plain(mean.value, f'.{digits + 1}f')} {interval(mean.low, mean.high, digits + 1)}".strip()
            sheet.mark(bar, "", style.param, False, name, points=[(mean.value, y, words)])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=label.replace(", ", "\n") if split else label)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows], parse_math=False)
        axes.set_title(title)
        axes.xaxis.set_major_formatter(ticks())
        axes.locator_params(axis="x", nbins=3 if split else 5)
        best = [f"{name} {plain(e.value, f'.{digits}f')}" for name, _, (e, *_) in rows]
        sheet.said.append(f"{title}: {listed(best)}.")
    return sheet.legend(gaps=gaps)


def variants(found: Mapping[str, Finding], split: bool = False) -> Sheet | None:
    """C15 and C16: the estimates with the intervals that decide, one panel per claim."""
    bounded = f"‖v‖ ≤ {paper.V_NORM_MAX:g}"
    titles = {
        "C15": "C15, g = exp(c·s): relative test error",
        "C16a": f"C16, VAEs, {bounded}: test bound (nats)",
        "C16b": f"C16, CIFAR-10, {bounded}: relative test error",
    }
    panels: dict[str, Rows] = {}
    for claim, title in titles.items():
        for e in found[claim].estimates if claim in found else ():
            if e.n and not e.name.endswith(" diverged"):  # whose shares have another unit
                label = f"{e.name} (n = {e.n}{'' if math.isfinite(e.value) else ', not finite'})".strip()
                panels.setdefault(title, []).append((label, LOOKS["wn"], [e]))
    return _intervals(panels, split)


def step_time(results: Results, split: bool = False) -> Sheet | None:
    """C7: step time over normal's by experiment, device and version, every session; the paper's 16 % as a star."""
    panels, limit = {}, (NOTICEABLE - 1,)
    for experiment, (device, torch), timed in [(e, *of) for e in SETTINGS for of in sessions(results, e).items()]:
        rows: Rows = []
        for param, look in [*looks(results.labels).items()][1:]:
            some = [ratio for one in timed if (ratio := one.ratios.get(f"{param}{OVER_NORMAL}"))]
            margin = limit if experiment == "cifar" else ()  # of C7
            ends = [Estimate("", r["median"] - 1, r["low"] - 1, r["high"] - 1, margin=margin) for r in some]
            rows += [(param if param in PARAMS else look.label, look, ends)] if ends or param in PARAMS else []
        if any(ends for _, _, ends in rows):
            panels[f"{experiment} ({count(len(timed), 'session')}), {device}, torch {torch}"] = rows
    return _intervals(panels, split, "step time over normal's: median, 95 % interval")


def _intervals(panels: Mapping[str, Rows], split: bool, label: str = "") -> Sheet | None:
    """Panels of rows, with intervals and margins. label: of an x axis that all share."""
    panels = {title: rows[:MOST_NAMED] for title, rows in list(panels.items())[:MOST_NAMED]}
    if not panels:
        return None
    sheet = Sheet(list(panels), split, 1, [0.5 + 0.2 * len(rows) for rows in panels.values()])
    for title, axes in sheet.places.items():
        digits, factor, unit = (2, 1, " nats") if "nats" in title else (1, 100, " %")
        said = []
        for y, (row, look, estimates) in enumerate(panels[title]):
            for place, e in zip(y + np.linspace(-0.3, 0.3, len(estimates) + 2)[1:-1], estimates, strict=True):
                ends = [[e.value - e.low], [e.high - e.value]] if math.isfinite(e.low + e.high) else None
                drawn: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 4}
                bar = axes.errorbar(e.value, place, xerr=ends, capsize=2, elinewidth=1, **drawn)
                number = plain(factor * e.value, f"+.{digits}f", unit)
                number = f"{number} {interval(e.low, e.high, digits, factor, sign=True)}".strip()
                sheet.mark(bar, "", look.param, False, row, points=[(e.value, place, number)])
                said += [f"{row} {number}"] if math.isfinite(e.value) else []
                if e.margin:
                    axes.vlines(e.margin, y - 0.5, y + 0.5, **DASHES, label="limit of the rule")
        if title.startswith("cifar"):
            axes.plot(paper.BN_STEP_TIME - 1, 0, marker="*", color=LOOKS["bn"].colour, **SIGN)
        axes.axvline(0, **RULE)
        axes.set_yticks(range(len(panels[title])), [row[0] for row in panels[title]], parse_math=False)
        axes.set_ylim(len(panels[title]) - 0.5, -0.5)
        axes.set_title(textwrap.fill(title[:90], 38 if split else 90), loc="right", parse_math=False)
        axes.tick_params(labelbottom=split or not label or axes is sheet.axes[-1])
        axes.xaxis.set_major_formatter(ticks(form="+g") if "nats" in title else ticks(100, " %", "+g"))
        sheet.said += [f"{title}: {listed(said)}."] if said and (not label or title.startswith("cifar")) else []
    if label:
        sheet.same_limits("x")
        for axes in sheet.axes if split else sheet.axes[-1:]:
            axes.set_xlabel(label)
    return sheet.legend()

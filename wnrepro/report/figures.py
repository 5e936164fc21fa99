"""The report's figures. One colour and line style a parameterization everywhere (Okabe and Ito's palette).

Each function returns None where there is nothing to draw. Objects only, no pyplot: nothing global is changed.
What is not finite leaves a gap, in the mean over seeds too, and the legend says of how many runs.
"""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from wnrepro import paper
from wnrepro.report.claims.cifar import NOTICEABLE, log_norms
from wnrepro.report.claims.claim import count
from wnrepro.report.claims.identities import INIT_MEAN, INIT_VARIANCE
from wnrepro.report.stats import Estimate
from wnrepro.results import Results, Run, random_scores, sessions
from wnrepro.settings import GAMES, PARAMS, SETTINGS

if TYPE_CHECKING:
    from wnrepro.report.claims.claim import Finding

COLOURS = {"normal": "#000000", "bn": "#D55E00", "wn": "#0072B2", "wn+mobn": "#009E73"}
LINES: dict[str, Any] = {"normal": (0, (5, 1.5)), "bn": (0, (1, 1)), "wn": "solid", "wn+mobn": (0, (6, 1.5, 1, 1.5))}
MARKERS = {"normal": "s", "bn": "^", "wn": "o", "wn+mobn": "D"}
LABELS = {"normal": "normal", "bn": "batch norm.", "wn": "weight norm.", "wn+mobn": "weight norm. + mean-only b.n."}
DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "wnrepro",
}
WIDTH = 6.2  # inches
RULE: dict[str, Any] = {"color": "#777777", "linewidth": 0.8, "zorder": 0}  # of lines that are no data
DASHES: dict[str, Any] = {**RULE, "linestyle": (0, (2, 2))}
STAR: dict[str, Any] = {"marker": "*", "markersize": 10, "linestyle": "none", "markerfacecolor": "none"}
STATES = {"x": "diverged", ">": "not finished", "v": "ends below"}  # by the mark where a curve ends
MOST_SHOWN = 100  # runs of a parameterization and panel that are drawn one by one
MOST_NAMED = 20  # entries of an axis or a legend
FEW_POINTS = 10  # a curve of fewer has markers
COMPARED = ("normal", "wn")  # by the paper, in figures 2 and 3
JUDGED = {"bn": "kurtosis_inverse_std", "wn+mobn": "kurtosis_mean"}  # columns of noise.csv, by C8
PUBLISHED = "published in this repository"

CIFAR, DRAW, VAES = [("cifar", None)], [("draw", None)], [("cvae", dataset) for dataset in DATASETS]
DQN = [("dqn", game) for game in sorted(GAMES, key=lambda name: name != paper.FIGURE4)]
# The figures of curves: experiment and data set, or game, of every panel; column; a setting whose other values are
# drawn too, dotted.
CURVES: dict[str, tuple[Sequence[tuple[str, str | None]], str, str]] = {
    "figure1": (CIFAR, "train_error", ""),
    "test_error": (CIFAR, "test_error", ""),
    "norm_growth": (CIFAR, "growth", ""),
    "figure2": (VAES, "test_bound_nats", ""),
    "bound_raw": (VAES[:1], "test_bound_nats", ""),
    "figure3": (DRAW, "test_bound_nats", "g_start"),
    "kl_steps": (DRAW, "kl_nats", "g_start"),
    "figure4": (DQN, "test_score", "actors"),
    "mean_q": (DQN, "mean_q", "actors"),
}
# A column's label; whose values the y axis fits, from which part of the epochs on; the end at which it fits all others.
COLUMNS: dict[str, tuple[str, Sequence[str], float, Callable[..., float]]] = {
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
OTHERS = {  # in a legend, and in a caption
    "g_start": ("g = {:g} at the start", "runs that start with another g (`--g-start`)"),
    "actors": ("{} games in lock-step", "runs of several games in lock-step (`--actors`)"),
}
CAPTIONS = {  # what is true of every such figure; `caption` says the rest
    "figure1": "Training error by epoch at figure 1's learning rates.",
    "test_error": "Test error by epoch (C4), same runs.",
    "learning_rates": "Final errors by learning rate (C6, C13): a dot a seed, lines through the means.",
    "norm_growth": "Growth of ‖v‖ by epoch (C14), fainter at smaller learning rates.",
    "noise_kurtosis": "Excess kurtosis of the noise over examples and minibatches, by layer (C8): median and quartiles "
    "over features.",
    "init": "What the data-dependent init achieves (C3): a dot a run and layer, from the first layer of a model to its "
    "last; zero stands at 10⁻⁹. Dashes: the rule's limits.",
    "variants": "The mean differences, over n pairs of runs, that C15 and C16 are judged by, and the intervals that "
    "decide. Dashes: limits of the smallest difference that matters.",
    "figure2": "Test bound by epoch (C9), of the Polyak-averaged parameters; higher is better.",
    "bound_raw": "MNIST's test bound, mean of the finished seeds: averaged parameters, and the raw ones (faint).",
    "figure3": "DRAW's test bound by epoch (C10); higher is better.",
    "kl_steps": "DRAW's KL of every time step, mean over the test images, after the last epoch of the finished runs.",
    "figure4": "DQN's mean score of full test games after every epoch (C11, C12), by agent steps.",
    "mean_q": "Mean over held-out states of random play of the largest Q value (rewards clipped to ±1), same runs.",
    "step_time": "Step time over that of the normal parameterization (C7: of cifar) in every session of a benchmark.",
}


@dataclass(frozen=True)
class Series:
    """Runs whose curves of a column are drawn alike, in the colours of their parameterizations."""

    runs: Sequence[Run]
    column: str
    words: str = ""  # in the legend: what sets these runs apart
    style: Mapping[str, Any] = field(default_factory=dict)
    thin: bool = True  # whether every run is drawn, beside the mean of the finished ones

    @functools.cached_property
    def shown(self) -> list[Run]:
        """Those with a finite number."""
        return [run for run in self.runs if np.isfinite(self.curve(run)[1]).any()]

    def of(self, param: str) -> list[Run]:
        return [run for run in self.shown if run.param == param]

    def line(self, param: str) -> dict[str, Any]:
        return {"color": COLOURS[param], "linestyle": LINES[param], "linewidth": 1.8, **self.style}

    def curve(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """The column (y) by epoch, agent step or, at the end of a finished run, time step (x)."""
        table, over = run.metrics, "agent_steps" if run.experiment == "dqn" else "epoch"
        if self.column == "kl_nats":
            last = run.kl_steps["epoch"] == (run.kl_steps["epoch"].max() if run.done else -1)
            table, over = run.kl_steps[last], "time_step"
        return table[over].to_numpy(float), table[self.column].to_numpy(float)

    def values(self, runs: Sequence[Run], first: float = 0) -> np.ndarray:
        """The finite numbers of some of them from an x on."""
        found = [y[(x >= first) & np.isfinite(y)] for x, y in map(self.curve, runs)]
        return np.concatenate([np.empty(0), *found])

    @property
    def gaps(self) -> set[Path]:
        """The runs with a gap. Where one that diverged has a number, the mark of its end says enough."""
        found = set()
        for run in self.runs:
            known = np.isfinite([*self.curve(run)[1], *(run.scores(0) if self.column == "test_score" else [])])
            if len(known) and not (known.any() if run.diverged else known.all()):
                found.add(run.path)
        return found


def render(figure: Figure) -> dict[str, bytes]:
    """The figure's files by suffix, the same bytes for the same figure."""
    files = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return files


@np.errstate(all="ignore")
def draw(results: Results, found: "Mapping[str, Finding]") -> dict[str, dict[str, bytes]]:
    """The figures that there is data for: {name: {"png": bytes, "svg": bytes}}. found: the findings by claim."""
    with matplotlib.rc_context(STYLE):
        figures = {name: curves(name, results) for name in CURVES} | {"variants": variants(found)}
        figures |= {one.__name__: one(results) for one in (learning_rates, noise_kurtosis, init, step_time)}
        return {name: render(figure) for name in CAPTIONS if (figure := figures[name]) is not None}


@np.errstate(all="ignore")
def caption(name: str, results: Results) -> str:
    """What a figure of `draw` shows, as it is drawn: the program's own text, `code` in backticks."""
    panels = _panels(name, results) if name in CURVES else {}
    series = [one for some in panels.values() for one in some if one.shown]
    thin, runs = [one for one in series if one.thin], [run for one in series for run in one.shown]
    groups = [one.shown for one in thin] if name in CURVES else _measured(name, results)
    most = max((sum(run.done for run in one.of(param)) for one in thin for param in PARAMS), default=0)
    dotted = any(one.style.get("linestyle") == ":" for one in thin)
    fitted = len(panels) > 0 and COLUMNS[CURVES[name][1]][1] == COMPARED
    compared = [run.param in COMPARED for run in runs if fitted]
    said = {
        "thin, every seed": thin,
        f"thick, the mean of the finished ones (n){' and its standard error' if most > 1 else ''}": most,
        f"dotted, {OTHERS[CURVES[name][2]][1] if dotted else ''}": dotted,
        f"dash-dotted and thin, the mean of those {PUBLISHED}": any(one.words == PUBLISHED for one in series),
        f"dashes, where the learning rate starts to fall (epoch {_falls_from(runs)})": _falls_from(runs),
        "the y axis fits normal and weight normalization": any(compared) and not all(compared),
        "below, weight normalization less normal on MNIST, by seed": "below" in panels,
        f"of each parameterization the first {MOST_SHOWN} runs are shown": any(len(_first(g)) < len(g) for g in groups),
    }
    text = "; ".join(words for words, true in said.items() if true)
    return f"{CAPTIONS[name]} {text[0].upper()}{text[1:]}." if text else CAPTIONS[name]


def _measured(name: str, results: Results) -> list[list[Run]]:
    """The runs that a figure of single measurements is of, in groups: it shows those of `_first`."""
    if name == "init":
        return [[run for run in part.in_precision if len(run.init)] for part in results.parts.values()]
    measured = [run for run in results.of("cifar").figure1 if len(run.noise) and run.param in JUDGED]
    return [measured] if name == "noise_kurtosis" and measured else []


def _first(runs: Sequence[Run]) -> list[Run]:
    """The first `MOST_SHOWN` of every parameterization."""
    return [run for param in PARAMS for run in [run for run in runs if run.param == param][:MOST_SHOWN]]


def _panels(name: str, results: Results) -> dict[str, list[Series]]:
    """What a figure of curves draws, by panel; of figure 2 below: what wn gains over normal on MNIST, by seed."""
    parts, column, setting = CURVES[name]
    if name == "norm_growth":
        return {LABELS[param]: series for param in ("wn", "wn+mobn") if (series := _growth(results.of("cifar"), param))}
    panels = {}
    for experiment, dataset in parts:
        of = [some and some.of(experiment, dataset) for some in (results, results.published)]
        ours, theirs = ([] if some is None else some.figure1 if experiment == "cifar" else some.figure2 for some in of)
        others = results.of(experiment, dataset).others(setting) if setting else {}
        kind = "test_bits_per_dim" if dataset == "cifar10" else column
        series = [Series(ours, kind)]
        for value, runs in others.items():
            series.append(Series(runs, kind, OTHERS[setting][0].format(value), {"linestyle": ":"}))
        done = [run for run in theirs if run.done]
        series.append(Series(done, kind, PUBLISHED, {"linestyle": "-.", "linewidth": 1}, thin=False))
        if name == "bound_raw":
            done = [run for run in ours if run.done and run.param in COMPARED]
            raw = Series(done, f"{kind}_raw", "raw", {"linewidth": 1.2, "alpha": 0.45}, thin=False)
            series = [Series(done, kind, "averaged", thin=False), raw]
        if any(one.shown for one in series if one.words != PUBLISHED):
            title = {"cifar": "", "draw": "MNIST", "dqn": paper.game_name(dataset or "")}.get(experiment)
            panels[DATASETS[dataset or ""] if title is None else title] = series
    if name == "figure2" and "MNIST" in panels:
        differences = Series(_differences(panels["MNIST"][0]), "difference", "less normal")
        panels |= {"below": [differences]} if differences.shown else {}
    return panels


def _growth(cifar: Results, param: str) -> list[Series]:
    """C14: the growth of ‖v‖, where it is free, of the runs with at least one epoch that did not diverge, by rate."""
    runs = [run for run in cifar.standard if run.param == param and not run.diverged]
    logs = [(run, log_norms(run)) for run in runs if run.layers["epoch"].nunique() > 1]
    grown = [replace(run, metrics=pd.DataFrame({"epoch": range(len(log)), "growth": np.exp(log)})) for run, log in logs]
    rates = sorted({run.lr for run in grown})
    shades = np.linspace(1 if len(rates) == 1 else 0.4, 1, len(rates))
    series = [Series([run for run in grown if run.lr == rate], "growth", f"lr {rate:g}") for rate in rates]
    return [replace(one, style={"alpha": shade}) for one, shade in zip(series, shades, strict=True) if one.shown]


def _differences(series: Series) -> list[Run]:
    """wn's runs with the `difference` to normal's of the same seed, over the epochs of both; done where both are."""
    normal = {run.seed: run for run in series.of("normal")}
    found = []
    for run, other in ((run, normal[run.seed]) for run in series.of("wn") if run.seed in normal):
        both = run.metrics[["epoch"]].assign(difference=run.metrics[series.column] - other.metrics[series.column])
        record = run.record if not run.done else other.record
        found.append(replace(run, metrics=both[: min(run.epoch, other.epoch)], record=record))
    return found


def curves(name: str, results: Results) -> Figure | None:
    """A figure of curves, two panels a row."""
    panels = _panels(name, results)
    if not panels:
        return None
    small = [title for title in panels if title != "below"]
    small += ["."] * (len(small) > 1 and len(small) % 2)
    rows = [small[i : i + 2] for i in range(0, len(small), 2)]
    rows += [["below"] * len(rows[0])] if "below" in panels else []
    figure, places = _figure(1.6 + 2.2 * len(rows), rows)
    every = [(title, one) for title, series in panels.items() for one in series]
    beside = [key for title in panels for key in _set_up(places[title], title, panels[title], results.scale)]
    marks = {m for title, one in every for i, p in enumerate(PARAMS) for m in _draw(places[title], one, p, i / 4)}
    drawn = {(one.words, p): one for _, one in every for p in PARAMS if one.words != PUBLISHED and one.of(p)}
    words = list(dict.fromkeys(one.words for _, one in every))
    order = sorted(drawn, key=lambda key: (words.index(key[0]), PARAMS.index(key[1])))
    keys = [_entry(panels, drawn[key], key[1]) for key in order]
    if len(keys) > MOST_NAMED:
        keys[MOST_NAMED:] = [_key(f"and {len(keys) - MOST_NAMED} more", linestyle="none")]
    keys += [_key(PUBLISHED, **one.style) for _, one in every if one.words == PUBLISHED and one.shown][:1]
    keys += [_key(label, marker=mark, linestyle="none") for mark, label in STATES.items() if mark in marks]
    _legend(figure, keys + beside[:1], len(set().union(*(one.gaps for _, one in every))))
    return figure


def _entry(panels: Mapping[str, Sequence[Series]], series: Series, param: str) -> Line2D:
    """Of a legend: `weight norm., lr 0.003 (n = 3)`, n being the finished runs, by panel where there are several."""
    alike = {title: [one for one in some if one.words == series.words] for title, some in panels.items()}
    runs = {title: [run for one in some for run in one.of(param)] for title, some in alike.items() if some}
    finished = {title: sum(run.done for run in some) for title, some in runs.items()}
    if len(finished) > 1 and len(set(finished.values())) == 1:
        finished = {"each": max(finished.values())}
    if len(panels) == 1 or series.column == "growth":
        finished = {"": sum(finished.values())}
    n = ", ".join(f"{n} {title}".strip() for title, n in finished.items() if n)
    first, detail = series.of(param)[0], f", {series.words}" if series.words else ""
    detail += f", lr {first.lr:g}" if series.column in ("train_error", "test_error") else ""
    if series.column == "kl_nats":
        detail += f", epoch {' and '.join(map(str, sorted({run.epoch for run in series.of(param)})[:3]))}"
    return _key(f"{LABELS[param]}{detail}{f' (n = {n})' if n else ''}", **series.line(param))


def _draw(axes: Axes, series: Series, param: str, stagger: float) -> set[str]:
    """Within the limits of the axes: every seed (thin), the mean of the finished ones and its standard error.

    Markers where there are few points; a mark, which it returns, where a run did not finish or ends below the axes.
    """
    marks, finished, style = set(), [], series.line(param)
    bottom, top = axes.get_ylim()
    for i, run in enumerate(series.of(param)):
        x, y = series.curve(run)
        finished += [(x, y)] if run.done else []
        if series.thin and i < MOST_SHOWN:
            few = MARKERS[param] if len(y) < FEW_POINTS else ""
            faint = style | {"linewidth": 0.8, "alpha": 0.5 * style.get("alpha", 1)}
            axes.plot(x, y, marker=few, markersize=3, **faint)
            end = np.flatnonzero(np.isfinite(y))[-1]
            below = (y[end] < bottom) if bottom < top else (y[end] > bottom)
            mark = "x" if run.diverged else ">" if not run.done else "v" if below else ""
            if mark:
                place = np.clip(y[end], min(bottom, top), max(bottom, top))
                axes.plot(
                    x[end], place, color=COLOURS[param], clip_on=False, marker=mark, markersize=7, markeredgewidth=1.8
                )
                marks.add(mark)
    if finished:
        length = min(len(y) for _, y in finished)
        values, every = np.array([y[:length] for _, y in finished]), max(1, length // 10)
        error = values.std(axis=0, ddof=1) / math.sqrt(len(values)) if series.thin and len(values) > 1 else None
        few, where = MARKERS[param] if length < FEW_POINTS else "", (int(stagger * every), every)
        bars: dict[str, Any] = {"errorevery": where, "elinewidth": 1, "capsize": 2, "marker": few, "markersize": 4}
        axes.errorbar(finished[0][0][:length], values.mean(axis=0), error, **bars, **style)
    return marks


def _set_up(axes: Axes, title: str, series: Sequence[Series], scale: str) -> list[Line2D]:
    """Title, labels and limits of a panel, and what it shows beside the curves; returns entries of the legend."""
    runs, column = [run for one in series for run in one.shown], series[0].column
    bundled = any(run.settings.get("data") == "bundled" for run in runs)
    title = {"below": "MNIST: weight norm. − normal"}.get(title, title)
    axes.set_title(f"bundled images in place of {title}" if bundled and column != "growth" and title else title)
    axes.set_ylabel(COLUMNS[column][0])
    last = max(one.curve(run)[0][-1] for one in series for run in one.shown)
    also: list[float] = [0] if column in ("difference", "kl_nats") else []
    if column == "kl_nats":
        ends = [(run.param, one.values([run]).max()) for one in series for run in one.shown]
        highest, compared = (max((end for param, end in ends if param in of), default=0) for of in (PARAMS, COMPARED))
        also.append(min(highest, 2 * compared or highest))
    random = random_scores(runs) if column == "test_score" else []
    if random:
        also = [float(np.mean(random))]
        axes.axhline(also[0], **DASHES)
    stars = {run.param: paper.TABLE2[run.param] / 100 for run in runs if (column, scale) == ("test_error", "paper")}
    first = _fit(axes, series, [*also, *stars.values()])
    images = sorted({int(run.settings["train_examples"]) for run in runs if "train_examples" in run.settings})
    label = " or ".join(f"{n:,}".replace(",", "\u2009") for n in images[:3]) or "?"
    label = f"epoch ({label} training images each)" + (f"\ny axis: fits epoch {first} and later" if first else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    if runs[0].experiment == "dqn":
        unit, units = (1e6, "millions") if last >= 1e6 else (1e3, "thousands")
        label = f"agent steps ({units})"
        axes.xaxis.set_major_formatter(_ticks("g", 1 / unit))
    elif column == "kl_nats":
        label = "time step"
        axes.set_ylim(bottom=0)
    else:
        last = max(run.epochs for run in runs)
    for param, error in stars.items():
        axes.plot(last, error, color=COLOURS[param], clip_on=False, zorder=5, **STAR)
    if column == "test_bits_per_dim":
        axes.invert_yaxis()
    if column == "difference":
        axes.axhline(0, **RULE)
    if column == "train_error":
        values = np.concatenate([one.values(one.shown) for one in series])
        low, high = float(values.min()), float(values.max())
        axes.set_ylim(0, 1.2 * high or 1)
        if 0 < low < 0.05:
            ticks = FixedLocator([base * m for base in (1e-4, 1e-3, 1e-2, 0.1) for m in (1, 2, 5)])
            axes.set(yscale="log", ylim=(0.8 * low, 2 * high))
            axes.yaxis.set(major_locator=ticks, minor_locator=NullLocator())
    if column in ("train_error", "test_error"):
        axes.yaxis.set_major_formatter(_ticks("g", 100, " %"))
        label += f"\nthe paper: {paper.EPOCHS} epochs of 50 000 images, the rate falls from {paper.DECAY_FROM} on"
    if falls_from := _falls_from(runs):
        axes.axvline(falls_from, **DASHES)
    axes.set(xlim=(0, 1.02 * last), xlabel=label)
    return [_key("the paper's test error", **STAR)] if stars else [_key("random play", **DASHES)] if random else []


def _fit(axes: Axes, series: Sequence[Series], also: Sequence[float]) -> int:
    """Let the y axis span what `COLUMNS` says, and `also`; returns the first epoch that it fits.

    The first epochs lie so far off that the rest would be a line; a diverged run sets no limit unless all diverged.
    """
    _, params, share, best = COLUMNS[series[0].column]
    every = [(one, run) for one in series for run in one.shown]
    every = [(one, run) for one, run in every if not run.diverged] or every
    ours = [(one, run) for one, run in every if run.param in params] or every
    longest = max(run.epoch for _, run in ours)
    first = min(max(2, 1 + int(share * longest)), longest) if share else 0
    if not any(len(one.values([run], first)) for one, run in ours):
        first = 0
    fitted, rest = (np.concatenate([one.values([run], first) for one, run in some]) for some in (ours, every))
    low, high = (float(side([*fitted, best(rest), *also])) for side in (np.min, np.max))
    room = 0.06 * (high - low) or min(0.5, 0.1 * abs(high)) or 0.5
    axes.set_ylim(low - room, high + room)
    return first


def _falls_from(runs: Sequence[Run]) -> int:
    """The epoch from which the learning rate of cifar falls; 0: it does not."""
    first = max((run.decay_from for run in runs if run.experiment == "cifar"), default=0)
    return first if first < max((run.epochs for run in runs), default=0) else 0


def _ticks(form: str, factor: float = 1, unit: str = "") -> FuncFormatter:
    """Numbers at an axis, with true minus signs."""
    return FuncFormatter(lambda value, _: f"{factor * value:{form if value else 'g'}}{unit}".replace("-", "−"))


def _key(label: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **{"color": "#555555", **style})


def _legend(figure: Figure, keys: Sequence[Line2D], gaps: int, columns: int = 2) -> None:
    """Above the panels, in as many columns as there is room for; with the number of runs that have gaps."""
    if gaps:
        keys = [*keys, _key(f"gaps: not finite in {count(gaps, 'run')}", linestyle="none")]
    widths = sorted(len(str(key.get_label())) + 8 for key in keys)
    fitting = [n for n in range(1, columns + 1) if sum(widths[-n:]) < 105]
    figure.legend(handles=keys, loc="outside upper center", ncols=max(fitting, default=1))


def _figure(
    height: float, rows: Sequence[Sequence[str]] = (("",),), heights: Sequence[float] | None = None, **share: Any
) -> tuple[Figure, dict[str, Axes]]:
    """A figure and its axes by name; `.` is an empty place. share: sharex, sharey."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplot_mosaic([list(row) for row in rows], height_ratios=heights, **share)


def learning_rates(results: Results) -> Figure | None:
    """C13: the final errors by learning rate, every seed a dot; the runs that diverged along the top."""
    runs = [run for run in results.of("cifar").standard if run.diverged or run.done]
    if not runs:
        return None
    figure, panels = _figure(3.3, [["train_error", "test_error"]])
    rates, done = sorted({run.lr for run in runs}), [run for run in runs if run.done]
    styles: dict[str, Any] = {
        param: {"color": COLOURS[param], "marker": MARKERS[param], "markersize": 4.5} for param in PARAMS
    }
    for column, axes in panels.items():
        for i, (param, style) in enumerate(styles.items()):
            ours, dodge = [run for run in done if run.param == param], 1.06 ** (i - 1.5)
            axes.plot([run.lr * dodge for run in ours], [run.final(column) for run in ours], linestyle="none", **style)
            tried = sorted({run.lr for run in ours})
            means = [np.mean([run.final(column) for run in ours if run.lr == rate]) for rate in tried]
            axes.plot([rate * dodge for rate in tried], means, color=COLOURS[param], linestyle=LINES[param])
            lost = [run.lr * dodge for run in runs if run.param == param and run.diverged]
            cross = style | {"linestyle": "none", "marker": "x", "transform": axes.get_xaxis_transform()}
            axes.plot(lost, [0.96] * len(lost), markeredgewidth=1.8, **cross)
        top = max((run.final(column) for run in done if math.isfinite(run.final(column))), default=0.9)
        label = "final training error" if column == "train_error" else "final test error"
        axes.set(xscale="log", xlim=(rates[0] / 1.5, rates[-1] * 1.5), xlabel="learning rate", ylabel=label)
        axes.xaxis.set(major_locator=FixedLocator(rates, nbins=8), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter(_ticks("g"))
        axes.yaxis.set_major_formatter(_ticks("g", 100, " %"))
        axes.set_ylim(0, 1.2 * max(top, 0.001))
    keys = [_key(LABELS[p], linestyle=LINES[p], **styles[p]) for p in PARAMS if any(run.param == p for run in runs)]
    if any(run.diverged for run in runs):
        keys.append(_key("diverged (no error)", marker="x", linestyle="none"))
    gaps = sum(not np.isfinite([run.final(column) for column in panels]).all() for run in done)
    _legend(figure, keys, gaps, columns=3)
    return figure


def noise_kurtosis(results: Results) -> Figure | None:
    """C8: excess kurtosis of the noise by layer, a panel an epoch: quartiles over features; hollow, what is judged."""
    runs = [run for some in _measured("noise_kurtosis", results) for run in _first(some)]
    if not runs:
        return None
    epochs = sorted({int(epoch) for run in runs for epoch in run.noise["epoch"]})
    layers = list(dict.fromkeys(layer for run in runs for layer in run.noise["layer"]))
    figure, panels = _figure(3.7, [[str(epoch) for epoch in dict.fromkeys((epochs[0], epochs[-1]))]], sharey=True)
    quartiles = [f"excess_kurtosis_{name}" for name in ("q25", "median", "q75")]
    for epoch, axes in panels.items():
        for i, run in enumerate(runs):
            table = run.noise[run.noise["epoch"] == int(epoch)]
            values = table[quartiles].to_numpy(float)
            low, median, high = np.where(np.isfinite(values), values, math.nan).T
            x = [layers.index(layer) + 0.6 * _spread(len(runs))[i] for layer in table["layer"]]
            style: dict[str, Any] = {
                "color": COLOURS[run.param],
                "marker": MARKERS[run.param],
                "linestyle": "none",
                "markersize": 4,
            }
            axes.errorbar(x, median, np.maximum([median - low, high - median], 0), elinewidth=1, **style)
            axes.plot(x, table[JUDGED[run.param]], markerfacecolor="white", **style)
        axes.axhline(0, **RULE)
        axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set(title=f"after epoch {epoch}", xlabel="layer")
        axes.grid(False, axis="x")
    every = np.concatenate([run.noise[quartiles].to_numpy(float) for run in runs])
    if np.max(every[:, 2], initial=0, where=np.isfinite(every[:, 2])) > 10:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set(major_formatter=_ticks("g"), minor_formatter=NullFormatter())
    panels[str(epochs[0])].set_ylabel("excess kurtosis of the noise\n(0: Gaussian; quartiles over features)")
    keys = _dots(runs)
    if any(np.isfinite(run.noise[JUDGED[run.param]]).any() for run in runs):
        keys.append(_key("judged: bn's 1/σ, mean-only's μ", marker="o", linestyle="none", markerfacecolor="white"))
    _legend(figure, keys, sum(not np.isfinite(run.noise[quartiles]).all(axis=None) for run in runs))
    return figure


def _dots(runs: Sequence[Run]) -> list[Line2D]:
    """Entries of a legend: the parameterizations' markers."""
    params = [param for param in PARAMS if any(run.param == param for run in runs)]
    return [_key(LABELS[p], color=COLOURS[p], marker=MARKERS[p], linestyle="none", markersize=4) for p in params]


def init(results: Results) -> Figure | None:
    """C3: each layer's largest |mean| and |variance − 1| over the init batch, by experiment and data set, or game."""
    parts = {name: _first(runs) for name, runs in zip(results.parts, _measured("init", results), strict=True) if runs}
    if not parts:
        return None
    figure, panels = _figure(3.4, [["largest |mean|", "largest |variance − 1|"]])
    for (label, axes), limit in zip(panels.items(), (INIT_MEAN, INIT_VARIANCE), strict=True):
        for i, run in ((i, run) for i, runs in enumerate(parts.values()) for run in runs):
            low, high = run.init["variance_min"], run.init["variance_max"]
            column = run.init["mean_abs_max"] if label == "largest |mean|" else np.maximum(1 - low, high - 1)
            values = np.maximum(np.where(np.isfinite(column), column, math.nan), 1e-9)
            style: dict[str, Any] = {"color": COLOURS[run.param], "marker": MARKERS[run.param], "markersize": 2.5}
            axes.plot(i + np.linspace(-0.35, 0.35, len(values)), values, linestyle="none", **style)
        axes.axhline(limit, **DASHES)
        axes.set(yscale="log", ylabel=f"{label}, in a layer")
        axes.set_xticks(range(len(parts)), list(parts), rotation=35, ha="right", rotation_mode="anchor")
        axes.grid(False, axis="x")
    shown = [run for runs in parts.values() for run in runs]
    gaps = sum(not np.isfinite(run.init.drop(columns="layer")).all(axis=None) for run in shown)
    _legend(figure, _dots(shown), gaps, columns=4)
    return figure


def variants(found: "Mapping[str, Finding]") -> Figure | None:
    """C15 and C16: the estimates with the intervals that decide, a panel a claim."""
    bounded = f"‖v‖ ≤ {paper.V_NORM_MAX:g}"
    titles = {
        "C15": "C15, CIFAR-10, g = exp(c·s): relative test error (lower is better)",
        "C16a": f"C16, VAEs, {bounded}: test bound in nats (higher is better)",
        "C16b": f"C16, CIFAR-10, {bounded}: relative test error (lower is better)",
    }
    panels: dict[str, list[tuple[str, str, list[Estimate]]]] = {}
    for claim, title in titles.items():
        of = found[claim].estimates if claim in found else ()
        estimates = [e for e in of if e.n and not e.name.endswith(" diverged")]  # whose shares have another unit
        known = ["" if math.isfinite(e.value) else ", not finite" for e in estimates]
        rows = [(f"{e.name} (n = {e.n}{more})".strip(), "wn", [e]) for e, more in zip(estimates, known, strict=True)]
        panels |= {title: rows} if rows else {}
    figure, places = _intervals(panels)
    for title, axes in places.items():
        axes.xaxis.set_major_formatter(_ticks("g") if "nats" in title else _ticks("g", 100, " %"))
    return figure


def step_time(results: Results) -> Figure | None:
    """C7: step time over normal's by experiment, device and version, every session; the paper's 16 % as a star."""
    panels, margin = {}, (NOTICEABLE - 1,)
    for experiment, ((device, torch), timed) in ((e, of) for e in SETTINGS for of in sessions(results, e).items()):
        of = {p: [one[f"{p} / normal"] for one in timed if f"{p} / normal" in one] for p in PARAMS if p != "normal"}
        if n := max(len(ratios) for ratios in of.values()):
            rounds = " or ".join(map(str, sorted({ratio["n"] for ratios in of.values() for ratio in ratios})[:3]))
            rows = []
            for param, ratios in of.items():
                ends = [[ratio[name] - 1 for name in ("median", "low", "high")] for ratio in ratios]
                rows.append(
                    (LABELS[param], param, [Estimate("", e, low, high, margin=margin) for e, low, high in ends])
                )
            panels[f"{experiment} ({count(n, 'session')} of {rounds} rounds), {device}, torch {torch}"] = rows
    figure, places = _intervals(panels, sharex=True)
    star, cifar = STAR | {"color": "#CC79A7"}, [axes for title, axes in places.items() if title.startswith("cifar")]
    for axes in cifar:
        axes.plot(paper.BN_STEP_TIME - 1, 0, **star)
    if figure:
        axes = list(places.values())[-1]
        axes.set_xlabel("step time over the normal parameterization's, per cent")
        axes.xaxis.set(major_locator=MaxNLocator(nbins=7, steps=[1, 2, 5, 10]), major_formatter=_ticks("+g", 100, " %"))
        keys = [_key("median, 95 % interval", marker="o", markersize=5), _key("noticeable (our threshold)", **DASHES)]
        _legend(figure, keys + ([_key("the paper's bn, cifar", **star)] if cifar else []), 0, columns=3)
    return figure


def _intervals(
    panels: Mapping[str, Sequence[tuple[str, str, Sequence[Estimate]]]], sharex: bool = False
) -> tuple[Figure | None, dict[str, Axes]]:
    """Panels of rows: a label, the parameterization whose colour it has, and estimates with intervals and margins."""
    panels = {title: rows[:MOST_NAMED] for title, rows in list(panels.items())[:MOST_NAMED]}
    if not panels:
        return None, {}
    heights = [0.8 + 0.3 * len(rows) for rows in panels.values()]
    figure, places = _figure(sum(heights), [[title] for title in panels], heights, sharex=sharex)
    for title, rows in panels.items():
        axes = places[title]
        for y, (_, param, estimates) in enumerate(rows):
            for place, e in zip(y + 0.6 * _spread(len(estimates)), estimates, strict=True):
                ends = [[e.value - e.low], [e.high - e.value]] if math.isfinite(e.low + e.high) else None
                style: dict[str, Any] = {"color": COLOURS[param], "marker": MARKERS[param], "markersize": 5}
                axes.errorbar(e.value, place, xerr=ends, capsize=3, **style)
                axes.vlines(e.margin, y - 0.5, y + 0.5, **DASHES)
        axes.axvline(0, **RULE)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(title[:90], loc="right", fontsize=8, parse_math=False)
        axes.grid(False, axis="y")
    return figure, places


def _spread(n: int) -> np.ndarray:
    """So many places side by side, from −½ to ½."""
    return (np.arange(n) + 0.5) / max(n, 1) - 0.5

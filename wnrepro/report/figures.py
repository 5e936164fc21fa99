"""The report's figures. One colour and line style a parameterization everywhere (Okabe and Ito's palette).

Each function returns None where there is nothing to draw. Objects only, no pyplot: nothing global is changed.
What is not finite leaves a gap, in the mean over seeds too, and the legend says of how many runs (`_gap_handles`).
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from wnrepro import paper
from wnrepro.report import verdicts
from wnrepro.report.claims import (
    bounded_bounds,
    bounded_errors,
    count,
    exponential_g,
    free_norm_runs,
    norms,
    not_finite,
)
from wnrepro.report.load import Results, Run, random_scores, step_ratios
from wnrepro.settings import FIGURE_LR, GAMES, PARAMS, SETTINGS

COLOURS = {"normal": "#000000", "bn": "#D55E00", "wn": "#0072B2", "wn+mobn": "#009E73"}
LINES: dict[str, Any] = {
    "normal": (0, (5, 1.5)),
    "bn": (0, (1, 1)),
    "wn": "solid",
    "wn+mobn": (0, (6, 1.5, 1, 1.5)),
}
MARKERS = {"normal": "s", "bn": "^", "wn": "o", "wn+mobn": "D"}
LABELS = {
    "normal": "normal",
    "bn": "batch norm.",
    "wn": "weight norm.",
    "wn+mobn": "weight norm. + mean-only b.n.",
}
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
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")  # of fractions
DASHES = (0, (2, 2))  # of marks that are no data
DOTTED: Any = {"linestyle": ":", "linewidth": 1.6}  # of runs that no claim is judged on
DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def render(figure: Figure) -> dict[str, bytes]:
    """The figure's files by suffix, the same bytes for the same figure."""
    files = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return files


@verdicts.quiet
def draw(results: Results) -> dict[str, dict[str, bytes]]:
    """The figures that there is data for: {name: {"png": bytes, "svg": bytes}}."""
    cifar = results.of("cifar")
    with matplotlib.rc_context(STYLE):
        figures = {
            "figure1": curves(cifar, "train_error", "training error"),
            "test_error": curves(cifar, "test_error", "test error"),
            "learning_rates": learning_rates(cifar),
            "norm_growth": norm_growth(cifar),
            "noise_kurtosis": noise_kurtosis(cifar),
            "init": init(results),
            "variants": variants(results),
            "figure2": figure2(results),
            "bound_raw": bound_raw(results.of("cvae", "mnist")),
            "figure3": figure3(results.of("draw")),
            "kl_steps": kl_steps(results.of("draw")),
            "figure4": games(results, "test_score", "test score"),
            "mean_q": games(results, "mean_q", "mean Q value of the held-out states"),
            "step_time": step_time(results),
        }
        return {name: render(figure) for name, figure in figures.items() if figure is not None}


def curves(results: Results, column: str, label: str) -> Figure | None:
    """Figure 1: an error by epoch, every seed's curve (thin) and the mean of the finished ones."""
    runs = [run for run in results.figure1 if np.isfinite(run.metrics[column].to_numpy(float)).any()]
    if not runs:
        return None
    figure, (axes,) = _figure(height=3.7)
    epochs = max(run.epochs for run in runs)
    handles = []
    for param in PARAMS:
        seeds = [run for run in runs if run.param == param]
        if not seeds:
            continue
        style: dict[str, Any] = {"color": COLOURS[param], "linestyle": LINES[param]}
        for run in seeds:
            axes.plot(run.metrics["epoch"], run.metrics[column], **style, linewidth=0.8, alpha=0.5)
            if not run.done:
                _mark_end(axes, run, column)
        whole = [run for run in seeds if run.done] or seeds
        shared = min(run.epoch for run in whole)
        mean = np.mean([run.metrics[column].iloc[:shared] for run in whole], axis=0)
        axes.plot(range(1, shared + 1), mean, **style, linewidth=1.8)
        name = f"{LABELS[param]}, lr {FIGURE_LR[param]:g} (n = {len(whole)})"
        handles.append(Line2D([], [], **style, linewidth=1.8, label=name))
    highest = max(float(run.metrics[column].max()) for run in runs)
    lowest = min(float(run.metrics[column].min()) for run in runs)
    if 0 < lowest < 0.05:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator([base * m for base in (1e-4, 1e-3, 1e-2, 0.1) for m in (1, 2, 5)]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(top=2 * highest)
    else:
        axes.set_ylim(0, 1.2 * highest)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0, right=epochs * 1.02)
    decay_from = max(run.decay_from for run in runs)
    note = f"the paper: {paper.EPOCHS} epochs of 50 000 images, the rate falls from {paper.DECAY_FROM} on"
    if decay_from < epochs:
        axes.axvline(decay_from, color="#777777", linewidth=0.8, linestyle=DASHES, zorder=0)
        note += f"\ndashes: here it falls from {decay_from} on"
    axes.annotate(note, (0.99, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=7.5, color="#555555")
    axes.set_xlabel(f"epoch ({_images(runs)} training images each)")
    axes.set_ylabel(label)
    handles += _state_handles(runs) + _gap_handles(_gaps(results.figure1, column))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def figure2(results: Results) -> Figure | None:
    """Figure 2: the test bound of the VAEs by epoch, a panel a data set; higher is better in both.

    Every seed's curve (thin), the mean of the finished ones and its standard error. MNIST in nats; CIFAR-10 in bits
    per dimension, on an inverted axis.
    """
    columns = {"mnist": "test_bound_nats", "cifar10": "test_bits_per_dim"}
    parts = {dataset: results.of("cvae", dataset).figure2 for dataset in DATASETS}
    panels = {dataset: _with_values(parts[dataset], column) for dataset, column in columns.items()}
    panels = {dataset: runs for dataset, runs in panels.items() if runs}
    if not panels:
        return None
    figure, all_axes = _figure(height=4.0, columns=len(panels))
    shown = [run for runs in panels.values() for run in runs]
    for axes, (dataset, runs) in zip(all_axes, panels.items(), strict=True):
        in_bits, column = dataset == "cifar10", columns[dataset]
        first = _limit_from_epoch(axes, runs, [column], lowest_is_best=in_bits)
        _seeds_and_means(axes, runs, column, _params(shown))
        axes.set_ylabel("test bound (bits per dim., axis inverted)" if in_bits else "test bound (nats)")
        axes.set_title(_data_name(dataset, runs))
        _epoch_axis(axes, runs, first)
    handles = _finished_handles(list(panels.values())) + _state_handles(shown)
    handles += _gap_handles(sum(_gaps(parts[dataset], column) for dataset, column in columns.items()))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def figure3(results: Results) -> Figure | None:
    """Figure 3: DRAW's test bound by epoch: every seed (thin), the mean of the finished ones and its standard error.

    The y axis starts where normal and wn do, whatever the other two do; a mark where these end below it. Beside them,
    dotted, the runs that start with another g.
    """
    column = "test_bound_nats"
    runs = _with_values(results.figure3, column)
    if not runs:
        return None
    others = [(g, run) for g, some in results.others("g_start").items() for run in _with_values(some, column)]
    figure, (axes,) = _figure(height=4.0)
    first = _limit_from_epoch(axes, [run for run in _compared(runs) if not run.diverged] or runs, [column])
    low, high = axes.get_ylim()
    every = np.concatenate([run.metrics[column].to_numpy(float) for run in [*runs, *(run for _, run in others)]])
    highest = float(every[np.isfinite(every)].max())
    axes.set_ylim(low, max(high, highest + 0.06 * (highest - low)))
    _seeds_and_means(axes, runs, column, _params(runs))
    for _, run in others:
        axes.plot(run.metrics["epoch"], run.metrics[column], color=COLOURS[run.param], **DOTTED)
    below = [run for run in runs if run.done and -math.inf < run.final(column) < low]
    for run in below:
        _mark_end(axes, run, column, axes.get_ylim())
    axes.set_ylabel("test bound (nats)")
    axes.set_title(_data_name("mnist", runs))
    _epoch_axis(axes, runs, first)
    handles = _finished_handles([runs]) + _state_handles(runs)
    handles += _other_handles(others, "g = {:g} at the start")
    handles += _gap_handles(_gaps([*results.figure3, *(run for _, run in others)], column))
    if below:
        handles.append(Line2D([], [], color="#555555", linestyle="none", marker="v", label="ends below"))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def kl_steps(results: Results) -> Figure | None:
    """DRAW's KL of every time step after a run's last epoch: every seed (thin) and the mean; dotted: another g."""
    runs = [run for run in results.figure3 if run.done and len(run.kl_steps)]
    if not runs:
        return None
    figure, (axes,) = _figure(height=3.2)
    others = [
        (g, [run for run in some if run.done and len(run.kl_steps)]) for g, some in results.others("g_start").items()
    ]
    for g, some in [(None, runs), *others]:
        for param in _params(some):
            seeds = [run for run in some if run.param == param]
            style: dict[str, Any] = {"color": COLOURS[param], "linestyle": LINES[param] if g is None else ":"}
            values = [_last_kl(run) for run in seeds]
            steps = range(1, len(values[0]) + 1)
            for kl in values:
                axes.plot(steps, kl, **style, linewidth=0.8, alpha=0.5)
            start = "" if g is None else f", g = {g:g} at the start"
            epochs = " and ".join(map(str, sorted({run.epoch for run in seeds})))
            label = f"{LABELS[param]}{start}, epoch {epochs} (n = {len(seeds)})"
            axes.plot(steps, np.mean(values, axis=0), **style, linewidth=1.8, label=label)
    shown = [run for _, some in [(None, runs), *others] for run in some]
    every, compared = (np.concatenate([_last_kl(run) for run in some]) for some in (shown, _compared(shown) or shown))
    highest = min(np.max(kl, initial=0, where=np.isfinite(kl)) * times for kl, times in ((every, 1), (compared, 2)))
    axes.set_ylim(0, 1.06 * highest or 1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("time step")
    axes.set_ylabel("KL on the test images (nats)")
    axes.set_title(_data_name("mnist", runs))
    handles, _ = axes.get_legend_handles_labels()
    handles += _gap_handles(sum(not np.isfinite(_last_kl(run)).all() for run in shown))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _last_kl(run: Run) -> np.ndarray:
    """Of every time step after the last epoch, in nats."""
    return run.kl_steps.loc[run.kl_steps["epoch"] == run.kl_steps["epoch"].max(), "kl_nats"].to_numpy(float)


def games(results: Results, column: str, label: str) -> Figure | None:
    """Figure 4: a column of dqn's by agent steps, a panel a game, the paper's first.

    Every seed (thin), the mean of the finished ones and its standard error; dotted, games in lock-step. Beside test
    scores, dashed, the mean score of random play.
    """
    panels, gaps = {}, 0
    for game in sorted(GAMES, key=lambda name: name != paper.FIGURE4):
        part = results.of("dqn", game)
        runs = _with_values(part.figure4, column)
        others = [(actors, run) for actors, some in part.others("actors").items() for run in _with_values(some, column)]
        gaps += _gaps([*part.figure4, *(run for some in part.others("actors").values() for run in some)], column)
        if runs or others:
            panels[game] = runs, others
    if not panels:
        return None
    standard = [run for runs, _ in panels.values() for run in runs]
    lock_step = [pair for _, others in panels.values() for pair in others]
    every = [*standard, *(run for _, run in lock_step)]
    unit, units = (1e6, "millions") if max(run.final("agent_steps") for run in every) >= 1e6 else (1e3, "thousands")
    dashed: dict[str, Any] = {"color": "#777777", "linestyle": DASHES, "linewidth": 1}
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure, all_axes = _figure(height=1.7 + 2.2 * rows, columns=columns, rows=rows)
    for axes, (game, (runs, others)) in zip(all_axes, panels.items(), strict=False):
        shown = [*runs, *(run for _, run in others)]
        values = [run.metrics[column].to_numpy(float) for run in _undiverged(shown)]
        if column == "test_score" and (scores := random_scores(shown)):
            values.append(np.mean(scores, keepdims=True))
            axes.axhline(float(np.mean(scores)), **dashed)
            gaps += sum(not np.isfinite(run.scores(0)).all() for run in shown)
        _span(axes, np.concatenate(values))
        _seeds_and_means(axes, runs, column, _params(every), "agent_steps")
        for _, run in others:
            axes.plot(run.metrics["agent_steps"], run.metrics[column], color=COLOURS[run.param], **DOTTED)
        axes.set_title(paper.game_name(game))
        axes.set_xlim(0, 1.02 * max(run.final("agent_steps") for run in shown))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(f"agent steps ({units})", fontsize="medium")
    figure.supylabel(label, fontsize="medium")
    handles = _finished_handles([runs for runs, _ in panels.values()]) + _state_handles(standard)
    handles += _other_handles(lock_step, "{} games in lock-step") + _gap_handles(gaps)
    if column == "test_score" and random_scores(every):
        handles.append(Line2D([], [], **dashed, label="random play"))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def bound_raw(results: Results) -> Figure | None:
    """What the Polyak average is worth: MNIST's test bound of the averaged and of the raw parameters by epoch."""
    runs = [run for run in _compared(results.figure2) if run.done]
    if not runs:
        return None
    figure, (axes,) = _figure(height=3.2)
    kinds = {"test_bound_nats": ("averaged", 1.8, 1.0), "test_bound_nats_raw": ("raw", 1.2, 0.45)}
    first = _limit_from_epoch(axes, runs, list(kinds))
    for param in PARAMS:
        seeds = [run for run in runs if run.param == param]
        for column, (kind, width, alpha) in kinds.items() if seeds else ():
            mean, _ = _mean_and_error(seeds, column)
            axes.plot(
                range(1, len(mean) + 1),
                mean,
                color=COLOURS[param],
                linestyle="solid",
                linewidth=width,
                alpha=alpha,
                marker=MARKERS[param],
                markersize=4,
                markevery=max(1, len(mean) // 8),
                label=f"{LABELS[param]}, {kind} (n = {len(seeds)})",
            )
    axes.set_ylabel("test bound (nats)")
    axes.set_title(_data_name("mnist", runs))
    _epoch_axis(axes, runs, first)
    handles, _ = axes.get_legend_handles_labels()
    handles += _gap_handles(_gaps(runs, *kinds))
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _params(runs: Sequence[Run]) -> list[str]:
    """The parameterizations that have runs."""
    return [param for param in PARAMS if any(run.param == param for run in runs)]


def _compared(runs: Sequence[Run]) -> list[Run]:
    """Those of the two that the paper compares in figures 2 and 3."""
    return [run for run in runs if run.param in ("normal", "wn")]


def _seeds_and_means(axes: Axes, runs: Sequence[Run], column: str, params: Sequence[str], over: str = "epoch") -> None:
    """Within the axes' limits: every seed (thin), the mean of the finished ones and its standard error."""
    for i, param in enumerate(params):
        seeds = [run for run in runs if run.param == param]
        style: dict[str, Any] = {"color": COLOURS[param], "linestyle": LINES[param]}
        for run in seeds:
            axes.plot(run.metrics[over], run.metrics[column], **style, linewidth=0.8, alpha=0.5)
            if not run.done:
                _mark_end(axes, run, column, (min(axes.get_ylim()), max(axes.get_ylim())), over)
        done = [run for run in seeds if run.done]
        if done:
            mean, error = _mean_and_error(done, column)
            every = max(1, len(mean) // 10)
            axes.errorbar(
                done[0].metrics[over].iloc[: len(mean)],
                mean,
                yerr=error if len(done) > 1 else None,
                **style,
                linewidth=1.8,
                elinewidth=1,
                capsize=2,
                errorevery=(i * every // len(params), every),
            )


def _finished_handles(panels: Sequence[Sequence[Run]]) -> list[Line2D]:
    """A parameterization's line, with the number of its finished runs in every panel."""
    handles = []
    for param in _params([run for runs in panels for run in runs]):
        n = ", ".join(str(sum(run.done for run in runs if run.param == param)) for runs in panels)
        label = f"{LABELS[param]} (n = {n})"
        handles.append(Line2D([], [], color=COLOURS[param], linestyle=LINES[param], linewidth=1.8, label=label))
    return handles


def _other_handles(others: Sequence[tuple[Any, Run]], name: str) -> list[Line2D]:
    """The dotted lines of runs that differ in a setting, by its value and parameterization."""
    handles = []
    for value, param in dict.fromkeys((value, run.param) for value, run in others):
        n = sum((value, param) == (other, run.param) for other, run in others)
        label = f"{LABELS[param]}, {name.format(value)} (n = {n})"
        handles.append(Line2D([], [], color=COLOURS[param], **DOTTED, label=label))
    return handles


def _with_values(runs: Sequence[Run], column: str) -> list[Run]:
    """The runs that have a finite value in this column."""
    return [run for run in runs if np.isfinite(run.metrics[column].to_numpy(float)).any()]


@verdicts.quiet
def _mean_and_error(runs: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray]:
    """By epoch, over the epochs that all have: the mean over runs and its standard error (0 of a single run)."""
    shared = min(run.epoch for run in runs)
    values = np.array([run.metrics[column].iloc[:shared] for run in runs], dtype=float)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.zeros(shared)
    return values.mean(axis=0), error


def _gaps(runs: Sequence[Run], *columns: str) -> int:
    """How many of these runs have a gap in one of these columns of metrics.csv.

    Where one that diverged has a number, the mark of its end says enough.
    """
    found = 0
    for run in runs:
        known = np.isfinite(run.metrics[list(columns)].to_numpy(float))
        found += bool(run.epoch) and not (known.any() if run.diverged else known.all())
    return found


def _gap_handles(runs: int) -> list[Line2D]:
    """That so many runs have gaps; nothing where none has."""
    label = f"gaps: not finite in {count(runs, 'run')}"
    return [Line2D([], [], linestyle="none", label=label)] if runs else []


def _limit_from_epoch(axes: Axes, runs: Sequence[Run], columns: Sequence[str], lowest_is_best: bool = False) -> int:
    """Let the y axis span these columns from an early epoch on, the better end on top; returns that epoch.

    The first epochs lie so far below that the rest would be a line; a diverged run sets no limit.
    """
    whole = _undiverged(runs)
    longest = max(run.epoch for run in whole)
    first = min(max(2, 1 + longest // 20), longest)
    late = [run.metrics[run.metrics["epoch"] >= first][columns].to_numpy(float).ravel() for run in whole]
    _span(axes, np.concatenate(late), lowest_is_best)
    return first


def _span(axes: Axes, values: np.ndarray, lowest_is_best: bool = False) -> None:
    """Let the y axis span the finite ones of these values, the better end on top."""
    values = values[np.isfinite(values)]
    if len(values):
        low, high = float(values.min()), float(values.max())
        room = 0.06 * (high - low) or 0.5
        axes.set_ylim(*((high + room, low - room) if lowest_is_best else (low - room, high + room)))


def _undiverged(runs: Sequence[Run]) -> list[Run]:
    """Those that set the limits of an axis: without the diverged ones, unless there is no other."""
    return [run for run in runs if not run.diverged] or list(runs)


def _epoch_axis(axes: Axes, runs: Sequence[Run], first: int) -> None:
    axes.set_xlim(left=0, right=max(run.epochs for run in runs) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"epoch ({_images(runs)} training images each)\ny axis: fits epoch {first} and later")


def _data_name(dataset: str, runs: Sequence[Run]) -> str:
    """`MNIST`; or what stands in its place."""
    bundled = any(run.settings.get("data") == "bundled" for run in runs)
    return f"bundled images in place of {DATASETS[dataset]}" if bundled else DATASETS[dataset]


def learning_rates(results: Results) -> Figure | None:
    """C13: the final errors by learning rate, every seed a dot; the runs that diverged along the top."""
    runs = [run for run in results.standard if run.diverged or run.done]
    if not runs:
        return None
    figure, panels = _figure(height=3.3, columns=2)
    rates = sorted({run.lr for run in runs})
    for axes, column, label in zip(
        panels, ("train_error", "test_error"), ("final training error", "final test error"), strict=True
    ):
        for i, param in enumerate(PARAMS):
            ours = [run for run in runs if run.param == param]
            dodge = 1.06 ** (i - 1.5)
            done = [run for run in ours if run.done]
            style: dict[str, Any] = {"color": COLOURS[param], "markersize": 4.5}
            axes.plot(
                [run.lr * dodge for run in done],
                [run.final(column) for run in done],
                linestyle="none",
                marker=MARKERS[param],
                **style,
            )
            by_rate = {rate: [run.final(column) for run in done if run.lr == rate] for rate in rates}
            means = [(rate * dodge, np.mean(values)) for rate, values in by_rate.items() if values]
            axes.plot(*zip(*means, strict=True) if means else ([], []), color=COLOURS[param], linestyle=LINES[param])
            lost = [run.lr * dodge for run in ours if run.diverged]
            axes.plot(
                lost,
                [0.96] * len(lost),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker="x",
                markeredgewidth=1.8,
                **style,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(rates))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
        finals = [run.final(column) for run in runs if run.done]
        top = max([error for error in finals if math.isfinite(error)], default=0.9)
        axes.set_ylim(0, 1.2 * max(top, 0.001))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.set_xlabel("learning rate")
        axes.set_ylabel(label)
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[param],
            linestyle=LINES[param],
            marker=MARKERS[param],
            markersize=4.5,
            label=name,
        )
        for param, name in LABELS.items()
        if any(run.param == param for run in runs)
    ]
    if any(run.diverged for run in runs):
        handles.append(Line2D([], [], color="#555555", linestyle="none", marker="x", label="diverged (no error)"))
    lost = [run for run in runs if run.done and not_finite(run, "train_error") + not_finite(run, "test_error")]
    handles += _gap_handles(len(lost))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def norm_growth(results: Results) -> Figure | None:
    """C14: ‖v‖ by epoch over its start, mean over layers; a panel a parameterization, a line a run."""
    runs = free_norm_runs(results)
    params = _params(runs)
    if not params:
        return None
    figure, panels = _figure(height=3.0, columns=len(params), sharey=True)
    rates = sorted({run.lr for run in runs})
    shades = dict(zip(rates, np.linspace(0.4, 1, len(rates)) if len(rates) > 1 else [1.0], strict=True))
    marks = dict(zip(rates, "ovsDP^X*" * (1 + len(rates) // 8), strict=False))
    gaps = 0
    for axes, param in zip(panels, params, strict=True):
        for run in (run for run in runs if run.param == param):
            mean = np.exp(norms(run).apply(np.log).mean(axis=1, skipna=False))
            gaps += not np.isfinite(mean).all()
            axes.plot(
                mean.index,
                mean,
                color=COLOURS[param],
                linestyle=LINES[param],
                alpha=shades[run.lr],
                marker=marks[run.lr],
                markersize=4,
                markevery=max(1, len(mean) // 8),
            )
        decay_from = max(run.decay_from for run in runs)
        if decay_from < max(run.epochs for run in runs):
            axes.axvline(decay_from, color="#777777", linewidth=0.8, linestyle=DASHES, zorder=0)
        axes.set_title(LABELS[param])
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("‖v‖ / ‖v‖ after the init\n(geometric mean over layers)")
    handles = [
        Line2D(
            [],
            [],
            color="#555555",
            marker=marks[rate],
            markersize=4,
            alpha=shades[rate],
            label=f"lr {rate:g}",
        )
        for rate in rates
    ]
    figure.legend(handles=handles + _gap_handles(gaps), loc="outside upper center", ncols=4)
    return figure


def noise_kurtosis(results: Results) -> Figure | None:
    """C8: excess kurtosis of the noise by layer, a panel an epoch: median and quartiles over features."""
    runs = [run for run in results.figure1 if len(run.noise)]
    if not runs:
        return None
    epochs = sorted({int(epoch) for run in runs for epoch in run.noise["epoch"]})
    epochs = epochs if len(epochs) <= 2 else [epochs[0], epochs[-1]]
    layers = list(dict.fromkeys(layer for run in runs for layer in run.noise["layer"]))
    figure, panels = _figure(height=3.2, columns=len(epochs), sharey=True)
    quartiles = [f"excess_kurtosis_{name}" for name in ("q25", "median", "q75")]
    for axes, epoch in zip(panels, epochs, strict=True):
        for i, run in enumerate(runs):
            table = run.noise[run.noise["epoch"] == epoch]
            values = table[quartiles].to_numpy(float)
            low, median, high = np.where(np.isfinite(values), values, math.nan).T
            axes.errorbar(
                [layers.index(layer) + 0.6 * ((i + 0.5) / len(runs) - 0.5) for layer in table["layer"]],
                median,
                yerr=np.maximum([median - low, high - median], 0),
                color=COLOURS[run.param],
                marker=MARKERS[run.param],
                markersize=4,
                linestyle="none",
                elinewidth=1,
            )
        axes.axhline(0, color="#777777", linewidth=0.8, zorder=0)
        axes.set_title(f"after epoch {epoch}")
        axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axes.grid(False, axis="x")
        axes.set_xlabel("layer")
    every = np.concatenate([run.noise[quartiles].to_numpy(float) for run in runs])
    if np.max(every[:, 2], initial=0, where=np.isfinite(every[:, 2])) > 10:
        panels[0].set_yscale("symlog", linthresh=1)
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("excess kurtosis of the noise\n(0: Gaussian; quartiles over features)")
    gaps = _gap_handles(sum(not np.isfinite(run.noise[quartiles]).all(axis=None) for run in runs))
    figure.legend(handles=_marker_handles(runs) + gaps, loc="outside upper center", ncols=2)
    return figure


def init(results: Results) -> Figure | None:
    """C3: each layer's largest |mean| and |variance − 1| over the init batch, by experiment and data set, or game."""
    parts = {name: [run for run in part.in_precision if len(run.init)] for name, part in results.parts.items()}
    parts = {name: runs for name, runs in parts.items() if runs}
    if not parts:
        return None
    figure, panels = _figure(height=3.4, columns=2)
    for axes, label, limit in zip(
        panels, ("largest |mean|", "largest |variance − 1|"), (paper.INIT_MEAN, paper.INIT_VARIANCE), strict=True
    ):
        for i, run in ((i, run) for i, runs in enumerate(parts.values()) for run in runs):
            low, high = run.init["variance_min"], run.init["variance_max"]
            column = run.init["mean_abs_max"] if limit == paper.INIT_MEAN else np.maximum(1 - low, high - 1)
            values = np.where(np.isfinite(column), column, math.nan)
            places = i + np.linspace(-0.35, 0.35, len(values))
            style: dict[str, Any] = {"color": COLOURS[run.param], "marker": MARKERS[run.param], "markersize": 2.5}
            axes.plot(places, np.maximum(values, 1e-9), linestyle="none", **style)
        axes.axhline(limit, color="#777777", linestyle=DASHES)
        axes.set_yscale("log")
        axes.set_xticks(range(len(parts)), list(parts), rotation=35, ha="right", rotation_mode="anchor")
        axes.grid(False, axis="x")
        axes.set_ylabel(f"{label}, in a layer")
    shown = [run for runs in parts.values() for run in runs]
    gaps = _gap_handles(sum(not np.isfinite(run.init.drop(columns="layer")).all(axis=None) for run in shown))
    figure.legend(handles=_marker_handles(shown) + gaps, loc="outside upper center", ncols=4)
    return figure


def variants(results: Results) -> Figure | None:
    """C15 and C16: final test error, or bound, less that of the paired run without the change; a panel a unit."""
    cifar, bounded = results.of("cifar"), f"‖v‖ ≤ {paper.V_NORM_MAX:g}"
    errors = exponential_g(cifar) | {f"{name}, {bounded}": some for name, some in bounded_errors(cifar).items()}
    panels = {"CIFAR-10 classifier: relative test error (lower is better)": errors}
    for dataset, name in DATASETS.items():
        bounds = panels[f"VAE of {name}: test bound in nats (higher is better)"] = {}
        for run, free, epochs in bounded_bounds(results.of("cvae", dataset)):
            ours, theirs = (float(one.metrics["test_bound_nats"].iloc[:epochs].iloc[-1]) for one in (run, free))
            difference = math.inf if run.diverged or free.diverged else ours - theirs
            bounds.setdefault(f"{run.param}, {bounded}", []).append((difference, run, free))
    panels = {title: compared for title, compared in panels.items() if compared}
    if not panels:
        return None
    heights = [0.8 + 0.3 * len(compared) for compared in panels.values()]
    figure, all_axes = _figure(height=sum(heights), rows=len(panels), height_ratios=heights)
    for axes, (title, compared) in zip(all_axes, panels.items(), strict=True):
        for y, entries in enumerate(compared.values()):
            values = np.array([difference for difference, _, _ in entries])
            known = values[np.isfinite(values)]
            style: dict[str, Any] = {"color": COLOURS[entries[0][1].param], "linestyle": "none"}
            axes.plot(known, np.full_like(known, y), marker="o", markersize=4.5, alpha=0.7, **style)
            if len(known) == len(values):
                axes.plot(known.mean(), y, marker="|", markersize=16, **style)
            if lost := len(values) - len(known):
                edge: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
                axes.plot([1] * lost, [y] * lost, marker="x", markeredgewidth=1.8, **edge, **style)
        axes.axvline(0, color="#777777", linewidth=0.8, zorder=0)
        if compared is errors:
            axes.xaxis.set_major_formatter(PERCENT)
            for margin in (-paper.G_MARGIN, paper.G_MARGIN):
                axes.axvline(margin, color="#777777", linewidth=0.8, linestyle=DASHES, zorder=0)
        axes.set_yticks(range(len(compared)), [f"{name} (n = {len(entries)})" for name, entries in compared.items()])
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_title(title)
    return figure


def step_time(results: Results) -> Figure | None:
    """C7: step time over normal's, median and 95 % interval by experiment and device; the paper's 16 % as a star."""
    params = [param for param in PARAMS if param != "normal"]
    ratios = [
        (experiment, bench["device_name"], {p: step_ratios(bench, experiment).get(f"{p} / normal") for p in params})
        for experiment in SETTINGS
        for bench in results.bench.values()
    ]
    ratios = [entry for entry in ratios if any(entry[-1].values())]
    if not ratios:
        return None
    figure, (axes,) = _figure(height=1.3 + 0.85 * len(ratios))
    ticks = []
    for i, (experiment, device, of) in enumerate(ratios):
        for j, param in enumerate(params):
            y = -i * (len(params) + 1) - j
            ticks.append((y, LABELS[param]))
            if ratio := of[param]:
                middle = ratio["median"]
                axes.errorbar(
                    100 * (middle - 1),
                    y,
                    xerr=[[100 * (middle - ratio["low"])], [100 * (ratio["high"] - middle)]],
                    color=COLOURS[param],
                    marker=MARKERS[param],
                    markersize=5,
                    capsize=3,
                )
            if param == "bn" and experiment == "cifar":
                axes.plot(
                    100 * (paper.BN_STEP_TIME - 1),
                    y,
                    linestyle="none",
                    marker="*",
                    markersize=9,
                    color="#CC79A7",
                )
        rounds = " or ".join(str(n) for n in sorted({ratio["n"] for ratio in of.values() if ratio}))
        axes.text(
            0.01,
            -i * (len(params) + 1) + 0.55,
            f"{experiment}, {device} (n = {rounds} paired rounds)",
            fontsize=8,
            parse_math=False,
            in_layout=False,  # however long the device's name is
            transform=axes.get_yaxis_transform(),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.axvline(0, color="#777777", linewidth=0.8, zorder=0)
    axes.axvline(100 * (paper.NOTICEABLE - 1), color="#777777", linewidth=0.8, linestyle=DASHES, zorder=0)
    axes.set_ylim(min(y for y, _ in ticks) - 0.6, 1.1)
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.grid(False, axis="y")
    axes.set_xlabel("step time over the normal parameterization's, per cent")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0 %"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    handles = [
        Line2D([], [], color="#555555", marker="o", markersize=5, label="median, 95 % interval"),
        Line2D([], [], color="#CC79A7", marker="*", markersize=9, linestyle="none", label="the paper's bn, cifar"),
        Line2D([], [], color="#777777", linestyle=DASHES, label="noticeable (our threshold)"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _figure(
    height: float, columns: int = 1, sharey: bool = False, rows: int = 1, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, sharey=sharey, squeeze=False, height_ratios=height_ratios).flat)


def _mark_end(
    axes: Axes, run: Run, column: str, within: tuple[float, float] = (-np.inf, np.inf), over: str = "epoch"
) -> None:
    """A mark of the run's state where its curve ends; on the edge where that is not `within`."""
    finite = run.metrics[np.isfinite(run.metrics[column].to_numpy(float))]
    axes.plot(
        finite[over].iloc[-1],
        np.clip(finite[column].iloc[-1], *within),
        color=COLOURS[run.param],
        marker="x" if run.diverged else "v" if run.done else ">",
        markersize=7,
        markeredgewidth=1.8,
        clip_on=False,
    )


def _state_handles(runs: Sequence[Run]) -> list[Line2D]:
    handles = []
    for marker, label, shown in (
        ("x", "diverged", any(run.diverged for run in runs)),
        (">", "not finished", any(not run.done and not run.diverged for run in runs)),
    ):
        if shown:
            handles.append(Line2D([], [], color="#555555", linestyle="none", marker=marker, label=label))
    return handles


def _marker_handles(runs: Sequence[Run]) -> list[Line2D]:
    return [
        Line2D([], [], color=COLOURS[p], linestyle="none", marker=MARKERS[p], markersize=4, label=LABELS[p])
        for p in _params(runs)
    ]


def _images(runs: Sequence[Run]) -> str:
    """`5 000`, or what is known of it."""
    images = sorted({int(run.settings["train_examples"]) for run in runs if "train_examples" in run.settings})
    return " or ".join(f"{number:,}".replace(",", "\u2009") for number in images) or "?"

"""What the report says, as blocks that `markdown` and `page` lay out.

Text that may come out of a run's files stands only in `Table`, `Judged` and `Report.problems`, as it is: the layouts
escape it. In all other text, which is the program's own, `code` is marked by backticks.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from wnrepro import paper
from wnrepro.paper import CLAIMS, VERDICTS, Claim
from wnrepro.report.claims import Finding, count, nats, plain, score
from wnrepro.report.load import Results
from wnrepro.report.tables import interval, number, percent

# The figure that belongs to a claim, and each figure's caption.
CLAIM_FIGURE = {
    "C3": "init",
    "C4": "test_error",
    "C5": "figure1",
    "C6": "learning_rates",
    "C7": "step_time",
    "C8": "noise_kurtosis",
    "C9": "figure2",
    "C10": "figure3",
    "C11": "figure4",
    "C12": "figure4",
    "C13": "learning_rates",
    "C14": "norm_growth",
    "C15": "variants",
    "C16": "variants",
}
CAPTIONS = {
    "figure1": "Training error by epoch at figure 1's learning rates: every seed (thin) and the mean of the "
    "finished ones. Dashes: where the rate starts to fall.",
    "test_error": "Test error by epoch (C4), same runs.",
    "learning_rates": "Final errors by learning rate (C6, C13): a dot a seed, lines through the means.",
    "norm_growth": "Growth of ‖v‖ (C14): a line a run. Dashes: where the rate starts to fall.",
    "noise_kurtosis": "Excess kurtosis of the normalization noise by layer (C8), at the first and the last "
    "epoch measured: median and quartiles over features.",
    "figure2": "Test bound by epoch (C9), of the Polyak-averaged parameters; higher is better in both panels: every "
    "seed (thin), the mean of the finished ones (n, by panel) and its standard error. The first epochs lie far below "
    "and are cut off.",
    "bound_raw": "MNIST's test bound, mean of the finished seeds: of the averaged parameters, and of the raw ones "
    "(faint).",
    "figure3": "DRAW's test bound by epoch (C10): every seed (thin), the mean of the finished ones (n) and its "
    "standard error; dotted, runs that start with another g (`--g-start`). The first epochs lie far below and are cut "
    "off, and so is what another parameterization has below normal and weight norm.",
    "kl_steps": "DRAW's KL of every time step, mean over the test images, after the last epoch of the finished runs: "
    "every seed (thin) and the mean; dotted as in figure 3. Cut off above twice the largest of normal and weight norm.",
    "figure4": "DQN's mean score of full test games after every epoch (C11, C12), by agent steps: every seed (thin), "
    "the mean of the finished ones (n, by panel) and its standard error; dashes, random play's mean score; dotted, "
    "runs of several games in lock-step (`--actors`).",
    "mean_q": "Mean over held-out states of random play of the largest Q value (rewards clipped to ±1), same runs.",
    "init": "What the data-dependent init achieves (C3): a dot a run and layer, from the first layer of a model to its "
    "last; zero stands at 10⁻⁹. Dashes: the rule's limits.",
    "variants": f"g = exp(c·s) and ‖v‖ ≤ {paper.V_NORM_MAX:g} (C15, C16): the final test error, or bound, less that of "
    "the run without it: a dot a pair of runs, a bar their mean. Crosses, beside which there is no mean: one of them "
    "diverged, or has no finite number. Dashes: C15's limits.",
    "step_time": "Step time over that of the normal parameterization (C7: of cifar), 95 % intervals.",
}
WARNING = {
    "quick": "Scale `quick`: the data is bundled sample data and the models are small. These numbers mean nothing "
    "beside the paper's; they show that the code runs.",
    "short": "Scale `short`: the paper's data, but fewer epochs, and fewer images or a smaller model where the table "
    "of settings says so. The final numbers are not comparable with the paper's.",
}


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    cells: pd.DataFrame
    title: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Image:
    """A figure of `figures.draw`."""

    name: str
    caption: str


UNFINISHED = "Not finished, or not finite"  # the heading of a column


Block = Heading | Paragraph | Table | Image


@dataclass(frozen=True)
class Judged:
    """A claim, what the runs say of it and on what (`on`: scale, n, devices), its figure (empty: it has none)."""

    claim: Claim
    finding: Finding
    on: str
    figure: str

    @property
    def figure_title(self) -> str:
        """`figure 1`, `learning rates`."""
        return self.figure.replace("_", " ").replace("figure", "figure ")


@dataclass(frozen=True)
class Report:
    """All that both layouts show: the head, the claims, and the rest in its order."""

    scale: str
    warning: str  # empty: none
    problems: list[str]  # files that do not fit together
    verdicts: dict[str, int]
    runs: str
    basis: str  # of the verdicts
    claims: list[Judged]
    body: list[Block]


def report(
    results: Results,
    found: dict[str, Finding],
    frames: dict[str, pd.DataFrame],
    drawn: list[str],
    problems: list[str],
) -> Report:
    """The report on `results`, with the tables of `frames` that have rows and the figures that are `drawn`."""
    incomplete = [run for run in results.runs if not run.done and not run.diverged]
    setting = "the paper's setting" if results.scale == "paper" else "not the paper's setting"
    precisions = ", ".join(f"{part.precision} ({name})" for name, part in results.parts.items())
    claims = []
    for claim in CLAIMS:
        finding, figure = found[claim.id], CLAIM_FIGURE.get(claim.id, "")
        on = f"scale {results.scale}; {finding.n}; {finding.devices}"
        claims.append(Judged(claim, finding, on, figure if figure in drawn else ""))
    return Report(
        scale=results.scale,
        warning=WARNING.get(results.scale, ""),
        problems=problems,
        verdicts={name: sum(finding.verdict == name for finding in found.values()) for name in VERDICTS},
        runs=f"{count(len(results.runs), 'run')}, {sum(run.done for run in results.runs)} done, "
        f"{sum(run.diverged for run in results.runs)} diverged, {len(incomplete)} incomplete.",
        basis=f"Judged on the runs at scale `{results.scale}` ({setting}), with all other settings at the scale's "
        f"defaults where the rule names no other, and precision {precisions}. The rules were fixed before the results. "
        "A claim from C4 on that needs a number which is not finite is inconclusive.",
        claims=claims,
        body=_body(results, frames, drawn),
    )


def _body(results: Results, frames: dict[str, pd.DataFrame], drawn: list[str]) -> list[Block]:
    """Heading by heading, those that have something to show."""

    def images(*names: str) -> list[Block]:
        return [Image(name, CAPTIONS[name]) for name in names if name in drawn]

    sections: list[tuple[str, list[Block]]] = [
        ("Table 2: test error on CIFAR-10 (%)", _table2(results, frames["table2"])),
        ("Figure 1: error by epoch", images("figure1", "test_error")),
        ("Learning rates", images("learning_rates")),
        ("Growth of ‖v‖", images("norm_growth")),
        ("Normalization noise", images("noise_kurtosis")),
        ("The data-dependent init", images("init")),
        ("Exponential g and bounded ‖v‖", images("variants")),
        ("Every variant of the CIFAR-10 classifier", _variants(frames["variants"])),
        ("Figure 2: convolutional VAEs", images("figure2", "bound_raw") + _bounds(results, frames["bounds"])),
        ("Figure 3: DRAW", images("figure3", "kl_steps") + _draw_bounds(results, frames["draw_bounds"])),
        (
            "Table 3: maximum test score",
            _table3(results, frames["table3"]) + _interquartile_means(frames["interquartile_means"]),
        ),
        ("Figure 4: DQN", images("figure4", "mean_q")),
        ("Step time", _step_time(frames["step_time"]) + images("step_time")),
        ("Distance from the floor", _floors(frames["floors"])),
        ("Settings", _settings(frames["settings"])),
        ("Runs", _runs(frames["runs"])),
    ]
    return [block for heading, blocks in sections if blocks for block in (Heading(heading), *blocks)]


def _table2(results: Results, table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    ours = pd.DataFrame(
        {
            "Model": table["model"],
            "Learning rate": table["lr"].map(number),
            "Paper": table["paper_test_error"].map(percent),
            "Ours": _means(table, "test_error_mean", percent),
            "95 % interval": [
                interval(*pair) for pair in zip(table["test_error_low"], table["test_error_high"], strict=True)
            ],
            "n": table["n"],
            "Every seed": table["seeds"],
        }
    )
    earlier = [{"Model": model, "Paper": f"{error:.2f}"} for model, error in paper.TABLE2_EARLIER.items()]
    note = (
        "Test error after the last epoch, at figure 1's learning rates. n: finished seeds, which the mean "
        "and the t-interval rest on; a run that is not finished stands with its epoch."
    )
    if results.scale != "paper":
        note += f" At scale `{results.scale}` our column cannot be compared with the paper's."
    return [Paragraph(note), Table(pd.concat([_rows_of(ours, earlier), ours]))]


def _variants(table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    ours = pd.DataFrame(
        {
            "Variant": table["variant"],
            "Learning rate": table["lr"].map(number),
            "Other settings": table["other_settings"],
            "n": table["n"],
            "Training error": _means(table, "train_error_mean", percent),
            "Test error": _means(table, "test_error_mean", percent),
            "95 % interval": [
                interval(*pair) for pair in zip(table["test_error_low"], table["test_error_high"], strict=True)
            ],
            UNFINISHED: table["unfinished"],
        }
    )
    return [Paragraph("Errors after the last epoch (%), mean over the n finished seeds."), Table(ours)]


def _bounds(results: Results, table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    shared = _final_bounds(table)
    log_p = [
        f"{nats(value)} (K = {samples}, n = {n})" if n else "–"
        for value, samples, n in zip(
            table["log_likelihood_nats_mean"], table["importance_samples"], table["log_likelihood_n"], strict=True
        )
    ]
    ours = pd.DataFrame(
        {
            "Data set": table["dataset"],
            **shared.loc[:, :"95 % interval"],
            "Bits per dim.": _means(table, "test_bits_per_dim_mean", _bits, table["dataset"] == "cifar10"),
            "KL": shared["KL"],
            "log p(x)": log_p,
            **shared.loc[:, UNFINISHED:],
        }
    )
    published = [
        {"Data set": "mnist", "Model": f"IAF paper: {model}", "Test bound": f"{nats(bound)} ± {spread:.2f}"}
        for model, (bound, spread) in paper.IAF_MNIST.items()
    ] + [
        {"Data set": "cifar10", "Model": f"IAF paper: {model}", "Bits per dim.": f"{bits:.2f}"}
        for model, bits in paper.IAF_CIFAR10.items()
    ]
    published = [row for row in published if row["Data set"] in set(table["dataset"])]
    what = (
        "Test bound of the Polyak-averaged parameters after the last epoch, in nats per image (a lower bound on "
        "log p(x): larger is better; bits per dimension: smaller is better), mean over the n finished seeds. "
        "log p(x): estimated with K importance samples, a tighter lower bound."
    )
    note = (
        "The Weight Normalization paper prints figure 2 alone. The IAF paper's rows (Kingma et al., 2016) are the "
        "bounds of converged models of the same kind, on its own binarization of MNIST; another binarization moves the "
        "bound by 1 to 2 nats."
    )
    if "mnist" in set(table["dataset"]):
        defaults = results.of("cvae", "mnist").defaults
        note += f" Our posterior of MNIST is IAF of depth {defaults['iaf_depth']}, width {defaults['iaf_width']}."
    if results.scale != "paper":
        note += f" At scale `{results.scale}` our rows cannot be compared with them."
    return [Paragraph(what), Paragraph(note), Table(pd.concat([ours, _rows_of(ours, published)]))]


def _draw_bounds(results: Results, table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    ours = _final_bounds(table)
    published = [
        {"Model": model, "Epochs": epochs, "Test bound": f"{bound:g}".replace("-", "−")}
        for model, (epochs, bound) in paper.DRAW_MNIST.items()
    ]
    what = (
        "Test bound after the last epoch, in nats per image (a lower bound on log p(x): larger is better), mean over "
        "the n finished seeds: the reconstruction's log-likelihood less the KL of all time steps."
    )
    note = (
        "The Weight Normalization paper prints figure 3 alone. The rows below ours are others' bounds: of the code "
        "that it starts from, as told in that code's issue 4, and of DRAW's own paper; another binarization moves the "
        "bound by 1 to 2 nats."
    )
    if results.scale != "paper":
        note += f" At scale `{results.scale}` our rows cannot be compared with them."
    return [Paragraph(what), Paragraph(note), Table(pd.concat([ours, _rows_of(ours, published)]))]


def _table3(results: Results, table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    ours = pd.DataFrame(
        {
            "Game": table["game"].map(paper.game_name),
            "Model": table["param"],
            "Learning rate": table["lr"].map(number),
            "Other settings": table["other_settings"],
            "Paper: normal / wn / Mnih et al.": [
                " / ".join(map(str, scores))
                for scores in zip(table["paper_normal"], table["paper_wn"], table["paper_mnih"], strict=True)
            ],
            "Ours": _means(table, "max_score_mean", score),
            "95 % interval": [
                f"{score(low)} to {score(high)}" if math.isfinite(low) else "–"
                for low, high in zip(table["max_score_low"], table["max_score_high"], strict=True)
            ],
            "n": table["n"],
            "Epochs": table["epochs"],
            "Agent steps": table["agent_steps"].map(_thousands),
            "% of the paper's": (100 * table["agent_steps"] / paper.AGENT_STEPS).map("{:.3g}".format),
            "Last epoch": _games(table, "last"),
            "Random play": _games(table, "random"),
            "Above it (s.e.)": table["last_above_random"].map(_errors),
            UNFINISHED: table["unfinished"],
        }
    )
    begun = table["n"] > 0
    steps = table["agent_steps"][begun if begun.any() else ~begun]
    share = " to ".join(dict.fromkeys(f"{100 * value / paper.AGENT_STEPS:.3g}" for value in (steps.min(), steps.max())))
    note = (
        f"These runs have {share} % of the agent steps of the paper's, which are {paper.AGENT_STEPS / 1e6:g} million. "
        "Ours: the mean score of an epoch's full test games, its maximum over the epochs, mean over n seeds (the "
        "finished ones or, where there is none, those on the way), over the epochs that all of them have. A maximum "
        "over epochs of noisy means is biased upwards, the more so the more epochs and the fewer test games there are. "
        "Last epoch and random play: mean over all games of these seeds ± its standard error; above it: the difference "
        "in standard errors of the difference."
    )
    if results.scale != "paper":
        note += f" At scale `{results.scale}` our scores cannot be compared with the paper's."
    return [Paragraph(note), Table(ours)]


def _games(table: pd.DataFrame, name: str) -> list[str]:
    """`1.5 ± 0.2 (30 games)`."""
    columns = (table[f"{name}_{column}"] for column in ("score_mean", "score_error", "games"))
    return [
        f"{score(mean)} ± {score(error) if games > 1 else '–'} ({count(games, 'game')})" if games else "–"
        for mean, error, games in zip(*columns, strict=True)
    ]


def _errors(value: float) -> str:
    """A number of standard errors, which may be infinite; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{value:.1f}".replace("-", "−")


def _thousands(value: int) -> str:
    """`50 000`."""
    return f"{value:,}".replace(",", " ")


def _interquartile_means(table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    note = (
        "Interquartile mean, over games × seeds, of (maximum test score − random play) / (Mnih et al. − random play), "
        "at the scale's settings but any number of epochs and at table 3's learning rates; 95 % interval by bootstrap "
        "over the seeds within each game."
    )
    ours = pd.DataFrame(
        {
            "Model": table["param"],
            "Interquartile mean": table["interquartile_mean"].map(_bits),
            "95 % interval": [
                f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "–"
                for low, high in zip(table["low"], table["high"], strict=True)
            ],
            "n": table["n"],
            "Games": [", ".join(map(paper.game_name, games.split(", "))) for games in table["games"]],
            "Epochs": table["epochs"],
        }
    )
    return [Paragraph(note), Table(ours)]


def _final_bounds(table: pd.DataFrame) -> pd.DataFrame:
    """What the tables of bounds share, as text."""
    return pd.DataFrame(
        {
            "Model": table["variant"],
            "Other settings": table["other_settings"],
            "Epochs": table["epochs"],
            "n": table["n"],
            "Test bound": _means(table, "test_bound_nats_mean", nats),
            "95 % interval": [
                f"{nats(low)} to {nats(high)}" if math.isfinite(low) else "–"
                for low, high in zip(table["test_bound_nats_low"], table["test_bound_nats_high"], strict=True)
            ],
            "KL": _means(table, "kl_nats_mean", nats),
            "Reconstruction": _means(table, "reconstruction_nats_mean", nats),
            UNFINISHED: table["unfinished"],
            "Data": table["data"],
        }
    )


def _means(table: pd.DataFrame, column: str, words: Callable[[float], str], there: Iterable[bool] = ()) -> list[str]:
    """A column of means over the n finished seeds in words; a dash where there are none, or no such number."""
    there = list(there) or [True] * len(table)
    known = zip(table[column], table["n"], there, strict=True)
    return [words(value) if n and applies else "–" for value, n, applies in known]


def _rows_of(table: pd.DataFrame, rows: list[dict[str, str]]) -> pd.DataFrame:
    """Rows with a table's columns, empty where they say nothing."""
    return pd.DataFrame([{**dict.fromkeys(table.columns, ""), **row} for row in rows])


def _bits(value: float) -> str:
    return plain(value, ".3f")


def _step_time(table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    note = (
        "Ratios of step times, paired within rounds; cvae: of MNIST. The paper, of cifar: bn about "
        f"{100 * (paper.BN_STEP_TIME - 1):.0f} % slower than normal, wn not noticeably."
    )
    ours = pd.DataFrame(
        {
            "Experiment": table["experiment"],
            "Device": table["device"],
            "Ratio": table["ratio"],
            "Median": table["median"].map("{:.3f}".format),
            "95 % interval": [
                f"{low:.3f} to {high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)
            ],
            "n": table["n"],
        }
    )
    return [Paragraph(note), Table(ours)]


def _floors(table: pd.DataFrame) -> list[Block]:
    if table.empty:
        return []
    note = (
        "A training step's floor is the FLOPs of its matrix products and convolutions at the speed that one large "
        "matrix product reached in the same rounds and precision; the distance, how many times its floor the median "
        "step takes. Beside it, the share of the speed of a large copy at which the step's operations read and write, "
        "each by itself: near 100 %, memory is what limits it. dqn: an update alone."
    )
    ours = pd.DataFrame(
        {
            "Experiment": table["experiment"],
            "Device": table["device"],
            "Contender": table["contender"],
            "Step (ms)": (1e3 * table["seconds"]).map("{:.4g}".format),
            "Floor (ms)": (1e3 * table["floor_seconds"]).map("{:.4g}".format),
            "Distance": table["distance"].map("{:.2f}".format),
            "GFLOP": (table["flops"] / 1e9).map("{:.4g}".format),
            "% of FLOP/s": (100 * table["flops_share"]).map("{:.1f}".format),
            "GB": (table["bytes"] / 1e9).map("{:.3g}".format),
            "% of bytes/s": (100 * table["bytes_share"]).map("{:.1f}".format),
            "Largest memory (GB)": (table["memory_bytes"] / 1e9).map("{:.2f}".format),
        }
    )
    return [Paragraph(note), Table(ours)]


def _settings(table: pd.DataFrame) -> list[Block]:
    """A table of its own for every experiment and data set."""
    columns = {
        "setting": "Setting",
        "default": "Paper's scale",
        "runs": "These runs",
        "help": "Meaning",
        "source": "Source",
    }
    return [
        Table(rows.drop(columns="experiment").rename(columns=columns), title=str(experiment))
        for experiment, rows in table.groupby("experiment", sort=False)
    ]


def _final(row: dict[Any, Any]) -> str:
    """A run's final numbers in words; only those that its experiment has, a dash before its first epoch."""
    if not row["epoch"]:
        return "–"
    if row["experiment"] == "cifar":
        return f"training {percent(row['train_error'])} %, test {percent(row['test_error'])} %"
    if row["experiment"] == "dqn":
        return f"test score {score(row['test_score'])}"
    bits = row.get("test_bits_per_dim", math.nan)
    in_bits = f", {_bits(bits)} bits per dim." if math.isfinite(bits) else ""
    return f"test bound {nats(row['test_bound_nats'])} nats{in_bits}"


def _runs(table: pd.DataFrame) -> list[Block]:
    return [
        Table(
            pd.DataFrame(
                {
                    "Experiment": table["experiment"],
                    "Variant": table["variant"],
                    "Seed": table["seed"],
                    "Status": [
                        status if status == "done" else "incomplete" if status == "running" else status
                        for status in table["status"]
                    ],
                    "Epoch": [
                        f"{epoch} of {epochs}" for epoch, epochs in zip(table["epoch"], table["epochs"], strict=True)
                    ],
                    "Last epoch": [_final(row) for row in table.to_dict("records")],
                    "Seconds": [
                        f"{value:.0f}" if isinstance(value, int | float) and value == value else "–"
                        for value in table["seconds"]
                    ],
                    "Device": table["device"],
                    "Commit": table["git"],
                    "torch": table["torch"],
                    "Settings' hash": table["hash"],
                    "Resumed": table["resumed"],
                    "Message": table["message"],
                }
            ),
            sortable=True,
        )
    ]

"""Writes results/<scale>/report.md, its tables and figures: a pure function of the run files."""

import os
import tempfile
from pathlib import Path

import pandas as pd

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.paper import CLAIMS, VERDICTS
from wnrepro.report import figures, tables
from wnrepro.report.claims import Finding, findings
from wnrepro.report.load import Results, check, load
from wnrepro.report.tables import escape, interval, markdown, number, percent

# The figure that belongs to a claim, and each figure's caption.
CLAIM_FIGURE = {
    "C5": "figure1",
    "C6": "learning_rates",
    "C7": "step_time",
    "C8": "noise_kurtosis",
    "C13": "learning_rates",
    "C14": "norm_growth",
}
CAPTIONS = {
    "figure1": "Training error by epoch at figure 1's learning rates: every seed (thin) and the mean of the "
    "finished ones. Dashes: where the rate starts to fall.",
    "test_error": "Test error by epoch, same runs.",
    "learning_rates": "Final errors by learning rate (C6, C13): a dot a seed, lines through the means.",
    "norm_growth": "Growth of ‖v‖ (C14): a line a run. Dashes: where the rate starts to fall.",
    "noise_kurtosis": "Excess kurtosis of the normalization noise by layer (C8), at the first and the last "
    "epoch measured: median and quartiles over features.",
    "step_time": "Step time over that of the normal parameterization (C7), 95 % intervals.",
}
WARNING = {
    "quick": "**Scale `quick`: the data is bundled sample data and the model is narrow. These numbers mean "
    "nothing beside the paper's; they show that the code runs.**",
    "short": "**Scale `short`: the paper's model and data, but fewer images and epochs. The final errors are "
    "not comparable with the paper's.**",
}


def write_report(results: Path, scale: str) -> Path:
    """Write report.md, tables/*.csv and figures/*.{png,svg} into results/<scale>/; returns report.md's path.

    Everything is read and drawn before the first file is written. UserError if there are no runs, a file
    is malformed, or the folder cannot be written to.
    """
    read = load(results, scale)
    found = findings(read)
    frames = {
        "claims": tables.claims(found),
        "table2": tables.table2(read),
        "variants": tables.variants(read),
        "step_time": tables.step_time(read),
        "settings": tables.settings(read),
        "runs": tables.provenance(read),
    }
    drawn = figures.draw(read)
    text = _report(read, found, frames, list(drawn), check(results, scale))
    files = {f"tables/{name}.csv": frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}
    folder = results / scale
    try:
        for name, content in files.items():
            _write(folder / name, content.encode())
        for name, formats in drawn.items():
            for suffix, image in formats.items():
                _write(folder / "figures" / f"{name}.{suffix}", image)
        for name in CAPTIONS.keys() - drawn.keys():  # of an earlier report
            for suffix in ("png", "svg"):
                (folder / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
        _write(folder / "report.md", text.encode())
    except OSError as error:
        raise UserError(f"The report cannot be written to {folder} ({error.strerror}): make it writable.") from error
    return folder / "report.md"


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _report(
    results: Results,
    found: dict[str, Finding],
    frames: dict[str, pd.DataFrame],
    drawn: list[str],
    problems: list[str],
) -> str:
    incomplete = [run for run in results.runs if not run.done and not run.diverged]
    parts = [f"# Weight normalization: report at scale `{results.scale}`"]
    if results.scale in WARNING:
        parts.append(WARNING[results.scale])
    if problems:
        parts.append("**Files that do not fit together; do not trust these runs:**")
        parts.append("\n".join(f"- {escape(problem)}" for problem in problems))
    counts = [(verdict, sum(finding.verdict == verdict for finding in found.values())) for verdict in VERDICTS]
    parts.append(
        f"{len(CLAIMS)} claims: " + ", ".join(f"{times} {verdict}" for verdict, times in counts) + ". "
        f"{len(results.runs)} runs, {sum(run.done for run in results.runs)} done, "
        f"{sum(run.diverged for run in results.runs)} diverged, {len(incomplete)} incomplete."
    )
    parts += ["## Claims", _claims(results, found, drawn)]
    parts += ["## Table 2: test error on CIFAR-10 (%)", _table2(results, frames["table2"])]
    for heading, names in (
        ("Figure 1: error by epoch", ("figure1", "test_error")),
        ("Learning rates", ("learning_rates",)),
        ("Growth of ‖v‖", ("norm_growth",)),
        ("Normalization noise", ("noise_kurtosis",)),
    ):
        images = [_image(name) for name in names if name in drawn]
        if images:
            parts += [f"## {heading}", *images]
    parts += ["## Every variant", _variants(frames["variants"])]
    if len(frames["step_time"]):
        parts += ["## Step time", _step_time(frames["step_time"])]
        parts += [_image("step_time")] if "step_time" in drawn else []
    parts += ["## Settings", _settings(frames["settings"])]
    parts += ["## Runs", _runs(frames["runs"])]
    return "\n\n".join(parts) + "\n"


def _image(name: str) -> str:
    return f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}* ([SVG](figures/{name}.svg))"


def _claims(results: Results, found: dict[str, Finding], drawn: list[str]) -> str:
    setting = "the paper's setting" if results.scale == "paper" else "not the paper's setting"
    rows = []
    for claim in CLAIMS:
        finding = found[claim.id]
        name = CLAIM_FIGURE.get(claim.id, "")
        link = f"[{name.replace('_', ' ').replace('figure1', 'figure 1')}](figures/{name}.png)"
        rows.append(
            {
                "": claim.id,
                "Claim": f"{escape(claim.claim)} ({escape(claim.where)})",
                "Paper": escape(claim.paper),
                "Measured": escape(finding.measured),
                "Verdict": f"**{finding.verdict}**",
                "On": escape(f"scale {results.scale}; {finding.n}; {finding.devices}"),
                "Rule": escape(claim.rule),
                "Figure": link if name in drawn else "",
            }
        )
    return (
        f"Judged on the runs at scale `{results.scale}` ({setting}), with all other settings at the scale's "
        f"defaults and precision {results.precision}. The rules were fixed before the results.\n\n"
        f"{markdown(pd.DataFrame(rows), escaped=False)}"
    )


def _table2(results: Results, table: pd.DataFrame) -> str:
    ours = pd.DataFrame(
        {
            "Model": table["model"],
            "Learning rate": table["lr"].map(number),
            "Paper": table["paper_test_error"].map(percent),
            "Ours": table["test_error_mean"].map(percent),
            "95 % interval": [
                interval(*pair) for pair in zip(table["test_error_low"], table["test_error_high"], strict=True)
            ],
            "n": table["n"],
            "Every seed": table["seeds"],
        }
    )
    earlier = pd.DataFrame(
        [
            {**dict.fromkeys(ours.columns, ""), "Model": model, "Paper": f"{error:.2f}"}
            for model, error in paper.TABLE2_EARLIER.items()
        ]
    )
    note = (
        "Test error after the last epoch, at figure 1's learning rates. n: finished seeds, which the mean "
        "and the t-interval rest on; a run that is not finished stands with its epoch."
    )
    if results.scale != "paper":
        note += f" At scale `{results.scale}` our column cannot be compared with the paper's."
    return f"{note}\n\n{markdown(pd.concat([earlier, ours]))}"


def _variants(table: pd.DataFrame) -> str:
    return "Errors after the last epoch (%), mean over the n finished seeds.\n\n" + markdown(
        pd.DataFrame(
            {
                "Variant": table["variant"],
                "Learning rate": table["lr"].map(number),
                "Other settings": table["other_settings"],
                "n": table["n"],
                "Training error": table["train_error_mean"].map(percent),
                "Test error": table["test_error_mean"].map(percent),
                "95 % interval": [
                    interval(*pair) for pair in zip(table["test_error_low"], table["test_error_high"], strict=True)
                ],
                "Not finished": table["unfinished"],
            }
        )
    )


def _step_time(table: pd.DataFrame) -> str:
    return (
        "Ratios of step times, paired within rounds. The paper: bn about "
        f"{100 * (paper.BN_STEP_TIME - 1):.0f} % slower than normal, wn not noticeably.\n\n"
    ) + markdown(
        pd.DataFrame(
            {
                "Device": table["device"],
                "Ratio": table["ratio"],
                "Median": table["median"].map("{:.3f}".format),
                "95 % interval": [
                    f"{low:.3f} to {high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)
                ],
                "n": table["n"],
            }
        )
    )


def _settings(table: pd.DataFrame) -> str:
    return markdown(
        table.rename(
            columns={
                "setting": "Setting",
                "default": "Paper's scale",
                "runs": "These runs",
                "help": "Meaning",
                "source": "Source",
            }
        )
    )


def _runs(table: pd.DataFrame) -> str:
    return markdown(
        pd.DataFrame(
            {
                "Variant": table["variant"],
                "Seed": table["seed"],
                "Status": [
                    status if status == "done" else "incomplete" if status == "running" else status
                    for status in table["status"]
                ],
                "Epoch": [
                    f"{epoch} of {epochs}" for epoch, epochs in zip(table["epoch"], table["epochs"], strict=True)
                ],
                "Training error (%)": table["train_error"].map(percent),
                "Test error (%)": table["test_error"].map(percent),
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
        )
    )

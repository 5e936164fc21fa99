"""The report's tables as data frames, and their numbers in words. Errors in the tables are fractions.

Bounds are in nats, per image. A table of an experiment without runs has no rows.
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pandas as pd

from wnrepro import paper
from wnrepro.report import verdicts
from wnrepro.report.claims import NOT_FINITE, Finding, max_score, not_finite
from wnrepro.report.load import (
    WORK,
    Results,
    Run,
    counted,
    longest,
    random_scores,
    scale_defaults,
    step_ratios,
    step_works,
    whose,
)
from wnrepro.settings import FIGURE_LR, NORMAL_INIT, PARAMS, SETTINGS


def percent(value: float) -> str:
    """A fraction in per cent, without the sign."""
    return f"{100 * value:.2f}" if math.isfinite(value) else NOT_FINITE


def interval(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}" if math.isfinite(low) else "–"


def number(value: float) -> str:
    """A plain number, as short as possible."""
    return f"{value:g}"


def claims(found: dict[str, Finding]) -> pd.DataFrame:
    """One row a claim."""
    return pd.DataFrame(
        [
            {
                "id": claim.id,
                "claim": claim.claim,
                "where": claim.where,
                "paper": claim.paper,
                "measured": found[claim.id].measured,
                "n": found[claim.id].n,
                "devices": found[claim.id].devices,
                "verdict": found[claim.id].verdict,
                "rule": claim.rule,
            }
            for claim in paper.CLAIMS
        ]
    )


def table2(results: Results) -> pd.DataFrame:
    """One row a parameterization, in table 2's order: the paper's test error, ours, every seed's."""
    rows = []
    cifar = results.of("cifar")
    for param, published in paper.TABLE2.items() if cifar.runs else ():
        runs = [run for run in cifar.figure1 if run.param == param]
        errors = [run.final("test_error") for run in runs if run.done]
        low, high = verdicts.t_interval(errors)
        rows.append(
            {
                "model": paper.TABLE2_NAMES[param],
                "param": param,
                "lr": FIGURE_LR[param],
                "paper_test_error": round(published / 100, 6),
                "test_error_mean": mean(errors),
                "test_error_low": low,
                "test_error_high": high,
                "n": len(errors),
                "seeds": "; ".join(_seed(run) for run in runs) or "not run",
            }
        )
    return pd.DataFrame(rows)


def _seed(run: Run) -> str:
    """`seed 1: 8.41`, with the state of a run that is not done."""
    error = f"seed {run.seed}: {percent(run.final('test_error')) if run.epoch else '–'}"
    return error if run.done else f"{error} ({run.state})"


def variants(results: Results) -> pd.DataFrame:
    """One row a variant of cifar: final errors over its finished seeds, and the state of the others."""
    rows = []
    for variant, runs in _by_variant(results.of("cifar")).items():
        done = [run for run in runs if run.done]
        test = [run.final("test_error") for run in done]
        low, high = verdicts.t_interval(test)
        rows.append(
            {
                "variant": variant,
                "param": runs[0].param,
                "lr": runs[0].lr,
                "other_settings": _changes(runs[0]),
                "n": len(done),
                "train_error_mean": mean([run.final("train_error") for run in done]),
                "test_error_mean": mean(test),
                "test_error_low": low,
                "test_error_high": high,
                "unfinished": _unfinished(runs, "train_error", "test_error"),
            }
        )
    return pd.DataFrame(rows)


def bounds(results: Results) -> pd.DataFrame:
    """One row a variant of cvae: `_final_bound`, bits per dimension and log p(x).

    log_likelihood: by importance sampling, of the runs with the most samples; `n` of its own.
    """
    rows = []
    for dataset in paper.FIGURE2:
        for runs in _by_variant(results.of("cvae", dataset)).values():
            done = [run for run in runs if run.done]
            samples = max((count for run in done if math.isfinite(count := _samples(run))), default=0)
            estimated = [run for run in done if samples and run.facts.get("importance_samples") == samples]
            known = [run.facts["log_likelihood_nats"] for run in estimated if "log_likelihood_nats" in run.facts]
            in_bits = ("test_bits_per_dim",) if dataset == "cifar10" else ()
            rows.append(
                {
                    "dataset": dataset,
                    **_final_bound(runs, *in_bits),
                    "test_bits_per_dim_mean": (
                        mean([run.final("test_bits_per_dim") for run in done]) if in_bits else math.nan
                    ),
                    "log_likelihood_nats_mean": mean(known),
                    "importance_samples": int(samples),
                    "log_likelihood_n": len(known),
                }
            )
    return pd.DataFrame(rows)


def draw_bounds(results: Results) -> pd.DataFrame:
    """One row a variant of draw: `_final_bound`."""
    return pd.DataFrame([_final_bound(runs) for runs in _by_variant(results.of("draw")).values()])


def _samples(run: Run) -> float:
    """Of the estimate of log p(x), by image; 0: there is none."""
    return run.facts.get("importance_samples", 0)


def _final_bound(runs: list[Run], *more: str) -> dict[str, Any]:
    """Of a variant's runs: final bound and its parts over the finished seeds, and the state of the others.

    more: further columns of metrics.csv of which the table has the mean.
    """
    parts = ("test_bound_nats", "kl_nats", "reconstruction_nats", *more)
    done = [run for run in runs if run.done]
    test = [run.final("test_bound_nats") for run in done]
    low, high = verdicts.t_interval(test)
    return {
        "data": "; ".join(sorted({str((run.record.get("facts") or {}).get("data", "")) for run in runs})),
        "variant": runs[0].variant,
        "param": runs[0].param,
        "lr": runs[0].lr,
        "other_settings": _changes(runs[0]),
        "epochs": runs[0].epochs,
        "n": len(done),
        "test_bound_nats_mean": mean(test),
        "test_bound_nats_low": low,
        "test_bound_nats_high": high,
        "kl_nats_mean": mean([run.final("kl_nats") for run in done]),
        "reconstruction_nats_mean": mean([run.final("reconstruction_nats") for run in done]),
        "unfinished": _unfinished(runs, *parts, facts=("importance_samples", "log_likelihood_nats")),
    }


def table3(results: Results) -> pd.DataFrame:
    """One row a game and variant of dqn, any number of epochs: the paper's scores, ours over the `counted` runs.

    max_score: by seed, over the epochs that all of them have; the last of these is last_…'s, whose games are the
    sample, as random play's are.
    """
    rows = []
    for game, published in paper.TABLE3.items():
        part = results.of("dqn", game)
        kinds: dict[tuple[str, float, str], list[Run]] = {}
        for run in part.runs:
            kinds.setdefault((run.param, run.lr, _changes(run, "epochs")), []).append(run)
        for (param, lr, changes), some in kinds.items():
            of_kind = list(longest(some))
            runs = counted(of_kind)
            epochs = min((run.epoch for run in runs), default=0)
            best = [max_score(run, epochs) for run in runs]
            low, high = verdicts.t_interval(best)
            last = [score for run in runs for score in run.scores(epochs)]
            random = random_scores(of_kind)
            rows.append(
                {
                    "game": game,
                    "param": param,
                    "lr": lr,
                    "other_settings": changes,
                    "paper_normal": published["normal"],
                    "paper_wn": published["wn"],
                    "paper_mnih": paper.TABLE3_MNIH[game],
                    "max_score_mean": mean(best),
                    "max_score_low": low,
                    "max_score_high": high,
                    "n": len(runs),
                    "epochs": epochs,
                    "agent_steps": min((int(run.metrics["agent_steps"].iloc[epochs - 1]) for run in runs), default=0),
                    **_games("last", last),
                    **_games("random", random),
                    "last_above_random": verdicts.above(last, random),
                    "unfinished": _unfinished(of_kind, "test_score", epochs=epochs, games=(0, epochs)),
                }
            )
    return pd.DataFrame(rows)


def _games(name: str, scores: list[float]) -> dict[str, Any]:
    """The mean score of games, its standard error and their number."""
    return {
        f"{name}_score_mean": mean(scores),
        f"{name}_score_error": verdicts.standard_error(scores),
        f"{name}_games": len(scores),
    }


def interquartile_means(results: Results) -> pd.DataFrame:
    """One row a parameterization of dqn at the scale's settings, if `SEEDS` seeds of two games count.

    Of (maximum test score − random play) / (Mnih et al. − random play), over games × seeds.
    """
    rows = []
    for param in PARAMS:
        scores: dict[str, list[float]] = {}
        epochs = []
        for game, mnih in paper.TABLE3_MNIH.items():
            runs = counted(run for run in results.of("dqn", game).figure4 if run.param == param)
            random = random_scores(runs)
            if len(runs) >= paper.SEEDS and random:
                epochs.append(min(run.epoch for run in runs))
                chance = mean(random)
                scores[game] = [(max_score(run, epochs[-1]) - chance) / (mnih - chance or math.nan) for run in runs]
        if len(scores) > 1:
            middle, (low, high) = verdicts.interquartile_mean(list(scores.values()))
            rows.append(
                {
                    "param": param,
                    "interquartile_mean": middle,
                    "low": low,
                    "high": high,
                    "games": ", ".join(scores),
                    "n": sum(map(len, scores.values())),
                    "epochs": min(epochs),
                }
            )
    return pd.DataFrame(rows)


@verdicts.quiet
def mean(values: list[float]) -> float:
    """nan of no values; not finite where one of them, or their sum, is not."""
    return float(np.mean(values)) if values else math.nan


def _by_variant(results: Results) -> dict[str, list[Run]]:
    return {
        variant: [run for run in results.runs if run.variant == variant]
        for variant in dict.fromkeys(run.variant for run in results.runs)
    }


def _changes(run: Run, *left_out: str) -> str:
    return ", ".join(f"{name} = {value}" for name, value in run.changed.items() if name not in left_out)


def _unfinished(
    runs: list[Run],
    *columns: str,
    epochs: int | None = None,
    facts: tuple[str, ...] = (),
    games: tuple[int, ...] = (),
) -> str:
    """The runs that no mean can rest on: how far they got, or which of these columns, facts, and scores of the games
    of these epochs, is not finite.
    """
    said = []
    for run in runs:
        lost = [column for column in columns if not_finite(run, column, epochs)]
        lost += [fact for fact in facts if not math.isfinite(run.facts.get(fact, 0.0))]
        if not all(math.isfinite(score) for epoch in games for score in run.scores(epoch)):
            lost.append("a game's score")
        if not run.done:
            said.append(f"seed {run.seed}: {run.state}")
        elif lost:
            said.append(f"seed {run.seed}: {', '.join(lost)} {NOT_FINITE}")
    return "; ".join(said)


def step_time(results: Results) -> pd.DataFrame:
    """One row an experiment, device and ratio of step times: median and 95 % interval over paired rounds."""
    rows = [
        {
            "experiment": experiment,
            "device": bench["device_name"],
            "ratio": name,
            **{key: ratio[key] for key in ("median", "low", "high", "n")},
        }
        for experiment in SETTINGS
        for bench in results.bench.values()
        for name, ratio in step_ratios(bench, experiment).items()
    ]
    return pd.DataFrame(rows, columns=["experiment", "device", "ratio", "median", "low", "high", "n"])


def floors(results: Results) -> pd.DataFrame:
    """One row an experiment, device and contender: its step's floor, distance from it, shares of the ceilings."""
    rows = [
        {
            "experiment": experiment,
            "device": bench["device_name"],
            "contender": name,
            "seconds": work["floor_seconds"] * work["distance"],
            **{column: work[column] for column in WORK},
            "memory_bytes": bench[experiment]["memory"][whose(name)],
        }
        for experiment in SETTINGS
        for bench in results.bench.values()
        for name, work in step_works(bench, experiment).items()
    ]
    return pd.DataFrame(rows)


def settings(results: Results) -> pd.DataFrame:
    """One row an experiment (and data set) and setting: the paper's value, those of the runs, its help and source."""
    rows = []
    for part, of_part in results.parts.items():
        first, used = of_part.runs[0], [run.settings for run in of_part.runs]
        entries = {entry.name: entry for entry in dataclasses.fields(SETTINGS[first.experiment])}
        defaults = scale_defaults(first.experiment, "paper", first.dataset)
        if first.experiment in NORMAL_INIT:
            defaults["init"] = NORMAL_INIT[first.experiment]
        for name in dict.fromkeys([*entries, *(name for settings in used for name in settings)]):
            values = dict.fromkeys(_value(settings[name]) for settings in used if name in settings)
            entry = entries.get(name)
            rows.append(
                {
                    "experiment": part,
                    "setting": name,
                    "default": _value(defaults[name]) if entry else "",
                    "runs": ", ".join(values),
                    "help": entry.metadata["help"] if entry else "not a setting of this version",
                    "source": entry.metadata["source"] if entry else "",
                }
            )
    return pd.DataFrame(rows)


def _value(value: Any) -> str:
    """A setting's value as config.json has it."""
    return value if isinstance(value, str) else json.dumps(value)


def provenance(results: Results) -> pd.DataFrame:
    """One row a run: how it ended, with which of its experiment's final numbers, where, on which code."""
    rows = []
    finals = ("train_error", "test_error", "test_bound_nats", "test_bits_per_dim", "test_score")
    shown = [name for name in finals if any(name in run.metrics for run in results.runs)]
    for run in results.runs:
        git, versions = run.record.get("git") or {}, run.record.get("versions") or {}
        commit = str(git.get("commit") or "unknown")[:7]
        rows.append(
            {
                "experiment": run.experiment,
                "variant": run.variant,
                "seed": run.seed,
                "status": run.record["status"],
                "epoch": run.epoch,
                "epochs": run.epochs,
                **{name: run.final(name) if name in run.metrics else math.nan for name in shown},
                "seconds": run.record.get("seconds"),
                "peak_memory_bytes": run.record.get("peak_memory_bytes"),
                "device": run.device,
                "git": f"{commit}, dirty" if git.get("dirty") else commit,
                "torch": str(versions.get("torch") or "unknown"),
                "hash": run.config["hash"],
                "resumed": len(run.record.get("resumed") or []),
                "message": str(run.record.get("message") or ""),
            }
        )
    return pd.DataFrame(rows)

"""The grid of the paper's runs: what it holds, what it is for, and which words select its runs."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.experiments import experiment_class
from wnrepro.report.claims import CLAIMS, dqn
from wnrepro.report.stats import LOOKS
from wnrepro.reproduce.grid import left_out, planned, seeds
from wnrepro.settings import GAMES, PARAMS, SCALE_NAMES, SETTINGS, scale_settings, settings_from

TEN, FIVE, THREE = set(range(1, 11)), set(range(1, 6)), {1, 2, 3}
BOTH = ("normal", "wn")
each_scale = pytest.mark.parametrize("scale", SCALE_NAMES)


def seeds_of(scale: str, experiment: str, **values: Any) -> set[int]:
    """Seeds of the runs at the scale's defaults besides these values."""
    default = scale_settings(experiment, scale, **values)
    runs = [run.settings for run in planned(scale, [experiment])]
    return {one.seed for one in runs if dataclasses.replace(default, seed=one.seed) == one}


@each_scale
def test_grid_has_every_run_once_and_a_directory_for_each(tmp_path: Path, scale: str) -> None:
    runs = planned(scale)
    assert len(runs) == {"paper": 271, "short": 41, "quick": 32}[scale]  # as README.md says
    assert len({(run.experiment, run.settings) for run in runs}) == len(runs)
    assert len({run.directory(tmp_path).folder for run in runs}) == len(runs)
    for run in runs:
        assert settings_from(run.experiment, run.directory(tmp_path).config["settings"]) == run.settings
        if scale == "quick":
            experiment_class(run.experiment).check(run.settings, None, torch.device("cpu"))
    for experiment in SETTINGS:
        assert planned(scale, [experiment]) == [run for run in runs if run.experiment == experiment]


@each_scale
def test_grid_has_the_runs_that_claims_compare(scale: str) -> None:
    for param in PARAMS:  # a start of all four, as C3 needs
        assert 1 in seeds_of(scale, "cifar", param=param) & seeds_of(scale, "draw", param=param)
        assert all(1 in seeds_of(scale, "cvae", param=param, dataset=dataset) for dataset in paper.FIGURE2)
        assert scale == "short" or 1 in seeds_of(scale, "dqn", param=param, game=paper.FIGURE4)
    for param, lr in itertools.product(BOTH, paper.LEARNING_RATES):  # C6, C13, C14
        assert 1 in seeds_of(scale, "cifar", param=param, lr=lr)
    for exponent in (1.0, 3.0, 5.0):  # C15, beside direct g
        assert seeds_of(scale, "cifar", param="wn", g_exp=exponent) == seeds_of(scale, "cifar", param="wn")
    for experiment in ("cifar", "cvae"):  # C16
        assert seeds_of(scale, experiment, param="wn", v_norm_max=0.25)
    every = [run.settings for run in planned(scale)]
    for settings in every:  # what differs by one setting stands beside a run without it
        for name in ("g_exp", "v_norm_max", "g_start"):
            if getattr(settings, name, None) is not None:
                assert dataclasses.replace(settings, **{name: None}) in every
        if settings.param == "normal" and getattr(settings, "init", "") == "folded" and hasattr(settings, "width"):
            assert dataclasses.replace(settings, init="authors") in every


@pytest.mark.parametrize(
    ("experiment", "expected", "values"),
    [
        *(("cifar", TEN, {"param": param}) for param in PARAMS),  # C4, C8, C18
        *(("cifar", TEN, {"param": p, "lr": lr}) for p in BOTH for lr in paper.LEARNING_RATES),  # C5a, C6, C13, C14
        *(("cifar", THREE, {"param": "bn", "lr": lr}) for lr in paper.LEARNING_RATES),  # C5b
        *(("cifar", {1}, {"param": "normal", "init": "folded", "lr": lr}) for lr in paper.LEARNING_RATES),
        *(("cifar", TEN, {"param": "wn", "polyak_epochs": 10.0, "v_norm_max": a}) for a in (None, 0.25)),  # C16b
        *(("cifar", FIVE, {"param": "wn", "v_norm_max": a}) for a in (None, 0.25)),  # C19
        *(("cvae", FIVE, {"param": param}) for param in BOTH),  # C9
        *(("cvae", THREE, {"param": param, "dataset": "cifar10"}) for param in BOTH),
        ("cvae", FIVE, {"param": "wn", "v_norm_max": 0.25}),  # C16a
        ("cvae", THREE, {"param": "wn", "dataset": "cifar10", "v_norm_max": 0.25}),
        *(("draw", FIVE, {"param": param}) for param in BOTH),  # C10
        ("draw", FIVE, {"param": "wn", "g_start": 1.0}),
        *(("dqn", THREE, {"param": param, "game": game}) for param in BOTH for game in GAMES),  # C11
        *(("dqn", THREE, {"param": "bn", "game": g, "lr": lr}) for g in GAMES[::3] for lr in dqn.RATES),  # C12
        ("dqn", {1}, {"param": "bn", "game": "breakout", "batch_size": 512}),
    ],
)
def test_scale_paper_has_the_seeds_by_which_claims_are_judged(
    experiment: str, expected: set[int], values: dict[str, Any]
) -> None:
    assert seeds_of("paper", experiment, **values) >= expected


@each_scale
def test_every_run_serves_something_that_exists(scale: str) -> None:
    served = set(itertools.chain.from_iterable(run.serves for run in planned(scale)))
    others = {name for name in served if not re.fullmatch(r"C\d+[a-z]?", name)}
    assert others <= {"table 2", "table 3", *(f"figure {number}" for number in range(1, 5))} | {
        "normal by the paper's text",
        "bn with a large minibatch",
    }
    claims = {claim.id for claim in CLAIMS}
    assert served - others <= claims and seeds(scale).keys() == served - others
    if scale == "paper":  # the rest are identities and step times, of which every run, or `bench`, tells
        assert claims - served == {"C1", "C2", "C7a", "C7b", "C17"}
        assert all(number in LOOKS for claim, number in seeds(scale).items() if claim != "C3")


@pytest.mark.parametrize(
    ("words", "there", "out"),
    [
        ("", "cifar cvae:mnist cvae:cifar10 draw dqn:breakout dqn:space_invaders", []),
        ("cifar cvae mnist", "cifar cvae:mnist", ["cvae cifar10", "draw", "dqn"]),
        ("mnist", "cvae:mnist", ["cifar", "cvae cifar10", "draw", "dqn"]),
        ("cifar10 cvae mnist", "cvae:mnist cvae:cifar10", ["cifar", "draw", "dqn"]),
        ("dqn mnist", "cvae:mnist dqn:breakout dqn:space_invaders", ["cifar", "cvae cifar10", "draw"]),
        ("breakout draw cvae", "cvae:mnist cvae:cifar10 draw dqn:breakout", ["cifar", "dqn space_invaders"]),
    ],
)
def test_words_are_experiments_or_parts_of_them(words: str, there: str, out: list[str]) -> None:
    def kind(run: Any) -> str:
        return f"{run.experiment}:{run.part}".rstrip(":")

    runs = planned("short", words.split())
    assert runs == [run for run in planned("short") if kind(run) in there.split()]
    assert ({*map(kind, runs)}, left_out("short", runs)) == ({*there.split()}, out)


@pytest.mark.parametrize("word", ["chess", "enduro", "Cifar", ""])
def test_a_word_that_names_nothing_of_the_scale_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"^reproduce {word}: .*short.* cifar, cvae, .* mnist, cifar10, breakout, "):
        planned("short", ["cifar", word])
    assert planned("paper", ["enduro"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("C10", {"C10a", "C10b"}),
        ("C10b", {"C10b"}),
        ("figure1 C16a", {"figure 1", "C16a"}),
        ("C12 table2", {"C12", "table 2"}),
    ],
)
def test_words_are_claims_tables_and_figures(words: str, names: set[str]) -> None:
    every = planned("paper")
    assert planned("paper", words.split()) == [run for run in every if names & {*run.serves}] != []
    both = [run for run in every if names & {*run.serves} or run.part == "mnist"]
    assert planned("paper", ["mnist", *words.split()]) == both


def test_what_is_left_out_of_an_experiment_is_named() -> None:
    assert left_out("paper", planned("paper", ["C10", "cvae"])) == ["cifar", "some of draw", "dqn"]
    left = ["cifar", "cvae cifar10", "some of cvae mnist", "draw", "dqn"]
    assert left_out("short", planned("short", ["C16a"])) == left


def test_a_parameterization_of_ones_own_has_the_runs_of_wn_without_claims_or_variants() -> None:
    runs = planned("quick", ["cifar"], ["Mine-01234567"])
    wn = planned("quick", ["cifar"], ["wn"])
    assert {run.settings.lr for run in runs} == {run.settings.lr for run in wn} > {0.003}
    assert all(run.settings.param == "Mine-01234567" and run.settings.g_exp is None for run in runs)  # type: ignore[union-attr]
    assert {name for run in runs for name in run.serves} == {"table 2", "figure 1"}
    with pytest.raises(UserError, match="--param Mine-01234567: nothing of C15"):
        planned("quick", ["C15"], ["Mine-01234567"])


def test_changes_are_settings_of_all_runs() -> None:
    assert {run.settings.precision for run in planned("quick", precision="bf16")} == {"bf16"}
    with pytest.raises(UserError, match="--precision fp8: unknown"):
        planned("quick", ["draw"], precision="fp8")

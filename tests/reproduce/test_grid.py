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
from wnrepro.reproduce.grid import Planned, left_out, planned, seeds
from wnrepro.settings import GAMES, PARAMS, SCALE_NAMES, SETTINGS, scale_settings, settings_from

TEN, FIVE, THREE = set(range(1, 11)), set(range(1, 6)), {1, 2, 3}
BOTH, RATES = ("normal", "wn"), paper.LEARNING_RATES
SOME_OF_DQN = [f"some of dqn {game}" for game in GAMES]
each_scale = pytest.mark.parametrize("scale", SCALE_NAMES)


@each_scale
def test_grid_has_every_run_once_beside_the_run_that_it_is_compared_with(tmp_path: Path, scale: str) -> None:
    runs = planned(scale)
    every = [run.settings for run in runs]
    assert len(runs) == {"paper": 271, "short": 41, "quick": 32}[scale]  # as README.md says
    assert len({*every}) == len({run.directory(tmp_path).folder for run in runs}) == len(runs)
    for run in runs:
        assert settings_from(run.experiment, run.directory(tmp_path).config["settings"]) == run.settings
        if scale == "quick":
            experiment_class(run.experiment).check(run.settings, None, torch.device("cpu"))
        for name in {"g_exp", "v_norm_max", "g_start"} & {*vars(run.settings)}:
            assert dataclasses.replace(run.settings, **{name: None}) in every
    assert [run for name in SETTINGS for run in planned(scale, [name])] == sorted(
        runs, key=lambda run: [*SETTINGS].index(run.experiment)
    )
    for param, part in itertools.product(PARAMS, paper.FIGURE2):  # a start of all four, as C3 needs
        assert {scale_settings("cifar", scale, param), scale_settings("cvae", scale, param, dataset=part)} <= {*every}
    for param, lr in itertools.product(BOTH, RATES):  # C6, C13, C14
        assert scale_settings("cifar", scale, param, lr=lr) in every


@pytest.mark.parametrize(
    ("experiment", "expected", "values"),
    [
        *(("cifar", TEN, {"param": param}) for param in PARAMS),  # C4, C8, C18
        *(("cifar", TEN, {"param": p, "lr": lr}) for p in BOTH for lr in RATES),  # C5a, C6, C13, C14
        *(("cifar", THREE, {"param": "bn", "lr": lr}) for lr in RATES),  # C5b
        *(("cifar", {1}, {"param": "normal", "init": "folded", "lr": lr}) for lr in RATES),
        *(("cifar", TEN, {"param": "wn", "g_exp": exponent}) for exponent in (1.0, 3.0, 5.0)),  # C15
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
    every = {run.settings for run in planned("paper", [experiment])}
    assert every >= {scale_settings(experiment, "paper", seed=seed, **values) for seed in expected}


@each_scale
def test_every_run_serves_something_that_exists(scale: str) -> None:
    served = set(itertools.chain.from_iterable(run.serves for run in planned(scale)))
    claims, looks = {claim.id for claim in CLAIMS}, seeds(scale)
    others = {"normal by the paper's text", "bn with a large minibatch"}
    assert all(re.fullmatch(r"table [23]|figure [1-4]", name) for name in served - claims - others)
    assert looks.keys() == served & claims
    if scale == "paper":  # the rest are identities and step times, of which every run, or `bench`, tells
        assert claims - served == {"C1", "C2", "C7a", "C7b", "C17"}
        assert {*looks.values()} - {looks["C3"]} <= {*LOOKS}


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
    def kind(run: Planned) -> str:
        return f"{run.experiment}:{run.part}".rstrip(":")

    runs = planned("short", words.split())
    assert runs == [run for run in planned("short") if kind(run) in there.split()]
    assert ({*map(kind, runs)}, left_out("short", runs)) == ({*there.split()}, out)


@pytest.mark.parametrize(
    ("words", "names", "out"),
    [
        ("C10", {"C10a", "C10b"}, ["cifar", "cvae", "some of draw", "dqn"]),
        ("C10b", {"C10b"}, ["cifar", "cvae", "some of draw", "dqn"]),
        (
            "figure1 C16a",
            {"figure 1", "C16a"},
            ["some of cifar", "some of cvae mnist", "some of cvae cifar10", "draw", "dqn"],
        ),
        ("mnist C12 table2", {"C12", "table 2", "mnist"}, ["some of cifar", "cvae cifar10", "draw", *SOME_OF_DQN]),
    ],
)
def test_words_are_claims_tables_and_figures(words: str, names: set[str], out: list[str]) -> None:
    runs = planned("paper", words.split())
    assert runs == [run for run in planned("paper") if names & {*run.serves, run.part}] != []
    assert left_out("paper", runs) == out


@pytest.mark.parametrize("word", ["chess", "enduro", "Cifar", ""])
def test_a_word_that_names_nothing_of_the_scale_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"^reproduce {word}: .*short.* cifar, cvae, .* mnist, cifar10, breakout, "):
        planned("short", ["cifar", word])
    assert planned("paper", ["enduro"])


def test_a_custom_parameterization_has_the_runs_of_wn_without_claims_or_variants() -> None:
    runs, wn = (planned("quick", ["cifar"], [param]) for param in ("Mine-01234567", "wn"))
    plain = {run.settings for run in wn if not {"C15", "C19"} & {*run.serves} or len(run.serves) > 2}
    assert {run.settings for run in runs} == {dataclasses.replace(one, param="Mine-01234567") for one in plain}
    assert {name for run in runs for name in run.serves} == {"table 2", "figure 1"}
    with pytest.raises(UserError, match="--param Mine-01234567: nothing of C15"):
        planned("quick", ["C15"], ["Mine-01234567"])


def test_changes_are_settings_of_all_runs() -> None:
    assert {run.settings.precision for run in planned("quick", precision="bf16")} == {"bf16"}
    with pytest.raises(UserError, match="--precision fp8: unknown"):
        planned("quick", ["draw"], precision="fp8")

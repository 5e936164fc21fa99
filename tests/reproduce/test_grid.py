"""The grid of the paper's runs: what it holds, what it is for, and which words select its runs."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.report.claims import CLAIMS
from wnrepro.report.stats import LOOKS
from wnrepro.reproduce.grid import left_out, planned, seeds
from wnrepro.settings import GAMES, PARAMS, SCALE_NAMES, scale_settings, settings_from

# Of each claim at scale paper, as many as docs/ says.
SEEDS = dict.fromkeys(["C4a", "C4b", "C5a", "C6", "C8a", "C8b", "C8c", "C13", "C14", "C15", "C16b", "C18a", "C18b"], 10)
SEEDS |= dict.fromkeys(("C9b", "C10a", "C10b", "C19"), 5) | dict.fromkeys(("C5b", "C9a", "C11", "C12", "C16a"), 3)
SEEDS |= {"C3": 1}
BOTH, RATES = ("normal", "wn"), paper.LEARNING_RATES


@pytest.mark.parametrize("scale", SCALE_NAMES)
def test_grid_has_every_run_once_beside_what_it_is_compared_with(tmp_path: Path, scale: str) -> None:
    runs = planned(scale)
    every = [run.settings for run in runs]
    assert len(runs) == {"paper": 271, "short": 41, "quick": 32}[scale]  # as docs/grid.md says
    assert len({*every}) == len({run.directory(tmp_path).folder for run in runs}) == len(runs)
    for run in runs:
        assert settings_from(run.experiment, run.directory(tmp_path).config["settings"]) == run.settings
        if scale == "quick":
            run.settings.check(None, "cpu")
        for name in {"g_exp", "v_norm_max", "g_start"} & {*vars(run.settings)}:
            assert dataclasses.replace(run.settings, **{name: None}) in every
    for param, part in itertools.product(PARAMS, paper.FIGURE2):  # a start of all four, as C3 needs
        assert {scale_settings("cifar", scale, param), scale_settings("cvae", scale, param, dataset=part)} <= {*every}
    for param, lr in itertools.product(BOTH, RATES):  # C6, C13, C14
        assert scale_settings("cifar", scale, param, lr=lr) in every
    served = set(itertools.chain.from_iterable(run.serves for run in runs))
    claims, looks = {claim.id for claim in CLAIMS}, seeds(scale)
    others = {"normal by the paper's text", "bn with a large minibatch"}
    assert all(re.fullmatch(r"table [23]|figure [1-4]", name) for name in served - claims - others)
    assert looks.keys() == served & claims
    if scale == "paper":
        assert looks == SEEDS and {*looks.values()} - {looks["C3"]} <= {*LOOKS}
        # The rest are identities and step times, of which every run, or `bench`, tells.
        assert claims - served == {"C1", "C2", "C7a", "C7b", "C17"}
        for run in (one for one in runs if one.serves != ("C14",)):  # of wn+mobn one seed
            needed = range(1, 1 + max((SEEDS[name] for name in run.serves if name in claims), default=1))
            assert all(dataclasses.replace(run.settings, seed=seed) in every for seed in needed)


OTHER_VAE = ["some of cvae mnist", "some of cvae cifar10"]
SOME_OF_DQN = [f"some of dqn {game}" for game in GAMES]


@pytest.mark.parametrize(
    ("words", "names", "out"),
    [
        ("", "cifar cvae draw dqn", []),
        ("cifar cvae mnist", "cifar mnist", ["cvae cifar10", "draw", "dqn"]),
        ("cifar10 cvae mnist", "mnist cifar10", ["cifar", "draw", "dqn"]),
        ("breakout draw cvae", "cvae draw breakout", ["cifar", *(f"dqn {game}" for game in GAMES[1:])]),
        ("C10", "C10a C10b", ["cifar", "cvae", "some of draw", "dqn"]),
        ("C10b", "C10b", ["cifar", "cvae", "some of draw", "dqn"]),
        ("figure1 C16a", "figure1 C16a", ["some of cifar", *OTHER_VAE, "draw", "dqn"]),
        ("mnist C12 table2", "C12 table2 mnist", ["some of cifar", "cvae cifar10", "draw", *SOME_OF_DQN]),
    ],
)
def test_words_are_experiments_parts_of_them_claims_tables_figures(words: str, names: str, out: list[str]) -> None:
    runs = planned("paper", words.split())
    about = {
        run: {run.experiment, run.part, *(name.replace(" ", "") for name in run.serves)} for run in planned("paper")
    }
    assert runs == [run for run, said in about.items() if said & {*names.split()}]
    assert left_out("paper", runs) == out


@pytest.mark.parametrize("word", ["chess", "enduro", "Cifar", ""])
def test_a_word_that_names_nothing_of_the_scale_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"^reproduce {word}: .*short.* cifar, cvae, .* mnist, cifar10, breakout, "):
        planned("short", ["cifar", word])


def test_a_custom_parameterization_has_the_runs_of_wn_without_claims_or_variants() -> None:
    runs, wn = (planned("quick", ["cifar"], [param]) for param in ("Mine-01234567", "wn"))
    plain = {run.settings for run in wn if not {"C15", "C19"} & {*run.serves} or len(run.serves) > 2}
    assert {run.settings for run in runs} == {dataclasses.replace(one, param="Mine-01234567") for one in plain}
    assert {name for run in runs for name in run.serves} == {"table 2", "figure 1"}
    with pytest.raises(UserError, match=r"--param Mine-01234567: .*C15"):
        planned("quick", ["C15"], ["Mine-01234567"])


def test_changes_are_settings_of_all_runs() -> None:
    assert {run.settings.precision for run in planned("quick", precision="bf16")} == {"bf16"}
    with pytest.raises(UserError, match="--precision fp8: unknown"):
        planned("quick", ["draw"], precision="fp8")

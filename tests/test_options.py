"""The options of an experiment's command, made from its settings."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from wnrepro.errors import UserError
from wnrepro.options import MOST_SEEDS, default_text, given_settings, seeds_of
from wnrepro.settings import LARGEST_SEED, PARAMS, SETTINGS, CifarSettings, register

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("experiment", "setting", "named", "expected"),
    [
        ("cifar", "param", (), None),
        ("cifar", "precision", (), "fp32, on a GPU bf16"),
        ("cvae", "init", (), "folded"),
        ("cvae", "maps", (), "mnist 16 32 32, cifar10 160"),
        ("cvae", "maps", ("quick",), "mnist 4 8 8, cifar10 16"),
        ("cvae", "maps", ("quick", ["cifar10"]), "16"),
        ("cvae", "hidden", ("short",), "450"),
        ("cvae", "binarization", ("quick",), None),
        ("dqn", "lr", (), "normal 0.0001, bn 0.0003, wn 0.0003, wn+mobn 0.0003"),
        ("dqn", "lr", ("short", [], ["normal"]), "0.0001"),
        ("draw", "lr", ("quick",), "0.001"),
    ],
)
def test_help_shows_the_default_of_a_scale(experiment: str, setting: str, named: Any, expected: str | None) -> None:
    cls = SETTINGS[experiment]
    (field,) = (field for field in dataclasses.fields(cls) if field.name == setting)
    assert default_text(cls, field, *named) == (expected or "")


def test_several_values_are_several_runs() -> None:
    options: dict[str, Any] = {"param": ["wn", "bn"], "lr": [0.1, 0.1, 0.2], "noise_epochs": [1, 2]}
    planned = list(given_settings(CifarSettings, "quick", options))
    assert [(s.param, s.lr) for s in planned] == [(p, lr) for p in ("wn", "bn") for lr in (0.1, 0.2)]
    assert {s.noise_epochs for s in planned} == {(1, 2)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1-8", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("1,3,5-8", [1, 3, 5, 6, 7, 8]),
        ("7, 2-4,3,7", [2, 3, 4, 7]),
        ("0", [0]),
        (f"{LARGEST_SEED - 1}-{LARGEST_SEED}", [LARGEST_SEED - 1, LARGEST_SEED]),
        (f"1-{MOST_SEEDS},5", [*range(1, MOST_SEEDS + 1)]),
    ],
)
def test_seeds_are_ranges_and_lists(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


WRONG = ("", "8-1", "a-b", "1,,2", "1-", "-1", "1-2-3", "1.5", "1;2", "٣", f"0-{LARGEST_SEED + 1}", "9" * 5000)


@pytest.mark.parametrize("text", [*WRONG, f"1-{MOST_SEEDS + 1}", f"1-{MOST_SEEDS},{MOST_SEEDS + 1}"])
def test_other_texts_are_no_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        seeds_of(text)


def test_a_registered_experiment_has_a_command(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from wnrepro import cli

    planned: list[Any] = []
    monkeypatch.setattr(cli, "run_all", lambda _, settings, __: planned.append(settings) or 0)  # type: ignore[func-returns-value]
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))
    monkeypatch.setitem(SETTINGS, "own", CifarSettings)  # removed after the test

    @dataclass(frozen=True)
    class OwnSettings(CifarSettings):
        """An experiment of its user's."""

        name = "own"

    register(OwnSettings)
    assert run("own", "--param", "all", "--scale", "quick") == (0, "", "")
    assert [type(settings) for settings in planned[0]] == len(PARAMS) * [OwnSettings]

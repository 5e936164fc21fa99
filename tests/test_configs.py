"""Runs as files: --print-config and --config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import make_run

from wnrepro import cli
from wnrepro.settings import GAMES, PARAMS, SCALE_NAMES, SETTINGS

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The (settings, scale) of each command that would train."""
    found: list[Any] = []
    monkeypatch.setattr(cli, "run_all", lambda _, settings, options: found.append((settings, options.scale)) or 0)  # type: ignore[func-returns-value]
    monkeypatch.setattr(cli, "may_be_gpu", lambda device: device == "cuda")
    monkeypatch.setattr(cli, "is_gpu", lambda device, _: device == "cuda")
    monkeypatch.chdir(tmp_path)
    return found


def write(content: Any) -> Path:
    path = Path("config.json")
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("scale", SCALE_NAMES)
@pytest.mark.parametrize("experiment", SETTINGS)
def test_a_printed_config_is_read_back(run: Command, planned: list[Any], experiment: str, scale: str) -> None:
    words = (experiment, "--param", "wn", "--param", "bn", "--lr", 0.01, "--seed", 3, "--seed", 4, "--scale", scale)
    code, printed, error = run(*words, "--print-config")
    assert code == 0 and not planned and "{" not in error
    assert [config["settings"]["seed"] for config in json.loads(printed)] == [3, 4, 3, 4]
    Path("configs.json").write_text(printed)
    assert run(*words)[0] == run(experiment, "--config", "configs.json")[0] == 0
    assert planned[0] == planned[1] and planned[0][1] == scale and len(planned[0][0]) == 4


def test_it_is_a_runs_config(run: Command, planned: list[Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "results", scale="quick")
    for file in (folder, folder / "config.json"):
        code, printed, _ = run("cifar", "--config", file, "--print-config")
        assert code == 0 and json.loads(printed) == json.loads((folder / "config.json").read_text())


def test_options_override_a_config(run: Command, planned: list[Any]) -> None:
    _, printed, _ = run("cifar", "--param", "wn", "--g-exp", 3, "--epochs", 150, "--print-config")
    Path("wn.json").write_text(printed)
    run("cifar", "--config", "wn.json", "--seed", 5, "--seed", 6, "--lr", 0.1)
    assert [(s.seed, s.lr, s.g_exp, s.epochs) for s in planned[0][0]] == [(5, 0.1, 3, 150), (6, 0.1, 3, 150)]
    run("cifar", "--config", "wn.json", "--scale", "quick")  # what the file does not change is the new scale's
    (settings,), scale = planned[1]
    assert (settings.g_exp, settings.epochs, settings.width, settings.dataset) == (3, 150, 16, "bundled")
    assert scale == "quick"
    _, printed, _ = run("cifar", "--param", "wn", "--width", 8, "--print-config")
    Path("wn.json").write_text(printed)
    run("cifar", "--config", "wn.json", "--param", "normal")
    (settings,), _ = planned[2]
    assert (settings.param, settings.lr, settings.width) == ("normal", 0.0003, 8)  # the learning rate of normal


def test_another_data_set_or_game_has_its_own_defaults(run: Command, planned: list[Any]) -> None:
    _, printed, _ = run("cvae", "--param", "wn", "--hidden", 50, "--latents", 8, "--print-config")
    Path("mnist.json").write_text(printed)
    run("cvae", "--config", "mnist.json", "--dataset", "cifar10")
    (settings,), _ = planned[0]
    assert (settings.dataset, settings.hidden, settings.latents, settings.batch_size) == ("cifar10", None, 8, 16)
    _, printed, _ = run("dqn", "--param", "wn", "--game", "all", "--print-config")
    Path("games.json").write_text(printed)
    run("dqn", "--config", "games.json")
    assert [s.game for s in planned[1][0]] == [*GAMES]


def test_a_config_keeps_its_precision_on_a_gpu(run: Command, planned: list[Any]) -> None:
    _, printed, _ = run("cifar", "--param", "wn", "--print-config")
    Path("cpu.json").write_text(printed)
    run("cifar", "--param", "wn", "--device", "cuda")
    run("cifar", "--config", "cpu.json", "--device", "cuda")
    run("cifar", "--config", "cpu.json", "--device", "cuda", "--scale", "short")
    assert [one[0][0].precision for one in planned] == ["bf16", "fp32", "fp32"]


def test_a_config_may_leave_settings_out(run: Command, planned: list[Any]) -> None:
    write({"experiment": "dqn", "scale": "short", "settings": {"lr": 0.01, "maps": [4, 8, 8]}})
    run("dqn", "--config", "config.json", "--param", "all")
    settings, scale = planned[0]
    assert [(s.param, s.lr, s.maps, s.epochs) for s in settings] == [(param, 0.01, (4, 8, 8), 8) for param in PARAMS]
    assert scale == "short"


GOOD: dict[str, Any] = {"experiment": "cifar", "scale": "quick", "settings": {"param": "wn"}}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("\xff", "UTF-8"),
        ("[]", "settings"),
        ("3", "settings"),
        ({"settings": 3}, "settings"),
        ([GOOD, {}], "settings"),
        (GOOD | {"experiment": "draw"}, "wnrepro draw"),
        (GOOD | {"scale": "huge"}, "huge"),
        ([GOOD, GOOD | {"scale": "short"}], "short"),
        (GOOD | {"settings": {"param": "wn", "dropout": 1}}, "dropout"),
        (GOOD | {"settings": {"param": "wn", "lr": "fast"}}, "--lr fast"),
        (GOOD | {"settings": {"param": "wn", "seed": 2**32}}, "--seed 4294967296"),
        (GOOD | {"settings": {"param": ["wn"]}}, "--param"),
        (GOOD | {"settings": {"param": {}}}, "dict"),
        (GOOD | {"settings": {"param": {}}, "parameterization": {"class": "Mine"}}, "dict"),
        (GOOD | {"settings": {"param": "Mine-01234567"}, "parameterization": {"class": "Mine"}}, "FILE.py:Mine"),
        (None, "no such file"),
    ],
)
def test_another_file_is_refused(run: Command, planned: list[Any], content: Any, named: str) -> None:
    if isinstance(content, str):
        Path("config.json").write_bytes(content.encode("latin1"))
    elif content:
        write(content)
    code, printed, error = run("cifar", "--config", "config.json")
    assert (code, printed, planned, error.count("\n")) == (2, "", [], 1)
    assert "config.json" in error and named in error

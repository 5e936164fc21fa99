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
    run("cifar", "--config", "wn.json", "--seeds", "6,5", "--lr", 0.1)
    assert planned.pop() == planned[0]
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


FLAGS = {"avx512_bf16": True, "amx_bf16 avx2": True, "avx2 avx512f amx_tile": False, "": False}
LEARNT = {"cifar": [True], "cvae": [True, False], "draw": [True], "dqn": [True, False, False, False]}


def put_flags(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Fake the processor of this machine; "": an unknown one."""
    Path("cpuinfo").unlink(missing_ok=True)
    if flags:
        Path("cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\nbugs\t\t: bf16\n\n" * 2)
    monkeypatch.setattr("wnrepro.machine.CPUINFO", Path("cpuinfo"))


@pytest.mark.parametrize(("flags", "has"), FLAGS.items())
@pytest.mark.parametrize("experiment", SETTINGS)
def test_auto_is_bf16_where_the_processor_has_it_and_it_learns(
    run: Command, planned: list[Any], monkeypatch: pytest.MonkeyPatch, experiment: str, flags: str, has: bool
) -> None:
    put_flags(monkeypatch, flags)
    part = SETTINGS[experiment].part
    words = (experiment, "--param", "wn", *(("--" + part, "all") if part else ()), "--precision", "auto")
    assert run(*words, "--device", "cpu")[0] == run(*words, "--device", "cuda")[0] == 0
    (on_cpu, _), (on_gpu, _) = planned
    assert [s.precision for s in on_cpu] == ["bf16" if has and learnt else "fp32" for learnt in LEARNT[experiment]]
    assert {s.precision for s in on_gpu} == {SETTINGS[experiment].gpu_precision}
    code, printed, said = run(*words, "--device", "cpu", "--print-config")
    configs = json.loads(printed)
    found = [one["settings"]["precision"] for one in (configs if isinstance(configs, list) else [configs])]
    assert code == 0 and found == [s.precision for s in on_cpu]
    assert said.count("auto: ") == 1 and all(f"{precision} for {experiment}" in said for precision in set(found))
    assert run(*words, "--device", "cpu", "--quiet") == (0, "", "")


def test_auto_is_an_option_and_no_setting(run: Command, planned: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    put_flags(monkeypatch, "amx_bf16")
    words = ("draw", "--param", "wn", "--device", "cpu")
    code, _, error = run(*words, "--precision", "auto", "--precision", "fp32")
    assert code == 2 and "--precision auto" in error and not planned
    _, printed, _ = run(*words, "--precision", "fp32", "--precision", "bf16", "--print-config")
    Path("two.json").write_text(printed)
    run("draw", "--config", "two.json", "--precision", "auto", "--device", "cpu")
    assert [s.precision for s in planned[0][0]] == ["bf16"]  # both of the file's
    write({"experiment": "draw", "scale": "paper", "settings": {"param": "wn", "precision": "auto"}})
    code, _, error = run("draw", "--config", "config.json", "--device", "cpu")
    assert code == 2 and "--precision auto" in error and len(planned) == 1


def test_auto_for_a_grid(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("reproduce", "--scale", "short", "--plan", "--device", "cpu", "--json", "--precision")
    plans = {}
    for flags in ("avx512_bf16", "avx2"):
        put_flags(monkeypatch, flags)
        code, printed, _ = run(*words, "auto")
        assert code == 0
        plans[flags] = [one["run"] for one in json.loads(printed)["grid"]]
    assert plans["avx2"] == [one["run"] for one in json.loads(run(*words, "fp32")[1])["grid"]]
    in_bf16 = {name for name in plans["avx512_bf16"] if "precision-bf16" in name}
    learnt = tuple(f"results/short/{model}" for model in ("cifar/", "cvae/mnist", "draw/", "dqn/breakout"))
    assert in_bf16 == {name for name in plans["avx512_bf16"] if name.startswith(learnt)}
    assert in_bf16 and len(in_bf16) < len(plans["avx2"]) == len(plans["avx512_bf16"])


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

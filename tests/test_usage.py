"""The command line's help, examples, completion, version and refusals."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from factories import parse_command

from wnrepro import cli
from wnrepro.settings import SETTINGS
from wnrepro.usage import examples

Command = Callable[..., tuple[int, str, str]]


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with its words."""
    group = group or typer.main.get_command(cli.app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


each_command = pytest.mark.parametrize(
    ("path", "command"), [*commands()], ids=lambda one: " ".join(one) if isinstance(one, tuple) else ""
)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@each_command
def test_help_shows_every_option_whole_at_80_columns(run: Command, path: tuple[str, ...], command: Any) -> None:
    code, printed, error = run(*path, "--help-all")
    assert (code, error) == (0, "") and max(map(len, printed.splitlines())) <= 80
    words, shown = printed.split(), one_line(printed)
    for param in command.params:
        assert {*param.opts, *param.secondary_opts} & {*words} or param.param_type_name == "argument"
        assert (
            param.name in SETTINGS.get(path[-1] if path else "", cli.RunOptions).__dataclass_fields__
            or one_line(param.help) in shown
        )
    for line in examples(path[-1] if path else "wnrepro"):
        assert f"  {line}\n" in printed


def test_rare_options_are_shown_on_request(run: Command) -> None:
    few, every = (run("dqn", word)[1] for word in ("--help", "--help-all"))
    assert "--epochs" in few and "--epsilon-last" not in few and "--epsilon-last" in every
    panels = [line[:-1] for line in few.splitlines() if line.endswith(":") and line[0] != " "]
    assert panels == ["Common", "Model", "Data", "Start", "Output", "Examples"]
    assert few.index("--scale") < few.index("--game")


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ("cifar --help", "200"),
        ("cifar --scale quick -h", "10"),
        ("cifar --help --scale=short --lr nonsense", "6"),
        ("cvae --scale quick --help", "mnist 10, cifar10 5"),
        ("cvae --help --scale quick --dataset cifar10", "5"),
    ],
)
def test_help_shows_the_defaults_of_the_named_scale(run: Command, words: str, epochs: str) -> None:
    code, printed, _ = run(*words.split())
    text = one_line(printed).split("--epochs N ")[1]
    assert code == 0 and text.split("default: ")[1].split(")")[0] == epochs


@pytest.mark.parametrize(
    ("name", "value", "plain"), [("NO_COLOR", "1", True), ("TERM", "dumb", True), ("TERM", "xterm", False)]
)
def test_a_terminal_without_colours_gets_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, plain: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    command = typer.main.get_command(cli.app)
    with command.make_context("wnrepro", [], resilient_parsing=True) as context:
        assert ("\x1b" not in command.get_help(context)) == plain


@each_command
def test_the_examples_are_commands(path: tuple[str, ...], command: Any) -> None:
    lines = examples(path[-1] if path else "wnrepro")
    assert len({*lines}) == 3
    for line in lines:
        names, given = parse_command(line)
        assert names[: len(path)] == path
        assert names[-1] not in SETTINGS or given["param"]


def test_the_version_needs_no_torch() -> None:
    code = (
        "import sys\nfrom wnrepro.cli import main\nsys.argv[1:] = ['--version']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch = importlib.metadata.version("torch")
    assert done.stdout.startswith("wnrepro ") and f"torch {torch}" in done.stdout


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    shim = tmp_path / "wnrepro"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m wnrepro "$@"\n')
    shim.chmod(0o755)
    cases = {
        "wnrepro rep": {"report", "reproduce"},
        "wnrepro cifar --param w": {"wn", "wn+mobn"},
        "wnrepro dqn --game s": {"seaquest", "space_invaders"},
        "wnrepro cvae --scale ": {"paper", "short", "quick"},
        "wnrepro reproduce figure": {"figure1", "figure2", "figure3", "figure4"},
    }
    script = 'eval "$(_WNREPRO_COMPLETE=source_bash wnrepro)"\n'
    for line in cases:
        words = line.split(" ")
        script += f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        script += '_wnrepro_completion wnrepro; echo "${COMPREPLY[@]}"\n'
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert [{*line.split()} for line in done.stdout.splitlines()] == list(cases.values()), done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("cifar", "wn+mobn"),
        ("cifar --param wn --lr 0.1 --lr x", "--lr 0.1 x"),
        ("cifar --param wn --epochs 1.5", "--epochs 1.5"),
        ("cifar --param wn --scale nope", "--scale nope"),
        ("cifar --param wn --noise-epoch 3", "--noise-epochs"),
        ("cifar --lr", "--lr"),
        ("cifar --quiet=3", "--quiet"),
        ("cifar wn", "wn"),
        ("sample", "RUN"),
        ("sample run --count 0", "--count 0"),
        ("reproduce --jobs 0", "at least 1"),
        ("cifar --param wn --epochs 0", "at least 1"),
        ("cvae --param wn --dataset imagenet", "cifar10, all"),
        ("cifar --param wn --scale quick --train-examples 200 --device cpu", "--init-examples to 200"),
        ("sample run --seed 1 --seed 2", "--seed"),  # would show those of the second alone
        ("cifar --param wn --scale quick --scale short", "--scale"),
        ("reprodce", "'reproduce'"),
        ("data nope", "nope"),
        ("report --results=~no-such-user/results", "~no-such-user"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(run: Command, words: str, named: str) -> None:
    code, printed, error = run(*words.split())
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert error.startswith("wnrepro: ") and named in error


def test_every_path_option_knows_the_home_folder(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(cli, "run_all", lambda _, __, options: given.append(options) or 0)  # type: ignore[func-returns-value]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run("draw", "--param", "wn", "--scale", "quick", "--results=~/res", "--data-dir=~/dat")[0] == 0
    assert (given[0].results, given[0].data_dir) == (tmp_path / "res", tmp_path / "dat")
    assert str(tmp_path / "my.py") in run("draw", "--param=~/my.py:Mine", "--scale", "quick")[2]
    for words in (("sample", "~/run"), ("report", "--results=~/none"), ("doctor", "--results=~/none", "--json")):
        error = run(*words)[2]
        assert "~" not in error and not (tmp_path / "~").exists()

"""What is said and asked before weeks of computing begin."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from factories import put_run

from wnrepro import preflight, train
from wnrepro.options import RunOptions
from wnrepro.preflight import LONG, announce
from wnrepro.reproduce.grid import Planned
from wnrepro.settings import DrawSettings, scale_settings

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("seconds", "terminal", "yes", "answer"),
    [
        (LONG - 1.0, True, False, None),  # None: it does not ask
        (LONG + 1.0, True, False, True),
        (LONG + 1.0, True, False, False),
        (None, True, False, False),
        (LONG + 1.0, False, False, None),
        (LONG + 1.0, True, True, None),
    ],
)
def test_days_begin_after_a_question_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float | None,
    terminal: bool,
    yes: bool,
    answer: bool | None,
) -> None:
    asked: list[str] = []

    def confirm(question: str, abort: bool) -> None:
        asked.append(question)
        if not answer:
            raise typer.Abort

    monkeypatch.setattr(preflight, "on_terminal", lambda: terminal)
    monkeypatch.setattr(typer, "confirm", confirm)
    if answer is False:
        with pytest.raises(typer.Exit) as stop:
            announce(1, seconds, yes)
        assert stop.value.exit_code == 1
    else:
        announce(1, seconds, yes)
    assert len(asked) == (answer is not None)
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and "1 run at scale paper" in error


def test_the_time_is_that_of_the_epochs_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, float, bool]] = []
    monkeypatch.setattr(train, "announce", lambda *given: said.append(given))

    def announce_time(seeds: int, scale: str = "paper", device: str = "cpu", **options: Any) -> None:
        planned = [scale_settings("draw", scale, "wn", seed=seed) for seed in range(1, seeds + 1)]
        train.announce_time(DrawSettings, planned, RunOptions(results=tmp_path, scale=scale, **options), device)  # type: ignore[arg-type]

    announce_time(1)
    announce_time(2, yes=True)
    ((one, whole, _), (two, twice, yes)) = said
    assert (one, two, yes) == (1, 2, True) and twice == pytest.approx(2 * whole) and whole > 3600
    settings = scale_settings("draw", "paper", "wn")
    put_run(tmp_path, Planned("draw", "paper", settings), "failed", epoch=75, device_name="another", seconds=1.0)
    announce_time(1)
    announce_time(1, resume=False)
    assert said[2][1] == pytest.approx(whole * 25 / 100) and said[3][1] == pytest.approx(whole)
    put_run(tmp_path, Planned("draw", "paper", settings), "done", device_name="another", seconds=1.0)
    announce_time(1)
    for more in ({"scale": "quick"}, {"device": "cuda"}, {"quiet": True}, {"as_json": True}):
        announce_time(3, **more)
    assert len(said) == 4


def test_reproduce_asks_too(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wnrepro.reproduce import command

    monkeypatch.setattr(command, "check_all", lambda *_: None)
    monkeypatch.setattr(preflight, "on_terminal", lambda: True)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: (_ for _ in ()).throw(typer.Abort))
    monkeypatch.setattr(sys, "stdin", None)
    words = ("reproduce", "draw", "--device", "cpu", "--results", tmp_path / "new")
    code, _, error = run(*words)
    assert code == 1 and "at scale paper" in error and not (tmp_path / "new").exists()
    assert run(*words, "--plan")[::2] == (0, "")
    told: list[tuple[int, float | None, bool]] = []
    monkeypatch.setattr(command, "announce", lambda *given: told.append(given))
    monkeypatch.setattr(command, "drive", lambda *_: None)
    for budget in ("1h", "48h"):  # the time is that of the whole grid, and an hour needs no question
        assert run(*words, "--budget", budget)[0] == 0
    ((_, whole, yes), (_, again, no)) = told
    assert whole == again and whole is not None and whole > 48 * 3600 and (yes, no) == (True, False)

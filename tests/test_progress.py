"""What a person sees: rows that stay, a bar on a terminal that can, nothing when quiet; and the time left."""

import io
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from wnrepro import progress
from wnrepro.events import Epoch, News, Note, Progress, Start
from wnrepro.progress import Show, TimeLeft, brief, duration, figure, open_console

ROW = {"epoch": 1, "seconds": 2.5, "train_error": 0.25, "test_error": 0.5, "train_loss": 1.5, "test_loss": 2.0}
FACTS = {"data": "some\nimages", "parameters": 12345}
EVENTS: list[News] = [
    *(Start(0, {"device_name": "a processor", "facts": FACTS}), Note("begun"), Progress(1, 50, 100)),
    *(Progress(1, 100, 100), Epoch(1, ROW), Note("halfway"), Progress(2, 50, 100)),
]
ABOUT = ("cifar wn, seed 1, scale quick", "results/quick/cifar/wn_lr0.003/seed-1", 2)
HEADER = f"{ABOUT[0]}\n  folder  {ABOUT[1]}\n"
HEADER += "  device  a processor\n  data    some images\n  model   12 345 parameters\n"
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool) -> None:
    clock, text = SimpleNamespace(now=0.0), io.StringIO()
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    with Show(Console(file=text, force_terminal=terminal, width=80), *ABOUT, quiet, unit="steps") as show:
        for event in EVENTS:
            clock.now += 10
            show(event)
    written = text.getvalue()
    if quiet:
        assert written == ""
    elif terminal:
        assert all(part in written for part in ("epoch 2/2", "steps/s", "10 s left", "50.00%", "begun", "halfway"))
        assert max(map(len, re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "\n", written).splitlines())) <= 80
    else:  # the time left is that of the ticks' 20 s and the 10 s after them
        columns = "           train error  test error  train loss  test loss     time     left\n"
        row = "epoch 1/2       25.00%      50.00%         1.5          2    2.5 s     30 s\n"
        assert written == f"{HEADER}  epochs  2\nbegun\n{columns}{row}halfway\n"


@pytest.mark.parametrize(("width", "names"), [(80, 4), (58, 3), (45, 2), (20, 1)])
def test_a_row_fits_a_terminal(width: int, names: int) -> None:
    text = io.StringIO()
    with Show(Console(file=text, force_terminal=True, width=width), *ABOUT, quiet=False) as show:
        show(Epoch(1, ROW))
    (columns,) = (line for line in text.getvalue().splitlines() if "train error" in line)
    found = re.findall(r"\w+ error|\w+ loss|time", columns)
    assert found == [*["train error", "test error", "train loss", "test loss"][:names], "time"]


def test_a_row_fits_a_terminal_that_cannot_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(text, "isatty", lambda: True)
    with Show(Console(file=text, force_terminal=False, width=60, height=24), *ABOUT[:2], 200, quiet=False) as show:
        show(Epoch(1, ROW))
    assert max(map(len, text.getvalue().splitlines())) <= 60 and "test error" in text.getvalue()


def test_a_path_is_one_line() -> None:
    text = io.StringIO()
    with Show(Console(file=text), "cifar wn", "two\nlines/\x1b[31m/seed-1", 2, quiet=False):
        pass
    assert text.getvalue() == "cifar wn\n  folder  two lines/\\x1b[31m/seed-1\n"


def test_a_resumed_run_says_where_and_its_bar_starts_there() -> None:
    text = io.StringIO()
    with Show(Console(file=text, force_terminal=True), *ABOUT[:2], 10, quiet=False) as show:
        show(Start(5, {"device_name": "a processor", "facts": {}}))
        show(Progress(6, 50, 100))
        (task,) = show.bar.tasks
        assert (task.completed, task.total) == (550, 1000)
        assert show.seconds_left() is None  # no speed yet: what others did is not this process's
    assert "10, resumes in epoch 6" in text.getvalue()


@pytest.mark.parametrize(
    ("terminal", "term", "live"), [(True, "xterm", True), (True, "dumb", False), (True, "", False), (False, "x", False)]
)
def test_only_a_terminal_that_can_is_redrawn(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, live: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal, encoding="utf-8"))
    assert open_console().is_terminal == live


def test_figures_and_times_in_words() -> None:
    assert [figure(*one) for one in (("test_error", 0.5), ("test_bound_nats", -98.7654), ("loss", NAN))] == [
        *("50.00%", "−98.765", "nan")
    ]
    assert brief({"train_bound_nats": -98.7654, "test_bound_nats": -INF}) == "test −inf train −98.77"
    assert brief({"test_bound_nats": -18714.3, "train_error": 0.123}) == "test −18714 train 12.3%"
    seconds = [None, 0.4, 89, 95, 500, 600, 5300, 5500, 86400 * 2.9, 86400 * 4]
    said = ["–", "0 s", "89 s", "1.6 min", "8.3 min", "10 min", "88 min", "1.5 h", "69.6 h", "4 days"]
    assert [duration(one) for one in seconds] == said


def steady(epoch: int, part: int) -> float:
    """Seconds of a hundredth of an epoch."""
    return 0.5


@pytest.mark.parametrize(
    ("epochs", "reached", "warm_up", "training", "every"),
    [
        (5, 0, 8.0, steady, 5),  # a tenth of it is in the first epoch
        (100, 40, 60.0, steady, 5),  # it resumes in the middle
        (40, 0, 30.0, steady, None),
        (20, 0, 30.0, lambda epoch, _: 2.0 if epoch == 2 else 0.5, 5),  # something else had the machine
        (8, 0, 8.0, lambda epoch, part: 0.05 if epoch == 1 and part <= 30 else 0.5, 5),  # plays, and does not learn yet
        (100, 0, 30.0, lambda epoch, _: 0.5 + 0.002 * epoch, 5),
    ],
)
def test_from_a_tenth_of_a_run_on_its_time_left_is_within_a_fifth(
    epochs: int, reached: int, warm_up: float, training: Callable[[int, int], float], every: int | None
) -> None:
    """The events of a run of a warm-up and epochs: training, with a regular progress event, and a test."""
    left, now, said = TimeLeft(epochs, reached, 0.0), warm_up, []
    for epoch in range(reached + 1, epochs + 1):
        for part in range(1, 101):
            now += training(epoch, part)
            if every and part % every == 0:
                for _ in range(2):  # the same news again is none
                    left.tick(epoch - 1 + part / 100, now)
            said.append((now, left.seconds(now)))
        now += 5
        said.append((now, left.seconds(now)))
        left.epoch(epoch, now)
    assert left.seconds(now) == 0
    for clock, seconds in said:
        if now / 10 <= clock <= 0.95 * now:
            assert seconds == pytest.approx(now - clock, rel=0.2)
        elif clock < now / 10 and seconds is not None:  # nothing wild before
            assert seconds == pytest.approx(now - clock, rel=0.5)


def test_a_change_of_pace_is_noticed_within_three_epochs() -> None:
    left, now = TimeLeft(100, 0, 0.0), 0.0
    for epoch in range(1, 54):
        now += 10 if epoch <= 50 else 20
        left.epoch(epoch, now)
        assert epoch == 1 or left.seconds(now) == (100 - epoch) * (10 if epoch <= 52 else 20)

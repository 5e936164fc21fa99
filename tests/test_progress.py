"""What a person sees: a bar on a terminal, a line an epoch elsewhere, nothing when quiet; and the time left."""

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from wnrepro import progress
from wnrepro.events import Epoch, Note, Progress
from wnrepro.progress import NAME_WIDTH, Show, TimeLeft, describe, duration, short

ROW = {"epoch": 1, "seconds": 2.5, "train_error": 0.25, "test_error": 0.5, "train_loss": 1.5, "test_loss": 2.0}
EVENTS: list[Progress | Epoch | Note] = [
    *(Note("begun"), Progress(1, 50, 100), Progress(1, 100, 100)),
    *(Epoch(1, ROW), Note("halfway"), Progress(2, 50, 100)),
]
NAME = "quick/cifar/wn_lr0.003_width-16_batch_size-25"
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool) -> None:
    clock, text = SimpleNamespace(now=0.0), io.StringIO()
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    with Show(Console(file=text, force_terminal=terminal, width=150), NAME, 2, quiet, unit="steps") as show:
        for event in EVENTS:
            clock.now += 10
            show(event)
    shown = text.getvalue()
    assert len(short(NAME)) == NAME_WIDTH
    if quiet:
        assert shown == ""
    elif terminal:
        assert all(part in shown for part in (short(NAME), "epoch 2/2", "25.0%", "steps/s", "10 s left"))
        assert all(f"{NAME}  {note}" in shown for note in ("begun", "halfway"))
    else:  # the time left is that of the ticks' 20 s and the 10 s after them
        row = "train error 25.00%, test error 50.00%, train loss 1.5, test loss 2"
        assert shown == f"{NAME}  begun\n{NAME}  epoch 1/2  {row}  2.5 s, 30 s left\n{NAME}  halfway\n"


def test_the_bar_of_a_resumed_run_starts_where_it_resumes() -> None:
    with Show(Console(file=io.StringIO(), force_terminal=True), NAME, 10, quiet=False) as show:
        show(Progress(6, 50, 100))
        (task,) = show.bar.tasks
        assert (task.completed, task.total) == (550, 1000)
        assert show.seconds_left() is None  # no speed yet: what others did is not this process's


def test_epochs_and_times_in_words() -> None:
    rows: dict[str, dict[str, float]] = {
        "train bound nats -98.765": {"train_bound_nats": -98.7654, "test_bound_nats_raw": -97.3, "kl_nats": 24.1},
        "test bound nats -inf, test bits per dim nan": {"test_bound_nats": -INF, "test_bits_per_dim": NAN},
    }
    assert [describe(Epoch(3, row)) for row in rows.values()] == [*rows]
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

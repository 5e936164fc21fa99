"""What a person sees: a bar on a terminal, a line an epoch elsewhere, nothing when quiet."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from wnrepro import progress
from wnrepro.events import Epoch, Note, Progress
from wnrepro.progress import NAME_WIDTH, Show, brief, describe, short
from wnrepro.timeleft import TimeLeft, duration

ROW = {"epoch": 1, "seconds": 2.5, "train_error": 0.25, "test_error": 0.5, "train_loss": 1.5, "test_loss": 2.0}
EVENTS = [
    Note("begun"),
    Progress(1, 50, 100),
    Progress(1, 100, 100),
    Epoch(1, ROW),
    Note("halfway"),
    Progress(2, 50, 100),
]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock of what is shown: it stands still until clock.now is set."""
    made_up = SimpleNamespace(now=0.0, monotonic=lambda: made_up.now)
    monkeypatch.setattr(progress, "time", made_up)
    return made_up


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_shown(clock, terminal, quiet):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with Show(console, "quick/cifar/wn_lr0.003", 2, quiet) as show:
        for event in EVENTS:
            clock.now += 10
            show(event)
    shown = text.getvalue()
    if quiet:
        assert shown == ""
    elif terminal:
        assert "wn_lr0.003" in shown and "epoch 2/2" in shown and "train 25.0% test 50.0%" in shown
        assert "images/s" in shown and "10 s left" in shown
        assert all(f"quick/cifar/wn_lr0.003  {text}" in shown for text in ("begun", "halfway"))
    else:
        assert shown == (
            "quick/cifar/wn_lr0.003  begun\n"
            "quick/cifar/wn_lr0.003  epoch 1/2  train error 25.00%, test error 50.00%, "
            "train loss 1.5, test loss 2  2.5 s, 30 s left\n"  # as long as the ticks' 20 s and the 10 s after them
            "quick/cifar/wn_lr0.003  halfway\n"
        )


def test_the_bar_of_a_resumed_run_starts_where_it_goes_on():
    show = Show(Console(file=io.StringIO(), force_terminal=True), "quick/cifar/wn", 10, quiet=False)
    with show:
        show(Progress(6, 50, 100))
        (task,) = show.bar.tasks
        assert (task.completed, task.total) == (550, 1000)
        assert show.seconds_left() is None  # no speed yet: what others did is not this process's


# ------------------------------------------------------------------------------- the time left


HUNDREDTHS = range(1, 101)  # of an epoch's training


def as_ever(epoch: int, part: int) -> float:
    """Seconds of that hundredth."""
    return 0.5


@pytest.mark.parametrize(
    ("epochs", "reached", "warm_up", "training", "every"),
    [
        (10, 0, 30.0, as_ever, 5),
        (5, 0, 8.0, as_ever, 5),  # a tenth of it is in the first epoch
        (100, 0, 300.0, as_ever, 5),
        (100, 40, 60.0, as_ever, 5),  # it goes on in the middle
        (40, 0, 30.0, as_ever, 100),  # nothing is told of the first epoch but its end
        (40, 0, 30.0, as_ever, None),
        (20, 0, 30.0, lambda epoch, _: 2.0 if epoch == 2 else 0.5, 5),  # something else had the machine
        (8, 0, 8.0, lambda epoch, part: 0.05 if epoch == 1 and part <= 30 else 0.5, 5),  # plays, and does not learn yet
        (100, 0, 30.0, lambda epoch, _: 0.5 + 0.002 * epoch, 5),
    ],
)
def test_from_a_tenth_of_a_run_on_its_time_left_is_within_a_fifth(epochs, reached, warm_up, training, every):
    """Of a run made up of a warm-up and epochs: training, with a tick every so many hundredths, and a test."""
    left, now, said = TimeLeft(epochs, reached, 0.0), warm_up, []
    for epoch in range(reached + 1, epochs + 1):
        for part in HUNDREDTHS:
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


def test_a_change_of_pace_is_taken_up_within_three_epochs():
    left = TimeLeft(100, 0, 0.0)
    for epoch in range(1, 51):
        left.epoch(epoch, 10.0 * epoch)
    left.epoch(51, 520.0)
    assert left.seconds(520.0) == 49 * 10
    left.epoch(52, 540.0)
    left.epoch(53, 560.0)
    assert left.seconds(560.0) == 47 * 20 and left.seconds(565.0) == 47 * 20 - 5


def test_a_time_is_said_in_two_figures():
    seconds = [None, 0.4, 89, 95, 500, 600, 5300, 5500, 86400 * 2.9, 86400 * 4]
    said = ["–", "0 s", "89 s", "1.6 min", "8.3 min", "10 min", "88 min", "1.5 h", "69.6 h", "4 days"]
    assert [duration(one) for one in seconds] == said


MNIST = {"epoch": 3, "seconds": 12.5, "train_bound_nats": -98.7654, "test_bound_nats": -96.5432}
MNIST |= {"test_bound_nats_raw": -97.3, "kl_nats": 24.1, "reconstruction_nats": -72.4432}
CIFAR10 = MNIST | {"train_bound_nats": -10650.25, "test_bound_nats": -9860.0, "test_bits_per_dim": 4.6304}
NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "in_words", "in_brief"),
    [
        (MNIST, "train bound -98.77 nats, test bound -96.54 nats", "train -98.8 nats test -96.5 nats"),
        (
            CIFAR10,
            "train bound -10650.25 nats, test bound -9860.00 nats, 4.630 bits/dim",
            "train -10650.2 nats test -9860.0 nats",
        ),
        (
            CIFAR10 | {"train_bound_nats": NAN, "test_bound_nats": -float("inf"), "test_bits_per_dim": float("inf")},
            "train bound nan nats, test bound -inf nats, inf bits/dim",
            "train nan nats test -inf nats",
        ),
    ],
)
def test_an_epoch_of_an_auto_encoder(row, in_words, in_brief):
    """The bounds, of the averaged parameters; diverged ones too. Its parts and the raw bound are for metrics.csv."""
    epoch = Epoch(3, row)
    assert describe(epoch) == in_words and brief(epoch) == in_brief

    text = io.StringIO()
    with Show(Console(file=text, width=40), "quick/cvae/mnist_wn_lr0.002", 10, quiet=False) as show:
        show(epoch)
    assert text.getvalue() == f"quick/cvae/mnist_wn_lr0.002  epoch 3/10  {in_words}  12.5 s\n"


def test_the_bar_of_an_auto_encoder_ends_with_its_bounds():
    text = io.StringIO()
    name = "quick/cvae/cifar10_wn+mobn_lr0.002_epochs-3"
    with Show(Console(file=text, force_terminal=True, width=140), name, 10, quiet=False) as show:
        show(Progress(3, 160, 1600))
        show(Epoch(3, CIFAR10))
    shown = text.getvalue()
    assert "epoch 3/10" in shown and "train -10650.2 nats test -9860.0 nats" in shown and short(name) in shown
    assert short(name).startswith("cifar10_wn+mobn_lr") and len(short(name)) == NAME_WIDTH


GAMES = {"epoch": 2, "agent_steps": 30_000, "updates": 6875, "seconds": 95.25, "episodes": 32, "test_score": 12.34375}
GAMES |= {"test_score_max": 31.0, "mean_q": 0.4123, "loss": 1.2345, "epsilon": 0.8725}


@pytest.mark.parametrize(
    ("row", "in_words"),
    [
        (GAMES, "test score 12.3 (max 31, 32 games), mean Q 0.412, loss 1.23, ε 0.87"),
        (
            GAMES | {"test_score_max": 12345.0, "mean_q": NAN, "loss": NAN, "epsilon": 1.0},
            "test score 12.3 (max 12345, 32 games), mean Q nan, loss nan, ε 1.00",
        ),
    ],
)
def test_an_epoch_of_games(row, in_words):
    text = io.StringIO()
    with Show(Console(file=text, width=40), "short/dqn/breakout_wn_lr0.0003", 8, quiet=False) as show:
        show(Epoch(2, row))
    assert text.getvalue() == f"short/dqn/breakout_wn_lr0.0003  epoch 2/8  {in_words}  95.2 s\n"


def test_the_bar_of_games_counts_steps_and_ends_with_the_score():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=140)
    with Show(console, "short/dqn/breakout_wn_lr0.0003", 8, quiet=False, unit="steps") as show:
        show(Progress(2, 15_000, 15_000))
        show(Epoch(2, GAMES))
    assert "steps/s" in text.getvalue() and "images" not in text.getvalue() and "score 12.3" in text.getvalue()

"""What a person sees: a bar on a terminal, a line an epoch elsewhere, nothing when quiet."""

import io

import pytest
from rich.console import Console

from wnrepro.progress import Show
from wnrepro.training import Epoch, Tick

ROW = {"epoch": 1, "seconds": 2.5, "train_error": 0.25, "test_error": 0.5, "train_loss": 1.5, "test_loss": 2.0}
EVENTS = [Tick(1, 50, 100), Tick(1, 100, 100), Epoch(1, ROW), Tick(2, 50, 100)]


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_shown(terminal, quiet):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with Show(console, "quick/cifar/wn_lr0.003", 2, quiet) as show:
        for event in EVENTS:
            show(event)
    shown = text.getvalue()
    if quiet:
        assert shown == ""
    elif terminal:
        assert "wn_lr0.003" in shown and "epoch 2/2" in shown and "train 25.0% test 50.0%" in shown
        assert "images/s" in shown
    else:
        assert shown == (
            "quick/cifar/wn_lr0.003  epoch 1/2  train error 25.00%, test error 50.00%, "
            "train loss 1.5, test loss 2  2.5 s\n"
        )


def test_the_bar_of_a_resumed_run_starts_where_it_goes_on():
    show = Show(Console(file=io.StringIO(), force_terminal=True), "quick/cifar/wn", 10, quiet=False)
    with show:
        show(Tick(6, 50, 100))
        (task,) = show.bar.tasks
        assert (task.completed, task.total) == (550, 1000)
        assert task.time_remaining is None  # no speed yet: what others did is not this process's

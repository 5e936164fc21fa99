"""The signals that end a command, and the one that asks for a checkpoint. This module does not import torch.

Ctrl-C (SIGINT), SIGTERM and SIGHUP raise `Interruption`. While a run trains, the first of them waits until the run can
write a checkpoint; a second one ends the run at once. SIGUSR1 only asks a run for a checkpoint.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECKPOINT = signal.SIGUSR1
ALL = sys.maxsize


class Interruption(KeyboardInterrupt):
    """A signal that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Pause(Interruption):
    """A signal that has waited: the run's state is complete, so that a checkpoint can contain it."""


class Requests:
    """What the signals of this process have asked for."""

    def __init__(self) -> None:
        self.waiting: list[int] = []  # the numbers of ending signals that have not ended anything yet
        self.patience = 0  # how many of them may wait
        self.once = False  # whether only the first ending signal counts
        self.ended = False  # whether one has come
        self.checkpoints = 0  # the number of checkpoints that signals have asked for


requests = Requests()


class Seen(threading.local):
    """The number of requests for a checkpoint that this thread has seen, or that came before it began to look."""

    def __init__(self) -> None:
        self.count = requests.checkpoints


seen = Seen()


def receive(number: int, _: object) -> None:
    """Handle a signal."""
    if number == CHECKPOINT:
        requests.checkpoints += 1
        return
    repeated, requests.ended = requests.ended, True
    if requests.once and repeated:
        return
    if len(requests.waiting) < requests.patience:
        requests.waiting.append(number)
    else:
        raise Interruption(number)


@contextlib.contextmanager
def handled(once: bool = False) -> Iterator[None]:
    """Handle the signals within the block, except those that the process ignores, as under nohup.

    once: ignore all ending signals after the first, in a process that another one kills if it does not end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*ENDING, CHECKPOINT)}
    outer, requests.once, requests.ended, seen.count = requests.once, once, False, requests.checkpoints
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, receive)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        requests.once = outer


@contextlib.contextmanager
def deferred(patience: int = 1) -> Iterator[None]:
    """Let this number of ending signals wait, and raise Pause after the block if one still waits.

    Only the main thread's block counts: it holds for the threads that it has started, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requests.waiting, requests.patience = [], patience
    try:
        yield
        check()
    finally:
        requests.waiting, requests.patience = [], 0


def wanted() -> bool:
    """Test whether a signal waits, or asks for a checkpoint."""
    return bool(requests.waiting) or seen.count < requests.checkpoints


def check() -> None:
    """Raise Pause if an ending signal waits. Call it only where a run's state is complete."""
    if requests.waiting:
        raise Pause(requests.waiting[0])


def checkpoint_wanted() -> bool:
    """Test whether a checkpoint is wanted. Each thread is told once after a request."""
    before, seen.count = seen.count, requests.checkpoints
    return before < seen.count


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a command that a signal ended, as of a shell: 128 + the signal's number."""
    return 128 + getattr(error, "number", signal.SIGINT)


def describe(error: KeyboardInterrupt) -> str:
    """Return `interrupted`, or for another signal than Ctrl-C `ended by SIGTERM`."""
    number = getattr(error, "number", signal.SIGINT)
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"

"""One run of the grid in a process of its own, and the events by which it tells its driver how it goes.

`python -m wnrepro.reproduce.work` takes a Job as a line of JSON on its standard input, and writes an Event as a line
of JSON whenever there is something to tell. It ends at once when its input closes, so that no run outlives its driver;
its directory goes on from the last epoch. The driver's side is `Process`. Imports torch only in that process.
"""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnrepro.custom import use
from wnrepro.errors import UserError
from wnrepro.runs.directory import Locked
from wnrepro.settings import ABOUT, Source, printable, settings_from

if TYPE_CHECKING:
    from wnrepro.events import Epoch, Note, Progress

TICK_SECONDS = 0.5  # at least, between two events of progress inside an epoch
LAST_WORDS = 4000  # characters, of what a process that died has printed
ORPHANED = 3  # exit code


@dataclass(frozen=True)
class Job:
    """What a process needs to know of its run."""

    experiment: str
    scale: str
    settings: dict[str, Any]  # as in config.json
    results: str
    data_dir: str | None
    device: str
    threads: int
    graphs: bool = True  # whether a GPU's steps may be CUDA graphs
    source: dict[str, Any] | None = None  # of a parameterization that is not the paper's


@dataclass(frozen=True)
class Event:
    """How far a run is (`outcome` empty), or how its process ended.

    outcome: done and diverged, as run.json says; held: another process has the run; refused: a mistake of the user's;
    failed: the run raised an error; uncaptured: a step could not be made a CUDA graph; lost: the process ended without
    a word.
    """

    epochs: float = 0.0  # behind it, with the share of the one under way
    text: str = ""  # the last epoch's figures, or the reason of the outcome
    outcome: str = ""
    traceback: str = ""


LARGEST_LINE = 2**20  # bytes


def as_line(one: Job | Event) -> bytes:
    """A job or an event for the other process."""
    return (json.dumps(dataclasses.asdict(one)) + "\n").encode()


def job_from(line: bytes) -> Job:
    """Raises UserError where the line is none."""
    try:
        job = Job(**json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"no job: {printable(str(error), 200)}; start runs by `wnrepro reproduce`") from error
    kinds = {"settings": dict, "data_dir": str | None, "threads": int, "graphs": bool, "source": dict | None}
    wrong = [name for name, value in vars(job).items() if not isinstance(value, kinds.get(name, str))]
    if wrong or not 1 <= job.threads <= 2**16:
        raise UserError(f"no job: {', '.join(wrong) or 'threads'} of the wrong kind; start runs by `wnrepro reproduce`")
    return job


def event_from(line: bytes) -> Event | None:
    """None where the line is none: something else was printed, or it was cut short by the end of its process."""
    try:
        event = Event(**json.loads(line if line.endswith(b"\n") else b""))
    except (ValueError, TypeError, RecursionError):
        return None
    good = type(event.epochs) in (int, float) and 0 <= event.epochs <= 2**53
    return event if good and {type(event.text), type(event.outcome), type(event.traceback)} == {str} else None


def work(job: Job, send: Callable[[Event], None]) -> None:
    """Execute a job's run to its end, in this process."""
    import torch

    from wnrepro.cuda_graphs import capture_failed
    from wnrepro.device import choose_device
    from wnrepro.events import Epoch, Progress
    from wnrepro.experiments import experiment_class
    from wnrepro.progress import brief
    from wnrepro.runs.run import Run

    last, text = 0.0, ""

    def show(event: "Progress | Epoch | Note") -> None:
        nonlocal last, text
        now = time.monotonic()
        if isinstance(event, Epoch):
            text = brief(event)
            send(Event(event.epoch, text))
        elif isinstance(event, Progress) and event.done < event.total and now - last > TICK_SECONDS:
            last = now
            send(Event(event.epoch - 1 + event.done / event.total, text))

    torch.set_num_threads(job.threads)
    try:
        if job.source is not None:
            use(Source(**job.source), tried=True)
        settings, device = settings_from(job.experiment, job.settings), choose_device(job.device)
        if settings.param not in ABOUT:
            raise UserError(f"no job: the code of {settings.param} is not with it; start runs by `wnrepro reproduce`")
        kind, data_dir = experiment_class(job.experiment), Path(job.data_dir) if job.data_dir else None
        kind.check(settings, data_dir, device)
        with Run(Path(job.results), job.experiment, job.scale, settings) as run:
            status = run.finished()
            if status is None:
                load = functools.partial(kind.load, settings, data_dir, device)
                status = run.execute(load, show)["status"]
        send(Event(settings.epochs, text, str(status)))
    except Locked as error:
        send(Event(text=str(error), outcome="held"))
    except UserError as error:
        send(Event(text=str(error), outcome="refused"))
    except Exception as error:
        outcome = "uncaptured" if capture_failed(error) else "failed"
        send(Event(text=f"{type(error).__name__}: {error}", outcome=outcome, traceback=traceback.format_exc()))


def main() -> None:
    """The process: a job in, events out."""
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no event
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 65536) or b"\n"

    def end_with_the_driver() -> None:
        while os.read(0, 1):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=end_with_the_driver, daemon=True).start()

    def send(event: Event) -> None:
        events.write(as_line(event))
        events.flush()

    try:
        work(job_from(line), send)
    except UserError as error:
        send(Event(text=str(error), outcome="refused"))


class Process:
    """A job's process, from its driver's side."""

    def __init__(self, job: Job) -> None:
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed after the last event)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wnrepro.reproduce.work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.printed,
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)} | ({} if job.graphs else {"WNREPRO_GRAPHS": "0"}),
            start_new_session=True,  # Ctrl-C is for the driver alone
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already: `events` says so
            self.process.stdin.write(as_line(job))
            self.process.stdin.flush()

    def events(self) -> Iterator[Event]:
        """Its events to the end; the last one has an outcome."""
        assert self.process.stdout is not None
        event = Event()
        with self.printed, self.process.stdout:
            while line := self.process.stdout.readline(LARGEST_LINE):
                if said := event_from(line):
                    event = said
                    yield event
            code = self.process.wait()
            if not event.outcome:
                self.printed.seek(0)
                words = self.printed.read().decode(errors="replace")[-LAST_WORDS:]
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                yield Event(text=f"its process {how}", outcome="lost", traceback=words)

    def end(self) -> None:
        """End it, and wait until it has; nothing happens where it has ended already."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    main()

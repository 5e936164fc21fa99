"""One run of the grid in a separate process: the code of that process, and `Process` for its driver.

The process receives a Job on a socket, and sends Events back. It ends at once when the driver closes the socket or
dies, so no run outlives its driver. The run can then resume from its last checkpoint. After SIGTERM it first writes
one. Only that process imports torch. On this machine's CPU it forks from one that has imported it already.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_preparation_data
from pathlib import Path

from wnrepro import signals
from wnrepro.custom import use
from wnrepro.errors import UserError
from wnrepro.events import Epoch, News, Progress
from wnrepro.preflight import import_uninterrupted
from wnrepro.progress import brief
from wnrepro.reproduce.grid import Planned
from wnrepro.runs.directory import LockedError
from wnrepro.settings import Source

PROGRESS_SECONDS = 0.5  # minimum between two events within an epoch
OUTPUT_TAIL = 4000  # characters kept of the output of a process that died
ORPHANED = 3  # exit code of a process without a driver
SIGNALS = (*signals.ENDING, signals.CHECKPOINT)
FORKS = multiprocessing.get_context("forkserver")
STARTS = threading.Lock()  # a start reads the exit codes of other processes, and each can be read only once


@dataclass(frozen=True)
class Job:
    """The run that a process executes, and how."""

    run: Planned
    results: Path
    data_dir: Path | None
    threads: int
    device: str = ""  # chosen by the engine
    graphs: bool = True  # whether a GPU's steps may be CUDA graphs
    source: Source | None = None  # of a custom parameterization
    log_steps: int | None = None  # updates between two rows of steps.csv
    anew: bool = False  # whether the run must not continue a shorter one
    warm_starts: tuple[Path, ...] = ()  # folders of the runs whose weights `init_from` may name
    each_epoch: bool = False  # save after every epoch, since no signal can ask the process for it


@dataclass(frozen=True)
class Event:
    """The progress of a run (`outcome` empty), or how its process ended.

    outcome: done or diverged, as in run.json; held: another process executes the run; refused: the user made a mistake;
    failed: the run raised an error; uncaptured: a step could not be made a CUDA graph; lost: the process died.
    """

    epochs: float = 0.0  # completed, with the share of the current one
    text: str = ""  # the last epoch's figures, or the reason for the outcome
    outcome: str = ""
    traceback: str = ""
    processor: float = field(default_factory=time.process_time, compare=False)  # seconds of its process so far


def refusal(error: UserError) -> Event:
    """Return the event of a run that cannot start."""
    return Event(text=str(error), outcome="held" if isinstance(error, LockedError) else "refused")


def work(job: Job, send: Callable[[Event], None]) -> None:
    """Execute a job's run to its end, in this process."""
    try:
        import_uninterrupted("torch")
    except UserError as error:
        send(refusal(error))
        return
    import torch

    from wnrepro.cuda_graphs import capture_failed
    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class
    from wnrepro.runs import warm_start
    from wnrepro.runs.run import Run

    last, text = 0.0, ""

    def show(event: News) -> None:
        nonlocal last, text
        now = time.monotonic()
        if isinstance(event, Epoch):
            text = brief(event.metrics)
            send(Event(event.epoch, text))
        elif isinstance(event, Progress) and event.done < event.total and now - last > PROGRESS_SECONDS:
            last = now
            send(Event(event.epoch - 1 + event.done / event.total, text))

    torch.set_num_threads(job.threads)
    experiment, settings = job.run.experiment, job.run.settings
    try:
        if job.source is not None:
            use(job.source, tried=True)
        for folder in job.warm_starts:
            warm_start.add(folder)
        device, experiment_cls = choose_device(job.device), experiment_class(experiment)
        settings.check(job.data_dir, str(device))
        load = functools.partial(experiment_cls.load, settings, job.data_dir, device)
        with signals.handled(once=True), Run(job.results, experiment, job.run.scale, settings) as run:
            run.anew = job.anew
            status = run.execute(load, show, job.log_steps, job.each_epoch)["status"]
        send(Event(settings.epochs, text, status))
    except UserError as error:
        send(refusal(error))
    except Exception as error:
        outcome = "uncaptured" if capture_failed(error) else "failed"
        send(Event(0.0, f"{type(error).__name__}: {error}", outcome, traceback.format_exc()))


def main(driver: "Connection[Event, Job]") -> None:
    """Receive a job on this connection, execute it, and send its events back."""
    job = driver.recv()

    def end_with_the_driver() -> None:
        with contextlib.suppress(EOFError, OSError):
            driver.recv()
        os._exit(ORPHANED)

    threading.Thread(target=end_with_the_driver, daemon=True).start()
    try:
        work(job, driver.send)
    except KeyboardInterrupt as error:
        sys.exit(signals.exit_code(error))


def forked(driver: "Connection[Event, Job]", printed: "Connection[None, None]", environment: dict[str, str]) -> None:
    """Start as `main` does in a new process: in a new session, with this environment and output."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    main(driver)


class Forked:
    """A process that forks from one with torch, with the methods of Popen that `Process` needs."""

    def __init__(self, driver: "Connection[Event, Job]", printed: int, environment: dict[str, str]) -> None:
        start_warm(environment)
        output: Connection[None, None] = Connection(os.dup(printed))  # as which a descriptor can be sent
        with output, STARTS:
            self.process = FORKS.Process(target=forked, args=(driver, output, environment), daemon=True)
            self.process.start()

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, as Popen does."""
        wait([self.process.sentinel], timeout)
        with STARTS:
            self.process.join(0)
            return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if not wait([self.process.sentinel], 0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid or 0, number)


def start_warm(environment: dict[str, str]) -> None:
    """Start the process that imports torch, and from which others fork, unless it runs. It ends with this process."""
    FORKS.set_forkserver_preload(["wnrepro.reproduce.preload"])
    resource_tracker.ensure_running()  # else it would be started below, and unblock Ctrl-C
    before, own = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS), dict(os.environ)
    try:
        os.environ.update(environment)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(own)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    """The driver's view of a job's process."""

    def __init__(self, job: Job, forks: bool = False) -> None:
        """Start the process. forks: from one that has imported torch; only for a CPU."""
        self.connection, theirs = multiprocessing.Pipe()
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed after the last event)
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        environment |= {} if job.graphs else {"WNREPRO_GRAPHS": "0"}
        code = f"from multiprocessing.spawn import prepare; from {__name__} import Connection, main; "
        code += f"driver = Connection({theirs.fileno()}); prepare(driver.recv()); main(driver)"
        self.process: Forked | subprocess.Popen[bytes]
        with theirs:
            if forks:
                self.process = Forked(theirs, self.printed.fileno(), environment)
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self.printed,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # only the driver receives Ctrl-C
                )
        with contextlib.suppress(OSError):  # it has died already; `events` reports that
            if not forks:  # multiprocessing prepares a forked one
                own = type(job.run.settings).__module__ == "__main__"  # an experiment of the program's main file
                names = ("sys_path", "init_main_from_name", "init_main_from_path") if own else ()
                self.connection.send({name: one for name, one in get_preparation_data("").items() if name in names})
            self.connection.send(job)

    def events(self) -> Iterator[Event]:
        """Yield the process's events. The last one has an outcome. Closing the generator ends the process."""
        event = Event()
        try:
            while not event.outcome:
                event = self.connection.recv()
                yield event
        except (EOFError, OSError):
            code = self.process.wait() or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self.printed.seek(0)
            words = self.printed.read().decode(errors="replace")[-OUTPUT_TAIL:]
            yield Event(text=f"its process {how}", outcome="lost", traceback=words)
        finally:
            self.connection.close()
            self.process.wait()
            self.printed.close()

    def end(self) -> None:
        """Let the process write a checkpoint and end."""
        self.process.send_signal(signal.SIGTERM)

    def save(self) -> None:
        """Let the process write a checkpoint."""
        self.process.send_signal(signals.CHECKPOINT)

    def kill(self) -> None:
        """Kill the process. The run can resume from its last checkpoint."""
        self.process.send_signal(signal.SIGKILL)

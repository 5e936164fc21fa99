"""The nodes of a Ray cluster as an engine: Ray places a run and relays what its process tells, and no more than that.

The nodes need this package, the data sets and, unless the files are brought back, the results folder at the same path.
"""

import dataclasses
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wnrepro.errors import UserError
from wnrepro.reproduce.engines import jobs_on_cpus, threads
from wnrepro.reproduce.work import LAST_WORDS, Event, Job, Process
from wnrepro.runs.directory import SOURCE, Locked, RunDirectory, write_atomic
from wnrepro.settings import SETTINGS, settings_from

CONNECT_SECONDS = 10.0
STOP_SECONDS = 5.0  # that the nodes are given to tidy up
SHUTDOWN_SECONDS = 5.0  # that leaving the cluster takes at most
AHEAD = 4  # events with a run's files that may wait for the driver before the node does

Files = dict[str, bytes]  # of a run's directory, by name

# A run writes its tables, then its checkpoint, then run.json. Read in the opposite order they are such as a kill could
# have left them, also while the run goes on: none is newer than those that it rests on.
READ = ("run.json", "checkpoint.pt", "*.csv", "config.json", SOURCE)


def directory(job: Job) -> RunDirectory:
    """The directory of a job's run."""
    return RunDirectory(Path(job.results), job.experiment, job.scale, settings_from(job.experiment, job.settings))


class Changes:
    """The files of a run's directory that are new, or have been written again, since the last look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, tuple[int, int]] = {}

    def read(self) -> Files:
        files = {}
        for pattern in READ:
            for path in sorted(self.folder.glob(pattern)):
                if not is_of_a_run(path.name) or not path.is_file() or path.is_symlink():
                    continue
                stat = path.stat()
                if self.seen.get(path.name) != (stat.st_ino, stat.st_mtime_ns):
                    self.seen[path.name] = stat.st_ino, stat.st_mtime_ns
                    files[path.name] = path.read_bytes()
        return files


def write(folder: Path, files: Files) -> None:
    """Write a run's files in the order in which the run does; a kill between any two leaves what goes on.

    What has not the name of a run's file is left out, whatever a node calls it.
    """
    for pattern in reversed(READ):
        for name in sorted(filter(is_of_a_run, files)):
            if Path(name).match(pattern):
                write_atomic(folder / name, files[name])


def is_of_a_run(name: str) -> bool:
    """Whether a run writes a file of this name, right in its folder."""
    return re.fullmatch(r"run\.json|config\.json|checkpoint\.pt|[a-z_]+\.csv|parameterization\.py", name) is not None


def share(takers: int, units: int) -> float:
    """Of one unit, for each of more takers than units; rounded down to Ray's four decimals, that all may fit."""
    return math.floor(10_000 / math.ceil(takers / units)) / 10_000


# ------------------------------------------------------------------------------- on a node


def run_here(job: Job, token: str, files: Files | None) -> Iterator[tuple[Files, Event]]:
    """A job's run on this node: its events, each with the files that changed.

    files: the run's so far, to go on from in a folder of its own; None: the results folder is shared, and `token` is
    a file in it.
    """
    if files is None:
        if (Path(job.results) / token).exists():
            yield from (({}, event) for event in events(job))
        else:
            text = f"{socket.gethostname()}: does not see {job.results}; share the folder, or add --bring-back"
            yield {}, Event(text=text, outcome="refused")
        return
    with tempfile.TemporaryDirectory(prefix="wnrepro-") as results:
        job = dataclasses.replace(job, results=results)
        folder = directory(job).folder
        folder.mkdir(parents=True)
        write(folder, files)
        changes, reached = Changes(folder), 0.0
        changes.read()
        for event in events(job):
            whole = event.epochs == int(event.epochs) > reached
            if whole:
                reached = event.epochs
            yield changes.read() if whole or event.outcome else {}, event


def events(job: Job) -> Iterator[Event]:
    """What a job's process tells; whatever ends this ends the process."""
    process = Process(job)
    try:
        yield from process.events()
    finally:
        process.end()


# ------------------------------------------------------------------------------- the driver


class Cluster:
    """The nodes of a Ray cluster of which this machine is one.

    address: HOST:PORT of its head; None: of the cluster that this machine is in. Raises UserError where there is none,
    or none with such a device.
    """

    memory_bytes: int | None = None
    stop_seconds = STOP_SECONDS + SHUTDOWN_SECONDS

    def __init__(
        self, address: str | None, device: str, jobs: int | None, jobs_per_gpu: int, bring_back: bool = False
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device}: the cluster chooses among its GPUs; give auto, cpu or cuda")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # Ray's own words on lost workers, on standard output
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray: Ray is not installed; run `pip install 'wnrepro[cluster]'`") from None
        self.ray: Any = ray
        connect(ray, address)
        try:
            resources = ray.cluster_resources()
            gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
            if device == "cuda" and not gpus:
                raise UserError("--device cuda: the cluster has no GPU; join a node that has one, or use cpu")
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            sizes = [int(node.get("CPU", 0)) for node in nodes if node.get("GPU") or not gpus]
            sizes = [size for size in sizes if size]
            if not sizes:
                raise UserError("--engine ray: no node computes; join one with --num-cpus above 0 by `ray start`")
        except UserError:
            ray.shutdown()
            raise
        processors = sum(sizes)
        if jobs is None:
            jobs = gpus * jobs_per_gpu if gpus else jobs_on_cpus(processors, int(resources.get("memory", 0)) or None)
        self.jobs = jobs
        fair = max(1, min(processors // jobs, *sizes))
        self.side_by_side = dict.fromkeys(SETTINGS, jobs)
        self.threads = threads(fair if gpus else 1)
        self.device = "cuda" if gpus else "cpu"
        self.needs: dict[str, Any] = {
            "num_cpus": min(self.threads, fair) if jobs <= processors else share(jobs, processors),
            "num_gpus": share(max(jobs, gpus * jobs_per_gpu), gpus) if gpus else 0,
        }
        self.task = self.ray.remote(
            num_returns="streaming",
            max_retries=0,
            scheduling_strategy="SPREAD",
            _generator_backpressure_num_objects=AHEAD,
        )(run_here)
        self.bring_back = bring_back
        self.token = f".cluster-{uuid.uuid4().hex}"
        self.tokens: set[Path] = set()
        self.running: dict[str, Any] = {}  # the generators of the runs' events
        self.next: dict[str, Any] = {}  # references of events that the nodes have told, and may still have to bring
        self.out: dict[str, RunDirectory] = {}  # held here while a node has its files
        self.told: list[tuple[str, Event]] = []

    def room(self, experiment: str) -> bool:
        """Whether another run may start."""
        return len(self.running) < self.jobs

    def start(self, name: str, job: Job) -> None:
        """Start a run on the node that Ray chooses, as soon as one has room."""
        files = None
        if self.bring_back:
            there = directory(job)
            try:
                self.out[name] = there.__enter__()
            except UserError as error:
                self.told.append(
                    (name, Event(text=str(error), outcome="held" if isinstance(error, Locked) else "refused"))
                )
                return
            files = Changes(there.folder).read()
        else:
            self.tokens.add(Path(job.results) / self.token)
            for path in self.tokens:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        task = self.task.options(name=name, **self.needs)
        job = dataclasses.replace(job, device=self.device)
        self.running[name] = task.remote(job, self.token, files)

    def events(self, timeout: float) -> list[tuple[str, Event]]:
        """What the runs have told since, after waiting for so many seconds at most; one event of each run."""
        told, self.told = self.told, []
        if told or not self.running:
            if not told:
                time.sleep(timeout)
            return told
        until = time.monotonic() + timeout
        for name in self.ready({name: one for name, one in self.running.items() if name not in self.next}, timeout):
            self.next[name] = next(self.running[name], None)
        for name in self.ready(self.next, max(0.0, until - time.monotonic())):
            event = self.take(name)
            if event.outcome:
                self.forget(name)
            told.append((name, event))
        return told

    def ready(self, among: dict[str, Any], timeout: float) -> list[str]:
        """The names of those that need no waiting for; waits until there is one of them, so many seconds at most."""
        if not among:
            return []
        self.ray.wait(list(among.values()), num_returns=1, timeout=timeout)
        there, _ = self.ray.wait(list(among.values()), num_returns=len(among), timeout=0)
        return [name for name, one in among.items() if one in there]

    def take(self, name: str) -> Event:
        """A run's next event, which is there, after its files are on disk here; `lost` where Ray has no more."""
        reference = self.next.pop(name)
        try:
            if reference is None:
                return Event(text="its Ray task ended without a word", outcome="lost")
            files, event = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            text = f"its Ray worker or node was lost ({type(error).__name__})"
            return Event(text=text, outcome="lost", traceback=f"{error}\n"[-LAST_WORDS:])
        if name in self.out:
            write(self.out[name].folder, files)
        assert isinstance(event, Event)
        return event

    def forget(self, name: str) -> None:
        """A run is on no node any more."""
        del self.running[name]
        if name in self.out:
            self.out.pop(name).__exit__()

    def end(self, *names: str) -> None:
        """End these runs, which go on from their last epochs another time."""
        ended = [self.running[name].completed() for name in names]
        for name in names:
            self.ray.cancel(self.running[name], force=True)
        if ended:
            self.ray.wait(ended, num_returns=len(ended), timeout=STOP_SECONDS, fetch_local=False)
        for name in names:
            self.next.pop(name, None)
            self.forget(name)

    def stop(self) -> None:
        """End every run, and leave the cluster."""
        self.end(*self.running)
        for path in self.tokens:
            path.unlink(missing_ok=True)
        self.ray.shutdown()


def connect(ray: Any, address: str | None) -> None:
    """Join this process to a cluster. Raises UserError, soon, where none can be reached."""
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if address != "auto":  # ray.init waits for minutes where nobody answers, and ends the process then
            command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
            subprocess.run(command, check=True, capture_output=True, timeout=CONNECT_SECONDS)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (subprocess.SubprocessError, OSError, RuntimeError, ValueError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise UserError(
            f"--engine ray: no Ray cluster answers {where}; start one by `ray start --head`, or let this machine join "
            "one by `ray start --address HOST:PORT`"
        ) from error

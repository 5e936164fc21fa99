"""The nodes of a Ray cluster as an engine: Ray places a run and relays what its process tells, and no more than that.

The nodes need this package, the data sets and, unless the files are brought back, the results folder at the same path.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wnrepro.errors import UserError
from wnrepro.reproduce.engines import Engine, jobs_on_cpus, threads
from wnrepro.reproduce.work import LAST_WORDS, Event, Job, Process, refusal
from wnrepro.runs.directory import SOURCE, write_atomic

CONNECT_SECONDS = 10.0
SHUTDOWN_SECONDS = 5.0  # that leaving the cluster takes at most
AHEAD = 4  # events with a run's files that may wait for the driver before the node does

Files = dict[str, bytes]  # of a run's directory, by name, in the order in which they are written

# A run writes its tables, then its checkpoint, then run.json. Read in the opposite order they are such as a kill could
# have left them, also while the run continues: none is newer than those that it rests on.
READ_ORDER = ("run.json", "checkpoint.pt", "*.csv", "config.json", SOURCE)
NAMES = re.compile(rf"run\.json|config\.json|checkpoint\.pt|[a-z_]+\.csv|{re.escape(SOURCE)}")


def changes(folder: Path, seen: dict[str, tuple[int, int]]) -> Files:
    """Read the files of a run's directory that are not as `seen`, which is brought up to date."""
    files = {}
    for path in (path for pattern in READ_ORDER for path in folder.glob(pattern) if path.is_file()):
        stat = path.stat()
        if seen.get(path.name) != (stat.st_ino, stat.st_mtime_ns):
            seen[path.name] = stat.st_ino, stat.st_mtime_ns
            files[path.name] = path.read_bytes()
    return dict(reversed(files.items()))


def write(folder: Path, files: Files) -> None:
    """Write a run's files; a kill between any two leaves a directory that resumes. Other names are left out."""
    for name in filter(NAMES.fullmatch, files):
        write_atomic(folder / name, files[name])


def share(takers: int, units: int) -> float:
    """Return the part of one unit for each of more takers than units; rounded down to Ray's four decimals."""
    return math.floor(10_000 / math.ceil(takers / units)) / 10_000


def run_on_node(job: Job, token: str, files: Files | None) -> Iterator[tuple[Files, Event]]:
    """Compute a job's run on this node: yield its events, each with the files that changed.

    files: the run's so far, to resume from in a temporary folder; None: the results folder, in which there is a file
    named `token`, is shared.
    """
    if files is None:
        if (job.results / token).exists():
            yield from (({}, event) for event in Process(job).events())
        else:
            text = f"{socket.gethostname()}: does not see {job.results}; share the folder, or add --bring-back"
            yield {}, Event(text=text, outcome="refused")
        return
    with tempfile.TemporaryDirectory(prefix="wnrepro-") as results:
        job = dataclasses.replace(job, results=Path(results))
        folder, seen = job.run.directory(job.results).folder, dict[str, tuple[int, int]]()
        folder.mkdir(parents=True)
        write(folder, files)
        changes(folder, seen)
        for event in Process(job).events():
            yield changes(folder, seen), event


class NodeRun:
    """A run on a node, seen from the driver."""

    def __init__(self, nodes: "Cluster", job: Job) -> None:
        self.nodes, self.job = nodes, job
        self.task: Any = None

    def events(self) -> Iterator[Event]:
        """Start the run and yield its events, each after its files are on disk here.

        The run's directory is held while a node has its files.
        """
        ray, nodes, job, files = self.nodes.ray, self.nodes, self.job, None
        there = job.run.directory(job.results)
        try:
            with there if nodes.bring_back else contextlib.nullcontext():
                if nodes.bring_back:
                    files = changes(there.folder, {})
                self.task = nodes.task.remote(job, nodes.token, files)
                for reference in self.task:
                    files, event = ray.get(reference)
                    write(there.folder, files)
                    yield event
                    if event.outcome:
                        return
            yield Event(text="its Ray task ended without a word", outcome="lost")
        except UserError as error:
            self.kill()
            yield refusal(error)
        except ray.exceptions.RayError as error:
            text = f"its Ray worker or node was lost ({type(error).__name__})"
            yield Event(text=text, outcome="lost", traceback=f"{error}\n"[-LAST_WORDS:])

    def kill(self) -> None:
        """End the run's process."""
        if self.task:
            self.nodes.ray.cancel(self.task, force=True)


class Cluster(Engine):
    """The nodes of a Ray cluster of which this machine is one.

    address: HOST:PORT of its head; None: of the cluster that this machine is in. Raises UserError where there is none,
    or none with such a device.
    """

    stop_seconds = Engine.stop_seconds + SHUTDOWN_SECONDS

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
            sizes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1 and (node.get("GPU") or not gpus)]
            if not sizes:
                raise UserError("--engine ray: no node computes; join one with --num-cpus above 0 by `ray start`")
        except UserError:
            ray.shutdown()
            raise
        processors = sum(sizes)
        if jobs is None:
            jobs = gpus * jobs_per_gpu if gpus else jobs_on_cpus(processors, int(resources.get("memory", 0)) or None)
        fair = max(1, min(processors // jobs, *sizes))
        super().__init__(["cuda" if gpus else "cpu"], jobs, threads(fair if gpus else 1))
        self.task = self.ray.remote(
            num_cpus=min(self.threads, fair) if jobs <= processors else share(jobs, processors),
            num_gpus=share(max(jobs, gpus * jobs_per_gpu), gpus) if gpus else 0,
            num_returns="streaming",
            max_retries=0,
            scheduling_strategy="SPREAD",
            _generator_backpressure_num_objects=AHEAD,
        )(run_on_node)
        self.bring_back = bring_back
        self.token = f".cluster-{uuid.uuid4().hex}"
        self.shared: Path | None = None  # the token's path, once it is there

    def launch(self, job: Job) -> NodeRun:
        """Start a run on the node that Ray chooses, as soon as one has room."""
        if not self.bring_back:
            job.results.mkdir(parents=True, exist_ok=True)
            self.shared = job.results / self.token
            self.shared.touch()
        return NodeRun(self, job)

    def stop(self) -> None:
        """End every run, and leave the cluster."""
        super().stop()
        if self.shared:
            self.shared.unlink(missing_ok=True)
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

"""An engine for the nodes of a Ray cluster. Ray only chooses a node for each run and relays its events.

The nodes need this package and the data sets. Without --bring-back they need the results folder at the same path, too.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import signal
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
from wnrepro.reproduce.work import OUTPUT_TAIL, Event, Job, Process, refusal
from wnrepro.runs.directory import SOURCE, write_atomic

CONNECT_SECONDS = 10.0
SHUTDOWN_SECONDS = 5.0  # at most, to leave the cluster
AHEAD = 4  # events with a run's files that a node may send before it waits for the driver

Files = dict[str, bytes]  # a run directory's files by name, in the order of writing

# A run writes its tables, then its checkpoint, then run.json. Reading in the opposite order gives a state that a kill
# could also leave, even while the run continues: no file is newer than the files that it depends on.
READ_ORDER = ("run.json", "checkpoint.pt", "*.csv", "config.json", SOURCE)
NAMES = re.compile(rf"run\.json|config\.json|checkpoint\.pt|[a-z_]+\.csv|{re.escape(SOURCE)}")


def changes(folder: Path, seen: dict[str, tuple[int, int]]) -> Files:
    """Read the files of a run's directory that have changed since `seen`, and update `seen`."""
    files = {}
    for path in (path for pattern in READ_ORDER for path in folder.glob(pattern)):
        if not NAMES.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        stat = path.stat()
        if seen.get(path.name) != (stat.st_ino, stat.st_mtime_ns):
            seen[path.name] = stat.st_ino, stat.st_mtime_ns
            files[path.name] = path.read_bytes()
    return dict(reversed(files.items()))


def write(folder: Path, files: Files) -> None:
    """Write a run's files; the run can resume after a kill between any two. Skip files with other names."""
    for name in filter(NAMES.fullmatch, files):
        write_atomic(folder / name, files[name])


def share(takers: int, units: int) -> float:
    """Return the share of one unit for each taker if takers >= units, rounded down to Ray's four decimals."""
    return math.floor(10_000 / math.ceil(takers / units)) / 10_000


def run_on_node(job: Job, token: str, files: Files | None) -> Iterator[tuple[Files, Event]]:
    """Yield the events of a job's run on this node, each with the files that changed.

    files: the run's files so far; the run resumes from them in a temporary folder. None: the nodes share the results
    folder, which contains a file named `token`.
    """
    if files is None:
        if (job.results / token).exists():
            yield from (({}, event) for event in Process(job).events())
        else:
            text = f"{socket.gethostname()}: cannot see {job.results}; share the folder, or add --bring-back"
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
    """The driver's view of a run on a node."""

    def __init__(self, nodes: "Cluster", job: Job) -> None:
        self.nodes, self.job = nodes, job
        self.task: Any = None

    def events(self) -> Iterator[Event]:
        """Start the run and yield its events, each after writing its files to disk here.

        The run's directory stays locked while a node works on a copy of its files.
        """
        ray, nodes, job, files = self.nodes.ray, self.nodes, self.job, None
        directory = job.run.directory(job.results)
        try:
            with directory if nodes.bring_back else contextlib.nullcontext():
                if nodes.bring_back:
                    files = changes(directory.folder, {})
                self.task = nodes.task.options(name=directory.name).remote(job, nodes.token, files)
                for reference in self.task:
                    files, event = ray.get(reference)
                    write(directory.folder, files)
                    yield event
                    if event.outcome:
                        return
            yield Event(text="its Ray task ended without a result", outcome="lost")
        except ray.exceptions.RayError as error:  # of an error on the node it is also a subclass
            text = f"its Ray worker or node was lost ({type(error).__name__})"
            yield Event(text=text, outcome="lost", traceback=f"{error}\n"[-OUTPUT_TAIL:])
        except UserError as error:
            self.kill()
            yield refusal(error)

    def end(self) -> None:
        """End the run's process, without a checkpoint."""
        self.kill()

    def save(self) -> None:
        """Do nothing: the run keeps the checkpoint of its last epoch."""

    def kill(self) -> None:
        """End the run's process."""
        if self.task:
            self.nodes.ray.cancel(self.task, force=True)


class Cluster(Engine):
    """The nodes of a Ray cluster to which this machine belongs.

    address: HOST:PORT of the head node; None: the cluster that this machine is in. Raises UserError if there is no
    cluster, or it has no such device.
    """

    stop_seconds = Engine.stop_seconds + SHUTDOWN_SECONDS

    def __init__(
        self, address: str | None, device: str, jobs: int | None, jobs_per_gpu: int, bring_back: bool = False
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device}: the cluster chooses the GPU; use auto, cpu or cuda")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # hides Ray's messages on lost workers
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
                raise UserError("--device cuda: the cluster has no GPU; add a node with a GPU, or use cpu")
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            sizes = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1 and (node.get("GPU") or not gpus)]
            if not sizes:
                raise UserError("--engine ray: no node has processors; add one with `ray start` and --num-cpus above 0")
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
        self.shared: Path | None = None  # the token's path, once the file exists

    def launch(self, job: Job) -> NodeRun:
        """Return a run that Ray will start on a node of its choice, as soon as one has room."""
        if not self.bring_back:
            job.results.mkdir(parents=True, exist_ok=True)
            self.shared = job.results / self.token
            self.shared.touch()
        return NodeRun(self, dataclasses.replace(job, each_epoch=True))

    def stop(self, seconds: float = 0.0) -> None:
        """End every run, and leave the cluster."""
        super().stop(seconds)
        if self.shared:
            self.shared.unlink(missing_ok=True)
        self.ray.shutdown()


def connect(ray: Any, address: str | None) -> None:
    """Connect this process to a cluster. Raises UserError after a short time if none can be reached."""
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if address != "auto":  # without an answer, ray.init would wait for minutes and end the process
            command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
            subprocess.run(command, check=True, capture_output=True, timeout=CONNECT_SECONDS)
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        signal.signal(signal.SIGTERM, handler)  # not Ray's
    except (subprocess.SubprocessError, OSError, RuntimeError, ValueError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise UserError(
            f"--engine ray: no Ray cluster answers {where}; start one with `ray start --head`, or join one with "
            "`ray start --address HOST:PORT`"
        ) from error

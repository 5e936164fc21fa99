"""The Ray engine: runs whose workers and whose node are killed end with the tables of runs that nobody disturbed.

Two nodes on this machine; Ray stays in separate processes, as its warnings are not this package's.
"""

import importlib.util
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from factories import same_tables, tiny_cvae, tiny_draw

from wnrepro.custom import params
from wnrepro.reproduce import cluster, work
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.work import Event, Job
from wnrepro.settings import about

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

MARK = "WNREPRO_TEST_CLUSTER"  # in the environment of a cluster's processes: whose they are

# A head and a node, one processor each; prints the address, kills the second node at "kill", ends with its input.
NODES = """
import sys
from ray._private import utils
from ray.cluster_utils import Cluster

utils.write_ray_address = lambda *_: None  # `auto` on this machine is not for this cluster
size = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False, "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=size)
node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, temp_dir=sys.argv[1])
print(cluster.address, flush=True)
try:
    for _ in sys.stdin:
        cluster.remove_node(node, allow_graceful=False)
        print("killed", flush=True)
finally:
    cluster.shutdown()
"""

# A driver; its arguments: results, the runs and a custom parameterization, pickled; the address and the mode.
DRIVER = """
import pickle, sys
from wnrepro.custom import use
from wnrepro.reproduce.cluster import Cluster
from wnrepro.reproduce.drive import drive
from wnrepro.reproduce.plan import plan

(results, runs, source), address, mode = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2], sys.argv[3]
use(source)
engine = Cluster(address, "auto", 2, 1, bring_back=mode == "bring_back")
ended = set()

def show(task, news):
    print(news, task.state, task.reached, task.name, task.text, flush=True)
    if news == "epoch" and task.name not in ended:
        ended.add(task.name)
        engine.end(task.name)
        task.state = "waiting"  # to resume later

drive(plan(results, runs), engine, results, None, show)
"""


class Nodes:
    """A cluster on this machine, and three runs for it; `alone`: their results, computed in this process."""

    def __init__(self, process: subprocess.Popen[str], folder: str) -> None:
        self.process, self.mark, self.alone = process, folder, Path(folder) / "alone"
        self.address = self.line()
        # The last one's parameterization is in a file that the nodes do not load.
        (own,) = params([f"{Path(__file__).parents[2]}/examples/centred_weight_norm.py:CentredWeightNorm"])
        each = [tiny_draw("wn", epochs=20), tiny_cvae("wn", epochs=20), tiny_draw(own, epochs=20)]
        self.runs, self.source = [Planned(one.name, "quick", one) for one in each], about(own).source

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill_node(self) -> None:
        """Kill the second node's processes, all of them."""
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.line() == "killed"

    def workers(self) -> list[int]:
        """The processes that compute runs."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mine = f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes()
                if mine and b"wnrepro.reproduce.work" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def drive(self, results: Path, mode: str, heard: Callable[[str], None] = lambda _: None) -> list[str]:
        """Compute the runs by a driver in a separate process; what it prints, each line `heard` as it comes."""
        given, lines = pickle.dumps((results, self.runs, self.source)).hex(), []
        command = ["timeout", "900", sys.executable, "-c", DRIVER, given, self.address, mode]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout or ():
                lines.append(line)
                heard(line)
        assert process.returncode == 0
        return lines

    def check(self, results: Path) -> None:
        """Check that the runs are done with the tables of undisturbed ones."""
        for run in self.runs:
            if not run.directory(self.alone).folder.exists():
                work.work(Job(run, self.alone, None, 1, "cpu"), lambda _: None)
            assert run.directory(results).finished() == "done"
            same_tables(run.directory(results).folder, run.directory(self.alone).folder)


def parent(process: int) -> int:
    """The Ray worker of a run's process."""
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """One cluster for these tests; the last of them kills its second node."""
    folder = tempfile.mkdtemp(prefix="wn", dir="/tmp")  # a short path, for Ray's sockets
    environment = os.environ | {MARK: folder, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", NODES, folder], text=True, env=environment, **pipes) as process:
        try:
            yield Nodes(process, folder)
        finally:
            process.communicate(timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bring_back", "shared"])
def test_ended_and_killed_runs_resume_without_a_change(tmp_path: Path, nodes: Nodes, mode: str) -> None:
    """Each run is ended after an epoch; killed are a run's process, a Ray worker, and a node with all that is on it."""
    blows: list[Callable[[int], None]] = [
        lambda worker: os.kill(worker, signal.SIGKILL),
        lambda worker: os.kill(parent(worker), signal.SIGKILL),
    ]
    if mode == "shared":
        blows.insert(0, lambda _: nodes.kill_node())
    dice, wait, expected = random.Random(), 2, len(blows)

    def heard(line: str) -> None:
        nonlocal wait
        wait -= line.startswith("epoch")
        time.sleep(dice.uniform(0, 0.1))
        workers = nodes.workers()
        if wait <= 0 and blows and len(workers) >= (2 if len(blows) == 3 else 1):  # the node has a run
            with suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
                blows[0](workers[0])
                del blows[0]
                wait = dice.randint(1, 4)

    lines = nodes.drive(tmp_path, mode, heard)
    assert not blows
    assert sum(line.startswith("retry") for line in lines) >= expected - 1  # a run may have ended under its blow
    assert any(line.startswith("start") and int(line.split()[2]) > 0 for line in lines)  # it resumes
    nodes.check(tmp_path)
    assert not list(tmp_path.glob(".cluster-*"))


@pytest.mark.slow
def test_an_address_where_no_cluster_answers_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "wnrepro", "reproduce", "draw", "--scale", "quick", "--results", str(tmp_path)]
        done = subprocess.run([*command, "--engine", "ray", "--address", address], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert address in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_node_sends_the_changed_files_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeProcess:
        def __init__(self, job: Job) -> None:
            self.job, self.folder = job, job.run.directory(job.results).folder

        def events(self) -> Iterator[Event]:
            assert (self.folder / "config.json").read_bytes() == b"{}"
            yield Event(0.5)
            (self.folder / "metrics.csv").write_text("1")
            (self.folder / "run.json").write_text(str(self.job.graphs))
            yield Event(1, outcome="done")

    monkeypatch.setattr(cluster, "Process", FakeProcess)
    job = Job(Planned("draw", "quick", tiny_draw()), tmp_path, None, 1, graphs=False)
    told = list(cluster.run_on_node(job, "", {"config.json": b"{}"}))
    assert told == [({}, Event(0.5)), ({"metrics.csv": b"1", "run.json": b"False"}, Event(1, outcome="done"))]
    assert list(told[1][0]) == ["metrics.csv", "run.json"]  # the order of writing
    ((_, refused),) = cluster.run_on_node(job, "no such file", None)
    assert refused.outcome == "refused" and str(tmp_path) in refused.text and "--bring-back" in refused.text
    assert not list(tmp_path.iterdir())


def test_files_of_a_node_stay_in_the_runs_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results/a/run"
    folder.mkdir(parents=True)
    inside = {"run.json", "config.json", "checkpoint.pt", "metrics.csv", "kl_steps.csv"}
    outside = {"../x.csv", "/x.csv", "../../run.json", "a/b.csv", "checkpoint.pt/..", "./run.json", "x.csv/../../y.csv"}
    outside |= {"..csv", "", "x.csv\n", "évil.csv", "notes.txt", "run.json\0"}
    cluster.write(folder, dict.fromkeys(inside | outside, b"x"))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {folder / name for name in inside}
    (folder / "noise.csv").symlink_to(folder / "metrics.csv")
    (folder / "My Notes.csv").touch()
    assert cluster.changes(folder, {}).keys() == inside


def test_runs_on_nodes_save_after_every_epoch() -> None:
    """No signal reaches them before they are cancelled."""
    job = Job(Planned("draw", "quick", tiny_draw()), Path("results"), None, 1)
    nodes = Mock(cluster.Cluster, bring_back=True)
    assert not job.each_epoch and cluster.Cluster.launch(nodes, job).job.each_epoch

"""The Ray engine, on a real cluster of two nodes on this machine: runs whose workers and whose node are killed end with
the tables of runs that nobody disturbed; what the user is told where there is no cluster, or no shared folder.

Ray stays in processes of its own: its warnings are not this package's.
"""

import csv
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from factories import tiny_cvae, tiny_draw
from typer.testing import CliRunner

from wnrepro.cli import app
from wnrepro.custom import params
from wnrepro.errors import UserError
from wnrepro.experiments import experiment_class
from wnrepro.reproduce import cluster
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.plan import state
from wnrepro.reproduce.work import Event, Job
from wnrepro.runs.directory import read_json
from wnrepro.runs.run import Run
from wnrepro.settings import Settings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

MARK = "WNREPRO_TEST_CLUSTER"  # in the environment of a cluster's processes: whose they are
SECONDS = 300  # that a driver may take

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

DRIVER = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_cluster import runs
from wnrepro.reproduce.cluster import Cluster
from wnrepro.reproduce.drive import Task, drive
from wnrepro.reproduce.plan import plan

results, address, mode = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
engine = Cluster(address, "auto", 2, 1, bring_back=mode == "bring_back")
if mode == "not_shared":
    Path.touch = lambda *_: None  # the nodes look for a file that is not there


ended = set()


def show(task, news):
    print(news, task.state, int(task.epochs), task.name, task.text, flush=True)
    if mode == "end" and news == "epoch" and task.name not in ended:
        ended.add(task.name)
        engine.end(task.name)
        task.state = "waiting"  # to go on later


drive([Task(line) for line in plan(results, runs())], engine, results, None, show)
"""


def runs() -> list[Planned]:
    """Three runs of some seconds; the last one's parameterization is in a file that the nodes do not load."""
    (own,) = params([f"{Path(__file__).parents[1]}/examples/centred_weight_norm.py:CentredWeightNorm"])
    settings: list[tuple[str, Settings]] = [
        ("draw", tiny_draw("wn", epochs=20)),
        ("cvae", tiny_cvae("wn", epochs=20)),
        ("draw", tiny_draw(own, epochs=20)),
    ]
    return [Planned(experiment, "quick", each, ()) for experiment, each in settings]


def metrics(results: Path) -> list[list[dict[str, str]]]:
    """Every run's metrics.csv without what the clock says."""
    tables = []
    for run in runs():
        with (run.directory(results).folder / "metrics.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    return tables


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[list[dict[str, str]]]:
    """The tables of the runs, made one after the other in this process."""
    results = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)  # as the nodes' runs; `one_thread` holds for the tests alone
    for one in runs():
        kind = experiment_class(one.experiment)
        with Run(results, one.experiment, one.scale, one.settings) as run:
            run.execute(functools.partial(kind.load, one.settings, None, torch.device("cpu")))
    return metrics(results)


class Nodes:
    """A cluster on this machine."""

    def __init__(self, process: subprocess.Popen[str], mark: str) -> None:
        self.process, self.mark = process, mark
        self.address = self.line()

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
            process.stdin.close()
            process.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def dice() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return random.Random(seed)


def drive(nodes: Nodes, results: Path, mode: str, heard: Callable[[str], None] = lambda _: None) -> list[str]:
    """Take the runs to their ends from a process of its own; what it prints, each line `heard` as it comes."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", DRIVER, here, str(results), nodes.address, mode]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        too_late = threading.Timer(SECONDS, process.kill)
        too_late.start()
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                print(lines[-1])
                heard(lines[-1])
            assert process.wait() == 0
        finally:
            too_late.cancel()
            process.kill()
    return lines


def test_a_node_that_does_not_see_the_results_folder_is_named_and_starts_no_run(tmp_path, nodes):
    lines = drive(nodes, tmp_path, "not_shared")
    ends = [line for line in lines if line.startswith("end")]
    assert len(ends) == 3
    assert all(line.startswith("end failed") and f"does not see {tmp_path}; share the folder" in line for line in ends)
    assert not list(tmp_path.rglob("run.json"))


def test_runs_that_are_ended_one_by_one_go_on_as_if_nothing_had_happened(tmp_path, nodes, undisturbed):
    lines = drive(nodes, tmp_path, "end")
    assert sum(line.startswith("start") for line in lines) == 6
    assert metrics(tmp_path) == undisturbed
    for run in runs():
        record = read_json(run.directory(tmp_path).folder / "run.json")
        assert record and record["status"] == "done" and [again["from_epoch"] for again in record["resumed"]] != [0]


def test_files_that_are_brought_back_go_on_after_a_kill_as_if_nothing_had_happened(tmp_path, nodes, undisturbed, dice):
    """Kill every run's process, or its Ray worker, as soon as some epochs of one are back."""
    blows = []

    def heard(line: str) -> None:
        news, _, epoch, name, *_ = line.split()
        if news == "epoch" and int(epoch) >= 2 and not blows:
            there = {path.name for path in (tmp_path / name).iterdir()}
            assert {"config.json", "run.json", "checkpoint.pt", "metrics.csv"} <= there
            for worker in nodes.workers():
                blows.append(dice.choice([worker, parent(worker)]))
                os.kill(blows[-1], signal.SIGKILL)

    lines = drive(nodes, tmp_path, "bring_back", heard)
    assert any(line.startswith("retry") for line in lines)
    assert [state(run.directory(tmp_path)).name for run in runs()] == ["done"] * 3
    assert metrics(tmp_path) == undisturbed
    records = [read_json(run.directory(tmp_path).folder / "run.json") for run in runs()]
    assert any(again["from_epoch"] > 0 for record in records if record for again in record["resumed"])


def test_runs_whose_node_and_workers_are_killed_end_with_the_tables_of_undisturbed_ones(
    tmp_path, nodes, undisturbed, dice
):
    """Kill a node with all that is on it, then a run's process, then a Ray worker, at random moments."""
    blows = [
        nodes.kill_node,
        lambda: os.kill(nodes.workers()[0], signal.SIGKILL),
        lambda: os.kill(parent(nodes.workers()[0]), signal.SIGKILL),
    ]
    wait = dice.randint(1, 4)

    def heard(line: str) -> None:
        nonlocal wait
        wait -= line.startswith("epoch")
        time.sleep(dice.uniform(0, 0.1))
        if wait <= 0 and blows and len(nodes.workers()) >= (2 if len(blows) == 3 else 1):  # the node has a run
            blows.pop(0)()
            wait = dice.randint(1, 4)

    lines = drive(nodes, tmp_path, "shared", heard)
    assert not blows
    assert sum(line.startswith("retry") for line in lines) >= 2  # a run may have ended under its blow
    assert [state(run.directory(tmp_path)).name for run in runs()] == ["done"] * 3
    assert metrics(tmp_path) == undisturbed
    assert not list(tmp_path.glob(".cluster-*"))


def test_a_job_without_graphs_is_one_on_the_node_too(tmp_path, monkeypatch):
    started = []

    class Process:
        def __init__(self, job: Job) -> None:
            started.append(job)

        def events(self) -> list[Event]:
            return [Event(outcome="done")]

        def end(self) -> None:
            pass

    monkeypatch.setattr(cluster, "Process", Process)
    settings = runs()[0].directory(tmp_path).config["settings"]
    for graphs in (True, False):
        job = Job("draw", "quick", settings, str(tmp_path), None, "cpu", 1, graphs)
        assert [event.outcome for _, event in cluster.run_here(job, "", {})] == ["done"]
    assert [job.graphs for job in started] == [True, False]


def test_where_no_cluster_answers_the_command_says_so_in_a_sentence(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "wnrepro", "reproduce", "draw", "--scale", "quick", "--results", str(tmp_path)]
        done = subprocess.run([*command, "--engine", "ray", "--address", address], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"wnrepro: --engine ray: no Ray cluster answers at {address}; start")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--address", "127.0.0.1:6379"), ("--bring-back",)])
def test_options_of_a_cluster_without_one_are_refused(tmp_path, words):
    answer = CliRunner().invoke(app, ["reproduce", "--results", str(tmp_path), *words])
    assert isinstance(answer.exception, UserError)
    assert str(answer.exception) == f"{words[0]}: belongs to --engine ray; add that, or leave it out"

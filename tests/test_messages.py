"""Every sentence that a user's mistake, a damaged file or a full disk can bring up: each place in wnrepro/ that makes a
UserError is triggered here, and what it says is checked. What shows a traceback, and with which code a command ends.
"""

import ast
import dataclasses
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_images, tiny_cvae, tiny_dqn, tiny_draw
from filelock import FileLock

import wnrepro.__main__
from wnrepro import atari, cli, device, preflight
from wnrepro import reading as files
from wnrepro import results as reader
from wnrepro.bench.plain import check_plain
from wnrepro.data import files as data_files
from wnrepro.doctor import Finding
from wnrepro.errors import DiskError, UserError
from wnrepro.experiments.cifar import Cifar
from wnrepro.report import write_report
from wnrepro.reproduce import engines, plan, work
from wnrepro.reproduce.cluster import Cluster
from wnrepro.runs import directory as rundir
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import SETTINGS, config_hash, settings_from

PACKAGE = Path(wnrepro.__file__).parent
TRAIN = "cifar --param wn --scale quick --epochs 2 --width 4 --train-examples 200 --test-examples 100"
TRAIN += " --init-examples 100"


# ------------------------------------------------------------------------------- what a sentence has

VERBS = "add check choose close copy drop end free give go install join leave look make mend move name put remove"
VERBS += " restore run see set start train unset use wait write"
WHERE = re.compile(r"--[a-z]|/\S|\b(bench|reproduce|data set|job|standard output)\b")
WHAT_TO_DO = re.compile(rf"[;:,(] (?:or |and |then )?(?:{'|'.join(VERBS.split())})\b")
PYTHON = re.compile(r"\w+(Error|Exception)\b|Traceback|<class|object at 0x|NoneType|\('|positional argument")
LISTED = re.compile(r"(\n  \S+  (md5|sha256) [0-9a-f]+)+")  # the files of a data set
OF_THEIRS = re.compile(r"\(\w+(: .*)?\)(?=; mend it there)")  # what a user's own code raises
MOST = 400  # characters, paths left out


def faults(text: str) -> list[str]:
    """What is amiss with a sentence to a user."""
    text = OF_THEIRS.sub("", LISTED.sub("", text))
    first, *rest = re.split(r"[;:] ", text, maxsplit=1)
    found = {
        "more than one line": "\n" in text,
        "does not begin with where": not WHERE.search(first),
        "does not say what is wrong": not rest and " " not in first,
        "does not end with what to do": not WHAT_TO_DO.search(text),
        "speaks Python": PYTHON.search(text),
        "too long": len(re.sub(r"/\S+", "", text)) > MOST,
        "unprintable": not text.replace("\n", "").isprintable(),
    }
    return [fault for fault, is_so in found.items() if is_so]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("--lr -1: give a number above 0", None),
        ("/a/run.json: not a JSON object; remove it", None),
        ("/a/run.json: not a JSON object", "does not end with what to do"),
        ("a file is wrong; remove it", "does not begin with where"),
        ("/a/config.json: no such setting ('x'); remove it", "speaks Python"),
        ("/a: KeyError; remove it", "speaks Python"),
        ("/a: wrong\n; remove it", "more than one line"),
        (f"/a: {'very ' * 80} wrong; remove it", "too long"),
        ("/a\x1b: wrong; remove it", "unprintable"),
    ],
)
def test_faults_are_found(text: str, fault: str | None) -> None:
    assert faults(text) == ([fault] if fault else [])


# ------------------------------------------------------------------------------- the places that make one


def sites() -> dict[tuple[str, int, int], str]:
    """(file, first line, last line) of each statement in wnrepro/ that makes a UserError, and its words.

    A function annotated as returning one is no place of its own: the statements that call it are.
    """
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    makers, before = {"UserError"}, 0
    while len(makers) > before:
        before = len(makers)
        for _, node in nodes:
            if isinstance(node, ast.ClassDef) and makers & {ast.unparse(base) for base in node.bases}:
                makers.add(node.name)
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) in makers:
                makers.add(node.name)

    found = {}
    for path, node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.Module) or getattr(node, "name", "") in makers:
            continue
        for statement in own_statements(node):
            calls = [part for part in ast.walk(statement) if isinstance(part, ast.Call)]
            if any(ast.unparse(call.func).rpartition(".")[2] in makers for call in calls):
                place = (path.relative_to(PACKAGE).as_posix(), statement.lineno, statement.end_lineno)
                found[place] = ast.unparse(statement)
    return found


def own_statements(node: ast.FunctionDef | ast.Module) -> Iterator[ast.stmt]:
    """The simple statements of a function, or of a module; not those of functions inside it."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        part = todo.pop()
        if isinstance(part, ast.FunctionDef):
            continue
        inner = [child for child in ast.iter_child_nodes(part) if not isinstance(child, ast.expr)]
        if isinstance(part, ast.stmt) and not inner:
            yield part
        todo += inner


@pytest.fixture(scope="module")
def reached() -> Iterator[set[tuple[str, int]]]:
    """(file, line) of every frame in wnrepro/ from which a UserError was made during this module's tests."""
    lines = set()

    def made(self: UserError, *_: object) -> None:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                lines.add((path.relative_to(PACKAGE).as_posix(), frame.f_lineno))
            frame = frame.f_back

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserError, "__init__", made)
        yield lines


# ------------------------------------------------------------------------------- what brings them up


class Place:
    """Where a case happens: folders of its own, and a run of the classifier in one of them."""

    def __init__(self, tmp: Path, results: Path, patch: pytest.MonkeyPatch) -> None:
        self.tmp, self.results, self.patch = tmp, results, patch
        (self.run,) = (path.parent for path in results.rglob("run.json"))
        (tmp / "file").write_text("text")
        (tmp / "empty").mkdir()

    def line(self, words: str) -> object:
        """A command line, with {tmp}, {run} and {results}."""
        words = words.format(tmp=self.tmp, run=self.run, results=self.results)
        return cli.app(words.split(), standalone_mode=False)

    def train(self) -> object:
        """The run's own command line."""
        return self.line(f"{TRAIN} --results {{results}}")

    def edit(self, name: str, **changes: object) -> None:
        """Change values of a JSON file of the run, at the top or among its settings."""
        content = json.loads((self.run / name).read_text())
        for key, value in changes.items():
            where = content["settings"] if key in content.get("settings", ()) else content
            where[key] = where[key] | value if isinstance(value, dict) else value
        if "sha256" in content:
            rundir.seal(content)
        (self.run / name).write_text(json.dumps(content))

    def write(self, name: str, content: str | bytes) -> None:
        (self.run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def report(self) -> object:
        """Reads the run as the report does."""
        return reader.load(self.results, "quick")

    def forged(self, experiment: str, settings: Any, status: str = "diverged") -> Run:
        """A run of which there is but its config.json, and which is said to have ended so."""
        run = Run(self.tmp / "forged", experiment, "quick", settings)
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(json.dumps(run.config))
        self.patch.setattr(Run, "finished", lambda _: status)
        return run


Case = Callable[[Place], object]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


LINES = """
cifar --param wn --scale large
cifar --param nonsense
cifar --param {tmp}/none.py:Mine
cifar --param none:Mine
cifar --param wn --init nonsense
reproduce C15 --param bn
cifar --param wn --lr -1
cifar --param wn --epochs 0
cifar --param wn --epochs 99999999999999999999
cifar --param wn --scale short --data-dir {tmp}/empty
cifar --param wn --scale quick --results {tmp}/file
cifar --param wn --scale quick --results {tmp}/{long}
cifar --param wn --scale quick --device tpu
cifar --param wn --scale quick --precision tf32 --device cpu
cifar --param normal --g-exp 3
cifar --param wn --init folded
cifar --param wn --scale quick --train-examples 999999
cifar --param wn --scale quick --train-examples 100 --batch-size 101
cvae --param wn --scale quick --dataset cifar10 --hidden 20
cvae --param wn --scale quick --maps 4 --maps 8
cvae --param wn --scale quick --depths 2
cvae --param wn --scale quick --train-examples 4001
cvae --param wn --scale quick --train-examples 100 --init-examples 101
draw --param wn --scale quick --binarization seeded
draw --param bn --g-start 1
dqn --param wn --scale quick --replay-start 501 --replay-steps 500
dqn --param wn --scale quick --batch-size 600
dqn --param wn --scale quick --maps 4
dqn --param wn --scale quick --discount 1.5
dqn --param wn --scale quick --replay-steps 999999999999
reproduce chess
reproduce cvae enduro --scale short
reproduce --scale large
reproduce --engine mpi
reproduce --bring-back
reproduce --plan --budget 1h
reproduce --budget 1d
reproduce --budget 99999999999999999999h
reproduce cifar --results {tmp}/new --data-dir {tmp}/empty --device cpu
report --results {tmp}/none
report --results {tmp}/empty
report --results {tmp}/empty --scale large
report --results {tmp}/empty --precision fp8
report --results {tmp}/empty --published
report --results {results} --compare {tmp}/none
report --results {results} --compare {tmp}/empty
report --results {results} --compare {results}
report --results {results} --compare {results} --check
report --results {tmp}/empty --export word
bench chess
bench cifar --precision fp8
bench cifar --smoke --precision bf16
sample {tmp}/empty
sample {run}
watch {run}
export {run}
export {tmp}/empty --tensorboard {tmp}/new
export {run} --tensorboard {tmp}/file
export {run} --tensorboard {tmp}/file/new
data fetch imagenet --data-dir {tmp}/empty
data fetch cifar10 --data-dir {tmp}/file"""
for words in LINES.strip().splitlines():
    CASES[words] = lambda place, words=words: place.line(words.replace("{long}", 300 * "a"))


# the command line's


@case
def results_without_permission(place: Place) -> None:
    place.patch.setattr(os, "access", lambda _, mode: mode == os.R_OK)  # root may do everything
    place.line("report --results {results}")


@case
def a_port_that_is_taken(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place.line(f"report --results {{results}} --serve --port {taken.getsockname()[1]}")


@case
def fresh_without_yes(place: Place) -> None:
    place.line(f"{TRAIN} --results {{results}} --fresh")


@case
def pictures_of_a_diverged_run(place: Place) -> None:
    place.line(f"sample {place.forged('cvae', tiny_cvae()).folder}")


@case
def a_film_of_a_diverged_run(place: Place) -> None:
    place.line(f"watch {place.forged('dqn', tiny_dqn()).folder}")


@case
def nowhere_to_print(place: Place) -> None:
    with open("/dev/full", "w") as full:
        place.patch.setattr(sys, "stdout", full)
        print("text")
        cli.flush()


# parameterizations of a user's


def own(body: str | bytes, words: str = "draw --scale quick --results {tmp}/new", name: str = "Mine") -> Case:
    """A command with a class of this body."""

    def call(place: Place) -> None:
        text = f"from wnrepro.parameterization import Parameterization\nclass Mine(Parameterization):\n    {body!s}\n"
        (place.tmp / "mine.py").write_bytes(body if isinstance(body, bytes) else text.encode())
        place.line(f"{words} --param {{tmp}}/mine.py:{name}")

    return call


LONG = "CentredWeightNormalization"
NO_UNIT = "def applies(self, layer):\n        assert layer.units > 1\n        return True"
CASES |= {
    "a class that is not there": own("pass", name="Other"),
    "a class that is no parameterization": own("pass", name="Parameterization"),
    "a class of a name that is none": own("pass", name="1"),
    "a class of a file that is no text": own(b"\xff"),
    "a class of a file that is too large": own(b"#" * 2**20 + b"\n"),
    "a class that does not call what it overrides": own(
        b"from wnrepro.parameterization import WeightNorm\nclass Mine(WeightNorm):\n    def direction(self, *_): ...\n"
    ),
    "a class that says nothing of itself": own(
        b"from wnrepro.parameterization import Parameterization\nclass Odd(type(Parameterization)):\n"
        b"    label = property(lambda _: 1 / 0)\nclass Mine(Parameterization, metaclass=Odd):\n    after = True\n"
    ),
    "a class that cannot be loaded": own("x = 1 / 0"),
    "a class that overrides nothing": own("note = 1"),
    "a class with a method that nothing calls": own("def normalise(self, layer, t, time):\n        return t"),
    "a class with a flag that is none": own("after = 1"),
    "a class whose name in runs is another's": own(
        f"affine = True\nclass {LONG}A(Mine):\n    pass\nclass {LONG}B(Mine):\n    pass",
        f"draw --scale quick --param {{tmp}}/mine.py:{LONG}A",
        f"{LONG}B",
    ),
    "a class with a label that is none": own("label = 1"),
    "a class with learning rates that are none": own("lr = {'chess': 1}"),
    "a class with statistics that are none": own("batch_statistics = 'mean'"),
    "a class that fails": own("def direction(self, layer, v):\n        return v.nothing()"),
    "a class that fails in an experiment alone": own(NO_UNIT, "cvae --scale quick --results {tmp}/new"),
    "a class without a gradient": own("def weight(self, layer, v, g):\n        return v"),
}


@case
def a_class_in_a_folder(place: Place) -> None:
    (place.tmp / "mine.py").mkdir()
    place.line("draw --param {tmp}/mine.py:Mine")


@case
def a_run_whose_code_is_not_there(place: Place) -> None:
    open_run(place.forged("cvae", tiny_cvae("Mine-00000000")).folder)


@case
def a_job_whose_code_is_not_there(place: Place) -> None:
    told: list[work.Event] = []
    settings = json.loads(json.dumps(dataclasses.asdict(tiny_draw("Mine-00000000"))))
    work.work(work.Job("draw", "quick", settings, str(place.tmp / "new"), None, "cpu", 1), told.append)
    raise UserError(told[-1].text)


# devices


@case
def cuda_without_a_gpu(place: Place) -> None:
    place.patch.setattr(torch.cuda, "is_available", lambda: False)
    device.choose_device("cuda")


@case
def a_gpu_too_many(place: Place) -> None:
    place.patch.setattr(torch.cuda, "is_available", lambda: True)
    place.patch.setattr(torch.cuda, "device_count", lambda: 2)
    device.choose_device("cuda:2")


@case
def bench_without_opencv(place: Place) -> None:
    place.patch.setattr(importlib.util, "find_spec", lambda _: None)
    check_plain("dqn")


@case
def tensorboardx_is_not_installed(place: Place) -> None:
    place.patch.setitem(sys.modules, "tensorboardX", None)
    place.line("export {run} --tensorboard {tmp}/new")


@case
def no_emulator(place: Place) -> None:
    place.patch.setitem(sys.modules, "ale_py.vector_env", None)
    atari.check_rom("breakout")


@case
def no_roms(place: Place) -> None:
    place.patch.setenv("ALE_ROMS_DIR", str(place.tmp / "empty"))
    atari.Games("breakout", 1, seed=0)


# the cluster's


def fake_ray(place: Place, gpus: int = 0, **resources: float) -> None:
    """In place of Ray, whose own processes and warnings are test_cluster's affair."""
    ray = types.SimpleNamespace(init=lambda **_: None, shutdown=lambda: None)
    ray.cluster_resources = lambda: {"GPU": gpus}
    ray.nodes = lambda: [{"Alive": True, "Resources": resources}]
    place.patch.setitem(sys.modules, "ray", ray)


@case
def a_gpu_of_a_cluster_by_number(place: Place) -> None:
    Cluster(None, "cuda:1", None, 1)


@case
def ray_is_not_installed(place: Place) -> None:
    place.patch.setitem(sys.modules, "ray", None)
    Cluster(None, "auto", None, 1)


@case
def no_cluster_answers(place: Place) -> None:
    fake_ray(place)
    Cluster("127.0.0.1:1", "auto", None, 1)


@case
def a_cluster_without_a_gpu(place: Place) -> None:
    fake_ray(place, CPU=1)
    Cluster(None, "cuda", None, 1)


@case
def a_cluster_that_does_not_compute(place: Place) -> None:
    fake_ray(place, CPU=0)
    Cluster(None, "auto", None, 1)


# a process of the grid


@case
def a_job_that_is_none(place: Place) -> None:
    work.job_from(b"{")


@case
def a_job_of_the_wrong_kind(place: Place) -> None:
    job = work.Job("cifar", "quick", {}, "results", None, "cpu", 0)
    work.job_from(work.as_line(job))


@case
def a_job_of_no_settings(place: Place) -> None:
    settings_from("cifar", {"colour": 1})


@case
def a_record_of_an_epoch_that_is_none(place: Place) -> None:
    place.edit("run.json", epoch=3)
    plan.state(open_run(place.run))


# the data's


@case
def data_that_cannot_be_read(place: Place) -> None:
    place.patch.setattr(data_files, "_verified", no_permission)
    data_files.status(place.tmp)


def no_permission(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


@case
def another_fetch(place: Place) -> None:
    with FileLock(place.tmp / ".fetch.lock"):
        data_files.fetch([], place.tmp)


@case
def a_download_that_nobody_answers(place: Place) -> None:
    place.patch.setattr(data_files, "LAROCHELLE", "http://127.0.0.1:1/")
    data_files.fetch(["binarized_mnist"], place.tmp)


# a run's directory


@case
def a_file_that_cannot_be_written(place: Place) -> None:
    rundir.write_atomic(place.tmp / "none" / "file", b"")


@case
def a_file_that_cannot_be_removed(place: Place) -> None:
    (place.run / "run.json").unlink()
    (place.run / "run.json").mkdir()
    open_run(place.run).clear()


@case
def a_lock_that_cannot_be_written(place: Place) -> None:
    place.patch.setattr(Path, "write_text", no_permission)
    with open_run(place.run):
        pass


@case
def a_config_that_is_no_file(place: Place) -> None:
    (place.run / "config.json").unlink()
    os.mkfifo(place.run / "config.json")
    place.train()


@case
def a_config_that_cannot_be_opened(place: Place) -> None:
    (place.run / "config.json").unlink()
    (place.run / "config.json").symlink_to("config.json")
    place.train()


@case
def a_config_without_end(place: Place) -> None:
    place.patch.setattr(rundir, "LARGEST", 2**20)
    place.write("config.json", bytes(2**20 + 1))
    place.train()


@case
def a_config_of_other_bytes(place: Place) -> None:
    place.write("config.json", b"\xff")
    place.train()


@case
def a_config_that_is_no_json(place: Place) -> None:
    place.write("config.json", "{")
    place.train()


@case
def a_config_that_is_a_list(place: Place) -> None:
    place.write("config.json", "[]")
    place.train()


@case
def a_config_of_other_settings(place: Place) -> None:
    place.edit("config.json", lr=1.0)
    content = json.loads((place.run / "config.json").read_text())
    place.edit("config.json", hash=config_hash(*(content[name] for name in ("experiment", "scale", "settings"))))
    place.train()


@case
def a_config_that_is_not_as_its_hash_says(place: Place) -> None:
    place.edit("config.json", lr=1.0)
    place.train()


@case
def a_record_of_other_settings(place: Place) -> None:
    place.edit("run.json", config_hash="0123456789abcdef")
    place.train()


@case
def a_record_that_was_changed(place: Place) -> None:
    record = json.loads((place.run / "run.json").read_text())
    place.write("run.json", json.dumps(record | {"epoch": 1}))
    place.train()


@case
def a_run_that_another_process_is_at(place: Place) -> None:
    with FileLock(place.run / "lock"), open_run(place.run):
        pass


@case
def a_lock_that_is_no_file(place: Place) -> None:
    (place.run / "lock").unlink()
    (place.run / "lock").mkdir()
    with open_run(place.run):
        pass


@case
def threads_that_are_no_number(place: Place) -> None:
    place.patch.setenv("OMP_NUM_THREADS", "two")
    engines.threads(1)


@case
def a_run_that_is_a_link_to_elsewhere(place: Place) -> None:
    run = open_run(place.run)
    place.run.rename(place.tmp / "elsewhere")
    place.run.symlink_to(place.tmp / "elsewhere")
    with run:
        pass


@case
def a_folder_that_cannot_be_made(place: Place) -> None:
    place.patch.setattr(Path, "mkdir", no_permission)
    with open_run(place.run):
        pass


# a run


@case
def a_checkpoint_that_is_none(place: Place) -> None:
    place.write("checkpoint.pt", b"?")
    open_run(place.run).restore(Nothing())


@case
def no_good_checkpoint_to_go_on_from(place: Place) -> None:
    place.edit("run.json", status="running")
    place.write("checkpoint.pt", b"?")
    place.train()


@case
def epochs_without_a_checkpoint(place: Place) -> None:
    place.edit("run.json", status="running")
    (place.run / "checkpoint.pt").unlink()
    place.train()


class Nothing:
    """An experiment that no checkpoint fits."""

    def load_state_dict(self, state: object) -> None:
        raise KeyError("net")


@case
def a_checkpoint_of_another_version(place: Place) -> None:
    open_run(place.run).restore(Nothing())


@case
def a_run_without_a_checkpoint(place: Place) -> None:
    (place.run / "checkpoint.pt").unlink()
    open_run(place.run).restore(Nothing())


@case
def a_run_of_no_known_setting(place: Place) -> None:
    place.edit("config.json", settings={"colour": 1})
    open_run(place.run)


@case
def a_run_of_no_scale(place: Place) -> None:
    place.edit("config.json", scale="large")
    open_run(place.run)


@case
def a_run_of_nothing(place: Place) -> None:
    place.write("config.json", "{}")
    open_run(place.run)


@case
def a_run_that_was_moved(place: Place) -> None:
    open_run(place.run.rename(place.run.with_name("seed-2")))


@case
def a_run_of_another_version(place: Place) -> None:
    place.edit("config.json", hash="0123456789abcdef")
    open_run(place.run)


# the report's


@case
def a_scale_without_runs(place: Place) -> None:
    reader.load(place.results, "short")


@case
def a_report_of_published_runs_alone(place: Place) -> None:
    published = place.results / rundir.PUBLISHED
    published.mkdir()
    (place.results / "quick").rename(published / "quick")
    place.line("report --results {results}")


@case
def a_comparison_of_other_scales(place: Place) -> None:
    shutil.copytree(place.results / "quick", place.tmp / "other" / "short")
    place.line("report --results {results} --compare {tmp}/other")


@case
def a_report_of_no_folder(place: Place) -> None:
    reader.load(place.tmp / "none", "short")


@case
def a_report_of_a_folder_that_cannot_be_read(place: Place) -> None:
    place.patch.setattr(Path, "iterdir", no_permission)
    place.report()


@case
def a_report_that_cannot_be_written(place: Place) -> None:
    (place.results / "quick" / "tables").write_text("text")
    write_report(place.results, "quick")


@case
def a_report_that_leads_elsewhere(place: Place) -> None:
    (place.results / "quick" / "tables").symlink_to(place.tmp / "empty")
    write_report(place.results, "quick")


@case
def a_report_of_too_many_runs(place: Place) -> None:
    place.patch.setattr(reader, "MOST_RUNS", 0)
    place.report()


@case
def a_report_of_too_many_benchmarks(place: Place) -> None:
    (place.results / "bench").mkdir()
    (place.results / "bench" / "cpu.json").write_text("{}")
    place.patch.setattr(reader, "MOST_BENCHES", 0)
    place.report()


@case
def a_report_of_a_benchmark_that_was_copied(place: Place) -> None:
    (place.results / "bench").mkdir()
    for name in ("cpu", "copy"):
        content = {"device_name": "CPU", "cifar": {"ratios": {}}}
        (place.results / "bench" / f"{name}.json").write_text(json.dumps(content))
    place.report()


@case
def a_report_of_a_benchmark_with_a_name_that_is_none(place: Place) -> None:
    (place.results / "bench").mkdir()
    (place.results / "bench" / "\x1b.json").write_text("{}")
    place.report()


@case
def a_report_of_a_name_that_is_none(place: Place) -> None:
    place.run.parent.rename(place.run.parent.with_name("wn\x1b"))
    place.report()


@case
def a_report_of_a_link_to_nowhere(place: Place) -> None:
    (place.results / "bench").mkdir()
    (place.results / "bench" / "cpu.json").symlink_to("nowhere")
    place.report()


@case
def a_report_of_too_many_layers(place: Place) -> None:
    place.patch.setattr(files, "MOST_LAYERS", 0)
    place.write("noise.csv", noise_row(1, 2, 3, 5))
    place.report()


@case
def a_report_of_a_copied_run(place: Place) -> None:
    shutil.copytree(place.run, place.run.with_name("seed-7"))
    place.report()


@case
def a_report_of_the_same_run_under_two_names(place: Place) -> None:
    place.edit("config.json", settings={"colour": "red"})  # of another version
    shutil.copytree(place.run.parent, place.run.parent.with_name(f"{place.run.parent.name}_colour-red"))
    place.report()


def report_of(experiment: str, settings: Any, change: Callable[[dict[str, Any]], object], **files: str) -> Case:
    """A run of which there is but its config.json, changed, and these tables."""

    def brought_up(place: Place) -> None:
        run = place.forged(experiment, settings)
        change(run.config["settings"])
        (run.folder / "config.json").write_text(json.dumps(run.config))
        for name, content in files.items():
            (run.folder / f"{name}.csv").write_text(content)
        reader.load(place.tmp / "forged", "quick")

    return brought_up


def bench_of(**entries: object) -> Case:
    """A benchmark of cifar with these entries."""

    def brought_up(place: Place) -> None:
        (place.results / "bench").mkdir()
        content = {"device_name": "CPU", "cifar": {"ratios": {}} | entries}
        (place.results / "bench" / "cpu.json").write_text(json.dumps(content))
        place.report()

    return brought_up


def damaged(name: str, content: str | bytes | None = None, **changes: object) -> Case:
    """A file of the run changed, and then read for the report."""

    def brought_up(place: Place) -> None:
        if content is None:
            place.edit(name, **changes)
        else:
            place.write(name, content)
        place.report()

    return brought_up


def table(columns: Iterable[str], *rows: Iterable[object]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in (columns, *rows))


def metrics_rows(*rows: tuple[int, float]) -> str:
    """metrics.csv of these epochs with these training errors."""
    return table(
        tuple(SETTINGS["cifar"].models[None].metrics), *((epoch, 1, error, 0.5, 1, 1, 1) for epoch, error in rows)
    )


def dqn_row(**values: float) -> str:
    """metrics.csv of a DQN's first epoch."""
    columns = tuple(SETTINGS["dqn"].models["breakout"].metrics)
    return table(columns, [values.get(name, 1) for name in columns])


def noise_row(*values: float) -> str:
    """noise.csv of a layer's 25 % quartile, median, 75 % quartile and minibatches."""
    low, middle, high, minibatches = values
    return table(reader.NOISE, (2, "a", middle, low, high, minibatches))


def layer_rows(*layers: str) -> str:
    """layers.csv of epoch 0."""
    return table(reader.LAYERS, *((0, layer, *6 * [1]) for layer in layers))


CASES |= {
    "report of a config that is no text": damaged("config.json", b"\xff"),
    "report of a config that is no JSON": damaged("config.json", "{"),
    "report of a config that is a list": damaged("config.json", "[]"),
    "report of a config without settings": damaged("config.json", "{}"),
    "report of an experiment that is none": damaged("config.json", experiment="chess"),
    "report of a parameterization that is none": damaged("config.json", param="../x"),
    "report of a learning rate below 0": damaged("config.json", lr=-1.0),
    "report of a minibatch below 1": damaged("config.json", batch_size=-1),
    "report of a word as a bound": damaged("config.json", v_norm_max="x"),
    "report of another seed": damaged("config.json", seed=2),
    "report of a status that is none": damaged("run.json", status="x"),
    "report of facts that are none": damaged("run.json", facts="x"),
    "report of a table without its columns": damaged("metrics.csv", "a,b\n1,2\n"),
    "report of epochs that are not 1, 2": damaged("metrics.csv", metrics_rows((2, 0.5), (1, 0.5))),
    "report of an error above 1": damaged("metrics.csv", metrics_rows((1, 1.5))),
    "report of layers that are doubled": damaged("layers.csv", layer_rows("a", "a")),
    "report of a learning rate that is none": damaged("config.json", lr=1e-40),
    "report of minutes below 0": damaged("run.json", seconds=-1),
    "report of layers that stand twice": damaged("init.csv", table(reader.INIT, *2 * [(0, "a", 0, 1, 1)])),
    "report of noise out of order": damaged("noise.csv", noise_row(2, 1, 3, 5)),
    "report of noise of no minibatch": damaged("noise.csv", noise_row(1, 2, 3, 0)),
    "report of an unknown data set": report_of("cvae", tiny_cvae(), lambda s: s.update(dataset="x")),
    "report of a time step twice": report_of(
        "draw", tiny_draw(time_steps=2), lambda _: 0, kl_steps=table(reader.KL_STEPS, *2 * [(1, 1, 0.5)])
    ),
    "report of steps that are none": report_of("dqn", tiny_dqn(), lambda _: 0, metrics=dqn_row(agent_steps=-1)),
    "report of a ratio that is none": bench_of(ratios={"wn": 1}),
    "report of a ratio outside its interval": bench_of(ratios={"wn": {"median": 3, "low": 1, "high": 2, "n": 5}}),
    "report of work that is none": bench_of(work={"wn": 1}),
    "report of time steps out of order": damaged("kl_steps.csv", "epoch,time_step,kl_nats\n1,2,0.5\n"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a finished run of the classifier, which needs no data set."""
    results = tmp_path_factory.mktemp("trained") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cifar, "load", classmethod(lambda cls, s, _folder, device: cls(s, make_images(), device)))
        cli.app([*TRAIN.split(), "--quiet", "--results", str(results)], standalone_mode=False)
    return results


@pytest.fixture
def place(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, shutil.copytree(trained, tmp_path / "results"), monkeypatch)


@pytest.fixture(scope="module")
def brought_up() -> set[str]:
    """The cases that have been tested."""
    return set()


@pytest.mark.parametrize("name", CASES)
def test_a_message_says_what_is_wrong_where_and_what_to_do(
    name: str, place: Place, reached: set[tuple[str, int]], brought_up: set[str]
) -> None:
    with pytest.raises(UserError) as raised:
        CASES[name](place)
    brought_up.add(name)
    text = str(raised.value)
    assert not faults(text), text


def test_every_place_that_makes_a_message_is_brought_up(
    reached: set[tuple[str, int]], brought_up: set[str], count: Callable[[str], None]
) -> None:
    if brought_up < CASES.keys():
        pytest.skip("only some of the cases were tested")
    places = sites()
    missing = [
        f"{file}:{first}: {words}"
        for (file, first, last), words in places.items()
        if not any((file, line) in reached for line in range(first, last + 1))
    ]
    count(f"Messages: {len(places)} places that make one, {len(CASES)} cases")
    assert len(places) > 80 and not missing, "\n".join(["no case brings these up:", *missing])


# ------------------------------------------------------------------------------- tracebacks, and what is not foreseen

Command = Callable[..., tuple[int, str, str]]
HINT = "run again with --debug for the traceback"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("watch {tmp}/empty", "{tmp}/empty: holds no run"),
        ("cifar --param wn --lr -1", "--lr -1: give a number above 0"),
        ("data fetch chess --data-dir {tmp}", "chess"),
    ],
)
def test_debug_shows_the_traceback_wherever_it_stands(run: Command, place: Place, words: str, says: str) -> None:
    given = words.format(tmp=place.tmp).split()
    code, printed, sentence = run(*given)
    assert (code, printed) == (2, "") and sentence.startswith("wnrepro: ") and says.format(tmp=place.tmp) in sentence
    assert "Traceback" not in sentence
    for number in range(len(given) + 1):
        code, printed, error = run(*given[:number], "--debug", *given[number:])
        assert (code, printed) == (2, "") and error.endswith(f"\n{sentence}")
        assert error.startswith("Traceback (most recent call last):\n") and "wnrepro.errors.UserError: " in error


def test_debug_is_in_the_help_and_no_option_after_two_dashes(run: Command, place: Place) -> None:
    assert "--debug" in run("--help")[1]
    code, _, error = run("data", "fetch", "--data-dir", place.tmp, "--", "--debug")
    assert code == 2 and "--debug" in error and "Traceback" not in error


DEEP: Any = []
DEEP.append(DEEP)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ZeroDivisionError("by\nnothing\x1b[2J"), f"ZeroDivisionError: by nothing\\x1b[2J; {HINT}"),
        (KeyError("x"), f"KeyError: 'x'; {HINT}"),
        (RecursionError("too deep"), f"RecursionError: too deep; {HINT}"),
        (RuntimeError(1000 * "x"), f"RuntimeError: {285 * 'x'}…; {HINT}"),
        (AssertionError(), f"AssertionError; {HINT}"),
        (
            MemoryError(),
            "out of memory (MemoryError); close other programs, or give a smaller minibatch, model or scale",
        ),
        (
            OSError(28, "No space left on device", "/a/b"),
            "/a/b: No space left on device; free some space, change the permissions, or give another folder",
        ),
        (
            OSError(30, "Read-only file system"),
            "Read-only file system; free some space, change the permissions, or give another folder",
        ),
        (
            OSError(5, "Input/output error"),
            "Input/output error; free some space, change the permissions, or give another folder",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/a"),
            f"FileNotFoundError: [Errno 2] No such file or directory: '/a'; {HINT}",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_nobody_foresaw_is_a_sentence_too(
    run: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(data_files, "data_root", fail)
    sentence = f"wnrepro data: failed, {says}\n"
    assert run("data", "status") == (1, "", sentence)
    code, printed, told = run("data", "status", "--debug")
    assert (code, printed) == (1, "") and told.startswith("Traceback") and told.endswith(sentence)
    assert type(error).__name__ in told.removesuffix(sentence) and "\x1b" not in told


@pytest.mark.parametrize(
    "words",
    [
        "sample {long}",
        "sample {run} --seed 99999999999999999999999",
        "watch {run} --seed 99999999999999999999999",
        "export {long} --tensorboard {tmp}/new",
        "export {run} --tensorboard {long}",
        "report --results {long}",
        "cvae --param wn --data-dir {long}",
        "reproduce draw --plan --results {results} --data-dir {long}",
        "data status --data-dir {long}",
        "cvae --param wn --data-dir ~no-such-user/data",
        "cifar --param wn --scale quick --results /proc/no/such",
    ],
)
def test_words_beyond_all_bounds_are_foreseen(run: Command, place: Place, words: str) -> None:
    code, printed, error = run(*words.format(**vars(place), long=f"{place.tmp}/{300 * 'a'}").split())
    assert code in (1, 2) and printed == "" and error and HINT not in error and "Traceback" not in error


def test_a_failed_run_shows_its_traceback_with_debug_alone(run: Command, place: Place) -> None:
    def fail(self: Cifar, index: object) -> None:
        raise ZeroDivisionError("by\x1b[2J nothing")

    place.patch.setattr(Cifar, "load", classmethod(lambda cls, s, _folder, device: cls(s, make_images(), device)))
    place.patch.setattr(Cifar, "step", fail)
    words = [*TRAIN.split(), "--results", place.tmp / "new"]
    code, printed, error = run(*words)
    (record,) = (place.tmp / "new").rglob("run.json")
    what = "failed, ZeroDivisionError: by\\x1b[2J nothing"
    assert (code, error) == (1, f"{record.parent}: {what}; {HINT}\n")
    assert printed == f"{record.parent}: failed (ZeroDivisionError: by\\x1b[2J nothing)\n"
    assert json.loads(record.read_text())["message"] == "ZeroDivisionError: by\x1b[2J nothing"
    code, _, told = run(*words, "--debug")
    assert code == 1 and told.startswith("Traceback") and told.endswith(error) and "\x1b" not in told


def test_a_failed_run_of_the_grid_shows_its_traceback_with_debug_alone(run: Command, place: Place) -> None:
    def drive(tasks: list[Any], *_: object) -> None:
        for task in tasks:
            task.state = "done"
        tasks[0].state, tasks[0].text = "failed", "ZeroDivisionError: by\nnothing"
        tasks[0].traceback = "Traceback (most recent call last):\n  \x1b\nZeroDivisionError: by nothing\n"

    place.patch.setattr("wnrepro.reproduce.command.drive", drive)
    words = ["reproduce", "draw", "--scale", "quick", "--device", "cpu", "--quiet", "--results", place.tmp / "new"]
    code, printed, error = run(*words)
    assert (code, printed) == (1, "") and error.endswith(f": failed, ZeroDivisionError: by nothing; {HINT}\n")
    assert error.count("\n") == 1
    code, _, told = run(*words, "--debug")
    assert code == 1 and told.startswith("Traceback") and "\n  \\x1b\n" in told
    assert told.endswith(error.replace(f"; {HINT}", ""))


def test_names_and_contents_of_files_cannot_steer_the_terminal(run: Command, place: Place) -> None:
    folder = place.results.rename(place.tmp / "re\x1b[2Jsults\r\udcff")
    (record,) = folder.rglob("config.json")
    record.write_text("{")
    code, printed, error = run(*TRAIN.split(), "--results", folder)
    assert code == 2 and "re\\x1b[2Jsults \\udcff/quick" in error and error.count("\n") == 1
    record.write_text(json.dumps({"settings": {}}))
    for words in (
        ["report", "--results", folder],
        ["report", "--check", "--results", folder],
        ["sample", record.parent],
        ["export", record.parent, "--tensorboard", place.tmp / "new"],
    ):
        code, printed, error = run(*words)
        assert code in (1, 2) and not set(printed + error) & {"\x1b", "\r"}


# ------------------------------------------------------------------------------- exit codes


class Terminal(io.StringIO):
    """A standard input at which somebody sits, who gives no answer, or Ctrl-C."""

    def __init__(self, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.error = error

    def isatty(self) -> bool:
        return True

    def readline(self, *_: Any) -> str:
        if self.error:
            raise self.error
        return ""


@pytest.mark.parametrize(("error", "wanted"), [(None, 1), (KeyboardInterrupt, 130)])
def test_no_answer_to_the_question_removes_nothing(
    run: Command, place: Place, error: type[BaseException] | None, wanted: int
) -> None:
    place.patch.setattr(sys, "stdin", Terminal(error))
    before = {path: path.read_bytes() for path in place.run.iterdir()}
    code, printed, told = run(*TRAIN.split(), "--results", place.results, "--fresh")
    assert code == wanted and "start over?" in printed + told and "Traceback" not in told
    assert {path: path.read_bytes() for path in place.run.iterdir()} == before


# A command's words, and what it calls on its way. Those of sample, watch and bench: test_cli, test_bench.
COMMANDS = {
    "cifar": (f"{TRAIN} --results {{results}}", "wnrepro.cli.check_results"),
    "reproduce": ("reproduce draw --scale quick --plan --results {results}", "wnrepro.reproduce.command.check_results"),
    "report": ("report --results {results}", "wnrepro.report.write_report"),
    "report --check": ("report --check --results {results}", "wnrepro.report.check"),
    "export": ("export {run} --tensorboard {tmp}/new", "wnrepro.export.write_events"),
    "data status": ("data status --data-dir {tmp}/empty", "wnrepro.data.files.status"),
    "data fetch": ("data fetch toy --data-dir {tmp}", "wnrepro.data.files.fetch"),
    "doctor": ("doctor --data-dir {tmp}/empty --results {results}", "wnrepro.doctor.diagnose"),
}
NO_ZERO = {
    "sample": ("sample {run}", "wnrepro.runs.run.open_run"),
    "watch": ("watch {run}", "wnrepro.runs.run.open_run"),
    "bench": ("bench cifar --results {results}", "wnrepro.bench.plain.check_plain"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_exit_code_0_of_what_is_done(run: Command, place: Place, command: str) -> None:
    if command == "data fetch":
        place.patch.setattr(data_files, "DATASETS", {"toy": ()})
    if command == "doctor":
        place.patch.setattr(
            "wnrepro.doctor.diagnose", lambda *_: [Finding("python", "note", "old", "little", "renew it")]
        )
    code, printed, error = run(*COMMANDS[command][0].format(**vars(place)).split())
    assert (code, error) == (0, "") and printed


@pytest.mark.parametrize("command", [*COMMANDS, *NO_ZERO])
@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
        (DiskError("/a: full; make room"), 1),
        (UserError("/a: no"), 2),
    ],
    ids=str,
)
def test_exit_codes_of_what_is_not(run: Command, place: Place, command: str, error: BaseException, wanted: int) -> None:
    words, called = (COMMANDS | NO_ZERO)[command]

    def fail(*_: object, **__: object) -> None:
        raise error

    place.patch.setattr(called, fail)
    code, printed, told = run(*words.format(**vars(place)).split())
    assert (code, printed) == (wanted, "") and "Traceback" not in told and told.count("\n") <= 1


@pytest.mark.parametrize(
    "command", [*SETTINGS, "reproduce", "report", "sample", "watch", "export", "bench", "data", "doctor", ""]
)
def test_exit_code_2_of_words_that_are_none(run: Command, place: Place, command: str) -> None:
    code, printed, error = run(*command.split(), "--no-such")
    assert (code, printed) == (2, "") and "Traceback" not in error


def test_exit_code_1_where_something_is_amiss(run: Command, place: Place) -> None:
    place.patch.setattr("wnrepro.doctor.diagnose", lambda *_: [Finding("gpu", "problem", "none", "time", "buy one")])
    assert run("doctor")[0] == 1
    place.edit("run.json", epoch=1)
    code, printed, error = run("report", "--check", "--results", place.results)
    assert (code, error) == (1, "") and "metrics.csv has 2 epochs, run.json 1" in printed


# ------------------------------------------------------------------------------- processes


def process(*words: object, **more: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "wnrepro", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **more)


def test_a_reader_that_goes_away_is_no_error(place: Place) -> None:
    for words in (["data", "status", "--data-dir", place.tmp], [*TRAIN.split(), "--results", place.results]):
        reads, writes = os.pipe()
        os.close(reads)
        with process(*words, stdout=writes) as gone:
            os.close(writes)
            assert gone.stderr is not None and gone.stderr.read() == ""
        assert gone.returncode == 1


def test_a_full_disk_behind_standard_output_is_a_sentence(place: Place) -> None:
    with open("/dev/full", "w") as full, process("data", "status", "--data-dir", place.tmp, stdout=full) as done:
        assert done.stderr is not None
        assert done.stderr.read() == (
            "wnrepro: standard output: No space left on device; make room there, or write elsewhere\n"
        )
    assert done.returncode == 1


def test_letters_that_a_terminal_lacks_are_no_error(place: Place) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "wnrepro", "data", "status", "--data-dir", f"{place.tmp}/Köln"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "K\\xf6ln" in done.stdout


def test_ctrl_c_waits_until_an_import_is_done(place: Place) -> None:
    (place.tmp / "interrupted.py").write_text("import os\nos.kill(os.getpid(), 2)\nwhole = True\n")
    place.patch.syspath_prepend(str(place.tmp))
    with pytest.raises(KeyboardInterrupt):
        preflight.import_uninterrupted("interrupted")
    assert sys.modules.pop("interrupted").whole


class Interrupts:
    """Ctrl-C as the command line is imported."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "wnrepro.cli":
            raise KeyboardInterrupt


def test_ctrl_c_before_the_command_line_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wnrepro.cli")
    monkeypatch.delattr(wnrepro, "cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts, *sys.meta_path])
    with pytest.raises(SystemExit) as stop:
        wnrepro.__main__.main()
    assert stop.value.code == 130


BEGIN = "import os\nfrom wnrepro.__main__ import main\nos.write(1, b'.')\nmain()"  # Python itself has begun


def test_ctrl_c_at_any_moment_is_no_traceback(
    place: Place, times: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    codes: list[int] = []
    for _ in range(tries := times(4, 100)):
        words, done, longest = random.choice([(["--help"], 0, 0.8), (["sample", str(place.tmp / "empty")], 2, 4.0)])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", BEGIN, *words], text=True, **pipes) as stopped:
            assert stopped.stdout is not None and stopped.stdout.read(1) == "."
            time.sleep(random.uniform(0.02, longest))
            stopped.send_signal(signal.SIGINT)
            _, error = stopped.communicate()
        assert not re.search("Traceback|ignored|terminate", error), error
        assert stopped.returncode in (130, done, -signal.SIGINT)  # the last as Python ends
        codes.append(stopped.returncode)
    count(f"Ctrl-C: {tries} at random moments, {codes.count(130)} with exit code 130, no traceback")

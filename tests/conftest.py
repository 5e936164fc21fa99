"""Fixtures that several test modules share; --few and --soak; checks of shapes."""

import math
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from factories import make_images, set_scale_short, tiny_cifar
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

from wnrepro.cli import main
from wnrepro.data.images import Images
from wnrepro.runs.directory import RunDirectory
from wnrepro.settings import CifarSettings

COUNTED = pytest.StashKey[list[str]]()
HOLDER = """
import pickle, sys
from wnrepro.runs.directory import RunDirectory
with RunDirectory(*pickle.loads(bytes.fromhex(sys.argv[1]))):
    print(flush=True)
    sys.stdin.read()
"""
# Modules whose annotations, jaxtyping's shapes among them, are checked at every call.
CHECKED = ("data.whitening", "drawing", "experiments", "identities", "measurements", "optim", "parameterization")
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float too
PROFILES = {"few": 5, "many": 40, "soak": 20_000}  # hypothesis examples of a test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write tests/report/golden.md anew")
    parser.addoption("--few", action="store_true", help="few examples of each property: `make test`")
    parser.addoption("--soak", action="store_true", help="as many tries as docs/log/robustness.md reports: hours")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTED] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background command ignores Ctrl-C
    for name, examples in PROFILES.items():
        steady = name != "soak"  # what has passed once passes again
        hypothesis.settings.register_profile(name, max_examples=examples, deadline=None, derandomize=steady)
    profile = "soak" if config.getoption("--soak") else "few" if config.getoption("--few") else "many"
    hypothesis.settings.load_profile(profile)
    assert not any(name.startswith(("wnrepro.experiments.", "wnrepro.parameterization")) for name in sys.modules)
    install_import_hook([f"wnrepro.{name}" for name in CHECKED], CHECKER)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    if config.getoption("--soak"):  # only those that then try more
        items[:] = [
            item
            for item in items
            if {"times", "count"}.intersection(item.fixturenames) or hasattr(item.function, "hypothesis")
        ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests of robustness have counted with --soak: the figures of docs/log/robustness.md."""
    for line in config.stash[COUNTED] if config.getoption("--soak") else []:
        terminalreporter.write_line(line)


@pytest.fixture
def times(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """times(few, many): how often to try something, many times with --soak."""
    return lambda few, many: many if pytestconfig.getoption("--soak") else few


@pytest.fixture
def count(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """count("200 kills, 0 rows lost"): a line at the end of the tests with --soak."""
    return pytestconfig.stash[COUNTED].append


@pytest.fixture
def hold() -> Iterator[Callable[[RunDirectory], subprocess.Popen[bytes]]]:
    """hold(there) → another process, which holds the run's directory until it is killed."""
    processes = []

    def start(there: RunDirectory) -> subprocess.Popen[bytes]:
        given = pickle.dumps((there.folder.parents[3], there.experiment, there.config["scale"], there.settings)).hex()
        command = [sys.executable, "-c", HOLDER, given]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert processes[-1].stdout is not None and processes[-1].stdout.readline() == b"\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tests' tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process save after every epoch, for tests that read their files or stop them after some epoch."""
    monkeypatch.setattr("wnrepro.runs.run.SAVE_SHARE", math.inf)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No checks of annotations, which torch.compile cannot trace."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for torch's graphs, so that steps are recorded on the CPU."""
    from graph_factories import record_graphs

    record_graphs(monkeypatch)


@pytest.fixture(scope="session")
def images() -> Images:
    return make_images()


@pytest.fixture
def tiny() -> Callable[..., CifarSettings]:
    """Settings of a run that takes a second: tiny(param, **changes)."""
    return tiny_cifar


@pytest.fixture
def made_up_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_scale_short` for a test."""
    set_scale_short(monkeypatch)


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, for the tests that read report.md only."""
    monkeypatch.setattr("wnrepro.report.figures.draw", lambda *given: {})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(*words) → (exit code, stdout, stderr) of the command line, in this process."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wnrepro", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *capsys.readouterr()

    return call

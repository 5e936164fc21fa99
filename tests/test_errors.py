"""What is printed of an error, with which exit code a command ends, and how a process ends."""

import errno
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from factories import make_run

import wnrepro.__main__
from wnrepro import preflight
from wnrepro.data import files
from wnrepro.errors import HINT, DiskError, UserError, describe

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ZeroDivisionError("by\nnothing\x1b[2J"), f"ZeroDivisionError: by nothing\\x1b[2J; {HINT}"),
        (AssertionError(), f"AssertionError; {HINT}"),
        (RuntimeError(1000 * "x"), f"RuntimeError: {285 * 'x'}…; {HINT}"),
        (MemoryError(), "out of memory (MemoryError)"),
        (RuntimeError("CUDA error: OutOfMemory"), "out of memory (RuntimeError: "),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device; "),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unforeseen_error_is_one_line_with_its_traceback_on_request(
    run: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    assert describe(error).startswith(says)
    monkeypatch.setattr(files, "data_root", Mock(side_effect=error))
    sentence = f"wnrepro data: failed, {describe(error)}\n"
    assert run("data", "status") == (1, "", sentence)
    code, printed, shown = run("data", "status", "--debug")
    assert (code, printed) == (1, "")
    assert shown.startswith("Traceback") and shown.endswith(sentence)
    assert type(error).__name__ in shown.removesuffix(sentence)
    assert "\x1b" not in shown


def test_debug_may_stand_anywhere_before_two_dashes(run: Command, tmp_path: Path) -> None:
    words = ["data", "fetch", "chess", "--data-dir", str(tmp_path)]
    code, _, sentence = run(*words)
    assert code == 2 and "chess" in sentence and "Traceback" not in sentence
    for number in range(len(words) + 1):
        code, _, error = run(*words[:number], "--debug", *words[number:])
        assert code == 2 and error.startswith("Traceback") and error.endswith(f"\n{sentence}")
    assert "--debug" in run("--help")[1]
    code, _, error = run("data", "fetch", "--data-dir", tmp_path, "--", "--debug")
    assert code == 2 and "--debug" in error and "Traceback" not in error


def test_a_failed_run_of_the_grid_shows_its_traceback_with_debug_only(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drive(tasks: list[Any], *_: object) -> None:
        for task in tasks:
            task.state = "done"
        tasks[0].state, tasks[0].text = "failed", "ZeroDivisionError: by\nnothing"
        tasks[0].traceback = "Traceback (most recent call last):\n  \x1b\nZeroDivisionError: by nothing\n"

    monkeypatch.setattr("wnrepro.reproduce.command.drive", drive)
    words = ["reproduce", "draw", "--scale", "quick", "--device", "cpu", "--quiet", "--results", tmp_path / "new"]
    code, printed, error = run(*words)
    assert (code, printed, error.count("\n")) == (1, "", 1)
    assert "ZeroDivisionError: by nothing" in error
    code, _, shown = run(*words, "--debug")
    assert code == 1 and shown.startswith("Traceback") and "\n  \\x1b\n" in shown


# ------------------------------------------------------------------------------- exit codes

COMMANDS = [  # a command's words, and what it calls on its way
    ("cifar --param wn --scale quick --results {tmp}/new", "wnrepro.cli.check_results"),
    ("reproduce draw --scale quick --plan --results {tmp}/new", "wnrepro.reproduce.command.check_results"),
    ("report --results {tmp}", "wnrepro.report.write_report"),
    ("report --check --results {tmp}", "wnrepro.report.check"),
    ("export {run} --tensorboard {tmp}/new", "wnrepro.export.write_events"),
    ("data status --data-dir {tmp}/new", "wnrepro.data.files.status"),
    ("data fetch mnist --data-dir {tmp}", "wnrepro.data.files.fetch"),
    ("doctor --data-dir {tmp}/new --results {tmp}", "wnrepro.doctor.diagnose"),
    ("sample {run}", "wnrepro.trained.open_run"),
    ("watch {run}", "wnrepro.trained.open_run"),
    ("bench cifar --results {tmp}", "wnrepro.bench.plain.check_plain"),
]
ERRORS = [(KeyboardInterrupt(), 130), (ZeroDivisionError(), 1), (DiskError("/a: full"), 1), (UserError("/a: no"), 2)]


@pytest.mark.parametrize(("words", "called"), COMMANDS)
def test_exit_codes_of_errors(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, called: str
) -> None:
    folder = make_run(tmp_path)
    for error, expected in ERRORS:
        monkeypatch.setattr(called, Mock(side_effect=error))
        code, printed, said = run(*words.format(tmp=tmp_path, run=folder).split())
        assert (code, printed) == (expected, "")
        assert "Traceback" not in said and "\n" not in said.strip("\n")


@pytest.mark.parametrize(("error", "expected"), [(None, 1), (KeyboardInterrupt, 130)])
def test_without_consent_nothing_is_removed(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None, expected: int
) -> None:
    words = ("cifar", "--param", "wn", "--scale", "quick", "--device", "cpu", "--results", tmp_path)
    folder = make_run(tmp_path, scale="quick")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    terminal = io.StringIO()  # a user who gives no answer, or presses Ctrl-C
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(terminal, "readline", Mock(side_effect=error, return_value=""))
    monkeypatch.setattr(sys, "stdin", terminal)
    code, printed, said = run(*words, "--fresh")
    assert code == expected and str(folder) in printed + said and "Traceback" not in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# ------------------------------------------------------------------------------- processes


def process(*words: object, unbuffered: str = "", **more: Any) -> subprocess.Popen[str]:
    """The command line in a separate process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "wnrepro", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **more)


@pytest.mark.parametrize(
    "words",
    [["data", "status"], pytest.param(["cifar", "--param", "wn", "--scale", "quick"], marks=pytest.mark.slow)],
)
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    folder = "--data-dir" if words[0] == "data" else "--results"
    with process(*words, folder, tmp_path, stdout=writes) as gone:
        os.close(writes)
        assert gone.stderr is not None
        assert gone.stderr.read().removeprefix("loading torch…\n") == ""
    assert gone.returncode == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["data", "status", "--data-dir", "none"], ["--help"]])
def test_a_full_disk_behind_standard_output_is_a_sentence(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full, process(*words, unbuffered=unbuffered, stdout=full) as done:
        assert done.stderr is not None
        error = done.stderr.read()
    assert done.returncode == 1 and "standard output" in error and error.count("\n") == 1


def test_letters_that_a_terminal_lacks_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with process("data", "status", "--data-dir", tmp_path / "Köln", stdout=subprocess.PIPE) as done:
        printed, error = done.communicate()
    assert (done.returncode, error) == (0, "") and "K\\xf6ln" in printed


def test_ctrl_c_waits_until_an_import_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        preflight.import_uninterrupted("interrupted")
    assert sys.modules.pop("interrupted").whole


def test_ctrl_c_before_the_command_line_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = Mock(find_spec=Mock(side_effect=KeyboardInterrupt))
    monkeypatch.delitem(sys.modules, "wnrepro.cli")
    monkeypatch.delattr(wnrepro, "cli")
    monkeypatch.setattr(sys, "meta_path", [finder])
    with pytest.raises(SystemExit) as stop:
        wnrepro.__main__.main()
    assert stop.value.code == 130


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("wnrepro.cli.main", lambda: None)
    wnrepro.__main__.main()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("error", ["ImportError('libcudart.so.13: no such file')", "OSError('libgomp.so: too old')"])
@pytest.mark.parametrize("command", ["cifar --param wn --scale quick", "bench", "reproduce draw --scale quick --quiet"])
def test_torch_that_does_not_load_ends_a_command_in_words(command: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}")
    script = tmp_path / "script.py"
    script.write_text("from wnrepro.__main__ import main\nif __name__ == '__main__':\n    main()\n")
    words = [sys.executable, str(script), *command.split(), "--results", str(tmp_path / "results")]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    lines = [line for line in done.stderr.splitlines() if line != "loading torch…"]
    runs = 5 if command.startswith("reproduce") else 1
    assert (done.returncode, done.stdout, len(lines)) == (1, "", runs), done.stderr
    assert all("torch does not load" in line and "wnrepro doctor" in line for line in lines)
    assert not (tmp_path / "results").exists()


BEGIN = "import os\nfrom wnrepro.__main__ import main\nos.write(1, b'.')\nmain()"  # Python itself has begun


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_no_traceback(
    tmp_path: Path, times: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    codes: list[int] = []
    for _ in range(tries := times(4, 100)):
        words, done, longest = random.choice([(["--help"], 0, 0.8), (["sample", str(tmp_path)], 2, 4.0)])
        command = [sys.executable, "-c", BEGIN, *words]
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stopped:
            assert stopped.stdout is not None
            assert stopped.stdout.read(1) == "."
            time.sleep(random.uniform(0.02, longest))
            stopped.send_signal(signal.SIGINT)
            _, error = stopped.communicate()
        assert not re.search("Traceback|ignored|terminate", error), error
        assert stopped.returncode in (130, done, -signal.SIGINT)  # the last as Python ends
        codes.append(stopped.returncode)
    count(f"Ctrl-C: {tries} at random moments, {codes.count(130)} with exit code 130, no traceback")

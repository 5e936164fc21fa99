"""`make install` on fresh machines, with programs on the PATH that answer in place of Python, pip and wnrepro."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
# A Python of which the checks ask for the version and for venv, and that makes a .venv.
PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) echo {version} ;;
    *ensurepip*) {ensurepip} ;;
    "-m venv "*)
        for last; do :; done
        echo "$@" >> log
        mkdir -p "$last/bin"
        for name in python{version} pip wnrepro; do cp fake-$name "$last/bin/$name" ;  done ;;
    *) exit 9 ;;
esac
"""
DOCTOR = """#!/bin/sh
echo "ok       torch: loads"
"""
Make = Callable[..., subprocess.CompletedProcess[str]]


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a folder with what `make install` reads, and with its own PATH in bin."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(TOP / name, tmp_path)
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "fake-pip", '#!/bin/sh\necho "$@" >> log\n')
    write_program(tmp_path / "fake-wnrepro", DOCTOR)
    return tmp_path


@pytest.fixture
def python(clone: Path) -> Callable[..., None]:
    """python(version, ensurepip, name): put such a Python on the PATH."""

    def write(version: str = "3.11", ensurepip: str = "true", name: str = "python3") -> None:
        write_program(clone / "bin" / name, PYTHON.format(version=version, ensurepip=ensurepip))
        write_program(clone / f"fake-python{version}", "#!/bin/sh\n")

    return write


def start(clone: Path, *words: str) -> subprocess.Popen[str]:
    """Start make where no Python but those of the test is found."""
    for name in ("sh", "make", "grep", "rm", "touch", "mkdir", "cp", "sleep"):
        if not (clone / "bin" / name).exists():
            (clone / "bin" / name).symlink_to(str(shutil.which(name)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= {"PATH": str(clone / "bin")}
    environment.pop("PYTHON", None)
    command = ["make", "install", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=clone, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def make(clone: Path, *words: str) -> tuple[int, str, str]:
    """Return make's exit code, its output, and what the recipe complained about."""
    with start(clone, *words) as process:
        printed, errors = process.communicate(timeout=60)
    said = [line for line in errors.splitlines() if not line.startswith("make: ")]
    return process.returncode, printed, "\n".join(said)


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10"])
def test_an_older_python_is_refused_by_its_version(clone: Path, python: Callable[..., None], version: str) -> None:
    python(version)
    code, printed, said = make(clone)
    assert (code, printed, said.count("\n")) == (2, "", 0)
    assert {version, "3.11", "python3"} < {word.strip(",;:") for word in said.split()} and "PYTHON=" in said
    assert not (clone / ".venv").exists()


def test_a_missing_python_is_refused(clone: Path) -> None:
    code, printed, said = make(clone, "PYTHON=python3.12")
    assert (code, printed, said.count("\n")) == (2, "", 0) and "python3.12" in said


def test_a_python_without_ensurepip_is_refused_with_the_package(clone: Path, python: Callable[..., None]) -> None:
    python("3.12", ensurepip="exit 1")
    code, printed, said = make(clone)
    assert (code, printed, said.count("\n")) == (2, "", 0) and "python3.12-venv" in said


@pytest.mark.parametrize(("version", "warned"), [("3.11", False), ("3.12", False), ("3.13", False), ("3.14", True)])
def test_an_install_says_what_comes_and_what_there_is(
    clone: Path, python: Callable[..., None], version: str, warned: bool
) -> None:
    python(version, name="python9")
    code, printed, said = make(clone, "PYTHON=python9")
    first, torch, ready = printed.splitlines()
    pins = sum("==" in line and line[0].isalpha() for line in (clone / "requirements.txt").read_text().splitlines())
    assert code == 0 and f" {pins} packages" in first
    assert torch == "ok       torch: loads" and "reproduce-quick" in ready
    assert (version in said) == warned == bool(said)
    venv, pinned, own = (clone / "log").read_text().splitlines()
    assert venv.endswith(".venv") and "--require-hashes" in pinned and "--no-deps" in own
    assert make(clone)[:2] == (0, "make: Nothing to be done for 'install'.\n")


def test_only_a_finished_venv_of_the_same_python_is_kept(clone: Path, python: Callable[..., None]) -> None:
    for version, finished, cleared in (("3.11", False, True), ("3.11", True, False), ("3.12", True, True)):
        python(version)
        (clone / "log").unlink(missing_ok=True)
        assert (clone / ".venv/installed").exists() == finished
        if finished:
            os.utime(clone / ".venv/installed", (1, 1))  # older than the pins
        assert make(clone)[0] == 0
        assert ("--clear" in (clone / "log").read_text().splitlines()[0]) == cleared


def test_an_install_with_a_problem_does_not_call_itself_ready(clone: Path, python: Callable[..., None]) -> None:
    python()
    write_program(clone / "fake-wnrepro", "#!/bin/sh\necho 'problem  torch: does not load'\nexit 1\n")
    code, printed, _ = make(clone)
    assert code == 0 and "problem  torch: does not load" in printed and "reproduce-quick" not in printed


@pytest.mark.parametrize("program", ["pip", "wnrepro"])
def test_a_failure_leaves_no_finished_install(clone: Path, python: Callable[..., None], program: str) -> None:
    python()
    working = (clone / f"fake-{program}").read_text()
    write_program(clone / f"fake-{program}", "#!/bin/sh\nexit 1\n")
    assert make(clone)[0] == 2 and not (clone / ".venv/installed").exists()
    write_program(clone / f"fake-{program}", working)
    assert make(clone)[0] == 0 and (clone / ".venv/installed").exists()


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_install_is_done_again(clone: Path, python: Callable[..., None], again: bool) -> None:
    """Also one that follows a change of the pins."""
    python()
    working = (clone / "fake-pip").read_text()
    if again:
        assert make(clone)[0] == 0
        os.utime(clone / ".venv/installed", (1, 1))  # older than the pins
    write_program(clone / "fake-pip", "#!/bin/sh\necho > reached\nexec sleep 60\n")
    with start(clone) as process:
        while not (clone / "reached").exists():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
    assert not (clone / ".venv/installed").exists()
    write_program(clone / "fake-pip", working)
    assert make(clone)[0] == 0 and (clone / ".venv/installed").exists()

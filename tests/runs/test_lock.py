"""The lock of a run's directory on file systems without flock."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import filelock
import pytest
from factories import same_tables, tiny_draw

from wnrepro.reproduce.plan import state
from wnrepro.runs import lock
from wnrepro.runs.directory import LockedError, RunDirectory
from wnrepro.runs.lock import Lock, Owner, namespace, process_start

LIBRARY = "#include <errno.h>\nint flock(int file, int operation) { errno = ENOSYS; return -1; }\n"


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    monkeypatch.setattr(lock, "PATIENCE", 0.1)


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_lock_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
    one, other = Lock(tmp_path), Lock(tmp_path)
    assert not one.held()
    one.acquire("2027-01-01T00:00:00Z")
    assert (
        other.held()
        and other.holder() == f"process {os.getpid()} on {socket.gethostname()}, since 2027-01-01T00:00:00Z,"
    )
    with pytest.raises(filelock.Timeout):
        other.acquire("")
    assert str(one.path) in other.remedy
    one.release()
    assert not other.held() and not [*tmp_path.iterdir()]
    other.acquire("")
    other.release()


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


SPACE = {"namespace": namespace()}
HERE = {"host": socket.gethostname()} | SPACE
OWNERS: dict[str, tuple[bool, str | None, dict[str, Any] | None]] = {  # held, the content of lock, lock-owner.json
    "dead": (False, "{dead}\n{host}\n", {"pid": 0, **HERE}),
    "another process has its number": (False, "{own}\n{host}\n1\n", {"pid": 1, "start": "long ago", **HERE}),
    "alive": (True, "{own}\n{host}\n", {"pid": 1, "start": process_start(os.getpid()), **HERE}),
    "alive, its start is unknown": (True, "{own}\n{host}\n", {"pid": 1, **HERE}),
    "on another machine": (True, "{dead}\nelsewhere\n", {"pid": 0, "host": "elsewhere"}),
    "in a container": (True, "{dead}\n{host}?pidns-1\n", {"pid": 0, **HERE, "namespace": "pid:[1]"}),
    "killed with flock": (False, "", {"pid": 0, **HERE}),
    "released with flock": (False, "", None),
    "of an earlier version, dead": (False, "process {dead} on {host}, since 2026-01-01T00:00:00Z,\n", None),
    "of an earlier version, alive": (True, "process {own} on {host}, since 2026-01-01T00:00:00Z,\n", None),
    "killed before it was named": (False, "{dead}\n{host}\n", None),
}


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("case", OWNERS)
def test_only_a_dead_process_loses_its_lock(tmp_path: Path, case: str) -> None:
    held, text, owner = OWNERS[case]
    made, dead = Lock(tmp_path), ended()
    made.path.write_text((text or "").format(dead=dead, own=os.getpid(), host=socket.gethostname()))
    if owner:
        made.owner_path.write_text(json.dumps(owner | {"pid": os.getpid() if owner["pid"] else dead}))
    assert made.held() == held
    if held:
        with pytest.raises(filelock.Timeout):
            made.acquire("")
        assert made.path.exists()
    else:
        made.acquire("")
        assert made.owner() == Owner(pid=os.getpid(), start=process_start(os.getpid()) or "", **HERE)


@pytest.mark.usefixtures("no_flock")
def test_two_processes_do_not_take_over_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.path.write_text(f"{ended()}\n{socket.gethostname()}\n")
    abandoned = second.abandoned

    def slow() -> bool:
        found = abandoned()
        first.acquire("")
        return found

    monkeypatch.setattr(second, "abandoned", slow)
    with pytest.raises(filelock.Timeout):
        second.acquire("")
    assert Lock(tmp_path).held() and {path.name for path in tmp_path.iterdir()} == {"lock", "lock-owner.json"}


def test_lock_that_is_released_during_the_test_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert not Lock(tmp_path).held()


@pytest.mark.usefixtures("no_flock")
def test_machine_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Jo's box")
    made = Lock(tmp_path)
    made.acquire("")
    assert made.owner() == Owner(pid=os.getpid(), host="Jo-s-box", start=process_start(os.getpid()) or "", **SPACE)


def test_processes_are_told_apart() -> None:
    assert process_start(ended()) is None
    with subprocess.Popen(["sleep", "100"]) as other:
        first = process_start(other.pid)
        assert first == process_start(other.pid) != process_start(os.getpid()) and first
        other.kill()
    with subprocess.Popen(["sleep", "0"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert not Path("/proc/self/stat").exists() or process_start(zombie.pid) is None


@pytest.mark.slow
def test_run_killed_without_flock_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a library without flock")
    source, library = tmp_path / "flock.c", tmp_path / "flock.so"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    changes: dict[str, Any] = {"train_examples": 200, "test_examples": 100, "batch_size": 20, "units": 8}
    changes |= {"latents": 3, "time_steps": 3, "epochs": 30}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    command = [sys.executable, "-m", "wnrepro", "draw", "--param=wn", "--scale=quick", "--device=cpu", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    without = environment | {"LD_PRELOAD": str(library)}
    places = [RunDirectory(tmp_path / name, "draw", "quick", tiny_draw(**changes)) for name in ("killed", "whole")]
    killed, whole = ([*command, f"--results={place.folder.parents[3]}"] for place in places)
    with subprocess.Popen(killed, env=without, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not places[0].folder.joinpath("checkpoint.pt").exists():
            assert process.poll() is None
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "none")))
            assert state(places[0]).name == "running"
            with (
                pytest.raises(LockedError, match=rf"process {process.pid} on .*remove {places[0].lock.path}$"),
                places[0],
            ):
                pass
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert state(places[0]).name == "stopped" and places[0].lock.path.exists()
    done = subprocess.run(killed, env=without, capture_output=True, text=True, check=True)
    assert done.stderr == "loading torch…\n"
    subprocess.run(whole, env=environment, capture_output=True, check=True)
    same_tables(places[0].folder, places[1].folder)

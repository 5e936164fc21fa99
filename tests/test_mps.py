"""NVIDIA's MPS, by a made-up control program: started, ended whatever happens, left alone, or not there."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wnrepro import mps

Control = Callable[..., Callable[[], list[str]]]


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Control:
    """control(code=0) → what was asked of a made-up nvidia-cuda-mps-control, whose start ends with this code."""
    log = tmp_path / "control.log"

    def put_on_the_path(code: int = 0) -> Callable[[], list[str]]:
        script = tmp_path / "bin" / mps.PROGRAM
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\n[ "$1" = -d ] && asked=start || asked=$(cat)\n'
            f'echo "$asked $CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY ${{CUDA_VISIBLE_DEVICES-all}}" >> {log}\n'
            f'[ "$asked" = quit ] || exit {code}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        return lambda: log.read_text().splitlines() if log.exists() else []

    monkeypatch.setattr(mps, "PROBE", "")  # there is no GPU that it could use
    monkeypatch.setattr(mps, "STANDARD", tmp_path / "none")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return put_on_the_path


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_mps_is_started_for_the_processes_within_and_ended_whatever_happens(
    control: Control, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    asked = control()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    before = dict(os.environ)
    with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt), mps.mps(["cuda:0", "cuda:1"]) as on:
        child = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        theirs = json.loads(subprocess.run(child, capture_output=True, check=True).stdout)
        folder = theirs["CUDA_MPS_PIPE_DIRECTORY"]
        assert on
        assert Path(folder).is_dir()
        assert theirs["CUDA_MPS_LOG_DIRECTORY"] == folder
        assert theirs["CUDA_VISIBLE_DEVICES"] == "0,1"  # which the daemon calls 2 and 5 by these numbers
        assert asked() == [f"start {folder} {folder} 2,5"]
        if error:
            raise error
    assert asked()[1:] == [f"quit {folder} {folder} 2,5"]
    assert not Path(folder).exists()
    assert os.environ == before


def test_mps_ends_with_its_starter_even_by_kill_9(control: Control) -> None:
    asked = control()
    code = "import sys, time\nfrom wnrepro import mps\nmps.PROBE = ''\nmps.STANDARD = mps.Path('/none')\n"
    code += "with mps.mps(['cuda']) as on:\n    print(on, flush=True)\n    time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        process.kill()
    folder, end = Path(asked()[0].split()[1]), time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert [line.split()[0] for line in asked()] == ["start", "quit"]
    assert not folder.exists()


@pytest.mark.parametrize(("code", "probe"), [(1, ""), (0, "1 / 0"), (None, "")])
def test_mps_is_not_used_if_it_does_not_start_or_serve(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, probe: str
) -> None:
    asked, said = control(code or 0), list[str]()
    monkeypatch.setattr(mps, "PROBE", probe)
    if code is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    before = dict(os.environ)
    with mps.mps(["cuda:0"], said.append) as on:
        assert not on
        assert os.environ == before
    assert len(said) == 1 and mps.PROGRAM in said[0]
    # quit, in case it is there all the same
    assert [line.split()[0] for line in asked()] == ([] if code is None else ["start", "quit"])


def test_mps_that_is_running_is_used_and_left_running(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = control()
    with mps.mps(["cpu"]) as on:
        assert not on
    (tmp_path / "control").touch()
    for socket, folder in ((tmp_path / "control", ""), (tmp_path / "none", "/somewhere")):
        monkeypatch.setattr(mps, "STANDARD", socket)
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", folder)
        with mps.mps(["cuda:0"]) as on:
            assert on
    assert not asked()

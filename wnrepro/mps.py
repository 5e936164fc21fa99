"""NVIDIA's MPS daemon, which lets processes compute on one GPU at the same time; without it they take turns.

This module changes no GPU settings and does not import torch.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

PROGRAM = "nvidia-cuda-mps-control"
STANDARD = Path("/tmp/nvidia-mps/control")  # exists if a daemon was started without CUDA_MPS_PIPE_DIRECTORY
START_SECONDS = 60.0  # limit for starting the daemon, and the first process that uses it
END_SECONDS = 10.0

# A script that computes nothing, and fails if it cannot use a GPU.
PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
raise SystemExit(bool(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)))
"""
# A script that ends the daemon when its input closes, so that the daemon ends with the process that started it.
WATCH = 'cat > /dev/null; echo quit | "$0"; rm -r "$CUDA_MPS_PIPE_DIRECTORY"'


def running() -> bool:
    """Test whether a daemon runs that processes find without further settings."""
    return bool(os.environ.get("CUDA_MPS_PIPE_DIRECTORY")) or STANDARD.exists()


def missing() -> str:
    """Return why processes cannot share a GPU, or an empty string if they can."""
    return "" if running() or shutil.which(PROGRAM) else f"{PROGRAM} is not on the PATH"


@contextlib.contextmanager
def mps(devices: Sequence[str], say: Callable[[str], object] = lambda _: None) -> Iterator[bool]:
    """Let processes share these GPUs during the block, by a running or new daemon, and yield whether they can.

    A new daemon ends with the block. `say` receives a message, except on a CPU.
    """
    program = shutil.which(PROGRAM)
    if devices[0] == "cpu":
        yield False
    elif running():
        on = _succeeds([sys.executable, "-c", PROBE], {})
        say(
            "MPS: processes share a GPU through the running daemon"
            if on
            else "MPS: the running daemon serves no process"
        )
        yield on
    else:
        with _daemon(program) if program else contextlib.nullcontext(missing()) as failure:
            turns = f"no MPS ({failure}): processes on one GPU take turns"
            say(turns if failure else f"MPS: started {PROGRAM}, so that processes share a GPU")
            yield not failure


@contextlib.contextmanager
def _daemon(program: str) -> Iterator[str]:
    """Start a daemon for the processes of the block, set their environment, and yield why it failed, or nothing."""
    folder = tempfile.mkdtemp(prefix="wnrepro-mps-")
    ours = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    theirs = dict(ours)
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):  # the daemon numbers the visible ones from 0
        theirs["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(visible.count(",") + 1)))
    before = {name: value for name, value in os.environ.items() if name in theirs}
    null = subprocess.DEVNULL
    watch = subprocess.Popen(
        ["sh", "-c", WATCH, program],
        stdin=subprocess.PIPE,
        stdout=null,
        stderr=null,
        env=os.environ | ours,
        start_new_session=True,  # so that Ctrl-C does not stop it
    )
    assert watch.stdin is not None
    try:
        if not _succeeds([program, "-d"], ours):
            yield f"{PROGRAM} does not start"
        elif not _succeeds([sys.executable, "-c", PROBE], theirs):
            yield f"{PROGRAM} serves no process"
        else:
            os.environ.update(theirs)
            yield ""
    finally:
        for name in theirs:
            os.environ.pop(name, None)
        os.environ.update(before)
        watch.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watch.wait(END_SECONDS)


def _succeeds(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Test whether a command with these environment variables exits with 0."""
    null, env = subprocess.DEVNULL, os.environ | environment
    try:
        subprocess.run(command, env=env, stdin=null, stdout=null, stderr=null, timeout=START_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True

"""NVIDIA's MPS, by whose daemon processes compute on one GPU at the same time; without it they take turns.

Nothing of a GPU's settings is touched. Imports no torch.
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
STANDARD = Path("/tmp/nvidia-mps/control")  # of a daemon that was started without CUDA_MPS_PIPE_DIRECTORY
START_SECONDS = 60.0  # that the daemon, and the first process that uses it, may take
END_SECONDS = 10.0

# A process that computes nothing, and fails where it cannot use a GPU.
PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
raise SystemExit(bool(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)))
"""
# Ends the daemon when its input does, so that no daemon outlives the process that started it, however that ends.
WATCH = 'cat > /dev/null; echo quit | "$0"; rm -r "$CUDA_MPS_PIPE_DIRECTORY"'


def running() -> bool:
    """Whether there is a daemon that processes find by themselves."""
    return bool(os.environ.get("CUDA_MPS_PIPE_DIRECTORY")) or STANDARD.exists()


def missing() -> str:
    """Why processes cannot share a GPU here; nothing where they could."""
    return "" if running() or shutil.which(PROGRAM) else f"{PROGRAM} is not on the PATH"


@contextlib.contextmanager
def mps(devices: Sequence[str], say: Callable[[str], object] = lambda _: None) -> Iterator[bool]:
    """Whether the processes that start within truly share these GPUs: by the daemon that is running, or by a new one.

    A new one ends with the block. `say` is given a sentence, unless the devices are no GPUs.
    """
    program = shutil.which(PROGRAM)
    if devices[0] == "cpu":
        yield False
    elif running():
        on = works([sys.executable, "-c", PROBE], {})
        say("MPS: the daemon that is running lets processes share a GPU" if on else "MPS: the daemon serves no process")
        yield on
    elif program is None:
        say(f"no MPS, {missing()}: processes on one GPU take turns")
        yield False
    else:
        with daemon(program) as failure:
            if failure:
                say(f"no MPS, {failure}: processes on one GPU take turns")
            else:
                say(f"MPS: {PROGRAM} started, processes share a GPU")
            yield not failure


@contextlib.contextmanager
def daemon(program: str) -> Iterator[str]:
    """A daemon that processes find which start within, by their environment; why there is none, or nothing."""
    folder = tempfile.mkdtemp(prefix="wnrepro-mps-")
    ours = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    theirs = dict(ours)
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):  # the daemon numbers those that it sees from 0 on
        theirs["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(visible.count(",") + 1)))
    before = {name: value for name, value in os.environ.items() if name in theirs}
    watch = subprocess.Popen(
        ["sh", "-c", WATCH, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | ours,
        start_new_session=True,  # Ctrl-C is for this process alone
    )
    assert watch.stdin is not None
    try:
        if not works([program, "-d"], ours):
            yield f"{PROGRAM} does not start"
        elif not works([sys.executable, "-c", PROBE], theirs):
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


def works(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command comes to a good end with these variables."""
    nothing = subprocess.DEVNULL
    try:
        subprocess.run(
            command,
            env=os.environ | environment,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            timeout=START_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True

"""The lock of a run's directory, also on file systems without flock. This module does not import torch.

`lock` is filelock's file. With flock, the lock ends with its process. Without it, the file's existence is the lock, and
a killed process leaves it. Therefore `lock-owner.json` names the process, so that others can test whether it lives.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import time
import uuid
from pathlib import Path

import filelock
from pydantic import Field

from wnrepro.errors import UserError
from wnrepro.records import Content, read_model, read_text

PATIENCE = 1.0  # seconds to wait for the lock: another process may hold it only to test it
NAMED_SECONDS = 0.1  # from a lock's file to its content, at most
NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
# In `lock`: filelock's record of its owner, or that of earlier versions.
RECORD = re.compile(r"(?:process )?(\d{1,19})(?: on |\n)([\w.-]{1,255})", re.ASCII)


class Owner(Content):
    """The content of lock-owner.json: a process. namespace: of its number; start: of the process, for comparison."""

    pid: int = Field(ge=1, lt=2**31)
    host: str = Field(pattern="^[A-Za-z0-9._-]+$", max_length=255)
    namespace: str = ""
    start: str = ""
    since: str = Field(default="", pattern="^[0-9:TZ-]*$", max_length=30)

    @property
    def ended(self) -> bool:
        """Whether the process has ended. Of a process on another machine it is not known, and False."""
        if self.host != host() or self.namespace not in ("", namespace()):
            return False
        start = process_start(self.pid)
        return start is None or (bool(self.start) and start not in ("", self.start))


def host() -> str:
    """Return this machine's name, with a hyphen for each letter that `Owner` does not allow."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:255] or "localhost"


def namespace() -> str:
    """Return the name of this process's PID namespace on Linux, which a container does not share."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def process_start(pid: int) -> str | None:
    """Return the time when a process started, as a text for comparison, or None if there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is another user's
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if state in "ZX" else f"{boot} {fields[18]}"
    except (OSError, ValueError, IndexError):  # not Linux
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        with contextlib.suppress(OSError):
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


class Lock:
    """The lock of a run's directory."""

    def __init__(self, folder: Path) -> None:
        self.path, self.owner_path = folder / "lock", folder / "lock-owner.json"
        self.lock: filelock.BaseFileLock = filelock.FileLock(self.path, timeout=PATIENCE, fallback_to_soft=False)

    def acquire(self, since: str) -> None:
        """Acquire the lock, also from a process that has ended. Raises filelock.Timeout or OSError."""
        try:
            self.lock.acquire()
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            self.lock = filelock.SoftFileLock(self.path, timeout=PATIENCE)
            self.clear()
            self.lock.acquire()
        try:
            pid = os.getpid()
            owner = Owner(
                pid=pid,
                host=host(),
                namespace=namespace(),
                start=process_start(pid) or "",
                since=since,
            )
            self.owner_path.write_text(json.dumps(owner.model_dump()) + "\n")
        except OSError:
            self.lock.release()
            raise

    def clear(self) -> None:
        """Remove the lock's file if its process has ended, but not the file of one that does so at the same time."""
        with contextlib.suppress(FileNotFoundError):
            found = self.identity(self.path)
            if not self.abandoned():
                return
            if not self.path.stat().st_size:
                time.sleep(NAMED_SECONDS)  # it may have been made just now
            if self.identity(self.path) != found:
                return
            self.owner_path.unlink(missing_ok=True)  # else the next file would seem to be of that process
            aside = self.path.with_name(f".lock.{uuid.uuid4().hex}.part")
            self.path.rename(aside)
            if self.identity(aside) != found:
                aside.rename(self.path)
            aside.unlink(missing_ok=True)

    @staticmethod
    def identity(path: Path) -> tuple[int, int, int]:
        """Return what tells a file from another one that replaces it, or from itself with other content."""
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def release(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            self.owner_path.unlink(missing_ok=True)
        self.lock.release()

    def held(self) -> bool:
        """Test whether a process holds the lock. Writes nothing."""
        if not self.path.is_file():
            return False
        with contextlib.suppress(PermissionError, FileNotFoundError), self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # needs no permission to write
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                return not self.abandoned()
        return False

    def abandoned(self) -> bool:
        """Test whether the process that created the lock's file has ended. Only without flock that needs a test."""
        if owner := self.owner():
            return owner.ended
        with contextlib.suppress(FileNotFoundError):
            return not self.path.stat().st_size
        return True

    def owner(self) -> Owner | None:
        """Return the process that last held the lock, or None if it is not known."""
        with contextlib.suppress(UserError, ValueError):
            return read_model(self.owner_path, Owner)[0]
        with contextlib.suppress(UserError, ValueError, FileNotFoundError):
            if found := RECORD.match(read_text(self.path)):
                return Owner(pid=int(found[1]), host=found[2])
        return None

    def holder(self) -> str:
        """Return a description of the process that holds the lock, for messages."""
        owner = self.owner()
        if owner is None:
            return "another process"
        return f"process {owner.pid} on {owner.host}" + (f", since {owner.since}," if owner.since else "")

    @property
    def remedy(self) -> str:
        """What to do where a dead process may hold the lock; empty with flock."""
        return f"; if it has ended, remove {self.path}" if isinstance(self.lock, filelock.SoftFileLock) else ""

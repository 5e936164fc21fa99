"""Errors that a user sees as one sentence, and how they are printed."""

import contextlib
import errno
import sys
import traceback

from wnrepro.text import printable

DEBUG = False  # whether an error shows its traceback: --debug
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
)
HINT = "run again with --debug for the traceback"


class UserError(Exception):
    """A mistake that the user can correct: one sentence saying what, where and what to do."""

    exit_code = 2


class InstallError(UserError):
    """A package that is installed but does not load, or is missing."""

    exit_code = 1


class DiskError(UserError):
    """A disk that is full, or a folder that cannot be written."""

    exit_code = 1


def describe(error: BaseException) -> str:
    """Return one sentence that describes an unexpected error and what to do about it."""
    text = printable(f"{type(error).__name__}: {error}".removesuffix(": "), 300)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        path = f"{error.filename}: " if error.filename else ""
        return f"{path}{error.strerror}; free some space, change the permissions, or use another folder"
    if text.startswith("CaptureError"):
        return f"{text}; run the same command with WNREPRO_GRAPHS=0"
    if isinstance(error, MemoryError) or "OutOfMemory" in text or "allocate memory" in text:
        return f"out of memory ({text}); close other programs, or use a smaller minibatch, model or scale"
    return f"{text}; {HINT}"


def complain(text: str, cause: BaseException | str = "") -> None:
    """Print a sentence on standard error. With --debug, print the traceback of its cause first."""
    if isinstance(cause, BaseException):
        cause = "".join(traceback.format_exception(cause))
    with contextlib.suppress(OSError):  # standard error has no reader
        for line in (cause if DEBUG else "").splitlines() + text.split("\n"):
            print(printable(line), file=sys.stderr)

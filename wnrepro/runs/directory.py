"""A run's directory: its name, its settings' hash, what its run.json says, who holds it. Imports no torch.

results/<scale>/<experiment>/<variant>/seed-<n>/ holds config.json, run.json, metrics.csv and further tables.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import os
import re
import socket
import stat
import uuid
from pathlib import Path
from typing import Any, Self

import filelock

from wnrepro.errors import DiskError, UserError
from wnrepro.settings import (
    SETTINGS,
    Settings,
    about,
    config_hash,
    printable,
    scale_settings,
)

PUBLISHED = "published"  # folder of results/ with what the repository shows, without checkpoints
FINISHED = ("done", "diverged")  # what run.json says of a run that has ended
# What run.json may say besides what `is_record` asks of it; metrics_sha256: in runs of earlier versions; graphs: not
# in those.
FURTHER = {"message", "epochs", "created", "updated", "seconds", "device", "device_name", "git", "versions"}
FURTHER |= {"graphs", "tables_sha256", "metrics_sha256", "sha256"}
SOURCE = "parameterization.py"  # the code of a parameterization that is not the paper's, as it was at the run
WRITTEN = ("config.json", "run.json", SOURCE, "checkpoint*.pt", "*.csv", "*.png", "*.gif")  # by a run, and on it
LARGEST = 2**26  # bytes of a text that is read: far more than the tables of the paper's longest runs
MEND = "mend the file, or remove it: a run goes on from its checkpoint"
REMOVE = "remove the file to go on from the run's checkpoint, or start over with --fresh"
PATIENCE = 1.0  # seconds: another process may only be looking whether the directory is held


def variant(experiment: str, scale: str, settings: Settings) -> str:
    """The run's name: parameterization, learning rate, and every setting that is not its scale's default.

    It begins with the part, if the experiment has several: the data set or the game.
    """
    named: dict[str, str] = {settings.part: getattr(settings, settings.part)} if settings.part else {}
    default = scale_settings(experiment, scale, settings.param, **named)
    parts = [*named.values(), settings.param, f"lr{settings.lr:g}"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ("param", "lr", "seed") and value != getattr(default, field.name):
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{field.name}-{text}")
    return "_".join(parts)


def config(experiment: str, scale: str, settings: Settings) -> dict[str, Any]:
    """The content of config.json: all settings, what a parameterization that is not the paper's is, and their hash."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))  # tuples become lists, as when read back
    content: dict[str, Any] = {"experiment": experiment, "scale": scale, "settings": values}
    if entry := about(settings.param).entry(experiment):
        content["parameterization"] = entry
    return content | {"hash": config_hash(**content)}


# ------------------------------------------------------------------------------- files


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def disk_error(path: Path, error: OSError) -> DiskError:
    """What a user is told where a file or folder cannot be written."""
    todo = "make room there or mend its permissions, then give the same command again"
    if error.errno == errno.ENAMETOOLONG:
        todo = "give fewer settings that are not the scale's, or a shorter --results"
    return DiskError(f"{path}: cannot be written ({error.strerror}); {todo}")


def write_atomic(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write a file so that it has its old or its new content, whatever happens. keep: where the old one stays.

    Nothing is written through a symbolic link. Raises DiskError where there is no room or no permission.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        try:
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                keep.unlink(missing_ok=True)
                try:
                    keep.hardlink_to(path)  # no moment without a file of this name
                except OSError:  # a file system that has no such links
                    path.replace(keep)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise disk_error(path, error) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises as `read_bytes`, and UserError where it is no such text."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text (byte {error.start}); mend it, or move it away") from error


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises FileNotFoundError, and UserError where it is no file or larger than LARGEST."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes would not open otherwise
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path}: is no file; move it away")
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that, or give another --results") from error
    if len(content) > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST >> 20} MiB, which no file of a run is; move it away")
    return content


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises UserError where it is not one."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {MEND}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {MEND}")
    return content


# ------------------------------------------------------------------------------- the directory


class Locked(UserError):
    """Another process is at the run."""


def seal(record: dict[str, Any]) -> None:
    """Put the sha256 of all else that a run.json says among it."""
    record["sha256"] = _sha256(record)


def _sha256(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(record: dict[str, Any]) -> bool:
    """Whether a run.json says what it said when it was written; those of earlier versions have no seal."""
    return "sha256" not in record or record["sha256"] == _sha256(record)


def is_record(record: object) -> bool:
    """Whether a run.json has what a run needs of it to go on, and nothing that none has."""
    kinds = {"status": str, "epoch": int, "resumed": list, "facts": dict, "peak_memory_bytes": int, "config_hash": str}
    if not isinstance(record, dict) or not record.keys() <= kinds.keys() | FURTHER:
        return False
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


class RunDirectory:
    """A run's directory, held by this process between `with`'s lines."""

    def __init__(self, results: Path, experiment: str, scale: str, settings: Settings) -> None:
        assert type(settings) is SETTINGS[experiment]
        self.experiment, self.settings = experiment, settings
        self.folder = results / scale / experiment / variant(experiment, scale, settings) / f"seed-{settings.seed}"
        self.name = str(self.folder.relative_to(results).parent)
        self.config = config(experiment, scale, settings)
        self.epochs = settings.epochs
        self.lock_path = self.folder / "lock"
        self.lock = filelock.FileLock(self.lock_path, timeout=PATIENCE)

    @property
    def own(self) -> Path | None:
        """Of a published run: the directory that one's own has; None where it is no published run."""
        results = self.folder.parents[3]
        return results.parent / self.folder.relative_to(results) if results.name == PUBLISHED else None

    def record(self) -> dict[str, Any] | None:
        """run.json, or None where there is none. UserError where it, or config.json, is damaged or another run's."""
        path = self.folder / "config.json"
        there = read_json(path)
        if there is not None and self.same_as(there):
            self.config = there
        if there is not None and there != self.config:
            differing = self.differing(there)
            if there.get("hash") != config_hash(**{"experiment": "", "scale": "", "settings": {}} | there):
                raise UserError(f"{path}: damaged, its hash is not that of its settings ({differing}); {REMOVE}")
            raise UserError(
                f"{path}: of a run with other settings ({differing}); move its folder away, give another --results, or "
                "start over with --fresh"
            )
        path = self.folder / "run.json"
        record = read_json(path)
        if record is None:
            return None
        if record.get("config_hash") != self.config["hash"]:
            raise UserError(f"{path}: of a run with other settings; {REMOVE}")
        if not is_record(record) or not sealed(record):
            raise UserError(f"{path}: damaged, it is not as it was written; {REMOVE}")
        return record

    def same_as(self, there: dict[str, Any]) -> bool:
        """Whether a config.json that lacks settings which later versions added, at their defaults, is this run's."""
        settings = there.get("settings")
        if not isinstance(settings, dict):
            return False
        later = {field.name: field.default for field in dataclasses.fields(self.settings) if field.default is None}
        whole = there | {"settings": later | settings}
        digest = config_hash(self.experiment, self.config["scale"], settings, there.get("parameterization"))
        return whole | {"hash": self.config["hash"]} == self.config and there.get("hash") == digest

    def differing(self, there: dict[str, Any]) -> str:
        """The names of the settings in which this content of a config.json differs from the run's."""
        missing = object()

        def flat(content: dict[str, Any]) -> dict[str, Any]:
            values = content.get("settings")
            about = {name: content.get(name, missing) for name in ("experiment", "scale", "parameterization")}
            return about | (values if isinstance(values, dict) else {})

        old, new = flat(there), flat(self.config)
        names = [name for name in sorted(old.keys() | new.keys()) if old.get(name, missing) != new.get(name, missing)]
        return printable(", ".join(names), 200) or "hash"

    def finished(self) -> str | None:
        """`done` or `diverged` where the run has ended so, else None."""
        record = self.record()
        status = record.get("status") if record else None
        return status if status in FINISHED else None

    def locked(self) -> bool:
        """Whether another process is at the run."""
        if not self.lock_path.exists():
            return False
        try:
            with filelock.FileLock(self.lock_path, timeout=0):
                return False
        except filelock.Timeout:
            return True

    def holder(self) -> str:
        """The process that holds the directory in words, as far as the lock tells."""
        with contextlib.suppress(UserError):
            about = read_json(self.lock_path) or {}
            words = " ".join(str(about.get(name)) for name in ("pid", "host", "since"))
            if found := re.fullmatch(r"(\d{1,19}) ([\w.-]{1,255}) ([\d:TZ-]{1,30})", words, re.ASCII):
                return "process {} on {}, since {},".format(*found.groups())
        return "another process"

    def __enter__(self) -> Self:
        """Hold the directory; it is made where it is not there.

        Raises Locked where another process has it, DiskError where it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder.is_symlink() or self.folder.parent.is_symlink():
                raise UserError(f"{self.folder}: is a link to elsewhere; move it away")
            if self.lock_path.is_symlink() or (self.lock_path.exists() and not self.lock_path.is_file()):
                raise UserError(f"{self.lock_path}: is no file; move it away")
            self.lock.acquire()
        except filelock.Timeout:
            raise Locked(f"{self.folder}: {self.holder()} is at this run; wait for it, or end it") from None
        except OSError as error:
            raise disk_error(self.folder, error) from error
        try:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            self.lock_path.write_text(json.dumps(about) + "\n")
            for part in self.folder.glob(".*.part"):  # of a process that was killed
                part.unlink(missing_ok=True)
        except OSError as error:
            self.lock.release()
            raise disk_error(self.folder, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def clear(self) -> None:
        """Remove what the run has written, and nothing else that may be there."""
        try:
            for pattern in WRITTEN:
                for path in self.folder.glob(pattern):
                    path.unlink()
        except OSError as error:
            raise disk_error(self.folder, error) from error

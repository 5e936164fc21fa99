"""A run's directory: its name, config, state and lock; and functions that read files and write them atomically.

results/<scale>/<experiment>/<variant>/seed-<n>/ holds config.json, run.json, metrics.csv and further tables.
This module does not import torch.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Self

import filelock

from wnrepro.errors import DiskError, UserError
from wnrepro.records import RunRecord, clean, read_text
from wnrepro.runs.lock import Lock
from wnrepro.settings import Settings, about, config_hash, filled, scale_settings
from wnrepro.text import finite, json_text, printable

PUBLISHED = "published"  # the folder in results/ with the repository's runs, without checkpoints
FINISHED = ("done", "diverged")  # states of a run that needs no more training
RESUMABLE = {"resumed", "facts", "peak_memory_bytes", "config_hash"}  # entries of run.json that resuming needs
SOURCE = "parameterization.py"  # a copy of a custom parameterization's code
WEIGHTS = "weights.pt"  # the weights alone, in half precision, of a published run
# files that a run writes
WRITTEN = ("config.json", "run.json", SOURCE, "checkpoint*.pt", WEIGHTS, "model.*", "*.csv", "*.png", "*.gif")
REMOVE = "remove the file to resume from the run's checkpoint, or start again with --fresh"
LONGEST_NAME = 255  # letters of a folder's name


def variant(experiment: str, scale: str, settings: Settings) -> str:
    """Return the run's name: its part (data set or game), parameterization, learning rate, non-default settings.

    A name too long for a folder has the start of its sha256 in place of the settings.
    """
    named: dict[str, str] = {settings.part: getattr(settings, settings.part)} if settings.part else {}
    default = scale_settings(experiment, scale, settings.param, **named)
    parts = first = [*named.values(), settings.param, f"lr{settings.lr:g}"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ("param", "lr", "seed") and value != getattr(default, field.name):
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts = [*parts, f"{field.name}-{text}"]
    name = "_".join(parts)
    if len(name) > LONGEST_NAME:
        name = "_".join([*first, hashlib.sha256(name.encode()).hexdigest()[:16]])
    return name


def config(experiment: str, scale: str, settings: Settings) -> dict[str, Any]:
    """Return the content of config.json: all settings, a custom parameterization's entry, and their hash."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))  # tuples become lists, as in the file
    content: dict[str, Any] = {"experiment": experiment, "scale": scale, "settings": values}
    if entry := about(settings.param).entry(experiment):
        content["parameterization"] = entry
    return content | {"hash": config_hash(**content)}


def digest(config: dict[str, Any]) -> str:
    """Return the hash of a config.json's content, whatever its entry `hash` says."""
    names = ("experiment", "scale", "settings", "parameterization")
    return config_hash(**{name: config.get(name) for name in names})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- files


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def disk_error(path: Path, error: OSError) -> DiskError:
    """Return the error for a file or folder that cannot be written."""
    todo = "free some space or change its permissions, then run the same command again"
    if error.errno == errno.ENAMETOOLONG:
        todo = "change fewer settings, or use a shorter --results"
    return DiskError(f"{path}: cannot be written ({error.strerror}); {todo}")


def write_atomic(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write a file so that an interruption leaves either its old or its new content.

    keep: the path that the old file moves to. A symbolic link is replaced, not followed. Raises DiskError.
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
                    keep.hardlink_to(path)  # so that `path` always exists
                except OSError:  # a file system without hard links
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


def file_sha256(path: Path) -> str | None:
    """Return a file's sha256, or None if there is no file that can be read."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json_text(content) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if there is no file. Raises UserError for other content."""
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict):
            raise ValueError("it must be an object")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); fix it or remove it, since a run resumes from its checkpoint"
        ) from error
    return content


def seal(record: dict[str, Any]) -> None:
    """Add the content's sha256, as `write_json` writes it, to the content of a run.json."""
    record["sha256"] = _sha256(finite(record))


def _sha256(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(record: dict[str, Any]) -> bool:
    """Test whether a run.json is as it was written. Files of earlier versions have no checksum and pass."""
    return "sha256" not in record or record["sha256"] == _sha256(record)


def is_record(record: object) -> bool:
    """Test whether this is the content of a run.json from which a run can resume."""
    try:
        found = RunRecord.model_validate(clean(record))
    except ValueError:
        return False
    return not found.model_extra and found.model_fields_set >= RESUMABLE


# ------------------------------------------------------------------------------- the directory


def check_place(results: Path, folder: Path) -> None:
    """Raise UserError if a run's folder, or one between it and `results`, is a link."""
    named = folder.relative_to(results)
    for place in (results / part for part in (*reversed(named.parents[:-1]), named)):
        if place.is_symlink():
            raise UserError(
                f"{printable(str(place))}: is a link, but runs in {printable(str(results))} must not be "
                "reached through links; remove the link, or replace the results folder itself by a link"
            )


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run's directory, without links, and the content of its config.json. Raises UserError if it has none."""
    with contextlib.suppress(OSError, RuntimeError):  # a circular link
        folder = folder.resolve()
    content = read_json(folder / "config.json") if folder.is_dir() else None
    if content is None:
        raise UserError(f"{folder}: has no run (no config.json); use a folder …/<variant>/seed-<n>")
    return folder, content


class LockedError(UserError):
    """Another process executes the run."""


class RunDirectory:
    """A run's directory. As a context manager it holds the lock."""

    def __init__(self, results: Path, experiment: str, scale: str, settings: Settings) -> None:
        self.experiment, self.settings, self.epochs = experiment, settings, settings.epochs
        self.folder = results / scale / experiment / variant(experiment, scale, settings) / f"seed-{settings.seed}"
        self.name = str(self.folder.relative_to(results).parent)
        self.config = config(experiment, scale, settings)
        self.restart_advice = "use another --results" if results.name == PUBLISHED else "start again with --fresh"
        self.lock = Lock(self.folder)

    def record(self) -> dict[str, Any] | None:
        """Return the content of run.json, or None if there is no file.

        Raises UserError if run.json or config.json is damaged or belongs to another run, or a link leads there.
        """
        check_place(self.folder.parents[3], self.folder)
        path = self.folder / "config.json"
        config = read_json(path)
        if config is not None:
            if not self.matches(config):
                names = self.differing(config)
                what, todo = f"belongs to a run with other settings ({names})", "move its folder away"
                if config.get("hash") != digest(config):
                    what, todo = f"is damaged ({names})", "remove the file to resume from the run's checkpoint"
                raise UserError(f"{path}: {what}; {todo}, or {self.restart_advice}")
            self.config = config
        path = self.folder / "run.json"
        record = read_json(path)
        if record is None:
            return None
        if record.get("config_hash") != self.config["hash"]:
            raise UserError(f"{path}: belongs to a run with other settings; {REMOVE}")
        if not is_record(record) or not sealed(record):
            raise UserError(f"{path}: was changed after it was written; {REMOVE}")
        return record

    def matches(self, config: dict[str, Any]) -> bool:
        """Test whether a config.json is this run's. It may lack newer settings if theirs are the fields' defaults."""
        settings = config.get("settings")
        if not isinstance(settings, dict):
            return False
        whole = config | {"settings": filled(self.experiment, settings), "hash": self.config["hash"]}
        own = self.config | {"settings": filled(self.experiment, self.config["settings"])}
        return whole == own and config.get("hash") == digest(config)

    def differing(self, config: dict[str, Any]) -> str:
        """Return the names of the settings that differ between a config.json and this run, else `hash`."""
        settings = config.get("settings")
        old = config | (filled(self.experiment, settings) if isinstance(settings, dict) else {})
        new = self.config | filled(self.experiment, self.config["settings"])
        names = {name for name in old.keys() | new.keys() if old.get(name, old) != new.get(name, new)}
        return printable(", ".join(sorted(names - {"hash", "settings"})), 200) or "hash"

    def finished(self) -> str | None:
        """Return the status of a finished run, `done` or `diverged`, else None."""
        record = self.record()
        return record["status"] if record and record["status"] in FINISHED else None

    def changed_tables(self) -> list[str]:
        """Return the names of a finished run's tables that are not as run.json has them."""
        sha256 = (self.record() or {}).get("tables_sha256") or {}
        return [name for name in sha256 if file_sha256(self.folder / name) != sha256[name]]

    def locked(self) -> bool:
        """Test whether another process executes the run. Writes nothing."""
        return self.lock.held()

    def __enter__(self) -> Self:
        """Create the directory if needed and lock it. Raises LockedError, or DiskError if it cannot be written."""
        try:
            check_place(self.folder.parents[3], self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self.lock.path, self.lock.owner_path):
                if path.is_symlink() or (path.exists() and not path.is_file()):
                    raise UserError(f"{path}: is not a file; move it away")
            self.lock.acquire(now())
            try:
                for part in self.folder.glob(".*.part"):  # left by a killed process
                    part.unlink(missing_ok=True)
            except OSError:
                self.lock.release()
                raise
        except filelock.Timeout:
            what = f"is in use by {self.lock.holder().rstrip(',')}; wait for it, or end it{self.lock.remedy}"
            raise LockedError(f"{self.folder}: {what}") from None
        except OSError as error:
            raise disk_error(self.folder, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def clear(self) -> None:
        """Remove the files that the run has written."""
        try:
            for path in (path for pattern in WRITTEN for path in self.folder.glob(pattern)):
                path.unlink()
        except OSError as error:
            raise disk_error(self.folder, error) from error

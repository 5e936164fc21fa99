"""A run's directory: its name, its settings' hash, what its run.json says, who holds it. Imports no torch.

results/<scale>/<experiment>/<variant>/seed-<n>/ holds config.json, run.json, metrics.csv and further tables.
"""

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Self

import filelock

from wnrepro.errors import UserError
from wnrepro.settings import SETTINGS, CvaeSettings, DqnSettings, Settings, config_hash, scale_settings

LARGEST = 2**26  # bytes of a text that is read: far more than the tables of the paper's longest runs
PATIENCE = 1.0  # seconds: another process may only be looking whether the directory is held


def variant(experiment: str, scale: str, settings: Settings) -> str:
    """The run's name: parameterization, learning rate, and every setting that is not its scale's default.

    Those of cvae begin with the data set, on which the defaults depend, and those of dqn with the game.
    """
    named: dict[str, str] = {}
    if isinstance(settings, CvaeSettings):
        named = {"dataset": settings.dataset}
    if isinstance(settings, DqnSettings):
        named = {"game": settings.game}
    default = scale_settings(experiment, scale, settings.param, **named)
    parts = [*named.values(), settings.param, f"lr{settings.lr:g}"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ("param", "lr", "seed") and value != getattr(default, field.name):
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{field.name}-{text}")
    return "_".join(parts)


def config(experiment: str, scale: str, settings: Settings) -> dict[str, Any]:
    """The content of config.json: all settings and their hash."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))  # tuples become lists, as when read back
    content = {"experiment": experiment, "scale": scale, "settings": values}
    return content | {"hash": config_hash(**content)}


# ------------------------------------------------------------------------------- files


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it has its old or its new content, whatever happens."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises FileNotFoundError, and UserError where it is no such file or larger than LARGEST."""
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
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error}); mend it, or move it away") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises UserError where it is not one."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); mend it, or start over with --fresh") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; mend it, or start over with --fresh")
    return content


# ------------------------------------------------------------------------------- the directory


class Held(UserError):
    """Another process is at the run."""


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

    def record(self) -> dict[str, Any] | None:
        """run.json, or None before the run has begun. Raises UserError if another configuration is there."""
        there = read_json(self.folder / "config.json")
        if there is not None and there.get("hash") != self.config["hash"]:
            raise UserError(
                f"{self.folder}: holds a run with other settings ({self.differing(there)}); move it away, "
                "give another --results, or start over with --fresh"
            )
        return read_json(self.folder / "run.json") if there is not None else None

    def differing(self, there: dict[str, Any]) -> str:
        """The names of the settings in which this content of a config.json differs from the run's."""
        old, new = there.get("settings", {}), self.config["settings"]
        missing = object()
        return (
            ", ".join(k for k in sorted(old.keys() | new.keys()) if old.get(k, missing) != new.get(k, missing))
            or "hash"
        )

    def finished(self) -> str | None:
        """`done` or `diverged` where the run has ended so, else None."""
        record = self.record()
        status = record.get("status") if record else None
        return status if status in ("done", "diverged") else None

    def held(self) -> bool:
        """Whether another process is at the run."""
        if not self.lock_path.exists():
            return False
        try:
            with filelock.FileLock(self.lock_path, timeout=0):
                return False
        except filelock.Timeout:
            return True

    def __enter__(self) -> Self:
        """Hold the directory; it is made where it is not there.

        Raises Held where another process has it, UserError where it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except filelock.Timeout:
            raise Held(f"{self.folder}: another process is at this run; wait for it, or end it") from None
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); mend its permissions or give another --results"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def clear(self) -> None:
        """Remove everything that the run has written."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

"""The execution of a run, which resumes without losing, repeating or changing a row of its tables.

Every file is written atomically. A save writes the tables, then a checkpoint, then run.json. A checkpoint contains
everything that resuming needs, including the tables' text and run.json, and its own checksum. The previous checkpoint
is kept. Therefore a run can be killed and its directory copied at any moment, and a table or checkpoint may be damaged.
The run resumes from its last good checkpoint and reports what was damaged.

A run saves after its epochs, but if these are short, only as often as takes SAVE_SHARE of the time. After a kill it
repeats the epochs since the last save. A signal makes it save at once, within an epoch too.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from wnrepro import signals
from wnrepro.cuda_graphs import here
from wnrepro.errors import DiskError, UserError
from wnrepro.events import Epoch, News, Note, Progress, Start
from wnrepro.records import RunSettings, read_text
from wnrepro.runs.checkpoint import (
    CHECKPOINTS,
    DamagedError,
    load_checkpoint,
    load_weights,
    rng_state,
    save_checkpoint,
    set_rng_state,
    weights_archive,
)
from wnrepro.runs.directory import (
    FINISHED,
    SOURCE,
    WEIGHTS,
    RunDirectory,
    now,
    read_config,
    seal,
    write_atomic,
    write_json,
)
from wnrepro.runs.longer import beginning
from wnrepro.runs.provenance import peak_memory_bytes, provenance
from wnrepro.settings import ABOUT, PARAMS, SETTINGS, about, filled, scale_settings

SAVE_SHARE = 0.02  # largest share of a run's time that saving takes after its first epoch


class Experiment(Protocol):
    """What a run executes: train() yields events, and the state dict contains all that resuming needs.

    within: the epoch in progress, if there is one; log_steps: the updates from a row of steps.csv to the next.
    """

    device: torch.device
    facts: dict[str, Any]
    within: Any
    log_steps: int | None

    @property
    def saves_within_epochs(self) -> bool: ...

    def train(self) -> Iterator[Progress | Epoch | Note]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Tables:
    """The run's CSV files.

    text: the content of each table, by the file's name without .csv; written: the content of the files.
    """

    def __init__(self, folder: Path, text: dict[str, str]) -> None:
        self.folder, self.text, self.written = folder, text, dict[str, str]()

    def restore(self) -> list[str]:
        """Reset the files to `text`, and return the names of the files that did not begin with it."""
        damaged = []
        for path in self.folder.glob("*.csv"):
            if path.stem not in self.text:
                path.unlink()
        for name, text in self.text.items():
            path, content, found = self.folder / f"{name}.csv", text.encode(), b""
            if path.is_file():
                with path.open("rb") as file:
                    found = file.read(len(content) + 1)  # one more byte, to notice a longer file
            if not found.startswith(content):
                damaged.append(path.name)
            if found != content:
                write_atomic(path, content)
        self.written = dict(self.text)
        return damaged

    def add(self, epoch: Epoch) -> None:
        """Add an epoch's rows to `text`, or none of them if there is an error."""
        added = {}
        for name, rows in {"metrics": [epoch.metrics], **epoch.tables}.items():
            if rows:
                old = self.text.get(name, "")
                text = io.StringIO(newline="")
                columns = next(csv.reader(io.StringIO(old))) if old else list(rows[0])
                writer = csv.DictWriter(text, columns, lineterminator="\n")
                if not old:
                    writer.writeheader()
                writer.writerows(rows)
                added[name] = old + text.getvalue()
        self.text |= added

    def write(self) -> None:
        """Write the files whose text has changed."""
        for name, text in self.text.items():
            if self.written.get(name) != text:
                write_atomic(self.folder / f"{name}.csv", text.encode())
        self.written = dict(self.text)

    def seconds(self) -> float:
        """Return the total seconds of the epochs in the files."""
        rows = csv.DictReader(io.StringIO(self.written.get("metrics", "")))
        return round(sum(float(row["seconds"]) for row in rows), 3)

    def sha256(self) -> dict[str, str]:
        """Return the sha256 of each table's text, by file name."""
        return {f"{name}.csv": hashlib.sha256(text.encode()).hexdigest() for name, text in self.text.items()}


@dataclass
class Training:
    """A run's experiment, tables and record while this process trains it.

    epoch: the number of completed epochs; diverged: how it has diverged, if it has; each_epoch: whether it saves after
    every epoch; saved: when its last save ended, by time.monotonic; save_seconds: the duration of that save.
    """

    directory: "Run"
    experiment: Experiment
    tables: Tables
    record: dict[str, Any]
    epoch: int = 0
    diverged: str = ""
    each_epoch: bool = False
    saved: float = -math.inf
    save_seconds: float = 0.0

    def run(self, show: Callable[[Progress | Epoch | Note], None]) -> None:
        """Train to the end, and save after epochs, when a signal asks for it, and at the end."""
        if self.diverged:  # it was killed after the checkpoint of its divergence
            return
        saves_within, complete = self.experiment.saves_within_epochs, True
        with signals.deferred(int(saves_within)):
            try:
                for event in self.experiment.train():
                    if isinstance(event, Epoch):
                        complete = False  # the experiment's state is that of an epoch without rows
                        self.tables.add(event)
                        self.epoch, self.diverged, complete = event.epoch, event.diverged, True
                        asked = signals.checkpoint_wanted()
                        if asked or not saves_within or self.due():  # else a signal would lose the epoch
                            self.save()
                        if asked:
                            show(Note(f"wrote a checkpoint after epoch {event.epoch}"))
                    elif isinstance(event, Progress) and signals.checkpoint_wanted():
                        text = "keeps the checkpoint of its last epoch: its state within an epoch cannot be saved"
                        if saves_within:
                            self.save()
                            text = f"wrote a checkpoint in epoch {event.epoch}, after {event.done} of {event.total}"
                        show(Note(text))
                    show(event)
                    signals.check()
                if self.unsaved:
                    self.save()
            except (signals.Pause, Exception) as error:
                within = self.experiment.within  # whose state is complete only if a signal has waited for it
                paused = saves_within and isinstance(error, signals.Pause)
                if paused if within else self.unsaved and complete:
                    with contextlib.suppress(DiskError):  # the error counts; the checkpoint before stays
                        self.save()
                raise

    @property
    def unsaved(self) -> bool:
        """Whether epochs have been completed since the last save."""
        return self.epoch > self.record["epoch"]

    def due(self) -> bool:
        """Test whether to save after an epoch: the first of this process, or if that takes little of the time.

        Runs that compute in turn wait for each other's saves.
        """
        pause = here.together * self.save_seconds / SAVE_SHARE
        return self.each_epoch or time.monotonic() - self.saved >= pause

    def save(self) -> None:
        """Write the tables, a checkpoint and run.json."""
        began = time.monotonic()
        self.tables.write()
        state = {"epoch": self.epoch, "diverged": self.diverged, "config_hash": self.directory.config["hash"]}
        state |= {"tables": self.tables.text, "record": json.dumps(self.record), "rng": rng_state()}
        save_checkpoint(self.directory.folder, state | {"experiment": self.experiment.state_dict()})
        self.write(epoch=self.epoch)
        self.saved = time.monotonic()
        self.save_seconds = self.saved - began

    def write(self, **changes: Any) -> None:
        """Change the record and write it to run.json."""
        facts, peak = self.experiment.facts, peak_memory_bytes(self.experiment.device)
        self.record.update(changes, updated=now(), facts=facts, seconds=self.tables.seconds())
        self.record["peak_memory_bytes"] = max(self.record["peak_memory_bytes"], peak)
        if self.record["status"] in FINISHED:
            self.record["tables_sha256"] = self.tables.sha256()
        self.directory.write_record(self.record)


class Run(RunDirectory):
    """A run directory whose run this process executes or evaluates, while it holds the lock."""

    anew = False  # whether it continues no shorter run

    def execute(
        self,
        load: Callable[[], Experiment],
        show: Callable[[News], None] = lambda _: None,
        log_steps: int | None = None,
        each_epoch: bool = False,
    ) -> dict[str, Any]:
        """Start or resume the run, train to its end, and return the content of run.json.

        show: called with a Start and every event of train(). each_epoch: save after every epoch, however short. A
        finished run stays unchanged: another process may just have completed it. An exception sets the status `failed`
        and is raised. A signal that ends the run leaves `running`, and a checkpoint of the last minibatch if the
        experiment saves its state within epochs.
        """
        record = self.record()
        if record and record["status"] in FINISHED:
            return record
        checkpoint, damaged = self.last_checkpoint()
        if checkpoint is None:
            self.refuse_without_checkpoint(record)
        experiment = load()
        experiment.log_steps = log_steps
        if source := about(self.config["settings"]["param"]).source:
            write_atomic(self.folder / SOURCE, source.text.encode())
        write_json(self.folder / "config.json", self.config)
        epoch, diverged, tables = 0, "", Tables(self.folder, {})
        if checkpoint is None and (checkpoint := self.continue_shorter(experiment, show)):
            record = None
        if checkpoint:
            if damaged:  # else the next checkpoint would replace the good one
                (self.folder / CHECKPOINTS[0]).replace(self.folder / "checkpoint-damaged.pt")
            self.load_state(experiment, checkpoint)
            epoch, diverged, tables.text = checkpoint["epoch"], checkpoint["diverged"], checkpoint["tables"]
            record = record or json.loads(checkpoint["record"])
        (self.folder / WEIGHTS).unlink(missing_ok=True)  # soon of an earlier epoch
        damaged += [f"{self.folder / name}: differs from the checkpoint" for name in tables.restore()]

        record = self.new_record(record, experiment, epoch, damaged)
        training = Training(self, experiment, tables, record, epoch, diverged, each_epoch)
        training.write(status="running", message="", epoch=epoch)
        show(Start(epoch, training.record))
        for sentence in damaged:
            show(Note(f"{sentence}; the run resumes from the checkpoint of epoch {epoch}"))
        try:
            training.run(show)
        except Exception as error:
            with contextlib.suppress(DiskError):  # a full disk may be the error
                training.write(status="failed", message=f"{type(error).__name__}: {error}")
            raise
        training.write(status="diverged" if training.diverged else "done", message=training.diverged)
        (self.folder / CHECKPOINTS[1]).unlink(missing_ok=True)
        return training.record

    def repair(self) -> list[str]:
        """Restore the tables of a finished run from its checkpoint, and return a sentence for each changed one."""
        damaged = self.changed_tables()
        if not damaged:
            return []
        sha256 = (self.record() or {})["tables_sha256"]
        with self, contextlib.suppress(UserError):
            checkpoint, _ = self.last_checkpoint()
            tables = Tables(self.folder, checkpoint["tables"] if checkpoint else {})
            if tables.sha256() == sha256:
                for name in damaged:
                    write_atomic(self.folder / name, tables.text[name.removesuffix(".csv")].encode())
                return [f"{self.folder / name}: was changed; it is restored from the checkpoint" for name in damaged]
        todo = "cannot be restored without the run's checkpoint; copy that there, or train again with --fresh"
        return [f"{self.folder / name}: was changed and {todo}" for name in damaged]

    def continue_shorter(self, experiment: Experiment, show: Callable[[News], None]) -> dict[str, Any] | None:
        """Begin with the checkpoint and tables of a finished run of fewer epochs, if one is this run's beginning."""
        if self.anew:
            return None
        checkpoint, sentence = beginning(self, bool(experiment.facts.get("compiled")))
        if sentence:
            show(Note(sentence))
        if checkpoint is not None:
            save_checkpoint(self.folder, checkpoint)
            Tables(self.folder, checkpoint["tables"]).restore()
        return checkpoint

    def clear(self) -> None:
        """Remove the files that the run has written; it then continues no shorter run."""
        super().clear()
        self.anew = True

    def new_record(
        self, record: dict[str, Any] | None, experiment: Experiment, epoch: int, damaged: list[str]
    ) -> dict[str, Any]:
        """Return a new run's record, or the existing record with an entry for this start."""
        here = provenance(experiment.device)
        if record:
            found = {"damaged": damaged} if damaged else {}
            record["resumed"].append({"at": now(), "from_epoch": epoch, **here, **found})
            record.pop("weights_sha256", None)
            return record
        first = {"status": "running", "message": "", "epoch": 0, "epochs": self.epochs}
        first |= {"config_hash": self.config["hash"], "created": now(), "peak_memory_bytes": 0, **here, "resumed": []}
        return first

    def write_record(self, record: dict[str, Any]) -> None:
        """Write run.json with its checksum."""
        seal(record)
        write_json(self.folder / "run.json", record)

    def last_checkpoint(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the last good checkpoint (None: there is none), and what is wrong with newer ones.

        Raises UserError if all are damaged.
        """
        damaged: list[str] = []
        for name in CHECKPOINTS:
            try:
                if (state := load_checkpoint(self.folder / name, self.config["hash"])) is not None:
                    return state, damaged
            except DamagedError as error:
                damaged.append(str(error))
        if damaged:
            raise UserError(f"{'; '.join(damaged)}; replace it by a good copy, or {self.restart_advice}")
        return None, []

    def refuse_without_checkpoint(self, record: dict[str, Any] | None) -> None:
        """Raise UserError if a run without a checkpoint has completed epochs."""
        path = self.folder / "metrics.csv"
        rows = len(read_text(path).splitlines()) - 1 if path.exists() else 0
        if rows > 1 or (record and record["epoch"]):  # a kill before the first checkpoint may leave one row
            raise UserError(
                f"{self.folder}: has completed epochs, but no checkpoint to resume from (git ignores checkpoints, and "
                f"{WEIGHTS} has only the weights); copy its checkpoint.pt there, or {self.restart_advice}"
            )

    def load_state(self, experiment: Experiment, checkpoint: dict[str, Any]) -> None:
        """Restore the experiment and the random generators from a checkpoint. Raises UserError if it does not fit."""
        with self.fitting():
            experiment.load_state_dict(checkpoint["experiment"])
            set_rng_state(checkpoint["rng"])

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Turn the errors of a checkpoint that does not fit into a UserError."""
        try:
            yield
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.folder}: its checkpoint does not fit this version of wnrepro; resume with the version of the "
                f"commit in run.json, or {self.restart_advice}"
            ) from error

    def add_facts(self, load: Callable[[], Experiment], measure: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Measure the experiment at its newest checkpoint, add the result to run.json's facts, and return run.json."""
        record, experiment = self.record(), load()
        assert record is not None
        self.load_state(experiment, self.newest())
        record["facts"] |= measure(experiment)
        self.write_record(record)
        return record

    def newest(self) -> dict[str, Any]:
        """Return the run's newest checkpoint. Raises UserError if it is damaged or missing."""
        checkpoint = self.stored(load_checkpoint, CHECKPOINTS[0])
        if checkpoint is None:
            raise UserError(f"{self.folder}: has no checkpoint.pt (git ignores checkpoints); train the run first")
        return checkpoint

    def stored(self, read: Callable[[Path, str], dict[str, Any] | None], name: str) -> dict[str, Any] | None:
        """Read a checkpoint, or return None if there is none. Raises UserError if it is damaged."""
        try:
            return read(self.folder / name, self.config["hash"])
        except DamagedError as error:
            raise UserError(f"{error}; replace it by a good copy, or train the run again with --fresh") from error

    def restore(self, experiment: Any) -> str:
        """Restore the experiment from the newest checkpoint or, without one, from the weights; return the file's name.

        Raises UserError if the file is damaged, or there is neither.
        """
        if (checkpoint := self.stored(load_checkpoint, CHECKPOINTS[0])) is not None:
            self.load_state(experiment, checkpoint)
            return CHECKPOINTS[0]
        if (stored := self.stored(load_weights, WEIGHTS)) is None:
            raise UserError(f"{self.folder}: has neither {CHECKPOINTS[0]} nor {WEIGHTS}; train the run first")
        with self.fitting():
            experiment.load_weights(stored["weights"], stored["epoch"])
        return WEIGHTS

    def write_weights(self) -> Path:
        """Write the weights of the newest checkpoint beside it, and their sha256 into run.json."""
        record, checkpoint = self.record(), self.newest()
        assert record is not None
        if "within" in checkpoint["experiment"]:
            raise UserError(f"{self.folder}: stopped within an epoch; resume it to the end of that epoch first")
        content = weights_archive(checkpoint)
        write_atomic(self.folder / WEIGHTS, content)
        self.write_record(record | {"weights_sha256": hashlib.sha256(content).hexdigest()})
        return self.folder / WEIGHTS


def open_run(folder: Path) -> Run:
    """Return the run in this directory. Raises UserError if there is none of this version."""
    folder, content = read_config(folder)
    path = folder / "config.json"
    try:
        experiment, scale, values = content["experiment"], content["scale"], content["settings"]
        values |= {name: values[name] for name in RunSettings.model_fields}  # every version has these
        values = filled(experiment, values) if experiment in SETTINGS else values
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        run = Run(folder.parents[3], experiment, scale, scale_settings(experiment, scale, **values))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, UserError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: is not of a run of this version ({what}); train the run again") from error
    if run.settings.param not in ABOUT:
        given = ", ".join(ABOUT.keys() - {*PARAMS})
        raise UserError(
            f"{path}: the code of {run.settings.param} is not loaded{f' ({given} is other code)' * bool(given)}; add "
            f"--param FILE.py:CLASS (the folder has a copy, {SOURCE})"
        )
    if run.folder != folder:
        raise UserError(f"{folder}: its settings belong to {run.folder}; move it there")
    if not run.matches(content):
        names = run.differing(content)
        raise UserError(f"{path}: its settings do not fit this version ({names}); train the run again")
    run.config = content
    return run

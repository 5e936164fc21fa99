"""One run: its tables, its checkpoint, its provenance; resume without a row lost, doubled or changed.

Every file is written whole: temporary file, fsync, rename. After each epoch the tables are written first, then
the checkpoint, then run.json. A checkpoint holds all that the run needs to go on, the tables' text and run.json too,
and a checksum of itself; the one before it stays. A kill at any byte, a copy made at any moment, a damaged table or
checkpoint therefore leave a directory that goes on from its last good checkpoint, and says what was damaged.
"""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from wnrepro.errors import DiskError, UserError
from wnrepro.events import Epoch, Note, Progress
from wnrepro.runs.checkpoint import CHECKPOINTS, Damaged, load_checkpoint, rng_state, save_checkpoint, set_rng_state
from wnrepro.runs.directory import (
    FINISHED,
    SOURCE,
    RunDirectory,
    now,
    read_json,
    read_text,
    seal,
    write_atomic,
    write_json,
)
from wnrepro.runs.provenance import peak_memory_bytes, provenance
from wnrepro.settings import ABOUT, PARAMS, about, scale_settings


class Experiment(Protocol):
    """What a run drives: train() yields its progress, the state dict is all that it goes on from."""

    device: torch.device
    facts: dict[str, Any]

    def train(self) -> Iterator[Progress | Epoch | Note]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


# ------------------------------------------------------------------------------- files


class Tables:
    """The run's CSV files: the text of each by its name, without .csv; each row has its epoch."""

    def __init__(self, folder: Path, text: dict[str, str]) -> None:
        self.folder, self.text = folder, text

    def restore(self) -> list[str]:
        """Put the files back to this text; those that did not begin with it, for they were damaged or are of before."""
        damaged = []
        for path in sorted(self.folder.glob("*.csv")):
            if path.stem not in self.text:
                path.unlink()
        for name, text in self.text.items():
            path, content = self.folder / f"{name}.csv", text.encode()
            there = b""
            if path.is_file():
                with path.open("rb") as file:
                    there = file.read(len(content) + 1)  # more is cut off, however much it is
            if not there.startswith(content):
                damaged.append(path.name)
            if there != content:
                write_atomic(path, content)
        return damaged

    def append(self, epoch: Epoch) -> None:
        """Add an epoch's rows, and write the files."""
        for name, rows in {"metrics": [epoch.metrics], **epoch.tables}.items():
            if rows:
                self.text[name] = self.text.get(name, "") + as_csv(rows, self.columns(name))
                write_atomic(self.folder / f"{name}.csv", self.text[name].encode())

    def columns(self, name: str) -> list[str] | None:
        """A table's columns; None where it has no row yet."""
        return next(csv.reader(io.StringIO(self.text[name]))) if name in self.text else None

    def seconds(self) -> float:
        """What the epochs took, in sum."""
        rows = csv.DictReader(io.StringIO(self.text.get("metrics", "")))
        return round(sum(float(row["seconds"]) for row in rows), 3)

    def sha256(self) -> dict[str, str]:
        """The checksums of the files."""
        return {f"{name}.csv": hashlib.sha256(text.encode()).hexdigest() for name, text in self.text.items()}


def as_csv(rows: list[dict[str, Any]], columns: list[str] | None) -> str:
    """Rows as lines of these columns, or after a header of their own."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    if columns is None:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ------------------------------------------------------------------------------- the run


class Run(RunDirectory):
    """What a process does with a run directory that it holds."""

    def execute(
        self, load: Callable[[], Experiment], show: Callable[[Progress | Epoch | Note], None] = lambda _: None
    ) -> dict[str, Any]:
        """Begin or go on, to the end; the content of run.json then. `show` sees everything that train() yields.

        Nothing happens where the run has ended: another process may just have been at it. Raises what the experiment
        raises, after recording the run as failed; an interruption leaves it as running.
        """
        record = self.record()
        if record and record["status"] in FINISHED:
            return record
        checkpoint, damaged = self.last_checkpoint()
        if checkpoint is None:
            self.expect_nothing(record)
        experiment = load()
        if source := about(self.config["settings"]["param"]).source:
            write_atomic(self.folder / SOURCE, source.text.encode())
        write_json(self.folder / "config.json", self.config)
        epoch, diverged = 0, ""
        if checkpoint:
            if damaged:  # it would take the place of the good one
                (self.folder / CHECKPOINTS[0]).replace(self.folder / "checkpoint-damaged.pt")
            self.take(experiment, checkpoint)
            epoch, diverged = checkpoint["epoch"], checkpoint["diverged"]
            record = record or json.loads(checkpoint["record"])
        tables = Tables(self.folder, checkpoint["tables"] if checkpoint else {})
        damaged += [f"{self.folder / name}: not as the checkpoint has it" for name in tables.restore()]

        here = provenance(experiment.device)
        if record:
            found = {"damaged": damaged} if damaged else {}
            record["resumed"].append({"at": now(), "from_epoch": epoch, **here, **found})
        else:
            record = {
                "status": "running",
                "message": "",
                "epoch": 0,
                "epochs": self.epochs,
                "config_hash": self.config["hash"],
            }
            record |= {"created": now(), "updated": now(), "seconds": 0.0, "peak_memory_bytes": 0, **here}
            record |= {"facts": {}, "resumed": []}
        record |= {"status": "running", "message": "", "epoch": epoch}

        def write(**changes: Any) -> None:
            record.update(changes, updated=now(), facts=experiment.facts, seconds=tables.seconds())
            record["peak_memory_bytes"] = max(record["peak_memory_bytes"], peak_memory_bytes(experiment.device))
            if record["status"] in FINISHED:
                record["tables_sha256"] = tables.sha256()
            self.write_record(record)

        write()
        for sentence in damaged:
            show(Note(f"{sentence}; goes on from the checkpoint of epoch {epoch}"))
        try:
            # A run that was killed between its divergence and run.json has nothing left to train.
            for event in experiment.train() if not diverged else ():
                if isinstance(event, Epoch):
                    tables.append(event)
                    diverged = event.diverged
                    state = {"epoch": event.epoch, "diverged": diverged, "config_hash": self.config["hash"]}
                    state |= {"tables": tables.text, "record": json.dumps(record), "rng": rng_state()}
                    save_checkpoint(self.folder, state | {"experiment": experiment.state_dict()})
                    write(epoch=event.epoch)
                show(event)
        except Exception as error:
            with contextlib.suppress(DiskError):  # which may be what ended it
                write(status="failed", message=f"{type(error).__name__}: {error}")
            raise
        write(status="diverged" if diverged else "done", message=diverged)
        (self.folder / CHECKPOINTS[1]).unlink(missing_ok=True)
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write run.json, sealed."""
        seal(record)
        write_json(self.folder / "run.json", record)

    def last_checkpoint(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The last good checkpoint, or None where there is no file of any; and what is wrong with one after it.

        Raises UserError where there are none but damaged ones.
        """
        wrong: list[str] = []
        for name in CHECKPOINTS:
            try:
                state = load_checkpoint(self.folder / name, self.config["hash"])
            except Damaged as error:
                wrong.append(str(error))
                continue
            if state is not None:
                return state, wrong
        if wrong:
            raise UserError(f"{'; '.join(wrong)}; put a good copy there, or start over with --fresh")
        return None, []

    def expect_nothing(self, record: dict[str, Any] | None) -> None:
        """Raise UserError where the run has more behind it than a kill in its first epoch leaves."""
        path = self.folder / "metrics.csv"
        rows = len(read_text(path).splitlines()) - 1 if path.exists() else 0
        if rows > 1 or (record and record["epoch"]):
            other = f"train it as {self.own}" if self.own else "start over with --fresh"
            raise UserError(
                f"{self.folder}: has epochs behind it, but no checkpoint to go on from (checkpoints are not "
                f"committed); put its checkpoint.pt there, or {other}"
            )

    def take(self, experiment: Experiment, checkpoint: dict[str, Any]) -> None:
        """Take the experiment and the generators to a checkpoint. Raises UserError where it does not fit them."""
        try:
            experiment.load_state_dict(checkpoint["experiment"])
            set_rng_state(checkpoint["rng"])
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.folder}: its checkpoint does not fit this version of wnrepro; go on with the one of which "
                "run.json has the commit, or start over with --fresh"
            ) from error

    def add_facts(self, load: Callable[[], Experiment], measure: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Measure the experiment at its last checkpoint, and put what came out among run.json's facts; its content.

        Raises UserError where there is no checkpoint.
        """
        record, experiment = self.record(), load()
        assert record is not None
        self.restore(experiment)
        record["facts"] |= measure(experiment)
        self.write_record(record)
        return record

    def restore(self, experiment: Experiment) -> None:
        """Take the experiment to the run's newest checkpoint. UserError where it is damaged, or there is none."""
        path = self.folder / CHECKPOINTS[0]
        try:
            checkpoint = load_checkpoint(path, self.config["hash"])
        except Damaged as error:
            raise UserError(f"{error}; put a good copy there, or train the run again with --fresh") from error
        if checkpoint is None:
            raise UserError(
                f"{self.folder}: has no checkpoint.pt (checkpoints are not committed); "
                f"train {f'it as {self.own}' if self.own else 'the run here'} first"
            )
        self.take(experiment, checkpoint)


def open_run(folder: Path) -> Run:
    """The run that lives in this directory. Raises UserError where none of this version does."""
    with contextlib.suppress(OSError, RuntimeError):  # a link in a circle is no directory
        folder = folder.resolve()
    path = folder / "config.json"
    content = read_json(path) if folder.is_dir() else None
    if content is None:
        raise UserError(f"{folder}: holds no run (no config.json); give a directory …/<variant>/seed-<n>")
    try:
        experiment, scale, values = content["experiment"], content["scale"], content["settings"]
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        run = Run(folder.parents[3], experiment, scale, scale_settings(experiment, scale, **values))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, UserError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: not of a run of this version ({what}); train it again") from error
    if run.settings.param not in ABOUT:
        given = ", ".join(ABOUT.keys() - {*PARAMS})
        raise UserError(
            f"{path}: no code of {run.settings.param} is loaded from there{f', {given} is other code' * bool(given)}; "
            f"give it as --param FILE.py:CLASS (the folder has a copy, {SOURCE})"
        )
    if run.folder != folder:
        raise UserError(f"{folder}: its settings belong to {run.folder}; move it there")
    if run.config["hash"] != content.get("hash"):
        raise UserError(
            f"{path}: its settings are not those of a run of this version ({run.differing(content)}); train it again"
        )
    return run

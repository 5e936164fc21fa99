"""One run: its tables, its checkpoint, its provenance; resume without a row lost, doubled or changed.

Every file is written whole: temporary file, fsync, rename. After each epoch the tables are written first, then
the checkpoint, then run.json. A checkpoint holds all that the run needs to go on, the tables' text and run.json too,
and a checksum of itself; the one before it stays. A kill at any byte, a copy made at any moment, a damaged table or
checkpoint therefore leave a directory that goes on from its last good checkpoint, and says what was damaged.
"""

import contextlib
import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import random
import re
import resource
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from wnrepro.cuda_graphs import graphs_allowed
from wnrepro.errors import DiskError, UserError
from wnrepro.events import Epoch, Note, Progress
from wnrepro.rundir import (
    OVER,
    SOURCE,
    RunDirectory,
    now,
    read_json,
    read_text,
    seal,
    understood,
    write_json,
    write_whole,
)
from wnrepro.settings import ABOUT, PARAMS, about, scale_settings

if TYPE_CHECKING:
    from wnrepro.atari import Scene

CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt")  # the newest first
PACKAGES = ("wnrepro", "torch", "torchvision", "numpy", "scikit-learn")
FRAME_MS, LAST_FRAME_MS = 100, 2000  # how long an animation shows a frame, and its last
STEP_MS = 70  # of a game: a fifteenth of a second, in a GIF's hundredths
CAPTION = 14  # pixels below a game's screen


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
                write_whole(path, content)
        return damaged

    def append(self, epoch: Epoch) -> None:
        """Add an epoch's rows, and write the files."""
        for name, rows in {"metrics": [epoch.metrics], **epoch.tables}.items():
            if rows:
                self.text[name] = self.text.get(name, "") + as_csv(rows, self.columns(name))
                write_whole(self.folder / f"{name}.csv", self.text[name].encode())

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


# ------------------------------------------------------------------------------- state


def rng_state() -> dict[str, Any]:
    """The global generators of torch, its GPUs, numpy and Python, in types that `weights_only` loads."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back to an `rng_state`."""
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


class Damaged(Exception):
    """A checkpoint that is not as it was written, or is none."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole, as torch.save's ZIP archive with its own sha256 as comment; the one before it stays."""
    content = io.BytesIO()
    torch.save(state, content)
    add_checksum(content)
    newest, before = (folder / name for name in CHECKPOINTS)
    write_whole(newest, content.getbuffer(), keep=before)


def add_checksum(archive: io.BytesIO) -> None:
    """Make the sha256 of a ZIP archive that has no comment its comment."""
    with archive.getbuffer()[:-2] as body:  # without the comment's length
        comment = b"sha256:" + hashlib.sha256(body).hexdigest().encode()
    archive.seek(-2, io.SEEK_END)
    archive.write(len(comment).to_bytes(2, "little") + comment)


def load_checkpoint(path: Path, digest: str) -> dict[str, Any] | None:
    """A checkpoint of the run with this hash, or None where there is no file. Raises Damaged where it is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("no file")
            if not whole(file):
                raise ValueError("not as it was written")
            with zipfile.ZipFile(file) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise ValueError("packed")  # the room it takes would be anyone's guess
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        if state["config_hash"] != digest:
            raise ValueError("of a run with other settings")
        kinds = {"epoch": int, "diverged": str, "rng": dict, "experiment": dict, "tables": dict, "record": str}
        fits = all(isinstance(state.get(name), kind) for name, kind in kinds.items())
        names = all(isinstance(name, str) and re.fullmatch(r"[a-z_]+", name) for name in state["tables"])
        texts = all(isinstance(text, str) for text in state["tables"].values())
        if not (fits and names and texts and understood(json.loads(state["record"]))):
            raise ValueError("not of this version")
        return state
    except Exception as error:
        reason = error if type(error) is ValueError else f"not readable, {type(error).__name__}"
        raise Damaged(f"{path}: {str(reason).splitlines()[0]}") from error


def whole(file: BinaryIO) -> bool:
    """Whether a file ends as `add_checksum` has it."""
    size, tail = file.seek(0, io.SEEK_END), 2 + len("sha256:") + 64
    if size < tail:
        return False
    file.seek(0)
    digest, left = hashlib.sha256(), size - tail
    while left and (block := file.read(min(left, 2**20))):
        digest.update(block)
        left -= len(block)
    comment = b"sha256:" + digest.hexdigest().encode()
    return file.read() == len(comment).to_bytes(2, "little") + comment


# ------------------------------------------------------------------------------- provenance


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether its files differ from it.

    Outside a git checkout the commit is what WNREPRO_COMMIT says, or null as the other is.
    """
    package = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", "runs.py") is None:
        given = re.fullmatch(r"[0-9a-fA-F]{7,40}", os.environ.get("WNREPRO_COMMIT", ""))
        return {"commit": given and given[0], "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--", ".") != ""}


def device_name(device: torch.device, threads: int | None = None) -> str:
    """GPU name, or processor name and threads; without a number, those of this process."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {threads or torch.get_num_threads()} threads"


def provenance(device: torch.device) -> dict[str, Any]:
    """What ran the code: device, whether its steps may be CUDA graphs, commit, package versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": device.type,
        "device_name": device_name(device),
        "graphs": device.type == "cuda" and graphs_allowed(),
        "git": git_state(),
        "versions": versions,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: what the allocator has taken of the GPU, used or not, or that of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if platform.system() == "Linux" else 1)


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
        if record and record["status"] in OVER:
            return record
        checkpoint, damaged = self.last_checkpoint()
        if checkpoint is None:
            self.expect_nothing(record)
        experiment = load()
        if source := about(self.config["settings"]["param"]).source:
            write_whole(self.folder / SOURCE, source.text.encode())
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
            if record["status"] in OVER:
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

    def write_pictures(self, pictures: dict[str, Tensor]) -> list[Path]:
        """Write grids of images in 0..1: (N, C, H, W) as <name>.png, frames (T, N, C, H, W) as a looping <name>.gif;
        their paths.
        """
        paths = []
        for name, images in pictures.items():
            content = io.BytesIO()
            if images.ndim == 4:
                paths.append(self.folder / f"{name}.png")
                grid(images).save(content, format="png")
            else:
                paths.append(self.folder / f"{name}.gif")
                first, *rest = [grid(frame) for frame in images]
                shown = [*[FRAME_MS] * len(rest), LAST_FRAME_MS]
                first.save(content, format="gif", save_all=True, append_images=rest, duration=shown, loop=0)
            write_whole(paths[-1], content.getvalue())
        return paths

    def write_film(self, scenes: Iterable["Scene"], title: str) -> tuple[Path, "Scene"]:
        """Write a game as a looping game.gif, the title and the score below each screen; its path and last scene."""
        scene, content = None, io.BytesIO()

        def pictures() -> Iterator[Image.Image]:
            nonlocal scene
            for scene in scenes:
                picture = captioned(scene.screen, f"{title}: {scene.score:.0f}")
                picture.info["duration"] = LAST_FRAME_MS if scene.over else STEP_MS
                yield picture

        shown = pictures()
        next(shown).save(content, format="gif", save_all=True, append_images=shown, loop=0)
        assert scene is not None
        write_whole(self.folder / "game.gif", content.getvalue())
        return self.folder / "game.gif", scene


def grid(images: Tensor) -> Image.Image:
    """Images (N, C, H, W) in 0..1 side by side, with a border."""
    together = make_grid(images, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=0.5)
    return Image.fromarray((255 * together + 0.5).clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).numpy())


def captioned(screen: np.ndarray, text: str) -> Image.Image:
    """A screen (H, W, 3) uint8 above a line of text."""
    high, wide, _ = screen.shape
    picture = Image.new("RGB", (wide, high + CAPTION))
    picture.paste(Image.fromarray(screen))
    ImageDraw.Draw(picture).text((1, high), text, fill="white")
    return picture


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

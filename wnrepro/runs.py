"""One run: its tables, its checkpoint, its provenance; resume without a row lost, doubled or changed.

Every file is written whole: temporary file, fsync, rename. After each epoch the tables are written first, then
the checkpoint, then run.json; a resume cuts the tables back to the checkpoint's epoch. A kill at any byte
therefore leaves a directory that goes on as if nothing had happened.
"""

import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import io
import math
import platform
import random
import resource
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from wnrepro.errors import UserError
from wnrepro.rundir import RunDirectory, read_json, write_json, write_whole
from wnrepro.settings import scale_settings
from wnrepro.training import Epoch, Note, Tick

if TYPE_CHECKING:
    from wnrepro.atari import Scene

PACKAGES = ("wnrepro", "torch", "torchvision", "numpy", "scikit-learn")
FRAME_MS, LAST_FRAME_MS = 100, 2000  # how long an animation shows a frame, and its last
STEP_MS = 70  # of a game: a fifteenth of a second, in a GIF's hundredths
CAPTION = 14  # pixels below a game's screen


class Experiment(Protocol):
    """What a run drives: train() yields its progress, the state dict is all that it goes on from."""

    device: torch.device
    facts: dict[str, Any]

    def train(self) -> Iterator[Tick | Epoch | Note]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


# ------------------------------------------------------------------------------- files


class Tables:
    """The run's CSV files: rows of text by table name, each row with its epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, str]]] = {}

    def cut(self, epoch: int | None) -> None:
        """Read what is there, and keep the rows up to this epoch; none without one, not those of epoch 0 either."""
        for path in sorted(self.folder.glob("*.csv")):
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.rows[path.stem] = [row for row in rows if epoch is not None and int(row["epoch"]) <= epoch]
            self.write(path.stem)

    def append(self, epoch: Epoch) -> None:
        """Add an epoch's rows, and write the files."""
        for name, rows in {"metrics": [epoch.metrics], **epoch.tables}.items():
            self.rows.setdefault(name, []).extend({column: str(value) for column, value in row.items()} for row in rows)
            self.write(name)

    def write(self, name: str) -> None:
        path, rows = self.folder / f"{name}.csv", self.rows[name]
        if not rows:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue().encode())


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
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def save_checkpoint(path: Path, experiment: Experiment, epoch: Epoch, digest: str) -> None:
    """Write a checkpoint whole; the one before stays until this one is on disk."""
    state = {"epoch": epoch.epoch, "diverged": epoch.diverged, "config_hash": digest, "rng": rng_state()}
    content = io.BytesIO()
    torch.save(state | {"experiment": experiment.state_dict()}, content)
    write_whole(path, content.getvalue())


def load_checkpoint(path: Path, digest: str) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none. Raises UserError where it cannot be read or is another run's."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path}: not readable as a checkpoint ({type(error).__name__}); start over with --fresh"
        ) from error
    if state.get("config_hash") != digest:
        raise UserError(f"{path}: the checkpoint of a run with other settings; start over with --fresh")
    return state


# ------------------------------------------------------------------------------- provenance


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether its files differ from it; nulls outside a git checkout."""
    package = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", "runs.py") is None:
        return {"commit": None, "dirty": None}
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
    """What ran the code: device, commit, package versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": device.type,
        "device_name": device_name(device),
        "git": git_state(),
        "versions": versions,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if platform.system() == "Linux" else 1)


# ------------------------------------------------------------------------------- the run


class Run(RunDirectory):
    """What a process does with a run directory that it holds."""

    def execute(
        self, load: Callable[[], Experiment], show: Callable[[Tick | Epoch | Note], None] = lambda _: None
    ) -> dict[str, Any]:
        """Begin or go on, to the end; the content of run.json then. `show` sees everything that train() yields.

        Raises what the experiment raises, after recording the run as failed; an interruption leaves it as running.
        """
        record = self.record()
        checkpoint_path, digest = self.folder / "checkpoint.pt", self.config["hash"]
        experiment = load()
        write_json(self.folder / "config.json", self.config)
        checkpoint = load_checkpoint(checkpoint_path, digest) if record else None
        epoch, diverged = 0, ""
        if checkpoint:
            experiment.load_state_dict(checkpoint["experiment"])
            set_rng_state(checkpoint["rng"])
            epoch, diverged = checkpoint["epoch"], checkpoint["diverged"]
        tables = Tables(self.folder)
        tables.cut(epoch if checkpoint else None)

        here = provenance(experiment.device)
        if record:
            record["resumed"].append({"at": now(), "from_epoch": epoch, **here})
        else:
            record = {
                "status": "running",
                "message": "",
                "epoch": 0,
                "epochs": self.epochs,
                "config_hash": digest,
            }
            record |= {"created": now(), "updated": now(), "seconds": 0.0, "peak_memory_bytes": 0, **here}
            record |= {"facts": {}, "resumed": []}
        record |= {"status": "running", "message": "", "epoch": epoch}

        def write(**changes: Any) -> None:
            record.update(changes, updated=now(), facts=experiment.facts)
            record["seconds"] = round(sum(float(row["seconds"]) for row in tables.rows.get("metrics", [])), 3)
            record["peak_memory_bytes"] = max(record["peak_memory_bytes"], peak_memory_bytes(experiment.device))
            if record["status"] in ("done", "diverged"):
                content = (self.folder / "metrics.csv").read_bytes()
                record["metrics_sha256"] = hashlib.sha256(content).hexdigest()
            write_json(self.folder / "run.json", record)

        write()
        try:
            # A run that was killed between its divergence and run.json has nothing left to train.
            for event in experiment.train() if not diverged else ():
                if isinstance(event, Epoch):
                    tables.append(event)
                    save_checkpoint(checkpoint_path, experiment, event, digest)
                    write(epoch=event.epoch)
                    diverged = event.diverged
                show(event)
        except Exception as error:
            write(status="failed", message=f"{type(error).__name__}: {error}")
            raise
        write(status="diverged" if diverged else "done", message=diverged)
        return record

    def add_facts(self, load: Callable[[], Experiment], measure: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Measure the experiment at its last checkpoint, and put what came out among run.json's facts; its content.

        Raises UserError where there is no checkpoint.
        """
        record, experiment = self.record(), load()
        assert record is not None
        self.restore(experiment)
        record["facts"] |= measure(experiment)
        write_json(self.folder / "run.json", record)
        return record

    def restore(self, experiment: Experiment) -> None:
        """Take the experiment to the run's last checkpoint. Raises UserError where there is none."""
        checkpoint = load_checkpoint(self.folder / "checkpoint.pt", self.config["hash"])
        if checkpoint is None:
            raise UserError(
                f"{self.folder}: has no checkpoint.pt (checkpoints are not committed); train the run here first"
            )
        experiment.load_state_dict(checkpoint["experiment"])

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
        raise UserError(f"{path}: not of a run of this version ({error}); train it again") from error
    if run.folder != folder:
        raise UserError(f"{folder}: its settings belong to {run.folder}; move it there")
    if run.config["hash"] != content.get("hash"):
        raise UserError(
            f"{path}: its settings are not those of a run of this version ({run.differing(content)}); train it again"
        )
    return run

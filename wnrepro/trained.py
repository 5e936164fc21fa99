"""A trained run, opened for tests: its experiment at the newest checkpoint, and what it measures."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from os import W_OK, access
from pathlib import Path
from typing import Any

import torch

from wnrepro.data.files import MissingDataError
from wnrepro.data.pictures import SIZE, load_pictures
from wnrepro.device import choose_device
from wnrepro.errors import UserError
from wnrepro.experiments import experiment_class
from wnrepro.preflight import load_params
from wnrepro.runs.checkpoint import CHECKPOINTS
from wnrepro.runs.directory import disk_error
from wnrepro.runs.outcome import rows
from wnrepro.runs.provenance import device_name
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import SETTINGS, Settings
from wnrepro.text import count, plain, printable

WORDS = {
    "pictures": "samples",
    "film": "game to film",
    "test_metrics": "test metrics",
    "classify": "classes of images (--data)",
    "exported": "model to export",
}


@dataclass
class Trained:
    """A trained run, its settings for tests on this device, and the file that its weights were read from."""

    run: Run
    settings: Settings
    data_dir: Path | None
    device: torch.device
    weights: str = ""

    def load(self) -> Any:
        """Create the experiment and restore it from the run's newest checkpoint or its published weights."""
        experiment = experiment_class(self.run.experiment).load(self.settings, self.data_dir, self.device)
        self.weights = self.run.restore(experiment)
        return experiment

    @contextlib.contextmanager
    def output(self, out: Path | None) -> Iterator[Path]:
        """Return the folder to write into: `out`, the run's directory, locked, or a folder here with the run's name.

        A folder that is made for it and stays empty is removed after an error.
        """
        folder = self.run.folder
        if out is None and (folder / CHECKPOINTS[0]).exists() and access(folder, W_OK):
            with self.run:
                yield folder
            return
        made = out or Path(f"{self.run.experiment}_{folder.parent.name}_{folder.name}")
        try:
            there = made.exists()
            if there and not made.is_dir():
                raise UserError(f"--out {made}: is a file; use a folder")
            made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(made, error) from error
        try:
            yield made
        except BaseException:
            if not there:
                with contextlib.suppress(OSError):  # it holds files
                    made.rmdir()
            raise


def open_trained(
    folder: Path, method: str, device: str, param: str | None, data_dir: Path | None = None, precision: str = ""
) -> Trained:
    """Open a trained run. precision: replaces the run's.

    Raises UserError if its experiment has no such method, its data are missing, or it diverged.
    """
    if param is not None:
        load_params([param])
    run = open_run(folder)
    experiment_cls, torch_device = experiment_class(run.experiment), choose_device(device)
    if not hasattr(experiment_cls, method):
        others = " or ".join(name for name in SETTINGS if hasattr(experiment_class(name), method))
        raise UserError(f"{folder}: {run.experiment} has no {WORDS[method]}; use a run of {others}")
    if run.finished() == "diverged":
        raise UserError(f"{folder}: the run diverged and has no {WORDS[method]}; use another run")
    settings = for_tests(run.settings, torch_device)
    if precision:
        settings = dataclasses.replace(settings, precision=precision)
    try:
        settings.check(data_dir, torch_device.type)
    except MissingDataError as error:
        raise UserError(error.plain) from error
    return Trained(run, settings, data_dir, torch_device)


def for_tests(settings: Any, device: torch.device) -> Settings:
    """Return the settings for tests: as few training images and as small a replay as possible, a CPU's precision."""
    changes: dict[str, Any] = {}
    if device.type == "mps" or (settings.precision == "tf32" and device.type == "cpu"):
        changes["precision"] = "fp32"
    if settings.epoch_setting == "train_examples":
        changes["train_examples"] = max(settings.batch_size, getattr(settings, "init_examples", 0))
    if hasattr(settings, "replay_steps") and not settings.checkpoint_replay:
        changes["replay_steps"] = settings.replay_start
    return dataclasses.replace(settings, **changes)


def evaluate(trained: Trained) -> dict[str, Any]:
    """Compute a run's test metrics, and return them with those of the same epoch in metrics.csv."""
    experiment = trained.load()
    metrics = experiment.test_metrics()
    reached = None if experiment.within else experiment.epoch  # no row has the metrics within an epoch
    row = next((row for row in rows(trained.run.folder) if row.get("epoch") == reached), {})
    columns = experiment.settings.models[experiment.part].metrics
    return {
        "run": str(trained.run.folder),
        "epoch": experiment.epoch,
        "weights": trained.weights,
        "device": device_name(trained.device),
        "precision": trained.settings.precision,
        "metrics": {name: metrics[name] for name in columns if name in metrics},
        "recorded": {name: row[name] for name in columns if name in metrics and name in row},
    }


def classify(trained: Trained, folder: Path) -> dict[str, Any]:
    """Classify the images of a folder: by image the class and its probability; with classes, the error by class."""
    pictures = load_pictures(folder, trained.settings.dataset)  # type: ignore[attr-defined]
    probabilities, found = trained.load().classify(pictures.x, trained.data_dir).max(1)
    images = [
        {"file": path, "class": pictures.names[number], "probability": probability}
        for path, number, probability in zip(pictures.paths, found.tolist(), probabilities.tolist(), strict=True)
    ]
    result: dict[str, Any] = {"run": str(trained.run.folder), "weights": trained.weights, "images": images}
    result |= {"resized": pictures.resized}
    if pictures.y is not None:
        wrong = found != pictures.y
        rows = {
            name: {"images": int((pictures.y == number).sum()), "errors": int(wrong[pictures.y == number].sum())}
            for number, name in enumerate(pictures.names)
        }
        result |= {"error": wrong.float().mean().item(), "classes": rows}
    return result


def write_weights(folder: Path, param: str | None) -> Path:
    """Write a run's weights.pt for publishing, beside its checkpoint."""
    if param is not None:
        load_params([param])
    with open_run(folder) as run:
        return run.write_weights()


def export(trained: Trained, form: str, out: Path | None) -> tuple[Path, float]:
    """Write a run's model in a format of `formats`; return its path and the largest difference of its outputs."""
    from wnrepro import formats

    formats.require(form)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out}: must be a file in an existing folder")
    with contextlib.nullcontext(out.parent) if out else trained.output(None) as folder:
        experiment = trained.load()
        exported, record = experiment.exported(trained.data_dir), trained.run.record() or {}
        about = {"run": f"{trained.run.name}/seed-{trained.settings.seed}", "epoch": experiment.epoch}
        about |= {"config_hash": trained.run.config["hash"], "commit": record.get("git", {}).get("commit")}
        about |= dict(zip(("input", "output"), exported.names, strict=True))
        path = out or folder / f"model.{formats.SUFFIX[form]}"
        return path, formats.write_model(exported, form, path, about)


def lines_of(result: dict[str, Any]) -> list[str]:
    """Format the result of `evaluate` or `classify` as lines."""
    run = printable(result["run"])
    if "metrics" in result:
        lines = [f"{run}: epoch {result['epoch']}, {result['weights']}, {result['device']}"]
        lines.append(f"  {'':<22} {'now':>12} {'metrics.csv':>12}")
        for name, value in result["metrics"].items():
            recorded = result["recorded"].get(name)
            lines.append(
                f"  {name:<22} {plain(value, '.6g'):>12} {'–' if recorded is None else plain(recorded, '.6g'):>12}"
            )
        return lines
    lines = [f"{run}: {count(len(result['images']), 'image')}, {result['weights']}"]
    if result["resized"]:
        lines.append(f"{count(result['resized'], 'image')} cropped to the central square and resized to {SIZE}×{SIZE}")
    if "classes" not in result:
        return lines + [
            f"  {printable(one['file'])}: {one['class']} ({one['probability']:.1%})" for one in result["images"]
        ]
    lines += [
        f"  {name:<12} {row['errors']:>6} of {count(row['images'], 'image')} wrong"
        for name, row in result["classes"].items()
        if row["images"]
    ]
    return [*lines, f"error {result['error']:.2%}"]

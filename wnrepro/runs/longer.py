"""Longer training: a run that begins with a finished run of fewer epochs, otherwise alike."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from wnrepro.errors import UserError
from wnrepro.runs.checkpoint import CHECKPOINTS, DamagedError, load_checkpoint
from wnrepro.runs.directory import PUBLISHED, RunDirectory, read_json

DROPPED = ("tables_sha256", "weights_sha256", "sha256")  # entries of run.json that are not the longer run's


def shorter_runs(run: RunDirectory) -> Iterator[RunDirectory]:
    """Yield the finished runs of fewer epochs, otherwise alike: the longest first, then published ones."""
    results, scale = run.folder.parents[3], run.config["scale"]
    for root in (results, results / PUBLISHED):
        found = []
        for path in (root / scale / run.experiment).glob(f"*/seed-{run.settings.seed}/config.json"):
            with contextlib.suppress(UserError, KeyError, TypeError):
                epochs = (read_json(path) or {})["settings"]["epochs"]
                if type(epochs) is int and 0 < epochs < run.epochs:
                    settings: Any = dataclasses.replace(run.settings, epochs=epochs)
                    other = RunDirectory(root, run.experiment, scale, settings)
                    if other.folder == path.parent and other.finished() == "done":
                        found.append(other)
        yield from sorted(found, key=lambda one: -one.epochs)


def beginning(run: RunDirectory, compiled: bool) -> tuple[dict[str, Any] | None, str]:
    """Return a checkpoint from which a new run continues a shorter one, and a sentence on it or why there is none.

    compiled: whether the new run's steps are. Runs of few epochs are not worth compiling, and compiled steps round
    differently.
    """
    reasons = []
    for shorter in shorter_runs(run):
        reason = run.settings.continues(shorter.settings)
        try:
            state = None if reason else load_checkpoint(shorter.folder / CHECKPOINTS[0], shorter.config["hash"])
        except DamagedError:
            state = None
        if state is not None and bool(json.loads(state["record"])["facts"].get("compiled")) != compiled:
            reason, state = f"was trained with{'out' if compiled else ''} torch.compile, unlike this run", None
        if state is not None:
            return continued(run, shorter, state), f"continues {shorter.folder} after epoch {state['epoch']}"
        reasons.append(f"{shorter.folder}: {reason or f'has no valid {CHECKPOINTS[0]} (git ignores these files)'}")
    return None, f"starts from epoch 1 and does not continue {reasons[0]}" if reasons else ""


def continued(run: RunDirectory, shorter: RunDirectory, state: dict[str, Any]) -> dict[str, Any]:
    """Return the shorter run's last checkpoint as one of the longer run."""
    record = json.loads(state["record"])
    source = {"run": f"{shorter.name}/seed-{shorter.settings.seed}", "epoch": state["epoch"]}
    source |= {"config_hash": shorter.config["hash"], "commit": record.get("git", {}).get("commit")}
    record = {name: value for name, value in record.items() if name not in DROPPED}
    record |= {"status": "running", "epoch": state["epoch"], "epochs": run.epochs, "config_hash": run.config["hash"]}
    return state | {"config_hash": run.config["hash"], "record": json.dumps(record | {"continued": source})}

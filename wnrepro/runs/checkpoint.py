"""Checkpoints of a run, each one file with its own checksum, and the states of the random generators.

A checkpoint is the ZIP archive that torch.save writes, with its sha256 as the archive's comment. It is loaded with
weights_only=True. An unfinished run keeps its two newest checkpoints.
"""

import hashlib
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from wnrepro.runs.directory import is_record, write_atomic

CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt")  # newest first
FIELDS = {"epoch": int, "diverged": str, "rng": dict, "experiment": dict, "tables": dict, "record": str}
HALF_ERROR = 1e-3  # largest error of a tensor in half precision, relative to its norm
COMMENT_BYTES = 2 + len("sha256:") + 64  # the comment and its length field, at the end of the archive


class DamagedError(Exception):
    """A file that is no valid checkpoint, or was changed after it was written."""


def rng_state() -> dict[str, Any]:
    """Return the states of the generators of torch, its GPUs, NumPy and Python, in types that torch can load."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the random generators to states from `rng_state`."""
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if torch.backends.mps.is_available() and state.get("mps") is not None:  # checkpoints of earlier versions have none
        torch.mps.set_rng_state(state["mps"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically and keep the previous one."""
    content = io.BytesIO()
    torch.save(state, content)
    add_checksum(content)
    newest, previous = (folder / name for name in CHECKPOINTS)
    write_atomic(newest, content.getbuffer(), keep=previous)


def add_checksum(archive: io.BytesIO) -> None:
    """Store the sha256 of a ZIP archive as its comment. The archive must have no comment yet."""
    with archive.getbuffer()[:-2] as body:  # without the comment's length
        comment = _comment(hashlib.sha256(body).hexdigest())
    archive.seek(-2, io.SEEK_END)
    archive.write(comment)


def _comment(digest: str) -> bytes:
    text = f"sha256:{digest}".encode()
    return len(text).to_bytes(2, "little") + text


def resumable(state: dict[str, Any]) -> bool:
    """Test whether a checkpoint has all that resuming needs."""
    fits = all(isinstance(state.get(name), kind) for name, kind in FIELDS.items())
    names = fits and all(isinstance(name, str) and re.fullmatch(r"[a-z_]+", name) for name in state["tables"])
    texts = names and all(isinstance(text, str) for text in state["tables"].values())
    return texts and is_record(json.loads(state["record"]))


def load_checkpoint(
    path: Path, digest: str, complete: Callable[[dict[str, Any]], bool] = resumable
) -> dict[str, Any] | None:
    """Return the checkpoint at `path`, or None if there is no file.

    Raises DamagedError if it is damaged or not `complete`, or its config hash is not `digest`.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            if not _intact(file):
                raise ValueError("changed after it was written")
            with zipfile.ZipFile(file) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise ValueError("compressed")  # may expand to any size
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if state["config_hash"] != digest:
            raise ValueError("belongs to a run with other settings")
        if not complete(state):
            raise ValueError("does not fit this version")
        return state
    except Exception as error:
        reason = error if type(error) is ValueError else f"cannot be read ({type(error).__name__})"
        raise DamagedError(f"{path}: {str(reason).splitlines()[0]}") from error


def _intact(file: BinaryIO) -> bool:
    """Test whether a file ends with the checksum of its other bytes, as `add_checksum` writes it."""
    left = file.seek(0, io.SEEK_END) - COMMENT_BYTES
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (block := file.read(min(left, 2**20))):
        digest.update(block)
        left -= len(block)
    return left == 0 and file.read() == _comment(digest.hexdigest())


# ------------------------------------------------------------------------------- the weights alone


def tested_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that tests use from an experiment's state: the averaged ones if there are any."""
    averaged: dict[str, Tensor] = state.get("average", {})
    named = {name.removeprefix("module."): value for name, value in averaged.items() if name.startswith("module.")}
    return named or dict(state["net"])


def halved(value: Tensor) -> Tensor:
    """Return a tensor in half precision unless that changes it by more than HALF_ERROR, as tiny numbers would be."""
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if (half.float() - value).norm() <= HALF_ERROR * value.norm() else value


def weights_archive(state: dict[str, Any]) -> bytes:
    """Return the content of a file with the weights of a checkpoint alone, in half precision, with its checksum."""
    content = io.BytesIO()
    weights = {name: halved(value.cpu()).clone() for name, value in tested_weights(state["experiment"]).items()}
    torch.save({"config_hash": state["config_hash"], "epoch": state["epoch"], "weights": weights}, content)
    add_checksum(content)
    return content.getvalue()


def load_weights(path: Path, digest: str) -> dict[str, Any] | None:
    """Return `epoch` and `weights` of the file that `weights_archive` made, or None; raises as `load_checkpoint`."""

    def complete(state: dict[str, Any]) -> bool:
        weights, epoch = state.get("weights"), state.get("epoch")
        return (
            isinstance(weights, dict)
            and isinstance(epoch, int)
            and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items())
        )

    return load_checkpoint(path, digest, complete)

"""Checkpoints: the state of a run in one file with its own checksum, and the global random generators.

A checkpoint is torch.save's ZIP archive, read with weights_only=True; its comment is its sha256. The one before stays.
"""

import hashlib
import io
import json
import os
import random
import re
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from wnrepro.runs.directory import is_record, write_atomic

CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt")  # the newest first


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
    write_atomic(newest, content.getbuffer(), keep=before)


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
        if not (fits and names and texts and is_record(json.loads(state["record"]))):
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

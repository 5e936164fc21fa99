"""What computed a run: device, commit and package versions; and its peak memory. Torch is imported only if needed."""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnrepro.machine import processor

if TYPE_CHECKING:
    import torch

PACKAGES = ("wnrepro", "torch", "torchvision", "numpy", "scikit-learn")


def git_state() -> dict[str, Any]:
    """Return this code's commit, and whether its files differ from it. Outside git: WNREPRO_COMMIT, or None."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(package), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", "runs/provenance.py") is None:
        given = re.fullmatch(r"[0-9a-fA-F]{7,40}", os.environ.get("WNREPRO_COMMIT", ""))
        return {"commit": given and given[0], "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--", ".") != ""}


def device_name(device: "torch.device", threads: int | None = None) -> str:
    """Return the GPU's name, or the processor's name and the number of threads (default: this process's)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU of {platform.machine()}, macOS {platform.mac_ver()[0]}"
    return processor(threads or torch.get_num_threads())


def provenance(device: "torch.device") -> dict[str, Any]:
    """Return the device, the commit, the package versions, and whether steps may be CUDA graphs.

    `together`: the number of runs in this process, if there are several.
    """
    from wnrepro.cuda_graphs import graphs_allowed, here

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
        **({"together": here.together} if here.together > 1 else {}),
    }


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the peak memory in bytes so far: reserved by the GPU's allocator, or resident in this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()  # the present use, as Metal has no record of its peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if platform.system() == "Linux" else 1)

"""Checks of this machine for the experiments, as plain data. Torch is imported only inside the checks."""

import contextlib
import importlib.metadata
import io
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from wnrepro import machine
from wnrepro.data import files
from wnrepro.errors import UserError
from wnrepro.settings import GAMES
from wnrepro.text import count

MEMORY_BYTES = 4e9  # whitened CIFAR-10 (0.8 GB), its pixels, torch, one minibatch's activations, and a reserve
DISK_BYTES = 5e9  # a checkpoint of the paper's CIFAR-10 VAE has 0.7 GB, and the next is written beside it
BF16_FLAGS = machine.BF16_FLAGS | {"bf16"}  # with ARM's
USES = {  # the commands that read a data set
    "cifar10": "cifar and cvae with --dataset cifar10",
    "mnist": "cvae and draw with --binarization seeded",
    "binarized_mnist": "cvae and draw with --binarization larochelle",
}


@dataclass(frozen=True)
class Finding:
    """One fact about the machine. `state` is ok, note (works, with a limit) or problem.

    detail: what was found. costs: the consequences. mend: how to repair it. The last two are empty if ok.
    """

    name: str
    state: str
    detail: str
    costs: str = ""
    mend: str = ""


def diagnose(data_dir: Path | None, results_dir: Path) -> list[Finding]:
    """Return all findings in reading order. Hashing the data files takes about a second."""
    return [
        Finding("python", "ok", f"Python {platform.python_version()} on {platform.platform()}"),
        *(packages(package) for package in ("wnrepro", "torchvision")),
        torch_build(),
        gpu(),
        cpu(),
        memory(),
        disk("results", results_dir),
        disk("data folder", files.data_root(data_dir)),
        *data_sets(data_dir),
        roms(),
    ]


def summary(findings: Sequence[Finding]) -> str:
    """Return one line with the number of problems and notes, and their names."""
    found = {state: [one.name for one in findings if one.state == state] for state in ("problem", "note")}
    parts = [f"{count(len(names), state)}: {', '.join(names)}" for state, names in found.items() if names]
    return "; ".join(parts) or f"no problem in {count(len(findings), 'check')}"


def unmet(package: str) -> Iterator[tuple[str, str]]:
    """Yield an installed package's unmet requirements and the versions found: `torch>=2.11`, `2.9`."""
    for line in importlib.metadata.requires(package) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            installed = {found.version for found in importlib.metadata.distributions(name=requirement.name)}
            if not any(requirement.specifier.contains(version, prereleases=True) for version in installed):
                yield f"{requirement.name}{requirement.specifier}", ", ".join(installed) or "not installed"


def packages(package: str) -> Finding:
    """Check whether a package is installed with the versions that it requires."""
    name = f"{package}'s packages"
    try:
        version, wrong = importlib.metadata.version(package), list(unmet(package))
    except importlib.metadata.PackageNotFoundError:
        costs, mend = "its version can be neither checked nor recorded", "run `make install` in the repository"
        return Finding(name, "problem", f"{package} is not installed", costs, mend)
    if not wrong:
        return Finding(name, "ok", f"{package} {version} and its requirements")
    detail = f"{package} needs {', '.join(f'{requirement} ({found})' for requirement, found in wrong)}"
    required = " ".join(f"'{requirement}'" for requirement, _ in wrong)
    mend = f"run `pip install --upgrade {required}` (always upgrade torch and torchvision together)"
    return Finding(name, "problem", detail, "commands that use them fail or give other results", mend)


def torch_build() -> Finding:
    """Check whether torch loads, its version, and the CUDA version that it was built for."""
    try:
        import torch
    except (ImportError, OSError) as error:
        mend = "reinstall the two together: `pip install --force-reinstall torch torchvision`"
        return Finding("torch", "problem", f"torch does not load: {error}", "no model can be trained", mend)
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    return Finding("torch", "ok", f"torch {torch.__version__}, {build}")


def gpu() -> Finding:
    """Check the GPUs that torch can use (name, memory, driver), or that only nvidia-smi can find."""
    cards = _nvidia_smi()
    with contextlib.suppress(ImportError, OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns if it finds no driver
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(k) for k in range(0 if cards else torch.cuda.device_count())]
            return Finding("gpu", "ok", "; ".join(cards or names))
        if torch.backends.mps.is_available():
            costs = "it is untested, and scale paper would take long; the default is the CPU"
            return Finding("gpu", "note", "Apple's GPU", costs, "use --device mps to compute on it, in fp32 only")
    if cards:
        costs = "all commands compute on the CPU, which is hundreds of times slower at scale paper"
        mend = "update the NVIDIA driver, or install a torch that is built for the driver's CUDA version"
        return Finding("gpu", "problem", f"torch cannot use {'; '.join(cards)}", costs, mend)
    costs = "scale paper would take years; scale short (a day) and scale quick (minutes) are for CPUs"
    return Finding("gpu", "note", "no NVIDIA GPU found", costs, "run scale paper on a machine with a GPU")


def _nvidia_smi() -> list[str]:
    """Return `name, memory, driver` of each card, or nothing if nvidia-smi is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [", driver ".join(line.rsplit(", ", 1)) for line in done.stdout.splitlines() if line.strip()]


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Check the threads of this process, and the CPU's instructions for bf16 (known on Linux only)."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    lines = dict(line.replace("\t", "").partition(":")[::2] for line in text.splitlines() if ":" in line)
    detail = f"{lines.get('model name', platform.machine()).strip()}, {count(threads, 'thread')}"
    flags = set(lines.get("flags", lines.get("Features", "")).split())
    if not flags:
        return Finding("cpu", "ok", f"{detail}; its instructions cannot be listed on this system")
    known = sorted(flags & {"avx2", "avx512f", *BF16_FLAGS})
    detail = f"{detail}, {', '.join(known) or 'none of the vector instructions that torch uses'}"
    if flags & BF16_FLAGS:
        return Finding("cpu", "ok", detail)
    costs = "--precision bf16 works, but is many times slower, because this CPU has no bf16 instructions"
    return Finding("cpu", "note", detail, costs, "use --precision fp32, the default on a CPU, or auto")


def memory() -> Finding:
    """Check the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{total / 1e9:.1f} GB"
    if total >= MEMORY_BYTES:
        return Finding("memory", "ok", detail)
    costs = f"a run on all of CIFAR-10 needs {MEMORY_BYTES / 1e9:.0f} GB and may be killed"
    return Finding("memory", "problem", detail, costs, "use --scale quick or short, or a larger machine")


def disk(name: str, folder: Path) -> Finding:
    """Check the free space of a folder, which may not exist yet, and whether it can be written."""
    there, costs = folder.absolute(), "no file can be stored there"
    try:
        there = files.existing_folder(there)
        free = files.free_bytes(there)
    except OSError as error:
        return Finding(name, "problem", f"{there}: {error.strerror}", costs, "fix this error, or use another folder")
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        mend = f"allow this user to write in {there}, or use another folder"
        return Finding(name, "problem", f"{there} cannot be written", costs, mend)
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < DISK_BYTES:
        mend = f"free {DISK_BYTES / 1e9:.0f} GB there, or use another folder"
        return Finding(name, "problem", detail, "a run or a download stops when the disk is full", mend)
    return Finding(name, "ok", detail)


def data_sets(data_dir: Path | None) -> Iterator[Finding]:
    """Yield for each data set whether all its files are there with their checksums."""
    try:
        statuses = files.status(data_dir)
    except UserError as error:
        mend = "make it readable, or set --data-dir or WNREPRO_DATA to another folder"
        yield Finding("data", "problem", str(error), "experiments on this data fail", mend)
        return
    root = files.data_root(data_dir)
    for name in files.DATASETS:
        wrong = [file for file in statuses if file.dataset == name and file.state != "present"]
        if not wrong:
            yield Finding(name, "ok", f"complete in {root}, checksums verified")
            continue
        state = "problem" if any(file.state == "corrupt" for file in wrong) else "note"
        detail = f"{', '.join(f'{file.name} {file.state}' for file in wrong)} in {root}"
        costs = f"these commands fail, except at scale quick: {USES[name]}"
        mend = f"run `wnrepro data fetch {name}`, or set --data-dir or WNREPRO_DATA to the folder with its files"
        yield Finding(name, state, detail, costs, mend)


def roms() -> Finding:
    """Check the ROMs of the paper's four games, which come with ale-py, and their checksums."""
    costs, mend = "dqn cannot run", "reinstall ale-py: `pip install --force-reinstall ale-py`"
    try:
        from ale_py.roms import get_rom_path

        with contextlib.redirect_stdout(io.StringIO()):  # it prints if ALE_ROMS_DIR is set
            missing = [game for game in GAMES if get_rom_path(game) is None]
    except (ImportError, OSError) as error:
        return Finding("roms", "problem", f"the Atari ROMs cannot be read: {error}", costs, mend)
    if missing:
        return Finding("roms", "problem", f"ale-py has no ROM of {', '.join(missing)}", costs, mend)
    return Finding("roms", "ok", f"ale-py {importlib.metadata.version('ale-py')} with {', '.join(GAMES)}")

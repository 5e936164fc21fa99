"""A command's checks and choices before it computes. Torch is imported only if needed."""

import dataclasses
import importlib
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from wnrepro import signals
from wnrepro.errors import DiskError, InstallError, UserError
from wnrepro.machine import may_be_gpu
from wnrepro.settings import Settings
from wnrepro.text import count

LONG = 86_400  # seconds of computing that on a terminal begin only after a question


def import_uninterrupted(*modules: str) -> None:
    """Import modules, and only then obey Ctrl-C: an exception in torch's C++ code would abort the process.

    Raises InstallError if a module does not load.
    """
    with signals.handled(), signals.deferred(signals.ALL):
        for module in modules:
            try:
                importlib.import_module(module)
            except (ImportError, OSError) as error:
                raise InstallError(f"{module} does not load ({error}); see `wnrepro doctor`") from error


def load_torch(quiet: bool = False) -> None:
    """Import torch, which takes seconds, and say so on standard error; on a terminal only as long as it takes."""
    if "torch" in sys.modules or quiet or sys.stderr is None:
        import_uninterrupted("torch")
        return
    erased = sys.stderr.isatty()
    print("loading torch…", end="" if erased else "\n", file=sys.stderr, flush=True)
    try:
        import_uninterrupted("torch")
    finally:
        if erased:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def check_results(
    results: Path,
    must_exist: bool = False,
    write: bool = True,
    option: str = "--results",
    instead: str = "use another folder",
) -> None:
    """Raise UserError or DiskError unless this folder can be read and, if `write`, written.

    instead: what to do if it cannot be written.
    """
    try:
        exists = results.exists()
    except OSError as error:
        raise DiskError(f"{option} {results}: {error.strerror}; use another folder") from error
    if exists and not results.is_dir():
        raise UserError(f"{option} {results}: is a file; use a folder")
    if exists and not os.access(results, os.R_OK | os.X_OK | (os.W_OK if write else 0)):
        to = "read and write" if write else "read"
        raise DiskError(f"{option} {results}: no permission to {to}; change its permissions, or {instead}")
    if must_exist and not exists:
        raise UserError(f"{option} {results}: no such folder; train a run first, or use another folder")
    if write and not exists:
        above = next(parent for parent in results.absolute().parents if parent.exists())
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".wnrepro-", dir=above))
        except OSError as error:
            raise DiskError(f"{option} {results}: cannot be created ({error.strerror}); {instead}") from error


def load_params(texts: Sequence[str], quiet: bool = False) -> list[str]:
    """Return the parameterizations of `--param`, and load the custom ones. Only these need torch."""
    if any(":" in text for text in texts):
        load_torch(quiet)
    from wnrepro.custom import params

    return params(texts)


def check_params(models: Iterable[tuple[str, str]]) -> None:
    """Raise UserError unless each custom parameterization trains in its experiment's model."""
    from wnrepro.custom import try_in

    for experiment, param in sorted(set(models)):
        try_in(experiment, param)


def is_gpu(device: str, quiet: bool = False) -> bool:
    """Test whether the device is a GPU with CUDA. See `device_type`."""
    return device_type(device, quiet) == "cuda"


def device_type(device: str, quiet: bool = False) -> str:
    """Return `cpu`, `cuda` or `mps`. Raises UserError if there is no such device. Torch is imported for GPUs only."""
    if not may_be_gpu(device):
        return "cpu"
    load_torch(quiet)
    from wnrepro.device import choose_device

    return choose_device(device).type


def auto_precision(settings: Settings, on_gpu: bool, bf16: bool) -> str:
    """Return the precision of `--precision auto`: a GPU's default; on a CPU bf16 if it is fast and shown to learn.

    bf16: whether the CPU has instructions for it.
    """
    if on_gpu:
        return settings.gpu_precision
    part = getattr(settings, settings.part) if settings.part else None
    return "bf16" if bf16 and part in settings.bf16_parts else "fp32"


def say_precisions(planned: Iterable[Settings], on_gpu: bool, bf16: bool) -> None:
    """Say which precision `--precision auto` has chosen for each model, and for fp32 on a CPU why."""
    models: dict[str, dict[str, None]] = {}
    for settings in planned:
        model = f"{settings.name} {getattr(settings, settings.part)}" if settings.part else settings.name
        models.setdefault(settings.precision, {})[model] = None
    chosen = "; ".join(f"{precision} for {', '.join(names)}" for precision, names in models.items())
    why = "it has not been shown to learn as well in bf16" if bf16 else "this processor has no known bf16 instructions"
    print(f"--precision auto: {chosen}{f' ({why})' * ('fp32' in models and not on_gpu)}", file=sys.stderr)


def complete_settings(
    planned: Iterable[Settings],
    given: Collection[str],
    on_gpu: bool,
    data_dir: Path | None,
    quiet: bool,
    auto: bool = False,
    bf16: bool = False,
) -> list[Settings]:
    """Return settings with this machine's defaults for values not given: a GPU's precision, MNIST's binarization.

    auto: choose the precision of each, and say so. bf16: whether the CPUs that compute have instructions for it.
    """
    from wnrepro.data.files import data_root, present_binarization

    completed = []
    for settings in planned:
        changes: dict[str, Any] = {}
        if auto:
            changes["precision"] = auto_precision(settings, on_gpu, bf16)
        elif on_gpu and "precision" not in given:
            changes["precision"] = settings.gpu_precision
        if hasattr(settings, "binarization") and "binarization" not in given:
            is_mnist = settings.data == "real" and getattr(settings, "dataset", "mnist") == "mnist"  # type: ignore[attr-defined]
            changes["binarization"] = present_binarization(data_dir) if is_mnist else None
            if changes["binarization"] == "seeded" and not quiet:
                print(
                    f"Larochelle's binarized MNIST is not in {data_root(data_dir)}: MNIST is binarized with a seed "
                    "instead, which changes bounds by 1 to 2 nats",
                    file=sys.stderr,
                )
                quiet = True
        completed.append(dataclasses.replace(settings, **changes))
    if auto and not quiet:
        say_precisions(completed, on_gpu, bf16)
    return completed


def ask(question: str) -> None:
    """Exit unless the user agrees."""
    try:
        typer.confirm(question, abort=True)
    except typer.Abort as error:
        raise typer.Exit(130 if isinstance(error.__context__, KeyboardInterrupt) else 1) from None


def on_terminal() -> bool:
    """Test whether a user can read a question and answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def announce(runs: int, seconds: float | None, yes: bool) -> None:
    """Say how long runs at scale paper take without a GPU. On a terminal, ask before more than a day of them begins.

    seconds: None if unknown. yes: do not ask.
    """
    from wnrepro.progress import duration

    time = f"about {duration(seconds)}" if seconds is not None else "an unknown time"
    verb = "takes" if runs == 1 else "take"
    print(
        f"without a GPU, {count(runs, 'run')} at scale paper {verb} {time} here; --scale quick takes minutes",
        file=sys.stderr,
    )
    if (seconds is None or seconds > LONG) and not yes and on_terminal():
        ask("Start anyway?")

"""The `reproduce` command: plans the grid, computes what is missing, and prints the result."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from wnrepro import errors, mps
from wnrepro.errors import UserError, complain
from wnrepro.preflight import (
    check_params,
    check_results,
    complete_settings,
    import_uninterrupted,
    is_gpu,
    load_params,
)
from wnrepro.reproduce import plan as plans
from wnrepro.reproduce.board import Board, print_plan, summary
from wnrepro.reproduce.drive import Task, drive, seconds_of
from wnrepro.reproduce.grid import Planned, left_out, planned
from wnrepro.text import printable


def reproduce(
    words: Sequence[str],
    *,
    scale: str,
    param: Sequence[str],
    precision: str | None,
    plan: bool,
    engine: str,
    address: str | None,
    bring_back: bool,
    jobs: int | None,
    jobs_per_gpu: int | None,
    budget: str | None,
    device: str,
    data_dir: Path | None,
    results: Path,
    quiet: bool,
    as_json: bool,
) -> int:
    """Compute the runs that the words name and are not there yet, or print the plan; return the exit code."""
    began = time.monotonic()
    for option, given in (("--address", address), ("--bring-back", bring_back)):
        if given and engine != "ray":
            raise UserError(f"{option}: needs --engine ray; add that, or leave it out")
    if budget and plan:
        raise UserError("--budget: --plan starts nothing; leave out one of the two")
    budget_seconds = None if budget is None else seconds_of(budget)
    check_results(results)
    console = Console(quiet=quiet or as_json)
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    params = load_params(param)
    runs = planned(scale, words, params, **({"precision": precision} if precision else {}))

    computers = None
    if engine == "ray" and device == "auto" and not precision:  # the cluster decides device and precision
        computers = cluster(address, device, jobs, jobs_per_gpu, bring_back)
        device = computers.device
    on_gpus = not precision and (device == "cuda" if engine == "ray" else is_gpu(device))
    settings = complete_settings((run.settings for run in runs), (), on_gpus, data_dir, quiet or as_json)
    runs = [dataclasses.replace(run, settings=completed) for run, completed in zip(runs, settings, strict=True)]
    others = left_out(scale, runs, params)
    lines = plans.plan(results, runs)
    side_by_side: dict[str, int] = {}
    with contextlib.ExitStack() as stack:  # whatever ends this ends what was started for the runs
        if computers:
            stack.callback(computers.stop)
        if not all(line.over for line in lines):
            import_uninterrupted("torch")
            from wnrepro.device import choose_device
            from wnrepro.reproduce.engines import Local, devices
            from wnrepro.runs.provenance import device_name

            names = devices(device) if engine == "local" else ["cpu"]
            if engine == "local" and not plan:
                check_all([line.run for line in lines if not line.over], data_dir, names[0])
            per_gpu = runs_per_gpu(lines, results, names, jobs_per_gpu)
            together = min(sum(not line.over for line in lines), jobs or math.inf)
            if names[0] != "cpu" and max(per_gpu.values()) > 1 and together > len(names):
                shared = not mps.missing() if plan else stack.enter_context(mps.mps(names, say))
                if not shared and jobs_per_gpu is None:
                    say("One run a GPU at a time; --jobs-per-gpu N starts N all the same")
                    per_gpu = dict.fromkeys(per_gpu, 1)
            if computers is None and engine == "ray" and not plan:
                computers = cluster(address, device, jobs, jobs_per_gpu, bring_back)
            computers = computers or Local(names, jobs, per_gpu)
            side_by_side = computers.side_by_side
            here = device_name(choose_device(names[0]), computers.threads)
            lines = plans.estimated(lines, results, here)
        if others:
            say(f"left out: {', '.join(others)}")
        tasks = [Task(line) for line in lines]
        if computers and not plan and not all(task.over for task in tasks):
            try:
                with Board(console, tasks, side_by_side, quiet or as_json) as board:
                    ready = time.monotonic()  # as long as it took to load torch is kept for leaving it
                    deadline = math.inf if budget_seconds is None else began + budget_seconds - (ready - began)
                    drive(tasks, computers, results, data_dir, board.show, deadline)
            except KeyboardInterrupt:
                complain("wnrepro: interrupted; the same command again continues each run from its last epoch")
                return 130
            lines = [dataclasses.replace(line, state=plans.state(line.there)) for line in lines]
            lines = plans.estimated(lines, results, here)
    left = [line for task, line in zip(tasks, lines, strict=True) if not task.over and not line.over]
    spent = budget is not None and bool(left)
    promised = plans.promises(lines, scale) if plan else []
    if as_json:
        about = {"left_out": others, "budget_seconds": budget_seconds, "budget_spent": spent}
        print(plans.as_json(lines, promised, side_by_side, scale, **about))
    elif plan:
        print_plan(console, lines, promised, side_by_side)
    else:
        console.print(summary(lines, side_by_side), highlight=False, soft_wrap=True)
        if spent:
            say(f"The budget of {budget} is spent: no further epoch fits into it; the same command continues.")
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed:
        hint = f"; {errors.HINT}" if task.traceback and not errors.DEBUG else ""
        complain(f"{task.line.there.folder}: failed, {printable(task.text, 300)}{hint}", task.traceback)
    return 1 if failed else 0


def cluster(address: str | None, device: str, jobs: int | None, jobs_per_gpu: int | None, bring_back: bool) -> Any:
    """Connect to a Ray cluster."""
    import_uninterrupted("torch")
    from wnrepro.reproduce.cluster import Cluster

    return Cluster(address, device, jobs, jobs_per_gpu or 1, bring_back)


def runs_per_gpu(
    lines: Sequence[plans.Line], results: Path, devices: Sequence[str], jobs_per_gpu: int | None
) -> dict[str, int]:
    """Return how many runs of each experiment may share a GPU."""
    from wnrepro.device import choose_device
    from wnrepro.reproduce.engines import gpu_memory
    from wnrepro.runs.provenance import device_name

    if devices[0] == "cpu" or jobs_per_gpu is not None:
        return {line.run.experiment: jobs_per_gpu or 1 for line in lines if not line.over}
    here = device_name(choose_device(devices[0]))
    return plans.packing(plans.estimated(lines, results, here), results, here, gpu_memory(devices))


def check_all(runs: Iterable[Planned], data_dir: Path | None, device: str) -> None:
    """Raise UserError where one of these runs cannot be computed here, before anything is written."""
    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class

    for run in runs:
        try:
            experiment_class(run.experiment).check(run.settings, data_dir, choose_device(device))
        except UserError as error:
            raise UserError(f"reproduce {run.experiment}: {error}") from None
    check_params((run.experiment, run.settings.param) for run in runs)

"""The `reproduce` command: plans the grid, computes what is missing, and prints the result."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wnrepro import mps, signals
from wnrepro.errors import UserError, complain
from wnrepro.machine import has_bf16
from wnrepro.options import AUTO, ReproduceOptions
from wnrepro.preflight import (
    LONG,
    announce,
    check_params,
    check_results,
    complete_settings,
    is_gpu,
    load_params,
)
from wnrepro.progress import open_console
from wnrepro.reproduce.answer import answer
from wnrepro.reproduce.board import Board, complain_of_failures, print_plan, summary
from wnrepro.reproduce.drive import drive, seconds_of
from wnrepro.reproduce.grid import Planned, left_out, planned
from wnrepro.reproduce.plan import Task, as_json, estimate_all, packing, plan, promises, time_left

if TYPE_CHECKING:
    from wnrepro.reproduce.engines import Engine


def reproduce(options: ReproduceOptions) -> int:
    """Compute the selected runs that are not finished, or print the plan, and return the exit code."""
    began = time.monotonic()
    check(options)
    budget = math.inf if options.budget is None else seconds_of(options.budget)
    quiet = options.quiet or options.as_json
    console = open_console(quiet=quiet)
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    params = load_params(options.param or ["all"], quiet)
    auto = options.precision == AUTO
    options = dataclasses.replace(options, precision=None) if auto else options
    precision = {"precision": options.precision} if options.precision else {}
    runs = planned(options.scale, options.words or (), params, **precision)
    with contextlib.ExitStack() as stack:  # on exit, stops what was started for the runs
        engine = None
        if not options.local and options.device == "auto" and not precision:  # the cluster determines both
            engine = connect(options, stack)
            options = dataclasses.replace(options, device=engine.devices[0])
        on_gpus = is_gpu(options.device, quiet) if options.local else options.device == "cuda"
        bf16 = auto and options.local and has_bf16()  # the nodes' processors are not known
        each = (run.settings for run in runs)
        settings = complete_settings(each, precision, on_gpus, options.data_dir, quiet, auto, bf16)
        runs = [dataclasses.replace(run, settings=one) for run, one in zip(runs, settings, strict=True)]
        tasks = plan(options.results, runs)
        if not all(task.over for task in tasks):
            engine, here = prepare(options, tasks, engine, stack, say)
        others = left_out(options.scale, runs, params)
        if others:
            say(f"not selected: {', '.join(others)}")
        after, side_by_side = tasks, engine.side_by_side if engine else {}
        if engine and not options.plan and not all(task.over for task in tasks):
            if options.scale == "paper" and options.local and not on_gpus and not quiet:
                whole, number = time_left(tasks, side_by_side), sum(not task.over for task in tasks)
                announce(number, whole.seconds if whole.runs == number else None, options.yes or budget <= LONG)
            try:
                with Board(console, tasks, side_by_side, quiet) as board:
                    ready = time.monotonic()  # reserve the time that loading torch took for unloading it
                    deadline = began + budget - (ready - began)
                    drive(tasks, engine, options.results, options.data_dir, board.show, deadline)
            except KeyboardInterrupt as error:
                complain(f"wnrepro: {signals.describe(error)}; run the same command again to resume each run")
                return signals.exit_code(error)
            after = plan(options.results, runs)
            estimate_all(after, options.results, here)
    left = any(not old.over and not new.over for old, new in zip(tasks, after, strict=True))
    spent = options.budget is not None and left
    promised = promises(after, options.scale) if options.plan else []
    if options.as_json:
        about = {"left_out": others, "budget_seconds": budget if options.budget else None, "budget_spent": spent}
        print(as_json(after, promised, side_by_side, options.scale, **about))
    elif options.plan:
        print_plan(console, after, promised, side_by_side)
    else:
        say(summary(after, side_by_side))
        if spent:
            say(
                f"The budget of {options.budget} is spent: no further epoch fits in it. "
                "Run the same command again to continue."
            )
        if not quiet and not options.budget:
            write = after is not tasks
            answer(console, options.results, options.scale, options.words or (), options.precision, write, say)
    return 1 if complain_of_failures(tasks) else 0


def check(options: ReproduceOptions) -> None:
    """Raise UserError for options that do not fit together."""
    for option, given in (("--address", options.address), ("--bring-back", options.bring_back)):
        if given and options.local:
            raise UserError(f"{option}: needs --engine ray; add that option, or omit {option}")
    if options.budget and options.plan:
        raise UserError("--budget: --plan starts no run; omit one of the two options")
    check_results(options.results, write=not options.plan)


def connect(options: ReproduceOptions, stack: contextlib.ExitStack) -> "Engine":
    """Connect to a Ray cluster. `stack` disconnects at its end."""
    from wnrepro.reproduce.cluster import Cluster

    nodes = Cluster(options.address, options.device, options.jobs, options.jobs_per_gpu or 1, options.bring_back)
    stack.callback(nodes.stop)
    return nodes


def prepare(
    options: ReproduceOptions,
    tasks: Sequence[Task],
    engine: "Engine | None",
    stack: contextlib.ExitStack,
    say: Callable[[str], object],
) -> tuple["Engine", str]:
    """Check that the runs can be computed, estimate them, and return the engine and its device's name.

    engine: an existing engine, or None to start one. Estimates for a cluster's plan are for this machine's processor.
    If runs share a GPU, MPS is started, and `stack` stops it. Without MPS, each run gets a whole GPU, unless
    --jobs-per-gpu is given.
    """
    from wnrepro.reproduce.engines import Local, device_name, devices, gpu_memory

    left = [task for task in tasks if not task.over]
    names = devices(options.device) if options.local else ["cpu"]
    if options.local and not options.plan:
        check_all([task.run for task in left], options.data_dir, names[0])
    per_gpu = {task.run.experiment: options.jobs_per_gpu or 1 for task in left}
    if names[0].startswith("cuda"):
        if options.jobs_per_gpu is None:
            here = device_name(names[0])
            estimate_all(tasks, options.results, here)
            per_gpu = packing(tasks, options.results, here, gpu_memory(names))
        if max(per_gpu.values()) > 1 and min(len(left), options.jobs or math.inf) > len(names):
            shared = not mps.missing() if options.plan else stack.enter_context(mps.mps(names, say))
            if not shared and options.jobs_per_gpu is None:
                say("Each GPU trains one run at a time; --jobs-per-gpu N trains N nevertheless")
                per_gpu = dict.fromkeys(per_gpu, 1)
    if engine is None:
        on_cluster = not options.local and not options.plan
        engine = connect(options, stack) if on_cluster else Local(names, options.jobs, per_gpu)
    here = device_name(names[0], engine.threads)
    estimate_all(tasks, options.results, here)
    return engine, here


def check_all(runs: Sequence[Planned], data_dir: Path | None, device: str) -> None:
    """Raise UserError if one of these runs cannot be computed here. Writes nothing."""
    for run in runs:
        try:
            run.settings.check(data_dir, device)
        except UserError as error:
            raise UserError(f"reproduce {run.experiment}: {error}") from None
    check_params((run.experiment, run.settings.param) for run in runs)

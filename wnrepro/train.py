"""The command of an experiment: it trains the runs that its options select.

It trains them one after another. With --seeds it trains them side by side: on a CPU in processes, on a GPU in one.
"""

import dataclasses
import functools
import operator
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wnrepro import errors, signals
from wnrepro.errors import UserError, complain, describe
from wnrepro.options import RunOptions
from wnrepro.preflight import announce, ask, check_params, device_type, load_torch
from wnrepro.runs.directory import FINISHED, RunDirectory, check_place
from wnrepro.runs.outcome import over_seeds, result
from wnrepro.settings import Settings
from wnrepro.text import count, json_text, plain, printable

if TYPE_CHECKING:
    from rich.console import Console

    from wnrepro.reproduce.engines import Engine
    from wnrepro.reproduce.plan import Task

Say = Callable[[str], object]
AT_A_TIME = 8  # most seeds of a setting that one process trains together


def run_all(cls: type[Settings], planned: Sequence[Settings], options: RunOptions) -> int:
    """Execute a run for each of these settings, and return the exit code: 0, or 1 if a run failed.

    What needs no torch comes first: mistakes are reported, and finished runs too if there are no others.
    """
    from wnrepro.progress import open_console

    silent = options.quiet or options.as_json
    console = open_console(quiet=silent)
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    runs = [RunDirectory(options.results, cls.name, options.scale, settings) for settings in planned]
    for run in runs:
        check_place(options.results, run.folder)
    states = [run.finished() if options.resume else None for run in runs]
    if all(states) and not options.importance_samples and not any(run.changed_tables() for run in runs):
        records = [ended(run, str(status), say) for run, status in zip(runs, states, strict=True)]
    else:
        device = device_type(options.device, silent)
        for settings in planned:
            settings.check(options.data_dir, device)
        check_params((cls.name, settings.param) for settings in planned)
        engine = processes() if options.seeds is not None and device == "cpu" else None
        if not options.resume and not options.yes:
            confirm_removal([str(run.folder) for run in runs if run.folder.exists()])
        announce_time(cls, planned, options, device, engine.jobs if engine else 1)
        if engine:
            records = train_in_processes(cls, runs, options, engine, console, say)
        else:
            load_torch(silent)
            if options.seeds is not None and device == "mps":
                say("--seeds: on mps, seeds train one after another")
            together = options.seeds is not None and device == "cuda"
            records = (train_together if together else train)(cls, planned, options, console, say)
    for line in over_seeds(runs[: len(records)], [record["status"] for record in records]):
        say(printable(line))
    for step in next_steps(cls, options, records):
        say(step)
    if options.as_json:
        print(json_text(records))
    return 1 if any(record["status"] == "failed" for record in records) else 0


def train(
    cls: type[Settings], planned: Sequence[Settings], options: RunOptions, console: "Console", say: Say
) -> list[dict[str, Any]]:
    """Execute the runs that are not finished, one after another, and return the records of all."""
    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class
    from wnrepro.progress import Show
    from wnrepro.runs.run import Run

    device, experiment_cls = choose_device(options.device), experiment_class(cls.name)
    records: list[dict[str, Any]] = []
    for settings in planned:
        run = Run(options.results, cls.name, options.scale, settings)
        load = functools.partial(experiment_cls.load, settings, options.data_dir, device)
        status = finished(run) if options.resume else None
        if status is None:
            title = f"{cls.name} {run.settings.param}, seed {run.settings.seed}, scale {options.scale}"
            with run:
                if not options.resume:
                    run.clear()
                show = Show(console, title, str(run.folder), run.epochs, console.quiet, cls.unit)
                status = execute(run, load, show, options.log_steps)
        if options.importance_samples and status == "done":
            k = options.importance_samples
            with run, console.status(f"{run.name}: {count(k, 'sample')} per image"):
                facts = run.add_facts(load, operator.methodcaller("log_likelihood", k))["facts"]
            say(
                f"{run.folder}: log p(x) ≈ {plain(facts['log_likelihood_nats'])} nats, with "
                f"{count(k, 'sample')} per image"
            )
        records.append(ended(run, status, say))
        if status == "uncaptured":
            break
    return records


# ------------------------------------------------------------------------------- several seeds side by side


def processes() -> "Engine":
    """Return the engine of `reproduce` on this machine's processors."""
    from wnrepro.reproduce.engines import Local

    return Local(["cpu"], None, {})


def train_in_processes(
    cls: type[Settings],
    runs: Sequence[RunDirectory],
    options: RunOptions,
    engine: "Engine",
    console: "Console",
    say: Say,
) -> list[dict[str, Any]]:
    """Execute the runs that are not finished, each in its own process, and return the records of all.

    A failed run does not stop the others. This process needs no torch for it.
    """
    from wnrepro.reproduce.board import Board, complain_of_failures
    from wnrepro.reproduce.drive import drive
    from wnrepro.reproduce.engines import device_name
    from wnrepro.reproduce.plan import estimate_all

    if not options.resume:
        clear(runs)
    tasks = tasks_of(cls, [run.settings for run in runs], options)
    estimate_all(tasks, options.results, device_name("cpu", engine.threads))
    of_jobs: dict[str, Any] = {
        "log_steps": options.log_steps,
        "anew": not options.resume,
        "warm_starts": warm_starts(runs),
    }
    try:
        with Board(console, tasks, engine.side_by_side, console.quiet) as board:
            drive(tasks, engine, options.results, options.data_dir, board.show, **of_jobs)
    except KeyboardInterrupt as error:
        raise interrupted(error) from None
    complain_of_failures(tasks)
    return conclude(cls, runs, [task.state for task in tasks], options, console, say)


def train_together(
    cls: type[Settings], planned: Sequence[Settings], options: RunOptions, console: "Console", say: Say
) -> list[dict[str, Any]]:
    """Execute the runs that are not finished, in this process, and return the records of all.

    The seeds of a setting train in lock-step, at most AT_A_TIME of them.
    """
    import torch

    from wnrepro.cuda_graphs import capture_failed
    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class
    from wnrepro.lockstep import Lockstep
    from wnrepro.reproduce.board import Board, TaskShow, complain_of_failures
    from wnrepro.runs.run import Run

    device, experiment_cls = choose_device(options.device), experiment_class(cls.name)
    runs = [Run(options.results, cls.name, options.scale, settings) for settings in planned]
    if not options.resume:
        clear(runs)
    tasks = tasks_of(cls, planned, options)
    left = [(run, task) for run, task in zip(runs, tasks, strict=True) if not task.over]
    groups: dict[str, list[tuple[Run, Task]]] = {}
    for run, task in left:
        groups.setdefault(run.name, []).append((run, task))

    def execute_one(run: Run, task: "Task", board: Board) -> None:
        load = functools.partial(experiment_cls.load, run.settings, options.data_dir, device)
        try:
            with run:
                task.state = run.execute(load, TaskShow(board, task), options.log_steps)["status"]
        except Exception as error:
            task.state, task.text = "failed", str(error) if isinstance(error, UserError) else describe(error)
            task.traceback = traceback.format_exc() if errors.DEBUG else ""
            if capture_failed(error):
                raise
        except BaseException:
            task.state = "stopped"
            raise
        finally:
            board.show(task, "end")

    waves = [group[k : k + AT_A_TIME] for group in groups.values() for k in range(0, len(group), AT_A_TIME)]
    try:
        with Board(console, tasks, {cls.name: AT_A_TIME}, console.quiet) as board, signals.deferred():
            for wave in waves:
                torch.compiler.reset()  # torch keeps at most eight compiled versions of a function
                found = Lockstep(device).run([functools.partial(execute_one, *one, board) for one in wave])
                signals.check()
                if any(map(Future.exception, found)):  # after a failed capture this process cannot use its GPU
                    break
    except KeyboardInterrupt as error:
        raise interrupted(error) from None
    complain_of_failures(tasks)
    return conclude(cls, runs, [task.state for task in tasks], options, console, say)


def interrupted(error: KeyboardInterrupt) -> typer.Exit:
    """Say that a signal has ended the command, and return its exit."""
    complain(f"wnrepro: {signals.describe(error)}; run the same command again to resume each run")
    return typer.Exit(signals.exit_code(error))


def clear(runs: Sequence[RunDirectory]) -> None:
    """Remove the files of all these runs. Raises LockedError, before it removes any, if a process executes one."""
    for run in runs:
        with run:
            pass
    for run in runs:
        with run:
            run.clear()


def warm_starts(runs: Sequence[RunDirectory]) -> tuple[Path, ...]:
    """Return the folders of the runs whose weights these runs may start from."""
    names = {str(name) for run in runs if (name := getattr(run.settings, "init_from", None)) is not None}
    if not names:
        return ()
    from wnrepro.runs import warm_start

    return tuple(warm_start.source(name).run.folder.absolute() for name in sorted(names))


def tasks_of(cls: type[Settings], planned: Sequence[Settings], options: RunOptions) -> list["Task"]:
    """Return the runs as the tasks of `reproduce`, with their states on disk."""
    from wnrepro.reproduce.grid import Planned
    from wnrepro.reproduce.plan import plan

    return plan(options.results, [Planned(cls.name, options.scale, settings) for settings in planned])


def conclude(
    cls: type[Settings],
    runs: Sequence[RunDirectory],
    states: Sequence[str],
    options: RunOptions,
    console: "Console",
    say: Say,
) -> list[dict[str, Any]]:
    """Print how runs have ended, and return their records. Restores changed tables, and estimates log p(x) if asked."""
    over = [run for run, state in zip(runs, states, strict=True) if state in FINISHED]
    needs_torch = options.importance_samples or any(run.changed_tables() for run in over)
    if over and needs_torch:
        load_torch(console.quiet)
    records, resuming = [], dataclasses.replace(options, resume=True)
    for run, state in zip(runs, states, strict=True):
        if needs_torch and run in over:
            records += train(cls, [run.settings], resuming, console, say)
        else:
            records.append(ended(run, state, say))
    return records


# ------------------------------------------------------------------------------- results and questions


def ended(run: RunDirectory, status: str, say: Say) -> dict[str, Any]:
    """Print how a run has ended, and return its record for --json."""
    status, record = "failed" if status == "uncaptured" else status, run.record() or {}
    known = record.get("message") if record.get("status") == status else ""
    say(printable(f"{run.folder}: {status}" + (f" ({printable(known, 300)})" if known else "")))
    if status in FINISHED and (words := result(run, record)):
        say(f"  {words}")
    return {"run": str(run.folder), **record, "status": status}


def finished(run: Any) -> str | None:
    """Return the status of a finished run after restoring its tables if they were changed, else None."""
    status: str | None = run.finished()
    for sentence in run.repair() if status else ():
        complain(printable(sentence))
    return status


def execute(run: Any, load: Callable[[], Any], show: Any, log_steps: int | None) -> str:
    """Execute a run and return its status. After `uncaptured`, this process cannot compute any other run."""
    from wnrepro.cuda_graphs import capture_failed

    try:
        with show:
            return str(run.execute(load, show, log_steps)["status"])
    except UserError:
        raise
    except KeyboardInterrupt as error:
        complain(f"wnrepro: {run.folder}: {signals.describe(error)}; run the same command again to resume")
        raise typer.Exit(signals.exit_code(error)) from None
    except Exception as error:
        complain(f"{run.folder}: failed, {describe(error)}", error)
        return "uncaptured" if capture_failed(error) else "failed"


def next_steps(cls: type[Settings], options: RunOptions, records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the commands that a user may want after these runs."""
    own = "" if options.results == Path("results") else f" --results {shlex.quote(str(options.results))}"
    steps = {f"wnrepro report --scale {options.scale}{own}": "tables, figures and verdicts"}
    done = [record["run"] for record in records if record["status"] == "done"]
    if done and cls.after:
        command, what = cls.after
        steps = {f"wnrepro {command} {shlex.quote(done[-1])}": what} | steps
    over = any(record["status"] in FINISHED for record in records)
    return ["next:", *(f"  {command}  # {what}" for command, what in steps.items())] if over else []


def confirm_removal(folders: list[str]) -> None:
    """Exit unless the user agrees to remove these folders."""
    if not folders:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise UserError(f"--fresh: would remove {', '.join(folders)}; add --yes to confirm")
    ask(f"Remove {', '.join(folders)} and start again?")


def announce_time(
    cls: type[Settings], planned: Sequence[Settings], options: RunOptions, device: str, jobs: int = 1
) -> None:
    """Say how long runs at scale paper take on this processor, and ask on a terminal before days begin.

    jobs: the number of runs at a time.
    """
    from wnrepro.reproduce.costs import together
    from wnrepro.reproduce.plan import expected

    if options.scale != "paper" or device != "cpu" or options.quiet or options.as_json:
        return
    tasks = tasks_of(cls, planned, options)
    left = [task for task in tasks if not (options.resume and task.over)]
    done = [task.epochs / task.run.settings.epochs if options.resume else 0.0 for task in left]
    whole = [expected([task.run], options.results).seconds for task in left]
    known = [seconds * (1 - share) for seconds, share in zip(whole, done, strict=True) if seconds is not None]
    if left:
        seconds = together([(cls.name, one) for one in known], {cls.name: jobs})
        announce(len(left), seconds if len(known) == len(left) else None, options.yes)

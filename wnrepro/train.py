"""The command of an experiment: it trains the runs that its options select, one after another."""

import functools
import operator
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wnrepro import signals
from wnrepro.errors import UserError, complain, describe
from wnrepro.options import RunOptions
from wnrepro.preflight import announce, ask, check_params, device_type, load_torch
from wnrepro.runs.directory import FINISHED, RunDirectory, check_place
from wnrepro.settings import Settings
from wnrepro.text import count, json_text, plain, printable

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], object]


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
        if not options.resume and not options.yes:
            confirm_removal([str(run.folder) for run in runs if run.folder.exists()])
        announce_time(cls, planned, options, device)
        load_torch(silent)
        records = train(cls, planned, options, console, say)
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


def ended(run: RunDirectory, status: str, say: Say) -> dict[str, Any]:
    """Print how a run has ended, and return its record for --json."""
    from wnrepro.runs.outcome import result

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


def announce_time(cls: type[Settings], planned: Sequence[Settings], options: RunOptions, device: str) -> None:
    """Say how long runs at scale paper take on this processor, and ask on a terminal before days begin."""
    from wnrepro.reproduce.grid import Planned
    from wnrepro.reproduce.plan import expected, plan

    if options.scale != "paper" or device != "cpu" or options.quiet or options.as_json:
        return
    tasks = plan(options.results, [Planned(cls.name, options.scale, settings) for settings in planned])
    left = [task for task in tasks if not (options.resume and task.over)]
    done = [task.epochs / task.run.settings.epochs if options.resume else 0.0 for task in left]
    whole = [expected([task.run], options.results).seconds for task in left]
    known = [seconds * (1 - share) for seconds, share in zip(whole, done, strict=True) if seconds is not None]
    if left:
        announce(len(left), sum(known) if len(known) == len(left) else None, options.yes)

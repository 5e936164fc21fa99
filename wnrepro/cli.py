"""The command line. Only the commands import torch, so that --help is fast."""

import atexit
import contextlib
import dataclasses
import inspect
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wnrepro import errors, signals
from wnrepro.configs import printed, selected
from wnrepro.errors import DiskError, InstallError, UserError, complain, describe
from wnrepro.machine import has_bf16, may_be_gpu
from wnrepro.options import (
    AUTO,
    PARAM_LIST,
    DataDir,
    Device,
    Json,
    Out,
    ParamCode,
    ReproduceOptions,
    Results,
    RunFolder,
    RunOptions,
    command_parameters,
    complete,
    complete_dataset,
    complete_param,
    expanded,
    seeds_of,
    set_options,
)
from wnrepro.preflight import (
    check_params,
    check_results,
    complete_settings,
    import_uninterrupted,
    is_gpu,
    load_params,
    load_torch,
)
from wnrepro.runs.directory import read_config
from wnrepro.settings import LARGEST_SEED, PRECISIONS, SETTINGS, PrecisionName, ScaleName, Settings
from wnrepro.text import count, json_text, printable
from wnrepro.train import run_all
from wnrepro.usage import SETTINGS_OF_TYPER, Command, Group, version

app = typer.Typer(
    name="wnrepro",
    cls=Group,
    help="Reproduce the experiments of “Weight Normalization” (Salimans & Kingma 2016).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    **SETTINGS_OF_TYPER,
)
data_app = typer.Typer(
    cls=Group, help="Show the state of the data sets, or download them.", no_args_is_help=True, **SETTINGS_OF_TYPER
)
app.add_typer(data_app, name="data")


def print_version(wanted: bool) -> None:
    if wanted:
        print(version())
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="also show the traceback of an error; allowed anywhere in a command")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="show the versions of wnrepro, Python and torch, and the commit",
            callback=print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    errors.DEBUG = debug


# ------------------------------------------------------------------------------- one experiment


EXPERIMENT = """Each combination of the given values is a run. A finished run is skipped, and an unfinished one resumes.
--param is required, unless --config gives it."""


def experiment_command(cls: type[Settings]) -> Callable[..., None]:
    """Return the command of an experiment, with an option for each of its settings."""

    def command(**given: Any) -> None:
        names = {field.name for field in dataclasses.fields(RunOptions)}
        options = RunOptions(**{name: given.pop(name) for name in names & given.keys()})
        given = {name: value for name, value in given.items() if value not in (None, [])}
        quiet = options.quiet or options.as_json
        if options.seeds is not None:
            if "seed" in given:
                raise UserError("--seeds: excludes --seed; use one of the two")
            given["seed"] = seeds_of(options.seeds)
        check_results(options.results)
        may_be_gpu(options.device)
        if "param" in given:
            given["param"] = load_params(given["param"], quiet)
        if "init_from" in given:
            for folder in given["init_from"]:
                read_config(Path(folder))
            load_torch(quiet)
            from wnrepro.runs import warm_start

            given["init_from"] = [warm_start.add(Path(folder)) for folder in given["init_from"]]
        auto = AUTO in given.get("precision", ())
        if auto and len({*given.pop("precision")}) > 1:
            raise UserError(f"--precision {AUTO}: excludes other precisions; give one")
        scale, planned, names = selected(cls, options.scale, given, options.config)
        options = dataclasses.replace(options, scale=scale)
        on_gpu = (auto or "precision" not in names) and is_gpu(options.device, quiet)
        planned = complete_settings(planned, names, on_gpu, options.data_dir, quiet, auto, auto and has_bf16())
        planned = list(dict.fromkeys(planned))  # a file's runs may differ in their precisions only
        if "init_from" in given:
            warm_start.check(cls, planned)
        if options.print_config:
            print(printed(cls.name, scale, planned))
            raise typer.Exit
        raise typer.Exit(run_all(cls, planned, options))

    about = cls.__doc__ or cls.name
    about = about if about[1:2].isupper() else about[:1].lower() + about[1:]  # keep DRAW, CIFAR and the like
    command.__doc__ = f"Train {about.rstrip()}\n\n{EXPERIMENT}"
    return set_options(command, command_parameters(cls))


def add_experiments() -> None:
    """Add a command for every registered experiment that has none yet."""
    known = {command.name for command in app.registered_commands}
    for name, cls in SETTINGS.items():
        if name not in known:
            app.command(name, cls=Command)(experiment_command(cls))


add_experiments()


# ------------------------------------------------------------------------------- all experiments


def reproduce(**given: Any) -> None:
    """Train every run that the paper needs and that is not finished yet.

    Each run trains in a separate process, and a stopped run resumes. At the end the command prints the verdicts and
    writes the report. A data set, game, claim, table or figure selects the runs that it needs.
    """
    from wnrepro.reproduce.command import reproduce

    raise typer.Exit(reproduce(ReproduceOptions(**given)))


app.command(cls=Command)(set_options(reproduce, inspect.signature(ReproduceOptions).parameters.values()))


@app.command(cls=Command)
def report(
    scale: Annotated[
        ScaleName | None, typer.Option(help="scale to report on", show_default="every scale with runs")
    ] = None,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="precision of the runs to judge", show_default="the first with runs"),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="report on the repository's runs, in published/ of --results"),
    ] = False,
    readme: Annotated[
        bool, typer.Option("--readme", help="with --published: also write the results in README.md and docs/")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="only check that the files of each run are consistent (exit code 1 if not), and say "
            "whether each rule is older than its runs",
        ),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="only compare the runs with those of another results folder", callback=expanded
        ),
    ] = None,
    export: Annotated[
        Literal["latex"] | None, typer.Option(help="also write LaTeX tables and figures to latex/")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="only serve the page here and update it while runs train")
    ] = False,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="port for --serve; 0 takes any free port")
    ] = 8000,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", callback=expanded, help="write to DIR/<scale>", show_default="--results"),
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Write tables, figures and a verdict on each claim, from your own runs in --results.

    The files of a scale are report.html, report.md, tables/*.csv, and figures/ with PNG and PDF files. --compare writes
    comparison.html and comparison.md.
    """
    check_results(results, must_exist=not published, write=False)
    given: dict[str, object] = {"--check": check, "--serve": serve, "--compare": compare, "--export": export}
    if sum(map(bool, given.values())) > 1:
        raise UserError("--check, --compare, --export and --serve exclude each other; use one of them")
    given |= {"--scale": scale, "--precision": precision, "--out": out}
    if readme and (not published or any(given.values())):
        wrong = [name for name, value in given.items() if value]
        raise UserError(f"--readme: needs --published{f' and excludes {wrong[0]}' if wrong else ''}")
    if out is not None and (check or serve):
        raise UserError("--out: --check and --serve write nothing; omit it")
    import_uninterrupted("wnrepro.report")
    from wnrepro import report as reports
    from wnrepro.reproduce.grid import commands

    folder, scales = reported(results, published, scale)
    if out is not None:
        check_results(out, option="--out")
    elif not (check or serve):
        check_results(folder, instead="add --out DIR")

    def commands_of(name: str) -> dict[str, str]:
        """Return the command that computes each claim's runs in the user's own results folder."""
        own = "" if published or results == Path("results") else f" --results {shlex.quote(str(results))}"
        return {claim: command + own for claim, command in commands(name).items()}

    if compare is not None:
        write_comparisons(folder, scales, compare, precision, out)
    elif check:
        problems, rules = [problem for name in scales for problem in reports.check(folder, name)], []
        for name in scales:
            with contextlib.suppress(UserError):  # `problems` says why no run can be read
                rules += [f"scale {name}, {rule}" for rule in reports.rules(folder, name, precision)]
        checked = problems or [f"the files of every run are consistent: scale {', '.join(scales)}"]
        print(*map(printable, [*checked, *rules]), sep="\n")
        raise typer.Exit(1 if problems else 0)
    elif serve:
        from wnrepro.report.serve import Server

        def make(version: str) -> str:
            return reports.live_page(version, folder, scales[0], precision, commands_of(scales[0]))

        with Server(folder, scales[0], make, port, complain) as server, contextlib.suppress(KeyboardInterrupt):
            print(f"{server.url} shows scale {scales[0]}; stop it with Ctrl-C", flush=True)
            server.serve_forever()
    else:
        latex = export is not None
        write_each(
            scales,
            lambda name: reports.write_report(folder, name, precision, commands_of(name), latex, out, complain),
            folder,
            Path(os.path.normpath(results / "..")) if readme else None,
        )


def write_each(scales: Sequence[str], write: Callable[[str], list[Path]], folder: Path, top: Path | None) -> None:
    """Write the report of every scale, and print the paths. Raises UserError at the end if a scale has no good run.

    top: the folder of the README.md that then gets the results of `folder`; None: none does.
    """
    from wnrepro.report import summary

    if top:
        summary.placed(top / summary.README)  # before anything is written
    odd = []
    for name in scales:
        try:
            print(*write(name), sep="\n")
        except DiskError:
            raise
        except UserError as error:
            odd.append(str(error))
    if odd:
        raise UserError("\n".join(odd))
    if top:
        print(*summary.write_summary(folder, top), sep="\n")


def reported(results: Path, published: bool, scale: str | None) -> tuple[Path, list[str]]:
    """Return the folder to report on, and its scales with runs. Raises UserError if it has none."""
    from wnrepro.report import scales_with_runs
    from wnrepro.runs.directory import PUBLISHED

    folder, at = results / PUBLISHED if published else results, f" at scale {scale}" if scale else ""
    if published and not folder.is_dir():
        raise UserError(f"--published: there is no folder {folder}; run the command in a clone of the repository")
    scales = [name for name in scales_with_runs(folder) if scale in (None, name)]
    if not scales:
        command = f"wnrepro cifar --param all --scale {scale or 'quick'}"
        others = ", or add --published for the repository's runs"
        hint = others if not published and (results / PUBLISHED).is_dir() else ""
        raise UserError(f"--results {folder}: has no runs{at}; run `{command}`{hint}")
    return folder, scales


def write_comparisons(
    folder: Path, scales: Sequence[str], other: Path, precision: str | None, out: Path | None
) -> None:
    """Compare with another results folder at every scale that both have."""
    from wnrepro.report import scales_with_runs, write_comparison

    both = [name for name in scales if other.is_dir() and name in scales_with_runs(other)]
    if not both:
        raise UserError(f"--compare {other}: has no runs at scale {' or '.join(scales)}; use another folder")
    if any(os.path.samefile(folder / name, other / name) for name in both):
        raise UserError(f"--compare {other}: has the same files as {folder}; use another folder")
    for name in both:
        summary, path = write_comparison(folder, other, name, precision, out)
        print(*map(printable, [f"scale {name}", *summary, str(path)]), sep="\n")


# ------------------------------------------------------------------------------- one run


@app.command(cls=Command)
def sample(
    run: RunFolder,
    count: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="number of samples and of reconstructions")
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=LARGEST_SEED, help="seed of the latent noise")] = 1,
    out: Out = None,
    param: ParamCode = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Write samples and reconstructions of a trained VAE or DRAW model as PNG files.

    For DRAW, also write drawing.gif, which shows how the model draws the samples and outlines its write window.
    """
    read_config(run)
    load_torch()
    from wnrepro.runs.media import write_pictures
    from wnrepro.trained import open_trained

    trained = open_trained(run, "pictures", device, param, data_dir)
    with trained.output(out) as folder:
        print(*write_pictures(folder, trained.load().pictures(count, seed)), sep="\n")


@app.command(cls=Command)
def watch(
    run: RunFolder,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=LARGEST_SEED, help="seed of the game and of ε-greedy play")
    ] = 1,
    seconds: Annotated[int, typer.Option(metavar="N", min=1, max=1800, help="longest film, in seconds of play")] = 120,
    out: Out = None,
    param: ParamCode = None,
    device: Device = "auto",
) -> None:
    """Film a test game of a trained DQN agent in colour, with its score, as game.gif."""
    read_config(run)
    load_torch()
    from wnrepro.progress import open_console
    from wnrepro.runs.media import write_film
    from wnrepro.trained import open_trained

    trained = open_trained(run, "film", device, param)
    with trained.output(out) as folder, open_console(stderr=True).status("playing"):
        agent = trained.load()
        title = f"{agent.settings.game} {agent.settings.param}"
        path, last = write_film(folder, agent.film(seed, float(seconds)), title)
    end = f", {count(last.steps, 'step')}, game over" if last.over else f" after {seconds} s of play, game not over"
    print(f"{path}\n{count(round(last.score), 'point')}{end}")


@app.command(cls=Command)
def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="images in DIR or DIR/<class> to classify with a run of cifar, instead of the test images",
            callback=expanded,
        ),
    ] = None,
    param: ParamCode = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compute the test metrics of a run's newest checkpoint or of its published weights.

    The command prints them beside those of metrics.csv, and writes no file.
    """
    read_config(run)
    load_torch()
    from wnrepro import trained

    opened = trained.open_trained(run, "test_metrics" if data is None else "classify", device, param, data_dir)
    result = trained.evaluate(opened) if data is None else trained.classify(opened, data)
    print(json_text(result) if as_json else "\n".join(trained.lines_of(result)))


@app.command(cls=Command)
def export(
    run: RunFolder,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="write an event file to DIR/<experiment>/<variant>/seed-N; a step is an epoch (dqn: an agent step)",
            callback=expanded,
        ),
    ] = None,
    form: Annotated[
        Literal["torch", "onnx", "safetensors", "weights"] | None,
        typer.Option("--format", help="write the trained model as plain layers; `weights`: weights.pt, for publishing"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="file to write with --format",
            show_default="model.pt2, .onnx or .safetensors, where `sample` would write",
            callback=expanded,
        ),
    ] = None,
    param: ParamCode = None,
    data_dir: DataDir = None,
) -> None:
    """Export a run's tables and settings to TensorBoard, or its trained model for use without wnrepro.

    Give either --tensorboard or --format. A model is written only if its outputs agree with those of the run's network.
    """
    if (tensorboard is None) == (form is None):
        raise UserError("export: use either --tensorboard DIR or --format torch, onnx, safetensors or weights")
    if out is not None and form in (None, "weights"):
        raise UserError("--out: applies only to --format torch, onnx and safetensors; omit it")
    if tensorboard is not None:
        import_uninterrupted("wnrepro.export")
        from wnrepro.export import write_events

        print(write_events(run, tensorboard))
        return
    read_config(run)
    load_torch()
    from wnrepro import trained

    if form == "weights":
        print(trained.write_weights(run, param))
    else:
        opened = trained.open_trained(run, "exported", "cpu", param, data_dir, precision="fp32")
        path, difference = trained.export(opened, str(form), out)
        print(f"{path}\nthe outputs differ from those of the run's network by at most {difference:.2g}")


# ------------------------------------------------------------------------------- bench, data, doctor


@app.command(cls=Command)
def bench(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="|".join([*SETTINGS, "all"]), help="experiment to time", autocompletion=complete([*SETTINGS, "all"])
        ),
    ] = "all",
    rounds: Annotated[int, typer.Option(metavar="N", min=2, max=10_000, help="timed steps per contender")] = 20,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(PRECISIONS),
            help="precision to time",
            show_default="fp32, and those that the device has hardware for",
        ),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="only check that captured and compiled steps equal plain ones (exit code 1 if not)"
        ),
    ] = False,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"parameterizations to time beside normal and wn: {PARAM_LIST}",
            show_default="all",
            autocompletion=complete_param,
        ),
    ] = None,
    device: Device = "auto",
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Time a training step of each parameterization, of a plain PyTorch loop, and of public programs.

    The steps alternate, and their ratios have intervals. A step's FLOPs and bytes are compared with a large matrix
    product and a copy. The command also measures peak memory, the speed of 1, 2, 4 and 8 seeds at a time, and the
    energy of a step if the device counts it. For dqn, it times emulation, acting and learning alone too. It times cvae
    on MNIST and dqn on Breakout. It compares cvae with pythae and dqn with Stable-Baselines3 if they are installed.
    """
    if experiment not in (*SETTINGS, "all"):
        raise UserError(f"bench {experiment}: unknown; use one of {', '.join(SETTINGS)}, all")
    for name in precision or ():
        if name not in PRECISIONS:
            raise UserError(f"--precision {name}: unknown; use one of {', '.join(PRECISIONS)}")
    if smoke and precision:
        raise UserError("--precision: --smoke uses the precision of each experiment; omit one of the two options")
    check_results(results)
    may_be_gpu(device)
    load_torch(as_json)
    from wnrepro.bench import plain, timing
    from wnrepro.bench import smoke as smoke_test
    from wnrepro.bench.ours import timed_settings
    from wnrepro.device import choose_device, set_precision
    from wnrepro.progress import open_console

    console, torch_device = open_console(stderr=True), choose_device(device)
    names = list(SETTINGS) if experiment == "all" else [experiment]
    params = load_params(param or ["all"])
    check_params((name, one) for name in names for one in params)
    if smoke:
        with console.status("") as status:
            rows = smoke_test.smoke(names, torch_device, status.update, params)
        print(json_text(rows) if as_json else smoke_test.table(rows))
        raise typer.Exit(0 if all(row["good"] for row in rows) else 1)
    precisions = precision or timing.fast_precisions(torch_device)
    for name in precisions:
        set_precision(name, torch_device)
    for name in names:
        plain.check_plain(name)
    for note in timing.left_out(names, precision or [], precisions):
        console.print(note, highlight=False, soft_wrap=True)
    measured: dict[str, Any] = {}
    path = None
    for name in names:
        with console.status("") as status:
            settings = timed_settings(name, torch_device)
            measured[name] = timing.measure(torch_device, precisions, rounds, settings, status.update, params)
        path = timing.store(results, name, measured[name], torch_device, path)
        if not as_json:
            print(f"{name}\n{timing.table(measured[name])}\nwritten to {path}", flush=True)
    if as_json:
        print(json_text(measured))


@data_app.command("status", cls=Command)
def data_status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the files of each data set, verify their checksums, and show the free disk space."""
    from wnrepro.data import files

    root, free = files.data_root(data_dir), files.free_bytes(files.data_root(data_dir))
    statuses = files.status(data_dir)
    if as_json:
        rows = [dataclasses.asdict(file) | {"path": str(file.path)} for file in statuses]
        print(json_text({"folder": str(root), "free_bytes": free, "files": rows}))
        return
    print(f"{root} ({free / 1e9:.1f} GB free)")
    for file in statuses:
        print(f"  {file.dataset:<16} {file.name:<28} {file.state:<8} {file.bytes / 1e6:8.1f} MB  {file.checksum}")
    print(files.summary(statuses, data_dir))


@data_app.command("fetch", cls=Command)
def data_fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="data sets to download", show_default="all", autocompletion=complete_dataset
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Download missing and corrupt files, and verify their checksums."""
    from wnrepro.data import files

    files.fetch(names or files.DATASETS, data_dir)
    print(f"{', '.join(names or files.DATASETS)}: complete in {files.data_root(data_dir)}, checksums verified")


@app.command(cls=Command)
def doctor(data_dir: DataDir = None, results: Results = Path("results"), as_json: Json = False) -> None:
    """Check Python, torch, GPU, data, ROMs, disk and memory, and say how to fix each problem.

    The exit code is 1 if there is a problem.
    """
    from wnrepro.doctor import diagnose, summary

    with contextlib.suppress(InstallError):  # `diagnose` reports it
        load_torch(as_json)
    findings = diagnose(data_dir, results)
    if as_json:
        print(json_text([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(printable(f"{finding.state:<8} {finding.name}: {finding.detail}"))
            if finding.costs:
                print(f"         effect: {finding.costs}")
            if finding.mend:
                print(f"         fix:    {finding.mend}")
        print(summary(findings))
    raise typer.Exit(1 if any(finding.state == "problem" for finding in findings) else 0)


# ------------------------------------------------------------------------------- the entry point


def flush() -> None:
    """Flush standard output. Raises BrokenPipeError if its reader is gone, DiskError if a disk is full."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # Python flushes the rest on exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise DiskError(f"standard output: {error.strerror}; free some space, or write to another disk") from error


def main() -> None:
    """Run the command line. Exit with 2 after a user's mistake, 1 after another error, 130 after Ctrl-C.

    SIGTERM and SIGHUP end it like Ctrl-C, with exit codes 143 and 129.
    """
    add_experiments()
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    debug = ["--debug"] if "--debug" in words[:end] else []
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    command = next((f" {word}" for word in words if not word.startswith("-")), "")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for letters that the terminal cannot encode
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):  # PYTHONUNBUFFERED
        encoding, escape = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = os.fdopen(sys.stdout.fileno(), "w", 1, encoding, escape, closefd=False)  # `flush` sees its faults
    try:
        try:
            with signals.handled():
                app(debug + words, prog_name="wnrepro")
        finally:
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # no traceback after Ctrl-C during the exit
            if sys.stdout is not None:
                flush()
    except UserError as error:
        complain(f"wnrepro: {error}", error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        cause = getattr(stop.__context__, "__cause__", None) if isinstance(stop, SystemExit) else stop
        if not isinstance(cause, KeyboardInterrupt):  # else typer has made it an exit
            raise
        complain(f"\nwnrepro: {signals.describe(cause)}; run the same command again", cause)
        sys.exit(signals.exit_code(cause))
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        complain(f"wnrepro{command}: failed, {describe(error)}", error)
        sys.exit(1)

"""The command line: parse, call, print. Torch is imported inside the commands alone, so that --help is fast."""

import atexit
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import json
import os
import shlex
import signal
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from wnrepro import errors
from wnrepro.errors import DiskError, UserError, complain, describe
from wnrepro.preflight import (
    available_binarization,
    check_params,
    check_results,
    import_uninterrupted,
    is_gpu,
    load_params,
)
from wnrepro.settings import (
    ABOUT,
    PARAMS,
    PRECISIONS,
    SCALE_NAMES,
    SETTINGS,
    Settings,
    option,
    scale_settings,
)
from wnrepro.text import printable

app = typer.Typer(
    name="wnrepro",
    help="Reproduce the experiments of “Weight Normalization” (Salimans & Kingma 2016).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="The data sets: what is there, and fetching them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="where runs and reports live")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="where the data sets live; or WNREPRO_DATA")
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="what computes")]
Code = Annotated[
    str | None,
    typer.Option("--param", metavar="FILE.py:CLASS", help="the code of the run's parameterization, if it is yours"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for a script")]
Scale = Annotated[str, typer.Option("--scale", metavar="|".join(SCALE_NAMES), help="how much of the paper to run")]

RUN_OPTIONS: dict[str, Any] = {
    "scale": (Scale, "paper"),
    "results": (Results, Path("results")),
    "data_dir": (DataDir, None),
    "device": (Device, "auto"),
    "resume": (
        Annotated[bool, typer.Option("--resume/--fresh", help="continue an unfinished run, or start it over")],
        True,
    ),
    "yes": (
        Annotated[bool, typer.Option("--yes", help="with --fresh: do not ask before removing a run")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="print nothing but errors")], False),
    "as_json": (Json, False),
}
PARAM = "|".join([*PARAMS, "all", "FILE.py:CLASS"])
IMPORTANCE_SAMPLES: dict[str, Any] = {
    "importance_samples": (
        Annotated[
            int | None,
            typer.Option(
                "--importance-samples",
                min=1,
                metavar="K",
                help="after the last epoch, estimate log p(x) of the test images by K samples each",
            ),
        ],
        None,
    ),
}


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="show an error's traceback too; anywhere among a command's words")
    ] = False,
) -> None:
    errors.DEBUG = debug


def default_text(experiment: str, field: dataclasses.Field[Any]) -> str:
    """A setting's default at every scale, for its help."""
    if field.name == "lr" and any(experiment in ABOUT[param].lr for param in PARAMS):
        rates = {param: ABOUT[param].lr.get(experiment, field.default) for param in PARAMS}
        return "; default: " + ", ".join(f"{param} {lr:g}" for param, lr in rates.items())
    cls = SETTINGS[experiment]
    if field.name == "init":
        return f"; default: {cls.init_default}"
    if field.name == "precision":
        return f"; default: {field.default}, on a GPU {cls.gpu_precision}"
    if field.name == "param" or field.default is None:
        return ""

    def text(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    parts = tuple(cls.models) if cls.part_scales else (None,)
    defaults = []
    for part in parts:
        if field.metadata.get("only", part) != part:
            continue
        values = [
            (name, text(changes[field.name]))
            for name in SCALE_NAMES
            if (changes := cls.scale_changes(name, part)).get(field.name) is not None
        ]
        at_paper = dict(values).pop("paper", text(field.default))
        others = [f"{name} {value}" for name, value in values if value != at_paper]
        defaults.append(", ".join([at_paper, *others]))
    if len(set(defaults)) > 1:
        defaults = [f"{part} {default}" for part, default in zip(parts, defaults, strict=True)]
    return f"; default: {'; '.join(dict.fromkeys(defaults))}"


def is_tuple(kind: Any) -> bool:
    """Whether a setting is several numbers."""
    return typing.get_origin(kind) is tuple


def one_of(kind: Any) -> Any:
    """A setting's type without None."""
    return next(one for one in typing.get_args(kind) or (kind,) if one is not type(None))


def run_command(experiment: str) -> Callable[..., None]:
    """The command of an experiment: an option for each of its settings, made from the dataclass."""

    cls = SETTINGS[experiment]
    run_options = RUN_OPTIONS | (IMPORTANCE_SAMPLES if cls.estimates_likelihood else {})

    def command(**options: Any) -> None:
        common = {name: options.pop(name) for name in run_options}
        if common["scale"] not in SCALE_NAMES:
            raise UserError(f"--scale {common['scale']}: unknown; give one of {', '.join(SCALE_NAMES)}")
        given: dict[str, Any] = {name: options[name] for name in kinds if options[name] not in (None, [])}
        given["param"] = load_params(given["param"])
        if cls.part and "all" in given.get(cls.part, ()):
            given[cls.part] = list(cls.models)
        changes = {
            name: [tuple(value)] if is_tuple(kinds[name]) else [value] if kinds[name] is bool else dict.fromkeys(value)
            for name, value in given.items()
        }

        def plan() -> list[Any]:
            each = (dict(zip(changes, values, strict=True)) for values in itertools.product(*changes.values()))
            return [scale_settings(experiment, common["scale"], **these) for these in each]

        planned = plan()
        if "binarization" in options and "binarization" not in changes:
            changes["binarization"] = [
                available_binarization(planned[0], common["data_dir"], common["quiet"] or common["as_json"])
            ]
        if "precision" not in changes and is_gpu(common["device"]):
            changes["precision"] = [cls.gpu_precision]
        raise typer.Exit(run_all(experiment, plan(), **common))

    parameters = []
    hints = typing.get_type_hints(cls)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    for field in dataclasses.fields(cls):
        choices: tuple[str, ...] = field.metadata.get("choices", ())
        if field.name == cls.part:
            choices += ("all",)
        name = option(field)
        typed = typer.Option(
            f"{name}/--no-{name[2:]}" if kinds[field.name] is bool else name,
            metavar=PARAM if field.name == "param" else "|".join(choices) or None,
            help=f"{field.metadata['help']} ({field.metadata['source']}{default_text(experiment, field)})",
        )
        kind: Any = kinds[field.name]
        if kind is not bool:  # several values: one setting of whole numbers, or several runs
            kind = list[int] if is_tuple(kind) else list[one_of(kind)]  # type: ignore[misc]
        default: Any = inspect.Parameter.empty
        if field.name != "param":
            kind, default = kind | None, None
        annotation = Annotated[kind, typed]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    for name, (annotation, default) in run_options.items():
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = cls.__doc__
    return command


for name in SETTINGS:
    app.command(name)(run_command(name))


def confirmed(question: str) -> bool:
    """The answer of whoever sits at the terminal; no answer is a no."""
    try:
        return typer.confirm(question)
    except typer.Abort as error:
        raise typer.Exit(130 if isinstance(error.__context__, KeyboardInterrupt) else 1) from None


def run_all(
    experiment: str,
    planned: list[Any],
    *,
    scale: str,
    results: Path,
    data_dir: Path | None,
    device: str,
    resume: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
    importance_samples: int | None = None,
) -> int:
    """Run these settings one after the other; the exit code: 0, 1 where a run failed, 130 after Ctrl-C.

    A CUDA graph that cannot be captured ends them all: nothing can be computed in its process from then on.
    """
    check_results(results)
    import_uninterrupted("torch")
    from rich.console import Console

    from wnrepro.cuda_graphs import capture_failed
    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class
    from wnrepro.progress import Show
    from wnrepro.runs.run import Run

    console = Console(quiet=quiet or as_json)
    where, kind = choose_device(device), experiment_class(experiment)
    for settings in planned:
        kind.check(settings, data_dir, where)
    check_params({(experiment, settings.param) for settings in planned})
    todo = [Run(results, experiment, scale, settings) for settings in planned]
    if not resume and not yes:
        there = [str(run.folder) for run in todo if run.folder.exists()]
        if there and not (sys.stdin and sys.stdin.isatty()):
            raise UserError(f"--fresh would remove {', '.join(there)}: add --yes to do so")
        if there and not confirmed(f"Remove {', '.join(there)} and start over?"):
            raise typer.Exit(1)

    records, failed, lost = [], False, False
    for run, settings in zip(todo, planned, strict=True):
        if lost:
            break
        status = run.finished() if resume else None
        load = functools.partial(kind.load, settings, data_dir, where)
        if status is None:
            with run, Show(console, run.name, settings.epochs, quiet or as_json, settings.unit) as show:
                if not resume:
                    run.clear()
                try:
                    status = run.execute(load, show)["status"]
                except UserError:
                    raise
                except KeyboardInterrupt:
                    complain(
                        f"wnrepro: {run.folder} interrupted; the same command again continues after its last epoch"
                    )
                    return 130
                except Exception as error:
                    status, failed, lost = "failed", True, capture_failed(error)
                    complain(f"{run.folder}: failed, {describe(error)}", error)
        if importance_samples and status == "done":
            with run, console.status(f"{run.name}: {importance_samples} samples an image"):
                facts = run.add_facts(load, lambda trained: trained.log_likelihood(importance_samples))["facts"]
            console.print(
                f"{run.folder}: log p(x) ≈ {facts['log_likelihood_nats']:.2f} nats, by {importance_samples} samples an "
                "image",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        record = run.record() or {}
        records.append({"run": str(run.folder), **record})
        message = f" ({printable(record['message'], 300)})" if record.get("message") else ""
        console.print(printable(f"{run.folder}: {status}{message}"), markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(records, indent=2))
    return 1 if failed else 0


@app.command()
def reproduce(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]...",
            help=f"of {', '.join(SETTINGS)}; a data set of cvae or a game of dqn for that alone; a claim, table or "
            "figure, such as C10, table2, figure1, for the runs that serve it; without any, all",
        ),
    ] = None,
    scale: Scale = "paper",
    plan: Annotated[
        bool, typer.Option("--plan", help="only say what is done, what is left, and what that takes here")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="this machine, or a Ray cluster")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="with --engine ray: the cluster's head")
    ] = None,
    bring_back: Annotated[
        bool,
        typer.Option(
            "--bring-back",
            help="with --engine ray: the nodes do not share the results folder; bring each run's files here after "
            "every epoch",
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="runs side by side, at most; default: --jobs-per-gpu on every GPU or, without one, one a processor "
            "as far as there are 4 GB of memory for each; on a CPU each computes with one thread (OMP_NUM_THREADS "
            "gives all of them more), so that no row depends on their number",
        ),
    ] = None,
    jobs_per_gpu: Annotated[
        int | None,
        typer.Option(
            "--jobs-per-gpu",
            min=1,
            help="runs side by side on a GPU; default: what took the most steps a second by `wnrepro bench` there, as "
            "far as its memory allows, or 1; without nvidia-cuda-mps-control, by which they share it, 1",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="such as 90s, 25m, 8h or 1h30m: end by then, and start nothing that could not write a checkpoint",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="|".join(PRECISIONS),
            help=f"of all runs; default: {PRECISIONS[0]}, on a GPU "
            + ", ".join(f"{cls.gpu_precision} for {name}" for name, cls in SETTINGS.items()),
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar=PARAM,
            help="the runs with these parameterizations alone; one of yours has those of wn, but for the variants of g "
            "and ‖v‖; default: all of the paper's",
        ),
    ] = None,
    device: Device = "auto",
    data_dir: DataDir = None,
    results: Results = Path("results"),
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing but errors")] = False,
    as_json: Json = False,
) -> None:
    """Every run that the paper needs: does what is missing, and goes on where it stopped."""
    from wnrepro.reproduce.command import reproduce

    code = reproduce(
        experiments or (),
        scale=scale,
        param=param or ["all"],
        precision=precision,
        plan=plan,
        engine=engine,
        address=address,
        bring_back=bring_back,
        jobs=jobs,
        jobs_per_gpu=jobs_per_gpu,
        budget=budget,
        device=device,
        data_dir=data_dir,
        results=results,
        quiet=quiet,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def report(
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="|".join(SCALE_NAMES), help="one scale; without it, all there are"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="|".join(PRECISIONS),
            help="judge the runs in it alone; without it, of each data set and game those in the first that it has",
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="of the runs that this repository publishes, in <results>/published")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="only check that every run's files fit, exit 1 if not; and say of each claim whether its rule was "
            "committed before its runs",
        ),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="OTHER_RESULTS",
            help="only compare with the runs of another results folder: numbers, what differs, verdicts",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="latex", help="also a folder latex/, to \\input into a paper"),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="only show the page at an address of this machine, renewed while runs train"),
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="of --serve; 0: one that is free")] = 8000,
    results: Results = Path("results"),
) -> None:
    """Tables, figures and a verdict on every claim, from your own runs under --results."""
    check_results(results, must_exist=True)
    import_uninterrupted("wnrepro.report")
    from wnrepro import report as reports
    from wnrepro.reproduce.grid import commands
    from wnrepro.runs.directory import PUBLISHED

    if scale is not None and scale not in SCALE_NAMES:
        raise UserError(f"--scale {scale}: unknown; give one of {', '.join(SCALE_NAMES)}")
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: unknown; give one of {', '.join(PRECISIONS)}")
    if export not in (None, "latex"):
        raise UserError(f"--export {export}: unknown; give latex")
    if [check, serve, compare is not None, export is not None].count(True) > 1:
        raise UserError("--check, --compare, --export and --serve: each stands alone; give one of them")
    shown = results / PUBLISHED
    if published and not shown.is_dir():
        raise UserError(f"--published: there is no folder {shown}; run this in a clone of the repository")
    folder, at = shown if published else results, f" at scale {scale}" if scale else ""

    def told(scale: str) -> dict[str, str]:
        """The commands of claims; for the published runs they compute one's own."""
        more = "" if published or results == Path("results") else f" --results {shlex.quote(str(results))}"
        return {claim: command + more for claim, command in commands(scale).items()}

    def scales_in(folder: Path) -> list[str]:
        return [name for name in reports.scales_with_runs(folder) if scale in (None, name)]

    scales = scales_in(folder)
    if not scales and not published and shown.is_dir() and scales_in(shown):
        raise UserError(f"--results {results}: holds no runs of your own{at}; add --published for those in {shown}")
    if not scales:
        command = f"wnrepro cifar --param all --scale {scale or 'quick'}"
        raise UserError(f"--results {folder}: holds no runs{at}; run `{command}` first")
    if compare is not None:
        for name in comparable(folder, compare, scales_in, at):
            summary, path = reports.write_comparison(folder, compare, name, precision)
            print(*map(printable, [f"scale {name}", *summary, str(path)]), sep="\n")
        return
    if check:
        problems = [problem for name in scales for problem in reports.check(folder, name)]
        rules = [f"scale {name}, {rule}" for name in scales for rule in reports.rules(folder, name, precision)]
        checked = problems or [f"every run's files fit: scale {', '.join(scales)}"]
        print(*map(printable, [*checked, *rules]), sep="\n")
        raise typer.Exit(1 if problems else 0)
    if serve:
        from wnrepro.report.serve import Server

        name = scales[0]
        server = Server(
            folder,
            name,
            lambda version: reports.live_page(version, folder, name, precision, told(name)),
            port,
            complain,
        )
        print(f"{server.url} shows scale {name}; Ctrl-C ends it", flush=True)
        with server, contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        return
    for name in scales:
        print(*reports.write_report(folder, name, precision, told(name), export is not None), sep="\n")


def comparable(folder: Path, other: Path, scales_in: Callable[[Path], list[str]], at: str) -> list[str]:
    """The scales of which both folders have runs. UserError where there is none, or the folders are the same."""
    if not os.path.isdir(other):
        raise UserError(f"--compare {other}: is no folder; give one of results")
    ours, theirs = scales_in(folder), scales_in(other)
    if not theirs:
        raise UserError(f"--compare {other}: holds no runs{at}; give a folder that does")
    shared = [name for name in ours if name in theirs]
    if not shared:
        scales = f"{', '.join(theirs)}; {folder}: {', '.join(ours)}"
        raise UserError(f"--compare {other}: shares no scale with {folder} ({scales}); give another folder")
    if any(os.path.samefile(folder / name, other / name) for name in shared):
        raise UserError(f"--compare {other}: has the same files as {folder}; give another folder")
    return shared


def shown_on(settings: Settings, device_type: str) -> Settings:
    """Those with which a trained model is shown on this device: tf32, which a CPU lacks, is fp32 there."""
    on_cpu = settings.precision == "tf32" and device_type == "cpu"
    return dataclasses.replace(settings, precision="fp32") if on_cpu else settings


def having(method: str) -> str:
    """The experiments whose class has a method."""
    from wnrepro.experiments import experiment_class

    return " or ".join(name for name in SETTINGS if hasattr(experiment_class(name), method))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory, …/seed-N")],
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="samples, and reconstructions")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**53, help="seed of the latent noise")] = 1,
    param: Code = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Samples of a trained model, and reconstructions beside their originals, as PNG files in the run's directory; of
    DRAW a GIF too, of samples being drawn.
    """
    import_uninterrupted("torch")
    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class
    from wnrepro.runs.media import write_pictures
    from wnrepro.runs.run import open_run

    if param is not None:
        load_params([param])
    there = open_run(run)
    kind, where = experiment_class(there.experiment), choose_device(device)
    if not hasattr(kind, "pictures"):
        others = having("pictures")
        raise UserError(f"{run}: a run of {there.experiment}, which generates no images; give one of {others}")
    settings = shown_on(there.settings, where.type)
    kind.check(settings, data_dir, where)
    if there.finished() == "diverged":
        raise UserError(f"{run}: the run diverged, its model has no images to show; give another")
    with there:
        trained = kind.load(settings, data_dir, where)
        there.restore(trained)
        for path in write_pictures(there.folder, trained.pictures(count, seed)):
            print(path)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory, …/seed-N")],
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**53, help="seed of the game and of its ε-greedy play")
    ] = 1,
    seconds: Annotated[int, typer.Option("--seconds", min=1, max=1800, help="of the game at most")] = 120,
    param: Code = None,
    device: Device = "auto",
) -> None:
    """A test game of a trained DQN, in colour and with its score, as game.gif in the run's directory."""
    import_uninterrupted("torch")
    from rich.console import Console

    from wnrepro.device import choose_device
    from wnrepro.experiments import experiment_class
    from wnrepro.runs.media import write_film
    from wnrepro.runs.run import open_run

    if param is not None:
        load_params([param])
    there = open_run(run)
    kind, where = experiment_class(there.experiment), choose_device(device)
    if not hasattr(kind, "film"):
        raise UserError(f"{run}: a run of {there.experiment}, which plays no game; give one of {having('film')}")
    if there.finished() == "diverged":
        raise UserError(f"{run}: the run diverged, its network plays no game; give another")
    with there, Console(stderr=True).status("playing"):
        trained = kind.load(shown_on(there.settings, where.type), None, where)
        there.restore(trained)
        title = f"{trained.settings.game} {trained.settings.param}"
        path, last = write_film(there.folder, trained.film(seed, seconds), title)
    end = f", {last.steps} steps, game over" if last.over else f" after {seconds} s of play (the game went on)"
    print(f"{path}\n{last.score:.0f} points{end}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory, …/seed-N")],
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            metavar="DIR",
            help="write a TensorBoard event file into DIR/<experiment>/<variant>/seed-N: metrics.csv, layers.csv, "
            "kl_steps.csv and the settings; a step is an epoch, of dqn an agent step",
        ),
    ] = None,
) -> None:
    """A run's tables and settings for another program, as far as the run got."""
    if tensorboard is None:
        raise UserError("--tensorboard: missing; give the folder for the event files")
    import_uninterrupted("wnrepro.export")
    from wnrepro.export import write_events

    print(write_events(run, tensorboard))


@app.command()
def bench(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="|".join([*SETTINGS, "all"]), help="the experiment to time; cvae is MNIST's, dqn plays Breakout"
        ),
    ] = "all",
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="steps timed of each contender")] = 20,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", metavar="|".join(PRECISIONS), help="without it: fp32, and those for which the device is made"
        ),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="instead, within a minute on a GPU: of every model and parameterization whether captured steps and "
            "compiled gradients are the plain ones, ms a step, memory; exit 1 if not, or if nothing was captured",
        ),
    ] = False,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar=PARAM, help="of these beside normal and wn; default: all of the paper's"),
    ] = None,
    device: Device = "auto",
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Step times of the parameterizations and of a plain PyTorch loop, and their distance from the floor."""
    if experiment not in (*SETTINGS, "all"):
        raise UserError(f"bench {experiment}: unknown; give one of {', '.join(SETTINGS)}, all")
    for name in precision or ():
        if name not in PRECISIONS:
            raise UserError(f"--precision {name}: unknown; give one of {', '.join(PRECISIONS)}")
    check_results(results)
    import_uninterrupted("torch")
    from rich.console import Console

    from wnrepro.bench import plain, timing
    from wnrepro.bench import smoke as smoke_test
    from wnrepro.bench.ours import timed_settings
    from wnrepro.device import choose_device, set_precision

    console, where = Console(stderr=True), choose_device(device)
    names = list(SETTINGS) if experiment == "all" else [experiment]
    params = load_params(param or ["all"])
    check_params({(name, one) for name in names for one in params})
    if smoke:
        if precision:
            raise UserError("--precision: --smoke has that in which each experiment is judged; leave out one of them")
        with console.status("") as status:
            rows = smoke_test.smoke(names, where, status.update, params)
        print(json.dumps(rows, indent=2) if as_json else smoke_test.table(rows))
        raise typer.Exit(0 if all(row["good"] for row in rows) else 1)
    precisions = precision or timing.fast_precisions(where)
    for name in precisions:
        set_precision(name, where)
    for name in names:
        plain.check_plain(name)
    if not precision and "bf16" not in precisions:
        console.print(
            "bf16 left out: this processor has no instructions for it (--precision bf16 times it all the same)"
        )
    measured, path = {}, None
    for name in names:
        with console.status("") as status:
            settings = timed_settings(name, where)
            measured[name] = timing.measure(where, precisions, rounds, settings, status.update, params)
        path = timing.store(results, name, measured[name], where, path)
        if not as_json:
            print(f"{name}\n{timing.table(measured[name])}\nwritten to {path}", flush=True)
    if as_json:
        print(json.dumps(measured, indent=2))


@data_app.command("status")
def data_status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """What is there, its checksums verified, and the free space."""
    from wnrepro.data import files

    root, free = files.data_root(data_dir), files.free_bytes(files.data_root(data_dir))
    statuses = files.status(data_dir)
    if as_json:
        rows = [dataclasses.asdict(file) | {"path": str(file.path)} for file in statuses]
        print(json.dumps({"folder": str(root), "free_bytes": free, "files": rows}, indent=2))
        return
    print(f"{root} ({free / 1e9:.1f} GB free)")
    for file in statuses:
        print(f"  {file.dataset:<16} {file.name:<28} {file.state:<8} {file.bytes / 1e6:8.1f} MB  {file.checksum}")
    if any(file.state != "present" for file in statuses):
        print("`wnrepro data fetch` downloads what is missing or corrupt")


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="data sets; without any, all")] = None,
    data_dir: DataDir = None,
) -> None:
    """Download what is missing or corrupt, and verify it."""
    from wnrepro.data import files

    files.fetch(names or files.DATASETS, data_dir)
    print(f"{', '.join(names or files.DATASETS)}: complete in {files.data_root(data_dir)}, checksums verified")


@app.command()
def doctor(data_dir: DataDir = None, results: Results = Path("results"), as_json: Json = False) -> None:
    """Python, torch, GPU, data, ROMs, disk and memory: what is wrong, what it costs, how to mend it."""
    from wnrepro.doctor import diagnose

    with contextlib.suppress(ImportError, OSError):  # which is a finding
        import_uninterrupted("torch")
    findings = diagnose(data_dir, results)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(printable(f"{finding.state:<8} {finding.name}: {finding.detail}"))
            if finding.costs:
                print(f"         costs: {finding.costs}")
            if finding.mend:
                print(f"         mend:  {finding.mend}")
    raise typer.Exit(1 if any(finding.state == "problem" for finding in findings) else 0)


# ------------------------------------------------------------------------------- what goes wrong


def flush() -> None:
    """Write out what was printed. Raises BrokenPipeError where nobody reads it, DiskError where a disk is full."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # the rest of it, which Python will try to write at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise DiskError(f"standard output: {error.strerror}; make room there, or write elsewhere") from error


def main() -> None:
    """The entry point. Exit code 2 for a user's mistake, 1 for what else goes wrong, each with one sentence."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    command = next((f" {word}" for word in words if not word.startswith("-")), "")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letter, a file's name have none
    try:
        try:
            app(["--debug"] * debug + words, prog_name="wnrepro")
        finally:
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python ends is no traceback
            flush()
    except UserError as error:
        complain(f"wnrepro: {error}", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        complain("wnrepro: interrupted; give the same command again", error)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        complain(f"wnrepro{command}: failed, {describe(error)}", error)
        sys.exit(1)

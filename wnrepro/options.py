"""The command line's options: shared ones, and an experiment's, which are derived from its settings."""

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wnrepro.errors import UserError
from wnrepro.settings import (
    PANELS,
    PARAMS,
    SCALE_NAMES,
    SETTINGS,
    PrecisionName,
    ScaleName,
    Settings,
    option,
    scale_settings,
)

GPU_PRECISIONS = ", ".join(f"{cls.gpu_precision} for {name}" for name, cls in SETTINGS.items())
PARAM_FORMS = "|".join([*PARAMS, "all", "FILE.py:CLASS"])
METAVARS = {int: "N", float: "X"}
COMMON, MODEL, DATA, START, OUTPUT = PANELS


def expanded(path: Path | None) -> Path | None:
    """Return the path with a home folder for its `~`, which shells leave in `--results=~/runs`."""
    try:
        return path and path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user, or no home folder; give the whole path") from error


def complete(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a shell completion from these choices. Without a match the shell completes names of files."""

    def matching(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return matching


complete_param = complete([*PARAMS, "all"])

Scale = Annotated[ScaleName, typer.Option(help="how much of the paper to run", rich_help_panel=COMMON)]
Results = Annotated[
    Path, typer.Option(metavar="DIR", help="folder of runs and reports", callback=expanded, rich_help_panel=OUTPUT)
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="folder of the data; default: WNREPRO_DATA, or the cache",
        callback=expanded,
        rich_help_panel=DATA,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:N]|mps",
        help="device to compute on",
        autocompletion=complete(["auto", "cpu", "cuda"]),
        rich_help_panel=COMMON,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="print JSON for a script", rich_help_panel=OUTPUT)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory, …/seed-N", callback=expanded)]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="folder to write into; default: the run's directory or, if it has no checkpoint or cannot be written, a "
        "folder here with the run's name",
        callback=expanded,
        rich_help_panel=OUTPUT,
    ),
]
ParamCode = Annotated[
    str | None,
    typer.Option("--param", metavar="FILE.py:CLASS", help="code of the run's parameterization, if it is custom"),
]


@dataclass(frozen=True)
class RunOptions:
    """The options of an experiment's command besides its settings."""

    scale: Scale = "paper"
    results: Results = Path("results")
    data_dir: DataDir = None
    device: Device = "auto"
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="take scale and settings from a run's config.json, or from what --print-config printed; options given "
            "here override them",
            callback=expanded,
            rich_help_panel=START,
        ),
    ] = None
    print_config: Annotated[
        bool, typer.Option("--print-config", help="only print the runs' config.json", rich_help_panel=START)
    ] = False
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="continue an unfinished run, or start it over", rich_help_panel=START),
    ] = True
    yes: Annotated[
        bool,
        typer.Option("--yes", help="do not ask before --fresh removes a run, or days begin", rich_help_panel=START),
    ] = False
    log_steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="also log every N-th update, in steps.csv", rich_help_panel=OUTPUT, hidden=True
        ),
    ] = None
    quiet: Quiet = False
    as_json: Json = False
    importance_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="also estimate log p(x) of the test images by K samples for each image",
            rich_help_panel=OUTPUT,
        ),
    ] = None


def complete_dataset(incomplete: str) -> list[str]:
    """Complete the names of `data fetch`."""
    from wnrepro.data.files import DATASETS

    return complete(DATASETS)(incomplete)


def complete_words(incomplete: str) -> list[str]:
    """Complete the words of `reproduce`: experiments, data sets, games, claims, tables and figures."""
    from wnrepro.reproduce.grid import expand

    return complete(sorted({name for run in expand("paper") for name in run.names if " " not in name}))(incomplete)


@dataclass(frozen=True)
class ReproduceOptions:
    """The options of the `reproduce` command."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help=f"of {', '.join(SETTINGS)}; a data set of cvae or a game of dqn; or a claim, table or figure, such as "
            "C10, table2, figure1, for the runs behind it; default: all",
            autocompletion=complete_words,
        ),
    ] = None
    scale: Scale = "paper"
    plan: Annotated[
        bool,
        typer.Option("--plan", help="only print the state of every run and the time left", rich_help_panel=COMMON),
    ] = False
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"only these of {PARAM_FORMS}; a custom one has the runs of wn; default: the paper's",
            autocompletion=complete_param,
            rich_help_panel=COMMON,
        ),
    ] = None
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help=f"of all runs; default: fp32; on a GPU {GPU_PRECISIONS}", rich_help_panel=COMMON),
    ] = None
    device: Device = "auto"
    data_dir: DataDir = None
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="runs side by side; default: as GPUs, or processors and 4 GB each, allow. On a CPU each run has one "
            "thread, or OMP_NUM_THREADS, whatever their number",
            rich_help_panel=START,
        ),
    ] = None
    jobs_per_gpu: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="default: the fastest by `wnrepro bench` that fits its memory; 1 without it or MPS",
            rich_help_panel=START,
            hidden=True,
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="finish within this time, such as 90s, 25m, 8h or 1h30m", rich_help_panel=START
        ),
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="this machine, or a Ray cluster", rich_help_panel=START, hidden=True),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="with ray: the cluster's head", rich_help_panel=START, hidden=True),
    ] = None
    bring_back: Annotated[
        bool,
        typer.Option(
            "--bring-back",
            help="with ray: copy results here after every epoch, as no folder is shared",
            rich_help_panel=START,
            hidden=True,
        ),
    ] = False
    yes: Annotated[
        bool, typer.Option("--yes", help="do not ask before days of computing begin", rich_help_panel=START)
    ] = False
    results: Results = Path("results")
    quiet: Quiet = False
    as_json: Json = False

    @property
    def local(self) -> bool:
        return self.engine == "local"


def set_options(command: Callable[..., None], parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """Set the signature of a command with arbitrary keyword arguments, so that typer derives its options."""
    signature = inspect.Signature(list(parameters))
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def command_parameters(cls: type[Settings]) -> list[inspect.Parameter]:
    """Return the parameters of an experiment's command: the scale, an option for each setting, the RunOptions.

    Options that are not given are None, or an empty list.
    """
    shared = dict(inspect.signature(RunOptions).parameters)
    scale = Annotated[
        ScaleName | None,
        typer.Option(
            metavar="|".join(SCALE_NAMES), help="how much of the paper to run (default: paper)", rich_help_panel=COMMON
        ),
    ]
    annotations: dict[str, Any] = {"scale": scale}
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, name, rules = types[field.name], option(field), field.metadata
        usual = METAVARS.get(value_type(kind), "TEXT")
        choices = (*rules.get("choices", ()), *(("all",) if field.name in (cls.part, "param") else ()))
        declared = typer.Option(
            f"{name}/--no-{name[2:]}" if kind is bool else name,
            metavar="NAME" if field.name == "param" else "|".join(choices) or rules.get("metavar", usual),
            help=setting_help(cls, field),
            autocompletion=complete(choices) if choices else None,
            rich_help_panel=rules.get("panel", MODEL),
            hidden=rules.get("rare", False),
        )
        if kind is not bool:
            kind = list[value_type(kind)]  # type: ignore[misc]  # several numbers of one setting, or several runs
        annotations[field.name] = Annotated[kind | None, declared]
    if not cls.estimates_likelihood:
        del shared["importance_samples"]
    defaults = {name: parameter.default for name, parameter in shared.items() if name != "scale"}
    annotations |= {name: shared[name].annotation for name in defaults}
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=one, default=defaults.get(name))
        for name, one in annotations.items()
    ]


def value_type(kind: Any) -> Any:
    """Return the type of one value: int for `tuple[int, ...]`, float for `float | None`."""
    return (typing.get_args(kind) or (kind,))[0]


def setting_help(cls: type[Settings], field: dataclasses.Field[Any], *named: Any) -> str:
    """Return a setting's help: its meaning, its source and, as `default_text`, its default."""
    forms = f": {', '.join(PARAM_FORMS.split('|'))}" if field.name == "param" else ""
    return f"{field.metadata['help']}{forms} ({field.metadata['source']}{default_text(cls, field, *named)})"


def default_text(
    cls: type[Settings],
    field: dataclasses.Field[Any],
    scale: str = "paper",
    parts: Collection[str] = (),
    params: Collection[str] = (),
) -> str:
    """Return a setting's default at a scale, for its help: of these parts and parameterizations, or of all."""
    if field.name == "init":
        return f"; default: {cls.init_default}"
    if field.name == "precision":
        return f"; default: {field.default}, on a GPU {cls.gpu_precision}"
    if field.name == "param" or field.default is None:
        return ""
    defaults: dict[str, str] = {}
    for part in [part for part in parts if part in cls.models] or cls.models:
        for param in [param for param in params if param in PARAMS] or PARAMS:
            value = ({field.name: field.default} | cls.scale_changes(scale, part, param))[field.name]
            if value is not None and field.metadata.get("only", part) == part:
                text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                defaults[str(part) if cls.part_scales else param] = text
    if len({*defaults.values()}) == 1:
        return f"; default: {next(iter(defaults.values()))}"
    return "; default: " * bool(defaults) + ", ".join(f"{name} {default}" for name, default in defaults.items())


def given_settings(cls: type[Settings], scale: str, options: dict[str, Any]) -> Iterator[Settings]:
    """Yield the settings of every run that the options select: every combination of their values."""
    types = typing.get_type_hints(cls)
    values: dict[str, list[Any]] = {}
    for name, given in options.items():
        if types[name] is bool:
            values[name] = [given]
        elif typing.get_origin(types[name]) is tuple:
            values[name] = [tuple(given)]
        else:
            values[name] = list(cls.models if name == cls.part and "all" in given else dict.fromkeys(given))
    for combination in itertools.product(*values.values()):
        yield scale_settings(cls.name, scale, **dict(zip(values, combination, strict=True)))

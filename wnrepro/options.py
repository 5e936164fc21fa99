"""The command line's options: shared ones, and an experiment's, which are made from its settings."""

import dataclasses
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wnrepro.errors import UserError
from wnrepro.settings import (
    LARGEST_SEED,
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
from wnrepro.text import printable

GPU_PRECISIONS = ", ".join(
    f"{precision} for {', '.join(cls.name for cls in group)}"
    for precision, group in itertools.groupby(SETTINGS.values(), key=lambda cls: cls.gpu_precision)
)
PARAM_LIST = ", ".join([*PARAMS, "all", "FILE.py:CLASS"])
AUTO = "auto"  # a value of --precision, which is not one of the setting
AUTO_MEANING = "`auto`: on a CPU with bf16 instructions bf16, where it learnt as well as fp32; otherwise the default"
METAVARS = {int: "N", float: "X"}
MOST_SEEDS = 1000  # of one command
COMMON, MODEL, DATA, START, OUTPUT = PANELS


def expanded(path: Path | None) -> Path | None:
    """Return the path with a home folder for its `~`, which shells leave in `--results=~/runs`."""
    try:
        return path and path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user or no home folder; use the whole path") from error


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
        help="folder of the data sets",
        show_default="WNREPRO_DATA, or ~/.cache/wnrepro",
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
Quiet = Annotated[bool, typer.Option("--quiet", help="print only errors", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="print JSON for scripts", rich_help_panel=OUTPUT)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of the run, …/seed-N", callback=expanded)]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="folder to write to",
        show_default="the run's folder; if it has no checkpoint or is read-only, a folder here with the run's name",
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
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="seeds to train side by side, such as 1-8 or 1,3,5-8; on a CPU each is a process with one thread, or "
            "OMP_NUM_THREADS",
            rich_help_panel=COMMON,
        ),
    ] = None
    results: Results = Path("results")
    data_dir: DataDir = None
    device: Device = "auto"
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="read the scale and settings from a run's config.json or the output of --print-config; other options "
            "override them",
            callback=expanded,
            rich_help_panel=START,
        ),
    ] = None
    print_config: Annotated[
        bool, typer.Option("--print-config", help="only print the config.json of each run", rich_help_panel=START)
    ] = False
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="resume an unfinished run, or start it again", rich_help_panel=START),
    ] = True
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="do not ask before --fresh removes a run or days of training begin", rich_help_panel=START
        ),
    ] = False
    log_steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="also log every N-th update to steps.csv", rich_help_panel=OUTPUT, hidden=True
        ),
    ] = None
    quiet: Quiet = False
    as_json: Json = False
    importance_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="also estimate log p(x) of the test images, with K samples per image",
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
            help=f"an experiment ({', '.join(SETTINGS)}), a data set of cvae, a game of dqn, or a claim, table or "
            "figure such as C10, table2 or figure1",
            show_default="all",
            autocompletion=complete_words,
        ),
    ] = None
    scale: Scale = "paper"
    plan: Annotated[
        bool,
        typer.Option("--plan", help="only print the state of each run and the time left", rich_help_panel=COMMON),
    ] = False
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"parameterizations to train: {PARAM_LIST}; a custom one gets the runs of wn",
            show_default="the paper's four",
            autocompletion=complete_param,
            rich_help_panel=COMMON,
        ),
    ] = None
    precision: Annotated[
        Literal[PrecisionName, "auto"] | None,
        typer.Option(
            help=f"precision of all runs; {AUTO_MEANING}",
            show_default=f"fp32; on a GPU {GPU_PRECISIONS}",
            rich_help_panel=COMMON,
        ),
    ] = None
    device: Device = "auto"
    data_dir: DataDir = None
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="runs at a time; on a CPU each run has one thread, or OMP_NUM_THREADS",
            show_default="as many as there are GPUs, or processors with 4 GB of memory each",
            rich_help_panel=START,
        ),
    ] = None
    jobs_per_gpu: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="runs at a time on each GPU",
            show_default="the fastest number by `wnrepro bench` that fits in its memory; 1 without a benchmark or MPS",
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
        typer.Option(help="where to train: on this machine, or on a Ray cluster", rich_help_panel=START, hidden=True),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="head node of the Ray cluster",
            show_default="RAY_ADDRESS, or the cluster of this machine",
            rich_help_panel=START,
            hidden=True,
        ),
    ] = None
    bring_back: Annotated[
        bool,
        typer.Option(
            "--bring-back",
            help="for a Ray cluster without a shared folder: copy the results here after each epoch",
            rich_help_panel=START,
            hidden=True,
        ),
    ] = False
    yes: Annotated[
        bool, typer.Option("--yes", help="do not ask before days of training begin", rich_help_panel=START)
    ] = False
    results: Results = Path("results")
    quiet: Quiet = False
    as_json: Json = False

    @property
    def local(self) -> bool:
        return self.engine == "local"


def seeds_of(text: str) -> list[int]:
    """Return the seeds of a text such as `1,3,5-8`, ascending and each once. Raises UserError for other text."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part.strip(), re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not (first <= last <= LARGEST_SEED and last - first < MOST_SEEDS):
            found.clear()
            break
        found.update(range(first, last + 1))
    if not 0 < len(found) <= MOST_SEEDS:
        raise UserError(
            f"--seeds {printable(text, 60)}: must be ascending ranges of numbers from 0 to {LARGEST_SEED}, such "
            f"as 1-8 or 1,3,5-8, with at most {MOST_SEEDS} seeds"
        )
    return sorted(found)


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
            metavar="|".join(SCALE_NAMES),
            help="how much of the paper to run",
            show_default="paper",
            rich_help_panel=COMMON,
        ),
    ]
    annotations: dict[str, Any] = {"scale": scale}
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, name, rules = types[field.name], option(field), field.metadata
        usual = METAVARS.get(value_type(kind), "TEXT")
        further = {"param": ("all",), cls.part: ("all",), "precision": (AUTO,)}.get(field.name, ())
        choices = (*rules.get("choices", ()), *further)
        declared = typer.Option(
            f"{name}/--no-{name[2:]}" if kind is bool else name,
            metavar="NAME" if field.name == "param" else "|".join(choices) or rules.get("metavar", usual),
            help=setting_meaning(field),
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


def setting_meaning(field: dataclasses.Field[Any]) -> str:
    """Return what a setting means, for the help."""
    further = {"param": f": {PARAM_LIST}", "precision": f"; {AUTO_MEANING}"}.get(field.name, "")
    return str(field.metadata["help"]) + further


def default_text(
    cls: type[Settings],
    field: dataclasses.Field[Any],
    scale: str = "paper",
    parts: Collection[str] = (),
    params: Collection[str] = (),
) -> str:
    """Return a setting's default at a scale, for its help: of these parts and parameterizations, or of all."""
    if field.name == "init":
        return cls.init_default
    if field.name == "precision":
        return f"{field.default}, on a GPU {cls.gpu_precision}"
    if isinstance(field.default, bool):
        return option(field).replace("--", "--" if field.default else "--no-", 1)
    if field.name == "param" or field.default is None:
        return ""
    defaults: dict[str, str] = {}
    for part in [part for part in parts if part in cls.models] or cls.models:
        for param in [param for param in params if param in PARAMS] or PARAMS:
            value = ({field.name: field.default} | cls.scale_changes(scale, part, param))[field.name]
            if value is not None and field.metadata.get("only", part) == part:
                text = " ".join(map(str, value)) if isinstance(value, tuple) else shortest(value)
                defaults[str(part) if cls.part_scales else param] = text
    if len({*defaults.values()}) == 1:
        return next(iter(defaults.values()))
    return ", ".join(f"{name} {default}" for name, default in defaults.items())


def shortest(value: Any) -> str:
    """Return a value as text, a float without a superfluous `.0`."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def given_settings(cls: type[Settings], scale: str, options: dict[str, Any]) -> Iterator[Settings]:
    """Yield the settings of every run that the options select: every combination of their values.

    Raises UserError as `scale_settings`.
    """
    types = typing.get_type_hints(cls)
    values: dict[str, list[Any]] = {}
    for name, given in options.items():
        if types[name] is bool:
            values[name] = [given]
        elif typing.get_origin(types[name]) is tuple:
            values[name] = [tuple(given)]
        elif name == cls.part:
            for part in given:
                if part not in (*cls.models, "all"):
                    known = ", ".join(map(str, cls.models))
                    raise UserError(f"--{name} {printable(part, 60)}: unknown; use one of {known}, all")
            values[name] = list(cls.models if "all" in given else dict.fromkeys(given))
        else:
            values[name] = list(dict.fromkeys(given))
    for combination in itertools.product(*values.values()):
        yield scale_settings(cls.name, scale, **dict(zip(values, combination, strict=True)))

"""The command line's options: shared ones, and an experiment's, which are derived from its settings."""

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wnrepro.settings import (
    ABOUT,
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

Scale = Annotated[ScaleName, typer.Option(help="how much of the paper to run")]
Results = Annotated[Path, typer.Option(metavar="DIR", help="folder of runs and reports")]
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="folder of the data; default: WNREPRO_DATA, or the cache")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="device to compute on")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for a script")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the run's directory, …/seed-N")]
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
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="continue an unfinished run, or start it over")] = (
        True
    )
    yes: Annotated[bool, typer.Option("--yes", help="with --fresh: remove a run without asking")] = False
    log_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="also log every N-th update, in steps.csv")
    ] = None
    quiet: Quiet = False
    as_json: Json = False
    importance_samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="also estimate log p(x) of the test images by K samples for each image"),
    ] = None


@dataclass(frozen=True)
class ReproduceOptions:
    """The options of the `reproduce` command."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]...",
            help=f"of {', '.join(SETTINGS)}; a data set of cvae or a game of dqn; or a claim, table or figure, such as "
            "C10, table2, figure1, for the runs behind it; default: all",
        ),
    ] = None
    scale: Scale = "paper"
    plan: Annotated[bool, typer.Option("--plan", help="only print the state of every run and the time left")] = False
    engine: Annotated[Literal["local", "ray"], typer.Option(help="this machine, or a Ray cluster")] = "local"
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="with ray: the cluster's head")] = None
    bring_back: Annotated[
        bool, typer.Option("--bring-back", help="with ray: copy results here after every epoch, as no folder is shared")
    ] = False
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="runs side by side; default: as GPUs, or processors and 4 GB each, allow. On a CPU each run has one "
            "thread, or OMP_NUM_THREADS, whatever their number",
        ),
    ] = None
    jobs_per_gpu: Annotated[
        int | None,
        typer.Option(min=1, help="default: the fastest by `wnrepro bench` that fits its memory; 1 without it or MPS"),
    ] = None
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="finish within this time, such as 90s, 25m, 8h or 1h30m")
    ] = None
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help=f"of all runs; default: fp32; on a GPU {GPU_PRECISIONS}"),
    ] = None
    param: Annotated[
        list[str] | None,
        typer.Option(metavar=PARAM_FORMS, help="only these; a custom one has the runs of wn; default: the paper's"),
    ] = None
    device: Device = "auto"
    data_dir: DataDir = None
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
    """Return the parameters of an experiment's command: an option for each setting, and the RunOptions."""
    parameters = []
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, name = types[field.name], option(field)
        choices = (*field.metadata.get("choices", ()), *(("all",) if field.name == cls.part else ()))
        declared = typer.Option(
            f"{name}/--no-{name[2:]}" if kind is bool else name,
            metavar=PARAM_FORMS if field.name == "param" else "|".join(choices) or None,
            help=f"{field.metadata['help']} ({field.metadata['source']}{default_text(cls, field)})",
        )
        if kind is not bool:
            kind = list[value_type(kind)]  # type: ignore[misc]  # several numbers of one setting, or several runs
        required = field.name == "param"
        default = inspect.Parameter.empty if required else None
        annotation: Any = Annotated[kind if required else kind | None, declared]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    for parameter in inspect.signature(RunOptions).parameters.values():
        if parameter.name != "importance_samples" or cls.estimates_likelihood:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return parameters


def value_type(kind: Any) -> Any:
    """Return the type of one value: int for `tuple[int, ...]`, float for `float | None`."""
    return (typing.get_args(kind) or (kind,))[0]


def default_text(cls: type[Settings], field: dataclasses.Field[Any]) -> str:
    """Return a setting's default at every scale, for its help."""
    if field.name == "lr" and any(cls.name in ABOUT[param].lr for param in PARAMS):
        rates = [f"{param} {ABOUT[param].lr.get(cls.name, field.default):g}" for param in PARAMS]
        return f"; default: {', '.join(rates)}"
    if field.name == "init":
        return f"; default: {cls.init_default}"
    if field.name == "precision":
        return f"; default: {field.default}, on a GPU {cls.gpu_precision}"
    if field.name == "param" or field.default is None:
        return ""

    def text(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    defaults = {}
    for part in tuple(cls.models) if cls.part_scales else (None,):
        if field.metadata.get("only", part) == part:
            changed = {name: cls.scale_changes(name, part).get(field.name) for name in SCALE_NAMES}
            values = {name: text(value) for name, value in changed.items() if value is not None}
            at_paper = values.pop("paper", text(field.default))
            defaults[part] = ", ".join([at_paper, *(f"{k} {v}" for k, v in values.items() if v != at_paper)])
    if len({*defaults.values()}) == 1:
        return f"; default: {next(iter(defaults.values()))}"
    return "; default: " + "; ".join(f"{part} {default}" for part, default in defaults.items())


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

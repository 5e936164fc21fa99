"""How the command line explains itself: help in panels, examples, the version, and refusals in one sentence."""

import contextlib
import copy
import importlib.metadata
import os
import platform
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from wnrepro.errors import UserError
from wnrepro.options import default_text, setting_meaning
from wnrepro.settings import PANELS, SETTINGS
from wnrepro.text import count, printable

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
MANY = 12  # options, in panels
WORDS = "wnrepro.words"  # in a context's meta: the words after the command
PARAMETER_ERROR: Any = typer.BadParameter
USAGE_ERROR: Any = PARAMETER_ERROR.__base__
SETTINGS_OF_TYPER: dict[str, Any] = {
    "rich_markup_mode": None,  # rich's tables cut long names
    "context_settings": {"help_option_names": [*HELP, HELP_ALL], "max_content_width": 120},
}

PLAINER = {  # patterns in a parser's error, and what takes their place
    r"^(Value error, |Input |Option '[^']*' )": "",
    r"^should ": "must ",
    r"greater than or equal to": "at least",
    r"less than or equal to": "at most",
    r"^'.*' (?=is not one of)": "",
    r", unable to.*|\.$": "",
    r"\. Did": ", did",
    r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"unexpected argument \1",
}

EXAMPLES: dict[str, tuple[str, str, str]] = {  # of every command; a test parses them
    "wnrepro": ("wnrepro cifar --param wn --scale quick", "wnrepro reproduce --plan", "wnrepro report --published"),
    "cifar": (
        "wnrepro cifar --param all --scale quick",
        "wnrepro cifar --param wn --lr 0.001 --lr 0.003 --seeds 1-8",
        "wnrepro cifar --param my_norms.py:CentredWN --scale short",
    ),
    "cvae": (
        "wnrepro cvae --param wn --scale quick",
        "wnrepro cvae --param wn --param normal --dataset cifar10 --scale short",
        "wnrepro cvae --param wn --importance-samples 100",
    ),
    "draw": (
        "wnrepro draw --param wn --scale quick",
        "wnrepro draw --param wn --no-attention --epochs 20",
        "wnrepro draw --param wn --g-start 1 --seeds 1,3,5-8",
    ),
    "dqn": (
        "wnrepro dqn --param wn --scale quick",
        "wnrepro dqn --param all --game breakout --game seaquest --scale short",
        "wnrepro dqn --param bn --game breakout --batch-size 512",
    ),
    "reproduce": (
        "wnrepro reproduce --scale quick",
        "wnrepro reproduce C10 figure1 --plan",
        "wnrepro reproduce cifar --scale short --jobs 2 --budget 8h",
    ),
    "report": ("wnrepro report", "wnrepro report --published --check", "wnrepro report --scale quick --serve"),
    "sample": (
        "wnrepro sample results/quick/draw/wn_lr0.001/seed-1",
        "wnrepro sample results/quick/cvae/mnist_wn_lr0.002/seed-1 --count 100",
        "wnrepro sample results/quick/draw/wn_lr0.001/seed-1 --seed 2 --device cpu",
    ),
    "watch": (
        "wnrepro watch results/quick/dqn/space_invaders_wn_lr0.0003/seed-1",
        "wnrepro watch results/paper/dqn/breakout_wn_lr0.0003/seed-1 --seconds 30",
        "wnrepro watch results/paper/dqn/breakout_wn_lr0.0003/seed-1 --seed 2",
    ),
    "evaluate": (
        "wnrepro evaluate results/quick/draw/wn_lr0.001/seed-1",
        "wnrepro evaluate results/paper/cifar/wn_lr0.003/seed-1 --data my_images",
        "wnrepro evaluate results/quick/cvae/mnist_wn_lr0.002/seed-1 --json",
    ),
    "export": (
        "wnrepro export results/quick/draw/wn_lr0.001/seed-1 --tensorboard logs",
        "wnrepro export results/paper/cifar/wn_lr0.003/seed-1 --format onnx",
        "wnrepro export results/quick/draw/wn_lr0.001/seed-1 --format torch",
    ),
    "bench": ("wnrepro bench cifar", "wnrepro bench all --precision fp32 --rounds 50", "wnrepro bench --smoke"),
    "status": (
        "wnrepro data status",
        "wnrepro data status --json",
        "wnrepro data status --data-dir ~/data",
    ),
    "fetch": (
        "wnrepro data fetch",
        "wnrepro data fetch cifar10 mnist",
        "wnrepro data fetch binarized_mnist --data-dir ~/data",
    ),
    "data": ("wnrepro data status", "wnrepro data fetch", "wnrepro data fetch cifar10 --data-dir ~/data"),
    "doctor": ("wnrepro doctor", "wnrepro doctor --json", "wnrepro doctor --data-dir ~/data --results ~/results"),
}


RANGES = {r"(\d+)<=x<=(\d+)": r"{} to {}", r"x>=(\d+)": "at least {}"}  # in the help that typer makes of an option


def examples(name: str) -> tuple[str, ...]:
    """Return three commands that show what a command does; those of a custom experiment are general."""
    general = f"wnrepro {name} --param wn"
    return EXAMPLES.get(name, (f"{general} --scale quick", f"{general} --print-config", f"{general} --seeds 1-8"))


class Row(NamedTuple):
    """An option or argument, as the help and docs/cli show it."""

    names: str
    meaning: str
    default: str = ""
    source: str = ""  # of a setting
    limits: str = ""

    @property
    def text(self) -> str:
        """Its meaning with all else in brackets."""
        notes = "; ".join(filter(None, [self.source, self.default and f"default: {self.default}", self.limits]))
        return f"{self.meaning} ({notes})" if notes else self.meaning


class Parts:
    """What the help of commands and of groups have in common: panels that are never cut, and examples."""

    name: str | None
    get_params: Any
    make_context: Any
    make_parser: Any

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        ctx.meta[WORDS] = list(args)
        try:
            if not ctx.resilient_parsing:
                self.refuse_repetition(ctx)
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except USAGE_ERROR as error:
            error.ctx = error.ctx or ctx
            raise

    def refuse_repetition(self, ctx: Any) -> None:
        """Refuse an option that takes one value and is given twice, of which the parser would drop the first."""
        _, _, order = self.make_parser(ctx).parse_args(list(ctx.meta[WORDS]))
        for param, times in Counter(order).items():
            takes_one = param.param_type_name == "option" and not param.multiple and not param.is_flag
            if takes_one and times > 1:
                raise PARAMETER_ERROR("takes one value, but was given more than once", ctx=ctx, param=param)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        words = ctx.meta[WORDS]
        rest = [word for word in words if word not in (*HELP, HELP_ALL)]
        given = self.make_context(ctx.info_name, rest, parent=ctx.parent, resilient_parsing=True).params
        panels = self.panels(ctx, given, HELP_ALL in words)
        rare = sum(map(len, self.panels(ctx, given).values())) - sum(map(len, panels.values()))
        more = f"; {HELP_ALL}: also {count(rare, 'rare option')}" if rare else ""
        panels["Output" if panels["Output"] else "Options"].append(Row(", ".join(HELP), f"show this help{more}"))
        for name, rows in panels.items():
            if rows:
                with formatter.section(styled(name, bold=True)):
                    formatter.write_dl([(styled(row.names, fg="cyan"), row.text) for row in rows])

    def panels(self, ctx: Any, given: dict[str, Any], every: bool = True) -> dict[str, list[Row]]:
        """Return the rows of each panel. given: the command line's values, see `row`. every: also the rare options."""
        panels: dict[str, list[Row]] = {name: [] for name in ("Arguments", *PANELS, "Options")}
        many = len(self.get_params(ctx)) > MANY
        for param in self.get_params(ctx):
            if HELP_ALL not in param.opts and (every or not getattr(param, "hidden", False)):
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                panel = (many and getattr(param, "rich_help_panel", None)) or default
                panels.setdefault(panel, []).append(self.row(param, ctx, given))
        return panels

    def row(self, param: Any, ctx: Any, given: dict[str, Any]) -> Row:
        """Return an option's row. A setting has the default of the scale, part and parameterization that are given."""
        shown = copy.copy(param)
        shown.hidden = False
        names, text = shown.get_help_record(ctx)
        names = re.sub("[<>]", "", names if param.param_type_name == "option" else names.split(" <")[0])
        cls = SETTINGS.get(self.name or "")
        field = cls.__dataclass_fields__.get(param.name) if cls else None
        if cls and field:
            part, params = given.get(cls.part or ""), given.get("param")
            default = default_text(cls, field, given.get("scale") or "paper", part or (), params or ())
            return Row(names, setting_meaning(field), default, field.metadata["source"])
        limits = [form.format(*found.groups()) for of, form in RANGES.items() if (found := re.search(of, text))]
        limits += ["required"] if param.required else []
        return Row(names, param.help or "", default_of(param), limits="; ".join(limits))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section(styled("Examples", bold=True)):
            for line in examples(self.name or ""):
                formatter.write(f"  {line}\n")


def default_of(param: Any) -> str:
    """Return the default of an option that is no setting; empty if there is none."""
    if isinstance(param.show_default, str):
        return param.show_default
    if getattr(param, "secondary_opts", None):
        return str((param.opts if param.default else param.secondary_opts)[0])
    return "" if param.default is None or getattr(param, "is_flag", False) else str(param.default)


class Command(Parts, TyperCommand):
    """A command."""


class Group(Parts, TyperGroup):
    """A group of commands, whose help has the first paragraph of each. A wrong word is a UserError."""

    def make_context(self, *given: Any, **more: Any) -> Any:
        with one_sentence():
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:
        with one_sentence():
            return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        shown = [command for command in self.commands.values() if not command.hidden]
        with formatter.section(styled("Commands", bold=True)):
            formatter.write_dl(
                [(styled(one.name or "", fg="cyan"), (one.help or "").split("\n\n")[0]) for one in shown]
            )


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a parser's error into a UserError. Without any word, the parser shows the help."""
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise UserError(refusal(error)) from error


def styled(text: str, **style: Any) -> str:
    """Return a text with a style, if the user's terminal has any. Where no terminal is, typer removes it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else typer.style(text, **style)


def refusal(error: Any) -> str:
    """Return a parser's error as one sentence: what, where, and what to do."""
    ctx, param, option = error.ctx, getattr(error, "param", None), getattr(error, "option_name", None)
    command = ctx.command_path
    text = error.message or "is missing"
    for pattern, plain in PLAINER.items():
        text = re.sub(pattern, plain, text)
    what, todo = command.removeprefix("wnrepro").strip(), f"see `{command} --help`"
    if option is not None:
        nearest = getattr(error, "possibilities", None) or ()
        what, todo = option, f"see `{command} {HELP_ALL}`"
        if hasattr(error, "possibilities"):
            text = (
                f"no such option{', did you mean ' * bool(nearest)}{' or '.join(sorted(nearest))}{'?' * bool(nearest)}"
            )
    elif param is not None:
        given = ctx.command.make_parser(ctx).parse_args(list(ctx.meta[WORDS]))[0].get(param.name)
        values = given if isinstance(given, list | tuple) else [given]
        name = param.opts[0] if param.param_type_name == "option" else param.metavar or param.name
        what = " ".join(str(one) for one in (name, *values) if isinstance(one, str))
    else:
        text = text[:1].lower() + text[1:]
    sentence = f"{what}: {text}" if what else text
    return printable(f"{sentence}{'' if text.endswith('?') else ';'} {todo}", 500)


def version() -> str:
    """Return the versions of wnrepro, Python and torch, and the commit."""
    from wnrepro.runs.provenance import git_state

    found = git_state()
    commit = f", commit {found['commit'][:9]}{' with changes' if found['dirty'] else ''}" if found["commit"] else ""
    packages = ", ".join(f"{name} {installed(name)}" for name in ("torch", "torchvision"))
    return f"wnrepro {installed('wnrepro')}{commit}\nPython {platform.python_version()}, {packages}"


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

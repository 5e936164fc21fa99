"""Runs as files: what `--config` reads, and `--print-config` prints. This module does not import torch."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wnrepro.errors import UserError
from wnrepro.options import given_settings
from wnrepro.records import read_text
from wnrepro.runs.directory import config
from wnrepro.settings import ABOUT, PARAMS, SCALE_NAMES, ScaleName, Settings, scale_settings
from wnrepro.text import printable

ALWAYS = ("precision",)  # settings of a file that hold whatever the machine would choose


def selected(
    cls: type[Settings], scale: ScaleName | None, given: dict[str, Any], file: Path | None
) -> tuple[ScaleName, list[Settings], set[str]]:
    """Return the scale, the settings of the runs that the options and a file select, and the names of those given.

    A file's settings are as given options, which the command line's override. If the command line has another scale,
    data set, game or parameterization, only those that differ from the file's defaults are.
    """
    if file is None:
        if "param" not in given:
            raise UserError(f"--param: is missing; use one of {', '.join(PARAMS)}, all, or FILE.py:CLASS")
        return scale or "paper", list(given_settings(cls, scale or "paper", given)), set(given)
    found, runs = read(cls, file)
    planned: dict[Settings, None] = {}
    names = set(given)
    for settings in runs:
        options = overridden(cls, found, settings, scale or found, given)
        planned |= dict.fromkeys(given_settings(cls, scale or found, options))
        names |= options.keys()
    return scale or found, list(planned), names


def overridden(
    cls: type[Settings], found: str, settings: Settings, scale: str, given: dict[str, Any]
) -> dict[str, Any]:
    """Return a run's settings as options, overridden by the given ones."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {name: getattr(settings, name) for name in fields}
    kept = {name: values[name] for name in ("param", cls.part) if name}
    moved = [name for name, value in kept.items() if given.get(name, [value]) != [value]]
    if moved or scale != found:
        defaults = scale_settings(cls.name, found, **kept)
        changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
        if cls.part in moved:  # the other part has no such settings
            changed = {name: one for name, one in changed.items() if "only" not in fields[name].metadata}
        values = kept | {name: values[name] for name in ALWAYS} | changed
    options = {name: value if isinstance(value, bool | tuple) else [value] for name, value in values.items()}
    return options | given


def read(cls: type[Settings], file: Path) -> tuple[ScaleName, list[Settings]]:
    """Return the scale of a file's runs, and their settings. Raises UserError unless it belongs to this experiment."""
    file = file / "config.json" if file.is_dir() else file
    where = f"--config {printable(str(file))}"
    try:
        content = json.loads(read_text(file))
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; use a run's config.json or the output of --print-config") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({printable(str(error), 100)}); use a run's config.json") from error
    runs = content if isinstance(content, list) else [content]
    if not runs or not all(isinstance(run, dict) and isinstance(run.get("settings"), dict) for run in runs):
        raise UserError(f"{where}: has no `settings`; use a run's config.json or the output of --print-config")
    for run in runs:
        if run.get("experiment", cls.name) != cls.name:
            other = printable(str(run["experiment"]), 60)
            raise UserError(f"{where}: is a run of {other}; use `wnrepro {other} --config {printable(str(file))}`")
    scales = {str(run.get("scale", "paper")) for run in runs}
    if len(scales) > 1 or not scales <= {*SCALE_NAMES}:
        known = ", ".join(SCALE_NAMES)
        raise UserError(f"{where}: has scale {printable(', '.join(sorted(scales)), 60)}; use one of {known}")
    scale = next(name for name in SCALE_NAMES if name in scales)
    return scale, [whole(cls, scale, run, where) for run in runs]


def whole(cls: type[Settings], scale: str, run: dict[str, Any], where: str) -> Settings:
    """Return the settings of a file's run, with the scale's defaults for those that it lacks."""
    values = {name: tuple(one) if isinstance(one, list) else one for name, one in run["settings"].items()}
    param = values.get("param", "wn")
    about = run.get("parameterization")
    try:
        if isinstance(about, dict) and param not in ABOUT:
            name = printable(str(about.get("class")), 60)
            raise UserError(f"its parameterization {param} is custom; add --param FILE.py:{name}")
        return scale_settings(cls.name, scale, **({"param": param} | values))
    except (UserError, TypeError) as error:  # TypeError: an object in place of a word
        raise UserError(f"{where}: {error}") from error


def printed(experiment: str, scale: str, planned: Sequence[Settings]) -> str:
    """Return the config.json of a run, or a list of those of several runs."""
    configs = [config(experiment, scale, settings) for settings in planned]
    return json.dumps(configs[0] if len(configs) == 1 else configs, indent=2)

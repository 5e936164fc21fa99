"""Custom parameterizations: subclasses of `parameterization.Parameterization` in a user's file.

The code is sent as text to other processes and nodes. It is also copied into the folder of each run, but never loaded
from there. The parameterization's name contains the text's hash.
"""

import difflib
import importlib.util
import linecache
import math
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wnrepro.errors import UserError
from wnrepro.settings import ABOUT, PARAMS, SETTINGS, About, Source, scale_settings
from wnrepro.text import printable

LARGEST = 2**20  # bytes of a user's file
SMALLEST_LR = 1e-30  # the smallest that a report reads
FORMS = f"{', '.join(PARAMS)}, all, or your own class as FILE.py:CLASS or package.module:CLASS"
ATTRIBUTES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # the allowed values of each, in words and as a test
    **{name: ("True or False", lambda value: type(value) is bool) for name in ("after", "learns_g", "affine")},
    "label": (
        "a line of text of at most 60 characters",
        lambda value: type(value) is str and value.isprintable() and len(value) <= 60,
    ),
    "lr": (f"a dict of numbers above 0 by experiment ({', '.join(SETTINGS)})", lambda value: _are_rates(value)),
    "batch_statistics": (
        'a tuple of different names, such as ("mean",)',
        lambda value: type(value) is tuple and all(map(_is_name, value)) and len({*value}) == len(value),
    ),
}


def params(texts: Sequence[str]) -> list[str]:
    """Return the parameterizations of `--param`, each once, and load the custom ones. Raises UserError.

    texts: names, `all`, FILE.py:CLASS, package.module:CLASS, or several of these separated by commas.
    """
    names: list[str] = []
    for text in (part.strip() for part in ",".join(texts).split(",")):
        if text == "all":
            names += PARAMS
        elif ":" in text:
            names.append(use(read(text)))
        elif text in PARAMS:
            names.append(text)
        else:
            raise UserError(f"--param {printable(text, 60)}: unknown; use one of {FORMS}")
    return list(dict.fromkeys(names))


def read(text: str) -> Source:
    """Return the source that FILE.py:CLASS or package.module:CLASS names. Raises UserError if it cannot be read."""
    place, name = text.rsplit(":", 1)
    package, path = "", Path(os.path.expanduser(place))

    def wrong(what: str) -> UserError:
        return UserError(f"--param {printable(text, 200)}: {what}")

    if not name.isidentifier():
        raise wrong("names no class; write it as FILE.py:CLASS")
    if not place.endswith(".py"):
        try:
            spec = importlib.util.find_spec(place)
        except (Exception, SystemExit):  # raised by the parent package
            spec = None
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            raise wrong(f"there is no Python module {printable(place, 200)}; install it, or use FILE.py:CLASS")
        package, path = spec.parent or "", Path(spec.origin)
    shown = printable(str(path))
    try:
        if path.exists() and not path.is_file():
            raise wrong(f"{shown} is not a file; use a Python file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise wrong(f"{shown} is larger than {LARGEST >> 20} MiB; use a smaller file")
        return Source(name, str(path), content.decode("utf-8-sig"), package)
    except OSError as error:
        raise wrong(f"{shown} cannot be read ({error.strerror}); use another file") from error
    except UnicodeDecodeError as error:
        raise wrong(f"{shown} is not UTF-8 text; use a Python file") from error


def use(source: Source, tried: bool = False) -> str:
    """Load a parameterization, unless it is loaded, and return its name for `param`. Raises UserError if it fails.

    tried: whether the process that sent it has tested it.
    """
    if source.param not in ABOUT:
        from wnrepro.parameterization import norm

        cls = _load(source, norm.Parameterization)
        try:
            ABOUT[source.param] = _about(source, cls)
        except UserError:
            raise
        except Exception as error:
            raise fault_of(source, error) from error
        norm.CLASSES[source.param] = cls
        if not tried:
            try:
                _try_out(source)
            except UserError:
                del ABOUT[source.param], norm.CLASSES[source.param]
                raise
    known = ABOUT[source.param].source
    if known is None or (known.name, known.package) != (source.name, source.package):
        raise _error(source, f"another class has the same name in runs, {source.param}; rename this class")
    return source.param


def _load(source: Source, base: type[Any]) -> type[Any]:
    """Return the class from its module, which is executed once. Raises UserError if it fails."""
    name = f"wnrepro_custom_{source.sha256[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__, module.__package__ = source.file, source.package
        # For tracebacks and torch.compile, also in a process that does not have the file.
        lines = source.text.splitlines(keepends=True)
        linecache.cache[source.file] = (len(source.text), None, lines, source.file)
        sys.modules[name] = module
        try:
            exec(compile(source.text, source.file, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise fault_of(source, error) from error
    cls = getattr(sys.modules[name], source.name, None)
    if not isinstance(cls, type):
        raise _error(source, f"the file has no class {source.name}; use the name of a class in it")
    if not issubclass(cls, base) or cls is base:
        subclass = "make it a subclass of wnrepro.parameterization.Parameterization"
        raise _error(source, f"is not a parameterization; {subclass}")
    return cls


def _about(source: Source, cls: Any) -> About:
    """Return the entry of the class in `ABOUT`. Raises UserError for mistakes that a trial would not find."""
    from wnrepro.parameterization import norm

    def wrong(what: str) -> UserError:
        return _error(source, f"{what}; fix it in {_place(source)}")

    mro, api = cls.__mro__, [name for name in dir(norm.Parameterization) if not name.startswith("_")]
    own = {name for base in mro if base.__module__ == cls.__module__ for name in vars(base)}
    for name in sorted(own.difference(api)):
        if not name.startswith("_") and (meant := difflib.get_close_matches(name, api, 1, 0.8)):
            raise wrong(f"it defines `{name}`: write `{meant[0]}` or, for your own name, `_{name}`")
    if not own.intersection(api) - {"linear"}:
        raise wrong("it overrides no method or attribute")
    for inner, outer in (("direction", "weight"), ("normalize", "output"), ("output", "in_evaluation")):
        places = [next(place for place, base in enumerate(mro) if name in vars(base)) for name in (inner, outer)]
        by = mro[places[1]]
        if places[0] < places[1] and by is not norm.Parameterization and by.__module__ == norm.__name__:
            raise wrong(f"{by.__name__}.{outer} does not call `{inner}`, so override `{outer}` too")
    for name, (what, holds) in ATTRIBUTES.items():
        if not holds(getattr(cls, name)):
            raise wrong(f"its `{name}` must be {what}")
    settings_used: tuple[str, ...] = (("g_exp",) if cls.after else ("g_exp", "g_start")) if cls.learns_g else ()
    settings_used += ("init",) if issubclass(cls, norm.Normal) else ()
    return About(cls.label or source.name, dict(cls.lr), settings_used, source)


def _is_name(value: object) -> bool:
    return type(value) is str and value.isidentifier()


def _are_rates(value: object) -> bool:
    return isinstance(value, dict) and all(
        name in SETTINGS and type(lr) in (int, float) and SMALLEST_LR <= lr < math.inf for name, lr in value.items()
    )


def _place(source: Source) -> str:
    lines = enumerate(source.text.splitlines(), 1)
    number = next((number for number, line in lines if re.match(rf"\s*class {source.name}\b", line)), 1)
    return f"{source.file}, line {number}"


def _error(source: Source, what: str) -> UserError:
    return UserError(f"--param {source.file}:{source.name}: {what}")


def fault_of(source: Source, error: BaseException) -> UserError:
    """Return a UserError with the file, line and message of an error in a parameterization's code."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source.file]
    if isinstance(error, SyntaxError) and error.filename == source.file:
        lines.append(error.lineno)
    place = f"{source.file}, line {lines[-1]}" if lines else _place(source)
    what = printable(" ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split()), 300)
    return _error(source, f"fails at {place} ({what}); fix it there")


def _try_out(source: Source) -> None:
    """Raise UserError unless layers of every kind start, train, evaluate and fold with this parameterization."""
    from wnrepro.parameterization.trial import RefusedError, trial

    try:
        trial(source.param)
    except RefusedError as error:
        raise _error(source, f"{error} (the class: {_place(source)})") from error
    except (Exception, SystemExit) as error:
        raise fault_of(source, error) from error


def try_in(experiment: str, param: str) -> None:
    """Raise UserError unless an experiment's small model trains on noise with this parameterization."""
    source = ABOUT[param].source
    if source is None:
        return
    import torch

    from wnrepro.bench.ours import our_training

    cls = SETTINGS[experiment]
    try:
        with torch.random.fork_rng(devices=[]):
            for part in cls.models if cls.part_scales else (None,):
                settings = scale_settings(experiment, "quick", param, **({cls.part: part} if cls.part and part else {}))
                _, step = our_training(settings, torch.device("cpu"))
                step(), step()
    except (Exception, SystemExit) as error:
        raise fault_of(source, error) from error

"""Parameterizations that are not the paper's: a class of `parameterization.Parameterization`, in a file of its user's.

Its code travels as text, by which it is known too: to other processes and nodes, and into the folder of its runs, from
where nothing loads it.
"""

import difflib
import importlib.util
import linecache
import math
import re
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wnrepro.errors import UserError
from wnrepro.settings import ABOUT, PARAMS, SETTINGS, About, Source, printable, scale_settings

LARGEST = 2**20  # bytes of such a file
SMALLEST_LR = 1e-30  # which a report reads
FORMS = f"{', '.join(PARAMS)}, all, or a class of yours as FILE.py:CLASS or package.module:CLASS"


def params(texts: Sequence[str]) -> list[str]:
    """The parameterizations of `--param`, each once: names, `all`, FILE.py:CLASS, package.module:CLASS, and several of
    these with commas between them. Loads the classes. Raises UserError.
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
            raise UserError(f"--param {printable(text, 60)}: unknown; give one of {FORMS}")
    return list(dict.fromkeys(names))


def read(text: str) -> Source:
    """The source that FILE.py:CLASS or package.module:CLASS names. Raises UserError."""
    place, name = text.rsplit(":", 1)
    shown, package, path = printable(text, 200), "", Path(place)
    if not name.isidentifier():
        raise UserError(f"--param {shown}: names no class; give it as FILE.py:CLASS")
    if not place.endswith(".py"):
        try:
            spec = importlib.util.find_spec(place)
        except (Exception, SystemExit):  # of a package that it is in
            spec = None
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            raise UserError(
                f"--param {shown}: there is no Python module {printable(place, 200)}; install it, or give FILE.py:CLASS"
            )
        package, path = spec.parent or "", Path(spec.origin)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"--param {shown}: {printable(str(path))} is no file; give a Python file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(
                f"--param {shown}: {printable(str(path))} is larger than {LARGEST >> 20} MiB; give a smaller file"
            )
        return Source(name, str(path), content.decode("utf-8-sig"), package)
    except OSError as error:
        raise UserError(
            f"--param {shown}: {printable(str(path))} cannot be read ({error.strerror}); give another file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--param {shown}: {printable(str(path))} is no UTF-8 text; give a Python file") from error


def use(source: Source, tried: bool = False) -> str:
    """Load a parameterization, unless it has been; its name for `param`. Raises UserError where it is none or fails.

    tried: it has been tried out by the process that sent it.
    """
    if source.param not in ABOUT:
        from wnrepro.parameterization import norm

        kind = _class(source, norm.Parameterization)
        try:
            ABOUT[source.param] = _about(source, kind)
        except UserError:
            raise
        except Exception as error:
            raise fault_of(source, error) from error
        norm.CLASSES[source.param] = kind
        if not tried:
            try:
                try_out(source)
            except UserError:
                del ABOUT[source.param], norm.CLASSES[source.param]
                raise
    known = ABOUT[source.param].source
    if known is None or (known.name, known.package) != (source.name, source.package):
        raise UserError(
            f"--param {source.file}:{source.name}: another has its name in runs, {source.param}; give it another"
        )
    return source.param


def _class(source: Source, base: type[Any]) -> type[Any]:
    """The class, of its module, which is executed once."""
    name = f"wnrepro_custom_{source.sha256[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__, module.__package__ = source.file, source.package
        # For tracebacks, and for torch.compile, which may be in a process that does not have the file.
        lines = source.text.splitlines(keepends=True)
        linecache.cache[source.file] = (len(source.text), None, lines, source.file)
        sys.modules[name] = module
        try:
            exec(compile(source.text, source.file, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise fault_of(source, error) from error
    kind = getattr(sys.modules[name], source.name, None)
    if not isinstance(kind, type):
        raise UserError(f"--param {source.file}:{source.name}: the file has no class {source.name}; give one that is")
    if not issubclass(kind, base) or kind is base:
        raise UserError(
            f"--param {source.file}:{source.name}: is no parameterization; make it a subclass of "
            "wnrepro.parameterization.Parameterization"
        )
    return kind


def _about(source: Source, kind: Any) -> About:
    """What the class says of itself."""
    from wnrepro.parameterization import norm

    def wrong(what: str) -> UserError:
        return UserError(f"--param {source.file}:{source.name}: {what}; mend it in {_where(source)}")

    mro, api = kind.__mro__, [name for name in dir(norm.Parameterization) if not name.startswith("_")]
    mine = {name for one in mro if one.__module__ == kind.__module__ for name in vars(one)}
    for name in sorted(mine.difference(api)):
        if not name.startswith("_") and (meant := difflib.get_close_matches(name, api, 1, 0.8)):
            raise wrong(f"it has `{name}`: write `{meant[0]}` or, for a name of your own, `_{name}`")
    if not mine.intersection(api) - {"linear"}:
        raise wrong("it overrides nothing")
    for inner, outer in (("direction", "weight"), ("normalize", "output"), ("output", "in_evaluation")):
        places = [next(place for place, one in enumerate(mro) if name in vars(one)) for name in (inner, outer)]
        by = mro[places[1]]
        if places[0] < places[1] and by is not norm.Parameterization and by.__module__ == norm.__name__:
            raise wrong(f"{by.__name__}.{outer} does not call its `{inner}`, so override `{outer}` too")
    for name in ("after", "learns_g", "affine"):
        if type(getattr(kind, name)) is not bool:
            raise wrong(f"its {name} is not True or False")
    if type(kind.label) is not str or not kind.label.isprintable() or len(kind.label) > 60:
        raise wrong("its label is no line of text of at most 60 characters")
    good = isinstance(kind.lr, dict) and all(
        name in SETTINGS and type(lr) in (int, float) and SMALLEST_LR <= lr < math.inf for name, lr in kind.lr.items()
    )
    if not good and kind.lr:
        raise wrong(f"its lr is no dict of numbers above 0 by experiment ({', '.join(SETTINGS)})")
    names = kind.batch_statistics
    if type(names) is not tuple or len({*names}) < len(names) or not all(map(_is_name, names)):
        raise wrong('its batch_statistics are no tuple of names, such as ("mean",)')
    heeds: tuple[str, ...] = (("g_exp",) if kind.after else ("g_exp", "g_start")) if kind.learns_g else ()
    heeds += ("init",) if issubclass(kind, norm.Normal) else ()
    return About(kind.label or source.name, dict(kind.lr), heeds, source)


def _is_name(value: object) -> bool:
    return type(value) is str and value.isidentifier()


def _where(source: Source) -> str:
    lines = enumerate(source.text.splitlines(), 1)
    number = next((number for number, line in lines if re.match(rf"\s*class {source.name}\b", line)), 1)
    return f"{source.file}, line {number}"


def fault_of(source: Source, error: BaseException) -> UserError:
    """The sentence for an error of a parameterization's code: where in its file it was, and what."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source.file]
    if isinstance(error, SyntaxError) and error.filename == source.file:
        lines.append(error.lineno)
    where = f"{source.file}, line {lines[-1]}" if lines else _where(source)
    what = printable(" ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split()), 300)
    return UserError(f"--param {source.file}:{source.name}: fails at {where} ({what}); mend it there")


def try_out(source: Source) -> None:
    """Raise UserError unless layers of every kind start, train, evaluate and fold with it."""
    from wnrepro.parameterization.trial import Refused, trial

    try:
        trial(source.param)
    except Refused as error:
        raise UserError(f"--param {source.file}:{source.name}: {error} (the class: {_where(source)})") from error
    except (Exception, SystemExit) as error:
        raise fault_of(source, error) from error


def try_in(experiment: str, param: str) -> None:
    """Raise UserError unless an experiment's small model starts and trains with it, on noise."""
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

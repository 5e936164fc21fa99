"""The paper's experiments, one file each: settings and data in, `train()` yields its progress."""

import importlib
from typing import Any

from wnrepro.settings import SETTINGS


def experiment_class(experiment: str) -> Any:
    """The class that implements an experiment, imported here so that the command line's help needs no torch."""
    module, _, name = SETTINGS[experiment].implementation.partition(":")
    return getattr(importlib.import_module(module), name)

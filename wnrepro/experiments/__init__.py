"""The paper's experiments, one file each: from settings and data, `train()` yields progress and results."""

import importlib
from typing import Any

from wnrepro.settings import SETTINGS


def experiment_class(experiment: str) -> Any:
    """Import and return the class of an experiment, so that the command line's help does not need torch."""
    module, _, name = SETTINGS[experiment].implementation.partition(":")
    return getattr(importlib.import_module(module), name)

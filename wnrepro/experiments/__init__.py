"""The paper's experiments, one file each: settings and data in, `train()` yields its progress."""

import importlib
from typing import Any

CLASSES = {"cifar": "Cifar", "cvae": "Cvae", "draw": "Draw", "dqn": "Dqn"}


def experiment_class(experiment: str) -> Any:
    """The class of an experiment, imported here so that the command line's help needs no torch."""
    return getattr(importlib.import_module(f"wnrepro.experiments.{experiment}"), CLASSES[experiment])

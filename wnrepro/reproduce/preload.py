"""The imports of the process from which a grid's runs on a CPU fork. They take seconds, and no run repeats them.

Nothing here computes or starts a thread, so that a forked run computes what a new process would.
"""

import contextlib
import importlib

MODULES = (
    "torch",
    "torch._dynamo",  # the first optimizer's step imports it
    "wnrepro.runs.run",
    *(f"wnrepro.experiments.{name}" for name in ("cifar", "cvae", "draw", "dqn")),
    "sklearn.datasets",
    "ale_py.vector_env",
)

for module in MODULES:
    with contextlib.suppress(Exception):  # the run that needs it reports it
        importlib.import_module(module)

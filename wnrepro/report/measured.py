"""The pages of docs/ with measured numbers: pages/ has their templates, and results/published the numbers.

The expressions of a template call the methods of `Measured`. They name a run by its folder in results/published, and
the runs of all seeds by the folder above it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from wnrepro.errors import UserError
from wnrepro.reading import FRACTIONS, read_table
from wnrepro.records import RunRecord, StepTimes, read_model
from wnrepro.report.layout import render

PAGES = Path(__file__).with_name("pages")
REMEDY = "publish it, or change the page"


class Measured:
    """The numbers of published runs and benchmarks. All methods raise UserError for what does not exist."""

    def __init__(self, published: Path, sessions: Mapping[str, Mapping[str, StepTimes]]) -> None:
        """sessions: step times by file name without .json, and experiment."""
        self.published, self.sessions = published, sessions

    def curve(self, run: str, column: str) -> pd.Series:
        """Return a column of a run's metrics.csv by epoch; errors are in per cent."""
        path = self.published / run / "metrics.csv"
        if not path.is_file():
            raise UserError(f"{path} does not exist; {REMEDY}")
        values = read_table(path, ("epoch", column)).set_index("epoch")[column]
        return (100 * values).round(9) if column in FRACTIONS else values

    def values(self, runs: str, column: str, epoch: int | None = None) -> pd.Series:
        """Return a column's value at an epoch, by default the last, by seed."""
        found = {}
        for run in self._runs(runs):
            curve = self.curve(run, column)
            if curve.empty:
                raise UserError(f"{self.published / run / 'metrics.csv'} has no epochs; {REMEDY}")
            at = curve.index.max() if epoch is None else epoch
            if at not in curve.index:
                raise UserError(f"{self.published / run / 'metrics.csv'} has no epoch {at}; {REMEDY}")
            found[Path(run).name] = curve[at]
        return pd.Series(found)

    def value(self, runs: str, column: str, epoch: int | None = None) -> float:
        """Return the mean of `values`."""
        return float(self.values(runs, column, epoch).mean())

    def apart(self, run: str, other: str, column: str) -> float:
        """Return the largest difference between two runs at an epoch of both."""
        return float((self.curve(run, column) - self.curve(other, column)).abs().max())

    def n(self, *runs: str) -> int:
        """Return the number of seeds, which must be the same for all of these runs."""
        counts = {name: len(self._runs(name)) for name in runs}
        if len({*counts.values()}) > 1:
            raise UserError(f"{self.published}: these have different numbers of seeds: {counts}; quote each")
        return counts[runs[0]]

    def diverged(self, runs: str) -> int:
        """Return how many runs diverged."""
        return sum(self._record(run).status == "diverged" for run in self._runs(runs))

    def median_loss(self, run: str) -> float:
        """Return the median loss of the epoch in which a run diverged."""
        if found := re.match(r"median training loss ([\d.]+) nats", self._record(run).message):
            return float(found[1])
        raise UserError(f"{self.published / run / 'run.json'} names no median loss; {REMEDY}")

    def bench(self, session: str, experiment: str) -> StepTimes:
        """Return the step times of an experiment in a session."""
        if experiment in self.sessions.get(session, ()):
            return self.sessions[session][experiment]
        raise UserError(f"{self.published}/bench/{session}.json has no step times of {experiment}; {REMEDY}")

    def seconds(self, session: str, experiment: str, contender: str) -> pd.Series:
        """Return a contender's step times by round."""
        seconds = self.bench(session, experiment).seconds
        if contender in seconds:
            return pd.Series(seconds[contender])
        raise UserError(f"{self.published}/bench/{session}.json: {experiment} does not time {contender}; {REMEDY}")

    def _runs(self, runs: str) -> list[str]:
        """Return this run, or the runs of all seeds."""
        if (self.published / runs / "metrics.csv").is_file():
            return [runs]
        if found := sorted(self.published.glob(f"{runs}/seed-*/metrics.csv")):
            return [path.parent.relative_to(self.published).as_posix() for path in found]
        raise UserError(f"{self.published / runs} has no run; {REMEDY}")

    def _record(self, run: str) -> RunRecord:
        return read_model(self.published / run / "run.json", RunRecord)[0]


def pages(measured: Measured, **further: Callable[..., Any]) -> dict[str, str]:
    """Return the text of each page, by its path in docs/. Raises UserError if an expression has no value.

    further: functions that expressions may call too.
    """
    functions = {name: getattr(measured, name) for name in vars(Measured) if not name.startswith("_")} | further
    found = {}
    for path in sorted(PAGES.rglob("*.jinja")):
        name = path.relative_to(PAGES).with_suffix("").as_posix()
        try:
            text = render(f"pages/{name}.jinja", **functions)
        except (UserError, jinja2.UndefinedError) as error:
            raise UserError(f"{path}: {error}") from error
        found[name] = f"<!-- Written by `make docs` from wnrepro/report/pages/{name}.jinja. -->\n{text}"
    return found

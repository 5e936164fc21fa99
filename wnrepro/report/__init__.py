"""The report: a pure function of the files in results/. Never imports torch."""

from pathlib import Path

from wnrepro.report.claims import fixed_beforehand
from wnrepro.report.stats import quiet
from wnrepro.report.write import write_report
from wnrepro.results import check, load, scales_with_runs

__all__ = ["check", "rules", "scales_with_runs", "write_report"]


@quiet
def rules(results: Path, scale: str, precision: str | None = None) -> list[str]:
    """Of every claim with runs, whether its rule was committed before them: a sentence each. UserError as `load`."""
    return list(fixed_beforehand(load(results, scale, precision)))

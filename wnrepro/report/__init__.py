"""The report: a pure function of the files in results/. Never imports torch."""

from wnrepro.report.write import write_report
from wnrepro.results import check, scales_with_runs

__all__ = ["check", "scales_with_runs", "write_report"]

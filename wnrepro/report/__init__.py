"""The report: a pure function of the files in results/. Never imports torch."""

from wnrepro.report.load import check, scales_with_runs
from wnrepro.report.write import write_report

__all__ = ["check", "scales_with_runs", "write_report"]

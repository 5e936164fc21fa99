"""The report's tables: how their numbers are written, and those of an experiment that the report does not name."""

import math

import pytest

from wnrepro.report.tables import cell_text


@pytest.mark.parametrize(
    ("low", "high", "form", "shown"),
    [
        (0.08421, 0.09379, "100*.2f", "[8.42, 9.38]"),
        (1.07, 1.09, ".3f", "[1.070, 1.090]"),
        (-1.2345, 1.2345, ".2f", "[−1.24, 1.24]"),  # outward
        (math.nan, math.nan, ".2f", "–"),
        (1e306, 1e306, "100*.2f", "–"),  # beyond what a number can hold
    ],
)
def test_intervals_are_rounded_outward(low: float, high: float, form: str, shown: str) -> None:
    assert cell_text({"low": low, "high": high}, "low", "95 % interval", form) == shown

"""The report's tables: how their numbers are written, and those of an experiment that the report does not name."""

import math
from pathlib import Path

import pytest
from factories import make_run, report_text

from wnrepro.report.tables import cell_text, table

pytestmark = pytest.mark.usefixtures("made_up_scale")


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


def test_a_table_has_the_csvs_numbers_and_the_pages_words() -> None:
    ratio = {"experiment": "cifar", "device": "GPU", "ratio": "bn / normal", "median": 1.08, "n": 20}
    made = table("step_time", [ratio | {"low": 1.07, "high": 1.0901}, {"@texts": {"Ratio": "<b>"}, "param": "wn"}])
    assert made.headings == ["Experiment", "Device", "Ratio", "Median", "95 % interval", "n"]
    assert made.texts == [
        ["cifar", "GPU", "bn / normal", "1.080", "[1.070, 1.091]", "20"],
        ["", "", "<b>", "", "", ""],
    ]
    assert made.values == [ratio | {"low": 1.07, "high": 1.0901}] and made.folded
    assert made.about == [{"experiment": "cifar"}, {"param": "wn"}]


@pytest.mark.usefixtures("text_only")
def test_table2_has_mean_interval_and_every_seed(tmp_path: Path) -> None:
    for seed, error in ((1, 0.08), (2, 0.09), (3, 0.10)):
        make_run(tmp_path, "bn", seed=seed, scale="paper", test_error=error)
    make_run(tmp_path, "bn", seed=4, scale="paper", status="running", logged=3)
    make_run(tmp_path, "bn", seed=5, scale="paper", width=8, test_error=0.5)  # other settings stay out
    text = report_text(tmp_path, "paper")  # 9 ± 4.3027 · 1 / √3
    assert "| 9.00 | \\[6.51, 11.49\\] | 3 | 8.05 | 0.003 | seed 1: 8.00; seed 2: 9.00; seed 3: 10.00; seed 4:" in text
    assert "| bn_lr0.003_width-8 | 0.003 | width = 8 | 1 |" in text

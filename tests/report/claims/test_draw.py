"""DRAW's claim: the epochs needed to reach a bound."""

import math
from pathlib import Path

import pytest
from factories import DIVERGED, find, make_draw, make_seeds

from wnrepro.report.claims.draw import reached


@pytest.mark.parametrize(
    ("bounds", "target", "expected"),
    [
        ([-90.0, -80.0], -95.0, 1.0),  # not before epoch 1
        ([-100.0, -90.0, -80.0], -82.5, 2.75),
        ([-100.0, -90.0, -80.0], -80.0, 3.0),
        ([-100.0, -80.0, -90.0, -70.0], -85.0, 1.75),  # the first time
        ([-100.0, -90.0], -89.0, math.inf),
        ([], -90.0, math.inf),
    ],
)
def test_reached_is_the_first_epoch_at_a_bound(bounds: list[float], target: float, expected: float) -> None:
    assert reached(bounds, target) == pytest.approx(expected)


def test_c10_names_the_seeds_that_never_reach_the_bound(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_draw, (1, 2, 3), {"param": "normal", "bound": -90.0})
    make_draw(tmp_path, "wn", scale="paper", seed=2, bound=-80.0)
    make_draw(tmp_path, "wn", scale="paper", seed=3, **DIVERGED | {"logged": 0})
    assert "does not reach" not in find(tmp_path, "C10a").measured
    make_draw(tmp_path, "wn", scale="paper", bound=-300.0)
    assert "; wn does not reach normal's bound in 1 of 2 seeds; " in find(tmp_path, "C10a").measured

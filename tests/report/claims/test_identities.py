"""The checks of the implementation on made-up runs."""

from pathlib import Path

from factories import find, make_run, make_seeds

from wnrepro import paper
from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED


def test_c1_takes_the_worst_run_and_counts_distinct_residuals(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, (1, 2), {})
    finding = find(tmp_path, "C1")
    assert finding.verdict == REPRODUCED and "residual of eq. 3 ≤ 1.0e-16 (n = 1)" in finding.measured
    make_seeds(tmp_path, make_run, [3], {"facts": {"eq3_residual": 1.01e-9}})
    finding = find(tmp_path, "C1")
    assert finding.verdict == NOT_REPRODUCED and "residual of eq. 3 ≤ 1.1e-09 (n = 2)" in finding.measured


def test_c3_needs_all_four_of_a_start(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, [1], *({"param": param} for param in ("wn", "bn", "normal")))
    assert find(tmp_path, "C3").verdict == INCONCLUSIVE
    make_seeds(tmp_path, make_run, [1], {"param": "wn+mobn"})
    assert find(tmp_path, "C3").verdict == REPRODUCED
    losses = zip(paper.TABLE2, (2.8, 2.8, 2.9, 2.8), strict=True)
    make_seeds(tmp_path, make_run, [2], *({"param": param, "facts": {"init_loss": loss}} for param, loss in losses))
    assert find(tmp_path, "C3").verdict == NOT_REPRODUCED

"""The claims on DQN: games, scores and learning rates."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import DIVERGED, edit_column, find, make_dqn, make_seeds

from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_RUN
from wnrepro.settings import GAMES

SEEDS = (1, 2, 3)


def test_c11_needs_all_four_games_of_scores_of_any_size(tmp_path: Path) -> None:
    scores = (("wn", 1e-320), ("normal", 1e30))
    sides = [{"param": param, "game": game, "best": best, "episodes": 3} for game in GAMES for param, best in scores]
    make_seeds(tmp_path, make_dqn, SEEDS, *sides)
    for path in tmp_path.glob("paper/dqn/*_wn_*/seed-*/metrics.csv"):
        edit_column(path, "test_score", 1e-320)
    assert math.isfinite(find(tmp_path, "C11").estimates[0].value)
    shutil.rmtree(next((tmp_path / "paper/dqn").glob("enduro_wn_*")))
    finding = find(tmp_path, "C11")
    assert finding.verdict == INCONCLUSIVE and "no pair of runs on Enduro" in finding.measured


@pytest.mark.slow
def test_c12_needs_all_rates_both_games_and_a_gain(tmp_path: Path) -> None:
    def add(game: str, *sides: dict[str, Any]) -> None:
        make_seeds(tmp_path, make_dqn, SEEDS, *({"game": game, "episodes": 30} | side for side in sides))

    lost = [{"param": "bn", "lr": lr} | DIVERGED for lr in (0.0001, 0.0003, 0.001, 0.003)]
    learnt = {"param": "normal", "best": 100.0}
    add("breakout", learnt, *lost[:3])
    assert find(tmp_path, "C12").verdict == NOT_RUN
    add("breakout", lost[3])
    assert find(tmp_path, "C12").verdict == INCONCLUSIVE  # one game
    add("space_invaders", learnt, *lost)
    finding = find(tmp_path, "C12")
    assert "share of normal's gain 0 % [0, 0]" in finding.measured
    assert "Breakout: normal has learnt in 3 of 3 seeds" in finding.measured
    for path in (tmp_path / "paper/dqn").glob("breakout_normal_*/seed-*/metrics.csv"):  # unlike its games
        edit_column(path, "test_score", 10.0)
    finding = find(tmp_path, "C12")  # a share of no gain
    assert finding.verdict == INCONCLUSIVE
    assert "not finite: dqn/breakout_normal_lr0.0001/seed-1" in finding.measured

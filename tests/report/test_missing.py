"""What is missing: the runs and hours that a claim's first verdict needs."""

from pathlib import Path

import pytest
from factories import make_draw, make_run, make_seeds

from wnrepro.report.missing import missing
from wnrepro.reproduce.grid import expand
from wnrepro.results import load


def rows(results: Path) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in missing(load(results, "paper"))}


def test_runs_of_the_grid_have_the_names_of_their_folders(tmp_path: Path) -> None:
    make_draw(tmp_path, scale="paper")
    (run,) = load(tmp_path, "paper").runs
    assert run.name in {one.name for one in expand("paper")}


def test_finished_and_unfinished_runs_are_counted(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_draw, (1, 2), {"param": "wn"}, {"param": "normal"})
    make_draw(tmp_path, "wn", scale="paper", seed=3, status="running", logged=40)
    found = rows(tmp_path)
    assert found["C10a"]["needs"] == "3 seeds"
    assert (found["C10a"]["runs"], found["C10a"]["finished"]) == (6, 4)
    assert found["C10a"]["begun"] == "draw/wn_lr0.0003/seed-3, epoch 40 of 100"
    assert found["C7a"] == found["C7b"] | {"id": "C7a"} and found["C7a"]["needs"] == "3 sessions"
    assert "C1" not in found and found["C9b"]["finished"] == 0


def test_hours_left_fall_with_the_epochs_and_not_with_a_busy_device(tmp_path: Path) -> None:
    """Six runs are left; of one, 90 and then 40 of 100 epochs."""
    hours = {}
    for epoch, seconds in ((10, 36.0), (60, 3600.0)):
        record = {"seconds": epoch * seconds}
        folder = tmp_path / str(epoch)
        make_draw(folder, "normal", scale="paper", status="running", logged=epoch, record=record)
        hours[epoch] = rows(folder)["C10a"]["hours"]
    assert hours[60] / hours[10] == pytest.approx(5.4 / 5.9, rel=0.02)


def test_a_claim_whose_runs_are_finished_has_no_row(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_draw, (1, 2, 3), {"param": "wn"}, {"param": "normal"})
    assert "C10a" not in rows(tmp_path) and "C10b" in rows(tmp_path)


def test_only_the_paper_s_scale_has_verdicts(tmp_path: Path) -> None:
    make_run(tmp_path, scale="short")
    assert not list(missing(load(tmp_path, "short")))

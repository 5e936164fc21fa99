"""A run's results in words, from its tables."""

from pathlib import Path
from typing import Any

import pytest
from factories import tiny_settings

from wnrepro.runs.directory import RunDirectory
from wnrepro.runs.outcome import last_figures, result, rows

HEADS = {
    "cifar": "epoch,seconds,train_error,test_error",
    "cvae mnist": "epoch,seconds,train_bound_nats,test_bound_nats",
    "cvae cifar10": "epoch,seconds,train_bound_nats,test_bound_nats,test_bits_per_dim",
    "dqn": "epoch,seconds,test_score",
}


@pytest.mark.parametrize(
    ("model", "lines", "said", "last"),
    [
        ("cifar", ["1,2,0.5,0.25", "2,2,0.3,0.125"], "test error 12.50 % after 2 epochs", "test 12.5% train 30.0%"),
        ("cvae mnist", ["1,2,-99.5,-98.765"], "test bound −98.765 nats after 1 epoch", "test −98.77 train −99.5"),
        ("cvae cifar10", ["1,2,-9,-8,6.25"], "bits per dimension 6.25 after 1 epoch", "test −8 train −9"),
        ("dqn", ["1,2,30", "2,2,7.5"], "best epoch's test score 30 after 2 epochs", "test 7.5"),
        ("cifar", ["1,2,0.5,0.25", "2,2,0.3,"], "", ""),  # no numbers
        ("cifar", [], "", ""),
    ],
)
def test_the_result_is_that_of_the_tables(tmp_path: Path, model: str, lines: list[str], said: str, last: str) -> None:
    run = RunDirectory(tmp_path, model.split()[0], "quick", tiny_settings(model))
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.csv").write_text("".join(f"{line}\n" for line in (HEADS[model], *lines)))
    assert result(run, {"seconds": 100.0}) == (said and f"{said}, 1.7 min of training")
    assert last_figures(run.folder) == last


def test_a_missing_table_and_an_incomplete_line_have_no_rows(tmp_path: Path) -> None:
    found: list[Any] = [rows(tmp_path)]
    (tmp_path / "metrics.csv").write_text("epoch,seconds\n1,2\n2,")
    assert [*found, rows(tmp_path)] == [[], [{"epoch": 1, "seconds": 2}]]

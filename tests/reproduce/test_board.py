"""The display of the grid on terminals of several sizes, and the printed plan: names are never cut."""

import io
import re
from collections import Counter
from pathlib import Path

import pytest
from factories import put_run
from rich.console import Console

from wnrepro.reproduce.board import Board, print_plan
from wnrepro.reproduce.grid import planned
from wnrepro.reproduce.plan import Estimate, Task, plan

STATES = ["done"] * 70 + ["diverged"] * 4 + ["waiting"] * 18 + ["stopped"] * 2 + ["failed"] * 2 + ["held"]


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """A hundred runs of the paper's grid, three of them at work."""
    tasks = plan(tmp_path, planned("paper")[:100])
    for task, state in zip(tasks, [*STATES, *["running"] * 3], strict=True):
        task.state, task.estimate = state, Estimate(3600.0, 10**9, "3 runs")
    for task in tasks[-3:]:
        task.epochs, task.text = 50.5, "test 8.3% train 1.2%"
    return tasks


def on_terminal(width: int, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=height)


@pytest.mark.parametrize(
    ("width", "height", "rows"), [(80, 24, 6), (160, 48, 6), (200, 9, 4), (80, 8, 1), (80, 4, 1), (30, 24, 6)]
)
def test_the_board_fits_the_terminal_with_whole_names_and_every_run_counted(
    tasks: list[Task], width: int, height: int, rows: int
) -> None:
    console = on_terminal(width, height)
    picture = Board(console, tasks, {"cifar": 4}, quiet=False).picture()
    lines = ["".join(part.text for part in line).rstrip() for line in console.render_lines(picture, pad=False)]
    assert len(lines) <= height and all(len(line) <= width for line in lines)
    text = "".join(lines) if width == 30 else "\n".join(lines)
    named = [task.name for task in tasks if task.name in text]
    assert named == [task.name for task in tasks if task.state in ("failed", "held", "running")][-rows:] or height < 24
    assert len(named) == rows and tasks[97].name in named  # those at work come first
    if height > 4 and width > 30:
        sums = Counter[str]()
        for number, state in re.findall(r"(\d+) (done|diverged|waiting|stopped|failed|held|running)\b", text):
            sums[state] += int(number)
        assert sums == Counter(task.state for task in tasks)
    assert "76 of 100 runs" in lines[-1] or width == 30
    if width == 80 and height == 24:
        assert "running  50/200  ━━━─────────" in text and "test 8.3% train 1.2%" in text


def test_a_line_about_a_finished_run_counts_and_colours(tasks: list[Task]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=40)
    board = Board(console, tasks, {}, quiet=False)
    for task in tasks[:70]:
        task.state = "waiting"
    tasks[0].state, tasks[0].text = "done", "test 1 [bold]\x1b[31m"
    board.show(tasks[0], "end")
    end = "done\x1b[0m, test 1 [bold]\\x1b[31m\n"
    assert console.file.getvalue() == f"  7/100  {tasks[0].name}  \x1b[32m{end}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 160])
def test_a_plan_has_whole_names_and_what_finished_runs_have_found(tmp_path: Path, width: int) -> None:
    runs = planned("quick", ["cifar"])
    put_run(tmp_path, runs[0])
    tasks, console = plan(tmp_path, runs), on_terminal(width)
    for task in tasks[1:]:
        task.estimate = Estimate(100.0, 10**9, "3 runs")
    folder = tasks[0].directory.folder
    (folder / "metrics.csv").write_text("epoch,seconds,train_error,test_error\n1,2,0.5,0.25\n")
    tasks[0] = plan(tmp_path, runs)[0]
    print_plan(console, tasks, [], {})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines()[:-1])
    assert all(re.search(rf"^{re.escape(task.name)}(  |$)", text, re.MULTILINE) for task in tasks)
    assert text.count("test 25.0% train 50.0%") == 1 and text.count("C15") >= 4
    assert text.count("1.0 GB") >= len(tasks) - 1
    assert (text.splitlines()[0].split()[0] == "run") == (width == 160)


@pytest.mark.parametrize("state", ["waiting", "done"])
def test_a_plan_cuts_nothing_at_any_width(tmp_path: Path, state: str) -> None:
    tasks = plan(tmp_path, planned("quick", ["cifar"]))
    for task in tasks:
        task.state, task.estimate = state, Estimate(100.0, None, "1 run")
    for width in range(70, 150):
        print_plan(console := on_terminal(width), tasks, [], {})
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "…" not in text and all(task.name in text for task in tasks)


def test_finished_runs_keep_their_results_after_a_resume(tmp_path: Path) -> None:
    runs = planned("quick", ["draw"])
    for run in runs[:2]:
        put_run(tmp_path, run)
        line = "epoch,seconds,train_bound_nats,test_bound_nats\n1,2,-99.5,-98.5\n"
        (run.directory(tmp_path).folder / "metrics.csv").write_text(line)
    tasks, text = plan(tmp_path, runs), io.StringIO()
    with Board(Console(file=text), tasks, {}, quiet=False):
        pass
    said = [f"{task.name}  already done, test −98.5 train −99.5" for task in tasks[:2]]
    assert text.getvalue().splitlines() == said

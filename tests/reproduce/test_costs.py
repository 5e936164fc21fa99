"""What runs cost: the shipped prior, the speed of this machine beside it, runs side by side, and the time left said."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import HERE, FakeEngine, edit, put_run, quick_run

from wnrepro.reproduce import costs as costing
from wnrepro.reproduce import drive as driving
from wnrepro.reproduce import plan as planning
from wnrepro.reproduce.costs import ALIKE, OLD, RECENT, Cost, Speeds, costs, prior, together
from wnrepro.reproduce.drive import drive
from wnrepro.reproduce.grid import planned
from wnrepro.reproduce.plan import estimate_all, expected, plan, time_left
from wnrepro.reproduce.work import Job
from wnrepro.settings import SCALE_NAMES
from wnrepro.tools.costs import from_runs

GRID = Path(__file__).with_name("quick_grid.csv")  # seconds of 32 runs, two side by side: AMD EPYC, commit ae323eb
SHIPPED = "AMD EPYC, 1 thread"


def row(example: float, param: str = "wn", device: str = SHIPPED, **changes: Any) -> Cost:
    run = quick_run()
    settings = {name: getattr(run.settings, name) for name in run.settings.cost} | changes
    return Cost("cifar", param, 2.0, example, device, settings)


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ship(*rows): these are costs.csv."""
    return lambda *rows: monkeypatch.setattr(costing, "costs", lambda: rows)


def test_every_run_of_every_scale_has_a_shipped_cost_on_a_processor() -> None:
    for run in (run for scale in SCALE_NAMES for run in planned(scale)):
        found = prior(run, "A processor, 8 threads")
        assert found is not None, run
        assert found.experiment == run.experiment and 1e-5 < found.example < 100 and 0 < found.start < 1000
    assert len({(one.experiment, one.param, one.device, str(one.settings)) for one in costs()}) == len(costs())


def test_prior_is_of_what_is_most_alike(ship: Any) -> None:
    rows = [
        row(1.0, "bn", precision="bf16"),
        row(2.0, "bn"),
        row(3.0),
        row(4.0, "normal"),
        row(5.0, "bn", HERE),
        row(6.0, "normal", HERE),
    ]
    for most in range(1, len(rows) + 1):
        ship(*rows[:most])
        found = prior(quick_run(param="normal"), HERE)
        assert found is not None and found.example == most
    for other in (quick_run(width=32), quick_run("draw")):
        assert prior(other, HERE) is None
    assert prior(quick_run(), "A GPU") is None  # a processor's speed tells nothing about it
    ship(*rows, row(7.0, device="Another GPU"))
    assert prior(quick_run(), "A GPU") == row(7.0, device="Another GPU")


def test_speed_is_of_the_latest_epochs_of_the_model_else_the_experiment_else_all() -> None:
    speeds, wide, draw = Speeds(), quick_run(width=32), quick_run("draw")
    assert (speeds.ratio(wide), speeds.ratio(wide, 7.0)) == (1.0, 7.0)
    for ratio in [9.0] * 50 + [2.0] * RECENT:
        speeds.add(quick_run(), ratio)
    speeds.add(wide, 3.0)
    assert [speeds.ratio(run) for run in (quick_run(param="bn"), wide)] == [2.0, 3.0]
    assert [speeds.ratio(run) for run in (quick_run(width=64), draw)] == [2.0, 2.0]
    for _ in range(OLD):
        speeds.add(draw, 1.0)
    assert [speeds.ratio(run) for run in (quick_run(), wide, draw)] == [ALIKE, 3.0, 1.0]  # that of `wide` is newer
    speeds.add(draw, 1.0)
    assert speeds.ratio(wide) == ALIKE


@pytest.mark.parametrize(
    ("left", "places", "seconds"),
    [
        ([], {}, 0),
        ([("cifar", 3), ("draw", 4)], {}, 7),
        ([("cifar", 3)] * 3, {"cifar": 2}, 6),
        ([("cifar", 10), ("cifar", 1), ("cifar", 2), ("cifar", 3)], {"cifar": 2}, 10),
        ([("cifar", 1), ("cifar", 2), ("cifar", 10)], {"cifar": 2}, 11),  # the long one begins last
        ([("cifar", 5)] * 4, {"cifar": 8}, 5),
        ([("cifar", 4), ("draw", 3), ("cifar", 4), ("draw", 2)], {"cifar": 2, "draw": 1}, 9),  # draw needs all places
    ],
)
def test_runs_side_by_side_end_when_the_last_place_is_free(left: Any, places: dict[str, int], seconds: float) -> None:
    assert together(left, places) == seconds


def test_a_fresh_clone_knows_a_time_for_every_run(tmp_path: Path, ship: Any) -> None:
    tasks = plan(tmp_path, planned("quick"))
    estimate_all(tasks, tmp_path, HERE)
    assert {task.estimate.source for task in tasks} == {"shipped, AMD EPYC"} and all(
        task.seconds_left for task in tasks
    )
    assert time_left(tasks, {}).runs == len(tasks)
    whole = expected(planned("quick"), tmp_path, HERE)
    assert whole.seconds == pytest.approx(time_left(tasks, {}).seconds)
    assert (whole.source, expected([quick_run(width=32)], tmp_path).seconds) == ("shipped, AMD EPYC", None)
    ship(row(0.01), row(0.02, width=8), row(9.0, width=9, device="A processor, 1 threads"))
    put_run(tmp_path, quick_run(), seconds=450.0)  # 0.03 s an example, three times as many as shipped
    other = plan(tmp_path, [quick_run(), quick_run(width=8), quick_run(width=8, seed=2), quick_run(width=9)])
    put_run(tmp_path, other[2].run, "running", epoch=4, seconds=0.0)
    other = plan(tmp_path, [task.run for task in other])
    estimate_all(other, tmp_path, HERE)
    assert [task.estimate.source for task in other[1:2]] == ["shipped, AMD EPYC × 3"]
    seconds = [0.0, 3 * (2 + 300), 3 * (2 + 180), 2 + 9.0 * 15_000]
    assert [task.seconds_left for task in other] == pytest.approx(seconds)


def test_script_reads_a_finished_grid(tmp_path: Path) -> None:
    """The second run begins 6 s after the first ends, and its first epoch takes 4 s more than the others."""
    for seed, at, device in ((1, "00:00", HERE), (2, "01:06", "A processor, 1 threads"), (3, "02:00", SHIPPED)):
        times = {"created": f"2027-01-01T00:{at}Z", "updated": f"2027-01-01T00:0{seed}:00Z", "resumed": []}
        resumed: list[dict[str, str]] = [{"device_name": device}] if seed == 3 else []
        folder = put_run(tmp_path, quick_run(seed=seed), **times | {"device_name": device, "resumed": resumed})
        (folder / "metrics.csv").write_text(
            "epoch,seconds\n" + "".join(f"{n},{4 + 4 * (n == 1)}\n" for n in range(1, 11))
        )
    first = put_run(tmp_path, quick_run(seed=4), created="2027-01-01T00:00:00Z", updated="2027-01-01T00:01:00Z")
    edit(first / "run.json", HERE, "A processor, 1 thread")
    (first / "metrics.csv").write_text("epoch,seconds\n1,4\n2,4\n3,5\n")
    brief = put_run(tmp_path, quick_run(width=8), device_name="A processor, 1 thread", resumed=[])
    (brief / "metrics.csv").write_text("epoch,seconds\n1,4\n2,4\n")  # too few for a quartile
    (found,) = from_runs(tmp_path / "quick")
    assert [found[name] for name in ("experiment", "param", "start", "epochs")] == ["cifar", "wn", "10.0", 11]
    assert float(found["example"]) == pytest.approx(4 / 1500, rel=1e-2)
    assert json.loads(found["settings"]) == {"batch_size": 25, "width": 16, "precision": "fp32"}


class Replay(FakeEngine):
    """An engine whose runs take the seconds of a real grid, each its own for its start and for every epoch."""

    def __init__(self, results: Path, starts: dict[str, float], epochs: dict[str, list[float]], jobs: int) -> None:
        lives: Any = {name: [[*range(len(each) + 1), "done"]] for name, each in epochs.items()}
        super().__init__(results, lives, jobs=jobs)
        self.starts, self.epochs = starts, {name: iter(each) for name, each in epochs.items()}
        self.seconds: Any = SimpleNamespace(get=lambda name, _: next(self.epochs[name]))

    def start(self, name: str, job: Job) -> None:
        self.loading = self.starts[name]
        super().start(name, job)


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize(
    ("speed", "of"),
    [
        (1.0, {}),
        (0.4, {"cvae": 1.3, "dqn": 1 / 1.3}),
        (2.5, {"cifar": 1.3}),
        (2.5, {"cifar": 1 / 1.3, "dqn": 1.3, "draw": 1.3}),
    ],
)
def test_the_time_left_of_a_real_grid_is_right_after_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, speed: float, of: dict[str, float]
) -> None:
    """Replayed at other speeds: within 30 % after two runs, within 15 % after half of them."""
    tasks, starts, epochs = plan(tmp_path, planned("quick")), dict[str, float](), dict[str, list[float]]()
    estimate_all(tasks, tmp_path, HERE)
    with GRID.open(newline="") as file:
        rows = {one["run"]: one for one in csv.DictReader(file)}
    for task in tasks:
        one = rows[task.directory.folder.relative_to(tmp_path / "quick").as_posix()]
        times = speed * of.get(task.run.experiment, 1.0)
        starts[task.name] = times * float(one["start"])
        epochs[task.name] = [times * float(seconds) for seconds in one["epochs"].split()]
    engine, said = Replay(tmp_path, starts, epochs, jobs), list[tuple[float, float]]()
    for module in (driving, planning):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: engine.clock))

    def show(task: planning.Task, news: str) -> None:
        if news == "end":
            said.append((engine.clock, time_left(tasks, engine.side_by_side).seconds or 0.0))

    drive(tasks, engine, tmp_path, None, show)
    end = said[-1][0]
    assert len(said) == len(tasks) == 32 and said[-1][1] == 0
    errors = [seconds / (end - clock) - 1 for clock, seconds in said[:-1] if clock < end]
    assert abs(errors[1]) <= 0.30 and abs(errors[15]) <= 0.15
    assert max(map(abs, errors[1:15])) <= 0.30


def test_what_no_one_knew_is_known_from_the_first_epochs_of_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [quick_run(), quick_run(seed=2, epochs=20), quick_run(width=32)]
    tasks, found = plan(tmp_path, runs), list[list[float | None]]()
    engine = FakeEngine(tmp_path, {task.name: [[0, 1, 2, "diverged"]] for task in tasks}, loading=4.0)
    engine.seconds = {task.name: 5.0 for task in tasks}
    for module in (driving, planning):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: engine.clock))

    def show(task: planning.Task, news: str) -> None:
        if task is tasks[0] and news != "progress":
            found.append([one.seconds_left for one in tasks])

    drive(tasks, engine, tmp_path, None, show)
    ones = [[None, None, None], [45.0, 100.0, None], [40.0, 100.0, None], [0.0, 100.0, None]]  # divergence ends a run
    assert found == ones


def test_a_shipped_time_keeps_no_run_from_a_budget_before_this_machines_speed_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ship: Any
) -> None:
    ship(row(1.0), row(1.0, width=8))  # 1500 s an epoch
    tasks = plan(tmp_path, [quick_run(seed=1), quick_run(seed=2), quick_run(width=8)])
    estimate_all(tasks, tmp_path, HERE)
    engine = FakeEngine(tmp_path, {task.name: [[*range(11), "done"]] for task in tasks}, loading=1.0)
    engine.seconds = {tasks[0].name: 5.0, tasks[1].name: 5.0, tasks[2].name: 50.0}
    for module in (driving, planning):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: engine.clock))
    drive(tasks, engine, tmp_path, None, lambda *_: None, 140.0)
    assert engine.started == [task.name for task in tasks]
    assert [task.state for task in tasks] == ["done", "done", "running"]

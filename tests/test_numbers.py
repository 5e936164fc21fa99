"""Numbers that are not finite, in training and in the report; seeds, whatever the number of processes."""

import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import factories as made_up
import matplotlib
import numpy as np
import pytest
import torch
from factories import make_images, make_pixels, tiny_cvae, tiny_dqn, tiny_draw
from matplotlib.lines import Line2D
from test_reproduce import job_of, same_tables
from torch import Tensor, nn

from wnrepro.atari import Batch
from wnrepro.errors import UserError
from wnrepro.events import Epoch
from wnrepro.experiments.cifar import Cifar
from wnrepro.experiments.cvae import Cvae
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.draw import Draw
from wnrepro.measurements import layer_rows, overflow
from wnrepro.optim import Adam, Adamax
from wnrepro.parameterization import Linear
from wnrepro.report import figures, stats, tables
from wnrepro.report.canvas import STYLE, Drawn, Sheet
from wnrepro.report.claims import CLAIMS, claim, dqn, findings, identities
from wnrepro.report.layout import render
from wnrepro.reproduce import engines, work
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.grid import Planned
from wnrepro.results import TABLES, Results, Run, load
from wnrepro.settings import PARAMS, SETTINGS

made_up_scale = made_up.made_up_scale  # the fixture
CPU = torch.device("cpu")
VALUES = (math.nan, math.inf, -math.inf)
Times, Count = Callable[[int, int], int], Callable[[str], None]

# ------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return {"cifar": make_images(), "mnist": make_pixels("mnist"), "cifar10": make_pixels("cifar10")}


@pytest.fixture
def make(data, tiny) -> Callable[..., Any]:
    """make(name, param, **changes): an experiment whose epochs take a moment."""

    def experiment(name: str, param: str, **changes: Any) -> Any:
        if name == "cifar":
            return Cifar(tiny(param, noise_epochs=(1,), decay_from=1, **changes), data[name], CPU)
        if name == "draw":
            return Draw(tiny_draw(param, **changes), data["mnist"], CPU)
        if name == "dqn":
            return Dqn(tiny_dqn(param, **changes), CPU)
        return Cvae(tiny_cvae(param, name, **changes), data[name], CPU)

    return experiment


each_experiment = pytest.mark.parametrize("name", ["cifar", "mnist", "cifar10", "draw", "dqn"])
LAST = {"dqn": 5}  # updates of an epoch; the others have ten


def put(tensor: Tensor, value: float) -> Tensor:
    """The tensor with its first number changed, in place."""
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = value
    return tensor


def train(experiment: Any, place: str, value: float, at: int, chosen: float = 0.0) -> tuple[list[dict[str, Any]], str]:
    """Train with one number changed in the update `at`: rows of metrics.csv, and how it diverged.

    place: loss, gradient or parameter; chosen: which parameter, as a share of them.
    """
    # The topmost unit's way up leads nowhere, as in the authors' code: it has no gradient.
    parameters = [p for name, p in experiment.net.named_parameters() if not name.startswith("units.1.up2.")]
    p, number = parameters[int(chosen * len(parameters))], 0
    if isinstance(experiment, Dqn) and place != "parameter":
        experiment.test = lambda epsilon: [{"epoch": 1, "game": 1, "score": 3.0}]  # games take longer than all else

    def output(_net: nn.Module, _inputs: Any, outputs: Any) -> Any:
        nonlocal number
        number += experiment.net.training and torch.is_grad_enabled()
        if number != at or not torch.is_grad_enabled():
            return None
        return tuple(each * value for each in outputs) if isinstance(outputs, tuple) else outputs * value

    def gradient(grad: Tensor) -> Tensor:
        nonlocal number
        number += 1
        return put(grad.clone(), value) if number == at else grad

    def after(*_: Any) -> None:
        nonlocal number
        number += 1
        if number == at:
            put(p, value)

    if place == "loss":
        experiment.net.register_forward_hook(output)
    elif place == "gradient":
        p.register_hook(gradient)
    else:
        experiment.optimizer.register_step_post_hook(after)
    epochs = [event for event in experiment.train() if isinstance(event, Epoch)]
    assert number >= at
    return [epoch.metrics for epoch in epochs], epochs[-1].diverged


def not_finite(rows: list[dict[str, Any]]) -> set[str]:
    return {name for row in rows for name, value in row.items() if not math.isfinite(value)}


def tensors(state: Any) -> Iterator[Tensor]:
    """Those of a state dict."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list):
        for each in state.values() if isinstance(state, dict) else state:
            yield from tensors(each)


@pytest.mark.parametrize("place", ["loss", "gradient", "parameter"])
@each_experiment
def test_what_is_not_finite_in_training_is_in_its_figures(make, name, place, times: Times, count: Count):
    dice = random.Random(f"{name} {place}")
    tries = times(1, 60)
    diverged = 0
    for number in range(tries):
        value, param = VALUES[(number + len(name + place)) % 3], dice.choice(PARAMS)
        at, chosen = dice.choice([1, 3, LAST.get(name, 10)]), dice.random()
        rows, how = train(make(name, param, epochs=1), place, value, at, chosen)
        assert how or not_finite(rows), (param, value, at, chosen)
        diverged += bool(how)
        if name == "draw" and place == "gradient":
            assert "gradient_norm" in not_finite(rows)
    count(f"{name}, {place} not finite: {tries} runs, {diverged} diverged, the others have it in metrics.csv")


@each_experiment
def test_what_overflows_is_in_the_figures_or_was_no_overflow(make, name, times: Times, count: Count):
    dice, tries, diverged = random.Random(name), times(1 if name == "dqn" else 2, 60), 0
    for number in range(tries):
        place = ("gradient", "parameter")[number % 2]
        value, param = dice.choice([1e20, 1e21, 1e30, 3e38]), dice.choice(PARAMS)
        experiment, at = make(name, param, epochs=1), dice.choice([1, 3, LAST.get(name, 10)])
        rows, how = train(experiment, place, value, at, dice.random())
        finite = all(each.isfinite().all() for each in tensors(experiment.state_dict()) if each.is_floating_point())
        finite &= all(row["v_norm_max"] < math.inf for row in layer_rows(experiment.net, 1))
        assert how or not_finite(rows) or finite, (param, place, value, at)
        diverged += bool(how)
    count(f"{name}, overflow: {tries} runs, {diverged} diverged")


def test_a_gradient_whose_square_overflows_ends_a_classifier_as_diverged(make):
    """Adam would move that parameter no more, and no loss would tell."""
    rows, diverged = train(make("cifar", "wn", epochs=2), "gradient", 1e21, 3)
    assert len(rows) == 1 and not not_finite(rows)
    assert re.fullmatch(r"a moment of conv1\.v's gradient is not finite", diverged)


@each_experiment
def test_a_norm_that_overflows_ends_a_run_as_diverged(make, name):
    """A weight g·v/‖v‖ would be 0, and no loss would tell."""
    experiment = make(name, "wn", epochs=2)
    places = [place for place, (key, _) in enumerate(experiment.net.named_parameters()) if key.endswith(".v")]
    shares = (places[0] + 0.5) / len(list(experiment.net.parameters()))
    rows, diverged = train(experiment, "parameter", 1e20, LAST.get(name, 10), shares)
    assert len(rows) == 1 and diverged


@pytest.mark.parametrize("kind", [Adam, Adamax, torch.optim.Adam])
def test_each_part_of_the_state_that_is_not_finite_is_named(kind):
    def state() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(Linear(3, 2, "bn"), Linear(2, 2, "wn"))
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = state()
    assert overflow(model, optimizer, layer_rows(model, 1)) == ""
    assert overflow(*state()[:1], torch.optim.SGD(model.parameters()), []) == ""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            before = tensor.clone()
            put(tensor, math.inf)
            assert overflow(model, optimizer, []) == f"{name} is not finite"
            tensor.copy_(before)
    for name, p in model.named_parameters():
        for moment in [each for each in optimizer.state[p].values() if each.ndim]:
            before = moment.clone()
            put(moment, math.nan)
            assert overflow(model, optimizer, []) == f"a moment of {name}'s gradient is not finite"
            moment.copy_(before)
    put(model[1].v, 1e30)
    assert overflow(model, optimizer, layer_rows(model, 1)) == "‖v‖ or g of 1 is not finite"


def test_rewards_and_q_values_that_are_not_finite_are_in_the_figures(make, monkeypatch):
    experiment = make("dqn", "wn", epochs=2)
    with monkeypatch.context() as spoil:
        of = Batch.of
        spoil.setattr(Batch, "of", lambda packed: of(packed)._replace(rewards=of(packed).rewards / 0))
        rows, diverged = train(experiment, "loss", 1.0, 1)
    assert diverged and not math.isfinite(rows[0]["loss"]) and len(rows) == 1

    experiment = make("dqn", "normal", epochs=2)
    put(next(experiment.target.parameters()), math.nan)
    monkeypatch.setattr(experiment, "renew_target", lambda: None)
    rows, diverged = train(experiment, "loss", 1.0, 1)
    assert diverged and not math.isfinite(rows[0]["loss"]) and len(rows) == 1

    experiment = make("dqn", "wn", epochs=1)
    spoilt = [{"epoch": 1, "game": game, "score": score} for game, score in enumerate([3.0, math.nan, 4.0], start=1)]
    monkeypatch.setattr(experiment, "test", lambda epsilon: spoilt)
    rows, _ = train(experiment, "parameter", 1.0, 0)
    assert not_finite(rows) == {"test_score", "test_score_max"}


# ------------------------------------------------------------------------------- the report


@pytest.fixture
def verdicts_at_short(monkeypatch) -> None:
    """The claims are judged on made-up runs at scale short."""
    monkeypatch.setattr(claim, "SCALE", "short")
    monkeypatch.setitem(SETTINGS["cifar"].scales["short"], "noise_minibatches", 100)


def make_cifars(results: Path) -> None:
    """What the classifier's claims are judged by, three seeds of each but of the learning rates."""
    made_up.make_all(results, seeds=(1, 2, 3))
    for rate in (0.0003, 0.001, 0.01):
        for seed in (2, 3):
            made_up.make_run(results, "wn", lr=rate, seed=seed, speed=0.34)
    for seed in (2, 3):
        made_up.make_run(results, "normal", lr=0.003, seed=seed)
    bounded = {"v_norm_max": 0.25}
    for seed in (1, 2, 3):
        for changed in (
            {"g_exp": 1.0},
            {"g_exp": 5.0},
            bounded,
            {"polyak_epochs": 10.0},
            bounded | {"polyak_epochs": 10.0},
        ):
            made_up.make_run(results, "wn", seed=seed, **changed)
        if seed > 1:
            made_up.make_run(results, "wn", seed=seed, g_exp=3.0)


def make_bounds(results: Path) -> None:
    """What C9 and C16 are judged by."""
    estimate = {"log_likelihood_nats": -82.5, "importance_samples": 128}
    made_up.make_vaes(results)
    for seed, offset in ((4, 0.05), (5, -0.15)):
        made_up.make_vae(results, "wn", seed=seed, bound=-84 + offset)
        made_up.make_vae(results, "normal", seed=seed, bound=-86 + 12 * offset)
    for seed in (1, 2, 3):
        made_up.make_vae(results, seed=seed, v_norm_max=0.25, bound=-83.0, facts=estimate)
        made_up.make_vae(results, dataset="cifar10", seed=seed, v_norm_max=0.25, bound=-8900.0)


def make_drawings(results: Path) -> None:
    made_up.make_draws(results)
    for seed in (1, 2, 3):
        made_up.make_draw(results, seed=seed, g_start=1.0, speed=1.5)


def make_games(results: Path) -> None:
    made_up.make_dqns(results)
    for seed in (1, 2, 3):
        for game in ("breakout", "space_invaders"):
            for rate in dqn.RATES:
                made_up.make_dqn(results, "bn", game, lr=rate, seed=seed + 3, best=12.0)
            made_up.make_dqn(results, "normal", game, seed=seed + 3, best=40.0)
        made_up.make_dqn(results, "wn", "seaquest", seed=seed, actors=8)


FOLDERS = {"cifar": make_cifars, "cvae": make_bounds, "draw": make_drawings, "dqn": make_games}


PANELS = Sheet.panels  # as the report has them


def points(sheet: Sheet) -> list[Counter[tuple[float, float]]]:
    """What each of its axes shows in lines and dots: the means and their errors too."""
    found = []
    for axes in sheet.axes:
        lines = [np.column_stack(np.broadcast_arrays(*line.get_data())) for line in axes.lines if not is_mark(line)]
        bars = [np.unique(np.asarray(path.vertices), axis=0) for bar in axes.collections for path in bar.get_paths()]
        shown = np.concatenate([np.empty((0, 2)), *lines, *(bar for bar in bars if len(bar))])
        found.append(Counter(tuple(point) for point in shown.astype(float).round(9) if np.isfinite(point).all()))
    return found


def is_mark(line: Line2D) -> bool:
    """Whether it tells of a run that something is amiss, at its end or on an edge."""
    return line.get_marker() == "x" or (line.get_marker() in "v>" and np.size(line.get_xdata()) == 1)


def legend(sheet: Sheet) -> str:
    return "; ".join(key.label for key in sheet.keys)


class Shown:
    """What the report says of results: tables, findings, figures and text."""

    def __init__(self, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
        made_up.leave_unrendered(monkeypatch)
        self.findings = findings(results)
        self.figures: dict[str, Drawn] = figures.draw(results, self.findings, printed=False)
        report = tables.report(results, self.findings, self.figures, {})
        self.text = render("page.md.jinja", report=report)
        self.rows = {name: [row for table in some for row in table.values] for name, some in report.tables.items()}
        del self.rows["claims"]


def alone(finding: claim.Finding) -> claim.Finding:
    """Without what Holm's correction says of it, which depends on the other claims."""
    return dataclasses.replace(finding, measured=finding.measured.split(" after Holm's")[0], holm=1.0)


def check_against(whole: Shown, spoilt: Shown) -> bool:
    """Check that nothing is shown of the others as if it were of all; whether anything differs."""
    differs = False
    for name, rows in whole.rows.items():
        for row, other in zip(rows, spoilt.rows[name], strict=True):
            assert row.keys() == other.keys(), name
            for column, before in row.items():
                now = other[column]
                if isinstance(before, int | float) and before != now and not (before != before and now != now):
                    assert not math.isfinite(now), (name, column, before, now)
                    said = other.get("seeds", other.get("unfinished"))
                    assert said is None or "not finite" in said, (name, column)
                    differs = True
    for name, before in whole.findings.items():
        now = spoilt.findings[name]
        if repr(alone(now)) != repr(alone(before)):
            assert now.verdict == (claim.NOT_REPRODUCED if name in CHECKS else claim.INCONCLUSIVE), (name, before, now)
            assert "not finite" in now.measured, (name, now.measured)
            differs = True
    for name, drawn in spoilt.figures.items():
        lost, (figure,) = False, drawn.panels
        for before, now in zip(points(whole.figures[name].panels[0]), points(figure), strict=True):
            assert now <= before, (name, now - before)
            lost |= now < before
        if lost:
            assert name == "variants" or "not finite in 1 run" in legend(figure), (name, legend(figure))
            differs = True
            with matplotlib.rc_context(fname=STYLE):
                assert not any(re.search(r"\b(nan|inf)\b", panel) for panel in PANELS(figure, "p", drawn.caption))
    assert whole.figures.keys() == spoilt.figures.keys()
    assert not re.search(r"\b(nan|inf)\b", spoilt.text)
    return differs


def spoilt(results: Results, run: Run, table: str, row: int, column: str, value: float) -> Results:
    """The results with one number of a run's tables changed."""
    frame = getattr(run, table).copy()
    frame.iloc[row, frame.columns.get_loc(column)] = value
    other = dataclasses.replace(run, **{table: frame})
    return dataclasses.replace(results, runs=tuple(other if each is run else each for each in results.runs))


# Columns that the report shows nothing of, and those in which a file may hold no such number.
UNUSED = {"seconds", "train_loss", "test_loss", "lr", "updates", "epsilon", "loss", "test_score_max", "gradient_norm"}
UNUSED |= {"v_norm_min", "v_norm_max", "g_mean", "g_min", "g_max", "train_bound_nats", "kurtosis_std"}
COUNTS = {"epoch", "agent_steps", "episodes", "layer", "minibatches", "time_step", "game"}
CHECKS = {one.id for one in CLAIMS if one.check}


@pytest.mark.parametrize("part", FOLDERS)
def test_no_number_that_is_not_finite_is_averaged_away_in_the_report(
    part, tmp_path, monkeypatch, verdicts_at_short, times: Times, count
):
    FOLDERS[part](tmp_path)
    results = load(tmp_path, "short")
    whole, dice, tried = Shown(results, monkeypatch), random.Random(part), 0
    done = [run for run in results.runs if run.done]
    full = [(run, table, getattr(run, table)) for run in done for table in TABLES if len(getattr(run, table))]
    there = {(table, column) for _, table, frame in full for column in frame.columns}
    for table, column in sorted(there):
        if column in COUNTS | UNUSED or (table == "layers" and part != "cifar"):
            continue
        runs = [run for run, name, frame in full if name == table and column in frame]
        values = VALUES[:1] if column in ("train_error", "test_error") else VALUES  # no others are read
        differs = False
        for number in range(times(20, 60)):
            if differs and number > times(0, 60):
                break
            run, value = dice.choice(runs), dice.choice(values) if number else values[-1 if table == "init" else 0]
            row = (-2 if column == "test_score" else -1) if number < 10 else dice.randrange(len(getattr(run, table)))
            now = Shown(spoilt(results, run, table, row, column, value), monkeypatch)
            differs |= check_against(whole, now)
            tried += 1
        assert differs, (table, column)
    count(f"{part}: {tried} numbers not finite, none averaged away")


@stats.quiet
def test_what_is_not_finite_decides_nothing():
    for value in VALUES:
        for e in (
            stats.t_test("", [1.0, 2.0, value]),
            stats.t_test("", [1.0, 2.0], [1.0, value]),
            stats.welch("", [1.0, value], [2.0, 3.0]),
            stats.tost("", [0.0, 0.0, value], 1.0),
            stats.prediction("", [8.0, 8.1, value], 8.05, 1.0),
            stats.pitman_morgan("", [1.0, 2.0, value], [1.0, 3.0, 5.0]),
        ):
            assert min(e.p_holds, e.p_fails) > stats.LEVEL and not math.isfinite(e.low + e.high)
        assert identities.at_most("", [1e-16, value], 1e-10).p_fails == 0
        assert math.isnan(stats.interquartile_mean([[1.0, 2.0, 3.0], [1.0, 2.0, value]])[0])
    assert not math.isfinite(stats.standard_error([1e308, 1e308, 1e308, 1e307]))  # their sum overflows
    for e in (stats.welch("", [0.0, 1e-150], [0.0, 1e-150]), stats.t_test("", [0.0, 1e-150], [0.0, 1e-150])):
        assert math.isfinite(e.low + e.high) and min(e.p_holds, e.p_fails) > stats.LEVEL  # whose squares are 0


# ------------------------------------------------------------------------------- seeds


@each_experiment
def test_a_seed_repeats_and_seeds_differ_under_all_four(make, name, times: Times):
    changes = {"test_games": 1, "epoch_steps": 60} if name == "dqn" else {}
    for param in [*PARAMS[: times(0, 4)], PARAMS[len(name) % 4]]:
        rows = []
        for seed in (1, 1, 2):
            events = [
                event for event in make(name, param, seed=seed, epochs=1, **changes).train() if isinstance(event, Epoch)
            ]
            rows.append([(event.metrics | {"seconds": 0}, event.tables) for event in events])
        assert repr(rows[0]) == repr(rows[1]) != repr(rows[2])


def eight() -> list[Planned]:
    """Runs of a moment, of which cvae's and dqn's have other last bits with two threads than with one."""
    runs: list[tuple[str, Any]] = [("cvae", tiny_cvae(param, epochs=2)) for param in PARAMS]
    runs += [("dqn", tiny_dqn("wn", epochs=1)), ("cvae", tiny_cvae("wn", "cifar10", epochs=2))]
    runs += [("draw", tiny_draw("normal", epochs=2)), ("cvae", tiny_cvae("wn", epochs=2, seed=2))]
    return [Planned(name, "quick", settings, ()) for name, settings in runs]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_numbers import eight
from wnrepro.reproduce import drive
from wnrepro.reproduce.engines import Local
from wnrepro.reproduce.plan import plan
drive.HELD_SECONDS = 0.2
results, jobs, runs = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
tasks = [drive.Task(line) for line in plan(results, eight()[:runs])]
drive.drive(tasks, Local(["cpu"], jobs, {}), results, None, lambda task, news: print(task.name, news, flush=True))
sys.exit(any(task.state != "done" for task in tasks))
"""


def driver(results: Path, jobs: int, runs: int) -> subprocess.Popen[str]:
    """A process that computes the first so many of `eight`, and prints the news of each."""
    command = [sys.executable, "-c", DRIVER, str(results), str(Path(__file__).parent), str(jobs), str(runs)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def by_one_thread(tmp_path_factory) -> Path:
    """The results of `eight`, one run after the other in this process."""
    results, ends = tmp_path_factory.mktemp("alone"), []
    threads = torch.get_num_threads()
    for one in eight():
        work.work(job_of(one, results), ends.append)
    torch.set_num_threads(threads)
    assert [event.outcome for event in ends if event.outcome] == ["done"] * 8
    return results


@pytest.mark.parametrize(("jobs", "runs"), [(1, 1), (3, 0), (8, 8)])
def test_the_number_of_processes_changes_no_row(tmp_path, by_one_thread, jobs, runs, times: Times, count: Count):
    number = times(runs, 8)
    if not number:
        pytest.skip("takes long: --soak")
    with driver(tmp_path, jobs, number) as process:
        out, error = process.communicate()
    assert (process.returncode, error) == (0, "") and out.count(" start\n") == number
    for one in eight()[:number]:
        same_tables(one.directory(tmp_path).folder, one.directory(by_one_thread).folder)
    count(f"{number} runs of one grid by {jobs} processes: the same tables")


def test_two_drivers_at_one_grid_share_its_runs(tmp_path, by_one_thread, times: Times, count: Count):
    number = times(2, 8)
    for _ in range(times(1, 5)):
        results = tmp_path / str(len(list(tmp_path.iterdir())))
        results.mkdir()
        both = [driver(results, 2, number) for _ in range(2)]
        said = [process.communicate() for process in both]
        assert [(process.returncode, error) for process, (_, error) in zip(both, said, strict=True)] == [(0, "")] * 2
        epochs = [{line for line in out.splitlines() if line.endswith(" epoch")} for out, _ in said]
        assert not epochs[0] & epochs[1] and len(epochs[0] | epochs[1]) == number
        for one in eight()[:number]:
            folder = one.directory(results).folder
            assert json.loads((folder / "run.json").read_text())["resumed"] == []
            same_tables(folder, one.directory(by_one_thread).folder)
    count(f"two drivers at one grid of {number} runs, {times(1, 5)} times: each run computed once, the same tables")


def test_a_run_on_a_cpu_has_one_thread_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 64)
    for given, threads in (("", 1), ("3", 3), ("2,4", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert {Local(["cpu"], jobs, {}).threads for jobs in (None, 1, 3, 8)} == {threads}
    for given in ("0", "-1", "two", "1e3", "9" * 5000, "²"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        with pytest.raises(UserError, match=r"^reproduce: OMP_NUM_THREADS=.* is no number; give one such as 2"):
            Local(["cpu"], 1, {})

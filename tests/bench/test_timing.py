"""The benchmark: what it times and reports, its file, its command; the contenders here, or each in its process."""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import InProcess, timed_small

from wnrepro.bench import timing
from wnrepro.bench.counting import WHOLE, Steps
from wnrepro.bench.energy import Counter, Meter
from wnrepro.bench.ours import LEARNING, our_steps, timed_settings
from wnrepro.bench.plain import PLAIN, check_plain, plain_steps
from wnrepro.errors import UserError
from wnrepro.experiments.dqn import Dqn
from wnrepro.records import StepTimes
from wnrepro.settings import SETTINGS, DqnSettings, Settings

Run = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
FIVE = {"normal", "bn", "wn", "wn+mobn", "plain wn"}
PARTS = {f"{name}, {part}" for name in ("wn", "plain wn") for part in ("emulation", "acting", "learning")}


def public_step(settings: Settings, device: torch.device) -> Steps:
    steps = plain_steps(settings, device)
    part = LEARNING if LEARNING in steps.timed else WHOLE
    return dataclasses.replace(steps, timed={WHOLE: steps.timed[part]})


class FakeMeter(Meter):
    """A device that takes 3 joules between two readings."""

    def __init__(self) -> None:
        super().__init__("three joules", (Counter(itertools.count(0, 3).__next__, 1.0),))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "available_memory", lambda: None)
    monkeypatch.setattr(timing, "SEEDS", (1, 2))
    monkeypatch.setattr(timing, "SEEDS_SECONDS", 0.3)
    monkeypatch.setattr(timing, "public_steps", lambda experiment: {})
    monkeypatch.setattr(timing, "find_meter", lambda device: FakeMeter())
    monkeypatch.setattr(timing, "FULL_REPLAY", 500)


def check_figures(figures: dict[str, Any], settings: Settings, precisions: list[str]) -> None:
    dqn, main = settings.name == "dqn", settings.precision
    expected = FIVE | PARTS if dqn else FIVE
    if main == "bf16":  # the other precision has wn and the plain loop alone
        expected = {f"{name} bf16" for name in FIVE} | {"wn", "plain wn"}
    expected = expected | {"public"}
    assert set(figures["seconds"]) == set(figures["per_second"]) == expected and figures["precision"] == main
    for name, times in figures["seconds"].items():
        assert len(times) == figures["rounds"] and min(times) > 0
        assert figures["per_second"][name]["low"] == pytest.approx(settings.step_size / max(times))
    ratios = {"plain wn / wn", "public / wn", "bn / normal", "wn / normal", "wn+mobn / normal"}
    ratios |= {"plain wn / wn bf16", "public / wn bf16"} if main == "bf16" else set()
    assert set(figures["ratios"]) == ratios and figures["left_out"] == []
    limits = figures["ceilings"]
    assert set(limits["flops_per_second"]) == set(precisions)
    learning = {"public"} | {entry for entry in PARTS if "learning" in entry}
    assert set(figures["work"]) == (learning if dqn else expected)
    for name, work in figures["work"].items():
        limit = limits["flops_per_second"]["bf16" if "bf16" in name else "fp32"]["median"]
        assert work["flops"] > 0 and work["bytes"] > 0 and work["floor_seconds"] == work["flops"] / limit
        assert work["distance"] == pytest.approx(np.median(figures["seconds"][name]) / work["floor_seconds"])
        assert work["flops_share"] == pytest.approx(1 / work["distance"])
    assert set(figures["memory"]) == {name for name in figures["seconds"] if "," not in name}
    assert all(1e8 < peak < 1e10 for peak in figures["memory"].values())
    alone = 1 / np.median(figures["seconds"]["wn bf16" if main == "bf16" else "wn"])
    assert 0.01 * alone < figures["side_by_side"]["1"] < 100 * alone  # of the same kind; how fast is no test
    energy, steps = figures["energy"], 40 / settings.update_every if isinstance(settings, DqnSettings) else 1
    assert energy["joules"] == pytest.approx(dict.fromkeys(figures["seconds"], 3 / steps))
    assert set(energy["side_by_side"]) == {"1", "2"} and min(energy["side_by_side"].values()) > 0
    shown = timing.table(figures).splitlines()
    assert all(any(line.startswith(f"{name} ") for line in shown) for name in [*figures["seconds"], *figures["ratios"]])
    assert ("full replay of 500 steps" in shown[-1]) == dqn


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PLAIN)
def test_measure_in_processes_and_store(
    small: None, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """draw in bf16, in which it is not judged on a CPU, and in fp32."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    precisions = ["bf16", "fp32"] if experiment == "draw" else ["fp32"]
    settings, said = dataclasses.replace(timed_small(experiment), precision=precisions[0]), list[str]()
    monkeypatch.setattr(timing, "public_steps", lambda experiment: {"public": public_step})
    figures = timing.measure(CPU, precisions, 3, settings, said.append)
    assert "round 3 of 3" in said and set(figures["side_by_side"]) == {"1", "2"}
    check_figures(figures, settings, precisions)
    assert experiment != "dqn" or figures["replay_memory"]["peak_bytes"] > 2e8
    path = timing.store(tmp_path, "another", {"rounds": 1}, CPU)
    assert timing.store(tmp_path, experiment, figures, CPU, path) == path
    stored = json.loads(path.read_text())
    assert stored["another"]["rounds"] == 1 and stored[experiment]["ratios"] == figures["ratios"]
    assert stored["device_name"] == stored[experiment]["device_name"] and "commit" in stored[experiment]["git"]
    read = StepTimes.model_validate(stored[experiment])
    assert read.energy.joules == figures["energy"]["joules"] and set(read.energy.side_by_side) == {1, 2}


@pytest.mark.slow
def test_interrupt_ends_the_contenders_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C reaches them too, which changes nothing; the main process ends them."""
    entrants = {"wn": (functools.partial(timing.prepare, our_steps), timed_small("cifar"))}
    with contextlib.suppress(KeyboardInterrupt), timing.contenders(entrants, CPU, 1, print) as started:
        process = started["wn"].process
        os.kill(process.pid or 0, signal.SIGINT)
        started["wn"].ask(WHOLE)
        assert started["wn"].answer() > 0
        raise KeyboardInterrupt
    assert process.exitcode == -signal.SIGTERM and "Traceback" not in capfd.readouterr().err


def test_settings_have_the_precision_in_which_they_are_judged() -> None:
    for experiment, cls in SETTINGS.items():
        for device, expected in (("cuda", cls.gpu_precision), ("cpu", "fp32")):
            assert timed_settings(experiment, torch.device(device)).precision == expected


def test_training_with_the_whole_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Kept(Dqn):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(timing, "Dqn", Kept)
    monkeypatch.setattr(timing, "peak_memory_bytes", lambda device: made[0].replay.appended)
    settings: Any = dataclasses.replace(timed_small("dqn"), replay_steps=300, epochs=1, epoch_steps=40, test_steps=1)
    assert timing.train_with_full_replay(settings, CPU) == 340
    assert (made[0].epoch, made[0].updates) == (1, 10)


def test_full_replay_is_left_out_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "available_memory", lambda: 9 * 10**9)
    settings: Any = timed_settings("dqn", CPU)
    found = timing.full_replay_memory(settings, CPU)
    assert found["replay_steps"] == 1_000_000 and "9.0 GB" in found["left_out"]


def test_side_by_side_is_limited_by_memory(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "Contender", InProcess)
    monkeypatch.setattr(timing, "available_memory", lambda: 5 * 10**9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    rates, joules = timing.side_by_side(timed_small("draw"), CPU, 2 * 10**9, Meter(missing="none"), print)
    assert list(rates) == ["1", "2"] and min(rates.values()) > 0 and joules == {"1": 0.0, "2": 0.0}


def test_table_of_seeds_has_the_time_of_all_and_of_each() -> None:
    figures = {"side_by_side": {"1": 2.0, "4": 5.0}, "lockstep": {"4": 8.0}, "energy": {"lockstep": {"4": 3.5}}}
    assert timing.seeds_table(figures) == {
        "1, a process each": {"all": 0.5, "each": 0.5},
        "4, a process each": {"all": 0.8, "each": 0.2},
        "4, in one process": {"all": 0.5, "each": 0.125, "joules each": 3.5},
    }


def test_processes_side_by_side_share_the_threads(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    class Asked(InProcess):
        def ask(self, part: str, at_least: float = 0.0, threads: int | None = None) -> None:
            asked.append(threads)
            super().ask(part, at_least, threads)

    monkeypatch.setattr(timing, "Contender", Asked)
    monkeypatch.setattr(timing, "SEEDS", (1, 2, 4, 8))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    rates, _ = timing.side_by_side(timed_small("draw"), CPU, 0, Meter(), print)
    assert asked == [4, *[2] * 2, *[1] * 12] and list(rates) == ["1", "2", "4", "8"]


def test_public_program_that_dies_is_left_out(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dies(InProcess):
        def wait(self, seconds: float | None = None) -> bool:
            raise EOFError

    monkeypatch.setattr(timing, "Contender", Dies)
    entrant = {"theirs": (functools.partial(timing.prepare, our_steps), timed_small("draw"))}
    with pytest.raises(EOFError), timing.contenders(entrant, CPU, 1, print):
        pass
    monkeypatch.setattr(timing, "public_steps", lambda experiment: {"theirs": our_steps})
    with timing.contenders(entrant, CPU, 1, print) as started:
        assert started == {}


@pytest.mark.slow
def test_seeds_in_one_process_train_together(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, joules = timing.lockstep(timed_small("draw"), CPU, 0, print)
    assert list(rates) == list(joules) == ["1", "2"] and min(rates.values()) > 0


def test_ratio_is_paired_and_has_its_interval() -> None:
    slow = [float(n) for n in range(1, 21)]
    ratio = timing.ratio([1.25 * seconds for seconds in slow], slow)
    assert ratio == pytest.approx({"median": 1.25, "low": 1.25, "high": 1.25, "n": 20})
    few = timing.ratio([1.0, 2.0], [1.0, 1.0])
    assert (few["low"], few["high"]) == (1.0, 2.0)


def test_gpu_is_waited_for_once_in_twenty_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: events.append("wait"))
    seconds = timing.step_seconds(lambda: events.append("step"), torch.device("cuda"))
    assert events == ["wait", *["step"] * 20, "wait"] and seconds > 0
    timing.step_seconds(lambda: events.append("step"), CPU)
    assert events[22:] == ["step"]


def test_plain_loops_that_cannot_be_made_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_plain("cifar")
    for experiment, named in (("dqn", "pip install opencv-python-headless"), ("char_lstm", "bench char_lstm")):
        with pytest.raises(UserError, match=named):
            check_plain(experiment)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`measure` without processes: (experiment, precisions, rounds) of each call; "draw" at its end interrupts it."""
    asked: list[Any] = []

    def measure(device: Any, precisions: Any, rounds: int, settings: Settings, show: Any, params: Any) -> Any:
        if asked and asked[0] == "interrupt" and settings.name == "draw":
            raise KeyboardInterrupt
        asked.append((settings.name, precisions, rounds))
        return {"rounds": rounds, "batch_size": settings.batch_size}

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(timing, "table", lambda figures: f"minibatches of {figures['batch_size']}")
    return asked


def test_command_stores_each_experiment_at_once(run: Run, asked: list[Any], tmp_path: Path) -> None:
    asked.append("interrupt")
    code, printed, _ = run("bench", "--rounds", 3, "--precision", "fp32", "--results", tmp_path)
    assert code == 130 and asked[1:] == [(name, ["fp32"], 3) for name in ("cifar", "cvae")]
    (path,) = (tmp_path / "bench").iterdir()
    assert {"cifar", "cvae"} == set(json.loads(path.read_text())) - {"device_name"}
    assert printed.count(f"minibatches of 100\nwritten to {path}") == 2
    before = path.read_bytes()
    asked.clear()
    code, printed, _ = run("bench", "all", "--json", "--rounds", 3, "--results", tmp_path)
    assert code == 0 and list(json.loads(printed)) == list(SETTINGS)
    first, second = sorted((tmp_path / "bench").iterdir())
    assert first == path and path.read_bytes() == before
    assert set(json.loads(second.read_text())) - {"device_name"} == set(SETTINGS)


def test_command_refuses_before_it_measures(
    run: Run, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = run("bench", "--device", "cpu", "--precision", "tf32", "--results", tmp_path)
    assert code == 2 and "--precision tf32" in error
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, error = run("bench", "--precision", "fp32", "--results", tmp_path)
    assert code == 2 and "pip install opencv-python-headless" in error and asked == []

"""The benchmark: every contender really steps, the ratios are paired, the figures are kept with their provenance."""

import dataclasses
import functools
import importlib.util
import json
import math
import multiprocessing
import sys

import numpy as np
import pytest
import torch
from factories import make_pixels
from torch import nn

from wnrepro import bench
from wnrepro.atari import Batch, Games, Replay
from wnrepro.cli import main
from wnrepro.compiling import Compilation
from wnrepro.cuda_graphs import PLAIN_CALLS, Graph
from wnrepro.errors import UserError
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.draw import DrawNet
from wnrepro.parameterization import layers
from wnrepro.settings import SETTINGS, CifarSettings, scale_settings

CPU = torch.device("cpu")
SMALL = {
    "cifar": scale_settings("cifar", "paper", "wn", width=4, batch_size=20, init_examples=100),
    "cvae": scale_settings("cvae", "quick", "wn", batch_size=20, init_examples=100),
    "draw": scale_settings("draw", "quick", "wn", batch_size=10, time_steps=3, units=8, latents=3),
    "dqn": scale_settings(
        *("dqn", "quick", "wn"),
        **(bench.CHANGES["dqn"] | {"replay_start": 100, "replay_steps": 100, "test_games": 1, "epsilon_test": 1.0}),
    ),
}
FIVE = {"normal", "bn", "wn", "wn+mobn", "plain wn"}
PARTS = {f"{name}, {part}" for name in ("wn", "plain wn") for part in ("emulation", "acting", "learning")}


@pytest.mark.parametrize("experiment", SMALL)
def test_a_small_benchmark_is_stored_beside_others(tmp_path, monkeypatch, experiment):
    said = []
    monkeypatch.setattr(bench, "FULL_REPLAY", 500)
    monkeypatch.setattr(bench, "available_memory", lambda: None)
    monkeypatch.setattr(bench, "SIDE_SECONDS", 0.3)
    monkeypatch.setattr(bench, "PRODUCT_SIZE", {"cpu": 512})
    monkeypatch.setattr(bench, "COPIED_BYTES", 2**25)
    settings, precisions, expected = SMALL[experiment], ["fp32"], FIVE | (PARTS if experiment == "dqn" else set())
    if experiment == "draw":  # judged in bf16, as the classifier is on a GPU
        torch.set_num_threads(2)
        settings, precisions = dataclasses.replace(settings, precision="bf16"), ["bf16", "fp32"]
        expected = {f"{name} bf16" for name in FIVE} | {"wn", "plain wn"}
    figures = bench.measure(CPU, precisions, 6, settings, said.append)
    assert set(figures["seconds"]) == set(figures["per_second"]) == expected
    assert figures["precision"] == settings.precision
    size = 4 if experiment == "dqn" else settings.batch_size
    for name, times in figures["seconds"].items():
        assert len(times) == 6 and min(times) > 0
        low, high = (figures["per_second"][name][key] for key in ("low", "high"))
        assert (low, high) == pytest.approx((size / max(times), size / min(times)))
    ratios = {"plain wn / wn", "bn / normal", "wn / normal", "wn+mobn / normal"}
    assert set(figures["ratios"]) == ratios | ({"plain wn / wn bf16"} if experiment == "draw" else set())
    assert "round 6 of 6" in said

    limits = figures["ceilings"]
    assert set(limits["flops_per_second"]) == set(precisions)
    assert limits["flops_per_second"]["fp32"]["median"] > limits["bytes_per_second"]["median"] > 1e8
    assert set(figures["work"]) == ({e for e in PARTS if "learning" in e} if experiment == "dqn" else expected)
    for name, work in figures["work"].items():
        limit = limits["flops_per_second"]["bf16" if "bf16" in name else "fp32"]["median"]
        assert work["flops"] > 0 and work["bytes"] > 0 and work["floor_seconds"] == work["flops"] / limit
        assert work["distance"] == pytest.approx(np.median(figures["seconds"][name]) / work["floor_seconds"])
        assert work["flops_share"] == pytest.approx(1 / work["distance"])
    assert set(figures["memory"]) == {name for name in figures["seconds"] if "," not in name}
    assert all(1e8 < peak < 1e10 for peak in figures["memory"].values())
    assert set(figures["side_by_side"]) == ({"1", "2"} if experiment == "draw" else {"1"})
    alone = 1 / np.median(figures["seconds"]["wn bf16" if experiment == "draw" else "wn"])
    assert 0.01 * alone < figures["side_by_side"]["1"] < 100 * alone  # of the same kind; how fast is no test

    path = bench.store(tmp_path, "another", {"rounds": 1}, CPU)
    assert bench.store(tmp_path, experiment, figures, CPU, path) == path
    stored = json.loads(path.read_text())
    stored["another"] = {"rounds": stored["another"]["rounds"]}
    assert stored["another"] == {"rounds": 1} and stored[experiment]["ratios"] == figures["ratios"]
    assert stored["device_name"] == stored[experiment]["device_name"] and "commit" in stored[experiment]["git"]
    shown = bench.table(figures)
    assert all(f"\n  {name} " in shown for name in [*figures["seconds"], *figures["ratios"]])
    assert shown.count(" % of FLOP/s") == len(figures["work"])
    for name, work in figures["work"].items():
        assert any(f"  {name} " in line and f"{work['distance']:.2f} × " in line for line in shown.splitlines())
    if experiment == "dqn":
        assert f"full replay of 500 steps: {figures['replay_memory']['peak_bytes'] / 1e9:.2f} GB" in shown
        assert figures["replay_memory"]["peak_bytes"] > 2e8


@pytest.mark.parametrize("experiment", SMALL)
def test_our_step_and_the_plain_one_need_the_same_flops(experiment):
    """Up to 2 %: DRAW's differ in the windows."""
    ours, plain = (
        bench.work(steps.get("counted", steps["end to end"]))
        for make in (bench.our_steps, bench.plain_steps)
        for steps in [make(SMALL[experiment], CPU)]
    )
    assert ours["flops"] == pytest.approx(plain["flops"], rel=0.02) and ours["flops"] > 0
    assert 0.3 < ours["bytes"] / plain["bytes"] < 3


def test_the_paper_classifier_needs_239_gflop():
    """By formula: two a multiplication, thrice the forward pass's, less the first layer's gradient by the images."""
    settings = bench.timed_settings("cifar", CPU)
    assert isinstance(settings, CifarSettings)
    n, batch = settings.width, settings.batch_size
    #         inputs, maps, kernel, size of the output
    convs = [(3, n, 9, 32), (n, n, 9, 32), (n, n, 9, 32), (n, 2 * n, 9, 16), (2 * n, 2 * n, 9, 16)]
    convs += [(2 * n, 2 * n, 9, 16), (2 * n, 2 * n, 9, 6), (2 * n, 2 * n, 1, 6), (2 * n, 2 * n, 1, 6)]
    forward = [2 * batch * a * b * kernel * size**2 for a, b, kernel, size in convs] + [2 * batch * 2 * n * 10]
    small = dataclasses.replace(settings, batch_size=2, init_examples=4)
    steps = bench.our_steps(small, CPU)
    counted = bench.work(steps["end to end"])["flops"] * batch / 2
    assert counted == pytest.approx(3 * sum(forward) - forward[0], rel=1e-6) == pytest.approx(239e9, rel=0.002)


def test_the_four_are_timed_in_the_precision_in_which_they_are_judged():
    for experiment, precision in ((name, cls.gpu_precision) for name, cls in SETTINGS.items()):
        for device, expected in (("cuda", precision), ("cpu", "fp32")):
            assert bench.timed_settings(experiment, torch.device(device)).precision == expected


def test_flops_and_bytes_of_a_small_net_by_formula():
    x, net = torch.randn(8, 5), nn.Linear(5, 7, bias=False)
    state = {}

    def step() -> None:
        state["loss"] = net(x).sum()
        state["loss"].backward()

    # y = x·wᵀ, and ∂w; the input needs no gradient
    assert bench.work(step)["flops"] == 2 * (2 * 8 * 5 * 7)

    a, b, into = torch.randn(10, 20), torch.randn(20), torch.empty(10, 20)
    rows = torch.tensor([1, 2])

    def moved(operation: object) -> int:
        return bench.work(operation)["bytes"]

    whole, row = 4 * 200, 4 * 20
    assert moved(lambda: a + b) == whole + row + whole  # reads both, writes one
    assert moved(lambda: a + b.expand(10, 20)) == whole + row + whole
    assert moved(lambda: a.add_(b)) == whole + row + whole
    assert moved(lambda: torch._foreach_add_([a, b], 1.0)) == 2 * (whole + row)
    assert moved(lambda: into.copy_(a)) == 2 * whole and moved(lambda: into.zero_()) == whole
    assert moved(lambda: torch.mul(a, 2, out=into)) == 2 * whole
    assert moved(lambda: a[rows]) == 2 * 2 * row + 2 * 8  # of a the two rows alone
    assert moved(lambda: torch.zeros_like(a)) == moved(lambda: torch.randn_like(a)) == whole
    assert moved(lambda: (a.T.view(-1, 5, 10)[0].detach(), torch.empty_like(a), a.shape)) == 0


@pytest.mark.parametrize("experiment", SMALL)
@pytest.mark.parametrize("make", [bench.our_steps, bench.plain_steps])
def test_a_step_trains(monkeypatch, make, experiment):
    monkeypatch.setattr(bench, "random_pixels", lambda _: make_pixels("mnist"))  # unlike noise they can be learnt
    monkeypatch.setattr(bench, "AGENT_STEPS", 4)
    torch.manual_seed(0)
    steps = make(dataclasses.replace(SMALL[experiment], lr=0.01), CPU)
    step = steps["learning" if experiment == "dqn" else "end to end"]
    losses = [abs(float(step())) for _ in range(60)]  # ours of the VAE is the bound, the loss's negative
    assert sum(losses[-10:]) < sum(losses[:10])


def test_timing_of_dqn_covers_40_agent_steps_and_10_updates_of_both_agents(monkeypatch):
    """In any order of the parts."""
    counted = {"steps": 0, "updates": 0, "acts": 0}

    def count(kind: type, method: str, what: str) -> None:
        original = getattr(kind, method)

        def counting(*arguments: object) -> object:
            counted[what] += 1
            return original(*arguments)

        monkeypatch.setattr(kind, method, counting)

    for method, what in (("update", "updates"), ("act", "acts")):
        count(Dqn, method, what)
        count(bench.PlainDqn, method, what)
    count(Games, "send", "steps")
    count(bench.PlainDqn, "step", "steps")
    expected = {"end to end": (40, 10), "emulation": (40, 0), "acting": (0, 0), "learning": (0, 10)}
    for make in (bench.our_steps, bench.plain_steps):
        steps = make(SMALL["dqn"], CPU)
        assert set(steps) == {*expected, "counted"}
        for name in ("learning", "end to end", "emulation", "end to end", "acting", "learning", "end to end"):
            counted.update(steps=0, updates=0, acts=0)
            steps[name]()
            assert (counted["steps"], counted["updates"]) == expected[name]
            assert counted["acts"] == 40 or name in ("emulation", "learning")


def test_the_plain_draw_starts_as_ours_and_is_the_same_function():
    """Bound, KL of every time step and all gradients, of weights so large that the windows differ."""
    torch.manual_seed(0)
    settings = SMALL["draw"]
    ours, plain = DrawNet(settings), bench.PlainDraw(settings)
    everything, size = slice(None), settings.write_window**2
    twins: list[tuple[nn.Module, str, nn.Module, slice]] = [
        (plain.statistics, "", ours.statistics, everything),
        (plain.patch, "", ours.heads, slice(size)),
        (plain.write_at.window, "", ours.heads, slice(size, size + 5)),
        (plain.read_at.window, "", ours.heads, slice(size + 5, None)),
    ]
    for theirs, cell in ((plain.encoder, ours.encoder), (plain.decoder, ours.decoder)):
        twins += [(theirs, "_ih", cell.input, everything), (theirs, "_hh", cell.recurrent, everything)]
    same = []
    for theirs, suffix, layer, rows in twins:
        weight, bias = theirs.parametrizations[f"weight{suffix}"], getattr(theirs, f"bias{suffix}")
        same += [(weight.original0, layer.gain, rows), (weight.original1, layer.v, rows), (bias, layer.b, rows)]
        assert getattr(theirs, f"weight{suffix}").std().item() == pytest.approx(settings.weight_std, rel=0.3)
        assert not bias.any() and not layer.b.any()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in ours.parameters())
    with torch.no_grad():
        for p in ours.parameters():
            nn.init.normal_(p)
        inside_the_image = [-0.1, 0.2, -0.5, 0.5, -0.2, 0.1, -0.1, -1.5, 0.5, 0.2]
        ours.heads.b[size:] = torch.tensor(inside_the_image)  # both windows
        for theirs, our, rows in same:
            theirs.copy_(our[rows].view_as(theirs))
    x, noise = make_pixels("mnist").train_x[:10].float(), torch.randn(3, 10, 3)
    (log_p_x, kl), expected = plain(x, noise), ours(x, noise)
    torch.testing.assert_close((log_p_x, kl), expected, rtol=1e-4, atol=1e-4)
    (kl.sum(0) - log_p_x).mean().backward()
    (expected[1].sum(0) - expected[0]).mean().backward()
    for theirs, our, rows in same:
        torch.testing.assert_close(theirs.grad, our.grad[rows].view_as(theirs), rtol=1e-3, atol=1e-3)


def test_an_update_of_the_plain_dqn_is_ours(monkeypatch):
    """Loss and all gradients, of one minibatch with terminals; the parameters but for Adamax's bias correction."""
    settings = SMALL["dqn"]
    ours, plain = Dqn(settings, CPU), bench.PlainDqn(settings, CPU)
    stages = [stage for stage in plain.net if not isinstance(stage, nn.ReLU | nn.Flatten)]
    same = []
    for theirs, (_, layer) in zip(stages, layers(ours.net), strict=True):
        weight = theirs.parametrizations["weight"]
        same += [(weight.original0, layer.gain), (weight.original1, layer.v), (theirs.bias, layer.b)]
    assert len(same) == len(list(plain.net.parameters())) == len(list(ours.net.parameters()))

    def renew() -> None:
        for theirs, our in same:
            nn.init.normal_(our, std=0.5)
            theirs.data.copy_(our.view_as(theirs))

    renew()
    ours.renew_target()
    plain.target.load_state_dict(plain.net.state_dict())
    renew()
    rng = np.random.default_rng(0)
    replay = Replay(50, 1)
    for number in range(50):
        screens, ended = rng.integers(256, size=(1, 84, 84), dtype=np.uint8), np.array([number % 7 == 6])
        replay.append(screens, rng.integers(4, size=1), rng.integers(-1, 2, size=1), ended)
    packed = replay.sample(64, rng)
    batch = Batch.of(packed)
    assert batch.terminals.any() and not batch.terminals.all()
    seen = replay.seen(batch.rows).numpy()
    monkeypatch.setattr(replay, "sample", lambda *_: packed)
    monkeypatch.setattr(ours, "replay", replay)
    actions, rewards, terminals = (part.numpy() for part in batch[1:])
    whole = seen[:, :-1], actions, rewards, seen[:, 1:], terminals
    monkeypatch.setattr(plain, "sample", lambda: whole)
    before = [our.detach().clone() for _, our in same]
    torch.testing.assert_close(plain.update(), ours.update(), rtol=1e-4, atol=0)
    for (theirs, our), was in zip(same, before, strict=True):
        scale = our.grad.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(theirs.grad, our.grad.view_as(theirs), rtol=1e-3, atol=1e-4 * scale)
        large = our.grad.abs() > 1e-2 * scale
        change = (theirs.detach().view_as(our) - was)[large] * (1 - settings.beta1)
        torch.testing.assert_close(change, (our.detach() - was)[large], rtol=1e-2, atol=0)


def test_the_plain_dqn_remembers_what_it_played():
    """A transition's next state is the following one's state, until a game is over; a lost life is terminal before."""
    agent = bench.PlainDqn(dataclasses.replace(SMALL["dqn"], replay_steps=400), CPU)
    while agent.agent_steps < 300:
        agent.remember(agent.step(agent.act(1.0)))
    states, actions, rewards, next_states, terminals = (ring[:300] for ring in agent.replay)
    goes_on = (next_states[:-1] == states[1:]).all((1, 2, 3))
    assert goes_on[~terminals[:-1]].all() and 0 < (~goes_on).sum() < terminals.sum()
    assert set(actions) == {0, 1, 2, 3} and set(rewards) == {0, 1}
    assert (states[1:, :-1] == states[:-1, 1:])[goes_on].all() and states[:, -1].std() > 5
    seen = {state.tobytes() for state in states}
    assert all(state.tobytes() in seen for state in agent.sample()[0])


def test_the_memory_is_that_of_training_with_the_whole_replay(monkeypatch):
    made = []

    class Kept(Dqn):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(bench, "Dqn", Kept)
    monkeypatch.setattr(bench, "peak_memory_bytes", lambda device: made[0].replay.appended)
    settings = dataclasses.replace(SMALL["dqn"], replay_steps=300, epochs=1, epoch_steps=40, test_steps=1)
    assert bench.train_with_full_replay(settings, CPU) == 340
    assert (made[0].epoch, made[0].updates) == (1, 10)


def test_the_memory_is_left_out_where_so_much_is_not_free(monkeypatch):
    monkeypatch.setattr(bench, "available_memory", lambda: 9 * 10**9)
    why = "9.0 GB of memory are free, it needs 9.1 GB"
    assert bench.memory(bench.timed_settings("dqn", CPU), CPU) == {"replay_steps": 1_000_000, "left_out": why}


def test_side_by_side_goes_as_far_as_the_memory(monkeypatch):
    monkeypatch.setattr(bench, "SIDE_SECONDS", 0.1)
    monkeypatch.setattr(bench, "available_memory", lambda: 5 * 10**9)
    torch.set_num_threads(4)
    rates = bench.side_by_side(SMALL["draw"], CPU, 2 * 10**9, print)
    assert list(rates) == ["1", "2"] and min(rates.values()) > 0


def test_without_opencv_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        bench.check("dqn")
    bench.check("cifar")


@pytest.fixture
def measured(monkeypatch):
    """`measure` without processes: the experiments asked for, and figures of one."""
    asked = []

    def measure(device, precisions, rounds, settings, show, params):
        asked.append((type(settings).__name__.removesuffix("Settings").lower(), precisions, rounds))
        if asked[-1][0] == interrupted.get("at"):
            raise KeyboardInterrupt
        return {"rounds": rounds, "batch_size": settings.batch_size}

    interrupted = {}
    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "table", lambda figures: f"minibatches of {figures['batch_size']}")
    return asked, interrupted


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["wnrepro", "bench", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_the_command_measures_all_and_stores_each_at_once(monkeypatch, capsys, tmp_path, measured):
    asked, interrupted = measured
    interrupted["at"] = "draw"
    assert call(monkeypatch, "--rounds", 3, "--precision", "fp32", "--results", tmp_path) == 130
    assert asked == [(name, ["fp32"], 3) for name in ("cifar", "cvae", "draw")]
    (path,) = (tmp_path / "bench").iterdir()
    assert {"cifar", "cvae"} == set(json.loads(path.read_text())) - {"device_name"}
    printed = capsys.readouterr().out
    assert printed.count(f"minibatches of 100\nwritten to {path}") == 2
    before = path.read_bytes()
    interrupted.clear()
    assert call(monkeypatch, "all", "--json", "--rounds", 3, "--results", tmp_path) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(SMALL)
    assert call(monkeypatch, "dqn", "--json", "--results", tmp_path) == 0
    assert json.loads(capsys.readouterr().out) == {"dqn": {"rounds": 20, "batch_size": 64}}
    first, second, third = sorted((tmp_path / "bench").iterdir())
    assert first == path and path.read_bytes() == before
    sessions = [json.loads(session.read_text()) for session in (second, third)]
    assert [set(session) - {"device_name"} for session in sessions] == [set(SMALL), {"dqn"}]


def test_the_command_refuses_before_it_measures(monkeypatch, capsys, tmp_path, measured):
    assert call(monkeypatch, "--device", "cpu", "--precision", "tf32", "--results", tmp_path) == 2
    assert "--precision tf32: only a GPU has it" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert call(monkeypatch, "--precision", "fp32", "--results", tmp_path) == 2
    assert "pip install opencv-python-headless" in capsys.readouterr().err and measured[0] == []


def test_a_ratio_is_paired_and_has_its_interval():
    slow = [float(n) for n in range(1, 21)]
    ratio = bench.ratio([1.25 * seconds for seconds in slow], slow)
    assert ratio == pytest.approx({"median": 1.25, "low": 1.25, "high": 1.25, "n": 20})
    spread = bench.ratio([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9], 10 * [1.0])
    assert spread["low"] < spread["median"] < spread["high"]
    few = bench.ratio([1.0, 2.0], [1.0, 1.0])
    assert (few["low"], few["high"]) == (1.0, 2.0)


def test_a_gpu_is_waited_for_once_in_twenty_steps(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: events.append("wait"))
    seconds = bench.timed(lambda: events.append("step"), torch.device("cuda"))
    assert events == ["wait", *["step"] * 20, "wait"] and 0 < seconds < 1
    bench.timed(lambda: events.append("step"), CPU)
    assert events[22:] == ["step"]


def test_smoke_says_of_each_model_what_holds(monkeypatch, tmp_path):
    """On a CPU nothing is captured, so that nothing is good; a model that dies is bad."""
    monkeypatch.setattr(bench, "PARAMS", ("wn",))
    monkeypatch.setattr(bench, "SMOKE_MODELS", (("cifar", {}), ("cvae", {"dataset": "mnist"})))
    rows = bench.smoke(["cifar", "cvae"], CPU, lambda _: None)
    assert [(row["model"], row["captured"], row["compiled"], row["good"]) for row in rows] == [
        ("cifar", None, None, False),
        ("cvae mnist", None, None, False),
    ]
    assert all(0 < row["seconds"] < 60 and 1e8 < row["memory_bytes"] < 1e10 for row in rows)
    died = {"model": "draw", "param": "bn", "precision": "tf32", "good": False}
    shown = bench.smoke_table([*rows, rows[0] | {"captured": 0.01, "good": True}, died]).splitlines()[1:]
    ends = ("BAD nothing captured", "BAD nothing captured", "good", "BAD ")
    assert all(map(str.endswith, shown, ends)) and "died" in shown[-1]


@pytest.mark.parametrize(
    ("answers", "good"),
    [
        ({"captured": 0.01, "compiled": 1e-4, "refused": ""}, True),
        ({"captured": 0.3, "compiled": 1e-4, "refused": ""}, False),
        ({"captured": math.nan, "compiled": None, "refused": ""}, False),
        ({"captured": 0.01, "compiled": 0.9, "refused": "its gradients differ"}, False),
        ({}, False),
    ],
)
def test_smoke_is_good_where_what_was_captured_and_compiled_is_right(monkeypatch, answers, good):
    monkeypatch.setattr(bench, "PARAMS", ("wn",))
    monkeypatch.setattr(bench, "SMOKE_MODELS", (("draw", {}),))
    monkeypatch.setattr(bench, "smoke_one", functools.partial(say, answers))
    (row,) = bench.smoke(["draw"], CPU, lambda _: None)
    assert row["good"] is good


def say(answers, pipe, *_):
    """In the place of `smoke_one`, in a process."""
    if answers:
        pipe.send(answers)
        pipe.recv()
        pipe.send({"seconds": 1.0, "memory_bytes": 10**9})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", ["", "captured", "compiled", "gradients"])
def test_smoke_compares_captured_and_compiled_steps_with_plain_ones(monkeypatch, wrong):
    """By a stand-in for a graph that forgets the updates it was to repeat, and a function that is not compiled."""
    made, step = bench.our_training(SMALL["draw"], CPU)
    made.captured_step.captures = True
    if wrong == "compiled":  # a function that would have to be compiled anew
        made.compilation = Compilation(torch.compile(made.net.time_step, backend="eager"))
    if wrong == "gradients":
        gradients, made.compilation = made.gradients, Compilation(made.net.time_step)
        monkeypatch.setattr(
            made, "gradients", lambda f, precision: [(2 if f else 1) * one for one in gradients(f, precision)]
        )

    def run(self, function, inputs):
        self.calls += 1
        if wrong == "captured" and self.calls > PLAIN_CALLS:
            return torch.zeros(()), torch.zeros(())
        return function(*inputs)

    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(Graph, "run", run)
    monkeypatch.setattr(bench, "our_training", lambda *_: (made, step))
    pipe, there = multiprocessing.Pipe()
    pipe.send(None)
    bench.smoke_one(there, SMALL["draw"], CPU)
    found = pipe.recv()
    assert (found["captured"] > bench.SMOKE_TOLERANCE) == (wrong == "captured")
    assert bool(found["refused"]) == (wrong in ("compiled", "gradients"))
    assert wrong != "gradients" or found["refused"] == "its gradients differ from the plain ones by 100 %"
    assert wrong or found["captured"] == 0

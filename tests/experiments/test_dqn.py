"""DQN: the net and its updates against plain ones, the order of steps and updates, tests, training and resume."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import tiny_dqn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wnrepro.errors import UserError
from wnrepro.events import Epoch, Note, Progress
from wnrepro.experiments import atari, dqn
from wnrepro.experiments.atari import SIZE, STACK, Batch, Games, Replay
from wnrepro.experiments.dqn import Dqn, DqnNet
from wnrepro.parameterization import fold, layers
from wnrepro.report import write_report
from wnrepro.runs.run import Run
from wnrepro.settings import PARAMS, scale_settings

CPU = torch.device("cpu")
each_param = pytest.mark.parametrize("param", PARAMS)


def random_steps(replay: Replay, count: int, seed: int = 0) -> None:
    """Fill a replay of one game with noise."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        screen = rng.integers(256, size=(1, SIZE, SIZE), dtype=np.uint8)
        replay.append(screen, rng.integers(4, size=1), rng.integers(-1, 2, size=1), rng.random(1) < 0.1)


def states_of(count: int) -> Tensor:
    """Screens that differ in brightness and detail, as those of games do."""
    draw = torch.Generator().manual_seed(0)
    screens = torch.rand(count, 1, 1, 1, generator=draw) * torch.rand(count, STACK, SIZE, SIZE, generator=draw)
    return (255 * screens).to(torch.uint8)


def experiment(param: str = "wn", **changes: object) -> Dqn:
    """One whose net has had its init pass and whose replay holds noise: ready for updates."""
    made = Dqn(tiny_dqn(param, **changes), CPU)
    made.initialize(states_of(40))
    random_steps(made.replay, 200)
    return made


def rows(trained: Dqn) -> list[dict[str, object]]:
    """Train to the end; the epochs' rows without the time they took."""
    return [without_seconds(event) for event in trained.train() if isinstance(event, Epoch)]


def without_seconds(event: Epoch) -> dict[str, object]:
    return {name: value for name, value in event.metrics.items() if name != "seconds"} | event.tables


# ------------------------------------------------------------------------------- the net


def test_the_net_is_that_of_nature() -> None:
    net = DqnNet(scale_settings("dqn", "paper", "normal"), 4)
    assert sum(p.numel() for p in net.parameters()) == 1_686_180
    shapes = [tuple(layer.v.shape) for _, layer in layers(net)]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (4, 512)]
    x = states_of(3)
    plain = x.float() / 255
    for (_, layer), stride in zip(list(layers(net))[:3], (4, 2, 1), strict=True):
        plain = F.relu(F.conv2d(plain, layer.v, layer.b, stride))
    plain = F.relu(F.linear(plain.flatten(1), net.hidden.v, net.hidden.b))
    torch.testing.assert_close(net(x), F.linear(plain, net.out.v, net.out.b), rtol=1e-4, atol=1e-6)


@each_param
def test_the_init_pass_and_folding_see_grey_levels_of_0_to_1(param: str) -> None:
    made = experiment(param)
    first = made.net.convs[0]
    t = F.conv2d(states_of(40).float() / 255, first.v, None, 4)
    mean, std = t.mean((0, 2, 3)), t.std((0, 2, 3), correction=0)
    if param == "normal":
        torch.testing.assert_close(first.scale, 1 / std, rtol=1e-3, atol=0)
    elif param == "bn":
        torch.testing.assert_close(first.running_mean, mean, rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(first.g, first.v_norm() / std, rtol=1e-3, atol=0)
    net = made.net.eval()
    torch.testing.assert_close(fold(net)(states_of(8)), net(states_of(8)), rtol=1e-3, atol=1e-4)


def test_the_start_of_deep_q_rl_is_hes_without_an_init_pass() -> None:
    net = DqnNet(scale_settings("dqn", "paper", "normal", init="deep_q_rl"), 4)
    for (_, layer), std in zip(layers(net), (0.0625, 0.044, 0.042, 0.018, 0.044), strict=True):
        assert layer.v.std().item() == pytest.approx(std, rel=0.05) and (layer.b == 0.1).all()
        assert layer.v.abs().max() <= 3**0.5 * layer.v[0].numel() ** -0.5, "uniform"
        assert (layer.scale == 1).all()
    made = Dqn(tiny_dqn("normal", init="deep_q_rl"), CPU)
    before = copy.deepcopy(made.net.state_dict())
    assert made.initialize(states_of(40)) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in made.net.state_dict().items())
    x = states_of(8)
    torch.testing.assert_close(made.target(x), made.net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--init deep_q_rl: has no effect on wn"):
        tiny_dqn("wn", init="deep_q_rl")


@pytest.mark.slow
def test_a_run_that_starts_as_deep_q_rl_resumes_and_is_reported_without_an_init(tmp_path: Path) -> None:
    settings = tiny_dqn("normal", init="deep_q_rl")

    def stop(event: object) -> None:
        if isinstance(event, Epoch):
            raise KeyboardInterrupt

    with Run(tmp_path, "dqn", "quick", settings) as run:
        with pytest.raises(KeyboardInterrupt):
            run.execute(lambda: Dqn(settings, CPU), stop)
        assert run.execute(lambda: Dqn(settings, CPU))["status"] == "done"
    assert {path.name for path in run.folder.glob("*.csv")} == {"metrics.csv", "layers.csv", "games.csv"}
    assert len((run.folder / "metrics.csv").read_text().splitlines()) == 1 + 2
    assert "no init measured" in write_report(tmp_path, "quick")[0].read_text()


# ------------------------------------------------------------------------------- updates


def test_target_network_is_synced_every_few_updates() -> None:
    made = experiment(target_every=3)
    states, values = states_of(8), []
    for _ in range(6):
        made.update()
        values.append(made.target(states))
    same = [torch.equal(before, after) for before, after in itertools.pairwise(values)]
    assert same == [True, False, True, True, False] and made.updates == 6
    torch.testing.assert_close(values[-1], made.net.eval()(states), rtol=1e-3, atol=1e-4)


class Transfers(TorchDispatchMode):
    """The shapes of what goes from this machine's memory to the meta device, which stands for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_meta]
        self.shapes += [leaf.shape for leaf in given if leaf.is_cpu and made]
        return result


@pytest.mark.parametrize("there", ["meta", "cpu"])
def test_an_update_is_one_transfer_and_one_more_of_screens_that_are_not_on_the_device(
    there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dqn, "replay_device", lambda *_: torch.device(there))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # knows no meta device
    made = Dqn(tiny_dqn(target_every=3), torch.device("meta"))
    random_steps(made.replay, 200)
    made.update()  # makes the optimizer's moments
    with Transfers() as transfers:
        for _ in range(3):
            assert made.update().is_meta
    screens = [] if there == "meta" else [(8, STACK + 1, SIZE, SIZE)]
    assert transfers.shapes == [(8, STACK + 4), *screens] * 3


def test_screens_sent_along_are_learnt_from_as_those_in_the_replay_are() -> None:
    one, other = experiment(), experiment()
    packed = one.replay.sample(8, one.rng)
    sent = other.replay.gather_screens(Batch.unpack(packed).rows).clone()
    other.replay.screens.zero_()
    assert torch.equal(one.step(packed)[0], other.step(packed, sent)[0])
    assert all(map(torch.equal, one.net.parameters(), other.net.parameters()))


def test_bf16_starts_near_fp32_and_learns_on_fp32_weights() -> None:
    exact, rough = experiment(), experiment(precision="bf16")
    assert rough.update().item() == pytest.approx(exact.update().item(), rel=0.05)
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in rough.net.parameters())


@pytest.mark.slow
@each_param
def test_it_learns_what_pays(param: str) -> None:
    """Dark screens reward action 1, bright ones action 2, and every episode is a single step."""
    made = experiment(param, lr=0.003, batch_size=32, target_every=20)
    rng = np.random.default_rng(1)
    for _ in range(400):
        bright, action = rng.integers(2), rng.integers(made.actions)
        screen = np.clip(rng.normal(60 + 120 * bright, 20, (1, SIZE, SIZE)), 0, 255).astype(np.uint8)
        made.replay.append(screen, np.array([action]), np.array([action == 1 + bright]), np.array([True]))
    for _ in range(150):
        made.update()
    dark, bright = (np.zeros((50, STACK, SIZE, SIZE), np.uint8) for _ in range(2))
    dark[:, -1], bright[:, -1] = 60, 180
    made.sync_policy()
    for states, action in ((dark, 1), (bright, 2)):
        assert (made.act(states, 0.0, rng) == action).all()


# ------------------------------------------------------------------------------- acting and playing


def test_epsilon_falls_from_1_after_the_first_steps_to_its_last_value() -> None:
    made = Dqn(tiny_dqn(replay_start=100, epsilon_steps=1000, epsilon_last=0.1), CPU)
    expected = {0: 1.0, 100: 1.0, 350: 0.775, 1100: 0.1, 10_000: 0.1}
    for made.agent_steps, epsilon in expected.items():
        assert made.epsilon() == pytest.approx(epsilon)


def test_actions_are_greedy_but_for_a_share_of_epsilon() -> None:
    made = experiment()
    made.sync_policy()
    states = states_of(2000).numpy()
    best = fold(made.net.eval())(torch.from_numpy(states)).argmax(1).numpy()
    assert (made.act(states, 0.0, made.rng) == best).all()
    for epsilon in (0.3, 1.0):
        actions = made.act(states, epsilon, made.rng)
        share = 1 - epsilon + epsilon / made.actions
        assert np.mean(actions == best) == pytest.approx(share, abs=5 * math.sqrt(share / 2000))
    assert np.bincount(actions, minlength=4).min() > 400


@pytest.mark.parametrize(("actors", "steps"), [(1, 150), (3, 150), (6, 151)])
def test_an_update_every_four_steps_before_the_last_steps_outcome_is_known(
    actors: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Dqn(tiny_dqn(actors=actors, replay_start=100, update_every=4), CPU)
    made.initialize(states_of(40))
    known: list[tuple[int, int]] = []
    update = made.update

    def noted() -> Tensor:
        known.append((made.agent_steps, made.replay.appended * actors))
        return update()

    monkeypatch.setattr(made, "update", noted)
    ticks = list(made.play(steps, learn=True))
    played = -(-steps // actors) * actors  # whole rounds of all games
    assert made.agent_steps == played and made.replay.appended == played // actors
    assert made.updates == (played - 100) // 4 > 10
    assert all(stored == agent_steps - actors for agent_steps, stored in known)
    assert not ticks or ticks[-1] <= steps


@pytest.mark.slow
def test_the_states_acted_on_are_those_in_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Dqn(tiny_dqn(replay_steps=1000), CPU)
    made.initialize(states_of(40))
    seen, act = [], made.act

    def noted(states: np.ndarray, *rest: object) -> np.ndarray:
        seen.append(states[0].tobytes())
        return act(states, *rest)

    monkeypatch.setattr(made, "act", noted)
    list(made.play(600, learn=False))
    stored = Batch.unpack(made.replay._transitions(np.arange))
    states = made.replay.gather_screens(stored.rows)[:, :-1].numpy()
    assert len(states) == len(seen) == 600 and stored.terminals.sum() >= 4, "some lives were lost"
    assert sorted(s.tobytes() for s in states) == sorted(seen)
    assert made.agent_steps == made.updates == 0


@pytest.mark.slow
def test_a_tests_scores_are_raw_and_of_whole_games() -> None:
    made = Dqn(tiny_dqn(game="space_invaders", test_steps=100, test_games=3), CPU)
    scores = [row["score"] for row in made.test(epsilon=1.0)]
    assert [row["game"] for row in made.test(epsilon=1.0)] == list(range(1, len(scores) + 1))
    rng, games = np.random.default_rng((1, 0)), Games("space_invaders", 3, made.games_seed(0, dqn.TESTING))
    expected: dict[int, float] = {}
    totals = np.zeros(3)
    while len(expected) < 3:  # the same actions once more, by hand
        actions = rng.integers(6, size=3)
        rng.random(3)
        step = games.step(actions)
        totals += step.rewards
        expected |= {int(i): totals[i] for i in np.flatnonzero(step.over) if i not in expected}
    assert sorted(scores) == sorted(expected.values())
    assert max(scores) > 30 and all(score % 5 == 0 for score in scores)


def test_a_test_continues_until_its_steps_are_used_up() -> None:
    made = Dqn(tiny_dqn(test_steps=1500, test_games=2), CPU)
    assert len(made.test(epsilon=1.0)) > 4  # a random game takes some 200 steps


def test_a_game_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert atari.MOST_FRAMES == 30 * 60 * 60
    monkeypatch.setattr(atari, "MOST_FRAMES", 400)
    games, steps = Games("breakout", 1, seed=0), 1
    while not games.step(np.array([0])).over[0]:  # without FIRE nothing ever happens
        steps += 1
    assert steps == pytest.approx(100, abs=10)


# ------------------------------------------------------------------------------- training


def test_the_rows_are_as_documented() -> None:
    made = Dqn(tiny_dqn(), CPU)
    events = list(made.train())
    epochs = [event for event in events if isinstance(event, Epoch)]
    for number, event in enumerate(epochs, start=1):
        row = event.metrics
        assert list(row) == [
            *("epoch", "agent_steps", "updates", "seconds", "episodes"),
            *("test_score", "test_score_max", "mean_q", "loss", "epsilon"),
        ]
        assert row["epoch"] == number and row["agent_steps"] == 120 * number and row["seconds"] > 0
        assert row["updates"] == (120 * number - 100) // 4
        scores = [game["score"] for game in event.tables["games"] if game["epoch"] == number]
        assert row["episodes"] == len(scores) >= 2
        assert row["test_score"] == pytest.approx(np.mean(scores)) and row["test_score_max"] == max(scores)
        assert math.isfinite(row["loss"]) and math.isfinite(row["mean_q"])
    assert {game["epoch"] for game in epochs[0].tables["games"]} == {0, 1}, "random play first"
    assert {row["epoch"] for row in epochs[0].tables["layers"]} == {0, 1} and len(epochs[0].tables["init"]) == 5
    ticks = [event for event in events if isinstance(event, Progress)]
    assert all(0 < tick.done <= tick.total == 120 for tick in ticks)
    assert made.facts["agent"] == "sequential" and made.facts["actions"] == 4
    assert made.mean_q() == epochs[-1].metrics["mean_q"]


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 3])
def test_a_resume_with_the_replay_is_exact(actors: Any) -> None:
    settings = tiny_dqn("bn", epochs=3, actors=actors, checkpoint_replay=True)
    whole = rows(Dqn(settings, CPU))
    first = Dqn(settings, CPU)
    training = first.train()
    parts = [next(without_seconds(event) for event in training if isinstance(event, Epoch))]
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(99)
    second = Dqn(settings, CPU)
    second.load_state_dict(state)
    assert parts + rows(second) == whole
    assert "refilled_after_epochs" not in second.facts


def test_a_resume_without_the_replay_fills_it_and_says_so() -> None:
    settings = tiny_dqn(epochs=2)
    first = Dqn(settings, CPU)
    next(event for event in first.train() if isinstance(event, Epoch))
    second = Dqn(settings, CPU)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert "replay" not in first.state_dict() and second.agent_steps == 120
    events = list(second.train())
    assert isinstance(events[0], Note) and "100 steps of play by the policy of epoch 1" in events[0].text
    assert second.facts["refilled_after_epochs"] == [1]
    assert second.replay.appended == 220, "100 to fill it, 120 of the epoch"
    (epoch,) = (event for event in events if isinstance(event, Epoch))
    assert epoch.metrics["agent_steps"] == 240 and epoch.metrics["updates"] == 35


@pytest.mark.slow
def test_the_four_begin_with_the_same_random_play() -> None:
    played = [rows(Dqn(tiny_dqn(param, epochs=1), CPU))[0]["games"] for param in ("normal", "bn")]
    random, again = ([row for row in games if row["epoch"] == 0] for games in played)
    assert random == again != []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_param
@pytest.mark.parametrize("there", ["cuda", "cpu"])
def test_a_gpu_makes_the_same_updates(param: str, there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the replay in its memory, or in this machine's."""
    here = experiment(param)
    monkeypatch.setattr(dqn, "replay_device", lambda *_: torch.device(there))
    there = Dqn(here.settings, torch.device("cuda"))
    there.load_state_dict(copy.deepcopy(here.state_dict()))
    random_steps(there.replay, 200)
    for _ in range(5):
        assert there.update().item() == pytest.approx(here.update().item(), rel=1e-2)


# ------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "free", "words"),
    [
        ({"replay_steps": 1_000_000}, 4e9, "--replay-steps 1000000: needs 7.1 GB of memory, 4.0 GB are free"),
        ({"replay_steps": 1_000_000, "checkpoint_replay": True}, 9e9, "needs 14.1 GB of memory, 9.0 GB are free"),
        ({"replay_start": 500}, 4e9, "--replay-start 500: the replay holds 400 steps"),
        ({"batch_size": 100}, 4e9, "--batch-size 100: the replay starts with 100 steps"),
        ({"epsilon_last": 1.5}, 4e9, "--epsilon-last 1.5: give a number of at most 1"),
        ({"discount": 2.0}, 4e9, "--discount 2: give a number of at most 1"),
    ],
)
def test_what_cannot_be_trained_is_said_first(
    changes: Any, free: Any, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dqn, "available_memory", lambda: int(free))
    settings = tiny_dqn(**changes)
    with pytest.raises(UserError, match=words):
        Dqn.check(settings, None, CPU)

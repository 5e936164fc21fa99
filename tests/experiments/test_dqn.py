"""DQN: updates, the order of steps and updates, acting, tests, training and resume."""

import copy
import itertools
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from factories import tiny_dqn
from layer_factories import Calls
from torch import Tensor
from torch.utils._pytree import tree_leaves

from wnrepro.errors import UserError
from wnrepro.events import Epoch, Note
from wnrepro.experiments import atari, checks, dqn
from wnrepro.experiments.atari import SIZE, STACK, Batch, Games, Replay
from wnrepro.experiments.dqn import Dqn, DqnNet
from wnrepro.parameterization import fold
from wnrepro.settings import PARAMS, scale_settings
from wnrepro.tools.dqn_overlap import finish_first

CPU = torch.device("cpu")


def random_steps(replay: Replay) -> None:
    """200 steps of noise in a replay of one game."""
    rng = np.random.default_rng(0)
    for _ in range(200):
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
    random_steps(made.replay)
    return made


def rows(event: Epoch) -> dict[str, object]:
    return {name: value for name, value in event.metrics.items() if name != "seconds"} | event.tables


# ------------------------------------------------------------------------------- the net and its updates


def test_net_equals_that_of_mnih_2015() -> None:
    net = DqnNet(scale_settings("dqn", "paper", "normal"), 4)
    assert sum(p.numel() for p in net.parameters()) == 1_686_180


def test_target_network_is_synced_every_few_updates() -> None:
    made, states, values = experiment(target_every=3), states_of(8), []
    for _ in range(6):
        made.update()
        values.append(made.target(states))
    same = [torch.equal(before, after) for before, after in itertools.pairwise(values)]
    assert same == [True, False, True, True, False] and made.updates == 6
    torch.testing.assert_close(values[-1], made.net.eval()(states), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("there", ["meta", "cpu"])
def test_update_is_one_transfer_and_one_more_of_screens_that_are_not_on_the_device(
    there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU."""
    monkeypatch.setattr(dqn, "replay_device", lambda *_: torch.device(there))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # knows no meta device
    made = Dqn(tiny_dqn(target_every=3), torch.device("meta"))
    random_steps(made.replay)
    made.update()  # makes the optimizer's moments
    with Calls() as calls:
        for _ in range(3):
            assert made.update().is_meta
    transfers = [
        leaf.shape
        for _, args, kwargs, results in calls.calls
        if any(isinstance(one, Tensor) and one.is_meta for one in results)
        for leaf in tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and leaf.is_cpu
    ]
    screens = [] if there == "meta" else [(8, STACK + 1, SIZE, SIZE)]
    assert transfers == [(8, STACK + 4), *screens] * 3


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


def test_bf16_target_gives_the_values_of_one_that_autocast_casts() -> None:
    made, states = experiment(precision="bf16"), states_of(5)
    made.sync_target()
    assert {p.dtype for p in made.target.parameters()} == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.target(states), fold(made.net)(states))


@pytest.mark.slow
@pytest.mark.parametrize("param", PARAMS)
def test_agent_learns_the_rewarded_actions(param: str) -> None:
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


@pytest.mark.parametrize("param", PARAMS)
def test_actions_are_greedy_but_for_a_share_of_epsilon(param: str) -> None:
    made = experiment(param)
    made.update()
    made.sync_policy()
    states = states_of(500).numpy()
    best = made.net.eval()(torch.from_numpy(states)).argmax(1).numpy()
    assert (made.act(states, 0.0, made.rng) == best).mean() > 0.99  # folding rounds
    best = made.act(states, 0.0, made.rng)
    for epsilon in (0.3, 1.0):
        actions = made.act(states, epsilon, made.rng)
        share = 1 - epsilon + epsilon / made.actions
        assert np.mean(actions == best) == pytest.approx(share, abs=5 * math.sqrt(share / 500))
    assert np.bincount(actions, minlength=4).min() > 80


@pytest.mark.parametrize(("actors", "steps"), [(1, 150), (6, 151)])
def test_update_comes_every_four_steps_before_the_last_steps_outcome_is_known(
    actors: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Dqn(tiny_dqn(actors=actors, replay_start=100, update_every=4), CPU)
    made.initialize(states_of(40))
    known: list[tuple[int, int]] = []
    update = made.update

    def noted() -> Tensor:
        known.append((made.agent_steps, made.replay.appended * actors))
        return update()

    monkeypatch.setattr(made, "update", noted)
    list(made.play(steps, learn=True))
    played = -(-steps // actors) * actors  # whole rounds of all games
    assert made.agent_steps == played and made.replay.appended == played // actors
    assert made.updates == (played - 100) // 4 > 10
    assert all(stored == agent_steps - actors for agent_steps, stored in known)


def test_draws_updates_and_stores_are_in_the_agents_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the emulators play an action, the agent learns from the steps before it."""
    made = Dqn(tiny_dqn(replay_start=100, update_every=4), CPU)
    made.initialize(states_of(40))
    told: list[str] = []

    def tell(of: Any, name: str, letter: str) -> None:
        before = getattr(of, name)

        def called(*given: Any) -> Any:
            told.append(letter)
            return before(*given)

        monkeypatch.setattr(of, name, called)

    parts = (
        (made, "act"),
        (made.training, "send"),
        (made.replay, "sample"),
        (made, "captured_step"),
        (made, "sync_target"),
    )
    parts += (made, "captured_sync"), (made.training, "receive"), (made.replay, "append")
    for (of, name), letter in zip(parts, "asdutprA", strict=True):
        tell(of, name, letter)
    list(made.play(140, learn=True))
    assert made.settings.target_every == 10 and made.updates == 10
    assert "".join(told) == "asrA" * 103 + ("asduprA" + "asrA" * 3) * 9 + "asdutprA"


def test_overlap_changes_no_number() -> None:
    """Emulators that finish before the agent learns give the same replay and weights, to the last bit."""
    agents = [Dqn(tiny_dqn(actors=2, replay_start=100, epsilon_steps=50, update_every=4), CPU) for _ in range(2)]
    for made, context in zip(agents, (nullcontext(), finish_first(agents[1].training)), strict=True):
        torch.manual_seed(1)
        made.initialize(states_of(40))
        with context:
            list(made.play(220, learn=True))
    one, other = (made.state_dict() | made.replay.state_dict() for made in agents)
    assert agents[0].updates > 20 and one["rng"] == other["rng"]
    for name in ("frames", "actions", "rewards", "terminals", "appended"):
        np.testing.assert_array_equal(one[name], other[name])
    for name, value in one["net"].items():
        assert torch.equal(value, other["net"][name]), name


@pytest.mark.slow
def test_acting_states_equal_those_in_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_scores_of_a_test_are_raw_and_of_whole_games() -> None:
    changes: dict[str, Any] = {"game": "space_invaders", "test_steps": 100, "test_games": 3}
    made, bn = (Dqn(tiny_dqn(param, **changes), CPU) for param in ("wn", "bn"))
    scores = [row["score"] for row in made.test(epsilon=1.0)]
    assert scores == [row["score"] for row in bn.test(epsilon=1.0)], "the same random play"
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


def test_test_continues_until_its_steps_are_used_up() -> None:
    made = Dqn(tiny_dqn(test_steps=700, test_games=2), CPU)
    assert len(made.test(epsilon=1.0)) > 2  # a random game takes some 200 steps


def test_game_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert atari.MOST_FRAMES == 30 * 60 * 60
    monkeypatch.setattr(atari, "MOST_FRAMES", 400)
    games, steps = Games("breakout", 1, seed=0), 1
    while not games.step(np.array([0])).over[0]:  # without FIRE nothing ever happens, no life is lost
        steps += 1
        assert games.lives[0] == 5
    assert steps == pytest.approx(100, abs=10)


# ------------------------------------------------------------------------------- training


def test_rows_are_of_the_steps_and_games_of_each_epoch() -> None:
    """And a resume without the replay fills it anew, and says so."""
    made, resumed = (Dqn(tiny_dqn(epochs=2), CPU) for _ in range(2))
    epochs: list[Epoch] = []
    for event in made.train():
        if isinstance(event, Epoch):
            epochs.append(event)
            if event.epoch == 1:
                state = copy.deepcopy(made.state_dict())
    resumed.load_state_dict(state)
    assert "replay" not in state and resumed.agent_steps == 120
    for number, event in enumerate(epochs, start=1):
        row = event.metrics
        assert row["agent_steps"] == 120 * number and row["updates"] == (120 * number - 100) // 4
        scores = [game["score"] for game in event.tables["games"] if game["epoch"] == number]
        assert row["episodes"] == len(scores) >= 2
        assert row["test_score"] == pytest.approx(np.mean(scores)) and row["test_score_max"] == max(scores)
        assert math.isfinite(row["loss"]) and math.isfinite(row["mean_q"])
    assert {game["epoch"] for game in epochs[0].tables["games"]} == {0, 1}, "random play first"
    assert made.mean_q() == epochs[-1].metrics["mean_q"]

    note, *_, last = resumed.train()
    assert isinstance(note, Note) and "100 steps" in note.text and "epoch 1" in note.text
    assert resumed.facts["refilled_after_epochs"] == [1]
    assert resumed.replay.appended == 220, "100 to fill it, 120 of the epoch"
    assert isinstance(last, Epoch) and (last.metrics["agent_steps"], last.metrics["updates"]) == (240, 35)


@pytest.mark.slow
@pytest.mark.parametrize(("actors", "changes"), [(1, {}), (3, {}), (1, {"param": "normal", "init": "deep_q_rl"})])
def test_resume_with_the_replay_is_exact(actors: int, changes: dict[str, Any]) -> None:
    settings = tiny_dqn(**({"param": "bn", "epochs": 3, "actors": actors, "checkpoint_replay": True} | changes))
    whole = [rows(event) for event in Dqn(settings, CPU).train() if isinstance(event, Epoch)]
    first = Dqn(settings, CPU)
    parts = [rows(next(event for event in first.train() if isinstance(event, Epoch)))]
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(99)
    second = Dqn(settings, CPU)
    second.load_state_dict(state)
    assert parts + [rows(event) for event in second.train() if isinstance(event, Epoch)] == whole
    assert "refilled_after_epochs" not in second.facts


@pytest.mark.parametrize(
    ("changes", "free", "words"),
    [
        ({"replay_steps": 1_000_000}, 4e9, "--replay-steps 1000000: needs 7.1 GB .* 4.0 GB are free"),
        ({"replay_steps": 1_000_000, "checkpoint_replay": True}, 9e9, "needs 14.1 GB .* 9.0 GB are free"),
        ({"replay_start": 500}, 4e9, "--replay-start 500: .* 400"),
        ({"batch_size": 100}, 4e9, "--batch-size 100: .* 99"),
        ({"epsilon_last": 1.5}, 4e9, "--epsilon-last 1.5: must be at most 1"),
        ({"init": "deep_q_rl"}, 4e9, "--init deep_q_rl: has no effect on wn"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(
    changes: dict[str, Any], free: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "available_memory", lambda: int(free))
    with pytest.raises(UserError, match=words):
        tiny_dqn(**changes).check(None, "cpu")

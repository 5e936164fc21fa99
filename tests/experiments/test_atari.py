"""The games against ale-py's plain emulator, a film against the agent's view, and the replay against lists."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from ale_py import ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv
from factories import tiny_dqn
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from wnrepro.experiments.atari import NO_OPS, SIZE, STACK, Batch, Games, Replay
from wnrepro.experiments.dqn import Dqn
from wnrepro.settings import GAMES

ACTIONS = dict(zip(GAMES, (4, 9, 18, 6), strict=True))
LIVES = dict(zip(GAMES, (5, 0, 4, 3), strict=True))


def area(pixels: int) -> np.ndarray:
    """(pixels, SIZE): how much of each pixel is in each of the larger ones, as a mean's weights."""
    pixel, large = np.arange(pixels)[:, None], np.arange(SIZE) * pixels / SIZE
    common = np.minimum(pixel + 1, large + pixels / SIZE) - np.maximum(pixel, large)
    return common.clip(0, 1) * SIZE / pixels


class Plain:
    """One game, frame by frame, as ale-py's emulator gives it."""

    def __init__(self, game: str) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0)
        self.ale.loadROM(roms.get_rom_path(game))
        self.ale.reset_game()
        self.actions = self.ale.getMinimalActionSet()

    def step(self, action: int) -> tuple[np.ndarray, int]:
        """Four frames: the maximum of the last two screens (`colour`: of those in colour), the points."""
        points, screens, coloured = 0, [], []
        for _ in range(4):
            points += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale())
            coloured.append(self.ale.getScreenRGB())
        self.colour = np.maximum(*coloured[2:])
        return self.reduce(np.maximum(*screens[2:])), points

    @staticmethod
    def reduce(screen: np.ndarray) -> np.ndarray:
        return area(screen.shape[0]).T @ screen @ area(screen.shape[1])


@pytest.mark.parametrize(
    ("game", "steps", "lost", "most"),
    [
        ("enduro", 60, 0, 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("breakout", 400, 5, 1), ("seaquest", 200, 1, 20), ("space_invaders", 600, 3, 20))
        ),
    ],
)
def test_a_game_is_the_plain_emulators_and_continues_when_a_life_is_lost(
    game: str, steps: Any, lost: Any, most: Any
) -> None:
    games, coloured, plain = Games(game, 1, seed=3), Games(game, 1, seed=3, colour=True), Plain(game)
    assert games.actions == len(plain.actions) == ACTIONS[game]
    _, info = games.env.reset(seed=3)  # the same game again; says how many no-ops it began with
    for _ in range(info["episode_frame_number"][0]):
        plain.ale.act(plain.actions[0])
    assert abs(games.frames[0] - plain.reduce(plain.ale.getScreenGrayscale())).max() < 0.51
    assert np.array_equal(coloured.frames[0], plain.ale.getScreenRGB())
    assert games.lives == plain.ale.lives() == LIVES[game]

    rng, rewards, losses = np.random.default_rng(0), [], 0
    for _ in range(steps):
        actions, lives = rng.integers(games.actions, size=1), plain.ale.lives()
        step, (screen, points) = games.step(actions), plain.step(int(actions[0]))
        over, same = plain.ale.game_over(), coloured.step(actions)
        assert same[1:] == step[1:] and coloured.lives == games.lives
        rewards.append(step.rewards.item())
        losses += step.life_lost.item()
        assert rewards[-1] == points
        assert step.over.item() == over
        assert step.life_lost.item() == (over or plain.ale.lives() < lives)
        if over:
            break
        assert step.frames.shape == (1, SIZE, SIZE) and step.frames.dtype == np.uint8 and step.frames.std() > 5
        assert abs(step.frames[0] - screen).max() < 0.51  # rounded
        assert np.array_equal(same.frames[0], plain.colour)
    assert losses >= lost and max(rewards) >= most  # what the comparison is about did happen


@pytest.mark.slow
def test_games_in_lock_step_are_single_ones_without_the_step_that_only_resets() -> None:
    """With NEXT_STEP the emulator takes a separate step to begin anew, and ignores its action."""

    def single(seed: int) -> AtariVectorEnv:
        fixed = {"stack_num": 1, "noop_max": 31, "use_fire_reset": False, "reward_clipping": False}
        env = AtariVectorEnv("breakout", 1, autoreset_mode=AutoresetMode.NEXT_STEP, **fixed)
        env.reset(seed=seed)
        return env

    games, singles, rng = Games("breakout", 3, seed=5), [single(seed) for seed in (5, 6, 7)], np.random.default_rng(0)
    points, overs = np.zeros(3), 0
    for _ in range(320):
        actions = rng.integers(games.actions, size=3)
        step = games.step(actions)
        points += step.rewards
        for i, env in enumerate(singles):
            screen, reward, over, _, info = env.step(actions[i : i + 1])
            assert (reward, over) == (step.rewards[i], step.over[i])
            if over:
                screen, reward, over, _, info = env.step(actions[i : i + 1])
                assert not over and reward == 0 and info["lives"] == 5
                overs += 1
            assert np.array_equal(screen[0, 0], step.frames[i]) and info["lives"] == games.lives[i]
    assert overs >= 3 and points.min() > 0


def test_breakout_waits_for_its_agent_to_serve() -> None:
    """No FIRE on reset: with all other actions no ball ever moves, and no life is lost."""
    games, rng = Games("breakout", 1, seed=0), np.random.default_rng(0)
    ball = np.s_[0, 40:75, 8:76]  # between the wall and the paddle
    for action in rng.choice([0, 2, 3], size=60):
        step = games.step(np.array([action]))
        assert not step.life_lost and step.frames[ball].max() == 0
    seen = [games.step(np.array([1])).frames[ball].max() for _ in range(10)]
    assert max(seen) > 0


@pytest.mark.slow
def test_a_game_begins_with_0_to_30_no_ops_and_the_seed_decides() -> None:
    games = Games("enduro", 2, seed=1)
    begun = [games.env.reset()[1]["episode_frame_number"] for _ in range(100)]
    assert NO_OPS == 30 and {0, 30} < set(np.ravel(begun)) <= set(range(31))

    def play(seed: int) -> list[np.ndarray]:
        games, rng = Games("enduro", 1, seed), np.random.default_rng(0)
        return [games.frames] + [games.step(rng.integers(9, size=1)).frames for _ in range(10)]

    assert np.array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))


def test_an_action_that_would_hang_the_emulator_is_refused() -> None:
    games = Games("breakout", 2, seed=0)
    for actions in ([0, 4], [-1, 0], [0]):
        with pytest.raises(AssertionError):
            games.step(np.array(actions))


def bricks_gone(screen: np.ndarray) -> int:
    """How many are missing of the bricks of Breakout's lower two rows, worth a point each."""
    rows = screen[81:93, 8:152].any(2)
    return int((~rows).reshape(2, 6, 18, 8).any((1, 3)).sum())


@pytest.mark.slow
def test_a_film_shows_what_the_agent_sees_and_the_points_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, states = Dqn(tiny_dqn(epsilon_test=0.9), torch.device("cpu")), []
    act = agent.act

    def spied(seen: Any, epsilon: Any, rng: Any) -> Any:
        assert epsilon == 0.9 and seen.shape == (1, STACK, SIZE, SIZE)
        states.append(seen[0])
        return act(seen, epsilon, rng)

    monkeypatch.setattr(agent, "act", spied)
    scenes = list(agent.film(seed=3, seconds=60))
    count = len(scenes)
    assert [scene.steps for scene in scenes] == list(range(count)) and len(states) == count - 1
    assert [scene.over for scene in scenes] == [False] * (count - 1) + [True]
    greys = [Plain.reduce(scene.screen @ np.array([0.299, 0.587, 0.114])) for scene in scenes]
    greys = [np.zeros((SIZE, SIZE))] * (STACK - 1) + greys
    for number, state in enumerate(states):
        assert abs(state - greys[number : number + STACK]).max() < 1.1  # rounded twice
    gone, scores = [bricks_gone(scene.screen) for scene in scenes], [scene.score for scene in scenes]
    assert scores[0] == 0 and scores[-1] >= 3
    # a screen is the maximum of two, so that a brick that vanished between them still shows
    for before, score, after in zip(gone, scores, [*gone[1:], scores[-1]], strict=True):
        assert before <= score <= after
    assert [scene.score for scene in agent.film(seed=3, seconds=6)] == scores[: 6 * 15 + 1]


def listed(states: Any, actions: Any, rewards: Any, next_states: Any, terminals: Any) -> list[tuple]:
    """Transitions in sorted order."""
    rows = zip(states, actions.tolist(), rewards.tolist(), next_states, terminals.tolist(), strict=True)
    return sorted((state.tobytes(), a, r, following.tobytes(), t) for state, a, r, following, t in rows)


def transitions(replay: Replay, batch: Batch) -> tuple[np.ndarray, ...]:
    """States, actions, rewards, next states, terminals of a batch."""
    seen, rest = replay.gather_screens(batch.rows).numpy(), (part.numpy() for part in batch[1:])
    actions, rewards, terminals = rest
    return seen[:, :-1], actions, rewards, seen[:, 1:], terminals


def contents(replay: Replay) -> list[tuple]:
    """All that can be sampled, each once."""
    return listed(*transitions(replay, Batch.unpack(replay._transitions(np.arange))))


class Lists:
    """A replay of lists: each game's episodes, each episode's (time, screen, action, reward, terminal)."""

    def __init__(self, slots: int, games: int, stack: int) -> None:
        self.slots, self.stack, self.time = slots, stack, 0
        self.games: list[list[list[tuple]]] = [[[]] for _ in range(games)]

    def append(self, *arrays: np.ndarray) -> None:
        for episodes, *step in zip(self.games, *arrays, strict=True):
            episodes[-1].append((self.time, *step))
            if step[-1]:
                episodes.append([])
        self.time += 1

    def contents(self) -> list[tuple]:
        found = []
        for episode in (episode for episodes in self.games for episode in episodes):
            for i, (_, screen, action, reward, terminal) in enumerate(episode):
                oldest = episode[max(i - self.stack + 1, 0)][0]
                if oldest < self.time - self.slots or not (terminal or i + 1 < len(episode)):
                    continue
                none = np.zeros_like(screen)
                screens = [none] * self.stack + [one[1] for one in episode[: i + 1]]
                screens += [none] if terminal else [episode[i + 1][1]]
                state, following = np.stack(screens[-self.stack - 1 : -1]), np.stack(screens[-self.stack :])
                found.append((state.tobytes(), int(action), float(reward), following.tobytes(), bool(terminal)))
        return sorted(found)


def steps_of(games: int, ends: list[int]) -> Any:
    """Arguments of `append`: screens that are all different; bit i of an entry of ends ends game i's episode."""
    each = np.arange(games)
    for time, bits in enumerate(ends):
        screens = np.empty((games, 2, 2), np.uint8)
        screens[:] = np.stack([np.full(games, time + 1), each + 1], 1)[:, None]
        yield screens, (5 * time + each) % 18, (time + each) % 3 - 1.0, (bits >> each & 1).astype(bool)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.integers(0, 7), max_size=30),
    st.integers(0, 30),
)
def test_what_can_be_sampled_is_what_lists_hold(slots: Any, games: Any, stack: Any, ends: Any, saved: Any) -> None:
    """At every time, past the ring's end, and with a saved and a restored replay going on as one."""
    replay, lists = Replay(slots * games + games - 1, games, stack, size=2), Lists(slots, games, stack)
    assert len(replay) == 0
    for time, step in enumerate(steps_of(games, ends)):
        if time == saved:
            old, replay = replay, Replay(slots * games, games, stack, size=2)
            replay.load_state_dict(old.state_dict())
        replay.append(*step)
        lists.append(*step)
        assert contents(replay) == lists.contents()


def test_sampling_is_uniform_and_by_its_generator() -> None:
    replay = Replay(45, 3, size=2)
    for step in steps_of(3, [0, 1, 0, 0, 4, 0, 0, 3, 2, 0, 2] * 2):
        replay.append(*step)
    batch = replay.sample(100_000, np.random.default_rng(0))
    assert torch.equal(batch, replay.sample(100_000, np.random.default_rng(0)))
    screens = np.unique(transitions(replay, Batch.unpack(batch))[0][:, -1].reshape(-1, 4), axis=0, return_counts=True)
    mean = 100_000 / len(replay)
    assert len(screens[1]) == len(replay) > 33 and abs(screens[1] - mean).max() < 5 * np.sqrt(mean)


def test_rewards_are_clipped() -> None:
    replay = Replay(8, 2, size=2)
    for rewards in ([30.0, -5.0], [1.0, 0.0]):
        replay.append(np.ones((2, 2, 2), np.uint8), np.zeros(2), np.array(rewards), np.array([True, True]))
    batch = Batch.unpack(replay._transitions(np.arange))
    assert sorted(batch.rewards) == [-1, 0, 1, 1] and batch.rewards.dtype == torch.float32


def test_a_million_steps_take_7_gb_and_a_minibatch_only_its_own() -> None:
    assert 7.0e9 < Replay.nbytes_needed(1_000_000) < 7.3e9
    replay = Replay(1000, 4)
    arrays = (array for array in vars(replay).values() if isinstance(array, np.ndarray | torch.Tensor))
    assert sum(array.nbytes for array in arrays) == Replay.nbytes_needed(1000) + SIZE * SIZE  # and the blank
    for _ in range(250):
        replay.append(np.ones((4, SIZE, SIZE), np.uint8), np.zeros(4), np.zeros(4), np.zeros(4, bool))
    tracemalloc.start()
    batch = Batch.unpack(replay.sample(32, np.random.default_rng(0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert replay.gather_screens(batch.rows).shape == (32, STACK + 1, SIZE, SIZE) and peak < 32 * SIZE * SIZE

"""The games against ale-py's plain emulator, a film against the agent's view, and the replay against lists."""

import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ale_py import ALEInterface, LoggerMode, roms
from factories import tiny_dqn
from hypothesis import given
from hypothesis import strategies as st

from wnrepro.bench.plain import PlainDqn
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


def test_games_print_nothing_where_the_roms_have_a_folder(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(Path(roms.__file__).parent))
    roms.get_rom_path("breakout")
    assert capfd.readouterr().out  # else there is nothing to hide
    Games("breakout", 1, seed=1)
    PlainDqn(tiny_dqn(), torch.device("cpu"))
    assert capfd.readouterr().out == ""


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
def test_game_is_the_plain_emulators_and_continues_when_a_life_is_lost(
    game: str, steps: int, lost: int, most: int
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
def test_game_begins_with_0_to_30_no_ops() -> None:
    games = Games("enduro", 2, seed=1)
    begun = [games.env.reset()[1]["episode_frame_number"] for _ in range(100)]
    assert NO_OPS == 30 and {0, 30} < set(np.ravel(begun)) <= set(range(31))


def test_action_that_would_hang_the_emulator_is_refused() -> None:
    games = Games("breakout", 2, seed=0)
    for actions in ([0, 4], [-1, 0], [0]):
        with pytest.raises(AssertionError):
            games.step(np.array(actions))


@pytest.mark.slow
def test_film_shows_what_the_agent_sees(monkeypatch: pytest.MonkeyPatch) -> None:
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
    scores = [scene.score for scene in scenes]
    assert scores[0] == 0 and scores[-1] >= 3 and scores == sorted(scores)
    assert [scene.score for scene in agent.film(seed=3, seconds=6)] == scores[: 6 * 15 + 1]


def contents(replay: Replay, batch: Batch | None = None) -> list[tuple]:
    """States, actions, rewards, next states and terminals of a batch, or of all that can be sampled, sorted."""
    rows, *rest = batch or Batch.unpack(replay._transitions(np.arange))
    screens, parts = replay.gather_screens(rows).numpy(), zip(*(part.tolist() for part in rest), strict=True)
    return sorted((s[:-1].tobytes(), a, r, s[1:].tobytes(), t) for s, (a, r, t) in zip(screens, parts, strict=True))


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


@given(
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.integers(0, 7), max_size=30),
    st.integers(0, 30),
)
def test_replay_is_what_lists_hold(slots: int, games: int, stack: int, ends: list[int], saved: int) -> None:
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
    counts = Counter(contents(replay, Batch.unpack(batch)))
    mean = 100_000 / len(replay)
    assert len(counts) == len(replay) > 33 and max(abs(n - mean) for n in counts.values()) < 5 * np.sqrt(mean)


def test_minibatch_takes_only_its_own_memory() -> None:
    """A million steps take 7 GB."""
    assert 7.0e9 < Replay.nbytes_needed(1_000_000) < 7.3e9
    replay = Replay(1000, 4)
    arrays = (array for array in vars(replay).values() if isinstance(array, np.ndarray | torch.Tensor))
    assert sum(array.nbytes for array in arrays) == Replay.nbytes_needed(1000) + SIZE * SIZE  # and the blank
    for _ in range(250):
        replay.append(np.ones((4, SIZE, SIZE), np.uint8), np.zeros(4), np.zeros(4), np.zeros(4, bool))
    tracemalloc.start()
    replay.sample(32, np.random.default_rng(0))
    assert tracemalloc.get_traced_memory()[1] < 32 * SIZE * SIZE
    tracemalloc.stop()


@pytest.mark.slow
def test_all_modules_can_be_imported_without_gymnasium_and_ale_py() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(['gymnasium', 'ale_py'])\n"
    code += "import wnrepro.cli, wnrepro.experiments.atari, wnrepro.experiments.dqn, wnrepro.bench.plain"
    subprocess.run([sys.executable, "-c", code], check=True)

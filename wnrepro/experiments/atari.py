"""The four Atari games of section 5.4, what an agent sees of them, and its replay.

Shapes: N games side by side, B transitions of a minibatch. A screen is SIZE × SIZE grey levels, uint8.
"""

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wnrepro.errors import UserError

SIZE = 84
SCREEN = (210, 160)  # height and width of the emulator's own screens
STEPS_A_SECOND = 15  # of the console's 60 frames
STACK = 4  # screens that an agent sees
NO_OPS = 30  # at most, before a game begins
MOST_FRAMES = 108_000  # of the emulator, 30 minutes of play: a game that is not over by then ends


class Step(NamedTuple):
    """What an action did in each game."""

    frames: np.ndarray  # (N, SIZE, SIZE) uint8: the screens after it
    rewards: np.ndarray  # (N,) float32, raw: points of the score
    life_lost: np.ndarray  # (N,) bool; so is the last life, where the game is over
    over: np.ndarray  # (N,) bool


class Scene(NamedTuple):
    """A game so far, for people."""

    screen: np.ndarray  # (*SCREEN, 3) uint8, RGB
    steps: int
    score: float
    over: bool


def check_rom(game: str) -> None:
    """Raise UserError unless ale-py and gymnasium are installed, and the game's ROM is there as ale-py knows it."""
    try:
        importlib.import_module("ale_py.vector_env")  # by gymnasium; ale_py itself does without
        from ale_py.roms import get_rom_path

        with contextlib.redirect_stdout(io.StringIO()):  # it prints where ALE_ROMS_DIR is set
            get_rom_path(game)
    except ImportError as error:
        raise UserError(
            f"--game {game}: its emulator cannot be imported ({' '.join(str(error).split())}); install it by "
            "`pip install ale-py gymnasium`"
        ) from error
    except OSError as error:
        raise UserError(
            f"--game {game}: its ROM cannot be read ({' '.join(str(error).split())}); unset ALE_ROMS_DIR, or install "
            "ale-py again by `pip install --force-reinstall ale-py`"
        ) from error


class Games:
    """`count` games side by side, in lock-step: every step is one action, and a transition, of each of them.

    An action of the minimal set is held for 4 frames, without sticky actions; a screen is the maximum of the last two,
    resized by area. A game begins with 0 to NO_OPS frames of no-ops and no FIRE: Breakout's agent serves for itself. It
    continues when a life is lost; when it is over, at the latest after MOST_FRAMES, the next one begins within the same
    step.

    In colour the screens are (N, *SCREEN, 3), RGB, and the games the same: seed and actions decide.

    Game i plays by the seed `seed` + i. The emulators' states cannot be saved: who resumes begins new games.
    """

    def __init__(self, game: str, count: int, seed: int, colour: bool = False) -> None:
        check_rom(game)
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        height, width = SCREEN if colour else (SIZE, SIZE)
        self.env = AtariVectorEnv(
            game,
            count,
            max_num_frames_per_episode=MOST_FRAMES,
            repeat_action_probability=0.0,
            full_action_space=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=height,
            img_width=width,
            grayscale=not colour,
            stack_num=1,
            frameskip=4,
            maxpool=True,
            noop_max=NO_OPS + 1,  # it draws from 0 to noop_max − 1
            episodic_life=False,  # would begin a new game at a lost life
            life_loss_info=False,  # would say of a lost life what it says of a game over
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.count = count
        self.actions = len(self.env.ale.get_action_set())
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Begin new games, as new `Games` would (but sooner: an emulator takes longer to make)."""
        assert 0 <= seed < 2**31 - self.count, "the emulator takes a negative seed for none"
        screens, info = self.env.reset(seed=seed)
        self.frames: np.ndarray = screens[:, 0]  # (N, SIZE, SIZE) uint8, or in colour
        self.lives: np.ndarray = info["lives"]  # (N,) int32; Enduro has none: 0

    def step(self, actions: np.ndarray) -> Step:
        """Play actions (N,), numbers from 0 to self.actions − 1."""
        self.send(actions)
        return self.receive()

    def send(self, actions: np.ndarray) -> None:
        """Let the emulators play actions (N,) while the caller does something else; then `receive`."""
        # the emulator waits for ever on an action that it does not know
        assert actions.shape == (self.count,) and actions.min() >= 0 and actions.max() < self.actions
        self.env.send(actions.astype(np.int64))

    def receive(self) -> Step:
        """What the actions sent did."""
        screens, rewards, over, too_long, info = self.env.recv()
        over = over | too_long
        life_lost = over | (info["lives"] < self.lives)
        self.frames, self.lives = screens[:, 0], info["lives"]
        return Step(self.frames, rewards.astype(np.float32), life_lost, over)


class History:
    """What the acting agent sees: the last STACK screens of each game, oldest first, zeros where there was none."""

    def __init__(self, count: int) -> None:
        self.stacks = np.zeros((count, STACK, SIZE, SIZE), np.uint8)

    def add(self, frames: np.ndarray) -> None:
        """The newest screens (N, SIZE, SIZE)."""
        self.stacks = np.concatenate([self.stacks[:, 1:], frames[:, None]], 1)

    def restart(self, which: np.ndarray) -> None:
        """Forget what was before, in those games (N,) bool: after a lost life, and before the next screen is added."""
        self.stacks[which] = 0


class Batch(NamedTuple):
    """Transitions."""

    rows: Tensor  # (B, STACK + 1) int64: where the replay has the screens of the state, oldest first, and the next
    actions: Tensor  # (B,) int64
    rewards: Tensor  # (B,) float32, −1, 0 or 1
    terminals: Tensor  # (B,) bool

    @classmethod
    def of(cls, packed: Tensor) -> "Batch":
        """Those that a replay gave as one tensor."""
        actions, rewards, terminals = packed[:, -3:].unbind(1)
        return cls(packed[:, :-3], actions, rewards.float(), terminals.bool())


class Replay:
    """The last `steps` steps, in a ring of time slots with one of each game; each screen is stored once, as uint8.

    An episode ends with a lost life, a game over, or where the games begin anew for another reason (a resume, an
    epoch's end): the append before that must be terminal for all, as in deep_q_rl, since no screen follows it.
    The screens stay in place on a device: in this machine's memory, of which they take as much as the ring is full, or
    a GPU's.
    """

    def __init__(
        self, steps: int, games: int, stack: int = STACK, size: int = SIZE, device: torch.device | None = None
    ) -> None:
        self.slots, self.games, self.stack = steps // games, games, stack
        self.appended = 0  # time slots in all, the overwritten ones included
        self.blank = self.slots * games  # the row of a screen of zeros, after the ring's
        self.screens = torch.from_numpy(np.zeros((self.blank + 1, size, size), np.uint8)).to(device or "cpu")
        self.actions = np.zeros((self.slots, games), np.uint8)
        self.rewards = np.zeros((self.slots, games), np.int8)
        self.terminals = np.zeros((self.slots, games), np.bool_)
        self.ages = np.zeros((self.slots, games), np.uint8)  # earlier screens of the episode, stack − 1 for more

    @staticmethod
    def nbytes_needed(steps: int) -> int:
        """Bytes of this number of steps once the ring is full."""
        return steps * (SIZE * SIZE + 4)

    def append(self, frames: np.ndarray, actions: np.ndarray, rewards: np.ndarray, terminals: np.ndarray) -> None:
        """The screens (N, SIZE, SIZE), the actions (N,) taken on them, their rewards, and which ended an episode.

        Rewards are clipped to ±1 here.
        """
        assert frames.shape == (self.games, *self.screens.shape[1:])
        slot, before = self.appended % self.slots, (self.appended - 1) % self.slots
        first = self.terminals[before] | (self.appended == 0)
        self.ages[slot] = np.where(first, 0, np.minimum(self.ages[before] + 1, self.stack - 1))
        self.screens[slot * self.games : (slot + 1) * self.games] = torch.from_numpy(frames)
        self.actions[slot] = actions
        self.rewards[slot] = np.clip(rewards, -1, 1)
        self.terminals[slot] = terminals
        self.appended += 1

    def __len__(self) -> int:
        """Transitions that can be sampled: their stack is not overwritten, their next screen stored or not needed."""
        edges, _, inner = self._positions()
        return len(edges) + inner

    def sample(self, batch: int, rng: np.random.Generator) -> Tensor:
        """So many transitions, uniformly and with replacement: (B, STACK + 4) int64, of which a `Batch` is made."""
        return self._transitions(lambda count: rng.integers(count, size=batch))

    def seen(self, rows: Tensor, pinned: bool = False) -> Tensor:
        """The screens (B, STACK + 1, SIZE, SIZE) of a batch's rows, zeros before the episode's first and where the
        transition is terminal: states are all but the last, the next states all but the first.

        pinned: in memory from which a GPU's transfer is asynchronous.
        """
        index, size = rows.flatten(), self.screens.shape[1:]
        into = torch.empty(len(index), *size, dtype=torch.uint8, pin_memory=True) if pinned else None
        return torch.index_select(self.screens, 0, index, out=into).view(*rows.shape, *size)

    def state_dict(self) -> dict[str, np.ndarray]:
        """What an exact resume needs; on a CPU the arrays are views of the filled part of the ring."""
        rings = {name: ring[: self._stored] for name, ring in self._rings().items()}
        return {"appended": np.array(self.appended), **rings, "frames": self._filled().cpu().numpy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what a replay of the same size gave."""
        self.appended = int(state["appended"])
        for name, ring in self._rings().items():
            assert state[name].shape == (self._stored, *ring.shape[1:]), f"{name} of a replay of another size"
            ring[: self._stored] = state[name]
        self._filled().copy_(torch.from_numpy(state["frames"]))

    def _rings(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("actions", "rewards", "terminals", "ages")}

    def _filled(self) -> Tensor:
        """The screens stored, (time slots, N, SIZE, SIZE)."""
        return self.screens[: self._stored * self.games].view(self._stored, self.games, *self.screens.shape[1:])

    @property
    def _stored(self) -> int:
        return min(self.appended, self.slots)

    def _positions(self) -> tuple[np.ndarray, int, int]:
        """Positions, time · games + game with time 0 the oldest stored, of what can be sampled.

        Those of the oldest stack − 1 and the newest time; where those between begin, and how many they are: of these
        all can be.
        """
        stored = self._stored
        between = max(stored - self.stack, 0)
        head = max(stored - 1 - between, 0)
        times = np.array([*range(head), *range(stored - 1, stored)], np.int64)
        slots = (self.appended - stored + times) % self.slots
        valid = self.ages[slots] <= times[:, None]
        valid[times == stored - 1] &= self.terminals[slots[times == stored - 1]]
        edges = (times[:, None] * self.games + np.arange(self.games))[valid]
        return edges, head * self.games, between * self.games

    def _transitions(self, choose: Callable[[int], np.ndarray]) -> Tensor:
        """Those of which `choose`, told how many there are, gives the numbers (B,)."""
        edges, begin, inner = self._positions()
        numbers = choose(len(edges) + inner)
        positions = numbers + (begin - len(edges))
        at_edge = numbers < len(edges)
        positions[at_edge] = edges[numbers[at_edge]]
        time, game = np.divmod(positions, self.games)
        slot = (self.appended - self._stored + time) % self.slots

        offsets = np.arange(1 - self.stack, 2)  # of the state's screens, and the next
        packed = np.empty((len(numbers), self.stack + 4), np.int64)
        rows = packed[:, :-3]
        rows[:] = (slot[:, None] + offsets) % self.slots * self.games + game[:, None]
        terminals = self.terminals[slot, game]
        unseen = self.ages[slot, game][:, None] < -offsets
        unseen[:, -1] = terminals
        rows[unseen] = self.blank
        packed[:, -3], packed[:, -2], packed[:, -1] = self.actions[slot, game], self.rewards[slot, game], terminals
        return torch.from_numpy(packed)

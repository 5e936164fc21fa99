"""The four Atari games of section 5.4, the agent's view of them, and its replay.

Shapes: N games in parallel, B transitions of a minibatch. A screen is SIZE × SIZE grey levels, uint8.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64, Shaped, UInt8
from torch import Tensor

from wnrepro.experiments.checks import REPLAY_STEP_BYTES, check_rom

SIZE = 84
SCREEN = (210, 160)  # height and width of the emulator's screens
STEPS_A_SECOND = 15  # agent steps; the console has 60 frames a second
STACK = 4  # screens in an agent's state
NO_OPS = 30  # largest number of no-op frames before a game begins
MOST_FRAMES = 108_000  # emulator frames, 30 minutes of play, after which a game ends


class Step(NamedTuple):
    """The results of an action in each game."""

    frames: UInt8[np.ndarray, "N ..."]  # the screens after the action
    rewards: Float32[np.ndarray, " N"]  # points of the score, not clipped
    life_lost: Bool[np.ndarray, " N"]  # also true if the game is over
    over: Bool[np.ndarray, " N"]


class Scene(NamedTuple):
    """The state of a game for display."""

    screen: UInt8[np.ndarray, "210 160 3"]  # RGB
    steps: int
    score: float
    over: bool


class Games:
    """`count` games in lock-step: every step plays one action in each game.

    An action of the minimal set is repeated for 4 frames, without sticky actions. A screen is the maximum of the last
    two frames, resized by area. A game begins with 0 to NO_OPS no-op frames and without FIRE: in Breakout the agent
    serves. It continues after a lost life. At its end, or after MOST_FRAMES, the next game begins in the same step.

    With `colour` the screens are (N, *SCREEN, 3), RGB; seed and actions give the same games as without.

    Game i has the seed `seed` + i. The emulators' states cannot be saved, so a resume begins new games.
    """

    def __init__(self, game: str, count: int, seed: int, colour: bool = False) -> None:
        check_rom(game)
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        height, width = SCREEN if colour else (SIZE, SIZE)
        with contextlib.redirect_stdout(io.StringIO()):  # see check_rom
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
                episodic_life=False,  # True would begin a new game at a lost life
                life_loss_info=False,  # True would report a lost life like the end of a game
                reward_clipping=False,
                use_fire_reset=False,
            )
        self.count = count
        self.actions = len(self.env.ale.get_action_set())
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Begin new games, like new `Games` but faster, since creating emulators takes longer."""
        assert 0 <= seed < 2**31 - self.count, "the emulator takes a negative seed for none"
        screens, info = self.env.reset(seed=seed)
        self.frames: UInt8[np.ndarray, "N ..."] = screens[:, 0]
        self.lives: Int[np.ndarray, " N"] = info["lives"]  # 0 in Enduro, which has none

    def step(self, actions: Int[np.ndarray, " N"]) -> Step:
        """Play actions (N,), numbers from 0 to self.actions − 1."""
        self.send(actions)
        return self.receive()

    def send(self, actions: Int[np.ndarray, " N"]) -> None:
        """Start actions (N,) in the emulators, which play in the background until `receive`."""
        # an unknown action would block the emulator forever
        assert actions.shape == (self.count,) and actions.min() >= 0 and actions.max() < self.actions
        self.env.send(actions.astype(np.int64))

    def receive(self) -> Step:
        """Wait for the actions sent and return their results."""
        screens, rewards, over, too_long, info = self.env.recv()
        over = over | too_long
        life_lost = over | (info["lives"] < self.lives)
        self.frames, self.lives = screens[:, 0], info["lives"]
        return Step(self.frames, rewards.astype(np.float32), life_lost, over)


class History:
    """The states of the acting agent: the last STACK screens of each game, oldest first, zeros before the first."""

    def __init__(self, count: int) -> None:
        self.stacks = np.zeros((count, STACK, SIZE, SIZE), np.uint8)

    def add(self, frames: UInt8[np.ndarray, "N 84 84"]) -> None:
        """Add the newest screens."""
        self.stacks = np.concatenate([self.stacks[:, 1:], frames[:, None]], 1)

    def restart(self, which: Bool[np.ndarray, " N"]) -> None:
        """Clear the screens of the selected games (N,) bool, after a lost life and before adding the next screen."""
        self.stacks[which] = 0


class Batch(NamedTuple):
    """A minibatch of transitions."""

    rows: Int64[Tensor, "B T"]  # the replay's rows of the state's screens, oldest first, and the next screen
    actions: Int64[Tensor, " B"]
    rewards: Float32[Tensor, " B"]  # −1, 0 or 1
    terminals: Bool[Tensor, " B"]

    @classmethod
    def unpack(cls, packed: Int64[Tensor, "B packed"]) -> "Batch":
        """Unpack a sample of a replay."""
        actions, rewards, terminals = packed[:, -3:].unbind(1)
        return cls(packed[:, :-3], actions, rewards.float(), terminals.bool())


class Replay:
    """The last `steps` steps, in a ring of time slots with one step per game; each screen is stored once, as uint8.

    An episode ends with a lost life, with the game, or when new games begin for another reason (a resume, the end of an
    epoch). The append before new games must be terminal for all games, as in deep_q_rl, since no next screen exists.
    The screens are in GPU memory or in main memory, where the operating system allocates only the filled part.
    """

    def __init__(
        self, steps: int, games: int, stack: int = STACK, size: int = SIZE, device: torch.device | None = None
    ) -> None:
        self.slots, self.games, self.stack = steps // games, games, stack
        self.appended = 0  # number of time slots appended, including overwritten ones
        self.blank = self.slots * games  # row of a zero screen, after the ring's rows
        self.screens = torch.from_numpy(np.zeros((self.blank + 1, size, size), np.uint8)).to(device or "cpu")
        self.actions = np.zeros((self.slots, games), np.uint8)
        self.rewards = np.zeros((self.slots, games), np.int8)
        self.terminals = np.zeros((self.slots, games), np.bool_)
        self.ages = np.zeros((self.slots, games), np.uint8)  # earlier screens of the episode, at most stack − 1

    @staticmethod
    def nbytes_needed(steps: int) -> int:
        """Return the bytes of a full replay of this number of steps."""
        return steps * REPLAY_STEP_BYTES

    def append(
        self,
        frames: UInt8[np.ndarray, "N H W"],
        actions: Shaped[np.ndarray, " N"],
        rewards: Shaped[np.ndarray, " N"],
        terminals: Shaped[np.ndarray, " N"],
    ) -> None:
        """Store the screens, and the actions, rewards and episode ends that followed.

        Rewards are clipped to ±1.
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
        """Count the transitions to sample from: complete states whose next screen is stored or not needed."""
        edges, _, inner = self._positions()
        return len(edges) + inner

    def sample(self, batch: int, rng: np.random.Generator) -> Int64[Tensor, "batch packed"]:
        """Sample `batch` transitions uniformly with replacement; see `Batch.unpack`."""
        return self._transitions(lambda count: rng.integers(count, size=batch))

    def gather_screens(self, rows: Int64[Tensor, "B T"], pinned: bool = False) -> UInt8[Tensor, "B T H W"]:
        """Gather the screens of a batch's rows, T = STACK + 1 of each transition.

        The states are all but the last screen, the next states all but the first. Screens before the episode and after
        a terminal transition are zeros. pinned: return pinned memory, for an asynchronous transfer to a GPU.
        """
        index, size = rows.flatten(), self.screens.shape[1:]
        into = torch.empty(len(index), *size, dtype=torch.uint8, pin_memory=True) if pinned else None
        return torch.index_select(self.screens, 0, index, out=into).view(*rows.shape, *size)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the state for an exact resume; on a CPU the arrays are views of the ring's filled part."""
        rings = {name: ring[: self._stored] for name, ring in self._rings().items()}
        return {"appended": np.array(self.appended), **rings, "frames": self._filled().cpu().numpy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a replay of the same size."""
        self.appended = int(state["appended"])
        for name, ring in self._rings().items():
            assert state[name].shape == (self._stored, *ring.shape[1:]), f"{name} of a replay of another size"
            ring[: self._stored] = state[name]
        self._filled().copy_(torch.from_numpy(state["frames"]))

    def _rings(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("actions", "rewards", "terminals", "ages")}

    def _filled(self) -> UInt8[Tensor, "slots N H W"]:
        """Return a view of the stored screens, (time slots, N, SIZE, SIZE)."""
        return self.screens[: self._stored * self.games].view(self._stored, self.games, *self.screens.shape[1:])

    @property
    def _stored(self) -> int:
        return min(self.appended, self.slots)

    def _positions(self) -> tuple[np.ndarray, int, int]:
        """Return the positions of the transitions to sample from; a position is time · games + game, oldest time 0.

        All positions between the oldest stack − 1 times and the newest time are valid. Returns the valid positions
        outside this range, the start of the range, and its length.
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

    def _transitions(self, choose: Callable[[int], np.ndarray]) -> Int64[Tensor, "B packed"]:
        """Return the transitions whose numbers (B,) `choose` returns, given the number of transitions."""
        edges, begin, inner = self._positions()
        numbers = choose(len(edges) + inner)
        positions = numbers + (begin - len(edges))
        at_edge = numbers < len(edges)
        positions[at_edge] = edges[numbers[at_edge]]
        time, game = np.divmod(positions, self.games)
        slot = (self.appended - self._stored + time) % self.slots

        offsets = np.arange(1 - self.stack, 2)  # in time, of the state's screens and the next screen
        packed = np.empty((len(numbers), self.stack + 4), np.int64)
        rows = packed[:, :-3]
        rows[:] = (slot[:, None] + offsets) % self.slots * self.games + game[:, None]
        terminals = self.terminals[slot, game]
        unseen = self.ages[slot, game][:, None] < -offsets
        unseen[:, -1] = terminals
        rows[unseen] = self.blank
        packed[:, -3], packed[:, -2], packed[:, -1] = self.actions[slot, game], self.rewards[slot, game], terminals
        return torch.from_numpy(packed)

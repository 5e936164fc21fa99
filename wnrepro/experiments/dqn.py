"""DQN on Atari games (§5.4, table 3, figure 4); settings in `settings.DqnSettings`.

Where the paper is silent: spragunr/deep_q_rl, the code that it names, and Mnih et al. (2015), whose agent it is.
Shapes: B transitions, N games side by side, A actions; a state is STACK screens of SIZE×SIZE grey levels 0..255.
A step is one of the agent: four frames of the emulator.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro import identities
from wnrepro.atari import SIZE, STACK, STEPS_A_SECOND, Batch, Games, History, Replay, Scene, check_rom
from wnrepro.cuda_graphs import Captured
from wnrepro.device import autocast, available_memory, keep_memory, set_precision
from wnrepro.errors import UserError
from wnrepro.events import Epoch, Note, Progress
from wnrepro.measurements import layer_rows, measured_init, overflow
from wnrepro.optim import Adamax
from wnrepro.parameterization import Conv2d, Linear, fold, layers, refold, updated
from wnrepro.settings import DqnSettings

DEEP_Q_RL_BIAS = 0.1  # of every unit, at the start of deep_q_rl's network
HUBER = 1.0  # the error beyond which the loss is linear: its gradient is clipped to ±1
KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)
TICK_STEPS = 200  # agent steps between two signs of progress
WHITE = 255
REFILLING, HOLDING_OUT, TESTING = 1, 2, 3  # what games are for, besides training
SPARE_BYTES = 2 * 10**9  # of a GPU's memory, for what a run takes besides its replay
DIVERGED_Q = 1e4  # rewards are clipped to ±1 and discounted: no true value exceeds 1/(1 − 0.99) = 100


class PixelConv2d(Conv2d):
    """Convolution of grey levels 0..255 as of 0..1: the weight is divided by 255, which has fewer elements."""

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return super().weighted_sum(x, self.as_torch(w), b)

    def as_torch(self, w: Tensor) -> Tensor:
        return w / WHITE


class DqnNet(nn.Module):
    """States (B, STACK, SIZE, SIZE) of 0..255 → Q values (B, A)."""

    def __init__(self, settings: DqnSettings, actions: int) -> None:
        super().__init__()
        s = settings
        options: dict[str, Any] = {"g_exp": s.g_exp, "init": s.init}
        sizes, size = (STACK, *s.maps), SIZE
        self.convs = nn.ModuleList()
        for k, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
            layer = Conv2d if k else PixelConv2d
            self.convs.append(layer(sizes[k], sizes[k + 1], kernel, s.param, stride=stride, **options))
            size = (size - kernel) // stride + 1
        self.hidden = Linear(s.maps[2] * size * size, s.hidden, s.param, **options)
        self.out = Linear(s.hidden, actions, s.param, **options)
        if s.init == "deep_q_rl":
            self.start_as_deep_q_rl()

    @torch.no_grad()
    def start_as_deep_q_rl(self) -> None:
        """He's uniform distribution, of standard deviation 1/√inputs, and biases of 0.1: deep_q_rl's start."""
        for _, layer in layers(self):
            bound = math.sqrt(3 / layer.v[0].numel())
            layer.v.uniform_(-bound, bound)
            assert layer.b is not None
            layer.b.fill_(DEEP_Q_RL_BIAS)

    def forward(self, states: Tensor) -> Tensor:
        dtype = torch.bfloat16 if torch.is_autocast_enabled(states.device.type) else torch.float32
        x = states.to(dtype, memory_format=torch.channels_last)
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        q: Tensor = self.out(F.relu(self.hidden(x.flatten(1)), inplace=True))
        return q.float()


def replay_device(steps: int, device: torch.device) -> torch.device:
    """Where the replay's screens are best kept: on the GPU where they fit, else in this machine's memory."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > Replay.nbytes_needed(steps) + SPARE_BYTES:
        return device
    return torch.device("cpu")


class Dqn:
    """The experiment: settings in, `train()` yields its progress; resumes from `load_state_dict`.

    Every epoch begins new games, as the authors' does. The emulator's state cannot be kept, so that a resume is exact
    only from an epoch's end and with the replay in the checkpoint; without it, the resume first plays by the policy
    reached until the replay holds `replay_start` steps again (facts: `refilled_after_epochs`).
    """

    def __init__(self, settings: DqnSettings, device: torch.device) -> None:
        """Seeds torch's global generators with `settings.seed`."""
        set_precision(settings.precision, device)
        if device.type == "cpu":
            keep_memory()
        s = self.settings = settings
        self.device = device
        torch.manual_seed(s.seed)
        self.rng = np.random.default_rng(s.seed)
        self.training = Games(s.game, s.actors, self.games_seed(0))
        self.testing: Games | None = None
        self.actions = self.training.actions
        self.net = DqnNet(s, self.actions).to(device)
        self.policy, self.target = fold(self.net), fold(self.net)  # as plain layers; the policy is the net as it is
        self.optimizer = Adamax(self.net.parameters(), s.lr, beta1=s.beta1)
        self.replay = Replay(s.replay_steps, s.actors, device=replay_device(s.replay_steps, device))
        self.epoch = self.agent_steps = self.updates = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.captured_learn = Captured(self.learn, device)
        self.captured_q = Captured(lambda states: (self.policy(states),), device)
        self.captured_renewal = Captured(self.renew, device)
        self.facts: dict[str, Any] = {
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "actions": self.actions,
            "agent": "sequential" if s.actors == 1 else f"{s.actors} games in lock-step",
        }

    @staticmethod
    def check(settings: DqnSettings, data_dir: Path | None, device: torch.device) -> None:
        """Raise UserError where a run could not be made: before anything is written or computed."""
        s = settings
        set_precision(s.precision, device)
        check_rom(s.game)
        if len(s.maps) != 3:
            raise UserError(f"--maps: dqn needs 3 of them, not {len(s.maps)}; give --maps 3 times")
        if s.replay_start > s.replay_steps:
            raise UserError(f"--replay-start {s.replay_start}: the replay holds {s.replay_steps} steps; give fewer")
        if s.batch_size > s.replay_start - s.actors:
            raise UserError(f"--batch-size {s.batch_size}: the replay starts with {s.replay_start} steps; give fewer")
        for name in ("epsilon_last", "epsilon_test", "discount", "beta1"):
            if getattr(s, name) > 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(s, name):g}: give a number of at most 1")
        needed, there = Replay.nbytes_needed(s.replay_steps), available_memory()
        if replay_device(s.replay_steps, device).type != "cpu":
            needed = 0
        if s.checkpoint_replay:
            needed += Replay.nbytes_needed(s.replay_steps)  # a checkpoint is made in memory
        if there is not None and needed > there:
            raise UserError(
                f"--replay-steps {s.replay_steps}: needs {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are "
                "free; give fewer, or close something"
            )

    @classmethod
    def load(cls, settings: DqnSettings, data_dir: Path | None, device: torch.device) -> "Dqn":
        """The experiment; its games come with ale-py."""
        return cls(settings, device)

    def games_seed(self, *purpose: int) -> int:
        """The seed of the games of a purpose, the same for the same seed of the run."""
        seed = int(np.random.SeedSequence((self.settings.seed, *purpose)).generate_state(1)[0])
        return seed % (2**31 - max(self.settings.actors, self.settings.test_games))

    def train(self) -> Iterator[Progress | Epoch | Note]:
        """Train from the epoch reached to the last one; an Epoch after each, Ticks in between.

        A loss, or part of the state, that is not finite, or a mean Q value that no game could give, ends it as
        diverged.
        """
        s = self.settings
        self.held_out = self.random_states(max(s.held_out, s.init_examples))
        if self.epoch and not len(self.replay):
            yield Note(
                f"the checkpoint has no replay (--checkpoint-replay keeps it): {s.replay_start} steps of play by the "
                f"policy of epoch {self.epoch} fill it anew"
            )
            self.facts.setdefault("refilled_after_epochs", []).append(self.epoch)
            self.training.begin(self.games_seed(self.epoch, REFILLING))
            for _ in self.play(s.replay_start, learn=False):
                pass
        while self.epoch < s.epochs:
            began = time.perf_counter()
            tables: dict[str, list[dict[str, Any]]] = {}
            if self.epoch == 0:
                tables["games"] = self.test(epsilon=1.0)
                tables["init"] = self.initialize(self.held_out[: s.init_examples])
                tables["layers"] = layer_rows(self.net, self.epoch)
            self.epoch += 1
            updates = self.updates
            self.loss_sum.zero_()
            self.training.begin(self.games_seed(self.epoch))
            for done in self.play(s.epoch_steps, learn=True):
                yield Progress(self.epoch, done, s.epoch_steps)
            games = self.test(s.epsilon_test)
            scores = [row["score"] for row in games]
            updates = self.updates - updates
            loss = self.loss_sum.item() / updates if updates else math.nan
            mean_q = self.mean_q()
            row = {
                "epoch": self.epoch,
                "agent_steps": self.agent_steps,
                "updates": self.updates,
                "seconds": round(time.perf_counter() - began, 3),
                "episodes": len(scores),
                "test_score": float(np.mean(scores)),
                "test_score_max": float(np.max(scores)),
                "mean_q": mean_q,
                "loss": loss,
                "epsilon": self.epsilon(),
            }
            tables.setdefault("games", []).extend(games)
            of_layers = layer_rows(self.net, self.epoch)
            tables.setdefault("layers", []).extend(of_layers)
            diverged = ""
            if (updates and not math.isfinite(loss)) or not abs(mean_q) <= DIVERGED_Q:
                diverged = f"loss {loss:.3g}, mean Q value {mean_q:.3g} in epoch {self.epoch}"
            diverged = diverged or overflow(self.net, self.optimizer, of_layers)
            yield Epoch(self.epoch, row, tables, diverged)
            if diverged:
                return

    def play(self, steps: int, learn: bool) -> Iterator[int]:
        """Play so many agent steps of the training games into the replay; yields now and then how many are done.

        Where it is to `learn`, an update comes after an action is chosen and before its outcome is in the replay
        (authors' code): the emulators play it meanwhile.
        """
        s, games = self.settings, self.training
        history = History(s.actors)
        history.add(games.frames)
        for done in range(s.actors, steps + s.actors, s.actors):
            frames = games.frames
            actions = self.act(history.stacks, self.epsilon(), self.rng)
            games.send(actions)
            if learn:
                self.agent_steps += s.actors
                due = max(self.agent_steps - s.replay_start, 0) // s.update_every - self.updates
                for _ in range(due):
                    self.update()
                if due > 0:
                    self.captured_renewal()
            played = games.receive()
            ended = played.life_lost | (done >= steps)  # after the last step other games begin
            self.replay.append(frames, actions, played.rewards, ended)
            history.restart(played.life_lost)
            history.add(played.frames)
            if done % TICK_STEPS < s.actors:
                yield min(done, steps)

    def epsilon(self) -> float:
        """ε of the step to come: 1 until the first update, then falling."""
        s = self.settings
        progress = (self.agent_steps - s.replay_start) / s.epsilon_steps
        return 1 - (1 - s.epsilon_last) * min(max(progress, 0), 1)

    @torch.no_grad()
    def act(self, states: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
        """ε-greedy actions (N,) of the policy in these states (N, STACK, SIZE, SIZE)."""
        actions = rng.integers(self.actions, size=len(states))
        greedy = rng.random(len(states)) >= epsilon
        if greedy.any():
            (q,) = self.captured_q(torch.from_numpy(states).to(self.device))
            actions[greedy] = q.argmax(1).cpu().numpy()[greedy]
        return actions

    def update(self) -> Tensor:
        """One update by a minibatch of the replay; its loss, the sum over the minibatch (authors' code), ().

        One transfer to the device, and one more where the replay's screens are not there.
        """
        parts = [self.replay.sample(self.settings.batch_size, self.rng)]
        if self.replay.screens.device.type != self.device.type:
            parts.append(self.replay.seen(Batch.of(parts[0]).rows, pinned=self.device.type == "cuda"))
        (loss,) = self.captured_learn(*map(self.sent, parts))
        self.updates += 1
        if self.updates % self.settings.target_every == 0:
            self.renew_target()
        return loss

    def sent(self, part: Tensor) -> Tensor:
        """On the device. A GPU's transfer is asynchronous, from memory that torch uses again only after its end."""
        return (part.pin_memory() if self.device.type == "cuda" else part).to(self.device, non_blocking=True)

    def learn(self, packed: Tensor, screens: Tensor | None = None) -> tuple[Tensor]:
        """One update by a replay's sample, its loss (). screens: the sample's, of a replay on another device."""
        rows, actions, rewards, terminals = Batch.of(packed)
        if screens is None:
            screens = self.replay.seen(rows)
        states, next_states = screens[:, :-1], screens[:, 1:]
        self.net.train()
        with autocast(self.settings.precision, self.device):
            with torch.no_grad():
                value = self.target(next_states).max(1).values.masked_fill(terminals, 0)
            q = self.net(states).gather(1, actions[:, None]).squeeze(1)
        wanted = rewards + self.settings.discount * value
        loss = F.huber_loss(q, wanted, reduction="sum", delta=HUBER)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        updated(self.net)
        self.loss_sum += loss.detach()
        return (loss.detach(),)

    def renew(self) -> tuple[()]:
        """The policy becomes the network as it is."""
        refold(self.net, self.policy)
        return ()

    def renew_target(self) -> None:
        """The target network becomes the network as it is."""
        refold(self.net, self.target)

    def test(self, epsilon: float) -> list[dict[str, Any]]:
        """Rows of games.csv: the raw scores of full games. Of those under way after `test_steps` agent steps, each is
        played to its end. At ε = 1 it is random play.
        """
        s = self.settings
        rng = np.random.default_rng((s.seed, self.epoch))
        seed = self.games_seed(self.epoch, TESTING)
        if self.testing is None:
            self.testing = Games(s.game, s.test_games, seed)
        else:
            self.testing.begin(seed)
        history = History(s.test_games)
        history.add(self.testing.frames)
        scores: list[float] = []
        totals, playing = np.zeros(s.test_games), np.ones(s.test_games, bool)
        steps = 0
        while playing.any():
            played = self.testing.step(self.act(history.stacks, epsilon, rng))
            steps += int(playing.sum())
            totals += played.rewards
            scores += totals[played.over & playing].tolist()
            totals[played.over] = 0
            if steps >= s.test_steps:
                playing &= ~played.over
            history.restart(played.over)
            history.add(played.frames)
        return [{"epoch": self.epoch, "game": number, "score": score} for number, score in enumerate(scores, start=1)]

    def random_states(self, count: int) -> Tensor:
        """States (count, STACK, SIZE, SIZE) of random play, one every STACK steps; by generators of their own."""
        s = self.settings
        rng = np.random.default_rng(s.seed)
        self.training.begin(self.games_seed(0, HOLDING_OUT))
        history = History(s.actors)
        states: list[Tensor] = []
        history.add(self.training.frames)
        while len(states) * s.actors < count:
            for _ in range(STACK):
                played = self.training.step(rng.integers(self.actions, size=s.actors))
                history.restart(played.over)
                history.add(played.frames)
            states.append(torch.from_numpy(history.stacks.copy()))
        return torch.cat(states)[:count]

    @torch.no_grad()
    def mean_q(self) -> float:
        """The largest Q value of a state, on average over the held-out ones (authors' code)."""
        q = [
            self.policy(states.to(self.device)).max(1).values
            for states in self.held_out[: self.settings.held_out].split(256)
        ]
        return torch.cat(q).double().mean().item()

    @torch.no_grad()
    def initialize(self, states: Tensor) -> list[dict[str, Any]]:
        """The data-dependent init on these states; what it achieved, as rows of init.csv: none where there is none."""
        rows: list[dict[str, Any]] = []
        if self.settings.init != "deep_q_rl":
            _, rows = measured_init(self.net, states.to(self.device))
        self.renew()
        self.renew_target()
        self.facts |= identities.measure(self.settings.seed)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, the emulators and (unless asked for) the replay apart."""
        state = {
            "epoch": self.epoch,
            "agent_steps": self.agent_steps,
            "updates": self.updates,
            "net": self.net.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "facts": self.facts,
        }
        if self.settings.checkpoint_replay:
            state["replay"] = {name: torch.from_numpy(part) for name, part in self.replay.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.epoch, self.facts = state["epoch"], state["facts"]
        self.agent_steps, self.updates = state["agent_steps"], state["updates"]
        self.net.load_state_dict(state["net"])
        self.renew()
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        if "replay" in state:
            self.replay.load_state_dict({name: part.numpy() for name, part in state["replay"].items()})

    def film(self, seed: int, seconds: float) -> Iterator[Scene]:
        """One game played as in a test, up to so many seconds of it: a Scene before the first step and after each.

        The seed decides all. A game that is over has no screen any more: its Scene has the one before.
        """
        s = self.settings
        rng = np.random.default_rng(seed)
        begin = int(rng.integers(2**31 - 1))
        seen, shown = (Games(s.game, 1, begin, colour=colour) for colour in (False, True))
        history = History(1)
        history.add(seen.frames)
        scene = Scene(shown.frames[0], 0, 0.0, False)
        yield scene
        while not scene.over and scene.steps < seconds * STEPS_A_SECOND:
            actions = self.act(history.stacks, s.epsilon_test, rng)
            played, same = seen.step(actions), shown.step(actions)
            history.add(played.frames)
            screen = scene.screen if played.over[0] else same.frames[0]
            score = scene.score + float(played.rewards[0])
            scene = Scene(screen, scene.steps + 1, score, bool(played.over[0]))
            yield scene

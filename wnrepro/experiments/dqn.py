"""DQN on Atari games (§5.4, table 3, figure 4); settings in `settings.DqnSettings`.

Details not in the paper follow spragunr/deep_q_rl, the code it cites, and the agent of Mnih et al. (2015).
Shapes: B transitions, N games in parallel, A actions; a state is STACK screens of SIZE×SIZE grey levels 0..255.
A step is an agent step: four frames of the emulator.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wnrepro.cuda_graphs import Captured
from wnrepro.device import autocast, float64_device, image_format
from wnrepro.events import Note
from wnrepro.experiments.atari import SIZE, STACK, STEPS_A_SECOND, Batch, Games, History, Replay, Scene
from wnrepro.experiments.loop import COMPARED, Experiment, Exported, Rows
from wnrepro.experiments.measurements import measured_init
from wnrepro.optim import Adamax
from wnrepro.parameterization import Conv2d, Linear, fold, layers, refold
from wnrepro.settings import DqnSettings

DEEP_Q_RL_BIAS = 0.1  # initial biases in deep_q_rl
HUBER = 1.0  # error above which the loss is linear, so that its gradient is clipped to ±1
KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)
PROGRESS_EVERY = 200  # agent steps
WHITE = 255
REFILLING, HOLDING_OUT, TESTING = 1, 2, 3  # purposes of games, besides training
SPARE_BYTES = 2 * 10**9  # GPU memory that a run needs besides its replay
DIVERGED_Q = 1e4  # rewards are clipped to ±1 and discounted, so that no true value exceeds 1/(1 − 0.99) = 100


class PixelConv2d(Conv2d):
    """Convolution of grey levels 0..255 as if in 0..1. Dividing the weight by 255 is cheaper than dividing screens."""

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return super().weighted_sum(x, self.as_torch(w), b)

    def as_torch(self, w: Tensor) -> Tensor:
        return w / WHITE


class DqnNet(nn.Module):
    """The network from states of grey levels 0..255 to Q values."""

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
        """Initialize as deep_q_rl: He's uniform distribution with standard deviation 1/√inputs, and biases of 0.1."""
        for _, layer in layers(self):
            bound = math.sqrt(3 / layer.v[0].numel())
            layer.v.uniform_(-bound, bound)
            assert layer.b is not None
            layer.b.fill_(DEEP_Q_RL_BIAS)

    def forward(self, states: UInt8[Tensor, "B 4 84 84"]) -> Float[Tensor, "B actions"]:
        dtype = torch.bfloat16 if torch.is_autocast_enabled(states.device.type) else torch.float32
        x = states.to(dtype, memory_format=image_format(states.device))
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        q: Tensor = self.out(F.relu(self.hidden(x.flatten(1)), inplace=True))
        return q.float()


def replay_device(steps: int, device: torch.device) -> torch.device:
    """Choose the device for the replay's screens: the GPU if they fit in its memory, else the CPU."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > Replay.nbytes_needed(steps) + SPARE_BYTES:
        return device
    return torch.device("cpu")


class Dqn(Experiment[DqnSettings]):
    """The experiment; see `Experiment`.

    Every epoch begins new games, as in the authors' code. The emulator's state cannot be saved. A resume is therefore
    exact only from the end of an epoch and with the replay in the checkpoint. Without the replay, it first plays
    `replay_start` steps with the current policy to fill the replay (facts: `refilled_after_epochs`).
    """

    net: DqnNet

    def __init__(self, settings: DqnSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        s = settings
        self.rng = np.random.default_rng(s.seed)
        self.training = Games(s.game, s.actors, self.games_seed(0))
        self.testing: Games | None = None
        self.actions = self.training.actions
        self.net = DqnNet(s, self.actions).to(device)
        self.policy, self.target = fold(self.net), fold(self.net)  # plain layers; the policy is the current network
        for layer in self.target.modules() if s.precision == "bf16" else ():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.bfloat16()  # else autocast would cast its weights at every update
        self.optimizer = Adamax(self.net.parameters(), s.lr, beta1=s.beta1)
        self.replay = Replay(s.replay_steps, s.actors, device=replay_device(s.replay_steps, device))
        self.agent_steps = self.updates = 0
        self.epoch_updates = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=float64_device(device))
        self.losses: list[tuple[int, Tensor]] = []  # of every `log_steps`-th update of the epoch
        self.captured_q = Captured(lambda states: (self.policy(states),), device, together=False)
        self.captured_sync = Captured(self.sync_policy, device, together=False)
        self.facts = {
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "actions": self.actions,
            "agent": "sequential" if s.actors == 1 else f"{s.actors} games in lock-step",
        }

    @classmethod
    def load(cls, settings: DqnSettings, data_dir: Path | None, device: torch.device) -> "Dqn":
        """Create the experiment; its games are part of ale-py."""
        return cls(settings, device)

    @classmethod
    def on_noise(cls, settings: DqnSettings, device: torch.device) -> "Dqn":
        """Create the experiment with `replay_start` steps of random play in its replay."""
        agent = cls(settings, device)
        agent.held_out = agent.random_states(settings.init_examples)
        agent.initialize(agent.held_out)
        for _ in agent.play(settings.replay_start, learn=False):
            pass
        agent.agent_steps = settings.replay_start
        return agent

    def train_once(self) -> Float[Tensor, ""]:
        self.agent_steps += self.settings.update_every  # `play` computes the due updates from it
        return self.update()

    def games_seed(self, *purpose: int) -> int:
        """Compute the seed of the games for a purpose from the run's seed."""
        seed = int(np.random.SeedSequence((self.settings.seed, *purpose)).generate_state(1)[0])
        return seed % (2**31 - max(self.settings.actors, self.settings.test_games))

    @property
    def epoch_size(self) -> int:
        return self.settings.epoch_steps

    def begin(self) -> Iterator[Note]:
        s = self.settings
        self.held_out = self.random_states(max(s.held_out, s.init_examples))
        if self.epoch and not len(self.replay):
            yield Note(
                f"the checkpoint has no replay (--checkpoint-replay stores it): {s.replay_start} steps with the policy "
                f"of epoch {self.epoch} fill a new one"
            )
            self.facts.setdefault("refilled_after_epochs", []).append(self.epoch)
            self.training.begin(self.games_seed(self.epoch, REFILLING))
            for _ in self.play(s.replay_start, learn=False):
                pass

    def start(self) -> dict[str, Rows]:
        games = self.test(epsilon=1.0)
        return {"games": games, "init": self.first_weights(self.held_out[: self.settings.init_examples])}

    def train_epoch(self) -> Iterator[int]:
        updates = self.updates
        self.loss_sum.zero_()
        self.losses.clear()
        self.training.begin(self.games_seed(self.epoch))
        yield from self.play(self.settings.epoch_steps, learn=True)
        self.epoch_updates = self.updates - updates

    def step_rows(self, every: int) -> Rows:
        """Return the epoch's rows of steps.csv: the loss of every `every`-th update, summed over its examples."""
        return [{"epoch": self.epoch, "update": update, "loss": loss.item()} for update, loss in self.losses]

    def evaluate(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        games = self.test(self.settings.epsilon_test)
        metrics = {
            "agent_steps": self.agent_steps,
            "updates": self.updates,
            "loss": self.loss_sum.item() / self.epoch_updates if self.epoch_updates else math.nan,
            "epsilon": self.epsilon(),
        }
        return metrics | self.score(games), {"games": games}

    def test_metrics(self) -> dict[str, float]:
        self.held_out = self.random_states(max(self.settings.held_out, self.settings.init_examples))
        return self.score(self.test(self.settings.epsilon_test))

    def score(self, games: Rows) -> dict[str, float]:
        """Return the metrics of the rows of `test`."""
        scores = [row["score"] for row in games]
        means = {"test_score": float(np.mean(scores)), "mean_q": self.mean_q()}
        return {"episodes": len(scores), "test_score_max": float(np.max(scores))} | means

    def divergence(self, metrics: dict[str, Any]) -> str:
        """Return a sentence if the loss is not finite or the mean Q value is impossibly large, else an empty string."""
        loss, mean_q = metrics["loss"], metrics["mean_q"]
        if (math.isfinite(loss) or not self.epoch_updates) and abs(mean_q) <= DIVERGED_Q:
            return ""
        return f"loss {loss:.3g}, mean Q value {mean_q:.3g} in epoch {self.epoch}"

    def play(self, steps: int, learn: bool) -> Iterator[int]:
        """Play agent steps of the training games, store them in the replay, and yield the number done.

        With `learn`, updates run after an action is chosen and before its result is stored (authors' code), while the
        emulators play the action.
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
                    self.captured_sync()
            played = games.receive()
            ended = played.life_lost | (done >= steps)  # new games begin after the last step
            self.replay.append(frames, actions, played.rewards, ended)
            history.restart(played.life_lost)
            history.add(played.frames)
            if done % PROGRESS_EVERY < s.actors:
                yield min(done, steps)

    def epsilon(self) -> float:
        """Compute ε for the next step: 1 until the first update, then decreasing."""
        s = self.settings
        progress = (self.agent_steps - s.replay_start) / s.epsilon_steps
        return 1 - (1 - s.epsilon_last) * min(max(progress, 0), 1)

    @torch.no_grad()
    def act(
        self, states: UInt8[np.ndarray, "N 4 84 84"], epsilon: float, rng: np.random.Generator
    ) -> Int[np.ndarray, " N"]:
        """Choose ε-greedy actions (N,) of the policy in these states."""
        actions = rng.integers(self.actions, size=len(states))
        greedy = rng.random(len(states)) >= epsilon
        if greedy.any():
            (q,) = self.captured_q(torch.from_numpy(states).to(self.device))
            actions[greedy] = q.argmax(1).cpu().numpy()[greedy]
        return actions

    def update(self) -> Float[Tensor, ""]:
        """Update the network on a minibatch of the replay and return the loss, summed over examples (authors' code).

        It needs one transfer to the device, and a second one if the replay's screens are on another device.
        """
        parts = [self.replay.sample(self.settings.batch_size, self.rng)]
        if self.replay.screens.device.type != self.device.type:
            parts.append(self.replay.gather_screens(Batch.unpack(parts[0]).rows, pinned=self.device.type == "cuda"))
        (loss,) = self.captured_step(*map(self.to_device, parts))
        self.updates += 1
        if self.log_steps and self.updates % self.log_steps == 0:
            self.losses.append((self.updates, loss.clone()))
        if self.updates % self.settings.target_every == 0:
            self.sync_target()
        return loss

    def to_device(self, part: Tensor) -> Tensor:
        """Move a tensor to the device; to a GPU by an asynchronous transfer from pinned memory."""
        return (part.pin_memory() if self.device.type == "cuda" else part).to(self.device, non_blocking=True)

    def step(
        self, packed: Int[Tensor, "B packed"], screens: UInt8[Tensor, "B 5 84 84"] | None = None
    ) -> tuple[Float[Tensor, ""]]:
        """Train on a sample and return its loss. screens: the sample's, if the replay is on another device."""
        rows, actions, rewards, terminals = Batch.unpack(packed)
        if screens is None:
            screens = self.replay.gather_screens(rows)
        states, next_states = screens[:, :-1], screens[:, 1:]
        self.net.train()
        with autocast(self.settings.precision, self.device):
            with torch.no_grad():
                value = self.target(next_states).max(1).values.masked_fill(terminals, 0)
            q = self.net(states).gather(1, actions[:, None]).squeeze(1)
        td_target = rewards + self.settings.discount * value
        loss = F.huber_loss(q, td_target, reduction="sum", delta=HUBER)
        self.optimize(loss)
        self.loss_sum += loss.detach().to(self.loss_sum.device)
        return (loss.detach(),)

    def sync_policy(self) -> tuple[()]:
        """Copy the network to the policy."""
        refold(self.net, self.policy)
        return ()

    def sync_target(self) -> None:
        """Copy the network to the target network."""
        refold(self.net, self.target)

    def test(self, epsilon: float) -> Rows:
        """Test the policy and return rows of games.csv: the raw scores of full games.

        After `test_steps` agent steps no new games begin, and the current ones are played to their end. ε = 1 is random
        play.
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

    def random_states(self, count: int) -> UInt8[Tensor, "count 4 84 84"]:
        """Collect states of random play, one every STACK steps, with separate generators."""
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
        """Compute the mean over held-out states of the largest Q value (authors' code)."""
        q = [
            self.policy(states.to(self.device)).max(1).values
            for states in self.held_out[: self.settings.held_out].split(256)
        ]
        return torch.cat(q).to(float64_device(self.device)).double().mean().item()

    @torch.no_grad()
    def initialize(self, states: UInt8[Tensor, "B 4 84 84"]) -> Rows:
        """Run the data-dependent init, if there is one, on these states, and return the rows of init.csv."""
        rows: Rows = []
        if self.settings.init != "deep_q_rl":
            _, rows = measured_init(self.net, states.to(self.device))
        self.sync_policy()
        self.sync_target()
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resume, without the emulators and, unless `checkpoint_replay` is set, the replay."""
        state = super().state_dict() | {"agent_steps": self.agent_steps, "updates": self.updates}
        state |= {"target": self.target.state_dict(), "rng": json.dumps(self.rng.bit_generator.state)}
        if self.settings.checkpoint_replay:
            state["replay"] = {name: torch.from_numpy(part) for name, part in self.replay.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.agent_steps, self.updates = state["agent_steps"], state["updates"]
        self.sync_policy()
        self.target.load_state_dict(state["target"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        if "replay" in state:
            self.replay.load_state_dict({name: part.numpy() for name, part in state["replay"].items()})

    def take_weights(self, weights: dict[str, Tensor]) -> None:
        super().take_weights(weights)
        self.sync_policy()
        self.sync_target()

    def load_weights(self, weights: dict[str, Tensor], epoch: int) -> None:
        super().load_weights(weights, epoch)
        self.sync_policy()

    @torch.no_grad()
    def exported(self, data_dir: Path | None) -> Exported:
        """Return the policy's network, from states of grey levels 0..255 to Q values."""
        states = self.random_states(COMPARED).to(self.device)
        return Exported(fold(self.net.eval()), states, self.net(states), ("states", "q_values"))

    def film(self, seed: int, seconds: float) -> Iterator[Scene]:
        """Play a game as in a test, for at most `seconds`, and yield a Scene before the first step and after each step.

        The seed determines the game. When the game is over, the emulator has no screen of it, so the last Scene repeats
        the previous screen.
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

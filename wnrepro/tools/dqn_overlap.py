"""Measures what it gains that DQN's emulators play an action while the network learns.

    python -m wnrepro.tools.dqn_overlap 20 1 2     # the number of pairs, then those of threads

An agent of the paper's size plays Breakout on the CPU, with a small replay and the final ε. In random order it plays 40
agent steps as `Dqn.play` does, and 40 for which the emulators finish before it learns. Prints the agent steps a second,
the paired ratio with a 95 % interval by order statistics, and the milliseconds of the parts of a step.
"""

import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from wnrepro.bench.ours import AGENT_STEPS, CHANGES, our_training
from wnrepro.experiments.atari import Batch, Games, Step
from wnrepro.settings import scale_settings

PARTS = 50  # repetitions of each part


def finish_first(games: Games) -> Any:
    """Return a context in which the emulators have played an action once it is sent."""
    played: list[Step] = []
    send, receive = games.send, games.receive

    def send_and_wait(actions: np.ndarray) -> None:
        send(actions)
        frames = games.frames
        played.append(receive())
        games.frames = frames

    def received() -> Step:
        games.frames = played[-1].frames
        return played.pop()

    return patch.multiple(games, send=send_and_wait, receive=received)


def milliseconds(part: Callable[[], object]) -> float:
    """Return the median time of a part."""
    seconds = []
    for _ in range(PARTS):
        began = time.perf_counter()
        part()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def main(pairs: int, *numbers: int) -> None:
    settings = scale_settings("dqn", "paper", "wn", **CHANGES["dqn"])
    for threads in numbers:
        torch.set_num_threads(threads)
        agent, step = our_training(settings, torch.device("cpu"))

        def play(agent: Any = agent) -> float:
            began = time.perf_counter()
            for _ in agent.play(AGENT_STEPS, learn=True):
                pass
            return AGENT_STEPS / (time.perf_counter() - began)

        play()
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(pairs):
            for overlaps in random.sample([True, False], 2):
                if overlaps:
                    speeds[overlaps].append(play())
                else:
                    with finish_first(agent.training):
                        speeds[overlaps].append(play())
        ratios = sorted(a / b for a, b in zip(speeds[True], speeds[False], strict=True))
        end = max(0, math.floor(pairs / 2 - 0.98 * math.sqrt(pairs)))
        both = " and ".join(f"{statistics.median(speeds[overlaps]):.1f}" for overlaps in (True, False))
        interval = f"{statistics.median(ratios):.3f} [{ratios[end]:.3f}, {ratios[-1 - end]:.3f}]"
        print(f"threads {threads}: {both} agent steps a second, ratio {interval}, n = {pairs}")

        rng, batch = np.random.default_rng(0), settings.batch_size
        rows = Batch.unpack(agent.replay.sample(batch, rng)).rows
        screens = agent.replay.screens[:1].numpy()
        parts = {
            "emulation": lambda: agent.training.step(rng.integers(agent.actions, size=1)),  # noqa: B023
            "acting": lambda: agent.act(agent.held_out[:1].numpy(), 0.0, rng),  # noqa: B023
            "storing": lambda: agent.replay.append(screens, [0], [0], [False]),  # noqa: B023
            "sampling": lambda: agent.replay.sample(batch, rng),  # noqa: B023
            "gathering": lambda: agent.replay.gather_screens(rows),  # noqa: B023
            "update": step,
        }
        print("   ", ", ".join(f"{name} {milliseconds(part):.3f} ms" for name, part in parts.items()), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*map(int, sys.argv[1:]))

"""The authors' choices that tools/deviations.py trains with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from wnrepro.data.whitening import Zca
from wnrepro.experiments.atari import History
from wnrepro.experiments.dqn import Dqn
from wnrepro.tools import deviations
from wnrepro.tools.deviations import DEVIATIONS, BlocksAdam, random_first_actions, whitening_in_float32


def test_epsilon_of_blocks_stands_before_the_bias_correction() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = BlocksAdam([p], 0.1)
    expected, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate((1e-7, 3e-8, -2e-7), 1):
        p.grad = torch.tensor([gradient])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.1 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + 1e-8)
        assert p.item() == pytest.approx(expected, rel=1e-5)


def test_whitening_in_float32_is_nearly_ours() -> None:
    x = torch.randint(256, (500, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    single, ours = whitening_in_float32(x, 1e-5, "cpu").apply(x), Zca.fit(x).apply(x)
    assert 0 < (single - ours).abs().max() < 1e-3


def test_only_the_first_four_actions_of_a_life_in_training_are_random() -> None:
    agent: Any = SimpleNamespace(actions=4, rng=np.random.default_rng(1))
    frames, history = np.zeros((300, 84, 84), np.uint8), History(300)

    def shares(rng: np.random.Generator) -> list[bool]:
        """Whether the actions differ from the policy's, action 0, in six steps."""
        found = []
        for _ in range(6):
            history.add(frames)
            found.append(bool(Dqn.act(agent, history.stacks, 0.0, rng).mean() > 1))
        return found

    with patch.object(Dqn, "act", lambda self, states, *_: np.zeros(len(states), np.int64)), random_first_actions():
        assert shares(agent.rng) == [True] * 4 + [False] * 2
        history.restart(np.ones(300, bool))
        assert shares(agent.rng) == [True] * 4 + [False] * 2
        history.restart(np.ones(300, bool))
        assert shares(np.random.default_rng(1)) == [False] * 6  # a test


@pytest.mark.parametrize("name", DEVIATIONS)
def test_run_is_copied_without_its_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def app(command: list[str], standalone_mode: bool) -> None:
        run = Path(command[-1], "short", command[0], "wn", "seed-1")
        run.mkdir(parents=True)
        for file in ("run.json", "config.json", "checkpoint.pt", "lock"):
            (run / file).write_text(json.dumps(command))

    monkeypatch.setattr(deviations, "app", app)
    deviations.main(name, tmp_path)
    assert {path.name for path in (tmp_path / name).iterdir()} == {"run.json", "config.json"}

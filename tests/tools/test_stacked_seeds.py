"""Networks with stacked parameters: their gradients are those of the networks alone."""

from typing import Any

import numpy as np
import pytest
import torch

from wnrepro.bench.ours import our_training
from wnrepro.parameterization import fold, layers
from wnrepro.settings import scale_settings
from wnrepro.tools.stacked_seeds import CHANGES, Stacked, stack, stacked_loss

SEEDS = 2


def gradients(runs: list[Any], net: Any) -> dict[str, torch.Tensor]:
    """Compute the gradients of a network, stacked of those of the runs, on their first minibatches."""
    for run in runs:
        run.order.manual_seed(run.settings.seed)
        run.rng = np.random.default_rng(run.settings.seed)
    target = fold(net) if runs[0].settings.name == "dqn" else None
    with Stacked(len(runs)):
        loss = stacked_loss(runs, net, target)
    return dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters())), strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("experiment", ["draw", "dqn"])
def test_stacked_gradients_are_those_of_each_network(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = CHANGES[experiment] | ({"replay_start": 200} if experiment == "dqn" else {})
    made = [scale_settings(experiment, "quick", "wn", seed=seed, **changes) for seed in range(SEEDS)]
    runs = [our_training(settings, torch.device("cpu"))[0] for settings in made]
    monkeypatch.setattr(torch, "randn", lambda *size: 0.5 * torch.ones(size))
    alone = [gradients([run], run.net) for run in runs]
    net = stack([run.net for run in runs])
    units = dict(layers(net))
    for name, found in gradients(runs, net).items():
        layer = units[name.rpartition(".")[0]]
        expected = torch.cat([own[name] for own in alone], layer.unit_dim if found.ndim == layer.v.ndim else -1)
        assert expected.norm() > 0 and (found - expected).norm() <= 1e-5 * expected.norm(), name

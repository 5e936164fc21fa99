"""The plain loops: the same work as ours, the same functions and updates, and they train."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_pixels, timed_small
from torch import nn

from wnrepro.bench import ours, plain
from wnrepro.bench.counting import WHOLE, Steps, count_work
from wnrepro.bench.ours import ACTING, EMULATION, LEARNING, our_steps
from wnrepro.bench.plain import PLAIN, PlainDqn, PlainDraw, plain_steps
from wnrepro.experiments import cvae, draw
from wnrepro.experiments.atari import Batch, Games, Replay
from wnrepro.experiments.cvae import MnistVae
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.draw import DrawNet
from wnrepro.parameterization import fold, layers
from wnrepro.settings import Settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("experiment", PLAIN)
def test_ours_and_plain_do_the_same_work(experiment: str) -> None:
    """FLOPs up to 2 %: DRAW's differ in the windows."""
    our, their = our_steps(timed_small(experiment), CPU), plain_steps(timed_small(experiment), CPU)
    assert our.counted is not None and their.counted is not None
    work, plain_work = count_work(our.counted), count_work(their.counted)
    assert work["flops"] == pytest.approx(plain_work["flops"], rel=0.02) and work["flops"] > 0
    assert 0.3 < work["bytes"] / plain_work["bytes"] < 3
    assert our.updates == their.updates and set(our.timed) == set(their.timed)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PLAIN)
@pytest.mark.parametrize("make", [our_steps, plain_steps])
def test_step_trains(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Settings, torch.device], Steps], experiment: str
) -> None:
    for module in (cvae, draw, plain):
        monkeypatch.setattr(module, "random_pixels", lambda _: make_pixels("mnist"))  # unlike noise learnable
    for module in (ours, plain):
        monkeypatch.setattr(module, "AGENT_STEPS", 4)
    torch.manual_seed(0)
    steps = make(dataclasses.replace(timed_small(experiment), lr=0.01), CPU).timed
    step: Callable[[], Any] = steps.get(LEARNING, steps[WHOLE])
    losses = [abs(float(step())) for _ in range(60)]  # ours of the VAE is the bound, the loss's negative
    assert sum(losses[-10:]) < sum(losses[:10])


def test_network_in_torch_is_the_same_function_and_keeps_its_masks() -> None:
    settings: Any = timed_small("cvae")
    net = MnistVae(settings)
    for _, layer in layers(net):
        nn.init.normal_(layer.gain)
    theirs = plain.to_torch_layers(net)
    x = make_pixels("mnist").train_x[:10].float()
    torch.manual_seed(1)
    expected = net(x)
    torch.manual_seed(1)
    torch.testing.assert_close(theirs(x), expected, rtol=1e-4, atol=1e-4)
    masked = [(layer.mask, theirs.get_submodule(name)) for name, layer in layers(net) if layer.mask is not None]
    assert masked
    for mask, layer in masked:
        for parameter in layer.parametrizations.weight.parameters():
            nn.init.normal_(parameter)
        assert torch.equal(layer.weight != 0, mask != 0)


@pytest.mark.slow
def test_timing_of_dqn_has_40_agent_steps_and_10_updates_of_both_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order of the parts."""
    counted = {"step": 0, "update": 0, "act": 0}

    def count(cls: type, method: str, name: str) -> None:
        original = getattr(cls, method)

        def counting(*arguments: object) -> object:
            counted[name] += 1
            return original(*arguments)

        monkeypatch.setattr(cls, method, counting)

    for cls, method in ((Dqn, "update"), (Dqn, "act"), (PlainDqn, "update"), (PlainDqn, "act"), (PlainDqn, "step")):
        count(cls, method, method)
    count(Games, "send", "step")
    expected = {WHOLE: (40, 10), EMULATION: (40, 0), ACTING: (0, 0), LEARNING: (0, 10)}
    for make in (our_steps, plain_steps):
        steps = make(timed_small("dqn"), CPU).timed
        for name in (LEARNING, WHOLE, EMULATION, WHOLE, ACTING, LEARNING, WHOLE):
            counted.update(step=0, update=0, act=0)
            steps[name]()
            assert (counted["step"], counted["update"]) == expected[name]
            assert counted["act"] == 40 or name in (EMULATION, LEARNING)


def test_plain_draw_is_the_same_function_as_ours() -> None:
    """Bound, KL of every time step, all gradients, and five updates, with weights so large that the windows differ."""
    torch.manual_seed(0)
    settings: Any = timed_small("draw")
    our_net, net = DrawNet(settings), PlainDraw(settings)
    everything, size = slice(None), settings.write_window**2
    twins: list[tuple[Any, str, Any, slice]] = [
        (net.statistics, "", our_net.statistics, everything),
        (net.patch, "", our_net.heads, slice(size)),
        (net.write_at.window, "", our_net.heads, slice(size, size + 5)),
        (net.read_at.window, "", our_net.heads, slice(size + 5, None)),
    ]
    for cell, our_cell in ((net.encoder, our_net.encoder), (net.decoder, our_net.decoder)):
        twins += [(cell, "_ih", our_cell.input, everything), (cell, "_hh", our_cell.recurrent, everything)]
    same: list[tuple[Any, Any, slice]] = []
    for theirs, suffix, layer, rows in twins:
        weight, bias = theirs.parametrizations[f"weight{suffix}"], getattr(theirs, f"bias{suffix}")
        same += [(weight.original0, layer.gain, rows), (weight.original1, layer.v, rows), (bias, layer.b, rows)]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in our_net.parameters())
    with torch.no_grad():
        for p in our_net.parameters():
            nn.init.normal_(p)
        assert our_net.heads.b is not None
        inside_the_image = [-0.1, 0.2, -0.5, 0.5, -0.2, 0.1, -0.1, -1.5, 0.5, 0.2]  # both windows
        our_net.heads.b[size:] = torch.tensor(inside_the_image)
        for theirs, our, rows in same:
            theirs.copy_(our[rows].view_as(theirs))
    x, noise = make_pixels("mnist").train_x[:10].float(), torch.randn(3, 10, 3)
    (log_p_x, kl), expected = net(x, noise), our_net(x, noise)
    torch.testing.assert_close((log_p_x, kl), expected, rtol=1e-4, atol=1e-4)
    (kl.sum(0) - log_p_x).mean().backward()
    (expected[1].sum(0) - expected[0]).mean().backward()
    for theirs, our, rows in same:
        torch.testing.assert_close(theirs.grad, our.grad[rows].view_as(theirs), rtol=1e-3, atol=1e-3)
    optimizers = [torch.optim.Adam(each.parameters(), 0.01) for each in (our_net, net)]
    for _ in range(5):
        noise, losses = torch.randn(3, 10, 3), []
        for each, optimizer in zip((our_net, net), optimizers, strict=True):
            optimizer.zero_grad()
            log_p_x, kl = each(x, noise)
            losses.append(loss := (kl.sum(0) - log_p_x).mean())
            loss.backward()
            nn.utils.clip_grad_norm_(each.parameters(), 10.0)
            optimizer.step()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)


def test_update_of_the_plain_dqn_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients, of one minibatch with terminals."""
    settings: Any = timed_small("dqn")
    our_agent, agent = Dqn(settings, CPU), PlainDqn(settings, CPU)
    for _, layer in layers(our_agent.net):
        nn.init.normal_(layer.gain)
    agent.net = plain.to_torch_layers(our_agent.net)
    our_agent.target, agent.target = fold(our_agent.net), copy.deepcopy(agent.net)
    rng, replay = np.random.default_rng(0), Replay(50, 1)
    for number in range(50):
        screens, ended = rng.integers(256, size=(1, 84, 84), dtype=np.uint8), np.array([number % 7 == 6])
        replay.append(screens, rng.integers(4, size=1), rng.integers(-1, 2, size=1), ended)
    packed = replay.sample(64, rng)
    batch = Batch.unpack(packed)
    assert batch.terminals.any() and not batch.terminals.all()
    seen = replay.gather_screens(batch.rows).numpy()
    monkeypatch.setattr(replay, "sample", lambda *_: packed)
    monkeypatch.setattr(our_agent, "replay", replay)
    actions, rewards, terminals = (part.numpy() for part in batch[1:])
    monkeypatch.setattr(agent, "sample", lambda: (seen[:, :-1], actions, rewards, seen[:, 1:], terminals))
    torch.testing.assert_close(agent.update(), our_agent.update(), rtol=1e-4, atol=0)
    for name, layer in layers(our_agent.net):
        assert layer.b is not None and layer.b.grad is not None and layer.b.grad.any()
        torch.testing.assert_close(agent.net.get_submodule(name).bias.grad, layer.b.grad, rtol=1e-3, atol=1e-3)


def test_plain_dqn_remembers_what_it_played() -> None:
    """A transition's next state is the following one's state, until a game is over; a lost life is terminal before."""
    settings: Any = dataclasses.replace(timed_small("dqn"), replay_steps=400)
    agent = PlainDqn(settings, CPU)
    while agent.agent_steps < 300:
        agent.play(1.0)
    states, actions, rewards, next_states, terminals = (ring[:300] for ring in agent.replay)
    continues = (next_states[:-1] == states[1:]).all((1, 2, 3))
    assert continues[~terminals[:-1]].all() and 0 < (~continues).sum() < terminals.sum()
    assert set(actions) == {0, 1, 2, 3} and set(rewards) == {0, 1}
    assert (states[1:, :-1] == states[:-1, 1:])[continues].all() and states[:, -1].std() > 5

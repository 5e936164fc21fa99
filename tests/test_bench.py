"""The benchmark: every contender really steps, the ratios are paired, the figures are kept with their provenance."""

import dataclasses
import json

import pytest
import torch
from conftest import make_pixels
from torch import nn

from wnrepro import bench
from wnrepro.experiments.draw import DrawNet
from wnrepro.settings import scale_settings

CPU = torch.device("cpu")
SMALL = {
    "cifar": scale_settings("cifar", "paper", "wn", width=4, batch_size=20, init_examples=100),
    "cvae": scale_settings("cvae", "quick", "wn", batch_size=20, init_examples=100),
    "draw": scale_settings("draw", "quick", "wn", batch_size=10, time_steps=3, units=8, latents=3),
}


@pytest.mark.parametrize("experiment", SMALL)
def test_a_small_benchmark_is_stored_beside_others(tmp_path, experiment):
    said = []
    figures = bench.measure(CPU, ["fp32"], 6, SMALL[experiment], said.append)
    assert set(figures["seconds"]) == {"normal", "bn", "wn", "wn+mobn", "plain wn"}
    assert all(len(times) == 6 and min(times) > 0 for times in figures["seconds"].values())
    assert set(figures["ratios"]) == {"plain wn / wn", "bn / normal", "wn / normal", "wn+mobn / normal"}
    assert said[-1] == "round 6 of 6"

    path = bench.store(tmp_path, experiment, figures, CPU)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"another": {"rounds": 1}}))
    assert bench.store(tmp_path, experiment, figures, CPU) == path
    stored = json.loads(path.read_text())
    assert stored["another"] == {"rounds": 1} and stored[experiment]["ratios"] == figures["ratios"]
    assert stored["device_name"] == stored[experiment]["device_name"] and "commit" in stored[experiment]["git"]
    assert "plain wn / wn" in bench.table(figures)


@pytest.mark.parametrize("experiment", SMALL)
@pytest.mark.parametrize("make", [bench.our_step, bench.plain_step])
def test_a_step_trains(monkeypatch, make, experiment):
    monkeypatch.setattr(bench, "random_pixels", lambda _: make_pixels("mnist"))  # unlike noise they can be learnt
    torch.manual_seed(0)
    step = make(dataclasses.replace(SMALL[experiment], lr=0.01), CPU)
    losses = [abs(float(step())) for _ in range(60)]  # ours of the VAE is the bound, the loss's negative
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_plain_draw_starts_as_ours_and_is_the_same_function():
    """Bound, KL of every time step and all gradients, of weights so large that the windows differ."""
    torch.manual_seed(0)
    settings = SMALL["draw"]
    ours, plain = DrawNet(settings), bench.PlainDraw(settings)
    everything, size = slice(None), settings.write_window**2
    twins: list[tuple[nn.Module, str, nn.Module, slice]] = [
        (plain.statistics, "", ours.statistics, everything),
        (plain.patch, "", ours.heads, slice(size)),
        (plain.write_at.window, "", ours.heads, slice(size, size + 5)),
        (plain.read_at.window, "", ours.heads, slice(size + 5, None)),
    ]
    for theirs, cell in ((plain.encoder, ours.encoder), (plain.decoder, ours.decoder)):
        twins += [(theirs, "_ih", cell.input, everything), (theirs, "_hh", cell.recurrent, everything)]
    same = []
    for theirs, suffix, layer, rows in twins:
        weight, bias = theirs.parametrizations[f"weight{suffix}"], getattr(theirs, f"bias{suffix}")
        same += [(weight.original0, layer.gain, rows), (weight.original1, layer.v, rows), (bias, layer.b, rows)]
        assert getattr(theirs, f"weight{suffix}").std().item() == pytest.approx(settings.weight_std, rel=0.3)
        assert not bias.any() and not layer.b.any()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in ours.parameters())
    with torch.no_grad():
        for p in ours.parameters():
            nn.init.normal_(p)
        inside_the_image = [-0.1, 0.2, -0.5, 0.5, -0.2, 0.1, -0.1, -1.5, 0.5, 0.2]
        ours.heads.b[size:] = torch.tensor(inside_the_image)  # both windows
        for theirs, our, rows in same:
            theirs.copy_(our[rows].view_as(theirs))
    x, noise = make_pixels("mnist").train_x[:10].float(), torch.randn(3, 10, 3)
    (log_p_x, kl), expected = plain(x, noise), ours(x, noise)
    torch.testing.assert_close((log_p_x, kl), expected, rtol=1e-4, atol=1e-4)
    (kl.sum(0) - log_p_x).mean().backward()
    (expected[1].sum(0) - expected[0]).mean().backward()
    for theirs, our, rows in same:
        torch.testing.assert_close(theirs.grad, our.grad[rows].view_as(theirs), rtol=1e-3, atol=1e-3)


def test_a_ratio_is_paired_and_has_its_interval():
    slow = [float(n) for n in range(1, 21)]
    ratio = bench.ratio([1.25 * seconds for seconds in slow], slow)
    assert ratio == pytest.approx({"median": 1.25, "low": 1.25, "high": 1.25, "n": 20})
    spread = bench.ratio([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9], 10 * [1.0])
    assert spread["low"] < spread["median"] < spread["high"]
    few = bench.ratio([1.0, 2.0], [1.0, 1.0])
    assert (few["low"], few["high"]) == (1.0, 2.0)

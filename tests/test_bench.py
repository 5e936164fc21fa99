"""The benchmark: every contender really steps, the ratios are paired, the figures are kept with their provenance."""

import dataclasses
import json

import pytest
import torch

from wnrepro import bench
from wnrepro.settings import scale_settings

CPU = torch.device("cpu")
SMALL = {
    "cifar": scale_settings("cifar", "paper", "wn", width=4, batch_size=20, init_examples=100),
    "cvae": scale_settings("cvae", "quick", "wn", batch_size=20, init_examples=100),
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
    path.write_text(json.dumps(stored | {"draw": {"rounds": 1}}))
    assert bench.store(tmp_path, experiment, figures, CPU) == path
    stored = json.loads(path.read_text())
    assert stored["draw"] == {"rounds": 1} and stored[experiment]["ratios"] == figures["ratios"]
    assert stored["device_name"] == stored[experiment]["device_name"] and "commit" in stored[experiment]["git"]
    assert "plain wn / wn" in bench.table(figures)


@pytest.mark.parametrize("experiment", SMALL)
@pytest.mark.parametrize("make", [bench.our_step, bench.plain_step])
def test_a_step_trains(make, experiment):
    torch.manual_seed(0)
    step = make(dataclasses.replace(SMALL[experiment], lr=0.01), CPU)
    losses = [abs(float(step())) for _ in range(60)]  # ours of the VAE is the bound, the loss's negative
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_ratio_is_paired_and_has_its_interval():
    slow = [float(n) for n in range(1, 21)]
    ratio = bench.ratio([1.25 * seconds for seconds in slow], slow)
    assert ratio == pytest.approx({"median": 1.25, "low": 1.25, "high": 1.25, "n": 20})
    spread = bench.ratio([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9], 10 * [1.0])
    assert spread["low"] < spread["median"] < spread["high"]
    few = bench.ratio([1.0, 2.0], [1.0, 1.0])
    assert (few["low"], few["high"]) == (1.0, 2.0)

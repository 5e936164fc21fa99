"""The claims on the classifier: learning rates, sessions of the benchmark, noise, growth of ‖v‖."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import DIVERGED, about, find, make_bench, make_run, make_seeds

from wnrepro import paper
from wnrepro.report.claims.cifar import slowing
from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED
from wnrepro.results import load

RATES = paper.LEARNING_RATES
FIVE = range(1, 6)


def sweep(wn: float, normal: float, rates: tuple[float, ...] = RATES) -> list[dict[str, Any]]:
    speeds = {"wn": about(wn, 0.01 * wn), "normal": about(normal, 0.01 * normal)}
    return [{"param": param, "lr": lr, "speed": speed} for param, speed in speeds.items() for lr in rates]


def test_c5_compares_at_rates_that_both_have_run(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, (1, 2, 3), {"param": "bn"}, {"param": "normal"})  # at 0.003, at 0.0003
    assert find(tmp_path, "C5b").verdict == NOT_RUN
    make_seeds(tmp_path, make_run, range(1, 5), {"param": "bn", "lr": 0.0003})
    make_seeds(tmp_path, make_run, [4], {"param": "normal"})
    assert {run.seed for run in find(tmp_path, "C5b").used} == {2, 3, 4}  # the rate is chosen on the first


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "lr"), [("C5a", 0.001), ("C13", 0.03), ("C14", 0.01)])
def test_a_further_rate_undoes_no_verdict(tmp_path: Path, claim: str, lr: float) -> None:
    sides = sweep(0.6, 0.3, (0.0003, 0.003, *[0.01] * (claim != "C14")))
    lost = [side["param"] == "normal" and claim == "C13" and side["lr"] > 0.0003 for side in sides]
    sides = [side | (DIVERGED if gone else {}) for side, gone in zip(sides, lost, strict=True)]
    make_seeds(tmp_path, make_run, FIVE, *sides)
    before = find(tmp_path, claim)
    make_seeds(tmp_path, make_run, [1], *({"param": param, "lr": lr, "speed": 2.0} for param in ("wn", "normal")))
    after = find(tmp_path, claim)
    assert (before.verdict, [e.n for e in before.estimates]) == (after.verdict, [e.n for e in after.estimates])


def test_c7_judges_one_device_by_its_sessions(tmp_path: Path) -> None:
    make_run(tmp_path, scale="paper")
    for n in range(4):
        make_bench(tmp_path, bn=1.0 + 0.001 * n, name=f"old{n}", device="AMD EPYC, 2 threads", created=f"2026-11-1{n}")
    assert find(tmp_path, "C7a").verdict == NOT_REPRODUCED
    for n in range(3):
        make_bench(tmp_path, bn=1.16 + 0.003 * n, name=f"new{n}", device="NVIDIA H200", created=f"2027-01-0{n + 1}")
        decided = n == 2  # an old CPU's benchmark is no veto, and one session decides nothing
        assert find(tmp_path, "C7a").verdict == (REPRODUCED if decided else INCONCLUSIVE)
    make_bench(tmp_path, bn=1.5, name="newer", device="NVIDIA H200", torch="2.15.0", created="2026-11-29")
    finding = find(tmp_path, "C7a")
    assert (finding.devices, finding.n) == ("NVIDIA H200 with torch 2.13.0, fp32", "3 sessions")
    assert "on AMD EPYC, 2 threads: +0.1 %" in finding.measured


def test_c8_needs_enough_minibatches(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, (1, 2, 3), *({"param": p, "noise_minibatches": 99} for p in ("bn", "wn+mobn")))
    assert find(tmp_path, "C8a").verdict == NOT_RUN


@pytest.mark.parametrize(
    ("lost", "failures"), [(0.01, "wn 0/5, 0/5, 5/5, normal 0/5, 0/5, 5/5"), (1, "wn 0/5, 0/5, 0/5")]
)
def test_c13_a_tie_is_open_and_two_per_cent_is_no_failure(tmp_path: Path, lost: float, failures: str) -> None:
    sides = sweep(0.5, 0.19, RATES[1:])  # normal ends at 2 %, wn at a fifth of a per cent
    make_seeds(tmp_path, make_run, FIVE, *(side | (DIVERGED if side["lr"] == lost else {}) for side in sides))
    finding = find(tmp_path, "C13")
    assert finding.verdict == INCONCLUSIVE and failures in finding.measured


Norm = Callable[[Any, float, float], Any]
GROWTHS: dict[str, tuple[Norm, str]] = {  # ‖v‖ by epoch and rate, of a size that differs by seed
    "slows": (lambda n, rate, size: 1 + size * rate * n**0.5, REPRODUCED),
    "stops": (lambda n, rate, size: 1 + 3 * size * (n * rate).clip(upper=3), REPRODUCED),
    "is linear": (lambda n, rate, size: 1 + size * rate * n, INCONCLUSIVE),
    "speeds up": (lambda n, rate, size: 1 + size * rate * n**2, NOT_REPRODUCED),
    "falls with the rate": (lambda n, rate, size: 1 + size * rate**-0.2 * n**0.5, NOT_REPRODUCED),
    "shrinks": (lambda n, rate, size: 1 - 0.1 * size * n * rate, NOT_REPRODUCED),
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_c14_asks_for_growth_that_slows(tmp_path: Path, growth: str) -> None:
    norm, verdict = GROWTHS[growth]
    for seed, lr in itertools.product((1, 2, 3), (0.0003, 0.003)):
        path = make_run(tmp_path, lr=lr, seed=seed, scale="paper") / "layers.csv"
        table = pd.read_csv(path)
        values = norm(table["epoch"], lr / 0.003, about(0.1, 0.005)(seed))
        table.assign(v_norm_mean=values, v_norm_min=values, v_norm_max=values).to_csv(path, index=False)
    assert find(tmp_path, "C14").verdict == verdict
    if verdict == INCONCLUSIVE:
        assert slowing(load(tmp_path, "paper").of("cifar").figure1[0]) == pytest.approx(0, abs=1e-6)


def test_c16b_compares_one_length_of_the_average(tmp_path: Path) -> None:
    bounded = [{"polyak_epochs": length, "v_norm_max": 0.25} for length in (5.0, 10.0, 20.0, 30.0)]
    make_seeds(tmp_path, make_run, [1], {"polyak_epochs": 10.0}, *bounded)
    assert find(tmp_path, "C16b").estimates[0].n == 1


def test_c19_bounded_runs_that_diverge_do_not_refute(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, FIVE, {}, {"v_norm_max": 0.25, **DIVERGED})
    finding = find(tmp_path, "C19")
    assert finding.verdict == INCONCLUSIVE and "wn with ‖v‖ ≤ 0.25 diverged 100 % [47, 100]" in finding.measured

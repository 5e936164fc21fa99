"""The claims on the classifier: learning rates, sessions of the benchmark, noise, growth of ‖v‖."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import DIVERGED, about, find, make_bench, make_run, make_seeds, wobble

from wnrepro import paper
from wnrepro.report.claims.cifar import slowing
from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED
from wnrepro.results import load

RATES = paper.LEARNING_RATES
FIVE = range(1, 6)


def test_c5_compares_at_rates_that_both_have_run(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, (1, 2, 3), {"param": "bn"}, {"param": "normal"})  # at 0.003, at 0.0003
    assert find(tmp_path, "C5b").verdict == NOT_RUN


def test_c5_leaves_out_the_seed_that_the_rate_is_chosen_on(tmp_path: Path) -> None:
    sides = [{"param": param, "lr": lr} for param in ("wn", "normal") for lr in RATES]
    make_seeds(tmp_path, make_run, range(1, 5), *sides)
    finding = find(tmp_path, "C5a")
    assert {run.seed for run in finding.used} == {2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "lr"), [("C5a", 0.001), ("C13", 0.03), ("C14", 0.01)])
def test_a_further_rate_undoes_no_verdict(tmp_path: Path, claim: str, lr: float) -> None:
    sides = []
    for param, rate in itertools.product(("wn", "normal"), (0.0003, 0.003, 0.01)):
        lost = DIVERGED if param == "normal" and claim == "C13" and rate > 0.0003 else {}
        if not (claim == "C14" and rate == 0.01):
            speed = 0.6 if param == "wn" else 0.3
            sides.append({"param": param, "lr": rate, "speed": about(speed, 0.01 * speed), **lost})
    make_seeds(tmp_path, make_run, range(1, 6), *sides)
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
        make_bench(tmp_path, bn=1.16 + 0.003 * n, name=f"new{n}", device="NVIDIA H200", created=f"2026-11-2{n}")
    finding = find(tmp_path, "C7a")  # an old CPU's benchmark is no veto
    gpu = "NVIDIA H200 with torch 2.13.0, fp32"
    assert (finding.verdict, finding.devices, finding.n) == (REPRODUCED, gpu, "3 sessions")
    assert "AMD EPYC, 2 threads with torch 2.13.0, fp32: +0.1 %" in finding.measured
    make_bench(tmp_path, bn=1.5, name="newer", device="NVIDIA H200", torch="2.15.0", created="2026-11-29")
    assert find(tmp_path, "C7a").devices == gpu


def test_c7_marks_the_code_of_a_session_like_that_of_a_run(tmp_path: Path) -> None:
    make_run(tmp_path, scale="paper")
    for n in range(3):
        make_bench(tmp_path, name=f"s{n}", device="NVIDIA H200", created=f"2027-01-0{n + 1}T00:00:00Z")
    finding = find(tmp_path, "C7a")
    assert (finding.warnings, finding.after_the_fact) == ((), False)
    path = tmp_path / "bench/s1.json"
    bench = json.loads(path.read_text())
    bench["cifar"] |= {"created": "2026-11-01T00:00:00Z", "git": {"commit": "f" * 40, "dirty": True}}
    path.write_text(json.dumps(bench))
    finding = find(tmp_path, "C7a")
    assert finding.warnings == ("Mixed commits: 0123456, fffffff.", "Uncommitted changes: bench/s1.")
    assert (finding.after_the_fact, finding.verdict) == (True, REPRODUCED)


def test_c7_one_session_decides_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, scale="paper")
    make_bench(tmp_path, bn=1.5)
    finding = find(tmp_path, "C7a")
    assert finding.verdict == INCONCLUSIVE and "+50.0" in finding.measured


def test_c8_needs_enough_minibatches(tmp_path: Path) -> None:
    make_seeds(tmp_path, make_run, (1, 2, 3), *({"param": p, "noise_minibatches": 99} for p in ("bn", "wn+mobn")))
    assert find(tmp_path, "C8a").verdict == NOT_RUN


def test_c13_a_tie_is_open(tmp_path: Path) -> None:
    sides = [
        {"param": param, "lr": lr, "speed": 0.4, **(DIVERGED if lr == 0.01 else {})}
        for param, lr in itertools.product(("wn", "normal"), RATES)
    ]
    make_seeds(tmp_path, make_run, FIVE, *sides)
    finding = find(tmp_path, "C13")
    assert finding.verdict == INCONCLUSIVE
    assert "lr 0.01: 5 of 5 and 5 of 5 fail (wn, normal)" in finding.measured


def test_c13_neither_a_fifth_of_a_per_cent_nor_two_is_a_failure(tmp_path: Path) -> None:
    speeds = {"wn": 0.5, "normal": 0.19}.items()  # normal ends at 2 %
    make_seeds(tmp_path, make_run, FIVE, *({"param": p, "lr": lr, "speed": s} for p, s in speeds for lr in RATES))
    assert "0 of 5 and 0 of 5 fail" in find(tmp_path, "C13").measured


def power_law(exponent: float, with_rate: float = 1.0) -> Callable[[Any, float, int], Any]:
    """‖v‖ = 1 + size·epoch^exponent, of a size that grows with the learning rate to the power `with_rate`."""
    size = about(0.1, 0.005)
    return lambda epoch, rate, seed: 1 + size(seed) * rate**with_rate * epoch**exponent


def stopping(epoch: Any, rate: float, seed: int) -> Any:
    return (1 + 0.3 * (epoch * rate).clip(upper=3)) * (1 + 0.001 * epoch * wobble(seed))


def shrinking(epoch: Any, rate: float, seed: int) -> Any:
    return (1 - 0.01 * epoch * rate) * (1 + 0.001 * epoch * wobble(seed))


@pytest.mark.parametrize(
    ("norm", "verdict"),
    [
        (power_law(0.5), REPRODUCED),
        (stopping, REPRODUCED),
        (power_law(1.0), INCONCLUSIVE),  # linear growth does not slow
        (power_law(2.0), NOT_REPRODUCED),
        (power_law(0.5, with_rate=-0.2), NOT_REPRODUCED),
        (shrinking, NOT_REPRODUCED),
    ],
    ids=["slows", "stops", "linear", "speeds up", "falls with the rate", "shrinks"],
)
def test_c14_asks_for_growth_that_slows(tmp_path: Path, norm: Callable[..., Any], verdict: str) -> None:
    for seed, lr in itertools.product((1, 2, 3), (0.0003, 0.003)):
        path = make_run(tmp_path, lr=lr, seed=seed, scale="paper") / "layers.csv"
        table = pd.read_csv(path)
        table["v_norm_mean"] = table["v_norm_min"] = table["v_norm_max"] = norm(table["epoch"], lr / 0.003, seed)
        table.to_csv(path, index=False)
    finding = find(tmp_path, "C14")
    assert finding.verdict == verdict
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

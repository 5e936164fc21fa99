"""Every claim's rule on made-up runs: what holds, what fails, what is open, and what decides nothing."""

import importlib.util
import itertools
import json
import math
import shutil
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import make_bench, make_dqn, make_draw, make_run, make_vae

from wnrepro import paper
from wnrepro.errors import UserError
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.cifar import slowing
from wnrepro.report.claims.claim import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    NOT_YET,
    REPRODUCED,
    RULES,
    Claim,
    Finding,
)
from wnrepro.report.claims.dqn import log_score
from wnrepro.report.claims.draw import reached
from wnrepro.report.stats import LOOKS
from wnrepro.results import load
from wnrepro.settings import GAMES, SETTINGS
from wnrepro.text import interval

BY_ID = {claim.id: claim for claim in CLAIMS}
EMPIRICAL = [claim for claim in CLAIMS if not claim.check]
RATES = (0.0003, 0.001, 0.003, 0.01)


@pytest.fixture(autouse=True)
def small_paper_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's scale with few epochs, so that made-up runs of it are small."""
    cifar = {"epochs": 20, "decay_from": 10, "noise_epochs": (20,), "noise_minibatches": 200}
    monkeypatch.setitem(SETTINGS["cifar"].scales, "paper", cifar)
    of_cifar10 = SETTINGS["cvae"].part_scales["cifar10"]["paper"] | {"epochs": 6}
    monkeypatch.setitem(SETTINGS["cvae"].scales, "paper", {"epochs": 6})
    monkeypatch.setitem(SETTINGS["cvae"].part_scales["cifar10"], "paper", of_cifar10)
    monkeypatch.setitem(SETTINGS["draw"].scales, "paper", {"epochs": 10, "time_steps": 2})
    monkeypatch.setitem(SETTINGS["dqn"].scales, "paper", {"epochs": 4, "epoch_steps": 1000})


def find(results: Path, claim: str, scale: str = "paper") -> Finding:
    return findings(load(results, scale))[claim]


def wobble(seed: int) -> float:
    """A number about 0 for every seed, always the same."""
    return float(np.random.default_rng(seed).normal())


def classifiers(results: Path, seeds: Iterable[int] = (1, 2, 3), scale: str = "paper", **errors: float) -> None:
    for seed in seeds:
        for param, published in paper.TABLE2.items():
            error = errors.get(param.replace("+", "_"), published) + 0.1 * wobble(10 * seed + len(param))
            make_run(results, param, seed=seed, scale=scale, test_error=error / 100)


# ------------------------------------------------------------------------------- what every rule does


def by_seed(make: Callable[..., Any], n: int, **how: Any) -> Callable[[Path], None]:
    """n seeds of a pair of runs. how: what ours and theirs have."""

    def build(results: Path) -> None:
        for seed in range(1, n + 1):
            for one in (how["ours"], how["theirs"]):
                known = {name: value(seed) if callable(value) else value for name, value in one.items()}
                make(results, seed=seed, scale="paper", **known)

    return build


def about(middle: float, spread: float) -> Callable[[int], float]:
    return lambda seed: middle + spread * wobble(seed)


def sweep(faster: str, n: int = 5, diverging: float = 0.003) -> Callable[[Path], None]:
    """wn and normal at four rates, one twice as fast; normal (where wn is the faster) diverges from a rate on."""

    def build(results: Path) -> None:
        for seed in range(1, n + 1):
            for lr in RATES:
                for param in ("wn", "normal"):
                    lost = param != faster and lr >= diverging
                    speed = 0.6 if param == faster else 0.3
                    status, logged = ("diverged", 1) if lost else ("done", None)
                    make_run(results, param, lr=lr, seed=seed, scale="paper", speed=speed, status=status, logged=logged)

    return build


def benches(bn: float, wn: float, mobn: float = 1.03) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        make_run(results, scale="paper")
        for n in range(5):
            shift = 0.004 * wobble(n)
            make_bench(
                results, bn=bn + shift, wn=wn + shift, name=f"s{n}", device="NVIDIA H200", created=f"2026-11-2{n}"
            )

    return build


def games(wn: float, normal: float) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for game in GAMES:
            for seed in (1, 2, 3):
                make_dqn(results, "wn", game, seed=seed, scale="paper", best=wn + wobble(seed), episodes=3)
                make_dqn(results, "normal", game, seed=seed, scale="paper", best=normal + wobble(9 * seed), episodes=3)

    return build


def swept_bn(best: float) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for game, seed in itertools.product(("breakout", "space_invaders"), (1, 2, 3)):
            make_dqn(results, "normal", game, seed=seed, scale="paper", best=100 + wobble(seed), episodes=30)
            for lr in (0.0001, 0.0003, 0.001, 0.003):
                found = best + wobble(3 * seed) if lr == 0.001 else 11.0
                make_dqn(results, "bn", game, lr=lr, seed=seed, scale="paper", best=found, episodes=30)

    return build


def noisy(mobn: dict[str, float], bn: dict[str, float]) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in (1, 2, 3):
            for param, noise in (("wn+mobn", mobn), ("bn", bn)):
                shifted = {name: value + 0.02 * wobble(seed + len(name)) for name, value in noise.items()}
                make_run(results, param, seed=seed, scale="paper", noise=shifted)

    return build


def minded(holds: Any, fails: Any) -> tuple[Any, Any]:
    return holds, fails


def averaged(n: int, ours: float) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in range(1, n + 1):
            make_run(results, seed=seed, scale="paper", test_error=0.08, polyak_epochs=10.0)
            error = ours + 0.0005 * wobble(seed)
            make_run(results, seed=seed, scale="paper", test_error=error, polyak_epochs=10.0, v_norm_max=0.25)

    return build


def vaes(gain: float, n: int = 3, spread: float = 0.05, **how: Any) -> Callable[[Path], None]:
    """Bounds of both data sets: normal's, or wn's without a change, and wn's, better by `gain` (CIFAR-10: × 100)."""

    def build(results: Path) -> None:
        other = {"param": "wn"} if how else {"param": "normal"}
        for dataset, middle, scaled in (("mnist", -84.0, 1.0), ("cifar10", -9000.0, 100.0)):
            for seed in range(1, n + 1):
                base = middle + scaled * wobble(seed)
                ours = base + scaled * (gain + spread * wobble(50 + seed))
                make_vae(results, "wn", dataset, seed=seed, scale="paper", bound=ours, **how)
                make_vae(results, dataset=dataset, seed=seed, scale="paper", bound=base, **other)

    return build


def spreads(wn: float, normal: float) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in range(1, 6):
            for param, spread in (("wn", wn), ("normal", normal)):
                bound = -84 + spread * (wobble(seed) + 0.05 * wobble(seed + len(param)))
                make_vae(results, param, seed=seed, scale="paper", bound=bound)

    return build


def draws(speed: float, **how: Any) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in (1, 2, 3):
            make_draw(results, "wn", seed=seed, scale="paper", speed=speed + 0.02 * wobble(seed), **how)
            make_draw(results, "normal", seed=seed, scale="paper")

    return build


def exponents(error: float) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in range(1, 6):
            make_run(results, seed=seed, scale="paper", test_error=0.08)
            for c in (1.0, 3.0, 5.0):
                make_run(results, seed=seed, scale="paper", test_error=error + 0.0005 * wobble(seed), g_exp=c)

    return build


def speeds(**of: float) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in (1, 2, 3):
            for param, speed in of.items():
                name = param.replace("_", "+")
                make_run(results, name, seed=seed, scale="paper", speed=speed * (1 + 0.002 * wobble(seed + len(param))))

    return build


def normals(diverged: int, n: int = 10) -> Callable[[Path], None]:
    def build(results: Path) -> None:
        for seed in range(1, n + 1):
            status, logged = ("diverged", 1) if seed <= diverged else ("done", None)
            make_run(results, "normal", lr=0.003, seed=seed, scale="paper", status=status, logged=logged)

    return build


GAUSSIAN, HEAVY = {"kurtosis_mean": 0.0, "noise_size": 0.2}, {"kurtosis_inverse_std": 2.5, "noise_size": 0.5}
WORLDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "C4a": (
        lambda results: classifiers(results, range(1, 11)),
        lambda results: classifiers(results, range(1, 11), bn=9.4),
    ),
    "C4b": (
        lambda results: classifiers(results, range(1, 11)),
        lambda results: classifiers(results, range(1, 11), bn=9.4),
    ),
    "C5a": (sweep("wn"), sweep("normal")),
    "C5b": (
        by_seed(make_run, 4, ours={"param": "bn", "speed": 0.6}, theirs={"param": "normal", "lr": 0.003, "speed": 0.3}),
        by_seed(make_run, 4, ours={"param": "bn", "speed": 0.3}, theirs={"param": "normal", "lr": 0.003, "speed": 0.6}),
    ),
    "C6": (normals(9), normals(0)),
    "C7a": (benches(1.16, 1.0), benches(1.0, 1.0)),
    "C7b": (benches(1.16, 1.0), benches(1.16, 1.1)),
    "C8a": (noisy(GAUSSIAN, HEAVY), noisy(GAUSSIAN | {"kurtosis_mean": 1.5}, HEAVY)),
    "C8b": (noisy(GAUSSIAN, HEAVY), noisy(GAUSSIAN, HEAVY | {"kurtosis_inverse_std": 0.0})),
    "C8c": (noisy(GAUSSIAN, HEAVY), noisy(GAUSSIAN | {"noise_size": 0.9}, HEAVY)),
    "C9a": (vaes(0.8), vaes(-0.8)),
    "C9b": (spreads(0.3, 1.0), spreads(1.0, 0.3)),
    "C10a": (draws(1.8), draws(0.5)),
    "C10b": (draws(1.8, g_start=1.0), draws(0.5, g_start=1.0)),
    "C11": (games(100, 50), games(50, 100)),
    "C12": (swept_bn(12), swept_bn(95)),
    "C13": (sweep("wn", 10), sweep("normal", 10)),
    "C15": (exponents(0.08), exponents(0.1)),
    "C16a": (vaes(0.8, v_norm_max=0.25), vaes(-0.8, v_norm_max=0.25)),
    "C16b": (averaged(5, 0.08), averaged(5, 0.07)),
    "C17": (benches(1.16, 1.0), benches(1.0, 1.0)),
    "C18a": (speeds(bn=0.6, wn=0.3), speeds(bn=0.3, wn=0.6)),
    "C18b": (speeds(bn=0.6, wn=0.6, wn_mobn=0.6), speeds(bn=0.6, wn=0.1, wn_mobn=0.6)),
    "C19": (
        by_seed(make_run, 3, ours={"v_norm_max": 0.25, "speed": 0.4}, theirs={"speed": 0.4}),
        by_seed(make_run, 3, ours={"v_norm_max": 0.25, "speed": 0.6}, theirs={"speed": 0.3}),
    ),
}


def test_every_empirical_claim_is_tried() -> None:
    assert {claim.id for claim in EMPIRICAL} == WORLDS.keys() | {"C14"}
    assert all(claim.claim and claim.where and claim.paper and claim.rule for claim in EMPIRICAL)


@pytest.mark.parametrize("claim", WORLDS)
def test_what_holds_is_reproduced_and_what_does_not_is_not(tmp_path: Path, claim: str) -> None:
    for number, (build, expected) in enumerate(zip(WORLDS[claim], (REPRODUCED, NOT_REPRODUCED), strict=True)):
        build(tmp_path / str(number))
        finding = find(tmp_path / str(number), claim)
        assert finding.verdict == expected, finding.measured
        assert finding.power and finding.estimates


@pytest.mark.parametrize("claim", sorted(WORLDS.keys() - {"C7a", "C7b", "C17"}))
def test_the_same_runs_at_another_scale_have_an_estimate_and_no_verdict(
    tmp_path: Path, claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WORLDS[claim][1](tmp_path)
    paper_finding = find(tmp_path, claim)
    for scales in (*(one.scales for one in SETTINGS.values()), *SETTINGS["cvae"].part_scales.values()):
        monkeypatch.setitem(scales, "short", scales["paper"])
    (tmp_path / "paper").rename(tmp_path / "short")
    for config in (tmp_path / "short").glob("*/*/*/config.json"):
        config.write_text(config.read_text().replace('"scale": "paper"', '"scale": "short"'))
    finding = find(tmp_path, claim, "short")
    assert finding.verdict == NOT_TESTABLE
    assert finding.estimates == paper_finding.estimates


def test_at_quick_and_short_no_empirical_claim_has_a_verdict(tmp_path: Path) -> None:
    for scale in ("quick", "short"):
        classifiers(tmp_path, scale=scale)
        make_bench(tmp_path)
        found = findings(load(tmp_path, scale))
        verdicts = {found[claim.id].verdict for claim in EMPIRICAL}
        assert verdicts == {NOT_TESTABLE, NOT_RUN}
        assert found["C1"].verdict == found["C3"].verdict == REPRODUCED


# ------------------------------------------------------------------------------- the cases that decide nothing


def test_unfinished_runs_have_an_estimate_and_no_verdict(tmp_path: Path) -> None:
    for seed in range(1, 7):
        for param, bound in (("wn", -80.0), ("normal", -84.0)):
            how: dict[str, Any] = {"seed": seed, "scale": "paper", "status": "running", "logged": 4}
            make_vae(tmp_path, param, bound=bound + 0.1 * wobble(seed), **how)
    finding = find(tmp_path, "C9a")
    assert finding.verdict == NOT_YET and "mnist +" in finding.measured and "(n = 5)" in finding.measured


def test_finished_pairs_alone_are_judged_where_there_are_some(tmp_path: Path) -> None:
    draws(1.8)(tmp_path)
    before = find(tmp_path, "C10a")
    for param in ("wn", "normal"):
        make_draw(tmp_path, param, seed=4, scale="paper", status="running", logged=3)
        make_draw(tmp_path, param, seed=5, scale="paper", status="failed", logged=3)
    assert find(tmp_path, "C10a") == before


def test_two_seeds_decide_nothing(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_draw(tmp_path, "wn", seed=seed, scale="paper", speed=3 + 0.01 * seed)
        make_draw(tmp_path, "normal", seed=seed, scale="paper")
    assert find(tmp_path, "C10a").verdict == INCONCLUSIVE


def test_between_two_looks_the_first_seeds_alone_count(tmp_path: Path) -> None:
    draws(1.8)(tmp_path)
    before = find(tmp_path, "C10a")
    make_draw(tmp_path, "wn", seed=4, scale="paper", speed=0.1)
    make_draw(tmp_path, "normal", seed=4, scale="paper")
    finding = find(tmp_path, "C10a")
    assert finding.estimates == before.estimates and finding.verdict == REPRODUCED
    make_draw(tmp_path, "wn", seed=5, scale="paper", speed=0.1)
    make_draw(tmp_path, "normal", seed=5, scale="paper")
    assert find(tmp_path, "C10a").estimates[0].n == 5 and find(tmp_path, "C10a").verdict == INCONCLUSIVE


def test_a_copied_folder_is_no_seed(tmp_path: Path) -> None:
    classifiers(tmp_path, (1,))
    folder = tmp_path / "paper/cifar/wn+mobn_lr0.003"
    shutil.copytree(folder, folder.with_name("wn+mobn_lr0.003 copy"))
    with pytest.raises(UserError, match=r"wn\+mobn_lr0.003 copy"):
        find(tmp_path, "C4a")
    shutil.rmtree(folder.with_name("wn+mobn_lr0.003 copy"))
    shutil.copytree(folder / "seed-1", folder / "seed-2")
    with pytest.raises(UserError, match="seed-2"):
        find(tmp_path, "C4a")


def test_one_divergence_in_20_refutes_nothing(tmp_path: Path) -> None:
    for seed in range(1, 21):
        lost: dict[str, Any] = {"status": "diverged", "logged": 2} if seed == 7 else {}
        make_draw(tmp_path, "wn", seed=seed, scale="paper", speed=1.8 + 0.02 * wobble(seed), **lost)
        make_draw(tmp_path, "normal", seed=seed, scale="paper")
    finding = find(tmp_path, "C10a")
    assert finding.verdict == REPRODUCED
    assert "wn diverged 10 % [0, 45]" in finding.measured and finding.estimates[0].n == 9


def test_where_every_run_diverges_the_claim_is_refuted(tmp_path: Path) -> None:
    for seed in range(1, 6):
        make_draw(tmp_path, "wn", seed=seed, scale="paper", status="diverged", logged=2)
        make_draw(tmp_path, "normal", seed=seed, scale="paper")
    finding = find(tmp_path, "C10a")
    assert finding.verdict == NOT_REPRODUCED and "wn diverged 100 % [47, 100]" in finding.measured
    for param in paper.TABLE2:
        for seed in range(1, 6):
            make_run(tmp_path, param, seed=seed, scale="paper", status="diverged", logged=1)
    assert find(tmp_path, "C4a").verdict == find(tmp_path, "C4b").verdict == NOT_REPRODUCED
    for seed in range(1, 6):
        make_run(tmp_path, "normal", lr=0.003, seed=seed, scale="paper", status="diverged", logged=1)
    assert find(tmp_path, "C5a").verdict == NOT_REPRODUCED


def test_where_only_normal_diverges_nothing_is_reproduced(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_draw(tmp_path, "wn", seed=seed, scale="paper")
        make_draw(tmp_path, "normal", seed=seed, scale="paper", status="diverged", logged=2)
    finding = find(tmp_path, "C10a")
    assert finding.verdict == INCONCLUSIVE and "normal diverged in 3 seeds" in finding.measured


def test_precisions_are_never_pooled(tmp_path: Path) -> None:
    draws(1.8)(tmp_path)
    before = find(tmp_path, "C10a")
    for seed in range(4, 10):
        make_draw(tmp_path, "wn", seed=seed, scale="paper", speed=0.5, precision="bf16")
        make_draw(tmp_path, "normal", seed=seed, scale="paper", precision="bf16")
    assert find(tmp_path, "C10a") == before  # fp32 has fewer runs
    other = findings(load(tmp_path, "paper", "bf16"))["C10a"]
    assert other.verdict != REPRODUCED and other.estimates[0].n == 5
    assert any("bf16" in note for note in load(tmp_path, "paper").notes)


def test_binarizations_are_never_compared(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_draw(tmp_path, "wn", seed=seed, scale="paper", binarization="seeded")
        make_draw(tmp_path, "normal", seed=seed, scale="paper")
    assert find(tmp_path, "C10a").verdict == NOT_RUN


def test_what_is_mixed_is_said(tmp_path: Path) -> None:
    draws(1.8)(tmp_path)
    assert find(tmp_path, "C10a").warnings == ()
    path = tmp_path / "paper/draw/wn_lr0.0003/seed-2/run.json"
    run = json.loads(path.read_text())
    run["git"] = {"commit": "f" * 40, "dirty": True}
    run["versions"]["torch"], run["device_name"] = "2.11.0", "NVIDIA H200"
    path.write_text(json.dumps(run))
    said = " ".join(find(tmp_path, "C10a").warnings)
    assert "Mixed commits: 0123456, fffffff." in said and "Mixed torch versions: 2.11.0, 2.13.0." in said
    assert "Mixed devices: AMD EPYC, 2 threads, NVIDIA H200." in said
    assert "Uncommitted changes: draw/wn_lr0.0003/seed-2." in said


def test_a_number_that_is_not_finite_leaves_the_claim_open(tmp_path: Path) -> None:
    draws(1.8)(tmp_path)
    path = tmp_path / "paper/draw/wn_lr0.0003/seed-2/metrics.csv"
    *rows, last = path.read_text().splitlines()
    cells = last.split(",")
    path.write_text("\n".join([*rows, ",".join([*cells[:3], "nan", *cells[4:]])]) + "\n")
    finding = find(tmp_path, "C10a")
    assert finding.verdict == INCONCLUSIVE and "not finite: draw/wn_lr0.0003/seed-2" in finding.measured


def test_holm_over_all_empirical_claims_stands_beside_the_verdict(tmp_path: Path) -> None:
    """Whatever else has runs: the family is all empirical claims."""
    for seed, speed in ((1, 1.75), (2, 1.45), (3, 1.6)):
        make_draw(tmp_path, "wn", seed=seed, scale="paper", speed=speed)
        make_draw(tmp_path, "normal", seed=seed, scale="paper")
    finding = find(tmp_path, "C10a")
    assert finding.verdict == REPRODUCED and finding.holm == pytest.approx(min(1, 25 * finding.p_holds))
    assert "does not stand after Holm's correction over 25 claims (p = " in finding.measured
    (tmp_path / "other").mkdir()
    draws(1.8)(tmp_path / "other")
    assert "; stands after Holm's correction over 25 claims" in find(tmp_path / "other", "C10a").measured


# ------------------------------------------------------------------------------- single rules


def test_c1_takes_the_worst_run_and_counts_distinct_residuals(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=2)
    finding = find(tmp_path, "C1", "short")
    assert finding.verdict == REPRODUCED and "eq3_residual ≤ 1.0e-16 (n = 1)" in finding.measured
    make_run(tmp_path, seed=3, facts={"eq3_residual": 1.01e-9})
    finding = find(tmp_path, "C1", "short")
    assert finding.verdict == NOT_REPRODUCED and "eq3_residual ≤ 1.1e-09 (n = 2)" in finding.measured


def test_c3_needs_all_four_of_a_start(tmp_path: Path) -> None:
    for param in ("wn", "bn", "normal"):
        make_run(tmp_path, param)
    assert find(tmp_path, "C3", "short").verdict == INCONCLUSIVE
    make_run(tmp_path, "wn+mobn")
    assert find(tmp_path, "C3", "short").verdict == REPRODUCED
    for param, loss in zip(paper.TABLE2, (2.8, 2.8, 2.9, 2.8), strict=True):
        make_run(tmp_path, param, seed=2, facts={"init_loss": loss})
    assert find(tmp_path, "C3", "short").verdict == NOT_REPRODUCED


def test_c5_compares_at_rates_that_both_have_run(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path, "bn", seed=seed, scale="paper")  # at lr 0.003
        make_run(tmp_path, "normal", seed=seed, scale="paper")  # at lr 0.0003
    assert find(tmp_path, "C5b").verdict == NOT_RUN


def test_c7_judges_one_device_by_its_sessions(tmp_path: Path) -> None:
    make_run(tmp_path, scale="paper")
    for n in range(4):
        make_bench(tmp_path, bn=1.0 + 0.001 * n, name=f"old{n}", device="AMD EPYC, 2 threads", created=f"2026-11-1{n}")
    assert find(tmp_path, "C7a").verdict == NOT_REPRODUCED
    for n in range(3):
        make_bench(tmp_path, bn=1.16 + 0.003 * n, name=f"new{n}", device="NVIDIA H200", created=f"2026-11-2{n}")
    finding = find(tmp_path, "C7a")  # an old CPU's benchmark is no veto
    assert finding.verdict == REPRODUCED and finding.devices == "NVIDIA H200 with torch 2.13.0, fp32"
    assert finding.n == "3 sessions" and "AMD EPYC, 2 threads with torch 2.13.0, fp32: +0.1 %" in finding.measured
    make_bench(tmp_path, bn=1.5, name="newer", device="NVIDIA H200", torch="2.15.0", created="2026-11-29")
    assert find(tmp_path, "C7a").devices == "NVIDIA H200 with torch 2.13.0, fp32"


def test_c7_says_which_code_timed_it(tmp_path: Path) -> None:
    """As of runs: mixed commits, uncommitted changes, and a rule that is younger than a session."""
    make_run(tmp_path, scale="paper")
    for n in range(3):
        make_bench(tmp_path, name=f"s{n}", device="NVIDIA H200", created=f"2027-01-0{n + 1}T00:00:00Z")
    finding = find(tmp_path, "C7a")
    assert finding.warnings == () and not finding.after_the_fact and finding.n == "3 sessions"
    path = tmp_path / "bench/s1.json"
    bench = json.loads(path.read_text())
    bench["cifar"] |= {"created": "2026-11-01T00:00:00Z", "git": {"commit": "f" * 40, "dirty": True}}
    path.write_text(json.dumps(bench))
    finding = find(tmp_path, "C7a")
    assert finding.warnings == ("Mixed commits: 0123456, fffffff.", "Uncommitted changes: bench/s1.")
    assert finding.after_the_fact and finding.verdict == REPRODUCED


def test_one_session_decides_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, scale="paper")
    make_bench(tmp_path, bn=1.5)
    finding = find(tmp_path, "C7a")
    assert finding.verdict == INCONCLUSIVE and "+50.0" in finding.measured


def test_c8_needs_the_statistics_themselves_on_enough_minibatches(tmp_path: Path) -> None:
    for param in ("bn", "wn+mobn"):
        for seed in (1, 2, 3):
            make_run(tmp_path, param, seed=seed, scale="paper", noise_minibatches=99)
    assert find(tmp_path, "C8a").verdict == NOT_RUN


def test_c13_a_tie_is_open(tmp_path: Path) -> None:
    for seed in range(1, 6):
        for lr in RATES:
            for param in ("wn", "normal"):
                status, logged = ("diverged", 1) if lr == 0.01 else ("done", None)
                make_run(tmp_path, param, lr=lr, seed=seed, scale="paper", speed=0.4, status=status, logged=logged)
    finding = find(tmp_path, "C13")
    assert finding.verdict == INCONCLUSIVE and "lr 0.01: 5 of 5 and 5 of 5 fail (wn, normal)" in finding.measured


def test_c13_neither_a_fifth_of_a_per_cent_nor_two_is_a_failure(tmp_path: Path) -> None:
    for seed in range(1, 6):
        for lr in RATES:
            make_run(tmp_path, "wn", lr=lr, seed=seed, scale="paper", speed=0.5)
            make_run(tmp_path, "normal", lr=lr, seed=seed, scale="paper", speed=0.19)  # ends at 2 %
    assert "0 of 5 and 0 of 5 fail" in find(tmp_path, "C13").measured


def norm_growth(results: Path, exponent: float, faster: float = 1.0) -> None:
    """wn at two rates: ‖v‖ = 1 + size·epoch^exponent, of a size that grows with the rate to the power `faster`."""
    for seed in (1, 2, 3):
        for lr in (0.0003, 0.003):
            folder = make_run(results, lr=lr, seed=seed, scale="paper")
            lines = (folder / "layers.csv").read_text().splitlines()
            rows = [lines[0]]
            for line in lines[1:]:
                epoch, layer, *rest = line.split(",")
                size = 0.1 * (1 + 0.05 * wobble(seed)) * (lr / 0.003) ** faster
                norm = 1 + size * int(epoch) ** exponent
                rows.append(",".join([epoch, layer, *[f"{norm:.12f}"] * 3, *rest[3:]]))
            (folder / "layers.csv").write_text("\n".join(rows) + "\n")


def test_c14_growth_that_slows(tmp_path: Path) -> None:
    norm_growth(tmp_path, 0.5)
    assert find(tmp_path, "C14").verdict == REPRODUCED


def test_c14_linear_growth_does_not_slow(tmp_path: Path) -> None:
    norm_growth(tmp_path, 1.0)
    run = load(tmp_path, "paper").of("cifar").figure1[0]
    assert slowing(run) == pytest.approx(0, abs=1e-6)
    assert find(tmp_path, "C14").verdict != REPRODUCED


def test_c14_growth_that_speeds_up_or_falls_with_the_rate_fails(tmp_path: Path) -> None:
    norm_growth(tmp_path / "a", 2.0)
    assert find(tmp_path / "a", "C14").verdict == NOT_REPRODUCED
    norm_growth(tmp_path / "b", 0.5, faster=-0.2)
    assert find(tmp_path / "b", "C14").verdict == NOT_REPRODUCED


def test_c12_bn_that_diverges_gains_nothing_and_all_rates_and_both_games_are_needed(tmp_path: Path) -> None:
    how: dict[str, Any] = {"scale": "paper", "episodes": 30}
    lost: dict[str, Any] = how | {"status": "diverged", "logged": 2}
    for seed in (1, 2, 3):
        make_dqn(tmp_path, "normal", seed=seed, best=100.0, **how)
        for lr in (0.0001, 0.0003, 0.001):
            make_dqn(tmp_path, "bn", lr=lr, seed=seed, **lost)
    assert find(tmp_path, "C12").verdict == NOT_RUN
    for seed in (1, 2, 3):
        make_dqn(tmp_path, "bn", lr=0.003, seed=seed, **lost)
    assert find(tmp_path, "C12").verdict == INCONCLUSIVE  # one game
    for seed in (1, 2, 3):
        make_dqn(tmp_path, "normal", "space_invaders", seed=seed, best=100.0, **how)
        for lr in (0.0001, 0.0003, 0.001, 0.003):
            make_dqn(tmp_path, "bn", "space_invaders", lr=lr, seed=seed, **lost)
    finding = find(tmp_path, "C12")
    assert finding.verdict == REPRODUCED and "share of normal's gain 0 % [0, 0]" in finding.measured
    assert "Breakout: normal has learnt in 3 of 3 seeds" in finding.measured
    for path in (tmp_path / "paper/dqn").glob("breakout_normal_*/seed-*/metrics.csv"):  # unlike its games
        table = pd.read_csv(path)
        table.assign(test_score=10.0).to_csv(path, index=False)
    finding = find(tmp_path, "C12")  # a share of no gain
    assert finding.verdict == INCONCLUSIVE and "not finite: dqn/breakout_normal_lr0.0001/seed-1" in finding.measured


def test_scores_of_any_size_have_a_ratio(tmp_path: Path) -> None:
    pair = [make_dqn(tmp_path, param, scale="paper") for param in ("wn", "normal")]
    for folder, score in zip(pair, (1e-320, 1e30), strict=True):
        table = pd.read_csv(folder / "metrics.csv")
        table.assign(test_score=score).to_csv(folder / "metrics.csv", index=False)
    normal, wn = load(tmp_path, "paper").runs
    assert log_score(wn, normal) == pytest.approx(math.log(1e-320) - math.log(1e30))


def test_c11_needs_all_four_games(tmp_path: Path) -> None:
    games(100, 50)(tmp_path)
    shutil.rmtree(next((tmp_path / "paper/dqn").glob("enduro_wn_*")))
    finding = find(tmp_path, "C11")
    assert finding.verdict == INCONCLUSIVE and "no pair of Enduro" in finding.measured


@pytest.mark.parametrize(
    ("bounds", "target", "expected"),
    [
        ([-90.0, -80.0], -95.0, 1.0),  # not before epoch 1
        ([-100.0, -90.0, -80.0], -82.5, 2.75),
        ([-100.0, -90.0, -80.0], -80.0, 3.0),
        ([-100.0, -80.0, -90.0, -70.0], -85.0, 1.75),  # the first time
        ([-100.0, -90.0], -89.0, math.inf),
        ([], -90.0, math.inf),
    ],
)
def test_reached(bounds: list[float], target: float, expected: float) -> None:
    assert reached(bounds, target) == pytest.approx(expected)


def test_intervals_are_rounded_outward() -> None:
    assert interval(1.381, 4.449, 2, sign=True) == "[+1.38, +4.45]"
    assert interval(-1.381, -0.009, 2) == "[−1.39, 0.00]"
    assert interval(0.1, 0.2, 1, 100) == "[10.0, 20.0]"  # exact ends stay
    assert interval(math.nan, 1.0, 2) == ""


def test_bounded_runs_that_diverge_do_not_refute_that_the_bound_is_no_help(tmp_path: Path) -> None:
    for seed in range(1, 6):
        make_run(tmp_path, seed=seed, scale="paper")
        make_run(tmp_path, seed=seed, scale="paper", v_norm_max=0.25, status="diverged", logged=2)
    finding = find(tmp_path, "C19")
    assert finding.verdict == INCONCLUSIVE and "wn with ‖v‖ ≤ 0.25 diverged 100 % [47, 100]" in finding.measured


def test_c16b_compares_one_length_of_the_average(tmp_path: Path) -> None:
    make_run(tmp_path, scale="paper", polyak_epochs=10.0)
    for length in (5.0, 10.0, 20.0, 30.0):
        make_run(tmp_path, scale="paper", polyak_epochs=length, v_norm_max=0.25)
    assert find(tmp_path, "C16b").estimates[0].n == 1


@pytest.mark.parametrize(("claim", "lr"), [("C5a", 0.001), ("C13", 0.03), ("C14", 0.01)])
def test_a_further_rate_undoes_no_verdict(tmp_path: Path, claim: str, lr: float) -> None:
    for seed in range(1, 11):
        for rate in (0.0003, 0.003, 0.01):
            lost = claim == "C13" and rate > 0.0003
            for param in ("wn", "normal"):
                status, logged = ("diverged", 1) if param == "normal" and lost else ("done", None)
                speed = (0.6 if param == "wn" else 0.3) * (1 + 0.01 * wobble(seed))
                if not (claim == "C14" and rate == 0.01):
                    how: dict[str, Any] = {"lr": rate, "seed": seed, "scale": "paper", "status": status}
                    make_run(tmp_path, param, speed=speed, logged=logged, **how)
    before = find(tmp_path, claim)
    for param in ("wn", "normal"):
        make_run(tmp_path, param, lr=lr, scale="paper", speed=2.0)
    after = find(tmp_path, claim)
    assert before.verdict == after.verdict and [e.n for e in before.estimates] == [e.n for e in after.estimates]


def test_c5_leaves_out_the_seed_that_the_rate_is_chosen_on(tmp_path: Path) -> None:
    sweep("wn", 4)(tmp_path)
    finding = find(tmp_path, "C5a")
    assert finding.estimates[0].n == 3 and all(run.seed > 1 for run in finding.used)


def test_c10_a_wn_that_gets_worse_is_not_faster(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        folder = make_draw(tmp_path, "wn", seed=seed, scale="paper")
        lines = (folder / "metrics.csv").read_text().splitlines()
        for number, line in enumerate(lines[1:], start=1):
            cells = line.split(",")
            cells[3] = f"{-100 - 5.0 * number}"
            lines[number] = ",".join(cells)
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        make_draw(tmp_path, "normal", seed=seed, scale="paper")
    finding = find(tmp_path, "C10a")
    assert finding.verdict == NOT_REPRODUCED, finding.measured


def test_c14_growth_that_stops_has_slowed_and_shrinking_fails(tmp_path: Path) -> None:
    for name, norm in (("stops", lambda e: 1 + 0.3 * min(e, 3)), ("shrinks", lambda e: 1 - 0.01 * e)):
        for seed in (1, 2, 3):
            for lr in (0.0003, 0.003):
                folder = make_run(tmp_path / name, lr=lr, seed=seed, scale="paper")
                lines = (folder / "layers.csv").read_text().splitlines()
                for number, line in enumerate(lines[1:], start=1):
                    epoch, layer, *rest = line.split(",")
                    size = norm(int(epoch) * lr / 0.003) * (1 + 0.001 * int(epoch) * wobble(seed))
                    lines[number] = ",".join([epoch, layer, *[f"{size:.9f}"] * 3, *rest[3:]])
                (folder / "layers.csv").write_text("\n".join(lines) + "\n")
    assert find(tmp_path / "stops", "C14").verdict == REPRODUCED
    assert find(tmp_path / "shrinks", "C14").verdict == NOT_REPRODUCED


def test_a_done_run_that_lacks_epochs_is_not_judged(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_draw(tmp_path, "wn", seed=seed, scale="paper", speed=3.0, logged=5)
        make_draw(tmp_path, "normal", seed=seed, scale="paper", logged=5)
    assert find(tmp_path, "C10a").verdict == NOT_YET


# ------------------------------------------------------------------------------- power, and rules fixed beforehand


def simulation() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("power", Path(__file__).parents[1] / "scripts/power.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("claim", EMPIRICAL, ids=lambda claim: claim.id)
def test_the_table_of_power_is_what_the_simulation_gives(claim: Claim) -> None:
    tries, verdicts = 300, simulation().verdicts
    promised = [row for n in LOOKS if (row := claim.power(n))]
    for row in promised:
        expected = ((True, row.true, row.true_refuted), (False, row.null, row.null_refuted))
        for true, *shares in expected:
            for share, found in zip(shares, verdicts(claim, row.n, true, tries, seed=7), strict=True):
                assert found == pytest.approx(share, abs=4 * math.sqrt(max(share * (1 - share), 0.01) / tries))
        assert row.null <= 0.055 and row.true_refuted <= 0.03  # 5 %, and the error of 4000 tries
    assert [row.true for row in promised] == sorted(row.true for row in promised)
    assert promised[-1].true >= 0.8 or claim.id == "C11"
    assert claim.power(2) is None and claim.power(9) == promised[1] and len(promised) == len(LOOKS)


def test_the_rules_are_those_of_the_last_version() -> None:
    """A changed rule is a new version, with the commit that fixes it: see `scripts/rules.py`."""
    versions = json.loads(RULES.read_text())
    assert versions[-1]["rules"] == {claim.id: claim.hash for claim in CLAIMS}
    assert all(len(one["commit"]) == 40 and one["date"] for one in versions)


def test_a_rule_that_is_younger_than_a_run_is_marked(tmp_path: Path) -> None:
    draws(1.8)(tmp_path)
    assert not find(tmp_path, "C10a").after_the_fact
    path = tmp_path / "paper/draw/wn_lr0.0003/seed-2/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": "2026-11-01T00:00:00Z"}))
    assert find(tmp_path, "C10a").after_the_fact


def test_draw_says_where_wn_never_reaches_normals_bound(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_draw(tmp_path, "normal", seed=seed, bound=-90.0)
    make_draw(tmp_path, "wn", bound=-300.0)
    make_draw(tmp_path, "wn", seed=2, bound=-80.0)
    make_draw(tmp_path, "wn", seed=3, status="diverged", logged=0)
    found = findings(load(tmp_path, "short"))
    assert "; wn does not reach normal's bound in 1 of 2 seeds; " in found["C10a"].measured
    shutil.rmtree(tmp_path / "short" / "draw" / "wn_lr0.0003" / "seed-1")
    assert "does not reach" not in findings(load(tmp_path, "short"))["C10a"].measured

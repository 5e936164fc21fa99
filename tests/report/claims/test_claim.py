"""Every claim's rule on made-up runs: what holds, what fails, what is open, and what decides nothing."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import (
    DIVERGED,
    about,
    edit_column,
    find,
    make_bench,
    make_dqn,
    make_draw,
    make_run,
    make_seeds,
    make_vae,
)

import wnrepro
from wnrepro import paper
from wnrepro.report.claims import CLAIMS, EMPIRICAL, Claim, findings
from wnrepro.report.claims.claim import INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTABLE, NOT_YET, REPRODUCED
from wnrepro.report.stats import LOOKS
from wnrepro.results import load
from wnrepro.settings import GAMES
from wnrepro.tools import power

RATES = paper.LEARNING_RATES
WN, NORMAL, BOUND = {"param": "wn"}, {"param": "normal"}, {"v_norm_max": 0.25}
wobble = about(0, 1)
GAUSSIAN, HEAVY = {"kurtosis_mean": 0.0, "noise_size": 0.2}, {"kurtosis_inverse_std": 2.5, "noise_size": 0.5}
Side = dict[str, Any]
World = tuple[Callable[..., Any], int, list[Side]]  # what makes a run, the number of seeds, the sides


def errors(bn: float) -> World:
    table = paper.TABLE2 | {"bn": bn}
    return make_run, 10, [{"param": p, "test_error": about(e / 100, 0.001, 99 * len(p))} for p, e in table.items()]


def speeds(n: int, **speed: float) -> World:
    rate = {"lr": 0.003}
    return make_run, n, [{"param": p.replace("_", "+"), "speed": about(s, 0.002 * s), **rate} for p, s in speed.items()]


def sweep(faster: str, n: int = 5) -> World:
    """wn and normal at four rates, one twice as fast; the other diverges from 0.003 on."""
    sides = [
        {"param": p, "lr": lr, "speed": 0.6 if p == faster else 0.3} | (DIVERGED if p != faster and lr > 0.002 else {})
        for p, lr in itertools.product(("wn", "normal"), RATES)
    ]
    return make_run, n, sides


def benches(bn: float, wn: float) -> World:
    def make(results: Path, seed: int, scale: str) -> None:
        if seed == 1:
            make_run(results, scale=scale)
        created, shift = f"2026-11-2{seed}", 0.004 * wobble(seed)
        make_bench(results, bn + shift, wn + shift, f"s{seed}", device="NVIDIA H200", created=created)

    return make, 5, [{}]


def noise(mobn: dict[str, float], bn: dict[str, float]) -> World:
    def shifted(columns: dict[str, float]) -> Callable[[int], dict[str, float]]:
        return lambda seed: {name: value + 0.02 * wobble(seed + len(name)) for name, value in columns.items()}

    return make_run, 3, [{"param": "wn+mobn", "noise": shifted(mobn)}, {"param": "bn", "noise": shifted(bn)}]


def vaes(gain: float) -> World:
    """Bounds of both data sets; wn is better than normal by `gain` (CIFAR-10: × 100), bounded once more."""
    sides = []
    for dataset, middle, unit in (("mnist", -84.0, 1.0), ("cifar10", -9000.0, 100.0)):
        base, more = about(middle, unit), about(gain * unit, 0.05 * unit, 50)
        for times, side in enumerate((NORMAL, WN, BOUND)):
            bound = lambda seed, times=times, base=base, more=more: base(seed) + times * more(seed)  # noqa: E731
            sides.append({"dataset": dataset, "bound": bound, **side})
    return make_vae, 3, sides


def vae_spreads(wn: float, normal: float) -> World:
    def bound(spread: float, shift: int) -> Callable[[int], float]:
        return lambda seed: -84 + spread * (wobble(seed) + 0.05 * wobble(seed + shift))

    return make_vae, 5, [{"param": "wn", "bound": bound(wn, 2)}, {"param": "normal", "bound": bound(normal, 6)}]


def draws(speed: float) -> World:
    wn = {"param": "wn", "speed": about(speed, 0.02)}
    return make_draw, 3, [wn, wn | {"g_start": 1.0}, NORMAL]


def games(wn: float, normal: float) -> World:
    sides = [
        {"param": param, "game": game, "best": about(best, 1, 9 * len(param)), "episodes": 3}
        for game, (param, best) in itertools.product(GAMES, (("wn", wn), ("normal", normal)))
    ]
    return make_dqn, 3, sides


def swept_bn(best: float) -> World:
    sides: list[Side] = []
    for game in ("breakout", "space_invaders"):
        sides.append({"param": "normal", "game": game, "best": about(100, 1)})
        scores = [about(best, 1, 30) if lr == 0.001 else 11.0 for lr in (0.0001, 0.0003, 0.001, 0.003)]
        sides += [
            {"param": "bn", "game": game, "lr": lr, "best": score}
            for lr, score in zip((0.0001, 0.0003, 0.001, 0.003), scores, strict=True)
        ]
    return make_dqn, 3, [side | {"episodes": 30} for side in sides]


def variants(factors: float, bounded: float, ours: float, theirs: float) -> World:
    """Final errors of initial g and of a bound on ‖v‖, and the speeds with and without the bound."""
    average = {"polyak_epochs": 10.0}
    sides = [{"speed": theirs, "test_error": 0.08}, BOUND | {"speed": ours}, average | {"test_error": 0.08}]
    sides += [{"g_exp": c, "test_error": about(factors, 0.0005)} for c in (1.0, 3.0, 5.0)]
    return make_run, 5, [*sides, {**average, **BOUND, "test_error": about(bounded, 0.0005)}]


def normals(diverged: int) -> World:
    status = {"status": lambda seed: "diverged" if seed <= diverged else "done"}
    return make_run, 10, [{"param": "normal", "lr": 0.003, "logged": 20, **status}]


WORLDS: dict[str, tuple[World, World]] = {  # where claims hold, and where they do not
    "C4a C4b": (errors(8.05), errors(9.4)),
    "C5a C13": (sweep("wn"), sweep("normal")),
    "C5b": (speeds(4, bn=0.6, normal=0.3), speeds(4, bn=0.3, normal=0.6)),
    "C6": (normals(9), normals(0)),
    "C7a C7b C17": (benches(1.16, 1.0), benches(1.0, 1.1)),
    "C8a C8b C8c": (
        noise(GAUSSIAN, HEAVY),
        noise({"kurtosis_mean": 1.5, "noise_size": 0.9}, HEAVY | {"kurtosis_inverse_std": 0.0}),
    ),
    "C9a C16a": (vaes(0.8), vaes(-0.8)),
    "C9b": (vae_spreads(0.3, 1.0), vae_spreads(1.0, 0.3)),
    "C10a C10b": (draws(1.8), draws(0.5)),
    "C11": (games(100, 50), games(50, 100)),
    "C12": (swept_bn(12), swept_bn(95)),
    "C15 C16b C19": (variants(0.08, 0.08, 0.4, 0.4), variants(0.1, 0.07, 0.6, 0.3)),
    "C18a": (speeds(3, bn=0.6, wn=0.3), speeds(3, bn=0.3, wn=0.6)),
    "C18b": (speeds(3, bn=0.6, wn=0.6, wn_mobn=0.6), speeds(3, bn=0.6, wn=0.1, wn_mobn=0.6)),
}
SLOW = ("C4a C4b", "C5a C13", "C11", "C12")  # of many runs


def build(results: Path, world: World) -> None:
    make, n, sides = world
    make_seeds(results, make, range(1, n + 1), *sides)


def test_every_empirical_claim_is_tried() -> None:
    assert {claim.id for claim in EMPIRICAL} == {*" ".join(WORLDS).split(), "C14"}  # which is in test_cifar.py


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("claims", [pytest.param(of, marks=pytest.mark.slow) if of in SLOW else of for of in WORLDS])
def test_verdict_follows_the_runs(tmp_path: Path, claims: str, holds: bool) -> None:
    build(tmp_path, WORLDS[claims][not holds])
    results = load(tmp_path, "paper")
    found, short = findings(results), findings(replace(results, scale="short"))
    for claim in claims.split():
        assert found[claim].verdict == (REPRODUCED if holds else NOT_REPRODUCED), found[claim].measured
        assert found[claim].power
        assert short[claim].verdict == NOT_TESTABLE and short[claim].estimates == found[claim].estimates


@pytest.mark.parametrize("further", [{"status": "running", "logged": 3}, {"status": "failed", "logged": 3}, {}])
def test_further_seeds_below_the_next_look_change_nothing(tmp_path: Path, further: Side) -> None:
    build(tmp_path, draws(1.8))
    before = find(tmp_path, "C10a")
    make_seeds(tmp_path, make_draw, [4], {"param": "wn", "speed": 0.1, **further}, {"param": "normal", **further})
    assert find(tmp_path, "C10a") == before


@pytest.mark.parametrize(
    ("seeds", "how", "verdict"),
    [
        ((1, 2), {}, INCONCLUSIVE),
        ((1, 2, 3), {"logged": 5}, NOT_YET),
        ((1, 2, 3, 4, 5, 6), {"status": "running", "logged": 5}, NOT_YET),
    ],
)
def test_few_seeds_or_epochs_decide_nothing(tmp_path: Path, seeds: Any, how: Side, verdict: str) -> None:
    make_seeds(tmp_path, make_draw, seeds, {"param": "wn", "speed": about(3.0, 0.01), **how}, NORMAL | how)
    finding = find(tmp_path, "C10a")
    assert finding.verdict == verdict and finding.estimates[0].n == min(5, len(seeds))


def test_one_divergence_in_20_refutes_nothing(tmp_path: Path) -> None:
    status = {"status": lambda seed: "diverged" if seed == 7 else "done"}
    make_seeds(tmp_path, make_draw, range(1, 21), {"param": "wn", "speed": about(1.8, 0.02), **status}, NORMAL)
    finding = find(tmp_path, "C10a")
    assert finding.verdict == REPRODUCED and "wn diverged 10 % [0, 45]" in finding.measured
    assert finding.estimates[0].n == 9


def test_where_every_run_diverges_the_claim_is_refuted_but_not_where_only_normal_does(tmp_path: Path) -> None:
    lost = [{"param": param} | DIVERGED for param in paper.TABLE2]
    make_seeds(tmp_path, make_run, range(1, 6), *lost, {"param": "normal", "lr": 0.003} | DIVERGED)
    make_seeds(tmp_path, make_draw, (1, 2, 3), WN, NORMAL | DIVERGED)
    found = findings(load(tmp_path, "paper"))
    assert {found[claim].verdict for claim in ("C4a", "C4b", "C5a")} == {NOT_REPRODUCED}
    assert found["C10a"].verdict == INCONCLUSIVE and "normal diverged in 3 seeds" in found["C10a"].measured


def test_mixed_provenance_and_a_younger_rule_are_marked(tmp_path: Path) -> None:
    build(tmp_path, draws(1.8))
    before = find(tmp_path, "C10a")
    assert (before.warnings, before.after_the_fact) == ((), False)
    path = tmp_path / "paper/draw/wn_lr0.0003/seed-2/run.json"
    record = json.loads(path.read_text()) | {"created": "2026-11-01T00:00:00Z", "device_name": "NVIDIA H200"}
    record |= {"git": {"commit": "f" * 40, "dirty": True}, "versions": {"torch": "2.11.0"}}
    path.write_text(json.dumps(record))
    finding = find(tmp_path, "C10a")
    assert finding.after_the_fact
    assert finding.warnings == (
        "Mixed commits: 0123456, fffffff.",
        "Mixed torch versions: 2.11.0, 2.13.0.",
        "Mixed devices: AMD EPYC, NVIDIA H200.",
        "Uncommitted changes: draw/wn_lr0.0003/seed-2.",
    )


def test_one_processor_with_other_threads_is_no_other_device(tmp_path: Path) -> None:
    build(tmp_path, draws(1.8))
    for seed, name in ((1, "AMD EPYC, 1 threads"), (2, "AMD EPYC, 1 thread")):  # earlier versions wrote the first
        path = tmp_path / f"paper/draw/wn_lr0.0003/seed-{seed}/run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"device_name": name}))
    assert find(tmp_path, "C10a").warnings == ("Mixed numbers of threads: 1, 2.",)


def test_a_standard_deviation_needs_two_seeds(tmp_path: Path) -> None:
    for seeds, said in (((1,), "needs 2 seeds (n = 1)"), ((2,), "(n = 2)")):
        make_seeds(tmp_path, make_vae, seeds, WN | {"bound": about(-84, 0.1)}, NORMAL | {"bound": about(-85, 0.1)})
        measured = find(tmp_path, "C9b").measured
        assert said in measured and "not finite" not in measured


def test_a_number_that_is_not_finite_leaves_the_claim_open(tmp_path: Path) -> None:
    build(tmp_path, draws(1.8))
    edit_column(tmp_path / "paper/draw/wn_lr0.0003/seed-2/metrics.csv", "test_bound_nats", math.nan)
    finding = find(tmp_path, "C10a")
    assert finding.verdict == INCONCLUSIVE and "not finite: draw/wn_lr0.0003/seed-2" in finding.measured


def test_holms_correction_is_over_all_empirical_claims(tmp_path: Path) -> None:
    speed = {1: 1.75, 2: 1.45, 3: 1.6}
    make_seeds(tmp_path, make_draw, speed, {"param": "wn", "speed": speed.__getitem__}, NORMAL)
    finding = find(tmp_path, "C10a")
    assert finding.verdict == REPRODUCED and finding.holm == pytest.approx(min(1, 25 * finding.p_holds))
    assert "does not remain after Holm's correction over 25 claims" in finding.measured


def test_power_grows_with_the_seeds() -> None:
    for claim in EMPIRICAL:
        rows = [row for n in LOOKS if (row := claim.power(n))]
        assert all(row.null <= 0.055 and row.true_refuted <= 0.03 for row in rows)  # 5 %, and the error of 4000 tries
        assert [row.true for row in rows] == sorted(row.true for row in rows)
        assert rows[-1].true >= 0.8 or claim.id == "C11"
        assert claim.power(2) is None and claim.power(9) == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("claim", EMPIRICAL, ids=lambda claim: claim.id)
def test_power_is_what_the_simulation_gives(claim: Claim) -> None:
    tries = 300
    for row in filter(None, map(claim.power, LOOKS)):
        for true, *shares in ((True, row.true, row.true_refuted), (False, row.null, row.null_refuted)):
            found = power.verdicts(claim, row.n, true, tries, seed=7)
            for share, one in zip(shares, found, strict=True):
                assert one == pytest.approx(share, abs=4 * math.sqrt(max(share * (1 - share), 0.01) / tries))
        assert (row.assumed, row.without) == (power.SCENARIOS[claim.id].assumed, power.SCENARIOS[claim.id].without)


def test_rules_equal_the_last_recorded_version() -> None:
    """A changed rule is a new version, with the commit that fixes it: see `python -m wnrepro.tools.rules`."""
    versions = json.loads((Path(wnrepro.__file__).parent / "report/claims/rules.json").read_text())
    assert versions[-1]["rules"] == {claim.id: claim.hash for claim in CLAIMS}
    assert all(len(one["commit"]) == 40 and one["date"] for one in versions)

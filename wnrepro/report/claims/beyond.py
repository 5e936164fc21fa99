"""Parameterizations that are not the paper's beside wn and normal: no claims, but by the claims' rules."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from wnrepro import paper
from wnrepro.report.claims import cifar, cvae, dqn, draw
from wnrepro.report.claims.claim import DIFFERENCE, NOT_REPRODUCED, POINTS, REPRODUCED, Claim, Collect, Finding, Test
from wnrepro.report.claims.evidence import Evidence, at_look, of, shared
from wnrepro.report.stats import LEVEL, Estimate, equivalent, less_often, smaller, stratified
from wnrepro.results import Results, Run
from wnrepro.settings import PARAMS
from wnrepro.text import named

BESIDE = ("wn", "normal")
BETTER, WORSE, SAME = "better", "worse", "no difference beyond the margin"
GAINS = {"cvae mnist": cvae.GAINS[0], "cvae cifar10": cvae.GAINS[1], "draw": cvae.GAINS[0]}  # in the test bound
FAILED = 0.5  # C6: a training error
MOST = 50  # parameterizations


def comparisons(results: Results) -> Iterator[tuple[str, str, Claim, Finding]]:
    """Those that have numbers, of every parameterization that is not the paper's with each of `BESIDE`: the rule, its
    finding with the result as verdict, and with what else is to be said as what was measured.
    """
    others = [param for param in results.labels if param not in PARAMS][:MOST]
    for ours, theirs in itertools.product(others, BESIDE):
        for rule in _rules(results, ours, theirs):
            finding = rule.find(results)
            judged = [e for e in finding.estimates if not e.name.endswith(" diverged")]
            if judged and judged[0].name:  # of several rates: the one that decides
                judged.sort(key=lambda e: min(e.p_holds, e.p_fails))
            going = [f"{run.name}: {run.state}" for run in finding.used if isinstance(run, Run) and not run.over]
            unfinished = [f"not finished: {named(going)}"] if going else []
            said = "; ".join([*finding.measured.split("; ")[len(judged) :], *unfinished, *finding.warnings])
            if judged:
                words = {REPRODUCED: BETTER if judged[0].p_holds <= LEVEL else SAME, NOT_REPRODUCED: WORSE}
                word = words.get(finding.verdict, finding.verdict)
                yield ours, theirs, rule, replace(finding, verdict=word, measured=said, estimates=tuple(judged))


def _either(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """p-values of: better, or no different; worse. Of the first estimate both sides count, a second is of the same."""
    return min(e.p_holds for e in estimates), estimates[0].p_fails


def _log_epochs(ours: Run, theirs: Run) -> float:
    """`draw.log_epochs`; nan where ours does not reach the other's bound: no ratio says how far off that is."""
    mine, others = (run.metrics["test_bound_nats"][: shared(ours, theirs)] for run in (ours, theirs))
    return draw.log_epochs(ours, theirs) if mine.max() >= others.iloc[-1] else math.nan


def _both_sides(test: Test) -> dict[str, Any]:
    """The rule that asks of both sides what a test asks of one, and whether the difference lies within its margin."""
    margin = abs(test.margin)
    ahead, behind = (replace(test, sign=sign, margin=sign * margin, name="") for sign in (test.sign, -test.sign))
    same = replace(ahead, sign=0, margin=margin)

    def judge(values: Any) -> list[Estimate]:
        e = ahead.judge(values[""])
        return [replace(e, p_fails=behind.judge(values[""]).p_holds), same.judge(values[""])]

    return {"judge": judge, "unit": test.unit, "combine": _either}


def _rules(results: Results, ours: str, theirs: str) -> Iterator[Claim]:
    """What is compared of two parameterizations: claims without words, which hold where ours is better, or the same."""
    rule = functools.partial(Claim, "", where="", paper="", rule="", combine=_either)
    parts = {name: [of(part.at_rate(), param) for param in (ours, theirs)] for name, part in results.parts.items()}

    def pairs(part: str, number: Callable[..., float]) -> Collect:
        return lambda evidence, _: evidence.collect("", number, *parts[part])

    def errors(evidence: Evidence, _: Results) -> None:
        if all(parts["cifar"]):
            cifar.test_errors(evidence, results, [theirs])
            evidence.lost = []  # ours alone are held against it
            cifar.test_errors(evidence, results, [ours])

    def scores(evidence: Evidence, _: Results) -> None:
        for game in (game for game in paper.TABLE3 if f"dqn {game}" in parts):
            evidence.collect(game, dqn.log_score, *parts[f"dqn {game}"], named=f"{paper.game_name(game)}: {ours}")

    def failures(part: str) -> Collect:
        failed = functools.partial(cifar.failed, limit=FAILED) if part == "cifar" else operator.attrgetter("diverged")
        ended = [at_look([run for run in some if run.over]) for some in parts[part]]
        return lambda evidence, _: evidence.failures("", failed, *ended)

    if "cifar" in parts:
        judge = lambda values: [  # noqa: E731
            smaller("", values[ours], values[theirs]),
            equivalent("", values[ours], cifar.ALIKE, values[theirs]),
        ]
        yield rule("better: final test error, cifar", collect=errors, judge=judge, unit=POINTS)
        faster = cifar.faster("", ours, theirs)
        yield replace(faster, claim="faster: mean training error, cifar", **_both_sides(*faster.tests))
        yield replace(cifar.wider_range("", ours, theirs), claim="wider learning rates: share that fails, cifar,")
    for part, test in ((part, test) for part, test in GAINS.items() if part in parts):
        yield rule(f"better: final test bound, {part}", collect=pairs(part, cvae.gain), **_both_sides(test))
        reached = f"faster: epochs to the other's test bound, {part}"
        yield rule(reached, collect=pairs(part, _log_epochs), **_both_sides(draw.TEST))
    judge = lambda values: [stratified("", [*values.values()])]  # noqa: E731
    yield rule("better: log ratio of maximum scores, dqn", collect=scores, judge=judge)
    judge = lambda values: [less_often("", *values[""])]  # noqa: E731
    for part in parts:
        steadier, seeds = f"steadier: share that fails, {part}", cifar.DECIDING
        yield rule(steadier, collect=failures(part), judge=judge, unit=DIFFERENCE, seeds=seeds)
    step = cifar.step("", ours, theirs, "", "", "", Test(-1, cifar.SLOW, 0, 0, 0))
    yield replace(step, claim="cost of a step: time, cifar", **_both_sides(*step.tests))

"""Compares other parameterizations than the paper's with wn and normal, by the rules of the claims."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from wnrepro import paper
from wnrepro.report.claims import cifar, cvae, dqn, draw
from wnrepro.report.claims.claim import NOT_REPRODUCED, REPRODUCED, Claim, Collect, Finding, MarginTest
from wnrepro.report.claims.evidence import Evidence, at_look, select
from wnrepro.report.claims.units import DIFFERENCE, POINTS
from wnrepro.report.stats import LEVEL, Estimate, fisher, t_test, tost, welch
from wnrepro.results import Results, Run
from wnrepro.settings import PARAMS
from wnrepro.text import count, named

BESIDE = ("wn", "normal")
BETTER, WORSE, SAME = "better", "worse", "no difference beyond the margin"
GAINS = {"cvae mnist": cvae.GAINS[0], "cvae cifar10": cvae.GAINS[1], "draw": cvae.GAINS[0]}  # in the test bound
FAILED = 0.5  # C6: training error above which a run fails
MOST = 50  # parameterizations that are compared


def comparisons(results: Results) -> Iterator[tuple[str, str, Claim, Finding]]:
    """Yield the comparisons with numbers of every other parameterization than the paper's with each of `BESIDE`.

    Each has both names, the rule and its finding, whose `verdict` is the result and whose `measured` holds the remarks.
    """
    others = [param for param in results.labels if param not in PARAMS][:MOST]
    for ours, theirs in itertools.product(others, BESIDE):
        for rule in _rules(results, ours, theirs):
            finding = rule.find(results)
            judged = [e for e in finding.estimates if not e.name.endswith(" diverged")]
            if not judged:
                continue
            if judged[0].name:  # of several learning rates, the deciding one first
                judged.sort(key=lambda e: min(e.p_holds, e.p_fails))
            going = [f"{run.name}: {run.state}" for run in finding.used if isinstance(run, Run) and not run.over]
            unfinished = [f"not finished: {named(going)}"] if going else []
            said = "; ".join([*finding.measured.split("; ")[len(judged) :], *unfinished, *finding.warnings])
            words = {REPRODUCED: BETTER if judged[0].p_holds <= LEVEL else SAME, NOT_REPRODUCED: WORSE}
            word = words.get(finding.verdict, finding.verdict)
            yield ours, theirs, rule, replace(finding, verdict=word, measured=said, estimates=tuple(judged))


def _either(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Return p-values of: better, or no different; worse. A second estimate is the equivalence test of the first."""
    return min(e.p_holds for e in estimates), estimates[0].p_fails


def _log_epochs(evidence: Evidence, ours: Sequence[Run], theirs: Sequence[Run]) -> None:
    """Collect `draw.log_epochs`, or nothing if a run of ours never reaches the bound, as the ratio is then unknown."""
    if (pairs := evidence.pairs(ours, theirs)) is None:
        return
    if never := sum(math.isinf(draw.epochs_needed(*pair)[0]) for pair in pairs):
        evidence.values[""] = []
        of = f"{never} of {count(len(pairs), 'seed')}"
        evidence.remarks.append(f"{pairs[0][0].param} does not reach {pairs[0][1].param}'s bound in {of}")
    else:
        evidence.values[""] = [evidence.finite(draw.log_epochs(*pair), *pair) for pair in pairs]


def _both_sides(test: MarginTest) -> dict[str, Any]:
    """Return the fields of a rule that applies a one-sided test to both sides, and tests equivalence in its margin."""
    margin = abs(test.margin)
    ahead, behind = (replace(test, sign=sign, margin=sign * margin, name="") for sign in (test.sign, -test.sign))
    same = replace(ahead, sign=0, margin=margin)

    def judge(values: Any) -> list[Estimate]:
        e = ahead.judge(values[""])
        return [replace(e, p_fails=behind.judge(values[""]).p_holds), same.judge(values[""])]

    return {"judge": judge, "unit": test.unit, "combine": _either}


def _rules(results: Results, ours: str, theirs: str) -> Iterator[Claim]:
    """Yield the comparisons of two parameterizations: claims without words that hold if ours is better or the same."""
    rule = functools.partial(Claim, "", where="", paper="", rule="", combine=_either)
    parts = {name: select(part.at_rate(), ours, theirs) for name, part in results.parts.items()}

    def pairs(part: str, number: Callable[..., float]) -> Collect:
        return lambda evidence, _: evidence.collect("", number, *parts[part])

    def epochs(part: str) -> Collect:
        return lambda evidence, _: _log_epochs(evidence, *parts[part])

    def errors(evidence: Evidence, _: Results) -> None:
        if all(parts["cifar"]):
            cifar.test_errors(evidence, results, theirs)
            evidence.diverged = []  # only diverged runs of ours count
            cifar.test_errors(evidence, results, ours)

    def scores(evidence: Evidence, _: Results) -> None:
        for game in (game for game in paper.TABLE3 if f"dqn {game}" in parts):
            evidence.collect(game, dqn.log_score, *parts[f"dqn {game}"], name=f"{paper.game_name(game)}: {ours}")

    def failures(part: str) -> Collect:
        failed = functools.partial(cifar.failed, limit=FAILED) if part == "cifar" else operator.attrgetter("diverged")
        ended = [at_look([run for run in runs if run.over]) for runs in parts[part]]
        return lambda evidence, _: evidence.count_failures("", failed, *ended)

    def judge_errors(values: Any) -> list[Estimate]:
        return [welch("", values[ours], values[theirs]), tost("", values[ours], cifar.ALIKE, values[theirs])]

    if "cifar" in parts:
        yield rule("better: final test error, cifar", collect=errors, judge=judge_errors, unit=POINTS)
        faster = cifar.faster("", ours, theirs)
        yield replace(faster, claim="faster: mean training error, cifar", **_both_sides(*faster.tests))
        yield replace(cifar.wider_range("", ours, theirs), claim="wider learning rates: share that fails, cifar,")
    for part, test in ((part, test) for part, test in GAINS.items() if part in parts):
        yield rule(f"better: final test bound, {part}", collect=pairs(part, cvae.gain), **_both_sides(test))
        reached = f"faster: epochs to the other's test bound, {part}"
        yield rule(reached, collect=epochs(part), **_both_sides(draw.TEST))
    ratio = "better: log ratio of maximum scores, dqn"
    yield rule(ratio, collect=scores, judge=lambda values: [t_test("", *values.values())])
    for part in parts:
        yield rule(
            f"steadier: share that fails, {part}",
            collect=failures(part),
            judge=lambda values: [fisher("", *values[""])],
            unit=DIFFERENCE,
            seeds=cifar.DECIDING,
        )
    step = cifar.step_time("", ours, theirs, "", "", "", MarginTest(-1, cifar.SLOW))
    yield replace(step, claim="cost of a step: time, cifar", **_both_sides(*step.tests))

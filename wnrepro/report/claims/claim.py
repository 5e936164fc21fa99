"""What a claim is, and how its rule is applied to the runs.

A claim collects its numbers from the runs, by seed, and its rule turns them into estimates; the verdict follows from
their p-values, the same way for every claim. The rule's text stands beside its code and its constants.
"""

import functools
import hashlib
import inspect
import json
import math
from collections import defaultdict, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wnrepro.report.claims.evidence import DIVERGED, Evidence
from wnrepro.report.stats import LEVEL, LOOKS, Estimate, beyond, equivalent, look
from wnrepro.results import Results, Run, Session
from wnrepro.text import NOT_FINITE, count, interval, named, plain

VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not testable yet", "not testable at this scale", "not run")
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_YET, NOT_TESTABLE, NOT_RUN = VERDICTS
SCALE = "paper"  # of the runs that an empirical claim is judged on
RULES, POWER = (Path(__file__).with_name(name) for name in ("rules.json", "power.csv"))

Values = Mapping[str, Any]
World = Callable[[np.random.Generator, int, bool], Values]
Collect = Callable[[Evidence, Results], None]
# When a rule was fixed: the version of the rules, its commit and date; empty: not committed yet.
Fixed = namedtuple("Fixed", "version commit date")


@dataclass(frozen=True)
class Unit:
    """How a claim's estimates are written. log: they are logarithms of ratios, written as relative differences."""

    digits: int = 2
    suffix: str = ""
    factor: float = 1
    sign: bool = True
    log: bool = False

    def shown(self, value: float) -> float:
        return math.expm1(min(value, 700)) if self.log else value

    def number(self, value: float) -> str:
        """`+0.40 points`."""
        return plain(self.factor * self.shown(value), f"{'+' if self.sign else ''}.{self.digits}f", self.suffix)

    def words(self, e: Estimate) -> str:
        """`bn − wn −0.40 points [−0.61, −0.19] (n = 5)`."""
        ends = interval(self.shown(e.low), self.shown(e.high), self.digits, self.factor, self.sign)
        said = (e.name, self.number(e.value), ends, f"(n = {e.n})") if e.n else (e.name, "none")
        return " ".join(filter(None, said))


RATIO = Unit(1, " %", 100, log=True)
RELATIVE = Unit(1, " %", 100)
SHARE, DIFFERENCE = Unit(0, " %", 100, sign=False), Unit(0, " %", 100)
POINTS = Unit(2, " points")
NATS, BITS = Unit(2, " nats"), Unit(3, " bits per dimension")


def all_of(estimates: Sequence[Estimate], simultaneous: bool = False) -> tuple[float, float]:
    """p-values of: all of them hold; one of them fails (Bonferroni, unless their intervals are simultaneous)."""
    times = 1 if simultaneous else len(estimates)
    return max(e.p_holds for e in estimates), min(1.0, times * min(e.p_fails for e in estimates))


def any_of(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """p-values of: one of them holds and none fails; one fails and none holds."""
    holds = min(1.0, len(estimates) * min(e.p_holds for e in estimates))
    fails = min(1.0, len(estimates) * min(e.p_fails for e in estimates))
    return (1.0 if fails <= LEVEL else holds), (1.0 if holds <= LEVEL else fails)


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, the numbers in words, and on how much (`n`) and which devices they rest."""

    verdict: str
    measured: str
    n: str = "0 seeds"
    devices: str = "none"
    estimates: tuple[Estimate, ...] = ()
    warnings: tuple[str, ...] = ()
    power: str = ""
    after_the_fact: bool = False
    used: tuple[Run | Session, ...] = field(default=(), compare=False, repr=False)
    p_holds: float = 1.0
    p_fails: float = 1.0
    holm: float = 1.0  # the smaller of the two, adjusted over all empirical claims


class Power(NamedTuple):
    """Of n seeds, before Holm's correction: P(reproduced) and P(not reproduced) where the paper is true, and without
    the effect. difference: the true value with P(reproduced) = 80 %, in words (empty: none, or not known); seeds80: the
    first of `LOOKS` with a power of 80 % (None: none of them).
    """

    n: int
    true: float
    true_refuted: float
    null: float
    null_refuted: float
    difference: str
    seeds80: int | None

    def words(self, assumed: str, null: str) -> str:
        sees = f"It is 80 % at {self.difference}. " if self.difference else ""
        needed = f"{self.seeds80} seeds reach 80 %" if self.seeds80 else f"{LOOKS[-1]} seeds do not reach 80 %"
        return (
            f"With {self.n} seeds P(reproduced) is {100 * self.true:.0f} % if the paper is true ({assumed}) and "
            f"{100 * self.null:.1f} % without the effect ({null}). {sees}{needed}. Before Holm's correction."
        )


@dataclass(frozen=True)
class Claim:
    """A claim in our words, where it stands, the paper's evidence, our rule, and what collects and judges its numbers.

    seeds: the fewest that decide; world: for its power, made-up numbers of n seeds where it is true, or has no effect.
    """

    id: str
    claim: str
    where: str
    paper: str
    rule: str
    collect: Collect
    judge: Callable[[Values], list[Estimate]]
    unit: Unit = Unit()  # of all parts that have no test
    combine: Callable[[Sequence[Estimate]], tuple[float, float]] = all_of
    figure: str = ""
    none: str = "no seed with both"
    seeds: int = LOOKS[0]
    world: World | None = None
    worlds: tuple[str, str] = ("", "")  # in words: where it is true, and where it has no effect
    tests: "tuple[Test, ...]" = ()
    check: bool = False

    @property
    def hash(self) -> str:
        """Of the claim and its rule: 12 hex digits."""
        words = (self.id, self.claim, self.paper, self.rule, "" if self.check else COMMON)
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]

    @property
    def fixed(self) -> Fixed:
        """The first version of the rules that has this rule."""
        first = next((one for one in versions() if one["rules"].get(self.id) == self.hash), {})
        return Fixed(*(str(first.get(name, "")) for name in Fixed._fields))

    def power(self, n: int) -> Power | None:
        """At the last look that n seeds reach; None: below the first, or of an implementation check."""
        return powers().get((self.id, look(n)))

    def find(self, results: Results) -> Finding:
        """The finding before Holm's correction over all claims."""
        evidence = Evidence()
        self.collect(evidence, results)
        if not evidence.values and not evidence.lost:
            return Finding(NOT_RUN, "; ".join((*evidence.said, self.none)))
        estimates, used = self.judge(evidence.values) if evidence.values else [], tuple(evidence.used.values())
        units = {test.name: test.unit for test in self.tests}
        measured = [units.get(e.name, self.unit).words(e) for e in estimates] + [*map(SHARE.words, evidence.lost)]
        missing = [f"{NOT_FINITE}: {named(evidence.missing)}"] if evidence.missing else []
        verdict, holds, fails = self._verdict(evidence, estimates, results.scale)
        return Finding(
            verdict,
            "; ".join(measured + evidence.said + missing),
            evidence.basis or f"{count(len({run.seed for run in used}), 'seed')}, {count(len(used), 'run')}",
            ", ".join(evidence.devices or sorted({run.device for run in used})) or "none",
            (*estimates, *evidence.lost),
            () if self.check else mixed(used),
            after_the_fact=not self.check and any(not self.fixed.date or run.created < self.fixed.date for run in used),
            used=used,
            p_holds=holds,
            p_fails=fails,
        )

    def _verdict(self, evidence: Evidence, estimates: Sequence[Estimate], scale: str) -> tuple[str, float, float]:
        """The verdict and its two p-values."""
        if not self.check and scale != SCALE:
            return NOT_TESTABLE, 1.0, 1.0
        if not self.check and not all(run.over for run in evidence.used.values()):
            return NOT_YET, 1.0, 1.0
        enough = estimates and min(e.n for e in estimates) >= self.seeds and not evidence.missing
        holds, fails = self.combine(estimates) if enough or self.check else (1.0, 1.0)
        fails = min([fails, *(len(evidence.lost) * e.p_fails for e in evidence.lost)])
        if fails <= LEVEL:
            return NOT_REPRODUCED, 1.0, fails
        return REPRODUCED if holds <= LEVEL else INCONCLUSIVE, holds, fails


@functools.cache
def versions() -> list[dict[str, Any]]:
    """The versions of the rules, oldest first: version, commit, date, and every rule's hash by the claim's id."""
    return list(json.loads(RULES.read_text())) if RULES.exists() else []


@functools.cache
def powers() -> dict[tuple[str, int], Power]:
    """power.csv, by claim and n."""
    rows = pd.read_csv(POWER, keep_default_na=False, dtype={"seeds80": str}).itertuples(index=False)
    return {(claim, n): Power._make((n, *others, int(seeds80 or 0) or None)) for claim, n, *others, seeds80 in rows}


def mixed(used: Sequence[Run | Session]) -> tuple[str, ...]:
    """What differs among runs that are compared and could make a difference, a sentence each."""
    facts: dict[str, set[str]] = defaultdict(set)
    for run in used:
        facts["commits"].add(run.commit[:7])
        facts["torch versions"].add(run.torch)
        facts["devices"].add(run.device)
        facts["precisions"].add(run.precision)
        facts[f"data of {run.dataset}" if run.dataset else "data"].add(str(run.data))  # a data set each has its own
    said = [f"Mixed {what}: {named(sorted(some))}." for what, some in facts.items() if len(some) > 1]
    if dirty := [run.name for run in used if run.dirty]:
        said.append(f"Uncommitted changes: {named(dirty)}.")
    return tuple(said)


LOST = f"Diverged runs are left out and counted; a share above {100 * DIVERGED:g} % (exact 95 % interval) refutes."
COMMON = (
    f"Judged are finished runs at scale `{SCALE}`, of its whole length: the first {', '.join(map(str, LOOKS[:-1]))} or "
    f"{LOOKS[-1]} seeds, at no other number of seeds. The runs of a claim share all settings, precision and "
    "binarization, apart from what it compares. Each claim has its own verdict; beside it stands whether this stands "
    "after Holm's correction over all empirical claims. A claim that needs a number that is not finite is inconclusive."
)


@dataclass(frozen=True)
class Test:
    """A difference by seed against a margin: sign 1, above it; −1, below it; 0, within ±margin (TOST).

    true, null, spread: its mean where the paper is true and where there is no effect, and its standard deviation over
    seeds, as assumed for the power. All in the estimate's unit, of logarithms where that says so.
    """

    sign: int
    margin: float
    true: float
    null: float
    spread: float
    name: str = ""
    unit: Unit = RATIO

    def judge(self, values: Sequence[float]) -> Estimate:
        if self.sign:
            return beyond(self.name, values, self.margin, self.sign)
        return equivalent(self.name, values, self.margin)

    @property
    def text(self) -> str:
        limit = self.number(self.margin)
        return f"{'above' if self.sign > 0 else 'below'} {limit}" if self.sign else f"within ±{limit.lstrip('+')}"

    def number(self, value: float) -> str:
        return self.unit.number(value) if value else "0"


def judged(*tests: Test, one_suffices: bool = False) -> dict[str, Any]:
    """What a claim on such differences has: its rule, judge and world."""
    kind = " or ".join(sorted({"95 % t-interval" if t.sign else "90 % interval (TOST)" for t in tests}, reverse=True))

    def by_part(said: Sequence[str]) -> str:
        """Once where all parts have the same."""
        several = [f"{test.name} {words}" for test, words in zip(tests, said, strict=True)]
        return "; ".join(several) if len(set(said)) > 1 else said[0]

    true, null, spread = (by_part([t.number(getattr(t, name)) for t in tests]) for name in ("true", "null", "spread"))
    limits = by_part([test.text for test in tests])
    holds, fails = f"the {kind} lies wholly {limits}", "the 95 % interval lies wholly on the other side"
    if len(tests) > 1:
        holds, fails = f"every {kind} lies wholly so: {limits}", "one 95 % interval (Bonferroni) lies wholly elsewhere"
    if one_suffices:
        holds = f"one 95 % t-interval (Bonferroni) lies wholly so, and none wholly on the other side: {limits}"
        fails = "one lies wholly on the other side, and none so"
    return {
        "rule": f"By seed. Reproduced if {holds}. Not reproduced if {fails}. Else inconclusive.",
        "judge": lambda values: [test.judge(values[test.name]) for test in tests],
        "world": lambda rng, n, holds: {t.name: rng.normal(t.true if holds else t.null, t.spread, n) for t in tests},
        "worlds": (f"{true}; standard deviation over seeds {spread.replace('+', '')}", null),
        "tests": tests,
    }


def claim(id: str, where: str, paper: str, figure: str, *tests: Test, **about: Any) -> Callable[[Collect], Claim]:
    """Makes a function that collects a claim's numbers into the claim. Its docstring is the claim and, after an empty
    line, the rule, with the module's constants, and those of `about`, in braces.
    """

    def made(collect: Collect) -> Claim:
        named = {"LOST": LOST} | collect.__globals__ | about
        said, _, rule = (inspect.getdoc(collect) or "").partition("\n\n")
        judging = judged(*tests, one_suffices=about.get("combine") is any_of) if tests else {"rule": ""}
        given = judging | {name: value for name, value in about.items() if name in Claim.__dataclass_fields__}
        given["rule"] = f"{' '.join(rule.format(**named).split())} {given['rule']}".strip()
        return Claim(id, " ".join(said.format(**named).split()), where, paper, collect=collect, figure=figure, **given)

    return made

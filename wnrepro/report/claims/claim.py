"""What a claim is, how its rule is applied to the runs, and the words for numbers.

A claim collects its numbers from the runs, by seed, and its rule turns them into estimates; the verdict follows from
their p-values, the same way for every claim. The rule's text stands beside its code and its constants.
"""

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wnrepro.report.stats import LEVEL, LOOKS, Estimate, beyond, equivalent, look, share
from wnrepro.results import Results, Run

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_YET = "not testable yet"
NOT_TESTABLE = "not testable at this scale"
NOT_RUN = "not run"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_YET, NOT_TESTABLE, NOT_RUN)
SCALE = "paper"  # of the runs that an empirical claim is judged on
DIVERGED = 0.2  # a share of diverged runs that refutes what a claim says of them
NOT_FINITE = "not finite"
NAMED = 3  # at most, of names in a sentence
RULES = Path(__file__).with_name("rules.json")

Values = Mapping[str, Any]
World = Callable[[np.random.Generator, int, bool], Values]


def count(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plain(value: float, form: str = ".2f", unit: str = "") -> str:
    """A number, or that it is none."""
    return f"{value:{form}}".replace("-", "−") + unit if math.isfinite(value) else NOT_FINITE


def percent(value: float, digits: int = 2) -> str:
    """A fraction as per cent."""
    return plain(100 * value, f".{digits}f", " %")


def nats(value: float, sign: str = "") -> str:
    """A bound in nats, without the unit (`sign="+"`: a difference)."""
    return plain(value, f"{sign}.2f")


def score(value: float) -> str:
    """Of a game."""
    return plain(value, ".1f")


def interval(low: float, high: float, digits: int, factor: float = 1, sign: bool = False) -> str:
    """`[+1.38, +4.45]`, rounded outward; empty where an end is not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    scale, form = 10.0**digits, f"{'+' if sign else ''}.{digits}f"
    whole = math.floor(round(low * factor * scale, 6)), math.ceil(round(high * factor * scale, 6))
    return "[{}, {}]".format(*(plain(end / scale + 0.0, form) for end in whole))


def listed(names: Iterable[str]) -> str:
    """The first of these names, and how many more there are."""
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more


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


PLAIN = Unit()
RATIO = Unit(1, " %", 100, log=True)
RELATIVE = Unit(1, " %", 100)
SHARE = Unit(0, " %", 100, sign=False)
POINTS = Unit(2, " points")
NATS, BITS = Unit(2, " nats"), Unit(3, " bits per dimension")


@dataclass
class Evidence:
    """What a claim has collected: numbers by part, the runs behind them, and what is said beside the estimates."""

    values: dict[str, Any] = field(default_factory=dict)
    used: dict[str, Run] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    lost: list[Estimate] = field(default_factory=list)  # shares of diverged runs
    missing: list[str] = field(default_factory=list)  # numbers that are not finite
    over: bool = True  # whether its runs have ended
    basis: str = ""  # in place of seeds and runs
    devices: tuple[str, ...] = ()

    def use(self, *runs: Run) -> None:
        self.used.update((run.name, run) for run in runs)
        self.over = self.over and all(run.over for run in runs)

    def finite(self, value: float, *runs: Run) -> float:
        """The value; it is noted where it is not finite."""
        if not math.isfinite(value):
            self.missing.append(" or ".join(run.name for run in runs))
        return value

    def pairs(self, ours: Iterable[Run], theirs: Iterable[Run], named: str = "") -> list[tuple[Run, Run]] | None:
        """The pairs of the first seeds, up to the last look: those that ended or, where none has, those under way; None
        where there is no pair. A pair of which a run diverged is left out; our diverged runs become a share.
        """
        others = {run.seed: run for run in theirs}
        every = sorted(((run, others[run.seed]) for run in ours if run.seed in others), key=lambda pair: pair[0].seed)
        ended = [pair for pair in every if pair[0].over and pair[1].over]
        begun = at_look(ended or [pair for pair in every if all(run.epoch for run in pair)])
        if not begun:
            return None
        self.lose([run for run, _ in begun], named)
        self.use(*(run for pair in begun for run in pair))
        if diverged := sum(other.diverged for _, other in begun):
            self.said.append(f"{begun[0][1].param} diverged in {count(diverged, 'seed')}")
        return [pair for pair in begun if not (pair[0].diverged or pair[1].diverged)]

    def lose(self, runs: Sequence[Run], named: str = "") -> None:
        """Count the diverged ones of these as a share, where there are any."""
        if diverged := sum(run.diverged for run in runs):
            self.lost.append(share(f"{named or runs[0].param} diverged", diverged, len(runs), DIVERGED, -1))

    def compare(
        self,
        name: str,
        ours: Iterable[Run],
        theirs: Iterable[Run],
        number: Callable[[Run, Run], float],
        named: str = "",
    ) -> "Evidence":
        """A number of every pair, by seed, as the part `name`; nothing where there is no pair."""
        if (pairs := self.pairs(ours, theirs, named)) is not None:
            self.values[name] = [self.finite(number(*pair), *pair) for pair in pairs]
        return self


def at_look(values: Sequence[Any]) -> list[Any]:
    """As many of these, by seed, as the last look has; all below the first look."""
    return list(values[: look(len(values)) or None])


def of(runs: Iterable[Run], param: str) -> list[Run]:
    """Those of a parameterization, by seed."""
    return sorted((run for run in runs if run.param == param), key=lambda run: run.seed)


def shared(*runs: Run) -> int:
    """The epochs that all of these have logged."""
    return min(run.epoch for run in runs)


def ended(runs: Iterable[Run]) -> list[Run]:
    """Of a parameterization's runs, by seed: those that ended or, where none has, those under way; up to the look."""
    some = sorted(runs, key=lambda run: run.seed)
    return at_look([run for run in some if run.over] or [run for run in some if run.epoch])


def all_of(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """p-values of: all of them hold; one of them fails (Bonferroni)."""
    return max(e.p_holds for e in estimates), min(1.0, len(estimates) * min(e.p_fails for e in estimates))


def all_simultaneous(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """As `all_of`, of estimates whose intervals are simultaneous already."""
    return max(e.p_holds for e in estimates), min(e.p_fails for e in estimates)


def any_of(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """p-values of: one of them holds and none fails; one fails and none holds."""
    holds = min(1.0, len(estimates) * min(e.p_holds for e in estimates))
    fails = min(1.0, len(estimates) * min(e.p_fails for e in estimates))
    return (1.0 if fails <= LEVEL else holds), (1.0 if holds <= LEVEL else fails)


class Fixed(NamedTuple):
    """When a rule was fixed: the version of the rules, its commit and date; empty: not committed yet."""

    version: str
    commit: str
    date: str


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
    used: tuple[Run, ...] = field(default=(), compare=False, repr=False)
    p_holds: float = 1.0
    p_fails: float = 1.0
    holm: float = 1.0  # the smaller of the two, adjusted over all empirical claims


@dataclass(frozen=True)
class Claim:
    """A claim in our words, where it stands, the paper's evidence, and our rule: in words, and as the functions that
    collect its numbers and judge them.

    seeds: the fewest that decide; world: made-up numbers of so many seeds in a world in which the claim is true, or in
    which there is no effect (`null`, in words), for its power.
    """

    id: str
    claim: str
    where: str
    paper: str
    rule: str
    collect: Callable[[Results], Evidence]
    judge: Callable[[Values], list[Estimate]]
    unit: Unit | Mapping[str, Unit] = Unit()
    combine: Callable[[Sequence[Estimate]], tuple[float, float]] = all_of
    figure: str = ""
    none: str = "no seed with both"
    seeds: int = LOOKS[0]
    world: World | None = None
    assumed: str = ""
    null: str = ""
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

    def unit_of(self, name: str) -> Unit:
        """That of a part."""
        return self.unit if isinstance(self.unit, Unit) else self.unit[name]

    def find(self, results: Results) -> Finding:
        """The finding before Holm's correction over all claims."""
        evidence = self.collect(results)
        if not evidence.values and not evidence.lost:
            return Finding(NOT_RUN, "; ".join((*evidence.said, self.none)))
        estimates = self.judge(evidence.values) if evidence.values else []
        measured = (
            [self.unit_of(e.name).words(e) for e in estimates] + [SHARE.words(e) for e in evidence.lost] + evidence.said
        )
        if evidence.missing:
            measured.append(f"{NOT_FINITE}: {listed(evidence.missing)}")
        used = tuple(evidence.used.values())
        verdict, holds, fails = self._verdict(evidence, estimates, results.scale)
        basis = f"{count(len({run.seed for run in used}), 'seed')}, {count(len(used), 'run')}"
        return Finding(
            verdict,
            "; ".join(measured),
            evidence.basis or basis,
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
        if self.check:
            holds, fails = self.combine(estimates)
            return REPRODUCED if holds <= LEVEL else NOT_REPRODUCED if fails <= LEVEL else INCONCLUSIVE, holds, fails
        if scale != SCALE:
            return NOT_TESTABLE, 1.0, 1.0
        if not evidence.over:
            return NOT_YET, 1.0, 1.0
        enough = estimates and min(e.n for e in estimates) >= self.seeds and not evidence.missing
        holds, fails = self.combine(estimates) if enough else (1.0, 1.0)
        fails = min([fails, *(len(evidence.lost) * e.p_fails for e in evidence.lost)])
        if fails <= LEVEL:
            return NOT_REPRODUCED, 1.0, fails
        return REPRODUCED if holds <= LEVEL else INCONCLUSIVE, holds, fails


@functools.cache
def versions() -> list[dict[str, Any]]:
    """The versions of the rules, oldest first: version, commit, date, and every rule's hash by the claim's id."""
    return list(json.loads(RULES.read_text())) if RULES.exists() else []


def mixed(used: Sequence[Run]) -> tuple[str, ...]:
    """What differs among runs that are compared and could make a difference, a sentence each."""
    facts = {
        "commits": [run.commit[:7] for run in used],
        "torch versions": [run.torch for run in used],
        "devices": [run.device for run in used],
        "precisions": [run.precision for run in used],
    }
    for part in dict.fromkeys(run.dataset for run in used):  # a data set each has its own
        data = [str((run.record.get("facts") or {}).get("data", "")) for run in used if run.dataset == part]
        facts[f"data of {part}" if part else "data"] = data
    said = [f"Mixed {what}: {listed(sorted(set(of)))}." for what, of in facts.items() if len(set(of)) > 1]
    if dirty := [run.name for run in used if run.dirty]:
        said.append(f"Uncommitted changes: {listed(dirty)}.")
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

    def by_part(words: Callable[[Test], str]) -> str:
        """Once where all parts have the same."""
        said = [words(test) for test in tests]
        several = [f"{test.name} {words}" for test, words in zip(tests, said, strict=True)]
        return said[0] if len(set(said)) == 1 else "; ".join(several)

    def number(name: str) -> str:
        return by_part(lambda test: test.number(getattr(test, name)))

    limits = by_part(lambda test: test.text)
    holds, fails = f"the {kind} lies wholly {limits}", "the 95 % interval lies wholly on the other side"
    if len(tests) > 1:
        holds, fails = f"every {kind} lies wholly so: {limits}", "one 95 % interval (Bonferroni) lies wholly elsewhere"
    if one_suffices:
        holds = f"one 95 % t-interval (Bonferroni) lies wholly so, and none wholly on the other side: {limits}"
        fails = "one lies wholly on the other side, and none so"
    return {
        "rule": f"By seed. Reproduced if {holds}. Not reproduced if {fails}. Else inconclusive.",
        "judge": lambda values: [test.judge(values.get(test.name, ())) for test in tests],
        "unit": {test.name: test.unit for test in tests},
        "world": lambda rng, n, holds: {t.name: rng.normal(t.true if holds else t.null, t.spread, n) for t in tests},
        "assumed": f"{number('true')}; standard deviation over seeds {number('spread').replace('+', '')}",
        "null": number("null"),
        "tests": tests,
    }


def claim(
    id: str, where: str, paper: str, figure: str, *tests: Test, **about: Any
) -> Callable[[Callable[[Results], Evidence]], Claim]:
    """Makes a function that collects a claim's numbers into the claim. Its docstring is the claim and, after an empty
    line, the rule, with the module's constants, and those of `about`, in braces.
    """

    def made(collect: Callable[[Results], Evidence]) -> Claim:
        fields = Claim.__dataclass_fields__.keys()
        named = {"LOST": LOST} | collect.__globals__ | about
        said, _, rule = (inspect.getdoc(collect) or "").partition("\n\n")
        judging = judged(*tests, one_suffices=about.get("combine") is any_of) if tests else {"rule": ""}
        given = judging | {name: value for name, value in about.items() if name in fields}
        given["rule"] = f"{' '.join(rule.format(**named).split())} {given['rule']}".strip()
        return Claim(id, " ".join(said.format(**named).split()), where, paper, collect=collect, figure=figure, **given)

    return made

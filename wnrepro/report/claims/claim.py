"""What a claim is, and how its rule turns the numbers of the runs into a verdict."""

import functools
import hashlib
import inspect
import json
import re
from collections import defaultdict, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wnrepro.report.claims.evidence import DIVERGED, Evidence
from wnrepro.report.claims.units import NUMBER, RATIO, SHARE, Unit
from wnrepro.report.stats import LEVEL, LOOKS, Estimate, look, t_test, tost
from wnrepro.results import Results, Run, Session
from wnrepro.text import NOT_FINITE, count, named

VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not testable yet", "not testable at this scale", "not run")
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_YET, NOT_TESTABLE, NOT_RUN = VERDICTS
SCALE = "paper"  # at which empirical claims are judged
RULES, POWER = (Path(__file__).with_name(name) for name in ("rules.json", "power.csv"))
LOST = f"Diverged runs are left out and counted; a share above {100 * DIVERGED:g} % (exact 95 % interval) refutes."
COMMON = (
    f"Judged are finished runs at scale `{SCALE}`, of its whole length: the first {', '.join(map(str, LOOKS[:-1]))} or "
    f"{LOOKS[-1]} seeds, at no other number of seeds. The runs of a claim share all settings, precision and "
    "binarization, apart from what it compares. Each claim has its own verdict; beside it stands whether this stands "
    "after Holm's correction over all empirical claims. A claim that needs a number that is not finite is inconclusive."
)

THREADS = re.compile(r"(.*?)(?:, (\d+) threads?)?", re.DOTALL)  # of a device's name

Values = Mapping[str, Any]  # numbers by part
Combine = Callable[[Sequence[Estimate]], tuple[float, float]]
Collect = Callable[[Evidence, Results], None]
# When a rule was fixed: version of the rules, commit and date; all empty if it is not committed yet.
Fixed = namedtuple("Fixed", "version commit date", defaults=("", "", ""))


def all_of(estimates: Sequence[Estimate], simultaneous: bool = False) -> tuple[float, float]:
    """Return p-values of: all hold; one fails. The latter has Bonferroni's correction, unless simultaneous."""
    comparisons = 1 if simultaneous else len(estimates)
    return max(e.p_holds for e in estimates), min(1.0, comparisons * min(e.p_fails for e in estimates))


def any_of(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Return p-values of: one holds and none fails; one fails and none holds."""
    holds = min(1.0, len(estimates) * min(e.p_holds for e in estimates))
    fails = min(1.0, len(estimates) * min(e.p_fails for e in estimates))
    return (1.0 if fails <= LEVEL else holds), (1.0 if holds <= LEVEL else fails)


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, its numbers in words, and the seeds and devices behind them."""

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
    holm: float = 1.0  # the smaller p-value, adjusted over all empirical claims


class Power(NamedTuple):
    """P(reproduced) and P(not reproduced) with n seeds, if the paper is true and if there is no effect.

    The probabilities are before Holm's correction.
    """

    n: int
    true: float
    true_refuted: float
    null: float
    null_refuted: float
    difference: str  # the true value with P(reproduced) = 80 %, in words; empty if none or unknown
    seeds80: int | None  # the first of `LOOKS` with a power of 80 %
    assumed: str = ""  # assumption about the numbers with the effect
    without: str = ""  # and without it

    def words(self) -> str:
        sees = f"It is 80 % at {self.difference}. " if self.difference else ""
        needed = f"{self.seeds80} seeds reach 80 %" if self.seeds80 else f"{LOOKS[-1]} seeds do not reach 80 %"
        return (
            f"With {self.n} seeds P(reproduced) is {100 * self.true:.0f} % if the paper is true ({self.assumed}) and "
            f"{100 * self.null:.1f} % without the effect ({self.without}). {sees}{needed}. "
            "The probabilities are before Holm's correction."
        )


@dataclass(frozen=True)
class MarginTest:
    """A test of differences by seed. sign: 1: above the margin; −1: below it; 0: within ±margin (TOST)."""

    sign: int
    margin: float  # a logarithm if the unit says so
    name: str = ""
    unit: Unit = RATIO

    def judge(self, values: Sequence[float]) -> Estimate:
        if self.sign:
            return t_test(self.name, values, margin=self.margin, sign=self.sign)
        return tost(self.name, values, self.margin)

    @property
    def text(self) -> str:
        limit = self.number(self.margin)
        return f"{'above' if self.sign > 0 else 'below'} {limit}" if self.sign else f"within ±{limit.lstrip('+')}"

    def number(self, value: float) -> str:
        return self.unit.number(value) if value else "0"


@dataclass(frozen=True)
class Claim:
    """A claim in our words, its place in the paper, the paper's evidence, our rule and the functions that apply it."""

    id: str
    claim: str
    where: str
    paper: str
    rule: str
    collect: Collect
    judge: Callable[[Values], list[Estimate]]
    combine: Combine = all_of
    unit: Unit = NUMBER  # of estimates without a test
    figure: str = ""
    none: str = "no seed has both runs"
    seeds: int = LOOKS[0]  # the fewest that allow a verdict
    fewest: int = 1  # seeds that its number needs
    tests: tuple[MarginTest, ...] = ()
    check: bool = False

    @property
    def hash(self) -> str:
        """The first 12 hex digits of the SHA-256 of the claim and its rule."""
        words = (self.id, self.claim, self.paper, self.rule, "" if self.check else COMMON)
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]

    @property
    def fixed(self) -> Fixed:
        """The first version of the rules that contains this rule."""
        first = next((one for one in versions() if one["rules"].get(self.id) == self.hash), {})
        return Fixed(*(str(first[name]) for name in Fixed._fields if first))

    def power(self, n: int) -> Power | None:
        """Return the power at the last look that n seeds reach; None before the first look or for a check."""
        return powers().get((self.id, look(n)))

    def unit_of(self, e: Estimate) -> Unit:
        if e.name.endswith(" diverged"):
            return SHARE
        return next((test.unit for test in self.tests if test.name == e.name), self.unit)

    def words(self, e: Estimate) -> str:
        """Format an estimate, or say how many seeds its number needs."""
        few = 0 < e.n < self.fewest and not e.name.endswith(" diverged")
        return f"needs {count(self.fewest, 'seed')} (n = {e.n})" if few else self.unit_of(e).words(e)

    def find(self, results: Results) -> Finding:
        """Return the finding before Holm's correction over all claims."""
        evidence = Evidence()
        self.collect(evidence, results)
        if not evidence.values and not evidence.diverged:
            return Finding(NOT_RUN, "; ".join((*evidence.remarks, self.none)))
        judged, used = self.judge(evidence.values) if evidence.values else [], tuple(evidence.used.values())
        estimates = (*judged, *evidence.diverged)
        words = [self.words(e) for e in estimates] + evidence.remarks
        words += [f"{NOT_FINITE}: {named(evidence.non_finite)}"] if evidence.non_finite else []
        verdict, p_holds, p_fails = self._verdict(evidence, judged, results.scale)
        return Finding(
            verdict,
            "; ".join(words),
            evidence.basis or f"{count(len({run.seed for run in used}), 'seed')}, {count(len(used), 'run')}",
            ", ".join(evidence.devices or sorted({run.device for run in used})) or "none",
            estimates,
            () if self.check else mixed(used),
            after_the_fact=not self.check and any(not self.fixed.date or run.created < self.fixed.date for run in used),
            used=used,
            p_holds=p_holds,
            p_fails=p_fails,
        )

    def _verdict(self, evidence: Evidence, judged: Sequence[Estimate], scale: str) -> tuple[str, float, float]:
        """Return the verdict and its two p-values."""
        if not self.check and scale != SCALE:
            return NOT_TESTABLE, 1.0, 1.0
        if not self.check and not all(run.over for run in evidence.used.values()):
            return NOT_YET, 1.0, 1.0
        enough = judged and min(e.n for e in judged) >= self.seeds and not evidence.non_finite
        holds, fails = self.combine(judged) if enough or self.check else (1.0, 1.0)
        fails = min([fails, *(len(evidence.diverged) * e.p_fails for e in evidence.diverged)])
        if fails <= LEVEL:
            return NOT_REPRODUCED, 1.0, fails
        return REPRODUCED if holds <= LEVEL else INCONCLUSIVE, holds, fails


@functools.cache
def versions() -> list[dict[str, Any]]:
    """Return the versions of the rules, oldest first: version, commit, date, and every rule's hash by claim id."""
    return list(json.loads(RULES.read_text()))


@functools.cache
def powers() -> dict[tuple[str, int], Power]:
    """Return the rows of power.csv by claim and n."""
    rows: Any = pd.read_csv(POWER, keep_default_na=False, dtype={"seeds80": str}).itertuples(index=False)
    return {(row.claim, row.n): Power._make((*row[1:7], int(row.seeds80 or 0) or None, *row[8:])) for row in rows}


def mixed(used: Sequence[Run | Session]) -> tuple[str, ...]:
    """Return a sentence for each difference among compared runs that could matter."""
    facts: dict[str, set[str]] = defaultdict(set)
    for run in used:
        facts["commits"].add(run.commit[:7])
        facts["torch versions"].add(run.torch)
        device, threads = THREADS.fullmatch(run.device).groups()  # type: ignore[union-attr]
        facts["devices"].add(device)
        facts["numbers of threads"] |= {threads} - {None}
        facts["precisions"].add(run.precision)
        facts[f"data of {run.dataset}" if run.dataset else "data"].add(str(run.data))
    said = [f"Mixed {fact}: {named(sorted(values))}." for fact, values in facts.items() if len(values) > 1]
    if dirty := [run.name for run in used if run.dirty]:
        said.append(f"Uncommitted changes: {named(dirty)}.")
    return tuple(said)


def by_part(tests: Sequence[MarginTest], texts: Sequence[str]) -> str:
    """Join the texts of all parts, or return one text if all are equal."""
    several = [f"{test.name} {text}" for test, text in zip(tests, texts, strict=True)]
    return "; ".join(several) if len(set(texts)) > 1 else texts[0]


def by_margin(*tests: MarginTest, combine: Combine) -> dict[str, Any]:
    """Return the fields of a claim that these tests decide."""
    intervals = {"95 % t-interval" if test.sign else "90 % interval (TOST)" for test in tests}
    kind = " or ".join(sorted(intervals, reverse=True))

    limits = by_part(tests, [test.text for test in tests])
    if combine is any_of:
        holds = f"one 95 % t-interval (Bonferroni) lies wholly so, and none wholly on the other side: {limits}"
        fails = "one lies wholly on the other side, and none so"
    elif len(tests) > 1:
        holds, fails = f"every {kind} lies wholly so: {limits}", "one 95 % interval (Bonferroni) lies wholly elsewhere"
    else:
        holds, fails = f"the {kind} lies wholly {limits}", "the 95 % interval lies wholly on the other side"
    return {
        "rule": f"By seed. Reproduced if {holds}. Not reproduced if {fails}. Else inconclusive.",
        "judge": lambda values: [test.judge(values[test.name]) for test in tests],
        "tests": tests,
    }


def claim(id: str, where: str, paper: str, figure: str, *tests: MarginTest, **about: Any) -> Callable[[Collect], Claim]:
    """Make a decorator that turns the function that collects a claim's numbers into the claim.

    The function's docstring is the claim and, after an empty line, the rule. Braces contain constants of its module or
    entries of `about`. The other entries are fields of the claim.
    """

    def made(collect: Collect) -> Claim:
        constants = {"LOST": LOST} | collect.__globals__ | about
        text = (inspect.getdoc(collect) or "").format(**constants)
        said, rule = (" ".join(part.split()) for part in text.split("\n\n"))
        fields = by_margin(*tests, combine=about.get("combine", all_of)) if tests else {"rule": ""}
        fields |= {name: value for name, value in about.items() if name in Claim.__dataclass_fields__}
        fields["rule"] = f"{rule} {fields['rule']}".strip()
        return Claim(id, said, where, paper, collect=collect, figure=figure, **fields)

    return made

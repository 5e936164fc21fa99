"""The paper's claims, each an object in the file of its experiment, and what the runs say of them."""

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from wnrepro.report.claims import cifar, cvae, dqn, draw, identities
from wnrepro.report.claims.claim import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Finding,
    listed,
)
from wnrepro.report.claims.power import power
from wnrepro.report.stats import LEVEL, holm, look, quiet
from wnrepro.results import Results


def _number(claim: Claim) -> tuple[int, str]:
    digits = claim.id[1:].rstrip("abc")
    return int(digits), claim.id


EVERY = [one for part in (identities, cifar, cvae, draw, dqn) for one in vars(part).values() if isinstance(one, Claim)]
CLAIMS: tuple[Claim, ...] = tuple(sorted(EVERY, key=_number))


@quiet
def findings(results: Results) -> dict[str, Finding]:
    """The finding of every claim, by its id; Holm's correction over the empirical claims that are judged."""
    found = {claim.id: claim.find(results) for claim in CLAIMS}
    judged = [claim.id for claim in CLAIMS if not claim.check and found[claim.id].verdict == INCONCLUSIVE]
    holds = holm({name: found[name].p_holds for name in judged})
    fails = holm({name: found[name].p_fails for name in judged})
    for name in judged:
        finding = found[name]
        verdict = NOT_REPRODUCED if fails[name] <= LEVEL else REPRODUCED if holds[name] <= LEVEL else INCONCLUSIVE
        measured = finding.measured
        if verdict == INCONCLUSIVE and min(finding.p_holds, finding.p_fails) <= LEVEL:
            p = min(finding.p_holds, finding.p_fails)
            measured += f"; by itself decided (p = {p:.2g}), not after Holm's correction over {len(judged)} claims"
        found[name] = dataclasses.replace(finding, verdict=verdict, measured=measured)
    for claim in CLAIMS:
        n = look(min((e.n for e in found[claim.id].estimates), default=0))
        if known := power(claim.id, n or claim.seeds):
            found[claim.id] = dataclasses.replace(found[claim.id], power=known.words(claim.assumed, claim.null))
    return found


def fixed_beforehand(results: Results) -> Iterator[str]:
    """Of every claim that has runs: whether the commit of its rule is an ancestor of those of all of them."""
    for claim in (claim for claim in CLAIMS if not claim.check):
        commits = {run.commit: run.name for run in claim.find(results).used}
        if commits and not claim.fixed.commit:
            yield f"{claim.id}: its rule is not committed yet"
        elif commits:
            answers = {name: _is_ancestor(claim.fixed.commit, commit) for commit, name in commits.items()}
            later = listed(name for name, answer in answers.items() if answer == 1)
            unknown = listed(name for name, answer in answers.items() if answer not in (0, 1))
            said = f"rule after the fact of {later}" if later else "rule before all its runs"
            said = f"not known of {unknown}, whose commit is not in this repository" if unknown and not later else said
            yield f"{claim.id}, rules {claim.fixed.version} ({claim.fixed.commit[:7]}): {said}"


def _is_ancestor(commit: str, other: str) -> int:
    """0: yes, 1: no; anything else: one of them is not in this repository, or there is none."""
    if not re.fullmatch("[0-9a-f]{40}", other):  # it may be anyone's text
        return 128
    words = ["git", "-C", str(Path(__file__).parent), "merge-base", "--is-ancestor", commit, other]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode
    except OSError:
        return 128

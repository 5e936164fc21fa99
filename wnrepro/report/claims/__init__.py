"""The paper's claims, each defined in the module of its experiment, and their findings."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

from wnrepro.report.claims import cifar, cvae, dqn, draw, identities
from wnrepro.report.claims.claim import NOT_REPRODUCED, REPRODUCED, Claim, Finding
from wnrepro.report.stats import LEVEL, holm, look, quiet
from wnrepro.results import Results, load
from wnrepro.text import named

EVERY = [one for part in (identities, cifar, cvae, draw, dqn) for one in vars(part).values() if isinstance(one, Claim)]
CLAIMS = tuple(sorted(EVERY, key=lambda claim: (int(claim.id[1:].rstrip("abc")), claim.id)))
EMPIRICAL = [claim for claim in CLAIMS if not claim.check]


@quiet
def findings(results: Results) -> dict[str, Finding]:
    """Return the finding of every claim by its id, with Holm's correction over all empirical claims, judged or not."""
    found = {claim.id: claim.find(results.papers) for claim in CLAIMS}
    adjusted = holm({claim.id: min(found[claim.id].p_holds, found[claim.id].p_fails) for claim in EMPIRICAL})
    for claim in EMPIRICAL:
        finding, p, said = found[claim.id], adjusted[claim.id], ""
        if finding.verdict in (REPRODUCED, NOT_REPRODUCED):
            holds = "remains" if p <= LEVEL else "does not remain"
            said = f"; {holds} after Holm's correction over {len(EMPIRICAL)} claims (p = {p:.2g})"
        n = look(min((e.n for e in finding.estimates), default=0)) or claim.seeds
        words = power.words() if (power := claim.power(n)) else ""
        found[claim.id] = replace(finding, measured=finding.measured + said, power=words, holm=p)
    return found


@quiet
def rules(folder: Path, scale: str, precision: str | None = None) -> list[str]:
    """Return for every claim with runs whether its rule was committed before all of them. Raises as `load` does."""
    papers, said = load(folder, scale, precision).papers, []
    for claim in EMPIRICAL:
        commits = {"dirty" if run.dirty else run.commit: run.name for run in claim.find(papers).used}
        answers = {name: _is_ancestor(claim.fixed.commit, commit) for commit, name in commits.items()}
        order = "rule before all its runs"
        if later := named(name for name, answer in answers.items() if answer == 1):
            order = f"rule after the fact of {later}"
        elif unknown := named(name for name, answer in answers.items() if answer):
            order = f"not known of {unknown}: uncommitted changes, or a commit that is not here"
        if commits and claim.fixed.commit:
            said.append(f"{claim.id}, rules {claim.fixed.version} ({claim.fixed.commit[:7]}): {order}")
        elif commits:
            said.append(f"{claim.id}: its rule is not committed yet")
    return said


def _is_ancestor(commit: str, other: str) -> int:
    """Return 0 if `commit` is an ancestor of `other`, 1 if not, and another number if git does not know that."""
    if not re.fullmatch("[0-9a-f]{40}", other):  # untrusted text
        return 128
    command = ["git", "-C", str(Path(__file__).parent), "merge-base", "--is-ancestor", commit, other]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        return 128

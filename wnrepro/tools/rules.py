"""Records the current rules as a new version in wnrepro/report/claims/rules.json, with the commit that fixes them.

Commit the rules first, then run this, and commit rules.json.
"""

import json
import os
import subprocess
import sys

from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.claim import RULES


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], check=True, capture_output=True, text=True, env=os.environ | {"TZ": "UTC"}
    ).stdout.strip()


if __name__ == "__main__":
    versions = json.loads(RULES.read_text()) if RULES.exists() else []
    rules = {claim.id: claim.hash for claim in CLAIMS}
    if versions and versions[-1]["rules"] == rules:
        sys.exit(f"version {versions[-1]['version']} already has these rules")
    if git("status", "--porcelain", "wnrepro/report/claims", "wnrepro/report/stats.py"):
        sys.exit("the rules have uncommitted changes: commit them first")
    commit, date = git("log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%H %cd").split()
    version = 1 + max((one["version"] for one in versions), default=1)  # version 1: before they were recorded
    versions.append({"version": version, "commit": commit, "date": date, "rules": rules})
    RULES.write_text(json.dumps(versions, indent=2) + "\n")
    print(f"git tag rules-{version} {commit}")

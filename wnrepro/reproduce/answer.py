"""The end of the `reproduce` command: verdicts on the claims, and the page of the report. It never imports torch."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wnrepro.errors import UserError, complain
from wnrepro.preflight import import_uninterrupted
from wnrepro.reproduce.grid import commands
from wnrepro.text import count, printable

if TYPE_CHECKING:
    from rich.console import Console

    from wnrepro.report.claims.claim import Claim, Finding


def answer(
    console: "Console",
    results: Path,
    scale: str,
    words: Sequence[str],
    precision: str | None,
    write: bool,
    say: Callable[[str], object],
) -> None:
    """Print the verdicts on the claims that the words name, the number of each verdict, and the page to open.

    write: whether the report is written anew; it is also if there is none, or an older one than a run. A report that
    fails is no error.
    """
    own = "" if results == Path("results") else f" --results {shlex.quote(str(results))}"
    page = results / scale / "report.html"
    try:
        import_uninterrupted("wnrepro.report")
        from wnrepro import report

        if not results.is_dir() or scale not in report.scales_with_runs(results):
            return
        found = report.verdicts(results, scale, precision)
        for claim, finding in found:
            if named(claim, words):
                said = f": {finding.measured}" if finding.measured else ""
                say(printable(f"{claim.id}  {finding.verdict}{said} ({finding.n})"))
        say(summary(found))
        if write or outdated(page):
            with console.status("writing the report"):
                by_claim = {claim: command + own for claim, command in commands(scale).items()}
                report.write_report(results, scale, precision, by_claim, warn=complain)
        for path in (*files(page.parent, words), page):
            say(printable(f"see {path}"))
    except (UserError, OSError) as error:  # OSError: another process has removed a file
        complain(f"wnrepro: the report was not written: {error}", error)


def outdated(page: Path) -> bool:
    """Test whether a page is missing, or a run beside it has been written since."""
    runs = page.parent.glob("*/*/seed-*/run.json")
    return not page.exists() or any(run.stat().st_mtime > page.stat().st_mtime for run in runs)


def named(claim: "Claim", words: Sequence[str]) -> bool:
    """Test whether a word names the claim, or the table or figure that shows it."""
    places = {place.strip().replace(" ", "") for place in claim.where.split(";")}
    return bool({claim.id, claim.id.rstrip("abc"), *places} & set(words))


def files(folder: Path, words: Sequence[str]) -> list[Path]:
    """Return the report's files of the tables and figures that the words name."""
    paths = [folder / kind for word in words for kind in (f"figures/{word}.png", f"tables/{word}.csv")]
    return [path for path in paths if path.is_file()]


def summary(found: "Sequence[tuple[Claim, Finding]]") -> str:
    """Return the number of checks and of claims with each verdict: `3 checks: 3 reproduced; 25 claims: 25 not run`."""
    parts = []
    for noun, check in (("check", True), ("claim", False)):
        verdicts = Counter(finding.verdict for claim, finding in found if claim.check == check)
        numbers = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
        parts += [f"{count(verdicts.total(), noun)}: {numbers}"] if numbers else []
    return "; ".join(parts)

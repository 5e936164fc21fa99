"""The published results in short: a block of README.md, docs/results.md, and the pages of measured.py.

report.toml says what the first two show. A claim's finding is that of the largest scale with finished runs for it or,
without one, with any runs; a check's is a failure or, without one, that of the scale with most runs.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from PIL import Image

from wnrepro.errors import DiskError, UserError
from wnrepro.records import read_text
from wnrepro.report import declared
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.claim import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    NOT_YET,
    REPRODUCED,
    SCALE,
    VERDICTS,
    Claim,
    Finding,
)
from wnrepro.report.layout import figure_name, render
from wnrepro.report.measured import Measured, pages
from wnrepro.report.missing import missing
from wnrepro.report.stats import LEVEL, Estimate
from wnrepro.report.tables import differences, section_of
from wnrepro.results import Results, Run, load, scales_with_runs
from wnrepro.runs.directory import write_atomic
from wnrepro.settings import SETTINGS
from wnrepro.text import count, listed, printable

README, PAGE = "README.md", "docs/results.md"
START, END = "<!-- results: wnrepro report --published --readme -->", "<!-- end of results -->"
SHRUNK = 0.42  # shown pixels of a printed pixel
SAYS: dict[str, Any] = declared.CONTENT["summary"]
DECIDED = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
CHECKED = {REPRODUCED: "pass", NOT_REPRODUCED: "fail"}  # verdicts on checks
# What is said of one claim and of several; {}: the scales.
COUNTED = {
    REPRODUCED: ("is reproduced", "are reproduced"),
    NOT_REPRODUCED: ("is not reproduced", "are not reproduced"),
    INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
    NOT_YET: ("has unfinished runs", "have unfinished runs"),
    NOT_TESTABLE: ("is not testable at scale {}", "are not testable at scale {}"),
    NOT_RUN: ("has not been run", "have not been run"),
}
CHECKS_COUNTED = COUNTED | {REPRODUCED: ("passes", "pass"), NOT_REPRODUCED: ("fails", "fail")}


class Found(NamedTuple):
    """A claim with its finding at a scale."""

    claim: Claim
    finding: Finding
    scale: str


class Row(NamedTuple):
    """A row of a table: its claims and its texts."""

    ids: list[str]
    text: str
    paper: str
    ours: str
    n: str
    verdict: str


class Picture(NamedTuple):
    """A figure. path: without `.png`. width: in pixels. dark: whether it has a dark variant."""

    path: str
    title: str
    scale: str
    width: int
    dark: bool


class Images(NamedTuple):
    """Images of a trained model, by path with a text and a width each, and the commands that make them."""

    shown: dict[str, tuple[str, int]]
    caption: str
    commands: list[str]


class Section(NamedTuple):
    """A section of docs/results.md."""

    title: str
    about: list[str]
    picture: Picture | None
    rows: list[Row]
    images: Images | None


class Summary:
    """The results in published/, for README.md and docs/ in the folder `top`."""

    def __init__(self, published: Path, top: Path) -> None:
        """Read the runs of every scale. Raises UserError if a scale has none that can be read."""
        self.published, self.top = published, top
        self.read: dict[str, Results] = {scale: load(published, scale) for scale in scales_with_runs(published)}
        every = {scale: findings(read) for scale, read in self.read.items()}
        self.found: dict[str, Found] = {}
        for claim in CLAIMS:
            scale = min(every, key=lambda scale: _last(claim, every[scale][claim.id]))
            self.found[claim.id] = Found(claim, every[scale][claim.id], scale)
        shown = [one for one in self.found.values() if not one.claim.check and "session" not in one.finding.n]
        self.scales = {one.scale for one in shown if one.finding.verdict != NOT_RUN}  # of the claims with runs

    def block(self) -> str:
        """Render the block of README.md between its markers."""
        rows = [self._row(**one) for one in SAYS["headlines"]]
        picture = self._picture("overview", self.top)
        return render("readme.md.jinja", counts=self.counts(), rows=rows, picture=picture, page=PAGE, says=SAYS)

    def page(self) -> str:
        """Render docs/results.md."""
        folder = (self.top / PAGE).parent
        sections = [self._section(about, folder) for about in declared.sections()]
        sections.sort(key=lambda one: not any(self.found[id].claim.check for row in one.rows for id in row.ids))
        about = [sentence for scale in self.read for sentence in declared.CONTENT["warnings"].get(scale, ())]
        on_gpu = any(run.record.device.startswith("cuda") for read in self.read.values() for run in read.runs)
        late = sum(one.finding.after_the_fact for one in self.found.values())
        reports = {scale: _link(self.published / scale / "report.md", folder) for scale in self.read}
        return render(
            "results.md.jinja",
            counts=self.counts(),
            about=" ".join([*about, *["No published run used a GPU."] * (not on_gpu)]),
            reports=reports,
            judged=self._judged(folder),
            late=late and count(late, "claim"),
            sections=[one for one in sections if one.rows or one.picture],
            says=SAYS,
        )

    def _judged(self, folder: Path) -> str:
        """Say how many runs at the paper's scale have finished, with a link to what is missing; empty if none began."""
        if SCALE not in self.read:
            return ""
        runs = self.read[SCALE].runs
        report = _link(self.published / SCALE / "report.md", folder)
        done = sum(run.over for run in runs)
        link = f"[what is missing]({report}#what-is-missing)"
        return f"At scale `{SCALE}`, {done} of {count(len(runs), 'run')} finished ({link})."

    def texts(self) -> dict[Path, str]:
        """Return the text of README.md, docs/results.md and every page with measured numbers, by path.

        Raises UserError as `placed` and `pages` do.
        """
        sessions = next(iter(self.read.values())).bench
        left = {row["id"]: row for row in missing(self.read[SCALE])} if SCALE in self.read else {}
        others = pages(Measured(self.published, sessions), claim=lambda id: self._row([id]), left=left.get)
        readme, page = self.top / README, self.top / PAGE
        written = {readme: placed(readme, self.block()), page: self.page()}
        return written | {page.parent / name: text for name, text in others.items()}

    def counts(self) -> str:
        """Count the verdicts in two sentences."""
        of = list(self.found.values())
        checks = Counter(one.finding.verdict for one in of if one.claim.check)
        claims = Counter(one.finding.verdict for one in of if not one.claim.check)
        all_pass = checks[REPRODUCED] == checks.total()
        said = f"All {checks.total()} implementation checks pass."
        if not all_pass:
            said = f"Of the {checks.total()} implementation checks, {_counted(checks, CHECKS_COUNTED)}."
        decided = any(claims[verdict] for verdict in DECIDED)
        start = "Of the paper's {} claims," if decided else "None of the paper's {} claims has a verdict yet:"
        untested = {f"`{one.scale}`" for one in of if one.finding.verdict == NOT_TESTABLE}
        counted = _counted(claims, COUNTED).format(" and ".join(sorted(untested)))
        return f"{said} {start.format(claims.total())} {counted}."

    def _row(self, claims: Sequence[str], **instead: Any) -> Row:
        """Return the row of these claims. instead: entries that replace those of report.toml."""
        of = [self.found[id] for id in claims]
        says = SAYS["claims"].get(claims[0], {}) | instead
        verdicts = Counter(map(_verdict, of))
        several = [f"{n} {verdict}" for verdict, n in verdicts.items()]
        ours = "; ".join(filter(None, (_ours(one, says) for one in of)))
        smaller = len(self.scales) > 1 and of[0].finding.verdict == NOT_TESTABLE
        return Row(
            ids=list(claims),
            text=says.get("text", of[0].claim.claim),
            paper=says.get("paper", of[0].claim.paper),
            ours=(f"{ours}{f' (scale {of[0].scale})' * smaller}" if ours else "–"),
            n=_n(of[0], says),
            verdict=listed(several if len(verdicts) > 1 else verdicts),
        )

    def _section(self, about: declared.About, folder: Path) -> Section:
        own = [one for one in self.found.values() if section_of(one.claim) == about.title]
        scales = [scale for scale in self.read if any(one.scale == scale for one in own)]
        said = [sentence for scale in scales for sentence in differences(self.read[scale], about.experiment, most=2)]
        picture = self._picture(about.figures[0], folder) if about.experiment else None
        return Section(
            about.title, said, picture, [self._row([one.claim.id]) for one in own], self._images(about, folder)
        )

    def _picture(self, name: str, folder: Path) -> Picture | None:
        """Return a figure of the largest scale that has it, if possible with finished runs."""
        for scale in sorted(self.read, key=lambda scale: not any(run.over for run in self.read[scale].runs)):
            path = self.published / scale / "figures" / name
            if path.with_name(f"{name}.png").is_file():
                dark = path.with_name(f"{name}_dark.png").is_file()
                with Image.open(path.with_name(f"{name}.png")) as image:
                    width = round(SHRUNK * image.width)
                return Picture(_link(path, folder), figure_name(name), scale, width, dark)
        return None

    def _images(self, about: declared.About, folder: Path) -> Images | None:
        """Return the images of the first run of an experiment that has those that report.toml names."""
        says = SAYS["images"].get(about.experiment)
        for read in self.read.values() if says else ():
            for run in read.runs:
                paths = [run.path / name for name in says["files"]]
                if run.experiment == about.experiment and all(path.is_file() for path in paths):
                    shown = {_link(path, folder): says["files"][path.name] for path in paths}
                    of = f"{declared.model_of(run).title}, {run.param}, seed {run.seed}, after epoch {run.epoch}"
                    caption = f"{says['text']} ({of})."
                    there = Path("results") / read.scale / run.name
                    return Images(shown, caption, [_command(run), f"wnrepro {says['command']} {there}"])
        return None


def _last(claim: Claim, finding: Finding) -> tuple[int, int]:
    """Order a claim's findings at several scales: the first is shown, and of equals that of the largest scale."""
    if claim.check:
        return (NOT_REPRODUCED, REPRODUCED, *VERDICTS).index(finding.verdict), -len(finding.used)
    return {NOT_YET: 1, NOT_RUN: 2}.get(finding.verdict, 0), 0


def _counted(counts: Mapping[str, int], words: Mapping[str, tuple[str, str]]) -> str:
    """List counts in words, such as `3 are reproduced and 1 is inconclusive`."""
    said = [f"{counts[verdict]} {words[verdict][counts[verdict] > 1]}" for verdict in words if counts[verdict]]
    return " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))


def _shown(one: Found, says: Mapping[str, Any]) -> list[Estimate]:
    """Return the estimates that have a number and that report.toml names, if it names any."""
    parts = says.get("parts", [e.name for e in one.finding.estimates])
    return [e for e in one.finding.estimates if e.n and (e.name in parts or e.name.endswith(" diverged"))]


def _ours(one: Found, says: Mapping[str, Any]) -> str:
    """Format the estimates without their n, and the remarks that report.toml names."""
    words = [one.claim.words(e).removesuffix(f" (n = {e.n})") for e in _shown(one, says)]
    words = [f"{says['measure']} {words[0]}", *words[1:]] if words and "measure" in says else words
    remarks = one.finding.measured.split("; ")[len(one.finding.estimates) :] if one.finding.used else []
    wanted = says.get("remark")
    remarks = [remark for remark in remarks if wanted and re.match(wanted, remark)]
    return "; ".join([*words, *remarks] if not (remarks and says.get("remark_alone")) else remarks)


def _n(one: Found, says: Mapping[str, Any]) -> str:
    """Return the numbers of seeds behind what is shown, or that of runs or sessions with its noun."""
    if one.claim.check or "session" in one.finding.n:
        return one.finding.n.split(", ")[-1]
    return listed(str(e.n) for e in _shown(one, says)) or one.finding.n.split()[0]


def _verdict(one: Found) -> str:
    """Return the verdict in short, with what restricts it."""
    verdict = one.finding.verdict
    if one.claim.check:
        return CHECKED.get(verdict, verdict)
    late = one.finding.after_the_fact and verdict in DECIDED
    alone = verdict in (REPRODUCED, NOT_REPRODUCED) and one.finding.holm > LEVEL
    words = ["not testable" if verdict == NOT_TESTABLE else verdict, *["rule after the fact"] * late]
    return ", ".join([*words, *["not after Holm's correction"] * alone])


def _command(run: Run) -> str:
    """Return the command that trains a run, for the user's own results folder."""
    part, own = SETTINGS[run.experiment].part, {"param": run.param} | run.changed
    own |= {name: getattr(run, name) for name in ("lr", "seed") if getattr(run, name) != run.defaults[name]}
    options = ({part: run.dataset} if part else {}) | own | {"scale": run.config.scale}
    said = (
        f"--{name.replace('_', '-')} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}"
        for name, value in options.items()
    )
    return printable(" ".join(["wnrepro", run.experiment, *said]))


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def placed(path: Path, block: str = "") -> str:
    """Return the text of README.md with this block. Raises UserError if it has no place for one."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"--readme: there is no {path}; run this in a clone of the repository") from None
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end or text.count(START) > 1 or text.count(END) > 1:
        raise UserError(f"--readme: {path} must have the lines `{START}` and, below it, `{END}`, each once; add them")
    return f"{before}{START}\n{block}{END}{after}"


def write_summary(published: Path, top: Path) -> list[Path]:
    """Write the block of <top>/README.md, and the pages of <top>/docs. Returns their paths.

    Raises UserError as `Summary` and its `texts` do, and DiskError if they are not writable.
    """
    texts = Summary(published, top).texts()
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{path.parent}: cannot be made ({error.strerror}); make its folder writable") from error
        write_atomic(path, text.encode())
    return list(texts)

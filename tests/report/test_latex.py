"""The report as LaTeX: which files, what stands in them, that any text shows as itself, and that pdflatex takes it."""

import re
import shutil
import string
import subprocess
from pathlib import Path

import pytest
from factories import ADDRESSES, ESCAPES, HOSTILE, make_run, set_scale_short
from hypothesis import example, given
from hypothesis import strategies as st

from wnrepro.report import declared, write_report
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import CLAIMS
from wnrepro.report.claims.claim import INCONCLUSIVE, Finding
from wnrepro.report.tex import ACCENTS, MARKS, SIGNS, tex

GOLDEN = Path(__file__).with_name("golden_latex.tex")  # `--write-golden` writes it anew
PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 90 60]>>endobj
trailer<</Root 1 0 R>>
"""
COMMAND = re.compile(r"""\\ensuremath\{[^{}]*\}|\\[A-Za-z0-9]+|\\[`'^~=."](?=\{)|\\[{}$&#_%]|~(?=\\%|=)|(?<==)~""")
NEEDS_LATEX = pytest.mark.skipif(
    not shutil.which("kpsewhich")
    or subprocess.run(["kpsewhich", "lmodern.sty", "adjustbox.sty"], check=False).returncode,
    reason="no LaTeX with lmodern and adjustbox: on Debian, apt-get install texlive-latex-extra lmodern",
)


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up scale, and an empty page in place of every figure."""
    set_scale_short(monkeypatch)
    files = {"png": b"1", "pdf": PDF}
    empty = {name: Drawn(f"{HOSTILE} of {name}", files, [], [], False) for name in declared.FIGURES}
    monkeypatch.setattr("wnrepro.report.figures.draw", lambda *given: empty)


def export(results: Path, scale: str = "short") -> dict[str, str]:
    """The files of a new export, by path in latex/."""
    write_report(results, scale, export=True)
    folder = results / scale / "latex"
    files = [path for path in folder.rglob("*") if path.suffix in (".tex", ".pdf")]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_an_export_is_the_golden_one(everything: Path, pytestconfig: pytest.Config) -> None:
    files = export(everything)
    tables = ["table2", "variants", "bounds", "draw_bounds", "table3", "interquartile_means", "step_time", "beyond"]
    images = [f"figures/{name}.pdf" for name in declared.FIGURES]
    assert {*files} == {"report.tex", "claims.tex", "figures.tex", *(f"tables/{name}.tex" for name in tables), *images}
    text = "".join(f"%%%%% {name}\n{text}" for name, text in sorted(files.items()) if name not in images)
    if pytestconfig.getoption("--write-golden"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_a_judged_claim_has_its_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    finding = Finding(INCONCLUSIVE, "measured", "3 seeds", p_holds=0.012, holm=0.3, after_the_fact=True)
    monkeypatch.setattr("wnrepro.report.findings", lambda results: {claim.id: finding for claim in CLAIMS})
    said = "(scale short; 3 seeds; p~=~0.012; after Holm's correction 0.3; rule after the fact)"
    assert said in export(tmp_path)["claims.tex"]


@given(st.text(st.one_of(st.characters(), st.sampled_from(string.punctuation + "".join(SIGNS))), max_size=80))
@example(HOSTILE)
@example(ADDRESSES)
@example(ESCAPES)
@example("]]*[[--''``,,?`!`<<>>\\\\%\n\n\\end{document}^^5c")
def test_no_text_is_a_command(text: str) -> None:
    out = tex(text)
    assert out.isascii() and out.isprintable()
    rest = COMMAND.sub("", out)
    assert not set(rest) & set('\\$&#_%^~"`<>|') and not re.search(r"--|''|,,|^[\[*]", out)
    while "{" in rest or "}" in rest:
        rest, before = re.sub(r"\{[^{}]*\}", "", rest), rest
        assert rest != before  # braces are in pairs


def compiled(folder: Path, name: str = "report.tex") -> str:
    """What pdflatex has logged of a file that it takes."""
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
    done = subprocess.run(words, cwd=folder, capture_output=True, check=False, timeout=60)
    log = (folder / name).with_suffix(".log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    return log


@NEEDS_LATEX
@pytest.mark.slow
def test_pdflatex_takes_a_hostile_export(hostile: Path) -> None:
    export(hostile)
    log = compiled(hostile / "short" / "latex")
    assert not re.search(r"Missing character|Overfull|too large|LaTeX Error", log)


@NEEDS_LATEX
@pytest.mark.slow
def test_pdflatex_shows_every_letter(tmp_path: Path) -> None:
    head = "\\documentclass{article}\n\\begin{document}\n"
    letters = [*string.printable, *SIGNS, *(f"e{mark}" for mark in MARKS), *"ąŽçÅñ", "🙂", "中", "\ud800", "\u0301"]
    texts = [2 * letter for letter in letters] + [HOSTILE, ADDRESSES, ESCAPES]
    lines = [f"{tex(text)} \\texttt{{{tex(text)}}}\n\n" for text in texts]
    (tmp_path / "all.tex").write_text(f"{head}{''.join(lines)}\\end{{document}}\n")
    assert "Missing character" not in compiled(tmp_path, "all.tex") and len(ACCENTS) == len(MARKS)

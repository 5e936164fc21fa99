"""The report as LaTeX: which files, what stands in them, that any text shows as itself, and that pdflatex takes it."""

import re
import shutil
import string
import subprocess
from pathlib import Path

import pytest
from factories import ADDRESSES, ESCAPES, HOSTILE, make_all, set_scale_short
from hypothesis import example, given
from hypothesis import strategies as st

from wnrepro.report import declared, write_report
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import findings
from wnrepro.report.latex import laid_out
from wnrepro.report.layout import render
from wnrepro.report.tables import Table
from wnrepro.report.tex import ACCENTS, MARKS, SIGNS, prose, tex
from wnrepro.results import load

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


def test_an_export_has_tables_figures_and_claims(everything: Path) -> None:
    files = export(everything)
    tables = ["table2", "variants", "bounds", "draw_bounds", "table3", "interquartile_means", "step_time", "beyond"]
    images = [f"figures/{name}.pdf" for name in declared.FIGURES]
    assert {*files} == {"report.tex", "claims.tex", "figures.tex", *(f"tables/{name}.tex" for name in tables), *images}
    read = re.findall(r"\\input\{(.*)\}", files["report.tex"])
    assert read == ["claims", *(f"tables/{name}" for name in tables), "figures"]
    for name in declared.FIGURES:
        assert rf"{{figures/{name}.pdf}}" in files["figures.tex"] and rf"\label{{fig:{name}}}" in files["figures.tex"]
    table2 = files["tables/table2.tex"]
    assert r"\caption{Test error on CIFAR-10 (\%) (the paper's table 2). Test error after the last epoch" in table2
    assert r"\label{tab:table2}" in table2 and "Model & Ours & 95~\\% interval & n & Paper & Learning rate" in table2
    assert re.search(r"weight normalization\\textsuperscript\{\d\} & 8.44 & .* & 2 & 8.46 & 0.003", table2)
    assert re.search(r"\\textsuperscript\{\d\}Every seed: seed 1: 8\.\d\d", table2)
    assert r"\begin{tabular}[t]{@{}l@{}}10.0 \ensuremath{\pm} 0.6 \\ (150 games)" in files["tables/table3.tex"]


def test_a_claims_interval_and_n_are_those_that_are_found(tmp_path: Path) -> None:
    make_all(tmp_path, scale="paper", seeds=(1, 2, 3))
    text, found = export(tmp_path, "paper")["claims.tex"], findings(load(tmp_path, "paper"))
    for id in ("C4a", "C8a", "C18b"):
        (said,) = re.findall(rf"\\item\[{id}\] (.*)", text)
        assert rf"\emph{{reproduced}} (scale paper; {found[id].n}; 9" in said and tex(found[id].measured) in said
        assert f"p~=~{found[id].p_holds:.2g}" in said
    assert r"was \emph{not run} (scale paper; 0 seeds)" in text and "after Holm's correction" in text


def test_a_table_has_numbers_to_the_right_and_no_empty_column() -> None:
    headings = ["Model", "None", "Score", "Interval", "Bound", "Device", "Data", "Other settings"]
    rows = [
        ["a_b", "", "–", "[−1, 2]", "−84.08 ± 0.10", "x", "d", ""],
        ["b", "", "50 000", "–", "over 1", "2", "d", "e_1"],
    ]
    made = laid_out(Table(headings, rows, [], "A `note`.", "Table 3: score", [], False))
    text = render("table.tex.jinja", name="bounds", tex=tex, long=400, **made)
    assert r"\caption{Score (the paper's table 3). A \texttt{note}.}\label{tab:bounds}" in text
    assert r"\begin{tabular}{@{}lrrrl@{}}" in text and r"Model & Score & Interval & Bound & Device \\" in text
    first = r"a\_b\textsuperscript{1} & \textendash{} & {[}\ensuremath{-}1, 2{]} & "
    assert first + r"\ensuremath{-}84.08 \ensuremath{\pm} 0.10 & x \\" in text
    assert r"b\textsuperscript{1, 2} & 50 000 & \textendash{} & over 1 & 2 \\" in text
    assert "\\textsuperscript{1}Data: d\\quad\n\\textsuperscript{2}Other settings: e\\_1\\quad\n" in text
    many = laid_out(Table(["n"], [[str(i)] for i in range(100)], [], "", "", [], False))
    text = render("table.tex.jinja", name="x", tex=tex, long=400, **many)
    assert "40 more rows are left out." in text and "\n59 \\\\\n\\bottomrule" in text


def test_signs_code_and_letters() -> None:
    assert tex("−1 ± 2 ≤ 3·10⁻⁹") == (
        r"\ensuremath{-}1 \ensuremath{\pm} 2 \ensuremath{\le} 3\ensuremath{\cdot}10\ensuremath{^-}\ensuremath{^9}"
    )
    assert tex(r"\ { } $ & # ^ _ ~ %") == (
        r"\textbackslash{} \{ \} \$ \& \# \textasciicircum{} \_ \textasciitilde{}~\%"
    )
    assert tex("Müller's “é” 🙂 中\x00\n\u202e") == (
        r"M\"{u}ller's \textquotedblleft{}\'{e}\textquotedblright{} U+1F642 U+4E2D\textbackslash{}x00 "
        r"\textbackslash{}u202e"
    )
    assert prose("run `a_b` --x") == r"run \texttt{a\_b} -\kern0pt{}-x"
    assert tex("a" * 30) == "a" * 24 + r"\allowbreak{}" + "a" * 6 and tex("a" * 30, 5) == r"aaaa\ldots{}"


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
@pytest.mark.parametrize("own", [True, False])
def test_pdflatex_shows_every_letter(tmp_path: Path, own: bool) -> None:
    source = (Path(declared.__file__).parent / "report.tex.jinja").read_text()
    head = source[: source.index(r"\section*")] if own else "\\documentclass{article}\n\\begin{document}\n"
    letters = [*string.printable, *SIGNS, *(f"e{mark}" for mark in MARKS), *"ąŽçÅñ", "🙂", "中", "\ud800", "\u0301"]
    texts = [2 * letter for letter in letters] + [HOSTILE, ADDRESSES, ESCAPES]
    lines = [f"{tex(text)} \\texttt{{{tex(text)}}}\n\n" for text in texts]
    (tmp_path / "all.tex").write_text(f"{head}{''.join(lines)}\\end{{document}}\n")
    assert "Missing character" not in compiled(tmp_path, "all.tex") and len(ACCENTS) == len(MARKS)

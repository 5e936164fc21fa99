"""The report as LaTeX: which files, what stands in them, that any text shows as itself, and that pdflatex takes it."""

import re
import shutil
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import (
    made_up_scale,  # noqa: F401
    make_all,
    make_bench,
    make_dqns,
    make_draws,
    make_run,
    make_vaes,
    snapshot,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_page import ADDRESSES, ESCAPES, HOSTILE, hostile  # noqa: F401
from typer.testing import CliRunner

from wnrepro import cli
from wnrepro.errors import UserError
from wnrepro.report import figures, write_report
from wnrepro.report.canvas import Drawn
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.claims.claim import Finding
from wnrepro.report.latex import HEAD, _sentence, _table
from wnrepro.report.stats import Estimate
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
WRITTEN = ("report.md", "report.html")


@pytest.fixture(scope="module", autouse=True)
def drawn() -> Iterator[None]:
    """An empty page in place of every figure."""
    empty = {
        name: Drawn(caption, {"png": b"1", "pdf": PDF}, [], [], False) for name, caption in figures.CAPTIONS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *given: empty)
        yield


def export(results: Path, scale: str = "short") -> dict[str, str]:
    """The files of a new export, by path in latex/."""
    paths = write_report(results, scale, export=True)
    folder = results / scale / "latex"
    assert paths[2:] == [folder / "report.tex"]
    return {name: content.decode() for name, content in snapshot(folder).items()}


def claim(id: str) -> object:
    return next(claim for claim in CLAIMS if claim.id == id)


def test_an_export_has_tables_figures_and_claims(tmp_path: Path) -> None:
    make_all(tmp_path)
    make_vaes(tmp_path)
    make_draws(tmp_path)
    make_dqns(tmp_path, ("breakout", "seaquest"))
    files = export(tmp_path)
    tables = ["table2", "variants", "bounds", "draw_bounds", "table3", "interquartile_means", "step_time"]
    assert set(files) == {
        *("report.tex", "claims.tex", "figures.tex"),
        *(f"tables/{name}.tex" for name in tables),
        *(f"figures/{name}.pdf" for name in figures.CAPTIONS),
    }
    report = files["report.tex"]
    assert re.findall(r"\\input\{(.*)\}", report) == ["claims", *(f"tables/{name}" for name in tables), "figures"]
    assert r"\section*{Weight normalization: report at scale \texttt{short}}" in report
    assert "The final numbers are not comparable with the paper's." in report
    assert re.findall(r"\\item\[(.*?)\]", files["claims.tex"]) == [claim.id for claim in CLAIMS]
    assert r"\paragraph{3 implementation checks: 3 reproduced.}" in files["claims.tex"]
    for name in figures.CAPTIONS:
        assert rf"{{figures/{name}.pdf}}" in files["figures.tex"] and rf"\label{{fig:{name}}}" in files["figures.tex"]
    table2 = files["tables/table2.tex"]
    assert r"\caption{Test error on CIFAR-10 (\%) (the paper's table 2). Test error after the last epoch" in table2
    assert r"\label{tab:table2}" in table2 and r"\begin{tabular}{@{}lrrrrr@{}}" in table2
    assert r"Model & Ours & 95~\% interval & n & Paper & Learning rate \\" in table2
    assert r"weight normalization\textsuperscript{1} & 8.41 & \textendash{} & 1 & 8.46 & 0.003 \\" in table2
    assert r"\textsuperscript{1}Every seed: seed 1: 8.41" in table2
    assert r"At scale \texttt{short} ours cannot be compared with the others." in table2
    assert (
        r"\caption{Interquartile means over the games. Interquartile mean over games \ensuremath{\times} seeds"
        in files["tables/interquartile_means.tex"]
    )
    wide = files["tables/table3.tex"]
    assert r"\begin{tabular}[t]{@{}l@{}}10.0 \ensuremath{\pm} 0.6 \\ (150 games)\end{tabular}" in wide


def test_the_same_twice_and_what_an_earlier_export_has_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    write_report(tmp_path, "short")
    assert not (tmp_path / "short" / "latex").exists()
    make_bench(tmp_path)
    own = tmp_path / "short" / "latex" / "tables" / "own.tex"
    first = export(tmp_path)
    assert {"tables/step_time.tex", "figures/init.pdf"} <= set(first) and export(tmp_path) == first
    own.write_text("text")
    shutil.rmtree(tmp_path / "bench")
    monkeypatch.setattr(figures, "draw", lambda *given: {})
    left = {"report.tex", "claims.tex", *(f"tables/{name}.tex" for name in ("own", "table2", "variants"))}
    assert set(export(tmp_path)) == left
    assert r"\input{figures}" not in (tmp_path / "short" / "latex" / "report.tex").read_text()


@pytest.mark.parametrize("name", ["latex", "latex/tables", "latex/figures"])
def test_an_export_is_not_written_through_a_link_out_of_the_results(tmp_path: Path, name: str) -> None:
    results, outside = tmp_path / "results", tmp_path / "outside"
    make_run(results)
    outside.mkdir()
    link = results / "short" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(UserError, match=r"leads out of .*: move that link away"):
        write_report(results, "short", export=True)
    assert not list(outside.iterdir()) and not (results / "short" / "report.md").exists()
    write_report(results, "short")


def test_the_command_line(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path / "published", "bn")

    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["report", "--results", str(tmp_path), *words])
        return done.exit_code, done.stdout

    assert call("--export", "latex") == (0, "".join(f"{tmp_path}/short/{n}\n" for n in (*WRITTEN, "latex/report.tex")))
    code, printed = call("--published", "--export", "latex")
    assert (code, printed.splitlines()[-1]) == (0, f"{tmp_path}/published/short/latex/report.tex")
    assert call() == (0, "".join(f"{tmp_path}/short/{name}\n" for name in WRITTEN))


def test_the_sentence_of_a_claim() -> None:
    estimates = (Estimate("", 0.1, 0.05, 0.15, 5, margin=(0.0,)), Estimate("", 0.0, -0.1, 0.1, 5, margin=(-0.2, 0.2)))
    found = Finding("reproduced", "−0.4 % [−0.6, −0.2] (n = 5)", "5 seeds, 10 runs", "none", estimates, p_holds=0.01234)
    text = _sentence(claim("C5a"), found, "paper")
    assert text == (
        r"\item[C5a] wn trains faster than normal (our wording of the paper's figure 1; \S{}5.1): this is "
        r"\emph{reproduced} (scale paper; 5 seeds, 10 runs; 90~\% interval of an equivalence; 95~\% interval; "
        r"p~=~0.012): "
        r"\ensuremath{-}0.4~\% {[}\ensuremath{-}0.6, \ensuremath{-}0.2{]} (n~=~5)." + "\n"
    )
    found = Finding("inconclusive", "x", p_fails=0.2, holm=0.9, after_the_fact=True)
    said = "(scale paper; 0 seeds; p~=~0.2; after Holm's correction 0.9; rule after the fact): x."
    assert said in _sentence(claim("C5a"), found, "paper")
    assert r"was \emph{not run} (scale quick; 0 seeds): x." in _sentence(claim("C1"), Finding("not run", "x"), "quick")


def test_a_claims_interval_and_n_are_those_that_are_found(tmp_path: Path) -> None:
    make_all(tmp_path, scale="paper", seeds=(1, 2, 3))
    text, found = export(tmp_path, "paper")["claims.tex"], findings(load(tmp_path, "paper"))
    for id in ("C4a", "C8a", "C18b"):
        assert found[id].verdict == "reproduced"
        assert rf"\emph{{reproduced}} (scale paper; {found[id].n}; 9" in text and tex(found[id].measured) in text
        assert f"p~=~{found[id].p_holds:.2g}" in text and f"(p~=~{found[id].holm:.2g})." in text


def test_a_table_stands_numbers_to_the_right_and_drops_what_is_empty() -> None:
    headings = ["Model", "None", "Score", "Interval", "Bound", "Device", "Data", "Other settings"]
    rows = [
        ["a", "", "–", "[−1, 2]", "−84.08 ± 0.10", "x", "d", ""],
        ["b", "", "50 000", "–", "over 1", "2", "d", "e = 1"],
    ]
    text = _table("bounds", Table(headings, rows, [], "A `note`.", "", [], False))
    assert r"\caption{A \texttt{note}.}\label{tab:bounds}" in text and r"\begin{tabular}{@{}lrrrl@{}}" in text
    assert r"Model & Score & Interval & Bound & Device \\" in text
    assert r"a\textsuperscript{1} & \textendash{} & {[}\ensuremath{-}1, 2{]} & \ensuremath{-}84.08 " in text
    assert r"b\textsuperscript{1, 2} & 50 000 & \textendash{} & over 1 & 2 \\" in text
    assert r"\textsuperscript{1}Data: d\quad" + "\n" + r"\textsuperscript{2}Other settings: e = 1" in text
    many = Table(["n"], [[str(i)] for i in range(100)], [], "", "", [], False)
    text = _table("x", many)
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


@settings(max_examples=60, deadline=None)
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


needs_latex = pytest.mark.skipif(
    not shutil.which("pdflatex"),
    reason="no pdflatex on the PATH: on Debian, apt-get install texlive-latex-extra lmodern",
)


@needs_latex
def test_pdflatex_takes_a_hostile_export(hostile: Path) -> None:  # noqa: F811
    export(hostile.parents[1])
    log = compiled(hostile.parent / "latex")
    assert not re.search(r"Missing character|Overfull|too large|LaTeX Error", log)


@needs_latex
@pytest.mark.parametrize("head", [HEAD, "\\documentclass{article}\n\\begin{document}"], ids=["own", "plain"])
def test_pdflatex_shows_every_letter(tmp_path: Path, head: str) -> None:
    letters = [*string.printable, *SIGNS, *(f"e{mark}" for mark in MARKS), *"ąŽçÅñ", "🙂", "中", "\ud800", "\u0301"]
    texts = [2 * letter for letter in letters] + [HOSTILE, ADDRESSES, ESCAPES]
    lines = [f"{tex(text)} \\texttt{{{tex(text)}}}\n\n" for text in texts]
    (tmp_path / "all.tex").write_text(f"{head}\n{''.join(lines)}\\end{{document}}\n")
    assert "Missing character" not in compiled(tmp_path, "all.tex") and len(ACCENTS) == len(MARKS)

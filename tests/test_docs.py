"""README and docs: their length, the length of their sentences, and their links.

`python tests/test_docs.py` prints the words of every page and the mean words of its sentences.
"""

import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import typer
from factories import parse_command

from wnrepro import cli
from wnrepro.parameterization.trial import trial
from wnrepro.reproduce.grid import planned

TOP = Path(__file__).parent.parent
README = TOP / "README.md"
PAGES = [README, TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
COMMAND = re.compile(r"(?:^|`|&& )(?:\.venv/bin/)?(wnrepro [a-z][^`&>\n]*)", re.MULTILINE)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))


def words(page: Path) -> int:
    """Count as `wc -w` does."""
    return len(page.read_text().split())


def sentences(page: Path) -> list[str]:
    """Return the sentences of a page's paragraphs and list items: not those of code, tables and headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*(#|\||<).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s", text)
    found = [one for block in blocks for one in re.split(r"(?<=[.!?])[\s*_)]+", " ".join(block.split()))]
    return [one for one in found if len(one.split()) > 1]


def anchors(page: Path) -> set[str]:
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {*re.findall(r'<a id="([^"]+)">', text)} | {
        re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings
    }


@each_page
def test_a_page_is_short_and_its_sentences_too(page: Path) -> None:
    assert words(page) <= (1100 if page == README else 999)
    lengths = [len(one.split()) for one in sentences(page)]
    assert not lengths or mean(lengths) < 18


@each_page
def test_commands_are_understood(page: Path) -> None:
    """Those of wnrepro, with the words of `reproduce`, and the targets of make."""
    code = "\n".join(re.findall(r"^```(?:bash)?\n.*?^```|`[^`\n]+`", page.read_text(), re.DOTALL | re.MULTILINE))
    for line in (line.partition("  #")[0].strip() for line in COMMAND.findall(code)):
        assert line.split()[1] in typer.main.get_command(cli.app).commands, line  # type: ignore[attr-defined]
        if len(line.split()) > 2 and "…" not in line:  # else it is only the name of a command
            names, given = parse_command(line)
            if names == ("reproduce",):
                planned(given["scale"], given["words"])
    targets = re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert {*re.findall(r"(?:^|`)make ([a-z-]+)", code, re.MULTILINE)} <= {*targets}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for one in filter(None, (link or other for link, other in LINK.findall(page.read_text()))):
        path, _, anchor = one.partition("#")
        if "://" not in path:
            target = page.parent / path if path else page
            assert target.exists(), one
            assert not anchor or anchor in anchors(target), one


@each_page
def test_python_blocks_run(page: Path) -> None:
    """They run as they stand, in one namespace, and a parameterization in them passes the trial."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(block, names)
    for value in list(names.values()):
        if isinstance(value, type) and value.__module__ == "page":
            trial(value)


def test_the_readme_links_to_every_page() -> None:
    """Those of a folder of docs/ are linked from the page with the folder's name."""
    for page in PAGES[1:]:
        index = page.parent.with_suffix(".md") if page.parent.parent == TOP / "docs" else README
        linked = {(index.parent / link.split("#")[0]).resolve() for link, _ in LINK.findall(index.read_text())}
        assert page.resolve() in linked, page


if __name__ == "__main__":
    for page in PAGES:
        lengths = [len(one.split()) for one in sentences(page)]
        print(f"{words(page):6} words, {mean(lengths or [0]):4.1f} a sentence: {page.relative_to(TOP)}")

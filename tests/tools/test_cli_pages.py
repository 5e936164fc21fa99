"""docs/cli.md and docs/cli/: generated from the options, complete, and as committed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from wnrepro import cli
from wnrepro.tools.cli_pages import DOCS

CODE = "import sys\nfrom wnrepro.tools.cli_pages import main\nmain()\nassert 'torch' not in sys.modules"
MADE = ("cli.md", "cli/*.md")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The generated pages, by path: those of a process without torch, where no test has registered an experiment."""
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, "-c", CODE, folder], check=True)
    return {str(path.relative_to(folder)): path.read_text() for name in MADE for path in folder.glob(name)}


def leaves(group: Any, words: str = "") -> dict[str, Any]:
    """Every command that is no group, by the name of its page."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= leaves(command, f"{name}-") if hasattr(command, "commands") else {words + name: command}
    return found


def test_the_committed_pages_are_the_generated_ones(pages: dict[str, str]) -> None:
    committed = {str(path.relative_to(DOCS)): path.read_text() for name in MADE for path in DOCS.glob(name)}
    odd = [name for name in sorted(pages.keys() | committed) if pages.get(name) != committed.get(name)]
    assert not odd, f"run `make docs`: {', '.join(odd)} of docs/ are not as the options have them"


def test_every_command_has_a_page_with_all_its_options(pages: dict[str, str]) -> None:
    commands = leaves(typer.main.get_command(cli.app))
    assert {f"cli/{name}.md" for name in commands} == {name for name in pages if name.startswith("cli/")}
    for name, command in commands.items():
        page = pages[f"cli/{name}.md"]
        assert f"](cli/{name}.md)" in pages["cli.md"]
        shown = set(re.findall(r"(?<=`)--[a-z0-9-]+", page))
        named = {one for param in command.params if param.param_type_name == "option" for one in param.opts}
        assert named - shown <= {"-h", "--help", "--help-all"}


def test_every_variable_of_wnrepro_is_described(pages: dict[str, str]) -> None:
    code = "".join(path.read_text() for path in Path(cli.__file__).parent.rglob("*.py"))
    for name in set(re.findall(r"(?<!_)WNREPRO_[A-Z]+", code)):
        assert f"`{name}" in pages["cli.md"]

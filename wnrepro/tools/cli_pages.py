"""Writes docs/cli.md and docs/cli/<command>.md from the options that make --help. It needs no torch.

python -m wnrepro.tools.cli_pages [FOLDER]

FOLDER is the folder docs of the repository, by default that of this clone.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import typer

from wnrepro import cli
from wnrepro.settings import SETTINGS
from wnrepro.usage import Row, examples

DOCS = Path(__file__).parents[2] / "docs"
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("wnrepro.tools", ""), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
CODE = re.compile(r"(`[^`]*`)")
NAMES = re.compile(  # of options, environment variables, files and folders in a help text
    r"(?<![\w`-])(--[a-z][a-z0-9-]*|[A-Z]+(?:_[A-Z]+)+|FILE\.py:CLASS|(?:DIR|~)/[\w<>/.-]*[\w<>]|"
    r"[\w*/]+\.(?:json|csv|html|md|gif|pt2?)\b|[a-z]+/(?=[ .,]|$))"
)


def commands(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the words of each command, such as `data fetch`, with its object and context."""
    for name, command in group.commands.items():
        with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
            if hasattr(command, "commands"):
                yield from commands(command, inner)
            else:
                yield inner.command_path.removeprefix("wnrepro "), command, inner


def markdown(text: str) -> str:
    """Return a help text as Markdown, with names of options and files as code."""
    parts = (part if part.startswith("`") else NAMES.sub(r"`\1`", part) for part in CODE.split(" ".join(text.split())))
    return "".join(parts)


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return text.replace("|", r"\|")


def names(row: Row) -> str:
    """Return an option's names as code, each form in its own."""
    return cell(", ".join(f"`{name}`" for name in re.split(r" / |, ", row.names)))


def default(row: Row) -> str:
    """Return what stands in the column `default`."""
    return cell(markdown(row.default) or ("required" if row.limits == "required" else "–"))


def meaning(row: Row) -> str:
    """Return what an option means, with its limits."""
    limits = row.limits.removesuffix("required")
    return cell(markdown(row.meaning + (f" ({limits})" if limits else "")))


ENVIRONMENT.filters |= {"markdown": markdown, "names": names, "default": default, "meaning": meaning}


def pages() -> dict[str, str]:
    """Return the content of each page, by its path in docs/."""
    app: Any = typer.main.get_command(cli.app)
    found, listed = {}, []
    with app.make_context("wnrepro", [], resilient_parsing=True) as context:
        for words, command, inner in commands(app, context):
            path = f"cli/{words.replace(' ', '-')}.md"
            summary, *paragraphs = command.help.split("\n\n")
            usage = " ".join(command.collect_usage_pieces(inner))
            listed.append((words, path, summary))
            found[path] = ENVIRONMENT.get_template("cli_command.md.jinja").render(
                words=words,
                usage=re.sub(r"[{}]", "", usage),
                paragraphs=[summary, *paragraphs],
                examples=examples(command.name),
                panels={name: rows for name, rows in command.panels(inner, {}).items() if rows},
                experiment=command.name in SETTINGS,
            )
        rows = [row for row in app.panels(context, {})["Options"] if "-completion" not in row.names]
    found["cli.md"] = ENVIRONMENT.get_template("cli.md.jinja").render(commands=listed, rows=rows)
    return found


def main() -> None:
    docs, made = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS, pages()
    (docs / "cli").mkdir(parents=True, exist_ok=True)
    for path in (docs / "cli").glob("*.md"):
        path.unlink()
    for name, text in made.items():
        (docs / name).write_bytes(text.encode())


if __name__ == "__main__":
    main()

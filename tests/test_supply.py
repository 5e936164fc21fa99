"""What is installed: pinned with hashes, listed with its licence in docs/licences.md and docs/licences/extras.md.

The pins are those of requirements.txt; under `make test-lowest` those of tests/requirements-lowest.txt come first.

`python tests/test_supply.py` on Linux x86-64 prints the rows of both pages anew. Pins of other systems keep their rows.
"""

import re
import sys
import tomllib
from importlib.metadata import distribution, metadata, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"].values()
OWN = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
TEXTS = [*PROJECT["build-system"]["requires"], *(one for of in EXTRAS for one in of)]
DIRECT = [*OWN, *(Requirement(text) for text in TEXTS if not text.startswith("wnrepro"))]
PAGES = ("docs/licences.md", "docs/licences/extras.md")  # of OWN and what they need; of the rest
LOWEST = "tests/requirements-lowest.txt"


def pins(file: str = "requirements.txt") -> dict[str, Requirement]:
    """All of a file of requirements, by name; each with at least one hash."""
    found: dict[str, Requirement] = {}
    for line in (TOP / file).read_text().replace("\\\n", "").splitlines():
        if line and not line.lstrip().startswith("#"):
            text, *hashes = line.split("--hash=")
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), line
            found[canonicalize_name(Requirement(text).name)] = Requirement(text)
    return found


def number(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix("==")


def instead() -> dict[str, Requirement]:
    """What is installed in place of requirements.txt's."""
    return pins(LOWEST) if Path(sys.prefix).name == ".venv-lowest" else {}


def needed(direct: list[Requirement] = DIRECT) -> set[str]:
    """The names of all that these need here, and what those need in turn."""
    seen: set[tuple[str, str]] = set()
    left = [(requirement, "") for requirement in direct]
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for of in {"", *requirement.extras}:
            if (name, of) not in seen:
                seen.add((name, of))
                left += [(Requirement(text), of) for text in distribution(name).requires or []]
    return {name for name, _ in seen}


def licence(name: str) -> str:
    """What a distribution's metadata state: an SPDX expression, else a short name, else classifiers."""
    stated: Any = metadata(name)
    short = stated.get("License-Expression") or stated.get("License") or ""
    if not short or "\n" in short:
        classifiers = stated.get_all("Classifier") or []
        short = ", ".join(text.split(" :: ")[-1] for text in classifiers if text.startswith("License :: "))
    return short or "not stated"


def test_all_that_is_needed_is_pinned_at_the_installed_version_with_hashes() -> None:
    installed = {name: version(name) for name in needed()}
    here = {name: pin for name, pin in (pins() | instead()).items() if not pin.marker or pin.marker.evaluate()}
    assert installed == {name: number(pin) for name, pin in here.items() if name in installed or not instead()}
    for file in ("requirements.txt", LOWEST):
        assert pins(file) and "://" not in (TOP / file).read_text(), "whoever installs chooses the index"


def test_the_pins_satisfy_pyproject() -> None:
    pinned = pins()
    for wanted in DIRECT:
        pin = pinned[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(number(pin)), f"{wanted}, but {pin} is pinned"


def listed(page: str) -> dict[str, tuple[str, str]]:
    """Version and licence by name, as a page of docs lists them."""
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| (.+) \|$", (TOP / page).read_text(), re.MULTILINE)
    return {name: (version, text) for name, version, text in rows}


def test_the_licence_of_every_pin_is_listed_as_its_metadata_state_it() -> None:
    own, extras = map(listed, PAGES)
    assert not own.keys() & extras.keys() and needed(OWN) <= own.keys()
    rows = own | extras
    assert {name: version for name, (version, _) in rows.items()} == {name: number(pin) for name, pin in pins().items()}
    here = needed() - {*instead()}
    for name, (_, text) in rows.items():
        assert name not in here or text == licence(name), name


if __name__ == "__main__":
    own, here, rows = needed(OWN), needed(), listed(PAGES[0]) | listed(PAGES[1])
    for page in PAGES:
        print(f"\n{page}")
        for name, pin in sorted(pins().items()):
            if (name in own) == (page == PAGES[0]):
                print(f"| {name} | {number(pin)} | {licence(name) if name in here else rows[name][1]} |")

"""What is installed: pinned with hashes, listed with its licence in LICENCES.md.

The pins are those of requirements.txt; under `make test-lowest` those of requirements-lowest.txt come before them.

`python tests/test_supply.py > LICENCES.md` on Linux x86-64, where every pin is installed, writes the list anew.
"""

import re
import sys
import tomllib
from importlib.metadata import distribution, metadata, version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
DIRECT = [
    Requirement(text)
    for texts in (
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
    )
    for text in texts
    if not text.startswith(PROJECT["project"]["name"])
]
LOWEST = "requirements-lowest.txt"
HEAD = """# Licences of what wnrepro installs

Every distribution pinned in requirements.txt, with the licence that its own metadata state. Made by
`python tests/test_supply.py`; the tests compare it with what is installed.

wnrepro itself is under the MIT licence. [ale-py](https://github.com/Farama-Foundation/Arcade-Learning-Environment) is
under the GPL-2.0: whoever distributes it together with wnrepro must heed that. It brings the games' ROMs along; its
package states no licence of their own for them. NVIDIA's libraries, which torch needs on Linux, are proprietary, under
the terms in each package; cuda-toolkit is empty and only requires them. axe-playwright-python states its licence, MIT,
in a file alone, and brings axe-core along, which is under the MPL-2.0. wnrepro distributes none of these: pip fetches
them.

| distribution | version | licence |
|---|---|---|
"""


class Pin(NamedTuple):
    """One requirement; here: whether it is for this Python and machine."""

    version: str
    here: bool
    hashes: list[str]


def pins(file: str = "requirements.txt") -> dict[str, Pin]:
    """All of a file of requirements, by name."""
    found: dict[str, Pin] = {}
    for line in (TOP / file).read_text().replace("\\\n", "").splitlines():
        if line and not line.lstrip().startswith("#"):
            text, *hashes = line.split("--hash=")
            pin = Requirement(text)
            here = pin.marker is None or pin.marker.evaluate()
            number = str(pin.specifier).removeprefix("==")
            found[canonicalize_name(pin.name)] = Pin(number, here, [text.strip() for text in hashes])
    return found


def instead() -> dict[str, Pin]:
    """What is installed in place of requirements.txt's."""
    return pins(LOWEST) if Path(sys.prefix).name == ".venv-lowest" else {}


def needed() -> set[str]:
    """The names of all that wnrepro needs here with all its extras, and what those need in turn."""
    seen: set[tuple[str, str]] = set()
    left = [(requirement, "") for requirement in DIRECT]
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


def listed() -> dict[str, tuple[str, str]]:
    """Version and licence of every distribution in LICENCES.md."""
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| (.+) \|$", (TOP / "LICENCES.md").read_text(), re.MULTILINE)
    return {name: (number, text) for name, number, text in rows}


def test_all_that_is_needed_is_pinned_at_the_installed_version_with_hashes() -> None:
    installed = {name: version(name) for name in needed()}
    pinned = {name: pin.version for name, pin in (pins() | instead()).items() if pin.here}
    assert installed == {name: number for name, number in pinned.items() if name in installed or not instead()}
    for file in ("requirements.txt", LOWEST):
        for name, pin in pins(file).items():
            assert pin.hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in pin.hashes), name
        assert "://" not in (TOP / file).read_text(), "whoever installs chooses the index"


def test_the_pins_satisfy_pyproject() -> None:
    pinned = pins()
    for wanted in DIRECT:
        pin = pinned[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(pin.version), f"{wanted}, but {pin.version} is pinned"


def test_the_licence_of_every_pin_is_listed_as_its_metadata_state_it() -> None:
    rows = listed()
    assert {name: number for name, (number, _) in rows.items()} == {name: pin.version for name, pin in pins().items()}
    for name in needed() - set(instead()):
        assert rows[name][1] == licence(name), name


if __name__ == "__main__":
    print(HEAD + "\n".join(f"| {name} | {version(name)} | {licence(name)} |" for name in sorted(pins())))

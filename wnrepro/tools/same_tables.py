"""Compares the CSV tables of two results folders, except the column `seconds`: exit code 1 and the names if any differ.

python -m wnrepro.tools.same_tables OLD NEW
"""

import csv
import sys
from pathlib import Path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def main(old: Path, new: Path) -> int:
    before, after = ({path.relative_to(folder) for path in folder.rglob("seed-*/*.csv")} for folder in (old, new))
    found = [f"only in {old}: {name}" for name in sorted(before - after)]
    found += [f"only in {new}: {name}" for name in sorted(after - before)]
    found += [f"differs: {name}" for name in sorted(before & after) if rows(old / name) != rows(new / name)]
    print("\n".join([*found, f"{len(before & after)} tables compared, {len(found)} differ"]))
    return 1 if found or not before & after else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

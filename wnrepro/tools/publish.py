"""Publishes a trained run: its tables, config.json, run.json and weights.pt, without its checkpoints.

python -m wnrepro.tools.publish RUN [PUBLISHED, by default results/published]
"""

import shutil
import sys
from pathlib import Path

from wnrepro.runs.directory import SOURCE, WEIGHTS
from wnrepro.runs.run import open_run

FILES = ("config.json", "run.json", SOURCE, WEIGHTS, "*.csv")


def main(folder: Path, published: Path) -> None:
    with open_run(folder) as run:
        run.write_weights()
        there = published / run.folder.relative_to(run.folder.parents[3])
        there.mkdir(parents=True, exist_ok=True)
        for path in (path for pattern in FILES for path in run.folder.glob(pattern)):
            shutil.copy(path, there)
    print(f"{there}: {(there / WEIGHTS).stat().st_size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(*sys.argv[2:3] or ["results/published"]))

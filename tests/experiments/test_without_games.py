"""A Python without gymnasium and ale-py runs all but DQN, which says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gymnasium", "ale_py"):
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
import wnrepro.experiments.atari, wnrepro.bench.plain, wnrepro.experiments.dqn
from wnrepro.cli import main

for words in (line.split() for line in sys.stdin):
    sys.argv = ["wnrepro", *words]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    print("exit code", code)
"""


@pytest.mark.slow
def test_all_but_dqn_runs_without_gymnasium_and_ale_py(tmp_path: Path) -> None:
    tiny = "--epochs 1 --train-examples 200 --test-examples 100 --width 4 --batch-size 20 --init-examples 100"
    commands = f"""
        cifar --param wn --scale quick {tiny} --results {tmp_path}
        report --scale quick --results {tmp_path}
        dqn --param wn --scale quick --results {tmp_path}
        bench dqn --results {tmp_path}
    """
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], input=commands.strip(), capture_output=True, text=True, check=True
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert codes == [f"exit code {code}" for code in (0, 0, 2, 2)], done
    assert len(list(tmp_path.rglob("metrics.csv"))) == 1 and (tmp_path / "quick/report.md").exists()
    says = "its emulator cannot be imported (No module named 'ale_py'); install it by `pip install ale-py gymnasium`"
    assert done.stderr == f"wnrepro: --game space_invaders: {says}\nwnrepro: --game breakout: {says}\n"

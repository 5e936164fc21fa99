"""The experiment of examples/char_lstm.py, through its command line: trains, resumes after a kill, is reported."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[2] / "examples/char_lstm.py")
QUICK = ["--scale", "quick", "--device", "cpu"]  # the scale's own settings: the overview shows no others


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("quick/char_lstm/*/seed-1/metrics.csv")
    with path.open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_trains_resumes_after_a_kill_and_is_reported(tmp_path: Path) -> None:
    words = ["char_lstm", "--param", "wn+mobn", *QUICK, "--results"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with start(*words, str(killed)) as process:
        deadline = time.monotonic() + 300
        while not list(killed.glob("*/*/*/*/checkpoint-previous.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert 2 <= len(rows(killed)) <= 4
    report = ("report", "--scale", "quick", "--results", str(killed))
    for command in ([*words, str(killed)], [*words, str(whole)], report):
        with start(*command) as process:
            output, _ = process.communicate()
        assert process.returncode == 0, output
    assert rows(killed) == rows(whole) and len(rows(whole)) == 4
    assert float(rows(whole)[-1]["test_bits"]) < float(rows(whole)[0]["test_bits"])
    text = (killed / "quick/report.md").read_text()
    assert "Character LSTM" in text and "char_lstm wn+mobn" in text
    assert (killed / "quick/figures/overview.png").exists()

"""The command line: what it runs, what it prints, and one clear sentence with exit code 2 for every mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wnrepro.cli import main
from wnrepro.experiments.cifar import Cifar
from wnrepro.settings import PARAMS, CifarSettings

TINY = ["--scale", "quick", "--epochs", "2", "--width", "4"]
TINY += ["--train-examples", "200", "--test-examples", "100", "--init-examples", "100"]
FOLDER = "_epochs-2_train_examples-200_test_examples-100_width-4_init_examples-100"


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*words) → (exit code, what was printed, what was printed as errors)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wnrepro", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def random_images(monkeypatch, images):
    """`wnrepro cifar` on random images, which need no whitening."""
    monkeypatch.setattr(Cifar, "load", classmethod(lambda cls, s, _folder, device: cls(s, images, device)))


def test_the_real_entry_point_on_the_bundled_images(tmp_path):
    command = [Path(sys.executable).with_name("wnrepro"), "cifar", "--param", "wn+mobn", *TINY, "--results", tmp_path]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "epoch 2/2  train error" in first.stdout
    folder = tmp_path / f"quick/cifar/wn+mobn_lr0.003{FOLDER}/seed-1"
    assert first.stdout.rstrip().endswith(f"{folder}: done")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done" and record["facts"]["data"].startswith("bundled")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == f"{folder}: done\n"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_help_imports_no_torch():
    code = (
        "import sys\nsys.argv = ['wnrepro', '--help']\nfrom wnrepro.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("cifar", "report", "bench", "data", "doctor"):
        assert command in done.stdout


def test_every_setting_is_an_option_with_its_source(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, _ = run("cifar", "--help")
    assert code == 0
    text = " ".join(printed.replace("│", "").split())
    for name, field in CifarSettings.__dataclass_fields__.items():
        assert "--" + name.replace("_", "-") in printed
        assert f"({field.metadata['source']}" in text
    assert "epochs (§5.1; default: 200, short 6, quick 10)" in text


def test_all_runs_the_four_and_prints_json(run, random_images, tmp_path):
    code, printed, _ = run("cifar", "--param", "all", *TINY, "--results", tmp_path, "--json")
    records = json.loads(printed)
    assert code == 0 and [record["status"] for record in records] == 4 * ["done"]
    folders = [f"{tmp_path}/quick/cifar/{p}_lr{0.0003 if p == 'normal' else 0.003}{FOLDER}/seed-1" for p in PARAMS]
    assert [record["run"] for record in records] == folders


def test_divergence_is_a_result_and_the_report_says_so(run, random_images, tmp_path):
    code, printed, _ = run("cifar", "--param", "normal", "--lr", 30, *TINY, "--results", tmp_path)
    assert code == 0 and "diverged (median training loss" in printed
    assert run("cifar", "--param", "normal", "--lr", 30, *TINY, "--results", tmp_path)[0] == 0  # and it is skipped
    code, printed, _ = run("report", "--results", tmp_path)
    assert code == 0 and printed == f"{tmp_path}/quick/report.md\n"
    assert "| diverged | 1 of 2 |" in Path(printed.strip()).read_text()
    assert run("report", "--check", "--results", tmp_path) == (0, "every run's files fit: scale quick\n", "")
    (metrics,) = tmp_path.rglob("metrics.csv")
    metrics.write_text(metrics.read_text().replace(",30.0", ",31.0"))
    code, printed, _ = run("report", "--check", "--results", tmp_path)
    assert code == 1 and "metrics.csv" in printed


def test_quiet_prints_nothing(run, random_images, tmp_path):
    assert run("cifar", "--param", "wn", *TINY, "--results", tmp_path, "--quiet") == (0, "", "")


def test_fresh_needs_a_yes(run, random_images, tmp_path):
    words = ("cifar", "--param", "wn", *TINY, "--results", tmp_path)
    assert run(*words)[0] == 0
    (record,) = tmp_path.rglob("run.json")
    first = json.loads(record.read_text())
    code, _, error = run(*words, "--fresh")
    assert code == 2 and "add --yes" in error and json.loads(record.read_text()) == first
    assert run(*words, "--fresh", "--yes")[0] == 0
    assert json.loads(record.read_text())["resumed"] == []
    assert json.loads(record.read_text()) != first


def test_a_failed_run_is_exit_code_1_and_goes_on_later(run, random_images, tmp_path, monkeypatch):
    step, count = Cifar.step, 0

    def fails(self, index):
        nonlocal count
        count += 1
        if count == 12:
            raise MemoryError("no more")
        return step(self, index)

    monkeypatch.setattr(Cifar, "step", fails)
    words = ("cifar", "--param", "wn", *TINY, "--results", tmp_path)
    code, printed, error = run(*words)
    assert code == 1 and "failed, MemoryError: no more" in error and "failed" in printed
    code, printed, _ = run(*words)
    assert code == 0 and "done" in printed
    (record,) = tmp_path.rglob("run.json")
    assert [entry["from_epoch"] for entry in json.loads(record.read_text())["resumed"]] == [1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("cifar --param nonsense", "--param nonsense: unknown; give one of normal, bn, wn, wn+mobn"),
        ("cifar --param wn --lr -1", "--lr -1: give a number above 0"),
        ("cifar --param wn --lr nan", "--lr nan: give a number above 0"),
        ("cifar --param wn --epochs 0", "--epochs 0: give a number of at least 1"),
        ("cifar --param wn --scale large", "--scale large: unknown; give one of paper, short, quick"),
        ("cifar --param wn --scale short --data-dir {tmp}/none", "cifar10 is not complete in {tmp}/none"),
        ("cifar --param wn --scale quick --results {tmp}/file", "--results {tmp}/file: is a file; give a folder"),
        ("cifar --param wn --scale quick --device tpu", "--device tpu: no such device"),
        ("cifar --param wn --scale quick --precision tf32 --device cpu", "--precision tf32: only a GPU has it"),
        ("cifar --param wn --scale quick --precision fp8", "--precision fp8: unknown"),
        ("cifar --param normal --scale quick --g-exp 3", "--g-exp: the parameterization normal has no g"),
        ("cifar --param wn --scale quick --train-examples 999999", "--train-examples 999999: bundled has 12000"),
        (
            "cifar --param wn --scale quick --train-examples 100 --batch-size 101",
            "--batch-size 101: there are only 100",
        ),
        ("cifar --param wn --scale quick --train-examples 100", "--init-examples 500: there are only 100"),
        ("report --results {tmp}/none", "--results {tmp}/none: no such folder"),
        ("report --results {tmp}/empty", "--results {tmp}/empty: holds no runs"),
        ("report --results {tmp}/empty --scale big", "--scale big: unknown"),
        ("bench chess", "bench chess: unknown; give one of cifar"),
        ("bench cifar --precision fp8", "--precision fp8: unknown"),
        ("data fetch imagenet --data-dir {tmp}/empty", "no data set 'imagenet'"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, words, says):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = words.format(tmp=tmp_path).split()
    if "--results" not in words and words[0] in ("cifar", "bench"):
        words += ["--results", f"{tmp_path}/results"]
    code, printed, error = run(*words)
    assert (code, printed) == (2, "")
    assert error.startswith("wnrepro: ") and says.format(tmp=tmp_path) in error and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", ["cifar", "cifar --param wn --epochs many", "cifar --param wn --no-such", "nonsense"])
def test_what_the_parser_refuses_is_exit_code_2(run, words):
    code, printed, error = run(*words.split())
    assert code == 2 and printed == "" and "Traceback" not in error


def test_data_status_and_doctor_speak_json(run, tmp_path):
    code, printed, _ = run("data", "status", "--data-dir", tmp_path, "--json")
    status = json.loads(printed)
    assert code == 0 and {file["state"] for file in status["files"]} == {"missing"} and status["free_bytes"] > 0
    code, printed, _ = run("data", "status", "--data-dir", tmp_path)
    assert code == 0 and "cifar10" in printed and "wnrepro data fetch" in printed
    _, printed, _ = run("doctor", "--data-dir", tmp_path, "--results", tmp_path, "--json")
    assert {"python", "torch", "memory"} <= {finding["name"] for finding in json.loads(printed)}


ON_RANDOM_IMAGES = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from conftest import make_images
from wnrepro.cli import main
from wnrepro.experiments.cifar import Cifar
Cifar.load = classmethod(lambda cls, settings, _folder, device: cls(settings, make_images(), device))
main()
"""


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-c", ON_RANDOM_IMAGES, str(Path(__file__).parent), "cifar", "--param", "wn", *TINY]
    command[command.index("--epochs") + 1] = "2000"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--results", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "epoch 1/2000" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        error = process.stderr.read()
    assert "the same command again goes on from the last finished epoch" in error and "Traceback" not in error
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["status"] == "running"

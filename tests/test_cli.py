"""The command line: what it runs, prints and writes, and its refusal of every kind of bad input."""

import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import make_run, make_vae, small_data
from PIL import Image, ImageSequence

from wnrepro.cuda_graphs import CaptureError
from wnrepro.data.files import DATASETS
from wnrepro.data.images import Images
from wnrepro.experiments import experiment_class
from wnrepro.experiments.cifar import Cifar
from wnrepro.runs.directory import PUBLISHED, seal
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import GAMES, PARAMS, SETTINGS

Command = Callable[..., tuple[int, str, str]]

TINY = ["--scale", "quick", "--epochs", "2", "--width", "4"]
TINY += ["--train-examples", "200", "--test-examples", "100", "--init-examples", "100"]
FOLDER = "_epochs-2_train_examples-200_test_examples-100_width-4_init_examples-100"
CIFAR = ["cifar", "--param", "wn", *TINY]


@pytest.fixture
def random_images(monkeypatch: pytest.MonkeyPatch, images: Images) -> None:
    """`wnrepro cifar` on random images, which need no whitening."""
    monkeypatch.setattr(Cifar, "load", classmethod(lambda cls, s, _folder, device: cls(s, images, device)))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and content, without the lock, which names its last holder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_help_imports_no_torch() -> None:
    commands = [[], *([name] for name in (*SETTINGS, "sample", "watch", "export", "reproduce", "report", "bench"))]
    code = (
        "import sys\nfrom wnrepro.cli import main\n"
        f"for words in {commands}:\n"
        "    sys.argv = ['wnrepro', *words, '--help']\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"wnrepro {name}" in done.stdout for (name,) in commands[1:])


# ------------------------------------------------------------------------------- runs of the classifier


@pytest.mark.slow
def test_the_entry_point_runs_the_bundled_images(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wnrepro", *CIFAR, "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"WNREPRO_DATA": "/no/data"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("seed-1: done\n")
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["facts"]["data"].startswith("bundled")


def test_a_finished_run_is_skipped(run: Command, random_images: None, tmp_path: Path) -> None:
    code, printed, error = run(*CIFAR, "--results", tmp_path)
    folder = tmp_path / f"quick/cifar/wn_lr0.003{FOLDER}/seed-1"
    assert (code, error) == (0, "")
    assert "epoch 2/2" in printed
    assert printed.endswith(f"{folder}: done\n")
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    before = state(tmp_path)
    assert run(*CIFAR, "--results", tmp_path) == (0, f"{folder}: done\n", "")
    assert state(tmp_path) == before


def test_all_runs_the_four_and_prints_json(run: Command, random_images: None, tmp_path: Path) -> None:
    code, printed, _ = run("cifar", "--param", "all", *TINY, "--results", tmp_path, "--json")
    records = json.loads(printed)
    assert code == 0
    assert [record["status"] for record in records] == 4 * ["done"]
    folders = [f"{tmp_path}/quick/cifar/{p}_lr{0.0003 if p == 'normal' else 0.003}{FOLDER}/seed-1" for p in PARAMS]
    assert [record["run"] for record in records] == folders


def test_divergence_is_a_result(run: Command, random_images: None, tmp_path: Path, text_only: None) -> None:
    words = ("cifar", "--param", "normal", "--lr", 30, *TINY, "--results", tmp_path)
    code, printed, _ = run(*words)
    assert code == 0
    assert ": diverged (" in printed
    assert run(*words)[0] == 0  # it is skipped
    code, printed, _ = run("report", "--results", tmp_path)
    assert (code, printed) == (0, f"{tmp_path}/quick/report.md\n{tmp_path}/quick/report.html\n")
    assert "| diverged | 1 of 2 |" in (tmp_path / "quick/report.md").read_text()
    code, printed, error = run("report", "--check", "--results", tmp_path)
    assert (code, error) == (0, "")
    assert "quick" in printed
    (metrics,) = tmp_path.rglob("metrics.csv")
    metrics.write_text(metrics.read_text().replace(",30.0", ",31.0"))
    code, printed, _ = run("report", "--check", "--results", tmp_path)
    assert code == 1
    assert "metrics.csv" in printed


def test_fresh_needs_consent(run: Command, random_images: None, tmp_path: Path) -> None:
    words = (*CIFAR, "--results", tmp_path)
    assert run(*words, "--quiet") == (0, "", "")
    before = state(tmp_path)
    code, _, error = run(*words, "--fresh")
    assert code == 2
    assert "--fresh" in error
    assert "--yes" in error
    assert state(tmp_path) == before
    assert run(*words, "--fresh", "--yes")[0] == 0
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["resumed"] == []
    assert state(tmp_path) != before


@pytest.mark.parametrize(
    ("error", "expected", "status", "says", "runs"),
    [
        (MemoryError("no more"), 1, "failed", "MemoryError: no more", 2),
        (ZeroDivisionError("by\x1b[2J nothing"), 1, "failed", "ZeroDivisionError: by\\x1b[2J nothing", 2),
        (CaptureError("not permitted"), 1, "failed", "WNREPRO_GRAPHS=0", 1),  # no GPU works any more in its process
        (KeyboardInterrupt(), 130, "running", "interrupted", 1),
    ],
)
def test_a_run_that_fails_or_is_interrupted_continues_later(
    run: Command,
    random_images: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    expected: int,
    status: str,
    says: str,
    runs: int,
) -> None:
    step, calls = Cifar.step, itertools.count()

    def fails(self: Cifar, index: Any) -> Any:
        if next(calls) == 11:
            raise error
        return step(self, index)

    monkeypatch.setattr(Cifar, "step", fails)
    words = ("cifar", "--param", "wn", "--param", "bn", *TINY, "--results", tmp_path)
    code, printed, said = run(*words, *["--debug"] * (runs == 1))
    assert code == expected
    assert says in said
    assert "\x1b" not in printed + said
    assert ("Traceback" in said) == (status == "failed" and runs == 1)
    (record,) = tmp_path.rglob("wn_*/seed-1/run.json")
    assert json.loads(record.read_text())["status"] == status
    assert len(list(tmp_path.rglob("run.json"))) == runs
    assert run(*words, "--quiet")[0] == 0
    assert [entry["from_epoch"] for entry in json.loads(record.read_text())["resumed"]] == [1]


@pytest.mark.slow
def test_ctrl_c_ends_a_process_cleanly(tmp_path: Path) -> None:
    words = [*CIFAR, "--results", str(tmp_path)]
    words[words.index("--epochs") + 1] = "2000"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "wnrepro", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "epoch 1/2000" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["status"] == "running"


# ------------------------------------------------------------------------------- bad input


MISTAKES = {  # the words, and what the refusal names
    "cifar": [
        ("--param nonsense", "--param nonsense"),
        ("--param {tmp}/none.py:Mine", "{tmp}/none.py"),
        ("--param none:Mine", "none"),
        ("--param {tmp}/empty:Mine", "{tmp}/empty"),
        ("--param wn --lr -1", "--lr -1"),
        ("--param wn --lr nan", "--lr nan"),
        ("--param wn --epochs 0", "--epochs 0"),
        ("--param wn --epochs 99999999999999999999", "--epochs"),
        ("--param wn --epochs many", "--epochs"),
        ("--param wn --scale large", "--scale"),
        ("--param wn --scale short --data-dir {tmp}/none", "{tmp}/none"),
        ("--param wn --scale quick --results {tmp}/file", "--results {tmp}/file"),
        ("--param wn --scale quick --results {tmp}/{long}", "--results {tmp}/{long}"),
        ("--param wn --scale quick --results /proc/no/such", "/proc/no"),
        ("--param wn --scale quick --device tpu", "--device tpu"),
        ("--param wn --scale quick --precision tf32 --device cpu", "--precision tf32"),
        ("--param normal --scale quick --g-exp 3", "--g-exp 3"),
        ("--param wn --scale quick --init folded", "--init folded"),
        ("--param wn --scale quick --init nonsense", "--init nonsense"),
        ("--param wn --scale quick --train-examples 999999", "--train-examples 999999"),
        ("--param wn --scale quick --train-examples 100 --batch-size 101", "--batch-size 101"),
        ("--param wn --scale quick --train-examples 100", "--init-examples 500"),
        ("--param wn --importance-samples 3", "--importance-samples"),
        ("--param wn --game all", "--game"),
        ("", "--param"),
    ],
    "cvae": [
        ("--dataset cifar10 --hidden 20", "--hidden 20"),
        ("--dataset cifar10 --binarization seeded", "--binarization seeded"),
        ("--maps 4 --maps 8", "--maps"),
        ("--maps 4,8,8", "--maps"),
        ("--depths 2", "--depths"),
        ("--dataset cifar10" + 6 * " --depths 1", "--depths"),
        ("--depths 1 --depths 0 --depths 1", "--depths 0"),
        ("--train-examples 4001", "--train-examples 4001"),
        ("--scale paper --train-examples 60001", "--train-examples 60001"),
        ("--train-examples 100 --init-examples 101", "--init-examples 101"),
        ("--train-examples 200 --batch-size 201", "--batch-size 201"),
        ("--scale short --data-dir {tmp}/empty", "{tmp}/empty"),
        ("--scale short --dataset cifar10 --data-dir {tmp}/empty", "{tmp}/empty"),
        ("--scale paper --binarization seeded --data-dir {tmp}/empty", "{tmp}/empty"),
        ("--data-dir {tmp}/{long} --scale short", "{tmp}/{long}"),
        ("--data-dir ~no-such-user/data --scale short", "~no-such-user"),
        ("--importance-samples 0", "--importance-samples"),
    ],
    "draw": [
        ("--train-examples 4001", "--train-examples 4001"),
        ("--scale paper --train-examples 60001", "--train-examples 60001"),
        ("--train-examples 200 --batch-size 201", "--batch-size 201"),
        ("--binarization seeded", "--binarization seeded"),
        ("--param bn --g-start 1", "--g-start 1"),
        ("--scale short --data-dir {tmp}/empty", "{tmp}/empty"),
        ("--attention 1", "1"),
        ("--dataset mnist", "--dataset"),
    ],
    "dqn": [
        ("--game pong", "--game pong"),
        ("--param none --game all", "--param none"),
        ("--param all --game all --batch-size 600", "--batch-size 600"),
        ("--replay-start 501 --replay-steps 500", "--replay-start 501"),
        ("--maps 4", "--maps"),
        ("--discount 1.5", "--discount 1.5"),
        ("--replay-steps 999999999999", "--replay-steps 999999999999"),
    ],
    "reproduce": [
        ("--scale large", "--scale"),
        ("--engine mpi", "--engine"),
        ("--precision fp8", "--precision"),
        ("--budget 99999999999999999999h", "--budget"),
        ("draw --plan --data-dir {tmp}/{long}", "{tmp}/{long}"),
    ],
    "report": [
        ("--results {tmp}/none", "--results {tmp}/none"),
        ("--results {tmp}/{long}", "--results {tmp}/{long}"),
        ("--results {tmp}/empty", "--results {tmp}/empty"),
        ("--results {tmp}/empty --scale big", "--scale"),
        ("--results {tmp}/empty --precision fp8", "--precision"),
        ("--results {tmp}/empty --published", "{tmp}/empty/published"),
        ("--results {tmp}/empty --export word", "--export"),
        ("--results {results} --scale quick", "--results {results}"),
        ("--results {results} --compare {tmp}/none", "--compare {tmp}/none"),
        ("--results {results} --compare {tmp}/empty", "--compare {tmp}/empty"),
        ("--results {results} --compare {results}", "--compare {results}"),
        ("--results {results} --compare {results} --check", "--compare"),
        ("--results {results} --serve --port 99999", "--port"),
    ],
    "bench": [
        ("chess", "chess"),
        ("cifar --precision fp8", "--precision fp8"),
        ("--rounds 1", "--rounds"),
        ("cifar --smoke --precision bf16", "--smoke"),
    ],
    "sample": [
        ("", "RUN"),
        ("{tmp}/none", "{tmp}/none"),
        ("{tmp}/empty", "{tmp}/empty"),
        ("{tmp}/file", "{tmp}/file"),
        ("{tmp}/{long}", "{tmp}/{long}"),
        ("{tmp} --count 0", "--count"),
        ("{tmp} --seed -1", "--seed"),
        ("{cifar_run}", "{cifar_run}"),
        ("{cifar_run} --device tpu", "--device tpu"),
        ("{cifar_run} --param {tmp}/none.py:Mine", "{tmp}/none.py"),
    ],
    "watch": [
        ("", "RUN"),
        ("{tmp}/none", "{tmp}/none"),
        ("{tmp}/file", "{tmp}/file"),
        ("{tmp} --seconds 0", "--seconds"),
        ("{tmp} --seconds 1801", "--seconds"),
        ("{cifar_run}", "{cifar_run}"),
    ],
    "export": [
        ("", "RUN"),
        ("{cifar_run}", "--tensorboard"),
        ("{tmp}/empty --tensorboard {tmp}/new", "{tmp}/empty"),
        ("{tmp}/{long} --tensorboard {tmp}/new", "{tmp}/{long}"),
        ("{cifar_run} --tensorboard {tmp}/file", "{tmp}/file"),
        ("{cifar_run} --tensorboard {tmp}/file/new", "{tmp}/file"),
        ("{cifar_run} --tensorboard {tmp}/{long}", "{tmp}/{long}"),
    ],
    "data": [
        ("fetch imagenet --data-dir {tmp}/empty", "imagenet"),
        ("fetch cifar10 --data-dir {tmp}/file", "{tmp}/file"),
        ("status --data-dir {tmp}/{long}", "{tmp}/{long}"),
        ("nonsense", "nonsense"),
    ],
    "nonsense": [("", "nonsense")],
}


def assert_refused(result: tuple[int, str, str], named: str) -> None:
    """The command ended with a sentence, or the parser's, that names the option or file."""
    code, printed, error = result
    assert (code in (1, 2), printed) == (True, "")
    assert named in error.replace("│\n│ ", "")
    assert "Traceback" not in error
    assert "--debug" not in error
    assert re.fullmatch(r"(Usage: (.*\n)*|wnrepro( \w+)?: .*\n(  .*\n)*)", error)


@pytest.mark.parametrize(
    ("command", "words", "named"), [(command, *mistake) for command, some in MISTAKES.items() for mistake in some]
)
def test_a_mistake_is_refused_and_writes_nothing(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str, named: str
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    names = {"tmp": tmp_path, "long": 300 * "a", "results": tmp_path / "results"}
    names["cifar_run"] = make_run(tmp_path / "results")
    before = state(tmp_path)
    given = words.format(**names).split()
    if command in ("cvae", "draw", "dqn"):
        given += [] if "--param" in given else ["--param", "wn"]
        given += [] if "--scale" in given else ["--scale", "quick"]
    result = run(command, *given)
    assert_refused(result, named.format(**names))
    assert result[0] == 2 or "{long}" in words or "/proc" in words or "/file" in words  # 1: the disk's fault
    assert state(tmp_path) == before


def test_a_taken_port_is_refused(run: Command, tmp_path: Path) -> None:
    make_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(run("report", "--results", tmp_path, "--serve", "--port", port), f"--port {port}")


def test_results_without_permission_are_refused(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode == os.R_OK)  # root is allowed everything
    result = run("report", "--results", tmp_path)
    assert_refused(result, f"--results {tmp_path}")
    assert result[0] == 1


@pytest.mark.parametrize(
    ("module", "words", "named"),
    [
        ("ray", "reproduce --engine ray --scale quick", "ray"),
        ("tensorboardX", "export {run} --tensorboard {tmp}/new", "tensorboard"),
        ("ale_py.vector_env", "dqn --param wn --scale quick", "ale"),
    ],
)
def test_a_missing_package_is_named(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "results")
    assert_refused(run(*words.format(run=folder, tmp=tmp_path).split()), named)


def test_missing_roms_are_named(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    assert_refused(run("dqn", "--param", "wn", "--scale", "quick", "--results", tmp_path / "new"), "ROM")


@pytest.mark.parametrize("content", ["\xff", "{", "[]", '{"settings": {}}'])
@pytest.mark.parametrize(
    "words",
    [
        ["cifar", "--param", "wn", "--scale", "quick", "--results"],
        ["report", "--results"],
        ["sample"],
        ["export", "--tensorboard", "new"],
    ],
)
def test_a_damaged_config_is_named_without_control_characters(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "re\x1b[2Jsults\r\udcff"
    folder = make_run(results, scale="quick")
    (folder / "config.json").write_bytes(content.encode("latin1"))
    before = state(tmp_path)
    code, printed, error = run(*words, results if words[-1] == "--results" else folder)
    assert code == 2
    assert "re\\x1b[2Jsults \\udcff/quick" in error
    assert "config.json" in error
    assert not set(printed + error) & {"\x1b", "\r"}
    assert state(tmp_path) == before


# ------------------------------------------------------------------------------- cvae, draw, sample


def change_status(folder: Path, status: str) -> None:
    record = json.loads((folder / "run.json").read_text()) | {"status": status}
    seal(record)
    (folder / "run.json").write_text(json.dumps(record))


SMALL = ["--scale", "quick", "--epochs", "1", "--train-examples", "100", "--test-examples", "100", "--batch-size", "20"]
VAES = {
    "cvae": ["cvae", *SMALL, "--init-examples", "60", *(3 * ["--maps", "2"]), "--hidden", "8", "--iaf-width", "4"],
    "draw": ["draw", *SMALL, "--units", "8", "--time-steps", "3"],
}
each_vae = pytest.mark.parametrize("vae", VAES)


@pytest.fixture(scope="module")
def trained_vaes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a finished run of each."""
    from wnrepro import cli

    results = tmp_path_factory.mktemp("vaes")
    for words in VAES.values():
        cli.app([*words, "--param", "wn", "--quiet", "--results", str(results)], standalone_mode=False)
    return results


@pytest.fixture
def vaes(trained_vaes: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(trained_vaes, tmp_path / "results"))


def vae_folder(results: Path, vae: str) -> Path:
    (folder,) = results.glob(f"quick/{vae}/*/seed-1")
    return folder


@each_vae
def test_a_finished_vae_is_skipped_without_its_data(
    run: Command, vaes: Path, monkeypatch: pytest.MonkeyPatch, vae: str
) -> None:
    folder = vae_folder(vaes, vae)
    before = state(folder)
    assert before.keys() == {
        *("config.json", "run.json", "metrics.csv", "layers.csv", "checkpoint.pt"),
        "kl_steps.csv" if vae == "draw" else "init.csv",
    }
    monkeypatch.setattr(experiment_class(vae), "load", classmethod(lambda *_: pytest.fail("it needs no data")))
    assert run(*VAES[vae], "--param", "wn", "--results", vaes) == (0, f"{folder}: done\n", "")
    assert state(folder) == before


def test_a_switch_is_a_setting_of_the_run(run: Command, vaes: Path) -> None:
    words = (*VAES["draw"], "--param", "wn", "--results", vaes, "--quiet")
    assert run(*words, "--no-attention") == run(*words, "--attention") == (0, "", "")
    configs = [json.loads(path.read_text())["settings"] for path in vaes.glob("quick/draw/*/seed-1/config.json")]
    assert sorted(config["attention"] for config in configs) == [False, True]


def test_importance_samples_of_a_finished_run_need_no_training(
    run: Command, vaes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = vae_folder(vaes, "cvae")
    before, record = state(folder), json.loads((folder / "run.json").read_text())
    monkeypatch.setattr(experiment_class("cvae"), "train", lambda _: pytest.fail("it has been trained"))
    words = (*VAES["cvae"], "--param", "wn", "--results", vaes)
    code, printed, error = run(*words, "--importance-samples", 3)
    facts = json.loads((folder / "run.json").read_text())["facts"]
    estimate = facts["log_likelihood_nats"]
    assert (code, error) == (0, "")
    assert f"{estimate:.2f} nats" in printed
    assert printed.endswith(f"{folder}: done\n")
    assert facts == record["facts"] | {"log_likelihood_nats": estimate, "importance_samples": 3}
    after = state(folder)
    assert {name for name in before if before[name][1] != after[name][1]} == {"run.json"}
    with (folder / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    code, printed, _ = run(*words, "--importance-samples", 1, "--json")
    (listed,) = json.loads(printed)
    assert code == 0
    assert listed["facts"]["log_likelihood_nats"] == pytest.approx(float(row["test_bound_nats"]), abs=0.01)
    assert estimate > float(row["test_bound_nats"])

    (folder / "checkpoint.pt").unlink()
    before = state(folder)
    assert_refused(run(*words, "--importance-samples", 2), str(folder))
    assert state(folder) == before


@each_vae
def test_divergence_of_a_vae_is_a_result(run: Command, tmp_path: Path, vae: str) -> None:
    words = (*VAES[vae], "--param", "wn", "--lr", "1e6", "--results", tmp_path)
    code, printed, error = run(*words)
    folder = vae_folder(tmp_path, vae)
    assert (code, error) == (0, "")
    assert f"{folder}: diverged (" in printed
    assert json.loads((folder / "run.json").read_text())["status"] == "diverged"
    before = state(folder)
    more = ["--importance-samples", 3] if vae == "cvae" else []
    assert run(*words, *more)[::2] == (0, "")  # it is skipped, and there is nothing to estimate
    assert_refused(run("sample", folder), str(folder))
    assert state(folder) == before


@each_vae
def test_sample_writes_pictures_into_the_run(run: Command, vaes: Path, vae: str) -> None:
    folder = vae_folder(vaes, vae)
    before = state(folder)
    code, printed, error = run("sample", folder, "--count", 6)
    paths = [folder / "samples.png", folder / "reconstructions.png"] + [folder / "drawing.gif"] * (vae == "draw")
    assert (code, error) == (0, "")
    assert printed.splitlines() == list(map(str, paths))
    for path, width in zip(paths, (28, 2 * 28), strict=False):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.size == (3 * (width + 2) + 2, 2 * (28 + 2) + 2)
    after = state(folder)
    drawn = {path: after.pop(path.name)[1] for path in paths}
    assert after == before

    run("sample", folder, "--count", 6)
    assert {path: path.read_bytes() for path in paths} == drawn, "the same seed, the same pictures"
    run("sample", folder, "--count", 6, "--seed", 2)
    assert all(path.read_bytes() != content for path, content in drawn.items())
    assert run("sample", folder)[0] == 0
    with Image.open(paths[0]) as picture:
        assert picture.size == (8 * (28 + 2) + 2, 8 * (28 + 2) + 2), "64 by default"


def test_a_cpu_shows_what_a_gpu_trained_in_tf32(run: Command, vaes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, drawn = vae_folder(vaes, "cvae"), []

    def as_of_a_gpu(path: Path) -> Run:
        opened = open_run(path)
        opened.settings = dataclasses.replace(opened.settings, precision="tf32")
        return opened

    for opener in (open_run, as_of_a_gpu):
        monkeypatch.setattr("wnrepro.runs.run.open_run", opener)
        assert run("sample", folder, "--count", 6, "--device", "cpu")[0] == 0
        drawn.append((folder / "samples.png").read_bytes())
    assert drawn[0] == drawn[1]


def test_a_published_run_without_its_checkpoint_is_not_started_over(run: Command, vaes: Path) -> None:
    own = vae_folder(vaes, "cvae")
    (own / "checkpoint.pt").unlink()
    folder = vaes / PUBLISHED / own.relative_to(vaes)
    shutil.copytree(own, folder)
    change_status(folder, "running")
    before = state(folder)
    for words in (("sample", folder), (*VAES["cvae"], "--param", "wn", "--results", vaes / PUBLISHED)):
        assert_refused(run(*words), str(folder))
    assert state(folder) == before


# ------------------------------------------------------------------------------- MNIST's binarization

FEW = ["--param", "wn", "--scale", "short", "--epochs", "1", "--batch-size", "2", "--latents", "2"]
HANDFUL = {
    "cvae": ["cvae", *FEW, "--init-examples", "6", *(3 * ["--maps", "2"]), "--hidden", "8", "--iaf-width", "4"],
    "draw": ["draw", *FEW, "--units", "4", "--time-steps", "2"],
}


@each_vae
@pytest.mark.parametrize(
    ("files", "binarization", "fact"),
    [("mnist", "seeded", "binarized once by seed"), ("binarized_mnist", "larochelle", "Larochelle")],
)
def test_the_binarization_is_that_of_the_files(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: str, files: str, binarization: str, fact: str
) -> None:
    small_data(monkeypatch, files, tmp_path)
    words = (*HANDFUL[vae], "--data-dir", tmp_path, "--results", tmp_path / "results")
    code, printed, error = run(*words)
    assert code == 0
    assert "done" in printed
    assert bool(error) == (binarization == "seeded")
    (path,) = (tmp_path / "results").rglob("config.json")
    assert json.loads(path.read_text())["settings"]["binarization"] == binarization
    assert fact in json.loads(path.with_name("run.json").read_text())["facts"]["data"]
    before = state(path.parent)
    assert run(*words, "--binarization", binarization, "--quiet") == (0, "", "")  # the same run
    assert state(path.parent) == before


@pytest.mark.parametrize(("words", "notes"), [(["--param", "all"], 1), (["--quiet"], 0), (["--json"], 0)])
def test_the_note_on_the_seed_is_printed_once(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], notes: int
) -> None:
    small_data(monkeypatch, "mnist", tmp_path)
    monkeypatch.setattr("wnrepro.cli.run_all", lambda *_, **__: 0)
    code, _, error = run(*HANDFUL["cvae"], *words, "--data-dir", tmp_path)
    assert code == 0
    assert error.count("\n") == notes


@each_vae
def test_a_missing_binarization_that_was_asked_for_is_not_replaced(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: str
) -> None:
    small_data(monkeypatch, "mnist", tmp_path)
    before = state(tmp_path)
    words = (*HANDFUL[vae], "--data-dir", tmp_path, "--results", tmp_path / "results")
    result = run(*words, "--binarization", "larochelle")
    assert_refused(result, "--binarization seeded")
    assert all(path in result[2] for path in DATASETS["binarized_mnist"])
    assert state(tmp_path) == before


# ------------------------------------------------------------------------------- dqn, watch

DQN = {"game": "breakout", "epochs": 1, "epoch_steps": 150, "test_steps": 20, "test_games": 2}
DQN |= {"replay_steps": 200, "replay_start": 100, "epsilon_test": 0.5, "hidden": 8, "held_out": 20, "init_examples": 20}
PLAY = ["dqn", "--param", "wn", "--scale", "quick"]
PLAY += [str(word) for name, value in DQN.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_all_games_and_parameterizations_are_planned_each_with_its_learning_rate(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    monkeypatch.setattr("wnrepro.cli.run_all", lambda _, settings, __: planned.append(settings) or 0)  # type: ignore[func-returns-value]
    assert run("dqn", "--game", "all", "--param", "all", "--epochs", 3) == (0, "", "")
    lr = {param: 0.0001 if param == "normal" else 0.0003 for param in PARAMS}
    assert [(s.game, s.param, s.lr, s.epochs) for s in planned[0]] == [(g, p, lr[p], 3) for g in GAMES for p in PARAMS]
    assert run("dqn", "--param", "wn", "--seed", 1, "--seed", 2) == (0, "", "")
    assert [(s.game, s.seed) for s in planned[1]] == [("space_invaders", 1), ("space_invaders", 2)]


def test_watch_films_a_game_of_a_trained_dqn(run: Command, tmp_path: Path) -> None:
    code, printed, error = run(*PLAY, "--results", tmp_path)
    (path,) = tmp_path.rglob("run.json")
    folder = path.parent
    assert (code, error) == (0, "")
    assert printed.endswith(f"{folder}: done\n")
    before = state(folder)
    code, printed, error = run("watch", folder)
    film, says = printed.splitlines()
    assert (code, error, film) == (0, "", str(folder / "game.gif"))
    match = re.fullmatch(r"(\d+) points, (\d+) steps, game over", says)
    assert match
    assert duration(film) == 70 * int(match[2]) + 2000
    films = []
    for seed in (1, 1, 2):
        assert run("watch", folder, "--seconds", 2, "--seed", seed)[0] == 0
        assert duration(film) == 70 * (2 * 15 + 1)
        films.append(Path(film).read_bytes())
    assert films[0] == films[1] != films[2]
    assert {name: kept for name, kept in state(folder).items() if name != "game.gif"} == before

    assert_refused(run("watch", folder, "--device", "tpu"), "--device tpu")
    (folder / "checkpoint.pt").unlink()
    assert_refused(run("watch", folder), str(folder))
    change_status(folder, "diverged")
    assert_refused(run("watch", folder), str(folder))


def duration(path: str) -> int:
    """Milliseconds of an animation whose frames are the console's screens above a line."""
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        assert picture.width == 160
        assert 220 < picture.height < 230
        return sum(frame.info["duration"] for frame in ImageSequence.Iterator(picture))


# ------------------------------------------------------------------------------- report, data, doctor


def test_a_report_is_of_ones_own_runs_or_of_the_published_ones(run: Command, tmp_path: Path, text_only: None) -> None:
    published = tmp_path / PUBLISHED
    make_run(published)
    for more in ([], ["--scale", "short"], ["--check"]):
        assert_refused(run("report", "--results", tmp_path, *more), "--published")
    assert_refused(run("report", "--results", tmp_path, "--scale", "quick"), f"--results {tmp_path}")
    pages = [published / "short/report.md", published / "short/report.html"]
    assert run("report", "--results", tmp_path, "--published") == (0, "".join(f"{page}\n" for page in pages), "")
    before = [page.read_bytes() for page in pages]
    assert not (tmp_path / "short").exists()

    make_run(tmp_path, "bn")
    for more in ([], ["--published", "--precision", "fp32"]):
        assert run("report", "--results", tmp_path, *more)[0] == 0
    assert "wn_lr0.003" not in (tmp_path / "short/report.md").read_text()
    assert [page.read_bytes() for page in pages] == before


def test_folders_without_a_common_scale_are_not_compared(run: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "results")
    make_run(tmp_path / "other", scale="quick")
    assert_refused(run("report", "--results", tmp_path / "results", "--compare", tmp_path / "other"), "--compare")


def test_check_tells_for_each_claim_whether_its_rule_is_older_than_its_runs(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wnrepro.report.claims import CLAIMS

    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    commits = {}
    git("init", "-q")
    for name in ("before", "rules", "after"):
        git("commit", "-q", "--allow-empty", "-m", name)
        commits[name] = git("rev-parse", "HEAD").strip()
    rules = {claim.id: claim.hash for claim in CLAIMS if claim.id != "C9b"}
    version = {"version": 2, "commit": commits["rules"], "date": "2026-01-01", "rules": rules}
    monkeypatch.setattr("wnrepro.report.claims.claim.versions", lambda: [version])
    monkeypatch.setattr("wnrepro.report.claims.__file__", str(tmp_path / "here"))
    for param, commit in (("wn", commits["after"]), ("bn", commits["before"]), ("normal", "f" * 40)):
        make_run(tmp_path, param, lr=0.003, record={"git": {"commit": commit}})
    for param in ("wn", "normal"):
        make_vae(tmp_path, param, record={"git": {"commit": commits["rules"]}})

    def rules_of() -> dict[str, str]:
        code, printed, error = run("report", "--check", "--results", tmp_path)
        assert (code, error) == (0, "")
        lines = (line.removeprefix("scale short, ") for line in printed.splitlines())
        return {re.split("[,:]", line)[0]: line for line in lines}

    found = rules_of()
    assert "before all its runs" in found["C14"]
    assert "before all its runs" in found["C9a"]
    assert found["C18a"].endswith("after the fact of cifar/bn_lr0.003/seed-1")
    assert "not known of cifar/normal_lr0.003/seed-1" in found["C6"]
    assert "not committed" in found["C9b"]
    monkeypatch.setenv("PATH", "")  # no git
    assert "not known of" in rules_of()["C14"]


def test_data_status_and_doctor_print_json(run: Command, tmp_path: Path) -> None:
    code, printed, _ = run("data", "status", "--data-dir", tmp_path, "--json")
    status = json.loads(printed)
    assert code == 0
    assert {file["state"] for file in status["files"]} == {"missing"}
    assert status["free_bytes"] > 0
    _, printed, _ = run("doctor", "--data-dir", tmp_path, "--results", tmp_path, "--json")
    assert {"python", "torch", "memory"} <= {finding["name"] for finding in json.loads(printed)}

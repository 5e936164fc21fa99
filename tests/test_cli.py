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
from factories import make_run, make_vae, put_run, small_data, snapshot
from PIL import Image, ImageSequence

from wnrepro.cuda_graphs import CaptureError
from wnrepro.data.files import DATASETS
from wnrepro.data.images import Images
from wnrepro.experiments import experiment_class
from wnrepro.experiments.cifar import Cifar
from wnrepro.reproduce.grid import Planned, planned
from wnrepro.runs.directory import PUBLISHED, seal
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import GAMES, PARAMS, SETTINGS, scale_settings

Command = Callable[..., tuple[int, str, str]]

SMALL = ["--scale", "quick", "--train-examples", "100", "--test-examples", "100", "--batch-size", "20"]
CIFAR = ["cifar", *SMALL, "--epochs", "2", "--width", "4", "--init-examples", "60"]
MAPS = ["--maps", "2", "--maps", "2", "--maps", "2", "--hidden", "8", "--iaf-width", "4"]
VAES = {
    "cvae": ["cvae", "--param", "wn", *SMALL, "--epochs", "1", "--init-examples", "60", *MAPS],
    "draw": ["draw", "--param", "wn", *SMALL, "--epochs", "1", "--units", "8", "--time-steps", "3"],
}
each_vae = pytest.mark.parametrize("vae", VAES)


@pytest.fixture
def random_images(monkeypatch: pytest.MonkeyPatch, images: Images) -> None:
    """`wnrepro cifar` on random images, which need no whitening."""
    monkeypatch.setattr(Cifar, "load", classmethod(lambda cls, s, _folder, device: cls(s, images, device)))


@pytest.fixture(scope="module")
def trained_vaes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a finished run of each."""
    from wnrepro import cli

    results = tmp_path_factory.mktemp("vaes")
    for words in VAES.values():
        cli.app([*words, "--quiet", "--results", str(results)], standalone_mode=False)
    return results


@pytest.fixture
def vaes(trained_vaes: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(trained_vaes, tmp_path / "results"))


def folder_in(results: Path, experiment: str) -> Path:
    (folder,) = results.glob(f"quick/{experiment}/*/seed-1")
    return folder


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def change_status(folder: Path, status: str) -> None:
    record = record_in(folder) | {"status": status}
    seal(record)
    (folder / "run.json").write_text(json.dumps(record))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and content, without the lock, which names its last holder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_help_and_the_state_of_the_data_import_no_torch() -> None:
    names = [*SETTINGS, "sample", "watch", "export", "reproduce", "report", "bench"]
    commands = [["--help"], ["data", "status"], *([name, "--help-all"] for name in names)]
    code = (
        "import sys\nfrom wnrepro.cli import main\n"
        f"for words in {commands}:\n"
        "    sys.argv = ['wnrepro', *words]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = {field.name for cls in SETTINGS.values() for field in dataclasses.fields(cls)}
    said = [f"wnrepro {name}" for name in names] + [f"--{name.replace('_', '-')}" for name in settings]
    assert all(text in done.stdout for text in said)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--param nope", 2),
        ("--param wn --lr x", 2),
        ("--param wn --lr -1", 2),
        ("--param {tmp}/my.py:Mine --seeds 8-1", 2),
        ("--param wn --seeds 1 --device cpu --results {tmp}", 0),
        ("--param wn --results /dev/null/x", 1),
        ("--param wn --device tpu", 2),
        ("--param wn --device mps", 2),
        ("--param wn --precision tf32 --device cpu", 2),
        ("--param wn --dataset cifar10 --data-dir {tmp}/none --device cpu", 2),
        ("--param wn --device cpu --results {tmp}", 0),
        ("--param wn --device cpu --fresh --results {tmp}", 2),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have mps")
def test_mistakes_and_finished_runs_are_reported_without_torch(tmp_path: Path, words: str, code: int) -> None:
    put_run(tmp_path, Planned("cifar", "quick", scale_settings("cifar", "quick", "wn")))
    command = [sys.executable, "-X", "importtime", "-m", "wnrepro", "cifar", "--scale", "quick"]
    command += words.format(tmp=tmp_path).split()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr[-500:]
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    assert (": done" in done.stdout) == (code == 0)


@pytest.mark.parametrize(
    "words", ["sample {}", "watch {}", "evaluate {}", "export {} --format onnx", "cifar --param wn --init-from {}"]
)
def test_a_folder_without_a_run_is_refused_before_torch(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr("wnrepro.cli.load_torch", lambda *_: pytest.fail("loaded"))
    for folder in (tmp_path, tmp_path / "none"):
        code, _, error = run(*words.format(folder).split())
        assert code == 2 and str(folder) in error and error.count("\n") == 1


# ------------------------------------------------------------------------------- runs


def test_finished_runs_are_skipped_and_only_started_over_with_consent(
    run: Command, random_images: None, tmp_path: Path
) -> None:
    words = (*CIFAR, "--param", "all", "--results", tmp_path)
    code, printed, error = run(*words)
    assert (code, error) == (0, "") and "epoch 2/2" in printed
    lines = [line.split(": ") for line in printed.splitlines() if line.endswith(": done")]
    assert [Path(name).parent.name.split("_")[0] for name, _ in lines] == list(PARAMS)
    before = state(tmp_path)
    code, printed, error = run(*words, "--json")
    assert [(one["run"], one["status"]) for one in json.loads(printed)] == [(name, "done") for name, _ in lines]
    assert_refused(run(*words, "--fresh"), "--yes")
    assert state(tmp_path) == before
    assert run(*CIFAR, "--param", "wn", "--results", tmp_path, "--fresh", "--yes", "--quiet") == (0, "", "")
    now = state(tmp_path)
    changed = {name for name in now if now[name] != before[name]}
    assert any(name.endswith("metrics.csv") for name in changed) and all("/wn_" in name for name in changed)


def test_several_seeds_are_several_runs(run: Command, random_images: None, tmp_path: Path) -> None:
    words = (*CIFAR, "--param", "wn", "--seed", 1, "--seed", 2, "--results", tmp_path)
    code, printed, error = run(*words, "--json")
    assert (code, error) == (0, "")
    assert [(Path(one["run"]).name, one["status"]) for one in json.loads(printed)] == [
        (f"seed-{n}", "done") for n in (1, 2)
    ]
    tables = [path.read_text() for path in tmp_path.rglob("metrics.csv")]
    assert len({*tables}) == 2
    code, printed, _ = run(*words)
    assert code == 0 and all(f"seed-{n}" in printed for n in (1, 2))


def test_divergence_is_a_result_and_a_changed_file_a_problem(
    run: Command, random_images: None, tmp_path: Path, text_only: None
) -> None:
    words = (*CIFAR, "--param", "normal", "--lr", 30, "--results", tmp_path)
    code, printed, _ = run(*words)
    assert code == 0 and ": diverged (" in printed
    assert run(*words)[0] == 0  # it is skipped
    pages = f"{tmp_path}/quick/report.md\n{tmp_path}/quick/report.html\n"
    assert run("report", "--results", tmp_path) == (0, pages, "")
    assert "| diverged | 1 of 2 |" in (tmp_path / "quick/report.md").read_text()
    code, printed, error = run("report", "--check", "--results", tmp_path)
    assert (code, error) == (0, "") and "quick" in printed
    (metrics,) = tmp_path.rglob("metrics.csv")
    metrics.write_text(metrics.read_text().replace(",30.0", ",31.0"))
    code, printed, _ = run("report", "--check", "--results", tmp_path)
    assert code == 1 and "metrics.csv" in printed


@pytest.mark.usefixtures("random_images")
@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (ZeroDivisionError("by\x1b[2J nothing"), 1, "ZeroDivisionError: by\\x1b[2J nothing"),
        (CaptureError("not permitted"), 1, "WNREPRO_GRAPHS=0"),  # no GPU works any more in its process
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_run_that_fails_or_is_interrupted_continues_later(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: int, says: str
) -> None:
    step, calls = Cifar.step, itertools.count()

    def fails(self: Cifar, index: Any) -> Any:
        if next(calls) == 11:
            raise error
        return step(self, index)

    monkeypatch.setattr(Cifar, "step", fails)
    words = (*CIFAR, "--param", "wn", "--param", "bn", "--results", tmp_path)
    code, printed, said = run(*words, "--debug")
    assert code == expected and says in said and "\x1b" not in printed + said
    assert ("Traceback" in said) == (expected == 1)
    (path,) = tmp_path.rglob("wn_*/seed-1")
    assert record_in(path)["status"] == ("failed" if expected == 1 else "running")
    assert len(list(tmp_path.rglob("run.json"))) == (2 if isinstance(error, ZeroDivisionError) else 1)
    assert run(*words, "--quiet")[0] == 0
    assert [entry["from_epoch"] for entry in record_in(path)["resumed"]] == [1]


@pytest.mark.usefixtures("random_images")
def test_a_killed_run_that_does_not_load_again_fails(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    words = (*CIFAR, "--param", "wn", "--results", tmp_path)
    run(*words)
    (folder,) = tmp_path.rglob("seed-1")
    change_status(folder, "running")
    monkeypatch.setattr(Cifar, "load", fails)
    code, printed, error = run(*words)
    assert code == 1 and printed.endswith(f"{folder}: failed\n") and "out of memory" in error


@pytest.mark.slow
def test_ctrl_c_ends_a_process_on_the_bundled_images_cleanly(tmp_path: Path) -> None:
    words = [*CIFAR, "--param", "wn", "--results", str(tmp_path)]
    words[words.index("--epochs") + 1] = "2000"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "WNREPRO_DATA": "/no/data"}
    command = [sys.executable, "-m", "wnrepro", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        assert any(re.match("epoch +1/2000 ", line) for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
    record = record_in(folder_in(tmp_path, "cifar"))
    assert record["status"] == "running" and record["facts"]["data"].startswith("bundled")


# ------------------------------------------------------------------------------- bad input


MISTAKES = [  # the words, and what the refusal names
    ("cifar --lr -1", "--lr -1"),
    ("cifar --no-such", "--no-such"),
    ("cifar --epochs 99999999999999999999", "--epochs"),
    ("cifar --scale short --seed 2 --data-dir {tmp}/none", "{tmp}/none"),
    ("cifar --results {tmp}/file", "--results {tmp}/file"),
    ("cifar --results {tmp}/{long}", "--results {tmp}/{long}"),
    ("cifar --results /proc/no/such", "/proc/no"),
    ("cifar --device tpu", "--device tpu"),
    ("cifar --seed 4294967296", "--seed 4294967296"),  # on a CPU it would be seed 0
    ("cifar --seeds 2-1", "--seeds 2-1"),
    ("cifar --seeds 1-2 --seed 3", "--seeds"),
    ("cifar --seeds 1 --seeds 2", "--seeds"),
    ("cifar --seeds 1-2 --lr -1", "--lr -1"),
    ("sample {cifar_run} --seed 4294967296", "--seed"),
    ("watch {cifar_run} --seed 4294967296", "--seed"),
    ("cifar --precision tf32 --device cpu", "--precision tf32"),
    ("cifar --param normal --g-exp 3", "--g-exp 3"),
    ("cifar --train-examples 999999", "--train-examples 999999"),
    ("cifar --train-examples 100 --batch-size 101", "--batch-size 101"),
    ("cifar --train-examples 100", "--init-examples 500"),
    ("cifar --importance-samples 3", "--importance-samples"),
    ("cvae --dataset cifar10 --hidden 20", "--hidden 20"),
    ("cvae --dataset cifar10 --binarization seeded", "--binarization seeded"),
    ("cvae --maps 4 --maps 8", "--maps"),
    ("cvae --depths 1 --depths 0 --depths 1", "--depths 0"),
    ("cvae --train-examples 200 --batch-size 201", "--batch-size 201"),
    ("cvae --scale paper --train-examples 60001", "--train-examples 60001"),
    ("cvae --scale short --data-dir {tmp}/empty", "{tmp}/empty"),
    ("cvae --scale short --dataset cifar10 --data-dir {tmp}/empty", "{tmp}/empty"),
    ("cvae --scale paper --binarization seeded --data-dir {tmp}/empty", "{tmp}/empty"),
    ("cvae --scale short --data-dir {tmp}/{long}", "{tmp}/{long}"),
    ("cvae --scale short --data-dir ~no-such-user/data", "~no-such-user"),
    ("draw --train-examples 4001", "--train-examples 4001"),
    ("draw --binarization seeded", "--binarization seeded"),
    ("draw --param bn --g-start 1", "--g-start 1"),
    ("dqn --game pong", "--game pong"),
    ("dqn --param all --game all --batch-size 600", "--batch-size 600"),
    ("dqn --replay-start 501 --replay-steps 500", "--replay-start 501"),
    ("dqn --replay-steps 999999999999", "--replay-steps 999999999999"),
    ("reproduce draw --plan --data-dir {tmp}/{long}", "{tmp}/{long}"),
    ("report --results {tmp}/none", "--results {tmp}/none"),
    ("report --results {tmp}/{long}", "--results {tmp}/{long}"),
    ("report --results {tmp}/empty", "--results {tmp}/empty"),
    ("report --results {tmp}/empty --published", "{tmp}/empty/published"),
    ("report --results {results} --scale quick", "--results {results}"),
    ("report --results {results} --compare {tmp}/none", "--compare {tmp}/none"),
    ("report --results {results} --compare {results}", "--compare {results}"),
    ("report --results {results} --compare {tmp}/other", "--compare {tmp}/other"),
    ("report --results {results} --compare {results} --check", "--compare"),
    ("report --results {results} --serve --port {taken}", "--port {taken}"),
    ("bench chess", "chess"),
    ("bench cifar --precision fp8", "--precision fp8"),
    ("bench cifar --smoke --precision bf16", "--smoke"),
    ("sample {tmp}/none", "{tmp}/none"),
    ("sample {tmp}/{long}", "{tmp}/{long}"),
    ("sample {cifar_run}", "{cifar_run}"),
    ("sample {cifar_run} --param {tmp}/none.py:Mine", "{tmp}/none.py"),
    ("watch {cifar_run}", "{cifar_run}"),
    ("data fetch cifar10 --data-dir {tmp}/file", "{tmp}/file"),
    ("data status --data-dir {tmp}/{long}", "{tmp}/{long}"),
    ("nonsense", "nonsense"),
]


def assert_refused(result: tuple[int, str, str], named: str) -> None:
    """The command ended with a sentence that names the option or file."""
    code, printed, error = result
    assert (code in (1, 2), printed) == (True, "")
    assert named in error
    assert "Traceback" not in error and "--debug" not in error
    assert re.fullmatch(r"wnrepro( \w+)?: .*\n(  .*\n)*", error)


@pytest.mark.parametrize(("words", "named"), MISTAKES)
def test_a_mistake_is_refused_and_writes_nothing(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, named: str
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "other", scale="quick")
    names = {"tmp": tmp_path, "long": 300 * "a", "results": tmp_path / "results"}
    names["cifar_run"] = make_run(tmp_path / "results")
    before = state(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names["taken"] = taken.getsockname()[1]
        given = words.format(**names).split()
        if given[0] in SETTINGS:
            given += [] if "--param" in given else ["--param", "wn"]
            given += [] if "--scale" in given else ["--scale", "quick"]
        result = run(*given)
    assert_refused(result, named.format(**names))
    assert result[0] == 2 or any(part in words for part in ("{long}", "/proc", "/file", "{taken}"))  # 1: the machine's
    assert state(tmp_path) == before


@pytest.mark.usefixtures("text_only")
def test_a_malformed_run_keeps_no_other_from_the_report(run: Command, tmp_path: Path) -> None:
    make_run(tmp_path, scale="quick")
    odd = [make_run(tmp_path, seed=2, scale=scale) / "metrics.csv" for scale in ("quick", "short")]
    for path in odd:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    code, out, error = run("report", "--results", tmp_path, "--scale", "quick")
    assert (code, out.splitlines()) == (0, [f"{tmp_path}/quick/report.{kind}" for kind in ("md", "html")])
    assert str(odd[0]) in error and len(error.splitlines()) == 1
    code, out, error = run("report", "--results", tmp_path)  # nothing of scale short can be read
    assert code == 2 and f"{tmp_path}/quick/report.md" in out and all(str(path) in error for path in odd)
    code, out, _ = run("report", "--results", tmp_path, "--check")
    assert code == 1 and all(sum(str(path) in line for line in out.splitlines()) == 1 for path in odd)


def test_a_link_on_the_way_to_a_run_is_refused_before_training(run: Command, tmp_path: Path) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    (results / "quick").mkdir(parents=True)
    elsewhere.mkdir()
    (results / "quick/cifar").symlink_to(elsewhere)
    result = run(*CIFAR, "--param", "wn", "--seed", "3", "--seed", "4", "--results", results)
    assert_refused(result, str(results / "quick/cifar"))
    assert result[0] == 2 and [*elsewhere.iterdir()] == []
    code, _, error = run("reproduce", "cifar", "--scale", "quick", "--plan", "--results", results)
    assert code == 1 and str(results / "quick/cifar") in error and [*elsewhere.iterdir()] == []


def test_results_without_permission_are_refused(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode == os.R_OK)  # root is allowed everything
    result = run("report", "--results", tmp_path)
    assert_refused(result, f"--results {tmp_path}")
    assert result[0] == 1


READER = """
import sys
from wnrepro.cli import main
_, results, *commands = sys.argv
for words in commands:
    sys.argv = ["wnrepro", *words.split(), "--results", results]
    try:
        main()
    except SystemExit as stop:
        print("exit code", stop.code)
"""


@pytest.mark.slow
def test_reading_needs_no_right_to_write(tmp_path: Path) -> None:
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("without setpriv, root may write everywhere")
    results, out = tmp_path / "results", tmp_path / "out"
    make_run(results, scale="quick", seed=99)  # none of the grid
    words = ["report --check", f"report --out {out}", "reproduce cifar --scale quick --plan", "report"]
    with planned("quick", ["cifar"])[-1].directory(results):
        before, folders = snapshot(results), [results, *results.rglob("*")]
        for path in folders:
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [*prefix, sys.executable, "-c", READER, str(results), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        for path in folders:
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert (out / "quick/report.html").is_file() and snapshot(results) == before
    assert done.stdout.count(" running ") == 1  # the run that is held
    assert re.findall("exit code .*", done.stdout) == [f"exit code {code}" for code in (0, 0, 0, 1)], done.stderr


@pytest.mark.parametrize(
    ("module", "words", "named"),
    [
        ("ray", "reproduce --engine ray --scale quick", "ray"),
        ("ale_py.vector_env", "dqn --param wn --scale quick", "ale"),
        ("", "dqn --param wn --scale quick", "ROM"),
    ],
)
def test_a_missing_package_or_rom_is_named(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str, named: str
) -> None:
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    else:
        monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*words.split()), named)


@pytest.mark.parametrize("content", ["\xff", '{"settings": {}}'])
@pytest.mark.parametrize(
    "words",
    ["cifar --param wn --scale quick --results", "report --results", "sample", "export --tensorboard new"],
)
def test_a_damaged_config_is_named_without_control_characters(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "re\x1b[2Jsults\r\udcff"
    folder = make_run(results, scale="quick")
    (folder / "config.json").write_bytes(content.encode("latin1"))
    before = state(tmp_path)
    code, printed, error = run(*words.split(), results if words.endswith("--results") else folder)
    assert code == 2
    assert "re\\x1b[2Jsults \\udcff/quick" in error and "config.json" in error
    assert not set(printed + error) & {"\x1b", "\r"}
    assert state(tmp_path) == before


# ------------------------------------------------------------------------------- cvae, draw, sample


def test_a_finished_vae_needs_no_data_and_its_importance_samples_no_training(
    run: Command, vaes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words = folder_in(vaes, "cvae"), (*VAES["cvae"], "--results", vaes)
    before, record = state(folder), record_in(folder)
    assert before.keys() == {"checkpoint.pt", "config.json", "init.csv", "layers.csv", "metrics.csv", "run.json"}
    with monkeypatch.context() as patched:
        patched.setattr(experiment_class("cvae"), "load", classmethod(lambda *_: pytest.fail("it needs no data")))
        code, printed, error = run(*words)
    with (folder / "metrics.csv").open() as file:
        bound = float(next(csv.DictReader(file))["test_bound_nats"])
    assert (code, error) == (0, "") and printed.startswith(f"{folder}: done\n")
    (said,) = re.findall(r"test bound (−[\d.]+) nats after 1 epoch, ", printed)
    assert float(said.replace("−", "-")) == pytest.approx(bound, rel=1e-4)
    assert f"wnrepro sample {folder}" in printed and f"wnrepro report --scale quick --results {vaes}" in printed
    assert state(folder) == before
    monkeypatch.setattr(experiment_class("cvae"), "train", lambda _: pytest.fail("it has been trained"))
    code, printed, error = run(*words, "--importance-samples", 3)
    facts = record_in(folder)["facts"]
    estimate = facts["log_likelihood_nats"]
    assert (code, error) == (0, "") and f"{estimate:.2f} nats".replace("-", "−") in printed
    assert facts == record["facts"] | {"log_likelihood_nats": estimate, "importance_samples": 3}
    after = state(folder)
    assert {name for name in before if before[name][1] != after[name][1]} == {"run.json"}
    code, printed, _ = run(*words, "--importance-samples", 1, "--json")
    (listed,) = json.loads(printed)
    assert code == 0 and listed["facts"]["log_likelihood_nats"] == pytest.approx(bound, abs=0.01) and estimate > bound

    (folder / "checkpoint.pt").unlink()
    before = state(folder)
    assert_refused(run(*words, "--importance-samples", 2), str(folder))
    assert state(folder) == before
    change_status(folder, "diverged")  # there is nothing to estimate or to show
    assert run(*words, "--importance-samples", 2)[::2] == (0, "")
    assert_refused(run("sample", folder), str(folder))


@each_vae
def test_sample_writes_pictures_into_the_run(
    run: Command, vaes: Path, monkeypatch: pytest.MonkeyPatch, vae: str
) -> None:
    def opened_in_tf32(path: Path) -> Run:
        opened = open_run(path)
        opened.settings = dataclasses.replace(opened.settings, precision="tf32")
        return opened

    folder = folder_in(vaes, vae)
    before = state(folder)
    paths = [folder / "samples.png", folder / "reconstructions.png"] + [folder / "drawing.gif"] * (vae == "draw")
    assert run("sample", folder, "--count", 6) == (0, "".join(f"{path}\n" for path in paths), "")
    for path, width in zip(paths, (28, 2 * 28), strict=False):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.size == (3 * (width + 2) + 2, 2 * (28 + 2) + 2)
    after = state(folder)
    drawn = {path: after.pop(path.name)[1] for path in paths}
    assert after == before
    with monkeypatch.context() as patched:
        patched.setattr("wnrepro.trained.open_run", opened_in_tf32)  # a CPU shows what a GPU has trained
        run("sample", folder, "--count", 6, "--device", "cpu")
    assert {path: path.read_bytes() for path in paths} == drawn, "the same seed, the same pictures"
    run("sample", folder, "--seed", 2)
    assert all(path.read_bytes() != content for path, content in drawn.items())
    with Image.open(paths[0]) as picture:
        assert picture.size == (8 * (28 + 2) + 2, 8 * (28 + 2) + 2), "64 by default"


def test_a_published_run_without_its_checkpoint_is_not_started_over(run: Command, vaes: Path) -> None:
    own = folder_in(vaes, "cvae")
    (own / "checkpoint.pt").unlink()
    folder = vaes / PUBLISHED / own.relative_to(vaes)
    shutil.copytree(own, folder)
    change_status(folder, "running")
    before = state(folder)
    for words in (("sample", folder), (*VAES["cvae"], "--results", vaes / PUBLISHED)):
        code, _, error = run(*words)
        assert code == 2 and str(folder) in error and "--fresh" not in error
    assert state(folder) == before


@each_vae
@pytest.mark.parametrize(
    ("files", "binarization", "fact"),
    [("mnist", "seeded", "binarized once by seed"), ("binarized_mnist", "larochelle", "Larochelle")],
)
def test_binarization_follows_the_files(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: str, files: str, binarization: str, fact: str
) -> None:
    small_data(monkeypatch, files, tmp_path)
    few = ["--param", "wn", "--scale", "short", "--epochs", "1", "--batch-size", "2", "--latents", "2"]
    few += ["--init-examples", "6", *MAPS] if vae == "cvae" else ["--units", "4", "--time-steps", "2"]
    words = [vae, *few, "--data-dir", tmp_path, "--results", tmp_path / "results"]
    if files == "mnist":
        refused = run(*words, "--binarization", "larochelle")
        assert_refused(refused, "wnrepro data fetch mnist")
        assert all(path in refused[2] for path in DATASETS["binarized_mnist"])
        assert not (tmp_path / "results").exists()
    code, _, error = run(*words)
    assert (code, error.count("\n")) == (0, binarization == "seeded")  # a note
    (path,) = (tmp_path / "results").rglob("config.json")
    assert json.loads(path.read_text())["settings"]["binarization"] == binarization
    assert fact in record_in(path.parent)["facts"]["data"]
    before = state(path.parent)
    assert run(*words, "--quiet") == run(*words, "--binarization", binarization, "--quiet") == (0, "", "")
    assert state(path.parent) == before  # the same run
    monkeypatch.setattr("wnrepro.cli.run_all", lambda *_, **__: 0)
    assert run(*words, "--param", "all")[2].count("\n") == (binarization == "seeded")  # once
    assert run(*words, "--json")[2] == ""


# ------------------------------------------------------------------------------- dqn, watch


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
    for switch in ("--attention", "--no-attention"):
        assert run("draw", "--param", "wn", "--quiet", switch) == (0, "", "")
    assert [s.attention for (s,) in planned[2:]] == [True, False]


def test_watch_films_a_game_of_a_trained_dqn(run: Command, tmp_path: Path) -> None:
    dqn: dict[str, Any] = {"game": "breakout", "epochs": 1, "epoch_steps": 150, "test_steps": 20, "test_games": 2}
    dqn |= {"replay_steps": 200, "replay_start": 100, "epsilon_test": 0.5, "hidden": 8, "held_out": 20}
    play = [str(word) for name, value in dqn.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["dqn", "--param", "wn", "--scale", "quick", *play, "--init-examples", "20", "--results", tmp_path]
    code, printed, error = run(*words)
    folder = folder_in(tmp_path, "dqn")
    assert (code, error) == (0, "") and f"{folder}: done\n" in printed
    before = state(folder)
    code, printed, error = run("watch", folder)
    film, says = printed.splitlines()
    assert (code, error, film) == (0, "", str(folder / "game.gif"))
    match = re.fullmatch(r"(\d+) points, (\d+) steps, game over", says)
    assert match and duration(film) == 70 * int(match[2]) + 2000
    films = []
    for seed in (1, 1, 2):
        assert run("watch", folder, "--seconds", 2, "--seed", seed)[0] == 0
        assert duration(film) == 70 * (2 * 15 + 1)
        films.append(Path(film).read_bytes())
    assert films[0] == films[1] != films[2]
    assert {name: kept for name, kept in state(folder).items() if name != "game.gif"} == before
    (folder / "checkpoint.pt").unlink()
    assert_refused(run("watch", folder), str(folder))
    change_status(folder, "diverged")
    assert_refused(run("watch", folder), str(folder))


def duration(path: str) -> int:
    """Milliseconds of an animation whose frames are the console's screens above a line."""
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.width == 160 and 220 < picture.height < 230
        return sum(frame.info["duration"] for frame in ImageSequence.Iterator(picture))


# ------------------------------------------------------------------------------- report, data, doctor


def test_report_covers_own_or_published_runs(run: Command, tmp_path: Path, text_only: None) -> None:
    published = tmp_path / PUBLISHED
    make_run(published)
    for more in ([], ["--scale", "short"], ["--check"]):
        assert_refused(run("report", "--results", tmp_path, *more), "--published")
    pages = [published / "short/report.md", published / "short/report.html"]
    assert run("report", "--results", tmp_path, "--published") == (0, "".join(f"{page}\n" for page in pages), "")
    before = [page.read_bytes() for page in pages]
    assert not (tmp_path / "short").exists()
    make_run(tmp_path, "bn")
    for more in ([], ["--published", "--precision", "fp32"]):
        assert run("report", "--results", tmp_path, *more)[0] == 0
    assert "wn_lr0.003" not in (tmp_path / "short/report.md").read_text()
    assert [page.read_bytes() for page in pages] == before


def test_check_reports_whether_each_rule_is_older_than_its_runs(
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
    assert all("before all its runs" in found[claim] for claim in ("C14", "C9a"))
    assert found["C18a"].endswith("after the fact of cifar/bn_lr0.003/seed-1")
    assert "not known of cifar/normal_lr0.003/seed-1" in found["C6"]
    assert "not committed" in found["C9b"]
    monkeypatch.setenv("PATH", "")  # no git
    assert "not known of" in rules_of()["C14"]


def test_data_status_and_doctor_print_json(run: Command, tmp_path: Path) -> None:
    code, printed, _ = run("data", "status", "--data-dir", tmp_path, "--json")
    status = json.loads(printed)
    assert code == 0 and status["free_bytes"] > 0
    assert {file["state"] for file in status["files"]} == {"missing"}
    _, printed, _ = run("doctor", "--data-dir", tmp_path, "--results", tmp_path, "--json")
    assert {"python", "torch", "memory"} <= {finding["name"] for finding in json.loads(printed)}

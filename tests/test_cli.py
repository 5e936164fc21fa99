"""The command line: what it runs, what it prints, and one clear sentence with exit code 2 for every mistake."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from factories import small_data
from PIL import Image

from wnrepro.cuda_graphs import CaptureError
from wnrepro.data.files import DATASETS
from wnrepro.experiments import experiment_class
from wnrepro.experiments.cifar import Cifar
from wnrepro.runs.directory import PUBLISHED, seal
from wnrepro.runs.run import open_run
from wnrepro.settings import GAMES, PARAMS, SETTINGS, CifarSettings

TINY = ["--scale", "quick", "--epochs", "2", "--width", "4"]
TINY += ["--train-examples", "200", "--test-examples", "100", "--init-examples", "100"]
FOLDER = "_epochs-2_train_examples-200_test_examples-100_width-4_init_examples-100"


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
    for command in ("cifar", "cvae", "draw", "dqn", "sample", "watch", "export", "report", "bench", "data", "doctor"):
        assert command in done.stdout


def test_every_setting_is_an_option_with_its_source(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, _ = run("cifar", "--help")
    assert code == 0
    text = " ".join(printed.replace("│", "").split())
    for name, field in ((field.name, field) for field in dataclasses.fields(CifarSettings)):
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
    assert code == 0 and printed == f"{tmp_path}/quick/report.md\n{tmp_path}/quick/report.html\n"
    assert "| diverged | 1 of 2 |" in (tmp_path / "quick/report.md").read_text()
    assert run("report", "--check", "--results", tmp_path) == (0, "every run's files fit: scale quick\n", "")
    (metrics,) = tmp_path.rglob("metrics.csv")
    metrics.write_text(metrics.read_text().replace(",30.0", ",31.0"))
    code, printed, _ = run("report", "--check", "--results", tmp_path)
    assert code == 1 and "metrics.csv" in printed


def test_a_report_is_of_ones_own_runs_or_of_the_published_ones(run, random_images, tmp_path):
    published = tmp_path / PUBLISHED
    words = ("report", "--results", tmp_path)
    code, _, error = run(*words, "--published")
    assert code == 2 and error == (
        f"wnrepro: --published: there is no folder {published}; run this in a clone of the repository\n"
    )
    assert run("cifar", "--param", "wn", *TINY, "--results", published)[0] == 0
    for more, at in (((), ""), (("--scale", "quick"), " at scale quick"), (("--check",), "")):
        code, printed, error = run(*words, *more)
        assert (code, printed) == (2, "") and error == (
            f"wnrepro: --results {tmp_path}: holds no runs of your own{at}; add --published for those in {published}\n"
        )
    code, _, error = run(*words, "--scale", "short")
    assert code == 2 and f"--results {tmp_path}: holds no runs at scale short; run `wnrepro cifar" in error
    code, printed, error = run(*words, "--published", "--check")
    assert (code, error) == (0, "") and printed.startswith("every run's files fit: scale quick\n")
    pages = [published / "quick/report.md", published / "quick/report.html"]
    assert run(*words, "--published") == (0, "".join(f"{page}\n" for page in pages), "")
    there = [page.read_bytes() for page in pages]
    assert not (tmp_path / "quick").exists()

    assert run("cifar", "--param", "bn", *TINY, "--results", tmp_path)[0] == 0
    for more in ((), ("--published", "--precision", "fp32")):
        assert run(*words, *more)[0] == 0
    assert "wn_lr0.003" not in (tmp_path / "quick/report.md").read_text()
    assert [page.read_bytes() for page in pages] == there


def test_check_says_of_each_claim_whether_its_rule_is_older_than_its_runs(run, tmp_path, monkeypatch):
    from factories import make_run, make_vae

    from wnrepro.report.claims import CLAIMS

    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    commits = []
    git("init", "-q")
    for name in ("before", "rules", "after"):
        git("commit", "-q", "--allow-empty", "-m", name)
        commits.append(git("rev-parse", "HEAD").strip())
    rules = {claim.id: claim.hash for claim in CLAIMS if claim.id != "C9b"}
    version = {"version": 2, "commit": commits[1], "date": "2026-01-01", "rules": rules}
    monkeypatch.setattr("wnrepro.report.claims.claim.versions", lambda: [version])
    monkeypatch.setattr("wnrepro.report.claims.__file__", str(tmp_path / "here"))
    for param, lr, commit in (("wn", 0.003, commits[2]), ("bn", 0.003, commits[0]), ("normal", 0.003, "f" * 40)):
        make_run(tmp_path, param, lr, record={"git": {"commit": commit}})
    for param in ("wn", "normal"):
        make_vae(tmp_path, param, record={"git": {"commit": commits[1]}})

    def of(claim: str) -> str:
        code, printed, error = run("report", "--check", "--results", tmp_path)
        first, *lines = printed.splitlines()
        assert (code, error, first) == (0, "", "every run's files fit: scale short")
        assert not any(line.startswith("scale short, C1,") for line in lines)  # a check of the code has no such rule
        return next(line.removeprefix("scale short, ") for line in lines if line.startswith(f"scale short, {claim}"))

    known = f"rules 2 ({commits[1][:7]})"
    assert of("C14") == f"C14, {known}: rule before all its runs"
    assert of("C9a") == f"C9a, {known}: rule before all its runs"
    assert of("C18a") == f"C18a, {known}: rule after the fact of cifar/bn_lr0.003/seed-1"
    where = "cifar/normal_lr0.003/seed-1"
    assert of("C6").startswith(f"C6, {known}: not known of {where}")
    assert of("C9b") == "C9b: its rule is not committed yet"

    record = tmp_path / "short/cifar/wn_lr0.003/seed-1/run.json"
    record.write_text(record.read_text().replace('"epoch": 6', '"epoch": 5'))
    code, printed, _ = run("report", "--check", "--results", tmp_path)
    assert code == 1 and printed.startswith("cifar/wn_lr0.003/seed-1: ") and f"\nscale short, C14, {known}" in printed
    monkeypatch.setenv("PATH", "")  # no git
    assert f"C14, {known}: not known of" in run("report", "--check", "--results", tmp_path)[1]


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
    assert code == 1 and "failed, out of memory (MemoryError: no more); close" in error
    assert "failed" in printed and "Traceback" not in error
    code, printed, _ = run(*words)
    assert code == 0 and "done" in printed
    (record,) = tmp_path.rglob("run.json")
    assert [entry["from_epoch"] for entry in json.loads(record.read_text())["resumed"]] == [1]


def test_a_graph_that_cannot_be_captured_ends_the_command_and_says_how_to_go_on(
    run, random_images, tmp_path, monkeypatch
):
    def step(*_):
        raise CaptureError("operation not permitted")

    monkeypatch.setattr(Cifar, "step", step)
    code, printed, error = run("cifar", "--param", "all", *TINY, "--results", tmp_path, "--json")
    (record,) = json.loads(printed)  # nothing is tried of the other three, in whose process no GPU works any more
    assert (code, record["status"], len(list(tmp_path.rglob("run.json")))) == (1, "failed", 1)
    says = "failed, CaptureError: operation not permitted; run the same command with WNREPRO_GRAPHS=0"
    assert error == f"{record['run']}: {says}\n"


CVAE = "cvae --param wn --scale quick"
DRAW = "draw --param wn --scale quick"


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
        ("cifar --param normal --scale quick --g-exp 3", "--g-exp 3: has no effect on normal"),
        ("cifar --param wn --scale quick --train-examples 999999", "--train-examples 999999: bundled has 12000"),
        (
            "cifar --param wn --scale quick --train-examples 100 --batch-size 101",
            "--batch-size 101: there are only 100",
        ),
        ("cifar --param wn --scale quick --train-examples 100", "--init-examples 500: there are only 100"),
        (f"{CVAE} --dataset imagenet", "--dataset imagenet: unknown; give one of mnist, cifar10"),
        (f"{CVAE} --data fetched", "--data fetched: unknown; give one of real, bundled"),
        (f"{CVAE} --dataset cifar10 --hidden 20", "--hidden 20: belongs to --dataset mnist alone; leave it out"),
        (
            f"{CVAE} --dataset cifar10 --binarization seeded",
            "--binarization seeded: belongs to --dataset mnist alone; leave it out",
        ),
        (f"{CVAE} --binarization drawn", "--binarization drawn: unknown; give one of larochelle, seeded"),
        (f"{CVAE} --maps 4 --maps 8", "--maps: mnist needs 3 of them, not 2; give --maps 3 times"),
        (f"{CVAE} --dataset cifar10 --maps 4 --maps 8", "--maps: cifar10 needs 1 of them, not 2"),
        (f"{CVAE} --depths 2", "--depths: mnist needs 3 of them, not 1"),
        (f"{CVAE} --dataset cifar10{6 * ' --depths 1'}", "--depths: cifar10 needs 1 to 5 of them, not 6"),
        (f"{CVAE} --depths 1 --depths 0 --depths 1", "--depths 0: give a number of at least 1"),
        (f"{CVAE} --latents 0", "--latents 0: give a number of at least 1"),
        (f"{CVAE} --free-bits -1", "--free-bits -1: give a number of at least 0"),
        (f"{CVAE} --free-bits nan", "--free-bits nan: give a number of at least 0"),
        (f"{CVAE} --polyak-epochs 0", "--polyak-epochs 0: give a number above 0"),
        (f"{CVAE} --polyak-epochs inf", "--polyak-epochs inf: give a number above 0"),
        (f"{CVAE} --iaf-depth -1", "--iaf-depth -1: give a number of at least 0"),
        (f"{CVAE} --iaf-width 0", "--iaf-width 0: give a number of at least 1"),
        (f"{CVAE} --train-examples 4001", "--train-examples 4001: mnist (bundled) has 4000; give fewer"),
        (f"{CVAE} --test-examples 501", "--test-examples 501: mnist (bundled) has 500; give fewer"),
        (f"{CVAE} --dataset cifar10 --train-examples 12001", "--train-examples 12001: there are only 12000"),
        (f"{CVAE} --scale paper --train-examples 60001", "--train-examples 60001: mnist (real) has 60000; give fewer"),
        (f"{CVAE} --train-examples 100 --init-examples 101", "--init-examples 101: there are only 100 training images"),
        (f"{CVAE} --train-examples 200 --batch-size 201", "--batch-size 201: there are only 200 training images"),
        (f"{CVAE} --precision tf32 --device cpu", "--precision tf32: only a GPU has it"),
        (f"{CVAE} --param normal --g-exp 3", "--g-exp 3: has no effect on normal"),
        (f"{CVAE} --scale short --data-dir {{tmp}}/empty", "binarized_mnist is not complete in {tmp}/empty"),
        (f"{CVAE} --scale short --data-dir {{tmp}}/empty", "give --binarization seeded, which needs nothing but"),
        (f"{CVAE} --scale short --dataset cifar10 --data-dir {{tmp}}/empty", "cifar10 is not complete in {tmp}/empty"),
        (
            f"{CVAE} --scale paper --binarization seeded --data-dir {{tmp}}/empty",
            "The data set mnist is not complete in {tmp}/empty",
        ),
        (f"{DRAW} --train-examples 200 --batch-size 201", "--batch-size 201: there are only 200 training images"),
        (f"{DRAW} --train-examples 4001", "--train-examples 4001: mnist (bundled) has 4000; give fewer"),
        (f"{DRAW} --test-examples 501", "--test-examples 501: mnist (bundled) has 500; give fewer"),
        (f"{DRAW} --scale paper --train-examples 60001", "--train-examples 60001: mnist (real) has 60000; give fewer"),
        (f"{DRAW} --binarization seeded", "--binarization seeded: the bundled images are binary already; leave it out"),
        (f"{DRAW} --precision tf32 --device cpu", "--precision tf32: only a GPU has it"),
        (f"{DRAW} --read-window 1", "--read-window 1: give a number of at least 2"),
        (f"{DRAW} --time-steps 0", "--time-steps 0: give a number of at least 1"),
        (f"{DRAW} --gradient-norm-max 0", "--gradient-norm-max 0: give a number above 0"),
        (f"{DRAW} --weight-std nan", "--weight-std nan: give a number above 0"),
        (f"{DRAW} --param bn --g-start 1", "--g-start 1: has no effect on bn; leave it out"),
        (f"{DRAW} --scale short --data-dir {{tmp}}/empty", "binarized_mnist is not complete in {tmp}/empty"),
        (
            f"{DRAW} --scale paper --binarization seeded --data-dir {{tmp}}/empty",
            "The data set mnist is not complete in {tmp}/empty",
        ),
        (
            "dqn --param wn --game pong",
            "--game pong: unknown; give one of breakout, enduro, seaquest, space_invaders",
        ),
        ("dqn --param none --game all", "--param none: unknown; give one of normal, bn, wn, wn+mobn"),
        ("dqn --param all --game all --scale quick --batch-size 600", "--batch-size 600: the replay starts with 500"),
        ("watch {tmp}/none", "{tmp}/none: holds no run (no config.json); give a directory"),
        ("watch {tmp}/file", "{tmp}/file"),
        ("sample {tmp}/none", "{tmp}/none: holds no run (no config.json); give a directory"),
        ("sample {tmp}/empty", "{tmp}/empty: holds no run (no config.json); give a directory"),
        ("sample {tmp}/file", "{tmp}/file"),
        ("report --results {tmp}/none", "--results {tmp}/none: no such folder"),
        ("report --results {tmp}/empty", "--results {tmp}/empty: holds no runs"),
        ("report --results {tmp}/empty --scale big", "--scale big: unknown"),
        ("report --results {tmp}/empty --precision fp8", "--precision fp8: unknown; give one of fp32, tf32, bf16"),
        ("report --results {tmp}/empty --export word", "--export word: unknown; give latex"),
        ("report --results {tmp}/empty --published", "--published: there is no folder {tmp}/empty/published"),
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
    if "--results" not in words and words[0] in (*SETTINGS, "bench"):
        words += ["--results", f"{tmp_path}/results"]
    code, printed, error = run(*words)
    assert (code, printed) == (2, "")
    assert error.startswith("wnrepro: ") and says.format(tmp=tmp_path) in error and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        "cifar",
        "cifar --param wn --epochs many",
        "cifar --param wn --no-such",
        "cifar --param wn --importance-samples 3",
        "cvae",
        "cvae --param wn --maps 4,8,8",
        "cvae --param wn --importance-samples 0",
        "cvae --param wn --importance-samples many",
        "draw",
        "draw --param wn --attention 1",
        "draw --param wn --dataset mnist",
        "draw --param wn --importance-samples 3",
        "sample",
        "sample results --count 0",
        "sample results --seed -1",
        "dqn --game all",
        "cifar --param wn --game all",
        "watch",
        "watch results --seconds 0",
        "watch results --seconds 1801",
        "watch results --seed -1",
        "export",
        "nonsense",
    ],
)
def test_what_the_parser_refuses_is_exit_code_2(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, printed, error = run(*words.split())
    assert code == 2 and printed == "" and "Traceback" not in error
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- cvae, draw and sample

SMALL = ["--scale", "quick", "--epochs", "1", "--train-examples", "100", "--test-examples", "100", "--batch-size", "20"]
SMALL_FOLDER = "_epochs-1_batch_size-20_train_examples-100_test_examples-100"
VAES = {
    "mnist": ["cvae", "--dataset", "mnist", "--init-examples", "60", *SMALL],
    "cifar10": ["cvae", "--dataset", "cifar10", "--init-examples", "60", *SMALL],
    "draw": ["draw", *SMALL],
}
each_vae = pytest.mark.parametrize("vae", VAES)
each_of_cvae = pytest.mark.parametrize("vae", ["mnist", "cifar10"])


def vae_folder(results: Path, vae: str, param: str = "wn", lr: str = "") -> Path:
    if vae == "draw":
        return results / f"quick/draw/{param}_lr{lr or '0.001'}{SMALL_FOLDER}/seed-1"
    return results / f"quick/cvae/{vae}_{param}_lr{lr or '0.002'}{SMALL_FOLDER}_init_examples-60/seed-1"


def entry_point(*words: object) -> subprocess.CompletedProcess[str]:
    """The installed command, where no data set is."""
    command = [str(Path(sys.executable).with_name("wnrepro")), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WNREPRO_DATA": "/no/data"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def trained_vaes(tmp_path_factory) -> tuple[Path, dict[str, subprocess.CompletedProcess[str]]]:
    """A results folder with a finished run of each, and what the real entry point said as it made them."""
    results = tmp_path_factory.mktemp("vaes")
    return results, {vae: entry_point(*words, "--param", "wn", "--results", results) for vae, words in VAES.items()}


@pytest.fixture
def vaes(trained_vaes, tmp_path) -> Path:
    """A results folder of the test's own with these runs."""
    return shutil.copytree(trained_vaes[0], tmp_path / "results")


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, when it was written and what it holds; but for the lock, which says who held it last."""
    paths = [path for path in folder.iterdir() if path.name != "lock"]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@each_vae
def test_a_vae_by_the_real_entry_point_on_bundled_data(trained_vaes, vae):
    results, said = trained_vaes
    done, folder = said[vae], vae_folder(results, vae)
    assert (done.returncode, done.stderr) == (0, "")
    line, end = done.stdout.splitlines()
    assert line.startswith(f"{folder.parent.relative_to(results)}  epoch 1/1  train bound -")
    assert " nats, test bound -" in line and ("bits/dim" in line) == (vae == "cifar10")
    assert end == f"{folder}: done"
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "run.json", "metrics.csv", "layers.csv", "checkpoint.pt", "lock"),
        "kl_steps.csv" if vae == "draw" else "init.csv",
    }
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done" and record["facts"]["data"].startswith("bundled")
    assert json.loads((folder / "config.json").read_text())["settings"]["binarization"] is None


@each_vae
def test_a_finished_vae_is_skipped(run, vaes, monkeypatch, vae):
    folder = vae_folder(vaes, vae)
    before = state(folder)
    kind = experiment_class(VAES[vae][0])
    monkeypatch.setattr(kind, "load", classmethod(lambda *_: pytest.fail("it needs no data")))
    assert run(*VAES[vae], "--param", "wn", "--results", vaes) == (0, f"{folder}: done\n", "")
    assert state(folder) == before


def test_a_switch_is_a_setting_of_the_run(run, tmp_path):
    words = (*VAES["draw"], "--param", "wn", "--time-steps", 3, "--results", tmp_path, "--quiet")
    for more in (["--no-attention"], [], ["--attention"]):
        assert run(*words, *more) == (0, "", "")
    there = {path.parent.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("config.json")}
    name = f"wn_lr0.001{SMALL_FOLDER}"
    assert {variant: config["settings"]["attention"] for variant, config in there.items()} == {
        f"{name}_attention-False_time_steps-3": False,
        f"{name}_time_steps-3": True,
    }


@each_of_cvae
def test_importance_samples_of_a_finished_run_are_taken_without_training(run, vaes, monkeypatch, vae):
    folder = vae_folder(vaes, vae)
    before, record = state(folder), json.loads((folder / "run.json").read_text())
    monkeypatch.setattr(experiment_class("cvae"), "train", lambda _: pytest.fail("it has been trained"))
    words = (*VAES[vae], "--param", "wn", "--results", vaes)
    code, printed, error = run(*words, "--importance-samples", 3)
    facts = json.loads((folder / "run.json").read_text())["facts"]
    estimate = facts["log_likelihood_nats"]
    says = f"{folder}: log p(x) ≈ {estimate:.2f} nats, by 3 samples an image"
    assert (code, printed, error) == (0, f"{says}\n{folder}: done\n", "")
    after = state(folder)
    assert {name for name in before if before[name][1] != after[name][1]} == {
        "run.json"
    } and before.keys() == after.keys()
    added = {"log_likelihood_nats": estimate, "importance_samples": 3}
    record["facts"] |= added
    seal(record)
    assert json.loads(after["run.json"][1]) == record
    with (folder / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0 < estimate - float(row["test_bound_nats"]) < 40, "3 samples bring the bound nearer to log p(x)"

    code, printed, _ = run(*words, "--importance-samples", 1, "--json")
    (listed,) = json.loads(printed)
    assert code == 0 and listed["facts"]["importance_samples"] == 1
    assert listed["facts"]["log_likelihood_nats"] == pytest.approx(float(row["test_bound_nats"]), abs=0.01), (
        "1 sample, of the test's seed, is the bound"
    )


def test_importance_samples_after_training_in_one_command(run, tmp_path):
    words = (*VAES["mnist"], "--param", "bn", "--results", tmp_path, "--importance-samples", 2)
    code, printed, _ = run(*words)
    folder = vae_folder(tmp_path, "mnist", "bn")
    assert code == 0 and "epoch 1/1" in printed and "by 2 samples an image" in printed
    assert json.loads((folder / "run.json").read_text())["facts"]["importance_samples"] == 2
    assert run(*words, "--quiet") == (0, "", "")


def test_importance_samples_without_a_checkpoint_are_a_mistake(run, vaes):
    folder = vae_folder(vaes, "mnist")
    (folder / "checkpoint.pt").unlink()
    before = state(folder)
    code, printed, error = run(*VAES["mnist"], "--param", "wn", "--results", vaes, "--importance-samples", 2)
    assert (code, printed) == (2, "") and error.startswith(f"wnrepro: {folder}: has no checkpoint.pt")
    assert state(folder) == before


@pytest.mark.parametrize(("vae", "param"), [("mnist", "wn"), ("cifar10", "bn"), ("draw", "wn")])
def test_divergence_of_a_vae_is_a_result(run, tmp_path, vae, param):
    words = (*VAES[vae], "--param", param, "--lr", "1e6", "--results", tmp_path)
    code, printed, error = run(*words)
    folder = vae_folder(tmp_path, vae, param, "1e+06")
    assert (code, error) == (0, "") and f"{folder}: diverged (median training bound" in printed
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "diverged" and record["epoch"] == 1 and "is the limit" in record["message"]
    before = state(folder)
    more = [] if vae == "draw" else ["--importance-samples", 3]
    code, printed, error = run(*words, *more)  # skipped, and there is nothing to estimate
    assert (code, error) == (0, "") and printed == f"{folder}: diverged ({record['message']})\n"
    says = f"wnrepro: {folder}: the run diverged, its model has no images to show; give another\n"
    assert run("sample", folder) == (2, "", says)
    assert state(folder) == before


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        (
            "cvae",
            [
                "--dataset mnist|cifar10|all data set, and with it the model (§5.2; default: mnist)",
                "epochs (our choice: §5.2 names no number; "
                "default: mnist 100, short 4, quick 10; cifar10 100, short 12, quick 5)",
                "minibatch size (our choice; CIFAR-10: authors' code; default: mnist 100, quick 50; cifar10 16)",
                "Adamax's learning rate α (§5.2; default: 0.002)",
                "(§5.2; default: mnist 16 32 32, quick 4 8 8; cifar10 160, short 32, quick 16)",
                "units of the dense layer (§5.2; default: 450, quick 64)",
                "authors' code; default: mnist 0.0; cifar10 0.25)",
                "--importance-samples K",
            ],
        ),
        (
            "draw",
            [
                "epochs (figure 3; default: 100, short 5, quick 8)",
                "minibatch size (authors' code; default: 100, quick 50)",
                "training images (the first so many) (authors' code; default: 50000, quick 2000)",
                "--attention --no-attention <bool> read and write through attention windows, or the whole image (§5.3;",
            ],
        ),
        (
            "dqn",
            [
                "--game breakout|enduro|seaquest|space_invaders|all Atari game (§5.4; default: space_invaders)",
                "(§5.4; bn and wn+mobn: our choice; default: normal 0.0001, bn 0.0003, wn 0.0003, wn+mobn 0.0003)",
            ],
        ),
    ],
)
def test_help_tells_every_setting_and_its_default_at_every_scale(run, monkeypatch, experiment, says):
    monkeypatch.setenv("COLUMNS", "250")
    code, printed, _ = run(experiment, "--help")
    text = " ".join(printed.replace("│", "").split())
    assert code == 0
    for name, field in ((field.name, field) for field in dataclasses.fields(SETTINGS[experiment])):
        assert "--" + name.replace("_", "-") in printed
        assert f"({field.metadata['source']}" in text
    for words in says:
        assert words in text, words
    assert "None" not in text


def test_help_states_the_precision_on_a_cpu_and_on_a_gpu(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    for experiment, precision in ((name, cls.gpu_precision) for name, cls in SETTINGS.items()):
        text = " ".join(run(experiment, "--help")[1].replace("│", "").split())
        assert f"(our choice; default: fp32, on a GPU {precision})" in text
    text = " ".join(run("reproduce", "--help")[1].replace("│", "").split())
    assert "default: fp32, on a GPU bf16 for cifar, tf32 for cvae, tf32 for draw, tf32 for dqn" in text


def test_help_of_a_command_imports_no_torch():
    for command in ("cvae", "draw", "dqn", "sample", "watch", "export"):
        code = (
            f"import sys\nsys.argv = ['wnrepro', '{command}', '--help']\nfrom wnrepro.cli import main\n"
            "try:\n    main()\nfinally:\n    assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# What MNIST's files allow. small_data writes a few images and their checksums.

FEW = ["--scale", "short", "--epochs", "1", "--batch-size", "2", "--latents", "2"]
HANDFUL = ["cvae", *FEW, "--init-examples", "6", *(3 * ["--maps", "2"]), "--hidden", "8", "--iaf-width", "4"]
DRAWN = ["draw", *FEW, "--units", "4", "--time-steps", "2"]


@pytest.mark.parametrize(("handful", "name"), [(HANDFUL, "mnist_wn_lr0.002"), (DRAWN, "wn_lr0.0003")])
def test_where_only_mnist_is_its_pixels_are_drawn_by_a_seed(run, tmp_path, monkeypatch, handful, name):
    small_data(monkeypatch, "mnist", tmp_path)
    words = (*handful, "--param", "wn", "--data-dir", tmp_path, "--results")
    code, printed, error = run(*words, tmp_path / "a")
    assert code == 0 and "done" in printed
    assert error == (
        f"Larochelle's binarized MNIST is not in {tmp_path}: MNIST is binarized by a fixed seed, which moves the bound "
        "by 1 to 2 nats\n"
    )
    (path,) = (tmp_path / "a").rglob("config.json")
    assert path.parent.parent.name.startswith(f"{name}_epochs-1_batch_size-2_binarization-seeded_")
    assert json.loads(path.read_text())["settings"]["binarization"] == "seeded"
    assert "binarized once by seed" in json.loads(path.with_name("run.json").read_text())["facts"]["data"]

    before = state(path.parent)
    code, printed, error = run(*words, tmp_path / "a", "--binarization", "seeded")  # the same run, as asked for
    assert (code, printed, error) == (0, f"{path.parent}: done\n", "") and state(path.parent) == before
    assert run(*words, tmp_path / "b", "--quiet") == (0, "", "")
    assert run(*words, tmp_path / "c", "--json")[2] == ""


def test_the_note_on_the_seed_is_printed_once(run, tmp_path, monkeypatch):
    small_data(monkeypatch, "mnist", tmp_path)
    words = (*HANDFUL, "--param", "all", "--data-dir", tmp_path, "--results", tmp_path / "results")
    monkeypatch.setattr("wnrepro.cli.run_all", lambda *_, **__: 0)
    code, _, error = run(*words)
    assert code == 0 and error.count("MNIST is binarized by a fixed seed") == 1


@pytest.mark.parametrize("handful", [HANDFUL, DRAWN])
def test_where_larochelles_files_are_they_are_taken(run, tmp_path, monkeypatch, handful):
    small_data(monkeypatch, "binarized_mnist", tmp_path)
    code, _, error = run(*handful, "--param", "wn", "--data-dir", tmp_path, "--results", tmp_path / "a")
    assert (code, error) == (0, "")
    (path,) = (tmp_path / "a").rglob("config.json")
    assert json.loads(path.read_text())["settings"]["binarization"] == "larochelle"
    assert "binarization" not in path.parent.parent.name
    assert "Larochelle" in json.loads(path.with_name("run.json").read_text())["facts"]["data"]


@pytest.mark.parametrize("handful", [HANDFUL, DRAWN])
def test_larochelles_binarization_is_not_replaced_where_it_was_asked_for(run, tmp_path, monkeypatch, handful):
    small_data(monkeypatch, "mnist", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = (*handful, "--param", "wn", "--data-dir", tmp_path, "--results", tmp_path / "results")
    code, printed, error = run(*words, "--binarization", "larochelle")
    assert (code, printed) == (2, "") and "Traceback" not in error
    assert error.startswith(f"wnrepro: The data set binarized_mnist is not complete in {tmp_path} (")
    assert "give --binarization seeded, which needs nothing but MNIST's own files" in error
    for file in DATASETS["binarized_mnist"]:
        assert file.path in error and file.checksum.replace(":", " ") in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("vae", "side"), [("mnist", 28), ("cifar10", 32), ("draw", 28)])
def test_sample_writes_pictures_into_the_run(run, vaes, monkeypatch, vae, side):
    folder = vae_folder(vaes, vae)
    before = state(folder)
    monkeypatch.chdir(vaes)
    code, printed, error = run("sample", folder.relative_to(vaes), "--count", 6)
    paths = [folder / "samples.png", folder / "reconstructions.png"] + [folder / "drawing.gif"] * (vae == "draw")
    assert (code, error) == (0, "") and printed.splitlines() == [str(path) for path in paths]
    for path, wide in zip(paths, (side, 2 * side), strict=False):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.size == (3 * (wide + 2) + 2, 2 * (side + 2) + 2)
            assert len(picture.getcolors(2**24)) > 2
    if vae == "draw":
        with Image.open(paths[2]) as picture:
            assert picture.format == "GIF" and 1 < picture.n_frames <= 12 + 1
            assert (255, 0, 0) in {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    after = state(folder)
    drawn = {path.name: after.pop(path.name)[1] for path in paths}
    assert {name: content for name, (_, content) in after.items()} == {n: content for n, (_, content) in before.items()}

    run("sample", folder, "--count", 6)
    assert {path.name: path.read_bytes() for path in paths} == drawn, "the same seed, the same pictures"
    run("sample", folder, "--count", 6, "--seed", 2)
    assert all(path.read_bytes() != drawn[path.name] for path in paths)
    assert run("sample", folder)[0] == 0  # 64 without --count
    with Image.open(paths[0]) as picture:
        assert picture.size == (8 * (side + 2) + 2, 8 * (side + 2) + 2)


@pytest.mark.parametrize("vae", ["mnist", "draw"])
def test_a_cpu_shows_what_a_gpu_trained_in_tf32(run, vaes, monkeypatch, vae):
    folder, drawn = vae_folder(vaes, vae), []

    def of_a_gpu(path):
        there = open_run(path)
        there.settings = dataclasses.replace(there.settings, precision="tf32")
        return there

    for opened in (open_run, of_a_gpu):
        monkeypatch.setattr("wnrepro.runs.run.open_run", opened)
        assert run("sample", folder, "--count", 6, "--device", "cpu")[0] == 0
        drawn.append([(folder / name).read_bytes() for name in ("samples.png", "reconstructions.png")])
    assert drawn[0] == drawn[1]


def test_sample_of_a_run_without_a_checkpoint(run, vaes):
    folder = vae_folder(vaes, "mnist")
    (folder / "checkpoint.pt").unlink()
    before = state(folder)
    code, printed, error = run("sample", folder)
    assert (code, printed) == (2, "")
    assert error == (
        f"wnrepro: {folder}: has no checkpoint.pt (checkpoints are not committed); train the run here first\n"
    )
    assert state(folder) == before


def test_of_a_published_run_nobody_is_told_to_start_over(run, vaes):
    own = vae_folder(vaes, "mnist")
    (own / "checkpoint.pt").unlink()
    folder = vaes / PUBLISHED / own.relative_to(vaes)
    shutil.copytree(own, folder)
    record = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    seal(record)
    (folder / "run.json").write_text(json.dumps(record))
    before = state(folder)
    for words, todo in (
        (("sample", folder), f"train it as {own} first"),
        ((*VAES["mnist"], "--param", "wn", "--results", vaes / PUBLISHED), f"there, or train it as {own}"),
    ):
        code, printed, error = run(*words)
        assert (code, printed) == (2, "") and error.endswith(f"{todo}\n") and "--fresh" not in error
    assert state(folder) == before


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sample", "generates no images; give one of cvae or draw"),
        ("watch", "plays no game; give one of dqn"),
    ],
)
def test_sample_and_watch_of_a_classifier(run, random_images, tmp_path, command, says):
    assert run("cifar", "--param", "wn", *TINY, "--results", tmp_path, "--quiet")[0] == 0
    (path,) = tmp_path.rglob("run.json")
    before = state(path.parent)
    code, printed, error = run(command, path.parent)
    assert (code, printed) == (2, "")
    assert error == f"wnrepro: {path.parent}: a run of cifar, which {says}\n"
    assert state(path.parent) == before


@pytest.mark.parametrize(
    ("words", "says"), [("--device tpu", "--device tpu: no such device"), ("--device cuda:99", "--device cuda:99: ")]
)
def test_sample_with_a_device_that_is_not_there(run, vaes, words, says):
    folder = vae_folder(vaes, "mnist")
    before = state(folder)
    code, printed, error = run("sample", folder, *words.split())
    assert (code, printed) == (2, "") and error.startswith(f"wnrepro: {says}")
    assert state(folder) == before


# ------------------------------------------------------------------------------- dqn and watch

DQN = {"game": "breakout", "epochs": 1, "epoch_steps": 150, "test_steps": 20, "test_games": 2}
DQN |= {"replay_steps": 200, "replay_start": 100, "epsilon_test": 0.5, "hidden": 8, "held_out": 20, "init_examples": 20}
PLAY = ["dqn", "--param", "wn", "--scale", "quick"]
PLAY += [str(word) for name, value in DQN.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_all_games_and_parameterizations_are_planned_each_with_its_learning_rate(run, monkeypatch):
    planned = []
    monkeypatch.setattr("wnrepro.cli.run_all", lambda _, settings, **__: planned.extend(settings) or 0)
    assert run("dqn", "--game", "all", "--param", "all", "--epochs", 3) == (0, "", "")
    lr = {param: 0.0001 if param == "normal" else 0.0003 for param in PARAMS}
    assert [(s.game, s.param, s.lr, s.epochs) for s in planned] == [(g, p, lr[p], 3) for g in GAMES for p in PARAMS]
    planned.clear()
    assert run("dqn", "--game", "all", "--param", "wn") == run("dqn", "--param", "wn") == (0, "", "")
    assert [(s.game, s.param) for s in planned] == [(game, "wn") for game in (*GAMES, "space_invaders")]


@pytest.fixture(scope="module")
def trained_dqn(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A results folder with a finished run of dqn, and what the real entry point said as it made it."""
    results = tmp_path_factory.mktemp("dqn")
    return results, entry_point(*PLAY, "--results", results)


@pytest.fixture
def player(trained_dqn, tmp_path) -> Path:
    """The run's folder, of the test's own."""
    results = shutil.copytree(trained_dqn[0], tmp_path / "results")
    (path,) = results.rglob("run.json")
    return path.parent


def test_dqn_by_the_real_entry_point(trained_dqn):
    results, done = trained_dqn
    assert (done.returncode, done.stderr) == (0, "")
    line, end = done.stdout.splitlines()
    (path,) = results.rglob("run.json")
    assert path.parent.parent.name.startswith("breakout_wn_lr0.0003_epochs-1_") and end == f"{path.parent}: done"
    with (path.parent / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    score, most = float(row["test_score"]), float(row["test_score_max"])
    assert line.startswith(
        f"{path.parent.parent.relative_to(results)}  epoch 1/1  test score {score:.1f} (max {most:g}"
    )
    assert f", {row['episodes']} games), mean Q " in line and ", loss " in line and ", ε " in line


def test_watch_films_a_game_of_the_run(run, player):
    before = state(player)
    code, printed, error = run("watch", player)
    path, says = printed.splitlines()
    assert (code, error, path) == (0, "", str(player / "game.gif"))
    points, steps = re.fullmatch(r"(\d+) points, (\d+) steps, game over", says).groups()
    film = Path(path).read_bytes()
    assert int(points) < 100 and played(path) == 70 * int(steps) + 2000

    code, printed, _ = run("watch", player, "--seconds", 2)
    says = printed.splitlines()[1]
    assert code == 0 and re.fullmatch(r"\d+ points after 2 s of play \(the game went on\)", says)
    assert played(path) == 70 * (2 * 15 + 1)

    assert run("watch", player)[0] == 0 and Path(path).read_bytes() == film, "the same seed, the same film"
    assert run("watch", player, "--seed", 2)[0] == 0 and Path(path).read_bytes() != film
    assert {name: kept for name, kept in state(player).items() if name != "game.gif"} == before


def played(path: str) -> int:
    """Milliseconds that an animation takes; its frames are the console's screens above a line."""
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.width == 160 and 220 < picture.height < 230
        assert len(picture.convert("RGB").getcolors()) > 8, "in colour"
        shown = 0
        for number in range(picture.n_frames):
            picture.seek(number)
            shown += picture.info["duration"]
    return shown


def test_what_cannot_be_watched_is_said_in_one_sentence(run, player):
    def refused(says: str, *words: str) -> None:
        before = state(player)
        assert run("watch", player, *words) == (2, "", f"wnrepro: {says}\n")
        assert state(player) == before

    refused("--device tpu: no such device; give auto, cpu, cuda or cuda:N", "--device", "tpu")
    (player / "checkpoint.pt").unlink()
    refused(f"{player}: has no checkpoint.pt (checkpoints are not committed); train the run here first")
    record = json.loads((player / "run.json").read_text())
    record["status"] = "diverged"
    seal(record)
    (player / "run.json").write_text(json.dumps(record))
    refused(f"{player}: the run diverged, its network plays no game; give another")


# ------------------------------------------------------------------------------- data, doctor, Ctrl-C


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
from factories import make_images
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
    assert "the same command again continues it" in error and "Traceback" not in error
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["status"] == "running"

"""The run directory: whole files, resume without a row lost, doubled or changed, locks, kill -9 for real."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wnrepro import runs
from wnrepro.errors import UserError
from wnrepro.experiments.cifar import Cifar
from wnrepro.runs import Run, variant
from wnrepro.settings import scale_settings
from wnrepro.training import Epoch

CPU = torch.device("cpu")


class Walk:
    """A made-up experiment: a random walk that depends on every generator; diverges where told to."""

    def __init__(self, epochs: int, diverges: int = 0) -> None:
        torch.manual_seed(0)
        random.seed(0)
        runs.np.random.seed(0)
        self.epochs, self.diverges, self.device, self.facts = epochs, diverges, CPU, {"steps": 0}
        self.epoch, self.place = 0, 0.0

    def train(self) -> Iterator[Epoch]:
        while self.epoch < self.epochs:
            self.epoch += 1
            self.place += torch.randn(()).item() + random.random() + runs.np.random.rand()
            table = [{"epoch": self.epoch, "half": half, "place": self.place / half} for half in (1, 2)]
            diverged = "walked away" if self.epoch == self.diverges else ""
            yield Epoch(
                self.epoch,
                {"epoch": self.epoch, "seconds": 0.1, "place": self.place},
                {"halves": table},
                diverged,
            )
            if diverged:
                return

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.place = state["epoch"], state["place"]


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.csv")}


def without_seconds(path: Path) -> list[list[str]]:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    column = lines[0].index("seconds")
    return [line[:column] + line[column + 1 :] for line in lines]


def test_a_run_writes_its_directory(tmp_path, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny("wn", epochs=5))
    with run:
        record = run.execute(lambda: Walk(5))
    assert record["status"] == "done" and record["epoch"] == 5 and record["resumed"] == []
    config = json.loads((run.folder / "config.json").read_text())
    assert config["settings"]["param"] == "wn" and config["hash"] == record["config_hash"]
    assert record == json.loads((run.folder / "run.json").read_text())
    assert record["seconds"] == pytest.approx(0.5) and record["peak_memory_bytes"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] and "commit" in record["git"]
    assert run.finished() == "done"
    assert not list(run.folder.glob("*.part"))


@pytest.mark.parametrize("diverges", [0, 3])
def test_a_kill_at_any_write_leaves_a_run_that_goes_on(tmp_path, tiny, monkeypatch, diverges):
    """The process ends before or within the n-th write, for every n; then the same command again."""
    whole = Run(tmp_path / "whole", "cifar", "quick", tiny(epochs=4))
    with whole:
        expected = whole.execute(lambda: Walk(4, diverges))
    write, tried = runs.write_whole, 0
    for stop in range(1, 40):
        for half_written in (False, True):
            run = Run(tmp_path / f"{stop}{half_written}", "cifar", "quick", tiny(epochs=4))
            count = 0

            def killed(path, content, stop=stop, half_written=half_written):
                nonlocal count
                count += 1
                if count == stop:
                    if half_written:
                        path.with_name(path.name + ".part").write_bytes(content[: len(content) // 2])
                    raise SystemExit
                write(path, content)

            monkeypatch.setattr(runs, "write_whole", killed)
            try:
                with run:
                    run.execute(lambda: Walk(4, diverges))
            except SystemExit:
                tried += 1
            else:
                continue
            finally:
                monkeypatch.setattr(runs, "write_whole", write)
            with run:
                record = run.execute(lambda: Walk(4, diverges))
            assert files(run.folder) == files(whole.folder)
            assert (record["status"], record["epoch"]) == (expected["status"], expected["epoch"])
            assert record["metrics_sha256"] == expected["metrics_sha256"]
    assert tried > 20


def test_a_failure_is_recorded_and_tried_again(tmp_path, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny(epochs=4))

    def stop(event):
        if event.epoch == 2:
            raise OSError("no power")

    with run, pytest.raises(OSError, match="no power"):
        run.execute(lambda: Walk(4), stop)
    assert run.record()["status"] == "failed" and run.record()["message"] == "OSError: no power"
    with run:
        record = run.execute(lambda: Walk(4))
    assert record["status"] == "done" and record["message"] == ""
    assert [entry["from_epoch"] for entry in record["resumed"]] == [2]


def test_two_processes_never_share_a_directory(tmp_path, tiny):
    code = (
        "import sys, filelock\n"
        "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    run = Run(tmp_path, "cifar", "quick", tiny())
    run.folder.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(run.folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), run:
            pass
        holder.kill()  # a dead process holds nothing
    with run:
        pass


def test_foreign_or_broken_files_are_named(tmp_path, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny(epochs=4))
    with run:
        run.execute(lambda: Walk(4))
    text = (run.folder / "config.json").read_text()
    (run.folder / "config.json").write_text(
        text.replace('"epochs": 4', '"epochs": 5').replace('"hash": "', '"hash": "0')
    )
    with pytest.raises(UserError, match=r"other settings \(epochs\)"):
        run.record()
    (run.folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable"):
        run.record()
    (run.folder / "config.json").write_text(text)
    (run.folder / "checkpoint.pt").write_bytes(b"PK no checkpoint")
    with run, pytest.raises(UserError, match=r"checkpoint\.pt: not readable"):
        run.execute(lambda: Walk(4))
    torch.save({"config_hash": "other"}, run.folder / "checkpoint.pt")
    with run, pytest.raises(UserError, match="checkpoint of a run with other settings"):
        run.execute(lambda: Walk(4))


def test_a_run_has_a_name_of_its_own():
    plain = scale_settings("cifar", "short", "wn+mobn")
    assert variant("cifar", "short", plain) == "wn+mobn_lr0.003"
    changed = scale_settings("cifar", "short", "wn", lr=0.01, g_exp=3.0, noise_epochs=(1, 2))
    assert variant("cifar", "short", changed) == "wn_lr0.01_g_exp-3.0_noise_epochs-1-2"
    assert runs.config("cifar", "short", plain)["hash"] != runs.config("cifar", "paper", plain)["hash"]


def test_generators_go_on_where_they_were():
    state = runs.rng_state()
    first = torch.rand(3).tolist(), runs.np.random.rand(3).tolist(), random.random()
    runs.set_rng_state(state)
    assert first == (torch.rand(3).tolist(), runs.np.random.rand(3).tolist(), random.random())


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import make_images
from wnrepro.experiments.cifar import Cifar
from wnrepro.runs import Run
from wnrepro.settings import scale_settings
settings = scale_settings("cifar", "quick", sys.argv[3], epochs=6, width=4, batch_size=20, noise_epochs=(2, 4))
run = Run(Path(sys.argv[1]), "cifar", "quick", settings)
if run.finished() is None:
    with run:
        run.execute(lambda: Cifar(settings, make_images(), torch.device("cpu")))
"""


@pytest.mark.parametrize("param", ["normal", "wn+mobn"])
def test_kill_9_at_random_moments_changes_no_row(tmp_path, param):
    """The real experiment in a real process, killed again and again until it gets through."""

    def start(results: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", KILLED, str(results), str(Path(__file__).parent), param]
        return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})

    with start(tmp_path / "whole") as process:
        assert process.wait() == 0, process.stderr.read().decode()
    (whole,) = (tmp_path / "whole").rglob("metrics.csv")

    moments, kills = random.Random(7), 0
    for _ in range(30):
        with start(tmp_path / "killed") as process:
            deadline = time.monotonic() + 100
            while not list((tmp_path / "killed").rglob("config.json")) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 0.8) if kills < 4 else 0)
            if kills < 4:
                process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 1
    (killed,) = (tmp_path / "killed").rglob("metrics.csv")
    assert without_seconds(killed) == without_seconds(whole)
    for name in ("layers.csv", "init.csv", *(["noise.csv"] if param == "wn+mobn" else [])):
        assert killed.with_name(name).read_bytes() == whole.with_name(name).read_bytes()
    assert json.loads(killed.with_name("run.json").read_text())["status"] == "done"


def test_cifar_in_a_run_and_again(tmp_path, images, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny("wn", epochs=2))
    with run:
        record = run.execute(lambda: Cifar(tiny("wn", epochs=2), images, CPU))
    assert record["facts"]["eq3_residual"] < 1e-12 and record["facts"]["init_loss"] > 0
    assert without_seconds(run.folder / "metrics.csv")[0] == [
        *("epoch", "train_error", "test_error", "train_loss", "test_loss", "lr")
    ]
    before = files(run.folder)
    with run:
        assert run.execute(lambda: Cifar(tiny("wn", epochs=2), images, CPU))["status"] == "done"
    assert files(run.folder) == before

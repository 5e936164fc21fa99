"""What becomes of runs that are killed, copied, damaged, without room, or started twice: nothing is lost or mixed.

With --soak: 204 kills and 48 copies, 3157 damaged files, 20 disks that fill up.
"""

import concurrent.futures
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from factories import make_run
from test_runs import Walk, without_seconds

from wnrepro.errors import DiskError, UserError
from wnrepro.events import Note
from wnrepro.report import write_report
from wnrepro.runs import checkpoint, provenance
from wnrepro.runs.checkpoint import CHECKPOINTS
from wnrepro.runs.directory import Locked
from wnrepro.runs.run import Run

EPOCHS = 6
CASES = [
    ("cifar", "normal", "cifar10"),
    ("cifar", "wn+mobn", "cifar10"),
    ("cvae", "wn", "mnist"),
    ("cvae", "bn", "cifar10"),
    ("draw", "wn+mobn", "mnist"),
    ("dqn", "bn", "breakout"),
]
PROCESS = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from factories import make_images, make_pixels, tiny_cvae, tiny_dqn, tiny_draw
from wnrepro.errors import UserError
from wnrepro.experiments.cifar import Cifar
from wnrepro.experiments.cvae import Cvae
from wnrepro.experiments.dqn import Dqn
from wnrepro.experiments.draw import Draw
from wnrepro.runs.run import Run
from wnrepro.settings import scale_settings
experiment, param, dataset, epochs = *sys.argv[3:6], int(sys.argv[6])
cpu = torch.device("cpu")
if experiment == "cifar":
    settings = scale_settings("cifar", "quick", param, epochs=epochs, width=4, batch_size=20, noise_epochs=(2, 4))
    load = lambda: Cifar(settings, make_images(), cpu)
elif experiment == "draw":
    settings = tiny_draw(param, epochs=epochs, lr=0.01)
    load = lambda: Draw(settings, make_pixels(dataset), cpu)
elif experiment == "dqn":
    settings = tiny_dqn(param, epochs=epochs, epoch_steps=60, game=dataset, checkpoint_replay=True)
    load = lambda: Dqn(settings, cpu)
else:
    settings = tiny_cvae(param, dataset, epochs=epochs, polyak_epochs=2.0)
    load = lambda: Cvae(settings, make_pixels(dataset), cpu)
run = Run(Path(sys.argv[1]), experiment, "quick", settings)
try:
    if run.finished() is None:
        with run:
            run.execute(load, lambda event: print(event, flush=True))
except UserError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


def start(results: Path, case: tuple[str, str, str], epochs: int = EPOCHS, around: list[str] | None = None):
    """A process of a real, small experiment that tells its progress on its standard output."""
    command = [sys.executable, "-c", PROCESS, str(results), str(Path(__file__).parent), *case, str(epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*(around or []), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(results: Path, case: tuple[str, str, str]) -> Path:
    """Let a run get through; its folder."""
    with start(results, case) as process:
        _, error = process.communicate()
        assert process.returncode == 0, error
    (metrics,) = results.rglob("metrics.csv")
    return metrics.parent


def same(folder: Path, whole: Path) -> None:
    """Every table of the run is the other's, but for the seconds; and so is what run.json says of the training."""
    assert {path.name for path in folder.glob("*.csv")} == {path.name for path in whole.glob("*.csv")}
    for path in folder.glob("*.csv"):
        if path.name == "metrics.csv":
            assert without_seconds(path) == without_seconds(whole / path.name)
        else:
            assert path.read_bytes() == (whole / path.name).read_bytes(), path.name
    record, expected = (json.loads((one / "run.json").read_text()) for one in (folder, whole))
    assert (record["status"], record["epoch"]) == ("done", EPOCHS) and record["facts"] == expected["facts"]
    assert not list(folder.glob(".*")) and [path.name for path in folder.glob("*.pt")] == ["checkpoint.pt"]


def copy(source: Path, target: Path) -> None:
    """A copy of a folder of which files change and go meanwhile, as far as they can be had."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        try:
            shutil.copyfile(path, target / path.name)
        except FileNotFoundError:
            assert path.suffix == ".part", path


# ------------------------------------------------------------------------------- kills


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_kills_and_copies_at_random_moments_change_no_row(tmp_path, case, times, count):
    """A run is killed with -9 again and again, and each time goes on; copies of it made meanwhile go on elsewhere."""
    whole = finish(tmp_path / "whole", case)
    assert len(without_seconds(whole / "metrics.csv")) == 1 + EPOCHS
    tables = {"init.csv" if case[0] != "draw" else "kl_steps.csv", "layers.csv", "metrics.csv"}
    further = {("cifar", "wn+mobn"): {"noise.csv"}, ("dqn", "bn"): {"games.csv"}}
    assert {path.name for path in whole.glob("*.csv")} == tables | further.get(case[:2], set())

    moments, kills, got_through, copies = random.Random(str(case)), 0, 0, 0
    wanted_kills, wanted_copies = times(3, 34), times(1, 8)
    results = tmp_path / "killed"
    while kills < wanted_kills:
        with start(results, case) as process:
            for _ in range(moments.randint(0, 3)):
                process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.2))
            there = next(results.rglob("config.json"), None) if copies < wanted_copies else None
            if there is not None and process.poll() is None:
                copies += 1
                elsewhere = tmp_path / f"copy{copies}"
                copy(there.parent, elsewhere / there.parent.relative_to(results))
            process.send_signal(signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
        kills += killed
        if not killed:  # it was through before
            assert process.returncode == 0
            same(finish(results, case), whole)
            got_through += 1
            shutil.rmtree(results)
    same(finish(results, case), whole)
    for number in range(1, copies + 1):
        same(finish(tmp_path / f"copy{number}", case), whole)
    assert copies == wanted_copies
    runs_seen = 1 + got_through + copies
    count(f"{' '.join(case)}: {kills} kills, {copies} copies; {runs_seen} runs ended, their rows as undisturbed ones'")


# ------------------------------------------------------------------------------- the disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of room there; the file that takes it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    return path


def ends_for_the_disk(process: subprocess.Popen, results: Path, reason: str) -> None:
    """It ends with exit code 1 and one sentence that names the file or folder."""
    _, error = process.communicate()
    assert process.returncode == 1 and error.count("\n") == 1, error
    code, sentence = error.split(" ", 1)
    assert code == "1" and sentence.startswith(str(results)), error
    assert f"cannot be written ({reason}); make room there or mend its permissions" in sentence


FULL, CASE = "No space left on device", ("draw", "wn", "mnist")


def test_a_disk_that_is_full_before_a_run_is_one_sentence(tmp_path, small_disk):
    filler = fill(small_disk)
    with start(small_disk / "results", CASE) as process:
        ends_for_the_disk(process, small_disk / "results", FULL)
    filler.unlink()
    same(finish(small_disk / "results", CASE), finish(tmp_path / "whole", CASE))


def test_a_disk_that_fills_up_in_a_run_ends_it_and_room_lets_it_go_on(tmp_path, small_disk, times, count):
    whole, moments, ended = finish(tmp_path / "whole", CASE), random.Random(3), 0
    for number in range(times(2, 20)):
        results = small_disk / f"results{number}"
        with start(results, CASE) as process:
            for _ in range(moments.randint(1, 8)):
                process.stdout.readline()
            filler = fill(small_disk)
            if process.poll() is None:
                ends_for_the_disk(process, results, FULL)
                ended += 1
        filler.unlink()
        same(finish(results, CASE), whole)
        shutil.rmtree(results)
    assert ended
    count(f"a disk filled up in {ended} runs: each ended with one sentence, and went on with room")


def test_a_report_for_which_there_is_no_room_is_one_sentence(small_disk):
    make_run(small_disk, "wn", scale="quick")
    filler = fill(small_disk)
    with pytest.raises(DiskError, match=r"cannot be written .*No space left on device"):
        write_report(small_disk, "quick")
    filler.unlink()
    assert all(path.is_file() for path in write_report(small_disk, "quick"))


@pytest.fixture
def without_rights() -> list[str]:
    """What to put before a command so that permissions hold for it, also where root gives it."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []


def test_a_folder_that_cannot_be_written_before_or_in_a_run_is_one_sentence(tmp_path, without_rights):
    results = tmp_path / "results"
    results.mkdir(mode=0o555)
    with start(results, CASE, around=without_rights) as process:
        ends_for_the_disk(process, results, "Permission denied")
    results.chmod(0o755)
    with start(results, CASE, around=without_rights) as process:
        for _ in range(4):
            assert process.stdout.readline()
        folder = next(results.rglob("config.json")).parent
        folder.chmod(0o555)
        ends_for_the_disk(process, folder, "Permission denied")
    with start(results, CASE, around=without_rights) as process:
        ends_for_the_disk(process, folder, "Permission denied")
    folder.chmod(0o755)
    same(finish(results, CASE), finish(tmp_path / "whole", CASE))


# ------------------------------------------------------------------------------- damaged files


def walk_for(folder: Path, seed: int = 1) -> Run:
    from factories import tiny_cvae  # its settings only name the run

    return Run(folder, "cvae", "quick", tiny_cvae(epochs=EPOCHS, seed=seed))


class Stop(BaseException):
    """As a kill, in this process."""


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Callable[[], Run]:
    """stopped(): a run of the made-up experiment with four of its six epochs behind it, afresh each time."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})  # a process each time

    def stop_at(run: Run, epoch: int) -> None:
        def show(event: object) -> None:
            if getattr(event, "epoch", 0) == epoch:
                raise Stop

        with run, pytest.raises(Stop):
            run.execute(lambda: Walk(EPOCHS), show)

    stop_at(walk_for(tmp_path / "template"), 4)

    def make() -> Run:
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        shutil.copytree(tmp_path / "template", tmp_path / "results")
        return walk_for(tmp_path / "results")

    return make


@pytest.fixture
def undisturbed(tmp_path) -> Path:
    run = walk_for(tmp_path / "undisturbed")
    with run:
        run.execute(lambda: Walk(EPOCHS))
    return run.folder


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


def foreign(content: bytes, draw: random.Random) -> bytes:
    return draw.choice([draw.randbytes(len(content)), b"{}", b"epoch,x\n1,2\n", json.dumps({"epoch": 9}).encode()])


FILES = ("config.json", "run.json", "metrics.csv", "halves.csv", *CHECKPOINTS, "lock")


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, foreign], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_last_good_checkpoint_used(stopped, undisturbed, name, damage, times, count):
    """The run refuses, naming the file, and goes on when it is removed; or says what it found, and goes on."""
    draw, refused, said, untouched = random.Random(f"{name} {damage.__name__}"), 0, 0, 0
    for _ in range(1 if damage is emptied else times(6, 150)):
        run = stopped()
        path = run.folder / name
        path.write_bytes(damage(path.read_bytes(), draw))
        notes: list[str] = []

        def show(event: object, notes: list[str] = notes) -> None:
            if isinstance(event, Note):
                notes.append(event.text)

        try:
            with run:
                record = run.execute(lambda: Walk(EPOCHS), show)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error) and error.exit_code == 2
            path.unlink()
            with run:
                record = run.execute(lambda: Walk(EPOCHS), show)
            refused += 1
        else:
            found = [note for note in notes if str(path) in note]
            assert record["resumed"][-1].get("damaged", []) == [note.split("; goes on")[0] for note in found]
            assert bool(found) == (name in (*CHECKPOINTS[:1], "metrics.csv", "halves.csv")), notes
            said, untouched = said + bool(found), untouched + (not found)
        assert notes[-1] in ("from 4", "from 3") and (notes[-1] == "from 3") == (name == CHECKPOINTS[0])
        for table in ("metrics.csv", "halves.csv"):
            assert (run.folder / table).read_bytes() == (undisturbed / table).read_bytes()
        assert record["status"] == "done" and len(record["resumed"]) == 1
    # The second newest checkpoint is not read where the newest is good, and what the lock says is not asked for.
    assert not untouched or name in (CHECKPOINTS[1], "lock")
    count(f"{name} {damage.__name__}: {refused} refused by name, {said} said and gone on, {untouched} without effect")


def test_without_a_good_checkpoint_nothing_starts_over_by_itself(stopped):
    for act in (Path.unlink, lambda path: path.write_bytes(b"")):
        run = stopped()
        before = (run.folder / "metrics.csv").read_bytes()
        for name in CHECKPOINTS:
            act(run.folder / name)
        with run, pytest.raises(UserError, match="start over with --fresh"):
            run.execute(lambda: Walk(EPOCHS))
        assert (run.folder / "metrics.csv").read_bytes() == before
        (run.folder / "run.json").unlink()
        with run, pytest.raises(UserError, match="start over with --fresh"):
            run.execute(lambda: Walk(EPOCHS))
        assert (run.folder / "metrics.csv").read_bytes() == before
        with run:
            run.clear()
            assert run.execute(lambda: Walk(EPOCHS))["status"] == "done"


@pytest.mark.parametrize("name", ["checkpoint.pt", "run.json"])
def test_files_of_another_run_are_never_mixed_in(stopped, tmp_path, name):
    other = walk_for(tmp_path / "other", seed=2)
    with other:
        other.execute(lambda: Walk(EPOCHS))
    run = stopped()
    shutil.copyfile(other.folder / name, run.folder / name)
    (run.folder / CHECKPOINTS[1]).unlink()
    with run, pytest.raises(UserError, match=rf"{run.folder / name}: of a run with other settings"):
        run.execute(lambda: Walk(EPOCHS))


def test_a_checkpoint_of_another_version_is_refused_by_name(stopped):
    run = stopped()
    state = checkpoint.load_checkpoint(run.folder / "checkpoint.pt", run.config["hash"])
    for changes in ({"experiment": {"place": 1.0}}, {"tables": {"../metrics": "x"}}, {"record": "{}"}, {"rng": {}}):
        checkpoint.save_checkpoint(run.folder, state | changes)
        (run.folder / CHECKPOINTS[1]).unlink()
        with run, pytest.raises(UserError, match=r"not fit this version|not of this version"):
            run.execute(lambda: Walk(EPOCHS))


def test_a_checkpoint_is_a_plain_one_of_torchs(stopped):
    state = torch.load(stopped().folder / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 4 and state["tables"]["metrics"].count("\n") == 5


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def test_a_checkpoint_cannot_run_code_nor_unpack_itself(stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = stopped()
    state = checkpoint.load_checkpoint(run.folder / "checkpoint.pt", run.config["hash"])
    checkpoint.save_checkpoint(run.folder, state | {"experiment": Evil()})
    with pytest.raises(checkpoint.Damaged, match="UnpicklingError"):
        checkpoint.load_checkpoint(run.folder / "checkpoint.pt", run.config["hash"])
    assert not Path("evil").exists()

    checkpoint.save_checkpoint(run.folder, state)
    packed = io.BytesIO()
    with zipfile.ZipFile(run.folder / "checkpoint.pt") as plain, zipfile.ZipFile(packed, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    checkpoint.add_checksum(packed)
    (run.folder / "checkpoint.pt").write_bytes(packed.getvalue())
    with pytest.raises(checkpoint.Damaged, match="packed"):
        checkpoint.load_checkpoint(run.folder / "checkpoint.pt", run.config["hash"])


# ------------------------------------------------------------------------------- symbolic links


def test_nothing_is_written_or_removed_outside_a_runs_folder(stopped, tmp_path):
    """Of a results folder that somebody else made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.csv").write_text("mine")
    for name in ("metrics.csv", "run.json", "config.json", "lock", "checkpoint.pt", ".run.json.part"):
        run = stopped()
        (run.folder / name).unlink(missing_ok=True)
        (run.folder / name).symlink_to(outside / "precious.csv")
        try:
            with run:
                run.execute(lambda: Walk(EPOCHS))
        except UserError as error:
            assert str(run.folder / name) in str(error)
        assert (outside / "precious.csv").read_text() == "mine", name
    run = stopped()
    (run.folder / "notes").symlink_to(outside)
    with run:
        run.clear()
    assert (outside / "precious.csv").read_text() == "mine" and (run.folder / "notes").exists()


# ------------------------------------------------------------------------------- several processes

HOLDER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_faults import walk_for
with walk_for(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_says_who_holds_the_run_and_leaves(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(Path(__file__).parent)]
    run = walk_for(tmp_path)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "holds\n"
        says = (
            rf"^{run.folder}: process {holder.pid} on [\w.-]+, since [\dTZ:-]+, is at this run; wait for it, or end it$"
        )
        with pytest.raises(Locked, match=says), run:
            pass
        (run.folder / "lock").write_text('{"pid": "\\u001b[31m", "host": 3}')
        with pytest.raises(Locked, match=rf"^{run.folder}: another process is at this run"), run:
            pass
        holder.kill()  # what it leaves is taken over
    with run:
        assert json.loads((run.folder / "lock").read_text())["pid"] == os.getpid()


def test_of_eight_processes_at_one_run_one_computes_it(tmp_path):
    case = ("draw", "wn", "mnist")
    processes = [start(tmp_path / "together", case) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(subprocess.Popen.communicate, processes))
    for process, (_, error) in zip(processes, ends, strict=True):
        with process:
            assert process.returncode == 0 or "is at this run; wait for it, or end it" in error, error
    (record,) = (tmp_path / "together").rglob("run.json")
    assert json.loads(record.read_text())["resumed"] == []
    same(record.parent, finish(tmp_path / "alone", case))


def test_a_disk_error_is_a_users_error_with_exit_code_1():
    assert issubclass(DiskError, UserError) and (DiskError.exit_code, UserError.exit_code) == (1, 2)

"""Runs that are killed, copied, damaged, out of disk space, or started twice: nothing is lost or mixed."""

import concurrent.futures
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from factories import Walk, make_run, walk_run, without_seconds

from wnrepro.errors import DiskError, UserError
from wnrepro.events import Note
from wnrepro.report import write_report
from wnrepro.runs import provenance
from wnrepro.runs.checkpoint import CHECKPOINTS
from wnrepro.runs.run import Run

Times: TypeAlias = Callable[[int, int], int]
Count: TypeAlias = Callable[[str], None]
Case: TypeAlias = tuple[str, str]
EPOCHS = 6
CASES = [
    *(("cifar", "normal"), ("cifar", "wn+mobn"), ("cvae mnist", "wn"), ("cvae cifar10", "bn")),
    *(("draw", "wn+mobn"), ("dqn", "bn")),
]
CASE, FULL = ("draw", "wn"), "No space left on device"
CHANGES: dict[str, dict[str, object]] = {
    **{"cifar": {"noise_epochs": (2, 4)}, "cvae": {"polyak_epochs": 2.0}, "draw": {"lr": 0.01}},
    "dqn": {"epoch_steps": 60, "checkpoint_replay": True},
}
PROCESS = """
import sys
from pathlib import Path
from factories import tiny_run
from wnrepro.errors import UserError
from wnrepro.runs.run import Run
model, param, changes = sys.argv[2], sys.argv[3], eval(sys.argv[4])
experiment, settings, load = tiny_run(model, param, **changes)
run = Run(Path(sys.argv[1]), experiment, "quick", settings)
try:
    if run.finished() is None:
        with run:
            run.execute(load, lambda event: print(event, flush=True))
except UserError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


def start(results: Path, case: Case, prefix: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """A process that executes a small real run and prints its events."""
    changes = {"epochs": EPOCHS} | CHANGES[case[0].split()[0]]
    command = [*prefix, sys.executable, "-c", PROCESS, str(results), *case, repr(changes)]
    path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def read_events(process: "subprocess.Popen[str]", number: int) -> None:
    assert process.stdout is not None
    for _ in range(number):
        process.stdout.readline()


def finish(results: Path, case: Case) -> Path:
    """Execute a run to its end; its folder."""
    with start(results, case) as process:
        _, error = process.communicate()
        assert process.returncode == 0, error
    (metrics,) = results.rglob("metrics.csv")
    return metrics.parent


def assert_same(folder: Path, whole: Path) -> None:
    """Every table of the run equals the other's except for the seconds; so do run.json's facts."""
    assert {path.name for path in folder.glob("*.csv")} == {path.name for path in whole.glob("*.csv")}
    for path in folder.glob("*.csv"):
        read = without_seconds if path.name == "metrics.csv" else Path.read_bytes
        assert read(path) == read(whole / path.name), path.name
    record, expected = (json.loads((one / "run.json").read_text()) for one in (folder, whole))
    assert (record["status"], record["epoch"]) == ("done", EPOCHS) and record["facts"] == expected["facts"]
    assert not list(folder.glob(".*")) and [path.name for path in folder.glob("*.pt")] == ["checkpoint.pt"]


def copy_of(source: Path, target: Path) -> None:
    """Copy a folder whose files change and vanish meanwhile."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        try:
            shutil.copyfile(path, target / path.name)
        except FileNotFoundError:
            assert path.suffix == ".part", path


# ------------------------------------------------------------------------------- kills


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_kills_and_copies_change_no_row(tmp_path: Path, case: Case, times: Times, count: Count) -> None:
    """kill -9 at random moments, each time resumed; copies made meanwhile resume elsewhere."""
    whole = finish(tmp_path / "whole", case)
    moments, kills, completed, copies = random.Random(str(case)), 0, 0, 0
    results, wanted_copies = tmp_path / "killed", times(1, 8)
    while kills < times(3, 34):
        with start(results, case) as process:
            read_events(process, moments.randint(0, 3))
            time.sleep(moments.uniform(0.0, 0.2))
            config = next(results.rglob("config.json"), None) if copies < wanted_copies else None
            if config is not None and process.poll() is None:
                copies += 1
                copy_of(config.parent, tmp_path / f"copy{copies}" / config.parent.relative_to(results))
            process.send_signal(signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
        kills += killed
        if not killed:  # it was done before
            assert process.returncode == 0
            assert_same(finish(results, case), whole)
            completed += 1
            shutil.rmtree(results)
    assert_same(finish(results, case), whole)
    for number in range(1, copies + 1):
        assert_same(finish(tmp_path / f"copy{number}", case), whole)
    assert copies == wanted_copies
    count(f"{' '.join(case)}: {kills} kills, {copies} copies, {1 + completed + copies} runs with undisturbed rows")


@pytest.mark.slow
def test_one_of_eight_processes_computes_a_run(tmp_path: Path) -> None:
    processes = [start(tmp_path / "together", CASE) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda process: process.communicate(), processes))
    for process, (_, error) in zip(processes, ends, strict=True):
        with process:
            assert process.returncode == 0 or "is at this run; wait for it, or end it" in error, error
    (record,) = (tmp_path / "together").rglob("run.json")
    assert json.loads(record.read_text())["resumed"] == []
    assert_same(record.parent, finish(tmp_path / "alone", CASE))


# ------------------------------------------------------------------------------- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free there; the file that takes it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    return path


def assert_disk_error(process: "subprocess.Popen[str]", folder: Path, reason: str) -> None:
    """It ends with exit code 1 and one sentence that names the file or folder."""
    _, error = process.communicate()
    assert process.returncode == 1 and error.count("\n") == 1, error
    assert error.startswith(f"1 {folder}") and f"cannot be written ({reason})" in error, error


@pytest.mark.slow
def test_full_disk_ends_a_run_that_resumes_with_room(
    tmp_path: Path, small_disk: Path, times: Times, count: Count
) -> None:
    """Full before the run, or at some moment in it."""
    whole, moments, ended = finish(tmp_path / "whole", CASE), random.Random(3), 0
    filler = fill(small_disk)
    with start(small_disk / "before", CASE) as process:
        assert_disk_error(process, small_disk / "before", FULL)
    filler.unlink()
    for number in range(times(2, 20)):
        results = small_disk / f"results{number}"
        with start(results, CASE) as process:
            read_events(process, moments.randint(1, 8))
            filler = fill(small_disk)
            if process.poll() is None:
                assert_disk_error(process, results, FULL)
                ended += 1
        filler.unlink()
        assert_same(finish(results, CASE), whole)
        shutil.rmtree(results)
    assert ended
    count(f"a full disk ended {ended} runs with one sentence; they resumed with room")


@pytest.mark.slow
def test_full_disk_for_a_report_is_one_sentence(small_disk: Path) -> None:
    make_run(small_disk, "wn", scale="quick")
    filler = fill(small_disk)
    with pytest.raises(DiskError, match=r"cannot be written .*No space left on device"):
        write_report(small_disk, "quick")
    filler.unlink()
    assert all(path.is_file() for path in write_report(small_disk, "quick"))


@pytest.mark.slow
def test_read_only_folder_ends_a_run_that_resumes(tmp_path: Path) -> None:
    # Permissions hold for root, too, without its capabilities.
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.getuid() == 0 else ()
    results = tmp_path / "results"
    results.mkdir(mode=0o555)
    with start(results, CASE, prefix) as process:
        assert_disk_error(process, results, "Permission denied")
    results.chmod(0o755)
    with start(results, CASE, prefix) as process:
        read_events(process, 4)
        folder = next(results.rglob("config.json")).parent
        folder.chmod(0o555)
        assert_disk_error(process, folder, "Permission denied")
    with start(results, CASE, prefix) as process:
        assert_disk_error(process, folder, "Permission denied")
    folder.chmod(0o755)
    assert_same(finish(results, CASE), finish(tmp_path / "whole", CASE))


# ------------------------------------------------------------------------------- damaged files


class Stop(BaseException):
    """A kill, in this process."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Results with a run that was stopped after four of its six epochs, and with an undisturbed one."""
    top = tmp_path_factory.mktemp("template")

    def show(event: object) -> None:
        if getattr(event, "epoch", 0) == 4:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})  # three processes each time
        with walk_run(top / "stopped", epochs=EPOCHS) as run, pytest.raises(Stop):
            run.execute(lambda: Walk(EPOCHS), show)
        with walk_run(top / "whole", epochs=EPOCHS) as run:
            run.execute(lambda: Walk(EPOCHS))
        yield top


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def empty(content: bytes, draw: random.Random) -> bytes:
    return b""


def replace(content: bytes, draw: random.Random) -> bytes:
    return draw.choice([draw.randbytes(len(content)), b"{}", b"epoch,x\n1,2\n", json.dumps({"epoch": 9}).encode()])


TABLES = ("metrics.csv", "halves.csv")


@pytest.mark.parametrize("damage", [truncate, flip, empty, replace], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["config.json", "run.json", *TABLES, *CHECKPOINTS, "lock"])
def test_damaged_file_is_named_and_the_run_resumes(
    template: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes, random.Random], bytes],
    times: Times,
    count: Count,
) -> None:
    """The run refuses the file and resumes without it; or says what it found, and resumes from the last good one."""
    draw, refused, said, unused = random.Random(f"{name} {damage.__name__}"), 0, 0, 0
    for number in range(1 if damage is empty else times(2, 150)):
        shutil.copytree(template / "stopped", tmp_path / str(number))
        run: Run = walk_run(tmp_path / str(number), epochs=EPOCHS)
        path, notes = run.folder / name, list[str]()
        path.write_bytes(damage(path.read_bytes(), draw))

        def show(event: object, notes: list[str] = notes) -> None:
            if isinstance(event, Note):
                notes.append(event.text)

        refusal: UserError | None = None
        try:
            with run:
                record = run.execute(lambda: Walk(EPOCHS), show)
        except UserError as error:
            refusal = error
        if refusal:
            assert str(path) in str(refusal) and "\n" not in str(refusal) and refusal.exit_code == 2
            path.unlink()
            with run:
                record = run.execute(lambda: Walk(EPOCHS), show)
            refused += 1
        else:
            found = [note for note in notes if str(path) in note]
            assert len(record["resumed"][-1].get("damaged", [])) == len(found)
            assert bool(found) == (name in (CHECKPOINTS[0], *TABLES)), notes
            said, unused = said + bool(found), unused + (not found)
        assert notes[-1] == ("from 3" if name == CHECKPOINTS[0] else "from 4")
        (whole,) = (template / "whole").rglob("seed-1")
        assert all((run.folder / table).read_bytes() == (whole / table).read_bytes() for table in TABLES)
        assert record["status"] == "done" and len(record["resumed"]) == 1
    # The previous checkpoint is not read if the newest is good, nor the content of the lock.
    assert not unused or name in (CHECKPOINTS[1], "lock")
    count(f"{name} {damage.__name__}: {refused} refused by name, {said} reported and resumed, {unused} without effect")

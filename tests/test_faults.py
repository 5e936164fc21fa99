"""Runs that are damaged, or out of disk space: nothing is lost or mixed."""

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import Count, Times, Walk, make_run, stop_walk, walk_run

from wnrepro.errors import DiskError, UserError
from wnrepro.events import Note
from wnrepro.report import write_report
from wnrepro.runs import provenance
from wnrepro.runs.checkpoint import CHECKPOINTS
from wnrepro.runs.run import Run

EPOCHS, TABLES = 6, ("metrics.csv", "halves.csv")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Results with a run that was stopped after four of its six epochs, and with an undisturbed one."""
    top = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})  # three processes each time
        stop_walk(walk_run(top / "stopped", epochs=EPOCHS), 4, EPOCHS)
        with walk_run(top / "whole", epochs=EPOCHS) as run:
            run.execute(lambda: Walk(EPOCHS))
        yield top


def finish(run: Run, template: Path, show: Callable[[object], None] = lambda _: None) -> dict[str, Any]:
    """Execute a run to its end, check that its tables are those of the undisturbed one; its record."""
    with run:
        record = run.execute(lambda: Walk(EPOCHS), show)
    (whole,) = (template / "whole").rglob("seed-1")
    assert record["status"] == "done" and not list(run.folder.glob(".*"))
    assert all((run.folder / table).read_bytes() == (whole / table).read_bytes() for table in TABLES)
    return record


# ------------------------------------------------------------------------------- the disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MB, which every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("no file system can be mounted here")
        yield Path(folder)
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


@pytest.mark.parametrize("after", range(EPOCHS + 3))
@pytest.mark.parametrize("reason", ["No space left on device", "Permission denied"])
def test_full_or_closed_disk_ends_a_run_that_resumes(template: Path, small_disk: Path, reason: str, after: int) -> None:
    """Before the run, or after one of its events."""
    run, events = walk_run(small_disk / "results", epochs=EPOCHS), 0
    (small_disk / "results").mkdir()

    def fail(_: object = None) -> None:
        nonlocal events
        if events == after:
            fill(small_disk) if reason.startswith("No") else os.seteuid(65534)  # root may write everywhere
        events += 1

    try:
        fail()
        with pytest.raises(DiskError, match=rf"^{small_disk}[^\n]*cannot be written \({reason}\)[^\n]*$"), run:
            run.execute(lambda: Walk(EPOCHS), fail)
    finally:
        os.seteuid(0)
    (small_disk / "filler").unlink(missing_ok=True)
    finish(run, template)


@pytest.mark.slow
def test_full_disk_for_a_report_is_one_sentence(small_disk: Path) -> None:
    make_run(small_disk, "wn", scale="quick")
    filler = fill(small_disk)
    with pytest.raises(DiskError, match=r"cannot be written .*No space left on device"):
        write_report(small_disk, "quick")
    filler.unlink()
    assert all(path.is_file() for path in write_report(small_disk, "quick"))


# ------------------------------------------------------------------------------- damaged files


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def replace(content: bytes, draw: random.Random) -> bytes:
    return draw.choice([draw.randbytes(len(content)), b"{}", b"epoch,x\n1,2\n", json.dumps({"epoch": 9}).encode()])


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncate": lambda content, draw: content[: draw.randrange(len(content))],
    "empty": lambda content, draw: b"",
    "flip": flip,
    "replace": replace,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "run.json", *TABLES, *CHECKPOINTS, "lock"])
def test_damaged_file_is_named_and_the_run_resumes(
    template: Path, tmp_path: Path, name: str, damage: str, times: Times, count: Count
) -> None:
    """The run refuses the file and resumes without it; or says what it found, and resumes from the last good one."""
    draw, refused, said, unused = random.Random(f"{name} {damage}"), 0, 0, 0
    for number in range(1 if damage == "empty" else times(2, 150)):
        shutil.copytree(template / "stopped", tmp_path / str(number))
        run, notes = walk_run(tmp_path / str(number), epochs=EPOCHS), list[str]()
        path = run.folder / name
        path.write_bytes(DAMAGES[damage](path.read_bytes() or b"process 1 on a, since 2026,", draw))

        def show(event: object, notes: list[str] = notes) -> None:
            if isinstance(event, Note):
                notes.append(event.text)

        try:
            record = finish(run, template, show)
            found = [note for note in notes if str(path) in note]
            assert len(record["resumed"][-1].get("damaged", [])) == len(found)
            assert bool(found) == (name in (CHECKPOINTS[0], *TABLES)), notes
            said, unused = said + bool(found), unused + (not found)
        except UserError as refusal:
            assert str(path) in str(refusal) and "\n" not in str(refusal) and refusal.exit_code == 2  # noqa: PT017
            path.unlink()
            record = finish(run, template, show)
            refused += 1
        assert notes[-1] == ("from 3" if name == CHECKPOINTS[0] else "from 4") and len(record["resumed"]) == 1
    # The previous checkpoint is not read if the newest is good, nor the content of the lock.
    assert not unused or name in (CHECKPOINTS[1], "lock")
    count(f"{name} {damage}: {refused} refused by name, {said} reported and resumed, {unused} without effect")

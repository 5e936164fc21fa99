"""The run directory: its name, lock and files."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import Walk, walk_run

from wnrepro.errors import DiskError, UserError
from wnrepro.runs import directory
from wnrepro.runs.directory import LockedError, config, read_json, variant, write_atomic
from wnrepro.settings import scale_settings


@pytest.mark.parametrize(
    ("experiment", "scale", "param", "changes", "name"),
    [
        ("cifar", "short", "wn+mobn", {}, "wn+mobn_lr0.003"),
        ("cifar", "short", "wn", {"lr": 0.01, "g_exp": 3.0}, "wn_lr0.01_g_exp-3.0"),
        ("cifar", "short", "wn", {"noise_epochs": (1, 2)}, "wn_lr0.003_noise_epochs-1-2"),
        ("cvae", "paper", "wn", {"dataset": "mnist", "seed": 9}, "mnist_wn_lr0.002"),
        ("cvae", "quick", "wn+mobn", {"dataset": "cifar10"}, "cifar10_wn+mobn_lr0.002"),
        ("cvae", "quick", "wn", {"dataset": "cifar10", "maps": (16,), "iaf_depth": 1}, "cifar10_wn_lr0.002"),
        ("cvae", "quick", "wn", {"maps": (16,), "iaf_depth": 1}, "mnist_wn_lr0.002_maps-16_iaf_depth-1"),
        ("cvae", "paper", "bn", {"binarization": "seeded"}, "mnist_bn_lr0.002_binarization-seeded"),
        ("draw", "quick", "wn", {"attention": False, "time_steps": 10}, "wn_lr0.001_attention-False_time_steps-10"),
        ("dqn", "short", "normal", {"seed": 2}, "space_invaders_normal_lr0.0001"),
        ("dqn", "quick", "wn", {"game": "enduro", "actors": 8}, "enduro_wn_lr0.0003_actors-8"),
    ],
)
def test_name_has_what_differs_from_the_scale(
    experiment: str, scale: str, param: str, changes: dict[str, Any], name: str
) -> None:
    assert variant(experiment, scale, scale_settings(experiment, scale, param, **changes)) == name


def test_hash_tells_configurations_apart() -> None:
    changes: list[dict[str, Any]] = [{}, {"dataset": "cifar10"}, {"seed": 2}, {"binarization": "seeded"}]
    hashes = {config("cvae", "short", scale_settings("cvae", "short", "wn", **one))["hash"] for one in changes}
    assert len(hashes | {config("cvae", "paper", scale_settings("cvae", "paper", "wn"))["hash"]}) == 5


HOLDER = """
import sys
from pathlib import Path
from factories import walk_run
with walk_run(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    made = walk_run(tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holds\n"
        with (
            pytest.raises(LockedError, match=rf"^{made.folder}: process {holder.pid} on [\w.-]+, since "),
            made,
        ):
            pass
        assert made.locked()
        made.lock_path.write_text("process \x1b[31m on 3, since 4,")
        with pytest.raises(LockedError, match=rf"^{made.folder}: another process is at this run"), made:
            pass
        holder.kill()  # a dead process holds nothing
    assert not made.locked()
    with made:
        assert f"process {os.getpid()} on " in made.lock_path.read_text()


def test_kill_before_the_bytes_are_on_the_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    for content in (b"one", b"two"):
        write_atomic(path, content, keep=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"two", b"one")

    def killed(_: int) -> None:
        raise SystemExit

    monkeypatch.setattr(directory.os, "fsync", killed)
    with pytest.raises(SystemExit):
        write_atomic(path, b"three", keep=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"two", b"one") and len(list(tmp_path.iterdir())) == 2


def test_file_system_without_hard_links_keeps_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    for content in (b"one", b"two"):
        write_atomic(tmp_path / "file", content, keep=tmp_path / "previous")
    assert (tmp_path / "previous").read_bytes() == b"one" and (tmp_path / "file").read_bytes() == b"two"


def test_file_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"none/file: cannot be written \(No such file"):
        write_atomic(tmp_path / "none" / "file", b"")
    made = walk_run(tmp_path)
    made.folder = tmp_path / (300 * "a")
    with pytest.raises(DiskError, match=r"cannot be written \(File name too long\)"), made:
        pass
    assert issubclass(DiskError, UserError) and (DiskError.exit_code, UserError.exit_code) == (1, 2)


@pytest.mark.parametrize("content", [b" " * 2**20 + b"{}", b"\xff", b"[]", b"[" * 100_000, b""])
def test_unreadable_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "run.json"
    monkeypatch.setattr(directory, "LARGEST", 2**20)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: [^\n]+$"):
        read_json(path)


@pytest.mark.parametrize("name", ["metrics.csv", "run.json", "config.json", "lock", "checkpoint.pt", ".run.json.part"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """In a results folder that somebody else made."""
    outside = tmp_path / "outside.csv"
    outside.write_text("mine")
    made = walk_run(tmp_path / "results")
    made.folder.mkdir(parents=True)
    (made.folder / name).symlink_to(outside)
    with contextlib.suppress(UserError), made:
        made.execute(Walk)
    assert outside.read_text() == "mine"


def test_clear_removes_only_what_a_run_wrote(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.csv").write_text("mine")
    with walk_run(tmp_path / "results") as made:
        made.execute(Walk)
        (made.folder / "notes").symlink_to(outside)
        made.clear()
    assert (outside / "precious.csv").exists() and {path.name for path in made.folder.iterdir()} == {"lock", "notes"}

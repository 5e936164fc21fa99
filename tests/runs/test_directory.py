"""The run directory: its name, lock and files."""

import contextlib
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from factories import Hold, Walk, walk_run

from wnrepro.errors import DiskError
from wnrepro.runs import directory
from wnrepro.runs.directory import LockedError, config, variant, write_atomic
from wnrepro.settings import scale_settings

NAMES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wn+mobn_lr0.003": ("cifar", "wn+mobn", {}),
    "wn_lr0.01_g_exp-3.0_noise_epochs-1-2": ("cifar", "wn", {"lr": 0.01, "g_exp": 3.0, "noise_epochs": (1, 2)}),
    "mnist_wn_lr0.002": ("cvae", "wn", {"dataset": "mnist", "seed": 9}),
    "cifar10_wn_lr0.002": ("cvae", "wn", {"dataset": "cifar10", "maps": (16,), "iaf_depth": 1}),
    "mnist_wn_lr0.002_maps-16_iaf_depth-1": ("cvae", "wn", {"maps": (16,), "iaf_depth": 1}),
    "wn_lr0.001_attention-False_time_steps-10": ("draw", "wn", {"attention": False, "time_steps": 10}),
    "enduro_wn_lr0.0003_actors-8": ("dqn", "wn", {"game": "enduro", "actors": 8}),
}


def test_name_has_what_differs_from_the_scale_and_the_hash_everything() -> None:
    hashes = set()
    for name, (experiment, param, changes) in NAMES.items():
        each = [scale_settings(experiment, "quick", param, **({"seed": seed} | changes)) for seed in (1, 2)]
        assert variant(experiment, "quick", each[0]) == name
        hashes |= {config(experiment, scale, one)["hash"] for one in each for scale in ("quick", "paper")}
    assert len(hashes) == 4 * len(NAMES) - 2  # one names its seed


def test_a_name_too_long_for_a_folder_tells_settings_apart_but_not_seeds() -> None:
    def name(count: int, **changes: Any) -> str:
        return variant("dqn", "quick", scale_settings("dqn", "quick", "wn", maps=(10,) * count, **changes))

    assert (name(74), len(name(75, seed=2))) == (f"space_invaders_wn_lr0.0003_maps-{'-'.join(['10'] * 74)}", 43)
    assert name(75, seed=2) == name(75, seed=3) != name(76)
    assert re.fullmatch("breakout_wn_lr0.1_[0-9a-f]{16}", name(80, game="breakout", lr=0.1))


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    record: dict[str, Any] = {"facts": {"loss": math.nan, "rest": [math.inf, 1.5]}, "seconds": -math.inf}
    directory.seal(record)
    directory.write_json(tmp_path / "run.json", record)
    text = (tmp_path / "run.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # called for NaN and Infinity
    assert content["facts"] == {"loss": None, "rest": [None, 1.5]} and content["seconds"] is None
    earlier: dict[str, Any] = {"seconds": math.nan}  # as earlier versions sealed and wrote it
    digest = hashlib.sha256(b'{"seconds": NaN}').hexdigest()
    assert directory.sealed(content) and directory.sealed(earlier | {"sha256": digest})


def test_second_process_learns_who_holds_the_run(tmp_path: Path, hold: Hold) -> None:
    made = walk_run(tmp_path)
    holder = hold(made)
    with pytest.raises(LockedError, match=rf"^{made.folder}: .*process {holder.pid} on [\w.-]+, since "), made:
        pass
    assert made.locked()
    for text in (b"\xff", b"", b"{}", b'{"pid": 1, "host": "\x1b[31m"}', b'{"pid": 0, "host": "here"}', b"[" * 10**5):
        made.lock.owner_path.write_bytes(text)
        with pytest.raises(LockedError, match=rf"^{made.folder}: .*another process"), made:
            pass
    holder.kill()  # a dead process holds nothing
    holder.wait()
    assert not made.locked()
    with made:
        assert made.lock.holder().startswith(f"process {os.getpid()} on ")
    assert not made.lock.owner_path.exists()


@pytest.mark.parametrize("hard_links", [True, False])
def test_kill_while_writing_keeps_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=OSError("not supported")))
    for content in (b"one", b"two"):
        write_atomic(path, content, keep=previous)
    monkeypatch.setattr(directory.os, "fsync", Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        write_atomic(path, b"three", keep=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"two", b"one") and len(list(tmp_path.iterdir())) == 2


def test_file_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"none/file: cannot be written \(No such file") as raised:
        write_atomic(tmp_path / "none" / "file", b"")
    assert raised.value.exit_code == 1
    made = walk_run(tmp_path)
    made.folder = tmp_path / (300 * "a")
    with pytest.raises(DiskError, match=r"cannot be written \(File name too long\)"), made:
        pass


@pytest.mark.parametrize(
    "name", ["metrics.csv", "run.json", "config.json", "lock", "lock-owner.json", "checkpoint.pt", ".run.json.part"]
)
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    outside, made = tmp_path / "outside.csv", walk_run(tmp_path / "results")
    outside.write_text("mine")
    made.folder.mkdir(parents=True)
    (made.folder / name).symlink_to(outside)
    with contextlib.suppress(directory.UserError), made:
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

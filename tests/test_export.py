"""Event files for TensorBoard: they hold what the run's tables say."""

import datetime
import json
import math
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import LAYERS, edit, make_dqn, make_draw, make_run, make_vae, snapshot

from wnrepro.errors import DiskError, UserError
from wnrepro.export import FILE, write_events

pytestmark = pytest.mark.usefixtures("made_up_scale")
CREATED = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()  # of the made-up runs
Scalars = dict[tuple[str, int], tuple[float, float]]
Cli = Callable[..., tuple[int, str, str]]


def read(path: Path) -> list[Any]:
    """A file's events: each after its length in 8 bytes and before a checksum of 4, which the length has, too."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, found = path.read_bytes(), []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        data, content = content[12 : 12 + length], content[12 + length :]
        assert check == masked_crc32c(struct.pack("<Q", length)) and len(data) == length
        assert content[:4] == struct.pack("<I", masked_crc32c(data))
        content = content[4:]
        found.append(Event.FromString(data))
    return found


def scalars(path: Path) -> Scalars:
    """(tag, step) → (value, wall time)."""
    every = [(value, event) for event in read(path) for value in event.summary.value]
    plain = [(value, event) for value, event in every if value.WhichOneof("value") == "simple_value"]
    found = {(value.tag, event.step): (value.simple_value, event.wall_time) for value, event in plain}
    assert len(found) == len(plain)
    return found


def settings(path: Path) -> str:
    (text,) = (v for event in read(path) for v in event.summary.value if v.tag == "settings/text_summary")
    assert text.metadata.plugin_data.plugin_name == "text"
    return text.tensor.string_val[0].decode()


def assert_same_as_tables(path: Path, folder: Path, step: str) -> None:
    """The file's scalars are those of the tables, read by pandas alone."""
    metrics = pd.read_csv(folder / "metrics.csv").set_index("epoch", drop=False)
    clock = {0: (0, CREATED)}
    for epoch in metrics["epoch"]:
        clock[epoch] = (metrics[step][epoch], CREATED + metrics["seconds"][:epoch].sum())
    expected: Scalars = {}
    for name, key in {"metrics": None, "layers": "layer", "kl_steps": "time_step"}.items():
        rows = pd.read_csv(folder / f"{name}.csv").to_dict("records") if (folder / f"{name}.csv").exists() else []
        for row in rows:
            at, wall_time = clock[row.pop("epoch")]
            under = f"{name}/{row.pop(key)}" if key else name
            expected |= {(f"{under}/{column}", at): (value, wall_time) for column, value in row.items()}
    found = scalars(path)
    assert found.keys() == expected.keys() and expected
    for tag, (value, wall_time) in expected.items():
        assert found[tag] == pytest.approx((value, wall_time), rel=1e-6, abs=1e-30, nan_ok=True), tag
        assert found[tag][1] == pytest.approx(wall_time, abs=1e-3)


MAKE: dict[str, tuple[Callable[..., Path], str]] = {
    **{"cifar": (make_run, "epoch"), "cvae": (make_vae, "epoch")},
    **{"draw": (make_draw, "epoch"), "dqn": (make_dqn, "agent_steps")},
}


@pytest.mark.parametrize("status", ["done", "running", "diverged"])
@pytest.mark.parametrize("experiment", MAKE)
def test_file_has_every_number_of_the_tables(tmp_path: Path, run: Cli, experiment: str, status: str) -> None:
    make, step = MAKE[experiment]
    folder = make(tmp_path / "results", seed=3, status=status, logged=None if status == "done" else 2)
    before = snapshot(tmp_path)
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "board")
    path = tmp_path / "board" / experiment / folder.parent.name / "seed-3" / FILE
    assert (code, printed, error) == (0, f"{path}\n", "") and "tfevents" in FILE
    assert set(snapshot(tmp_path)) == {*before, path.relative_to(tmp_path).as_posix()}
    first = read(path)[0]
    assert (first.file_version, first.wall_time, first.step) == ("brain.Event:2", CREATED, 0)
    assert_same_as_tables(path, folder, step)
    found, state = scalars(path), {"running": "epoch 2 of ", "diverged": "diverged, epoch 2 of "}
    assert (f"layers/{LAYERS[0]}/v_norm_mean", 0) in found and f"| state | {state.get(status, 'done')}" in settings(
        path
    )
    assert any(math.isnan(value) for value, _ in found.values()) == (status == "diverged")


def test_run_before_its_first_epoch(tmp_path: Path) -> None:
    folder = make_draw(tmp_path / "results", status="running", logged=0)
    for name in ("kl_steps.csv", "metrics.csv", "run.json"):
        (folder / name).unlink()
    path = write_events(folder, tmp_path / "board")
    found = scalars(path)
    assert found and all(tag.startswith("layers/") and step == 0 for tag, step in found)
    assert {event.wall_time for event in read(path)} == {0.0}  # no file tells the start


def test_incomplete_epoch_is_left_out(tmp_path: Path) -> None:
    """Killed between two files; the run repeats that epoch."""
    folder = make_draw(tmp_path / "results", status="running", logged=3)
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-1]))
    found = scalars(write_events(folder, tmp_path / "board"))
    assert {step for _, step in found} == {0, 1, 2}
    assert sum(tag.startswith("kl_steps/") for tag, _ in found) == 2 * 4


def test_second_export_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    board = tmp_path / "board"
    write_events(make_run(tmp_path / "results", seed=2), board)
    folder = make_run(tmp_path / "results")
    path = write_events(folder, board)
    (path.parent / "events.out.tfevents.1.mine").write_bytes(b"")
    first = snapshot(board)
    assert write_events(folder, board) == path and snapshot(board) == first
    edit(folder / "metrics.csv", "\n8,101.5,", "\n8,102.5,")
    write_events(folder, board)
    second = snapshot(board)
    assert second.keys() == first.keys()
    assert {name for name in second if second[name] != first[name]} == {path.relative_to(board).as_posix()}
    assert scalars(path)["metrics/seconds", 8] == (102.5, CREATED + 7 * 101.5 + 102.5)


def test_board_may_be_the_results(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    before = snapshot(tmp_path)
    assert write_events(folder, tmp_path / "short") == folder / FILE
    assert {name: content for name, content in snapshot(tmp_path).items() if Path(name).name != FILE} == before


@pytest.mark.parametrize("board", ["../board", "s3:board"])  # tensorboardX takes the latter for a place on the network
def test_folders_may_be_relative(tmp_path: Path, run: Cli, monkeypatch: pytest.MonkeyPatch, board: str) -> None:
    folder = make_run(tmp_path / "results")
    monkeypatch.chdir(folder)
    code, printed, _ = run("export", ".", "--tensorboard", board)
    path = folder / board / "cifar/wn_lr0.003/seed-1" / FILE
    assert code == 0 and Path(printed.strip()).samefile(path)
    assert_same_as_tables(path, folder, "epoch")


def test_settings_are_a_table_without_markup(tmp_path: Path) -> None:
    hostile = "a|b <script> [c](http://d) **e** _f_ `g` &amp;\n| h | i |\x1b"
    folder = make_run(tmp_path / "results", colour="red", batch_size=50)
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= {"further": hostile, "deep": {"x": [1, "|"]}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = settings(write_events(folder, tmp_path / "board")).splitlines()
    assert lines[:4] == ["| setting | value |", "|---|---|", "| experiment | cifar |", "| scale | short |"]
    assert {"| state | done |", "| lr | 0.003 |", "| batch&#95;size | 50 |", "| colour | red |"} < set(lines)
    assert all(line.count("|") == 3 for line in lines)
    (shown,) = (line for line in lines if line.startswith("| further | "))
    assert not set(shown.removeprefix("| further | ").removesuffix(" |")) & set("|<>[]()*_`/:\x1b\n")


def test_numbers_beyond_all_bounds(tmp_path: Path) -> None:
    folder = make_dqn(tmp_path / "results", status="running", logged=0, record={"created": "yesterday"})
    rows = [[1, 2**53, 0, "inf", 1, 1e40, 1, 1, 1, 1], [2, 0, 0, "-inf", 0, *5 * ["nan"]]]
    with (folder / "metrics.csv").open("a") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    edit(folder / "layers.csv", f"0,{LAYERS[0]},", "0,a|b / ünï ../../c,")
    events = read(write_events(folder, tmp_path / "board"))
    assert [event.step for event in events[2:4]] == [2**53, 0]
    assert events[2].wall_time == math.inf and math.isnan(events[3].wall_time)
    assert {value.tag: value.simple_value for value in events[2].summary.value}["metrics/test_score"] == math.inf
    assert "layers/a|b / ünï ../../c/g_min" in {value.tag for event in events for value in event.summary.value}


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.csv", "layers.csv"])
def test_damaged_run_is_refused(tmp_path: Path, run: Cli, name: str) -> None:
    folder = make_run(tmp_path / "results")
    (folder / name).write_text(f"{name}\n")
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "board")
    assert (code, printed, error.count("\n")) == (2, "", 1) and name in error
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("words", ["{tmp}", "/", "{tmp}/none", "{tmp}/file", "{tmp}/circle", "{results}/short/cifar"])
def test_folder_without_a_run_is_refused(tmp_path: Path, run: Cli, words: str) -> None:
    make_run(tmp_path / "results")
    (tmp_path / "file").write_text("text")
    (tmp_path / "circle").symlink_to("circle")
    folder = words.format(tmp=tmp_path, results=tmp_path / "results")
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "board")
    assert (code, printed) == (2, "") and error.startswith(f"wnrepro: {folder}: holds no run")
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize(
    ("board", "exit_code"), [("{tmp}/file", 2), ("{tmp}/file/board", 1), ("/proc/none", 1), ("{tmp}/" + 300 * "a", 1)]
)
def test_board_that_cannot_be_written_is_named(tmp_path: Path, run: Cli, board: str, exit_code: int) -> None:
    (tmp_path / "file").write_text("text")
    board = board.format(tmp=tmp_path)
    code, printed, error = run("export", make_run(tmp_path / "results"), "--tensorboard", board)
    assert (code, printed) == (exit_code, "") and error.startswith(f"wnrepro: --tensorboard {board}: ")


def test_failure_halfway_keeps_the_earlier_file(tmp_path: Path) -> None:
    folder, board = make_run(tmp_path / "results"), tmp_path / "board"
    write_events(folder, board)
    before = snapshot(board)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(DiskError, match=r"cannot be written \(File too large\)"):
            write_events(folder, board)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert snapshot(board) == before and sum(path.is_dir() for path in board.rglob("*")) == 3


def test_export_needs_its_library_and_option(tmp_path: Path, run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "results")
    assert run("export", folder)[0] == 2
    for name in ("tensorboardX", "tensorboardX.summary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"wnrepro\[tensorboard\]"):
        write_events(folder, tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_export_imports_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "results", scale="quick")
    words = ["wnrepro", "export", str(folder), "--tensorboard", str(tmp_path / "board")]
    code = (
        f"import sys\nsys.argv = {words}\nfrom wnrepro.cli import main\n"
        "try:\n    main()\nfinally:\n    assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and Path(done.stdout.strip()).is_file(), done.stderr

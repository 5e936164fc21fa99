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
Cli = Callable[..., tuple[int, str, str]]


def read(path: Path) -> list[Any]:
    """A file's events: each after its length in 8 bytes and before a checksum of 4, which the length has, too."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, found = path.read_bytes(), []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        data, end, content = content[12 : 12 + length], content[12 + length : 16 + length], content[16 + length :]
        assert check == masked_crc32c(struct.pack("<Q", length)) and len(data) == length
        assert end == struct.pack("<I", masked_crc32c(data))
        found.append(Event.FromString(data))
    return found


def scalars(path: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """(tag, step) → (value, wall time)."""
    every = [(value, event) for event in read(path)[2:] for value in event.summary.value]
    found = {(value.tag, event.step): (value.simple_value, event.wall_time) for value, event in every}
    assert len(found) == len(every)
    return found


def settings(path: Path) -> str:
    (text,) = read(path)[1].summary.value
    assert (text.tag, text.metadata.plugin_data.plugin_name) == ("settings/text_summary", "text")
    return text.tensor.string_val[0].decode()


@pytest.mark.parametrize(
    ("make", "status", "state"),
    [
        *((make, "done", "done") for make in (make_run, make_vae, make_dqn)),
        *((make_draw, "running", "epoch 2 of "), (make_vae, "diverged", "diverged, epoch 2 of ")),
    ],
)
def test_file_has_every_number_of_the_tables(
    tmp_path: Path, run: Cli, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Path], status: str, state: str
) -> None:
    folder = make(tmp_path / "results", seed=3, status=status, logged=None if status == "done" else 2)
    before = snapshot(tmp_path)
    monkeypatch.chdir(folder)
    board = tmp_path / "s3:board"  # tensorboardX takes such a name for a place on the network
    code, printed, error = run("export", ".", "--tensorboard", f"../../../../../{board.name}")
    path = board / folder.parents[1].name / folder.parent.name / "seed-3" / FILE
    assert (code, error) == (0, "") and Path(printed.strip()).samefile(path) and "tfevents" in FILE
    assert set(snapshot(tmp_path)) == {*before, path.relative_to(tmp_path).as_posix()}
    first = read(path)[0]
    assert (first.file_version, first.wall_time, first.step) == ("brain.Event:2", CREATED, 0)
    assert f"| state | {state}" in settings(path)
    metrics = pd.read_csv("metrics.csv").set_index("epoch", drop=False)
    steps = metrics["agent_steps" if make is make_dqn else "epoch"]
    clock = {0: (0, CREATED)} | {n: (steps[n], CREATED + metrics["seconds"][:n].sum()) for n in metrics["epoch"]}
    expected: dict[tuple[str, int], tuple[float, float]] = {}
    for name, key in {"metrics": None, "layers": "layer", "kl_steps": "time_step"}.items():
        for row in pd.read_csv(f"{name}.csv").to_dict("records") if Path(f"{name}.csv").exists() else []:
            at, wall_time = clock[row.pop("epoch")]
            under = f"{name}/{row.pop(key)}" if key else name
            expected |= {(f"{under}/{column}", at): (value, wall_time) for column, value in row.items()}
    found = scalars(path)
    assert found.keys() == expected.keys() and ("layers/conv1/v_norm_mean", 0) in found
    for tag, (value, wall_time) in expected.items():
        assert found[tag] == pytest.approx((value, wall_time), rel=1e-6, abs=1e-30, nan_ok=True), tag
        assert found[tag][1] == pytest.approx(wall_time, abs=1e-3)


def test_updates_are_written_too(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "results", logged=2, status="running")
    (folder / "steps.csv").write_text("epoch,update,loss,lr\n1,5,2.5,0.003\n2,10,inf,0.001\n3,15,1.0,0.001\n")
    ends = [CREATED + 101.5, CREATED + 203]
    found = {
        key: value for key, value in scalars(write_events(folder, tmp_path / "board")).items() if "steps/" in key[0]
    }
    assert found == {
        ("steps/loss", 5): (2.5, ends[0]),
        ("steps/lr", 5): (pytest.approx(0.003), ends[0]),
        ("steps/loss", 10): (float("inf"), ends[1]),
        ("steps/lr", 10): (pytest.approx(0.001), ends[1]),
    }


def test_unfinished_runs_are_written_as_far_as_they_got(tmp_path: Path) -> None:
    folder = make_draw(tmp_path / "results", status="running", logged=3)
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-1]))  # killed between two files: it repeats that epoch
    found = scalars(write_events(folder, tmp_path / "board"))
    assert {step for _, step in found} == {0, 1, 2}
    assert sum(tag.startswith("kl_steps/") for tag, _ in found) == 2 * 4
    for name in ("kl_steps.csv", "metrics.csv", "run.json"):
        (folder / name).unlink()
    path = write_events(folder, tmp_path / "board")
    assert scalars(path) and all(tag.startswith("layers/") and step == 0 for tag, step in scalars(path))
    assert {event.wall_time for event in read(path)} == {0.0}  # no file tells the start


def test_second_export_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    board = tmp_path / "short"  # may be that of the results
    path = write_events(folder, board)
    assert path == folder / FILE
    (path.parent / "events.out.tfevents.1.mine").write_bytes(b"")
    first = snapshot(board)
    assert write_events(folder, board) == path and snapshot(board) == first
    edit(folder / "metrics.csv", "\n8,101.5,", "\n8,102.5,")
    write_events(folder, board)
    second = snapshot(board)
    assert second.keys() == first.keys()
    assert {Path(name).name for name in second if second[name] != first[name]} == {FILE, "metrics.csv"}
    assert scalars(path)["metrics/seconds", 8] == (102.5, CREATED + 7 * 101.5 + 102.5)


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
    folder = make_dqn(tmp_path / "results", status="running", logged=0)
    edit(folder / "run.json", "2027-01-01T00:00:00Z", "yesterday")
    rows = [[1, 2**53, 0, "inf", 1, 1e40, 1, 1, 1, 1], [2, 0, 0, "-inf", 0, *5 * ["nan"]]]
    with (folder / "metrics.csv").open("a") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    edit(folder / "layers.csv", f"0,{LAYERS[0]},", "0,a|b / ünï ../../c,")
    events = read(write_events(folder, tmp_path / "board"))
    assert [event.step for event in events[2:4]] == [2**53, 0]
    assert events[2].wall_time == math.inf and math.isnan(events[3].wall_time)
    assert {value.tag: value.simple_value for value in events[2].summary.value}["metrics/test_score"] == math.inf
    assert "layers/a|b / ünï ../../c/g_min" in {value.tag for event in events for value in event.summary.value}


@pytest.mark.parametrize(
    ("folder", "board", "exit_code", "said"),
    [
        *(("{run}", "{tmp}/board", 2, name) for name in ("config.json", "run.json", "metrics.csv", "layers.csv")),
        *((one, "{tmp}/board", 2, f"{one}: has no run") for one in ("/", "{tmp}/none", "{tmp}/file", "{tmp}/circle")),
        ("{run}/..", "{tmp}/board", 2, "wn_lr0.003: has no run"),
        *(("{run}", board, 1, f"--tensorboard {board}: ") for board in ("/proc/none", "{tmp}/file/board")),
        ("{run}", "{tmp}/" + 300 * "a", 1, "--tensorboard {tmp}/aaa"),
        ("{run}", "{tmp}/file", 2, "--tensorboard {tmp}/file: "),
    ],
)
def test_what_cannot_be_read_or_written_is_named(
    tmp_path: Path, run: Cli, folder: str, board: str, exit_code: int, said: str
) -> None:
    places = {"tmp": tmp_path, "run": make_run(tmp_path / "results")}
    (tmp_path / "file").write_text("text")
    (tmp_path / "circle").symlink_to("circle")
    if (damaged := places["run"] / said).is_file():
        damaged.write_text(f"{said}\n")
    before = snapshot(tmp_path)
    code, printed, error = run("export", folder.format(**places), "--tensorboard", board.format(**places))
    assert (code, printed, error.count("\n")) == (exit_code, "", 1) and said.format(**places) in error
    assert snapshot(tmp_path) == before


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


def test_export_needs_its_library_and_option_but_no_torch(
    tmp_path: Path, run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, wnrepro.report; from wnrepro import export; export.tensorboardx(); "
    code += "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"  # which take seconds
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    folder = make_run(tmp_path / "results")
    assert run("export", folder)[0] == 2
    for name in ("tensorboardX", "tensorboardX.summary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"wnrepro\[tensorboard\]"):
        write_events(folder, tmp_path / "board")

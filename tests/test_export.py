"""Event files for TensorBoard: what is in them is what the run's tables say."""

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
from factories import LAYERS, edit, made_up_scale, make_dqn, make_draw, make_run, make_vae, snapshot  # noqa: F401

from wnrepro.errors import DiskError, UserError
from wnrepro.export import FILE, write_events

CREATED = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()  # of the made-up runs

Scalars = dict[tuple[str, int], tuple[float, float]]


def read(path: Path) -> list[Any]:
    """A file's events: each after its length, in 8 bytes, and before 4 of checksum, which the length has too."""
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
    found: Scalars = {}
    for event in read(path):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = (value.simple_value, event.wall_time)
    return found


def settings(path: Path) -> str:
    (text,) = (v for event in read(path) for v in event.summary.value if v.tag == "settings/text_summary")
    assert text.metadata.plugin_data.plugin_name == "text"
    return text.tensor.string_val[0].decode()


def expected(folder: Path, step: str = "epoch") -> Scalars:
    """What the tables say, read by pandas alone."""
    metrics = pd.read_csv(folder / "metrics.csv").set_index("epoch", drop=False)
    clock = {0: (0, CREATED)}
    for epoch in metrics["epoch"]:
        clock[epoch] = (metrics[step][epoch], CREATED + metrics["seconds"][:epoch].sum())
    found: Scalars = {}
    for name, key in {"metrics": None, "layers": "layer", "kl_steps": "time_step"}.items():
        if not (path := folder / f"{name}.csv").exists():
            continue
        for row in pd.read_csv(path).to_dict("records"):
            at, wall_time = clock[row.pop("epoch")]
            under = f"{name}/{row.pop(key)}" if key else name
            found |= {(f"{under}/{column}", at): (value, wall_time) for column, value in row.items()}
    return found


def assert_same(found: Scalars, wanted: Scalars) -> None:
    assert found.keys() == wanted.keys() and wanted
    for name, (value, wall_time) in wanted.items():
        assert found[name] == pytest.approx((value, wall_time), rel=1e-6, abs=1e-30, nan_ok=True), name
        assert found[name][1] == pytest.approx(wall_time, abs=1e-3)


MAKE: dict[str, tuple[Callable[..., Path], str, int]] = {
    "cifar": (make_run, "epoch", 6),
    "cvae": (make_vae, "epoch", 6),
    "draw": (make_draw, "epoch", 6),
    "dqn": (make_dqn, "agent_steps", 3),
}


@pytest.mark.parametrize("experiment", MAKE)
def test_every_number_of_the_tables_is_in_the_file(run: Any, tmp_path: Path, experiment: str) -> None:
    make, step, _ = MAKE[experiment]
    folder = make(tmp_path / "results", seed=3)
    before = snapshot(tmp_path)
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "board")
    path = tmp_path / "board" / experiment / folder.parent.name / "seed-3" / FILE
    assert (code, printed, error) == (0, f"{path}\n", "") and "tfevents" in FILE
    assert set(snapshot(tmp_path)) == {*before, path.relative_to(tmp_path).as_posix()}
    first = read(path)[0]
    assert (first.file_version, first.wall_time, first.step) == ("brain.Event:2", CREATED, 0)
    found = scalars(path)
    assert_same(found, expected(folder, step))
    assert (f"layers/{LAYERS[0]}/v_norm_mean", 0) in found
    assert ("kl_steps/4/kl_nats", 10) in found or experiment != "draw"
    assert ("metrics/test_score", 4000) in found or experiment != "dqn"


@pytest.mark.parametrize("experiment", MAKE)
def test_a_run_under_way_is_exported_as_far_as_it_got(tmp_path: Path, experiment: str) -> None:
    make, step, _ = MAKE[experiment]
    folder = make(tmp_path / "results", status="running", logged=2)
    path = write_events(folder, tmp_path / "board")
    assert_same(scalars(path), expected(folder, step))
    assert "| state | epoch 2 of " in settings(path)


@pytest.mark.parametrize("experiment", MAKE)
def test_numbers_that_are_not_finite_are_kept(tmp_path: Path, experiment: str, caplog: Any) -> None:
    make, step, logged = MAKE[experiment]
    folder = make(tmp_path / "results", status="diverged", logged=logged)
    path = write_events(folder, tmp_path / "board")
    found = scalars(path)
    assert_same(found, expected(folder, step))
    assert any(math.isnan(value) for value, _ in found.values()) and not caplog.records
    assert f"| state | diverged, epoch {logged} of " in settings(path)


def test_a_run_before_its_first_epoch(tmp_path: Path) -> None:
    folder = make_draw(tmp_path / "results", status="running", logged=0)
    (folder / "kl_steps.csv").unlink()
    (folder / "metrics.csv").unlink()
    (folder / "run.json").unlink()
    path = write_events(folder, tmp_path / "board")
    found = scalars(path)
    assert found.keys() == {(tag, step) for tag, step in found if tag.startswith("layers/") and step == 0} and found
    assert {event.wall_time for event in read(path)} == {0.0}  # nothing says when it began


def test_rows_of_an_epoch_that_is_not_whole_are_left_out(tmp_path: Path) -> None:
    """Killed between two files; the run does that epoch again."""
    folder = make_draw(tmp_path / "results", status="running", logged=3)
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-1]))
    found = scalars(write_events(folder, tmp_path / "board"))
    assert {step for _, step in found} == {0, 1, 2}
    assert sum(tag.startswith("kl_steps/") for tag, _ in found) == 2 * 4


def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    board = tmp_path / "board"
    other = write_events(make_run(tmp_path / "results", seed=2), board)
    folder = make_run(tmp_path / "results")
    path = write_events(folder, board)
    (path.parent / "notes.txt").write_text("mine")
    (path.parent / "events.out.tfevents.1.mine").write_bytes(b"")
    first = snapshot(board)
    assert write_events(folder, board) == path and snapshot(board) == first
    edit(folder / "metrics.csv", "\n8,101.5,", "\n8,102.5,")
    write_events(folder, board)
    changed = {name for name, content in snapshot(board).items() if content != first[name]}
    assert changed == {path.relative_to(board).as_posix()} and other.exists()
    assert scalars(path)["metrics/seconds", 8] == (102.5, CREATED + 7 * 101.5 + 102.5)


def test_into_the_results_themselves_harms_no_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    before = snapshot(tmp_path)
    assert write_events(folder, tmp_path / "short") == folder / FILE
    assert {name: content for name, content in snapshot(tmp_path).items() if Path(name).name != FILE} == before


def test_relative_folders_and_a_run_named_by_a_dot(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "results")
    monkeypatch.chdir(folder)
    for board in ("../board", "s3:board"):  # which tensorboardX takes for a place on the network
        code, printed, _ = run("export", ".", "--tensorboard", board)
        assert code == 0 and scalars(Path(printed.strip())) == scalars(
            folder / board / "cifar/wn_lr0.003/seed-1" / FILE
        )


def test_the_settings_are_a_table_in_which_nothing_is_marked_up(tmp_path: Path) -> None:
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
    """What `results` accepts of a foreign folder."""
    folder = make_dqn(tmp_path / "results", status="running", logged=0, record={"created": "yesterday"})
    header = (folder / "metrics.csv").read_text()
    rows = [[1, 2**53, 0, "inf", 1, 1e40, 1, 1, 1, 1], [2, 0, 0, "-inf", 1, -1e40, 1, 1, 1, 1], [3, 0, *8 * ["nan"]]]
    rows[2][4] = 0
    (folder / "metrics.csv").write_text(header + "".join(",".join(map(str, row)) + "\n" for row in rows))
    edit(folder / "layers.csv", f"0,{LAYERS[0]},", "0,a|b / ünï ../../c,")
    events = read(write_events(folder, tmp_path / "board"))
    assert [event.step for event in events[2:5]] == [2**53, 0, 0]
    assert events[2].wall_time == math.inf and math.isnan(events[4].wall_time)
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert values["metrics/test_score"] == math.inf  # as float32
    assert "layers/a|b / ünï ../../c/g_min" in {value.tag for event in events for value in event.summary.value}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no run (no config.json); give a directory"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is malformed ("),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is malformed ("),
        (lambda folder: (folder / "config.json").write_text(1000 * "["), "config.json is malformed ("),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json: no UTF-8 text"),
        (lambda folder: edit(folder / "config.json", '"lr": 0.003', '"lr": "\\u001b[2J"'), "is malformed ("),
        (lambda folder: edit(folder / "config.json", '"seed": 1', '"seed": 7'), "its folder is a copy, or was renamed"),
        (lambda folder: edit(folder / "config.json", '"cifar"', '"../.."'), "is malformed ("),
        (lambda folder: edit(folder / "run.json", '"done"', '"\\u202e"'), "run.json is malformed ("),
        (lambda folder: edit(folder / "metrics.csv", "epoch,", "age,"), "metrics.csv is malformed ("),
        (lambda folder: edit(folder / "layers.csv", "0,conv1,", "5,conv1,"), "layers.csv is malformed ("),
    ],
)
def test_a_damaged_run_is_one_sentence_and_writes_nothing(
    run: Any, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    folder = make_run(tmp_path / "results")
    damage(folder)
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "board")
    assert (code, printed) == (2, "") and says in error and error.count("\n") == 1 and error[:-1].isprintable()
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("words", ["{tmp}", "/", "{tmp}/none", "{tmp}/file", "{tmp}/circle", "{results}/short/cifar"])
def test_a_folder_that_is_no_run(run: Any, tmp_path: Path, words: str) -> None:
    make_run(tmp_path / "results")
    (tmp_path / "file").write_text("text")
    (tmp_path / "circle").symlink_to("circle")
    folder = words.format(tmp=tmp_path, results=tmp_path / "results")
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "board")
    assert (code, printed) == (2, "")
    assert error == f"wnrepro: {folder}: holds no run (no config.json); give a directory …/<variant>/seed-<n>\n"
    assert not (tmp_path / "board").exists()


def test_a_folder_to_write_to_that_is_none(run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "results")
    (tmp_path / "file").write_text("text")
    code, printed, error = run("export", folder, "--tensorboard", tmp_path / "file")
    assert (code, printed) == (2, "") and error == (
        f"wnrepro: --tensorboard {tmp_path}/file: is a file; give a folder\n"
    )
    for board in (tmp_path / "file" / "board", Path("/proc/none"), tmp_path / (300 * "a")):
        code, printed, error = run("export", folder, "--tensorboard", board)
        assert (code, printed) == (1, "") and error.startswith(f"wnrepro: --tensorboard {board}: cannot be written (")
    code, printed, error = run("export", folder)
    assert (code, printed, error) == (2, "", "wnrepro: --tensorboard: missing; give the folder for the event files\n")


def test_what_fails_halfway_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
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


def test_without_the_library(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "results")
    for name in ("tensorboardX", "tensorboardX.summary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError):
        write_events(folder, tmp_path / "board")
    says = "wnrepro: --tensorboard: needs tensorboardX; run `pip install 'wnrepro[tensorboard]'`\n"
    assert run("export", folder, "--tensorboard", tmp_path / "board") == (2, "", says)
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

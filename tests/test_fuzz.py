"""Every reader of foreign files and texts, on any input: it reads it, or raises one sentence.

Half of the inputs are arbitrary, the other half good ones with a change.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    add_work,
    make_bench,
    make_dqn,
    make_draw,
    make_run,
    make_vae,
    set_scale_short,
    tiny_cvae,
    tiny_dqn,
    tiny_draw,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wnrepro import reading, results
from wnrepro.errors import UserError
from wnrepro.report import figures, tables, write_report
from wnrepro.report.claims import findings
from wnrepro.report.layout import page, render
from wnrepro.reproduce import board, cluster, plan
from wnrepro.reproduce.drive import seconds_of
from wnrepro.reproduce.grid import Planned
from wnrepro.runs.checkpoint import CHECKPOINTS, COMMENT_BYTES, DamagedError, load_checkpoint, save_checkpoint
from wnrepro.runs.directory import RunDirectory, write_json
from wnrepro.runs.run import open_run
from wnrepro.settings import SETTINGS, Settings, printable, scale_settings, settings_from

ANY = settings(suppress_health_check=list(HealthCheck))
LONGEST = 500  # characters of a sentence
DEVICE = "AMD EPYC, 2 threads"
Count = Callable[[str], None]

# ---------------------------------------------------------------------------------- inputs

NUMBERS = ["0", "-0.0", "1", "-1", "2", "0.5", "nan", "inf", "-inf", "1e39", "-1e39", "1e-39", "5e-324", "1e400"]
CELLS = [
    *NUMBERS,
    *(str(2**53), str(2**63), "9" * 5000),
    *["1_0", "x", "a,b", '"', "é"],
    *("", " 1 ", "\x1b[31m", "\x00", "\u202e"),
]
TEXTS = [
    *["done", "<script>", "../../x", "/etc/passwd", "|`*"],
    *("", "\x1b]0;x\x07", "a\nb", "\ud800", "\u202e", "\x00", "x" * 3000),
]
SCALARS: list[Any] = [None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e39, 1e300]
SCALARS += [float("nan"), float("inf"), -float("inf"), *TEXTS]
names = st.sampled_from(TEXTS) | st.text(max_size=5)
json_values = st.recursive(
    st.sampled_from(SCALARS) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
EXTREME = [b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}", b"\r\n" * 9, b'{"epoch": ' + b"9" * 5000 + b"}"]
arbitrary = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode(errors="replace"))
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(EXTREME)
)


@st.composite
def changed_bytes(draw: Any, good: bytes) -> bytes:
    """Bits flipped, parts cut out, put in or doubled."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "end"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at:to]
            case "insert":
                content[at:at] = draw(st.binary(max_size=8) | st.sampled_from(CELLS).map(str.encode))
            case "double":
                content[at:at] = content[at:to]
            case "end":
                del content[at:]
    return bytes(content)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    for key in [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def changed_json(draw: Any, good: bytes, alike: bool = False) -> bytes:
    """Values exchanged, left out or put in, at any depth. alike: for others of their type, and none put in."""
    content = json.loads(good)
    for _ in range(draw(st.integers(1, 2))):
        at, key = draw(st.sampled_from([*places(content)] or [([0], 0)]))
        kind = draw(st.sampled_from(["exchange", "exchange", "leave out", "put in"]))
        if kind == "leave out":
            del at[key]
        elif kind == "put in" and isinstance(at, dict) and not alike:
            at[draw(names)] = draw(json_values)
        else:
            same = [one for one in SCALARS if type(one) is type(at[key])] or [at[key]]
            at[key] = draw(st.sampled_from(same) if alike else json_values)
    return json.dumps(content).encode()


@st.composite
def changed_csv(draw: Any, good: bytes, alike: bool = False) -> bytes:
    """Fields exchanged; lines and columns left out or doubled. alike: numbers for numbers, and an earlier end."""
    rows = list(csv.reader(io.StringIO(good.decode())))
    for _ in range(draw(st.integers(1, 3))):
        line = draw(st.integers(min(alike, len(rows) - 1), len(rows) - 1))
        column = draw(st.integers(0, max(0, len(rows[line]) - 1)))
        match draw(st.sampled_from(["exchange", "exchange", "end", *["line", "again", "column"] * (not alike)])):
            case "exchange" if alike:
                rows[line][max(column, 1)] = draw(st.sampled_from(NUMBERS))
            case "exchange" if rows[line]:
                rows[line][column] = draw(st.sampled_from(CELLS) | st.text(max_size=4))
            case "line" if len(rows) > 1:
                del rows[line]
            case "again":
                rows.insert(line, list(rows[line]))
            case "column":
                rows = [row[:column] + row[column + 1 :] for row in rows]
            case "end":
                rows = rows[: line + 1]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=draw(st.sampled_from(["\n", "\r\n"]))).writerows(rows)
    return text.getvalue().encode(errors="replace")


def anything(good: bytes) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, or a good file with a change."""
    by_kind = changed_json if good.startswith(b"{") else changed_csv
    return arbitrary | changed_bytes(good) | by_kind(good) | by_kind(good, alike=True)


# ---------------------------------------------------------------------------------- what is asserted


def check_sentence(error: BaseException, *parts: str) -> None:
    """One printable, short sentence with these parts."""
    text = str(error)
    assert printable(text) == text and 0 < len(re.sub(r"/\S+", "", text)) < LONGEST, text
    assert all(part in text for part in parts), text


def outcome(read: Callable[[], object], *parts: str, error: type[Exception] = UserError) -> str:
    """`read`, or `refused` in one sentence with these parts."""
    try:
        read()
    except error as refusal:
        check_sentence(refusal, *parts)
        return "refused"
    return "read"


def fuzz(what: str, count: Count, strategy: st.SearchStrategy[Any], attempt: Callable[[Any], str]) -> None:
    """Make an attempt with every example, and count the outcomes."""
    tally: Counter[str] = Counter()

    @ANY
    @given(strategy)
    def attempts(example: Any) -> None:
        tally[attempt(example)] += 1

    attempts()
    count(f"{what}: {tally.total()} inputs, " + ", ".join(f"{number} {name}" for name, number in sorted(tally.items())))


@pytest.fixture(scope="module", autouse=True)
def made_up_scale() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory, if there is one."""
    top = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path()
    folder = Path(os.path.abspath(top / f"wnrepro-fuzz-{os.getpid()}"))
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


# ---------------------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def good(place: Path) -> dict[str, Path]:
    """A results folder with a run of every experiment and a benchmark: the folders."""
    top = place / "good"
    facts = {"data": "x", "importance_samples": 5, "log_likelihood_nats": -1.0}
    folders = {"cifar": make_run(top, "bn"), "cvae": make_vae(top, dataset="cifar10", facts=facts)}
    folders |= {"draw": make_draw(top), "dqn": make_dqn(top)}
    make_run(top, "wn+mobn")
    make_run(top, "normal")
    make_bench(top)
    return folders | {"results": top, "bench": add_work(top)}


# The files of `good` that the report reads.
FILES = [*((run, name) for name in ("config.json", "run.json", "metrics.csv", "layers.csv") for run in SETTINGS)]
FILES += [("cifar", "init.csv"), ("cifar", "noise.csv"), ("draw", "kl_steps.csv"), ("dqn", "games.csv"), ("bench", "")]


def fuzz_file(path: Path, count: Count, read: Callable[[], object], *parts: str) -> None:
    """Fuzz a file, which gets its content back afterwards."""
    content = path.read_bytes()

    def attempt(example: bytes) -> str:
        path.write_bytes(example)
        return outcome(read, *parts)

    try:
        assert attempt(content) == "read"
        fuzz(str(path.relative_to(path.parents[3])), count, anything(content), attempt)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(("where", "name"), FILES)
def test_file_of_results_is_read_or_named(where: str, name: str, good: dict[str, Path], count: Count) -> None:
    path = good[where] / name
    if name:
        fuzz_file(path, count, lambda: results.read_run(path.parent), name)
    else:
        fuzz_file(path, count, lambda: reading.read_json(path, reading.Benchmark), path.name)


file_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
ODD_NAMES = [
    "a\nb",
    "|`*[x](y)",
    "<script>",
    "\x1b[31m",
    "-rf",
    "~",
    "%s",
    "{x}",
    "\u202e",
    "x" * 255,
    "wn_lr0.003",
    "é",
]


def test_folder_of_any_name_is_read_or_named(good: dict[str, Path], place: Path, count: Count) -> None:
    source = (good["cifar"] / "config.json").read_bytes()
    odd = (file_names | st.sampled_from(ODD_NAMES)).filter(lambda name: name not in (".", ".."))

    def attempt(parts: tuple[str, str, str]) -> str:
        top = place / "named"
        folder = top.joinpath("short", *parts)
        try:
            folder.mkdir(parents=True)
            (folder / "config.json").write_bytes(source)
            return outcome(lambda: results.load(top, "short"))
        except OSError:
            return "not a folder's name"  # too long in UTF-8
        finally:
            shutil.rmtree(top)

    seeds = st.just("seed-1") | odd.map(lambda name: f"seed-{name}")
    fuzz("names of folders", count, st.tuples(st.just("cifar") | odd, odd, seeds), attempt)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["texts", "figures"])
def test_accepted_files_can_be_reported(
    drawn: bool, good: dict[str, Path], times: Callable[[int, int], int], count: Count
) -> None:
    sources = {good[where] / name: (good[where] / name).read_bytes() for where, name in FILES}
    changed = {path: changed_json if path.suffix == ".json" else changed_csv for path in sources}
    examples = st.sampled_from([*sources]).flatmap(
        lambda path: st.tuples(st.just(path), changed[path](sources[path], alike=True))
    )

    def attempt(example: tuple[Path, bytes]) -> str:
        path, content = example
        path.write_bytes(content)
        try:
            read = results.load(good["results"], "short")
            problems = results.problems(read)
        except UserError as error:
            check_sentence(error)
            return "refused"
        finally:
            path.write_bytes(sources[path])
        assert all(printable(problem) == problem and len(problem) < LONGEST for problem in problems)
        found = findings(read)
        whole = tables.report(read, found, figures.draw(read, found) if drawn else {}, {})
        assert (render("page.md.jinja", report=whole) + page(whole)).count("<script") == 1  # the page's own
        return "shown"

    limited = settings(ANY, max_examples=times(2 if drawn else 10, 100 if drawn else 2000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "ANY", limited)
        fuzz("reports with figures" if drawn else "reports without figures", count, examples, attempt)


# ---------------------------------------------------------------------------------- runs and their plan

RUNS: dict[str, Settings] = {
    "cifar": scale_settings("cifar", "quick", "wn", noise_epochs=(1, 2), g_exp=3.0),
    "cvae": tiny_cvae(),
    "draw": tiny_draw(),
    "dqn": tiny_dqn(),
}


@pytest.fixture(scope="module")
def stopped(place: Path) -> dict[str, RunDirectory]:
    """Runs that were stopped after an epoch."""
    runs = {name: RunDirectory(place / "stopped", name, "quick", one) for name, one in RUNS.items()}
    for run in runs.values():
        run.folder.mkdir(parents=True)
        write_json(run.folder / "config.json", run.config)
        record = {"status": "running", "message": "", "epoch": 1, "epochs": run.epochs, "seconds": 9.5, "resumed": []}
        record |= {"config_hash": run.config["hash"], "peak_memory_bytes": 10**9, "facts": {}, "device_name": DEVICE}
        write_json(run.folder / "run.json", record)
        assert open_run(run.folder).settings == run.settings and plan.state(run).name == "stopped"
    return runs


@pytest.mark.parametrize("experiment", RUNS)
def test_open_run_opens_or_refuses(experiment: str, stopped: dict[str, RunDirectory], count: Count) -> None:
    folder = stopped[experiment].folder
    fuzz_file(folder / "config.json", count, lambda: open_run(folder), str(folder))


@pytest.mark.parametrize("file", ["run.json", "config.json"])
def test_plan_is_made_or_refused(file: str, stopped: dict[str, RunDirectory], place: Path, count: Count) -> None:
    """The state of a run, its estimate of time and memory, and both in words."""
    there, run = stopped["draw"], Planned("draw", "quick", RUNS["draw"], ("C10",))

    def show(lines: list[plan.Task]) -> None:
        plan.estimate_all(lines, place / "stopped", DEVICE)
        assert printable(board.summary(lines, {})) == board.summary(lines, {})
        assert json.loads(plan.as_json(lines, [], {}, "quick"))["runs"] == 1

    def planned() -> None:
        show([plan.Task(run, there, plan.State("missing"))])
        show(plan.plan(place / "stopped", [run]))

    fuzz_file(there.folder / file, count, planned, str(there.folder))


def test_plan_ignores_a_malformed_benchmark(good: dict[str, Path], place: Path, count: Count) -> None:
    bench = json.loads(good["bench"].read_text()) | {"device_name": DEVICE}
    bench["draw"] |= {"seconds": {"wn": [1.0, 2.0, 1.5]}, "memory": {"wn": 10**9}, "side_by_side": {"1": 1.0, "2": 1.5}}
    top = place / "benches"
    (top / "bench").mkdir(parents=True)
    lines = plan.plan(top, [Planned("draw", "quick", scale_settings("draw", "paper", "wn"), ("C10",))])

    def attempt(example: bytes) -> str:
        (top / "bench" / "cpu.json").write_bytes(example)
        plan.estimate_all(lines, top, DEVICE)
        text = board.summary(lines, plan.packing(lines, top, DEVICE, 10**11))
        assert printable(text) == text
        return "known" if lines[0].estimate.seconds else "not known"

    fuzz("plans by benchmarks", count, anything(json.dumps(bench).encode()), attempt)


def test_holder_of_a_lock_is_one_line(stopped: dict[str, RunDirectory], count: Count) -> None:
    there = stopped["draw"]

    def attempt(example: bytes) -> str:
        there.lock_path.write_bytes(example)
        text = there.holder()
        assert printable(text) == text and len(text) < LONGEST
        return "told" if text.startswith("process ") else "not told"

    good = b"process 12 on node-1, since 2026-01-01T00:00:00Z,"
    assert attempt(good) == "told"
    fuzz("lock files", count, arbitrary | changed_bytes(good), attempt)


def test_settings_are_taken_or_refused(count: Count) -> None:
    values = {
        name: json.dumps(RunDirectory(Path(), name, "quick", one).config["settings"]) for name, one in RUNS.items()
    }
    examples = st.sampled_from([*values, "svhn"]).flatmap(
        lambda name: st.tuples(
            st.just(name), json_values | changed_json(values.get(name, "{}").encode()).map(json.loads)
        )
    )
    fuzz("settings", count, examples, lambda example: outcome(lambda: settings_from(*example)))


def test_budget_is_taken_or_refused(count: Count) -> None:
    def attempt(budget: str) -> str:
        try:
            seconds = seconds_of(budget)
        except UserError:
            return "refused"
        assert 0 < seconds < float("inf")
        return "read"

    likely = st.from_regex(r"([0-9]{1,400}h)?([0-9]{1,3}m)?([0-9]{1,3}s)?", fullmatch=True)
    fuzz("budgets", count, st.text(max_size=20) | likely, attempt)


@pytest.mark.parametrize("resealed", [False, True])
def test_checkpoint_is_loaded_or_damaged(resealed: bool, place: Path, count: Count) -> None:
    record = {"status": "running", "epoch": 1, "resumed": [], "facts": {}, "peak_memory_bytes": 1, "config_hash": "h"}
    state = {"epoch": 1, "diverged": "", "config_hash": "h", "tables": {"metrics": "epoch\n1\n"}, "rng": {}}
    weights = {"v": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3), "name": "x"}
    save_checkpoint(place, state | {"record": json.dumps(record), "experiment": weights})
    path = place / CHECKPOINTS[0]
    content = path.read_bytes()

    def seal(body: bytes) -> bytes:
        comment = b"sha256:" + hashlib.sha256(body).hexdigest().encode()
        return body + len(comment).to_bytes(2, "little") + comment

    body = content[:-COMMENT_BYTES]
    assert load_checkpoint(path, "h") is not None and seal(body) == content

    def attempt(example: bytes) -> str:
        path.write_bytes(seal(example) if resealed else example)
        found = outcome(lambda: load_checkpoint(path, "h"), path.name, error=DamagedError)
        assert found == "refused" or resealed or example == content
        return found

    what = f"checkpoints{', with a new checksum' * resealed}"
    fuzz(what, count, arbitrary | changed_bytes(body if resealed else content), attempt)


# ---------------------------------------------------------------------------------- cluster

OUTSIDE = [
    "../x.csv",
    "/x.csv",
    "../../run.json",
    "a/b.csv",
    "checkpoint.pt/..",
    "./run.json",
    "x.csv/../../y.csv",
    "..csv",
]
INSIDE = ["run.json", "config.json", "checkpoint.pt", "metrics.csv", "kl_steps.csv"]


def test_files_of_a_node_stay_in_the_runs_folder(place: Path, count: Count) -> None:
    folder = place / "node" / "a" / "run"
    folder.mkdir(parents=True)
    text = st.text(max_size=12)

    def attempt(files: dict[str, bytes]) -> str:
        cluster.write(folder, files)
        written = {path for path in (place / "node").rglob("*") if path.is_file()}
        assert {folder / name for name in INSIDE if name in files} <= written
        for path in written:
            assert path.parent == folder and path.read_bytes() == files[path.name]
            path.unlink()
        assert not any(name in files for name in OUTSIDE) or len(written) < len(files)
        return "written" if len(written) == len(files) else "left out"

    node_files = st.sampled_from(INSIDE + OUTSIDE) | text | text.map(lambda name: f"{name}.csv")
    fuzz("files of a node", count, st.dictionaries(node_files, st.binary(max_size=3), max_size=3), attempt)


# ---------------------------------------------------------------------------------- other than files


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nowhere", "circular link", "device"])
@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.csv", "layers.csv", "games.csv", "lock", "bench"])
def test_other_than_a_file_is_named_and_never_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    folder = make_run(tmp_path)
    make_bench(tmp_path)
    path = tmp_path / "bench" / "cpu.json" if name == "bench" else folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"circular link": path.name, "device": "/dev/zero"}.get(kind, "nowhere"))
    found = outcome(lambda: results.check(tmp_path, "short"))
    if kind != "link to nowhere":
        assert found == ("read" if name == "lock" else "refused")
    run = Planned("cifar", "short", scale_settings("cifar", "short", "wn"), ())
    outcome(lambda: plan.estimate_all(plan.plan(tmp_path, [run]), tmp_path, DEVICE))
    outcome(lambda: open_run(folder))


@pytest.mark.parametrize("name", ["", "tables", "figures"])
def test_report_is_not_written_through_a_link_out_of_the_results(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "results")
    folder, outside = tmp_path / "results" / "short" / name, tmp_path / "outside"
    if name:
        outside.mkdir()
    else:
        folder.rename(outside)
    before = set(outside.rglob("*"))
    folder.symlink_to(outside)
    with pytest.raises(UserError, match="leads out of"):
        write_report(tmp_path / "results", "short")
    assert set(outside.rglob("*")) == before

"""Every reader of what may be anyone's, on inputs of any kind: it reads them, or says one sentence.

--soak: 20 000 each. Half of the inputs are arbitrary, the other half good files in which something was changed.
"""

import contextlib
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

from wnrepro import reading as files
from wnrepro import results as load
from wnrepro.errors import UserError
from wnrepro.report import figures, tables, write_report
from wnrepro.report.claims import findings
from wnrepro.report.layout import page, render
from wnrepro.reproduce import board, cluster, plan, work
from wnrepro.reproduce.drive import seconds_of
from wnrepro.reproduce.grid import Planned
from wnrepro.runs.checkpoint import CHECKPOINTS, Damaged, load_checkpoint, save_checkpoint
from wnrepro.runs.directory import RunDirectory, write_json
from wnrepro.runs.run import open_run
from wnrepro.settings import SETTINGS, Settings, printable, scale_settings, settings_from

TRIES = settings().max_examples  # 20 000 with --soak
SOME = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=TRIES if TRIES > 100 else 40)
A_QUARTER = settings(SOME, max_examples=SOME.max_examples // 4)  # for a test of each of the four experiments
LONGEST = 500  # characters of a sentence
DEVICE = "AMD EPYC, 2 threads"

# ---------------------------------------------------------------------------------- inputs

NUMBERS = [
    "0",
    "-0.0",
    "1",
    "-1",
    "2",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "1e39",
    "-1e39",
    "1e-39",
    "5e-324",
    "1e308",
    "1e400",
]
CELLS = [
    *NUMBERS,
    str(2**53),
    str(2**63),
    "9" * 5000,
    "1_0",
    " 1 ",
    "x",
    "",
    "a,b",
    '"',
    "\x1b[31m",
    "\x00",
    "é",
    "\u202e",
]
TEXTS = [
    "",
    "done",
    "<script>",
    "../../x",
    "/etc/passwd",
    "\x1b]0;x\x07",
    "a\nb",
    "\ud800",
    "x" * 3000,
    "\u202e",
    "\x00",
    "|`*",
]
SCALARS: list[Any] = [None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e39, 1e300]
SCALARS += [float("nan"), float("inf"), -float("inf"), *TEXTS]
json_values = st.recursive(
    st.sampled_from(SCALARS) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
arbitrary = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode(errors="replace"))
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}", b"\r\n" * 9, b'{"epoch": ' + b"9" * 5000 + b"}"]
    )
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


@st.composite
def changed_json(draw: Any, good: bytes, alike: bool = False) -> bytes:
    """Values exchanged, left out or put in, at any depth. alike: for others of their kind, and none put in."""
    content = json.loads(good)
    for _ in range(draw(st.integers(1, 2))):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            match draw(st.sampled_from(["exchange", "exchange", "leave out", *["put in"] * (not alike)])):
                case "exchange" if alike:
                    kinds = (int, float) if type(at[key]) in (int, float) else type(at[key])
                    same = [one for one in SCALARS if isinstance(one, kinds) and type(one) is not bool]
                    at[key] = draw(st.sampled_from(same or [at[key]]))
                case "exchange":
                    at[key] = draw(json_values)
                case "leave out":
                    del at[key]
                case "put in" if isinstance(at, dict):
                    at[draw(st.sampled_from(TEXTS) | st.text(max_size=5))] = draw(json_values)
            break
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
    """Arbitrary bytes, or a good file in which something was changed."""
    by_kind = changed_json if good.startswith(b"{") else changed_csv
    return arbitrary | changed_bytes(good) | by_kind(good) | by_kind(good, alike=True)


# ---------------------------------------------------------------------------------- what is asserted


def said(error: BaseException, *names: str) -> None:
    """One clear sentence for a terminal, besides paths."""
    text = str(error)
    assert printable(text) == text and 0 < len(re.sub(r"/\S+", "", text)) < LONGEST, text
    assert all(name in text for name in names), text


def tried(read: Callable[[], object], *names: str) -> str:
    """`read`, or `refused` in one sentence with these names."""
    try:
        read()
    except UserError as error:
        said(error, *names)
        return "refused"
    return "read"


@contextlib.contextmanager
def counted(what: str, count: Callable[[str], None]) -> Iterator[Counter[str]]:
    tally: Counter[str] = Counter()
    yield tally
    count(f"{what}: {tally.total()} inputs, " + ", ".join(f"{number} {name}" for name, number in sorted(tally.items())))


@pytest.fixture(scope="module", autouse=True)
def made_up_scale() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    top = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path()
    folder = Path(os.path.abspath(top / f"wnrepro-fuzz-{os.getpid()}"))
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


# ---------------------------------------------------------------------------------- the report's readers


@pytest.fixture(scope="module")
def good(place: Path) -> dict[str, Path]:
    """A results folder with a run of every experiment and a benchmark: the folders."""
    results = place / "good"
    folders = {
        "cifar": make_run(results, "bn"),
        "cvae": make_vae(
            results, dataset="cifar10", facts={"data": "x", "importance_samples": 5, "log_likelihood_nats": -1.0}
        ),
        "draw": make_draw(results),
        "dqn": make_dqn(results),
    }
    make_run(results, "wn+mobn")
    make_run(results, "normal")
    make_bench(results)
    return folders | {"results": results, "bench": add_work(results)}


def metrics_of(experiment: str, dataset: str | None = None) -> Callable[[Path], object]:
    return lambda path: load.read_epochs(path, tuple(SETTINGS[experiment].models[dataset].metrics), 1)


# The file of `good` that is changed, and what reads it.
READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "run.json": ("cifar", "run.json", lambda path: files.read_json(path, files.RunRecord)),
    "metrics.csv of cifar": ("cifar", "metrics.csv", metrics_of("cifar")),
    "metrics.csv of cvae": ("cvae", "metrics.csv", metrics_of("cvae", "cifar10")),
    "metrics.csv of draw": ("draw", "metrics.csv", metrics_of("draw")),
    "metrics.csv of dqn": ("dqn", "metrics.csv", metrics_of("dqn", "breakout")),
    "layers.csv": ("cifar", "layers.csv", lambda path: load.read_epochs(path, load.LAYERS, 0)),
    "init.csv": ("cifar", "init.csv", lambda path: load.read_layers(path, load.INIT)),
    "noise.csv": ("cifar", "noise.csv", lambda path: load.read_layers(path, load.NOISE, *load.NOISE_LATER)),
    "kl_steps.csv": ("draw", "kl_steps.csv", lambda path: load.read_epochs(path, load.KL_STEPS, 1, 4)),
    "games.csv": ("dqn", "games.csv", lambda path: files.read_table(path, load.GAME_SCORES)),
    "bench": ("bench", "", lambda path: files.read_json(path, files.Benchmark)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_read_or_named_in_one_sentence(
    name: str, good: dict[str, Path], place: Path, count: Callable[[str], None]
) -> None:
    where, file, read = READERS[name]
    source, path = good[where] / file, place / (file or "bench.json")
    assert tried(lambda: read(source)) == "read"
    with counted(name, count) as tally:

        @(A_QUARTER if "metrics" in name else SOME)
        @given(anything(source.read_bytes()))
        def fuzz(content: bytes) -> None:
            path.write_bytes(content)
            tally[tried(lambda: read(path), path.name)] += 1

        fuzz()


@pytest.mark.parametrize("experiment", SETTINGS)
def test_a_config_is_read_or_named_in_one_sentence(
    experiment: str, good: dict[str, Path], place: Path, count: Callable[[str], None]
) -> None:
    top = place / "configs" / "short"
    folder = top / good[experiment].relative_to(good["results"] / "short")
    folder.mkdir(parents=True)
    source = (good[experiment] / "config.json").read_bytes()
    with counted(f"config.json of {experiment}", count) as tally:

        @A_QUARTER
        @given(anything(source))
        def fuzz(content: bytes) -> None:
            (folder / "config.json").write_bytes(content)
            tally[tried(lambda: load._run(top, folder), "config.json")] += 1

        fuzz()


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


def test_a_folder_of_any_name_is_read_or_named(
    good: dict[str, Path], place: Path, count: Callable[[str], None]
) -> None:
    source = (good["cifar"] / "config.json").read_bytes()
    names = (file_names | st.sampled_from(ODD_NAMES)).filter(lambda name: name not in (".", ".."))
    with counted("names of folders", count) as tally:

        @SOME
        @given(names, st.just("cifar") | names, st.just("seed-1") | names.map(lambda name: f"seed-{name}"))
        def fuzz(variant: str, experiment: str, seed: str) -> None:
            results = place / "named"
            folder = results / "short" / experiment / variant / seed
            try:
                folder.mkdir(parents=True)
                (folder / "config.json").write_bytes(source)
                tally[tried(lambda: load.load(results, "short"))] += 1
            except OSError:
                tally["not a folder's name"] += 1  # too long in UTF-8
            finally:
                shutil.rmtree(results)

        fuzz()


# ---------------------------------------------------------------------------------- what is accepted can be shown


def texts_of(read: load.Results, drawn: bool) -> str:
    """The report; `drawn`: with its figures."""
    found = findings(read)
    whole = tables.report(read, found, figures.draw(read, found) if drawn else {}, {})
    return render("page.md.jinja", report=whole) + page(whole)


CHANGED = [
    *((run, "run.json") for run in ("cifar", "cvae", "draw", "dqn")),
    *((run, "config.json") for run in ("cifar", "cvae", "draw", "dqn")),
    *((run, "metrics.csv") for run in ("cifar", "cvae", "draw", "dqn")),
    *(("cifar", name) for name in ("layers.csv", "init.csv", "noise.csv")),
    *[("draw", "kl_steps.csv"), ("dqn", "games.csv"), ("bench", "")],
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("drawn", [False, True], ids=["texts", "figures"])
def test_what_is_accepted_can_be_shown(
    drawn: bool, good: dict[str, Path], times: Callable[[int, int], int], count: Callable[[str], None]
) -> None:
    examples = times(2, 100) if drawn else times(10, 2000)
    sources = [good[where] / file for where, file in CHANGED]
    contents = {path: path.read_bytes() for path in sources}
    with counted("reports with figures" if drawn else "reports without figures", count) as tally:

        @settings(SOME, max_examples=examples)
        @given(st.data())
        def fuzz(data: st.DataObject) -> None:
            path = data.draw(st.sampled_from(sources))
            changed = changed_json if path.suffix == ".json" else changed_csv
            path.write_bytes(data.draw(changed(contents[path], alike=True)))
            try:
                read = load.load(good["results"], "short")
                problems = load.problems(read)
            except UserError as error:
                said(error)
                tally["refused"] += 1
                return
            finally:
                path.write_bytes(contents[path])
            assert all(printable(problem) == problem and len(problem) < LONGEST for problem in problems)
            text = texts_of(read, drawn)
            assert text.count("<script") == 1  # the page's own
            tally["shown"] += 1

        fuzz()


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


@contextlib.contextmanager
def restored(path: Path) -> Iterator[bytes]:
    """A file's content, which it has again afterwards."""
    content = path.read_bytes()
    yield content
    path.write_bytes(content)


@pytest.mark.parametrize("experiment", RUNS)
def test_open_run_opens_or_says_one_sentence(
    experiment: str, stopped: dict[str, RunDirectory], count: Callable[[str], None]
) -> None:
    path = stopped[experiment].folder / "config.json"
    with counted(f"open_run of {experiment}", count) as tally, restored(path) as content:

        @A_QUARTER
        @given(anything(content))
        def fuzz(changed: bytes) -> None:
            path.write_bytes(changed)
            tally[tried(lambda: open_run(path.parent), str(path.parent))] += 1

        fuzz()


@pytest.mark.parametrize("file", ["run.json", "config.json"])
def test_a_plan_is_made_or_says_one_sentence(
    file: str, stopped: dict[str, RunDirectory], place: Path, count: Callable[[str], None]
) -> None:
    """Its state of a run, what the run tells of times and memory, and both in words."""
    there = stopped["draw"]
    run = Planned("draw", "quick", there.settings, ("C10",))
    path = there.folder / file

    def planned() -> None:
        try:
            lines = plan.plan(place / "stopped", [run])
        except UserError:
            lines = [plan.Line(run, there, plan.State("missing"), plan.UNKNOWN)]
            shown(lines)
            raise
        shown(lines)

    def shown(lines: list[plan.Line]) -> None:
        lines = plan.estimated(lines, place / "stopped", DEVICE)
        assert printable(board.summary(lines, {})) == board.summary(lines, {})
        assert json.loads(plan.as_json(lines, [], {}, "quick"))["runs"] == 1

    with counted(f"plans by {file}", count) as tally, restored(path) as content:

        @SOME
        @given(anything(content))
        def fuzz(changed: bytes) -> None:
            path.write_bytes(changed)
            tally[tried(planned, str(there.folder))] += 1

        fuzz()


def test_a_plan_passes_over_a_benchmark_that_is_none(
    good: dict[str, Path], stopped: dict[str, RunDirectory], place: Path, count: Callable[[str], None]
) -> None:
    bench = json.loads(good["bench"].read_text()) | {"device_name": DEVICE}
    bench["draw"] |= {"seconds": {"wn": [1.0, 2.0, 1.5]}, "memory": {"wn": 10**9}, "side_by_side": {"1": 1.0, "2": 1.5}}
    results = place / "benches"
    path = results / "bench" / "cpu.json"
    path.parent.mkdir(parents=True)
    run = Planned("draw", "quick", scale_settings("draw", "paper", "wn"), ("C10",))
    lines = plan.plan(results, [run])
    with counted("plans by benchmarks", count) as tally:

        @SOME
        @given(anything(json.dumps(bench).encode()))
        def fuzz(changed: bytes) -> None:
            path.write_bytes(changed)
            found = plan.estimated(lines, results, DEVICE)
            text = board.summary(found, plan.packing(found, results, DEVICE, 10**11))
            assert printable(text) == text
            tally["known" if found[0].estimate.seconds else "not known"] += 1

        fuzz()


def test_the_holder_of_a_lock_is_told_in_one_line(
    stopped: dict[str, RunDirectory], count: Callable[[str], None]
) -> None:
    there = stopped["draw"]
    good = json.dumps({"pid": 12, "host": "node-1", "since": "2026-01-01T00:00:00Z"}).encode()
    with counted("lock files", count) as tally:

        @SOME
        @given(anything(good))
        def fuzz(content: bytes) -> None:
            there.lock_path.write_bytes(content)
            text = there.holder()
            assert printable(text) == text and len(text) < LONGEST
            tally["told" if text.startswith("process ") else "not told"] += 1

        fuzz()


def test_settings_are_taken_or_refused_in_one_sentence(count: Callable[[str], None]) -> None:
    values = {
        name: json.dumps(RunDirectory(Path(), name, "quick", one).config["settings"]) for name, one in RUNS.items()
    }
    with counted("settings", count) as tally:

        @SOME
        @given(st.data())
        def fuzz(data: st.DataObject) -> None:
            name = data.draw(st.sampled_from([*values, "svhn"]))
            value = data.draw(json_values | changed_json(values.get(name, "{}").encode()).map(json.loads))
            tally[tried(lambda: settings_from(name, value))] += 1

        fuzz()


def test_a_budget_is_taken_or_refused_in_one_sentence(count: Callable[[str], None]) -> None:
    with counted("budgets", count) as tally:

        @SOME
        @given(st.text(max_size=20) | st.from_regex(r"([0-9]{1,400}h)?([0-9]{1,3}m)?([0-9]{1,3}s)?", fullmatch=True))
        def fuzz(budget: str) -> None:
            try:
                seconds = seconds_of(budget)
            except UserError as error:
                assert "--budget" in str(error)
                tally["refused"] += 1
            else:
                assert 0 < seconds < float("inf")
                tally["read"] += 1

        fuzz()


# ---------------------------------------------------------------------------------- checkpoints


def sealed_again(body: bytes) -> bytes:
    comment = b"sha256:" + hashlib.sha256(body).hexdigest().encode()
    return body + len(comment).to_bytes(2, "little") + comment


@pytest.mark.parametrize("resealed", [False, True], ids=["as it is", "with its checksum made anew"])
def test_a_checkpoint_is_loaded_or_named_as_damaged(resealed: bool, place: Path, count: Callable[[str], None]) -> None:
    record = {"status": "running", "epoch": 1, "resumed": [], "facts": {}, "peak_memory_bytes": 1, "config_hash": "h"}
    state = {"epoch": 1, "diverged": "", "config_hash": "h", "tables": {"metrics": "epoch\n1\n"}, "rng": {}}
    weights = {"v": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3), "name": "x"}
    save_checkpoint(place, state | {"record": json.dumps(record), "experiment": weights})
    path = place / CHECKPOINTS[0]
    content = path.read_bytes()
    tail = 2 + len("sha256:") + 64
    assert load_checkpoint(path, "h") is not None and sealed_again(content[:-tail]) == content
    with counted(f"checkpoints, {'their checksum made anew' if resealed else 'as they are'}", count) as tally:

        @SOME
        @given(arbitrary | changed_bytes(content[:-tail] if resealed else content))
        def fuzz(changed: bytes) -> None:
            path.write_bytes(sealed_again(changed) if resealed else changed)
            try:
                found = load_checkpoint(path, "h")
            except Damaged as error:
                said(error, path.name)
                tally["refused"] += 1
            else:
                assert found is not None and (resealed or changed == content)
                tally["read"] += 1

        fuzz()


# ---------------------------------------------------------------------------------- between processes


def test_a_line_between_processes_is_an_event_or_passed_over(count: Callable[[str], None]) -> None:
    good = work.Event(1.5, "test error 8.05 %", "done", "")
    assert work.event_from(work.as_line(good)) == good
    with counted("lines of events", count) as tally:

        @SOME
        @given(anything(work.as_line(good)))
        def fuzz(line: bytes) -> None:
            event = work.event_from(line)
            if event is not None:
                assert work.event_from(work.as_line(event)) == event and 0 <= event.epochs <= 2**53
            tally["read" if event else "passed over"] += 1

        fuzz()


def test_a_line_between_processes_is_a_job_or_refused_in_one_sentence(count: Callable[[str], None]) -> None:
    settings_of = RunDirectory(Path(), "draw", "quick", RUNS["draw"]).config["settings"]
    good = work.Job("draw", "quick", settings_of, "/results", None, "cpu", 1)
    assert work.job_from(work.as_line(good)) == good
    with counted("lines of jobs", count) as tally:

        @SOME
        @given(anything(work.as_line(good)))
        def fuzz(line: bytes) -> None:
            tally[tried(lambda: work.job_from(line), "no job")] += 1

        fuzz()


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


def test_what_a_node_brings_never_leaves_the_runs_folder(place: Path, count: Callable[[str], None]) -> None:
    folder = place / "node" / "a" / "run"
    folder.mkdir(parents=True)
    names = (
        st.sampled_from(INSIDE + OUTSIDE) | st.text(max_size=12) | st.text(max_size=12).map(lambda text: f"{text}.csv")
    )
    with counted("files of a node", count) as tally:

        @SOME
        @given(st.dictionaries(names, st.binary(max_size=3), max_size=3))
        def fuzz(files: dict[str, bytes]) -> None:
            cluster.write(folder, files)
            written = {path for path in (place / "node").rglob("*") if path.is_file()}
            assert {folder / name for name in INSIDE if name in files} <= written
            for path in written:
                assert path.parent == folder and path.read_bytes() == files[path.name]
                path.unlink()
            assert not any(name in files for name in OUTSIDE) or len(written) < len(files)
            tally["written"] += len(written)
            tally["left out"] += len(files) - len(written)

        fuzz()


# ---------------------------------------------------------------------------------- what is no file


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nowhere", "link in a circle", "device"])
@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.csv", "layers.csv", "games.csv", "lock", "bench"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    folder = make_run(tmp_path)
    make_bench(tmp_path)
    path = tmp_path / "bench" / "cpu.json" if name == "bench" else folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link in a circle": path.name, "device": "/dev/zero"}.get(kind, "nowhere"))
    outcome = tried(lambda: load.check(tmp_path, "short"))
    if kind != "link to nowhere":
        assert outcome == "read" if name == "lock" else outcome == "refused"
    there = RunDirectory(tmp_path, "cifar", "short", scale_settings("cifar", "short", "wn"))
    tried(
        lambda: plan.estimated(plan.plan(tmp_path, [Planned("cifar", "short", there.settings, ())]), tmp_path, DEVICE)
    )
    tried(lambda: open_run(folder))


@pytest.mark.parametrize("name", ["", "tables", "figures"])
def test_a_report_is_not_written_through_a_link_out_of_the_results(tmp_path: Path, name: str) -> None:
    results, outside = tmp_path / "results", tmp_path / "outside"
    make_run(results)
    place = results / "short" / name
    if name:
        outside.mkdir()
    else:
        place.rename(outside)
    before = set(outside.rglob("*"))
    place.symlink_to(outside)
    with pytest.raises(UserError, match=r"leads out of .*: move that link away"):
        write_report(results, "short")
    assert set(outside.rglob("*")) == before

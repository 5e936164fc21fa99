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
from factories import Count, Times, add_work, make_bench, make_dqn, make_draw, make_run, make_vae, set_scale_short
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wnrepro import records, results
from wnrepro.errors import UserError
from wnrepro.report import figures, tables
from wnrepro.report.claims import findings
from wnrepro.report.layout import page, render
from wnrepro.reproduce import board, plan
from wnrepro.reproduce.grid import Planned
from wnrepro.runs.checkpoint import CHECKPOINTS, COMMENT_BYTES, DamagedError, load_checkpoint, save_checkpoint
from wnrepro.runs.run import open_run
from wnrepro.settings import SETTINGS, scale_settings
from wnrepro.text import printable

LONGEST = 500  # characters of a sentence
DEVICE = "AMD EPYC, 2 threads"

# ---------------------------------------------------------------------------------- inputs

NUMBERS = ["0", "-0.0", "1", "-1", "2", "0.5", "nan", "inf", "-inf", "1e39", "-1e39", "1e-39", "5e-324", "1e400"]
CELLS = [
    *NUMBERS,
    str(2**53),
    str(2**63),
    "9" * 5000,
    "1_0",
    "x",
    "a,b",
    '"',
    "é",
    "",
    " 1 ",
    "\x1b[31m",
    "\x00",
    "\u202e",
]
TEXTS = ["done", "<script>", "../../x", "/etc/passwd", "|`*", "", "\x1b]0;x\x07", "a\nb", "\ud800", "\u202e", "\x00"]
TEXTS += ["x" * 3000]
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
        part = content[at : at + draw(st.integers(0, 40))]
        flipped = bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:] if part else b""
        put_in = draw(st.binary(max_size=8) | st.sampled_from(CELLS).map(str.encode))
        content[at : at + len(part)] = draw(st.sampled_from([flipped, b"", put_in + part, part + part]))
        content = content[: draw(st.sampled_from([None, None, None, None, at]))]
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


def check_sentence(text: str, *parts: str) -> None:
    """One printable, short sentence with these parts."""
    assert printable(text) == text and 0 < len(re.sub(r"/\S+", "", text)) < LONGEST, text
    assert all(part in text for part in parts), text


def outcome(read: Callable[[], object], *parts: str, error: type[Exception] = UserError) -> str:
    """`read`, or `refused` in one sentence with these parts."""
    try:
        read()
    except error as refusal:
        check_sentence(str(refusal), *parts)
        return "refused"
    return "read"


def fuzz(what: str, count: Count, strategy: st.SearchStrategy[Any], attempt: Callable[[Any], str], **how: int) -> None:
    """Make an attempt with every example, and count the outcomes."""
    tally: Counter[str] = Counter()

    @settings(suppress_health_check=list(HealthCheck), **how)
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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def good(place: Path) -> dict[str, Path]:
    """A results folder with a run of every experiment and a benchmark: the folders."""
    top = place / "good"
    facts = {"data": "x", "importance_samples": 5, "log_likelihood_nats": -1.0}
    folders = {"cifar": make_run(top, "bn"), "cvae": make_vae(top, dataset="cifar10", facts=facts)}
    folders |= {"draw": make_draw(top), "dqn": make_dqn(top)}
    make_run(top, "wn+mobn")
    make_run(top, "normal")
    for path in top.rglob("run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peak_memory_bytes": 10**9}))
    make_bench(top, device=DEVICE)
    bench = json.loads(add_work(top).read_text())
    bench["draw"] |= {"seconds": {"wn": [1.0, 2.0, 1.5]}, "memory": {"wn": 10**9}, "side_by_side": {"1": 1.0, "2": 1.5}}
    bench["draw"] |= {
        "lockstep": {"8": 3.0},
        "energy": {"counter": "RAPL", "joules": {"wn": 1.0}, "lockstep": {"8": 0.5}},
    }
    (top / "bench/cpu.json").write_text(json.dumps(bench))
    return folders | {"results": top, "bench": top / "bench"}


# The files of `good` that are read.
FILES = [*((run, name) for name in ("config.json", "run.json", "metrics.csv", "layers.csv") for run in SETTINGS)]
FILES += [("cifar", "init.csv"), ("cifar", "noise.csv"), ("draw", "kl_steps.csv"), ("dqn", "games.csv")]
FILES += [("bench", "cpu.json")]


def show(lines: list[plan.Task], top: Path) -> None:
    """A plan with its estimates, in words and as JSON."""
    plan.estimate_all(lines, top, DEVICE)
    text = board.summary(lines, plan.packing(lines, top, DEVICE, 10**11))
    assert printable(text) == text
    assert json.loads(plan.as_json(lines, [], {}, "quick"))["runs"] == len(lines)


@pytest.mark.parametrize(("where", "name"), FILES)
def test_any_file_is_read_or_named(where: str, name: str, good: dict[str, Path], count: Count) -> None:
    """But a benchmark of any content leaves a plan."""
    folder, top = good[where], good["results"]
    path = folder / name
    content = path.read_bytes()
    new = Planned("draw", "quick", scale_settings("draw", "paper", "wn"), ("C10",))
    run = new if where == "bench" else Planned(where, "short", open_run(folder).settings)

    def attempt(example: bytes) -> str:
        path.write_bytes(example)
        show(plan.plan(top, [new]), top)
        if where == "bench":
            return outcome(lambda: records.read_model(path, records.Benchmark), name)
        if name.endswith(".json"):
            outcome(lambda: open_run(folder), str(folder))
            outcome(lambda: show(plan.plan(top, [run]), top), str(folder))
        return outcome(lambda: results.read_run(folder), name)

    try:
        assert attempt(content) == "read" and open_run(good["draw"]).settings == scale_settings("draw", "short", "wn")
        fuzz(f"{where}/{name}", count, anything(content), attempt)
    finally:
        path.write_bytes(content)


ODD_NAMES = ["a\nb", "|`*[x](y)", "<script>", "\x1b[31m", "-rf", "~", "%s", "{x}", "\u202e", "x" * 255, "wn_lr0.003"]


def test_folder_of_any_name_is_read_or_named(good: dict[str, Path], place: Path, count: Count) -> None:
    source = (good["cifar"] / "config.json").read_bytes()
    plain = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
    odd = (plain | st.sampled_from(ODD_NAMES)).filter(lambda name: name not in (".", ".."))

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

    parts = st.tuples(st.just("cifar") | odd, odd, st.just("seed-1") | odd.map(lambda name: f"seed-{name}"))
    fuzz("names of folders", count, parts, attempt)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["texts", "figures"])
def test_accepted_files_can_be_reported(drawn: bool, good: dict[str, Path], times: Times, count: Count) -> None:
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
        finally:
            path.write_bytes(sources[path])
        for sentence in read.odd:
            check_sentence(sentence)
        assert all(printable(problem) == problem and len(problem) < LONGEST for problem in problems)
        found = findings(read)
        whole = tables.report(read, found, figures.draw(read, found) if drawn else {}, {})
        assert (render("page.md.jinja", report=whole) + page(whole)).count("<script") == 1  # the page's own
        return "left out" if read.odd else "shown"

    many = times(2 if drawn else 10, 100 if drawn else 2000)
    fuzz("reports with figures" if drawn else "reports without figures", count, examples, attempt, max_examples=many)


# ---------------------------------------------------------------------------------- other input


def test_checkpoint_with_a_good_checksum_is_loaded_or_damaged(place: Path, count: Count) -> None:
    record = {"status": "running", "epoch": 1, "resumed": [], "facts": {}, "peak_memory_bytes": 1, "config_hash": "h"}
    state = {"epoch": 1, "diverged": "", "config_hash": "h", "tables": {"metrics": "epoch\n1\n"}, "rng": {}}
    weights = {"v": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3), "name": "x"}
    save_checkpoint(place, state | {"record": json.dumps(record), "experiment": weights})
    path = place / CHECKPOINTS[0]
    body = path.read_bytes()[:-COMMENT_BYTES]

    def attempt(example: bytes) -> str:
        comment = b"sha256:" + hashlib.sha256(example).hexdigest().encode()
        path.write_bytes(example + len(comment).to_bytes(2, "little") + comment)
        return outcome(lambda: load_checkpoint(path, "h"), path.name, error=DamagedError)

    assert attempt(body) == "read"
    fuzz("checkpoints", count, arbitrary | changed_bytes(body), attempt)


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
    said = [text for text in results.check(tmp_path, "short") if path.name in text]
    for text in said:
        check_sentence(text)
    if kind != "link to nowhere":
        assert bool(said) == (name != "lock")
    run = Planned("cifar", "short", scale_settings("cifar", "short", "wn"), ())
    outcome(lambda: plan.estimate_all(plan.plan(tmp_path, [run]), tmp_path, DEVICE))
    outcome(lambda: open_run(folder))

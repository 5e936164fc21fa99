"""What the report reads: runs whole, cut short, malformed, copied or tampered with; and which of them it judges."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import (
    NOISE,
    OTHERS,
    add_work,
    edit,
    make_bench,
    make_dqn,
    make_draw,
    make_run,
    make_vae,
    snapshot,
)

from wnrepro import results as reader
from wnrepro.errors import UserError
from wnrepro.results import check, load, scales_with_runs, sessions
from wnrepro.settings import SETTINGS

pytestmark = pytest.mark.usefixtures("made_up_scale")
CENTRED, SCALED = OTHERS
CIFAR = ",".join(SETTINGS["cifar"].models[None].metrics)


def refuse(results: Path, *said: str, scale: str = "short") -> None:
    """Check that a run or benchmark is left out with one printable sentence with these parts, and nothing changes."""
    before = snapshot(results)
    try:
        (text,) = load(results, scale).odd
    except UserError as error:  # no run is left
        text = str(error)
    assert text.isprintable() and all(part in text for part in said), text
    assert snapshot(results) == before


def change(path: Path, **values: Any) -> None:
    """Set entries of a JSON file, at the top or among its settings; a value of ... removes one."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        where = content["settings"] if key in content.get("settings", ()) else content
        where[key] = value
        if value is ...:
            del where[key]
    path.write_text(json.dumps(content))


def test_incomplete_rows_and_epochs_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=3)
    draw = make_draw(tmp_path, status="running", logged=3)
    for path, rest in (
        (folder / "metrics.csv", "4,101.5,0.2"),
        (folder / "layers.csv", "4,conv1,1.5,1.0,2.0,1.0,0.5,1.5\n4,conv2,1."),
        (draw / "kl_steps.csv", "4,1,9.0\n4,2,5."),
    ):
        path.write_text(path.read_text() + rest)
    cifar, of_draw = load(tmp_path, "short").runs
    assert (cifar.epoch, cifar.layers["epoch"].max()) == (3, 3)
    assert len(of_draw.kl_steps) == 3 * 4 and of_draw.kl_steps["epoch"].max() == 3


def test_run_that_has_hardly_begun(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=0)
    for name in ("metrics.csv", "layers.csv", "run.json"):
        (folder / name).unlink()
    (run,) = load(tmp_path, "short").runs
    assert (run.epoch, run.state, run.sealed) == (0, "epoch 0 of 8", True)
    assert math.isnan(run.final("test_error")) and check(tmp_path, "short") == []


def test_numbers_are_exact_and_may_be_infinite(tmp_path: Path) -> None:
    rows = "1,1e-05,0.1,0.30000000000000004,nan,inf,-inf\n2,1,nan,1,-0.0,1e400,1\n"
    (make_run(tmp_path, logged=2, status="failed") / "metrics.csv").write_text(f"{CIFAR}\n{rows}")
    (run,) = load(tmp_path, "short").runs
    assert run.metrics["test_error"].tolist() == [0.30000000000000004, 1]
    assert run.metrics["test_loss"].tolist() == [math.inf, math.inf] and math.isnan(run.metrics["train_loss"][0])


def test_facts_that_were_not_finite_are_nan(tmp_path: Path) -> None:
    make_run(tmp_path, facts={"init_loss": None, "parameters": math.nan})
    (run,) = load(tmp_path, "short").runs
    assert all(math.isnan(run.facts[name]) for name in ("init_loss", "parameters"))
    assert "importance_samples" not in run.facts and run.facts["eq3_residual"] == 1e-16


def test_files_of_earlier_versions_lack_columns_and_settings(tmp_path: Path) -> None:
    make_run(tmp_path, "bn", noise={"noise_size": 0.25})
    folder = make_run(tmp_path, "bn", seed=2)
    lines = (folder / "noise.csv").read_text().splitlines()
    (folder / "noise.csv").write_text("".join(f"{','.join(line.split(',')[:6])}\n" for line in lines))
    change(folder / "config.json", precision=..., v_norm_max=...)
    now, earlier = load(tmp_path, "short").runs
    assert list(now.noise.columns) == list(earlier.noise.columns) == [*reader.NOISE, *NOISE["bn"]]
    assert now.noise["noise_size"][0] == 0.25 and earlier.noise[list(NOISE["bn"])].isna().all(axis=None)
    assert (earlier.precision, earlier.settings["v_norm_max"], earlier.changed) == ("fp32", None, {})


def test_an_absent_setting_has_the_fields_default_not_the_scales(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    change(folder / "config.json", decay_from=...)  # 100, at scale short 4
    refuse(tmp_path, "short/cifar/wn_lr0.003_decay_from-100/seed-1; move it there")
    there = folder.parent.with_name("wn_lr0.003_decay_from-100") / "seed-1"
    there.parent.mkdir()
    folder.rename(there)
    (run,) = load(tmp_path, "short").runs
    assert run.changed == {"decay_from": 100}


def test_settings_of_later_versions_may_be_in_the_name(tmp_path: Path) -> None:
    make_run(tmp_path, colour="red")
    shutil.move(make_run(tmp_path, seed=2, taste="salt").parent, tmp_path / "short" / "cifar" / "wn_lr0.003")
    make_run(tmp_path, seed=3, binarization=["x"], time_steps="x", colour={"red": 1})
    plain, odd, red = load(tmp_path, "short").runs
    assert (plain.changed, red.changed, odd.binarization) == ({"taste": "salt"}, {"colour": "red"}, None)
    assert load(tmp_path, "short").standard == ()


def test_runs_with_too_many_settings_for_a_name_are_read(tmp_path: Path) -> None:
    folders = [make_dqn(tmp_path, seed=seed, maps=[10] * 80) for seed in (1, 2)]
    assert len({folder.parent.name for folder in folders}) == 1 and len(folders[0].parent.name) < 50
    assert [run.path for run in load(tmp_path, "short").runs] == folders
    assert check(tmp_path, "short") == []


@pytest.mark.parametrize(
    "place",
    [
        *("short/cifar/wn_lr0.003/seed-2", "short/cifar/wn_lr0.004/seed-1", "short/cifar/x/seed-1"),
        *("short/cifar/wn_lr0.003_epochs-9/seed-1", "paper/cifar/wn_lr0.003/seed-1", "short/draw/wn_lr0.003/seed-1"),
    ],
)
def test_run_under_another_name_is_refused(tmp_path: Path, place: str) -> None:
    folder = make_run(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    folder.rename(tmp_path / place)
    refuse(tmp_path, place, "those of short/cifar/wn_lr0.003/seed-1; move it", scale=place.split("/")[0])


def test_same_settings_and_seed_twice_are_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path / "numbers", g_exp=3.0)
    two = one.parent.with_name("wn_lr0.003_g_exp-3") / "seed-1"
    shutil.copytree(one, two)
    edit(two / "config.json", '"g_exp": 3.0', '"g_exp": 3')
    refuse(tmp_path / "numbers", str(one), str(two), "remove one of the two")
    assert [run.path for run in load(tmp_path / "numbers", "short").runs] == [two]  # the first by name
    one, two = (make_dqn(tmp_path / "replay", checkpoint_replay=kept) for kept in (False, True))
    refuse(tmp_path / "replay", str(one), str(two), "remove one of the two")


def judged(results: Path, precision: str | None = None, part: tuple[str, ...] = ("cifar",)) -> tuple[str, set[str]]:
    found = load(results, "short", precision).of(*part)
    return found.precision, {run.variant for run in found.standard}


def test_most_exact_precision_that_compares_is_judged(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", lr=0.01)
    for param in ("wn", "bn"):
        make_run(tmp_path, param, lr=0.001, precision="bf16")
    assert judged(tmp_path)[0] == "bf16"  # a single fp32 run hides nothing
    shutil.rmtree(tmp_path / "short")
    for param in ("wn", "bn", "normal"):
        make_run(tmp_path, param, precision="bf16")
        if param != "bn":
            make_run(tmp_path, param)
    make_vae(tmp_path, precision="tf32")
    assert judged(tmp_path) == ("fp32", {"wn_lr0.003", "normal_lr0.0003"})
    assert judged(tmp_path, part=("cvae", "mnist"))[0] == "tf32" and len(load(tmp_path, "short").notes) == 1
    assert judged(tmp_path, "bf16")[0] == "bf16" and len(judged(tmp_path, "bf16")[1]) == 3
    assert judged(tmp_path, "bf16", ("cvae", "mnist"))[1] == set() and len(load(tmp_path, "short", "bf16").notes) == 2
    make_run(tmp_path, "wn+mobn", precision="bf16", record={"device": "cuda:0"})
    assert judged(tmp_path)[0] == "bf16"  # that of GPUs, where a run used one


def test_two_binarizations_are_never_judged_together(tmp_path: Path) -> None:
    make_vae(tmp_path, binarization="seeded")
    results = load(tmp_path, "short").of("cvae", "mnist")
    assert (results.binarization, len(results.standard), results.notes) == ("seeded", 1, ())
    make_vae(tmp_path, seed=3)
    results = load(tmp_path, "short").of("cvae", "mnist")
    assert [run.seed for run in results.figure2] == [3] and len(results.notes) == 1


def test_published_runs_are_beside_the_users(tmp_path: Path) -> None:
    make_vae(tmp_path / "published")
    make_bench(tmp_path / "published", name="theirs")
    refuse(tmp_path, str(tmp_path / "short"))
    assert scales_with_runs(tmp_path) == [] and scales_with_runs(tmp_path / "published") == ["short"]
    make_run(tmp_path)
    make_run(tmp_path, scale="quick")
    results = load(tmp_path, "short")
    assert len(results.runs) == 1 and results.bench == {} and results.published is not None
    assert len(results.published.runs) == 1 and set(results.published.bench) == {"theirs"}
    assert load(tmp_path, "quick").published is None and scales_with_runs(tmp_path) == ["short", "quick"]


def test_equal_labels_are_distinguished(tmp_path: Path) -> None:
    for param, label in ((CENTRED, "weight norm."), (SCALED, " \t")):
        change(make_run(tmp_path, param) / "config.json", parameterization=OTHERS[param] | {"label": label})
    make_run(tmp_path, "ws")
    labels = load(tmp_path, "short").labels
    assert labels["wn"] == "weight norm." and labels[CENTRED] == f"weight norm. ({CENTRED})"
    assert labels[SCALED] == SCALED and labels["ws"] == "ws"


def test_other_parameterizations_do_not_change_what_is_judged(tmp_path: Path) -> None:
    for param in ("wn", "normal"):
        make_vae(tmp_path, param, precision="tf32", binarization="seeded")
    for param in OTHERS:
        make_vae(tmp_path, param, record={"device": "cuda:0"})
        make_vae(tmp_path, param, precision="bf16", record={"device": "cuda:0"})
    part = load(tmp_path, "short").of("cvae", "mnist")
    assert (part.precision, part.binarization) == ("tf32", "seeded")
    shutil.rmtree(tmp_path / "short/cvae")
    for param in OTHERS:
        make_vae(tmp_path, param, precision="bf16")
    part = load(tmp_path, "short").of("cvae", "mnist")
    assert (part.precision, part.binarization, len(part.standard)) == ("bf16", "larochelle", 2)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_results_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for call in (lambda path: load(path, "short"), lambda path: check(path, "short"), scales_with_runs):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: "):
            call(tmp_path / name)


def make_centred(results: Path) -> Path:
    return make_run(results, CENTRED)


def make_benched(results: Path) -> Path:
    make_run(results)
    make_bench(results)
    return add_work(results).parent


LAYERS, INIT, QUARTILES = (",".join(columns) for columns in (reader.LAYERS, reader.INIT, reader.NOISE))
RECORDS = ['"facts": []', '"resumed": [1]', '"seconds": -1', '"seconds": NaN', '"seconds": true', '"git": 1']
RECORDS += [f'"resumed": [{", ".join(["{}"] * 10_001)}]']
RECORDS += ['"x": 1e300', '"x": [[[[[[[[[1]]]]]]]]]', f'"x": {10**400}', f'"x": {"9" * 5000}']
ROWS = ["1,2,x,0.5,1,1,1", "1,2,50,50,1,1,1", "1,2,inf,1,1,1,1", "2,2,0.5,0.5,1,1,1", "1.0,2,0.5,0.5,1,1,1"]
ROWS += ["1,2,0.5", "", "1,2,0.5,0.5,1,1,1,1", "1,2,0.5,0.5,1,1,1e300", f"{10**30},2,0.5,0.5,1,1,1", "1,2,,1,1,1,1"]
ROWS += ["1,2,NA,1,1,1,1", "nan,2,0.5,0.5,1,1,1", '1,2,"0.5",1,1,1,1', "1,2,\x00,1,1,1,1", "1,2,0.5\r,1,1,1,1"]
KL = ["epoch,time_step\n1,1\n", *(f"epoch,time_step,kl_nats\n{rows}\n" for rows in ("1,1,x", "1,1,2\n1,3,2", "2,1,2"))]
CONFIG = ["{", "[]", "[" * 100_000, '{"experiment": "cifar", "scale": "short", "hash": "0"}', "\udcff"]
DATASET, EPOCHS, PARAM = '"dataset": "mnist"', '"epochs": 120', '"param": "wn"'
MALFORMED: dict[tuple[Callable[..., Path], str], list[Any]] = {  # a file's content, or what is changed in it
    (make_run, "config.json"): [
        *(*CONFIG, '{"experiment": "x", "scale": "short", "hash": "0", "settings": {}}'),
        ('"batch_size": 100', '"batch_size": 50'),
        ('"hash"', f'"parameterization": {json.dumps(OTHERS[CENTRED])}, "hash"'),  # the paper's have none
    ],
    (make_centred, "config.json"): [
        *(('"parameterization": {', '"parameterization": [], "x": {'), ('"sha256": "3fa9c1d2', '"sha256": "0fa9c1d2')),
        *(('"label": "centred weight norm."', '"label": 3'), ('"class": "CentredWN"', '"class": null')),
        *(('"lr": 0.001, "sha', f'"lr": {lr}, "sha') for lr in ('"fast"', "-1.0", "true", "0")),
    ],
    (make_run, "run.json"): [
        *('{"status": "fine", "epoch": 1}', '{"status": "done"}', '{"status": "done", "epoch": true}'),
        *(f'{{"status": "done", "epoch": 8, {rest}}}' for rest in RECORDS),
    ],
    (make_run, "metrics.csv"): [
        *("epoch,train_error\n1,0.5\n", f"epoch,{CIFAR}\n1,1,2,0.5,0.5,1,1,1\n"),
        *(f"{CIFAR}\n{row}\n" for row in ROWS),
    ],
    (make_run, "layers.csv"): [
        *("epoch,layer\n0,conv1\n", f"{LAYERS}\n" + 2 * "0,a,1,1,1,1,1,1\n"),
        f"{LAYERS}\n0,a,1,1,1,1,1,1\n1,b,1,1,1,1,1,1\n",
        f"{LAYERS}\n" + "".join(f"{epoch},{layer},1,1,1,1,1,1\n" for layer in "ab" for epoch in (0, 1)),
    ],
    (make_run, "init.csv"): [
        *("\udcff\n", f"{INIT}\n" + 2 * "0,a,1,1,1\n", f"{INIT}\n" + "".join(f"0,{n},1,1,1\n" for n in range(1001))),
    ],
    (make_run, "noise.csv"): [f"{QUARTILES}\n8,a,3,1,2,50\n", f"{QUARTILES}\n8,a,2,1,3,0\n"],
    (make_draw, "kl_steps.csv"): KL,
    (make_draw, "config.json"): [('"time_steps": 4', '"time_steps": 0')],
    (make_dqn, "metrics.csv"): [("test_score,", "score,"), ("\n1,1000,", "\n1,-1000,")],
    (make_dqn, "games.csv"): [("1,1,", "1,x,")],
    (make_dqn, "config.json"): [
        *(('"game": "breakout"', f'"game": {game}') for game in ('"pong"', "null")),
        ('"batch_size": 64', '"batch_size": "64"'),
    ],
    (make_vae, "metrics.csv"): [("kl_nats", "kl")],
    (make_vae, "config.json"): [
        *((DATASET, f'"dataset": {dataset}') for dataset in ('"svhn"', "[]")),
        *((EPOCHS, f'"epochs": {epochs}') for epochs in ("0", "7.5")),
        *(('"lr": 0.002', f'"lr": {lr}') for lr in ("-1", "0", "1e-40", "NaN", "true")),
        *((PARAM, f'"param": {param}') for param in ('"../wn"', "3", '"wm"')),
        ('"v_norm_max": null', '"v_norm_max": "x"'),
    ],
    (make_benched, "cpu.json"): [
        *(('"low"', '"lowest"'), ('"median"', '"middle"'), ('"n": 20', '"n": 0.5'), ('"low": 1.07', '"low": 9')),
        *(('"floor_seconds"', '"floor"'), ('"wn": 1540000000', '"wn": null'), ('"device_name"', '"device"')),
    ],
}


@pytest.mark.parametrize(
    ("make", "name", "content"), [(*about, content) for about, every in MALFORMED.items() for content in every]
)
def test_malformed_file_is_named(tmp_path: Path, make: Callable[..., Path], name: str, content: Any) -> None:
    path = make(tmp_path) / name
    if isinstance(content, str):
        path.write_bytes(content.encode(errors="surrogateescape"))
    else:
        edit(path, *content)
    refuse(tmp_path, str(path))


def test_runs_of_an_unknown_experiment_are_left_out_by_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path).parents[1]
    shutil.copytree(folder, folder.with_name("char_lstm"))
    read = load(tmp_path, "short")
    assert (len(read.runs), read.unknown) == (1, ("char_lstm",)) and "char_lstm" in read.left_out[0]


def test_a_seed_of_33_bits_counts_as_no_further_seed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, speed=0.4 / (1 + 0.01 * seed), seed=seed) for seed in (1, 2**32 + 1)]  # one on a CPU
    read = load(tmp_path, "short")
    (text,) = read.left_out
    assert [run.seed for run in read.runs] == [1] and str(runs[1]) in text and "--seed 4294967297" in text


def test_each_malformed_run_is_left_out_alone_and_all_are_told(tmp_path: Path) -> None:
    good, marked, cut, running = (make_run(tmp_path, seed=seed) for seed in (1, 2, 3, 4))
    shutil.copytree(good, good.with_name("seed-9"))
    make_bench(tmp_path)
    (tmp_path / "bench/other.json").write_text("{")
    (marked / "metrics.csv").write_bytes(b"\xef\xbb\xbf" + (marked / "metrics.csv").read_bytes())
    (cut / "run.json").write_text("{")
    (running / "layers.csv").write_text("epoch,layer\n")
    edit(good / "metrics.csv", "\n3,101.5,", "\n3,101.6,")
    read = load(tmp_path, "short")
    assert ([run.seed for run in read.runs], set(read.bench)) == ([1], {"cpu"})
    odd = ["seed-2/metrics.csv", "seed-3/run.json", "seed-4/layers.csv", "seed-9", "other.json"]
    assert len(read.left_out) == 5 and all(name in text for name, text in zip(odd, read.left_out, strict=True))
    found = check(tmp_path, "short")
    assert found[:5] == read.left_out and len(found) == 6 and "seed-1: metrics.csv " in found[5]


def test_malformed_published_runs_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path)
    folder = make_run(tmp_path / "published")
    (folder / "metrics.csv").write_text("x\n1\n")
    read = load(tmp_path, "short")
    assert (len(read.runs), read.published) == (1, None)
    assert str(folder / "metrics.csv") in read.left_out[0] and check(tmp_path, "short") == []


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_run_behind_a_link_is_left_out(tmp_path: Path, level: int) -> None:
    results = tmp_path / "results"
    make_run(results, "bn" if level > 2 else "wn", scale="short")
    folder = make_run(results, seed=2)
    place = [folder, *folder.parents][4 - level]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    refuse(results, str(place))
    results.rename(tmp_path / "disk")
    results.symlink_to(tmp_path / "disk")
    place.unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "disk" / place.relative_to(results))
    assert len(load(results, "short").runs) == 2  # the results folder may be a link


def test_a_huge_number_of_time_steps_takes_no_memory(tmp_path: Path) -> None:
    assert reader.read_epochs(tmp_path / "kl_steps.csv", reader.KL_STEPS, 1, steps=10**12).empty


def test_benchmark_may_lack_experiments(tmp_path: Path) -> None:
    path = make_benched(tmp_path) / "cpu.json"
    change(path, cifar=None, draw=..., dqn=...)
    (bench,) = load(tmp_path, "short").bench.values()
    assert bench.keys() == {"cvae"}
    for name in ("cpu", "copy"):
        path.with_stem(name).write_text('{"device_name": 1}')  # nothing that the report shows
    assert load(tmp_path, "short").bench == {}


def test_sessions_by_device_and_version_oldest_first(tmp_path: Path) -> None:
    make_run(tmp_path)
    for day, bn in ((3, 1.3), (1, 1.1), (2, 1.2)):
        make_bench(tmp_path, bn=bn, name=f"session{4 - day}", device="H200", created=f"2026-12-0{day}T00:00:00Z")
    make_bench(tmp_path, name="newer", device="H200", torch="2.15.0")
    make_bench(tmp_path, name="old", device="H200")
    change(tmp_path / "bench/old.json", cifar={"ratios": {"bn / normal": {"median": 1, "low": 1, "high": 1, "n": 3}}})
    results = load(tmp_path, "short")
    found = sessions(results, "cifar")
    counts = {"unknown, fp32": 1, "2.15.0, fp32": 1, "2.13.0, fp32": 3}
    assert {key: len(value) for key, value in found.items()} == {("H200", key): n for key, n in counts.items()}
    assert [one.ratios["bn / normal"].median for one in found["H200", "2.13.0, fp32"]] == [1.1, 1.2, 1.3]
    assert sessions(results, "dqn") == {}


@pytest.mark.parametrize("name", [b"a\nX: rule before all", b"\x1b[31m\xe2\x80\xae", b"\xff", b"copy"])
def test_benchmark_needs_a_printable_name_and_no_copy(tmp_path: Path, name: bytes) -> None:
    folder = make_benched(tmp_path)
    shutil.copy(folder / "cpu.json", os.fsdecode(os.fsencode(folder) + b"/" + name + b".json"))
    said = ("copy.json", "cpu.json") if name == b"copy" else (".json: ",)
    refuse(tmp_path, *said)


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("run.json", '"config_hash": "', '"config_hash": "f', "run.json .*config.json"),
        ("metrics.csv", "\n3,101.5,", "\n3,101.6,", "metrics.csv .*sha256"),
        ("run.json", '"epoch": 8', '"epoch": 7', "metrics.csv has 8 epochs, but run.json 7"),
        ("run.json", '"status"', '"sha256": "0", "status"', "run.json was changed"),
        ("config.json", '"hash": "', '"hash": "f', r".*config.json is f\w{16}.* \w{16}"),
        ("metrics.csv", "", None, "metrics.csv .*sha256"),
    ],
)
def test_check_finds_each_kind_of_tampering(tmp_path: Path, name: str, old: str, new: str | None, problem: str) -> None:
    path = make_run(tmp_path) / name
    if new is None:
        path.unlink()
    else:
        edit(path, old, new)
    found = check(tmp_path, "short")
    assert re.match(rf"cifar/wn_lr0\.003/seed-1: {problem}", found[0])
    assert len(found) == (3 if new is None else 2 if name == "config.json" else 1)


def test_check_counts_the_games(tmp_path: Path) -> None:
    edit(make_dqn(tmp_path, episodes=2) / "games.csv", "2,1,", "3,3,")
    path = make_dqn(tmp_path, seed=2, episodes=2, status="running", logged=2) / "games.csv"
    path.write_text(path.read_text()[:-2])  # killed between the two files
    first, second = check(tmp_path, "short")
    assert first.endswith("games.csv has 1 game of epoch 2, but metrics.csv 2.")
    assert second.endswith("games.csv has 3 games of epoch 3, but metrics.csv 2.")

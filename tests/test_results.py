"""What the report reads: runs that are whole, cut short, malformed, copied or tampered with; and what it judges."""

import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from factories import (
    COMMIT,
    NOISE,
    OTHERS,
    add_work,
    edit,
    folder_of,
    made_up_scale,  # noqa: F401
    make_all,
    make_bench,
    make_dqn,
    make_draw,
    make_run,
    make_vae,
    snapshot,
)

from wnrepro import results as reader
from wnrepro.errors import UserError
from wnrepro.results import check, load, problems, scale_defaults, scales_with_runs, sessions
from wnrepro.settings import SETTINGS

CIFAR = "epoch,seconds,train_error,test_error,train_loss,test_loss,lr\n"
MNIST = ",".join(SETTINGS["cvae"].models["mnist"].metrics) + "\n"


def refused(results: Path, *said: str, scale: str = "short") -> str:
    """What the user is told, in which all of this is said."""
    with pytest.raises(UserError) as error:
        load(results, scale)
    text = str(error.value)
    assert text.isprintable() and all(part in text for part in said), text
    return text


def change(folder: Path, name: str, **values: Any) -> None:
    """Other values in a JSON file of a run, at the top or among its settings."""
    content = json.loads((folder / name).read_text())
    for key, value in values.items():
        (content["settings"] if key in content.get("settings", ()) else content)[key] = value
    (folder / name).write_text(json.dumps(content))


# ------------------------------------------------------------------------------- whole and half


def test_a_run_says_where_it_comes_from(tmp_path: Path) -> None:
    resumed = [{"at": "2026-11-28T12:00:00Z", "git": COMMIT | {"dirty": True}}]
    make_run(tmp_path, seed=1, record={"created": "2026-11-28T11:41:13Z"})
    make_run(
        tmp_path,
        seed=2,
        record={"created": None, "git": None, "versions": None, "device_name": None},
        status="diverged",
    )
    make_run(tmp_path, seed=3, record={"resumed": resumed}, status="running", logged=3)
    known, unknown, dirty = load(tmp_path, "short").runs
    assert (known.commit, known.dirty, known.torch) == (COMMIT["commit"], False, "2.13.0")
    assert (known.created, known.device, known.state) == ("2026-11-28T11:41:13Z", "AMD EPYC, 2 threads", "done")
    assert (unknown.commit, unknown.dirty, unknown.torch) == ("unknown", False, "unknown")
    assert (unknown.created, unknown.device, unknown.state) == ("", "unknown device", "diverged, epoch 8 of 8")
    assert dirty.dirty and dirty.state == "epoch 3 of 8"
    assert [run.over for run in (known, unknown, dirty)] == [True, True, False]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=3)
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,101.5,0.2")
    with (folder / "layers.csv").open("a") as file:
        file.write("4,conv1,1.5,1.0,2.0,1.0,0.5,1.5\n4,conv2,1.")
    (run,) = load(tmp_path, "short").runs
    assert run.epoch == 3
    assert run.layers["epoch"].max() == 3


def test_an_epoch_of_kl_steps_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = make_draw(tmp_path, status="running", logged=3)
    with (folder / "kl_steps.csv").open("a") as file:
        file.write("4,1,9.0\n4,2,5.")
    (run,) = load(tmp_path, "short").runs
    assert len(run.kl_steps) == 3 * 4 and run.kl_steps["epoch"].max() == 3


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=0)
    for name in ("metrics.csv", "layers.csv", "run.json"):
        (folder / name).unlink()
    (run,) = load(tmp_path, "short").runs
    assert (run.epoch, run.state, run.sealed) == (0, "epoch 0 of 8", True)
    assert math.isnan(run.final("test_error")) and check(tmp_path, "short") == []


def test_numbers_are_those_of_the_file_to_the_digit(tmp_path: Path) -> None:
    folder = make_run(tmp_path, logged=2, status="failed")
    (folder / "metrics.csv").write_text(
        f"{CIFAR}1,1e-05,0.1,0.30000000000000004,nan,inf,-inf\n2,1,nan,1,-0.0,1e400,1\n"
    )
    (run,) = load(tmp_path, "short").runs
    assert run.metrics["test_error"].tolist() == [0.30000000000000004, 1]
    assert run.metrics["test_loss"].tolist() == [math.inf, math.inf] and math.isnan(run.metrics["train_loss"][0])


def test_earlier_files_of_the_noise_lack_its_later_figures(tmp_path: Path) -> None:
    make_run(tmp_path, "bn", seed=1)
    make_run(tmp_path, "bn", seed=2, noise={"noise_size": 0.25})
    path = make_run(tmp_path, "bn", seed=3) / "noise.csv"
    path.write_text("".join(f"{','.join(line.split(',')[:6])}\n" for line in path.read_text().splitlines()))
    one, two, earlier = (run.noise for run in load(tmp_path, "short").runs)
    assert list(one.columns) == list(earlier.columns) == [*reader.NOISE, *NOISE["bn"]]
    assert one["noise_size"][0] == 0.3 and two["noise_size"][0] == 0.25
    assert earlier[list(NOISE["bn"])].isna().all(axis=None) and len(earlier) == len(one)


def test_a_setting_that_an_earlier_version_lacked_is_at_its_default(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    del content["settings"]["precision"], content["settings"]["decay_from"]
    (folder / "config.json").write_text(json.dumps(content))
    (run,) = load(tmp_path, "short").runs
    assert (run.precision, run.decay_from, run.changed) == ("fp32", 4, {})


def test_settings_of_another_version_may_stand_in_the_name(tmp_path: Path) -> None:
    make_run(tmp_path, colour="red")
    shutil.move(make_run(tmp_path, seed=2, taste="salt").parent, tmp_path / "short" / "cifar" / "wn_lr0.003")
    one, two = load(tmp_path, "short").runs
    assert one.changed == {"taste": "salt"} and two.changed == {"colour": "red"}
    assert load(tmp_path, "short").standard == ()
    make_run(tmp_path, seed=3, binarization=["x"], time_steps="x", colour={"red": 1})
    assert load(tmp_path, "short").runs[-1].binarization is None


# ------------------------------------------------------------------------------- one run per settings and seed


def test_a_copied_folder_is_no_seed(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    shutil.copytree(folder, folder.with_name("seed-2"))
    refused(tmp_path, str(folder.with_name("seed-2")), "short/cifar/wn_lr0.003/seed-1; move it there, or remove it")
    shutil.move(folder.with_name("seed-2"), folder.parent.with_name("wn_lr0.004") / "seed-1")
    refused(tmp_path, "wn_lr0.004/seed-1", "short/cifar/wn_lr0.003/seed-1; move it there, or remove it")


@pytest.mark.parametrize(
    "place", ["short/cifar/wn_lr0.003_epochs-9/seed-1", "short/cifar/x/seed-1", "paper/cifar/wn_lr0.003/seed-1"]
)
def test_a_run_under_another_name_is_refused(tmp_path: Path, place: str) -> None:
    folder = make_run(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True)
    folder.rename(tmp_path / place)
    refused(tmp_path, place, "a copy", "those of short/cifar/wn_lr0.003/seed-1", scale=place.split("/")[0])


def test_a_run_of_another_experiment_or_data_set_is_refused(tmp_path: Path) -> None:
    folder = make_vae(tmp_path)
    shutil.copytree(folder, tmp_path / "short" / "draw" / "mnist_wn_lr0.002" / "seed-1")
    refused(tmp_path, "draw/mnist_wn_lr0.002", "those of short/cvae/mnist_wn_lr0.002/seed-1")


def test_the_same_settings_under_two_names_are_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path, g_exp=3.0)
    two = one.parent.with_name("wn_lr0.003_g_exp-3") / "seed-1"
    shutil.copytree(one, two)
    edit(two / "config.json", '"g_exp": 3.0', '"g_exp": 3')
    refused(tmp_path, str(one), str(two), "remove one of the two")


def test_the_same_seed_with_another_checkpoint_is_refused(tmp_path: Path) -> None:
    one, two = make_dqn(tmp_path), make_dqn(tmp_path, checkpoint_replay=True)
    refused(tmp_path, str(one), str(two), "remove one of the two")


def test_a_changed_setting_makes_it_another_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    edit(folder / "config.json", '"batch_size": 100', '"batch_size": 50')
    refused(tmp_path, str(folder), "those of short/cifar/wn_lr0.003_batch_size-50/seed-1")


# ------------------------------------------------------------------------------- what is judged


def test_the_most_exact_precision_that_compares_is_judged_however_many_have_another(tmp_path: Path) -> None:
    make_run(tmp_path, "wn", lr=0.01)
    for param in ("wn", "bn"):
        make_run(tmp_path, param, lr=0.001, precision="bf16")
    assert load(tmp_path, "short").of("cifar").precision == "bf16"  # a single fp32 run hides nothing
    for path in (tmp_path / "short" / "cifar").glob("*"):
        shutil.rmtree(path)
    for param in ("wn", "normal"):
        make_run(tmp_path, param)
    for param in ("wn", "bn", "normal"):
        make_run(tmp_path, param, precision="bf16")
    make_vae(tmp_path, precision="tf32")
    results = load(tmp_path, "short")
    cifar = results.of("cifar")
    assert cifar.precision == "fp32" and results.of("cvae", "mnist").precision == "tf32"
    assert {run.variant for run in cifar.standard} == {"wn_lr0.003", "normal_lr0.0003"}
    note = "cifar has runs of precision fp32 (2) and bf16 (3); judged: fp32; --precision bf16 judges the others"
    assert results.notes == cifar.notes == (note,)


def test_the_precision_asked_for_is_judged_alone(tmp_path: Path) -> None:
    make_run(tmp_path, "wn")
    make_run(tmp_path, "bn", precision="bf16")
    make_vae(tmp_path)
    results = load(tmp_path, "short", "bf16")
    assert [run.variant for run in results.of("cifar").standard] == ["bn_lr0.003_precision-bf16"]
    assert results.of("cvae", "mnist").standard == ()
    assert results.notes == (
        "cifar has runs of precision fp32 (1) and bf16 (1); judged: bf16; --precision fp32 judges the others",
        "cvae mnist has runs of precision fp32 (1); judged: bf16; --precision fp32 judges the others",
    )


def test_what_an_experiment_has_on_a_gpu_is_judged_where_one_ran_there(tmp_path: Path) -> None:
    for param in ("wn", "bn"):
        make_run(tmp_path, param)
        make_run(tmp_path, param, precision="bf16", record={"device": "cuda:0", "device_name": "NVIDIA H200"})
    assert load(tmp_path, "short").of("cifar").precision == "bf16"


def test_two_binarizations_are_never_judged_together(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_vae(tmp_path, seed=seed, binarization="seeded")
    make_draw(tmp_path)
    results = load(tmp_path, "short").of("cvae", "mnist")
    assert (results.binarization, len(results.standard), results.notes) == ("seeded", 2, ())
    make_vae(tmp_path, seed=3)
    results = load(tmp_path, "short").of("cvae", "mnist")
    assert [run.seed for run in results.figure2] == [3]
    assert results.notes == ("cvae mnist has runs of binarization larochelle (1) and seeded (2); judged: larochelle",)


def test_a_data_set_is_no_setting_that_has_changed(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_vae(tmp_path)
    make_vae(tmp_path, dataset="cifar10")
    make_dqn(tmp_path, "normal")
    assert all(not run.changed for run in load(tmp_path, "short").runs)


def test_published_runs_stand_beside_ones_own(tmp_path: Path) -> None:
    published = tmp_path / "published"
    for seed in (1, 2):
        make_run(published, seed=seed)
    make_vae(published)
    make_bench(published, name="theirs")
    with pytest.raises(UserError, match="holds no runs"):
        load(tmp_path, "short")
    assert scales_with_runs(tmp_path) == [] and scales_with_runs(published) == ["short"]
    make_run(tmp_path)
    make_run(tmp_path, scale="quick")
    results = load(tmp_path, "short")
    assert len(results.runs) == 1 and results.bench == {}
    assert results.published is not None and len(results.published.runs) == 3
    assert set(results.published.bench) == {"theirs"} and results.published.published is None
    cifar = results.of("cifar")
    assert cifar.published is not None and len(cifar.published.standard) == 2
    assert load(tmp_path, "quick").published is None and load(published, "short").published is None
    assert scales_with_runs(tmp_path) == ["short", "quick"]


# ------------------------------------------------------------------------------- malformed files


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    for name in ("absent", "a file"):
        for call in (lambda path: load(path, "short"), lambda path: check(path, "short"), scales_with_runs):
            with pytest.raises(UserError, match="is no folder"):
                call(tmp_path / name)
    assert scales_with_runs(tmp_path) == []
    refused(tmp_path, "holds no runs")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "Expecting"),
        ("config.json", "[]", "wrong kind"),
        ("config.json", "[" * 100_000, "malformed"),
        ("config.json", '{"experiment": "cifar", "scale": "short", "hash": "0"}', "`settings` is missing"),
        (
            "config.json",
            '{"experiment": "x", "scale": "short", "hash": "0", "settings": {}}',
            "`experiment` is missing",
        ),
        ("run.json", '{"status": "fine", "epoch": 1}', "`status` is missing or of the wrong kind"),
        ("run.json", '{"status": "done"}', "`epoch` is missing"),
        ("run.json", '{"status": "done", "epoch": true}', "`epoch` is missing or of the wrong kind"),
        ("run.json", '{"status": "done", "epoch": 8, "facts": []}', "`facts` is missing or of the wrong kind"),
        ("run.json", '{"status": "done", "epoch": 8, "resumed": [1]}', "`resumed 0` is missing or of the wrong kind"),
        ("run.json", '{"status": "done", "epoch": 8, "seconds": -1}', "`seconds` is missing or of the wrong kind"),
        ("run.json", '{"status": "done", "epoch": 8, "seconds": NaN}', "`seconds` is missing or of the wrong kind"),
        ("run.json", '{"status": "done", "epoch": 8, "x": 1e300}', "beyond all bounds"),
        ("run.json", '{"status": "done", "epoch": 8, "x": [[[[[[[[[1]]]]]]]]]}', "nested too deeply"),
        ("metrics.csv", "epoch,train_error\n1,0.5\n", "not one column seconds"),
        ("metrics.csv", f"epoch,{CIFAR}1,1,2,0.5,0.5,1,1,1\n", "not one column epoch"),
        ("metrics.csv", f"{CIFAR}1,2,x,0.5,1,1,1\n", "could not convert"),
        ("metrics.csv", f"{CIFAR}1,2,50,50,1,1,1\n", "train_error: a number outside 0 to 1"),
        ("metrics.csv", f"{CIFAR}2,2,0.5,0.5,1,1,1\n", "epochs are not 1, 2, 3, …"),
        ("metrics.csv", f"{CIFAR}1.0,2,0.5,0.5,1,1,1\n", "invalid literal"),
        ("metrics.csv", f"{CIFAR}1,2,0.5\n", "line 2 has not the header's 7 fields"),
        ("metrics.csv", f"{CIFAR}1,2,0.5,0.5,1,1,1e300\n", "lr: a number outside"),
        ("metrics.csv", f"{CIFAR}{10**30},2,0.5,0.5,1,1,1\n", "malformed"),
        ("layers.csv", "epoch,layer\n0,conv1\n", "not one column v_norm_mean"),
        ("layers.csv", f"{','.join(reader.LAYERS)}\n" + 2 * "0,a,1,1,1,1,1,1\n", "epochs are not 0, 1, 2, …"),
        ("layers.csv", f"{','.join(reader.LAYERS)}\n0,a,1,1,1,1,1,1\n1,b,1,1,1,1,1,1\n", "every layer once"),
        ("init.csv", f"{','.join(reader.INIT)}\n" + 2 * "0,a,1,1,1\n", "a layer stands twice"),
        ("noise.csv", f"{','.join(reader.NOISE)}\n8,a,3,1,2,50\n", "a median lies outside its quartiles"),
        ("noise.csv", f"{','.join(reader.NOISE)}\n8,a,2,1,3,0\n", "minibatches: a number outside 1"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = make_run(tmp_path)
    (folder / name).write_text(content)
    before = snapshot(tmp_path)
    refused(tmp_path, f"{folder / name} is malformed", "restore it", said)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epoch,seconds,train_bound_nats\n1,7.5,-90\n", "not one column test_bound_nats"),
        (f"{MNIST}1,7.5,-90,x,-90,1,1\n", "could not convert"),
        (f"{MNIST}2,7.5,-90,-90,-90,1,1\n", "its epochs are not 1, 2, 3, …"),
        (f"{MNIST}1,7.5,-90,-90\n", "line 2 has not the header's 7 fields"),
    ],
)
def test_a_malformed_file_of_a_vae_is_named(tmp_path: Path, content: str, said: str) -> None:
    make_run(tmp_path)
    path = make_vae(tmp_path) / "metrics.csv"
    path.write_text(content)
    refused(tmp_path, str(path), said)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", "epoch,seconds,train_bound_nats\n1,7.5,-90\n", "not one column test_bound_nats"),
        ("kl_steps.csv", "epoch,time_step\n1,1\n", "not one column kl_nats"),
        ("kl_steps.csv", "epoch,time_step,kl_nats\n1,1,x\n", "could not convert"),
        ("kl_steps.csv", "epoch,time_step,kl_nats\n1,1,2\n1,3,2\n", "an epoch has not every time_step once"),
        ("kl_steps.csv", "epoch,time_step,kl_nats\n2,1,2\n", "its epochs are not 1, 2, 3, …"),
    ],
)
def test_a_malformed_file_of_draw_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = make_draw(tmp_path)
    (folder / name).write_text(content)
    refused(tmp_path, str(folder / name), said)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("metrics.csv", "test_score,", "score,", "not one column test_score"),
        ("metrics.csv", "\n1,1000,", "\n1,-1000,", "agent_steps: a number outside 0"),
        ("games.csv", "1,1,", "1,x,", "invalid literal"),
        ("config.json", '"game": "breakout"', '"game": "pong"', "`game` is missing or of the wrong kind"),
        ("config.json", '"game": "breakout"', '"game": null', "`game` is missing"),
        ("config.json", '"batch_size": 64', '"batch_size": "64"', "--batch-size 64: is of the wrong kind"),
    ],
)
def test_a_malformed_file_of_dqn_is_named(tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    folder = make_dqn(tmp_path)
    edit(folder / name, old, new)
    refused(tmp_path, str(folder / name), said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"dataset": "mnist"', '"dataset": "svhn"', "`dataset` is missing or of the wrong kind"),
        ('"dataset": "mnist"', '"dataset": []', "`dataset` is missing or of the wrong kind"),
        ('"epochs": 120', '"epochs": 0', "--epochs 0: give a number of at least 1"),
        ('"epochs": 120', '"epochs": 7.5', "`epochs` is missing or of the wrong kind"),
        ('"lr": 0.002', '"lr": -1', "`lr` is missing or of the wrong kind"),
        ('"lr": 0.002', '"lr": 1e-40', "no learning rate: 1e-40"),
        ('"v_norm_max": null', '"v_norm_max": "x"', "--v-norm-max x: is of the wrong kind"),
        ('"param": "wn"', '"param": "../wn"', "`param` is missing or of the wrong kind"),
        ('"param": "wn"', '"param": 3', "`param` is missing or of the wrong kind"),
        ('"param": "wn"', '"param": "wm"', "those of short/cvae/mnist_wm_lr0.002/seed-1; move it there"),
    ],
)
def test_settings_that_no_vae_has(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = make_vae(tmp_path)
    edit(folder / "config.json", old, new)
    refused(tmp_path, str(folder / "config.json"), said)


def test_a_draw_needs_its_number_of_time_steps(tmp_path: Path) -> None:
    folder = make_draw(tmp_path)
    edit(folder / "config.json", '"time_steps": 4', '"time_steps": 0')
    refused(tmp_path, "config.json is malformed (--time-steps 0: give a number of at least 1)")


def test_a_vae_of_cifar10_needs_its_bits(tmp_path: Path) -> None:
    folder = make_vae(tmp_path, dataset="cifar10")
    edit(folder / "metrics.csv", "test_bits_per_dim", "bits")
    refused(tmp_path, "metrics.csv is malformed (not one column test_bits_per_dim)")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "init.csv").write_bytes(b"\xff\xfe\n")
    refused(tmp_path, "init.csv", "UTF-8")


def test_texts_of_files_are_printable_and_short(tmp_path: Path) -> None:
    hostile = "\x1b[31m\n\u202e\ud800" + "x" * 5000
    folder = make_run(tmp_path, record={"message": hostile, "device_name": hostile, "versions": {"torch": hostile}})
    edit(folder / "init.csv", "conv1", "\x1b" * 300)
    change(folder, "config.json", hash=hostile)
    (run,) = load(tmp_path, "short").runs
    texts = [run.record["message"], run.device, run.torch, run.config["hash"], run.init["layer"][0]]
    texts += check(tmp_path, "short")
    assert all(text.isprintable() and len(text) <= 2000 for text in texts)
    assert len(run.init["layer"][0]) == 100


# ------------------------------------------------------------------------------- benchmarks


def test_a_malformed_bench_is_named(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path)
    path = add_work(tmp_path)
    whole = path.read_text()
    cases = [('"low"', '"lowest"'), ('"median"', '"middle"'), ('"n": 20', '"n": 0.5'), ('"low": 1.07', '"low": 9')]
    cases += [('"floor_seconds"', '"floor"'), ('"wn": 1540000000', '"wn": null'), ('"device_name"', '"device"')]
    for old, new in cases:
        edit(path, old, new)
        refused(tmp_path, str(path))
        path.write_text(whole)
    bench = json.loads(whole)
    path.write_text(json.dumps({name: bench[name] for name in ("device_name", "cvae")} | {"cifar": None}))
    read = load(tmp_path, "short").bench
    assert list(read) == ["cpu"] and "cifar" not in read["cpu"]
    path.write_text('{"device_name": 1}')  # nothing that the report shows
    assert load(tmp_path, "short").bench == {}


def test_sessions_by_device_and_version_oldest_first(tmp_path: Path) -> None:
    make_run(tmp_path)
    for day, bn in ((3, 1.3), (1, 1.1), (2, 1.2)):
        make_bench(tmp_path, bn=bn, name=f"session{4 - day}", device="H200", created=f"2026-12-0{day}T00:00:00Z")
    make_bench(tmp_path, name="newer", device="H200", torch="2.15.0")
    make_bench(tmp_path)
    path = tmp_path / "bench" / "old.json"
    ratio = {"median": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    path.write_text(json.dumps({"device_name": "H200", "cifar": {"ratios": {"bn / normal": ratio}}}))
    results = load(tmp_path, "short")
    found = sessions(results, "cifar")
    assert {key: len(value) for key, value in found.items()} == {
        ("H200", "unknown, fp32"): 1,
        ("H200", "2.15.0, fp32"): 1,
        ("AMD EPYC (cpu)", "2.13.0, fp32"): 1,
        ("H200", "2.13.0, fp32"): 3,
    }
    assert [one.ratios["bn / normal"]["median"] for one in found["H200", "2.13.0, fp32"]] == [1.1, 1.2, 1.3]
    assert sessions(results, "dqn") == {} and len(sessions(results, "draw")) == 3


@pytest.mark.parametrize("name", [b"a\nX: rule before all", b"\x1b[31m\xe2\x80\xae", b"\xff"])
def test_a_benchmark_has_a_printable_name(tmp_path: Path, name: bytes) -> None:
    """The report names it."""
    make_run(tmp_path)
    make_bench(tmp_path)
    (tmp_path / "bench/cpu.json").rename(os.fsdecode(os.fsencode(tmp_path / "bench") + b"/" + name + b".json"))
    refused(tmp_path, "no benchmark has such a name; give it another")


def test_too_many_benchmarks(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "bench").mkdir()
    for number in range(201):
        (tmp_path / "bench" / f"{number}.json").write_text("{}")
    refused(tmp_path, "holds more than 200 benchmarks")


# ------------------------------------------------------------------------------- many


def test_a_thousand_runs_are_read_in_seconds(tmp_path: Path) -> None:
    folder = make_run(tmp_path, status="running", logged=1)
    for seed in range(2, 1001):
        copy = folder.with_name(f"seed-{seed}")
        copy.mkdir()
        shutil.copy(folder / "config.json", copy)
        change(copy, "config.json", seed=seed)
        for name in ("run.json", "metrics.csv", "layers.csv", "init.csv"):
            (copy / name).hardlink_to(folder / name)
    start = time.process_time()
    results = load(tmp_path, "short")
    assert len(results.standard) == len(results.figure1) == 1000 and results.notes == ()
    assert time.process_time() - start < 30  # 6 s on an idle core
    shutil.copytree(folder, folder.with_name("seed-1001"))
    refused(tmp_path, "holds more than 1000 runs: move some of them")


# ------------------------------------------------------------------------------- check


def test_check_finds_nothing_in_good_runs(tmp_path: Path) -> None:
    make_all(tmp_path)
    make_run(tmp_path, "bn", seed=2, status="running", logged=2, record={"epoch": 1, "metrics_sha256": None})
    make_dqn(tmp_path, episodes=2)
    assert check(tmp_path, "short") == []


def test_check_finds_each_kind_of_tampering(tmp_path: Path) -> None:
    folder = make_run(tmp_path)

    def found(name: str, old: str, new: str) -> str:
        edit(folder / name, old, new)
        (problem,) = check(tmp_path, "short")
        edit(folder / name, new, old)
        assert problem.startswith("cifar/wn_lr0.003/seed-1: ") and problem.endswith(".")
        return problem

    config = scale_defaults("cifar", "short", None, "wn")
    assert folder == folder_of(tmp_path, "cifar", "short", config | {"lr": 0.003})
    assert "run.json was written for the settings" in found("run.json", '"config_hash": "', '"config_hash": "f')
    assert "metrics.csv is not the one that run.json has" in found("metrics.csv", "\n3,101.5,", "\n3,101.6,")
    assert "metrics.csv has 8 epochs, run.json 7." in found("run.json", '"epoch": 8', '"epoch": 7')
    change(folder, "run.json", sha256="0")
    assert check(tmp_path, "short") == ["cifar/wn_lr0.003/seed-1: run.json is not as it was written."]
    content = json.loads((folder / "run.json").read_text())
    del content["sha256"]
    (folder / "run.json").write_text(json.dumps(content))
    edit(folder / "config.json", '"hash": "', '"hash": "f')
    first, second = check(tmp_path, "short")
    assert re.search(r"config\.json's hash is f\w{16}, its settings have \w{16}\.$", first)
    assert "run.json was written for the settings" in second
    edit(folder / "config.json", '"hash": "f', '"hash": "')
    (folder / "metrics.csv").unlink()
    assert len(check(tmp_path, "short")) == 3  # sha256, run.json's epoch, done too early


def test_check_counts_the_games_of_a_dqn(tmp_path: Path) -> None:
    folder = make_dqn(tmp_path, episodes=2)
    edit(folder / "games.csv", "2,1,", "3,3,")
    first, second = check(tmp_path, "short")
    assert first.endswith("games.csv has 1 games of epoch 2, metrics.csv 2.")
    assert second.endswith("games.csv has 3 games of epoch 3, metrics.csv 2.")
    folder = make_dqn(tmp_path, seed=2, episodes=2, status="running", logged=2)
    games = (folder / "games.csv").read_text()
    (folder / "games.csv").write_text(games[:-2])  # killed between the two files
    assert len(check(tmp_path, "short")) == 2
    edit(folder / "games.csv", "1,2,", "0,3,")
    assert "seed-2: games.csv has 1 games of epoch 1" in check(tmp_path, "short")[2]


def test_check_names_so_many_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_PROBLEMS", 2)
    for seed in range(1, 6):
        make_run(tmp_path, seed=seed, logged=7)
    found = problems(load(tmp_path, "short"))
    assert len(found) == 3 and found[2] == "And 3 more of the kind."


def test_a_copied_bench_file_is_no_session(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_bench(tmp_path)
    shutil.copy(tmp_path / "bench" / "cpu.json", tmp_path / "bench" / "copy.json")
    with pytest.raises(UserError, match=r"(copy|cpu)\.json and .*(copy|cpu)\.json are the same session: remove one"):
        load(tmp_path, "short")


# ------------------------------------------------------------------------------- parameterizations of others


CENTRED, SCALED = OTHERS


def test_runs_of_other_parameterizations_are_read_after_the_papers(tmp_path: Path) -> None:
    for param in (CENTRED, "ws", "wn", "normal"):
        make_run(tmp_path, param)
    make_run(tmp_path, CENTRED, lr=0.003)
    results = load(tmp_path, "short")
    assert [run.param for run in results.runs] == ["normal", "wn", CENTRED, CENTRED, "ws"]
    assert [run.label for run in results.runs[2:]] == [*["centred weight norm."] * 2, "ws"]
    lrs = {(run.param, run.lr) for run in results.of("cifar").figure1}
    assert lrs == {("normal", 0.0003), ("wn", 0.003), (CENTRED, 0.001), ("ws", 0.003)}  # the entry's lr
    assert list(results.labels.values())[4:] == ["centred weight norm.", "ws"]
    assert {run.param for run in results.papers.runs} == {"normal", "wn"}
    assert check(tmp_path, "short") == []


def test_alike_labels_are_told_apart(tmp_path: Path) -> None:
    for param, label in ((CENTRED, "weight norm."), (SCALED, " \t"), ("ws", "")):
        folder = make_run(tmp_path, param)
        if label:
            change(folder, "config.json", parameterization=OTHERS[param] | {"label": label})
    labels = load(tmp_path, "short").labels
    assert labels["wn"] == "weight norm." and labels[CENTRED] == f"weight norm. ({CENTRED})"
    assert labels[SCALED] == SCALED and labels["ws"] == "ws"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ([], "`parameterization` is missing or of the wrong kind"),
        ({"label": 3}, "`label` is missing or of the wrong kind"),
        ({"class": None}, "`class` is missing or of the wrong kind"),
        ({"lr": "fast"}, "`lr` is missing or of the wrong kind"),
        ({"lr": -1.0}, "`lr` is missing or of the wrong kind"),
        ({"lr": True}, "`lr` is missing or of the wrong kind"),
        ({"lr": 0}, "no learning rate: 0"),
        ({"sha256": "3fa9c1d2"}, "`sha256` is missing or of the wrong kind"),
        ({"sha256": "0" * 64}, f"`parameterization` is not that of {CENTRED}"),
    ],
)
def test_what_is_no_parameterization_is_refused(tmp_path: Path, entry: Any, said: str) -> None:
    folder = make_run(tmp_path, CENTRED)
    change(folder, "config.json", parameterization=OTHERS[CENTRED] | entry if isinstance(entry, dict) else entry)
    refused(tmp_path, str(folder / "config.json"), said)


def test_the_papers_parameterizations_have_no_entry(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    change(folder, "config.json", parameterization=OTHERS[CENTRED] | {"lr": 0.5})
    refused(tmp_path, str(folder / "config.json"), "`parameterization` is not that of wn")


def test_other_parameterizations_do_not_change_what_is_judged(tmp_path: Path) -> None:
    for param in ("wn", "normal"):
        make_vae(tmp_path, param, precision="tf32", binarization="seeded")
    on_gpu = {"device": "cuda:0"}
    for param in OTHERS:
        make_vae(tmp_path, param, record=on_gpu)
        make_vae(tmp_path, param, precision="bf16", record=on_gpu)
    part = load(tmp_path, "short").of("cvae", "mnist")
    assert (part.precision, part.binarization) == ("tf32", "seeded")
    shutil.rmtree(tmp_path / "short/cvae")
    for param in OTHERS:
        make_vae(tmp_path, param, precision="bf16")
    part = load(tmp_path, "short").of("cvae", "mnist")
    assert (part.precision, part.binarization, len(part.standard)) == ("bf16", "larochelle", 2)

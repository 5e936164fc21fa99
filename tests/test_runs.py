"""The run directory: whole files, resume without a row lost, doubled or changed, locks, kill -9 for real; what is
added to a finished run.
"""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_pixels, tiny_cvae, tiny_dqn, tiny_draw
from PIL import Image

from wnrepro import results as load
from wnrepro.atari import SCREEN, Scene
from wnrepro.errors import UserError
from wnrepro.events import Epoch, Note
from wnrepro.experiments.cifar import Cifar
from wnrepro.experiments.cvae import Cvae
from wnrepro.experiments.draw import Draw
from wnrepro.runs import checkpoint, media, provenance
from wnrepro.runs import directory as rundir
from wnrepro.runs import run as run_module
from wnrepro.runs.directory import variant
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import PARAMS, scale_settings

CPU = torch.device("cpu")


class Walk:
    """A made-up experiment: a random walk that depends on every generator; diverges where told to."""

    def __init__(self, epochs: int, diverges: int = 0) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.epochs, self.diverges, self.device, self.facts = epochs, diverges, CPU, {"steps": 0}
        self.epoch, self.place = 0, 0.0

    def train(self) -> Iterator[Epoch | Note]:
        yield Note(f"from {self.epoch}")
        while self.epoch < self.epochs:
            self.epoch += 1
            self.place += torch.randn(()).item() + random.random() + np.random.rand()
            table = [{"epoch": self.epoch, "half": half, "place": self.place / half} for half in (1, 2)]
            if self.epoch == 1:
                table.insert(0, {"epoch": 0, "half": 0, "place": 0.0})  # what there was before, as in layers.csv
            if self.epoch == 1:  # as what is measured before the first epoch
                table.insert(0, {"epoch": 0, "half": 1, "place": 0.0})
            diverged = "walked away" if self.epoch == self.diverges else ""
            yield Epoch(
                self.epoch,
                {"epoch": self.epoch, "seconds": 0.1, "place": self.place},
                {"halves": table},
                diverged,
            )
            if diverged:
                return

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.place = state["epoch"], state["place"]


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.csv")}


def without_seconds(path: Path) -> list[list[str]]:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    column = lines[0].index("seconds")
    return [line[:column] + line[column + 1 :] for line in lines]


def test_a_run_writes_its_directory(tmp_path, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny("wn", epochs=5))
    shown = []
    with run:
        record = run.execute(lambda: Walk(5), shown.append)
    assert shown[0] == Note("from 0") and [event.epoch for event in shown[1:]] == [1, 2, 3, 4, 5]
    assert record["status"] == "done" and record["epoch"] == 5 and record["resumed"] == []
    config = json.loads((run.folder / "config.json").read_text())
    assert config["settings"]["param"] == "wn" and config["hash"] == record["config_hash"]
    assert record == json.loads((run.folder / "run.json").read_text())
    assert record["seconds"] == pytest.approx(0.5) and record["peak_memory_bytes"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] and "commit" in record["git"]
    assert run.finished() == "done"
    assert not list(run.folder.glob(".*.part"))


def test_the_commit_is_gits_or_else_the_environments(monkeypatch):
    inside = provenance.git_state()
    monkeypatch.setenv("WNREPRO_COMMIT", "0123abc")
    assert provenance.git_state() == inside

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", no_git)
    for given, commit in [("0123abc", "0123abc"), ("a" * 40, "a" * 40), ("", None), ("012abc", None)]:
        monkeypatch.setenv("WNREPRO_COMMIT", given)
        assert provenance.git_state() == {"commit": commit, "dirty": None}
    for given in ("a" * 41, "main-branch", "0123abc\n", "０123abcd"):
        monkeypatch.setenv("WNREPRO_COMMIT", given)
        assert provenance.git_state() == {"commit": None, "dirty": None}


def test_run_json_says_whether_steps_may_be_graphs(tmp_path, monkeypatch):
    settings = tiny_draw(epochs=1)
    with Run(tmp_path, "draw", "quick", settings) as run:
        record = run.execute(lambda: Draw(settings, make_pixels("mnist"), CPU))
    assert record["graphs"] is False and not load.check(tmp_path, "quick")  # there are none on a CPU
    del record["graphs"]  # as in runs of earlier versions
    run.write_record(record)
    assert run.record() == record and not load.check(tmp_path, "quick")
    monkeypatch.setattr(provenance, "device_name", lambda _: "A GPU")
    monkeypatch.delenv("WNREPRO_GRAPHS", raising=False)
    assert provenance.provenance(torch.device("cuda"))["graphs"] is True
    monkeypatch.setenv("WNREPRO_GRAPHS", "0")
    assert provenance.provenance(torch.device("cuda"))["graphs"] is False


def test_the_memory_of_a_gpu_is_what_the_device_loses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2)
    assert provenance.peak_memory_bytes(torch.device("cuda:1")) == 3 < provenance.peak_memory_bytes(CPU)


@pytest.mark.parametrize("diverges", [0, 3])
def test_a_kill_at_any_write_leaves_a_run_that_goes_on(tmp_path, tiny, monkeypatch, diverges):
    """The process ends before or within the n-th write, for every n; then the same command again."""
    whole = Run(tmp_path / "whole", "cifar", "quick", tiny(epochs=4))
    with whole:
        expected = whole.execute(lambda: Walk(4, diverges))
    write, tried = rundir.write_atomic, 0
    for stop in range(1, 40):
        for half_written in (False, True):
            run = Run(tmp_path / f"{stop}{half_written}", "cifar", "quick", tiny(epochs=4))
            count = 0

            def killed(path, content, keep=None, stop=stop, half_written=half_written):
                nonlocal count
                count += 1
                if count == stop:
                    if half_written:
                        path.with_name(f".{path.name}.0.part").write_bytes(content[: len(content) // 2])
                    raise SystemExit
                write(path, content, keep)

            for module in (checkpoint, run_module, rundir):
                monkeypatch.setattr(module, "write_atomic", killed)
            try:
                with run:
                    run.execute(lambda: Walk(4, diverges))
            except SystemExit:
                tried += 1
            else:
                continue
            finally:
                for module in (checkpoint, run_module, rundir):
                    monkeypatch.setattr(module, "write_atomic", write)
            with run:
                record = run.execute(lambda: Walk(4, diverges))
            assert files(run.folder) == files(whole.folder)
            assert (record["status"], record["epoch"]) == (expected["status"], expected["epoch"])
            assert record["tables_sha256"] == expected["tables_sha256"]
            assert not list(run.folder.glob(".*"))
    assert tried > 20


def test_a_failure_is_recorded_and_tried_again(tmp_path, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny(epochs=4))

    def stop(event):
        if isinstance(event, Epoch) and event.epoch == 2:
            raise OSError("no power")

    with run, pytest.raises(OSError, match="no power"):
        run.execute(lambda: Walk(4), stop)
    assert run.record()["status"] == "failed" and run.record()["message"] == "OSError: no power"
    with run:
        record = run.execute(lambda: Walk(4))
    assert record["status"] == "done" and record["message"] == ""
    assert [entry["from_epoch"] for entry in record["resumed"]] == [2]


def test_two_processes_never_share_a_directory(tmp_path, tiny):
    code = (
        "import sys, filelock\n"
        "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    run = Run(tmp_path, "cifar", "quick", tiny())
    run.folder.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(run.folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), run:
            pass
        holder.kill()  # a dead process holds nothing
    with run:
        pass


def test_a_run_has_a_name_of_its_own():
    plain = scale_settings("cifar", "short", "wn+mobn")
    assert variant("cifar", "short", plain) == "wn+mobn_lr0.003"
    changed = scale_settings("cifar", "short", "wn", lr=0.01, g_exp=3.0, noise_epochs=(1, 2))
    assert variant("cifar", "short", changed) == "wn_lr0.01_g_exp-3.0_noise_epochs-1-2"
    assert rundir.config("cifar", "short", plain)["hash"] != rundir.config("cifar", "paper", plain)["hash"]


def test_a_run_of_an_auto_encoder_has_a_name_that_begins_with_its_data_set():
    def name(scale: str, param: str, **changes: object) -> str:
        return variant("cvae", scale, scale_settings("cvae", scale, param, **changes))

    for scale in ("paper", "short", "quick"):
        assert name(scale, "wn") == name(scale, "wn", dataset="mnist", seed=9) == "mnist_wn_lr0.002"
        assert name(scale, "wn+mobn", dataset="cifar10") == "cifar10_wn+mobn_lr0.002"
    assert name("paper", "bn", lr=0.001, binarization="seeded") == "mnist_bn_lr0.001_binarization-seeded"
    assert name("quick", "normal", maps=(4, 8, 9), free_bits=0.5, polyak_epochs=2.5) == (
        "mnist_normal_lr0.002_maps-4-8-9_free_bits-0.5_polyak_epochs-2.5"
    )
    of_one = {"maps": (16,), "iaf_depth": 1}  # the defaults of cifar10 alone
    assert name("quick", "wn", dataset="cifar10", **of_one) == "cifar10_wn_lr0.002"
    assert name("quick", "wn", **of_one) == "mnist_wn_lr0.002_maps-16_iaf_depth-1"
    hashes = {
        rundir.config("cvae", "short", scale_settings("cvae", "short", "wn", **changes))["hash"]
        for changes in ({}, {"dataset": "cifar10"}, {"seed": 2}, {"binarization": "seeded"})
    }
    assert len(hashes) == 4


def test_a_run_of_draw_is_named_by_what_is_not_its_scales_default():
    assert variant("draw", "short", scale_settings("draw", "short", "wn+mobn", seed=3)) == "wn+mobn_lr0.0003"
    changed = scale_settings("draw", "quick", "wn", attention=False, time_steps=10)
    assert variant("draw", "quick", changed) == "wn_lr0.001_attention-False_time_steps-10"


def test_a_run_of_dqn_has_a_name_that_begins_with_its_game():
    def name(scale: str, param: str, **changes: object) -> str:
        return variant("dqn", scale, scale_settings("dqn", scale, param, **changes))

    for scale in ("paper", "short", "quick"):
        assert name(scale, "normal", seed=2) == "space_invaders_normal_lr0.0001"
        assert name(scale, "wn+mobn", game="seaquest") == "seaquest_wn+mobn_lr0.0003"
    changes = {"game": "enduro", "actors": 8, "checkpoint_replay": True}
    assert name("quick", "wn", **changes) == "enduro_wn_lr0.0003_actors-8_checkpoint_replay-True"


def test_generators_go_on_where_they_were():
    state = checkpoint.rng_state()
    first = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    checkpoint.set_rng_state(state)
    assert first == (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())


def test_cifar_in_a_run_and_again(tmp_path, images, tiny):
    run = Run(tmp_path, "cifar", "quick", tiny("wn", epochs=2))
    with run:
        record = run.execute(lambda: Cifar(tiny("wn", epochs=2), images, CPU))
    assert record["facts"]["eq3_residual"] < 1e-12 and record["facts"]["init_loss"] > 0
    assert without_seconds(run.folder / "metrics.csv")[0] == [
        *("epoch", "train_error", "test_error", "train_loss", "test_loss", "lr")
    ]
    before = files(run.folder)
    with run:
        assert run.execute(lambda: Cifar(tiny("wn", epochs=2), images, CPU))["status"] == "done"
    assert files(run.folder) == before


BOUNDS = ["epoch", "train_bound_nats", "test_bound_nats"]


@pytest.mark.parametrize(
    ("kind", "dataset", "settings", "name", "columns", "tables"),
    [
        (
            Cvae,
            "mnist",
            tiny_cvae("wn+mobn", "mnist", epochs=2),
            "cvae/mnist_wn+mobn_lr0.002",
            [*BOUNDS, "test_bound_nats_raw", "kl_nats", "reconstruction_nats"],
            {"init.csv": 1, "layers.csv": 3},
        ),
        (
            Cvae,
            "cifar10",
            tiny_cvae("normal", "cifar10", epochs=2),
            "cvae/cifar10_normal_lr0.002",
            [*BOUNDS, "test_bound_nats_raw", "kl_nats", "reconstruction_nats", "test_bits_per_dim"],
            {"init.csv": 1, "layers.csv": 3},
        ),
        (
            Draw,
            "mnist",
            tiny_draw("wn", epochs=2),
            "draw/wn_lr0.001",
            [*BOUNDS, "reconstruction_nats", "kl_nats", "gradient_norm"],
            {"kl_steps.csv": 2, "layers.csv": 3},
        ),
    ],
    ids=["cvae mnist", "cvae cifar10", "draw"],
)
def test_an_auto_encoder_in_a_run_and_again(tmp_path, kind, dataset, settings, name, columns, tables):
    run = Run(tmp_path, name.split("/")[0], "quick", settings)

    def load() -> Cvae | Draw:
        return kind(settings, make_pixels(dataset), CPU)

    with run:
        record = run.execute(load)
    facts = record["facts"]
    assert run.name.startswith(f"quick/{name}_epochs-2_")
    assert record["status"] == "done" and facts["data"] == f"random blobs for {dataset}"
    assert facts["eq3_residual"] < 1e-12 and facts["wn_is_bn_residual"] < 1e-12
    assert facts["parameters"] == sum(p.numel() for p in load().net.parameters())
    rows = without_seconds(run.folder / "metrics.csv")
    assert rows[0] == columns and len(rows) == 3
    for row in rows[1:]:
        value = dict(zip(columns, map(float, row), strict=True))
        assert value["test_bound_nats"] == pytest.approx(value["reconstruction_nats"] - value["kl_nats"])
        if dataset == "cifar10":
            assert value["test_bits_per_dim"] == pytest.approx(-value["test_bound_nats"] / (3072 * np.log(2)))
    start = -facts["init_loss"] if kind is Cvae else facts["start_bound_nats"]
    assert start < float(rows[1][1]) < float(rows[2][1]) < 0, "the training bound rises from where it began"
    assert {path.name for path in run.folder.glob("*.csv")} == {"metrics.csv", *tables}
    for table, epochs in tables.items():
        lines = (run.folder / table).read_text().splitlines()
        assert (len(lines) - 1) % epochs == 0 and len(set(lines)) == len(lines)
    before = files(run.folder)
    with run:
        assert run.execute(load)["status"] == "done"
    assert files(run.folder) == before


# ------------------------------------------------------------------------------- finished runs


@pytest.fixture
def finished(tmp_path):
    """A finished run of the made-up experiment under the name of an auto-encoder's."""
    run = Run(tmp_path / "results", "cvae", "quick", tiny_cvae(epochs=3))
    with run:
        run.execute(lambda: Walk(3))
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_facts_are_added_and_everything_else_is_kept(finished):
    before, record = contents(finished.folder), finished.record()
    place = float(files(finished.folder)["metrics.csv"].splitlines()[-1].split(",")[-1])

    def measure(walk: Walk) -> dict:
        assert walk.epoch == 3
        return {"log_likelihood_nats": -walk.place, "importance_samples": 3}

    added = {"log_likelihood_nats": -place, "importance_samples": 3}
    with finished:
        result = finished.add_facts(lambda: Walk(3), measure)
    assert result == finished.record() == record | {"facts": {"steps": 0} | added, "sha256": result["sha256"]}
    after = contents(finished.folder)
    assert {name for name in before if before[name] != after[name]} == {"run.json"} and before.keys() == after.keys()
    with finished:
        finished.add_facts(lambda: Walk(3), lambda _: {"importance_samples": 5})
    assert finished.record()["facts"] == {"steps": 0} | added | {"importance_samples": 5}


def test_a_measurement_that_fails_changes_nothing(finished):
    before = contents(finished.folder)

    def fails(_: Walk) -> dict:
        raise MemoryError("no more")

    with finished, pytest.raises(MemoryError, match="no more"):
        finished.add_facts(lambda: Walk(3), fails)
    assert contents(finished.folder) == before


def test_without_a_checkpoint_there_is_nothing_to_restore_or_measure(finished):
    (finished.folder / "checkpoint.pt").unlink()
    before, walk = contents(finished.folder), Walk(3)
    says = rf"^{finished.folder}: has no checkpoint\.pt \(checkpoints are not committed\); train the run here first$"
    with pytest.raises(UserError, match=says):
        finished.restore(walk)
    with finished, pytest.raises(UserError, match=says):
        finished.add_facts(lambda: walk, lambda _: {"importance_samples": 1})
    assert walk.epoch == 0 and contents(finished.folder) == before


def test_restore_goes_to_the_last_checkpoint(finished):
    walk = Walk(3)
    finished.restore(walk)
    assert (walk.epoch, f"{walk.place}") == (3, files(finished.folder)["metrics.csv"].splitlines()[-1].split(",")[-1])
    checkpoint.save_checkpoint(finished.folder, {"config_hash": "other"})
    with pytest.raises(UserError, match="of a run with other settings"):
        finished.restore(walk)


def test_a_run_of_before_a_setting_was_added_is_the_run_at_its_default(finished):
    earlier, name = finished.config["settings"] | {}, "v_norm_max"
    assert earlier.pop(name) is None
    config = rundir.config("cvae", "quick", finished.settings) | {"settings": earlier}
    digest = rundir.config_hash("cvae", config["scale"], earlier)
    (finished.folder / "config.json").write_text(json.dumps(config | {"hash": digest}))
    record = json.loads((finished.folder / "run.json").read_text()) | {"config_hash": digest}
    rundir.seal(record)
    (finished.folder / "run.json").write_text(json.dumps(record))
    again = Run(finished.folder.parents[3], "cvae", config["scale"], finished.settings)
    assert again.finished() == "done"
    with_another = dataclasses.replace(finished.settings, v_norm_max=0.5)
    other = Run(finished.folder.parents[3], "cvae", config["scale"], with_another)
    other.folder = finished.folder
    with pytest.raises(UserError, match=r"of a run with other settings \(v_norm_max\)"):
        other.finished()


def test_a_finished_run_is_opened_from_its_folder(finished, monkeypatch):
    def opens(folder: str | Path) -> None:
        run = open_run(Path(folder))
        assert (run.folder, run.name, run.experiment) == (finished.folder, finished.name, "cvae")
        assert run.settings == finished.settings and run.config == finished.config and run.finished() == "done"

    opens(finished.folder)
    monkeypatch.chdir(finished.folder.parents[4])
    opens(finished.folder.relative_to(Path.cwd()))
    monkeypatch.chdir(finished.folder)
    opens(".")
    opens(f"../{finished.folder.name}")
    monkeypatch.chdir(finished.folder.parents[2])
    opens(f"./cvae/../cvae/{finished.folder.parent.name}/{finished.folder.name}/")


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        ("cvae", {"dataset": "mnist"}),
        ("cvae", {"dataset": "cifar10"}),
        ("cvae", {"depths": (3, 1, 1), "v_norm_max": 5.0, "seed": 4}),
        ("draw", {}),
        ("draw", {"attention": False, "seed": 4}),
        ("dqn", {}),
        ("dqn", {"game": "seaquest", "checkpoint_replay": True, "seed": 4}),
    ],
)
@pytest.mark.parametrize("scale", ["paper", "short", "quick"])
def test_runs_of_all_settings_are_opened(tmp_path, scale, experiment, changes):
    """Tuples come back from JSON's lists, None from null and False from false."""
    for param in PARAMS:
        settings = scale_settings(experiment, scale, param, **changes)
        run = Run(tmp_path, experiment, scale, settings)
        run.folder.mkdir(parents=True)
        rundir.write_json(run.folder / "config.json", run.config)
        assert open_run(run.folder).settings == settings and open_run(run.folder).finished() is None


def test_a_folder_that_holds_no_run_is_none(tmp_path, finished):
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "none", tmp_path, finished.folder.parent):
        with pytest.raises(UserError, match=rf"^{folder}: holds no run \(no config\.json\); give a directory"):
            open_run(folder)
    with pytest.raises(UserError, match=r"run\.json"):
        open_run(finished.folder / "run.json")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\x00",
        "[]",
        "{}",
        '{"name": "another project\'s", "version": 2}',
        '{"experiment": "chess", "scale": "quick", "settings": {"param": "wn"}}',
        '{"experiment": "cvae", "scale": "large", "settings": {"param": "wn"}}',
        '{"experiment": "cvae", "scale": "quick", "settings": {}}',
        '{"experiment": "cvae", "scale": "quick", "settings": null}',
        '{"experiment": "cvae", "scale": "quick", "settings": []}',
        '{"experiment": "cvae", "scale": "quick", "settings": {"param": "wn", "lr": "fast"}}',
        '{"experiment": "cvae", "scale": "quick", "settings": {"param": "half"}}',
    ],
)
def test_foreign_json_is_named(finished, content):
    path = finished.folder / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"^{path}: ") as told:
        open_run(finished.folder)
    assert "\n" not in str(told.value)


def test_settings_of_another_version_are_told(finished):
    path = finished.folder / "config.json"
    config = json.loads(path.read_text())
    newer = {"settings": config["settings"] | {"momentum": 0.9}}
    older = {"settings": {name: value for name, value in config["settings"].items() if name != "free_bits"}}
    for changes, named in ((newer, "momentum"), (older, "free_bits")):
        content = config | changes
        content["hash"] = rundir.config_hash(config["experiment"], config["scale"], content["settings"])
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=named) as told:
            open_run(finished.folder)
        assert str(finished.folder) in str(told.value)


def test_a_moved_run_is_told_where_it_belongs(finished):
    old = finished.folder
    for new in (old.with_name("seed-2"), old.parent.with_name("mine") / old.name):
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
        with pytest.raises(UserError) as told:
            open_run(new)
        assert str(told.value) == f"{new}: its settings belong to {finished.folder}; move it there"
        old = new
    old.rename(finished.folder)
    assert open_run(finished.folder).finished() == "done"


def test_results_as_a_whole_may_move(finished, tmp_path):
    there = tmp_path / "archive/of/results"
    there.parent.mkdir(parents=True)
    (tmp_path / "results").rename(there)
    assert open_run(there / finished.folder.relative_to(tmp_path / "results")).finished() == "done"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 28, 56), (3, 32, 64)])
@pytest.mark.parametrize("count", [2, 5, 9, 64])
def test_pictures_are_grids_with_a_border(finished, shape, count):
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(8))
    (path,) = media.write_pictures(finished.folder, {"samples": images})
    assert path == finished.folder / "samples.png"
    _, high, wide = shape
    columns = next(n for n in range(1, count + 1) if n * n >= count)
    rows = (count - 1) // columns + 1
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.size == (columns * (wide + 2) + 2, rows * (high + 2) + 2)
        shown = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
    for n in range(count):
        top, left = (n // columns) * (high + 2) + 2, (n % columns) * (wide + 2) + 2
        assert (shown[:, top : top + high, left : left + wide] - images[n]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(shown[:, :2].unique(), shown[:, :, :2].unique()) and 0.4 < shown[0, 0, 0] < 0.6


def test_pictures_of_several_times_are_an_animation(finished):
    """Frames as the grids of PNG: grey levels and a red outline to within rounding, the last frame longer."""
    times, count, high = 4, 5, 28
    frames = torch.rand(times, count, 1, high, high, generator=torch.Generator().manual_seed(8)).repeat(1, 1, 3, 1, 1)
    for time_step in range(times):
        frames[time_step, :, :, time_step, :] = torch.tensor([1.0, 0.0, 0.0])[:, None]
    (path,) = media.write_pictures(finished.folder, {"drawing": frames})
    assert path == finished.folder / "drawing.gif" and not list(finished.folder.glob(".*.part"))
    shown = []
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.n_frames == times and picture.info["loop"] == 0
        for time_step in range(times):
            picture.seek(time_step)
            shown.append(picture.info["duration"])
            frame = np.array(picture.convert("RGB")).astype(int)
            (still,) = media.write_pictures(finished.folder, {"still": frames[time_step]})
            with Image.open(still) as grid:
                expected = np.array(grid).astype(int)
            red = (expected == (255, 0, 0)).all(2)
            assert red.sum() == count * high and (frame[red] == (255, 0, 0)).all()
            assert abs(frame - expected).max() <= 1
    assert shown == [100, 100, 100, 2000]
    one, alike = media.write_pictures(finished.folder, {"one": frames[:1], "alike": frames[:1].repeat(5, 1, 1, 1, 1)})
    for path, milliseconds in ((one, 2000), (alike, 2400)):
        with Image.open(path) as picture:
            assert (picture.n_frames, picture.info["duration"]) == (1, milliseconds)


@pytest.fixture
def run_of_games(tmp_path):
    """A run that films are written into."""
    with Run(tmp_path / "results", "dqn", "quick", tiny_dqn()) as run:
        yield run


@pytest.mark.parametrize("over", [True, False])
def test_a_film_is_the_screens_above_their_scores(run_of_games, over):
    high, wide = SCREEN
    palette = np.random.default_rng(8).integers(256, size=(128, 3), dtype=np.uint8)  # the console has 128 colours
    draw, scores = np.random.default_rng(9), [0, 5, 12_345, 12_345]
    screens = [palette[draw.integers(128, size=SCREEN)] for _ in scores[1:]]
    screens.append(screens[-1])
    scenes = [Scene(screens[k], k, float(scores[k]), over and k == 3) for k in range(4)]
    path, last = media.write_film(run_of_games.folder, iter(scenes), "space_invaders wn+mobn")
    assert path == run_of_games.folder / "game.gif" and last is scenes[-1] and not list(path.parent.glob(".*.part"))
    captions, shown = [], []
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.info["loop"] == 0
        for number in range(picture.n_frames):
            picture.seek(number)
            frame = np.array(picture.convert("RGB"))
            assert np.array_equal(frame[:high], screens[number]) and frame.shape[1] == wide
            captions.append(frame[high:].mean(2))
            shown.append(picture.info["duration"])
    assert shown == [70, 70, 70 + (2000 if over else 70)], "scenes that look alike are one frame, shown for longer"
    zero, five, large = captions
    for caption in captions:
        assert caption.max() > 250 and not caption[[0, -1]].any() and not caption[:, -1].any(), "all of it fits"
    differ = np.flatnonzero((abs(zero - five) > 20).any(0))
    assert 0 < len(differ) <= 8, "the same title, then another digit"
    assert not five[:, differ[-1] + 2 :].any() and large[:, differ[-1] + 2 :].max() > 250, "and then five of them"


def test_a_film_of_one_scene_is_a_picture(run_of_games):
    scene = Scene(np.full((*SCREEN, 3), 7, np.uint8), 0, 0.0, False)
    path, last = media.write_film(run_of_games.folder, [scene], "enduro bn")
    assert last is scene
    with Image.open(path) as picture:
        assert picture.n_frames == 1 and picture.size == (SCREEN[1], SCREEN[0] + media.CAPTION)


def test_pictures_are_written_whole(finished, monkeypatch):
    pictures = {name: torch.rand(4, 1, 28, 28) for name in ("samples", "reconstructions")}
    paths = media.write_pictures(finished.folder, pictures)
    assert paths == [finished.folder / "samples.png", finished.folder / "reconstructions.png"]
    assert not list(finished.folder.glob(".*.part"))
    before = contents(finished.folder)

    def killed(_: int) -> None:
        raise SystemExit

    monkeypatch.setattr(rundir.os, "fsync", killed)  # the process ends before the bytes are on the disk
    with pytest.raises(SystemExit):
        media.write_pictures(finished.folder, {"samples": torch.zeros(4, 1, 28, 28)})
    after = contents(finished.folder)
    assert after == before

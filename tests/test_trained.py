"""What is done with a trained run: evaluation, images of one's own, weights for publishing, export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_images, make_pixels, snapshot, tiny_run
from PIL import Image

from wnrepro import formats, results
from wnrepro.data.whitening import Zca
from wnrepro.errors import UserError
from wnrepro.experiments import cifar, experiment_class
from wnrepro.experiments.loop import Exported
from wnrepro.parameterization import layers
from wnrepro.runs import provenance
from wnrepro.runs.checkpoint import halved, load_checkpoint
from wnrepro.runs.run import Run, open_run

Command = Callable[..., tuple[int, str, str]]
MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw", "dqn")
SLOW = pytest.mark.slow
TESTED = {
    "cifar": {"test_error", "test_loss"},
    "cvae mnist": {"test_bound_nats", "test_bound_nats_raw", "kl_nats", "reconstruction_nats"},
    "cvae cifar10": {"test_bound_nats", "test_bound_nats_raw", "kl_nats", "reconstruction_nats", "test_bits_per_dim"},
    "draw": {"test_bound_nats", "kl_nats", "reconstruction_nats"},
    "dqn": {"episodes", "test_score", "test_score_max", "mean_q"},
}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """train(model, param, **changes) → the folder of a run of two epochs, whose experiment is then loaded as tiny."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": None, "dirty": None})
    monkeypatch.chdir(tmp_path)
    scaled = Zca(torch.zeros(3072, dtype=torch.float64), 2 * torch.eye(3072, dtype=torch.float64))
    monkeypatch.setattr(cifar, "load_zca", lambda *_: scaled)

    def make(model: str, param: str = "wn", **changes: Any) -> Path:
        experiment, settings, load = tiny_run(model, param, epochs=2, **changes)
        cls, part = experiment_class(experiment), model.split()[-1]
        if model != "dqn":
            data: Any = make_images() if model == "cifar" else make_pixels("cifar10" if part == "cifar10" else "mnist")
            monkeypatch.setattr(cls, "load", classmethod(lambda cls, settings, _, device: cls(settings, data, device)))
        with Run(tmp_path / "results", experiment, "quick", settings) as made:
            made.execute(load)
        return made.folder

    return make


# ------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("model", [*MODELS[:-1], pytest.param("dqn", marks=SLOW)])
def test_evaluation_repeats_the_last_row_and_writes_nothing(
    train: Callable[..., Path], run: Command, model: str
) -> None:
    folder = train(model, "wn+mobn", **({"polyak_epochs": 1.0} if model == "cifar" else {}))
    before = snapshot(Path())
    code, printed, error = run("evaluate", folder, "--json")
    found = json.loads(printed)
    assert (code, error, found["epoch"], found["weights"]) == (0, "", 2, "checkpoint.pt")
    assert found["metrics"] == found["recorded"] and found["metrics"].keys() == TESTED[model]
    code, printed, _ = run("evaluate", folder)
    assert code == 0 and all(name in printed for name in TESTED[model])
    assert snapshot(Path()) == before
    if model != "cifar":
        assert run("evaluate", folder, "--data", folder)[0] == 2


def test_run_without_weights_or_that_diverged_is_not_evaluated(train: Callable[..., Path], run: Command) -> None:
    folder = train("cvae mnist")
    (folder / "checkpoint.pt").unlink()
    before = snapshot(Path())
    assert run("evaluate", folder)[0] == run("sample", folder)[0] == run("export", folder, "--format", "torch")[0] == 2
    assert snapshot(Path()) == before


# ------------------------------------------------------------------------------- images of one's own


def paint(path: Path, seed: int, size: tuple[int, int] = (32, 32), **how: Any) -> np.ndarray:
    """Write a picture of noise, and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return pixels


def test_folders_of_classes_have_an_error_rate(train: Callable[..., Path], run: Command) -> None:
    folder = train("cifar")
    names = ("0", "1", "3", "9")
    x = torch.stack([torch.from_numpy(paint(Path("mine") / name / "a.png", k)) for k, name in enumerate(names)])
    (Path("mine") / "0" / "notes.txt").write_text("no image")
    with torch.no_grad():
        experiment = cifar.Cifar.load(tiny_run("cifar")[1], None, torch.device("cpu"))
        state = json.loads((folder / "config.json").read_text())["hash"]
        experiment.load_state_dict((load_checkpoint(folder / "checkpoint.pt", state) or {})["experiment"])
        white = 2 * (x.permute(0, 3, 1, 2).double() - 127.5) / 128
        expected = experiment.net.eval()(white.float()).softmax(1)
    code, printed, error = run("evaluate", folder, "--data", "mine", "--json")
    found = json.loads(printed)
    classes = expected.argmax(1).tolist()
    assert (code, error, found["resized"]) == (0, "", 0)
    assert [one["class"] for one in found["images"]] == [str(number) for number in classes]
    assert [one["probability"] for one in found["images"]] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    wrong = [str(number) != name for number, name in zip(classes, names, strict=True)]
    assert found["error"] == sum(wrong) / 4
    assert {n: (c["images"], c["errors"]) for n, c in found["classes"].items() if c["images"]} == {
        name: (1, bad) for name, bad in zip(names, wrong, strict=True)
    }
    assert f"error {sum(wrong) / 4:.2%}" in run("evaluate", folder, "--data", "mine")[1]


def test_loose_images_of_any_kind_and_size_have_a_class_each(train: Callable[..., Path], run: Command) -> None:
    folder = train("cifar")
    paint(Path("mine/a.png"), 1)
    paint(Path("mine/large.jpg"), 2, (200, 100), quality=95)
    paint(Path("mine/tiny.bmp"), 3, (1, 1))
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save("mine/deep.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save("mine/clear.PNG")
    Image.new("P", (32, 32)).save("mine/palette.gif")
    code, printed, _ = run("evaluate", folder, "--data", "mine", "--json")
    found = json.loads(printed)
    assert code == 0 and found["resized"] == 3 and "error" not in found
    assert {one["file"] for one in found["images"]} == {path.name for path in Path("mine").iterdir()}
    assert all(0.1 <= one["probability"] <= 1 for one in found["images"])
    assert "3 images cropped" in run("evaluate", folder, "--data", "mine")[1]


@pytest.mark.parametrize("kind", ["none", "empty", "text", "cut", "mixed", "unknown", "file"])
def test_folder_without_readable_images_is_refused(train: Callable[..., Path], run: Command, kind: str) -> None:
    folder = train("cifar")
    mine = Path("mine")
    if kind == "file":
        mine.write_text("")
    elif kind != "none":
        mine.mkdir()
    if kind in ("text", "cut", "mixed"):
        paint(mine / "a.png", 1)
    if kind == "text":
        (mine / "b.jpg").write_text("text")
    if kind == "cut":
        (mine / "a.png").write_bytes((mine / "a.png").read_bytes()[:900])
    if kind in ("mixed", "unknown"):
        paint(mine / ("cat" if kind == "mixed" else "unicorn") / "a.png", 1)
    before = snapshot(Path())
    code, printed, error = run("evaluate", folder, "--data", "mine")
    assert (code, printed, error.count("\n")) == (2, "", 1) and snapshot(Path()) == before


# ------------------------------------------------------------------------------- weights for publishing


@pytest.mark.parametrize("model", ["cvae mnist", pytest.param("dqn", marks=SLOW)])
def test_published_weights_replace_the_checkpoint_for_all_but_training(
    train: Callable[..., Path], run: Command, model: str
) -> None:
    folder = train(model, "bn")
    full = (folder / "checkpoint.pt").stat().st_size
    assert run("export", folder, "--format", "weights") == (0, f"{folder / 'weights.pt'}\n", "")
    assert (folder / "weights.pt").stat().st_size < full / 3
    assert results.check(folder.parents[3], "quick") == []
    (folder / "checkpoint.pt").unlink()
    before = snapshot(folder)
    found = json.loads(run("evaluate", folder, "--json")[1])
    raw = {"test_bound_nats_raw"}
    assert found["weights"] == "weights.pt" and found["metrics"].keys() == TESTED[model] - raw
    if model != "dqn":  # where a rounded weight may change an action
        assert found["metrics"] == pytest.approx(found["recorded"], rel=2e-3)
    words = ("sample", folder, "--count", 4) if model != "dqn" else ("watch", folder, "--seconds", 1)
    pictures = {"samples.png", "reconstructions.png"} if model != "dqn" else {"game.gif"}
    assert run(*words)[0] == run(*words, "--out", "new/here")[0] == 0
    named = Path(f"{folder.parents[1].name}_{folder.parent.name}_seed-1")
    assert {path.name for path in named.iterdir()} == pictures == {path.name for path in Path("new/here").iterdir()}
    assert run(*words, "--out", folder / "run.json")[0] == 2
    experiment, settings, load = tiny_run(model, "bn", epochs=2)
    record = json.loads((folder / "run.json").read_text())
    with Run(folder.parents[3], experiment, "quick", settings) as again:
        again.write_record(record | {"status": "running"})
        with pytest.raises(UserError, match=r"checkpoint\.pt"):
            again.execute(load)
        again.write_record(record)
    assert snapshot(folder) | {"lock": b""} == before | {"lock": b""}
    content = bytearray((folder / "weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "weights.pt").write_bytes(content)
    assert len(results.check(folder.parents[3], "quick")) == 1 and run("evaluate", folder)[0] == 2
    (folder / "weights.pt").unlink()
    assert len(results.check(folder.parents[3], "quick")) == 1


def test_training_on_removes_weights_of_an_earlier_epoch(train: Callable[..., Path], run: Command) -> None:
    folder = train("cvae mnist")
    run("export", folder, "--format", "weights")
    experiment, settings, load = tiny_run("cvae mnist", epochs=2)
    with Run(folder.parents[3], experiment, "quick", settings) as again:
        record = json.loads((folder / "run.json").read_text())
        again.write_record(record | {"status": "running"})
        assert "weights_sha256" not in again.execute(load)
    assert not (folder / "weights.pt").exists() and results.check(folder.parents[3], "quick") == []


def test_small_and_large_numbers_keep_their_precision() -> None:
    ordinary, tiny, large = torch.randn(100), 1e-7 * torch.randn(100), torch.tensor([1e6])
    assert halved(ordinary).dtype == torch.half and halved(torch.zeros(3)).dtype == torch.half
    assert halved(tiny).dtype == halved(large).dtype == torch.float32 and halved(torch.tensor(3)).dtype == torch.int64


def test_unwritable_run_is_shown_elsewhere(
    train: Callable[..., Path], run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train("cvae mnist")
    monkeypatch.setattr("wnrepro.trained.access", lambda *_: False)
    before = snapshot(folder)
    code, printed, _ = run("sample", folder, "--count", 2)
    assert code == 0 and snapshot(folder) == before
    assert all(Path(line).is_file() and not Path(line).is_absolute() for line in printed.splitlines())


def test_a_run_at_work_is_refused_before_its_weights_are_loaded(
    train: Callable[..., Path], run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train("cvae mnist")
    monkeypatch.setattr("wnrepro.trained.Trained.load", lambda _: pytest.fail("loaded"))
    with open_run(folder):
        for words in (("sample", folder), ("export", folder, "--format", "torch")):
            code, _, error = run(*words)
            assert code == 2 and str(folder) in error


def test_a_folder_made_for_nothing_is_removed(train: Callable[..., Path], run: Command) -> None:
    folder = train("cvae mnist")
    (folder / "checkpoint.pt").write_bytes(b"")
    for words in (("--out", "new"), ("--out", folder.parent)):
        assert run("sample", folder, *words)[0] != 0
    assert not Path("new").exists() and folder.is_dir()


def test_evaluation_needs_no_table(train: Callable[..., Path], run: Command) -> None:
    folder = train("cvae mnist")
    (folder / "metrics.csv").unlink()
    code, printed, _ = run("evaluate", folder, "--json")
    assert code == 0 and json.loads(printed)["recorded"] == {} and json.loads(printed)["metrics"]


# ------------------------------------------------------------------------------- export


def enlarge(experiment: Any) -> None:
    """Change every weight and running average, so that outputs depend on all of them."""
    draw = torch.Generator().manual_seed(5)
    for net in (experiment.net, *([experiment.average.module] if experiment.average is not None else [])):
        for _, layer in layers(net):
            for value in (*layer.parameters(), *layer.buffers()):
                value.data.copy_(value + 0.3 * torch.rand(value.shape, generator=draw))


def exported(model: str, param: str, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """What is exported of an experiment with changed weights."""
    images = make_images()
    if model == "cifar":
        scaled = Zca(torch.zeros(3072, dtype=torch.float64), 2 * torch.eye(3072, dtype=torch.float64))
        x = (20 * images.test_x + 127).clamp(0, 255).to(torch.uint8)
        images = type(images)(images.train_x, images.train_y, scaled.apply(x), images.test_y, "")
        monkeypatch.setattr(cifar, "load_zca", lambda *_: scaled)
        monkeypatch.setattr(cifar, "load_images", lambda *_: type(images)(x, images.test_y, x, images.test_y, ""))
    name, settings, load = tiny_run(model, param)
    experiment = cifar.Cifar(settings, images, torch.device("cpu")) if name == "cifar" else load()
    enlarge(experiment)
    result: Exported = experiment.exported(None)
    assert not list(layers(result.model)) and len(result.inputs) == 100 and result.expected.std() > 1e-3
    return result


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("param", ["normal", "bn", "wn", "wn+mobn"])
def test_exported_layers_are_the_same_function(model: str, param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = exported(model, param, monkeypatch)
    with torch.no_grad():
        found = one.model.eval()(one.inputs)
    torch.testing.assert_close(found, one.expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", ["torch", "onnx", "safetensors"])
@pytest.mark.parametrize("model", [pytest.param(model, marks=SLOW) for model in MODELS])
def test_files_hold_the_same_function_for_any_number_of_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, form: str
) -> None:
    for name in formats.NEEDS.get(form, ()):
        pytest.importorskip(name)
    one, path = exported(model, "bn", monkeypatch), tmp_path / "model"
    inputs, expected = one.inputs[:3], one.expected[:3]
    difference = formats.write_model(one, form, path, {"run": "mine"})
    tolerance = 1e-5 * one.expected.abs().max().item()  # a tenth of what `write_model` allows
    assert 0 <= difference <= tolerance
    with torch.no_grad():
        found = formats.load(path.read_bytes(), form, one.model)(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert path.stat().st_size < 2 * sum(v.numel() * 4 for v in one.model.state_dict().values()) + 700_000


@pytest.mark.usefixtures("unchecked")
def test_torch_export_by_command_needs_only_torch(train: Callable[..., Path], run: Command) -> None:
    folder = train("cvae mnist")
    code, printed, error = run("export", folder, "--format", "torch", "--out", "mine.pt2")
    assert (code, error, printed.splitlines()[0]) == (0, "", "mine.pt2")
    files = {"wnrepro.json": ""}
    model = torch.export.load("mine.pt2", extra_files=files).module()
    assert model(torch.zeros(5, 3)).shape == (5, 1, 28, 28)
    about = json.loads(files["wnrepro.json"])
    assert (about["epoch"], about["input"], about["output"]) == ("2", "noise", "images")
    assert about["config_hash"] == json.loads((folder / "config.json").read_text())["hash"]
    assert run("export", folder, "--format", "torch")[0] == 0 and (folder / "model.pt2").is_file()


@pytest.mark.usefixtures("unchecked")
def test_other_outputs_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = exported("cvae mnist", "wn", monkeypatch)
    wrong = one._replace(expected=one.expected + 1e-3)
    (tmp_path / "model").write_text("earlier")
    with pytest.raises(formats.DifferentError) as error:
        formats.write_model(wrong, "torch", tmp_path / "model", {})
    assert error.value.exit_code == 1 and snapshot(tmp_path) == {"model": b"earlier"}


@pytest.mark.parametrize(
    "words",
    [
        *("", "--format torch --tensorboard board", "--out x", "--format weights --out x", "--tensorboard b --out x"),
        *("--format torch --out results", "--format torch --out none/x", "--format keras"),
    ],
)
def test_contradictory_exports_are_refused(train: Callable[..., Path], run: Command, words: str) -> None:
    folder = train("cvae mnist")
    before = snapshot(Path())
    assert run("export", folder, *words.split())[0] == 2 and snapshot(Path()) == before


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_missing_package_is_named(
    train: Callable[..., Path], run: Command, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    folder = train("cvae mnist")
    monkeypatch.setitem(__import__("sys").modules, formats.NEEDS[form][-1], None)
    before = snapshot(Path())
    code, _, error = run("export", folder, "--format", form)
    assert code == 2 and "wnrepro[export]" in error and snapshot(Path()) == before


def test_copied_run_is_published_by_its_files(train: Callable[..., Path], run: Command) -> None:
    folder = train("draw")
    run("export", folder, "--format", "weights")
    there = Path("elsewhere/published") / folder.relative_to(folder.parents[3])
    shutil.copytree(folder, there, ignore=shutil.ignore_patterns("checkpoint*.pt", "lock"))
    assert json.loads(run("evaluate", there, "--json")[1])["weights"] == "weights.pt"
    assert run("sample", there, "--count", 2, "--out", "pictures")[0] == 0
    assert {path.name for path in Path("pictures").iterdir()} == {"samples.png", "reconstructions.png", "drawing.gif"}

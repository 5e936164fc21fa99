"""The cross-checks: their loops learn, and their networks and optimizers agree with the package's."""

import csv
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro import optim
from wnrepro.data.whitening import Zca
from wnrepro.experiments import cifar
from wnrepro.experiments.vae import MnistVae
from wnrepro.parameterization import data_dependent_init, layers
from wnrepro.settings import scale_settings
from wnrepro.tools import crosscheck

TINY: dict[str, dict[str, Any]] = {
    "cifar": {"width": 8, "batch_size": 10, "init_examples": 60},
    "cvae": {"maps": (4, 4, 4), "depths": (1, 1, 1), "hidden": 20, "latents": 4, "iaf_width": 12, "init_examples": 60},
    "draw": {"time_steps": 4, "units": 16, "latents": 4, "g_start": 1.0, "lr": 0.01},
}
PARAM = {"cifar": "wn+mobn", "cvae": "wn", "draw": "wn"}


def tiny(experiment: str, param: str = "") -> Any:
    changes = {"dataset": "mnist"} if experiment == "cvae" else {}
    changes |= TINY[experiment] | {"train_examples": 100, "test_examples": 100, "batch_size": 10, "epochs": 3}
    return scale_settings(experiment, "short", param or PARAM[experiment], **changes)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny files of both data sets, of noise around a pattern; without whitening, which takes seconds."""
    rng, digits, pictures = np.random.default_rng(0), tmp_path / "binarized_mnist", tmp_path / "cifar-10-batches-py"
    digits.mkdir()
    pictures.mkdir()
    for part, count in {"train": 80, "valid": 20, "test": 100}.items():
        images = rng.random((count, 784)) < np.linspace(0, 1, 784) ** 2
        np.savetxt(digits / f"binarized_mnist_{part}.amat", images, "%d")
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        classes = rng.integers(10, size=100 if name == "test_batch" else 20)
        images = np.clip(rng.normal(25 * classes[:, None], 20, (len(classes), 3072)), 0, 255).astype(np.uint8)
        (pictures / name).write_bytes(pickle.dumps({b"data": images, b"labels": classes.tolist()}))
    whitening = torch.zeros(3072, dtype=torch.float64), torch.eye(3072, dtype=torch.float64)
    monkeypatch.setattr(crosscheck, "zca", lambda parts, epsilon: whitening)
    return tmp_path


@pytest.mark.parametrize("experiment", ["cifar", "cvae", "draw"])
def test_a_loop_learns_and_is_compared(experiment: str, data: Path) -> None:
    run, out = data / "variant" / "seed-1", data / "out" / "one"
    run.mkdir(parents=True)
    config = {"experiment": experiment, "settings": vars(tiny(experiment))}
    (run / "config.json").write_text(json.dumps(config))
    crosscheck.crosscheck(experiment, run, data, out, None, seed=1)
    rows, record = crosscheck.table(out / "metrics.csv"), json.loads((out / "run.json").read_text())
    written = json.loads((out / "config.json").read_text())
    assert written == json.loads((run / "config.json").read_text()) | {"settings": written["settings"]}
    assert written["settings"]["seed"] == 1 and written["settings"]["epochs"] == 3
    objective = [row["train_loss"] if experiment == "cifar" else -row["train_bound_nats"] for row in rows]
    assert len(rows) == 3 and np.isfinite([[*row.values()] for row in rows]).all()
    assert objective[2] < objective[0] and record["status"] == "done" and record["seed"] == 1
    for number, shift in enumerate((-0.25, 0.25), 1):  # our curves: those of the cross-check, moved
        ours = run.with_name(f"seed-{number}")
        ours.mkdir(exist_ok=True)
        (ours / "run.json").write_text(json.dumps({"status": "done"}))
        with (ours / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({name: value + shift for name, value in row.items()} for row in rows)
    text = crosscheck.compare(data / "out")
    name, value = list(rows[2].items())[2]
    assert f"| {name} | 3 | {value:.4f} | {value:.4f} | +0.0000 | +0.00 |" in text.replace("-0.00", "+0.00")
    (run / "config.json").write_text(json.dumps(config | {"settings": config["settings"] | {"precision": "bf16"}}))
    with pytest.raises(SystemExit, match="no cross-check"):
        crosscheck.crosscheck(experiment, run, data, out, None, seed=1)


def test_a_row_has_the_standard_errors() -> None:
    row = crosscheck.compared("test_error", 2, [0.4, 0.5, 0.6], 0.3, 100)
    assert row == "| test_error | 2 | 0.5000 | 0.3000 | -0.2000 | -1.73 | 0.0678 |"
    assert crosscheck.compared("kl_nats", 1, [2.0], 3.0, 100) == "| kl_nats | 1 | 2.0000 | 3.0000 | +1.0000 | – | – |"


def test_whitening_is_ours() -> None:
    images = torch.randint(256, (300, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = Zca.fit(images, 1e-5, "cpu")
    mean, matrix = crosscheck.zca([part.flatten(1) for part in images.split(100)], 1e-5)
    torch.testing.assert_close(mean, ours.mean)
    torch.testing.assert_close(matrix, ours.matrix)


def pairs(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield each layer of ours with that of the cross-check."""
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    other = [layer for layer in theirs.modules() if isinstance(layer, kinds)]
    return zip((layer for _, layer in layers(ours)), other, strict=True)


def check_alike(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Copy our v, run both inits, and compare g and w."""
    for mine, other in pairs(ours, theirs):
        other.parametrizations.weight.original1.data.copy_(mine.v.data)
    for initialize, net in ((data_dependent_init, ours), (crosscheck.initialize, theirs)):
        torch.manual_seed(0)
        with torch.no_grad():
            initialize(net, x)
    for mine, other in pairs(ours, theirs):
        torch.testing.assert_close(other.parametrizations.weight.original0.flatten(), mine.g, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.weight, mine.w(), rtol=1e-4, atol=1e-5)


def check_trains_alike(
    steps: tuple[Callable[[], Tensor], Callable[[], Tensor]], nets: tuple[nn.Module, nn.Module], tolerance: float
) -> None:
    """Train both networks with the same noise, and compare each update's loss."""
    for update in range(5):
        losses = []
        for step, net in zip(steps, nets, strict=True):
            torch.manual_seed(update)
            net.zero_grad()
            losses.append(step().item())
        assert losses[1] == pytest.approx(losses[0], rel=tolerance), update


@pytest.mark.parametrize("param", ["wn", "wn+mobn"])
def test_the_classifier_is_ours(param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "DROPOUT", 0.0)  # its random numbers come in another order
    settings = tiny("cifar", param)
    torch.manual_seed(1)
    ours, theirs = cifar.Net(settings).double(), crosscheck.classifier(settings).double()
    for layer in theirs.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x, y = torch.randn(30, 3, 32, 32, dtype=torch.float64), torch.randint(10, (30,))
    check_alike(ours, theirs, x)
    optimizers = optim.Adam(ours.parameters(), 1e-4), crosscheck.Adam(theirs.parameters())

    def our_step() -> Tensor:
        loss = F.cross_entropy(ours(x), y)
        loss.backward()
        optimizers[0].step()
        return loss

    def their_step() -> Tensor:
        loss = F.cross_entropy(theirs(x), y)
        loss.backward()
        optimizers[1].step(1e-4, beta1=0.9)
        return loss

    check_trains_alike((our_step, their_step), (ours, theirs), tolerance=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours.eval()(x), rtol=1e-6, atol=1e-6)


def test_the_vae_is_ours() -> None:
    settings = tiny("cvae")
    torch.manual_seed(1)
    ours, theirs = MnistVae(settings), crosscheck.Vae(settings)
    x = (torch.rand(40, 1, 28, 28) < 0.5 * torch.rand(40, 1, 1, 1)).float()
    check_alike(ours, theirs, x)
    our_adamax, our_average = optim.Adamax(ours.parameters(), 1e-3), optim.PolyakAverage(ours, 4)
    (adamax, uncorrected), average = crosscheck.adamax(theirs, 1e-3), crosscheck.polyak(theirs, 4)

    def our_step() -> Tensor:
        log_p_x, kl = ours(x)
        loss = kl.sum(1).mean() - log_p_x.mean()
        loss.backward()
        our_adamax.step()
        our_average.update_parameters(ours)
        return loss

    def their_step() -> Tensor:
        log_p_x, kl = theirs(x)
        loss = (kl - log_p_x).mean()
        loss.backward()
        adamax.step()
        uncorrected.step()
        average.update_parameters(theirs)
        return loss

    check_trains_alike((our_step, their_step), (ours, theirs), tolerance=1e-4)
    for both in ((ours, theirs), (our_average.module, average.module)):
        bounds = []
        for net in both:
            torch.manual_seed(9)
            with torch.no_grad():
                log_p_x, kl = net(x)
            bounds.append(log_p_x - (kl if kl.ndim == 1 else kl.sum(1)))
        torch.testing.assert_close(bounds[1], bounds[0], rtol=1e-4, atol=1e-3)

"""Bundled sets, binarizations of MNIST, the real sets where they are."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import small_data
from torch import Tensor

from wnrepro.data import images
from wnrepro.experiments.checks import check_pixels
from wnrepro.settings import scale_settings

REAL = os.environ.get("WNREPRO_DATA", "")


def needs(name: str, file: str) -> pytest.MarkDecorator:
    missing = not REAL or not (Path(REAL) / file).is_file()
    return pytest.mark.skipif(missing, reason=f"the real {name} is not under WNREPRO_DATA")


def digest(*parts: Tensor) -> str:
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def rows(x: Tensor) -> list[list[int]]:
    return x.flatten(1).tolist()


def test_bundled_set() -> None:
    found = images.load_images("bundled", None)
    assert (len(found.train_x), len(found.test_x)) == images.SIZES["bundled"]
    assert found.train_x.shape[1:] == (3, 32, 32) and found.train_x.dtype == torch.uint8
    assert all(torch.bincount(y, minlength=10).min() > 0.07 * len(y) for y in (found.train_y, found.test_y))
    assert images.load_images("bundled", None) is found


def test_bundled_halves_share_no_digit_and_no_pixel() -> None:
    train, test = images.bundled_material()
    digits = {digit.tobytes() for digit in train.digits}
    assert not digits & {digit.tobytes() for digit in test.digits}
    assert len(train.digits) + len(test.digits) == 1797
    # Mark every place of the photographs that a half may use: the halves are views of one array.
    base = train.photos.base
    assert base is not None and test.photos.base is base
    train.photos[...], test.photos[...] = 1, 2
    assert (train.photos == 1).all() and (test.photos == 2).all()
    assert train.photos.shape[2] + test.photos.shape[2] <= base.shape[2] - 32


def test_composed_images_are_made_of_their_half_alone_and_always_the_same() -> None:
    train, _ = images.bundled_material()
    first, again = (images.compose(train, 20, np.random.default_rng(1)) for _ in range(2))
    assert all(map(torch.equal, first, again))
    train.photos[...] = 77
    x, _ = images.compose(dataclasses.replace(train, digits=0 * train.digits), 20, np.random.default_rng(1))
    assert (x.float().mean((1, 2, 3)) - 77).abs().max() < 1


def test_bundled_digits() -> None:
    found = images.bundled_digits()
    assert (len(found.train_x), len(found.test_x)) == images.SIZES["digits"]
    for x in (found.train_x, found.test_x):
        assert x.shape[1:] == (1, 28, 28) and set(x.unique().tolist()) == {0, 1}
    expected = "748140d8681f3cf421474ebbdcf40a128044d8794dda7dad76c056fd40decc6b"  # on every machine
    assert digest(found.train_x, found.test_x) == expected

    def inks(x: Tensor) -> set[bytes]:
        """The digits, wherever they lie: each cut to its ink."""
        cut = (image[image.any(1)][:, image.any(0)] for image in x[:, 0].numpy())
        return {bytes(ink.shape) + ink.tobytes() for ink in cut}

    assert len(inks(found.train_x)) > 1000
    assert not inks(found.train_x) & inks(found.test_x)


def test_binarized_mnist_is_train_and_then_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = small_data(monkeypatch, "binarized_mnist", tmp_path)
    train, valid, test = (
        [[int(digit) for digit in line.split()] for line in content.splitlines()] for content in contents.values()
    )
    found = images.binarized_mnist(tmp_path)
    assert found.train_x.shape == (8, 1, 28, 28) and found.train_x.dtype == torch.uint8
    assert rows(found.train_x) == train + valid
    assert rows(found.test_x) != test and sorted(rows(found.test_x)) == sorted(test)
    assert torch.equal(found.test_x, images.binarized_mnist(tmp_path).test_x), "one order"


def test_seeded_mnist_draws_each_pixel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_data(monkeypatch, "mnist", tmp_path)
    found = images.seeded_mnist(tmp_path)
    assert found.train_x.shape == (6, 1, 28, 28) and found.train_x.dtype == torch.uint8
    assert found.test_x.shape == (3, 1, 28, 28)
    for x in (found.train_x, found.test_x):
        black, white, grey = x.flatten(1).split(len(x) // 3)
        assert (black == 0).all() and (white == 1).all(), "0 is never ink, 255 always"
        assert abs(grey.float().mean() - 64 / 255) < 4 * (0.25 * 0.75 / grey.numel()) ** 0.5
    assert not torch.equal(found.train_x[4], found.train_x[5]), "each image has its own draw"
    assert torch.equal(found.train_x, images.seeded_mnist(tmp_path).train_x)


def vae(dataset: str, data: str, binarization: str | None) -> Any:
    settings: Any = scale_settings("cvae", "short", "wn", dataset=dataset, data=data, binarization=binarization)
    return dataclasses.replace(settings, train_examples=6, test_examples=2, batch_size=2)


def test_load_pixels_takes_the_first_images_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dataset in ("mnist", "binarized_mnist"):
        small_data(monkeypatch, dataset, tmp_path)
    x = torch.randint(256, (80, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    small = images.Images(x[:60], torch.zeros(60), x[60:], torch.zeros(20), "small")
    monkeypatch.setattr(images, "cifar10", lambda _: small)
    draw: Any = scale_settings("draw", "quick", "wn")
    draw = dataclasses.replace(draw, train_examples=6, test_examples=2, batch_size=2)
    for settings, expected in (
        (vae("mnist", "real", "larochelle"), images.binarized_mnist(tmp_path)),
        (vae("mnist", "real", "seeded"), images.seeded_mnist(tmp_path)),
        (vae("cifar10", "real", None), small),
        (vae("cifar10", "bundled", None), images.bundled()),
        (vae("mnist", "bundled", None), images.bundled_digits()),
        (draw, images.bundled_digits()),
    ):
        if expected is not small:
            check_pixels(settings, tmp_path, ("batch_size",))
        found = images.load_pixels(settings, tmp_path)
        assert torch.equal(found.train_x, expected.train_x[:6]) and torch.equal(found.test_x, expected.test_x[:2])
        assert found.source == expected.source


@pytest.mark.slow
@needs("binarized MNIST", "binarized_mnist/binarized_mnist_train.amat")
def test_real_binarized_mnist() -> None:
    found = images.binarized_mnist(Path(REAL))
    assert (len(found.train_x), len(found.test_x)) == images.SIZES["mnist"]
    assert set(found.train_x.unique().tolist()) == set(found.test_x.unique().tolist()) == {0, 1}
    for x in (found.train_x, found.test_x):
        assert x.float().mean().item() == pytest.approx(0.1307, abs=0.003)
    for part, place in (("train", 0), ("valid", 50_000)):
        with (Path(REAL) / f"binarized_mnist/binarized_mnist_{part}.amat").open() as file:
            assert rows(found.train_x[place : place + 1]) == [[int(digit) for digit in file.readline().split()]]
    # In the file of test images the 980 zeros come first: they have no ink in the very middle.
    middle = found.test_x[:, 0, 13:15, 13:15].float()
    assert middle[:1000].mean().item() == pytest.approx(middle.mean().item(), abs=0.05)


@pytest.mark.slow
@needs("MNIST", "MNIST/raw/train-images-idx3-ubyte")
def test_real_seeded_mnist() -> None:
    found = images.seeded_mnist(Path(REAL))
    assert (len(found.train_x), len(found.test_x)) == images.SIZES["mnist"]
    expected = "01e3b9eb8997b9451f6fc11cc2be212410747ff913b4a4241ffbf7ebe914853d"  # on every machine
    assert digest(found.train_x, found.test_x) == expected


@pytest.mark.slow
@needs("CIFAR-10", "cifar-10-batches-py/data_batch_1")
def test_real_cifar10() -> None:
    found = images.load_images("cifar10", Path(REAL))
    assert found.train_x.shape == (50_000, 3, 32, 32) and found.test_x.shape == (10_000, 3, 32, 32)
    assert torch.bincount(found.train_y).tolist() == [5000] * 10
    assert torch.bincount(found.test_y).tolist() == [1000] * 10
    assert found.train_y[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    # The channels' well-known means: planes are red, green, blue, in this order.
    means = found.train_x.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    assert images.load_images("cifar10", Path(REAL)) is found, "loaded once a process"

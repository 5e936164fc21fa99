"""Images as tensors: CIFAR-10, binarized MNIST, and bundled sets that need no download.

Pixels are uint8, N×3×32×32 in 0..255 or N×1×28×28 in 0..1. The input of the classifiers is `(x − 127.5) / 128`,
ZCA-whitened (§5.1). The input of the autoencoders is the pixels.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wnrepro.data.files import data_root, require
from wnrepro.data.sizes import SIZES
from wnrepro.settings import CifarSettings, CvaeSettings, DrawSettings


@dataclass(frozen=True)
class Images:
    """Labelled images: x (N, 3, 32, 32), y int64 (N,) in 0..9, and `source`, their description."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    source: str


@dataclass(frozen=True)
class Pixels:
    """Images without labels, uint8: (N, 1, 28, 28) in 0..1 or (N, 3, 32, 32) in 0..255. `source` describes them."""

    train_x: Tensor
    test_x: Tensor
    source: str


SEED = 1602_07868


def load_images(dataset: str, data_dir: Path | None) -> Images:
    """Load the data set `cifar10` or `bundled`, once per process."""
    return bundled() if dataset == "bundled" else cifar10(data_root(data_dir))


def cifar10(data_dir: Path | None) -> Images:
    """Load CIFAR-10 (50,000 + 10,000 images) from torchvision's files. Raises UserError if a checksum is wrong."""
    return _cifar10(require("cifar10", data_dir))


@functools.lru_cache(maxsize=1)
def _cifar10(root: Path) -> Images:
    from torchvision.datasets import CIFAR10

    def tensors(train: bool) -> tuple[Tensor, Tensor]:
        part = CIFAR10(root, train=train)
        x = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        return torch.from_numpy(x), torch.tensor(part.targets)

    return Images(*tensors(train=True), *tensors(train=False), source="CIFAR-10, md5 verified")


def binarized_mnist(data_dir: Path | None) -> Pixels:
    """Load Larochelle's fixed binarization of MNIST (60,000 + 10,000 images). Raises UserError if a checksum is wrong.

    The training images are his training and then his validation images. His test file is sorted by digit; here the test
    images are in a fixed random order, so that the first ones represent all.
    """
    root = require("binarized_mnist", data_dir)

    def read(part: str) -> Tensor:
        """Read lines of 784 digits, 0 or 1, each followed by a space or the end of the line."""
        text = np.fromfile(root / f"binarized_mnist/binarized_mnist_{part}.amat", np.uint8)
        return torch.from_numpy(text.reshape(-1, 1, 28, 28, 2)[..., 0] - ord("0"))

    train, test = torch.cat([read("train"), read("valid")]), read("test")
    test = test[np.random.RandomState(SEED).permutation(len(test))]
    return Pixels(train, test, "MNIST, Larochelle's fixed binarization, sha256 verified")


def seeded_mnist(data_dir: Path | None) -> Pixels:
    """Load MNIST (60,000 + 10,000 images) and draw each pixel once, by a fixed seed, with probability grey / 255.

    Raises UserError if a checksum is wrong.
    """
    from torchvision.datasets.mnist import read_image_file

    root = require("mnist", data_dir)
    rng = np.random.RandomState(SEED)  # gives the same numbers in all versions of numpy

    def draw(half: str) -> Tensor:
        grey = read_image_file(str(root / f"MNIST/raw/{half}-images-idx3-ubyte")).numpy()[:, None]
        return torch.from_numpy((rng.randint(255, size=grey.shape, dtype=np.uint8) < grey).astype(np.uint8))

    source = f"MNIST, binarized once by seed {SEED} (drawn with probability grey/255), md5 verified"
    return Pixels(draw("train"), draw("t10k"), source)


def load_pixels(settings: CvaeSettings | DrawSettings, data_dir: Path | None) -> Pixels:
    """Load the first images of each half of the settings' data set. Raises UserError if its files are incomplete."""
    s = settings
    images: Images | Pixels
    if _dataset(s) == "cifar10":
        images = load_images("cifar10" if s.data == "real" else "bundled", data_dir)
    elif s.data == "bundled":
        images = bundled_digits()
    else:
        images = binarized_mnist(data_dir) if s.binarization == "larochelle" else seeded_mnist(data_dir)
    return Pixels(images.train_x[: s.train_examples], images.test_x[: s.test_examples], images.source)


def _dataset(settings: CvaeSettings | DrawSettings) -> str:
    return settings.dataset if isinstance(settings, CvaeSettings) else "mnist"


def random_images(settings: CifarSettings) -> Images:
    """Return 20 minibatches of noise, on which a training step takes as long as on photographs."""
    torch.manual_seed(0)
    count = max(20 * settings.batch_size, settings.init_examples)
    x, y = torch.randn(count, 3, 32, 32), torch.randint(10, (count,))
    return Images(x, y, x[:0], y[:0], "random")


def random_pixels(settings: CvaeSettings | DrawSettings) -> Pixels:
    """Return 20 minibatches of noise, black and white or in colour."""
    torch.manual_seed(0)
    shape, values = ((3, 32, 32), 256) if _dataset(settings) == "cifar10" else ((1, 28, 28), 2)
    x = torch.randint(values, (20 * max(settings.batch_size, 25), *shape), dtype=torch.uint8)
    return Pixels(x, x[:0], "random")


# ---------------------------------------------------------------------------------- bundled images


@dataclass(frozen=True)
class Material:
    """The sources of a half of the bundled set: digits (n, 8, 8) in 0..1, labels, photos (2, 427, w, 3)."""

    digits: np.ndarray
    labels: np.ndarray
    photos: np.ndarray


def bundled_material() -> tuple[Material, Material]:
    """Load the material of the training and test halves: different digits, different columns of the photographs.

    Some columns between the two are unused.
    """
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    images = digits.images / 16
    photos = np.stack(load_sample_images().images)  # china.jpg and flower.jpg
    return (
        Material(images[:1400], digits.target[:1400], photos[:, :, :480]),
        Material(images[1400:], digits.target[1400:], photos[:, :, 512:640]),
    )


@functools.lru_cache(maxsize=1)
def bundled() -> Images:
    """Make a ten-class data set that needs no download: scikit-learn's digits, blended over crops of photographs.

    The images are always the same. Results on them cannot be compared with the paper's.
    """
    rng = np.random.default_rng(SEED)
    material = zip(bundled_material(), SIZES["bundled"], strict=True)
    (train_x, train_y), (test_x, test_y) = [compose(half, size, rng) for half, size in material]
    source = "bundled: scikit-learn's digits over crops of its sample photographs"
    return Images(train_x, train_y, test_x, test_y, source)


def compose(material: Material, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Make `count` images and labels: a digit in a warm colour over a crop, with random colour, place and contrast.

    The crop is magnified from 8×8 pixels to 32×32 and is therefore smooth. The digit is magnified from 8×8 to 24×24 and
    then sharpened. Whitening gives all frequencies the same variance, so a digit over texture would almost disappear.
    """
    chosen = rng.integers(len(material.digits), size=count)
    digits = _interpolation(8, 24) @ material.digits[chosen] @ _interpolation(8, 24).T
    digits = np.clip(4 * (digits - 0.5) + 0.5, 0, 1) * rng.uniform(0.8, 1, size=(count, 1, 1))
    colour = rng.integers([200, 120, 0], [256, 200, 60], size=(count, 3))
    down, right = rng.integers(2, 7, size=(2, count))

    photo = rng.integers(len(material.photos), size=count)
    _, height, width, _ = material.photos.shape
    top, left = rng.integers(height - 7, size=count), rng.integers(width - 7, size=count)
    window = np.arange(8)
    crops = material.photos[
        photo[:, None, None], (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None]
    ]
    stretch = _interpolation(8, 32)

    x = np.empty((count, 3, 32, 32), np.uint8)
    for n in range(count):
        ink = np.zeros((32, 32))
        ink[down[n] : down[n] + 24, right[n] : right[n] + 24] = digits[n]
        crop = stretch @ crops[n].transpose(2, 0, 1) @ stretch.T
        x[n] = np.rint(crop + ink * (colour[n, :, None, None] - crop))
    return torch.from_numpy(x), torch.from_numpy(material.labels[chosen]).long()


@functools.lru_cache(maxsize=1)
def bundled_digits() -> Pixels:
    """Make binary 28×28 images that need no download: scikit-learn's 8×8 digits, magnified to 20×20, in random places.

    The images are always the same. No test digit is a training digit. The bound cannot be compared with the paper's.
    """
    rng = np.random.default_rng(SEED)

    def place(digits: np.ndarray, count: int) -> Tensor:
        grey = _interpolation(8, 20) @ digits[rng.integers(len(digits), size=count)] @ _interpolation(8, 20).T
        ink = grey > 0.5 - 1e-9  # 0.5 is ink, whatever the rounding
        down, right = rng.integers(2, 7, size=(2, count))
        x = np.zeros((count, 1, 28, 28), np.uint8)
        for n in range(count):
            x[n, 0, down[n] : down[n] + 20, right[n] : right[n] + 20] = ink[n]
        return torch.from_numpy(x)

    material = zip(bundled_material(), SIZES["digits"], strict=True)
    train_x, test_x = [place(half.digits, size) for half, size in material]
    return Pixels(train_x, test_x, "bundled: scikit-learn's digits, magnified and binarized")


def _interpolation(small: int, large: int) -> np.ndarray:
    """Compute the large×small matrix of linear interpolation along one side of an image."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(small)))

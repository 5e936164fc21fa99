"""ZCA whitening of images (§5.1), fitted once and stored in the user's cache folder."""

import contextlib
import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wnrepro.data.files import cache_folder, data_root
from wnrepro.data.images import Images, load_images
from wnrepro.errors import DiskError
from wnrepro.runs.directory import write_atomic
from wnrepro.settings import CifarSettings

CHECKSUM = 32  # bytes of sha256 at the start of a stored whitening
LOCK_SECONDS = 300.0  # longest wait for another process that fits the same whitening: ten times the usual duration


@dataclass(frozen=True)
class Zca:
    """ZCA whitening (x − `mean`)·`matrix`, in float64; `matrix` is symmetric."""

    mean: Float[Tensor, " D"]
    matrix: Float[Tensor, "D D"]

    @staticmethod
    def fit(x: UInt8[Tensor, "N ..."], epsilon: float = 1e-5, device: torch.device | str = "cpu") -> "Zca":
        """Fit the whitening V (Λ + ε)^-½ Vᵀ of images x with the covariance V Λ Vᵀ.

        The covariance divides by N, not by N − 1 (authors' code). It sums the integers x − 128 without rounding: sums
        of a block of 1024 images stay within 2²⁴ (exact in float32), sums of all images within 2⁵³ (exact in float64).
        """
        x = x.flatten(1)
        count, size = x.shape
        device = torch.device(device)
        exact = torch.float32 if device.type == "cpu" else torch.float64  # tf32's sums are not exact
        total = torch.zeros(size, dtype=torch.float64, device=device)
        square = torch.zeros(size, size, dtype=torch.float64, device=device)
        for block in x.split(1024):
            centred = block.to(device, exact) - 128
            total += centred.sum(0)
            square += centred.T @ centred
        mean = total / count
        covariance = square.div_(count).sub_(torch.outer(mean, mean)).div_(128**2)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        matrix = (vectors / torch.sqrt(eigenvalues.clamp(min=0) + epsilon)) @ vectors.T
        return Zca((mean + 0.5) / 128, matrix)

    def apply(self, x: UInt8[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        """Whiten images on any device to float32 on this whitening's device."""
        white = torch.empty(x.shape, dtype=torch.float32, device=self.mean.device)
        for source, target in zip(x.split(1024), white.split(1024), strict=True):
            pixels = (source.flatten(1).to(self.mean.device, torch.float64) - 127.5) / 128
            target.copy_(((pixels - self.mean) @ self.matrix).view_as(target))
        return white


class Whitening(nn.Module):
    """A whitening as a layer, in float32: images (N, 3, H, W) in 0..1 → whitened images."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, zca: Zca) -> None:
        super().__init__()
        self.register_buffer("mean", zca.mean.float())
        self.register_buffer("matrix", zca.matrix.float())

    def forward(self, x: Tensor) -> Tensor:
        pixels = (255 * x - 127.5) / 128
        white: Tensor = (pixels.flatten(1) - self.mean) @ self.matrix
        return white.view_as(x)


def fit_cached(x: Tensor, epsilon: float, device: str) -> Zca:
    """Fit a whitening, or read it from the user's cache folder, where its key is a hash of the images.

    If several processes need the same whitening, one fits it and the others wait. A damaged file is replaced. If the
    file cannot be written, the whitening is not stored.
    """
    key = f"{epsilon!r} {torch.device(device).type}"
    digest = hashlib.sha256(x.numpy().tobytes() + key.encode()).hexdigest()[:16]
    path = cache_folder() / f"whitening-{digest}.pt"
    if zca := _read_cached(path, device):
        return zca
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock", timeout=LOCK_SECONDS))
        if zca := _read_cached(path, device):
            return zca
        zca, content = Zca.fit(x, epsilon, device), io.BytesIO()
        torch.save({"mean": zca.mean.cpu(), "matrix": zca.matrix.cpu()}, content)
        with contextlib.suppress(OSError, DiskError):
            write_atomic(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())
        return zca


def _read_cached(path: Path, device: str) -> Zca | None:
    """Read a whitening that `fit_cached` stored. Return None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content[:CHECKSUM] != hashlib.sha256(content[CHECKSUM:]).digest():
        return None
    return Zca(**torch.load(io.BytesIO(content[CHECKSUM:]), map_location=device, weights_only=True))


def load_whitened(settings: CifarSettings, data_dir: Path | None, device: torch.device | str) -> Images:
    """Load and whiten the first images of each half of the settings' data set. Images x are float32 on `device`.

    The whitening is fitted to all training images of the set. The last result is cached for the next call.
    """
    s = settings
    return _whitened(s.dataset, data_root(data_dir), s.zca_epsilon, s.train_examples, s.test_examples, str(device))


def load_zca(settings: CifarSettings, data_dir: Path | None, device: torch.device | str) -> Zca:
    """Return the whitening of the settings' data set."""
    return fit_cached(load_images(settings.dataset, data_dir).train_x, settings.zca_epsilon, str(device))


@functools.lru_cache(maxsize=1)
def _whitened(dataset: str, root: Path, epsilon: float, train_examples: int, test_examples: int, device: str) -> Images:
    images = load_images(dataset, root)
    zca = fit_cached(images.train_x, epsilon, device)
    return Images(
        zca.apply(images.train_x[:train_examples]),
        images.train_y[:train_examples].to(device),
        zca.apply(images.test_x[:test_examples]),
        images.test_y[:test_examples].to(device),
        images.source,
    )

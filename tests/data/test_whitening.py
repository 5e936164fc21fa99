"""ZCA whitening against its definition; the fitted one is kept, once, whatever happens to its file."""

import dataclasses
import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wnrepro.data import whitening
from wnrepro.data.images import Images, load_images
from wnrepro.data.whitening import Zca
from wnrepro.settings import scale_settings

REAL = Path(os.environ.get("WNREPRO_DATA", ""))


def noise(count: int = 60) -> Tensor:
    return torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def plain_zca(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    flat = (x.reshape(len(x), -1).astype(np.float64) - 127.5) / 128
    centred = flat - flat.mean(0)
    u, s, _ = np.linalg.svd(centred.T @ centred / len(x))
    return flat.mean(0), u @ np.diag(1 / np.sqrt(s + epsilon)) @ u.T


def check_zca(x: np.ndarray, epsilon: float, rtol: float) -> tuple[Zca, np.ndarray]:
    """The fitted whitening, and its definition's images in float64."""
    mean, matrix = plain_zca(x, epsilon)
    zca = Zca.fit(torch.from_numpy(x), epsilon)
    np.testing.assert_allclose(zca.mean, mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(zca.matrix, matrix, rtol=rtol, atol=rtol * np.abs(matrix).max())
    return zca, ((x.reshape(len(x), -1) - 127.5) / 128 - mean) @ matrix


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 3000), epsilon=st.sampled_from([1e-5, 1e-2, 1.0]))
def test_zca_is_its_definition(seed: int, count: int, epsilon: float) -> None:
    x = np.random.default_rng(seed).integers(256, size=(count, 3, 3, 2), dtype=np.uint8)
    zca, white = check_zca(x, epsilon, 1e-7)
    found = zca.apply(torch.from_numpy(x))
    assert found.dtype == torch.float32 and found.shape == x.shape
    np.testing.assert_allclose(found.reshape(count, -1), white, rtol=1e-5, atol=1e-5 * np.abs(white).max())


def test_zca_of_extreme_pixels_is_exact() -> None:
    x = np.zeros((5000, 1, 1, 2), np.uint8)
    x[0] = 255  # every other product is 128², the largest: a rounded sum would show in the tiny variance
    check_zca(x, 1e-5, 1e-9)


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py/data_batch_1").is_file(), reason="the real CIFAR-10 is not under WNREPRO_DATA"
)
def test_zca_of_the_real_training_set() -> None:
    """The covariance of all 50,000 whitened images is the identity up to ε (§5.1)."""
    x = load_images("cifar10", REAL).train_x
    zca = Zca.fit(x)
    total, square = torch.zeros(3072, dtype=torch.float64), torch.zeros(3072, 3072, dtype=torch.float64)
    for block in x.split(2000):
        white = zca.apply(block).flatten(1)
        total += white.double().sum(0)
        square += white.T @ white
    mean = total / len(x)
    assert mean.abs().max() < 1e-4
    # W = (C + ε)^-½ commutes with C, so the whitened covariance is W·C·W = I − ε·W², in whichever basis.
    expected = torch.eye(3072, dtype=torch.float64) - 1e-5 * zca.matrix @ zca.matrix
    torch.testing.assert_close(square / len(x) - torch.outer(mean, mean), expected, atol=1e-3, rtol=0)


def test_whitened_takes_the_first_images_of_each_half(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(80)
    small = Images(pixels[:60], torch.arange(60) % 10, pixels[60:], torch.arange(20) % 10, "small")
    monkeypatch.setattr(whitening, "load_images", lambda dataset, data_dir: small)
    settings: Any = scale_settings("cifar", "quick", "wn", zca_epsilon=1e-2)
    settings = dataclasses.replace(settings, train_examples=30, test_examples=10)
    whitening._whitened.cache_clear()
    found = whitening.load_whitened(settings, None, "cpu")
    zca = Zca.fit(pixels[:60], 1e-2)
    torch.testing.assert_close(found.train_x, zca.apply(pixels[:30]))
    torch.testing.assert_close(found.test_x, zca.apply(pixels[60:70]))
    assert found.train_y.tolist() == [n % 10 for n in range(30)] and len(found.test_y) == 10
    assert found.source == "small"
    assert whitening.load_whitened(settings, None, torch.device("cpu")) is found
    whitening._whitened.cache_clear()


def test_whitening_is_fitted_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, by images and ε; a damaged file is replaced, and a disk without room does no harm."""
    fits, fit, x = list[Any](), Zca.fit, noise()

    def counted(*words: Any) -> Zca:
        fits.append(words)
        return fit(*words)

    monkeypatch.setattr(Zca, "fit", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fitted(x: Tensor = x, epsilon: float = 1e-2) -> int:
        found, expected = whitening.fit_cached(x, epsilon, "cpu"), fit(x, epsilon)
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.matrix, expected.matrix)
        return len(fits)

    assert [fitted(), fitted(), fitted(x + 1), fitted(epsilon=0.1), fitted(), fitted(epsilon=0.1)] == [1, 1, 2, 3, 3, 3]
    for path in (tmp_path / "wnrepro").glob("*.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert [fitted(), fitted()] == [4, 4]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [fitted(), fitted()] == [5, 6]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert fitted() == 7
    assert [path.suffix for path in (tmp_path / "full/wnrepro").iterdir()] == [".lock"]


def test_one_of_eight_concurrent_processes_fits_the_whitening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait, and read the same. Each thread has its own lock, as processes do."""
    fits, fit, together, x = [], Zca.fit, threading.Barrier(8), noise()

    def slow(*words: Any) -> Zca:
        fits.append(words)
        time.sleep(0.5)
        return fit(*words)

    def fitted(_: int) -> Zca:
        together.wait()
        return whitening.fit_cached(x, 1e-2, "cpu")

    monkeypatch.setattr(Zca, "fit", slow)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fitted, range(8)))
    assert len(fits) == 1 and all(torch.equal(one.matrix, found[0].matrix) for one in found)

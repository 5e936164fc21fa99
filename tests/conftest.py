"""Small random images and small settings that several test modules share."""

from collections.abc import Iterator

import pytest
import torch

from wnrepro.data import Images
from wnrepro.settings import CifarSettings, scale_settings


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tests' tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_images() -> Images:
    """200 training and 100 test images of noise around a colour that tells their class."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, 32, 32, generator=draw)
    y = torch.randint(10, (300,), generator=draw)
    x += torch.randn(10, 3, 1, 1, generator=draw)[y]
    return Images(x[:200], y[:200], x[200:], y[200:], "random images")


@pytest.fixture(scope="session")
def images() -> Images:
    return make_images()


@pytest.fixture
def tiny():
    """Settings of a run that takes a second: tiny(param, **changes)."""

    def make(param: str = "wn", **changes: object) -> CifarSettings:
        small = {"epochs": 4, "train_examples": 200, "test_examples": 100, "width": 4, "batch_size": 20}
        small |= {"init_examples": 100, "noise_epochs": (2,), "noise_minibatches": 5, "decay_from": 2}
        return scale_settings("cifar", "quick", param, **(small | changes))

    return make

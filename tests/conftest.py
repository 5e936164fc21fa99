"""Small random images and small settings that several test modules share; --soak, which tries far more."""

import signal
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch

from wnrepro.data import Images, Pixels
from wnrepro.settings import CifarSettings, DqnSettings, DrawSettings, Settings, scale_settings

COUNTED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="try as much as LOG.md reports: an hour, not a minute")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTED] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background command ignores Ctrl-C
    hypothesis.settings.register_profile("soak", max_examples=20_000, deadline=None)
    hypothesis.settings.register_profile("steady", derandomize=True)  # what has passed once passes again
    hypothesis.settings.load_profile("soak" if config.getoption("--soak") else "steady")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests of robustness have counted with --soak: the figures of LOG.md."""
    for line in config.stash[COUNTED] if config.getoption("--soak") else []:
        terminalreporter.write_line(line)


@pytest.fixture
def times(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """times(few, many): how often to try something, many times with --soak."""
    return lambda few, many: many if pytestconfig.getoption("--soak") else few


@pytest.fixture
def count(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """count("200 kills, 0 rows lost"): a line at the end of the tests with --soak."""
    return pytestconfig.stash[COUNTED].append


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


def make_pixels(dataset: str) -> Pixels:
    """200 training and 100 test images for the auto-encoders: smooth blobs, binary or in colour."""
    shape, scale = ((1, 7, 7), 4) if dataset == "mnist" else ((3, 8, 8), 4)
    grey = torch.rand(300, *shape, generator=torch.Generator().manual_seed(0))
    grey = torch.nn.functional.interpolate(grey, scale_factor=scale, mode="bilinear")
    x = (grey > 0.6 if dataset == "mnist" else 255 * grey).to(torch.uint8)
    return Pixels(x[:200], x[200:], f"random blobs for {dataset}")


def tiny_cvae(param: str = "wn", dataset: str = "mnist", **changes: object) -> Settings:
    """Settings of an auto-encoder whose epochs take a moment."""
    small = {"epochs": 4, "train_examples": 200, "test_examples": 100, "batch_size": 20, "init_examples": 60}
    small |= {"latents": 3, "iaf_width": 6}
    small |= {"maps": (2, 4, 4), "depths": (1, 1, 1), "hidden": 12} if dataset == "mnist" else {"maps": (6,)}
    return scale_settings("cvae", "quick", param, **({"dataset": dataset} | small | changes))


def tiny_draw(param: str = "wn", **changes: object) -> DrawSettings:
    """Settings of a DRAW whose epochs take a moment."""
    small = {"epochs": 4, "train_examples": 200, "test_examples": 100, "batch_size": 20}
    settings = scale_settings("draw", "quick", param, **(small | {"time_steps": 3, "units": 8, "latents": 3} | changes))
    assert isinstance(settings, DrawSettings)
    return settings


def tiny_dqn(param: str = "wn", **changes: object) -> DqnSettings:
    """Settings of a DQN whose epochs take a second or two."""
    small = {"game": "breakout", "epochs": 2, "epoch_steps": 120, "test_steps": 20, "test_games": 2}
    small |= {"replay_steps": 400, "replay_start": 100, "batch_size": 8, "target_every": 10, "epsilon_steps": 100}
    small |= {"epsilon_test": 0.5, "maps": (2, 4, 4), "hidden": 16, "held_out": 20, "init_examples": 40}
    settings = scale_settings("dqn", "quick", param, **(small | changes))
    assert isinstance(settings, DqnSettings)
    return settings


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

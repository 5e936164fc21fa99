"""The paper's scale with few epochs, so that made-up runs of it are small."""

import pytest

from wnrepro.settings import SETTINGS


@pytest.fixture(autouse=True)
def small_paper_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = {"epochs": 20, "decay_from": 10, "noise_epochs": (20,), "noise_minibatches": 200}
    monkeypatch.setitem(SETTINGS["cifar"].scales, "paper", cifar)
    of_cifar10 = SETTINGS["cvae"].part_scales["cifar10"]
    monkeypatch.setitem(of_cifar10, "paper", of_cifar10["paper"] | {"epochs": 6})
    monkeypatch.setitem(SETTINGS["cvae"].scales, "paper", {"epochs": 6})
    monkeypatch.setitem(SETTINGS["draw"].scales, "paper", {"epochs": 10, "time_steps": 2})
    monkeypatch.setitem(SETTINGS["dqn"].scales, "paper", {"epochs": 4, "epoch_steps": 1000})

"""The public programs beside our steps, where they are installed: the same work, and they train."""

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import make_pixels, timed_small

from wnrepro.bench import public
from wnrepro.bench.counting import WHOLE, count_work
from wnrepro.bench.ours import our_steps
from wnrepro.bench.public import PUBLIC, OneByOne, missing, public_steps
from wnrepro.settings import SETTINGS

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("experiment", PUBLIC)
def test_step_does_the_work_of_ours_and_trains(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs up to 2 %: pythae's autoregressive steps have no context."""
    if not public_steps(experiment):
        pytest.skip(missing(experiment))
    monkeypatch.setenv("MASTER_ADDR", "localhost")  # pythae sets both
    monkeypatch.setenv("MASTER_PORT", "12345")
    changes: dict[str, Any] = {"maps": (32, 64, 64)} if experiment == "dqn" else {"maps": (8, 16, 16)}
    settings = dataclasses.replace(timed_small(experiment), lr=0.001, **changes)
    monkeypatch.setattr(public, "random_pixels", lambda _: make_pixels("mnist"))  # unlike noise learnable
    (make,) = public_steps(experiment).values()
    theirs, ours = make(settings, CPU), our_steps(settings, CPU)
    assert theirs.counted is not None and ours.counted is not None
    work, our_work = count_work(theirs.counted), count_work(ours.counted)
    assert work["flops"] == pytest.approx(our_work["flops"], rel=0.02) and theirs.updates == ours.updates
    assert 0.3 < work["bytes"] / our_work["bytes"] < 3
    theirs.timed[WHOLE]()
    if experiment == "dqn":  # from one minibatch: few random steps earn a reward
        sample = functools.cache(importlib.import_module("stable_baselines3.common.buffers").ReplayBuffer.sample)
        monkeypatch.setattr("stable_baselines3.common.buffers.ReplayBuffer.sample", sample)
    step: Callable[[], Any] = theirs.counted
    losses = [float(step()) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_absent_programs_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert set(PUBLIC) < set(SETTINGS)
    for experiment in SETTINGS:
        assert not public_steps(experiment)
        assert ("pip install" in missing(experiment)) == (experiment in PUBLIC)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert list(public_steps("cvae")) == ["pythae"] and not missing("cvae") and not public_steps("draw")


def test_an_epoch_of_one_minibatch_is_the_next_minibatch() -> None:
    loader: Any = torch.utils.data.DataLoader(list(range(6)), batch_size=2)
    one = OneByOne(loader)
    assert [[batch.tolist() for batch in one] for _ in range(4)] == [[[0, 1]], [[2, 3]], [[4, 5]], [[0, 1]]]
    assert len(one) == 1 and one.dataset is loader.dataset

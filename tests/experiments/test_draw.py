"""DRAW: attention against plain loops, training, pictures, compiled time steps."""

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from factories import make_pixels, tiny_draw
from torch import Tensor

from wnrepro.compiling import Compilation
from wnrepro.events import Epoch
from wnrepro.experiments import draw
from wnrepro.experiments.draw import GREYS, SIZE, Draw, Grid, boxes, filter_banks
from wnrepro.parameterization import Parameterized, layers

CPU = torch.device("cpu")


def make(param: str = "wn", **changes: object) -> Draw:
    return Draw(tiny_draw(param, **changes), make_pixels("mnist"), CPU)


def epochs(experiment: Draw) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------- attention

INSIDE = [0.1, -0.1, -0.7, -0.2, 0.4]  # a window that lies in the image as a whole
FAR = [6.0, -9.0, 0.2, 0.0, -0.3]
NARROW = [0.03, -0.12, -0.9, -9.0, 0.0]


def plain_filters(centre: float, log_delta: float, log_variance: float, count: int) -> list[list[float]]:
    """Gregor et al., eq. 19 to 26, along one axis, number by number."""
    filters = []
    for i in range(count):
        mu = (centre + 1) / 2 * 28 + (i - count / 2 + 0.5) * 27 / (count - 1) * math.exp(log_delta)
        values = [math.exp(-((a - mu) ** 2) / (2 * math.exp(log_variance))) for a in range(28)]
        filters.append([value / (sum(values) + 1e-4) for value in values])
    return filters


def test_filter_banks_equal_plain_loops() -> None:
    """Also outside the image, where a filter is nothing and has no gradient; a box goes through its outermost ones."""
    windows = random(6, 2, 5)
    windows[0], windows[1, 0], windows[1, 1], windows[2, 0] = (torch.tensor(w) for w in (INSIDE, FAR, NARROW, NARROW))
    pixel = torch.arange(SIZE, dtype=torch.float64)
    for which, (f_y, f_x, gamma) in enumerate(filter_banks(windows, Grid((2, 5)).double())):
        count = (2, 5)[which]
        assert f_y.shape == f_x.shape == (6, count, SIZE) and gamma.shape == (6, 1)
        for n, (y, x, log_delta, log_variance, log_gamma) in enumerate(windows[:, which].tolist()):
            for bank, centre in ((f_y, y), (f_x, x)):
                expected = torch.tensor(plain_filters(centre, log_delta, log_variance, count), dtype=torch.float64)
                close(bank[n], expected, 1e-8)  # also a filter almost outside the image
            assert gamma[n].item() == pytest.approx(math.exp(log_gamma))
        y, x = ((bank[0] @ pixel) / bank[0].sum(1) for bank in (f_y, f_x))
        close(boxes(windows[:1, which])[0], torch.stack([y[0], y[-1], x[0], x[-1]]), 1e-3)
    assert (boxes(windows[:, 0, :0]) == -math.inf).all()

    far = torch.tensor([[FAR], [[*FAR[:3], -6.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    ((f_y, f_x, _),) = filter_banks(far, Grid((5,)).double())
    ((f_y + f_x) * random(*f_y.shape)).sum().backward()
    assert not f_y.any() and not f_x.any() and not far.grad.any()


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize("attention", [True, False])
def test_weights_are_computed_once_a_step(monkeypatch: pytest.MonkeyPatch, attention: bool) -> None:
    experiment, weight, computed = make("wn", attention=attention), Parameterized.w, Counter[Any]()

    def counted(layer: Parameterized) -> Tensor:
        computed[layer] += 1
        return weight(layer)

    monkeypatch.setattr(Parameterized, "w", counted)
    experiment.step(torch.arange(20))
    assert computed == Counter(layer for _, layer in layers(experiment.net)) and len(computed) == 6


def test_rows_have_the_bound_and_its_parts_and_testing_changes_nothing() -> None:
    experiment = make("bn", epochs=2, lr=0.01)
    for number, epoch in enumerate(epochs(experiment), start=1):
        row, steps = epoch.metrics, epoch.tables["kl_steps"]
        assert row["test_bound_nats"] == pytest.approx(row["reconstruction_nats"] - row["kl_nats"])
        assert [(step["epoch"], step["time_step"]) for step in steps] == [(number, t) for t in (1, 2, 3)]
        assert sum(step["kl_nats"] for step in steps) == pytest.approx(row["kl_nats"])
        assert min(step["kl_nats"] for step in steps) >= 0 and row["kl_nats"] > 1e-6
    assert experiment.facts["start_bound_nats"] == pytest.approx(-784 * math.log(2), rel=0.01)
    before, state = torch.get_rng_state(), copy.deepcopy(experiment.state_dict())
    reconstruction, kls = experiment.test()
    assert (reconstruction, sum(kls)) == (row["reconstruction_nats"], row["kl_nats"])
    experiment.pictures(3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in experiment.state_dict()["net"].items():
        assert torch.equal(value, state["net"][name])


def test_bf16_starts_near_fp32() -> None:
    gradients = []
    for precision in ("fp32", "bf16"):
        experiment = make(precision=precision)
        bound, _ = experiment.step(torch.arange(20))
        gradients.append([bound, *(p.grad for p in experiment.net.parameters())])
    for full, low in zip(*gradients, strict=True):
        assert low.dtype == torch.float32 and (low - full).norm() < 0.05 * full.norm()
    assert any(not torch.equal(low, full) for low, full in zip(*gradients, strict=True))


@pytest.mark.parametrize("attention", [True, False])
def test_pictures_show_samples_originals_beside_reconstructions_and_a_drawing(attention: bool) -> None:
    experiment = make(lr=0.01, attention=attention)
    for k in range(10):
        experiment.step(torch.arange(20 * k, 20 * k + 20))
    pictures = experiment.pictures(6, seed=3)
    samples, reconstructions, drawing = (pictures[name] for name in ("samples", "reconstructions", "drawing"))
    assert samples.shape == (6, 1, SIZE, SIZE) and reconstructions.shape == (6, 1, SIZE, 2 * SIZE)
    assert torch.equal(reconstructions[..., :SIZE], experiment.test_x[:6].float())
    assert all(images.min() >= 0 and images.max() <= 1 for images in pictures.values())

    scale = drawing.shape[-1] // SIZE
    assert drawing.shape == (3 + 1, 6, 3, scale * SIZE, scale * SIZE)
    red = (drawing == torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).all(2).flatten(2).any(2)
    assert torch.equal(red, torch.tensor([attention] * 3 + [False])[:, None].expand(4, 6))
    middles = drawing[..., scale // 2 :: scale, scale // 2 :: scale]
    assert (middles[-1] - samples).abs().max() <= 0.5 / GREYS + 1e-6
    assert not torch.equal(middles[0, :, 1], middles[1, :, 1])

    for again, seed in ((True, 3), (False, 4)):
        others = experiment.pictures(6, seed)
        assert all(torch.equal(others[name], images) == again for name, images in pictures.items())
    many = experiment.pictures(101, seed=3)
    assert len(many["samples"]) == 101 and len(many["reconstructions"]) == 100 and many["drawing"].shape[1] < 101


# ------------------------------------------------------------------------------- devices and compilers


def test_checkpoint_of_another_device_leaves_the_optimizer_to_this_one() -> None:
    """`capturable` is of the device: a CPU's checkpoint would make a GPU's step impossible to capture."""
    made = make()
    made.step(torch.arange(20))
    for device in ("cpu", "cuda"):
        state = made.state_dict()
        state["optimizer"]["param_groups"][0]["capturable"] = device == "cpu"
        made.device = torch.device(device)
        made.load_state_dict(state)
        assert made.optimizer.param_groups[0]["capturable"] == (device == "cuda")


def test_time_step_is_compiled_where_training_is_long_and_a_compiler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(draw, "compiled", lambda *asked_for: asked.append(asked_for) or Compilation(refused="no"))
    for epochs, expected in ((1666, 0), (1667, 1)):
        made = make(epochs=epochs)  # 10 minibatches of 3 time steps an epoch
        assert len(asked) == expected and made.net.compiled is None and made.facts["compiled"] is False
    assert made.facts["not_compiled"] == "no" and next(made.train()).text == "trains without torch.compile: no"
    state = made.state_dict()
    made.load_state_dict(state | {"facts": state["facts"] | {"compiled": True}})
    assert made.facts["compiled"] is False  # that of the process that resumes

"""DRAW: attention against plain loops, the net against autograd's own, its parameterizations, training, pictures."""

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from factories import make_pixels, tiny_draw
from torch import Tensor, nn

from wnrepro.compiling import Compilation, gradients_of, relative_error
from wnrepro.data.images import Pixels
from wnrepro.events import Epoch
from wnrepro.experiments import draw
from wnrepro.experiments.draw import GREYS, SIZE, Draw, DrawNet, Grid, boxes, filter_banks, read, write
from wnrepro.parameterization import Parameterized, layers
from wnrepro.parameterization.norm import name_of
from wnrepro.settings import PARAMS, DrawSettings

CPU = torch.device("cpu")
each_param = pytest.mark.parametrize("param", PARAMS)
each_reading = pytest.mark.parametrize("attention", [True, False])


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return make_pixels("mnist")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
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


def test_filter_banks_are_those_of_plain_loops() -> None:
    windows = random(6, 2, 5)
    windows[0], windows[1, 0], windows[1, 1], windows[2, 0] = (torch.tensor(w) for w in (INSIDE, FAR, NARROW, NARROW))
    for which, (f_y, f_x, gamma) in enumerate(filter_banks(windows, Grid((2, 5)).to(windows.dtype))):
        count = (2, 5)[which]
        assert f_y.shape == f_x.shape == (6, count, SIZE) and gamma.shape == (6, 1)
        for n, (y, x, log_delta, log_variance, log_gamma) in enumerate(windows[:, which].tolist()):
            for bank, centre in ((f_y, y), (f_x, x)):
                expected = torch.tensor(plain_filters(centre, log_delta, log_variance, count), dtype=torch.float64)
                close(bank[n], expected, 1e-8)  # also a filter almost outside the image
            assert gamma[n].item() == pytest.approx(math.exp(log_gamma))
        for bank in (f_y, f_x):
            assert ((bank[0].sum(1) - 1).abs() < 1e-3).all(), "inside the image a filter is an average"
    f_y, f_x, _ = filter_banks(torch.tensor([[FAR]], dtype=torch.float64), Grid((2,)).double())[0]
    assert max(f_y.max(), f_x.max()) < 1e-8, "outside there is nothing to see"


def test_a_box_goes_through_the_outermost_filters_centres() -> None:
    windows = torch.tensor([INSIDE, [-0.2, 0.1, -0.7, -0.5, 0.0]], dtype=torch.float64)
    for count in (2, 5):
        ((f_y, f_x, _),) = filter_banks(windows[:, None], Grid((count,)).to(windows.dtype))
        pixel = torch.arange(SIZE, dtype=torch.float64)
        y, x = ((bank @ pixel) / bank.sum(2) for bank in (f_y, f_x))
        close(boxes(windows), torch.stack([y[:, 0], y[:, -1], x[:, 0], x[:, -1]], 1), 1e-4)
    assert (boxes(windows[:, :0]) == -math.inf).all()


def test_gradients_of_reading_and_writing_are_right() -> None:
    windows = torch.tensor([[INSIDE, [0.3, 0.2, 0.4, 1.5, -0.2]], [[-0.9, 1.1, 0.1, 2.0, 0.3], INSIDE]])
    windows = windows.double().requires_grad_()
    image, patch = random(2, SIZE, SIZE).requires_grad_(), random(2, 9).requires_grad_()

    def attend(windows: Tensor, image: Tensor, patch: Tensor) -> tuple[Tensor, ...]:
        of_reading, of_writing = filter_banks(windows, Grid((2, 3)).to(windows.dtype))
        weights = random(SIZE, SIZE)  # of the picture written, so that there are few outputs
        return (*of_reading[:2], read(image, of_reading), write(patch, of_writing) @ weights[:, :2])

    assert torch.autograd.gradcheck(attend, (windows, image, patch), fast_mode=True)
    assert torch.autograd.gradcheck(lambda windows: attend(windows, image, patch)[2:], windows)


# ------------------------------------------------------------------------------- the model


@pytest.mark.slow
@each_reading
@each_param
def test_weights_are_computed_once_a_step(
    pixels: Any, monkeypatch: pytest.MonkeyPatch, param: str, attention: Any
) -> None:
    experiment = Draw(tiny_draw(param, attention=attention), pixels, CPU)
    weight, computed = Parameterized.w, Counter[Any]()

    def counted(layer: Parameterized) -> Tensor:
        computed[layer] += 1
        return weight(layer)

    monkeypatch.setattr(Parameterized, "w", counted)
    experiment.step(torch.arange(20))
    assert computed == Counter(layer for _, layer in layers(experiment.net)) and len(computed) == 6


@each_reading
def test_normal_and_wn_start_as_the_same_function(pixels: Any, attention: Any) -> None:
    """g = ‖v‖; the others have the same v."""
    terms, nets = {}, {}
    for param in PARAMS:
        experiment = Draw(tiny_draw(param, attention=attention), pixels, CPU)
        log_p_x, kl = experiment.terms(experiment.train_x[:20])
        terms[param], nets[param] = torch.cat([log_p_x, kl.flatten()]), experiment.net
        for (name, layer), (_, other) in zip(layers(experiment.net), layers(nets["normal"]), strict=True):
            assert torch.equal(layer.v, other.v) and not layer.b.any(), name
            if name_of(layer.norm) in ("wn", "wn+mobn"):
                close(layer.g, layer.v.square().sum(1).sqrt(), 1e-6)
    close(terms["wn"], terms["normal"], 1e-6)
    assert all(not torch.equal(terms[param], terms["wn"]) for param in ("bn", "wn+mobn"))


@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_batch_statistics_are_of_the_input_products_at_each_time_step(pixels: Any, param: str) -> None:
    experiment = Draw(tiny_draw(param, epochs=1, lr=0.01), pixels, CPU)
    epochs(experiment)
    net, names = experiment.net.eval(), ("mean", "var") if param == "bn" else ("mean",)
    averages = {name: buffer for name, buffer in net.named_buffers() if "running" in name}
    assert set(averages) == {f"{cell}.input.running_{name}" for cell in ("encoder", "decoder") for name in names}
    for average in averages.values():
        assert average.shape == (3, 4 * 8)
        assert all(not torch.equal(average[i], average[j]) for i, j in ((0, 1), (0, 2), (1, 2)))

    noise, x = random(3, 9, 3).float(), pixels.test_x[:9, 0].float()
    with torch.no_grad():
        canvases, kls, _ = net.unroll(noise, x)
        for cell, before, which in (("encoder", kls, 1), ("decoder", canvases, 0)):
            changed = copy.deepcopy(net)
            changed.get_submodule(cell).input.running_mean[1] += 1
            after = changed.unroll(noise, x)[which]
            assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])


def test_settings_and_the_start_are_the_authors_codes() -> None:
    s = DrawSettings()
    assert (s.batch_size, s.lr, s.gradient_norm_max, s.epochs) == (100, 0.0003, 10, 100)
    assert (s.units, s.latents, s.time_steps, s.read_window, s.write_window) == (256, 100, 64, 2, 5)
    torch.manual_seed(0)
    shapes = {name: tuple(layer.v.shape) for name, layer in layers(DrawNet(s))}
    assert shapes == {
        "encoder.input": (1024, 2 * 2 * 2 + 256),
        "encoder.recurrent": (1024, 256),
        "statistics": (200, 256),
        "decoder.input": (1024, 100),
        "decoder.recurrent": (1024, 256),
        "heads": (5 * 5 + 5 + 5, 256),
    }
    for param in PARAMS:
        net = DrawNet(tiny_draw(param, units=64, latents=16))
        for name, layer in layers(net):
            assert layer.v.std().item() == pytest.approx(0.01, rel=0.1) and not layer.b.any(), name
            assert name_of(layer.norm) == (
                param if name.endswith(".input") else {"bn": "normal", "wn+mobn": "wn"}.get(param, param)
            )
            assert name_of(layer.norm) != "bn" or (layer.g == 0.1).all()
    plain = dict(layers(DrawNet(tiny_draw(attention=False))))
    assert plain["encoder.input"].v.shape == (32, 2 * 784 + 8) and plain["heads"].v.shape == (784, 8)


# ------------------------------------------------------------------------------- training


def epochs(experiment: Draw) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def test_the_rows_are_as_documented(pixels: Any) -> None:
    experiment = Draw(tiny_draw(epochs=2, lr=0.01), pixels, CPU)
    for number, epoch in enumerate(epochs(experiment), start=1):
        row = epoch.metrics
        names = "epoch,seconds,train_bound_nats,test_bound_nats,reconstruction_nats,kl_nats,gradient_norm"
        assert list(row) == names.split(",") and row["epoch"] == number
        assert row["test_bound_nats"] == pytest.approx(row["reconstruction_nats"] - row["kl_nats"])
        steps = epoch.tables["kl_steps"]
        assert [(step["epoch"], step["time_step"]) for step in steps] == [(number, t) for t in (1, 2, 3)]
        assert sum(step["kl_nats"] for step in steps) == pytest.approx(row["kl_nats"])
        assert min(step["kl_nats"] for step in steps) >= 0 and row["kl_nats"] > 1e-4
        recorded = [(line["epoch"], line["layer"]) for line in epoch.tables["layers"]]
        since = range(number - 1 if number == 1 else number, number + 1)
        assert recorded == [(e, name) for e in since for name, _ in layers(experiment.net)]
    assert experiment.facts["start_bound_nats"] == pytest.approx(-784 * math.log(2), rel=0.01)


def test_testing_and_pictures_change_nothing(pixels: Any) -> None:
    experiment = Draw(tiny_draw("bn", epochs=1), pixels, CPU)
    (epoch,) = epochs(experiment)
    before, state = torch.get_rng_state(), copy.deepcopy(experiment.state_dict())
    reconstruction, kls = experiment.test()
    assert (reconstruction, sum(kls)) == (epoch.metrics["reconstruction_nats"], epoch.metrics["kl_nats"])
    experiment.pictures(3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in experiment.state_dict()["net"].items():
        assert torch.equal(value, state["net"][name])


@pytest.mark.slow
def test_bf16_trains_and_starts_near_fp32(pixels: Any) -> None:
    gradients = {}
    for precision in ("fp32", "bf16"):
        experiment = Draw(tiny_draw(precision=precision), pixels, CPU)
        bound, _ = experiment.step(torch.arange(20))
        gradients[precision] = [bound, *(p.grad for p in experiment.net.parameters())]
    for low, full in zip(gradients["bf16"], gradients["fp32"], strict=True):
        assert low.dtype == torch.float32 and (low - full).norm() < 0.05 * full.norm()
    assert any(not torch.equal(low, full) for low, full in zip(*gradients.values(), strict=True))
    result = epochs(Draw(tiny_draw(precision="bf16", lr=0.01), pixels, CPU))
    assert result[-1].metrics["test_bound_nats"] > result[0].metrics["test_bound_nats"] + 5


@each_reading
def test_pictures_show_samples_originals_beside_reconstructions_and_a_drawing(pixels: Any, attention: Any) -> None:
    experiment = Draw(tiny_draw(epochs=1, lr=0.01, attention=attention), pixels, CPU)
    epochs(experiment)
    pictures = experiment.pictures(6, seed=3)
    samples, reconstructions, drawing = (pictures[name] for name in ("samples", "reconstructions", "drawing"))
    assert set(pictures) == {"samples", "reconstructions", "drawing"}
    assert samples.shape == (6, 1, SIZE, SIZE) and reconstructions.shape == (6, 1, SIZE, 2 * SIZE)
    assert torch.equal(reconstructions[..., :SIZE], pixels.test_x[:6].float())
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


def test_a_filter_that_the_image_does_not_have_is_nothing_and_has_no_gradient() -> None:
    windows = torch.tensor([[FAR], [[*FAR[:3], -6.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    ((f_y, f_x, _),) = filter_banks(windows, Grid((5,)).to(windows.dtype))
    weights = random(*f_y.shape)
    ((f_y + f_x) * weights).sum().backward()
    assert not f_y.any() and not f_x.any()
    assert windows.grad is not None and not windows.grad.any()


# ------------------------------------------------------------------------------- compiled


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_time_step_is_the_plain_one(precision: str) -> None:
    """In the parameterization that has both weight normalization and averages by time step; a test pass in between."""
    plain, fast = (Draw(tiny_draw("wn+mobn", precision=precision), make_pixels("mnist"), CPU) for _ in range(2))
    assert plain.net.compiled is None and not plain.facts["compiled"]
    fast.net.load_state_dict(plain.net.state_dict())
    fast.net.compiled = torch.compile(fast.net.time_step)
    told = []
    for made in (plain, fast):
        torch.manual_seed(0)
        made.net.train()
        steps = [torch.stack(made.step(torch.arange(20 * k, 20 * k + 20))) for k in range(4)]
        averages = [value.mean().item() for value in made.net.state_dict().values()]
        told.append([*torch.cat(steps).tolist(), *made.test()[1], *averages])
    tolerance = 1e-4 if precision == "fp32" else 1e-2
    assert told[1] == pytest.approx(told[0], rel=tolerance, abs=tolerance)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_compiled_gradients_are_the_plain_ones(param: str) -> None:
    """In float64, of every parameter; torch 2.11 got them wrong where a forward changed something in place."""
    net = DrawNet(tiny_draw(param)).double()
    x = make_pixels("mnist").train_x[:20].squeeze(1).double()
    noise = random(3, 20, 3)

    def gradients(step: Any) -> Any:
        net.compiled = step

        def loss() -> Any:
            canvases, kl, _ = net.unroll(noise, x)
            return nn.functional.binary_cross_entropy_with_logits(canvases[-1], x) + torch.stack(kl).mean()

        return gradients_of(net, loss, CPU)

    plain, fast = gradients(None), gradients(torch.compile(net.time_step))
    assert relative_error(fast, plain) < 1e-5
    assert min(gradient.norm() for gradient in plain[: len(list(net.parameters()))]) > 0


def test_a_checkpoint_of_another_device_leaves_the_optimizer_to_this_one(pixels: Any) -> None:
    """`capturable` is of the device: a CPU's checkpoint would make a GPU's step impossible to capture."""
    made = Draw(tiny_draw(), pixels, CPU)
    made.step(torch.arange(20))
    state = made.state_dict()
    state["optimizer"]["param_groups"][0]["capturable"] = True
    made.load_state_dict(state)
    assert made.optimizer.param_groups[0]["capturable"] is False
    made.device = torch.device("cuda")
    made.load_state_dict(state)
    assert made.optimizer.param_groups[0]["capturable"] is True


def test_it_is_compiled_where_training_is_long_and_a_compiler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(draw, "compiled", lambda *asked_for: asked.append(asked_for) or Compilation(refused="no"))
    for epochs, expected in ((1666, 0), (1667, 1)):
        made = Draw(tiny_draw(epochs=epochs), make_pixels("mnist"), CPU)  # 10 minibatches of 3 time steps an epoch
        assert len(asked) == expected and made.net.compiled is None and made.facts["compiled"] is False
    assert made.facts["not_compiled"] == "no" and next(made.train()).text == "trains without torch.compile: no"
    state = made.state_dict()
    made.load_state_dict(state | {"facts": state["facts"] | {"compiled": True}})
    assert made.facts["compiled"] is False  # that of the process that resumes

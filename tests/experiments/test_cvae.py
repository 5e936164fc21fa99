"""The convolutional VAEs: the bound and the likelihood, evaluation, pictures."""

import math
from typing import Any

import pytest
import torch
from factories import make_pixels, tiny_cvae
from torch import nn

from wnrepro.compiling import Compilation
from wnrepro.events import Epoch
from wnrepro.experiments.cvae import Cvae, log_mean_exp
from wnrepro.experiments.vae import log_normal
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS, scale_settings

CPU = torch.device("cpu")


def make(param: str = "wn", dataset: str = "mnist", **changes: object) -> Cvae:
    return Cvae(tiny_cvae(param, dataset, **changes), make_pixels(dataset), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("iaf_depth", [0, 2])
def test_bound_is_below_the_models_likelihood_and_two_samples_come_closer(
    iaf_depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One latent unit, so that p(x) and the expectations over the latent noise are integrals over a fine grid.

    30 updates from small weights: a posterior still wide enough for that grid.
    """
    few = {"train_examples": 200, "test_examples": 100, "init_examples": 60, "latents": 1}
    settings = scale_settings("cvae", "quick", "wn", dataset="mnist", iaf_depth=iaf_depth, lr=0.005, seed=3, **few)
    experiment = Cvae(settings, make_pixels("mnist"), CPU)
    for index in torch.arange(120).repeat(5).split(20):
        experiment.step(index)
    model = experiment.net.eval()
    grid = torch.linspace(-12, 12, 1201)[:, None]
    log_mass = log_normal(grid[:, 0].double()) + math.log(24 / 1200)  # of a standard normal, at every point
    monkeypatch.setattr(model, "noise", lambda x: grid)
    for image in experiment.train_x[:3].permute(0, 3, 1, 2).float():
        with torch.no_grad():
            logits = model.decoder(grid)
            log_p_x, kl = model(image.expand(len(grid), -1, -1, -1))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, image.expand_as(logits), reduction="none")
        truth = (log_mass - loss.double().sum((1, 2, 3))).logsumexp(0).item()
        log_weights, mass = (log_p_x - kl.sum(1)).double(), log_mass.exp()
        bound = (mass * log_weights).sum().item()
        pairs = log_mean_exp(torch.stack(torch.broadcast_tensors(log_weights[:, None], log_weights)).flatten(1))
        of_two = (torch.outer(mass, mass).flatten() * pairs).sum().item()
        assert bound < of_two < truth and truth - bound > 0.01
        # The weights' expectation is p(x) itself, which the estimate climbs towards.
        assert (log_mass + log_weights).logsumexp(0).item() == pytest.approx(truth, abs=1e-4)


def test_bf16_starts_near_fp32_with_terms_in_fp32() -> None:
    gradients = []
    for precision in ("fp32", "bf16"):
        experiment = make(precision=precision)
        experiment.ready()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            terms = experiment.net(experiment.train_x[:20].permute(0, 3, 1, 2))
        assert [term.dtype for term in terms] == [torch.float32] * 2
        experiment.step(torch.arange(20))
        gradients.append([p.grad for p in experiment.net.parameters()])
    for full, low in zip(*gradients, strict=True):
        assert low.dtype == torch.float32 and (low - full).norm() < 0.15 * full.norm()
    assert any(not torch.equal(low, full) for low, full in zip(*gradients, strict=True))


@pytest.mark.slow
def test_log_likelihood_is_above_the_bound_and_grows_with_samples() -> None:
    experiment = make(epochs=2)
    *_, last = experiment.train()
    assert isinstance(last, Epoch)
    estimates = [experiment.log_likelihood(samples) for samples in (1, 5, 50)]
    values = [estimate["log_likelihood_nats"] for estimate in estimates]
    assert values[0] == pytest.approx(last.metrics["test_bound_nats"], abs=1e-3)
    assert values == sorted(values) and values[0] < values[-1]
    assert [estimate["importance_samples"] for estimate in estimates] == [1, 5, 50]


@pytest.mark.parametrize(
    ("dataset", "iaf_depth"),
    [("mnist", 0), *(pytest.param("cifar10", depth, marks=pytest.mark.slow) for depth in (0, 3))],
)
def test_evaluation_uses_the_average_and_changes_nothing(dataset: str, iaf_depth: int) -> None:
    experiment = make("wn", dataset, iaf_depth=iaf_depth, epochs=1)
    *_, event = experiment.train()
    assert isinstance(event, Epoch)
    before = torch.get_rng_state()
    reconstruction, kl = experiment.test(experiment.average.module)
    assert reconstruction - kl == event.metrics["test_bound_nats"] != event.metrics["test_bound_nats_raw"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_pictures_show_samples_and_originals_beside_reconstructions(dataset: str) -> None:
    experiment, before = make("wn", dataset), torch.get_rng_state()
    pictures, again, others = (experiment.pictures(6, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    channels, height, width = experiment.net.shape
    assert pictures["samples"].shape == (6, channels, height, width)
    assert pictures["reconstructions"].shape == (6, channels, height, 2 * width)
    originals = experiment.net.show(make_pixels(dataset).test_x[:6])
    assert torch.equal(pictures["reconstructions"][..., :width], originals)
    assert all(images.min() >= 0 and images.max() <= 1 for images in pictures.values())
    assert torch.equal(again["samples"], pictures["samples"])
    assert not torch.equal(others["samples"], pictures["samples"])


@pytest.mark.parametrize("param", PARAMS)
def test_compiled_terms_train_with_the_noise_of_plain_steps(param: str) -> None:
    calls, told = [], []
    plain, made = make(param), make(param)

    def compiled(*inputs: Any) -> Any:
        calls.append(inputs)
        return made.net.terms(*inputs)

    assert all(map(torch.equal, made.gradients(compiled, "fp32"), plain.gradients(None, "fp32"))) and len(calls) == 1
    assert made.compilation.function is None  # few updates are not worth compiling
    made.compilation = Compilation(compiled)
    for each in (plain, made):
        torch.manual_seed(0)
        told.append([each.step(torch.arange(20 * k, 20 * k + 20))[0] for k in range(3)])
    assert told[0] == told[1] and len(calls) == 4
    made.test(made.net)
    assert len(calls) == 4


@pytest.mark.parametrize("param", PARAMS)
def test_activations_stay_channels_last(param: str) -> None:
    """From the very first convolution on: its one input map leaves open what the images' layout is."""
    made, strides = make(param), []
    for layer in (layer for _, layer in layers(made.net) if layer.v.ndim == 4 and len(layer.b) > 1):
        layer.register_forward_hook(lambda _layer, _x, y: strides.append(y.stride(1)))
    made.step(torch.arange(20))
    assert len(strides) > 10 and set(strides) == {1}

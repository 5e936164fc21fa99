"""The convolutional VAEs: autoregressive masks, the bound, the likelihoods, training, pictures."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from wnrepro.data.images import Pixels
from wnrepro.events import Epoch
from wnrepro.experiments.cvae import Cvae, log_mean_exp
from wnrepro.experiments.vae import (
    ConvMade,
    Made,
    log_normal,
)
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS, CvaeSettings, scale_settings

CPU = torch.device("cpu")


def tiny(param: str = "wn", dataset: str = "mnist", **changes: object) -> CvaeSettings:
    """Settings small enough for a test."""
    small = {"epochs": 3, "train_examples": 120, "test_examples": 100, "batch_size": 20, "init_examples": 60}
    settings = scale_settings("cvae", "quick", param, dataset=dataset, **(small | changes))
    assert isinstance(settings, CvaeSettings)
    return settings


@pytest.fixture(scope="module")
def pixels() -> dict[str, Pixels]:
    draw = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.rand(220, 1, 7, 7, generator=draw), scale_factor=4) > 0.6
    photos = torch.nn.functional.interpolate(torch.rand(220, 3, 8, 8, generator=draw), scale_factor=4)
    photos = (photos * 255).to(torch.uint8)
    return {
        "mnist": Pixels(blobs[:120].to(torch.uint8), blobs[120:].to(torch.uint8), "blobs"),
        "cifar10": Pixels(photos[:120], photos[120:], "photos"),
    }


# ------------------------------------------------------------------------------- the bound


def test_with_an_enumerable_latent_the_bound_is_below_and_more_samples_climb_towards_the_likelihood() -> None:
    """z has 4 values, so that p(x) and the expectation of every estimate are sums."""
    torch.manual_seed(0)
    joint = torch.randn(4, dtype=torch.float64) - 3  # log p(x, z)
    log_q = torch.log_softmax(torch.randn(4, dtype=torch.float64), 0)
    truth = torch.logsumexp(joint, 0).item()
    log_weights = joint - log_q
    estimates = []
    for k in (1, 2, 3, 5):
        tuples = torch.cartesian_prod(*[torch.arange(4)] * k).reshape(-1, k)
        probability = log_q[tuples].sum(1).exp()
        estimates.append((probability * log_mean_exp(log_weights[tuples].T)).sum().item())
    assert estimates[0] == pytest.approx((log_q.exp() * log_weights).sum().item())  # the lower bound
    assert estimates == sorted(estimates) and estimates[-1] < truth
    exact = log_mean_exp((joint - torch.log_softmax(joint, 0))[:, None]).item()  # q is the posterior
    assert exact == pytest.approx(truth)


@pytest.mark.slow
@pytest.mark.parametrize("iaf_depth", [0, 2])
def test_the_models_bound_is_below_its_likelihood_and_two_samples_come_closer(
    pixels: Any, iaf_depth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One latent unit, so that p(x) and the expectations over the latent noise are integrals over a fine grid.

    60 updates from small weights: a posterior still wide enough for that grid.
    """
    experiment = Cvae(tiny(latents=1, iaf_depth=iaf_depth, lr=0.005, seed=3), pixels["mnist"], CPU)
    for index in torch.arange(120).repeat(10).split(20):
        experiment.step(index)
    model = experiment.net.eval()
    grid = torch.linspace(-12, 12, 1201)[:, None]
    log_mass = log_normal(grid[:, 0].double()) + math.log(24 / 1200)  # of a standard normal, at every point
    monkeypatch.setattr(torch, "randn_like", lambda mean: grid)
    for image in pixels["mnist"].train_x[:3].float():
        with torch.no_grad():
            logits = model.decoder(grid)
            log_p_x, kl = model(image.expand(len(grid), -1, -1, -1))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, image.expand_as(logits), reduction="none")
        truth = (log_mass - loss.double().sum((1, 2, 3))).logsumexp(0).item()
        log_weights, mass = (log_p_x - kl.sum(1)).double(), log_mass.exp()
        bound = (mass * log_weights).sum().item()
        pairs = log_mean_exp(torch.stack(torch.broadcast_tensors(log_weights[:, None], log_weights)).flatten(1))
        of_two = (torch.outer(mass, mass).flatten() * pairs).sum().item()
        assert bound < of_two < truth
        assert truth - bound > 0.01
        # The weights' expectation is p(x) itself, which the estimate climbs towards.
        assert (log_mass + log_weights).logsumexp(0).item() == pytest.approx(truth, abs=1e-4)


# ------------------------------------------------------------------------------- models and training


def epochs(experiment: Cvae) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def test_evaluation_uses_the_average_and_changes_nothing(pixels: Any) -> None:
    experiment = Cvae(tiny(epochs=1), pixels["mnist"], CPU)
    events = list(experiment.train())
    row = events[-1].metrics
    before = torch.get_rng_state()
    reconstruction, kl = experiment.test(experiment.average.module)
    assert reconstruction - kl == row["test_bound_nats"] != row["test_bound_nats_raw"]
    assert torch.equal(torch.get_rng_state(), before)
    # One update: the average is the parameters themselves.
    fresh = Cvae(tiny(), pixels["mnist"], CPU)
    fresh.initialize(torch.arange(60))
    fresh.net.train()
    fresh.step(torch.arange(20))
    assert fresh.test(fresh.average.module) == fresh.test(fresh.net)


@pytest.mark.slow
def test_the_log_likelihood_is_above_the_bound_and_grows_with_samples(pixels: Any) -> None:
    experiment = Cvae(tiny(epochs=2), pixels["mnist"], CPU)
    bound = epochs(experiment)[-1].metrics["test_bound_nats"]
    estimates = [experiment.log_likelihood(samples) for samples in (1, 5, 50)]
    assert estimates[0]["log_likelihood_nats"] == pytest.approx(bound, abs=1e-3)
    values = [estimate["log_likelihood_nats"] for estimate in estimates]
    assert values == sorted(values) and values[0] < values[-1]
    assert [estimate["importance_samples"] for estimate in estimates] == [1, 5, 50]


@pytest.mark.slow
@pytest.mark.parametrize("iaf_depth", [0, 1, 3])
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_any_depth_of_the_posterior_trains(pixels: Any, dataset: str, iaf_depth: Any) -> None:
    experiment = Cvae(tiny("wn", dataset, iaf_depth=iaf_depth, epochs=1), pixels[dataset], CPU)
    (epoch,) = epochs(experiment)
    assert math.isfinite(epoch.metrics["test_bound_nats"])
    assert sum(isinstance(m, Made | ConvMade) for m in experiment.net.modules()) == iaf_depth * (
        1 if dataset == "mnist" else 2
    )


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_pictures_show_samples_and_originals_beside_reconstructions(pixels: Any, dataset: str) -> None:
    experiment = Cvae(tiny("wn", dataset, epochs=1), pixels[dataset], CPU)
    list(experiment.train())
    before = torch.get_rng_state()
    pictures = experiment.pictures(6, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    channels, height, width = experiment.net.shape
    assert pictures["samples"].shape == (6, channels, height, width)
    assert pictures["reconstructions"].shape == (6, channels, height, 2 * width)
    originals = pictures["reconstructions"][..., :width]
    assert torch.equal(originals, experiment.net.show(pixels[dataset].test_x[:6]))
    for images in pictures.values():
        assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(experiment.pictures(6, seed=3)["samples"], pictures["samples"])
    assert not torch.equal(experiment.pictures(6, seed=4)["samples"], pictures["samples"])


@pytest.mark.parametrize("param", PARAMS)
def test_activations_stay_channels_last(param: str, pixels: Any) -> None:
    """From the very first convolution on: its one input map leaves open what the images' layout is."""
    made, strides = Cvae(tiny(param), pixels["mnist"], CPU), []
    for layer in (layer for _, layer in layers(made.net) if layer.v.ndim == 4 and len(layer.b) > 1):
        layer.register_forward_hook(lambda _layer, _x, y: strides.append(y.stride(1)))
    made.step(torch.arange(20))
    assert len(strides) > 10 and set(strides) == {1}

"""The convolutional VAEs: autoregressive masks, the bound, the likelihoods, training, pictures."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from wnrepro.data.images import Pixels
from wnrepro.events import Epoch, Progress
from wnrepro.experiments.cvae import Cvae, log_mean_exp
from wnrepro.experiments.vae import (
    ConvMade,
    LadderVae,
    Made,
    MnistVae,
    autoregress,
    log_discretized_logistic,
    log_normal,
    sample_normal,
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


def randomized(module: nn.Module) -> nn.Module:
    """float64 and, so that nothing hides, weights well away from their start."""
    module.double()
    for _, layer in layers(module):
        nn.init.normal_(layer.v, std=0.5)
        nn.init.normal_(layer.b, std=0.5)
    return module


# ------------------------------------------------------------------------------- autoregressive steps


@pytest.mark.parametrize("param", ["normal", "wn"])
@pytest.mark.parametrize(("latents", "width", "reverse"), [(1, 3, False), (5, 5, False), (6, 13, True), (7, 4, True)])
def test_made_sees_only_what_comes_before(param, latents, width, reverse):
    torch.manual_seed(0)
    made = randomized(Made(latents, 3, width, param, reverse))
    z, context = torch.randn(1, latents, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    order = list(range(latents))[:: -1 if reverse else 1]
    for part in (0, 1):
        jacobian = torch.autograd.functional.jacobian(lambda z, part=part: made(z, context)[part][0], z)[:, 0]
        jacobian = jacobian[order][:, order]
        assert torch.equal(jacobian, jacobian.tril(-1)), "an output sees itself or what comes after it"
        if width >= latents:
            below = torch.ones_like(jacobian).tril(-1).bool()
            assert (jacobian[below] != 0).all(), "an output does not see all that comes before it"
        by_context = torch.autograd.functional.jacobian(lambda c, part=part: made(z, c)[part][0], context)
        assert (by_context.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("latents", "width"), [(2, 4), (3, 7), (4, 2)])
def test_convolutional_made_sees_only_pixels_before_and_maps_before(latents, width):
    torch.manual_seed(0)
    made = randomized(ConvMade(latents, width, "wn"))
    z = torch.randn(1, latents, 4, 3, dtype=torch.float64)
    context = torch.randn(1, width, 4, 3, dtype=torch.float64)
    size = z.numel()

    def raster(t: Tensor) -> Tensor:
        return t.movedim(1, -1).flatten()  # pixels in raster order, maps within

    for part in (0, 1):

        def f(flat: Tensor, part: int = part) -> Tensor:
            return raster(made(flat.view(1, 4, 3, latents).movedim(-1, 1), context)[part])

        jacobian = torch.autograd.functional.jacobian(f, raster(z))
        assert jacobian.shape == (size, size)
        assert torch.equal(jacobian, jacobian.tril(-1))
        if width >= latents:
            own = torch.arange(size)
            for i, j in [(latents * 4 + 1, latents * 4), (latents * 4, latents * 3 + 1), (latents * 4, latents)]:
                assert jacobian[own[i], own[j]] != 0


@pytest.mark.parametrize("convolutional", [False, True])
def test_the_log_determinant_is_the_sum_that_the_bound_uses(convolutional):
    torch.manual_seed(0)
    if convolutional:
        steps = nn.ModuleList(ConvMade(3, 6, "wn") for _ in range(2))
        z, context = torch.randn(1, 3, 3, 4, dtype=torch.float64), torch.randn(1, 6, 3, 4, dtype=torch.float64)
    else:
        steps = nn.ModuleList(Made(6, 4, 12, "wn", reverse=k % 2 == 1) for k in range(3))
        z, context = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    for step in steps:
        randomized(step)
        nn.init.constant_(step.out.gain, 3.0)

    def f(z: Tensor) -> Tensor:
        return autoregress(steps, z, torch.zeros_like(z), context)[0]

    _, log_q = autoregress(steps, z, torch.zeros_like(z), context)
    jacobian = torch.autograd.functional.jacobian(f, z).reshape(z.numel(), z.numel())
    assert log_q.sum().item() == pytest.approx(-torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-10)
    assert abs(log_q.sum().item()) > 0.1


# ------------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("mean", [1 / 512, 0.3, 0.5, 1 - 1 / 512])
@pytest.mark.parametrize("log_scale", [-9.0, -4.0, 0.0, 2.0])
def test_the_discretized_logistic_sums_to_one(mean, log_scale):
    values = torch.arange(256)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        logs = log_discretized_logistic(
            values.to(dtype), torch.tensor(mean, dtype=dtype), torch.tensor(log_scale, dtype=dtype)
        )
        assert torch.logsumexp(logs, 0).item() == pytest.approx(0, abs=tolerance)
        assert logs.isfinite().all()


def test_the_discretized_logistic_is_a_difference_of_sigmoids():
    x = torch.arange(1, 255, dtype=torch.float64)
    mean, log_scale = torch.tensor(0.4, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    low, high = ((x + k) / 256 - mean for k in (0, 1))
    expected = (torch.sigmoid(high / log_scale.exp()) - torch.sigmoid(low / log_scale.exp())).log()
    assert torch.allclose(log_discretized_logistic(x, mean, log_scale), expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_discretized_logistic_are_finite_at_its_ends():
    mean = torch.tensor([1 / 512, 0.5, 1 - 1 / 512]).repeat(256, 1).requires_grad_()
    log_scale = torch.tensor(-8.0, requires_grad=True)
    log_discretized_logistic(torch.arange(256.0)[:, None], mean, log_scale).sum().backward()
    assert mean.grad is not None and mean.grad.isfinite().all() and log_scale.grad.isfinite()


def test_normal_densities_are_torchs():
    z, mean, log_std = torch.randn(3, 50, dtype=torch.float64).unbind()
    normal = torch.distributions.Normal(mean, log_std.exp())
    assert torch.allclose(log_normal(z, mean, log_std), normal.log_prob(z))
    sample, log_q = sample_normal(mean, log_std)
    assert torch.allclose(log_q, normal.log_prob(sample))


# ------------------------------------------------------------------------------- the bound


def test_with_an_enumerable_latent_the_bound_is_below_and_more_samples_climb_towards_the_likelihood():
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


@pytest.mark.parametrize("iaf_depth", [0, 2])
def test_the_models_bound_is_below_its_likelihood_and_two_samples_come_closer(pixels, iaf_depth, monkeypatch):
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


def test_free_bits_are_free_on_the_minibatchs_average(pixels):
    experiment = Cvae(tiny(free_bits=0.5), pixels["mnist"], CPU)
    kl = torch.tensor([[0.0, 2.0, 0.9], [0.2, 1.0, -0.1]])
    assert experiment.penalty(kl).item() == pytest.approx(0.5 + 1.5 + 0.5)
    assert Cvae(tiny(), pixels["mnist"], CPU).penalty(kl).item() == pytest.approx(0.1 + 1.5 + 0.4)


# ------------------------------------------------------------------------------- models and training


def epochs(experiment: Cvae) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_all_four_start_as_the_same_function_with_unit_variance(pixels, dataset):
    losses, states = {}, {}
    for param in PARAMS:
        experiment = Cvae(tiny(param, dataset), pixels[dataset], CPU)
        rows = experiment.initialize(torch.arange(60))
        assert {row["layer"] for row in rows} == {name for name, _ in layers(experiment.net)}
        for row in rows:
            assert row["mean_abs_max"] < 1e-3, row
            assert row["variance_min"] == pytest.approx(1, abs=1e-2) == row["variance_max"], row
        losses[param], states[param] = experiment.facts["init_loss"], torch.get_rng_state()
    assert max(losses.values()) - min(losses.values()) < 1e-3 * abs(losses["wn"])
    assert all(torch.equal(state, states["wn"]) for state in states.values())


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@pytest.mark.parametrize("param", PARAMS)
def test_training_learns_and_a_resumed_experiment_goes_on_bit_for_bit(pixels, dataset, param):
    settings = tiny(param, dataset)
    expected = epochs(Cvae(settings, pixels[dataset], CPU))
    assert expected[-1].metrics["test_bound_nats_raw"] > expected[0].metrics["test_bound_nats_raw"]

    first = Cvae(settings, pixels[dataset], CPU)
    next(event for event in first.train() if isinstance(event, Epoch) and event.epoch == 2)
    state, rng = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    second = Cvae(settings, pixels[dataset], CPU)
    second.load_state_dict(state)
    torch.set_rng_state(rng)
    (last,) = epochs(second)
    assert last.metrics | {"seconds": 0} == expected[-1].metrics | {"seconds": 0}
    assert last.tables == expected[-1].tables


def test_the_rows_are_as_documented(pixels):
    names = "epoch,seconds,train_bound_nats,test_bound_nats,test_bound_nats_raw,kl_nats,reconstruction_nats"
    for dataset, more in (("mnist", []), ("cifar10", ["test_bits_per_dim"])):
        row = epochs(Cvae(tiny("wn", dataset, epochs=1), pixels[dataset], CPU))[0].metrics
        assert list(row) == names.split(",") + more
        assert row["test_bound_nats"] == pytest.approx(row["reconstruction_nats"] - row["kl_nats"])
    assert row["test_bits_per_dim"] == pytest.approx(-row["test_bound_nats"] / 3072 / math.log(2))


def test_evaluation_uses_the_average_and_changes_nothing(pixels):
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


def test_seeds_differ_and_a_seed_repeats(pixels):
    one, again, two = (
        epochs(Cvae(tiny(seed=seed, epochs=1), pixels["mnist"], CPU))[0].metrics["test_bound_nats"]
        for seed in (1, 1, 2)
    )
    assert one == again != two


def test_the_log_likelihood_is_above_the_bound_and_grows_with_samples(pixels):
    experiment = Cvae(tiny(epochs=2), pixels["mnist"], CPU)
    bound = epochs(experiment)[-1].metrics["test_bound_nats"]
    estimates = [experiment.log_likelihood(samples) for samples in (1, 5, 50)]
    assert estimates[0]["log_likelihood_nats"] == pytest.approx(bound, abs=1e-3)
    values = [estimate["log_likelihood_nats"] for estimate in estimates]
    assert values == sorted(values) and values[0] < values[-1]
    assert [estimate["importance_samples"] for estimate in estimates] == [1, 5, 50]


def test_divergence_is_an_outcome(pixels):
    events = epochs(Cvae(tiny("normal", lr=100.0), pixels["mnist"], CPU))
    assert len(events) == 1 and "median training bound" in events[0].diverged


def test_the_bound_on_v_holds_after_every_step(pixels):
    for param in ("wn", "normal"):
        epoch = epochs(Cvae(tiny(param, v_norm_max=0.25, epochs=1), pixels["mnist"], CPU))[0]
        assert all(row["v_norm_max"] <= 0.25 * (1 + 1e-6) for row in epoch.tables["layers"])


@pytest.mark.parametrize("iaf_depth", [0, 1, 3])
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_any_depth_of_the_posterior_trains(pixels, dataset, iaf_depth):
    experiment = Cvae(tiny("wn", dataset, iaf_depth=iaf_depth, epochs=1), pixels[dataset], CPU)
    (epoch,) = epochs(experiment)
    assert math.isfinite(epoch.metrics["test_bound_nats"])
    assert sum(isinstance(m, Made | ConvMade) for m in experiment.net.modules()) == iaf_depth * (
        1 if dataset == "mnist" else 2
    )


def test_exponential_scale_trains(pixels):
    result = epochs(Cvae(tiny("wn", g_exp=3.0), pixels["mnist"], CPU))
    assert result[-1].metrics["test_bound_nats_raw"] > result[0].metrics["test_bound_nats_raw"]


def test_ticks_count_the_images_of_each_epoch(pixels):
    ticks = [e for e in Cvae(tiny(epochs=2, batch_size=5), pixels["mnist"], CPU).train() if isinstance(e, Progress)]
    assert [(t.epoch, t.done, t.total) for t in ticks] == [(e, d, 120) for e in (1, 2) for d in (50, 100)]


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_pictures_show_samples_and_originals_beside_reconstructions(pixels, dataset):
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


def test_settings_are_the_papers():
    s = CvaeSettings()
    assert (s.maps, s.depths, s.hidden, s.latents, s.lr, s.polyak_epochs) == (
        (16, 32, 32),
        (2, 2, 2),
        450,
        32,
        0.002,
        10,
    )
    model = MnistVae(s)
    assert sum(isinstance(m, nn.ELU) for m in model.modules()) == 8
    s = scale_settings("cvae", "paper", "wn", dataset="cifar10")
    assert (s.maps, s.depths, s.free_bits, s.batch_size, s.latents) == ((160,), (10, 10), 0.25, 16, 32)
    with torch.device("meta"):
        ladder = LadderVae(s)
    assert len(ladder.units) == 20 and sum(unit.halve for unit in ladder.units) == 1


@pytest.mark.parametrize("param", PARAMS)
def test_activations_stay_channels_last(param, pixels):
    """From the very first convolution on: its one input map leaves open what the images' layout is."""
    made, strides = Cvae(tiny(param), pixels["mnist"], CPU), []
    for layer in (layer for _, layer in layers(made.net) if layer.v.ndim == 4 and len(layer.b) > 1):
        layer.register_forward_hook(lambda _layer, _x, y: strides.append(y.stride(1)))
    made.step(torch.arange(20))
    assert len(strides) > 10 and set(strides) == {1}

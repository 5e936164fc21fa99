"""The CIFAR-10 experiment against plain references: model, optimizer, schedule, init, noise."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kurtosis
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from wnrepro.compiling import Compilation
from wnrepro.data.images import Images
from wnrepro.events import Epoch, Progress
from wnrepro.experiments.cifar import Cifar, Net, excess_kurtosis, noise, raw_moments
from wnrepro.parameterization import layers
from wnrepro.settings import PARAMS, CifarSettings, scale_settings

CPU = torch.device("cpu")


def epochs(experiment: Cifar) -> list[Epoch]:
    return [event for event in experiment.train() if isinstance(event, Epoch)]


def rows(experiment: Cifar) -> list[dict]:
    """The metrics without their times."""
    return [{k: v for k, v in epoch.metrics.items() if k != "seconds"} for epoch in epochs(experiment)]


def test_the_network_is_table_1():
    net = Net(scale_settings("cifar", "paper", "wn")).eval()
    shapes = {}
    for name, layer in layers(net):
        layer.register_forward_hook(lambda _l, _x, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
    net(torch.randn(2, 3, 32, 32))
    assert list(shapes.values()) == [
        *3 * [(96, 32, 32)],
        *3 * [(192, 16, 16)],
        *3 * [(192, 6, 6)],
        (10,),
    ]
    weights = 3 * 9 * 96 + 2 * 9 * 96 * 96 + 9 * 96 * 192 + 3 * 9 * 192 * 192 + 2 * 192 * 192 + 192 * 10
    units = 3 * 96 + 6 * 192 + 10
    assert sum(p.numel() for p in net.parameters()) == weights + 2 * units  # a g and a b each
    assert all(abs(layer.v.std().item() - 0.05) < 0.005 for _, layer in layers(net))


def reference_net(experiment: Cifar) -> nn.Module:
    """Table 1 in plain torch, with torch's own weight_norm, from the experiment's start."""
    stages: list[nn.Module] = []
    for number, (_, layer) in enumerate(layers(experiment.net)):
        plain = weight_norm(layer.plain_layer().to_empty(device=CPU).double())
        with torch.no_grad():
            weight = plain.parametrizations.weight
            weight.original0.copy_(layer.g.reshape(weight.original0.shape))
            weight.original1.copy_(layer.v)
            plain.bias.copy_(layer.b)
        if number == 9:
            stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), plain]
        else:
            stages += [plain, nn.LeakyReLU(0.1)]
        if number in (2, 5):
            stages += [nn.MaxPool2d(2), nn.Dropout(0.5)]
    return nn.Sequential(*stages)


def test_training_equals_a_plain_loop(images, tiny):
    """Two epochs of wn in float64 against plain torch with the authors' Adam in ten lines."""
    double = Images(images.train_x.double(), images.train_y, images.test_x.double(), images.test_y, "")
    settings = tiny("wn", epochs=2, decay_from=1)
    experiment = Cifar(settings, double, CPU)
    experiment.net.double()
    state = copy.deepcopy(experiment)
    ours = rows(experiment)

    torch.manual_seed(settings.seed)
    Net(settings)  # the weights' draws, which the loop's noise comes after
    order = torch.Generator().manual_seed(settings.seed)
    theirs, step, m, v = [], 0, {}, {}
    net: nn.Module | None = None
    for epoch in range(2):
        permutation = torch.randperm(200, generator=order)
        if net is None:
            with torch.random.fork_rng():
                state.initialize(permutation[:100])
            net = reference_net(state)
            net.train()
            x = double.train_x[permutation[:100]].contiguous(memory_format=torch.channels_last)
            net(x + 0.15 * torch.randn_like(x))  # the pass that measures the init
        lr, beta1 = 0.003, 0.9 if epoch < 1 else 0.5  # lr·min(2 − epoch/1, 1)
        losses, wrong = [], 0
        for index in permutation.split(20):
            x, y = double.train_x[index].contiguous(memory_format=torch.channels_last), double.train_y[index]
            logits = net(x + 0.15 * torch.randn_like(x))
            loss = F.cross_entropy(logits, y)
            net.zero_grad()
            loss.backward()
            step += 1
            for p in net.parameters():
                m[p] = beta1 * m.get(p, 0) + (1 - beta1) * p.grad
                v[p] = 0.999 * v.get(p, 0) + 0.001 * p.grad**2
                p.data -= lr * (m[p] / (1 - beta1**step)) / torch.sqrt(v[p] / (1 - 0.999**step) + 1e-8)
            losses.append(loss.item())
            wrong += (logits.argmax(1) != y).sum().item()
        net.eval()
        logits = net(double.test_x)
        test_error = (logits.argmax(1) != double.test_y).double().mean().item()
        theirs.append(
            {
                "epoch": epoch + 1,
                "train_error": wrong / 200,
                "test_error": test_error,
                "train_loss": np.mean(losses),
                "test_loss": F.cross_entropy(logits, double.test_y).item(),
                "lr": lr,
            }
        )
        net.train()
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_the_schedule_is_the_authors(images, tiny):
    experiment = Cifar(tiny("wn", epochs=200, decay_from=100), images, CPU)
    for epoch in range(200):
        experiment.epoch = epoch
        experiment.schedule()
        group = experiment.optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(0.003 * min(2.0 - epoch / 100.0, 1.0))
        assert group["beta1"] == (0.9 if epoch < 100 else 0.5)
        assert (group["beta2"], group["epsilon"]) == (0.999, 1e-8)


def test_a_run_shorter_than_the_constant_epochs_is_the_start_of_a_longer_one(images, tiny):
    short, long = (rows(Cifar(tiny("wn", epochs=n, decay_from=3), images, CPU)) for n in (2, 4))
    assert short == long[:2]
    assert [row["lr"] for row in long] == [0.003, 0.003, 0.003, 0.003] and len(long) == 4


def test_all_four_start_as_the_same_function(images, tiny):
    starts = {}
    for param in PARAMS:
        experiment = Cifar(tiny(param), images, CPU)
        statistics = experiment.initialize(torch.arange(100))
        assert [row["layer"] for row in statistics] == [name for name, _ in layers(experiment.net)]
        assert all(row["mean_abs_max"] < 1e-5 for row in statistics)
        assert all(abs(row[key] - 1) < 1e-3 for row in statistics for key in ("variance_min", "variance_max"))
        starts[param] = experiment.facts["init_loss"]
    assert max(starts.values()) == pytest.approx(min(starts.values()), rel=1e-5)


def test_every_parameterization_sees_the_same_data_noise_and_dropout(images, tiny):
    """After the init, so that the first step's loss is the same in all four; wn+mobn and bn use the batch's mean."""
    losses = {}
    for param in ("normal", "wn"):
        experiment = Cifar(tiny(param), images, CPU)
        experiment.initialize(torch.arange(100))
        experiment.net.train()
        losses[param] = experiment.step(torch.arange(100, 120))[0].item()
    assert losses["normal"] == pytest.approx(losses["wn"], rel=1e-5)


@pytest.mark.parametrize("polyak_epochs", [None, 2.0])
@pytest.mark.parametrize("param", PARAMS)
def test_training_learns_and_a_resumed_experiment_goes_on_bit_for_bit(images, tiny, param, polyak_epochs):
    settings = tiny(param, lr=0.003, polyak_epochs=polyak_epochs)
    whole = Cifar(settings, images, CPU)
    expected = epochs(whole)
    assert expected[-1].metrics["train_loss"] < expected[0].metrics["train_loss"]

    first = Cifar(settings, images, CPU)
    events = first.train()
    reached = next(event for event in events if isinstance(event, Epoch) and event.epoch == 2)
    state, rng = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    second = Cifar(settings, images, CPU)
    second.load_state_dict(state)
    torch.set_rng_state(rng)
    got = [reached, *epochs(second)]
    for a, b in zip(got, expected[1:], strict=True):
        assert {**a.metrics, "seconds": 0} == {**b.metrics, "seconds": 0}
        assert repr(a.tables) == repr(b.tables)  # in which nan equals nan


def test_seeds_differ_and_a_seed_repeats(images, tiny):
    one, again, two = (rows(Cifar(tiny("wn", seed=seed, epochs=1), images, CPU)) for seed in (1, 1, 2))
    assert one == again != two


def test_measuring_the_noise_changes_nothing(images, tiny):
    with_noise = epochs(Cifar(tiny("bn", noise_epochs=(1, 2)), images, CPU))
    without = epochs(Cifar(tiny("bn", noise_epochs=()), images, CPU))
    assert [e.metrics | {"seconds": 0} for e in with_noise] == [e.metrics | {"seconds": 0} for e in without]
    assert len(with_noise[0].tables["noise"]) == 10 and "noise" not in without[0].tables


def test_only_parameterizations_with_batch_statistics_have_noise(images, tiny):
    for param, expected in {"normal": False, "bn": True, "wn": False, "wn+mobn": True}.items():
        event = epochs(Cifar(tiny(param, epochs=2), images, CPU))[1]
        assert ("noise" in event.tables) is expected


def moments(t: np.ndarray) -> torch.Tensor:
    """`raw_moments` of the K minibatches of t (K, B, C, …)."""
    return torch.stack([raw_moments(torch.from_numpy(batch)) for batch in t])


@pytest.mark.parametrize("variance_too", [True, False])
def test_the_noise_is_that_of_every_example(variance_too):
    draw = np.random.default_rng(0)
    t = draw.standard_t(8, size=(40, 25, 3)) * [1.0, 2.0, 0.5] + [
        0.0,
        3.0,
        -1.0,
    ]  # 40 minibatches of 25, 3 features
    mean, std = t.mean(1, keepdims=True), t.std(1, keepdims=True)
    all_mean, all_std = t.mean((0, 1)), t.std((0, 1))
    of_each = (t - mean) / std - (t - all_mean) / all_std if variance_too else (0 * t + all_mean - mean) / all_std
    expected = {
        "excess_kurtosis": kurtosis(of_each.reshape(-1, 3), axis=0),
        "kurtosis_mean": kurtosis(mean[:, 0], axis=0, bias=False),
        "kurtosis_std": kurtosis(std[:, 0], axis=0, bias=False),
        "kurtosis_inverse_std": kurtosis(1 / std[:, 0], axis=0, bias=False),
        "noise_size": np.sqrt((of_each**2).mean((0, 1))),
    }
    if not variance_too:
        expected |= {name: np.full(3, np.nan) for name in ("kurtosis_std", "kurtosis_inverse_std")}
    figures = noise(moments(t), variance_too)
    assert list(figures) == list(expected)
    for name, values in figures.items():
        assert values.numpy() == pytest.approx(expected[name], rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize("count", [4, 5, 30, 200])
def test_excess_kurtosis_is_corrected_for_its_bias(count):
    values = np.random.default_rng(count).exponential(size=(count, 3)) + 5
    found = excess_kurtosis(torch.from_numpy(values)).numpy()
    assert found == pytest.approx(kurtosis(values, axis=0, bias=False), rel=1e-9)


def test_the_kurtosis_of_the_statistics_is_not_that_of_the_images():
    """Gaussian pixels with a contrast for each image: bn's noise has heavy tails, its statistics have not."""
    draw = np.random.default_rng(0)
    contrast = np.exp(0.5 * draw.standard_normal((200, 25, 1, 1)))
    t = contrast * draw.standard_normal((200, 25, 3, 16))  # 200 minibatches of 25 images, 3 features of 16 pixels
    figures = {name: values.numpy() for name, values in noise(moments(t), variance_too=True).items()}
    assert np.median(figures["excess_kurtosis"]) > 10
    std = t.std((1, 3))
    for name, values in {"mean": t.mean((1, 3)), "std": std, "inverse_std": 1 / std}.items():
        assert figures[f"kurtosis_{name}"] == pytest.approx(kurtosis(values, axis=0, bias=False), rel=1e-6)
        assert abs(np.median(figures[f"kurtosis_{name}"])) < 1


@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_the_noise_of_a_run(images, tiny, param):
    (table,) = (epoch.tables["noise"] for epoch in epochs(Cifar(tiny(param, epochs=2), images, CPU))[1:])
    for row in table:
        assert row["minibatches"] == 5 and 0 < row["noise_size"] < 1 and math.isfinite(row["kurtosis_mean"])
        assert math.isfinite(row["kurtosis_std"]) == math.isfinite(row["kurtosis_inverse_std"]) == (param == "bn")


@pytest.mark.parametrize("param", PARAMS)
def test_evaluation_uses_the_average_of_the_parameters(images, tiny, param):
    """Of all steps: their weights fall by 1 − 1/5 from each to the one before, 5 being half of an epoch."""
    settings = tiny(param, epochs=2, polyak_epochs=0.5)
    experiment, past = Cifar(settings, images, CPU), []
    step = experiment.captured_step

    def recorded(index):
        outputs = step(index)
        past.append(copy.deepcopy(experiment.net.state_dict()))
        return outputs

    experiment.captured_step = recorded
    found = rows(experiment)
    weights = [0.8**age for age in reversed(range(len(past)))]
    plain = Cifar(tiny(param, epochs=2), images, CPU)
    unaveraged = rows(plain)
    assert len(past) == 20 and "average" not in plain.state_dict()
    means = {name: sum(w * one[name] for w, one in zip(weights, past, strict=True)) / sum(weights) for name in past[0]}
    for ours, net in ((found, means), (unaveraged, past[-1])):
        plain.net.load_state_dict(net)
        error, loss = plain.test()
        assert ours[-1]["test_error"] == pytest.approx(error, abs=0.011)  # one image may lie at the border
        assert ours[-1]["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert found[-1]["test_loss"] != pytest.approx(unaveraged[-1]["test_loss"], rel=1e-3)
    for averaged, other in zip(found, unaveraged, strict=True):
        assert {**averaged, "test_error": 0, "test_loss": 0} == {**other, "test_error": 0, "test_loss": 0}


def test_divergence_is_an_outcome(images, tiny):
    events = epochs(Cifar(tiny("normal", lr=30.0), images, CPU))
    assert len(events) == 1 and "median training loss" in events[0].diverged
    assert not events[0].metrics["train_loss"] <= 2 * math.log(10)


def test_a_run_that_does_not_diverge_is_not_called_so(images, tiny):
    """The first steps at lr 0.003 have losses far above guessing; that alone is no divergence."""
    events = epochs(Cifar(tiny("wn", lr=0.01), images, CPU))
    assert [event.diverged for event in events] == 4 * [""]


def test_the_bound_on_v_holds_after_every_step(images, tiny):
    experiment = Cifar(tiny("wn", v_norm_max=0.25, epochs=1), images, CPU)
    epoch = epochs(experiment)[0]
    assert all(row["v_norm_max"] <= 0.25 * (1 + 1e-6) for row in epoch.tables["layers"])


def test_ticks_count_the_images_of_each_epoch(images, tiny):
    ticks = [event for event in Cifar(tiny(epochs=2), images, CPU).train() if isinstance(event, Progress)]
    assert [(tick.epoch, tick.done, tick.total) for tick in ticks] == [
        (epoch, done, 200) for epoch, done in itertools.product((1, 2), (100, 200))
    ]


def test_exponential_scale_trains(images, tiny):
    result = epochs(Cifar(tiny("wn", g_exp=3.0), images, CPU))
    assert result[-1].metrics["train_loss"] < result[0].metrics["train_loss"]


def test_settings_are_the_papers():
    s = CifarSettings()
    assert (s.epochs, s.batch_size, s.train_examples, s.test_examples) == (200, 100, 50_000, 10_000)
    assert (s.width, s.input_noise, s.init_examples, s.zca_epsilon, s.init) == (
        96,
        0.15,
        500,
        1e-5,
        "authors",
    )
    assert {param: scale_settings("cifar", "paper", param).lr for param in PARAMS} == {
        "normal": 0.0003,
        "bn": 0.003,
        "wn": 0.003,
        "wn+mobn": 0.003,
    }


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("param", PARAMS)
def test_compiled_layers_train_after_the_init_pass_and_measurements(images, tiny, param):
    """Only steps run them, without being compiled anew; the init pass and the noise are of the plain network."""
    calls = 0

    def backend(graph, _):
        def run(*inputs):
            nonlocal calls
            calls += 1
            return graph.forward(*inputs)

        return run

    torch.compiler.reset()
    plain, fast = (Cifar(tiny(param), images, CPU) for _ in range(2))
    function = torch.compile(fast.net.layers, backend=backend)
    fast.compilation = Compilation(function)
    assert all(map(torch.equal, fast.gradients(function, "fp32"), plain.gradients(None, "fp32"))) and calls == 1
    told = []
    for made in (plain, fast):
        torch.manual_seed(0)
        made.initialize(torch.arange(100))
        made.net.train()
        told.append([torch.stack(made.step(torch.arange(20 * k, 20 * k + 20))) for k in range(3)])
    assert calls == 4 and all(map(torch.equal, *told))
    if param in ("bn", "wn+mobn"):
        assert repr(fast.noise_rows()) == repr(plain.noise_rows())
    with torch.compiler.set_stance("fail_on_recompile"):
        fast.step(torch.arange(20))
    assert fast.test() != plain.test() and calls == 5

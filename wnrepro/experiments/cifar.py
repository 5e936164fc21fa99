"""CIFAR-10 classification (§5.1, tables 1 and 2, figure 1); settings in `settings.CifarSettings`.

Shapes: B examples, C features of a layer. Images are (B, 3, 32, 32), in the memory format of `image_format`.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor, nn

from wnrepro.compiling import Compilation, compiled, gradients_of
from wnrepro.cuda_graphs import Captured
from wnrepro.data.images import Images, load_images, random_images
from wnrepro.data.whitening import Whitening, load_whitened, load_zca
from wnrepro.device import autocast, float64_device, image_format, kept_generators, set_precision
from wnrepro.experiments.loop import COMPARED, TEST_BATCH, Experiment, Exported, Rows, minibatch, to_rows
from wnrepro.experiments.measurements import measured_init
from wnrepro.optim import Adam, PolyakAverage
from wnrepro.parameterization import Conv2d, Linear, fold, layers, parameterization
from wnrepro.settings import CifarSettings

SLOPE = 0.1  # negative slope of the leaky ReLU, authors' code
DROPOUT = 0.5  # table 1
CLASSES = 10
COMPILED_FROM = 10_000  # updates on a GPU from which compiling saves time


class Net(nn.Module):
    """Table 1's network from whitened images to logits, with 10 parameterized layers."""

    def __init__(self, settings: CifarSettings) -> None:
        super().__init__()
        param, n = settings.param, settings.width
        options: dict[str, Any] = {"g_exp": settings.g_exp, "init": settings.init}
        self.input_noise = settings.input_noise
        self.conv1 = Conv2d(3, n, 3, param, padding=1, **options)
        self.conv2 = Conv2d(n, n, 3, param, padding=1, **options)
        self.conv3 = Conv2d(n, n, 3, param, padding=1, **options)
        self.conv4 = Conv2d(n, 2 * n, 3, param, padding=1, **options)
        self.conv5 = Conv2d(2 * n, 2 * n, 3, param, padding=1, **options)
        self.conv6 = Conv2d(2 * n, 2 * n, 3, param, padding=1, **options)
        self.conv7 = Conv2d(2 * n, 2 * n, 3, param, **options)
        self.conv8 = Conv2d(2 * n, 2 * n, 1, param, **options)
        self.conv9 = Conv2d(2 * n, 2 * n, 1, param, **options)
        self.dense = Linear(2 * n, CLASSES, param, **options)

    def forward(
        self, x: Float[Tensor, "B 3 H W"], layers: Callable[..., Tensor] | None = None
    ) -> Float[Tensor, "B 10"]:
        """Compute the logits. layers: the compiled method `layers`, for training."""
        if not self.training:
            return self.layers(x, None)
        x = x + self.input_noise * torch.randn_like(x)
        return (layers or self.layers)(x, self.dropout_masks(x))

    def dropout_masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw 0 or 1/(1 − DROPOUT), like `F.dropout`, for every value after the two poolings of images x.

        They are drawn outside `layers`, so that compiled layers have the same masks.
        """
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype

        def mask(maps: int, size: int) -> Tensor:
            keep = torch.empty(
                (len(x), maps, size, size), dtype=dtype, device=x.device, memory_format=image_format(x.device)
            )
            return keep.bernoulli_(1 - DROPOUT).div_(1 - DROPOUT)

        return mask(self.conv3.units, x.shape[2] // 2), mask(self.conv6.units, x.shape[2] // 4)

    def layers(self, x: Tensor, masks: tuple[Tensor, Tensor] | None) -> Tensor:
        """Compute the logits. masks: the dropout masks, in training."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.leaky_relu(conv(x), SLOPE)
        x = F.max_pool2d(x, 2)
        if masks is not None:
            x = x * masks[0]
        for conv in (self.conv4, self.conv5, self.conv6):
            x = F.leaky_relu(conv(x), SLOPE)
        x = F.max_pool2d(x, 2)
        if masks is not None:
            x = x * masks[1]
        for conv in (self.conv7, self.conv8, self.conv9):
            x = F.leaky_relu(conv(x), SLOPE)
        logits: Tensor = self.dense(x.mean((2, 3)))
        return logits


class Cifar(Experiment[CifarSettings]):
    """The experiment; see `Experiment`. Its facts include the loss on the init batch."""

    net: Net
    optimizer: Adam
    compilation: Compilation
    limit = 2 * math.log(CLASSES)  # twice the loss of guessing

    def __init__(self, settings: CifarSettings, images: Images, device: torch.device) -> None:
        """Create the network and the optimizer; images: see `load_whitened`."""
        super().__init__(settings, device)
        self.train_x, self.test_x = (to_rows(x, device) for x in (images.train_x, images.test_x))
        self.train_y, self.test_y = images.train_y.to(device), images.test_y.to(device)
        self.net = Net(settings).to(device).to(memory_format=image_format(device))
        self.statistics = parameterization(settings.param).batch_statistics
        self.optimizer = Adam(self.net.parameters(), settings.lr)
        updates = len(self.train_x) // settings.batch_size
        if settings.polyak_epochs is not None:
            self.average = PolyakAverage(self.net, settings.polyak_epochs * updates)
        self.tested: nn.Module = self.net if self.average is None else self.average.module
        self.captured_test = Captured(self.test_batch, device)
        self.compilation = Compilation()
        if device.type == "cuda" and settings.epochs * updates >= COMPILED_FROM:
            self.compilation = compiled(self.net.layers, self.gradients, settings.precision)
        self.describe(images.source)

    @classmethod
    def on_noise(cls, settings: CifarSettings, device: torch.device) -> "Cifar":
        return cls(settings, random_images(settings), device).ready()

    @classmethod
    def load(cls, settings: CifarSettings, data_dir: Path | None, device: torch.device) -> "Cifar":
        return cls(settings, load_whitened(settings, data_dir, float64_device(device)), device)

    @torch.no_grad()
    def initialize(self, index: Tensor) -> Rows:
        logits, rows = measured_init(self.net, minibatch(self.train_x, index), self.settings.v_norm_max)
        self.facts["init_loss"] = F.cross_entropy(logits, self.train_y[index]).item()
        return rows

    def schedule(self) -> None:
        """Set lr and β1 for the next epoch (§5.1): lr·min(2 − epoch/100, 1) in the paper's 200 epochs."""
        s, decays = self.settings, self.epoch >= self.settings.decay_from
        lr = s.lr * (s.epochs - self.epoch) / (s.epochs - s.decay_from) if decays else s.lr
        self.optimizer.set_rates(lr, beta1=0.5 if decays else 0.9)

    def step(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Train on the images of this index, and return their mean loss and number of errors."""
        loss, logits = self.loss(index, self.compilation.function)
        self.optimize(loss)
        return loss.detach(), (logits.detach().argmax(1) != self.train_y[index]).sum()

    def loss(
        self, index: Int[Tensor, " B"], layers: Callable[..., Tensor] | None, precision: str = ""
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B 10"]]:
        """Compute the mean loss in nats and the logits of the training images of this index; layers: see `Net`."""
        with autocast(precision or self.settings.precision, self.device):
            logits = self.net(minibatch(self.train_x, index), layers)
        return F.cross_entropy(logits.float(), self.train_y[index]), logits

    def gradients(self, layers: Callable[..., Tensor] | None, precision: str) -> list[Tensor]:
        """Compute `gradients_of` the first minibatch; layers: replaces `Net.layers` unless it is None."""
        set_precision(precision, self.device)
        index = torch.arange(self.settings.batch_size, device=self.device)
        try:
            return gradients_of(self.net, lambda: self.loss(index, layers, precision)[0], self.device)
        finally:
            set_precision(self.settings.precision, self.device)

    def evaluate(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        losses, errors = self.logged
        tested = self.test_metrics()
        metrics = {"train_error": errors.sum().item() / self.epoch_size, "train_loss": losses.mean().item()} | tested
        return metrics | {"lr": self.optimizer.param_groups[0]["lr"].item()}, {}

    def test_metrics(self) -> dict[str, float]:
        return dict(zip(("test_error", "test_loss"), self.test(), strict=True))

    @torch.no_grad()
    def test(self) -> tuple[float, float]:
        """Compute the error (a fraction) and loss (nats) on the test images, with averaged parameters if available."""
        self.tested.eval()
        sums = torch.zeros(2, device=self.device)
        for index in self.test_batches():
            sums += torch.stack(self.captured_test(index))
        errors, loss = sums.tolist()
        return errors / len(self.test_x), loss / len(self.test_x)

    def test_batch(self, index: Int[Tensor, " B"]) -> tuple[Int[Tensor, ""], Float[Tensor, ""]]:
        """Compute the number of errors and the sum of the losses on the test images of this index."""
        y = self.test_y[index]
        with autocast(self.settings.precision, self.device):
            logits = self.tested(minibatch(self.test_x, index))
        return (logits.argmax(1) != y).sum(), F.cross_entropy(logits.float(), y, reduction="sum")

    @torch.no_grad()
    def classify(self, x: UInt8[Tensor, "N 3 32 32"], data_dir: Path | None) -> Float[Tensor, "N 10"]:
        """Compute the class probabilities of images, which it whitens like the training images."""
        white = to_rows(load_zca(self.settings, data_dir, float64_device(self.device)).apply(x), self.device)
        self.tested.eval()
        with autocast(self.settings.precision, self.device):
            logits = [
                self.tested(minibatch(white, index)).float()
                for index in torch.arange(len(white), device=self.device).split(TEST_BATCH)
            ]
        return torch.cat(logits).softmax(1).cpu()

    @torch.no_grad()
    def exported(self, data_dir: Path | None) -> Exported:
        """Return the whitening and the classifier as one model, from images in 0..1 to logits."""
        white = minibatch(self.test_x[:COMPARED], torch.arange(COMPARED, device=self.device))
        model = nn.Sequential(
            Whitening(load_zca(self.settings, data_dir, float64_device(self.device))), fold(self.tested.eval())
        )
        images = load_images(self.settings.dataset, data_dir).test_x[:COMPARED] / 255
        return Exported(model, images, self.tested(white), ("images", "logits"))

    def measure(self) -> dict[str, Rows]:
        return {"noise": self.noise_rows()} if self.statistics and self.epoch in self.settings.noise_epochs else {}

    @torch.no_grad()
    def noise_rows(self) -> Rows:
        """Measure the noise of minibatch statistics (C8): the medians over features of `noise`'s figures, by layer.

        `excess_kurtosis` has quartiles too. A copy of the network and separate generators leave the run unchanged.
        """
        s = self.settings
        net = copy.deepcopy(self.net).train()
        normalized = {name: layer for name, layer in layers(net) if layer.norm.batch_statistics}
        moments: dict[str, list[Tensor]] = {name: [] for name in normalized}
        for name, layer in normalized.items():
            layer.t.register_forward_hook(lambda _t, _x, t, name=name: moments[name].append(raw_moments(t)))
        draw = torch.Generator().manual_seed(s.seed)
        with kept_generators(self.device):
            torch.manual_seed(s.seed + self.epoch)
            for _ in range(s.noise_minibatches):
                index = torch.randperm(len(self.train_x), generator=draw)[: s.batch_size].to(self.device)
                net(minibatch(self.train_x, index))
        rows = []
        for name, values in moments.items():
            figures = noise(torch.stack(values), variance_too="var" in self.statistics)
            low, median, high = quartiles(figures.pop("excess_kurtosis"))
            row = {"epoch": self.epoch, "layer": name, "excess_kurtosis_median": median}
            row |= {"excess_kurtosis_q25": low, "excess_kurtosis_q75": high}
            row |= {figure: quartiles(of_features)[1] for figure, of_features in figures.items()}
            rows.append(row | {"minibatches": s.noise_minibatches})
        return rows


def raw_moments(t: Float[Tensor, "B C *pixels"]) -> Float64[Tensor, "4 C"]:
    """Compute E[t], E[t²], E[t³], E[t⁴] of every feature over a minibatch."""
    rows = t.movedim(1, -1).reshape(-1, t.shape[1])
    square = rows.square()
    powers = (rows, square, square * rows, square.square())
    device = float64_device(t.device)
    return torch.stack([power.to(device).mean(0, dtype=torch.float64) for power in powers])


def quartiles(values: Float64[Tensor, " C"]) -> list[float]:
    """Compute the lower quartile, median and upper quartile; nan if a value is nan."""
    found: list[float] = values.cpu().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return found


def excess_kurtosis(values: Float64[Tensor, "K C"]) -> Float64[Tensor, " C"]:
    """Compute the bias-corrected excess kurtosis G2 of K ≥ 4 values of each feature: 0 on average for normal values."""
    k, centred = len(values), values - values.mean(0)
    biased = centred.pow(4).mean(0) / centred.square().mean(0).square() - 3
    return (k - 1) / ((k - 2) * (k - 3)) * ((k + 1) * biased + 6)


def noise(moments: Float64[Tensor, "K 4 C"], variance_too: bool) -> dict[str, Float64[Tensor, " C"]]:
    """Compute figures of the shape and size of every feature's normalization noise.

    moments: `raw_moments` of K minibatches. The noise is the difference between normalizing by the statistics of the
    minibatch and by those of all K minibatches: (t − μ_B)/σ_B − (t − μ)/σ if `variance_too` (bn), else −(μ_B − μ)
    (mean-only bn). Both are a·t + c with a and c constant in a minibatch, so the moments of t determine those of the
    noise.

    excess_kurtosis: of the noise over examples and minibatches; with `variance_too` it depends on the distributions of
    both the statistics and t. A normal distribution has 0; the estimate from K of its values is about −6/K.
    kurtosis_mean, kurtosis_std, kurtosis_inverse_std: `excess_kurtosis` of μ_B, σ_B and 1/σ_B over minibatches; the
    last two are nan without `variance_too`.
    noise_size: root mean square of the noise over examples and minibatches, in units of σ.
    """
    m1, m2, m3, m4 = moments.unbind(1)
    mean = m1.mean(0)
    deviation = (m2 - m1.square()).sqrt()
    all_deviation = (m2.mean(0) - mean.square()).sqrt()
    if variance_too:
        a = 1 / deviation - 1 / all_deviation
        c = mean / all_deviation - m1 / deviation
    else:
        a, c = torch.zeros_like(m1), mean - m1
    n1 = (a * m1 + c).mean(0)
    n2 = (a**2 * m2 + 2 * a * c * m1 + c**2).mean(0)
    n3 = (a**3 * m3 + 3 * a**2 * c * m2 + 3 * a * c**2 * m1 + c**3).mean(0)
    n4 = (a**4 * m4 + 4 * a**3 * c * m3 + 6 * a**2 * c**2 * m2 + 4 * a * c**3 * m1 + c**4).mean(0)
    variance = n2 - n1**2
    none = torch.full_like(mean, math.nan)
    return {
        "excess_kurtosis": (n4 - 4 * n1 * n3 + 6 * n1**2 * n2 - 3 * n1**4) / variance**2 - 3,
        "kurtosis_mean": excess_kurtosis(m1),
        "kurtosis_std": excess_kurtosis(deviation) if variance_too else none,
        "kurtosis_inverse_std": excess_kurtosis(1 / deviation) if variance_too else none,
        "noise_size": n2.sqrt() if variance_too else n2.sqrt() / all_deviation,
    }

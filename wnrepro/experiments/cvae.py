"""Training of the convolutional variational autoencoders (§5.2, figure 2); settings in `settings.CvaeSettings`.

Details not in the paper follow openai/iaf, the code of its "manuscript in preparation". All terms are in nats.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wnrepro.compiling import Compilation, compiled, gradients_of
from wnrepro.cuda_graphs import Captured
from wnrepro.data.images import Pixels, load_pixels, random_pixels
from wnrepro.device import autocast, float64_device, image_format, random_generators, set_precision
from wnrepro.experiments.loop import COMPARED, Experiment, Exported, Rows, minibatch, to_rows
from wnrepro.experiments.measurements import measured_init
from wnrepro.experiments.vae import LadderVae, MnistVae
from wnrepro.optim import Adamax, PolyakAverage
from wnrepro.settings import CvaeSettings

DIVERGED_FACTOR = 2  # limit of the loss, in units of the loss of guessing every pixel
COMPILED_FROM = 10_000  # updates from which compiling saves time


def log_mean_exp(log_weights: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """Compute the importance-weighted estimate of log p(x) from K samples of log p(x, z) − log q(z|x)."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


class Cvae(Experiment[CvaeSettings]):
    """The experiment; see `Experiment`. Its facts include the loss on the init batch."""

    net: MnistVae | LadderVae
    average: PolyakAverage
    compilation: Compilation
    objective = "bound"

    def __init__(self, settings: CvaeSettings, pixels: Pixels, device: torch.device) -> None:
        """Create the networks and the optimizer; pixels: see `load_pixels`."""
        super().__init__(settings, device)
        self.train_x, self.test_x = (to_rows(x, device) for x in (pixels.train_x, pixels.test_x))
        model = MnistVae if settings.dataset == "mnist" else LadderVae
        self.net = model(settings).to(device).to(memory_format=image_format(device))
        self.limit = -DIVERGED_FACTOR * self.net.guess_nats
        self.optimizer = Adamax(self.net.parameters(), settings.lr)
        updates = len(self.train_x) // settings.batch_size
        self.average = PolyakAverage(self.net, settings.polyak_epochs * updates)
        self.average.eval()
        self.captured_terms = {
            net: Captured(functools.partial(self.terms, net), device) for net in (self.net, self.average.module)
        }
        self.compilation = Compilation()
        long = settings.epochs * updates >= COMPILED_FROM
        if long and isinstance(self.net, MnistVae) and device.type != "mps":  # its compiler is a prototype
            self.compilation = compiled(self.net.terms, self.gradients, settings.precision)
        self.describe(pixels.source)

    @classmethod
    def on_noise(cls, settings: CvaeSettings, device: torch.device) -> "Cvae":
        return cls(settings, random_pixels(settings), device).ready()

    @classmethod
    def load(cls, settings: CvaeSettings, data_dir: Path | None, device: torch.device) -> "Cvae":
        return cls(settings, load_pixels(settings, data_dir), device)

    @torch.no_grad()
    def initialize(self, index: Tensor) -> Rows:
        """Run the data-dependent init on these images through encoder and decoder."""
        (log_p_x, kl), rows = measured_init(self.net, minibatch(self.train_x, index), self.settings.v_norm_max)
        self.facts["init_loss"] = (self.penalty(kl) - log_p_x.mean()).item()
        return rows

    def step(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""]]:
        """Train on the images of this index, and return their mean bound."""
        loss, bound = self.loss(index, self.compilation.function)
        self.optimize(loss)
        return (bound,)

    def loss(
        self, index: Int[Tensor, " B"], terms: Callable[..., Any] | None, precision: str = ""
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Compute the loss and the mean bound of the training images of this index; terms: see `MnistVae`."""
        with autocast(precision or self.settings.precision, self.device):
            x = minibatch(self.train_x, index)
            log_p_x, kl = self.net(x) if terms is None else self.net(x, terms)
        return self.penalty(kl) - log_p_x.mean(), (log_p_x.detach() - kl.detach().sum(1)).mean()

    def gradients(self, terms: Callable[..., Any] | None, precision: str) -> list[Tensor]:
        """Compute `gradients_of` the first minibatch; terms: replaces the model's method unless it is None."""
        set_precision(precision, self.device)
        index = torch.arange(self.settings.batch_size, device=self.device)
        try:
            return gradients_of(self.net, lambda: self.loss(index, terms, precision)[0], self.device)
        finally:
            set_precision(self.settings.precision, self.device)

    def penalty(self, kl: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
        """Sum the KL over latent units or maps, for each the minibatch's mean but at least `free_bits` nats."""
        mean = kl.mean(0)
        return (mean.clamp(min=self.settings.free_bits) if self.settings.free_bits else mean).sum()

    def evaluate(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        return {"train_bound_nats": self.logged[0].mean().item()} | self.test_metrics(), {}

    def test_metrics(self) -> dict[str, float]:
        reconstruction, kl = self.test(self.average.module)
        metrics = {
            "test_bound_nats": reconstruction - kl,
            "test_bits_per_dim": (kl - reconstruction) / (math.prod(self.net.shape) * math.log(2)),
            "kl_nats": kl,
            "reconstruction_nats": reconstruction,
        }
        if not self.weights_only:  # else there are only the averaged ones
            raw_reconstruction, raw_kl = self.test(self.net)
            metrics["test_bound_nats_raw"] = raw_reconstruction - raw_kl
        return metrics

    def terms(self, net: nn.Module, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Compute log p(x|z) and KL of the test images of this index, for one sample z per image."""
        with autocast(self.settings.precision, self.device):
            log_p_x, kl = net(minibatch(self.test_x, index))
        return log_p_x, kl.sum(1)

    def test_terms(self, net: nn.Module) -> Iterator[tuple[Tensor, ...]]:
        """Yield `terms` of all test images by minibatch; each result is valid until the next."""
        net.eval()
        for index in self.test_batches():
            yield self.captured_terms[net](index)

    @torch.no_grad()
    def test(self, net: nn.Module) -> tuple[float, float]:
        """Compute the mean log p(x|z) and mean KL over the test images.

        Separate generators, the same at every epoch, leave the run unchanged.
        """
        with random_generators(self.settings.seed, self.device):
            terms = [torch.stack(pair).to(float64_device(self.device)).double().sum(1) for pair in self.test_terms(net)]
        log_p_x, kl = (torch.stack(terms).sum(0) / len(self.test_x)).tolist()
        return log_p_x, kl

    @torch.no_grad()
    def log_likelihood(self, samples: int) -> dict[str, Any]:
        """Compute the importance-weighted estimate of the mean test log p(x); samples: the number per image."""
        with random_generators(self.settings.seed, self.device):
            weights = [
                torch.cat([log_p_x - kl for log_p_x, kl in self.test_terms(self.average.module)])
                for _ in range(samples)
            ]
        log_weights = torch.stack(weights).to(float64_device(self.device)).double()
        estimate = log_mean_exp(log_weights).mean().item()
        return {"log_likelihood_nats": estimate, "importance_samples": samples}

    @torch.no_grad()
    def pictures(self, count: int, seed: int) -> dict[str, Float[Tensor, "N C H W"]]:
        """Make `count` `samples`, and `reconstructions` of up to `count` test images, each beside its original.

        Values are in 0..1. The averaged parameters are used.
        """
        net: Any = self.average.module.eval()
        x = minibatch(self.test_x, torch.arange(min(count, len(self.test_x)), device=self.device))
        with random_generators(seed, self.device):
            samples, reconstructions = net.sample(count), net.reconstruct(x)
        pairs = torch.cat([net.show(x), reconstructions], 3)
        return {"samples": samples.cpu(), "reconstructions": pairs.cpu()}

    @torch.no_grad()
    def exported(self, data_dir: Path | None) -> Exported:
        """Return the generator, from noise of N(0, 1) (for MNIST, the latents) to images in 0..1."""
        net: Any = self.average.module.eval()
        with random_generators(self.settings.seed, self.device):
            noise = torch.randn(COMPARED, net.noise_size, device=self.device)
        return Exported(net.generator(), noise, net.generate(noise), ("noise", "images"))

"""DRAW on binarized MNIST (§5.3, figure 3); settings in `settings.DrawSettings`.

Details not in the paper follow jbornschein/draw, the code it cites, and the model of Gregor et al. (2015).
Shapes: B examples, T time steps, L latent units, U units of an LSTM, N filters along each side of a window, images of
SIZE×SIZE pixels. All terms of the bound are in nats.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wnrepro.compiling import Compilation, compiled, gradients_of
from wnrepro.cuda_graphs import Captured
from wnrepro.data.images import Pixels, load_pixels, random_pixels
from wnrepro.device import float64_device, random_generators, set_precision
from wnrepro.drawing import outlined
from wnrepro.errors import UserError
from wnrepro.experiments.loop import COMPARED, Experiment, Exported, Rows
from wnrepro.parameterization import Linear, LSTMCell, elsewhere, fold, layers, updated
from wnrepro.settings import DrawSettings

SIZE = 28
PIXELS = SIZE * SIZE
BANK_TOLERANCE = 1e-4  # added to the sum that normalizes a filter
LEAST_VALUE = 1e-13  # smaller filter values become 0, since their products would be denormal and slow
WINDOW = 5  # parameters of a window
GUESS_NATS = PIXELS * math.log(2)
DIVERGED_FACTOR = 2  # limit of the loss, in units of the loss of guessing every pixel
COMPILED_FROM = 50_000  # time steps of training from which compiling saves time
DRAWN, ENLARGED = 16, 3  # number of samples in the animation, and their magnification
GREYS = 31  # grey levels of the animation, besides black; fewer make a smaller file


# ------------------------------------------------------------------------------- attention


class Grid(nn.Module):
    """The offsets (ΣN, 1) of filters from their window's centre, in pixels at δ = 1, and pixel coordinates (SIZE,).

    filters: the number N for each window.
    """

    offsets: Tensor
    pixels: Tensor

    def __init__(self, filters: tuple[int, ...]) -> None:
        super().__init__()
        self.filters = filters
        offsets = [(i - (count - 1) / 2) * (SIZE - 1) / (count - 1) for count in filters for i in range(count)]
        self.register_buffer("offsets", torch.tensor(offsets).unsqueeze(1), persistent=False)
        self.register_buffer("pixels", torch.arange(float(SIZE)), persistent=False)


@no_type_check  # torch.compile cannot trace checks of types here
class FilterBanks(torch.autograd.Function):
    """Centres μ in pixels (B, N, 2) and 1/σ² (B, N, 1) of filters → their values at the pixels (B, N, 2, SIZE).

    `backward` is explicit, since autograd would read or write the banks three times as often. `forward` has no in-place
    operations, with which torch 2.11 compiles wrong gradients (pytorch issue 180642).
    """

    @staticmethod
    def forward(ctx: Any, mu: Tensor, precision: Tensor, pixels: Tensor) -> Tensor:
        distance = pixels - mu.unsqueeze(3)
        exponent = (distance.square() * (-0.5 * precision.unsqueeze(3))).clamp(min=math.log(LEAST_VALUE) - 1)
        values = F.threshold(exponent.exp(), LEAST_VALUE, 0.0)
        bank = values / (values.sum(3, keepdim=True) + BANK_TOLERANCE)
        ctx.save_for_backward(distance, bank, precision)
        return bank

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_bank: Tensor) -> tuple[Tensor, Tensor, None]:
        distance, bank, precision = ctx.saved_tensors
        d_exponent = d_bank * bank
        d_exponent.sub_(bank * d_exponent.sum(3, keepdim=True))
        slope = d_exponent.mul_(distance)
        d_mu = slope.sum(3)
        d_precision = -0.5 * slope.mul_(distance).sum((2, 3)).unsqueeze(2)
        return d_mu.mul_(precision), d_precision, None


def filter_banks(windows: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Compute F_y and F_x (B, N, SIZE) and intensity γ (B, 1) of each of W windows (B, W, 5) with N filters.

    A window is y and x of its centre (−1..1 between the edges of the image), log δ, log σ² and log γ. δ is the
    distance of neighbouring filters; for δ = 1 the window covers the image (Gregor et al., eq. 19 to 26).
    """
    repeated = (window.expand(-1, count, -1) for window, count in zip(windows.split(1, 1), grid.filters, strict=True))
    each = torch.cat([*repeated], 1)  # (B, ΣN, 5)
    mu = (each[..., :2] + 1) * (SIZE / 2) + torch.exp(each[..., 2:3]) * grid.offsets
    banks = FilterBanks.apply(mu, torch.exp(-each[..., 3:4]), grid.pixels).split(grid.filters, 1)
    gammas = torch.exp(windows[:, :, 4:]).unbind(1)
    return [(bank[:, :, 0], bank[:, :, 1], gamma) for bank, gamma in zip(banks, gammas, strict=True)]


def read(image: Tensor, banks: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute γ·F_y·image·F_xᵀ (B, N²) of images (B, SIZE, SIZE)."""
    f_y, f_x, gamma = banks
    return gamma * torch.bmm(torch.bmm(f_y, image), f_x.transpose(1, 2)).flatten(1)


def write(patch: Tensor, banks: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute F_yᵀ·patch·F_x/γ (B, SIZE, SIZE) of patches (B, N²)."""
    f_y, f_x, gamma = banks
    square = (patch / gamma).view(-1, f_y.shape[1], f_x.shape[1])
    return torch.bmm(f_y.transpose(1, 2), torch.bmm(square, f_x))


def boxes(windows: Tensor) -> Tensor:
    """Compute top, bottom, left and right (B, 4), in pixels, of the outermost filters' centres in windows (B, 5).

    Without windows (B, 0), the boxes are outside the image.
    """
    if not windows.shape[1]:
        return windows.new_full((len(windows), 4), -math.inf)
    y, x = ((windows[:, :2] + 1) * (SIZE / 2)).T
    half = torch.exp(windows[:, 2]) * ((SIZE - 1) / 2)
    return torch.stack([y - half, y + half, x - half, x + half], 1)


# ------------------------------------------------------------------------------- the model


@no_type_check
class Sample(torch.autograd.Function):
    """Mean and log standard deviation (B, 2·L) and noise (B, L) → z (B, L), and its KL from N(0, 1) (B,)."""

    @staticmethod
    def forward(ctx: Any, statistics: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = statistics.chunk(2, 1)
        std = torch.exp(log_std)
        ctx.save_for_backward(mean, std, noise)
        kl = 0.5 * (torch.linalg.vecdot(mean, mean) + torch.linalg.vecdot(std, std) - mean.shape[1])
        return torch.addcmul(mean, std, noise), kl - log_std.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_z: Tensor, d_kl: Tensor) -> tuple[Tensor, None]:
        mean, std, noise = ctx.saved_tensors
        d_kl = d_kl.unsqueeze(1)
        d_log_std = (d_z * noise).addcmul_(d_kl, std).mul_(std).sub_(d_kl)
        return torch.cat([torch.addcmul(d_z, d_kl, mean), d_log_std], 1), None


class State(NamedTuple):
    """The state between time steps: h and c (B, U) of both LSTMs, the canvas, and the filter banks for reading."""

    encoder_state: tuple[Tensor, Tensor]
    decoder_state: tuple[Tensor, Tensor]
    canvas: Tensor
    banks: Any


class DrawNet(nn.Module):
    """Images (B, 1, SIZE, SIZE) of 0 and 1 and noise (T, B, L) → log p(x|z) (B,) and KL by time step (T, B).

    The weights are computed once for all time steps. Only the LSTMs' input-to-hidden products have the batch statistics
    of `param`, if there are any, separate for each time step (Cooijmans et al., 2016). `compiled`: `time_step` compiled
    by torch.compile, for training, or None.
    """

    def __init__(self, settings: DrawSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.compiled: Callable[..., Any] | None = None
        self.precision = settings.precision
        if s.attention:
            self.grid = Grid((s.write_window, s.read_window))
        plain, options = elsewhere(s.param), dict[str, Any](v_std=s.weight_std)
        seen = 2 * (s.read_window**2 if s.attention else PIXELS)
        self.encoder = LSTMCell(seen + s.units, s.units, s.param, time_steps=s.time_steps, **options)
        self.statistics = Linear(s.units, 2 * s.latents, plain, **options)  # mean and log standard deviation of z
        self.decoder = LSTMCell(s.latents, s.units, s.param, time_steps=s.time_steps, **options)
        # The patch to write and, with attention, the windows for writing it and for the next reading.
        self.heads = Linear(s.units, s.write_window**2 + 2 * WINDOW if s.attention else PIXELS, plain, **options)
        for _, layer in layers(self):
            if s.g_start is not None and layer.norm.learns_g:
                layer.set_g(torch.full_like(layer.g, s.g_start))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        x = x.view(-1, SIZE, SIZE).float()
        canvases, kl, _ = self.unroll(noise, x)
        log_p_x = -F.binary_cross_entropy_with_logits(canvases[-1], x, reduction="none").sum((1, 2))
        return log_p_x, torch.stack(kl)

    def unroll(self, noise: Tensor, x: Tensor | None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Run all time steps; return the canvas (B, SIZE, SIZE), the KL (B,) and the write window (B, 5) of each.

        Without images x (B, SIZE, SIZE) the noise is z, and there is no KL. Without attention, windows are (B, 0).
        """
        s, step = self.settings, (self.compiled if self.training else None) or self.time_step
        dtype = torch.bfloat16 if self.precision == "bf16" else self.heads.v.dtype
        weights = (
            *(cell.unrolled(dtype) for cell in (self.encoder, self.decoder)),
            *(layer.w().to(dtype) for layer in (self.statistics, self.heads)),
        )
        start = (noise.new_zeros(noise.shape[1], s.units, dtype=dtype), noise.new_zeros(noise.shape[1], s.units))
        canvas = noise.new_zeros(noise.shape[1], SIZE, SIZE)
        *_, banks = self.attend(self.heads(start[0], weights[3]))
        state = State(start, start, canvas, banks)
        canvases, kls, write_windows = [], [], []
        for time_step in range(s.time_steps):
            state, kl, window = step(x, noise[time_step], state, weights, time_step)
            if kl is not None:
                kls.append(kl)
            canvases.append(state.canvas)
            write_windows.append(window)
        return canvases, kls, write_windows

    def time_step(
        self, x: Tensor | None, noise: Tensor, state: State, weights: tuple[Any, ...], number: int
    ) -> tuple[State, Tensor | None, Tensor]:
        """Run a time step; return the new state, the KL (B,) if there are images, and the write window (B, 5)."""
        encoder, decoder, statistics, heads = weights
        encoder_state, decoder_state, canvas, banks = state
        z, kl = noise, None
        if x is not None:
            seen = [*self.read(x, canvas, banks), decoder_state[0]]
            encoder_state = self.encoder(seen, encoder_state, encoder, number)
            z, kl = Sample.apply(self.statistics(encoder_state[0], statistics), noise)
        decoder_state = self.decoder(z, decoder_state, decoder, number)
        patch, windows, write_banks, banks = self.attend(self.heads(decoder_state[0], heads))
        canvas = canvas + (write(patch, write_banks) if self.settings.attention else patch.view_as(canvas))
        return State(encoder_state, decoder_state, canvas, banks), kl, windows[:, 0]

    def attend(self, heads: Tensor) -> tuple[Tensor, Tensor, Any, Any]:
        """Return the patch to write, both windows (B, 2, 5), and the filter banks for writing and the next reading."""
        if not self.settings.attention:
            return heads, heads.new_empty(len(heads), 2, 0), None, None
        patch, windows = heads.split([heads.shape[1] - 2 * WINDOW, 2 * WINDOW], 1)
        windows = windows.view(-1, 2, WINDOW)
        return patch, windows, *filter_banks(windows, self.grid)

    def read(self, x: Tensor, canvas: Tensor, banks: Any) -> tuple[Tensor, Tensor]:
        """Return the glimpses (B, N²), or without attention all pixels, of the images and of the error images."""
        drawn = torch.sigmoid(canvas)
        if not self.settings.attention:
            return x.flatten(1), (x - drawn).flatten(1)
        x_glimpse = read(x, banks)
        return x_glimpse, x_glimpse - read(drawn, banks)  # reading is linear


class Generator(nn.Module):
    """The decoder of a `DrawNet` as plain layers: noise (B, T, L) of N(0, 1) → images (B, 1, SIZE, SIZE) in 0..1.

    `factor` and `offset` (T, 4·U) are those of the decoder's input-to-hidden products at every time step, which have
    separate batch statistics.
    """

    factor: Tensor
    offset: Tensor

    @torch.no_grad()
    def __init__(self, net: DrawNet) -> None:
        super().__init__()
        s, cell = net.settings, net.decoder
        if not all(layer.norm.affine for _, layer in layers(cell)):
            raise UserError(f"--format: {s.param} is not an affine function in evaluation, so it has no plain layers")
        self.time_steps, self.units, self.attention = s.time_steps, s.units, s.attention
        self.register_buffer("offset", self.outputs(cell.input, 0.0))
        self.register_buffer("factor", self.outputs(cell.input, 1.0) - self.offset)
        self.input = nn.Linear(s.latents, 4 * s.units, bias=False)
        self.input.weight.copy_(cell.input.w())
        self.recurrent, self.heads = fold(cell.recurrent), fold(net.heads)
        if s.attention:
            self.grid = Grid((s.write_window,))

    def outputs(self, layer: Linear, value: float) -> Tensor:
        """Compute the layer's outputs (T, units) at every time step if its products have this value."""
        products = layer.v.new_full((1, layer.units), value)
        return torch.cat([layer.norm.output(layer, products, time) for time in range(self.time_steps)])

    def forward(self, noise: Tensor) -> Tensor:
        h = c = noise.new_zeros(noise.shape[0], self.units)
        canvas = noise.new_zeros(noise.shape[0], SIZE, SIZE)
        for time in range(self.time_steps):
            gates = self.input(noise[:, time]) * self.factor[time] + self.offset[time] + self.recurrent(h)
            i, f, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            canvas = canvas + self.stroke(self.heads(h))
        return torch.sigmoid(canvas).unsqueeze(1)

    def stroke(self, heads: Tensor) -> Tensor:
        """Compute what the heads add to the canvas (B, SIZE, SIZE)."""
        if not self.attention:
            return heads.view(-1, SIZE, SIZE)
        patch, windows = heads.split([heads.shape[1] - 2 * WINDOW, 2 * WINDOW], 1)
        (banks,) = filter_banks(windows[:, None, :WINDOW], self.grid)
        return write(patch, banks)


# ------------------------------------------------------------------------------- the experiment


class Draw(Experiment[DrawSettings]):
    """The experiment; see `Experiment`. Its facts include the bound on the first minibatch."""

    net: DrawNet
    compilation: Compilation
    objective, limit = "bound", -DIVERGED_FACTOR * GUESS_NATS

    def __init__(self, settings: DrawSettings, pixels: Pixels, device: torch.device) -> None:
        """Create the network and the optimizer; pixels: see `load_pixels`."""
        super().__init__(settings, device)
        self.train_x, self.test_x = pixels.train_x.to(device), pixels.test_x.to(device)
        self.net = DrawNet(settings).to(device)
        capturable = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.net.parameters(), settings.lr, fused=True, capturable=capturable)
        self.captured_terms = Captured(self.test_terms, device)
        time_steps = settings.epochs * (len(self.train_x) // settings.batch_size) * settings.time_steps
        self.compilation = Compilation()
        if time_steps >= COMPILED_FROM and device.type != "mps":  # its compiler is a prototype
            self.compilation = compiled(self.net.time_step, self.gradients, settings.precision)
        self.net.compiled = self.compilation.function
        self.describe(pixels.source)

    @classmethod
    def on_noise(cls, settings: DrawSettings, device: torch.device) -> "Draw":
        return cls(settings, random_pixels(settings), device).ready()

    @classmethod
    def load(cls, settings: DrawSettings, data_dir: Path | None, device: torch.device) -> "Draw":
        return cls(settings, load_pixels(settings, data_dir), device)

    def step(self, index: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Train on the images of this index, and return their mean bound and the gradient's norm before clipping."""
        loss = self.loss(index)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.gradient_norm_max)
        self.optimizer.step()
        updated(self.net)
        return -loss.detach(), norm

    def loss(self, index: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Compute the mean negative bound of the training images of this index in nats."""
        log_p_x, kl = self.terms(self.train_x[index])
        return kl.sum(0).mean() - log_p_x.mean()

    def gradients(self, time_step: Callable[..., Any] | None, precision: str) -> list[Tensor]:
        """Compute `gradients_of` the first minibatch; time_step: replaces `DrawNet.time_step` unless it is None."""
        set_precision(precision, self.device)
        index, net = torch.arange(self.settings.batch_size, device=self.device), self.net
        before = net.compiled, net.precision
        net.compiled, net.precision = time_step, precision
        try:
            return gradients_of(net, lambda: self.loss(index), self.device)
        finally:
            net.compiled, net.precision = before
            set_precision(self.settings.precision, self.device)

    def terms(self, x: Shaped[Tensor, "B 1 28 28"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "T B"]]:
        """Compute log p(x|z) and KL for one sample z per image."""
        noise = torch.randn(self.settings.time_steps, len(x), self.settings.latents, device=self.device)
        log_p_x, kl = self.net(x, noise)
        return log_p_x, kl

    def evaluate(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        bounds, norms = self.logged
        self.facts.setdefault("start_bound_nats", bounds[0].item())
        reconstruction, kls = self.test()
        metrics = {"train_bound_nats": bounds.mean().item(), "gradient_norm": norms.mean().item()}
        rows = [{"epoch": self.epoch, "time_step": t, "kl_nats": kl} for t, kl in enumerate(kls, start=1)]
        return metrics | self.bound(reconstruction, kls), {"kl_steps": rows}

    def test_metrics(self) -> dict[str, float]:
        return self.bound(*self.test())

    def bound(self, reconstruction: float, kls: list[float]) -> dict[str, float]:
        """Return the metrics of the result of `test`."""
        terms = {"reconstruction_nats": reconstruction, "kl_nats": sum(kls)}
        return {"test_bound_nats": reconstruction - sum(kls)} | terms

    @torch.no_grad()
    def test(self) -> tuple[float, list[float]]:
        """Compute the mean log p(x|z) and the mean KL of every time step over the test images, in nats.

        Separate generators, the same at every epoch, leave the run unchanged.
        """
        self.net.eval()
        total = torch.zeros(1 + self.settings.time_steps, dtype=torch.float64, device=float64_device(self.device))
        with random_generators(self.settings.seed, self.device):
            for index in self.test_batches():
                total += self.captured_terms(index)[0]
        log_p_x, *kls = (total / len(self.test_x)).tolist()
        return log_p_x, kls

    def test_terms(self, index: Int[Tensor, " B"]) -> tuple[Float64[Tensor, " sums"]]:
        """Compute the sums of log p(x|z) and of every time step's KL over the test images of this index."""
        log_p_x, kl = self.terms(self.test_x[index])
        return (torch.cat([log_p_x[None], kl]).to(float64_device(self.device)).double().sum(1),)

    @torch.no_grad()
    def pictures(self, count: int, seed: int) -> dict[str, Float[Tensor, "..."]]:
        """Make `count` `samples`, `reconstructions` of up to `count` test images beside their originals, and `drawing`.

        `drawing` (T + 1, DRAWN, 3, …) shows the first samples after each time step, with the write window outlined. Its
        last frame has no outlines. Values are in 0..1.
        """
        s, net, x = self.settings, self.net.eval(), self.test_x[:count].float()
        with random_generators(seed, self.device):
            noise = torch.randn(s.time_steps, count, s.latents, device=self.device)
            canvases, _, windows = net.unroll(noise, None)
            noise = torch.randn(s.time_steps, len(x), s.latents, device=self.device)
            reconstructed = net.unroll(noise, x.squeeze(1))[0][-1].sigmoid().unsqueeze(1)
        frames = [
            outlined((GREYS * canvas[:DRAWN].sigmoid()).round() / GREYS, boxes(window[:DRAWN]), ENLARGED)
            for canvas, window in zip([*canvases, canvases[-1]], [*windows, windows[-1][:, :0]], strict=True)
        ]
        return {
            "samples": canvases[-1].sigmoid().unsqueeze(1).cpu(),
            "reconstructions": torch.cat([x, reconstructed], 3).cpu(),
            "drawing": torch.stack(frames).cpu(),
        }

    @torch.no_grad()
    def exported(self, data_dir: Path | None) -> Exported:
        """Return the generator, from noise (B, T, L) of N(0, 1) to images in 0..1."""
        s, net = self.settings, self.net.eval()
        with random_generators(s.seed, self.device):
            noise = torch.randn(COMPARED, s.time_steps, s.latents, device=self.device)
        expected = net.unroll(noise.transpose(0, 1), None)[0][-1].sigmoid().unsqueeze(1)
        return Exported(Generator(net), noise, expected, ("noise", "images"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        capturable = self.device.type == "cuda"  # even if the checkpoint has another device
        groups = [group | {"capturable": capturable} for group in state["optimizer"]["param_groups"]]
        super().load_state_dict(state | {"optimizer": state["optimizer"] | {"param_groups": groups}})

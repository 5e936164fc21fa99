"""The paper: w = g·v/‖v‖, mean-only batch normalization, data-dependent init (§2, §3, §4, §6).

A layer here is a weighted sum t = w·x and what the parameterization makes of t:

| param     | weight                  | output                               |
|-----------|-------------------------|--------------------------------------|
| `normal`  | w = scale·v, scale fixed | t + b                                |
| `bn`      | w = v                   | g·(t − μ[t])/√(σ²[t] + ε) + b        |
| `wn`      | w = g·v/‖v‖             | t + b                                |
| `wn+mobn` | w = g·v/‖v‖             | t − μ[t] + b                         |

A fresh layer has g = ‖v‖ and b = 0, so that `wn` and `normal` start as the very same function where no
init pass applies (recurrent nets, §3); `data_dependent_init` sets g and b from a batch (eq. 4, 5).
Shapes: B examples, C output units. The norm is over every dimension of v but the output unit's.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro.recurrence import Unrolled, lstm_step, product
from wnrepro.settings import PARAMS

BN_EPSILON = 1e-6  # authors' code
BN_MOMENTUM = 0.1  # running averages 0.9/0.1, authors' code
V_STD = 0.05  # §3


class ConstantFeatureError(ValueError):
    """Features of `layer` have zero variance over the init batch, so that 1/σ[t] does not exist."""

    def __init__(self, layer: nn.Module, features: int, name: str = "") -> None:
        super().__init__(
            f"data-dependent init: {features} features of layer {name or type(layer).__name__!r} do not vary "
            "over the init batch; give a larger or more varied batch"
        )
        self.layer, self.features = layer, features


def unit_norm(v: Tensor, unit_dim: int) -> Tensor:
    """‖v‖ per output unit: shape of v with every dimension but `unit_dim` 1."""
    dims = [d for d in range(v.ndim) if d != unit_dim]
    return torch.linalg.vector_norm(v, dim=dims, keepdim=True)


def along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """values (C,) shaped to broadcast over x along its dimension `dim`, which has C elements."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return values.view(shape)


def weight_norm(v: Tensor, g: Tensor, unit_dim: int = 0) -> Tensor:
    """w = g·v/‖v‖ (eq. 2); g of shape (C,), w of v's shape and, if that is channels_last, of its strides."""
    if unit_dim == 0:  # torch's kernel, forward and backward in one pass each, knows the first dimension
        if v.ndim == 4 and v.stride(1) == 1:  # and contiguous tensors; with one input map a convolution goes by strides
            return torch._weight_norm(v.permute(0, 2, 3, 1), along(g, v, 0), 0).permute(0, 3, 1, 2)
        return torch._weight_norm(v, along(g, v, 0), 0)
    return v * (along(g, v, unit_dim) / unit_norm(v, unit_dim))


def glorot_std(v_shape: Sequence[int]) -> float:
    """Of Glorot's uniform distribution for a weight (units, inputs, …) or (inputs, units, …)."""
    return math.sqrt(2 / ((v_shape[0] + v_shape[1]) * math.prod(v_shape[2:])))


def batch_dims(t: Tensor, feature_dim: int) -> list[int]:
    """Every dimension of t but its features'."""
    return [d for d in range(t.ndim) if d != feature_dim % t.ndim]


class MeanOnly(torch.autograd.Function):
    """t (B, C, …), μ[t] and b (C,) → t − μ[t] + b, whose gradient loses its own mean over the batch (eq. 6, 7).

    μ[t] is a function of t, but no gradient is wanted of it. The gradient's mean has the gradient's precision.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, mean: Tensor, b: Tensor, feature_dim: int) -> Tensor:
        return t + along(b - mean, t, feature_dim).to(t.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        _, _, b, feature_dim = inputs
        ctx.feature_dim, ctx.dtype = feature_dim, b.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        of_b = gradient.sum(batch_dims(gradient, ctx.feature_dim))
        mean = of_b * (of_b.numel() / gradient.numel())
        return gradient - along(mean, gradient, ctx.feature_dim), None, of_b.to(ctx.dtype), None


class Parameterized(nn.Module):
    """A weight layer under one of the four parameterizations; the subclasses say what the weighted sum is.

    param: `normal`, `bn`, `wn` or `wn+mobn`.
    g_exp: c of g = exp(c·s), s learnt in place of g (§6.1); None for g itself.
    init: what `normal` starts from; the function is that of the other three. `folded`: the init pass folds its scale
        into the weight once (§3). `authors`: v has Glorot's standard deviation, and the scale stays a constant factor
        of the weight, so that the gradient is scaled by it too (the authors' classifier).
    v_std: standard deviation of v's elements at the start, but for `authors`.
    mask: of v's shape, 0 where the layer has no weight.
    time_steps: in a recurrence, the number of time steps; each then has running averages of its own.
    """

    unit_dim = 0  # v's output dimension
    feature_dim = 1  # t's feature dimension
    mask: Tensor | None
    scale: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        v_shape: Sequence[int],
        units: int,
        param: str,
        *,
        g_exp: float | None = None,
        init: str = "folded",
        v_std: float = V_STD,
        mask: Tensor | None = None,
        time_steps: int | None = None,
    ) -> None:
        super().__init__()
        if param not in PARAMS:
            raise ValueError(f"param {param!r} is none of {', '.join(PARAMS)}")
        self.param = param
        self.g_exp = g_exp
        self.init = init
        self.initializing = False
        self.t = nn.Identity()  # where a hook sees t, before the batch statistics
        self.register_buffer("mask", mask, persistent=False)
        if param == "normal" and init == "authors":
            v_std = glorot_std(v_shape)
        self.v = nn.Parameter(self.masked(torch.randn(*v_shape) * v_std))
        self.b = nn.Parameter(torch.zeros(units))
        if param == "normal":
            self.register_buffer("scale", torch.ones(units))
        else:
            self.gain = nn.Parameter(torch.ones(units))  # g, or s where g = exp(c·s)
            self.set_g(torch.ones(units) if param == "bn" else self.v_norm())
        statistics = (units,) if time_steps is None else (time_steps, units)
        if param in ("bn", "wn+mobn"):
            self.register_buffer("running_mean", torch.zeros(statistics))
        if param == "bn":
            self.register_buffer("running_var", torch.ones(statistics))

    def weighted_sum(self, x: Tensor, w: Any, b: Tensor | None) -> Tensor:
        """t = w·x, + b where given."""
        raise TypeError(f"{type(self).__name__} is no layer by itself: use Linear, Conv2d and so on")

    def masked(self, v: Tensor) -> Tensor:
        """v with the weights that the layer does not have set to 0."""
        return v if self.mask is None else v * self.mask

    def v_norm(self) -> Tensor:
        """‖v‖ per output unit, (C,)."""
        return unit_norm(self.masked(self.v), self.unit_dim).flatten()

    @property
    def g(self) -> Tensor:
        """The learnt scale per output unit, (C,); for `normal`, which has none, ‖w‖."""
        if self.param == "normal":
            return self.v_norm() * self.scale
        return self.gain if self.g_exp is None else torch.exp(self.g_exp * self.gain)

    @torch.no_grad()
    def set_g(self, g: Tensor) -> None:
        """Set g (of `bn`, `wn`, `wn+mobn`), through s where g = exp(c·s)."""
        self.gain.copy_(g if self.g_exp is None else g.log() / self.g_exp)

    def weight(self) -> Tensor:
        """w, of v's shape. In a recurrence call it once a step and give it to `forward`."""
        v = self.masked(self.v)
        if self.param == "bn":
            return v
        if self.param == "normal":
            return v * along(self.scale, v, self.unit_dim)
        return weight_norm(v, self.g, self.unit_dim)

    def forward(self, x: Tensor, w: "Tensor | Unrolled | None" = None, time: int | EllipsisType = ...) -> Tensor:
        """The layer's output; w: what `weight()` gave; time: the time step, where each has averages of its own."""
        if self.initializing:
            return self.initialize(x)
        if w is None:
            w = self.weight()
        if self.param in ("normal", "wn"):
            return self.weighted_sum(x, w, self.b)
        t = self.t(self.weighted_sum(x, w, None))
        if self.param == "bn":
            return self.batch_norm(t, time)
        return self.mean_only_batch_norm(t, time)

    def batch_norm(self, t: Tensor, time: int | EllipsisType) -> Tensor:
        """g·(t − μ[t])/√(σ²[t] + ε) + b, with the running averages in evaluation."""
        rows = t if self.feature_dim == 1 else t.reshape(-1, t.shape[-1])
        averages = self.running_mean[time], self.running_var[time]
        y = F.batch_norm(rows, *averages, self.g, self.b, self.training, BN_MOMENTUM, BN_EPSILON)
        return y.view_as(t)

    def mean_only_batch_norm(self, t: Tensor, time: int | EllipsisType) -> Tensor:
        """t − μ[t] + b (eq. 6), with the running mean in evaluation."""
        average = self.running_mean[time]
        if not self.training:
            return t + along(self.b - average, t, self.feature_dim).to(t.dtype)
        with torch.no_grad():
            mean = t.mean(batch_dims(t, self.feature_dim), dtype=self.b.dtype)
            average.lerp_(mean, BN_MOMENTUM)
        y: Tensor = MeanOnly.apply(t, mean, self.b, self.feature_dim)
        return y

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Set g and b from this batch (eq. 5) and return (t − μ[t])/σ[t] (eq. 4).

        Raises ConstantFeatureError when a feature does not vary over the batch.
        """
        self.initializing = False
        v = self.masked(self.v)
        t = self.weighted_sum(x, v / unit_norm(v, self.unit_dim), None)
        dims = batch_dims(t, self.feature_dim)
        mean = t.mean(dims)
        centred = t - along(mean, t, self.feature_dim)
        std = centred.square().mean(dims).sqrt()
        # A constant feature still shows rounding noise, about eps times the size of what was summed.
        noise = 4 * torch.finfo(t.dtype).eps * torch.maximum(mean.abs(), x.abs().amax())
        constant = ~(std > noise)
        if constant.any():
            raise ConstantFeatureError(self, int(constant.sum()))
        norm = self.v_norm()
        if self.param == "normal":
            self.scale.copy_(1 / (norm * std))
            if self.init == "folded":
                self.v.copy_(self.weight())
                self.scale.fill_(1)
        elif self.param == "bn":  # 1, but for the ε that the normalization will add
            self.set_g((1 + BN_EPSILON / (norm * std).square()).sqrt())
        else:
            self.set_g(1 / std)
        self.b.zero_()
        if self.param in ("normal", "wn"):
            self.b.copy_(-mean / std)
        elif self.param == "wn+mobn":
            self.running_mean.copy_(mean / std)
        else:
            count = t.numel() // len(mean)
            self.running_mean.copy_(mean * norm)
            self.running_var.copy_((std * norm).square() * (count / (count - 1)))
        return centred / along(std, t, self.feature_dim)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Plain weight and bias of the same function in evaluation: w of v's shape, b of shape (C,).

        Raises ValueError where the time steps have averages of their own, and so no bias in common.
        """
        if self.param in ("bn", "wn+mobn") and self.running_mean.ndim > 1:
            raise ValueError("fold: every time step has running averages of its own, and so another bias")
        w: Tensor = self.weight()
        b: Tensor = self.b
        if self.param == "wn+mobn":
            b = b - self.running_mean
        elif self.param == "bn":
            factor = self.g / (self.running_var + BN_EPSILON).sqrt()
            w, b = w * along(factor, w, self.unit_dim), b - factor * self.running_mean
        return w.detach(), b.detach().clone()

    def fold(self) -> nn.Module:
        """The plain torch layer of the same function in evaluation."""
        plain = self.plain_layer()
        w, b = self.folded()
        plain.weight, plain.bias = nn.Parameter(w), nn.Parameter(b)
        return plain.train(self.training)

    def plain_layer(self) -> nn.Module:
        """A torch layer of the same shape, its weight and bias yet to be given."""
        raise TypeError(f"{type(self).__name__} is no layer by itself: use Linear, Conv2d and so on")

    def extra_repr(self) -> str:
        return f"{self.param}, v {tuple(self.v.shape)}" + (f", g = exp({self.g_exp}·s)" if self.g_exp else "")


class Linear(Parameterized):
    """Dense layer: x (…, inputs) → (…, units)."""

    feature_dim = -1

    def __init__(self, inputs: int, units: int, param: str, **options: Any) -> None:
        super().__init__((units, inputs), units, param, **options)

    def weighted_sum(self, x: Tensor, w: "Tensor | Unrolled", b: Tensor | None) -> Tensor:
        return product(x, w, b) if isinstance(w, Unrolled) else F.linear(x, w, b)

    def unrolled(self, dtype: torch.dtype | None = None, gathered: bool = True) -> Unrolled:
        """The weight for many time steps, to be given to `forward`: it is computed once, and so is its gradient.

        dtype: of the factors of the products, where it is not the weight's; gathered: see `Unrolled`.
        """
        return Unrolled(self.weight(), dtype, gathered)

    def plain_layer(self) -> nn.Module:
        units, inputs = self.v.shape
        return nn.Linear(inputs, units, device="meta")


class Conv2d(Parameterized):
    """Convolution: x (B, inputs, H, W) → (B, units, H', W')."""

    def __init__(
        self,
        inputs: int,
        units: int,
        kernel: int,
        param: str,
        *,
        stride: int = 1,
        padding: int = 0,
        **options: Any,
    ) -> None:
        super().__init__((units, inputs, kernel, kernel), units, param, **options)
        self.stride, self.padding = stride, padding

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, self.stride, self.padding)

    def plain_layer(self) -> nn.Module:
        units, inputs, kernel, _ = self.v.shape
        return nn.Conv2d(inputs, units, kernel, self.stride, self.padding, device="meta")


class MaskedConv2d(Conv2d):
    """Convolution whose weight is 0 where `mask` (units, inputs, kernel, kernel) is; ‖v‖ is of the rest."""

    def __init__(self, inputs: int, units: int, kernel: int, param: str, mask: Tensor, **options: Any) -> None:
        super().__init__(inputs, units, kernel, param, mask=mask, **options)


class ConvTranspose2d(Parameterized):
    """Transposed convolution: x (B, inputs, H, W) → (B, units, H', W'); v is (inputs, units, k, k)."""

    unit_dim = 1

    def __init__(
        self,
        inputs: int,
        units: int,
        kernel: int,
        param: str,
        *,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        **options: Any,
    ) -> None:
        super().__init__((inputs, units, kernel, kernel), units, param, **options)
        self.stride, self.padding, self.output_padding = stride, padding, output_padding

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv_transpose2d(x, w, b, self.stride, self.padding, self.output_padding)

    def plain_layer(self) -> nn.Module:
        inputs, units, kernel, _ = self.v.shape
        return nn.ConvTranspose2d(inputs, units, kernel, self.stride, self.padding, self.output_padding, device="meta")


def without_batch_statistics(param: str) -> str:
    """The parameterization of a recurrent net's other layers, where the input-to-hidden products have `param`."""
    return {"bn": "normal", "wn+mobn": "wn"}.get(param, param)


class LSTMCell(nn.Module):
    """LSTM cell (§5.3) with one g per gate row: x (B, inputs), state (h, c) each (B, units) → new state.

    Batch statistics, where `param` has them, are of the input-to-hidden product alone; the recurrent
    product is then `normal` under `bn`, `wn` under `wn+mobn`. Gates in torch's order: i, f, g, o.
    """

    def __init__(self, inputs: int, units: int, param: str, *, time_steps: int | None = None, **options: Any) -> None:
        super().__init__()
        self.input = Linear(inputs, 4 * units, param, time_steps=time_steps, **options)
        self.recurrent = Linear(units, 4 * units, without_batch_statistics(param), **options)

    def unrolled(self, dtype: torch.dtype | None = None, gathered: bool = True) -> tuple[Unrolled, Unrolled]:
        """Both weights for many time steps, to be given to `forward` at each of them; see `Linear`."""
        return self.input.unrolled(dtype, gathered), self.recurrent.unrolled(dtype, gathered)

    def forward(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor],
        weights: tuple[Unrolled, Unrolled] | None = None,
        time: int | EllipsisType = ...,
    ) -> tuple[Tensor, Tensor]:
        h, c = state
        w_input, w_recurrent = weights or self.unrolled()
        return lstm_step(self.input(x, w_input, time), h, c, w_recurrent, self.recurrent.b)

    def fold(self) -> nn.Module:
        """The plain torch.nn.LSTMCell of the same function in evaluation."""
        plain = nn.LSTMCell(self.input.v.shape[1], self.recurrent.v.shape[1], device="meta")
        (w_input, b_input), (w_recurrent, b_recurrent) = self.input.folded(), self.recurrent.folded()
        plain.weight_ih, plain.bias_ih = nn.Parameter(w_input), nn.Parameter(b_input)
        plain.weight_hh, plain.bias_hh = nn.Parameter(w_recurrent), nn.Parameter(b_recurrent)
        return plain.train(self.training)


def layers(model: nn.Module) -> Iterator[tuple[str, Parameterized]]:
    """Every parameterized layer of the tree with its name, in order."""
    for name, module in model.named_modules():
        if isinstance(module, Parameterized):
            yield name, module


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any) -> Any:
    """Set every g and b from one forward pass of `model(*inputs)` and return its output (§3, eq. 4, 5).

    The pass runs in training mode, as the authors' does: noise and dropout are on. A layer that is called
    more than once is set by its first call. Raises ConstantFeatureError naming a layer with a feature that
    is the same for the whole batch, and ValueError naming layers that the pass did not reach.
    """
    was_training = model.training
    named = dict(layers(model))
    for layer in named.values():
        layer.initializing = True
    model.train()
    try:
        output = model(*inputs)
        missed = [name for name, layer in named.items() if layer.initializing]
    except ConstantFeatureError as error:
        culprit = next(name for name, layer in named.items() if layer is error.layer)
        raise ConstantFeatureError(error.layer, error.features, culprit) from None
    finally:
        for layer in named.values():
            layer.initializing = False
        model.train(was_training)
    if missed:
        raise ValueError(f"data-dependent init: the forward pass did not reach {', '.join(missed)}")
    return output


@torch.no_grad()
def bound_v_norm(model: nn.Module, a: float) -> None:
    """Scale every v with ‖v‖ > a back to ‖v‖ = a (§6.2). Under `wn` the function stays the same."""
    for _, layer in layers(model):
        layer.v.mul_((a / unit_norm(layer.masked(layer.v), layer.unit_dim)).clamp_(max=1))


def fold(model: nn.Module) -> nn.Module:
    """A copy of the model in plain torch layers: the same function in evaluation, for inference."""
    return copy.deepcopy(model, {id(layer): layer.fold() for layer in foldable(model)})


@torch.no_grad()
def refold(model: nn.Module, plain: nn.Module) -> None:
    """Make what `fold` once made of the model that of the model as it is now, in place; without LSTM cells."""
    for name, layer in layers(model):
        there: Any = plain.get_submodule(name)
        for mine, theirs in zip((there.weight, there.bias), layer.folded(), strict=True):
            mine.copy_(theirs)


def foldable(model: nn.Module) -> Iterator["Parameterized | LSTMCell"]:
    """The layers of the tree that have a plain torch layer of their own."""
    if isinstance(model, Parameterized | LSTMCell):
        yield model
    else:
        for child in model.children():
            yield from foldable(child)

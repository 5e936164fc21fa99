"""Layers: weighted sums t = w·x, with a parameterization that defines w and the output.

A new layer has g = ‖v‖ and b = 0. Without an init pass (recurrent nets, §3), weight normalization and the normal
parameterization therefore start as the same function. `data_dependent_init` sets g and b from a batch (eq. 4, 5).
Shapes: B examples, C output units. A norm is over all dimensions of v except the output units'.
"""

import abc
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wnrepro.parameterization.norm import (
    Param,
    Same,
    Time,
    Units,
    along,
    fallback,
    name_of,
    parameterization,
    unit_norm,
)

MOMENTUM = 0.1  # weight of the new statistic in running averages, authors' code
V_STD = 0.05  # §3


class ConstantFeatureError(ValueError):
    """Features of `layer` have zero variance over the init batch, so that 1/σ[t] is undefined."""

    def __init__(self, layer: nn.Module, features: int, name: str = "") -> None:
        super().__init__(
            f"data-dependent init: {features} features of layer {name or type(layer).__name__!r} do not vary "
            "over the init batch; use a larger or more varied batch"
        )
        self.layer, self.features = layer, features


class Parameterized(nn.Module, abc.ABC):
    """A weighted sum with a parameterization; a subclass defines the sum.

    v_shape: the weight's shape; units: C.
    param: `normal`, `bn`, `wn`, `wn+mobn`, or a custom class.
    g_exp: c of g = exp(c·s), where s is learnt instead of g (§6.1); None to learn g.
    init: `folded` or `authors`, for `Normal` only.
    v_std: initial standard deviation of v's elements.
    v: initial v, used without a copy; the other tensors have its type and device.
    mask: 0 at missing weights, 1 elsewhere, with v's shape.
    time_steps: in a recurrence, the number of time steps; each has separate running averages.
    bias: whether the layer has b.
    """

    unit_dim: ClassVar[int] = 0  # v's dimension of output units
    feature_dim: ClassVar[int] = 1  # t's feature dimension
    v: Tensor
    b: Tensor | None
    mask: Tensor | None
    scale: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        v_shape: Sequence[int],
        units: int,
        param: Param,
        *,
        g_exp: float | None = None,
        init: str = "folded",
        v_std: float = V_STD,
        v: Tensor | None = None,
        mask: Tensor | None = None,
        time_steps: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        norm = parameterization(param)
        self.units, self.g_exp, self.init, self.time_steps = units, g_exp, init, time_steps
        self.initializing, self.momentum = False, MOMENTUM
        self.t = nn.Identity()  # for hooks that see t, before the batch statistics
        self.register_buffer("mask", mask, persistent=False)
        if v is None:
            v = self.masked(torch.randn(*v_shape) * norm.std(v_shape, v_std, init))
        self.v = nn.Parameter(v)
        # A masked layer is autoregressive. It would not be if the output of a unit depended on another unit's t.
        self.norm = norm if (norm.affine or mask is None) and norm.applies(self) else fallback(norm)
        self.register_parameter("b", nn.Parameter(v.new_zeros(units)) if bias else None)
        if self.norm.learns_g:
            self.gain = nn.Parameter(v.new_ones(units))  # g, or s where g = exp(c·s)
        else:
            self.register_buffer("scale", v.new_ones(units))
        for name in self.norm.batch_statistics:
            shape = (units,) if time_steps is None else (time_steps, units)
            self.register_buffer(f"running_{name}", v.new_ones(shape) if name == "var" else v.new_zeros(shape))
        before = {name for name, _ in self.named_buffers()}
        with torch.no_grad():
            self.norm.build(self)
            self.set_g(self.norm.start(self))
        # Buffers of the parameterization, for example unit vectors, may lose their properties if they are averaged.
        self.not_averaged = [name for name, _ in self.named_buffers() if name not in before]

    @abc.abstractmethod
    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Compute t = w·x, plus b unless it is None."""

    @abc.abstractmethod
    def plain_layer(self) -> nn.Module:
        """Make a torch layer of the same shape, without values."""

    # Helpers for parameterizations.

    def masked(self, v: Same) -> Same:
        """Return v with its missing weights set to 0."""
        return v if self.mask is None else v * self.mask

    def v_norm(self) -> Units:
        """Compute ‖v‖ (C,)."""
        return unit_norm(self.masked(self.v), self.unit_dim).flatten()

    def input_dims(self) -> list[int]:
        """Return v's dimensions except the output units'."""
        return [d for d in range(self.v.ndim) if d != self.unit_dim]

    def fan_in(self) -> Tensor:
        """Count the weights of each unit; the shape is v's with size 1 in `input_dims`."""
        return self.masked(torch.ones_like(self.v)).sum(self.input_dims(), keepdim=True)

    def input_mean(self, v: Tensor) -> Tensor:
        """Compute the mean of each unit's weights; the shape is v's with size 1 in `input_dims`."""
        return self.masked(v).sum(self.input_dims(), keepdim=True) / self.fan_in()

    def batch_dims(self, t: Tensor) -> list[int]:
        """Return t's dimensions except the features'."""
        return [d for d in range(t.ndim) if d != self.feature_dim % t.ndim]

    def per_feature(self, values: Units, t: Tensor) -> Tensor:
        """Reshape values to broadcast over t, in its precision."""
        return along(values, t, self.feature_dim).to(t.dtype)

    def per_unit(self, values: Units) -> Tensor:
        """Reshape values to broadcast over v."""
        return along(values, self.v, self.unit_dim)

    def averaged(self, name: str, value: Callable[[], Tensor], time: Time) -> Units:
        """Return a minibatch's statistic in training and update its running average; in evaluation, return the average.

        name: one of the parameterization's `batch_statistics`; value: computes the statistic.
        """
        average: Tensor = getattr(self, f"running_{name}")[time]
        if not self.training:
            return average
        found = value()
        with torch.no_grad():
            average.lerp_(found.to(average.dtype), self.momentum)
        return found

    # g, w and y.

    @property
    def factor(self) -> Units:
        """The factor of the direction or of the normalized output: g or, if g is not learnt, the scale."""
        if not self.norm.learns_g:
            return self.scale
        return self.gain if self.g_exp is None else torch.exp(self.g_exp * self.gain)

    @property
    def g(self) -> Units:
        """The learnt scale per output unit or, if g is not learnt, the norm of the scaled direction."""
        if self.norm.learns_g:
            return self.factor
        return unit_norm(self.norm.direction(self, self.masked(self.v)), self.unit_dim).flatten() * self.factor

    @torch.no_grad()
    def set_g(self, g: Units) -> None:
        """Set `factor`; if g = exp(c·s), set s accordingly."""
        if self.norm.learns_g:
            self.gain.copy_(g if self.g_exp is None else g.log() / self.g_exp)
        else:
            self.scale.copy_(g)

    def w(self) -> Tensor:
        """Compute the weight, with v's shape. In a recurrence, call it once and pass the result to each `forward`."""
        return self.masked(self.norm.weight(self, self.masked(self.v), self.factor))

    def forward(self, x: Tensor, w: Tensor | None = None, time: Time = ...) -> Tensor:
        """Compute the layer's output. w: the result of `w()`; time: the time step, if each has separate averages."""
        if self.initializing:
            return self.initialize(x, time)
        if w is None:
            w = self.w()
        if self.norm.linear:
            return self.weighted_sum(x, w, self.b)
        return self.norm.output(self, self.t(self.weighted_sum(x, w, None)), time)

    @torch.no_grad()
    def initialize(self, x: Tensor, time: Time) -> Tensor:
        """Set g and b such that every output has mean 0 and variance 1 on this batch (eq. 4, 5); return the output.

        With a process group, the statistics are over the batches of all processes, which must have equal sizes. Raises
        ConstantFeatureError if a feature does not vary over the batch.
        """
        self.initializing = False
        self.set_g(torch.ones_like(self.factor))
        if self.b is not None:
            self.b.zero_()
        self.momentum = 1.0  # the running averages become those of this batch
        try:
            w = self.w()
            t = self.weighted_sum(x, w, None)
            y = self.norm.output(self, t, time)
            largest = over_processes(x.abs().amax().float(), dist.ReduceOp.MAX)
            noise = largest * unit_norm(w, self.unit_dim).flatten()
            mean, std = moments(y, self.feature_dim)
            constant = is_constant(t, noise, *moments(t, self.feature_dim)) | is_constant(y, 0 * noise, mean, std)
            if constant.any():
                raise ConstantFeatureError(self, int(constant.sum()))
            self.set_g(1 / std)
            if self.b is not None:
                self.b.copy_(-mean / std)
            self.norm.initialized(self)
            output: Tensor = self(x, None, time)
            return output
        finally:
            self.momentum = MOMENTUM

    # Folding: the plain torch layer that is the same function in evaluation.

    def as_torch(self, w: Tensor) -> Tensor:
        """Reshape w to the plain torch layer's weight."""
        return w

    def folded(self) -> tuple[Tensor, Units | None]:
        """Compute the plain torch layer's weight and bias, with gradients. The bias is None if the function has none.

        Raises ValueError if the time steps have separate running averages and therefore different biases, or if the
        output is not affine in t.
        """
        if self.time_steps is not None and self.norm.batch_statistics:
            raise ValueError("fold: each time step has its own running averages and therefore its own bias")
        if not self.norm.affine:
            raise ValueError(f"fold: {name_of(self.norm)} is not an affine function of t in evaluation")
        if self.norm.linear:
            return self.as_torch(self.w()), self.b
        training, self.training = self.training, False
        try:
            a, c = self.norm.in_evaluation(self)
        finally:
            self.training = training
        return self.as_torch(self.w() * self.per_unit(a)), c

    def read(self) -> tuple[Tensor, Units | None]:
        """Compute `weight` and `bias`, with gradients, for modules that read these instead of calling the layer.

        Raises AttributeError if the output is not affine in x, for example in training with batch statistics.
        """
        if self.training and not self.norm.linear:
            raise AttributeError(f"in training, {name_of(self.norm)} has no weight and bias for the whole layer")
        try:
            return self.folded()
        except ValueError as error:
            raise AttributeError(str(error)) from error

    @property
    def weight(self) -> Tensor:
        """The plain torch layer's weight; see `read`."""
        return self.read()[0]

    @property
    def bias(self) -> Units | None:
        """The plain torch layer's bias, if it has one; see `read`."""
        return self.read()[1]

    def fold(self) -> nn.Module:
        """Return the plain torch layer or, if the output is not affine in t, a copy of this layer."""
        if not self.norm.affine:
            return copy.deepcopy(self).eval()
        plain: Any = self.plain_layer()
        w, b = self.folded()
        plain.weight = nn.Parameter(w.detach(), self.v.requires_grad)
        learnt = self.v if self.b is None else self.b
        plain.bias = None if b is None else nn.Parameter(b.detach().clone(), learnt.requires_grad)
        layer: nn.Module = plain.train(self.training)
        return layer

    def extra_repr(self) -> str:
        return f"{name_of(self.norm)}, v {tuple(self.v.shape)}" + (f", g = exp({self.g_exp}·s)" if self.g_exp else "")


def moments(y: Float[Tensor, "..."], feature_dim: int) -> tuple[Units, Units]:
    """Compute the mean and standard deviation of every feature over the batches of all processes."""
    dims = [d for d in range(y.ndim) if d != feature_dim % y.ndim]
    mean = over_processes(y.mean(dims, dtype=torch.promote_types(y.dtype, torch.float32)))
    return mean, over_processes((y - along(mean, y, feature_dim)).square().mean(dims)).sqrt()


def is_constant(y: Float[Tensor, "..."], noise: Units, mean: Units, std: Units) -> Bool[Tensor, " C"]:
    """Test whether each feature of y, with this mean and standard deviation, is constant over the batch.

    A constant feature still has rounding noise: about eps times its mean, plus eps of the sum times the size of the
    summands. `noise` is an upper bound of this size. Sums of half precision are accumulated in single precision.
    """
    eps, of_sum = torch.finfo(y.dtype).eps, torch.finfo(torch.promote_types(y.dtype, torch.float32)).eps
    return ~(std > 4 * torch.maximum(eps * mean.abs(), of_sum * noise))


def over_processes(x: Same, op: Any = None) -> Same:
    """Average a tensor over the processes of the process group, if there is one, or reduce it by `op`."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        x = x.contiguous()
        dist.all_reduce(x, op or dist.ReduceOp.SUM)
        x = x if op else x / dist.get_world_size()
    return x


class Linear(Parameterized):
    """Dense layer. If w and v differ in precision, the products are computed in w's, and y has v's."""

    feature_dim = -1

    def __init__(self, inputs: int, units: int, param: Param, **options: Any) -> None:
        super().__init__((units, inputs), units, param, **options)

    def weighted_sum(self, x: Float[Tensor, "*B I"], w: Float[Tensor, "C I"], b: Units | None) -> Float[Tensor, "*B C"]:
        if w.dtype == self.v.dtype:
            return F.linear(x, w, b)
        t = F.linear(x.to(w.dtype), w).to(self.v.dtype)
        return t if b is None else t + b

    def plain_layer(self) -> nn.Module:
        units, inputs = self.v.shape
        return nn.Linear(inputs, units, device="meta")


class Conv(Parameterized):
    """Convolution: x (B, inputs, …) → (B, units, …). Options as in torch."""

    transposed: ClassVar[bool] = False
    plain: ClassVar[Any]
    function: ClassVar[Any]

    def __init__(
        self,
        inputs: int,
        units: int,
        kernel: int | Sequence[int],
        param: Param,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        output_padding: Any = 0,
        **options: Any,
    ) -> None:
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.geometry |= {"output_padding": output_padding} if self.transposed else {"padding_mode": padding_mode}
        plain = self.plain(inputs, units, kernel, device="meta", **self.geometry)
        self.inputs, self.sizes, self.groups, self.padding_mode = inputs, plain.kernel_size, groups, padding_mode
        self.around: list[int] = list(plain._reversed_padding_repeated_twice)  # for `F.pad`
        by_group = inputs // groups
        v_shape = (by_group, units) if self.transposed else (units, by_group)
        super().__init__((*v_shape, *self.sizes), units, param, **options)

    def weighted_sum(
        self, x: Float[Tensor, "B I *size"], w: Float[Tensor, "..."], b: Units | None
    ) -> Float[Tensor, "B C *out"]:
        if self.transposed:
            return self.function(x, self.as_torch(w), b, **self.geometry)
        geometry = {name: value for name, value in self.geometry.items() if name != "padding_mode"}
        if self.padding_mode != "zeros":
            x, geometry["padding"] = F.pad(x, self.around, mode=self.padding_mode), 0
        return self.function(x, w, b, **geometry)

    def plain_layer(self) -> nn.Module:
        return self.plain(self.inputs, self.units, self.sizes, device="meta", **self.geometry)

    def as_torch(self, w: Tensor) -> Tensor:
        """Reshape w to torch's weight, which for a transposed convolution is (inputs, units/groups, …)."""
        return torch.cat(w.chunk(self.groups, 1)) if self.transposed and self.groups > 1 else w


class Conv1d(Conv):
    """Convolution: x (B, inputs, L) → (B, units, L')."""

    plain, function = nn.Conv1d, F.conv1d


class Conv2d(Conv):
    """Convolution: x (B, inputs, H, W) → (B, units, H', W')."""

    plain, function = nn.Conv2d, F.conv2d


class Conv3d(Conv):
    """Convolution: x (B, inputs, D, H, W) → (B, units, D', H', W')."""

    plain, function = nn.Conv3d, F.conv3d


class MaskedConv2d(Conv2d):
    """Convolution whose weight and ‖v‖ exclude the elements where `mask` (units, inputs, kernel, kernel) is 0."""

    def __init__(self, inputs: int, units: int, kernel: int, param: Param, mask: Tensor, **options: Any) -> None:
        super().__init__(inputs, units, kernel, param, mask=mask, **options)


class ConvTranspose(Conv):
    """Transposed convolution: x (B, inputs, …) → (B, units, …); v is (inputs/groups, units, …)."""

    unit_dim = 1
    transposed = True


class ConvTranspose1d(ConvTranspose):
    """Transposed convolution: x (B, inputs, L) → (B, units, L')."""

    plain, function = nn.ConvTranspose1d, F.conv_transpose1d


class ConvTranspose2d(ConvTranspose):
    """Transposed convolution: x (B, inputs, H, W) → (B, units, H', W')."""

    plain, function = nn.ConvTranspose2d, F.conv_transpose2d


class ConvTranspose3d(ConvTranspose):
    """Transposed convolution: x (B, inputs, D, H, W) → (B, units, D', H', W')."""

    plain, function = nn.ConvTranspose3d, F.conv_transpose3d


def layers(model: nn.Module) -> Iterator[tuple[str, Parameterized]]:
    """Yield every parameterized layer of the model with its name, in order."""
    for name, module in model.named_modules():
        if isinstance(module, Parameterized):
            yield name, module

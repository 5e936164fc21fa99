"""The layers: weighted sums t = w·x, each with a parameterization that says what w is, and what becomes of t.

A fresh layer has g = ‖v‖ and b = 0, so that weight normalization and the normal parameterization start as the very same
function where no init pass applies (recurrent nets, §3); `data_dependent_init` sets g and b from a batch (eq. 4, 5).
Shapes: B examples, C output units. A norm is over every dimension of v but the output unit's.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from wnrepro.parameterization.norm import Param, along, instead, name_of, parameterization, unit_norm

MOMENTUM = 0.1  # running averages 0.9/0.1, authors' code
V_STD = 0.05  # §3


class ConstantFeatureError(ValueError):
    """Features of `layer` have zero variance over the init batch, so that 1/σ[t] does not exist."""

    def __init__(self, layer: nn.Module, features: int, name: str = "") -> None:
        super().__init__(
            f"data-dependent init: {features} features of layer {name or type(layer).__name__!r} do not vary "
            "over the init batch; give a larger or more varied batch"
        )
        self.layer, self.features = layer, features


class Parameterized(nn.Module):
    """A weighted sum with a parameterization; the subclasses say which sum.

    v_shape: of the weight; units: C.
    param: `normal`, `bn`, `wn`, `wn+mobn`, or a class of your own.
    g_exp: c of g = exp(c·s), s learnt in place of g (§6.1); None for g itself.
    init: `folded` or `authors`, see `Normal`, which alone heeds it.
    v_std: standard deviation of v's elements at the start.
    v: the elements themselves at the start, kept and not copied; every other tensor has its type and device.
    mask: of v's shape, 0 where the layer has no weight.
    time_steps: in a recurrence, the number of time steps; each then has its own running averages.
    bias: whether there is a b.
    """

    unit_dim: ClassVar[int] = 0  # v's output dimension
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
        self.t = nn.Identity()  # where a hook sees t, before the batch statistics
        self.register_buffer("mask", mask, persistent=False)
        if v is None:
            v = self.masked(torch.randn(*v_shape) * norm.std(v_shape, v_std, init))
        self.v = nn.Parameter(v)
        # A masked layer is autoregressive, and would not be if a unit's output depended on another's t.
        self.norm = norm if (norm.affine or mask is None) and norm.applies(self) else instead(norm)
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
        # A mean of what a parameterization keeps, of unit vectors say, would be none.
        self.not_averaged = [name for name, _ in self.named_buffers() if name not in before]

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """t = w·x, + b where given."""
        raise TypeError(f"{type(self).__name__} is no layer by itself: use Linear, Conv2d and so on")

    # What a parameterization works with.

    def masked(self, v: Tensor) -> Tensor:
        """v with the weights that the layer does not have set to 0."""
        return v if self.mask is None else v * self.mask

    def v_norm(self) -> Tensor:
        """‖v‖ per output unit, (C,)."""
        return unit_norm(self.masked(self.v), self.unit_dim).flatten()

    def input_dims(self) -> list[int]:
        """v's dimensions but that of the output units."""
        return [d for d in range(self.v.ndim) if d != self.unit_dim]

    def fan_in(self) -> Tensor:
        """How many weights each unit has: of v's shape with `input_dims` 1."""
        return self.masked(torch.ones_like(self.v)).sum(self.input_dims(), keepdim=True)

    def input_mean(self, v: Tensor) -> Tensor:
        """The mean of a unit's weights, of those that the layer has: of v's shape with `input_dims` 1."""
        if self.mask is None:
            return v.mean(self.input_dims(), keepdim=True)
        return self.masked(v).sum(self.input_dims(), keepdim=True) / self.fan_in()

    def batch_dims(self, t: Tensor) -> list[int]:
        """t's dimensions but that of its features, which are the output units."""
        return [d for d in range(t.ndim) if d != self.feature_dim % t.ndim]

    def per_feature(self, values: Tensor, t: Tensor) -> Tensor:
        """values (C,) shaped to broadcast over t, in its precision."""
        return along(values, t, self.feature_dim).to(t.dtype)

    def per_unit(self, values: Tensor) -> Tensor:
        """values (C,) shaped to broadcast over v."""
        return along(values, self.v, self.unit_dim)

    def averaged(self, name: str, value: Callable[[], Tensor], time: int | EllipsisType) -> Tensor:
        """A statistic (C,) of the minibatch, which its running average takes in; in evaluation that average.

        name: one of the parameterization's `batch_statistics`.
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
    def factor(self) -> Tensor:
        """The factor of the direction, or of the normalized output, (C,): g or, where none is learnt, the scale."""
        if not self.norm.learns_g:
            return self.scale
        return self.gain if self.g_exp is None else torch.exp(self.g_exp * self.gain)

    @property
    def g(self) -> Tensor:
        """The learnt scale per output unit, (C,); where none is learnt, the norm of the scaled direction."""
        if self.norm.learns_g:
            return self.factor
        return unit_norm(self.norm.direction(self, self.masked(self.v)), self.unit_dim).flatten() * self.factor

    @torch.no_grad()
    def set_g(self, g: Tensor) -> None:
        """Set `factor`, through s where g = exp(c·s)."""
        if self.norm.learns_g:
            self.gain.copy_(g if self.g_exp is None else g.log() / self.g_exp)
        else:
            self.scale.copy_(g)

    def w(self) -> Tensor:
        """The weight, of v's shape. In a recurrence, compute it once and give it to each `forward`."""
        return self.masked(self.norm.weight(self, self.masked(self.v), self.factor))

    def forward(self, x: Tensor, w: Tensor | None = None, time: int | EllipsisType = ...) -> Tensor:
        """The layer's output; w: what `w()` gave; time: the time step, where each has its own averages."""
        if self.initializing:
            return self.initialize(x, time)
        if w is None:
            w = self.w()
        if self.norm.linear:
            return self.weighted_sum(x, w, self.b)
        return self.norm.output(self, self.t(self.weighted_sum(x, w, None)), time)

    @torch.no_grad()
    def initialize(self, x: Tensor, time: int | EllipsisType) -> Tensor:
        """Set g and b such that every output has mean 0 and variance 1 on this batch (eq. 4, 5), which it returns.

        With a process group the batches of all processes count, of equal size each. Raises ConstantFeatureError when a
        feature does not vary over the batch.
        """
        self.initializing = False
        self.set_g(torch.ones_like(self.factor))
        if self.b is not None:
            self.b.zero_()
        self.momentum = 1.0  # the averages become those of this batch
        try:
            w = self.w()
            t = self.weighted_sum(x, w, None)
            y = self.norm.output(self, t, time)
            largest = over_processes(x.abs().amax().float(), dist.ReduceOp.MAX)
            noise = largest * unit_norm(w, self.unit_dim).flatten()
            mean, std = self.moments(y)
            constant = is_constant(t, noise, *self.moments(t)) | is_constant(y, 0 * noise, mean, std)
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

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of every feature over the batch, and over those of all processes."""
        return moments(y, self.feature_dim)

    # What is left of it for inference.

    def as_torch(self, w: Tensor) -> Tensor:
        """w as the weight of the plain torch layer."""
        return w

    def evaluated(self) -> tuple[Tensor, Tensor | None]:
        """What `folded` returns, with gradients; no bias where the function has none."""
        if self.time_steps is not None and self.norm.batch_statistics:
            raise ValueError("fold: every time step has its own running averages, and so another bias")
        if not self.norm.affine:
            raise ValueError(f"fold: {name_of(self.norm)} is no affine function of t in evaluation")
        w = self.w()
        if self.norm.linear:
            return self.as_torch(w), self.b
        training, self.training = self.training, False
        try:
            a, c = self.norm.in_evaluation(self)
        finally:
            self.training = training
        return self.as_torch(w * self.per_unit(a)), c

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight, of torch's shape, and bias (C,) of the plain layer of the same function in evaluation.

        Raises ValueError where the time steps have averages of their own, and so no bias in common, and where the
        output is not affine in t.
        """
        w, b = self.evaluated()
        return w.detach(), torch.zeros_like(self.factor) if b is None else b.detach().clone()

    def read(self) -> tuple[Tensor, Tensor | None]:
        """`weight` and `bias`."""
        if self.training and not self.norm.linear:
            raise AttributeError(f"in training, {name_of(self.norm)} has no weight and bias of the whole layer")
        try:
            return self.evaluated()
        except ValueError as error:
            raise AttributeError(str(error)) from error

    @property
    def weight(self) -> Tensor:
        """The plain torch layer's, computed anew, with gradients: for modules that read it and do not call the layer.

        There is none, and so AttributeError, where the output is not affine in x: in training, under batch statistics.
        """
        return self.read()[0]

    @property
    def bias(self) -> Tensor | None:
        """The plain torch layer's (C,), if it has one; see `weight`."""
        return self.read()[1]

    @property
    def biased(self) -> bool:
        """Whether the plain torch layer has a bias: b or, in its place, that of the running averages."""
        return self.b is not None or not self.norm.linear

    def fold(self) -> nn.Module:
        """The plain torch layer of the same function in evaluation; where the output is not affine in t, a copy."""
        if not self.norm.affine:
            return copy.deepcopy(self).eval()
        plain: Any = self.plain_layer()
        w, b = self.folded()
        plain.weight = nn.Parameter(w, self.v.requires_grad)
        plain.bias = nn.Parameter(b, self.v.requires_grad if self.b is None else self.b.requires_grad)
        if not self.biased:
            plain.bias = None
        layer: nn.Module = plain.train(self.training)
        return layer

    def plain_layer(self) -> nn.Module:
        """A torch layer of the same shape, its weight and bias yet to be given."""
        raise TypeError(f"{type(self).__name__} is no layer by itself: use Linear, Conv2d and so on")

    def extra_repr(self) -> str:
        return f"{name_of(self.norm)}, v {tuple(self.v.shape)}" + (f", g = exp({self.g_exp}·s)" if self.g_exp else "")


def moments(y: Tensor, feature_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of every feature over the batch, and over those of all processes."""
    dims = [d for d in range(y.ndim) if d != feature_dim % y.ndim]
    mean = over_processes(y.mean(dims, dtype=torch.promote_types(y.dtype, torch.float32)))
    return mean, over_processes((y - along(mean, y, feature_dim)).square().mean(dims)).sqrt()


def is_constant(y: Tensor, noise: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Whether a feature of y, of this mean and standard deviation, is the same for the whole batch (C,).

    It still shows rounding noise: of about eps times the mean, and eps of the sum times the size of what was summed,
    which is `noise` (C,) or more. Half precision is summed in single.
    """
    eps, of_sum = torch.finfo(y.dtype).eps, torch.finfo(torch.promote_types(y.dtype, torch.float32)).eps
    return ~(std > 4 * torch.maximum(eps * mean.abs(), of_sum * noise))


def over_processes(x: Tensor, how: Any = None) -> Tensor:
    """The mean of a tensor over the processes of a process group, if there is one, or what `how` reduces it to."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        x = x.contiguous()
        dist.all_reduce(x, how or dist.ReduceOp.SUM)
        x = x if how else x / dist.get_world_size()
    return x


class Linear(Parameterized):
    """Dense layer: x (…, inputs) → (…, units)."""

    feature_dim = -1

    def __init__(self, inputs: int, units: int, param: Param, **options: Any) -> None:
        super().__init__((units, inputs), units, param, **options)

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if w.dtype == self.v.dtype:
            return F.linear(x, w, b)
        t = F.linear(x.to(w.dtype), w).to(x.dtype)
        return t if b is None else t + b

    def plain_layer(self) -> nn.Module:
        units, inputs = self.v.shape
        return nn.Linear(inputs, units, device="meta")


class Conv(Parameterized):
    """Convolution of 1, 2 or 3 dimensions: x (B, inputs, …) → (B, units, …). See `Conv2d`; options as in torch."""

    dims: ClassVar[int]
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
        **options: Any,
    ) -> None:
        sizes = (kernel,) * self.dims if isinstance(kernel, int) else tuple(kernel)
        super().__init__((units, inputs // groups, *sizes), units, param, **options)
        self.inputs, self.sizes, self.stride, self.padding, self.dilation = inputs, sizes, stride, padding, dilation
        self.groups, self.padding_mode = groups, padding_mode
        self.around: list[int] = list(self.plain_layer()._reversed_padding_repeated_twice)  # as `F.pad` takes it

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.around, mode=self.padding_mode), 0
        y: Tensor = type(self).function(x, w, b, self.stride, padding, self.dilation, self.groups)
        return y

    def plain_layer(self) -> Any:
        return self.plain(
            *(self.inputs, self.units, self.sizes, self.stride, self.padding, self.dilation, self.groups),
            padding_mode=self.padding_mode,
            device="meta",
        )


class Conv1d(Conv):
    """Convolution: x (B, inputs, L) → (B, units, L')."""

    dims, plain, function = 1, nn.Conv1d, F.conv1d


class Conv2d(Conv):
    """Convolution: x (B, inputs, H, W) → (B, units, H', W')."""

    dims, plain, function = 2, nn.Conv2d, F.conv2d


class Conv3d(Conv):
    """Convolution: x (B, inputs, D, H, W) → (B, units, D', H', W')."""

    dims, plain, function = 3, nn.Conv3d, F.conv3d


class MaskedConv2d(Conv2d):
    """Convolution whose weight is 0 where `mask` (units, inputs, kernel, kernel) is; ‖v‖ is of the rest."""

    def __init__(self, inputs: int, units: int, kernel: int, param: Param, mask: Tensor, **options: Any) -> None:
        super().__init__(inputs, units, kernel, param, mask=mask, **options)


class ConvTranspose(Parameterized):
    """Transposed convolution of 1, 2 or 3 dimensions: x (B, inputs, …) → (B, units, …); v is (inputs/groups, units, …).

    Options as in torch, whose weight (inputs, units/groups, …) is the same for one group.
    """

    unit_dim = 1
    dims: ClassVar[int]
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
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        **options: Any,
    ) -> None:
        sizes = (kernel,) * self.dims if isinstance(kernel, int) else tuple(kernel)
        super().__init__((inputs // groups, units, *sizes), units, param, **options)
        self.inputs, self.sizes, self.stride, self.padding = inputs, sizes, stride, padding
        self.output_padding, self.groups, self.dilation = output_padding, groups, dilation

    def weighted_sum(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y: Tensor = type(self).function(
            x, self.as_torch(w), b, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return y

    def as_torch(self, w: Tensor) -> Tensor:
        """w in torch's shape (inputs, units/groups, …)."""
        return w if self.groups == 1 else torch.cat(w.chunk(self.groups, 1))

    def plain_layer(self) -> Any:
        return self.plain(
            *(self.inputs, self.units, self.sizes, self.stride, self.padding, self.output_padding, self.groups),
            dilation=self.dilation,
            device="meta",
        )


class ConvTranspose1d(ConvTranspose):
    """Transposed convolution: x (B, inputs, L) → (B, units, L')."""

    dims, plain, function = 1, nn.ConvTranspose1d, F.conv_transpose1d


class ConvTranspose2d(ConvTranspose):
    """Transposed convolution: x (B, inputs, H, W) → (B, units, H', W'); v is (inputs, units, k, k)."""

    dims, plain, function = 2, nn.ConvTranspose2d, F.conv_transpose2d


class ConvTranspose3d(ConvTranspose):
    """Transposed convolution: x (B, inputs, D, H, W) → (B, units, D', H', W')."""

    dims, plain, function = 3, nn.ConvTranspose3d, F.conv_transpose3d


def layers(model: nn.Module) -> Iterator[tuple[str, Parameterized]]:
    """Every parameterized layer of the tree with its name, in order."""
    for name, module in model.named_modules():
        if isinstance(module, Parameterized):
            yield name, module

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
from torch.nn.utils.rnn import PackedSequence

from wnrepro.parameterization.norm import Param, along, elsewhere, instead, name_of, parameterization, unit_norm
from wnrepro.parameterization.recurrence import Unrolled, lstm_gates, lstm_step, product

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
    time_steps: in a recurrence, the number of time steps; each then has running averages of its own.
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
        self.norm = norm if norm.applies(self) else instead(norm)
        self.register_parameter("b", nn.Parameter(v.new_zeros(units)) if bias else None)
        if self.norm.learns_g:
            self.gain = nn.Parameter(v.new_ones(units))  # g, or s where g = exp(c·s)
        else:
            self.register_buffer("scale", v.new_ones(units))
        for name in self.norm.batch_statistics:
            shape = (units,) if time_steps is None else (time_steps, units)
            self.register_buffer(f"running_{name}", v.new_ones(shape) if name == "var" else v.new_zeros(shape))
        with torch.no_grad():
            self.norm.build(self)
            self.set_g(self.norm.start(self))

    def weighted_sum(self, x: Tensor, w: Any, b: Tensor | None) -> Tensor:
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
        """The learnt scale per output unit, (C,); where none is learnt, ‖v‖ times the scale."""
        return self.factor if self.norm.learns_g else self.v_norm() * self.factor

    @torch.no_grad()
    def set_g(self, g: Tensor) -> None:
        """Set `factor`, through s where g = exp(c·s)."""
        if self.norm.learns_g:
            self.gain.copy_(g if self.g_exp is None else g.log() / self.g_exp)
        else:
            self.scale.copy_(g)

    def w(self) -> Tensor:
        """The weight, of v's shape. In a recurrence call it once a step and give it to `forward`."""
        return self.masked(self.norm.weight(self, self.masked(self.v), self.factor))

    def forward(self, x: Tensor, w: "Tensor | Unrolled | None" = None, time: int | EllipsisType = ...) -> Tensor:
        """The layer's output; w: what `w()` gave; time: the time step, where each has averages of its own."""
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
            largest = _over_processes(x.abs().amax().float(), dist.ReduceOp.MAX)
            noise = largest * unit_norm(w, self.unit_dim).flatten()
            constant = self.constant(t, noise) | self.constant(y, torch.zeros_like(noise))
            if constant.any():
                raise ConstantFeatureError(self, int(constant.sum()))
            mean, std = self.moments(y)
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

    def constant(self, y: Tensor, noise: Tensor) -> Tensor:
        """Whether a feature is the same for the whole batch (C,); noise (C,): see `is_constant`."""
        return is_constant(y, noise, *self.moments(y))

    # What is left of it for inference.

    def as_torch(self, w: Tensor) -> Tensor:
        """w as the weight of the plain torch layer."""
        return w

    def evaluated(self) -> tuple[Tensor, Tensor | None]:
        """What `folded` returns, with gradients; no bias where the function has none."""
        if self.time_steps is not None and self.norm.batch_statistics:
            raise ValueError("fold: every time step has running averages of its own, and so another bias")
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
    mean = _over_processes(y.mean(dims, dtype=torch.promote_types(y.dtype, torch.float32)))
    return mean, _over_processes((y - along(mean, y, feature_dim)).square().mean(dims)).sqrt()


def is_constant(y: Tensor, noise: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Whether a feature of y, of this mean and standard deviation, is the same for the whole batch (C,).

    It still shows rounding noise: of about eps times the mean, and eps of the sum times the size of what was summed,
    which is `noise` (C,) or more. Half precision is summed in single.
    """
    eps, of_sum = torch.finfo(y.dtype).eps, torch.finfo(torch.promote_types(y.dtype, torch.float32)).eps
    return ~(std > 4 * torch.maximum(eps * mean.abs(), of_sum * noise))


def _over_processes(x: Tensor, how: Any = None) -> Tensor:
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

    def weighted_sum(self, x: Tensor, w: "Tensor | Unrolled", b: Tensor | None) -> Tensor:
        return product(x, w, b) if isinstance(w, Unrolled) else F.linear(x, w, b)

    def unrolled(self, dtype: torch.dtype | None = None, gathered: bool = True) -> Unrolled:
        """The weight for many time steps, to be given to `forward`: it is computed once, and so is its gradient.

        dtype: of the factors of the products, where it is not the weight's; gathered: see `Unrolled`.
        """
        return Unrolled(self.w(), dtype, gathered)

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


class LSTMCell(nn.Module):
    """LSTM cell (§5.3) with one g per gate row: x (B, inputs), state (h, c) each (B, units) → new state.

    Batch statistics, where `param` has them, are of the input-to-hidden product alone; the recurrent
    product has what `param` says of the layers elsewhere. Gates in torch's order: i, f, g, o.
    Without a state h and c are 0.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        param: Param,
        *,
        time_steps: int | None = None,
        v: tuple[Tensor | None, Tensor | None] = (None, None),
        **options: Any,
    ) -> None:
        super().__init__()
        self.input = Linear(inputs, 4 * units, param, time_steps=time_steps, v=v[0], **options)
        self.recurrent = Linear(units, 4 * units, elsewhere(param), v=v[1], **options)

    def unrolled(self, dtype: torch.dtype | None = None, gathered: bool = True) -> tuple[Unrolled, Unrolled]:
        """Both weights for many time steps, to be given to `forward` at each of them; see `Linear`."""
        return self.input.unrolled(dtype, gathered), self.recurrent.unrolled(dtype, gathered)

    def forward(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        weights: tuple[Unrolled, Unrolled] | None = None,
        time: int | EllipsisType = ...,
    ) -> tuple[Tensor, Tensor]:
        h, c = state or (x.new_zeros(len(x), self.recurrent.v.shape[1]),) * 2
        w_input, w_recurrent = weights or self.unrolled()
        t = self.input(x, w_input, time)
        if self.recurrent.norm.linear and self.recurrent.b is not None:
            return lstm_step(t, h, c, w_recurrent, self.recurrent.b)
        return lstm_gates(t + self.recurrent(h, w_recurrent), c)

    def in_torch(self) -> list[nn.Parameter]:
        """What the plain cell has, in its order: the weights of both products and, where one has a bias, the biases."""
        plain: list[Any] = [self.input.fold(), self.recurrent.fold()]
        values = [layer.weight for layer in plain]
        if self.input.biased or self.recurrent.biased:
            no_bias = nn.Parameter(values[0].new_zeros(len(values[0])))
            values += [no_bias if layer.bias is None else layer.bias for layer in plain]
        return values

    def fold(self) -> nn.Module:
        """The plain torch.nn.LSTMCell of the same function in evaluation; where there is none, a copy."""
        if not (self.input.norm.affine and self.recurrent.norm.affine):
            return copy.deepcopy(self).eval()
        values = self.in_torch()
        plain = nn.LSTMCell(self.input.v.shape[1], self.recurrent.v.shape[1], len(values) > 2, device="meta")
        return _given(plain, values).train(self.training)


def _given(plain: nn.Module, values: list[nn.Parameter]) -> nn.Module:
    """The module with these parameters."""
    for (name, _), value in zip(list(plain.named_parameters()), values, strict=True):
        setattr(plain, name, value)
    return plain


class LSTM(nn.Module):
    """torch.nn.LSTM, options, shapes and kernel, whose weights are parameterized: they are computed once a call.

    The kernel takes weights and biases alone: where `param` is not `linear` its cells have what it says of the layers
    elsewhere, so that `bn` is `normal` and `wn+mobn` is `wn`. v: both weights of each cell at the start.
    Raises ValueError where that is not `linear` either.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        param: Param,
        *,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        v: Sequence[tuple[Tensor, Tensor]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        norm = parameterization(param)
        norm = norm if norm.linear else elsewhere(norm)
        if not (norm.linear and elsewhere(norm).linear):
            raise ValueError(
                f"LSTM: {name_of(param)} is more than a weight and a bias; set `elsewhere` to one that is not"
            )
        self.inputs, self.units, self.num_layers, self.bias = inputs, units, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        directions = 2 if bidirectional else 1
        self.cells = nn.ModuleList()  # in torch's order: forwards and backwards of the first layer, of the second, …
        for k in range(num_layers * directions):
            width = inputs if k < directions else units * directions
            first = v[k] if v else (None, None)
            self.cells.append(LSTMCell(width, units, norm, bias=bias, v=first, **options))

    def flat_weights(self) -> list[Tensor]:
        """Weights and biases as `torch.lstm` takes them."""
        flat: list[Tensor] = []
        for cell in self.cells:
            parts: list[Any] = list(cell.children())
            flat += [part.w() for part in parts] + [part.b for part in parts if self.bias]
        return flat

    def forward(self, x: Any, state: Any = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """x: (T, B, inputs), (B, T, inputs) if `batch_first`, (T, inputs) or packed; state: h and c, as in torch."""
        packed, one = isinstance(x, PackedSequence), 0 if self.batch_first else 1
        data, sizes, order, back = x if packed else (x, None, None, None)
        alone = data.ndim == 2 and not packed
        if alone:
            data, state = data.unsqueeze(one), state and [part.unsqueeze(1) for part in state]
        if state is None:
            batch = data.shape[one] if sizes is None else int(sizes[0])
            state = [data.new_zeros(len(self.cells), batch, self.units)] * 2
        elif order is not None:
            state = [part.index_select(1, order) for part in state]
        how = self.bias, self.num_layers, self.dropout, self.training, self.bidirectional
        if sizes is None:
            y, *state = torch.lstm(data, state, self.flat_weights(), *how, self.batch_first)
        else:
            y, *state = torch.lstm(data, sizes, state, self.flat_weights(), *how)
        if back is not None:
            state = [part.index_select(1, back) for part in state]
        if alone:
            return y.squeeze(one), (state[0].squeeze(1), state[1].squeeze(1))
        return PackedSequence(y, sizes, order, back) if packed else y, (state[0], state[1])

    def fold(self) -> nn.Module:
        """The plain torch.nn.LSTM of the same function; where there is none, a copy."""
        if not all(layer.norm.affine for _, layer in layers(self)):
            return copy.deepcopy(self).eval()
        options: dict[str, Any] = {"batch_first": self.batch_first, "dropout": self.dropout, "device": "meta"}
        options["bidirectional"] = self.bidirectional
        plain = nn.LSTM(self.inputs, self.units, self.num_layers, self.bias, **options)
        cells: list[Any] = list(self.cells)
        return _given(plain, [value for cell in cells for value in cell.in_torch()]).train(self.training)

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.units}, num_layers={self.num_layers}" + (
            ", bidirectional" if self.bidirectional else ""
        )


def layers(model: nn.Module) -> Iterator[tuple[str, Parameterized]]:
    """Every parameterized layer of the tree with its name, in order."""
    for name, module in model.named_modules():
        if isinstance(module, Parameterized):
            yield name, module


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any) -> Any:
    """Set every g and b from one forward pass of `model(*inputs)` and return its output (§3, eq. 4, 5).

    The pass runs in training mode, as the authors' does: noise and dropout are on. A layer that is called
    more than once is set by its first call. Recurrent cells keep their start (§3). With a process group, g and b
    are those of the batches of all processes, which have to be of equal size. Raises ConstantFeatureError naming a
    layer with a feature that is the same for the whole batch, and ValueError naming layers that the pass did not reach.
    """
    was_training = model.training
    cells = {layer for cell in model.modules() if isinstance(cell, LSTMCell) for _, layer in layers(cell)}
    named = {name: layer for name, layer in layers(model) if layer not in cells}
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


@torch.no_grad()
def updated(model: nn.Module) -> None:
    """To be called after an optimizer's step: what a parameterization has to do then."""
    for _, layer in layers(model):
        layer.norm.updated(layer)


def fold(model: nn.Module) -> nn.Module:
    """A copy of the model in plain torch layers: the same function in evaluation, for inference.

    Layers, LSTM cells and LSTMs whose output is not affine in t stay as they are, in evaluation mode.
    """
    return copy.deepcopy(model, {id(layer): layer.fold() for layer in foldable(model)})


@torch.no_grad()
def refold(model: nn.Module, plain: nn.Module) -> None:
    """Make what `fold` once made of the model that of the model as it is now, in place; without LSTMs and cells."""
    for name, layer in layers(model):
        there: Any = plain.get_submodule(name)
        if isinstance(there, Parameterized):
            pairs = zip(there.state_dict().values(), layer.state_dict().values(), strict=True)
        else:
            pairs = zip((there.weight, there.bias), layer.folded(), strict=True)
        for mine, theirs in pairs:
            if mine is not None:
                mine.copy_(theirs)


def foldable(model: nn.Module) -> Iterator["Parameterized | LSTMCell | LSTM"]:
    """The layers of the tree that have a plain torch layer of their own."""
    if isinstance(model, Parameterized | LSTMCell | LSTM):
        yield model
    else:
        for child in model.children():
            yield from foldable(child)

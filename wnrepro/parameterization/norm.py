"""Parameterizations: classes that define the weight as a function of v and g, and the output as a function of t = w·x.

Shapes: C output units of a layer, B examples. v has the weight's shape; g, b and statistics are (C,).
"""

import math
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from wnrepro.settings import PARAMS

if TYPE_CHECKING:
    from wnrepro.parameterization.layer import Parameterized

BN_EPSILON = 1e-6  # authors' code
Units: TypeAlias = Float[Tensor, " C"]
Same: TypeAlias = Float[Tensor, "*same"]  # the same shape everywhere in a signature
Time: TypeAlias = int | EllipsisType  # the time step if each has separate running averages, else ...


def along(values: Shaped[Tensor, " C"], x: Tensor, dim: int) -> Tensor:
    """Reshape values to broadcast over x along its dimension `dim`, which has C elements."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return values.view(shape)


def unit_norm(v: Float[Tensor, "..."], unit_dim: int) -> Float[Tensor, "..."]:
    """Compute ‖v‖ per output unit; the shape is v's with size 1 in every dimension except `unit_dim`."""
    dims = [d for d in range(v.ndim) if d != unit_dim]
    return torch.linalg.vector_norm(v, dim=dims, keepdim=True)


def weight_norm(v: Same, g: Units, unit_dim: int = 0) -> Same:
    """Compute w = g·v/‖v‖ (eq. 2), with v's strides if v is channels_last.

    A unit with ‖v‖ = 0 has w = 0 and zero gradients.
    """
    if unit_dim == 0 and values_are_at_hand(v):
        w, norm = fused_weight_norm(v, g)
        if norm.all():
            return w
    dead = unit_norm(v.detach(), unit_dim) == 0
    v, g = v + dead.to(v.dtype), torch.where(dead.flatten(), 0.0, g)  # adding costs less than `where` and its gradient
    return fused_weight_norm(v, g)[0] if unit_dim == 0 else v * (along(g, v, unit_dim) / unit_norm(v, unit_dim))


def values_are_at_hand(x: Tensor) -> bool:
    """Test whether code may depend on x's values at no cost: on a CPU, unless a tracer or torch.func runs the code."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    traced = traced or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None  # of make_fx
    return x.is_cpu and type(x) in (Tensor, nn.Parameter) and not traced  # another type: of FakeTensorMode


def fused_weight_norm(v: Same, g: Units) -> tuple[Same, Float[Tensor, "..."]]:
    """Compute w and ‖v‖ of units in the first dimension by torch's kernel, which takes contiguous tensors."""
    if v.ndim == 4 and v.stride(1) == 1:  # also for one input map: strides decide a convolution's format
        w, norm = torch._weight_norm_interface(v.permute(0, 2, 3, 1).contiguous(), along(g, v, 0), 0)
        return w.permute(0, 3, 1, 2), norm
    return torch._weight_norm_interface(v.contiguous(), along(g, v, 0), 0)


class Parameterization:
    """The definition of w and y. It is stateless; its tensors belong to the layer.

    By default w = g·direction(v) and y = normalize(w·x) + b. With `after`, w = direction(v) and
    y = g·normalize(w·x) + b. Subclasses override these methods. `layer` has v, g, b and helpers: see `Parameterized`.
    """

    label: ClassVar[str] = ""  # name in tables and figures; empty: the class's name
    lr: ClassVar[Mapping[str, float]] = {}  # learning rate by experiment (cifar, cvae, draw, dqn); default: wn's
    after: ClassVar[bool] = False  # whether g scales the output of `normalize` instead of the direction
    learns_g: ClassVar[bool] = True  # whether g is learnt; else it is a constant, the scale of the init
    # Whether y = a·t + c in evaluation, with a and c for each unit. If not, `fold` keeps the layer, and masked
    # (autoregressive) layers use `elsewhere`.
    affine: ClassVar[bool] = True
    batch_statistics: ClassVar[tuple[str, ...]] = ()  # names of the layer's running averages: see `averaged`
    # The parameterization of layers to which this one does not apply; None: weight normalization. Also that of a
    # recurrent net's layers except input-to-hidden; None: this or, with batch statistics, weight normalization.
    elsewhere: "ClassVar[Param | None]" = None
    linear: ClassVar[bool] = True  # whether y = w·x + b; set by __init_subclass__

    def __init_subclass__(cls) -> None:
        base = Parameterization
        cls.linear = not cls.after and cls.normalize is base.normalize and cls.output is base.output

    def applies(self, layer: "Parameterized") -> bool:
        """Test whether the layer can have this parameterization; its v and mask are already set."""
        return True

    def build(self, layer: "Parameterized") -> None:
        """Register buffers on the layer, in addition to running averages."""

    def std(self, v_shape: Sequence[int], std: float, init: str) -> float:
        """Return the initial standard deviation of v's elements; std: what the other parameterizations use."""
        return std

    def start(self, layer: "Parameterized") -> Units:
        """Return the initial g without an init pass: ‖w‖ = ‖v‖ or, with `after`, g = 1."""
        if self.after:
            return torch.ones_like(layer.v_norm())
        norm = unit_norm(self.direction(layer, layer.masked(layer.v)), layer.unit_dim).flatten()
        return torch.where(layer.v_norm() == 0, 1.0, layer.v_norm() / norm)

    def initialized(self, layer: "Parameterized") -> None:
        """Change the layer after the init pass has set g and b."""

    def direction(self, layer: "Parameterized", v: Same) -> Same:
        """Compute the weight for g = 1; v is already masked."""
        return v

    def weight(self, layer: "Parameterized", v: Same, g: Units) -> Same:
        """Compute w."""
        w = self.direction(layer, v)
        return w if self.after else w * along(g, v, layer.unit_dim)

    def normalize(self, layer: "Parameterized", t: Same, time: Time) -> Same:
        """Normalize t."""
        return t

    def output(self, layer: "Parameterized", t: Same, time: Time) -> Same:
        """Compute y from t = w·x."""
        y = self.normalize(layer, t, time)
        if self.after:
            y = y * layer.per_feature(layer.factor, y)
        return y if layer.b is None else y + layer.per_feature(layer.b, y)

    def in_evaluation(self, layer: "Parameterized") -> tuple[Units, Units]:
        """Compute a and c of y = a·t + c in evaluation, from y at t = 0 and t = 1."""
        shape = [1] * layer.v.ndim
        shape[layer.feature_dim] = layer.units
        c, y = (self.output(layer, layer.v.new_full(shape, value), ...).flatten() for value in (0.0, 1.0))
        return y - c, c

    def updated(self, layer: "Parameterized") -> None:
        """Update buffers after a step of the optimizer, without gradients.

        Other methods must not change buffers, except running averages.
        """


Param: TypeAlias = "str | type[Parameterization] | Parameterization"


class Normal(Parameterization):
    """w = scale·v, with the scale of the init pass.

    §3 folds the scale into v once. The authors' classifier keeps it as a constant, so that it scales the gradient too,
    and gives v Glorot's standard deviation.
    """

    learns_g = False

    def std(self, v_shape: Sequence[int], std: float, init: str) -> float:
        glorot = math.sqrt(2 / ((v_shape[0] + v_shape[1]) * math.prod(v_shape[2:])))
        return glorot if init == "authors" else std

    def start(self, layer: "Parameterized") -> Units:
        return torch.ones_like(layer.factor)

    def initialized(self, layer: "Parameterized") -> None:
        if layer.init == "folded":
            layer.v.copy_(layer.w())
            layer.set_g(torch.ones_like(layer.factor))


class WeightNorm(Parameterization):
    """w = g·v/‖v‖ (eq. 2)."""

    def start(self, layer: "Parameterized") -> Units:
        return layer.v_norm()

    def weight(self, layer: "Parameterized", v: Same, g: Units) -> Same:
        return weight_norm(v, g, layer.unit_dim)


@no_type_check  # torch.compile cannot trace checks of types here
class MeanOnlyFunction(torch.autograd.Function):
    """t − μ[t] + b of t (B, C, …), μ[t] (C,) and b (C,), with a gradient that is centred over the batch (eq. 6, 7).

    `backward` accounts for μ[t] being a function of t. The gradient's mean has the gradient's precision.
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
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, Tensor, None]:
        d_b = d_y.sum([d for d in range(d_y.ndim) if d != ctx.feature_dim % d_y.ndim])
        mean = d_b * (d_b.numel() / d_y.numel())
        return d_y - along(mean, d_y, ctx.feature_dim), None, d_b.to(ctx.dtype), None


class MeanOnly(WeightNorm):
    """w = g·v/‖v‖, y = t − μ[t] + b (§4, eq. 6), with the running mean in evaluation."""

    batch_statistics = ("mean",)
    elsewhere = WeightNorm

    def output(self, layer: "Parameterized", t: Same, time: Time) -> Same:
        b = torch.zeros_like(layer.factor) if layer.b is None else layer.b
        if not layer.training:
            return t + layer.per_feature(b - layer.running_mean[time], t)
        with torch.no_grad():
            mean = t.mean(layer.batch_dims(t), dtype=b.dtype)
            layer.running_mean[time].lerp_(mean, layer.momentum)
        y: Tensor = MeanOnlyFunction.apply(t, mean, b, layer.feature_dim)
        return y

    def in_evaluation(self, layer: "Parameterized") -> tuple[Units, Units]:
        c = -layer.running_mean if layer.b is None else layer.b - layer.running_mean
        return torch.ones_like(c), c


class BatchNorm(Parameterization):
    """w = v, y = g·(t − μ[t])/√(σ²[t] + ε) + b, with the running averages in evaluation."""

    after = True
    batch_statistics = ("mean", "var")
    elsewhere = Normal

    def start(self, layer: "Parameterized") -> Units:  # over time: Cooijmans et al., 2016
        return torch.full_like(layer.factor, 1.0 if layer.time_steps is None else 0.1)

    def output(self, layer: "Parameterized", t: Same, time: Time) -> Same:
        rows = t if layer.feature_dim == 1 else t.reshape(-1, t.shape[-1])
        averages = layer.running_mean[time], layer.running_var[time]
        y = F.batch_norm(rows, *averages, layer.factor, layer.b, layer.training, layer.momentum, BN_EPSILON)
        return y.view_as(t)

    def in_evaluation(self, layer: "Parameterized") -> tuple[Units, Units]:
        a = layer.factor / (layer.running_var + BN_EPSILON).sqrt()
        c = -a * layer.running_mean
        return a, c if layer.b is None else c + layer.b


CLASSES: dict[str, type[Parameterization]] = dict(zip(PARAMS, (Normal, BatchNorm, WeightNorm, MeanOnly), strict=True))


def parameterization(param: Param) -> Parameterization:
    """Return the parameterization for a name, class or instance. Raises ValueError for an unknown name."""
    if isinstance(param, str):
        if param not in CLASSES:
            raise ValueError(f"param {param!r}: unknown; use {', '.join(CLASSES)} or a class")
        param = CLASSES[param]
    return param() if isinstance(param, type) else param


def name_of(param: Param) -> str:
    """Return the name of a parameterization for `--param`, or its class's name if there is none."""
    kind = type(parameterization(param))
    return next((name for name, one in CLASSES.items() if one is kind), kind.__name__)


def fallback(norm: Parameterization) -> Parameterization:
    """Return the parameterization of layers to which this one does not apply."""
    return parameterization(norm.elsewhere or WeightNorm)


def elsewhere(param: Param) -> Parameterization:
    """Return the parameterization of a recurrent net's other layers if its input-to-hidden products have `param`."""
    norm = parameterization(param)
    return fallback(norm) if norm.elsewhere or norm.batch_statistics else norm

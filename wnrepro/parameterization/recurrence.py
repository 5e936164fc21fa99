"""What runs at every time step of a recurrent net, at the least cost a step.

Shapes: B examples, I inputs, C output units, U units of a cell. Derivatives of derivatives are not supported.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

GATHERED = 4  # products whose factors are gathered for one product of the gradient

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.default
tanh_backward_into = torch.ops.aten.tanh_backward.grad_input


class Gradient:
    """That of a weight of many products, gathered in place, product by product while the factors are in the cache.

    Autograd would make a matrix of each and then add them up. It refers to nothing of the pass but factors that wait to
    be gathered, so that a pass is freed as soon as nobody has its result.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.sum: Tensor | None = None

    def add(self, of_output: Tensor, x: Tensor) -> None:
        """Add that of one product x·wᵀ."""
        self.factors.append((of_output, x))
        if len(self.factors) == GATHERED:
            self.gather()

    def gather(self) -> None:
        """Add the gradient of the products noted."""
        of_outputs, inputs = (torch.cat(some) for some in zip(*self.factors, strict=True))
        self.factors.clear()
        if self.sum is None:
            self.sum = (of_outputs.T @ inputs).to(self.dtype)
        elif inputs.dtype == self.dtype:
            self.sum.addmm_(of_outputs.T, inputs)
        else:
            self.sum += of_outputs.T @ inputs

    def taken(self) -> Tensor | None:
        """The whole of it, which is nothing again afterwards."""
        if self.factors:
            self.gather()
        taken, self.sum = self.sum, None
        return taken


class Unrolled:
    """A weight w (C, I) for many time steps, as `product` and `lstm_step` take it.

    dtype: of the factors of the products, where it is not w's. Every backward pass through it must go on to w, or what
    its `gradient` gathered is added to the next. Where its products are compiled by torch.compile it is the plain
    weight, not `gathered`, and its `gradient` is not used; likewise in the transforms of torch.func.
    """

    def __init__(self, w: Tensor, dtype: torch.dtype | None = None, gathered: bool = True) -> None:
        dtype = dtype or w.dtype
        transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        self.gathered = gathered and not transformed
        self.gradient = Gradient(w.dtype)
        self.w: Tensor = Gather.apply(w, dtype, self.gradient) if self.gathered else w.to(dtype)


class Gather(torch.autograd.Function):
    """w in the type of the products; its gradient is the one that has been gathered by then."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, dtype: torch.dtype, gradient: Gradient) -> Tensor:
        ctx.gradient = gradient
        return w.to(dtype) if dtype != w.dtype else w.view_as(w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Any) -> tuple[Tensor | None, None, None]:
        return ctx.gradient.taken(), None, None


class Product(torch.autograd.Function):
    """See `product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, gradient: Gradient) -> Tensor:
        low = x.to(w.dtype)
        ctx.save_for_backward(low, w)
        ctx.gradient = gradient
        y = F.linear(low, w).to(x.dtype)
        return y if b is None else y.add_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        of_x, _, of_b, _ = ctx.needs_input_grad
        low = gradient.to(w.dtype)
        ctx.gradient.add(low, x)
        return (low @ w).to(gradient.dtype) if of_x else None, None, gradient.sum(0) if of_b else None, None


def product(x: Tensor, weight: Unrolled, b: Tensor | None) -> Tensor:
    """x·wᵀ + b of x (B, I) and b (C,), where given: (B, C)."""
    if not weight.gathered:
        y = F.linear(x.to(weight.w.dtype), weight.w).to(x.dtype)
        return y if b is None else y + b
    y = Product.apply(x, weight.w, b, weight.gradient)
    return y


class LSTMStep(torch.autograd.Function):
    """See `lstm_step`."""

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, h: Tensor, c: Tensor, w: Tensor, b: Tensor, gradient: Gradient
    ) -> tuple[Tensor, Tensor]:
        h = h.to(w.dtype)
        active = torch.addmm(t, h, w.T) if w.dtype == t.dtype else t + h @ w.T
        active += b
        i, f, g, o = active.split(c.shape[1], 1)
        active[:, : 2 * c.shape[1]].sigmoid_()
        o.sigmoid_()
        new_c = torch.addcmul(f * c, i, g.tanh_())
        tanh_c = torch.tanh(new_c)
        ctx.save_for_backward(active, h, c, tanh_c, w)
        ctx.gradient = gradient
        return o * tanh_c, new_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor, d_c: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor, None]:
        active, h, c, tanh_c, w = ctx.saved_tensors
        units = c.shape[1]
        i, f, g, o = active.split(units, 1)
        d_c = tanh_backward(d_h * o, tanh_c).add_(d_c)
        d_t = torch.cat([d_c, d_c, d_c, d_h], 1)
        d_i, d_f, d_g, d_o = d_t.split(units, 1)
        d_i.mul_(g)
        d_f.mul_(c)
        d_g.mul_(i)
        d_o.mul_(tanh_c)
        sigmoid_backward(d_t[:, : 2 * units], active[:, : 2 * units], grad_input=d_t[:, : 2 * units])
        tanh_backward_into(d_g, g, grad_input=d_g)
        sigmoid_backward(d_o, o, grad_input=d_o)
        low = d_t.to(w.dtype)
        ctx.gradient.add(low, h)
        return d_t, (low @ w).to(d_t.dtype), d_c.mul_(f), None, d_t.sum(0), None


def lstm_step(t: Tensor, h: Tensor, c: Tensor, weight: Unrolled, b: Tensor) -> tuple[Tensor, Tensor]:
    """One time step of an LSTM cell: its h and c (B, U) → the next ones.

    t: the input-to-hidden products (B, 4·U), gates in torch's order i, f, g, o; weight (4·U, U) and b (4·U,): the
    recurrent ones.
    """
    if not weight.gathered:
        return lstm_gates(t + product(h, weight, b), c)
    h, c = LSTMStep.apply(t, h, c, weight.w, b, weight.gradient)
    return h, c


def lstm_gates(t: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next h and c (B, U) of the gates' sums t (B, 4·U), which have the bias, and of c."""
    i, f, g, o = t.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c

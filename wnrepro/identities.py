"""The paper's exact identities, measured in float64: how far the code is from eq. 3, eq. 7 and §2.2.

Each figure is a relative residual: the largest difference over the largest value, rounding alone if the
identity holds. Every run of an experiment records them, so that the report has its evidence for C1 and C2.
"""

import torch
from torch import Tensor

from wnrepro.parameterization import Linear, weight_norm

EXAMPLES, INPUTS, UNITS = 64, 12, 5
LARGE = 1e6  # ‖v‖ of wn ≡ bn, beside which the ε of batch normalization is below rounding


def residual(a: Tensor, b: Tensor) -> float:
    """max|a − b| / max|b|."""
    return float((a - b).abs().max() / b.abs().max())


def eq3_gradients(v: Tensor, g: Tensor, grad_w: Tensor) -> tuple[Tensor, Tensor]:
    """∇_g L and ∇_v L in closed form (eq. 3) from ∇_w L; v and grad_w are (C, k), g is (C,)."""
    norm = v.norm(dim=1)
    grad_g = (grad_w * v).sum(1) / norm
    grad_v = (g / norm)[:, None] * grad_w - (g * grad_g / norm**2)[:, None] * v
    return grad_g, grad_v


@torch.enable_grad()
def measure(seed: int = 0) -> dict[str, float]:
    """The residuals of eq. 3, of v·∇_v L = 0, of eq. 7, and of wn ≡ bn for one layer on whitened input."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    v, g, x, target = normal(UNITS, INPUTS), normal(UNITS), normal(EXAMPLES, INPUTS), normal(EXAMPLES, UNITS)

    v.requires_grad_(), g.requires_grad_()
    w = weight_norm(v, g)
    w.retain_grad()
    (torch.tanh(x @ w.T) - target).square().sum().backward()
    assert v.grad is not None and g.grad is not None and w.grad is not None
    grad_g, grad_v = eq3_gradients(v.detach(), g.detach(), w.grad)
    along_v = (v.grad * v.detach()).sum(1) / (v.grad.norm(dim=1) * v.detach().norm(dim=1))

    with torch.random.fork_rng(devices=[]):
        centred, by_bn, by_wn = (Linear(INPUTS, UNITS, param).double() for param in ("wn+mobn", "bn", "wn"))
    with torch.no_grad():
        centred.v.copy_(normal(UNITS, INPUTS))
    seen: list[Tensor] = []
    hook = centred.t.register_forward_hook(lambda _module, _inputs, t: seen.append(t))
    y = centred(x)
    hook.remove()
    grad_t, grad_y = torch.autograd.grad((torch.tanh(y) - target).square().sum(), [seen[0], y])

    # §2.2: one layer, input whitened over the batch, σ[v·x] is then ‖v‖ itself.
    white, _ = torch.linalg.qr(x - x.mean(0))
    white = white * EXAMPLES**0.5
    with torch.no_grad():
        for layer in (by_bn, by_wn):
            layer.v.copy_(LARGE * v)
            layer.set_g(g)
    return {
        "eq3_residual": max(residual(g.grad, grad_g), residual(v.grad, grad_v)),
        "v_dot_grad_v": float(along_v.abs().max()),
        "eq7_residual": residual(grad_t, grad_y - grad_y.mean(0)),
        "wn_is_bn_residual": residual(by_wn(white).detach(), by_bn(white).detach()),
    }

"""Layers: masks, and which features vary over the init batch."""

import pytest
import torch
from layer_factories import CAUSAL, close, make

from wnrepro.parameterization import ConstantFeatureError, Linear, bound_v_norm, data_dependent_init

pytestmark = pytest.mark.usefixtures("float64")


def test_masked_weights_do_not_exist() -> None:
    """Neither in w nor in ‖v‖ nor in the gradient, also where v has been written to from outside."""
    layer, x = make("masked", "wn")
    y, gone = layer(x), CAUSAL == 0
    with torch.no_grad():
        layer.v[gone] = 7.0
    close(layer(x), y)
    assert (layer.w()[gone] == 0).all()
    close(layer.v_norm(), (layer.v * CAUSAL).flatten(1).square().sum(1).sqrt())
    v = layer.v.detach().clone()
    bound_v_norm(layer, layer.v_norm().max().item() * 1.01)
    assert torch.equal(layer.v, v)
    bound_v_norm(layer, layer.v_norm().median().item())
    assert not torch.equal(layer.v, v)
    close(layer(x), y)
    assert "mask" not in layer.state_dict()
    layer(x).sum().backward()
    assert (layer.v.grad[gone] == 0).all()
    close(layer(x)[..., :1, :1].flatten(1), layer.b.expand(len(x), -1))  # the first pixel has no past


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_init_does_not_depend_on_the_scale_of_its_input(factor: float) -> None:
    layer, x = make("conv", "wn")
    y = data_dependent_init(layer, x)
    close(data_dependent_init(layer, x * factor), y)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_noise_is_no_variance(value: float, dtype: torch.dtype) -> None:
    """A batch of one repeated example, at the size of the paper's layers."""
    layer = Linear(1728, 20, "wn").to(dtype)
    example = value * torch.rand(1728, dtype=dtype)
    with pytest.raises(ConstantFeatureError, match="20 features"):
        data_dependent_init(layer, example.expand(500, -1) + 0)


def test_small_variance_beside_a_large_mean_is_variance() -> None:
    y = data_dependent_init(Linear(3, 4, "wn"), 1e3 + 1e-6 * torch.randn(50, 3))
    close(y.var(0, unbiased=False), torch.ones(4), 1e-6)

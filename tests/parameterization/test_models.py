"""Operations on whole models: the init pass, the bound on v, folding."""

from typing import Any

import pytest
import torch
from layer_factories import close, each_param, every_init, features_last, mixed_model
from torch import Tensor, nn

from wnrepro.parameterization import (
    ConstantFeatureError,
    convert,
    data_dependent_init,
    fold,
    layers,
)

pytestmark = pytest.mark.usefixtures("float64")


@every_init
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_init_standardizes_every_pre_activation(param: str, options: dict[str, Any], dropout: float) -> None:
    """Also in a training pass with the same dropout after it; all parameterizations become the same function."""
    model, x, seen = mixed_model(param, dropout, **options).eval(), torch.randn(20, 2, 6, 6) + 0.3, []

    def check(layer: Any, _inputs: Any, y: Tensor) -> None:
        variance, mean = torch.var_mean(features_last(layer, y.detach()), 0, correction=0)
        close(mean, torch.zeros_like(mean))
        close(variance, torch.ones_like(variance))
        seen.append(layer)

    for _, layer in layers(model):
        layer.register_forward_hook(check)
    torch.manual_seed(9)
    y = data_dependent_init(model, x)
    assert not any(module.training for module in model.modules())
    assert not y.requires_grad and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.manual_seed(9)
    close(model.train()(x), y)
    assert set(seen) == {layer for _, layer in layers(model)}
    normal = mixed_model("normal", dropout)
    torch.manual_seed(9)
    close(data_dependent_init(normal, x), y, 1e-10)
    if not dropout and param != "bn":
        close(model.eval()(x), y, 1e-10)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("constant", ConstantFeatureError, r"2 features of layer '3\.2'"),
        ("crash", ZeroDivisionError, "zero"),
        ("unused", ValueError, r"did not reach 3\.2"),
    ],
)
@each_param
def test_failed_init_names_the_layer_and_leaves_none_initializing(
    param: str, fault: str, error: type[Exception], says: str
) -> None:
    model, x = mixed_model(param).eval(), torch.randn(20, 2, 6, 6)
    if fault == "constant":
        with torch.no_grad():
            model[3][2].v[1:3] = 0
            model[3][2].v[1:3, 0] = 1
        model[3][1].register_forward_hook(lambda _m, _x, y: torch.cat([torch.ones(len(y), 1), y[:, 1:]], 1))
    elif fault == "crash":
        model[2].register_forward_pre_hook(lambda _module, _x: 1 / 0)
    else:
        model[3].forward = lambda x: x
    with pytest.raises(error, match=says):
        data_dependent_init(model, x)
    assert not any(layer.initializing for _, layer in layers(model))
    assert not model.training


@every_init
def test_folded_model_is_of_plain_layers_and_shares_nothing(param: str, options: dict[str, Any]) -> None:
    model, x = mixed_model(param, 0.5, **options), torch.randn(20, 2, 6, 6) + 0.3
    data_dependent_init(model, x)
    model(2 * x)  # moves the running averages off the init batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    plain = fold(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    kinds = [type(module) for module in plain.modules() if hasattr(module, "weight")]
    assert kinds == [nn.Conv2d, nn.ConvTranspose2d, nn.Conv2d, nn.Linear]
    assert plain.training
    close(plain.eval()(x), model.eval()(x), 1e-10)
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@each_param
def test_layer_used_twice_is_converted_once_set_by_its_first_call_and_folds(param: str) -> None:
    shared, x = nn.Linear(3, 3), torch.randn(9, 3)
    model: Any = convert(nn.Sequential(shared, nn.Tanh(), shared), param)
    layer, alone = model[0], convert(shared, param)
    assert layer is model[2]
    y = data_dependent_init(model, x)
    close(data_dependent_init(alone, x), layer(x))
    close(alone(torch.tanh(alone(x))), y)
    plain: Any = fold(model.eval())
    assert [type(module) for module in plain] == [nn.Linear, nn.Tanh, nn.Linear]
    close(plain(x), model(x))

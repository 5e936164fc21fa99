"""Operations on whole models: the init pass by eq. 4, the bound on v, folding, torch.compile."""

import copy
from typing import Any

import pytest
import torch
from layer_factories import (
    EVERY_INIT,
    close,
    each_kind,
    each_param,
    every_init,
    features_last,
    initialized,
    make,
    mixed_model,
    units,
)
from torch import Tensor, nn

from wnrepro.parameterization import (
    ConstantFeatureError,
    Conv2d,
    Linear,
    LSTMCell,
    bound_v_norm,
    data_dependent_init,
    fold,
    layers,
)

pytestmark = pytest.mark.usefixtures("float64")


@every_init
def test_eq4_every_pre_activation_is_standardized(param: str, options: dict[str, Any]) -> None:
    """By the init pass, in training mode, and by a training pass with the same noise and dropout after it."""
    model, x, seen = mixed_model(param, **options).eval(), torch.randn(20, 2, 6, 6) + 0.3, []

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
    assert not y.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.manual_seed(9)
    close(model.train()(x), y)
    assert set(seen) == {layer for _, layer in layers(model)}


@pytest.mark.parametrize("random", [True, False])
def test_all_are_the_same_function_on_the_init_batch(random: bool) -> None:
    x = torch.randn(20, 2, 6, 6) + 0.3
    outputs, in_evaluation = [], []
    for param, options in EVERY_INIT:
        model = mixed_model(param, random, **options)
        torch.manual_seed(4)
        data_dependent_init(model, x)
        torch.manual_seed(4)
        outputs.append(model(x))
        in_evaluation.append(model.eval()(x))
    assert outputs[0].std() > 0.5
    for (param, _), y, other in zip(EVERY_INIT, outputs, in_evaluation, strict=True):
        close(y, outputs[0], 1e-10)
        if not random:
            close(other, outputs[0], 0.05 if param == "bn" else 1e-10)  # its running variance is unbiased


@each_param
def test_layer_called_twice_is_set_by_its_first_call(param: str) -> None:
    layer, x = Linear(3, 3, param), torch.randn(9, 3)
    alone = copy.deepcopy(layer)
    y = data_dependent_init(nn.Sequential(layer, nn.Tanh(), layer), x)
    close(data_dependent_init(alone, x), layer(x))
    close(alone(torch.tanh(alone(x))), y)


@each_param
def test_constant_features_are_named_and_counted(param: str) -> None:
    model = mixed_model(param, random=False)
    last = model[4][2]
    with torch.no_grad():
        last.v[1:3] = 0
        last.v[1:3, 0] = 1
    model[4][1].register_forward_hook(lambda _m, _x, y: torch.cat([torch.ones(len(y), 1), y[:, 1:]], 1))
    with pytest.raises(ConstantFeatureError, match=r"2 features of layer '4\.2'") as raised:
        data_dependent_init(model, torch.randn(20, 2, 6, 6))
    assert raised.value.layer is last
    assert raised.value.features == 2


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("constant", ConstantFeatureError, "do not vary"),
        ("crash", ZeroDivisionError, "zero"),
        ("unused", ValueError, "'?4.2"),
    ],
)
def test_failed_init_leaves_no_layer_initializing(fault: str, error: type[Exception], says: str) -> None:
    model, x = mixed_model("wn", random=False).eval(), torch.randn(20, 2, 6, 6)
    if fault == "constant":
        x = torch.zeros_like(x)
    elif fault == "crash":
        model[3].register_forward_pre_hook(lambda _module, _x: 1 / 0)
    else:
        model[4].forward = lambda x: x
    with pytest.raises(error, match=says):
        data_dependent_init(model, x)
    assert not any(layer.initializing for _, layer in layers(model))
    assert not model.training


@each_kind
@pytest.mark.parametrize("param", ["normal", "wn", "wn+mobn"])
def test_bound_on_the_norm_of_v(kind: str, param: str) -> None:
    """§6.2: ‖v‖ ≤ a; rows inside keep every bit; under wn the function stays."""
    layer, x = make(kind, param)
    a = layer.v_norm().detach().sort().values[1:3].mean().item()  # two rows inside, two outside
    before, y, inside = layer.v.detach().clone(), layer(x), layer.v_norm() <= a
    bound_v_norm(nn.Sequential(layer), a)
    for old, v, kept in zip(units(before, layer), units(layer.v, layer), inside, strict=True):
        if kept:
            assert torch.equal(v, old)
        else:
            close(v, a * old / old.square().sum().sqrt())
    assert torch.allclose(layer(x), y) == (param != "normal")


@every_init
def test_fold(param: str, options: dict[str, Any]) -> None:
    """Plain torch layers of the same function in evaluation; the original does not change."""
    model, x = initialized(param, random=True, **options)
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


def test_fold_finds_cells_and_layers_used_twice() -> None:
    layer = Linear(3, 3, "wn")
    plain: Any = fold(nn.Sequential(layer, nn.Tanh(), layer))
    assert [type(module) for module in plain] == [nn.Linear, nn.Tanh, nn.Linear]
    x = torch.randn(4, 3)
    close(plain(x), layer(torch.tanh(layer(x))))
    cells: Any = fold(nn.ModuleList([LSTMCell(2, 3, "wn")]))
    assert type(cells[0]) is nn.LSTMCell


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_compiled_model_is_the_eager_one() -> None:
    """All four parameterizations and both forms of g: outputs, gradients, running averages; evaluation."""
    slope = nn.LeakyReLU(0.1)
    model = nn.Sequential(
        *(Conv2d(2, 3, 3, "bn", g_exp=3.0), slope, Conv2d(3, 3, 3, "wn+mobn"), slope, nn.Flatten()),
        *(Linear(12, 4, "wn", g_exp=3.0), nn.ELU(), Linear(4, 2, "normal")),
    )
    x = torch.randn(5, 2, 6, 6)
    data_dependent_init(model, x)
    torch.compiler.reset()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    for inputs in (x, x + 1):
        y, expected = compiled(inputs), eager(inputs)
        close(y, expected, 1e-9)
        y.square().sum().backward()
        expected.square().sum().backward()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        close(p.grad, q.grad, 1e-9)
    for found, wanted in zip(model.buffers(), eager.buffers(), strict=True):
        close(found, wanted, 1e-9)
    model.eval()
    close(compiled(x), eager.eval()(x), 1e-9)

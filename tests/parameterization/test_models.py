"""Operations on whole models: the init pass, the bound on v, folding, torch.compile."""

import copy
from typing import Any

import pytest
import torch
from layer_factories import close, each_kind, each_param, every_init, initialized, make, mixed_model, units
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


@each_kind
@pytest.mark.parametrize("param", ["normal", "wn", "wn+mobn"])
def test_bound_on_the_norm_of_v(kind: str, param: str) -> None:
    """§6.2: ‖v‖ ≤ a; rows inside keep every bit; under wn the function stays."""
    layer, x = make(kind, param)
    a = layer.v_norm().detach().sort().values[1:3].mean().item()  # two rows inside, two outside
    before, y, inside = layer.v.detach().clone(), layer(x), layer.v_norm() <= a
    assert inside.sum() == 2
    bound_v_norm(nn.Sequential(layer), a)
    for v_before, v, norm, kept in zip(
        units(before, layer), units(layer.v, layer), layer.v_norm(), inside, strict=True
    ):
        assert norm <= a * (1 + 1e-15)
        if kept:
            assert torch.equal(v, v_before)
        else:
            close(v, a * v_before / v_before.square().sum().sqrt())
    if param == "normal":
        assert not torch.allclose(layer(x), y)
    else:
        close(layer(x), y)


def test_init_leaves_the_mode_and_the_gradients_alone() -> None:
    model, x = mixed_model("wn").eval(), torch.randn(20, 2, 6, 6)
    torch.manual_seed(2)
    y = data_dependent_init(model, x)
    assert not any(module.training for module in model.modules())
    assert not y.requires_grad and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.manual_seed(2)
    close(model.train()(x), y)  # the pass itself ran in training mode


@each_param
def test_constant_features_are_named_and_counted(param: str) -> None:
    model = mixed_model(param, random=False)
    last = model[4][2]
    with torch.no_grad():
        last.v[1:3] = 0
        last.v[1:3, 0] = 1
    model[4][1].register_forward_hook(lambda _m, _x, y: torch.cat([torch.ones(len(y), 1), y[:, 1:]], 1))
    with pytest.raises(ConstantFeatureError, match=r"2 features of layer '4\.2' do not vary .*batch") as raised:
        data_dependent_init(model, torch.randn(20, 2, 6, 6))
    assert raised.value.layer is last and raised.value.features == 2


class Unused(nn.Module):
    """Two layers, of which the forward pass takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare, self.other = (Linear(3, 3, "wn") for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_layers_that_the_pass_does_not_reach_are_named() -> None:
    model = Unused()
    with pytest.raises(ValueError, match=r"did not reach spare, other$"):
        data_dependent_init(model, torch.randn(8, 3))
    assert not any(layer.initializing for _, layer in layers(model))


@each_param
def test_a_layer_called_twice_is_set_by_its_first_call(param: str) -> None:
    layer, x = make("linear", param)
    layer = Linear(3, 3, param)
    alone = copy.deepcopy(layer)
    y = data_dependent_init(nn.Sequential(layer, nn.Tanh(), layer), x)
    close(data_dependent_init(alone, x), layer(x))
    close(alone(torch.tanh(alone(x))), y)


@pytest.mark.parametrize("how", ["constant", "crash"])
def test_a_failed_init_leaves_no_layer_initializing(how: str) -> None:
    model = mixed_model("wn", random=False).eval()
    x = torch.randn(20, 2, 6, 6)
    if how == "constant":
        x = torch.zeros_like(x)
    else:
        model[3].register_forward_pre_hook(lambda _module, _x: 1 / 0)
    with pytest.raises(ConstantFeatureError if how == "constant" else ZeroDivisionError):
        data_dependent_init(model, x)
    named = dict(layers(model))
    assert len(named) == 4 and not any(layer.initializing for layer in named.values())
    assert not model.training
    g = named["4.2"].g.clone()
    named["4.2"](torch.randn(5, 48))
    assert torch.equal(named["4.2"].g, g)  # an ordinary pass


@every_init
def test_fold(param: str, options: dict[str, Any]) -> None:
    """Plain torch layers of the same function in evaluation; the original is left as it was."""
    model, x = initialized(param, random=True, **options)
    model(2 * x)  # moves the running averages off the init batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    plain = fold(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not list(layers(plain)) and len(list(layers(model))) == 4
    kinds = [type(module) for module in plain.modules() if hasattr(module, "weight")]
    assert kinds == [nn.Conv2d, nn.ConvTranspose2d, nn.Conv2d, nn.Linear]
    assert plain.training
    close(plain.eval()(x), model.eval()(x), 1e-10)
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fold_finds_lstms_and_layers_used_twice() -> None:
    layer = Linear(3, 3, "wn")
    plain = fold(nn.Sequential(layer, nn.Tanh(), layer))
    assert [type(module) for module in plain] == [nn.Linear, nn.Tanh, nn.Linear]
    x = torch.randn(4, 3)
    close(plain(x), layer(torch.tanh(layer(x))))
    assert type(fold(nn.ModuleList([LSTMCell(2, 3, "wn")]))[0]) is nn.LSTMCell


def assert_compiled_is_eager(model: nn.Module, x: Tensor) -> None:
    """Outputs, gradients and running averages in training, outputs in evaluation."""
    torch.compiler.reset()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    for inputs in (x, x + 1):
        y, expected = compiled(inputs), eager(inputs)
        close(y, expected, 1e-9)
        y.square().sum().backward()
        expected.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        close(p.grad, q.grad, 1e-9)
    for p, q in zip(model.buffers(), eager.buffers(), strict=True):
        close(p, q, 1e-9)
    model.eval(), eager.eval()
    close(compiled(x), eager(x), 1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_compiled_for_real() -> None:
    """All four parameterizations and both forms of g in one model, through the default backend."""
    model = nn.Sequential(
        Conv2d(2, 3, 3, "bn", g_exp=3.0),
        nn.LeakyReLU(0.1),
        Conv2d(3, 3, 3, "wn+mobn"),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        Linear(12, 4, "wn", g_exp=3.0),
        nn.ELU(),
        Linear(4, 2, "normal"),
    )
    x = torch.randn(5, 2, 6, 6)
    data_dependent_init(model, x)
    assert_compiled_is_eager(model, x)

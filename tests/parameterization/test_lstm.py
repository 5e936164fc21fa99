"""LSTM cells and nets against torch's."""

import itertools
from typing import Any

import pytest
import torch
from layer_factories import close, each_param
from torch import Tensor, nn

from wnrepro.parameterization import LSTM, Linear, LSTMCell, Parameterization, convert, fold, layers
from wnrepro.parameterization.norm import name_of


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_each_time_step_has_its_own_running_averages(param: str) -> None:
    """Those of a layer that sees only this time step; evaluation uses them, and there is no plain layer."""
    layer, alone = Linear(3, 4, param, time_steps=2), [Linear(3, 4, param) for _ in range(2)]
    for each in alone:
        each.load_state_dict(layer.state_dict() | {n: b[0].clone() for n, b in layer.named_buffers()})
    for training in (True, True, False):
        layer.train(training)
        for time, each in enumerate(alone):
            x = torch.randn(9, 3) + time
            close(layer(x, layer.w(), time), each.train(training)(x))
    assert (layer.running_mean[0] - layer.running_mean[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="time step"):
        fold(layer)


def lstm(**options: Any) -> tuple[nn.LSTM, Tensor]:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, **options).double(), torch.randn(5, 2, 3, dtype=torch.float64)


LSTMS: list[dict[str, Any]] = [
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "batch_first": True, "bias": False, "dropout": 0.5},
]


@pytest.mark.parametrize("options", LSTMS, ids=str)
@each_param
def test_lstm_is_the_same_function_and_folds_back(param: str, options: dict[str, Any]) -> None:
    """Parameterizations that are more than a weight and a bias become another one here."""
    plain, x = lstm(**options)
    model: Any = convert(plain, param)
    assert type(model) is LSTM
    assert {name_of(layer.norm) for _, layer in layers(model)} == {"wn" if "wn" in param else "normal"}
    cells, batch = len(model.cells), x.shape[0 if model.batch_first else 1]
    state = [torch.randn(cells, batch, 4, dtype=torch.float64) for _ in range(2)]
    packed = nn.utils.rnn.pack_sequence([x[:3, 0], x[:, 1], x[:2, 1]], enforce_sorted=False)
    state_of_3 = [torch.randn(cells, 3, 4, dtype=torch.float64) for _ in range(2)]
    back = fold(model)
    assert type(back) is nn.LSTM and repr(back) == repr(plain)
    assert list(back.state_dict()) == list(plain.state_dict())
    inputs: list[Any] = [(x,), (x, state), (x[0],), (x[0], [part[:, 0] for part in state])]
    for each in (model, back):
        for given, training in itertools.product((*inputs, (packed,), (packed, state_of_3)), (True, False)):
            torch.manual_seed(3)
            y, states = each.train(training)(*given)
            torch.manual_seed(3)
            expected, states_expected = plain.train(training)(*given)
            for part, part_expected in zip((y.data, *states), (expected.data, *states_expected), strict=True):
                close(part, part_expected)
            if isinstance(y, nn.utils.rnn.PackedSequence):
                assert torch.equal(y.batch_sizes, expected.batch_sizes)
                close(y.unsorted_indices, expected.unsorted_indices)
    model(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_lstm_refuses_more_than_weight_and_bias() -> None:
    class Rectified(Parameterization):
        def normalize(self, layer: Any, t: Tensor, time: Any) -> Tensor:
            return t.relu()

    with pytest.raises(ValueError, match="`elsewhere`"):
        LSTM(3, 4, Rectified)


@pytest.mark.parametrize("bias", [True, False])
@each_param
def test_lstm_cell_converts_and_folds_back(param: str, bias: bool) -> None:
    plain: Any = nn.LSTMCell(3, 4, bias=bias).double()
    x, state = torch.randn(5, 3).double(), (torch.randn(5, 4).double(), torch.randn(5, 4).double())
    cell = convert(plain, param)
    assert type(cell) is LSTMCell
    cell(x)  # moves the running averages
    cell.eval()
    back = fold(cell)
    assert type(back) is nn.LSTMCell
    given: list[Any] = [(x,), (x, state)]
    for inputs in given:
        for part, folded, expected in zip(cell(*inputs), back(*inputs), plain(*inputs), strict=True):
            close(folded, part)
            if param in ("normal", "wn"):
                close(part, expected)
    if param in ("normal", "wn"):
        assert list(back.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")
def test_recurrent_nets_export_and_have_gradients_of_each_sample() -> None:
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    model, cell = convert(lstm(batch_first=True)[0]).eval(), convert(nn.LSTMCell(3, 4).double())
    close(torch.export.export(model, (x,)).module()(x)[0], model(x)[0])
    for each, inputs in ((model, x), (cell, x[:, 0])):
        params: dict[str, Tensor] = dict(each.named_parameters())

        def loss(params: dict[str, Tensor], x: Tensor, each: nn.Module = each) -> Tensor:
            return torch.func.functional_call(each, params, (x[None],))[0].square().sum()

        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, inputs)
        each(inputs)[0].square().sum().backward()
        for name, p in params.items():
            close(found[name].sum(0), p.grad)


@pytest.mark.usefixtures("float64")
@each_param
def test_cell_takes_its_input_in_parts(param: str) -> None:
    """Also in one product, whose gradients are those of two."""
    cell, x, h = LSTMCell(5, 4, param), torch.randn(6, 5), torch.randn(6, 4)
    assert cell.one_product == (param in ("normal", "wn"))
    state, found = (h, torch.randn(6, 4)), []
    gates = cell.input(x) + cell.recurrent(h)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    expected = (o.sigmoid() * c.tanh()).square().sum()
    for output in (cell(x, state), cell(list(x.split([2, 3], 1)), state, cell.unrolled())):
        close(output[1], c)
        found.append(output[0].square().sum())
    for value in found:
        close(value, expected)
        gradients = (torch.autograd.grad(one, list(cell.parameters()), retain_graph=True) for one in (value, expected))
        for one, right in zip(*gradients, strict=True):
            close(one, right)


def test_biases_of_one_product_have_gradients_of_their_own() -> None:
    """Else clipping the norm of all gradients in place would scale them twice."""
    cell = LSTMCell(3, 4, "wn")
    cell(torch.randn(2, 3))[0].sum().backward()
    storages = [p.grad.untyped_storage().data_ptr() for p in cell.parameters() if p.grad is not None]
    assert len(set(storages)) == len(storages) == 6

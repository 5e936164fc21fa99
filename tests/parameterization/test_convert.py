"""Converted models: the function they were, what torch does with them, and the init with torch's own weight norm."""

from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from layer_factories import close, each_param, features_last
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as torch_weight_norm

from wnrepro import parameterization as ours
from wnrepro.parameterization import (
    ConstantFeatureError,
    convert,
    data_dependent_init,
    fold,
    from_torch_weight_norm,
    init_torch_weight_norm,
    layers,
)
from wnrepro.parameterization.norm import name_of
from wnrepro.tools import library_table

SAME = ("normal", "wn")  # the same function in training too
INPUTS = {0: (9, 4), 1: (5, 4, 7), 2: (5, 4, 6, 5), 3: (4, 4, 4, 5, 4)}  # by the dimensions of the layer
KINDS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear": (lambda: nn.Linear(4, 6), 0),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), 0),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, padding_mode="replicate"), 1),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), 2),
    "conv2d same": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), 2),
    "conv2d circular": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", bias=False), 2),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), 2),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), 2),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="reflect"), 3),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, bias=False), 1),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), 2),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2, bias=False), 3),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> tuple[Any, Tensor]:
    """A torch layer and its input, in float64."""
    torch.manual_seed(0)
    build, dims = KINDS[kind]
    return build().double(), torch.randn(INPUTS[dims], dtype=torch.float64) + 0.3


def assert_standardized(model: nn.Module, run: Callable[[], Any]) -> None:
    """Every unit has variance 1 while `run` runs, and mean 0 where it has a bias."""
    seen = []

    def check(layer: Any, _inputs: Any, y: Tensor) -> None:
        variance, mean = torch.var_mean(features_last(layer, y.detach()), 0, correction=0)
        close(variance, torch.ones_like(variance), 1e-3)
        if layer.b is not None:
            close(mean, torch.zeros_like(mean), 1e-3)
        seen.append(layer)

    hooks = [layer.register_forward_hook(check) for _, layer in layers(model)]
    run()
    for hook in hooks:
        hook.remove()
    assert len(seen) >= len(hooks) > 0


@each_kind
@each_param
def test_layer_converts_and_folds_back(kind: str, param: str) -> None:
    """The same function in evaluation, and a copy; standardized by the init; then a torch layer again."""
    plain, x = make(kind)
    random_state = torch.get_rng_state()
    layer: Any = convert(plain.eval(), param)
    assert type(layer) is getattr(ours, type(plain).__name__)
    close(layer(x), plain(x), 1e-11 if param in SAME else 1e-5)  # but for bn's ε
    back: Any = fold(layer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (type(back), repr(back)) == (type(plain), repr(plain)) or param not in SAME
    for name, value in plain.state_dict().items():
        close(back.state_dict()[name], value, 1e-11 if param in SAME else 1e-5)
    layer.train()
    assert_standardized(layer, lambda: data_dependent_init(layer, x))
    assert_standardized(layer, lambda: layer(x))
    assert hasattr(layer, "weight") == hasattr(layer, "bias") == (param in SAME)  # whether it is affine in x
    back = fold(layer.eval())
    close(back(x), layer(x))
    close(layer.weight, back.weight)
    assert torch.autograd.grad(layer.weight.square().sum(), layer.v)[0] is not None
    assert (layer.bias is None) == (back.bias is None) and (layer.bias is None or torch.equal(layer.bias, back.bias))
    close(plain(x), make(kind)[0](x))


@each_param
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_mode_strides_and_frozen_parameters_are_kept(param: str, dtype: torch.dtype) -> None:
    plain: Any = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 2, 3))
    plain.to(dtype, memory_format=torch.channels_last)
    plain[0].weight.requires_grad_(False)
    plain[1].eval().bias.requires_grad_(False)
    model: Any = convert(plain, param)
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {dtype}
    assert [module.training for module in model] == [True, False]
    assert [layer.v.stride() for layer in model] == [layer.weight.stride() for layer in plain]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"0.v", "1.b"} | ({"0.gain"} if param != "normal" else set())
    y = data_dependent_init(model, torch.randn(2, 4, 8, 8, dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert {name for name, p in fold(model).named_parameters() if not p.requires_grad} == {"0.weight", "1.bias"}


@each_param
@each_kind
def test_unit_with_v_of_zero_has_finite_gradients(kind: str, param: str) -> None:
    plain, x = make(kind)
    with torch.no_grad():
        plain.weight.transpose(0, 1 if kind.startswith("transposed") else 0)[0] = 0
    layer: Any = convert(plain, param)
    layer(x).sin().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    if param in SAME:
        close(layer(x), plain(x))


@pytest.mark.parametrize(
    ("skip", "converted"),
    [
        ((), ["0", "1.0", "1.1", "2"]),
        (["1"], ["0", "2"]),
        (["1.0", "2"], ["0", "1.1"]),
        (lambda name, module: name == "2" and module.out_features == 2, ["0", "1.0", "1.1"]),
        (["fc"], None),
        ("1", None),
    ],
)
def test_skip(skip: Any, converted: list[str] | None) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    if converted is None:
        with pytest.raises(ValueError, match="skip"):
            convert(plain, skip=skip)
        return
    found = list(layers(convert(plain, ours.BatchNorm, skip=skip, g_exp=3.0)))
    assert [name for name, _ in found] == converted
    assert {(name_of(layer.norm), layer.g_exp) for _, layer in found} == {("bn", 3.0)}


def test_layer_that_cannot_be_converted_is_named() -> None:
    tied = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "head": nn.Linear(3, 4)})
    tied["head"].weight = tied["embedding"].weight
    hooked = nn.Linear(3, 4)
    hooked.register_forward_hook(lambda _module, _inputs, y: y + 1)
    normed = torch_weight_norm(nn.Linear(3, 4))
    others = [nn.Sequential(layer) for layer in (hooked, normed, nn.LazyLinear(3), nn.LSTM(3, 4, proj_size=2))]
    for name, model in [("head", tied), *(("0", model) for model in others)]:
        with pytest.raises(ValueError, match=f"layer '{name}'"):
            convert(model)
        assert type(convert(model, skip=[name])) is type(model)


@each_param
def test_transformer_layer_trains_and_has_its_fast_path(param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation it reads the layers' weights and does not call them."""
    kernel = MagicMock(wraps=torch._transformer_encoder_layer_fwd)
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", kernel)
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = convert(plain, param), torch.randn(4, 5, 8)
    assert [name for name, _ in layers(model)] == ["linear1", "linear2"]
    if param in SAME:
        close(model(x), plain(x), 1e-5)
    data_dependent_init(model, x)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    expected = model.eval()(x)
    assert not kernel.called
    with torch.no_grad():
        close(model(x), expected, 1e-5)
        close(fold(model)(x), expected, 1e-5)
    assert kernel.call_count == 2


@each_param
def test_own_batch_normalization_can_be_removed(param: str) -> None:
    parts = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    plain, x = nn.Sequential(*parts).double(), torch.randn(9, 3, 6, 6, dtype=torch.float64)
    kept, model = convert(plain, param), convert(plain, param, remove_batch_norm=True)
    assert [type(each[1]) for each in (kept, model)] == [nn.BatchNorm2d, nn.Identity]
    assert [each[0].b is None for each in (kept, model)] == [True, False]
    for each in (kept, model):
        assert_standardized(each, lambda each=each: data_dependent_init(each, x))
        assert_standardized(each, lambda each=each: each(x))
        close(fold(each.eval())(x), each(x))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [torch_weight_norm, nn.utils.weight_norm])
def test_torch_weight_norm_becomes_ours(norm: Any) -> None:
    """After the inits both are the same function, and so they are after the state is moved over."""

    def make_plain() -> nn.Sequential:
        torch.manual_seed(0)
        convs = nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.ELU(), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.ELU()
        return nn.Sequential(*convs, nn.Flatten(), nn.Linear(72, 2)).double()

    theirs, model = make_plain().eval(), convert(make_plain())
    for layer in (theirs[0], theirs[2], theirs[5]):
        norm(layer, dim=int(isinstance(layer, nn.ConvTranspose2d)))
    x = torch.randn(4, 4, 8, 8, dtype=torch.float64)
    y = data_dependent_init(model, x)
    found = init_torch_weight_norm(theirs, x)
    assert not found.requires_grad and not theirs.training
    close(found, y)
    close(theirs(x), y)
    other = convert(make_plain())
    other.load_state_dict(from_torch_weight_norm(theirs.state_dict()))
    close(other(x), y)
    assert set(from_torch_weight_norm(make_plain().state_dict())) == set(make_plain().state_dict())


def test_init_of_torch_weight_norm_refuses() -> None:
    x = torch.randn(8, 3, 6, 6)
    wrong: list[Any] = [(nn.Conv2d(3, 3, 3), 1), (nn.Conv2d(3, 3, 3), None), (nn.ConvTranspose2d(3, 4, 3), 0)]
    for layer, dim in wrong:
        with pytest.raises(ValueError, match=r"layer '0'.*dim="):
            init_torch_weight_norm(nn.Sequential(torch_weight_norm(layer, dim=dim)), x)
    model = nn.Sequential(torch_weight_norm(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ConstantFeatureError, match="3 features of layer '0'"):
        init_torch_weight_norm(model, torch.ones_like(x))
    parts: Any = nn.Sequential(torch_weight_norm(nn.Linear(6, 6)), torch_weight_norm(nn.Linear(6, 6)))
    parts.forward = parts[0].forward
    with pytest.raises(ValueError, match="0, 1"):
        init_torch_weight_norm(parts, x)
    assert not any(module._forward_hooks for module in (*model.modules(), *parts.modules()))


@pytest.mark.parametrize("row", [row for row in library_table.ROWS if "compile" not in row and "export" not in row])
@each_param
def test_row_of_the_page(row: str, param: str) -> None:
    works = library_table.works(library_table.ROWS[row], param)
    assert works == (param in SAME or "vmap" not in row)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_table_of_the_page() -> None:
    """To write it anew: python -m wnrepro.tools.library_table."""
    assert library_table.table() == library_table.published()

"""Converted models: the function they were, what torch does with them, and the init with torch's own weight norm."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from layer_factories import close, each_param
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as torch_weight_norm

from wnrepro import parameterization as ours
from wnrepro.parameterization import (
    ConstantFeatureError,
    Conv2d,
    Linear,
    convert,
    data_dependent_init,
    fold,
    from_torch_weight_norm,
    init_torch_weight_norm,
    layers,
)
from wnrepro.parameterization.norm import name_of

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import library_table

same_function = pytest.mark.parametrize("param", ["normal", "wn"])


SHAPES = {0: (9, 4), 1: (5, 4, 7), 2: (5, 4, 6, 5), 3: (4, 4, 4, 5, 4)}  # of inputs, by the dimensions of the layer


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


def make(kind: str) -> tuple[nn.Module, Tensor]:
    """A torch layer and its input, in float64."""
    torch.manual_seed(0)
    build, dims = KINDS[kind]
    return build().double(), torch.randn(SHAPES[dims], dtype=torch.float64) + 0.3


def variances(model: nn.Module, run: Callable[[], Any], kinds: Any) -> tuple[Tensor, Tensor]:
    """|Mean| of the outputs of every layer of the kinds that has a bias, and variance of all; of every unit."""
    means, of_all = [], []

    def note(layer: Any, _inputs: Any, y: Tensor) -> None:
        rows = y.detach().movedim(-1 if isinstance(layer, Linear | nn.Linear) else 1, -1).flatten(0, -2)
        of_all.append(rows.var(0, unbiased=False))
        if (layer.b if isinstance(layer, ours.Parameterized) else layer.bias) is not None:
            means.append(rows.mean(0).abs())

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    run()
    for hook in hooks:
        hook.remove()
    assert len(of_all) >= len(hooks) > 0
    return torch.cat(means or [torch.zeros(1)]), torch.cat(of_all)


def assert_standardized(model: nn.Module, run: Callable[[], Any], kinds: Any = ours.Parameterized) -> None:
    means, of_all = variances(model, run, kinds)
    close(means, torch.zeros_like(means), 1e-3)
    close(of_all, torch.ones_like(of_all), 1e-3)


@each_kind
@same_function
def test_a_converted_layer_is_the_same_function_and_folds_back(kind: str, param: str) -> None:
    plain, x = make(kind)
    random_state = torch.get_rng_state()
    layer = convert(plain, param)
    assert type(layer) is getattr(ours, type(plain).__name__)
    close(layer(x), plain(x))
    back = fold(layer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert type(back) is type(plain) and repr(back) == repr(plain)
    assert list(back.state_dict()) == list(plain.state_dict())
    for value, expected in zip(back.state_dict().values(), plain.state_dict().values(), strict=True):
        close(value, expected)
    close(back(x), plain(x))
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert all(p.any() for p in plain.parameters())  # it was a copy


@each_kind
@pytest.mark.parametrize("param", ["bn", "wn+mobn"])
def test_with_batch_statistics_it_is_the_same_function_in_evaluation(kind: str, param: str) -> None:
    plain, x = make(kind)
    layer = convert(plain.eval(), param)
    close(layer(x), plain(x), 1e-5)  # but for bn's ε
    assert not torch.allclose(layer.train()(x), plain(x), atol=1e-2)


@each_kind
@each_param
def test_a_converted_layer_is_standardized_by_the_init_and_folds(kind: str, param: str) -> None:
    plain, x = make(kind)
    layer: Any = convert(plain, param)
    assert_standardized(layer, lambda: data_dependent_init(layer, x))
    assert_standardized(layer, lambda: layer(x))
    back = fold(layer.eval())
    assert type(back) is type(plain)
    close(back(x), layer(x))
    close(layer.weight, back.weight)
    if layer.bias is None:
        assert back.bias is None and plain.bias is None and param in ("normal", "wn")
    else:
        close(layer.bias, back.bias)


@each_param
def test_type_mode_strides_and_what_is_frozen_are_kept(param: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 2, 3))
        plain.to(dtype, memory_format=torch.channels_last)
        plain[0].weight.requires_grad_(False)
        plain[1].eval(), plain[1].bias.requires_grad_(False)
        model: Any = convert(plain, param)
        assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {dtype}
        assert [module.training for module in model] == [True, False]
        assert model[0].v.stride() == plain[0].weight.stride() and model[1].v.stride() == plain[1].weight.stride()
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {"0.v", "1.b"} | ({"0.gain"} if param != "normal" else set())
        x = torch.randn(2, 4, 8, 8, dtype=dtype)
        y = data_dependent_init(model, x)
        assert y.dtype == dtype and y.isfinite().all()
        assert {name for name, p in fold(model).named_parameters() if not p.requires_grad} == {"0.weight", "1.bias"}


@each_param
@each_kind
def test_a_unit_whose_v_is_zero_gives_finite_gradients(kind: str, param: str) -> None:
    plain, x = make(kind)
    with torch.no_grad():
        plain.weight.transpose(0, 1 if kind.startswith("transposed") else 0)[0] = 0
    layer: Any = convert(plain, param)
    (layer(x).sin()).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    if param in ("normal", "wn"):
        close(layer(x), plain(x))


@same_function
def test_modules_used_twice_stay_one(param: str) -> None:
    shared = nn.Linear(4, 4)
    plain = nn.Sequential(shared, nn.Tanh(), shared)
    model = convert(plain, param)
    assert model[0] is model[2] and type(model[0]) is Linear and type(plain[0]) is nn.Linear
    x = torch.randn(3, 4)
    close(model(x), plain(x), 1e-6)
    assert len(list(model.parameters())) == (3 if param == "wn" else 2)


def test_skip_takes_names_and_functions() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    for skip, converted in (
        (["1"], ["0", "2"]),
        (["1.0", "2"], ["0", "1.1"]),
        (lambda name, module: module.out_features == 2 if name == "2" else False, ["0", "1.0", "1.1"]),
    ):
        assert [name for name, _ in layers(convert(plain, skip=skip))] == converted
    for skip in (["fc"], "1"):
        with pytest.raises(ValueError, match="skip takes a list of names of modules"):
            convert(plain, skip=skip)
    assert name_of(convert(plain, ours.BatchNorm)[0].norm) == "bn"
    assert convert(plain, g_exp=3.0)[0].g_exp == 3.0


def test_what_cannot_be_converted_is_named() -> None:
    tied = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "head": nn.Linear(3, 4)})
    tied["head"].weight = tied["embedding"].weight
    hooked = nn.Linear(3, 4)
    hooked.register_forward_hook(lambda _module, _inputs, y: y + 1)
    for name, model, message in (
        ("head", tied, "shares a parameter with another module"),
        ("0", nn.Sequential(hooked), "has hooks or a parametrization"),
        ("0", nn.Sequential(torch_weight_norm(nn.Linear(3, 4))), "has hooks or a parametrization"),
        ("0", nn.Sequential(nn.LazyLinear(3)), "has no weight yet"),
        ("0", nn.Sequential(nn.LSTM(3, 4, proj_size=2)), "has a proj_size"),
    ):
        with pytest.raises(ValueError, match=f"layer '{name}' {message}.*, or skip it$"):
            convert(model)
        assert type(convert(model, skip=[name])) is type(model)


@each_param
def test_transformer_layer_in_training_and_on_its_fast_path(param: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernel = [], torch._transformer_encoder_layer_fwd

    def counting(*args: Any) -> Tensor:
        calls.append(args)
        return kernel(*args)

    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model: Any = convert(plain, param)
    assert [name for name, _ in layers(model)] == ["linear1", "linear2"]
    x = torch.randn(4, 5, 8)
    if param in ("normal", "wn"):
        close(model(x), plain(x), 1e-5)
    data_dependent_init(model, x)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counting)
    model.eval()
    expected = model(x)
    assert not calls and expected.requires_grad
    with torch.no_grad():
        close(model(x), expected, 1e-5)
        close(fold(model)(x), expected, 1e-5)
    assert len(calls) == 2


@each_param
def test_a_parent_may_read_weight_and_bias(param: str) -> None:
    """With gradients, and there is none where the layer is not affine in x."""
    layer: Any = convert(nn.Linear(4, 3), param)
    x = torch.randn(9, 4)
    data_dependent_init(layer, x)
    assert hasattr(layer, "weight") == hasattr(layer, "bias") == (param in ("normal", "wn"))
    layer.eval()
    F.linear(x, layer.weight, layer.bias).sin().sum().backward()
    found = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer(x).sin().sum().backward()
    for name, p in layer.named_parameters():
        close(found[name], p.grad, 1e-5)
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.ones(3, 4))
    assert not {"weight", "bias"} & set(layer.state_dict())


class UNet(nn.Module):
    """One level: down, up again by a transposed convolution, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up, self.after = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.before(x).relu()
        return self.after(torch.cat([across, self.up(self.down(across).relu()).relu()], 1))


@each_param
def test_u_net(param: str) -> None:
    torch.manual_seed(0)
    plain, x = UNet(), torch.randn(4, 3, 8, 8)
    model = convert(plain, param)
    if param in ("normal", "wn"):
        close(model(x), plain(x), 1e-5)
    assert_standardized(model, lambda: data_dependent_init(model, x))
    model.eval()
    back = fold(model)
    assert isinstance(back, UNet) and list(back.state_dict()) == list(plain.state_dict())
    close(back(x), model(x), 1e-4)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=10)


@pytest.mark.slow
@pytest.mark.parametrize(("param", "alone", "lr"), [("wn", False, 1e-3), ("wn+mobn", True, 1e-3)])
def test_resnet_with_and_without_its_own_batch_normalization(param: str, alone: bool, lr: float) -> None:
    plain, x, target = resnet(), torch.randn(8, 3, 32, 32), torch.arange(8)
    model = convert(plain, param, remove_batch_norm=alone)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (0 if alone else 20)
    assert sum(layer.b is not None for _, layer in layers(model)) == (21 if alone else 1)
    if not alone:
        close(model.eval()(x), plain.eval()(x), 1e-4)
        model.train()
    assert_standardized(model, lambda: data_dependent_init(model, x))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr), []
    for _ in range(10):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        y = model(x)
        close(torch.export.export(model, (x,)).module()(x), y, 1e-4)
        back = fold(model)
        close(back(x), y, 1e-3)
    if not alone:
        assert list(back.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "param", "alone"), [("mobilenet_v2", "wn+mobn", False), ("resnext50_32x4d", "wn", True)]
)
def test_nets_with_groups_and_without_biases(name: str, param: str, alone: bool) -> None:
    torch.manual_seed(0)
    plain = torchvision.models.get_model(name, weights=None, num_classes=10)
    x = torch.randn(8, 3, 64, 64)
    close(convert(plain).eval()(x), plain.eval()(x), 1e-3)
    model = convert(plain.train(), param, remove_batch_norm=alone)
    assert_standardized(model, lambda: data_dependent_init(model, x))
    assert any(layer.groups > 1 for _, layer in layers(model) if isinstance(layer, Conv2d))


def normed(model: nn.Module, old: bool = False) -> nn.Module:
    """The model with torch's weight norm in every dense layer and convolution."""
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            norm = nn.utils.weight_norm if old else torch_weight_norm
            norm(module, dim=int(isinstance(module, nn.ConvTranspose2d)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnext50_32x4d", "convnext_tiny"])
def test_init_of_torchvisions_nets_with_torchs_weight_norm(name: str) -> None:
    torch.manual_seed(0)
    model = normed(torchvision.models.get_model(name, weights=None, num_classes=10)).eval()
    x = torch.randn(8, 3, 64, 64)
    assert not init_torch_weight_norm(model, x).requires_grad and not model.training
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    init_torch_weight_norm(model, x)
    with torch.no_grad():
        assert_standardized(model, lambda: model(x), nn.Linear | nn.Conv2d)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("old", [False, True])
def test_torchs_weight_norm_becomes_ours(old: bool) -> None:
    """After the inits both are the same function, and so they are after the state is moved over."""
    torch.manual_seed(0)
    plain, x = UNet().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    theirs, model = normed(copy.deepcopy(plain), old), convert(plain)
    y = data_dependent_init(model, x)
    close(init_torch_weight_norm(theirs, x), y)
    close(theirs(x), y)
    theirs(x).square().sum().backward()
    other = convert(UNet().double())
    other.load_state_dict(from_torch_weight_norm(theirs.state_dict()))
    close(other(x), y)
    skipped = nn.Sequential(plain, nn.Linear(2, 2)).state_dict()
    assert set(from_torch_weight_norm(skipped)) == set(skipped)


def test_init_of_torchs_weight_norm_says_what_is_wrong() -> None:
    x = torch.randn(8, 3, 6, 6)
    for layer, dim in ((nn.Conv2d(3, 3, 3), 1), (nn.Conv2d(3, 3, 3), None), (nn.ConvTranspose2d(3, 4, 3), 0)):
        model = nn.Sequential(torch_weight_norm(layer, dim=dim))
        with pytest.raises(ValueError, match=r"layer '0' has no g of each unit; give it dim="):
            init_torch_weight_norm(model, x)
    model = nn.Sequential(torch_weight_norm(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ConstantFeatureError, match="3 features of layer '0' do not vary"):
        init_torch_weight_norm(model, torch.ones_like(x))
    parts = nn.Sequential(torch_weight_norm(nn.Linear(6, 6)), torch_weight_norm(nn.Linear(6, 6)))
    parts.forward = parts[0].forward
    with pytest.raises(ValueError, match=r"did not reach 0, 1$"):
        init_torch_weight_norm(parts, x)
    assert not any(module._forward_hooks for module in (*model.modules(), *parts.modules()))


@pytest.mark.parametrize("row", [name for name in library_table.ROWS if "compile" not in name and "export" not in name])
@each_param
def test_rows_of_the_page(row: str, param: str) -> None:
    works = library_table.works(library_table.ROWS[row], param)
    assert works == (not ("vmap" in row and param in ("bn", "wn+mobn")))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_table_of_the_page_is_what_works() -> None:
    """Every cell is computed; to write it anew: python scripts/library_table.py."""
    assert library_table.table() == library_table.published()

"""Writes the table of what works with converted models into docs/library.md. Each cell is computed.

python -m wnrepro.tools.library_table
"""

import copy
import datetime
import gc
import io
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel

from wnrepro.parameterization import convert, data_dependent_init, fold, layers
from wnrepro.settings import PARAMS

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
BEGIN, END = "<!-- table: python -m wnrepro.tools.library_table -->", "<!-- end of table -->"


def make(param: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Make a converted model with groups, a transposed convolution and a layer without bias, and a batch of 8."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ELU(), nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), nn.ELU()),
        *(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(144, 2)),
    )
    return convert(plain.to(dtype), param), torch.randn(8, 3, 4, 4, dtype=dtype)


def initialized(param: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    model, x = make(param, dtype)
    data_dependent_init(model, x)
    return model, x


def same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Assert equal outputs, gradients and running averages in training, and equal outputs in evaluation."""
    for each in (model, other):
        each.zero_grad()
        each.train()(x).square().sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for p, q in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(p, q)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def deepcopies(param: str) -> None:
    model, x = initialized(param)
    same(model, copy.deepcopy(model), x)


def pickles(param: str) -> None:
    model, x = initialized(param)
    same(model, pickle.loads(pickle.dumps(model)), x)


def saves_its_state(param: str) -> None:
    """Save and load the state of a model. Tensors must be contiguous and share no memory, as safetensors requires."""
    model, x = initialized(param)
    state, file = model.state_dict(), io.BytesIO()
    assert all(value.is_contiguous() for value in state.values())
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == len(state)
    torch.save(state, file)
    file.seek(0)
    other, _ = make(param)
    other.load_state_dict(torch.load(file, weights_only=True))
    same(model, other, x)


def compiles(param: str) -> None:
    model, x = initialized(param)
    eager = copy.deepcopy(model)
    torch.compiler.reset()
    same(eager, torch.compile(model, fullgraph=True, backend="aot_eager"), x)


def exports(param: str) -> None:
    model, x = initialized(param)
    exported = torch.export.export(model.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def calls_functionally(param: str) -> None:
    model, x = initialized(param)
    params, buffers = dict(model.named_parameters()), {name: b.clone() for name, b in model.named_buffers()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return functional_call(model, (params, buffers), (x,)).square().sum()

    found = grad(loss)(params)
    model(x).square().sum().backward()
    for name, p in params.items():
        torch.testing.assert_close(found[name], p.grad)


def has_gradients_of_each_sample(param: str) -> None:
    """Check that per-sample gradients in training add up to the batch's gradients."""
    model, x = initialized(param)
    params = dict(model.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(params, x)
    model(x).square().sum().backward()
    for name, p in params.items():
        torch.testing.assert_close(found[name].sum(0), p.grad)


def _agrees(rank: int, param: str) -> bool:
    """Return whether the weights agree in both processes throughout, and the loss falls."""
    model, x = make(param)
    x = (1 + rank) * x + rank  # other data in each process
    ddp = DistributedDataParallel(model)
    y = data_dependent_init(ddp, x)
    mean, square = y.mean(0), y.square().mean(0)
    for part in (mean, square):
        dist.all_reduce(part)
    right = torch.allclose(mean, torch.zeros_like(mean)) and torch.allclose(square / 2, torch.ones_like(square))
    optimizer, losses = torch.optim.SGD(ddp.parameters(), lr=0.01), []
    for _ in range(5):
        for p in model.parameters():
            both = [torch.empty_like(p) for _ in range(2)]
            dist.all_gather(both, p.detach())
            right = right and torch.equal(*both)
        optimizer.zero_grad()
        loss = (ddp(x) - x.mean((1, 2, 3))[:, None]).square().mean()
        loss.backward()
        optimizer.step()
        dist.all_reduce(total := loss.detach().clone())
        losses.append(total.item())
    return right and losses[-1] < 0.9 * losses[0]


def _rank(rank: int, folder: str) -> None:
    """Run one of two processes, and save the parameterizations that work."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    options = {"rank": rank, "world_size": 2, "timeout": datetime.timedelta(seconds=120)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", **options)
    works = {param: _agrees(rank, param) for param in PARAMS}
    if rank == 0:
        torch.save(works, f"{folder}/works")
    dist.destroy_process_group()
    gc.collect()  # the models refer to the group; if it is left to the interpreter's end, torch 2.11 may abort


def run_in_two_processes() -> dict[str, bool]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
        works: dict[str, bool] = torch.load(f"{folder}/works")
    return works


def runs_in_bf16(param: str) -> None:
    """Check the init and a training step: variance 1, near full precision, and gradients in fp32."""
    model, x = make(param, torch.float32)
    full = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = data_dependent_init(model, x).float()
        model(x).float().square().sum().backward()
    data_dependent_init(full, x)
    torch.testing.assert_close(y.var(0, unbiased=False), torch.ones(2), rtol=0.03, atol=0)
    assert (y - full(x)).norm() < 0.05 * y.norm()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def runs_in_channels_last(param: str) -> None:
    """Check weights, outputs and gradients in memory format channels_last."""
    model, x = initialized(param)
    last: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)
    strided = x.contiguous(memory_format=torch.channels_last)
    first = last[0]  # type: ignore[index]
    for tensor in (first.w(), first(strided)):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    same(model, last, strided)


def folds(param: str) -> None:
    model, x = initialized(param)
    model(2 * x)  # moves the running averages
    plain = fold(model.eval())
    assert not list(layers(plain))
    torch.testing.assert_close(plain(x), model(x))


ROWS: dict[str, Callable[[str], None]] = {
    "`copy.deepcopy`": deepcopies,
    "`pickle`": pickles,
    "`state_dict`, `torch.save`, `torch.load`": saves_its_state,
    "`torch.compile(fullgraph=True)`": compiles,
    "`torch.export` in evaluation": exports,
    "`torch.func.functional_call` and `grad`": calls_functionally,
    "per-sample gradients by `vmap`": has_gradients_of_each_sample,
    "autocast to bf16, with the init": runs_in_bf16,
    "`channels_last`": runs_in_channels_last,
    "`fold` to plain torch layers": folds,
}


def works(check: Callable[[str], None], param: str) -> bool:
    """Return whether the check passes, and print a failure to stderr."""
    try:
        check(param)
    except Exception as error:
        print(f"{check.__name__} {param}: {type(error).__name__} {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def table() -> str:
    """Return the table in Markdown."""
    cells = {name: {param: works(check, param) for param in PARAMS} for name, check in ROWS.items()}
    cells["`DistributedDataParallel`, with the init"] = run_in_two_processes()
    lines = ["| | " + " | ".join(f"`{param}`" for param in PARAMS) + " |", "|---" * (len(PARAMS) + 1) + "|"]
    for name, row in cells.items():
        lines.append(f"| {name} | " + " | ".join("yes" if row[param] else "no" for param in PARAMS) + " |")
    return "\n".join(lines)


def published() -> str:
    """Return the table of the page."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    page = PAGE.read_text()
    PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n{table()}\n{END}{page.split(END)[1]}")

"""FLOPs and bytes of small operations, and of the paper's classifier, by formula."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from wnrepro.bench.counting import count_work
from wnrepro.bench.ours import our_steps, timed_settings
from wnrepro.settings import CifarSettings


def test_flops_of_a_small_net() -> None:
    x, net = torch.randn(8, 5), nn.Linear(5, 7, bias=False)
    # y = x·wᵀ, and ∂w; the input needs no gradient
    assert count_work(lambda: net(x).sum().backward())["flops"] == 2 * (2 * 8 * 5 * 7)


a, b, into, picked = torch.randn(10, 20), torch.randn(20), torch.empty(10, 20), torch.tensor([1, 2])
ALL, ROW = 4 * 200, 4 * 20


@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        (lambda: a + b, ALL + ROW + ALL),  # reads both, writes one
        (lambda: a.add_(b), ALL + ROW + ALL),
        (lambda: torch._foreach_add_([a, b], 1.0), 2 * (ALL + ROW)),
        (lambda: into.copy_(a), 2 * ALL),
        (lambda: torch.mul(a, 2, out=into), 2 * ALL),
        (lambda: a[picked], 2 * 2 * ROW + 2 * 8),  # of a the two rows alone
        (lambda: torch.zeros_like(a), ALL),
        (lambda: (a.T.view(-1, 5, 10)[0].detach(), torch.empty_like(a), a.shape), 0),
    ],
)
def test_bytes_and_kernels_of_an_operation(operation: Callable[[], object], moved: int) -> None:
    counted = count_work(operation)
    assert (counted["bytes"], counted["kernels"]) == (moved, 1 if moved else 0)


def test_paper_classifier_needs_239_gflop() -> None:
    """Two for a multiplication, three times the forward pass's, without the first layer's gradient by the images."""
    settings = timed_settings("cifar", torch.device("cpu"))
    assert isinstance(settings, CifarSettings)
    n, batch = settings.width, settings.batch_size
    #         inputs, maps, kernel, size of the output
    convs = [(3, n, 9, 32), (n, n, 9, 32), (n, n, 9, 32), (n, 2 * n, 9, 16), (2 * n, 2 * n, 9, 16)]
    convs += [(2 * n, 2 * n, 9, 16), (2 * n, 2 * n, 9, 6), (2 * n, 2 * n, 1, 6), (2 * n, 2 * n, 1, 6)]
    forward = [2 * batch * i * o * kernel * size**2 for i, o, kernel, size in convs] + [2 * batch * 2 * n * 10]
    update = our_steps(dataclasses.replace(settings, batch_size=2, init_examples=4), torch.device("cpu")).counted
    assert update is not None
    counted = count_work(update)["flops"] * batch / 2
    assert counted == pytest.approx(3 * sum(forward) - forward[0], rel=1e-6) == pytest.approx(239e9, rel=0.002)

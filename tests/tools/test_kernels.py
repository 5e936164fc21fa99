"""Counted kernels of a compiled function."""

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile

from wnrepro.tools import kernels


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_generated_kernel_counts_once_with_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, x·w is a product, and the rest of the function is one kernel that changes the product in place."""
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", kernels.counting)
    torch._inductor.config.compile_threads = 1
    x, w = torch.randn(5, 6), torch.randn(6, 7)

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ w).sigmoid()

    compiled = torch.compile(function)
    compiled(x, w)
    product, rest = 4 * (5 * 6 + 6 * 7 + 5 * 7), 4 * 2 * 5 * 7
    assert kernels.count(lambda: function(x, w)) == f"3 kernels, {(product + 2 * rest) / 1e6:.1f} MB"
    counted = kernels.count(lambda: compiled(x, w))
    assert counted.startswith("2 kernels"), counted

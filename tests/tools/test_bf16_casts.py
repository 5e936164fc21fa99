"""The census of a bf16 step: casts, layouts, small convolutions."""

import torch
import torch.nn.functional as F

from wnrepro.tools.bf16_casts import CASTS, LAYOUTS, MIXED, Census

BATCH, SIZE = 2, 4


def test_census_of_small_operations() -> None:
    full, half = torch.ones(8), torch.ones(8, dtype=torch.bfloat16)
    images = torch.ones(BATCH, 4, SIZE, SIZE)
    with Census() as census:
        full.to(torch.bfloat16)
        full + half
        images.contiguous(memory_format=torch.channels_last)
        F.conv2d(images, torch.ones(16, 4, 1, 1))
        F.conv_transpose2d(torch.ones(BATCH, 32, SIZE, SIZE), torch.ones(32, 16, 1, 1))
    assert {kind: census.counts[kind] for kind in (CASTS, MIXED, LAYOUTS)} == {CASTS: 1, MIXED: 1, LAYOUTS: 1}
    assert census.moved[CASTS] == 8 * (4 + 2) and census.moved[LAYOUTS] == 2 * 4 * images.numel()
    pixels = BATCH * SIZE**2
    assert census.multiplied == {False: pixels * 4 * 16, True: pixels * 32 * 16}

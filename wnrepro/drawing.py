"""Pictures of attention: images with the outlines of the windows that are read or written."""

import torch
from jaxtyping import Float
from torch import Tensor


def outlined(
    images: Float[Tensor, "N H W"], boxes: Float[Tensor, "N 4"], scale: int
) -> Float[Tensor, "N 3 {scale}*H {scale}*W"]:
    """Grey images in 0..1, `scale` times as large, each with its box in red.

    A box is top, bottom, left and right in pixels of the small image, whose centres are the integers. A box that
    reaches beyond the image has its outline on the image's edge; one that lies beyond it as a whole has none.
    """
    large = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    top, bottom, left, right = ((boxes + 0.5) * scale).floor().T.unsqueeze(2)

    def within(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Which of an axis' pixels the box has, with its ends and without them; (N, size) each."""
        pixels = torch.arange(size, device=images.device)
        inner = (pixels > first.clamp(min=0)) & (pixels < last.clamp(max=size - 1))
        return (pixels >= first) & (pixels <= last), inner

    rows, inner_rows = within(top, bottom, large.shape[1])
    columns, inner_columns = within(left, right, large.shape[2])
    box, inner = rows.unsqueeze(2) & columns.unsqueeze(1), inner_rows.unsqueeze(2) & inner_columns.unsqueeze(1)
    outline = box & ~inner
    rest = large.masked_fill(outline, 0)
    return torch.stack([large.masked_fill(outline, 1), rest, rest], 1)

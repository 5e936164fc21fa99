"""Pictures of attention: images with outlines of the read or write windows."""

import torch
from jaxtyping import Float
from torch import Tensor


def outlined(
    images: Float[Tensor, "N H W"], boxes: Float[Tensor, "N 4"], scale: int
) -> Float[Tensor, "N 3 {scale}*H {scale}*W"]:
    """Enlarge grey images in 0..1 `scale` times and outline each one's box in red.

    A box is top, bottom, left and right in pixels of the small image; integers are pixel centres. If a box extends
    beyond the image, its outline follows the image's edge. A box completely outside the image has no outline.
    """
    large = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    top, bottom, left, right = ((boxes + 0.5) * scale).floor().T.unsqueeze(2)

    def within(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return two masks (N, size) of the pixels along an axis: those in the box, and those inside its outline."""
        pixels = torch.arange(size, device=images.device)
        inner = (pixels > first.clamp(min=0)) & (pixels < last.clamp(max=size - 1))
        return (pixels >= first) & (pixels <= last), inner

    rows, inner_rows = within(top, bottom, large.shape[1])
    columns, inner_columns = within(left, right, large.shape[2])
    box, inner = rows.unsqueeze(2) & columns.unsqueeze(1), inner_rows.unsqueeze(2) & inner_columns.unsqueeze(1)
    outline = box & ~inner
    rest = large.masked_fill(outline, 0)
    return torch.stack([large.masked_fill(outline, 1), rest, rest], 1)

"""Outlines of attention windows on images, against a loop over pixels."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from wnrepro.drawing import outlined

edge = st.integers(-120, 120).map(lambda n: n / 8)  # eighths: exact in either arithmetic
side = st.tuples(edge, edge).map(sorted)
Rows = list[list[tuple[float, float, float]]]


def plain(image: list[list[float]], box: list[float], scale: int) -> Rows:
    """Pixel by pixel: the part of the box's rectangle in the image, red where it ends."""
    high, wide = len(image) * scale, len(image[0]) * scale
    top, bottom, left, right = (math.floor((at + 0.5) * scale) for at in box)
    rows, columns = range(max(top, 0), min(bottom, high - 1) + 1), range(max(left, 0), min(right, wide - 1) + 1)

    def colour(y: int, x: int) -> tuple[float, float, float]:
        if y in rows and x in columns and (y in (rows[0], rows[-1]) or x in (columns[0], columns[-1])):
            return 1.0, 0.0, 0.0
        return (image[y // scale][x // scale],) * 3

    return [[colour(y, x) for x in range(wide)] for y in range(high)]


@given(st.lists(st.tuples(side, side), min_size=1, max_size=3), st.integers(1, 4))
@example([([1.0, 2.0], [2.0, 9.0]), ([-9.0, 99.0], [-99.0, 9.0]), ([-3.0, -1.0], [0.0, 3.0])], 2)
def test_outlines_equal_a_loop_over_pixels(sides: list[tuple[list[float], list[float]]], scale: int) -> None:
    images = torch.rand(len(sides), 6, 9, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[*rows, *columns] for rows, columns in sides])
    pictures = outlined(images, boxes, scale)
    assert pictures.shape == (len(sides), 3, 6 * scale, 9 * scale)
    for picture, image, box in zip(pictures, images, boxes, strict=True):
        assert torch.equal(picture.permute(1, 2, 0), torch.tensor(plain(image.tolist(), box.tolist(), scale)))


@pytest.mark.parametrize(("box", "red"), [((-9.0, math.inf, -math.inf, 9.0), 28), ((math.inf,) * 4, 0)])
def test_unbounded_boxes(box: tuple[float, ...], red: int) -> None:
    (picture,) = outlined(torch.full((1, 4, 4), 0.5), torch.tensor([box]), 2)
    assert (picture == torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).all(0).sum() == red

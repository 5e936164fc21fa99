"""The published numbers that the golden report does not show, as printed."""

import math

from wnrepro import paper


def test_table_3_and_its_mean_ratio() -> None:
    assert paper.TABLE3_MNIH == {"breakout": 401, "enduro": 302, "seaquest": 5286, "space_invaders": 1975}
    product = 403 / 410 * 1448 / 1250 * 7375 / 7188 * 2179 / 1779
    assert math.isclose(math.exp(paper.TABLE3_LOG_RATIO), product**0.25)
    assert paper.DRAW_MNIST["jbornschein/draw, its author's run"] == ("over 100", -83.0)

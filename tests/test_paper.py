"""The published numbers, as printed."""

import math

from wnrepro import paper


def test_table_2() -> None:
    assert paper.TABLE2 == {"wn": 8.46, "normal": 8.43, "bn": 8.05, "wn+mobn": 7.31}
    assert sorted(paper.TABLE2_EARLIER.values()) == [9.08, 9.31, 9.6, 10.41, 11.68]
    assert paper.TABLE2_NAMES.keys() == paper.TABLE2.keys()


def test_table_3() -> None:
    assert [(game, *scores.values(), paper.TABLE3_MNIH[game]) for game, scores in paper.TABLE3.items()] == [
        ("breakout", 410, 403, 401),
        ("enduro", 1250, 1448, 302),
        ("seaquest", 7188, 7375, 5286),
        ("space_invaders", 1779, 2179, 1975),
    ]
    assert all(list(scores) == ["normal", "wn"] for scores in paper.TABLE3.values())
    product = 403 / 410 * 1448 / 1250 * 7375 / 7188 * 2179 / 1779
    assert math.isclose(math.exp(paper.TABLE3_LOG_RATIO), product**0.25)


def test_the_iaf_papers_bounds() -> None:
    assert list(paper.IAF_MNIST.values()) == [
        (-84.08, 0.10),
        (-82.02, 0.08),
        (-81.17, 0.08),
        (-80.93, 0.09),
        (-80.80, 0.07),
    ]
    assert list(paper.IAF_CIFAR10.values()) == [3.28, 3.11]


def test_others_bounds_of_draw() -> None:
    assert [bound for _, bound in paper.DRAW_MNIST.values()] == [-90.5, -83.0, -80.97]

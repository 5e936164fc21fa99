"""Pictures, animations and films, pixel by pixel."""

import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from wnrepro.experiments.atari import SCREEN, Scene
from wnrepro.runs import directory
from wnrepro.runs.media import CAPTION, grid, write_film, write_pictures


@pytest.mark.parametrize(("count", "channels", "width"), [(2, 1, 28), (5, 3, 64)])
def test_pictures_are_grids_with_a_border_and_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, channels: int, width: int
) -> None:
    images = torch.rand(count, channels, 28, width, generator=torch.Generator().manual_seed(8))
    (path,) = write_pictures(tmp_path, {"samples": images})
    columns = next(n for n in range(1, count + 1) if n * n >= count)
    rows = (count - 1) // columns + 1
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (columns * (width + 2) + 2, rows * 30 + 2))
        shown = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
    for n in range(count):
        top, left = (n // columns) * 30 + 2, (n % columns) * (width + 2) + 2
        assert (shown[:, top : top + 28, left : left + width] - images[n]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(shown[:, :2].unique(), shown[:, :, :2].unique()) and 0.4 < shown[0, 0, 0] < 0.6
    before = path.read_bytes()
    monkeypatch.setattr(directory.os, "fsync", Mock(side_effect=SystemExit))  # before the bytes are on the disk
    with pytest.raises(SystemExit):
        write_pictures(tmp_path, {"samples": torch.zeros(4, 1, 28, 28)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (2, 1, 3, 3), (7, 3, 4, 6), (64, 1, 28, 28)])
def test_grid_has_the_pixels_of_torchvision(shape: tuple[int, ...]) -> None:
    from torchvision.utils import make_grid

    images = torch.rand(shape, generator=torch.Generator().manual_seed(8))
    expected = make_grid(images, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=0.5)
    assert np.array_equal(np.array(grid(images)), (255 * expected + 0.5).clamp(0, 255).byte().permute(1, 2, 0).numpy())


def test_frames_are_an_animation_of_grids_whose_last_is_shown_longer(tmp_path: Path) -> None:
    frames = torch.rand(2, 5, 3, 28, 28, generator=torch.Generator().manual_seed(8)).round()
    drawing, still = write_pictures(tmp_path, {"drawing": frames, "still": frames[1]})
    with Image.open(drawing) as picture, Image.open(still) as grid:
        assert (picture.format, picture.n_frames, picture.info["loop"]) == ("GIF", 2, 0)
        assert picture.info["duration"] == 100
        picture.seek(1)
        assert picture.info["duration"] == 2000
        assert abs(np.array(picture.convert("RGB")).astype(int) - np.array(grid).astype(int)).max() <= 1


@pytest.mark.parametrize("over", [True, False])
def test_film_has_screens_above_their_scores(tmp_path: Path, over: bool) -> None:
    palette = np.random.default_rng(8).integers(256, size=(128, 3), dtype=np.uint8)  # the console has 128 colours
    draw, scores = np.random.default_rng(9), [0.0, 5.0, 12_345.0, 12_345.0]
    screens = [palette[draw.integers(128, size=SCREEN)] for _ in scores[1:]]
    scenes = [Scene(screens[min(k, 2)], k, scores[k], over and k == 3) for k in range(4)]
    path, last = write_film(tmp_path, iter(scenes), "space_invaders wn+mobn")
    assert path == tmp_path / "game.gif" and last is scenes[-1]
    captions, durations = [], []
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.size == (SCREEN[1], SCREEN[0] + CAPTION)
        for number in range(picture.n_frames):
            picture.seek(number)
            frame = np.array(picture.convert("RGB"))
            assert np.array_equal(frame[: SCREEN[0]], screens[number])
            captions.append(frame[SCREEN[0] :].mean(2))
            durations.append(picture.info["duration"])
    assert durations == [70, 70, 70 + (2000 if over else 70)], "equal scenes are one frame, shown longer"
    for caption in captions:
        assert caption.max() > 250 and not caption[[0, -1]].any() and not caption[:, -1].any(), "the text fits"
    differ = np.flatnonzero((abs(captions[0] - captions[1]) > 20).any(0))
    assert 0 < len(differ) <= 8, "the same title, then another digit"

"""Pictures, animations and films, pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wnrepro.experiments.atari import SCREEN, Scene
from wnrepro.runs import directory
from wnrepro.runs.media import CAPTION, write_film, write_pictures


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 64)])
@pytest.mark.parametrize("count", [2, 5, 64])
def test_pictures_are_grids_with_a_border(tmp_path: Path, shape: tuple[int, int, int], count: int) -> None:
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(8))
    (path,) = write_pictures(tmp_path, {"samples": images})
    _, height, width = shape
    columns = next(n for n in range(1, count + 1) if n * n >= count)
    rows = (count - 1) // columns + 1
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == (columns * (width + 2) + 2, rows * (height + 2) + 2)
        shown = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
    for n in range(count):
        top, left = (n // columns) * (height + 2) + 2, (n % columns) * (width + 2) + 2
        assert (shown[:, top : top + height, left : left + width] - images[n]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(shown[:, :2].unique(), shown[:, :, :2].unique()) and 0.4 < shown[0, 0, 0] < 0.6


def test_frames_are_an_animation(tmp_path: Path) -> None:
    """Frames as the grids of PNG, to within rounding; the last one is shown longer."""
    frames = torch.rand(4, 5, 1, 28, 28, generator=torch.Generator().manual_seed(8)).repeat(1, 1, 3, 1, 1)
    for step in range(4):
        frames[step, :, :, step, :] = torch.tensor([1.0, 0.0, 0.0])[:, None]  # a red outline
    (path,) = write_pictures(tmp_path, {"drawing": frames})
    durations = []
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.n_frames == 4 and picture.info["loop"] == 0
        for step in range(4):
            picture.seek(step)
            durations.append(picture.info["duration"])
            (still,) = write_pictures(tmp_path, {"still": frames[step]})
            with Image.open(still) as grid:
                assert abs(np.array(picture.convert("RGB")).astype(int) - np.array(grid).astype(int)).max() <= 1
    assert durations == [100, 100, 100, 2000] and not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("over", [True, False])
def test_film_has_screens_above_their_scores(tmp_path: Path, over: bool) -> None:
    height, width = SCREEN
    palette = np.random.default_rng(8).integers(256, size=(128, 3), dtype=np.uint8)  # the console has 128 colours
    draw, scores = np.random.default_rng(9), [0, 5, 12_345, 12_345]
    screens = [palette[draw.integers(128, size=SCREEN)] for _ in scores[1:]]
    screens.append(screens[-1])
    scenes = [Scene(screens[k], k, float(scores[k]), over and k == 3) for k in range(4)]
    path, last = write_film(tmp_path, iter(scenes), "space_invaders wn+mobn")
    assert path == tmp_path / "game.gif" and last is scenes[-1]
    captions, durations = [], []
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.info["loop"] == 0
        for number in range(picture.n_frames):
            picture.seek(number)
            frame = np.array(picture.convert("RGB"))
            assert np.array_equal(frame[:height], screens[number]) and frame.shape[1] == width
            captions.append(frame[height:].mean(2))
            durations.append(picture.info["duration"])
    assert durations == [70, 70, 70 + (2000 if over else 70)], "equal scenes are one frame, shown longer"
    zero, five, large = captions
    for caption in captions:
        assert caption.max() > 250 and not caption[[0, -1]].any() and not caption[:, -1].any(), "the text fits"
    differ = np.flatnonzero((abs(zero - five) > 20).any(0))
    assert 0 < len(differ) <= 8, "the same title, then another digit"
    assert not five[:, differ[-1] + 2 :].any() and large[:, differ[-1] + 2 :].max() > 250, "five digits"


def test_film_of_one_scene_is_a_picture(tmp_path: Path) -> None:
    scene = Scene(np.full((*SCREEN, 3), 7, np.uint8), 0, 0.0, False)
    path, last = write_film(tmp_path, [scene], "enduro bn")
    with Image.open(path) as picture:
        assert last is scene and picture.n_frames == 1 and picture.size == (SCREEN[1], SCREEN[0] + CAPTION)


def test_pictures_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_pictures(tmp_path, {"samples": torch.rand(4, 1, 28, 28)})
    before = path.read_bytes()

    def killed(_: int) -> None:
        raise SystemExit

    monkeypatch.setattr(directory.os, "fsync", killed)  # the process ends before the bytes are on the disk
    with pytest.raises(SystemExit):
        write_pictures(tmp_path, {"samples": torch.zeros(4, 1, 28, 28)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

"""Pictures and films in a run's directory."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from wnrepro.runs.directory import write_atomic

if TYPE_CHECKING:
    from wnrepro.atari import Scene

FRAME_MS, LAST_FRAME_MS = 100, 2000  # how long an animation shows a frame, and its last
STEP_MS = 70  # of a game: a fifteenth of a second, in a GIF's hundredths
CAPTION = 14  # pixels below a game's screen


def write_pictures(folder: Path, pictures: dict[str, Tensor]) -> list[Path]:
    """Write grids of images in 0..1: (N, C, H, W) as <name>.png, frames (T, N, C, H, W) as a looping <name>.gif;
    their paths.
    """
    paths = []
    for name, images in pictures.items():
        content = io.BytesIO()
        if images.ndim == 4:
            paths.append(folder / f"{name}.png")
            grid(images).save(content, format="png")
        else:
            paths.append(folder / f"{name}.gif")
            first, *rest = [grid(frame) for frame in images]
            shown = [*[FRAME_MS] * len(rest), LAST_FRAME_MS]
            first.save(content, format="gif", save_all=True, append_images=rest, duration=shown, loop=0)
        write_atomic(paths[-1], content.getvalue())
    return paths


def write_film(folder: Path, scenes: Iterable["Scene"], title: str) -> tuple[Path, "Scene"]:
    """Write a game as a looping game.gif, the title and the score below each screen; its path and last scene."""
    scene, content = None, io.BytesIO()

    def pictures() -> Iterator[Image.Image]:
        nonlocal scene
        for scene in scenes:
            picture = captioned(scene.screen, f"{title}: {scene.score:.0f}")
            picture.info["duration"] = LAST_FRAME_MS if scene.over else STEP_MS
            yield picture

    shown = pictures()
    next(shown).save(content, format="gif", save_all=True, append_images=shown, loop=0)
    assert scene is not None
    write_atomic(folder / "game.gif", content.getvalue())
    return folder / "game.gif", scene


def grid(images: Tensor) -> Image.Image:
    """Images (N, C, H, W) in 0..1 side by side, with a border."""
    together = make_grid(images, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=0.5)
    return Image.fromarray((255 * together + 0.5).clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).numpy())


def captioned(screen: np.ndarray, text: str) -> Image.Image:
    """A screen (H, W, 3) uint8 above a line of text."""
    high, wide, _ = screen.shape
    picture = Image.new("RGB", (wide, high + CAPTION))
    picture.paste(Image.fromarray(screen))
    ImageDraw.Draw(picture).text((1, high), text, fill="white")
    return picture

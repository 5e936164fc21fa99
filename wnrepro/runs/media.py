"""Pictures and films in a run's directory."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from wnrepro.runs.directory import write_atomic

if TYPE_CHECKING:
    from wnrepro.experiments.atari import Scene

FRAME_MS, LAST_FRAME_MS = 100, 2000  # durations in an animation
STEP_MS = 70  # duration of a game's frame: 1/15 s, rounded to a GIF's hundredths
BORDER = 2  # pixels between images, grey
CAPTION = 14  # pixels; height of the caption below a game's screen


def write_pictures(folder: Path, pictures: dict[str, Tensor]) -> list[Path]:
    """Write images in 0..1 as grids: (N, C, H, W) as <name>.png, frames (T, N, C, H, W) as a looping <name>.gif."""
    paths = []
    for name, images in pictures.items():
        content = io.BytesIO()
        if images.ndim == 4:
            path = folder / f"{name}.png"
            grid(images).save(content, format="png")
        else:
            path = folder / f"{name}.gif"
            first, *rest = [grid(frame) for frame in images]
            durations = [*[FRAME_MS] * len(rest), LAST_FRAME_MS]
            first.save(content, format="gif", save_all=True, append_images=rest, duration=durations, loop=0)
        write_atomic(path, content.getvalue())
        paths.append(path)
    return paths


def write_film(folder: Path, scenes: Iterable["Scene"], title: str) -> tuple[Path, "Scene"]:
    """Write a game as a looping game.gif with title and score, and return the file's path and the last scene."""
    scene, content = None, io.BytesIO()

    def pictures() -> Iterator[Image.Image]:
        nonlocal scene
        for scene in scenes:
            picture = captioned(scene.screen, f"{title}: {scene.score:.0f}")
            picture.info["duration"] = LAST_FRAME_MS if scene.over else STEP_MS
            yield picture

    frames = pictures()
    next(frames).save(content, format="gif", save_all=True, append_images=frames, loop=0)
    assert scene is not None
    write_atomic(folder / "game.gif", content.getvalue())
    return folder / "game.gif", scene


def grid(images: Float[Tensor, "N C H W"]) -> Image.Image:
    """Return one picture of images in 0..1 side by side, several of them with borders."""
    count, _, height, width = images.shape
    columns, border = math.ceil(math.sqrt(count)), BORDER if count > 1 else 0
    rows = math.ceil(count / columns)
    together = torch.full((3, rows * (height + border) + border, columns * (width + border) + border), 0.5)
    for n, image in enumerate(images.cpu()):
        top, left = n // columns * (height + border) + border, n % columns * (width + border) + border
        together[:, top : top + height, left : left + width] = image
    return Image.fromarray((255 * together + 0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def captioned(screen: UInt8[np.ndarray, "H W 3"], text: str) -> Image.Image:
    """Return a picture of a screen above a line of text."""
    height, width, _ = screen.shape
    picture = Image.new("RGB", (width, height + CAPTION))
    picture.paste(Image.fromarray(screen))
    ImageDraw.Draw(picture).text((1, height), text, fill="white")
    return picture

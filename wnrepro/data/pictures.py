"""A folder of images of the user's, as input of the classifier."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from wnrepro.errors import UserError
from wnrepro.text import listed

SIZE = 32
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of CIFAR-10
DIGITS = tuple(map(str, range(10)))
MOST = 100_000  # images of a folder


@dataclass(frozen=True)
class Pictures:
    """Images of a folder: their paths in it, uint8 x (N, 3, SIZE, SIZE), classes y (N,) or None, how many were resized.

    names: of the classes.
    """

    paths: list[str]
    x: Tensor
    y: Tensor | None
    resized: int
    names: tuple[str, ...]


def class_names(dataset: str) -> tuple[str, ...]:
    """Return the names of a data set's classes: CIFAR-10's, or digits."""
    return NAMES if dataset == "cifar10" else DIGITS


def load_pictures(folder: Path, dataset: str) -> Pictures:
    """Load the images of <folder>/<class>/ or, without such folders, those of the folder.

    A class is a name or a number from 0 on. Raises UserError without images, or if one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(
            f"--data {folder}: is not a folder; use a folder of images, or one with a folder of images per class"
        )
    names, paths = class_names(dataset), images_in(folder)
    folders = [path for path in visible(folder) if path.is_dir()]
    classes = {name: number for number, name in [*enumerate(DIGITS), *enumerate(names)]}
    if folders and paths:
        raise UserError(f"--data {folder}: has both images and folders; use a folder with only one of the two")
    if unknown := [path.name for path in folders if path.name.lower() not in classes]:
        wanted = ", ".join(names) + ", or 0 to 9" * (names != DIGITS)
        raise UserError(f"--data {folder}: {listed(unknown, most=3)}: not a class; name the folders {wanted}")
    labels = []
    for path in folders:
        found = images_in(path)
        paths += found
        labels += [classes[path.name.lower()]] * len(found)
    if not paths:
        raise UserError(f"--data {folder}: has no images ({', '.join(SUFFIXES)}); use another folder")
    if len(paths) > MOST:
        raise UserError(
            f"--data {folder}: has {len(paths)} images, more than the limit of {MOST}; use a smaller folder"
        )
    read = [read_picture(path) for path in paths]
    return Pictures(
        [path.relative_to(folder).as_posix() for path in paths],
        torch.from_numpy(np.stack([pixels for pixels, _ in read])),
        torch.tensor(labels) if folders else None,
        sum(resized for _, resized in read),
        names,
    )


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"--data {folder}: cannot be read ({error.strerror}); change its permissions") from error


def images_in(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]


def read_picture(path: Path) -> tuple[np.ndarray, bool]:
    """Read an image as (3, SIZE, SIZE) in 0..255. Another size is cut to a square in the middle and resized.

    Returns whether that was done. Raises UserError if the file is no image.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits of grey
                picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
            picture = picture.convert("RGBA").convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--data: {path}: cannot be read as an image ({reason}); remove or replace it") from error
    resized = picture.size != (SIZE, SIZE)
    if resized:
        picture = ImageOps.fit(picture, (SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1), resized

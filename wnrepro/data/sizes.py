"""The number of images in each data set, and whether settings fit it. This module does not import torch."""

from collections.abc import Sequence
from typing import Any

from wnrepro.errors import UserError

BUNDLED_FOR = {"cifar10": "bundled", "mnist": "digits"}  # the bundled set that replaces a downloaded one
SIZES = {  # training and test images; `bundled` has enough for a whitening that generalizes to its test half
    "cifar10": (50_000, 10_000),
    "bundled": (12_000, 1_000),
    "mnist": (60_000, 10_000),
    "digits": (4_000, 500),
}


def check_sizes(settings: Any, available: Sequence[int], at_most: Sequence[str]) -> None:
    """Raise UserError if the settings ask for more than the available training and test images.

    at_most: the names of settings that may not exceed `train_examples`.
    """
    train, test = available
    limits = {"train_examples": train, "test_examples": test, **dict.fromkeys(at_most, settings.train_examples)}
    for name, limit in limits.items():
        if getattr(settings, name) > limit:
            given = f"--{name.replace('_', '-')} {getattr(settings, name)}"
            if name in at_most and limit < train:
                raise UserError(
                    f"{given}: is more than --train-examples {limit}; lower --{name.replace('_', '-')} to {limit} or "
                    "less, or raise --train-examples"
                )
            raise UserError(f"{given}: there are only {limit} images; use {limit} or fewer")

"""Checks of what a run needs: settings that fit together, data, a ROM, memory. Called by `Settings.check`.

This module does not import torch, except for the memory of a GPU.
"""

import contextlib
import importlib
import io
from collections.abc import Sequence
from pathlib import Path

from wnrepro.data.files import require
from wnrepro.data.sizes import BUNDLED_FOR, SIZES, check_sizes
from wnrepro.errors import UserError
from wnrepro.machine import available_memory
from wnrepro.settings import CifarSettings, CvaeSettings, DqnSettings, DrawSettings

REPLAY_STEP_BYTES = 84 * 84 + 4  # a screen, an action, a reward and whether a life was lost


def check_cifar(settings: CifarSettings, data_dir: Path | None) -> None:
    """Raise UserError if data are missing or too few."""
    check_sizes(settings, SIZES[settings.dataset], ("batch_size", "init_examples"))
    if settings.dataset == "cifar10":
        require("cifar10", data_dir)


def check_cvae(settings: CvaeSettings, data_dir: Path | None) -> None:
    """Raise UserError if the model has too many or too few parts, or if data are missing or too few."""
    s = settings
    lengths = {"maps": (3, 3), "depths": (3, 3)} if s.dataset == "mnist" else {"maps": (1, 1), "depths": (1, 5)}
    for name, (least, most) in lengths.items():
        if not least <= (count := len(getattr(s, name))) <= most:
            numbers = str(least) if least == most else f"{least} to {most}"
            raise UserError(
                f"--{name}: {s.dataset} needs {numbers} values, not {count}; repeat --{name} for each value"
            )
    check_pixels(s, data_dir, ("batch_size", "init_examples"))


def check_pixels(settings: CvaeSettings | DrawSettings, data_dir: Path | None, at_most: Sequence[str]) -> None:
    """Raise UserError if `load_pixels` would with these settings; at_most: see `check_sizes`."""
    s, dataset = settings, getattr(settings, "dataset", "mnist")
    check_sizes(s, SIZES[BUNDLED_FOR[dataset] if s.data == "bundled" else dataset], at_most)
    if s.data == "real":
        require({"larochelle": "binarized_mnist", "seeded": "mnist", None: dataset}[s.binarization], data_dir)
    elif s.binarization is not None:
        raise UserError(f"--binarization {s.binarization}: the bundled images are already binary; omit it")


def check_dqn(settings: DqnSettings, device: str) -> None:
    """Raise UserError if the game is missing, settings do not fit together, or there is too little memory."""
    s = settings
    check_rom(s.game)
    if len(s.maps) != 3:
        raise UserError(f"--maps: dqn needs 3 values, not {len(s.maps)}; repeat --maps for each value")
    if s.replay_start > s.replay_steps:
        raise UserError(f"--replay-start {s.replay_start}: must be at most --replay-steps {s.replay_steps}")
    if s.batch_size > s.replay_start - s.actors:
        raise UserError(
            f"--batch-size {s.batch_size}: must be at most {s.replay_start - s.actors} (--replay-start − --actors)"
        )
    for name in ("epsilon_last", "epsilon_test", "discount", "beta1"):
        if getattr(s, name) > 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(s, name):g}: must be at most 1")
    replay, available = s.replay_steps * REPLAY_STEP_BYTES, available_memory()
    needed = 0 if on_gpu(s.replay_steps, device) else replay
    if s.checkpoint_replay:
        needed += replay  # a checkpoint is built in memory
    if available is not None and needed > available:
        raise UserError(
            f"--replay-steps {s.replay_steps}: needs {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} "
            "GB are free; use fewer, or close other programs"
        )


def on_gpu(steps: int, device: str) -> bool:
    """Test whether the replay's screens will be in a GPU's memory."""
    if not device.startswith("cuda"):
        return False
    import torch

    from wnrepro.experiments.dqn import replay_device

    return replay_device(steps, torch.device(device)).type == "cuda"


def check_rom(game: str) -> None:
    """Raise UserError unless ale-py and gymnasium are installed and ale-py finds the game's ROM."""
    try:
        importlib.import_module("ale_py.vector_env")  # needs gymnasium, unlike ale_py
        from ale_py.roms import get_rom_path

        with contextlib.redirect_stdout(io.StringIO()):  # it prints if ALE_ROMS_DIR is set
            get_rom_path(game)
    except ImportError as error:
        raise UserError(
            f"--game {game}: the emulator cannot be imported ({' '.join(str(error).split())}); run "
            "`pip install ale-py gymnasium`"
        ) from error
    except OSError as error:
        raise UserError(
            f"--game {game}: its ROM cannot be read ({' '.join(str(error).split())}); unset ALE_ROMS_DIR, or run "
            "`pip install --force-reinstall ale-py`"
        ) from error

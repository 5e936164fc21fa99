"""Every setting of every experiment, written once: its default, its help and where it comes from.

The command line's options, config.json and the report's settings table are made from these dataclasses.
A field's default is the paper's; `SCALES` says what the smaller scales change. Imports no torch.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from wnrepro.errors import UserError

PARAMS = ("normal", "bn", "wn", "wn+mobn")
PRECISIONS = ("fp32", "tf32", "bf16")
SCALE_NAMES = ("paper", "short", "quick")


def setting(default: Any, help: str, source: str, **check: Any) -> Any:
    """A dataclass field: `help` for people, `source` (paper section, authors' code, our choice), and its check.

    check: `choices=(...)` the values allowed, or `above=x` / `least=x` the bound of a number.
    """
    return dataclasses.field(default=default, metadata={"help": help, "source": source, **check})


@dataclass(frozen=True)
class CifarSettings:
    """CIFAR-10 classification (§5.1, tables 1 and 2, figure 1)."""

    param: str = setting("wn", "parameterization of every weight layer", "§2 to §4", choices=PARAMS)
    lr: float = setting(0.003, "Adam's learning rate", "figure 1", above=0)
    seed: int = setting(1, "seed of the weights, the data order, noise and dropout", "our choice", least=0)
    epochs: int = setting(200, "epochs", "§5.1", least=1)
    decay_from: int = setting(
        100, "epochs with lr as given and β1 = 0.9; from there lr falls to 0 and β1 is 0.5", "§5.1", least=1
    )
    batch_size: int = setting(100, "minibatch size", "§5.1", least=2)
    dataset: str = setting("cifar10", "images to train on", "§5.1", choices=("cifar10", "bundled"))
    train_examples: int = setting(50_000, "training images (the first so many)", "§5.1", least=100)
    test_examples: int = setting(10_000, "test images (the first so many)", "§5.1", least=100)
    width: int = setting(
        96, "feature maps of the first three layers; the next six have twice as many", "table 1", least=1
    )
    input_noise: float = setting(0.15, "standard deviation of the noise on the whitened input", "table 1", least=0)
    zca_epsilon: float = setting(1e-5, "added to the eigenvalues of the covariance", "authors' code", above=0)
    init_examples: int = setting(500, "images of the data-dependent init", "authors' code", least=2)
    init: str = setting(
        "authors",
        "`normal` only: `authors` multiplies w by the frozen init scale, `folded` folds it into w once",
        "authors' code; §3",
        choices=("authors", "folded"),
    )
    g_exp: float | None = setting(None, "c of g = exp(c·s); without it g is learnt directly", "§6.1", above=0)
    v_norm_max: float | None = setting(None, "hard bound a on every norm ‖v‖; without it no bound", "§6.2", above=0)
    precision: str = setting(
        "fp32", "arithmetic of the matrix products: tf32 needs a GPU", "our choice", choices=PRECISIONS
    )
    noise_epochs: tuple[int, ...] = setting(
        (1, 10, 50, 100, 200), "epochs after which the normalization noise is measured", "our choice"
    )
    noise_minibatches: int = setting(200, "minibatches of such a measurement", "our choice", least=4)


# What the smaller scales change. Everything else is the paper's.
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "cifar": {
        "paper": {},
        "short": {
            "epochs": 6,
            "train_examples": 4000,
            "test_examples": 1000,
            "noise_epochs": (6,),
            "noise_minibatches": 50,
        },
        "quick": {
            "epochs": 10,
            "decay_from": 5,
            "dataset": "bundled",
            "train_examples": 1500,
            "test_examples": 500,
            "width": 16,
            "batch_size": 25,
            "noise_epochs": (10,),
            "noise_minibatches": 30,
        },
    },
}

# Figure 1: the learning rate of each parameterization ("0.003 leads to divergence" for normal).
FIGURE_LR = {"normal": 0.0003, "bn": 0.003, "wn": 0.003, "wn+mobn": 0.003}

SETTINGS: dict[str, type[CifarSettings]] = {"cifar": CifarSettings}


def scale_settings(experiment: str, scale: str, param: str, **changes: Any) -> CifarSettings:
    """The settings of an experiment at a scale: paper's defaults, the scale's, figure 1's lr, then `changes`.

    Raises UserError for a value that a field's check refuses.
    """
    values = {"param": param, "lr": FIGURE_LR.get(param), **SCALES[experiment][scale], **changes}
    for field in dataclasses.fields(SETTINGS[experiment]):
        check(field, values.get(field.name, field.default))
    if values.get("g_exp") is not None and param == "normal":
        raise UserError("--g-exp: the parameterization normal has no g to learn; leave it out, or give another --param")
    return SETTINGS[experiment](**values)


def config_hash(experiment: str, scale: str, settings: dict[str, Any]) -> str:
    """16 hex digits that tell one configuration from another: of sha256 over its canonical JSON."""
    content = {"experiment": experiment, "scale": scale, "settings": settings}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise UserError unless the field's metadata allows this value."""
    option, rules = "--" + field.name.replace("_", "-"), field.metadata
    if value is None:
        return
    if "choices" in rules and value not in rules["choices"]:
        raise UserError(f"{option} {value}: unknown; give one of {', '.join(rules['choices'])}")
    if "above" in rules and not rules["above"] < value < math.inf:
        raise UserError(f"{option} {value:g}: give a number above {rules['above']:g}")
    if "least" in rules and not rules["least"] <= value < math.inf:
        raise UserError(f"{option} {value:g}: give a number of at least {rules['least']:g}")

"""The declaration of every experiment: its settings, their values at each scale, its metrics and its implementation.

The command line's options, config.json and the report's tables are derived from these dataclasses. A field's default is
the paper's. A new experiment is a further subclass of `Settings`, added by `register`; see examples/char_lstm.py. This
module does not import torch.
"""

import dataclasses
import hashlib
import json
import math
import re
import reprlib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from wnrepro.errors import UserError
from wnrepro.machine import check_precision
from wnrepro.text import printable

PARAMS = ("normal", "bn", "wn", "wn+mobn")  # the paper's
ScaleName = Literal["paper", "short", "quick"]
PrecisionName = Literal["fp32", "tf32", "bf16"]
SCALE_NAMES, PRECISIONS = get_args(ScaleName), get_args(PrecisionName)
GAMES = ("breakout", "enduro", "seaquest", "space_invaders")
LARGEST = 2**53  # limit of a setting's value; floats represent every integer up to here
LONGEST = 1000  # limit of the elements of a tuple setting
LARGEST_SEED = 2**32 - 1  # torch's generator of a CPU takes only the low 32 bits of a seed
PANELS = ("Common", "Model", "Data", "Start", "Output")  # of a command's help
NAME = re.compile(r"[A-Za-z][\w+.-]{0,79}", re.ASCII)  # of a parameterization, as a part of a folder's name


# ------------------------------------------------------------------------------- parameterizations


@dataclass(frozen=True)
class Source:
    """The code of a custom parameterization: a class, and the file that defines it."""

    name: str  # of the class
    file: str  # as given by the user, for messages
    text: str
    package: str = ""  # the package of its module, for relative imports

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def param(self) -> str:
        """The value of the setting `param`: the class's name and the start of the code's sha256."""
        return f"{re.sub('[^A-Za-z0-9_]', '', self.name)[:24] or 'Class'}-{self.sha256[:8]}"


@dataclass(frozen=True)
class About:
    """A parameterization's label, learning rates and settings. Its mathematics is in `parameterization`."""

    label: str  # in tables and figures
    lr: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by experiment; default: wn's
    settings_used: tuple[str, ...] = ("g_exp", "g_start")  # those of `init`, `g_exp` and `g_start` with an effect
    source: Source | None = None

    def entry(self, experiment: str) -> dict[str, Any] | None:
        """Return a custom parameterization's description in config.json, for reports without its code, else None."""
        if self.source is None:
            return None
        about = {"class": self.source.name, "label": self.label, "lr": self.lr.get(experiment)}
        return about | {"sha256": self.source.sha256}


# Learning rates: cifar's as in figure 1 ("0.003 leads to divergence" for normal), dqn's as in §5.4.
ABOUT = {
    "normal": About("normal", {"cifar": 0.0003, "dqn": 0.0001}, ("init",)),
    "bn": About("batch norm.", settings_used=("g_exp",)),
    "wn": About("weight norm."),
    "wn+mobn": About("weight norm. + mean-only b.n."),
}


def about(param: str) -> About:
    """Return the entry of a parameterization. If its code is not loaded, the entry has only its name."""
    return ABOUT.get(param) or About(param)


# ------------------------------------------------------------------------------- declaring an experiment


def setting(default: Any, help: str, source: str, **check: Any) -> Any:
    """Return a dataclass field with its help text, source (paper section, authors' code, our choice) and check.

    check: `choices=(...)`, the allowed values; `above=x`, `least=x` or `most=x`, bounds of a number or of a tuple's
    elements; `only=d`: the setting belongs to the data set d, and is None for the others. `panel="Data"` is its panel
    in the help, by default Model; with `rare=True` only `--help-all` shows it. `pattern=…` is the pattern of a text,
    `metavar=…` its name in the help.
    """
    return dataclasses.field(default=default, metadata={"help": help, "source": source, **check})


SHARED: dict[str, tuple[Any, str, str, dict[str, Any]]] = {  # settings of several experiments
    "param": ("wn", "parameterization of every weight layer", "§2 to §4", {"choices": PARAMS, "panel": "Common"}),
    "seed": (
        1,
        "seed of the weights, the data order and the latent noise",
        "our choice",
        {"least": 0, "most": LARGEST_SEED, "panel": "Common"},
    ),
    "epochs": (100, "training epochs", "our choice", {"least": 1, "panel": "Common"}),
    "batch_size": (100, "minibatch size", "authors' code", {"least": 2, "panel": "Data"}),
    "data": (
        "real",
        "`real`: the downloaded data set; `bundled`: images made from the installed packages",
        "our choice",
        {"choices": ("real", "bundled"), "panel": "Data", "rare": True},
    ),
    "binarization": (
        "larochelle",
        "binarization of MNIST: `larochelle`, Larochelle's fixed files; `seeded`, each pixel drawn once from its grey "
        "value",
        "authors' code",
        {"choices": ("larochelle", "seeded"), "panel": "Data", "rare": True},
    ),
    "train_examples": (
        50_000,
        "number of training images, from the start of the data set",
        "authors' code",
        {"least": 100, "panel": "Data"},
    ),
    "test_examples": (
        10_000,
        "number of test images, from the start of the data set",
        "authors' code",
        {"least": 100, "panel": "Data"},
    ),
    "init_examples": (
        500,
        "images for the data-dependent init",
        "our choice",
        {"least": 2, "panel": "Start", "rare": True},
    ),
    "init_from": (
        None,
        "folder of a trained run of the same model; its weights replace the init (config.json has their sha256)",
        "our choice",
        {"pattern": r"[0-9a-f]{16}", "panel": "Start", "metavar": "RUN"},
    ),
    "g_exp": (None, "c in g = exp(c·s); if unset, g is learnt directly", "§6.1", {"above": 0}),
    "v_norm_max": (None, "upper bound on every norm ‖v‖; if unset, no bound", "§6.2", {"above": 0}),
    "precision": (
        "fp32",
        "precision of the matrix products; tf32 needs a GPU",
        "our choice",
        {"choices": PRECISIONS, "panel": "Common"},
    ),
}


def shared(name: str, **changes: Any) -> Any:
    """Return the field `name` of SHARED, with `changes` to its default, help, source or check."""
    default, help, source, rules = SHARED[name]
    return setting(**{"default": default, "help": help, "source": source, **rules, **changes})


@dataclass(frozen=True)
class Model:
    """A model that an experiment trains: its only one, or the one for a data set or a game."""

    title: str
    metrics: Mapping[str, str]  # columns of metrics.csv and their units
    result: str  # the column that the report's overview compares, at the last epoch
    result_label: str
    best: bool = False  # compare the best epoch instead


Models = dict[str | None, Model]  # by part
Scales = dict[str, dict[str, Any]]  # by scale: the settings that it changes


class Settings:
    """An experiment's settings and its declaration, which can be used without importing torch.

    Subclasses are frozen dataclasses. Every field is a setting. The docstring says what the experiment trains.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    param: str
    lr: float
    seed: int
    epochs: int
    batch_size: int
    precision: str

    name: ClassVar[str]  # of the command
    implementation: ClassVar[str]  # module:class
    part: ClassVar[str | None] = None  # the setting, if any, whose values have separate models
    models: ClassVar[Models]  # by that setting's value
    scales: ClassVar[Scales]
    part_scales: ClassVar[dict[str, Scales]] = {}  # for parts whose scales differ
    cost: ClassVar[tuple[str, ...]]  # the settings that determine the time of an example, besides param
    gpu_precision: ClassVar[str] = "tf32"  # default on a GPU, where results are judged in this precision
    bf16_parts: ClassVar[tuple[str | None, ...]] = ()  # parts that bf16 learnt as well as fp32: docs/log/step-times.md
    init_default: ClassVar[str] = "authors"  # default of `init` for parameterizations that use it
    unit: ClassVar[str] = "images"  # of progress displays
    epoch_setting: ClassVar[str] = "train_examples"  # the setting with an epoch's number of units
    step_setting: ClassVar[str] = "batch_size"  # the setting with an update's number of units
    step_column: ClassVar[str] = "epoch"  # of metrics.csv: the horizontal axis of curves
    estimates_likelihood: ClassVar[bool] = False  # whether its class has `log_likelihood`
    after: ClassVar[tuple[str, str] | None] = None  # the command that shows what a run has learnt, and what it shows

    constant_schedule: ClassVar[bool] = False  # whether no epoch's training depends on `epochs`

    def continues(self, shorter: "Settings") -> str:
        """Return why a run of fewer epochs, otherwise alike, is not the beginning of this one; empty if it is."""
        return "" if self.constant_schedule else "the training of an epoch may depend on the number of epochs"

    @property
    def epoch_size(self) -> int:
        """The number of examples (of dqn: agent steps) in an epoch."""
        return int(getattr(self, self.epoch_setting))

    @property
    def step_size(self) -> int:
        """The number of examples (of dqn: agent steps) in an update."""
        return int(getattr(self, self.step_setting))

    def check(self, data_dir: Path | None, device: str) -> None:
        """Raise UserError if a run cannot start: settings that do not fit together, missing data, too little memory.

        device: `cpu`, `mps`, `cuda` for any GPU, or `cuda:N`. Nothing is written, and nothing is computed.
        """
        check_precision(self.precision, device)

    @classmethod
    def scale_changes(cls, scale: str, part: str | None = None, param: str | None = None) -> dict[str, Any]:
        """Return the defaults that a scale changes for a part (default: the first), and those that `param` changes."""
        changes = dict(cls.part_scales.get(part or "", cls.scales)[scale])
        if param is not None and cls.name in about(param).lr:
            changes["lr"] = about(param).lr[cls.name]
        if param is not None and "init" in about(param).settings_used and "init" in cls.__dataclass_fields__:
            changes["init"] = cls.init_default
        return changes


SETTINGS: dict[str, type[Settings]] = {}


def register(cls: type[Settings]) -> type[Settings]:
    """Register an experiment for the command line, the runs and the report. Use it as a decorator."""
    SETTINGS[cls.name] = cls
    return cls


def models() -> dict[tuple[str, str | None], Model]:
    """Return every model, by its experiment and part."""
    return {(name, part): model for name, cls in SETTINGS.items() for part, model in cls.models.items()}


# ------------------------------------------------------------------------------- the paper's experiments

BOUNDS = {"epoch": "", "seconds": "s", "train_bound_nats": "nats", "test_bound_nats": "nats"}
VAE = BOUNDS | {"test_bound_nats_raw": "nats", "kl_nats": "nats", "reconstruction_nats": "nats"}
BOUND_LABEL = "test bound (nats), higher is better"


@register
@dataclass(frozen=True)
class CifarSettings(Settings):
    """The CIFAR-10 classifier (§5.1, tables 1 and 2, figure 1)."""

    name = "cifar"
    implementation = "wnrepro.experiments.cifar:Cifar"
    after = ("evaluate", "its test metrics; add --data DIR to classify your own images")
    models: ClassVar[Models] = {
        None: Model(
            "CIFAR-10 classifier",
            {"epoch": "", "seconds": "s", "train_error": "fraction", "test_error": "fraction"}
            | {"train_loss": "nats", "test_loss": "nats", "lr": ""},
            "test_error",
            "test error (%), lower is better",
        )
    }
    cost = ("batch_size", "width", "precision")
    gpu_precision = "bf16"  # the fastest; it learns as well as fp32 at equal epochs
    bf16_parts = (None,)

    param: str = shared("param")
    lr: float = setting(0.003, "learning rate of Adam", "figure 1", above=0, panel="Common")
    seed: int = shared("seed", help="seed of the weights, the data order, noise and dropout")
    epochs: int = shared("epochs", default=200, source="§5.1")
    decay_from: int = setting(
        100, "epochs at the full learning rate with β1 = 0.9; the rate then falls to 0 with β1 = 0.5", "§5.1", least=1
    )
    batch_size: int = shared("batch_size", source="§5.1")
    dataset: str = setting("cifar10", "data set", "§5.1", choices=("cifar10", "bundled"), panel="Common")
    train_examples: int = shared("train_examples", source="§5.1")
    test_examples: int = shared("test_examples", source="§5.1")
    width: int = setting(
        96, "feature maps of the first three layers; the next six have twice as many", "table 1", least=1
    )
    input_noise: float = setting(
        0.15, "standard deviation of the noise added to the whitened input", "table 1", least=0, panel="Data", rare=True
    )
    zca_epsilon: float = setting(
        1e-5,
        "added to the eigenvalues of the covariance before whitening",
        "authors' code",
        above=0,
        panel="Data",
        rare=True,
    )
    init_examples: int = shared("init_examples", source="authors' code")
    init: str = setting(
        "authors",
        "initial weights of `normal`: `authors`, Glorot's standard deviation times the init's scale, which stays "
        "frozen; `folded`, N(0, 0.05²) with the scale folded into w once",
        "authors' code; §3",
        choices=("authors", "folded"),
        panel="Start",
        rare=True,
    )
    g_exp: float | None = shared("g_exp")
    v_norm_max: float | None = shared("v_norm_max")
    polyak_epochs: float | None = setting(
        None,
        "length in epochs of the Polyak average that evaluation uses; if unset, no average",
        "§6.2",
        above=0,
    )
    init_from: str | None = shared("init_from")
    precision: str = shared("precision")
    noise_epochs: tuple[int, ...] = setting(
        (1, 10, 50, 100, 200),
        "epochs after which the normalization noise is measured",
        "our choice",
        panel="Output",
        rare=True,
    )
    noise_minibatches: int = setting(
        200, "minibatches per measurement of the noise", "our choice", least=4, panel="Output", rare=True
    )

    def check(self, data_dir: Path | None, device: str) -> None:
        from wnrepro.experiments.checks import check_cifar

        super().check(data_dir, device)
        check_cifar(self, data_dir)

    scales: ClassVar[Scales] = {
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
    }

    def continues(self, shorter: Settings) -> str:
        if shorter.epochs <= self.decay_from:
            return ""
        return f"its learning rate falls from epoch {self.decay_from + 1} on and reaches 0 at its own last epoch"


CVAE_CIFAR10: dict[str, Any] = {
    "binarization": None,
    "hidden": None,
    "batch_size": 16,
    "train_examples": 50_000,
    "maps": (160,),
    "depths": (10, 10),
    "iaf_depth": 1,
    "iaf_width": 160,
    "free_bits": 0.25,
}


@register
@dataclass(frozen=True)
class CvaeSettings(Settings):
    """The convolutional variational autoencoders of MNIST and CIFAR-10 (§5.2, figure 2)."""

    name = "cvae"
    implementation = "wnrepro.experiments.cvae:Cvae"
    after = ("sample", "samples and reconstructions")
    constant_schedule = True
    part = "dataset"
    models: ClassVar[Models] = {
        "mnist": Model("VAE of MNIST", VAE, "test_bound_nats", BOUND_LABEL),
        "cifar10": Model(
            "VAE of CIFAR-10",
            VAE | {"test_bits_per_dim": "bits"},
            "test_bits_per_dim",
            "bits per dimension, lower is better",
        ),
    }
    cost = (
        *("dataset", "batch_size", "maps", "depths", "hidden", "latents"),
        *("iaf_depth", "iaf_width", "precision"),
    )
    bf16_parts = ("mnist",)
    init_default = "folded"
    estimates_likelihood = True

    param: str = shared("param")
    dataset: str = setting(
        "mnist", "data set, which also selects the model", "§5.2", choices=("mnist", "cifar10"), panel="Common"
    )
    lr: float = setting(0.002, "learning rate α of Adamax", "§5.2", above=0, panel="Common")
    seed: int = shared("seed")
    epochs: int = shared("epochs", source="our choice; §5.2 gives no number")
    batch_size: int = shared("batch_size", source="our choice; CIFAR-10: authors' code")
    data: str = shared("data")
    binarization: str | None = shared("binarization", only="mnist")
    train_examples: int = shared("train_examples", default=60_000)
    test_examples: int = shared("test_examples")
    maps: tuple[int, ...] = setting(
        (16, 32, 32), "feature maps of each sequence (CIFAR-10: of each level)", "§5.2", least=1
    )
    depths: tuple[int, ...] = setting(
        (2, 2, 2), "residual units of each sequence (CIFAR-10: of each level)", "§5.2", least=1
    )
    hidden: int | None = setting(450, "units of the dense layer", "§5.2", least=1, only="mnist")
    latents: int = setting(32, "latent units (CIFAR-10: latent maps of each residual unit)", "IAF paper", least=1)
    iaf_depth: int = setting(
        2, "steps of the posterior's inverse autoregressive flow (IAF); 0: a diagonal Gaussian", "IAF paper", least=0
    )
    iaf_width: int = setting(
        320, "units or maps of the autoregressive network's hidden layers", "IAF paper", least=1, rare=True
    )
    free_bits: float = setting(
        0.0, "free nats of KL for each latent unit or map, averaged over the minibatch", "authors' code", least=0
    )
    polyak_epochs: float = setting(10.0, "length in epochs of the Polyak average that evaluation uses", "§5.2", above=0)
    init_examples: int = shared("init_examples")
    init: str = setting(
        "authors",
        "initial weights of `normal`: `folded`, N(0, 0.05²) with the init's scale folded into w once; `authors`, "
        "Glorot's standard deviation times a frozen scale, as in the authors' classifier",
        "§3",
        choices=("authors", "folded"),
        panel="Start",
        rare=True,
    )
    g_exp: float | None = shared("g_exp")
    v_norm_max: float | None = shared("v_norm_max")
    init_from: str | None = shared("init_from")
    precision: str = shared("precision")

    def check(self, data_dir: Path | None, device: str) -> None:
        from wnrepro.experiments.checks import check_cvae

        super().check(data_dir, device)
        check_cvae(self, data_dir)

    scales: ClassVar[Scales] = {
        "paper": {},
        "short": {"epochs": 4},
        "quick": {
            "data": "bundled",
            "binarization": None,
            "epochs": 10,
            "train_examples": 2000,
            "test_examples": 500,
            "batch_size": 50,
            "maps": (4, 8, 8),
            "hidden": 64,
            "latents": 8,
            "iaf_width": 32,
            "init_examples": 200,
        },
    }
    part_scales: ClassVar[dict[str, Scales]] = {
        "cifar10": {
            "paper": CVAE_CIFAR10,
            "short": CVAE_CIFAR10
            | {
                "epochs": 12,
                "train_examples": 10_000,
                "test_examples": 1000,
                "maps": (32,),
                "depths": (1, 1),
                "latents": 16,
                "iaf_width": 32,
                "init_examples": 100,
            },
            "quick": CVAE_CIFAR10
            | {
                "data": "bundled",
                "epochs": 5,
                "train_examples": 1600,
                "test_examples": 400,
                "maps": (16,),
                "depths": (1, 1),
                "latents": 8,
                "iaf_width": 16,
                "init_examples": 100,
            },
        }
    }


@register
@dataclass(frozen=True)
class DrawSettings(Settings):
    """DRAW on binarized MNIST (§5.3, figure 3)."""

    name = "draw"
    implementation = "wnrepro.experiments.draw:Draw"
    after = ("sample", "samples and reconstructions")
    constant_schedule = True
    models: ClassVar[Models] = {
        None: Model(
            "DRAW",
            BOUNDS | {"reconstruction_nats": "nats", "kl_nats": "nats", "gradient_norm": ""},
            "test_bound_nats",
            BOUND_LABEL,
        )
    }
    cost = (
        *("batch_size", "attention", "time_steps", "units", "latents"),
        *("read_window", "write_window", "precision"),
    )
    bf16_parts = (None,)

    param: str = shared("param")
    lr: float = setting(0.0003, "learning rate of Adam", "authors' code", above=0, panel="Common")
    seed: int = shared("seed")
    epochs: int = shared("epochs", source="figure 3")
    batch_size: int = shared("batch_size")
    data: str = shared("data")
    binarization: str | None = shared("binarization")
    train_examples: int = shared("train_examples")
    test_examples: int = shared("test_examples")
    attention: bool = setting(True, "read and write through attention windows, not the whole image", "§5.3")
    time_steps: int = setting(64, "time steps in which the model reads and draws an image", "authors' code", least=1)
    units: int = setting(256, "units of the encoder LSTM and of the decoder LSTM", "authors' code", least=1)
    latents: int = setting(100, "latent units per time step", "authors' code", least=1)
    read_window: int = setting(2, "filters along each side of the read window", "authors' code", least=2)
    write_window: int = setting(5, "filters along each side of the write window", "authors' code", least=2)
    weight_std: float = setting(
        0.01, "initial standard deviation of the weights", "authors' code", above=0, panel="Start", rare=True
    )
    g_start: float | None = setting(
        None,
        "initial g of every weight vector of wn and wn+mobn; if unset, ‖v‖, so that wn starts as normal does",
        "our choice",
        above=0,
        panel="Start",
    )
    gradient_norm_max: float = setting(
        10.0,
        "largest norm of the whole gradient; a larger gradient is scaled down to it",
        "authors' code",
        above=0,
        rare=True,
    )
    init_from: str | None = shared("init_from")
    precision: str = shared("precision")

    def check(self, data_dir: Path | None, device: str) -> None:
        from wnrepro.experiments.checks import check_pixels

        super().check(data_dir, device)
        check_pixels(self, data_dir, ("batch_size",))

    scales: ClassVar[Scales] = {
        "paper": {},
        "short": {"epochs": 5},
        "quick": {
            "data": "bundled",
            "binarization": None,
            "epochs": 8,
            "batch_size": 50,
            "train_examples": 2000,
            "test_examples": 500,
            "time_steps": 12,
            "units": 64,
            "latents": 16,
            "lr": 0.001,
        },
    }


@register
@dataclass(frozen=True)
class DqnSettings(Settings):
    """Deep Q-learning on Atari games (§5.4, table 3, figure 4)."""

    name = "dqn"
    implementation = "wnrepro.experiments.dqn:Dqn"
    after = ("watch", "a film of a test game")
    constant_schedule = True
    part = "game"
    models: ClassVar[Models] = {
        game: Model(
            f"DQN, {game.replace('_', ' ').title()}",
            {"epoch": "", "agent_steps": "", "updates": "", "seconds": "s", "episodes": "", "test_score": ""}
            | {"test_score_max": "", "mean_q": "", "loss": "", "epsilon": ""},
            "test_score",
            "best epoch's test score, higher is better",
            best=True,
        )
        for game in GAMES
    }
    cost = ("batch_size", "update_every", "actors", "maps", "hidden", "precision")
    bf16_parts = ("breakout",)
    init_default = "folded"
    unit = "agent steps"
    epoch_setting = "epoch_steps"
    step_setting = "update_every"
    step_column = "agent_steps"

    game: str = setting("space_invaders", "Atari game", "§5.4", choices=GAMES, panel="Common")
    param: str = shared("param")
    lr: float = setting(
        0.0003, "learning rate α of Adamax", "§5.4; bn and wn+mobn: our choice", above=0, panel="Common"
    )
    seed: int = shared("seed", help="seed of the weights, the games, ε-greedy play and the replay samples")
    epochs: int = shared("epochs", default=200, source="figure 4")
    epoch_steps: int = setting(
        250_000, "agent steps per epoch, of four frames each", "authors' code", least=1, panel="Data"
    )
    test_steps: int = setting(
        125_000,
        "agent steps of the test after each epoch; games in progress are then played to their end",
        "authors' code",
        least=1,
        panel="Data",
    )
    test_games: int = setting(8, "parallel games in a test", "our choice", least=1, panel="Data", rare=True)
    actors: int = setting(
        1,
        "parallel games in training, in lock-step; 1 is the paper's sequential agent",
        "§5.4",
        least=1,
        panel="Data",
    )
    batch_size: int = shared("batch_size", default=64, help="transitions per minibatch", source="§5.4")
    update_every: int = setting(4, "agent steps per update", "Mnih et al., 2015", least=1, rare=True)
    target_every: int = setting(
        2500,
        "updates between two copies into the target network: 10000 agent steps in deep_q_rl, but 10000 updates in "
        "the text of Mnih et al.",
        "authors' code",
        least=1,
        rare=True,
    )
    replay_steps: int = setting(
        1_000_000, "capacity of the replay in agent steps", "Mnih et al., 2015", least=100, panel="Data"
    )
    replay_start: int = setting(
        50_000,
        "agent steps of random play before the first update",
        "Mnih et al., 2015",
        least=100,
        panel="Data",
        rare=True,
    )
    checkpoint_replay: bool = setting(
        False,
        "store the replay in the checkpoint, so that a resume is exact; otherwise a resume first fills it by playing",
        "our choice",
        panel="Start",
        rare=True,
    )
    epsilon_steps: int = setting(
        1_000_000, "agent steps over which ε falls from 1", "Mnih et al., 2015", least=1, rare=True
    )
    epsilon_last: float = setting(0.1, "final ε of training", "Mnih et al., 2015", least=0, rare=True)
    epsilon_test: float = setting(0.05, "ε in tests", "Mnih et al., 2015", least=0, rare=True)
    discount: float = setting(0.99, "discount factor per agent step", "Mnih et al., 2015", least=0, rare=True)
    beta1: float = setting(0.5, "momentum β1 of Adamax", "§5.4", least=0, rare=True)
    maps: tuple[int, ...] = setting(
        (32, 64, 64), "feature maps of the three convolutions", "Mnih et al., 2015", least=1
    )
    hidden: int = setting(512, "units of the dense layer", "Mnih et al., 2015", least=1)
    held_out: int = setting(
        3200,
        "states of random play on which the mean Q value is logged",
        "authors' code",
        least=1,
        panel="Output",
        rare=True,
    )
    init_examples: int = shared("init_examples", help="states of random play for the data-dependent init")
    init: str = setting(
        "authors",
        "initial weights of `normal`: `folded`, N(0, 0.05²) with the init's scale folded into w once; `deep_q_rl`, "
        "He's uniform distribution without an init pass; `authors`, as in the authors' classifier",
        "§3; authors' code",
        choices=("authors", "folded", "deep_q_rl"),
        panel="Start",
        rare=True,
    )
    g_exp: float | None = shared("g_exp")
    init_from: str | None = shared("init_from")
    precision: str = shared("precision")

    def check(self, data_dir: Path | None, device: str) -> None:
        from wnrepro.experiments.checks import check_dqn

        super().check(data_dir, device)
        check_dqn(self, device)

    scales: ClassVar[Scales] = {
        "paper": {},
        "short": {
            "epochs": 8,
            "epoch_steps": 22_500,
            "test_steps": 5000,
            "test_games": 48,
            "target_every": 500,
            "replay_steps": 180_000,
            "replay_start": 2500,
            "epsilon_steps": 60_000,
            "held_out": 500,
        },
        "quick": {
            "epochs": 4,
            "epoch_steps": 1000,
            "test_steps": 800,
            "test_games": 4,
            "target_every": 100,
            "replay_steps": 5000,
            "replay_start": 500,
            "epsilon_steps": 3000,
            "batch_size": 32,
            "maps": (8, 16, 16),
            "hidden": 64,
            "held_out": 100,
            "init_examples": 100,
        },
    }


# ------------------------------------------------------------------------------- values


def scale_settings(experiment: str, scale: str, param: str, **changes: Any) -> Settings:
    """Return an experiment's settings at a scale: the paper's, changed by the scale, by `param`, then by `changes`.

    Raises UserError for an unknown setting or scale, and for a value that a field's check refuses or that belongs to
    another data set.
    """
    if experiment not in SETTINGS or scale not in SCALE_NAMES:
        raise UserError(f"no experiment {printable(str(experiment), 60)} at scale {printable(str(scale), 60)}")
    cls = SETTINGS[experiment]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := changes.keys() - fields.keys():
        names = printable(", ".join(sorted(unknown)), 60)
        raise UserError(f"unknown settings of {experiment}: {names}")
    values = {"param": param, **cls.scale_changes(scale, changes.get(cls.part or ""), param), **changes}
    for field in fields.values():
        value = values.get(field.name, field.default)
        check(field, value)
        only = field.metadata.get("only")
        if only and value is not None and values.get(cls.part or "", only) != only:
            raise UserError(f"{option(field)} {value}: applies only to --{cls.part} {only}; omit it")
    for name in fields.keys() & {"g_exp", "init", "g_start"} - {*about(param).settings_used}:
        if values.get(name, fields[name].default) != fields[name].default:
            value = values[name] if isinstance(values[name], str) else f"{values[name]:g}"
            raise UserError(f"{option(fields[name])} {value}: has no effect on {param}; omit it")
    return cls(**values)


def config_hash(
    experiment: str, scale: str, settings: dict[str, Any], parameterization: dict[str, Any] | None = None, **_: Any
) -> str:
    """Return 16 hex digits that identify a configuration: of the sha256 of its canonical JSON.

    parameterization: from `About.entry`.
    """
    content = {"experiment": experiment, "scale": scale, "settings": settings}
    content |= {"parameterization": parameterization} if parameterization else {}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def option(field: dataclasses.Field[Any]) -> str:
    """Return the field's option on the command line."""
    return "--" + field.name.replace("_", "-")


def check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise UserError unless the field's type and metadata allow this value."""
    rules, shown = field.metadata, printable(value if isinstance(value, str) else reprlib.repr(value), 60)
    if not fits(field.type, value):
        raise UserError(f"{option(field)} {shown}: must be {kind_name(field.type)}")
    allowed = value is None or value in rules.get("choices", (value,))
    if not allowed and not (field.name == "param" and NAME.fullmatch(value)):
        raise UserError(f"{option(field)} {shown}: unknown; use one of {', '.join(rules['choices'])}")
    if value is not None and "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        raise UserError(f"{option(field)} {shown}: must be the start of a sha256; use the option with a run's folder")
    for number in value if isinstance(value, tuple) else () if value is None else (value,):
        if "above" in rules and not rules["above"] < number < math.inf:
            raise UserError(f"{option(field)} {number:g}: must be above {rules['above']:g}")
        if "least" in rules and not rules["least"] <= number < math.inf:
            raise UserError(f"{option(field)} {number:g}: must be at least {rules['least']:g}")
        if "most" in rules and number > rules["most"]:
            raise UserError(f"{option(field)} {number}: must be at most {rules['most']}")


def fits(kind: Any, value: Any) -> bool:
    """Test whether a value has the type of a field. Numbers beyond LARGEST do not fit."""
    if isinstance(kind, types.UnionType):
        return any(fits(one, value) for one in kind.__args__)
    if isinstance(kind, types.GenericAlias):
        return isinstance(value, tuple) and len(value) <= LONGEST and all(fits(kind.__args__[0], one) for one in value)
    if kind is float:
        return type(value) in (int, float) and not LARGEST < abs(value) < math.inf  # `check` reports inf and nan
    return type(value) is kind and (kind is not int or abs(value) <= LARGEST)


def kind_name(kind: Any) -> str:
    """Return a field's type in words, for a sentence with `must be`."""
    if isinstance(kind, types.UnionType):
        kind = kind.__args__[0]
    if isinstance(kind, types.GenericAlias):
        return f"at most {LONGEST} integers"
    return {float: "a number", int: f"an integer up to {LARGEST}", bool: "true or false"}.get(kind, "a word")


def filled(experiment: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings, with the field's default for each that its version lacked. Tuples are lists."""
    cls = SETTINGS[experiment]
    part = values.get(cls.part or "")
    defaults = {
        field.name: None if field.metadata.get("only", part) != part else field.default
        for field in dataclasses.fields(cls)
    }
    return json.loads(json.dumps(defaults)) | values


def settings_from(experiment: str, values: dict[str, Any]) -> Settings:
    """Return settings from their JSON, where tuples are lists. Raises UserError if they do not fit this version."""
    fields = {field.name: field for field in dataclasses.fields(SETTINGS[experiment])} if experiment in SETTINGS else {}
    if not isinstance(values, dict) or not values.keys() <= fields.keys() or "param" not in values:
        names = ", ".join(sorted(set(values) - fields.keys())) if isinstance(values, dict) else ""
        of = printable(str(experiment), 60)
        raise UserError(
            f"settings of {of} that this version does not have ({printable(names, 60)}); train the run again"
        )
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in plain.items():
        check(fields[name], value)
    return SETTINGS[experiment](**plain)

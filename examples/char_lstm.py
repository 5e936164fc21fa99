"""A custom experiment in one file: a character-level LSTM on the English texts included in scikit-learn.

    python examples/char_lstm.py char_lstm --param all --scale quick
    python examples/char_lstm.py report --scale quick

The script is the command line of wnrepro with an additional experiment. Its runs resume and appear in the report as
those of the other experiments do.
"""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wnrepro.__main__ import main
from wnrepro.data.sizes import check_sizes
from wnrepro.device import autocast
from wnrepro.experiments.loop import Experiment, Rows
from wnrepro.optim import Adam
from wnrepro.parameterization import Linear, LSTMCell, elsewhere
from wnrepro.settings import Model, Models, Scales, Settings, register, setting, shared

V_STD = 0.1  # initial standard deviation of the weights, with g = ‖v‖


@register
@dataclass(frozen=True)
class CharLstmSettings(Settings):
    """A character-level language model, which the paper does not have."""

    name = "char_lstm"
    implementation = f"{__name__}:CharLstm"
    metrics: ClassVar = {"epoch": "", "seconds": "s", "train_bits": "bits", "test_bits": "bits"}
    models: ClassVar[Models] = {
        None: Model("Character LSTM", metrics, "test_bits", "bits per character, lower is better")
    }
    cost = ("batch_size", "time_steps", "units", "precision")
    unit = "sequences"

    param: str = shared("param")
    lr: float = setting(0.003, "Adam's learning rate", "our choice", above=0)
    seed: int = shared("seed", help="seed of the weights and the data order")
    epochs: int = shared("epochs", default=30)
    batch_size: int = shared("batch_size", default=25, source="our choice")
    train_examples: int = shared("train_examples", default=1100, help="training sequences", source="our choice")
    test_examples: int = shared("test_examples", default=120, help="test sequences", source="our choice")
    time_steps: int = setting(32, "characters of a sequence", "our choice", least=1)
    units: int = setting(128, "units of the LSTM", "our choice", least=1)
    precision: str = shared("precision")

    def check(self, data_dir: Path | None, device: str) -> None:
        super().check(data_dir, device)
        train_x, test_x, _ = sequences(self.time_steps + 1)
        check_sizes(self, (len(train_x), len(test_x)), ("batch_size",))

    scales: ClassVar[Scales] = {
        "paper": {},
        "short": {"epochs": 10},
        "quick": {"epochs": 4, "units": 32, "train_examples": 300, "test_examples": 100},
    }


def sequences(length: int) -> tuple[Int[Tensor, "N length"], Int[Tensor, "M length"], int]:
    """Return training sequences, test sequences (every tenth), and the number of different characters."""
    folder = files("sklearn.datasets") / "descr"
    pages = sorted((path for path in folder.iterdir() if path.name.endswith(".rst")), key=lambda path: path.name)
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    characters = sorted(set(text))
    numbers = torch.tensor([characters.index(character) for character in text])
    every = numbers[: len(numbers) // length * length].view(-1, length)
    held_out = torch.arange(len(every)) % 10 == 0
    return every[~held_out], every[held_out], len(characters)


class CharNet(nn.Module):
    """A network from characters to the logits of each next character."""

    def __init__(self, settings: CharLstmSettings, characters: int) -> None:
        super().__init__()
        s, self.characters = settings, characters
        self.cell = LSTMCell(characters, s.units, s.param, time_steps=s.time_steps, v_std=V_STD)
        self.out = Linear(s.units, characters, elsewhere(s.param), v_std=V_STD)

    def forward(self, x: Int[Tensor, "B T"]) -> Float[Tensor, "TB characters"]:
        state, weights, outputs = None, self.cell.unrolled(), []
        for time, one_hot in enumerate(F.one_hot(x.T, self.characters).float()):
            state = self.cell(one_hot, state, weights, time)
            outputs.append(state[0])
        logits: Tensor = self.out(torch.cat(outputs))
        return logits.float()


class CharLstm(Experiment[CharLstmSettings]):
    """The experiment; see `Experiment`."""

    def __init__(self, settings: CharLstmSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        train_x, test_x, characters = sequences(settings.time_steps + 1)
        self.train_x = train_x[: settings.train_examples].to(device)
        self.test_x = test_x[: settings.test_examples].to(device)
        self.limit = 2 * math.log(characters)  # twice the loss of guessing
        self.net = CharNet(settings, characters).to(device)
        self.optimizer = Adam(self.net.parameters(), settings.lr)
        self.describe("scikit-learn's descriptions of its data sets")

    @classmethod
    def load(cls, settings: CharLstmSettings, data_dir: Path | None, device: torch.device) -> "CharLstm":
        return cls(settings, device)

    def loss(self, x: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Compute the mean loss of all characters except the first, in nats."""
        with autocast(self.settings.precision, self.device):
            logits = self.net(x[:, :-1])
        return F.cross_entropy(logits, x[:, 1:].T.flatten())

    def step(self, index: Int[Tensor, " B"]) -> tuple[Tensor, ...]:
        loss = self.loss(self.train_x[index])
        self.optimize(loss)
        return (loss.detach(),)

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        self.net.eval()
        train, test = self.logged[0].mean().item(), self.loss(self.test_x).item()
        return {"train_bits": train / math.log(2), "test_bits": test / math.log(2)}, {}


if __name__ == "__main__":
    main()

"""An experiment that the report does not name: what follows from its declaration."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from factories import MadeUp

from wnrepro.report import write_report
from wnrepro.settings import SETTINGS, Model, Models, Scales, Settings, setting, shared


@dataclass(frozen=True)
class Characters(Settings):
    """A recurrent network that predicts the next character.

    Of a text.
    """

    name = "characters"
    implementation = "nowhere:Characters"
    models: ClassVar[Models] = {
        None: Model(
            "LSTM of characters",
            {"epoch": "", "seconds": "s", "train_bits_per_char": "bits", "test_bits_per_char": "bits"},
            "test_bits_per_char",
            "bits per character, lower is better",
        )
    }
    cost = ("units",)
    scales: ClassVar[Scales] = {"paper": {}, "short": {"epochs": 4}, "quick": {"epochs": 2}}

    param: str = shared("param")
    lr: float = setting(0.002, "Adam's learning rate", "our choice", above=0)
    seed: int = shared("seed")
    epochs: int = shared("epochs")
    batch_size: int = shared("batch_size")
    units: int = setting(64, "units of the LSTM", "our choice", least=1)
    precision: str = shared("precision")


@pytest.mark.usefixtures("not_rendered")
def test_a_further_experiment_has_its_place_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "characters", Characters)
    for seed, (param, end) in itertools.product((1, 2, 3), (("wn", 2.0), ("normal", 2.5))):
        made, last = MadeUp(tmp_path, "characters", None, param, seed=seed), end + 0.01 * seed * (param == "wn")
        made.tables([[epoch, 9.5, last + 0.5 / epoch, last + 1 / epoch - 0.25] for epoch in made.epochs])
        made.end()
    text = write_report(tmp_path, "short", export=True)[0].read_text()
    assert "LSTM of characters: normal (n = 3) 2.50, wn (n = 3) 2.02." in text
    section = text[text.index("## LSTM of characters\n") : text.index("## Step time")]
    assert "A recurrent network that predicts the next character.\n" in section and "Of a text" not in section
    assert "Final values: normal 2.50 bits, weight norm. 2.02 bits." in section
    assert "](figures/characters.png)" in section
    assert "| wn_lr0.002 | 0.002 |  | 4 | 3 | Test Bits Per Char | 2.020 | \\[1.995, 2.045\\] |" in section
    assert "test bits per char 2.010 bits |" in text[text.index("### Runs") :]
    assert r"\input{tables/characters}" in (tmp_path / "short" / "latex" / "report.tex").read_text()
    assert '<option value="characters">' in (tmp_path / "short" / "report.html").read_text()

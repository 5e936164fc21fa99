"""A custom parameterization: in all four experiments, its code by content, and what is refused."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_draw, tiny_run, without_seconds

from wnrepro import custom
from wnrepro.errors import UserError
from wnrepro.experiments import experiment_class
from wnrepro.experiments.vae import Made
from wnrepro.optim import PolyakAverage
from wnrepro.parameterization import Conv2d, Linear, WeightNorm, data_dependent_init, fold, layers, updated
from wnrepro.parameterization.norm import CLASSES
from wnrepro.report import write_report
from wnrepro.reproduce.grid import Planned
from wnrepro.reproduce.work import Job, Process
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import ABOUT, PARAMS, Settings, about, scale_settings

Command = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "centred": f"{ROOT}/examples/centred_weight_norm.py:CentredWeightNorm",
    "standardized": f"{ROOT}/examples/weight_standardization.py:WeightStandardization",
}
HEAD = """import torch
from wnrepro.parameterization import Parameterization

class Mine(Parameterization):
"""
LAYER_NORM = """    label = "layer norm"
    after = True
    affine = False

    def applies(self, layer):
        return layer.units > 1

    def normalize(self, layer, t, time):
        dims = [*range(1, t.ndim)] if layer.feature_dim == 1 else [-1]
        centred = t - t.mean(dims, keepdim=True)
        return centred / (centred.square().mean(dims, keepdim=True) + 1e-6).sqrt()
"""
SPECTRAL = """    def build(self, layer):
        layer.register_buffer("u", torch.nn.functional.normalize(torch.randn(layer.units), dim=0))
        self.updated(layer)

    def direction(self, layer, v):
        rows = v.movedim(layer.unit_dim, 0).flatten(1)
        right = torch.nn.functional.normalize(rows.detach().T @ layer.u, dim=0)
        return v / (layer.u @ rows @ right)

    def updated(self, layer):
        rows = layer.masked(layer.v).movedim(layer.unit_dim, 0).flatten(1)
        layer.u.copy_(torch.nn.functional.normalize(rows @ (rows.T @ layer.u), dim=0))
"""
MEAN = """    batch_statistics = ("mean",)

    def direction(self, layer, v):
        return v / v.square().sum(layer.input_dims(), keepdim=True).sqrt()

    def normalize(self, layer, t, time):
        return t - layer.per_feature(layer.averaged("mean", lambda: t.mean(layer.batch_dims(t)), time), t)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., str]:
    """mine(body) → FILE.py:Mine, whose class has this body."""

    def write(body: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(HEAD + body)
        return f"{tmp_path / name}:Mine"

    return write


@pytest.fixture
def load(mine: Callable[..., str]) -> Callable[[str], str]:
    """load(body) → the name of a loaded class with this body."""
    return lambda body: custom.params([mine(body)])[0]


@pytest.fixture(autouse=True)
def _forget_loaded() -> Iterator[None]:
    yield
    for name in [name for name in ABOUT if name not in PARAMS]:
        del ABOUT[name]


def few_changes(param: str) -> tuple[str, Settings, Callable[[], Any]]:
    """A `tiny_run` of DQN whose directory has a shorter name."""
    changes: dict[str, Any] = {"epoch_steps": 700, "test_steps": 20, "test_games": 2, "checkpoint_replay": True}
    settings = scale_settings("dqn", "quick", param, game="breakout", epochs=2, **changes)
    return "dqn", settings, lambda: experiment_class("dqn")(settings, torch.device("cpu"))


class StopError(Exception):
    """The end of a run's process, in the middle of it."""


# --- training

OTHERS = {"layer norm": LAYER_NORM, "spectral norm": SPECTRAL, "mean-only": MEAN}
MODELS = ("cifar", "cvae mnist", "cvae cifar10", "draw", "dqn")


@pytest.mark.usefixtures("text_only")
@pytest.mark.parametrize(
    ("code", "model"),
    [
        pytest.param(code, model, marks=() if model == "draw" and code in OTHERS else pytest.mark.slow)
        for code in (*EXAMPLES, *OTHERS)
        for model in MODELS
    ],
)
def test_trains_resumes_and_is_reported(code: str, model: str, mine: Callable[..., str], tmp_path: Path) -> None:
    """State that changes after an update; an output that is not affine in t; running averages of each time step."""
    text = EXAMPLES[code] if code in EXAMPLES else mine(OTHERS[code])
    (param,) = custom.params([text])
    experiment, settings, make = few_changes(param) if model == "dqn" else tiny_run(model, param, epochs=2)

    def stop(event: object) -> None:
        if hasattr(event, "metrics"):
            raise StopError

    with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
        assert whole.execute(make)["status"] == "done"
    with Run(tmp_path / "resumed", experiment, "quick", settings) as run:
        with pytest.raises(StopError):
            run.execute(make, stop)
        record = run.execute(make)
    assert record["status"] == "done" and record["resumed"][0]["from_epoch"] == 1
    assert without_seconds(run.folder / "metrics.csv") == without_seconds(whole.folder / "metrics.csv")
    assert "nan" not in (run.folder / "metrics.csv").read_text()
    assert (run.folder / "parameterization.py").read_text() == Path(text.split(":")[0]).read_text()
    assert param in write_report(tmp_path / "whole", "quick")[0].read_text()


def test_every_parameter_learns_in_draw(load: Callable[[str], str]) -> None:
    experiment = tiny_run("draw", load(LAYER_NORM))[2]()
    before = {name: p.detach().clone() for name, p in experiment.net.named_parameters()}
    experiment.step(torch.arange(20))
    assert all(not torch.equal(p, before[name]) for name, p in experiment.net.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("body", OTHERS)
def test_policy_of_dqn_is_its_network(body: str, load: Callable[[str], str]) -> None:
    experiment = tiny_run("dqn", load(OTHERS[body]))[2]()
    experiment.held_out = experiment.random_states(40)
    experiment.initialize(experiment.held_out)
    for _ in experiment.play(150, learn=False):
        pass
    experiment.agent_steps = 100
    for _ in range(3):
        experiment.update()
    experiment.sync_policy()
    states = experiment.held_out[:5]
    torch.testing.assert_close(experiment.policy(states), experiment.net.eval()(states), rtol=1e-4, atol=1e-4)


def test_autoregressive_network_stays_so(load: Callable[[str], str]) -> None:
    """A layer norm there would let a latent unit see those after it."""
    param = load(LAYER_NORM)
    made = Made(8, 4, 32, param, reverse=False).eval()
    assert not any(isinstance(layer.norm, CLASSES[param]) for _, layer in layers(made))
    jacobian = torch.autograd.functional.jacobian(lambda z: made(z, torch.ones(1, 4))[0], torch.randn(1, 8))[0, :, 0]
    assert jacobian.triu().abs().max() == 0
    assert jacobian.abs().max() > 0


def test_average_copies_buffers_without_a_mean(load: Callable[[str], str]) -> None:
    param = load("""    def build(self, layer):
        layer.register_buffer("sign", torch.ones(()))
        layer.register_buffer("count", torch.zeros((), dtype=torch.long))

    def updated(self, layer):
        layer.sign.neg_()
        layer.count.add_(1)
""")
    model = Linear(3, 2, param)
    average = PolyakAverage(model, 5)
    for _ in range(3):
        updated(model)
        average.update_parameters(model)
    assert (average.module.sign, average.module.count) == (-1, 3)


def test_unit_of_zeros_starts_and_trains(load: Callable[[str], str]) -> None:
    for kind in ("wn", "wn+mobn", load("    label = 'w = g·v'\n")):
        v = torch.randn(3, 4)
        v[1] = 0
        layer = Linear(4, 3, kind, v=v)
        layer(torch.randn(8, 4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_library_takes_a_class() -> None:
    class Doubled(WeightNorm):
        def weight(self, layer: Any, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            return 2 * super().weight(layer, v, g)

    torch.manual_seed(0)
    layer = Linear(3, 4, Doubled)
    torch.testing.assert_close(layer.w(), 2 * layer.v.detach())
    y = data_dependent_init(layer, torch.randn(50, 3))
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(4))
    torch.testing.assert_close(fold(layer)(torch.ones(1, 3)), layer(torch.ones(1, 3)))


def test_layer_to_which_it_does_not_apply_has_weight_normalization() -> None:
    (param,) = custom.params([EXAMPLES["centred"]])
    names = [type(Conv2d(1, 2, kernel, param).norm).__name__ for kernel in (1, 3)]
    assert names == ["WeightNorm", "CentredWeightNorm"]


# --- code


@pytest.mark.slow
def test_code_goes_to_another_process_by_content(mine: Callable[..., str], tmp_path: Path) -> None:
    (param,) = custom.params([mine(MEAN)])
    settings = tiny_draw(param, epochs=1, train_examples=100, test_examples=100)
    source = about(param).source
    assert source is not None
    (tmp_path / "mine.py").unlink()
    job = Job(Planned("draw", "quick", settings), tmp_path / "results", None, 1, "cpu", source=source)
    *_, last = Process(job).events()
    assert last.outcome == "done", last
    folder = next((tmp_path / "results/quick/draw").glob("*/seed-1"))
    assert folder.parent.name.startswith(param)
    assert (folder / "parameterization.py").read_text() == source.text


def test_name_is_of_the_content(mine: Callable[..., str], tmp_path: Path) -> None:
    texts = [mine(MEAN), mine(MEAN, "copy.py"), mine(MEAN + "\n# a comment\n", "edited.py")]
    first, same, second = (custom.params([text])[0] for text in texts)
    assert first == same != second and re.fullmatch("Mine-[0-9a-f]{8}", first)
    name, body = "CentredWeightNormalization", "(Parameterization):\n    label = 'a'\n"
    text = f"from wnrepro.parameterization import Parameterization\nclass {name}A{body}class {name}B{body}"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8-sig")
    with pytest.raises(UserError, match=f"mine.py:{name}B: another class"):
        custom.params([f"{tmp_path}/mine.py:{name}A,{tmp_path}/mine.py:{name}B"])


@pytest.mark.slow
def test_nothing_loads_code_from_a_run_directory(mine: Callable[..., str], tmp_path: Path, run: Command) -> None:
    text = mine(MEAN)
    (param,) = custom.params([text])
    _, settings, make = few_changes(param)
    with Run(tmp_path / "r", "dqn", "quick", settings) as held:
        held.execute(make)
    (held.folder / "parameterization.py").write_text("raise SystemExit('it was loaded')")
    ABOUT.pop(param)
    with pytest.raises(UserError, match="--param"):
        open_run(held.folder)
    write_report(tmp_path / "r", "quick")
    code, printed, error = run("watch", held.folder, "--seconds", 1, "--param", text)
    assert code == 0 and "game.gif" in printed, error


def test_class_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_norms"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helpers.py").write_text("NAME = 'from a package'\n")
    (package / "norms.py").write_text(HEAD.replace("\n\n", "\nfrom .helpers import NAME\n\n") + "    label = NAME\n")
    monkeypatch.syspath_prepend(tmp_path)
    (param,) = custom.params(["my_norms.norms:Mine"])
    assert about(param).label == "from a package"


# --- refusals

ADDED = "    count = 0\n\n    def direction(self, layer, v):\n        self.count += 1\n        return v\n"
HIDDEN = "    def build(self, layer):\n        layer.register_buffer('u', layer.v[0] * 1, persistent=False)\n"


@pytest.mark.usefixtures("unchecked")  # the checks of shapes come first
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    def direction(self, layer, v):\n        return v.nothing()\n", "line 6"),
        ("    def direction(self, layer, v):\n        return v[:1]\n", "shape"),
        ("    def normalize(self, layer, t, time):\n        return 0 * t\n", "do not vary"),
        ("    def weight(self, layer, v, g):\n        return v\n", "learns_g"),
        (LAYER_NORM.replace("after = True", "after = False"), "after = True"),
        (LAYER_NORM.replace("affine = False", "affine = True"), "affine = False"),
        (SPECTRAL.replace("v):\n", "v):\n        self.updated(layer)\n"), "`updated`"),
        ("    def normalise(self, layer, t, time):\n        return t\n", "`normalize`"),
        ("    note = 'nothing else'\n", "overrides no"),
        ("    def applies(self, layer):\n        return False\n", "applies"),
        (ADDED, "changes itself"),
        (HIDDEN, "persistent"),
        ("    def direction(self, layer, v):\n        raise SystemExit(5)\n", "line 6"),
        ("    label = 3\n", "label"),
        ("    lr = {'chess': 1}\n", "lr"),
        ("    batch_statistics = 'mean'\n", "batch_statistics"),
        ("    x = 1 +\n", "line 5"),
        ("    raise SystemExit('bye')\n", "line 5"),
        ("    def build(self, layer):\n        layer.v.data.fill_(float('nan'))\n", "not finite"),
    ],
)
def test_class_that_cannot_train_is_refused(body: str, says: str, mine: Callable[..., str]) -> None:
    text = mine(body)
    with pytest.raises(UserError, match=says) as raised:
        custom.params([text])
    said = str(raised.value)
    assert said.startswith(f"--param {text}: ") and "line " in said and "\n" not in said


@pytest.mark.parametrize(
    ("base", "method"), [("WeightNorm", "direction"), ("BatchNorm", "normalize"), ("MeanOnly", "output")]
)
def test_override_that_its_base_never_calls_is_refused(base: str, method: str, tmp_path: Path) -> None:
    text = f"from wnrepro.parameterization import {base}\nclass Mine({base}):\n    def {method}(self, *given):\n"
    (tmp_path / f"{base}.py").write_text(f"{text}        1 / 0\n")
    with pytest.raises(UserError, match=f"`{method}`"):
        custom.params([f"{tmp_path / base}.py:Mine"])


@pytest.mark.parametrize(
    "text",
    [
        *("nothing.py:Mine", "nothing:Mine", "json:JSONDecoder", "{tmp}:Mine", "ws", "wn,ws", ""),
        *("{tmp}/mine.py:Other", "{tmp}/mine.py:torch", "{tmp}/mine.py:Parameterization", "{tmp}/mine.py:a b"),
        *("{tmp}/binary.py:Mine", "{tmp}/large.py:Mine"),
    ],
)
def test_wrong_name_is_a_usage_error(text: str, mine: Callable[..., str], tmp_path: Path, run: Command) -> None:
    mine(MEAN)
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.py").write_bytes(b"#" * 2**20 + b"\n")
    words = ("--param", text.format(tmp=tmp_path), "--scale", "quick", "--results", tmp_path / "results")
    for command in ("draw", "reproduce"):
        code, printed, error = run(command, *words)
        assert (code, printed, error.count("\n")) == (2, "", 1)
        assert "--param" in error
    assert not (tmp_path / "results").exists()


def test_failure_in_one_experiment_is_reported_before_anything_is_written(
    mine: Callable[..., str], tmp_path: Path, run: Command
) -> None:
    """A layer of one map, which the trial's layers do not have."""
    text = mine(MEAN + "\n    def applies(self, layer):\n        assert layer.units > 1\n        return True\n")
    words = ("cvae", "--dataset", "mnist", "--scale", "quick", "--param", text, "--results", tmp_path / "results")
    for more in ([], ["--debug"]):
        code, _, error = run(*words, *more)
        assert code == 2 and "mine.py, line " in error and ("Traceback" in error) == bool(more)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("experiment", "body", "option", "value"),
    [
        ("cifar", "    learns_g = False\n", "--g-exp", "3"),
        ("cifar", MEAN, "--init", "folded"),
        ("draw", LAYER_NORM, "--g-start", "1"),
    ],
)
def test_option_without_effect_is_refused(
    experiment: str, body: str, option: str, value: str, mine: Callable[..., str], tmp_path: Path, run: Command
) -> None:
    code, _, error = run(experiment, "--param", mine(body), option, value, "--results", tmp_path / "results")
    assert code == 2 and f"{option} {value}" in error


# --- settings and the grid


def test_class_says_its_label_and_learning_rates(load: Callable[[str], str]) -> None:
    param = load("    label = 'mine'\n    lr = {'draw': 0.5, 'cifar': 0.25}\n")
    assert scale_settings("draw", "quick", param).lr == 0.5
    assert scale_settings("cifar", "paper", param).lr == 0.25
    assert scale_settings("dqn", "paper", param).lr == scale_settings("dqn", "paper", "wn").lr == 0.0003
    entry = about(param).entry("cvae")
    assert entry is not None
    assert (entry["class"], entry["label"], entry["lr"]) == ("Mine", "mine", None)


def test_subclass_of_normal_has_its_init(tmp_path: Path) -> None:
    text = "from wnrepro.parameterization import Normal\nclass Mine(Normal):\n    label = 'mine'\n"
    (tmp_path / "mine.py").write_text(text)
    (param,) = custom.params([f"{tmp_path}/mine.py:Mine"])
    assert scale_settings("cvae", "quick", param).init == scale_settings("cvae", "quick", "normal").init == "folded"


def test_reproduce_takes_parameterizations(mine: Callable[..., str], run: Command, tmp_path: Path) -> None:
    words = ("--plan", "--json", "--scale", "quick", "--results", tmp_path / "results")
    code, printed, error = run("reproduce", "draw", *words, "--param", f"normal,{mine(MEAN)}")
    assert code == 0, error
    folders = [Path(row["run"]).parent.name for row in json.loads(printed)["grid"]]
    assert [name.split("_")[0][:5] for name in folders] == ["norma", "Mine-"]
    code, _, error = run("reproduce", "C15", *words, "--param", "bn")
    assert code == 2 and "--param bn" in error

"""A parameterization of one's own: the examples in all four experiments, its code by content, and what is refused."""

import csv
import dataclasses
import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from factories import make_pixels, tiny_cvae, tiny_dqn, tiny_draw
from torch import nn

from wnrepro import custom
from wnrepro.cli import main
from wnrepro.errors import UserError
from wnrepro.experiments import experiment_class
from wnrepro.experiments.cifar import Cifar
from wnrepro.experiments.cvae import Cvae, Made
from wnrepro.experiments.draw import Draw
from wnrepro.optim import PolyakAverage
from wnrepro.parameterization import Conv2d, Linear, Parameterized, data_dependent_init, fold, layers, updated
from wnrepro.parameterization.norm import BN_EPSILON, CLASSES, along, unit_norm
from wnrepro.report import write_report
from wnrepro.reproduce.grid import Planned, planned
from wnrepro.reproduce.work import Job, Process
from wnrepro.runs.run import Run, open_run
from wnrepro.settings import ABOUT, PARAMS, Settings, about, scale_settings

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
def mine(tmp_path):
    """mine(body) → FILE.py:Mine, whose class has this body."""

    def write(body: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(HEAD + body)
        return f"{tmp_path / name}:Mine"

    return write


@pytest.fixture(autouse=True)
def _loaded_is_forgotten():
    """What a test has loaded is loaded anew by the next."""
    yield
    for name in [name for name in ABOUT if name not in PARAMS]:
        del ABOUT[name]


@pytest.fixture
def wnrepro(monkeypatch, capsys):
    """wnrepro(*words) → (exit code, printed, errors)."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wnrepro", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code is None or isinstance(stop.value.code, int)
        return stop.value.code or 0, *capsys.readouterr()

    return call


# ------------------------------------------------------------------------------- in all four experiments


def small(experiment: str, param: str, **changes: object) -> Settings:
    if experiment == "cifar":
        tiny = {"train_examples": 200, "test_examples": 100, "width": 4, "batch_size": 20, "init_examples": 100}
        return scale_settings("cifar", "quick", param, **({"epochs": 2} | tiny | changes))
    if experiment == "dqn":
        tiny = {"game": "breakout", "epoch_steps": 700, "test_steps": 20, "test_games": 2, "checkpoint_replay": True}
        return scale_settings("dqn", "quick", param, **({"epochs": 2} | tiny | changes))
    return {"cvae": tiny_cvae, "draw": tiny_draw}[experiment](param, **({"epochs": 2} | changes))


def loader(experiment: str, settings: Settings, images):
    device = torch.device("cpu")
    if experiment == "cifar":
        return lambda: Cifar(settings, images, device)
    if experiment == "dqn":
        return functools.partial(experiment_class("dqn").load, settings, None, device)
    kind = {"cvae": Cvae, "draw": Draw}[experiment]
    return lambda: kind(settings, make_pixels(getattr(settings, "dataset", "mnist")), device)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


class Stop(Exception):
    """The end of a run's process, in the middle of it."""


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_train_resume_and_report_in_all_four_experiments(example, images, tmp_path):
    (param,) = custom.params([EXAMPLES[example]])
    parts = [("cifar", {}), ("cvae", {}), ("cvae", {"dataset": "cifar10"}), ("draw", {}), ("dqn", {})]
    for experiment, part in parts:
        settings = small(experiment, param, **part)
        load, told = loader(experiment, settings, images), 0

        def stop(event: object) -> None:
            nonlocal told
            told += getattr(event, "metrics", None) is not None
            if told == 1:
                raise Stop

        with Run(tmp_path / "whole", experiment, "quick", settings) as whole:
            assert whole.execute(load)["status"] == "done"
        with Run(tmp_path / "resumed", experiment, "quick", settings) as run:
            with pytest.raises(Stop):
                run.execute(load, stop)
            record = run.execute(load)
        assert record["status"] == "done" and record["resumed"][0]["from_epoch"] == 1
        assert rows(run.folder) == rows(whole.folder) and len(rows(run.folder)) == 2
        assert (run.folder / "parameterization.py").read_text() == Path(EXAMPLES[example].split(":")[0]).read_text()
        assert run.folder.parent.name.count(param) == 1
    text = write_report(tmp_path / "whole", "quick")[0].read_text()
    assert about(param).label in text and "<script" not in text


@pytest.mark.parametrize("body", [LAYER_NORM, SPECTRAL, MEAN], ids=["layer norm", "spectral norm", "mean-only"])
def test_others_train_in_all_four_experiments(body, images, mine, tmp_path):
    """State that moves after an update; an output that is not affine in t; running averages, of each time step."""
    (param,) = custom.params([mine(body)])
    for experiment in ("cifar", "cvae", "draw", "dqn"):
        settings = small(experiment, param, epochs=1)
        with Run(tmp_path, experiment, "quick", settings) as run:
            assert run.execute(loader(experiment, settings, images))["status"] == "done"
        (row,) = rows(run.folder)
        assert all(float(value) == float(value) for value in row.values())
        state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in state["experiment"]["net"].values())


def test_g_and_every_other_parameter_learn_in_draws_cells(mine):
    """Also in the recurrent products, which no layer's forward computes where the parameterization is linear."""
    (param,) = custom.params([mine(LAYER_NORM)])
    experiment = Draw(tiny_draw(param), make_pixels("mnist"), torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in experiment.net.named_parameters()}
    experiment.step(torch.arange(20))
    assert all(not torch.equal(p, before[name]) for name, p in experiment.net.named_parameters())


def test_dqns_policy_is_the_network_as_it_is(mine):
    for body in (LAYER_NORM, SPECTRAL, MEAN):
        (param,) = custom.params([mine(body)])
        experiment = experiment_class("dqn")(tiny_dqn(param), torch.device("cpu"))
        experiment.held_out = experiment.random_states(40)
        experiment.initialize(experiment.held_out)
        for _ in experiment.play(150, learn=False):
            pass
        experiment.agent_steps = 100
        for _ in range(3):
            experiment.update()
        experiment.renew()
        states = experiment.held_out[:5]
        torch.testing.assert_close(experiment.policy(states), experiment.net.eval()(states), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- its code


def test_code_goes_to_another_process_by_content(mine, tmp_path):
    text = mine(MEAN)
    (param,) = custom.params([text])
    settings = small("draw", param, epochs=1, train_examples=100, test_examples=100)
    source = about(param).source
    assert source
    (tmp_path / "mine.py").unlink()
    job = Job(Planned("draw", "quick", settings), tmp_path / "results", None, 1, "cpu", source=source)
    *_, last = Process(job).events()
    assert last.outcome == "done", last
    folder = next((tmp_path / "results/quick/draw").glob("*/seed-1"))
    assert folder.parent.name.startswith(param) and (folder / "parameterization.py").read_text() == source.text


def test_a_paper_s_class_that_would_not_call_what_is_overridden_is_refused(tmp_path):
    for base, method in (("WeightNorm", "direction"), ("BatchNorm", "normalize"), ("MeanOnly", "output")):
        text = f"from wnrepro.parameterization import {base}\nclass Mine({base}):\n    def {method}(self, *given):\n"
        (tmp_path / f"{base}.py").write_text(f"{text}        1 / 0\n")
        with pytest.raises(UserError, match=rf"{base}\.\w+ does not call its `{method}`"):
            custom.params([f"{tmp_path / base}.py:Mine"])


def test_one_of_normal_starts_as_normal_does(tmp_path):
    text = "from wnrepro.parameterization import Normal\nclass Mine(Normal):\n    label = 'mine'\n"
    (tmp_path / "mine.py").write_text(text)
    (param,) = custom.params([f"{tmp_path}/mine.py:Mine"])
    assert scale_settings("cvae", "quick", param).init == scale_settings("cvae", "quick", "normal").init == "folded"


def test_two_classes_never_share_a_name(tmp_path):
    name = "CentredWeightNormalization"
    body = "(Parameterization):\n    label = 'a'\n"
    text = f"from wnrepro.parameterization import Parameterization\nclass {name}A{body}class {name}B{body}"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"another has its name in runs, .*; give it another"):
        custom.params([f"{tmp_path}/mine.py:{name}A,{tmp_path}/mine.py:{name}B"])


def test_a_layer_of_an_autoregressive_network_stays_so(mine):
    """A layer norm there would let a latent unit see those after it."""
    (param,) = custom.params([mine(LAYER_NORM)])
    made = Made(8, 4, 32, param, reverse=False).eval()
    assert not any(isinstance(layer.norm, CLASSES[param]) for _, layer in layers(made))
    jacobian = torch.autograd.functional.jacobian(lambda z: made(z, torch.ones(1, 4))[0], torch.randn(1, 8))[0, :, 0]
    assert jacobian.triu().abs().max() == 0 and jacobian.abs().max() > 0


def test_the_average_has_the_newest_of_buffers_that_have_no_mean(mine):
    body = """    def build(self, layer):
        layer.register_buffer("sign", torch.ones(()))
        layer.register_buffer("count", torch.zeros((), dtype=torch.long))

    def updated(self, layer):
        layer.sign.neg_()
        layer.count.add_(1)
"""
    (param,) = custom.params([mine(body)])
    model = Linear(3, 2, param)
    average = PolyakAverage(model, 5)
    for _ in range(3):
        updated(model)
        average.update_parameters(model)
    assert average.module.sign == -1 and average.module.count == 3


def test_a_unit_of_zeros_starts_and_trains(mine):
    (param,) = custom.params([mine("    label = 'w = g·v'\n")])
    for kind in ("wn", "wn+mobn", param):
        v = torch.randn(3, 4)
        v[1] = 0
        layer = Linear(4, 3, kind, v=v)
        layer(torch.randn(8, 4)).square().sum().backward()
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in layer.parameters())


def test_edited_code_is_another_parameterization(mine):
    (first,) = custom.params([mine(MEAN)])
    (same,) = custom.params([mine(MEAN, "copy.py")])
    (second,) = custom.params([mine(MEAN + "\n# a comment\n")])
    assert first == same != second and first.startswith("Mine-") and len(first) == len("Mine-") + 8


def test_nothing_loads_code_from_a_runs_folder(mine, images, tmp_path, wnrepro):
    text = mine(MEAN)
    (param,) = custom.params([text])
    settings = small("dqn", param, epochs=1)
    with Run(tmp_path / "r", "dqn", "quick", settings) as run:
        run.execute(loader("dqn", settings, images))
    (run.folder / "parameterization.py").write_text("raise SystemExit('it was loaded')")
    ABOUT.pop(param)
    with pytest.raises(UserError, match=r"give it as --param FILE\.py:CLASS"):
        open_run(run.folder)
    write_report(tmp_path / "r", "quick")
    code, printed, error = wnrepro("watch", run.folder, "--seconds", 1, "--param", text)
    assert code == 0 and "game.gif" in printed, error


def test_a_package_s_class(tmp_path, monkeypatch):
    package = tmp_path / "my_norms"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helpers.py").write_text("NAME = 'from a package'\n")
    (package / "norms.py").write_text(HEAD.replace("\n\n", "\nfrom .helpers import NAME\n\n") + "    label = NAME\n")
    monkeypatch.syspath_prepend(tmp_path)
    (param,) = custom.params(["my_norms.norms:Mine"])
    assert about(param).label == "from a package"


def test_the_library_takes_a_class():
    from wnrepro.parameterization import WeightNorm

    class Doubled(WeightNorm):
        def weight(self, layer, v, g):
            return 2 * super().weight(layer, v, g)

    torch.manual_seed(0)
    layer = Linear(3, 4, Doubled)
    torch.testing.assert_close(layer.w(), 2 * layer.v.detach())
    assert "Doubled" in repr(layer)
    y = data_dependent_init(layer, torch.randn(50, 3))
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(4))
    torch.testing.assert_close(fold(layer)(torch.ones(1, 3)), layer(torch.ones(1, 3)))


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    def direction(self, layer, v):\n        return v.nothing()\n", "line 6 (AttributeError"),
        ("    def direction(self, layer, v):\n        return v[:1]\n", "w has the shape"),
        ("    def normalize(self, layer, t, time):\n        return t[:1]\n", "the output has not the shape of t"),
        ("    def normalize(self, layer, t, time):\n        return 0 * t\n", "features do not vary after the init"),
        ("    def weight(self, layer, v, g):\n        return v\n", "g has no gradient; use g, or set learns_g"),
        (LAYER_NORM.replace("after = True", "after = False"), "the init leaves |mean|"),
        (LAYER_NORM.replace("affine = False", "affine = True"), "set affine = False, or override `in_evaluation`"),
        (SPECTRAL.replace("v):\n", "v):\n        self.updated(layer)\n"), "let state move in `updated` alone"),
        (
            "    def normalise(self, layer, t, time):\n        return t\n",
            "write `normalize` or, for a name of your own, `_normalise`",
        ),
        ("    note = 'nothing else'\n", "it overrides nothing"),
        ("    affine = 'False'\n", "its affine is not True or False"),
        ("    def applies(self, layer):\n        return False\n", "it applies to no layer"),
        (
            "    count = 0\n\n    def direction(self, layer, v):\n        self.count += 1\n        return v\n",
            "it changes itself; keep state in buffers of the layer",
        ),
        (
            "    def build(self, layer):\n        layer.register_buffer('u', layer.v[0] * 1, persistent=False)\n",
            "there is a buffer that no checkpoint has",
        ),
        ("    def direction(self, layer, v):\n        raise SystemExit(5)\n", "line 6 (SystemExit: 5)"),
        ("    label = 3\n", "its label is no line of text"),
        ("    lr = {'chess': 1}\n", "its lr is no dict of numbers above 0 by experiment (cifar, cvae, draw, dqn)"),
        ("    batch_statistics = 'mean'\n", "its batch_statistics are no tuple of names"),
        ("    x = 1 +\n", "line 5 (SyntaxError"),
        ("    x = 1 / 0\n", "line 5 (ZeroDivisionError"),
        ("    raise SystemExit('bye')\n", "line 5 (SystemExit: bye)"),
        ("    def build(self, layer):\n        layer.v.data.fill_(float('nan'))\n", "not finite"),
    ],
)
def test_what_is_none_is_one_sentence_with_its_line_and_writes_nothing(body, says, mine, tmp_path, wnrepro):
    text = mine(body)
    code, printed, error = wnrepro("cifar", "--param", text, "--scale", "quick", "--results", tmp_path / "results")
    assert (code, printed) == (2, "") and error.count("\n") == 1
    assert error.startswith(f"wnrepro: --param {text}: ") and says in error and "line " in error, error
    assert not (tmp_path / "results").exists()
    code, _, error = wnrepro("cifar", "--param", text, "--scale", "quick", "--results", tmp_path / "results", "--debug")
    assert code == 2 and "Traceback" in error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing.py:Mine", "nothing.py cannot be read (No such file or directory)"),
        ("nothing:Mine", "there is no Python module nothing"),
        ("json:JSONDecoder", "is no parameterization; make it a subclass"),
        ("{tmp}/mine.py:Other", "the file has no class Other"),
        ("{tmp}/mine.py:torch", "the file has no class torch"),
        ("{tmp}/mine.py:Parameterization", "is no parameterization"),
        ("{tmp}/mine.py:a b", "names no class"),
        ("{tmp}/binary.py:Mine", "is no UTF-8 text"),
        ("{tmp}/large.py:Mine", "is larger than 1 MiB"),
        ("{tmp}:Mine", "there is no Python module"),
        ("ws", "--param ws: unknown; give one of normal, bn, wn, wn+mobn, all, or a class of yours as FILE.py:CLASS"),
        ("wn,ws", "--param ws: unknown"),
        ("", "unknown"),
    ],
)
def test_a_wrong_name_is_one_sentence(text, says, mine, tmp_path, wnrepro):
    mine(MEAN)
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.py").write_bytes(b"#" * 2**20 + b"\n")
    text = text.format(tmp=tmp_path)
    for words in (("draw", "--scale", "quick"), ("reproduce", "--scale", "quick"), ("bench", "draw")):
        code, printed, error = wnrepro(*words, "--param", text, "--results", tmp_path / "results")
        assert (code, printed) == (2, "") and says in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_what_fails_in_an_experiment_alone_is_told_before_anything_is_written(mine, tmp_path, wnrepro):
    """A layer of one map, which the trial's layers do not have."""
    text = mine(LAYER_NORM.replace("return layer.units > 1", "return True"))
    words = ("cvae", "--dataset", "mnist", "--param", text, "--scale", "quick", "--results", tmp_path / "results")
    (tmp_path / "mine.py").write_text(
        HEAD + MEAN + "\n    def applies(self, layer):\n        assert layer.units > 1\n        return True\n"
    )
    code, _, error = wnrepro(*words)
    assert code == 2 and "mine.py, line " in error and "AssertionError" in error
    assert not (tmp_path / "results").exists()


def test_options_without_an_effect_are_refused(mine, tmp_path, wnrepro):
    fixed = "    learns_g = False\n"
    for body, words, says in (
        (fixed, ("--g-exp", 3), "--g-exp 3: has no effect on Mine-"),
        (MEAN, ("--init", "folded"), "--init folded: has no effect on Mine-"),
    ):
        code, _, error = wnrepro("cifar", "--param", mine(body), *words, "--results", tmp_path / "results")
        assert code == 2 and says in error
    code, _, error = wnrepro("draw", "--param", mine(LAYER_NORM), "--g-start", 1, "--results", tmp_path / "results")
    assert code == 2 and "--g-start 1: has no effect on Mine-" in error


def test_a_layer_to_which_it_does_not_apply_has_weight_normalization():
    (param,) = custom.params([EXAMPLES["centred"]])
    names = [type(Conv2d(1, 2, kernel, param).norm).__name__ for kernel in (1, 3)]
    assert names == ["WeightNorm", "CentredWeightNorm"]


# ------------------------------------------------------------------------------- several runs, and the grid


def test_several_values_of_an_option_are_several_runs(mine, wnrepro, monkeypatch, tmp_path):
    seen: list[Settings] = []
    monkeypatch.setattr("wnrepro.cli.run_all", lambda _cls, planned, _options: seen.extend(planned) or 0)
    text = mine(MEAN)
    wnrepro("cifar", "--param", f"all,{text}", "--lr", 0.001, "--lr", 0.003, "--lr", 0.001, "--seed", 1, "--seed", 2)
    (own,) = custom.params([text])
    assert [(s.param, s.lr, s.seed) for s in seen] == [
        (param, lr, seed) for param in (*PARAMS, own) for lr in (0.001, 0.003) for seed in (1, 2)
    ]
    seen.clear()
    wnrepro("cvae", "--param", "wn", "--param", "bn", "--maps", 1, "--maps", 2, "--maps", 3, "--scale", "quick")
    assert [(s.param, s.maps) for s in seen] == [("wn", (1, 2, 3)), ("bn", (1, 2, 3))]


def test_its_learning_rates_and_label_are_its_class_s(mine):
    (param,) = custom.params([mine("    label = 'mine'\n    lr = {'draw': 0.5, 'cifar': 0.25}\n")])
    assert scale_settings("draw", "quick", param).lr == 0.5 and scale_settings("cifar", "paper", param).lr == 0.25
    assert scale_settings("dqn", "paper", param).lr == scale_settings("dqn", "paper", "wn").lr == 0.0003
    assert about(param).entry("cvae") == {
        "class": "Mine",
        "label": "mine",
        "lr": None,
        "sha256": about(param).source.sha256,
    }


@pytest.mark.parametrize("scale", ["paper", "short", "quick"])
def test_its_runs_of_the_grid_are_those_of_wn_without_variants(scale, mine):
    (own,) = custom.params([mine(MEAN)])
    variants = {"g_exp": None, "v_norm_max": None, "g_start": None, "polyak_epochs": None}
    of_wn = [
        dataclasses.replace(run.settings, param=own)
        for run in planned(scale, ())
        if run.settings.param == "wn"
        and all(getattr(run.settings, name, None) in (None, 10.0) for name in variants)
        and (run.experiment != "cifar" or run.settings.polyak_epochs is None)
    ]
    runs = planned(scale, (), [own])
    assert {run.settings for run in runs} <= {*of_wn} and len(runs) >= 0.9 * len({*of_wn})
    assert not any(name.startswith("C") for run in runs for name in run.serves)
    both = planned(scale, ["figure3"], [*PARAMS, own])
    assert {run.settings.param for run in both} >= {"wn", "normal", own} and {run.experiment for run in both} == {
        "draw"
    }


def test_reproduce_takes_parameterizations(mine, wnrepro, tmp_path):
    words = ("reproduce", "draw", "--plan", "--json", "--scale", "quick", "--results", tmp_path / "results")
    code, printed, error = wnrepro(*words, "--param", f"normal,{mine(MEAN)}")
    assert code == 0, error
    folders = [Path(row["run"]).parent.name for row in json.loads(printed)["grid"]]
    assert len(folders) == 2 and folders[0] == "normal_lr0.001" and folders[1].startswith("Mine-")
    code, _, error = wnrepro("reproduce", "C15", *words[2:], "--param", "bn")
    assert code == 2 and "--param bn: nothing of C15 has it" in error


# ------------------------------------------------------------------------------- the generic init


@torch.no_grad()
def initialized_by_each_formula(layer: Parameterized, x: torch.Tensor) -> torch.Tensor:
    """The init pass as it was written for each of the paper's four: from t at v/‖v‖, g and b in closed form."""
    layer.initializing = False
    v = layer.masked(layer.v)
    t = layer.weighted_sum(x, v / unit_norm(v, layer.unit_dim), None)
    dims = layer.batch_dims(t)
    mean = t.mean(dims)
    std = (t - along(mean, t, layer.feature_dim)).square().mean(dims).sqrt()
    norm, statistics = layer.v_norm(), layer.norm.batch_statistics
    if not layer.norm.learns_g:
        layer.set_g(1 / (norm * std))
        layer.norm.initialized(layer)
    elif layer.norm.after:
        layer.set_g((1 + BN_EPSILON / (norm * std).square()).sqrt())
        count = t.numel() // len(mean)
        layer.running_mean.copy_(mean * norm)
        layer.running_var.copy_((std * norm).square() * (count / (count - 1)))
    else:
        layer.set_g(1 / std)
        if statistics:
            layer.running_mean.copy_(mean / std)
    layer.b.zero_() if statistics else layer.b.copy_(-mean / std)
    return (t - along(mean, t, layer.feature_dim)) / along(std, t, layer.feature_dim)


@pytest.mark.parametrize("param", PARAMS)
def test_the_generic_init_trains_as_each_formula_did(param, monkeypatch):
    """1e-5 over 100 updates, in float64: what differs are last bits."""
    torch.set_default_dtype(torch.float64)
    try:
        found = []
        for formula in (False, True):
            if formula:
                monkeypatch.setattr(
                    Parameterized, "initialize", lambda layer, x, _: initialized_by_each_formula(layer, x)
                )
            torch.manual_seed(0)
            model = nn.Sequential(
                Conv2d(3, 8, 3, param, padding=1), nn.ELU(), Conv2d(8, 8, 3, param, stride=2), nn.ELU(), nn.Flatten(),
                Linear(72, 5, param),
            )  # fmt: skip
            draw = torch.Generator().manual_seed(1)
            data_dependent_init(model, torch.randn(50, 3, 7, 7, generator=draw) + 0.5)
            optimizer = torch.optim.Adam(model.parameters(), 0.003)
            for _ in range(100):
                x = torch.randn(20, 3, 7, 7, generator=draw) + 0.5
                loss = (model(x) - x.flatten(1)[:, :5].sin()).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            found.append(
                [loss.detach(), *(value for _, layer in layers(model) for value in layer.state_dict().values())]
            )
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_examples_are_short():
    for text in EXAMPLES.values():
        lines = Path(text.split(":")[0]).read_text().splitlines()
        assert len([line for line in lines if line.strip()]) <= 30

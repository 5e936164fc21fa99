"""Measured numbers of pages: read from runs and benchmarks as their expressions name them, or one clear sentence."""

import shutil
from pathlib import Path

import jinja2
import pytest
from factories import make_bench, make_run

from wnrepro.errors import UserError
from wnrepro.report import layout, measured
from wnrepro.report.measured import Measured, pages
from wnrepro.results import load

WN, NORMAL = "short/cifar/wn_lr0.003", "short/cifar/normal_lr0.003"


@pytest.fixture
def made(tmp_path: Path, made_up_scale: None) -> Measured:
    """Two seeds of wn with test errors of 10 and 20 %, a diverged run of normal, a single run elsewhere, a session."""
    for seed in (1, 2):
        run = make_run(tmp_path, seed=seed, test_error=0.1 * seed)
    diverged = make_run(tmp_path, "normal", status="diverged", logged=2, lr=0.003)
    (diverged / "run.json").write_text('{"status": "diverged", "epoch": 2, "message": "median training loss 7.7 nats"}')
    shutil.copytree(run, tmp_path / "deviations" / "one")
    make_bench(tmp_path, name="here")
    return Measured(tmp_path, load(tmp_path, "short").bench)


def page(expression: str, made: Measured, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Render a page that consists of an expression."""
    (folder / "pages" / "sub").mkdir(parents=True)
    (folder / "pages" / "sub" / "page.md.jinja").write_text(f"{{{{ {expression} }}}}")
    templates = layout._templates()
    monkeypatch.setattr(templates, "loader", jinja2.FileSystemLoader(folder))
    monkeypatch.setattr(measured, "PAGES", folder / "pages")
    ((name, text),) = pages(made).items()
    assert name == "sub/page.md"
    return text.splitlines()[1]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (f"value('{WN}', 'test_error') | plain('.1f')", "15.0"),
        (f"value('{WN}/seed-2', 'test_error') | plain('.1f')", "20.0"),
        ("value('deviations/one', 'lr', epoch=1)", "0.003"),
        (f"values('{WN}', 'test_error').max() | plain('.1f')", "20.0"),
        (f"apart('{WN}/seed-1', '{WN}/seed-2', 'lr')", "0.0"),
        (f"n('{WN}'), n('{NORMAL}', 'deviations/one')", "(2, 1)"),
        (f"diverged('{NORMAL}'), diverged('{WN}')", "(1, 0)"),
        (f"median_loss('{NORMAL}/seed-1')", "7.7"),
        ("bench('here', 'cifar').ratios['wn / normal'] | within(1) is string", "True"),
    ],
)
def test_expressions_read_the_published_files(
    made: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str, text: str
) -> None:
    assert page(expression, made, tmp_path, monkeypatch) == text


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("value('short/cifar/none', 'test_error')", "short/cifar/none"),
        ("curve('deviations/none', 'test_error')", "deviations/none/metrics.csv"),
        (f"value('{WN}', 'none')", "one column none"),
        (f"value('{WN}', 'test_error', epoch=1000)", "epoch 1000"),
        (f"n('{WN}', '{NORMAL}')", NORMAL),
        (f"median_loss('{WN}/seed-1')", "run.json"),
        ("bench('none', 'cifar')", "none.json"),
        ("bench('here', 'dqn')", "dqn"),
        ("bench('here', 'cifar').ratios['none'] | within(1)", "none"),
        ("seconds('here', 'cifar', 'none')", "none"),
        ("none_such('here')", "none_such"),
    ],
)
def test_what_is_missing_is_named_in_a_sentence(
    made: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str, names: str
) -> None:
    with pytest.raises(UserError, match=r"^.*sub/page\.md\.jinja: .*$") as error:
        page(expression, made, tmp_path, monkeypatch)
    assert names in str(error.value)

"""Results folders of made-up runs, which the tests of the report share; `--write-golden` is in ../conftest.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from factories import leave_unrendered, make_everything, make_hostile, make_media, set_scale_short

from wnrepro.results import Results, load


@pytest.fixture
def not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`leave_unrendered`."""
    leave_unrendered(monkeypatch)


def made(results: Path, *makers: Callable[[Path], object]) -> Path:
    """The results folder that these have filled, at the scale short of the tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        for make in makers:
            make(results)
    return results


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of `make_everything`."""
    return made(tmp_path_factory.mktemp("everything"), make_everything, make_media)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of `make_hostile`."""
    return made(tmp_path_factory.mktemp("hostile"), make_hostile)


@pytest.fixture(scope="session")
def read(everything: Path) -> Results:
    """`everything`, read from its files."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        results = load(everything, "short")
        assert results.published and results.parts
        assert all(
            run.defaults for run in (*results.runs, *results.published.runs)
        )  # kept, whatever the scale is later
        return results

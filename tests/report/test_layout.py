"""How the report is laid out: hostile text stays text in Markdown and HTML, and images fit the page."""

import base64
from pathlib import Path

import pytest
from factories import ADDRESSES, HOSTILE, SHOWN, Parsed, make_vae, shown_by_github
from hypothesis import given
from hypothesis import strategies as st

from wnrepro.report import layout, live_page, write_report
from wnrepro.report.layout import MEDIA, literal, media, page, short
from wnrepro.results import load

pytestmark = pytest.mark.usefixtures("made_up_scale")


@pytest.mark.usefixtures("not_rendered")
def test_markdown_shows_hostile_text_as_text(hostile: Path) -> None:
    parsed = shown_by_github(write_report(hostile, "short")[0].read_text())
    own = {"h1", "h2", "h3", "p", "em", "strong", "code", "a", "img", "ul", "li"}
    assert {tag for tag, _ in parsed.tags} <= own | {"table", "thead", "tbody", "tr", "th", "td"}
    links = [str(attributes[name]) for _, attributes in parsed.tags for name in ("href", "src") if name in attributes]
    assert len(links) > 3 and all(link.startswith("figures/") and link[-4:] in (".png", ".pdf") for link in links)
    for text in (HOSTILE.strip(), ADDRESSES.replace("@", "@\u2060"), " ".join(SHOWN.split())):
        assert text in parsed.text


@pytest.mark.usefixtures("text_only")
@pytest.mark.parametrize("name", ["everything", "hostile"])
def test_the_page_names_nothing_outside_itself(request: pytest.FixtureRequest, name: str) -> None:
    parsed = Parsed(live_page("", request.getfixturevalue(name), "short"))
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == tags.count("style") == tags.count("h1") == 1 and "link" not in tags
    for tag, attributes in parsed.tags:
        assert str(attributes.get("src", "data:image/")).startswith("data:image/"), tag
        assert str(attributes.get("href", "#")).startswith(("#", "./")), tag
        assert not {"style", "srcset", "action"} & attributes.keys() and not any(key[:2] == "on" for key in attributes)
    assert [attributes["lang"] for tag, attributes in parsed.tags if tag == "html"] == ["en"]
    assert name == "everything" or HOSTILE.strip() in parsed.text


@given(st.text(max_size=40))
def test_literal_text_is_shown_as_itself(text: str) -> None:
    parsed = shown_by_github(f"| a |\n| --- |\n| x {literal(text)} x |\n")
    assert {tag for tag, _ in parsed.tags} == {"table", "thead", "tbody", "tr", "th", "td"}


def test_a_long_finding_is_cut_at_a_clause() -> None:
    measured = f"wn +7.6 % (seed 1; lr 0.003); bn of Xeon(R) {'x' * 90}; the rest"
    assert short(measured) == "wn +7.6 %; …" and short("one; two (n = 1)") == "one; two"


def test_what_models_draw_is_shown_as_far_as_it_fits(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = media(load(everything, "short"))
    assert [one.experiment for one in found] == ["draw", "dqn", "cvae", "cvae"]  # the most telling first
    monkeypatch.setattr(layout, "render", lambda *_, media, **__: "x" * 10 + "".join(one.uri for one in media))
    monkeypatch.setattr(layout, "media", lambda results: found)
    monkeypatch.setattr(layout, "LARGEST", 20 + 1000 + len(found[0].uri))
    report = type("Report", (), {"results": None})()
    assert page(report) == "x" * 10 + found[0].uri


def test_what_is_no_image_is_not_shown(tmp_path: Path) -> None:
    run, other = make_vae(tmp_path), make_vae(tmp_path, "bn")
    (run / "samples.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "outside.png").write_bytes(b"\x89PNG")
    (other / "samples.png").symlink_to(tmp_path / "outside.png")
    (run / "game.gif").mkdir()
    assert media(load(tmp_path, "short")) == []
    (run / "samples.png").write_bytes(b"\x89PNG...")
    (one,) = media(load(tmp_path, "short"))
    assert one.uri == "data:image/png;base64," + base64.b64encode(b"\x89PNG...").decode()
    assert {*MEDIA} == {"samples.png", "reconstructions.png", "drawing.gif", "game.gif"}

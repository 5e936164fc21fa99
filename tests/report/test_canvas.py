"""What a figure is drawn on: its files for print, and its panels as a page has them, read as XML."""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import matplotlib
import pytest
from PIL import Image

from wnrepro.report import canvas, declared, figures
from wnrepro.report.canvas import PRINT, STYLE, Drawn, Sheet
from wnrepro.report.claims import findings
from wnrepro.results import Results

ELEMENTS = {"svg", "g", "defs", "clipPath", "rect", "path", "use", "text", "tspan", "image"}
ATTRIBUTES = {"viewBox", "aria-label", "aria-hidden", "role", "tabindex", "id", "href", "clip-path", "d", "transform"}
ATTRIBUTES |= {"x", "y", "x1", "x2", "y1", "y2", "width", "height", "fill", "opacity", "fill-opacity", "text-anchor"}
ATTRIBUTES |= {"class", "data-group", "data-param", "data-name", "data-at", "data-words", "font-size"}
ATTRIBUTES |= {f"stroke{more}" for more in ("", "-width", "-opacity", "-linecap", "-linejoin", "-dasharray")}
ATTRIBUTES |= {"stroke-dashoffset", "stroke-miterlimit"}
DRAWN = ("figure2", "init", "overview")  # of all kinds of axes and marks


@pytest.fixture(scope="module")
def drawn(read: Results) -> dict[str, Drawn]:
    """Some figures as the page has them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(declared, "FIGURES", {name: declared.FIGURES[name] for name in DRAWN})
        return figures.draw(read, findings(read), printed=False)


@pytest.fixture(autouse=True)
def styled() -> Iterator[None]:
    with matplotlib.rc_context(fname=STYLE):
        yield


def every(drawn: dict[str, Drawn]) -> list[tuple[str, ET.Element]]:
    """All panels and legend lines, by the prefix that their ids have."""
    panels = [(f"{name}-{i}-", panel) for name, one in drawn.items() for i, panel in enumerate(one.panels)]
    panels += [(f"{name}-key-{i}-", key[1]) for name, one in drawn.items() for i, key in enumerate(one.keys)]
    return [(prefix, ET.fromstring(text)) for prefix, text in panels]


def curves(name: str, results: Results, split: bool = True) -> Sheet:
    sheet = figures.curves(name, results, split=split)
    assert sheet is not None
    return sheet


def test_a_panel_has_nothing_that_acts_or_styles(drawn: dict[str, Drawn]) -> None:
    seen: set[str] = set()
    for prefix, root in every(drawn):
        assert {element.tag for element in root.iter()} <= ELEMENTS, prefix  # no style, no script, no namespace
        names = {name for element in root.iter() for name in element.attrib}
        assert names <= ATTRIBUTES, (prefix, names - ATTRIBUTES)  # no style, no handler of an event
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert all(id.startswith(prefix) for id in ids) and not seen & {*ids} and len(ids) == len({*ids})
        seen |= {*ids}
        used = {
            value for element in root.iter() for value in element.attrib.values() if value.startswith(("#", "url("))
        }
        assert {value.strip("url(#)") for value in used} <= {*ids}
    for one in drawn.values():
        for text in [*one.panels, *(key[1] for key in one.keys)]:
            assert not re.search("nan|inf", text) and "xmlns" not in text and not re.search(r"<\w+:|\s\w+:\w+=", text)


def test_a_panel_of_many_lines_holds_them_as_pixels(read: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "MANY", 2)
    images = [*ET.fromstring(curves("figure3", read).panels("p", "What is drawn.")[0]).iter("image")]
    assert images and all(image.attrib["href"].startswith("data:image/png;base64,") for image in images)


def test_a_dark_image_keeps_hues() -> None:
    light, buffer = Image.new("RGB", (5, 1)), io.BytesIO()
    for x, colour in enumerate(((255, 255, 255), (0, 0, 0), (128, 128, 128), (0, 114, 178), (221, 221, 221))):
        light.putpixel((x, 0), colour)
    light.save(buffer, "PNG")
    with Image.open(io.BytesIO(canvas.dark(buffer.getvalue()))) as dark:
        white, black, grey, blue, grid = (dark.getpixel((x, 0)) for x in range(5))
    assert (white, black) == (canvas.NIGHT, (255, 255, 255)) and blue[0] < blue[1] < blue[2] and max(grid) < 60
    assert 110 < min(grey) < max(grey) < 150 < min(blue[1:])


def test_files_for_print(read: Results) -> None:
    def made() -> dict[str, bytes]:
        with matplotlib.rc_context(PRINT):
            return curves("kl_steps", read, split=False).files()

    first = made()
    assert first == made() and set(first) == {"png", "pdf"} and first["png"].startswith(b"\x89PNG")
    assert first["pdf"].startswith(b"%PDF-") and b"CreationDate" not in first["pdf"]
    assert b"/FontFile2" in first["pdf"] and b"/Type3" not in first["pdf"]  # text that can be selected and edited

"""What a figure is drawn on: its files for print, and its panels as a page has them, read as XML."""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from factories import HOSTILE, edit, make_draw

from wnrepro.report import canvas, declared, figures
from wnrepro.report.canvas import LOOKS, PRINT, SIGNS, STYLE, STYLES, VARIABLES, Drawn, Key, Sheet
from wnrepro.report.claims import findings
from wnrepro.results import Results, load
from wnrepro.settings import PARAMS

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


def panels(sheet: Sheet, caption: str = "What is drawn.") -> list[str]:
    return sheet.panels("p", caption)


def curves(name: str, results: Results, split: bool = True) -> Sheet:
    sheet = figures.curves(name, results, split=split)
    assert sheet is not None
    return sheet


def test_one_colour_line_and_marker_a_parameterization() -> None:
    others = [f"x{i}" for i in range(13)]
    looks = canvas.looks({name: "same" for name in (*PARAMS, *others)})
    assert [looks[param][3:] for param in PARAMS] == [look[3:] for look in LOOKS.values()] == STYLES[:4]
    assert [look.place for look in looks.values()] == list(range(17))
    for of in zip(*(looks[name][3:] for name in (*PARAMS, *others[:6])), strict=True):
        assert len(set(of)) == 10 and not {*of} & SIGNS.keys()
    assert looks["x6"][3:] == looks["x12"][3:] == looks["x0"][3:]


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
            assert "xmlns" not in text and not re.search(r"<\w+:|\s\w+:\w+=", text)


def test_colours_are_the_pages_variables() -> None:
    sheet = Sheet([""], split=True)
    colours = [*(colour for colour, _, _ in STYLES), canvas.AXIS, canvas.GREY, canvas.GRID, canvas.PAPER]
    for i, colour in enumerate(colours):
        sheet.axes[0].plot([0, 1], [i, i], color=colour)
        sheet.axes[0].plot(0.5, i + 0.5, marker="o", color=colour, alpha=0.5)
    (text,) = panels(sheet)
    assert all(text.count(f'stroke="{variable}"') >= 2 for variable in VARIABLES.values())
    assert len(VARIABLES) == 14 and not any(colour in text.lower() for colour in VARIABLES)


def test_text_is_text_and_a_panel_says_its_caption_aloud(drawn: dict[str, Drawn]) -> None:
    texts = {element.text for element in ET.fromstring(drawn["figure2"].panels[0]).iter("text")}
    assert {"MNIST", "test bound (nats)", "epoch (60\u2009000 training images each)", "−84"} <= texts
    assert not [text for text in texts if re.search(r"(?<!\w)-\d", str(text))]  # true minus signs
    for prefix, root in every(drawn):
        assert all(element.tail is None for element in root.iter())
        is_key = "-key-" in prefix
        said = [root.get(name) for name in ("role", "tabindex", "aria-hidden")]
        assert said == ([None, None, "true"] if is_key else ["img", "0", None])
        assert is_key or str(root.get("aria-label")).endswith(drawn[prefix.split("-")[0]].caption)
        assert re.fullmatch(r"0 0 [\d.]+ [\d.]+", root.attrib["viewBox"])
    assert canvas.ticks(100, " %", "+g")(-0.02) == "−2 %" and canvas.powers()(1e-9) == "10⁻⁹"


def vertices(element: ET.Element) -> np.ndarray:
    """Of a mark: where its paths turn, and where its markers stand."""
    found = []
    for part in element.iter():
        if part.tag == "use":
            found.append((float(part.attrib["x"]), float(part.attrib["y"])))
        elif part.tag == "path" and "id" not in part.attrib:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", part.attrib["d"])]
            found += [*zip(numbers[::2], numbers[1::2], strict=True)]
    return np.array(found)


def test_what_a_mark_says_lies_where_it_is_drawn_and_is_the_runs_number(drawn: dict[str, Drawn], read: Results) -> None:
    said, runs = 0, {run.name: run for run in read.runs}
    for prefix, root in every(drawn):
        sizes = [float(number) for number in root.attrib["viewBox"].split()[2:]]
        for mark in (element for element in root.iter() if "data-at" in element.attrib):
            at = np.array([*map(float, mark.attrib["data-at"].split(" "))]).reshape(-1, 2)
            words = mark.attrib["data-words"].split("|")
            assert len(at) == len(words) and all(words) and mark.attrib["data-name"] and mark.attrib["data-param"]
            assert (at >= 0).all() and (at <= sizes).all()
            distances = np.abs(at[:, None] - vertices(mark)[None]).max(axis=2).min(axis=1)
            assert distances.max() < 0.06, (prefix, mark.attrib["data-name"])
            if prefix == "figure2-1-" and mark.attrib["class"] == "mark seed":
                metrics = runs[mark.attrib["data-name"]].metrics.set_index("epoch")["test_bits_per_dim"]
                assert words == [f"epoch {epoch}: {metrics[epoch]:.3f} bits" for epoch in range(2, 7)]  # 1 is cut off
            said += len(at)
    assert said > 300


@pytest.mark.usefixtures("made_up_scale")
def test_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = make_draw(tmp_path)
    edit(folder / "metrics.csv", "5,60.5,-103.5,-104.0", "5,60.5,-103.5,nan")
    edit(folder / "metrics.csv", "6,60.5,-99.5,-100.0", "6,60.5,-99.5,inf")
    (text,) = panels(curves("figure3", load(tmp_path, "short")))
    (mark,) = [element for element in ET.fromstring(text).iter("g") if "data-at" in element.attrib]
    words = mark.attrib["data-words"].split("|")
    assert [word.partition(":")[0] for word in words] == [f"epoch {epoch}" for epoch in (2, 3, 4, 7, 8, 9, 10)]
    paths = " ".join(path.attrib["d"] for path in mark.iter("path"))
    assert not re.search("nan|inf", text) and len(re.findall("M", paths)) >= 2  # a gap


def test_labels_are_text_whatever_they_hold() -> None:
    sheet = Sheet([HOSTILE], split=True)
    (axes,) = sheet.axes
    (line,) = axes.plot([1, 2], [3, 4], label=HOSTILE, gid=HOSTILE)
    sheet.mark(line, HOSTILE, HOSTILE, True, HOSTILE, points=[(1, 3, HOSTILE), (2, np.nan, "none"), (2, 4, "b")])
    axes.set_title(HOSTILE, parse_math=False)
    axes.text(1, 3, HOSTILE, parse_math=False, in_layout=False)
    sheet.legend()
    key = canvas.key_svg(sheet.keys[0], "key")
    (text,) = panels(sheet, caption=f"{HOSTILE} `code`")
    root = ET.fromstring(text)
    assert "<script" not in text + key and {element.tag for element in root.iter()} <= ELEMENTS
    assert {name for element in root.iter() for name in element.attrib} <= ATTRIBUTES
    (mark,) = [element for element in root.iter() if "class" in element.attrib]
    assert [mark.attrib[f"data-{name}"] for name in ("group", "param", "name")] == [HOSTILE] * 3
    assert mark.attrib["data-words"].split("|") == [HOSTILE.replace("|", "¦"), "b"]
    assert root.attrib["aria-label"] == f"{HOSTILE}. {HOSTILE} code".replace("`", "")
    assert [element.text for element in root.iter("text")].count(HOSTILE) == 2
    assert sheet.keys == [Key(HOSTILE, sheet.keys[0].line, HOSTILE)]


def test_a_panel_of_many_lines_holds_them_as_pixels(read: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "MANY", 2)
    (text,) = panels(curves("figure3", read))
    images = [*ET.fromstring(text).iter("image")]
    assert images and all(image.attrib["href"].startswith("data:image/png;base64,") for image in images)


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png[12:16] == b"IHDR"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_files_for_print(read: Results) -> None:
    def made() -> tuple[Sheet, dict[str, bytes]]:
        with matplotlib.rc_context(PRINT):
            sheet = curves("kl_steps", read, split=False)
            return sheet, sheet.files()

    (sheet, first), (_, second) = made(), made()
    assert first == second and set(first) == {"png", "pdf"} and len(sheet.figures[0].legends) == 1
    assert size(first["png"]) == (round(300 * 3.3), pytest.approx(300 * sheet.figures[0].get_figheight(), abs=1))
    pdf = first["pdf"]
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF") and b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # text that can be selected and edited
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]

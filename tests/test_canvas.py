"""What a figure is drawn on: its files for print, and its panels as a page has them, read as XML."""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from factories import (
    edit,
    make_all,
    make_draw,
    make_draws,
    make_vaes,
    set_scale_short,
)

from wnrepro.report import canvas, figures
from wnrepro.report.canvas import PRINT, STYLE, STYLES, VARIABLES, Drawn, Key, Sheet
from wnrepro.report.claims import findings
from wnrepro.results import Results, load

ELEMENTS = {"svg", "g", "defs", "clipPath", "rect", "path", "use", "text", "tspan", "image"}
ATTRIBUTES = {"viewBox", "aria-label", "aria-hidden", "role", "tabindex", "id", "href", "clip-path", "d", "transform"}
ATTRIBUTES |= {"x", "y", "x1", "x2", "y1", "y2", "width", "height", "fill", "opacity", "fill-opacity", "text-anchor"}
ATTRIBUTES |= {"class", "data-group", "data-param", "data-name", "data-at", "data-words", "font-size"}
ATTRIBUTES |= {f"stroke{more}" for more in ("", "-width", "-opacity", "-linecap", "-linejoin", "-dasharray")}
ATTRIBUTES |= {"stroke-dashoffset", "stroke-miterlimit"}
DRAWN = ("figure2", "learning_rates", "init", "step_time", "overview")  # of all kinds of axes and marks
HOSTILE = "</text><script>alert(1)</script>\" onload='x()' &amp; | $\\frac{$ javascript:x"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        make_all(folder)
        make_vaes(folder)
        make_draws(folder)
        yield load(folder, "short")


@pytest.fixture(scope="module")
def drawn(results: Results) -> dict[str, Drawn]:
    """Some figures as the report has them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(figures, "CAPTIONS", {name: figures.CAPTIONS[name] for name in DRAWN})
        return figures.draw(results, findings(results))


def every(drawn: dict[str, Drawn]) -> list[tuple[str, ET.Element]]:
    """All panels and legend lines, by the prefix that their ids have."""
    panels = [(f"{name}-{i}-", panel) for name, one in drawn.items() for i, panel in enumerate(one.panels)]
    panels += [(f"{name}-key-{i}-", key[1]) for name, one in drawn.items() for i, key in enumerate(one.keys)]
    return [(prefix, ET.fromstring(text)) for prefix, text in panels]


def made(name: str, results: Results, split: bool = True) -> Sheet:
    with matplotlib.rc_context(fname=STYLE):
        sheet = figures.sheets(name, results, {}, split=split)
    assert sheet is not None
    return sheet


def panels(sheet: Sheet, prefix: str = "p", caption: str = "What is drawn.") -> list[str]:
    with matplotlib.rc_context(fname=STYLE):
        return sheet.panels(prefix, caption)


def test_a_panel_has_nothing_that_acts_or_styles(drawn: dict[str, Drawn]) -> None:
    assert [len(drawn[name].panels) for name in DRAWN] == [3, 2, 3, 3, 4]
    for prefix, root in every(drawn):
        assert {element.tag for element in root.iter()} <= ELEMENTS, prefix  # no style, no script, no namespace
        names = {name for element in root.iter() for name in element.attrib}
        assert names <= ATTRIBUTES, (prefix, names - ATTRIBUTES)  # no style, no handler of an event
        assert {element.get("href", "#")[0] for element in root.iter()} == {"#"}
    for one in drawn.values():
        for text in [*one.panels, *(key[1] for key in one.keys)]:
            assert "xmlns" not in text and not re.search(r"<\w+:|\s\w+:\w+=", text)


def test_ids_are_a_figures_own_and_all_that_is_named_is_there(drawn: dict[str, Drawn]) -> None:
    seen: set[str] = set()
    for prefix, root in every(drawn):
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert all(id.startswith(prefix) for id in ids), prefix
        assert len(set(ids)) == len(ids) and not seen & {*ids}
        seen |= {*ids}
        values = [value for element in root.iter() for value in element.attrib.values()]
        named = [element.attrib["href"][1:] for element in root.iter() if "href" in element.attrib]
        named += [name for value in values for name in re.findall(r"^url\(#(.*)\)$", value)]
        assert {*named} <= {*ids} and not any("url(" in re.sub(r"^url\(#.*\)$", "", value) for value in values)
    assert len(seen) > 50


def test_colours_are_the_pages_variables(drawn: dict[str, Drawn]) -> None:
    assert [VARIABLES[colour.lower()] for colour, _, _ in STYLES] == [f"var(--k{i})" for i in range(10)]
    colours = {
        value
        for _, root in every(drawn)
        for element in root.iter()
        for name, value in element.attrib.items()
        if name in ("fill", "stroke")
    }
    assert {f"var(--k{i})" for i in range(4)} | {"var(--axis)", "var(--rule)", "var(--grid)"} <= colours
    assert colours - {*VARIABLES.values()} <= {"none"}
    assert not any(colour in text.lower() for one in drawn.values() for text in one.panels for colour in VARIABLES)


def test_all_ten_colours_and_the_greys_are_variables() -> None:
    with matplotlib.rc_context(fname=STYLE):
        sheet = Sheet([""], split=True)
        colours = [*(colour for colour, _, _ in STYLES), canvas.AXIS, canvas.GREY, canvas.GRID, canvas.PAPER]
        for i, colour in enumerate(colours):
            sheet.axes[0].plot([0, 1], [i, i], color=colour)
            sheet.axes[0].plot(0.5, i + 0.5, marker="o", color=colour, alpha=0.5)
    (text,) = panels(sheet)
    assert all(text.count(f'stroke="{variable}"') >= 2 for variable in VARIABLES.values())
    assert len(VARIABLES) == 14 and not any(colour in text.lower() for colour in VARIABLES)


def test_text_is_text_and_is_said_once(results: Results, drawn: dict[str, Drawn]) -> None:
    root = ET.fromstring(drawn["figure2"].panels[0])
    texts = [element.text for element in root.iter("text")]
    assert {"MNIST", "test bound (nats)", "epoch (60\u2009000 training images each)", "−84"} <= {*texts}
    assert len(texts) == len({*texts}) + (texts.count("0") == 2)
    for _, one in every(drawn):
        assert all(element.tail is None for element in one.iter())
        assert all(element.text is None for element in one.iter() if element.tag not in ("text", "tspan"))
    first, second = (ET.fromstring(drawn["init"].panels[i]) for i in (0, 1))
    for one in (first, second):  # on the page each has its rows' names
        assert {"cifar", "cvae mnist", "cvae cifar10"} <= {element.text for element in one.iter("text")}


def test_a_panel_says_its_title_and_the_caption_aloud(drawn: dict[str, Drawn]) -> None:
    caption = drawn["figure2"].caption
    labels = [ET.fromstring(panel).attrib["aria-label"] for panel in drawn["figure2"].panels]
    assert labels == [f"{title}. {caption}" for title in ("MNIST", "CIFAR-10", "MNIST: wn − normal")]
    assert caption.startswith(figures.CAPTIONS["figure2"])
    for prefix, root in every(drawn):
        about = {name: root.get(name) for name in ("role", "tabindex", "aria-hidden")}
        is_key = "-key-" in prefix
        assert about == {"role": None if is_key else "img", "tabindex": None if is_key else "0"} | {
            "aria-hidden": "true" if is_key else None
        }
        assert re.fullmatch(r"0 0 [\d.]+ [\d.]+", root.attrib["viewBox"])


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


def test_what_a_mark_says_lies_where_it_is_drawn(drawn: dict[str, Drawn]) -> None:
    said = 0
    for prefix, root in every(drawn):
        sizes = [float(number) for number in root.attrib["viewBox"].split()[2:]]
        for mark in (element for element in root.iter() if "class" in element.attrib):
            assert mark.attrib["class"] in ("mark", "mark seed") and mark.attrib["data-param"]
            if "data-at" not in mark.attrib:
                assert "data-words" not in mark.attrib and "data-name" not in mark.attrib
                continue
            at = np.array([*map(float, mark.attrib["data-at"].split(" "))]).reshape(-1, 2)
            words = mark.attrib["data-words"].split("|")
            assert len(at) == len(words) and all(words) and mark.attrib["data-name"]
            assert (at >= 0).all() and (at <= sizes).all()
            distances = np.abs(at[:, None] - vertices(mark)[None]).max(axis=2).min(axis=1)
            assert distances.max() < 0.06, (prefix, mark.attrib["data-name"])
            said += len(at)
    assert said > 500


def test_a_run_that_diverged_says_so_where_it_is_drawn(drawn: dict[str, Drawn]) -> None:
    for panel in drawn["learning_rates"].panels:
        marks = {element.get("data-words", ""): element for element in ET.fromstring(panel).iter("g")}
        (words,) = [words for words in marks if "diverged" in words]
        assert words == "lr 0.003, seed 1, diverged|lr 0.01, seed 1, diverged"
        heights = {float(y) for y in marks[words].attrib["data-at"].split()[1::2]}
        others = [
            float(y) for words, mark in marks.items() if ": " in words for y in mark.attrib["data-at"].split()[1::2]
        ]
        assert len(heights) == 1 and max(heights) < min(others)  # above them


def test_the_words_are_the_runs_numbers(results: Results, drawn: dict[str, Drawn]) -> None:
    runs = {run.name: run for run in results.runs}
    root, seeds = ET.fromstring(drawn["figure2"].panels[1]), []
    for mark in root.iter("g"):
        if mark.get("class") == "mark seed" and "data-words" in mark.attrib:
            metrics = runs[mark.attrib["data-name"]].metrics.set_index("epoch")["test_bits_per_dim"]
            words = mark.attrib["data-words"].split("|")
            seeds.append(mark.attrib["data-name"])
            assert words == [f"epoch {epoch}: {metrics[epoch]:.3f} bits" for epoch in range(2, 7)]  # 1 is cut off
    assert seeds == [f"cvae/cifar10_{p}_lr0.002/seed-{i}" for p in ("normal", "wn") for i in (1, 2, 3)]
    groups = {mark.attrib["data-group"] for mark in root.iter("g") if "class" in mark.attrib}
    assert groups <= {group for _, _, group in drawn["figure2"].keys if group}


def test_signs_at_axes_are_true_minus_signs(results: Results, drawn: dict[str, Drawn]) -> None:
    texts = [str(element.text) for _, root in every(drawn) for element in root.iter("text")]
    assert {"−84", "10⁻⁶"} <= {*texts} and not [text for text in texts if re.search(r"(?<!\w)-\d", text)]
    with matplotlib.rc_context(fname=STYLE):
        sheet = made("figure2", results, split=False)
        sheet.figures[0].draw_without_rendering()
    labels = [label.get_text() for axes in sheet.axes for label in (*axes.get_yticklabels(), *axes.get_xticklabels())]
    assert "−84" in labels and not [label for label in labels if "-" in label]
    assert canvas.ticks()(-0.5) == "−0.5" and canvas.ticks(100, " %", "+g")(-0.02) == "−2 %"
    assert canvas.powers()(1e-9) == "10⁻⁹" and canvas.powers()(1) == "10⁰"


def test_points_that_are_not_finite_are_left_out(tmp_path: Path, made_up_short: None) -> None:
    folder = make_draw(tmp_path)
    edit(folder / "metrics.csv", "5,60.5,-103.5,-104.0", "5,60.5,-103.5,nan")
    edit(folder / "metrics.csv", "6,60.5,-99.5,-100.0", "6,60.5,-99.5,inf")
    (text,) = panels(made("figure3", load(tmp_path, "short")))
    (mark,) = [element for element in ET.fromstring(text).iter("g") if "data-at" in element.attrib]
    words = mark.attrib["data-words"].split("|")
    assert [word.partition(":")[0] for word in words] == [f"epoch {epoch}" for epoch in (2, 3, 4, 7, 8, 9, 10)]
    assert len(mark.attrib["data-at"].split()) == 2 * len(words)
    paths = " ".join(path.attrib["d"] for path in mark.iter("path"))
    assert not re.search("nan|inf", text) and len(re.findall("M", paths)) >= 2  # a gap


@pytest.fixture
def made_up_short(monkeypatch: pytest.MonkeyPatch) -> None:
    set_scale_short(monkeypatch)


def test_labels_are_text_whatever_they_hold() -> None:
    with matplotlib.rc_context(fname=STYLE):
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
    assert root.attrib["aria-label"] == f"{HOSTILE}. {HOSTILE} code"
    assert [element.text for element in root.iter("text")].count(HOSTILE) == 2
    assert sheet.keys == [Key(HOSTILE, sheet.keys[0].line, HOSTILE)]


def test_a_panel_of_many_lines_holds_them_as_pixels(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MANY", 2)
    (text,) = panels(made("figure3", results))
    root = ET.fromstring(text)
    images = [*root.iter("image")]
    assert images and all(image.attrib["href"].startswith("data:image/png;base64,") for image in images)
    assert not [path for path in root.iter("path") if path.get("d", "").count("L") == 9 and path.get("opacity")]
    assert {element.tag for element in root.iter()} <= ELEMENTS
    assert {name for element in root.iter() for name in element.attrib} <= ATTRIBUTES


def test_panels_are_the_same_twice(results: Results) -> None:
    first, second = (panels(made("figure2", results)) for _ in (1, 2))
    assert first == second and len(first) == 3
    with matplotlib.rc_context(fname=STYLE):
        keys = [[canvas.key_svg(key, "k") for key in made("figure2", results).keys] for _ in (1, 2)]
    assert keys[0] == keys[1]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png[12:16] == b"IHDR"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize(("name", "inches"), [("figure3", 3.3), ("learning_rates", 6.8)])
def test_files_for_print(results: Results, name: str, inches: float) -> None:
    def files() -> tuple[Sheet, dict[str, bytes]]:
        with (
            matplotlib.rc_context(fname=STYLE),
            matplotlib.rc_context(PRINT),
        ):
            sheet = figures.sheets(name, results, {})
            assert sheet is not None
            return sheet, sheet.files()

    (sheet, first), (_, second) = files(), files()
    assert first == second and set(first) == {"png", "pdf"}
    wide, high = size(first["png"])
    assert sheet.width == inches and wide == round(300 * inches)
    assert high == pytest.approx(300 * sheet.figures[0].get_figheight(), abs=1)
    at = first["png"].index(b"pHYs") + 4
    assert struct.unpack(">IIB", first["png"][at : at + 9]) == (11811, 11811, 1)  # a metre's, at 300 an inch
    pdf = first["pdf"]
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF") and b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # text that can be selected and edited
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) [\d.]+ \]", pdf)
    assert float(box) == pytest.approx(72 * inches)


def test_print_has_the_pages_style_and_its_own_font(drawn: dict[str, Drawn], results: Results) -> None:
    assert {size(one.files["png"])[0] for one in drawn.values()} == {2040}
    assert all(b"/FontFile2" in one.files["pdf"] and b"/Type3" not in one.files["pdf"] for one in drawn.values())
    seen = []

    def files(sheet: Sheet) -> dict[str, bytes]:
        params = matplotlib.rcParams
        legend, (axes, *_) = sheet.figures[0].legends[0], sheet.axes
        seen.append((params["font.family"][0], legend.get_frame_on(), axes.spines["top"].get_visible()))
        return {}

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(figures, "CAPTIONS", {"figure3": figures.CAPTIONS["figure3"]})
        monkeypatch.setattr(Sheet, "files", files)
        monkeypatch.setattr(Sheet, "panels", lambda *given: seen.append(matplotlib.rcParams["font.family"][0]) or [])
        before = {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}
        figures.draw(results, {})
        assert {name: matplotlib.rcParams[name] for name in before} == before
    assert seen == ["DejaVu Sans", ("STIXGeneral", False, False)]


def test_sizes_and_places_of_sheets() -> None:
    assert Sheet(["a"]).width == 3.3 and {Sheet([*"abcd"][:n]).width for n in (2, 3, 4)} == {6.8}
    assert Sheet(["a"], columns=2).width == 6.8 and Sheet(["a", "b"], columns=1).width == 6.8
    whole, split = Sheet(["a", "b", "c"]), Sheet(["a", "b", "c"], split=True)
    assert len(whole.figures) == 1 and len(split.figures) == 3
    assert [*whole.places] == [*split.places] == ["a", "b", "c"]
    for titles, part in (("ab", 1), ("abc", 0.8), ("abcd", 0.8)):  # more of them are smaller
        for figure in Sheet([*titles], split=True).figures:
            assert figure.get_size_inches() == pytest.approx([part * 3.2, part * 2.05])


def test_a_single_canvas_has_the_legend_in_print_alone(results: Results) -> None:
    whole, split = made("figure2", results, split=False), made("figure2", results)
    assert [key[::2] for key in whole.keys] == [key[::2] for key in split.keys]
    assert len(whole.figures[0].legends) == 1 and not any(figure.legends for figure in split.figures)

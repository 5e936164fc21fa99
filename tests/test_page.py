"""The report's page: in a headless browser, from file://, and as plain HTML."""

import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import make_all, make_bench, make_dqns, make_draws, make_run, make_vae, make_vaes, set_scale_short
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page, sync_playwright

from wnrepro.report import write_report
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.figures import caption
from wnrepro.report.layout import marked, numeric, short
from wnrepro.report.tables import SECTIONS
from wnrepro.results import load

HOSTILE = (
    """<script>window.pwned=1</script> "><img src=x onerror="window.pwned=2"> </td></table><b>&amp;</b> """
    """{{ 7 * 7 }} {% raw %} **bold** `code` [link](javascript:window.pwned=3) | ]]> $\\frac$ <!-- """
)
# What GitHub would make a link or an image of, too; no space at its end, and a name of a folder once it has no slash.
ADDRESSES = (
    """![i](http://evil.example/i.png) [l](//evil.example) [r][r] <http://evil.example> http://evil.example """
    """www.evil.example a@evil.example <a href=javascript:window.pwned=4>x</a> <javascript:alert(1)> &lt;img&gt; _e_"""
)
ESCAPES = "\x1b[31mred\x1b]0;title\x07 \x00 \u202eturned \u2028 two\nlines"
SHOWN = r"\x1b[31mred\x1b]0;title\x07 \x00 \u202eturned   two lines"  # ESCAPES, as text


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of runs of every experiment."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        make_all(results, seeds=(1, 2, 10))
        make_vaes(results)
        make_draws(results)
        make_dqns(results)
        return write_report(results, "short")[1]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of runs whose files say `HOSTILE`, `ADDRESSES` and `ESCAPES` wherever they may hold a text."""
    results = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        record = {
            "message": HOSTILE,
            "device_name": HOSTILE,
            "git": {"commit": HOSTILE[:7], "dirty": True},
            "versions": {"torch": HOSTILE, HOSTILE: HOSTILE},
            "config_hash": HOSTILE,  # does not fit: a problem, which the top of the page names
        }
        facts: dict[str, Any] = {HOSTILE: 1.5, "data": HOSTILE, "note": HOSTILE}
        name = HOSTILE.replace("/", "")
        run = make_run(results, status="failed", logged=2, record=record, facts=facts, data=name)
        assert "<script>" in run.parent.name
        add_to_config(run, {HOSTILE[:80]: HOSTILE, "old": [HOSTILE, 1]}, digest=ADDRESSES)
        for param in ("bn", "wn+mobn"):
            noisy = make_run(
                results, param, record={"message": ADDRESSES, "device_name": ADDRESSES, "device": ADDRESSES}
            )
            path = noisy / "noise.csv"
            path.write_text(path.read_text().replace("conv1", "<b>[l](//x.y)</b>"))
        record = {"message": ESCAPES, "device_name": ESCAPES, "config_hash": ESCAPES}
        make_run(results, "normal", record=record, data=ADDRESSES.replace("/", ""))
        make_vae(results, facts={"data": ADDRESSES, "importance_samples": 5, "log_likelihood_nats": -80.0})
        make_bench(results)
        path = results / "bench" / "cpu.json"
        bench = json.loads(path.read_text()) | {"device_name": HOSTILE}
        bench["cifar"]["ratios"][ADDRESSES] = bench["cifar"]["ratios"]["bn / normal"]
        path.write_text(json.dumps(bench))
        path.rename(path.with_name(f"{ADDRESSES.replace('/', '')}.json"))
        return write_report(results, "short")[1]


def add_to_config(run: Path, settings: dict[str, Any], digest: str) -> None:
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["settings"] |= settings
    path.write_text(json.dumps(config | {"hash": digest}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH: on Debian, apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield running
        running.close()


@pytest.fixture
def show(browser: Browser) -> Iterator[Any]:
    """Open a page, show(path, **context); in the end nothing may have gone wrong in it, nor anything been fetched."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, **context: Any) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if is_foreign(request.url) else None)
        page.goto(path.as_uri())
        return page

    def is_foreign(url: str) -> bool:
        return not url.startswith("data:") and not (url.startswith("file://") and url.endswith("/report.html"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def column(page: Page, title: str) -> list[str]:
    """The run table's cells under a heading, from top to bottom."""
    return page.evaluate(
        """title => {
          const table = document.querySelector("table.sortable");
          const i = Array.from(table.tHead.rows[0].cells, cell => cell.textContent).indexOf(title);
          return Array.from(table.tBodies[0].rows, row => row.cells[i].textContent);
        }""",
        title,
    )


def test_every_claim_has_a_verdict_its_details_and_its_figure(show: Any, report: Path) -> None:
    page = show(report)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        found = findings(load(report.parents[1], "short"))
    rows = page.locator(".summary tbody tr")
    assert rows.locator("th").all_text_contents() == [claim.id for claim in CLAIMS]
    assert rows.locator(".badge").all_text_contents() == [found[claim.id].verdict for claim in CLAIMS]
    checks, empirical = page.locator(".counts").all()
    assert checks.locator("li").all_text_contents() == ["3 reproduced"]
    assert sum(map(int, empirical.locator("b").all_text_contents())) == len(CLAIMS) - 3
    assert empirical.locator(".reproduced, .not-reproduced, .inconclusive").count() == 0
    grey = empirical.locator("li").first.evaluate("item => getComputedStyle(item).color")
    levels = list(map(int, grey[4:-1].split(",")))
    assert max(levels) - min(levels) < 20
    for claim in CLAIMS:
        details = page.locator(f"article#{claim.id}")
        names, texts = (details.locator(tag).all_text_contents() for tag in ("dt", "dd"))
        told = dict(zip(names, texts, strict=True))
        assert told["Paper"] == f"{claim.paper} ({claim.where})" and told["Measured"] == found[claim.id].measured
        assert told["Rule"].startswith(claim.rule) and f"hash {claim.hash}" in told["Rule"]
        assert told["On"].startswith(f"scale short; {found[claim.id].n}; ")
        assert told.get("Power", "") == found[claim.id].power
        assert told.get("Warnings", "") == " ".join(found[claim.id].warnings)
        assert details.locator(".badge").text_content() == found[claim.id].verdict
    links = rows.locator("a[href^='#figure-']")
    assert links.count() == sum(bool(claim.figure) for claim in CLAIMS)
    assert {"C1", "C2"} <= set(rows.filter(has_text="no figure").locator("th").all_text_contents())
    for target in page.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))"):
        assert page.locator(f"[id='{target[1:]}']").count() == 1
    assert page.locator("h1").count() == 1
    warning = page.locator(".note.warning p").text_content()
    assert warning.endswith("No empirical claim has a verdict at this scale.")


def test_every_figure_is_drawn(show: Any, report: Path) -> None:
    page = show(report)
    images = page.locator("figure img")
    names = [name for names, _ in SECTIONS.values() for name in names]
    assert images.count() == len(names)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        results = load(report.parents[1], "short")
        captions = [caption(name, results).replace("`", "") for name in names]
    for alt, width in images.evaluate_all("all => all.map(image => [image.alt, image.naturalWidth])"):
        assert width > 100 and alt in captions


def test_the_run_table_sorts_numbers_as_numbers_and_texts_as_texts(show: Any, report: Path) -> None:
    page = show(report)
    before = list(zip(column(page, "Variant"), column(page, "Seed"), strict=True))
    heading = page.locator("table.sortable th", has_text="Seed")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert list(zip(column(page, "Variant"), column(page, "Seed"), strict=True)) == sorted(
        before, key=lambda run: int(run[1])
    )
    assert column(page, "Seed")[-1] == "10"  # after 2, and equal ones as they stood
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    by_seed = sorted(before, key=lambda run: -int(run[1]))
    assert list(zip(column(page, "Variant"), column(page, "Seed"), strict=True)) == by_seed

    page.locator("table.sortable th button", has_text="Variant").focus()
    page.keyboard.press("Enter")
    assert list(zip(column(page, "Variant"), column(page, "Seed"), strict=True)) == sorted(
        by_seed, key=lambda run: run[0]
    )
    page.keyboard.press("Space")
    assert column(page, "Variant") == sorted((variant for variant, _ in before), reverse=True)
    assert page.locator("th[aria-sort]").all_text_contents() == ["Variant"]

    page.locator("table.sortable th button", has_text="Message").click()  # all empty: nothing moves
    assert column(page, "Variant") == sorted((variant for variant, _ in before), reverse=True)


@pytest.mark.parametrize("bypass_csp", [False, True])
def test_hostile_text_is_shown_and_not_executed(show: Any, hostile: Path, bypass_csp: bool) -> None:
    page = show(hostile, bypass_csp=bypass_csp)
    for title, texts in {
        "Message": [HOSTILE, ADDRESSES, SHOWN],
        "Device": [HOSTILE, ADDRESSES, SHOWN],
        "torch": [HOSTILE],
        "Commit": [f"{HOSTILE[:7]}, dirty"],
        "Settings' hash": [ADDRESSES],
    }.items():
        assert set(texts) <= set(column(page, title)), title
    for text in (HOSTILE, ADDRESSES):
        assert any(text.replace("/", "") in variant for variant in column(page, "Variant"))
    assert HOSTILE in page.locator("article#C1").text_content()
    problems = page.locator(".problems").text_content()
    assert HOSTILE[:90] in problems and ADDRESSES[:60] in problems and SHOWN in problems
    assert HOSTILE in page.locator("article#C7a").text_content()
    tables = page.locator("td").all_text_contents()
    assert {HOSTILE, ADDRESSES, json.dumps([HOSTILE, 1])} <= set(tables)
    page.locator("table.sortable th button", has_text="Message").click()
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1 and page.locator("td img, td b, li b:not(.counts b)").count() == 0


def test_only_its_own_script_and_style_have_an_effect(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.pwned = 1";
          document.body.append(script);
          const image = new Image();
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(image);
        }"""
    )
    assert page.evaluate("window.pwned") is None
    page.wait_for_timeout(100)
    assert len(refused) == 2 and all("Content Security Policy" in text for text in refused)
    page.close()


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_the_page_never_scrolls_sideways_on_a_phone(show: Any, request: pytest.FixtureRequest, name: str) -> None:
    page = show(request.getfixturevalue(name), viewport={"width": 360, "height": 740})
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator(".scroll").last
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")  # the run table scrolls in its box
    assert page.locator(".summary .badge").first.bounding_box()["x"] < 300


def test_dark_mode_has_another_background_and_figures_stay_on_white(show: Any, report: Path) -> None:
    colour = "element => getComputedStyle(element).backgroundColor"
    pages = [show(report, color_scheme=scheme) for scheme in ("light", "dark")]
    light, dark = (page.locator("body").evaluate(colour) for page in pages)
    assert sum(map(int, light[4:-1].split(","))) > 700 and sum(map(int, dark[4:-1].split(","))) < 100
    assert [page.locator("figure").first.evaluate(colour) for page in pages] == ["rgb(255, 255, 255)"] * 2


def test_markdown_shows_hostile_text_as_text(hostile: Path) -> None:
    """Where raw HTML is allowed, as by GitHub: no element, link or image but the report's own."""
    source = (hostile.parent / "report.md").read_text()
    assert all(letter.isprintable() or letter == "\n" for letter in source)
    assert not re.search(r"://|(?<!\w)www\.|@(?!&NoBreak;)", source)  # of which GitHub makes links
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(source)
    parsed = Parsed(rendered)
    own = {"h1", "h2", "h3", "p", "em", "strong", "code", "a", "img", "ul", "li"}
    own |= {"table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in parsed.tags} <= own
    figures = {f"figures/{path.name}" for path in (hostile.parent / "figures").iterdir()}
    links = [attributes[name] for _, attributes in parsed.tags for name in ("href", "src") if name in attributes]
    assert len(links) > 3 and set(links) <= figures
    shown = re.sub("<[^>]*>", "", rendered)
    for text in (HOSTILE.strip(), ADDRESSES.replace("@", "@\u2060"), " ".join(SHOWN.split())):
        assert html.escape(text, quote=False).replace('"', "&quot;") in shown


class Parsed(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_the_page_names_nothing_outside_itself(request: pytest.FixtureRequest, name: str) -> None:
    path = request.getfixturevalue(name)
    parsed = Parsed(path.read_text())
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == tags.count("style") == tags.count("h1") == 1 and "link" not in tags
    for tag, attributes in parsed.tags:
        assert attributes.get("src", "data:image/svg+xml,").startswith("data:image/svg+xml,"), tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert not {"style", "srcset", "action"} & attributes.keys() and not any(key[:2] == "on" for key in attributes)
    (language,) = [attributes["lang"] for tag, attributes in parsed.tags if tag == "html"]
    assert language == "en" and tags.count("img") == len(list((path.parent / "figures").glob("*.svg")))


def test_pieces_of_text() -> None:
    assert marked("a `b` c") == [(False, "a "), (True, "b"), (False, " c")]
    measured = f"wn +7.6 % (seed 1; lr 0.003); bn of Xeon(R) {'x' * 90}; the rest"
    assert short(measured) == "wn +7.6 %; …"
    assert short("one; two (n = 1)") == "one; two"


def test_columns_of_numbers() -> None:
    columns = ["1", "", "−2.50"], ["6 of 8", "–", "50 000"], ["1", "x", "2"], ["", "", "–"]
    assert numeric(list(zip(*columns, strict=True))) == [True, True, False, False]

"""The report's page: in a headless browser, from file:// and from its server, and as plain HTML."""

import base64
import html
import json
import os
import re
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from factories import make_all, make_bench, make_dqns, make_draws, make_run, make_vae, make_vaes, set_scale_short
from markdown_it import MarkdownIt
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from wnrepro.report import layout, live_page, serve, write_comparison, write_report
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.report.layout import LARGEST, MEDIA, marked, media, numeric, short
from wnrepro.report.tables import SECTIONS
from wnrepro.reproduce.grid import commands
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
        make_media(results)
        return write_report(results, "short", commands=commands("short"))[1]


def make_media(results: Path) -> None:
    """An image of every kind in the first run of each experiment that has it."""
    kinds = {"cvae": ["samples.png", "reconstructions.png"], "draw": ["drawing.gif"], "dqn": ["game.gif"]}
    for experiment, names in kinds.items():
        run = min((results / "short" / experiment).glob("*/seed-1"))
        for name in names:
            Image.new("L", (28, 28)).save(run / name)


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

    def open_page(path: Path | str, **context: Any) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if is_foreign(request.url) else None)
        page.goto(path if isinstance(path, str) else path.as_uri())
        return page

    def is_foreign(url: str) -> bool:
        own = url.startswith("file://") and url.endswith(("/report.html", "/comparison.html"))
        return not own and not url.startswith(("data:", f"http://{serve.HERE}:"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


RUNS = "#settings-and-runs details:last-of-type table"


def column(page: Page, title: str) -> list[str]:
    """The run table's cells under a heading, from top to bottom."""
    return page.evaluate(
        """([runs, title]) => {
          const table = document.querySelector(runs);
          const i = Array.from(table.tHead.rows[0].cells, cell => cell.textContent).indexOf(title);
          return Array.from(table.tBodies[0].rows, row => row.cells[i].textContent);
        }""",
        [RUNS, title],
    )


def open_all(page: Page) -> None:
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")


def test_every_claim_has_a_row_that_unfolds(show: Any, report: Path) -> None:
    page = show(report)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        read = load(report.parents[1], "short")
        found, told_command = findings(read), commands("short")
    rows = page.locator("details.claim")
    assert sorted(rows.locator("summary > b").all_text_contents()) == sorted(claim.id for claim in CLAIMS)
    for claim in CLAIMS:
        row, finding = page.locator(f"details#{claim.id}"), found[claim.id]
        assert claim.claim in row.locator("summary").text_content()
        assert row.locator(".badge").text_content() == finding.verdict and not row.locator("dl").is_visible()
        names, texts = (row.locator(f"dl > {tag}").all_text_contents() for tag in ("dt", "dd"))
        told = dict(zip(names, texts, strict=True))
        assert told["Paper"] == f"{claim.paper} ({claim.where})" and told["Measured"] == finding.measured
        assert told["Rule"].startswith(claim.rule) and f"hash {claim.hash}" in told["Rule"]
        assert told["On"].startswith(f"scale short; {finding.n}; ")
        assert told.get("Power", "") == finding.power
        assert told.get("Warnings", "") == " ".join(finding.warnings)
        assert told["Command"].startswith(told_command[claim.id])
        assert row.locator(".used li").count() == len(finding.used)
        assert row.locator("tbody tr").count() == len(finding.estimates)
    checks, empirical = page.locator(".counts > div").all()
    assert checks.locator("dd").all_text_contents() == ["3 reproduced"]
    assert sum(map(int, empirical.locator("b").all_text_contents())) == len(CLAIMS) - 3
    grey = empirical.locator("dd").first.evaluate("item => getComputedStyle(item).color")
    levels = list(map(int, grey[4:-1].split(",")))
    assert max(levels) - min(levels) < 20
    warning = page.locator(".note.warning p").text_content()
    assert warning.endswith("No empirical claim has a verdict at this scale.")


def test_links_lead_somewhere_and_open_what_is_folded(show: Any, report: Path) -> None:
    page = show(report)
    for target in set(page.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")):
        if target.startswith("#"):
            assert page.locator(f"[id='{target[1:]}']").count() == 1, target
        else:
            assert (report.parent / unquote(target)).is_file(), target
    claim = page.locator("details#C4a")
    claim.locator("summary").focus()
    page.keyboard.press("Enter")
    assert claim.locator("dl").is_visible() and claim.locator(".chart svg").first.is_visible()
    link = claim.locator(".used a").first
    assert link.text_content() == "cifar/wn_lr0.003/seed-1"
    row = page.locator(link.get_attribute("href"))
    assert not row.is_visible()
    link.click()
    row.wait_for(state="visible")
    assert row.locator("th").text_content() == "cifar wn_lr0.003 seed-1"
    page.locator("details#C6 > summary").click()
    page.locator("details#C6 a[href='#figure-learning_rates']").click()
    page.locator("#figure-learning_rates").wait_for(state="visible")
    assert page.locator("[id='figure-learning_rates']").count() == 1  # the claim's copy has no id


@pytest.mark.parametrize(("width", "half"), [(1400, 27_142 // 2), (360, 46_585 // 2)])  # of the ledger it was
def test_the_published_page_is_short_and_small(show: Any, published: Path, width: int, half: int) -> None:
    page = show(published, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollHeight") < half
    assert page.locator("figure").first.bounding_box()["y"] < 2 * 900
    assert published.stat().st_size < 3_000_000 and page.locator(".media img").count() >= 5


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the runs that this repository shows."""
    path = tmp_path_factory.mktemp("published") / "report.html"
    path.write_text(live_page("", Path(__file__).parents[1] / "results" / "published", "short"))
    return path


def test_the_command_is_copied(show: Any, report: Path) -> None:
    page = show(report, permissions=["clipboard-read", "clipboard-write"])
    page.locator("details#C10a > summary").click()
    page.locator("details#C10a .copy").click()
    page.locator("details#C10a .copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "wnrepro reproduce C10a --scale short"


def test_every_figure_is_drawn_and_says_what_it_shows(show: Any, report: Path) -> None:
    page = show(report)
    open_all(page)
    names = ["overview", *(name for part in SECTIONS for name in part.figures)]
    assert sorted(page.locator("figure[id]").evaluate_all("all => all.map(one => one.id.slice(7))")) == sorted(names)
    for name in names:
        chart = page.locator(f"#figure-{name}")
        caption = chart.locator("figcaption").text_content().partition(". ")[2]
        for panel in chart.locator(".panel > svg").all():
            assert panel.bounding_box()["height"] > 80 and panel.get_attribute("aria-label").endswith(caption), name
        assert chart.locator("svg text").count() > 4, name
    end = page.locator("#figure-figure3 figcaption").text_content()
    assert re.search(r"At the end: MNIST: normal −[\d.]+ nats, batch norm. −212.0 nats, weight norm. −[\d.]+ nats", end)


def test_a_click_in_the_legend_hides_a_curve_and_seeds_fold(show: Any, report: Path) -> None:
    page = show(report)
    chart = page.locator("#figure-figure2")
    marks = chart.locator(".mark[data-group='normal ']")
    assert marks.count() > 3 and marks.first.is_visible()
    button = chart.locator("button", has_text="normal").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false" and not any(mark.is_visible() for mark in marks.all())
    assert chart.locator(".mark[data-group='wn ']").first.is_visible()
    button.press("Enter")
    assert marks.first.is_visible()
    seeds = chart.locator(".mark.seed")
    assert seeds.count() > 3
    chart.locator("button.seeds").click()
    assert not any(seed.is_visible() for seed in seeds.all()) and chart.locator(".mark:not(.seed)").first.is_visible()


def test_a_point_says_run_epoch_and_value(show: Any, report: Path) -> None:
    page = show(report)
    svg, tip = page.locator("#figure-figure1 svg").first, page.locator("#tip")
    svg.scroll_into_view_if_needed()
    assert not tip.is_visible()
    mark = svg.locator(".mark[data-name='cifar/normal_lr0.0003/seed-2']").first
    x, y = map(float, mark.get_attribute("data-at").split()[2:4])
    place = svg.evaluate(
        "(svg, [x, y]) => { const p = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM()); return [p.x, p.y]; }",
        [x, y],
    )
    page.mouse.move(*place)
    metrics = (report.parent / "cifar" / "normal_lr0.0003" / "seed-2" / "metrics.csv").read_text().splitlines()
    error = 100 * float(metrics[2].split(",")[2])
    names = [f"cifar/normal_lr0.0003/seed-{seed}" for seed in (1, 2, 10)] + ["normal, lr 0.0003, mean of 3 runs"]
    said = tip.inner_text()
    assert any(said.startswith(f"{name}\nepoch 2: ") for name in names)
    assert abs(float(said.split()[-2]) - error) < 1.5 and said.endswith(" %")
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    svg.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert "epoch 2: " in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_filters_leave_what_is_asked_for(show: Any, report: Path) -> None:
    page = show(report)
    open_all(page)

    def shown(selector: str = ".claim") -> list[str]:
        return page.locator(selector).evaluate_all("all => all.filter(one => one.offsetParent).map(one => one.id)")

    every = len(CLAIMS)
    assert len(shown()) == every
    page.locator("[name=verdict]").select_option("reproduced")
    assert shown() == ["C1", "C2", "C3"] and shown("section") == ["checks-of-the-implementation", ""]
    assert page.locator(".shown").text_content() == f"3 of {every} claims"
    page.locator("[name=verdict]").select_option("")
    page.locator("[name=experiment]").select_option("draw")
    assert set(shown()) & {"C4a", "C11"} == set() and {"C10a", "C10b"} <= set(shown())

    def runs() -> list[str]:
        return page.locator(f"{RUNS} tbody tr").evaluate_all(
            "all => all.filter(one => one.offsetParent).map(one => one.cells[0].textContent)"
        )

    assert {run.split()[0] for run in runs()} == {"draw"}
    page.locator("[name=experiment]").select_option("")
    page.locator("[name=param]").select_option("wn+mobn")
    assert "C8a" in shown() and "C10a" not in shown()
    assert runs() and all("wn+mobn" in run for run in runs())
    assert not page.locator("#figure-figure1 .mark[data-param=bn]").first.is_visible()
    for name in ("figure1", "overview", "step_time", "init", "learning_rates"):
        assert page.locator(f"#figure-{name} .mark[data-param='wn+mobn']:not(.off)").count(), name
    page.locator("[name=param]").select_option("")
    assert len(shown()) == every and page.locator(".shown").text_content() == ""
    page.locator("[name=verdict]").select_option("reproduced")
    page.locator("#C3 .used a").first.click()  # to a row of what the filter hides
    page.locator("#run-1").wait_for(state="visible")
    assert page.locator("[name=verdict]").input_value() == ""


def test_contents_and_first_columns_stay_in_view(show: Any, report: Path) -> None:
    for width in (1400, 360):
        page = show(report, viewport={"width": width, "height": 740})
        assert page.locator("nav li").count() == 1 + page.locator("main > section[data-experiment]").count()
        page.evaluate("window.scrollTo(0, 3000)")
        box = page.locator("nav").bounding_box()
        assert 0 <= box["y"] < 100 and page.evaluate("window.scrollY") > 2000
        page.locator("nav a", has_text="DRAW").click()
        top = page.locator("#draw h2").bounding_box()["y"]
        assert 0 <= top < 300 and page.locator("#draw h2").is_visible()
        open_all(page)
        scroll = page.locator(RUNS).locator("..")
        scroll.evaluate("box => { box.scrollLeft = 400; }")
        assert scroll.locator("tbody th").first.bounding_box()["x"] >= scroll.bounding_box()["x"]


def test_tables_sort_numbers_as_numbers_and_texts_as_texts(show: Any, report: Path) -> None:
    page = show(report)
    open_all(page)
    assert page.locator("section > table, section > details > table").count() == 0
    assert page.locator(".scroll > table.sortable").count() >= 12  # every table but those within claims

    def epochs() -> list[tuple[str, str]]:
        return list(zip(column(page, "Run"), column(page, "Epoch"), strict=True))

    before = epochs()
    heading = page.locator(f"{RUNS} th", has_text="Epoch").first
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert epochs() == sorted(before, key=lambda run: int(run[1].split()[0]))  # equal ones as they stood
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    by_epoch = sorted(before, key=lambda run: -int(run[1].split()[0]))
    assert epochs() == by_epoch

    page.locator(f"{RUNS} th button", has_text="Run").focus()
    page.keyboard.press("Enter")
    assert column(page, "Run") == sorted(run for run, _ in before)
    page.keyboard.press("Space")
    assert column(page, "Run") == sorted((run for run, _ in before), reverse=True)
    assert page.locator("th[aria-sort]").all_text_contents() == ["Run"]

    page.locator(f"{RUNS} th button", has_text="Message").click()  # all empty: nothing moves
    assert column(page, "Run") == sorted((run for run, _ in before), reverse=True)


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
        assert any(text.replace("/", "") in run for run in column(page, "Run"))
    assert HOSTILE in page.locator("details#C1").text_content()
    problems = page.locator(".problems").text_content()
    assert HOSTILE[:90] in problems and ADDRESSES[:60] in problems and SHOWN in problems
    assert HOSTILE in page.locator("details#C7a").text_content()
    tables = page.locator("td").all_text_contents()
    assert {HOSTILE, ADDRESSES, json.dumps([HOSTILE, 1])} <= set(tables)
    open_all(page)
    page.locator(f"{RUNS} th button", has_text="Message").click()
    for panel in page.locator(".panel > svg").all():
        panel.focus()
        page.keyboard.press("ArrowRight")
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1 and page.locator("td img, td b, li b, svg script, #tip *").count() == 0


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
    assert page.locator(".claim .badge").first.bounding_box()["x"] < 300


def test_dark_mode_is_dark_in_the_figures_too(show: Any, report: Path) -> None:
    light, dark = (show(report, color_scheme=scheme) for scheme in ("light", "dark"))

    def level(page: Page, selector: str, name: str) -> int:
        colour = page.locator(selector).first.evaluate(f"one => getComputedStyle(one)['{name}']")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert level(light, "body", "backgroundColor") > 700 and level(dark, "body", "backgroundColor") < 100
    for selector, name in (
        ("#figure-figure1 svg text", "fill"),
        ("#figure-figure1 .seed[data-param=normal] > path", "stroke"),
    ):
        assert level(light, selector, name) < 200 and level(dark, selector, name) > 600, selector
    assert dark.locator("figure, .panel").evaluate_all(
        "all => all.every(one => getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)')"
    )


def test_print_shows_the_claims_and_no_controls(show: Any, report: Path) -> None:
    page = show(report)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details#C4a dl").is_visible() and page.locator(".claim .chart").count() == 0
    assert not page.locator(".copy").first.is_visible()
    assert page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not page.locator("details#C4a dl").is_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 360)])
def test_axe_finds_no_serious_violation(show: Any, report: Path, scheme: str, width: int) -> None:
    page = show(report, color_scheme=scheme, viewport={"width": width, "height": 740})
    page.locator(".fold, #C1, #C4a").evaluate_all("all => all.forEach(details => { details.open = true; })")
    page.locator("tbody tr:nth-child(n + 6)").evaluate_all("all => all.forEach(row => row.remove())")  # of a kind
    found = Axe().run(page).response["violations"]
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_what_models_draw_is_shown_as_far_as_it_fits(show: Any, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = show(report)
    shown = page.locator(".media img")
    assert shown.count() == 4 and all(shown.evaluate_all("all => all.map(image => image.naturalWidth === 28)"))
    (alt,) = page.locator("#dqn .media img").evaluate_all("all => all.map(image => image.alt)")
    assert alt.startswith("dqn/") and alt.endswith(", after epoch 2: a whole game of the trained agent")
    assert report.stat().st_size < LARGEST
    set_scale_short(monkeypatch)
    found = media(load(report.parents[1], "short"))
    assert [one.experiment for one in found] == ["draw", "dqn", "cvae", "cvae"]  # the most telling first
    monkeypatch.setattr(layout, "_page", lambda report, fit, live: "x" * 10 + "".join(one.uri for one in fit))
    monkeypatch.setattr(layout, "LARGEST", 20 + 1000 + len(found[0].uri))
    assert layout.page(None, found) == "x" * 10 + found[0].uri  # type: ignore[arg-type]


def test_what_is_no_image_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_scale_short(monkeypatch)
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


def test_the_served_page_renews_itself(
    show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_scale_short(monkeypatch)
    monkeypatch.setattr(serve, "SECONDS", 0.1)
    make_run(tmp_path, status="running", logged=2)
    told: list[str] = []
    server = serve.Server(tmp_path, "short", lambda version: live_page(version, tmp_path, "short"), warn=told.append)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = show(server.url)
        page.locator("details#C1 > summary").click()
        page.locator("[name=experiment]").select_option("cifar")
        page.wait_for_timeout(2500)
        newer = make_run(tmp_path / "newer", status="running", logged=3)
        for name in ("metrics.csv", "layers.csv", "run.json"):
            os.replace(newer / name, tmp_path / "short" / "cifar" / "wn_lr0.003" / "seed-1" / name)
        page.locator("tr[id]", has_text="3 of 8").wait_for(state="attached", timeout=60_000)
        assert page.locator("details#C1[open]").count() == 1
        assert page.locator("[name=experiment]").input_value() == "cifar"
        run = page.request.get(f"{server.url}cifar/wn_lr0.003/seed-1/metrics.csv")
        assert run.status == 200 and run.text().startswith("epoch,seconds")
        for path in (
            "run.json",
            "cifar/wn_lr0.003/seed-1/run.json",
            "../short/report.html",
            "cifar/x/seed-1/config.json",
        ):
            assert page.request.get(server.url + path).status == 404, path
        for host, status in (("evil.example:80", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1", 200)):
            assert page.request.get(server.url, headers={"Host": host}).status == status
        with socket.create_connection(server.server_address) as client:  # leaves before it has read anything
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        (tmp_path / "short" / "cifar" / "wn_lr0.003" / "seed-1" / "metrics.csv").write_text("epoch\nx\n")
        while not told:
            page.wait_for_timeout(100)
        assert "malformed" in told[0] and page.request.get(server.url).status == 200  # the page before it stays
        assert capsys.readouterr().err == ""
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_the_page_of_a_comparison(show: Any, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    results = request.getfixturevalue(name).parents[1]
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        shutil.copytree(results, tmp_path / "theirs")
        make_run(tmp_path / "theirs", seed=7)
        page = show(write_comparison(tmp_path / "theirs", results, "short")[1], viewport={"width": 360, "height": 740})
    assert page.evaluate("window.pwned") is None and page.evaluate("document.documentElement.scrollWidth") <= 360
    assert "in both" in page.locator("main li").first.text_content()
    page.locator("#runs-in-both th button", has_text="Seed").click()
    assert page.locator("#runs-in-both th[aria-sort]").count() == 1
    for one in Axe().run(page).response["violations"]:
        assert one["impact"] not in ("serious", "critical"), one["id"]


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
        assert attributes.get("src", "data:image/").startswith("data:image/"), tag
        assert attributes.get("href", "#").startswith(("#", "./")), tag
        assert not {"style", "srcset", "action"} & attributes.keys() and not any(key[:2] == "on" for key in attributes)
    (language,) = [attributes["lang"] for tag, attributes in parsed.tags if tag == "html"]
    assert language == "en"


def test_pieces_of_text() -> None:
    assert marked("a `b` c") == [(False, "a "), (True, "b"), (False, " c")]
    measured = f"wn +7.6 % (seed 1; lr 0.003); bn of Xeon(R) {'x' * 90}; the rest"
    assert short(measured) == "wn +7.6 %; …"
    assert short("one; two (n = 1)") == "one; two"


def test_columns_of_numbers() -> None:
    columns = ["1", "", "−2.50"], ["6 of 8", "–", "50 000"], ["1", "x", "2"], ["", "", "–"]
    assert numeric(list(zip(*columns, strict=True))) == [True, True, False, False]
    assert numeric([["−84.08 ± 0.10"], ["not finite"], ["−97.9"]]) == [True]

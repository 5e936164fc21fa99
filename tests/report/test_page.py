"""The report's page in a headless browser, from file:// and from its server."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from factories import ADDRESSES, HOSTILE, SHOWN, make_run, set_scale_short
from playwright.sync_api import Browser, Page, sync_playwright

from wnrepro.report import declared, live_page, serve, write_comparison
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.reproduce.grid import commands
from wnrepro.results import load

RUNS = "#settings-and-runs details:last-of-type table"
PUBLISHED = Path(__file__).parents[2] / "results" / "published"
HEIGHTS = {1400: 13_600, 360: 23_300}  # of the published page, by its width: it stays shorter


def written(results: Path) -> Path:
    """The page of a results folder, beside its runs; with its figures, but not those for print."""
    path = results / "short" / "report.html"
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        path.write_text(live_page("", results, "short", commands=commands("short")))
    return path


@pytest.fixture(scope="session")
def report(everything: Path) -> Path:
    return written(everything)


@pytest.fixture(scope="session")
def attack(hostile: Path) -> Path:
    return written(hostile)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH: on Debian, apt-get install chromium")
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=args)
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
        return not own and not url.startswith(("data:", f"http://{serve.HOST}:"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def column(page: Page, title: str) -> list[str]:
    """The run table's cells under a heading, from top to bottom."""
    texts: list[str] = page.evaluate(
        """([runs, title]) => {
          const table = document.querySelector(runs);
          const i = Array.from(table.tHead.rows[0].cells, cell => cell.textContent).indexOf(title);
          return Array.from(table.tBodies[0].rows, row => row.cells[i].textContent);
        }""",
        [RUNS, title],
    )
    return texts


def open_all(page: Page) -> None:
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")


def has_no_serious_violation(page: Page) -> bool:
    found = Axe().run(page).response["violations"]
    return [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_a_small_page_sorts_and_answers_the_pointer(show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test of the browser that is not slow: figures are left out but one."""
    monkeypatch.setattr(declared, "FIGURES", {"figure1": declared.FIGURES["figure1"]})
    for seed in (1, 2, 10):
        make_run(tmp_path, seed=seed, scale="quick")
    (tmp_path / "report.html").write_text(live_page("", tmp_path, "quick"))
    page = show(tmp_path / "report.html", viewport={"width": 360, "height": 740})
    open_all(page)
    page.locator(f"{RUNS} th button", has_text="Run").click()
    assert column(page, "Run")[:2] == ["cifar wn_lr0.003 seed-1", "cifar wn_lr0.003 seed-10"]
    svg, tip = page.locator("#figure-figure1 svg").first, page.locator("#tip")
    assert not tip.is_visible()
    svg.focus()
    page.keyboard.press("ArrowRight")
    assert "epoch " in tip.inner_text() and page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_every_claim_unfolds_to_what_was_found(show: Any, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = show(report, permissions=["clipboard-read", "clipboard-write"])
    set_scale_short(monkeypatch)
    found, told_command = findings(load(report.parents[1], "short")), commands("short")
    assert sorted(page.locator("details.claim summary > b").all_text_contents()) == sorted(one.id for one in CLAIMS)
    for claim in CLAIMS:
        row, finding = page.locator(f"details#{claim.id}"), found[claim.id]
        assert row.locator(".badge").text_content() == finding.verdict and not row.locator("dl").is_visible()
        names, texts = (row.locator(f"dl > {tag}").all_text_contents() for tag in ("dt", "dd"))
        told = dict(zip(names, texts, strict=True))
        assert told["Paper"] == f"{claim.paper} ({claim.where})" and told["Measured"] == finding.measured
        assert told["Command"].startswith(told_command[claim.id])
        assert row.locator(".used li").count() == len(finding.used)
        assert row.locator("tbody tr").count() == len(finding.estimates)
    page.locator("details#C10a > summary").click()
    page.locator("details#C10a .copy").click()
    page.locator("details#C10a .copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == told_command["C10a"]


@pytest.mark.slow
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
    for link in (claim.locator(".used a").first, claim.locator("a[href^='#figure-']")):
        target = page.locator(link.get_attribute("href"))
        link.click()
        target.wait_for(state="visible")
        assert target.count() == 1  # the claim's copy of a figure has no id


@pytest.mark.slow
def test_the_published_page_is_short_and_small(show: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(live_page("", PUBLISHED, "short"))
    assert path.stat().st_size < 3_000_000
    for width, height in HEIGHTS.items():
        page = show(path, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollHeight") < height
        assert page.locator("figure").first.bounding_box()["y"] < 2 * 900 and page.locator(".media img").count() >= 5


@pytest.mark.slow
def test_every_figure_is_drawn_and_says_what_it_included(show: Any, report: Path) -> None:
    page = show(report)
    open_all(page)
    names = page.locator("figure[id]").evaluate_all("all => all.map(one => one.id.slice(7))")
    assert sorted(names) == sorted(declared.FIGURES)
    for name in names:
        chart = page.locator(f"#figure-{name}")
        caption = chart.locator("figcaption").text_content().partition(". ")[2]
        for panel in chart.locator(".panel > svg").all():
            assert panel.bounding_box()["height"] > 80 and panel.get_attribute("aria-label").endswith(caption), name
        assert chart.locator("svg text").count() > 4, name
    assert all(page.locator(".media img").evaluate_all("all => all.map(image => image.naturalWidth === 28)"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_point_says_run_epoch_and_value(show: Any, report: Path) -> None:
    page = show(report)
    svg, tip = page.locator("#figure-figure1 svg").first, page.locator("#tip")
    svg.scroll_into_view_if_needed()
    mark = svg.locator(".mark[data-name='cifar/normal_lr0.0003/seed-2']").first
    x, y = map(float, mark.get_attribute("data-at").split()[2:4])
    place = svg.evaluate(
        "(svg, [x, y]) => { const p = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM()); return [p.x, p.y]; }",
        [x, y],
    )
    page.mouse.move(*place)
    metrics = (report.parent / "cifar" / "normal_lr0.0003" / "seed-2" / "metrics.csv").read_text().splitlines()
    error = 100 * float(metrics[2].split(",")[2])
    names = [f"cifar/normal_lr0.0003/seed-{seed}" for seed in (1, 2)] + ["normal, lr 0.0003, mean of 2 runs"]
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


@pytest.mark.slow
def test_filters_leave_what_is_asked_for(show: Any, report: Path) -> None:
    page = show(report)
    open_all(page)

    def choose(**values: str) -> None:
        for name in ("verdict", "experiment", "param"):
            page.locator(f"[name={name}]").select_option(values.get(name, ""))

    def shown(selector: str = ".claim") -> list[str]:
        ids: list[str] = page.locator(selector).evaluate_all(
            "all => all.filter(one => one.offsetParent).map(one => one.id || one.cells?.[0].textContent || '')"
        )
        return ids

    every = len(CLAIMS)
    assert len(shown()) == every
    choose(verdict="reproduced")
    assert set(shown()) <= {"C1", "C2", "C3"} and "checks-of-the-implementation" in shown("section")
    assert page.locator(".shown").text_content() == f"{len(shown())} of {every} claims"
    page.locator(".claim:not([hidden]) .used a").first.click()  # to a row of what the filter hides
    page.locator("#run-1").wait_for(state="visible")
    assert page.locator("[name=verdict]").input_value() == ""
    choose(experiment="draw")
    assert set(shown()) & {"C4a", "C11"} == set() and {"C10a", "C10b"} <= set(shown())
    runs = f"{RUNS} tbody tr"
    names = page.locator(runs).evaluate_all("all => all.filter(r => r.offsetParent).map(r => r.cells[0].textContent)")
    assert {name.split()[0] for name in names} == {"draw"}
    choose(param="wn+mobn")
    assert "C8a" in shown() and "C10a" not in shown()
    names = page.locator(runs).evaluate_all("all => all.filter(r => r.offsetParent).map(r => r.cells[0].textContent)")
    assert names and all("wn+mobn" in name for name in names)
    assert not page.locator("#figure-figure1 .mark[data-param=bn]").first.is_visible()
    for name in ("figure1", "overview", "step_time", "init", "learning_rates"):
        assert page.locator(f"#figure-{name} .mark[data-param='wn+mobn']:not(.off)").count(), name
    choose()
    assert len(shown()) == every and page.locator(".shown").text_content() == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 360])
def test_contents_and_first_columns_stay_in_view(show: Any, report: Path, width: int) -> None:
    page = show(report, viewport={"width": width, "height": 740})
    assert page.locator("nav li").count() == 1 + page.locator("main > section[data-experiment]").count()
    page.evaluate("window.scrollTo(0, 3000)")
    box = page.locator("nav").bounding_box()
    assert 0 <= box["y"] < 100 and page.evaluate("window.scrollY") > 2000
    page.locator("nav a", has_text="DRAW").click()
    assert 0 <= page.locator("#draw h2").bounding_box()["y"] < 300
    open_all(page)
    scroll = page.locator(RUNS).locator("..")
    scroll.evaluate("box => { box.scrollLeft = 400; }")
    assert scroll.locator("tbody th").first.bounding_box()["x"] >= scroll.bounding_box()["x"]


@pytest.mark.slow
def test_tables_sort_numbers_as_numbers_and_texts_as_texts(show: Any, report: Path) -> None:
    page = show(report)
    open_all(page)

    def epochs() -> list[tuple[str, str]]:
        return list(zip(column(page, "Run"), column(page, "Epoch"), strict=True))

    before = epochs()
    heading = page.locator(f"{RUNS} th", has_text="Epoch").first
    for order, sign in (("ascending", 1), ("descending", -1)):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        assert epochs() == sorted(before, key=lambda run: sign * int(run[1].split()[0]))  # equal ones as they stood
    page.locator(f"{RUNS} th button", has_text="Run").focus()
    for key, reverse in (("Enter", False), ("Space", True)):
        page.keyboard.press(key)
        assert column(page, "Run") == sorted((run for run, _ in before), reverse=reverse)
    assert page.locator("th[aria-sort]").all_text_contents() == ["Run"]
    page.locator(f"{RUNS} th button", has_text="Message").click()  # all empty: nothing moves
    assert column(page, "Run") == sorted((run for run, _ in before), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("bypass_csp", [False, True])
def test_hostile_text_is_shown_and_not_executed(show: Any, attack: Path, bypass_csp: bool) -> None:
    page = show(attack, bypass_csp=bypass_csp)
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
    for place in ("details#C1", "details#C7a"):
        assert HOSTILE in page.locator(place).text_content()
    problems = page.locator(".problems").text_content()
    assert HOSTILE[:90] in problems and ADDRESSES[:60] in problems and SHOWN in problems
    assert {HOSTILE, ADDRESSES, json.dumps([HOSTILE, 1])} <= set(page.locator("td").all_text_contents())
    open_all(page)
    page.locator(f"{RUNS} th button", has_text="Message").click()
    for panel in page.locator(".panel > svg").all():
        panel.focus()
        page.keyboard.press("ArrowRight")
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1 and page.locator("td img, td b, li b, svg script, #tip *").count() == 0


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "attack"])
def test_the_page_never_scrolls_sideways_on_a_phone(show: Any, request: pytest.FixtureRequest, name: str) -> None:
    page = show(request.getfixturevalue(name), viewport={"width": 360, "height": 740})
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".scroll").last.evaluate("box => box.scrollWidth > box.clientWidth")  # the run table scrolls
    assert page.locator(".claim .badge").first.bounding_box()["x"] < 300


@pytest.mark.slow
def test_dark_mode_is_dark_in_the_figures_too(show: Any, report: Path) -> None:
    light, dark = (show(report, color_scheme=scheme) for scheme in ("light", "dark"))

    def level(page: Page, selector: str, name: str) -> int:
        colour = page.locator(selector).first.evaluate(f"one => getComputedStyle(one)['{name}']")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert level(light, "body", "backgroundColor") > 700 and level(dark, "body", "backgroundColor") < 100
    stroke = ("#figure-figure1 .seed[data-param=normal] > path", "stroke")
    for selector, name in (("#figure-figure1 svg text", "fill"), stroke):
        assert level(light, selector, name) < 200 and level(dark, selector, name) > 600, selector


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 360)])
def test_axe_finds_no_serious_violation(show: Any, report: Path, scheme: str, width: int) -> None:
    page = show(report, color_scheme=scheme, viewport={"width": width, "height": 740})
    page.locator(".fold, #C1, #C4a").evaluate_all("all => all.forEach(details => { details.open = true; })")
    page.locator("tbody tr:nth-child(n + 6)").evaluate_all("all => all.forEach(row => row.remove())")  # of a kind
    assert has_no_serious_violation(page)


@pytest.mark.slow
def test_the_served_page_renews_itself(show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_scale_short(monkeypatch)
    monkeypatch.setattr(serve, "SECONDS", 0.1)
    make_run(tmp_path, status="running", logged=2)
    server = serve.Server(tmp_path, "short", lambda version: live_page(version, tmp_path, "short"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = show(server.url)
        page.locator("details#C1 > summary").click()
        page.locator("[name=experiment]").select_option("cifar")
        newer = make_run(tmp_path / "newer", status="running", logged=3)
        for name in ("metrics.csv", "layers.csv", "run.json"):
            os.replace(newer / name, tmp_path / "short" / "cifar" / "wn_lr0.003" / "seed-1" / name)
        page.locator("tr[id]", has_text="3 of 8").wait_for(state="attached", timeout=60_000)
        assert page.locator("details#C1[open]").count() == 1
        assert page.locator("[name=experiment]").input_value() == "cifar"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "hostile"])
def test_the_page_of_a_comparison(
    show: Any, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    results = request.getfixturevalue(name)
    set_scale_short(monkeypatch)
    shutil.copytree(results, tmp_path / "theirs")
    make_run(tmp_path / "theirs", seed=7)
    page = show(write_comparison(tmp_path / "theirs", results, "short")[1], viewport={"width": 360, "height": 740})
    assert page.evaluate("window.pwned") is None and page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#runs-in-both th button", has_text="Seed").click()
    assert page.locator("#runs-in-both th[aria-sort]").count() == 1
    assert has_no_serious_violation(page)

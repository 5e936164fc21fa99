"""The report's page in a headless browser, from file:// and from its server."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from factories import ADDRESSES, HOSTILE, SHOWN, make_run, running, set_scale_short, train_on
from playwright.sync_api import Browser, Page, sync_playwright

from wnrepro.report import declared, live_page, serve, write_comparison
from wnrepro.report.claims import CLAIMS, findings
from wnrepro.reproduce.grid import commands
from wnrepro.results import load

RUNS = "#settings-and-runs details:last-of-type table"
PUBLISHED = Path(__file__).parents[2] / "results" / "published"
HEIGHTS = {1400: 13_600, 360: 23_300}  # of the published page, by its width: it stays shorter


@pytest.fixture(scope="session")
def pages(everything: Path, hostile: Path) -> dict[str, Path]:
    """The pages of two results folders, beside their runs; with their figures, but not those for print."""
    paths = {"report": everything / "short" / "report.html", "attack": hostile / "short" / "report.html"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_scale_short(monkeypatch)
        for path in paths.values():
            path.write_text(live_page("", path.parents[1], "short", commands=commands("short")))
    return paths


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


def shown(page: Page, selector: str, said: str) -> list[str]:
    """What a script says of those that a selector finds and the page shows."""
    script = f"all => all.filter(one => one.offsetParent).map(one => {said})"
    texts: list[str] = page.locator(selector).evaluate_all(script)
    return texts


def column(page: Page, title: str) -> list[str]:
    """The run table's cells under a heading, from top to bottom, once all is unfolded."""
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
    titles = page.locator(f"{RUNS} thead th").all_text_contents()
    return shown(page, f"{RUNS} tbody tr", f"one.cells[{titles.index(title)}].textContent")


def test_a_small_page_sorts_and_answers_the_pointer(show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test of the browser that is not slow: figures are left out but one."""
    monkeypatch.setattr(declared, "FIGURES", {"figure1": declared.FIGURES["figure1"]})
    for seed in (1, 2, 10):
        make_run(tmp_path, seed=seed, scale="quick")
    make_run(tmp_path, "normal", scale="quick")
    (tmp_path / "report.html").write_text(live_page("", tmp_path, "quick"))
    page = show(tmp_path / "report.html", viewport={"width": 360, "height": 740})
    column(page, "Run")
    page.locator(f"{RUNS} th button", has_text="Run").click()
    assert column(page, "Run")[1:3] == ["cifar wn_lr0.003 seed-1", "cifar wn_lr0.003 seed-10"]
    chart, tip = page.locator("#figure-figure1"), page.locator("#tip")
    mark = chart.locator(".mark[data-name='cifar/wn_lr0.003/seed-2']").first
    script = "(svg, [x, y]) => { const p = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM()); return [p.x, p.y]; }"
    at = [*map(float, mark.get_attribute("data-at").split()[:2])]
    chart.locator("svg").first.scroll_into_view_if_needed()
    page.mouse.move(*chart.locator("svg").first.evaluate(script, at))
    error = (tmp_path / "quick/cifar/wn_lr0.003/seed-2/metrics.csv").read_text().splitlines()[1].split(",")[2]
    said = tip.inner_text().split()
    assert "epoch 1: " in tip.inner_text() and abs(float(said[-2]) - 100 * float(error)) < 1.5
    chart.locator("button.seeds").click()
    assert not mark.is_visible() and chart.locator(".mark:not(.seed)").first.is_visible()
    normal = chart.locator(".mark[data-param=normal]").first
    assert normal.is_visible()
    chart.locator("button", has_text="normal").first.click()
    assert not normal.is_visible()
    chart.locator("svg").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_every_claim_unfolds_to_what_was_found(show: Any, pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = show(pages["report"], permissions=["clipboard-read", "clipboard-write"])
    set_scale_short(monkeypatch)
    found, told_command = findings(load(pages["report"].parents[1], "short")), commands("short")
    for claim in CLAIMS:
        row, finding = page.locator(f"details#{claim.id}"), found[claim.id]
        assert row.locator(".badge").first.text_content() == finding.verdict and not row.locator("dl").is_visible()
        names, texts = (row.locator(f"dl > {tag}").all_text_contents() for tag in ("dt", "dd"))
        told = dict(zip(names, texts, strict=True))
        assert told["Paper"] == f"{claim.paper} ({claim.where})" and told["Measured"] == finding.measured
        assert told["Command"].startswith(told_command[claim.id])
        assert row.locator(".used li").count() == len(finding.used)
    claim = page.locator("details#C10a")
    claim.locator("summary").focus()
    page.keyboard.press("Enter")
    assert claim.locator("dl").is_visible() and claim.locator(".chart svg").first.is_visible()
    claim.locator(".copy").click()
    claim.locator(".copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == told_command["C10a"]
    for link in (claim.locator(".used a").first, claim.locator("a[href^='#figure-']")):
        link.click()
        page.locator(link.get_attribute("href")).wait_for(state="visible")
    for target in set(page.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")):
        if target.startswith("#"):
            assert page.locator(f"[id='{target[1:]}']").count() == 1, target
        else:
            assert (pages["report"].parent / unquote(target)).is_file(), target
    page = show(pages["report"])
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details#C4a dl").is_visible() and page.locator(".claim .chart").count() == 0
    assert not page.locator("nav").is_visible() and not page.locator(".copy").first.is_visible()


@pytest.mark.slow
def test_the_published_page_is_short_and_small(show: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(live_page("", PUBLISHED, "short"))
    assert path.stat().st_size < 3_000_000
    for width, height in HEIGHTS.items():
        page = show(path, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollHeight") < height
        assert page.locator("figure").first.bounding_box()["y"] < 2 * 900 and page.locator(".media img").count() >= 5
        page.evaluate("window.scrollTo(0, 3000)")
        assert 0 <= page.locator("nav").bounding_box()["y"] < 100
        column(page, "Run")
        scroll = page.locator(RUNS).locator("..")
        scroll.evaluate("box => { box.scrollLeft = 400; }")
        assert scroll.locator("tbody th").first.bounding_box()["x"] >= scroll.bounding_box()["x"]


@pytest.mark.slow
def test_filters_leave_what_is_asked_for_and_tables_sort(show: Any, pages: Any) -> None:
    page = show(pages["report"])
    before = list(zip(column(page, "Run"), column(page, "Epoch"), strict=True))

    def choose(**values: str) -> set[str]:
        for name in ("verdict", "experiment", "param"):
            page.locator(f"[name={name}]").select_option(values.get(name, ""))
        return {*shown(page, ".claim", "one.id")}

    assert len(choose()) == len(CLAIMS)
    left = choose(verdict="reproduced")
    assert (
        left <= {"C1", "C2", "C3"} and page.locator(".shown").text_content() == f"{len(left)} of {len(CLAIMS)} claims"
    )
    page.locator(".claim:not([hidden]) .used a").first.click()  # to a row of what the filter hides
    page.locator("#run-1").wait_for(state="visible")
    assert page.locator("[name=verdict]").input_value() == ""
    assert choose(experiment="draw") >= {"C10a", "C10b"} and not {"C4a", "C11"} & choose(experiment="draw")
    assert {name.split()[0] for name in column(page, "Run")} == {"draw"}
    left = choose(param="wn+mobn")
    assert "C8a" in left and "C10a" not in left and all("wn+mobn" in name for name in column(page, "Run"))
    assert not page.locator("#figure-figure1 .mark[data-param=bn]").first.is_visible()
    choose()
    heading = page.locator(f"{RUNS} th", has_text="Epoch").first
    for order, sign in (("ascending", 1), ("descending", -1)):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        expected = sorted(before, key=lambda run: sign * int(run[1].split()[0]))  # equal ones as they stood
        assert list(zip(column(page, "Run"), column(page, "Epoch"), strict=True)) == expected
    page.locator(f"{RUNS} th button", has_text="Run").focus()
    for key, reverse in (("Enter", False), ("Space", True)):
        page.keyboard.press(key)
        assert column(page, "Run") == sorted((run for run, _ in before), reverse=reverse)


@pytest.mark.slow
@pytest.mark.parametrize("bypass_csp", [False, True])
def test_hostile_text_is_shown_and_not_executed(show: Any, pages: Any, bypass_csp: bool) -> None:
    page = show(pages["attack"], bypass_csp=bypass_csp)
    texts = {"Message": [HOSTILE, ADDRESSES, SHOWN], "Device": [HOSTILE, ADDRESSES, SHOWN], "torch": [HOSTILE]}
    for title, some in (texts | {"Commit": [f"{HOSTILE[:7]}, dirty"], "Settings' hash": [ADDRESSES]}).items():
        assert set(some) <= set(column(page, title)), title
    for place in ("details#C1", "details#C7a"):
        assert HOSTILE in page.locator(place).text_content()
    problems = page.locator(".problems").text_content()
    assert HOSTILE[:90] in problems and ADDRESSES[:60] in problems and SHOWN in problems
    assert {HOSTILE, ADDRESSES, json.dumps([HOSTILE, 1])} <= set(page.locator("td").all_text_contents())
    page.locator(f"{RUNS} th button", has_text="Message").click()
    for panel in page.locator(".panel > svg").all():
        panel.focus()
        page.keyboard.press("ArrowRight")
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1 and page.locator("td img, td b, li b, svg script, #tip *").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "attack", "comparison"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 360)])
def test_any_screen_shows_it(
    show: Any, pages: Any, tmp_path: Path, made_up_scale: None, name: str, scheme: str, width: int
) -> None:
    path = pages.get(name, pages["attack"])
    if name == "comparison":
        shutil.copytree(path.parents[1], tmp_path / "theirs")
        make_run(tmp_path / "theirs", seed=7)
        path = write_comparison(tmp_path / "theirs", path.parents[1], "short")[1]
    page = show(path, color_scheme=scheme, viewport={"width": width, "height": 740})

    def level(selector: str, name: str) -> int:
        colour = page.locator(selector).first.evaluate(f"one => getComputedStyle(one)['{name}']")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    levels = [level("body", "backgroundColor"), level("body", "color")]
    if name == "report":
        levels += [level("#figure-figure1 .mark[data-param=normal] > path", "stroke")]
    if name != "comparison":
        levels += [level("#figure-figure1 svg text", "fill")]
        page.locator(".fold, #C1, #C4a").evaluate_all("all => all.forEach(details => { details.open = true; })")
    assert [one > 380 for one in levels] == [(scheme == "light") == (i == 0) for i, _ in enumerate(levels)]
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.evaluate("window.pwned") is None
    page.locator("tbody tr:nth-child(n + 6)").evaluate_all("all => all.forEach(row => row.remove())")  # of a kind
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


@pytest.mark.slow
def test_only_its_own_script_and_style_have_an_effect(browser: Browser, pages: Any) -> None:
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
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
@pytest.mark.usefixtures("made_up_scale", "text_only")
def test_the_served_page_renews_itself(show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "SECONDS", 0.1)
    make_run(tmp_path, status="running", logged=2)
    with running(tmp_path, []) as server:
        page = show(server.url)
        page.locator("details#C1 > summary").click()
        page.locator("[name=experiment]").select_option("cifar")
        train_on(tmp_path)
        page.locator("tr[id]", has_text="3 of 8").wait_for(state="attached", timeout=60_000)
        assert page.locator("details#C1[open]").count() == 1
        assert page.locator("[name=experiment]").input_value() == "cifar"

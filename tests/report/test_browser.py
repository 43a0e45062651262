"""The page in a real browser, headless, at two widths: nothing it complains of, nothing cut off, keys and pointer work.

It wants Chromium (Debian: apt-get install chromium; `.ci/run` does that) and playwright, which drives it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_page import questions
from test_several import runs

from sightline.compare.claims import read_shipped
from sightline.diagnostics import lens_page
from sightline.diagnostics.lens import Cell, Lens
from sightline.report.page import write_page

__all__ = ["questions", "runs"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"wide": (1280, "light"), "phone": (390, "dark")}
VISION = {
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
"""Of linear RGB, full strength: Machado, Oliveira and Fernandes 2009."""
FAINT = """() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const over = (ground, colour) => {
    for (pen.fillStyle of [ground, colour]) pen.fillRect(0, 0, 1, 1);
    return `rgb(${[...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)})`;
  };
  const own = one => getComputedStyle(one).backgroundColor;
  const ground = one => over(one.parentElement ? ground(one.parentElement) : "#fff", own(one));
  const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [red, green, blue] = colour.match(/\\d+/g).map(part => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  };
  const told = one => [...one.childNodes].some(inner => inner.nodeType === 3 && inner.textContent.trim());
  const found = {};
  for (const one of document.querySelectorAll("main *")) {
    if (!told(one) || one.closest("svg") || !one.checkVisibility()) continue;
    const [below, text] = [ground(one), over(ground(one), getComputedStyle(one).color)].map(light);
    const contrast = Math.max(below, text) / Math.min(below, text);
    if (contrast < 4.5) found[`${one.tagName}.${one.className}`] = contrast;
  }
  return found;
}"""
"""Elements with text of its own that is not in a drawing, and how little it stands out."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine, so no page can be looked at: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page can have: two runs, a twin, looks, claims."""
    return write_page(*runs, twin=runs[1], comparisons=read_shipped(), out=tmp_path_factory.mktemp("page") / "p.html")


@pytest.fixture(scope="module", params=WIDTHS)
def opened(request, browser, page_file: Path) -> Iterator[tuple[Any, list[str]]]:
    """The page, and what the browser says of it: messages, errors, requests."""
    width, scheme = WIDTHS[request.param]
    page, said = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    page.goto(page_file.as_uri())
    yield page, said
    page.close()


def test_the_browser_has_nothing_to_say_and_nothing_is_cut_off(opened):
    page, said = opened
    assert said == []
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll("h1,h2,h3,p,li,figcaption,summary,img,.track")].filter(one => {
        const box = one.getBoundingClientRect();
        return box.width > 0 && !one.closest(".scroll") && (box.right > innerWidth + 1 || box.left < -1);
    }).map(one => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(cut) == []
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_a_token_tells_its_words_to_pointer_and_keys(opened):
    page, said = opened
    lens = page.locator(".lens").first
    cells, told = lens.locator(".cell"), lens.locator(".said")
    hint = told.inner_text()
    cells.nth(0).hover()
    assert told.inner_text() == cells.nth(0).get_attribute("aria-label") != hint
    page.locator("h1").hover()
    assert told.inner_text() == hint
    cells.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert told.inner_text().startswith("row 1, column 2") and said == []
    page.keyboard.press("ArrowDown")
    assert told.inner_text().startswith("row 2, column 2")
    page.keyboard.press("ArrowDown")
    assert told.inner_text().startswith("row 2, column 2"), "there is no row below"
    page.keyboard.press("Tab")
    inside = "document.querySelector('.lens').contains(document.activeElement)"
    assert not page.evaluate(inside), "Tab leaves the tokens at once"


def test_colours_are_legible_and_told_apart_by_everyone(opened):
    page, _ = opened
    colour = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
    rgb = {name: linear(page.evaluate(colour, f"--{name}")) for name in ("a", "b", "c", "d", "twin", "muted", "paper")}
    paper = luminance(rgb.pop("paper"))
    for name, value in rgb.items():
        high, low = sorted((luminance(value), paper), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4.5, f"{name} on the page's ground (WCAG AA)"
    del rgb["muted"]
    for kind, matrix in VISION.items():
        seen = [np.clip(np.array(matrix) @ value, 0, 1) ** (1 / 2.2) for value in rgb.values()]
        apart = min(float(np.linalg.norm(x - y)) for i, x in enumerate(seen) for y in seen[:i])
        assert apart > 0.2, kind


def test_all_text_is_legible(opened):
    page, _ = opened
    assert page.evaluate(FAINT) == {}, "below 4.5 to 1 (WCAG AA)"


def test_a_long_name_does_not_widen_the_page(browser, runs, tmp_path):
    named = Path(shutil.copytree(runs[0], tmp_path / "named"))
    (named / "run.json").write_text(json.dumps({"name": "long_" * 60}))
    file = write_page(named, runs[1])
    for width, _ in WIDTHS.values():
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(rgb: np.ndarray) -> float:
    return float(rgb @ [0.2126, 0.7152, 0.0722])


def test_the_page_of_a_lens_takes_keys_too(browser, tmp_path):
    from PIL import Image

    cells = tuple(Cell(((f"word{number}", 0.5),)) for number in range(9))
    lens_page.write_page(Lens(Image.new("RGB", (90, 90)), 3, cells, 9), tmp_path / "lens.html", title="t")
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "lens.html").as_uri())
    page.locator(".cell").first.focus()
    for key in ("ArrowDown", "End"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("row 2, column 3: word5")
    assert said == []

"""The page in headless Chromium: nothing goes wrong, nothing is asked of a network, the viewer draws what it should."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Page, chromium, find_chromium

from monai_ext.__main__ import main

READY = "document.getElementById('viewer').dataset.state !== undefined"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_chromium() is None:
        warnings.warn("Chromium is not installed: nobody looked at the report's page", stacklevel=1)
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def path(two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main(["report", "--runs", *map(str, two_runs), "--out", str(out)]) == 0
    return out / "index.html"


def errors(page: Page) -> list[str]:
    """But for what the software renderer says of its own speed."""
    return [problem for problem in page.problems if "GL Driver Message" not in problem]


def test_the_page_opens_and_its_viewer_draws(browser: Page, path: Path) -> None:
    browser.open(path)
    browser.wait_for(READY)
    assert browser.evaluate("document.getElementById('viewer').dataset.state") == "ready"
    truth, synthesis = (np.asarray(browser.picture(f".pane:nth-child({n}) canvas"), dtype=int) for n in (1, 2))
    for image in (truth, synthesis):
        grey = image[(np.ptp(image, axis=2) < 12) & (image.mean(axis=2) > 60)]
        assert len(grey) > 20_000
        assert np.ptp(grey) > 120
    assert 0.5 < abs(truth - synthesis).mean() < 20  # alike, and not the same
    browser.evaluate(
        "(() => { const s = document.querySelectorAll('.pane select')[1]; s.selectedIndex = s.options.length - 1;"
        " s.dispatchEvent(new Event('change')); })()"
    )
    browser.wait_for("document.querySelectorAll('.shown')[1].textContent.startsWith('Error of')")
    error = np.asarray(browser.picture(".pane:nth-child(2) canvas"), dtype=int)
    coloured = np.ptp(error, axis=2) > 40  # in the error's colours, and dark where the two agree
    assert coloured.mean() > 0.02
    assert error.mean() < truth.mean()
    assert errors(browser) == []
    assert browser.requests == []


def test_one_click_moves_both_crosshairs(browser: Page, path: Path) -> None:
    browser.open(path)
    browser.wait_for(READY)
    read = "[...document.querySelectorAll('.pane output')].map((output) => output.textContent)"
    before = browser.evaluate(read)
    browser.evaluate("document.querySelector('.pane canvas').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y, width, height = browser.evaluate(
        "(() => { const r = document.querySelector('.pane canvas').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        where = {"x": x + 0.12 * width, "y": y + 0.15 * height}
        browser.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)
    browser.wait_for(f"({read}).every((text, i) => text !== {before}[i])")
    assert all(re.fullmatch(r"\d\.\d{3}", value) for value in browser.evaluate(read))
    assert errors(browser) == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_fits_its_window_in_either_theme(browser: Page, path: Path, width: int, dark: bool) -> None:
    browser.open(path, width=width, dark=dark)
    browser.wait_for(READY)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper = np.asarray(browser.picture())[5, 5].mean()
    assert paper < 60 if dark else paper > 220
    small = browser.evaluate(
        "[...document.querySelectorAll('p, td, th, dd, figcaption, li')].filter((e) => e.offsetParent &&"
        " parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0


def test_without_webgl_the_page_says_so(browser: Page, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index.html"
    blocked = "<script>HTMLCanvasElement.prototype.getContext = () => null;</script><main>"
    copy.write_text(path.read_text(encoding="utf-8").replace("<main>", blocked, 1), encoding="utf-8")
    browser.open(copy)
    browser.wait_for(READY)
    assert "no WebGL 2" in browser.evaluate("document.querySelector('#viewer [role=status]').textContent")
    assert errors(browser) == []


def test_a_request_to_a_network_is_refused_by_the_page_itself(browser: Page, path: Path) -> None:
    browser.open(path)
    sent = "fetch('https://example.org/').then(() => 'sent', (error) => 'refused')"
    assert browser.evaluate(sent) == "refused"
    assert any("Content Security Policy" in problem for problem in browser.problems)

"""Curves in a real browser: what a reader filters, reads out and zooms. Skipped where there is no Chromium."""

from collections.abc import Iterator
from pathlib import Path

import chromium
import fake_curves
import pytest
from chromium import Browser
from fake_reports import report

pytestmark = [pytest.mark.skipif(chromium.BINARY is None, reason="no Chromium on this machine"), pytest.mark.slow]
PLOT = ".explore .plots > div"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("curves")
    report(
        fake_curves.write_study(top / "r", ("base", "quark", "ppo", "rloo", "filtering"), ("toxicity",), prompts=20),
        top / "out",
    )
    return top / "out/index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def shown(browser: Browser) -> list[str]:
    """The curves of the first plot that are not dimmed."""
    return browser.ask(
        f"[...document.querySelectorAll('{PLOT}:first-child g.m')].filter(g => getComputedStyle(g).opacity === '1')"
        ".map(g => g.classList[1])"
    )


@pytest.mark.parametrize("width", [400, 1600])
def test_the_answer_is_on_top_and_everything_fits(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.said() == [] and browser.requests() == [page.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.querySelector('.verdict').getBoundingClientRect().top") < 520
    plots = f"[...document.querySelectorAll('{PLOT} svg')]"
    small = f"{plots}.map(p => 7.5 * p.getBoundingClientRect().width / p.viewBox.baseVal.width)"
    assert min(browser.ask(small)) > 7  # pixels of the smallest letters


def test_a_family_selects_its_methods_and_all_are_shown_again(browser: Browser, page: Path) -> None:
    browser.open(page)
    everything = set(shown(browser))
    family = "[...document.querySelectorAll('.chip.family')].find(c => c.textContent === 'policy gradients')"
    browser.ask(f"{family}.click()")
    assert set(shown(browser)) == {"m2", "m4"} < everything  # base, filtering, ppo, quark, rloo
    assert browser.ask(f"{family}.ariaPressed") == "true"
    browser.click(".chip[data-m=m4]")
    assert set(shown(browser)) == {"m2"} and browser.ask(f"{family}.ariaPressed") == "false"
    browser.click(".chip.clear")
    assert set(shown(browser)) == everything


def test_the_nearest_point_is_read_out_under_the_pointer(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask(f"document.querySelector('{PLOT}').scrollIntoView()")
    mark = f"document.querySelector('{PLOT} use[data-said^=\"quark, kl_coef 1,\"]')"
    x, y = browser.ask(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({mark}.getBoundingClientRect())")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 1, y=y + 1)
    tip = "document.querySelector('.tip')"
    assert browser.ask(f"{tip}.hidden") is False
    said = browser.ask(f"{tip}.textContent")
    assert said.startswith("quark, kl_coef 1, 2 seeds") and "KL 0." in said and "removed" in said
    assert browser.ask(f"document.querySelectorAll('{PLOT} title').length") == 0


def test_points_are_read_and_plots_zoomed_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask(f"document.querySelector('{PLOT}').focus()")
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true, cancelable: true}))"
    browser.ask(key % "ArrowRight")
    first = browser.ask("document.querySelector('.tip').textContent")
    browser.ask(key % "ArrowRight")
    assert first != browser.ask("document.querySelector('.tip').textContent") != ""
    wide = f"document.querySelector('{PLOT} svg').viewBox.baseVal.width"
    whole = browser.ask(wide)
    browser.ask(key % "+")
    assert browser.ask(wide) == pytest.approx(0.6 * whole)
    browser.ask(key % "Escape")
    assert browser.ask(wide) == whole


def test_a_plot_is_zoomed_by_buttons_and_never_beyond_its_edges(browser: Browser, page: Path) -> None:
    browser.open(page)
    box = f"(b => [b.x, b.y, b.width, b.height])(document.querySelector('{PLOT} svg').viewBox.baseVal)"
    whole = browser.ask(box)
    for _ in range(9):
        browser.click(".zoom button:nth-child(1)")
    inner = browser.ask(box)
    assert inner[2] == pytest.approx(whole[2] / 20) and inner[0] > whole[0] and inner[0] + inner[2] < whole[0] + whole[2]
    for _ in range(9):
        browser.click(".zoom button:nth-child(2)")
    assert browser.ask(box) == pytest.approx(whole, abs=1e-3) and browser.said() == []

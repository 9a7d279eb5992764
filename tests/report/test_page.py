"""The report's page in a real browser: what a reader clicks, presses and sees. Skipped where there is no Chromium."""

from collections.abc import Iterator
from pathlib import Path

import chromium
import fake_records as fake
import pytest
from chromium import Browser

from harness.analysis.study import Study
from harness.records.read import find_runs
from harness.report.build import build

pytestmark = [pytest.mark.skipif(chromium.BINARY is None, reason="no Chromium on this machine"), pytest.mark.slow]
HOSTILE = (
    "<script>document.title='owned'</script></style></template>-->]]>\u202eevil\ud800"
    "<img src=x onerror=\"document.title='owned'\">"
)
SECTION = "#micro-toxicity"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("page")
    for method in ("base", "quark", "ppo", "npo"):
        for seed in range(2):
            fake.write_samples(fake.write_run(top / "r", method, seed), method, HOSTILE)
    fake.write_run(top / "r", "_hidden", 0, manifest={"method": HOSTILE}, summary={"method": HOSTILE})
    fake.write_run(top / "r", "silent", 0, final={"judge": fake.point(None, reason="the judge was away")})
    build(Study(*find_runs([top / "r"])), top / "out")
    return top / "out/index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("width", [400, 1600])
def test_it_opens_alone_and_fits(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.said() == [] and browser.requests() == [page.as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width
    plots, tiles = (
        browser.ask(
            f"[...document.querySelectorAll('{which}')].map(p => p.getBoundingClientRect()).map(r => [r.width, r.height])"
        )
        for which in (".plots:not(.small) svg.plot", ".plots.small svg.plot")
    )
    assert len(plots) >= 12 and all(w >= min(300, width - 100) and h > 80 for w, h in plots)
    assert tiles and all(w >= 165 and h > 130 for w, h in tiles)  # two side by side on a telephone
    marks = "[...document.querySelectorAll('svg.plot use')].filter(u => u.getBoundingClientRect().width > 0).length"
    assert browser.ask(marks) > 50
    small = (
        "[...document.querySelectorAll('svg.plot')].map(p => 7.5 * p.getBoundingClientRect().width / p.viewBox.baseVal.width)"
    )
    assert min(browser.ask(small)) > 7  # pixels of the smallest letters


def test_hostile_text_does_nothing(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click(f"{SECTION} [data-part=every]")
    said = browser.ask(
        f"document.querySelector('{SECTION} .said').textContent + document.querySelector('.answers').textContent"
    )
    assert "<script>" in said and "\u202e" not in said and "\ud800" not in said
    assert (
        browser.ask("document.title") != "owned"
        and browser.ask("document.querySelectorAll('img, .answers script').length") == 0
    )
    assert browser.said() == []


def test_a_script_that_got_in_would_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask("(s => { s.textContent = 'document.title = 1'; document.body.append(s) })(document.createElement('script')); 0")
    assert browser.ask("document.title") != "1" and "Content Security Policy" in " ".join(browser.said())


def test_texts_are_hidden_until_clicked_or_pressed(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = f"[...document.querySelectorAll('{SECTION} .said')].length"
    assert browser.ask(shown) == 0 and "calm prompt" not in browser.ask("document.body.innerText")
    browser.click(f"{SECTION} .answer .show")
    assert browser.ask(shown) == 1
    browser.ask(f"document.querySelector('{SECTION} .answer .show').focus()")
    browser.press("Enter")
    assert browser.ask(shown) == 2 and browser.ask("document.activeElement.className") == "said"


def test_prompts_are_stepped_filtered_and_searched_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    place = f"document.querySelector('{SECTION} [data-part=place]').textContent"
    assert browser.ask(place).startswith("Prompt 1 of 6")
    browser.ask(f"document.querySelector('{SECTION} [data-part=next]').focus()")
    browser.press("Enter")
    assert browser.ask(place).startswith("Prompt 2 of 6")
    browser.ask(f"document.querySelector('{SECTION} [data-part=search]').focus()")
    browser.type("heated prompt 1")
    assert browser.ask(place) == "Prompt 1 of 1, kind: heated"
    browser.type(" and nothing like it")
    assert browser.ask(place) == "No prompt matches."


def test_kinds_methods_and_order_are_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    set_to = "(e, v) => { e.value = v; e.dispatchEvent(new Event('change')) }"
    browser.ask(f"({set_to})(document.querySelector('{SECTION} [data-part=kind]'), 'calm')")
    assert browser.ask(f"document.querySelector('{SECTION} [data-part=place]').textContent") == "Prompt 1 of 3, kind: calm"
    names = f"[...document.querySelectorAll('{SECTION} .answer h5')].map(h => h.textContent)"
    assert browser.ask(names) == ["base (untrained)", "base", "npo", "ppo", "quark"]
    browser.ask(f"({set_to})(document.querySelector('{SECTION} [data-part=sort]'), 'best')")
    assert browser.ask(names)[0] == "quark"
    browser.click(f"{SECTION} [data-part=method]")
    browser.type("pp")
    assert browser.ask(names) == ["ppo"]


def test_tables_sort_by_click_and_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    table = f"document.querySelectorAll('{SECTION} table.sortable')[1]"
    rows = f"[...{table}.tBodies[0].rows].map(r => r.cells[0].textContent)"
    head = f"{table}.tHead.rows[0].cells[3]"  # removed
    browser.ask(f"{head}.querySelector('button').id = 'removed'")
    browser.click("#removed")
    up = browser.ask(rows)
    assert up[0] == "base (untrained)" and up[-2:] == ["quark", "silent"] and browser.ask(f"{head}.ariaSort") == "ascending"
    browser.press("Enter")
    assert browser.ask(rows) == [up[0], *reversed(up[1:-1]), "silent"] and browser.ask(f"{head}.ariaSort") == "descending"


def test_a_method_stands_out_where_it_is_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click(f"{SECTION} button.chip")
    dim = "[...document.querySelectorAll('svg.plot g.m')].map(g => [g.classList.contains('on'), getComputedStyle(g).opacity])"
    found = browser.ask(dim)
    assert {tuple(pair) for pair in found} == {(True, "1"), (False, "0.1")}
    browser.press(" ")
    assert {opacity for _, opacity in browser.ask(dim)} == {"1"}


def test_every_mark_names_its_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    titles = browser.ask("[...document.querySelectorAll('svg.plot use title')].map(t => t.textContent)")
    ends = [t for t in titles if "seed 0, run 5e5e5e5e-s0, done: kl " in t]
    assert ends and all("judge" in t or "reward" in t for t in ends)
    assert any("quark, seed 1, run 5e5e5e5e-s1, done: kl " in t for t in titles)
    assert any("quark, mean of 2 seeds" in t and "5e5e5e5e-s0, 5e5e5e5e-s1" in t for t in titles)

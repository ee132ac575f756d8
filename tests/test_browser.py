"""The built book in a browser without a network: charts, formulas, phone width, light and dark, words."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium, serve

from compendium import claims

HTML = Path(__file__).resolve().parents[1] / "book" / "_build" / "html"
GENERATED = ("genindex.html", "search.html", "py-modindex.html", "prf-prf.html")
MOVED = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if path.stat().st_size < 1000 and 'http-equiv="refresh"' in path.read_text(encoding="utf-8")
)
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.relative_to(HTML).parts
    and path.name not in GENERATED
    and path.relative_to(HTML).as_posix() not in MOVED
)

CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def book() -> Iterator[str]:
    with serve(HTML) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        started.send("Page.addScriptToEvaluateOnNewDocument", source=CHECKS)
        yield started


def test_the_book_has_been_built() -> None:
    assert "index.html" in PAGES, "build the book first: make book"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_without_a_network_and_legible(browser: Browser, book: str, page: str) -> None:
    browser.visit(f"{book}/{page}")
    assert browser.errors == []
    local = (book, "data:", "blob:", "about:")
    assert [url for url in browser.requests if not url.startswith(local)] == []
    assert browser.run("document.documentElement.dataset.theme") == "light"
    for chart in browser.run("checks.charts()"):
        assert chart["drawn"] == "light", chart
        assert chart["marks"] > 0, chart
        assert len(chart["words"]) >= 20, chart
        assert chart["data"] >= 1, chart
        assert chart["width"] > 200, chart
    formulas = browser.run("checks.formulas()")
    assert formulas == {"unset": [], "wrong": [], "unread": 0}
    assert browser.run("checks.pictures()") == []
    assert browser.run("checks.sameIds()") == []
    assert browser.run("checks.faint(4.5)") == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_phone_and_is_legible_in_the_dark(browser: Browser, book: str, page: str) -> None:
    browser.visit(f"{book}/{page}", width=390, theme="dark")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert browser.run("checks.overflow()") == []
    assert browser.run("document.documentElement.scrollWidth") <= 390
    for chart in browser.run("checks.charts()"):
        assert chart["drawn"] == "dark", chart
        assert chart["beyond"] == 0, chart  # no title or legend is cut off
    browser.resize(1200)  # more is shown in a wide window
    assert browser.run("checks.faint(4.5)") == []


@pytest.mark.parametrize("page", MOVED)
def test_an_old_address_leads_to_the_page(browser: Browser, book: str, page: str) -> None:
    (target,) = re.findall(r'url=([^"]+)"', (HTML / page).read_text(encoding="utf-8"))
    assert (HTML / page).parent.joinpath(target).resolve().is_file()
    browser.visit(f"{book}/{(Path(page).parent / target).as_posix()}")
    assert browser.run("document.title") != "Moved"


FILTER = """(() => {
  const choice = [...document.querySelectorAll('form.ledger-filter select')][1];
  choice.value = 'certified';
  choice.dispatchEvent(new Event('input', { bubbles: true }));
  const rows = [...document.querySelectorAll('table.ledger tbody tr')];
  const shown = rows.filter((row) => row.offsetParent !== null);
  return { all: rows.length, kinds: [...new Set(shown.map((row) => row.cells[2].innerText.trim()))] };
})()"""
SORT = """(() => {
  document.querySelectorAll('table.ledger th button')[3].click();
  const keys = [...document.querySelectorAll('table.ledger tbody tr .key')].filter((_, i) => i % 4 === 3);
  return keys.map((key) => key.textContent);
})()"""


def test_the_ledger_can_be_filtered_and_sorted(browser: Browser, book: str) -> None:
    browser.visit(f"{book}/appendix/claims.html")
    filtered = browser.run(FILTER)
    assert filtered["all"] == len(claims.load())
    assert filtered["kinds"] == ["certified"]
    verdicts = browser.run(SORT)
    assert len(verdicts) == filtered["all"]
    assert verdicts == sorted(verdicts)
    assert browser.run("document.querySelector('[aria-sort=ascending]').innerText.startsWith('Verdict')")


def test_a_verdict_leads_to_the_line_that_states_it(browser: Browser, book: str) -> None:
    browser.visit(f"{book}/appendix/claims.html")
    link = "[...document.querySelectorAll('table.ledger a')].find(a => a.hash === '#claim-snr-theorem-clean')"
    browser.visit(browser.run(f"{link}.href"))
    stated = browser.run("document.querySelector(':target').closest('div.output').innerText")
    assert "reproduced in part | snr-theorem-clean: " in stated


def interactive(browser: Browser, book: str) -> dict[str, Any]:
    browser.visit(f"{book}/explorer.html")
    return browser.run("""(() => {
      const chart = window.molrgCharts.find(c => c.controls.querySelector('input[type=range]'));
      return { id: chart.root.id, sliders: chart.controls.querySelectorAll('input[type=range]').length };
    })()""")


CURVE = "[...document.querySelectorAll('#%s .mark-line path')].map(p => p.getAttribute('d')).join()"
MOVE = """
(async () => {
  const chart = window.molrgCharts.find(c => c.root.id === '%s');
  const slider = chart.controls.querySelector('input[type=range]');
  slider.value = Number(slider.value) > 0.5 ? slider.min : slider.max;
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  await chart.view.runAsync();
  return slider.value;
})()
"""


def test_the_interactive_figure_follows_its_sliders_and_keeps_them_in_the_dark(
    browser: Browser, book: str
) -> None:
    figure = interactive(browser, book)
    assert figure["sliders"] == 2
    before = browser.run(CURVE % figure["id"])
    value = browser.run(MOVE % figure["id"])
    after = browser.run(CURVE % figure["id"])
    assert before
    assert after
    assert before != after
    browser.run("document.documentElement.dataset.theme = 'dark'")
    browser.wait(f"document.getElementById('{figure['id']}').dataset.drawn === 'dark'")
    kept = browser.run(f"document.querySelector('#{figure['id']} input[type=range]').value")
    assert kept == value
    assert browser.errors == []


def test_the_data_of_a_figure_can_be_downloaded(browser: Browser, book: str) -> None:
    browser.visit(f"{book}/theory/snr.html")
    text = browser.run("""(async () => {
      const button = document.querySelector('.chart-data button');
      const made = [];
      const original = URL.createObjectURL;
      URL.createObjectURL = blob => { made.push(blob); return original(blob); };
      HTMLAnchorElement.prototype.click = function () {};
      button.click();
      return made[0].text();
    })()""")
    head, *rows = text.strip().split("\n")
    assert "sigma" in head.split(",")
    assert len(rows) > 10
    assert all(len(row.split(",")) == len(head.split(",")) for row in rows)


def test_a_page_without_scripts_still_shows_its_figures(browser: Browser, book: str) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=f"{book}/theory/snr.html")
        browser.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
        shown = browser.run(
            "[...document.querySelectorAll('noscript img')].map(i => [i.alt, i.naturalWidth])"
        )
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert shown
    assert all(len(words) >= 20 and width > 500 for words, width in shown)

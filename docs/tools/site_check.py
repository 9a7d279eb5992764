"""Check the built site: `python docs/tools/site_check.py build/site`.

It checks that every public name of `harness.api` has an entry with text, and that no page loads anything from another host.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from harness import api
from harness.core.errors import Mismatch, MissingPrerequisite
from harness.core.process import script

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
HARMLESS = ("canonical", "prev", "next")  # links that a browser does not load


class Page(HTMLParser):
    """The parsed HTML of a page: the text after each id of the API, and the URLs that it loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.loaded: list[str] = []
        self._last = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record ids and loaded URLs."""
        given = {key: value or "" for key, value in attrs}
        if given.get("id", "").startswith("harness.api."):
            self._last = given["id"]
            self.text.setdefault(self._last, "")
        if tag in LOADS and given.get("rel") not in HARMLESS:
            self.loaded.append(given.get(LOADS[tag], ""))

    def handle_data(self, data: str) -> None:
        """Add text to the last id before it."""
        if self._last:
            self.text[self._last] += data


def missing(page: Page) -> list[str]:
    """The public names without an entry, or with an entry of fewer than four words."""
    return [name for name in api.__all__ if len(page.text.get(f"harness.api.{name}", "").split()) < 4]


def foreign(page: Page) -> list[str]:
    """The URLs that a page loads from other hosts."""
    return [url for url in page.loaded if url.startswith(("http:", "https:", "//"))]


def check(site: Path) -> None:
    """Check a built site; raises MissingPrerequisite if there is none, Mismatch if a page fails a check."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    reference = site / "reference" / "api.html"
    if reference not in pages:
        raise MissingPrerequisite(f"no {reference}; build the site with: make docs")
    if lost := missing(pages[reference]):
        raise Mismatch(f"{reference} lacks {', '.join(lost)}; name each in docs/reference/api.md and give it a docstring")
    for path, page in pages.items():
        if urls := foreign(page):
            raise Mismatch(f"{path} loads {urls[0]} from another host; the site must work without network")


if __name__ == "__main__":
    script(lambda words: check(Path(words[0])))

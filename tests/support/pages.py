"""Structure of a report's page: text, table cells, links, and what a screen reader relies on."""

import html.parser
import re
from collections import Counter

_VOID = ("meta", "br", "link", "img", "input")
_LINKS = ("src", "href", "data", "srcset", "xlink:href")


class Page(html.parser.HTMLParser):
    """A parsed page; refuses tags that do not close.

    Attributes:
        rows: the cells of every table row.
        text: all text but styles, titles and plots.
        links: targets of links and sources of media.
        defects: what keeps a screen reader from reading the page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self.links: list[str] = []
        self.defects: list[str] = []
        self._open: list[str] = []
        self._ids: Counter[str] = Counter()
        self._headings: list[int] = []
        self._tables = Counter[str]()
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.handle_startendtag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        self.links += [value for name, value in attrs if name in _LINKS]
        self._ids[attributes.get("id") or ""] += 1
        self._tables[tag] += tag in ("table", "caption")
        if tag == "html" and not attributes.get("lang"):
            self.defects.append("the page has no language")
        if tag == "th" and attributes.get("scope") not in ("col", "row", "rowgroup"):
            self.defects.append("a table header has no scope")
        if tag == "svg" and not (attributes.get("role") == "img" and attributes.get("aria-label")):
            self.defects.append("a plot has no text alternative")
        if re.fullmatch("h[1-6]", tag):
            self._headings.append(int(tag[1]))

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        if self._open and self._open[-1] not in ("style", "title") and "svg" not in self._open:
            self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all_defects(self) -> list[str]:
        """All defects, those of the whole page included."""
        defects = list(self.defects)
        if self._headings[:1] != [1] or self._headings.count(1) != 1:
            defects.append("the page does not begin with its only h1")
        defects += [f"h{b} after h{a}" for a, b in zip(self._headings, self._headings[1:], strict=False) if b > a + 1]
        if self._tables["table"] != self._tables["caption"]:
            defects.append("a table has no caption")
        return defects + [f"id {name} comes twice" for name, count in self._ids.items() if name and count > 1]


def self_contained(text: str) -> Page:
    """The page, which loads nothing, has no script, and is accessible by its structure."""
    page = Page(text)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<img|<iframe|<object", text)
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    assert "not for direct use with clients" in " ".join(page.text.split())
    assert page.all_defects() == []
    return page

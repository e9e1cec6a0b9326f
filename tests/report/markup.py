"""A strict reader of our own pages: what a browser would silently repair is an error here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "br", "input", "link", "img", "hr"}


@dataclass
class Element:
    tag: str
    attrs: dict[str, str | None]
    parent: Element | None
    text: str = ""  #: of this element and all in it


class Page(HTMLParser):
    """All elements in order; raises for tags that do not nest and attributes given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {[e.tag for e in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice in {tag}: {names}"
        element = Element(tag, dict(attrs), self._open[-1] if self._open else None)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, f"</{tag}> in {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str = "", **attrs: str) -> list[Element]:
        """Elements of a tag with these attributes (``class_`` is one class of several)."""

        def fits(e: Element) -> bool:
            wanted = attrs.get("class_")
            if wanted and wanted not in (e.attrs.get("class") or "").split():
                return False
            return all(e.attrs.get(k) == v for k, v in attrs.items() if k != "class_")

        return [e for e in self.elements if (not tag or e.tag == tag) and fits(e)]

    def data(self) -> dict:
        """What the scripts of the first watch read."""
        return json.loads(self.all("script", type="application/json")[0].text)


def check(text: str) -> Page:
    """The page, if it is one file that needs nothing else and that a screen reader finds its way in."""
    page = Page(text)
    ids = [e.attrs["id"] for e in page.elements if "id" in e.attrs]
    assert len(ids) == len(set(ids)), "ids are not unique"
    for e in page.elements:
        for name, value in e.attrs.items():
            assert not name.startswith("on") and name not in ("src", "style"), (e.tag, name)
            if name in ("aria-labelledby", "aria-describedby", "for"):
                assert value in ids, (e.tag, name, value)
            if name == "href":
                assert value and value[0] == "#" and value[1:] in ids, value
        if e.tag == "th":
            assert e.attrs.get("scope") in ("row", "col"), e.text
        if e.tag == "section":
            assert "aria-labelledby" in e.attrs
    levels = [int(e.tag[1]) for e in page.elements if e.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), "a level of headings is left out"
    assert len(page.all("main")) == 1 and len([e for e in page.all("title") if e.parent.tag == "head"]) == 1
    return page

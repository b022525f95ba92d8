"""Pages and pictures as a browser takes them: their elements, and what a reader sees."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"

#: Elements without an end.
VOID = {"br", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """A page that was read; fails where an element is left open, or ends that was not begun."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.styles = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["style"]:
            self.styles += data
        else:
            self.text += data

    def check_harmless(self) -> None:
        """Fail where anything could run, be fetched, or turn the text around it."""
        assert not self.tags.keys() & {"script", "img", "link", "iframe", "object", "a", "form"}
        names = {name for name, _ in self.attributes}
        assert not {name for name in names if name.startswith("on")}
        assert not names & {"href", "src", "srcset", "action", "xlink:href"}
        values = [value for name, value in self.attributes if name not in ("title", "xmlns")]
        for text in (self.styles, *values):
            assert not re.search(r"https?:|@import|url\((?!#)", text)
        hidden = [character for character in self.source if not character.isprintable()]
        assert set(hidden) <= {"\n", "\t"}


def elements_of(picture: str) -> list[ElementTree.Element]:
    """Read a picture as the XML that it is; return all its elements."""
    return list(ElementTree.fromstring(picture).iter())


def words_of(picture: str) -> str:
    """Return what is written in a picture, tooltips too."""
    kinds = {f"{SVG}{name}" for name in ("text", "title", "desc")}
    return "\n".join(each.text or "" for each in elements_of(picture) if each.tag in kinds)

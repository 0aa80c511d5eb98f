"""HTML as text: what a reader sees, with Markdown's marks for headings and list items, by which chunks are cut."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_SKIPPED = {"script", "style", "template", "noscript", "svg", "iframe", "object", "select", "textarea", "button"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "hr", "html", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "ul",
}  # fmt: skip
_LINES = {"br", "li", "tr", "caption", "option"}
_HEADINGS = {f"h{level}": f"{'#' * level} " for level in range(1, 7)}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def html_text(page: str) -> tuple[str, str]:
    """(text, title). Never raises: what is no HTML is read as browsers do, more or less."""
    reader = _Reader()
    try:
        reader.feed(page)
        reader.close()
    except Exception:  # html.parser gives up by assertions, and by int() for a reference of 5000 digits
        return page, ""
    return reader.text(), " ".join("".join(reader.title).split())


class _Reader(HTMLParser):
    """Lines of text; "" between two of them is a blank line, however many blocks ended there."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: list[str] = []
        self._done: list[str] = []
        self._line: list[str] = []
        self._prefix = ""
        self._skipped: list[str] = []
        self._in_title = False
        self._pre = 0

    def text(self) -> str:
        self._end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._done)).strip()

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """As the parser has it; of what it refuses, such as "<![ x>", a comment, as browsers do."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag == "title":
            self._in_title = "svg" not in self._skipped
        elif tag in _SKIPPED and tag not in _VOID:
            self._skipped.append(tag)
        if self._skipped:
            return
        if tag in _HEADINGS or tag in _BLOCKS:
            self._end_block()
            self._prefix = _HEADINGS.get(tag, "")
        elif tag in _LINES:
            self._end_line()
            self._prefix = "- " if tag == "li" else ""
        elif tag in ("td", "th") and self._line:
            self._line.append(" | ")
        self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._skipped:
            del self._skipped[self._skipped.index(tag) :]
        elif not self._skipped:
            if tag in _HEADINGS or tag in _BLOCKS:
                self._end_block()
            elif tag in _LINES:
                self._end_line()
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif self._skipped:
            return
        elif self._pre:
            first, *rest = data.split("\n")
            self._line.append(first)
            for line in rest:
                self._end_line()
                self._line.append(line)
        else:
            self._line.append(data)

    def _end_line(self) -> None:
        joined = "".join(self._line)
        line = joined.rstrip() if self._pre else " ".join(joined.split())
        self._line = []
        if line:
            self._done.append(self._prefix + line)
            self._prefix = ""

    def _end_block(self) -> None:
        self._end_line()
        self._prefix = ""
        if self._done and self._done[-1]:
            self._done.append("")

"""Text files as documents: plain text, Markdown, and HTML."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ...errors import RetrievalError
from .html_text import html_text

PAGES = (".html", ".htm")
TEXTS = (".txt", ".md", ".markdown", *PAGES)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([\w.:-]{1,40})", re.IGNORECASE)


def read_text(path: Path) -> tuple[str, dict[str, str]]:
    """(text, metadata) of a file; a page's metadata is its title. Bytes that are no text become U+FFFD.

    The encoding is what a byte order mark says, or a page's <meta charset>; else UTF-8. Raises `RetrievalError` for a file
    that cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RetrievalError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    page = path.suffix.lower() in PAGES
    text = _decoded(data, page)
    if not page:
        return text, {}
    found, title = html_text(text)
    return found, {"title": title} if title else {}


def _decoded(data: bytes, page: bool) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    declared = _CHARSET.search(data[:2048]) if page else None
    if declared:
        try:
            return data.decode(declared[1].decode("ascii"), "replace")
        except (LookupError, UnicodeError):  # a name that is none, or of a codec that is not for text
            pass
    return data.decode("utf-8", "replace")

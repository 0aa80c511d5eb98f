"""Strings as text: on one line between fields, or as a block at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .constraint import Constraint
from .quoted import quote_pattern, quoted_text

LINE_LIMIT = 500
BLOCK_LIMIT = 2000
"""Characters that free text may have when its field declares no max_length."""
FREE_TOKENS = 512
"""Tokens that free text may have then: a small model that does not stop by itself only repeats what it said."""

Form = Literal["line", "raw", "block"]
"""How a string is written. line: on one line, a newline as backslash-n and a backslash doubled. raw: on one line, as it
is (escapes would break a field's pattern). block: as it is, newlines included, at the end of the answer."""

# Controls, and what other programs take for line ends. \s is Unicode's white space.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u{2028}\u{2029}"
_CONTROL_EXCEPT_TAB = r"\x00-\x08\x0a-\x1f\x7f-\x9f\u{2028}\u{2029}"
_CONTROL_EXCEPT_TAB_AND_NEWLINE = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u{2028}\u{2029}"
_UNITS: dict[Form, tuple[str, str]] = {
    # one character anywhere, one character at the edge
    "line": (rf"(?:[^\\{_CONTROL_EXCEPT_TAB}]|\\[\\n])", rf"(?:[^\\\s{_CONTROL}]|\\\\)"),
    "raw": (rf"[^{_CONTROL_EXCEPT_TAB}]", rf"[^\s{_CONTROL}]"),
    "block": (rf"[^{_CONTROL_EXCEPT_TAB_AND_NEWLINE}]", rf"[^\s{_CONTROL}]"),
}
_ESCAPE = re.compile(r"\\(.|$)", re.DOTALL)


@dataclass(frozen=True)
class TextConstraint(Constraint):
    """A string that is not empty and has no space around it.

    min_length, max_length: characters, as declared. pattern: Rust syntax, matched in full when decoding. quotes: the input
    that it is copied from; source: that input's text, where this is of one call.
    """

    form: Form
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    quotes: str | None = None
    source: str | None = None

    @property
    def quoted(self) -> frozenset[str]:
        return frozenset() if self.quotes is None else frozenset({self.quotes})

    @property
    def context(self) -> dict[str, str]:
        return {} if self.quotes is None or self.source is None else {self.quotes: self.source}

    def bound(self, inputs: Mapping[str, Any]) -> Constraint:
        """A quote is limited to the words of this call's input."""
        return self if self.quotes is None else replace(self, source=quoted_text(inputs, self.quotes, self.field))

    @property
    def longest(self) -> int:
        """Characters a decoded value has at most."""
        if self.max_length is not None:
            return self.max_length
        if self.source is not None:
            return len(self.source)
        return max(BLOCK_LIMIT if self.form == "block" else LINE_LIMIT, 2 * (self.min_length or 0))

    @property
    def max_tokens(self) -> int:
        # Rarely more than a token per character; up to four where the tokenizer falls back to bytes.
        enough = self.longest + min(3 * self.longest, 100) + 2
        return enough if self.max_length is not None else min(enough, max(FREE_TOKENS, 2 * (self.min_length or 0)))

    def rules(self, name: str) -> str:
        terminal = name.upper() + "_TEXT"
        shape = f"/{self._shape()}/"
        if self.pattern is not None:
            shape += f" & /{slashed(self.pattern)}/"
        if self.source is not None:
            shape += f" & /{quote_pattern(self.source)}/"
        return f"{name}: {terminal}\n{terminal}: {shape}\n"

    def _shape(self) -> str:
        unit, edge = _UNITS[self.form]
        least, most = self.min_length or 1, self.longest
        if most == 1:
            return edge
        inner = f"{edge}{unit}{{{max(least - 2, 0)},{most - 2}}}{edge}"
        return inner if least > 1 else f"{edge}|{inner}"

    def describe(self) -> str:
        if self.quotes is not None:
            return f"words copied from {self.quotes}"
        if self.pattern is not None:
            return f"text that matches {self.pattern.removeprefix('^').removesuffix('$')}"
        if self.min_length and self.min_length > 1 and self.max_length is not None:
            return f"text of {self.min_length} to {self.max_length} characters"
        if self.max_length is not None:
            return f"text of at most {self.max_length} characters"
        if self.min_length and self.min_length > 1:
            return f"text of at least {self.min_length} characters"
        return "text"

    def _write(self, value: Any) -> str:
        text = str(value).strip()
        if not text:
            raise self._refuse(repr(value), "it is empty")
        if self.form == "line":
            return text.replace("\\", "\\\\").replace("\n", "\\n")
        if self.form == "raw" and "\n" in text:
            raise self._refuse(repr(value), "it has more than one line")
        return text

    def shown(self, text: str) -> str:
        if self.form != "line":
            return text
        # A backslash at the end may be half of an escape.
        whole = text[:-1] if (len(text) - len(text.rstrip("\\"))) % 2 else text
        return _ESCAPE.sub(_unescape, whole)

    def _read(self, text: str) -> Any:
        if self.form == "line":
            text = _ESCAPE.sub(_unescape, text)
        text = text.strip()
        if not text:
            raise ValueError("it is empty")
        return self._adapter.validate_python(text, context=self.context)


def _unescape(found: re.Match[str]) -> str:
    # A backslash before anything but n and backslash is itself: only hand-written text has one.
    return {"n": "\n", "\\": "\\"}.get(found[1], found[0])


def slashed(pattern: str) -> str:
    """The pattern for between a Lark regex's slashes."""
    return re.sub(r"(\\.)|/", lambda m: m[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")

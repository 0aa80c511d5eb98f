"""The shortest text that completes a grammar from where a value was cut off."""

from __future__ import annotations

import heapq
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import llguidance

from ...grammars import compile_grammar

PREFERRED = b'.0a"}]'
"""Bytes tried first: of completions of the same length, the one that reads best."""
MAX_STATES = 20_000
"""States after which the shortest end is no longer looked for."""
HURRIED_STATES = 20_000
"""As many more are for a short one."""
MANY = 6
"""So many bytes that may follow are a class of characters; fewer may be the beginnings of options."""


def shortest_completion(grammar: str, written: bytes, limit: int) -> bytes | None:
    """Return the shortest text (UTF-8) that completes `written` under a Lark grammar; None if it has over `limit` bytes.

    A* (Hart, Nilsson and Raphael, 1968) over the grammar's bytes, by what is open. States that allow the same next bytes at
    the same place count as one: a parser's state cannot be compared, and what else tells such states apart seldom matters
    for the end. Where they are too many (in a type whose shortest value has hundreds of characters), it goes on in a hurry
    and what is found need not be the shortest: what has come furthest goes first, and what may be closed is closed. Raises
    `ValueError` if the grammar does not compile or does not allow `written`.
    """
    compiled = _compile(grammar)
    start = compiled.matcher.deep_copy()
    if written and start.try_consume_tokens(list(written)) != len(written):
        raise ValueError(f"the grammar does not allow {written!r}")
    search = _Search(compiled, limit)
    search.push(start, b"", Place().after(written, compiled.nested))
    found = search.run(MAX_STATES)
    return search.hurried().run(HURRIED_STATES) if found is None else found


class _Search:
    """States of a grammar's parser, the most promising of which is gone on with; each is tried once.

    hurry: what has come furthest is the most promising, not what has the shortest text.
    """

    def __init__(self, grammar: _Grammar, limit: int, hurry: bool = False) -> None:
        self._grammar, self._limit, self._hurry = grammar, limit, hurry
        self._order = count()
        self._states: list[tuple[tuple[int, int], int, llguidance.LLMatcher, bytes, Place]] = []

    def push(self, matcher: llguidance.LLMatcher, text: bytes, place: Place) -> None:
        size = len(text) + place.left
        heapq.heappush(self._states, ((-place.marks if self._hurry else 0, size), next(self._order), matcher, text, place))

    def hurried(self) -> _Search:
        """A search that goes on from where this one gave up."""
        search = _Search(self._grammar, self._limit, hurry=True)
        for _, _, matcher, text, place in self._states:
            search.push(matcher, text, place)
        return search

    def run(self, most: int) -> bytes | None:
        """The first text that comes to an end; None if there is none, or not after so many states."""
        seen: set[tuple[bytes, Place]] = set()
        while self._states and len(seen) < most:
            _, _, matcher, text, place = heapq.heappop(self._states)
            if matcher.is_accepting():
                return text
            forced = matcher.compute_ff_bytes()
            if forced:
                matcher.consume_tokens(list(forced))
                if len(text) + len(forced) <= self._limit:
                    self.push(matcher, text + forced, place.after(forced, self._grammar.nested))
                continue
            mask = matcher.compute_bitmask()
            if (mask, place) in seen or len(text) == self._limit:
                continue
            seen.add((mask, place))
            for byte in self._tried(matcher, mask, place):
                one = bytes([byte])
                self.push(_after(matcher, byte), text + one, place.after(one, self._grammar.nested))
        return None

    def _tried(self, matcher: llguidance.LLMatcher, mask: bytes, place: Place) -> list[int]:
        tried = self._grammar.tried(matcher, mask, place)
        # Without this, what comes furthest is an array that never ends.
        closing = [byte for byte in tried if self._hurry and byte in (b'"' if place.quoted else b"}]")]
        return closing or tried


class Place(NamedTuple):
    """Where in JSON a text is: open brackets, whether it is inside a string, how many brackets, quotes and commas there
    were, and how many bytes since the last. What stands in a string that is closed makes no difference any more. Of other
    texts it says only how long they are."""

    depth: int = 0
    quoted: bool = False
    escaped: bool = False
    marks: int = 0
    offset: int = 0

    @property
    def left(self) -> int:
        """Bytes that must come before the end, at least: what is open is closed one by one."""
        return self.depth + self.quoted

    def after(self, text: bytes, nested: bool) -> Place:
        """The place after more text. nested: it is JSON; in other texts brackets and quotes are characters like others,
        and keeping apart all the ways to write them would fill the memory."""
        if not nested:
            return self._replace(offset=self.offset + len(text))
        depth, quoted, escaped, marks, offset = self
        for byte in text:
            mark = not escaped and byte == ord('"')
            if quoted:
                quoted, escaped = escaped or byte != ord('"'), not escaped and byte == ord("\\")
            else:
                quoted = byte == ord('"')
                depth += (byte in b"{[") - (byte in b"}]")
                mark = mark or byte in b"{}[],"
            marks, offset = (marks + 1, 0) if mark else (marks, offset + 1)
        return Place(depth, quoted, escaped, marks, offset)


class _Grammar:
    """A compiled grammar, and which bytes are tried where: of those that it names, or of all where none of them is allowed.

    What a grammar names is what can bring a text to its end; any other byte is as good as the next. Of a class of
    characters those after which the same may follow are one, too. They are told apart by trying each, once: wherever else
    the same bytes are allowed, the same of them are taken to matter.
    """

    def __init__(self, grammar: str) -> None:
        self.matcher = compile_grammar(llguidance.LLTokenizer("byte"), grammar)
        self.nested = "%json" in grammar
        self._alphabet = bytes(dict.fromkeys(PREFERRED + b"\n" + grammar.encode()))
        self._tried: dict[tuple[bytes, bool], list[int]] = {}

    def tried(self, matcher: llguidance.LLMatcher, mask: bytes, place: Place) -> list[int]:
        """The bytes to go on with where these are allowed; mask: uint8 [32], bit set = allowed."""
        known = mask, place.quoted
        if known not in self._tried:
            self._tried[known] = self._distinct(matcher, mask, place)
        return self._tried[known]

    def _distinct(self, matcher: llguidance.LLMatcher, mask: bytes, place: Place) -> list[int]:
        allowed = [byte for byte in self._alphabet if mask[byte // 8] >> (byte % 8) & 1]
        allowed = allowed or [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]
        if len(allowed) < MANY:
            return allowed
        first: dict[tuple[bool, bytes, bytes, Place], int] = {}
        for byte in allowed:
            after = _after(matcher, byte)
            follows = after.is_accepting(), after.compute_ff_bytes(), after.compute_bitmask()
            first.setdefault((*follows, place.after(bytes([byte]), self.nested)), byte)
        return list(first.values())


def _after(matcher: llguidance.LLMatcher, byte: int) -> llguidance.LLMatcher:
    copy = matcher.deep_copy()
    copy.consume_token(byte)
    return copy


_compile = lru_cache(maxsize=256)(_Grammar)

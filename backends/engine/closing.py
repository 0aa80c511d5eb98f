"""The shortest text that completes a grammar from where a value was cut off."""

from __future__ import annotations

import heapq
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import llguidance

PREFERRED = b'.0a"}]'
"""Bytes tried first: of completions of the same length, the one that reads best."""
MAX_STATES = 20_000


def shortest_completion(grammar: str, written: bytes, limit: int) -> bytes | None:
    """Return the shortest text (UTF-8) that completes `written` under a Lark grammar; None if it has over `limit` bytes.

    Dijkstra's algorithm over the grammar's bytes. States that allow the same next bytes at the same place count as one: a
    parser's state cannot be compared, and what else tells such states apart seldom matters for the end. Raises
    `ValueError` if the grammar does not compile or does not allow `written`.
    """
    start = _compile(grammar).deep_copy()
    if written and start.try_consume_tokens(list(written)) != len(written):
        raise ValueError(f"the grammar does not allow {written!r}")
    alphabet = _alphabet(grammar)
    nested = "%json" in grammar
    order = count()
    states: list[tuple[int, int, llguidance.LLMatcher, bytes, Place]] = []
    heapq.heappush(states, (0, next(order), start, b"", Place().after(written, nested)))
    seen: set[tuple[bytes, Place]] = set()
    while states and len(seen) < MAX_STATES:
        _, _, matcher, text, place = heapq.heappop(states)
        if matcher.is_accepting():
            return text
        forced = matcher.compute_ff_bytes()
        if forced:
            matcher.consume_tokens(list(forced))
            if len(text) + len(forced) <= limit:
                further = place.after(forced, nested)
                heapq.heappush(
                    states, (len(text) + len(forced) + further.left, next(order), matcher, text + forced, further)
                )
            continue
        mask = matcher.compute_bitmask()
        if (mask, place) in seen or len(text) == limit:
            continue
        seen.add((mask, place))
        for byte in _allowed(mask, alphabet):
            after, one = matcher.deep_copy(), bytes([byte])
            after.consume_token(byte)
            further = place.after(one, nested)
            heapq.heappush(states, (len(text) + 1 + further.left, next(order), after, text + one, further))
    return None


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


def _allowed(mask: bytes, alphabet: bytes) -> list[int]:
    """The allowed bytes among the alphabet's, or among all where there are none."""
    known = [byte for byte in alphabet if mask[byte // 8] >> (byte % 8) & 1]
    return known or [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]


def _alphabet(grammar: str) -> bytes:
    # What a grammar names is what can bring a text to its end; any other byte is as good as the next.
    return bytes(dict.fromkeys(PREFERRED + b"\n" + grammar.encode()))


@lru_cache(maxsize=256)
def _compile(grammar: str) -> llguidance.LLMatcher:
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher

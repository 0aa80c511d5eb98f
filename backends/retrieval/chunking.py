"""`Chunking`: how documents are cut into chunks, and the places where that cuts a text."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass
from typing import Literal

from ...errors import RetrievalError
from .boundaries import HEADING, LINE, PARAGRAPH, SENTENCE, SENTENCES, WORD
from .tokens import TokenStarts, count_between

ChunkBy = Literal["recursive", "sentence", "tokens"]
VERSION = 1
"""Raised when the same settings cut at other places."""
_LEVELS = {
    "recursive": (HEADING, PARAGRAPH, LINE, SENTENCE, WORD),
    "sentence": (SENTENCES, WORD),
    "tokens": (),
}
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunking:
    """size: tokens of a chunk, at most. overlap: share of them that stand in the chunk before as well, 0 to 0.5.

    by: "recursive" cuts before headings where that is enough, else between paragraphs, lines, sentences, words (the order of
    LangChain's RecursiveCharacterTextSplitter, headings first), and not between a heading and what follows; "sentence" fills
    chunks with whole sentences; "tokens" cuts anywhere. Raises `RetrievalError` for values out of range.
    """

    size: int = 200
    overlap: float = 0.0
    by: ChunkBy = "recursive"

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap <= 0.5 or self.by not in _LEVELS:
            raise RetrievalError(
                f"{self}: give a size of at least 1, an overlap from 0 to 0.5, and by= {', '.join(map(repr, _LEVELS))}"
            )

    def digest(self, tokens: TokenStarts) -> str:
        """Identity of the chunks that it makes of a text, counted in these tokens."""
        return hashlib.sha256(json.dumps([VERSION, asdict(self), tokens.digest]).encode()).hexdigest()[:16]


def cut(text: str, chunking: Chunking, tokens: TokenStarts) -> list[Span]:
    """(first character, character behind the last) of each chunk, ascending. A blank text has none.

    Chunks begin and end with what is no white space; together they cover all of the text that is none. Tokens are those of
    the whole text, each of which counts where it begins. chonkie 1.7 was tried first: its windows of tokens give text that
    is not in the document where the tokenizer normalizes (lower case, accents), its windows of sentences exceed their size,
    and its recursive chunker has no overlap and reads the separators of Markdown from the network.
    """
    starts = tokens.starts(text)
    shared = min(round(chunking.size * chunking.overlap), chunking.size - 1)
    splitter = _Splitter(text, starts, chunking.size - shared, _LEVELS[chunking.by])
    trimmed = (_trimmed(text, span) for span in splitter.split(0, len(text), 0))
    spans = [span for span in trimmed if span[0] < span[1]]
    if not shared:
        return spans
    rooms = [min(shared, chunking.size - count_between(starts, *span)) for span in spans]
    wide = [_trimmed(text, splitter.extended(*pair)) for pair in zip(spans, rooms, strict=True)]
    # A chunk that is the beginning of the next one says nothing of its own.
    return [span for span, after in itertools.pairwise(wide) if span[0] < after[0]] + wide[-1:]


class _Splitter:
    def __init__(self, text: str, starts: list[int], size: int, levels: tuple[re.Pattern[str], ...]) -> None:
        self._text, self._starts, self._size, self._levels = text, starts, size, levels

    def split(self, first: int, last: int, level: int) -> list[Span]:
        """Spans of at most `size` tokens, cut at the places of this level; of the next one where those are too far apart."""
        if self._reach(first) >= last:
            return [(first, last)]
        if level == len(self._levels):
            return self._windows(first, last)
        found_cuts = self._levels[level].finditer(self._text, first, last)
        cuts = [f.end() for f in found_cuts if first < f.end() < last and not self._is_heading(f.start())]
        found: list[Span] = []
        while first < last:
            reach = self._reach(first)
            if reach >= last:
                found.append((first, last))
                break
            place = bisect_right(cuts, reach)
            if place and cuts[place - 1] > first:
                stop = cuts[bisect_left(cuts, max(self._even(first, last), first + 1), 0, place - 1)]
                found.append((first, stop))
                first = stop
            else:
                stop = cuts[place] if place < len(cuts) else last
                found += self.split(first, stop, level + 1)
                first = stop
        return found

    def _even(self, first: int, last: int) -> int:
        """Where the first of as few parts as possible would end, if they had equally many tokens: no part is a mere rest."""
        begin, end = bisect_left(self._starts, first), bisect_left(self._starts, last)
        parts = -(-(end - begin) // self._size)
        return self._starts[begin + -(-(end - begin) // parts)]

    def _is_heading(self, place: int) -> bool:
        """Whether a line ends here that is a heading: it stays with what it is over."""
        return self._text[place] == "\n" and self._text.startswith("#", self._text.rfind("\n", 0, place) + 1)

    def extended(self, span: Span, tokens: int) -> Span:
        """A span that begins up to so many tokens earlier: where a sentence begins, else a word, else a token."""
        if tokens < 1:
            return span
        earliest = self._back(span[0], tokens)
        for level in (SENTENCES, WORD) if self._levels else ():
            begin = next((f.end() for f in level.finditer(self._text, earliest, span[0]) if f.end() < span[0]), None)
            if begin is not None:
                return begin, span[1]
        return earliest, span[1]

    def _back(self, first: int, tokens: int) -> int:
        """The earliest character from which at most so many tokens begin before `first`."""
        place = bisect_left(self._starts, first) - tokens
        if place <= 0:
            return 0
        begin = self._starts[place]
        if self._starts[place - 1] < begin:
            return min(begin, first)
        after = bisect_right(self._starts, begin)  # a character of several tokens, which do not all fit
        return min(self._starts[after], first) if after < len(self._starts) else first

    def _windows(self, first: int, last: int) -> list[Span]:
        found = []
        while first < last:
            stop = self._reach(first)
            if stop <= first:  # a character of more tokens than fit
                after = bisect_right(self._starts, first)
                stop = self._starts[after] if after < len(self._starts) else last
            found.append((first, min(stop, last)))
            first = stop
        return found

    def _reach(self, first: int) -> int:
        """The last place at which a span that begins at `first` may end."""
        place = bisect_left(self._starts, first) + self._size
        return self._starts[place] if place < len(self._starts) else len(self._text)


def _trimmed(text: str, span: Span) -> Span:
    part = text[span[0] : span[1]]
    return span[0] + len(part) - len(part.lstrip()), span[1] - (len(part) - len(part.rstrip()))

"""Where the tokens of a text begin: what sizes of chunks are counted in."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .encoder import clean

SLICE = 1 << 16
"""Characters that are tokenized at once: a tokenizer needs a few hundred bytes per token."""
LONGEST = 16
"""A token of more characters counts as several: tokenizers may take a word that they do not know, of any length, for one."""
_PIECE = re.compile(r"\w{1,5}|[^\w\s]")


@runtime_checkable
class TokenStarts(Protocol):
    """Tells where tokens begin. Two with the same digest say the same."""

    @property
    def digest(self) -> str:
        """Identity of the tokenizer."""

    def starts(self, text: str) -> list[int]:
        """Characters at which tokens begin, ascending; one that is there twice begins two."""


class PlainTokens:
    """Pieces of words of at most five letters, and punctuation marks: for corpora without an embedder that has a tokenizer.

    English text has about as many of them as tokens.
    """

    digest = "plain-1"

    def starts(self, text: str) -> list[int]:
        """See `TokenStarts`."""
        return [found.start() for found in _PIECE.finditer(text)]


class ModelTokens:
    """The tokens of a model, from the text of its tokenizer.json (as `tokenizers` writes it), without special tokens."""

    def __init__(self, json: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_str(json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.digest = hashlib.sha256(json.encode()).hexdigest()

    def starts(self, text: str) -> list[int]:
        """See `TokenStarts`. Slices end behind white space where there is some, so that no word is cut."""
        text = clean(text)
        found: list[int] = []
        begin = 0
        while begin < len(text):
            end = begin + SLICE
            if end < len(text):
                gap = max(text.rfind("\n", begin + SLICE // 2, end), text.rfind(" ", begin + SLICE // 2, end))
                end = gap + 1 if gap >= 0 else end
            for first, last in self._tokenizer.encode(text[begin:end], add_special_tokens=False).offsets:
                found.extend(range(begin + first, begin + max(last, first + 1), LONGEST))
            begin = end
        return found


@cache
def _model_tokens(file: Path) -> ModelTokens:
    return ModelTokens(file.read_text("utf-8"))


def tokens_of(embedder: Any) -> TokenStarts:
    """The tokens of the model that reads the chunks, where the embedder has a folder with a tokenizer; else plain ones."""
    folder = getattr(embedder, "folder", None)
    if not folder:  # an empty path would be the working directory
        return PlainTokens()
    file = Path(folder) / "tokenizer.json"
    return _model_tokens(file) if file.is_file() else PlainTokens()


def count_between(starts: list[int], first: int, last: int) -> int:
    """Tokens that begin from character `first` on and before `last`."""
    return bisect_left(starts, last) - bisect_left(starts, first)

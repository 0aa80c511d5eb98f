"""`Pack`: as many passages as a prompt has room for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import RetrievalError
from ...signatures.bridge import settings
from ...signatures.knob import Knob, offer
from ...signatures.module import Module
from ...signatures.passage import Passage, passages_text
from .boundaries import LINE, SENTENCE, WORD

LEAST = 0.25
"""A passage that does not fit is cut at the end of a sentence, if at least this share of it stays; else it is left out, or,
where it would be the only one, cut at a word or a character."""
_SENTENCE_END = re.compile(rf"{LINE.pattern}|{SENTENCE.pattern}")
BYTES_PER_TOKEN = 3
"""Where the tokenizer is not known: less than a token has in English, so that the budget holds in other texts too."""

Counter = Callable[[str], int]


def pack(passages: Sequence[Passage], tokens: int, count: Counter) -> list[Passage]:
    """The longest beginning of `passages` whose text in a prompt has at most `tokens` tokens; the last may be cut.

    In the prompt they are numbered from 1, as `Cited` cites them. A text that comes twice is packed once.
    count: number of tokens of a text. Raises `RetrievalError` for a budget below 1.
    """
    if tokens < 1:
        raise RetrievalError(f"tokens={tokens}: give at least 1")
    packed: list[Passage] = []
    seen: set[str] = set()
    for passage in passages:
        if passage.text in seen:
            continue
        seen.add(passage.text)
        if _fits([*packed, passage], tokens, count):
            packed.append(passage)
            continue
        text = _beginning(packed, passage, tokens, count)
        cut = passage.model_copy(update={"text": text, "end": passage.start + len(text)})
        return [*packed, cut] if text else packed
    return packed


def _fits(passages: Sequence[Passage], tokens: int, count: Counter) -> bool:
    return count(passages_text(passages)) <= tokens


def _beginning(packed: Sequence[Passage], passage: Passage, tokens: int, count: Counter) -> str:
    """The most sentences of a passage that fit; "" where that is too little to be worth it. Where nothing else is packed, a
    cut at a word or a character is better than none: sentences then need this share of what fits, not of the passage."""
    text = passage.text

    def fits(end: int) -> bool:
        return _fits([*packed, passage.model_copy(update={"text": text[:end]})], tokens, count)

    sentences = text[: _last([found.start() for found in _SENTENCE_END.finditer(text)], fits)].rstrip()
    if packed:
        return sentences if len(sentences) >= LEAST * len(text) else ""
    words = text[: _last([found.start() for found in WORD.finditer(text)], fits)].rstrip()
    characters = text[: _last(range(1, len(text)), fits)].rstrip()
    return next(part for part in (sentences, words, characters) if len(part) >= LEAST * len(characters))


def _last(ends: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The last of ascending ends that fits, found by bisection; 0 where none does."""
    low, high = 0, len(ends)  # the first `low` ends fit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(ends[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return ends[low - 1] if low else 0


class Pack(Module):
    """`pack` as a module: its budget is a knob. Tokens are those of the LM a program runs on, where that is a still.LM."""

    tokens = Knob(range=(1, 1_000_000), default=800)

    def __init__(self, tokens: int = 800) -> None:
        super().__init__()
        self.tokens = tokens
        offer(self, "tokens", sorted({max(1, tokens // 2), tokens, min(1_000_000, 2 * tokens)}))

    def __call__(self, passages: Sequence[Passage]) -> list[Passage]:
        """The passages that fit."""
        return pack(passages, self.tokens, token_counter(settings.lm))


def token_counter(lm: Any) -> Counter:
    """Counts tokens as a `still.LM` does; for others a safe guess from the number of bytes."""
    local = getattr(lm, "local", None)
    if local is None:
        return lambda text: -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
    return lambda text: len(local.prompter.encode(text))

"""From text to index terms: lower case, composed (NFC), runs of word characters, no stop words, stemmed."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain, groupby
from typing import Any

from ...errors import RetrievalError

_ASCII_WORD = re.compile(r"\w\w+")
_PLACES = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
"""Where Unicode has combining marks, among others."""
_local = threading.local()


def check_language(language: str) -> None:
    """Raise `RetrievalError` for a language that has no stemmer."""
    import Stemmer

    known = Stemmer.algorithms()
    if language not in known:
        raise RetrievalError(f"language={language!r}: has no stemmer; give one of {', '.join(sorted(known))}")


def index_terms(text: str, language: str = "english") -> list[str]:
    """The terms of a text in order, duplicates kept. Words of one character carry no term, as in scikit-learn and bm25s.

    Stemmer: Snowball (PyStemmer); stop words: bm25s' English list, for English only.
    """
    lower = unicodedata.normalize("NFC", text.lower())
    words: list[str] = (_ASCII_WORD if lower.isascii() else _word()).findall(lower)
    if language == "english":
        stop = _stop_words()
        words = [word for word in words if word not in stop]
    stems: list[str] = _stemmer(language).stemWords(words)
    return stems


@cache
def _word() -> re.Pattern[str]:
    """Two characters or more: letters, digits, underscores, and behind the first one marks (accents, vowel signs), which for
    `re` are no word characters: a word of Hindi would end at every vowel."""
    marks = [place for place in chain(*_PLACES) if unicodedata.category(chr(place)).startswith("M")]
    runs = ([place for _, place in run] for _, run in groupby(enumerate(marks), lambda pair: pair[1] - pair[0]))
    spans = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(rf"\w[\w{spans}]+")


def _stop_words() -> frozenset[str]:
    found: frozenset[str] | None = getattr(_local, "stop", None)
    if found is None:
        from bm25s.stopwords import STOPWORDS_EN

        found = _local.stop = frozenset(STOPWORDS_EN)
    return found


def _stemmer(language: str) -> Any:
    # A Snowball stemmer is not safe to share between threads.
    made: dict[str, Any] = _local.__dict__.setdefault("stemmers", {})
    if language not in made:
        import Stemmer

        made[language] = Stemmer.Stemmer(language)
    return made[language]


def term_sets(texts: Sequence[str], language: str = "english") -> list[list[str]]:
    """`index_terms` of each text."""
    return [index_terms(text, language) for text in texts]

"""From text to index terms: lower case, runs of word characters, no stop words, stemmed."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"(?u)\b\w\w+\b")
_local = threading.local()


def index_terms(text: str, language: str = "english") -> list[str]:
    """The terms of a text in order, duplicates kept. Words of one character carry no term, as in scikit-learn and bm25s.

    Stemmer: Snowball (PyStemmer); stop words: bm25s' English list, for English only.
    """
    words = _WORD.findall(text.lower())
    if language == "english":
        stop = _stop_words()
        words = [word for word in words if word not in stop]
    stems: list[str] = _stemmer(language).stemWords(words)
    return stems


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

"""Demonstrations chosen per input: the labelled examples whose inputs share most words with it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import bm25s


class NearestDemonstrations(list[dict[str, Any]]):
    """A pool of demonstrations, and a choice of `count_per_input` of them for each call, best match last.

    It is a list, so that code which copies or saves a predictor's `demos` keeps the whole pool. Similarity is BM25
    (Lucene's variant, through bm25s) over the text of all input fields.
    """

    def __init__(self, pool: Iterable[dict[str, Any]], count_per_input: int) -> None:
        super().__init__(pool)
        self.count_per_input = count_per_input
        self._index: bm25s.BM25 | None = None
        self._wordless = False
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> NearestDemonstrations:
        # The pool is only read: copies share the examples and need no second index until they are used.
        return NearestDemonstrations(self, self.count_per_input)

    def select(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the closest demonstrations, the closest last: models attend most to what stands near the end.

        A demonstration with exactly these inputs is left out, so that a training example never sees its own label.
        """
        names = sorted(inputs)
        own = _text(inputs, names)
        scores = self._scores(own, names)
        ranked = sorted(range(len(self)), key=lambda i: (-scores[i], i))
        others = [i for i in ranked if _text(self[i], names) != own]
        return [self[i] for i in reversed(others[: self.count_per_input])]

    def _scores(self, query: str, names: list[str]) -> list[float]:
        words = bm25s.tokenize([query], return_ids=False, show_progress=False)[0]
        with self._lock:
            if self._index is None:
                self._index = bm25s.BM25()
                texts = [_text(demo, names) for demo in self]
                tokens = bm25s.tokenize(texts, return_ids=False, show_progress=False)
                self._wordless = not any(tokens)
                if not self._wordless:  # an index of no words cannot be made
                    self._index.index(tokens, show_progress=False)
            if self._wordless or not words:
                return [0.0] * len(self)
            return [float(score) for score in self._index.get_scores(words)]


def _text(values: Mapping[str, Any], names: list[str]) -> str:
    return "\n".join(str(values.get(name, "")) for name in names)

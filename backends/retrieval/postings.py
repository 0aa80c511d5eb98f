"""`Postings`: the inverted index of a corpus in memory, weighted for BM25."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence

import numpy as np

from .hit import Hit
from .index import Index
from .top import best, lower_bounds, padded
from .words import index_terms

BLOCK = 1 << 17
"""Scores in memory at once, queries times documents: about what a core's cache holds."""
WEIGHTINGS = 4
"""Pairs of k1 and b whose weights are kept."""


class Postings:
    """An immutable copy of an index, read when it is made. Documents are numbered by age.

    What is summed for a query, and in which order, does not depend on the other queries of a batch.
    """

    def __init__(self, index: Index) -> None:
        with index.open(read_only=True) as connection:
            documents = connection.execute("SELECT doc, key, length FROM documents ORDER BY doc").fetchnumpy()
            words = connection.execute("SELECT term, word FROM terms ORDER BY term").fetchnumpy()
            listed = connection.execute("SELECT term, doc, count FROM postings ORDER BY term, doc").fetchnumpy()
        self.language = index.language
        self.keys: list[str] = list(documents["key"])
        self.numbers = np.asarray(documents["doc"], dtype=np.int64)
        lengths = np.asarray(documents["length"], dtype=np.float64)
        self._relative = lengths / lengths.mean() if len(lengths) and lengths.any() else np.ones(len(lengths))
        self._docs = np.searchsorted(self.numbers, np.asarray(listed["doc"], dtype=np.int64))
        self._counts = np.asarray(listed["count"], dtype=np.float64)
        terms = np.asarray(words["term"], dtype=np.int64)
        borders = np.searchsorted(np.asarray(listed["term"], dtype=np.int64), np.append(terms, terms[-1:] + 1))
        self._spans = {
            word: (int(begin), int(end))
            for word, begin, end in zip(words["word"], borders, borders[1:], strict=False)
            if begin < end
        }
        self._weights: OrderedDict[tuple[float, float], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def search(
        self, queries: Sequence[str], k: int, k1: float, b: float, chosen: Collection[str] | None
    ) -> list[list[Hit]]:
        """The k best documents per query that share a term with it. chosen: keys of the documents that may be found."""
        found: list[list[Hit]] = [[] for _ in queries]
        if not self.keys:
            return found
        weights = self._weighted(k1, b)
        hidden = None if chosen is None else np.array([key not in chosen for key in self.keys], dtype=bool)
        step = max(1, BLOCK // padded(len(self.keys)))
        scores = np.zeros((min(step, len(queries)), padded(len(self.keys))))
        for begin in range(0, len(queries), step):
            part = queries[begin : begin + step]
            block = scores[: len(part)]
            block.fill(0.0)
            for row, query in zip(block, part, strict=True):
                self._add(row, query, weights)
            if hidden is not None:
                block[:, : len(self.keys)][:, hidden] = 0.0
            bounds = np.maximum(lower_bounds(block, k), np.nextafter(0.0, 1.0))
            numbers, places = np.nonzero(block >= bounds[:, None])
            top = best(numbers, places, block[numbers, places], k)
            for number, place, score in zip(*(column.tolist() for column in top), strict=True):
                found[begin + number].append(Hit(self.keys[place], score))
        return found

    def _add(self, row: np.ndarray, query: str, weights: np.ndarray) -> None:
        for word, count in Counter(index_terms(query, self.language)).items():
            span = self._spans.get(word)
            if span is not None:
                begin, end = span
                gained = weights[begin:end]
                row[self._docs[begin:end]] += gained if count == 1 else gained * count

    def _weighted(self, k1: float, b: float) -> np.ndarray:
        """float64 [postings]: what each posting adds to a query's score."""
        with self._lock:
            if (k1, b) in self._weights:
                self._weights.move_to_end((k1, b))
                return self._weights[k1, b]
            spans = np.array(list(self._spans.values()), dtype=np.int64).reshape(-1, 2)
            frequency = np.repeat(spans[:, 1] - spans[:, 0], spans[:, 1] - spans[:, 0])
            idf = np.log1p((len(self.keys) - frequency + 0.5) / (frequency + 0.5))
            made = idf * self._counts / (self._counts + k1 * (1 - b + b * self._relative[self._docs]))
            self._weights[k1, b] = made
            if len(self._weights) > WEIGHTINGS:
                self._weights.popitem(last=False)
            return made

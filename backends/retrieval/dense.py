"""`Dense`: exact cosine over all vectors of a corpus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from ...errors import RetrievalError
from .embedding import Embedder, embedder_of
from .hit import Hit
from .index import Index
from .model_folder import DEFAULT_EMBEDDER
from .vector_index import VectorIndex, unit
from .vectors import Matrix, Vectors


class Dense:
    """The documents whose vectors have the largest cosine with a query's vector; every document is looked at.

    model: a short name, a folder, a hub id, or a callable. The first search embeds what has no vector yet.
    corpus: a `Corpus`, or a `ChunkSet` of one.
    """

    def __init__(
        self,
        corpus: Index,
        model: str | PathLike[str] | Embedder | Callable[[list[str]], Any] = DEFAULT_EMBEDDER,
    ) -> None:
        self.corpus, self.vectors = corpus, Vectors(corpus, embedder_of(model))
        self._lock = threading.Lock()
        self._held: tuple[Matrix, VectorIndex] | None = None

    def search(
        self, queries: Sequence[str], k: int = 10, where: str = "true", parameters: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The best k documents per query, best first, ties by key; a blank query finds nothing.

        The condition is applied before ranking: k documents that meet it are found where there are k. See `Lexical.search`.
        """
        real = [i for i, query in enumerate(queries) if query.strip()]
        found: list[list[Hit]] = [[] for _ in queries]
        hits = self.search_vectors(self._embed([queries[i] for i in real]), k, where, parameters)
        for i, row in zip(real, hits, strict=True):
            found[i] = row
        return found

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, where: str = "true", parameters: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """`search` for vectors: float32 [queries, d]. Raises `RetrievalError` for another d."""
        if k < 1:
            raise RetrievalError(f"k={k}: give at least 1")
        matrix = self.vectors.matrix()  # once: the rows of a later one are numbered otherwise
        chosen = None if where == "true" else self.vectors.rows_where(matrix, where, parameters)
        keys, index = self._index(matrix, chosen)
        if not len(keys) or not len(vectors):
            return [[] for _ in vectors]
        if vectors.ndim != 2 or vectors.shape[1] != index.rows.shape[1]:
            raise RetrievalError(
                f"{self.corpus.path}: its vectors have {index.rows.shape[1]} dimensions, the queries' are of shape "
                f"{vectors.shape}: use one model"
            )
        found: list[list[Hit]] = [[] for _ in vectors]
        for number, place, score in zip(*(part.tolist() for part in index.search(unit(vectors), k)), strict=True):
            found[number].append(Hit(keys[place], score))
        return found

    def _embed(self, queries: Sequence[str]) -> np.ndarray:
        if not queries:
            return np.zeros((0, 0), dtype=np.float32)
        return self.vectors.embed_queries(queries)

    def _index(self, matrix: Matrix, chosen: np.ndarray | None) -> tuple[Sequence[str], VectorIndex]:
        if chosen is not None:
            return [matrix.keys[i] for i in chosen], VectorIndex(unit(matrix.rows[chosen]))
        with self._lock:
            if self._held is None or self._held[0] is not matrix:
                self._held = matrix, VectorIndex(unit(matrix.rows))
            return matrix.keys, self._held[1]

"""How near the texts of a pool are to another text: by the words they share, or by the vectors of an embedder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol

import bm25s
import numpy as np

from ..backends.retrieval.embedding import Embedder, embedder_of
from ..backends.retrieval.vector_index import unit
from ..errors import ArtifactError

QUERIES = 16_384
"""Texts whose vectors are remembered: every candidate asks for those of all of dev."""
POOLS = 16


class Similarity(Protocol):
    """A pool of texts that others are compared with."""

    def scores(self, text: str) -> np.ndarray:
        """float32 [pool]: how near each text is; the more, the nearer."""


class WordSimilarity:
    """BM25 (Lucene's variant, through bm25s)."""

    def __init__(self, pool: Sequence[str]) -> None:
        self._size = len(pool)
        tokens = bm25s.tokenize(list(pool), return_ids=False, show_progress=False)
        self._index: bm25s.BM25 | None = None
        if any(tokens):  # an index of no words cannot be made
            self._index = bm25s.BM25()
            self._index.index(tokens, show_progress=False)

    def scores(self, text: str) -> np.ndarray:
        """All 0 for a text without words."""
        words = bm25s.tokenize([text], return_ids=False, show_progress=False)[0]
        if self._index is None or not words:
            return np.zeros(self._size, dtype=np.float32)
        return np.asarray(self._index.get_scores(words))


class VectorSimilarity:
    """Cosine. rows: float32 [texts, d], of length 1."""

    def __init__(self, rows: np.ndarray, vectors: TextVectors) -> None:
        self._rows, self._vectors = rows, vectors

    def scores(self, text: str) -> np.ndarray:
        """From -1 to 1."""
        return np.asarray(self._rows @ self._vectors.one(text))


class TextVectors:
    """Vectors of length 1 by one embedder.

    A text's rounding depends on what is embedded beside it, and of two neighbours that are as near the order would with it.
    So a pool is always embedded as a whole and what is compared with it always alone: the same in every run.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.digest = embedder.digest
        self._embedder = embedder
        self._lock = threading.Lock()
        self._pools = lru_cache(POOLS)(self._embedded)
        self.one = lru_cache(QUERIES)(self._alone)

    def pool(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), d]."""
        with self._lock:  # many threads ask for the same pool first
            return self._pools(tuple(texts))

    def _embedded(self, texts: tuple[str, ...]) -> np.ndarray:
        return unit(self._embedder.embed(texts))

    def _alone(self, text: str) -> np.ndarray:
        return np.asarray(self._embedded((text,))[0])


@cache
def text_vectors(name: str) -> TextVectors:
    """Those of a short name, a folder or a hub id. Raises `ModelError` where there is no such model."""
    return TextVectors(embedder_of(name))


def rows_file(rows: np.ndarray, fields: Sequence[str]) -> bytes:
    """Vectors of texts of these fields, as safetensors."""
    from safetensors.numpy import save

    return save({"rows": rows}, {"fields": "\n".join(fields)})


def read_rows(file: Path, fields: Sequence[str]) -> np.ndarray | None:
    """What `rows_file` wrote; None where it is of other fields. Raises `ArtifactError` for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            if (tensors.metadata() or {}).get("fields") != "\n".join(fields):
                return None
            return np.asarray(tensors.get_tensor("rows"), dtype=np.float32)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file}: the vectors of demonstrations cannot be read ({error}): compile again") from error

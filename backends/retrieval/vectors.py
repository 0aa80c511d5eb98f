"""`Vectors`: the vectors of a corpus under one embedder, kept in its file and searched in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import RetrievalError
from .embedding import Embedder
from .filters import filtered, lock_down
from .held import Stamp, file_stamp
from .index import Index
from .progress import progress_bar
from .store import transaction

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH = 512
"""Texts that are embedded and written in one transaction: what a killed build loses."""
_MISSING = r"""
SELECT sha256(text), any_value(text) FROM documents
WHERE regexp_matches(text, '[^\s\x0b\x1c-\x1f\x85\p{Z}]') AND sha256(text) NOT IN (SELECT digest FROM vectors)
GROUP BY sha256(text) ORDER BY length(any_value(text))
"""
"""A text of nothing but white space (as Python has it) gets no vector: no search finds it."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """All vectors of a corpus. Rows are in the order of the keys, so that equal scores go to the lower key.

    rows: float32 [n, d].
    """

    keys: tuple[str, ...]
    rows: np.ndarray


class Vectors:
    """Brings a corpus' vectors up to date and holds them. One embedder per corpus file; it is recorded there.

    A vector is found again by the digest of its text: a document whose metadata changed, or that came back, costs nothing.
    Safe to use from several threads. Raises `RetrievalError` for a corpus that has vectors of another embedder.
    """

    def __init__(self, corpus: Index, embedder: Embedder) -> None:
        self.corpus, self.embedder = corpus, embedder
        self._lock = threading.Lock()
        self._matrix: Matrix | None = None
        self._stamp: Stamp | None = None

    def update(self, batch: int = BATCH, progress: bool = False) -> int:
        """Embed every text that has no vector yet; returns how many there were. Interrupted, it goes on where it was."""
        self.corpus.refresh()
        with self.corpus.open(read_only=True) as connection:
            self._check(connection)
            missing = connection.execute(_MISSING).fetchall()
        with progress_bar("embedding", len(missing), progress) as advance:
            for begin in range(0, len(missing), batch):
                part = missing[begin : begin + batch]
                rows = self._embed([text for _, text in part])
                with self.corpus.open(read_only=False) as connection:
                    self._write(connection, [digest for digest, _ in part], rows)
                advance(len(part))
        return len(missing)

    def matrix(self) -> Matrix:
        """Every document's vector, embedded first where it is missing. Read anew when the file has changed."""
        with self._lock:
            self.corpus.refresh()
            stamp = file_stamp(self.corpus.path)
            if self._matrix is None or self._stamp != stamp:
                while self.update():  # until nothing is missing: another process may add documents meanwhile
                    stamp = file_stamp(self.corpus.path)
                self._matrix = self._read()
                self._stamp = stamp
            return self._matrix

    def rows_where(self, matrix: Matrix, where: str, parameters: Mapping[str, Any] | None = None) -> np.ndarray | None:
        """Row numbers of a matrix whose documents meet a condition now, ascending; None for all. See `filters.filtered`."""
        with self.corpus.open(read_only=True) as connection:
            lock_down(connection)
            found = filtered(connection, self.corpus.path, where, parameters)
        if found is None:
            return None
        keys = {key for _, key in found}
        return np.array([row for row, key in enumerate(matrix.keys) if key in keys], dtype=np.int64)

    def embed_queries(self, queries: Sequence[str]) -> np.ndarray:
        """float32 [queries, d]."""
        return self._embed(queries, query=True)

    def _embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        rows = np.asarray(self.embedder.embed(texts, "query" if query else "document"), dtype=np.float32)
        if not np.isfinite(rows).all():
            bad = texts[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
            raise RetrievalError(f"embedder {self.embedder.name}: the vector of {bad[:40]!r} is not finite")
        return rows

    def _read(self) -> Matrix:
        with self.corpus.open(read_only=True) as connection:
            (size,) = connection.execute("SELECT max(len(vector)) FROM vectors").fetchall()[0]
            cursor = connection.execute(
                "SELECT key, doc, vector FROM documents JOIN vectors ON vectors.digest = sha256(text) ORDER BY key"
            )
            found = cursor.fetchnumpy()
        keys, vectors = list(found["key"]), list(found["vector"])
        # Of a text that has two vectors, as two processes could write them, one counts.
        once = np.flatnonzero(np.diff(np.asarray(found["doc"], dtype=np.int64), prepend=-1)).tolist()
        if not once:
            return Matrix((), np.zeros((0, size or 0), dtype=np.float32))
        rows = np.vstack([vectors[row] for row in once]).astype(np.float32)
        return Matrix(tuple(keys[row] for row in once), np.ascontiguousarray(rows))

    def _check(self, connection: DuckDBPyConnection) -> dict[str, str]:
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        made = meta.get("embedder")
        if made is not None and made != self.embedder.digest:
            raise RetrievalError(
                f"{self.corpus.path}: its vectors were made with {meta.get('embedder_name')} ({made[:12]}…), this is "
                f"{self.embedder.name} ({self.embedder.digest[:12]}…): pass that model, or add the documents to a new file"
            )
        return meta

    def _write(self, connection: DuckDBPyConnection, digests: Sequence[str], rows: np.ndarray) -> None:
        with transaction(connection):
            size = self._check(connection).get("dimension", str(rows.shape[1]))
            if int(size) != rows.shape[1]:
                raise RetrievalError(
                    f"{self.corpus.path}: holds vectors of {size} dimensions, {self.embedder.name} made {rows.shape[1]}: "
                    "use one model, or a new file"
                )
            made = {"embedder": self.embedder.digest, "embedder_name": self.embedder.name, "dimension": size}
            for name, value in made.items():
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [name, value])
            # Those that are there were made by another process since this one looked.
            fresh = f"SELECT unnest(?::VARCHAR[]) AS digest, unnest(?::FLOAT[{size}][]) AS vector"
            connection.execute(
                f"INSERT INTO vectors SELECT digest, vector FROM ({fresh}) WHERE digest NOT IN (SELECT digest FROM vectors)",
                [list(digests), rows.tolist()],
            )


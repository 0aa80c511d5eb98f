"""`Lexical`: BM25, all queries of a call together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RetrievalError
from .filters import filtered, lock_down
from .held import Held
from .hit import Hit
from .index import Index
from .lexical_sql import search_in_sql
from .postings import Postings

IN_MEMORY = 50_000_000
"""Postings above which an index stays in its file and is searched there, in SQL: 24 bytes each in memory."""


def _read(index: Index) -> Postings | None:
    with index.open(read_only=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM postings").fetchall()[0]
    return Postings(index) if count <= IN_MEMORY else None


_HELD = Held(_read)


class Lexical:
    """BM25, the variant of Lucene 8 and later (no factor k1 + 1, which changes no order).

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009); the idf ln(1 + (N - df + 0.5) / (df + 0.5))
    as compared by Kamphuis et al., "Which BM25 do you mean?" (2020). A word that stands twice in a query counts twice.
    idf and average length are those of the whole corpus, whatever a search leaves out. The index is held in memory;
    in_memory=False searches it in the file, in one SQL statement, which is slower and needs no memory.
    corpus: a `Corpus`, or a `ChunkSet` of one.
    """

    def __init__(self, corpus: Index, k1: float = 1.2, b: float = 0.75, in_memory: bool = True) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise RetrievalError(f"k1={k1}, b={b}: k1 is at least 0, b from 0 to 1")
        self.corpus, self.k1, self.b, self.in_memory = corpus, k1, b, in_memory

    def search(
        self, queries: Sequence[str], k: int = 10, where: str = "true", parameters: Mapping[str, Any] | None = None
    ) -> list[list[Hit]]:
        """The best k documents per query, best first, ties by age; fewer where fewer share a term with it.

        where: a condition in SQL over `key`, `document`, `source` and `metadata` (JSON), by the program's author;
        parameters: values of its names, which may come from anyone. Raises `RetrievalError` for k below 1 or what is no
        condition.
        """
        if k < 1:
            raise RetrievalError(f"k={k}: give at least 1")
        postings = _HELD.get(self.corpus) if self.in_memory else None
        if postings is not None and where == "true":
            return postings.search(queries, k, self.k1, self.b, None)
        if not self.in_memory:
            self.corpus.refresh()
        with self.corpus.open(read_only=True) as connection:
            lock_down(connection)
            found = filtered(connection, self.corpus.path, where, parameters)
            if postings is None:
                docs = None if found is None else [doc for doc, _ in found]
                return search_in_sql(connection, queries, self.corpus.language, (self.k1, self.b, k), docs)
        return postings.search(queries, k, self.k1, self.b, None if found is None else {key for _, key in found})

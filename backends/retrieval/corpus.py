"""`Corpus`: documents and their index in one DuckDB file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import RetrievalError
from ..readers import Source
from .encoder import clean
from .index import Entry, Index, as_json, insert, known, remove
from .progress import progress_bar
from .store import connect, create_or_check, transaction

if TYPE_CHECKING:
    from .chunk_set import ChunkSet
    from .chunking import Chunking

BATCH = 2000
"""Documents per transaction."""
BATCH_CHARACTERS = 20_000_000
"""Text per transaction, at most; one document that is longer is a transaction of its own."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text under a key. metadata: plain values by name; filters see them as JSON."""

    key: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over everything but the key, hex."""
        parts = [self.text, self.source, as_json(dict(self.metadata))]
        return hashlib.sha256(as_json(parts).encode()).hexdigest()


class Change(NamedTuple):
    """How many documents were written anew, replaced, left alone, and deleted."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0


class Corpus(Index):
    """A searchable set of documents in one file, made where there is none.

        corpus = still.Corpus("docs.duckdb")
        corpus.read("docs")                                        # a folder of .txt, .md and .html files
        corpus.read("faq.csv", text=["question", "answer"], key="id")
        corpus.add([{"key": "a", "text": "...", "lang": "en"}])    # or still.Document(key, text, source, metadata)

    Each batch is one transaction: a killed process leaves the last batch that was committed. The file is open only during
    an operation. Documents that are there already with the same content cost a digest. Bars are drawn where stderr is a
    terminal.
    language: of the stemmer, "english" or another of PyStemmer's.
    Raises `RetrievalError` for a file that is no corpus, of another format or language, or in use, and for a language that
    has no stemmer.
    """

    def __init__(self, path: str | PathLike[str], language: str = "english") -> None:
        super().__init__(Path(path), language)
        create_or_check(self.path, language)

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        batch: int = BATCH,
        *,
        text: str | Sequence[str] = "text",
        key: str = "key",
        progress: bool = True,
    ) -> Change:
        """Add documents, or rows (dicts), replacing those whose key is there with other content.

        text, key: columns of rows, as in `read`; the other columns become metadata. Of two documents with one key the later
        counts. Raises `RetrievalError` for a document without key, a row without these columns, or a text that is none.
        """
        from .sources import Columns, documents_of

        if batch < 1:
            raise RetrievalError(f"batch={batch}: give at least 1")
        total = len(documents) if isinstance(documents, Sized) else None
        found = documents_of(documents, Columns.of(text, key), "rows")
        return self._add(found, total, progress, batch)[0]

    def read(
        self,
        path: Source,
        *,
        text: str | Sequence[str] | None = None,
        key: str | None = None,
        prune: bool = False,
        progress: bool = True,
    ) -> Change:
        """Add files: .txt, .md, .html; with text=, also the rows of .csv, .tsv, .jsonl, .json and .parquet files.

        path: a file, a folder (with all folders in it; names that begin with a dot are left out), a pattern such as
        "data/*.csv", or several of these. A text file is a document whose key and source are its path as you gave it.
        Bytes that are no UTF-8 become U+FFFD; HTML becomes text with Markdown's marks for headings and lists. An empty file
        is a document that no search finds. Of a table, text names the column with the text (of several, those joined by
        blank lines), key the one with the key (without it, path and row number); the others become metadata.
        prune: delete documents that came from these files, this folder, this pattern, and are not there any more; those of
        files that this call would not read (tables without text=, names that begin with a dot) stay.
        Raises `RetrievalError` for what is not there, cannot be read, or lacks a column.
        """
        from .sources import Columns, Files

        files = Files(path, None if text is None else Columns.of(text, key))
        change, seen = self._add(files.documents(), None if files.tables else len(files.paths), progress)
        return change._replace(deleted=self._prune(files.covers, seen)) if prune else change

    def sql(
        self,
        query: str,
        *,
        key: str,
        text: str | Sequence[str] = "text",
        database: str | PathLike[str] | None = None,
        source: str = "",
        prune: bool = False,
        progress: bool = True,
    ) -> Change:
        """Add the rows of a DuckDB query, over `database` (opened read-only) or over files that the query names.

        text, key: columns, as in `read`. source: what the documents say they are from. prune: delete those that say the same
        and are not in the query's result. Raises `RetrievalError` for a query that fails or lacks a column.
        """
        from .sources import Columns, query_documents

        if prune and not source:
            raise RetrievalError("prune=True needs source=: a text that tells this query's documents from others")
        found, total = query_documents(query, database, Columns.of(text, key), source)
        change, seen = self._add(found, total, progress)
        return change._replace(deleted=self._prune(lambda name: name == source, seen)) if prune else change

    def delete(self, keys: str | Sequence[str]) -> int:
        """Remove documents, or the one with this key, in one transaction; returns how many there were."""
        named = [clean(key) for key in ([keys] if isinstance(keys, str) else keys)]
        with connect(self.path, read_only=True) as connection:
            if not known(connection, named):
                return 0
        with connect(self.path, read_only=False) as connection, transaction(connection):
            there = known(connection, named)
            remove(connection, [doc for doc, _ in there.values()])
        return len(there)

    def chunks(self, chunking: Chunking, model: Any = None) -> ChunkSet:
        """What `Lexical` and `Dense` search instead of whole documents. model: the embedder whose tokens are counted, as
        `Dense` takes it; see `Retrieve` for what is counted without one."""
        from .chunk_set import ChunkSet
        from .embedding import embedder_of
        from .tokens import tokens_of

        return ChunkSet(self, chunking, tokens_of(None if model is None else embedder_of(model)))

    def forget_chunks(self) -> int:
        """Drop all sets of chunks, as a search over many settings leaves them; those that are needed are made again.

        Vectors stay. Returns how many sets there were.
        """
        with connect(self.path, read_only=False) as connection, transaction(connection):
            sql = "SELECT schema_name FROM duckdb_schemas() WHERE starts_with(schema_name, 'chunks_') AND NOT internal"
            names = [name for (name,) in connection.execute(sql).fetchall()]
            for name in names:
                connection.execute(f"DROP SCHEMA {name} CASCADE")
        return len(names)

    def _add(
        self, documents: Iterator[Document], total: int | None, progress: bool, batch: int = BATCH
    ) -> tuple[Change, set[str]]:
        change, pending, size, seen = Change(), dict[str, Document](), 0, set[str]()
        with progress_bar("adding", total, progress) as advance:
            for document in documents:
                pending[document.key] = document
                seen.add(document.key)
                size += len(document.text)
                advance(1)
                if len(pending) >= batch or size >= BATCH_CHARACTERS:
                    change, pending, size = _sum(change, self._write(pending)), {}, 0
            return (_sum(change, self._write(pending)) if pending else change), seen

    def _prune(self, covers: Any, seen: set[str]) -> int:
        with connect(self.path, read_only=True) as connection:
            rows = connection.execute("SELECT key, source FROM documents").fetchall()
        return self.delete([key for key, source in rows if key not in seen and covers(source)])

    def _write(self, documents: Mapping[str, Document]) -> Change:
        digests = {key: document.digest for key, document in documents.items()}
        # Reading first: where nothing changed, the file is never opened for writing.
        with connect(self.path, read_only=True) as connection:
            there = known(connection, list(digests))
        same = {key for key, (_, digest) in there.items() if digests[key] == digest}
        changed = [(document, digests[key]) for key, document in documents.items() if key not in same]
        if not changed:
            return Change(unchanged=len(same))
        with connect(self.path, read_only=False) as connection, transaction(connection):
            there = known(connection, [document.key for document, _ in changed])
            remove(connection, [doc for doc, _ in there.values()])
            insert(connection, [_entry(*pair) for pair in changed], self.language)
        updated = sum(document.key in there for document, _ in changed)
        return Change(len(changed) - updated, updated, len(same))


def _entry(document: Document, digest: str) -> Entry:
    text = clean(document.text)
    metadata = as_json(dict(document.metadata))
    return Entry(document.key, digest, clean(document.source), metadata, text, document.key, 0, len(text))


def _sum(a: Change, b: Change) -> Change:
    return Change(*(x + y for x, y in zip(a, b, strict=True)))

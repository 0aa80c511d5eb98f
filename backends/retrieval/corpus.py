"""`Corpus`: documents and their index in one DuckDB file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import RetrievalError
from .store import connect, create_or_check
from .words import index_terms

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH = 2000
"""Documents per transaction."""


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
        parts = [self.text, self.source, dict(self.metadata)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


class Change(NamedTuple):
    """How many documents `add` wrote anew, replaced, and left alone."""

    added: int
    updated: int
    unchanged: int


class Corpus:
    """A searchable set of documents in one file, made where there is none.

    Each batch of `add` is one transaction: a killed process leaves the last batch that was committed. The file is open only
    during an operation. Raises `RetrievalError` for a file that is no corpus, of another format or language, or in use.
    """

    def __init__(self, path: str | PathLike[str], language: str = "english") -> None:
        self.path, self.language = Path(path), language
        create_or_check(self.path, language)

    def __len__(self) -> int:
        with connect(self.path, read_only=True) as connection:
            return int(connection.execute("SELECT count(*) FROM documents").fetchall()[0][0])

    def add(self, documents: Iterable[Document], batch: int = BATCH) -> Change:
        """Add documents, replacing those whose key is there with other content; unchanged ones cost a digest.

        Of two documents with one key the later counts. Raises `RetrievalError` for a document without key.
        """
        if batch < 1:
            raise RetrievalError(f"batch={batch}: give at least 1")
        total, pending = Change(0, 0, 0), dict[str, Document]()
        for document in documents:
            if not document.key:
                raise RetrievalError(f"document {document.text[:40]!r} has no key: give each a text that names it")
            pending[document.key] = document
            if len(pending) >= batch:
                total, pending = _sum(total, self._write(pending)), {}
        return _sum(total, self._write(pending)) if pending else total

    def delete(self, keys: Sequence[str]) -> int:
        """Remove documents in one transaction; returns how many there were."""
        with connect(self.path, read_only=False) as connection:
            known = _known(connection, keys)
            _transact(connection, list(known.values()), [])
        return len(known)

    def _write(self, documents: Mapping[str, Document]) -> Change:
        digests = {key: document.digest for key, document in documents.items()}
        # Reading first: where nothing changed, the file is never opened for writing.
        with connect(self.path, read_only=True) as connection:
            known = _known(connection, list(digests))
        same = {key for key, (_, digest) in known.items() if digests[key] == digest}
        changed = [(digests[key], document) for key, document in documents.items() if key not in same]
        if changed:
            with connect(self.path, read_only=False) as connection:
                known = _known(connection, [document.key for _, document in changed])
                _transact(connection, list(known.values()), changed, self.language)
        updated = sum(document.key in known for _, document in changed)
        return Change(len(changed) - updated, updated, len(same))


def _sum(a: Change, b: Change) -> Change:
    return Change(a.added + b.added, a.updated + b.updated, a.unchanged + b.unchanged)


def _known(connection: DuckDBPyConnection, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
    sql = "SELECT key, doc, digest FROM documents WHERE key IN (SELECT unnest(?::VARCHAR[]))"
    return {key: (doc, digest) for key, doc, digest in connection.execute(sql, [list(keys)]).fetchall()}


def _transact(
    connection: DuckDBPyConnection,
    gone: Sequence[tuple[int, str]],
    added: Sequence[tuple[str, Document]],
    language: str = "english",
) -> None:
    connection.begin()
    try:
        if gone:
            ids = [doc for doc, _ in gone]
            for table in ("documents", "postings"):
                connection.execute(f"DELETE FROM {table} WHERE doc IN (SELECT unnest(?::INTEGER[]))", [ids])
        if added:
            _insert(connection, added, language)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def _insert(connection: DuckDBPyConnection, added: Sequence[tuple[str, Document]], language: str) -> None:
    (first,) = connection.execute("SELECT coalesce(max(doc), -1) + 1 FROM documents").fetchall()[0]
    rows: list[tuple[Any, ...]] = []
    words: list[str] = []
    docs: list[int] = []
    counts: list[int] = []
    for doc, (digest, document) in enumerate(added, first):
        # A lone surrogate (text decoded with surrogateescape) cannot be stored: it is shown as U+FFFD.
        text = document.text.encode("utf-8", "replace").decode("utf-8")
        terms = index_terms(text, language)
        metadata = json.dumps(dict(document.metadata), default=str)
        rows.append((doc, document.key, digest, document.source, metadata, len(terms), text))
        for word, count in Counter(terms).items():
            words.append(word)
            docs.append(doc)
            counts.append(count)
    columns = [list(column) for column in zip(*rows, strict=True)]
    types = ("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "JSON", "INTEGER", "VARCHAR")
    terms_sql = ", ".join(f"unnest(?::{kind}[])" for kind in types)
    connection.execute(f"INSERT INTO documents SELECT {terms_sql}", columns)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE fresh AS SELECT unnest(?::VARCHAR[]) AS word, unnest(?::INTEGER[]) AS doc, "
        "unnest(?::INTEGER[]) AS count",
        [words, docs, counts],
    )
    connection.execute(
        "INSERT INTO terms SELECT (SELECT coalesce(max(term), -1) FROM terms) + row_number() OVER (ORDER BY word), word "
        "FROM (SELECT DISTINCT word FROM fresh) WHERE word NOT IN (SELECT word FROM terms)"
    )
    connection.execute(
        "INSERT INTO postings SELECT term, doc, count FROM fresh JOIN terms USING (word) ORDER BY term, doc"
    )
    connection.execute("DROP TABLE fresh")

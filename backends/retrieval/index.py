"""`Index`: what the operators search, a part of a corpus file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .encoder import clean
from .store import connect
from .words import index_terms

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Entry(NamedTuple):
    """A text to be found. metadata: JSON. document, start, stop: whose text it is, and from which character to which."""

    key: str
    digest: str
    source: str
    metadata: str
    text: str
    document: str
    start: int
    stop: int


class Index:
    """Texts, their terms and postings, in one schema of a file; vectors and settings are shared by all schemas."""

    def __init__(self, path: Path, language: str, schema: str = "main") -> None:
        self.path, self.language, self.schema = path, language, schema

    def __len__(self) -> int:
        self.refresh()
        with self.open(read_only=True) as connection:
            return int(connection.execute("SELECT count(*) FROM documents").fetchall()[0][0])

    @contextmanager
    def open(self, *, read_only: bool) -> Iterator[DuckDBPyConnection]:
        """A connection on which `documents`, `terms` and `postings` are this index'. Raises as `store.connect` does."""
        with connect(self.path, read_only=read_only) as connection:
            if self.schema != "main":
                connection.execute(f"SET search_path = '{self.schema},main'")
            yield connection

    def refresh(self) -> None:
        """Bring it up to date with what it is made from. A corpus is made from nothing."""


def known(connection: DuckDBPyConnection, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
    """(number, digest) of the entries with these keys, those that are there."""
    sql = "SELECT key, doc, digest FROM documents WHERE key IN (SELECT unnest(?::VARCHAR[]))"
    return {key: (doc, digest) for key, doc, digest in connection.execute(sql, [list(keys)]).fetchall()}


def remove(connection: DuckDBPyConnection, docs: Sequence[int]) -> None:
    """Remove entries by number, within the caller's transaction."""
    for table in ("documents", "postings") if docs else ():
        connection.execute(f"DELETE FROM {table} WHERE doc IN (SELECT unnest(?::INTEGER[]))", [list(docs)])


def insert(connection: DuckDBPyConnection, entries: Sequence[Entry], language: str) -> None:
    """Add entries and their terms, within the caller's transaction; their keys must not be there."""
    if not entries:
        return
    (first,) = connection.execute("SELECT coalesce(max(doc), -1) + 1 FROM documents").fetchall()[0]
    rows: list[tuple[Any, ...]] = []
    words: list[str] = []
    docs: list[int] = []
    counts: list[int] = []
    for doc, entry in enumerate(entries, first):
        terms = index_terms(entry.text, language)
        rows.append((doc, *entry[:4], len(terms), *entry[4:]))
        for word, count in Counter(terms).items():
            words.append(word)
            docs.append(doc)
            counts.append(count)
    columns = [list(column) for column in zip(*rows, strict=True)]
    types = ("INTEGER", *["VARCHAR"] * 3, "JSON", "INTEGER", "VARCHAR", "VARCHAR", "INTEGER", "INTEGER")
    unnested = ", ".join(f"unnest(?::{kind}[])" for kind in types)
    connection.execute(f"INSERT INTO documents SELECT {unnested}", columns)
    _insert_postings(connection, words, docs, counts)


def _insert_postings(connection: DuckDBPyConnection, words: list[str], docs: list[int], counts: list[int]) -> None:
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE fresh AS SELECT unnest(?::VARCHAR[]) AS word, unnest(?::INTEGER[]) AS doc, "
        "unnest(?::INTEGER[]) AS count",
        [words, docs, counts],
    )
    connection.execute(
        "INSERT INTO terms SELECT (SELECT coalesce(max(term), -1) FROM terms) + row_number() OVER (ORDER BY word), word "
        "FROM (SELECT DISTINCT word FROM fresh) WHERE word NOT IN (SELECT word FROM terms)"
    )
    connection.execute("INSERT INTO postings SELECT term, doc, count FROM fresh JOIN terms USING (word) ORDER BY term, doc")
    connection.execute("DROP TABLE fresh")


def as_json(metadata: Any) -> str:
    """Metadata as it is kept: what JSON has no form for is its text, and numbers that are none are null."""
    return json.dumps(_plain(metadata), default=str, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(name)): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

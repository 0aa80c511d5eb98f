"""`ChunkSet`: the chunks of a corpus under one setting, kept in its file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .chunking import Chunking, cut
from .corpus import Corpus
from .held import Stamp, file_stamp
from .index import Entry, Index, insert, remove
from .progress import progress_bar
from .store import INDEX, connect, transaction
from .tokens import TokenStarts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH_CHARACTERS = 4_000_000
"""Text of the documents that are cut in one transaction; one document that is longer is a transaction of its own."""
_Found = tuple[str, str, str, str, str]  # key, digest, source, metadata, text


class ChunkSet(Index):
    """What operators search instead of whole documents. Sets of different settings are side by side in the file, each made
    when it is searched first, and brought up to date when documents have changed; only those are cut anew.

    A chunk's key is its document's key and a number from 1: "guide.md#3". Safe to use from several threads.
    """

    def __init__(self, corpus: Corpus, chunking: Chunking, tokens: TokenStarts) -> None:
        super().__init__(corpus.path, corpus.language, f"chunks_{chunking.digest(tokens)}")
        self.chunking, self.tokens = chunking, tokens
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None

    def refresh(self) -> None:
        """Cut the documents that are new or have changed. Interrupted, it goes on where it was."""
        with self._lock:
            stamp = file_stamp(self.path)
            if self._stamp != stamp:
                while self.update():  # until nothing is new: another process may add documents meanwhile
                    stamp = file_stamp(self.path)
                self._stamp = stamp

    def update(self, progress: bool = False) -> int:
        """What `refresh` does, without asking whether the file has changed; returns how many documents were cut."""
        gone, new = self._difference()
        if gone:
            self._replace(gone, [])
        with progress_bar("cutting", len(new), progress) as advance:
            for batch in self._batches(new):
                self._replace([key for key, *_ in batch], batch)
                advance(len(batch))
        return len(new)

    def _difference(self) -> tuple[list[str], list[tuple[str, int]]]:
        """Keys of documents that are no more, and (key, length) of those to be cut."""
        self._make()
        with connect(self.path, read_only=True) as connection:
            gone = connection.execute(
                f"SELECT key FROM {self.schema}.done WHERE key NOT IN (SELECT key FROM main.documents)"
            ).fetchall()
            new = connection.execute(
                f"SELECT key, length(text) FROM main.documents ANTI JOIN {self.schema}.done USING (key, digest) ORDER BY doc"
            ).fetchall()
        return [key for (key,) in gone], new

    def _make(self) -> None:
        with connect(self.path, read_only=True) as connection:
            if self._is_made(connection):
                return
        with connect(self.path, read_only=False) as connection, transaction(connection):
            if self._is_made(connection):  # by another process, or another object of this one, since
                return
            connection.execute(f"CREATE SCHEMA {self.schema}")
            connection.execute(INDEX.format(schema=self.schema))
            connection.execute(f"CREATE TABLE {self.schema}.done (key VARCHAR, digest VARCHAR)")

    def _is_made(self, connection: DuckDBPyConnection) -> bool:
        sql = "SELECT count(*) FROM duckdb_schemas() WHERE schema_name = ?"
        return bool(connection.execute(sql, [self.schema]).fetchall()[0][0])

    def _batches(self, new: Sequence[tuple[str, int]]) -> Iterator[list[_Found]]:
        keys: list[str] = []
        size = 0
        for key, length in new:
            if keys and size + length > BATCH_CHARACTERS:
                yield self._read(keys)
                keys, size = [], 0
            keys.append(key)
            size += length
        if keys:
            yield self._read(keys)

    def _read(self, keys: Sequence[str]) -> list[_Found]:
        sql = (
            "SELECT key, digest, source, metadata, text FROM main.documents "
            "WHERE key IN (SELECT unnest(?::VARCHAR[])) ORDER BY doc"
        )
        with self.open(read_only=True) as connection:
            return connection.execute(sql, [list(keys)]).fetchall()

    def _replace(self, keys: Sequence[str], found: Sequence[_Found]) -> None:
        entries = [entry for row in found for entry in self._entries(*row)]
        with self.open(read_only=False) as connection, transaction(connection):
            sql = "SELECT doc FROM documents WHERE document IN (SELECT unnest(?::VARCHAR[]))"
            remove(connection, [doc for (doc,) in connection.execute(sql, [list(keys)]).fetchall()])
            connection.execute("DELETE FROM done WHERE key IN (SELECT unnest(?::VARCHAR[]))", [list(keys)])
            insert(connection, entries, self.language)
            done = [[key for key, *_ in found], [digest for _, digest, *_ in found]]
            connection.execute("INSERT INTO done SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])", done)

    def _entries(self, key: str, digest: str, source: str, metadata: str, text: str) -> Iterator[Entry]:
        for number, (start, stop) in enumerate(cut(text, self.chunking, self.tokens), 1):
            own = hashlib.sha256(f"{digest} {start} {stop}".encode()).hexdigest()
            yield Entry(f"{key}#{number}", own, source, metadata, text[start:stop], key, start, stop)

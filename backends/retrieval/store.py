"""A corpus file: its tables, its version, and connections that last for one operation."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import RetrievalError
from ..duck import put_in_place
from .gate import gate_of
from .words import check_language

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMAT = "3"
"""Raised when a file of an earlier Still would be searched wrongly: its tables, or what its terms are."""
SCHEMA = """
CREATE TABLE meta (name VARCHAR PRIMARY KEY, value VARCHAR);
CREATE TABLE vectors (digest VARCHAR, vector FLOAT[]);
"""
INDEX = """
CREATE TABLE {schema}.documents (doc INTEGER, key VARCHAR, digest VARCHAR, source VARCHAR, metadata JSON,
  length INTEGER, text VARCHAR, document VARCHAR, start INTEGER, stop INTEGER);
CREATE TABLE {schema}.terms (term INTEGER, word VARCHAR);
CREATE TABLE {schema}.postings (term INTEGER, doc INTEGER, count INTEGER);
"""
"""What is searched: whole documents in the schema main, and in a schema of its own each way of cutting them into chunks.
length: number of terms. document, start, stop: whose text it is, and from which character to which."""


@contextmanager
def connect(path: Path, *, read_only: bool) -> Iterator[DuckDBPyConnection]:
    """A connection that is closed at the end: DuckDB lets no second process in while one is open for writing.

    Raises RetrievalError for a file that is locked, read-only, damaged or no database.
    """
    import duckdb

    with gate_of(path).held(read_only=read_only):
        try:
            connection = duckdb.connect(str(path), read_only=read_only)
        except duckdb.Error as error:
            message = str(error).strip().splitlines()[0]
            raise RetrievalError(
                f"{path}: cannot be opened for {'reading' if read_only else 'writing'}: {message}; "
                "end the process that holds it, or check that it is a corpus and its permissions"
            ) from error
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def transaction(connection: DuckDBPyConnection) -> Iterator[None]:
    """All of the block, or nothing of it."""
    connection.begin()
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def create_or_check(path: Path, language: str) -> None:
    """Make the tables of a new file, or check that an existing one is a corpus of this format and language."""
    if not path.exists():
        check_language(language)
        _create(path, language)
    # One that was just made, too: another process may have been faster.
    with connect(path, read_only=True) as connection:
        sql = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
        tables = {name for (name,) in connection.execute(sql).fetchall()}
        if not {"meta", "documents", "terms", "postings", "vectors"} <= tables:
            raise RetrievalError(f"{path}: is a DuckDB file but no corpus; choose another path")
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    if meta.get("format") != FORMAT:
        raise RetrievalError(
            f"{path}: is a corpus of format {meta.get('format')}, this Still has format {FORMAT}: "
            "add the documents to a new file"
        )
    if meta.get("language") != language:
        made_with = meta.get("language")
        raise RetrievalError(f"{path}: was made with language={made_with!r}, not {language!r}: pass that, or a new file")


def _create(path: Path, language: str) -> None:
    """Made aside, then linked into place: a kill here leaves no half corpus, and no other is overwritten."""
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with connect(aside, read_only=False) as made:
            made.execute(SCHEMA + INDEX.format(schema="main"))
            made.executemany("INSERT INTO meta VALUES (?, ?)", [["format", FORMAT], ["language", language]])
        put_in_place(aside, target)
    except OSError as error:
        raise RetrievalError(f"{path}: cannot be created: {error}; choose a folder that can be written") from error
    finally:
        with suppress(OSError):
            aside.unlink()

"""Where documents come from: files, folders, tables, queries, rows."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any, NamedTuple, NoReturn, Self

from ...errors import DatasetError, RetrievalError
from ..duck import select
from ..readers import Row, Source, first_line, read_table
from .corpus import Document
from .encoder import clean
from .text_file import TEXTS, read_text

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")


class Columns(NamedTuple):
    """Which columns of a table hold text and key."""

    text: tuple[str, ...]
    key: str | None

    @classmethod
    def of(cls, text: str | Sequence[str], key: str | None) -> Self:
        """Raises `RetrievalError` for no column of text."""
        names = (text,) if isinstance(text, str) else tuple(text)
        if not names:
            raise RetrievalError("text=[]: name at least one column")
        return cls(names, key)

    def check(self, there: Collection[str], place: str) -> None:
        """Raise `RetrievalError` if a column is not there."""
        named = self.text if self.key is None else (*self.text, self.key)
        missing = next((name for name in named if name not in there), None)
        if missing is not None:
            found = ", ".join(map(str, there)) or "none"
            raise RetrievalError(f"{place}: has no column {missing!r}, it has {found}; say which with text= and key=")

    def document(self, row: Mapping[str, Any], place: str, source: str = "", key: str = "") -> Document:
        """The document of a row; key: where no column has it. Raises `RetrievalError` naming the place and the column."""
        self.check(row, place)
        texts = [_text(row[name], f"{place}: column {name!r}") for name in self.text]
        given = key if self.key is None else _text(row[self.key], f"{place}: column {self.key!r}")
        rest = {str(name): value for name, value in row.items() if name not in self.text and name != self.key}
        return checked(Document(given, "\n\n".join(text for text in texts if text), source, rest), place)


def _text(value: Any, place: str) -> str:
    if value is None or (isinstance(value, float) and value != value):  # NaN, as data frames have it for nothing
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise RetrievalError(f"{place} is {value!r:.60}: give text")


def checked(document: Document, place: str) -> Document:
    """The document. Raises `RetrievalError` for one without a key, or whose key or text is no text."""
    if not isinstance(document.text, str):
        raise RetrievalError(f"{place}: document {document.key!r}: its text is {document.text!r:.60}; give text")
    if not isinstance(document.key, str) or not document.key:
        raise RetrievalError(f"{place}: document {document.text[:40]!r} has no key: give each a text that names it")
    if clean(document.key) != document.key:
        raise RetrievalError(f"{place}: key {document.key!r} holds half of a surrogate pair; remove it")
    return document


def documents_of(given: Iterable[Document | Mapping[str, Any]], columns: Columns, place: str) -> Iterator[Document]:
    """Documents as they are, rows as `columns` reads them."""
    for number, item in enumerate(given, 1):
        where = f"{place}: number {number}"
        if isinstance(item, Document):
            yield checked(item, where)
        elif isinstance(item, Mapping):
            yield columns.document(item, where)
        else:
            raise RetrievalError(f"{where} is {item!r:.60}; give still.Document(key, text) or a dict")


def query_documents(
    query: str, database: str | PathLike[str] | None, columns: Columns, source: str
) -> tuple[Iterator[Document], int]:
    """The documents of a query's rows, and how many there are."""
    import duckdb

    try:
        selected = select(query, database)
    except duckdb.Error as error:
        raise RetrievalError(f"query {query[:60]!r}: {first_line(error)}; correct it") from error
    if selected is None:
        raise RetrievalError(f"query {query[:60]!r} has no result; give a SELECT")
    names, rows = selected
    if not rows:
        columns.check(names, "query")
    found = (dict(zip(names, row, strict=True)) for row in rows)
    return (columns.document(row, f"query: row {n}", source) for n, row in enumerate(found, 1)), len(rows)


class Files:
    """The files behind a path, a folder, a pattern, or several; `columns`: how to read tables, None: not at all."""

    def __init__(self, source: Source, columns: Columns | None) -> None:
        given = [PurePath(fspath(s)).as_posix() for s in ([source] if isinstance(source, str | PathLike) else source)]
        self._columns = columns
        self._folders: list[str] = []
        self._patterns: list[str] = []
        self.paths = [path for name in given for path in self._expanded(name)]
        if not self.paths:
            raise RetrievalError(f"path={source!r} names no file; give one")
        self._names = {clean(path.as_posix()) for path in self.paths}

    @property
    def tables(self) -> bool:
        """Whether some of the files hold many documents."""
        return any(path.suffix.lower() in TABLES for path in self.paths)

    def covers(self, source: str) -> bool:
        """Whether a document with this source is of a file that was read, or of one that would have been and is gone."""
        return source in self._names or (self._would_read(source) and not os.path.isfile(source))

    def _would_read(self, source: str) -> bool:
        if PurePath(source).suffix.lower() not in self._suffixes():
            return False
        parts = source.split("/")
        return any(_is_under(source, folder) for folder in self._folders) or any(
            _matches(parts, pattern.split("/")) for pattern in self._patterns
        )

    def documents(self) -> Iterator[Document]:
        """All documents, file by file. Raises `RetrievalError` for a file that cannot be read."""
        for path in self.paths:
            name = clean(path.as_posix())
            if path.suffix.lower() in TABLES:
                yield from self._rows(path, name)
            else:
                text, metadata = read_text(path)
                yield checked(Document(name, text, name, metadata), name)

    def _rows(self, path: Path, name: str) -> Iterator[Document]:
        if self._columns is None:
            raise RetrievalError(f"{path}: is a table; say which column is the text, as text='body', and key= the key's")
        try:
            rows: list[Row] = read_table(path).rows
        except DatasetError as error:
            raise RetrievalError(str(error)) from error
        for number, row in enumerate(rows, 1):
            yield self._columns.document(row, f"{path}: row {number}", name, f"{name}:{number}")

    def _expanded(self, given: str) -> list[Path]:
        path = Path(given)
        if path.is_dir():
            self._folders.append(clean(given))
            found = sorted(file for file in _walk(path) if file.suffix.lower() in self._suffixes())
            if not found:
                endings = ", ".join(self._suffixes())
                raise RetrievalError(f"{path} has no file that ends in {endings}: give a folder of documents")
            return found
        if path.exists() or not glob.has_magic(given):
            _check(path)
            return [path]
        self._patterns.append(clean(given))
        found = sorted(file for name in glob.glob(given, recursive=True) if (file := Path(name)).is_file())
        if not found:
            raise RetrievalError(f"{given}: no file matches this pattern; check the path")
        for file in found:
            _check(file)
        return found

    def _suffixes(self) -> tuple[str, ...]:
        return TEXTS if self._columns is None else TEXTS + TABLES


def _check(path: Path) -> None:
    if path.suffix.lower() not in TEXTS + TABLES:
        what = path.suffix or "a file without suffix"
        raise RetrievalError(f"{path}: cannot read {what}; use one of {', '.join(TEXTS + TABLES)}")
    if not path.is_file():
        raise RetrievalError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; check the path")


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> NoReturn:
        raise RetrievalError(f"{error.filename}: cannot be read: {error.strerror}; check its permissions") from error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _is_under(source: str, folder: str) -> bool:
    """Whether a walk through the folder would come to this file."""
    prefix = "" if folder == "." else f"{folder.rstrip('/')}/"
    parts = source[len(prefix) :].split("/")
    return source.startswith(prefix) and all(part and not part.startswith(".") for part in parts)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern as `glob` understands it: `**` is any number of folders; a dot at the beginning of a
    name is matched by a dot only."""
    if not pattern or not parts:
        return not parts and all(p == "**" for p in pattern)
    hidden = parts[0].startswith(".")
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (not hidden and _matches(parts[1:], pattern))
    if hidden and not pattern[0].startswith("."):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])

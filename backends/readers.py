"""Files read as rows of exact values: csv, tsv, jsonl, ndjson, json and parquet."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import DatasetError
from .duck import fetch, literal_path

Row = dict[str, Any]
Source = str | PathLike[str] | Sequence[str | PathLike[str]]
"""A file, a pattern of files, or several of either."""


class Table(NamedTuple):
    """Column names, and rows that hold every column (None where the source had nothing)."""

    columns: list[str]
    rows: list[Row]


def read_table(path: Path) -> Table:
    """Read `path` by its suffix.

    Raises:
        DatasetError: no such file, unknown suffix, damaged or empty content; names the file and the line.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_lines, ".ndjson": _read_lines, ".json": _read_json}
    readers |= {".parquet": _read_parquet, ".pq": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use one of {', '.join(readers)}")
    if not path.is_file():
        raise DatasetError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; check the path")
    table = reader(path)
    if not table.rows:
        raise DatasetError(f"{path}: has columns {', '.join(table.columns)} but no rows; add rows to it")
    return table


def read_tables(source: Source) -> tuple[Table, str, Sequence[int | str]]:
    """All rows of one or more files, what messages call the source, and what they call each row ("3", "3 of b.csv").

    Raises:
        DatasetError: as `read_table` does; a pattern that no file matches; no file at all, or one twice.
    """
    paths = _expand([source] if isinstance(source, str | PathLike) else source)
    if len(paths) == 1:
        table = read_table(paths[0])
        return table, str(paths[0]), range(1, len(table.rows) + 1)
    tables = [read_table(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        check_columns(table.columns, str(path))
    merged = from_records([row for table in tables for row in table.rows])
    places = [f"{i} of {path}" for path, table in zip(paths, tables, strict=True) for i in range(1, len(table.rows) + 1)]
    return merged, f"{paths[0]} and {len(paths) - 1} more", places


def _expand(sources: Sequence[str | PathLike[str]]) -> list[Path]:
    paths: list[Path] = []
    for source in (fspath(given) for given in sources):
        if Path(source).exists() or not glob.has_magic(source):
            paths.append(Path(source))
            continue
        found = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())
        if not found:
            raise DatasetError(f"{source}: no file matches this pattern; check the path")
        paths += found
    if not paths:
        raise DatasetError("path: names no file; give one, or a list of at least one")
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise DatasetError(f"{twice}: is named twice; name each file once")
    return paths


def check_columns(columns: list[str], source: str) -> None:
    """Raise DatasetError for a column without a name or a name used twice."""
    for position, name in enumerate(columns, 1):
        if not name.strip():
            raise DatasetError(f"{source}: column {position} has no name; name every column in the first line")
        if name in columns[: position - 1]:
            raise DatasetError(f"{source}: two columns are named {name!r}; rename one of them")


def from_records(records: list[Row]) -> Table:
    """Records with different keys as one table: keys in order of first appearance, None where a record lacks one."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Table(columns, [{name: record.get(name) for name in columns} for record in records])


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}; check the file's permissions") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DatasetError(f"{path}: line {line} has a NUL character, as UTF-16 text does; save as UTF-8")
    if not text.strip():
        raise DatasetError(f"{path}: is empty; it needs at least one row")
    return text


def _read_csv(path: Path) -> Table:
    """All cells as text (an id keeps its leading zeros), an empty cell as None, blank lines skipped.

    Not through DuckDB, on purpose: its 2.0 reader loses a row whose quote never closes, without a word, takes `#…`
    rows for comments, refuses mixed line ends, and counts records where an editor counts lines. The standard reader
    in strict mode gives every cell exactly and the true line of a fault.
    """
    text = _read_text(path)
    # The limit is global to the csv module and only ever raised: no cell is longer than its file.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    begun = 0  # lines read before the current record: a quoted cell may span several
    try:
        for cells in reader:
            if cells and not columns:
                columns = cells
                check_columns(columns, str(path))
            elif cells:
                _check_width(cells, columns, path, begun + 1)
                rows.append({name: cell or None for name, cell in zip(columns, cells, strict=True)})
            begun = reader.line_num
    except csv.Error as error:
        raise DatasetError(
            f"{path}: line {begun + 1}: {error}; a quoted cell has quotes around all of it, and doubled ones inside"
        ) from error
    return Table(columns, rows)


def _check_width(cells: list[str], columns: list[str], path: Path, line: int) -> None:
    if len(cells) != len(columns):
        raise DatasetError(
            f"{path}: line {line} has {len(cells)} cells, the header {len(columns)} ({', '.join(columns)}); "
            "add or remove cells, and quote a cell that holds the separator"
        )


def _read_lines(path: Path) -> Table:
    """One JSON object a line, through the standard parser.

    DuckDB infers one type per column: it turns 1 and "a" in one column both to text, ISO text to dates and gives
    objects the keys of their neighbours. `json` keeps each value as written, integers of any size included.
    """
    return _lines_table(path, _read_text(path))


def _lines_table(path: Path, text: str) -> Table:
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return from_records(
        [_record(_parse(line, f"{path}: line {number}"), f"{path}: line {number}") for number, line in lines]
    )


def _read_json(path: Path) -> Table:
    """A list of objects; or one object a line, as many tools write under this suffix."""
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return _lines_table(path, text)
    items = _parse(text, str(path))
    if not items:
        raise DatasetError(f"{path}: is an empty list; it needs at least one object")
    return from_records([_record(item, f"{path}: row {number}") for number, item in enumerate(items, 1)])


def _parse(text: str, place: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        if "\\ud" in text.lower():  # half of a surrogate pair has no UTF-8 form and would fail much later
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        spot = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise DatasetError(f"{place}: is not valid JSON: {error.msg} at {spot}; correct it") from error
    except UnicodeEncodeError as error:
        raise DatasetError(f"{place}: holds half of a surrogate pair (\\ud800 to \\udfff); remove it") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place}: {error}; correct it") from error
    return value


def _record(value: Any, place: str) -> Row:
    if not isinstance(value, dict) or not value:
        raise DatasetError(f"{place}: is {value!r:.60}, not an object with fields such as " + '{"question": "..."}')
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(n for n in names if names.count(n) > 1)!r} appears twice in one object")
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value, use null")


def _read_parquet(path: Path) -> Table:
    import duckdb

    query = "SELECT * FROM read_parquet($1, hive_partitioning = false)"
    try:
        with duckdb.connect(":memory:") as connection:
            columns, rows = fetch(connection.sql(query, params=[literal_path(str(path))]))
    except duckdb.Error as error:
        raise DatasetError(f"{path}: DuckDB cannot read it: {first_line(error)}; write the file again") from error
    return Table(columns, [dict(zip(columns, row, strict=True)) for row in rows])


def first_line(error: BaseException) -> str:
    """DuckDB's messages go on with a picture of the statement; the first line says what is wrong."""
    return str(error).split("\n", 1)[0]

"""Small helpers around DuckDB's files and relations, shared by readers of files, datasets, corpora and the ledger."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZONED = "TIMESTAMP WITH TIME ZONE"


def literal_path(path: str) -> str:
    """`path` with glob characters bracketed: DuckDB expands `*`, `?` and `[` even in a bound parameter."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def put_in_place(made: PathLike[str], target: PathLike[str]) -> None:
    """Give a file that was made aside its name, unless another process was faster: no other file is overwritten."""
    try:
        os.link(made, target)
    except FileExistsError:
        return
    except OSError:  # some file systems have no hard links
        if not os.path.lexists(target):
            os.rename(made, target)


def select(query: str, database: str | PathLike[str] | None) -> tuple[list[str], list[tuple[Any, ...]]] | None:
    """(column names, rows) of a query over a database, which is opened read-only, or over files that the query names; None
    for a statement without a result. Raises `duckdb.Error`."""
    import duckdb

    with duckdb.connect(fspath(database) if database else ":memory:", read_only=database is not None) as connection:
        relation = connection.sql(query)
        return None if relation is None else fetch(relation)


def fetch(relation: DuckDBPyRelation) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(column names, rows) of a relation; zoned timestamps come back as datetimes in UTC.

    DuckDB hands zoned timestamps to Python through pytz, which is not a dependency; they travel as microseconds.
    """
    columns = list(relation.columns)
    zoned = {i for i, kind in enumerate(relation.types) if str(kind) == _ZONED}
    if not zoned:
        return columns, relation.fetchall()
    # Renamed by position first: a query may give two columns the same name.
    names = ", ".join(f"c{i}" for i in range(len(columns)))
    terms = ", ".join(f"epoch_us(c{i})" if i in zoned else f"c{i}" for i in range(len(columns)))
    unzoned = relation.query("t", f"SELECT {terms} FROM t AS u({names})")
    rows = unzoned.fetchall() if unzoned is not None else []  # None only for statements that are no SELECT
    return columns, [tuple(_utc(v) if i in zoned else v for i, v in enumerate(row)) for row in rows]


def _utc(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)

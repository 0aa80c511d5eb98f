"""Conditions on documents, written in SQL by the program's author."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RetrievalError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PROBE = "SELECT doc, key FROM documents WHERE (\n{where}\n)"


def lock_down(connection: DuckDBPyConnection) -> None:
    """Take from a connection everything but its own file: no other files, no ATTACH, no extensions, no way back."""
    import duckdb

    try:
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    except duckdb.Error:
        # Another connection of this process to the same file did it already.
        (state,) = connection.execute("SELECT current_setting('enable_external_access')").fetchall()[0]
        if state:
            raise


def filtered(
    connection: DuckDBPyConnection, path: Path, where: str, parameters: Mapping[str, Any] | None = None
) -> list[tuple[int, str]] | None:
    """(number, key) of the documents that meet a condition; None for all of them.

    where: an expression over `key`, `document`, `source` and `metadata` (JSON), as "metadata->>'lang' = $lang";
    parameters: values of its names. Values that come from users belong in parameters, where they stay values.
    A number is given again once its document is gone: what was read from the file earlier is looked up by key.
    Raises `RetrievalError` for a condition that is no single expression or that fails.
    """
    import duckdb

    if where.strip().lower() in ("", "true"):
        return None
    sql = _PROBE.format(where=where)
    try:
        _check(connection, sql)
        return connection.execute(sql, dict(parameters or {})).fetchall()
    except (duckdb.Error, ValueError) as error:
        raise RetrievalError(
            f"{path}: where={where!r}: {error}; give one condition over key, document, source and metadata"
        ) from error


def _check(connection: DuckDBPyConnection, sql: str) -> None:
    """Raise ValueError unless `sql` is one plain SELECT: a condition may not close its bracket and go on."""
    import duckdb

    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise ValueError("it is more than one statement")
    # The tree of a condition that leaves its bracket has something besides the WHERE of the plain one.
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0]
    tree = json.loads(text)
    if tree.get("error"):
        raise ValueError(tree.get("error_message", "it cannot be read"))
    (plain,) = connection.execute(
        "SELECT json_serialize_sql(?::VARCHAR)", [_PROBE.format(where="true")]
    ).fetchall()[0]
    if _frame(tree) != _frame(json.loads(plain)):
        raise ValueError("it is more than one condition")


def _frame(tree: dict[str, Any]) -> Any:
    """A statement's tree without its WHERE, and without positions in the text."""
    node = dict(tree["statements"][0]["node"])
    node.pop("where_clause", None)
    return _without_places(node)


def _without_places(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _without_places(value) for name, value in part.items() if name != "query_location"}
    return [_without_places(value) for value in part] if isinstance(part, list) else part

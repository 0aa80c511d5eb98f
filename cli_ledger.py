"""`still ledger`."""

from __future__ import annotations

import csv
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .cli_shared import output
from .errors import StillError


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    json = "json"
    csv = "csv"


def ledger(
    query: Annotated[str, typer.Argument(help="A ready query's name, or SQL (read only). Nothing: list the names.")] = "",
    path: Annotated[Path, typer.Option(help="The ledger file.")] = Path(".still/ledger.duckdb"),
    form: Annotated[Format, typer.Option("--format", help="table, json (a row per line) or csv.")] = Format.table,
) -> None:
    """Ask the ledger what happened; works while a compile runs.

    Example: still ledger candidates
    """
    from .compiler.ledger import READY_QUERIES, Ledger

    if not query:
        for name, (description, _) in READY_QUERIES.items():
            output.print(f"{name:14} {description}")
        return
    if not path.is_file():
        raise StillError(f"there is no ledger at {path}: compile something first, or pass --path")
    with Ledger(path) as book:
        columns, rows = book.query(query)
    _WRITERS[form](columns, rows)


def _write_table(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_shown(value) for value in row))
    output.print(table, markup=False)


def _write_json(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    for row in rows:
        print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str))


def _write_csv(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


_WRITERS = {Format.table: _write_table, Format.json: _write_json, Format.csv: _write_csv}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    # Predictions and errors may be pages long.
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:119] + "…"

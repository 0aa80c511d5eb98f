"""`Dataset`: rows that a program is measured on, as an immutable sequence of `dspy.Example`."""

from __future__ import annotations

import difflib
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, overload

from ..errors import DatasetError
from ..signatures.bridge import Example
from .canonical import example_digest
from .coercion import coerce_rows
from .readers import Row, Table, check_columns, first_line, from_records, read_table
from .splitting import Size, Splits, cut, normalized_inputs, shuffled

__all__ = ["Dataset", "Splits", "example_digest"]

_SHOWN_ROWS = 5
_SHOWN_CHARACTERS = 120


class Dataset(Sequence[Example]):
    """Rows with named columns; `inputs` are what a program is given, all other columns are labels.

    A dataset never changes: indexing hands out a fresh example each time, slicing and `check` hand out new datasets.
    A row keeps the number it had in its source, so that a message about a slice still names the row of the file.

    Args:
        rows: dicts or examples; a key that some rows lack is None in them.
        inputs: names of the input columns; may be left out when every example already carries the same ones.

    Raises:
        DatasetError: no rows, an input that is no column, a nameless column.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] | Sequence[Example], inputs: Sequence[str] | None = None) -> None:
        table = from_records([_as_dict(row, number) for number, row in enumerate(rows, 1)])
        if inputs is None:
            inputs = _carried_inputs(rows)
        self._fill(table, _checked_inputs(inputs, table.columns, "rows"), "rows", range(1, len(table.rows) + 1))
        if not self._rows:
            raise DatasetError("rows: there are none; give at least one dict or Example")

    def _fill(self, table: Table, inputs: Sequence[str], source: str, numbers: Sequence[int]) -> None:
        check_columns(table.columns, source)
        self._columns = tuple(table.columns)
        self._rows = tuple(table.rows)
        self._inputs = tuple(inputs)
        self._source = source
        self._numbers = tuple(numbers)
        self._digest: str | None = None

    @classmethod
    def read(cls, path: str | PathLike[str], inputs: Sequence[str]) -> Dataset:
        """Rows of a csv, tsv, jsonl, ndjson, json or parquet file.

        Cells of csv and tsv are text, an empty one None; `check` turns them into the types of a signature.

        Raises:
            DatasetError: the file is missing, empty, damaged or not UTF-8, or `inputs` names an absent column.
        """
        table = read_table(Path(fspath(path)))
        return cls._build(table, _checked_inputs(inputs, table.columns, str(path)), str(path), range(1, len(table.rows) + 1))

    @classmethod
    def sql(cls, query: str, inputs: Sequence[str], database: str | PathLike[str] | None = None) -> Dataset:
        """Rows of a DuckDB query, over `database` (opened read-only) or over files that the query names.

        Raises:
            DatasetError: the query fails or returns no rows, or `inputs` names an absent column.
        """
        import duckdb

        from .duck import fetch

        try:
            with duckdb.connect(fspath(database) if database else ":memory:", read_only=database is not None) as connection:
                relation = connection.sql(query)
                if relation is None:
                    raise DatasetError(f"query: returns no rows: {query!r:.80}; it must be a SELECT")
                columns, rows = fetch(relation)
        except duckdb.Error as error:
            raise DatasetError(f"query: {first_line(error)}; correct the query: {query!r:.80}") from error
        if not rows:
            raise DatasetError(f"query: returned no rows: {query!r:.80}; it needs at least one")
        check_columns(columns, "query")
        table = Table(columns, [dict(zip(columns, row, strict=True)) for row in rows])
        return cls._build(table, _checked_inputs(inputs, columns, "query"), "query", range(1, len(rows) + 1))

    @classmethod
    def _build(cls, table: Table, inputs: Sequence[str], source: str, numbers: Sequence[int]) -> Dataset:
        dataset = cls.__new__(cls)
        dataset._fill(table, inputs, source, numbers)
        return dataset

    def _pick(self, positions: Sequence[int]) -> Dataset:
        table = Table(list(self._columns), [self._rows[i] for i in positions])
        return self._build(table, self._inputs, self._source, [self._numbers[i] for i in positions])

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def inputs(self) -> tuple[str, ...]:
        return self._inputs

    @property
    def labels(self) -> tuple[str, ...]:
        """All columns that are not inputs."""
        return tuple(name for name in self._columns if name not in self._inputs)

    @property
    def digest(self) -> str:
        """sha256, 64 hex digits, of all rows in order and of which columns are inputs."""
        if self._digest is None:
            total = hashlib.sha256()
            for example in self:
                total.update(example_digest(example).encode())
            self._digest = total.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Example | Dataset:
        if isinstance(index, slice):
            return self._pick(range(len(self))[index])
        return _example(self._rows[index], self._inputs)

    def __iter__(self) -> Iterator[Example]:
        return (_example(row, self._inputs) for row in self._rows)

    def check(self, fields: Mapping[str, Any]) -> Dataset:
        """A new dataset whose columns named in `fields` hold values of those types (pydantic, lax mode).

        Text is parsed where the type asks for it: "3" for int, "true" for bool, JSON text for lists and models.
        Columns that `fields` does not name stay as they are.

        Raises:
            DatasetError: a column is missing or values do not fit; names file, row (1 is the first after the header),
                field, value and expected type, up to 5 problems in one message.
        """
        for name in fields:
            if name not in self._columns:
                raise DatasetError(f"{self._source}: field {name!r} has no column; {_choices(name, self._columns)}")
        rows = coerce_rows(self._rows, self._numbers, fields, self._source)
        return self._build(Table(list(self._columns), rows), self._inputs, self._source, self._numbers)

    def split(
        self, train: Size = 0.6, dev: Size = 0.2, test: Size = 0.2, seed: int = 0, stratify: str | None = None
    ) -> Splits[Dataset]:
        """Three disjoint datasets, decided by seed, row content and row position only.

        A float is a fraction of the rows, an int a number of rows; the int 0 asks for an empty split. Rows left over
        when the sizes do not add up are in none. Rows come shuffled. With `stratify` each split has the values of
        that column in the same proportions, to within a row or so per value.

        Raises:
            DatasetError: the sizes exceed the rows, or a split that was asked for would be empty.
        """
        if stratify is not None and stratify not in self._columns:
            raise DatasetError(f"{self._source}: cannot stratify by {stratify!r}; {_choices(stratify, self._columns)}")
        classes = None if stratify is None else [row[stratify] for row in self._rows]
        parts = cut(shuffled(list(self), seed, classes), {"train": train, "dev": dev, "test": test})
        return Splits(*(self._pick(positions) for positions in parts))

    def sample(self, n: int, seed: int = 0) -> Dataset:
        """`n` rows, shuffled, decided by seed, row content and row position. Raises DatasetError if there are fewer."""
        if not 0 < n <= len(self):
            raise DatasetError(f"{self._source}: cannot sample {n} of {len(self)} rows; ask for 1 to {len(self)}")
        return self._pick(shuffled(list(self), seed, None)[:n])

    def duplicates(self) -> list[tuple[int, ...]]:
        """Groups of 0-based indices whose inputs are equal but for case, Unicode form and white space."""
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(self):
            groups.setdefault(normalized_inputs(example), []).append(index)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    def overlap(self, other: Dataset) -> list[int]:
        """0-based indices of rows here whose inputs also occur in `other`, compared as in `duplicates`."""
        theirs = {normalized_inputs(example) for example in other}
        return [index for index, example in enumerate(self) if normalized_inputs(example) in theirs]

    def __repr__(self) -> str:
        named = f"inputs: {', '.join(self.inputs)}; labels: {', '.join(self.labels) or 'none'}"
        return f"Dataset({len(self)} rows from {self._source}; {named})"

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{html.escape(name)}{' (input)' * (name in self._inputs)}</th>" for name in self._columns)
        lines = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_short(row[name]))}</td>" for name in self._columns) + "</tr>"
            for row in self._rows[:_SHOWN_ROWS]
        )
        return f"<p>{html.escape(repr(self))}</p><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _example(row: Row, inputs: Sequence[str]) -> Example:
    return Example(row).with_inputs(*inputs)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _as_dict(row: Any, number: int) -> Row:
    if isinstance(row, Example | Mapping) and all(isinstance(key, str) for key in row.keys()):  # noqa: SIM118
        return dict(row.items())
    raise DatasetError(f"rows: row {number} is {row!r:.60}; give dicts with text keys, or Examples")


def _carried_inputs(rows: Sequence[Any]) -> list[str]:
    found: set[tuple[str, ...]] = set()
    for row in rows:
        try:
            found.add(tuple(row.inputs().keys()) if isinstance(row, Example) else ())
        except (ValueError, AttributeError):  # dspy: with_inputs was never called, or a Prediction, which has no inputs
            found.add(())
    if len(found) != 1 or () in found:
        raise DatasetError("inputs: the rows do not all say which columns are inputs; pass inputs=[...]")
    return list(found.pop())


def _checked_inputs(inputs: Sequence[str], columns: Sequence[str], source: str) -> list[str]:
    if isinstance(inputs, str):
        raise DatasetError(f"inputs: {inputs!r} is one text; write inputs=[{inputs!r}]")
    if not inputs or len(set(inputs)) != len(inputs):
        raise DatasetError(
            f"inputs: {list(inputs)} must name at least one column, each once; there are {', '.join(columns)}"
        )
    for name in inputs:
        if name not in columns:
            raise DatasetError(f"{source}: input {name!r} has no column; {_choices(name, columns)}")
    return list(inputs)


def _choices(name: str, columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.casefold(), [column.casefold() for column in columns], n=1, cutoff=0.5)
    meant = next((f"did you mean {column!r}? " for column in columns if [column.casefold()] == close), "")
    split = [mark for mark in (";", "\t", "|") if len(columns) == 1 and mark in columns[0]]
    hint = f" (cells look separated by {split[0]!r}: save with commas)" if split else ""
    return f"{meant}There are {', '.join(columns) or 'none'}{hint}"

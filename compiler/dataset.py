"""`Dataset`: rows that a program is measured on, as an immutable sequence of `dspy.Example`."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, overload

from ..backends.readers import Row, Source, Table, check_columns, first_line, from_records, read_tables
from ..errors import DatasetError
from ..signatures.bridge import Example
from .canonical import example_digest
from .coercion import coerce_rows
from .columns import as_dict, carried_inputs, checked_inputs, choices
from .duplicates import THRESHOLD, Near, equal_groups, linked_groups, near_pairs, near_rows, normalized_inputs
from .frames import read_frame
from .splitting import Size, Splits, cut, shuffled

if TYPE_CHECKING:
    from .audit import Audit

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
        table = from_records([as_dict(row, number) for number, row in enumerate(rows, 1)])
        if inputs is None:
            inputs = carried_inputs(rows)
        self._fill(table, checked_inputs(inputs, table.columns, "rows"), "rows", range(1, len(table.rows) + 1))
        if not self._rows:
            raise DatasetError("rows: there are none; give at least one dict or Example")

    def _fill(self, table: Table, inputs: Sequence[str], source: str, numbers: Sequence[int | str]) -> None:
        check_columns(table.columns, source)
        self._columns = tuple(table.columns)
        self._rows = tuple(table.rows)
        self._inputs = tuple(inputs)
        self._source = source
        self._numbers = tuple(numbers)
        self._digest: str | None = None
        self._keys: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: Source, inputs: Sequence[str]) -> Dataset:
        """Rows of a csv, tsv, jsonl, ndjson, json or parquet file, or of several: a list, or a pattern with * ? [].

        Cells of csv and tsv are text, an empty one None; `check` turns them into the types of a signature. Several
        files are read one after the other (those of a pattern by name), and a column that one lacks is None there.

        Raises:
            DatasetError: a file is missing, empty, damaged or not UTF-8, or `inputs` names an absent column.
        """
        table, name, numbers = read_tables(path)
        return cls._build(table, checked_inputs(inputs, table.columns, name), name, numbers)

    @classmethod
    def from_pandas(cls, frame: Any, inputs: Sequence[str]) -> Dataset:
        """Rows of a pandas DataFrame, without its index: missing values are None, all others plain Python values.

        Raises:
            DatasetError: not a data frame, no rows, columns not named by texts, or `inputs` names an absent column.
        """
        table = read_frame(frame)
        return cls._build(table, checked_inputs(inputs, table.columns, "frame"), "frame", range(1, len(table.rows) + 1))

    @classmethod
    def from_hub(
        cls, name: str, split: str, inputs: Sequence[str], config: str | None = None, revision: str | None = None
    ) -> Dataset:
        """Rows of one split of a Hugging Face dataset "owner/name", or of a local folder laid out like one.

        Class labels come as their names. Read with the `datasets` library where it is installed, else from the
        dataset's parquet, csv or jsonl files. Never runs code of the dataset.

        Raises:
            DatasetError: no such dataset, config or split, no network, or `inputs` names an absent column.
        """
        from .hub import read_hub

        table = read_hub(name, split, config, revision)
        source = f"{name} ({split})"
        return cls._build(table, checked_inputs(inputs, table.columns, source), source, range(1, len(table.rows) + 1))

    @classmethod
    def sql(cls, query: str, inputs: Sequence[str], database: str | PathLike[str] | None = None) -> Dataset:
        """Rows of a DuckDB query, over `database` (opened read-only) or over files that the query names.

        Raises:
            DatasetError: the query fails or returns no rows, or `inputs` names an absent column.
        """
        import duckdb

        from ..backends.duck import select

        try:
            found = select(query, database)
        except duckdb.Error as error:
            raise DatasetError(f"query: {first_line(error)}; correct the query: {query!r:.80}") from error
        if found is None:
            raise DatasetError(f"query: returns no rows: {query!r:.80}; it must be a SELECT")
        columns, rows = found
        if not rows:
            raise DatasetError(f"query: returned no rows: {query!r:.80}; it needs at least one")
        check_columns(columns, "query")
        table = Table(columns, [dict(zip(columns, row, strict=True)) for row in rows])
        return cls._build(table, checked_inputs(inputs, columns, "query"), "query", range(1, len(rows) + 1))

    @classmethod
    def _build(cls, table: Table, inputs: Sequence[str], source: str, numbers: Sequence[int | str]) -> Dataset:
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
                raise DatasetError(f"{self._source}: field {name!r} has no column; {choices(name, self._columns)}")
        rows = coerce_rows(self._rows, self._numbers, fields, self._source)
        return self._build(Table(list(self._columns), rows), self._inputs, self._source, self._numbers)

    def split(
        self,
        train: Size = 0.6,
        dev: Size = 0.2,
        test: Size = 0.2,
        seed: int = 0,
        stratify: str | None = None,
        near: float | None = None,
    ) -> Splits[Dataset]:
        """Three disjoint datasets, decided by seed, row content and row position only.

        A float is a fraction of the rows, an int a number of rows; the int 0 asks for an empty split. Rows left over
        when the sizes do not add up are in none. Rows come shuffled.

        Rows with equal inputs (see `duplicates`) are never on both sides of a cut; with `near`, a similarity such as
        0.8, neither are rows that near duplicates connect. A split has another size than asked for only if such a
        group is larger than the room there is.

        With `stratify` each split has every value of that column in the same proportion, to within one row unless
        groups forbid it; a value with a single row, or a single group, goes to train.

        Raises:
            DatasetError: the sizes exceed the rows, or a split that was asked for would be empty.
        """
        if stratify is not None and stratify not in self._columns:
            raise DatasetError(f"{self._source}: cannot stratify by {stratify!r}; {choices(stratify, self._columns)}")
        classes = None if stratify is None else [row[stratify] for row in self._rows]
        groups = linked_groups(self.keys, [] if near is None else self.near_duplicates(near))
        parts = cut(shuffled(list(self), seed), {"train": train, "dev": dev, "test": test}, groups, classes)
        return Splits(*(self._pick(positions) for positions in parts))

    def sample(self, n: int, seed: int = 0) -> Dataset:
        """`n` rows, shuffled, decided by seed, row content and row position. Raises DatasetError if there are fewer."""
        if not 0 < n <= len(self):
            raise DatasetError(f"{self._source}: cannot sample {n} of {len(self)} rows; ask for 1 to {len(self)}")
        return self._pick(shuffled(list(self), seed)[:n])

    @property
    def keys(self) -> tuple[str, ...]:
        """Per row a text that is equal where inputs are, but for case, Unicode form and white space."""
        if self._keys is None:
            self._keys = tuple(normalized_inputs(example) for example in self)
        return self._keys

    def duplicates(self) -> list[tuple[int, ...]]:
        """Groups of 0-based indices whose inputs are equal but for case, Unicode form and white space."""
        return [group for group in equal_groups(self.keys) if len(group) > 1]

    def near_duplicates(self, threshold: float = THRESHOLD, seed: int = 0) -> list[Near]:
        """Pairs of rows whose inputs are nearly equal, the most similar first: (first, second, similarity).

        Similarity is the Jaccard similarity of word pairs (of three characters in short texts), of the least similar
        input. Equal rows count as one, the first of them, and are no pair: see `duplicates`.

        Raises:
            DatasetError: the threshold is not above 0 and at most 1.
        """
        return near_pairs(self.keys, threshold, seed=seed)

    def overlap(self, other: Dataset, near: bool = False, threshold: float = THRESHOLD) -> list[int]:
        """0-based indices of rows here whose inputs also occur in `other`, compared as in `duplicates`.

        With `near`, also of rows that are near duplicates of one there.
        """
        theirs = set(other.keys)
        found = {index for index, key in enumerate(self.keys) if key in theirs}
        return sorted(found.union(near_rows(self.keys, other.keys, threshold)) if near else found)

    def audit(self, dev: Dataset | None = None, test: Dataset | None = None, threshold: float = THRESHOLD) -> Audit:
        """What is wrong with this dataset as train, alone or beside others: see `still.audit`."""
        from .audit import audit

        return audit(self, dev, test, threshold)

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

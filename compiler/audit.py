"""`still.audit`: what is wrong with the data before a program is compiled on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DatasetError
from .balance import Balance, balance, is_identifier, value_text
from .canonical import canonical_json
from .dataset import Dataset
from .duplicates import THRESHOLD, Near, equal_groups, near_pairs

LONG = 8000
"""An input with more characters, about 2,000 tokens, is very long: it may not fit beside demonstrations."""
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows of one split whose inputs are in another one, or earlier in the same one."""

    split: str
    within: str
    """The split they repeat; the same as `split` for repeats inside it."""
    exact: tuple[tuple[int, int], ...]
    """(row, the first row of `within` with equal inputs)."""
    near: tuple[Near, ...]
    """(row, row of `within`, similarity), for rows not in `exact`: each with its most similar row."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows with equal inputs and different labels."""

    field: str
    rows: tuple[tuple[str, int], ...]
    """(split, row)."""
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """Sizes, duplicates, conflicts and balance of up to three splits. Rows are 0-based indices of their split."""

    splits: dict[str, Dataset]
    threshold: float
    repeats: tuple[Repeats, ...]
    conflicts: tuple[Conflict, ...]
    balances: tuple[Balance, ...]
    empty: dict[str, tuple[int, ...]]
    """Per split the rows that lack an input which most rows have."""
    long: dict[str, tuple[int, ...]]
    """Per split the rows whose inputs have more than `LONG` characters."""

    def notes(self) -> tuple[str, ...]:
        """At most a handful of lines: what may make scores wrong, the worst first."""
        from .audit_text import notes

        return notes(self)

    def __str__(self) -> str:
        from .audit_text import text

        return text(self)

    def _repr_html_(self) -> str:
        from .audit_text import page

        return page(self)


def audit(train: Dataset, dev: Dataset | None = None, test: Dataset | None = None, threshold: float = THRESHOLD) -> Audit:
    """Look for what makes a measurement wrong: rows that occur twice, inside a split or in two of them, exactly or
    nearly (`Dataset.duplicates`, `Dataset.near_duplicates`), equal inputs with different labels, unbalanced classes,
    empty and very long inputs.

    Raises:
        DatasetError: an argument is no dataset, the splits have different inputs, or the threshold is no similarity.
    """
    splits = {name: part for name, part in (("train", train), ("dev", dev), ("test", test)) if part is not None}
    for name, part in splits.items():
        if not isinstance(part, Dataset):
            raise DatasetError(f"{name} is a {type(part).__name__}: give a still.Dataset (Dataset(rows, inputs=[...]))")
        if set(part.inputs) != set(train.inputs):
            raise DatasetError(
                f"{name} has the inputs {', '.join(part.inputs)}, train {', '.join(train.inputs)}: align them"
            )
    labels = _labels(splits)
    balances = [balance(field, [_column(part, field) for part in splits.values()]) for field in labels]
    return Audit(
        splits=splits,
        threshold=threshold,
        repeats=_repeats(splits, threshold),
        conflicts=_conflicts(splits, labels),
        balances=tuple(found for found in balances if found is not None),
        empty=_empty(splits),
        long={name: _long(part) for name, part in splits.items()},
    )


def _column(part: Dataset, field: str) -> list[Any]:
    return [example.get(field) for example in part]


def _labels(splits: dict[str, Dataset]) -> list[str]:
    """The labels that every split has, without those that number the rows."""
    train, *others = splits.values()
    shared = [field for field in train.labels if all(field in part.labels for part in others)]
    return [field for field in shared if not is_identifier([v for part in splits.values() for v in _column(part, field)])]


def _repeats(splits: dict[str, Dataset], threshold: float) -> tuple[Repeats, ...]:
    rows = [(name, row) for name, part in splits.items() for row in range(len(part))]
    order = list(splits)
    keys = [key for part in splits.values() for key in part.keys]
    pairs = near_pairs(keys, threshold, [order.index(name) for name, _ in rows])
    found = []
    for index, split in enumerate(order):
        for within in order[: index + 1]:
            exact = _exact(splits[split], splits[within])
            # A pair's second row is the later one: of the later split, or further down in the same one.
            between = [pair for pair in pairs if (rows[pair.second][0], rows[pair.first][0]) == (split, within)]
            local = [Near(rows[pair.second][1], rows[pair.first][1], pair.similarity) for pair in between]
            found.append(Repeats(split, within, exact, _nearest(splits[split].keys, local, {row for row, _ in exact})))
    return tuple(found)


def _exact(part: Dataset, within: Dataset) -> tuple[tuple[int, int], ...]:
    first: dict[str, int] = {}
    for row, key in enumerate(within.keys):
        first.setdefault(key, row)
    same = part is within
    return tuple((row, first[key]) for row, key in enumerate(part.keys) if key in first and not (same and first[key] == row))


def _nearest(keys: Sequence[str], pairs: Sequence[Near], exact: set[int]) -> tuple[Near, ...]:
    """Each row with its most similar one; what holds for the first of equal rows holds for the others."""
    best: dict[str, Near] = {}
    for pair in pairs:  # the most similar come first
        best.setdefault(keys[pair.first], pair)
    return tuple(
        Near(row, best[key].second, best[key].similarity) for row, key in enumerate(keys) if key in best and row not in exact
    )


def _conflicts(splits: dict[str, Dataset], labels: Sequence[str]) -> tuple[Conflict, ...]:
    rows = [(name, row) for name, part in splits.items() for row in range(len(part))]
    groups = [group for group in equal_groups([k for part in splits.values() for k in part.keys]) if len(group) > 1]
    found = []
    for field in labels:
        values = [value for part in splits.values() for value in _column(part, field)]
        for group in groups:
            given = [index for index in group if values[index] is not None]  # None: not labelled
            if len(equal_groups([canonical_json(values[index]) for index in given])) > 1:
                texts = dict.fromkeys(value_text(values[index]) or canonical_json(values[index]) for index in given)
                found.append(Conflict(field, tuple(rows[index] for index in given), tuple(texts)))
    return tuple(found)


def _empty(splits: dict[str, Dataset]) -> dict[str, tuple[int, ...]]:
    """Rows that lack an input. One that most rows lack is optional, and not counted."""
    blank = {
        name: {field: {row for row, value in enumerate(_column(part, field)) if _is_blank(value)} for field in part.inputs}
        for name, part in splits.items()
    }
    total = sum(map(len, splits.values()))
    fields = [field for field in next(iter(blank.values())) if 2 * sum(len(b[field]) for b in blank.values()) <= total]
    return {name: tuple(sorted(set().union(*(rows[field] for field in fields)))) for name, rows in blank.items()}


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _long(part: Dataset) -> tuple[int, ...]:
    sizes = [sum(len(str(value)) for value in example.inputs().values()) for example in part]
    return tuple(row for row, size in enumerate(sizes) if size > LONG)

"""How often each value of a label occurs, and what always answering the most frequent one would score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .canonical import canonical_json, to_jsonable

FEW_VALUES = 100
"""A label with more different values is no class."""
_ROWS_PER_VALUE = 2


@dataclass(frozen=True, slots=True)
class Balance:
    """The values of one label field, over the splits."""

    field: str
    counts: dict[str, tuple[int, ...]]
    """Per value (as text) the rows of each split that have it; the most frequent in train first."""
    sizes: tuple[int, ...]

    @property
    def majority(self) -> str:
        """Train's most frequent value; the first of several by name."""
        return next(iter(self.counts))

    @property
    def baseline(self) -> tuple[float, ...]:
        """Per split the accuracy of always answering `majority`; 0 where a split is empty."""
        return self.shares(self.majority)

    def shares(self, value: str) -> tuple[float, ...]:
        """Per split the share of rows with `value`."""
        return tuple(n / size if size else 0.0 for n, size in zip(self.counts[value], self.sizes, strict=True))

    @property
    def unseen(self) -> tuple[str, ...]:
        """Values that occur, but never in train."""
        return tuple(value for value, counts in self.counts.items() if not counts[0] and any(counts))


def balance(field: str, splits: Sequence[Sequence[Any]]) -> Balance | None:
    """The balance of a field, given its values in each split; None if it is no class: a value is a list or an object,
    or there are too many values, or most of them occur once."""
    counted = [Counter(map(value_text, values)) for values in splits]
    total = sum(counted, Counter[str | None]())
    names = [name for name in total if name is not None]
    few = len(names) <= FEW_VALUES and len(names) * _ROWS_PER_VALUE <= total.total()
    if not few or len(names) != len(total) or not names:
        return None
    names.sort(key=lambda name: (-counted[0][name], name))
    return Balance(field, {name: tuple(c[name] for c in counted) for name in names}, tuple(map(len, splits)))


def value_text(value: Any) -> str | None:
    """A plain value as text, None as "none"; None for a list or an object."""
    plain = to_jsonable(value)
    if plain is None:
        return "none"
    if isinstance(plain, list | dict):
        return None
    return plain if isinstance(plain, str) else canonical_json(plain)


def is_identifier(values: Sequence[Any], least: int = 20) -> bool:
    """Whether a column numbers its rows: as many values as rows, and enough of them to say so."""
    return len(values) >= least and len({canonical_json(value) for value in values}) == len(values)

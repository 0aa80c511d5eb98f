"""Which row goes where: orders and cuts that depend on seed, content and position, never on global random state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import DatasetError
from ..signatures.bridge import Example
from .canonical import canonical_json, example_digest
from .dealing import deal

Size = int | float
T = TypeVar("T")

_ROUNDING = 1e-9  # 0.6 + 0.2 + 0.2 is a little more than 1 in floating point


class Splits(NamedTuple, Generic[T]):
    """Disjoint parts of one dataset."""

    train: T
    dev: T
    test: T


def shuffled(examples: Sequence[Example], seed: int) -> list[int]:
    """Indices in the order of sha256(seed, content, position)."""
    keys = [hashlib.sha256(f"{seed}:{example_digest(e)}:{i}".encode()).digest() for i, e in enumerate(examples)]
    return sorted(range(len(examples)), key=keys.__getitem__)


def cut(
    order: Sequence[int], sizes: Mapping[str, Size], groups: Sequence[Sequence[int]], classes: Sequence[Any] | None
) -> list[list[int]]:
    """The indices in `order` in parts, one per size, each in the given order; what is in no part is left over.

    No group is cut. With `classes`, one value per index, every part has them in proportion.

    Raises:
        DatasetError: the sizes do not fit, or a part is empty unasked.
    """
    counts = _counts(len(order), sizes)
    names = ["" for _ in order] if classes is None else [canonical_json(value) for value in classes]
    parts = deal(order, groups, names, [*counts.values(), len(order) - sum(counts.values())])[: len(counts)]
    for (name, count), part in zip(counts.items(), parts, strict=True):
        if count and not part:
            largest = max(map(len, groups))
            raise DatasetError(
                f"split: {name}={sizes[name]!r} of {len(order)} rows would be empty, since rows with the same inputs stay "
                f"together and {largest} rows share theirs; remove duplicates (see duplicates()), or ask for other sizes"
            )
    return parts


def _counts(total: int, sizes: Mapping[str, Size]) -> dict[str, int]:
    asked = ", ".join(f"{name}={size!r}" for name, size in sizes.items())
    for name, size in sizes.items():
        if (
            isinstance(size, bool)
            or not isinstance(size, int | float)
            or not size >= 0
            or (isinstance(size, float) and size > 1)
        ):
            raise DatasetError(
                f"split: {name}={size!r} is neither a fraction from 0.0 to 1.0 nor a number of rows; correct it"
            )
    fractions = {name: size for name, size in sizes.items() if isinstance(size, float)}
    if sum(fractions.values()) > 1 + _ROUNDING:
        raise DatasetError(f"split: the fractions of {asked} add up to {sum(fractions.values()):g}; make it 1 or less")
    counts = {name: int(size) for name, size in sizes.items()} | _round_fractions(total, fractions)
    if sum(counts.values()) > total:
        raise DatasetError(f"split: {asked} needs {sum(counts.values())} rows, there are {total}; ask for less")
    for name, size in sizes.items():
        # The int 0 is a wish, 0.0 or a fraction rounded to nothing more likely a mistake.
        if counts[name] == 0 and (isinstance(size, float) or total == 0):
            raise DatasetError(
                f"split: {name}={size!r} of {total} rows is empty; ask for more, or for {name}=0 to go without"
            )
    return {name: counts[name] for name in sizes}


def _round_fractions(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Largest remainders (Hamilton's method): fractions that add up to 1 use every row."""
    exact = {name: fraction * total for name, fraction in fractions.items()}
    counts = {name: int(value + _ROUNDING) for name, value in exact.items()}
    spare = round(sum(exact.values())) - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: max(spare, 0)]:
        counts[name] += 1
    return counts

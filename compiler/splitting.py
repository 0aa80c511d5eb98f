"""Which row goes where: orders and cuts that depend on seed, content and position, never on global random state."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import DatasetError
from ..signatures.bridge import Example
from .canonical import canonical_json, example_digest, to_jsonable

Size = int | float
T = TypeVar("T")

_ROUNDING = 1e-9  # 0.6 + 0.2 + 0.2 is a little more than 1 in floating point


class Splits(NamedTuple, Generic[T]):
    """Disjoint parts of one dataset."""

    train: T
    dev: T
    test: T


def shuffled(examples: Sequence[Example], seed: int, classes: Sequence[Any] | None) -> list[int]:
    """Indices in the order of sha256(seed, content, position).

    With `classes` (one value per example) they are also dealt evenly: the j-th of m examples of a class stands at the
    quantile (j + 1/2) / m, so that every contiguous part has the classes in proportion.
    """
    keys = [hashlib.sha256(f"{seed}:{example_digest(e)}:{i}".encode()).digest() for i, e in enumerate(examples)]
    order = sorted(range(len(examples)), key=keys.__getitem__)
    if classes is None:
        return order
    names = [canonical_json(value) for value in classes]
    sizes, seen = Counter(names), Counter[str]()
    quantiles: dict[int, float] = {}
    for index in order:
        name = names[index]
        quantiles[index] = (seen[name] + 0.5) / sizes[name]
        seen[name] += 1
    return sorted(order, key=lambda index: (quantiles[index], keys[index]))


def cut(order: Sequence[int], sizes: Mapping[str, Size]) -> list[list[int]]:
    """Consecutive parts of `order`, one per size. Raises DatasetError if they do not fit or one is empty unasked."""
    counts = _counts(len(order), sizes)
    parts, start = [], 0
    for count in counts.values():
        parts.append(list(order[start : start + count]))
        start += count
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


def normalized_inputs(example: Example) -> str:
    """Canonical JSON of an example's inputs with text in NFKC, case-folded and its white space collapsed."""
    return canonical_json(_normalize(to_jsonable(example.inputs())))


def _normalize(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list):
        return [_normalize(item) for item in value]
    if isinstance(value, dict):
        return {key: _normalize(item) for key, item in value.items()}
    return value

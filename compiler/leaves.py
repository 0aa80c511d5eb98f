"""Nested values compared leaf by leaf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .comparisons import equal, listed, plain_value
from .metric import Score

_ABSENT: Any = object()


@dataclass(slots=True)
class _Tally:
    equal: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, leaves: int, note: str = "") -> None:
        self.total += leaves
        if note:
            self.notes.append(note)
        else:
            self.equal += leaves


def read_nested(value: Any) -> Any:
    """The value as plain data; text that holds a JSON object or list is read.

    Raises DatasetError for a value without JSON form.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return plain_value(json.loads(value))
        except (ValueError, RecursionError):
            return value
    return plain_value(value)


def leaf_share(expected: Any, given: Any) -> Score:
    """Share of equal leaves among those of either side; the paths of the others are the feedback."""
    tally = _Tally()
    _compare(expected, given, "", tally)
    return Score(tally.equal / tally.total, listed(tally.notes, "; "))


def _compare(expected: Any, given: Any, path: str, tally: _Tally) -> None:
    if _is_branch(expected) and _is_branch(given) and type(expected) is type(given) and (expected or given):
        for step, left, right in _pairs(expected, given):
            _compare(left, right, path + step, tally)
    elif expected is not _ABSENT and given is not _ABSENT and equal(expected, given):
        tally.count(1)
    else:
        tally.count(max(_leaves(expected), _leaves(given)), _note(path, expected, given))


def _pairs(expected: Any, given: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, dict):
        for key in dict.fromkeys([*expected, *given]):
            step = f".{key}" if key.isidentifier() else f"[{key!r}]"
            yield step, expected.get(key, _ABSENT), given.get(key, _ABSENT)
    else:
        for i in range(max(len(expected), len(given))):
            yield f"[{i}]", *(side[i] if i < len(side) else _ABSENT for side in (expected, given))


def _is_branch(value: Any) -> bool:
    return isinstance(value, dict | list)


def _leaves(value: Any) -> int:
    """An empty list or dict is a leaf of its own; what is absent has none."""
    if value is _ABSENT:
        return 0
    if not _is_branch(value) or not value:
        return 1
    return sum(map(_leaves, value.values() if isinstance(value, dict) else value))


def _note(path: str, expected: Any, given: Any) -> str:
    place = f"{path.removeprefix('.')}: " if path else ""
    if given is _ABSENT:
        return f"{place}missing, expected {expected!r:.80}"
    if expected is _ABSENT:
        return f"{place}too much, got {given!r:.80}"
    return f"{place}expected {expected!r:.80}, got {given!r:.80}"

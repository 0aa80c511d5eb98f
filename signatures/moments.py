"""Dates and times in JSON schemas, with their bounds."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from . import patterns

Moment = Any
"""A date, a time, or both."""

_STEPS = {"date": datetime.timedelta(days=1), "time": datetime.timedelta(seconds=1)}
_ANY_DAY = datetime.date(2000, 1, 1)


def within(written: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """A string's JSON schema with the bounds of a core schema of type date, time or datetime; None if nothing is between.

    Bounds of a date with a time bind the date; what is left pydantic checks, and what depends on the present: a grammar
    that did would be another one tomorrow.
    """
    if "now_op" in schema:
        written = {**written, "description": f"{written['description']} in the {schema['now_op']}"}
    low, high = _bound(schema, "ge", "gt", 1), _bound(schema, "le", "lt", -1)
    if _is_empty(low, high) or _has_no_next(schema, low, high):
        return None
    if low is None and high is None:
        return written
    sides = (("from", low), ("to", high))
    words = " ".join(f"{word} {bound.isoformat()}" for word, bound in sides if bound is not None)
    described = f"{written['description']} {words}"
    return {**written, "description": described, "allOf": [{"pattern": f"^{_span(low, high)}.*$"}]}


def _bound(schema: Mapping[str, Any], inclusive: str, exclusive: str, direction: int) -> Moment | None:
    if exclusive not in schema:
        return schema.get(inclusive)
    step = _STEPS.get(str(schema["type"]))
    bound = schema[exclusive]
    return bound if step is None else _moved(bound, direction * step)


def _moved(bound: Moment, step: datetime.timedelta) -> Moment | None:
    if isinstance(bound, datetime.time):
        moved = datetime.datetime.combine(_ANY_DAY, bound) + step
        return moved.timetz() if moved.date() == _ANY_DAY else None
    try:
        return bound + step
    except OverflowError:
        return None


def _has_no_next(schema: Mapping[str, Any], low: Moment | None, high: Moment | None) -> bool:
    """Whether an exclusive bound is the first or the last moment of all."""
    return ("gt" in schema and low is None) or ("lt" in schema and high is None)


def _is_empty(low: Moment | None, high: Moment | None) -> bool:
    try:
        return low is not None and high is not None and low > high
    except TypeError:  # one has a zone, the other has none
        return False


def _span(low: Moment | None, high: Moment | None) -> str:
    known = low if low is not None else high
    if isinstance(known, datetime.time):
        # Decoded times have no fractions of a second: the one before a bound of parts of a second is out.
        first = "00:00:00" if low is None else low.isoformat("seconds")[:8]
        return patterns.between(first, "23:59:59" if high is None else high.isoformat("seconds")[:8])
    if isinstance(known, datetime.datetime):
        low, high = (bound and bound.date() for bound in (low, high))
    return patterns.date_range(low, high)

"""The texts of a Decimal in JSON: bounds and digits in one pattern."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .patterns import decimal_pattern

PLACES = 6
"""Digits after the point where a type does not say."""
WHOLE = 15
"""Digits before it."""


def decimal_text(schema: Mapping[str, Any]) -> str | None:
    """Pattern of the texts of a Decimal; None if its bounds leave no number. Multiples are not looked at.

    schema: pydantic's core schema, or the bounds in its words (ge, gt, le, lt, decimal_places, max_digits).
    """
    if not {"ge", "gt", "le", "lt", "max_digits"} & schema.keys():
        places = int(schema.get("decimal_places", PLACES))
        fraction = rf"(?:\.[0-9]{{1,{places}}})?" if places else ""
        return f"-?(?:0|[1-9][0-9]{{0,{WHOLE - 1}}}){fraction}"
    found = [_bounded(schema, places, whole) for places, whole in _shapes(schema)]
    alternatives = [pattern for pattern in found if pattern is not None]
    return f"(?:{'|'.join(alternatives)})" if alternatives else None


def _shapes(schema: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Digits after the point and before it: more than one pair where a type limits only their sum."""
    places, digits = schema.get("decimal_places"), schema.get("max_digits")
    if digits is None:
        fine = max((-_exponent(schema[key]) for key in ("ge", "gt", "le", "lt") if key in schema), default=0)
        return [(max(PLACES, fine) if places is None else places, WHOLE)]
    if places is not None:
        return [(places, max(0, digits - places))]
    return [(count, digits - count) for count in range(min(PLACES, digits) + 1)]


def _bounded(schema: Mapping[str, Any], places: int, whole: int) -> str | None:
    step = Decimal(1).scaleb(-places)
    low = high = Decimal(10) ** whole - step
    low = max([-low, *_bounds(schema, "ge", "gt", step)])
    high = min([high, *_bounds(schema, "le", "lt", -step)])
    return decimal_pattern(low, high, places)


def _bounds(schema: Mapping[str, Any], inclusive: str, exclusive: str, step: Decimal) -> list[Decimal]:
    bounds = [Decimal(str(schema[inclusive]))] if inclusive in schema else []
    if exclusive in schema:
        bound = Decimal(str(schema[exclusive]))
        # The nearest number of this many places on the other side.
        bounds.append(bound + step if bound % step == 0 else bound)
    return bounds


def _exponent(bound: Any) -> int:
    exponent = Decimal(str(bound)).as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0

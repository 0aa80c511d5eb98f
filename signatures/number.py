"""Numbers with bounds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .constraint import Constraint
from .decimals import PLACES
from .text import slashed

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class NumberConstraint(Constraint):
    """An int, float or Decimal (`exact`). schema: the JSON schema, as text, of the numbers that may be decoded; pattern: of
    their texts, where that says more."""

    schema: str
    description: str
    exact: bool = False
    pattern: str | None = None

    @property
    def max_tokens(self) -> int:
        # The digits of the larger bound, those after the point, and a sign, a point, a space and a newline.
        schema = json.loads(self.schema)
        bounds = (schema[key] for key in schema if "imum" in key)
        step = Decimal(str(schema.get("multipleOf", 1))).as_tuple().exponent
        places = max(PLACES, -step if isinstance(step, int) else 0)
        return max(len(f"{abs(bound):.0f}") for bound in bounds) + places + 4

    def rules(self, name: str) -> str:
        if self.pattern is None:
            return f"{name}: %json {self.schema}\n"
        terminal = name.upper() + "_TEXT"
        return f"{name}: {terminal}\n{terminal}: /{slashed(self.pattern)}/\n"

    def describe(self) -> str:
        return self.description

    def _write(self, value: Any) -> str:
        if isinstance(value, int):
            return str(int(value))
        if not math.isfinite(value):
            raise self._refuse(repr(value), "it is not finite")
        # Without an exponent, which is never decoded.
        return format(value if isinstance(value, Decimal) else Decimal(repr(float(value))), "f")

    def _read(self, text: str) -> Any:
        if not _NUMBER.fullmatch(text):
            raise ValueError("")
        # A number in JSON is a float to pydantic; in quotes it keeps every digit of a Decimal.
        return self._adapter.validate_json(f'"{text}"' if self.exact else text)


def describe_number(schema: dict[str, Any]) -> str:
    """A JSON schema of a number in words."""
    words = "integer" if schema.get("type") == "integer" else "number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        words += f" from {low} to {high}"
    elif low is not None:
        words += f" of at least {low}"
    elif high is not None:
        words += f" of at most {high}"
    if "exclusiveMinimum" in schema:
        words += f" greater than {schema['exclusiveMinimum']}"
    if "exclusiveMaximum" in schema:
        words += f" less than {schema['exclusiveMaximum']}"
    if "multipleOf" in schema:
        words += f", a multiple of {schema['multipleOf']}"
    return words

"""Numbers with bounds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .constraint import Constraint

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class NumberConstraint(Constraint):
    """An int, float or Decimal. `schema`: the JSON schema, as text, of the numbers that may be decoded."""

    schema: str
    declared: str
    """The JSON schema as declared, for `describe`."""
    exact: bool = False
    """A Decimal."""

    @property
    def max_tokens(self) -> int:
        return 40

    def rules(self, name: str) -> str:
        return f"{name}: %json {self.schema}\n"

    def describe(self) -> str:
        return describe_number(json.loads(self.declared))

    def _write(self, value: Any) -> str:
        return format(value, "f") if isinstance(value, Decimal) else json.dumps(value)

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

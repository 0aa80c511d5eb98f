"""Everything without a plainer text: one line of JSON under a schema."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .constraint import Constraint

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}


@dataclass(frozen=True)
class JsonConstraint(Constraint):
    """A value as JSON on one line, spaced as `json.dumps` does. schema: the JSON schema, as text, for decoding."""

    schema: str
    description: str

    @property
    def max_tokens(self) -> int:
        return 1024

    def rules(self, name: str) -> str:
        return f"{name}: %json {json.dumps({'x-guidance': _SPACING, **json.loads(self.schema)})}\n"

    def describe(self) -> str:
        return f"JSON {self.description}"

    def _write(self, value: Any) -> str:
        data = self._adapter.dump_python(value, mode="json", by_alias=True, round_trip=True)
        return json.dumps(data, ensure_ascii=False, allow_nan=False)

    def _read(self, text: str) -> Any:
        # Validated from JSON, not from the loaded data: JSON has no tuples, sets or dates, and pydantic knows it.
        return self._adapter.validate_json(text)

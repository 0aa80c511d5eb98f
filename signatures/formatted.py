"""Dates, times and UUIDs: strings of a fixed format, written without quotes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .constraint import Constraint


@dataclass(frozen=True)
class FormattedConstraint(Constraint):
    """A value that JSON writes as a string. pattern: of every text it may have. description: its format, in words."""

    pattern: str
    description: str

    @property
    def max_tokens(self) -> int:
        return 48  # a UUID has 36 characters, a date and time with its zone 25

    def rules(self, name: str) -> str:
        terminal = name.upper() + "_TEXT"
        return f"{name}: {terminal}\n{terminal}: /{self.pattern}/\n"

    def describe(self) -> str:
        return self.description

    def _write(self, value: Any) -> str:
        return str(self._adapter.dump_python(value, mode="json"))

    def _read(self, text: str) -> Any:
        return self._adapter.validate_json(json.dumps(text))

"""Dates, times, UUIDs, URLs: strings of a fixed format, written without quotes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .constraint import Constraint
from .text import slashed

URL = "URL"


@dataclass(frozen=True)
class FormattedConstraint(Constraint):
    """A value that JSON writes as a string.

    pattern: of every text it may have. description: its format, in words. span: a second pattern that it must have, of
    the bounds of a date, say.
    """

    pattern: str
    description: str
    span: str | None = None

    @property
    def max_tokens(self) -> int:
        # A UUID has 36 characters, a date and time with its zone 25; a URL may go on.
        return 400 if self.description == URL else 48

    def rules(self, name: str) -> str:
        terminal = name.upper() + "_TEXT"
        both = [self.pattern] if self.span is None else [self.pattern, self.span]
        shape = " & ".join(f"/{slashed(pattern)}/" for pattern in both)
        return f"{name}: {terminal}\n{terminal}: {shape}\n"

    def describe(self) -> str:
        return self.description

    def _write(self, value: Any) -> str:
        return str(self._adapter.dump_python(value, mode="json"))

    def _read(self, text: str) -> Any:
        return self._adapter.validate_json(json.dumps(text))

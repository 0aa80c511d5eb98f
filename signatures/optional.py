"""`Optional[T]` where nothing else can be written as "none"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .constraint import Constraint, literal

NONE = "none"


@dataclass(frozen=True)
class OptionalConstraint(Constraint):
    """Either the word none, or what `inner` says."""

    inner: Constraint

    @property
    def options(self) -> tuple[str, ...] | None:
        return None if self.inner.options is None else (*self.inner.options, NONE)

    @property
    def option_values(self) -> tuple[Any, ...]:
        return () if self.inner.options is None else (*self.inner.option_values, None)

    @property
    def max_tokens(self) -> int:
        return max(self.inner.max_tokens, len(NONE) + 2)

    @property
    def quoted(self) -> frozenset[str]:
        return self.inner.quoted

    @property
    def context(self) -> dict[str, str]:
        return self.inner.context

    def bound(self, inputs: Mapping[str, Any]) -> Constraint:
        inner = self.inner.bound(inputs)
        return self if inner is self.inner else replace(self, inner=inner)

    def rules(self, name: str) -> str:
        inner = f"{name}_some"
        return f"{name}: {literal(NONE)} | {inner}\n{self.inner.rules(inner)}"

    def describe(self) -> str:
        return self.inner.describe() + (f", {NONE}" if self.options else f"; or {NONE}")

    def validate(self, value: Any) -> Any:
        return self.checked(super().validate(value))

    def checked(self, value: Any) -> Any:
        return None if value is None else self.inner.checked(value)

    def render(self, value: Any) -> str:
        # Of the value as it was given: an option is told by it.
        return NONE if self.coerce(value) is None else self.inner.render(value)

    def _write(self, value: Any) -> str:
        return NONE if value is None else self.inner._write(value)

    def _read(self, text: str) -> Any:
        return self._adapter.validate_python(None) if text == NONE else self.inner._read(text)

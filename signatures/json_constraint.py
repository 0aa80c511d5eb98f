"""Everything without a plainer text: one line of JSON under a schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pydantic_core import SchemaSerializer

from .constraint import Constraint
from .quoted import quoted_inputs, quoted_text, with_quotes
from .values import in_order

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_FIELDS = frozenset({"model-field", "dataclass-field", "typed-dict-field"})
_HIDING = ("serialization_exclude", "serialization_exclude_if")
_OPAQUE = frozenset({"metadata", "cls", "default", "members", "expected", "config", "computed_fields"})
"""Parts of a core schema that hold no further schemas of what is read."""


@dataclass(frozen=True)
class JsonConstraint(Constraint):
    """A value as JSON on one line, spaced as `json.dumps` does. schema: the JSON schema, as text, for decoding. sources: the
    texts that it quotes, by input, where it is of one call."""

    schema: str
    description: str
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def max_tokens(self) -> int:
        return 1024

    @cached_property
    def quoted(self) -> frozenset[str]:
        return frozenset(quoted_inputs(json.loads(self.schema)))

    @property
    def context(self) -> dict[str, str]:
        return dict(self.sources)

    def bound(self, inputs: Mapping[str, Any]) -> Constraint:
        """Strings that are quoted are limited to the words of this call's inputs."""
        if not self.quoted:
            return self
        sources = {name: quoted_text(inputs, name, self.field) for name in sorted(self.quoted)}
        limited = with_quotes(json.loads(self.schema), sources)
        return replace(self, schema=json.dumps(limited), sources=tuple(sources.items()))

    def rules(self, name: str) -> str:
        return f"{name}: %json {json.dumps({'x-guidance': _SPACING, **json.loads(self.schema)})}\n"

    def describe(self) -> str:
        return f"JSON {self.description}"

    def _write(self, value: Any) -> str:
        data = self._writer.to_python(value, mode="json", by_alias=True, round_trip=True)
        try:
            plain = self._writer.to_python(value, mode="python", by_alias=True, round_trip=True)
        except TypeError:  # a set of models, which are dicts here: no set can hold those
            plain = value
        return json.dumps(in_order(plain, data), ensure_ascii=False, allow_nan=False)

    def _read(self, text: str) -> Any:
        # Validated from JSON, not from the loaded data: JSON has no tuples, sets or dates, and pydantic knows it.
        return self._adapter.validate_json(text, context=self.context)

    @cached_property
    def _writer(self) -> SchemaSerializer:
        """pydantic's serializer; where a model hides a field from it, or has another name for it there, one that writes
        what is read."""
        core = self._adapter.core_schema
        readable = _readable(core)
        return self._adapter.serializer if readable == core else SchemaSerializer(readable, None, _use_prebuilt=False)


def holds(core: Any, test: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether a core schema of pydantic has a part that passes the test."""
    if isinstance(core, list | tuple):
        return any(holds(part, test) for part in core)
    if not isinstance(core, dict):
        return False
    # Without a type it has schemas by name, of fields or of alternatives: any name.
    named = not isinstance(core.get("type"), str)
    return test(core) or any(holds(part, test) for key, part in core.items() if named or key not in _OPAQUE)


def _readable(core: Any) -> Any:
    """A core schema whose fields are written under the names they are read by, all of them."""
    if isinstance(core, list):
        return [_readable(item) for item in core]
    if not isinstance(core, dict):
        return core
    found = {key: value if key in _OPAQUE else _readable(value) for key, value in core.items()}
    if found.get("type") in _FIELDS:
        for key in (*_HIDING, "serialization_alias"):
            found.pop(key, None)
        alias = found.get("validation_alias")
        if isinstance(alias, list):
            alias = next((path[0] for path in alias if isinstance(path, list) and len(path) == 1), None)
        if alias is not None:
            found["serialization_alias"] = alias
    return found

"""A JSON schema in few words, for prompts: small models read a sketch better than a schema."""

from __future__ import annotations

import json
from typing import Any

from .number import describe_number
from .quoted import KEY, KEYS


def sketch(schema: dict[str, Any]) -> str:
    """For example `{"sku": text, "count": integer from 1 to 9, "tags": [text, ...]}`."""
    return _Sketcher(schema.get("$defs", {})).draw(schema)


class _Sketcher:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._open: list[str] = []

    def draw(self, schema: Any) -> str:
        if not isinstance(schema, dict):
            return "anything"
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]).removeprefix("#/$defs/"))
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        if "enum" in schema:
            return " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return " or ".join(dict.fromkeys(self.draw(option) for option in schema[key]))
        return self._plain(schema)

    def _plain(self, schema: dict[str, Any]) -> str:
        kind = schema.get("type")
        if kind in ("integer", "number"):
            return describe_number(schema)
        if kind == "string":
            if KEY in schema:
                return f"words copied from {schema[KEY]}"
            if "pattern" in schema and "description" not in schema:
                return f"text that matches {schema['pattern'].removeprefix('^(?:').removesuffix(')$')}"
            return str(schema.get("description") or schema.get("format") or "text")
        if kind == "array":
            fixed = [self.draw(item) for item in schema.get("prefixItems", ())]
            if not fixed and schema.get("maxItems") != 0:
                fixed = [self.draw(schema.get("items")), "..."]
            return "[" + ", ".join(fixed) + "]"
        if kind == "object":
            return "{" + ", ".join(self._members(schema)) + "}"
        return {"boolean": "true or false", "null": "null"}.get(str(kind), "anything")

    def _members(self, schema: dict[str, Any]) -> list[str]:
        if "properties" in schema:
            return [f"{json.dumps(name)}: {self.draw(value)}" for name, value in schema["properties"].items()]
        keyed = schema.get("patternProperties", {})
        value = next(iter(keyed.values())) if keyed else schema.get("additionalProperties")
        key = f"words copied from {schema[KEYS]}" if KEYS in schema else "key"
        return [f"{key}: {self.draw(value)}", "..."]

    def _reference(self, name: str) -> str:
        if name in self._open:
            return name
        self._open.append(name)
        drawn = self.draw(self._definitions[name])
        self._open.pop()
        return drawn

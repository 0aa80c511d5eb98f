"""How many values a JSON schema has: none means that a type is impossible."""

from __future__ import annotations

import math
from typing import Any

MANY = 10_000
"""Counting stops here."""


def impossible(schema: dict[str, Any]) -> str | None:
    """What has no value in a schema of `DecodeSchema`, or None if everything has: a definition's name, or "".

    A definition without values is one that holds itself in every alternative: no text of it would ever end.
    """
    counter = _Counter(schema.get("$defs", {}))
    empty = [name for name, count in counter.definitions.items() if not count]
    if empty:
        return empty[0]
    return None if counter.count(schema) else ""


class _Counter:
    def __init__(self, definitions: dict[str, Any]) -> None:
        # From below: a definition has the values that can be built of those known so far, until there are no more.
        self.definitions = dict.fromkeys(definitions, 0)
        growing = True
        while growing:
            found = {name: self.count(schema) for name, schema in definitions.items()}
            growing = found != self.definitions
            self.definitions = found

    def count(self, schema: Any) -> int:
        """Number of values, at most MANY; text and numbers without bounds count as that many."""
        if schema is False:
            return 0
        if not isinstance(schema, dict):
            return MANY
        if "$ref" in schema:
            return self.definitions.get(str(schema["$ref"]).removeprefix("#/$defs/"), MANY)
        if "const" in schema:
            return 1
        if "enum" in schema:
            return len(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return min(MANY, sum(self.count(option) for option in schema[key]))
        return self._plain(schema)

    def _plain(self, schema: dict[str, Any]) -> int:
        kind = schema.get("type")
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self._object(schema)
        return {"boolean": 2, "null": 1, "integer": _integers(schema)}.get(str(kind), MANY)

    def _array(self, schema: dict[str, Any]) -> int:
        fixed = schema.get("prefixItems", [])
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        count = math.prod(self.count(item) for item in fixed[:least])
        rest = self.count(schema.get("items", True))
        needed = least - len(fixed)
        if schema.get("uniqueItems") and rest < MANY:
            # Distinct items are enough of a test; how many sets there are does not matter.
            return min(MANY, 2**rest) if rest >= needed else 0
        if needed > 0:
            count *= rest if rest < 2 else min(MANY, rest ** min(needed, 20))
        elif most > least and (rest or least < len(fixed)):
            count *= MANY
        return min(MANY, count)

    def _object(self, schema: dict[str, Any]) -> int:
        known: dict[str, Any] = schema.get("properties", {})
        required = schema.get("required", [])
        least, most = schema.get("minProperties", 0), schema.get("maxProperties", math.inf)
        closed = schema.get("additionalProperties", True) is False and "patternProperties" not in schema
        if least > most or len(required) > most or (closed and least > len(known)):
            return 0
        count: int = math.prod(self.count(known[name]) for name in required if name in known)
        others: list[int] = [self.count(value) for name, value in known.items() if name not in required]
        values = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties", True)]
        more = max((self.count(value) for value in values), default=0)
        if least > len(known) and not more:
            return 0
        optional = math.prod(other + 1 for other in others)
        return min(MANY, count * optional * (MANY if more else 1))


def _integers(schema: dict[str, Any]) -> int:
    if not {"minimum", "exclusiveMinimum"} & schema.keys() or not {"maximum", "exclusiveMaximum"} & schema.keys():
        return MANY
    low = schema.get("minimum", math.floor(schema.get("exclusiveMinimum", 0)) + 1)
    high = schema.get("maximum", math.ceil(schema.get("exclusiveMaximum", 0)) - 1)
    step = schema.get("multipleOf", 1)
    return min(MANY, max(0, int(high // step) + int(-low // step) + 1))

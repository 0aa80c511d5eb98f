"""How much has to be written at least: a type whose shortest value fills an answer cannot be asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MOST_REQUIRED = 1000
"""Characters of JSON that a type may ask for at least: an answer has 1,024 tokens, and a value that is cut off must be
brought to its end in a second or two."""
MOST_TEXT = 2000
"""Characters that a text's min_length may ask for."""


def shortest(schema: Mapping[str, Any]) -> float:
    """Characters of the shortest JSON that a schema lets pass, spaced as `json.dumps` does; a lower bound where schemas are
    combined, infinity for one that holds itself whatever is chosen."""
    written = schema.get("$defs", {})
    # From above: each round lets definitions be as short as those they hold.
    known: dict[str, float] = dict.fromkeys(written, math.inf)
    while (found := {name: _least(given, known) for name, given in written.items()}) != known:
        known = found
    return _least(schema, known)


def _least(schema: Any, known: Mapping[str, float]) -> float:
    if not isinstance(schema, dict):
        return 1
    if "$ref" in schema:
        return known.get(str(schema["$ref"]).removeprefix("#/$defs/"), 1)
    if "enum" in schema or "const" in schema:
        return min(len(json.dumps(value, ensure_ascii=False)) for value in schema.get("enum", [schema.get("const")]))
    for key, choose in (("anyOf", min), ("oneOf", min), ("allOf", max)):
        if schema.get(key):
            return float(choose(_least(option, known) for option in schema[key]))
    kind = schema.get("type")
    if kind == "array":
        return _array(schema, known)
    if kind == "object":
        return _object(schema, known)
    plain = {"string": 2 + float(schema.get("minLength", 0)), "boolean": 4.0, "null": 4.0}
    return plain.get(str(kind), 1.0)


def _array(schema: Mapping[str, Any], known: Mapping[str, float]) -> float:
    first, count = list(schema.get("prefixItems", ())), int(schema.get("minItems", 0))
    sizes = [_least(item, known) for item in first[:count]]
    if count > len(first):
        sizes += [_least(schema.get("items"), known)] * (count - len(first))
    return _joined(sizes)


def _object(schema: Mapping[str, Any], known: Mapping[str, float]) -> float:
    properties, required = schema.get("properties", {}), list(schema.get("required", ()))
    sizes = [len(json.dumps(name)) + 2 + _least(properties.get(name), known) for name in required]
    further = int(schema.get("minProperties", 0)) - len(required)
    if further > 0:
        sizes += [4 + _least(schema.get("additionalProperties"), known)] * further
    return _joined(sizes)


def _joined(sizes: list[float]) -> float:
    """In brackets, with commas and spaces between."""
    return 2 + sum(sizes) + 2 * max(0, len(sizes) - 1)

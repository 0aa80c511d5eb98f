"""Pieces of JSON schemas, rewritten for what llguidance enforces."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

from . import patterns
from .decimals import PLACES, decimal_text
from .quoted import KEY, KEYS

Schema = dict[str, Any]

NUMBER_LIMIT = 10**15
"""Magnitude of decoded numbers: every integer up to it is exact as a float too, and llguidance's bounds are floats."""
FRACTION = 1e-6
"""Step of decoded floats without multiple_of: six digits after the point."""
STRING_LIMIT = 500
ITEM_LIMIT = 50
"""Decoded strings and lists without a maximum: a small model that repeats itself would never leave them."""
ANY_DEPTH = 2
"""Lists and objects inside each other in decoded values of type Any."""
SUBSETS = 64
"""A set, or a dict with a minimum, over few members is decoded as one of its subsets where there are at most this many."""

_FORMATS = {
    "ipv4": (patterns.IPV4, "IPv4 address"),
    "ipv6": (patterns.IPV6, "IPv6 address"),
    "ipvanyaddress": (f"(?:{patterns.IPV4}|{patterns.IPV6})", "IP address"),
}
_PLAIN = frozenset({"path", "binary"})
"""Formats that any text has."""
_SCALARS = ("string", "integer", "number", "boolean", "null")


def text_of(pattern: str, description: str) -> Schema:
    """A string that is nothing but the pattern."""
    return {"type": "string", "pattern": f"^{pattern}$", "description": description}


def closed(schema: Schema) -> Schema:
    """pydantic ignores unknown members; a model should not be led to write them."""
    if "properties" in schema and "additionalProperties" not in schema:
        return {**schema, "additionalProperties": False}
    return schema


def bounded(schema: Schema) -> Schema:
    """A number with bounds on both sides."""
    found = dict(schema)
    low: Any = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high: Any = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if low < -NUMBER_LIMIT:
        found.pop("exclusiveMinimum", None)
        found["minimum"] = -NUMBER_LIMIT
    if high > NUMBER_LIMIT:
        found.pop("exclusiveMaximum", None)
        found["maximum"] = NUMBER_LIMIT
    return found


def nonzero(schema: Schema) -> Schema:
    """A number above or below zero, said without zero: llguidance takes "-0" for less than 0, and "0" for more where the
    other bound is below 1."""
    found = dict(schema)
    step = schema.get("multipleOf", 1 if schema["type"] == "integer" else FRACTION)
    if found.get("exclusiveMaximum") == 0:
        del found["exclusiveMaximum"]
        found["maximum"] = -step
    if found.get("exclusiveMinimum") == 0:
        del found["exclusiveMinimum"]
        found["minimum"] = step
    return found


def tagged(schema: Any, definitions: Schema) -> None:
    """Have every alternative of a discriminated union say its tag, in place: pydantic looks for it before it knows of
    defaults. What is decoded always can."""
    if isinstance(schema, list):
        for item in schema:
            tagged(item, definitions)
    elif isinstance(schema, dict):
        tag = schema.get("discriminator", {})
        if isinstance(tag, dict) and "propertyName" in tag:
            for option in schema.get("oneOf", ()):
                _require(option, tag["propertyName"], definitions)
        for value in schema.values():
            tagged(value, definitions)


def _require(schema: Schema, name: str, definitions: Schema) -> None:
    if "$ref" in schema:
        _require(definitions[str(schema["$ref"]).removeprefix("#/$defs/")], name, definitions)
    for option in schema.get("oneOf") or schema.get("anyOf") or ():
        _require(option, name, definitions)
    if name in schema.get("properties", {}) and name not in schema.get("required", ()):
        schema["required"] = [*schema.get("required", ()), name]


def limited(schema: Schema, what: str) -> Schema:
    """A list or object that ends somewhere."""
    if "anyOf" in schema or "properties" in schema:  # a choice of subsets, or known keys
        return schema
    return {f"max{what}": max(ITEM_LIMIT, 2 * int(schema.get(f"min{what}", 0))), **schema}


def anything(depth: int = ANY_DEPTH) -> Schema:
    """Any JSON whose numbers, strings and nesting have limits."""
    number = bounded({"type": "number", "multipleOf": FRACTION})
    options: list[Schema] = [{"type": "string", "maxLength": STRING_LIMIT}, number, {"type": "boolean"}, {"type": "null"}]
    if depth:
        inner = anything(depth - 1)
        options.append({"type": "array", "items": inner, "maxItems": ITEM_LIMIT})
        options.append({"type": "object", "additionalProperties": inner, "maxProperties": ITEM_LIMIT})
    return {"anyOf": options}


def members(schema: Schema) -> list[Any]:
    """The values of a closed set, else none."""
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def keyed(schema: Schema, keys: Schema, values: Schema, *, one_by_one: bool) -> Schema:
    """An object whose keys are of a type. Keys of a closed set come in its order, so that none comes twice; where not any
    number of them will do, the possible ones are listed (`one_by_one`)."""
    schema = {name: value for name, value in schema.items() if name not in ("propertyNames", "patternProperties")}
    known = members(keys)
    if known:
        return _keyed_by_members(schema, [str(key) for key in known], values, one_by_one)
    pattern = _key_pattern(keys)
    if KEY in keys:  # of which words, a call knows
        bare = {f"^{pattern or '.*'}$": values}
        return {**schema, KEYS: keys[KEY], "patternProperties": bare, "additionalProperties": False}
    if pattern is None:
        return {**schema, "additionalProperties": values}
    return {**schema, "patternProperties": {f"^{pattern}$": values}, "additionalProperties": False}


def _keyed_by_members(schema: Schema, known: list[str], values: Schema, one_by_one: bool) -> Schema:
    named = {**schema, "properties": dict.fromkeys(known, values), "additionalProperties": False}
    least, most = int(named.pop("minProperties", 0)), min(int(named.pop("maxProperties", len(known))), len(known))
    if (least, most) == (0, len(known)) or not one_by_one:
        return named
    if least > len(known):
        return {**named, "minProperties": least}  # impossible, and said so
    chosen = subsets(known, least, most)
    if chosen is None:
        pattern = "^(?:" + "|".join(re.escape(key) for key in known) + ")$"
        bounds = {"minProperties": least, "maxProperties": most}
        return {**schema, **bounds, "patternProperties": {pattern: values}, "additionalProperties": False}
    return {"anyOf": [{**named, "properties": dict.fromkeys(some, values), "required": list(some)} for some in chosen]}


def is_closed(schema: Schema) -> bool:
    """Whether its values can be listed."""
    return bool(members(schema)) or schema.get("type") == "boolean"


def distinct(schema: Schema) -> Schema:
    """A set over a closed set. Few members come in order, each at most once; of many, repetitions are dropped later."""
    known = sorted(members(schema["items"]) or [False, True], key=json.dumps)
    chosen = subsets(known, int(schema.get("minItems", 0)), min(int(schema.get("maxItems", len(known))), len(known)))
    return {"anyOf": [_exactly(subset) for subset in chosen]} if chosen else schema


def _exactly(items: tuple[Any, ...]) -> Schema:
    fixed = [{"const": item} for item in items]
    return {"type": "array", "minItems": len(fixed), "maxItems": len(fixed)} | ({"prefixItems": fixed} if fixed else {})


def subsets(known: list[Any], least: int, most: int) -> list[tuple[Any, ...]] | None:
    """The subsets of this many members, in order; None if there are too many."""
    if sum(math.comb(len(known), size) for size in range(least, most + 1)) > SUBSETS:
        return None
    return [chosen for size in range(least, most + 1) for chosen in itertools.combinations(known, size)]


def is_scalar(schema: Schema) -> bool:
    """Whether its values can be keys."""
    return "$ref" in schema or bool(members(schema)) or schema.get("type") in _SCALARS or "anyOf" in schema


def _key_pattern(keys: Schema) -> str | None:
    """Pattern of keys, or None for any string."""
    if "anyOf" in keys:
        options = [_option_pattern(option) for option in keys["anyOf"] if option.get("type") != "null"]
        known = [option for option in options if option is not None]
        return f"(?:{'|'.join(known)})" if len(known) == len(options) else None
    return _option_pattern(keys)


def _option_pattern(keys: Schema) -> str | None:
    if found := members(keys):
        return f"(?:{'|'.join(re.escape(str(member)) for member in found)})"
    kind = keys.get("type")
    if kind in ("integer", "number"):
        return decimal_text(_numeric(keys))
    if kind == "boolean":
        return "(?:true|false)"
    if "pattern" in keys:
        return str(keys["pattern"]).removeprefix("^").removesuffix("$")
    if "minLength" in keys or "maxLength" in keys:
        return rf"[^\x00-\x1f]{{{keys.get('minLength', 0)},{keys.get('maxLength', '')}}}"
    return None


def _numeric(schema: Schema) -> dict[str, Any]:
    names = {"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt"}
    bounds = {name: schema[key] for key, name in names.items() if key in schema}
    return {**bounds, "decimal_places": 0 if schema["type"] == "integer" else PLACES}


def enforceable(schema: Any) -> Any:
    """A finished schema with formats as patterns."""
    if isinstance(schema, list):
        return [enforceable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: enforceable(value) if key not in ("const", "enum", "default", "examples") else value
             for key, value in schema.items()}  # fmt: skip
    if found.get("type") != "string":
        return found  # of the properties of a model one may be called format
    form = found.get("format")
    if form in _PLAIN or "pattern" in found:
        found.pop("format", None)
    elif form in _FORMATS:
        del found["format"]
        found = {**found, **text_of(*_FORMATS[form])}
    return found


def without(schema: Any, key: str) -> Any:
    """The schema with a keyword left out everywhere."""
    if isinstance(schema, list):
        return [without(item, key) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: without(value, key) for name, value in schema.items() if name != key}
    if isinstance(properties := schema.get("properties"), dict):  # of which one may have this name
        found["properties"] = {name: without(value, key) for name, value in properties.items()}
    return found

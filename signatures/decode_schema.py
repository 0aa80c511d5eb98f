"""JSON schemas for decoding: pydantic's, with what llguidance cannot enforce rewritten and what is unbounded bounded.

A small model that starts to repeat itself inside a string, a list or a number would never leave it, so lengths that a type
leaves open get a limit here. Limits bind generated values only; demonstrations may be longer.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

INTEGER_LIMIT = 10**15
"""Magnitude of numbers without bounds: every integer up to it is exact as a float too."""
FRACTION = 1e-6
"""Step of floats without multiple_of: six digits after the point."""
STRING_LIMIT = 500
ITEM_LIMIT = 50

# 29 February exists in years divisible by 4, except by 100, unless by 400. Years run from 0001, as in Python.
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DAYS = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
# Year 0000 is divisible by 400: the leap day alone would let it pass.
_LEAP_DAY = _LEAP_YEAR.replace("[02468][048]|", "0[48]|[2468][048]|").replace("[0-9]{2}(?:", "[0-9]{2}(?:") + "-02-29"
DATE = f"(?:{_YEAR}-{_DAYS}|{_LEAP_DAY})"
TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?"
_ZONE = r"(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])"


class DecodeSchema(GenerateJsonSchema):
    """Writes the schema of the texts that may be decoded."""

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        written = super().str_schema(schema)
        if "pattern" in written:
            # pydantic searches for the pattern; what is generated should be nothing but it.
            written["pattern"] = anchored(str(written["pattern"]))
        written.setdefault("maxLength", max(STRING_LIMIT, 2 * int(written.get("minLength", 0))))
        return written

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return bounded_number(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return bounded_number(super().float_schema(schema))

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        places = schema.get("decimal_places", 6)
        fraction = rf"(?:\.[0-9]{{1,{places}}})?" if places else ""
        sign = "" if (schema.get("ge") or schema.get("gt") or Decimal(-1)) >= 0 else "-?"
        return {
            "type": "string",
            "pattern": f"^{sign}(?:0|[1-9][0-9]{{0,14}}){fraction}$",
            "description": "decimal number in quotes",
        }

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{DATE}$", "description": "date like 2024-12-31"}

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{TIME}$", "description": "time like 23:59:00"}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        zone = {"aware": _ZONE, "naive": ""}.get(str(schema.get("tz_constraint")), f"{_ZONE}?")
        return {
            "type": "string",
            "pattern": f"^{DATE}T{TIME}{zone}$",
            "description": "date and time like 2024-12-31T23:59:00" + ("Z" if zone == _ZONE else ""),
        }

    def list_schema(self, schema: core_schema.ListSchema) -> JsonSchemaValue:
        return _bounded_items(super().list_schema(schema))

    def set_schema(self, schema: core_schema.SetSchema) -> JsonSchemaValue:
        return _bounded_items(super().set_schema(schema))

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        return _bounded_items(super().frozenset_schema(schema))

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        written = super().tuple_schema(schema)
        return written if "prefixItems" in written else _bounded_items(written)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        written = super().dict_schema(schema)
        written.pop("propertyNames", None)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        values = self.generate_inner(schema["values_schema"]) if "values_schema" in schema else {}
        pattern = _key_pattern(keys)
        if pattern is not None:
            written.pop("additionalProperties", None)
            written |= {"patternProperties": {pattern: values}, "additionalProperties": False}
        written.setdefault("maxProperties", max(ITEM_LIMIT, 2 * int(written.get("minProperties", 0))))
        return written

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _closed(super().typed_dict_schema(schema))


def anchored(pattern: str) -> str:
    """The pattern such that it must match the whole string."""
    return f"^(?:{pattern})$"


def bounded_number(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Fill in the bounds a number's schema leaves open."""
    bounded: dict[str, Any] = dict(schema)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        bounded["minimum"] = -INTEGER_LIMIT if high is None or high > -INTEGER_LIMIT else 2 * high
    if high is None:
        bounded["maximum"] = INTEGER_LIMIT if low is None or low < INTEGER_LIMIT else 2 * low
    if schema.get("type") == "number":
        bounded.setdefault("multipleOf", FRACTION)
    return bounded


def _bounded_items(schema: JsonSchemaValue) -> JsonSchemaValue:
    # llguidance refuses uniqueItems; a set drops repetitions when it is read.
    bounded = {key: value for key, value in schema.items() if key != "uniqueItems"}
    bounded.setdefault("maxItems", max(ITEM_LIMIT, 2 * int(bounded.get("minItems", 0))))
    return bounded


def _closed(schema: JsonSchemaValue) -> JsonSchemaValue:
    # pydantic ignores unknown members; a model should not be led to write them.
    if "properties" in schema and "additionalProperties" not in schema:
        schema = {**schema, "additionalProperties": False}
    return schema


def _key_pattern(keys: JsonSchemaValue) -> str | None:
    if "enum" in keys:
        return "^(?:" + "|".join(re.escape(str(value)) for value in keys["enum"]) + ")$"
    if "const" in keys:
        return f"^{re.escape(str(keys['const']))}$"
    if "pattern" in keys:
        return str(keys["pattern"])
    if keys.get("type") == "integer":
        return "^(?:0|-?[1-9][0-9]{0,14})$"
    if keys.get("type") == "number":
        return r"^-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,6})?$"
    if keys.get("type") == "boolean":
        return "^(?:true|false)$"
    return None

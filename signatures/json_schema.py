"""JSON schemas of types: as declared, for prompts, and as decoded, for grammars.

pydantic writes them; what llguidance cannot enforce is rewritten: it lets pass 29 February of any year, knows no
Decimal and no keys other than strings, and refuses `uniqueItems`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

NUMBER_LIMIT = 10**15
"""Magnitude of decoded numbers: every integer up to it is exact as a float too, and llguidance's bounds are floats."""
FRACTION = 1e-6
"""Step of decoded floats without multiple_of: six digits after the point."""
STRING_LIMIT = 500
ITEM_LIMIT = 50
"""Decoded strings and lists without a maximum: a small model that repeats itself would never leave them."""

# 29 February exists in years divisible by 4, except by 100, unless by 400. Years run from 0001, as in Python.
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_DAY = f"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LONG_MONTH = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTH = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DAY = f"(?:{_LONG_MONTH}|{_SHORT_MONTH}|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_DAY})"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_ZONE = "(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])"
_CLOCK = "(?:[0-9]{1,2}H(?:[0-9]{1,2}M)?(?:[0-9]{1,2}S)?|[0-9]{1,2}M(?:[0-9]{1,2}S)?|[0-9]{1,2}S)"
_DURATION = f"-?P(?:[0-9]{{1,6}}D(?:T{_CLOCK})?|T{_CLOCK})"
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_INTEGER_KEY = "(?:0|-?[1-9][0-9]{0,14})"
_KEYS = {
    "integer": f"^{_INTEGER_KEY}$",
    "number": r"^-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,6})?$",
    "boolean": "^(?:true|false)$",
}


class DeclaredSchema(GenerateJsonSchema):
    """What a type says, in terms that llguidance enforces."""

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        written = super().str_schema(schema)
        if "pattern" in written:
            # pydantic searches for the pattern; what is generated should be nothing but it.
            written["pattern"] = f"^(?:{written['pattern']})$"
        return written

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        places = schema.get("decimal_places", 6)
        fraction = rf"(?:\.[0-9]{{1,{places}}})?" if places else ""
        return _string(f"-?(?:0|[1-9][0-9]{{0,14}}){fraction}", "decimal number in quotes")

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return _string(_DATE, "date like 2024-12-31")

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return _string(_TIME, "time like 23:59:00")

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        zone = {"aware": _ZONE, "naive": ""}.get(str(schema.get("tz_constraint")), f"{_ZONE}?")
        example = "2024-12-31T23:59:00" + ("Z" if zone == _ZONE else "")
        return _string(f"{_DATE}T{_TIME}{zone}", f"date and time like {example}")

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return _string(_DURATION, "duration like P1DT2H30M")

    def uuid_schema(self, schema: core_schema.UuidSchema) -> JsonSchemaValue:
        return _string(_UUID, "UUID")

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        # pydantic says "a string", and then refuses most of them.
        return self.handle_invalid_for_json_schema(schema, "complex")

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        if not all(isinstance(member.value, str | int | float | None) for member in schema["members"]):
            return self.handle_invalid_for_json_schema(schema, "an Enum with values that are neither text nor numbers")
        return super().enum_schema(schema)

    def is_subclass_schema(self, schema: core_schema.IsSubclassSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a class")

    def set_schema(self, schema: core_schema.SetSchema) -> JsonSchemaValue:
        return _repeatable(super().set_schema(schema))

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        return _repeatable(super().frozenset_schema(schema))

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        written = super().dict_schema(schema)
        written.pop("propertyNames", None)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        keys = self.resolve_ref_schema(keys) if "$ref" in keys else keys
        if not all(isinstance(member, str) for member in _members(keys)):
            return self.handle_invalid_for_json_schema(schema, "a dict whose keys are members that are no text")
        pattern = _key_pattern(keys)
        if pattern is not None:
            values = self.generate_inner(schema["values_schema"]) if "values_schema" in schema else {}
            written |= {"patternProperties": {pattern: values}, "additionalProperties": False}
        return written

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _closed(super().typed_dict_schema(schema))


class DecodeSchema(DeclaredSchema):
    """The declared schema with limits where the type has none. They bind generated values; others may be longer."""

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        written = super().str_schema(schema)
        written.setdefault("maxLength", max(STRING_LIMIT, 2 * int(written.get("minLength", 0))))
        return written

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _bounded(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"multipleOf": FRACTION, **_bounded(super().float_schema(schema))}

    def list_schema(self, schema: core_schema.ListSchema) -> JsonSchemaValue:
        return _limited(super().list_schema(schema), "Items")

    def set_schema(self, schema: core_schema.SetSchema) -> JsonSchemaValue:
        return _limited(super().set_schema(schema), "Items")

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        return _limited(super().frozenset_schema(schema), "Items")

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        return _limited(super().tuple_schema(schema), "Items")

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        return _limited(super().dict_schema(schema), "Properties")


def _string(pattern: str, description: str) -> JsonSchemaValue:
    return {"type": "string", "pattern": f"^{pattern}$", "description": description}


def _repeatable(schema: JsonSchemaValue) -> JsonSchemaValue:
    # A set drops repetitions when it is read.
    return {key: value for key, value in schema.items() if key != "uniqueItems"}


def _closed(schema: JsonSchemaValue) -> JsonSchemaValue:
    # pydantic ignores unknown members; a model should not be led to write them.
    if "properties" in schema and "additionalProperties" not in schema:
        return {**schema, "additionalProperties": False}
    return schema


def _bounded(schema: JsonSchemaValue) -> JsonSchemaValue:
    bounded: dict[str, Any] = dict(schema)
    low: Any = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high: Any = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if low < -NUMBER_LIMIT:
        bounded.pop("exclusiveMinimum", None)
        bounded["minimum"] = -NUMBER_LIMIT
    if high > NUMBER_LIMIT:
        bounded.pop("exclusiveMaximum", None)
        bounded["maximum"] = NUMBER_LIMIT
    return bounded


def _limited(schema: JsonSchemaValue, what: str) -> JsonSchemaValue:
    return {f"max{what}": max(ITEM_LIMIT, 2 * int(schema.get(f"min{what}", 0))), **schema}


def _members(schema: JsonSchemaValue) -> list[Any]:
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def _key_pattern(keys: JsonSchemaValue) -> str | None:
    """Pattern of a dict's keys, or None for any string."""
    if members := _members(keys):
        return "^(?:" + "|".join(re.escape(member) for member in members) + ")$"
    return str(keys["pattern"]) if "pattern" in keys else _KEYS.get(str(keys.get("type")))

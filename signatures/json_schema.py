"""JSON schemas of types: as declared, for prompts, and as decoded, for grammars.

pydantic writes them; what llguidance cannot enforce is rewritten: it lets pass 29 February of any year, knows no
Decimal, no bounds of dates and no keys other than strings, and refuses `uniqueItems`.
"""

from __future__ import annotations

import datetime
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from . import patterns
from .decimals import decimal_text
from .formatted import URL
from .moments import within
from .quoted import KEY
from .schema_parts import (
    FRACTION,
    STRING_LIMIT,
    anything,
    bounded,
    closed,
    distinct,
    enforceable,
    is_closed,
    is_scalar,
    keyed,
    limited,
    members,
    nonzero,
    tagged,
    text_of,
)


class DeclaredSchema(GenerateJsonSchema):
    """What a type says, in terms that llguidance enforces; only `uniqueItems` is left to take out."""

    one_by_one = False
    """Whether the subsets of a closed set are listed where no keyword of JSON schema says which there are."""

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        written: JsonSchemaValue = enforceable(super().generate(schema, mode))
        return written

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        written = super().str_schema(schema)
        if "pattern" in written:
            # pydantic searches for the pattern; what is generated should be nothing but it.
            written["pattern"] = f"^(?:{written['pattern']})$"
        return written

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        pattern = decimal_text(schema)
        if pattern is None:
            return self.handle_invalid_for_json_schema(schema, "a Decimal whose bounds leave no number")
        return text_of(pattern, "decimal number in quotes")

    def fraction_schema(self, schema: core_schema.FractionSchema) -> JsonSchemaValue:
        return text_of(patterns.FRACTION, "fraction like 3/4")

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return self._within(schema, text_of(patterns.DATE, "date like 2024-12-31"))

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return self._within(schema, text_of(patterns.TIME, "time like 23:59:00"))

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        zone = {"aware": patterns.ZONE, "naive": ""}.get(str(schema.get("tz_constraint")), f"{patterns.ZONE}?")
        example = "2024-12-31T23:59:00" + ("Z" if zone == patterns.ZONE else "")
        written = text_of(f"{patterns.DATE}T{patterns.TIME}{zone}", f"date and time like {example}")
        return self._within(schema, written)

    def _within(self, schema: Any, written: JsonSchemaValue) -> JsonSchemaValue:
        found = within(written, schema)
        if found is None:
            return self.handle_invalid_for_json_schema(schema, f"a {schema['type']} between bounds that leave none")
        return found

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        low = schema.get("ge", schema.get("gt", datetime.timedelta.min))
        sign = "" if low >= datetime.timedelta(0) else "-?"
        return text_of(sign + patterns.DURATION, "duration like P1DT2H30M")

    def uuid_schema(self, schema: core_schema.UuidSchema) -> JsonSchemaValue:
        return text_of(patterns.uuid_pattern(schema.get("version")), "UUID")

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return text_of(patterns.url_pattern(schema.get("allowed_schemes") or ["https", "http"]), URL)

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        # pydantic says "a string", and then refuses most of them.
        return self.handle_invalid_for_json_schema(schema, "complex")

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        if not schema["members"]:
            return self.handle_invalid_for_json_schema(schema, "an Enum without members")
        if not all(isinstance(member.value, str | int | float | None) for member in schema["members"]):
            return self.handle_invalid_for_json_schema(schema, "an Enum with values that are neither text nor numbers")
        return super().enum_schema(schema)

    def is_subclass_schema(self, schema: core_schema.IsSubclassSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "a class")

    def generator_schema(self, schema: core_schema.GeneratorSchema) -> JsonSchemaValue:
        # It would be validated only when somebody reads it.
        return self.handle_invalid_for_json_schema(schema, "an Iterable: say list")

    def json_schema(self, schema: core_schema.JsonSchema) -> JsonSchemaValue:
        return self.handle_invalid_for_json_schema(schema, "JSON inside a string: say the type itself")

    def set_schema(self, schema: core_schema.SetSchema) -> JsonSchemaValue:
        return self._distinct(schema, super().set_schema(schema))

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        return self._distinct(schema, super().frozenset_schema(schema))

    def _distinct(self, schema: Any, written: JsonSchemaValue) -> JsonSchemaValue:
        return written

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        return self._keyed(schema, super().dict_schema(schema))

    def frozendict_schema(self, schema: core_schema.FrozenDictSchema) -> JsonSchemaValue:
        return self._keyed(schema, super().frozendict_schema(schema))

    def ordered_dict_schema(self, schema: core_schema.OrderedDictSchema) -> JsonSchemaValue:
        return self._keyed(schema, super().ordered_dict_schema(schema))

    def counter_schema(self, schema: core_schema.CounterSchema) -> JsonSchemaValue:
        return self._keyed(schema, super().counter_schema(schema))

    def _keyed(self, schema: Any, written: JsonSchemaValue) -> JsonSchemaValue:
        of = schema.get("keys_schema", {"type": "any"})
        keys = {} if of["type"] == "any" else self._resolved(self.generate_inner(of))
        if not all(isinstance(member, str) for member in members(keys)):
            return self.handle_invalid_for_json_schema(schema, "a dict whose keys are members that are no text")
        if keys and not is_scalar(keys):
            return self.handle_invalid_for_json_schema(schema, "a dict whose keys are lists or objects")
        if any(KEY in option for option in keys.get("anyOf", ())):
            return self.handle_invalid_for_json_schema(schema, "a dict whose keys are Quoted or something else: say one")
        values = self.generate_inner(schema.get("values_schema", core_schema.any_schema()))
        return keyed(written, keys, values, one_by_one=self.one_by_one)

    def _resolved(self, written: JsonSchemaValue) -> JsonSchemaValue:
        """A schema itself, where it was only named."""
        if "$ref" in written:
            return self._resolved(self.resolve_ref_schema(written))
        if "anyOf" in written:
            return {**written, "anyOf": [self._resolved(option) for option in written["anyOf"]]}
        return written

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return closed(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return closed(super().typed_dict_schema(schema))

    def model_field_schema(self, schema: core_schema.ModelField) -> JsonSchemaValue:
        self._check_alias(schema)
        return super().model_field_schema(schema)

    def dataclass_field_schema(self, schema: core_schema.DataclassField) -> JsonSchemaValue:
        self._check_alias(schema)
        return super().dataclass_field_schema(schema)

    def typed_dict_field_schema(self, schema: core_schema.TypedDictField) -> JsonSchemaValue:
        self._check_alias(schema)
        return super().typed_dict_field_schema(schema)

    def _check_alias(self, schema: Any) -> None:
        alias = schema.get("validation_alias", "")
        if isinstance(alias, list) and not any(isinstance(path, list) and len(path) == 1 for path in alias):
            self.handle_invalid_for_json_schema(schema, f"a field that is read from inside another ({alias}): name it")


class DecodeSchema(DeclaredSchema):
    """The declared schema with limits where the type has none. They bind generated values; others may be longer."""

    one_by_one = True

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        written = super().generate(schema, mode)
        tagged(written, written.get("$defs", {}))
        return written

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        written = super().bytes_schema(schema)
        if "minLength" in written or "maxLength" in written:
            written["pattern"] = "^[ -~]*$"  # lengths are in bytes: these have one each
        return {"maxLength": max(STRING_LIMIT, 2 * int(written.get("minLength", 0))), **written}

    def any_schema(self, schema: core_schema.AnySchema) -> JsonSchemaValue:
        return anything()

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        written = super().str_schema(schema)
        written.setdefault("maxLength", max(STRING_LIMIT, 2 * int(written.get("minLength", 0))))
        return written

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return nonzero(bounded(super().int_schema(schema)))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return nonzero({"multipleOf": FRACTION, **bounded(super().float_schema(schema))})

    def list_schema(self, schema: core_schema.ListSchema) -> JsonSchemaValue:
        return limited(super().list_schema(schema), "Items")

    def deque_schema(self, schema: core_schema.DequeSchema) -> JsonSchemaValue:
        return limited(super().deque_schema(schema), "Items")

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        return limited(super().tuple_schema(schema), "Items")

    def _distinct(self, schema: Any, written: JsonSchemaValue) -> JsonSchemaValue:
        if schema.get("items_schema", {"type": "any"})["type"] == "any":
            return limited({**written, "items": anything(0)}, "Items")  # a list or an object cannot be in a set
        known = self._resolved(written.get("items", {}))
        return limited(distinct({**written, "items": known}) if is_closed(known) else written, "Items")

    def _keyed(self, schema: Any, written: JsonSchemaValue) -> JsonSchemaValue:
        return limited(super()._keyed(schema, written), "Properties")

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        written = super().model_schema(schema)
        return {**written, "additionalProperties": anything(1)} if written.get("additionalProperties") is True else written

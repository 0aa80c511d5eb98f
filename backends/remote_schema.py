"""The outputs of a signature as one JSON schema, in the dialect that servers take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ..signatures.constraint import Constraint
from ..signatures.quoted import KEY as QUOTED

_LOOSE = frozenset({"title", "default", "discriminator", "uniqueItems", QUOTED})
"""Keywords that strict modes refuse, and that say nothing of which values are right: a set drops repetitions when read."""
_BOUNDS = frozenset(
    {
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    }
    | {"minItems", "maxItems", "minProperties", "maxProperties", "patternProperties", "propertyNames", "examples"}
)


def answer_schema(constraints: Mapping[str, Constraint]) -> dict[str, Any]:
    """An object with a property per output, in order, all of them required and no others.

    Raises `PydanticInvalidForJsonSchema` for a type that has no JSON schema.
    """
    adapters: list[Any] = [(name, "validation", TypeAdapter(c.annotation)) for name, c in constraints.items()]
    # All types at once, so that two models of the same name get two definitions.
    written, shared = TypeAdapter.json_schemas(adapters, schema_generator=_Plain)
    properties = {name: written[name, "validation"] for name in constraints}
    whole: dict[str, Any] = _without(_LOOSE, {"type": "object", "properties": properties, **shared})
    return whole


def without_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """The same structure without lengths, limits, patterns and formats, which some servers refuse."""
    structure: dict[str, Any] = _without(_BOUNDS, schema)
    return structure


class _Plain(GenerateJsonSchema):
    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        # pydantic says: a number, or a string under a pattern that few servers read. One is enough.
        written: JsonSchemaValue = super().decimal_schema(schema)["anyOf"][0]
        return written


def _without(dropped: frozenset[str], schema: Any) -> Any:
    """`schema` without some keywords, at any depth; objects are closed and all their members required."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:  # strict modes want it alone
        return {"$ref": schema["$ref"]}
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: _without(dropped, part) for name, part in value.items()}
        elif key in ("anyOf", "oneOf", "prefixItems"):
            kept["anyOf" if key == "oneOf" else key] = [_without(dropped, part) for part in value]
        elif key not in dropped:
            kept[key] = _without(dropped, value) if key in ("items", "additionalProperties", "propertyNames") else value
    if "properties" in kept:
        kept["required"] = list(kept["properties"])
        kept.setdefault("additionalProperties", False)
    return kept

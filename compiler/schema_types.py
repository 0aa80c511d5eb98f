"""From a field's JSON schema back to a type, so that a saved predictor needs no Python class to be rebuilt.

Covers what pydantic writes for the types Still lowers. Classes come back as their shape: an Enum as a Literal of its
values, a model as a new model of the same fields.
"""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, create_model

from ..errors import ArtifactError
from ..signatures.cited import Cited
from ..signatures.quoted import KEY as QUOTED
from ..signatures.quoted import Quoted

_FORMATS: dict[str, type] = {
    "date": datetime.date,
    "date-time": datetime.datetime,
    "time": datetime.time,
    "uuid": uuid.UUID,
}
_BOUNDS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "pattern": "pattern",
}
_SCALARS: dict[str, type] = {"integer": int, "number": float, "boolean": bool}


def type_from_schema(schema: dict[str, Any], field: str) -> Any:
    """Return a type whose JSON schema means the same. Raises `ArtifactError` naming `field` where there is none."""
    return _Reader(schema.get("$defs", {}), field).read(schema)


class _Reader:
    def __init__(self, definitions: dict[str, Any], field: str) -> None:
        self._definitions, self._field = definitions, field
        self._open: list[str] = []

    def read(self, schema: dict[str, Any]) -> Any:
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]))
        if "const" in schema:
            return Literal[schema["const"]]
        if "enum" in schema:
            return Literal[tuple(schema["enum"])]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return Union[tuple(self.read(option) for option in schema[key])]  # noqa: UP007 - built from data
        bounds = {_BOUNDS[key]: value for key, value in schema.items() if key in _BOUNDS}
        kind = self._kind(schema)
        metadata = [*([Field(**bounds)] if bounds else []), *([Quoted(schema[QUOTED])] if QUOTED in schema else [])]
        return Annotated[(kind, *metadata)] if metadata else kind

    def _kind(self, schema: dict[str, Any]) -> Any:
        kind = schema.get("type")
        if kind == "string":
            if schema.get("format") in _FORMATS:
                return _FORMATS[schema["format"]]
            return str if "format" not in schema else self._unsupported(schema)
        if kind == "null":
            return None
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self._object(schema)
        if kind is None and not schema.keys() - {"title", "description", "default", "$defs"}:
            return Any
        return _SCALARS[kind] if kind in _SCALARS else self._unsupported(schema)

    def _array(self, schema: dict[str, Any]) -> Any:
        if "prefixItems" in schema:
            return tuple[tuple(self.read(item) for item in schema["prefixItems"])]  # type: ignore[misc]
        item = self.read(schema["items"]) if "items" in schema else Any
        return set[item] if schema.get("uniqueItems") else list[item]  # type: ignore[valid-type]

    def _object(self, schema: dict[str, Any]) -> Any:
        properties = schema.get("properties")
        if properties is None:
            return self._dict(schema)
        if str(schema.get("title")).startswith("Cited[") and properties.keys() == Cited.model_fields.keys():
            return Cited[self.read(properties["value"])]  # type: ignore[misc]
        required = set(schema.get("required", ()))
        fields: dict[str, Any] = {
            name: (self.read(value), ... if name in required else value.get("default")) for name, value in properties.items()
        }
        extra: Literal["forbid", "ignore"] = "forbid" if schema.get("additionalProperties") is False else "ignore"
        return create_model(str(schema.get("title", "Model")), __config__=ConfigDict(extra=extra), **fields)

    def _dict(self, schema: dict[str, Any]) -> Any:
        patterns = schema.get("patternProperties")
        if patterns:
            ((pattern, values),) = patterns.items()
            names: dict[str, Any] = {"pattern": pattern}
        else:
            names, values = schema.get("propertyNames", {}), schema.get("additionalProperties", True)
        key = self.read({"type": "string", **names})
        value = self.read(values) if isinstance(values, dict) else Any
        return dict[key, value]  # type: ignore[valid-type]

    def _reference(self, reference: str) -> Any:
        name = reference.removeprefix("#/$defs/")
        if name in self._open:
            raise ArtifactError(
                f"field {self._field!r}: the recursive type {name} cannot be rebuilt from its schema: "
                "pass the program, still.load(path, program=...)"
            )
        if name not in self._definitions:
            raise ArtifactError(f"field {self._field!r}: schema refers to {reference!r}, which the artifact does not have")
        self._open.append(name)
        try:
            return self.read(self._definitions[name])
        finally:
            self._open.pop()

    def _unsupported(self, schema: dict[str, Any]) -> Any:
        raise ArtifactError(
            f"field {self._field!r}: a type with schema {schema} cannot be rebuilt: "
            "pass the program, still.load(path, program=...)"
        )

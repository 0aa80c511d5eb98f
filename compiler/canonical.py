"""One JSON text per value, and digests of it: equal content, equal digest, in every process and on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticSerializationError

from ..errors import DatasetError
from ..signatures.bridge import Example

_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def to_jsonable(value: Any) -> Any:
    """`value` as str, int, float, bool, None, list and dict with string keys only.

    Pydantic models go through `model_dump(mode="json")`, dates become ISO text, enum members their value, tuples
    lists, sets lists in a fixed order, NaN and the infinities text (JSON has no number for them).

    Raises:
        DatasetError: the value has no JSON form.
    """
    if value is None or isinstance(value, str | int | float):
        return _scalar(value)
    if isinstance(value, BaseModel):
        return _order_sets(to_jsonable(value.model_dump(mode="json")), value.model_dump())
    if isinstance(value, Example):
        value = dict(value.items())
    if isinstance(value, Mapping):
        return {_key(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((to_jsonable(item) for item in value), key=_dumps)
    try:
        return to_jsonable(_ANY.dump_python(value, mode="json", by_alias=False))
    except (PydanticSerializationError, RecursionError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"a value of type {type(value).__name__} has no JSON form: {value!r:.80}; "
            "use text, numbers, lists, dicts or pydantic models"
        ) from error


def canonical_json(value: Any) -> str:
    """ASCII JSON with sorted keys and no spaces. Raises DatasetError as `to_jsonable` does."""
    return _dumps(to_jsonable(value))


def digest(value: Any) -> str:
    """sha256, 64 hex digits, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def storable(text: str) -> str:
    """Half surrogate pairs become U+FFFD: data and models may hold them, UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def example_digest(example: Example) -> str:
    """sha256 of an example's content: its inputs and labels, whatever their order.

    Where `with_inputs` was called the digest also says which fields are inputs, since that changes what a program is
    given.
    """
    fields = dict(example.items())
    try:
        inputs = sorted(example.inputs().keys())
    except (ValueError, AttributeError):  # dspy: with_inputs was never called, or a Prediction, which has no inputs
        return digest({"fields": fields})
    return digest({"fields": fields, "inputs": inputs})


def _scalar(value: str | int | float | None) -> Any:
    """Plain str, int, float, bool or None; subclasses (str and int enums, numpy floats) lose their class."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    return float(value) if math.isfinite(value) else str(float(value))


def _key(key: Any) -> str:
    plain = to_jsonable(key)
    return plain if isinstance(plain, str) else _dumps(plain)


def _dumps(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _order_sets(dumped: Any, original: Any) -> Any:
    """Sort the lists in `dumped` that were sets in `original`: a set of strings is ordered anew in every process."""
    if isinstance(original, set | frozenset) and isinstance(dumped, list):
        return sorted(dumped, key=_dumps)
    if isinstance(original, dict) and isinstance(dumped, dict):
        return {key: _order_sets(item, original.get(key)) for key, item in dumped.items()}
    if isinstance(original, list | tuple) and isinstance(dumped, list) and len(original) == len(dumped):
        return [_order_sets(item, other) for item, other in zip(dumped, original, strict=True)]
    return dumped

"""Input values as text."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import SignatureError
from .optional import NONE
from .passage import passages_text, read_passages

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def value_text(value: Any, field: str) -> str:
    """A string as it is, None as none, passages as a numbered list, anything else as compact JSON: members of Enums as their
    values, sets in order.

    Raises `SignatureError` naming the field.
    """
    if isinstance(value, str):
        # To str, a member of a class of `str, Enum` is its name.
        return _encodable(str(value.value if isinstance(value, enum.Enum) else value), field)
    if isinstance(value, list | tuple) and value and (passages := read_passages(value)) is not None:
        return _encodable(passages_text(passages), field)
    try:
        plain = to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise SignatureError(f"input {field!r}: a {type(value).__name__} cannot be written as text: {error}") from None
    if plain is None:
        return NONE
    if isinstance(plain, str):
        return _encodable(plain, field)
    return _encodable(json.dumps(in_order(_with_sets(value), plain), ensure_ascii=False), field)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type."""
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # an array, say, whose comparison is one too
        return False


def in_order(plain: Any, data: Any) -> Any:
    """`data` with the items of sets sorted: a set has another order in every process, and a prompt must not.

    plain: the same value with its sets still sets.
    """
    if isinstance(plain, AbstractSet) and isinstance(data, list):
        return sorted(data, key=lambda item: json.dumps(item, ensure_ascii=False))
    if isinstance(plain, Mapping) and isinstance(data, dict) and len(plain) == len(data):
        return {key: in_order(inner, data[key]) for inner, key in zip(plain.values(), data, strict=True)}
    if isinstance(plain, Sequence) and isinstance(data, list) and len(plain) == len(data):
        return [in_order(inner, item) for inner, item in zip(plain, data, strict=True)]
    return data


def _with_sets(value: Any) -> Any:
    """A value as plain data but for its sets."""
    try:
        return _ANYTHING.dump_python(value, by_alias=True)
    except (TypeError, ValueError):  # a set of models, which are dicts here: no set can hold those
        return value


def _encodable(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SignatureError(
            f"input {field!r}: character {error.start} is {text[error.start]!r}, half of a surrogate pair and no text: "
            "remove it, or decode the source with errors='replace'"
        ) from None
    return text


def guard(text: str, markers: re.Pattern[str]) -> str:
    """Indent lines that start like a field marker, so that a value cannot pass for further fields."""
    return markers.sub(r"\1 ", text)

"""Input values as text."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import SignatureError
from .optional import NONE
from .passage import passages_text, read_passages


def value_text(value: Any, field: str) -> str:
    """A string as it is, None as none, passages as a numbered list, anything else as compact JSON.

    Raises `SignatureError` naming the field.
    """
    if isinstance(value, str):
        return _encodable(str(value), field)
    if isinstance(value, list | tuple) and value and (passages := read_passages(value)) is not None:
        return _encodable(passages_text(passages), field)
    try:
        plain = to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise SignatureError(f"input {field!r}: a {type(value).__name__} cannot be written as text: {error}") from None
    if plain is None:
        return NONE
    return _encodable(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False), field)


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

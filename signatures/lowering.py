"""From a field's type to its constraint."""

from __future__ import annotations

import datetime
import enum
import json
import types
import typing
import uuid
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaError

from ..errors import ConstraintError, SignatureError
from .choice import Choice, choice_texts
from .constraint import Constraint
from .formatted import FormattedConstraint
from .json_constraint import JsonConstraint
from .json_schema import DeclaredSchema, DecodeSchema
from .json_sketch import sketch
from .number import NumberConstraint, describe_number
from .optional import NONE, OptionalConstraint
from .text import Form, TextConstraint

_FORMATTED = (datetime.date, datetime.time, datetime.datetime, datetime.timedelta, uuid.UUID)


def lower_type(annotation: Any, metadata: Sequence[Any] = (), field: str = "value", *, last: bool = False) -> Constraint:
    """Return the constraint of a type.

    annotation: any type pydantic knows. metadata: its constraints, as in `FieldInfo.metadata`. last: nothing follows
    the field, so that free text may have several lines.
    Raises `SignatureError` naming the field for a type without values or one that no grammar can describe.
    """
    try:
        constraint = _lower(annotation, tuple(metadata), field, last)
    except (PydanticUserError, SchemaError, AssertionError) as error:  # pydantic asserts that a Literal has members
        raise _unsupported(field, annotation, " ".join(str(error).split())) from error
    check_possible(constraint)
    return constraint


def _lower(annotation: Any, metadata: tuple[Any, ...], field: str, last: bool) -> Constraint:
    annotation, inner = _unwrap(annotation)
    metadata = (*inner, *metadata)
    declared: Any = Annotated[(annotation, *metadata)] if metadata else annotation
    members = _members(annotation)
    if members is not None:
        if not members:
            raise SignatureError(f"field {field!r}: {_name(annotation)} has no members: list at least one")
        return Choice(field, declared, members, choice_texts(members))
    some = _optional(annotation)
    if some is not None:
        constraint = _lower(some, metadata, field, last)
        if _parses(constraint, NONE):
            return _json(field, declared)
        return OptionalConstraint(field, declared, constraint)
    if annotation in (int, float, Decimal):
        return _number(annotation, declared, metadata, field)
    if annotation in _FORMATTED:
        schema = TypeAdapter(declared).json_schema(schema_generator=DeclaredSchema)
        return FormattedConstraint(field, declared, schema["pattern"], schema["description"])
    return _text(declared, field, last) if annotation is str else _json(field, declared)


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take a type out of `Annotated`, `NewType` and `type` statements."""
    metadata: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *found = get_args(annotation)
            metadata = (*_flat(found), *metadata)
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation, metadata


def _flat(metadata: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in metadata:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return flat


def _members(annotation: Any) -> tuple[Any, ...] | None:
    if annotation is bool:
        return (True, False)
    if annotation is None or annotation is types.NoneType:
        return (None,)
    if get_origin(annotation) is Literal:
        return _literal_members(annotation)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(annotation)
    return None


def _literal_members(annotation: Any) -> tuple[Any, ...]:
    members: list[Any] = []
    for member in get_args(annotation):
        known = any(type(member) is type(seen) and member == seen for seen in members)
        members.extend([] if known else [member])
    return tuple(members)


def _optional(annotation: Any) -> Any:
    """T of `Optional[T]`, else None."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    others = [option for option in get_args(annotation) if option is not types.NoneType]
    if len(others) == len(get_args(annotation)):
        return None
    return others[0] if len(others) == 1 else Union[tuple(others)]  # noqa: UP007 - built from data


def _parses(constraint: Constraint, text: str) -> bool:
    try:
        constraint.parse(text)
    except ConstraintError:
        return False
    return True


def _number(kind: type, declared: Any, metadata: tuple[Any, ...], field: str) -> NumberConstraint:
    bounded = declared
    if kind is Decimal:
        # pydantic's schema of a Decimal is a string's; its bounds are those of a number.
        bounds = [item for item in metadata if isinstance(item, Ge | Gt | Le | Lt | MultipleOf | Interval)]
        places = [item.decimal_places for item in metadata if getattr(item, "decimal_places", None)]
        bounds += [MultipleOf(10.0**-count) for count in places]
        bounded = Annotated[(float, *bounds)] if bounds else float
    adapter: TypeAdapter[Any] = TypeAdapter(bounded)
    decoded = adapter.json_schema(schema_generator=DecodeSchema)
    shown = describe_number(adapter.json_schema())
    return NumberConstraint(field, declared, json.dumps(decoded), shown, exact=kind is Decimal)


def _text(declared: Any, field: str, last: bool) -> TextConstraint:
    schema = TypeAdapter(declared).json_schema()
    pattern = schema.get("pattern")
    form: Form = "block" if last else "raw" if pattern is not None else "line"
    least, most = schema.get("minLength"), schema.get("maxLength")
    if most is not None and (most < 1 or (least or 0) > most):
        raise SignatureError(
            f"field {field!r}: no text has {least or 1} to {most} characters: change min_length or max_length"
        )
    return TextConstraint(field, declared, form, least, most, pattern)


def _json(field: str, declared: Any) -> JsonConstraint:
    adapter: TypeAdapter[Any] = TypeAdapter(declared)
    shown = sketch(adapter.json_schema(schema_generator=DeclaredSchema))
    return JsonConstraint(field, declared, json.dumps(adapter.json_schema(schema_generator=DecodeSchema)), shown)


@lru_cache(maxsize=1024)
def check_possible(constraint: Constraint) -> None:
    """Raise `SignatureError` if llguidance cannot compile the grammar or nothing satisfies it."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), 'start: " " value\n' + constraint.rules("value"), log_level=0)
    if not matcher.is_error():
        matcher.consume_token(ord(" "))
        # With nothing to go on with, the matcher fails and its mask says only: end.
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if mask & (2**256 - 1) and not matcher.is_error():
            return
        why = "no value satisfies it"
    else:
        why = matcher.get_error().strip().splitlines()[0]
    raise _unsupported(constraint.field, constraint.annotation, why)


def _unsupported(field: str, annotation: Any, why: str) -> SignatureError:
    return SignatureError(f"field {field!r}: {_name(annotation)} cannot be decoded: {why}. Change the type or its bounds")


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)

"""From a field's type to its constraint."""

from __future__ import annotations

import enum
import json
import math
import types
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from ..errors import ConstraintError, SignatureError
from ..grammars import compile_grammar
from .aliases import unwrap
from .choice import Choice, choice_texts
from .cited import Cited, CitedConstraint, holds_cited
from .constraint import Constraint
from .decimals import WHOLE, decimal_text
from .extent import impossible
from .formatted import FormattedConstraint
from .json_constraint import JsonConstraint
from .json_schema import DeclaredSchema, DecodeSchema
from .json_sketch import sketch
from .least import MOST_REQUIRED, MOST_TEXT, shortest
from .number import NumberConstraint, describe_number
from .optional import NONE, OptionalConstraint
from .quoted import KEY, Quoted
from .schema_parts import without
from .text import Form, TextConstraint

_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of", "max_digits", "decimal_places")


def lower_type(annotation: Any, metadata: Sequence[Any] = (), field: str = "value", *, last: bool = False) -> Constraint:
    """Return the constraint of a type.

    annotation: any type pydantic knows. metadata: its constraints, as in `FieldInfo.metadata`. last: nothing follows
    the field, so that free text may have several lines.
    Raises `SignatureError` naming the field for a type without values or one that no grammar can describe.
    """
    try:
        constraint = _lower(annotation, tuple(metadata), field, last)
    except (PydanticUserError, SchemaError, AssertionError, ImportError) as error:
        # pydantic asserts that a Literal has members, and needs a package for e-mail addresses.
        raise _unsupported(field, annotation, " ".join(getattr(error, "message", str(error)).split())) from error
    check_possible(constraint)
    return constraint


def _lower(annotation: Any, metadata: tuple[Any, ...], field: str, last: bool) -> Constraint:
    annotation, inner = unwrap(annotation)
    # pydantic does not see a pattern that comes after a validator.
    metadata = tuple(sorted((*inner, *metadata), key=lambda item: isinstance(item, Quoted)))
    declared: Any = Annotated[(annotation, *metadata)] if metadata else annotation
    members = _members(annotation)
    if members is not None:
        if not members:
            raise SignatureError(f"field {field!r}: {_name(annotation)} has no members: list at least one")
        return Choice(field, declared, members, choice_texts(members))
    some = _optional(annotation)
    if some is not None:
        return _or_none(_lower(some, metadata, field, last), declared)
    if annotation is str:
        return _text(declared, field, last)
    if isinstance(annotation, type) and issubclass(annotation, Cited):
        return _cited(declared, annotation, field)
    number = _number(annotation, declared, metadata, field) if annotation in (int, float, Decimal) else None
    return number or _formatted(field, declared) or _json(field, declared)


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


def _or_none(some: Constraint, declared: Any) -> Constraint:
    """The constraint of `Optional[T]`, from that of T: the word none stands for None where it cannot be a value of T."""
    if isinstance(some, Choice) and (None in some.members or NONE in some.texts):
        members = some.members if None in some.members else (*some.members, None)
        return Choice(some.field, declared, members, choice_texts(members))
    # A cited text has citations where there are passages: without one, the word says that there is no answer.
    if not isinstance(some, CitedConstraint) and _parses(some, NONE):
        return _json(some.field, declared)
    return OptionalConstraint(some.field, declared, some)


def _parses(constraint: Constraint, text: str) -> bool:
    try:
        constraint.parse(text)
    except ConstraintError:
        return False
    return True


def _number(kind: type, declared: Any, metadata: tuple[Any, ...], field: str) -> NumberConstraint | None:
    adapter: TypeAdapter[Any] = TypeAdapter(_as_float(metadata) if kind is Decimal else declared)
    decoded = adapter.json_schema(schema_generator=DecodeSchema)
    if decoded.get("type") not in ("integer", "number"):
        return None  # a validator or a schema of the user's
    exact = kind is Decimal
    pattern = _digits_pattern(metadata) if exact else None
    shown = describe_number(adapter.json_schema())
    return NumberConstraint(field, declared, json.dumps(decoded, default=float), shown, exact, pattern)


def _as_float(metadata: tuple[Any, ...]) -> Any:
    """A Decimal's bounds on a float: pydantic's schema of a Decimal is a string's."""
    bounds = _bounds(metadata)
    digits, places = bounds.pop("max_digits", None), bounds.pop("decimal_places", None)
    if digits is not None:
        # Where the type does not say how many of them stand behind the point, all may stand before it.
        behind = places or 0
        largest = float(Decimal(10) ** (digits - behind) - Decimal(1).scaleb(-behind))
        if bounds.get("gt", -math.inf) < -largest:
            bounds["ge"] = max(bounds.get("ge", -largest), -largest)
        if bounds.get("lt", math.inf) > largest:
            bounds["le"] = min(bounds.get("le", largest), largest)
    if places is not None:
        bounds.setdefault("multiple_of", 10.0**-places)
    return Annotated[float, Field(**bounds)]


def _digits_pattern(metadata: tuple[Any, ...]) -> str | None:
    """Texts of a Decimal of so many digits, wherever its point is, which no JSON schema of a number can say; else None."""
    bounds = _bounds(metadata)
    if "max_digits" not in bounds or {"decimal_places", "multiple_of"} & bounds.keys():
        return None
    return decimal_text({**bounds, "max_digits": min(bounds["max_digits"], WHOLE)})


def _bounds(metadata: tuple[Any, ...]) -> dict[str, Any]:
    return {
        name: _plain(value) for item in metadata for name in _BOUNDS if (value := getattr(item, name, None)) is not None
    }


def _plain(number: Any) -> Any:
    if not isinstance(number, Decimal):
        return number
    return int(number) if number == number.to_integral_value() else float(number)


def _formatted(field: str, declared: Any) -> FormattedConstraint | None:
    """The constraint of a type that JSON writes as a string of a fixed format."""
    schema = TypeAdapter(declared).json_schema(schema_generator=DeclaredSchema)
    if schema.get("type") != "string" or not {"pattern", "description"} <= schema.keys():
        return None
    span = schema["allOf"][0]["pattern"] if "allOf" in schema else None
    return FormattedConstraint(field, declared, schema["pattern"], schema["description"], span)


def _text(declared: Any, field: str, last: bool) -> TextConstraint:
    schema = TypeAdapter(declared).json_schema()
    if "format" in schema:
        raise _unsupported(field, declared, f"no grammar knows its format {schema['format']}")
    pattern, quotes = schema.get("pattern"), schema.get(KEY)
    form: Form = "raw" if quotes is not None else "block" if last else "raw" if pattern is not None else "line"
    least, most = schema.get("minLength"), schema.get("maxLength")
    if most is not None and (most < 1 or (least or 0) > most):
        raise SignatureError(
            f"field {field!r}: no text has {least or 1} to {most} characters: change min_length or max_length"
        )
    if least is not None and least > MOST_TEXT:
        raise _unsupported(field, declared, f"a text of at least {least:,} characters is more than {MOST_TEXT:,}")
    return TextConstraint(field, declared, form, least, most, pattern, quotes)


def _cited(declared: Any, annotation: Any, field: str) -> CitedConstraint:
    (value,) = annotation.__pydantic_generic_metadata__["args"] or (str,)
    if value is str:
        return CitedConstraint(field, declared, None)
    inner = _lower(value, (), field, last=False)
    if isinstance(inner, JsonConstraint | CitedConstraint | TextConstraint):
        raise _unsupported(field, annotation, "a cited value is plain text, a number, a date or one of a closed set")
    return CitedConstraint(field, declared, inner)


def _json(field: str, declared: Any) -> JsonConstraint:
    adapter: TypeAdapter[Any] = TypeAdapter(declared)
    if holds_cited(adapter.core_schema):
        why = "a Cited inside another type could cite what is not there: let the output be Cited, or an Optional of it"
        raise _unsupported(field, declared, why)
    shown = sketch(adapter.json_schema(schema_generator=DeclaredSchema))
    decoded = adapter.json_schema(schema_generator=DecodeSchema)
    empty = impossible(decoded)
    if empty is not None:
        raise _unsupported(field, declared, f"no value satisfies {empty or 'it'}")
    if (least := shortest(decoded)) > MOST_REQUIRED:
        much = "endlessly many" if least == math.inf else f"{least:,.0f}"
        raise _unsupported(field, declared, f"its shortest value has {much} characters of JSON, more than {MOST_REQUIRED:,}")
    return JsonConstraint(field, declared, json.dumps(without(decoded, "uniqueItems"), default=float), shown)


@lru_cache(maxsize=1024)
def check_possible(constraint: Constraint) -> None:
    """Raise `SignatureError` if llguidance cannot compile the grammar or nothing satisfies it."""
    from llguidance import LLTokenizer

    try:
        matcher = compile_grammar(LLTokenizer("byte"), 'start: " " value\n' + constraint.rules("value"))
    except ValueError as error:
        why = str(error).strip().splitlines()[0]
        raise _unsupported(constraint.field, constraint.annotation, why) from error
    matcher.consume_token(ord(" "))
    # With nothing to go on with, the matcher fails and its mask says only: end.
    mask = int.from_bytes(matcher.compute_bitmask(), "little")
    if not mask & (2**256 - 1) or matcher.is_error():
        raise _unsupported(constraint.field, constraint.annotation, "no value satisfies it")


def _unsupported(field: str, annotation: Any, why: str) -> SignatureError:
    return SignatureError(f"field {field!r}: {_name(annotation)} cannot be decoded: {why}. Change the type or its bounds")


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)

"""A signature's fields, read once: constraints of outputs, descriptions, special types."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo

from ..errors import SignatureError
from .aliases import replace_aliases
from .bridge import DspyType, History, Tool
from .constraint import Constraint
from .lowering import lower_type
from .scoring import Scoring, scorings_of


@lru_cache(maxsize=1024)
def constraints(signature: Any) -> dict[str, Constraint]:
    """The constraint of every output field, in the order in which they are written. The dict is shared: do not change it.

    Raises `SignatureError` for a signature without outputs or an output that cannot be decoded.
    """
    _resolve(signature)
    outputs = in_place(signature.output_fields)
    if not outputs:
        raise SignatureError(f"signature {signature.__name__} has no output field: declare one with still.Output()")
    last = next(reversed(outputs))
    found = {name: lower_type(field.annotation, field.metadata, name, last=name == last) for name, field in outputs.items()}
    for name, constraint in found.items():
        if missing := sorted(constraint.quoted - set(signature.input_fields)):
            known = ", ".join(signature.input_fields) or "none"
            raise SignatureError(f"output {name!r} quotes {missing[0]!r}, which is no input; the inputs are: {known}")
    return found


@lru_cache(maxsize=1024)
def scorings(signature: Any) -> dict[str, Scoring]:
    """How the outputs, and members of outputs, are scored that are not decoded. The dict is shared: do not change it.

    Raises `SignatureError` for a field that cannot be scored, or that abstains where None is not of its type.
    """
    found: dict[str, Scoring] = {}
    for name, constraint in constraints(signature).items():
        extra = signature.output_fields[name].json_schema_extra
        found |= scorings_of(extra if isinstance(extra, dict) else {}, constraint)
    return found


def _resolve(signature: Any) -> None:
    # Annotations may name what is defined further down in their module.
    if not signature.__pydantic_complete__:
        try:
            signature.model_rebuild()
        except PydanticUndefinedAnnotation as error:
            raise SignatureError(
                f"signature {signature.__name__}: a field's type names {error.name!r}, which its module does not define"
            ) from None
    replace_aliases(signature)  # dspy's own signatures have them too


def in_place(fields: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    """Fields in the order in which a prompt has them: that of the signature, but where a compile has set a `place`."""

    def place(item: tuple[int, tuple[str, FieldInfo]]) -> tuple[int, int]:
        index, (_, field) = item
        extra = field.json_schema_extra
        given = extra.get("place") if isinstance(extra, dict) else None
        return (given if isinstance(given, int) else index, index)

    return dict(item for _, item in sorted(enumerate(fields.items()), key=place))


def description(name: str, field: FieldInfo) -> str:
    """What the program says about a field, or "": dspy fills in a placeholder where it says nothing."""
    extra = field.json_schema_extra
    text = str(extra.get("desc") or "") if isinstance(extra, dict) else ""
    return "" if text == f"${{{name}}}" else " ".join(text.split())


def is_described(field: FieldInfo) -> bool:
    """Whether the prompt says what an output is; the grammar holds either way."""
    extra = field.json_schema_extra
    return not isinstance(extra, dict) or extra.get("describe", True) is not False


def allows_none(field: FieldInfo) -> bool:
    """Whether None is a value of the field."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return None in get_args(kind)
    return kind in (Any, types.NoneType) or (
        get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind)
    )


def special_fields(signature: Any) -> list[str]:
    """Fields of dspy's own types (images, tools, history, ...), which need dspy's adapters."""
    return [name for name, field in signature.fields.items() if _is_special(field.annotation)]


def _is_special(kind: Any) -> bool:
    if isinstance(kind, type) and not get_args(kind):
        return issubclass(kind, DspyType | History | Tool)
    return any(_is_special(part) for part in get_args(kind))

"""Types under another name: `type` statements, `NewType`, and bounds in `Annotated`."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take a type out of `Annotated`, `NewType` and `type` statements: what it stands for, and its bounds.

    An alias with parameters stays, as does one with names in quotes (its own, mostly) that its module does not define:
    only pydantic can read them. One that names itself is replaced once.
    """
    metadata: tuple[Any, ...] = ()
    passed: list[Any] = []
    while not any(annotation is one for one in passed):  # two aliases may name each other
        passed.append(annotation)
        if get_origin(annotation) is Annotated:
            annotation, *found = get_args(annotation)
            metadata = (*_flat(found), *metadata)
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif is_alias(annotation):
            annotation = _meant(annotation)
        else:
            break
    return annotation, metadata


def replace_aliases(signature: Any) -> None:
    """Give the fields of a finished signature the types that their aliases stand for, in place.

    dspy refuses to edit a signature (to change its instructions, say) whose field has a type that is an alias.
    Aliases with names that nobody knows stay: pydantic has not finished such a signature either.
    """
    found = False
    for field in signature.model_fields.values():
        if not (is_alias(field.annotation) or isinstance(field.annotation, typing.NewType)):
            continue
        meant, bounds = unwrap(field.annotation)
        if is_alias(meant):
            continue
        field.annotation, field.metadata = meant, [*bounds, *field.metadata]
        found = True
    if found:
        signature.model_rebuild(force=True)


def is_alias(annotation: Any) -> bool:
    """Whether it is the name of a `type` statement, or of a `TypeAliasType` of typing_extensions, without arguments."""
    return hasattr(annotation, "__value__") and hasattr(annotation, "__type_params__") and not get_args(annotation)


def _meant(alias: Any) -> Any:
    """The right-hand side, or the alias itself where it cannot stand alone."""
    if alias.__type_params__:
        return alias
    if not _is_quoted(alias.__value__):
        return alias.__value__
    holder = type("Holder", (), {"__annotations__": {"value": alias.__value__}, "__module__": alias.__module__})
    try:
        return typing.get_type_hints(holder, include_extras=True)["value"]
    except NameError:
        return alias


def _is_quoted(annotation: Any) -> bool:
    return isinstance(annotation, str | typing.ForwardRef) or any(_is_quoted(part) for part in get_args(annotation))


def _flat(metadata: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in metadata:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return flat

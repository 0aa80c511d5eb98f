"""Objects taken apart: the members of a JSON value as steps of their own, so that closed sets among them can be scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import ConstraintError
from .choice import Choice
from .constraint import Constraint
from .json_constraint import JsonConstraint
from .schema_parts import members

Schema = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """A value inside an object of known members. before: the text between the value before it and this one's space; after:
    the punctuation that follows it."""

    path: tuple[str, ...]
    constraint: Constraint
    before: str
    after: str


@lru_cache(maxsize=1024)
def members_of(constraint: Constraint) -> tuple[Member, ...]:
    """The members of an object, and of objects in it, in order; closed sets as choices of JSON texts, the rest as JSON.

    None come back for any other type, for an object that may leave members out or have unknown ones, where no member has a
    choice, and where two would have one name (keys with dots).
    """
    if not isinstance(constraint, JsonConstraint):
        return ()
    schema = json.loads(constraint.schema)
    pieces = list(_pieces(schema, (), schema.get("$defs", {})))
    leaves = [piece for piece in pieces if isinstance(piece, _Leaf)]
    if len(pieces) == 1 or not any(len(_values(leaf.schema) or ()) > 1 for leaf in leaves):
        return ()
    if len({".".join(leaf.path) for leaf in leaves}) < len(leaves):
        return ()
    return tuple(_joined(pieces, constraint.field, schema.get("$defs", {})))


class ClosedSet(NamedTuple):
    """A closed set of several options: an output (its name, no path), or a member of one ("address.country")."""

    name: str
    output: str
    constraint: Constraint
    whole: Constraint
    path: tuple[str, ...] = ()

    def label(self, value: Any) -> str:
        """The option's text in a value of the output. Raises `ConstraintError` for one that is none."""
        return member_text(self.whole.render(value), self.path)

    def label_in(self, values: Mapping[str, Any]) -> str | None:
        """The option's text in an example, or None where it has no label that is an option."""
        try:
            return self.label(values[self.output]) if self.output in values else None
        except ConstraintError:
            return None


def closed_sets(constraints: Mapping[str, Constraint]) -> list[ClosedSet]:
    """What of these outputs can be scored, in order."""
    found = []
    for output, whole in constraints.items():
        if whole.options is not None:
            found.append(ClosedSet(output, output, whole, whole))
        found += [ClosedSet(m.constraint.field, output, m.constraint, whole, m.path) for m in members_of(whole)]
    return [each for each in found if each.constraint.options is not None and len(each.constraint.options) > 1]


def member_text(text: str, path: Sequence[str]) -> str:
    """The JSON of a member in an object's; without a path, the text itself, which need not be JSON."""
    if not path:
        return text
    found = json.loads(text)
    for key in path:
        found = found[key]
    return json.dumps(found, ensure_ascii=False)


@dataclass(frozen=True)
class _Leaf:
    path: tuple[str, ...]
    schema: Schema


def _pieces(schema: Schema, path: tuple[str, ...], definitions: Schema) -> Iterator[str | _Leaf]:
    """Punctuation and keys as text, values as leaves; one leaf for what cannot be taken apart."""
    schema = _resolved(schema, definitions)
    if not _is_fixed(schema):
        yield _Leaf(path, schema)
        return
    for i, (key, value) in enumerate(schema["properties"].items()):
        yield f"{', ' if i else '{'}{json.dumps(key, ensure_ascii=False)}: "
        yield from _pieces(value, (*path, key), definitions)
    yield "}"


def _is_fixed(schema: Schema) -> bool:
    names = set(schema.get("properties", ()))
    return bool(names) and schema.get("additionalProperties") is False and set(schema.get("required", ())) == names


def _joined(pieces: Sequence[str | _Leaf], field: str, definitions: Schema) -> Iterator[Member]:
    texts, before, leaf = "", "", None
    for piece in (*pieces, None):
        if isinstance(piece, str):
            texts += piece
            continue
        # A value takes the punctuation after it, up to the space: its options end there.
        after, _, rest = texts.partition(" ")
        if leaf is not None:
            yield _member(leaf, field, definitions, before, after)
            texts = f" {rest}"
        before, texts, leaf = f" {texts.strip()}", "", piece


def _member(leaf: _Leaf, field: str, definitions: Schema, before: str, after: str) -> Member:
    name, values = ".".join((field, *leaf.path)), _values(leaf.schema)
    if values is not None:
        texts = tuple(json.dumps(value, ensure_ascii=False) for value in values)
        return Member(leaf.path, Choice(name, Any, tuple(values), texts), before, after)
    schema = json.dumps({"$defs": definitions, **leaf.schema} if definitions else leaf.schema)
    return Member(leaf.path, JsonConstraint(name, Any, schema, ""), before, after)


def _values(schema: Schema) -> list[Any] | None:
    """Of a closed set, else None."""
    if "anyOf" in schema:
        options = [_values(option) for option in schema["anyOf"]]
        known = [value for option in options if option is not None for value in option]
        return None if None in options or len({json.dumps(value) for value in known}) < len(known) else known
    if schema.get("type") == "boolean":
        return [True, False]
    return [None] if schema.get("type") == "null" else members(schema) or None


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    while "$ref" in schema:
        schema = definitions[str(schema["$ref"]).removeprefix("#/$defs/")]
    if "anyOf" in schema:
        return {**schema, "anyOf": [_resolved(option, definitions) for option in schema["anyOf"]]}
    return schema

"""Lowering a signature to a plan: few words, one line per field, made for small models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pydantic_core import to_jsonable_python

from ..errors import ConstraintError, SignatureError
from .constraint import Constraint
from .fieldset import allows_none, constraints, description, in_place, is_described, scorings
from .json_members import members_of
from .plan import Decode, Part, Plan, Slot, Text, Turn, marker_pattern
from .scoring import Scoring
from .values import guard, value_text


def lower(signature: Any, demos: Iterable[Mapping[str, Any]] = (), instructions: str | None = None) -> Plan:
    """Return the plan of a signature (a `still.Signature` or dspy's).

    System turn: the instructions, then a line per input that has a description and a line per output with its
    description and constraint. A user and an assistant turn per demonstration, then the input slots and decode steps.
    demos: values by field name. One that lacks a field, or is None where the type does not allow it, is left out:
    half a demonstration teaches a small model to leave fields out.
    Raises `SignatureError` for a type that cannot be decoded, or a demonstration's value that is not of its type.
    """
    shown = [dict(demo) for demo in demos]
    instructions = signature.instructions if instructions is None else instructions
    descriptions = tuple(description(name, field) for name, field in signature.fields.items())
    try:
        # Content, not identity: optimizers change demonstrations and instructions in place.
        key = json.dumps(to_jsonable_python(shown, fallback=repr), sort_keys=True)
    except ValueError:
        return _lower(signature, shown, instructions)
    return _lowered(signature, instructions, descriptions, _Keyed(key, shown))


class _Keyed:
    """Demonstrations that hash and compare by their content."""

    def __init__(self, key: str, demos: list[dict[str, Any]]) -> None:
        self.key, self.demos = key, demos

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.key == self.key


@lru_cache(maxsize=512)
def _lowered(signature: Any, instructions: str, descriptions: tuple[str, ...], demos: _Keyed) -> Plan:
    return _lower(signature, demos.demos, instructions)


def _lower(signature: Any, demos: list[dict[str, Any]], instructions: str) -> Plan:
    steps = constraints(signature)
    turns = [Turn("system", (Text(_system(signature, steps, instructions)),))]
    for i, demo in enumerate(demos):
        if is_complete(signature, demo):
            turns += _demonstration(signature, steps, demo, i)
    turns += [Turn("user", _slots(signature)), Turn("assistant", _decodes(steps, scorings(signature)))]
    return Plan(tuple(turns))


def _system(signature: Any, steps: Mapping[str, Constraint], instructions: str) -> str:
    lines = []
    for name, field in in_place(signature.input_fields).items():
        if about := description(name, field):
            lines.append(f"{name}: {about}")
    for name, field in in_place(signature.output_fields).items():
        if not is_described(field):
            continue
        about = description(name, field)
        lines.append(f"{name}: {about}; {steps[name].describe()}" if about else f"{name}: {steps[name].describe()}")
    return f"{instructions.strip()}\n\n{chr(10).join(lines)}".strip()


def _slots(signature: Any) -> tuple[Part, ...]:
    parts: list[Part] = []
    for i, name in enumerate(in_place(signature.input_fields)):
        parts += [Text(f"\n{name}: " if i else f"{name}: "), Slot(name)]
    return tuple(parts)


def _decodes(steps: Mapping[str, Constraint], scored: Mapping[str, Scoring]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for i, (name, constraint) in enumerate(steps.items(), 1):
        end = "end" if i == len(steps) else "newline"
        members = [] if name in scored else _members(constraint, end, scored)
        parts.append(Text(f"{name}:"))
        parts += members or [Decode(name, constraint, end, constraint.max_tokens, scored.get(name))]
    return tuple(parts)


def _members(whole: Constraint, end: str, scored: Mapping[str, Scoring]) -> list[Part]:
    """The steps of an object some of whose members are scored; none for any other value."""
    members = members_of(whole)
    if not any(member.constraint.field in scored for member in members):
        return []
    parts: list[Part] = []
    for i, member in enumerate(members, 1):
        after = f"{member.after}\n" if i == len(members) and end == "newline" else member.after
        inner = member.constraint
        step = Decode(whole.field, inner, after, inner.max_tokens, scored.get(inner.field), member.path, whole)
        parts += [Text(member.before), step]
    return parts


def is_complete(signature: Any, demo: Mapping[str, Any]) -> bool:
    """Whether a demonstration has a value for every field of the signature."""
    return all(demo.get(name) is not None or allows_none(field) for name, field in signature.fields.items())


def _demonstration(signature: Any, steps: Mapping[str, Constraint], demo: Mapping[str, Any], index: int) -> list[Turn]:
    markers = marker_pattern(tuple(signature.fields))
    asked: list[Part] = []
    for i, name in enumerate(in_place(signature.input_fields)):
        value = guard(value_text(demo.get(name), name), markers)
        asked += [Text(f"\n{name}: " if i else f"{name}: "), Text(value, trusted=False)]
    told: list[Part] = []
    for i, (name, constraint) in enumerate(steps.items()):
        try:
            value = guard(constraint.render(demo.get(name)), markers)
        except ConstraintError as error:
            raise SignatureError(f"demonstration {index}: {error}") from error
        told += [Text(f"\n{name}:" if i else f"{name}:"), Text(f" {value}", trusted=False)]
    return [Turn("user", tuple(asked)), Turn("assistant", tuple(told))]

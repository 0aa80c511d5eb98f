"""Closed sets: Literal, Enum and bool."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any

from .constraint import Constraint, literal


@dataclass(frozen=True)
class Choice(Constraint):
    """One of a fixed number of values. `members` and `texts` run in parallel, in the order of declaration."""

    members: tuple[Any, ...]
    texts: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        return self.texts

    @property
    def option_values(self) -> tuple[Any, ...]:
        return self.members

    @property
    def max_tokens(self) -> int:
        # A token is at least one byte; two more for the space before and the newline after.
        return max(len(text.encode()) for text in self.texts) + 2

    def rules(self, name: str) -> str:
        return f"{name}: " + " | ".join(literal(text) for text in self.texts) + "\n"

    def describe(self) -> str:
        return "one of: " + ", ".join(self.texts)

    def render(self, value: Any) -> str:
        """Text of a value. A validator may make of an option what is none: then it is the option that was given."""
        found = self.coerce(value)
        return self._write(value if _index(self.members, value) is not None else found)

    def _write(self, value: Any) -> str:
        if (index := _index(self.members, value)) is None:
            raise self._refuse(repr(value), "its validator made it, and it is no option")
        return self.texts[index]

    def _read(self, text: str) -> Any:
        if text not in self.texts:
            raise ValueError("")
        return self._adapter.validate_python(self.members[self.texts.index(text)])


def choice_texts(members: tuple[Any, ...]) -> tuple[str, ...]:
    """A distinct one-line text per member: strings as they are, in JSON's quotes where that would be ambiguous."""
    texts = tuple(_plain(member) for member in members)
    if len(set(texts)) == len(texts):
        return texts
    return tuple(json.dumps(_value(m)) if isinstance(_value(m), str) else _plain(m) for m in members)


def _plain(member: Any) -> str:
    value = _value(member)
    if isinstance(value, str):
        plain = value and value == value.strip() and value.isprintable()
        return value if plain else json.dumps(value)
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(member: Any) -> Any:
    if not isinstance(member, enum.Enum):
        return member
    return member.value if isinstance(member.value, str | int) and not isinstance(member.value, bool) else member.name


def _index(members: tuple[Any, ...], value: Any) -> int | None:
    # `1 == True`: members are told apart by type as well.
    for i, member in enumerate(members):
        if type(member) is type(value) and member == value:
            return i
    return members.index(value) if value in members else None

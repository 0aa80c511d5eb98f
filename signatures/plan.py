"""The intermediate representation of one LM call."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as member
from functools import cached_property
from typing import Any, Literal

from ..errors import SignatureError
from .constraint import Constraint
from .json_members import member_text
from .scoring import Scoring
from .values import guard, value_text

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """Known text. trusted: written by the program. A value, of an input or a demonstration, is not: whatever looks like
    a control token in it must be tokenized as plain text."""

    text: str
    trusted: bool = True


@dataclass(frozen=True)
class Slot:
    """The place of an input's value."""

    field: str


@dataclass(frozen=True)
class Decode:
    """The model writes a space and a value under `constraint`; "newline" closes it, or "end" (of the answer).

    scoring: where given, the value is not decoded: every option of the constraint is scored. path: of a step that writes one
    member of an object, the keys that lead to it; then `whole` is the field's constraint, and the punctuation that follows
    the member closes it.
    """

    field: str
    constraint: Constraint
    terminator: str
    max_tokens: int
    scoring: Scoring | None = None
    path: tuple[str, ...] = ()
    whole: Constraint | None = None

    @property
    def name(self) -> str:
        """The field, or with a path, as in "address.city"."""
        return ".".join((self.field, *self.path))

    @property
    def closing(self) -> str:
        """What is written after the value; nothing at the end of the answer."""
        return {"newline": "\n", "end": ""}.get(self.terminator, self.terminator)

    @property
    def option_texts(self) -> tuple[str, ...]:
        """The step's text for each option of a closed set."""
        return tuple(f" {option}{self.closing}" for option in self.constraint.options or ())

    def grammar(self) -> str:
        """Complete Lark grammar of the step's text, space and terminator included."""
        end = f" {json.dumps(self.closing)}" if self.closing else ""
        return f'start: " " value{end}\n' + self.constraint.rules("value")

    def parse(self, text: str) -> Any:
        """Value of the step's text; of a member, as JSON has it. Raises `ConstraintError`."""
        return self.constraint.parse(text.removeprefix(" ").removesuffix(self.closing))

    def render(self, value: Any) -> str:
        """The text the step would have for a value of its field: the inverse of `parse`, and what training aims at."""
        return f" {self.text_of(value)}{self.closing}"

    def text_of(self, value: Any) -> str:
        """The text of a value of the field, or of the member of it that the step writes."""
        return member_text((self.whole or self.constraint).render(value), self.path)


Part = Text | Slot | Decode


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The turn's text as far as it is known: slots and decode steps are left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True)
class Plan:
    """Messages with slots for inputs; the last turn is the assistant's, made of field markers and decode steps."""

    turns: tuple[Turn, ...]
    origin: Plan | None = member(default=None, compare=False, repr=False)
    """The plan that this is one call of, where constraints depend on the inputs."""

    @cached_property
    def decodes(self) -> tuple[Decode, ...]:
        """The decode steps in order."""
        return tuple(part for part in self._parts() if isinstance(part, Decode))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return tuple(part.field for part in self._parts() if isinstance(part, Slot))

    def _parts(self) -> Iterator[Part]:
        for turn in self.turns:
            yield from turn.parts

    @cached_property
    def _markers(self) -> re.Pattern[str]:
        return marker_pattern((*self.slots, *(step.field for step in self.decodes)))

    def bound(self, inputs: Mapping[str, Any]) -> Plan:
        """The plan of one call: constraints that depend on the inputs know them."""
        answer = self.turns[-1].parts
        parts = tuple(_bound(part, inputs) for part in answer)
        same = all(one is other for one, other in zip(parts, answer, strict=True))
        return self if same else self.answering(parts, origin=self)

    def leaning(self, nearness: Mapping[str, Sequence[float]]) -> Plan:
        """The plan of one call: options that are scored lean towards those that its input is near to. By step's name."""
        parts = tuple(_leaning(part, nearness) for part in self.turns[-1].parts)
        return self.answering(parts, self.origin or self)

    def answering(self, parts: tuple[Part, ...], origin: Plan | None = None) -> Plan:
        """The plan with another last turn."""
        return Plan((*self.turns[:-1], Turn(self.turns[-1].role, parts)), origin)

    def fill(self, inputs: Mapping[str, Any]) -> list[Turn]:
        """The turns with every slot replaced by its input's text, untrusted. Decode steps stay.

        Raises `SignatureError` naming a missing input, or one that cannot be written as text.
        """
        missing = [name for name in self.slots if name not in inputs]
        if missing:
            raise SignatureError(f"input {missing[0]!r} is missing: pass {', '.join(self.slots)} by keyword")
        return [Turn(turn.role, tuple(self._filled(part, inputs) for part in turn.parts)) for turn in self.turns]

    def _filled(self, part: Part, inputs: Mapping[str, Any]) -> Part:
        if not isinstance(part, Slot):
            return part
        return Text(guard(value_text(inputs[part.field], part.field), self._markers), trusted=False)

    def target(self, values: Mapping[str, Any]) -> Turn:
        """The assistant's turn with every decode step replaced by the text of a known value (untrusted).

        Raises `ConstraintError` for a value that is not of its field's type, `SignatureError` for a missing one.
        """
        missing = [step.field for step in self.decodes if step.field not in values]
        if missing:
            raise SignatureError(f"output {missing[0]!r} is missing: a target needs every output field")
        answer = self.turns[-1]
        parts = (
            Text(part.render(values[part.field]), trusted=False) if isinstance(part, Decode) else part
            for part in answer.parts
        )
        return Turn(answer.role, tuple(parts))

    def messages(self, inputs: Mapping[str, Any]) -> list[dict[str, str]]:
        """Chat messages up to where the assistant answers, for LMs that decode without a grammar."""
        return [{"role": turn.role, "content": turn.text} for turn in self.fill(inputs)[:-1]]

    def to_json(self) -> list[dict[str, Any]]:
        """Everything that decides what a call does, as plain data."""
        return [{"role": turn.role, "parts": [_part_json(part) for part in turn.parts]} for turn in self.turns]

    @cached_property
    def digest(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        from .listing import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        from .listing import plan_html

        return plan_html(self)


def _bound(part: Part, inputs: Mapping[str, Any]) -> Part:
    if not isinstance(part, Decode):
        return part
    constraint = part.constraint.bound(inputs)
    if constraint is part.constraint:
        return part
    return replace(part, constraint=constraint, max_tokens=min(part.max_tokens, constraint.max_tokens))


def _leaning(part: Part, nearness: Mapping[str, Sequence[float]]) -> Part:
    if not isinstance(part, Decode) or part.scoring is None or part.name not in nearness:
        return part
    return replace(part, scoring=part.scoring.leaning(nearness[part.name]))


def marker_pattern(fields: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a line end followed by what looks like one of the fields' markers."""
    names = "|".join(re.escape(name) for name in sorted(set(fields)))
    return re.compile(rf"([\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029])(?=(?:{names})[ \t]*:)", re.IGNORECASE)


def _part_json(part: Part) -> list[Any]:
    if isinstance(part, Text):
        return ["text", part.text, part.trusted]
    if isinstance(part, Slot):
        return ["slot", part.field]
    scoring = [] if part.scoring is None else [part.scoring.to_json()]
    return ["decode", part.name, part.grammar(), type(part.constraint).__name__, part.max_tokens, *scoring]

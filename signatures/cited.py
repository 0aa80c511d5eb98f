"""`Cited[T]`: an answer that names the passages it rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from .constraint import Constraint, literal
from .json_constraint import holds
from .passage import Passage, read_passages

T = TypeVar("T")

STATEMENTS = 4
AT_ONCE = 3
"""An answer has at most so many statements, each with at most so many citations."""
FREE_TOKENS = 256
_CITATION = re.compile(r"\s*\[(\d{1,4})\]")
_SHOWN = re.compile(r"^\s*\[(\d{1,4})\]", re.MULTILINE)
_CONTROL = r"\x00-\x1f\x7f-\x9f\u{2028}\u{2029}"
_EDGE = rf"[^\[\]\s{_CONTROL}]"
# A sentence's end stands only before a citation: a small model that is past the point where it would cite repeats itself.
_WITHIN = rf"(?:[^\[\].!?{_CONTROL}]|[.!?][^\[\]\s.!?{_CONTROL}])"
# Without a limit in characters: the automaton of a counted repetition has a state per count, each with a mask to compute.
_SENTENCE = rf"{_EDGE}{_WITHIN}*[.!?]? ?"


class Cited(BaseModel, Generic[T]):
    """A value and the numbers of the passages it cites, each once, in order. text: the answer as it was written.

    `Cited[str]` has marks such as [2] anywhere in its text, other types have them after the value. The numbers are those of
    the passages in the prompt, counted from 1; while the model writes, the grammar lets it cite nothing else, and nothing at
    all where there are no passages. A value can be made of text: `Cited[str].model_validate("Once a month [2].")`.
    """

    model_config = ConfigDict(frozen=True)

    value: T
    citations: tuple[int, ...] = ()
    text: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        plain = _CITATION.sub("", given).strip()
        return {"value": plain, "citations": _numbers(given), "text": given.strip()}

    def passages(self, shown: Sequence[Passage]) -> list[Passage]:
        """The passages that are cited, of those that were shown."""
        return [shown[number - 1] for number in self.citations if number <= len(shown)]

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class CitedConstraint(Constraint):
    """`inner` is the value's own constraint, or None for text. allowed: the numbers that may be cited; None: any."""

    inner: Constraint | None
    allowed: tuple[int, ...] | None = None

    @property
    def max_tokens(self) -> int:
        return FREE_TOKENS if self.inner is None else self.inner.max_tokens + 8 * len(self.allowed or (0, 0))

    def bound(self, inputs: Mapping[str, Any]) -> Constraint:
        """Limited to the first input of passages; where there is none, to the numbers that begin lines of inputs of text."""
        return replace(self, allowed=_shown(inputs))

    def rules(self, name: str) -> str:
        cite = "[1-9][0-9]{0,2}" if self.allowed is None else "(?:" + "|".join(map(str, self.allowed)) + ")"
        citation = f"{name}_cited: {name.upper()}_CITATION{{1,{AT_ONCE}}}\n{name.upper()}_CITATION: /\\[{cite}\\]/\n"
        if self.inner is not None:
            inner = self.inner.rules(f"{name}_inner")
            if self.allowed == ():
                return f"{name}: {name}_inner\n{inner}"
            return f"{name}: {name}_inner {literal(' ')} {name}_cited\n{citation}{inner}"
        first, more = f"{name.upper()}_FIRST", f"{name.upper()}_MORE"
        if self.allowed == ():
            anything = rf"[^\[\]{_CONTROL}]"
            return f"{name}: {first}\n{first}: /{_EDGE}(?:{anything}*{_EDGE})?/\n"
        texts = f"{first}: /{_SENTENCE}/\n{more}: /[.,;]? ?{_SENTENCE}/\n"
        more_of_it = f"({more} {name}_cited){{0,{STATEMENTS - 1}}}"
        return f'{name}: {first} {name}_cited {more_of_it} "."?\n{texts}{citation}'

    def describe(self) -> str:
        what = "text" if self.inner is None else self.inner.describe()
        return f"{what}, and after it the passage it is from, as [1]"

    def validate(self, value: Any) -> Any:
        return self.checked(super().validate(value))

    def _write(self, value: Any) -> str:
        cited: Cited[Any] = value
        if cited.text and _numbers(cited.text) == cited.citations:
            return " ".join(cited.text.split())
        plain = str(cited.value).translate({91: "(", 93: ")"}) if self.inner is None else self.inner.render(cited.value)
        marks = "".join(f"[{number}]" for number in cited.citations)
        return f"{' '.join(plain.split())} {marks}".strip()

    def _read(self, text: str) -> Any:
        text = text.strip()
        if not _CITATION.sub("", text).strip():
            raise ValueError("it has no text")
        if self.inner is None:
            found = self._adapter.validate_python(text)
        else:
            plain = _CITATION.sub("", text).strip()
            value = {"value": self.inner.parse(plain), "citations": _numbers(text), "text": text}
            found = self._adapter.validate_python(value)
        return self.checked(found)

    def checked(self, value: Any) -> Any:
        found: Cited[Any] = value
        if self.allowed is None:
            return found
        outside = [number for number in found.citations if number not in self.allowed]
        if outside:
            raise self._refuse(repr(found.text or found), f"there is no passage [{outside[0]}]")
        if self.allowed and not found.citations:
            raise self._refuse(repr(found.text or found), "it cites nothing")
        return found


def holds_cited(core: Any) -> bool:
    """Whether a core schema of pydantic has a `Cited` in it."""
    return holds(core, lambda part: part.get("type") == "model" and issubclass(part["cls"], Cited))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(number) for number in _CITATION.findall(text)))


def _shown(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    for value in inputs.values():
        if passages := read_passages(value):  # an empty list may be anything: a conversation that has not begun
            return tuple(range(1, len(passages) + 1))
    texts = [value for value in inputs.values() if isinstance(value, str)]
    return tuple(sorted({int(number) for text in texts for number in _SHOWN.findall(text)}))

"""The conversation with a server in dspy's formats: answers are checked one by one, refusals follow as further turns."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from ..errors import ConstraintError
from ..signatures.bridge import AdapterParseError, ChatAdapter, DspySignature, JSONAdapter, OutputField
from ..signatures.choice import Choice
from ..signatures.constraint import Constraint
from ..signatures.fieldset import allows_none
from ..signatures.json_constraint import JsonConstraint, holds
from ..signatures.number import NumberConstraint
from ..signatures.optional import OptionalConstraint
from ..signatures.text import TextConstraint

_NOTHING = "(no text)"
_NONES = frozenset({"None", "null"})
"""How chat models write None: Python is what dspy asks for."""
_DSPY = ChatAdapter()


class _Conversation:
    """Mixed into an adapter of dspy's; holds the state of one call.

    constraints: of the outputs that are to be checked. refused: an answer of the last request, and why it is none.
    turns: what follows the question; with the answers and reasons there, all before them is a prefix the server has seen.
    """

    def __init__(self, constraints: Mapping[str, Constraint], **options: Any) -> None:
        super().__init__(**options)
        self.constraints = constraints
        self.turns: list[dict[str, Any]] = []
        self.refused: tuple[str, str] | None = None

    def refuse(self) -> str:
        """Have the refused answer and the reason follow the question. Returns the reason."""
        (answer, why), self.refused = self.refused or (_NOTHING, "there was no answer"), None
        told = f"That answer is not valid: {why}. Answer again, in the same format."
        self.turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": told}]
        return why

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = super().format(signature, demos, inputs)  # type: ignore[misc]
        return [*messages, *self.turns]

    def _call_postprocess(
        self, processed_signature: Any, original_signature: Any, outputs: list[Any], lm: Any, lm_kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        # One by one: dspy's own gives up all samples for one that cannot be read.
        answers: list[dict[str, Any]] = []
        read = super()._call_postprocess  # type: ignore[misc]
        for output in outputs:
            try:
                answers += read(processed_signature, original_signature, [output], lm, lm_kwargs)
            except (AdapterParseError, ConstraintError) as error:
                text = output.get("text") if isinstance(output, dict) else output
                self.refused = (text or _NOTHING, _reason(error))
        return answers


class ChatConversation(_Conversation, ChatAdapter):  # type: ignore[misc]  # dspy ships no types
    """dspy's chat format, for servers of which nothing is known and for dspy's own types."""

    def __init__(self, constraints: Mapping[str, Constraint]) -> None:
        # The fallback would be a request of its own, which is not told what was wrong.
        super().__init__(constraints, use_json_adapter_fallback=False)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Values by field. Raises `AdapterParseError` or `ConstraintError`."""
        fields = signature.output_fields
        checked = tuple(name for name in fields if name in self.constraints)
        # dspy splits the answer. What it would read has been through its validators already, and through floats.
        texts: dict[str, str | None] = super().parse(_as_texts(checked), completion) if checked else {}
        absent = [name for name in checked if texts[name] is None and fields[name].is_required()]
        if not all(allows_none(fields[name]) for name in absent):
            raise AdapterParseError("ChatAdapter", signature, completion)
        found = {name: self.constraints[name].validate(None) for name in absent}
        # Of the others that are not there dspy fills in the defaults.
        written = {name: text for name, text in texts.items() if text is not None}
        found |= {name: _from_text(self.constraints[name], fields[name], text) for name, text in written.items()}
        if len(checked) < len(fields):
            found |= super().parse(_without(signature, checked), completion)
        return found


class JsonConversation(_Conversation, JSONAdapter):  # type: ignore[misc]
    """dspy's JSON format. The caller chooses the response format; what comes is read as JSON and not guessed at."""

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None: ...

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Values by field. Raises `ConstraintError`."""
        found = _json_object(completion)
        fields = signature.output_fields
        return {
            name: _read(constraint, found.get(name))
            for name, constraint in self.constraints.items()
            if name in found or fields[name].is_required()
        }


@lru_cache(maxsize=256)
def _as_texts(names: tuple[str, ...]) -> Any:
    """A signature for dspy to split an answer by: all outputs are texts, None where they are not there."""
    return DspySignature({name: (str, OutputField(default=None)) for name in names}, "Split.")


def _without(signature: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        signature = signature.delete(name)
    return signature


def _from_text(constraint: Constraint, field: FieldInfo, text: str) -> Any:
    """Value of what stands under a field's header. Raises `ConstraintError`.

    dspy asks for Python, and shows demonstrations as JSON or as bare words: of what these may mean the first that is of the
    type is taken.
    """
    inner = _inner(constraint)
    if text in _NONES and allows_none(field) and text not in (inner.options or ()):
        return constraint.validate(None)
    if isinstance(inner, TextConstraint):
        return constraint.coerce(text)  # as it stands: `parse` would read escapes, which are of our own format
    try:
        return _written(constraint, text)
    except ConstraintError as error:
        refused = error
    for value in _meanings(inner, text):
        with suppress(ConstraintError, TypeError, ValueError):
            return _read(constraint, value)
    raise refused


def _written(constraint: Constraint, text: str) -> Any:
    """Value of a text as it should be: JSON where the type is written as JSON, else our own format."""
    if isinstance(_inner(constraint), JsonConstraint | NumberConstraint):
        with suppress(ValueError, ArithmeticError, RecursionError):
            return _read(constraint, _loads(text))
    return constraint.parse(text)


def _meanings(inner: Constraint, text: str) -> Iterator[Any]:
    """What else a text may mean: what Python reads, the text itself, and what dspy makes of it, which repairs JSON and knows
    members of an Enum by their names."""
    python = _literal(text)
    # Of a number Python drops digits; brackets and quotes are seldom part of a text.
    yield from (python, text) if isinstance(inner, JsonConstraint) else (text, python)
    kind = inner.annotation if isinstance(inner, Choice) else Any
    one = DspySignature({"value": (kind, OutputField())}, "Read.")
    with suppress(AdapterParseError):
        yield _DSPY.parse(one, f"[[ ## value ## ]]\n{text}")["value"]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _json_object(text: str) -> dict[str, Any]:
    # Servers without schemas put their objects in fences or sentences.
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        return dict(_loads(text[start:end]))
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ConstraintError(f"the answer {_short(text)!r} is not a JSON object: {error}") from None


def _loads(text: str) -> Any:
    # A float has 17 digits, a Decimal all there are.
    return json.loads(text, strict=False, parse_float=Decimal)


def _read(constraint: Constraint, value: Any) -> Any:
    """A value that was loaded, as the type. Raises `ConstraintError`, and as `json.dumps` does for what has no JSON."""
    inner = _inner(constraint)
    if isinstance(inner, JsonConstraint) and value is not None:
        return _from_json(constraint, inner.annotation, value)
    exact = isinstance(inner, NumberConstraint) and inner.exact
    return constraint.coerce(float(value) if isinstance(value, Decimal) and not exact else value)


def _from_json(constraint: Constraint, kind: Any, value: Any) -> Any:
    # As JSON, which has no tuples, sets or dates: pydantic reads it less strictly than Python's values.
    text, quoted = json.dumps(value, default=_plain), json.dumps(value, default=_with_digits)
    if text != quoted and _has_decimals(TypeAdapter(kind).core_schema):
        with suppress(ConstraintError):
            return constraint.parse(quoted)
    return constraint.parse(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, set):
        return list(value)
    raise TypeError(f"{value!r} has no JSON")


def _with_digits(value: Any) -> Any:
    # A number in JSON is a float to pydantic; in quotes it keeps every digit of a Decimal.
    exact = not isinstance(value, Decimal) or Decimal(repr(float(value))) == value
    return _plain(value) if exact else str(value)


def _has_decimals(core: Any) -> bool:
    """Whether a core schema of pydantic has a Decimal in it."""
    return holds(core, lambda part: part.get("type") == "decimal")


def _inner(constraint: Constraint) -> Constraint:
    return constraint.inner if isinstance(constraint, OptionalConstraint) else constraint


def _reason(error: Exception) -> str:
    if not isinstance(error, AdapterParseError):
        return str(error)
    # dspy's message repeats the answer, which the model is shown anyway.
    expected = ", ".join(error.signature.output_fields)
    why = str(error).split("Adapter ")[0].strip() or f"fields are missing; expected all of: {expected}"
    return _short(why)


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "…"

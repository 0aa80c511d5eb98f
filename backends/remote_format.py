"""The conversation with a server in dspy's formats: answers are checked one by one, refusals follow as further turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ConstraintError
from ..signatures.bridge import AdapterParseError, ChatAdapter, JSONAdapter
from ..signatures.constraint import Constraint
from ..signatures.json_constraint import JsonConstraint
from ..signatures.optional import OptionalConstraint

_NOTHING = "(no text)"


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
        found: dict[str, Any] = super().parse(signature, completion)
        checked = self.constraints.keys() & found.keys()
        return {name: self.constraints[name].coerce(value) if name in checked else value for name, value in found.items()}


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


def _json_object(text: str) -> dict[str, Any]:
    # Servers without schemas put their objects in fences or sentences.
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        return dict(json.loads(text[start:end], strict=False))
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the answer {_short(text)!r} is not a JSON object: {error}") from None


def _read(constraint: Constraint, value: Any) -> Any:
    inner = constraint.inner if isinstance(constraint, OptionalConstraint) else constraint
    if isinstance(inner, JsonConstraint) and value is not None:
        # As JSON, which has no tuples, sets or dates: pydantic reads it less strictly than Python's values.
        return constraint.parse(json.dumps(value))
    return constraint.coerce(value)


def _reason(error: Exception) -> str:
    if not isinstance(error, AdapterParseError):
        return str(error)
    # dspy's message repeats the answer, which the model is shown anyway.
    expected = ", ".join(error.signature.output_fields)
    why = str(error).split("Adapter ")[0].strip() or f"fields are missing; expected all of: {expected}"
    return _short(why)


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "…"

"""LMs that cannot run plans, servers mostly: dspy's formats, and every value checked against its constraint.

Where the server takes a JSON schema, the outputs' types go along as one, bounds included; where it refuses ours, and where
it takes none, the question goes out in dspy's chat format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, create_model

from ..errors import ConstraintError, SignatureError
from .bridge import AdapterParseError, ChatAdapter, JSONAdapter, LMInvalidRequestError
from .constraint import Constraint
from .fieldset import constraints, special_fields
from .lowering import lower_type

MAX_ATTEMPTS = 3


def call_remote(
    lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Ask; where an answer is outside its type, say so to the model and ask again, at most twice.

    Raises `ConstraintError` when the last answer is wrong too.
    """
    asking = _Asking(lm, signature, lm_kwargs)
    while asking.missing:
        try:
            found = asking.adapter(lm, asking.options(), asking.signature, demos, dict(inputs))
        except AdapterParseError as error:
            asking.refuse(str(error))
        except LMInvalidRequestError:
            asking.give_up_schema()
        else:
            asking.accept(found)
    return asking.answers


async def acall_remote(
    lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Async twin of `call_remote`."""
    asking = _Asking(lm, signature, lm_kwargs)
    while asking.missing:
        try:
            found = await asking.adapter.acall(lm, asking.options(), asking.signature, demos, dict(inputs))
        except AdapterParseError as error:
            asking.refuse(str(error))
        except LMInvalidRequestError:
            asking.give_up_schema()
        else:
            asking.accept(found)
    return asking.answers


class _Asking:
    """The state of one call: what has been answered, and what the model is told about the rest."""

    def __init__(self, lm: Any, signature: Any, lm_kwargs: Mapping[str, Any]) -> None:
        refuse_scoring(signature)
        self.adapter: Any = SchemaAdapter() if takes_schema(lm, signature) else ChatAdapter()
        self.signature = self._declared = signature
        self.answers: list[dict[str, Any]] = []
        self.missing = 1
        self._wanted: int | None = None
        self._lm_kwargs = dict(lm_kwargs)
        self._constraints = checked_constraints(signature)
        self._attempt = 0

    def options(self) -> dict[str, Any]:
        """LM options of the next request: after the first it asks only for what is missing."""
        again = {} if self._wanted in (None, 1) else {"n": self.missing}
        return {**self._lm_kwargs, **again}

    def give_up_schema(self) -> None:
        """The server refused the request: once, it may have been the schema. Call it while that error is handled."""
        if not isinstance(self.adapter, SchemaAdapter):
            raise
        self.adapter = ChatAdapter()

    def accept(self, found: list[dict[str, Any]]) -> None:
        """Keep the answers whose values are of their types; the rest are refused together."""
        self._wanted = self._wanted or len(found)
        why = ""
        for answer in found:
            try:
                self.answers.append(self._valid(answer))
            except ConstraintError as error:
                why = str(error)
        self.missing = self._wanted - len(self.answers)
        if self.missing:
            self.refuse(why)

    def refuse(self, why: str) -> None:
        """Tell the model, or give up."""
        self._attempt += 1
        if self._attempt == MAX_ATTEMPTS:
            raise ConstraintError(f"no valid answer in {MAX_ATTEMPTS} attempts; the last one: {why}")
        told = f"{self._declared.instructions}\n\nAn earlier answer was refused: {why}"
        self.signature = self._declared.with_instructions(told)

    def _valid(self, answer: dict[str, Any]) -> dict[str, Any]:
        checked = {name: constraint.coerce(answer.get(name)) for name, constraint in self._constraints.items()}
        return {**answer, **checked}


def takes_schema(lm: Any, signature: Any) -> bool:
    """Whether the outputs' types can be sent along: the LM takes schemas, and no field is of dspy's own types."""
    supported = getattr(lm, "supports_response_schema", False) and "response_format" in getattr(lm, "supported_params", ())
    return bool(supported) and not special_fields(signature)


class SchemaAdapter(JSONAdapter):  # type: ignore[misc]  # dspy ships no types
    """dspy's JSON format with a schema that knows the fields' bounds; dspy's own looks at the bare types."""

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        outputs: dict[str, Any] = {name: (c.annotation, ...) for name, c in constraints(signature).items()}
        lm_kwargs["response_format"] = create_model("Outputs", __config__=ConfigDict(extra="forbid"), **outputs)


def refuse_scoring(signature: Any) -> None:
    """Raise `SignatureError` for an output that is to be scored: a server does not tell the options' probabilities."""
    for name, field in signature.output_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("decide") == "score":
            raise SignatureError(
                f"field {name!r}: decide='score' needs the probability of every option, which only still.LM gives: use "
                "still.LM, or decide='decode'"
            )


def checked_constraints(signature: Any) -> dict[str, Constraint]:
    """Constraints of the outputs whose types are not dspy's own."""
    special = special_fields(signature)
    if not special:
        return constraints(signature)
    return {
        name: lower_type(field.annotation, field.metadata, name)
        for name, field in signature.output_fields.items()
        if name not in special
    }

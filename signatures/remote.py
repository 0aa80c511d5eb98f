"""LMs that cannot run plans: dspy's chat format, and every value checked against its constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConstraintError
from .bridge import AdapterParseError, ChatAdapter
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
    asking = _Asking(signature, lm_kwargs)
    while asking.missing:
        try:
            found = ChatAdapter()(lm, asking.options(), asking.signature, demos, dict(inputs))
        except AdapterParseError as error:
            asking.refuse(str(error))
        else:
            asking.accept(found)
    return asking.answers


async def acall_remote(
    lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Async twin of `call_remote`."""
    asking = _Asking(signature, lm_kwargs)
    while asking.missing:
        try:
            found = await ChatAdapter().acall(lm, asking.options(), asking.signature, demos, dict(inputs))
        except AdapterParseError as error:
            asking.refuse(str(error))
        else:
            asking.accept(found)
    return asking.answers


class _Asking:
    """The state of one call: what has been answered, and what the model is told about the rest."""

    def __init__(self, signature: Any, lm_kwargs: Mapping[str, Any]) -> None:
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

"""Calls of LMs that cannot run plans, servers mostly: every value is checked, and asked for again where it is wrong.

Where the server takes a JSON schema, the outputs' types go along as one, bounds included, with dspy's JSON format: of the
formats at hand it is the one whose demonstrations are what the schema asks for. Elsewhere dspy's chat format is used.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import PydanticInvalidForJsonSchema

from ..errors import ConstraintError, SignatureError
from ..signatures.bridge import LMInvalidRequestError, LMUnsupportedFeatureError
from ..signatures.constraint import Constraint
from ..signatures.fieldset import constraints, special_fields
from ..signatures.lowering import lower_type
from .meter import counting
from .remote_format import ChatConversation, JsonConversation
from .remote_schema import answer_schema, without_bounds

MAX_ATTEMPTS = 3
_ABOUT_FORMAT = re.compile(r"schema|response.?format|json|grammar|structured|guided", re.IGNORECASE)
_JSON_OBJECT = {"type": "json_object"}
_steps_down: dict[tuple[str, str, str], int] = {}
"""How far a server has been found to refuse a schema: by model, address and schema."""


def call_remote(
    lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Ask; where an answer is outside its type, show it to the model with the reason and ask again, at most twice.

    With several samples the valid ones are kept and only the others asked for again.
    Raises `ConstraintError` when no answer is valid, `SignatureError` for a field that is to be scored; what the server
    refuses or fails at is raised as dspy does.
    """
    asking = _Asking(lm, signature, lm_kwargs, inputs)
    while asking.missing:
        try:
            with counting():
                found = asking.adapter(lm, asking.options(), signature, demos, dict(inputs))
        except (LMInvalidRequestError, LMUnsupportedFeatureError) as error:
            asking.step_down(error)
        else:
            asking.take(found)
    return asking.answers


async def acall_remote(
    lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Async twin of `call_remote`."""
    # In a thread: to find out what a server can do, dspy may import LiteLLM.
    asking = await asyncio.to_thread(_Asking, lm, signature, lm_kwargs, inputs)
    while asking.missing:
        try:
            with counting():
                found = await asking.adapter.acall(lm, asking.options(), signature, demos, dict(inputs))
        except (LMInvalidRequestError, LMUnsupportedFeatureError) as error:
            asking.step_down(error)
        else:
            asking.take(found)
    return asking.answers


class _Asking:
    """The state of one call: what has been answered, and in which form the rest is asked for."""

    def __init__(self, lm: Any, signature: Any, lm_kwargs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        refuse_scoring(signature)
        checked = {name: each.bound(inputs) for name, each in checked_constraints(signature).items()}
        as_json = takes_schema(lm, signature)
        self.adapter: Any = JsonConversation(checked) if as_json else ChatConversation(checked)
        self.answers: list[dict[str, Any]] = []
        self.missing = 1
        self._lm_kwargs = dict(lm_kwargs)
        set_up = {**getattr(lm, "kwargs", {}), **lm_kwargs}
        self._n = int(set_up.get("n") or 1)
        self._reasons: list[str] = []
        self._step = 0
        # Whoever set a format of their own keeps it.
        self._formats = _formats(signature) if as_json and not set_up.get("response_format") else (None,)
        where = str(set_up.get("api_base") or set_up.get("base_url"))
        self._key = (str(lm.model), where, json.dumps(self._formats[0]))

    def options(self) -> dict[str, Any]:
        """LM options of the next request: after the first it asks only for what is missing."""
        self._step = max(self._step, _steps_down.get(self._key, 0))
        format_ = self._formats[self._step]
        options = {**self._lm_kwargs, **({"response_format": format_} if format_ else {})}
        return {**options, "n": self.missing} if self._n > 1 and self._reasons else options

    def step_down(self, error: Exception) -> None:
        """The server refused a request: if that was for the format, ask for less of it, else raise the error."""
        # Its subclasses (a prompt that is too long, an unknown model) have other remedies.
        about = type(error) in (LMInvalidRequestError, LMUnsupportedFeatureError) and _ABOUT_FORMAT.search(str(error))
        self._step += 1
        if not about or self._step == len(self._formats):
            raise error

    def take(self, found: list[dict[str, Any]]) -> None:
        """Keep the answers; if some were refused, say so to the model, or leave it at those that were valid."""
        if self._step:
            # Now it is known that less helps: an error about something else may speak of JSON too.
            # Other threads may have gone further.
            _steps_down[self._key] = max(self._step, _steps_down.get(self._key, 0))
        self.answers += found
        if self.answers and not self.adapter.refused:
            self.missing = 0
            return
        self.missing = max(1, self._n - len(self.answers))
        self._reasons.append(self.adapter.refuse())
        if len(self._reasons) < MAX_ATTEMPTS:
            return
        if not self.answers:
            reasons = "; then ".join(dict.fromkeys(self._reasons))
            raise ConstraintError(f"no valid answer in {MAX_ATTEMPTS} attempts: {reasons}")
        self.missing = 0


@lru_cache(maxsize=256)
def _formats(signature: Any) -> tuple[dict[str, Any] | None, ...]:
    """What is asked of the server, from all we know to nothing; validation holds in every case."""
    try:
        schema = answer_schema(constraints(signature))
    except PydanticInvalidForJsonSchema:
        return _JSON_OBJECT, None
    schemas = [schema] if (structure := without_bounds(schema)) == schema else [schema, structure]
    asked = [{"name": "answer", "schema": schema, "strict": True} for schema in schemas]
    return *({"type": "json_schema", "json_schema": each} for each in asked), _JSON_OBJECT, None


def takes_schema(lm: Any, signature: Any) -> bool:
    """Whether the outputs' types can be sent along: the LM takes schemas, and no field is of dspy's own types."""
    supported = getattr(lm, "supports_response_schema", False) and "response_format" in getattr(lm, "supported_params", ())
    return bool(supported) and not special_fields(signature)


def refuse_scoring(signature: Any) -> None:
    """Raise `SignatureError` for an output that is to be scored: a server does not tell the options' probabilities."""
    for name, field in signature.output_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("decide") == "score":
            raise SignatureError(
                f"field {name!r}: decide='score' needs the probability of every option, which only still.LM gives (and not "
                "beside fields of dspy's own types): use still.LM, or decide='decode'"
            )


def checked_constraints(signature: Any) -> dict[str, Constraint]:
    """Constraints of the outputs whose types are not dspy's own."""
    special = special_fields(signature)
    if not special:
        return constraints(signature)
    fields = signature.output_fields.items()
    return {name: lower_type(field.annotation, field.metadata, name) for name, field in fields if name not in special}

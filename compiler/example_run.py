"""`Run`: what a program did with one example, and its form in the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..errors import DatasetError
from ..optimizers.context import PredictorTrace
from ..signatures.bridge import Module, Prediction
from ..signatures.executor import Completion
from ..signatures.prediction import Prediction as ScoredPrediction
from ..signatures.prediction import from_values
from ..signatures.values import is_same
from .canonical import to_jsonable
from .ledger_rows import EvaluationRow

Types = Mapping[str, TypeAdapter[Any]]
"""By field."""
_UNREADABLE = (DatasetError, ValidationError, TypeError)
"""What is raised for a value that has no JSON form, or that its JSON does not make again."""


@dataclass(frozen=True, slots=True)
class Run:
    """A program's answer to one example, before it is scored."""

    prediction: Any
    trace: tuple[PredictorTrace, ...]
    error: str | None


class RunFormat:
    """How runs of one program are kept as JSON, and made again of it: values of their types, traces, of what was scored the
    probabilities, and what was cut off. A run whose values would be others is not kept, so that a metric never sees another
    prediction than the program's; its row says what it cost, and the example is run again."""

    def __init__(self, program: Module) -> None:
        predictors = dict(program.named_predictors())
        self._outputs = {name: _types(p.signature.output_fields) for name, p in predictors.items()}
        # Two predictors may have an output of the same name and another type; a program mostly returns what its last says.
        # What is only an input (passages, say) may be returned too.
        inputs = (_types(p.signature.input_fields) for p in predictors.values())
        self._types = _merged([*inputs, *self._outputs.values()])

    def to_stored(self, run: Run, traced: bool, option_scores: Mapping[str, Any]) -> dict[str, Any]:
        """For a row's `prediction`."""
        parts: dict[str, Any] = {}
        if traced:
            parts["trace"] = [[t.predictor, _as_shown(t.inputs), _as_shown(t.outputs)] for t in run.trace]
        if option_scores:
            parts["scores"] = option_scores
        stored: dict[str, Any] = {"values": None}
        try:
            stored |= to_jsonable(parts)
        except DatasetError:
            return stored
        if run.error is None:
            with suppress(*_UNREADABLE):
                stored |= self._answer(run.prediction)
        return stored

    def from_row(self, row: EvaluationRow) -> Run | None:
        """The run of a row; None if it has to be run again."""
        stored = row.prediction or {}
        failed = row.error is not None and not row.error.startswith("MetricError")
        if not failed and stored.get("values") is None:
            return None
        try:
            scores = (PredictorTrace(name, {}, {}, found) for name, found in stored.get("scores", {}).items())
            trace = (*self._trace(stored.get("trace", ())), *scores)
            prediction = None if failed else self._prediction(stored)
        except _UNREADABLE:
            return None  # the program's types changed since
        return Run(prediction, trace, row.error if failed else None)

    def _answer(self, live: Any) -> dict[str, Any]:
        """What makes this prediction again, if anything does. plain: fields whose values are as JSON has them, though a
        predictor has an output of that name and another type."""
        values = to_jsonable(live.toDict())
        plain = [name for name in values if name in self._types and not self._makes(name, values[name], live[name])]
        told = live._completion if isinstance(live, ScoredPrediction) else Completion({})
        shares = [[field, [[to_jsonable(v), p] for v, p in found.items()]] for field, found in told.probabilities.items()]
        parts = {"plain": plain, "probabilities": shares, "truncated": list(told.truncated)}
        answer = {"values": values, **{name: part for name, part in parts.items() if part}}
        again = self._prediction(answer)
        return answer if all(is_same(again[name], live[name]) for name in values) else {}

    def _makes(self, name: str, value: Any, live: Any) -> bool:
        with suppress(ValidationError):
            return is_same(self._typed(name, value), live)
        return False

    def _prediction(self, stored: Mapping[str, Any]) -> Prediction:
        plain = stored.get("plain", ())
        values = {name: v if name in plain else self._typed(name, v) for name, v in stored["values"].items()}
        shares = {
            field: {self._option(field, value): share for value, share in found}
            for field, found in stored.get("probabilities", ())
        }
        made = from_values(values)
        made._completion = Completion(values, probabilities=shares, truncated=tuple(stored.get("truncated", ())))
        return made

    def _trace(self, steps: Iterable[Any]) -> tuple[PredictorTrace, ...]:
        return tuple(
            PredictorTrace(name, inputs, {k: _read(self._outputs.get(name, {}).get(k), v) for k, v in given.items()})
            for name, inputs, given in steps
        )

    def _option(self, field: str, value: Any) -> Any:
        """An option of a closed set, which a validator need not take: only the one that was chosen has passed it."""
        with suppress(ValidationError):
            return self._typed(field, value)
        return value

    def _typed(self, field: str, value: Any) -> Any:
        return _read(self._types.get(field), value)


def _types(fields: Mapping[str, Any]) -> dict[str, TypeAdapter[Any]]:
    found = {}
    for name, info in fields.items():
        with suppress(PydanticUserError):  # a class that pydantic cannot read: its values stay plain
            found[name] = TypeAdapter(info.rebuild_annotation())
    return found


def _merged(parts: Iterable[Types]) -> Types:
    return {name: kind for part in parts for name, kind in part.items()}


def _read(kind: TypeAdapter[Any] | None, value: Any) -> Any:
    return value if kind is None else kind.validate_json(json.dumps(value), by_alias=True, by_name=True)


def _as_shown(values: dict[str, Any]) -> Any:
    """As candidates and prompts have them (by alias), so that a candidate made from the row is the one made before."""
    try:
        return to_jsonable_python(values)
    except PydanticSerializationError:
        return values

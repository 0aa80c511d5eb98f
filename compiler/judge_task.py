"""What a judge is told about an example and a prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DatasetError, MetricError
from ..signatures.bridge import Example
from ..signatures.signature import Input, Output, Signature
from .canonical import to_jsonable
from .metric import MISSING, shown, value_of

_REASON = 300
"""Characters of a reason."""


class Verdict(Signature):
    """Judge the answer."""

    inputs: str = Input(desc="what was asked")
    label: str = Input(desc="a right answer, for reference")
    prediction: str = Input(desc="the answer to judge")
    reason: str = Output(desc="what is right or wrong with it, in a sentence", max_length=_REASON)
    score: int = Output(desc="from 1 (useless) to 5 (perfect)", ge=1, le=5)


def default_signature(instructions: str) -> Any:
    """A verdict by the user's instructions."""
    return Verdict.with_instructions(instructions)  # type: ignore[attr-defined]  # of dspy's metaclass


@dataclass(frozen=True, slots=True)
class Question:
    """How the inputs of a judge's signature are filled."""

    judging: Any
    fields: tuple[str, ...]
    """Fields of label and prediction that are shown; none for all."""

    def values(self, example: Example, prediction: Any) -> dict[str, Any] | None:
        """Inputs for the judge; None if the prediction has nothing to judge.

        Raises MetricError for an input or a field that neither example nor prediction has.
        """
        inputs, labels = _halves(example)
        given = self._shown(_fields_of(prediction, self.fields))
        if unknown := [name for name in self.fields if name not in given and name not in example]:
            if prediction is None:
                return None
            raise MetricError(f"neither example nor prediction has a field {unknown[0]!r}; correct `fields`")
        if not given:
            return None
        parts = (inputs, self._shown(labels), given)
        found = {name: self._value(name, *parts) for name in self.judging.input_fields}
        return {name: value for name, value in found.items() if value is not MISSING}

    def signature(self, values: Mapping[str, Any]) -> Any:
        """The judge's signature, without `label` where there is none."""
        absent = "label" in self.judging.input_fields and "label" not in values
        return self.judging.delete("label") if absent else self.judging

    def described(self) -> Any:
        """What tells two judges apart, as JSON."""
        fields = [
            (name, str(field.rebuild_annotation()), str(field.json_schema_extra))
            for name, field in self.judging.fields.items()
        ]
        return [self.judging.instructions, fields]

    def _shown(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if not self.fields or name in self.fields}

    def _value(self, name: str, inputs: dict[str, Any], labels: dict[str, Any], given: dict[str, Any]) -> Any:
        """The value of one input of the judge; MISSING for a label that is not there, and for what has a default."""
        whole = {"inputs": inputs, "label": labels, "prediction": given}
        if name in whole:
            return MISSING if name == "label" and not labels else _text(whole[name])
        for values, key in (
            (labels, name.removeprefix("label_")) if name.startswith("label_") else ({}, ""),
            (given, name.removeprefix("predicted_")) if name.startswith("predicted_") else ({}, ""),
            (inputs, name),
            (given, name),
        ):
            if key in values:
                return values[key]
        if not self.judging.input_fields[name].is_required():
            return MISSING
        raise MetricError(
            f"the judge's input {name!r} is neither an input nor in the prediction; call it inputs, label, prediction, "
            "label_NAME or predicted_NAME"
        )


def _halves(example: Example) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and labels."""
    try:
        return dict(example.inputs().items()), dict(example.labels().items())
    except ValueError:
        raise MetricError("it does not say its inputs; call with_inputs") from None


def _fields_of(prediction: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(prediction, Example | Mapping):
        return dict(prediction.items())
    return {name: value for name in names if (value := value_of(prediction, name, MISSING)) is not MISSING}


def _text(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    try:
        plain = to_jsonable(value)
    except DatasetError:  # the judge sees what it is, and says what it thinks of it
        return shown(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)

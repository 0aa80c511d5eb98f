"""`Metric`: how well a prediction answers an example, as a number from 0 to 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DatasetError, MetricError
from ..signatures.bridge import Example
from ..signatures.cited import Cited
from .canonical import example_digest


@dataclass(frozen=True)
class Score:
    """What a metric says of one prediction: a value from 0 to 1, and in words what was wrong (for reflection)."""

    value: float
    feedback: str = ""

    def __post_init__(self) -> None:
        # A user gives what there is, None too; what a teacher and a report are told is cut as text.
        object.__setattr__(self, "feedback", "" if self.feedback is None else str(self.feedback))

    def __float__(self) -> float:
        return float(self.value)


Comparison = Callable[[Any, Any], Score | float]
"""Label and predicted value to a score. Raises MetricError or DatasetError for a label that is not of its kind."""


class Metric(ABC):
    """A callable `(example, prediction, trace=None) -> float` from 0 to 1 with a name.

    `score` is the same with feedback, `fields` the value of every label field where the metric looks at fields one by
    one.
    """

    name: str

    @abstractmethod
    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        """The checked score. Raises MetricError if the example lacks a label or the metric itself fails."""

    def fields(self, example: Example, prediction: Any) -> dict[str, float]:
        """Value per label field, each from 0 to 1; empty for a metric that judges the prediction as a whole."""
        return {}

    @property
    def identity(self) -> str:
        """What tells it from others: its name, and of a function its code and the values that it holds."""
        return self.name

    def __call__(self, example: Example, prediction: Any, trace: Any = None) -> float:
        return self.score(example, prediction, trace).value

    def __repr__(self) -> str:
        return self.name


class FieldMetric(Metric):
    """The mean over label fields of a comparison of two values; without names, over all label fields of the example."""

    def __init__(self, kind: str, compare: Comparison, names: tuple[str, ...], options: str = "") -> None:
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise MetricError(f"{kind}: {wrong[0]!r} is not a field name; write {kind}('field')")
        self.name = f"{kind}({', '.join([*map(repr, names), *([options] if options else [])])})"
        self.names = names
        self._kind, self._compare, self._options = kind, compare, options

    def limited(self, *names: str) -> FieldMetric:
        """The same comparison, of these fields only."""
        return FieldMetric(self._kind, self._compare, names, self._options)

    def fields(self, example: Example, prediction: Any) -> dict[str, float]:
        """Value per field; a field that the prediction lacks counts 0. Raises MetricError if the example lacks it."""
        return {name: score.value for name, score in self._scores(example, prediction).items()}

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        scores = self._scores(example, prediction)
        wrong = [f"{name}: {score.feedback}" for name, score in scores.items() if score.feedback]
        return Score(math.fsum(score.value for score in scores.values()) / len(scores), "; ".join(wrong))

    def _scores(self, example: Example, prediction: Any) -> dict[str, Score]:
        return {name: self._one(name, example, prediction) for name in self.names or label_names(example, self.name)}

    def _one(self, name: str, example: Example, prediction: Any) -> Score:
        if name not in example:
            raise MetricError(
                f"metric {self.name}: example {short(example)} has no label {name!r}; it has {', '.join(example.keys())}"
            )
        # Of a cited answer the value counts: its citations are for a metric of one's own.
        label, predicted = _uncited(example[name]), _uncited(value_of(prediction, name, MISSING))
        try:
            # A label is looked at even where nothing was predicted: a malformed one is never hidden by a score.
            found = self._compare(label, None if predicted is MISSING else predicted)
        except (DatasetError, MetricError) as error:
            raise MetricError(f"metric {self.name}: example {short(example)}, field {name!r}: {error}") from error
        if predicted is MISSING:
            return Score(0.0, f"expected {shown(label)}, got nothing")
        score = found if isinstance(found, Score) else Score(found)
        if score.value >= 1:
            return Score(score.value)
        return score if score.feedback else Score(score.value, f"expected {shown(label)}, got {shown(predicted)}")


MISSING: Any = object()
"""In place of a value that a prediction lacks: None may be a value."""


def _uncited(value: Any) -> Any:
    return value.value if isinstance(value, Cited) else value


def value_of(prediction: Any, name: str, default: Any) -> Any:
    """A prediction's field, whether it is a dspy.Prediction, a mapping or an object."""
    if isinstance(prediction, Example | Mapping):
        return prediction.get(name, default)
    return getattr(prediction, name, default)


def label_names(example: Example, metric: str) -> list[str]:
    """Names of the labels. Raises MetricError where the example has none, or does not say."""
    try:
        names = list(example.labels().keys())
    except ValueError as error:  # dspy: with_inputs was never called
        raise MetricError(f"metric {metric}: example {short(example)} does not say its inputs; call with_inputs") from error
    if not names:
        raise MetricError(f"metric {metric}: example {short(example)} has no labels; name fewer columns as inputs")
    return names


def short(example: Example) -> str:
    """How a message names an example: the first digits of its digest."""
    return example_digest(example)[:12]


def shown(value: Any) -> str:
    """A value in a message: the beginning of its repr, whatever it is."""
    try:
        return f"{value!r:.200}"
    except Exception:  # nested too deeply, or an object whose repr fails
        return f"<{type(value).__name__}>"

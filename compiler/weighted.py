"""`weighted`: one metric made of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from ..errors import MetricError
from ..signatures.bridge import Example
from .metric import FieldMetric, Metric, Score
from .metrics import as_metric

Part = float | tuple[Metric | str | Callable[..., Any], float]


def weighted(parts: Mapping[str, Part]) -> Metric:
    """The mean of several metrics by weight: `weighted({"team": 1, "price": (close(rel=0.01), 2)})`.

    A key is a label field, its value a weight (the field is then compared by `exact`) or (metric, weight). A metric of
    fields that names none, or is given by name ("f1"), looks at that field only. For a metric of the whole prediction (a
    function, a judge) the key is just what its feedback is called. Weights are above 0 and need not add up to anything.

    Raises MetricError for weights that are none, and for a metric of other fields than its key.
    """
    if not isinstance(parts, Mapping) or not parts:
        raise MetricError(f'weighted: {parts!r:.80} names no fields; write weighted({{"field": weight}})')
    return WeightedMetric({name: _part(name, part) for name, part in parts.items()})


class WeightedMetric(Metric):
    """Metrics with their weights, by the field or part they speak of."""

    def __init__(self, parts: Mapping[str, tuple[Metric, float]]) -> None:
        self._parts = dict(parts)
        largest = max(weight for _, weight in self._parts.values())
        self._shares = {name: weight / largest for name, (_, weight) in self._parts.items()}  # their sum is finite
        told = ", ".join(f"{name!r}: ({metric}, {weight!r})" for name, (metric, weight) in self._parts.items())
        self.name = f"weighted({{{told}}})"

    @property
    def identity(self) -> str:
        """Its name, and what tells its parts from others."""
        return "\n".join([self.name, *(metric.identity for metric, _ in self._parts.values())])

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        scores = {name: metric.score(example, prediction, trace) for name, (metric, _) in self._parts.items()}
        value = math.fsum(scores[name].value * share for name, share in self._shares.items())
        told = (_told(name, score.feedback) for name, score in scores.items() if score.feedback)
        return Score(value / math.fsum(self._shares.values()), "; ".join(told))

    def fields(self, example: Example, prediction: Any) -> dict[str, float]:
        """Values of the parts that look at fields; a part that judges the prediction as a whole is not asked again."""
        found: dict[str, float] = {}
        for metric, _ in self._parts.values():
            found |= metric.fields(example, prediction)
        return found


def _part(name: Any, part: Any) -> tuple[Metric, float]:
    if not isinstance(name, str):
        raise MetricError(f"weighted: {name!r} is not a field name; write weighted({{'field': weight}})")
    given, weight = part if isinstance(part, tuple) and len(part) == 2 else ("exact", part)
    if not isinstance(weight, Real) or isinstance(weight, bool) or not 0 < float(weight) < math.inf:
        raise MetricError(f"weighted: {name!r} has {part!r:.80}; give a weight above 0, or (metric, weight)")
    metric = as_metric(given)
    if not isinstance(metric, FieldMetric) or metric.names == (name,):
        return metric, float(weight)
    if metric.names:
        raise MetricError(
            f"weighted: the metric for {name!r} is {metric}; leave its fields out, or make one of them the key"
        )
    return metric.limited(name), float(weight)


def _told(name: str, feedback: str) -> str:
    """A metric of fields begins with the field's name already."""
    return feedback if feedback.startswith(f"{name}: ") else f"{name}: {feedback}"

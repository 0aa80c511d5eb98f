"""A user's function as a metric: every result and every failure is checked and named."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

from ..backends.callable_identity import described
from ..errors import MetricError
from ..signatures.bridge import Example, Prediction
from .canonical import canonical_json
from .metric import Metric, Score, short

_ROUNDING = 1e-9
"""How far rounding may take a sum of shares outside of 0 to 1."""


class CallableMetric(Metric):
    """A function `(example, prediction, trace)` that gives a bool, a number from 0 to 1, a Score or a dspy.Prediction."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._trace_as = _trace_parameter(function, self.name)

    @property
    def identity(self) -> str:
        """Its name, its source (where that cannot be read, its full name) and the values that the source does not show."""
        return f"{self.name}\n{canonical_json(described(self._function))}"

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        positional = (trace,) if self._trace_as == "positional" else ()
        keywords = {"trace": trace} if self._trace_as == "keyword" else {}
        try:
            result = self._function(example, prediction, *positional, **keywords)
        except MetricError:
            raise
        except Exception as error:
            raise MetricError(
                f"metric {self.name} failed on example {short(example)}: {type(error).__name__}: {error}; correct the metric"
            ) from error
        return self._checked(result, example)

    def _checked(self, result: Any, example: Example) -> Score:
        value, feedback = result, ""
        if isinstance(result, Score):
            value, feedback = result.value, result.feedback
        elif isinstance(result, Prediction):
            value, feedback = result.get("score"), str(result.get("feedback") or "")
        value = _unwrapped(value)
        if not isinstance(value, Real) or not -_ROUNDING <= float(value) <= 1 + _ROUNDING:  # NaN fails both comparisons
            if inspect.iscoroutine(result):
                result.close()
            raise MetricError(
                f"metric {self.name} returned {result!r:.100} for example {short(example)}; "
                "return a number from 0 to 1, a bool, or Score(value, feedback)"
            )
        return Score(min(max(float(value), 0.0), 1.0), feedback)


def _unwrapped(value: Any) -> Any:
    """Of a numpy scalar its value: numpy's bool is no Real, and its integers have no JSON form."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 2) == 1 else value


def _trace_parameter(function: Callable[..., Any], name: str) -> str:
    """How to pass the trace: "positional", "keyword" or "none" (a parameter such as `threshold=0.5` is not it)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have no signature
        return "none"
    places = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    trace = signature.parameters.get("trace")
    third = places[2] if len(places) > 2 else None
    way = "none"
    if third is not None and (third is trace or third.default is third.empty):
        way = "positional"
    elif trace is not None and trace.kind in (trace.KEYWORD_ONLY, trace.POSITIONAL_OR_KEYWORD):
        way = "keyword"
    arguments = (None,) * (3 if way == "positional" else 2)
    keywords = {"trace": None} if way == "keyword" else {}
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise MetricError(
            f"metric {name}{signature} cannot be called with (example, prediction, trace=None): {error}"
        ) from error
    return way
